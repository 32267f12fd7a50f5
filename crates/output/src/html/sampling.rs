//! A run of any length in a bounded number of points that leave out no extreme.
//!
//! Time is cut into buckets of equal width. When there are more of them than there is room for, the width doubles and
//! neighbours become one, so neither the length of the run nor the number of its steps has to be known before. Points may
//! come in any order.

/// Something that can be put together with what happened right after it.
pub(super) trait Merge {
    /// Takes `later` into itself.
    fn merge(&mut self, later: Self);
}

/// More are not made: then all of time fits into two buckets, one before 0 and one after it.
const MOST_DOUBLINGS: u32 = 62;

/// Values by time, in equal buckets.
#[derive(Debug, Clone)]
pub(super) struct Buckets<T> {
    /// Width of a bucket is `unit_ns << doublings`.
    unit_ns: i64,
    doublings: u32,
    most: usize,
    /// By number, ascending: a bucket in which nothing happened is not there.
    filled: Vec<(i64, T)>,
}

impl<T: Merge + Default> Buckets<T> {
    /// At most `most` buckets, and two at least, of `unit_ns` and more each.
    pub(super) fn new(unit_ns: i64, most: usize) -> Self {
        Self { unit_ns, doublings: 0, most: most.max(2), filled: Vec::new() }
    }

    /// Width of a bucket, nanoseconds.
    pub(super) fn width_ns(&self) -> i64 {
        self.unit_ns.saturating_mul(1 << self.doublings)
    }

    fn number(&self, at_ns: i64) -> i64 {
        at_ns.div_euclid(self.width_ns())
    }

    /// The bucket of a moment.
    #[inline]
    pub(super) fn at(&mut self, at_ns: i64) -> &mut T {
        let place = self.place(at_ns);
        &mut self.filled[place].1
    }

    fn place(&mut self, at_ns: i64) -> usize {
        loop {
            let number = self.number(at_ns);
            // Nearly everything comes in order.
            let place = match self.filled.last() {
                Some((last, _)) if *last == number => return self.filled.len() - 1,
                Some((last, _)) if *last < number => self.filled.len(),
                None => 0,
                Some(_) => match self.filled.binary_search_by_key(&number, |(number, _)| *number) {
                    Ok(place) => return place,
                    Err(place) => place,
                },
            };
            if self.filled.len() < self.most || self.doublings >= MOST_DOUBLINGS {
                self.filled.insert(place, (number, T::default()));
                return place;
            }
            self.double();
        }
    }

    fn double(&mut self) {
        self.doublings += 1;
        let mut merged: Vec<(i64, T)> = Vec::with_capacity(self.most);
        for (number, value) in self.filled.drain(..) {
            let number = number.div_euclid(2);
            match merged.last_mut().filter(|(last, _)| *last == number) {
                Some((_, before)) => before.merge(value),
                None => merged.push((number, value)),
            }
        }
        self.filled = merged;
    }

    /// Beginning and value of each bucket in which something happened, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (i64, &T)> {
        let width_ns = self.width_ns();
        self.filled.iter().map(move |(number, value)| (number.saturating_mul(width_ns), value))
    }

    /// The values, in order.
    pub(super) fn into_values(self) -> impl Iterator<Item = T> {
        self.filled.into_iter().map(|(_, value)| value)
    }
}

impl<const N: usize> Merge for [u64; N] {
    fn merge(&mut self, later: Self) {
        for (sum, count) in self.iter_mut().zip(later) {
            *sum = sum.saturating_add(count);
        }
    }
}

impl<const N: usize> Default for Counts<N> {
    fn default() -> Self {
        Self([0; N])
    }
}

/// Counts of several things in a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts<const N: usize>(pub(super) [u64; N]);

impl<const N: usize> Merge for Counts<N> {
    fn merge(&mut self, later: Self) {
        self.0.merge(later.0);
    }
}

