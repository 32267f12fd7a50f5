//! `batch_utilization.csv` and `batch_utilization_summary.json`.

use profilemate_analysis::batch::{Batch, Summary, percent};
use profilemate_analysis::steps::Phase;
use serde_json::Value;

use super::{named, number, object};
use crate::cells::table;

pub(super) const SUMMARY: &str = "batch_utilization_summary.json";

table! {
    /// One row for each step that was scheduled.
    BatchUtilization = "batch_utilization", of batch: Batch<'a>, with {
        let (seqs, tokens) = (u64::from(batch.num_seqs), u64::from(batch.num_tokens));
        let max_seqs = batch.limits.map(|limits| limits.max_num_seqs);
        let max_tokens = batch.limits.map(|limits| limits.max_num_tokens);
    };
    timestamp_sec: timestamp(batch.start_ns),
    num_seqs: whole(seqs),
    max_num_seqs: whole(max_seqs),
    seq_utilization_pct: percent((seqs, max_seqs.unwrap_or(0))),
    num_tokens: whole(tokens),
    max_tokens: whole(max_tokens),
    token_utilization_pct: percent((tokens, max_tokens.unwrap_or(0))),
    phase: word(batch.phase.text()),
    running_queue_len: whole(batch.running.map(u64::from)),
    waiting_queue_len: whole(batch.waiting.map(u64::from)),
    prefill_tokens: whole(u64::from(batch.prefill_tokens)),
    decode_tokens: whole(tokens.saturating_sub(u64::from(batch.prefill_tokens))),
    step: whole(batch.step),
    process: name(batch.process),
    limited_by: name(batch.limited_by.unwrap_or("")),
}

pub(super) fn summary(summary: &Summary) -> Value {
    let of_phase = |phase: Phase| {
        summary.phases.iter().find(|(found, _)| *found == phase).and_then(|(_, mean)| number(*mean))
    };
    object([
        ("total_samples", Some(summary.total_samples.into())),
        ("mean_seq_utilization_pct", summary.mean_seq_utilization_pct.and_then(number)),
        ("mean_token_utilization_pct", summary.mean_token_utilization_pct.and_then(number)),
        // Without a limit there is no half of it.
        (
            "underutilization_events",
            (summary.total_samples == 0 || summary.mean_token_utilization_pct.is_some())
                .then(|| summary.underutilization_events.into()),
        ),
        ("prefill_avg_utilization", of_phase(Phase::Prefill)),
        ("decode_avg_utilization", of_phase(Phase::Decode)),
        ("max_num_seqs", summary.limits.map(|limits| limits.max_num_seqs.into())),
        ("max_tokens", summary.limits.map(|limits| limits.max_num_tokens.into())),
        ("mixed_avg_utilization", of_phase(Phase::Mixed)),
        ("limited_by", limited_by(summary)),
    ])
}

/// Share of the batches by what kept them from being larger, percent; absent where it is known of none.
fn limited_by(summary: &Summary) -> Option<Value> {
    let all: u64 = summary.limited_by.values().sum();
    let share = |(what, count): (&String, &u64)| Some((named(what), percent(*count, all).and_then(number)?));
    (all > 0).then(|| Value::Object(summary.limited_by.iter().filter_map(share).collect()))
}
