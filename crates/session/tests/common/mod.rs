//! Makes raw logs byte by byte, so that what is written never depends on the recorder of the day.

mod layers;
mod requests;

use std::fs;
use std::path::{Path, PathBuf};

use profilemate_format::head::{
    ANCHOR_BANKS, Anchor, ClockSource, Identity, TEXT_OFFSET, TextKind, counter, text_entry,
};
use profilemate_format::record::{
    FLAG_RAISED, GpuStep, Label, Limits, Outputs, Payload, ProcessExit, Record, Schedule, Span, commit_word,
};
use profilemate_format::segment::SegmentHeader;

pub(crate) const SEGMENT_SLOTS: u32 = 64;
const TEXT_CAPACITY: usize = 4096;

/// When every session of these tests began: 2026-01-02 03:04:05 UTC.
const REALTIME_NS: u64 = 1_767_323_045_000_000_000;
const MONOTONIC_NS: u64 = 5_000_000_000_000;
/// Ticks per microsecond of the processors here.
pub(crate) const TICKS_PER_US: u64 = 2_500;
const TICKS_AT_START: u64 = 9_000_000_000_000;

/// A log being made. Times are microseconds since the session's start.
pub(crate) struct Log {
    pub(crate) identity: Identity,
    pub(crate) stem: String,
    text: Vec<u8>,
    names: Vec<String>,
    pub(crate) records: Vec<Record>,
    pub(crate) anchors_us: Vec<u64>,
    pub(crate) closed_us: Option<u64>,
    pub(crate) probe_errors: u64,
    /// Half a record behind the last one, as a kill in the middle of a write leaves it.
    pub(crate) torn: bool,
    /// Segments that were deleted to keep to the bound.
    pub(crate) discarded_segments: usize,
}

impl Log {
    pub(crate) fn new(role: &str, rank: u32, data_parallel_rank: u32, pid: u32, parent_pid: u32) -> Self {
        let mut log_id = [0; 16];
        log_id[..4].copy_from_slice(&pid.to_le_bytes());
        log_id[4..8].copy_from_slice(b"gold");
        let identity = Identity {
            log_id,
            role: role.to_owned(),
            rank,
            data_parallel_rank,
            pid,
            parent_pid,
            process_start: u64::from(pid) * 10,
            ticks_per_second: TICKS_PER_US * 1_000_000,
            clock: ClockSource::X86Tsc,
            segment_slots: SEGMENT_SLOTS,
            text_capacity: TEXT_CAPACITY as u64,
        };
        Self {
            identity,
            stem: format!("{role}-{rank}-{pid}"),
            text: Vec::new(),
            names: Vec::new(),
            records: Vec::new(),
            anchors_us: vec![0, 1_000_000],
            closed_us: None,
            probe_errors: 0,
            torn: false,
            discarded_segments: 0,
        }
    }

    pub(crate) fn monotonic(mut self) -> Self {
        self.identity.clock = ClockSource::Monotonic;
        self.identity.ticks_per_second = 1_000_000_000;
        self
    }

    pub(crate) fn ticks(&self, us: u64) -> u64 {
        match self.identity.clock {
            ClockSource::Monotonic => MONOTONIC_NS + us * 1000,
            _ => TICKS_AT_START + us * TICKS_PER_US,
        }
    }

    fn ticks_long(&self, us: u64) -> u64 {
        self.ticks(us) - self.ticks(0)
    }

    pub(crate) fn name(&mut self, text: &str) -> u32 {
        if let Some(at) = self.names.iter().position(|name| name == text) {
            return u32::try_from(at + 1).unwrap();
        }
        self.names.push(text.to_owned());
        self.text.extend(text_entry(TextKind::String, text.as_bytes()).unwrap());
        u32::try_from(self.names.len()).unwrap()
    }

    pub(crate) fn fact(&mut self, key: &str, value: &str) {
        self.text.extend(text_entry(TextKind::Fact, format!("{key}\0{value}").as_bytes()).unwrap());
    }

    pub(crate) fn role(&mut self, name: &str, rank: u32, data_parallel_rank: u32) {
        let role = format!("{name}\0{rank}\0{data_parallel_rank}");
        self.text.extend(text_entry(TextKind::Role, role.as_bytes()).unwrap());
    }

