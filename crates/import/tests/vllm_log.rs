//! Logs of vLLM made into sessions: those of two real servers that were recorded at the same time, and made-up ones.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use profilemate_analysis::batch::Batch;
use profilemate_analysis::facts::Profiler;
use profilemate_analysis::kv_cache::Usage;
use profilemate_analysis::processes::Ending;
use profilemate_analysis::{Answers, Row, analyze};
use profilemate_import::vllm_log::{Engine, Error, Imported, Lines, import};
use profilemate_session::{Edge, Error as SessionError, Event, Label, Name, Session};
use proptest::prelude::*;

/// 2026-11-24 20:40 UTC.
const UNTIL: i64 = 1_795_552_800;

fn imported(log: &str) -> (tempfile::TempDir, Imported) {
    let output = tempfile::tempdir().unwrap();
    let imported = import(log.as_bytes(), "vllm.log", UNTIL, output.path()).unwrap();
    (output, imported)
}

fn refused(log: &str) -> Error {
    let output = tempfile::tempdir().unwrap();
    let error = import(log.as_bytes(), "vllm.log", UNTIL, output.path()).unwrap_err();
    assert_eq!(fs::read_dir(output.path()).unwrap().count(), 0, "something was left behind");
    error
}

fn events(session: &Session) -> Vec<Event> {
    let mut events = session.events().unwrap();
    let mut all = Vec::new();
    while let Some(event) = events.next_event().unwrap() {
        all.push(event);
    }
    all
}

/// Of a batch: when, sequences, tokens, prefill tokens, step.
type Seen = (i64, u32, u32, u32, u64);

fn seen(batch: &Batch<'_>) -> Seen {
    (batch.start_ns, batch.num_seqs, batch.num_tokens, batch.prefill_tokens, batch.step.unwrap())
}

fn analyzed(session: &Session) -> (Answers, Vec<Seen>, Vec<f64>) {
    let (mut batches, mut usages) = (Vec::new(), Vec::new());
    let answers = analyze::<SessionError>(session, |row| {
        match row {
            Row::Batch(batch) => batches.push(seen(&batch)),
            Row::KvUsage(Usage { used, total, .. }) => usages.push(100.0 * f64::from(used) / f64::from(total)),
            _ => {}
        }
        Ok(())
    })
    .unwrap();
    (answers, batches, usages)
}

/// A real session: imported from the log of vLLM, and as ProfileMate recorded it at the same time.
struct Real {
    _output: tempfile::TempDir,
    imported: Imported,
    session: Session,
    recorded: Session,
}

impl Real {
    fn new(name: &str) -> Self {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let log = fs::read_to_string(here.join("tests/logs").join(format!("{name}.log"))).unwrap();
        let recorded = Session::open(&here.join("../session/tests/golden/v1").join(name)).unwrap();
        let output = tempfile::tempdir().unwrap();
        let until = i64::try_from(recorded.start.realtime_ns / 1_000_000_000).unwrap() + 3600;
        let imported = import(log.as_bytes(), name, until, output.path()).unwrap();
        let session = Session::open(&imported.folder).unwrap();
        Self { _output: output, imported, session, recorded }
    }
}

/// By step: begin and end, nanoseconds since 1970.
fn times(session: &Session, wanted: Name) -> BTreeMap<u64, [i64; 2]> {
    let start = i64::try_from(session.start.realtime_ns).unwrap();
    events(session)
        .into_iter()
        .filter(|event| event.name == wanted && event.edge == Edge::End && event.record.label == Label::Work)
        .map(|event| (event.record.step, [start + event.start_ns, start + event.end_ns]))
        .collect()
}

