//! The scheduler: what each step's batch is made of, what kept it from being larger, and what goes to the clients.
//! (`vllm/v1/core/sched/scheduler.py`)

use super::kv_cache::{KvCacheCollector, Pool, Watch};
use super::queues::Queues;
use super::{BOOKS, STEP, count, length, requests};
use crate::extractor::{Call, Told};
use crate::failure;
use crate::names::name;
use crate::state::{self, ENGINE};
use profilemate_format::record::{Payload, Record, Schedule, Speculation};
use profilemate_record::clock;
use pyo3::exceptions::PyAttributeError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// What is remembered of one scheduler between steps.
#[pyclass(module = "profilemate._native")]
#[expect(clippy::struct_excessive_bools, reason = "each says something of its own of the scheduler")]
pub(crate) struct SchedulerBooks {
    /// Id of the newest step, from 1.
    #[pyo3(get)]
    step: u64,
    /// Requests whose prompt, or what was computed of them before a preemption, is not complete: id → tokens to reach.
    #[pyo3(get)]
    pub(crate) prefilling: Py<PyDict>,
    /// Requests whose prompt is complete and whose first token has not come back: id → request.
    #[pyo3(get)]
    pub(crate) awaiting: Py<PyDict>,
    /// `(step, sequences, tokens, running, waiting)`, every so many steps.
    progress: Option<(u64, Py<PyAny>)>,
    /// Whether an output may have another number of tokens than one: then every one of them is looked at.
    count_each: bool,
    /// Requests that had finished before the update under way, as counted by `counts_frees` or not.
    finished_before: u64,
    /// Whether each request that ends is seen (`before_free_request`), so that vLLM's set of them need not be asked.
    pub(crate) counts_frees: bool,
    queues: Queues,
    /// Step whose output the scheduler takes right now; 0 = none.
    pub(crate) updating: u64,
    /// Whether the lives of requests are recorded.
    has_requests: bool,
    /// Newest step in which a request was preempted for want of blocks.
    preempted_step: u64,
    limits: Option<Limits>,
    kv_cache: Option<Watch>,
    /// Whether drafts and what became of them is recorded.
    speculates: bool,
    /// The same of the update under way, where vLLM does not count it.
    speculated: Option<Speculation>,
}

/// What keeps a batch from being larger, and what this version's scheduler has to ask. An attribute that is not there costs an
/// exception each time, so that is found out once.
#[derive(Debug, Clone, Copy)]
struct Limits {
    running: u32,
    tokens: u32,
    /// Whether nothing but missing blocks stops the scheduler at a request that is ready: no connector, adapter, draft, …
    only_blocks: bool,
    has_sessions: bool,
    has_pause_state: bool,
    passed_over: PassedOver,
}

/// Where a scheduler keeps waiting requests that it passed over because they were not ready.
#[derive(Debug, Clone, Copy)]
enum PassedOver {
    /// 0.32 and newer: a set.
    Deferred,
    /// 0.17 to 0.28: a queue.
    Skipped,
    /// Older: back at the front of the others.
    AtTheFront,
    /// A scheduler of another kind.
    Unknown,
}

#[pymethods]
impl SchedulerBooks {
    #[new]
    #[pyo3(signature = (count_each = true, progress_every = 0, progress = None))]
    fn new(py: Python<'_>, count_each: bool, progress_every: u64, progress: Option<Py<PyAny>>) -> Self {
        let progress = progress.filter(|_| progress_every > 0).map(|progress| (progress_every, progress));
        // A new scheduler may have the address of one that is gone.
        let old = state::with(py, |state| state.books.take());
        drop(old);
        Self {
            step: 0,
            prefilling: PyDict::new(py).unbind(),
            awaiting: PyDict::new(py).unbind(),
            progress,
            count_each,
            finished_before: 0,
            counts_frees: false,
            queues: Queues::default(),
            updating: 0,
            has_requests: false,
            preempted_step: 0,
            limits: None,
            kv_cache: None,
            speculates: false,
            speculated: None,
        }
    }

    /// Records drafts and what became of them from here on.
    fn watch_speculation(&mut self) {
        self.speculates = true;
    }

