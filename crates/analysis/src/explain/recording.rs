//! The steps of a session as numbers: what each did, and where its time went.
//!
//! **The time of a step** is from when the engine had taken the results of the step before until it has taken those of this one:
//! what its requests wait for between two tokens. That is so in every way to run an engine, with batches in flight or without.
//! Where the engine had nothing to do meanwhile, it begins with the call of the scheduler, or when the engine stopped waiting.

use std::collections::{HashMap, HashSet, VecDeque};

use profilemate_session::record::{RequestAdmitted, Schedule};
use profilemate_session::{Component, Edge, Error, Event, Label, Name, Payload, Session};

use super::usual::size;
use crate::forward::{Pass, Timing};
use crate::steps::{Phase, Steps};
use crate::{Context, cpu, forward};

/// A part of a step's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The engine is busy with something else before it calls the scheduler.
    BetweenSteps,
    /// Output processing, where the front end is in the engine's process and so between its steps.
    OutputProcessing,
    /// The scheduler makes the batch.
    Scheduling,
    /// The worker prepares it; the slowest one.
    BatchPreparation,
    /// The model; the slowest worker.
    Forward,
    /// Choosing tokens.
    Sampling,
    /// The worker's notes.
    Bookkeeping,
    /// The scheduler takes the results.
    UpdateFromOutput,
    /// The GPU waits for the host before the forward pass; only where the GPU's clock was read.
    GpuIdle,
    /// The results are there, and the engine's thread is busy with another step that is in flight; only where the GPU's clock says
    /// when they were there.
    OtherStep,
    /// What is left of the step's time: messages between processes, waiting for them, what no probe sees.
    Other,
}

impl Part {
    /// Every part, in the order in which a step goes through them.
    pub const ALL: [Self; 11] = [
        Self::BetweenSteps,
        Self::OutputProcessing,
        Self::Scheduling,
        Self::BatchPreparation,
        Self::GpuIdle,
        Self::Forward,
        Self::Sampling,
        Self::Bookkeeping,
        Self::OtherStep,
        Self::UpdateFromOutput,
        Self::Other,
    ];

    /// Its name.
    pub fn text(self) -> &'static str {
        match self {
            Self::BetweenSteps => "between_steps",
            Self::OutputProcessing => "output_processing",
            Self::Scheduling => "scheduling",
            Self::BatchPreparation => "batch_preparation",
            Self::Forward => "forward",
            Self::Sampling => "sampling",
            Self::Bookkeeping => "bookkeeping",
            Self::UpdateFromOutput => "update_from_output",
            Self::GpuIdle => "gpu_idle",
            Self::OtherStep => "other_step",
            Self::Other => "other",
        }
    }
}

/// How many parts there are.
pub(super) const PARTS: usize = Part::ALL.len();

/// Milliseconds of something that may not be known: not a number then. Four bytes, since there is much of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Time(f32);

impl Time {
    pub(super) const UNKNOWN: Self = Self(f32::NAN);

    #[expect(clippy::cast_possible_truncation, reason = "seven digits are enough")]
    fn of(nanoseconds: u64) -> Self {
        Self((nanoseconds as f64 / 1e6) as f32)
    }

    #[expect(clippy::cast_possible_truncation, reason = "seven digits are enough")]
    fn of_ms(milliseconds: f64) -> Self {
        Self(milliseconds as f32)
    }

    /// Milliseconds, if they are known.
    pub(super) fn ms(self) -> Option<f64> {
        (!self.0.is_nan()).then(|| f64::from(self.0))
    }

    fn add(&mut self, nanoseconds: u64) {
        self.0 = Self::of(nanoseconds).0 + if self.0.is_nan() { 0.0 } else { self.0 };
    }

    fn at_least(&mut self, nanoseconds: u64) {
        // The greater number, where one is none.
        self.0 = self.0.max(Self::of(nanoseconds).0);
    }
}

