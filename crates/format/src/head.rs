//! A head file: who wrote a log, its clock, its counters, its strings and facts.
//!
//! ```text
//!     0  256  identity (fixed when the log is made, with a CRC-32), see [`Identity`]
//!   256   ..  counters that the writer updates in place, see [`counter`]
//!  4096 4096  clock anchors, bank 0
//!  8192 4096  clock anchors, bank 1
//! 12288   ..  text entries, append only, up to `text_capacity` bytes
//! ```

use crate::{ENDIAN_MARK, FORMAT_VERSION, FormatError, check_preamble, read_u32, read_u64};

/// First bytes of a head file.
pub const MAGIC: [u8; 8] = *b"PMHEAD\r\n";

/// Bytes of the identity block.
pub const IDENTITY_BYTES: usize = 256;

/// Where text entries begin; everything before it has a fixed place.
pub const TEXT_OFFSET: usize = 12288;

/// Longest role name, in bytes.
pub const MAX_ROLE_BYTES: usize = 32;

/// Offsets of the counters: aligned `u64`, each written by one thread of the writer.
pub mod counter {
    /// Bytes of text entries that are complete.
    pub const TEXT_USED: usize = 256;
    /// Records committed to segments.
    pub const WRITTEN: usize = 264;
    /// Records that found no room and were not written.
    pub const DROPPED: usize = 272;
    /// Exceptions and panics caught in probes.
    pub const PROBE_ERRORS: usize = 280;
    /// Segments made, the one that is ready included.
    pub const SEGMENTS: usize = 288;
    /// Records in segments that were deleted to keep to `max_bytes` before anybody made tables of them.
    pub const DISCARDED: usize = 296;
    /// Ticks when the process closed its log by itself; 0 = it did not.
    pub const CLOSED: usize = 304;
    /// Low bit: the bank of anchors that is valid.
    pub const ANCHOR_BANK: usize = 312;
    /// Ticks spent inside probes so far.
    pub const OVERHEAD: usize = 320;
    /// Text entries that did not fit.
    pub const TEXT_DROPPED: usize = 328;
}

/// Offsets of the two banks of anchors.
pub const ANCHOR_BANKS: [usize; 2] = [4096, 8192];

/// Anchors that fit into one bank, after its count (`u64`).
pub const MAX_ANCHORS: usize = 170;

/// Bytes of one anchor.
pub const ANCHOR_BYTES: usize = 24;

/// What a tick is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum ClockSource {
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    Monotonic = 0,
    /// The time-stamp counter of an x86-64 processor (Intel SDM volume 3, 17.17: invariant TSC).
    X86Tsc = 1,
    /// `CNTVCT_EL0` of a 64-bit Arm processor.
    ArmCounter = 2,
}

/// The moment one tick count was read, on the kernel's clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Anchor {
    /// Ticks.
    pub ticks: u64,
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub monotonic_ns: u64,
    /// `CLOCK_REALTIME`, nanoseconds since 1970.
    pub realtime_ns: u64,
}

impl Anchor {
    /// The anchor as bytes.
    pub fn to_bytes(self) -> [u8; ANCHOR_BYTES] {
        let mut bytes = [0; ANCHOR_BYTES];
        bytes[..8].copy_from_slice(&self.ticks.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.monotonic_ns.to_le_bytes());
        bytes[16..].copy_from_slice(&self.realtime_ns.to_le_bytes());
        bytes
    }
}

/// The identity block.
///
/// ```text
///   0  8  magic "PMHEAD\r\n"        64 32  role, NUL-padded
///   8  4  format version            96  8  start of the process, clock ticks since boot (/proc/PID/stat, field 22)
///  12  4  byte-order mark          104  8  ticks per second, first estimate
///  16 16  log id                   112  4  clock source
///  32  4  pid                      116  4  slots of a segment
///  36  4  rank                     120  8  text capacity
///  40  4  parent pid               128  4  data-parallel rank
///  44 20  zero                     132 120 zero
///                                  252  4  CRC-32 of bytes 0-251
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Random; its segments carry the same.
    pub log_id: [u8; 16],
    /// What the process is: `engine_core`, `worker`, `api_server`, `launcher`, …
    pub role: String,
    /// Which of several.
    pub rank: u32,
    /// Data-parallel rank of the engine that it belongs to: step ids are counted per engine.
    pub data_parallel_rank: u32,
    /// Process id.
    pub pid: u32,
    /// Parent's process id.
    pub parent_pid: u32,
    /// Start of the process in clock ticks since boot: tells a reused pid from the first one.
    pub process_start: u64,
    /// First estimate of the clock's rate; anchors are better once there are two.
    pub ticks_per_second: u64,
    /// What a tick is.
    pub clock: ClockSource,
    /// Slots of a segment.
    pub segment_slots: u32,
    /// Bytes for text entries.
    pub text_capacity: u64,
}

