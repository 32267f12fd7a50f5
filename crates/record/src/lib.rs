//! The recorder: what runs inside vLLM's processes and writes their raw logs.
//!
//! A record is seven stores into a mapped file and one that commits it. Everything that can block (making files,
//! mapping, calibrating the clock, deleting) is done by one native thread per process, the [`keeper`], which never
//! takes Python's GIL. What was committed is in the page cache and survives the death of the process at any
//! instruction; it does not survive a crash of the machine.
//!
//! One [`Writer`] belongs to one thread at a time (in vLLM: to whoever holds the GIL).

pub mod clock;
pub mod fork;
mod guard;
mod keeper;
pub mod liveness;
mod mapping;
mod past;
pub mod session_folder;
mod writer;

pub use keeper::{be_silent, complain, start_thread};
pub use past::PastLog;
pub use writer::{Options, Writer};

/// Why a log could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be made, filled, mapped or locked.
    #[error("cannot {action} {path}: {source}")]
    File {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The keeper thread could not be started.
    #[error("cannot start the recorder's thread: {0}")]
    Thread(std::io::Error),
    /// Settings that no log can be made with.
    #[error("{0}")]
    Options(&'static str),
}

impl Error {
    pub(crate) fn file(action: &'static str, path: &std::path::Path, source: impl Into<std::io::Error>) -> Self {
        Self::File { action, path: path.display().to_string(), source: source.into() }
    }
}
