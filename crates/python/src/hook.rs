//! The object that stands in for a vLLM method: it times the call, records it, and lets everything through.
//!
//! A native callable with a vectorcall slot (PEP 590) and the method-descriptor flag, so that CPython calls it as it
//! calls a function, without making a bound method. The limited API below 3.12 knows the slot but not its names: the flag
//! bits and the `__vectorcalloffset__` member are written out here, and the call function is looked up by name.
//!
//! A call goes: `before` extractor, vLLM's function, `after` extractor, record. vLLM's result or exception passes
//! untouched, whatever happens on our side; see [`crate::failure`].

use crate::device;
use crate::extractor::{self, Call, Extractor, Told};
use crate::failure::{self, Caught, FAILURES_UNTIL_OFF, Fault};
use crate::gpu;
use crate::layers;
use crate::nvtx;
use crate::state::{self, LANES, SpanRecord};
use core::ffi::{c_char, c_int, c_uint, c_void};
use profilemate_format::record::Label;
use profilemate_record::clock;
use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyValueError};
use pyo3::ffi::{self, PyObject};
use pyo3::prelude::*;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null_mut;
use std::sync::OnceLock;

pub(crate) type VectorcallFunction =
    unsafe extern "C" fn(*mut PyObject, *const *mut PyObject, usize, *mut PyObject) -> *mut PyObject;

/// `Py_TPFLAGS_HAVE_VECTORCALL` (Include/cpython/object.h, the same in 3.8 to 3.14).
const HAVE_VECTORCALL: u64 = 1 << 11;
/// `Py_TPFLAGS_METHOD_DESCRIPTOR` (Include/object.h).
const METHOD_DESCRIPTOR: u64 = 1 << 17;
/// `PY_VECTORCALL_ARGUMENTS_OFFSET`: the caller lends the slot before the arguments.
const ARGUMENTS_OFFSET: usize = 1 << (usize::BITS - 1);
/// `T_OBJECT_EX`, `T_PYSSIZET`, `READONLY` (Include/structmember.h).
const T_PYSSIZET: c_int = 19;
const READONLY: c_int = 1;

unsafe extern "C" {
    fn PyMethod_New(function: *mut PyObject, instance: *mut PyObject) -> *mut PyObject;
    fn PyVectorcall_Call(callable: *mut PyObject, tuple: *mut PyObject, dict: *mut PyObject) -> *mut PyObject;
}

/// Only the extractors run; nothing is recorded by the hook itself.
const CALL: u8 = 0;
/// One span per call.
const SPAN: u8 = 1;
/// One span per call, and what happens inside is labelled warm-up.
const WARM_UP: u8 = 2;
/// One span per call, and what happens inside is labelled dummy (unless it is warm-up).
const DUMMY: u8 = 3;
/// Calls are added up; the hook that names this one as its `accumulator` writes the sum.
const ACCUMULATE: u8 = 4;
/// One span per call, which is timed by itself on the GPU, too.
const TIMED_SPAN: u8 = 5;
/// The same, in some steps only; in the others the call just passes.
const SAMPLED_SPAN: u8 = 6;

/// Numbers that Python passes to `Hook`.
pub(crate) const CONSTANTS: &[(&str, u8)] = &[
    ("CALL", CALL),
    ("SPAN", SPAN),
    ("WARM_UP", WARM_UP),
    ("DUMMY", DUMMY),
    ("ACCUMULATE", ACCUMULATE),
    ("TIMED_SPAN", TIMED_SPAN),
    ("SAMPLED_SPAN", SAMPLED_SPAN),
    ("MARK_STEP", gpu::STEP),
    ("MARK_FORWARD", gpu::FORWARD),
    ("MARK_FORWARD_BEGINS", gpu::FORWARD_BEGINS),
    ("MARK_FORWARD_ENDED", gpu::FORWARD_ENDED),
    ("MARK_SAMPLE", gpu::SAMPLE),
    ("MARK_SAMPLE_FOLLOWS", gpu::SAMPLE_FOLLOWS),
    ("MARK_DRAFT", gpu::DRAFT),
    ("MARK_STEP_ENDED", gpu::STEP_ENDED),
    ("FRONT_END", 0),
    ("ENGINE", 1),
    ("WORKER", 2),
    ("WORKER_OUTPUT", 3),
];

