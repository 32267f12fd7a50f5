//! What the sequences of a batch ask of the sampler. (V1: `vllm/v1/worker/gpu_input_batch.py`; V2:
//! `vllm/v1/worker/gpu/sample/sampler.py`)
//!
//! V1 keeps a set or dict of requests for each feature, so a count is a length. V2 keeps parameters by slot; what a request
//! asks for is noted when it gets its slot, and a batch adds up the slots that it is made of.

use super::length;
use crate::extractor::{Call, Told};
use crate::names::name;
use crate::state::{self, WORKER};
use profilemate_format::record::{Label, Payload, Record, SamplingMix};
use profilemate_record::clock;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PySet, PyString};

/// Attribute of what holds a runner's sampling parameters (V1's input batch, V2's sampler) that has our books.
const BOOKS: &str = "_profilemate_sampling";

/// Temperatures below it are greedy (`vllm/sampling_params.py`, `_SAMPLING_EPS`).
const GREEDY_BELOW: f64 = 1e-5;

/// Slots that are kept at most; vLLM has one for each sequence that may run (`max_num_seqs`).
const MOST_SLOTS: usize = 1 << 16;

/// A count that fits into its field; the greatest value of that stands for unknown.
fn short(count: u32) -> u16 {
    u16::try_from(count).unwrap_or(u16::MAX).min(u16::MAX - 1)
}

/// From here on the mix of each batch is recorded.
#[pyfunction]
pub(crate) fn watch_sampling(py: Python<'_>) {
    state::with(py, |state| state.samples = true);
}

fn is_watched(py: Python<'_>) -> bool {
    state::with(py, |state| state.samples && state.label == Label::Work && state.is_recording())
}

fn write(py: Python<'_>, mix: SamplingMix) {
    state::with(py, |state| {
        let mix = SamplingMix { structured_output: Some(short(std::mem::take(&mut state.restricted))), ..mix };
        let (step, label) = (state.lanes[WORKER].step, state.label);
        let payload = Payload::SamplingMix(mix);
        state.write(&Record { ticks: clock::ticks(), step, label, flags: 0, name: 0, payload });
    });
}

/// Sequences that a grammar restricts, by vLLM's `GrammarOutput` (0.11: `SchedulerOutput`); 0 for anything else.
fn restricted(output: &Bound<'_, PyAny>) -> PyResult<u32> {
    if output.is_none() {
        return Ok(0);
    }
    match output.getattr_opt(name!(output.py(), "structured_output_request_ids"))? {
        Some(ids) if !ids.is_none() => length(&ids),
        _ => Ok(0),
    }
}

/// Before V1's `apply_grammar_bitmask(…)`, which is called for batches that a grammar restricts: how many it is for.
pub(crate) fn before_grammar_bitmask(call: &Call<'_>) -> PyResult<Told> {
    let (mut count, mut place) = (0, 0);
    while let Some(argument) = call.at(place) {
        count = count.max(restricted(&argument)?);
        place += 1;
    }
    state::with(call.py(), |state| state.restricted = count);
    Ok(Told::default())
}

/// V1: the sets and dicts of an `InputBatch`, which live as long as it does. `None`: this version has none.
#[pyclass(module = "profilemate._native")]
struct BatchBooks {
    requests: Py<PyAny>,
    greedy: Option<Py<PyAny>>,
    top_k: Option<Py<PyAny>>,
    top_p: Option<Py<PyAny>>,
    penalties: Vec<Py<PyAny>>,
    logprobs: Vec<Py<PyAny>>,
    prompt_logprobs: Option<Py<PyAny>>,
    bad_words: Option<Py<PyAny>>,
    allowed_token_ids: Option<Py<PyAny>>,
    generators: Option<Py<PyAny>>,
    logit_bias: Option<Py<PyAny>>,
    min_tokens: Option<Py<PyAny>>,
    /// The processor itself: it has a count.
    min_p: Option<Py<PyAny>>,
}

