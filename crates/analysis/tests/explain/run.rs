//! A made-up run of an engine: usual steps, and what a test changes in some of them.

use std::path::Path;

use profilemate_analysis::explain::{Explainer, Recording};
use profilemate_format::record::{
    GpuStep, KvCache, Label, Outputs, Payload, RequestAdmitted, RequestPreempted, Schedule,
};
use profilemate_session::Session;

use crate::common::Log;

pub(crate) const FULL: &str = "FULL num_tokens=8 num_reqs=8 uniform=1 has_lora=0";

/// Where a pause falls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Where {
    Engine,
    Worker,
    FrontEnd,
}

/// Something that stops a process, in the middle of the step's scheduling (engine) or forward pass (worker).
#[derive(Debug, Clone)]
pub(crate) struct Pause {
    pub(crate) place: Where,
    pub(crate) us: u64,
    /// Generation of a garbage collection; `None` = a warm-up.
    pub(crate) generation: Option<u64>,
}

/// Times in the GPU's own clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Gpu {
    pub(crate) idle_us: u64,
    pub(crate) forward_us: u64,
}

/// One step. Times in microseconds, in the order in which they pass.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    pub(crate) idle: Option<u64>,
    pub(crate) between: u64,
    pub(crate) scheduling: u64,
    pub(crate) preparation: u64,
    /// One for each worker.
    pub(crate) forward: Vec<u64>,
    pub(crate) sampling: u64,
    pub(crate) bookkeeping: u64,
    pub(crate) other: u64,
    pub(crate) update: u64,
    pub(crate) seqs: u32,
    pub(crate) tokens: u32,
    pub(crate) prefill: u32,
    pub(crate) prefill_seqs: u32,
    pub(crate) descriptor: &'static str,
    pub(crate) pauses: Vec<Pause>,
    pub(crate) evicted: Option<u32>,
    /// Numbers of requests.
    pub(crate) preempted: Vec<u64>,
    /// Numbers of requests, and their tokens in the batch.
    pub(crate) admitted: Vec<(u64, u32)>,
    pub(crate) gpu: Option<Gpu>,
    /// Whether the scheduler's results were ever taken.
    pub(crate) ends: bool,
}

impl Step {
    /// A decoding step of ten milliseconds.
    pub(crate) fn usual(number: u64) -> Self {
        Self {
            idle: None,
            between: 100,
            scheduling: 200,
            preparation: 500,
            // A little spread.
            forward: vec![8_000 + number % 3 * 10],
            sampling: 300,
            bookkeeping: 100,
            other: 600,
            update: 200,
            seqs: 8,
            tokens: 8,
            prefill: 0,
            prefill_seqs: 0,
            descriptor: FULL,
            pauses: Vec::new(),
            evicted: Some(0),
            preempted: Vec::new(),
            admitted: Vec::new(),
            gpu: None,
            ends: true,
        }
    }

    /// With a prompt beside the decoding, which costs 10 us per token.
    pub(crate) fn mixed(number: u64, prompt: u32) -> Self {
        let usual = Self::usual(number);
        Self {
            forward: vec![usual.forward[0] + u64::from(prompt) * 10],
            seqs: 9,
            tokens: 8 + prompt,
            prefill: prompt,
            prefill_seqs: 1,
            descriptor: "NONE",
            ..usual
        }
    }

    /// A prompt alone.
    pub(crate) fn prefill(number: u64, prompt: u32) -> Self {
        let usual = Self::usual(number);
        Self {
            forward: vec![number % 3 * 10 + u64::from(prompt) * 20],
            seqs: 1,
            tokens: prompt,
            prefill: prompt,
            prefill_seqs: 1,
            descriptor: "NONE",
            ..usual
        }
    }

    /// On a GPU that works for `forward_us` after it waited for `idle_us`, while the host waits.
    pub(crate) fn on_gpu(number: u64) -> Self {
        let usual = Self::usual(number);
        let forward_us = usual.forward[0];
        // The host launches in half a millisecond and waits for the rest in bookkeeping.
        let bookkeeping = usual.bookkeeping + forward_us - 500;
        Self { forward: vec![500], bookkeeping, gpu: Some(Gpu { idle_us: 1_700, forward_us }), ..usual }
    }
}

