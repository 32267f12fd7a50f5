//! Where iterations lie in time. A log says when a line was written, to the second, and how long an iteration took.
//!
//! An engine runs one iteration after the other, and a line is written when its iteration is over. So with the duration `d`
//! and the second `[s, e)` of its line, the end `t` of iteration `i` lies between two bounds:
//!
//! ```text
//! earliest(i) = max(earliest(i - 1) + d(i), s(i))        latest(i) = min(latest(i + 1) - d(i + 1), e(i))
//! ```
//! Both leave `d(i)` between two neighbours, and so does the middle of the two, which is taken. It is off by at most half
//! of what lies between them. (Where lines were written late, earliest may come after latest; the same holds.)

/// What is known of one iteration, nanoseconds. Times are since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Known {
    /// When its line was written: from, and until.
    pub(super) written: Option<[i64; 2]>,
    /// How long it took.
    pub(super) duration: i64,
}

/// When iterations ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Placed {
    /// End of each, nanoseconds since 1970, in ascending order and with room for each.
    pub(super) ends: Vec<i64>,
    /// How far off they may be.
    pub(super) error: i64,
}

/// Places the iterations of an engine; `None` if no line says when it was written.
pub(super) fn place(known: &[Known]) -> Option<Placed> {
    let mut ends = Vec::with_capacity(known.len());
    let mut earliest: Option<i64> = None;
    for iteration in known {
        let behind = earliest.map(|before| before.saturating_add(iteration.duration));
        earliest = behind.max(iteration.written.map(|[from, _]| from));
        ends.push(earliest);
    }
    let mut error = 0;
    let mut latest: Option<i64> = None;
    for (iteration, end) in known.iter().zip(&mut ends).rev() {
        let until = iteration.written.map(|[_, until]| until);
        latest = match (latest, until) {
            (Some(before_next), Some(until)) => Some(before_next.min(until)),
            (one, other) => one.or(other),
        };
        *end = end.zip(latest).map(|(earliest, latest)| {
            let between = latest.saturating_sub(earliest);
            error = error.max(between.saturating_abs() / 2);
            earliest.saturating_add(between / 2)
        });
        latest = latest.map(|latest| latest.saturating_sub(iteration.duration));
    }
    // Where nothing before, or nothing behind, has a time, iterations lie close to the others.
    for at in (1..ends.len()).rev() {
        ends[at - 1] = ends[at - 1].or(ends[at].map(|end| end.saturating_sub(known[at].duration)));
    }
    let mut placed: Vec<i64> = Vec::with_capacity(ends.len());
    for (end, iteration) in ends.into_iter().zip(known) {
        // Halves are rounded; that must not take a nanosecond from anyone.
        let behind = placed.last().map(|before| before.saturating_add(iteration.duration));
        placed.push(behind.max(end)?);
    }
    Some(Placed { ends: placed, error })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: i64 = 1_000_000_000;

    fn known(second: i64, duration: i64) -> Known {
        Known { written: Some([second * SECOND, (second + 1) * SECOND]), duration }
    }

    #[test]
    fn a_full_second_leaves_no_doubt() {
        // Ten times 0.1 s in each of two seconds.
        let log = [[known(7, SECOND / 10); 10], [known(8, SECOND / 10); 10]].concat();
        let placed = place(&log).unwrap();
        assert_eq!(placed.ends[19] - placed.ends[0], 19 * SECOND / 10);
        assert_eq!(placed.error, SECOND / 20);
    }

    #[test]
    fn one_iteration_is_in_the_middle_of_its_second() {
        let placed = place(&[known(7, 1000)]).unwrap();
        assert_eq!(placed, Placed { ends: vec![7 * SECOND + SECOND / 2], error: SECOND / 2 });
    }

    #[test]
    fn without_any_time_there_is_no_place() {
        assert_eq!(place(&[Known { written: None, duration: 5 }]), None);
        assert_eq!(place(&[]), Some(Placed::default()));
    }

    #[test]
    fn an_iteration_without_a_time_lies_between_its_neighbours() {
        let unknown = Known { written: None, duration: 1000 };
        let placed = place(&[unknown, known(7, 1000), unknown, known(9, 1000), unknown]).unwrap();
        assert!(placed.ends.windows(2).all(|pair| pair[1] - pair[0] >= 1000), "{placed:?}");
        assert!(placed.ends[1] < 8 * SECOND && placed.ends[3] >= 9 * SECOND, "{placed:?}");
    }

    proptest! {
        /// A real course of iterations, of which the log tells durations and the second of each end.
        #[test]
        fn what_happened_is_found_again_within_the_error(
            course in prop::collection::vec((0..3 * SECOND, 0..SECOND), 1..60),
            begin in 0..SECOND,
        ) {
            let mut at = begin;
            let mut log = Vec::new();
            let mut truth = Vec::new();
            for (pause, duration) in course {
                at += pause + duration;
                let second = at / SECOND;
                log.push(known(second, duration));
                truth.push(at);
            }
            let placed = place(&log).unwrap();
            // Half a nanosecond is rounded away once for each iteration.
            let tolerance = placed.error + i64::try_from(log.len()).unwrap();
            prop_assert!(placed.error <= SECOND / 2);
            for (at, (found, truth)) in placed.ends.iter().zip(&truth).enumerate() {
                prop_assert!((found - truth).abs() <= tolerance, "{at}: {found} is not {truth}");
                let [from, until] = log[at].written.unwrap();
                prop_assert!((from..=until + tolerance - placed.error).contains(found));
            }
            for (at, pair) in placed.ends.windows(2).enumerate() {
                prop_assert!(pair[1] - pair[0] >= log[at + 1].duration);
            }
        }

        /// Whatever a log says: iterations come one after the other.
        #[test]
        fn nothing_overlaps(
            log in prop::collection::vec((prop::option::of(0..100i64), 0..10 * SECOND), 0..60),
        ) {
            let log: Vec<Known> = log
                .into_iter()
                .map(|(second, duration)| Known { duration, ..second.map_or(
                    Known { written: None, duration },
                    |second| known(second, duration),
                ) })
                .collect();
            if let Some(placed) = place(&log) {
                for (at, pair) in placed.ends.windows(2).enumerate() {
                    prop_assert!(pair[1] - pair[0] >= log[at + 1].duration);
                }
            } else {
                prop_assert!(log.iter().all(|known| known.written.is_none()));
            }
        }
    }
}
