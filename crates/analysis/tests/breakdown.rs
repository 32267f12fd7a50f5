//! Divisions of time add up, whatever overlaps, and say what was put into the logs.

#![allow(clippy::unwrap_used, reason = "a test")]

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "../../session/tests/common/mod.rs"]
mod common;

use std::path::{Path, PathBuf};

use common::Log;
use profilemate_analysis::breakdown::{Part, Parts, Step};
use profilemate_analysis::cost::Group;
use profilemate_analysis::latency;
use profilemate_analysis::steps::Phase;
use profilemate_analysis::{Answers, Row, analyze};
use profilemate_format::record::{GpuStep, Label, Outputs, Payload, Schedule};
use profilemate_session::{Error, Session};
use proptest::prelude::*;

const MS: u64 = 1_000_000;
const US: u64 = 1_000;
/// How long the made-up runs are: their clocks were last looked at then.
const RUN: u64 = 1_000 * MS;

/// What a session says, and its steps.
fn analyzed(folder: &Path) -> (Answers, Vec<(Option<u64>, i64, Parts)>) {
    let session = Session::open(folder).unwrap();
    let mut steps = Vec::new();
    let answers = analyze::<Error>(&session, |row| {
        if let Row::Step(Step { start_ns, parts, step, .. }) = row {
            steps.push((step, start_ns, parts));
        }
        Ok(())
    })
    .unwrap();
    (answers, steps)
}

fn written(logs: &[Log]) -> (Answers, Vec<(Option<u64>, i64, Parts)>) {
    let folder = tempfile::tempdir().unwrap();
    let raw = folder.path().join("raw");
    std::fs::create_dir(&raw).unwrap();
    for log in logs {
        log.write(&raw);
    }
    analyzed(folder.path())
}

fn golden() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../session/tests/golden/v1");
    let mut sessions: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    sessions.sort();
    assert!(sessions.len() >= 5);
    sessions
}

fn engine(pid: u32) -> Log {
    let mut log = Log::new("engine_core", 0, 0, pid, 1);
    for profiler in ["forward_pass_timing", "cpu_timing", "batch_utilization_tracking", "preemption_tracking"] {
        log.fact(&format!("profiler:{profiler}"), "on");
    }
    log
}

fn named(parts: &Parts) -> Vec<(&'static str, u64)> {
    parts.iter().map(|(part, ns)| (part.text(), ns / US)).collect()
}

/// The sum of the steps' durations in `cpu_operations_timing.csv`, the one number that nothing here made.
fn measured_steps(folder: &Path) -> u64 {
    let session = Session::open(folder).unwrap();
    let mut sum = 0;
    analyze::<Error>(&session, |row| {
        if let Row::Cpu(operation) = row
            && operation.name.text() == "engine_step"
        {
            sum += operation.duration_ns;
        }
        Ok(())
    })
    .unwrap();
    sum
}

#[test]
fn every_golden_session_adds_up() {
    for folder in golden() {
        let (answers, steps) = analyzed(&folder);
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let Some(breakdown) = &answers.breakdown else {
            assert_eq!(name, "requests", "the only one without the profiler of CPU operations");
            continue;
        };
        assert_eq!(breakdown.wall_ns, answers.duration_ns);
        assert!(!breakdown.engines.is_empty(), "{name}");
        for engine in &breakdown.engines {
            assert_eq!(engine.wall_ns(), answers.duration_ns, "{name} {}", engine.process);
        }
        let total: u64 = breakdown.engines.iter().map(|engine| engine.step.total_ns()).sum();
        let of_steps: u64 = steps.iter().map(|(.., parts)| parts.total_ns()).sum();
        assert_eq!(total, of_steps, "{name}");
        assert_eq!(breakdown.engines.iter().map(|engine| engine.steps).sum::<u64>(), steps.len() as u64);
        // Steps of one engine never overlap in these sessions, so nothing of a step is cut off.
        assert_eq!(total, measured_steps(&folder), "{name}");
        let idle = answers.cpu.as_ref().unwrap().operations.iter().find(|(of, _)| of.text() == "engine_idle");
        let idle_ms = idle.map_or(0.0, |(_, times)| times.total_ms);
        let told_ms = breakdown.engines.iter().map(|engine| engine.idle_ns).sum::<u64>() as f64 / 1e6;
        assert!((told_ms - idle_ms).abs() <= 0.01 * idle_ms, "{name}: {told_ms} {idle_ms}");
    }
}

