//! The clock of a log: a cheap counter, tied to `CLOCK_MONOTONIC` by anchors.
//!
//! `CLOCK_MONOTONIC` is one clock for all processes of a machine, so logs whose ticks are turned into it line up.

use profilemate_format::head::{Anchor, ClockSource};
use rustix::time::{ClockId, clock_gettime};
use std::sync::OnceLock;

fn nanoseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    // Both clocks are after 1970 and fit 64 bits of nanoseconds until the year 2554.
    time.tv_sec.unsigned_abs().wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec.unsigned_abs())
}

/// `CLOCK_MONOTONIC` in nanoseconds.
pub fn monotonic_ns() -> u64 {
    nanoseconds(ClockId::Monotonic)
}

/// Whether the kernel itself trusts the processor's counter as a clock that never stops or changes its rate.
#[cfg(target_arch = "x86_64")]
fn counter_is_trusted() -> bool {
    let clocksource = std::fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource")
        .unwrap_or_default();
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags: Vec<&str> = flags
        .lines()
        .find(|line| line.starts_with("flags"))
        .map(|line| line.split_whitespace().collect())
        .unwrap_or_default();
    let invariant = ["constant_tsc", "nonstop_tsc"].iter().all(|flag| flags.contains(flag));
    // These kernel clocks are the TSC, or are read from it.
    invariant && matches!(clocksource.trim(), "tsc" | "kvm-clock" | "hyperv_clocksource_tsc_page")
}

/// What a tick is on this machine. Decided once per process.
pub fn source() -> ClockSource {
    static SOURCE: OnceLock<ClockSource> = OnceLock::new();
    *SOURCE.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        if counter_is_trusted() {
            return ClockSource::X86Tsc;
        }
        #[cfg(target_arch = "aarch64")]
        return ClockSource::ArmCounter;
        #[allow(unreachable_code, reason = "reached where the branches above are compiled out or not taken")]
        ClockSource::Monotonic
    })
}

/// Reads a clock of the given source.
#[inline]
pub fn ticks_of(source: ClockSource) -> u64 {
    match source {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: every x86-64 processor has the instruction, and Linux leaves it open to user programs.
        ClockSource::X86Tsc => unsafe { core::arch::x86_64::_rdtsc() },
        #[cfg(target_arch = "aarch64")]
        ClockSource::ArmCounter => {
            let ticks: u64;
            // SAFETY: reads a counter that Linux leaves open to user programs; no memory is touched.
            unsafe { core::arch::asm!("mrs {}, cntvct_el0", out(reg) ticks, options(nomem, nostack)) };
            ticks
        }
        _ => monotonic_ns(),
    }
}

/// Ticks now.
#[inline]
pub fn ticks() -> u64 {
    ticks_of(source())
}

/// Reads the counter and the kernel's clocks together: the tightest of several tries, usually within 100 ns.
pub fn anchor() -> Anchor {
    let source = source();
    let mut best: Option<(u64, Anchor)> = None;
    for _ in 0..8 {
        let before = ticks_of(source);
        let monotonic_ns = monotonic_ns();
        let after = ticks_of(source);
        let width = after.wrapping_sub(before);
        if best.as_ref().is_none_or(|(narrowest, _)| width < *narrowest) {
            let ticks = if source == ClockSource::Monotonic { monotonic_ns } else { before + width / 2 };
            best = Some((width, Anchor { ticks, monotonic_ns, realtime_ns: nanoseconds(ClockId::Realtime) }));
        }
    }
    best.map_or_else(|| Anchor { ticks: 0, monotonic_ns: 0, realtime_ns: 0 }, |(_, anchor)| anchor)
}

/// A first estimate of the clock's rate in ticks per second, from half a millisecond of spinning. Good to 0.1 %, and
/// needed only for a process that dies before its second anchor.
pub fn ticks_per_second() -> u64 {
    static RATE: OnceLock<u64> = OnceLock::new();
    *RATE.get_or_init(|| {
        if source() == ClockSource::Monotonic {
            return 1_000_000_000;
        }
        let first = anchor();
        loop {
            let second = anchor();
            let nanoseconds = second.monotonic_ns.saturating_sub(first.monotonic_ns);
            if nanoseconds >= 500_000 {
                let ticks = u128::from(second.ticks.saturating_sub(first.ticks));
                let rate = ticks * 1_000_000_000 / u128::from(nanoseconds);
                return u64::try_from(rate).unwrap_or(u64::MAX).max(1);
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_never_run_backwards() {
        let mut last = ticks();
        for _ in 0..10_000 {
            let now = ticks();
            assert!(now >= last);
            last = now;
        }
    }

    #[test]
    fn two_anchors_give_the_estimated_rate() {
        let first = anchor();
        let mut second = anchor();
        while second.monotonic_ns < first.monotonic_ns + 20_000_000 {
            second = anchor();
        }
        let ticks = u128::from(second.ticks - first.ticks);
        let rate = ticks * 1_000_000_000 / u128::from(second.monotonic_ns - first.monotonic_ns);
        let estimate = u128::from(ticks_per_second());
        assert!(rate.abs_diff(estimate) < estimate / 20, "{rate} against an estimate of {estimate}");
    }
}
