//! How long it takes to make all tables, and how much memory.
//!
//! ```text
//! cargo run --release -p profilemate-output --example export_bench -- [RECORDS] [FOLDER] [STEPS_PER_REQUEST] [keep]
//! ```
//! Writes a synthetic session of RECORDS records (default: 10 million; as one API server, one engine core and one
//! worker would) into a new folder in FOLDER (default: the temporary folder), makes every table of it, prints one JSON
//! document and removes it again, unless it is to be kept: for `profilemate explain`, say, under `/usr/bin/time -v`. The
//! promise in the specification: 10 million records in at most 10 s and 512 MiB.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a program for developers that may stop anywhere")]

mod synthetic;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use profilemate_format::record::{
    KvCache, KvEviction, Limits, Outputs, Payload, RequestAdmitted, RequestFinished, RequestFirstToken,
    RequestPreempted, RequestQueued, RequestText, Schedule,
};
use profilemate_output::tables;
use profilemate_session::Session;
use synthetic::{BEGAN, Log, RATE, scatter, used};

/// Ticks from one step to the next: 1 ms.
const STEP_TICKS: u64 = RATE / 1000;

/// Steps from one request to the next, unless another number is asked for: with 200 tokens each, some 30 run at a time.
const STEPS_PER_REQUEST: u64 = 7;

/// A request is queued and started, and gets its first token. Every hundredth is preempted and comes back.
fn request_begins(engine: &mut Log, ticks: u64, step: u64, number: u64) {
    let arrival = BEGAN as f64 + ticks as f64 / RATE as f64;
    let queued = RequestQueued {
        number,
        arrival_bits: arrival.to_bits(),
        prompt_tokens: 512,
        id_bytes: 48,
        ..RequestQueued::default()
    };
    engine.push(ticks, 0, 0, Payload::RequestQueued(queued));
    for part in 0..2 {
        let mut bytes = *b"cmpl-0000000000000000000";
        bytes[8..16].copy_from_slice(format!("{:08x}", number % (1 << 32)).as_bytes());
        engine.push(ticks, 0, 0, Payload::RequestText(RequestText { number, part, bytes }));
    }
    let admitted =
        RequestAdmitted { number, num_tokens: 512, scheduled_tokens: 512, ..RequestAdmitted::default() };
    engine.push(ticks, step, 0, Payload::RequestAdmitted(admitted));
}

/// The newest one gets its first token, and the one that has run longest is over.
fn request_ends(engine: &mut Log, ticks: u64, step: u64, number: u64, [stopped, full]: [u32; 2]) {
    let first = RequestFirstToken { number, output_tokens: 1, client: 0 };
    engine.push(ticks, step, 0, Payload::RequestFirstToken(first));
    if number.is_multiple_of(100) {
        let preempted = RequestPreempted { number, computed_tokens: 513, ..RequestPreempted::default() };
        engine.push(ticks, step, full, Payload::RequestPreempted(preempted));
        let again = RequestAdmitted { number, computed_tokens: 16, ..RequestAdmitted::default() };
        engine.push(ticks, step, 0, Payload::RequestAdmitted(again));
    }
    if let Some(oldest) = number.checked_sub(30).filter(|oldest| *oldest > 0) {
        let finished = RequestFinished {
            number: oldest,
            prompt_tokens: 512,
            output_tokens: 200,
            ..RequestFinished::default()
        };
        engine.push(ticks, step, stopped, Payload::RequestFinished(finished));
    }
}

