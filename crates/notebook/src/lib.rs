//! `profilemate._session`: what a notebook sees of a session.
//!
//! [`session`] is the session, [`table`] one of its tables, which other libraries take through the Arrow `PyCapsule`
//! interface. Python loads this module when somebody opens a session, and never inside vLLM.

mod session;
mod table;

use pyo3::exceptions::PyException;
use pyo3::prelude::*;

pyo3::create_exception!(
    profilemate,
    SessionError,
    PyException,
    "A session, or something in it, that is not there or cannot be read; the message is one sentence."
);

/// What cannot be done, in Python's form.
fn failed(error: impl std::fmt::Display) -> PyErr {
    SessionError::new_err(profilemate_output::text::visible(&error.to_string()).into_owned())
}

/// Text for a page, where nothing in it is markup.
fn html(text: &str) -> String {
    let mut page = String::with_capacity(text.len());
    for letter in profilemate_output::text::visible(text).chars() {
        match letter {
            '&' => page.push_str("&amp;"),
            '<' => page.push_str("&lt;"),
            '>' => page.push_str("&gt;"),
            '"' => page.push_str("&quot;"),
            '\'' => page.push_str("&#39;"),
            other => page.push(other),
        }
    }
    page
}

/// Sessions of `ProfileMate`, for notebooks.
#[pymodule]
mod _session {
    #[pymodule_export]
    use crate::SessionError;
    #[pymodule_export]
    use crate::session::{Session, open_session};
    #[pymodule_export]
    use crate::table::Table;
}
