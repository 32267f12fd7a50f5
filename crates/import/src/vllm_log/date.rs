//! From a time stamp to nanoseconds since 1970. vLLM's own stamps have no year and no time zone: the year is found from
//! the lines around, and they are read as UTC.

use super::line::Stamp;

const DAY: i64 = 86_400;
/// The beginning of the year 2000, seconds since 1970: no line of vLLM's is as old, whatever a file's time says.
const FIRST: i64 = 946_684_800;
/// The end of the year 9999, seconds since 1970.
const LAST: i64 = 253_402_300_799;
const SECOND_NS: i64 = 1_000_000_000;

/// Days since 1970 of a date of the Gregorian calendar; `None` if there is no such day.
fn days(year: i64, month: u8, day: u8) -> Option<i64> {
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let length = match month {
        4 | 6 | 9 | 11 => 30,
        2 => 28 + u8::from(is_leap),
        _ => 31,
    };
    if !(1..=12).contains(&month) || !(1..=length).contains(&day) {
        return None;
    }
    // Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", days_from_civil: eras of 400 years that begin in
    // March, so that the leap day is the last of its year.
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let month_from_march = (i64::from(month) + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + i64::from(day) - 1;
    Some(era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468)
}

fn seconds(stamp: &Stamp, year: i64) -> Option<i64> {
    let second = days(year, stamp.month, stamp.day)? * DAY + i64::from(stamp.second);
    (second >= FIRST).then_some(second)
}

/// The year in which a second since 1970 lies, give or take one.
fn about_year(second: i64) -> i64 {
    1970 + second.div_euclid(31_556_952)
}

/// Gives years to stamps, from the last one of a log to the first.
#[derive(Debug)]
pub(super) struct Years {
    /// What no stamp may lie behind: when the log was last written to, in seconds since 1970.
    until: i64,
    /// The stamp that was looked at before, seconds since 1970.
    next: Option<i64>,
}

impl Years {
    /// `until`: when the log was last written to, seconds since 1970.
    pub(super) fn before(until: i64) -> Self {
        Self { until: until.clamp(FIRST + DAY * 3653, LAST), next: None }
    }

    /// From when until when, in nanoseconds since 1970, a line with this stamp was written, which stands before all that
    /// were asked for; `None` if there is no such day.
    pub(super) fn span(&mut self, stamp: &Stamp) -> Option<[i64; 2]> {
        let second = match (stamp.year, self.next) {
            (Some(year), _) => seconds(stamp, i64::from(year))?,
            // The last line of all: in the last year that is not in the future. Clocks may be a time zone apart.
            (None, None) => {
                let year = about_year(self.until);
                // Leap days are up to eight years apart.
                (year - 8..=year + 1)
                    .rev()
                    .filter_map(|year| seconds(stamp, year))
                    .find(|second| *second <= self.until + DAY)?
            }
            // In whatever year it is closest to the line behind it.
            (None, Some(next)) => {
                let year = about_year(next);
                (year - 8..=year + 1)
                    .filter_map(|year| seconds(stamp, year))
                    .min_by_key(|second| second.abs_diff(next))?
            }
        };
        self.next = Some(second);
        let from = second.checked_mul(SECOND_NS)?.checked_add(i64::from(stamp.nanosecond))?;
        Some([from, from.checked_add(i64::from(stamp.resolution_ns))?])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stamp(month: u8, day: u8, second: u32) -> Stamp {
        Stamp { year: None, month, day, second, nanosecond: 0, resolution_ns: 1_000_000_000 }
    }

    #[test]
    fn known_days() {
        // From `date -u -d DATE +%s`, over 86400.
        for (date, expected) in [
            ((1970, 1, 1), 0),
            ((2000, 2, 28), 11_015),
            ((2000, 2, 29), 11_016),
            ((2000, 3, 1), 11_017),
            ((2026, 2, 1), 20_485),
            ((2100, 2, 28), 47_540),
            ((2100, 3, 1), 47_541),
        ] {
            assert_eq!(days(date.0, date.1, date.2), Some(expected), "{date:?}");
        }
        for (year, month, day) in
            [(2026, 2, 29), (2100, 2, 29), (2026, 4, 31), (2026, 13, 1), (2026, 0, 1), (2026, 1, 0)]
        {
            assert_eq!(days(year, month, day), None);
        }
    }

    fn starts(until: i64, stamps: &[Stamp]) -> Vec<i64> {
        let mut years = Years::before(until);
        let mut found: Vec<i64> =
            stamps.iter().rev().map(|stamp| years.span(stamp).unwrap()[0] / SECOND_NS).collect();
        found.reverse();
        found
    }

    #[test]
    fn the_year_is_the_last_one_that_is_not_in_the_future() {
        let new_year_2026 = 20_454 * DAY;
        assert_eq!(days(2026, 1, 1), Some(20_454));
        assert_eq!(
            starts(new_year_2026 + 5, &[stamp(12, 31, 86_399), stamp(1, 1, 0)]),
            [new_year_2026 - 1, new_year_2026]
        );
        assert_eq!(starts(new_year_2026 + 40 * DAY, &[stamp(12, 31, 7)]), [new_year_2026 - DAY + 7]);
        // A clock that is some hours ahead.
        assert_eq!(starts(new_year_2026 - 3600, &[stamp(1, 1, 3600)]), [new_year_2026 + 3600]);
        // A leap day was in 2024.
        assert_eq!(starts(new_year_2026, &[stamp(2, 29, 0)]), [days(2024, 2, 29).unwrap() * DAY]);
    }

    proptest! {
        #[test]
        fn a_log_of_up_to_months_is_found_again(
            end in 15_000 * DAY..40_000 * DAY,
            pauses in prop::collection::vec(0..150 * DAY, 0..20),
        ) {
            let mut at = end;
            let mut truth = vec![end];
            for pause in pauses {
                at -= pause;
                truth.push(at);
            }
            truth.reverse();
            let stamps: Vec<Stamp> = truth.iter().map(|second| of(*second)).collect();
            prop_assert_eq!(starts(end + 30, &stamps), truth);
        }
    }

    /// The stamp of a second, found by trying.
    fn of(second: i64) -> Stamp {
        let day = second.div_euclid(DAY);
        let year = about_year(second);
        let (month, day) = (year - 1..=year + 1)
            .flat_map(|year| (1..=12).flat_map(move |month| (1..=31).map(move |day| (year, month, day))))
            .find(|(year, month, of_month)| days(*year, *month, *of_month) == Some(day))
            .map(|(_, month, day)| (month, day))
            .unwrap();
        stamp(month, day, u32::try_from(second.rem_euclid(DAY)).unwrap())
    }
}
