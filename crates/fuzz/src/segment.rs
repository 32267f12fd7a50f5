//! A segment: its header, and what lies in its slots.

use profilemate_format::record::{PAYLOAD_WORDS, RECORD_BYTES, Slot, commit_word, read_slot};
use profilemate_format::segment::{HEADER_BYTES, MAX_SLOTS, SegmentHeader};

/// Input: a mode, the place of a cut, and a segment's bytes. Modes: 1 = the header's checksum is made right; 2 = so are the
/// records'.
pub fn run(mut data: &[u8]) {
    let mode = crate::byte(&mut data);
    let cut = crate::number(&mut data);
    let mut segment = data.to_vec();
    if mode & 1 != 0 && segment.len() >= HEADER_BYTES {
        let checksum = crc32fast::hash(&segment[..60]);
        segment[60..64].copy_from_slice(&checksum.to_le_bytes());
    }
    if mode & 2 != 0 {
        for (slot, bytes) in
            (0..).zip(segment.get_mut(HEADER_BYTES..).unwrap_or_default().chunks_exact_mut(RECORD_BYTES))
        {
            commit(bytes, slot);
        }
    }
    crate::memory::within(4096, || {
        if let Ok(header) = SegmentHeader::parse(&segment) {
            assert!((1..=MAX_SLOTS).contains(&header.slots));
            assert_eq!(SegmentHeader::parse(&header.to_bytes()), Ok(header), "it is read as it is written");
        }
        let cut = HEADER_BYTES + cut % segment.len().max(1);
        for (slot, bytes) in (0..).zip(slots(&segment)) {
            let found = read_slot(bytes, slot);
            if let Slot::Record(record) = found {
                let again = record.to_words();
                assert_eq!(profilemate_format::record::Record::from_words(&again).to_words(), again);
            }
            // A cut costs what lies behind it and nothing else.
            let end = HEADER_BYTES + (slot as usize + 1) * RECORD_BYTES;
            if end <= cut.min(segment.len()) {
                let before = slots(&segment[..cut.min(segment.len())])
                    .nth(slot as usize)
                    .map(|bytes| read_slot(bytes, slot));
                assert_eq!(
                    before.map(|slot| matches!(slot, Slot::Record(_))),
                    Some(matches!(found, Slot::Record(_)))
                );
            }
        }
    });
}

fn slots(segment: &[u8]) -> impl Iterator<Item = &[u8; RECORD_BYTES]> {
    segment.get(HEADER_BYTES..).unwrap_or_default().as_chunks::<RECORD_BYTES>().0.iter()
}

/// Makes the last word of a slot right; an empty one stays empty.
pub(crate) fn commit(bytes: &mut [u8], slot: u32) {
    if bytes.iter().all(|byte| *byte == 0) {
        return;
    }
    let mut words = [0; PAYLOAD_WORDS];
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    bytes[56..].copy_from_slice(&commit_word(&words, slot).to_le_bytes());
}
