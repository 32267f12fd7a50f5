//! Requests that wait to be started: for what, and whether a setting would start them earlier.

use super::{
    Change, Confidence, Direction, Evidence, Finding, Found, Level, Severity, Subject, batches, count, evidence,
    kv_cache, maybe, proof, settings, share,
};
use crate::Answers;
use crate::batch::Summary;

/// Share of steps after which requests wait from which a queue counts as persistent, percent.
pub const PERSISTENT_PCT: f64 = 50.0;

/// Steps in a row after which requests must have waited.
pub const LEAST_STEPS_IN_A_ROW: u64 = 100;

/// How long they must have, nanoseconds.
pub const LEAST_STRETCH_NS: u64 = 1_000_000_000;

/// Share of the steps with a queue that one limit must have, percent.
pub const CAUSE_PCT: f64 = 50.0;

/// Peak use of the KV cache that more requests may lead to, percent.
pub const KV_ROOM_PCT: f64 = 85.0;

/// More than twice as many requests at once is a leap that no measurement of this run covers.
const MOST_GROWTH: f64 = 2.0;

/// A smaller growth is not worth a restart.
const LEAST_GROWTH: f64 = 1.1;

/// What keeps requests waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// As many run as may.
    MaxNumSeqs,
    /// The step has all the tokens that it may have.
    TokenBudget,
    /// There are not enough free blocks, or a request was preempted for want of them.
    KvCache,
    /// Grammars are being compiled.
    StructuredOutput,
    /// KV cache is on its way from elsewhere.
    RemoteKv,
    /// The engine was told to pause.
    Paused,
    /// Something that the recording does not name.
    Other,
    /// Several, and none of them most of the time.
    Mixed,
}

/// Steps with a queue, by cause.
fn by_cause(batch: &Summary) -> [(Cause, u64); 7] {
    let steps = |names: &[&str]| {
        names.iter().filter_map(|name| batch.limits_met.get(*name)).map(|limited| limited.queued_steps).sum()
    };
    [
        (Cause::MaxNumSeqs, steps(&["max_num_seqs"])),
        (Cause::TokenBudget, steps(&["token_budget"])),
        (Cause::KvCache, steps(&["kv_blocks", "preemption"])),
        (Cause::StructuredOutput, steps(&["structured_output"])),
        (Cause::RemoteKv, steps(&["remote_kv"])),
        (Cause::Paused, steps(&["paused"])),
        (Cause::Other, steps(&["other", ""])),
    ]
}

/// Why requests wait all the time, and the share of the steps with a queue that says so, percent; `None` if they do not.
pub fn cause(answers: &Answers) -> Option<(Cause, f64)> {
    let batch = batches::enough(answers)?;
    let queue = &batch.queue;
    let is_persistent = is_known(batch)
        && share(queue.steps, batch.total_samples) >= PERSISTENT_PCT
        && queue.longest_steps >= LEAST_STEPS_IN_A_ROW
        && queue.longest_ns >= LEAST_STRETCH_NS;
    if !is_persistent {
        return None;
    }
    let causes = by_cause(batch);
    let (cause, steps) = causes.into_iter().max_by_key(|(_, steps)| *steps)?;
    let share = share(steps, queue.steps);
    if steps == 0 {
        // Nobody said what limited the batches.
        return Some((Cause::Other, 100.0));
    }
    Some(if share >= CAUSE_PCT { (cause, share) } else { (Cause::Mixed, share) })
}

/// Whether it is known of nearly all batches if requests waited after them. A log of vLLM says it of none.
pub(super) fn is_known(batch: &Summary) -> bool {
    share(batch.queue.known_steps, batch.total_samples) >= 90.0
}

/// The numbers of a queue.
pub(super) fn numbers(answers: &Answers, batch: &Summary) -> Vec<Evidence> {
    let queue = &batch.queue;
    let requests = answers.requests.as_ref();
    [
        Some(evidence("steps_with_a_queue", share(queue.steps, batch.total_samples), "%")),
        Some(evidence("longest_queue", queue.longest_ns as f64 / 1e9, "s")),
        maybe("mean_waiting_requests", queue.mean_waiting, "requests"),
        maybe("queue_time_p50", requests.and_then(|requests| Some(requests.queue_time?.p50)), "s"),
        maybe("queue_time_p99", requests.and_then(|requests| Some(requests.queue_time?.p99)), "s"),
    ]
    .into_iter()
    .flatten()
    .collect()
}