#[test]
fn real_logs_say_what_was_recorded() {
    for name in ["real_decode", "real_preempting"] {
        let real = Real::new(name);
        let (answers, ours, usages) = analyzed(&real.session);
        let (recorded_answers, theirs, recorded_usages) = analyzed(&real.recorded);
        let lines = &real.imported.lines;
        assert_eq!((lines.unknown, lines.repeated, lines.without_time, lines.dummy), (0, 0, 0, 0), "{lines:?}");
        assert!(lines.other > 0, "{lines:?}");
        assert_eq!(real.imported.engines[0].missing, 0);
        assert_eq!(real.imported.engines.len(), 1);

        // Every batch, one by one. What comes back after a preemption is generation to vLLM's log, and prefill to us.
        let sizes = |batches: &[Seen]| batches.iter().map(|batch| (batch.1, batch.2)).collect::<Vec<_>>();
        assert_eq!(sizes(&ours), sizes(&theirs), "{name}");
        let again: u32 =
            theirs.iter().map(|batch| batch.3).sum::<u32>() - ours.iter().map(|batch| batch.3).sum::<u32>();
        let preempted = recorded_answers.requests.as_ref().unwrap();
        assert_eq!(u64::from(again) > 0, preempted.preemptions > 0, "{name}: {again}");
        assert!(ours.iter().zip(&theirs).all(|(ours, theirs)| ours.3 <= theirs.3));
        assert_eq!(answers.counters.engine_steps, recorded_answers.counters.engine_steps);

        // The wait for the output lies between the beginning of a step and the moment its results are taken.
        let waits = times(&real.session, Name::Iteration);
        let scheduled = times(&real.recorded, Name::Scheduling);
        let taken = times(&real.recorded, Name::UpdateFromOutput);
        let error = i64::try_from(real.imported.engines[0].error_ns).unwrap();
        let mut worst = 0;
        assert_eq!(waits.len(), theirs.len());
        for ((begin, end), batch) in waits.values().map(|[begin, end]| (begin, end)).zip(&theirs) {
            let [was_scheduled, _] = scheduled[&batch.4];
            let [was_taken, _] = taken[&batch.4];
            // vLLM rounds to 0.01 ms.
            assert!(end - begin <= was_taken - was_scheduled + 10_000, "{name}: step {}", batch.4);
            worst = worst.max((end - was_taken).abs());
        }
        println!("{name}: times are off by up to {worst} ns, said to be {error} ns");
        // And a line is written some milliseconds after its iteration.
        assert!(worst <= error + 50_000_000, "{name}: {worst} > {error}");

        // The KV cache, to the digit that vLLM writes; it looks after the step, when requests may have left.
        let peak = |usages: &[f64]| usages.iter().copied().fold(0.0, f64::max);
        assert_eq!(usages.len(), theirs.len());
        assert!((peak(&usages) - peak(&recorded_usages)).abs() <= 0.05 + f64::EPSILON, "{name}");

        // Who and what.
        assert_eq!(answers.facts.vllm_version.as_deref(), Some("0.32.0"));
        assert_eq!(answers.facts.model, recorded_answers.facts.model);
        let limits = |answers: &Answers| answers.batch.as_ref().unwrap().limits;
        assert_eq!(limits(&answers), limits(&recorded_answers));
        let engine = real.recorded.logs.iter().find(|log| log.main_process() == "engine_core-0").unwrap();
        assert_eq!(answers.processes[0].pid, engine.head.identity.pid);
    }
}