/// A worker in a process of its own, on the CPU: what the engine waits for is divided by what the worker does.
#[test]
fn a_step_is_divided_by_what_its_worker_does() {
    let mut engine = engine(1);
    let mut worker = Log::new("worker", 0, 0, 2, 1);
    engine.schedule(10_000, 1, Schedule { num_seqs: 1, num_tokens: 1, ..Schedule::default() });
    engine.span(10_000, 100, 1, "scheduling", (0, 0), "");
    worker.span(10_350, 2_000, 1, "forward", (1, 0), "");
    worker.span(10_150, 2_300, 1, "model_execution", (1, 0), "");
    worker.span(12_500, 40, 1, "sampling", (1, 0), "");
    worker.span(12_540, 60, 1, "bookkeeping", (1, 0), "");
    engine.span(12_700, 30, 1, "update_from_output", (0, 0), "");
    engine.span(10_000, 2_750, 1, "engine_step", (0, 0), "");
    engine.span(13_000, 7_000, 0, "engine_idle", (0, 0), "");
    let (answers, steps) = written(&[engine, worker]);
    let breakdown = answers.breakdown.unwrap();
    let [engine] = breakdown.engines.as_slice() else { panic!("{breakdown:?}") };
    let expected = [
        ("scheduling", 100),
        ("batch_preparation", 200),
        ("forward", 2_000),
        ("sampling", 40),
        ("bookkeeping", 60),
        // The logits.
        ("model_other", 100),
        ("update_from_output", 30),
        // To the worker, between the logits and sampling, and back.
        ("executor", 50 + 50 + 100),
        ("other", 20),
    ];
    assert_eq!(named(&engine.step), expected);
    assert_eq!(steps.len(), 1);
    assert_eq!((steps[0].0, steps[0].1, steps[0].2), (Some(1), 10 * MS.cast_signed(), engine.step));
    assert_eq!(engine.before_ns, 10 * MS);
    assert_eq!(named(&engine.between), [("other", 250)]);
    assert_eq!(engine.idle_ns, 7 * MS);
    assert_eq!(engine.after_ns, RUN - 20 * MS);
    let [worker] = breakdown.workers.as_slice() else { panic!("{breakdown:?}") };
    let expected = [
        ("batch_preparation", 200),
        ("forward", 2_000),
        ("sampling", 40),
        ("bookkeeping", 60),
        ("model_other", 100),
        ("other", 50),
    ];
    assert_eq!((named(&worker.host), worker.gpu), (expected.to_vec(), None));
}

