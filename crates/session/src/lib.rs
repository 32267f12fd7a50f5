//! A session folder, read into one model.
//!
//! [`Session::open`] surveys every file of `raw/`: which logs there are, who wrote them, which records are sound, and
//! what is damaged. [`Session::events`] then streams the records of all logs, on one clock and in the order in which
//! things ended. Neither holds records in memory, and neither trusts a byte that a checksum does not cover: damage
//! costs the damaged records, is named in [`Session::damage`] and never stops the rest.
//!
//! ```text
//! folder   which files belong to which log             name   what the names in records mean
//! log      one process's log: identity, extent, counts  event  one record on the session's clock
//! reader   slots of one log, in order                   merge  events of all logs, in order
//! clock    ticks to nanoseconds                      glance who writes, and did anything change
//! newest   which session of a folder is meant
//! ```

pub mod clock;
pub mod event;
mod folder;
pub mod glance;
pub mod log;
mod merge;
pub mod name;
mod newest;
mod reader;

use std::io;
use std::path::{Path, PathBuf};

pub use event::{Edge, Event};
pub use log::Log;
pub use merge::Events;
pub use name::{Component, Name};
pub use newest::newest;
pub use profilemate_format::head::{ClockSource, Role};
pub use profilemate_format::record::{self, GpuStep, Label, Payload, Record, Span};
pub use reader::Records;

use profilemate_format::RAW_FOLDER;

/// Why a session cannot be read at all. Damage inside it is no error, see [`Session::damage`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such folder.
    #[error("{} does not exist: give the session folder that `profilemate run` printed", .0.display())]
    Missing(PathBuf),
    /// The folder is something else.
    #[error("{} is not a session: it has no folder `{RAW_FOLDER}` with raw logs", .0.display())]
    NotASession(PathBuf),
    /// The folder holds no raw log.
    #[error("{} holds no raw log: nothing was recorded in this session", .0.display())]
    Empty(PathBuf),
    /// The sessions of a folder cannot be listed.
    #[error("cannot list the sessions in {} ({cause}): name a session folder", .path.display())]
    Unlisted {
        /// The folder.
        path: PathBuf,
        /// What the system said: part of the message, and so no source of its own.
        cause: io::Error,
    },
    /// An output folder holds no session.
    #[error("there is no session of yours in {}: run `profilemate run -- vllm serve …` first", .0.display())]
    NoSession(PathBuf),
    /// The system refused.
    #[error("cannot read {}: {cause}", .path.display())]
    Io {
        /// What was to be read.
        path: PathBuf,
        /// What the system said: part of the message, and so no source of its own.
        cause: io::Error,
    },
}

impl Error {
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        |cause| Self::Io { path, cause }
    }
}

/// Something in `raw/` that is not as a writer leaves it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Damage {
    /// Name of the file in `raw/`.
    pub file: String,
    /// What is wrong with it and what that costs, in a few words.
    pub what: String,
}

/// The moment that every time of a session counts from: the earliest clock anchor of its logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Start {
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub monotonic_ns: u64,
    /// `CLOCK_REALTIME`, nanoseconds since 1970; 0 = unknown.
    pub realtime_ns: u64,
}

/// A session.
#[derive(Debug)]
pub struct Session {
    /// The session folder, as an absolute path.
    pub folder: PathBuf,
    /// Every log that has a head, ordered by role, rank and pid.
    pub logs: Vec<Log>,
    /// What is damaged, ordered by file.
    pub damage: Vec<Damage>,
    /// Sound records in segments that no head describes: they are counted but cannot be understood.
    pub orphan_records: u64,
    /// Damaged slots in those segments.
    pub orphan_damaged: u64,
    /// Where times count from.
    pub start: Start,
}

impl Session {
    /// Surveys a session folder: reads every segment once, checks every record, keeps none.
    ///
    /// # Errors
    /// When `folder` is no session, holds no log, or cannot be listed.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let folder = match folder.canonicalize() {
            Ok(folder) => folder,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::Missing(folder.to_path_buf()));
            }
            Err(cause) => return Err(Error::Io { path: folder.to_path_buf(), cause }),
        };
        let raw = folder.join(RAW_FOLDER);
        match raw.metadata() {
            Ok(found) if found.is_dir() => {}
            // A session of another user cannot be looked into: that it is none would be wrong.
            Err(cause) if !matches!(cause.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Err(Error::Io { path: raw, cause });
            }
            _ => return Err(Error::NotASession(folder)),
        }
        let survey = folder::survey(&raw)?;
        if survey.logs.is_empty() && survey.orphan_records + survey.orphan_damaged == 0 {
            if let Some(damage) = survey.damage.first() {
                // Files are there, but no log: name one, so that a wrong folder can be told from a damaged one.
                let cause = io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("{}; there is no readable log beside it", damage.what),
                );
                return Err(Error::Io { path: raw.join(&damage.file), cause });
            }
            return Err(Error::Empty(folder));
        }
        let start = survey
            .logs
            .iter()
            .filter_map(|log| log.clock.first_anchor())
            .min_by_key(|anchor| anchor.monotonic_ns)
            .map(|anchor| Start { monotonic_ns: anchor.monotonic_ns, realtime_ns: anchor.realtime_ns })
            .unwrap_or_default();
        Ok(Self {
            folder,
            logs: survey.logs,
            damage: survey.damage,
            orphan_records: survey.orphan_records,
            orphan_damaged: survey.orphan_damaged,
            start,
        })
    }

    /// The id of the session: the name of its folder without `session_`.
    pub fn id(&self) -> String {
        let name = self.folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        name.strip_prefix("session_").unwrap_or(&name).to_owned()
    }

    /// Nanoseconds since the session's start at which `ticks` of this log's clock were read; before it: negative.
    pub fn nanoseconds(&self, log: &Log, ticks: u64) -> i64 {
        log.clock.monotonic_ns(ticks).wrapping_sub(self.start.monotonic_ns).cast_signed()
    }

    /// Nanoseconds since the session's start at which a process read `seconds` since 1970 off `CLOCK_REALTIME`, by the nearest
    /// anchor of its log; `None` when that cannot be said.
    pub fn nanoseconds_of_realtime(&self, log: &Log, seconds: f64) -> Option<i64> {
        let monotonic_ns = log.clock.monotonic_ns_of_realtime(seconds)?;
        Some(monotonic_ns.wrapping_sub(self.start.monotonic_ns).cast_signed())
    }

    /// Streams the events of all logs in the order in which they ended (then by process).
    ///
    /// # Errors
    /// When a segment that was there cannot be opened or read.
    pub fn events(&self) -> Result<Events<'_>, Error> {
        Events::new(self)
    }

    /// Whether some process still writes.
    pub fn is_alive(&self) -> bool {
        self.logs.iter().any(|log| log.alive)
    }

    /// Records that processes committed, as far as that can be known.
    pub fn records_written(&self) -> u64 {
        self.logs.iter().map(Log::written).fold(self.orphan_records, u64::saturating_add)
    }

    /// Records that were written or should have been, and are not in any file.
    pub fn records_lost(&self) -> u64 {
        self.logs.iter().map(Log::lost).fold(0, u64::saturating_add)
    }

    /// Slots that hold something which is no record, and records that no head describes.
    pub fn records_damaged(&self) -> u64 {
        self.logs.iter().map(|log| log.damaged).sum::<u64>() + self.orphan_damaged + self.orphan_records
    }
}