#[test]
fn what_the_log_does_not_say_is_not_said() {
    let real = Real::new("real_preempting");
    let (answers, ..) = analyzed(&real.session);
    assert_eq!(answers.facts.source.as_deref(), Some("vllm log"));
    for profiler in [Profiler::CpuTiming, Profiler::BatchUtilizationTracking, Profiler::KvCacheTracking] {
        assert!(answers.facts.is_on(profiler), "{profiler:?}");
    }
    let absent: Vec<&str> = answers
        .facts
        .profilers
        .iter()
        .filter(|(_, state)| state == "could not attach: not in the log")
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(
        absent,
        [
            "cuda_graph_tracking",
            "moe_expert_tracking",
            "forward_pass_timing",
            "preemption_tracking",
            "encoder_decoder_timing"
        ]
    );
    assert!(!answers.facts.sees_evictions());
    assert!(answers.requests.is_none() && answers.forward.is_none() && answers.cuda_graphs.is_none());
    let counters = &answers.counters;
    assert_eq!(
        (counters.prompt_tokens, counters.generation_tokens, counters.finished_requests),
        (None, None, None)
    );
    assert_eq!((counters.iterations, counters.preemptions, counters.prefix_query_tokens), (None, None, None));
    let kv_cache = &answers.kv_cache.as_ref().unwrap().all;
    assert_eq!((kv_cache.total_blocks, kv_cache.peak_blocks, kv_cache.allocations), (None, None, None));
    assert_eq!(kv_cache.peak_usage_pct(), Some(100.0));
    assert!(answers.batch.as_ref().unwrap().limited_by.is_empty());
    assert_eq!(answers.processes[0].ending, Ending::Unknown);
    assert!(answers.overhead.is_empty());
    assert_eq!(
        (real.session.records_lost(), real.session.records_damaged(), &*real.session.damage),
        (0, 0, &[][..])
    );
    analyze::<SessionError>(&real.session, |row| {
        if let Row::Batch(batch) = row {
            assert_eq!((batch.running, batch.waiting, batch.limited_by), (None, None, None));
        }
        Ok(())
    })
    .unwrap();
}

/// A line of vLLM 0.14 to 0.25.
fn old(engine: &str, second: u32, index: u64, tokens: u32) -> String {
    format!(
        "({engine}) INFO 12-31 23:59:{second:02} [core.py:352] Iteration({index}): 0 context requests, 0 context tokens, \
         {tokens} generation requests, {tokens} generation tokens, iteration elapsed time: 10.00 ms\n"
    )
}

/// A line since 0.26.
fn new(engine: u32, index: u64, kv_usage: &str) -> String {
    format!(
        "(APIServer pid=7) INFO 11-24 20:31:05 [loggers.py:199] Engine {engine:03}: Iteration({index}): 1 context requests, \
         64 context tokens, 0 generation requests, 0 generation tokens, iteration elapsed time: 1.00 ms, GPU KV cache usage: \
         {kv_usage}%\n"
    )
}

fn engine(rank: u32, iterations: u64, missing: u64) -> (u32, u64, u64) {
    (rank, iterations, missing)
}

fn engines(imported: &Imported) -> Vec<(u32, u64, u64)> {
    let of = |of: &Engine| engine(of.rank, of.iterations, of.missing);
    imported.engines.iter().map(of).collect()
}

#[test]
fn each_engine_is_a_process_and_so_is_one_that_was_started_again() {
    let zero = "EngineCore_DP0 pid=10";
    let one = "EngineCore_DP1 pid=11";
    let log: String = [
        old(zero, 1, 0, 4),
        old(one, 1, 0, 5),
        old(zero, 1, 1, 4),
        old(one, 2, 1, 5),
        old(zero, 2, 2, 4),
        // The second engine starts again; it has another process id, or counts from 0 again.
        old("EngineCore_DP1 pid=12", 3, 0, 6),
        old(zero, 4, 0, 7),
    ]
    .concat();
    let (_output, imported) = imported(&log);
    assert_eq!(engines(&imported), [engine(0, 3, 0), engine(1, 2, 0), engine(1, 1, 0), engine(0, 1, 0)]);
    let session = Session::open(&imported.folder).unwrap();
    let names: Vec<&str> = session.logs.iter().map(|log| log.name.as_str()).collect();
    assert_eq!(names, ["engine_core-0-10", "engine_core-0-10~2", "engine_core-1-11", "engine_core-1-12"]);
    let (answers, batches, _) = analyzed(&session);
    assert_eq!(batches.iter().map(|batch| batch.1).collect::<Vec<_>>().len(), 7);
    assert_eq!(answers.counters.engine_steps, 7);
    // No line tells of the cache before 0.26.
    assert!(answers.kv_cache.is_none());
    // The year was over when the log was read.
    let start = session.start.realtime_ns / 1_000_000_000;
    assert_eq!(start, 1_767_225_541, "2025-12-31 23:59:01");
}