impl BatchBooks {
    fn new(runner: &Bound<'_, PyAny>, batch: &Bound<'_, PyAny>) -> PyResult<Self> {
        let py = batch.py();
        let of = |owner: &Bound<'_, PyAny>, attribute: &str| -> PyResult<Option<Py<PyAny>>> {
            let found = owner.getattr_opt(PyString::new(py, attribute))?;
            Ok(found.filter(|found| !found.is_none()).map(Bound::unbind))
        };
        let several = |attributes: &[&str]| -> PyResult<Vec<Py<PyAny>>> {
            let found: PyResult<Vec<_>> = attributes.iter().map(|attribute| of(batch, attribute)).collect();
            Ok(found?.into_iter().flatten().collect())
        };
        let prompt_logprobs = match of(batch, "num_prompt_logprobs")? {
            Some(found) => Some(found),
            None => of(runner, "num_prompt_logprobs")?,
        };
        let mut books = Self {
            requests: batch.getattr("req_id_to_index")?.unbind(),
            greedy: of(batch, "greedy_reqs")?,
            top_k: of(batch, "top_k_reqs")?,
            top_p: of(batch, "top_p_reqs")?,
            penalties: several(&[
                "frequency_penalties_reqs",
                "presence_penalties_reqs",
                "repetition_penalties_reqs",
            ])?,
            logprobs: several(&["num_logprobs", "logprob_token_ids"])?,
            prompt_logprobs,
            bad_words: of(batch, "bad_words_token_ids")?,
            allowed_token_ids: of(batch, "has_allowed_token_ids")?,
            generators: of(batch, "generators")?,
            logit_bias: None,
            min_tokens: None,
            min_p: None,
        };
        if let Some(processors) = batch.getattr_opt("logitsprocs")?.filter(|found| !found.is_none()) {
            for list in ["argmax_invariant", "non_argmax_invariant"] {
                for processor in processors.getattr(list)?.try_iter()? {
                    let processor = processor?;
                    // By what they have: `vllm/v1/sample/logits_processor/builtin.py`.
                    if processor.hasattr("min_p_count")? {
                        books.min_p = Some(processor.unbind());
                    } else if let Some(biases) = of(&processor, "biases")? {
                        books.logit_bias = Some(biases);
                    } else if let Some(min_tokens) = of(&processor, "min_toks")? {
                        books.min_tokens = Some(min_tokens);
                    }
                }
            }
        }
        Ok(books)
    }

    fn mix(&self, batch: &Bound<'_, PyAny>) -> PyResult<SamplingMix> {
        let py = batch.py();
        let size = |of: &Option<Py<PyAny>>| -> PyResult<Option<u16>> {
            of.as_ref().map_or(Ok(None), |of| Ok(Some(short(length(of.bind(py))?))))
        };
        let logprobs = members(py, &self.logprobs)?;
        let most_logprobs = if logprobs == Some(0) {
            Some(0)
        } else {
            let metadata = batch.getattr(name!(py, "sampling_metadata"))?;
            match metadata.getattr_opt(name!(py, "max_num_logprobs"))? {
                Some(most) if !most.is_none() => Some(super::count(&most)?),
                _ => None,
            }
        };
        let min_p = match &self.min_p {
            Some(processor) => Some(short(super::count(&processor.bind(py).getattr(name!(py, "min_p_count"))?)?)),
            None => None,
        };
        Ok(SamplingMix {
            sequences: Some(short(length(self.requests.bind(py))?)),
            greedy: size(&self.greedy)?,
            top_k: size(&self.top_k)?,
            top_p: size(&self.top_p)?,
            min_p,
            penalties: members(py, &self.penalties)?,
            logprobs,
            prompt_logprobs: size(&self.prompt_logprobs)?,
            structured_output: None,
            logit_bias: size(&self.logit_bias)?,
            bad_words: size(&self.bad_words)?,
            allowed_token_ids: size(&self.allowed_token_ids)?,
            min_tokens: size(&self.min_tokens)?,
            seeded: size(&self.generators)?,
            most_logprobs,
        })
    }
}

/// How many are in any of these sets and dicts; `None` without one. More than one that is not empty is rare.
fn members(py: Python<'_>, of: &[Py<PyAny>]) -> PyResult<Option<u16>> {
    let (mut filled, mut only) = (0, 0);
    for set in of {
        let size = length(set.bind(py))?;
        if size > 0 {
            filled += 1;
            only = size;
        }
    }
    if filled > 1 {
        let all = PySet::empty(py)?;
        for set in of {
            all.call_method1(name!(py, "update"), (set.bind(py),))?;
        }
        only = length(all.as_any())?;
    }
    Ok((!of.is_empty()).then(|| short(only)))
}

