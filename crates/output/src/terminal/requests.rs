//! Latencies, ends and preemptions of requests.

use std::fmt::Write;

use profilemate_analysis::Answers;
use profilemate_analysis::latency::Part;

use super::page::{counted, heading, wrapped};
use crate::numbers::grouped;

/// Share under which a part of the time is not worth a word, percent.
const SMALL_PCT: f64 = 1.0;

/// A part, for people.
fn name(part: Part) -> &'static str {
    match part {
        Part::FrontEnd => "front end",
        part => part.text(),
    }
}

pub(super) fn section(text: &mut String, answers: &Answers) {
    let Some(summary) = answers.requests.as_ref().filter(|summary| summary.total_requests > 0) else { return };
    text.push('\n');
    let columns = format!("{:>12}{:>12}{:>12}{:>12}{:>12}", "count", "mean ms", "p50 ms", "p95 ms", "p99 ms");
    heading(text, "requests", 20, &columns);
    for (name, times, unit_ms) in [
        ("queue time", &summary.queue_time, 1e3),
        ("first token", &summary.ttft, 1e3),
        ("per output token", &summary.tpot, 1.0),
        ("total time", &summary.total_time, 1e3),
    ] {
        let Some(times) = times else { continue };
        let _ = writeln!(
            text,
            "{:<20}{:>12}{:>12.3}{:>12.3}{:>12.3}{:>12.3}",
            format!("  {name}"),
            grouped(times.count),
            times.mean * unit_ms,
            times.p50 * unit_ms,
            times.p95 * unit_ms,
            times.p99 * unit_ms
        );
    }
    if let Some(latency) = &summary.latency {
        let shares = Part::ALL.into_iter().filter_map(|part| {
            let share = latency.share_pct(part).filter(|share| *share >= SMALL_PCT)?;
            Some(format!("{} {share:.1} %", name(part)))
        });
        wrapped(text, "their time", &shares.collect::<Vec<_>>());
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
        words.push(format!("{} tokens lost", grouped(summary.recomputed_tokens)));
        let delay = summary.resume_delays.as_ref();
        words.extend(delay.map(|delay| format!("back after {:.3} ms", delay.mean * 1e3)));
        wrapped(text, "preemptions", &words);
    }
}
