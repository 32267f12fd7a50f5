//! Pauses of Python's garbage collector.

#![allow(clippy::unwrap_used, reason = "a test")]

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "../../session/tests/common/mod.rs"]
mod common;

use common::Log;
use profilemate_analysis::cpu::Remark;
use profilemate_analysis::{Answers, Row, analyze};
use profilemate_format::record::Label;
use profilemate_session::{Error, Name, Session};

fn analyzed(logs: &[Log]) -> (Vec<(Option<u64>, u64, String)>, Answers) {
    let folder = tempfile::tempdir().unwrap();
    let raw = folder.path().join("raw");
    std::fs::create_dir(&raw).unwrap();
    for log in logs {
        log.write(&raw);
    }
    let session = Session::open(folder.path()).unwrap();
    let mut rows = Vec::new();
    let answers = analyze::<Error>(&session, |row| {
        if let Row::Cpu(operation) = row
            && operation.name == Name::GarbageCollection
        {
            let Remark::Generation(generation) = operation.remark else { panic!("{operation:?}") };
            rows.push((operation.step, generation, operation.process.to_owned()));
        }
        Ok(())
    })
    .unwrap();
    (rows, answers)
}

#[test]
fn pauses_are_added_up_by_process_and_warm_up_is_none_of_them() {
    let mut engine = Log::new("engine_core", 0, 0, 7001, 1);
    engine.role("worker", 0, 0);
    engine.fact("profiler:cpu_timing", "on");
    engine.labelled(Label::WarmUp, 100, 700, 0, "garbage_collection", (2, 5), "");
    engine.span(1_000, 100, 1, "garbage_collection", (0, (1 << 32) + 40), "");
    engine.span(2_000, 300, 1, "garbage_collection", (0, 2), "");
    engine.span(3_000, 50_000, 7, "garbage_collection", (2, 1_000), "");
    engine.span(900, 60_000, 1, "engine_step", (0, 0), "");
    let mut front = Log::new("api_server", 0, 0, 7000, 1);
    front.span(1_500, 10, 0, "garbage_collection", (1, 0), "");
    front.span(1_400, 200, 0, "tokenization", (0, 0), "");
    let silent = Log::new("worker", 1, 0, 7002, 7001);
    let (rows, answers) = analyzed(&[engine, front, silent]);
    let expected = [
        (Some(1), 0, "engine_core-0"),
        (None, 1, "api_server-0"),
        (Some(1), 0, "engine_core-0"),
        (Some(7), 2, "engine_core-0"),
    ];
    assert_eq!(rows, expected.map(|(step, generation, process)| (step, generation, process.to_owned())));
    let [front, engine] = answers.garbage.as_slice() else { panic!("{:?}", answers.garbage) };
    assert_eq!((front.process.as_str(), front.count, front.total_ms), ("api_server-0", 1, 0.01));
    assert_eq!((engine.pid, engine.count, engine.oldest_count), (7001, 3, 1));
    assert_eq!((engine.total_ms, engine.oldest_total_ms, engine.max_ms), (50.4, 50.0, 50.0));
    // numpy.percentile([0.1, 0.3, 50], 99)
    assert!((engine.p99_ms - 49.006).abs() < 1e-9);
    assert_eq!(engine.collected, 1_042);
}

/// An engine that begins its work at 10 ms, waits for requests from 30 to 50 ms, and ends it at 70 ms.
fn working_engine(pauses: &[(u64, u64)]) -> Log {
    let mut engine = Log::new("engine_core", 0, 0, 7001, 1);
    engine.role("worker", 0, 0);
    engine.fact("profiler:cpu_timing", "on");
    // It waits for its first request, and for one that never comes.
    engine.span(5_000, 5_000, 0, "engine_idle", (0, 0), "");
    engine.span(10_000, 20_000, 1, "engine_step", (0, 0), "");
    engine.span(30_000, 20_000, 0, "engine_idle", (0, 0), "");
    engine.span(50_000, 20_000, 2, "engine_step", (0, 0), "");
    engine.span(70_000, 20_000, 0, "engine_idle", (0, 0), "");
    for (us, long_us) in pauses {
        engine.span(*us, *long_us, 2, "garbage_collection", (2, 0), "");
    }
    engine
}

#[test]
fn pauses_before_the_first_work_and_behind_the_last_are_none() {
    // It loads, waits for its first request, waits for more, shuts down.
    let (rows, answers) =
        analyzed(&[working_engine(&[(0, 4_000), (6_000, 4_000), (70_000, 10_000), (95_000, 500_000)])]);
    assert_eq!((rows.len(), answers.garbage.len()), (0, 0), "{:?}", answers.garbage);
    assert!(answers.cpu.unwrap().operations.iter().all(|(name, _)| *name != Name::GarbageCollection));
    // Nearly so: they reach a microsecond into the work.
    let (rows, answers) = analyzed(&[working_engine(&[(5_000, 5_001), (69_999, 500_000)])]);
    assert_eq!(rows.len(), 2);
    // What lies in the waiting stopped nobody.
    assert_eq!((answers.garbage[0].count, answers.garbage[0].total_ms), (2, 0.001 + 480.0));
    // A process without any work.
    let mut silent = Log::new("engine_core", 0, 0, 7001, 1);
    silent.fact("profiler:cpu_timing", "on");
    silent.span(10, 700, 0, "garbage_collection", (2, 5), "");
    let (rows, answers) = analyzed(&[silent]);
    assert_eq!((rows.len(), answers.garbage.len()), (0, 0));
}

#[test]
fn pauses_while_the_engine_waits_for_requests_are_in_the_table_alone() {
    let (rows, answers) = analyzed(&[working_engine(&[(31_000, 9_000)])]);
    assert_eq!((rows.len(), answers.garbage.len()), (1, 0));
    // One that began before it, one in which a request came, and one in a worker of its own.
    let mut worker = Log::new("worker", 1, 0, 7002, 7001);
    worker.span(11_000, 50_000, 1, "model_execution", (0, 0), "");
    worker.span(32_000, 1_000, 1, "garbage_collection", (2, 0), "");
    worker.span(49_000, 3_000, 1, "garbage_collection", (2, 0), "");
    let (rows, answers) = analyzed(&[working_engine(&[(28_000, 5_000), (45_000, 6_000)]), worker]);
    assert_eq!(rows.len(), 4);
    let found: Vec<_> = answers.garbage.iter().map(|of| (of.pid, of.count, of.total_ms, of.max_ms)).collect();
    assert_eq!(found, [(7001, 2, 3.0, 2.0), (7002, 1, 2.0, 2.0)]);
    // A front end may have requests that have not come to the engine.
    let mut front = Log::new("api_server", 0, 0, 7000, 1);
    front.span(1_000, 60_000, 0, "tokenization", (0, 0), "");
    front.span(32_000, 1_000, 0, "garbage_collection", (2, 0), "");
    let (_, answers) = analyzed(&[working_engine(&[]), front]);
    assert_eq!((answers.garbage[0].process.as_str(), answers.garbage[0].total_ms), ("api_server-0", 1.0));
}
