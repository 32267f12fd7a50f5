//! How long `profilemate report` takes for one hour of a busy server, and how much memory.
//!
//! ```text
//! cargo build --release -p profilemate-cli
//! cargo run --release -p profilemate-output --example report_bench -- [STEPS] [FOLDER]
//! ```
//! Writes a synthetic session of STEPS steps (default: 360,000, an hour of 10 ms each) with 256 running requests into a new
//! folder in FOLDER (default: the temporary folder), runs the command on it as somebody would, three times without the page
//! `report.html` and three times with it, then makes all tables and the timeline, prints one JSON document and removes it again.
//! `PROFILEMATE` names another command than the one that was built beside. The promise: at most 10 s and 512 MiB, the page at
//! most 3 s and 100 MiB of it, and at most 3 MB.
//!
//! Of a real server it has the shape, not the speed: prompts of 128 to 8191 tokens, computed in pieces beside the decoding
//! requests; answers of 1 to 1999 tokens; a KV cache that is nearly full, evicts all the time and preempts now and then;
//! CUDA graphs for batches that only decode; steps timed on the GPU; ids from clients.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a program for developers that may stop anywhere")]

mod synthetic;

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use profilemate_format::record::{
    ClientRequest, GpuStep, KvCache, KvEviction, Limits, Outputs, Payload, RequestAdmitted, RequestFinished,
    RequestFirstToken, RequestPreempted, RequestQueued, RequestText, Schedule, Span,
};
use synthetic::{BEGAN, Log, RATE, scatter, used};

const STEPS: u64 = 360_000;
/// Requests that run at a time.
const RUNNING: usize = 256;
/// Requests that wait at a time.
const WAITING: usize = 20;
const MAX_TOKENS: u32 = 8192;
const BLOCKS: u32 = 30_000;
/// One in so many blocks is followed, as the recorder does with a pool of that size.
const FOLLOWED: u32 = 7;
/// Ticks of a millisecond.
const MS: u64 = RATE / 1000;

/// A request that waits or runs.
#[derive(Debug, Clone, Copy)]
struct Request {
    number: u64,
    prompt_tokens: u32,
    /// Tokens of it that are computed.
    computed: u32,
    generated: u32,
    /// Length of its answer.
    wanted: u32,
    was_preempted: bool,
}

/// Names that records refer to.
struct Names {
    engine: [u32; 4],
    worker: [u32; 4],
    front: [u32; 3],
    limits: [u32; 3],
    stopped: u32,
    full: u32,
    /// With a graph and without, in the worker's log.
    descriptors: [u32; 2],
}

struct Server {
    engine: Log,
    worker: Log,
    front: Log,
    names: Names,
    running: Vec<Request>,
    waiting: VecDeque<Request>,
    last: u64,
}

impl Server {
    fn new(session: &Path) -> Self {
        let mut engine = Log::new(session, "engine_core", 100);
        let mut worker = Log::new(session, "worker", 101);
        let mut front = Log::new(session, "api_server", 102);
        for profiler in [
            "forward_pass_timing",
            "cpu_timing",
            "batch_utilization_tracking",
            "preemption_tracking",
            "kv_cache_tracking",
            "cuda_graph_tracking",
        ] {
            engine.fact(&format!("profiler:{profiler}"), "on");
        }
        engine.fact("vllm_version", "0.33.0");
        engine.fact("model", "some/model");
        worker.fact("timing_mode", "events");
        let names = Names {
            engine: ["scheduling", "update_from_output", "engine_step", "engine_idle"]
                .map(|name| engine.name(name)),
            worker: ["model_execution", "forward", "sampling", "bookkeeping"].map(|name| worker.name(name)),
            front: ["output_processing", "detokenization", "tokenization"].map(|name| front.name(name)),
            limits: ["max_num_seqs", "token_budget", "preemption"].map(|name| engine.name(name)),
            stopped: engine.name("FINISHED_STOPPED"),
            full: engine.name("kv_cache_full"),
            descriptors: [
                worker.name("FULL num_tokens=256 num_reqs=256 uniform=1 has_lora=0"),
                worker.name("NONE"),
            ],
        };
        let limits = Limits { max_num_seqs: RUNNING as u64, max_num_tokens: u64::from(MAX_TOKENS) };
        engine.push(1, 0, 0, Payload::Limits(limits));
        Self { engine, worker, front, names, running: Vec::new(), waiting: VecDeque::new(), last: 0 }
    }

    fn written(&self) -> u64 {
        self.engine.written + self.worker.written + self.front.written
    }

