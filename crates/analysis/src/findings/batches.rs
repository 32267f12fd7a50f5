//! How full batches are, against the token budget of a step.

use super::{
    Change, Confidence, Direction, Finding, Found, Level, Severity, Subject, count, evidence, kv_cache, maybe,
    proof, queue, share,
};
use crate::Answers;
use crate::batch::Summary;
use crate::steps::Phase;

/// Fewer batches say nothing about a load.
pub const LEAST_STEPS: u64 = 200;

/// Token utilization from which the budget counts as used up, percent.
pub const FULL_PCT: f64 = 95.0;

/// Token utilization under which a batch has room, percent.
pub const EMPTY_PCT: f64 = 60.0;

/// Share of batches that the budget limits from which it matters, percent.
pub const BUDGET_LIMITS_PCT: f64 = 25.0;

/// Share of batches after which nobody waited from which a server counts as not full, percent.
pub const NOBODY_WAITS_PCT: f64 = 90.0;

/// What vLLM's guide says throughput wants (`docs/configuration/optimization.md`: more than 8192).
const BUDGET_FOR_THROUGHPUT: u64 = 8192;

/// From here on a batch of prompts keeps a GPU busy by itself, and a larger one takes longer in proportion.
const BUDGET_ENOUGH: u64 = 16384;

/// The summary, if there are enough batches.
pub(super) fn enough(answers: &Answers) -> Option<&Summary> {
    answers.batch.as_ref().filter(|batch| batch.total_samples >= LEAST_STEPS)
}

/// Why batches cannot be judged.
pub(super) fn reason(answers: &Answers) -> Option<String> {
    match &answers.batch {
        None => Some("batch_utilization_tracking was not on".to_owned()),
        Some(batch) if batch.total_samples < LEAST_STEPS => {
            Some(format!("{} steps, {LEAST_STEPS} are needed", batch.total_samples))
        }
        Some(batch) if batch.limits.is_none() => Some("nobody said what the scheduler's limits are".to_owned()),
        Some(_) => None,
    }
}

/// Mean token utilization of steps with tokens of prompts, percent.
fn prompt_utilization_pct(batch: &Summary) -> Option<f64> {
    let (mut sum, mut steps) = (0.0, 0);
    for (phase, mean) in batch.phases.iter().filter(|(phase, _)| *phase != Phase::Decode) {
        let of_phase = batch.steps_in(*phase);
        sum += mean * of_phase as f64;
        steps += of_phase;
    }
    (steps > 0).then(|| sum / steps as f64)
}

pub(super) fn judge(answers: &Answers, found: &mut Found) {
    if let Some(reason) = reason(answers) {
        return found.not_judged(Subject::Batches, reason);
    }
    let Some(batch) = enough(answers) else { return };
    if let Some(finding) = budget_exhausted(answers, batch) {
        found.push(finding);
    } else if let Some(finding) = not_full(batch) {
        found.push(finding);
    }
}

/// Prompts fill every step that has some, and others wait behind them.
fn budget_exhausted(answers: &Answers, batch: &Summary) -> Option<Finding> {
    let limits = batch.limits?;
    let limited = batch.limits_met.get("token_budget")?;
    let limited_pct = share(limited.steps, batch.total_samples);
    let queued_pct = share(limited.queued_steps, limited.steps);
    let utilization_pct = prompt_utilization_pct(batch)?;
    // A prompt that is computed in pieces fills the budget, too. That is a fault only if somebody waits behind it.
    if limited_pct < BUDGET_LIMITS_PCT || queued_pct < 50.0 || utilization_pct <= FULL_PCT {
        return None;
    }
    // A larger budget takes memory for activations from a KV cache that has too little already.
    if kv_cache::pressure(answers).is_some() {
        return None;
    }
    let budget = limits.max_num_tokens;
    let change = |value: u64| {
        Change::new("--max-num-batched-tokens", Direction::Raise)
            .to(value)
            .from(Some(budget))
            .note("tokens of running requests come in longer intervals while prompts are computed")
    };
    let (severity, changes, confidence, expect) = if budget >= BUDGET_ENOUGH {
        (
            Severity::Info,
            vec![],
            Confidence::new(Level::Medium, "the scheduler says that the budget is the limit"),
            "Computing prompts is the limit, not a setting: more GPUs, shorter prompts or a prefix cache that finds \
             more of them make them start earlier.",
        )
    } else {
        let value = if budget < BUDGET_FOR_THROUGHPUT { BUDGET_FOR_THROUGHPUT } else { BUDGET_ENOUGH };
        (
            Severity::Warning,
            vec![change(value)],
            Confidence::new(
                Level::Medium,
                "the scheduler says that the budget is the limit; what a larger step costs on this GPU is not known",
            ),
            "First tokens come earlier, since more prompts are computed in one step. Each such step takes longer, and \
             so does the next token of every running request.",
        )
    };
    Some(Finding {
        id: "token-budget-exhausted",
        subject: Subject::Batches,
        severity,
        confidence,
        title: format!(
            "Prompts wait for the token budget: it limits {limited_pct:.1} % of the steps, and requests wait behind it"
        ),
        evidence: [
            Some(evidence("steps_limited_by_token_budget", limited_pct, "%")),
            Some(evidence("token_utilization_of_steps_with_prompts", utilization_pct, "%")),
            Some(evidence("of_those_with_a_queue", queued_pct, "%")),
            Some(count("steps", batch.total_samples, "steps")),
            maybe("time_to_first_token_p50", answers.requests.as_ref().and_then(|r| Some(r.ttft?.p50)), "s"),
        ]
        .into_iter()
        .flatten()
        .collect(),
        changes,
        expect: expect.to_owned(),
        proof: vec![
            proof("batch_utilization.csv", "limited_by"),
            proof("batch_utilization.csv", "token_utilization_pct"),
        ],
    })
}

/// Batches are small because few requests came.
fn not_full(batch: &Summary) -> Option<Finding> {
    let utilization_pct = batch.mean_token_utilization_pct.filter(|mean| *mean < EMPTY_PCT)?;
    // Where it is not known what limited batches, the queue says it.
    let known =
        batch.limits_met.get("no_waiting_request").map(|limited| share(limited.steps, batch.total_samples));
    if known.is_none() && !queue::is_known(batch) {
        return None;
    }
    let nobody_pct = known.unwrap_or_else(|| 100.0 - share(batch.queue.steps, batch.total_samples));
    if nobody_pct < NOBODY_WAITS_PCT {
        return None;
    }
    Some(Finding {
        id: "load-below-capacity",
        subject: Subject::Batches,
        severity: Severity::Info,
        confidence: Confidence::new(
            if known.is_some() { Level::High } else { Level::Medium },
            format!("counted over {} steps", batch.total_samples),
        ),
        title: format!(
            "The server was not full: batches are small because no request waited in {nobody_pct:.1} % of the steps"
        ),
        evidence: vec![
            evidence("steps_without_a_waiting_request", nobody_pct, "%"),
            evidence("mean_token_utilization", utilization_pct, "%"),
            count("largest_batch", batch.largest_seqs.into(), "sequences"),
            count("steps", batch.total_samples, "steps"),
        ],
        changes: vec![],
        expect:
            "Settings that allow larger batches would change nothing. More requests would be served in the same \
                 steps."
                .to_owned(),
        proof: vec![
            proof("batch_utilization.csv", "limited_by"),
            proof("batch_utilization.csv", "waiting_queue_len"),
        ],
    })
}
