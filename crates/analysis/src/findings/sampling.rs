//! Sampling: its share of the time, and the features that take it.
//!
//! What a feature costs is the difference of medians between steps that have it and steps of the same sizes without it, in one and
//! the same session ([`crate::sampling`]). That times the steps that have it is what it takes of the whole.

use std::collections::BTreeMap;

use super::{
    Change, Confidence, Direction, Finding, Found, Level, Severity, Subject, count, evidence, proof, settings,
};
use crate::Answers;
use crate::sampling::{Feature, Features, Kind, Summary};

/// Fewer steps say nothing.
pub const LEAST_STEPS: u64 = 200;

/// What a feature must cost for it to be worth a word, percent of sampling and forward passes.
pub const COST_PCT: f64 = 5.0;

/// What it must cost to matter.
pub const LARGE_COST_PCT: f64 = 10.0;

/// Share of sampling in sampling and forward passes from which it is worth a word where no feature explains it, percent.
pub const SHARE_PCT: f64 = 20.0;

pub(super) fn judge(answers: &Answers, found: &mut Found) {
    let Some(summary) = answers.sampling.as_ref().filter(|summary| summary.steps > 0) else {
        return found.not_there(Subject::Sampling, "the profiler of sampling was not on, or nothing was sampled");
    };
    if summary.steps < LEAST_STEPS {
        let reason = format!("{} steps that sample, {LEAST_STEPS} are needed", summary.steps);
        return found.not_judged(Subject::Sampling, reason);
    }
    let Some((share_pct, all_ms)) = summary.share_pct().zip(all_ms(summary)).filter(|(_, all)| *all > 0.0) else {
        return found.not_judged(Subject::Sampling, "no step has times of both sampling and forward pass");
    };
    match dearest(summary, all_ms).filter(|dearest| dearest.cost_pct >= COST_PCT) {
        Some(dearest) => found.push(feature_costs(answers, summary, share_pct, &dearest)),
        None if share_pct >= SHARE_PCT => found.push(takes_time(summary, share_pct)),
        None => {}
    }
}

/// Milliseconds of sampling and forward passes, over the steps where both are known.
fn all_ms(summary: &Summary) -> Option<f64> {
    let (sampling, forward) = summary.sampling_and_forward_ns?;
    Some(sampling.saturating_add(forward) as f64 / 1e6)
}

/// What some features cost over the session.
struct Dearest<'a> {
    added: Features,
    /// Of the whole, percent.
    cost_pct: f64,
    /// Steps that have them, and were compared with steps without.
    steps: u64,
    /// The kind of steps in which they cost most, and what they cost in each of its steps.
    most: &'a Kind,
    most_ms: f64,
    steps_without: u64,
}

/// The features that cost most in all: each set is what some steps have and the nearest ones of the same sizes have not.
fn dearest(summary: &Summary, all_ms: f64) -> Option<Dearest<'_>> {
    let mut found: BTreeMap<Features, Dearest<'_>> = BTreeMap::new();
    for kind in &summary.kinds {
        let Some((cost, ms)) = kind.cost.and_then(|cost| Some((cost, cost.cost_ms?))) else { continue };
        // A draft is sampled for what it may save in forward passes.
        if cost.added.has(Feature::Speculative) {
            continue;
        }
        let cost_pct = 100.0 * ms * kind.steps as f64 / all_ms;
        let one = Dearest {
            added: cost.added,
            cost_pct,
            steps: kind.steps,
            most: kind,
            most_ms: ms,
            steps_without: cost.steps_without,
        };
        found
            .entry(cost.added)
            .and_modify(|sofar| {
                let is_most = ms * kind.steps as f64 > sofar.most_ms * sofar.most.steps as f64;
                let (cost_pct, steps) = (sofar.cost_pct + cost_pct, sofar.steps + kind.steps);
                if is_most {
                    (sofar.most, sofar.most_ms, sofar.steps_without) = (kind, ms, cost.steps_without);
                }
                (sofar.cost_pct, sofar.steps) = (cost_pct, steps);
            })
            .or_insert(one);
    }
    found.into_values().max_by(|a, b| a.cost_pct.total_cmp(&b.cost_pct))
}

