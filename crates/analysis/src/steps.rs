//! What is known of each step before the rows are made: records commit when things end, so a row may need what only
//! a later record says, or one of another process.

use std::collections::HashMap;

use profilemate_session::record::GpuCall;
use profilemate_session::record::Speculation;
use profilemate_session::{Component, Error, Event, GpuStep, Label, Log, Name, Payload, Record, Session};

use crate::gpu_clock::{GpuClock, Placed};

/// What kind of work a step does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Every token belongs to a prompt that is not computed yet.
    Prefill,
    /// No token does.
    Decode,
    /// Some do.
    Mixed,
}

impl Phase {
    /// Every phase, in the order of reports.
    pub const ALL: [Self; 3] = [Self::Prefill, Self::Decode, Self::Mixed];

    /// Its name.
    pub fn text(self) -> &'static str {
        match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
            Self::Mixed => "mixed",
        }
    }

    /// The phase of a batch of `tokens` of which `prefill` belong to prompts; `None` for an empty batch.
    pub fn of(tokens: u32, prefill: u32) -> Option<Self> {
        match (tokens, prefill) {
            (0, _) => None,
            (_, 0) => Some(Self::Decode),
            (tokens, prefill) if prefill >= tokens => Some(Self::Prefill),
            _ => Some(Self::Mixed),
        }
    }
}

/// What the scheduler decided for a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Scheduled {
    /// Sequences.
    pub num_seqs: u32,
    /// Tokens, without padding.
    pub num_tokens: u32,
    /// Those of prompts not computed yet.
    pub prefill_tokens: u32,
    /// Sequences that have such tokens.
    pub prefill_seqs: u32,
}

impl Scheduled {
    /// Its phase; `None` when nothing was scheduled.
    pub fn phase(self) -> Option<Phase> {
        Phase::of(self.num_tokens, self.prefill_tokens)
    }
}

/// What a worker did in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Worked {
    /// When its part began (`model_execution`), ticks; `None` = there is no such record.
    pub began_ticks: Option<u64>,
    /// How long it sampled, ticks; `None` = there is no such record.
    pub sampling_ticks: Option<u64>,
    /// Its size as the runner saw it: tokens below, sequences above; 0 = unknown.
    pub size: u64,
    /// When the host began its forward pass, ticks; `None` = there is no such record.
    pub forward_ticks: Option<u64>,
    /// String id of what it was dispatched as; 0 = unknown.
    pub descriptor: u32,
    /// Tokens with padding; 0 = unknown.
    pub padded_tokens: u64,
    /// Whether its output was waited for after the step (asynchronous scheduling, lightweight timing).
    pub is_awaited: bool,
}

/// What the GPU's clock said of a step. `None` = not measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OnGpu {
    /// Forward pass, nanoseconds.
    pub forward_ns: Option<u64>,
    /// Sampling, nanoseconds.
    pub sample_ns: Option<u64>,
    /// From the last kernel of the step before to the first of this one, without what encoders did in between; nanoseconds.
    pub idle_before_ns: Option<u64>,
    /// What encoders did in between, nanoseconds; `None` = there was no call of one, or its time is not known.
    pub encoder_ns: Option<u64>,
    /// From the last kernel of the step before to the first of the first of those calls, nanoseconds.
    pub encoder_after_ns: Option<u64>,
    /// From its first kernel to its last, nanoseconds.
    pub busy_ns: Option<u64>,
    /// Drafting, nanoseconds.
    pub draft_ns: Option<u64>,
    /// Where it began on the session's clock.
    pub placed: Option<Placed>,
    /// String id of what it was dispatched as; 0 = unknown.
    pub descriptor: u32,
    /// Tokens with padding; 0 = unknown.
    pub padded_tokens: u32,
}

