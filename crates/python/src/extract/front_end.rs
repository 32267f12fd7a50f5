//! The front end: what the client calls a request, which step outputs are of, and requests that end by a stop string.
//! (`vllm/v1/engine/output_processor.py`)

use super::requests::{id_hash, with_id, write, write_id};
use crate::extractor::{Call, Told};
use crate::names::name;
use crate::state::{self, State};
use profilemate_format::record::{ClientRequest, Payload, RequestStopped};
use profilemate_record::clock;
use pyo3::prelude::*;

/// Before `OutputProcessor.process_outputs(engine_core_outputs, engine_core_timestamp=None, …)`: the engine's time stamp tells
/// which step they are of.
pub(crate) fn before_process_outputs(call: &Call<'_>) -> PyResult<Told> {
    let outputs = call.argument(1, name!(call.py(), "engine_core_outputs"))?;
    let timestamp = match call.at(2) {
        Some(timestamp) => Some(timestamp),
        None => call.named(name!(call.py(), "engine_core_timestamp"))?,
    };
    let timestamp: f64 = match timestamp {
        Some(timestamp) if !timestamp.is_none() => timestamp.extract()?,
        _ => 0.0,
    };
    Ok(Told { value_a: Some(timestamp.to_bits()), value_b: Some(outputs.len()? as u64), ..Told::default() })
}

/// After `OutputProcessor.process_outputs`: the requests that the front end ended, by a stop string in their text.
pub(crate) fn after_process_outputs(call: &Call<'_>) -> PyResult<Told> {
    let (py, nothing) = (call.py(), Ok(Told::default()));
    let Some(result) = call.at(0) else { return nothing };
    let Some(stopped) = result.getattr_opt(name!(py, "reqs_to_abort"))? else { return nothing };
    if stopped.len()? == 0 {
        return nothing;
    }
    for id in stopped.try_iter()? {
        let engine_id_hash = id_hash(&id?)?;
        state::with(py, |state| {
            write(state, clock::ticks(), 0, 0, Payload::RequestStopped(RequestStopped { engine_id_hash }));
        });
    }
    nothing
}

/// Before `OutputProcessor.add_request(request, prompt, parent_req, request_index, …)`: what the client calls the request,
/// where vLLM gave it an id of its own.
pub(crate) fn before_processor_add_request(call: &Call<'_>) -> PyResult<Told> {
    let (py, nothing) = (call.py(), Ok(Told::default()));
    let request = call.argument(1, name!(py, "request"))?;
    let Some(client_id) = request.getattr_opt(name!(py, "external_req_id"))? else { return nothing };
    let engine_id = request.getattr(name!(py, "request_id"))?;
    if client_id.is_none() || client_id.eq(&engine_id)? {
        return nothing;
    }
    // Behind the prompt and the parent request.
    let index = match call.at(4) {
        Some(index) => Some(index),
        None => call.named(name!(py, "request_index"))?,
    };
    let index: u32 = index.map_or(Ok(0), |index| index.extract())?;
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
    })?;
    nothing
}
