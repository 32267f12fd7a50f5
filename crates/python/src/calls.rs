//! The functions of `profilemate._native`. Those that probes call per step take plain numbers.

use crate::names::name;
use crate::state::{self, ENGINE, SpanRecord, WORKER};
use crate::{experts, gpu, layers};
use profilemate_cuda::Driver;
use profilemate_format::record::{EncoderInput, Label, Limits, Outputs, Payload, Record};
use profilemate_record::{Options, Writer, clock, session_folder};
use profilemate_settings::{Settings, Value};
use pyo3::exceptions::{PyOSError, PyRuntimeError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString};
use std::path::Path;

/// Reads every setting from the environment and the configuration file: `(settings, problems)`, where `settings` has
/// for each key its value, and `problems` is a list of sentences.
#[pyfunction]
pub(crate) fn settings(py: Python<'_>) -> PyResult<(Bound<'_, PyDict>, Vec<String>)> {
    let (settings, problems) = Settings::from_environment();
    let values = PyDict::new(py);
    for (setting, value) in settings.iter() {
        match value {
            Value::Switch(on) => values.set_item(setting.key, *on)?,
            Value::Number(number) => values.set_item(setting.key, *number)?,
            Value::Text(text) => values.set_item(setting.key, text)?,
        }
    }
    values.set_item("enable_is_set", settings.is_set("enable"))?;
    Ok((values, problems.iter().map(ToString::to_string).collect()))
}

/// A command as one line, without its secrets.
#[pyfunction]
#[expect(clippy::needless_pass_by_value, reason = "Python's arguments come by value")]
pub(crate) fn command_line(words: Vec<String>) -> String {
    profilemate_redact::command_line(words.iter().map(String::as_str))
}

/// A text without its secrets.
#[pyfunction]
pub(crate) fn without_secrets(text: &str) -> String {
    profilemate_redact::text(text)
}

/// Says a line on stderr. It raises nothing, whatever stderr is.
#[pyfunction]
pub(crate) fn say(text: &str) {
    crate::failure::line(text);
}

/// A name for a new session folder.
#[pyfunction]
pub(crate) fn new_session_name() -> String {
    session_folder::new_name()
}

/// Makes the session folder if it is not there. Returns whether this call made it.
#[pyfunction]
pub(crate) fn sessions_folder_ready(session: &str) -> PyResult<bool> {
    let session = Path::new(session);
    session_folder::ensure(session).map_err(|error| {
        PyOSError::new_err(format!("cannot make the session folder {}: {error}", session.display()))
    })
}

/// Opens the log of this process. In a process that has one this is an error; in a forked child it opens the child's.
#[pyfunction]
#[pyo3(signature = (session, role, rank, data_parallel_rank, segment_bytes, max_bytes))]
pub(crate) fn open(
    py: Python<'_>,
    session: &str,
    role: &str,
    rank: u32,
    data_parallel_rank: u32,
    segment_bytes: u64,
    max_bytes: u64,
) -> PyResult<()> {
    if is_open(py) {
        return Err(PyRuntimeError::new_err("this process has a log already"));
    }
    let options =
        Options { data_parallel_rank, segment_bytes, max_bytes, ..Options::new(Path::new(session), role, rank) };
    let writer = Writer::open(&options).map_err(|error| PyOSError::new_err(error.to_string()))?;
    let old = state::with(py, |state| {
        state.epoch += 1;
        state.lanes = Default::default();
        state.label = Label::Work;
        // Events of a parent's context are nothing to a forked child, which does not have the thread that reads them
        // either: whatever that thread held when the process was forked is held for ever, so nothing of it is dropped.
        std::mem::forget((state.cuda.take(), state.device.take(), state.experts.take()));
        state.writer.replace(writer)
    });
    drop(old);
    Ok(())
}

/// Whether this process has a log that it may write (a forked child does not have its parent's).
#[pyfunction]
pub(crate) fn is_open(py: Python<'_>) -> bool {
    state::with(py, |state| state.is_recording())
}