#[cold]
fn new_books<'py>(
    py: Python<'py>,
    runner: &Bound<'py, PyAny>,
    batch: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    let books = Bound::new(py, BatchBooks::new(runner, batch)?)?.into_any();
    batch.setattr(name!(py, BOOKS), &books)?;
    Ok(books)
}

/// Before V1's `GPUModelRunner._sample(logits, spec_decode_metadata)`.
pub(crate) fn before_sample(call: &Call<'_>) -> PyResult<Told> {
    let py = call.py();
    if !is_watched(py) {
        return Ok(Told::default());
    }
    let runner = call.argument(0, name!(py, "self"))?;
    let Some(batch) = runner.getattr_opt(name!(py, "input_batch"))? else { return Ok(Told::default()) };
    let books = match batch.getattr_opt(name!(py, BOOKS))? {
        Some(books) => books,
        None => new_books(py, &runner, &batch)?,
    };
    let mix = books.cast_into::<BatchBooks>()?.try_borrow()?.mix(&batch)?;
    write(py, mix);
    Ok(Told::default())
}

/// What one request asks for, one bit each, in the order of [`SamplingMix`] from `greedy` on without `structured_output`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Asked {
    bits: u16,
    most_logprobs: u32,
}

const GREEDY: u16 = 1;
const TOP_K: u16 = 1 << 1;
const TOP_P: u16 = 1 << 2;
const MIN_P: u16 = 1 << 3;
const PENALTIES: u16 = 1 << 4;
const LOGPROBS: u16 = 1 << 5;
const PROMPT_LOGPROBS: u16 = 1 << 6;
const LOGIT_BIAS: u16 = 1 << 7;
const BAD_WORDS: u16 = 1 << 8;
const ALLOWED_TOKEN_IDS: u16 = 1 << 9;
const MIN_TOKENS: u16 = 1 << 10;
const SEEDED: u16 = 1 << 11;
const BITS: usize = 12;

impl Asked {
    /// Of vLLM's `SamplingParams`, by the conditions of its runners.
    fn of(parameters: &Bound<'_, PyAny>, vocabulary: i64) -> PyResult<Self> {
        let py = parameters.py();
        let get = |attribute: &str| parameters.getattr_opt(PyString::new(py, attribute));
        let number = |attribute: &str, usual: f64| -> PyResult<f64> {
            get(attribute)?.filter(|value| !value.is_none()).map_or(Ok(usual), |value| value.extract())
        };
        let is_set = |attribute: &str| -> PyResult<bool> {
            match get(attribute)? {
                Some(value) if !value.is_none() => value.is_truthy(),
                _ => Ok(false),
            }
        };
        let is_given =
            |attribute: &str| -> PyResult<bool> { Ok(get(attribute)?.is_some_and(|value| !value.is_none())) };
        let is_greedy = number("temperature", 1.0)? < GREEDY_BELOW;
        let top_k = number("top_k", 0.0)?;
        let has_penalty = number("presence_penalty", 0.0)? != 0.0
            || number("frequency_penalty", 0.0)? != 0.0
            || (number("repetition_penalty", 1.0)? - 1.0).abs() > 0.0;
        let has_logprobs = is_given("logprobs")?;
        let mut bits = 0;
        for (is_asked, bit) in [
            (is_greedy, GREEDY),
            (top_k > 0.0 && top_k < vocabulary as f64, TOP_K),
            (number("top_p", 1.0)? < 1.0, TOP_P),
            (number("min_p", 0.0)? > 0.0, MIN_P),
            (has_penalty, PENALTIES),
            (has_logprobs || is_set("logprob_token_ids")?, LOGPROBS),
            (is_given("prompt_logprobs")?, PROMPT_LOGPROBS),
            (is_set("logit_bias")?, LOGIT_BIAS),
            (is_set("bad_words")?, BAD_WORDS),
            (is_set("allowed_token_ids")?, ALLOWED_TOKEN_IDS),
            (number("min_tokens", 0.0)? > 0.0, MIN_TOKENS),
            (is_given("seed")? && !is_greedy, SEEDED),
        ] {
            bits |= if is_asked { bit } else { 0 };
        }
        let most_logprobs = if has_logprobs {
            let wanted: i64 = parameters.getattr("logprobs")?.extract()?;
            // -1: all there are.
            u32::try_from(if wanted < 0 { vocabulary } else { wanted }).unwrap_or(u32::MAX)
        } else {
            0
        };
        Ok(Self { bits, most_logprobs })
    }
}

