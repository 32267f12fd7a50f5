//! Writes one log.

use crate::keeper::{Keeper, SegmentPlan, Shared};
use crate::mapping::Mapping;
use crate::{Error, clock, fork};
use profilemate_format::head::{Identity, MAX_ROLE_BYTES, TEXT_OFFSET, TextKind, counter, text_entry};
use profilemate_format::record::{PAYLOAD_WORDS, RECORD_BYTES, Record, Words, commit_word};
use profilemate_format::segment::{HEADER_BYTES, MAX_SLOTS};
use profilemate_format::{HEAD_EXTENSION, RAW_FOLDER};
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use rustix::rand::{GetRandomFlags, getrandom};
use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Extension of a head until it is locked and complete: no reader knows it.
const NEW_HEAD_EXTENSION: &str = "head.new";

/// Logs of one name (role, rank and process id) that a session may have.
const MOST_OF_ONE_NAME: u32 = 100_000;

/// How a log is made.
#[derive(Debug, Clone)]
pub struct Options {
    /// Folder of the session; must exist, see [`crate::session_folder`].
    pub session_folder: PathBuf,
    /// What the process is, e.g. `engine_core`: letters, digits and `_`.
    pub role: String,
    /// Which of several.
    pub rank: u32,
    /// Data-parallel rank of its engine.
    pub data_parallel_rank: u32,
    /// Bytes of one segment file.
    pub segment_bytes: u64,
    /// Most bytes of segments on disk; the oldest are deleted. At least three segments are kept.
    pub max_bytes: u64,
    /// Bytes for strings and facts.
    pub text_capacity: u64,
}

impl Options {
    /// Usual sizes for a log with this role.
    pub fn new(session_folder: &Path, role: &str, rank: u32) -> Self {
        Self {
            session_folder: session_folder.to_owned(),
            role: role.to_owned(),
            rank,
            data_parallel_rank: 0,
            segment_bytes: 4 << 20,
            max_bytes: 2 << 30,
            text_capacity: 1 << 20,
        }
    }
}

/// Writes the log of this process.
///
/// Not `Sync`: one thread uses it at a time.
#[derive(Debug)]
pub struct Writer {
    /// Where the next record goes; meaningful while `left > 0`.
    next: *mut u8,
    /// Slots left in the segment.
    left: u32,
    slots: u32,
    generation: u32,
    written: u64,
    dropped: u64,
    overhead_ticks: u64,
    text_used: u64,
    text_capacity: u64,
    strings: HashMap<String, u32>,
    path: PathBuf,
    plan: SegmentPlan,
    shared: Arc<Shared>,
    keeper: Option<Keeper>,
    lock: Option<OwnedFd>,
}

// SAFETY: `next` points into a mapping that any thread may write; `&mut self` admits one at a time.
unsafe impl Send for Writer {}

