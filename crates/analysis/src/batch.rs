//! Batch utilization: how full the batches were, against the scheduler's limits.

use std::collections::BTreeMap;

use profilemate_session::record::Schedule;
use profilemate_session::{Component, Event, Log, Payload, Session};

use crate::Context;
use crate::steps::Phase;

/// Token utilization under which a step counts as underutilized, percent.
pub const UNDERUTILIZED_PCT: f64 = 50.0;

/// A scheduler's limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most sequences in a batch.
    pub max_num_seqs: u64,
    /// Most tokens in a batch.
    pub max_num_tokens: u64,
}

/// One batch that the scheduler put together.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// When: nanoseconds since the session's start.
    pub start_ns: i64,
    /// Sequences.
    pub num_seqs: u32,
    /// Tokens, without padding.
    pub num_tokens: u32,
    /// The limits it was made under; `None` = unknown.
    pub limits: Option<Limits>,
    /// What kind of step it is.
    pub phase: Phase,
    /// Requests running after the call; `None` = not known.
    pub running: Option<u32>,
    /// Requests waiting after the call; `None` = not known.
    pub waiting: Option<u32>,
    /// Tokens of prompts not computed yet.
    pub prefill_tokens: u32,
    /// Engine step; `None` = none.
    pub step: Option<u64>,
    /// The engine: `engine_core-0`.
    pub process: &'a str,
    /// Index of its log in the session.
    pub log: usize,
    /// What kept it from being larger; `None` = not known.
    pub limited_by: Option<&'a str>,
}

/// `part` of `whole` in percent; `None` when there is no whole.
pub fn percent(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| 100.0 * part as f64 / whole as f64)
}

/// The batches that one thing kept from being larger.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Limited {
    /// Batches.
    pub steps: u64,
    /// Those after which requests waited.
    pub queued_steps: u64,
    /// Mean share of the token limit, percent.
    pub mean_token_utilization_pct: Option<f64>,
}

/// What is said of the queue: requests that waited after a batch was put together.
///
/// Sessions that wait for their next input are no queue: a batch that `no_waiting_request` limited has none.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Queue {
    /// Batches after which it is known whether requests waited.
    pub known_steps: u64,
    /// Batches after which requests waited.
    pub steps: u64,
    /// Mean of the requests that waited after those.
    pub mean_waiting: Option<f64>,
    /// Most requests that waited at once.
    pub max_waiting: u32,
    /// Most batches in a row after which requests waited, in one engine.
    pub longest_steps: u64,
    /// The longest time in which requests waited after every call of the scheduler, in one engine, nanoseconds.
    pub longest_ns: u64,
}

/// How often a batch was put together while the one before was still being computed (asynchronous scheduling, pipelines).
///
/// Looked at where a batch follows one of decodes alone: of those, outputs come back in every case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Overlap {
    /// Batches that were looked at.
    pub steps: u64,
    /// Those that were put together before the outputs of the one before had come back.
    pub overlapped: u64,
}

/// What is said of all batches.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Summary {
    /// Number of batches.
    pub total_samples: u64,
    /// Mean share of the sequence limit, percent.
    pub mean_seq_utilization_pct: Option<f64>,
    /// Mean share of the token limit, percent.
    pub mean_token_utilization_pct: Option<f64>,
    /// Batches under [`UNDERUTILIZED_PCT`] of the token limit.
    pub underutilization_events: u64,
    /// Mean share of the token limit by phase, percent; only phases that were seen.
    pub phases: Vec<(Phase, f64)>,
    /// The limits, of the last engine that said some.
    pub limits: Option<Limits>,
    /// Batches by what kept them from being larger; empty = not known. Nothing when it is known of none.
    pub limited_by: BTreeMap<String, u64>,
    /// More about those, by the same names; as empty as that.
    pub limits_met: BTreeMap<String, Limited>,
    /// Batches by phase; only phases that were seen.
    pub steps_by_phase: Vec<(Phase, u64)>,
    /// Requests that waited.
    pub queue: Queue,
    /// Whether batches were put together ahead.
    pub overlap: Overlap,
    /// Most tokens in a batch.
    pub largest_tokens: u32,
    /// Most sequences in a batch.
    pub largest_seqs: u32,
}

impl Summary {
    /// Batches of a phase.
    pub fn steps_in(&self, phase: Phase) -> u64 {
        self.steps_by_phase.iter().find(|(found, _)| *found == phase).map_or(0, |(_, steps)| *steps)
    }
}

