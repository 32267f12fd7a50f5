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
    let mut front = Log::new("api_server", 0, 0, 7000, 1);
    front.span(1_500, 10, 0, "garbage_collection", (1, 0), "");
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