    /// Records the lives of requests from here on.
    fn watch_requests(&mut self) {
        self.has_requests = true;
        self.counts_frees = true;
    }

    /// Says from here on what kept each batch of a scheduler from being larger: most requests running at once, most tokens in
    /// a batch, and whether missing blocks alone stop it at a request that is ready.
    fn watch_limits(
        &mut self,
        scheduler: &Bound<'_, PyAny>,
        running: u32,
        tokens: u32,
        only_blocks: bool,
    ) -> PyResult<()> {
        let py = scheduler.py();
        // Since 0.32 more may be active than are in one batch.
        let active = scheduler.getattr_opt(name!(py, "max_num_active_reqs"))?;
        let passed_over = if scheduler.hasattr(name!(py, "deferred_waiting"))? {
            PassedOver::Deferred
        } else if scheduler.hasattr(name!(py, "skipped_waiting"))? {
            PassedOver::Skipped
        } else if scheduler.hasattr(name!(py, "waiting"))? {
            PassedOver::AtTheFront
        } else {
            PassedOver::Unknown
        };
        self.limits = Some(Limits {
            running: active.map_or(Ok(running), |active| count(&active))?,
            tokens,
            only_blocks,
            has_sessions: scheduler.hasattr(name!(py, "num_waiting_for_streaming_input"))?,
            has_pause_state: scheduler.hasattr(name!(py, "_pause_state"))?,
            passed_over,
        });
        Ok(())
    }

    /// Looks at these pools `(name, BlockPool, collector)` of a `KVCacheManager` after each call of the scheduler.
    fn watch_kv_cache(
        &mut self,
        manager: Py<PyAny>,
        pools: Vec<(String, Bound<'_, PyAny>, Option<Py<KvCacheCollector>>)>,
        has_prefix_cache: bool,
    ) -> PyResult<()> {
        let pools: PyResult<Vec<_>> =
            pools.into_iter().map(|(name, pool, collector)| Pool::new(&pool, name, collector)).collect();
        self.kv_cache = Some(Watch::new(manager, pools?, has_prefix_cache));
        Ok(())
    }

    /// Blocks that are free now, in all pools; `None` when they are not looked at.
    fn free_blocks(&self, py: Python<'_>) -> PyResult<Option<u32>> {
        let Some(watch) = &self.kv_cache else { return Ok(None) };
        let mut free = 0u32;
        for pool in &watch.pools {
            free = free.saturating_add(pool.free_blocks(py)?);
        }
        Ok(Some(free))
    }

    /// A request was preempted for want of blocks while this step was put together.
    fn note_preemption(&mut self, step: u64) {
        self.preempted_step = step;
    }

    /// Whether the lives of requests are recorded.
    #[getter]
    fn has_requests(&self) -> bool {
        self.has_requests
    }
}

/// The books of a scheduler; `None` = it has none. Each new one has new books, so those of the last that was asked for are
/// known by its address.
pub(super) fn books_of<'py>(scheduler: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, SchedulerBooks>>> {
    let (py, address) = (scheduler.py(), scheduler.as_ptr() as usize);
    let known = state::with(py, |state| match &state.books {
        Some((of, books)) if *of == address => Some(books.clone_ref(py)),
        _ => None,
    });
    if let Some(known) = known {
        return Ok(Some(known.into_bound(py)));
    }
    let Some(books) = scheduler.getattr_opt(name!(py, BOOKS))? else { return Ok(None) };
    let books = books.cast_into::<SchedulerBooks>()?;
    let newest = (address, books.clone().unbind());
    let old = state::with(py, |state| state.books.replace(newest));
    drop(old);
    Ok(Some(books))
}

/// Whether nothing but decodes may be in the batch.
fn is_plain(py: Python<'_>, output: &Bound<'_, PyAny>, prefilling: &Bound<'_, PyDict>) -> PyResult<bool> {
    if !prefilling.is_empty() || output.getattr(name!(py, "scheduled_new_reqs"))?.len()? > 0 {
        return Ok(false);
    }
    let cached = output.getattr(name!(py, "scheduled_cached_reqs"))?;
    // vLLM 0.11 has a list of flags, whose length says nothing.
    match cached.getattr_opt(name!(py, "resumed_req_ids"))? {
        Some(resumed) => Ok(resumed.len()? == 0),
        None => Ok(false),
    }
}