/// One moment with the values of `K` series; NaN = it says nothing of that one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Point<const K: usize> {
    /// When: nanoseconds since the session's start.
    pub(super) at_ns: i64,
    /// One for each series.
    pub(super) values: [f64; K],
}

/// What is kept of one bucket and series: the points in which it begins, ends, and has its least and greatest value.
#[derive(Debug, Clone, Copy)]
struct Kept<const K: usize> {
    first: Point<K>,
    last: Point<K>,
    least: Point<K>,
    greatest: Point<K>,
}

/// What is kept of one bucket.
#[derive(Debug, Clone)]
struct Extremes<const K: usize> {
    kept: [Option<Kept<K>>; K],
    /// Sum and number of the values of each series.
    sums: [(f64, u64); K],
}

impl<const K: usize> Default for Extremes<K> {
    fn default() -> Self {
        Self { kept: [None; K], sums: [(0.0, 0); K] }
    }
}

impl<const K: usize> Merge for Extremes<K> {
    fn merge(&mut self, later: Self) {
        for (sum, later) in self.sums.iter_mut().zip(later.sums) {
            *sum = (sum.0 + later.0, sum.1 + later.1);
        }
        for (series, (kept, later)) in self.kept.iter_mut().zip(later.kept).enumerate() {
            let Some(later) = later else { continue };
            let Some(kept) = kept else {
                *kept = Some(later);
                continue;
            };
            kept.take(series, later.first);
            kept.take(series, later.least);
            kept.take(series, later.greatest);
            kept.take(series, later.last);
        }
    }
}

impl<const K: usize> Kept<K> {
    #[inline]
    fn take(&mut self, series: usize, point: Point<K>) {
        if point.at_ns < self.first.at_ns {
            self.first = point;
        }
        if point.at_ns >= self.last.at_ns {
            self.last = point;
        }
        if point.values[series] < self.least.values[series] {
            self.least = point;
        }
        if point.values[series] > self.greatest.values[series] {
            self.greatest = point;
        }
    }
}

/// `K` series over the same time in a bounded number of points: of each bucket and series the first, the last, the least and
/// the greatest (as M4 does: Jugel et al., "M4: A Visualization-Oriented Time Series Data Aggregation", VLDB 2014). Points are
/// kept whole, so what stands in one row happened together.
#[derive(Debug, Clone)]
pub(super) struct Sampled<const K: usize> {
    buckets: Buckets<Extremes<K>>,
    seen: u64,
}

impl<const K: usize> Sampled<K> {
    /// At most `most` buckets: 4 K times as many points.
    pub(super) fn new(most: usize) -> Self {
        Self { buckets: Buckets::new(1_000, most), seen: 0 }
    }

    /// Adds a point.
    #[inline]
    pub(super) fn push(&mut self, at_ns: i64, values: [f64; K]) {
        let point = Point { at_ns, values };
        self.seen += 1;
        let bucket = self.buckets.at(at_ns);
        for (series, value) in values.into_iter().enumerate() {
            if value.is_nan() {
                continue;
            }
            let (sum, count) = bucket.sums[series];
            bucket.sums[series] = (sum + value, count + 1);
            match &mut bucket.kept[series] {
                Some(kept) => kept.take(series, point),
                empty => *empty = Some(Kept { first: point, last: point, least: point, greatest: point }),
            }
        }
    }

    /// How many points there were.
    pub(super) fn seen(&self) -> u64 {
        self.seen
    }

    /// For the middle of each bucket the means of its values.
    pub(super) fn means(&self) -> Vec<Point<K>> {
        let half_ns = self.buckets.width_ns() / 2;
        let mean = |(sum, count): (f64, u64)| if count > 0 { sum / count as f64 } else { f64::NAN };
        self.buckets
            .iter()
            .map(|(begin_ns, of)| Point { at_ns: begin_ns.saturating_add(half_ns), values: of.sums.map(mean) })
            .collect()
    }

