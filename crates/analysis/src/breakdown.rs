//! Where the time went: a run's wall time as each engine sees it, the time of each worker and of its GPU.
//!
//! Every division adds up to the nanosecond: what is in none of the named parts is a part too. Parts that overlap, because
//! processes work at the same time, are told apart by an order of precedence ([`sweep`]): a nanosecond counts once.
//!
//! ```text
//! run = before + engine steps + between steps + engine idle + after        for each engine
//! engine step = scheduling + … + update_from_output + other                where `other` is none of the named parts
//! worker's host = batch_preparation + … + waiting                          from its first step to its last
//! GPU = busy (forward + sampling + …) + bubbles + no work                  by the GPU's own clock
//! ```

mod engine;
mod sweep;
mod worker;

use profilemate_session::{Component, Event, Name, Session};

use crate::Context;
use crate::cpu::Operation;
use crate::forward::{Pass, Timing};
use engine::Engine;
use sweep::Kind;
use worker::Worker;

/// A part of the time of an engine or of a worker's host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// The engine chooses the step's tokens.
    Scheduling,
    /// A worker's host is between its entry into the step and the model's.
    BatchPreparation,
    /// Where the GPU's clock times passes: a worker's host is in the model's call, and the GPU does not work yet.
    Launch,
    /// A worker's encoders (vision, audio) are run, by the clock that times them.
    Encoder,
    /// A worker's model is run, by the clock that times it.
    Forward,
    /// Tokens are proposed (speculative decoding).
    Drafting,
    /// Tokens are chosen.
    Sampling,
    /// A worker's host keeps its notes.
    Bookkeeping,
    /// A worker does something else for the step: logits and the like.
    ModelOther,
    /// The engine takes the step's tokens.
    UpdateFromOutput,
    /// The front end takes outputs, where it is in the engine's process.
    OutputProcessing,
    /// The front end turns text into tokens, where it is in the engine's process.
    Tokenization,
    /// Between scheduling and taking tokens, and none of the above: the way to the workers and back.
    Executor,
    /// None of these: code that is not watched.
    Other,
}

impl Part {
    /// Every part, in the order of reports.
    pub const ALL: [Self; 14] = [
        Self::Scheduling,
        Self::BatchPreparation,
        Self::Launch,
        Self::Encoder,
        Self::Forward,
        Self::Drafting,
        Self::Sampling,
        Self::Bookkeeping,
        Self::ModelOther,
        Self::UpdateFromOutput,
        Self::OutputProcessing,
        Self::Tokenization,
        Self::Executor,
        Self::Other,
    ];

    /// Its name.
    pub fn text(self) -> &'static str {
        match self {
            Self::Scheduling => "scheduling",
            Self::BatchPreparation => "batch_preparation",
            Self::Launch => "launch",
            Self::Encoder => "encoder",
            Self::Forward => "forward",
            Self::Drafting => "drafting",
            Self::Sampling => "sampling",
            Self::Bookkeeping => "bookkeeping",
            Self::ModelOther => "model_other",
            Self::UpdateFromOutput => "update_from_output",
            Self::OutputProcessing => "output_processing",
            Self::Tokenization => "tokenization",
            Self::Executor => "executor",
            Self::Other => "other",
        }
    }
}

/// Time by part, nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Parts([u64; Part::ALL.len()]);

impl Parts {
    /// Time of one part.
    pub fn of(&self, part: Part) -> u64 {
        self.0[part as usize]
    }

    /// All of the time.
    pub fn total_ns(&self) -> u64 {
        self.0.iter().fold(0, |sum, ns| sum.saturating_add(*ns))
    }

    /// The parts that took time, in the order of [`Part::ALL`].
    pub fn iter(&self) -> impl Iterator<Item = (Part, u64)> {
        Part::ALL.into_iter().zip(self.0).filter(|(_, ns)| *ns > 0)
    }

    fn add(&mut self, part: Part, ns: u64) {
        let sum = &mut self.0[part as usize];
        *sum = sum.saturating_add(ns);
    }

    fn add_all(&mut self, other: &Self) {
        for (part, ns) in other.iter() {
            self.add(part, ns);
        }
    }
}

/// One engine step, divided.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// When it began: nanoseconds since the session's start.
    pub start_ns: i64,
    /// What it consists of; together they are its duration.
    pub parts: Parts,
    /// Its number: that of the step that was scheduled in it, else of the first whose results were taken; `None` = not known.
    pub step: Option<u64>,
    /// The engine: `engine_core-0`.
    pub process: &'a str,
}

/// The wall time of a run as an engine sees it: all of it, from the session's start to its end. Nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EngineTime {
    /// The engine: `engine_core-0`.
    pub process: String,
    /// Its process id.
    pub pid: u32,
    /// Engine steps.
    pub steps: u64,
    /// Before its first step or wait that is recorded: loading, warm-up, and what `max_bytes` deleted.
    pub before_ns: u64,
    /// In steps.
    pub step: Parts,
    /// Between steps, while there were requests.
    pub between: Parts,
    /// Without a request.
    pub idle_ns: u64,
    /// After its last step or wait that is recorded. A wait that never ended is here.
    pub after_ns: u64,
}

