//! The raw log: the only thing that the recorder (inside vLLM) and every reader (outside) share.
//!
//! `FORMAT.md` at the root of the repository describes the same bytes for people. A process writes one *head* file
//! (who it is, its clock, its strings and facts) and a sequence of *segment* files (fixed 64-byte records). This crate
//! knows bytes only: it opens no file and makes no system call.
//!
//! Every integer is little-endian. All offsets are in bytes.

pub mod head;
pub mod record;
pub mod segment;

/// Version of the layout that this build writes. Readers accept every version up to it.
pub const FORMAT_VERSION: u32 = 1;

/// Written as a native integer, so that a reader on a machine of another byte order can tell.
pub const ENDIAN_MARK: u32 = 0x0102_0304;

/// Name of the folder of raw logs inside a session folder.
pub const RAW_FOLDER: &str = "raw";

/// Extension of a head file: `<role>-<rank>-<pid>.head`.
pub const HEAD_EXTENSION: &str = "head";

/// Extension of a segment file: `<role>-<rank>-<pid>.<index, six digits>.seg`.
pub const SEGMENT_EXTENSION: &str = "seg";

/// What is wrong with a file that should be part of a raw log.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum FormatError {
    /// The file does not begin with the magic bytes.
    #[error("not a ProfileMate {0} file (its first 8 bytes are not the magic number)")]
    Magic(&'static str),
    /// The file is from a newer ProfileMate.
    #[error(
        "written in raw-log format {found}, and this ProfileMate reads up to format {FORMAT_VERSION}: update it"
    )]
    Version {
        /// The version in the file.
        found: u32,
    },
    /// The file is from a machine with another byte order.
    #[error("written on a machine of another byte order")]
    Endianness,
    /// The file is shorter than its fixed part.
    #[error("only {found} bytes long, and its header alone takes {needed}")]
    Short {
        /// Length of the file.
        found: usize,
        /// Length of the fixed part.
        needed: usize,
    },
    /// The header's checksum does not fit its bytes.
    #[error("its header is damaged (checksum)")]
    Checksum,
    /// A header field has a value that no writer writes.
    #[error("its header is damaged ({0})")]
    Field(&'static str),
}

/// Reads the little-endian `u32` at `offset`; `None` past the end.
pub(crate) fn read_u32(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(offset..offset.checked_add(4)?)?.try_into().ok()?))
}

/// Reads the little-endian `u64` at `offset`; `None` past the end.
pub(crate) fn read_u64(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(offset..offset.checked_add(8)?)?.try_into().ok()?))
}

/// Checks what every file of a raw log begins with: magic, version, byte order.
pub(crate) fn check_preamble(
    bytes: &[u8],
    magic: [u8; 8],
    name: &'static str,
    header_bytes: usize,
) -> Result<u32, FormatError> {
    if bytes.get(..8) != Some(&magic[..]) {
        return Err(FormatError::Magic(name));
    }
    let short = FormatError::Short { found: bytes.len(), needed: header_bytes };
    let mark = bytes.get(12..16).ok_or(short.clone())?;
    if mark == ENDIAN_MARK.to_be_bytes() {
        return Err(FormatError::Endianness);
    }
    if mark != ENDIAN_MARK.to_le_bytes() {
        return Err(FormatError::Field("byte-order mark"));
    }
    let version = read_u32(bytes, 8).ok_or(short.clone())?;
    if version == 0 {
        return Err(FormatError::Field("version 0"));
    }
    if version > FORMAT_VERSION {
        return Err(FormatError::Version { found: version });
    }
    if bytes.len() < header_bytes {
        return Err(short);
    }
    Ok(version)
}
