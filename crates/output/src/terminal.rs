//! The summary that a person reads: plain text, 80 columns.

use std::fmt::Write;
use std::path::Path;

use profilemate_analysis::Answers;
use profilemate_analysis::kv_cache::PoolSummary;
use profilemate_analysis::processes::Process;
use profilemate_analysis::steps::Phase;
use profilemate_session::Session;

use crate::text::visible;

/// Columns of a terminal that everybody has.
const WIDTH: usize = 80;

/// A whole number with its thousands apart.
fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn duration(nanoseconds: u64) -> String {
    let seconds = nanoseconds as f64 / 1e9;
    if seconds < 60.0 {
        return format!("{seconds:.1} s");
    }
    let whole = nanoseconds / 1_000_000_000;
    let (hours, minutes, seconds) = (whole / 3600, whole / 60 % 60, whole % 60);
    if hours > 0 {
        format!("{hours} h {minutes:02} min {seconds:02} s")
    } else {
        format!("{minutes} min {seconds:02} s")
    }
}

fn line(text: &mut String, label: &str, value: &str) {
    // A path may be longer than a terminal is wide; it is not cut, so that it can be copied.
    let _ = writeln!(text, "{label:<13}{value}");
}

/// Words in lines of at most [`WIDTH`] columns, all after the first indented.
fn wrapped(text: &mut String, label: &str, words: &[String]) {
    let mut current = format!("{label:<13}");
    let mut empty = true;
    for (at, word) in words.iter().enumerate() {
        let comma = if at + 1 < words.len() { "," } else { "" };
        if !empty && current.len() + 1 + word.len() + comma.len() > WIDTH {
            let _ = writeln!(text, "{current}");
            current = " ".repeat(13);
            empty = true;
        }
        let _ = write!(current, "{}{word}{comma}", if empty { "" } else { " " });
        empty = false;
    }
    let _ = writeln!(text, "{current}");
}

/// One entry for each process, with all its roles.
fn processes(processes: &[Process]) -> Vec<String> {
    let mut pids: Vec<u32> = processes.iter().map(|process| process.pid).collect();
    pids.sort_unstable();
    pids.dedup();
    let mut entries: Vec<String> = pids
        .into_iter()
        .filter_map(|pid| {
            let of_pid: Vec<&Process> = processes.iter().filter(|process| process.pid == pid).collect();
            let first = of_pid.first().filter(|process| process.role != "launcher")?;
            let roles: Vec<String> =
                of_pid.iter().map(|process| format!("{}-{}", visible(&process.role), process.rank)).collect();
            Some(format!("{} ({})", roles.join("+"), crate::metadata::ending(first.ending)))
        })
        .collect();
    entries.sort();
    entries
}

/// The summary; `tables` is the folder with the tables, when there are any.
pub fn summary(session: &Session, answers: &Answers, tables: Option<&Path>) -> String {
    let mut text = String::new();
    let counters = &answers.counters;
    line(&mut text, "session", &visible(&session.folder.to_string_lossy()));
    if let Some(model) = &answers.facts.model {
        line(&mut text, "model", &visible(model));
    }
    line(&mut text, "duration", &duration(answers.duration_ns));
    wrapped(&mut text, "processes", &processes(&answers.processes));
    wrapped(
        &mut text,
        "work",
        &[
            format!("{} engine steps", grouped(counters.engine_steps)),
            format!("{} requests", grouped(counters.finished_requests)),
            format!(
                "{} prompt + {} new tokens",
                grouped(counters.prompt_tokens),
                grouped(counters.generation_tokens)
            ),
        ],
    );
    forward(&mut text, answers);
    gpu(&mut text, answers);
    cpu(&mut text, answers);
    batch(&mut text, answers);
    requests(&mut text, answers);
    kv_cache(&mut text, answers);
    if !answers.overhead.is_empty() {
        text.push('\n');
        for (at, cost) in answers.overhead.iter().enumerate() {
            let share =
                cost.share_of_step_pct.map_or(String::new(), |share| format!(", {share:.3} % of its steps"));
            let label = if at == 0 { "probes cost" } else { "" };
            let microseconds = cost.mean_ns_per_step / 1000.0;
            line(&mut text, label, &format!("{}: {microseconds:.2} us per step{share}", visible(&cost.process)));
        }
    }
    text.push('\n');
    let mut records = vec![
        format!("{} written", grouped(session.records_written())),
        format!("{} lost", grouped(session.records_lost())),
        format!("{} damaged", grouped(session.records_damaged())),
    ];
    if answers.probe_errors > 0 {
        records.push(format!("probe errors: {}", grouped(answers.probe_errors)));
    }
    wrapped(&mut text, "records", &records);
    for damage in session.damage.iter().take(5) {
        line(&mut text, "", &format!("{}: {}", visible(&damage.file), visible(&damage.what)));
    }
    if session.damage.len() > 5 {
        line(&mut text, "", &format!("and {} more, see metadata.json", session.damage.len() - 5));
    }
    not_attached(&mut text, answers);
    if let Some(tables) = tables {
        line(&mut text, "tables", &format!("{}/*.csv, *.json", visible(&tables.to_string_lossy())));
    }
    text
}

