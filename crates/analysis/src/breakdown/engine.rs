//! The wall time of a run, as an engine sees it.

use std::collections::VecDeque;

use profilemate_session::{Component, Edge, Event, Name, Session};

use super::sweep::{Divided, KINDS, Kind, Kinds, Sweep};
use super::{EngineTime, Part, Parts, Step};

/// How many stretches wait before they are divided. A record may tell of a time long past: GPU steps are read up to
/// some tens of milliseconds later, and come a few in each step.
const LAG: usize = 1024;

/// How many times without requests are remembered, for GPU steps that come later.
const IDLES: usize = 64;

/// What may go on in an engine between its steps, in its own process.
const OWN: Kinds =
    Kinds::of(&[Kind::Scheduling, Kind::UpdateFromOutput, Kind::OutputProcessing, Kind::Tokenization]);

/// A stretch of an engine's time that is not divided yet.
#[derive(Debug, Clone, Copy)]
struct Stretch {
    start_ns: i64,
    end_ns: i64,
    /// The step's number, 0 = none; `None`: the time between two steps.
    step: Option<u64>,
}

#[derive(Debug)]
pub(super) struct Engine {
    log: usize,
    sweep: Sweep,
    waiting: VecDeque<Stretch>,
    /// Everything before is in some stretch; `None` before the first.
    covered_ns: Option<i64>,
    /// When the scheduler's last call returned, if no tokens were taken since.
    scheduled_ns: Option<i64>,
    /// The latest times without requests: from, to.
    idles: VecDeque<(i64, i64)>,
    time: EngineTime,
}

/// Part of the breakdown that a kind belongs to.
fn part(kind: usize) -> Part {
    const OF: [Part; KINDS + 1] = [
        Part::Scheduling,
        Part::UpdateFromOutput,
        Part::Encoder,
        Part::Forward,
        Part::Drafting,
        Part::Sampling,
        Part::ModelOther,
        Part::Launch,
        Part::BatchPreparation,
        Part::Drafting,
        Part::Sampling,
        Part::Bookkeeping,
        Part::ModelOther,
        Part::OutputProcessing,
        Part::Tokenization,
        Part::Executor,
        Part::Other,
    ];
    OF[kind]
}

impl From<&Divided> for Parts {
    fn from(divided: &Divided) -> Self {
        let mut parts = Self::default();
        for (kind, ns) in divided.iter().enumerate() {
            parts.add(part(kind), *ns);
        }
        parts
    }
}

impl Engine {
    pub(super) fn new(session: &Session, log: usize) -> Self {
        let of = &session.logs[log];
        Self {
            log,
            sweep: Sweep::default(),
            waiting: VecDeque::new(),
            covered_ns: None,
            scheduled_ns: None,
            idles: VecDeque::new(),
            time: EngineTime {
                process: of.process(Component::EngineCore).to_owned(),
                pid: of.head.identity.pid,
                ..EngineTime::default()
            },
        }
    }

    /// Something went on in this engine or one of its workers.
    pub(super) fn mark(&mut self, start_ns: i64, end_ns: i64, kind: Kind) {
        self.sweep.mark(start_ns, end_ns, kind);
    }

    /// An event of the engine's own log; gives the step that can be divided now.
    pub(super) fn see<'a>(&mut self, session: &'a Session, event: &Event) -> Option<Step<'a>> {
        if event.edge != Edge::End {
            return None;
        }
        let kind = match event.name {
            Name::Scheduling => {
                self.scheduled_ns = Some(event.end_ns);
                Kind::Scheduling
            }
            Name::UpdateFromOutput => {
                // In between it hands the step to its workers and waits for results, of this step or one before.
                if let Some(scheduled_ns) = self.scheduled_ns.take() {
                    self.mark(scheduled_ns, event.start_ns, Kind::Executor);
                }
                Kind::UpdateFromOutput
            }
            Name::OutputProcessing => Kind::OutputProcessing,
            Name::Tokenization => Kind::Tokenization,
            Name::EngineIdle => {
                let start_ns = self.come_to(event.start_ns);
                let idle_ns = event.end_ns.saturating_sub(start_ns).max(0);
                self.time.idle_ns = self.time.idle_ns.saturating_add(idle_ns.unsigned_abs());
                self.covered_ns = Some(start_ns.saturating_add(idle_ns));
                if self.idles.len() == IDLES {
                    self.idles.pop_front();
                }
                self.idles.push_back((event.start_ns, event.end_ns));
                return self.next(session, LAG);
            }
            Name::EngineStep => {
                // What was scheduled is under way, and its results are taken in a later step.
                if let Some(scheduled_ns) = self.scheduled_ns {
                    self.mark(scheduled_ns, event.end_ns, Kind::Executor);
                }
                let start_ns = self.come_to(event.start_ns);
                let end_ns = event.end_ns.max(start_ns);
                self.waiting.push_back(Stretch { start_ns, end_ns, step: Some(event.record.step) });
                self.covered_ns = Some(end_ns);
                return self.next(session, LAG);
            }
            _ => return None,
        };
        self.mark(event.start_ns, event.end_ns, kind);
        None
    }

    /// What is new begins at `start_ns`: whatever lies between is time between steps. Where it really begins, if a part of it
    /// is told already.
    fn come_to(&mut self, start_ns: i64) -> i64 {
        // The session's clock starts with the first process that is recorded.
        let start_ns = start_ns.max(0);
        let Some(covered_ns) = self.covered_ns else {
            self.time.before_ns = start_ns.unsigned_abs();
            return start_ns;
        };
        if start_ns > covered_ns {
            self.waiting.push_back(Stretch { start_ns: covered_ns, end_ns: start_ns, step: None });
        }
        start_ns.max(covered_ns)
    }

    /// Divides stretches until no more than `left` wait; stops at a step, which it gives.
    pub(super) fn next<'a>(&mut self, session: &'a Session, left: usize) -> Option<Step<'a>> {
        while self.waiting.len() > left
            && let Some(stretch) = self.waiting.pop_front()
        {
            let kinds = if stretch.step.is_some() { Kinds::ALL } else { OWN };
            let parts = Parts::from(&self.sweep.divide(stretch.start_ns, stretch.end_ns, kinds));
            let Some(step) = stretch.step else {
                self.time.between.add_all(&parts);
                continue;
            };
            self.time.steps += 1;
            self.time.step.add_all(&parts);
            return Some(Step {
                start_ns: stretch.start_ns,
                parts,
                step: Some(step).filter(|step| *step != 0),
                process: session.logs[self.log].process(Component::EngineCore),
            });
        }
        None
    }

    /// How much of a time lies in those without requests, as far as they are still known; nanoseconds.
    pub(super) fn idle_within(&self, start_ns: i64, end_ns: i64) -> u64 {
        let within = |(from, to): &(i64, i64)| (*to).min(end_ns).saturating_sub((*from).max(start_ns));
        self.idles.iter().map(within).filter_map(|ns| u64::try_from(ns).ok()).sum()
    }

    /// All of the engine's time, of a run that took `wall_ns`; `None` if the engine never said what it did.
    pub(super) fn finish(mut self, wall_ns: u64) -> Option<EngineTime> {
        let covered_ns = self.covered_ns?.unsigned_abs();
        self.time.after_ns = wall_ns.saturating_sub(covered_ns);
        Some(self.time)
    }
}
