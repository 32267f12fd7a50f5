//! Pauses of Python's garbage collector.

use super::{Confidence, Finding, Found, Level, Severity, Subject, count, evidence, proof};
use crate::Answers;
use crate::garbage::Garbage;

/// Share of the time that a process works from which collections matter, percent.
pub const SHARE_PCT: f64 = 1.0;

/// Fewer collections have no share worth the name.
pub const LEAST_COLLECTIONS: u64 = 20;

/// Mean pause of collections of the oldest generation from which it matters, milliseconds.
pub const LONG_PAUSE_MS: f64 = 50.0;

/// Fewer of those are chance.
pub const LEAST_OLDEST: u64 = 3;

/// From the first step to the last, without what the engine idled, milliseconds: of the engine that worked longest.
fn working_ms(answers: &Answers) -> Option<f64> {
    let engines = &answers.breakdown.as_ref()?.engines;
    let ns =
        engines.iter().map(|engine| engine.step.total_ns().saturating_add(engine.between.total_ns())).max()?;
    (ns > 0).then_some(ns as f64 / 1e6)
}

pub(super) fn judge(answers: &Answers, found: &mut Found) {
    if answers.garbage.is_empty() {
        return found.not_there(Subject::GarbageCollection, "no collection was recorded");
    }
    let working_ms = working_ms(answers);
    let share_pct = |of: &Garbage| {
        let share = 100.0 * of.total_ms / working_ms?;
        (of.count >= LEAST_COLLECTIONS && share >= SHARE_PCT).then_some(share)
    };
    let long_ms = |of: &Garbage| {
        let mean = of.oldest_total_ms / of.oldest_count as f64;
        (of.oldest_count >= LEAST_OLDEST && mean >= LONG_PAUSE_MS).then_some(mean)
    };
    let hurts = answers.garbage.iter().filter(|of| share_pct(of).is_some() || long_ms(of).is_some());
    // The worst process stands for all.
    let Some(of) = hurts.max_by(|a, b| a.total_ms.total_cmp(&b.total_ms)) else { return };
    let why = match (long_ms(of), share_pct(of)) {
        (Some(mean), _) => {
            format!("in {} pauses of {mean:.0} ms on average, each as long as many decode steps", of.oldest_count)
        }
        (None, share) => format!("for {:.1} % of the time", share.unwrap_or_default()),
    };
    let mut evidence = vec![
        count("collections", of.count, "collections"),
        evidence("all_pauses", of.total_ms, "ms"),
        evidence("longest_pause", of.max_ms, "ms"),
        evidence("p99_pause", of.p99_ms, "ms"),
        count("collections_of_the_oldest_generation", of.oldest_count, "collections"),
        evidence("pauses_for_those", of.oldest_total_ms, "ms"),
    ];
    evidence.extend(working_ms.map(|ms| super::evidence("share_of_working_time", 100.0 * of.total_ms / ms, "%")));
    found.push(Finding {
        id: "garbage-collection-pauses",
        subject: Subject::GarbageCollection,
        severity: Severity::Warning,
        confidence: Confidence::new(Level::High, "each pause was timed"),
        title: format!("Python's garbage collector stops {} {why}", of.process),
        evidence,
        // vLLM has no flag for it.
        changes: vec![],
        expect: "vLLM takes what lives after its start out of collections: in the engine since 0.11, in workers only in \
                 newer versions. VLLM_GC_DEBUG='{\"top_objects\": 5}' logs what each collection finds; code of one's own \
                 (plugins, logits processors, tokenizers) that keeps many objects makes them long."
            .to_owned(),
        proof: vec![proof("cpu_operations_timing.csv", "duration_ms"), proof("cpu_timing_summary.json", "garbage_collection")],
    });
}
