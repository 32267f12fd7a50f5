//! The load of experts: the counters of this process, and when they become records.
//!
//! Routers tell which experts they chose (`profilemate.probes.moe_experts`). Nothing is counted but the tokens of a step: not
//! warm-up, not dummy batches, not padding. The counters are read when a step begins and enough time has passed since they were
//! read, and once more when the log ends. On a GPU they are there (`crates/cuda/src/device/count_experts.cu`), and are read by a copy
//! beside vLLM's work that is begun in one step and found done in a later one.

use crate::device;
use crate::failure::{self, FAILURES_UNTIL_OFF, Fault};
use crate::state::{self, State, WORKER};
use core::ffi::c_void;
use profilemate_cuda::Stream;
use profilemate_cuda::device::{Cells, DevicePointer, ExpertCounters, MOST_EXPERTS, Weight};
use profilemate_experts::{Book, Counters, Element, Layer, Matrix, Tokens, count_chosen, count_weights};
use profilemate_format::record::{Label, Payload, Record};
use profilemate_record::{Writer, clock};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// How long the end of a log waits for the last reading. It takes microseconds, unless the GPU itself hangs.
const READING_ENDS_WITHIN: Duration = Duration::from_secs(1);

/// Where the counters are.
#[derive(Debug)]
enum Place {
    /// Here: the counters, and what was read of them last.
    Host { words: Vec<u64>, reading: Vec<u64> },
    /// On the GPU.
    Gpu(ExpertCounters),
}

/// What is counted in this process.
#[derive(Debug)]
pub(crate) struct Experts {
    book: Book,
    place: Place,
    interval_ticks: u64,
    failures: u32,
}

impl Experts {
    /// Writes some of what was read last.
    fn write_some(&mut self, step: u64, writer: &mut Writer) {
        let Self { book, place, .. } = self;
        let put = |ticks, payload| push(writer, ticks, step, payload);
        match place {
            Place::Host { reading, .. } => book.write_some(|at| reading[at], put),
            Place::Gpu(counters) => book.write_some(|at| counters.reading().word(at), put),
        }
    }

    fn write_all(&mut self, step: u64, writer: &mut Writer) {
        while !self.book.is_done() {
            self.write_some(step, writer);
        }
    }

    /// Whether counting failed so often that it is left alone. What was counted before is written all the same.
    fn is_off(&self) -> bool {
        self.failures >= FAILURES_UNTIL_OFF
    }

    fn is_due(&self, ticks: u64) -> bool {
        self.book.is_done() && ticks.wrapping_sub(self.book.read_at()) >= self.interval_ticks
    }
}

fn push(writer: &mut Writer, ticks: u64, step: u64, payload: Payload) {
    writer.push(&Record { ticks, step, label: Label::Work, flags: 0, name: 0, payload });
}

/// Counts the experts of these layers from here on: `(index in the model, experts, top-k)` for each, in the order of their places.
/// What came on is written every `interval_seconds`. With `on_gpu`, device code is loaded already, and no graph is captured.
#[pyfunction]
pub(crate) fn watch_experts(
    py: Python<'_>,
    layers: Vec<(u16, u16, u16)>,
    coselection: bool,
    weights: bool,
    interval_seconds: u64,
    on_gpu: bool,
) -> PyResult<()> {
    let layers: Vec<Layer> =
        layers.into_iter().map(|(index, experts, top_k)| Layer { index, experts, top_k }).collect();
    let bad = |text: String| PyValueError::new_err(text);
    let counters = Counters::new(&layers, coselection, weights).map_err(|error| bad(error.to_string()))?;
    let words = counters.words();
    let place = if on_gpu {
        if let Some(layer) = layers.iter().find(|layer| u32::from(layer.experts) > MOST_EXPERTS) {
            return Err(bad(format!("layer {} has more than {MOST_EXPERTS} experts", layer.index)));
        }
        let stream = device::current_stream(py).ok_or_else(|| bad("torch does not tell its stream".into()))?;
        let made = state::with(py, |state| {
            let device = state.device.as_ref()?;
            Some(ExpertCounters::new(&device.code, &device.word, words, stream))
        });
        let made = made.ok_or_else(|| bad("device code is not loaded".into()))?;
        Place::Gpu(made.map_err(|error| bad(error.to_string()))?)
    } else {
        Place::Host { words: vec![0; words], reading: vec![0; words] }
    };
    let experts = Experts {
        place,
        book: Book::new(counters, clock::ticks()),
        interval_ticks: interval_seconds.saturating_mul(clock::ticks_per_second()),
        failures: 0,
    };
    // What was counted before stays: a graph may write to its counters.
    std::mem::forget(state::with(py, |state| state.experts.replace(experts)));
    Ok(())
}

/// Which rows of the batch under way are tokens for requests.
fn tokens(state: &State, first_row: usize, first_token: usize) -> Tokens {
    let valid = if state.label == Label::Work { state.lanes[WORKER].value & 0xffff_ffff } else { 0 };
    Tokens { first_row, first_token, valid: usize::try_from(valid).unwrap_or(0) }
}

