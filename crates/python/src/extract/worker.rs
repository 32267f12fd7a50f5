//! The workers: which step a batch is of, and what it is dispatched as.

use super::{STEP, gpu_memory};
use crate::state::{self, WORKER};
use pyo3::intern as name;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyInt, PyString, PyTuple};
use std::collections::HashMap;

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
    gpu_memory::step_begins(py, step);
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