impl OnGpu {
    fn of(step: &GpuStep) -> Self {
        Self {
            forward_ns: step.forward_ms.map(nanoseconds),
            sample_ns: step.sample_ms.map(nanoseconds),
            idle_before_ns: step.idle_before_ms.map(nanoseconds),
            encoder_ns: None,
            encoder_after_ns: None,
            busy_ns: step.busy_ms.map(nanoseconds),
            draft_ns: step.draft_ms.map(nanoseconds),
            placed: None,
            descriptor: step.descriptor,
            padded_tokens: step.padded_tokens,
        }
    }

    /// Takes what encoders did before the forward pass out of the time that the GPU had nothing to do.
    fn note_encoders(&mut self, calls: &[Call]) {
        let mut encoders = calls.iter().filter(|call| call.is_encoder && !call.is_in_forward).peekable();
        self.encoder_after_ns = encoders.peek().and_then(|call| call.gpu_after_ns);
        let encoder_ns = encoders.try_fold(0, |sum: u64, call| Some(sum.saturating_add(call.gpu_ns?)));
        self.encoder_ns = encoder_ns.filter(|ns| *ns > 0);
        self.idle_before_ns = self.idle_before_ns.map(|ns| ns.saturating_sub(self.encoder_ns.unwrap_or(0)));
    }

    /// Whether any of its times is.
    fn is_known(&self) -> bool {
        [self.forward_ns, self.sample_ns, self.idle_before_ns, self.busy_ns, self.draft_ns]
            .iter()
            .any(Option::is_some)
    }
}

/// A call inside a step that was timed by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// When the host entered it, ticks.
    pub ticks: u64,
    /// How long the host was in it, ticks.
    pub duration_ticks: u64,
    /// Whether it is of an encoder; otherwise it is cross-attention.
    pub is_encoder: bool,
    /// Whether it lies in the forward pass.
    pub is_in_forward: bool,
    /// How long the GPU was in it, nanoseconds; `None` = not known.
    pub gpu_ns: Option<u64>,
    /// From the GPU's last kernel of the step before to its first, nanoseconds; `None` = not known.
    pub gpu_after_ns: Option<u64>,
}

/// When a step was on the GPUs of its workers, nanoseconds since the session's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_field_names, reason = "all are nanoseconds, and units are said in names")]
pub(crate) struct GpuSpan {
    /// When the first GPU began it.
    pub start_ns: i64,
    /// When the last one ended it, and its forward pass; `None` = not known.
    pub end_ns: i64,
    /// See `end_ns`.
    pub forward_end_ns: Option<i64>,
    /// How long that one had waited for it; `None` = not known.
    pub idle_before_ns: Option<u64>,
    /// How far off all that may be.
    pub error_ns: u64,
}

/// Milliseconds of a GPU's clock.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "not negative; no step takes centuries"
)]
fn nanoseconds(milliseconds: f32) -> u64 {
    (f64::from(milliseconds) * 1e6).round() as u64
}

/// Values by step. Steps come counted up from 1, give or take: a dense vector, with room for those that do not.
#[derive(Debug, Clone)]
pub(crate) struct StepTable<T> {
    ordered: Vec<(u64, T)>,
    /// Steps that came after a later one: pieces of other logs, restarts.
    late: HashMap<u64, T>,
}

impl<T> Default for StepTable<T> {
    fn default() -> Self {
        Self { ordered: Vec::new(), late: HashMap::new() }
    }
}

impl<T: Default> StepTable<T> {
    fn position(&self, step: u64) -> Option<usize> {
        let first = self.ordered.first()?.0;
        let guess = usize::try_from(step.checked_sub(first)?).ok()?;
        if self.ordered.get(guess).is_some_and(|(found, _)| *found == step) {
            return Some(guess);
        }
        self.ordered.binary_search_by_key(&step, |(step, _)| *step).ok()
    }

    fn is_empty(&self) -> bool {
        self.ordered.is_empty()
    }

    fn entry(&mut self, step: u64) -> &mut T {
        if self.ordered.last().is_none_or(|(last, _)| *last < step) {
            self.ordered.push((step, T::default()));
            let last = self.ordered.len() - 1;
            return &mut self.ordered[last].1;
        }
        match self.position(step) {
            Some(at) => &mut self.ordered[at].1,
            None => self.late.entry(step).or_default(),
        }
    }