impl Identity {
    /// The block as bytes. A role over [`MAX_ROLE_BYTES`] is cut.
    pub fn to_bytes(&self) -> [u8; IDENTITY_BYTES] {
        let mut bytes = [0; IDENTITY_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&ENDIAN_MARK.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.log_id);
        bytes[32..36].copy_from_slice(&self.pid.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.rank.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.parent_pid.to_le_bytes());
        let role = self.role.as_bytes();
        let role = &role[..role.len().min(MAX_ROLE_BYTES)];
        bytes[64..64 + role.len()].copy_from_slice(role);
        bytes[96..104].copy_from_slice(&self.process_start.to_le_bytes());
        bytes[104..112].copy_from_slice(&self.ticks_per_second.to_le_bytes());
        bytes[112..116].copy_from_slice(&(self.clock as u32).to_le_bytes());
        bytes[116..120].copy_from_slice(&self.segment_slots.to_le_bytes());
        bytes[120..128].copy_from_slice(&self.text_capacity.to_le_bytes());
        bytes[128..132].copy_from_slice(&self.data_parallel_rank.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..252]);
        bytes[252..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }
}

/// Kinds of text entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum TextKind {
    /// A string that records name by its number: the first has id 1.
    String = 1,
    /// `key NUL value`: something true of the process; a later value for a key replaces the earlier.
    Fact = 2,
    /// `role NUL rank NUL data-parallel rank`: the process does this job as well (one process may be engine and worker).
    Role = 3,
}

/// Bytes before the text of an entry: length, kind, CRC-32 of the text, zero.
pub const ENTRY_HEADER_BYTES: usize = 16;

/// The bytes of one text entry, padded to eight.
pub fn text_entry(kind: TextKind, text: &[u8]) -> Option<Vec<u8>> {
    let length = u32::try_from(text.len()).ok()?;
    let mut entry = Vec::with_capacity(ENTRY_HEADER_BYTES + text.len() + 7);
    entry.extend_from_slice(&length.to_le_bytes());
    entry.extend_from_slice(&(kind as u32).to_le_bytes());
    entry.extend_from_slice(&crc32fast::hash(text).to_le_bytes());
    entry.extend_from_slice(&[0; 4]);
    entry.extend_from_slice(text);
    entry.resize(entry.len().next_multiple_of(8), 0);
    Some(entry)
}

/// A role that a process has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    /// `engine_core`, `worker`, …
    pub name: String,
    /// Which of several.
    pub rank: u32,
    /// Data-parallel rank of its engine.
    pub data_parallel_rank: u32,
}

/// A head, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Format version of the file.
    pub version: u32,
    /// Who wrote it.
    pub identity: Identity,
    /// Strings in the order of their ids; `None` where one is damaged.
    pub strings: Vec<Option<String>>,
    /// Facts in the order written.
    pub facts: Vec<(String, String)>,
    /// Roles, the identity's first.
    pub roles: Vec<Role>,
    /// Clock anchors, ascending.
    pub anchors: Vec<Anchor>,
    /// See [`counter::WRITTEN`].
    pub written: u64,
    /// See [`counter::DROPPED`].
    pub dropped: u64,
    /// See [`counter::PROBE_ERRORS`].
    pub probe_errors: u64,
    /// See [`counter::SEGMENTS`].
    pub segments: u64,
    /// See [`counter::DISCARDED`].
    pub discarded: u64,
    /// See [`counter::CLOSED`].
    pub closed_ticks: Option<u64>,
    /// See [`counter::OVERHEAD`].
    pub overhead_ticks: u64,
    /// Text entries that are damaged or did not fit.
    pub text_lost: u64,
}

impl Head {
    /// The string with this id; `None` for 0, an unknown id or a damaged string.
    pub fn string(&self, id: u32) -> Option<&str> {
        self.strings.get((id as usize).checked_sub(1)?)?.as_deref()
    }

