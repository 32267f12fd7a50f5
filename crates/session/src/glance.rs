//! A quick look at a session that may be running: who writes, and whether anything changed. It reads counters only.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use profilemate_format::head::{Head, TEXT_OFFSET, counter};
use profilemate_format::{HEAD_EXTENSION, RAW_FOLDER};

use crate::Error;
use crate::log::is_alive;

/// One log, seen at a glance. Two that are equal mean that nothing was recorded in between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glance {
    /// Name of its files: `<role>-<rank>-<pid>`.
    pub name: String,
    /// Role of its process; empty when the head is damaged.
    pub role: String,
    /// Id of its process; 0 when the head is damaged.
    pub pid: u32,
    /// Whether its writer runs.
    pub alive: bool,
    /// Records, bytes of text and the end, as the counters say.
    counters: [u64; 4],
}

/// Looks at every log of a session folder, ordered by name.
///
/// # Errors
/// When the folder cannot be listed. A log that cannot be read is passed over.
pub fn glance(session_folder: &Path) -> Result<Vec<Glance>, Error> {
    let raw = session_folder.join(RAW_FOLDER);
    let entries = match fs::read_dir(&raw) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Error::NotASession(session_folder.to_path_buf()));
        }
        Err(error) => return Err(Error::io(&raw)(error)),
    };
    let mut glances: Vec<Glance> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let regular = fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_file());
            (path.extension()? == HEAD_EXTENSION && regular).then(|| look(&path).ok())?
        })
        .collect();
    glances.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(glances)
}

fn look(head: &Path) -> io::Result<Glance> {
    let alive = is_alive(head)?;
    let mut bytes = Vec::new();
    crate::reader::open(head)?.take(TEXT_OFFSET as u64).read_to_end(&mut bytes)?;
    let word = |offset: usize| {
        bytes.get(offset..offset + 8).and_then(|word| word.try_into().ok()).map_or(0, u64::from_le_bytes)
    };
    let identity = Head::parse(&bytes).ok().map(|head| head.identity);
    Ok(Glance {
        name: head.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        pid: identity.as_ref().map_or(0, |identity| identity.pid),
        role: identity.map_or(String::new(), |identity| identity.role),
        alive,
        counters: [counter::WRITTEN, counter::TEXT_USED, counter::CLOSED, counter::DROPPED].map(word),
    })
}
