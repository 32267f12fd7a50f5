//! How full batches are, and why not fuller.

use profilemate_analysis::Answers;

use super::page::{LABEL_WIDTH, WIDTH, percent, width, wrapped};
use crate::text::visible;

pub(super) fn section(text: &mut String, answers: &Answers) {
    let Some(summary) = answers.batch.as_ref().filter(|summary| summary.total_samples > 0) else { return };
    let under = profilemate_analysis::batch::percent(summary.underutilization_events, summary.total_samples);
    // Without a limit there is no half of it.
    let under = under.filter(|_| summary.mean_token_utilization_pct.is_some());
    let under = under.map_or(String::new(), |share| format!(" (under half in {share:.1} %)"));
    wrapped(
        text,
        "batches",
        &[
            format!("sequences {}", percent(summary.mean_seq_utilization_pct)),
            format!("tokens {} of limit{under}", percent(summary.mean_token_utilization_pct)),
        ],
    );
    let all: u64 = summary.limited_by.values().sum();
    let mut limits: Vec<(&String, &u64)> = summary.limited_by.iter().collect();
    limits.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let mut words: Vec<String> = limits
        .into_iter()
        .map(|(what, count)| {
            let what = if what.is_empty() { "unknown" } else { what };
            format!("{} {}", visible(what), percent(profilemate_analysis::batch::percent(*count, all)))
        })
        .collect();
    // On one line: the rest are small, and in the tables.
    let all_words = words.len();
    while words.len() > 1 && width(&words.join(", ")) > WIDTH - LABEL_WIDTH - ", 9 more".len() {
        words.pop();
    }
    if words.len() < all_words {
        words.push(format!("{} more", all_words - words.len()));
    }
    if !words.is_empty() {
        wrapped(text, "limited by", &words);
    }
}
