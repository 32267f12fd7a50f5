//! One record on the session's clock.

use profilemate_format::record::{Label, Payload, Record, Span};

use crate::clock::Clock;
use crate::log::Log;
use crate::name::Name;

/// Which end of a span an event stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edge {
    /// The span begins. Only spans named [`Name::Forward`] have this edge: that is where batch preparation ends.
    Begin,
    /// The span ended, or the thing happened.
    End,
}

/// One record, with its place in time.
#[derive(Debug, Clone, Copy)]
pub struct Event {
    /// Index of its log in the session.
    pub log: usize,
    /// Which end of it this is.
    pub edge: Edge,
    /// When it began: nanoseconds since the session's start.
    pub start_ns: i64,
    /// When it ended; equal to `start_ns` for a thing without duration.
    pub end_ns: i64,
    /// What a span is called; [`Name::Other`] for everything else.
    pub name: Name,
    /// The record itself.
    pub record: Record,
}

impl Event {
    pub(crate) fn new(log: &Log, log_index: usize, session_start_ns: u64, record: Record) -> Self {
        let place = |clock: &Clock, ticks| clock.monotonic_ns(ticks).wrapping_sub(session_start_ns).cast_signed();
        let start_ns = place(&log.clock, record.ticks);
        let (name, end_ns) = match &record.payload {
            Payload::Span(span) => {
                // Both ends go through the clock, so that spans nested in ticks are nested in nanoseconds too.
                (log.span_name(record.name), place(&log.clock, record.ticks.saturating_add(span.duration_ticks)))
            }
            // It was over when it was found over, at the latest.
            Payload::GpuStep(step) => {
                (Name::Other, start_ns.saturating_add(i64::from(step.read_after_us).saturating_mul(1000)))
            }
            Payload::GpuCall(call) => {
                (Name::Other, start_ns.saturating_add(i64::from(call.read_after_us).saturating_mul(1000)))
            }
            _ => (Name::Other, start_ns),
        };
        Self { log: log_index, edge: Edge::End, start_ns, end_ns, name, record }
    }

    /// How long it took, in nanoseconds.
    pub fn duration_ns(&self) -> u64 {
        u64::try_from(self.end_ns.saturating_sub(self.start_ns)).unwrap_or(0)
    }

    /// Whether it is real work for requests.
    pub fn is_work(&self) -> bool {
        self.record.label == Label::Work
    }

    /// The span, when it is one.
    pub fn span(&self) -> Option<&Span> {
        match &self.record.payload {
            Payload::Span(span) => Some(span),
            _ => None,
        }
    }
}
