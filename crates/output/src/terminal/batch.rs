//! How full batches are, and why not fuller.

use profilemate_analysis::Answers;
use profilemate_analysis::steps::Phase;

use super::page::{grouped, line, percent, wrapped};
use crate::text::visible;

pub(super) fn section(text: &mut String, answers: &Answers) {
    let Some(summary) = answers.batch.as_ref().filter(|summary| summary.total_samples > 0) else { return };
    text.push('\n');
    wrapped(
        text,
        "batches",
        &[
            format!("sequences {} of limit", percent(summary.mean_seq_utilization_pct)),
            format!("tokens {} of limit", percent(summary.mean_token_utilization_pct)),
        ],
    );
    let phases: Vec<String> = Phase::ALL
        .iter()
        .filter_map(|phase| {
            let (_, mean) = summary.phases.iter().find(|(found, _)| found == phase)?;
            Some(format!("{} {mean:.1} %", phase.text()))
        })
        .collect();
    if !phases.is_empty() {
        wrapped(text, "", &phases);
    }
    line(
        text,
        "",
        &format!(
            "{} of {} steps used less than half of the token limit",
            grouped(summary.underutilization_events),
            grouped(summary.total_samples)
        ),
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