/// Profilers that are missing, by reason.
fn not_attached(text: &mut String, answers: &Answers) {
    let mut reasons: Vec<(&str, Vec<String>)> = Vec::new();
    for (profiler, state) in &answers.facts.profilers {
        let Some(reason) = state.strip_prefix("could not attach: ") else { continue };
        match reasons.iter_mut().find(|(found, _)| *found == reason) {
            Some((_, profilers)) => profilers.push(visible(profiler).into_owned()),
            None => reasons.push((reason, vec![visible(profiler).into_owned()])),
        }
    }
    for (reason, profilers) in reasons {
        wrapped(text, "not attached", &profilers);
        line(text, "", &format!("({})", visible(reason)));
    }
}

fn forward(text: &mut String, answers: &Answers) {
    let Some(summary) = answers.forward.as_ref().filter(|summary| !summary.phases.is_empty()) else { return };
    let _ = writeln!(
        text,
        "\n{:<13}{:>12}{:>12}{:>12}{:>12}{:>16}",
        "forward", "count", "mean ms", "p50 ms", "p99 ms", "tokens/s"
    );
    for (phase, said) in &summary.phases {
        let times = &said.times;
        let _ = writeln!(
            text,
            "  {:<11}{:>12}{:>12.3}{:>12.3}{:>12.3}{:>16}",
            phase.text(),
            grouped(times.count),
            times.mean_ms,
            times.p50_ms,
            times.p99_ms,
            said.tokens_per_second.map_or(String::new(), |rate| format!("{rate:.0}"))
        );
    }
}

fn gpu(text: &mut String, answers: &Answers) {
    if answers.gpu.is_empty() {
        return;
    }
    let percent = |value: Option<f64>| value.map_or("unknown".to_owned(), |value| format!("{value:.1} %"));
    text.push('\n');
    for (at, gpu) in answers.gpu.iter().enumerate() {
        let label = if at == 0 { "gpu" } else { "" };
        let process = visible(&gpu.process);
        line(text, label, &format!("{process}: waits for the host {} of the time", percent(gpu.idle_pct())));
    }
    if let Some(graphs) = answers.cuda_graphs.as_ref().filter(|graphs| !graphs.usage.is_empty()) {
        let coverage = format!("{} of steps run in one", percent(graphs.coverage_pct()));
        wrapped(
            text,
            "cuda graphs",
            &[coverage, format!("{} of tokens are padding", percent(graphs.padding_pct()))],
        );
    }
}

fn cpu(text: &mut String, answers: &Answers) {
    let Some(summary) = answers.cpu.as_ref().filter(|summary| !summary.operations.is_empty()) else { return };
    let _ = writeln!(
        text,
        "\n{:<20}{:>12}{:>12}{:>12}{:>14}{:>9}",
        "cpu operation", "count", "mean ms", "p99 ms", "total ms", "of run"
    );
    for (name, times) in &summary.operations {
        let share = 100.0 * times.total_ms / (answers.duration_ns as f64 / 1e6);
        let share = if share.is_finite() { format!("{share:.1} %") } else { String::new() };
        let _ = writeln!(
            text,
            "{:<20}{:>12}{:>12.3}{:>12.3}{:>14.1}{share:>9}",
            format!("  {}", name.text()),
            grouped(times.count),
            times.mean_ms,
            times.p99_ms,
            times.total_ms,
        );
    }
}

fn batch(text: &mut String, answers: &Answers) {
    let Some(summary) = answers.batch.as_ref().filter(|summary| summary.total_samples > 0) else { return };
    let percent = |value: Option<f64>| value.map_or("unknown".to_owned(), |value| format!("{value:.1} %"));
    text.push('\n');
    wrapped(
        text,
        "batches",
        &[
            format!("sequences {} of limit", percent(summary.mean_seq_utilization_pct)),
            format!("tokens {} of limit", percent(summary.mean_token_utilization_pct)),
        ],
    );
    let phases: Vec<String> = Phase::ALL
        .iter()
        .filter_map(|phase| {
            let (_, mean) = summary.phases.iter().find(|(found, _)| found == phase)?;
            Some(format!("{} {mean:.1} %", phase.text()))
        })
        .collect();
    if !phases.is_empty() {
        wrapped(text, "", &phases);
    }
    line(
        text,
        "",
        &format!(
            "{} of {} steps used less than half of the token limit",
            grouped(summary.underutilization_events),
            grouped(summary.total_samples)
        ),
    );
    let all: u64 = summary.limited_by.values().sum();
    let mut limits: Vec<(&String, &u64)> = summary.limited_by.iter().collect();
    limits.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let words: Vec<String> = limits
        .into_iter()
        .map(|(what, count)| {
            let what = if what.is_empty() { "unknown" } else { what };
            format!("{} {}", visible(what), percent(profilemate_analysis::batch::percent(*count, all)))
        })
        .collect();
    if !words.is_empty() {
        wrapped(text, "limited by", &words);
    }
}

