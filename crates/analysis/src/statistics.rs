//! Exact statistics over all samples.

/// Durations in nanoseconds, kept in full: four bytes each for those under 4.29 s.
#[derive(Debug, Clone, Default)]
pub struct Samples {
    short: Vec<u32>,
    long: Vec<u64>,
    sum: u128,
}

/// What is said of samples. Times in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Statistics {
    /// Number of samples; never 0.
    pub count: u64,
    /// Mean.
    pub mean_ms: f64,
    /// Population standard deviation (`numpy.std`).
    pub std_ms: f64,
    /// Least.
    pub min_ms: f64,
    /// Greatest.
    pub max_ms: f64,
    /// Median.
    pub p50_ms: f64,
    /// 95th percentile.
    pub p95_ms: f64,
    /// 99th percentile.
    pub p99_ms: f64,
    /// Sum.
    pub total_ms: f64,
}

/// What is said of samples, in a unit of the asker's choice.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Distribution {
    /// Number of samples; never 0.
    pub count: u64,
    /// Mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 95th percentile.
    pub p95: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Greatest.
    pub max: f64,
}

/// Nanoseconds as milliseconds.
pub fn milliseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e6
}

/// The value at `fraction` (0-1) of the way from the sample at place 0 of the ascending order to that at place `last`, with
/// linear interpolation as `numpy.percentile` does it.
pub(crate) fn interpolated(last: usize, fraction: f64, mut nth: impl FnMut(usize) -> f64) -> f64 {
    let virtual_index = last as f64 * fraction;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and the last index")]
    let below = (virtual_index.floor() as usize).min(last);
    let low = nth(below);
    let high = nth((below + 1).min(last));
    let weight = virtual_index - below as f64;
    let difference = high - low;
    // numpy's _lerp: from the nearer end, so that the result never passes it.
    if weight >= 0.5 { high - difference * (1.0 - weight) } else { low + difference * weight }
}

impl Samples {
    /// Adds a sample.
    #[inline]
    pub fn push(&mut self, nanoseconds: u64) {
        self.sum += u128::from(nanoseconds);
        match u32::try_from(nanoseconds) {
            Ok(short) => self.short.push(short),
            Err(_) => self.long.push(nanoseconds),
        }
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.short.len() + self.long.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sum, in nanoseconds.
    pub fn sum(&self) -> u128 {
        self.sum
    }

    /// Mean, in nanoseconds; NaN without samples.
    pub fn mean_ns(&self) -> f64 {
        self.sum as f64 / self.len() as f64
    }

    /// The sample at this place of the ascending order.
    fn nth(&mut self, index: usize) -> u64 {
        match index.checked_sub(self.short.len()) {
            None => u64::from(*self.short.select_nth_unstable(index).1),
            Some(index) => *self.long.select_nth_unstable(index).1,
        }
    }

    /// The value under which `fraction` (0-1) of the samples lie, with linear interpolation as `numpy.percentile`
    /// does it; in nanoseconds times `scale`. `None` without samples.
    ///
    /// `scale` is applied before interpolating, so that the result is to the last bit what numpy makes of the
    /// scaled samples.
    pub fn percentile(&mut self, fraction: f64, scale: impl Fn(u64) -> f64) -> Option<f64> {
        let last = self.len().checked_sub(1)?;
        Some(interpolated(last, fraction, |index| scale(self.nth(index))))
    }

    /// Mean and percentiles in the unit that `scale` turns nanoseconds into; `None` without samples.
    pub fn distribution(&mut self, scale: impl Fn(u64) -> f64) -> Option<Distribution> {
        let scale = &scale;
        Some(Distribution {
            count: self.len() as u64,
            // Of the exact sum, in the proportion of the unit.
            mean: self.mean_ns() * scale(1_000_000_000) / 1e9,
            p50: self.percentile(0.5, scale)?,
            p90: self.percentile(0.9, scale)?,
            p95: self.percentile(0.95, scale)?,
            p99: self.percentile(0.99, scale)?,
            max: self.percentile(1.0, scale)?,
        })
    }

    /// Takes over all samples of another.
    pub fn extend(&mut self, other: &Self) {
        self.short.extend_from_slice(&other.short);
        self.long.extend_from_slice(&other.long);
        self.sum += other.sum;
    }

    /// Everything at once; `None` without samples.
    pub fn statistics(&mut self) -> Option<Statistics> {
        let count = self.len() as f64;
        // Before any selection moves samples about: a sum of floats depends on the order.
        let mean_ns = self.mean_ns();
        let squares: f64 = self.short.iter().map(|ns| (f64::from(*ns) - mean_ns).powi(2)).sum::<f64>()
            + self.long.iter().map(|ns| (*ns as f64 - mean_ns).powi(2)).sum::<f64>();
        Some(Statistics {
            count: self.len() as u64,
            mean_ms: mean_ns / 1e6,
            std_ms: (squares / count).sqrt() / 1e6,
            min_ms: self.percentile(0.0, milliseconds)?,
            max_ms: self.percentile(1.0, milliseconds)?,
            p50_ms: self.percentile(0.5, milliseconds)?,
            p95_ms: self.percentile(0.95, milliseconds)?,
            p99_ms: self.percentile(0.99, milliseconds)?,
            total_ms: self.sum as f64 / 1e6,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn samples(values: &[u64]) -> Samples {
        let mut samples = Samples::default();
        for value in values {
            samples.push(*value);
        }
        samples
    }

    #[test]
    fn as_numpy_says() {
        // Printed by numpy 2.4.6: a = [1.5, 2.25, 3.0, 10.125, 4.75]; mean, std, and percentile(a, [50, 95, 99])
        let statistics = samples(&[1_500_000, 2_250_000, 3_000_000, 10_125_000, 4_750_000]).statistics().unwrap();
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} {b}");
        assert_eq!(statistics.count, 5);
        close(statistics.mean_ms, 4.325);
        close(statistics.std_ms, 3.093_945_700_880_996_5);
        close(statistics.p50_ms, 3.0);
        close(statistics.p95_ms, 9.049_999_999_999_999);
        close(statistics.p99_ms, 9.91);
        close(statistics.total_ms, 21.625);
    }

    #[test]
    fn one_sample_is_every_percentile() {
        let statistics = samples(&[7_000_000]).statistics().unwrap();
        assert_eq!(
            (statistics.p50_ms, statistics.p99_ms, statistics.min_ms, statistics.max_ms, statistics.std_ms),
            (7.0, 7.0, 7.0, 7.0, 0.0)
        );
        assert_eq!(samples(&[]).statistics(), None);
    }

    proptest! {
        #[test]
        fn percentiles_are_those_of_the_sorted_samples(
            mut values in prop::collection::vec(prop_oneof![0u64..1000, any::<u64>()], 1..200), fraction in 0.0..=1.0f64,
        ) {
            let mut samples = samples(&values);
            let found = samples.percentile(fraction, |ns| ns as f64).unwrap();
            values.sort_unstable();
            let position = (values.len() - 1) as f64 * fraction;
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
            let (below, above) = (values[position.floor() as usize] as f64, values[position.ceil() as usize] as f64);
            prop_assert!(found >= below && found <= above, "{below} {found} {above}");
            prop_assert_eq!(samples.percentile(0.0, |ns| ns as f64), Some(values[0] as f64));
            prop_assert_eq!(samples.percentile(1.0, |ns| ns as f64), Some(values[values.len() - 1] as f64));
        }
    }
}
