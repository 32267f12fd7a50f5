//! A server whose logs are made by hand, step by step.

use profilemate_analysis::findings::{Change, Direction, Finding, Findings, Level, Severity, find};
use profilemate_analysis::{Answers, analyze};
use profilemate_format::record::{
    GpuStep, KvCache, KvEviction, Label, Outputs, Payload, RequestAdmitted, RequestFinished, RequestPreempted,
    RequestQueued, Schedule,
};
use profilemate_session::{Error, Session};

use crate::common::{Log, TICKS_PER_US};

/// Blocks of the KV cache of every server here.
pub(crate) const BLOCKS: u32 = 1000;

/// What nobody said.
pub(crate) const UNKNOWN: u32 = u32::MAX;

/// A step of the engine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    pub(crate) seqs: u32,
    pub(crate) tokens: u32,
    /// Those of prompts.
    pub(crate) prefill: u32,
    /// How many wait after it, or [`UNKNOWN`].
    pub(crate) waiting: u32,
    pub(crate) limited_by: &'static str,
    /// Blocks that are held after it.
    pub(crate) held: u32,
    /// What it is dispatched as.
    pub(crate) graph: &'static str,
    /// Tokens with padding; 0 = not known.
    pub(crate) padded: u32,
    /// Forward pass on the GPU, microseconds.
    pub(crate) forward_us: u32,
    /// Sampling on the GPU, microseconds; 0 = not timed.
    pub(crate) sample_us: u32,
    /// GPU idle before it, microseconds.
    pub(crate) idle_us: u32,
    /// The front end handles its outputs for so long, microseconds; 0 = it is not recorded.
    pub(crate) output_us: u64,
}

/// A step of eight requests that decode, in a graph, with nobody waiting.
pub(crate) const DECODE: Step = Step {
    seqs: 8,
    tokens: 8,
    prefill: 0,
    waiting: 0,
    limited_by: "no_waiting_request",
    held: 600,
    graph: "FULL num_tokens=8 num_reqs=8 uniform=1 has_lora=0",
    padded: 8,
    forward_us: 9_000,
    sample_us: 0,
    idle_us: 100,
    output_us: 0,
};

/// A step of a prompt that fills the budget.
pub(crate) const PROMPT: Step =
    Step { seqs: 1, tokens: 2048, prefill: 2048, graph: "NONE", padded: 2048, forward_us: 50_000, ..DECODE };

pub(crate) struct Server {
    pub(crate) engine: Log,
    pub(crate) worker: Log,
    pub(crate) front: Log,
    pub(crate) us: u64,
    step: u64,
    number: u64,
    /// Whether a step is put together before the outputs of the one before are back.
    pub(crate) is_ahead: bool,
    outputs: Option<u64>,
}

impl Server {
    /// On a GPU, with `max_num_seqs` 8 and a budget of 2048 tokens.
    pub(crate) fn new() -> Self {
        let mut server = Self::without_gpu();
        server.worker.fact("gpu_name", "Some GPU");
        server.worker.fact("gpu_count", "1");
        server.worker.fact("timing_mode", "events");
        server
    }

    pub(crate) fn without_gpu() -> Self {
        let mut front = Log::new("api_server", 0, 0, 7000, 1);
        front.fact("command", "vllm serve tiny");
        let mut engine = Log::new("engine_core", 0, 0, 7001, 7000);
        for profiler in [
            "batch_utilization_tracking",
            "preemption_tracking",
            "kv_cache_tracking",
            "cuda_graph_tracking",
            "forward_pass_timing",
            "cpu_timing",
        ] {
            engine.fact(&format!("profiler:{profiler}"), "on");
        }
        engine.fact("kv_block_size", "16");
        engine.limits(1_000, 8, 2048);
        Self {
            engine,
            worker: Log::new("worker", 0, 0, 7002, 7001),
            front,
            us: 10_000,
            step: 0,
            number: 0,
            is_ahead: true,
            outputs: None,
        }
    }

    /// A graph that is captured before the first request.
    pub(crate) fn capture(&mut self, descriptor: &str, seconds: u64) {
        self.worker.labelled(Label::WarmUp, 2_000, seconds * 1_000_000, 0, "graph_capture", (0, 0), descriptor);
    }

    pub(crate) fn steps(&mut self, count: u64, step: Step) {
        (0..count).for_each(|_| self.one_step(step));
    }

    /// Steps of several kinds, one after the other.
    pub(crate) fn run(&mut self, parts: &[(u64, Step)]) {
        for (count, step) in parts {
            self.steps(*count, *step);
        }
    }

    fn one_step(&mut self, step: Step) {
        self.step += 1;
        let name = if step.limited_by.is_empty() { 0 } else { self.engine.name(step.limited_by) };
        let schedule = Schedule {
            num_seqs: step.seqs,
            num_tokens: step.tokens,
            prefill_tokens: step.prefill,
            running: Some(step.seqs),
            waiting: Some(step.waiting).filter(|waiting| *waiting != UNKNOWN),
            ..Schedule::default()
        };
        if self.is_ahead {
            self.engine.push(self.us, self.step, Label::Work, name, Payload::Schedule(schedule));
            self.send_outputs(step);
        } else {
            self.send_outputs(step);
            self.engine.push(self.us, self.step, Label::Work, name, Payload::Schedule(schedule));
        }
        self.outputs = Some(self.step);
        let cache = KvCache {
            used: step.held,
            total: BLOCKS,
            prefix_query_tokens: u32::MAX,
            prefix_hit_tokens: u32::MAX,
            ..KvCache::default()
        };
        self.engine.push(self.us, self.step, Label::Work, 0, Payload::KvCache(cache));
        let milliseconds = |us: u32| Some(us as f32 / 1000.0);
        let gpu = GpuStep {
            forward_ms: milliseconds(step.forward_us),
            idle_before_ms: milliseconds(step.idle_us),
            busy_ms: milliseconds(step.forward_us),
            sample_ms: milliseconds(step.sample_us).filter(|ms| *ms > 0.0),
            draft_ms: None,
            padded_tokens: step.padded,
            descriptor: if step.graph.is_empty() { 0 } else { self.worker.name(step.graph) },
            read_after_us: 100,
        };
        self.worker.push(self.us + 50, self.step, Label::Work, 0, Payload::GpuStep(gpu));
        self.us += u64::from(step.forward_us + step.idle_us);
    }

