//! Inside the forward pass: how long attention, experts, collectives and the sampler took, layer by layer, on the GPU's clock.
//!
//! With `layers = "sample"` some layers stand for all of their kind: what is said of the whole is an estimate then, the mean of the
//! layers that were timed times the number of layers.

use std::collections::{BTreeMap, HashMap, VecDeque};

use profilemate_session::record::{GpuClock, LayerTime};
use profilemate_session::{Component, Event, Payload, Session};

use crate::Context;
use crate::statistics::{Distribution, Samples, Statistics, milliseconds};
use crate::steps::{Phase, Scheduled};

/// Collectives of the ranks of a group, by the names of their records.
pub const COLLECTIVES: [&str; 3] = ["all_reduce", "all_gather", "reduce_scatter"];

/// The component around nothing: what stamps take by themselves.
const EMPTY: &str = "empty";

/// Sightings of the GPU's clock that the line between the two clocks goes through.
const SIGHTINGS: usize = 32;

/// Collectives that wait for other ranks', at most.
const MOST_PENDING: usize = 4096;

/// What part of a forward pass a component is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Attention of every kind, and what stands in its place.
    Attention = 0,
    /// Choosing experts, and their work.
    Moe = 1,
    /// Collectives of a tensor-parallel group.
    Collectives = 2,
}

impl Part {
    /// Every part, in this order.
    pub const ALL: [Self; 3] = [Self::Attention, Self::Moe, Self::Collectives];

    /// Its name.
    pub fn text(self) -> &'static str {
        match self {
            Self::Attention => "attention",
            Self::Moe => "moe",
            Self::Collectives => "collectives",
        }
    }

    /// The part that a component belongs to; `None` = it is not in the forward pass.
    fn of(component: &str) -> Option<Self> {
        match component {
            "attention" | "linear_attention" | "cross_attention" => Some(Self::Attention),
            "router" | "experts" | "router_and_experts" => Some(Self::Moe),
            name if COLLECTIVES.contains(&name) => Some(Self::Collectives),
            _ => None,
        }
    }
}

/// One part of the model in one step.
#[derive(Debug, Clone, Copy)]
pub struct Interval<'a> {
    /// When it began: nanoseconds since the session's start.
    pub start_ns: i64,
    /// How far off that may be, nanoseconds; `None` = the GPU's clock was not tied to the session's, and it is where the host began
    /// the step.
    pub error_ns: Option<u64>,
    /// `attention`, `experts`, `all_reduce`, …
    pub component: &'a str,
    /// What tells layers of one kind from those of another; for a collective, which call behind a layer's attention.
    pub kind: &'a str,
    /// Number of the layer; `None` = it belongs to none.
    pub layer: Option<u32>,
    /// How long it took, nanoseconds.
    pub duration_ns: u64,
    /// What kind of step it was.
    pub phase: Option<Phase>,
    /// Engine step.
    pub step: u64,
    /// The process: `worker-0`.
    pub process: &'a str,
    /// Index of its log in the session.
    pub log: usize,
}

/// A collective, as one rank saw it.
#[derive(Debug, Clone, Copy)]
pub struct Collective<'a> {
    /// The rank's part of it.
    pub interval: Interval<'a>,
    /// How long the rank waited for the last one to come: what it took longer than that one. `None` = other ranks are not known.
    pub wait_ns: Option<u64>,
    /// How long it took when all were there.
    pub transfer_ns: Option<u64>,
}

/// What is said of one component and one kind of layer.
#[derive(Debug, Clone, PartialEq)]
pub struct ComponentSummary {
    /// `attention`, `experts`, …
    pub component: String,
    /// What tells its layers from others.
    pub kind: String,
    /// Layers of the kind; `None` = not said.
    pub layers: Option<u32>,
    /// Those that were timed.
    pub timed: Vec<u32>,
    /// Times of one layer.
    pub times: Statistics,
    /// By phase, means in milliseconds.
    pub phases: Vec<(Phase, Distribution)>,
    /// Share of all layers of the kind in the forward pass, percent; `None` = it is not in it, or nobody knows how long that took.
    pub forward_share_pct: Option<f64>,
    /// Whether that is from some layers only.
    pub is_estimate: bool,
}