/// What a batch has of prompts.
#[derive(Debug, Clone, Copy, Default)]
struct Prefill {
    tokens: u32,
    seqs: u32,
    completed_tokens: u32,
    completed: u32,
    /// Tokens looked up in the prefix cache for requests that were admitted, and found.
    prefix: (u32, u32),
}

/// Goes through the requests that come new into the batch, and those whose prompt is not complete.
fn look_at_prompts(
    output: &Bound<'_, PyAny>,
    scheduler: &Bound<'_, PyAny>,
    prefilling: &Bound<'_, PyDict>,
    awaiting: &Bound<'_, PyDict>,
    step: u64,
    has_requests: bool,
) -> PyResult<Prefill> {
    let py = output.py();
    let tokens_of = output.getattr(name!(py, "num_scheduled_tokens"))?;
    let requests = scheduler.getattr(name!(py, "requests"))?;
    let mut found = Prefill::default();
    let mut admit = |id: &Bound<'_, PyAny>| -> PyResult<()> {
        let request = requests.get_item(id)?;
        // All tokens that the request has: its prompt, and, where it was preempted, what it had generated.
        prefilling.set_item(id, request.getattr(name!(py, "num_tokens"))?)?;
        let prefix = requests::admitted(&request, step, count(&tokens_of.get_item(id)?)?, has_requests)?;
        found.prefix.0 = found.prefix.0.saturating_add(prefix.0);
        found.prefix.1 = found.prefix.1.saturating_add(prefix.1);
        Ok(())
    };
    // Runners that take resumed requests as new ones have them here.
    for new in output.getattr(name!(py, "scheduled_new_reqs"))?.try_iter()? {
        admit(&new?.getattr(name!(py, "req_id"))?)?;
    }
    let cached = output.getattr(name!(py, "scheduled_cached_reqs"))?;
    if let Some(resumed) = cached.getattr_opt(name!(py, "resumed_req_ids"))? {
        for id in resumed.try_iter()? {
            admit(&id?)?;
        }
    } else if let Some(flags) = cached.getattr_opt(name!(py, "resumed_from_preemption"))? {
        // vLLM 0.11: a list of flags beside the ids.
        for (id, flag) in cached.getattr(name!(py, "req_ids"))?.try_iter()?.zip(flags.try_iter()?) {
            if flag?.is_truthy()? {
                admit(&id?)?;
            }
        }
    }
    for (id, goal) in prefilling.copy()?.iter() {
        let Ok(tokens) = tokens_of.get_item(&id) else {
            if !requests.contains(&id)? {
                prefilling.del_item(&id)?;
            }
            continue;
        };
        let (tokens, goal) = (count(&tokens)?, count(&goal)?);
        let request = requests.get_item(&id)?;
        // `schedule` has added this step's tokens already.
        let reached = count(&request.getattr(name!(py, "num_computed_tokens"))?)?;
        let computed = reached.saturating_sub(tokens);
        let is_complete = reached >= goal;
        if is_complete {
            prefilling.del_item(&id)?;
        }
        if count(&request.getattr(name!(py, "num_output_tokens"))?)? > 0 {
            if computed >= goal.saturating_sub(1) {
                // Only its newest token is left to compute, as in any decode.
                continue;
            }
        } else if is_complete {
            found.completed += 1;
            let prompt_tokens = count(&request.getattr(name!(py, "num_prompt_tokens"))?)?;
            found.completed_tokens = found.completed_tokens.saturating_add(prompt_tokens);
            if has_requests {
                awaiting.set_item(&id, &request)?;
            }
        }
        found.seqs += 1;
        found.tokens = found.tokens.saturating_add(tokens.min(goal.saturating_sub(computed)));
    }
    Ok(found)
}

