//! The recorder's own thread: everything that may block happens here, never on vLLM's threads.
//!
//! It keeps one segment ready ahead of the writer, takes clock anchors, unmaps segments that are full and deletes the
//! oldest ones when the log reaches its bound. It holds no lock that the writer takes, and knows nothing of Python.

use crate::mapping::Mapping;
use crate::{Error, clock};
use profilemate_format::head::{ANCHOR_BANKS, Anchor, MAX_ANCHORS, counter};
use profilemate_format::segment::{HEADER_BYTES, SegmentHeader};
use profilemate_format::{HEAD_EXTENSION, SEGMENT_EXTENSION, record::RECORD_BYTES};
use std::collections::VecDeque;
use std::mem::ManuallyDrop;
use std::path::PathBuf;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often the keeper looks. A segment must last longer than this, or records are dropped (and counted).
const INTERVAL: Duration = Duration::from_millis(20);

/// Looks between two tries to make a segment once that has failed.
const LOOKS_BETWEEN_TRIES: u32 = 50;

/// What the writer and its keeper share.
#[derive(Debug)]
pub(crate) struct Shared {
    /// The mapped head file.
    pub(crate) head: Mapping,
    /// First byte of the segment that comes next; null = none is ready.
    pub(crate) ready: AtomicPtr<u8>,
    /// Index of the segment that the writer fills.
    pub(crate) current: AtomicU64,
    stop: Mutex<bool>,
    wake: Condvar,
}

impl Shared {
    pub(crate) fn new(head: Mapping) -> Self {
        Self {
            head,
            ready: AtomicPtr::new(null_mut()),
            current: AtomicU64::new(0),
            stop: Mutex::new(false),
            wake: Condvar::new(),
        }
    }
}

/// Where segments are made, and how large.
#[derive(Debug, Clone)]
pub(crate) struct SegmentPlan {
    /// Path of the log without extension.
    pub(crate) base: PathBuf,
    pub(crate) log_id: [u8; 16],
    pub(crate) slots: u32,
    /// Segments that may lie on disk at a time, at least three.
    pub(crate) most: u64,
}

impl SegmentPlan {
    pub(crate) fn path(&self, index: u64) -> PathBuf {
        let mut name = self.base.clone().into_os_string();
        name.push(format!(".{index:06}.{SEGMENT_EXTENSION}"));
        PathBuf::from(name)
    }

    /// Makes the segment with this index, ready to be written.
    pub(crate) fn make(&self, index: u64) -> Result<Mapping, Error> {
        let length = HEADER_BYTES + self.slots as usize * RECORD_BYTES;
        let (mapping, _file) = Mapping::create(&self.path(index), length)?;
        let header = SegmentHeader { log_id: self.log_id, index, slots: self.slots };
        // SAFETY: nobody else knows the mapping yet.
        unsafe { mapping.write(0, &header.to_bytes()) };
        Ok(mapping)
    }
}

/// The running thread.
#[derive(Debug)]
pub(crate) struct Keeper {
    thread: JoinHandle<()>,
}

impl Keeper {
    /// Starts the thread with the segment that the writer begins with.
    pub(crate) fn start(shared: Arc<Shared>, plan: SegmentPlan, first: Mapping) -> Result<Self, Error> {
        let state = State {
            shared,
            plan,
            mapped: VecDeque::from([(0, first)]),
            oldest: 0,
            looks_until_try: 0,
            complained: false,
            complained_of_loss: false,
            anchors: Anchors::new(clock::anchor()),
        };
        state.publish_anchors();
        let body = move || {
            // A panic here must end this thread alone; records are then dropped once the segment is full. Until
            // then the writer writes on, so what is mapped stays mapped.
            let mut state = ManuallyDrop::new(state);
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| state.run())).is_ok() {
                drop(ManuallyDrop::into_inner(state));
            }
        };
        // It calls the system and little else.
        let thread = start_thread("profilemate", 256 << 10, body).map_err(Error::Thread)?;
        Ok(Self { thread })
    }

    /// Asks the thread to end and waits until it has.
    pub(crate) fn stop(self, shared: &Shared) {
        *shared.stop.lock().unwrap_or_else(PoisonError::into_inner) = true;
        shared.wake.notify_all();
        let _ = self.thread.join();
    }
}

struct State {
    shared: Arc<Shared>,
    plan: SegmentPlan,
    /// Segments that are mapped, by index.
    mapped: VecDeque<(u64, Mapping)>,
    /// Index of the oldest segment on disk.
    oldest: u64,
    looks_until_try: u32,
    complained: bool,
    complained_of_loss: bool,
    anchors: Anchors,
}