    /// The last value of a fact.
    pub fn fact(&self, key: &str) -> Option<&str> {
        self.facts.iter().rev().find(|(k, _)| k == key).map(|(_, value)| value.as_str())
    }

    /// Reads a head file. A damaged text entry or anchor costs itself only.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let version = check_preamble(bytes, MAGIC, "head", TEXT_OFFSET)?;
        let short = FormatError::Short { found: bytes.len(), needed: TEXT_OFFSET };
        let block = bytes.first_chunk::<IDENTITY_BYTES>().ok_or(short.clone())?;
        if read_u32(block, 252) != Some(crc32fast::hash(&block[..252])) {
            return Err(FormatError::Checksum);
        }
        let u32_at = |offset| read_u32(bytes, offset).ok_or(short.clone());
        let u64_at = |offset| read_u64(bytes, offset).ok_or(short.clone());
        let mut log_id = [0; 16];
        log_id.copy_from_slice(&block[16..32]);
        let role_bytes = &block[64..64 + MAX_ROLE_BYTES];
        let role_end = role_bytes.iter().position(|b| *b == 0).unwrap_or(MAX_ROLE_BYTES);
        let identity = Identity {
            log_id,
            role: String::from_utf8_lossy(&role_bytes[..role_end]).into_owned(),
            rank: u32_at(36)?,
            data_parallel_rank: u32_at(128)?,
            pid: u32_at(32)?,
            parent_pid: u32_at(40)?,
            process_start: u64_at(96)?,
            ticks_per_second: match u64_at(104)? {
                0 => return Err(FormatError::Field("clock rate 0")),
                rate => rate,
            },
            clock: match u32_at(112)? {
                0 => ClockSource::Monotonic,
                1 => ClockSource::X86Tsc,
                2 => ClockSource::ArmCounter,
                _ => return Err(FormatError::Field("clock source")),
            },
            segment_slots: u32_at(116)?,
            text_capacity: u64_at(120)?,
        };
        let mut head = Self {
            version,
            strings: Vec::new(),
            facts: Vec::new(),
            roles: vec![Role {
                name: identity.role.clone(),
                rank: identity.rank,
                data_parallel_rank: identity.data_parallel_rank,
            }],
            anchors: anchors(bytes),
            written: u64_at(counter::WRITTEN)?,
            dropped: u64_at(counter::DROPPED)?,
            probe_errors: u64_at(counter::PROBE_ERRORS)?,
            segments: u64_at(counter::SEGMENTS)?,
            discarded: u64_at(counter::DISCARDED)?,
            closed_ticks: Some(u64_at(counter::CLOSED)?).filter(|ticks| *ticks != 0),
            overhead_ticks: u64_at(counter::OVERHEAD)?,
            text_lost: u64_at(counter::TEXT_DROPPED)?,
            identity,
        };
        let used = u64_at(counter::TEXT_USED)?.min(head.identity.text_capacity);
        let end = TEXT_OFFSET.saturating_add(usize::try_from(used).unwrap_or(usize::MAX)).min(bytes.len());
        head.read_text(&bytes[TEXT_OFFSET..end]);
        Ok(head)
    }

    fn read_text(&mut self, mut text: &[u8]) {
        while let Some(entry) = text.first_chunk::<ENTRY_HEADER_BYTES>() {
            let length = read_u32(entry, 0).unwrap_or(0) as usize;
            let Some(content) = text.get(ENTRY_HEADER_BYTES..ENTRY_HEADER_BYTES + length) else {
                // The length itself is damaged: nothing behind it can be found.
                self.text_lost = self.text_lost.saturating_add(1);
                return;
            };
            let sound = read_u32(entry, 8) == Some(crc32fast::hash(content));
            let content = sound.then(|| String::from_utf8_lossy(content).into_owned());
            if !sound {
                self.text_lost = self.text_lost.saturating_add(1);
            }
            match (read_u32(entry, 4), content) {
                (Some(1), string) => self.strings.push(string),
                (Some(2), Some(fact)) => {
                    if let Some((key, value)) = fact.split_once('\0') {
                        self.facts.push((key.to_owned(), value.to_owned()));
                    }
                }
                (Some(3), Some(role)) => {
                    let mut parts = role.split('\0');
                    if let (Some(name), Some(Ok(rank)), Some(Ok(data_parallel_rank))) =
                        (parts.next(), parts.next().map(str::parse), parts.next().map(str::parse))
                    {
                        self.roles.push(Role { name: name.to_owned(), rank, data_parallel_rank });
                    }
                }
                _ => {}
            }
            let step = (ENTRY_HEADER_BYTES + length).next_multiple_of(8);
            text = text.get(step..).unwrap_or(&[]);
        }
    }
}

