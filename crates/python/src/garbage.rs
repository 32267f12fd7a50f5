//! Pauses of Python's garbage collector.
//!
//! CPython calls what is in `gc.callbacks` before and after each collection. Ours is a native function, so no Python frame
//! runs for it. The collector holds the GIL and never runs inside itself, so a start and the stop that follows are one
//! collection, in whichever thread it runs.
//!
//! A collection may begin wherever CPython makes an object that it tracks (to 3.11 inside of C functions, too). It cannot begin
//! while the state is lent out, because nothing there makes Python objects, see [`state::with`].

use crate::failure::{self, FAILURES_UNTIL_OFF, Fault};
use crate::names::name;
use crate::state::{self, ENGINE, SpanRecord, State, WORKER};
use profilemate_record::clock;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Name of the span, and of the probe in messages.
const NAME: &str = "garbage_collection";

/// What is remembered between the beginning of a collection and its end.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Collection {
    /// When it began, ticks; 0 = none is under way, as far as this log is concerned.
    begin: u64,
    /// Epoch in which it began: a log that was opened meanwhile did not see the beginning.
    epoch: u32,
    /// Id of the span's name in the log of an epoch.
    name: (u32, u32),
    failures: u32,
}

impl Collection {
    pub(crate) const NONE: Self = Self { begin: 0, epoch: 0, name: (0, 0), failures: 0 };
}

/// What CPython says of a collection that is over.
#[derive(Debug, Clone, Copy)]
struct Collected {
    generation: u64,
    /// Objects that were freed.
    freed: u64,
    /// Objects that could not be.
    kept: u64,
}

impl Collected {
    fn of(info: &Bound<'_, PyAny>) -> PyResult<Self> {
        let py = info.py();
        let info = info.cast::<PyDict>()?;
        let number = |key: &Bound<'_, PyString>| -> PyResult<u64> {
            let Some(value) = info.get_item(key)? else { return Ok(0) };
            // CPython has said -1 of collections that did not come to an end.
            Ok(u64::try_from(value.extract::<i64>()?).unwrap_or(0))
        };
        Ok(Self {
            generation: number(name!(py, "generation"))?,
            freed: number(name!(py, "collected"))?,
            kept: number(name!(py, "uncollectable"))?,
        })
    }
}

/// One of `gc.callbacks`: takes the time on "start" and writes a span on "stop".
#[pyfunction]
pub(crate) fn on_garbage_collection(py: Python<'_>, phase: &Bound<'_, PyAny>, info: &Bound<'_, PyAny>) {
    let entered = clock::ticks();
    let goes_on = state::with(py, |state| state.is_recording() && state.collection.failures < FAILURES_UNTIL_OFF);
    if !goes_on {
        return;
    }
    let result = catch_unwind(AssertUnwindSafe(|| see(py, phase, info, entered)));
    let what = match result {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(payload) => failure::panic_text(payload.as_ref()),
    };
    let failures = state::with(py, |state| {
        state.collection.begin = 0;
        state.collection.failures += 1;
        state.collection.failures
    });
    failure::report(py, NAME, &what, failures >= FAILURES_UNTIL_OFF);
}

fn see(py: Python<'_>, phase: &Bound<'_, PyAny>, info: &Bound<'_, PyAny>, entered: u64) -> PyResult<()> {
    let phase = phase.cast::<PyString>()?;
    if *phase == *"start" {
        state::with(py, |state| {
            state.collection.epoch = state.epoch;
            let begin = clock::ticks();
            state.collection.begin = begin;
            add_overhead(state, begin.wrapping_sub(entered));
        });
        return Ok(());
    }
    let begin = state::with(py, |state| {
        let begin = std::mem::take(&mut state.collection.begin);
        if state.collection.epoch == state.epoch { begin } else { 0 }
    });
    if begin == 0 || *phase != *"stop" {
        return Ok(());
    }
    let collected = match failure::requested_fault() {
        Fault::None => Collected::of(info)?,
        Fault::Raise => return Err(PyRuntimeError::new_err("a fault that was asked for")),
        Fault::Panic => panic!("a fault that was asked for"),
    };
    state::with(py, |state| {
        write(state, begin, entered, collected);
        add_overhead(state, clock::ticks().wrapping_sub(entered));
    });
    Ok(())
}

fn write(state: &mut State, begin: u64, end: u64, collected: Collected) {
    if state.collection.name.0 != state.epoch {
        state.collection.name = (state.epoch, state.intern(NAME));
    }
    let [engine, worker] = [ENGINE, WORKER].map(|lane| state.lanes[lane].step);
    let count = |objects: u64| objects.min(u32::MAX.into());
    let span = SpanRecord {
        name: state.collection.name.1,
        context: 0,
        begin,
        end,
        // The step that the process worked on last: in a process with both, the engine's.
        step: if engine == 0 { worker } else { engine },
        value_a: collected.generation,
        value_b: count(collected.freed) | count(collected.kept) << 32,
        label: state.label,
        raised: false,
        overhead_ticks: 0,
    };
    state.write_span(&span);
}

fn add_overhead(state: &mut State, ticks: u64) {
    if let Some(writer) = &mut state.writer {
        writer.add_overhead(ticks);
    }
}
