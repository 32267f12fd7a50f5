//! When the reader looks.
//!
//! Mostly it looks rarely and reads in bulk. But where steps lie on the host's clock is known as well as one of them was
//! seen to end (`gpu_clock.rs` in crates/analysis carries that over to its neighbours), so now and then it looks often
//! until it has seen one end.

use crate::step::Clock;
use std::time::Duration;

/// Longest time between two looks.
const LONGEST: Duration = Duration::from_millis(50);
/// Shortest, when more steps come than may be in flight.
const SHORTEST: Duration = Duration::from_millis(1);
/// Time between looks that are to see a step end. A tenth of a millisecond was seen not to disturb launches.
const FINE: Duration = Duration::from_micros(200);
/// Fine looks in a row, if they see no step end.
const FINE_LOOKS: u32 = 128;
/// So many times per second a step is to be seen to end.
const SIGHTINGS_PER_SECOND: u64 = 2;

/// What a look saw.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Steps that had been handed over and not been read before.
    pub(crate) in_flight: usize,
    /// How many of them the GPU had passed.
    pub(crate) passed: usize,
}

#[derive(Debug)]
pub(crate) struct Pace {
    clock: Clock,
    /// Steps that may be in flight before looks become more frequent.
    look_at: usize,
    pause: Duration,
    fine_looks: u32,
    seen_at: Option<u64>,
}

impl Pace {
    pub(crate) fn new(clock: Clock, look_at: usize) -> Self {
        Self { clock, look_at, pause: LONGEST, fine_looks: 0, seen_at: None }
    }

    /// How long to wait after a look that saw this.
    pub(crate) fn pause(&mut self, seen: Seen) -> Duration {
        if seen.in_flight >= self.look_at {
            self.pause = (self.pause / 2).max(SHORTEST);
        } else if seen.in_flight <= self.look_at / 4 {
            self.pause = (self.pause * 2).min(LONGEST);
        }
        let now = (self.clock.ticks)();
        if self.fine_looks > 0 && seen.passed > 0 {
            // It ended since the last look, which is not long ago.
            self.seen_at = Some(now);
            self.fine_looks = 0;
            return self.pause;
        }
        let is_due = self
            .seen_at
            .is_none_or(|then| now.wrapping_sub(then) >= self.clock.ticks_per_second / SIGHTINGS_PER_SECOND);
        let is_active = seen.in_flight > 0 || self.fine_looks > 0;
        if is_due && is_active && self.fine_looks < FINE_LOOKS {
            self.fine_looks += 1;
            return FINE.min(self.pause);
        }
        self.fine_looks = 0;
        self.pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    thread_local! {
        static NOW: Cell<u64> = const { Cell::new(0) };
    }

    fn pace(look_at: usize) -> Pace {
        Pace::new(Clock { ticks: || NOW.get(), ticks_per_second: 1_000_000 }, look_at)
    }

    fn pass(pause: Duration) {
        NOW.set(NOW.get() + u64::try_from(pause.as_micros()).unwrap());
    }

    #[test]
    fn an_idle_worker_is_looked_at_rarely() {
        let mut pace = pace(100);
        for _ in 0..100 {
            assert_eq!(pace.pause(Seen::default()), LONGEST);
        }
    }

    #[test]
    fn a_step_is_seen_to_end_twice_a_second_and_looks_are_rare_otherwise() {
        let mut pace = pace(100);
        let (mut looks, mut sightings, mut fine) = (0, Vec::new(), false);
        // Steps of 10 ms, one after the other, each handed over when it begins.
        let (mut read, begun) = (0, NOW.get());
        while NOW.get() - begun < 10_000_000 {
            let running = (NOW.get() - begun) / 10_000;
            let passed = usize::try_from(running - read).unwrap();
            if fine && passed > 0 {
                sightings.push(NOW.get());
            }
            read = running;
            let pause = pace.pause(Seen { in_flight: passed + 1, passed });
            fine = pause == FINE;
            looks += 1;
            pass(pause);
        }
        assert!((18..=20).contains(&sightings.len()), "{sightings:?}");
        assert!(looks < 10 * 150, "{looks}");
    }

    #[test]
    fn a_gpu_that_hangs_is_not_polled_finely_for_ever() {
        let mut pace = pace(100);
        let pauses: Vec<Duration> = (0..1000).map(|_| pace.pause(Seen { in_flight: 1, passed: 0 })).collect();
        assert_eq!(pauses.iter().filter(|pause| **pause == LONGEST).count(), 1000 / (FINE_LOOKS as usize + 1));
    }

    #[test]
    fn more_steps_than_may_be_in_flight_bring_looks_closer_and_fewer_let_them_apart() {
        let mut pace = pace(8);
        pace.seen_at = Some(NOW.get());
        let many = Seen { in_flight: 8, passed: 8 };
        let pauses: Vec<Duration> = (0..8).map(|_| pace.pause(many)).collect();
        assert_eq!(pauses[0], LONGEST / 2);
        assert_eq!(pauses[7], SHORTEST);
        for _ in 0..8 {
            pace.pause(Seen { in_flight: 1, passed: 1 });
        }
        assert_eq!(pace.pause(Seen::default()), LONGEST);
    }
}