/// Groups of hooks that stand for one thing; a call inside a call of the same group is not counted again.
const MAX_GROUPS: u8 = 128;

thread_local! {
    /// Groups that this thread is inside of.
    static INSIDE: Cell<u128> = const { Cell::new(0) };
}

/// The bit of a group in [`INSIDE`].
#[inline]
fn group_bit(group: u8) -> u128 {
    if group == 0 { 0 } else { 1 << (group % MAX_GROUPS) }
}

/// What each call needs lies in front, so that it touches few cache lines.
#[repr(C)]
struct Hook {
    ob_base: PyObject,
    vectorcall: Option<VectorcallFunction>,
    /// vLLM's function.
    target: *mut PyObject,
    /// Extractors, and their functions where they are native; null = none.
    before: *mut PyObject,
    before_function: Option<extractor::Function>,
    after: *mut PyObject,
    after_function: Option<extractor::Function>,
    kind: u8,
    lane: u8,
    /// What it marks on the GPU's clock, see [`gpu`].
    marks: u8,
    /// Number of its group; 0 = none.
    group: u8,
    off: bool,
    /// This span closes a step: it carries the probes' cost since the last one.
    closes_step: bool,
    /// Calls without a step are not recorded.
    needs_step: bool,
    /// A failure that tests ask for.
    fault: Fault,
    /// Ids of the two names in the log of this epoch.
    name_id: u32,
    context_id: u32,
    epoch: u32,
    failures: u32,
    /// What is stamped on the GPU around it, and where in the model it is, see [`layers`]; 0 = nothing.
    stamp: u32,
    section: u32,
    /// The span's name as a Python string, for [`nvtx`]; null = no range.
    range_name: *mut PyObject,
    /// Calls that went through the probe, and what the probe itself took of them, in ticks.
    calls: u64,
    own_ticks: u64,
    accumulated_ticks: u64,
    accumulated_calls: u64,
    /// Hook whose sum this one writes; null = none.
    accumulator: *mut PyObject,
    overhead_seen: u64,
    /// Semantic name, for messages.
    name: *mut PyObject,
    /// Name of the span, and of its context (empty = none).
    span_name: *mut String,
    context: *mut String,
}

pub(crate) fn call_function() -> Option<VectorcallFunction> {
    static CALL_FUNCTION: OnceLock<Option<VectorcallFunction>> = OnceLock::new();
    *CALL_FUNCTION.get_or_init(|| {
        // PyObject_Vectorcall is exported from 3.11 on (in 3.10 it is inline), _PyFunction_Vectorcall in 3.8 to 3.12.
        for name in [c"PyObject_Vectorcall", c"_PyFunction_Vectorcall"] {
            // SAFETY: dlsym reads a terminated string.
            let function = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
            if !function.is_null() {
                // SAFETY: both symbols are functions of exactly this type (PEP 590).
                return Some(unsafe { std::mem::transmute::<*mut c_void, VectorcallFunction>(function) });
            }
        }
        None
    })
}

/// What came of an extractor.
enum Outcome {
    Told(Told),
    /// An exception that belongs to vLLM is set.
    Propagate,
}

impl Hook {
    /// Counts a failure and switches the probe off after a few.
    fn failed(&mut self, py: Python<'_>, what: &str) {
        self.failures += 1;
        self.off = self.failures >= FAILURES_UNTIL_OFF;
        // SAFETY: the GIL is held; `name` is owned by the hook.
        let name = unsafe { failure::text_of(py, self.name) };
        failure::report(py, &name, what, self.off);
    }

    /// The ids of the names in the log that is open now.
    fn refresh_names(&mut self, state: &mut state::State) {
        if self.epoch == state.epoch {
            return;
        }
        if let Some(writer) = &mut state.writer {
            // SAFETY: set once when the hook was made, never freed.
            let (name, context) = unsafe { (&*self.span_name, &*self.context) };
            self.name_id = if name.is_empty() { 0 } else { writer.intern(name) };
            self.context_id = if context.is_empty() { 0 } else { writer.intern(context) };
            self.overhead_seen = writer.overhead_ticks();
            self.epoch = state.epoch;
        }
    }
}

/// An extractor of a hook: the object, and its function where it is native.
#[derive(Clone, Copy)]
struct Part(*mut PyObject, Option<extractor::Function>);

