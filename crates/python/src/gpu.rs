//! Marks on the GPU's clock, where hooks ask for them.

use crate::hook::call_function;
use crate::state::{self, Cuda, SpanRecord, State, WORKER};
use crate::{device, experts};
use profilemate_cuda::{Clock, Counters, Driver, Mark, StepInfo, StepTimes, Stream, Timer};
use profilemate_format::record::{GpuCall, GpuStep, Label, Payload, Record};
use profilemate_record::{Writer, clock};
use pyo3::ffi;
use pyo3::prelude::*;
use std::cell::Cell;
use std::ptr::null_mut;
use std::time::Duration;

/// A step begins when the function is entered.
pub(crate) const STEP: u8 = 1;
/// The function is the forward pass.
pub(crate) const FORWARD: u8 = 2;
/// The forward pass begins when the function returns.
pub(crate) const FORWARD_BEGINS: u8 = 4;
/// The forward pass has ended when the function returns.
pub(crate) const FORWARD_ENDED: u8 = 8;
/// The function samples.
pub(crate) const SAMPLE: u8 = 16;
/// The function samples, follows on the forward pass at once, and little is launched between its end and the next mark.
pub(crate) const SAMPLE_FOLLOWS: u8 = 128;
/// The function drafts.
pub(crate) const DRAFT: u8 = 32;
/// The step has launched all it will when the function returns.
pub(crate) const STEP_ENDED: u8 = 64;

const ON_ENTRY: [(u8, Mark); 3] =
    [(FORWARD, Mark::ForwardBegin), (SAMPLE, Mark::SampleBegin), (DRAFT, Mark::DraftBegin)];

const ON_RETURN: [(u8, Mark); 5] = [
    (FORWARD_BEGINS, Mark::ForwardBegin),
    (FORWARD | FORWARD_ENDED, Mark::ForwardEnd),
    (SAMPLE, Mark::SampleEnd),
    (DRAFT, Mark::DraftEnd),
    (STEP_ENDED, Mark::StepEnd),
];

/// How long the end of a log waits for the reader. It takes microseconds, unless the driver itself hangs.
const READER_ENDS_WITHIN: Duration = Duration::from_secs(1);

/// Calls that are many in a step (a layer's cross-attention) are timed in one of so many steps: two events each, for every
/// layer, would cost a step that launches its kernels one by one several percent.
const SAMPLED_STEPS: u64 = 16;

/// Stack of the reader's thread: the driver's calls run on it, and what profilers hang into them.
const READER_STACK_BYTES: usize = 1 << 20;

thread_local! {
    /// The stream that this thread launches on, and the step in which it asked, as in `State::steps_begun`.
    static STREAM: Cell<(u64, Stream)> = const { Cell::new((0, Stream(0))) };
}

/// Times steps on the GPU from here on, if a driver is loaded and a thread can be had.
pub(crate) fn use_cuda(
    py: Python<'_>,
    stream_function: Py<PyAny>,
    device: Py<PyAny>,
    steps_in_flight: usize,
) -> bool {
    let Some(driver) = Driver::loaded() else { return false };
    let clock = Clock { ticks: clock::ticks, ticks_per_second: clock::ticks_per_second() };
    let (timer, reader) = Timer::new(driver, clock, steps_in_flight);
    let started = reader.start(|body| {
        let thread = profilemate_record::start_thread("profilemate-gpu", READER_STACK_BYTES, body)?;
        Ok(thread.thread().clone())
    });
    let Ok(reader) = started else { return false };
    let cuda = Cuda { timer, reader, noted_failures: 0, stream_function, device };
    let old = state::with(py, |state| state.cuda.replace(cuda));
    drop(old);
    true
}

/// Writes what the GPU has passed, and ends the timing in order.
pub(crate) fn close(cuda: Cuda, writer: &mut Writer) {
    let Cuda { timer, reader, mut noted_failures, .. } = cuda;
    let counters = timer.close(|| reader.stop(READER_ENDS_WITHIN), |times| write_times(writer, times));
    note_failures(&counters, &mut noted_failures, writer);
}

/// A function with these marks is entered.
#[inline]
pub(crate) fn entered(py: Python<'_>, bits: u8) {
    if bits & STEP != 0 {
        let ticks = clock::ticks();
        state::with(py, |state| begin_step(state, ticks));
        device::begin_step(py, ticks);
        experts::begin_step(py, ticks);
    }
    mark(py, bits, &ON_ENTRY);
}