impl EngineTime {
    /// All of it.
    pub fn wall_ns(&self) -> u64 {
        [self.before_ns, self.step.total_ns(), self.between.total_ns(), self.idle_ns, self.after_ns]
            .into_iter()
            .fold(0, u64::saturating_add)
    }

    /// Of several engines together: their times one behind the other.
    pub fn sum<'a>(engines: impl Iterator<Item = &'a Self>) -> Self {
        engines.fold(Self::default(), |mut sum, engine| {
            sum.steps = sum.steps.saturating_add(engine.steps);
            sum.before_ns = sum.before_ns.saturating_add(engine.before_ns);
            sum.step.add_all(&engine.step);
            sum.between.add_all(&engine.between);
            sum.idle_ns = sum.idle_ns.saturating_add(engine.idle_ns);
            sum.after_ns = sum.after_ns.saturating_add(engine.after_ns);
            sum
        })
    }
}

/// The time of a worker.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WorkerTime {
    /// The worker: `worker-0`.
    pub process: String,
    /// Which of several.
    pub rank: u32,
    /// Its process id.
    pub pid: u32,
    /// Steps that it worked in.
    pub steps: u64,
    /// Its host's time from its first step to its last; [`Part::Other`] is the time in which nothing of it is known: as a rule it
    /// waits for the engine.
    pub host: Parts,
    /// Its GPU's time, where the GPU's clock timed it.
    pub gpu: Option<GpuTime>,
}

/// GPU time of a worker by the GPU's own clock, over all steps whose times are known. Nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GpuTime {
    /// Steps.
    pub steps: u64,
    /// Encoders, before forward passes.
    pub encoder_ns: u64,
    /// Forward passes.
    pub forward_ns: u64,
    /// Sampling.
    pub sampling_ns: u64,
    /// Drafting.
    pub drafting_ns: u64,
    /// The rest of the time from the first to the last kernel of each step.
    pub other_ns: u64,
    /// Nothing to do between two steps, while the engine had requests.
    pub bubble_ns: u64,
    /// Nothing to do between two steps, while the engine had no request.
    pub no_work_ns: u64,
}

impl GpuTime {
    /// From the first to the last kernel of the steps, and encoders.
    pub fn busy_ns(&self) -> u64 {
        [self.encoder_ns, self.forward_ns, self.sampling_ns, self.drafting_ns, self.other_ns]
            .into_iter()
            .fold(0, u64::saturating_add)
    }

    /// All of it.
    pub fn total_ns(&self) -> u64 {
        self.busy_ns().saturating_add(self.bubble_ns).saturating_add(self.no_work_ns)
    }

    /// Share of the time with work in which the GPU waited for the host, 0-100; `None` when no time passed.
    pub fn bubble_pct(&self) -> Option<f64> {
        let with_work_ns = self.busy_ns().saturating_add(self.bubble_ns);
        (with_work_ns > 0).then(|| 100.0 * self.bubble_ns as f64 / with_work_ns as f64)
    }
}

/// What a front end did, beside the engines and at the same time. Nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FrontEndTime {
    /// The front end: `api_server-0`.
    pub process: String,
    /// Its process id.
    pub pid: u32,
    /// Taking outputs, detokenization included.
    pub output_processing_ns: u64,
    /// Tokens to text, within that.
    pub detokenization_ns: u64,
    /// Text to tokens; it may run on several threads at once.
    pub tokenization_ns: u64,
}

/// Where the time of a run went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Breakdown {
    /// Wall time of the run, nanoseconds.
    pub wall_ns: u64,
    /// By engine, ordered as their logs.
    pub engines: Vec<EngineTime>,
    /// By worker, ordered as their logs.
    pub workers: Vec<WorkerTime>,
    /// By front end, ordered as their logs.
    pub front_ends: Vec<FrontEndTime>,
}

#[derive(Debug)]
pub(crate) struct Collector {
    /// By log, of those that are engines.
    engines: Vec<Option<Engine>>,
    /// By log, of those that are workers.
    workers: Vec<Option<Worker>>,
    /// By log.
    front_ends: Vec<FrontEndTime>,
}

impl Collector {
    pub(crate) fn new(context: &Context<'_>) -> Self {
        let session = context.session;
        let logs = || 0..session.logs.len();
        let has = |log: usize, component| session.logs[log].role(component).is_some();
        let engine = |log| has(log, Component::EngineCore).then(|| Engine::new(session, log));
        let worker = |log| {
            let only_launches = context.steps.is_timed_on_gpu(log)
                || session.logs[log].head.fact("timing_mode") == Some("lightweight");
            let engine = context.steps.engine_of(log);
            has(log, Component::Worker).then(|| Worker::new(session, log, engine, only_launches))
        };
        let front_end = |log: usize| FrontEndTime {
            process: session.logs[log].process(Component::ApiServer).to_owned(),
            pid: session.logs[log].head.identity.pid,
            ..FrontEndTime::default()
        };
        Self {
            engines: logs().map(engine).collect(),
            workers: logs().map(worker).collect(),
            front_ends: logs().map(front_end).collect(),
        }
    }

