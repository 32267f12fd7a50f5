//! Whether the process that writes a log still lives: it holds a lock on the head for as long as it does.
//!
//! The kernel releases the lock when the process ends in any way, so nothing has to be signalled, and a reused process
//! id cannot be mistaken for the writer.

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use std::io;
use std::path::Path;

/// Whether somebody holds the lock on this head file.
pub fn is_writer_alive(head: &Path) -> io::Result<bool> {
    let file = open(head, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
        Err(error) => Err(error.into()),
    }
}