    pub(crate) fn push(&mut self, us: u64, step: u64, label: Label, name: u32, payload: Payload) {
        let flags = if step == 13 && name == 1 { FLAG_RAISED } else { 0 };
        self.records.push(Record { ticks: self.ticks(us), step, label, flags, name, payload });
    }

    pub(crate) fn span(
        &mut self,
        us: u64,
        long_us: u64,
        step: u64,
        name: &str,
        values: (u64, u64),
        context: &str,
    ) {
        self.labelled(Label::Work, us, long_us, step, name, values, context);
    }

    #[expect(clippy::too_many_arguments, reason = "a record has that many fields")]
    pub(crate) fn labelled(
        &mut self,
        label: Label,
        us: u64,
        long_us: u64,
        step: u64,
        name: &str,
        (value_a, value_b): (u64, u64),
        context: &str,
    ) {
        let name = self.name(name);
        let context = if context.is_empty() { 0 } else { self.name(context) };
        let duration_ticks = self.ticks_long(long_us);
        let overhead_ticks = u32::try_from(self.ticks_long(3 + step % 5)).unwrap();
        let span = Span { duration_ticks, value_a, value_b, context, overhead_ticks };
        self.push(us, step, label, name, Payload::Span(span));
    }

    pub(crate) fn schedule(&mut self, us: u64, step: u64, schedule: Schedule) {
        self.push(us, step, Label::Work, 0, Payload::Schedule(schedule));
    }

    pub(crate) fn outputs(&mut self, us: u64, step: u64, outputs: Outputs) {
        self.push(us, step, Label::Work, 0, Payload::Outputs(outputs));
    }

    pub(crate) fn limits(&mut self, us: u64, max_num_seqs: u64, max_num_tokens: u64) {
        self.push(us, 0, Label::WarmUp, 0, Payload::Limits(Limits { max_num_seqs, max_num_tokens }));
    }

    pub(crate) fn exit(&mut self, us: u64, exit: ProcessExit) {
        self.push(us, 0, Label::Work, 0, Payload::ProcessExit(exit));
    }