/// Sums over the sequences of a batch.
#[derive(Debug, Default)]
struct Sums {
    counts: [u32; BITS],
    most_logprobs: u32,
}

impl Sums {
    #[inline]
    fn add(&mut self, asked: Asked, times: u32) {
        for (place, count) in self.counts.iter_mut().enumerate() {
            *count += u32::from(asked.bits >> place & 1) * times;
        }
        self.most_logprobs = self.most_logprobs.max(asked.most_logprobs);
    }
}

/// V2: what the request in each slot asks for.
#[pyclass(module = "profilemate._native")]
#[derive(Default)]
struct SlotBooks {
    slots: Vec<Option<Asked>>,
    /// Everything that the slots have, and how many have it: most servers see one kind of request.
    kinds: Vec<(Asked, usize)>,
}

impl SlotBooks {
    fn set(&mut self, slot: usize, asked: Asked) {
        if slot >= MOST_SLOTS {
            return;
        }
        if slot >= self.slots.len() {
            self.slots.resize(slot + 1, None);
        }
        if let Some(before) = self.slots[slot].replace(asked)
            && let Some(place) = self.kinds.iter().position(|(kind, _)| *kind == before)
        {
            self.kinds[place].1 -= 1;
            if self.kinds[place].1 == 0 {
                self.kinds.swap_remove(place);
            }
        }
        match self.kinds.iter_mut().find(|(kind, _)| *kind == asked) {
            Some((_, count)) => *count += 1,
            None => self.kinds.push((asked, 1)),
        }
    }

    /// `None`: of a slot in it nothing is known.
    fn mix(&self, batch: &Bound<'_, PyAny>) -> PyResult<Option<SamplingMix>> {
        let py = batch.py();
        let mapping = batch.getattr(name!(py, "idx_mapping_np"))?;
        let sequences = length(&mapping)?;
        let mut sums = Sums::default();
        if let [(only, _)] = self.kinds.as_slice()
            && only.bits & PROMPT_LOGPROBS == 0
        {
            sums.add(*only, sequences);
        } else {
            let places = mapping.call_method0(name!(py, "tobytes"))?.cast_into::<PyBytes>()?;
            let prefilling = self.prefilling(batch)?;
            let prefilling = prefilling.as_ref().map(PyBytesMethods::as_bytes);
            for (at, slot) in slots_in(places.as_bytes(), sequences as usize).enumerate() {
                let Some(mut asked) = self.slots.get(slot).copied().flatten() else { return Ok(None) };
                // Log probabilities of a prompt are computed while it is.
                if prefilling.is_some_and(|flags| flags.get(at) == Some(&0)) {
                    asked.bits &= !PROMPT_LOGPROBS;
                }
                sums.add(asked, 1);
            }
        }
        let count = |bit: u16| Some(short(sums.counts[bit.trailing_zeros() as usize]));
        Ok(Some(SamplingMix {
            sequences: Some(short(sequences)),
            greedy: count(GREEDY),
            top_k: count(TOP_K),
            top_p: count(TOP_P),
            min_p: count(MIN_P),
            penalties: count(PENALTIES),
            logprobs: count(LOGPROBS),
            prompt_logprobs: count(PROMPT_LOGPROBS),
            structured_output: None,
            logit_bias: count(LOGIT_BIAS),
            bad_words: count(BAD_WORDS),
            allowed_token_ids: count(ALLOWED_TOKEN_IDS),
            min_tokens: count(MIN_TOKENS),
            seeded: count(SEEDED),
            most_logprobs: Some(sums.most_logprobs),
        }))
    }

    /// Whether each sequence of the batch is in its prompt, a byte each; `None` where nobody asks or the version does not say.
    fn prefilling<'py>(&self, batch: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        if self.kinds.iter().all(|(kind, _)| kind.bits & PROMPT_LOGPROBS == 0) {
            return Ok(None);
        }
        let py = batch.py();
        match batch.getattr_opt(name!(py, "is_prefilling_np"))? {
            Some(flags) if !flags.is_none() => {
                Ok(Some(flags.call_method0(name!(py, "tobytes"))?.cast_into::<PyBytes>()?))
            }
            _ => Ok(None),
        }
    }
}

