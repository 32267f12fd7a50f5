//! The life of a request in the scheduler: queued, admitted, first token, finished. (`vllm/v1/core/sched/scheduler.py`,
//! `vllm/v1/request.py`; preemptions are rare and come from Python, `probes/requests.py`.)
//!
//! A request is called by a number, which lies on vLLM's `Request` and goes with it: nothing is kept of one that is gone.

use super::scheduler::{books_of, name_of};
use super::{BOOKS, count};
use crate::extractor::{Call, Told};
use crate::names::name;
use crate::state::{self, State};
use profilemate_format::record::{
    Payload, Record, RequestAdmitted, RequestFinished, RequestFirstToken, RequestPreempted, RequestQueued,
    RequestText, TEXT_BYTES, request_traits,
};
use profilemate_record::clock;
use pyo3::exceptions::PyAttributeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};
use std::borrow::Cow;
use std::hash::Hasher;
use xxhash_rust::xxh3::xxh3_64;

/// Attribute of vLLM's `Request` that holds its number.
const NUMBER: &str = "_profilemate_request";

/// Most bytes of an id that are kept.
const MAX_ID_BYTES: usize = 255;

/// Bytes that `~` and the hash of all of it take behind an id that is cut.
const CUT_BYTES: usize = 17;

/// An id as it stands in the log.
pub(crate) struct Id<'a> {
    text: Cow<'a, str>,
    traits: u16,
}

impl<'a> Id<'a> {
    /// `key`: with one, nothing but a keyed hash of the id is kept.
    fn new(text: Cow<'a, str>, key: Option<[u64; 2]>) -> Self {
        if let Some([first, second]) = key {
            let mut hasher = siphasher::sip::SipHasher24::new_with_keys(first, second);
            hasher.write(text.as_bytes());
            return Self { text: format!("{:016x}", hasher.finish()).into(), traits: request_traits::ID_HASHED };
        }
        if text.len() <= MAX_ID_BYTES {
            return Self { text, traits: 0 };
        }
        let mut end = MAX_ID_BYTES - CUT_BYTES;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let cut = format!("{}~{:016x}", &text[..end], xxh3_64(text.as_bytes()));
        Self { text: cut.into(), traits: request_traits::ID_CUT }
    }

    pub(crate) fn traits(&self) -> u16 {
        self.traits
    }

    pub(crate) fn bytes(&self) -> u16 {
        u16::try_from(self.text.len()).unwrap_or(u16::MAX)
    }
}

/// Gives the id to `use_it`, as it is kept. Lone surrogates, which Python's strings may have, are replaced.
pub(crate) fn with_id<R>(id: &Bound<'_, PyAny>, use_it: impl FnOnce(&Id<'_>) -> R) -> PyResult<R> {
    let py = id.py();
    let string: Bound<'_, PyString> = match id.cast::<PyString>() {
        Ok(string) => string.clone(),
        Err(_) => id.str()?,
    };
    let key = state::with(py, |state| state.id_key);
    Ok(use_it(&Id::new(string.to_string_lossy(), key)))
}

/// What joins the records of a front end to those of its engine.
pub(crate) fn id_hash(id: &Bound<'_, PyAny>) -> PyResult<u64> {
    with_id(id, |id| xxh3_64(id.text.as_bytes()))
}

/// Writes the pieces of an id.
pub(crate) fn write_id(state: &mut State, number: u64, id: &Id<'_>, ticks: u64) {
    for (part, piece) in id.text.as_bytes().chunks(TEXT_BYTES).enumerate() {
        let mut bytes = [0; TEXT_BYTES];
        bytes[..piece.len()].copy_from_slice(piece);
        let part = u16::try_from(part).unwrap_or(u16::MAX);
        write(state, ticks, 0, 0, Payload::RequestText(RequestText { number, part, bytes }));
    }
}

#[inline]
pub(crate) fn write(state: &mut State, ticks: u64, step: u64, name: u32, payload: Payload) {
    let label = state.label;
    state.write(&Record { ticks, step, label, flags: 0, name, payload });
}

/// The number of a request; one that has none gets it, and is written as queued.
pub(crate) fn number(request: &Bound<'_, PyAny>) -> PyResult<u64> {
    match request.getattr_opt(name!(request.py(), NUMBER))? {
        Some(number) => number.extract(),
        None => queued(request),
    }
}

