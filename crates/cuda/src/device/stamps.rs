//! Stamps: the GPU's clock, written by kernels of one thread to a ring on the GPU.
//!
//! Slots come in pairs, the beginning and the end of something; a step has a row of the ring. Stamps are launched into graphs
//! and beside them alike; which row they write to, the step word says. Rows are read back in bulk, beside vLLM's work, and are
//! taken a few at a time. A step for which there is no row is not stamped, and is counted.

use super::code::{parameter, to};
use super::{DeviceCode, DeviceError, DeviceMemory, DevicePointer, Function, LaunchShape, ReadBack, StepWord};
use crate::driver::{Failure, Stream};
use std::collections::VecDeque;

/// Most bytes of the ring, and as many of pinned memory.
const RING_BYTES: usize = 2 << 20;
/// Most rows.
const MOST_ROWS: usize = 1024;
/// Fewest rows that are of any use: what runs ahead, and what is being read.
const FEWEST_ROWS: usize = 32;
/// Rows whose stamps are given in one step, at most: little enough for a step to bear.
const ROWS_PER_STEP: usize = 8;
/// Any number but 0.
const CHANCE_BEGINS: u64 = 0x2545_f491_4f6c_dd1d;
/// What takes longer is no interval, but two stamps of different steps.
const LONGEST_NS: u64 = u32::MAX as u64;

/// Two stamps of a step: when something began on the GPU's clock, and how long it took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interval {
    /// Engine step.
    pub step: u64,
    /// Host ticks at which the step began, as the caller gave them.
    pub ticks: u64,
    /// Which pair of slots.
    pub pair: u32,
    /// Nanoseconds on the GPU's clock.
    pub begin_ns: u64,
    /// How long it took.
    pub duration_ns: u32,
}

#[derive(Debug, Clone, Copy)]
struct Row {
    step: u64,
    ticks: u64,
}

/// The ring, and what of it has been read.
#[derive(Debug)]
pub struct Stamps {
    ring: DeviceMemory,
    slots: u32,
    rows: u32,
    read_back: ReadBack,
    /// Ticks between two copies.
    interval: u64,
    copied_at: u64,
    /// One step in so many is stamped.
    every: u32,
    /// Steps until the next one that is stamped, and from there to the end of its run of `every` steps.
    until_next: u32,
    behind_next: u32,
    /// What steps are chosen by.
    chance: u64,
    /// Rows that were begun and not given yet, oldest first.
    begun: VecDeque<Row>,
    /// Place of the oldest of them, counted over all laps.
    oldest: u64,
    /// How many of them the copy under way has, or the one that is being given.
    copied: usize,
    /// The place in the copy of the oldest, while one is being given.
    giving: Option<usize>,
    /// The newest stamp that was given: what a row has from a lap before is not newer.
    newest_ns: u64,
    skipped: u64,
}

impl Stamps {
    /// For so many pairs. One step in `every` is stamped; copies are `interval` ticks apart or more.
    ///
    /// # Errors
    /// Too many pairs, or what the driver said.
    pub fn new(
        code: &DeviceCode,
        stream: Stream,
        word: &StepWord,
        pairs: u32,
        every: u32,
        interval: u64,
    ) -> Result<Self, DeviceError> {
        let row_bytes = pairs as usize * 16;
        let rows = (RING_BYTES / row_bytes.max(1)).min(MOST_ROWS);
        if rows < FEWEST_ROWS || pairs == 0 {
            return Err(DeviceError::TooLarge { bytes: FEWEST_ROWS * row_bytes, most: RING_BYTES });
        }
        let bytes = rows * row_bytes;
        let mut stamps = Self {
            ring: DeviceMemory::zeroed(code, bytes, stream)?,
            slots: pairs * 2,
            rows: u32::try_from(rows).unwrap_or(0),
            read_back: ReadBack::new(code, bytes)?,
            interval,
            copied_at: 0,
            every: every.max(1),
            until_next: 0,
            behind_next: every.max(1) - 1,
            chance: CHANCE_BEGINS,
            begun: VecDeque::with_capacity(rows),
            oldest: 0,
            copied: 0,
            giving: None,
            newest_ns: 0,
            skipped: 0,
        };
        // The kernel is loaded by now if the driver loads code lazily. The word says that no step runs: it writes nothing.
        to("launch a kernel of ours", stamps.stamp(code, stream, word, 0))?;
        Ok(stamps)
    }

    /// Launches the stamp of a slot: onto the stream, or into the graph that is being captured from it.
    ///
    /// # Errors
    /// What the driver said.
    #[inline]
    pub fn stamp(
        &mut self,
        code: &DeviceCode,
        stream: Stream,
        word: &StepWord,
        mut slot: u32,
    ) -> Result<(), Failure> {
        if slot >= self.slots {
            return Ok(());
        }
        let (mut word, mut ring, mut slots) = (word.pointer(), self.ring.pointer(), self.slots);
        let mut parameters =
            [parameter(&mut word), parameter(&mut ring), parameter(&mut slots), parameter(&mut slot)];
        // SAFETY: the kernel's four parameters; ring and word are never freed, and the slot is in the row.
        unsafe { code.launch(Function::Stamp, LaunchShape::ONE_THREAD, stream, &mut parameters) }
    }