fn generate(session: &Path, records: u64, steps_per_request: u64) -> u64 {
    let mut engine = Log::new(session, "engine_core", 100);
    let mut worker = Log::new(session, "worker", 101);
    let mut front = Log::new(session, "api_server", 102);
    for profiler in [
        "forward_pass_timing",
        "cpu_timing",
        "batch_utilization_tracking",
        "preemption_tracking",
        "kv_cache_tracking",
    ] {
        engine.fact(&format!("profiler:{profiler}"), "on");
    }
    let engine_names = ["scheduling", "update_from_output", "engine_step"].map(|name| engine.name(name));
    let worker_names = ["model_execution", "forward", "sampling", "bookkeeping"].map(|name| worker.name(name));
    let front_names = ["output_processing", "detokenization", "tokenization"].map(|name| front.name(name));
    let limited_by = engine.name("no_waiting_request");
    let request_names = ["FINISHED_STOPPED", "kv_cache_full"].map(|name| engine.name(name));
    engine.push(1, 0, 0, Payload::Limits(Limits { max_num_seqs: 256, max_num_tokens: 8192 }));
    let mut step = 0;
    while engine.written + worker.written + front.written < records {
        step += 1;
        let t = step * STEP_TICKS;
        let random = scatter(step);
        let wobble = random % 100_000;
        let prefill = if step.is_multiple_of(10) { u32::try_from(random % 4096).unwrap() } else { 0 };
        let seqs = 1 + u32::try_from(random >> 32 & 255).unwrap();
        let schedule = Schedule {
            num_seqs: seqs,
            num_tokens: seqs + prefill,
            prefill_tokens: prefill,
            running: Some(seqs),
            ..Schedule::default()
        };
        if step.is_multiple_of(steps_per_request) {
            request_begins(&mut engine, t, step, step / steps_per_request);
        }
        engine.push(t, step, limited_by, Payload::Schedule(schedule));
        let used = 4000 + u32::try_from(random % 4000).unwrap();
        let kv_cache =
            KvCache { used, total: 8000, cached: used, allocated: seqs, evicted: 1, ..KvCache::default() };
        engine.push(t + 1, step, 0, Payload::KvCache(kv_cache));
        if step.is_multiple_of(3) {
            let eviction =
                KvEviction { lifetime_ticks: random, idle_ticks: wobble, stands_for: 2, ..KvEviction::default() };
            engine.push(t + 2, step, 0, Payload::KvEviction(eviction));
        }
        engine.span(t, 100_000 + wobble, step, engine_names[0], 0);
        let batch = u64::from(seqs + prefill) | u64::from(seqs) << 32;
        worker.span(t + 300_000, 1_200_000 + wobble, step, worker_names[1], batch);
        worker.span(t + 220_000, 1_400_000 + wobble, step, worker_names[0], batch);
        worker.span(t + 1_650_000 + wobble, 150_000, step, worker_names[2], 0);
        worker.span(t + 1_820_000 + wobble, 50_000, step, worker_names[3], 0);
        if step.is_multiple_of(steps_per_request) {
            request_ends(&mut engine, t + 1_950_000 + wobble, step, step / steps_per_request, request_names);
        }
        let stamp = (step as f64 * 0.001 + 5.0).to_bits();
        let outputs = Outputs {
            timestamp_bits: stamp,
            client: 0,
            num_outputs: seqs,
            new_tokens: u64::from(seqs),
            finished: u64::from(step.is_multiple_of(7)),
        };
        engine.span(t + 1_900_000 + wobble, 100_000, step, engine_names[1], 0);
        engine.push(t + 2_000_000 + wobble, step, 0, Payload::Outputs(outputs));
        engine.span(t, 2_050_000 + wobble, step, engine_names[2], 0);
        front.span(t + 2_150_000 + wobble, 90_000, 0, front_names[1], stamp);
        front.span(t + 2_100_000 + wobble, 200_000, 0, front_names[0], stamp);
        if step.is_multiple_of(7) {
            front.span(t + 2_320_000 + wobble, 80_000, 0, front_names[2], 0);
        }
    }
    let written = engine.written + worker.written + front.written;
    let last = (step + 1) * STEP_TICKS;
    engine.finish(last);
    worker.finish(last);
    front.finish(last);
    written
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let records: u64 = arguments.next().map_or(10_000_000, |count| count.parse().unwrap());
    let parent = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let steps_per_request = arguments.next().map_or(STEPS_PER_REQUEST, |steps| steps.parse().unwrap());
    let is_kept = arguments.next().is_some_and(|word| word == "keep");
    let session = parent.join(format!("session_20260101_000000_{:06x}", std::process::id()));
    fs::create_dir_all(session.join("raw")).unwrap();
    let records = generate(&session, records, steps_per_request);
    let (rss_before, cpu_before) = used(libc::RUSAGE_SELF);
    let began = Instant::now();
    let opened = Session::open(&session).unwrap();
    let survey_seconds = began.elapsed().as_secs_f64();
    let answers = tables::write(&opened, &session).unwrap();
    let seconds = began.elapsed().as_secs_f64();
    let (rss, cpu) = used(libc::RUSAGE_SELF);
    assert_eq!((opened.records_written(), opened.records_lost(), opened.records_damaged()), (records, 0, 0));
    let bytes: u64 = fs::read_dir(&session).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    println!(
        "{{\"records\": {records}, \"engine_steps\": {}, \"requests\": {}, \"seconds\": {seconds:.3}, \
         \"cpu_seconds\": {:.3}, \"survey_seconds\": {survey_seconds:.3}, \
         \"records_per_second\": {:.0}, \"peak_rss_mib\": {:.1}, \"rss_before_mib\": {:.1}, \"raw_mib\": {:.1}, \
         \"tables_mib\": {:.1}, \"processors\": {}}}",
        answers.counters.engine_steps,
        answers.requests.map_or(0, |requests| requests.total_requests),
        cpu - cpu_before,
        records as f64 / seconds,
        rss as f64 / 1024.0,
        rss_before as f64 / 1024.0,
        records as f64 * 64.0 / f64::from(1 << 20),
        bytes as f64 / f64::from(1 << 20),
        std::thread::available_parallelism().map_or(0, usize::from),
    );
    if !is_kept {
        fs::remove_dir_all(&session).unwrap();
    }
}