/// What a set of features is called in a sentence.
fn in_words(features: Features) -> String {
    features
        .iter()
        .map(|feature| match feature {
            Feature::GreedyToo => "greedy and random sampling together",
            Feature::Random => "random sampling",
            Feature::TopK => "top-k",
            Feature::TopP => "top-p",
            Feature::MinP => "min-p",
            Feature::Penalties => "penalties",
            Feature::Logprobs => "log probabilities",
            Feature::PromptLogprobs => "log probabilities of prompts",
            Feature::StructuredOutput => "structured output",
            Feature::LogitBias => "logit bias",
            Feature::BadWords => "bad words",
            Feature::AllowedTokenIds => "lists of allowed tokens",
            Feature::MinTokens => "a least number of tokens",
            Feature::Seeded => "seeds",
            Feature::Speculative => "drafts",
        })
        .collect::<Vec<_>>()
        .join(" + ")
}

/// What can be set about features that requests ask for.
fn changes(answers: &Answers, features: Features) -> Vec<Change> {
    let facts = &answers.facts;
    let mut changes = Vec::new();
    let by_default = [Feature::TopK, Feature::TopP, Feature::MinP, Feature::Penalties];
    let current = settings::setting(facts, "--generation-config");
    if by_default.into_iter().any(|feature| features.has(feature)) && current != Some("vllm") {
        let change = Change::new("--generation-config", Direction::Set).to("vllm").from(current).note(
            "if nobody asks for it: the model's generation_config.json is what vLLM takes for requests that name no parameters, and \
             without it they get other answers",
        );
        changes.push(change);
    }
    if features.has(Feature::Logprobs) || features.has(Feature::PromptLogprobs) {
        let change = Change::new("--max-logprobs", Direction::Lower)
            .from(settings::setting(facts, "--max-logprobs"))
            .note("requests that ask for more are refused");
        changes.push(change);
    }
    changes
}

fn feature_costs(answers: &Answers, summary: &Summary, share_pct: f64, dearest: &Dearest<'_>) -> Finding {
    let Dearest { added, cost_pct, steps, most, most_ms, steps_without } = *dearest;
    let what = in_words(added);
    let (_, batch_size) = most.sizes.range();
    Finding {
        id: "sampling-feature-costs",
        subject: Subject::Sampling,
        severity: if cost_pct >= LARGE_COST_PCT { Severity::Warning } else { Severity::Info },
        confidence: if summary.is_on_gpu {
            Confidence::new(Level::Medium, "steps with it were compared with steps without, which may differ otherwise")
        } else {
            Confidence::new(Level::Low, "times are the host's, and steps with it may differ otherwise")
        },
        title: format!("Sampling with {what} takes {cost_pct:.1} % of sampling and forward passes"),
        evidence: vec![
            evidence("cost_of_all", cost_pct, "%"),
            evidence("cost_in_a_step", most_ms, "ms"),
            count("up_to_a_batch_size_of", batch_size, "sequences"),
            count("steps_with_it", steps, "steps"),
            count("steps_without_it_compared", steps_without, "steps"),
            evidence("sampling_of_sampling_and_forward", share_pct, "%"),
        ],
        changes: changes(answers, added),
        expect: "A batch is sampled as a whole, so what one request asks for, all requests of its step wait for. Without it \
                 steps are shorter by that; requests that need it can have a server of their own."
            .to_owned(),
        proof: vec![
            proof("sampling_summary.json", "cost_ms"),
            proof("sampling_timing.csv", "sample_time_ms"),
        ],
    }
}

fn takes_time(summary: &Summary, share_pct: f64) -> Finding {
    let mut numbers =
        vec![evidence("sampling_of_sampling_and_forward", share_pct, "%"), count("steps", summary.steps, "steps")];
    numbers.extend(summary.times.map(|times| evidence("median", times.p50_ms, "ms")));
    Finding {
        id: "sampling-takes-the-time",
        subject: Subject::Sampling,
        severity: Severity::Info,
        confidence: Confidence::new(Level::High, "it was measured"),
        title: format!("Sampling takes {share_pct:.1} % of sampling and forward passes"),
        evidence: numbers,
        changes: vec![],
        expect: "Nothing has to change: no feature that some steps have and others have not explains it. A small model with a large \
                 vocabulary is like that, and so is a load in which all requests ask for the same."
            .to_owned(),
        proof: vec![proof("sampling_summary.json", "share_pct"), proof("sampling_timing.csv", "sample_time_ms")],
    }
}