/// The whole numbers of an array of `count`, of 4 bytes each (0.24 to 0.28) or of 8.
fn slots_in(bytes: &[u8], count: usize) -> impl Iterator<Item = usize> {
    let width = bytes.len().checked_div(count).unwrap_or(8).max(1);
    bytes.chunks_exact(width).map(|chunk| {
        let mut word = [0; 8];
        for (to, from) in word.iter_mut().zip(chunk) {
            *to = *from;
        }
        usize::try_from(u64::from_le_bytes(word)).unwrap_or(usize::MAX)
    })
}

/// Before V2's `Sampler.add_request(req_idx, …, sampling_params)`: a request gets its slot.
pub(crate) fn before_sampler_add_request(call: &Call<'_>) -> PyResult<Told> {
    let py = call.py();
    if !is_watched(py) {
        return Ok(Told::default());
    }
    let sampler = call.argument(0, name!(py, "self"))?;
    let slot: usize = call.argument(1, name!(py, "req_idx"))?.extract()?;
    // 0.17 to 0.28 have the length of the prompt in between.
    let parameters = match call.at(3).or_else(|| call.at(2)) {
        Some(parameters) => parameters,
        None => call.argument(3, name!(py, "sampling_params"))?,
    };
    let vocabulary = match sampler.getattr_opt(name!(py, "sampling_states"))? {
        Some(states) => {
            states.getattr_opt(name!(py, "vocab_size"))?.map_or(Ok(i64::MAX), |size| size.extract())?
        }
        None => i64::MAX,
    };
    let asked = Asked::of(&parameters, vocabulary)?;
    if let Some(books) = sampler.getattr_opt(name!(py, BOOKS))? {
        books.cast_into::<SlotBooks>()?.try_borrow_mut()?.set(slot, asked);
    } else {
        let mut books = SlotBooks::default();
        books.set(slot, asked);
        sampler.setattr(name!(py, BOOKS), Bound::new(py, books)?)?;
    }
    Ok(Told::default())
}

/// Before V2's `GPUModelRunner.sample(hidden_states, input_batch, …, grammar_output)`.
pub(crate) fn before_sample_v2(call: &Call<'_>) -> PyResult<Told> {
    let py = call.py();
    if !is_watched(py) {
        return Ok(Told::default());
    }
    let runner = call.argument(0, name!(py, "self"))?;
    let Some(sampler) = runner.getattr_opt(name!(py, "sampler"))? else { return Ok(Told::default()) };
    let Some(books) = sampler.getattr_opt(name!(py, BOOKS))? else { return Ok(Told::default()) };
    let batch = call.argument(2, name!(py, "input_batch"))?;
    if let Some(mix) = books.cast_into::<SlotBooks>()?.try_borrow()?.mix(&batch)? {
        // 0.14 has sampling metadata in between.
        let grammar = match call.at(4).or_else(|| call.at(3)) {
            Some(grammar) => Some(grammar),
            None => call.named(name!(py, "grammar_output"))?,
        };
        let count = grammar.map_or(Ok(0), |grammar| restricted(&grammar))?;
        state::with(py, |state| state.restricted = count);
        write(py, mix);
    }
    Ok(Told::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_read_whatever_their_width() {
        let narrow: Vec<u8> = [3_i32, 0, 255].iter().flat_map(|slot| slot.to_le_bytes()).collect();
        let wide: Vec<u8> = [3_i64, 0, 255].iter().flat_map(|slot| slot.to_le_bytes()).collect();
        assert_eq!(slots_in(&narrow, 3).collect::<Vec<_>>(), [3, 0, 255]);
        assert_eq!(slots_in(&wide, 3).collect::<Vec<_>>(), [3, 0, 255]);
        assert_eq!(slots_in(&[], 0).count(), 0);
    }

    #[test]
    fn kinds_of_requests_are_those_of_the_slots() {
        let (plain, random) = (Asked { bits: GREEDY, most_logprobs: 0 }, Asked { bits: TOP_P, most_logprobs: 0 });
        let mut books = SlotBooks::default();
        books.set(0, plain);
        books.set(3, plain);
        assert_eq!(books.kinds, [(plain, 2)]);
        books.set(3, random);
        assert_eq!(books.kinds, [(plain, 1), (random, 1)]);
        books.set(0, random);
        assert_eq!(books.kinds, [(random, 2)]);
        books.set(MOST_SLOTS, plain);
        assert_eq!(books.slots.len(), 4);
    }
}