    fn get_mut(&mut self, step: u64) -> Option<&mut T> {
        match self.position(step) {
            Some(at) => Some(&mut self.ordered[at].1),
            None => self.late.get_mut(&step),
        }
    }

    fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.ordered
            .iter()
            .map(|(step, value)| (*step, value))
            .chain(self.late.iter().map(|(step, value)| (*step, value)))
    }

    fn get(&self, step: u64) -> Option<&T> {
        match self.position(step) {
            Some(at) => Some(&self.ordered[at].1),
            None => self.late.get(&step),
        }
    }
}

/// When a process worked.
#[derive(Debug, Clone, Default)]
struct Working {
    /// From the beginning of its first work to the end of its last, ticks; `None` = there was none.
    ticks: Option<(u64, u64)>,
    /// The same, nanoseconds since the session's start.
    span: Option<(i64, i64)>,
    /// When it waited for requests: from, to, nanoseconds since the session's start; ascending.
    idles: Vec<(i64, i64)>,
}

impl Working {
    /// Another record of its log that is labelled as work.
    fn see(&mut self, session: &Session, log: &Log, record: &Record) {
        let start = record.ticks;
        let end = match &record.payload {
            Payload::Span(span) => {
                let end = start.saturating_add(span.duration_ticks);
                match log.span_name(record.name) {
                    // It goes on while a process loads and ends, too.
                    Name::GarbageCollection => return,
                    Name::EngineIdle => {
                        self.idles.push((session.nanoseconds(log, start), session.nanoseconds(log, end)));
                        return;
                    }
                    _ => end,
                }
            }
            // Somebody else is gone.
            Payload::ProcessExit(_) => return,
            _ => start,
        };
        let (first, last) = self.ticks.unwrap_or((start, end));
        self.ticks = Some((first.min(start), last.max(end)));
    }

    /// After the last record.
    fn finish(mut self, session: &Session, log: &Log) -> Self {
        self.span =
            self.ticks.map(|(first, last)| (session.nanoseconds(log, first), session.nanoseconds(log, last)));
        self
    }

    /// How much of a time it waited for requests, nanoseconds.
    fn idle_ns(&self, start_ns: i64, end_ns: i64) -> u64 {
        let from = self.idles.partition_point(|(_, to_ns)| *to_ns <= start_ns);
        let within = self.idles[from..].iter().take_while(|(from_ns, _)| *from_ns < end_ns);
        let of = |(from, to): &(i64, i64)| (*to).min(end_ns).saturating_sub((*from).max(start_ns));
        within.map(of).filter_map(|ns| u64::try_from(ns).ok()).fold(0, u64::saturating_add)
    }
}

/// Everything about steps that rows look up.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    /// By log.
    working: Vec<Working>,
    /// By log, of those that are engines.
    scheduled: Vec<StepTable<Scheduled>>,
    /// By log, of those that are workers.
    worked: Vec<StepTable<Worked>>,
    /// By log, of those whose steps were timed on the GPU.
    on_gpu: Vec<StepTable<OnGpu>>,
    /// By log, of those that are workers: calls that were timed by themselves, in the order in which they ended.
    calls: Vec<StepTable<Vec<Call>>>,
    /// What became of drafts, by log, of those that are engines.
    speculated: Vec<StepTable<Speculation>>,
    /// The engine's log for each log, by its part as a worker.
    engines: Vec<Option<usize>>,
    /// Step by the timestamp of its outputs, ascending.
    outputs: Vec<(u64, u64)>,
    /// When a front end took the outputs with a timestamp, nanoseconds since the session's start; ascending.
    received: Vec<(u64, i64)>,
}

