//! From a process's ticks to nanoseconds of `CLOCK_MONOTONIC`, which all processes of a machine share.

use profilemate_format::head::{Anchor, ClockSource, Identity};

/// Fraction bits of a slope. With 56 of them a slope of up to 255 ns per tick fits into 64 bits, and an error stays
/// under 1 ns over a month of nanosecond ticks.
const SLOPE_BITS: u32 = 56;

/// By how much the slope between two anchors may differ from the clock's rate before an anchor counts as damaged:
/// anchors carry no checksum. Clocks drift by parts per million; suspending a machine stops one clock and not the other.
const PLAUSIBLE: std::ops::RangeInclusive<f64> = 0.8..=1.25;

/// A line through one anchor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Line {
    ticks: u64,
    monotonic_ns: u64,
    /// Nanoseconds per tick, with [`SLOPE_BITS`] fraction bits.
    slope: u64,
}

impl Line {
    fn at(self, ticks: u64) -> u64 {
        if ticks >= self.ticks {
            self.monotonic_ns.saturating_add(self.scale(ticks - self.ticks))
        } else {
            self.monotonic_ns.saturating_sub(self.scale(self.ticks - ticks))
        }
    }

    fn scale(self, ticks: u64) -> u64 {
        // To the nearest: the slope is rounded down, and that must not take a nanosecond from a whole number of them.
        let product = (u128::from(ticks) * u128::from(self.slope)).saturating_add(1 << (SLOPE_BITS - 1));
        u64::try_from(product >> SLOPE_BITS).unwrap_or(u64::MAX)
    }
}

fn slope(nanoseconds: u64, ticks: u64) -> u64 {
    let slope = (u128::from(nanoseconds) << SLOPE_BITS) / u128::from(ticks.max(1));
    u64::try_from(slope).unwrap_or(u64::MAX)
}

/// The clock of one log: straight lines between its anchors.
#[derive(Debug, Clone)]
pub struct Clock {
    source: ClockSource,
    anchors: Vec<Anchor>,
    /// One for every pair of neighbours, at least one.
    lines: Vec<Line>,
    /// Anchors that were left out because no clock runs like that.
    pub implausible_anchors: usize,
}

impl Clock {
    /// The clock that `identity` and its anchors (ascending) describe. With fewer than two anchors the rate is an
    /// estimate until [`Clock::borrow_rate`].
    pub fn new(identity: &Identity, anchors: &[Anchor]) -> Self {
        let kept = plausible(identity.ticks_per_second, anchors);
        let implausible_anchors = anchors.len() - kept.len();
        let estimate = match identity.clock {
            ClockSource::Monotonic => slope(1, 1),
            _ => slope(1_000_000_000, identity.ticks_per_second),
        };
        let mut lines: Vec<Line> = kept
            .windows(2)
            .map(|pair| Line {
                ticks: pair[0].ticks,
                monotonic_ns: pair[0].monotonic_ns,
                slope: slope(pair[1].monotonic_ns - pair[0].monotonic_ns, pair[1].ticks - pair[0].ticks),
            })
            .collect();
        if lines.is_empty() {
            let (ticks, monotonic_ns) = kept.first().map_or((0, 0), |anchor| (anchor.ticks, anchor.monotonic_ns));
            lines.push(Line { ticks, monotonic_ns, slope: estimate });
        }
        Self { source: identity.clock, anchors: kept, lines, implausible_anchors }
    }

    /// Takes over what `other`, a better calibrated clock of the same machine, knows about the same source.
    pub(crate) fn borrow_rate(&mut self, other: &Self) {
        if self.source != other.source || self.source == ClockSource::Monotonic || self.anchors.len() >= 2 {
            return;
        }
        match self.anchors.first() {
            Some(anchor) => {
                let slope = other.lines[0].slope;
                self.lines = vec![Line { ticks: anchor.ticks, monotonic_ns: anchor.monotonic_ns, slope }];
            }
            // No anchor of its own is left: processors count the same ticks for every process.
            None => self.lines.clone_from(&other.lines),
        }
    }

    /// Ticks between the first and the last anchor: how well the rate is known.
    pub(crate) fn calibrated_ticks(&self) -> u64 {
        match (self.anchors.first(), self.anchors.last()) {
            (Some(first), Some(last)) => last.ticks - first.ticks,
            _ => 0,
        }
    }

    /// What its ticks are.
    pub fn source(&self) -> ClockSource {
        self.source
    }

    /// The first anchor.
    pub fn first_anchor(&self) -> Option<Anchor> {
        self.anchors.first().copied()
    }

    /// The last anchor.
    pub fn last_anchor(&self) -> Option<Anchor> {
        self.anchors.last().copied()
    }

