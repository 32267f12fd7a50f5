//! Stamps around the parts of a model: which of them is launched where, and the records made of them.

use crate::device::{self, current_stream};
use crate::state::{self, State};
use profilemate_cuda::device::{ClockSightings, ClockWatch, Interval, Stamps};
use profilemate_cuda::{Clock, Stream};
use profilemate_format::record::{GpuClock, Label, LayerTime, Payload, Record};
use profilemate_record::{Writer, clock};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use std::time::Duration;

/// `Hook.stamp`: a collective, whose pair depends on where in the model it is called. Below them: a pair, plus 1.
pub(crate) const ALL_REDUCE: u32 = u32::MAX - 2;
pub(crate) const ALL_GATHER: u32 = u32::MAX - 1;
pub(crate) const REDUCE_SCATTER: u32 = u32::MAX;
/// Kinds of collectives.
const COLLECTIVES: usize = 3;
/// Calls of a kind of collective that are stamped in a section: behind attention and behind what follows it.
const CALLS: usize = 2;
/// Pairs of a section for its collectives.
pub(crate) const COLLECTIVE_PAIRS: usize = COLLECTIVES * CALLS;

/// `Hook.section`: the section that was open ends. Below: a section that begins when the function returns, plus 1.
pub(crate) const SECTION_ENDS: u32 = u32::MAX;

/// The part around nothing, in front of the first place: what stamps take by themselves. It is the first pair, if there.
pub(crate) const EMPTY_INTERVAL: &str = "empty";

/// Time between two copies of the ring.
const COPIES_PER_SECOND: u64 = 4;
/// At the end: looks, and the time between two.
const LAST_LOOKS: u32 = 100;
const LAST_PAUSE: Duration = Duration::from_millis(1);
/// Stack of the thread that watches the clocks: the driver's calls run on it.
const CLOCK_STACK_BYTES: usize = 1 << 20;

/// What a pair of stamps is around.
#[derive(Debug)]
struct Part {
    component: String,
    kind: String,
    layer: Option<u32>,
    /// Ids of the first two in the log of the epoch.
    ids: (u32, u32),
}

/// Stamps of this process's model.
#[derive(Debug)]
pub(crate) struct Layers {
    stamps: Stamps,
    clock: Option<ClockSightings>,
    parts: Vec<Part>,
    /// The pair in front of which the first one is launched, which is around nothing.
    behind_empty: Option<u32>,
    epoch: u32,
    /// First pair of those for collectives: [`COLLECTIVE_PAIRS`] for each section, in their order.
    first_collective: usize,
    /// The step that runs has a row.
    is_stamped: bool,
    /// The part of the model between one layer whose collectives are stamped and the next layer.
    section: Option<usize>,
    calls: [usize; COLLECTIVES],
    /// Collectives since the first section began, and of the newest whole forward pass.
    counted: [u32; COLLECTIVES],
    per_forward: [u32; COLLECTIVES],
    has_counted: bool,
    is_noted: bool,
    /// Where the newest step was launched.
    stream: Stream,
    noted_skipped: u64,
}