/// A record to be: when it was committed, and how.
type Committed = (u64, Box<dyn FnOnce(&mut Log)>);

/// What an engine and its processes leave behind.
pub(crate) struct Run {
    pub(crate) logs: Vec<Log>,
    engine: Vec<Committed>,
    workers: Vec<Vec<Committed>>,
    front: Vec<Committed>,
    pub(crate) now: u64,
    /// When each step began and ended, by number.
    pub(crate) times: Vec<(u64, u64)>,
}

impl Run {
    pub(crate) fn new(workers: usize) -> Self {
        let mut engine = Log::new("engine_core", 0, 0, 8001, 8000);
        for profiler in ["cpu_timing", "forward_pass_timing", "batch_utilization_tracking", "preemption_tracking"]
        {
            engine.fact(&format!("profiler:{profiler}"), "on");
        }
        let mut logs = vec![engine, Log::new("api_server", 0, 0, 8000, 1)];
        for worker in 0..u32::try_from(workers).unwrap() {
            logs.push(Log::new("worker", worker, 0, 8010 + worker, 8001));
        }
        Self {
            logs,
            engine: Vec::new(),
            workers: (0..workers).map(|_| Vec::new()).collect(),
            front: Vec::new(),
            now: 10_000,
            times: vec![(0, 0)],
        }
    }

    pub(crate) fn engine(&mut self, at: u64, record: impl FnOnce(&mut Log) + 'static) {
        self.engine.push((at, Box::new(record)));
    }

    fn span(list: &mut Vec<Committed>, us: u64, long: u64, step: u64, name: &'static str) {
        list.push((us + long, Box::new(move |log| log.span(us, long, step, name, (0, 0), ""))));
    }

    fn pause(&mut self, us: u64, pause: &Pause) {
        let (long, generation) = (pause.us, pause.generation);
        let list = match pause.place {
            Where::Engine => &mut self.engine,
            Where::Worker => &mut self.workers[0],
            Where::FrontEnd => &mut self.front,
        };
        let record: Box<dyn FnOnce(&mut Log)> = match generation {
            Some(generation) => {
                Box::new(move |log| log.span(us, long, 0, "garbage_collection", (generation, 5), ""))
            }
            None => Box::new(move |log| {
                log.labelled(Label::WarmUp, us, long, 0, "warm_up", (0, 0), "compile_or_warm_up_model");
            }),
        };
        list.push((us + long, record));
    }

