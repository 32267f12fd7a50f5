//! Where steps lie on the session's clock that were timed on a GPU.
//!
//! Events give times between events. Each step's bubble and duration follow on those of the step before, which makes a
//! chain on the GPU's clock. Where the chain lies on the host's clock is known from two facts about every step: the GPU did
//! not begin it before the host launched it, and had ended it when the host found it done. Most steps are found done long
//! after their end, but now and then the recorder sees one end, and that bound is a tight one. Each step narrows the bounds
//! for all; between steps they are let out as far as two clocks may drift apart, so that no error adds up over hours.

/// How far a GPU's clock and the host's may drift apart, as a share of the time that passes.
const DRIFT: f64 = 100e-6;

/// Resolution of an event's time, nanoseconds (CUDA Driver API, `cuEventElapsedTime`: about half a microsecond).
const RESOLUTION_NS: i64 = 500;

/// A moment on the GPU, on the session's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// Nanoseconds since the session's start.
    pub start_ns: i64,
    /// How far off that may be, nanoseconds.
    pub error_ns: u64,
}

#[derive(Debug, Clone, Copy)]
#[expect(clippy::struct_field_names, reason = "all are nanoseconds, and units are said in names")]
struct Chain {
    /// Beginning and end of the newest step, nanoseconds from the chain's beginning.
    begin_ns: i64,
    end_ns: i64,
    /// Bounds for where the chain begins on the session's clock.
    low_ns: i64,
    high_ns: i64,
}

/// The chain of one worker's steps.
#[derive(Debug, Default)]
pub(crate) struct GpuClock {
    chain: Option<Chain>,
}

