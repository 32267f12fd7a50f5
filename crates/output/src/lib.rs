//! The tables and texts that a session is turned into: one file per format.
//!
//! ```text
//! tables     CSV and JSON files of a session folder; one file per profiler beside metadata
//! metadata   metadata.json
//! findings   findings.json
//! comparison what differs between runs, for a terminal and as JSON
//! html       report.html: a session as one page that needs nothing else
//! timeline   the trace that Perfetto shows
//! terminal   the summary that a person reads at the end of a run
//! explanation what `profilemate explain` says
//! cells      what a table is, whatever it is written as
//! csv        a table as text
//! arrow      a table as columns in memory
//! parquet    a table as columns in a file
//! text       ids and the like, made safe to show
//! replace    files that appear whole or not at all
//! ```

mod arrow;
mod cells;
pub mod comparison;
mod csv;
mod date;
pub mod explanation;
mod findings;
pub mod html;
mod metadata;
mod numbers;
mod parquet;
mod replace;
pub mod tables;
pub mod terminal;
pub mod text;
pub mod timeline;

use std::io;
use std::path::PathBuf;

/// Why tables could not be made. What was there before is left as it was.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The session cannot be read.
    #[error(transparent)]
    Session(#[from] profilemate_session::Error),
    /// Arrow does not take what it was given.
    #[error("cannot make columns of the table `{table}`: {cause}")]
    Columns {
        /// The table.
        table: &'static str,
        /// What Arrow said.
        cause: String,
    },
    /// A file cannot be written.
    #[error("cannot write {}: {cause}; the tables that were there are unchanged, and nothing recorded is lost. \
             Make room or choose another folder, then run `profilemate export`", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said: part of the message, and so no source of its own.
        cause: io::Error,
    },
    /// The file of a timeline cannot be written.
    #[error("cannot write {}: {cause}; nothing recorded is lost. Make room, or name another file with `--output`", .path.display())]
    WriteTimeline {
        /// The file.
        path: PathBuf,
        /// What the system said: part of the message, and so no source of its own.
        cause: io::Error,
    },
    /// Nothing went on in the part of a session that was asked for.
    #[error("nothing was recorded in that part of the session, which lasts {:.3} seconds: choose other times",
            *.duration_ns as f64 / 1e9)]
    NothingThere {
        /// How long the session was, nanoseconds.
        duration_ns: u64,
    },
}
