//! A table, as Python sees it.

use std::fmt::Write;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::ffi_stream::FFI_ArrowArrayStream;
use arrow_array::types::{Float64Type, Int32Type, Int64Type};
use arrow_array::{Array, ArrayRef, RecordBatchIterator};
use arrow_schema::ffi::FFI_ArrowSchema;
use arrow_schema::{ArrowError, DataType};
use profilemate_output::tables::ArrowTable;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyCapsule, PyList, PyString};

use crate::{failed, html};

/// Rows that are shown.
const SHOWN_ROWS: usize = 5;

/// A table of a session, in memory. Other libraries take it as it is, through the Arrow `PyCapsule` interface:
/// `polars.DataFrame(table)`, `pyarrow.table(table)`, `pandas.DataFrame.from_arrow(table)`.
#[pyclass(frozen, module = "profilemate")]
pub(crate) struct Table(pub(crate) Arc<ArrowTable>);

/// A column as it is handed to numpy: its name, what it holds, the values, which of them are missing (a byte each), and
/// the words that the values are numbers of.
type RawColumn<'py> = (String, &'static str, Bound<'py, PyAny>, Option<Bound<'py, PyBytes>>, Option<Vec<String>>);

impl Table {
    /// The batches of one column.
    fn column(&self, at: usize) -> impl Iterator<Item = &ArrayRef> {
        self.0.batches.iter().map(move |batch| batch.column(at))
    }

    /// The values of a column, with `missing` where there is none.
    fn values<T: Copy>(&self, at: usize, of: impl Fn(&dyn Array, usize) -> T, missing: T) -> Vec<T> {
        self.column(at)
            .flat_map(|array| {
                let of = &of;
                (0..array.len()).map(move |row| if array.is_null(row) { missing } else { of(array, row) })
            })
            .collect()
    }

    fn raw_column<'py>(&self, py: Python<'py>, at: usize) -> PyResult<RawColumn<'py>> {
        let field = self.0.schema.field(at);
        let missing = || {
            self.column(at).flat_map(|array| (0..array.len()).map(|row| u8::from(array.is_null(row)))).collect()
        };
        let masked = |missing: Vec<u8>| Some(PyBytes::new(py, &missing));
        let (kind, values, mask, words) = match field.data_type() {
            DataType::Float64 => {
                let values =
                    self.values(at, |array, row| array.as_primitive::<Float64Type>().value(row), f64::NAN);
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
                ("float64", PyBytes::new(py, &bytes).into_any(), None, None)
            }
            DataType::Int64 => {
                let values = self.values(at, |array, row| array.as_primitive::<Int64Type>().value(row), 0);
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
                ("int64", PyBytes::new(py, &bytes).into_any(), masked(missing()), None)
            }
            DataType::Boolean => {
                let bytes = self.values(at, |array, row| u8::from(array.as_boolean().value(row)), 0);
                ("bool", PyBytes::new(py, &bytes).into_any(), masked(missing()), None)
            }
            DataType::Dictionary(..) => {
                let key = |array: &dyn Array, row| array.as_dictionary::<Int32Type>().keys().value(row);
                let bytes: Vec<u8> =
                    self.values(at, key, -1).iter().flat_map(|value| value.to_ne_bytes()).collect();
                // The last batch knows the words of all.
                let words = self.column(at).last().map_or_else(Vec::new, |array| {
                    let words = array.as_dictionary::<Int32Type>().values().as_string::<i32>();
                    words.iter().flatten().map(str::to_owned).collect()
                });
                ("words", PyBytes::new(py, &bytes).into_any(), None, Some(words))
            }
            _ => {
                let texts = PyList::empty(py);
                for array in self.column(at) {
                    for text in array.as_string::<i32>() {
                        texts.append(text.map(|text| PyString::new(py, text)))?;
                    }
                }
                ("texts", texts.into_any(), None, None)
            }
        };
        Ok((field.name().clone(), kind, values, mask, words))
    }
}

/// A cell as text; empty where there is no value.
fn shown(array: &dyn Array, row: usize) -> String {
    if array.is_null(row) {
        return String::new();
    }
    match array.data_type() {
        DataType::Float64 => array.as_primitive::<Float64Type>().value(row).to_string(),
        DataType::Int64 => array.as_primitive::<Int64Type>().value(row).to_string(),
        DataType::Boolean => array.as_boolean().value(row).to_string(),
        DataType::Dictionary(..) => {
            let words = array.as_dictionary::<Int32Type>();
            words.key(row).map_or_else(String::new, |key| words.values().as_string::<i32>().value(key).to_owned())
        }
        _ => array.as_string::<i32>().value(row).to_owned(),
    }
}

#[pymethods]
impl Table {
    /// The table's name.
    #[getter]
    fn name(&self) -> &'static str {
        self.0.name
    }

    /// The names of its columns, in the order of the CSV file.
    #[getter]
    fn columns<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        PyList::new(py, self.0.schema.fields().iter().map(|field| field.name()))
    }

    fn __len__(&self) -> usize {
        self.0.rows()
    }

    /// The table as an Arrow C stream. The schema that is asked for is a wish that the protocol allows to pass over.
    #[pyo3(signature = (requested_schema = None))]
    fn __arrow_c_stream__<'py>(
        &self,
        py: Python<'py>,
        requested_schema: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyCapsule>> {
        drop(requested_schema);
        let batches: Vec<_> = self.0.batches.iter().cloned().map(Ok::<_, ArrowError>).collect();
        let reader = RecordBatchIterator::new(batches, Arc::clone(&self.0.schema));
        let stream = FFI_ArrowArrayStream::new(Box::new(reader));
        PyCapsule::new_with_value(py, stream, c"arrow_array_stream")
    }

    /// The table's columns and types as an Arrow C schema.
    fn __arrow_c_schema__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyCapsule>> {
        let schema = FFI_ArrowSchema::try_from(self.0.schema.as_ref()).map_err(failed)?;
        PyCapsule::new_with_value(py, schema, c"arrow_schema")
    }

    /// The table as a pandas `DataFrame`, with nothing but pandas.
    fn to_pandas<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        slf.py().import("profilemate._pandas")?.call_method1("data_frame", (slf,))
    }

    /// The columns for `to_pandas`.
    fn _raw_columns<'py>(&self, py: Python<'py>) -> PyResult<Vec<RawColumn<'py>>> {
        (0..self.0.schema.fields().len()).map(|at| self.raw_column(py, at)).collect()
    }

    fn __repr__(&self) -> String {
        let columns = self.0.schema.fields().len();
        format!("<profilemate.Table {}, {} rows x {columns} columns>", self.0.name, self.0.rows())
    }

    fn _repr_html_(&self) -> String {
        let rows = self.0.rows();
        let mut page = format!("<b>{}</b>, {rows} rows<table><thead><tr>", html(self.0.name));
        for field in self.0.schema.fields() {
            let _ = write!(page, "<th>{}</th>", html(field.name()));
        }
        page.push_str("</tr></thead><tbody>");
        if let Some(batch) = self.0.batches.first() {
            for row in 0..batch.num_rows().min(SHOWN_ROWS) {
                page.push_str("<tr>");
                for array in batch.columns() {
                    let _ = write!(page, "<td>{}</td>", html(&shown(array, row)));
                }
                page.push_str("</tr>");
            }
        }
        page.push_str("</tbody></table>");
        if rows > SHOWN_ROWS {
            let _ = write!(page, "and {} more rows", rows - SHOWN_ROWS);
        }
        page
    }
}
