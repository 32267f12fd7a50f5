//! What is usual: medians over steps of one kind, and how far they spread.
//!
//! A kind is a phase and a size: steps whose tokens differ by less than about a fifth. Where the engine had nothing to do before a
//! step, and enough steps were so, those are a kind of their own: with batches in flight they take longer.

use std::collections::HashMap;

use super::recording::{PARTS, Part, Step};
use crate::steps::Phase;

/// Steps of a kind that are enough to say what is usual.
pub const ENOUGH: usize = 8;

/// One size is so many times the one below.
const SIZE_RATIO: f64 = 1.25;

/// Standard deviations of a normal distribution in a median absolute deviation (1 / Φ⁻¹(3/4)).
const DEVIATIONS_IN_MAD: f64 = 1.4826;

/// Standard deviations above the median from which on a value is unusual.
const UNUSUAL_DEVIATIONS: f64 = 3.0;

/// Share of the median above it from which on a value is unusual, however little values spread.
const UNUSUAL_SHARE: f64 = 0.1;

/// Milliseconds above the median under which no value is unusual: clocks and schedulers of operating systems are no better.
pub const LEAST_MS: f64 = 0.05;

/// A median, and the median of the distances from it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// Values.
    pub count: usize,
    /// Their median.
    pub median: f64,
    /// Their median absolute deviation.
    pub mad: f64,
}

impl Spread {
    /// Of these values; `None` if there is none.
    pub(super) fn of(values: &mut [f64]) -> Option<Self> {
        let median = median(values)?;
        for value in &mut *values {
            *value = (*value - median).abs();
        }
        Some(Self { count: values.len(), median, mad: median_or_zero(values) })
    }

    /// By how much a value is above the median, if that is unusual.
    pub(super) fn excess(&self, value: f64) -> Option<f64> {
        let excess = value - self.median;
        (excess > self.margin()).then_some(excess)
    }

    /// How far above the median a value is still usual.
    pub fn margin(&self) -> f64 {
        self.times_margin(1.0)
    }

    /// The same for so many times the value.
    pub(super) fn times_margin(&self, factor: f64) -> f64 {
        let of_one = (UNUSUAL_DEVIATIONS * DEVIATIONS_IN_MAD * self.mad).max(UNUSUAL_SHARE * self.median);
        (factor * of_one).max(LEAST_MS)
    }

    /// The same of counts, which have no clock: by how much more than usual.
    pub(super) fn excess_count(&self, value: f64) -> Option<f64> {
        let excess = value - self.median;
        (excess > UNUSUAL_DEVIATIONS * DEVIATIONS_IN_MAD * self.mad && excess >= 1.0).then_some(excess)
    }
}

/// The median; `None` without values. Moves them about.
pub(super) fn median(values: &mut [f64]) -> Option<f64> {
    let middle = values.len().checked_sub(1)? / 2;
    let is_even = values.len().is_multiple_of(2);
    let (_, lower, above) = values.select_nth_unstable_by(middle, f64::total_cmp);
    let lower = *lower;
    let upper = if is_even { above.iter().copied().fold(f64::INFINITY, f64::min) } else { lower };
    Some(f64::midpoint(lower, upper))
}

fn median_or_zero(values: &mut [f64]) -> f64 {
    median(values).unwrap_or(0.0)
}

/// What is usual for steps of a kind.
#[derive(Debug, Clone)]
pub struct Usual {
    /// Phase of the steps.
    pub phase: Phase,
    /// Least and most tokens in one of them.
    pub tokens: (u32, u32),
    /// Their time, milliseconds.
    pub time: Spread,
    /// Median of their tokens, and of their sequences.
    pub median_tokens: f64,
    /// See `median_tokens`.
    pub median_seqs: f64,
    parts: [Option<Spread>; PARTS],
    pub(super) gpu_busy: Option<Spread>,
    pub(super) until_ready: Option<Spread>,
    pub(super) rank_gap: Option<Spread>,
    pub(super) evicted: Option<Spread>,
    pub(super) garbage: Option<Spread>,
    /// Steps by descriptor's mode, as in [`super::steps::mode`], the most frequent first.
    pub(super) modes: Vec<(u8, usize)>,
}

impl Usual {
    /// Milliseconds of a part; `None` = not known.
    pub fn part(&self, part: Part) -> Option<Spread> {
        self.parts[part as usize]
    }

