//! What the GPU and the clients wait for.

use profilemate_analysis::findings::{Direction, Level, Severity};

use crate::server::{DECODE, PROMPT, Server, Step, changes, ids, number, of, weight};

/// A tenth of the time is idle.
const IDLE: Step = Step { forward_us: 9_000, idle_us: 1_000, ..DECODE };

fn decoding(is_ahead: bool, step: Step, count: u64) -> Server {
    let mut server = Server::new();
    server.is_ahead = is_ahead;
    server.steps(count, step);
    server
}

#[test]
fn a_gpu_that_waits_for_the_next_step_wants_it_put_together_ahead() {
    let mut server = decoding(false, IDLE, 201);
    server.engine.fact("setting:async_scheduling", "False");
    let findings = server.find();
    let finding = of(&findings, "cpu-bound-decoding");
    assert_eq!(weight(finding), (Severity::Warning, Level::High));
    assert_eq!(number(finding, "gpu_idle_in_decoding"), 10.0);
    assert_eq!(number(finding, "steps_put_together_ahead"), 0.0);
    assert_eq!(changes(finding), [("--async-scheduling", Direction::Set, None, Some("False"))]);
    // A third of the time is much.
    let findings = decoding(false, Step { idle_us: 4_500, ..IDLE }, 201).find();
    assert_eq!(of(&findings, "cpu-bound-decoding").severity, Severity::Critical);
}

#[test]
fn a_host_that_is_slow_ahead_of_time_too_has_no_flag() {
    let findings = decoding(true, IDLE, 201).find();
    let finding = of(&findings, "cpu-bound-decoding");
    assert_eq!((weight(finding), finding.changes.len()), ((Severity::Warning, Level::Medium), 0));
    assert_eq!(number(finding, "steps_put_together_ahead"), 100.0);
}

#[test]
fn a_gpu_that_waits_for_something_else_is_not_the_hosts_fault() {
    for (what, server) in [
        ("9.9 % of the time", decoding(false, Step { idle_us: 985, ..IDLE }, 300)),
        ("too few steps", decoding(false, IDLE, 200)),
        // Requests come one by one: before each prompt, the server has nothing to do.
        ("nobody asks", {
            let mut server = Server::new();
            for _ in 0..50 {
                server.steps(1, Step { idle_us: 900_000, ..PROMPT });
                server.steps(10, DECODE);
            }
            server
        }),
    ] {
        assert!(!ids(&server.find()).contains(&"cpu-bound-decoding"), "{what}");
    }
}

#[test]
fn without_graphs_the_host_is_slow_for_that_reason() {
    let findings = decoding(false, Step { graph: "NONE", ..IDLE }, 250).find();
    assert!(!ids(&findings).contains(&"cpu-bound-decoding"));
    assert_eq!(number(of(&findings, "cuda-graph-coverage-low"), "gpu_idle_in_decoding"), 10.0);
}

#[test]
fn a_front_end_that_hardly_keeps_up_wants_company() {
    let findings = decoding(true, Step { output_us: 7_035, forward_us: 9_900, ..DECODE }, 201).find();
    let finding = of(&findings, "front-end-busy");
    assert_eq!(weight(finding), (Severity::Warning, Level::Medium));
    assert_eq!(number(finding, "front_end_busy_with_outputs"), 70.0);
    assert_eq!(changes(finding), [("--api-server-count", Direction::Raise, Some("2"), Some("1"))]);
    let light = Step { output_us: 7_000, forward_us: 9_900, ..DECODE };
    assert!(!ids(&decoding(true, light, 201).find()).contains(&"front-end-busy"), "69.7 %");
    assert!(
        !ids(&decoding(true, Step { output_us: 9_000, ..light }, 200).find()).contains(&"front-end-busy"),
        "few"
    );
    // An offline run has one front end.
    let mut server = decoding(true, Step { output_us: 9_000, ..light }, 201);
    server.front.fact("command", "python bench.py");
    assert_eq!(of(&server.find(), "front-end-busy").changes, []);
}