/// How long something stopped a process of the step.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stopped {
    /// How often.
    pub count: u32,
    /// Together, where two at once count once, milliseconds.
    pub ms: f32,
    /// The longest, milliseconds.
    pub longest_ms: f32,
    /// Whether the engine core was stopped, and whether a worker was.
    pub(super) engine: bool,
    pub(super) worker: bool,
    /// Log of the process with the longest.
    pub(super) log: u16,
    /// Of a garbage collection its generation, of a warm-up its name in [`Recording::names`].
    pub(super) what: u32,
}

/// The step that the engine was busy with while the results of one lay there.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Blocker {
    /// Its number.
    pub number: u64,
    /// What took the longest of it.
    pub name: Name,
    /// How long that took, also before the results were there, milliseconds.
    pub ms: f32,
    /// How long a GPU worked on it while they were, milliseconds.
    pub gpu_ms: f32,
    /// Whether the GPU ended its forward pass together with the launch of it: then it had waited for the launches.
    pub starves_gpu: bool,
}

/// What is new in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum New {
    /// What it was dispatched as.
    Descriptor,
    /// A batch of its phase and size.
    Size,
}

/// One step that the scheduler gave work to.
#[derive(Debug, Clone)]
pub struct Step {
    /// Its number, counted by its engine.
    pub number: u64,
    /// Log of the engine.
    pub(super) log: u16,
    /// Whether the engine had nothing to do before.
    pub after_idle: bool,
    /// What no step of its engine had before.
    pub(super) new: Option<New>,
    /// Whether the GPU's clock was read.
    pub is_on_gpu: bool,
    /// When it began, nanoseconds since the session's start.
    pub began_ns: i64,
    /// When it was over; `i64::MIN` = it was not.
    pub(super) ended_ns: i64,
    /// When the scheduler was called; `i64::MIN` = there is no such record.
    scheduled_ns: i64,
    /// Sequences.
    pub num_seqs: u32,
    /// Tokens, without padding.
    pub num_tokens: u32,
    /// Those of prompts.
    pub prefill_tokens: u32,
    /// Sequences that have such.
    pub prefill_seqs: u32,
    /// Requests that wait after the scheduler's call; `None` = not known.
    pub waiting: Option<u32>,
    /// What the batch was dispatched as, in [`Recording::names`]; 0 = not known.
    pub(super) descriptor: u32,
    /// Tokens with padding; 0 = not known.
    pub padded_tokens: u32,
    pub(super) parts: [Time; PARTS],
    /// From the first to the last kernel on the GPU.
    pub(super) gpu_busy: Time,
    /// How much of its time had passed when its GPU had ended it; a GPU may have done so before it began.
    pub(super) until_ready: Time,
    /// How much of its time its GPU worked on it.
    pub(super) gpu_inside: Time,
    /// How much of its time its GPU waited for it.
    gpu_idle_inside: Time,
    /// What [`Part::OtherStep`] was.
    pub blocker: Option<Blocker>,
    /// How much of its time its own scheduling took: with steps in flight that lies before.
    pub(super) scheduling_inside: Time,
    /// Forward passes of its workers: the sum of all, how many, and whose was the longest.
    forward_sum: Time,
    /// Workers whose forward pass is known.
    pub workers: u16,
    slowest_log: u16,
    /// Logs of those workers, a bit each.
    seen: u128,
    /// Requests that were preempted in its making.
    pub preempted: u32,
    /// Requests that came back in it after a preemption.
    pub resumed: u32,
    /// Tokens that are computed again for them.
    pub recomputed_tokens: u32,
    /// Cached KV blocks that were emptied for it; `u32::MAX` = not known.
    pub(super) evicted: u32,
    /// Garbage collections in its processes.
    pub garbage: Stopped,
    /// Warm-up and graph capture in its processes.
    pub warm_up: Stopped,
}

impl Step {
    fn new(log: usize, number: u64) -> Self {
        Self {
            number,
            log: index(log),
            after_idle: false,
            new: None,
            is_on_gpu: false,
            began_ns: i64::MIN,
            ended_ns: i64::MIN,
            scheduled_ns: i64::MIN,
            num_seqs: 0,
            num_tokens: 0,
            prefill_tokens: 0,
            prefill_seqs: 0,
            waiting: None,
            descriptor: 0,
            padded_tokens: 0,
            parts: [Time::UNKNOWN; PARTS],
            gpu_busy: Time::UNKNOWN,
            until_ready: Time::UNKNOWN,
            gpu_inside: Time::UNKNOWN,
            gpu_idle_inside: Time::UNKNOWN,
            blocker: None,
            scheduling_inside: Time::UNKNOWN,
            forward_sum: Time::UNKNOWN,
            workers: 0,
            slowest_log: 0,
            seen: 0,
            preempted: 0,
            resumed: 0,
            recomputed_tokens: 0,
            evicted: u32::MAX,
            garbage: Stopped::default(),
            warm_up: Stopped::default(),
        }
    }

