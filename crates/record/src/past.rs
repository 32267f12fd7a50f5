//! Writes the log of a process that was not recorded, from what somebody else knows of it.
//!
//! The bytes are those of any other log. Nothing is mapped, nobody holds a lock, and no thread runs: there is no process
//! that could be killed. The head is written last, so a log that was not finished is none.

use crate::Error;
use profilemate_format::head::{
    ANCHOR_BANKS, Anchor, Identity, MAX_ANCHORS, TEXT_OFFSET, TextKind, counter, text_entry,
};
use profilemate_format::record::{RECORD_BYTES, Record, commit_word};
use profilemate_format::segment::SegmentHeader;
use profilemate_format::{HEAD_EXTENSION, RAW_FOLDER, SEGMENT_EXTENSION};
use rustix::rand::{GetRandomFlags, getrandom};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A log of the past that is being written.
#[derive(Debug)]
pub struct PastLog {
    base: PathBuf,
    identity: Identity,
    text: Vec<u8>,
    strings: HashMap<String, u32>,
    segment: Option<(PathBuf, BufWriter<File>)>,
    /// Segments made.
    index: u64,
    /// Records in the current one.
    slot: u32,
    written: u64,
}

impl PastLog {
    /// Begins a log in a session folder. `identity` says who the process was; its log id and text capacity are chosen here.
    pub fn create(session_folder: &Path, identity: Identity) -> Self {
        let raw = session_folder.join(RAW_FOLDER);
        let name = format!("{}-{}-{}", identity.role, identity.rank, identity.pid);
        let mut base = raw.join(&name);
        let mut number = 1;
        while segment_path(&base, 0).exists() || base.with_added_extension(HEAD_EXTENSION).exists() {
            number += 1;
            base = raw.join(format!("{name}~{number}"));
        }
        let mut log_id = [0; 16];
        let _ = getrandom(&mut log_id, GetRandomFlags::empty());
        Self {
            base,
            identity: Identity { log_id, ..identity },
            text: Vec::new(),
            strings: HashMap::new(),
            segment: None,
            index: 0,
            slot: 0,
            written: 0,
        }
    }

    /// The id of a string, for the `name` and `context` of records.
    pub fn intern(&mut self, text: &str) -> u32 {
        if let Some(id) = self.strings.get(text) {
            return *id;
        }
        if !self.add_text(TextKind::String, text.as_bytes()) {
            return 0;
        }
        let id = u32::try_from(self.strings.len() + 1).unwrap_or(0);
        self.strings.insert(text.to_owned(), id);
        id
    }

    /// Notes something that is true of the process. A NUL in the key or value is replaced.
    pub fn fact(&mut self, key: &str, value: &str) {
        let text = format!("{}\0{}", key.replace('\0', "?"), value.replace('\0', "?"));
        self.add_text(TextKind::Fact, text.as_bytes());
    }

    fn add_text(&mut self, kind: TextKind, text: &[u8]) -> bool {
        text_entry(kind, text).is_some_and(|entry| {
            self.text.extend_from_slice(&entry);
            true
        })
    }

    /// Writes one record; they come in the order in which they would have been committed.
    pub fn push(&mut self, record: &Record) -> Result<(), Error> {
        if self.slot == self.identity.segment_slots {
            self.end_segment()?;
        }
        if self.segment.is_none() {
            let path = segment_path(&self.base, self.index);
            let mut file = BufWriter::with_capacity(1 << 18, new_file(&path)?);
            let slots = self.identity.segment_slots;
            let header = SegmentHeader { log_id: self.identity.log_id, index: self.index, slots };
            file.write_all(&header.to_bytes()).map_err(|error| Error::file("write", &path, error))?;
            self.segment = Some((path, file));
            self.index += 1;
            self.slot = 0;
        }
        let words = record.to_words();
        let mut bytes = [0; RECORD_BYTES];
        let all = words.iter().copied().chain([commit_word(&words, self.slot)]);
        for (to, word) in bytes.chunks_exact_mut(8).zip(all) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        if let Some((path, file)) = &mut self.segment {
            file.write_all(&bytes).map_err(|error| Error::file("write", path, error))?;
        }
        self.slot += 1;
        self.written += 1;
        Ok(())
    }

    fn end_segment(&mut self) -> Result<(), Error> {
        if let Some((path, mut file)) = self.segment.take() {
            file.flush().map_err(|error| Error::file("write", &path, error))?;
        }
        Ok(())
    }

    /// Ends the log at the last of the `anchors`, which tie its ticks to the clocks, ascending; at most [`MAX_ANCHORS`].
    pub fn finish(mut self, anchors: &[Anchor]) -> Result<(), Error> {
        self.end_segment()?;
        self.identity.text_capacity = self.text.len() as u64;
        let anchors = &anchors[..anchors.len().min(MAX_ANCHORS)];
        // Nothing is missing behind the last record.
        let closed = anchors.last().map_or(1, |anchor| anchor.ticks.max(1));
        let mut head = vec![0; TEXT_OFFSET];
        let identity = self.identity.to_bytes();
        head[..identity.len()].copy_from_slice(&identity);
        let mut put = |at: usize, bytes: &[u8]| head[at..at + bytes.len()].copy_from_slice(bytes);
        put(counter::TEXT_USED, &(self.text.len() as u64).to_le_bytes());
        put(counter::WRITTEN, &self.written.to_le_bytes());
        put(counter::SEGMENTS, &self.index.to_le_bytes());
        put(counter::CLOSED, &closed.to_le_bytes());
        put(ANCHOR_BANKS[0], &(anchors.len() as u64).to_le_bytes());
        for (at, anchor) in anchors.iter().enumerate() {
            let bytes = anchor.to_bytes();
            put(ANCHOR_BANKS[0] + 8 + at * bytes.len(), &bytes);
        }
        head.extend_from_slice(&self.text);
        let path = self.base.with_added_extension(HEAD_EXTENSION);
        new_file(&path)?.write_all(&head).map_err(|error| Error::file("write", &path, error))
    }
}

fn segment_path(base: &Path, index: u64) -> PathBuf {
    base.with_added_extension(format!("{index:06}.{SEGMENT_EXTENSION}"))
}

fn new_file(path: &Path) -> Result<File, Error> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| Error::file("make", path, error))
}
