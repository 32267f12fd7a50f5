//! How long it takes to make all tables, and how much memory.
//!
//! ```text
//! cargo run --release -p profilemate-output --example export_bench -- [RECORDS] [FOLDER] [STEPS_PER_REQUEST]
//! ```
//! Writes a synthetic session of RECORDS records (default: 10 million; as one API server, one engine core and one
//! worker would) into a new folder in FOLDER (default: the temporary folder), makes every table of it, prints one JSON
//! document and removes it again. The promise in the specification: 10 million records in at most 10 s and 512 MiB.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a program for developers that may stop anywhere")]

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use profilemate_format::head::{Anchor, ClockSource, Identity, TEXT_OFFSET, TextKind, counter, text_entry};
use profilemate_format::record::{
    KvCache, KvEviction, Label, Limits, Outputs, Payload, Record, RequestAdmitted, RequestFinished,
    RequestFirstToken, RequestPreempted, RequestQueued, RequestText, Schedule, Span, commit_word,
};
use profilemate_format::segment::SegmentHeader;
use profilemate_output::tables;
use profilemate_session::Session;

const SEGMENT_SLOTS: u32 = 65_535;
const TEXT_CAPACITY: usize = 4096;
/// Ticks per second of a usual processor.
const RATE: u64 = 2_600_000_000;
/// Ticks from one step to the next: 1 ms.
const STEP_TICKS: u64 = RATE / 1000;

struct Log {
    base: PathBuf,
    identity: Identity,
    strings: Vec<u8>,
    count: u32,
    segment: Option<BufWriter<File>>,
    index: u64,
    slot: u32,
    written: u64,
}

impl Log {
    fn new(raw: &Path, role: &str, pid: u32) -> Self {
        let mut log_id = [0; 16];
        log_id[0] = u8::try_from(pid % 256).unwrap();
        let identity = Identity {
            log_id,
            role: role.to_owned(),
            rank: 0,
            data_parallel_rank: 0,
            pid,
            parent_pid: 1,
            process_start: 1,
            ticks_per_second: RATE,
            clock: ClockSource::X86Tsc,
            segment_slots: SEGMENT_SLOTS,
            text_capacity: TEXT_CAPACITY as u64,
        };
        let base = raw.join(format!("{role}-0-{pid}"));
        Self { base, identity, strings: Vec::new(), count: 0, segment: None, index: 0, slot: 0, written: 0 }
    }

    fn name(&mut self, text: &str) -> u32 {
        self.strings.extend(text_entry(TextKind::String, text.as_bytes()).unwrap());
        self.count += 1;
        self.count
    }

    fn fact(&mut self, key: &str, value: &str) {
        self.strings.extend(text_entry(TextKind::Fact, format!("{key}\0{value}").as_bytes()).unwrap());
    }

    fn push(&mut self, ticks: u64, step: u64, name: u32, payload: Payload) {
        if self.segment.is_none() || self.slot == SEGMENT_SLOTS {
            let path = format!("{}.{:06}.seg", self.base.display(), self.index);
            let mut file = BufWriter::with_capacity(1 << 20, File::create(path).unwrap());
            let header = SegmentHeader { log_id: self.identity.log_id, index: self.index, slots: SEGMENT_SLOTS };
            file.write_all(&header.to_bytes()).unwrap();
            self.segment = Some(file);
            self.index += 1;
            self.slot = 0;
        }
        let words = Record { ticks, step, label: Label::Work, flags: 0, name, payload }.to_words();
        let file = self.segment.as_mut().unwrap();
        for word in words.iter().chain([&commit_word(&words, self.slot)]) {
            file.write_all(&word.to_le_bytes()).unwrap();
        }
        self.slot += 1;
        self.written += 1;
    }

    fn span(&mut self, ticks: u64, duration_ticks: u64, step: u64, name: u32, value_a: u64) {
        let overhead_ticks = 20_000 + u32::try_from(step % 1000).unwrap();
        let span = Span { duration_ticks, value_a, value_b: 0, context: 0, overhead_ticks };
        self.push(ticks, step, name, Payload::Span(span));
    }

    fn finish(mut self, last_ticks: u64) {
        if let Some(mut segment) = self.segment.take() {
            segment.flush().unwrap();
        }
        let mut head = vec![0; TEXT_OFFSET + TEXT_CAPACITY];
        head[..256].copy_from_slice(&self.identity.to_bytes());
        let mut word = |offset: usize, value: u64| head[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
        word(counter::TEXT_USED, self.strings.len() as u64);
        word(counter::WRITTEN, self.written);
        word(counter::SEGMENTS, self.index);
        word(counter::CLOSED, last_ticks);
        word(4096, 2);
        for (at, ticks) in [0, last_ticks].into_iter().enumerate() {
            let monotonic_ns = u64::try_from(u128::from(ticks) * 1_000_000_000 / u128::from(RATE)).unwrap();
            let anchor = Anchor { ticks, monotonic_ns, realtime_ns: 1_700_000_000_000_000_000 + monotonic_ns };
            head[4104 + at * 24..4128 + at * 24].copy_from_slice(&anchor.to_bytes());
        }
        head[TEXT_OFFSET..TEXT_OFFSET + self.strings.len()].copy_from_slice(&self.strings);
        fs::write(format!("{}.head", self.base.display()), head).unwrap();
    }
}

/// A number that looks random and is the same in every run.
fn scatter(value: u64) -> u64 {
    let mixed = (value ^ value >> 31).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ mixed >> 29
}

/// Steps from one request to the next, unless another number is asked for: with 200 tokens each, some 30 run at a time.
const STEPS_PER_REQUEST: u64 = 7;

/// A request is queued and started, and gets its first token. Every hundredth is preempted and comes back.
fn request_begins(engine: &mut Log, ticks: u64, step: u64, number: u64) {
    let arrival = 1_700_000_000.0 + ticks as f64 / RATE as f64;
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

fn generate(raw: &Path, records: u64, steps_per_request: u64) -> u64 {
    let mut engine = Log::new(raw, "engine_core", 100);
    let mut worker = Log::new(raw, "worker", 101);
    let mut front = Log::new(raw, "api_server", 102);
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
            running: seqs,
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

/// Most memory that was resident, in KiB, and the processor time that was used so far, in seconds.
fn used() -> (i64, f64) {
    // SAFETY: all zero is a value of this plain struct, and getrusage fills it through a valid pointer.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    (usage.ru_maxrss, seconds(usage.ru_utime) + seconds(usage.ru_stime))
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let records: u64 = arguments.next().map_or(10_000_000, |count| count.parse().unwrap());
    let parent = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let steps_per_request = arguments.next().map_or(STEPS_PER_REQUEST, |steps| steps.parse().unwrap());
    let session = parent.join(format!("session_20260101_000000_{:06x}", std::process::id()));
    fs::create_dir_all(session.join("raw")).unwrap();
    let records = generate(&session.join("raw"), records, steps_per_request);
    let (rss_before, cpu_before) = used();
    let began = Instant::now();
    let opened = Session::open(&session).unwrap();
    let survey_seconds = began.elapsed().as_secs_f64();
    let answers = tables::write(&opened, &session).unwrap();
    let seconds = began.elapsed().as_secs_f64();
    let (rss, cpu) = used();
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
    fs::remove_dir_all(&session).unwrap();
}
