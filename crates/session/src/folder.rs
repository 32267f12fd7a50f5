//! Which files of `raw/` belong to which log, and what of them is sound.
//!
//! Headers decide, names help out: a segment belongs to the log whose id its header carries, whatever it is called.
//! Where a header is damaged the name says which log it was, and the records' own checksums say what is left.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use profilemate_format::head::{self, ClockSource, Head, TEXT_OFFSET};
use profilemate_format::record::{RECORD_BYTES, Slot};
use profilemate_format::segment::{self, HEADER_BYTES, SegmentHeader};
use profilemate_format::{ENDIAN_MARK, FormatError, HEAD_EXTENSION, SEGMENT_EXTENSION};

use crate::clock::Clock;
use crate::log::{Log, Segment, is_alive};
use crate::reader::{Beside, Slots};
use crate::{Damage, Error};

/// Most bytes of a head that are read, whatever it claims.
const MAX_HEAD_BYTES: u64 = 64 << 20;

/// What a folder of raw logs holds.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    pub(crate) logs: Vec<Log>,
    pub(crate) damage: Vec<Damage>,
    pub(crate) orphan_records: u64,
    pub(crate) orphan_damaged: u64,
}

impl Survey {
    fn damaged(&mut self, path: &Path, what: impl Into<String>) {
        self.damage.push(Damage { file: file_name(path), what: what.into() });
    }
}

/// A segment file as it lies there.
struct SegmentFile {
    path: PathBuf,
    /// Log and index by its name.
    stem: String,
    name_index: u64,
    bytes: u64,
    /// `None` = the header is still zero: the process was stopped while it made the file.
    header: Option<Result<SegmentHeader, FormatError>>,
    /// What was wrong with the header, when it could be put right.
    mended: Option<FormatError>,
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Reads a whole raw folder.
pub(crate) fn survey(raw: &Path) -> Result<Survey, Error> {
    let mut survey = Survey::default();
    let (heads, segments) = list(raw, &mut survey)?;
    let mut by_log_id: HashMap<[u8; 16], usize> = HashMap::new();
    let mut by_stem: HashMap<String, usize> = HashMap::new();
    for path in heads {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let Some(log) = open_log(&path, &stem, &mut survey)? else { continue };
        if by_log_id.contains_key(&log.head.identity.log_id) {
            survey.damaged(&path, "a copy of another head; left out");
            continue;
        }
        by_log_id.insert(log.head.identity.log_id, survey.logs.len());
        by_stem.insert(stem, survey.logs.len());
        survey.logs.push(log);
    }
    let mut belonging: Vec<Vec<(u64, SegmentFile)>> = survey.logs.iter().map(|_| Vec::new()).collect();
    for file in segments {
        let owner = match &file.header {
            None => continue,
            Some(Ok(header)) => by_log_id.get(&header.log_id).map(|log| (*log, header.index)),
            Some(Err(FormatError::Version { .. } | FormatError::Endianness)) => None,
            Some(Err(_)) => by_stem.get(&file.stem).map(|log| (*log, file.name_index)),
        };
        match owner {
            Some((log, index)) => belonging[log].push((index, file)),
            None => orphan(&file, &mut survey)?,
        }
    }
    for (log, files) in belonging.into_iter().enumerate() {
        survey_log(log, files, &mut survey)?;
    }
    calibrate(&mut survey.logs);
    survey.logs.sort_by(|a, b| key(a).cmp(&key(b)));
    survey.damage.sort();
    Ok(survey)
}

fn key(log: &Log) -> (&str, u32, u32, &str) {
    let identity = &log.head.identity;
    (&identity.role, identity.rank, identity.pid, &log.name)
}

/// The heads and segments of a folder, ordered by name.
fn list(raw: &Path, survey: &mut Survey) -> Result<(Vec<PathBuf>, Vec<SegmentFile>), Error> {
    let mut paths = fs::read_dir(raw)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>())
        .map_err(Error::io(raw))?;
    paths.sort();
    let mut heads = Vec::new();
    let mut segments = Vec::new();
    for path in paths {
        let name = file_name(&path);
        let extension = path.extension().unwrap_or_default();
        // `new`: a head that its process has not finished; the rest is not the recorder's.
        if name.starts_with('.') || extension == "lock" || extension == "tmp" || extension == "new" {
            continue;
        }
        // A pipe or a device would block or never end.
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_file() => {}
            Ok(_) => {
                survey.damaged(&path, "not a regular file; left out");
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::io(&path)(error)),
        }
        if extension == HEAD_EXTENSION {
            heads.push(path);
        } else if let Some((stem, name_index)) = segment_name(&name) {
            match read_segment_header(&path) {
                Ok((bytes, header, mended)) => {
                    let stem = stem.to_owned();
                    segments.push(SegmentFile { path, stem, name_index, bytes, header, mended });
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => survey.damaged(&path, format!("cannot be read ({error}); left out")),
            }
        } else {
            survey.damaged(&path, "not a file of a raw log; left out");
        }
    }
    Ok((heads, segments))
}