pub(super) fn judge(answers: &Answers, found: &mut Found) {
    if let Some(reason) = batches::reason(answers) {
        return found.not_judged(Subject::Queue, reason);
    }
    let Some(batch) = batches::enough(answers) else { return };
    if !is_known(batch) {
        return found.not_judged(Subject::Queue, "how many requests waited was not recorded");
    }
    let Some((cause, cause_pct)) = cause(answers) else { return };
    // The KV cache is the cause, whatever stands before it in the scheduler's order: its finding has this evidence.
    if kv_cache::pressure(answers).is_some() {
        return;
    }
    let finding = match cause {
        Cause::MaxNumSeqs => max_num_seqs(answers, batch, cause_pct),
        // The budget's own finding says it, if the budget is to blame.
        Cause::TokenBudget if found.has("token-budget-exhausted") => return,
        cause => no_setting(answers, batch, cause, cause_pct),
    };
    found.push(finding);
}

/// As many run as may, and others wait.
fn max_num_seqs(answers: &Answers, batch: &Summary, cause_pct: f64) -> Finding {
    let limited = batch.limits_met.get("max_num_seqs").copied().unwrap_or_default();
    let peak_pct = kv_cache::highest_peak_pct(answers);
    // Since 0.32 fewer may be active than are in one batch; then that is the limit.
    let active = settings::number(&answers.facts, "--max-num-active-seqs").filter(|active| *active >= 1.0);
    let suggested = batch.limits.and_then(|limits| match active {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of sequences")]
        Some(active) => more_seqs(active as u64, limits.max_num_seqs, peak_pct),
        None => more_seqs(limits.max_num_seqs, limits.max_num_tokens, peak_pct),
    });
    let mut numbers = numbers(answers, batch);
    numbers.insert(0, evidence("queued_steps_limited_by_max_num_seqs", cause_pct, "%"));
    numbers.extend(maybe("mean_token_utilization_in_those", limited.mean_token_utilization_pct, "%"));
    numbers.extend(maybe("peak_kv_cache_usage", peak_pct, "%"));
    let current = active.or_else(|| Some(batch.limits?.max_num_seqs as f64));
    let finding = Finding {
        id: "max-num-seqs-too-low",
        subject: Subject::Queue,
        severity: Severity::Warning,
        confidence: Confidence::new(Level::High, "the scheduler says that this is the limit, and the KV cache has room"),
        title: format!(
            "Requests wait in {:.1} % of the steps because {} run, as many as may",
            share(batch.queue.steps, batch.total_samples),
            current.map_or("so many".to_owned(), |limit| limit.to_string()),
        ),
        evidence: numbers,
        changes: vec![],
        expect: "Requests start earlier and more of them run at once. Each step takes a little longer, and so does each \
                 token; throughput grows as long as a step's time grows less than its batch."
            .to_owned(),
        proof: vec![
            proof("batch_utilization.csv", "limited_by"),
            proof("batch_utilization.csv", "waiting_queue_len"),
            proof("kv_cache_usage.csv", "usage_pct"),
        ],
    };
    let flag = if active.is_some() { "--max-num-active-seqs" } else { "--max-num-seqs" };
    let change = Change::new(flag, Direction::Raise).from(current);
    match (peak_pct, suggested) {
        (Some(_), Some(value)) => Finding { changes: vec![change.to(value)], ..finding },
        // It holds about as many as run already: they run as well as they can.
        (Some(_), None) => Finding {
            id: "queue-at-capacity",
            severity: Severity::Info,
            confidence: Confidence::new(Level::Medium, "what more requests would need is projected from the peak"),
            expect:
                "The server is full: the KV cache has no room for more requests at once. More or larger GPUs, or \
                     fewer requests, make the queue shorter."
                    .to_owned(),
            ..finding
        },
        (None, value) => Finding {
            confidence: Confidence::new(
                Level::Low,
                "the scheduler says that this is the limit; whether the KV cache has room is not known",
            ),
            changes: vec![Change { value: value.map(|value| value.to_string()), ..change }],
            ..finding
        },
    }
}

