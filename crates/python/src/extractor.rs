//! What is read of a call: by native functions, which make no Python object, or by Python ones, which may do anything.
//!
//! Between steps the caches belong to vLLM, so what counts is how little memory a call touches. A native extractor is called as a
//! Rust function, with the arguments where CPython put them, and gives its answer in registers and on the stack.

use crate::extract::{engine_core, front_end, requests, sampling, scheduler, worker};
use crate::state;
use pyo3::exceptions::PyTypeError;
use pyo3::ffi::{self, PyObject};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple};

/// What an extractor told us about a call.
#[derive(Clone, Copy, Default)]
pub(crate) struct Told {
    pub(crate) step: Option<u64>,
    pub(crate) value_a: Option<u64>,
    pub(crate) value_b: Option<u64>,
    /// Id of the text that it is the context of.
    pub(crate) context: Option<u32>,
    /// The step is from the extractor that ran after the call.
    pub(crate) step_is_new: bool,
    /// `False`: this call is not to be recorded.
    pub(crate) skip: bool,
}

impl Told {
    /// Nothing but the step that the call is of.
    pub(crate) fn step(step: u64) -> Self {
        Self { step: Some(step), ..Self::default() }
    }
}

/// A call that an extractor looks at: the function's arguments before it, its result and its first argument after it.
pub(crate) struct Call<'py> {
    py: Python<'py>,
    extractor: *mut PyObject,
    arguments: *const *mut PyObject,
    count: usize,
    /// Names of the arguments behind the first `count`; null = none.
    keywords: *mut PyObject,
}

impl<'py> Call<'py> {
    /// # Safety
    /// While this lives: the extractor and the arguments are live objects, and all is as vectorcall demands.
    pub(crate) unsafe fn new(
        py: Python<'py>,
        extractor: *mut PyObject,
        arguments: *const *mut PyObject,
        count: usize,
        keywords: *mut PyObject,
    ) -> Self {
        Self { py, extractor, arguments, count, keywords }
    }