/// What kept a batch from being larger; empty = not known. In the order in which the scheduler meets the limits.
fn limited_by(
    scheduler: &Bound<'_, PyAny>,
    limits: Limits,
    is_preempted: bool,
    num_tokens: u32,
    running: u32,
    waiting: u32,
) -> PyResult<&'static str> {
    let py = scheduler.py();
    if is_preempted {
        // No waiting request is admitted in a step that preempts one.
        return Ok("preemption");
    }
    if num_tokens >= limits.tokens {
        return Ok("token_budget");
    }
    if waiting == 0 {
        return Ok("no_waiting_request");
    }
    // Sessions that wait for their next input are among the waiting, and hold a place among the running.
    let sessions = if limits.has_sessions {
        count(&scheduler.getattr(name!(py, "num_waiting_for_streaming_input"))?)?
    } else {
        0
    };
    let waiting = waiting.saturating_sub(sessions);
    if waiting == 0 {
        return Ok("no_waiting_request");
    }
    if running.saturating_add(sessions) >= limits.running {
        return Ok("max_num_seqs");
    }
    if limits.has_pause_state {
        let state = scheduler.getattr(name!(py, "_pause_state"))?;
        if !name_of(&state)?.eq(name!(py, "UNPAUSED"))? {
            return Ok("paused");
        }
    }
    // Requests that are not ready are passed over; they stop the scheduler only if there is no other.
    let passed_over = match limits.passed_over {
        PassedOver::Deferred => scheduler.getattr(name!(py, "deferred_waiting"))?,
        PassedOver::Skipped => scheduler.getattr(name!(py, "skipped_waiting"))?,
        PassedOver::AtTheFront => {
            let queue = scheduler.getattr(name!(py, "waiting"))?;
            if let Some(reason) = reason_to_wait(&queue.call_method0(name!(py, "peek_request"))?)? {
                return Ok(if waiting == 1 { reason } else { "" });
            }
            return Ok(if limits.only_blocks { "kv_blocks" } else { "other" });
        }
        PassedOver::Unknown => return Ok(""),
    };
    if length(&passed_over)?.saturating_sub(sessions) >= waiting {
        return not_ready(&passed_over);
    }
    Ok(if limits.only_blocks { "kv_blocks" } else { "other" })
}

/// The name of a member of an `Enum`, past the property that `Enum` puts before it.
pub(super) fn name_of<'py>(member: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    member.getattr(name!(member.py(), "_name_"))
}

