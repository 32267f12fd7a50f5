//! How full batches are, and why not fuller.

use profilemate_analysis::Answers;

use super::page::{grouped, percent, wrapped};
use crate::text::visible;

pub(super) fn section(text: &mut String, answers: &Answers) {
    let Some(summary) = answers.batch.as_ref().filter(|summary| summary.total_samples > 0) else { return };
    wrapped(
        text,
        "batches",
        &[
            format!("sequences {}", percent(summary.mean_seq_utilization_pct)),
            format!("tokens {} of limit", percent(summary.mean_token_utilization_pct)),
            format!(
                "under half in {} of {} steps",
                grouped(summary.underutilization_events),
                grouped(summary.total_samples)
            ),
        ],
    );
    let all: u64 = summary.limited_by.values().sum();
    let mut limits: Vec<(&String, &u64)> = summary.limited_by.iter().collect();
    limits.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let words: Vec<String> = limits
        .into_iter()
        .map(|(what, count)| {
            let what = if what.is_empty() { "unknown" } else { what };
            format!("{} {}", visible(what), percent(profilemate_analysis::batch::percent(*count, all)))
        })
        .collect();
    if !words.is_empty() {
        wrapped(text, "limited by", &words);
    }
}
