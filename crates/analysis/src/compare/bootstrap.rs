//! How far a figure of one run may be off: a moving-block bootstrap over slices of the run's time.
//!
//! A run is cut into at most [`SLICES`] slices of equal time. What is resampled are blocks of neighbouring slices, drawn around a
//! circle, so that what goes on from step to step stays together (Politis and Romano, "A circular block-resampling procedure
//! for stationary data", 1992). A replicate of the run is then a weight for each slice, and a figure of it needs only counts
//! and sums by slice, never the samples.
//!
//! The length of blocks is chosen for each figure from the data: that under which the figure varies most, of a 64th, a 32nd and a
//! 16th of the run. Samples that hang together make the variance grow with the length of blocks until they are
//! longer than what hangs together (batch means; Meketon and Schmeiser, "Overlapping batch means", 1984); what is still missing
//! is put at what the last doubling brought (Vats and Flegal, "Lugsail lag windows for estimating time-average covariance
//! matrices", 2022). Taking the greatest errs towards "no difference". Shorter blocks would cut apart what follows a pattern, such
//! as a prompt in every tenth step, and take it for chance.

use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;

use crate::statistics::{interpolated, milliseconds};

/// Most slices of a run.
pub(crate) const SLICES: usize = 512;

/// Blocks of a run at the greatest length and at the least.
const BLOCKS: [usize; 2] = [16, 64];

/// Replicates.
pub(crate) const REPLICATES: usize = 1000;

/// Fewest samples that a figure is judged by.
pub const LEAST_SAMPLES: u64 = 30;

/// Fewest samples beyond a percentile that it is judged by.
pub const LEAST_TAIL_SAMPLES: f64 = 10.0;

/// Fewest blocks that have something to say about a figure.
pub(crate) const LEAST_TELLING_BLOCKS: usize = 6;

/// Degrees of freedom at which Student's distribution is the normal one.
pub(crate) const MANY: f64 = 1e6;

/// Values of a percentile that replicates are looked up in.
const GRID: usize = 129;

/// Standard errors to each side that those values reach.
const GRID_REACH: f64 = 6.0;

/// Why a figure of a run has no error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotJudged {
    /// There are too few samples, or they tell of too few moments.
    TooFewSamples,
    /// It is an extreme: one run says nothing of how far off it may be.
    Extreme,
    /// It is 0 on one side: there is nothing to take a share of.
    Zero,
}

/// How a figure varies over the replicates of its run.
#[derive(Debug, Clone)]
pub(crate) struct Within {
    /// Difference to the figure by replicate: of logarithms, or of percentages.
    pub(crate) deviations: Vec<f32>,
    /// Their variance.
    pub(crate) variance: f64,
    /// Degrees of freedom of that.
    pub(crate) freedom: f64,
    /// Length of the blocks, as a share of the run.
    pub(crate) block: f64,
}

/// How replicates of a figure are compared with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scale {
    /// As a ratio, by its logarithm.
    Logarithm,
    /// As a difference, times 100.
    Points,
}

impl Scale {
    fn deviation(self, replicate: f64, figure: f64) -> f64 {
        match self {
            Self::Logarithm => (replicate / figure).ln(),
            Self::Points => 100.0 * (replicate - figure),
        }
    }
}

/// What is resampled for a figure.
#[derive(Debug)]
struct Blocks {
    /// Slices in one.
    length: usize,
    /// Variance of the sum of contributions.
    variance: f64,
    /// What the deviations of replicates are multiplied by to have it.
    widening: f64,
    /// Degrees of freedom of the variance, if all blocks have something to say.
    freedom: f64,
}

/// The replicates of one run.
#[derive(Debug)]
pub(crate) struct Resampler {
    slices: usize,
    seed: u64,
    /// Weights of slices by replicate, one after the other, for each length of blocks that was asked for: 1, 2, 4, ….
    weights: Vec<Option<Vec<f32>>>,
}