/// A function with these marks has returned; no exception is set.
#[inline]
pub(crate) fn returned(py: Python<'_>, bits: u8) {
    if bits & SAMPLE_FOLLOWS != 0 {
        state::with(py, |state| {
            if let (Some(cuda), Label::Work) = (&mut state.cuda, state.label) {
                cuda.timer.sample_ends_next();
            }
        });
    }
    mark(py, bits, &ON_RETURN);
    if bits & (FORWARD_BEGINS | FORWARD_ENDED) != 0 {
        let ticks = clock::ticks();
        state::with(py, |state| {
            if bits & FORWARD_BEGINS != 0 {
                state.lanes[WORKER].forward_begin = ticks;
            }
            if bits & FORWARD_ENDED != 0 {
                write_forward(state, ticks);
            }
        });
    }
}

fn begin_step(state: &mut State, ticks: u64) {
    let lane = &mut state.lanes[WORKER];
    (lane.descriptor, lane.padded_tokens, lane.forward_begin, lane.calls) = (0, 0, 0, 0);
    if state.label == Label::Work {
        lane.is_sampled = lane.steps.is_multiple_of(SAMPLED_STEPS);
        lane.steps += 1;
    }
    let info = StepInfo { step: lane.step, ticks, ..StepInfo::default() };
    let State { cuda, writer, label, steps_begun, .. } = state;
    if let (Some(cuda), Some(writer), Label::Work) = (cuda, writer, *label) {
        *steps_begun += 1;
        cuda.timer.begin_step(info, |times| write_times(writer, times));
        note_failures(&cuda.timer.counters(), &mut cuda.noted_failures, writer);
    }
}

/// A call inside a step begins that is timed by itself; its number in the step, if it has one.
pub(crate) fn call_begins(py: Python<'_>) -> Option<u32> {
    let number = state::with(py, |state| {
        let lane = &mut state.lanes[WORKER];
        (state.label == Label::Work).then(|| {
            lane.calls += 1;
            lane.calls - 1
        })
    })?;
    if let Some(stream) = current_stream(py) {
        state::with(py, |state| {
            if let Some(cuda) = &mut state.cuda {
                cuda.timer.begin_call(number, stream, clock::ticks());
            }
        });
    }
    Some(number)
}

/// The call with this number has ended. If it `raised`, an exception is set, and no Python code runs here.
pub(crate) fn call_ended(py: Python<'_>, number: u32, raised: bool) {
    let stream = if raised { None } else { current_stream(py) };
    state::with(py, |state| {
        if let Some(cuda) = &mut state.cuda {
            match stream {
                Some(stream) => cuda.timer.end_call(number, stream),
                None => cuda.timer.abandon_call(),
            }
        }
    });
}

/// Errors of the driver, and the end of the reader, count as failures of a probe.
#[inline]
fn note_failures(counters: &Counters, noted: &mut u64, writer: &mut Writer) {
    let failures = counters.failures + u64::from(counters.reader_died);
    if failures != *noted {
        note_new_failures(counters, failures - *noted, writer);
        *noted = failures;
    }
}

#[cold]
fn note_new_failures(counters: &Counters, new: u64, writer: &mut Writer) {
    // Few at most: the timer is switched off after some.
    for _ in 0..new {
        writer.count_probe_error();
    }
    let newest = counters.last_failure.map_or(0, |failure| failure.0);
    let end = if counters.reader_died { "; the thread that reads events ended" } else { "" };
    writer.fact(
        "probe_error:cuda_events",
        &format!("{} errors of the driver, newest {newest}{end}", counters.failures),
    );
}