/// Runs an extractor on these arguments and reads what it tells.
///
/// # Safety
/// The GIL is held, no exception is set, the arguments are as vectorcall demands.
#[inline]
unsafe fn extract(
    py: Python<'_>,
    hook: *mut Hook,
    part: Part,
    arguments: *const *mut PyObject,
    count: usize,
    keywords: *mut PyObject,
) -> Outcome {
    let Part(object, function) = part;
    let result = catch_unwind(AssertUnwindSafe(|| {
        let told = if let Some(function) = function {
            // SAFETY: by the caller's promise; the hook keeps its extractors.
            match function(&unsafe { Call::new(py, object, arguments, count, keywords) }) {
                Ok(told) => Ok(told),
                Err(error) => {
                    // It may be an exception that is not ours.
                    error.restore(py);
                    return None;
                }
            }
        } else if object.is_null() {
            Ok(Told::default())
        } else {
            // SAFETY: by the caller's promise.
            unsafe { extractor::call_python(py, call_function()?, object, arguments, count, keywords) }?
        };
        // SAFETY: hooks are never freed.
        Some(if unsafe { (*hook).fault } == Fault::None { told } else { fault_or(told) })
    }));
    if let Ok(Some(Ok(told))) = result {
        return Outcome::Told(told);
    }
    // SAFETY: as the caller promised; an exception is set if the result is `Ok(None)`.
    unsafe { no_extract(py, hook, result) }
}

/// An extractor failed.
///
/// # Safety
/// The GIL is held; an exception is set if the result is `Ok(None)`.
#[cold]
unsafe fn no_extract(
    py: Python<'_>,
    hook: *mut Hook,
    result: std::thread::Result<Option<PyResult<Told>>>,
) -> Outcome {
    let what = match result {
        Ok(Some(Ok(told))) => return Outcome::Told(told),
        Ok(Some(Err(error))) if failure::is_ours(py, &error) => error.to_string(),
        Ok(Some(Err(error))) => {
            error.restore(py);
            return Outcome::Propagate;
        }
        // SAFETY: by the caller's promise.
        Ok(None) => match unsafe { failure::take_exception(py) } {
            Caught::Ours(what) => what,
            Caught::NotOurs => return Outcome::Propagate,
        },
        Err(payload) => failure::panic_text(payload.as_ref()),
    };
    // SAFETY: hooks are never freed; nothing else holds a reference to it at this moment (the GIL is held).
    unsafe { (*hook).failed(py, &what) };
    Outcome::Told(Told { skip: true, ..Told::default() })
}

/// What an extractor told, or the failure that a test asked for in its place. It comes after the extractor: those that open
/// the log must do so, or the hooks that need one would be passed by and never fail.
#[cold]
fn fault_or(told: PyResult<Told>) -> PyResult<Told> {
    match failure::requested_fault() {
        Fault::None => told,
        Fault::Raise => Err(PyRuntimeError::new_err("a fault that was asked for")),
        Fault::Panic => panic!("a fault that was asked for"),
    }
}

/// One call of the probe in so many is timed where calls are added up: to look at the clock once more costs as much as the rest.
const TIMED: u64 = 16;

/// A call that is only added up: one of many in a step.
///
/// # Safety
/// As for [`call`], with a log open.
#[inline]
unsafe fn accumulate(
    py: Python<'_>,
    hook: *mut Hook,
    call_target: VectorcallFunction,
    [arguments, keywords]: [*const *mut PyObject; 2],
    count: usize,
    group: u128,
) -> *mut PyObject {
    // SAFETY: by the caller's promise.
    unsafe {
        INSIDE.set(INSIDE.get() | group);
        let begin = clock::ticks();
        let result = call_target((*hook).target, arguments, count, keywords.cast_mut().cast());
        let end = clock::ticks();
        INSIDE.set(INSIDE.get() & !group);
        (*hook).accumulated_ticks += end.wrapping_sub(begin);
        (*hook).accumulated_calls += 1;
        (*hook).calls += 1;
        if (*hook).calls.is_multiple_of(TIMED) {
            state::with(py, |state| {
                if let Some(writer) = &mut state.writer {
                    let ours = clock::ticks().wrapping_sub(end).saturating_mul(TIMED);
                    writer.add_overhead(ours);
                    (*hook).own_ticks = (*hook).own_ticks.wrapping_add(ours);
                }
            });
        }
        result
    }
}