/// What is said of one kind of collective on one rank.
#[derive(Debug, Clone, PartialEq)]
pub struct CollectiveSummary {
    /// `all_reduce`, …
    pub collective: String,
    /// The process: `worker-0`.
    pub process: String,
    /// Calls in a forward pass; `None` = not said.
    pub per_forward: Option<u32>,
    /// Times of one call.
    pub times: Statistics,
    /// How long the rank waited in one for the others; `None` = they are not known.
    pub wait: Option<Distribution>,
    /// How long one took when all were there.
    pub transfer: Option<Distribution>,
    /// Share of all calls in the forward pass, percent.
    pub forward_share_pct: Option<f64>,
    /// Whether that is from some calls only.
    pub is_estimate: bool,
}

/// Where the time of the forward passes went, over all workers whose steps were timed on their GPU.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ForwardParts {
    /// Forward passes of which both the whole and parts are known.
    pub passes: u64,
    /// How long they took, nanoseconds.
    pub forward_ns: f64,
    /// Their parts, in the order of [`Part::ALL`]; `None` = there is none of it in the model.
    pub parts_ns: [Option<f64>; 3],
    /// Whether some layers stand for all.
    pub is_estimate: bool,
}

impl ForwardParts {
    /// What is left: projections, MLPs, norms, and whatever `torch.compile` fused.
    pub fn rest_ns(&self) -> f64 {
        (self.forward_ns - self.parts_ns.iter().flatten().sum::<f64>()).max(0.0)
    }

    /// Share of a time in the forward passes, percent; `None` when no time passed.
    pub fn share_pct(&self, ns: f64) -> Option<f64> {
        (self.forward_ns > 0.0).then(|| 100.0 * ns / self.forward_ns)
    }

    fn add(&mut self, other: &Self) {
        self.passes += other.passes;
        self.forward_ns += other.forward_ns;
        self.is_estimate |= other.is_estimate;
        for (sum, part) in self.parts_ns.iter_mut().zip(other.parts_ns) {
            if let Some(part) = part {
                *sum = Some(sum.unwrap_or(0.0) + part);
            }
        }
    }
}

/// What is said of the parts of forward passes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Summary {
    /// Components that are no collectives, by component and kind.
    pub components: Vec<ComponentSummary>,
    /// Collectives, by kind and rank.
    pub collectives: Vec<CollectiveSummary>,
    /// Forward passes and their parts, of all phases together.
    pub forward: ForwardParts,
    /// The same by phase.
    pub by_phase: Vec<(Phase, ForwardParts)>,
    /// One step in so many was timed, `1/N`; `None` = not said.
    pub steps_timed: Option<String>,
    /// Steps that were not timed because reading back was late.
    pub steps_skipped: u64,
}

/// The GPU's clock and the session's, as far as they were seen together.
#[derive(Debug, Default)]
struct ClockLine {
    /// GPU's and session's nanoseconds, oldest first.
    seen: VecDeque<(u64, i64, u64)>,
}

impl ClockLine {
    fn see(&mut self, gpu_ns: u64, at_ns: i64, error_ns: u64) {
        if self.seen.back().is_some_and(|(last, _, _)| gpu_ns <= *last) {
            // A clock that goes back is another one.
            self.seen.clear();
        }
        if self.seen.len() == SIGHTINGS {
            self.seen.pop_front();
        }
        self.seen.push_back((gpu_ns, at_ns, error_ns));
    }

    /// The session's time at a time of the GPU's clock, and how far off it may be.
    fn place(&self, gpu_ns: u64) -> Option<(i64, u64)> {
        let (first, last) = (self.seen.front()?, self.seen.back()?);
        let gpu = |ns: u64| i128::from(ns);
        let rate = if last.0 > first.0 {
            // How much faster the session's clock runs. Clocks of machines differ by less than a thousandth.
            ((last.1 - first.1) as f64 / (last.0 - first.0) as f64).clamp(0.999, 1.001)
        } else {
            1.0
        };
        #[expect(clippy::cast_possible_truncation, reason = "some seconds")]
        let since = ((gpu(gpu_ns) - gpu(last.0)) as f64 * rate) as i64;
        let between_ns = (last.0 - first.0) as f64;
        // The errors of both ends, carried as far as the time lies from them.
        let away = (gpu(gpu_ns) - gpu(last.0)).unsigned_abs() as f64;
        let slope_error =
            if between_ns > 0.0 { (first.2 + last.2) as f64 * away / between_ns } else { away * 1e-4 };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small positive time")]
        Some((last.1.saturating_add(since), last.2 + slope_error as u64))
    }
}

