//! Where the time went.

use std::cmp::Reverse;
use std::fmt::Write;

use profilemate_analysis::Answers;
use profilemate_analysis::breakdown::{EngineTime, FrontEndTime, Part, Parts};
use profilemate_session::Name;

use super::page::{heading, percent, wrapped};
use crate::numbers::grouped;

/// Share under which a part of the run is not worth a word, percent.
const SMALL_PCT: f64 = 0.05;

fn share(ns: u64, whole_ns: u64) -> Option<f64> {
    (whole_ns > 0).then(|| 100.0 * ns as f64 / whole_ns as f64)
}

/// Share from which the front end's work is worth a word, percent: then it may keep tokens from their clients.
const BUSY_PCT: f64 = 10.0;

/// Most parts of a step that are shown.
const CELLS: usize = 6;

/// A part, for people.
fn name(part: Part) -> &'static str {
    match part {
        Part::BatchPreparation => "batch preparation",
        Part::ModelOther => "model, other",
        Part::UpdateFromOutput => "update from output",
        Part::OutputProcessing => "output processing",
        part => part.text(),
    }
}

/// The parts of a step, the largest first, in two columns. Together they are the step.
fn parts(text: &mut String, of: &Parts, steps: u64) {
    let whole_ns = of.total_ns();
    let mut parts: Vec<(Part, u64)> = of.iter().collect();
    parts.sort_by_key(|(_, ns)| Reverse(*ns));
    let mut parts: Vec<(String, u64)> = parts.into_iter().map(|(part, ns)| (name(part).to_owned(), ns)).collect();
    if parts.len() > CELLS {
        let rest = parts.split_off(CELLS - 1);
        parts.push((format!("{} smaller ones", rest.len()), rest.iter().map(|(_, ns)| ns).sum()));
    }
    let cell = |(name, ns): &(String, u64)| {
        let mean_ms = *ns as f64 / 1e6 / steps as f64;
        format!("{name:<18}{:>8} {mean_ms:>8.3} ms", percent(share(*ns, whole_ns)))
    };
    let rows = parts.len().div_ceil(2);
    for row in 0..rows {
        let left = cell(&parts[row]);
        match parts.get(row + rows) {
            Some(right) => {
                let _ = writeln!(text, "  {left}  {}", cell(right));
            }
            None => {
                let _ = writeln!(text, "  {left}");
            }
        }
    }
}

pub(super) fn section(text: &mut String, answers: &Answers) {
    let Some(breakdown) = answers.breakdown.as_ref().filter(|breakdown| !breakdown.engines.is_empty()) else {
        return;
    };
    let all = EngineTime::sum(breakdown.engines.iter());
    let wall_ns = all.wall_ns();
    let run: Vec<String> = [
        ("steps", all.step.total_ns()),
        ("between", all.between.total_ns()),
        ("idle", all.idle_ns),
        ("before", all.before_ns),
        ("after", all.after_ns),
    ]
    .into_iter()
    .filter_map(|(what, ns)| Some((what, share(ns, wall_ns).filter(|share| *share >= SMALL_PCT)?)))
    .map(|(what, share)| format!("{what} {share:.1} %"))
    .collect();
    text.push('\n');
    wrapped(text, "the run", &run);
    let sum = |of: fn(&FrontEndTime) -> u64| breakdown.front_ends.iter().map(of).fold(0, u64::saturating_add);
    let front_wall_ns = answers.duration_ns.saturating_mul(breakdown.front_ends.len() as u64);
    let beside: Vec<String> = [
        ("output processing", sum(|front_end| front_end.output_processing_ns)),
        ("tokenization", sum(|front_end| front_end.tokenization_ns)),
    ]
    .into_iter()
    .filter_map(|(what, ns)| Some((what, share(ns, front_wall_ns).filter(|share| *share >= BUSY_PCT)?)))
    .map(|(what, share)| format!("{what} {share:.1} % of the run"))
    .collect();
    if !beside.is_empty() {
        wrapped(text, "front end", &beside);
    }
    if all.steps == 0 {
        return;
    }
    let times = answers.cpu.as_ref().and_then(|cpu| {
        let (_, times) = cpu.operations.iter().find(|(of, _)| *of == Name::EngineStep)?;
        Some(format!(
            "mean {:.3} ms, p50 {:.3}, p95 {:.3}, p99 {:.3}",
            times.mean_ms, times.p50_ms, times.p95_ms, times.p99_ms
        ))
    });
    heading(text, "engine steps", 13, &format!("{}, {}", grouped(all.steps), times.unwrap_or_default()));
    parts(text, &all.step, all.steps);
    ranks(text, answers);
}

/// Workers of one engine that differ.
fn ranks(text: &mut String, answers: &Answers) {
    for skew in answers.ranks.iter().filter(|skew| !skew.are_stages).take(2) {
        let latest = skew.ranks.iter().max_by_key(|rank| (rank.last_steps, Reverse(rank.rank)));
        let mut words =
            vec![format!("forward differs by {:.3} ms (p99 {:.3})", skew.skew_ms.mean, skew.skew_ms.p99)];
        words.extend(latest.filter(|rank| rank.last_steps > 0).map(|rank| {
            let steps = percent(share(rank.last_steps, skew.steps));
            format!("{} begins last in {steps} of steps", crate::text::visible(&rank.process))
        }));
        wrapped(text, "ranks", &words);
    }
}

/// What one more token or sequence costs.
pub(super) fn cost(text: &mut String, answers: &Answers) {
    // Of several fits that say something of a thing, the one over most steps.
    let best = |has: fn(&profilemate_analysis::cost::Fit) -> bool| {
        answers.cost.iter().filter(|fit| has(fit)).max_by_key(|fit| fit.steps)
    };
    let prefill = best(|fit| fit.prefill_token_us.is_some());
    let decode = best(|fit| fit.decode_sequence_us.is_some());
    let is_one = prefill.zip(decode).is_some_and(|(prefill, decode)| std::ptr::eq(prefill, decode));
    let quality = |fit: &profilemate_analysis::cost::Fit| format!(" (R2 {:.2})", fit.r_squared);
    let mut words = Vec::new();
    if let Some((fit, cost)) = prefill.and_then(|fit| Some((fit, fit.prefill_token_us?))) {
        let quality = if is_one { String::new() } else { quality(fit) };
        words.push(format!("prefill token {:.2} us{quality}", cost.value));
    }
    if let Some((fit, cost)) = decode.and_then(|fit| Some((fit, fit.decode_sequence_us?))) {
        words.push(format!("decode sequence {:.2} us{}", cost.value, quality(fit)));
    }
    if !words.is_empty() {
        wrapped(text, "one more", &words);
    }
}
