//! `sampling_timing.csv` and `sampling_summary.json`.

use profilemate_analysis::sampling::{Cost, Drafts, Features, Kind, Sampled, Summary};
use profilemate_analysis::statistics::Statistics;
use serde_json::Value;

use super::{number, object};
use crate::cells::table;

pub(super) const SUMMARY: &str = "sampling_summary.json";

table! {
    /// One row for each step that was sampled, by each worker.
    SamplingTiming = "sampling_timing", of sampled: Sampled<'a>, with {
        let mix = &sampled.mix;
        let sequences = |count: Option<u16>| count.map(u64::from);
        let random = mix.sequences.zip(mix.greedy).map(|(all, greedy)| u64::from(all.saturating_sub(greedy)));
    };
    timestamp_sec: timestamp(sampled.start_ns),
    phase: word(sampled.phase.map_or("", profilemate_analysis::steps::Phase::text)),
    batch_size: whole(sampled.batch_size.map(u64::from)),
    num_tokens: whole(sampled.num_tokens.map(u64::from)),
    sample_time_ms: milliseconds(sampled.sample_ns),
    host_time_ms: milliseconds(sampled.host_ns),
    timing: word(sampled.timing.text()),
    greedy: whole(sequences(mix.greedy)),
    random: whole(random),
    top_k: whole(sequences(mix.top_k)),
    top_p: whole(sequences(mix.top_p)),
    min_p: whole(sequences(mix.min_p)),
    penalties: whole(sequences(mix.penalties)),
    logprobs: whole(sequences(mix.logprobs)),
    most_logprobs: whole(mix.most_logprobs.map(u64::from)),
    prompt_logprobs: whole(sequences(mix.prompt_logprobs)),
    structured_output: whole(sequences(mix.structured_output)),
    logit_bias: whole(sequences(mix.logit_bias)),
    bad_words: whole(sequences(mix.bad_words)),
    allowed_token_ids: whole(sequences(mix.allowed_token_ids)),
    min_tokens: whole(sequences(mix.min_tokens)),
    seeded: whole(sequences(mix.seeded)),
    draft_tokens: whole(sampled.speculation.map(|found| u64::from(found.draft_tokens))),
    accepted_tokens: whole(sampled.speculation.map(|found| u64::from(found.accepted_tokens))),
    draft_time_ms: milliseconds(sampled.draft_ns),
    step: whole(sampled.step),
    process: name(sampled.process),
}

fn times(times: Option<Statistics>) -> Option<Value> {
    let of = times?;
    Some(object([
        ("count", Some(of.count.into())),
        ("mean_ms", number(of.mean_ms)),
        ("p50_ms", number(of.p50_ms)),
        ("p99_ms", number(of.p99_ms)),
        ("max_ms", number(of.max_ms)),
        ("total_ms", number(of.total_ms)),
    ]))
}

fn names(features: Features) -> Value {
    features.names().into()
}

fn cost(of: &Cost) -> Value {
    object([
        ("added", Some(names(of.added))),
        ("to", Some(names(of.to))),
        ("steps_without", Some(of.steps_without.into())),
        ("cost_ms", of.cost_ms.and_then(number)),
        ("host_cost_ms", of.host_cost_ms.and_then(number)),
        ("over_greedy_ms", of.over_greedy_ms.and_then(number)),
    ])
}

fn kind(of: &Kind) -> Value {
    let (least, most) = of.sizes.range();
    object([
        ("features", Some(names(of.features))),
        ("batch_size_from", Some(least.into())),
        ("batch_size_to", Some(most.into())),
        ("mean_batch_size", number(of.mean_batch_size)),
        ("steps", Some(of.steps.into())),
        ("sample_time", times(of.times)),
        ("host_time", times(of.host)),
        ("cost", of.cost.as_ref().map(cost)),
    ])
}

fn drafts(of: &Drafts) -> Value {
    let accepted_pct = profilemate_analysis::batch::percent(of.accepted_tokens, of.draft_tokens);
    object([
        ("steps", Some(of.steps.into())),
        ("drafts", Some(of.drafts.into())),
        ("draft_tokens", Some(of.draft_tokens.into())),
        ("accepted_tokens", Some(of.accepted_tokens.into())),
        ("accepted_pct", accepted_pct.and_then(number)),
    ])
}

/// What is said of all rows.
pub(super) fn summary(summary: &Summary) -> Value {
    object([
        ("steps", Some(summary.steps.into())),
        ("sample_time", times(summary.times)),
        ("host_time", times(summary.host)),
        ("share_pct", summary.share_pct().and_then(number)),
        ("mixes", Some(summary.kinds.iter().map(kind).collect())),
        ("steps_of_no_mix", (summary.steps_of_no_kind > 0).then(|| summary.steps_of_no_kind.into())),
        ("speculation", summary.drafts.as_ref().map(drafts)),
    ])
}
