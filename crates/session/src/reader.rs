//! The slots of a log, in order, through a read buffer: a log of any size costs the same memory, and a file that
//! shrinks or vanishes while it is read is an error and not a signal, as it would be with a mapping.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use profilemate_format::record::{RECORD_BYTES, Record, Slot, read_slot};
use profilemate_format::segment::HEADER_BYTES;
use rustix::fs::OFlags;

use crate::Error;
use crate::log::Log;

/// How many logs are read at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beside {
    /// Each has a large buffer, and its file stays open.
    Few,
    /// A file is open only while something is read from it: a process may have no more than 1024 open, as a rule.
    Many,
}

impl Beside {
    /// With this many logs.
    pub(crate) fn of(logs: usize) -> Self {
        if logs <= 256 { Self::Few } else { Self::Many }
    }

    /// Bytes read at once; a multiple of the size of a record.
    const fn buffer_bytes(self) -> usize {
        match self {
            Self::Few => 256 << 10,
            Self::Many => 16 << 10,
        }
    }
}

/// Opens a file of a raw log: no link, and no pipe that would keep a reader waiting.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    const FLAGS: OFlags = OFlags::NOFOLLOW.union(OFlags::NONBLOCK);
    File::options().read(true).custom_flags(FLAGS.bits().cast_signed()).open(path)
}

/// Fills `buffer` as far as the file goes.
fn read_full(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// The slots of one segment file.
pub(crate) struct Slots {
    /// `None` while many are read and this one is not.
    file: Option<File>,
    path: PathBuf,
    /// Bytes read of the file.
    position: u64,
    beside: Beside,
    buffer: Vec<u8>,
    at: usize,
    filled: usize,
    slot: u32,
    limit: u32,
}

impl Slots {
    /// Opens a segment and skips its header; `slots` bounds how many are read.
    pub(crate) fn open(path: &Path, slots: u32, buffer: Vec<u8>, beside: Beside) -> io::Result<Self> {
        let mut file = open(path)?;
        let mut header = [0; HEADER_BYTES];
        let filled = read_full(&mut file, &mut header)?;
        // A small file needs no large buffer; one that grows meanwhile is read in more pieces.
        let most = beside.buffer_bytes();
        let length = usize::try_from(file.metadata()?.len()).unwrap_or(most);
        let mut buffer = buffer;
        buffer.resize(length.next_multiple_of(RECORD_BYTES).clamp(RECORD_BYTES, most), 0);
        let limit = if filled < HEADER_BYTES { 0 } else { slots };
        let (path, position) = (path.to_owned(), filled as u64);
        Ok(Self { file: Some(file), path, position, beside, buffer, at: 0, filled: 0, slot: 0, limit })
    }

    /// The next slot and its number; `None` at the end of the file or of what was asked for. A last part of a slot
    /// is damaged unless it is zero.
    #[inline]
    pub(crate) fn next_slot(&mut self) -> io::Result<Option<(u32, Slot)>> {
        if self.slot == self.limit {
            return Ok(None);
        }
        if self.filled - self.at < RECORD_BYTES && !self.fill()? {
            return Ok(None);
        }
        let slot = self.slot;
        self.slot += 1;
        let rest = &self.buffer[self.at..self.filled];
        if let Some(bytes) = rest.first_chunk::<RECORD_BYTES>() {
            self.at += RECORD_BYTES;
            return Ok(Some((slot, read_slot(bytes, slot))));
        }
        let zero = rest.iter().all(|byte| *byte == 0);
        self.at = self.filled;
        Ok(Some((slot, if zero { Slot::Empty } else { Slot::Damaged })))
    }

    /// Reads on when the buffer is used up; whether there is anything.
    #[cold]
    fn fill(&mut self) -> io::Result<bool> {
        let mut file = match self.file.take() {
            Some(file) => file,
            None => match open(&self.path) {
                Ok(mut file) => {
                    file.seek(SeekFrom::Start(self.position))?;
                    file
                }
                // Deleted meanwhile, as whole segments that come later may be.
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
                Err(error) => return Err(error),
            },
        };
        self.filled = read_full(&mut file, &mut self.buffer)?;
        self.position += self.filled as u64;
        if self.beside == Beside::Few {
            self.file = Some(file);
        }
        self.at = 0;
        Ok(self.filled > 0)
    }

    /// Gives the buffer back for the next segment.
    pub(crate) fn into_buffer(self) -> Vec<u8> {
        self.buffer
    }
}

/// The sound records of one log in the order in which they were committed, up to where the survey saw it end.
pub struct Records<'a> {
    segments: std::slice::Iter<'a, crate::log::Segment>,
    current: Option<(Slots, PathBuf)>,
    beside: Beside,
}

impl<'a> Records<'a> {
    pub(crate) fn new(log: &'a Log, beside: Beside) -> Self {
        Self { segments: log.segments.iter(), current: None, beside }
    }

    /// The next record.
    ///
    /// # Errors
    /// When a segment cannot be read. One that was deleted meanwhile (its writer keeps to its limit) is passed over.
    #[inline]
    pub fn next_record(&mut self) -> Result<Option<Record>, Error> {
        loop {
            if let Some((slots, path)) = &mut self.current {
                loop {
                    match slots.next_slot() {
                        Ok(Some((_, Slot::Record(record)))) => return Ok(Some(record)),
                        Ok(Some(_)) => {}
                        Ok(None) => break,
                        Err(error) => return Err(Error::io(path)(error)),
                    }
                }
            }
            if !self.open_next()? {
                return Ok(None);
            }
        }
    }

    #[cold]
    fn open_next(&mut self) -> Result<bool, Error> {
        let mut buffer = self.current.take().map(|(slots, _)| slots.into_buffer()).unwrap_or_default();
        for segment in self.segments.by_ref() {
            if segment.slots == 0 {
                continue;
            }
            match Slots::open(&segment.path, segment.slots, buffer, self.beside) {
                Ok(slots) => {
                    self.current = Some((slots, segment.path.clone()));
                    return Ok(true);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => buffer = Vec::new(),
                Err(error) => return Err(Error::io(&segment.path)(error)),
            }
        }
        Ok(false)
    }
}
