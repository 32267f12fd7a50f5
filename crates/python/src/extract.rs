//! The extractors that run in every step, natively: they read a few attributes of vLLM's objects.
//!
//! What a step needs only now and then (a new request, a graph that was not seen before) is left to Python, which these
//! call back. Between steps the caches belong to vLLM, so that even a short Python function costs several microseconds.

use crate::state::{self, WORKER};
use profilemate_format::record::{Payload, Record, Schedule};
use profilemate_record::clock;
use pyo3::intern as name;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyInt, PyString, PyTuple};
use std::collections::HashMap;

/// Attribute of a `SchedulerOutput` that carries its step. The class is a plain dataclass and goes to the workers pickled,
/// so the attribute arrives there too.
pub(crate) const STEP: &str = "profilemate_step";

/// Attribute of a scheduler that holds our [`SchedulerBooks`].
pub(crate) const BOOKS: &str = "_profilemate_books";

/// Length of an object, as a record holds it.
fn length(object: &Bound<'_, PyAny>) -> PyResult<u32> {
    Ok(u32::try_from(object.len()?).unwrap_or(u32::MAX))
}

/// What is remembered of one scheduler between steps.
#[pyclass(module = "profilemate._native")]
pub(crate) struct SchedulerBooks {
    /// Id of the newest step, from 1.
    step: u64,
    /// Requests whose prompt, or what was computed of them before a preemption, is not complete: id → tokens to reach.
    #[pyo3(get)]
    prefilling: Py<PyDict>,
    /// `(output, scheduler, prefilling) → (tokens, sequences, completed prompt tokens, completed prompts)`.
    count_prefill: Py<PyAny>,
    /// `(step, sequences, tokens, running, waiting)`, every so many steps.
    progress: Option<(u64, Py<PyAny>)>,
    /// Whether an output may have another number of tokens than one: then every one of them is looked at.
    count_each: bool,
    /// Requests that had finished before the update under way.
    finished_before: u64,
}

#[pymethods]
impl SchedulerBooks {
    #[new]
    #[pyo3(signature = (count_prefill, count_each = true, progress_every = 0, progress = None))]
    fn new(
        py: Python<'_>,
        count_prefill: Py<PyAny>,
        count_each: bool,
        progress_every: u64,
        progress: Option<Py<PyAny>>,
    ) -> Self {
        let progress = progress.filter(|_| progress_every > 0).map(|progress| (progress_every, progress));
        Self {
            step: 0,
            prefilling: PyDict::new(py).unbind(),
            count_prefill,
            progress,
            count_each,
            finished_before: 0,
        }
    }

    /// Id of the newest step.
    #[getter]
    fn step(&self) -> u64 {
        self.step
    }
}

/// Whether nothing but decodes may be in the batch.
fn is_plain(py: Python<'_>, output: &Bound<'_, PyAny>, prefilling: &Bound<'_, PyDict>) -> PyResult<bool> {
    if !prefilling.is_empty()
        || output.getattr(name!(py, "scheduled_new_reqs"))?.len()? > 0
        || output.getattr(name!(py, "finished_req_ids"))?.len()? > 0
    {
        return Ok(false);
    }
    let cached = output.getattr(name!(py, "scheduled_cached_reqs"))?;
    // vLLM 0.11 has a list of flags, whose length says nothing.
    match cached.getattr_opt(name!(py, "resumed_req_ids"))? {
        Some(resumed) => Ok(resumed.len()? == 0),
        None => Ok(false),
    }
}