    /// Its phase; `None` where nothing was scheduled, or it is not known what.
    pub fn phase(&self) -> Option<Phase> {
        Phase::of(self.num_tokens, self.prefill_tokens)
    }

    /// How long it took, milliseconds; `None` when it was not over.
    pub fn ms(&self) -> Option<f64> {
        (self.ended_ns != i64::MIN).then(|| self.ended_ns.saturating_sub(self.began_ns) as f64 / 1e6)
    }

    /// Milliseconds of a part; `None` = not known.
    pub fn part(&self, part: Part) -> Option<f64> {
        self.parts[part as usize].ms()
    }

    /// By how much the slowest worker's forward pass was longer than the mean of the others, milliseconds.
    pub fn rank_gap(&self) -> Option<f64> {
        let others = self.workers.checked_sub(1).filter(|others| *others > 0)?;
        let slowest = self.part(Part::Forward)?;
        Some((slowest - (self.forward_sum.ms()? - slowest) / f64::from(others)).max(0.0))
    }

    /// Cached KV blocks that were emptied for it.
    pub fn evicted_blocks(&self) -> Option<u32> {
        (self.evicted != u32::MAX).then_some(self.evicted)
    }

    pub(super) fn slowest_log_number(&self) -> u16 {
        self.slowest_log
    }
}

fn index(log: usize) -> u16 {
    u16::try_from(log).unwrap_or(u16::MAX)
}

/// The steps of a session.
#[derive(Debug)]
pub struct Recording {
    /// Those that are over and had work, in the order in which they ended.
    pub(super) steps: Vec<Step>,
    /// Texts of descriptors and of warm-ups; the first is empty.
    pub(super) names: Vec<String>,
    /// What each log's process is called as an engine.
    pub(super) engines: Vec<String>,
    /// … as a worker.
    pub(super) workers: Vec<String>,
    /// Steps that had work and were not over, by engine.
    pub(super) unfinished: Vec<(u16, u64)>,
}

/// What stopped a process for a while.
#[derive(Debug, Clone, Copy)]
struct Pause {
    start_ns: i64,
    end_ns: i64,
    log: u16,
    what: u32,
    is_garbage: bool,
    in_engine: bool,
    in_worker: bool,
}

/// Something that an engine's thread did for a step.
#[derive(Debug, Clone, Copy)]
struct Done {
    start_ns: i64,
    end_ns: i64,
    step: u64,
    name: Name,
}

/// … that are kept at most until a step ends.
const MOST_DONE: usize = 4096;
/// Share of its pass that a GPU goes on after the launch, below which it has waited for launches. Where the GPU is the slower one,
/// launches are queued, and much is left to do when the last is in the queue.
const LEAST_BACKLOG: f64 = 0.05;
/// Pauses that are kept at most until a step ends.
const MOST_PAUSES: usize = 4096;
/// Steps that are under way at most; pipelines have a few.
const MOST_OPEN: usize = 256;
/// Steps that are over among which a late record's is looked for.
const LOOK_BACK: usize = 1024;

/// What is going on in an engine.
#[derive(Debug, Default)]
struct Engine {
    open: VecDeque<Step>,
    /// When the results of the last step had been taken.
    last_end_ns: Option<i64>,
    /// When the engine last stopped waiting for requests.
    idle_until_ns: Option<i64>,
    /// Requests that it had after the last call of the scheduler, less those that ended since.
    requests: i64,
    pauses: VecDeque<Pause>,
    /// What its thread did since the last step ended.
    done: Vec<Done>,
    output_processing_ns: u64,
    /// Requests that are preempted at this moment.
    preempted: HashSet<u64>,
}