/// The vectorcall slot.
unsafe extern "C" fn call(
    object: *mut PyObject,
    arguments: *const *mut PyObject,
    count: usize,
    keywords: *mut PyObject,
) -> *mut PyObject {
    let hook = object.cast::<Hook>();
    // SAFETY: CPython calls this slot with one of our objects, initialised by `new`, with the GIL held. Fields are read
    // through the raw pointer, never through a reference that lives across a call into Python, because the same hook may
    // be entered again meanwhile.
    unsafe {
        let Some(call_target) = call_function() else {
            // `new` refuses to make a hook without it.
            return null_mut();
        };
        let inside = INSIDE.get();
        let group = group_bit((*hook).group);
        let py = Python::assume_attached();
        if (*hook).off || inside & group != 0 || !recording_or_call(py, hook) {
            return call_target((*hook).target, arguments, count, keywords);
        }
        let has_extractor = !(*hook).before.is_null() || (*hook).fault != Fault::None;
        let is_bare = !has_extractor && (*hook).after.is_null() && (*hook).range_name.is_null();
        if (*hook).kind == ACCUMULATE && is_bare {
            return accumulate(py, hook, call_target, [arguments, keywords.cast_const().cast()], count, group);
        }
        let entered = clock::ticks();
        let mut told = Told::default();
        if has_extractor {
            let before = Part((*hook).before, (*hook).before_function);
            match extract(py, hook, before, arguments, count & !ARGUMENTS_OFFSET, keywords) {
                Outcome::Told(what) => told = what,
                Outcome::Propagate => return null_mut(),
            }
        }
        let label = enter(py, hook, &told);
        INSIDE.set(inside | group);
        if matches!((*hook).kind, WARM_UP | DUMMY) {
            guarded(py, hook, || device::leave_work(py));
        }
        let marks = (*hook).marks;
        if marks != 0 {
            guarded(py, hook, || gpu::entered(py, marks));
        }
        let range = nvtx::begin((*hook).range_name);
        let is_timed = matches!((*hook).kind, TIMED_SPAN | SAMPLED_SPAN);
        let number =
            if is_timed && !told.skip { guarded(py, hook, || gpu::call_begins(py)).flatten() } else { None };
        let (stamp, section) = ((*hook).stamp, (*hook).section);
        let is_stamped = stamp | section != 0;
        let stamped =
            if is_stamped { guarded(py, hook, || layers::entered(py, stamp, section)).unwrap_or(0) } else { 0 };
        let has_begun = has_extractor || marks != 0 || range.is_some() || is_timed || is_stamped;
        let begin = if has_begun { clock::ticks() } else { entered };
        let result = call_target((*hook).target, arguments, count, keywords);
        let end = clock::ticks();
        if is_stamped && !result.is_null() {
            guarded(py, hook, || layers::returned(py, stamped, section));
        }
        if let Some(number) = number {
            guarded(py, hook, || gpu::call_ended(py, number, result.is_null()));
        }
        if let Some(range) = range {
            range.end();
        }
        if marks != 0 && !result.is_null() {
            guarded(py, hook, || gpu::returned(py, marks));
        }
        INSIDE.set(INSIDE.get() & !group);
        if !(*hook).after.is_null() && !result.is_null() && !(*hook).off {
            let first = if count & !ARGUMENTS_OFFSET == 0 { ffi::Py_None() } else { *arguments };
            let after_arguments = [result, first];
            let after = Part((*hook).after, (*hook).after_function);
            match extract(py, hook, after, after_arguments.as_ptr(), 2, null_mut()) {
                Outcome::Told(what) => {
                    told.step_is_new = what.step.is_some();
                    told.step = what.step.or(told.step);
                    told.value_a = what.value_a.or(told.value_a);
                    told.value_b = what.value_b.or(told.value_b);
                    told.context = what.context.or(told.context);
                    told.skip |= what.skip;
                }
                Outcome::Propagate => {
                    leave(py, hook, &told, label, [entered, begin, end], true);
                    ffi::Py_DECREF(result);
                    return null_mut();
                }
            }
        }
        leave(py, hook, &told, label, [entered, begin, end], result.is_null());
        result
    }
}

