//! How many requests run and wait, without a call of Python.
//!
//! `Scheduler.get_request_counts` (0.11 to 0.33) gives `len(self.running)` and the sum of the lengths of its queues, and the queues
//! have a `__len__` of their own: four Python functions in every step. What they do is read from their code once; a
//! function that does anything else is called. That the two agree is looked at again now and then.

use super::length;
use crate::failure;
use crate::names::name;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyAnyMethods, PyInt, PyString, PyTuple, PyType};

/// Most queues that are added up.
const MOST_QUEUES: usize = 4;

/// The first calls are compared with vLLM's function, and one in so many later on.
const COMPARED: u32 = 16;
const COMPARED_LATER: u32 = 1 << 12;

/// What `len(queue)` does.
#[derive(Debug)]
enum Length {
    /// As its base class, which is native, has it (`super().__len__()`).
    Native(ffi::lenfunc),
    /// It is the length of this attribute, a list.
    Attribute(Py<PyString>),
    /// What it does is not known: it is called.
    Any,
}

/// One of the queues that make up the waiting requests.
#[derive(Debug)]
struct Queue {
    attribute: Py<PyString>,
    /// The type that `length` is known of, kept alive.
    of: Option<Py<PyType>>,
    length: Length,
}

/// How the lengths of a scheduler's queues are found.
#[derive(Debug, Default)]
pub(super) struct Queues {
    /// `None` = not looked at yet; empty = the scheduler's own function is called.
    queues: Option<Vec<Queue>>,
    calls: u32,
}

impl Queues {
    /// Requests that run, and that wait.
    pub(super) fn lengths(&mut self, scheduler: &Bound<'_, PyAny>) -> PyResult<(u32, u32)> {
        let py = scheduler.py();
        let queues = match &mut self.queues {
            Some(queues) => queues,
            none => none.insert(queues_of(scheduler).unwrap_or_default()),
        };
        if queues.is_empty() {
            return scheduler.call_method0(name!(py, "get_request_counts"))?.extract();
        }
        let running = length(&scheduler.getattr(name!(py, "running"))?)?;
        let mut waiting = 0u32;
        for queue in queues {
            waiting = waiting.saturating_add(queue.length(scheduler)?);
        }
        self.calls = self.calls.wrapping_add(1);
        if self.calls < COMPARED || self.calls.is_multiple_of(COMPARED_LATER) {
            let found: (u32, u32) = scheduler.call_method0(name!(py, "get_request_counts"))?.extract()?;
            if found != (running, waiting) {
                self.queues = Some(Vec::new());
                let what = format!("{found:?} requests run and wait, not {:?}", (running, waiting));
                failure::report(py, "scheduler.queues", &what, true);
            }
            return Ok(found);
        }
        Ok((running, waiting))
    }
}

impl Queue {
    #[inline]
    fn length(&mut self, scheduler: &Bound<'_, PyAny>) -> PyResult<u32> {
        let py = scheduler.py();
        let queue = scheduler.getattr(self.attribute.bind(py))?;
        // SAFETY: live objects.
        let kind = unsafe { ffi::Py_TYPE(queue.as_ptr()) };
        if self.of.as_ref().is_none_or(|of| of.as_ptr() != kind.cast()) {
            // Python functions are in the class that defines them, so a type is looked at once.
            self.length = length_of(&queue.get_type());
            self.of = Some(queue.get_type().unbind());
        }
        match &self.length {
            // SAFETY: the slot of a base of the queue's type, which was checked to be laid out as that base.
            Length::Native(function) => match unsafe { function(queue.as_ptr()) } {
                ..0 => Err(PyErr::fetch(py)),
                length => Ok(u32::try_from(length).unwrap_or(u32::MAX)),
            },
            Length::Attribute(attribute) => length(&queue.getattr(attribute.bind(py))?),
            Length::Any => length(&queue),
        }
    }
}

/// The names that a Python function's code has, in the order of their first use; `None` for anything but a Python function
/// without constants (other than its docs) and variables of its own.
fn names_of(function: &Bound<'_, PyAny>) -> Option<Vec<String>> {
    let py = function.py();
    let code = function.getattr_opt(name!(py, "__code__")).ok()??;
    let arguments: usize = code.getattr(name!(py, "co_argcount")).ok()?.extract().ok()?;
    let variables = code.getattr(name!(py, "co_nlocals")).ok()?.extract::<usize>().ok()?;
    if arguments != 1 || variables != 1 {
        return None;
    }
    let constants = code.getattr(name!(py, "co_consts")).ok()?.cast_into::<PyTuple>().ok()?;
    if constants.iter().any(|constant| constant.is_instance_of::<PyInt>()) {
        return None;
    }
    code.getattr(name!(py, "co_names")).ok()?.extract().ok()
}

/// The queues that `get_request_counts` adds up, if that is what it does; `None` = it does something else.
fn queues_of(scheduler: &Bound<'_, PyAny>) -> Option<Vec<Queue>> {
    let py = scheduler.py();
    let names =
        names_of(&scheduler.getattr(name!(py, "get_request_counts")).ok()?.getattr(name!(py, "__func__")).ok()?)?;
    let [len, running, queues @ ..] = names.as_slice() else { return None };
    if len != "len" || running != "running" || queues.is_empty() || queues.len() > MOST_QUEUES {
        return None;
    }
    // It must be what it looks like: `running` and queues that have a length.
    scheduler.getattr(name!(py, "running")).ok()?.len().ok()?;
    queues
        .iter()
        .map(|queue| {
            scheduler.getattr(queue.as_str()).ok()?.len().ok()?;
            let attribute = PyString::intern(py, queue).unbind();
            Some(Queue { attribute, of: None, length: Length::Any })
        })
        .collect()
}

/// What `len` does with objects of this type.
fn length_of(kind: &Bound<'_, PyType>) -> Length {
    let py = kind.py();
    let find = || -> Option<Length> {
        let names = names_of(&kind.getattr(name!(py, "__len__")).ok()?)?;
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        match names.as_slice() {
            ["super", "__len__"] => {
                // Of vLLM's queue: its own function, and next in line the native one of `collections.deque`.
                let bases = kind.getattr(name!(py, "__mro__")).ok()?.cast_into::<PyTuple>().ok()?;
                let deque = py.import("collections").ok()?.getattr("deque").ok()?.cast_into::<PyType>().ok()?;
                if !bases.get_item(1).ok()?.is(&deque) {
                    return None;
                }
                // SAFETY: a live type; the slot is a `lenfunc` (CPython's "Type Object Structures"), and of a static type may be
                // asked for since 3.10.
                let slot = unsafe { ffi::PyType_GetSlot(deque.as_ptr().cast(), ffi::Py_sq_length) };
                if slot.is_null() {
                    return None;
                }
                // SAFETY: as above.
                Some(Length::Native(unsafe { std::mem::transmute::<*mut core::ffi::c_void, ffi::lenfunc>(slot) }))
            }
            ["len", attribute] => Some(Length::Attribute(PyString::intern(py, attribute).unbind())),
            _ => None,
        }
    };
    find().unwrap_or(Length::Any)
}