struct Reader<'a> {
    context: Context<'a>,
    engines: Vec<Engine>,
    steps: Vec<Step>,
    names: Names,
}

/// Texts of all logs, each once.
#[derive(Default)]
struct Names {
    texts: Vec<String>,
    by_text: HashMap<String, u32>,
}

impl Names {
    fn id(&mut self, text: &str) -> u32 {
        if let Some(id) = self.by_text.get(text) {
            return *id;
        }
        let id = u32::try_from(self.texts.len()).unwrap_or(0);
        self.texts.push(text.to_owned());
        self.by_text.insert(text.to_owned(), id);
        id
    }
}

impl Recording {
    /// Reads the steps of a session: two passes over its records, and a few numbers kept of each step.
    ///
    /// # Errors
    /// When a segment cannot be read.
    pub fn read(session: &Session) -> Result<Self, Error> {
        let mut reader = Reader {
            context: Context { session, steps: Steps::read(session)? },
            engines: session.logs.iter().map(|_| Engine::default()).collect(),
            steps: Vec::new(),
            names: Names::default(),
        };
        reader.names.id("");
        let mut forward = forward::Collector::new(session);
        let mut cpu = cpu::Collector::new(session);
        let mut events = session.events()?;
        while let Some(event) = events.next_event()? {
            if !event.is_work() {
                reader.warm_up(&event);
                continue;
            }
            if let Some(pass) = forward.see(&reader.context, &event) {
                reader.pass(&event, &pass);
            }
            if let Some(operation) = cpu.see(&reader.context, &event) {
                reader.operation(&event, &operation);
            }
            reader.record(&event);
        }
        Ok(reader.finish())
    }
}