    /// A client asks: the front end and the engine take note.
    fn arrives(&mut self, ticks: u64) {
        self.last += 1;
        let number = self.last;
        let random = scatter(number);
        let prompt_tokens = 128 << (random % 6) | u32::try_from(random >> 8 & 127).unwrap();
        let arrival = BEGAN as f64 + ticks as f64 / RATE as f64;
        let id = format!("chatcmpl-{:032x}", u128::from(random) << 64 | u128::from(number));
        let id_bytes = u16::try_from(id.len()).unwrap();
        let queued = RequestQueued {
            number,
            arrival_bits: arrival.to_bits(),
            prompt_tokens,
            id_bytes,
            ..RequestQueued::default()
        };
        self.front.span(ticks, MS / 20, 0, self.names.front[2], 0);
        let client = ClientRequest {
            number,
            engine_id_hash: xxhash_rust::xxh3::xxh3_64(id.as_bytes()),
            id_bytes,
            ..ClientRequest::default()
        };
        self.front.push(ticks + MS / 10, 0, 0, Payload::ClientRequest(client));
        self.engine.push(ticks + MS / 5, 0, 0, Payload::RequestQueued(queued));
        for (part, piece) in id.as_bytes().chunks(24).enumerate() {
            let mut bytes = [0; 24];
            bytes[..piece.len()].copy_from_slice(piece);
            let text = RequestText { number, part: u16::try_from(part).unwrap(), bytes };
            self.front.push(ticks + MS / 10, 0, 0, Payload::RequestText(text));
            self.engine.push(ticks + MS / 5, 0, 0, Payload::RequestText(text));
        }
        let wanted = 1 + u32::try_from(random >> 16 & 2047).unwrap() * 1998 / 2047;
        let request = Request { number, prompt_tokens, computed: 0, generated: 0, wanted, was_preempted: false };
        self.waiting.push_back(request);
    }

    fn step(&mut self, step: u64) {
        let begin = step * 10 * MS;
        let random = scatter(step);
        let wobble = random % (MS / 2);
        while self.waiting.len() < WAITING {
            self.arrives(begin - MS);
        }
        let preempted = step.is_multiple_of(500) && self.preempt(begin, step);
        let decoding =
            u32::try_from(self.running.iter().filter(|of| of.computed >= of.prompt_tokens).count()).unwrap();
        let mut budget = MAX_TOKENS - decoding;
        let (prefill_tokens, prefill_seqs, completed) =
            self.prefill(begin + MS / 10, step, &mut budget, preempted);
        let num_seqs = decoding + prefill_seqs;
        let num_tokens = decoding + prefill_tokens;
        let schedule = Schedule {
            num_seqs,
            num_tokens,
            prefill_tokens,
            prefill_seqs,
            running: u32::try_from(self.running.len()).ok(),
            waiting: u32::try_from(self.waiting.len()).ok(),
            completed_prompt_tokens: Some(completed[0]),
            completed_prompts: Some(completed[1]),
        };
        let limit = self.names.limits[if preempted { 2 } else { usize::from(budget == 0) }];
        let [scheduling, update, engine_step, _] = self.names.engine;
        self.engine.push(begin, step, limit, Payload::Schedule(schedule));
        self.cache(begin + MS / 5, step, num_tokens, random);
        self.engine.span(begin, MS / 4 + wobble / 4, step, scheduling, 0);
        let forward_ms = 6.0 + num_tokens as f32 / 2000.0 + (wobble as f32 / MS as f32);
        self.work(begin + MS / 2, step, [num_tokens, num_seqs], prefill_tokens == 0, forward_ms);
        let end = begin + 8 * MS + wobble;
        let (new_tokens, finished) = self.outputs(end, step);
        self.engine.span(end, MS / 5, step, update, 0);
        let stamp = (step as f64 * 0.01 + 5.0).to_bits();
        let outputs = Outputs {
            timestamp_bits: stamp,
            client: 0,
            num_outputs: u32::try_from(new_tokens).unwrap(),
            new_tokens,
            finished,
        };
        self.engine.push(end + MS / 4, step, 0, Payload::Outputs(outputs));
        self.engine.span(begin, 8 * MS + MS / 2 + wobble, step, engine_step, 0);
        let [processing, detokenization, _] = self.names.front;
        self.front.span(end + MS / 2, MS / 3, 0, detokenization, stamp);
        self.front.span(end + MS / 2, MS, 0, processing, stamp);
    }