/// A mean being made.
#[derive(Debug, Clone, Copy, Default)]
struct Mean {
    sum: f64,
    count: u64,
}

impl Mean {
    fn push(&mut self, value: f64) {
        self.sum += value;
        self.count += 1;
    }

    fn value(self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }
}

/// From one moment to a later one, nanoseconds.
fn passed(from_ns: i64, to_ns: i64) -> u64 {
    u64::try_from(to_ns.saturating_sub(from_ns)).unwrap_or(0)
}

/// The limits that a process stated as facts, for logs whose first segments are gone.
fn stated_limits(log: &Log) -> Option<Limits> {
    let number = |key| log.head.fact(key)?.parse().ok();
    Some(Limits { max_num_seqs: number("max_num_seqs")?, max_num_tokens: number("max_num_tokens")? })
}

#[derive(Debug)]
pub(crate) struct Collector {
    /// Latest limits, by log.
    limits: Vec<Option<Limits>>,
    last_limits: Option<Limits>,
    total: u64,
    seqs: Mean,
    tokens: Mean,
    underutilized: u64,
    phases: [Mean; 3],
    phase_steps: [u64; 3],
    /// By log and string id.
    limited_by: BTreeMap<(usize, u32), (String, OfLimit)>,
    queue: Queue,
    waiting: Mean,
    /// By log.
    engines: Vec<Engine>,
    overlap: Overlap,
    largest_tokens: u32,
    largest_seqs: u32,
}

/// The batches of one limit, being counted.
#[derive(Debug, Clone, Copy, Default)]
struct OfLimit {
    steps: u64,
    queued_steps: u64,
    tokens: Mean,
}

/// An engine, between two calls of its scheduler.
#[derive(Debug, Clone, Copy, Default)]
struct Engine {
    /// Since when requests wait without a break, and after how many batches they did.
    queued_since: Option<(i64, u64)>,
    /// The step of the batch before, if it held decodes alone.
    decoding: Option<u64>,
    /// The latest step whose outputs have come back.
    returned: u64,
}

/// What a batch was limited by if no request waited.
const NO_WAITING_REQUEST: &str = "no_waiting_request";

impl Collector {
    pub(crate) fn new(session: &Session) -> Self {
        Self {
            limits: session.logs.iter().map(stated_limits).collect(),
            last_limits: None,
            total: 0,
            seqs: Mean::default(),
            tokens: Mean::default(),
            underutilized: 0,
            phases: [Mean::default(); 3],
            phase_steps: [0; 3],
            limited_by: BTreeMap::new(),
            queue: Queue::default(),
            waiting: Mean::default(),
            engines: vec![Engine::default(); session.logs.len()],
            overlap: Overlap::default(),
            largest_tokens: 0,
            largest_seqs: 0,
        }
    }

    /// One call of a scheduler, after which so many requests wait.
    fn see_queue(&mut self, event: &Event, schedule: &Schedule, waiting: u32) {
        let engine = &mut self.engines[event.log];
        self.queue.known_steps += u64::from(schedule.num_tokens > 0);
        if waiting == 0 {
            if let Some((since_ns, _)) = engine.queued_since.take() {
                self.queue.longest_ns = self.queue.longest_ns.max(passed(since_ns, event.start_ns));
            }
            return;
        }
        let (since_ns, steps) = engine.queued_since.get_or_insert((event.start_ns, 0));
        self.queue.longest_ns = self.queue.longest_ns.max(passed(*since_ns, event.start_ns));
        self.queue.max_waiting = self.queue.max_waiting.max(waiting);
        if schedule.num_tokens > 0 {
            *steps += 1;
            self.queue.steps += 1;
            self.queue.longest_steps = self.queue.longest_steps.max(*steps);
            self.waiting.push(f64::from(waiting));
        }
    }

    /// A batch that is not empty.
    fn see_overlap(&mut self, event: &Event, phase: Phase) {
        let engine = &mut self.engines[event.log];
        let step = event.record.step;
        let is_decode = phase == Phase::Decode && step != 0;
        if let Some(before) = std::mem::replace(&mut engine.decoding, is_decode.then_some(step)) {
            self.overlap.steps += 1;
            self.overlap.overlapped += u64::from(engine.returned < before);
        }
    }

    /// Takes note of a scheduler's limits, whatever the engine was doing when it was made.
    pub(crate) fn see_limits(&mut self, event: &Event) {
        if let Payload::Limits(limits) = &event.record.payload {
            let limits = Limits { max_num_seqs: limits.max_num_seqs, max_num_tokens: limits.max_num_tokens };
            self.limits[event.log] = Some(limits);
            self.last_limits = Some(limits);
        }
    }

