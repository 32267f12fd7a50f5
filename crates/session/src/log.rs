//! One process's log: who wrote it, how far it goes, what of it is sound.

use std::io;
use std::path::{Path, PathBuf};

use profilemate_format::head::{Head, Role};
use rustix::fs::{FlockOperation, flock};

use crate::clock::Clock;
use crate::name::{Component, Name};
use crate::reader::{Beside, Records};

/// A segment of a log.
#[derive(Debug, Clone)]
pub(crate) struct Segment {
    pub(crate) path: PathBuf,
    /// Slots up to the last one that holds anything.
    pub(crate) slots: u32,
}

/// One process's log.
#[derive(Debug)]
pub struct Log {
    /// Name of its files without extension: `<role>-<rank>-<pid>`.
    pub name: String,
    /// Its head.
    pub head: Head,
    /// Its clock.
    pub clock: Clock,
    /// Whether its writer still runs.
    pub alive: bool,
    /// Sound records.
    pub found: u64,
    /// Slots that hold something which is no record, or nothing where a record must be.
    pub damaged: u64,
    /// Records committed, as the head said before the survey began.
    pub(crate) written_before: u64,
    pub(crate) segments: Vec<Segment>,
    pub(crate) names: Vec<Name>,
    /// What the process is called where it does the work of each component, in the order of [`Component::ALL`].
    pub(crate) process_names: [String; 3],
}

impl Log {
    /// Its records, in the order in which they were committed.
    pub fn records(&self) -> Records<'_> {
        Records::new(self, Beside::Few)
    }

    /// What the string with this id means as a name.
    #[inline]
    pub fn span_name(&self, id: u32) -> Name {
        self.names.get(id as usize).copied().unwrap_or(Name::Other)
    }

    /// The role in which this process does the work of `component`, when it has one.
    pub fn role(&self, component: Component) -> Option<&Role> {
        self.head.roles.iter().find(|role| role.name == component.role())
    }

    /// What the process is called in tables, by the component that a row is about: `<role>-<rank>`.
    pub fn process(&self, component: Component) -> &str {
        &self.process_names[component as usize]
    }

    /// What the process is called by itself: the role it began with.
    pub fn main_process(&self) -> String {
        format!("{}-{}", self.head.identity.role, self.head.identity.rank)
    }

    /// Records that the process committed, as far as that can be known: a killed process may have committed one more
    /// than its counter says.
    pub fn written(&self) -> u64 {
        self.written_before.max(self.head.discarded.saturating_add(self.found))
    }

    /// Records that are in no file: never written for want of room, deleted to keep to `max_bytes`, or gone.
    pub fn lost(&self) -> u64 {
        self.head.dropped.saturating_add(self.head.discarded).saturating_add(self.gone())
    }

    /// Records that were committed and are neither there nor known to be damaged.
    pub(crate) fn gone(&self) -> u64 {
        let expected = self.written_before.saturating_sub(self.head.discarded);
        expected.saturating_sub(self.found).saturating_sub(self.damaged)
    }

    /// Takes the names and roles of a head as it is now.
    pub(crate) fn take_head(&mut self, head: Head) {
        self.names = std::iter::once(Name::Other)
            .chain(head.strings.iter().map(|text| text.as_deref().map_or(Name::Other, Name::parse)))
            .collect();
        self.head = head;
        self.process_names = Component::ALL.map(|component| {
            self.role(component).map_or_else(|| self.main_process(), |role| format!("{}-{}", role.name, role.rank))
        });
    }
}

/// Whether the process that writes this head still runs: it holds a lock on the file for as long as it lives.
///
/// # Errors
/// When the file cannot be opened. A file system without locks answers `false`.
pub fn is_alive(head: &Path) -> io::Result<bool> {
    let file = crate::reader::open(head)?;
    // The lock, if it is got, goes with the descriptor at the end of this function.
    Ok(matches!(flock(&file, FlockOperation::NonBlockingLockShared), Err(rustix::io::Errno::WOULDBLOCK)))
}