impl Reader<'_> {
    /// The step with this number of the engine of this log.
    fn step(&mut self, log: usize, number: u64) -> Option<&mut Step> {
        if number == 0 {
            return None;
        }
        let engine = self.context.steps.engine(log)?;
        let open = &mut self.engines[engine].open;
        if let Some(at) = open.iter().position(|step| step.number == number) {
            return open.get_mut(at);
        }
        let engine = index(engine);
        self.steps.iter_mut().rev().take(LOOK_BACK).find(|step| step.log == engine && step.number == number)
    }

    /// The same, of a record that may be the first of its step.
    fn step_or_new(&mut self, log: usize, number: u64) -> Option<&mut Step> {
        if number == 0 {
            return None;
        }
        if self.step(log, number).is_none() {
            let engine = self.context.steps.engine(log)?;
            let open = &mut self.engines[engine].open;
            if open.len() == MOST_OPEN {
                open.pop_front();
            }
            open.push_back(Step::new(engine, number));
        }
        self.step(log, number)
    }

    fn record(&mut self, event: &Event) {
        let (log, number) = (event.log, event.record.step);
        match &event.record.payload {
            Payload::Schedule(schedule) => self.schedule(event, schedule),
            Payload::Outputs(outputs) => {
                let engine = &mut self.engines[log];
                engine.requests = engine.requests.saturating_sub_unsigned(outputs.finished);
            }
            Payload::KvCache(cache) => {
                let evicted = cache.evicted;
                if evicted != u32::MAX
                    && let Some(step) = self.step_or_new(log, number)
                {
                    step.evicted = evicted.saturating_add(step.evicted_blocks().unwrap_or(0)).min(u32::MAX - 1);
                }
            }
            Payload::RequestPreempted(preempted) => {
                self.engines[log].preempted.insert(preempted.number);
                if let Some(step) = self.step_or_new(log, number) {
                    step.preempted = step.preempted.saturating_add(1);
                }
            }
            Payload::RequestAdmitted(admitted) => self.admitted(event, admitted),
            Payload::RequestFinished(finished) => {
                self.engines[log].preempted.remove(&finished.number);
            }
            _ => {}
        }
    }

    fn schedule(&mut self, event: &Event, schedule: &Schedule) {
        let engine = &mut self.engines[event.log];
        // A script that calls vLLM does other things between two calls, and nobody says that the engine waits.
        let had_nothing = engine.requests <= 0;
        // Where nobody says how many it has, it has some.
        let has = |requests: Option<u32>| requests.map_or(i64::from(u32::MAX), i64::from);
        engine.requests = has(schedule.running) + has(schedule.waiting);
        if schedule.num_tokens == 0 && engine.open.iter().all(|step| step.num_tokens == 0) {
            // It was asked, and none of its requests could run: what they wait for is not this engine.
            engine.last_end_ns = engine.last_end_ns.max(Some(event.start_ns));
        }
        let Some(step) = self.step_or_new(event.log, event.record.step) else { return };
        (step.num_seqs, step.num_tokens) = (schedule.num_seqs, schedule.num_tokens);
        (step.prefill_tokens, step.prefill_seqs) = (schedule.prefill_tokens, schedule.prefill_seqs);
        step.waiting = schedule.waiting;
        step.after_idle = had_nothing;
    }

    fn admitted(&mut self, event: &Event, admitted: &RequestAdmitted) {
        if !self.engines[event.log].preempted.remove(&admitted.number) {
            return;
        }
        if let Some(step) = self.step_or_new(event.log, event.record.step) {
            step.resumed = step.resumed.saturating_add(1);
            step.recomputed_tokens = step.recomputed_tokens.saturating_add(admitted.scheduled_tokens);
        }
    }

    fn pass(&mut self, event: &Event, pass: &Pass<'_>) {
        let (Some(number), Some(forward_ns)) = (pass.step, pass.duration_ns) else { return };
        let descriptor = pass.descriptor.map_or(0, |text| self.names.id(text));
        let Some(step) = self.step(event.log, number) else { return };
        let padded = pass.padded_tokens.and_then(|tokens| u32::try_from(tokens).ok());
        if descriptor != 0 {
            step.descriptor = descriptor;
        }
        step.padded_tokens = padded.unwrap_or(step.padded_tokens);
        // A worker's second pass (a draft model, a second micro-batch) is no second worker.
        let bit = 1 << (event.log % 128);
        if step.seen & bit != 0 {
            return;
        }
        step.seen |= bit;
        let longest = &mut step.parts[Part::Forward as usize];
        if longest.ms().is_none_or(|longest| longest < forward_ns as f64 / 1e6) {
            *longest = Time::of(forward_ns);
            step.slowest_log = index(event.log);
        }
        step.forward_sum.add(forward_ns);
        step.workers = step.workers.saturating_add(1);
        step.is_on_gpu |= pass.timing == Timing::Events;
        for (part, ns) in [(Part::GpuIdle, pass.gpu_idle_ns), (Part::Sampling, pass.sample_ns)] {
            if let Some(ns) = ns {
                step.parts[part as usize].at_least(ns);
            }
        }
        if let Some(busy_ns) = pass.gpu_busy_ns {
            step.gpu_busy.at_least(busy_ns);
        }
    }

    fn operation(&mut self, event: &Event, operation: &cpu::Operation<'_>) {
        let (log, duration_ns) = (event.log, operation.duration_ns);
        self.done(event);
        let part = match operation.name {
            Name::Scheduling => Part::Scheduling,
            Name::BatchPreparation => Part::BatchPreparation,
            Name::Bookkeeping => Part::Bookkeeping,
            Name::UpdateFromOutput => Part::UpdateFromOutput,
            Name::OutputProcessing => {
                let sum = &mut self.engines[log].output_processing_ns;
                *sum = sum.saturating_add(duration_ns);
                return;
            }
            Name::EngineIdle => {
                self.engines[log].idle_until_ns = Some(event.end_ns);
                return;
            }
            Name::Iteration => {
                self.iteration(event, operation.step.unwrap_or(0));
                return;
            }
            Name::GarbageCollection => {
                let generation = event.span().map_or(0, |span| span.value_a);
                self.pause(event, u32::try_from(generation).unwrap_or(u32::MAX), true);
                return;
            }
            _ => return,
        };
        let number = operation.step.unwrap_or(0);
        if let Some(step) = self.step(log, number) {
            match part {
                Part::Scheduling => {
                    step.parts[part as usize] = Time::of(duration_ns);
                    step.scheduled_ns = event.start_ns;
                }
                _ => step.parts[part as usize].at_least(duration_ns),
            }
        }
        if part == Part::UpdateFromOutput {
            self.end(log, number, event.end_ns);
        }
    }

    /// What the engine's own thread did: a worker of its own keeps no engine from anything.
    fn done(&mut self, event: &Event) {
        let is_done = matches!(
            event.name,
            Name::Scheduling | Name::ModelExecution | Name::Sampling | Name::Bookkeeping | Name::UpdateFromOutput
        );
        if !is_done || event.record.step == 0 || self.context.steps.engine(event.log) != Some(event.log) {
            return;
        }
        let done = &mut self.engines[event.log].done;
        if done.len() < MOST_DONE {
            let (start_ns, end_ns) = (event.start_ns, event.end_ns);
            done.push(Done { start_ns, end_ns, step: event.record.step, name: event.name });
        }
    }

    /// Whatever is no work for requests and stops a process that has some.
    fn warm_up(&mut self, event: &Event) {
        if event.record.label != Label::WarmUp || event.edge != Edge::End {
            return;
        }
        let Some(span) = event.span() else { return };
        let text = match event.name {
            Name::GraphCapture => "graph_capture",
            Name::WarmUp => {
                let method = self.context.session.logs[event.log].head.string(span.context);
                method.unwrap_or("warm_up")
            }
            _ => return,
        };
        let what = self.names.id(text);
        self.pause(event, what, false);
    }

    fn pause(&mut self, event: &Event, what: u32, is_garbage: bool) {
        let Some(engine) = self.context.steps.engine(event.log) else { return };
        // A front end by itself stops no step.
        let log = &self.context.session.logs[event.log];
        let [in_engine, in_worker] =
            [Component::EngineCore, Component::Worker].map(|component| log.role(component).is_some());
        if !in_engine && !in_worker {
            return;
        }
        let pauses = &mut self.engines[engine].pauses;
        if pauses.len() == MOST_PAUSES {
            pauses.pop_front();
        }
        let (start_ns, end_ns) = (event.start_ns, event.end_ns);
        pauses.push_back(Pause {
            start_ns,
            end_ns,
            log: index(event.log),
            what,
            is_garbage,
            in_engine,
            in_worker,
        });
    }

    /// All that an imported log says of a step.
    fn iteration(&mut self, event: &Event, number: u64) {
        let open = &mut self.engines[event.log].open;
        let Some(at) = open.iter().position(|step| step.number == number) else { return };
        let Some(mut step) = open.remove(at) else { return };
        (step.began_ns, step.ended_ns) = (event.start_ns, event.end_ns);
        step.after_idle = false;
        if step.num_tokens > 0 {
            self.steps.push(step);
        }
    }

    /// The engine has taken the results of a step.
    fn end(&mut self, log: usize, number: u64, end_ns: i64) {
        let engine = &mut self.engines[log];
        let before_ns = engine.last_end_ns.replace(end_ns);
        let output_processing_ns = std::mem::take(&mut engine.output_processing_ns);
        let idle_until_ns = engine.idle_until_ns.take();
        let done = std::mem::take(&mut engine.done);
        let Some(at) = engine.open.iter().position(|step| step.number == number) else { return };
        let Some(mut step) = engine.open.remove(at) else { return };
        engine.open.retain(|open| open.num_tokens > 0 || open.number > number);
        let scheduled_ns = Some(step.scheduled_ns).filter(|ns| *ns != i64::MIN);
        let after_idle = idle_until_ns.filter(|ns| before_ns.is_none_or(|before| *ns > before));
        step.after_idle = step.after_idle || after_idle.is_some() || before_ns.is_none();
        let began_ns = if step.after_idle { after_idle.into_iter().chain(scheduled_ns).min() } else { before_ns };
        let Some(began_ns) = began_ns else { return };
        (step.began_ns, step.ended_ns) = (began_ns, end_ns);
        if step.num_tokens == 0 {
            return;
        }
        if let Some(scheduled_ns) = scheduled_ns {
            let between_ns = u64::try_from(scheduled_ns.saturating_sub(began_ns)).unwrap_or(0);
            // A front end by itself works beside the engine.
            if self.context.session.logs[log].role(Component::ApiServer).is_some() {
                step.parts[Part::OutputProcessing as usize] = Time::of(output_processing_ns.min(between_ns));
            }
            step.parts[Part::BetweenSteps as usize] = Time::of(between_ns.saturating_sub(output_processing_ns));
        }
        for pauses in [true, false] {
            let stopped = stopped(&engine.pauses, pauses, began_ns, end_ns);
            *(if pauses { &mut step.garbage } else { &mut step.warm_up }) = stopped;
        }
        engine.pauses.retain(|pause| pause.end_ns > end_ns);
        if let Some(scheduled_ns) = scheduled_ns
            && let Some(scheduling_ms) = step.part(Part::Scheduling)
        {
            let outside_ms = began_ns.saturating_sub(scheduled_ns).max(0) as f64 / 1e6;
            step.scheduling_inside = Time::of_ms((scheduling_ms - outside_ms).max(0.0));
        }
        in_flight(&self.context.steps, log, &mut step, &done);
        self.steps.push(step);
    }

    fn finish(self) -> Recording {
        let logs = &self.context.session.logs;
        let lightweight: Vec<bool> =
            logs.iter().map(|log| log.head.fact("timing_mode") == Some("lightweight")).collect();
        let mut steps = self.steps;
        for step in &mut steps {
            rest(step, lightweight.get(usize::from(step.slowest_log)).copied().unwrap_or(false));
        }
        mark_first(&mut steps);
        let unfinished = self.engines.iter().flat_map(|engine| &engine.open);
        Recording {
            unfinished: unfinished
                .filter(|step| step.num_tokens > 0)
                .map(|step| (step.log, step.number))
                .collect(),
            engines: logs.iter().map(|log| log.process(Component::EngineCore).to_owned()).collect(),
            workers: logs.iter().map(|log| log.process(Component::Worker).to_owned()).collect(),
            names: self.names.texts,
            steps,
        }
    }
}