/// `<stem>.<digits>.seg` taken apart.
fn segment_name(name: &str) -> Option<(&str, u64)> {
    let (rest, extension) = name.rsplit_once('.')?;
    let (stem, index) = rest.rsplit_once('.')?;
    (extension == SEGMENT_EXTENSION).then_some((stem, index.parse().ok()?))
}

type Header = Option<Result<SegmentHeader, FormatError>>;

fn read_segment_header(path: &Path) -> io::Result<(u64, Header, Option<FormatError>)> {
    let file = crate::reader::open(path)?;
    let length = file.metadata()?.len();
    let mut bytes = Vec::with_capacity(HEADER_BYTES);
    file.take(HEADER_BYTES as u64).read_to_end(&mut bytes)?;
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok((length, None, None));
    }
    let header = SegmentHeader::parse(&bytes);
    if let Err(error) = &header
        && let Some(mended) = mend(&bytes, segment::MAGIC, HEADER_BYTES, SegmentHeader::parse)
    {
        return Ok((length, Some(Ok(mended)), Some(error.clone())));
    }
    Ok((length, Some(header), None))
}

/// Reads a header in which one byte is damaged: the checksum in its last four bytes tells which, and what it was. (A header of
/// another version or machine has a checksum of its own, which no single byte makes ours.)
fn mend<T>(
    bytes: &[u8],
    magic: [u8; 8],
    header_bytes: usize,
    parse: impl Fn(&[u8]) -> Result<T, FormatError>,
) -> Option<T> {
    // Where more than one of the bytes is wrong that are the same in every such file, this is none, or damaged beyond that.
    let fixed = (0..8).zip(magic).chain((12..16).zip(ENDIAN_MARK.to_le_bytes()));
    if fixed.filter(|(at, byte)| bytes.get(*at) != Some(byte)).count() > 1 {
        return None;
    }
    let (content, checksum) = bytes.get(..header_bytes)?.split_last_chunk::<4>()?;
    let expected = crc32fast::hash(content);
    let mut bytes = bytes.to_vec();
    if let Some((at, change)) = wrong_byte(content.len(), u32::from_le_bytes(*checksum) ^ expected) {
        bytes[at] ^= change;
    } else {
        // It is a byte of the checksum, or more than one byte.
        let right = expected.to_le_bytes();
        if right.iter().zip(checksum).filter(|(right, found)| right != found).count() != 1 {
            return None;
        }
        bytes[content.len()..header_bytes].copy_from_slice(&right);
    }
    parse(&bytes).ok()
}

/// The place of the one wrong byte in a content of this length, and what to change in it (XOR), by how its CRC-32 differs from
/// the one that it should have (XOR). Of more places than one it is the first.
///
/// What a changed byte does to the checksum depends on nothing but the change and the number of bytes behind it, each of
/// which shifts it further. So it is shifted back, and compared with what a change of the last byte does.
fn wrong_byte(length: usize, difference: u32) -> Option<(usize, u8)> {
    if difference == 0 {
        return None;
    }
    let of_last = |byte: u8| crc32fast::hash(&[byte]) ^ crc32fast::hash(&[0]);
    // By the highest byte, which is another one for each.
    let mut by_top = [(0, 0); 256];
    for byte in 0..=u8::MAX {
        by_top[(of_last(byte) >> 24) as usize] = (byte, of_last(byte));
    }
    let (mut shifted, mut found) = (difference, None);
    for at in (0..length).rev() {
        let (byte, effect) = by_top[(shifted >> 24) as usize];
        if shifted == effect {
            found = Some((at, byte));
        }
        shifted = (shifted ^ effect) << 8 | u32::from(byte);
    }
    found
}