/// Counts by what they are of, the most frequent first.
fn counted(counts: &std::collections::BTreeMap<String, u64>) -> Vec<String> {
    let mut counts: Vec<(&String, &u64)> = counts.iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    counts
        .into_iter()
        .map(|(what, count)| {
            format!("{} {}", grouped(*count), visible(if what.is_empty() { "unknown" } else { what }))
        })
        .collect()
}

fn requests(text: &mut String, answers: &Answers) {
    let Some(summary) = answers.requests.as_ref().filter(|summary| summary.total_requests > 0) else { return };
    let _ = writeln!(text, "\n{:<20}{:>12}{:>12}{:>12}{:>12}", "requests", "count", "mean ms", "p50 ms", "p99 ms");
    for (name, times, unit_ms) in [
        ("queue time", &summary.queue_time, 1e3),
        ("first token", &summary.ttft, 1e3),
        ("per output token", &summary.tpot, 1.0),
        ("total time", &summary.total_time, 1e3),
    ] {
        let Some(times) = times else { continue };
        let _ = writeln!(
            text,
            "{:<20}{:>12}{:>12.3}{:>12.3}{:>12.3}",
            format!("  {name}"),
            grouped(times.count),
            times.mean * unit_ms,
            times.p50 * unit_ms,
            times.p99 * unit_ms
        );
    }
    let mut ends = counted(&summary.finished);
    if summary.open_requests > 0 {
        ends.push(format!("{} not over", grouped(summary.open_requests)));
    }
    wrapped(text, "ended", &ends);
    if summary.preemptions > 0 {
        let mut words = counted(&summary.preemption_reasons);
        let share = profilemate_analysis::batch::percent(summary.preempted_requests, summary.total_requests);
        let share = share.map_or(String::new(), |share| format!(" ({share:.1} %)"));
        words.push(format!("of {} requests{share}", grouped(summary.preempted_requests)));
        words.push(format!("{} computed tokens lost", grouped(summary.recomputed_tokens)));
        let delay = summary.resume_delays.as_ref();
        words.extend(delay.map(|delay| format!("resumed after {:.3} ms on average", delay.mean * 1e3)));
        wrapped(text, "preemptions", &words);
    }
}

fn kv_cache(text: &mut String, answers: &Answers) {
    let Some(summary) = answers.kv_cache.as_ref().filter(|summary| !summary.pools.is_empty()) else { return };
    text.push('\n');
    pool(text, "kv cache", &summary.all);
    if summary.pools.len() > 1 {
        // A line for each of a few pools; all of many are in the tables.
        for of in summary.pools.iter().take(8) {
            let name = format!("{} {}", of.process, of.pool);
            let _ = writeln!(text, "  {}", visible(name.trim_end()));
            pool(text, "", of);
        }
    }
}

fn pool(text: &mut String, label: &str, of: &PoolSummary) {
    let percent = |value: Option<f64>| value.map_or("unknown".to_owned(), |value| format!("{value:.1} %"));
    let mut words = Vec::new();
    if let Some(blocks) = of.total_blocks {
        words.push(format!("peak {} of {} blocks", percent(of.peak_usage_pct()), grouped(blocks)));
        words.push(format!("mean {}", percent(of.mean_usage_pct)));
    }
    words.extend(of.evictions.map(|evictions| format!("{} evictions", grouped(evictions))));
    if let Some(queries) = of.prefix_query_tokens.filter(|queries| *queries > 0) {
        let rate = percent(of.prefix_hit_rate_pct());
        words.push(format!("prefix cache found {rate} of {} tokens", grouped(queries)));
    }
    wrapped(text, label, &words);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_durations_read_well() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(duration(1_500_000_000), "1.5 s");
        assert_eq!(duration(61_000_000_000), "1 min 01 s");
        assert_eq!(duration(3_600_000_000_000), "1 h 00 min 00 s");
    }

    #[test]
    fn nothing_from_outside_moves_the_cursor() {
        assert_eq!(visible("a\u{1b}[2Jb\r\n"), "a\\u{1b}[2Jb\\r\\n");
    }

    #[test]
    fn long_lists_wrap_at_80_columns() {
        let mut text = String::new();
        let words: Vec<String> = (0..30).map(|at| format!("worker-{at} (closed)")).collect();
        wrapped(&mut text, "processes", &words);
        assert!(text.lines().all(|line| line.len() <= WIDTH), "{text}");
        assert!(text.contains("worker-29 (closed)\n"));
    }
}