/// Asynchronous scheduling: the engine schedules step 2 while step 1 is executed, and what it takes in its second step
/// are the results of step 1. Two ranks: a time in which either runs the model is forward time.
#[test]
fn a_step_that_is_executed_while_the_next_is_scheduled_counts_once() {
    let mut engine = engine(1);
    let mut workers = [Log::new("worker", 0, 0, 2, 1), Log::new("worker", 1, 0, 3, 1)];
    engine.span(10_000, 100, 1, "scheduling", (0, 0), "");
    engine.span(10_000, 200, 1, "engine_step", (0, 0), "");
    engine.span(10_210, 100, 2, "scheduling", (0, 0), "");
    for (late, worker) in workers.iter_mut().enumerate() {
        let late = late as u64 * 30;
        worker.span(10_250 + late, 1_000, 1, "forward", (1, 0), "");
        worker.span(10_150 + late, 1_150, 1, "model_execution", (1, 0), "");
    }
    engine.span(11_400, 50, 1, "update_from_output", (0, 0), "");
    engine.span(10_210, 1_290, 2, "engine_step", (0, 0), "");
    let [first, second] = workers;
    let (answers, steps) = written(&[engine, first, second]);
    // Of the first step the model's part lies after its end, but for its beginning.
    assert_eq!(named(&steps[0].2), [("scheduling", 100), ("batch_preparation", 50), ("executor", 50)]);
    // Scheduled until 10,310; the passes last until 11,250 and 11,280, the rest of the worker's parts until 11,330.
    let expected = [
        ("scheduling", 100),
        ("forward", 970),
        ("model_other", 50),
        ("update_from_output", 50),
        ("executor", 70),
        ("other", 50),
    ];
    assert_eq!(named(&steps[1].2), expected);
    let breakdown = answers.breakdown.unwrap();
    assert_eq!(breakdown.engines[0].wall_ns(), RUN);
    assert_eq!(breakdown.engines[0].between.total_ns(), 10 * US);
}

/// More steps than wait to be divided: none is told twice or forgotten.
#[test]
fn a_long_run_is_divided_as_it_goes() {
    let mut engine = engine(1);
    let mut worker = Log::new("worker", 0, 0, 2, 1);
    let steps = 1_500;
    for step in 1..=steps {
        let us = 10_000 + step * 500;
        engine.span(us, 20, step, "scheduling", (0, 0), "");
        worker.span(us + 50, 300, step, "forward", (1, 0), "");
        worker.span(us + 30, 340, step, "model_execution", (1, 0), "");
        engine.span(us + 380, 10, step, "update_from_output", (0, 0), "");
        engine.span(us, 400, step, "engine_step", (0, 0), "");
    }
    let (answers, told) = written(&[engine, worker]);
    let breakdown = answers.breakdown.unwrap();
    let expected = [
        ("scheduling", 20 * steps),
        ("batch_preparation", 20 * steps),
        ("forward", 300 * steps),
        ("model_other", 20 * steps),
        ("update_from_output", 10 * steps),
        ("executor", 20 * steps),
        ("other", 10 * steps),
    ];
    assert_eq!(named(&breakdown.engines[0].step), expected);
    assert_eq!(named(&breakdown.engines[0].between), [("other", 100 * (steps - 1))]);
    assert_eq!(breakdown.workers[0].host.of(Part::Forward), 300 * steps * US);
    let numbers: Vec<u64> = told.iter().filter_map(|(step, ..)| *step).collect();
    assert_eq!(numbers, (1..=steps).collect::<Vec<_>>());
}

/// Everything in one process: what the front end does lies between the steps.
#[test]
fn a_front_end_in_the_engines_process_is_told_between_steps() {
    let mut log = engine(1);
    log.role("worker", 0, 0);
    log.role("api_server", 0, 0);
    log.span(9_000, 300, 0, "tokenization", (0, 0), "");
    for step in 1..=2 {
        let us = 9_000 + step * 1_000;
        log.span(us, 100, step, "scheduling", (0, 0), "");
        log.span(us + 200, 300, step, "forward", (1, 0), "");
        log.span(us + 100, 450, step, "model_execution", (1, 0), "");
        log.span(us + 560, 30, step, "update_from_output", (0, 0), "");
        log.span(us, 600, step, "engine_step", (0, 0), "");
        log.span(us + 620, 20, 0, "detokenization", (step, 1), "");
        log.span(us + 620, 50, 0, "output_processing", (step, 1), "");
    }
    let (answers, _) = written(&[log]);
    let breakdown = answers.breakdown.unwrap();
    let engine = &breakdown.engines[0];
    // What lies before the first step and behind the last is not between steps.
    assert_eq!(named(&engine.between), [("output_processing", 50), ("other", 350)]);
    assert_eq!(engine.step.of(Part::Forward), 600 * US);
    assert_eq!((engine.before_ns, engine.after_ns), (10 * MS, RUN - 11_600 * US));
    let front_end = &breakdown.front_ends[0];
    let told = (front_end.output_processing_ns, front_end.detokenization_ns, front_end.tokenization_ns);
    assert_eq!(told, (100 * US, 40 * US, 300 * US));
}

