//! Input that is a script of a session: pieces of files, one after the other, of which checksums are made right. Bytes that
//! a fuzzer changes at random would never get past those.
//!
//! A piece is a byte that says what it is, a byte that says how long it is, and so many bytes:
//!
//! | | piece | its bytes |
//! | --: | --- | --- |
//! | 0 | a head | bytes 16 to 131 of its identity |
//! | 1 | counters of that head | which of them, from 0, and the words from there on |
//! | 2 | an anchor of that head | as in the file |
//! | 3 | a text of that head | kind and text |
//! | 4 | a segment | number of its head, index by its header and by its name, slots (two bytes) |
//! | 5 | a record in that segment | its seven words |
//! | 6 | bytes behind that file | these |
//! | 7 | empty slots | how many |
//! | 8 | damage in that file | place (two bytes) and what to change there |
//! | 9 | that file, cut | behind which byte (two bytes) |
//! | 10 | another name for that file | the name |

use std::fs;
use std::path::Path;

use profilemate_format::head::{
    ANCHOR_BANKS, ANCHOR_BYTES, ENTRY_HEADER_BYTES, IDENTITY_BYTES, MAGIC, MAX_ANCHORS, TEXT_OFFSET, counter,
};
use profilemate_format::record::{PAYLOAD_WORDS, RECORD_BYTES};
use profilemate_format::segment::{HEADER_BYTES, SegmentHeader};
use profilemate_format::{ENDIAN_MARK, FORMAT_VERSION, HEAD_EXTENSION, SEGMENT_EXTENSION};

use crate::segment::commit;

/// Where the part of an identity begins that a piece tells.
const TOLD: usize = 16;
/// Where it ends.
const TOLD_END: usize = 132;
/// Most files that are made.
const MOST_FILES: usize = 12;

/// A file of a session.
#[derive(Debug, Clone, Default)]
pub struct File {
    /// Its name in `raw/`.
    pub name: String,
    /// What is in it.
    pub bytes: Vec<u8>,
}

/// Where counters are put, and what.
type Counters = (usize, Vec<u8>);

/// A head or a segment that is being put together.
struct Draft {
    file: File,
    /// Anchors and counters so far, of a head.
    head: Option<(usize, Vec<Counters>)>,
    damage: Vec<(usize, u8)>,
    cut: Option<usize>,
}

/// The files that a script makes, each name once.
pub fn files(mut script: &[u8]) -> Vec<File> {
    let mut drafts: Vec<Draft> = Vec::new();
    // Log id and stem of each head.
    let mut heads: Vec<([u8; 16], String)> = Vec::new();
    while !script.is_empty() {
        let kind = crate::byte(&mut script);
        let length = usize::from(crate::byte(&mut script));
        let piece = crate::take(&mut script, length);
        let is_room = drafts.len() < MOST_FILES;
        match (kind % 11, drafts.last_mut()) {
            (0, _) if is_room => {
                let draft = head(piece);
                let log_id = draft.file.bytes.get(16..32).and_then(|id| id.try_into().ok()).unwrap_or_default();
                let stem = draft.file.name.trim_end_matches(HEAD_EXTENSION).trim_end_matches('.').to_owned();
                heads.push((log_id, stem));
                drafts.push(draft);
            }
            (4, _) if is_room => drafts.push(segment(piece, &heads)),
            (_, None) => {}
            (kind, Some(draft)) => draft.take(kind, piece),
        }
    }
    let mut files: Vec<File> = drafts.into_iter().map(Draft::finish).collect();
    files.sort_by(|a, b| a.name.cmp(&b.name));
    files.dedup_by(|a, b| a.name == b.name);
    files
}

/// Writes the files that a script makes as the raw logs of a session.
pub(crate) fn write(files: &[File], session: &Path) {
    let raw = session.join(profilemate_format::RAW_FOLDER);
    fs::create_dir(&raw).expect("the folder is ours");
    for file in files {
        fs::write(raw.join(&file.name), &file.bytes).expect("the folder is ours, and the name is a name");
    }
}

/// A name that a file can have.
fn safe(name: &str) -> String {
    let name: String = name.chars().filter(|letter| *letter != '/' && *letter != '\0').take(40).collect();
    if name.is_empty() || name == "." || name == ".." { "_".to_owned() } else { name }
}

fn head(piece: &[u8]) -> Draft {
    let mut bytes = vec![0; TEXT_OFFSET];
    let told = &piece[..piece.len().min(TOLD_END - TOLD)];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes[12..16].copy_from_slice(&ENDIAN_MARK.to_le_bytes());
    bytes[TOLD..TOLD + told.len()].copy_from_slice(told);
    let checksum = crc32fast::hash(&bytes[..252]);
    bytes[252..IDENTITY_BYTES].copy_from_slice(&checksum.to_le_bytes());
    let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let role = bytes[64..96].split(|byte| *byte == 0).next().unwrap_or_default();
    let stem = safe(&format!("{}-{}-{}", String::from_utf8_lossy(role), word(36), word(32)));
    let file = File { name: format!("{stem}.{HEAD_EXTENSION}"), bytes };
    Draft { file, head: Some((0, Vec::new())), damage: Vec::new(), cut: None }
}

fn segment(piece: &[u8], heads: &[([u8; 16], String)]) -> Draft {
    let at = |at: usize| piece.get(at).copied().unwrap_or(0);
    let none = ([0xee; 16], "lost-0-1".to_owned());
    let (log_id, stem) = heads.get(usize::from(at(0))).unwrap_or(&none);
    let slots = u32::from(at(3)) | u32::from(at(4)) << 8;
    let header = SegmentHeader { log_id: *log_id, index: u64::from(at(1)), slots };
    let name = format!("{stem}.{:06}.{SEGMENT_EXTENSION}", at(2));
    Draft { file: File { name, bytes: header.to_bytes().to_vec() }, head: None, damage: Vec::new(), cut: None }
}