/// Why requests that the scheduler passed over are not ready, by the first that says so.
fn not_ready(deferred: &Bound<'_, PyAny>) -> PyResult<&'static str> {
    for request in deferred.try_iter()?.take(8) {
        if let Some(reason) = reason_to_wait(&request?)? {
            return Ok(reason);
        }
    }
    Ok("other")
}

fn reason_to_wait(request: &Bound<'_, PyAny>) -> PyResult<Option<&'static str>> {
    let py = request.py();
    let status: String = name_of(&request.getattr(name!(py, "status"))?)?.extract()?;
    Ok(match status.as_str() {
        "WAITING_FOR_FSM" | "WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR" => Some("structured_output"),
        "WAITING_FOR_REMOTE_KVS" => Some("remote_kv"),
        _ => None,
    })
}

/// After `Scheduler.schedule`: gives the step its id and writes what was scheduled. Tells the id.
pub(crate) fn after_schedule(call: &Call<'_>) -> PyResult<Told> {
    let py = call.py();
    let (output, scheduler) = (call.argument(0, name!(py, "output"))?, call.argument(1, name!(py, "self"))?);
    let books = books_of(&scheduler)?.ok_or_else(|| PyAttributeError::new_err(BOOKS))?;
    let mut borrowed = books.try_borrow_mut()?;
    // Reading vLLM's objects runs none of the code that asks for the books.
    let books = &mut *borrowed;
    books.step += 1;
    let step = books.step;
    // Blocks are given out inside of `schedule` only, so what is said of them until then belongs to the next one.
    state::with(py, |state| state.lanes[ENGINE].next_step = step + 1);
    // A version whose outputs take no attribute loses the step in the workers, and nothing else.
    if let Err(error) = output.setattr(name!(py, STEP), step)
        && !failure::is_ours(py, &error)
    {
        return Err(error);
    }
    let tokens_of = output.getattr(name!(py, "num_scheduled_tokens"))?;
    let num_seqs = length(&tokens_of)?;
    let num_tokens = count(&output.getattr(name!(py, "total_num_scheduled_tokens"))?)?;
    let is_plain = is_plain(py, &output, books.prefilling.bind(py))?;
    let prefill = if is_plain {
        Prefill::default()
    } else {
        let (prefilling, awaiting) = (books.prefilling.bind(py), books.awaiting.bind(py));
        look_at_prompts(&output, &scheduler, prefilling, awaiting, step, books.has_requests)?
    };
    let (running, waiting) = books.queues.lengths(&scheduler)?;
    let limited_by = match books.limits {
        Some(limits) => {
            let is_preempted = books.preempted_step == step;
            match limited_by(&scheduler, limits, is_preempted, num_tokens, running, waiting) {
                Ok(limited_by) => limited_by,
                Err(error) if failure::is_ours(py, &error) => {
                    // What fails here costs its own column, and no row.
                    books.limits = None;
                    failure::report(py, "scheduler.limited_by", &error.to_string(), true);
                    ""
                }
                Err(error) => return Err(error),
            }
        }
        None => "",
    };
    let payload = Payload::Schedule(Schedule {
        num_seqs,
        num_tokens,
        prefill_tokens: prefill.tokens,
        prefill_seqs: prefill.seqs,
        running: Some(running),
        waiting: Some(waiting),
        completed_prompt_tokens: Some(prefill.completed_tokens),
        completed_prompts: Some(prefill.completed),
    });
    let size = u64::from(num_tokens) | u64::from(num_seqs) << 32;
    state::with(py, |state| {
        state.batches.add(output.as_ptr(), step, size);
        let label = state.label;
        let name = if limited_by.is_empty() { 0 } else { state.intern(limited_by) };
        state.write(&Record { ticks: clock::ticks(), step, label, flags: 0, name, payload });
    });
    if let Some(kv_cache) = &mut books.kv_cache {
        // Prompts are looked up for requests that wait: with none before and none left, there was none.
        let is_looked_up = !is_plain || waiting > 0;
        if let Err(error) = kv_cache.write(py, step, is_looked_up, prefill.prefix) {
            if !failure::is_ours(py, &error) {
                return Err(error);
            }
            books.kv_cache = None;
            failure::report(py, "scheduler.kv_cache", &error.to_string(), true);
        }
    }
    if let Some((every, progress)) = &books.progress
        && step.is_multiple_of(*every)
    {
        let progress = progress.clone_ref(py);
        drop(borrowed);
        progress.call1(py, (step, num_seqs, num_tokens, running, waiting))?;
    }
    Ok(Told::step(step))
}

/// Requests that have ended so far, or that vLLM remembers as finished since its last step: both grow alike.
fn finished(scheduler: &Bound<'_, PyAny>, counts_frees: bool) -> PyResult<u64> {
    let py = scheduler.py();
    if counts_frees {
        return Ok(state::with(py, |state| state.freed));
    }
    Ok(scheduler.getattr(name!(py, "finished_req_ids"))?.len()? as u64)
}

/// Before `Scheduler.update_from_output(scheduler_output, model_runner_output)`: the step that it is of.
pub(crate) fn before_update_from_output(call: &Call<'_>) -> PyResult<Told> {
    let py = call.py();
    let (scheduler, output) =
        (call.argument(0, name!(py, "self"))?, call.argument(1, name!(py, "scheduler_output"))?);
    let step = match state::with(py, |state| state.batches.take(output.as_ptr())) {
        Some(batch) => Some(batch.step),
        None => output.getattr_opt(name!(py, STEP))?.map(|step| step.extract()).transpose()?,
    };
    if let Some(books) = books_of(&scheduler)? {
        let mut books = books.try_borrow_mut()?;
        books.finished_before = finished(&scheduler, books.counts_frees)?;
        books.updating = step.unwrap_or(0);
        if books.speculates && !scheduler.getattr(name!(py, "log_stats"))?.is_truthy()? {
            books.speculated = speculated(&output, &call.argument(2, name!(py, "model_runner_output"))?)?;
        }
    }
    Ok(Told { step, ..Told::default() })
}

/// What became of the drafts of a step; `None` = it had none. vLLM counts it too, but only if it keeps statistics.
///
/// `Scheduler.update_from_output` (0.11 to 0.33): of the tokens of a sequence all but one were drafted. A sequence that was
/// aborted meanwhile counts here, and not in vLLM's statistics.
fn speculated(scheduler_output: &Bound<'_, PyAny>, output: &Bound<'_, PyAny>) -> PyResult<Option<Speculation>> {
    let py = output.py();
    let drafted = scheduler_output.getattr(name!(py, "scheduled_spec_decode_tokens"))?.cast_into::<PyDict>()?;
    if drafted.is_empty() {
        return Ok(None);
    }
    let mut found = Speculation::default();
    for (_, tokens) in drafted.iter() {
        let tokens = length(&tokens)?;
        found.draft_tokens = found.draft_tokens.saturating_add(tokens);
        found.drafts += u32::from(tokens > 0);
    }
    // Drafts that a grammar does not allow are no drafts.
    if let Some(invalid) = scheduler_output.getattr_opt(name!(py, "num_invalid_spec_tokens"))?
        && !invalid.is_none()
    {
        for tokens in invalid.call_method0(name!(py, "values"))?.try_iter()? {
            found.draft_tokens = found.draft_tokens.saturating_sub(count(&tokens?)?);
        }
    }
    for tokens in output.getattr(name!(py, "sampled_token_ids"))?.try_iter()? {
        found.accepted_tokens = found.accepted_tokens.saturating_add(length(&tokens?)?.saturating_sub(1));
    }
    Ok(Some(found))
}

/// The same by vLLM's own statistics (`SpecDecodingStats`), in what `update_from_output` gives to its first client.
fn speculated_by_vllm(outputs: &Bound<'_, PyDict>) -> PyResult<Option<Speculation>> {
    let py = outputs.py();
    for (_, of) in outputs.iter() {
        let Some(stats) = of.getattr_opt(name!(py, "scheduler_stats"))?.filter(|found| !found.is_none()) else {
            continue;
        };
        let found = stats.getattr_opt(name!(py, "spec_decoding_stats"))?;
        if let Some(found) = found.filter(|found| !found.is_none()) {
            return Ok(Some(Speculation {
                draft_tokens: count(&found.getattr(name!(py, "num_draft_tokens"))?)?,
                accepted_tokens: count(&found.getattr(name!(py, "num_accepted_tokens"))?)?,
                drafts: count(&found.getattr(name!(py, "num_drafts"))?)?,
            }));
        }
    }
    Ok(None)
}

/// After `Scheduler.update_from_output`: the first tokens in it, and the counts of what goes to the clients.
pub(crate) fn after_update_from_output(call: &Call<'_>) -> PyResult<Told> {
    let py = call.py();
    let (result, scheduler) = (call.argument(0, name!(py, "result"))?, call.argument(1, name!(py, "self"))?);
    let Ok(outputs) = result.cast::<PyDict>() else { return Ok(Told::default()) };
    let Some(books) = books_of(&scheduler)? else { return Ok(Told::default()) };
    let (before, counts_frees, count_each, awaiting, step, speculates, counted) = {
        let mut books = books.try_borrow_mut()?;
        let step = std::mem::take(&mut books.updating);
        let awaiting = (!books.awaiting.bind(py).is_empty()).then(|| books.awaiting.clone_ref(py));
        let counted = books.speculated.take();
        (books.finished_before, books.counts_frees, books.count_each, awaiting, step, books.speculates, counted)
    };
    if speculates
        && let Some(found) = counted.map_or_else(|| speculated_by_vllm(outputs), |found| Ok(Some(found)))?
    {
        let payload = Payload::Speculation(found);
        state::with(py, |state| {
            let label = state.label;
            state.write(&Record { ticks: clock::ticks(), step, label, flags: 0, name: 0, payload });
        });
    }
    if let Some(awaiting) = awaiting {
        requests::first_tokens(awaiting.bind(py), step)?;
    }
    // `schedule` alone empties vLLM's set, so in between it grows by what the step finished.
    let finished = finished(&scheduler, counts_frees)?;
    crate::calls::write_outputs(py, outputs, finished.saturating_sub(before), count_each)?;
    Ok(Told::default())
}