/// The anchors of the valid bank, in ascending order; those that run backwards are left out.
fn anchors(bytes: &[u8]) -> Vec<Anchor> {
    let bank = ANCHOR_BANKS[usize::from(read_u64(bytes, counter::ANCHOR_BANK).unwrap_or(0) & 1 == 1)];
    let count = read_u64(bytes, bank).unwrap_or(0).min(MAX_ANCHORS as u64);
    let mut anchors: Vec<Anchor> = Vec::new();
    for i in 0..usize::try_from(count).unwrap_or(0) {
        let at = bank + 8 + i * ANCHOR_BYTES;
        let (Some(ticks), Some(monotonic_ns), Some(realtime_ns)) =
            (read_u64(bytes, at), read_u64(bytes, at + 8), read_u64(bytes, at + 16))
        else {
            break;
        };
        let later = anchors.last().is_none_or(|last| ticks > last.ticks && monotonic_ns > last.monotonic_ns);
        if later {
            anchors.push(Anchor { ticks, monotonic_ns, realtime_ns });
        }
    }
    anchors
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn identity() -> Identity {
        Identity {
            log_id: [3; 16],
            role: "engine_core".into(),
            rank: 1,
            data_parallel_rank: 2,
            pid: 4711,
            parent_pid: 4710,
            process_start: 99,
            ticks_per_second: 2_600_000_000,
            clock: ClockSource::X86Tsc,
            segment_slots: 128,
            text_capacity: 4096,
        }
    }

    fn file() -> Vec<u8> {
        let mut bytes = vec![0; TEXT_OFFSET + 4096];
        bytes[..IDENTITY_BYTES].copy_from_slice(&identity().to_bytes());
        let mut text = Vec::new();
        for (kind, content) in [
            (TextKind::String, "scheduling"),
            (TextKind::Fact, "model\0llama"),
            (TextKind::Role, "worker\x000\x002"),
            (TextKind::String, "forward"),
        ] {
            text.extend(text_entry(kind, content.as_bytes()).unwrap());
        }
        bytes[TEXT_OFFSET..TEXT_OFFSET + text.len()].copy_from_slice(&text);
        bytes[counter::TEXT_USED..counter::TEXT_USED + 8].copy_from_slice(&(text.len() as u64).to_le_bytes());
        bytes
    }

    #[test]
    fn reads_what_was_written() {
        let head = Head::parse(&file()).unwrap();
        assert_eq!(head.identity, identity());
        assert_eq!(head.string(1), Some("scheduling"));
        assert_eq!(head.string(2), Some("forward"));
        assert_eq!((head.string(0), head.string(3)), (None, None));
        assert_eq!(head.fact("model"), Some("llama"));
        assert_eq!(head.roles.len(), 2);
        assert_eq!(head.roles[1], Role { name: "worker".into(), rank: 0, data_parallel_rank: 2 });
    }

    #[test]
    fn a_damaged_string_keeps_the_ids_of_the_others() {
        let mut bytes = file();
        bytes[TEXT_OFFSET + ENTRY_HEADER_BYTES] ^= 1;
        let head = Head::parse(&bytes).unwrap();
        assert_eq!((head.string(1), head.string(2), head.text_lost), (None, Some("forward"), 1));
    }

    #[test]
    fn a_newer_version_is_refused_by_name() {
        let mut bytes = file();
        bytes[8] = 9;
        assert_eq!(Head::parse(&bytes), Err(FormatError::Version { found: 9 }));
    }

    proptest! {
        #[test]
        fn damage_anywhere_never_panics(at in 0usize..TEXT_OFFSET + 300, value: u8, cut in 0usize..TEXT_OFFSET + 4096) {
            let mut bytes = file();
            bytes[at] = value;
            bytes.truncate(cut.max(at));
            let _ = Head::parse(&bytes);
        }
    }
}