/// Whether this call concerns us at all: there is a log, or the hook is there to open one; and it is not one of those that
/// pass in this step.
///
/// # Safety
/// `hook` is one of our objects.
#[inline]
unsafe fn recording_or_call(py: Python<'_>, hook: *mut Hook) -> bool {
    // SAFETY: by the caller's promise.
    let kind = unsafe { (*hook).kind };
    kind == CALL || state::with(py, |state| state.is_recording() && (kind != SAMPLED_SPAN || state.is_sampled()))
}

/// Does something about the GPU. A panic in it is a failure of the probe.
///
/// # Safety
/// `hook` is one of our objects.
#[inline]
unsafe fn guarded<T>(py: Python<'_>, hook: *mut Hook, ours: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(ours)) {
        Ok(done) => Some(done),
        Err(payload) => {
            // SAFETY: by the caller's promise; nothing else holds a reference to it at this moment (the GIL is held).
            // `failed` makes no Python objects but the text of our own name.
            unsafe { (*hook).failed(py, &failure::panic_text(payload.as_ref())) };
            None
        }
    }
}

/// What has to be set before vLLM's function runs. Returns the label to restore.
///
/// # Safety
/// `hook` is one of our objects and the GIL is held.
#[inline]
unsafe fn enter(py: Python<'_>, hook: *mut Hook, told: &Told) -> Label {
    state::with(py, |state| {
        let before = state.label;
        // SAFETY: by the caller's promise; no Python code runs while this reference lives.
        let hook = unsafe { &*hook };
        match hook.kind {
            WARM_UP => state.label = Label::WarmUp,
            DUMMY if before == Label::Work => state.label = Label::Dummy,
            _ => {}
        }
        let lane = &mut state.lanes[hook.lane as usize % LANES];
        if hook.closes_step && hook.needs_step {
            lane.seen = 0;
        }
        if let Some(step) = told.step {
            lane.step = step;
            if lane.seen == 0 {
                lane.seen = step;
            }
        }
        if let Some(value) = told.value_a {
            lane.value = value;
        }
        before
    })
}

/// Writes the record of a call. No Python code runs here: an exception of vLLM may be set.
///
/// # Safety
/// `hook` is one of our objects and the GIL is held.
#[inline]
unsafe fn leave(
    py: Python<'_>,
    hook: *mut Hook,
    told: &Told,
    label_before: Label,
    [entered, begin, end]: [u64; 3],
    raised: bool,
) {
    let written = catch_unwind(AssertUnwindSafe(|| {
        state::with(py, |state| {
            // SAFETY: by the caller's promise; no Python code runs while this reference lives.
            let hook = unsafe { &mut *hook };
            let label = state.label;
            state.label = label_before;
            if hook.kind == ACCUMULATE {
                hook.accumulated_ticks += end.wrapping_sub(begin);
                hook.accumulated_calls += 1;
            } else if hook.kind != CALL && state.is_recording() {
                write(state, hook, told, label, begin, end, raised);
            }
            if let Some(writer) = &mut state.writer {
                let ours = begin.wrapping_sub(entered).wrapping_add(clock::ticks().wrapping_sub(end));
                writer.add_overhead(ours);
                hook.calls += 1;
                hook.own_ticks = hook.own_ticks.wrapping_add(ours);
            }
        });
    }));
    if let Err(payload) = written {
        // SAFETY: by the caller's promise. `failed` makes no Python objects but the text of our own name.
        unsafe { (*hook).failed(py, &failure::panic_text(payload.as_ref())) };
    }
}