impl State {
    fn run(&mut self) {
        loop {
            self.look();
            let shared = Arc::clone(&self.shared);
            let stop = shared.stop.lock().unwrap_or_else(PoisonError::into_inner);
            let wait = INTERVAL.min(self.anchors.refresh);
            let (stop, _) =
                shared.wake.wait_timeout_while(stop, wait, |stop| !*stop).unwrap_or_else(PoisonError::into_inner);
            if *stop {
                drop(stop);
                self.anchors.close(clock::anchor());
                self.publish_anchors();
                self.remove_unused();
                return;
            }
        }
    }

    fn look(&mut self) {
        let current = self.shared.current.load(Ordering::Acquire);
        self.say_what_is_lost();
        // The writer never returns to a segment it has left.
        while self.mapped.front().is_some_and(|(index, _)| *index < current) {
            self.mapped.pop_front();
        }
        self.keep_to_bound(current);
        let newest = self.mapped.back().map_or(current, |(index, _)| *index);
        if newest == current {
            self.make_next(newest + 1);
        }
        if self.anchors.offer(clock::anchor()) {
            self.publish_anchors();
        }
    }

    fn say_what_is_lost(&mut self) {
        if self.complained_of_loss {
            return;
        }
        let segment = self.mapped.iter().find(|(_, mapping)| mapping.is_lost()).map(|(index, _)| *index);
        let path = match segment {
            Some(index) => self.plan.path(index),
            None if self.shared.head.is_lost() => self.plan.base.with_added_extension(HEAD_EXTENSION),
            None => return,
        };
        self.complained_of_loss = true;
        complain(&format!(
            "{} was cut short, or its disk failed: the records in it are lost, and the server is not affected",
            path.display()
        ));
    }

    fn make_next(&mut self, index: u64) {
        if self.looks_until_try > 0 {
            self.looks_until_try -= 1;
            return;
        }
        match self.plan.make(index) {
            Ok(mapping) => {
                let base = mapping.base().as_ptr();
                self.mapped.push_back((index, mapping));
                self.shared.head.word(counter::SEGMENTS).store(index + 1, Ordering::Release);
                self.shared.ready.store(base, Ordering::Release);
                self.complained = false;
            }
            Err(error) => {
                self.looks_until_try = LOOKS_BETWEEN_TRIES;
                if !self.complained {
                    self.complained = true;
                    complain(&format!(
                        "{error}; records that do not fit are counted and not written until there is room, \
                         and the server is not affected"
                    ));
                }
            }
        }
    }

    fn keep_to_bound(&mut self, current: u64) {
        // The one in use and the one that is ready count as well.
        while current + 2 - self.oldest > self.plan.most && self.oldest < current {
            // Whoever made tables of it before may have deleted it: then nothing is lost.
            if std::fs::remove_file(self.plan.path(self.oldest)).is_ok() {
                let discarded = self.shared.head.word(counter::DISCARDED);
                discarded.fetch_add(u64::from(self.plan.slots), Ordering::Relaxed);
            }
            self.oldest += 1;
        }
    }

    /// Writes the anchors into the bank that is not valid and makes that one the valid one, so that a reader (or a
    /// kill) at any moment finds a whole bank.
    fn publish_anchors(&self) {
        let valid = self.shared.head.word(counter::ANCHOR_BANK);
        let generation = valid.load(Ordering::Relaxed) + 1;
        let bank = ANCHOR_BANKS[usize::from(generation & 1 == 1)];
        // SAFETY: only this thread (and before it started, its maker) writes the banks.
        unsafe {
            self.shared.head.write(bank, &(self.anchors.taken.len() as u64).to_le_bytes());
            for (i, anchor) in self.anchors.taken.iter().enumerate() {
                self.shared.head.write(bank + 8 + i * anchor.to_bytes().len(), &anchor.to_bytes());
            }
        }
        valid.store(generation, Ordering::Release);
    }

    /// The log is complete: give back the space of the segment that was ready and is not needed.
    fn remove_unused(&mut self) {
        let current = self.shared.current.load(Ordering::Acquire);
        while self.mapped.back().is_some_and(|(index, _)| *index > current) {
            if let Some((index, mapping)) = self.mapped.pop_back() {
                drop(mapping);
                let _ = std::fs::remove_file(self.plan.path(index));
                self.shared.head.word(counter::SEGMENTS).store(index, Ordering::Release);
            }
        }
    }
}

/// The anchors of a log: spread over its whole life, the last of them never much older than a second, so that a
/// reader need not guess far ahead when the process is killed after a week.
#[derive(Debug)]
struct Anchors {
    taken: Vec<Anchor>,
    /// Least time between two anchors that stay.
    spacing: Duration,
    /// Age at which the last anchor is replaced: short at first, for processes that die young.
    refresh: Duration,
}

impl Anchors {
    fn new(first: Anchor) -> Self {
        Self { taken: vec![first], spacing: Duration::from_secs(1), refresh: Duration::from_millis(1) }
    }