/// Steps on a GPU, 2 ms apart: the engine waits for the GPU, and the worker prepares in that time. Before the third one
/// nobody asked for anything.
#[test]
fn on_a_gpu_its_work_comes_before_what_the_host_does_beside_it() {
    let mut log = engine(1);
    log.role("worker", 0, 0);
    log.fact("timing_mode", "events");
    for (step, us) in [(1, 10_000), (2, 12_000), (3, 34_000)] {
        log.span(us, 100, step, "scheduling", (0, 0), "");
        log.span(us + 300, 50, step, "forward", (1, 0), "");
        log.span(us + 100, 260, step, "model_execution", (1, 0), "");
        log.span(us + 1_700, 50, step, "update_from_output", (0, 0), "");
        log.span(us, 1_800, step, "engine_step", (0, 0), "");
        if step == 2 {
            log.span(us + 1_900, 19_000, 0, "engine_idle", (0, 0), "");
        }
        // Launched at 310, done after 1,300: forward 1,000, sampling 200, and 100 more.
        let gpu = GpuStep {
            forward_ms: Some(1.0),
            sample_ms: Some(0.2),
            draft_ms: None,
            idle_before_ms: match step {
                1 => None,
                2 => Some(0.7),
                _ => Some(20.7),
            },
            busy_ms: Some(1.3),
            padded_tokens: 1,
            descriptor: 0,
            read_after_us: 1_300,
        };
        log.push(us + 310, step, Label::Work, 0, Payload::GpuStep(gpu));
    }
    let (answers, steps) = written(&[log]);
    let breakdown = answers.breakdown.unwrap();
    let gpu = breakdown.workers[0].gpu.unwrap();
    let close = |ns: u64, us: u64| ns.abs_diff(us * US) <= 2 * US;
    assert_eq!(gpu.steps, 3);
    for (ns, us) in [
        (gpu.forward_ns, 3_000),
        (gpu.sampling_ns, 600),
        (gpu.other_ns, 300),
        (gpu.bubble_ns, 700 + 1_700),
        (gpu.no_work_ns, 19_000),
        // From the first kernel of all to the last.
        (gpu.total_ns(), 24_000 + 1_300),
    ] {
        assert!(close(ns, us), "{ns} {us} {gpu:?}");
    }
    for (_, _, parts) in steps {
        for (part, us) in [
            (Part::Scheduling, 100),
            (Part::BatchPreparation, 200),
            // Until the GPU begins; the rest of the call lies beside the GPU's work.
            (Part::Launch, 10),
            (Part::Forward, 1_000),
            (Part::Sampling, 200),
            (Part::ModelOther, 100),
            (Part::UpdateFromOutput, 50),
            (Part::Executor, 90),
            (Part::Other, 50),
        ] {
            assert!(close(parts.of(part), us), "{part:?} {us} {parts:?}");
        }
        assert_eq!(parts.total_ns(), 1_800 * US);
    }
}

