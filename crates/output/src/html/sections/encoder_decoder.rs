//! Encoders against the language model.

use std::fmt::Write;

use profilemate_analysis::Answers;
use profilemate_analysis::encoder_decoder::{Component, Inputs, ModelType, Summary, Timed};

use super::{BUCKETS, chart, times, times_columns};
use crate::html::model::{Block, Section, Style, Table, number, share, text};
use crate::html::sampling::Sampled;
use crate::numbers::grouped;

/// What is gathered of components.
pub(in crate::html) struct Gathered {
    /// Milliseconds of each call of an encoder.
    calls: Sampled<1>,
}

impl Gathered {
    pub(in crate::html) fn new() -> Self {
        Self { calls: Sampled::new(BUCKETS) }
    }

    pub(in crate::html) fn see(&mut self, timed: &Timed<'_>) {
        if let (Component::Encoder, Some(ns)) = (timed.component, timed.duration_ns) {
            self.calls.push(timed.start_ns, [ns as f64 / 1e6]);
        }
    }

    pub(in crate::html) fn section(self, answers: &Answers) -> Option<Section> {
        let summary = answers.encoder_decoder.as_ref()?;
        // Of a language model and nothing else, the other sections have it all.
        if summary.model_type == Some(ModelType::DecoderOnly) || summary.rows.iter().all(|rows| *rows == 0) {
            return None;
        }
        let mut section = Section::new("encoder-decoder", "Encoder and decoder").lead(lead(summary));
        let mut table = Table::new("Components", times_columns("component"))
            .note("Encoder and decoder are apart in time; cross-attention is a part of the decoder.");
        for component in Component::ALL {
            if let Some(of) = summary.times(component) {
                table.row(times(&component.text().replace('_', " "), of));
            }
        }
        section.push(table);
        if let Some(reason) =
            summary.cross_attention.as_ref().map(|of| &of.reason).filter(|reason| !reason.is_empty())
        {
            section.push(Block::Sentence { text: format!("Cross-attention: {reason}.").into() });
        }
        let columns = vec![
            text("encoder"),
            number("calls", 0),
            number("inputs", 0),
            number("embeddings", 0),
            number("inputs per call", 2),
            number("mean ms per call", 3),
            number("ms per input", 3),
        ];
        let mut table = Table::new("What encoders were called for", columns);
        for encoder in &summary.encoders {
            let total_ms = encoder.times.as_ref().map(|times| times.total_ms);
            let per = |count: u64| total_ms.filter(|_| count > 0).map(|ms| ms / count as f64);
            table.row(vec![
                super::named(&encoder.context).into(),
                encoder.calls.into(),
                encoder.items.into(),
                encoder.tokens.into(),
                (encoder.calls > 0).then(|| encoder.items as f64 / encoder.calls as f64).into(),
                encoder.times.as_ref().map(|times| times.mean_ms).into(),
                per(encoder.items).into(),
            ]);
        }
        if !table.rows.is_empty() {
            section.push(table);
        }
        if let Some(inputs) = &summary.inputs {
            section.push(cache(inputs));
        }
        let calls = chart("Calls of encoders", "ms", Style::Points, ["encoder"], self.calls);
        section.blocks.extend(calls.map(Block::from));
        let mut table = Table::new("The model's parts", vec![text("part"), text("modules")]).folded();
        for (name, modules) in &summary.components {
            table.row(vec![name.as_str().into(), modules.as_str().into()]);
        }
        if !table.rows.is_empty() {
            section.push(table);
        }
        Some(section)
    }
}

/// The section in a sentence or two.
fn lead(summary: &Summary) -> String {
    let share = |component| {
        summary.share_pct(component).map_or("an unknown share".to_owned(), |share| format!("{share:.1} %"))
    };
    let kind = summary.model_type.map_or("unknown", ModelType::text).replace('_', "-");
    let mut lead = format!(
        "A model of the kind {kind}: {} of the time of both in encoders, {} in the decoder.",
        share(Component::Encoder),
        share(Component::Decoder)
    );
    if let Some(share) = summary.of_encoder_steps_pct {
        let steps = grouped(summary.encoder_steps);
        let _ = write!(lead, " Encoders were called in {steps} steps, of which they took {share:.1} %.");
    }
    lead
}

fn cache(inputs: &Inputs) -> Table {
    let columns = vec![
        number("inputs computed", 0),
        number("found in the cache", 0),
        share("hits %"),
        number("outputs evicted", 0),
        number("waits for room", 0),
        number("waits for the encoders", 0),
        number("most embeddings held", 0),
        number("room for embeddings", 0),
    ];
    let mut table = Table::new("Inputs and the encoder cache", columns)
        .note("A wait: an input that was needed in a step, and put off to a later one.");
    table.row(vec![
        inputs.computed.into(),
        inputs.cached.into(),
        inputs.hit_rate_pct().into(),
        inputs.evicted.into(),
        inputs.no_room.into(),
        inputs.no_budget.into(),
        inputs.most_held.into(),
        inputs.cache_size.into(),
    ]);
    table
}