    pub(crate) fn write(&self, raw: &Path) {
        let slots = SEGMENT_SLOTS as usize;
        let mut chunks: Vec<&[Record]> = self.records.chunks(slots).collect();
        if chunks.is_empty() {
            chunks.push(&[]);
        }
        let count = chunks.len();
        for (index, chunk) in chunks.into_iter().enumerate().skip(self.discarded_segments) {
            let header = SegmentHeader { log_id: self.identity.log_id, index: index as u64, slots: SEGMENT_SLOTS };
            let mut bytes = header.to_bytes().to_vec();
            for (slot, record) in chunk.iter().enumerate() {
                let words = record.to_words();
                let commit = commit_word(&words, u32::try_from(slot).unwrap());
                bytes.extend(words.iter().chain([&commit]).flat_map(|word| word.to_le_bytes()));
            }
            if self.torn && index + 1 == count {
                bytes.extend(self.ticks(77).to_le_bytes());
            }
            if self.closed_us.is_none() || index + 1 < count {
                bytes.resize(64 + slots * 64, 0);
            }
            fs::write(raw.join(format!("{}.{index:06}.seg", self.stem)), bytes).unwrap();
        }
        let mut head = vec![0; TEXT_OFFSET + TEXT_CAPACITY];
        head[..256].copy_from_slice(&self.identity.to_bytes());
        let mut word = |offset: usize, value: u64| head[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
        word(counter::TEXT_USED, self.text.len() as u64);
        word(counter::WRITTEN, self.records.len() as u64);
        word(counter::PROBE_ERRORS, self.probe_errors);
        word(counter::SEGMENTS, count as u64);
        word(counter::DISCARDED, (self.discarded_segments * slots) as u64);
        word(counter::CLOSED, self.closed_us.map_or(0, |us| self.ticks(us)));
        word(counter::ANCHOR_BANK, 1);
        word(ANCHOR_BANKS[1], self.anchors_us.len() as u64);
        for (at, us) in self.anchors_us.iter().enumerate() {
            let anchor = Anchor {
                ticks: self.ticks(*us),
                monotonic_ns: MONOTONIC_NS + us * 1000,
                realtime_ns: REALTIME_NS + us * 1000,
            };
            let offset = ANCHOR_BANKS[1] + 8 + at * 24;
            head[offset..offset + 24].copy_from_slice(&anchor.to_bytes());
        }
        head[TEXT_OFFSET..TEXT_OFFSET + self.text.len()].copy_from_slice(&self.text);
        fs::write(raw.join(format!("{}.head", self.stem)), head).unwrap();
    }
}

/// One engine with its worker and front end, in as many logs as it takes.
struct Parts {
    logs: Vec<Log>,
    engine: usize,
    workers: Vec<usize>,
    front: usize,
}

impl Parts {
    /// Records `steps` steps that begin 1 ms apart.
    fn work(&mut self, first_step: u64, steps: u64) {
        for step in first_step..first_step + steps {
            let us = 10_000 + step * 1000;
            let empty = step % 9 == 0;
            // Steps 1 and 2 are one long prompt in two chunks; then decoding, with a new prompt in every fifth step.
            let (num_seqs, num_tokens, prefill_tokens) = match step {
                _ if empty => (0, 0, 0),
                1 => (1, 512, 512),
                2 => (1, 300, 300),
                _ if step % 5 == 0 => (4, 39, 36),
                _ => (3, 3, 0),
            };
            let completes = prefill_tokens > 0 && step != 1;
            let schedule = Schedule {
                num_seqs,
                num_tokens,
                prefill_tokens,
                prefill_seqs: u32::from(prefill_tokens > 0),
                running: Some(num_seqs),
                waiting: Some(u32::try_from(step % 3).unwrap()),
                completed_prompt_tokens: Some(match (completes, step) {
                    (false, _) => 0,
                    (true, 2) => 812,
                    (true, _) => 36,
                }),
                completed_prompts: Some(u32::from(completes)),
            };
            let engine = &mut self.logs[self.engine];
            engine.schedule(us, step, schedule);
            engine.span(us, 40 + step % 7, step, "scheduling", (0, 0), "");
            if !empty {
                let batch = u64::from(num_tokens) | u64::from(num_seqs) << 32;
                for (at, worker) in self.workers.iter().enumerate() {
                    let worker = &mut self.logs[*worker];
                    let late = at as u64 * 2 + step % 3;
                    let (padded, mode) = if prefill_tokens > 0 {
                        (0, "")
                    } else {
                        (4, "FULL num_tokens=4 num_reqs=4 uniform=1 has_lora=0")
                    };
                    let long = 100 + u64::from(num_tokens);
                    worker.span(us + 130 + late, long, step, "forward", (batch, padded), mode);
                    worker.span(us + 80 + late, long + 60, step, "model_execution", (batch, 0), "");
                    if at == 0 {
                        worker.span(us + 750 + late, 30, step, "sampling", (0, 0), "");
                        worker.span(us + 785 + late, 12, step, "bookkeeping", (0, 0), "");
                    }
                }
            }
            let outputs = if completes || prefill_tokens == 0 { num_seqs } else { 0 };
            let stamp = (5000.0 + us as f64 / 1e6).to_bits();
            let engine = &mut self.logs[self.engine];
            engine.span(us + 820, 25, step, "update_from_output", (0, 0), "");
            engine.outputs(
                us + 846,
                step,
                Outputs {
                    timestamp_bits: stamp,
                    client: 0,
                    num_outputs: outputs,
                    new_tokens: u64::from(outputs),
                    finished: u64::from(step % 6 == 0 && outputs > 0),
                },
            );
            engine.span(us, 850, step, "engine_step", (0, 0), "");
            if step % 8 == 0 {
                engine.span(us + 855, 100, 0, "engine_idle", (0, 0), "");
            }
            let front = &mut self.logs[self.front];
            front.span(us + 870, 9, 0, "detokenization", (stamp, u64::from(outputs)), "");
            front.span(us + 860, 30, 0, "output_processing", (stamp, u64::from(outputs)), "");
            if step % 5 == 0 {
                front.span(us + 900, 45, 0, "tokenization", (0, 0), "");
            }
        }
    }
}

fn profilers_on(log: &mut Log) {
    for profiler in ["forward_pass_timing", "cpu_timing", "batch_utilization_tracking"] {
        log.fact(&format!("profiler:{profiler}"), "on");
        log.fact(&format!("flag:{profiler}"), "1");
    }
    log.fact("profiler:kv_cache_tracking", "off");
    log.fact("flag:kv_cache_tracking", "0");
    log.fact("profiler:moe_expert_tracking", "could not attach: the model has no experts");
    log.fact("flag:moe_expert_tracking", "1");
    log.fact("flag:cuda_events_enabled", "1");
}

/// `vllm serve` under the launcher: four processes, a clean end but for the worker, which was killed.
fn server(raw: &Path) {
    let mut launcher = Log::new("launcher", 0, 0, 1000, 1).monotonic();
    launcher.fact("command", "vllm serve tiny --api-key ***");
    launcher.exit(60_000, ProcessExit { pid: 1001, code: 0, signal: 0 });
    launcher.closed_us = Some(61_000);
    let mut front = Log::new("api_server", 0, 0, 1001, 1000);
    front.fact("vllm_version", "0.33.0");
    front.fact("command", "something else");
    front.fact("model", "tiny, \"quoted\"");
    front.fact("hook:output_processing", "vllm.v1.engine.output_processor.OutputProcessor.process_outputs");
    front.fact("hook:forward", "absent: this process has no worker");
    front.closed_us = Some(59_000);
    let mut engine = Log::new("engine_core", 0, 0, 1002, 1001);
    profilers_on(&mut engine);
    engine.fact("torch_version", "2.9.0");
    engine.fact("timing_mode", "wall");
    engine.fact("hook:scheduling", "vllm.v1.core.sched.scheduler.Scheduler.schedule");
    engine.limits(5_000, 8, 1024);
    engine.labelled(Label::WarmUp, 2_000, 3_000, 0, "warm_up", (0, 0), "compile_or_warm_up_model");
    engine.closed_us = Some(58_000);
    engine.probe_errors = 1;
    let mut worker = Log::new("worker", 0, 0, 1003, 1002);
    worker.fact("hook:forward", "vllm.v1.worker.gpu_model_runner.GPUModelRunner._model_forward");
    worker.fact("gpu_name", "Some GPU");
    worker.fact("gpu_count", "1");
    worker.labelled(Label::WarmUp, 3_000, 900, 0, "forward", (512, 0), "");
    worker.labelled(Label::Dummy, 9_000, 90, 0, "model_execution", (1, 0), "");
    let mut parts = Parts { logs: vec![launcher, front, engine, worker], front: 1, engine: 2, workers: vec![3] };
    parts.work(1, 40);
    // A name that this version does not know, and a record kind that it does not know either.
    let worker = &mut parts.logs[3];
    worker.span(52_000, 5, 41, "from_a_newer_version", (0, 0), "");
    worker.push(52_100, 41, Label::Work, 0, Payload::Unknown { kind: 900, words: [1, 2, 3, 4] });
    parts.logs.iter().for_each(|log| log.write(raw));
}

/// Offline inference in one process, killed in the middle of a write.
fn single_process(raw: &Path) {
    let mut log = Log::new("engine_core", 0, 0, 2000, 1).monotonic();
    log.role("worker", 0, 0);
    log.role("api_server", 0, 0);
    profilers_on(&mut log);
    log.limits(5_000, 256, 2048);
    log.torn = true;
    let mut parts = Parts { logs: vec![log], front: 0, engine: 0, workers: vec![0] };
    parts.work(1, 12);
    parts.logs[0].write(raw);
}

/// Two data-parallel engines, one of two workers; the first was started again; one engine's log is missing; the
/// oldest segments of one log were deleted to keep to its bound.
fn parallel(raw: &Path) {
    let mut engine = Log::new("engine_core", 0, 0, 3001, 3000);
    profilers_on(&mut engine);
    engine.limits(5_000, 8, 1024);
    let front = Log::new("api_server", 0, 0, 3000, 1);
    let workers = [Log::new("worker", 0, 0, 3002, 3001), Log::new("worker", 1, 0, 3003, 3001)];
    let logs = [engine, front].into_iter().chain(workers).collect();
    let mut first = Parts { logs, engine: 0, front: 1, workers: vec![2, 3] };
    first.work(1, 30);
    first.logs[0].discarded_segments = 1;
    first.logs.iter().for_each(|log| log.write(raw));

    let mut engine = Log::new("engine_core", 1, 1, 3011, 3000);
    profilers_on(&mut engine);
    // Nobody said what its limits are. It was too short to measure its clock.
    engine.anchors_us = vec![20];
    let mut worker = Log::new("worker", 0, 1, 3012, 3011);
    worker.anchors_us = vec![30];
    let front = Log::new("api_server", 1, 0, 3010, 1);
    let mut second = Parts { logs: vec![engine, front, worker], engine: 0, front: 1, workers: vec![2] };
    second.work(3, 4);
    second.logs.iter().for_each(|log| log.write(raw));

    let mut engine = Log::new("engine_core", 0, 0, 3021, 3000);
    profilers_on(&mut engine);
    engine.anchors_us = vec![40_000, 1_000_000];
    engine.limits(40_000, 4, 512);
    let front = Log::new("api_server", 2, 0, 3020, 1);
    let worker = Log::new("worker", 0, 0, 3022, 3021);
    let mut again = Parts { logs: vec![engine, front, worker], engine: 0, front: 1, workers: vec![2] };
    again.work(40, 3);
    again.logs.iter().for_each(|log| log.write(raw));

    let engine = Log::new("engine_core", 2, 2, 3031, 3000);
    let front = Log::new("api_server", 3, 0, 3030, 1);
    let worker = Log::new("worker", 0, 2, 3032, 3031);
    let mut lost = Parts { logs: vec![engine, front, worker], engine: 0, front: 1, workers: vec![2] };
    lost.work(1, 3);
    lost.logs[2].write(raw);
}

/// An engine core with its worker in one process, on a GPU: the GPU's clock is read two steps later, and the last two
/// steps were not found done before the process was killed.
fn gpu(raw: &Path) {
    let mut log = Log::new("engine_core", 0, 0, 4000, 1);
    log.role("worker", 0, 0);
    profilers_on(&mut log);
    log.fact("timing_mode", "wall");
    log.fact("timing_mode", "events");
    log.fact("gpu_name", "NVIDIA H100");
    log.fact("gpu_driver", "CUDA 13.0");
    // The first segment with the record of the limits may be gone: they are facts as well.
    log.fact("max_num_seqs", "16");
    log.fact("max_num_tokens", "2048");
    log.fact("profiler:cuda_graph_tracking", "on");
    let captured = "FULL num_tokens=4 num_reqs=4 uniform=1 has_lora=0";
    log.labelled(Label::WarmUp, 3_000, 1_500, 0, "graph_capture", (0, 0), captured);
    let front = Log::new("api_server", 0, 0, 3999, 1);
    let mut parts = Parts { logs: vec![log, front], front: 1, engine: 0, workers: vec![0] };
    for step in 1..=12 {
        parts.work(step, 1);
        let log = &mut parts.logs[0];
        let done = step.saturating_sub(2);
        if done == 0 || done == 9 {
            continue;
        }
        let prefill = done <= 2 || done % 5 == 0;
        let mode = if prefill { "NONE" } else { "FULL num_tokens=4 num_reqs=4 uniform=1 has_lora=0" };
        let gpu_step = GpuStep {
            forward_ms: Some(if prefill { 0.75 } else { 0.0625 * done as f32 }),
            // Nothing was sampled in the first chunk of the prompt.
            sample_ms: (done != 1).then_some(0.03125),
            idle_before_ms: (done != 1).then_some(0.5),
            draft_ms: None,
            busy_ms: Some(if prefill { 0.8125 } else { 0.0625 * done as f32 + 0.03125 }),
            padded_tokens: if prefill { 0 } else { 4 },
            descriptor: log.name(mode),
            read_after_us: 2000,
        };
        log.push(10_000 + done * 1000 + 130, done, Label::Work, 0, Payload::GpuStep(gpu_step));
    }
    parts.logs.iter().for_each(|log| log.write(raw));
}

/// Writes the raw logs of a session into a folder.
pub(crate) type WriteSession = fn(&Path);

/// The golden sessions.
pub(crate) const SESSIONS: [(&str, WriteSession); 6] = [
    ("server", server),
    ("single_process", single_process),
    ("parallel", parallel),
    ("gpu", gpu),
    ("requests", requests::requests),
    ("layers", layers::layers),
];

/// Golden sessions that are of real vLLM runs, made by `scripts/record_golden_sessions.sh`.
pub(crate) const RECORDED: [&str; 5] =
    ["real_decode", "real_prefill", "real_preempting", "real_vision", "real_sampling"];

/// The folder with the golden sessions of the first format version.
pub(crate) fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1")
}

/// A copy of a golden session that a test may damage; the folder goes with the first value.
pub(crate) fn copy(name: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let session = folder.path().join(format!("session_{name}"));
    fs::create_dir_all(session.join("raw")).unwrap();
    for entry in fs::read_dir(golden().join(name).join("raw")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, session.join("raw").join(path.file_name().unwrap())).unwrap();
    }
    (folder, session)
}