    /// The points that are left, in the order of time, and the width of a bucket in nanoseconds.
    pub(super) fn finish(self) -> (Vec<Point<K>>, i64) {
        let width_ns = self.buckets.width_ns();
        let mut points: Vec<Point<K>> = Vec::new();
        for bucket in self.buckets.into_values() {
            let from = points.len();
            let kept = bucket.kept.into_iter().flatten();
            points.extend(kept.flat_map(|kept| [kept.first, kept.least, kept.greatest, kept.last]));
            points[from..].sort_by(|a, b| {
                let values = a.values.iter().zip(&b.values);
                let order = values.map(|(a, b)| a.total_cmp(b)).find(|order| order.is_ne());
                a.at_ns.cmp(&b.at_ns).then(order.unwrap_or(std::cmp::Ordering::Equal))
            });
        }
        let bits = |point: &Point<K>| (point.at_ns, point.values.map(f64::to_bits));
        points.dedup_by_key(|point| bits(point));
        (points, width_ns)
    }
}

/// How many buckets of a histogram double the value: each is 9 % wide.
const PER_OCTAVE: f64 = 8.0;

/// Durations by their size, in buckets that grow with them.
#[derive(Debug, Clone)]
pub(super) struct Histogram {
    counts: Vec<u64>,
}

impl Histogram {
    pub(super) fn new() -> Self {
        Self { counts: vec![0; 64 * 8] }
    }

    #[inline]
    pub(super) fn push(&mut self, nanoseconds: u64) {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 511")]
        let at = ((nanoseconds.max(1) as f64).log2() * PER_OCTAVE).floor() as usize;
        let last = self.counts.len() - 1;
        self.counts[at.min(last)] += 1;
    }