impl Resampler {
    /// For a run of so many slices, a power of two.
    pub(crate) fn new(slices: usize, seed: u64) -> Self {
        debug_assert!(slices.is_power_of_two());
        Self { slices, seed, weights: vec![None; usize::BITS as usize] }
    }

    pub(crate) fn slices(&self) -> usize {
        self.slices
    }

    /// The lengths that blocks may have.
    fn lengths(&self) -> impl Iterator<Item = usize> {
        let [longest, shortest] = BLOCKS.map(|blocks| (self.slices / blocks).max(1));
        (0..usize::BITS).map(|power| 1 << power).filter(move |length| (shortest..=longest).contains(length))
    }

    fn weights(&mut self, length: usize) -> &[f32] {
        let class = length.trailing_zeros();
        let (slices, seed) = (self.slices, self.seed);
        self.weights[class as usize].get_or_insert_with(|| {
            let mut random = Pcg64Mcg::seed_from_u64(seed.wrapping_mul(64).wrapping_add(u64::from(class)));
            let mut weights = vec![0.0; slices * REPLICATES];
            for replicate in weights.chunks_exact_mut(slices) {
                for _ in 0..slices / length {
                    // A power of two: its low bits are as likely as each other.
                    let begin = random.next_u32() as usize & (slices - 1);
                    for at in begin..begin + length {
                        replicate[at & (slices - 1)] += 1.0;
                    }
                }
            }
            weights
        })
    }

    /// Blocks for a figure to which the slices contribute so much (more or less than their share, 0 in sum).
    fn blocks(&self, contributions: &[f64]) -> Blocks {
        let slices = self.slices;
        let shortest = (slices / BLOCKS[1]).max(1);
        let mut best = Blocks { length: shortest, variance: 0.0, widening: 1.0, freedom: MANY };
        let mut of_half = None;
        for length in self.lengths() {
            let mut window: f64 = contributions[..length].iter().sum();
            let mut squares = 0.0;
            for at in 0..slices {
                squares += window * window;
                window += contributions[(at + length) % slices] - contributions[at];
            }
            let plain = squares / length as f64;
            let corrected = plain * correction(length, slices);
            // What blocks cut apart is missing, in inverse proportion to their length: so much as doubling it brought.
            let extended = of_half.map_or(0.0, |half: f64| 2.0 * corrected - half);
            of_half = Some(corrected);
            let variance = corrected.max(extended);
            if variance > best.variance {
                // Overlapping blocks tell half as much again as separate ones (Meketon and Schmeiser). Extended, their variance
                // varies twice as much: the squares under the lag windows are 2/3 and 4/3 of the length.
                let told = if extended > corrected { 0.75 } else { 1.5 };
                let freedom = told * (slices as f64 / length as f64 - 1.0);
                best = Blocks { length, variance, widening: (variance / plain).sqrt(), freedom };
            }
        }
        best
    }

    fn within(&self, blocks: &Blocks, telling: usize, deviations: impl Iterator<Item = f64>) -> Within {
        #[expect(clippy::cast_possible_truncation, reason = "seven digits of a deviation are enough")]
        let deviations: Vec<f32> = deviations.map(|deviation| (deviation * blocks.widening) as f32).collect();
        let count = deviations.len() as f64;
        let mean = deviations.iter().map(|deviation| f64::from(*deviation)).sum::<f64>() / count;
        let variance =
            deviations.iter().map(|deviation| (f64::from(*deviation) - mean).powi(2)).sum::<f64>() / count;
        Within {
            deviations,
            variance,
            freedom: blocks.freedom.min(telling as f64 - 1.0).max(1.0),
            block: blocks.length as f64 / self.slices as f64,
        }
    }

