//! A session as a trace for Perfetto: who did what when, drawn from the same rows as the tables.
//!
//! ```text
//! proto     the messages of the format that are needed
//! packets   names, packets and bundles on their way into the file
//! tracks    slices in order and within one another
//! gpu       a worker's GPU
//! layers    what is inside of its forward passes
//! requests  the requests of an engine, and the steps that they are tied to
//! ```

mod gpu;
mod layers;
mod packets;
mod proto;
mod requests;
mod tracks;

use std::collections::HashMap;
use std::path::Path;

use profilemate_analysis::batch::{Batch, percent};
use profilemate_analysis::layers::Interval;
use profilemate_analysis::requests::{Beneficiary, Happening as Event, RequestEvent};
use profilemate_analysis::spans::Span;
use profilemate_analysis::{Row, analyze, kv_cache};
use profilemate_session::{Component, Label, Name, Session};

use self::gpu::Gpu;
use self::packets::{Arguments, Called, Happening, Packets, Uuid, Value};
use self::requests::Requests;
use self::tracks::{Slice, Track};
use crate::Error;
use crate::replace::{NewFile, one_at_a_time};

/// Categories of slices.
const CATEGORY_GPU: &str = "gpu";
const CATEGORY_LAYER: &str = "layer";
const CATEGORY_REQUEST: &str = "request";

/// Places of tracks within a process, from the top.
const RANK_COUNTERS: i32 = 0;
const RANK_PARTS: i32 = 10;
const RANK_GPU: i32 = 20;
const RANK_LAYERS: i32 = 25;
const RANK_REQUESTS: i32 = 30;

/// What part of a session is drawn: whatever goes on at some moment between the two, as a whole. Nanoseconds since the session's
/// start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// From then on.
    pub from_ns: u64,
    /// Until then.
    pub to_ns: u64,
}

impl Window {
    /// All of it.
    pub const ALL: Self = Self { from_ns: 0, to_ns: u64::MAX };

    fn holds(self, start_ns: u64, end_ns: u64) -> bool {
        end_ns >= self.from_ns && start_ns <= self.to_ns
    }
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Slices and instants.
    pub slices: u64,
    /// How long the session was, nanoseconds.
    pub duration_ns: u64,
}

/// A moment, counted from the session's start, before which there is nothing.
fn after_start(at_ns: i64) -> u64 {
    u64::try_from(at_ns).unwrap_or(0)
}

fn milliseconds(ns: u64) -> Value {
    Value::Real(ns as f64 / 1e6)
}

fn seconds(ns: i64) -> Value {
    Value::Real(ns as f64 / 1e9)
}

/// What is drawn of an engine besides its spans.
struct Engine {
    requests: Requests,
    running: Counter,
    waiting: Counter,
    tokens: Counter,
    prefill_tokens: Counter,
    /// By pool.
    kv_usage: Vec<(String, Counter)>,
}

/// A track for a number; it is there from its first value on.
struct Counter {
    name: String,
    unit: &'static str,
    uuid: Option<Uuid>,
    last: Option<f64>,
    at_ns: u64,
}

impl Counter {
    fn new(name: &str, unit: &'static str) -> Self {
        Self { name: name.to_owned(), unit, uuid: None, last: None, at_ns: 0 }
    }

    /// The track, and the moment, which never lies before the one before.
    fn at(&mut self, at_ns: u64, parent: Uuid, packets: &mut Packets) -> Result<(Uuid, u64), Error> {
        self.at_ns = self.at_ns.max(at_ns);
        let uuid = match self.uuid {
            Some(uuid) => uuid,
            None => *self.uuid.insert(packets.counter(parent, &self.name, self.unit, RANK_COUNTERS)?),
        };
        Ok((uuid, self.at_ns))
    }

    fn number(&mut self, at_ns: u64, value: u64, parent: Uuid, packets: &mut Packets) -> Result<(), Error> {
        let (uuid, at_ns) = self.at(at_ns, parent, packets)?;
        self.last = Some(value as f64);
        packets.count(uuid, at_ns, value)
    }

    /// The same value again is left out.
    fn level(&mut self, at_ns: u64, value: f64, parent: Uuid, packets: &mut Packets) -> Result<(), Error> {
        if self.last == Some(value) {
            return Ok(());
        }
        self.last = Some(value);
        let (uuid, at_ns) = self.at(at_ns, parent, packets)?;
        packets.measure(uuid, at_ns, value)
    }
}

