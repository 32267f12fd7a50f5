//! What happens when something of ours fails inside vLLM: it is caught, counted, said once, and soon switched off.

use crate::state;
use pyo3::exceptions::PyException;
use pyo3::ffi::{self, PyObject};
use pyo3::panic::PanicException;
use pyo3::prelude::*;
use pyo3::type_object::PyTypeInfo;
use std::sync::atomic::{AtomicBool, Ordering};

/// Failures after which a probe is switched off.
pub(crate) const FAILURES_UNTIL_OFF: u32 = 3;

/// A failure that tests ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Fault {
    None = 0,
    Raise,
    Panic,
}

/// What `PROFILEMATE_FAULT` asks for; read once.
pub(crate) fn requested_fault() -> Fault {
    static FAULT: std::sync::OnceLock<Fault> = std::sync::OnceLock::new();
    *FAULT.get_or_init(|| match std::env::var(profilemate_settings::internal::FAULT).as_deref() {
        Ok("raise") => Fault::Raise,
        Ok("panic") => Fault::Panic,
        _ => Fault::None,
    })
}

/// One line on stderr, in one write; never on stdout, never a panic.
pub(crate) fn line(text: &str) {
    profilemate_record::complain(text);
}

/// Panics of ours are reported by [`report`], in one line, and not by the standard library in many. This module has
/// its own copy of the standard library, so nobody else's panics are silenced.
pub(crate) fn silence_panics() {
    std::panic::set_hook(Box::new(|_| {}));
}

/// Counts the failure of a probe, and says so if it is the first one in this process.
pub(crate) fn report(py: Python<'_>, probe: &str, what: &str, switched_off: bool) {
    static SAID: AtomicBool = AtomicBool::new(false);
    let what: String = what.chars().take(200).flat_map(char::escape_default).collect();
    state::with(py, |state| {
        if let Some(writer) = &mut state.writer {
            writer.count_probe_error();
            writer.fact(&format!("probe_error:{probe}"), &what);
            if switched_off {
                writer.fact(&format!("probe_off:{probe}"), "1");
            }
        }
    });
    if !SAID.swap(true, Ordering::Relaxed) {
        line(&format!(
            "probe {probe} failed ({what}); vLLM is not affected. A probe that fails {FAILURES_UNTIL_OFF} times is \
             switched off. Failures are counted in the session's metadata.json and not said again in this process"
        ));
    }
}

/// What was caught from a Python extractor.
pub(crate) enum Caught {
    /// An ordinary exception, or a panic of ours that PyO3 made one of: ours to swallow.
    Ours(String),
    /// Not an `Exception` (`KeyboardInterrupt`, `SystemExit`): a signal handler raised it while our code happened to
    /// run. It belongs to vLLM and is set again.
    NotOurs,
}

/// Whether an error is ours to swallow, see [`Caught`].
pub(crate) fn is_ours(py: Python<'_>, error: &PyErr) -> bool {
    error.is_instance_of::<PyException>(py) || error.is_instance_of::<PanicException>(py)
}

/// Takes the exception that is set.
///
/// # Safety
/// The GIL is held and an exception is set.
pub(crate) unsafe fn take_exception(py: Python<'_>) -> Caught {
    // SAFETY: the GIL is held, and an exception is set. PyO3's own `fetch` would go on with a panic, so it is not asked.
    let (is_panic, is_ours) = unsafe {
        let is_panic = ffi::PyErr_ExceptionMatches(PanicException::type_object_raw(py).cast()) != 0;
        (is_panic, is_panic || ffi::PyErr_ExceptionMatches(ffi::PyExc_Exception) != 0)
    };
    if !is_ours {
        return Caught::NotOurs;
    }
    if is_panic {
        // SAFETY: as above.
        unsafe { ffi::PyErr_Clear() };
        return Caught::Ours("panic".to_owned());
    }
    let error = PyErr::fetch(py);
    let name = error.get_type(py).name().map(|name| name.to_string()).unwrap_or_default();
    let message = error.value(py).str().map(|text| text.to_string()).unwrap_or_default();
    Caught::Ours(format!("{name}: {message}"))
}

/// Text of a panic.
pub(crate) fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned());
    format!("panic: {}", text.unwrap_or_default())
}

/// Text of a Python string object, for messages.
///
/// # Safety
/// The GIL is held and `object` is a live object or null.
pub(crate) unsafe fn text_of(py: Python<'_>, object: *mut PyObject) -> String {
    if object.is_null() {
        return String::new();
    }
    // SAFETY: a live object, by the caller's promise; a new reference is taken.
    let object = unsafe { Bound::from_borrowed_ptr(py, object) };
    object.str().map(|text| text.to_string()).unwrap_or_default()
}
