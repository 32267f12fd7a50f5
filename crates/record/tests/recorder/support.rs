//! A reader of raw logs made for tests, and processes to test with.

use profilemate_format::head::Head;
use profilemate_format::record::{
    Label, Limits, Outputs, Payload, ProcessExit, RECORD_BYTES, Record, Schedule, Slot, Span, read_slot,
};
use profilemate_format::segment::{HEADER_BYTES, SegmentHeader};
use profilemate_record::{Options, session_folder};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Longest that a test waits for something that must happen. Reaching it is a failure.
const PATIENCE: Duration = Duration::from_mins(2);

/// Waits until the condition holds.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::yield_now();
    }
}

/// Bytes of a segment with so many slots.
pub(crate) const fn segment_bytes(slots: u32) -> u64 {
    HEADER_BYTES as u64 + slots as u64 * RECORD_BYTES as u64
}

/// A session folder that goes away with the test.
pub(crate) struct Session {
    folder: tempfile::TempDir,
}

impl Session {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        session_folder::ensure(folder.path()).unwrap();
        Self { folder }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Options for a small log in it.
    pub(crate) fn options(&self, slots: u32) -> Options {
        options(self.path(), slots)
    }

    pub(crate) fn files(&self) -> Vec<String> {
        files(self.path())
    }

    /// The heads in it.
    pub(crate) fn heads(&self) -> Vec<PathBuf> {
        self.with_extension("head")
    }

    /// The raw files with this extension.
    pub(crate) fn with_extension(&self, extension: &str) -> Vec<PathBuf> {
        let paths = self.files().into_iter().map(|name| self.path().join("raw").join(name));
        paths.filter(|path| path.extension().is_some_and(|of_path| of_path == extension)).collect()
    }
}

/// Options for a small log.
pub(crate) fn options(session: &Path, slots: u32) -> Options {
    let mut options = Options::new(session, "engine_core", 0);
    options.segment_bytes = segment_bytes(slots);
    options.text_capacity = 4096;
    options
}

/// Names of the files in the folder of raw logs, sorted.
pub(crate) fn files(session: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(session.join("raw")).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// What lies in a segment's slots.
#[derive(Debug, Default, Clone)]
pub(crate) struct Slots {
    pub(crate) records: Vec<Record>,
    pub(crate) damaged: usize,
    pub(crate) empty: usize,
}

impl Slots {
    /// Reads the slots that follow a segment's header. Every record must lie before every other slot.
    pub(crate) fn read(bytes: &[u8]) -> Self {
        let mut slots = Self::default();
        for (number, slot) in bytes.as_chunks::<RECORD_BYTES>().0.iter().enumerate() {
            match read_slot(slot, u32::try_from(number).unwrap()) {
                Slot::Record(record) => {
                    assert_eq!(slots.damaged + slots.empty, 0, "slot {number} holds a record behind one without");
                    slots.records.push(record);
                }
                Slot::Damaged => slots.damaged += 1,
                Slot::Empty => slots.empty += 1,
            }
        }
        slots
    }
}

/// A log, read from its files.
#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) head: Head,
    /// Indices of the segments that are there.
    pub(crate) segments: Vec<u64>,
    pub(crate) slots: Slots,
}

impl Log {
    /// Reads the log with this head.
    pub(crate) fn read(path: &Path) -> Self {
        let head = Head::parse(&std::fs::read(path).unwrap()).unwrap();
        let stem = format!("{}.", path.file_stem().unwrap().to_str().unwrap());
        let folder = path.parent().unwrap();
        let mut segments: Vec<(u64, PathBuf)> = std::fs::read_dir(folder)
            .unwrap()
            .filter_map(|entry| {
                let name = entry.unwrap().file_name().into_string().unwrap();
                let index = name.strip_prefix(&stem)?.strip_suffix(".seg")?.parse().ok()?;
                Some((index, folder.join(name)))
            })
            .collect();
        segments.sort();
        let mut slots = Slots::default();
        for (place, (index, path)) in segments.iter().enumerate() {
            let bytes = std::fs::read(path).unwrap();
            let last = place + 1 == segments.len();
            if last && bytes.iter().all(|byte| *byte == 0) {
                // The process died while it made this one.
                continue;
            }
            let header = SegmentHeader::parse(&bytes).unwrap();
            let expected =
                SegmentHeader { log_id: head.identity.log_id, index: *index, slots: head.identity.segment_slots };
            assert_eq!(header, expected, "{}", path.display());
            let found = Slots::read(&bytes[HEADER_BYTES..]);
            assert!(slots.damaged + slots.empty == 0 || found.records.is_empty(), "a segment before has gaps");
            slots.records.extend(found.records);
            slots.damaged += found.damaged;
            slots.empty += found.empty;
        }
        Self { head, segments: segments.into_iter().map(|(index, _)| index).collect(), slots }
    }

    pub(crate) fn records(&self) -> &[Record] {
        &self.slots.records
    }

