//! Batch utilization: how full the batches were, against the scheduler's limits.

use std::collections::BTreeMap;

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
    /// What kept it from being larger; `None` = not known.
    pub limited_by: Option<&'a str>,
}

/// `part` of `whole` in percent; `None` when there is no whole.
pub fn percent(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| 100.0 * part as f64 / whole as f64)
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
    /// By log and string id.
    limited_by: BTreeMap<(usize, u32), (String, u64)>,
}

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
            limited_by: BTreeMap::new(),
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
            _ => return None,
        };
        let phase = Phase::of(schedule.num_tokens, schedule.prefill_tokens)?;
        let limits = self.limits[event.log];
        self.total += 1;
        if let Some(limits) = limits {
            if let Some(utilization) = percent(u64::from(schedule.num_seqs), limits.max_num_seqs) {
                self.seqs.push(utilization);
            }
            if let Some(utilization) = percent(u64::from(schedule.num_tokens), limits.max_num_tokens) {
                self.tokens.push(utilization);
                self.phases[phase as usize].push(utilization);
                self.underutilized += u64::from(utilization < UNDERUTILIZED_PCT);
            }
        }
        let log = &context.session.logs[event.log];
        let limited_by = log.head.string(event.record.name);
        self.limited_by
            .entry((event.log, event.record.name))
            .or_insert_with(|| (limited_by.unwrap_or("").to_owned(), 0))
            .1 += 1;
        Some(Batch {
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
        let mut limited_by = BTreeMap::new();
        for (what, count) in self.limited_by.into_values() {
            *limited_by.entry(what).or_default() += count;
        }
        if limited_by.keys().all(String::is_empty) {
            limited_by.clear();
        }
        Summary {
            limited_by,
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
