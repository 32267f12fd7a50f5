//! The words of a record.

use profilemate_format::record::{PAYLOAD_WORDS, RECORD_BYTES, Record, Slot, commit_word, read_slot};

/// Input: the number of a slot, and words.
pub fn run(mut data: &[u8]) {
    let slot = u32::try_from(crate::number(&mut data)).unwrap_or(0);
    let mut words = [0; PAYLOAD_WORDS];
    for word in &mut words {
        let mut bytes = [0; 8];
        let found = crate::take(&mut data, 8);
        bytes[..found.len()].copy_from_slice(found);
        *word = u64::from_le_bytes(bytes);
    }
    // What is written reads back, as far as there are fields for it.
    let record = Record::from_words(&words);
    let written = record.to_words();
    assert_eq!(Record::from_words(&written).to_words(), written);
    let committed = commit_word(&written, slot);
    let mut bytes = [0; RECORD_BYTES];
    for (to, word) in bytes.chunks_exact_mut(8).zip(written.iter().chain([&committed])) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    let Slot::Record(found) = read_slot(&bytes, slot) else { panic!("not read as a record") };
    assert_eq!(found.to_words(), written);
    // In another slot, or with another last word, it is none.
    assert_eq!(read_slot(&bytes, slot ^ 1), Slot::Damaged);
    for at in 56..RECORD_BYTES {
        let mut torn = bytes;
        torn[at] ^= 1 << (at % 8);
        assert_eq!(read_slot(&torn, slot), Slot::Damaged);
    }
}