    /// The steps of its records: tests number their records with them.
    pub(crate) fn steps(&self) -> Vec<u64> {
        self.records().iter().map(|record| record.step).collect()
    }
}

/// A record that is different for every number, and has it as its step.
pub(crate) fn record(number: u64) -> Record {
    let mut random = Random(number);
    let mut next = || random.next();
    let payload = match number % 5 {
        0 => Payload::Span(Span {
            duration_ticks: next(),
            value_a: next(),
            value_b: next(),
            context: half(next()),
            overhead_ticks: half(next()),
        }),
        1 => Payload::Schedule(Schedule {
            num_seqs: half(next()),
            num_tokens: half(next()),
            prefill_tokens: half(next()),
            prefill_seqs: half(next()),
            running: Some(half(next())).filter(|value| *value != u32::MAX),
            waiting: Some(half(next())).filter(|value| *value != u32::MAX),
            completed_prompt_tokens: Some(half(next())).filter(|value| *value != u32::MAX),
            completed_prompts: Some(half(next())).filter(|value| *value != u32::MAX),
        }),
        2 => Payload::Outputs(Outputs {
            timestamp_bits: next(),
            client: half(next()),
            num_outputs: half(next()),
            new_tokens: next(),
            finished: next(),
        }),
        3 => Payload::Limits(Limits { max_num_seqs: next(), max_num_tokens: next() }),
        _ => Payload::ProcessExit(ProcessExit { pid: next(), code: next().cast_signed(), signal: next() }),
    };
    let label = [Label::Work, Label::WarmUp, Label::Dummy][usize::try_from(number % 3).unwrap()];
    Record {
        ticks: next(),
        step: number,
        label,
        flags: u8::from(number.is_multiple_of(2)),
        name: half(next()),
        payload,
    }
}

fn half(word: u64) -> u32 {
    u32::try_from(word >> 32).unwrap()
}

/// `SplitMix64`: numbers that look random and repeat with their seed.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// With the seed of `PROFILEMATE_TEST_SEED`, else a new one. Says which, for whoever must repeat a failure.
    pub(crate) fn new() -> Self {
        let seed = match std::env::var("PROFILEMATE_TEST_SEED") {
            Ok(text) => text.parse().expect("PROFILEMATE_TEST_SEED is a number"),
            Err(_) => {
                u64::from(std::time::UNIX_EPOCH.elapsed().unwrap().subsec_nanos()) << 32
                    | u64::from(std::process::id())
            }
        };
        eprintln!("repeat with PROFILEMATE_TEST_SEED={seed}");
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One of `range`.
    pub(crate) fn within(&mut self, range: std::ops::Range<u32>) -> u32 {
        let width = u64::from(range.end - range.start);
        range.start + u32::try_from(self.next() % width).unwrap()
    }
}

/// Eight words that processes share through a file, so that they outlive each of them.
pub(crate) struct Board {
    words: &'static [AtomicU64; 8],
}

impl Board {
    /// Makes the file if it is not there.
    pub(crate) fn open(path: &Path) -> Self {
        let file =
            std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap();
        file.set_len(64).unwrap();
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), 64, access, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        assert_ne!(base, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        // SAFETY: 64 mapped bytes, aligned to a page, never unmapped, and used as atomic words by everybody.
        Self { words: unsafe { &*base.cast() } }
    }

    pub(crate) fn get(&self, word: usize) -> u64 {
        self.words[word].load(Ordering::Acquire)
    }

    pub(crate) fn set(&self, word: usize, value: u64) {
        self.words[word].store(value, Ordering::Release);
    }
}

const CHILD: &str = "PROFILEMATE_TEST_CHILD";
const FOLDER: &str = "PROFILEMATE_TEST_FOLDER";

/// In a process that [`Child::start`] started: the part that it has to play and its folder.
pub(crate) fn part() -> Option<(String, PathBuf)> {
    Some((std::env::var(CHILD).ok()?, std::env::var_os(FOLDER)?.into()))
}

/// This program again, for one test. That test finds out with [`part`] that it runs in the child.
pub(crate) struct Child {
    pub(crate) process: std::process::Child,
}

impl Child {
    /// A command that runs the test of this name (with its module) in a process of its own. Standard input and output
    /// are pipes.
    pub(crate) fn command(test: &str, part: &str, folder: &Path) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([test, "--exact", "--nocapture", "--test-threads=1"]);
        command.env(CHILD, part).env(FOLDER, folder).stdin(Stdio::piped()).stdout(Stdio::piped());
        command
    }

    pub(crate) fn start(test: &str, part: &str, folder: &Path) -> Self {
        Self { process: Self::command(test, part, folder).spawn().unwrap() }
    }

    /// Waits until the condition holds; the child must live that long.
    #[track_caller]
    pub(crate) fn wait_until(&mut self, what: &str, mut condition: impl FnMut() -> bool) {
        wait_until(what, || {
            condition() || {
                if let Some(status) = self.process.try_wait().unwrap() {
                    panic!("the child ended ({status}) before this: {what}");
                }
                false
            }
        });
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Also when the test failed.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