    /// `CLOCK_MONOTONIC` in nanoseconds when the counter stood at `ticks`. Outside of the anchors the nearest line goes on.
    pub fn monotonic_ns(&self, ticks: u64) -> u64 {
        let after = self.lines.partition_point(|line| line.ticks <= ticks);
        self.lines[after.saturating_sub(1)].at(ticks)
    }

    /// `CLOCK_MONOTONIC` in nanoseconds when `CLOCK_REALTIME` stood at so many seconds since 1970, by the nearest anchor;
    /// `None` without an anchor that says, or when it would be centuries away.
    pub fn monotonic_ns_of_realtime(&self, seconds: f64) -> Option<u64> {
        // A float holds the time of day to a quarter of a microsecond; whole seconds apart from it lose nothing more.
        if !seconds.is_finite() || !(1.0..1e10).contains(&seconds) {
            return None;
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "in the range that was asked for"
        )]
        let realtime_ns = (seconds.trunc() as u64) * 1_000_000_000 + (seconds.fract() * 1e9).round() as u64;
        let nearest = self
            .anchors
            .iter()
            .filter(|anchor| anchor.realtime_ns != 0)
            .min_by_key(|anchor| anchor.realtime_ns.abs_diff(realtime_ns))?;
        let since = i64::try_from(i128::from(realtime_ns) - i128::from(nearest.realtime_ns)).ok()?;
        nearest.monotonic_ns.checked_add_signed(since)
    }

    /// The length of `ticks` in nanoseconds, at the average rate.
    pub fn duration_ns(&self, ticks: u64) -> u64 {
        self.lines[self.lines.len() - 1].scale(ticks)
    }
}