/// Finds the first steps of every phase and size, and of every descriptor, in each engine.
fn mark_first(steps: &mut [Step]) {
    let (mut sizes, mut descriptors) = (HashSet::new(), HashSet::new());
    for step in steps {
        let is_new_size = step.phase().is_some_and(|phase| sizes.insert((step.log, phase, size(step.num_tokens))));
        let is_new_descriptor = step.descriptor != 0 && descriptors.insert((step.log, step.descriptor));
        step.new = match (is_new_size, is_new_descriptor) {
            (true, _) => Some(New::Size),
            (false, true) => Some(New::Descriptor),
            (false, false) => None,
        };
    }
}

/// How much of the time from `from_ns` to `to_ns` lies in another, nanoseconds.
fn within(from_ns: i64, to_ns: i64, other_from_ns: i64, other_to_ns: i64) -> u64 {
    let ns = to_ns.min(other_to_ns).saturating_sub(from_ns.max(other_from_ns));
    u64::try_from(ns).unwrap_or(0)
}

/// What a step's time is made of where the GPU's clock says when its results were there: with steps in flight the GPU may have
/// worked on it before, and the engine may have come to its results late.
fn in_flight(steps: &Steps, log: usize, step: &mut Step, done: &[Done]) {
    let Some(on_gpu) = steps.gpu_span(log, step.number) else { return };
    let (began_ns, ended_ns) = (step.began_ns, step.ended_ns);
    // At the latest.
    let ready_ns = on_gpu.end_ns.saturating_add_unsigned(on_gpu.error_ns).clamp(began_ns, ended_ns);
    step.until_ready = Time::of(ready_ns.saturating_sub(began_ns).unsigned_abs());
    step.gpu_inside = Time::of(within(began_ns, ready_ns, on_gpu.start_ns, i64::MAX));
    if let Some(idle_ns) = on_gpu.idle_before_ns {
        let idle_from_ns = on_gpu.start_ns.saturating_sub_unsigned(idle_ns);
        step.gpu_idle_inside = Time::of(within(began_ns, ended_ns, idle_from_ns, on_gpu.start_ns));
    }
    let others = done.iter().filter(|done| done.step != step.number);
    let late = others.filter_map(|done| {
        let ns = within(ready_ns, ended_ns, done.start_ns, done.end_ns);
        (ns > 0).then_some((ns, done))
    });
    let late_ns = late.clone().map(|(ns, _)| ns).fold(0, u64::saturating_add);
    step.parts[Part::OtherStep as usize] = Time::of(late_ns);
    step.blocker = late.max_by_key(|(ns, _)| *ns).map(|(_, done)| {
        let other = steps.gpu_span(log, done.step);
        let gpu_ns = other.map_or(0, |other| within(ready_ns, ended_ns, other.start_ns, other.end_ns));
        let starves_gpu = other.is_some_and(|other| {
            other.forward_end_ns.is_some_and(|forward_end_ns| {
                let pass_ns = forward_end_ns.saturating_sub(other.start_ns) as f64;
                let backlog_ns = forward_end_ns.saturating_sub(done.end_ns) as f64;
                done.name == Name::ModelExecution && backlog_ns < LEAST_BACKLOG * pass_ns
            })
        });
        Blocker {
            number: done.step,
            name: done.name,
            ms: Time::of(done.end_ns.saturating_sub(done.start_ns).unsigned_abs()).0,
            gpu_ms: Time::of(gpu_ns).0,
            starves_gpu,
        }
    });
}