impl Writer {
    /// Makes a log, locks it and starts its thread.
    pub fn open(options: &Options) -> Result<Self, Error> {
        let role_is_plain = options.role.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if options.role.is_empty() || options.role.len() > MAX_ROLE_BYTES || !role_is_plain {
            return Err(Error::Options("a role is one to 32 letters, digits and underscores"));
        }
        let room = options.segment_bytes.saturating_sub(HEADER_BYTES as u64) / RECORD_BYTES as u64;
        let slots = u32::try_from(room).unwrap_or(MAX_SLOTS).clamp(1, MAX_SLOTS);
        let text_capacity = options.text_capacity.next_multiple_of(8);
        let mut log_id = [0; 16];
        let _ = getrandom(&mut log_id, GetRandomFlags::empty());
        let (base, head, file) = Self::make_head(options, text_capacity)?;
        let path = base.with_added_extension(HEAD_EXTENSION);
        let mut unfinished = Unfinished { files: vec![base.with_added_extension(NEW_HEAD_EXTENSION)], lock: -1 };
        flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|error| Error::file("lock", &path, error))?;
        unfinished.lock = file.as_raw_fd();
        fork::watch(unfinished.lock);
        let identity = Identity {
            log_id,
            role: options.role.clone(),
            rank: options.rank,
            data_parallel_rank: options.data_parallel_rank,
            pid: std::process::id(),
            parent_pid: std::os::unix::process::parent_id(),
            process_start: process_start().unwrap_or(0),
            ticks_per_second: clock::ticks_per_second(),
            clock: clock::source(),
            segment_slots: slots,
            text_capacity,
        };
        let segment_bytes = u64::from(slots) * RECORD_BYTES as u64 + HEADER_BYTES as u64;
        let most = (options.max_bytes / segment_bytes).max(3);
        let plan = SegmentPlan { base: base.clone(), log_id, slots, most };
        let first = plan.make(0)?;
        unfinished.files.push(plan.path(0));
        // SAFETY: nobody else knows the mapping yet.
        unsafe { head.write(0, &identity.to_bytes()) };
        head.word(counter::SEGMENTS).store(1, Ordering::Release);
        let shared = Arc::new(Shared::new(head));
        // SAFETY: a segment is a header and at least one slot.
        let next = unsafe { first.base().as_ptr().add(HEADER_BYTES) };
        let keeper = Keeper::start(Arc::clone(&shared), plan.clone(), first)?;
        // From here on readers see the log: locked, and with everything that a head must have.
        if let Err(error) = std::fs::rename(&unfinished.files[0], &path) {
            keeper.stop(&shared);
            return Err(Error::file("make", &path, error));
        }
        std::mem::forget(unfinished);
        Ok(Self {
            next,
            left: slots,
            slots,
            generation: fork::generation(),
            written: 0,
            dropped: 0,
            overhead_ticks: 0,
            text_used: 0,
            text_capacity,
            strings: HashMap::new(),
            path,
            plan,
            shared,
            keeper: Some(keeper),
            lock: Some(file),
        })
    }

    /// Makes the head file under its name for the time being; the name carries a number when this pid had a log in
    /// this session before.
    fn make_head(options: &Options, text_capacity: u64) -> Result<(PathBuf, Mapping, OwnedFd), Error> {
        let raw = options.session_folder.join(RAW_FOLDER);
        let name = format!("{}-{}-{}", options.role, options.rank, std::process::id());
        let text_capacity = usize::try_from(text_capacity).unwrap_or(usize::MAX - TEXT_OFFSET);
        let mut number = 1;
        loop {
            let base = raw.join(if number == 1 { name.clone() } else { format!("{name}~{number}") });
            number += 1;
            let (new, head) =
                (base.with_added_extension(NEW_HEAD_EXTENSION), base.with_added_extension(HEAD_EXTENSION));
            // Process ids are given out again: in a long session there may be many logs of one.
            if number < MOST_OF_ONE_NAME && head.exists() {
                continue;
            }
            match Mapping::create(&new, TEXT_OFFSET + text_capacity) {
                Err(Error::File { source, .. })
                    if source.kind() == std::io::ErrorKind::AlreadyExists && number < MOST_OF_ONE_NAME => {}
                Err(error) => return Err(error),
                // Asked once more: whoever holds the new name is the only one who may make the other.
                Ok(_) if number < MOST_OF_ONE_NAME && head.exists() => {
                    let _ = std::fs::remove_file(new);
                }
                Ok((mapping, _)) => {
                    // Opened anew for the lock: a mapping holds on to what it was made through, in forked children
                    // too, where the lock would then outlive this process.
                    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
                    return match open(&new, flags, Mode::empty()) {
                        Ok(file) => Ok((base, mapping, file)),
                        Err(error) => {
                            let _ = std::fs::remove_file(&new);
                            Err(Error::file("open", &new, error))
                        }
                    };
                }
            }
        }
    }

    /// Path of the head file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether this process still is the one that opened the log (a forked child is not).
    #[inline]
    pub fn is_ours(&self) -> bool {
        self.generation == fork::generation()
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        self.shared.head.word(offset)
    }

    /// Writes one record. `false`: there was no room, and it was counted as dropped.
    #[inline]
    pub fn push(&mut self, record: &Record) -> bool {
        self.push_words(&record.to_words())
    }

    /// Writes one record given as words.
    #[inline]
    #[expect(clippy::cast_ptr_alignment, reason = "slots are 64 bytes and begin 64 bytes into a page")]
    pub fn push_words(&mut self, words: &Words) -> bool {
        if (self.left == 0 || !self.is_ours()) && !self.begin_next_segment() {
            return false;
        }
        let slot = self.slots - self.left;
        let commit = commit_word(words, slot);
        // SAFETY: `left > 0`, so `next` is a free slot of a segment that stays mapped while it is the current one.
        unsafe {
            let to = self.next.cast::<u64>();
            for (i, word) in words.iter().enumerate() {
                to.add(i).write(word.to_le());
            }
            // Last, and not before the others: whoever finds it finds the whole record.
            AtomicU64::from_ptr(to.add(PAYLOAD_WORDS)).store(commit.to_le(), Ordering::Release);
            self.next = self.next.add(RECORD_BYTES);
        }
        self.left -= 1;
        self.written += 1;
        self.word(counter::WRITTEN).store(self.written, Ordering::Release);
        true
    }

    #[cold]
    fn begin_next_segment(&mut self) -> bool {
        if !self.is_ours() {
            return false;
        }
        let ready = self.shared.ready.swap(null_mut(), Ordering::Acquire);
        if ready.is_null() {
            self.dropped += 1;
            self.word(counter::DROPPED).store(self.dropped, Ordering::Relaxed);
            return false;
        }
        // SAFETY: a segment is a header and `slots` slots, and it stays mapped while it is the current one.
        self.next = unsafe { ready.add(HEADER_BYTES) };
        self.left = self.slots;
        let current = self.shared.current.load(Ordering::Relaxed) + 1;
        self.shared.current.store(current, Ordering::Release);
        true
    }

    /// Adds ticks that were spent inside probes.
    #[inline]
    pub fn add_overhead(&mut self, ticks: u64) {
        if !self.is_ours() {
            return;
        }
        self.overhead_ticks = self.overhead_ticks.wrapping_add(ticks);
        self.word(counter::OVERHEAD).store(self.overhead_ticks, Ordering::Relaxed);
    }

    /// Ticks spent inside probes so far.
    #[inline]
    pub fn overhead_ticks(&self) -> u64 {
        self.overhead_ticks
    }

    /// Records committed so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Records that found no room so far.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Counts an exception or panic that was caught in a probe.
    pub fn count_probe_error(&mut self) {
        if self.is_ours() {
            self.word(counter::PROBE_ERRORS).fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The id of a string, for the `name` and `context` of records. Not for the hot path. 0 when there is no room.
    pub fn intern(&mut self, text: &str) -> u32 {
        if let Some(id) = self.strings.get(text) {
            return *id;
        }
        if !self.add_text(TextKind::String, text.as_bytes()) {
            return 0;
        }
        let id = u32::try_from(self.strings.len() + 1).unwrap_or(0);
        self.strings.insert(text.to_owned(), id);
        id
    }

    /// Notes something that is true of this process. A NUL in the key or value is replaced.
    pub fn fact(&mut self, key: &str, value: &str) {
        let text = format!("{}\0{}", key.replace('\0', "?"), value.replace('\0', "?"));
        self.add_text(TextKind::Fact, text.as_bytes());
    }

    /// Notes that this process does another job as well.
    pub fn role(&mut self, name: &str, rank: u32, data_parallel_rank: u32) {
        self.add_text(TextKind::Role, format!("{name}\0{rank}\0{data_parallel_rank}").as_bytes());
    }

    fn add_text(&mut self, kind: TextKind, text: &[u8]) -> bool {
        if !self.is_ours() {
            return false;
        }
        let entry = text_entry(kind, text).filter(|entry| {
            self.text_used.checked_add(entry.len() as u64).is_some_and(|end| end <= self.text_capacity)
        });
        let Some(entry) = entry else {
            self.word(counter::TEXT_DROPPED).fetch_add(1, Ordering::Relaxed);
            return false;
        };
        let at = TEXT_OFFSET + usize::try_from(self.text_used).unwrap_or(usize::MAX);
        // SAFETY: behind `text_used` only this writer writes, and it fits (checked above).
        unsafe { self.shared.head.write(at, &entry) };
        self.text_used += entry.len() as u64;
        self.word(counter::TEXT_USED).store(self.text_used, Ordering::Release);
        true
    }

    /// Ends the log in order: a reader sees that the process closed it, and unused space goes back to the disk.
    pub fn close(mut self) {
        if !self.is_ours() {
            return;
        }
        self.word(counter::CLOSED).store(clock::ticks().max(1), Ordering::Release);
        let current = self.shared.current.load(Ordering::Relaxed);
        let used = HEADER_BYTES + (self.slots - self.left) as usize * RECORD_BYTES;
        self.stop_keeper();
        if let Ok(file) = std::fs::OpenOptions::new().write(true).open(self.plan.path(current)) {
            // The segment is no longer mapped: nobody can touch what is cut off.
            let _ = file.set_len(used as u64);
        }
    }

    fn stop_keeper(&mut self) {
        // Nothing may be written once its thread has unmapped the segments.
        self.left = 0;
        if let Some(keeper) = self.keeper.take() {
            keeper.stop(&self.shared);
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if self.is_ours() {
            self.stop_keeper();
            if let Some(lock) = &self.lock {
                // Closing alone would leave the lock to a child that another thread forks at this moment.
                let _ = flock(lock, FlockOperation::Unlock);
                fork::forget(lock.as_raw_fd());
            }
            return;
        }
        // A forked child: the thread does not exist here, and the lock's descriptor was closed at the fork.
        std::mem::forget(self.keeper.take());
        std::mem::forget(self.lock.take());
    }
}

/// What there is of a log that is being opened; removed again if that fails.
struct Unfinished {
    files: Vec<PathBuf>,
    lock: RawFd,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        fork::forget(self.lock);
        for file in &self.files {
            let _ = std::fs::remove_file(file);
        }
    }
}

/// When this process began, in clock ticks since boot (proc(5): field 22 of /proc/PID/stat).
fn process_start() -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name in field 2 may hold blanks and parentheses; what follows its last one is regular.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}