    pub(crate) fn py(&self) -> Python<'py> {
        self.py
    }

    /// The extractor itself, as Python sees it.
    pub(crate) fn extractor(&self) -> Bound<'py, PyAny> {
        // SAFETY: live, by the promise of `new`.
        unsafe { Bound::from_borrowed_ptr(self.py, self.extractor) }
    }

    /// The argument at this place, where it was passed by place.
    pub(crate) fn at(&self, place: usize) -> Option<Bound<'py, PyAny>> {
        // SAFETY: there are `count` live arguments, by the promise of `new`.
        (place < self.count).then(|| unsafe { Bound::from_borrowed_ptr(self.py, *self.arguments.add(place)) })
    }

    /// The argument at this place or with this name; an error if it was not passed.
    pub(crate) fn argument(&self, place: usize, name: &Bound<'py, PyString>) -> PyResult<Bound<'py, PyAny>> {
        match self.at(place) {
            Some(argument) => Ok(argument),
            None => self.named(name)?.ok_or_else(|| PyTypeError::new_err(format!("there is no argument {name}"))),
        }
    }

    /// The argument with this name, where it was passed by name.
    #[cold]
    pub(crate) fn named(&self, name: &Bound<'py, PyString>) -> PyResult<Option<Bound<'py, PyAny>>> {
        if self.keywords.is_null() {
            return Ok(None);
        }
        // SAFETY: a live tuple, by the promise of `new`; an argument for each name lies behind the others.
        unsafe {
            let names = Bound::from_borrowed_ptr(self.py, self.keywords).cast_into::<PyTuple>()?;
            for (i, each) in names.iter().enumerate() {
                if each.eq(name)? {
                    return Ok(Some(Bound::from_borrowed_ptr(self.py, *self.arguments.add(self.count + i))));
                }
            }
        }
        Ok(None)
    }
}

/// A native extractor's function.
pub(crate) type Function = fn(&Call<'_>) -> PyResult<Told>;

/// A native extractor, for Python to pass on to a `Hook`.
#[pyclass(frozen, module = "profilemate._native")]
pub(crate) struct Extractor {
    name: &'static str,
    function: Function,
}

#[pymethods]
impl Extractor {
    fn __repr__(&self) -> String {
        format!("<profilemate extractor {}>", self.name)
    }
}

/// All of them, by the names that Python knows.
pub(crate) const EXTRACTORS: &[(&str, Function)] = &[
    ("before_process_input_queue", engine_core::before_process_input_queue),
    ("after_schedule", scheduler::after_schedule),
    ("before_update_from_output", scheduler::before_update_from_output),
    ("after_update_from_output", scheduler::after_update_from_output),
    ("before_add_request", requests::before_add_request),
    ("before_free_request", requests::before_free_request),
    ("before_execute_model", worker::before_execute_model),
    ("before_grammar_bitmask", sampling::before_grammar_bitmask),
    ("before_sample", sampling::before_sample),
    ("before_sampler_add_request", sampling::before_sampler_add_request),
    ("before_sample_v2", sampling::before_sample_v2),
    ("before_process_outputs", front_end::before_process_outputs),
    ("after_process_outputs", front_end::after_process_outputs),
    ("before_processor_add_request", front_end::before_processor_add_request),
];

impl Extractor {
    pub(crate) fn new(name: &'static str, function: Function) -> Self {
        Self { name, function }
    }

    /// The native function of what was given to a hook as an extractor; `None`: it is called as Python objects are.
    pub(crate) fn function_of(extractor: &Bound<'_, PyAny>) -> Option<Function> {
        if extractor.is_instance_of::<worker::Dispatch>() {
            return Some(worker::after_dispatch);
        }
        extractor.cast::<Self>().ok().map(|extractor| extractor.get().function)
    }
}

/// What a Python extractor returned: `None` → nothing · `False` → do not record · `int` → step · `(step | None, a[, b[, context]])`,
/// where a float stands for its bits.
pub(crate) fn told(object: &Bound<'_, PyAny>) -> PyResult<Told> {
    if object.is_none() {
        return Ok(Told::default());
    }
    if let Ok(tuple) = object.cast::<PyTuple>() {
        let number = |i: usize| -> PyResult<Option<u64>> {
            let Ok(item) = tuple.get_item(i) else { return Ok(None) };
            if item.is_none() {
                return Ok(None);
            }
            if let Ok(float) = item.cast::<pyo3::types::PyFloat>() {
                return Ok(Some(float.value().to_bits()));
            }
            item.extract().map(Some)
        };
        let context = match tuple.get_item(3) {
            Ok(text) if !text.is_none() => {
                let text: String = text.extract()?;
                Some(state::with(object.py(), |state| state.intern(&text)))
            }
            _ => None,
        };
        return Ok(Told {
            step: number(0)?,
            value_a: number(1)?,
            value_b: number(2)?,
            context,
            ..Told::default()
        });
    }
    if object.is(pyo3::types::PyBool::new(object.py(), false)) {
        return Ok(Told { skip: true, ..Told::default() });
    }
    Ok(Told::step(object.extract()?))
}

/// Calls a Python extractor; `None`: it raised, and the exception is set.
///
/// # Safety
/// The GIL is held, no exception is set, the arguments are as vectorcall demands.
pub(crate) unsafe fn call_python(
    py: Python<'_>,
    call: crate::hook::VectorcallFunction,
    extractor: *mut PyObject,
    arguments: *const *mut PyObject,
    count: usize,
    keywords: *mut PyObject,
) -> Option<PyResult<Told>> {
    // SAFETY: by the caller's promise; a new reference is returned.
    unsafe {
        let object = call(extractor, arguments, count, keywords);
        if object.is_null() {
            return None;
        }
        Some(told(&Bound::from_owned_ptr(py, object)))
    }
}

/// Calls an extractor, native or not, with these arguments: gives what a Python one would return. For tests, which put
/// something between a hook and its extractor.
#[pyfunction]
#[pyo3(signature = (extractor, *arguments, **keywords))]
pub(crate) fn extract<'py>(
    extractor: &Bound<'py, PyAny>,
    arguments: &Bound<'py, PyTuple>,
    keywords: Option<&Bound<'py, PyDict>>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = extractor.py();
    let Some(function) = Extractor::function_of(extractor) else {
        return extractor.call(arguments, keywords);
    };
    let mut all: Vec<_> = arguments.iter().collect();
    let mut keys = Vec::new();
    for (key, value) in keywords.into_iter().flatten() {
        keys.push(key);
        all.push(value);
    }
    let keys = PyTuple::new(py, keys)?;
    let pointers: Vec<_> = all.iter().map(Bound::as_ptr).collect();
    let names = if keys.is_empty() { std::ptr::null_mut() } else { keys.as_ptr() };
    // SAFETY: `all` and `keys` outlive the call, and lie as vectorcall has them.
    let call = unsafe { Call::new(py, extractor.as_ptr(), pointers.as_ptr(), arguments.len(), names) };
    let told = function(&call)?;
    if told.skip {
        return Ok(pyo3::types::PyBool::new(py, false).to_owned().into_any());
    }
    Ok((told.step, told.value_a, told.value_b).into_pyobject(py)?.into_any())
}

/// An exact number of Python's, read without making another one.
///
/// Errors: what Python raises for what is no number, or does not fit.
#[inline]
pub(crate) fn integer(object: &Bound<'_, PyAny>) -> PyResult<i64> {
    // SAFETY: a live object; the exception is asked for where the answer may be one.
    let value = unsafe { ffi::PyLong_AsLongLong(object.as_ptr()) };
    if value == -1
        && let Some(error) = PyErr::take(object.py())
    {
        return Err(error);
    }
    Ok(value)
}