    fn of(phase: Phase, steps: &[&Step], mode_of: impl Fn(&Step) -> Option<u8>) -> Option<Self> {
        let spread = |value: &dyn Fn(&Step) -> Option<f64>| {
            let mut values: Vec<f64> = steps.iter().filter_map(|step| value(step)).collect();
            Spread::of(&mut values)
        };
        let mut counts: HashMap<u8, usize> = HashMap::new();
        for mode in steps.iter().filter_map(|step| mode_of(step)) {
            *counts.entry(mode).or_default() += 1;
        }
        let mut modes: Vec<(u8, usize)> = counts.into_iter().collect();
        modes.sort_by_key(|(mode, count)| (std::cmp::Reverse(*count), *mode));
        Some(Self {
            phase,
            tokens: (
                steps.iter().map(|step| step.num_tokens).min()?,
                steps.iter().map(|step| step.num_tokens).max()?,
            ),
            time: spread(&Step::ms)?,
            median_tokens: spread(&|step| Some(step.num_tokens.into()))?.median,
            median_seqs: spread(&|step| Some(step.num_seqs.into()))?.median,
            parts: Part::ALL.map(|part| (part, spread(&|step| step.part(part)))).into_iter().fold(
                [None; PARTS],
                |mut parts, (part, spread)| {
                    parts[part as usize] = spread;
                    parts
                },
            ),
            gpu_busy: spread(&|step| step.gpu_busy.ms()),
            until_ready: spread(&|step| step.until_ready.ms()),
            rank_gap: spread(&Step::rank_gap),
            evicted: spread(&|step| step.evicted_blocks().map(f64::from)),
            garbage: spread(&|step| Some(step.garbage.ms.into())),
            modes,
        })
    }
}

/// A size of batches, as a number.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most 100")]
pub(super) fn size(tokens: u32) -> u16 {
    (f64::from(tokens.max(1)).ln() / SIZE_RATIO.ln()).round() as u16
}

type Kind = (Phase, Option<u16>, Option<bool>);

/// What is usual in a session.
#[derive(Debug)]
pub(super) struct AllUsual {
    kinds: HashMap<Kind, Usual>,
    /// Usual milliseconds per prompt token, over what the other tokens take: of prefill steps, of mixed ones.
    per_prompt_token: [Option<Spread>; 2],
}

impl AllUsual {
    pub(super) fn of(steps: &[Step], mode_of: impl Fn(&Step) -> Option<u8>) -> Self {
        let mut members: HashMap<Kind, Vec<&Step>> = HashMap::new();
        for step in steps {
            let Some(phase) = step.phase() else { continue };
            for size in [None, Some(size(step.num_tokens))] {
                for after_idle in [None, Some(step.after_idle)] {
                    members.entry((phase, size, after_idle)).or_default().push(step);
                }
            }
        }
        let kinds: HashMap<Kind, Usual> = members
            .into_iter()
            .filter(|(_, steps)| steps.len() >= ENOUGH)
            .filter_map(|(kind, steps)| Some((kind, Usual::of(kind.0, &steps, &mode_of)?)))
            .collect();
        let decode_ms = kinds.get(&(Phase::Decode, None, None)).map(|usual| usual.time.median);
        let per_prompt_token = [(Phase::Prefill, Some(0.0)), (Phase::Mixed, decode_ms)].map(|(phase, base_ms)| {
            let base_ms = base_ms?;
            let mut values: Vec<f64> = steps
                .iter()
                .filter(|step| step.phase() == Some(phase))
                .filter_map(|step| Some((step.ms()? - base_ms).max(0.0) / f64::from(step.prefill_tokens.max(1))))
                .collect();
            Spread::of(&mut values).filter(|spread| spread.count >= ENOUGH)
        });
        Self { kinds, per_prompt_token }
    }

    /// What is usual for steps of this phase and size; of any size without one.
    pub(super) fn get(&self, phase: Phase, tokens: Option<u32>, after_idle: bool) -> Option<&Usual> {
        let size = tokens.map(size);
        [Some(after_idle), None].into_iter().find_map(|after_idle| self.kinds.get(&(phase, size, after_idle)))
    }

    /// Usual milliseconds per prompt token in steps of this phase.
    pub(super) fn per_prompt_token(&self, phase: Phase) -> Option<Spread> {
        match phase {
            Phase::Prefill => self.per_prompt_token[0],
            Phase::Mixed => self.per_prompt_token[1],
            Phase::Decode => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_a_quarter_apart() {
        assert_eq!((1..=5).map(size).collect::<Vec<_>>(), [0, 3, 5, 6, 7]);
        assert_eq!((size(0), size(256), size(250), size(u32::MAX)), (0, 25, 25, 99));
    }

    #[test]
    fn a_spread_is_a_median_and_its_deviation() {
        let spread = Spread::of(&mut [1.0, 2.0, 3.0, 4.0, 100.0]).unwrap();
        assert_eq!((spread.count, spread.median, spread.mad), (5, 3.0, 1.0));
        assert_eq!(spread.excess(7.0), None);
        assert_eq!(spread.excess(8.0), Some(5.0));
        // Values that do not spread: a tenth more is unusual, and less is not.
        let spread = Spread::of(&mut [10.0; 9]).unwrap();
        assert_eq!((spread.excess(11.0), spread.excess(11.5)), (None, Some(1.5)));
        assert_eq!(Spread::of(&mut []), None);
    }

    proptest! {
        #[test]
        fn the_median_is_that_of_the_sorted_values(mut values in prop::collection::vec(-1e6..1e6f64, 1..60)) {
            let found = median(&mut values.clone()).unwrap();
            values.sort_by(f64::total_cmp);
            let half = values.len() / 2;
            let expected = if values.len() % 2 == 1 { values[half] } else { f64::midpoint(values[half - 1], values[half]) };
            prop_assert!((found - expected).abs() < 1e-9);
        }
    }
}
