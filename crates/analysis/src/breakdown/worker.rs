//! The time of a worker: of its host, and of its GPU.

use std::collections::VecDeque;

use profilemate_session::{Component, Edge, Event, Name, Session};

use super::sweep::{Kind, Kinds, Sweep};
use super::{GpuTime, Parts, WorkerTime};
use crate::forward::{LONGEST_BUBBLE_NS, Pass, Timing};

/// Steps after which nothing of a step is still to come in its worker's log.
const LAG: usize = 8;

#[derive(Debug)]
pub(super) struct Worker {
    /// The log of its engine.
    pub(super) engine: Option<usize>,
    /// Whether a GPU's clock, or the moment its tokens arrive, times its forward passes: then the host's call of the model only
    /// launches them.
    pub(super) only_launches: bool,
    sweep: Sweep,
    /// When the steps began that are not divided yet.
    begun: VecDeque<i64>,
    /// From its first moment to its last, and how far of that is divided.
    first_ns: i64,
    last_ns: i64,
    divided_ns: Option<i64>,
    time: WorkerTime,
    gpu: GpuTime,
}

impl Worker {
    pub(super) fn new(session: &Session, log: usize, engine: Option<usize>, only_launches: bool) -> Self {
        let of = &session.logs[log];
        Self {
            engine,
            only_launches,
            sweep: Sweep::default(),
            begun: VecDeque::new(),
            first_ns: i64::MAX,
            last_ns: i64::MIN,
            divided_ns: None,
            time: WorkerTime {
                process: of.process(Component::Worker).to_owned(),
                rank: of.role(Component::Worker).map_or(of.head.identity.rank, |role| role.rank),
                pid: of.head.identity.pid,
                ..WorkerTime::default()
            },
            gpu: GpuTime::default(),
        }
    }

    /// An event of the worker's log; what went on, if it says so.
    pub(super) fn see(&mut self, event: &Event) -> Option<Kind> {
        if event.edge != Edge::End {
            return None;
        }
        let kind = match event.name {
            Name::ModelExecution => {
                self.time.steps += 1;
                self.begun.push_back(event.start_ns);
                while self.begun.len() > LAG
                    && let Some(start_ns) = self.begun.pop_front()
                {
                    self.divide(start_ns);
                }
                Kind::ModelExecution
            }
            Name::Forward | Name::Encoder if self.only_launches => Kind::Launch,
            Name::Encoder => Kind::Encoder,
            // The pass itself is marked by what timed it.
            Name::Forward => Kind::Forward,
            Name::Sampling | Name::GrammarBitmask => Kind::Sampling,
            Name::Drafting => Kind::Drafting,
            Name::Bookkeeping => Kind::Bookkeeping,
            _ => return None,
        };
        self.mark(event.start_ns, event.end_ns, kind);
        Some(kind)
    }

    /// Something went on in the worker's host.
    pub(super) fn mark(&mut self, start_ns: i64, end_ns: i64, kind: Kind) {
        self.first_ns = self.first_ns.min(start_ns);
        self.last_ns = self.last_ns.max(end_ns);
        self.sweep.mark(start_ns, end_ns, kind);
    }

    fn divide(&mut self, to_ns: i64) {
        let from_ns = self.divided_ns.unwrap_or(self.first_ns);
        if to_ns > from_ns {
            self.time.host.add_all(&Parts::from(&self.sweep.divide(from_ns, to_ns, Kinds::ALL)));
            self.divided_ns = Some(to_ns);
        }
    }

    /// A forward pass by the GPU's clock; `idle_ns` says how much of a time the engine had no request.
    pub(super) fn on_gpu(&mut self, pass: &Pass<'_>, draft_ns: u64, idle_ns: impl Fn(i64, i64) -> u64) {
        let (Timing::Events, Some(busy_ns)) = (pass.timing, pass.gpu_busy_ns) else { return };
        let gpu = &mut self.gpu;
        gpu.steps += 1;
        let encoder_ns = pass.gpu_encoder_ns.unwrap_or(0);
        gpu.encoder_ns = gpu.encoder_ns.saturating_add(encoder_ns);
        // In the order in which they lie in the step; a clock's resolution may make them longer than the whole.
        let mut left_ns = busy_ns;
        let mut take = |ns: u64| {
            let taken_ns = ns.min(left_ns);
            left_ns -= taken_ns;
            taken_ns
        };
        gpu.forward_ns = gpu.forward_ns.saturating_add(take(pass.duration_ns.unwrap_or(0)));
        gpu.sampling_ns = gpu.sampling_ns.saturating_add(take(pass.sample_ns.unwrap_or(0)));
        gpu.drafting_ns = gpu.drafting_ns.saturating_add(take(draft_ns));
        gpu.other_ns = gpu.other_ns.saturating_add(left_ns);
        let Some(before_ns) = pass.gpu_idle_ns else { return };
        let without_work_ns = match pass.gpu_start {
            Some(placed) => {
                let from_ns = placed.start_ns.saturating_sub_unsigned(before_ns.saturating_add(encoder_ns));
                idle_ns(from_ns, placed.start_ns).min(before_ns)
            }
            None => 0,
        };
        // An engine in its user's own process does not wait: it is not called.
        let is_long = before_ns - without_work_ns >= LONGEST_BUBBLE_NS;
        let without_work_ns = if is_long { before_ns } else { without_work_ns };
        gpu.no_work_ns = gpu.no_work_ns.saturating_add(without_work_ns);
        gpu.bubble_ns = gpu.bubble_ns.saturating_add(before_ns - without_work_ns);
    }

    pub(super) fn finish(mut self) -> Option<WorkerTime> {
        if self.last_ns == i64::MIN && self.gpu.steps == 0 {
            return None;
        }
        self.divide(self.last_ns);
        self.time.gpu = Some(self.gpu).filter(|gpu| gpu.steps > 0);
        Some(self.time)
    }
}