/// Writes the times of a step, or of a call inside one, that the GPU has finished.
fn write_times(writer: &mut Writer, times: &StepTimes) {
    let waited = u128::from(times.found_ticks.saturating_sub(times.info.ticks)) * 1_000_000;
    let read_after_us = u32::try_from(waited / u128::from(clock::ticks_per_second())).unwrap_or(u32::MAX);
    if let Some(call) = times.info.call {
        let payload = Payload::GpuCall(GpuCall {
            ms: times.forward_ms,
            after_ms: times.idle_before_ms,
            call,
            read_after_us,
        });
        let (ticks, step) = (times.info.ticks, times.info.step);
        writer.push(&Record { ticks, step, label: Label::Work, flags: 0, name: 0, payload });
        return;
    }
    let payload = Payload::GpuStep(GpuStep {
        forward_ms: times.forward_ms,
        sample_ms: times.sample_ms,
        idle_before_ms: times.idle_before_ms,
        draft_ms: times.draft_ms,
        busy_ms: times.busy_ms,
        padded_tokens: times.info.padded_tokens,
        descriptor: times.info.descriptor,
        read_after_us,
    });
    let (ticks, step) = (times.info.ticks, times.info.step);
    writer.push(&Record { ticks, step, label: Label::Work, flags: 0, name: 0, payload });
}

/// Writes the span of a forward pass that begins in one function and ends in another, on the host's clock.
fn write_forward(state: &mut State, end: u64) {
    if state.forward_name.0 != state.epoch
        && let Some(writer) = &mut state.writer
    {
        state.forward_name = (state.epoch, writer.intern("forward"));
    }
    let lane = &mut state.lanes[WORKER];
    let begin = std::mem::take(&mut lane.forward_begin);
    if begin == 0 {
        return;
    }
    let span = SpanRecord {
        name: state.forward_name.1,
        context: lane.descriptor,
        begin,
        end,
        step: lane.step,
        value_a: lane.value,
        value_b: lane.padded_tokens.into(),
        label: state.label,
        raised: false,
        overhead_ticks: 0,
    };
    state.write_span(&span);
}

#[inline]
fn mark(py: Python<'_>, bits: u8, places: &[(u8, Mark)]) {
    if places.iter().all(|(bit, _)| bits & bit == 0) {
        return;
    }
    let Some(stream) = current_stream(py) else { return };
    state::with(py, |state| {
        if let Some(cuda) = &mut state.cuda {
            for (_, mark) in places.iter().filter(|(bit, _)| bits & bit != 0) {
                cuda.timer.mark(*mark, stream, clock::ticks());
            }
        }
    });
}

/// The stream that torch launches on in this thread, if a step takes marks at this moment.
///
/// Torch is asked once per step and thread. Inside a step vLLM changes its thread's stream only in `with` blocks that
/// change it back (copies of outputs and drafts), and no function that we mark is called in one; V2 itself remembers its
/// stream for good (`GPUModelRunner.main_stream`). Micro-batches run on threads of their own, which have their own stream
/// here as in torch.
fn current_stream(py: Python<'_>) -> Option<Stream> {
    let (step, function, device) = state::with(py, |state| {
        // A forked child is not recording, and must not ask its parent's driver.
        if state.label != Label::Work || !state.is_recording() {
            return None;
        }
        let cuda = state.cuda.as_ref().filter(|cuda| cuda.timer.takes_marks())?;
        Some((state.steps_begun, cuda.stream_function.as_ptr(), cuda.device.as_ptr()))
    })?;
    let (asked_in, stream) = STREAM.get();
    if asked_in == step {
        return Some(stream);
    }
    let Some(stream) = ask_for_stream(py, function, device) else {
        // Without a stream there is nothing to time; the wall clock goes on.
        let lost = state::with(py, |state| state.cuda.take());
        drop(lost);
        return None;
    };
    STREAM.set((step, stream));
    Some(stream)
}

/// What torch's function says; `None`: it failed, or there is no way to call it.
pub(crate) fn ask_for_stream(
    _gil: Python<'_>,
    function: *mut ffi::PyObject,
    device: *mut ffi::PyObject,
) -> Option<Stream> {
    let call = call_function()?;
    // SAFETY: the GIL is held and no exception is set (callers see to it); both objects are kept by the state; what
    // torch returns is a new reference, and the number is read before it is released.
    unsafe {
        let result = call(function, &raw const device, 1, null_mut());
        let stream = if result.is_null() { usize::MAX } else { ffi::PyLong_AsSize_t(result) };
        if !result.is_null() {
            ffi::Py_DECREF(result);
        }
        if ffi::PyErr_Occurred().is_null() {
            return Some(Stream(stream));
        }
        ffi::PyErr_Clear();
    }
    None
}
