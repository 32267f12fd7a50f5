//! The extractors: what is read of vLLM's objects, natively, one file per component of vLLM (as in `probes/`).
//!
//! They read a few attributes each. Between steps the caches belong to vLLM, so that even a short Python function costs
//! several microseconds; what happens rarely (a preemption, a graph that was not seen before) is left to Python all the same.

pub(crate) mod engine_core;
pub(crate) mod front_end;
pub(crate) mod gpu_memory;
pub(crate) mod kv_cache;
mod queues;
pub(crate) mod requests;
pub(crate) mod sampling;
pub(crate) mod scheduler;
pub(crate) mod worker;

use crate::extractor::integer;
use pyo3::prelude::*;

/// Attribute of a `SchedulerOutput` that carries its step. The class is a plain dataclass and goes to the workers pickled,
/// so the attribute arrives there too.
pub(crate) const STEP: &str = "profilemate_step";

/// Attribute of a scheduler that holds our [`scheduler::SchedulerBooks`].
pub(crate) const BOOKS: &str = "_profilemate_books";

/// Length of an object, as a record holds it.
fn length(object: &Bound<'_, PyAny>) -> PyResult<u32> {
    Ok(u32::try_from(object.len()?).unwrap_or(u32::MAX))
}

/// A count of vLLM's, as a record holds it.
fn count(object: &Bound<'_, PyAny>) -> PyResult<u32> {
    Ok(u32::try_from(integer(object)?.max(0)).unwrap_or(u32::MAX))
}
