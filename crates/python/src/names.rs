//! Names of attributes, made once each.
//!
//! `pyo3::intern!` lets go of the GIL the first time that a name is asked for. If another thread forks just then, the thread
//! that makes the name does not exist in the child, and whoever asks for it there waits for ever. So these are made under the
//! GIL, without a lock: nothing can come in between, a fork by Python included.

use pyo3::prelude::*;
use pyo3::types::PyString;
use std::cell::UnsafeCell;

/// One name, at the place where it is used.
pub(crate) struct Name {
    text: &'static str,
    object: UnsafeCell<Option<Py<PyString>>>,
}

// SAFETY: reached only through `get`, which takes proof that the GIL is held. The module is built for the limited API, which
// free-threaded builds of CPython do not load.
unsafe impl Sync for Name {}

impl Name {
    pub(crate) const fn new(text: &'static str) -> Self {
        Self { text, object: UnsafeCell::new(None) }
    }

    /// The name as Python has it.
    #[inline]
    pub(crate) fn get<'py>(&'static self, py: Python<'py>) -> &'py Bound<'py, PyString> {
        // SAFETY: the GIL is held, so nobody changes it meanwhile; once it is there, nobody does.
        if let Some(object) = unsafe { &*self.object.get() } {
            return object.bind(py);
        }
        self.make(py)
    }

    #[cold]
    fn make<'py>(&'static self, py: Python<'py>) -> &'py Bound<'py, PyString> {
        // Strings are not tracked by the garbage collector, so that making one runs no other code.
        let object = PyString::intern(py, self.text).unbind();
        // SAFETY: as above; nobody has a reference to what is there, which is nothing.
        unsafe { (*self.object.get()).insert(object) }.bind(py)
    }
}

/// The interned string of this text: `name!(py, "attribute")`.
macro_rules! name {
    ($py:expr, $text:expr) => {{
        static NAME: $crate::names::Name = $crate::names::Name::new($text);
        NAME.get($py)
    }};
}
pub(crate) use name;