/// Makes the ring for these parts, `(component, kind, layer or -1)` each; those from `first_collective` on are for collectives. One
/// step in `every` is stamped. Returns why it cannot be, if so.
#[pyfunction]
pub(crate) fn bind_layers(
    py: Python<'_>,
    parts: Vec<(String, String, i64)>,
    first_collective: usize,
    every: u32,
) -> PyResult<Option<String>> {
    let Some(stream) = current_stream(py) else {
        return Err(PyRuntimeError::new_err("there is no device code"));
    };
    let pairs = u32::try_from(parts.len()).unwrap_or(u32::MAX);
    let parts: Vec<Part> = parts
        .into_iter()
        .map(|(component, kind, layer)| Part { component, kind, layer: u32::try_from(layer).ok(), ids: (0, 0) })
        .collect();
    let behind_empty = parts.first().is_some_and(|part| part.component == EMPTY_INTERVAL).then_some(1);
    Ok(state::with(py, |state| {
        let device = state.device.as_mut()?;
        let interval = clock::ticks_per_second() / COPIES_PER_SECOND;
        let stamps = match Stamps::new(&device.code, stream, &device.word, pairs, every, interval) {
            Ok(stamps) => stamps,
            Err(error) => return Some(error.to_string()),
        };
        let host = Clock { ticks: clock::ticks, ticks_per_second: clock::ticks_per_second() };
        // Without it times are where the host launched their step, to some milliseconds.
        let watched = ClockWatch::new(&device.code, host).ok().and_then(|(watch, mut sightings)| {
            let started = watch.start(&mut sightings, |body| {
                let thread = profilemate_record::start_thread("profilemate-clk", CLOCK_STACK_BYTES, body)?;
                Ok(thread.thread().clone())
            });
            started.ok().map(|()| sightings)
        });
        device.layers = Some(Layers {
            stamps,
            clock: watched,
            parts,
            behind_empty,
            epoch: 0,
            first_collective,
            is_stamped: false,
            section: None,
            calls: [0; COLLECTIVES],
            counted: [0; COLLECTIVES],
            per_forward: [0; COLLECTIVES],
            has_counted: false,
            is_noted: false,
            stream,
            noted_skipped: 0,
        });
        None
    }))
}

impl Layers {
    /// The pair of a hook's stamp at this moment.
    fn pair(&mut self, stamp: u32) -> Option<u32> {
        if stamp < ALL_REDUCE {
            return stamp.checked_sub(1);
        }
        let kind = (stamp - ALL_REDUCE) as usize;
        self.counted[kind] += 1;
        let section = self.section?;
        let call = self.calls[kind];
        self.calls[kind] += 1;
        let pair = self.first_collective + section * COLLECTIVE_PAIRS + kind * CALLS + call;
        (call < CALLS && pair < self.parts.len()).then_some(u32::try_from(pair).unwrap_or(u32::MAX))
    }

    /// Whether the step that comes is one that is stamped.
    pub(crate) fn chooses_next(&mut self) -> bool {
        self.stamps.chooses_next()
    }

    /// Before a step of real work that was chosen begins. Returns its row for the step word.
    pub(crate) fn begin_step(&mut self, step: u64, ticks: u64, stream: Stream) -> u32 {
        let row = if step == 0 { 0 } else { self.stamps.begin_step(step, ticks) };
        self.is_stamped = row != 0;
        self.stream = stream;
        row
    }

    pub(crate) fn leave_work(&mut self) {
        self.is_stamped = false;
    }

    fn refresh(&mut self, epoch: u32, writer: &mut Writer) {
        if self.epoch != epoch {
            self.epoch = epoch;
            for part in &mut self.parts {
                part.ids = (writer.intern(&part.component), writer.intern(&part.kind));
            }
        }
    }
}

/// Writes what came back from the GPU, before a step of real work begins.
pub(crate) fn read(state: &mut State, stream: Stream, now: u64) {
    let State { device, writer, epoch, .. } = state;
    let Some(device) = device else { return };
    let (Some(layers), Some(writer)) = (&mut device.layers, writer) else { return };
    layers.refresh(*epoch, writer);
    if !layers.is_noted && layers.per_forward != [0; COLLECTIVES] {
        // Of a whole forward pass, which there may not have been before the second step.
        layers.is_noted = true;
        let [all_reduce, all_gather, reduce_scatter] = layers.per_forward;
        let text = format!("all_reduce={all_reduce} all_gather={all_gather} reduce_scatter={reduce_scatter}");
        writer.fact("collectives_per_forward", &text);
    }
    if let Some(clock) = &mut layers.clock {
        clock.activate();
        write_sightings(clock, writer);
    }
    let parts = &layers.parts;
    let read = layers.stamps.read(&device.code, stream, now, |interval| write(writer, parts, interval));
    note_skipped(layers, writer);
    device::note(state, read);
}

fn note_skipped(layers: &mut Layers, writer: &mut Writer) {
    let skipped = layers.stamps.skipped();
    if skipped > layers.noted_skipped * 2 {
        layers.noted_skipped = skipped;
        writer.fact("layer_steps_skipped", &skipped.to_string());
    }
}

