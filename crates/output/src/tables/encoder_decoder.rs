//! `encoder_decoder_timing.csv` and `encoder_decoder_summary.json`.

use profilemate_analysis::encoder_decoder::{Component, CrossAttention, EncoderSummary, Inputs, Summary, Timed};
use profilemate_analysis::statistics::Statistics;
use serde_json::{Map, Value};

use super::{named, number, object};
use crate::cells::table;

pub(super) const SUMMARY: &str = "encoder_decoder_summary.json";

table! {
    /// One row for each call of an encoder, each forward pass, and each step whose cross-attention was timed.
    EncoderDecoder = "encoder_decoder_timing", of timed: Timed<'a>;
    timestamp_sec: timestamp(timed.start_ns),
    component: word(timed.component.text()),
    duration_ms: milliseconds(timed.duration_ns),
    context: name(timed.context),
    num_items: whole(timed.num_items),
    num_tokens: whole(timed.num_tokens),
    step: whole(timed.step),
    process: name(timed.process),
    timing: word(timed.timing.text()),
    graph_hits: whole(timed.graph_hits),
    graph_misses: whole(timed.graph_misses),
    layers: whole(timed.layers),
}

/// Times, of so many rows.
fn times(count: u64, times: Option<&Statistics>) -> [(&'static str, Option<Value>); 8] {
    let of = |value: fn(&Statistics) -> f64| times.and_then(|times| number(value(times)));
    [
        ("count", Some(count.into())),
        ("total_ms", of(|times| times.total_ms)),
        ("mean_ms", of(|times| times.mean_ms)),
        ("std_ms", of(|times| times.std_ms)),
        ("min_ms", of(|times| times.min_ms)),
        ("max_ms", of(|times| times.max_ms)),
        ("p50_ms", of(|times| times.p50_ms)),
        ("p99_ms", of(|times| times.p99_ms)),
    ]
}

fn encoder(of: &EncoderSummary) -> (String, Value) {
    let mut entries = times(of.calls, of.times.as_ref()).to_vec();
    entries.extend([("num_items", Some(of.items.into())), ("num_tokens", Some(of.tokens.into()))]);
    let entries = entries.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
    (named(&of.context), Value::Object(entries.collect::<Map<_, _>>()))
}

fn inputs(of: &Inputs) -> Value {
    object([
        ("computed", Some(of.computed.into())),
        ("computed_tokens", Some(of.computed_tokens.into())),
        ("cached", Some(of.cached.into())),
        ("cached_tokens", Some(of.cached_tokens.into())),
        ("hit_rate_pct", of.hit_rate_pct().and_then(number)),
        ("evicted", Some(of.evicted.into())),
        ("waits_for_room", Some(of.no_room.into())),
        ("waits_for_budget", Some(of.no_budget.into())),
        ("peak_tokens", Some(of.most_held.into())),
        ("cache_tokens", Some(of.cache_size.into())),
    ])
}

fn cross_attention(of: &CrossAttention) -> Value {
    object([
        ("layers", of.layers.map(Value::from)),
        ("measured_steps", Some(of.measured_steps.into())),
        ("of_decoder_pct", of.of_decoder_pct.and_then(number)),
        ("full_graph_steps", Some(of.full_graph_steps.into())),
        ("stamped_pct", of.stamped_pct.and_then(number)),
        ("stamped_is_estimate", of.stamped_pct.map(|_| of.stamped_is_estimate.into())),
        ("reason", Some(of.reason.as_str()).filter(|reason| !reason.is_empty()).map(Value::from)),
    ])
}

pub(super) fn summary(summary: &Summary) -> Value {
    let mut entries = Map::new();
    let mut put = |key: &str, value: Option<Value>| entries.extend(value.map(|value| (key.to_owned(), value)));
    put("model_type", summary.model_type.map(|of| of.text().into()));
    for component in Component::ALL {
        let count = summary.rows[component as usize];
        if count > 0 {
            put(component.text(), Some(object(times(count, summary.times(component)))));
        }
    }
    for (key, component) in [
        ("encoder_pct", Component::Encoder),
        ("decoder_pct", Component::Decoder),
        ("cross_attention_pct", Component::CrossAttention),
    ] {
        put(key, summary.share_pct(component).and_then(number));
    }
    let components = summary.components.iter().map(|(name, modules)| (name.clone(), modules.as_str().into()));
    let components: Map<String, Value> = components.collect();
    put("components", (!components.is_empty()).then_some(Value::Object(components)));
    let encoders: Map<String, Value> = summary.encoders.iter().map(encoder).collect();
    put("encoders", (!encoders.is_empty()).then_some(Value::Object(encoders)));
    if summary.encoder_steps > 0 {
        put("encoder_steps", Some(summary.encoder_steps.into()));
        put("encoder_pct_of_its_steps", summary.of_encoder_steps_pct.and_then(number));
    }
    put("encoder_inputs", summary.inputs.as_ref().map(inputs));
    let graphs = |[hits, misses]: [u64; 2]| object([("hits", Some(hits.into())), ("misses", Some(misses.into()))]);
    put("encoder_cuda_graphs", summary.graphs.map(graphs));
    put("cross_attention_timing", summary.cross_attention.as_ref().map(cross_attention));
    Value::Object(entries)
}