#[derive(Debug, Default)]
struct OneComponent {
    all: Samples,
    by_phase: [Samples; 3],
}

/// Of one worker and one phase (or none): parts of forward passes whose whole is known.
#[derive(Debug, Default)]
struct Passes {
    count: u64,
    forward_ns: u64,
    /// Component and kind → sum and number.
    parts: HashMap<(u32, u32), (u64, u64)>,
}

#[derive(Debug, Default)]
struct Worker {
    clock: ClockLine,
    /// The shortest interval around nothing so far, nanoseconds: the stamps' own time on a GPU that does not wait for the host.
    empty_ns: Option<u32>,
    last_step: u64,
    /// By phase; the last for steps whose phase is not known.
    passes: [Passes; 4],
}

/// Where a collective was called: engine, step, pair of stamps, layer.
type Call = (usize, u64, u32, Option<u32>);

#[derive(Debug)]
pub(crate) struct Collector {
    workers: Vec<Worker>,
    components: BTreeMap<(String, String), OneComponent>,
    /// By kind and log: all, waits, transfers.
    collectives: BTreeMap<(usize, usize), [Samples; 3]>,
    pending: HashMap<Call, Vec<(Event, LayerTime)>>,
    order: VecDeque<Call>,
    ranks: usize,
}

impl Collector {
    pub(crate) fn new(session: &Session) -> Self {
        // A group of ranks is as large as somebody set it.
        let ranks = session
            .logs
            .iter()
            .find_map(|log| log.head.fact("setting:tensor_parallel_size")?.parse().ok())
            .unwrap_or(1);
        Self {
            workers: session.logs.iter().map(|_| Worker::default()).collect(),
            components: BTreeMap::new(),
            collectives: BTreeMap::new(),
            pending: HashMap::new(),
            order: VecDeque::new(),
            ranks,
        }
    }

