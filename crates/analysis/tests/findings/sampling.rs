//! Sampling, and what its features cost.

use profilemate_analysis::findings::{Direction, Level, Severity, Subject};
use profilemate_format::record::{Label, Payload, SamplingMix};

use crate::server::{DECODE, Server, Step, changes, ids, number, of, weight};

const GREEDY: SamplingMix = mix(8);
const RANDOM: SamplingMix = mix(0);

/// Eight sequences, of which so many are greedy.
const fn mix(greedy: u16) -> SamplingMix {
    SamplingMix {
        sequences: Some(8),
        greedy: Some(greedy),
        top_k: Some(0),
        top_p: Some(0),
        min_p: Some(0),
        penalties: Some(0),
        logprobs: Some(0),
        prompt_logprobs: Some(0),
        structured_output: Some(0),
        logit_bias: Some(0),
        bad_words: Some(0),
        allowed_token_ids: Some(0),
        min_tokens: Some(0),
        seeded: Some(0),
        most_logprobs: None,
    }
}

/// A server whose decode steps of 9 ms ask for this and sample for so many microseconds.
fn sampling(parts: &[(u64, SamplingMix, u32)]) -> Server {
    let mut server = Server::new();
    server.worker.fact("profiler:sampling_timing", "on");
    let mut step = 0;
    for (count, mix, sample_us) in parts {
        for _ in 0..*count {
            step += 1;
            let us = server.us;
            server.worker.push(us, step, Label::Work, 0, Payload::SamplingMix(*mix));
            server.worker.span(us, 40, step, "sampling", (0, 0), "");
            server.steps(1, Step { sample_us: *sample_us, ..DECODE });
        }
    }
    server
}

#[test]
fn a_feature_that_costs_a_tenth_is_a_finding() {
    // 200 steps of 9.2 ms and 200 of 12 ms: penalties cost 560 of 4,240 ms.
    let penalties = SamplingMix { penalties: Some(1), ..GREEDY };
    let findings = sampling(&[(200, GREEDY, 200), (200, penalties, 3_000)]).find();
    let finding = of(&findings, "sampling-feature-costs");
    assert_eq!(weight(finding), (Severity::Warning, Level::Medium));
    assert_eq!(finding.title, "Sampling with penalties takes 13.2 % of sampling and forward passes");
    assert!((number(finding, "cost_in_a_step") - 2.8).abs() < 1e-3);
    assert_eq!(number(finding, "steps_with_it"), 200.0);
    assert_eq!(changes(finding), [("--generation-config", Direction::Set, Some("vllm"), None)]);
    assert!(!ids(&findings).contains(&"sampling-takes-the-time"));
}

#[test]
fn the_feature_that_costs_most_in_all_is_named() {
    // Structured output is slower in a step, log probabilities in all of them.
    let logprobs = SamplingMix { logprobs: Some(8), ..GREEDY };
    let grammar = SamplingMix { structured_output: Some(1), ..GREEDY };
    let mut server = sampling(&[(200, GREEDY, 200), (300, logprobs, 1_200), (30, grammar, 3_000)]);
    server.engine.fact("setting:max_logprobs", "20");
    let findings = server.find();
    let finding = of(&findings, "sampling-feature-costs");
    assert_eq!(weight(finding).0, Severity::Info);
    assert!(finding.title.starts_with("Sampling with log probabilities takes"), "{}", finding.title);
    assert_eq!(changes(finding), [("--max-logprobs", Direction::Lower, None, Some("20"))]);
}

#[test]
fn a_cost_is_that_of_what_was_added() {
    // Random sampling costs little; top-k and top-p what is more than that, in two mixes.
    let top_k = SamplingMix { top_k: Some(8), ..RANDOM };
    let both = SamplingMix { top_p: Some(8), ..top_k };
    let mut server = sampling(&[(100, GREEDY, 200), (100, RANDOM, 300), (100, top_k, 400), (100, both, 3_400)]);
    server.engine.fact("setting:generation_config", "vllm");
    let findings = server.find();
    let finding = of(&findings, "sampling-feature-costs");
    assert!(finding.title.starts_with("Sampling with top-p takes"), "{}", finding.title);
    assert!((number(finding, "cost_in_a_step") - 3.0).abs() < 1e-3);
    // Nobody but the requests asks for it.
    assert_eq!(changes(finding), []);
}

#[test]
fn sampling_that_no_feature_explains_is_good_to_know() {
    // 2.25 of 11.25 ms.
    let findings = sampling(&[(200, GREEDY, 2_250)]).find();
    let finding = of(&findings, "sampling-takes-the-time");
    assert_eq!(weight(finding), (Severity::Info, Level::High));
    assert!((number(finding, "sampling_of_sampling_and_forward") - 20.0).abs() < 1e-3);
    assert!(findings.is_all_well());
}

#[test]
fn what_costs_little_or_was_hardly_seen_is_none() {
    let penalties = SamplingMix { penalties: Some(8), ..GREEDY };
    for (what, server) in [
        ("4.7 %", sampling(&[(200, GREEDY, 100), (200, penalties, 1_000)])),
        ("19 steps without it", sampling(&[(19, GREEDY, 200), (200, penalties, 2_000)])),
        ("19 % of the time", sampling(&[(200, GREEDY, 2_111)])),
        ("199 steps", sampling(&[(100, GREEDY, 200), (99, penalties, 9_000)])),
    ] {
        let findings = server.find();
        assert!(!ids(&findings).iter().any(|id| id.starts_with("sampling")), "{what}: {findings:#?}");
    }
}

#[test]
fn times_that_are_not_known_are_not_judged() {
    let mut server = sampling(&[(200, GREEDY, 0)]);
    let reason = |server: &Server| {
        let findings = server.find();
        let found = findings.not_judged.into_iter().find(|not_judged| not_judged.subject == Subject::Sampling);
        found.map(|not_judged| (not_judged.reason, not_judged.is_there))
    };
    let unknown = "no step has times of both sampling and forward pass".to_owned();
    assert_eq!(reason(&server), Some((unknown, true)));
    server = sampling(&[(199, GREEDY, 200)]);
    assert_eq!(reason(&server), Some(("199 steps that sample, 200 are needed".to_owned(), true)));
    server = Server::new();
    server.steps(200, DECODE);
    assert!(!reason(&server).unwrap().1);
}