impl GpuClock {
    /// Places a step that the host launched at `launched_ns` and found done at `done_ns`, which the GPU began
    /// `idle_ns` after it had ended the step before, and which kept it busy for `busy_ns`.
    pub(crate) fn place(
        &mut self,
        launched_ns: i64,
        done_ns: i64,
        idle_ns: Option<u64>,
        busy_ns: Option<u64>,
    ) -> Option<Placed> {
        let Some(busy_ns) = busy_ns.and_then(|busy| i64::try_from(busy).ok()) else {
            // What follows a step without times hangs in the air.
            self.chain = None;
            return None;
        };
        let before = self.chain.zip(idle_ns.and_then(|idle| i64::try_from(idle).ok()));
        let begin_ns = before.map_or(0, |(chain, idle)| chain.end_ns.saturating_add(idle));
        let end_ns = begin_ns.saturating_add(busy_ns);
        let mut low_ns = launched_ns.saturating_sub(begin_ns);
        let mut high_ns = done_ns.saturating_sub(end_ns);
        if let Some((chain, _)) = before {
            #[expect(clippy::cast_possible_truncation, reason = "a small share of a time")]
            let drift_ns = (begin_ns.saturating_sub(chain.begin_ns) as f64 * DRIFT) as i64 + RESOLUTION_NS;
            let low = low_ns.max(chain.low_ns.saturating_sub(drift_ns));
            let high = high_ns.min(chain.high_ns.saturating_add(drift_ns));
            if low <= high {
                (low_ns, high_ns) = (low, high);
            }
        }
        let high_ns = high_ns.max(low_ns);
        self.chain = Some(Chain { begin_ns, end_ns, low_ns, high_ns });
        // A GPU that had nothing to do begins right after the launch, and the lower bound is from such a step.
        Some(Placed { start_ns: low_ns.saturating_add(begin_ns), error_ns: high_ns.abs_diff(low_ns) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MILLISECOND: u64 = 1_000_000;

    proptest! {
        /// A made-up GPU whose clock runs a little fast, and a host that launches ahead of it.
        #[test]
        fn the_truth_lies_within_the_error(
            offset in -1_000_000_000_000i64..1_000_000_000_000,
            fast_millionths in 0u64..60,
            steps in prop::collection::vec(
                (0u64..5_000_000, 1_000u64..20_000_000, 0i64..100_000, 0i64..30_000_000), 1..400),
        ) {
            let measured = |ns: u64| ns + ns * fast_millionths / 1_000_000;
            let mut clock = GpuClock::default();
            let mut free_ns = 0i64;
            let mut is_first = true;
            for (idle, busy, latency, late) in steps {
                let begin = free_ns + idle.cast_signed();
                let end = begin + busy.cast_signed();
                let idle_measured = (!is_first).then(|| measured(idle));
                let placed = clock
                    .place(begin - latency + offset, end + late + offset, idle_measured, Some(measured(busy)))
                    .unwrap();
                let error = (placed.start_ns - (begin + offset)).unsigned_abs();
                prop_assert!(error <= placed.error_ns + 5_000, "{} over {}", error, placed.error_ns);
                is_first = false;
                free_ns = end;
            }
        }
    }

    #[test]
    fn an_idle_gpu_gives_a_tight_bound_and_hours_do_not_widen_it() {
        let mut clock = GpuClock::default();
        let mut now = 0;
        let mut last = None;
        for step in 0..200_000_u64 {
            // 10 ms of work after 2 ms of waiting, launched 5 us before and found done 20 us after.
            let idle = (step > 0).then_some(2 * MILLISECOND);
            let begin = now + idle.unwrap_or(0).cast_signed();
            let end = begin + (10 * MILLISECOND).cast_signed();
            last = clock.place(begin - 5_000, end + 20_000, idle, Some(10 * MILLISECOND));
            now = end;
        }
        let last = last.unwrap();
        assert!(last.error_ns <= 30_000, "{last:?}");
        assert!((last.start_ns - (now - 10_000_000)).abs() <= 30_000, "{last:?}");
    }

    /// What the recorder's reader does (`pace.rs` in crates/cuda): a look every 50 ms, and now and then fine ones, some
    /// 0.3 ms apart, until one sees a step end. Launches are known to 5 us, so the error is that of the upper bound.
    fn worst_error_us(step_ns: u64, sighting_every_ns: Option<u64>) -> u64 {
        const LOOK: u64 = 50_000_000 + 137_000;
        const FINE: u64 = 300_000;
        let mut clock = GpuClock::default();
        let (mut found, mut looked, mut sighted, mut worst) = (0_u64, 0_u64, 0_u64, 0_u64);
        for step in 0..10_000_000_000 / step_ns {
            let (begin, end) = (step * step_ns, (step + 1) * step_ns);
            if let Some(every) = sighting_every_ns
                && end >= sighted + every
            {
                (found, sighted) = (end + FINE, end);
            }
            while found < end {
                looked += LOOK;
                found = looked;
            }
            let idle = (step > 0).then_some(0);
            let placed =
                clock.place(begin.cast_signed() - 5_000, found.cast_signed(), idle, Some(step_ns)).unwrap();
            assert!((placed.start_ns - begin.cast_signed()).unsigned_abs() <= placed.error_ns);
            if begin > 1_000_000_000 {
                worst = worst.max(placed.error_ns / 1000);
            }
        }
        worst
    }

    #[test]
    fn steps_that_are_seen_to_end_now_and_then_keep_the_upper_bound() {
        for step_ms in [2, 10, 45] {
            let worst = worst_error_us(step_ms * MILLISECOND, Some(500 * MILLISECOND));
            assert!(worst <= 420, "{step_ms} ms: {worst} us");
        }
        // Without, it is as good as looks happen to come soon after an end, which is poor for long steps.
        assert!(worst_error_us(45 * MILLISECOND, None) > 1000);
    }

    #[test]
    fn a_step_without_times_begins_a_new_chain() {
        let mut clock = GpuClock::default();
        assert!(clock.place(0, 20, None, Some(10)).is_some());
        assert_eq!(clock.place(30, 60, None, None), None);
        let placed = clock.place(1_000, 1_100, Some(5), Some(50)).unwrap();
        assert_eq!((placed.start_ns, placed.error_ns), (1_000, 50));
    }
}