    /// Edges in nanoseconds, one more than there are counts, and counts, from the first that is not 0 to the last.
    pub(super) fn finish(&self) -> (Vec<f64>, Vec<u64>) {
        let first = self.counts.iter().position(|count| *count > 0).unwrap_or(0);
        let end = self.counts.iter().rposition(|count| *count > 0).map_or(first, |last| last + 1);
        let edge = |at: usize| (at as f64 / PER_OCTAVE).exp2();
        ((first..=end).map(edge).collect(), self.counts[first..end].to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Points of two series in any order, some without a value.
    fn points() -> impl Strategy<Value = Vec<(i64, [f64; 2])>> {
        let value = || prop_oneof![4 => -1e6..1e6f64, 1 => Just(f64::NAN), 1 => Just(7.0)];
        let at = prop_oneof![-1_000_000i64..100_000_000_000, 0i64..5_000, Just(i64::MAX / 4)];
        prop::collection::vec((at, value(), value()).prop_map(|(at, a, b)| (at, [a, b])), 1..600)
    }

    proptest! {
        #[test]
        fn no_extreme_is_lost(input in points(), most in 1usize..40) {
            let mut sampled = Sampled::<2>::new(most);
            for (at_ns, values) in &input {
                sampled.push(*at_ns, *values);
            }
            prop_assert_eq!(sampled.seen(), input.len() as u64);
            let means = sampled.means();
            let (output, width_ns) = sampled.finish();
            prop_assert!(output.len() <= most.max(2) * 8, "{} points of {} buckets", output.len(), most);
            prop_assert!(output.windows(2).all(|pair| pair[0].at_ns <= pair[1].at_ns));
            for point in &output {
                let is_there = |(at, values): &(i64, [f64; 2])| {
                    *at == point.at_ns && values.map(f64::to_bits) == point.values.map(f64::to_bits)
                };
                prop_assert!(input.iter().any(is_there), "made up: {point:?}");
            }
            // Of every bucket, and so of everything, each series has its least, greatest, first and last value.
            let buckets: std::collections::BTreeSet<i64> =
                input.iter().map(|(at, _)| at.div_euclid(width_ns)).collect();
            for bucket in buckets {
                for series in 0..2 {
                    let inside = |at: i64| at.div_euclid(width_ns) == bucket;
                    let of_input: Vec<(i64, f64)> = input
                        .iter()
                        .filter(|(at, values)| inside(*at) && !values[series].is_nan())
                        .map(|(at, values)| (*at, values[series]))
                        .collect();
                    let of_output: Vec<(i64, f64)> = output
                        .iter()
                        .filter(|point| inside(point.at_ns) && !point.values[series].is_nan())
                        .map(|point| (point.at_ns, point.values[series]))
                        .collect();
                    let value = |list: &[(i64, f64)], pick: fn(f64, f64) -> f64| {
                        list.iter().map(|(_, value)| *value).reduce(pick)
                    };
                    let at = |list: &[(i64, f64)], pick: fn(i64, i64) -> i64| {
                        list.iter().map(|(at, _)| *at).reduce(pick)
                    };
                    let middle_ns = bucket.saturating_mul(width_ns).saturating_add(width_ns / 2);
                    let mean = means.iter().find(|point| point.at_ns == middle_ns).unwrap().values[series];
                    let expected = of_input.iter().map(|(_, value)| value).sum::<f64>() / of_input.len() as f64;
                    prop_assert!((mean - expected).abs() < 1e-6 || (mean.is_nan() && expected.is_nan()));
                    prop_assert_eq!(value(&of_input, f64::min), value(&of_output, f64::min));
                    prop_assert_eq!(value(&of_input, f64::max), value(&of_output, f64::max));
                    prop_assert_eq!(at(&of_input, i64::min), at(&of_output, i64::min));
                    prop_assert_eq!(at(&of_input, i64::max), at(&of_output, i64::max));
                }
            }
        }

        #[test]
        fn counts_are_neither_lost_nor_made(at in prop::collection::vec(0i64..10_000_000_000, 1..300), most in 1usize..20) {
            let mut buckets = Buckets::<Counts<1>>::new(1_000, most);
            for at_ns in &at {
                buckets.at(*at_ns).0[0] += 1;
            }
            prop_assert!(buckets.iter().count() <= most.max(2));
            prop_assert_eq!(buckets.iter().map(|(_, count)| count.0[0]).sum::<u64>(), at.len() as u64);
            for (begin_ns, count) in buckets.iter() {
                let end_ns = begin_ns + buckets.width_ns();
                let inside = at.iter().filter(|at| (begin_ns..end_ns).contains(*at)).count() as u64;
                prop_assert_eq!(count.0[0], inside);
            }
        }

        #[test]
        fn a_histogram_counts_each_sample_between_its_edges(
            samples in prop::collection::vec(prop_oneof![1u64..100, any::<u64>()], 1..200)
        ) {
            let mut histogram = Histogram::new();
            for sample in &samples {
                histogram.push(*sample);
            }
            let (edges, counts) = histogram.finish();
            prop_assert_eq!(edges.len(), counts.len() + 1);
            prop_assert_eq!(counts.iter().sum::<u64>(), samples.len() as u64);
            let (least, most) = (*samples.iter().min().unwrap() as f64, *samples.iter().max().unwrap() as f64);
            prop_assert!(edges[0] <= least * 1.000_001 && most <= edges[edges.len() - 1] * 1.000_001);
        }
    }

    #[test]
    fn one_spike_in_an_hour_of_steps_is_still_there() {
        let mut sampled = Sampled::<1>::new(1_000);
        for step in 0..360_000_i64 {
            let value = if step == 123_457 { 900.0 } else { 10.0 + (step % 7) as f64 };
            sampled.push(step * 10_000_000, [value]);
        }
        let (points, width_ns) = sampled.finish();
        assert!(points.len() <= 4_000 && points.len() > 1_000, "{}", points.len());
        assert!(width_ns < 8_000_000_000, "{width_ns}");
        assert!(points.contains(&Point { at_ns: 1_234_570_000_000, values: [900.0] }));
    }
}
