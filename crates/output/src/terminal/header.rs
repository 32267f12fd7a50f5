//! What ran, and how much it did.

use std::collections::BTreeMap;

use profilemate_analysis::Answers;
use profilemate_analysis::processes::Process;
use profilemate_session::Session;

use super::page::{LABEL_WIDTH, WIDTH, line, shortened, wrapped};
use crate::numbers::{duration, grouped};
use crate::text::visible;

/// Most processes that are named one by one.
const NAMED: usize = 4;

/// Fewest intervals that say how throughput varied.
const INTERVALS: usize = 3;

/// One entry for each ending with its processes, or, of many processes, for each set of roles.
fn processes(processes: &[Process]) -> Vec<String> {
    let mut by_pid: BTreeMap<(u32, usize), Vec<&Process>> = BTreeMap::new();
    for (at, process) in processes.iter().enumerate() {
        // 0 is no process id: each of those is one by itself.
        by_pid.entry((process.pid, if process.pid == 0 { at } else { 0 })).or_default().push(process);
    }
    by_pid.retain(|_, of_pid| of_pid.first().is_some_and(|process| process.role != "launcher"));
    let ending = |of_pid: &[&Process]| crate::metadata::ending(of_pid[0].ending);
    let named = |of_pid: &[&Process], name: fn(&Process) -> String| {
        of_pid.iter().map(|process| name(process)).collect::<Vec<_>>().join("+")
    };
    if by_pid.len() <= NAMED {
        let name = |process: &Process| format!("{}-{}", visible(&process.role), process.rank);
        let mut by_ending: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for of_pid in by_pid.values() {
            by_ending.entry(ending(of_pid)).or_default().push(named(of_pid, name));
        }
        for names in by_ending.values_mut() {
            names.sort();
        }
        return by_ending
            .into_iter()
            .map(|(ending, names)| format!("{} ({ending})", names.join(" and ")))
            .collect();
    }
    let mut counts: BTreeMap<(String, String), u32> = BTreeMap::new();
    for of_pid in by_pid.values() {
        let roles = named(of_pid, |process| visible(&process.role).into_owned());
        *counts.entry((roles, ending(of_pid))).or_default() += 1;
    }
    counts.into_iter().map(|((roles, ending), count)| format!("{count} {roles} ({ending})")).collect()
}

/// What ran on what.
fn model(answers: &Answers) -> Vec<String> {
    let facts = &answers.facts;
    let gpu = facts.gpu_name.as_ref().map(|name| {
        // Whose it is goes without saying.
        let name = visible(name.strip_prefix("NVIDIA ").unwrap_or(name));
        match facts.gpu_count {
            Some(count) if count > 1 => format!("{count} x {name}"),
            _ => name.into_owned(),
        }
    });
    let vllm = facts.vllm_version.as_ref().map(|version| format!("vLLM {}", visible(version)));
    let model = facts.model.as_ref().map(|model| visible(model).into_owned());
    let words = [model, vllm, gpu].into_iter().flatten();
    words.map(|word| shortened(&word, WIDTH - LABEL_WIDTH - 1)).collect()
}

/// How many tokens were made in a second, on average and at different times; nothing for a run too short for that.
fn throughput(answers: &Answers) -> Option<Vec<String>> {
    let throughput = &answers.throughput;
    // The first and the last are not full of work.
    let inner = throughput.intervals.get(1..throughput.intervals.len().checked_sub(1)?)?;
    if inner.len() < INTERVALS {
        return None;
    }
    let mut rates: Vec<f64> =
        inner.iter().filter_map(|interval| interval.per_second(interval.generated_tokens?)).collect();
    rates.sort_by(f64::total_cmp);
    let (least, most) = (*rates.first()?, *rates.last()?);
    let mean = rates.iter().sum::<f64>() / rates.len() as f64;
    Some(vec![
        format!("{mean:.0} new tokens/s"),
        format!("{least:.0} to {most:.0} over intervals of {}", duration(throughput.interval_ns)),
    ])
}

pub(super) fn section(text: &mut String, session: &Session, answers: &Answers) {
    let counters = &answers.counters;
    line(text, "session", &visible(&session.folder.to_string_lossy()));
    let model = model(answers);
    if !model.is_empty() {
        wrapped(text, "model", &model);
    }
    if let Some(source) = &answers.facts.source {
        line(text, "made from", &visible(source));
    }
    wrapped(text, "processes", &processes(&answers.processes));
    let mut work = vec![duration(answers.duration_ns)];
    work.extend(counters.finished_requests.map(|requests| format!("{} requests", grouped(requests))));
    work.extend(
        counters
            .prompt_tokens
            .zip(counters.generation_tokens)
            .map(|(prompt, new)| format!("{} prompt + {} new tokens", grouped(prompt), grouped(new))),
    );
    if answers.breakdown.is_none() {
        work.insert(1, format!("{} engine steps", grouped(counters.engine_steps)));
    }
    wrapped(text, "work", &work);
    if let Some(rates) = throughput(answers) {
        wrapped(text, "throughput", &rates);
    }
}
