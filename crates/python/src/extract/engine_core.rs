//! The engine core's loop.

use crate::extractor::{Call, Told};
use crate::names::name;
use pyo3::prelude::*;

/// Before `EngineCoreProc._process_input_queue()`: with work at hand the queue is only emptied, which is not recorded; without,
/// this call waits for some, outside of any step.
pub(crate) fn before_process_input_queue(call: &Call<'_>) -> PyResult<Told> {
    let py = call.py();
    let engine = call.argument(0, name!(py, "self"))?;
    let has_work = match engine.getattr_opt(name!(py, "has_work"))? {
        Some(has_work) => has_work.call0()?,
        None => engine.getattr(name!(py, "scheduler"))?.call_method0(name!(py, "has_requests"))?,
    };
    Ok(if has_work.is_truthy()? {
        Told { skip: true, ..Told::default() }
    } else {
        Told { step: Some(0), value_a: Some(0), ..Told::default() }
    })
}
