//! Requests that wait to be started.

use profilemate_analysis::findings::queue::{Cause, cause};
use profilemate_analysis::findings::{Direction, Level, Severity, Subject};

use crate::server::{DECODE, Server, Step, UNKNOWN, changes, ids, number, of, weight};

/// As many run as may; the KV cache is half full.
const QUEUED: Step = Step { waiting: 3, limited_by: "max_num_seqs", held: 500, ..DECODE };

#[test]
fn requests_that_wait_for_others_to_end_may_run_if_there_is_room_for_them() {
    let mut server = Server::new();
    server.requests(60);
    server.steps(150, QUEUED);
    server.steps(50, DECODE);
    let mut findings = server.find();
    assert_eq!(ids(&findings), ["max-num-seqs-too-low"]);
    let finding = of(&findings, "max-num-seqs-too-low");
    assert_eq!(weight(finding), (Severity::Warning, Level::High));
    // The peak is 60 %, so 85 / 60 times as many fit: 11.
    assert_eq!(changes(finding), [("--max-num-seqs", Direction::Raise, Some("11"), Some("8"))]);
    assert_eq!(number(finding, "steps_with_a_queue"), 75.0);
    assert_eq!(number(finding, "queued_steps_limited_by_max_num_seqs"), 100.0);
    assert_eq!(number(finding, "mean_waiting_requests"), 3.0);
    assert_eq!(number(finding, "peak_kv_cache_usage"), 60.0);
    // A low use of the token budget is evidence of the limit, not another finding.
    assert_eq!(number(finding, "mean_token_utilization_in_those"), 100.0 * 8.0 / 2048.0);
    assert_eq!(number(finding, "longest_queue"), 150.0 * 9.1e-3);

    // Since 0.32 another limit may be the lower one.
    server.engine.fact("setting:max_num_active_seqs", "4");
    findings = server.find();
    assert_eq!(
        changes(of(&findings, "max-num-seqs-too-low")),
        [("--max-num-active-seqs", Direction::Raise, Some("5"), Some("4"))]
    );
    server.engine.fact("setting:max_num_active_seqs", "None");

    // What the KV cache holds is not known: less sure, and the value a guess.
    let mut answers = server.answers();
    answers.kv_cache = None;
    findings = profilemate_analysis::findings::find(&answers);
    let finding = of(&findings, "max-num-seqs-too-low");
    assert_eq!(weight(finding), (Severity::Warning, Level::Low));
    assert_eq!(changes(finding), [("--max-num-seqs", Direction::Raise, Some("16"), Some("8"))]);
}

#[test]
fn where_the_kv_cache_has_no_room_more_requests_are_not_advised() {
    let mut server = Server::new();
    server.requests(60);
    server.steps(200, Step { held: 790, ..QUEUED });
    let findings = server.find();
    let finding = of(&findings, "queue-at-capacity");
    assert_eq!((finding.severity, finding.changes.len()), (Severity::Info, 0));
    assert!(findings.is_all_well());
    // It comes before what is only good news.
    server.prefix_cache(20_000, 10_000, 0);
    assert_eq!(ids(&server.find()), ["queue-at-capacity", "prefix-cache-effect"]);
}

#[test]
fn a_queue_that_comes_and_goes_is_none() {
    let short = Step { forward_us: 4_000, ..QUEUED };
    let nearly: [(&str, Vec<(u64, Step)>); 4] = [
        ("in 49.5 % of the steps", vec![(150, QUEUED), (153, DECODE)]),
        ("never for long", (0..4).flat_map(|_| [(99, QUEUED), (1, DECODE)]).collect()),
        ("for less than a second", vec![(240, short), (1, DECODE)]),
        ("too few steps", vec![(199, QUEUED)]),
    ];
    for (what, parts) in nearly {
        let mut server = Server::new();
        server.run(&parts);
        let found = ids(&server.find());
        // 240 steps of 4.1 ms are 0.98 s.
        assert!(!found.iter().any(|id| id.starts_with("queue-") || id.starts_with("max-")), "{what}: {found:?}");
    }
}

#[test]
fn a_log_that_does_not_say_who_waits_tells_of_no_queue_and_of_none_missing() {
    let mut server = Server::new();
    server.steps(250, Step { waiting: UNKNOWN, limited_by: "", ..DECODE });
    let findings = server.find();
    assert!(findings.findings.is_empty(), "{findings:#?}");
    let of_queue = findings.not_judged.iter().find(|of| of.subject == Subject::Queue).unwrap();
    assert_eq!(of_queue.reason, "how many requests waited was not recorded");
}

#[test]
fn sessions_that_wait_for_input_are_no_queue() {
    let mut server = Server::new();
    server.steps(250, Step { waiting: 5, ..DECODE });
    let answers = server.answers();
    assert_eq!(answers.batch.as_ref().unwrap().queue.steps, 0);
    assert_eq!(cause(&answers), None);
}

#[test]
fn a_queue_that_no_limit_causes_blames_no_limit() {
    for (limited_by, id, severity) in [
        ("structured_output", "queue-structured-output", Severity::Warning),
        ("remote_kv", "queue-remote-kv", Severity::Warning),
        ("paused", "queue-paused", Severity::Info),
        ("other", "queue-cause-unknown", Severity::Info),
        ("", "queue-cause-unknown", Severity::Info),
        // The budget is used up, but not by prompts alone: 60 % of it are.
        ("token_budget", "queue-token-budget", Severity::Info),
    ] {
        let mut server = Server::new();
        server.steps(250, Step { limited_by, tokens: 1300, prefill: 1200, ..QUEUED });
        let findings = server.find();
        let finding = of(&findings, id);
        assert_eq!((finding.severity, finding.changes.len()), (severity, 0), "{limited_by}");
    }
}

#[test]
fn a_queue_of_many_causes_has_none() {
    let mut server = Server::new();
    for limited_by in ["max_num_seqs", "token_budget", "structured_output"] {
        server.steps(80, Step { limited_by, ..QUEUED });
    }
    let (cause, share) = cause(&server.answers()).unwrap();
    assert_eq!((cause, share), (Cause::Mixed, 100.0 / 3.0));
    assert_eq!(ids(&server.find()), ["queue-mixed-causes"]);
    // Half of the steps are enough for a cause.
    let mut server = Server::new();
    for limited_by in ["structured_output", "token_budget", "structured_output", "max_num_seqs"] {
        server.steps(60, Step { limited_by, ..QUEUED });
    }
    assert_eq!(ids(&server.find()), ["queue-structured-output"]);
}
