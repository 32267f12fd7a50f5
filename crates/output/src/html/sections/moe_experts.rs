//! The load of experts, by layer and over time.

use profilemate_analysis::Answers;
use profilemate_analysis::batch::percent;
use profilemate_analysis::moe_experts::{Interval, Summary};

use super::{BUCKETS, chart};
use crate::html::model::{HeatMap, Number, Section, Style, Table, number, share, text};
use crate::html::sampling::Sampled;

/// Most experts that are listed; a table of the session has all.
const MOST: usize = 32;

/// What is gathered of experts.
pub(in crate::html) struct Gathered {
    /// Greatest by mean of the layers that were read at one moment: the least even one, and the mean over them.
    ratios: Sampled<2>,
    moment: Option<(i64, f64, f64, u64)>,
}

impl Gathered {
    pub(in crate::html) fn new() -> Self {
        Self { ratios: Sampled::new(BUCKETS), moment: None }
    }

    pub(in crate::html) fn see(&mut self, interval: &Interval<'_>) {
        let Some(ratio) = interval.spread.max_mean_ratio() else { return };
        match &mut self.moment {
            Some((at_ns, greatest, sum, layers)) if *at_ns == interval.at_ns => {
                (*greatest, *sum, *layers) = (greatest.max(ratio), *sum + ratio, *layers + 1);
            }
            _ => {
                self.put();
                self.moment = Some((interval.at_ns, ratio, ratio, 1));
            }
        }
    }

    fn put(&mut self) {
        if let Some((at_ns, greatest, sum, layers)) = self.moment.take() {
            self.ratios.push(at_ns, [greatest, sum / layers as f64]);
        }
    }

    pub(in crate::html) fn section(mut self, answers: &Answers) -> Option<Section> {
        let summary = answers.moe_experts.as_ref().filter(|summary| !summary.layers.is_empty())?;
        let mut section = Section::new("moe-experts", "MoE experts").lead(
            "How often routers chose each expert: tokens without padding. Shared experts, which every token goes to, are not counted.",
        );
        let columns = vec![
            number("layer", 0),
            number("experts", 0),
            number("top-k", 0),
            number("tokens", 0),
            number("busiest by mean", 2),
            number("busiest expert", 0),
            share("its share %"),
            number("idle experts", 0),
            number("std by mean", 3),
        ];
        let mut table = Table::new("Layers", columns);
        let mut hottest = Vec::new();
        for layer in &summary.layers {
            let Some(spread) = layer.spread() else { continue };
            let busiest = layer.counts.iter().position(|count| *count == spread.max).map(|expert| expert as u64);
            table.row(vec![
                u64::from(layer.layer).into(),
                (layer.counts.len() as u64).into(),
                u64::from(layer.top_k).into(),
                layer.tokens.into(),
                spread.max_mean_ratio().into(),
                busiest.into(),
                percent(spread.max, spread.total).into(),
                spread.idle.into(),
                (spread.total > 0).then(|| spread.std_dev / spread.mean).into(),
            ]);
            let experts = layer.counts.iter().enumerate();
            hottest.extend(experts.map(|(expert, count)| (*count as f64 / spread.mean, layer, expert, *count)));
        }
        section.push(table);
        section.blocks.extend(map(summary).map(Into::into));
        self.put();
        let names = ["least even layer", "mean over layers"];
        if let Some(ratios) = chart("Busiest expert by mean", "x", Style::Line, names, self.ratios) {
            section.push(ratios);
        }
        hottest.retain(|(ratio, ..)| ratio.is_finite());
        hottest.sort_by(|a, b| b.0.total_cmp(&a.0));
        let columns =
            vec![number("layer", 0), number("expert", 0), number("times the mean", 2), number("activations", 0)];
        let mut table = Table::new("Busiest experts", columns).folded();
        if hottest.len() > MOST {
            table = table.note(format!("The first {MOST}; moe_expert_activations.csv has all."));
        }
        for (ratio, layer, expert, count) in hottest.into_iter().take(MOST) {
            table.row(vec![u64::from(layer.layer).into(), (expert as u64).into(), ratio.into(), count.into()]);
        }
        section.push(table);
        if !summary.blind.is_empty() {
            let mut table = Table::new("Layers that were not seen", vec![number("layer", 0), text("why")]);
            for (layer, why) in &summary.blind {
                table.row(vec![u64::from(*layer).into(), why.as_str().into()]);
            }
            section.push(table);
        }
        Some(section)
    }
}

/// Layers by experts. A thousandth of the mean is more than a colour can tell.
fn map(summary: &Summary) -> Option<HeatMap> {
    let layers: Vec<_> = summary.layers.iter().filter_map(|layer| Some((layer, layer.spread()?))).collect();
    let experts = layers.iter().map(|(layer, _)| layer.counts.len()).max().filter(|experts| *experts > 0)?;
    let ratio = |count: Option<&u64>, mean: f64| match count {
        Some(count) if mean > 0.0 => Number((*count as f64 / mean * 1e3).round() / 1e3),
        _ => Number(f64::NAN),
    };
    Some(HeatMap {
        title: "How often each expert was chosen, by the mean of its layer".into(),
        note: Some(
            "1 is an even share: an expert of 2 was chosen twice as often as the mean of its layer.".into(),
        ),
        unit: "x",
        across: "expert",
        down: "layer",
        columns: (0..experts).map(|expert| expert.to_string().into()).collect(),
        rows: layers.iter().map(|(layer, _)| format!("layer {}", layer.layer).into()).collect(),
        values: layers
            .iter()
            .map(|(layer, spread)| {
                (0..experts).map(|expert| ratio(layer.counts.get(expert), spread.mean)).collect()
            })
            .collect(),
        digits: 2,
    })
}
