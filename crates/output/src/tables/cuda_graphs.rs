//! `cuda_graph_captures.csv`, `cuda_graph_usage.csv` and `cuda_graph_timeline.csv`.

use profilemate_analysis::cuda_graphs::{Capture, Descriptor, Replay, Summary, Usage};
use serde_json::Value;

use super::{number, object};
use crate::csv::Line;

pub(super) const CAPTURES: &str = "cuda_graph_captures.csv";
pub(super) const CAPTURES_COLUMNS: &[&str] = &[
    "runtime_mode",
    "num_tokens",
    "num_reqs",
    "uniform",
    "has_lora",
    "capture_time_sec",
    "capture_duration_ms",
    "process",
];
pub(super) const USAGE: &str = "cuda_graph_usage.csv";
pub(super) const USAGE_COLUMNS: &[&str] = &[
    "runtime_mode",
    "num_tokens",
    "num_reqs",
    "uniform",
    "has_lora",
    "replay_count",
    "real_tokens",
    "padding_tokens",
    "padding_pct",
    "mean_ms",
    "p50_ms",
    "p99_ms",
];
pub(super) const TIMELINE: &str = "cuda_graph_timeline.csv";
pub(super) const TIMELINE_COLUMNS: &[&str] =
    &["timestamp_sec", "descriptor", "duration_ms", "real_tokens", "padded_tokens", "step", "process"];

fn descriptor(descriptor: &Descriptor<'_>, line: &mut Line) {
    line.text(descriptor.mode);
    line.maybe(descriptor.num_tokens);
    line.maybe(descriptor.num_reqs);
    for flag in [descriptor.uniform, descriptor.has_lora] {
        // As the first generation wrote them: Python's words.
        line.word(match flag {
            Some(true) => "True",
            Some(false) => "False",
            None => "",
        });
    }
}

pub(super) fn capture(capture: &Capture<'_>, line: &mut Line) {
    descriptor(&capture.descriptor, line);
    line.timestamp(capture.start_ns);
    line.milliseconds(capture.duration_ns);
    line.text(capture.process);
}

pub(super) fn usage(usage: &Usage, line: &mut Line) {
    descriptor(&Descriptor::parse(&usage.descriptor), line);
    line.number(usage.count);
    line.number(usage.real_tokens);
    line.number(usage.padding_tokens);
    line.percent(usage.padding_tokens, usage.real_tokens + usage.padding_tokens);
    match &usage.times {
        Some(times) => {
            for milliseconds in [times.mean_ms, times.p50_ms, times.p99_ms] {
                line.word(&format!("{milliseconds:.6}"));
            }
        }
        None => (0..3).for_each(|_| line.empty()),
    }
}

/// What `cuda_graph_usage.csv` says of all its rows, and the rows.
pub(super) fn summary(summary: &Summary) -> Value {
    let usage = summary.usage.iter().map(|usage| {
        object([
            ("descriptor", Some(usage.descriptor.as_str().into())),
            ("replay_count", Some(usage.count.into())),
            ("real_tokens", Some(usage.real_tokens.into())),
            ("padding_tokens", Some(usage.padding_tokens.into())),
            ("mean_ms", usage.times.and_then(|times| number(times.mean_ms))),
            ("p50_ms", usage.times.and_then(|times| number(times.p50_ms))),
            ("p99_ms", usage.times.and_then(|times| number(times.p99_ms))),
        ])
    });
    object([
        ("coverage_pct", summary.coverage_pct().and_then(number)),
        ("padding_pct", summary.padding_pct().and_then(number)),
        ("usage", Some(usage.collect())),
    ])
}

pub(super) fn replay(replay: &Replay<'_>, line: &mut Line) {
    line.timestamp(replay.start_ns);
    line.text(replay.descriptor);
    line.maybe_milliseconds(replay.duration_ns);
    line.maybe(replay.real_tokens.map(u64::from));
    line.maybe(replay.padded_tokens);
    line.maybe(replay.step);
    line.text(replay.process);
}