/// Reads a head; `None` (and a note) when nothing of it can be used.
fn open_log(path: &Path, stem: &str, survey: &mut Survey) -> Result<Option<Log>, Error> {
    // Liveness first: what a head says after its writer is gone is final.
    let alive = match is_alive(path) {
        Ok(alive) => alive,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            survey.damaged(path, format!("cannot be read ({error}); its records cannot be understood"));
            return Ok(None);
        }
    };
    let bytes = read_head(path).map_err(Error::io(path))?;
    let head = match Head::parse(&bytes) {
        Ok(head) => head,
        Err(_) if bytes.iter().all(|byte| *byte == 0) => return Ok(None),
        Err(error) => {
            let Some(head) = mend(&bytes, head::MAGIC, head::IDENTITY_BYTES, Head::parse) else {
                survey.damaged(path, format!("{error}; left out"));
                return Ok(None);
            };
            survey.damaged(path, format!("{error}; one byte was put right, the rest is sound"));
            head
        }
    };
    if text_is_cut_off(&bytes) {
        survey.damaged(path, "cut off: names or facts are missing");
    }
    let clock = Clock::new(&head.identity, &head.anchors);
    let mut log = Log {
        name: stem.to_owned(),
        clock,
        alive,
        found: 0,
        damaged: 0,
        written_before: head.written,
        segments: Vec::new(),
        names: Vec::new(),
        process_names: Default::default(),
        head: head.clone(),
    };
    log.take_head(head);
    Ok(Some(log))
}

