//! The head of a raw log.

use profilemate_format::head::{
    ANCHOR_BANKS, ENTRY_HEADER_BYTES, Head, IDENTITY_BYTES, MAGIC, TEXT_OFFSET, TextKind, counter, text_entry,
};
use profilemate_format::{ENDIAN_MARK, FORMAT_VERSION};

/// Bytes of the counters.
const COUNTERS_BYTES: usize = 80;

/// Input: a mode, the place of a cut, and either a head as it is (mode 0) or one in short form: identity, counters, one byte
/// that says how many bytes of anchors follow in each bank, in groups of eight, those, and text. Modes: 2 = what the reader
/// wants to see first is put in place, and the identity's checksum made right; 4 = so are the texts' checksums.
pub fn run(mut data: &[u8]) {
    let mode = crate::byte(&mut data);
    let cut = crate::number(&mut data);
    let bytes = if mode == 0 { data.to_vec() } else { expanded(data, mode) };
    let limit = 4096 + 64 * bytes.len();
    let Ok(head) = crate::memory::within(limit, || Head::parse(&bytes)) else { return };
    assert!(head.anchors.windows(2).all(|pair| pair[0].ticks < pair[1].ticks));
    // A cut costs what lies behind it and nothing else.
    let cut = if mode & 8 != 0 { TEXT_OFFSET + cut } else { cut }.min(bytes.len());
    match Head::parse(&bytes[..cut]) {
        Ok(before) => {
            assert!(cut >= TEXT_OFFSET);
            assert_eq!(before.identity, head.identity);
            assert_eq!(before.anchors, head.anchors);
            assert!(head.strings.starts_with(&before.strings));
            assert!(head.facts.starts_with(&before.facts));
            assert!(head.roles.starts_with(&before.roles));
        }
        Err(_) => assert!(cut < TEXT_OFFSET, "a head with all that has a fixed place is read"),
    }
    // What was read is written and read again. (A role that is no UTF-8 was replaced by something longer.)
    let mut again = vec![0; TEXT_OFFSET];
    again[..IDENTITY_BYTES].copy_from_slice(&head.identity.to_bytes());
    let strings = head.strings.iter().flatten().map(|text| (TextKind::String, text.clone()));
    let facts = head.facts.iter().map(|(key, value)| (TextKind::Fact, format!("{key}\0{value}")));
    let roles = head.roles[1..]
        .iter()
        .map(|role| (TextKind::Role, format!("{}\0{}\0{}", role.name, role.rank, role.data_parallel_rank)));
    for (kind, text) in strings.chain(facts).chain(roles) {
        again.extend(text_entry(kind, text.as_bytes()).expect("it is short enough to have been read"));
    }
    let used = (again.len() - TEXT_OFFSET) as u64;
    put(&mut again, counter::TEXT_USED, &used.to_le_bytes());
    if head.identity.text_capacity < used {
        // Replaced letters are longer than what they stand for.
        return;
    }
    let read = Head::parse(&again).expect("it was written here");
    assert_eq!(
        read.strings.iter().flatten().collect::<Vec<_>>(),
        head.strings.iter().flatten().collect::<Vec<_>>()
    );
    assert_eq!(read.facts, head.facts);
    assert_eq!(read.roles[1..], head.roles[1..]);
    assert_eq!(read.text_lost, 0);
    if head.identity.role.is_ascii() {
        assert_eq!(read.identity, head.identity);
    }
}

fn put(bytes: &mut [u8], at: usize, what: &[u8]) {
    bytes[at..at + what.len()].copy_from_slice(what);
}

/// The head that a short form stands for.
fn expanded(mut data: &[u8], mode: u8) -> Vec<u8> {
    let mut bytes = vec![0; TEXT_OFFSET];
    put(&mut bytes, 0, crate::take(&mut data, IDENTITY_BYTES));
    put(&mut bytes, counter::TEXT_USED, crate::take(&mut data, COUNTERS_BYTES));
    let anchors = 8 * usize::from(crate::byte(&mut data));
    for bank in ANCHOR_BANKS {
        put(&mut bytes, bank, crate::take(&mut data, anchors));
    }
    bytes.extend_from_slice(data);
    if mode & 2 != 0 {
        put(&mut bytes, 0, &MAGIC);
        put(&mut bytes, 8, &FORMAT_VERSION.to_le_bytes());
        put(&mut bytes, 12, &ENDIAN_MARK.to_le_bytes());
        let checksum = crc32fast::hash(&bytes[..252]);
        put(&mut bytes, 252, &checksum.to_le_bytes());
    }
    if mode & 4 != 0 {
        mend_text(&mut bytes[TEXT_OFFSET..]);
    }
    bytes
}

/// Makes the checksums of text entries right.
fn mend_text(mut text: &mut [u8]) {
    while text.len() >= ENTRY_HEADER_BYTES {
        let length = u32::from_le_bytes([text[0], text[1], text[2], text[3]]) as usize;
        let Some(content) = text.get(ENTRY_HEADER_BYTES..ENTRY_HEADER_BYTES + length) else { return };
        let checksum = crc32fast::hash(content);
        put(text, 8, &checksum.to_le_bytes());
        let step = (ENTRY_HEADER_BYTES + length).next_multiple_of(8);
        text = text.get_mut(step..).unwrap_or_default();
    }
}

/// The short form of a head, for the corpus.
pub(crate) fn short_form(head: &[u8], text_bytes: usize) -> Vec<u8> {
    let mut short = vec![2 | 4, 0, 0];
    short.extend_from_slice(&head[..IDENTITY_BYTES + COUNTERS_BYTES]);
    short.push(7);
    for bank in ANCHOR_BANKS {
        short.extend_from_slice(&head[bank..bank + 56]);
    }
    short.extend_from_slice(&head[TEXT_OFFSET..head.len().min(TEXT_OFFSET + text_bytes)]);
    short
}