#[inline]
fn write(
    state: &mut state::State,
    hook: &mut Hook,
    told: &Told,
    label: Label,
    begin: u64,
    end: u64,
    raised: bool,
) {
    hook.refresh_names(state);
    let lane = &mut state.lanes[hook.lane as usize % LANES];
    if let (Some(step), true) = (told.step, told.step_is_new) {
        // It was made by this very call: scheduled, not updated.
        lane.step = step;
        lane.seen = step;
    }
    let step = if hook.closes_step && hook.needs_step { lane.seen } else { told.step.unwrap_or(lane.step) };
    let value_a = told.value_a.unwrap_or(lane.value);
    let is_forward = hook.marks & gpu::FORWARD != 0;
    let value_b = told.value_b.unwrap_or(if is_forward { lane.padded_tokens.into() } else { 0 });
    let context = if is_forward { lane.descriptor } else { told.context.unwrap_or(hook.context_id) };
    let skip = told.skip || hook.needs_step && step == 0;
    if !skip {
        let mut overhead_ticks = 0;
        if hook.closes_step {
            let total = state.writer.as_ref().map_or(0, profilemate_record::Writer::overhead_ticks);
            overhead_ticks = u32::try_from(total.wrapping_sub(hook.overhead_seen)).unwrap_or(u32::MAX);
            hook.overhead_seen = total;
        }
        state.write_span(&SpanRecord {
            name: hook.name_id,
            context,
            begin,
            end,
            step,
            value_a,
            value_b,
            label,
            raised,
            overhead_ticks,
        });
    }
    if !hook.accumulator.is_null() {
        // SAFETY: `new` accepts nothing but one of our objects, and keeps it alive. It is not `hook` itself, which did
        // not exist when it was passed.
        let sum = unsafe { &mut *hook.accumulator.cast::<Hook>() };
        if sum.accumulated_calls > 0 {
            sum.refresh_names(state);
            state.write_span(&SpanRecord {
                name: sum.name_id,
                context: sum.context_id,
                begin,
                end: begin.wrapping_add(sum.accumulated_ticks),
                step,
                value_a,
                value_b: sum.accumulated_calls,
                label,
                raised: false,
                overhead_ticks: 0,
            });
            (sum.accumulated_ticks, sum.accumulated_calls) = (0, 0);
        }
    }
}

/// `tp_descr_get`: binds like a function.
unsafe extern "C" fn bind(hook: *mut PyObject, instance: *mut PyObject, _owner: *mut PyObject) -> *mut PyObject {
    // SAFETY: CPython passes live objects.
    unsafe {
        if instance.is_null() || instance == ffi::Py_None() {
            ffi::Py_INCREF(hook);
            return hook;
        }
        PyMethod_New(hook, instance)
    }
}

/// `tp_getattro`: what the hook does not have itself, its function has: names, docs, annotations, attributes.
unsafe extern "C" fn get_attribute(object: *mut PyObject, name: *mut PyObject) -> *mut PyObject {
    const OWN: [&core::ffi::CStr; 9] = [
        c"__wrapped__",
        c"__class__",
        c"__reduce__",
        c"__reduce_ex__",
        c"__call__",
        c"__get__",
        c"__repr__",
        c"cost",
        c"failures",
    ];
    // SAFETY: CPython passes live objects; names are strings.
    unsafe {
        let own = OWN.iter().any(|own| ffi::PyUnicode_CompareWithASCIIString(name, own.as_ptr()) == 0);
        if own {
            ffi::PyObject_GenericGetAttr(object, name)
        } else {
            ffi::PyObject_GetAttr((*object.cast::<Hook>()).target, name)
        }
    }
}

/// `tp_setattro`: attributes are set on the function.
unsafe extern "C" fn set_attribute(object: *mut PyObject, name: *mut PyObject, value: *mut PyObject) -> c_int {
    // SAFETY: CPython passes live objects, and null for a deletion, which PyObject_SetAttr takes as well.
    unsafe { ffi::PyObject_SetAttr((*object.cast::<Hook>()).target, name, value) }
}

/// `__reduce__`: pickled by reference, as a function is.
unsafe extern "C" fn reduce(object: *mut PyObject, _: *mut PyObject) -> *mut PyObject {
    // SAFETY: CPython passes a live object of ours.
    unsafe { ffi::PyObject_GetAttrString((*object.cast::<Hook>()).target, c"__qualname__".as_ptr()) }
}

unsafe extern "C" fn repr(object: *mut PyObject) -> *mut PyObject {
    // SAFETY: CPython passes a live object of ours; the format takes one object.
    unsafe { ffi::PyUnicode_FromFormat(c"<profilemate hook of %R>".as_ptr(), (*object.cast::<Hook>()).target) }
}

/// `failures`: how often this probe failed so far.
unsafe extern "C" fn get_failures(object: *mut PyObject, _: *mut c_void) -> *mut PyObject {
    // SAFETY: CPython passes a live object of ours.
    unsafe { ffi::PyLong_FromUnsignedLong((*object.cast::<Hook>()).failures.into()) }
}

/// `cost`: calls that went through the probe, and the ticks that the probe itself took of them.
unsafe extern "C" fn get_cost(object: *mut PyObject, _: *mut c_void) -> *mut PyObject {
    // SAFETY: CPython passes a live object of ours; the format takes two 64-bit numbers.
    unsafe {
        let hook = object.cast::<Hook>();
        ffi::Py_BuildValue(c"(KK)".as_ptr(), (*hook).calls, (*hook).own_ticks)
    }
}