fn read_head(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    crate::reader::open(path)?.take(MAX_HEAD_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Whether the head says that there is more text than there is file.
fn text_is_cut_off(head: &[u8]) -> bool {
    let used = head.get(head::counter::TEXT_USED..).and_then(|bytes| bytes.first_chunk::<8>());
    used.is_some_and(|used| u64::from_le_bytes(*used) > head.len().saturating_sub(TEXT_OFFSET) as u64)
}

/// Reads every segment of a log once: how far it goes, what is sound.
fn survey_log(index: usize, mut files: Vec<(u64, SegmentFile)>, survey: &mut Survey) -> Result<(), Error> {
    // The file that is called as its header says comes first, so that of two with one index the copy is left out.
    files.sort_by(|(a, file_a), (b, file_b)| {
        let misnamed = |index: u64, file: &SegmentFile| index != file.name_index;
        (a, misnamed(*a, file_a), &file_a.path).cmp(&(b, misnamed(*b, file_b), &file_b.path))
    });
    let alive = survey.logs[index].alive;
    let mut extent = Extent::default();
    let mut seen: Vec<SeenSegment> = Vec::new();
    let mut buffer = Vec::new();
    for (segment_index, file) in files {
        if seen.last().is_some_and(|last| last.index == segment_index) {
            survey.damaged(&file.path, format!("a second segment {segment_index} of the same log; left out"));
            continue;
        }
        if let Some(last) = seen.last()
            && segment_index - last.index > 1
        {
            let missing = segment_index - last.index - 1;
            survey.damaged(&file.path, format!("segments missing before this one: {missing}"));
        }
        let in_file = u32::try_from(file.bytes.saturating_sub(HEADER_BYTES as u64).div_ceil(RECORD_BYTES as u64))
            .unwrap_or(u32::MAX);
        let slots = match &file.header {
            Some(Ok(header)) => header.slots,
            _ => in_file,
        };
        let mut reader = match Slots::open(&file.path, slots, buffer, Beside::Few) {
            Ok(reader) => reader,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                buffer = Vec::new();
                continue;
            }
            Err(error) => return Err(Error::io(&file.path)(error)),
        };
        let before = extent;
        let mut used = 0;
        while let Some((slot, content)) = reader.next_slot().map_err(Error::io(&file.path))? {
            if extent.take(content) {
                used = slot + 1;
            }
        }
        buffer = reader.into_buffer();
        let (found, damaged) = (extent.found - before.found, extent.damaged - before.damaged);
        seen.push(SeenSegment { file, index: segment_index, slots, in_file, used, found, damaged });
    }
    if alive
        && extent.torn
        && let Some(last) = seen.iter_mut().rev().find(|segment| segment.used > 0)
    {
        // The writer is at this slot right now.
        last.damaged -= 1;
        last.used -= 1;
        extent.damaged -= 1;
    }
    let log = &mut survey.logs[index];
    log.found = extent.found;
    log.damaged = extent.damaged;
    let (closed, written) = (log.head.closed_ticks.is_some(), log.written_before);
    for segment in &seen {
        // A process that closes its log gives the unused end of the last segment back. A live one may be about to give
        // a new file its length.
        let slots_before = segment.index.saturating_mul(u64::from(segment.slots));
        let complete = closed && slots_before.saturating_add(u64::from(segment.in_file)) >= written;
        segment.note(complete || (alive && segment.found == 0), survey);
    }
    let log = &mut survey.logs[index];
    if alive && let Some(segment) = seen.first() {
        // Strings are there before the records that use them: read now, the head names every record seen.
        let path = segment.file.path.with_file_name(format!("{}.{HEAD_EXTENSION}", log.name));
        if let Ok(Ok(head)) = read_head(&path).map(|bytes| Head::parse(&bytes)) {
            log.clock = Clock::new(&head.identity, &head.anchors);
            log.take_head(head);
        }
    }
    let head_file = PathBuf::from(format!("{}.{HEAD_EXTENSION}", log.name));
    let mut notes = Vec::new();
    if log.head.text_lost > 0 {
        notes.push(format!("{} names or facts are damaged or found no room", log.head.text_lost));
    }
    if log.clock.implausible_anchors > 0 {
        notes.push(format!("{} clock anchors are damaged; left out", log.clock.implausible_anchors));
    }
    if bound_counters(log, &seen) {
        notes.push("its counters of records are damaged; what lies in the segments was counted".to_owned());
    }
    log.segments =
        seen.into_iter().map(|segment| Segment { path: segment.file.path, slots: segment.used }).collect();
    for what in notes {
        survey.damaged(&head_file, what);
    }
    Ok(())
}

/// Counters carry no checksum: one that says more than the segments can ever have held is damaged and put right.
fn bound_counters(log: &mut Log, seen: &[SeenSegment]) -> bool {
    let slots = seen.iter().map(|segment| u64::from(segment.slots)).max().unwrap_or(0);
    let slots = slots.max(u64::from(log.head.identity.segment_slots));
    let begun = seen.last().map_or(0, |last| last.index.saturating_add(1)).max(log.head.segments);
    let deleted = seen.first().map_or(begun, |first| first.index);
    let mut damaged = false;
    // A live log moves on between two looks at it.
    if !log.alive && log.head.discarded > deleted.saturating_mul(slots) {
        log.head.discarded = 0;
        damaged = true;
    }
    if !log.alive && log.written_before > begun.saturating_mul(slots) {
        log.written_before = 0;
        damaged = true;
    }
    damaged
}

/// A segment that belongs to a log, and what lies in it.
struct SeenSegment {
    file: SegmentFile,
    index: u64,
    slots: u32,
    in_file: u32,
    used: u32,
    found: u64,
    damaged: u64,
}

impl SeenSegment {
    /// Names what is wrong with it.
    fn note(&self, may_be_short: bool, survey: &mut Survey) {
        let path = &self.file.path;
        if let Some(Err(error)) = &self.file.header {
            if self.found == 0 && self.damaged > 0 {
                let damaged = count(self.damaged);
                survey.damaged(path, format!("{error}; nothing in it is a record ({damaged})"));
                return;
            }
            survey.damaged(path, format!("{error}; its records have checksums of their own and were kept"));
        } else if let Some(error) = &self.file.mended {
            survey.damaged(path, format!("{error}; one byte was put right, the rest is sound"));
        } else if self.index != self.file.name_index {
            survey.damaged(path, format!("its header says that it is segment {}; read as that", self.index));
        }
        if self.in_file < self.slots && !may_be_short {
            survey.damaged(path, format!("cut off: it ends in slot {} of {}", self.in_file, self.slots));
        }
        if self.damaged > 0 {
            survey.damaged(path, count(self.damaged));
        }
    }
}

fn count(damaged: u64) -> String {
    if damaged == 1 { "1 damaged slot".to_owned() } else { format!("{damaged} damaged slots") }
}

/// Counts of a log so far.
#[derive(Debug, Clone, Copy, Default)]
struct Extent {
    found: u64,
    damaged: u64,
    /// Empty slots since the last record: they are damage once another record follows.
    empty: u64,
    /// Whether the last slot that holds anything is damaged.
    torn: bool,
}

impl Extent {
    /// Counts a slot; whether it holds anything.
    #[inline]
    fn take(&mut self, slot: Slot) -> bool {
        if slot == Slot::Empty {
            self.empty += 1;
            return false;
        }
        self.torn = slot == Slot::Damaged;
        if self.torn {
            self.damaged += 1;
        } else {
            self.damaged += std::mem::take(&mut self.empty);
            self.found += 1;
        }
        true
    }
}

/// Counts what lies in a segment that belongs to no log.
fn orphan(file: &SegmentFile, survey: &mut Survey) -> Result<(), Error> {
    let error = match &file.header {
        Some(Err(error)) => Some(error.to_string()),
        _ => None,
    };
    if matches!(file.header, Some(Err(FormatError::Version { .. } | FormatError::Endianness))) {
        survey.damaged(&file.path, format!("{}; left out", error.unwrap_or_default()));
        return Ok(());
    }
    let mut slots = match Slots::open(&file.path, u32::MAX, Vec::new(), Beside::Few) {
        Ok(slots) => slots,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io(&file.path)(error)),
    };
    let mut extent = Extent::default();
    while let Some((_, slot)) = slots.next_slot().map_err(Error::io(&file.path))? {
        extent.take(slot);
    }
    match error {
        // No header and no record: it has nothing to do with us, whatever it is called.
        Some(error) if extent.found == 0 => survey.damaged(&file.path, format!("{error}; left out")),
        // The process was stopped between its first segment and its head.
        None if extent.found + extent.damaged == 0 => {}
        _ => {
            survey.orphan_records += extent.found;
            survey.orphan_damaged += extent.damaged;
            let found = extent.found;
            survey.damaged(
                &file.path,
                format!("no readable head belongs to it: {found} records cannot be understood"),
            );
        }
    }
    Ok(())
}

