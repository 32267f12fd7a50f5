//! Requests that lost their blocks: how many, why, and how long they waited to go on.

use super::{Confidence, Evidence, Finding, Found, Level, Severity, Subject, count, evidence, proof, share};
use crate::Answers;
use crate::requests::Summary;

/// Fewer requests say nothing about a load.
pub const LEAST_REQUESTS: u64 = 50;

/// Fewer preempted requests are chance.
pub const LEAST_PREEMPTED: u64 = 5;

/// Share of requests that were preempted from which it matters, percent.
pub const PREEMPTED_PCT: f64 = 10.0;

/// Mean time until a preempted request is resumed from which it matters, seconds.
pub const RESUME_DELAY_SEC: f64 = 1.0;

/// Fewer resumed requests have no mean worth the name.
pub const LEAST_RESUMED: u64 = 10;

/// The summary, if there are enough requests.
pub(super) fn enough(answers: &Answers) -> Option<&Summary> {
    answers.requests.as_ref().filter(|requests| requests.total_requests >= LEAST_REQUESTS)
}

/// Share of preemptions that had this reason, 0-100.
fn with_reason(requests: &Summary, reason: &str) -> f64 {
    share(requests.preemption_reasons.get(reason).copied().unwrap_or(0), requests.preemptions)
}

/// What preemptions for want of blocks say. `None` = they are not judged, or have other reasons.
#[derive(Debug, Clone, Copy)]
pub(super) struct WantOfBlocks {
    /// Share of the requests that were preempted, percent.
    pub(super) preempted_pct: f64,
    /// Mean time until a request was resumed, seconds; with enough of them.
    pub(super) resume_delay_sec: Option<f64>,
}

impl WantOfBlocks {
    /// Whether so many requests were preempted that it matters.
    pub(super) fn is_frequent(self) -> bool {
        self.preempted_pct > PREEMPTED_PCT
    }

    /// Whether they wait so long that it matters.
    pub(super) fn is_slow(self) -> bool {
        self.resume_delay_sec.is_some_and(|delay| delay > RESUME_DELAY_SEC)
    }
}

/// Preemptions for want of blocks, where most had that reason.
pub(super) fn want_of_blocks(answers: &Answers) -> Option<WantOfBlocks> {
    let requests = enough(answers)?;
    // vLLM 0.11 gives no reason; there and then, want of blocks is the only one.
    let for_blocks = with_reason(requests, "kv_cache_full") + with_reason(requests, "");
    if requests.preempted_requests < LEAST_PREEMPTED || for_blocks < 50.0 {
        return None;
    }
    Some(WantOfBlocks {
        preempted_pct: share(requests.preempted_requests, requests.total_requests),
        resume_delay_sec: requests
            .resume_delays
            .filter(|delays| delays.count >= LEAST_RESUMED)
            .map(|delays| delays.mean),
    })
}

/// The numbers of preemptions.
pub(super) fn numbers(requests: &Summary) -> Vec<Evidence> {
    let mut numbers = vec![
        evidence("preempted_requests", share(requests.preempted_requests, requests.total_requests), "%"),
        count("preemptions", requests.preemptions, "preemptions"),
        count("computed_tokens_lost", requests.recomputed_tokens, "tokens"),
    ];
    if let Some(delays) = &requests.resume_delays {
        numbers.push(evidence("mean_resume_delay", delays.mean, "s"));
        numbers.push(evidence("max_resume_delay", delays.max, "s"));
    }
    numbers.push(count("requests", requests.total_requests, "requests"));
    numbers
}

pub(super) fn judge(answers: &Answers, found: &mut Found) {
    let Some(requests) = &answers.requests else {
        return found.not_judged(Subject::Preemption, "preemption_tracking was not on");
    };
    let Some(requests) = enough(answers).or_else(|| {
        let reason = format!("{} requests, {LEAST_REQUESTS} are needed", requests.total_requests);
        found.not_judged(Subject::Preemption, reason);
        None
    }) else {
        return;
    };
    let preempted_pct = share(requests.preempted_requests, requests.total_requests);
    let is_reset = with_reason(requests, "prefix_cache_reset") > 50.0;
    if is_reset && requests.preempted_requests >= LEAST_PREEMPTED && preempted_pct > PREEMPTED_PCT {
        found.push(Finding {
            id: "prefix-cache-resets",
            subject: Subject::Preemption,
            severity: Severity::Warning,
            confidence: Confidence::new(Level::High, "vLLM was told to: every preemption is recorded with its reason"),
            title: format!(
                "Somebody empties the prefix cache while requests run: {preempted_pct:.1} % of the requests were preempted"
            ),
            evidence: numbers(requests),
            changes: vec![],
            expect: "Whoever calls reset_prefix_cache, as a rule for new weights, can let the running requests end \
                     first. No flag of the server helps."
                .to_owned(),
            proof: vec![
                proof("preemption_events.csv", "reason"),
                proof("preemption_summary.json", "preemption_reasons"),
            ],
        });
    }
}
