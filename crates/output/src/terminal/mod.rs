//! The summary that a person reads: plain text, 80 columns. One file for each section; [`summary`] has their order.

mod batch;
mod cpu;
mod forward;
mod gpu;
mod header;
mod kv_cache;
mod page;
mod profiler;
mod requests;

use std::path::Path;

use profilemate_analysis::Answers;
use profilemate_session::Session;

use crate::text::visible;

/// The summary; `tables` is the folder with the tables, when there are any.
pub fn summary(session: &Session, answers: &Answers, tables: Option<&Path>) -> String {
    let mut text = String::new();
    header::section(&mut text, session, answers);
    forward::section(&mut text, answers);
    gpu::section(&mut text, answers);
    cpu::section(&mut text, answers);
    batch::section(&mut text, answers);
    requests::section(&mut text, answers);
    kv_cache::section(&mut text, answers);
    // What to change (findings) comes here: after what was measured, before what the measuring cost.
    profiler::section(&mut text, session, answers);
    if let Some(tables) = tables {
        page::line(&mut text, "tables", &format!("{}/*.csv, *.json", visible(&tables.to_string_lossy())));
    }
    text
}
