//! Code of ours on the GPU: loading it, and telling it which step runs.

use crate::gpu::ask_for_stream;
use crate::layers::{self, Layers};
use crate::state::{self, State, WORKER};
use profilemate_cuda::device::{DeviceCode, DeviceError, StepWord};
use profilemate_cuda::{Driver, Failure, Stream};
use profilemate_format::record::Label;
use pyo3::prelude::*;

/// Errors of the driver after which device code is left alone.
const FAILURES_UNTIL_OFF: u64 = 16;

/// Device code of this process, where there is a GPU and something that wants it.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) code: DeviceCode,
    pub(crate) word: StepWord,
    /// Stamps around the parts of the model.
    pub(crate) layers: Option<Layers>,
    /// `torch._C._cuda_getCurrentRawStream`, and its argument.
    stream_function: Py<PyAny>,
    ordinal: Py<PyAny>,
    failures: u64,
    /// Something launched asks which step runs.
    in_use: bool,
}

/// Loads our code into the context that is current; before vLLM captures graphs. Returns why it cannot be used, if so.
#[pyfunction]
pub(crate) fn load_device_code(
    py: Python<'_>,
    stream_function: Py<PyAny>,
    ordinal: Py<PyAny>,
) -> PyResult<Option<String>> {
    if state::with(py, |state| state.device.is_some()) {
        return Ok(None);
    }
    let Some(driver) = Driver::loaded() else { return Ok(Some("no CUDA driver is loaded".into())) };
    let stream = Stream(stream_function.call1(py, (ordinal.clone_ref(py),))?.extract(py)?);
    let load = || -> Result<(DeviceCode, StepWord), DeviceError> {
        let code = DeviceCode::load(driver, stream)?;
        let word = StepWord::new(&code, stream)?;
        Ok((code, word))
    };
    match load() {
        Ok((code, word)) => {
            let device = Device { code, word, layers: None, stream_function, ordinal, failures: 0, in_use: false };
            let old = state::with(py, |state| state.device.replace(device));
            drop(old);
            Ok(None)
        }
        Err(error) => Ok(Some(error.to_string())),
    }
}

/// Something that was bound asks which step runs: steps are told from here on. With `false`, for measurements, no more.
#[pyfunction]
#[pyo3(signature = (on = true))]
pub(crate) fn use_step_word(py: Python<'_>, on: bool) {
    state::with(py, |state| {
        if let Some(device) = &mut state.device {
            device.in_use = on;
        }
    });
}

/// The stream that torch launches on in this thread, if there is device code. Torch is asked each time: some of what is launched
/// is inside of blocks that change the stream, and while a graph is captured it is another one.
pub(crate) fn current_stream(py: Python<'_>) -> Option<Stream> {
    let (function, device) = state::with(py, |state| {
        // A forked child is not recording, and must not ask its parent's driver.
        let device = state.device.as_ref().filter(|_| state.is_recording())?;
        Some((device.stream_function.as_ptr(), device.ordinal.as_ptr()))
    })?;
    let stream = ask_for_stream(py, function, device);
    if stream.is_none() {
        let lost = state::with(py, |state| state.device.take());
        drop(lost);
    }
    stream
}

/// What device code is told of a step.
#[derive(Clone, Copy)]
struct Telling {
    /// It is one of those that are stamped.
    is_stamped: bool,
    /// Somebody asks for its tokens.
    is_counted: bool,
}

/// A step comes: what device code is to be told; `None`: nothing, for it was told that no step runs, which will do.
#[inline]
fn what_to_tell(state: &mut State) -> Option<Telling> {
    let is_work = state.label == Label::Work;
    let has_experts = state.experts.is_some();
    let device = state.device.as_mut().filter(|_| is_work)?;
    let is_stamped = device.in_use && device.layers.as_mut().is_some_and(Layers::chooses_next);
    // Without either, somebody measures what telling costs.
    let is_counted = has_experts || device.in_use && device.layers.is_none();
    (is_counted || is_stamped || device.word.is_set()).then_some(Telling { is_stamped, is_counted })
}

/// A step of real work begins: device code is told, in the order of the stream, if it asks.
pub(crate) fn begin_step(py: Python<'_>, ticks: u64) {
    let Some(telling) = state::with(py, what_to_tell) else { return };
    let Some(stream) = current_stream(py) else { return };
    state::with(py, |state| {
        let lane = &state.lanes[WORKER];
        #[expect(clippy::cast_possible_truncation, reason = "tokens are the lower half of the step's value")]
        let (step, tokens) = (lane.step, lane.value as u32);
        let Some(device) = &mut state.device else { return };
        let is_capturing = device.code.is_capturing(stream);
        if note(state, is_capturing) != Some(false) {
            return;
        }
        layers::read(state, stream, ticks);
        let Some(device) = &mut state.device else { return };
        let row = match &mut device.layers {
            Some(layers) if telling.is_stamped => layers.begin_step(step, ticks, stream),
            Some(layers) => {
                layers.leave_work();
                0
            }
            None => 0,
        };
        let is_told = telling.is_counted || row != 0;
        let set = device.word.set(&device.code, stream, if is_told { tokens } else { 0 }, row);
        note(state, set);
    });
}

/// What is launched from here on is no work for requests: device code is told, if it thinks otherwise.
pub(crate) fn leave_work(py: Python<'_>) {
    if !state::with(py, |state| state.device.as_ref().is_some_and(|device| device.word.is_set())) {
        return;
    }
    let Some(stream) = current_stream(py) else { return };
    state::with(py, |state| {
        let Some(device) = &mut state.device else { return };
        if let Some(layers) = &mut device.layers {
            layers.leave_work();
        }
        let cleared = match device.code.is_capturing(stream) {
            Ok(false) => device.word.clear(&device.code, stream),
            Ok(true) => Ok(()),
            Err(failure) => Err(failure),
        };
        note(state, cleared);
    });
}

/// Counts an error of the driver as a failure of a probe, and leaves device code alone after some.
#[inline]
pub(crate) fn note<T>(state: &mut State, result: Result<T, Failure>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(failure) => {
            note_failure(state, failure);
            None
        }
    }
}

#[cold]
fn note_failure(state: &mut State, failure: Failure) {
    let Some(device) = &mut state.device else { return };
    device.failures += 1;
    let failures = device.failures;
    if failures >= FAILURES_UNTIL_OFF {
        // Kept for ever: a graph may launch its kernels, and a copy may be under way.
        std::mem::forget(state.device.take());
    }
    if let Some(writer) = &mut state.writer {
        writer.count_probe_error();
        let text = format!("{failures} errors of the driver, newest {}", failure.0);
        writer.fact("probe_error:device_code", &text);
        if failures >= FAILURES_UNTIL_OFF {
            writer.fact("probe_off:device_code", "1");
        }
    }
}
