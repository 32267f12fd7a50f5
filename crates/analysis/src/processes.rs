//! The processes of a session: when each began, when and how it ended.

use std::collections::HashMap;

use profilemate_session::{Event, Payload, Session};

/// How a process ended, as far as anybody saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It still runs.
    Running,
    /// It closed its log by itself.
    Closed,
    /// It exited with this code, and the launcher saw it; without closing its log, unless the code is 0.
    Exited(i64),
    /// This signal ended it, and the launcher saw it.
    Signal(u64),
    /// It is gone and did not close its log.
    Gone,
    /// Nobody says: the log was not recorded, but made from something else.
    Unknown,
}

/// One process in one of its roles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// `engine_core`, `worker`, …
    pub role: String,
    /// Which of several.
    pub rank: u32,
    /// Process id.
    pub pid: u32,
    /// When its log began: nanoseconds since the session's start. `None` = unknown.
    pub started_ns: Option<u64>,
    /// Its last sign of life. `None` while it runs.
    pub ended_ns: Option<u64>,
    /// How it ended.
    pub ending: Ending,
}

/// The end of a session, nanoseconds since its start: what [`crate::Answers::duration_ns`] will be.
///
/// # Errors
/// When a segment cannot be read.
pub fn end_ns(session: &Session) -> Result<u64, profilemate_session::Error> {
    let mut collector = Collector::new(session);
    let mut events = session.events()?;
    while let Some(event) = events.next_event()? {
        collector.see(&event);
    }
    Ok(collector.finish(session).1)
}

#[derive(Debug)]
pub(crate) struct Collector {
    /// End of the last event, by log.
    last_ns: Vec<i64>,
    /// What the launcher saw, by pid.
    exits: HashMap<u64, (i64, u64)>,
}

impl Collector {
    pub(crate) fn new(session: &Session) -> Self {
        Self { last_ns: vec![0; session.logs.len()], exits: HashMap::new() }
    }

    #[inline]
    pub(crate) fn see(&mut self, event: &Event) {
        let last = &mut self.last_ns[event.log];
        *last = event.end_ns.max(*last);
        if let Payload::ProcessExit(exit) = &event.record.payload {
            self.exits.insert(exit.pid, (exit.code, exit.signal));
        }
    }

    /// The processes, and the end of the session.
    pub(crate) fn finish(self, session: &Session) -> (Vec<Process>, u64) {
        let mut processes: Vec<Process> = Vec::new();
        let mut end_ns = 0;
        for (log, last_ns) in session.logs.iter().zip(&self.last_ns) {
            let since_start = |monotonic_ns: u64| monotonic_ns.saturating_sub(session.start.monotonic_ns);
            let anchors = (log.clock.first_anchor(), log.clock.last_anchor());
            let started_ns = anchors.0.map(|anchor| since_start(anchor.monotonic_ns));
            let closed_ns = log.head.closed_ticks.map(|ticks| since_start(log.clock.monotonic_ns(ticks)));
            let last_anchor_ns = anchors.1.map_or(0, |anchor| since_start(anchor.monotonic_ns));
            let last_ns = u64::try_from(*last_ns).unwrap_or(0).max(last_anchor_ns);
            let ended_ns = closed_ns.unwrap_or(last_ns);
            end_ns = end_ns.max(ended_ns).max(last_ns);
            let pid = log.head.identity.pid;
            let ending = match (log.alive, self.exits.get(&u64::from(pid)), closed_ns) {
                _ if log.head.fact("source").is_some() => Ending::Unknown,
                (true, ..) => Ending::Running,
                (false, Some((_, signal)), _) if *signal != 0 => Ending::Signal(*signal),
                (false, Some((code, _)), closed) if *code != 0 || closed.is_none() => Ending::Exited(*code),
                (false, _, Some(_)) => Ending::Closed,
                (false, _, None) => Ending::Gone,
            };
            for role in &log.head.roles {
                let process = Process {
                    role: role.name.clone(),
                    rank: role.rank,
                    pid,
                    started_ns,
                    ended_ns: (!log.alive).then_some(ended_ns),
                    ending,
                };
                if !processes.contains(&process) {
                    processes.push(process);
                }
            }
        }
        processes
            .sort_by(|a, b| (&a.role, a.rank, a.pid, a.started_ns).cmp(&(&b.role, b.rank, b.pid, b.started_ns)));
        (processes, end_ns)
    }
}