fn attribute_is_set(object: &Bound<'_, PyAny>, attribute: &Bound<'_, PyString>) -> PyResult<bool> {
    match object.getattr_opt(attribute)? {
        Some(value) if !value.is_none() => value.is_truthy(),
        _ => Ok(false),
    }
}

fn queued(request: &Bound<'_, PyAny>) -> PyResult<u64> {
    let py = request.py();
    let arrival: f64 = request.getattr(name!(py, "arrival_time"))?.extract()?;
    let prompt_tokens = count(&request.getattr(name!(py, "num_prompt_tokens"))?)?;
    let priority: i64 = request.getattr(name!(py, "priority"))?.extract()?;
    let client: i64 = request.getattr(name!(py, "client_index"))?.extract()?;
    let mut traits = 0;
    if !request.getattr(name!(py, "pooling_params"))?.is_none() {
        traits |= request_traits::POOLING;
    }
    if attribute_is_set(request, name!(py, "resumable"))? {
        traits |= request_traits::STREAMING;
    }
    let number = state::with(py, State::next_request);
    request.setattr(name!(py, NUMBER), number)?;
    with_id(&request.getattr(name!(py, "request_id"))?, |id| {
        state::with(py, |state| {
            let ticks = clock::ticks();
            let payload = Payload::RequestQueued(RequestQueued {
                number,
                arrival_bits: arrival.to_bits(),
                prompt_tokens,
                priority: i32::try_from(priority).unwrap_or(if priority < 0 { i32::MIN } else { i32::MAX }),
                client: u32::try_from(client).unwrap_or(u32::MAX),
                id_bytes: id.bytes(),
                traits: traits | id.traits(),
            });
            write(state, ticks, 0, 0, payload);
            write_id(state, number, id, ticks);
        });
    })?;
    Ok(number)
}

/// Before `Scheduler.add_request(request)`: it is queued, unless it continues a streaming session.
pub(crate) fn before_add_request(call: &Call<'_>) -> PyResult<Told> {
    let py = call.py();
    let (scheduler, request) = (call.argument(0, name!(py, "self"))?, call.argument(1, name!(py, "request"))?);
    let id = request.getattr(name!(py, "request_id"))?;
    let requests = scheduler.getattr(name!(py, "requests"))?;
    let known = match requests.cast::<PyDict>() {
        Ok(requests) => requests.contains(&id)?,
        Err(_) => requests.contains(&id)?,
    };
    if !known {
        queued(&request)?;
    }
    Ok(Told::default())
}

/// A request went from waiting into the batch of a step. Gives the tokens that were looked up in and found by the prefix
/// cache for it, as vLLM counts them (`KVCacheManager.record_prefix_cache_stats`): a resumed request does not count.
pub(crate) fn admitted(
    request: &Bound<'_, PyAny>,
    step: u64,
    scheduled_tokens: u32,
    is_written: bool,
) -> PyResult<(u32, u32)> {
    let py = request.py();
    let num_tokens = count(&request.getattr(name!(py, "num_tokens"))?)?;
    // `schedule` has added this step's tokens already.
    let computed = count(&request.getattr(name!(py, "num_computed_tokens"))?)?.saturating_sub(scheduled_tokens);
    let is_again = match request.getattr_opt(name!(py, "num_preemptions"))? {
        Some(preemptions) => count(&preemptions)? > 0,
        None => false,
    };
    let mut external_tokens = u32::MAX;
    if let Some(stats) = request.getattr_opt(name!(py, "prefill_stats"))?
        && !is_again
        && let Some(external) = stats.getattr_opt(name!(py, "num_external_cached_tokens"))?
    {
        external_tokens = count(&external)?;
    }
    if is_written {
        let number = number(request)?;
        state::with(py, |state| {
            let payload = Payload::RequestAdmitted(RequestAdmitted {
                number,
                computed_tokens: computed,
                external_tokens,
                num_tokens,
                scheduled_tokens,
            });
            write(state, clock::ticks(), step, 0, payload);
        });
    }
    let local = if external_tokens == u32::MAX { computed } else { computed.saturating_sub(external_tokens) };
    Ok(if is_again { (0, 0) } else { (num_tokens, local) })
}

/// Writes the first tokens that came with the output of a step. `awaiting`: id → request, of those whose prompt is
/// complete.
pub(crate) fn first_tokens(awaiting: &Bound<'_, PyDict>, step: u64) -> PyResult<()> {
    if awaiting.is_empty() {
        return Ok(());
    }
    for (id, request) in awaiting.copy()?.iter() {
        // One that ended without a token is not waited for, whether or not its end was seen.
        if first_token(&request, step)?
            || request.call_method0(name!(awaiting.py(), "is_finished"))?.is_truthy()?
        {
            awaiting.del_item(&id)?;
        }
    }
    Ok(())
}

