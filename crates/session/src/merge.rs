//! Events of all logs in the order in which they ended.
//!
//! A process commits a record when the thing ends, so each log is in that order already; merging keeps one event per
//! log in memory. Where threads of one process commit slightly out of order, their log's order stands.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;

use crate::event::{Edge, Event};
use crate::name::Name;
use crate::reader::{Beside, Records};
use crate::{Error, Session};
use profilemate_format::record::{Label, Payload, Record};

/// The events of one log.
struct Stream<'a> {
    session: &'a Session,
    log_index: usize,
    records: Records<'a>,
    /// The event that comes next.
    next: Event,
    /// Whether the same record's end comes after it.
    end_follows: bool,
}

impl Stream<'_> {
    /// Goes on to the next event; its key, or `None` at the end.
    #[inline]
    fn advance(&mut self) -> Result<Option<i64>, Error> {
        if self.end_follows {
            self.end_follows = false;
            self.next.edge = Edge::End;
            return Ok(Some(self.next.end_ns));
        }
        let Some(record) = self.records.next_record()? else { return Ok(None) };
        let log = &self.session.logs[self.log_index];
        self.next = Event::new(log, self.log_index, self.session.start.monotonic_ns, record);
        if self.next.name == Name::Forward {
            self.next.edge = Edge::Begin;
            self.end_follows = true;
            return Ok(Some(self.next.start_ns));
        }
        Ok(Some(self.next.end_ns))
    }
}

/// A stream over all events of a session, see [`Session::events`].
pub struct Events<'a> {
    streams: Vec<Stream<'a>>,
    /// By end, then by log: logs are ordered by the names of their processes.
    order: BinaryHeap<Reverse<(i64, usize)>>,
}

impl<'a> Events<'a> {
    pub(crate) fn new(session: &'a Session) -> Result<Self, Error> {
        let mut streams = Vec::with_capacity(session.logs.len());
        let mut order = BinaryHeap::new();
        let beside = Beside::of(session.logs.len());
        for (log_index, log) in session.logs.iter().enumerate() {
            let nothing = Record {
                ticks: 0,
                step: 0,
                label: Label::WarmUp,
                flags: 0,
                name: 0,
                payload: Payload::Unknown { kind: 0, words: [0; 4] },
            };
            let next = Event::new(log, log_index, session.start.monotonic_ns, nothing);
            let mut stream =
                Stream { session, log_index, records: Records::new(log, beside), next, end_follows: false };
            if let Some(key) = stream.advance()? {
                order.push(Reverse((key, log_index)));
            }
            streams.push(stream);
        }
        Ok(Self { streams, order })
    }

    /// The next event.
    ///
    /// # Errors
    /// When a segment cannot be read.
    pub fn next_event(&mut self) -> Result<Option<Event>, Error> {
        let Some(mut top) = self.order.peek_mut() else { return Ok(None) };
        let Reverse((_, log_index)) = *top;
        let stream = &mut self.streams[log_index];
        let event = stream.next;
        if let Some(key) = stream.advance()? {
            *top = Reverse((key, log_index));
        } else {
            PeekMut::pop(top);
        }
        Ok(Some(event))
    }
}
