//! The tables of a session folder.

mod batch_utilization;
mod breakdown;
mod cpu_timing;
mod cuda_graphs;
mod encoder_decoder;
mod forward_pass;
mod gpu_memory;
mod kv_cache;
mod layers;
mod moe_experts;
mod requests;
mod rows;
mod sampling;

use std::collections::BTreeMap;
use std::path::Path;

use profilemate_analysis::facts::Facts;
use profilemate_analysis::{Answers, analyze};
use profilemate_session::Session;
use serde_json::Value;

use crate::Error;
use crate::cells::{Column, Table};
use crate::csv::{self, CsvTable};
use crate::html::{self, Report};
use crate::parquet::{self, ParquetTable};
use crate::replace::{NewFile, one_at_a_time};
use crate::text::json;
pub use rows::ArrowTable;
use rows::{ArrowRows, RowTables, Sink, TableName};

/// What tables are written as. The JSON documents are written in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Formats {
    /// CSV.
    pub csv: bool,
    /// Parquet.
    pub parquet: bool,
    /// The page [`html::FILE`] beside them.
    pub html: bool,
}

/// A table's files that are being written.
struct TableFiles {
    csv: Option<CsvTable>,
    parquet: Option<ParquetTable>,
}

impl TableFiles {
    fn create(folder: &Path, formats: Formats, name: TableName, columns: &[Column]) -> Result<Self, Error> {
        let file = |extension| NewFile::create_in(folder, name.folder, &format!("{}.{extension}", name.name));
        Ok(Self {
            csv: if formats.csv { Some(CsvTable::new(file(csv::EXTENSION)?, columns)?) } else { None },
            parquet: if formats.parquet {
                Some(ParquetTable::new(file(parquet::EXTENSION)?, columns)?)
            } else {
                None
            },
        })
    }

    fn into_files(self) -> Result<impl Iterator<Item = NewFile>, Error> {
        let parquet = self.parquet.map(ParquetTable::into_file).transpose()?;
        Ok(self.csv.map(CsvTable::into_file).into_iter().chain(parquet))
    }
}

impl Sink for TableFiles {
    #[inline]
    fn row<T: Table>(&mut self, row: &T::Row<'_>) -> Result<(), Error> {
        if let Some(csv) = &mut self.csv {
            csv.row::<T>(row)?;
        }
        if let Some(parquet) = &mut self.parquet {
            parquet.row::<T>(row)?;
        }
        Ok(())
    }
}

/// Makes every table of a session in `folder`, usually the session's own, in CSV. All appear together, or none does.
///
/// # Errors
/// When a segment cannot be read or a file cannot be written.
pub fn write(session: &Session, folder: &Path) -> Result<Answers, Error> {
    write_as(session, folder, Formats { csv: true, parquet: false, html: false })
}

/// As [`write()`], and the page [`html::FILE`] with them.
///
/// # Errors
/// As there.
pub fn write_with_report(session: &Session, folder: &Path) -> Result<Answers, Error> {
    write_as(session, folder, Formats { csv: true, parquet: false, html: true })
}

/// The same in the formats that are asked for.
///
/// # Errors
/// When a segment cannot be read or a file cannot be written.
pub fn write_as(session: &Session, folder: &Path, formats: Formats) -> Result<Answers, Error> {
    let _turn = one_at_a_time(folder)?;
    let mut rows = RowTables::create(&Facts::of(session), |name, columns| {
        TableFiles::create(folder, formats, name, columns).map(Some)
    })?;
    let mut report = formats.html.then(Report::default);
    let answers = analyze::<Error>(session, |row| {
        if let Some(report) = &mut report {
            report.see(&row);
        }
        rows.row(&row)
    })?;
    rows.rest(&answers)?;
    let mut files: Vec<NewFile> = Vec::new();
    for table in rows.into_tables() {
        files.extend(table.into_files()?);
    }
    if let Some(summary) = &answers.kv_cache {
        let mut file = NewFile::create(folder, kv_cache::SUMMARY_TEXT)?;
        file.append(kv_cache::summary_text(summary).as_bytes())?;
        files.push(file);
    }
    for (name, value) in texts(session, &answers) {
        let (inner, name) = name.rsplit_once('/').unwrap_or(("", name));
        let mut file = NewFile::create_in(folder, inner, name)?;
        file.append(json(&value).as_bytes())?;
        files.push(file);
    }
    if let Some(report) = report {
        let mut file = NewFile::create(folder, html::FILE)?;
        file.append(report.finish(session, &answers).as_bytes())?;
        files.push(file);
    }
    for file in &mut files {
        file.finish()?;
    }
    for file in files {
        file.keep()?;
    }
    Ok(answers)
}