/// After `Scheduler.schedule`: gives the step its id and writes what was scheduled. Returns the id.
#[pyfunction]
pub(crate) fn after_schedule(
    py: Python<'_>,
    output: &Bound<'_, PyAny>,
    scheduler: &Bound<'_, PyAny>,
) -> PyResult<u64> {
    let books = scheduler.getattr(name!(py, BOOKS))?.cast_into::<SchedulerBooks>()?;
    let (step, prefilling, count_prefill) = {
        let mut books = books.borrow_mut();
        books.step += 1;
        (books.step, books.prefilling.clone_ref(py), books.count_prefill.clone_ref(py))
    };
    // A version whose outputs take no attribute loses the step in the workers, and nothing else.
    let _ = output.setattr(name!(py, STEP), step);
    let prefilling = prefilling.bind(py);
    let (prefill_tokens, prefill_seqs, completed_prompt_tokens, completed_prompts) =
        if is_plain(py, output, prefilling)? {
            (0, 0, 0, 0)
        } else {
            count_prefill.bind(py).call1((output, scheduler, prefilling))?.extract()?
        };
    let num_seqs = length(&output.getattr(name!(py, "num_scheduled_tokens"))?)?;
    let num_tokens: u32 = output.getattr(name!(py, "total_num_scheduled_tokens"))?.extract()?;
    let counts = scheduler.call_method0(name!(py, "get_request_counts"))?;
    let (running, waiting): (u32, u32) = counts.extract()?;
    let payload = Payload::Schedule(Schedule {
        num_seqs,
        num_tokens,
        prefill_tokens,
        prefill_seqs,
        running,
        waiting,
        completed_prompt_tokens,
        completed_prompts,
    });
    state::with(py, |state| {
        let label = state.label;
        state.write(&Record { ticks: clock::ticks(), step, label, flags: 0, name: 0, payload });
    });
    let books = books.borrow();
    if let Some((every, progress)) = &books.progress
        && step.is_multiple_of(*every)
    {
        progress.call1(py, (step, num_seqs, num_tokens, running, waiting))?;
    }
    Ok(step)
}

/// Before `Scheduler.update_from_output(scheduler_output, model_runner_output)`: the step that it is of.
#[pyfunction]
#[pyo3(signature = (scheduler, scheduler_output, *_arguments, **_keywords))]
pub(crate) fn before_update_from_output<'py>(
    py: Python<'py>,
    scheduler: &Bound<'py, PyAny>,
    scheduler_output: &Bound<'py, PyAny>,
    _arguments: &Bound<'py, PyTuple>,
    _keywords: Option<&Bound<'py, PyDict>>,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    let finished = scheduler.getattr(name!(py, "finished_req_ids"))?.len()? as u64;
    if let Some(books) = scheduler.getattr_opt(name!(py, BOOKS))? {
        books.cast_into::<SchedulerBooks>()?.borrow_mut().finished_before = finished;
    }
    scheduler_output.getattr_opt(name!(py, STEP))
}

/// After `Scheduler.update_from_output`: counts what goes to the clients.
#[pyfunction]
pub(crate) fn after_update_from_output(
    py: Python<'_>,
    result: &Bound<'_, PyAny>,
    scheduler: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let Ok(outputs) = result.cast::<PyDict>() else { return Ok(()) };
    let Some(books) = scheduler.getattr_opt(name!(py, BOOKS))? else { return Ok(()) };
    let (before, count_each) = {
        let books = books.cast_into::<SchedulerBooks>()?;
        let books = books.borrow();
        (books.finished_before, books.count_each)
    };
    // `schedule` alone empties the set, so in between it grows by what the step finished.
    let finished = scheduler.getattr(name!(py, "finished_req_ids"))?.len()? as u64;
    crate::calls::write_outputs(py, outputs, finished.saturating_sub(before), count_each)
}

/// Before a runner's `execute_model(scheduler_output, …)`: the step and its size, tokens below and sequences above.
#[pyfunction]
#[pyo3(signature = (_runner, scheduler_output, *_arguments, **_keywords))]
pub(crate) fn before_execute_model(
    py: Python<'_>,
    _runner: &Bound<'_, PyAny>,
    scheduler_output: &Bound<'_, PyAny>,
    _arguments: &Bound<'_, PyTuple>,
    _keywords: Option<&Bound<'_, PyDict>>,
) -> PyResult<(u64, u64)> {
    let tokens: u64 = scheduler_output.getattr(name!(py, "total_num_scheduled_tokens"))?.extract()?;
    let sequences = scheduler_output.getattr(name!(py, "num_scheduled_tokens"))?.len()? as u64;
    let step = match scheduler_output.getattr_opt(name!(py, STEP))? {
        Some(step) => step.extract()?,
        None => 0,
    };
    Ok((step, tokens & 0xffff_ffff | sequences << 32))
}

