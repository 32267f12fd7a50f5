//! `request_lifecycle.csv`, `preemption_events.csv` and `preemption_summary.json`.

use std::collections::BTreeMap;
use std::fmt::Write;

use profilemate_analysis::requests::{Beneficiary, Happening, Lifecycle, RequestEvent, Summary};
use profilemate_analysis::statistics::Distribution;
use serde_json::Value;

use super::{named, number, object};
use crate::csv::Line;
use crate::text::visible;

pub(super) const LIFECYCLE: &str = "request_lifecycle.csv";
pub(super) const LIFECYCLE_COLUMNS: &[&str] = &[
    "request_id",
    "started_sec",
    "preempted_sec",
    "resumed_sec",
    "finished_sec",
    "total_time_sec",
    "preemption_delay_sec",
    "arrived_sec",
    "first_token_sec",
    "queue_time_sec",
    "ttft_sec",
    "tpot_ms",
    "prompt_tokens",
    "cached_tokens",
    "output_tokens",
    "num_preemptions",
    "recomputed_tokens",
    "finish_reason",
    "client_request_id",
    "queued_sec",
    "priority",
    "kind",
    "sample_index",
    "external_tokens",
    "process",
];
pub(super) const EVENTS: &str = "preemption_events.csv";
pub(super) const EVENTS_COLUMNS: &[&str] =
    &["timestamp_sec", "request_id", "event", "reason", "running_time_sec", "extra_info", "step", "process"];
pub(super) const SUMMARY: &str = "preemption_summary.json";

pub(super) fn lifecycle(request: &Lifecycle<'_>, line: &mut Line) {
    line.text(request.request_id);
    line.maybe_timestamp(request.started_ns);
    line.maybe_timestamp(request.preempted_ns);
    line.maybe_timestamp(request.resumed_ns);
    line.maybe_timestamp(request.finished_ns);
    line.maybe_seconds(request.total_time_ns());
    line.maybe_seconds(request.preemption_delay_ns);
    line.maybe_timestamp(request.arrived_ns);
    line.maybe_timestamp(request.first_token_ns);
    line.maybe_seconds(request.queue_time_ns());
    line.maybe_seconds(request.ttft_ns());
    line.maybe_milliseconds(request.tpot_ns());
    line.maybe(request.prompt_tokens.map(u64::from));
    line.maybe(request.cached_tokens.map(u64::from));
    line.maybe(request.output_tokens.map(u64::from));
    line.maybe(request.preemptions);
    line.maybe(request.recomputed_tokens);
    line.text(request.finish_reason.unwrap_or(""));
    line.text(request.client_request_id);
    line.maybe_timestamp(request.queued_ns);
    line.maybe_signed(request.priority);
    line.word(request.kind.map_or("", |kind| kind.text()));
    line.maybe(request.sample_index.map(u64::from));
    line.maybe(request.external_tokens.map(u64::from));
    line.text(request.process);
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

pub(super) fn event(event: &RequestEvent<'_>, line: &mut Line) {
    let mut extra = Pairs::default();
    let (word, reason, running_ns) = match event.what {
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
    line.timestamp(event.at_ns);
    line.text(event.request_id);
    line.word(word);
    line.text(reason);
    line.maybe_seconds(running_ns);
    line.text(&extra.0);
    line.maybe(event.step);
    line.text(event.process);
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