/// The names of the tables that a session has, in the order in which they are always told.
pub fn names(session: &Session) -> Vec<&'static str> {
    let mut names = Vec::new();
    let tables = RowTables::<TableFiles>::create(&Facts::of(session), |name, _| {
        names.push(name.name);
        Ok(None)
    });
    debug_assert!(tables.is_ok(), "nothing is made that could fail");
    names
}

/// A session's answers, and those of its tables that are asked for by name, in memory. A name of a table that the session
/// does not have is passed over.
///
/// # Errors
/// When a segment cannot be read.
pub fn read(session: &Session, wanted: &[&str]) -> Result<(Answers, BTreeMap<&'static str, ArrowTable>), Error> {
    let mut rows = RowTables::create(&Facts::of(session), |name, columns| {
        Ok(wanted.contains(&name.name).then(|| ArrowRows::new(name.name, columns)))
    })?;
    let answers = analyze::<Error>(session, |row| rows.row(&row))?;
    rows.rest(&answers)?;
    let mut tables = BTreeMap::new();
    for table in rows.into_tables() {
        let table = table.finish()?;
        tables.insert(table.name, table);
    }
    Ok((answers, tables))
}

/// The files that are one JSON document each.
fn texts(session: &Session, answers: &Answers) -> impl Iterator<Item = (&'static str, Value)> {
    [
        answers.forward.as_ref().map(|summary| (forward_pass::SUMMARY, forward_pass::summary(summary))),
        answers.cpu.as_ref().map(|summary| (cpu_timing::SUMMARY, cpu_timing::summary(summary))),
        answers.batch.as_ref().map(|summary| (batch_utilization::SUMMARY, batch_utilization::summary(summary))),
        answers.requests.as_ref().map(|summary| (requests::SUMMARY, requests::summary(summary))),
        answers.kv_cache.as_ref().map(|summary| (kv_cache::SUMMARY, kv_cache::summary(summary))),
        answers.moe_experts.as_ref().map(|summary| (moe_experts::SUMMARY, moe_experts::summary(summary))),
        answers
            .encoder_decoder
            .as_ref()
            .map(|summary| (encoder_decoder::SUMMARY, encoder_decoder::summary(summary))),
        answers.sampling.as_ref().map(|summary| (sampling::SUMMARY, sampling::summary(summary))),
        answers.gpu_memory.as_ref().map(|gpus| (gpu_memory::SUMMARY, gpu_memory::summary(gpus))),
        answers.layers.as_ref().map(|summary| (layers::LAYERS, layers::layers(summary))),
        answers.layers.as_ref().map(|summary| (layers::COLLECTIVES, layers::collectives(summary))),
        breakdown::document(answers).map(|document| (breakdown::FILE, document)),
        Some((crate::findings::FILE, crate::findings::document(answers))),
        Some((crate::metadata::FILE, crate::metadata::metadata(session, answers))),
    ]
    .into_iter()
    .flatten()
}

/// All JSON documents of a session in one, by the names of their files without extension; and what of CUDA graphs stands in
/// a table.
pub fn documents(session: &Session, answers: &Answers) -> Value {
    let name = |file: &str| file.rsplit('/').next().unwrap_or(file).trim_end_matches(".json").to_owned();
    let graphs =
        answers.cuda_graphs.as_ref().map(|graphs| ("cuda_graph_usage".to_owned(), cuda_graphs::summary(graphs)));
    Value::Object(texts(session, answers).map(|(file, value)| (name(file), value)).chain(graphs).collect())
}

/// What a count is of, as a key; what is empty is not known.
pub(crate) fn named(what: &str) -> String {
    if what.is_empty() { "unknown".to_owned() } else { what.to_owned() }
}

/// A number in JSON; absent when it is none.
pub(crate) fn number(value: f64) -> Option<Value> {
    serde_json::Number::from_f64(value).map(Value::Number)
}

/// An object of those keys that have a value.
pub(crate) fn object<const N: usize>(entries: [(&str, Option<Value>); N]) -> Value {
    Value::Object(entries.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect())
}
