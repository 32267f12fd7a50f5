//! The front end: what the client calls a request, which step outputs are of, and requests that end by a stop string.
//! (`vllm/v1/engine/output_processor.py`)

use super::requests::{id_hash, with_id, write, write_id};
use crate::state::{self, State};
use profilemate_format::record::{ClientRequest, Payload, RequestStopped};
use profilemate_record::clock;
use pyo3::intern as name;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

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

/// After `OutputProcessor.process_outputs`: the requests that the front end ended, by a stop string in their text.
#[pyfunction]
pub(crate) fn after_process_outputs(
    py: Python<'_>,
    result: &Bound<'_, PyAny>,
    _processor: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let Some(stopped) = result.getattr_opt(name!(py, "reqs_to_abort"))? else { return Ok(()) };
    if stopped.len()? == 0 {
        return Ok(());
    }
    for id in stopped.try_iter()? {
        let engine_id_hash = id_hash(&id?)?;
        state::with(py, |state| {
            write(state, clock::ticks(), 0, 0, Payload::RequestStopped(RequestStopped { engine_id_hash }));
        });
    }
    Ok(())
}

/// Before `OutputProcessor.add_request(request, prompt, parent_req, request_index, …)`: what the client calls the request,
/// where vLLM gave it an id of its own.
#[pyfunction]
#[pyo3(signature = (_processor, request, *arguments, **keywords))]
pub(crate) fn before_processor_add_request(
    py: Python<'_>,
    _processor: &Bound<'_, PyAny>,
    request: &Bound<'_, PyAny>,
    arguments: &Bound<'_, PyTuple>,
    keywords: Option<&Bound<'_, PyDict>>,
) -> PyResult<()> {
    let Some(client_id) = request.getattr_opt(name!(py, "external_req_id"))? else { return Ok(()) };
    let engine_id = request.getattr(name!(py, "request_id"))?;
    if client_id.is_none() || client_id.eq(&engine_id)? {
        return Ok(());
    }
    // Behind the prompt and the parent request.
    let index: u32 = match arguments.get_item(2) {
        Ok(index) => index.extract()?,
        Err(_) => {
            match keywords.map(|keywords| keywords.get_item(name!(py, "request_index"))).transpose()?.flatten() {
                Some(index) => index.extract()?,
                None => 0,
            }
        }
    };
    let engine_id_hash = id_hash(&engine_id)?;
    with_id(&client_id, |id| {
        state::with(py, |state| {
            let number = State::next_request(state);
            let ticks = clock::ticks();
            let payload = Payload::ClientRequest(ClientRequest {
                number,
                engine_id_hash,
                index,
                id_bytes: id.bytes(),
                traits: id.traits(),
            });
            write(state, ticks, 0, 0, payload);
            write_id(state, number, id, ticks);
        });
    })
}
