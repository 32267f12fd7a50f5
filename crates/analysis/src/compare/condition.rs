//! Conditions that a comparison may fail on: `decode.p99 > 5%`.

use std::fmt;

use super::Interval;
use super::bootstrap::NotJudged;
use super::metric::Metric;

/// A condition on the change of a metric from the base to the candidate.
#[derive(Debug, Clone, PartialEq)]
pub struct Condition {
    /// Whose change.
    pub metric: Metric,
    /// Which way it must be beyond the threshold.
    pub side: Side,
    /// In percent of the base's value, or in percentage points.
    pub threshold: f64,
}

/// A side of a threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// `>`
    Above,
    /// `<`
    Below,
}

/// Whether a condition holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The whole interval of the change lies beyond the threshold.
    Holds,
    /// None of it does.
    DoesNotHold,
    /// Some of it does.
    Undecided,
    /// There is no interval.
    NotJudged(NotJudged),
    /// A side has no such figure.
    NotThere,
}

/// What is wrong with the text of a condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConditionError {
    /// Where, in characters from the beginning of the text, counted from 1.
    pub position: usize,
    /// What is expected there.
    pub expected: String,
}

impl std::error::Error for ConditionError {}

impl fmt::Display for ConditionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at character {}: expected {}", self.position, self.expected)
    }
}

/// Most letters that two names differ by for one to be taken for the other.
const MOST_TYPOS: usize = 3;

/// The names that somebody may have meant.
fn like(name: &str) -> Vec<String> {
    fn family(name: &str) -> &str {
        name.split('.').next().unwrap_or("")
    }
    let all: Vec<String> = Metric::all().into_iter().map(Metric::name).collect();
    let of_family: Vec<String> = all.iter().filter(|known| family(known) == family(name)).cloned().collect();
    if !of_family.is_empty() {
        return of_family;
    }
    // No name is as long as this, and the time that it takes grows with the text.
    let name: String = name.chars().take(64).collect();
    // Names whose lengths differ by more than that differ by more than that.
    let length = name.chars().count();
    let near = all.into_iter().filter(|known| known.len().abs_diff(length) <= MOST_TYPOS);
    let typos = near.map(|known| (strsim::levenshtein(&name, &known), known));
    let mut near: Vec<(usize, String)> = typos.filter(|(typos, _)| *typos <= MOST_TYPOS).collect();
    near.sort();
    near.into_iter().map(|(_, known)| known).take(MOST_TYPOS).collect()
}

impl Condition {
    /// Reads `METRIC > NUMBER%` or `METRIC < NUMBER%`; for metrics that are percentages, `NUMBERpp` instead.
    ///
    /// # Errors
    /// When the text is anything else.
    pub fn parse(text: &str) -> Result<Self, ConditionError> {
        let position = |rest: &str| text.chars().count() - rest.chars().count() + 1;
        let fail = |rest: &str, expected: &str| {
            Err(ConditionError { position: position(rest), expected: expected.to_owned() })
        };
        let begin = text.trim_start();
        let end =
            begin.find(|letter: char| letter.is_whitespace() || "<>=!".contains(letter)).unwrap_or(begin.len());
        let (name, rest) = begin.split_at(end);
        let Some(metric) = Metric::parse(name) else {
            let like = like(name);
            let hint = if like.is_empty() {
                "`--list-metrics` lists them".to_owned()
            } else {
                format!("{}; `--list-metrics` lists all", like.join(", "))
            };
            return fail(begin, &format!("a metric ({hint})"));
        };
        let rest = rest.trim_start();
        let side = match rest.chars().next() {
            Some('>') => Side::Above,
            Some('<') => Side::Below,
            _ => return fail(rest, "`>` or `<`"),
        };
        let number = rest[1..].trim_start();
        let end = number
            .find(|letter: char| !(letter.is_ascii_digit() || "+-.".contains(letter)))
            .unwrap_or(number.len());
        let Some(threshold) = number[..end].parse::<f64>().ok().filter(|threshold| threshold.is_finite()) else {
            return fail(number, "a number, such as 5 or -2.5");
        };
        let unit = number[end..].trim_start();
        let is_points = metric.is_in_points();
        let expected = if is_points { "pp" } else { "%" };
        match unit.trim_end() {
            found if found == expected => Ok(Self { metric, side, threshold }),
            "%" if is_points => {
                fail(unit, &format!("`pp`: {name} is a percentage, and its change is told in percentage points"))
            }
            "pp" => fail(unit, &format!("`%`: the change of {name} is told in percent of the base")),
            found if found.starts_with(expected) => fail(
                unit[expected.len()..].trim_start(),
                "nothing more (give `--fail-on` once for each condition)",
            ),
            _ => fail(unit, &format!("`{expected}`")),
        }
    }