/// Runs what counts: nothing that goes wrong in it reaches vLLM, and after a few failures nothing is counted any more.
fn guard<T: Default>(py: Python<'_>, count: impl FnOnce(&mut State) -> T) -> T {
    let begin = clock::ticks();
    let result = catch_unwind(AssertUnwindSafe(|| {
        state::with(py, |state| {
            if !state.is_recording() || state.experts.as_ref().is_none_or(Experts::is_off) {
                return Ok(T::default());
            }
            match failure::requested_fault() {
                Fault::None => {}
                Fault::Raise => return Err(PyRuntimeError::new_err("a fault that was asked for")),
                Fault::Panic => panic!("a fault that was asked for"),
            }
            let counted = count(state);
            // The call is made inside of vLLM's forward pass, where no hook sees what it costs.
            if let Some(writer) = &mut state.writer {
                writer.add_overhead(clock::ticks().wrapping_sub(begin));
            }
            Ok(counted)
        })
    }));
    let what = match result {
        Ok(Ok(counted)) => return counted,
        Ok(Err(error)) => error.to_string(),
        Err(payload) => failure::panic_text(payload.as_ref()),
    };
    experts_failed(py, &what);
    T::default()
}

/// Something of the counting went wrong: what, for people.
#[pyfunction]
pub(crate) fn experts_failed(py: Python<'_>, what: &str) {
    let is_off = state::with(py, |state| {
        let Some(experts) = &mut state.experts else { return true };
        experts.failures += 1;
        experts.is_off()
    });
    failure::report(py, "moe_experts.count", what, is_off);
}

/// A router chose: a matrix of expert ids in this process's memory, by token and rank of the choice. Strides in cells, bytes
/// of a cell 2, 4 or 8. The first row of this process is its token `first_token` of the step.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "what a matrix is, and a call costs less than an object")]
pub(crate) fn count_experts(
    py: Python<'_>,
    place: usize,
    data: usize,
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
    element_size: usize,
    first_row: usize,
    first_token: usize,
) {
    let element = match element_size {
        2 => Element::I16,
        4 => Element::I32,
        _ => Element::I64,
    };
    let chosen = Matrix { data: data as *const c_void, rows, columns, row_stride, column_stride, element };
    guard(py, |state| {
        let tokens = tokens(state, first_row, first_token);
        if let Some(Experts { place: Place::Host { words, .. }, book, .. }) = &mut state.experts {
            // SAFETY: the caller passes a tensor's own description of its memory, and holds the tensor meanwhile.
            unsafe { count_chosen(words, book.counters(), place, &chosen, tokens) };
        }
    });
}

/// The weights of what a router chose, as 32-bit floating-point numbers; see [`count_experts`].
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "as above")]
pub(crate) fn count_expert_weights(
    py: Python<'_>,
    place: usize,
    data: usize,
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
    first_row: usize,
    first_token: usize,
) {
    let element = Element::F32;
    let weights = Matrix { data: data as *const c_void, rows, columns, row_stride, column_stride, element };
    guard(py, |state| {
        let tokens = tokens(state, first_row, first_token);
        if let Some(Experts { place: Place::Host { words, .. }, book, .. }) = &mut state.experts {
            // SAFETY: as above.
            unsafe { count_weights(words, book.counters(), place, &weights, tokens) };
        }
    });
}

/// What a router chose, or how it is weighed, lies on the GPU.
#[derive(Clone, Copy, PartialEq, Eq)]
enum OnGpu {
    /// Ids of so many bytes.
    Chosen(u8),
    /// Routing weights.
    Weights(Weight),
}

/// A router chose, on the GPU: a matrix of ids or weights, row by row without gaps. `kind` says which, and of what type its cells are:
/// `i2`, `i4`, `i8`, `f4`, `bf2` or `f2`.
///
/// Counts on the stream that torch launches on; with `may_fork`, and while a graph is captured, on a branch of that. Returns whether
/// it did so: then the tensor has to stay until [`join_experts`] is called, behind the experts.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "what a matrix is, and a call costs less than an object")]
pub(crate) fn launch_expert_counts(
    py: Python<'_>,
    place: usize,
    kind: &str,
    data: u64,
    rows: u32,
    columns: u16,
    first_row: u32,
    first_token: u32,
    may_fork: bool,
) -> bool {
    let what = match kind {
        "i2" => OnGpu::Chosen(2),
        "i4" => OnGpu::Chosen(4),
        "i8" => OnGpu::Chosen(8),
        "f4" => OnGpu::Weights(Weight::Float),
        "bf2" => OnGpu::Weights(Weight::Bfloat16),
        "f2" => OnGpu::Weights(Weight::Half),
        _ => return false,
    };
    let Some(stream) = device::current_stream(py) else { return false };
    let cells = Cells { data: DevicePointer(data), rows, columns, first_row, first_token };
    guard(py, |state| {
        let State { experts, device, .. } = state;
        let (Some(Experts { place: Place::Gpu(counters), book, .. }), Some(device)) = (experts, device) else {
            return false;
        };
        let layout = book.counters();
        let (Some(layer), Some(at)) = (layout.layer(place), layout.tokens(place)) else { return false };
        let (code, word) = (&device.code, &device.word);
        let launched = match what {
            OnGpu::Chosen(bytes) => {
                let has_pairs = layout.has_coselection();
                counters.count_chosen(
                    code,
                    word,
                    stream,
                    at,
                    layer.experts.into(),
                    &cells,
                    bytes,
                    has_pairs,
                    may_fork,
                )
            }
            OnGpu::Weights(weight) => {
                let bins = layout.weights(place);
                if bins.is_empty() {
                    return false;
                }
                counters.count_weights(code, word, stream, bins.start, &cells, weight, may_fork)
            }
        };
        // Where a fork fails half-way, there is something to join all the same.
        device::note(state, launched).unwrap_or(may_fork)
    })
}

