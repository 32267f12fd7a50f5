//! `cuda_graph_captures.csv`, `cuda_graph_usage.csv` and `cuda_graph_timeline.csv`.

use profilemate_analysis::cuda_graphs::{Capture, Descriptor, Replay, Summary, Usage};
use serde_json::Value;

use super::{number, object};
use crate::cells::table;

table! {
    /// One row for each graph that was captured.
    Captures = "cuda_graph_captures", of capture: Capture<'a>, with {
        let graph = &capture.descriptor;
    };
    runtime_mode: name(graph.mode),
    num_tokens: whole(graph.num_tokens),
    num_reqs: whole(graph.num_reqs),
    uniform: flag(graph.uniform),
    has_lora: flag(graph.has_lora),
    capture_time_sec: timestamp(capture.start_ns),
    capture_duration_ms: milliseconds(capture.duration_ns),
    process: name(capture.process),
}

table! {
    /// One row for each kind of batch that steps were dispatched as.
    GraphUsage = "cuda_graph_usage", of usage: Usage, with {
        let graph = Descriptor::parse(&usage.descriptor);
    };
    runtime_mode: name(graph.mode),
    num_tokens: whole(graph.num_tokens),
    num_reqs: whole(graph.num_reqs),
    uniform: flag(graph.uniform),
    has_lora: flag(graph.has_lora),
    replay_count: whole(usage.count),
    real_tokens: whole(usage.real_tokens),
    padding_tokens: whole(usage.padding_tokens),
    padding_pct: percent((usage.padding_tokens, usage.real_tokens + usage.padding_tokens)),
    mean_ms: rounded(usage.times.map(|times| times.mean_ms)),
    p50_ms: rounded(usage.times.map(|times| times.p50_ms)),
    p99_ms: rounded(usage.times.map(|times| times.p99_ms)),
}

table! {
    /// One row for each step.
    Timeline = "cuda_graph_timeline", of replay: Replay<'a>;
    timestamp_sec: timestamp(replay.start_ns),
    descriptor: name(replay.descriptor),
    duration_ms: milliseconds(replay.duration_ns),
    real_tokens: whole(replay.real_tokens.map(u64::from)),
    padded_tokens: whole(replay.padded_tokens),
    step: whole(replay.step),
    process: name(replay.process),
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