    /// Takes the next step.
    #[expect(
        clippy::too_many_lines,
        clippy::needless_pass_by_value,
        reason = "a step from beginning to end, made for this"
    )]
    pub(crate) fn step(&mut self, step: Step) {
        let number = self.times.len() as u64;
        let mut now = self.now;
        if let Some(idle) = step.idle {
            Self::span(&mut self.engine, now, idle, 0, "engine_idle");
            now += idle;
        }
        let began = now;
        now += step.between;
        let scheduled = now;
        for pause in &step.pauses {
            if pause.place != Where::Worker {
                self.pause(now + 10, pause);
            }
        }
        now += step.scheduling;
        for number_of in step.preempted.clone() {
            let preempted = RequestPreempted { number: number_of, ..RequestPreempted::default() };
            self.engine(now - 3, move |log| {
                let reason = log.name("kv_cache_full");
                log.push(scheduled, number, Label::Work, reason, Payload::RequestPreempted(preempted));
            });
        }
        for (number_of, tokens) in step.admitted.clone() {
            let admitted = RequestAdmitted {
                number: number_of,
                num_tokens: tokens,
                scheduled_tokens: tokens,
                ..RequestAdmitted::default()
            };
            let at = now;
            self.engine(now - 2, move |log| {
                log.push(at, number, Label::Work, 0, Payload::RequestAdmitted(admitted));
            });
        }
        let schedule = Schedule {
            num_seqs: step.seqs,
            num_tokens: step.tokens,
            prefill_tokens: step.prefill,
            prefill_seqs: step.prefill_seqs,
            running: Some(step.seqs),
            ..Schedule::default()
        };
        let at = now;
        self.engine(now - 1, move |log| log.schedule(at, number, schedule));
        if let Some(evicted) = step.evicted {
            let cache = KvCache { used: 1, total: 100, evicted, ..KvCache::default() };
            self.engine(now - 1, move |log| log.push(at, number, Label::Work, 0, Payload::KvCache(cache)));
        }
        Self::span(&mut self.engine, scheduled, step.scheduling, number, "scheduling");
        let execution = now + step.other / 2;
        let mut done = execution;
        for (at, forward) in step.forward.iter().copied().enumerate() {
            let worker = &mut self.workers[at];
            let mut now = execution + step.preparation;
            let (model, descriptor, tokens) = (now, step.descriptor, step.tokens);
            worker.push((
                model + forward,
                Box::new(move |log| {
                    let size = u64::from(tokens) | 8 << 32;
                    log.span(model, forward, number, "forward", (size, 8), descriptor);
                }),
            ));
            now += forward;
            let (from, long) = (execution, now + 1 - execution);
            worker.push((
                now + 1,
                Box::new(move |log| log.span(from, long, number, "model_execution", (u64::from(tokens), 0), "")),
            ));
            Self::span(worker, now, step.sampling, number, "sampling");
            now += step.sampling;
            Self::span(worker, now, step.bookkeeping, number, "bookkeeping");
            now += step.bookkeeping;
            if let Some(gpu) = step.gpu {
                worker.push((
                    now + 25_000,
                    Box::new(move |log| {
                        let times = GpuStep {
                            forward_ms: Some(gpu.forward_us as f32 / 1e3),
                            sample_ms: Some(0.1),
                            idle_before_ms: Some(gpu.idle_us as f32 / 1e3),
                            busy_ms: Some((gpu.forward_us + 300) as f32 / 1e3),
                            draft_ms: None,
                            padded_tokens: 8,
                            descriptor: log.name(descriptor),
                            read_after_us: 1,
                        };
                        log.push(model, number, Label::Work, 0, Payload::GpuStep(times));
                    }),
                ));
            }
            done = done.max(now);
        }
        for pause in &step.pauses {
            if pause.place == Where::Worker {
                self.pause(execution + step.preparation + 10, pause);
            }
        }
        now = done + step.other.div_ceil(2);
        let update = now;
        now += step.update;
        if step.ends {
            let outputs = Outputs { num_outputs: step.seqs, new_tokens: step.seqs.into(), ..Outputs::default() };
            self.engine(now - 1, move |log| log.outputs(update, number, outputs));
            Self::span(&mut self.engine, update, step.update, number, "update_from_output");
        }
        self.now = now;
        self.times.push((began, now));
    }

    /// `count` steps as they usually are.
    pub(crate) fn usual(&mut self, count: u64, step: fn(u64) -> Step) {
        for _ in 0..count {
            self.step(step(self.times.len() as u64));
        }
    }

    /// Number of the next step.
    pub(crate) fn next(&self) -> u64 {
        self.times.len() as u64
    }

    pub(crate) fn write(self, raw: &Path) {
        let Self { mut logs, engine, workers, front, .. } = self;
        for (log, mut records) in logs.iter_mut().zip([engine, front].into_iter().chain(workers)) {
            records.sort_by_key(|(committed, _)| *committed);
            for (_, record) in records {
                record(log);
            }
        }
        for log in logs {
            log.write(raw);
        }
    }

    /// Writes the session, reads it and asks.
    pub(crate) fn ask<R>(self, question: impl FnOnce(&Session, &Explainer<'_>) -> R) -> R {
        let folder = tempfile::tempdir().unwrap();
        let raw = folder.path().join("raw");
        std::fs::create_dir(&raw).unwrap();
        self.write(&raw);
        let session = Session::open(folder.path()).unwrap();
        let recording = Recording::read(&session).unwrap();
        question(&session, &Explainer::new(&recording))
    }
}