fn first_token(request: &Bound<'_, PyAny>, step: u64) -> PyResult<bool> {
    let py = request.py();
    let output_tokens = count(&request.getattr(name!(py, "num_output_tokens"))?)?;
    if output_tokens == 0 {
        return Ok(false);
    }
    let client = count(&request.getattr(name!(py, "client_index"))?)?;
    let number = number(request)?;
    state::with(py, |state| {
        let payload = Payload::RequestFirstToken(RequestFirstToken { number, output_tokens, client });
        write(state, clock::ticks(), step, 0, payload);
    });
    Ok(true)
}

/// Before `Scheduler._free_request(request, …)`, which every request that ends goes through, with its last status.
pub(crate) fn before_free_request(call: &Call<'_>) -> PyResult<Told> {
    let py = call.py();
    state::with(py, |state| state.freed += 1);
    let (scheduler, request) = (call.argument(0, name!(py, "self"))?, call.argument(1, name!(py, "request"))?);
    let books = books_of(&scheduler)?.ok_or_else(|| PyAttributeError::new_err(BOOKS))?;
    let (step, awaiting, prefilling) = {
        let mut books = books.try_borrow_mut()?;
        // If what follows fails, this probe may soon be off, and count no more.
        books.counts_frees = false;
        (books.updating, books.awaiting.clone_ref(py), books.prefilling.clone_ref(py))
    };
    let id = request.getattr(name!(py, "request_id"))?;
    let (awaiting, prefilling) = (awaiting.bind(py), prefilling.bind(py));
    if awaiting.contains(&id)? {
        first_token(&request, step)?;
        awaiting.del_item(&id)?;
    }
    if prefilling.contains(&id)? {
        prefilling.del_item(&id)?;
    }
    let number = number(&request)?;
    let status: String = name_of(&request.getattr(name!(py, "status"))?)?.extract()?;
    let prompt_tokens = count(&request.getattr(name!(py, "num_prompt_tokens"))?)?;
    let output_tokens = count(&request.getattr(name!(py, "num_output_tokens"))?)?;
    let computed_tokens = count(&request.getattr(name!(py, "num_computed_tokens"))?)?;
    let client = count(&request.getattr(name!(py, "client_index"))?)?;
    let preemptions = match request.getattr_opt(name!(py, "num_preemptions"))? {
        Some(preemptions) => count(&preemptions)?,
        None => u32::MAX,
    };
    state::with(py, |state| {
        let name = state.intern(&status);
        let payload = Payload::RequestFinished(RequestFinished {
            number,
            prompt_tokens,
            output_tokens,
            preemptions,
            client,
            computed_tokens,
        });
        write(state, clock::ticks(), step, name, payload);
    });
    books.try_borrow_mut()?.counts_frees = true;
    Ok(Told::default())
}

/// Writes a preemption. `reason`: why, in our words; empty = not known. `tokens`: computed, and generated. `beneficiary`: the request that needed the blocks.
/// `blocks_freed`: `None` = not known.
#[pyfunction]
pub(crate) fn request_preempted(
    py: Python<'_>,
    request: &Bound<'_, PyAny>,
    step: u64,
    reason: &str,
    tokens: (u32, u32),
    beneficiary: Option<&Bound<'_, PyAny>>,
    blocks_freed: Option<u32>,
) -> PyResult<()> {
    let number = number(request)?;
    let beneficiary = beneficiary.map_or(Ok(0), self::number)?;
    let (computed_tokens, output_tokens) = tokens;
    state::with(py, |state| {
        let name = if reason.is_empty() { 0 } else { state.intern(reason) };
        let payload = Payload::RequestPreempted(RequestPreempted {
            number,
            computed_tokens,
            output_tokens,
            beneficiary,
            blocks_freed: blocks_freed.unwrap_or(u32::MAX),
        });
        write(state, clock::ticks(), step, name, payload);
    });
    Ok(())
}

/// From here on a keyed hash stands for each id of a request. The key is one for all processes of a session.
#[pyfunction]
pub(crate) fn hash_request_ids(py: Python<'_>, key: [u64; 2]) {
    state::with(py, |state| state.id_key = Some(key));
}