    /// A sum over another, both by slice, of `samples` samples.
    pub(crate) fn ratio(&mut self, sums: &[[f64; 2]], samples: u64, scale: Scale) -> Result<Within, NotJudged> {
        let [above, below] = sums.iter().fold([0.0; 2], |sum, slice| [sum[0] + slice[0], sum[1] + slice[1]]);
        if samples < LEAST_SAMPLES || below <= 0.0 {
            return Err(NotJudged::TooFewSamples);
        }
        let figure = above / below;
        let contributions: Vec<f64> = sums.iter().map(|[above, below]| above - figure * below).collect();
        let chosen = self.blocks(&contributions);
        let length = chosen.length;
        // A share is told by what belongs to it and by what does not, whichever is rarer.
        let telling = |is_there: &dyn Fn(&[f64; 2]) -> bool| {
            sums.chunks(length).filter(|block| block.iter().any(is_there)).count()
        };
        let inside = telling(&|[above, _]| *above > 0.0);
        let outside = telling(&|[above, below]| *below > *above);
        let blocks = match scale {
            Scale::Logarithm => inside,
            // All or nothing: every block says the same.
            Scale::Points if inside == 0 || outside == 0 => inside.max(outside),
            Scale::Points => inside.min(outside),
        };
        if blocks < LEAST_TELLING_BLOCKS {
            return Err(NotJudged::TooFewSamples);
        }
        if scale == Scale::Logarithm && figure <= 0.0 {
            return Err(NotJudged::Zero);
        }
        let slices = self.slices;
        let deviations: Vec<f64> = self
            .weights(length)
            .chunks_exact(slices)
            .map(|weights| {
                let [mut above, mut below] = [0.0; 2];
                for (weight, sum) in weights.iter().zip(sums) {
                    above += f64::from(*weight) * sum[0];
                    below += f64::from(*weight) * sum[1];
                }
                // A replicate without anything in it says nothing.
                if below > 0.0 && (above > 0.0 || scale == Scale::Points) {
                    scale.deviation(above / below, figure)
                } else {
                    0.0
                }
            })
            .collect();
        Ok(self.within(&chosen, blocks, deviations.into_iter()))
    }