#[test]
fn work_over_time_is_all_of_the_work() {
    let mut log = engine(1);
    log.anchors_us = vec![0, 3_000_000];
    for step in 1..=30 {
        let us = 500_000 + step * 50_000;
        log.schedule(
            us,
            step,
            Schedule {
                num_seqs: 2,
                num_tokens: 12,
                prefill_tokens: 10,
                running: Some(2),
                waiting: Some(4),
                ..Schedule::default()
            },
        );
        log.outputs(
            us + 10,
            step,
            Outputs { timestamp_bits: step, client: 0, num_outputs: 2, new_tokens: 2, finished: 1 },
        );
    }
    let (answers, _) = written(&[log]);
    let throughput = answers.throughput;
    assert_eq!(throughput.interval_ns, 100 * MS);
    // From 550 ms to 2000 ms.
    assert_eq!(throughput.intervals.len(), 16);
    assert_eq!(throughput.intervals[0].start_ns, 500 * MS);
    let sum = |of: fn(&profilemate_analysis::throughput::Interval) -> u64| {
        throughput.intervals.iter().map(of).sum::<u64>()
    };
    assert_eq!(sum(|interval| interval.steps), 30);
    assert_eq!(sum(|interval| interval.prefill_tokens), 300);
    assert_eq!(sum(|interval| interval.generated_tokens.unwrap()), 60);
    assert_eq!(sum(|interval| interval.finished_requests.unwrap()), 30);
    let second = throughput.intervals[1];
    assert_eq!((second.steps, second.mean_running(), second.mean_waiting()), (2, Some(2.0), Some(4.0)));
    assert_eq!(second.per_second(second.generated_tokens.unwrap()), Some(40.0));
}

#[test]
fn the_slow_and_the_late_rank_are_named() {
    let logs = |samples: bool| {
        let mut workers = [Log::new("worker", 0, 0, 2, 1), Log::new("worker", 1, 0, 3, 1)];
        for step in 1..=4 {
            let us = 10_000 + step * 1_000;
            // Rank 1 begins 20 us later and takes 50 us less, but for the last step, in which both are alike.
            for (rank, worker) in workers.iter_mut().enumerate() {
                let (late, less) = if step == 4 { (0, 0) } else { (rank as u64 * 20, rank as u64 * 50) };
                worker.span(us + late, 200 - less, step, "forward", (1, 0), "");
                worker.span(us - 50, 300, step, "model_execution", (1, 0), "");
                if samples || rank == 1 {
                    worker.span(us + 260, 10, step, "sampling", (1, 0), "");
                }
            }
        }
        // Of this step one rank is missing.
        workers[0].span(20_000, 900, 9, "forward", (1, 0), "");
        let [first, second] = workers;
        [engine(1), first, second]
    };
    let (answers, _) = written(&logs(true));
    let [skew] = answers.ranks.as_slice() else { panic!("{:?}", answers.ranks) };
    assert_eq!((skew.steps, skew.are_stages, skew.process.as_str()), (4, false, "engine_core-0"));
    let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} {b}");
    close(skew.skew_ms.mean, 0.0375);
    close(skew.skew_ms.max, 0.05);
    close(skew.start_skew_ms.mean, 0.015);
    // Three times 50 us of four times two times 200 us.
    close(skew.waiting_pct.unwrap(), 100.0 * 150.0 / 1600.0);
    let [first, second] = skew.ranks.as_slice() else { panic!("{skew:?}") };
    assert_eq!((first.slowest_steps, first.last_steps, second.slowest_steps, second.last_steps), (3, 0, 0, 3));
    close(first.mean_forward_ms, 0.2);
    close(second.mean_forward_ms, (3.0 * 0.15 + 0.2) / 4.0);
    close(second.mean_late_ms, 0.015);
    let (answers, _) = written(&logs(false));
    assert!(answers.ranks[0].are_stages);
}

/// Steps of one engine with its worker on the CPU, by sequences, prefill tokens, prefill sequences and forward time in
/// microseconds.
fn passes(steps: &[(u32, u32, u32, u64)]) -> Answers {
    let mut log = engine(1);
    log.role("worker", 0, 0);
    for (at, (num_seqs, prefill_tokens, prefill_seqs, long_us)) in steps.iter().enumerate() {
        let (step, us) = (at as u64 + 1, 1_000 + at as u64 * 20_000);
        let num_tokens = num_seqs - prefill_seqs + prefill_tokens;
        let schedule = Schedule {
            num_seqs: *num_seqs,
            num_tokens,
            prefill_tokens: *prefill_tokens,
            prefill_seqs: *prefill_seqs,
            ..Schedule::default()
        };
        log.schedule(us, step, schedule);
        log.span(us + 10, *long_us, step, "forward", (0, 0), "NONE");
        log.span(us + 5, long_us + 10, step, "model_execution", (0, 0), "");
    }
    written(&[log]).0
}