impl Engine {
    fn new() -> Self {
        Self {
            requests: Requests::default(),
            running: Counter::new("running requests", "requests"),
            waiting: Counter::new("waiting requests", "requests"),
            tokens: Counter::new("tokens per step", "tokens"),
            prefill_tokens: Counter::new("prefill tokens per step", "tokens"),
            kv_usage: Vec::new(),
        }
    }

    fn batch(&mut self, batch: &Batch<'_>, parent: Uuid, packets: &mut Packets) -> Result<(), Error> {
        let at_ns = after_start(batch.start_ns);
        for (counter, length) in [(&mut self.running, batch.running), (&mut self.waiting, batch.waiting)] {
            if let Some(length) = length {
                counter.level(at_ns, length.into(), parent, packets)?;
            }
        }
        // Every step has its value, so that they add up to the tokens.
        self.tokens.number(at_ns, batch.num_tokens.into(), parent, packets)?;
        self.prefill_tokens.number(at_ns, batch.prefill_tokens.into(), parent, packets)
    }

    /// The engine waits for requests: it has none.
    fn idle(&mut self, at_ns: u64, parent: Uuid, packets: &mut Packets) -> Result<(), Error> {
        for counter in [&mut self.running, &mut self.waiting] {
            if counter.last.is_some() {
                counter.level(at_ns, 0.0, parent, packets)?;
            }
        }
        for counter in [&mut self.tokens, &mut self.prefill_tokens] {
            if counter.last.is_some_and(|last| last > 0.0) {
                counter.number(at_ns, 0, parent, packets)?;
            }
        }
        Ok(())
    }

    fn kv_usage(&mut self, usage: &kv_cache::Usage<'_>, parent: Uuid, packets: &mut Packets) -> Result<(), Error> {
        let Some(used_pct) = percent(usage.used.into(), usage.total.into()) else { return Ok(()) };
        let at = self.kv_usage.iter().position(|(pool, _)| pool == usage.pool).unwrap_or_else(|| {
            let name = if usage.pool.is_empty() {
                "KV cache usage".to_owned()
            } else {
                format!("KV cache usage {}", usage.pool)
            };
            self.kv_usage.push((usage.pool.to_owned(), Counter::new(&name, "%")));
            self.kv_usage.len() - 1
        });
        self.kv_usage[at].1.level(after_start(usage.at_ns), used_pct, parent, packets)
    }
}

/// What a span's label says of its slice.
fn category(label: Label) -> &'static str {
    match label {
        Label::Work => "work",
        Label::WarmUp => "warm_up",
        Label::Dummy => "dummy",
    }
}

struct Timeline<'a> {
    session: &'a Session,
    window: Window,
    packets: Packets,
    /// The process of each log.
    processes: Vec<Uuid>,
    parts: HashMap<(usize, Component), Track>,
    gpus: HashMap<usize, Gpu>,
    layers: HashMap<usize, Track>,
    engines: HashMap<usize, Engine>,
    flow: u64,
    /// The last moment of which anything is known.
    latest_ns: u64,
}

impl<'a> Timeline<'a> {
    fn new(session: &'a Session, window: Window, file: NewFile) -> Result<Self, Error> {
        let mut packets = Packets::new(file, session.start.realtime_ns)?;
        let mut by_pid: HashMap<u32, Uuid> = HashMap::new();
        let mut processes = Vec::with_capacity(session.logs.len());
        for log in &session.logs {
            let pid = log.head.identity.pid;
            let uuid = if let Some(uuid) = by_pid.get(&pid) {
                *uuid
            } else {
                let mut roles: Vec<String> =
                    log.head.roles.iter().map(|role| format!("{}-{}", role.name, role.rank)).collect();
                if roles.is_empty() {
                    roles.push(log.main_process());
                }
                let order = [Component::ApiServer, Component::EngineCore, Component::Worker];
                let rank = order.iter().position(|component| log.role(*component).is_some());
                let rank = i32::try_from(rank.unwrap_or(order.len())).unwrap_or(0);
                packets.process(pid, &roles.join(" "), rank)?
            };
            by_pid.insert(pid, uuid);
            processes.push(uuid);
        }
        Ok(Self {
            session,
            window,
            packets,
            processes,
            parts: HashMap::new(),
            gpus: HashMap::new(),
            layers: HashMap::new(),
            engines: HashMap::new(),
            flow: 0,
            latest_ns: 0,
        })
    }

