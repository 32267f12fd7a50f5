//! `report.html`: a session as one page that needs nothing else, neither a network nor another file.
//!
//! ```text
//! sections   what is gathered while rows go by, and the sections made of it
//! sampling   long runs in few points, without losing an extreme
//! model      what is on a page: tables, charts, sentences
//! comparison the page of a comparison
//! page       the page's HTML: the model as data, and the script and styles that draw it
//! ```
//!
//! Rows are seen one by one and kept in a bounded size, so a page is as large for a day as for an hour.

mod comparison;
mod model;
mod page;
mod sampling;
mod sections;

use std::io;
use std::path::Path;

use profilemate_analysis::{Answers, Row};
use profilemate_session::Session;

use crate::Error;
use crate::replace::{NewFile, one_at_a_time};
use model::{Number, Page};

pub use comparison::comparison;

/// The page's name in a session folder.
pub const FILE: &str = "report.html";

/// A page of a session that is being made: it sees each row of the analysis, and then the answers.
pub struct Report {
    steps: sections::steps::Gathered,
    requests: sections::requests::Gathered,
    kv_cache: sections::kv_cache::Gathered,
    cuda_graphs: sections::cuda_graphs::Gathered,
    layers: sections::layers::Gathered,
    moe_experts: sections::moe_experts::Gathered,
    encoder_decoder: sections::encoder_decoder::Gathered,
    sampling: sections::token_sampling::Gathered,
    gpu_memory: sections::gpu_memory::Gathered,
}

impl Default for Report {
    fn default() -> Self {
        Self {
            steps: sections::steps::Gathered::new(),
            requests: sections::requests::Gathered::new(),
            kv_cache: sections::kv_cache::Gathered::new(),
            cuda_graphs: sections::cuda_graphs::Gathered::default(),
            layers: sections::layers::Gathered::default(),
            moe_experts: sections::moe_experts::Gathered::new(),
            encoder_decoder: sections::encoder_decoder::Gathered::new(),
            sampling: sections::token_sampling::Gathered::new(),
            gpu_memory: sections::gpu_memory::Gathered::new(),
        }
    }
}

impl Report {
    /// Takes note of a row.
    #[inline]
    pub fn see(&mut self, row: &Row<'_>) {
        match row {
            Row::Forward(pass) => self.steps.see_pass(pass),
            Row::Cpu(operation) => self.steps.see_operation(operation),
            Row::Batch(batch) => self.steps.see_batch(batch),
            Row::Capture(capture) => self.cuda_graphs.see(capture),
            Row::Lifecycle(request) => self.requests.see(request),
            Row::RequestEvent(event) => self.requests.see_event(event),
            Row::KvUsage(usage) => self.kv_cache.see(usage),
            Row::Layer(interval) => self.layers.see(interval),
            Row::Collective(collective) => self.layers.see_collective(collective),
            Row::ExpertInterval(interval) => self.moe_experts.see(interval),
            Row::Component(timed) => self.encoder_decoder.see(timed),
            Row::Sampling(sampled) => self.sampling.see(sampled),
            Row::GpuMemory(sample) => self.gpu_memory.see(sample),
            // Evictions are counted in the usage; the others are summed up in the answers, or are for timelines.
            Row::KvEviction(_) | Row::Replay(_) | Row::Step(_) | Row::Span(_) | Row::FirstToken(_) => {}
        }
    }

    /// The page.
    pub fn finish(mut self, session: &Session, answers: &Answers) -> String {
        let seconds = |ns: i64| Number(ns as f64 / 1e9);
        let whole = (0, i64::try_from(answers.duration_ns).unwrap_or(i64::MAX));
        let (from_ns, to_ns) = self.steps.range_ns().filter(|(from, to)| from < to).unwrap_or(whole);
        let sections = [
            Some(sections::findings::section(answers)),
            sections::breakdown::section(answers),
            self.requests.latency(answers),
            self.steps.throughput(answers),
            self.steps.batches(answers),
            self.requests.waterfall(),
            self.requests.preemptions(answers),
            self.kv_cache.section(answers),
            self.encoder_decoder.section(answers),
            self.steps.steps(answers),
            self.layers.section(answers),
            self.cuda_graphs.section(answers),
            self.moe_experts.section(answers),
            self.gpu_memory.section(answers),
            self.sampling.section(answers),
            Some(sections::session::cost(session, answers)),
            Some(sections::session::facts(session, answers)),
        ];
        page::render(&Page {
            title: format!("ProfileMate session {}", session.id()).into(),
            about: sections::overview::about(session, answers),
            warnings: sections::overview::warnings(session, answers),
            figures: sections::overview::figures(answers),
            range: [seconds(from_ns), seconds(to_ns)],
            sections: sections.into_iter().flatten().collect(),
        })
    }
}

/// Puts a page into a file, which appears whole or not at all.
///
/// # Errors
/// What the system said.
pub fn write(page: &str, path: &Path) -> io::Result<()> {
    let name = path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::IsADirectory, "it names no file"))?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let cause = |error: Error| match error {
        Error::Write { cause, .. } => cause,
        other => io::Error::other(other),
    };
    let _turn = one_at_a_time(folder).map_err(cause)?;
    let mut file = NewFile::create(folder, &name.to_string_lossy()).map_err(cause)?;
    file.append(page.as_bytes()).and_then(|()| file.finish()).and_then(|()| file.keep()).map_err(cause)
}
