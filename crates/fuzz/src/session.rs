//! A whole session folder: which logs there are, what of them is sound, and its events.

use std::fs;
use std::path::Path;

use profilemate_format::record::{RECORD_BYTES, Slot, read_slot};
use profilemate_format::segment::HEADER_BYTES;
use profilemate_session::{Edge, Session};

use crate::pieces::{self, File};

/// Names of segments end so.
const SUFFIX: &str = ".seg";

/// What a reader may hold, beside so much for each log (its buffer) and for each byte of input.
const LIMIT_BYTES: usize = 1 << 20;
const LOG_BYTES: usize = 600 << 10;
const BYTES_PER_BYTE: usize = 64;

/// Input: whether and where a segment is cut (one byte that chooses it, two for the place), and the script of a session.
pub fn run(mut data: &[u8]) {
    let chosen = usize::from(crate::byte(&mut data));
    let cut = crate::number(&mut data);
    let files = pieces::files(data);
    let bytes: usize = files.iter().map(|file| file.bytes.len()).sum();
    let limit = LIMIT_BYTES + LOG_BYTES * files.len() + BYTES_PER_BYTE * bytes;
    crate::scratch::with_folder(|folder| {
        pieces::write(&files, folder);
        let Some(found) = crate::memory::within(limit, || read(folder)) else { return };
        let mut segments =
            files.iter().filter(|file| file.name.ends_with(SUFFIX) && file.bytes.len() > HEADER_BYTES);
        if chosen % 4 != 0
            && let Some(file) = segments.nth(chosen / 4)
        {
            let cut = HEADER_BYTES + cut % (file.bytes.len() - HEADER_BYTES);
            let path = folder.join("raw").join(&file.name);
            let whole = fs::OpenOptions::new().write(true).open(path).expect("it was written here");
            whole.set_len(cut as u64).expect("it is ours");
            let left = read(folder).unwrap_or(0);
            assert!(left <= found && left + behind(file, cut) >= found, "{found}, and {left} with a cut at {cut}");
        }
    });
}

/// Reads a session to its end: the sound records, or `None` if it is no session. What is counted is what is there.
fn read(folder: &Path) -> Option<u64> {
    let session = match Session::open(folder) {
        Ok(session) => session,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return None;
        }
    };
    let mut sound = 0;
    for log in &session.logs {
        sound += log.found;
        assert!(log.written() >= log.found);
    }
    let mut events = session.events().expect("its segments are there");
    let mut records = 0;
    while let Some(event) = events.next_event().expect("its segments are there") {
        records += u64::from(event.edge == Edge::End);
    }
    assert_eq!(records, sound);
    let _ = (session.records_written(), session.records_lost());
    assert!(session.records_damaged() == 0 || !session.damage.is_empty(), "damage is named");
    Some(sound + session.orphan_records)
}

/// Records behind a cut.
fn behind(file: &File, cut: usize) -> u64 {
    let mut records = 0;
    for (slot, bytes) in (0..).zip(file.bytes[HEADER_BYTES..].as_chunks::<RECORD_BYTES>().0) {
        let is_behind = HEADER_BYTES + (slot as usize + 1) * RECORD_BYTES > cut;
        records += u64::from(is_behind && matches!(read_slot(bytes, slot), Slot::Record(_)));
    }
    records
}