/// What is left of a step's time.
fn rest(step: &mut Step, is_lightweight: bool) {
    if step.is_on_gpu && step.after_idle {
        // It is the time in which nobody asked for anything.
        step.parts[Part::GpuIdle as usize] = Time::UNKNOWN;
    }
    let known: f64 = if let Some(until_ready_ms) = step.until_ready.ms() {
        if step.gpu_idle_inside.ms().is_some() && !step.after_idle {
            step.parts[Part::GpuIdle as usize] = step.gpu_idle_inside;
        }
        let update_ms = [step.part(Part::UpdateFromOutput), step.part(Part::OtherStep)].into_iter().flatten();
        until_ready_ms + update_ms.sum::<f64>()
    } else if step.is_on_gpu {
        [step.part(Part::GpuIdle), step.gpu_busy.ms()].into_iter().flatten().sum()
    } else {
        let in_forward = |part: &Part| is_lightweight && matches!(part, Part::Sampling | Part::Bookkeeping);
        Part::ALL.iter().filter(|part| !in_forward(part)).filter_map(|part| step.part(*part)).sum()
    };
    let Some(ms) = step.ms() else { return };
    #[expect(clippy::cast_possible_truncation, reason = "seven digits are enough")]
    let rest = (ms - known).max(0.0) as f32;
    step.parts[Part::Other as usize] = Time(rest);
}