/// Gives logs that were too short to measure their clock the rate that another log of the machine measured.
fn calibrate(logs: &mut [Log]) {
    for source in [ClockSource::X86Tsc, ClockSource::ArmCounter] {
        let best = logs
            .iter()
            .map(|log| &log.clock)
            .filter(|clock| clock.source() == source && clock.calibrated_ticks() > 0)
            .max_by_key(|clock| clock.calibrated_ticks())
            .cloned();
        if let Some(best) = best {
            for log in logs.iter_mut() {
                log.clock.borrow_rate(&best);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_one_wrong_byte_is_found_by_the_checksum() {
        for length in [1, 60, 252] {
            let content: Vec<u8> = (0..=u8::MAX).map(|at| at.wrapping_mul(37)).take(length).collect();
            let sound = crc32fast::hash(&content);
            for at in 0..length {
                for change in [1, 2, 0x5a, 0x80, 0xff] {
                    let mut damaged = content.clone();
                    damaged[at] ^= change;
                    let difference = crc32fast::hash(&damaged) ^ sound;
                    assert_eq!(wrong_byte(length, difference), Some((at, change)));
                }
            }
            assert_eq!(wrong_byte(length, 0), None);
        }
    }

    #[test]
    fn a_header_with_one_wrong_byte_is_read_as_it_was() {
        let header = SegmentHeader { log_id: [7; 16], index: 3, slots: 1023 };
        let sound = header.to_bytes();
        for at in 0..HEADER_BYTES {
            for change in [1, 2, 0x5a, 0x80, 0xff] {
                let mut bytes = sound.to_vec();
                bytes[at] ^= change;
                let mended = mend(&bytes, segment::MAGIC, HEADER_BYTES, SegmentHeader::parse);
                assert_eq!(mended, Some(header), "{at} {change}");
            }
        }
        let mut twice = sound.to_vec();
        twice[20] ^= 1;
        twice[40] ^= 1;
        assert_eq!(mend(&twice, segment::MAGIC, HEADER_BYTES, SegmentHeader::parse), None);
        assert_eq!(mend(&sound[..20], segment::MAGIC, HEADER_BYTES, SegmentHeader::parse), None);
    }
}