    #[inline]
    pub(crate) fn see<'a>(&mut self, context: &Context<'a>, event: &Event) -> Option<Batch<'a>> {
        let schedule = match &event.record.payload {
            Payload::Schedule(schedule) => schedule,
            Payload::Limits(_) => {
                self.see_limits(event);
                return None;
            }
            Payload::Outputs(_) => {
                let engine = &mut self.engines[event.log];
                engine.returned = engine.returned.max(event.record.step);
                return None;
            }
            _ => return None,
        };
        let log = &context.session.logs[event.log];
        let limited_by = log.head.string(event.record.name);
        // Who waits for input of its own is no queue.
        let waiting = if limited_by == Some(NO_WAITING_REQUEST) { Some(0) } else { schedule.waiting };
        if let Some(waiting) = waiting {
            self.see_queue(event, schedule, waiting);
        }
        let phase = Phase::of(schedule.num_tokens, schedule.prefill_tokens)?;
        self.see_overlap(event, phase);
        let limits = self.limits[event.log];
        self.total += 1;
        self.phase_steps[phase as usize] += 1;
        self.largest_tokens = self.largest_tokens.max(schedule.num_tokens);
        self.largest_seqs = self.largest_seqs.max(schedule.num_seqs);
        let of_limit = &mut self
            .limited_by
            .entry((event.log, event.record.name))
            .or_insert_with(|| (limited_by.unwrap_or("").to_owned(), OfLimit::default()))
            .1;
        of_limit.steps += 1;
        of_limit.queued_steps += u64::from(waiting.is_some_and(|waiting| waiting > 0));
        if let Some(limits) = limits {
            if let Some(utilization) = percent(u64::from(schedule.num_seqs), limits.max_num_seqs) {
                self.seqs.push(utilization);
            }
            if let Some(utilization) = percent(u64::from(schedule.num_tokens), limits.max_num_tokens) {
                self.tokens.push(utilization);
                of_limit.tokens.push(utilization);
                self.phases[phase as usize].push(utilization);
                self.underutilized += u64::from(utilization < UNDERUTILIZED_PCT);
            }
        }
        Some(Batch {
            log: event.log,
            start_ns: event.start_ns,
            num_seqs: schedule.num_seqs,
            num_tokens: schedule.num_tokens,
            limits,
            phase,
            running: schedule.running,
            waiting: schedule.waiting,
            prefill_tokens: schedule.prefill_tokens,
            step: Some(event.record.step).filter(|step| *step != 0),
            process: log.process(Component::EngineCore),
            limited_by,
        })
    }

    pub(crate) fn finish(self) -> Summary {
        let mut merged: BTreeMap<String, OfLimit> = BTreeMap::new();
        for (what, of_limit) in self.limited_by.into_values() {
            let sum = merged.entry(what).or_default();
            sum.steps += of_limit.steps;
            sum.queued_steps += of_limit.queued_steps;
            sum.tokens.sum += of_limit.tokens.sum;
            sum.tokens.count += of_limit.tokens.count;
        }
        if merged.keys().all(String::is_empty) {
            merged.clear();
        }
        Summary {
            limited_by: merged.iter().map(|(what, of_limit)| (what.clone(), of_limit.steps)).collect(),
            limits_met: merged
                .into_iter()
                .map(|(what, of_limit)| {
                    let limited = Limited {
                        steps: of_limit.steps,
                        queued_steps: of_limit.queued_steps,
                        mean_token_utilization_pct: of_limit.tokens.value(),
                    };
                    (what, limited)
                })
                .collect(),
            steps_by_phase: Phase::ALL.into_iter().zip(self.phase_steps).filter(|(_, steps)| *steps > 0).collect(),
            queue: Queue { mean_waiting: self.waiting.value(), ..self.queue },
            overlap: self.overlap,
            largest_tokens: self.largest_tokens,
            largest_seqs: self.largest_seqs,
            total_samples: self.total,
            mean_seq_utilization_pct: self.seqs.value(),
            mean_token_utilization_pct: self.tokens.value(),
            underutilization_events: self.underutilized,
            phases: Phase::ALL
                .into_iter()
                .zip(self.phases)
                .filter_map(|(phase, mean)| Some((phase, mean.value()?)))
                .collect(),
            limits: self.last_limits.or_else(|| self.limits.into_iter().flatten().next_back()),
        }
    }
}