/// How long pauses stopped somebody in this time.
fn stopped(pauses: &VecDeque<Pause>, is_garbage: bool, began_ns: i64, ended_ns: i64) -> Stopped {
    let mut inside: Vec<(i64, i64, &Pause)> = pauses
        .iter()
        .filter(|pause| pause.is_garbage == is_garbage)
        .map(|pause| (pause.start_ns.max(began_ns), pause.end_ns.min(ended_ns), pause))
        .filter(|(start, end, _)| start < end)
        .collect();
    inside.sort_by_key(|(start, ..)| *start);
    let mut stopped = Stopped::default();
    let (mut total_ns, mut longest_ns, mut until_ns) = (0_i64, 0_i64, i64::MIN);
    for (start_ns, end_ns, pause) in inside {
        stopped.count = stopped.count.saturating_add(1);
        stopped.engine |= pause.in_engine;
        stopped.worker |= pause.in_worker;
        total_ns = total_ns.saturating_add(end_ns.saturating_sub(start_ns.max(until_ns)).max(0));
        until_ns = until_ns.max(end_ns);
        if end_ns.saturating_sub(start_ns) > longest_ns {
            longest_ns = end_ns.saturating_sub(start_ns);
            (stopped.log, stopped.what) = (pause.log, pause.what);
        }
    }
    let ms = |ns: i64| Time::of(ns.unsigned_abs()).0;
    (stopped.ms, stopped.longest_ms) = (ms(total_ns), ms(longest_ns));
    stopped
}
