//! Pauses of Python's garbage collector, by process.

use profilemate_session::{Component, Edge, Event, Name, Session};

use crate::Context;
use crate::statistics::{Samples, milliseconds};

/// Generation that holds all older objects, and whose collection looks at every one of them (Python documentation, `gc`).
const OLDEST: u64 = 2;

/// The pauses of one process between its first and its last work. Of the engine core and its workers without those while the
/// engine had no request: they stopped nobody.
#[derive(Debug, Clone, PartialEq)]
pub struct Garbage {
    /// The process.
    pub process: String,
    /// Its id.
    pub pid: u32,
    /// Collections; never 0.
    pub count: u64,
    /// Those of the oldest generation.
    pub oldest_count: u64,
    /// All pauses, milliseconds.
    pub total_ms: f64,
    /// Those of collections of the oldest generation, milliseconds.
    pub oldest_total_ms: f64,
    /// The longest, milliseconds.
    pub max_ms: f64,
    /// 99th percentile, milliseconds.
    pub p99_ms: f64,
    /// Objects that were freed.
    pub collected: u64,
}

#[derive(Debug, Clone, Default)]
struct OfLog {
    pauses: Samples,
    oldest_count: u64,
    oldest_ns: u64,
    collected: u64,
}

#[derive(Debug)]
pub(crate) struct Collector(Vec<OfLog>);

impl Collector {
    pub(crate) fn new(session: &Session) -> Self {
        Self(vec![OfLog::default(); session.logs.len()])
    }

    #[inline]
    pub(crate) fn see(&mut self, context: &Context<'_>, event: &Event) {
        if event.name != Name::GarbageCollection || event.edge != Edge::End {
            return;
        }
        let Some(span) = event.span().filter(|_| context.steps.is_while_working(event)) else { return };
        let pause_ns = context.steps.awake_ns(context.session, event);
        if pause_ns == 0 {
            return;
        }
        let of = &mut self.0[event.log];
        of.pauses.push(pause_ns);
        of.collected = of.collected.saturating_add(span.value_b & u64::from(u32::MAX));
        if span.value_a >= OLDEST {
            of.oldest_count += 1;
            of.oldest_ns = of.oldest_ns.saturating_add(pause_ns);
        }
    }

    /// Those of each process that had any.
    pub(crate) fn finish(self, session: &Session) -> Vec<Garbage> {
        let logs = session.logs.iter().zip(self.0);
        logs.filter_map(|(log, mut of)| {
            Some(Garbage {
                process: log.process(Component::EngineCore).to_owned(),
                pid: log.head.identity.pid,
                count: of.pauses.len() as u64,
                oldest_count: of.oldest_count,
                total_ms: of.pauses.sum() as f64 / 1e6,
                oldest_total_ms: milliseconds(of.oldest_ns),
                max_ms: of.pauses.percentile(1.0, milliseconds)?,
                p99_ms: of.pauses.percentile(0.99, milliseconds)?,
                collected: of.collected,
            })
        })
        .collect()
    }
}
