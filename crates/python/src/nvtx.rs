//! NVTX ranges around vLLM's functions that are hooked, for who captures with Nsight Systems. Off unless asked for.
//!
//! The ranges are made by torch's own binding (`torch._C._nvtx`), which asks for a listening tool once and costs one test per
//! call without. So nothing of NVIDIA's is built into this module.

use crate::hook::{VectorcallFunction, call_function};
use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, Ordering};
use pyo3::ffi::{self, PyObject};
use pyo3::prelude::*;

/// `rangePushA`; null = no ranges. Set once, never freed.
static PUSH: AtomicPtr<PyObject> = AtomicPtr::new(null_mut());
/// `rangePop`.
static POP: AtomicPtr<PyObject> = AtomicPtr::new(null_mut());

/// From here on each hook that records a span also makes an NVTX range of its name, with these functions: `push(name)` and `pop()`.
#[pyfunction]
pub(crate) fn use_nvtx(push: Py<PyAny>, pop: Py<PyAny>) {
    POP.store(pop.into_ptr(), Ordering::Relaxed);
    PUSH.store(push.into_ptr(), Ordering::Release);
}

/// A range that was begun, and is to be ended.
#[must_use]
pub(crate) struct Range(VectorcallFunction);

/// Begins a range, if there are to be any. `name` is a Python string; null = no range.
///
/// # Safety
/// The GIL is held, no exception is set, `name` is null or a live string.
#[inline]
pub(crate) unsafe fn begin(name: *mut PyObject) -> Option<Range> {
    let push = PUSH.load(Ordering::Acquire);
    if push.is_null() || name.is_null() {
        return None;
    }
    let call = call_function()?;
    // SAFETY: a live callable and one live argument.
    let level = unsafe { call(push, &raw const name, 1, null_mut()) };
    // SAFETY: the GIL is held; a null result has an exception set, which is nobody's but ours.
    unsafe {
        if level.is_null() {
            ffi::PyErr_Clear();
            stop();
            return None;
        }
        ffi::Py_DECREF(level);
    }
    Some(Range(call))
}

impl Range {
    /// Ends it. An exception of vLLM may be set, and stays.
    ///
    /// # Safety
    /// The GIL is held, and of the ranges of this thread that go on this one was begun last.
    #[inline]
    pub(crate) unsafe fn end(self) {
        let (mut kind, mut value, mut trace) = (null_mut(), null_mut(), null_mut());
        // SAFETY: the GIL is held. What is fetched is given back as it was.
        unsafe {
            ffi::PyErr_Fetch(&raw mut kind, &raw mut value, &raw mut trace);
            let level = (self.0)(POP.load(Ordering::Relaxed), core::ptr::null(), 0, null_mut());
            if level.is_null() {
                ffi::PyErr_Clear();
                stop();
            } else {
                ffi::Py_DECREF(level);
            }
            ffi::PyErr_Restore(kind, value, trace);
        }
    }
}

/// Torch's functions do not work here: no further ranges.
#[cold]
fn stop() {
    if !PUSH.swap(null_mut(), Ordering::AcqRel).is_null() {
        crate::failure::line("torch cannot make NVTX ranges here; there are none from now on");
    }
}
