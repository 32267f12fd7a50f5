//! The tables of a session folder.

mod batch_utilization;
mod breakdown;
mod cpu_timing;
mod cuda_graphs;
mod forward_pass;
mod kv_cache;
mod requests;

use std::path::Path;

use profilemate_analysis::facts::{Facts, Profiler};
use profilemate_analysis::{Answers, Row, analyze};
use profilemate_session::Session;
use serde_json::Value;

use crate::Error;
use crate::csv::Line;
use crate::replace::{NewFile, one_at_a_time};
use crate::text::json;

/// A table in CSV that is being written.
struct Csv {
    file: NewFile,
    line: Line,
}

impl Csv {
    fn create(folder: &Path, name: &str, columns: &[&str]) -> Result<Self, Error> {
        let mut file = NewFile::create(folder, name)?;
        file.write(columns.join(",").as_bytes())?;
        file.write(b"\n")?;
        Ok(Self { file, line: Line::default() })
    }

    /// Writes a row; `fill` puts its cells.
    #[inline]
    fn row(&mut self, fill: impl FnOnce(&mut Line)) -> Result<(), Error> {
        self.line.begin();
        fill(&mut self.line);
        self.file.write(self.line.end())
    }
}

/// A row of a table, if there is that table.
#[inline]
fn put(table: &mut Option<Csv>, fill: impl FnOnce(&mut Line)) -> Result<(), Error> {
    table.as_mut().map_or(Ok(()), |csv| csv.row(fill))
}

/// The tables that have rows, each as long as its profiler was on.
struct RowTables {
    forward: Option<Csv>,
    cpu: Option<Csv>,
    batch: Option<Csv>,
    captures: Option<Csv>,
    replays: Option<Csv>,
    lifecycles: Option<Csv>,
    request_events: Option<Csv>,
    kv_usage: Option<Csv>,
    kv_evictions: Option<Csv>,
}

impl RowTables {
    fn create(folder: &Path, facts: &Facts) -> Result<Self, Error> {
        let table = |profiler, name, columns| {
            facts.is_on(profiler).then(|| Csv::create(folder, name, columns)).transpose()
        };
        Ok(Self {
            forward: table(Profiler::ForwardPassTiming, forward_pass::TABLE, forward_pass::COLUMNS)?,
            cpu: table(Profiler::CpuTiming, cpu_timing::TABLE, cpu_timing::COLUMNS)?,
            batch: table(
                Profiler::BatchUtilizationTracking,
                batch_utilization::TABLE,
                batch_utilization::COLUMNS,
            )?,
            captures: table(Profiler::CudaGraphTracking, cuda_graphs::CAPTURES, cuda_graphs::CAPTURES_COLUMNS)?,
            replays: table(Profiler::CudaGraphTracking, cuda_graphs::TIMELINE, cuda_graphs::TIMELINE_COLUMNS)?,
            lifecycles: table(Profiler::PreemptionTracking, requests::LIFECYCLE, requests::LIFECYCLE_COLUMNS)?,
            request_events: table(Profiler::PreemptionTracking, requests::EVENTS, requests::EVENTS_COLUMNS)?,
            kv_usage: table(Profiler::KvCacheTracking, kv_cache::USAGE, kv_cache::USAGE_COLUMNS)?,
            kv_evictions: facts
                .sees_evictions()
                .then(|| Csv::create(folder, kv_cache::EVICTIONS, kv_cache::EVICTIONS_COLUMNS))
                .transpose()?,
        })
    }

    #[inline]
    fn row(&mut self, row: &Row<'_>) -> Result<(), Error> {
        match row {
            Row::Forward(pass) => put(&mut self.forward, |line| forward_pass::cells(pass, line)),
            Row::Cpu(operation) => put(&mut self.cpu, |line| cpu_timing::cells(operation, line)),
            Row::Batch(batch) => put(&mut self.batch, |line| batch_utilization::cells(batch, line)),
            Row::Capture(capture) => put(&mut self.captures, |line| cuda_graphs::capture(capture, line)),
            Row::Replay(replay) => put(&mut self.replays, |line| cuda_graphs::replay(replay, line)),
            Row::Lifecycle(request) => put(&mut self.lifecycles, |line| requests::lifecycle(request, line)),
            Row::RequestEvent(event) => put(&mut self.request_events, |line| requests::event(event, line)),
            Row::KvUsage(usage) => put(&mut self.kv_usage, |line| kv_cache::usage(usage, line)),
            Row::KvEviction(eviction) => put(&mut self.kv_evictions, |line| kv_cache::eviction(eviction, line)),
            Row::Step(_) => Ok(()),
        }
    }

    fn into_files(self) -> impl Iterator<Item = NewFile> {
        [
            self.forward,
            self.cpu,
            self.batch,
            self.captures,
            self.replays,
            self.lifecycles,
            self.request_events,
            self.kv_usage,
            self.kv_evictions,
        ]
        .into_iter()
        .flatten()
        .map(|csv| csv.file)
    }
}

/// Makes every table of a session in `folder`, usually the session's own. All appear together, or none does.
///
/// # Errors
/// When a segment cannot be read or a file cannot be written.
pub fn write(session: &Session, folder: &Path) -> Result<Answers, Error> {
    let _turn = one_at_a_time(folder)?;
    let mut rows = RowTables::create(folder, &Facts::of(session))?;
    let answers = analyze::<Error>(session, |row| rows.row(&row))?;
    let mut files: Vec<NewFile> = rows.into_files().collect();
    if let Some(summary) = &answers.cuda_graphs {
        let mut csv = Csv::create(folder, cuda_graphs::USAGE, cuda_graphs::USAGE_COLUMNS)?;
        for usage in &summary.usage {
            csv.row(|line| cuda_graphs::usage(usage, line))?;
        }
        files.push(csv.file);
    }
    if let Some(summary) = &answers.kv_cache {
        let mut file = NewFile::create(folder, kv_cache::SUMMARY_TEXT)?;
        file.write(kv_cache::summary_text(summary).as_bytes())?;
        files.push(file);
    }
    for (name, value) in texts(session, &answers) {
        let mut file = NewFile::create(folder, name)?;
        file.write(json(&value).as_bytes())?;
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

/// The files that are one JSON document each.
fn texts(session: &Session, answers: &Answers) -> impl Iterator<Item = (&'static str, Value)> {
    [
        answers.forward.as_ref().map(|summary| (forward_pass::SUMMARY, forward_pass::summary(summary))),
        answers.cpu.as_ref().map(|summary| (cpu_timing::SUMMARY, cpu_timing::summary(summary))),
        answers.batch.as_ref().map(|summary| (batch_utilization::SUMMARY, batch_utilization::summary(summary))),
        answers.requests.as_ref().map(|summary| (requests::SUMMARY, requests::summary(summary))),
        answers.kv_cache.as_ref().map(|summary| (kv_cache::SUMMARY, kv_cache::summary(summary))),
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
    let name = |file: &str| file.trim_end_matches(".json").to_owned();
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
