//! What the benchmarks here have in common: logs of processes that never ran, and what a process used.

use std::path::Path;

use profilemate_format::head::{Anchor, ClockSource, Identity};
use profilemate_format::record::{Label, Payload, Record, Span};
use profilemate_record::PastLog;

/// Ticks per second of a usual processor.
pub(crate) const RATE: u64 = 2_600_000_000;

/// When the sessions began, seconds since 1970.
pub(crate) const BEGAN: u64 = 1_700_000_000;

/// A log being written.
pub(crate) struct Log {
    log: PastLog,
    pub(crate) written: u64,
}

impl Log {
    pub(crate) fn new(session: &Path, role: &str, pid: u32) -> Self {
        let identity = Identity {
            log_id: [0; 16],
            role: role.to_owned(),
            rank: 0,
            data_parallel_rank: 0,
            pid,
            parent_pid: 1,
            process_start: 1,
            ticks_per_second: RATE,
            clock: ClockSource::X86Tsc,
            segment_slots: 65_535,
            text_capacity: 0,
        };
        Self { log: PastLog::create(session, identity), written: 0 }
    }

    pub(crate) fn name(&mut self, text: &str) -> u32 {
        self.log.intern(text)
    }

    pub(crate) fn fact(&mut self, key: &str, value: &str) {
        self.log.fact(key, value);
    }

    pub(crate) fn push(&mut self, ticks: u64, step: u64, name: u32, payload: Payload) {
        let record = Record { ticks, step, label: Label::Work, flags: 0, name, payload };
        self.log.push(&record).unwrap();
        self.written += 1;
    }

    pub(crate) fn span(&mut self, ticks: u64, duration_ticks: u64, step: u64, name: u32, value_a: u64) {
        let overhead_ticks = 20_000 + u32::try_from(step % 1000).unwrap();
        let span = Span { duration_ticks, value_a, value_b: 0, context: 0, overhead_ticks };
        self.push(ticks, step, name, Payload::Span(span));
    }

    pub(crate) fn finish(self, last_ticks: u64) {
        let anchors = [0, last_ticks].map(|ticks| {
            let monotonic_ns = u64::try_from(u128::from(ticks) * 1_000_000_000 / u128::from(RATE)).unwrap();
            Anchor { ticks, monotonic_ns, realtime_ns: BEGAN * 1_000_000_000 + monotonic_ns }
        });
        self.log.finish(&anchors).unwrap();
    }
}

/// A number that looks random and is the same in every run.
pub(crate) fn scatter(value: u64) -> u64 {
    let mixed = (value ^ value >> 31).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ mixed >> 29
}

/// Most memory that was resident, in KiB, and the processor time that was used so far, in seconds; of this process
/// (`RUSAGE_SELF`) or of all that it waited for (`RUSAGE_CHILDREN`).
pub(crate) fn used(whose: libc::c_int) -> (i64, f64) {
    // SAFETY: all zero is a value of this plain struct, and getrusage fills it through a valid pointer.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(whose, &raw mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    (usage.ru_maxrss, seconds(usage.ru_utime) + seconds(usage.ru_stime))
}