fn optional(object: Option<Bound<'_, PyAny>>) -> *mut PyObject {
    object.filter(|object| !object.is_none()).map_or(null_mut(), Bound::into_ptr)
}

/// `Hook(target, name, *, kind, span, context, lane, marks, stamp, section, group, closes_step, needs_step, before, after, accumulator)`.
unsafe extern "C" fn new(
    kind: *mut ffi::PyTypeObject,
    arguments: *mut PyObject,
    keywords: *mut PyObject,
) -> *mut PyObject {
    // SAFETY: CPython passes a tuple and a dict or null, with the GIL held.
    unsafe {
        let py = Python::assume_attached();
        let made = catch_unwind(AssertUnwindSafe(|| make(py, kind, arguments, keywords)));
        match made {
            Ok(Ok(object)) => object,
            Ok(Err(error)) => {
                error.restore(py);
                null_mut()
            }
            Err(_) => {
                PyRuntimeError::new_err("making a hook panicked").restore(py);
                null_mut()
            }
        }
    }
}

/// # Safety
/// As for `tp_new`.
unsafe fn make(
    py: Python<'_>,
    kind: *mut ffi::PyTypeObject,
    arguments: *mut PyObject,
    keywords: *mut PyObject,
) -> PyResult<*mut PyObject> {
    // SAFETY: a live tuple, by the caller's promise.
    let arguments = unsafe { Bound::from_borrowed_ptr(py, arguments) }.cast_into::<pyo3::types::PyTuple>()?;
    let keywords = if keywords.is_null() {
        pyo3::types::PyDict::new(py)
    } else {
        // SAFETY: a live dict, by the caller's promise.
        unsafe { Bound::from_borrowed_ptr(py, keywords) }.cast_into::<pyo3::types::PyDict>()?
    };
    let (target, name): (Bound<'_, PyAny>, Bound<'_, PyAny>) = arguments.extract()?;
    if !target.is_callable() {
        return Err(PyTypeError::new_err("the target of a hook must be callable"));
    }
    if call_function().is_none() {
        return Err(PyRuntimeError::new_err("this Python exports no vectorcall function"));
    }
    let text = |key: &str| -> PyResult<String> {
        keywords.get_item(key)?.map_or(Ok(String::new()), |value| value.extract())
    };
    let number = |key: &str| -> PyResult<u32> { keywords.get_item(key)?.map_or(Ok(0), |value| value.extract()) };
    let flag =
        |key: &str| -> PyResult<bool> { keywords.get_item(key)?.map_or(Ok(false), |value| value.extract()) };
    let accumulator = keywords.get_item("accumulator")?.filter(|hook| !hook.is_none());
    if let Some(hook) = &accumulator {
        // SAFETY: both are live objects.
        if unsafe { ffi::PyObject_TypeCheck(hook.as_ptr(), kind) } == 0 {
            return Err(PyTypeError::new_err("an accumulator is a hook"));
        }
    }
    let byte = |key: &str| -> PyResult<u8> {
        u8::try_from(number(key)?).map_err(|_| PyValueError::new_err(format!("{key} is out of range")))
    };
    let (hook_kind, lane, group, marks) = (byte("kind")?, byte("lane")?, byte("group")?, byte("marks")?);
    let (stamp, section) = (number("stamp")?, number("section")?);
    if group >= MAX_GROUPS {
        return Err(PyValueError::new_err("too many groups of hooks"));
    }
    let (span_name, context) = (Box::new(text("span")?), Box::new(text("context")?));
    let has_range = matches!(hook_kind, SPAN | WARM_UP | DUMMY) && !span_name.is_empty();
    let range_name = if has_range { pyo3::types::PyString::new(py, &span_name).into_ptr() } else { null_mut() };
    let (closes_step, needs_step) = (flag("closes_step")?, flag("needs_step")?);
    let (before, after) = (keywords.get_item("before")?, keywords.get_item("after")?);
    // SAFETY: `kind` is our heap type; PyType_GenericAlloc gives zeroed memory of its size, or null with an exception.
    unsafe {
        let object = ffi::PyType_GenericAlloc(kind, 0);
        if object.is_null() {
            return Err(PyErr::fetch(py));
        }
        let hook = object.cast::<Hook>();
        (*hook).vectorcall = Some(call);
        (*hook).target = target.into_ptr();
        (*hook).name = name.into_ptr();
        (*hook).before_function = before.as_ref().and_then(Extractor::function_of);
        (*hook).after_function = after.as_ref().and_then(Extractor::function_of);
        (*hook).before = optional(before);
        (*hook).after = optional(after);
        (*hook).fault = failure::requested_fault();
        // Hooks live as long as the class they are on; their names are never freed.
        (*hook).span_name = Box::into_raw(span_name);
        (*hook).context = Box::into_raw(context);
        (*hook).range_name = range_name;
        (*hook).kind = hook_kind;
        (*hook).lane = lane;
        (*hook).marks = marks;
        (*hook).stamp = stamp;
        (*hook).section = section;
        (*hook).closes_step = closes_step;
        (*hook).needs_step = needs_step;
        (*hook).group = group;
        (*hook).accumulator = optional(accumulator);
        Ok(object)
    }
}

