//! What the report says of a server that is worth a word in every respect.

#![allow(clippy::unwrap_used, reason = "a test")]

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "../../session/tests/common/mod.rs"]
mod common;

use common::Log;
use profilemate_analysis::analyze;
use profilemate_format::record::{GpuStep, Label, Outputs, Payload, Schedule};
use profilemate_output::terminal;
use profilemate_session::{Error, Session};

/// A thousand steps, 900 us apart, on `workers` GPUs: rank 1 begins 40 us late.
fn server(workers: usize) -> String {
    let folder = tempfile::tempdir().unwrap();
    let raw = folder.path().join("raw");
    std::fs::create_dir(&raw).unwrap();
    let mut engine = Log::new("engine_core", 0, 0, 10, 1);
    for profiler in ["forward_pass_timing", "cpu_timing", "batch_utilization_tracking", "cuda_graph_tracking"] {
        engine.fact(&format!("profiler:{profiler}"), "on");
    }
    engine.fact("vllm_version", "0.32.0");
    engine.fact("model", &format!("an-organization/{}", "a-model-with-a-long-name-".repeat(4)));
    engine.fact("gpu_name", "NVIDIA H100 80GB HBM3");
    engine.fact("gpu_count", &workers.to_string());
    engine.limits(1_000, 256, 8192);
    let mut front = Log::new("api_server", 0, 0, 9, 1);
    let mut ranks: Vec<Log> =
        (0..u32::try_from(workers).unwrap()).map(|rank| Log::new("worker", rank, 0, 11 + rank, 10)).collect();
    for rank in &mut ranks {
        rank.fact("timing_mode", "events");
    }
    for step in 1..=1_000 {
        let us = 20_000 + step * 900;
        let seqs = 8 + u32::try_from(step * 7 % 100).unwrap();
        let is_mixed = step % 10 == 0;
        let prefill = if is_mixed { 50 + u32::try_from(step * 37 % 400).unwrap() } else { 0 };
        let schedule = Schedule {
            num_seqs: seqs + u32::from(is_mixed),
            num_tokens: seqs + prefill,
            prefill_tokens: prefill,
            prefill_seqs: u32::from(is_mixed),
            running: Some(seqs),
            ..Schedule::default()
        };
        engine.schedule(us, step, schedule);
        engine.span(us, 30, step, "scheduling", (0, 0), "");
        let gpu_us = 200 + 3 * seqs + prefill / 2;
        for (at, rank) in ranks.iter_mut().enumerate() {
            let late = if at == 1 { 40 } else { 0 };
            let mode = rank.name(if is_mixed { "NONE" } else { "FULL num_tokens=128" });
            rank.span(us + 100 + late, 30, step, "forward", (0, 128), "");
            rank.span(us + 50 + late, 90, step, "model_execution", (0, 0), "");
            rank.span(us + 150 + late, 20, step, "sampling", (0, 0), "");
            let gpu = GpuStep {
                forward_ms: Some(gpu_us as f32 / 1e3),
                sample_ms: Some(0.02),
                draft_ms: None,
                idle_before_ms: (step > 1).then_some(0.05 + at as f32 / 50.0),
                busy_ms: Some((gpu_us + 30) as f32 / 1e3),
                padded_tokens: 128,
                descriptor: mode,
                read_after_us: gpu_us + 60,
            };
            rank.push(us + 110 + u64::from(late == 40) * 40, step, Label::Work, 0, Payload::GpuStep(gpu));
        }
        engine.span(us + 750, 20, step, "update_from_output", (0, 0), "");
        let outputs = Outputs {
            timestamp_bits: (step as f64).to_bits(),
            client: 0,
            num_outputs: seqs,
            new_tokens: u64::from(seqs),
            finished: 0,
        };
        engine.outputs(us + 775, step, outputs);
        engine.span(us, 780, step, "engine_step", (0, 0), "");
        front.span(us + 790, 150, 0, "output_processing", ((step as f64).to_bits(), 1), "");
    }
    for log in [engine, front].into_iter().chain(ranks) {
        log.write(&raw);
    }
    let session = Session::open(folder.path()).unwrap();
    let answers = analyze::<Error>(&session, |_| Ok(())).unwrap();
    let summary = terminal::summary(&session, &answers, None);
    let plain = anstream::adapter::strip_str(&summary).to_string();
    let plain = plain.replace(&*session.folder.to_string_lossy(), "SESSION");
    assert!(plain.lines().count() < 40, "{plain}");
    for line in plain.lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
    plain
}

#[test]
fn one_gpu() {
    insta::assert_snapshot!(server(1));
}

#[test]
fn eight_ranks() {
    insta::assert_snapshot!(server(8));
}
