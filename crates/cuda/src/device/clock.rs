//! Ties the GPU's clock to the host's.
//!
//! A thread of its own launches, from time to time, a kernel that writes the GPU's clock to memory of the host, and looks until
//! it is there: it was written between the two moments of the host's clock. The kernel goes on a stream of its own, of the
//! highest priority, so that it hardly waits. Of a few tries the tightest counts. The thread never takes the GIL, and is in the
//! relaxed mode of captures, in which what it does breaks none (`../reader.rs`).

use super::code::{parameter, to};
use super::{DeviceCode, DeviceError, Function, LaunchShape, PinnedMemory};
use crate::driver::{Failure, Stream};
use crate::step::Clock;
use rtrb::{Consumer, Producer, RingBuffer};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Thread;
use std::time::Duration;

/// Time between two sightings.
const PAUSE: Duration = Duration::from_secs(1);
/// Tries of a sighting.
const TRIES: usize = 3;
/// A try that takes longer is given up: the GPU is too busy for a kernel of one thread. In parts of a second.
const LONGEST_TRY: u64 = 5_000;
/// Failures after which it is given up.
const FAILURES_UNTIL_OFF: u32 = 3;
/// Sightings that wait to be taken, at most.
const SIGHTINGS: usize = 64;

/// The two clocks at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sighting {
    /// The GPU's, nanoseconds.
    pub gpu_ns: u64,
    /// The host's, ticks: the middle of the two moments between which the GPU's was read.
    pub ticks: u64,
    /// Half of what lies between the two: how far off it may be, in ticks.
    pub error_ticks: u64,
}

#[derive(Debug, Default)]
struct Shared {
    active: AtomicBool,
    stop: AtomicBool,
}

/// What the thread works with.
#[derive(Debug)]
pub struct ClockWatch {
    code: DeviceCode,
    clock: Clock,
    stream: Stream,
    pinned: PinnedMemory,
    next: usize,
    seen: Producer<Sighting>,
    shared: Arc<Shared>,
}

/// The side that takes sightings.
#[derive(Debug)]
pub struct ClockSightings {
    seen: Consumer<Sighting>,
    shared: Arc<Shared>,
    thread: Option<Thread>,
}

impl ClockWatch {
    /// Both sides; nothing is seen before [`ClockSightings::activate`].
    ///
    /// # Errors
    /// What the driver said.
    pub fn new(code: &DeviceCode, clock: Clock) -> Result<(Self, ClockSightings), DeviceError> {
        let (seen, sightings) = RingBuffer::new(SIGHTINGS);
        let shared = Arc::new(Shared::default());
        let watch = Self {
            code: code.clone(),
            clock,
            stream: to("make a stream", code.calls.create_stream())?,
            // A word for each try: one that was given up may still be written.
            pinned: PinnedMemory::allocate(code, 4096)?,
            next: 0,
            seen,
            shared: Arc::clone(&shared),
        };
        Ok((watch, ClockSightings { seen: sightings, shared, thread: None }))
    }

    /// Watches on a thread from here on. `spawn` starts one that runs what it is given.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(
        self,
        sightings: &mut ClockSightings,
        spawn: impl FnOnce(Box<dyn FnOnce() + Send>) -> std::io::Result<Thread>,
    ) -> std::io::Result<()> {
        let thread = spawn(Box::new(move || {
            let mut watch = self;
            // A panic here must end this thread alone.
            let _ = catch_unwind(AssertUnwindSafe(|| watch.run()));
        }))?;
        sightings.thread = Some(thread);
        Ok(())
    }

    fn run(&mut self) {
        let prepared =
            self.code.driver.leave_captures_alone().and_then(|()| self.code.calls.set_current(self.code.context));
        if prepared.is_err() {
            return;
        }
        let mut failures = 0;
        while !self.shared.stop.load(Ordering::Acquire) {
            if self.shared.active.load(Ordering::Acquire) {
                match self.look() {
                    Ok(Some(sighting)) => {
                        // Nobody takes them: they are of no use.
                        let _ = self.seen.push(sighting);
                    }
                    Ok(None) => {}
                    Err(_) => {
                        failures += 1;
                        if failures >= FAILURES_UNTIL_OFF {
                            return;
                        }
                    }
                }
            }
            std::thread::park_timeout(PAUSE);
        }
    }

    /// The tightest of a few tries; `None`: the GPU was too busy for all of them.
    ///
    /// # Errors
    /// What the driver said.
    pub fn look(&mut self) -> Result<Option<Sighting>, Failure> {
        let mut best: Option<Sighting> = None;
        for _ in 0..TRIES {
            if let Some(sighting) = self.try_once()?
                && best.is_none_or(|best| sighting.error_ticks < best.error_ticks)
            {
                best = Some(sighting);
            }
        }
        Ok(best)
    }

    fn try_once(&mut self) -> Result<Option<Sighting>, Failure> {
        let at = self.next % self.pinned.words().len();
        self.next += 1;
        self.pinned.words()[at].store(0, Ordering::Release);
        let mut out = self.pinned.on_device().0 + at as u64 * 8;
        let before = (self.clock.ticks)();
        // SAFETY: the kernel takes one pointer, to a word of ours that is never freed.
        unsafe {
            self.code.launch(Function::ReadClock, LaunchShape::ONE_THREAD, self.stream, &mut [parameter(&mut out)])
        }?;
        let longest = self.clock.ticks_per_second / LONGEST_TRY;
        loop {
            let gpu_ns = self.pinned.word(at);
            let after = (self.clock.ticks)();
            if gpu_ns != 0 {
                let error_ticks = after.wrapping_sub(before) / 2;
                return Ok(Some(Sighting { gpu_ns, ticks: before.wrapping_add(error_ticks), error_ticks }));
            }
            if after.wrapping_sub(before) > longest {
                return Ok(None);
            }
            std::hint::spin_loop();
        }
    }
}

impl ClockSightings {
    /// Real work has begun: clocks are watched from here on.
    #[inline]
    pub fn activate(&self) {
        if !self.shared.active.load(Ordering::Relaxed) {
            self.shared.active.store(true, Ordering::Release);
            if let Some(thread) = &self.thread {
                thread.unpark();
            }
        }
    }

    /// The oldest sighting that was not taken.
    #[inline]
    pub fn take(&mut self) -> Option<Sighting> {
        self.seen.pop().ok()
    }
}

impl Drop for ClockSightings {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = &self.thread {
            thread.unpark();
        }
    }
}