/// The longest run of anchors that fit the clock's rate; the earliest of those that are equally long.
fn plausible(ticks_per_second: u64, anchors: &[Anchor]) -> Vec<Anchor> {
    let nanoseconds_per_tick = 1e9 / ticks_per_second as f64;
    let mut best: Vec<Anchor> = Vec::new();
    for first in 0..anchors.len() {
        if anchors.len() - first <= best.len() {
            break;
        }
        let mut run = vec![anchors[first]];
        for anchor in &anchors[first + 1..] {
            let last = run[run.len() - 1];
            let (Some(ticks), Some(nanoseconds)) =
                (anchor.ticks.checked_sub(last.ticks), anchor.monotonic_ns.checked_sub(last.monotonic_ns))
            else {
                continue;
            };
            let ratio = nanoseconds as f64 / (ticks as f64 * nanoseconds_per_tick);
            // Two anchors taken within a microsecond say nothing about a rate.
            if ticks > 0 && (PLAUSIBLE.contains(&ratio) || nanoseconds < 1_000) {
                run.push(*anchor);
            }
        }
        if run.len() > best.len() {
            best = run;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn identity(clock: ClockSource, ticks_per_second: u64) -> Identity {
        Identity {
            log_id: [0; 16],
            role: String::new(),
            rank: 0,
            data_parallel_rank: 0,
            pid: 0,
            parent_pid: 0,
            process_start: 0,
            ticks_per_second,
            clock,
            segment_slots: 1,
            text_capacity: 0,
        }
    }

    fn anchor(ticks: u64, monotonic_ns: u64) -> Anchor {
        Anchor { ticks, monotonic_ns, realtime_ns: monotonic_ns + 7 }
    }

    #[test]
    fn anchors_are_met_exactly_and_the_outer_lines_go_on() {
        let identity = identity(ClockSource::X86Tsc, 2_000_000_000);
        let clock = Clock::new(&identity, &[anchor(1000, 5000), anchor(3000, 6000), anchor(5000, 7010)]);
        assert_eq!(clock.implausible_anchors, 0);
        for (ticks, nanoseconds) in [(1000, 5000), (3000, 6000), (2000, 5500), (0, 4500), (4000, 6505)] {
            assert_eq!(clock.monotonic_ns(ticks), nanoseconds, "{ticks}");
        }
        // 0.505 ns per tick behind the last anchor.
        assert_eq!(clock.monotonic_ns(7000), 8020);
    }

    #[test]
    fn one_anchor_takes_the_rate_of_another_log() {
        let tsc = identity(ClockSource::X86Tsc, 1_000_000_000);
        let mut clock = Clock::new(&tsc, &[anchor(0, 100)]);
        assert_eq!(clock.monotonic_ns(1000), 1100);
        clock.borrow_rate(&Clock::new(&tsc, &[anchor(0, 0), anchor(10_000, 9_000)]));
        assert!(clock.monotonic_ns(1000).abs_diff(1000) <= 1);
        // A clock of another kind has nothing to say.
        clock.borrow_rate(&Clock::new(
            &identity(ClockSource::ArmCounter, 1_000_000_000),
            &[anchor(0, 0), anchor(10, 10)],
        ));
        assert!(clock.monotonic_ns(1000).abs_diff(1000) <= 1);
    }

    #[test]
    fn monotonic_ticks_are_nanoseconds() {
        let clock = Clock::new(&identity(ClockSource::Monotonic, 1_000_000_000), &[anchor(50, 50)]);
        assert_eq!((clock.monotonic_ns(20), clock.monotonic_ns(123_456_789_012)), (20, 123_456_789_012));
    }

    #[test]
    fn an_anchor_that_no_clock_would_give_is_left_out() {
        let identity = identity(ClockSource::X86Tsc, 1_000_000_000);
        let sound = [anchor(0, 1_000_000), anchor(10_000, 1_010_000), anchor(20_000, 1_020_000)];
        for bad in 0..3 {
            let mut anchors = sound;
            anchors[bad].monotonic_ns ^= 1 << 40;
            let clock = Clock::new(&identity, &anchors);
            assert_eq!(clock.implausible_anchors, 1);
            assert_eq!(clock.monotonic_ns(15_000), 1_015_000);
        }
    }

    /// Anchors a second apart, whose wall clock is set by so many seconds before each.
    fn stepped(steps: &[i64]) -> (Vec<Anchor>, Vec<Anchor>) {
        let (mut plain, mut set, mut ahead) = (Vec::new(), Vec::new(), 0);
        for (number, step) in (1..).zip(steps) {
            ahead += step * 1_000_000_000;
            let at = number * 1_000_000_000;
            let realtime_ns = 1_700_000_000_000_000_000 + at;
            plain.push(Anchor { ticks: 3 * at, monotonic_ns: at, realtime_ns });
            let realtime_ns = realtime_ns.checked_add_signed(ahead).unwrap();
            set.push(Anchor { ticks: 3 * at, monotonic_ns: at, realtime_ns });
        }
        (plain, set)
    }

    #[test]
    fn setting_the_wall_clock_moves_no_event() {
        let identity = identity(ClockSource::X86Tsc, 3_000_000_000);
        for steps in [[0, 3600, 0, 0, 0, 0], [0, 0, -3600, 0, 7200, 0], [0, -1, -1, -1, -1, -1]] {
            let (plain, set) = stepped(&steps);
            let (plain, set) = (Clock::new(&identity, &plain), Clock::new(&identity, &set));
            assert_eq!(set.implausible_anchors, 0, "{steps:?}");
            for ticks in (0..30_000_000_000).step_by(700_000_000) {
                assert_eq!(set.monotonic_ns(ticks), plain.monotonic_ns(ticks), "{steps:?}");
                assert_eq!(set.duration_ns(ticks), plain.duration_ns(ticks), "{steps:?}");
            }
        }
    }

    #[test]
    fn a_time_of_day_is_understood_by_the_clock_as_it_was_set_then() {
        let identity = identity(ClockSource::X86Tsc, 3_000_000_000);
        let (_, anchors) = stepped(&[0, 0, 3600, 0, -7200, 0]);
        let clock = Clock::new(&identity, &anchors);
        for anchor in &anchors {
            // A float of the time of day has a quarter of a microsecond.
            let found = clock.monotonic_ns_of_realtime(anchor.realtime_ns as f64 / 1e9).unwrap();
            assert!(found.abs_diff(anchor.monotonic_ns) < 1_000, "{found} for {anchor:?}");
        }
    }

    proptest! {
        #[test]
        fn later_ticks_are_never_earlier_times(
            first in 0u64..1 << 50, steps in prop::collection::vec((1u64..1 << 40, 0.9f64..1.1), 0..20),
            a in 0u64..1 << 52, b in 0u64..1 << 52,
        ) {
            let mut anchors = vec![anchor(first, 1 << 50)];
            for (ticks, rate) in steps {
                let last = anchors[anchors.len() - 1];
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a test value")]
                let nanoseconds = ((ticks as f64 * rate) as u64).max(1);
                anchors.push(anchor(last.ticks + ticks, last.monotonic_ns + nanoseconds));
            }
            let clock = Clock::new(&identity(ClockSource::X86Tsc, 1_000_000_000), &anchors);
            prop_assert!(clock.monotonic_ns(a.min(b)) <= clock.monotonic_ns(a.max(b)));
        }

        #[test]
        fn any_anchors_are_taken_without_panic(pairs: Vec<(u64, u64)>, rate in 1u64.., ticks: u64) {
            let anchors: Vec<Anchor> = pairs.into_iter().map(|(t, n)| anchor(t, n.min(u64::MAX - 7))).collect();
            let clock = Clock::new(&identity(ClockSource::ArmCounter, rate), &anchors);
            let _ = (clock.monotonic_ns(ticks), clock.duration_ns(ticks));
        }
    }
}