#[test]
fn several_api_servers_write_out_of_order_and_lines_may_be_missing_or_there_twice() {
    let log: String = [0, 2, 1, 3, 3, 7, 8]
        .into_iter()
        .map(|index| new(0, index, "4.2"))
        .chain([new(1, 0, "0.1")])
        .chain(["Iteration(9): 3 of something new\n".to_owned(), "\n".to_owned(), "INFO: hello\n".to_owned()])
        .collect();
    let (_output, imported) = imported(&log);
    assert_eq!(engines(&imported), [engine(0, 6, 3), engine(1, 1, 0)]);
    assert_eq!(
        imported.lines,
        Lines {
            all: 11,
            iterations: 7,
            repeated: 1,
            unknown: 1,
            first_unknown: Some(9),
            other: 2,
            ..Lines::default()
        }
    );
    let session = Session::open(&imported.folder).unwrap();
    let (answers, batches, usages) = analyzed(&session);
    let mut steps: Vec<u64> = batches.iter().map(|batch| batch.4).collect();
    steps.sort_unstable();
    assert_eq!(steps, [1, 1, 2, 3, 4, 8, 9]);
    assert_eq!(usages.len(), 7);
    let kv_cache = answers.kv_cache.unwrap();
    assert_eq!(kv_cache.pools.len(), 2);
    assert_eq!(kv_cache.pools[0].peak_usage_pct().map(|share| (share * 1e6).round()), Some(4.2e6));
    assert_eq!(answers.processes.iter().map(|process| process.pid).collect::<Vec<_>>(), [0, 0]);
}

#[test]
fn batches_without_requests_are_no_work() {
    let dummy = "(EngineCore_DP1 pid=5) INFO 11-24 20:31:05 [core.py:459] Iteration(0): 0 context requests, 0 context tokens, \
                 0 generation requests, 0 generation tokens, iteration elapsed time: 5.00 ms (dummy)\n";
    // Up to 0.23, vLLM also says that it scheduled nothing.
    let empty = dummy.replace("Iteration(0)", "Iteration(1)").replace(" (dummy)", "");
    let (_output, imported) = imported(&format!("{dummy}{empty}{}", old("EngineCore_DP1 pid=5", 6, 2, 3)));
    assert_eq!((imported.lines.iterations, imported.lines.dummy), (3, 1));
    let session = Session::open(&imported.folder).unwrap();
    let (answers, batches, _) = analyzed(&session);
    assert_eq!(batches.len(), 1);
    assert_eq!((answers.counters.engine_steps, answers.counters.empty_schedules), (1, 1));
    assert_eq!(answers.cpu.unwrap().operations.len(), 1);
}

#[test]
fn a_long_log_is_whole() {
    // More records than fit into a segment, over some minutes.
    let log: String = (0..25_000)
        .map(|index| {
            new(0, index, "50.0").replace("20:31:05", &format!("20:{:02}:{:02}", index / 6000, index / 100 % 60))
        })
        .collect();
    let (_output, imported) = imported(&log);
    assert_eq!(engines(&imported), [engine(0, 25_000, 0)]);
    assert!(imported.engines[0].error_ns <= 500_000_000);
    let session = Session::open(&imported.folder).unwrap();
    assert_eq!((session.records_written(), session.records_lost(), session.damage.len()), (75_000, 0, 0));
    let (answers, batches, _) = analyzed(&session);
    assert_eq!(answers.counters.engine_steps, 25_000);
    assert!(batches.windows(2).all(|pair| pair[0].0 + 1_000_000 <= pair[1].0), "each takes its 1 ms");
    assert!((249.0..=250.0).contains(&(answers.duration_ns as f64 / 1e9)), "{}", answers.duration_ns);
}