/// Ends the log in order.
#[pyfunction]
pub(crate) fn close(py: Python<'_>) {
    experts::close(py);
    let (cuda, device, writer, epoch) =
        state::with(py, |state| (state.cuda.take(), state.device.take(), state.writer.take(), state.epoch));
    let Some(mut writer) = writer else { return };
    if let Some(mut device) = device {
        if writer.is_ours() {
            layers::close(&mut device, epoch, &mut writer);
        } else {
            // As in `open`.
            std::mem::forget(device);
        }
    }
    if let Some(cuda) = cuda {
        if writer.is_ours() {
            gpu::close(cuda, &mut writer);
        } else {
            // As in `open`.
            std::mem::forget(cuda);
        }
    }
    writer.close();
}

/// The scheduler needs what an encoder makes of an input; `what` becomes of it: `computed`, `cached`, `no_room` or `no_budget`.
/// `evicted`: outputs that the cache has thrown out since the call before. `held` of `size` embeddings are needed by requests.
#[pyfunction]
pub(crate) fn encoder_input(
    py: Python<'_>,
    what: &str,
    modality: &str,
    embeddings: u32,
    evicted: u32,
    held: u32,
    size: u32,
) {
    state::with(py, |state| {
        if !state.is_recording() {
            return;
        }
        let modality = if modality.is_empty() { 0 } else { state.intern(modality) };
        let record = Record {
            ticks: clock::ticks(),
            step: state.lanes[ENGINE].next_step.max(1),
            label: state.label,
            flags: 0,
            name: state.intern(what),
            payload: Payload::EncoderInput(EncoderInput { embeddings, evicted, held, size, modality }),
        };
        state.write(&record);
    });
}

/// Times steps on the GPU from here on. `stream_function(device)` gives the stream that the calling thread launches on;
/// with `steps_in_flight` steps under way the thread that reads looks more often. `False`: no CUDA driver is loaded.
#[pyfunction]
pub(crate) fn use_cuda(
    py: Python<'_>,
    stream_function: Py<PyAny>,
    device: Py<PyAny>,
    steps_in_flight: usize,
) -> bool {
    gpu::use_cuda(py, stream_function, device, steps_in_flight)
}

/// Version of CUDA that the loaded driver supports, as `13.0`; `None` without a driver.
#[pyfunction]
pub(crate) fn cuda_driver_version() -> Option<String> {
    let version = Driver::loaded()?.version()?;
    Some(format!("{}.{}", version / 1000, version % 1000 / 10))
}

/// What did not go as wished on the GPU: `(driver errors, newest of them, steps without events, steps in capture, steps of
/// lost contexts, events that exist)`; `None` where nothing is timed.
#[pyfunction]
pub(crate) fn cuda_counters(py: Python<'_>) -> Option<(u64, i32, u64, u64, u64, usize)> {
    state::with(py, |state| {
        let timer = &state.cuda.as_ref()?.timer;
        let counters = timer.counters();
        let newest = counters.last_failure.map_or(0, |failure| failure.0);
        Some((
            counters.failures,
            newest,
            counters.exhausted,
            counters.capturing,
            counters.lost_contexts,
            timer.events(),
        ))
    })
}

/// The worker's current step; 0 = none.
#[pyfunction]
pub(crate) fn worker_step(py: Python<'_>) -> u64 {
    state::with(py, |state| state.lanes[WORKER].step)
}

/// Notes that this process does another job as well.
#[pyfunction]
pub(crate) fn add_role(py: Python<'_>, role: &str, rank: u32, data_parallel_rank: u32) {
    state::with(py, |state| {
        if let Some(writer) = &mut state.writer {
            writer.role(role, rank, data_parallel_rank);
        }
    });
}

/// Notes something that is true of this process.
#[pyfunction]
pub(crate) fn fact(py: Python<'_>, key: &str, value: &str) {
    state::with(py, |state| {
        if let Some(writer) = &mut state.writer {
            writer.fact(key, value);
        }
    });
}

/// Prints every N-th record on stderr; 0 = none.
#[pyfunction]
pub(crate) fn set_debug_interval(py: Python<'_>, interval: u64) {
    state::with(py, |state| state.debug_interval = interval);
}

/// The clock of the log, in ticks.
#[pyfunction]
pub(crate) fn ticks() -> u64 {
    clock::ticks()
}

/// Records written, records dropped, and ticks spent in probes so far in this process.
#[pyfunction]
pub(crate) fn statistics(py: Python<'_>) -> (u64, u64, u64) {
    state::with(py, |state| {
        state.writer.as_ref().map_or((0, 0, 0), |w| (w.written(), w.dropped(), w.overhead_ticks()))
    })
}