impl Steps {
    /// The first pass over a session.
    pub(crate) fn read(session: &Session) -> Result<Self, Error> {
        let mut steps = Self::default();
        for log in &session.logs {
            let mut scheduled = StepTable::<Scheduled>::default();
            let mut worked = StepTable::<Worked>::default();
            let mut on_gpu = StepTable::<OnGpu>::default();
            let mut calls = StepTable::<Vec<Call>>::default();
            let mut speculated = StepTable::<Speculation>::default();
            let mut gpu_clock = GpuClock::default();
            let mut working = Working::default();
            let mut records = log.records();
            while let Some(record) = records.next_record()? {
                if record.label == Label::Work {
                    working.see(session, log, &record);
                }
                let is_outputs = matches!(&record.payload, Payload::Span(_))
                    && log.span_name(record.name) == Name::OutputProcessing;
                if record.label != Label::Work || record.step == 0 && !is_outputs {
                    continue;
                }
                match &record.payload {
                    Payload::Schedule(schedule) => {
                        *scheduled.entry(record.step) = Scheduled {
                            num_seqs: schedule.num_seqs,
                            num_tokens: schedule.num_tokens,
                            prefill_tokens: schedule.prefill_tokens,
                            prefill_seqs: schedule.prefill_seqs,
                        };
                    }
                    Payload::GpuStep(step) => {
                        let launched_ns = session.nanoseconds(log, record.ticks);
                        let done_ns = launched_ns.saturating_add(i64::from(step.read_after_us) * 1000);
                        let step = OnGpu::of(step);
                        // A step that never was on the GPU is written at once, before those that are still there, and
                        // none of its times is measured from its end.
                        let placed = if step.is_known() {
                            gpu_clock.place(launched_ns, done_ns, step.idle_before_ns, step.busy_ns)
                        } else {
                            None
                        };
                        *on_gpu.entry(record.step) = OnGpu { placed, ..step };
                    }
                    Payload::GpuCall(timed) => note_call(&mut calls, record.step, timed),
                    Payload::Speculation(found) => *speculated.entry(record.step) = *found,
                    Payload::Outputs(outputs) => steps.outputs.push((outputs.timestamp_bits, record.step)),
                    Payload::Span(span) => match log.span_name(record.name) {
                        Name::ModelExecution => {
                            let worked = worked.entry(record.step);
                            worked.began_ticks.get_or_insert(record.ticks);
                            worked.size = span.value_a;
                        }
                        Name::Forward => {
                            let worked = worked.entry(record.step);
                            worked.forward_ticks.get_or_insert(record.ticks);
                            (worked.descriptor, worked.padded_tokens) = (span.context, span.value_b);
                            for call in calls.get_mut(record.step).into_iter().flatten() {
                                call.is_in_forward |= call.ticks >= record.ticks;
                            }
                        }
                        name @ (Name::Encoder | Name::CrossAttention) => calls.entry(record.step).push(Call {
                            ticks: record.ticks,
                            duration_ticks: span.duration_ticks,
                            is_encoder: name == Name::Encoder,
                            is_in_forward: false,
                            gpu_ns: None,
                            gpu_after_ns: None,
                        }),
                        // Large outputs are taken in several slices; a client sees the first at once.
                        Name::OutputProcessing => {
                            let received = (span.value_a, session.nanoseconds(log, record.ticks));
                            if steps.received.last().is_none_or(|(bits, _)| *bits != received.0) {
                                steps.received.push(received);
                            }
                        }
                        Name::OutputReady => worked.entry(record.step).is_awaited = true,
                        Name::Sampling => {
                            let sampling = &mut worked.entry(record.step).sampling_ticks;
                            *sampling = Some(sampling.unwrap_or(0).saturating_add(span.duration_ticks));
                        }
                        _ => {}
                    },
                    _ => {}
                }
            }
            steps.working.push(working.finish(session, log));
            steps.scheduled.push(scheduled);
            steps.worked.push(worked);
            for (step, calls) in calls.iter() {
                if let Some(on_gpu) = on_gpu.get_mut(step) {
                    on_gpu.note_encoders(calls);
                }
            }
            steps.on_gpu.push(on_gpu);
            steps.calls.push(calls);
            steps.speculated.push(speculated);
        }
        steps.outputs.sort_unstable();
        steps.received.sort_unstable();
        steps.engines = (0..session.logs.len()).map(|log| engine_of(session, log)).collect();
        Ok(steps)
    }

