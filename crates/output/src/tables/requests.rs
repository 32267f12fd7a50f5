//! `request_lifecycle.csv`, `preemption_events.csv` and `preemption_summary.json`.

use std::collections::BTreeMap;
use std::fmt::Write;

use profilemate_analysis::requests::{Beneficiary, Happening, Lifecycle, RequestEvent, Summary};
use profilemate_analysis::statistics::Distribution;
use serde_json::Value;

use super::{named, number, object};
use crate::cells::table;
use crate::text::visible;

pub(super) const SUMMARY: &str = "preemption_summary.json";

table! {
    /// One row for each request.
    Lifecycles = "request_lifecycle", of request: Lifecycle<'a>;
    request_id: text(request.request_id),
    started_sec: timestamp(request.started_ns),
    preempted_sec: timestamp(request.preempted_ns),
    resumed_sec: timestamp(request.resumed_ns),
    finished_sec: timestamp(request.finished_ns),
    total_time_sec: seconds(request.total_time_ns()),
    preemption_delay_sec: seconds(request.preemption_delay_ns),
    arrived_sec: timestamp(request.arrived_ns),
    first_token_sec: timestamp(request.first_token_ns),
    queue_time_sec: seconds(request.queue_time_ns()),
    ttft_sec: seconds(request.ttft_ns()),
    tpot_ms: milliseconds(request.tpot_ns()),
    prompt_tokens: whole(request.prompt_tokens.map(u64::from)),
    cached_tokens: whole(request.cached_tokens.map(u64::from)),
    output_tokens: whole(request.output_tokens.map(u64::from)),
    num_preemptions: whole(request.preemptions),
    recomputed_tokens: whole(request.recomputed_tokens),
    finish_reason: name(request.finish_reason.unwrap_or("")),
    client_request_id: text(request.client_request_id),
    queued_sec: timestamp(request.queued_ns),
    priority: signed(request.priority),
    kind: word(request.kind.map_or("", |kind| kind.text())),
    sample_index: whole(request.sample_index.map(u64::from)),
    external_tokens: whole(request.external_tokens.map(u64::from)),
    process: name(request.process),
}

/// `key=value` pairs, joined by `;`.
#[derive(Default)]
struct Pairs(String);

impl Pairs {
    fn add(&mut self, key: &str, value: impl std::fmt::Display) {
        let separator = if self.0.is_empty() { "" } else { ";" };
        let _ = write!(self.0, "{separator}{key}={value}");
    }

    fn maybe(&mut self, key: &str, value: Option<impl std::fmt::Display>) {
        if let Some(value) = value {
            self.add(key, value);
        }
    }
}

/// What a row says of what happened.
struct Told<'a> {
    event: &'static str,
    reason: &'a str,
    running_ns: Option<u64>,
    extra: Pairs,
}

fn told<'a>(event: &RequestEvent<'a>) -> Told<'a> {
    let mut extra = Pairs::default();
    let (event, reason, running_ns) = match event.what {
        Happening::Started { prompt_tokens, cached_tokens } => {
            extra.maybe("prompt_tokens", prompt_tokens);
            extra.add("cached_tokens", cached_tokens);
            ("started", "", None)
        }
        Happening::Preempted { reason, running_ns, computed_tokens, output_tokens, blocks_freed, beneficiary } => {
            extra.add("computed_tokens", computed_tokens);
            extra.add("output_tokens", output_tokens);
            extra.maybe("blocks_freed", blocks_freed);
            match beneficiary {
                Beneficiary::Unknown => {}
                Beneficiary::Itself => extra.add("preempted_for", "itself"),
                // What separates the pairs is written out in an id.
                Beneficiary::Other(id) => extra.add("preempted_for", visible(id).replace(';', "\\u{3b}")),
            }
            ("preempted", reason, running_ns)
        }
        Happening::Resumed { cached_tokens, delay_ns } => {
            extra.add("cached_tokens", cached_tokens);
            extra.maybe(
                "delay_sec",
                delay_ns.map(|ns| format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000)),
            );
            ("resumed", "", None)
        }
        Happening::Finished { reason, running_ns, output_tokens } => {
            extra.add("output_tokens", output_tokens);
            ("finished", reason, running_ns)
        }
        Happening::Aborted { reason, running_ns, output_tokens } => {
            extra.add("output_tokens", output_tokens);
            ("aborted", reason, running_ns)
        }
    };
    Told { event, reason, running_ns, extra }
}

table! {
    /// One row for each thing that happened to a request in the scheduler.
    RequestEvents = "preemption_events", of event: RequestEvent<'a>, with {
        let told = told(event);
    };
    timestamp_sec: timestamp(event.at_ns),
    request_id: text(event.request_id),
    event: word(told.event),
    reason: name(told.reason),
    running_time_sec: seconds(told.running_ns),
    extra_info: text(&told.extra.0),
    step: whole(event.step),
    process: name(event.process),
}

/// Count, mean and percentiles; absent without samples.
fn distribution(of: Option<&Distribution>) -> Option<Value> {
    let of = of?;
    Some(object([
        ("count", Some(of.count.into())),
        ("mean", number(of.mean)),
        ("p50", number(of.p50)),
        ("p90", number(of.p90)),
        ("p95", number(of.p95)),
        ("p99", number(of.p99)),
        ("max", number(of.max)),
    ]))
}

fn counts(of: &BTreeMap<String, u64>) -> Value {
    Value::Object(of.iter().map(|(what, count)| (named(what), Value::from(*count))).collect())
}

pub(super) fn summary(summary: &Summary) -> Value {
    // Nobody waited where nobody was preempted: these three are 0 then, by definition.
    let mean = |of: Option<Distribution>| number(of.map_or(0.0, |of| of.mean));
    object([
        ("total_preemptions", Some(summary.preemptions.into())),
        ("total_requests", Some(summary.total_requests.into())),
        ("preemption_reasons", Some(counts(&summary.preemption_reasons))),
        ("mean_running_time_before_preempt", mean(summary.running_before_preemption)),
        ("mean_resume_delay", mean(summary.resume_delays)),
        ("max_resume_delay", number(summary.resume_delays.map_or(0.0, |of| of.max))),
        ("preempted_requests", Some(summary.preempted_requests.into())),
        ("recomputed_tokens", Some(summary.recomputed_tokens.into())),
        ("finished_requests", Some(counts(&summary.finished))),
        ("open_requests", Some(summary.open_requests.into())),
        ("aborted_requests", Some(summary.aborted_requests.into())),
        ("prompt_tokens", Some(summary.prompt_tokens.into())),
        ("cached_tokens", Some(summary.cached_tokens.into())),
        ("output_tokens", Some(summary.output_tokens.into())),
        ("queue_time_sec", distribution(summary.queue_time.as_ref())),
        ("ttft_sec", distribution(summary.ttft.as_ref())),
        ("tpot_ms", distribution(summary.tpot.as_ref())),
        ("total_time_sec", distribution(summary.total_time.as_ref())),
    ])
}