    /// The request that came last makes room for the others.
    fn preempt(&mut self, ticks: u64, step: u64) -> bool {
        let Some(mut request) = self.running.pop() else { return false };
        let preempted = RequestPreempted {
            number: request.number,
            computed_tokens: request.computed,
            output_tokens: request.generated,
            ..RequestPreempted::default()
        };
        self.engine.push(ticks, step, self.names.full, Payload::RequestPreempted(preempted));
        request.computed = 0;
        request.was_preempted = true;
        self.waiting.push_front(request);
        true
    }

    /// Computes prompts: of those that run, then of those that wait. Returns tokens, sequences, and what is complete.
    fn prefill(&mut self, ticks: u64, step: u64, budget: &mut u32, preempted: bool) -> (u32, u32, [u32; 2]) {
        let (mut tokens, mut seqs, mut completed) = (0, 0, [0; 2]);
        let mut take = |request: &mut Request, budget: &mut u32| {
            let piece = (request.prompt_tokens + request.generated - request.computed).min(*budget);
            *budget -= piece;
            request.computed += piece;
            tokens += piece;
            seqs += 1;
            if request.computed >= request.prompt_tokens + request.generated && !request.was_preempted {
                completed[0] += request.prompt_tokens;
                completed[1] += 1;
            }
            piece
        };
        for request in self.running.iter_mut().filter(|of| of.computed < of.prompt_tokens) {
            if *budget > 0 {
                take(request, budget);
            }
        }
        while !preempted && *budget > 0 && self.running.len() < RUNNING {
            let Some(mut request) = self.waiting.pop_front() else { break };
            let num_tokens = request.prompt_tokens + request.generated;
            // Some find their beginning in the prefix cache.
            let computed_tokens = if request.number.is_multiple_of(4) { 64 } else { 0 };
            request.computed = computed_tokens;
            let scheduled_tokens = take(&mut request, budget);
            let admitted = RequestAdmitted {
                number: request.number,
                computed_tokens,
                num_tokens,
                scheduled_tokens,
                ..RequestAdmitted::default()
            };
            self.engine.push(ticks, step, 0, Payload::RequestAdmitted(admitted));
            self.running.push(request);
        }
        (tokens, seqs, completed)
    }

    fn cache(&mut self, ticks: u64, step: u64, num_tokens: u32, random: u64) {
        let used = BLOCKS - 1 - u32::try_from(random % 2000).unwrap();
        let evicted = num_tokens / 16;
        for _ in 0..evicted / FOLLOWED % 2 {
            let eviction = KvEviction {
                lifetime_ticks: 1000 * MS + random % (10_000 * MS),
                idle_ticks: random % (1000 * MS),
                stands_for: FOLLOWED,
                ..KvEviction::default()
            };
            self.engine.push(ticks, step, 0, Payload::KvEviction(eviction));
        }
        let kv_cache = KvCache {
            used,
            total: BLOCKS,
            cached: BLOCKS,
            allocated: evicted,
            evicted,
            prefix_query_tokens: num_tokens,
            prefix_hit_tokens: num_tokens / 8,
            ..KvCache::default()
        };
        self.engine.push(ticks, step, 0, Payload::KvCache(kv_cache));
    }

    fn work(&mut self, ticks: u64, step: u64, [tokens, seqs]: [u32; 2], is_decode: bool, forward_ms: f32) {
        let size = u64::from(tokens) | u64::from(seqs) << 32;
        let descriptor = self.names.descriptors[usize::from(!is_decode)];
        let padded = if is_decode { 256 } else { tokens };
        let [execution, forward, sampling, bookkeeping] = self.names.worker;
        let span = Span {
            duration_ticks: MS,
            value_a: size,
            value_b: u64::from(padded),
            context: descriptor,
            overhead_ticks: 0,
        };
        self.worker.push(ticks + MS, step, forward, Payload::Span(span));
        self.worker.span(ticks, 2 * MS + MS / 2, step, execution, size);
        self.worker.span(ticks + 3 * MS, MS / 5, step, sampling, size);
        self.worker.span(ticks + 4 * MS, MS / 10, step, bookkeeping, size);
        // The GPU's times come some steps later, dated when the step began.
        let gpu = GpuStep {
            forward_ms: Some(forward_ms),
            sample_ms: Some(0.3),
            idle_before_ms: Some(0.4),
            busy_ms: Some(forward_ms + 0.5),
            padded_tokens: padded,
            descriptor,
            read_after_us: 30_000,
            ..GpuStep::default()
        };
        self.worker.push(ticks + MS, step, 0, Payload::GpuStep(gpu));
    }

