//! `layer_timing.csv`, `collective_timing.csv` and their summaries.

use profilemate_analysis::layers::{
    Collective, CollectiveSummary, ComponentSummary, ForwardParts, Interval, Part, Summary,
};
use profilemate_analysis::statistics::{Distribution, Statistics};
use serde_json::{Map, Value};

use super::{number, object};
use crate::cells::table;

pub(super) const LAYERS: &str = "layer_summary.json";
pub(super) const COLLECTIVES: &str = "collective_summary.json";

table! {
    /// One row for each part of the model in each step that was timed.
    LayerTiming = "layer_timing", of interval: Interval<'a>;
    timestamp_sec: timestamp(interval.start_ns),
    layer_idx: whole(interval.layer.map(u64::from)),
    component: name(interval.component),
    duration_ms: milliseconds(interval.duration_ns),
    phase: word(interval.phase.map_or("", |phase| phase.text())),
    step: whole(interval.step),
    process: name(interval.process),
    kind: name(interval.kind),
    timestamp_error_ms: milliseconds(interval.error_ns),
}

table! {
    /// One row for each collective and rank in each step that was timed.
    CollectiveTiming = "collective_timing", of collective: Collective<'a>, with {
        let interval = &collective.interval;
    };
    timestamp_sec: timestamp(interval.start_ns),
    layer_idx: whole(interval.layer.map(u64::from)),
    component: name(interval.component),
    duration_ms: milliseconds(interval.duration_ns),
    phase: word(interval.phase.map_or("", |phase| phase.text())),
    step: whole(interval.step),
    process: name(interval.process),
    wait_ms: milliseconds(collective.wait_ns),
    transfer_ms: milliseconds(collective.transfer_ns),
    call: name(interval.kind),
    timestamp_error_ms: milliseconds(interval.error_ns),
}

fn statistics(times: &Statistics) -> [(&'static str, Option<Value>); 8] {
    [
        ("count", Some(times.count.into())),
        ("mean_ms", number(times.mean_ms)),
        ("std_ms", number(times.std_ms)),
        ("min_ms", number(times.min_ms)),
        ("max_ms", number(times.max_ms)),
        ("p50_ms", number(times.p50_ms)),
        ("p95_ms", number(times.p95_ms)),
        ("p99_ms", number(times.p99_ms)),
    ]
}

fn distribution(times: &Distribution) -> Value {
    object([
        ("count", Some(times.count.into())),
        ("mean_ms", number(times.mean)),
        ("p50_ms", number(times.p50)),
        ("p95_ms", number(times.p95)),
        ("p99_ms", number(times.p99)),
        ("max_ms", number(times.max)),
    ])
}

fn known(entries: impl IntoIterator<Item = (&'static str, Option<Value>)>) -> Value {
    Value::Object(entries.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect())
}

fn component(of: &ComponentSummary) -> Value {
    let phases = of.phases.iter().map(|(phase, times)| (phase.text().to_owned(), distribution(times)));
    let timed = (!of.timed.is_empty()).then(|| of.timed.iter().copied().map(Value::from).collect());
    let head = [
        ("component", Some(Value::from(of.component.as_str()))),
        ("kind", (!of.kind.is_empty()).then(|| of.kind.as_str().into())),
        ("layers", of.layers.map(Value::from)),
        ("timed_layers", timed),
    ];
    let tail = [
        ("phases", Some(Value::Object(phases.collect::<Map<_, _>>()))),
        ("forward_share_pct", of.forward_share_pct.and_then(number)),
        ("share_is_estimate", of.forward_share_pct.map(|_| of.is_estimate.into())),
    ];
    known(head.into_iter().chain(statistics(&of.times)).chain(tail))
}

/// `layer_summary.json`.
pub(super) fn layers(summary: &Summary) -> Value {
    object([
        ("components", Some(summary.components.iter().map(component).collect())),
        ("forward", forward(summary)),
        ("steps_timed", summary.steps_timed.as_deref().map(Value::from)),
        ("steps_skipped", Some(summary.steps_skipped.into())),
    ])
}

fn collective(of: &CollectiveSummary) -> Value {
    let head = [
        ("collective", Some(Value::from(of.collective.as_str()))),
        ("process", Some(of.process.as_str().into())),
        ("per_forward", of.per_forward.map(Value::from)),
    ];
    let tail = [
        ("wait", of.wait.as_ref().map(distribution)),
        ("transfer", of.transfer.as_ref().map(distribution)),
        ("forward_share_pct", of.forward_share_pct.and_then(number)),
        ("share_is_estimate", of.forward_share_pct.map(|_| of.is_estimate.into())),
    ];
    known(head.into_iter().chain(statistics(&of.times)).chain(tail))
}

/// `collective_summary.json`.
pub(super) fn collectives(summary: &Summary) -> Value {
    object([("collectives", Some(summary.collectives.iter().map(collective).collect()))])
}

fn parts(of: &ForwardParts) -> Value {
    let part = |ns: f64| {
        object([
            ("total_ms", number(ns / 1e6)),
            ("mean_ms", number(ns / 1e6 / of.passes as f64)),
            ("share_pct", of.share_pct(ns).and_then(number)),
        ])
    };
    let named = Part::ALL.into_iter().zip(of.parts_ns).filter_map(|(name, ns)| Some((name.text(), ns?)));
    let named = named.chain([("rest", of.rest_ns())]).map(|(name, ns)| (name.to_owned(), part(ns)));
    object([
        ("count", Some(of.passes.into())),
        ("total_ms", number(of.forward_ns / 1e6)),
        ("mean_ms", number(of.forward_ns / 1e6 / of.passes as f64)),
        ("is_estimate", Some(of.is_estimate.into())),
        ("parts", Some(Value::Object(named.collect::<Map<_, _>>()))),
    ])
}

/// What forward passes are made of; `None` when nobody knows how long they took.
pub(super) fn forward(summary: &Summary) -> Option<Value> {
    (summary.forward.passes > 0).then(|| {
        let mut value = parts(&summary.forward);
        let phases = summary.by_phase.iter().map(|(phase, of)| (phase.text().to_owned(), parts(of)));
        value["by_phase"] = Value::Object(phases.collect::<Map<_, _>>());
        value
    })
}
