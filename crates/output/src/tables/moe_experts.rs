//! The tables of `moe_expert_tracking/`, and `moe_summary.json` there.

use profilemate_analysis::moe_experts::{Interval, LayerLoad, Summary};
use serde_json::{Map, Value};

use super::{number, object};
use crate::cells::table;

pub(super) const SUMMARY: &str = "moe_expert_tracking/moe_summary.json";

/// Bins of routing weights from 0 to 1; one more has what is greater.
const BINS_TO_ONE: u64 = 100;

/// How often an expert was chosen.
pub(super) struct Activation {
    layer: u16,
    expert: usize,
    count: u64,
    total: u64,
}

impl Activation {
    /// Of every expert of a layer.
    pub(super) fn all(layer: &LayerLoad) -> impl Iterator<Item = Self> {
        let total = layer.spread().map_or(0, |spread| spread.total);
        let counts = layer.counts.iter().enumerate();
        counts.map(move |(expert, count)| Self { layer: layer.layer, expert, count: *count, total })
    }
}

/// For how many tokens two experts were chosen.
pub(super) struct Pair {
    layer: u16,
    experts: [usize; 2],
    count: u64,
}

impl Pair {
    /// Every pair that was chosen.
    pub(super) fn all(layer: &LayerLoad) -> impl Iterator<Item = Self> {
        layer.chosen_pairs().map(|(experts, count)| Self { layer: layer.layer, experts, count })
    }
}

/// How many routing weights were in a bin.
pub(super) struct WeightBin {
    layer: u16,
    bin: u64,
    count: u64,
}

impl WeightBin {
    /// Every bin of a layer.
    pub(super) fn all(layer: &LayerLoad) -> impl Iterator<Item = Self> {
        let counts = (0..).zip(layer.weights.iter().flatten());
        counts.map(|(bin, count)| Self { layer: layer.layer, bin, count: *count })
    }
}

table! {
    /// One row for each expert of each layer, chosen or not.
    Activations = "moe_expert_activations" in "moe_expert_tracking", of activation: Activation;
    layer_idx: whole(u64::from(activation.layer)),
    expert_id: whole(activation.expert as u64),
    activation_count: whole(activation.count),
    percentage: percent((activation.count, activation.total)),
}

table! {
    /// One row for each pair of experts that was chosen for a token.
    Coselection = "moe_expert_coselection" in "moe_expert_tracking", of pair: Pair;
    layer_idx: whole(u64::from(pair.layer)),
    expert_id_1: whole(pair.experts[0] as u64),
    expert_id_2: whole(pair.experts[1] as u64),
    coselection_count: whole(pair.count),
}

table! {
    /// One row for each bin of routing weights; the last one of a layer has no end.
    Weights = "moe_routing_weights_hist" in "moe_expert_tracking", of bin: WeightBin;
    layer_idx: whole(u64::from(bin.layer)),
    bin_min: quotient(Some((bin.bin.into(), 1, 2))),
    bin_max: quotient((bin.bin < BINS_TO_ONE).then(|| (u128::from(bin.bin) + 1, 1, 2))),
    count: whole(bin.count),
}

table! {
    /// One row for each layer and interval in which it was counted.
    Imbalance = "moe_load_imbalance" in "moe_expert_tracking", of interval: Interval<'a>;
    layer_idx: whole(u64::from(interval.layer)),
    timestamp_sec: timestamp(interval.at_ns),
    std_dev: rounded(Some(interval.spread.std_dev)),
    max_min_ratio: rounded(interval.spread.max_min_ratio()),
    max_mean_ratio: rounded(interval.spread.max_mean_ratio()),
    idle_experts: whole(interval.spread.idle),
    interval_sec: seconds(interval.interval_ns),
    num_tokens: whole(interval.tokens),
    step: whole(interval.step),
    process: name(interval.process),
}

fn layer(of: &LayerLoad) -> Option<Value> {
    let spread = of.spread()?;
    let experts = of.counts.len() as u64;
    let used = experts - spread.idle;
    Some(object([
        ("num_experts", Some(experts.into())),
        ("top_k", Some(of.top_k.into())),
        ("total_activations", Some(spread.total.into())),
        ("unique_experts_activated", Some(used.into())),
        ("activation_coverage_pct", number(100.0 * used as f64 / experts as f64)),
        ("mean_activations_per_expert", number(spread.mean)),
        ("std_dev_activations", number(spread.std_dev)),
        ("min_activations", Some(spread.min.into())),
        ("max_activations", Some(spread.max.into())),
        ("load_balance_ratio", spread.max_min_ratio().and_then(number)),
        ("max_mean_ratio", spread.max_mean_ratio().and_then(number)),
        ("idle_experts", Some(spread.idle.into())),
        ("num_tokens", Some(of.tokens.into())),
        ("intervals", Some(of.intervals.into())),
    ]))
}

pub(super) fn summary(summary: &Summary) -> Value {
    let mut document: Map<String, Value> =
        summary.layers.iter().filter_map(|of| Some((format!("layer_{}", of.layer), layer(of)?))).collect();
    if !summary.blind.is_empty() {
        let blind = summary.blind.iter().map(|(layer, why)| (format!("layer_{layer}"), why.as_str().into()));
        document.insert("layers_not_seen".to_owned(), Value::Object(blind.collect()));
    }
    if summary.incomplete > 0 {
        document.insert("incomplete_intervals".to_owned(), summary.incomplete.into());
    }
    Value::Object(document)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_absent_and_blind_layers_are_named() {
        let idle = LayerLoad { layer: 3, top_k: 2, tokens: 4, counts: vec![4, 4, 0], ..LayerLoad::default() };
        let of = Summary { layers: vec![idle], blind: vec![(7, "not in moe_layers".to_owned())], incomplete: 0 };
        let document = summary(&of);
        assert_eq!(document["layers_not_seen"], serde_json::json!({"layer_7": "not in moe_layers"}));
        let layer = &document["layer_3"];
        assert_eq!((&layer["idle_experts"], &layer["unique_experts_activated"]), (&1.into(), &2.into()));
        assert!(layer.get("load_balance_ratio").is_none(), "an expert had none: no ratio");
        assert!(document.get("incomplete_intervals").is_none());
        assert_eq!(summary(&Summary::default()), serde_json::json!({}));
    }
}