#[test]
fn what_a_token_costs_is_found_again() {
    // 3 ms, 40 us for each decoding sequence, 7 us for each prefill token; a step in which something else happened.
    let mut steps: Vec<(u32, u32, u32, u64)> = Vec::new();
    for at in 0..60u32 {
        let decode = 1 + at * 7 % 32;
        steps.push((decode, 0, 0, u64::from(3_000 + 40 * decode)));
        let prefill = 16 + at * 37 % 512;
        steps.push((decode + 1, prefill, 1, u64::from(3_000 + 40 * decode + 7 * prefill)));
    }
    steps[40].3 = 900_000;
    let answers = passes(&steps);
    let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a} {b}");
    let of = |group: &Group| answers.cost.iter().find(|fit| fit.group == *group);
    let decode = of(&Group::Phase(Phase::Decode)).unwrap();
    assert_eq!((decode.steps, decode.left_out, decode.prefill_token_us), (59, 1, None));
    close(decode.base_ms, 3.0);
    close(decode.decode_sequence_us.unwrap().value, 40.0);
    close(decode.r_squared, 1.0);
    let mixed = of(&Group::Phase(Phase::Mixed)).unwrap();
    close(mixed.prefill_token_us.unwrap().value, 7.0);
    close(mixed.decode_sequence_us.unwrap().value, 40.0);
    let all = of(&Group::CudaGraphMode("NONE".to_owned())).unwrap();
    assert_eq!((all.steps, all.left_out), (119, 1));
    close(all.prefill_token_us.unwrap().value, 7.0);
    assert!(of(&Group::Phase(Phase::Prefill)).is_none());
}

#[test]
fn nothing_is_said_of_too_few_steps_or_a_cost_that_is_none() {
    let few: Vec<_> = (1..50u32).map(|seqs| (seqs, 0, 0, u64::from(3_000 + 40 * seqs))).collect();
    assert_eq!(passes(&few).cost, []);
    let enough: Vec<_> = (1..51u32).map(|seqs| (seqs, 0, 0, u64::from(3_000 + 40 * seqs))).collect();
    assert_eq!(passes(&enough).cost.len(), 2);
    // The same size every time; times that do not depend on it; times that fall with it.
    let same: Vec<_> = (0..200u64).map(|at| (8, 0, 0, 3_000 + at % 7)).collect();
    assert_eq!(passes(&same).cost, []);
    let noise: Vec<_> = (0..200u32).map(|at| (1 + at % 32, 0, 0, 3_000 + u64::from(at * at % 101) * 10)).collect();
    assert_eq!(passes(&noise).cost, []);
    let falling: Vec<_> = (1..100u32).map(|seqs| (seqs, 0, 0, 9_000 - u64::from(40 * seqs))).collect();
    assert_eq!(passes(&falling).cost, []);
}