    /// Sees a record of the GPU's clock or of a part; other records are none of its business, and it says so.
    pub(crate) fn see<E>(
        &mut self,
        context: &Context<'_>,
        event: &Event,
        row: &mut impl FnMut(crate::Row<'_>) -> Result<(), E>,
    ) -> Result<bool, E> {
        match &event.record.payload {
            Payload::GpuClock(GpuClock { gpu_ns, error_ns }) => {
                self.workers[event.log].clock.see(*gpu_ns, event.start_ns, *error_ns);
            }
            Payload::LayerTime(part) => self.see_part(context, event, part, row)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn see_part<E>(
        &mut self,
        context: &Context<'_>,
        event: &Event,
        part: &LayerTime,
        row: &mut impl FnMut(crate::Row<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let name = context.session.logs[event.log].head.string(event.record.name);
        let worker = &mut self.workers[event.log];
        if name == Some(EMPTY) {
            worker.empty_ns = Some(worker.empty_ns.unwrap_or(u32::MAX).min(part.duration_ns));
            return Ok(());
        }
        let duration_ns = part.duration_ns.saturating_sub(worker.empty_ns.unwrap_or(0));
        let part = &LayerTime { duration_ns, ..*part };
        self.add_to_pass(context, event, part);
        let interval = self.interval(context, event, part);
        let Some(kind) = COLLECTIVES.iter().position(|name| *name == interval.component) else {
            let key = (interval.component.to_owned(), interval.kind.to_owned());
            let component = self.components.entry(key).or_default();
            component.all.push(interval.duration_ns);
            if let Some(phase) = interval.phase {
                component.by_phase[phase as usize].push(interval.duration_ns);
            }
            return row(crate::Row::Layer(interval));
        };
        self.collectives.entry((kind, event.log)).or_default()[0].push(interval.duration_ns);
        let engine = context.steps.engine_of(event.log).unwrap_or(usize::MAX);
        let call = (engine, event.record.step, part.pair, part.layer);
        let there = self.pending.entry(call).or_default();
        if there.is_empty() {
            self.order.push_back(call);
        }
        there.push((*event, *part));
        if there.len() >= self.ranks {
            self.hand_out(context, call, row)?;
        }
        while self.pending.len() > MOST_PENDING {
            let Some(oldest) = self.order.pop_front() else { break };
            self.hand_out(context, oldest, row)?;
        }
        while self.order.front().is_some_and(|call| !self.pending.contains_key(call)) {
            self.order.pop_front();
        }
        Ok(())
    }

    /// The ranks' parts of a collective: no rank has it done before the last one has come, so the shortest had nobody to wait for.
    fn hand_out<E>(
        &mut self,
        context: &Context<'_>,
        call: Call,
        row: &mut impl FnMut(crate::Row<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let Some(ranks) = self.pending.remove(&call) else { return Ok(()) };
        let shortest = ranks.iter().map(|(_, part)| part.duration_ns).min().filter(|_| ranks.len() > 1);
        for (event, part) in &ranks {
            let interval = self.interval(context, event, part);
            let wait_ns = shortest.map(|shortest| u64::from(part.duration_ns - shortest));
            let transfer_ns = shortest.map(u64::from);
            if let (Some(kind), Some(wait), Some(transfer)) =
                (COLLECTIVES.iter().position(|name| *name == interval.component), wait_ns, transfer_ns)
            {
                let samples = self.collectives.entry((kind, event.log)).or_default();
                samples[1].push(wait);
                samples[2].push(transfer);
            }
            row(crate::Row::Collective(Collective { interval, wait_ns, transfer_ns }))?;
        }
        Ok(())
    }

    fn interval<'a>(&self, context: &Context<'a>, event: &Event, part: &LayerTime) -> Interval<'a> {
        let log = &context.session.logs[event.log];
        let placed = self.workers[event.log].clock.place(part.begin_gpu_ns);
        Interval {
            start_ns: placed.map_or(event.start_ns, |(at, _)| at),
            error_ns: placed.map(|(_, error)| error),
            component: log.head.string(event.record.name).unwrap_or(""),
            kind: log.head.string(part.kind).unwrap_or(""),
            layer: part.layer,
            duration_ns: u64::from(part.duration_ns),
            phase: context.steps.scheduled(event).and_then(Scheduled::phase),
            step: event.record.step,
            process: log.process(Component::Worker),
            log: event.log,
        }
    }

    fn add_to_pass(&mut self, context: &Context<'_>, event: &Event, part: &LayerTime) {
        let Some(forward_ns) = context.steps.on_gpu(event).and_then(|step| step.forward_ns) else { return };
        let phase = context.steps.scheduled(event).and_then(Scheduled::phase);
        let worker = &mut self.workers[event.log];
        let passes = &mut worker.passes[phase.map_or(3, |phase| phase as usize)];
        if worker.last_step != event.record.step {
            worker.last_step = event.record.step;
            passes.count += 1;
            passes.forward_ns += forward_ns;
        }
        let key = (event.record.name, if is_collective(context, event) { 0 } else { part.kind });
        let (sum, count) = passes.parts.entry(key).or_default();
        *sum += u64::from(part.duration_ns);
        *count += 1;
    }

    pub(crate) fn finish<E>(
        mut self,
        context: &Context<'_>,
        row: &mut impl FnMut(crate::Row<'_>) -> Result<(), E>,
    ) -> Result<Summary, E> {
        while let Some(oldest) = self.order.pop_front() {
            self.hand_out(context, oldest, row)?;
        }
        let session = context.session;
        let mut phases: [ForwardParts; 4] = Default::default();
        let mut shares: BTreeMap<(String, String), (f64, f64)> = BTreeMap::new();
        for (log_index, worker) in self.workers.iter().enumerate() {
            for (passes, parts) in worker.passes.iter().zip(&mut phases) {
                if passes.count > 0 {
                    parts.add(&parts_of(session, log_index, passes, &mut shares));
                }
            }
        }
        let mut forward = ForwardParts::default();
        for parts in &phases {
            forward.add(parts);
        }
        let share = |component: &str, kind: &str| {
            let (part, whole) = shares.get(&(component.to_owned(), kind.to_owned()))?;
            (*whole > 0.0).then(|| 100.0 * part / whole)
        };
        let first = |key: &str| session.logs.iter().find_map(|log| log.head.fact(key));
        let components = self.components.into_iter().filter_map(|((component, kind), mut one)| {
            let layers =
                session.logs.iter().find_map(|log| layers_of(log.head.fact(&kind_key(&component, &kind))?));
            let by_phase = Phase::ALL.into_iter().zip(&mut one.by_phase);
            let phases =
                by_phase.filter_map(|(phase, times)| Some((phase, times.distribution(milliseconds)?))).collect();
            let (count, timed) = layers.map_or((None, Vec::new()), |(count, timed)| (Some(count), timed));
            let forward_share_pct = share(&component, &kind).filter(|_| Part::of(&component).is_some());
            let is_estimate = count.is_some_and(|count| timed.len() < count as usize);
            let statistics = one.all.statistics()?;
            Some(ComponentSummary {
                component,
                kind,
                layers: count,
                timed,
                times: statistics,
                phases,
                forward_share_pct,
                is_estimate,
            })
        });
        let components = components.collect();
        let collectives =
            self.collectives.into_iter().filter_map(|((kind, log), [mut all, mut wait, mut transfer])| {
                let collective = COLLECTIVES[kind];
                let log = &session.logs[log];
                let per_forward = per_forward(log.head.fact("collectives_per_forward"), collective);
                Some(CollectiveSummary {
                    collective: collective.to_owned(),
                    process: log.process(Component::Worker).to_owned(),
                    per_forward,
                    times: all.statistics()?,
                    wait: wait.distribution(milliseconds),
                    transfer: transfer.distribution(milliseconds),
                    forward_share_pct: share(collective, log.process(Component::Worker)),
                    is_estimate: true,
                })
            });
        let collectives = collectives.collect();
        let by_phase = Phase::ALL.into_iter().zip(phases).filter(|(_, parts)| parts.passes > 0).collect();
        let skipped = |log: &profilemate_session::Log| log.head.fact("layer_steps_skipped")?.parse::<u64>().ok();
        Ok(Summary {
            components,
            collectives,
            forward,
            by_phase,
            steps_timed: first("layer_steps_stamped").map(str::to_owned),
            steps_skipped: session.logs.iter().filter_map(skipped).sum(),
        })
    }
}

fn is_collective(context: &Context<'_>, event: &Event) -> bool {
    let name = context.session.logs[event.log].head.string(event.record.name);
    name.is_some_and(|name| COLLECTIVES.contains(&name))
}

fn kind_key(component: &str, kind: &str) -> String {
    format!("layer_kind:{component}/{kind}")
}

/// `32 0,15,31`: how many layers, and which of them are timed.
fn layers_of(fact: &str) -> Option<(u32, Vec<u32>)> {
    let (count, timed) = fact.split_once(' ')?;
    Some((count.parse().ok()?, timed.split(',').filter_map(|layer| layer.parse().ok()).collect()))
}

/// `all_reduce=65 all_gather=0 …`.
fn per_forward(fact: Option<&str>, collective: &str) -> Option<u32> {
    let count = fact?.split(' ').find_map(|word| word.strip_prefix(collective)?.strip_prefix('='))?;
    count.parse().ok().filter(|count| *count > 0)
}

/// What the parts of these passes are together, with layers that were not timed by the means of those that were.
fn parts_of(
    session: &Session,
    log_index: usize,
    passes: &Passes,
    shares: &mut BTreeMap<(String, String), (f64, f64)>,
) -> ForwardParts {
    let log = &session.logs[log_index];
    let forward_ns = passes.forward_ns as f64;
    let mut parts = ForwardParts { passes: passes.count, forward_ns, ..ForwardParts::default() };
    for ((name, kind), (sum, count)) in &passes.parts {
        let (component, kind) = (log.head.string(*name).unwrap_or(""), log.head.string(*kind).unwrap_or(""));
        let Some(part) = Part::of(component) else { continue };
        let (per_pass, key) = if part == Part::Collectives {
            (per_forward(log.head.fact("collectives_per_forward"), component), log.process(Component::Worker))
        } else {
            let layers = log.head.fact(&kind_key(component, kind)).and_then(layers_of);
            (layers.map(|(count, _)| count), kind)
        };
        let mean = *sum as f64 / *count as f64;
        let timed = *count as f64 / passes.count as f64;
        // Without a count, what was timed is all that is known.
        let total = mean * per_pass.map_or(timed, f64::from) * passes.count as f64;
        parts.is_estimate |= per_pass.is_some_and(|layers| timed + 1e-9 < f64::from(layers));
        let sum = parts.parts_ns[part as usize].get_or_insert(0.0);
        *sum += total;
        let (part_ns, whole_ns) = shares.entry((component.to_owned(), key.to_owned())).or_default();
        *part_ns += total;
        *whole_ns += forward_ns;
    }
    parts
}
