//! What the probes themselves cost, per step.

use profilemate_session::{Component, Edge, Event, Name, Session};

use crate::statistics::Samples;

/// The cost of the probes of one process.
#[derive(Debug, Clone, PartialEq)]
pub struct Overhead {
    /// The process.
    pub process: String,
    /// Its id.
    pub pid: u32,
    /// Mean over steps, nanoseconds.
    pub mean_ns_per_step: f64,
    /// 99th percentile over steps, nanoseconds.
    pub p99_ns_per_step: f64,
    /// Share of the time that the steps took, percent; `None` when they took none.
    pub share_of_step_pct: Option<f64>,
}

#[derive(Debug)]
pub(crate) struct Collector {
    /// By log: what closes its steps, cost per step, time of the steps in nanoseconds.
    logs: Vec<(Name, Samples, u128)>,
}

/// The span that closes a step of this log.
fn closing(session: &Session, log: usize) -> (Name, Component) {
    let log = &session.logs[log];
    if log.role(Component::EngineCore).is_some() {
        (Name::EngineStep, Component::EngineCore)
    } else if log.role(Component::Worker).is_some() {
        (Name::ModelExecution, Component::Worker)
    } else {
        (Name::OutputProcessing, Component::ApiServer)
    }
}

impl Collector {
    pub(crate) fn new(session: &Session) -> Self {
        let logs = (0..session.logs.len()).map(|log| (closing(session, log).0, Samples::default(), 0)).collect();
        Self { logs }
    }

    #[inline]
    pub(crate) fn see(&mut self, session: &Session, event: &Event) {
        let (closing, costs, time) = &mut self.logs[event.log];
        if event.name != *closing || event.edge != Edge::End {
            return;
        }
        if let Some(span) = event.span() {
            let clock = &session.logs[event.log].clock;
            costs.push(clock.duration_ns(u64::from(span.overhead_ticks)));
            *time += u128::from(event.duration_ns());
        }
    }

    pub(crate) fn finish(self, session: &Session) -> Vec<Overhead> {
        self.logs
            .into_iter()
            .enumerate()
            .filter_map(|(log, (_, mut costs, time))| {
                Some(Overhead {
                    process: session.logs[log].process(closing(session, log).1).to_owned(),
                    pid: session.logs[log].head.identity.pid,
                    mean_ns_per_step: costs.mean_ns(),
                    p99_ns_per_step: costs.percentile(0.99, |ns| ns as f64)?,
                    share_of_step_pct: (time > 0).then(|| 100.0 * costs.sum() as f64 / time as f64),
                })
            })
            .collect()
    }
}