fn write_sightings(clock: &mut ClockSightings, writer: &mut Writer) {
    while let Some(sighting) = clock.take() {
        let error_ns = u128::from(sighting.error_ticks) * 1_000_000_000 / u128::from(clock::ticks_per_second());
        let payload = Payload::GpuClock(GpuClock {
            gpu_ns: sighting.gpu_ns,
            error_ns: u64::try_from(error_ns).unwrap_or(u64::MAX),
        });
        writer.push(&Record { ticks: sighting.ticks, step: 0, label: Label::Work, flags: 0, name: 0, payload });
    }
}

fn write(writer: &mut Writer, parts: &[Part], interval: &Interval) {
    let Some(part) = parts.get(interval.pair as usize) else { return };
    let (name, kind) = part.ids;
    let payload = Payload::LayerTime(LayerTime {
        begin_gpu_ns: interval.begin_ns,
        duration_ns: interval.duration_ns,
        layer: part.layer,
        kind,
        pair: interval.pair,
    });
    let Interval { step, ticks, .. } = *interval;
    writer.push(&Record { ticks, step, label: Label::Work, flags: 0, name, payload });
}

/// Writes what is still on the GPU, at the end of the log.
pub(crate) fn close(device: &mut device::Device, epoch: u32, writer: &mut Writer) {
    let Some(layers) = &mut device.layers else { return };
    layers.refresh(epoch, writer);
    let parts = &layers.parts;
    let pause = || std::thread::sleep(LAST_PAUSE);
    // What the driver does not give any more is lost.
    let _ = layers.stamps.finish(&device.code, layers.stream, LAST_LOOKS, pause, |interval| {
        write(writer, parts, interval);
    });
    if let Some(clock) = &mut layers.clock {
        write_sightings(clock, writer);
    }
    if layers.stamps.skipped() > layers.noted_skipped {
        writer.fact("layer_steps_skipped", &layers.stamps.skipped().to_string());
    }
}

/// A function with a stamp or a section is entered. Returns the pair whose end is to be stamped, plus 1.
#[inline]
pub(crate) fn entered(py: Python<'_>, stamp: u32, section: u32) -> u32 {
    let pair = state::with(py, |state| {
        let is_recording = state.is_recording();
        let layers = state.device.as_mut().filter(|_| is_recording)?.layers.as_mut()?;
        if section != 0 {
            layers.section = None;
            if section == 1 {
                let counted = std::mem::take(&mut layers.counted);
                // What came before the first one was no whole forward pass.
                if std::mem::replace(&mut layers.has_counted, true) {
                    layers.per_forward = counted;
                }
            }
        }
        let pair = layers.pair(stamp)?;
        // Outside of real work it may be a capture: into a graph goes every stamp.
        (layers.is_stamped || state.label != Label::Work).then_some((pair, layers.behind_empty == Some(pair)))
    });
    let Some((pair, is_behind_empty)) = pair else { return 0 };
    if is_behind_empty {
        launch(py, 0);
        launch(py, 1);
    }
    launch(py, pair * 2);
    pair + 1
}

/// A function with a stamp or a section has returned; no exception is set.
#[inline]
pub(crate) fn returned(py: Python<'_>, pair: u32, section: u32) {
    if pair != 0 {
        launch(py, pair * 2 - 1);
    }
    if section != 0 && section != SECTION_ENDS {
        state::with(py, |state| {
            if let Some(layers) = state.device.as_mut().and_then(|device| device.layers.as_mut()) {
                layers.section = Some(section as usize - 1);
                layers.calls = [0; COLLECTIVES];
            }
        });
    }
}

fn launch(py: Python<'_>, slot: u32) {
    let Some(stream) = current_stream(py) else { return };
    state::with(py, |state| {
        let Some(device) = &mut state.device else { return };
        let Some(layers) = &mut device.layers else { return };
        let launched = layers.stamps.stamp(&device.code, stream, &device.word, slot);
        device::note(state, launched);
    });
}