    /// What the step's requests get: tokens in all, and how many are over.
    fn outputs(&mut self, ticks: u64, step: u64) -> (u64, u64) {
        let (mut tokens, mut finished) = (0, 0);
        let (engine, stopped) = (&mut self.engine, self.names.stopped);
        self.running.retain_mut(|request| {
            if request.computed < request.prompt_tokens {
                return true;
            }
            tokens += 1;
            request.generated += 1;
            request.computed = request.computed.max(request.prompt_tokens + request.generated - 1);
            if request.generated == 1 {
                let first = RequestFirstToken { number: request.number, output_tokens: 1, client: 0 };
                engine.push(ticks, step, 0, Payload::RequestFirstToken(first));
            }
            if request.generated < request.wanted {
                return true;
            }
            let over = RequestFinished {
                number: request.number,
                prompt_tokens: request.prompt_tokens,
                output_tokens: request.generated,
                preemptions: u32::from(request.was_preempted),
                computed_tokens: request.computed,
                client: 0,
            };
            engine.push(ticks, step, stopped, Payload::RequestFinished(over));
            finished += 1;
            false
        });
        (tokens, finished)
    }
}

/// Runs the command on the session; seconds, seconds of processor time, and its greatest memory in MiB.
fn run(program: &Path, arguments: &[&str], session: &Path) -> [f64; 3] {
    let (_, cpu_before) = used(libc::RUSAGE_CHILDREN);
    let began = Instant::now();
    let status = Command::new(program).args(arguments).arg(session).stdout(Stdio::null()).status().unwrap();
    let seconds = began.elapsed().as_secs_f64();
    assert!(status.success(), "{arguments:?} failed");
    let (rss, cpu) = used(libc::RUSAGE_CHILDREN);
    [seconds, cpu - cpu_before, rss as f64 / 1024.0]
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let steps: u64 = arguments.next().map_or(STEPS, |count| count.parse().unwrap());
    let parent = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let beside = || std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("profilemate");
    let program = std::env::var_os("PROFILEMATE").map_or_else(beside, PathBuf::from);
    assert!(program.exists(), "build it first: cargo build --release -p profilemate-cli");
    let session = parent.join(format!("session_20260101_000000_{:06x}", std::process::id()));
    fs::create_dir_all(session.join("raw")).unwrap();
    let mut server = Server::new(&session);
    for step in 1..=steps {
        server.step(step);
    }
    let (records, requests) = (server.written(), server.last);
    let last = (steps + 2) * 10 * MS;
    for log in [server.engine, server.worker, server.front] {
        log.finish(last);
    }
    // Memory is the greatest of all that ran before, too: what needs least is first.
    let plain = [(); 3].map(|()| run(&program, &["report", "--no-html"], &session));
    let reports = [(); 3].map(|()| run(&program, &["report"], &session));
    let page_bytes = fs::metadata(session.join("report.html")).unwrap().len();
    let export = run(&program, &["export"], &session);
    let timeline = run(&program, &["timeline"], &session);
    let timeline_bytes = fs::metadata(session.join("timeline.pftrace")).unwrap().len();
    let each = |reports: &[[f64; 3]; 3], of: usize| reports.map(|report| format!("{:.3}", report[of])).join(", ");
    println!(
        "{{\"records\": {records}, \"engine_steps\": {steps}, \"requests\": {requests}, \
         \"no_html_seconds\": [{}], \"no_html_cpu_seconds\": [{}], \"no_html_peak_rss_mib\": {:.1}, \
         \"report_seconds\": [{}], \"report_cpu_seconds\": [{}], \"report_peak_rss_mib\": {:.1}, \
         \"page_bytes\": {page_bytes}, \"export_seconds\": {:.3}, \
         \"export_cpu_seconds\": {:.3}, \"export_peak_rss_mib\": {:.1}, \"timeline_bytes\": {timeline_bytes}, \
         \"timeline_seconds\": {:.3}, \"timeline_cpu_seconds\": {:.3}, \"timeline_peak_rss_mib\": {:.1}, \"raw_mib\": {:.1}, \"processors\": {}}}",
        each(&plain, 0),
        each(&plain, 1),
        plain[2][2],
        each(&reports, 0),
        each(&reports, 1),
        reports[2][2],
        export[0],
        export[1],
        export[2],
        timeline[0],
        timeline[1],
        timeline[2],
        records as f64 * 64.0 / f64::from(1 << 20),
        std::thread::available_parallelism().map_or(0, usize::from),
    );
    fs::remove_dir_all(&session).unwrap();
}