    /// Takes the anchor if it is time for one. Returns whether anything changed.
    fn offer(&mut self, anchor: Anchor) -> bool {
        let Some(last) = self.taken.last() else { return false };
        if between(last, &anchor) < self.refresh {
            return false;
        }
        if self.refresh < Duration::from_secs(1) {
            self.refresh *= 4;
        }
        if self.taken.len() >= MAX_ANCHORS - 1 {
            // Full: keep every second one.
            let mut keep = false;
            self.taken.retain(|_| {
                keep = !keep;
                keep
            });
            self.spacing *= 2;
        }
        if let [.., before, last] = &mut self.taken[..]
            && between(before, last) < self.spacing
        {
            *last = anchor;
        } else {
            self.taken.push(anchor);
        }
        true
    }

    /// Takes the last anchor of all.
    fn close(&mut self, anchor: Anchor) {
        match &mut self.taken[..] {
            // Two that lie near each other would give a poor rate.
            [_, .., last] if between(last, &anchor) < self.spacing => *last = anchor,
            _ => self.taken.push(anchor),
        }
    }
}

fn between(earlier: &Anchor, later: &Anchor) -> Duration {
    Duration::from_nanos(later.monotonic_ns.saturating_sub(earlier.monotonic_ns))
}

/// Starts a thread of ours inside a host: one that takes no signal that was meant for the host.
pub fn start_thread(
    name: &str,
    stack_bytes: usize,
    body: impl FnOnce() + Send + 'static,
) -> std::io::Result<JoinHandle<()>> {
    let builder = std::thread::Builder::new().name(name.into()).stack_size(stack_bytes);
    without_signals(|| builder.spawn(body))
}

/// Runs `start` with all signals blocked, and so every thread that it starts: the signals of the process are for the
/// host's own threads, which may have blocked some of them to wait for them. SIGBUS stays open: a thread that has it
/// blocked when it runs into one ends the process (see [`crate::guard`]).
fn without_signals<T>(start: impl FnOnce() -> T) -> T {
    // SAFETY: all zero is a value of this plain type.
    let (mut all, mut before) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    // SAFETY: both point to signal sets of this function.
    unsafe {
        libc::sigfillset(&raw mut all);
        libc::sigdelset(&raw mut all, libc::SIGBUS);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
    }
    let started = start();
    // SAFETY: as above; `before` was filled by the first call.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, null_mut()) };
    started
}

/// Whether [`complain`] has nowhere to write to.
static SILENT: AtomicBool = AtomicBool::new(false);

/// Nothing is said from here on: for a process that began without a standard error, where its descriptor may be anything by now.
pub fn be_silent() {
    SILENT.store(true, Ordering::Relaxed);
}

/// One line on stderr, in one write. Never panics, whatever stderr is.
pub fn complain(text: &str) {
    use std::io::Write;
    if SILENT.load(Ordering::Relaxed) {
        return;
    }
    let _ = std::io::stderr().write_all(format!("profilemate: {text}\n").as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: f64) -> Anchor {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small positive numbers")]
        let monotonic_ns = (seconds * 1e9) as u64 + 1;
        Anchor { ticks: monotonic_ns * 3, monotonic_ns, realtime_ns: monotonic_ns }
    }

    #[test]
    fn anchors_cover_a_week_and_the_last_is_fresh_at_every_moment() {
        let mut anchors = Anchors::new(at(0.0));
        for second in 0..7 * 24 * 3600 {
            let now = at(f64::from(second) * 1.1);
            anchors.offer(now);
            assert!(anchors.taken.len() < MAX_ANCHORS);
            assert!(between(anchors.taken.last().unwrap(), &now) < Duration::from_millis(2300));
        }
        let end = at(7.0 * 24.0 * 3600.0 * 1.1);
        anchors.close(end);
        let taken = &anchors.taken;
        assert!(taken.len() > MAX_ANCHORS / 2 - 2 && taken.len() <= MAX_ANCHORS);
        assert_eq!((taken[0], taken[taken.len() - 1]), (at(0.0), end));
        assert!(taken.windows(2).all(|pair| between(&pair[0], &pair[1]) >= Duration::from_secs(1)));
        let settled = &taken[..taken.len() - 2];
        assert!(settled.windows(2).all(|pair| between(&pair[0], &pair[1]) >= anchors.spacing / 2));
    }

    #[test]
    fn a_process_that_dies_young_has_a_second_anchor_too() {
        let mut anchors = Anchors::new(at(0.0));
        assert!(!anchors.offer(at(0.0005)));
        assert!(anchors.offer(at(0.0015)));
        assert_eq!(anchors.taken, [at(0.0), at(0.0015)]);
        assert!(anchors.offer(at(0.02)), "a longer base is a better rate");
        assert_eq!(anchors.taken, [at(0.0), at(0.02)]);
    }
}
