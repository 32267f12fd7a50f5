//! The workers: which step a batch is of, and what it is dispatched as.

use super::{STEP, gpu_memory};
use crate::extractor::{Call, Told, integer};
use crate::names::name;
use crate::state::{self, WORKER};
use profilemate_format::record::Label;
use pyo3::prelude::*;
use pyo3::types::{PyInt, PyString, PyTuple};

/// Before a runner's `execute_model(scheduler_output, …)`: the step and its size, tokens below and sequences above.
pub(crate) fn before_execute_model(call: &Call<'_>) -> PyResult<Told> {
    let told = batch_of(call)?;
    gpu_memory::step_begins(call.py(), told.step.unwrap_or(0))?;
    Ok(told)
}

fn batch_of(call: &Call<'_>) -> PyResult<Told> {
    let py = call.py();
    let output = call.argument(1, name!(py, "scheduler_output"))?;
    // Where the scheduler is in this process, it has said what this is. A batch that is no work may be made by anybody, at
    // the address of one that is gone.
    let known = state::with(py, |state| {
        (state.label == Label::Work).then(|| state.batches.find(output.as_ptr())).flatten()
    });
    if let Some(batch) = known {
        return Ok(Told { step: Some(batch.step), value_a: Some(batch.size), ..Told::default() });
    }
    let tokens = integer(&output.getattr(name!(py, "total_num_scheduled_tokens"))?)?;
    let sequences = output.getattr(name!(py, "num_scheduled_tokens"))?.len()?;
    let step: u64 = match output.getattr_opt(name!(py, STEP))? {
        Some(step) => step.extract()?,
        None => 0,
    };
    let size = (tokens.cast_unsigned() & 0xffff_ffff) | (sequences as u64) << 32;
    Ok(Told { step: Some(step), value_a: Some(size), ..Told::default() })
}

/// Most descriptors that are remembered by what they say.
const MOST_SEEN: usize = 512;

/// Most that are remembered as objects: they are looked through one by one.
const MOST_OBJECTS: usize = 64;

/// A descriptor that was seen in this epoch.
struct Seen {
    /// What tells one graph from another in every version.
    key: [i64; 4],
    /// Id of its text in the log.
    id: u32,
    padded_tokens: u32,
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
    seen: Vec<Seen>,
    /// Place in `seen` of the newest that was found there.
    newest: usize,
    /// Descriptor objects of graphs, which vLLM's V2 runner makes once (frozen dataclasses, kept alive here too, so that
    /// no other object can have the address), and their places in `seen`. The newest that was found comes first.
    objects: Vec<(Py<PyAny>, usize)>,
    /// Whether objects are worth keeping, and whether one came again.
    keeps_objects: bool,
    has_found_object: bool,
    epoch: u32,
}

/// The attribute as a number: -1 = `None` or not there, 0 or 1 for what is neither number nor flag.
fn number(object: &Bound<'_, PyAny>, attribute: &Bound<'_, PyString>) -> PyResult<i64> {
    match object.getattr_opt(attribute)? {
        Some(value) if !value.is_none() => {
            if value.is_instance_of::<PyInt>() {
                integer(&value)
            } else {
                Ok(i64::from(value.is_truthy()?))
            }
        }
        _ => Ok(-1),
    }
}

impl Dispatch {
    /// The place in `seen` of what a batch is dispatched as.
    fn find(&mut self, first: &Bound<'_, PyAny>, result: &Bound<'_, PyAny>) -> PyResult<usize> {
        let py = first.py();
        if let Some(found) = self.objects.iter().position(|(object, _)| object.is(first)) {
            if found > 0 {
                self.objects.swap(0, found);
            }
            self.has_found_object = true;
            return Ok(self.objects[0].1);
        }
        let (mode, descriptor) = if self.has_mode_attribute {
            (first.getattr(self.mode_attribute.bind(py))?, first.clone())
        } else {
            (first.clone(), item(result, 1)?)
        };
        let tokens = number(&descriptor, name!(py, "num_tokens"))?;
        // The value of an Enum member, past the property that Enum puts before it.
        let mode_value = number(&mode, name!(py, "_value_"))?;
        let padded_tokens = u32::try_from(tokens).unwrap_or(0);
        let key = if mode_value == 0 {
            // An eager batch is told by its mode alone: every size would be a descriptor of its own.
            [0; 4]
        } else {
            let uniform = number(&descriptor, self.uniform_attribute.bind(py))?;
            [mode_value, tokens, number(&descriptor, name!(py, "num_reqs"))?, uniform]
        };
        let is_it = |seen: &Seen| seen.key == key;
        let found = if self.seen.get(self.newest).is_some_and(is_it) {
            self.newest
        } else if let Some(found) = self.seen.iter().position(is_it) {
            found
        } else {
            let text: String = self.text.call1(py, (mode, &descriptor))?.extract(py)?;
            let id = state::with(py, |state| state.writer.as_mut().map_or(0, |writer| writer.intern(&text)));
            if self.seen.len() >= MOST_SEEN {
                self.forget();
            }
            self.seen.push(Seen { key, id, padded_tokens });
            self.seen.len() - 1
        };
        self.newest = found;
        // Eager batches have a descriptor each, and share what is seen of them.
        self.seen[found].padded_tokens = padded_tokens;
        if self.keeps_objects && self.has_mode_attribute && mode_value != 0 {
            self.keep_object(first, found);
        }
        Ok(found)
    }

    #[cold]
    fn keep_object(&mut self, object: &Bound<'_, PyAny>, place: usize) {
        if self.objects.len() < MOST_OBJECTS {
            self.objects.push((object.clone().unbind(), place));
        } else if !self.has_found_object {
            // Here each step has an object of its own (data parallel ranks agree on one).
            self.objects.clear();
            self.keeps_objects = false;
        }
    }

    fn forget(&mut self) {
        self.seen.clear();
        self.objects.clear();
        self.newest = 0;
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
            seen: Vec::new(),
            newest: 0,
            objects: Vec::new(),
            keeps_objects: true,
            has_found_object: false,
            epoch: 0,
        }
    }
}

/// An item of what is a tuple, in all versions known.
fn item<'py>(result: &Bound<'py, PyAny>, place: usize) -> PyResult<Bound<'py, PyAny>> {
    match result.cast::<PyTuple>() {
        Ok(tuple) => tuple.get_item(place),
        Err(_) => result.get_item(place),
    }
}

/// After the function that dispatches: `result[0]` is a descriptor with a mode, or `result[:2]` are both.
pub(crate) fn after_dispatch(call: &Call<'_>) -> PyResult<Told> {
    let py = call.py();
    let Some(result) = call.at(0) else { return Ok(Told::default()) };
    let first = item(&result, 0)?;
    let extractor = call.extractor().cast_into::<Dispatch>()?;
    let mut dispatch = extractor.try_borrow_mut()?;
    let epoch = state::with(py, |state| state.epoch);
    if dispatch.epoch != epoch {
        dispatch.forget();
        dispatch.epoch = epoch;
    }
    let found = dispatch.find(&first, &result)?;
    let Seen { id, padded_tokens, .. } = dispatch.seen[found];
    state::with(py, |state| {
        let lane = &mut state.lanes[WORKER];
        (lane.descriptor, lane.padded_tokens) = (id, padded_tokens);
        if let Some(cuda) = &mut state.cuda {
            cuda.timer.describe(id, padded_tokens);
        }
    });
    Ok(Told::default())
}