    /// Whether an event that is labelled as work is part of it: not if it is a garbage collection before the first work of its
    /// process (it loads then) or behind the last.
    pub(crate) fn is_while_working(&self, event: &Event) -> bool {
        event.name != Name::GarbageCollection
            || self.working[event.log]
                .span
                .is_some_and(|(first_ns, last_ns)| event.start_ns < last_ns && event.end_ns > first_ns)
    }

    /// How long an event lasted while its engine had requests, nanoseconds. Of a front end that is all of it: requests may be
    /// there that have not come to the engine yet.
    pub(crate) fn awake_ns(&self, session: &Session, event: &Event) -> u64 {
        let log = &session.logs[event.log];
        let is_of_engine = [Component::EngineCore, Component::Worker].iter().any(|part| log.role(*part).is_some());
        let engine = self.engines[event.log].filter(|_| is_of_engine);
        let idle_ns = engine.map_or(0, |engine| self.working[engine].idle_ns(event.start_ns, event.end_ns));
        event.duration_ns().saturating_sub(idle_ns)
    }

    /// What the scheduler decided for the step of this event; `None` when that is not known.
    pub(crate) fn scheduled(&self, event: &Event) -> Option<Scheduled> {
        self.scheduled[self.engines[event.log]?].get(event.record.step).copied()
    }

    /// The log of the engine that a log's worker belongs to.
    pub(crate) fn engine(&self, log: usize) -> Option<usize> {
        self.engines[log]
    }

    /// What became of the drafts of the step of this event: nothing for a step without; `None` when that is not known.
    pub(crate) fn speculated(&self, event: &Event) -> Option<Speculation> {
        let engine = self.engines[event.log]?;
        let found = self.speculated[engine].get(event.record.step).copied();
        // An engine that never drafts does not say so.
        found.or_else(|| self.scheduled(event).map(|_| Speculation::default()))
    }

    /// What the worker of this event did in its step.
    pub(crate) fn worked(&self, event: &Event) -> Worked {
        self.worked[event.log].get(event.record.step).copied().unwrap_or_default()
    }

    /// Whether the steps of this event's process were timed on the GPU.
    pub(crate) fn times_on_gpu(&self, event: &Event) -> bool {
        self.is_timed_on_gpu(event.log)
    }

    /// Whether the steps of this log's process were timed on the GPU.
    pub(crate) fn is_timed_on_gpu(&self, log: usize) -> bool {
        !self.on_gpu[log].is_empty()
    }

    /// The log of the engine that a log's worker belongs to.
    pub(crate) fn engine_of(&self, log: usize) -> Option<usize> {
        self.engines[log]
    }

    /// What the GPU's clock said of the step of this event.
    pub(crate) fn on_gpu(&self, event: &Event) -> Option<&OnGpu> {
        self.on_gpu[event.log].get(event.record.step)
    }

    /// The calls in the step of this event that were timed by themselves.
    pub(crate) fn calls(&self, event: &Event) -> &[Call] {
        self.calls[event.log].get(event.record.step).map_or(&[], Vec::as_slice)
    }

    /// When a step of the engine of this log was on the GPUs; `None` where that of one of its workers is not known.
    pub(crate) fn gpu_span(&self, engine: usize, step: u64) -> Option<GpuSpan> {
        let mut span: Option<GpuSpan> = None;
        for (log, on_gpu) in self.on_gpu.iter().enumerate() {
            if on_gpu.is_empty() || self.engines[log] != Some(engine) {
                continue;
            }
            let on_gpu = on_gpu.get(step)?;
            let placed = on_gpu.placed?;
            let end_ns = placed.start_ns.saturating_add_unsigned(on_gpu.busy_ns?);
            let of = GpuSpan {
                start_ns: placed.start_ns,
                end_ns,
                forward_end_ns: on_gpu.forward_ns.map(|ns| placed.start_ns.saturating_add_unsigned(ns)),
                idle_before_ns: on_gpu.idle_before_ns,
                error_ns: placed.error_ns,
            };
            span = Some(match span {
                Some(before) => {
                    let last = if before.end_ns < of.end_ns { of } else { before };
                    GpuSpan {
                        start_ns: before.start_ns.min(of.start_ns),
                        error_ns: before.error_ns.max(of.error_ns),
                        ..last
                    }
                }
                None => of,
            });
        }
        span
    }