    fn row(&mut self, row: &Row<'_>) -> Result<(), Error> {
        match row {
            Row::Span(span) => self.span(span),
            Row::Forward(pass) => {
                let gpu = match self.gpus.entry(pass.log) {
                    std::collections::hash_map::Entry::Occupied(found) => found.into_mut(),
                    std::collections::hash_map::Entry::Vacant(free) => {
                        if pass.gpu_start.is_none() {
                            return Ok(());
                        }
                        let name = format!("GPU of {}", pass.process);
                        free.insert(Gpu::new(self.packets.track(self.processes[pass.log], &name, RANK_GPU)?))
                    }
                };
                gpu.step(pass, self.window, &mut self.packets)
            }
            Row::Layer(interval) => self.layer(interval, None),
            Row::Collective(collective) => {
                self.layer(&collective.interval, collective.wait_ns.zip(collective.transfer_ns))
            }
            Row::Batch(batch) if self.holds_moment(batch.start_ns) => {
                let parent = self.processes[batch.log];
                engine(&mut self.engines, batch.log).batch(batch, parent, &mut self.packets)
            }
            Row::KvUsage(usage) if self.holds_moment(usage.at_ns) => {
                let parent = self.processes[usage.log];
                engine(&mut self.engines, usage.log).kv_usage(usage, parent, &mut self.packets)
            }
            Row::RequestEvent(event) => self.request_event(event),
            Row::FirstToken(first) => {
                let requests = &mut engine(&mut self.engines, first.log).requests;
                requests.first_token(first.request_id, first.at_ns, first.step, &mut self.flow);
                Ok(())
            }
            Row::Lifecycle(life) => {
                let engine = engine(&mut self.engines, life.log);
                engine.requests.life(life, &mut self.packets);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A part of a forward pass that lies somewhere on the session's clock; what does not is in the tables alone.
    fn layer(&mut self, interval: &Interval<'_>, waited: Option<(u64, u64)>) -> Result<(), Error> {
        let Some(slice) = layers::slice(interval, waited, &mut self.packets) else { return Ok(()) };
        if !self.window.holds(slice.start_ns, slice.end_ns.unwrap_or(slice.start_ns)) {
            return Ok(());
        }
        let parent = self.processes[interval.log];
        let track = self
            .layers
            .entry(interval.log)
            .or_insert_with(|| Track::new(parent, format!("layers of {}", interval.process), RANK_LAYERS));
        track.push(slice, &mut self.packets)
    }

    fn holds_moment(&self, at_ns: i64) -> bool {
        let at_ns = after_start(at_ns);
        self.window.holds(at_ns, at_ns)
    }

    fn span(&mut self, span: &Span<'_>) -> Result<(), Error> {
        let (start_ns, end_ns) = (after_start(span.start_ns), after_start(span.end_ns));
        self.latest_ns = self.latest_ns.max(end_ns);
        let is_drawn = self.window.holds(start_ns, end_ns);
        let mut flows = Vec::new();
        if span.label == Label::Work && span.name == Name::EngineStep {
            let engine = engine(&mut self.engines, span.log);
            flows = engine.requests.step(start_ns, end_ns, self.window, is_drawn);
        }
        if is_drawn {
            let arguments = self.arguments(span);
            let what = Happening {
                called: Called::Name(span.name.text()),
                category: category(span.label),
                arguments,
                flows,
            };
            let slice = Slice { start_ns, end_ns: Some(end_ns), is_loose: span.name == Name::Forward, what };
            self.part(span.log, span.component, slice)?;
        }
        if span.label != Label::Work {
            return Ok(());
        }
        match span.name {
            Name::EngineIdle if self.window.holds(start_ns, start_ns) => {
                let parent = self.processes[span.log];
                engine(&mut self.engines, span.log).idle(start_ns, parent, &mut self.packets)
            }
            Name::EngineStep => {
                let parent = self.processes[span.log];
                let requests = &mut engine(&mut self.engines, span.log).requests;
                requests.write(end_ns, self.latest_ns, parent, self.window, &mut self.packets)
            }
            _ => Ok(()),
        }
    }

    fn arguments(&mut self, span: &Span<'_>) -> Arguments {
        let mut arguments = Arguments::new();
        arguments.extend(span.step.map(|step| ("step", Value::Number(step))));
        let says_batch =
            matches!(span.name, Name::EngineStep | Name::Scheduling | Name::ModelExecution | Name::Forward);
        if let Some(scheduled) = span.scheduled.filter(|_| says_batch) {
            arguments.extend(scheduled.phase().map(|phase| ("phase", self.packets.text(phase.text()))));
            arguments.push(("sequences", Value::Number(scheduled.num_seqs.into())));
            arguments.push(("tokens", Value::Number(scheduled.num_tokens.into())));
            arguments.push(("prefill_tokens", Value::Number(scheduled.prefill_tokens.into())));
        }
        if let Some(context) = span.context {
            let name = match span.name {
                Name::Forward | Name::GraphCapture => "descriptor",
                _ => "context",
            };
            arguments.push((name, self.packets.text(context)));
        }
        arguments
    }

    /// Puts a slice on the track of a part of vLLM.
    fn part(&mut self, log: usize, component: Component, slice: Slice) -> Result<(), Error> {
        let parent = self.processes[log];
        let track = self.parts.entry((log, component)).or_insert_with(|| {
            let name = self.session.logs[log].process(component).to_owned();
            Track::new(parent, name, RANK_PARTS + component as i32)
        });
        track.push(slice, &mut self.packets)
    }

    fn request_event(&mut self, event: &RequestEvent<'_>) -> Result<(), Error> {
        engine(&mut self.engines, event.log).requests.see(event, &mut self.flow);
        let Event::Preempted { reason, computed_tokens, blocks_freed, beneficiary, .. } = event.what else {
            return Ok(());
        };
        if !self.holds_moment(event.at_ns) {
            return Ok(());
        }
        let id = |id: &str| Value::Text(packets::shown(id).into_boxed_str());
        let beneficiary = match beneficiary {
            Beneficiary::Unknown => None,
            Beneficiary::Itself => Some(id("itself")),
            Beneficiary::Other(other) => Some(id(other)),
        };
        let arguments = [
            ("request_id", Some(event.request_id).filter(|id| !id.is_empty()).map(id)),
            ("step", event.step.map(Value::Number)),
            ("reason", Some(reason).filter(|reason| !reason.is_empty()).map(|reason| self.packets.text(reason))),
            ("computed_tokens", Some(Value::Number(computed_tokens.into()))),
            ("blocks_freed", blocks_freed.map(|blocks| Value::Number(blocks.into()))),
            ("preempted_for", beneficiary),
        ];
        let what = Happening {
            called: Called::Name("preemption"),
            category: CATEGORY_REQUEST,
            arguments: arguments.into_iter().filter_map(|(name, value)| Some((name, value?))).collect(),
            flows: Vec::new(),
        };
        let slice = Slice { start_ns: after_start(event.at_ns), end_ns: None, is_loose: false, what };
        self.part(event.log, Component::EngineCore, slice)
    }

    fn finish(mut self, duration_ns: u64) -> Result<(NewFile, u64), Error> {
        // In the order of logs: the same session gives the same bytes.
        for (log, process) in self.processes.iter().enumerate() {
            for component in Component::ALL {
                if let Some(track) = self.parts.get_mut(&(log, component)) {
                    track.finish(&mut self.packets)?;
                }
            }
            if let Some(track) = self.layers.get_mut(&log) {
                track.finish(&mut self.packets)?;
            }
            if let Some(engine) = self.engines.get_mut(&log) {
                let latest_ns = self.latest_ns.max(duration_ns);
                engine.requests.write(u64::MAX, latest_ns, *process, self.window, &mut self.packets)?;
            }
        }
        let slices = self.packets.slices;
        Ok((self.packets.finish()?, slices))
    }
}

fn engine(engines: &mut HashMap<usize, Engine>, log: usize) -> &mut Engine {
    engines.entry(log).or_insert_with(Engine::new)
}

/// Writes the trace of what a session did within `window` to `path`. It appears when it is whole.
///
/// # Errors
/// When a segment cannot be read, the file cannot be written, or nothing went on within `window`.
pub fn write(session: &Session, window: Window, path: &Path) -> Result<Written, Error> {
    let failed = |error| match error {
        Error::Write { path, cause } => Error::WriteTimeline { path, cause },
        other => other,
    };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    let written = || {
        let _turn = one_at_a_time(folder)?;
        let file = NewFile::create(folder, &name)?;
        let mut timeline = Timeline::new(session, window, file)?;
        let answers = analyze::<Error>(session, |row| timeline.row(&row))?;
        let duration_ns = answers.duration_ns;
        let (file, slices) = timeline.finish(duration_ns)?;
        if slices == 0 && window != Window::ALL {
            return Err(Error::NothingThere { duration_ns });
        }
        file.keep()?;
        Ok(Written { slices, duration_ns })
    };
    written().map_err(failed)
}
