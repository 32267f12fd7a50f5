//! The load of experts.

use profilemate_analysis::Answers;
use profilemate_analysis::moe_experts::{LayerLoad, Spread};

use super::page::wrapped;
use crate::numbers::grouped;

pub(super) fn section(text: &mut String, answers: &Answers) {
    let Some(summary) = &answers.moe_experts else { return };
    let spreads = || summary.layers.iter().filter_map(|layer| Some((layer, layer.spread()?)));
    let worst = |(layer, spread): (&LayerLoad, Spread)| Some((spread.max_mean_ratio()?, layer.layer));
    let Some((ratio, layer)) = spreads().filter_map(worst).max_by(|a, b| a.0.total_cmp(&b.0)) else { return };
    let idle: u64 = spreads().map(|(_, spread)| spread.idle).sum();
    let all: u64 = spreads().map(|(layer, _)| layer.counts.len() as u64).sum();
    let mut words = vec![
        format!("{} layers", summary.layers.len()),
        format!("busiest expert {ratio:.2} x the mean (layer {layer})"),
        format!("{} of {} experts idle", grouped(idle), grouped(all)),
    ];
    if !summary.blind.is_empty() {
        words.push(format!("{} layers not seen", summary.blind.len()));
    }
    wrapped(text, "moe experts", &words);
}