    /// An event of real work; gives the engine step that can be divided now.
    #[inline]
    pub(crate) fn see<'a>(&mut self, session: &'a Session, event: &Event) -> Option<Step<'a>> {
        let front_end = &mut self.front_ends[event.log];
        let sum = match event.name {
            Name::Other => return None,
            Name::OutputProcessing => Some(&mut front_end.output_processing_ns),
            Name::Detokenization => Some(&mut front_end.detokenization_ns),
            Name::Tokenization => Some(&mut front_end.tokenization_ns),
            _ => None,
        };
        if let Some(sum) = sum {
            *sum = sum.saturating_add(event.duration_ns());
        }
        if let Some(worker) = &mut self.workers[event.log]
            && let Some(kind) = worker.see(event)
            && let Some(engine) = worker.engine.and_then(|log| self.engines[log].as_mut())
        {
            engine.mark(event.start_ns, event.end_ns, kind);
        }
        self.engines[event.log].as_mut()?.see(session, event)
    }

    /// A row of CPU operations, of this event.
    #[inline]
    pub(crate) fn see_operation(&mut self, operation: &Operation<'_>, event: &Event) {
        if operation.name != Name::BatchPreparation {
            return;
        }
        let Some(worker) = &mut self.workers[event.log] else { return };
        let end_ns = operation.start_ns.saturating_add_unsigned(operation.duration_ns);
        worker.mark(operation.start_ns, end_ns, Kind::BatchPreparation);
        if let Some(engine) = worker.engine.and_then(|log| self.engines[log].as_mut()) {
            engine.mark(operation.start_ns, end_ns, Kind::BatchPreparation);
        }
    }

    /// A forward pass, of this event.
    #[inline]
    pub(crate) fn see_pass(&mut self, context: &Context<'_>, pass: &Pass<'_>, event: &Event) {
        let Some(worker) = self.workers[event.log].as_mut().filter(|worker| worker.only_launches) else { return };
        let mut engine = worker.engine.and_then(|log| self.engines[log].as_mut());
        if pass.timing == Timing::Wall {
            // Lightweight: it ended when its tokens had reached the host.
            if let (Some(engine), Some(duration_ns)) = (&mut engine, pass.duration_ns) {
                let start_ns = event.end_ns.saturating_sub_unsigned(duration_ns);
                engine.mark(start_ns, event.end_ns, Kind::Forward);
            }
            return;
        }
        let draft_ns = context.steps.on_gpu(event).and_then(|step| step.draft_ns).unwrap_or(0);
        worker.on_gpu(pass, draft_ns, |from_ns, to_ns| {
            engine.as_ref().map_or(0, |engine| engine.idle_within(from_ns, to_ns))
        });
        let (Some(engine), Some(placed), Some(busy_ns)) = (engine, pass.gpu_start, pass.gpu_busy_ns) else {
            return;
        };
        if let (Some(start_ns), Some(encoder_ns)) = (pass.gpu_encoder_start_ns(), pass.gpu_encoder_ns) {
            engine.mark(start_ns, start_ns.saturating_add_unsigned(encoder_ns), Kind::Encoder);
        }
        let end_ns = placed.start_ns.saturating_add_unsigned(busy_ns);
        let mut from_ns = placed.start_ns;
        for (kind, ns) in [
            (Kind::Forward, pass.duration_ns),
            (Kind::GpuSampling, pass.sample_ns),
            (Kind::GpuDrafting, Some(draft_ns)),
        ] {
            let to_ns = from_ns.saturating_add_unsigned(ns.unwrap_or(0)).min(end_ns);
            engine.mark(from_ns, to_ns, kind);
            from_ns = to_ns;
        }
        engine.mark(from_ns, end_ns, Kind::GpuOther);
    }

    /// A step that waited for what might still come, at the end; `None` when there is none left.
    pub(crate) fn next_left<'a>(&mut self, session: &'a Session) -> Option<Step<'a>> {
        self.engines.iter_mut().flatten().find_map(|engine| engine.next(session, 0))
    }

    /// All that was seen, of a run that took `wall_ns`. Nothing may be left of [`Self::next_left`].
    pub(crate) fn finish(self, wall_ns: u64) -> Breakdown {
        let did_something =
            |front_end: &FrontEndTime| front_end.output_processing_ns > 0 || front_end.tokenization_ns > 0;
        Breakdown {
            wall_ns,
            engines: self.engines.into_iter().flatten().filter_map(|engine| engine.finish(wall_ns)).collect(),
            workers: self.workers.into_iter().flatten().filter_map(Worker::finish).collect(),
            front_ends: self.front_ends.into_iter().filter(did_something).collect(),
        }
    }
}