/// Describes the batches of a worker by what they are dispatched as: an extractor that remembers what it has seen.
#[pyclass(module = "profilemate._native")]
pub(crate) struct Dispatch {
    /// `(mode, descriptor) → text`, for what was not seen before.
    text: Py<PyAny>,
    /// Name of the descriptor's own mode; empty = the result is `(mode, descriptor, …)`.
    mode_attribute: Py<PyString>,
    has_mode_attribute: bool,
    /// Name of the attribute that tells uniform batches from others.
    uniform_attribute: Py<PyString>,
    /// What tells one graph from another in every version → id of its text in the log of an epoch.
    seen: HashMap<[i64; 4], u32>,
    epoch: u32,
}

/// The attribute as a number: -1 = `None` or not there, 0 or 1 for what is neither number nor flag.
fn number(object: &Bound<'_, PyAny>, attribute: &Bound<'_, PyString>) -> PyResult<i64> {
    match object.getattr_opt(attribute)? {
        Some(value) if !value.is_none() => {
            if value.is_instance_of::<PyInt>() {
                value.extract()
            } else {
                Ok(i64::from(value.is_truthy()?))
            }
        }
        _ => Ok(-1),
    }
}

#[pymethods]
impl Dispatch {
    #[new]
    fn new(py: Python<'_>, text: Py<PyAny>, mode_attribute: &str, uniform_attribute: &str) -> Self {
        Self {
            text,
            mode_attribute: PyString::new(py, mode_attribute).unbind(),
            has_mode_attribute: !mode_attribute.is_empty(),
            uniform_attribute: PyString::new(py, uniform_attribute).unbind(),
            seen: HashMap::new(),
            epoch: 0,
        }
    }

    /// After the function that dispatches: `result[0]` is a descriptor with a mode, or `result[:2]` are both.
    fn __call__(&mut self, py: Python<'_>, result: &Bound<'_, PyAny>, _owner: &Bound<'_, PyAny>) -> PyResult<()> {
        let first = result.get_item(0)?;
        let (mode, descriptor) = if self.has_mode_attribute {
            (first.getattr(self.mode_attribute.bind(py))?, first)
        } else {
            (first, result.get_item(1)?)
        };
        let tokens = number(&descriptor, name!(py, "num_tokens"))?;
        // The value of an Enum member, past the property that Enum puts before it.
        let mode_value = number(&mode, name!(py, "_value_"))?;
        let key = if mode_value == 0 {
            // An eager batch is told by its mode alone: every size would be a descriptor of its own.
            [0; 4]
        } else {
            let uniform = number(&descriptor, self.uniform_attribute.bind(py))?;
            [mode_value, tokens, number(&descriptor, name!(py, "num_reqs"))?, uniform]
        };
        let epoch = state::with(py, |state| state.epoch);
        if self.epoch != epoch {
            self.seen.clear();
            self.epoch = epoch;
        }
        let id = if let Some(id) = self.seen.get(&key) {
            *id
        } else {
            let text: String = self.text.call1(py, (mode, &descriptor))?.extract(py)?;
            let id = state::with(py, |state| state.writer.as_mut().map_or(0, |writer| writer.intern(&text)));
            self.seen.insert(key, id);
            id
        };
        let padded_tokens = u32::try_from(tokens).unwrap_or(0);
        state::with(py, |state| {
            let lane = &mut state.lanes[WORKER];
            (lane.descriptor, lane.padded_tokens) = (id, padded_tokens);
            if let Some(cuda) = &mut state.cuda {
                cuda.timer.describe(id, padded_tokens);
            }
        });
        Ok(())
    }
}

/// Before `OutputProcessor.process_outputs(outputs, timestamp, …)`: the engine's time stamp tells which step they are of.
#[pyfunction]
#[pyo3(signature = (_processor, engine_core_outputs, engine_core_timestamp = None, *_arguments, **_keywords))]
pub(crate) fn before_process_outputs(
    _processor: &Bound<'_, PyAny>,
    engine_core_outputs: &Bound<'_, PyAny>,
    engine_core_timestamp: Option<f64>,
    _arguments: &Bound<'_, PyTuple>,
    _keywords: Option<&Bound<'_, PyDict>>,
) -> PyResult<(Option<u64>, f64, usize)> {
    Ok((None, engine_core_timestamp.unwrap_or(0.0), engine_core_outputs.len()?))
}