/// How many requests may run at once, by the room that the KV cache has and up to `most`; `None` when that is hardly more.
fn more_seqs(current: u64, most: u64, peak_pct: Option<f64>) -> Option<u64> {
    let growth = peak_pct.map_or(MOST_GROWTH, |peak| (KV_ROOM_PCT / peak.max(1.0)).min(MOST_GROWTH));
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most twice a setting")]
    let seqs = (current.min(1 << 20) as f64 * growth) as u64;
    // vLLM refuses more sequences than tokens, and more active ones than sequences.
    let seqs = seqs.min(most);
    let seqs = if seqs >= 16 { seqs / 8 * 8 } else { seqs };
    (seqs as f64 >= current as f64 * LEAST_GROWTH).then_some(seqs)
}

/// They wait for something that no limit of the scheduler gives them.
fn no_setting(answers: &Answers, batch: &Summary, cause: Cause, cause_pct: f64) -> Finding {
    let queued_pct = share(batch.queue.steps, batch.total_samples);
    let (id, severity, level, what, expect) = match cause {
        Cause::StructuredOutput => (
            "queue-structured-output",
            Severity::Warning,
            Level::High,
            "their grammars are still being compiled",
            "Grammars that clients send again are compiled once: fewer different ones, or smaller ones, make the queue \
             shorter. No limit of the scheduler does.",
        ),
        Cause::RemoteKv => (
            "queue-remote-kv",
            Severity::Warning,
            Level::High,
            "their KV cache is on its way from elsewhere",
            "The connector or the network is the limit: see its own statistics. No limit of the scheduler helps.",
        ),
        Cause::Paused => (
            "queue-paused",
            Severity::Info,
            Level::High,
            "the engine was told to pause",
            "Whoever paused it makes it go on. No setting does.",
        ),
        Cause::TokenBudget => (
            "queue-token-budget",
            Severity::Info,
            Level::Medium,
            "the steps have all the tokens that they may have",
            "The budget is used up by some steps only: a larger one would start few requests earlier.",
        ),
        Cause::Mixed => (
            "queue-mixed-causes",
            Severity::Info,
            Level::Low,
            "of several limits, none of which holds most of the time",
            "See which limit holds when: limited_by in batch_utilization.csv.",
        ),
        Cause::Other | Cause::MaxNumSeqs | Cause::KvCache => (
            "queue-cause-unknown",
            Severity::Info,
            Level::Low,
            "of something that the recording does not name",
            "Adapters, connectors, drafts and multimodal inputs stop vLLM's scheduler in ways that are not recorded.",
        ),
    };
    let mut numbers = numbers(answers, batch);
    numbers.insert(0, evidence("queued_steps_with_this_cause", cause_pct, "%"));
    numbers.push(count("steps", batch.total_samples, "steps"));
    Finding {
        id,
        subject: Subject::Queue,
        severity,
        confidence: Confidence::new(
            level,
            match level {
                Level::High => "the scheduler says so",
                Level::Medium => "the scheduler says so, for part of the time",
                Level::Low => "the scheduler names no single cause",
            },
        ),
        title: format!("Requests wait in {queued_pct:.1} % of the steps because {what}"),
        evidence: numbers,
        changes: vec![],
        expect: expect.to_owned(),
        proof: vec![
            proof("batch_utilization.csv", "limited_by"),
            proof("batch_utilization.csv", "waiting_queue_len"),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_requests_fit_as_long_as_the_kv_cache_has_room() {
        // 85 / 42.5 = 2; 85 / 60 = 1.41…; at 80 % it is 1.06 times as many, which is not worth it.
        assert_eq!(more_seqs(64, 8192, Some(42.5)), Some(128));
        assert_eq!(more_seqs(64, 8192, Some(10.0)), Some(128));
        assert_eq!(more_seqs(64, 8192, Some(60.0)), Some(88));
        assert_eq!(more_seqs(64, 8192, Some(80.0)), None);
        assert_eq!(more_seqs(64, 100, Some(10.0)), Some(96));
        assert_eq!(more_seqs(4, 8192, Some(10.0)), Some(8));
        assert_eq!(more_seqs(64, 64, None), None);
    }
}
