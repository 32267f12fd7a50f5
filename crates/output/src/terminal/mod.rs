//! The summary that a person reads: 80 columns, 40 rows for a usual session. One file for each section; [`summary`] has
//! their order.

mod batch;
mod breakdown;
mod encoder_decoder;
mod findings;
mod forward;
mod gpu;
mod gpu_memory;
mod header;
mod kv_cache;
mod layers;
mod moe_experts;
pub(crate) mod page;
mod profiler;
mod requests;
mod sampling;

use std::path::Path;

use profilemate_analysis::Answers;
use profilemate_session::Session;

pub(crate) use self::findings::change;
use crate::text::visible;

/// The summary; `tables` is the folder with the tables, when there are any; it is named if it is not the session's own.
///
/// It is styled with ANSI escape codes, and nothing else in it is one, whatever clients sent: whoever prints it takes them out
/// where there is no terminal for them, or nobody wants them (`NO_COLOR`).
pub fn summary(session: &Session, answers: &Answers, tables: Option<&Path>) -> String {
    let mut text = String::new();
    header::section(&mut text, session, answers);
    breakdown::section(&mut text, answers);
    gpu::section(&mut text, answers);
    forward::section(&mut text, answers);
    layers::section(&mut text, answers);
    sampling::section(&mut text, answers);
    batch::section(&mut text, answers);
    requests::section(&mut text, answers);
    kv_cache::section(&mut text, answers);
    moe_experts::section(&mut text, answers);
    encoder_decoder::section(&mut text, answers);
    gpu_memory::section(&mut text, answers);
    findings::section(&mut text, answers);
    profiler::section(&mut text, session, answers);
    if let Some(tables) = tables.filter(|tables| *tables != session.folder) {
        page::line(&mut text, "tables", &format!("{}/*.csv, *.json", visible(&tables.to_string_lossy())));
    }
    page::fitted(&text)
}

/// A [`summary()`] that says where the page is that goes with it.
pub fn with_page(summary: &str, page: &Path) -> String {
    let mut text = summary.to_owned();
    page::line(&mut text, "page", &visible(&page.to_string_lossy()));
    page::fitted(&text)
}
