//! A segment file: one 64-byte header, then `slots` records.
//!
//! ```text
//!  0  8  magic "PMSEG\0\r\n"
//!  8  4  format version
//! 12  4  byte-order mark
//! 16 16  log id: the same as in the head
//! 32  8  index of the segment, from 0
//! 40  4  slots
//! 44 16  zero
//! 60  4  CRC-32 of bytes 0-59
//! ```

use crate::{ENDIAN_MARK, FORMAT_VERSION, FormatError, check_preamble, read_u32, read_u64};

/// First bytes of a segment file. The line end shows a file that was copied as text.
pub const MAGIC: [u8; 8] = *b"PMSEG\0\r\n";

/// Bytes before the first record.
pub const HEADER_BYTES: usize = 64;

/// Most slots that a segment may have: 1 GiB.
pub const MAX_SLOTS: u32 = 1 << 24;

/// Header of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Ties the segment to its head.
    pub log_id: [u8; 16],
    /// Place of the segment in the log, from 0.
    pub index: u64,
    /// Slots that follow the header.
    pub slots: u32,
}

impl SegmentHeader {
    /// The header as bytes.
    pub fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&ENDIAN_MARK.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.log_id);
        bytes[32..40].copy_from_slice(&self.index.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.slots.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads the header at the beginning of `bytes`.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        check_preamble(bytes, MAGIC, "segment", HEADER_BYTES)?;
        let short = FormatError::Short { found: bytes.len(), needed: HEADER_BYTES };
        let header = bytes.first_chunk::<HEADER_BYTES>().ok_or(short.clone())?;
        if read_u32(header, 60) != Some(crc32fast::hash(&header[..60])) {
            return Err(FormatError::Checksum);
        }
        let mut log_id = [0; 16];
        log_id.copy_from_slice(&header[16..32]);
        let index = read_u64(header, 32).ok_or(short.clone())?;
        let slots = read_u32(header, 40).ok_or(short)?;
        if slots == 0 || slots > MAX_SLOTS {
            return Err(FormatError::Field("number of slots"));
        }
        Ok(Self { log_id, index, slots })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn round_trip(log_id: [u8; 16], index: u64, slots in 1..=MAX_SLOTS) {
            let header = SegmentHeader { log_id, index, slots };
            prop_assert_eq!(SegmentHeader::parse(&header.to_bytes()), Ok(header));
        }

        #[test]
        fn any_flipped_bit_is_refused(index: u64, bit in 0usize..512) {
            let mut bytes = SegmentHeader { log_id: [7; 16], index, slots: 9 }.to_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(SegmentHeader::parse(&bytes).is_err());
        }

        #[test]
        fn any_bytes_are_refused_without_panic(bytes: Vec<u8>) {
            prop_assert!(SegmentHeader::parse(&bytes).is_err());
        }
    }
}