    /// Whether it holds, by where the change lies.
    pub(crate) fn outcome(&self, is_there: bool, interval: Result<Interval, NotJudged>) -> Outcome {
        if !is_there {
            return Outcome::NotThere;
        }
        let interval = match interval {
            Ok(interval) => interval,
            Err(why) => return Outcome::NotJudged(why),
        };
        let (is_all, is_none) = match self.side {
            Side::Above => (interval.low > self.threshold, interval.high <= self.threshold),
            Side::Below => (interval.high < self.threshold, interval.low >= self.threshold),
        };
        match (is_all, is_none) {
            (true, _) => Outcome::Holds,
            (_, true) => Outcome::DoesNotHold,
            _ => Outcome::Undecided,
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = match self.side {
            Side::Above => '>',
            Side::Below => '<',
        };
        let unit = if self.metric.is_in_points() { "pp" } else { "%" };
        write!(f, "{} {side} {}{unit}", self.metric.name(), self.threshold)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn error(text: &str) -> String {
        Condition::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn conditions_are_read() {
        for (text, shown) in [
            ("decode.p99 > 5%", "decode.p99 > 5%"),
            ("decode.p99>5%", "decode.p99 > 5%"),
            (" throughput.tokens_per_sec <-3 % ", "throughput.tokens_per_sec < -3%"),
            ("gpu.idle_pct > 0.5pp", "gpu.idle_pct > 0.5pp"),
            ("ttft.p50 > +.5%", "ttft.p50 > 0.5%"),
        ] {
            assert_eq!(Condition::parse(text).unwrap().to_string(), shown);
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        for (text, said) in [
            ("", "at character 1: expected a metric (`--list-metrics` lists them)"),
            (
                "decode.p98 > 5%",
                "at character 1: expected a metric (decode.tokens_per_sec, decode.mean, decode.p50, decode.p95, \
                 decode.p99; `--list-metrics` lists all)",
            ),
            (
                "decodes.p99 > 5%",
                "at character 1: expected a metric (decode.p99, decode.p95, decode.p50; `--list-metrics` lists all)",
            ),
            (" decode.p99", "at character 12: expected `>` or `<`"),
            ("decode.p99 = 5%", "at character 12: expected `>` or `<`"),
            ("decode.p99 >= 5%", "at character 13: expected a number, such as 5 or -2.5"),
            ("decode.p99 > five%", "at character 14: expected a number, such as 5 or -2.5"),
            ("decode.p99 > 1.2.3%", "at character 14: expected a number, such as 5 or -2.5"),
            ("decode.p99 > 5", "at character 15: expected `%`"),
            ("decode.p99 > 5ms", "at character 15: expected `%`"),
            (
                "decode.p99 > 5pp",
                "at character 15: expected `%`: the change of decode.p99 is told in percent of the base",
            ),
            (
                "gpu.idle_pct > 5%",
                "at character 17: expected `pp`: gpu.idle_pct is a percentage, and its change is told in percentage points",
            ),
            (
                "decode.p99 > 5% or ttft.p50 > 1%",
                "at character 17: expected nothing more (give `--fail-on` once for each condition)",
            ),
        ] {
            assert_eq!(error(text), said, "{text:?}");
        }
    }

    #[test]
    fn a_condition_holds_when_the_whole_interval_is_beyond() {
        let outcome =
            |text: &str, low, high| Condition::parse(text).unwrap().outcome(true, Ok(Interval { low, high }));
        assert_eq!(outcome("decode.p99 > 5%", 5.1, 9.0), Outcome::Holds);
        assert_eq!(outcome("decode.p99 > 5%", 5.0, 9.0), Outcome::Undecided);
        assert_eq!(outcome("decode.p99 > 5%", 1.0, 5.0), Outcome::DoesNotHold);
        assert_eq!(outcome("decode.p99 < -3%", -9.0, -3.1), Outcome::Holds);
        assert_eq!(outcome("decode.p99 < -3%", -3.0, 2.0), Outcome::DoesNotHold);
        assert_eq!(outcome("decode.p99 < -3%", -4.0, -2.0), Outcome::Undecided);
        let condition = Condition::parse("decode.p99 > 5%").unwrap();
        assert_eq!(
            condition.outcome(true, Err(NotJudged::TooFewSamples)),
            Outcome::NotJudged(NotJudged::TooFewSamples)
        );
        assert_eq!(condition.outcome(false, Err(NotJudged::TooFewSamples)), Outcome::NotThere);
    }

    fn any_condition() -> impl Strategy<Value = Condition> {
        (0..Metric::all().len(), any::<bool>(), -1e6..1e6f64).prop_map(|(metric, above, threshold)| Condition {
            metric: Metric::all()[metric],
            side: if above { Side::Above } else { Side::Below },
            threshold,
        })
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back(condition in any_condition(), before in " {0,3}", after in " {0,3}") {
            let shown = condition.to_string();
            prop_assert_eq!(Condition::parse(&format!("{before}{shown}{after}")), Ok(condition.clone()));
            prop_assert_eq!(Condition::parse(&shown.replace(' ', "")), Ok(condition));
        }

        #[test]
        fn no_text_breaks_it_and_errors_point_into_it(text in any::<String>()) {
            if let Err(error) = Condition::parse(&text) {
                prop_assert!(error.position >= 1 && error.position <= text.chars().count() + 1);
            }
        }

        #[test]
        fn damage_to_a_condition_is_found_where_it_is(condition in any_condition(), at in 0usize..200, letter in "[^ 0-9a-z._+-]") {
            let shown = condition.to_string();
            let at = at % (shown.chars().count() + 1);
            let damaged: String = shown.chars().take(at).chain(letter.chars()).chain(shown.chars().skip(at)).collect();
            // A space is no damage, and a second sign stands where a number is expected: behind the first and a space.
            prop_assume!(!letter.trim().is_empty());
            let error = Condition::parse(&damaged).unwrap_err();
            prop_assert!(error.position <= at + 3, "{damaged}: {error}");
        }
    }
}
