//! Follows a session that is running: keeps its tables fresh and completes them when its processes are gone.
//!
//! That a process is gone is learnt from the kernel, which releases the lock on its log however it ends; no signal,
//! no exit handler and no cooperation is needed.

mod refresher;

use std::fs::{File, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use profilemate_analysis::Answers;
use profilemate_output::{Error, tables};
use profilemate_session::Session;
use profilemate_session::glance::{Glance, glance};
use rustix::fs::{FlockOperation, OFlags, flock};

pub use refresher::Refresher;

/// A link is not followed.
const NO_LINK: i32 = OFlags::NOFOLLOW.bits().cast_signed();

/// Name of the lock in `raw/` that makes sure that a session has one collector.
pub const LOCK_FILE: &str = "raw/collector.lock";

/// Role of the log of `profilemate run` itself: it records how the launch ended, and is nobody to wait for.
pub const LAUNCHER: &str = "launcher";

/// The right to make the tables of a session, until it is dropped.
#[derive(Debug)]
pub struct Collector {
    folder: PathBuf,
    /// Holds the lock; `None` on a file system that has none.
    _lock: Option<File>,
}

impl Collector {
    /// Takes a session over; `None` when another collector has it.
    ///
    /// # Errors
    /// When the lock file cannot be made.
    pub fn take(session_folder: &Path) -> Result<Option<Self>, Error> {
        let path = session_folder.join(LOCK_FILE);
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .custom_flags(NO_LINK)
            .open(&path)
            .map_err(|cause| Error::Write { path, cause })?;
        // Whatever the umask is; it may be a file of another user, whom root has taken over from.
        let _ = file.set_permissions(Permissions::from_mode(0o600));
        let lock = match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Some(file),
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(_) => None,
        };
        Ok(Some(Self { folder: session_folder.to_path_buf(), _lock: lock }))
    }

    /// The session folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Processes whose logs are open; the launcher does not count.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub fn writers(&self) -> Result<Vec<Glance>, Error> {
        let mut logs = self.logs()?;
        logs.retain(|log| log.alive);
        Ok(logs)
    }

    /// The logs of all processes, running or not; the launcher's does not count.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub fn logs(&self) -> Result<Vec<Glance>, Error> {
        let mut logs = glance(&self.folder)?;
        logs.retain(|log| log.role != LAUNCHER);
        Ok(logs)
    }

    /// Makes all tables from what is there now, and the page `report.html`: for the last time, as a rule. While a session
    /// runs, its tables are refreshed without the page.
    ///
    /// # Errors
    /// When the session cannot be read or the tables cannot be written.
    pub fn make_tables(&self) -> Result<(Session, Answers), Error> {
        let session = Session::open(&self.folder)?;
        let answers = tables::write_with_report(&session, &self.folder)?;
        Ok((session, answers))
    }

    /// Follows the session until its processes are gone for good, refreshing the tables meanwhile. The last tables are
    /// the caller's, with [`Collector::make_tables`].
    ///
    /// `problem` is told what went wrong with a refresh; following goes on.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub fn follow(&self, patience: Patience, problem: impl Fn(&Error) + Send + 'static) -> Result<Ended, Error> {
        let refresher = Refresher::start(&self.folder, patience.refresh, problem);
        let began = Instant::now();
        let mut seen = false;
        let mut gone_since: Option<Instant> = None;
        let ended = loop {
            let logs = self.logs()?;
            // A process may have come and gone before the first look.
            seen |= !logs.is_empty();
            if logs.iter().any(|log| log.alive) {
                gone_since = None;
            } else if seen {
                // A process may hand over to another: an API server that starts its engine again.
                if gone_since.get_or_insert_with(Instant::now).elapsed() >= patience.quiet {
                    break Ended::AllGone;
                }
            } else if began.elapsed() >= patience.first_writer {
                break Ended::NobodyCame;
            }
            std::thread::sleep(patience.look);
        };
        refresher.stop();
        Ok(ended)
    }
}

/// How long a collector waits for what.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Between two looks at who is there.
    pub look: Duration,
    /// Between two refreshes of the tables, at least.
    pub refresh: Duration,
    /// Without any writer, until the session counts as over.
    pub quiet: Duration,
    /// For the first writer.
    pub first_writer: Duration,
}

impl Patience {
    /// What a real session needs, with the tables refreshed this often.
    pub fn new(refresh: Duration) -> Self {
        Self {
            look: Duration::from_millis(500),
            refresh,
            quiet: Duration::from_secs(3),
            first_writer: Duration::from_mins(10),
        }
    }
}

/// Why following ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// There were processes, and all are gone.
    AllGone,
    /// No process ever opened a log.
    NobodyCame,
}

#[cfg(test)]
mod tests {
    use super::*;
    use profilemate_record::{Options, Writer};

    fn session() -> (tempfile::TempDir, PathBuf) {
        let output = tempfile::tempdir().unwrap();
        let folder = profilemate_record::session_folder::create(output.path()).unwrap();
        (output, folder)
    }

    fn writer(folder: &Path) -> Writer {
        Writer::open(&Options {
            session_folder: folder.to_path_buf(),
            role: "engine_core".into(),
            rank: 0,
            data_parallel_rank: 0,
            segment_bytes: 4096,
            max_bytes: 1 << 20,
            text_capacity: 4096,
        })
        .unwrap()
    }

    #[test]
    fn one_session_has_one_collector() {
        let (_output, folder) = session();
        let first = Collector::take(&folder).unwrap();
        assert!(first.is_some());
        assert!(Collector::take(&folder).unwrap().is_none());
        drop(first);
        assert!(Collector::take(&folder).unwrap().is_some());
    }

    #[test]
    fn follows_until_the_last_writer_is_gone() {
        let (_output, folder) = session();
        let collector = Collector::take(&folder).unwrap().unwrap();
        let log = writer(&folder);
        assert_eq!(collector.writers().unwrap().len(), 1);
        let patience = Patience {
            look: Duration::from_millis(1),
            refresh: Duration::from_millis(1),
            quiet: Duration::ZERO,
            first_writer: Duration::MAX,
        };
        let (saw, seen) = std::sync::mpsc::channel();
        let follower = std::thread::spawn(move || {
            let ended = collector.follow(patience, |error| panic!("{error}")).unwrap();
            saw.send(()).unwrap();
            (ended, collector.make_tables().unwrap().0.logs.len())
        });
        // It must not end while the log is open; the refresh that it makes meanwhile is the sign that it runs.
        while !folder.join("metadata.json").exists() {
            assert!(seen.try_recv().is_err(), "ended with a writer alive");
            std::thread::yield_now();
        }
        drop(log);
        assert_eq!(follower.join().unwrap(), (Ended::AllGone, 1));
    }

    #[test]
    fn gives_up_when_nobody_comes() {
        let (_output, folder) = session();
        let collector = Collector::take(&folder).unwrap().unwrap();
        let patience = Patience { first_writer: Duration::ZERO, ..Patience::new(Duration::from_secs(1)) };
        assert_eq!(collector.follow(patience, |_| {}).unwrap(), Ended::NobodyCame);
    }
}