/// Writes the limits of a scheduler.
#[pyfunction]
pub(crate) fn limits(py: Python<'_>, max_num_seqs: u64, max_num_tokens: u64) {
    state::with(py, |state| {
        let payload = Payload::Limits(Limits { max_num_seqs, max_num_tokens });
        state.write(&Record { ticks: clock::ticks(), step: 0, label: Label::Work, flags: 0, name: 0, payload });
    });
}

/// Writes a span that was timed in Python (rare events and benchmarks; hooks do not come through here).
#[pyfunction]
#[pyo3(signature = (name, begin, end, step = 0, value_a = 0, value_b = 0, context = ""))]
#[expect(
    clippy::too_many_arguments,
    reason = "a record has this many fields, and a call costs less than an object"
)]
pub(crate) fn write_span(
    py: Python<'_>,
    name: &str,
    begin: u64,
    end: u64,
    step: u64,
    value_a: u64,
    value_b: u64,
    context: &str,
) {
    state::with(py, |state| {
        let Some(writer) = &mut state.writer else { return };
        let name = writer.intern(name);
        let context = if context.is_empty() { 0 } else { writer.intern(context) };
        let label = state.label;
        state.write_span(&SpanRecord {
            name,
            context,
            begin,
            end,
            step,
            value_a,
            value_b,
            label,
            raised: false,
            overhead_ticks: 0,
        });
    });
}

/// Counts what an engine step sends to its clients (`dict[client index, EngineCoreOutputs]`, as
/// `Scheduler.update_from_output` returns it) and writes one record per client. `finished` is the number of requests
/// that the step finished; it goes to the record of the first client.
///
/// The step is the engine's current one. With `count_each` it runs over every output in every step, so it reads one
/// attribute of each and makes no object; without, each output is one token.
pub(crate) fn write_outputs(
    py: Python<'_>,
    outputs: &Bound<'_, PyDict>,
    finished: u64,
    count_each: bool,
) -> PyResult<()> {
    let mut finished = finished;
    for (client, engine_core_outputs) in outputs.iter() {
        let timestamp: f64 = engine_core_outputs.getattr(name!(py, "timestamp"))?.extract()?;
        let list = engine_core_outputs.getattr(name!(py, "outputs"))?;
        let (num_outputs, new_tokens) = match list.cast::<PyList>() {
            Ok(list) if count_each => count(list, name!(py, "new_token_ids"))?,
            Ok(list) => (u32::try_from(list.len()).unwrap_or(u32::MAX), list.len() as u64),
            // All known versions use a list; anything else is no reason to fail.
            Err(_) => (0, 0),
        };
        let client: i64 = client.extract()?;
        let payload = Payload::Outputs(Outputs {
            timestamp_bits: timestamp.to_bits(),
            client: u32::try_from(client).unwrap_or(u32::MAX),
            num_outputs,
            new_tokens,
            finished: std::mem::take(&mut finished),
        });
        state::with(py, |state| {
            let (step, label) = (state.lanes[ENGINE].step, state.label);
            state.write(&Record { ticks: clock::ticks(), step, label, flags: 0, name: 0, payload });
        });
    }
    Ok(())
}

/// Length of the list, and the sum of the lengths of its items' attribute.
fn count(list: &Bound<'_, PyList>, attribute: &Bound<'_, PyString>) -> PyResult<(u32, u64)> {
    let py = list.py();
    let (mut items, mut total) = (0, 0);
    // SAFETY: the list is borrowed from its owner, which nothing below changes: `EngineCoreOutput` is a plain struct
    // whose attributes run no code. Items are borrowed references that the list keeps alive; attributes are new
    // references and released at once.
    unsafe {
        for i in 0..ffi::PyList_Size(list.as_ptr()) {
            let item = ffi::PyList_GetItem(list.as_ptr(), i);
            if item.is_null() {
                return Err(PyErr::fetch(py));
            }
            let value = ffi::PyObject_GetAttr(item, attribute.as_ptr());
            if value.is_null() {
                return Err(PyErr::fetch(py));
            }
            let length = ffi::PyObject_Size(value);
            ffi::Py_DECREF(value);
            if length < 0 {
                return Err(PyErr::fetch(py));
            }
            items += 1;
            total += length.unsigned_abs() as u64;
        }
    }
    Ok((items, total))
}
