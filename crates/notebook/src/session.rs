//! A session, as Python sees it. The raw logs are analyzed when something of them is first asked for; a table is kept
//! from then on, so a session takes as much memory as the tables that were looked at.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use profilemate_output::tables::{self, ArrowTable};
use profilemate_output::text::{json, visible};
use profilemate_settings::Settings;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyIterator, PyList, PyTuple};
use serde_json::{Map, Value};

use crate::table::Table;
use crate::{failed, html};

/// The document that is no summary.
const METADATA: &str = "metadata";

/// What the names of most documents end with, and nobody has to write.
const SUFFIX: &str = "_summary";

/// What was read so far.
#[derive(Debug, Default)]
struct Read {
    documents: Option<Map<String, Value>>,
    tables: BTreeMap<&'static str, Arc<ArrowTable>>,
}

/// A session: one launch of vLLM, as it was recorded up to the moment it was opened.
#[pyclass(frozen, module = "profilemate")]
pub(crate) struct Session {
    recorded: profilemate_session::Session,
    tables: Vec<&'static str>,
    read: Mutex<Read>,
}

/// Opens a session: the folder that `profilemate run` named, or by default the newest in the output folder.
#[pyfunction]
#[pyo3(signature = (path = None))]
pub(crate) fn open_session(py: Python<'_>, path: Option<PathBuf>) -> PyResult<Session> {
    py.detach(|| {
        let folder = match path {
            Some(path) => path,
            None => profilemate_session::newest(Path::new(Settings::from_environment().0.text("output_dir")))?,
        };
        let session = profilemate_session::Session::open(&folder)?;
        let tables = tables::names(&session);
        Ok(Session { recorded: session, tables, read: Mutex::default() })
    })
    .map_err(|error: profilemate_session::Error| failed(error))
}

/// The documents of a session by name, and the table that was asked for.
type Found = (Map<String, Value>, Option<Arc<ArrowTable>>);

impl Session {
    /// Reads the raw logs for the documents, and for a table if one is named, unless that was done.
    fn read(&self, py: Python<'_>, table: Option<&'static str>) -> PyResult<Found> {
        py.detach(|| {
            let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
            let is_there = table.is_none_or(|name| read.tables.contains_key(name));
            if !is_there || read.documents.is_none() {
                let (answers, found) = tables::read(&self.recorded, table.as_slice())?;
                read.tables.extend(found.into_iter().map(|(name, table)| (name, Arc::new(table))));
                // What was told once stays told.
                if read.documents.is_none()
                    && let Value::Object(documents) = tables::documents(&self.recorded, &answers)
                {
                    read.documents = Some(documents);
                }
            }
            let documents = if table.is_none() { read.documents.clone().unwrap_or_default() } else { Map::new() };
            Ok((documents, table.and_then(|name| read.tables.get(name).cloned())))
        })
        .map_err(|error: profilemate_output::Error| failed(error))
    }

    fn documents(&self, py: Python<'_>) -> PyResult<Map<String, Value>> {
        Ok(self.read(py, None)?.0)
    }
}

/// A JSON document as Python's own objects.
fn python<'py>(py: Python<'py>, value: &Value) -> PyResult<Bound<'py, PyAny>> {
    py.import("json")?.call_method1("loads", (json(value),))
}

fn short(name: &str) -> &str {
    name.strip_suffix(SUFFIX).unwrap_or(name)
}

#[pymethods]
impl Session {
    /// The session's folder, as a `pathlib.Path`.
    #[getter]
    fn path(&self) -> PathBuf {
        self.recorded.folder.clone()
    }

    /// Its id: the name of the folder without `session_`.
    #[getter]
    fn id(&self) -> String {
        self.recorded.id()
    }

    /// The names of its tables. A profiler that was off, or could not attach, has none: see `metadata["profilers"]`.
    #[getter]
    fn tables<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        PyList::new(py, &self.tables)
    }

    /// A table, by name. The first time, the raw logs are read for it.
    fn table(&self, py: Python<'_>, name: &str) -> PyResult<Table> {
        let Some(known) = self.tables.iter().find(|known| **known == name) else {
            return Err(failed(format!(
                "session {} has no table '{name}': it has {}; what was off or could not attach is in \
                 metadata['profilers']",
                self.recorded.id(),
                listed(&self.tables)
            )));
        };
        match self.read(py, Some(known))?.1 {
            Some(table) => Ok(Table(table)),
            None => Err(failed(format!("the table '{name}' was not made"))),
        }
    }

    /// What vLLM ran as, what was recorded and what was lost: the content of `metadata.json`.
    #[getter]
    fn metadata<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        python(py, self.documents(py)?.get(METADATA).unwrap_or(&Value::Object(Map::new())))
    }

    /// All summaries by name: what stands in the JSON files beside the tables.
    #[getter]
    fn summaries<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let summaries = PyDict::new(py);
        for (name, value) in &self.documents(py)? {
            if name != METADATA {
                summaries.set_item(short(name), python(py, value)?)?;
            }
        }
        Ok(summaries)
    }

    /// One summary, by name, such as `forward_pass` or `breakdown`.
    fn summary<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
        let documents = self.documents(py)?;
        let mut summaries = documents.iter().filter(|(known, _)| *known != METADATA);
        if let Some((_, value)) = summaries.find(|(known, _)| *known == name || short(known) == name) {
            return python(py, value);
        }
        let known: Vec<&str> =
            documents.keys().filter(|known| *known != METADATA).map(|known| short(known)).collect();
        Err(failed(format!("session {} has no summary '{name}': it has {}", self.recorded.id(), listed(&known))))
    }

    fn __getitem__(&self, py: Python<'_>, name: &Bound<'_, PyAny>) -> PyResult<Table> {
        match name.extract::<String>() {
            Ok(name) => self.table(py, &name),
            Err(_) => Err(PyTypeError::new_err("a table is named by a text")),
        }
    }

    fn __contains__(&self, name: &Bound<'_, PyAny>) -> bool {
        name.extract::<String>().is_ok_and(|name| self.tables.contains(&&*name))
    }

    fn __len__(&self) -> usize {
        self.tables.len()
    }

    fn __iter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyIterator>> {
        PyTuple::new(py, &self.tables)?.try_iter()
    }

    fn __repr__(&self) -> String {
        format!("<profilemate.Session {}, {} tables>", visible(&self.recorded.id()), self.tables.len())
    }

    fn _repr_html_(&self) -> String {
        let mut page = format!("<b>session {}</b><ul>", html(&self.recorded.id()));
        for name in &self.tables {
            let _ = write!(page, "<li><code>{}</code></li>", html(name));
        }
        page + "</ul>"
    }
}

fn listed(names: &[&str]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}