    /// A percentile of samples, given in ascending order with the slice that each lies in.
    pub(crate) fn percentile(&mut self, sorted: &[(u64, u16)], fraction: f64) -> Result<Within, NotJudged> {
        let count = sorted.len();
        if (count as u64) < LEAST_SAMPLES || (count as f64) * (1.0 - fraction) < LEAST_TAIL_SAMPLES {
            return Err(NotJudged::TooFewSamples);
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place in the samples")]
        let place = |rank: f64| (rank.clamp(0.0, (count - 1) as f64)) as usize;
        let rank = fraction * count as f64;
        let slices = self.slices;
        let by_slice = |samples: &[(u64, u16)]| {
            let mut counts = vec![0.0_f32; slices];
            for (_, slice) in samples {
                counts[usize::from(*slice)] += 1.0;
            }
            counts
        };
        let all = by_slice(sorted);
        let below = by_slice(&sorted[..place(rank)]);
        let contributions: Vec<f64> = below
            .iter()
            .zip(&all)
            .map(|(below, all)| f64::from(*below) - place(rank) as f64 / count as f64 * f64::from(*all))
            .collect();
        let chosen = self.blocks(&contributions);
        let length = chosen.length;
        let telling = |is_there: &dyn Fn(usize) -> bool| {
            (0..slices / length).filter(|block| (block * length..(block + 1) * length).any(is_there)).count()
        };
        let telling = telling(&|slice| all[slice] > below[slice]).min(telling(&|slice| below[slice] > 0.0));
        if telling < LEAST_TELLING_BLOCKS {
            return Err(NotJudged::TooFewSamples);
        }
        let reach = (GRID_REACH * chosen.variance.sqrt()).max(2.0);
        let (first, last) = (place((rank - reach).floor()), place((rank + reach).ceil()));
        // Samples before each value of the grid, by slice: a row for each value.
        let mut grid: Vec<(f64, Vec<f32>)> = Vec::with_capacity(GRID);
        let mut counts = vec![0.0_f32; slices];
        let mut counted = 0;
        for point in 0..GRID {
            let at = first + (last - first) * point / (GRID - 1);
            for (_, slice) in &sorted[counted..at] {
                counts[usize::from(*slice)] += 1.0;
            }
            counted = at;
            grid.push((sorted[at].0 as f64, counts.clone()));
        }
        let figure = lookup(&grid, &all, &vec![1.0; slices], fraction);
        if figure <= 0.0 {
            return Err(NotJudged::Zero);
        }
        let deviations: Vec<f64> = self
            .weights(length)
            .chunks_exact(slices)
            .map(|weights| Scale::Logarithm.deviation(lookup(&grid, &all, weights, fraction), figure))
            .map(|deviation| if deviation.is_finite() { deviation } else { 0.0 })
            .collect();
        Ok(self.within(&chosen, telling, deviations.into_iter()))
    }
}

/// What circular blocks of this length miss of a variance, since they are taken about the mean of the same samples.
fn correction(length: usize, slices: usize) -> f64 {
    let share = length as f64 / slices as f64;
    if share < 1.0 { 1.0 / (1.0 - share) } else { 1.0 }
}

/// A sum of counts by weight. Small whole numbers: exact up to 2^24, and far more exact than anything here above.
fn weighted(weights: &[f32], counts: &[f32]) -> f64 {
    // Sums that do not wait for one another.
    const LANES: usize = 16;
    let (weights, counts) = (weights.chunks_exact(LANES), counts.chunks_exact(LANES));
    let rest: f32 = weights.remainder().iter().zip(counts.remainder()).map(|(weight, count)| weight * count).sum();
    let mut sums = [0.0_f32; LANES];
    for (weights, counts) in weights.zip(counts) {
        for lane in 0..LANES {
            sums[lane] += weights[lane] * counts[lane];
        }
    }
    f64::from(sums.iter().sum::<f32>() + rest)
}

/// The value under which `fraction` of the weighted samples lie, as far as the grid reaches.
fn lookup(grid: &[(f64, Vec<f32>)], all: &[f32], weights: &[f32], fraction: f64) -> f64 {
    let target = fraction * weighted(weights, all);
    let before = |point: usize| weighted(weights, &grid[point].1);
    let (mut low, mut high) = (0, grid.len() - 1);
    let (mut before_low, mut before_high) = (before(low), before(high));
    if target <= before_low {
        return grid[low].0;
    }
    if target >= before_high {
        return grid[high].0;
    }
    while high - low > 1 {
        let middle = usize::midpoint(low, high);
        let before_middle = before(middle);
        if before_middle <= target {
            (low, before_low) = (middle, before_middle);
        } else {
            (high, before_high) = (middle, before_middle);
        }
    }
    let share = (target - before_low) / (before_high - before_low);
    grid[low].0 + share * (grid[high].0 - grid[low].0)
}

/// The exact percentile of samples in ascending order, in milliseconds, as `numpy.percentile` has it; 0 without samples.
pub(crate) fn exact_percentile(sorted: &[(u64, u16)], fraction: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    interpolated(last, fraction, |index| milliseconds(sorted[index].0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_distr::{Distribution, StandardNormal};

    /// Values of which each holds on to so much of the one before.
    fn series(count: usize, memory: f64, seed: u64) -> Vec<f64> {
        let mut random = Pcg64Mcg::seed_from_u64(seed);
        let mut value = 0.0;
        (0..count)
            .map(|_| {
                let noise: f64 = StandardNormal.sample(&mut random);
                value = memory * value + (1.0 - memory * memory).sqrt() * noise;
                value
            })
            .collect()
    }

    fn samples(values: &[f64]) -> Vec<(u64, u16)> {
        let mut sorted: Vec<(u64, u16)> = values
            .iter()
            .enumerate()
            .map(|(at, value)| {
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "made-up values")]
                let nanoseconds = (10e6 * (1.0 + 0.02 * value)) as u64;
                (nanoseconds, u16::try_from(at * SLICES / values.len()).unwrap())
            })
            .collect();
        sorted.sort_unstable();
        sorted
    }

    /// The standard error that the bootstrap gives a median, and that which medians of many series have.
    fn errors(memory: f64) -> (f64, f64) {
        let count = 4096;
        let runs: Vec<(f64, f64)> = (0..200)
            .map(|seed| {
                let sorted = samples(&series(count, memory, seed));
                let within = Resampler::new(SLICES, seed).percentile(&sorted, 0.5).unwrap();
                (exact_percentile(&sorted, 0.5).ln(), within.variance)
            })
            .collect();
        let mean = runs.iter().map(|(figure, _)| figure).sum::<f64>() / runs.len() as f64;
        let truth = runs.iter().map(|(figure, _)| (figure - mean).powi(2)).sum::<f64>() / runs.len() as f64;
        let said = runs.iter().map(|(_, variance)| variance).sum::<f64>() / runs.len() as f64;
        (said.sqrt(), truth.sqrt())
    }

    #[test]
    fn the_error_of_a_median_is_what_medians_of_many_runs_have() {
        for memory in [0.0, 0.7, 0.95] {
            let (said, truth) = errors(memory);
            // Two hundred runs know the truth to 5 %. The greatest of several variances is a little too great.
            assert!(said > 0.92 * truth && said < 1.35 * truth, "{memory}: {said} {truth}");
        }
    }

    #[test]
    fn blocks_grow_with_what_hangs_together() {
        let resampler = Resampler::new(SLICES, 1);
        let length = |memory| {
            let lengths = (0..50).map(|seed| {
                let values = series(SLICES, memory, seed);
                let mean = values.iter().sum::<f64>() / values.len() as f64;
                let centred: Vec<f64> = values.iter().map(|value| value - mean).collect();
                resampler.blocks(&centred).length
            });
            lengths.sum::<usize>() as f64 / 50.0
        };
        assert!(length(0.95) > 1.3 * length(0.0) && length(0.0) < 22.0, "{} {}", length(0.0), length(0.95));
    }

    #[test]
    fn a_replicate_is_as_long_as_the_run_and_the_same_for_a_seed() {
        let weights = Resampler::new(64, 7).weights(4).to_vec();
        assert!(weights.chunks(64).all(|replicate| (replicate.iter().sum::<f32>() - 64.0).abs() < 0.5));
        assert_eq!(weights, Resampler::new(64, 7).weights(4));
        assert_ne!(weights, Resampler::new(64, 8).weights(4));
    }

    #[test]
    fn what_few_samples_say_is_not_judged() {
        let sorted = samples(&series(999, 0.0, 1));
        let mut resampler = Resampler::new(SLICES, 1);
        assert_eq!(resampler.percentile(&sorted, 0.99).err(), Some(NotJudged::TooFewSamples));
        assert!(resampler.percentile(&sorted, 0.95).is_ok());
        assert_eq!(resampler.percentile(&sorted[..29], 0.5).err(), Some(NotJudged::TooFewSamples));
        // A thousand samples beyond it in one moment are one event.
        let burst: Vec<(u64, u16)> = (0..1000).map(|at| (1, at / 2)).chain((0..50).map(|_| (9, 77))).collect();
        assert_eq!(resampler.percentile(&burst, 0.99).err(), Some(NotJudged::TooFewSamples));
    }

    #[test]
    fn shares_of_all_or_nothing_do_not_vary() {
        let mut resampler = Resampler::new(SLICES, 1);
        let all = vec![[1.0, 1.0]; SLICES];
        let within = resampler.ratio(&all, SLICES as u64, Scale::Points).unwrap();
        assert!(within.variance < 1e-20, "{within:?}");
        let mut rare = vec![[0.0, 1.0]; SLICES];
        rare[3][0] = 1.0;
        let few = resampler.ratio(&rare, SLICES as u64, Scale::Points);
        assert_eq!(few.err(), Some(NotJudged::TooFewSamples));
    }
}