/// Behind the experts: what was forked off is joined again.
#[pyfunction]
pub(crate) fn join_experts(py: Python<'_>) {
    let Some(stream) = device::current_stream(py) else { return };
    state::with(py, |state| {
        if let Some(Experts { place: Place::Gpu(counters), .. }) = &mut state.experts {
            let joined = counters.join(stream);
            device::note(state, joined);
        }
    });
}

/// A step of work begins: what was read is written bit by bit, and it is read again when it is time.
pub(crate) fn begin_step(py: Python<'_>, ticks: u64) {
    let wants_stream = state::with(py, |state| {
        let Experts { place: Place::Gpu(counters), .. } = state.experts.as_ref()? else { return Some(false) };
        let experts = state.experts.as_ref()?;
        Some(experts.is_due(ticks) && !counters.is_being_read())
    });
    let Some(wants_stream) = wants_stream else { return };
    let stream = if wants_stream { device::current_stream(py) } else { None };
    state::with(py, |state| {
        if state.label == Label::Work && state.writer.is_some() {
            read(state, ticks, stream);
        }
    });
}

/// One turn of reading and writing.
fn read(state: &mut State, ticks: u64, stream: Option<Stream>) {
    let State { experts, device, writer, lanes, .. } = state;
    let (Some(experts), Some(writer)) = (experts, writer) else { return };
    let is_due = experts.is_due(ticks);
    let step = lanes[WORKER].step;
    let result = match (&mut experts.place, device) {
        (Place::Host { words, reading }, _) => {
            if is_due {
                reading.copy_from_slice(words);
                experts.book.read(ticks);
            }
            Ok(())
        }
        (Place::Gpu(counters), Some(device)) if counters.is_being_read() => {
            counters.reading_is_done(&device.code).map(|done| {
                if done {
                    experts.book.read(ticks);
                }
            })
        }
        (Place::Gpu(counters), Some(device)) if is_due => match stream {
            Some(stream) => device.code.is_capturing(stream).and_then(|capturing| {
                if capturing { Ok(()) } else { counters.begin_reading(&device.code, stream) }
            }),
            None => Ok(()),
        },
        (Place::Gpu(_), _) => Ok(()),
    };
    if !experts.book.is_done() {
        experts.write_some(step, writer);
    }
    device::note(state, result);
}

/// The log ends: what came on since the last reading is written, too.
pub(crate) fn close(py: Python<'_>) {
    let is_on_gpu = state::with(py, |state| {
        let place = &state.experts.as_ref()?.place;
        state.is_recording().then_some(matches!(place, Place::Gpu(_)))
    });
    let Some(is_on_gpu) = is_on_gpu else { return };
    let stream = if is_on_gpu { device::current_stream(py) } else { None };
    state::with(py, |state| {
        let State { experts: Some(experts), device, writer: Some(writer), lanes, .. } = state else { return };
        let step = lanes[WORKER].step;
        let now = clock::ticks();
        match (&mut experts.place, device, stream) {
            (Place::Host { words, reading }, ..) => {
                experts.book.write_all(|at| reading[at], |ticks, payload| push(writer, ticks, step, payload));
                reading.copy_from_slice(words);
                experts.book.read(now);
            }
            (Place::Gpu(counters), Some(device), Some(stream)) => {
                let deadline = Instant::now() + READING_ENDS_WITHIN;
                // The one that is under way has less than the one to come.
                let mut is_last = !counters.is_being_read();
                if is_last && counters.begin_reading(&device.code, stream).is_err() {
                    return;
                }
                loop {
                    match counters.reading_is_done(&device.code) {
                        Ok(true) if is_last => break,
                        Ok(true) => {
                            is_last = true;
                            if counters.begin_reading(&device.code, stream).is_err() {
                                return;
                            }
                        }
                        Ok(false) if Instant::now() < deadline => std::thread::sleep(Duration::from_micros(100)),
                        _ => return,
                    }
                }
                experts.book.read(now);
            }
            _ => return,
        }
        experts.write_all(step, writer);
    });
}