/// Every request of the golden session: its parts are its time.
#[test]
fn the_parts_of_a_request_are_its_time() {
    let folder = golden().into_iter().find(|folder| folder.ends_with("requests")).unwrap();
    let session = Session::open(&folder).unwrap();
    let mut seen = Vec::new();
    let answers = analyze::<Error>(&session, |row| {
        if let Row::Lifecycle(life) = row
            && let Some(latency) = life.latency()
        {
            assert_eq!(Some(latency.total_ns()), life.total_time_ns(), "{}", life.request_id);
            assert_eq!(
                Some(latency.of(latency::Part::Preempted)),
                life.preemption_delay_ns,
                "{}",
                life.request_id
            );
            seen.push((life.request_id.to_owned(), latency));
        }
        Ok(())
    })
    .unwrap();
    let summary = answers.requests.unwrap().latency.unwrap();
    assert_eq!(summary.requests, seen.len() as u64);
    let sum: u128 = seen.iter().map(|(_, latency)| u128::from(latency.total_ns())).sum();
    assert_eq!(summary.total_ns(), sum);
    let shares: f64 = latency::Part::ALL.iter().filter_map(|part| summary.share_pct(*part)).sum();
    assert!((shares - 100.0).abs() < 1e-9);
    // Preempted from 13,000 to 15,000 us and from 15,500 to 16,000; the engine has its last token at 16,500, the client
    // at 17,000. It was queued at 10,005, started at 11,005, and its first token was there at 12,500.
    let (_, twice) = seen.iter().find(|(id, _)| id == "preempted-twice").unwrap();
    let us = |part| twice.of(part) / US;
    assert_eq!(us(latency::Part::Preempted), 2_500);
    assert_eq!(us(latency::Part::Queue), 1_000);
    assert_eq!(us(latency::Part::Prefill), 12_500 - 11_005);
    assert_eq!(us(latency::Part::Decode), 16_500 - 12_500 - 2_500);
    assert_eq!(us(latency::Part::Delivery), 500);
}

const NAMES: [&str; 13] = [
    "engine_step",
    "engine_idle",
    "scheduling",
    "update_from_output",
    "model_execution",
    "forward",
    "sampling",
    "bookkeeping",
    "drafting",
    "output_processing",
    "detokenization",
    "tokenization",
    "output_ready",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// Whatever logs say, and in whatever order: an engine's time is the run's, and a worker's lies between its first moment
    /// and its last.
    #[test]
    fn whatever_logs_say_the_parts_are_the_run(
        spans in prop::collection::vec((0usize..3, 0..NAMES.len(), 0u64..900_000, 0u64..5_000, 0u64..9), 0..150),
        timing_mode in prop_oneof![Just("wall"), Just("events"), Just("lightweight")],
        gpu in prop::collection::vec((0u64..900_000, 0u64..9, 0u32..3_000, 0u32..3_000, 0u32..3_000), 0..20),
    ) {
        let mut logs = [engine(1), Log::new("worker", 0, 0, 2, 1), Log::new("worker", 1, 0, 3, 1)];
        logs[0].role("api_server", 0, 0);
        logs[1].fact("timing_mode", timing_mode);
        for (log, name, us, long_us, step) in spans {
            logs[log].span(us, long_us, step, NAMES[name], (1 << 32 | 1, 1), "");
        }
        let milliseconds = |us: u32| Some(us as f32 / 1e3);
        for (us, step, forward, idle, busy) in gpu {
            let step_on_gpu = GpuStep {
                forward_ms: milliseconds(forward),
                sample_ms: milliseconds(forward / 2),
                draft_ms: None,
                idle_before_ms: milliseconds(idle),
                busy_ms: milliseconds(busy),
                padded_tokens: 0,
                descriptor: 0,
                read_after_us: 5_000,
            };
            logs[1].push(us, step, Label::Work, 0, Payload::GpuStep(step_on_gpu));
        }
        let (answers, steps) = written(&logs);
        let breakdown = answers.breakdown.unwrap();
        for engine in &breakdown.engines {
            prop_assert_eq!(engine.wall_ns(), answers.duration_ns);
            prop_assert_eq!(engine.steps, steps.len() as u64);
            prop_assert_eq!(engine.step.total_ns(), steps.iter().map(|(.., parts)| parts.total_ns()).sum::<u64>());
        }
        for worker in &breakdown.workers {
            prop_assert!(worker.host.total_ns() <= answers.duration_ns);
        }
    }
}