#[test]
fn what_holds_no_iteration_is_refused() {
    for (log, message) in [
        (
            "INFO 11-24 20:31:05 [x.py:1] hello\nworld",
            "there is no iteration in vllm.log (lines: 2): vLLM logs them when it is started with \
             --enable-logging-iteration-details",
        ),
        (
            "",
            "there is no iteration in vllm.log (lines: 0): vLLM logs them when it is started with \
             --enable-logging-iteration-details",
        ),
        (
            "a\nIteration(5): of another kind",
            "line 2 of vllm.log looks like an iteration of vLLM's, and neither it nor any other line is in a format that \
             this version of ProfileMate knows (vLLM 0.14 to 0.33)",
        ),
    ] {
        assert_eq!(refused(log).to_string(), message);
    }
    let without_time = new(0, 1, "0.0").replace("11-24 20:31:05 ", "");
    assert_eq!(
        refused(&without_time).to_string(),
        "no iteration in vllm.log has a time in front of it, such as 11-24 20:31:05 (iterations: 1): keep vLLM's own log \
         format, or one with %(asctime)s"
    );
    let engines: String = (0..1001).map(|rank| new(rank, 0, "0.0")).collect();
    assert!(matches!(refused(&engines), Error::TooManyEngines { .. }));
}

#[test]
fn bytes_that_are_no_text_and_lines_without_end_are_passed_over() {
    let mut log = b"\xff\xfe\n".to_vec();
    log.extend(vec![b'x'; 3 << 20]);
    log.extend(b" Iteration(");
    log.push(b'\n');
    log.extend(new(0, 1, "0.0").trim_end().as_bytes());
    let output = tempfile::tempdir().unwrap();
    let imported = import(log.as_slice(), "vllm.log", UNTIL, output.path()).unwrap();
    assert_eq!((imported.lines.all, imported.lines.iterations, imported.lines.other), (3, 1, 2));
}

#[test]
fn a_folder_that_cannot_be_made_is_one_sentence() {
    let log = new(0, 1, "0.0");
    let output = PathBuf::from("/proc/nowhere");
    let error = import(log.as_bytes(), "vllm.log", UNTIL, &output).unwrap_err().to_string();
    assert!(error.starts_with("cannot make a session in /proc/nowhere: "), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Whatever the lines say and in whatever order: a whole session with each iteration once, or a refusal.
    #[test]
    fn any_lines_make_a_whole_session_or_none(
        lines in prop::collection::vec(
            prop_oneof![
                8 => (
                    0..3u32,
                    prop_oneof![0..200u64, any::<u64>()],
                    "(0[0-9]|1[0-3])-[0-3][0-9] [0-2][0-9]:[0-5][0-9]:[0-5][0-9]",
                    "[0-9]{1,11}\\.[0-9]{2} ms",
                )
                    .prop_map(|(rank, index, time, elapsed)| {
                        new(rank, index, "1.0").replace("11-24 20:31:05", &time).replace("1.00 ms", &elapsed)
                    }),
                1 => (0..60u32, 0..5u64)
                    .prop_map(|(second, index)| old("EngineCore_DP2 pid=4294967295", second, index, u32::MAX)),
                1 => Just("(EngineCore_DP1 pid=0) hello\n".to_owned()),
                1 => "\\PC{0,40}\n",
            ],
            0..60,
        ),
        until: i64,
    ) {
        let output = tempfile::tempdir().unwrap();
        if let Ok(imported) = import(lines.concat().as_bytes(), "vllm.log", until, output.path()) {
            let session = Session::open(&imported.folder).unwrap();
            prop_assert_eq!((session.records_lost(), session.records_damaged(), session.damage.len()), (0, 0, 0));
            let engines: u64 = imported.engines.iter().map(|engine| engine.iterations).sum();
            prop_assert_eq!(engines, imported.lines.iterations);
            let is_wait = |event: &&Event| event.name == Name::Iteration && event.edge == Edge::End;
            prop_assert_eq!(events(&session).iter().filter(is_wait).count() as u64, imported.lines.iterations);
            let lines = &imported.lines;
            let unused = lines.repeated + lines.without_time + lines.unknown + lines.throughput + lines.other;
            prop_assert_eq!(lines.iterations + unused, lines.all);
            analyzed(&session);
        } else {
            prop_assert_eq!(fs::read_dir(output.path()).unwrap().count(), 0);
        }
    }
}