/// The type `profilemate._native.Hook`.
pub(crate) fn make_type(py: Python<'_>) -> PyResult<Py<PyAny>> {
    let member = |name: &'static core::ffi::CStr, type_code, offset: usize| ffi::PyMemberDef {
        name: name.as_ptr(),
        type_code,
        offset: offset.cast_signed(),
        flags: READONLY,
        doc: std::ptr::null(),
    };
    // SAFETY: all-zero is the end mark of these tables (and a valid value of these plain C structs). Tables and strings
    // live as long as the type, which is never freed, so they are leaked.
    unsafe {
        let members = Box::leak(Box::new([
            member(c"__vectorcalloffset__", T_PYSSIZET, std::mem::offset_of!(Hook, vectorcall)),
            member(c"__wrapped__", 16, std::mem::offset_of!(Hook, target)),
            std::mem::zeroed(),
        ]));
        let mut reduce_method: ffi::PyMethodDef = std::mem::zeroed();
        reduce_method.ml_name = c"__reduce__".as_ptr();
        reduce_method.ml_meth = ffi::PyMethodDefPointer { PyCFunction: reduce };
        reduce_method.ml_flags = ffi::METH_NOARGS;
        let methods = Box::leak(Box::new([reduce_method, std::mem::zeroed()]));
        let mut failures: ffi::PyGetSetDef = std::mem::zeroed();
        failures.name = c"failures".as_ptr();
        failures.get = Some(get_failures);
        let mut cost: ffi::PyGetSetDef = std::mem::zeroed();
        cost.name = c"cost".as_ptr();
        cost.get = Some(get_cost);
        let getters = Box::leak(Box::new([failures, cost, std::mem::zeroed()]));
        let slot = |slot: c_int, pfunc: *mut c_void| ffi::PyType_Slot { slot, pfunc };
        let slots = Box::leak(Box::new([
            slot(ffi::Py_tp_new, new as *mut c_void),
            slot(ffi::Py_tp_call, PyVectorcall_Call as *mut c_void),
            slot(ffi::Py_tp_descr_get, bind as *mut c_void),
            slot(ffi::Py_tp_getattro, get_attribute as *mut c_void),
            slot(ffi::Py_tp_setattro, set_attribute as *mut c_void),
            slot(ffi::Py_tp_repr, repr as *mut c_void),
            slot(ffi::Py_tp_members, members.as_mut_ptr().cast()),
            slot(ffi::Py_tp_methods, methods.as_mut_ptr().cast()),
            slot(ffi::Py_tp_getset, getters.as_mut_ptr().cast()),
            std::mem::zeroed(),
        ]));
        let flags = ffi::Py_TPFLAGS_DEFAULT | HAVE_VECTORCALL | METHOD_DESCRIPTOR;
        let mut spec = ffi::PyType_Spec {
            name: c"profilemate._native.Hook".as_ptr().cast::<c_char>(),
            basicsize: c_int::try_from(size_of::<Hook>()).unwrap_or(c_int::MAX),
            itemsize: 0,
            flags: c_uint::try_from(flags).unwrap_or(0),
            slots: slots.as_mut_ptr(),
        };
        Bound::from_owned_ptr_or_err(py, ffi::PyType_FromSpec(&raw mut spec)).map(Bound::unbind)
    }
}
