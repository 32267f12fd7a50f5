//! `forward_pass_timing.csv` and `forward_pass_summary.json`.

use profilemate_analysis::forward::{Pass, Summary};
use serde_json::{Map, Value};

use super::{number, object};
use crate::csv::Line;

pub(super) const TABLE: &str = "forward_pass_timing.csv";
pub(super) const SUMMARY: &str = "forward_pass_summary.json";
pub(super) const COLUMNS: &[&str] = &[
    "timestamp_sec",
    "phase",
    "batch_size",
    "num_tokens",
    "forward_time_ms",
    "throughput_tokens_per_sec",
    "prefill_tokens",
    "decode_tokens",
    "cudagraph_mode",
    "padded_tokens",
    "gpu_idle_before_ms",
    "sample_time_ms",
    "timing",
    "step",
    "process",
    "gpu_busy_ms",
    "gpu_start_sec",
    "gpu_start_error_ms",
];

pub(super) fn cells(pass: &Pass<'_>, line: &mut Line) {
    line.timestamp(pass.start_ns);
    line.word(pass.phase.map_or("", |phase| phase.text()));
    line.maybe(pass.batch_size.map(u64::from));
    line.maybe(pass.num_tokens.map(u64::from));
    line.maybe_milliseconds(pass.duration_ns);
    match (pass.num_tokens, pass.duration_ns) {
        // Tokens per nanosecond times 10^9 are tokens per second; three places behind.
        (Some(tokens), Some(duration_ns)) => {
            line.quotient(u128::from(tokens) * 1_000_000_000_000, u128::from(duration_ns), 3);
        }
        _ => line.empty(),
    }
    line.maybe(pass.prefill_tokens.map(u64::from));
    let decode = pass.num_tokens.zip(pass.prefill_tokens).map(|(tokens, prefill)| tokens.saturating_sub(prefill));
    line.maybe(decode.map(u64::from));
    line.text(pass.cudagraph_mode().unwrap_or(""));
    line.maybe(pass.padded_tokens);
    line.maybe_milliseconds(pass.gpu_idle_ns);
    line.maybe_milliseconds(pass.sample_ns);
    line.word(pass.timing.text());
    line.maybe(pass.step);
    line.text(pass.process);
    line.maybe_milliseconds(pass.gpu_busy_ns);
    if let Some(placed) = pass.gpu_start {
        line.timestamp(placed.start_ns);
        line.milliseconds(placed.error_ns);
    } else {
        line.empty();
        line.empty();
    }
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
