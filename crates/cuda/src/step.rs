//! What the recording side and the reading side hand each other.

use crate::driver::{Event, Failure};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};

/// A place in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Mark {
    /// Before the first kernel of the forward pass.
    ForwardBegin = 0,
    /// Behind the last kernel of the forward pass.
    ForwardEnd = 1,
    /// Before sampling.
    SampleBegin = 2,
    /// Behind sampling.
    SampleEnd = 3,
    /// Before drafting (speculative decoding).
    DraftBegin = 4,
    /// Behind drafting.
    DraftEnd = 5,
    /// Behind everything that the step launched: the step is complete.
    StepEnd = 6,
}

/// Number of marks.
pub(crate) const MARKS: usize = 7;

/// Number of a context among those that marks have seen, from 1: a handle may come again when its context is gone.
pub(crate) type ContextNumber = u64;

/// Failures of the driver after which nothing is timed any more.
const FAILURES_UNTIL_OFF: u64 = 16;

/// The host's clock, as the caller reads it.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// Reads it; called from several threads.
    pub ticks: fn() -> u64,
    /// Ticks per second.
    pub ticks_per_second: u64,
}

/// What the caller wants back with a step's times.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StepInfo {
    /// Step id.
    pub step: u64,
    /// Host ticks at [`Mark::ForwardBegin`], or what the caller gave if it was not reached.
    pub ticks: u64,
    /// Tokens with padding; 0 = unknown.
    pub padded_tokens: u32,
    /// String id of the graph's descriptor; 0 = unknown.
    pub descriptor: u32,
    /// Which call inside the step it is, from 0; `None` = it is the step itself.
    pub call: Option<u32>,
}

/// Times of a step on the GPU, or of a call inside one, in milliseconds; `None` = not measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepTimes {
    /// What the caller gave.
    pub info: StepInfo,
    /// Host ticks at which the GPU was found to have passed the step: a little later than it did, never earlier. Those of
    /// `info` for a step that was not found so.
    pub found_ticks: u64,
    /// From the first to the last kernel of the forward pass, or of the call.
    pub forward_ms: Option<f32>,
    /// Sampling.
    pub sample_ms: Option<f32>,
    /// Drafting.
    pub draft_ms: Option<f32>,
    /// From the last kernel of the step before to the first of this one's forward pass, or of the call.
    pub idle_before_ms: Option<f32>,
    /// From the first kernel of the forward pass to the last of the step.
    pub busy_ms: Option<f32>,
}

impl StepTimes {
    /// Of a step that could not be timed.
    pub(crate) fn unknown(info: StepInfo) -> Self {
        Self {
            info,
            found_ticks: info.ticks,
            forward_ms: None,
            sample_ms: None,
            draft_ms: None,
            idle_before_ms: None,
            busy_ms: None,
        }
    }
}

/// What did not go as wished.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Errors that the driver returned, on either side.
    pub failures: u64,
    /// The newest of them.
    pub last_failure: Option<Failure>,
    /// Steps that were not timed because all events were in use.
    pub exhausted: u64,
    /// Steps that were not timed because their stream was being captured.
    pub capturing: u64,
    /// Steps whose times are lost because their context was gone.
    pub lost_contexts: u64,
    /// Whether the reader's thread ended by a fault of ours.
    pub reader_died: bool,
}

/// A step, or a call inside one: its events, of the context that they belong to. A call has those of a forward pass.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    pub(crate) info: StepInfo,
    pub(crate) context: ContextNumber,
    pub(crate) events: [Option<Event>; MARKS],
    /// The event that was recorded last.
    pub(crate) last: Option<Event>,
    /// Sampling has ended, and the next event stands behind it.
    pub(crate) sample_ends_next: bool,
}

impl Step {
    pub(crate) fn new(info: StepInfo) -> Self {
        Self { info, context: 0, events: [None; MARKS], last: None, sample_ends_next: false }
    }

    pub(crate) fn event(&self, mark: Mark) -> Option<Event> {
        self.events[mark as usize]
    }

    /// The event behind sampling: its own, or the one that stands for it.
    pub(crate) fn sample_end(&self) -> Option<Event> {
        self.event(Mark::SampleEnd).or_else(|| {
            let next = self.event(Mark::DraftBegin).or(self.event(Mark::StepEnd));
            next.filter(|_| self.sample_ends_next)
        })
    }

    /// Whether what the step launched last has an event behind it that may stand for the end of the step.
    pub(crate) fn has_end(&self) -> bool {
        self.last.is_some()
            && [Mark::SampleEnd, Mark::DraftEnd].into_iter().any(|mark| self.event(mark) == self.last)
    }
}

/// A step that was read, and the events that are free again with it: its own and the last one of the step before.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReadStep {
    pub(crate) times: StepTimes,
    pub(crate) context: ContextNumber,
    pub(crate) free: [Option<Event>; MARKS],
    pub(crate) free_before: Option<Event>,
}

/// What both sides look at besides the rings.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// The context that marks see; events of others are not touched.
    context: AtomicU64,
    failures: AtomicU64,
    last_failure: AtomicI32,
    pub(crate) lost_contexts: AtomicU64,
    pub(crate) reader_died: AtomicBool,
    /// The reader's thread is to end.
    pub(crate) stop: AtomicBool,
}

impl Shared {
    pub(crate) fn context(&self) -> ContextNumber {
        self.context.load(Ordering::Acquire)
    }

    pub(crate) fn set_context(&self, context: ContextNumber) {
        self.context.store(context, Ordering::Release);
    }

    pub(crate) fn failed(&self, failure: Failure) {
        self.last_failure.store(failure.0, Ordering::Relaxed);
        self.failures.fetch_add(1, Ordering::Release);
    }

    pub(crate) fn failures(&self) -> (u64, Option<Failure>) {
        let failures = self.failures.load(Ordering::Acquire);
        (failures, (failures > 0).then(|| Failure(self.last_failure.load(Ordering::Relaxed))))
    }

    /// Whether so much failed that nothing is timed any more.
    pub(crate) fn is_off(&self) -> bool {
        self.failures.load(Ordering::Relaxed) >= FAILURES_UNTIL_OFF || self.reader_died.load(Ordering::Relaxed)
    }
}
