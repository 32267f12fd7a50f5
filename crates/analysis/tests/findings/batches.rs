//! Token utilization.

use profilemate_analysis::findings::{Direction, Level, Severity, Subject};

use crate::server::{DECODE, PROMPT, Server, Step, changes, ids, number, of, weight};

/// Prompts that fill the budget, with others behind them.
const CROWD: Step = Step { waiting: 5, limited_by: "token_budget", ..PROMPT };

#[test]
fn prompts_that_fill_the_budget_and_keep_others_waiting_want_a_larger_one() {
    let mut server = Server::new();
    server.steps(60, CROWD);
    server.steps(150, DECODE);
    let findings = server.find();
    assert_eq!(ids(&findings), ["token-budget-exhausted"]);
    let finding = of(&findings, "token-budget-exhausted");
    assert_eq!(weight(finding), (Severity::Warning, Level::Medium));
    assert_eq!(changes(finding), [("--max-num-batched-tokens", Direction::Raise, Some("8192"), Some("2048"))]);
    assert_eq!(number(finding, "steps_limited_by_token_budget"), 100.0 * 60.0 / 210.0);
    assert_eq!(number(finding, "token_utilization_of_steps_with_prompts"), 100.0);
    assert!(!findings.is_all_well());
}

#[test]
fn a_budget_that_is_large_is_not_to_blame() {
    let mut server = Server::new();
    server.engine.limits(2_000, 8, 16384);
    server.steps(60, Step { tokens: 16384, prefill: 16384, ..CROWD });
    server.steps(150, DECODE);
    let finding = of(&server.find(), "token-budget-exhausted").clone();
    assert_eq!((finding.severity, finding.changes.len()), (Severity::Info, 0));
}

#[test]
fn a_budget_that_is_filled_is_no_fault_by_itself() {
    let nearly: [(&str, &[(u64, Step)]); 4] = [
        ("nobody waits behind the prompts", &[(60, Step { waiting: 0, ..CROWD }), (150, DECODE)]),
        ("few steps are limited by it", &[(49, CROWD), (151, DECODE)]),
        (
            "prompts leave room: 94.9 % of the budget",
            &[(60, CROWD), (100, Step { tokens: 1880, prefill: 1880, ..PROMPT }), (40, DECODE)],
        ),
        ("too few steps", &[(100, CROWD), (99, DECODE)]),
    ];
    for (what, parts) in nearly {
        let mut server = Server::new();
        server.run(parts);
        assert!(!ids(&server.find()).contains(&"token-budget-exhausted"), "{what}");
    }
}

#[test]
fn small_batches_of_a_server_that_few_ask_are_no_fault() {
    let mut server = Server::new();
    server.steps(200, DECODE);
    let findings = server.find();
    assert_eq!(ids(&findings), ["load-below-capacity"]);
    let finding = of(&findings, "load-below-capacity");
    assert_eq!(weight(finding), (Severity::Info, Level::High));
    assert_eq!(number(finding, "steps_without_a_waiting_request"), 100.0);
    assert_eq!(number(finding, "mean_token_utilization"), 100.0 * 8.0 / 2048.0);
    assert!(findings.is_all_well(), "nothing has to change");
}

#[test]
fn a_server_is_not_called_idle_if_it_is_not() {
    let queued = Step { waiting: 1, limited_by: "max_num_seqs", ..DECODE };
    for (what, parts) in [
        ("somebody waits in 11 % of the steps", [(178, DECODE), (22, queued)]),
        // 60.1 % of the budget, with nobody waiting.
        (
            "batches are large",
            [
                (100, Step { tokens: 1231, prefill: 1000, ..DECODE }),
                (100, Step { tokens: 1231, prefill: 1000, ..DECODE }),
            ],
        ),
        ("too few steps", [(100, DECODE), (99, DECODE)]),
    ] {
        let mut server = Server::new();
        server.run(&parts);
        assert!(!ids(&server.find()).contains(&"load-below-capacity"), "{what}");
    }
}

#[test]
fn what_cannot_be_judged_is_said() {
    let mut server = Server::new();
    server.steps(150, DECODE);
    let findings = server.find();
    assert!(findings.findings.is_empty());
    assert!(!findings.is_anything_judged() && !findings.is_all_well());
    let reasons: Vec<(Subject, &str)> =
        findings.not_judged.iter().map(|not_judged| (not_judged.subject, not_judged.reason.as_str())).collect();
    assert_eq!(
        reasons,
        [
            (Subject::Batches, "150 steps, 200 are needed"),
            (Subject::Queue, "150 steps, 200 are needed"),
            (Subject::Preemption, "0 requests, 50 are needed"),
            (Subject::KvCache, "150 calls of the scheduler, 200 are needed"),
            (Subject::CudaGraphs, "150 steps, 200 are needed"),
            (Subject::Encoder, "the profiler of encoders and decoder was not on"),
            // Before the first step there was none to be idle since.
            (Subject::Host, "150 steps, 200 are needed"),
            (Subject::GarbageCollection, "no collection was recorded"),
            (Subject::Ranks, "no engine has several workers whose passes are known"),
            (Subject::MoeExperts, "no expert was counted"),
            (Subject::Sampling, "the profiler of sampling was not on, or nothing was sampled"),
        ]
    );
}