    /// The outputs of the step before come back.
    fn send_outputs(&mut self, step: Step) {
        let Some(before) = self.outputs.take() else { return };
        let outputs = Outputs {
            timestamp_bits: (9000.0 + before as f64 / 1e3).to_bits(),
            num_outputs: step.seqs,
            new_tokens: step.seqs.into(),
            ..Outputs::default()
        };
        self.engine.outputs(self.us, before, outputs);
        if step.output_us > 0 {
            let values = (outputs.timestamp_bits, step.seqs.into());
            self.front.span(self.us, step.output_us, 0, "output_processing", values, "");
        }
    }

    fn put(&mut self, name: &str, payload: Payload) {
        let name = if name.is_empty() { 0 } else { self.engine.name(name) };
        self.engine.push(self.us, self.step, Label::Work, name, payload);
    }

    /// Requests of 160 tokens that come, run and end, without anything else.
    pub(crate) fn requests(&mut self, count: u64) {
        (0..count).for_each(|_| self.request("", 0));
    }

    /// A request that is preempted for this reason (none = not at all) and resumed so much later.
    pub(crate) fn request(&mut self, reason: &str, delay_us: u64) {
        self.number += 1;
        let number = self.number;
        let queued = RequestQueued { number, prompt_tokens: 100, ..RequestQueued::default() };
        self.put("", Payload::RequestQueued(queued));
        let admitted = RequestAdmitted {
            number,
            computed_tokens: 0,
            external_tokens: u32::MAX,
            num_tokens: 100,
            scheduled_tokens: 100,
        };
        self.put("", Payload::RequestAdmitted(admitted));
        if !reason.is_empty() {
            let preempted =
                RequestPreempted { number, computed_tokens: 120, blocks_freed: 8, ..RequestPreempted::default() };
            self.put(reason, Payload::RequestPreempted(preempted));
            self.us += delay_us;
            self.put("", Payload::RequestAdmitted(admitted));
        }
        let finished = RequestFinished {
            number,
            prompt_tokens: 100,
            output_tokens: 60,
            preemptions: u32::MAX,
            ..RequestFinished::default()
        };
        self.step += 1;
        self.put("FINISHED_STOPPED", Payload::RequestFinished(finished));
    }

    /// Tokens that the prefix cache is asked for, and finds; and blocks that are emptied meanwhile.
    pub(crate) fn prefix_cache(&mut self, queries: u32, hits: u32, evicted: u32) {
        let cache = KvCache {
            used: DECODE.held,
            total: BLOCKS,
            prefix_query_tokens: queries,
            prefix_hit_tokens: hits,
            evicted,
            ..KvCache::default()
        };
        self.put("", Payload::KvCache(cache));
    }

    /// Cached blocks that are evicted after so long without use.
    pub(crate) fn evictions(&mut self, count: u32, idle_us: u64, accesses: u32) {
        for block in 0..count {
            let eviction = KvEviction {
                lifetime_ticks: 2 * idle_us * TICKS_PER_US,
                idle_ticks: idle_us * TICKS_PER_US,
                accesses,
                block,
                stands_for: 1,
            };
            self.put("", Payload::KvEviction(eviction));
        }
    }

    pub(crate) fn answers(&self) -> Answers {
        let folder = tempfile::tempdir().unwrap();
        let raw = folder.path().join("raw");
        std::fs::create_dir(&raw).unwrap();
        for log in [&self.front, &self.engine, &self.worker] {
            log.write(&raw);
        }
        analyze::<Error>(&Session::open(folder.path()).unwrap(), |_| Ok(())).unwrap()
    }

    pub(crate) fn find(&self) -> Findings {
        find(&self.answers())
    }
}

/// The ids of what was found, in order.
pub(crate) fn ids(findings: &Findings) -> Vec<&'static str> {
    findings.findings.iter().map(|finding| finding.id).collect()
}

/// The finding with this id.
pub(crate) fn of<'a>(findings: &'a Findings, id: &str) -> &'a Finding {
    let found: Vec<&Finding> = findings.findings.iter().filter(|finding| finding.id == id).collect();
    assert_eq!(found.len(), 1, "{id}: {findings:#?}");
    found[0]
}

/// A number of a finding's evidence.
pub(crate) fn number(finding: &Finding, name: &str) -> f64 {
    let found = finding.evidence.iter().find(|evidence| evidence.name == name);
    found.unwrap_or_else(|| panic!("{name}: {finding:#?}")).value
}

/// Flag, direction, value and current value of each change.
pub(crate) fn changes(finding: &Finding) -> Vec<(&'static str, Direction, Option<&str>, Option<&str>)> {
    let of = |change: &'_ Change| (change.flag, change.direction);
    finding
        .changes
        .iter()
        .map(|change| (of(change).0, of(change).1, change.value.as_deref(), change.current.as_deref()))
        .collect()
}

/// How much a finding matters, and how sure it is.
pub(crate) fn weight(finding: &Finding) -> (Severity, Level) {
    (finding.severity, finding.confidence.level)
}