    /// A step comes: whether it is one that is stamped. The first one is, and then one of each `every` steps, by chance: what
    /// happens in every so manieth step is met as often as anything.
    #[inline]
    pub fn chooses_next(&mut self) -> bool {
        if self.until_next > 0 {
            self.until_next -= 1;
            return false;
        }
        // Xorshift (Marsaglia, "Xorshift RNGs", 2003).
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        let at = u32::try_from(self.chance % u64::from(self.every)).unwrap_or(0);
        self.until_next = self.behind_next + at;
        self.behind_next = self.every - 1 - at;
        true
    }

    /// A step that was chosen begins: its row, plus 1, as the step word wants it; 0 = it is not stamped.
    #[inline]
    pub fn begin_step(&mut self, step: u64, ticks: u64) -> u32 {
        if self.begun.len() >= self.rows as usize {
            self.skipped += 1;
            return 0;
        }
        let row = self.row_of(self.oldest + self.begun.len() as u64);
        self.begun.push_back(Row { step, ticks });
        row + 1
    }

    fn row_of(&self, place: u64) -> u32 {
        u32::try_from(place % u64::from(self.rows)).unwrap_or(0)
    }

    /// One step in so many is stamped.
    pub fn every(&self) -> u32 {
        self.every
    }

    /// Steps that were not stamped because there was no row for them.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Goes on with reading, before a step begins: a few rows of a copy that is done, or a new copy if it is time for one.
    /// Not while the stream is being captured.
    ///
    /// # Errors
    /// What the driver said. The rows in question are lost then.
    pub fn read(
        &mut self,
        code: &DeviceCode,
        stream: Stream,
        now: u64,
        give: impl FnMut(&Interval),
    ) -> Result<(), Failure> {
        if self.giving.is_some() {
            self.give(ROWS_PER_STEP, give);
        } else if self.read_back.is_under_way() {
            self.look(code)?;
        } else {
            // The newest may still be at work: what samples for it may come behind the step that begins now.
            let rows = self.begun.len().saturating_sub(1);
            let is_due = now.wrapping_sub(self.copied_at) >= self.interval || rows >= self.rows as usize / 4;
            if is_due && rows > 0 {
                self.copied_at = now;
                self.copy(code, stream, rows)?;
            }
        }
        Ok(())
    }

    fn copy(&mut self, code: &DeviceCode, stream: Stream, rows: usize) -> Result<(), Failure> {
        let row_bytes = self.slots as usize * 8;
        let first = self.row_of(self.oldest) as usize;
        let before_the_end = rows.min(self.rows as usize - first);
        let from = |row: usize| DevicePointer(self.ring.pointer().0 + (row * row_bytes) as u64);
        let parts = [(from(first), before_the_end * row_bytes), (from(0), (rows - before_the_end) * row_bytes)];
        let parts = if rows > before_the_end { &parts[..] } else { &parts[..1] };
        self.read_back.begin(code, stream, parts)?;
        self.copied = rows;
        Ok(())
    }

    fn look(&mut self, code: &DeviceCode) -> Result<(), Failure> {
        match self.read_back.done(code) {
            Ok(Some(_)) => self.giving = Some(0),
            Ok(None) => {}
            Err(failure) => {
                self.forget(self.copied);
                return Err(failure);
            }
        }
        Ok(())
    }

    /// The oldest rows are done with.
    fn forget(&mut self, rows: usize) {
        self.begun.drain(..rows.min(self.begun.len()));
        self.oldest += rows as u64;
    }

    fn give(&mut self, most: usize, mut give: impl FnMut(&Interval)) {
        let Some(at) = self.giving else { return };
        let rows = (self.copied - at).min(most);
        for i in 0..rows {
            let Some(row) = self.begun.get(i) else { break };
            let words = &self.read_back.memory().words()[(at + i) * self.slots as usize..];
            let mut newest = self.newest_ns;
            for pair in 0..self.slots / 2 {
                let stamp = |slot: u32| words[slot as usize].load(std::sync::atomic::Ordering::Relaxed);
                let (begin, end) = (stamp(pair * 2), stamp(pair * 2 + 1));
                // What is older than the row before is of a lap before; 0 was never written.
                if begin == 0 || begin < self.newest_ns || end < begin || end - begin > LONGEST_NS {
                    continue;
                }
                newest = newest.max(end);
                let duration_ns = u32::try_from(end - begin).unwrap_or(u32::MAX);
                give(&Interval { step: row.step, ticks: row.ticks, pair, begin_ns: begin, duration_ns });
            }
            self.newest_ns = newest;
        }
        self.forget(rows);
        self.giving = if at + rows >= self.copied { None } else { Some(at + rows) };
    }

    /// Reads what is there and gives it, at the end of all work. Looks so many times at most, `wait` between two looks.
    ///
    /// # Errors
    /// What the driver said.
    pub fn finish(
        &mut self,
        code: &DeviceCode,
        stream: Stream,
        looks: u32,
        wait: impl Fn(),
        mut give: impl FnMut(&Interval),
    ) -> Result<(), Failure> {
        for look in 0..looks {
            if self.giving.is_some() {
                self.give(usize::MAX, &mut give);
            }
            if self.begun.is_empty() {
                return Ok(());
            }
            if self.read_back.is_under_way() {
                if look > 0 {
                    wait();
                }
                self.look(code)?;
            } else {
                self.copy(code, stream, self.begun.len())?;
            }
        }
        Ok(())
    }
}
