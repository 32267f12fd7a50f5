//! Workers of one engine against each other.

use profilemate_analysis::Answers;
use profilemate_analysis::findings::{Direction, Findings, Level, Severity, Subject, find};
use profilemate_format::record::Schedule;

use crate::common::Log;
use crate::server::{changes, ids, number, of, weight};

/// A pass of each rank: when it begins after the step, and how long it takes, microseconds.
type Passes = [(u64, u64); 2];

/// An engine of two workers without a GPU, and steps of these kinds.
fn tensor_parallel(parts: &[(u64, Passes)], facts: &[(&str, &str)]) -> Answers {
    let mut engine = Log::new("engine_core", 0, 0, 6001, 1);
    engine.fact("profiler:forward_pass_timing", "on");
    for (key, value) in facts {
        engine.fact(key, value);
    }
    let mut workers = [Log::new("worker", 0, 0, 6002, 6001), Log::new("worker", 1, 0, 6003, 6001)];
    let mut step = 0;
    for (count, passes) in parts {
        for _ in 0..*count {
            step += 1;
            let us = 10_000 + step * 20_000;
            engine.schedule(
                us,
                step,
                Schedule { num_seqs: 4, num_tokens: 4, running: Some(4), ..Schedule::default() },
            );
            for (worker, (late_us, long_us)) in workers.iter_mut().zip(passes) {
                worker.span(us + 100 + late_us, *long_us, step, "forward", (4 | 4 << 32, 4), "");
            }
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let raw = folder.path().join("raw");
    std::fs::create_dir(&raw).unwrap();
    engine.write(&raw);
    for worker in &workers {
        worker.write(&raw);
    }
    let session = profilemate_session::Session::open(folder.path()).unwrap();
    profilemate_analysis::analyze::<profilemate_session::Error>(&session, |_| Ok(())).unwrap()
}

/// Rank 1 begins a tenth of a pass late; rank 0 waits for it in its own pass.
const LATE: Passes = [(0, 10_000), (1_000, 9_000)];
const EVEN: Passes = [(0, 10_000), (0, 10_000)];
/// Rank 1 takes a quarter longer, although it does not begin earlier.
const SLOW: Passes = [(0, 8_000), (0, 10_000)];

fn found(parts: &[(u64, Passes)], facts: &[(&str, &str)]) -> Findings {
    find(&tensor_parallel(parts, facts))
}

#[test]
fn a_rank_that_begins_late_keeps_the_others_waiting() {
    let findings = found(&[(140, LATE), (60, EVEN)], &[]);
    assert_eq!(ids(&findings), Vec::<&str>::new(), "on average it is 7 % late");
    let findings = found(&[(200, LATE)], &[]);
    assert_eq!(ids(&findings), ["rank-late"]);
    let finding = of(&findings, "rank-late");
    // Without a GPU nobody knows whether the others wait.
    assert_eq!(weight(finding), (Severity::Warning, Level::Low));
    assert_eq!(number(finding, "rank"), 1.0);
    assert_eq!(number(finding, "mean_time_behind_the_first_rank"), 1.0);
    assert_eq!(number(finding, "steps_in_which_it_began_last"), 100.0);
    assert_eq!(changes(finding), [("--numa-bind", Direction::Set, None, None)]);
    let findings = found(&[(200, LATE)], &[("setting:numa_bind", "True")]);
    assert_eq!(of(&findings, "rank-late").changes, []);
}

#[test]
fn ranks_that_are_late_in_turn_are_not_one_that_is_late() {
    let other: Passes = [(1_500, 8_500), (0, 10_000)];
    let much: Passes = [(0, 10_000), (1_500, 8_500)];
    assert!(ids(&found(&[(138, much), (62, other)], &[])).is_empty(), "69 % of the steps");
    assert_eq!(ids(&found(&[(140, much), (60, other)], &[])), ["rank-late"], "70 %");
    let findings = found(&[(199, LATE)], &[]);
    assert!(findings.findings.is_empty(), "too few steps");
    assert!(
        findings.not_judged.iter().any(|of| of.subject == Subject::Ranks && of.reason.starts_with("199 steps"))
    );
}

#[test]
fn a_late_host_whose_gpu_is_busy_is_ahead_of_it() {
    use profilemate_analysis::forward::{Bubble, GpuTime};
    let mut answers = tensor_parallel(&[(200, LATE)], &[("gpu_name", "Some GPU")]);
    let gpu = |process: &str, idle_ns| GpuTime {
        process: process.to_owned(),
        steps: 200,
        busy_ns: 1_000,
        idle_ns,
        decoding: Bubble { steps: 200, busy_ns: 1_000 - idle_ns, idle_ns },
    };
    answers.gpu = vec![gpu("worker-0", 20), gpu("worker-1", 69)];
    assert!(!ids(&find(&answers)).contains(&"rank-late"), "4.9 % more");
    answers.gpu[1] = gpu("worker-1", 70);
    let findings = find(&answers);
    assert_eq!(weight(of(&findings, "rank-late")), (Severity::Warning, Level::Medium));
    assert_eq!(number(of(&findings, "rank-late"), "its_gpu_idle_in_decoding"), 7.0);
}

#[test]
fn a_rank_that_takes_longer_than_the_others() {
    let findings = found(&[(200, SLOW)], &[]);
    assert_eq!(ids(&findings), ["rank-slow"]);
    let finding = of(&findings, "rank-slow");
    assert_eq!((weight(finding), finding.changes.len()), ((Severity::Warning, Level::Low), 0));
    assert_eq!(number(finding, "time_that_ranks_wait_for_the_longest_pass"), 10.0);
    let experts = [("setting:enable_expert_parallel", "True")];
    let findings = found(&[(200, SLOW)], &experts);
    assert_eq!(changes(of(&findings, "rank-slow"))[0].0, "--enable-eplb");
    for (what, parts) in [
        ("9.9 % of the time is spent waiting", vec![(198, SLOW), (2, EVEN)]),
        ("each is slow in turn", vec![(138, SLOW), (62, [(0, 10_000), (0, 8_000)])]),
        // Its pass is long because it waits for the other.
        ("it begins first", vec![(200, [(0, 10_000), (500, 8_000)])]),
        ("too few steps", vec![(199, SLOW)]),
    ] {
        assert!(ids(&found(&parts, &[])).is_empty(), "{what}");
    }
}
