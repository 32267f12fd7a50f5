//! Sampling: its share, and what costs most of it.

use profilemate_analysis::Answers;
use profilemate_analysis::batch::percent;
use profilemate_analysis::sampling::{Kind, Summary};

use super::page::{percent as shown, wrapped};

/// Features that cost less, milliseconds, are not named.
const LEAST_COST_MS: f64 = 0.01;

/// Most features that are named.
const MOST: usize = 2;

/// The kinds whose features cost something worth a word, what costs most over the run first.
fn costly(summary: &Summary) -> Vec<(&Kind, f64)> {
    let cost = |kind: &Kind| kind.cost.and_then(|cost| cost.cost_ms).filter(|ms| *ms >= LEAST_COST_MS);
    let mut found: Vec<(&Kind, f64)> = summary.kinds.iter().filter_map(|kind| Some((kind, cost(kind)?))).collect();
    found.sort_by(|(a, a_ms), (b, b_ms)| (b_ms * b.steps as f64).total_cmp(&(a_ms * a.steps as f64)));
    found.truncate(MOST);
    found
}

pub(super) fn section(text: &mut String, answers: &Answers) {
    let Some(summary) = answers.sampling.as_ref().filter(|summary| summary.steps > 0) else { return };
    let mut words = Vec::new();
    if let (Some(times), Some(share)) = (summary.times, summary.share_pct()) {
        words.push(format!("{:.3} ms a step", times.mean_ms));
        words.push(format!("{} of forward and sampling", shown(Some(share))));
    }
    for (kind, cost_ms) in costly(summary) {
        if let Some(cost) = &kind.cost {
            let (_, most) = kind.sizes.range();
            words.push(format!("{} costs {cost_ms:.3} ms at batch {most}", cost.added.names().join(" + ")));
        }
    }
    if let Some(drafts) = &summary.drafts {
        words.push(format!("{} of drafts accepted", shown(percent(drafts.accepted_tokens, drafts.draft_tokens))));
    }
    if !words.is_empty() {
        wrapped(text, "sampling", &words);
    }
}