impl Draft {
    fn take(&mut self, kind: u8, piece: &[u8]) {
        let at = |at: usize| piece.get(at).copied().unwrap_or(0);
        let place = usize::from(at(0)) | usize::from(at(1)) << 8;
        let bytes = &mut self.file.bytes;
        match (kind, &mut self.head) {
            (1, Some((_, counters))) => {
                let from = counter::TEXT_USED + usize::from(at(0)) % 10 * 8;
                let end = (counter::TEXT_USED + 80 - from).min(piece.len().saturating_sub(1));
                counters.push((from, piece.get(1..=end).unwrap_or_default().to_vec()));
            }
            (2, Some((anchors, _))) if *anchors < MAX_ANCHORS => {
                let from = ANCHOR_BANKS[0] + 8 + *anchors * ANCHOR_BYTES;
                let anchor = &piece[..piece.len().min(ANCHOR_BYTES)];
                bytes[from..from + anchor.len()].copy_from_slice(anchor);
                *anchors += 1;
                bytes[ANCHOR_BANKS[0]..ANCHOR_BANKS[0] + 8].copy_from_slice(&(*anchors as u64).to_le_bytes());
            }
            (3, Some(_)) => {
                let text = piece.get(1..).unwrap_or_default();
                bytes.extend_from_slice(&u32::try_from(text.len()).unwrap_or(0).to_le_bytes());
                bytes.extend_from_slice(&u32::from(at(0)).to_le_bytes());
                bytes.extend_from_slice(&crc32fast::hash(text).to_le_bytes());
                bytes.extend_from_slice(&[0; 4]);
                bytes.extend_from_slice(text);
                bytes.resize(bytes.len().next_multiple_of(8), 0);
            }
            (5, None) => {
                let slot = (bytes.len() - HEADER_BYTES) / RECORD_BYTES;
                bytes.resize(HEADER_BYTES + slot * RECORD_BYTES, 0);
                let from = bytes.len();
                bytes.extend_from_slice(&piece[..piece.len().min(PAYLOAD_WORDS * 8)]);
                bytes.resize(from + RECORD_BYTES, 0);
                commit(&mut bytes[from..], u32::try_from(slot).unwrap_or(0));
            }
            (6, _) => bytes.extend_from_slice(piece),
            (7, None) => bytes.resize(bytes.len() + usize::from(at(0)) * RECORD_BYTES, 0),
            (8, _) => self.damage.push((place, at(2))),
            (9, _) => self.cut = Some(place),
            (10, _) => self.file.name = safe(&String::from_utf8_lossy(piece)),
            _ => {}
        }
    }

    fn finish(mut self) -> File {
        let bytes = &mut self.file.bytes;
        if let Some((_, counters)) = self.head {
            let used = (bytes.len() - TEXT_OFFSET) as u64;
            bytes[counter::TEXT_USED..counter::TEXT_USED + 8].copy_from_slice(&used.to_le_bytes());
            for (from, words) in counters {
                bytes[from..from + words.len()].copy_from_slice(&words);
            }
        }
        for (place, change) in self.damage {
            let place = place % bytes.len();
            bytes[place] ^= change;
        }
        if let Some(cut) = self.cut {
            bytes.truncate(cut % (bytes.len() + 1));
        }
        self.file
    }
}

/// The script of a log: its head, and so many of its records. `number` counts the heads of the script from 0.
pub fn of_log(head: &[u8], segments: &[(u8, Vec<u8>)], number: u8, records: usize) -> Vec<u8> {
    let mut script = Vec::new();
    let mut piece = |kind: u8, bytes: &[u8]| {
        if let Ok(length) = u8::try_from(bytes.len()) {
            script.extend_from_slice(&[kind, length]);
            script.extend_from_slice(bytes);
        }
    };
    piece(0, &head[TOLD..TOLD_END]);
    piece(1, &[&[1], &head[counter::WRITTEN..counter::TEXT_USED + 80]].concat());
    let bank = ANCHOR_BANKS[usize::from(head[counter::ANCHOR_BANK] & 1)];
    for anchor in head[bank + 8..].chunks_exact(ANCHOR_BYTES).take(usize::from(head[bank]).min(4)) {
        piece(2, anchor);
    }
    let mut text = &head[TEXT_OFFSET..];
    while let Some(entry) = text.first_chunk::<ENTRY_HEADER_BYTES>() {
        let length = u32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]) as usize;
        let Some(content) = text.get(ENTRY_HEADER_BYTES..ENTRY_HEADER_BYTES + length) else { break };
        if length == 0 {
            break;
        }
        piece(3, &[&entry[4..5], content].concat());
        text = text.get((ENTRY_HEADER_BYTES + length).next_multiple_of(8)..).unwrap_or_default();
    }
    let mut left = records;
    for (index, segment) in segments {
        piece(4, &[&[number, *index, *index], &segment[40..42]].concat());
        for slot in segment[HEADER_BYTES..].chunks_exact(RECORD_BYTES).take(left) {
            left -= 1;
            if slot.iter().all(|byte| *byte == 0) {
                piece(7, &[1]);
            } else {
                piece(5, &slot[..PAYLOAD_WORDS * 8]);
            }
        }
    }
    script
}

/// The short form of a head, as the target `head` takes it.
pub fn of_head(head: &[u8], text_bytes: usize) -> Vec<u8> {
    crate::head::short_form(head, text_bytes)
}
