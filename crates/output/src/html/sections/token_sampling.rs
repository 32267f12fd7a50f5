//! Sampling: over time, by what batches ask for, and what that costs.

use profilemate_analysis::Answers;
use profilemate_analysis::batch::percent;
use profilemate_analysis::forward::Timing;
use profilemate_analysis::sampling::Sampled as Row;

use super::{BUCKETS, chart};
use crate::html::model::{Block, Section, Style, Table, number, share, text};
use crate::html::sampling::Sampled;

/// Most kinds of steps that are listed; the summary has all.
const MOST: usize = 64;

/// What is gathered of sampling.
pub(in crate::html) struct Gathered {
    times: Sampled<2>,
}

impl Gathered {
    pub(in crate::html) fn new() -> Self {
        Self { times: Sampled::new(BUCKETS) }
    }

    #[inline]
    pub(in crate::html) fn see(&mut self, row: &Row<'_>) {
        let ms = |ns: u64| ns as f64 / 1e6;
        let gpu_ns = row.sample_ns.filter(|_| row.timing == Timing::Events);
        self.times.push(row.start_ns, [gpu_ns.map_or(f64::NAN, ms), ms(row.host_ns)]);
    }

    pub(in crate::html) fn section(self, answers: &Answers) -> Option<Section> {
        let summary = answers.sampling.as_ref().filter(|summary| summary.steps > 0)?;
        let lead = match (summary.times, summary.share_pct()) {
            (Some(times), Some(share)) => format!(
                "Choosing the next tokens takes {:.3} ms in a step, {share:.1} % of what it and the forward pass take together.",
                times.mean_ms
            ),
            _ => "How long the host takes to have the next tokens chosen; the GPU's own time is not known."
                .to_owned(),
        };
        let mut section = Section::new("sampling", "Sampling").lead(lead);
        section.push(chart("Sampling in each step", "ms", Style::Line, ["GPU", "host"], self.times)?);
        let columns = vec![
            text("what batches ask for"),
            text("sequences"),
            number("steps", 0),
            share("of steps %"),
            number("mean ms", 3),
            number("p50 ms", 3),
            number("p99 ms", 3),
            number("host p50 ms", 3),
            text("costs"),
            number("more ms", 3),
            text("than"),
            number("over greedy ms", 3),
        ];
        let mut table = Table::new("What sampling takes, by what batches ask for", columns).note(
            "What one sequence asks for is done for its whole batch. Costs are differences of medians to steps of the same \
             sizes that ask for less; where there are too few of those, they are not known.",
        );
        for kind in summary.kinds.iter().take(MOST) {
            let (least, most) = kind.sizes.range();
            let joined = |names: Vec<&str>| names.join(" + ");
            let cost = kind.cost.as_ref();
            table.row(vec![
                joined(kind.features.names()).into(),
                if least == most { most.to_string() } else { format!("{least} to {most}") }.into(),
                kind.steps.into(),
                percent(kind.steps, summary.steps).into(),
                kind.times.map(|times| times.mean_ms).into(),
                kind.times.map(|times| times.p50_ms).into(),
                kind.times.map(|times| times.p99_ms).into(),
                kind.host.map(|times| times.p50_ms).into(),
                cost.map_or(String::new(), |cost| joined(cost.added.names())).into(),
                cost.and_then(|cost| cost.cost_ms).into(),
                cost.map_or(String::new(), |cost| joined(cost.to.names())).into(),
                cost.and_then(|cost| cost.over_greedy_ms).into(),
            ]);
        }
        section.push(table);
        if let Some(drafts) = &summary.drafts {
            let text = format!(
                "Of {} tokens that were drafted in {} steps, {:.1} % were right.",
                drafts.draft_tokens,
                drafts.steps,
                percent(drafts.accepted_tokens, drafts.draft_tokens).unwrap_or_default()
            );
            section.push(Block::Sentence { text: text.into() });
        }
        Some(section)
    }
}
