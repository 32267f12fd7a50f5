//! `forward_pass_timing.csv` and `forward_pass_summary.json`.

use profilemate_analysis::forward::{Pass, Summary};
use serde_json::{Map, Value};

use super::{number, object};
use crate::cells::table;

pub(super) const SUMMARY: &str = "forward_pass_summary.json";

/// Tokens per nanosecond times 10^9 are tokens per second; three places behind.
fn throughput(pass: &Pass<'_>) -> Option<(u128, u128, u32)> {
    let (tokens, duration_ns) = pass.num_tokens.zip(pass.duration_ns)?;
    Some((u128::from(tokens) * 1_000_000_000_000, u128::from(duration_ns), 3))
}

table! {
    /// One row for each forward pass.
    ForwardPass = "forward_pass_timing", of pass: Pass<'a>, with {
        let decode_tokens =
            pass.num_tokens.zip(pass.prefill_tokens).map(|(tokens, prefill)| tokens.saturating_sub(prefill));
    };
    timestamp_sec: timestamp(pass.start_ns),
    phase: word(pass.phase.map_or("", |phase| phase.text())),
    batch_size: whole(pass.batch_size.map(u64::from)),
    num_tokens: whole(pass.num_tokens.map(u64::from)),
    forward_time_ms: milliseconds(pass.duration_ns),
    throughput_tokens_per_sec: quotient(throughput(pass)),
    prefill_tokens: whole(pass.prefill_tokens.map(u64::from)),
    decode_tokens: whole(decode_tokens.map(u64::from)),
    cudagraph_mode: name(pass.cudagraph_mode().unwrap_or("")),
    padded_tokens: whole(pass.padded_tokens),
    gpu_idle_before_ms: milliseconds(pass.gpu_idle_ns),
    sample_time_ms: milliseconds(pass.sample_ns),
    timing: word(pass.timing.text()),
    step: whole(pass.step),
    process: name(pass.process),
    gpu_busy_ms: milliseconds(pass.gpu_busy_ns),
    gpu_start_sec: timestamp(pass.gpu_start.map(|placed| placed.start_ns)),
    gpu_start_error_ms: milliseconds(pass.gpu_start.map(|placed| placed.error_ns)),
}

pub(super) fn summary(summary: &Summary) -> Value {
    let phases = summary.phases.iter().map(|(phase, said)| {
        let times = &said.times;
        let value = object([
            ("count", Some(times.count.into())),
            ("mean_ms", number(times.mean_ms)),
            ("std_ms", number(times.std_ms)),
            ("min_ms", number(times.min_ms)),
            ("max_ms", number(times.max_ms)),
            ("p50_ms", number(times.p50_ms)),
            ("p95_ms", number(times.p95_ms)),
            ("p99_ms", number(times.p99_ms)),
            ("total_ms", number(times.total_ms)),
            ("tokens_per_sec", said.tokens_per_second.and_then(number)),
        ]);
        (phase.text().to_owned(), value)
    });
    Value::Object(phases.collect::<Map<_, _>>())
}