    /// When a front end took the outputs with this timestamp, nanoseconds since the session's start.
    pub(crate) fn received(&self, timestamp_bits: u64) -> Option<i64> {
        let at = self.received.partition_point(|(bits, _)| *bits < timestamp_bits);
        self.received.get(at).filter(|(bits, _)| *bits == timestamp_bits).map(|(_, at_ns)| *at_ns)
    }

    /// The step whose outputs carry this timestamp.
    pub(crate) fn step_of_outputs(&self, timestamp_bits: u64) -> Option<u64> {
        let at = self.outputs.partition_point(|(bits, _)| *bits < timestamp_bits);
        self.outputs.get(at).filter(|(bits, _)| *bits == timestamp_bits).map(|(_, step)| *step)
    }
}

/// What the GPU's clock said of a call inside a step.
fn note_call(calls: &mut StepTable<Vec<Call>>, step: u64, timed: &GpuCall) {
    let number = usize::try_from(timed.call).unwrap_or(usize::MAX);
    if let Some(call) = calls.get_mut(step).and_then(|calls| calls.get_mut(number)) {
        call.gpu_ns = timed.ms.map(nanoseconds);
        call.gpu_after_ns = timed.after_ms.map(nanoseconds);
    }
}

/// The log of the engine that a log's worker belongs to.
///
/// Steps are counted per engine, and a session may see several engines of one data-parallel rank, one after the other:
/// then the engine in the same process is meant, else the worker's parent, else the last that began before it.
fn engine_of(session: &Session, log: usize) -> Option<usize> {
    let worker = &session.logs[log];
    if worker.role(Component::EngineCore).is_some() {
        return Some(log);
    }
    let rank = worker
        .role(Component::Worker)
        .map_or(worker.head.identity.data_parallel_rank, |role| role.data_parallel_rank);
    let candidates: Vec<usize> = (0..session.logs.len())
        .filter(|candidate| {
            let role = session.logs[*candidate].role(Component::EngineCore);
            role.is_some_and(|role| role.data_parallel_rank == rank)
        })
        .collect();
    if let [only] = candidates.as_slice() {
        return Some(*only);
    }
    let parent = worker.head.identity.parent_pid;
    let began = |log: usize| session.logs[log].clock.first_anchor().map_or(0, |anchor| anchor.monotonic_ns);
    candidates.iter().copied().find(|candidate| session.logs[*candidate].head.identity.pid == parent).or_else(
        || {
            candidates
                .iter()
                .copied()
                .filter(|candidate| began(*candidate) <= began(log))
                .max_by_key(|c| began(*c))
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn phases() {
        assert_eq!(Phase::of(0, 0), None);
        assert_eq!(Phase::of(5, 0), Some(Phase::Decode));
        assert_eq!(Phase::of(5, 5), Some(Phase::Prefill));
        assert_eq!(Phase::of(5, 1), Some(Phase::Mixed));
    }

    proptest! {
        #[test]
        fn a_step_table_is_a_map(steps in prop::collection::vec(prop_oneof![1u64..50, any::<u64>()], 0..100)) {
            let mut table = StepTable::<u64>::default();
            let mut map = HashMap::<u64, u64>::new();
            for (at, step) in steps.iter().enumerate() {
                *table.entry(*step) = at as u64;
                map.insert(*step, at as u64);
            }
            for step in steps.iter().copied().chain(0..60) {
                prop_assert_eq!(table.get(step), map.get(&step));
            }
        }
    }
}
