//! Encoders against the language model.

use profilemate_analysis::Answers;
use profilemate_analysis::encoder_decoder::{Component, ModelType};

use super::page::{percent, wrapped};
use crate::numbers::grouped;

pub(super) fn section(text: &mut String, answers: &Answers) {
    let Some(summary) = &answers.encoder_decoder else { return };
    // Of a language model and nothing else there is nothing to say.
    if summary.model_type.is_none_or(|kind| kind == ModelType::DecoderOnly) {
        return;
    }
    let mut words = vec![
        format!("encoder {}", percent(summary.share_pct(Component::Encoder))),
        format!("decoder {}", percent(summary.share_pct(Component::Decoder))),
    ];
    if summary.cross_attention.is_some() {
        words.push(format!("of it cross-attention {}", percent(summary.share_pct(Component::CrossAttention))));
    }
    let calls: u64 = summary.encoders.iter().map(|encoder| encoder.calls).sum();
    let items: u64 = summary.encoders.iter().map(|encoder| encoder.items).sum();
    if calls > 0 {
        words.push(format!("{} calls, {} inputs", grouped(calls), grouped(items)));
    }
    if let Some(inputs) = summary.inputs.filter(|inputs| inputs.cached > 0) {
        words.push(format!("encoder cache hits {}", percent(inputs.hit_rate_pct())));
    }
    wrapped(text, "encoder", &words);
}
