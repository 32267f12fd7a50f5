//! The sections of a session's page. Each file has what it gathers from rows, and what it makes of that and of the answers.

pub(super) mod breakdown;
pub(super) mod cuda_graphs;
pub(super) mod encoder_decoder;
pub(super) mod findings;
pub(super) mod gpu_memory;
pub(super) mod kv_cache;
pub(super) mod layers;
pub(super) mod moe_experts;
pub(super) mod overview;
pub(super) mod requests;
pub(super) mod session;
pub(super) mod steps;
pub(super) mod token_sampling;

use profilemate_analysis::statistics::{Distribution, Statistics};

use super::model::{Cell, Chart, Column, Histogram, Means, Number, Style, number, text};
use super::sampling::{self, Buckets, Counts, Sampled};
use crate::numbers::grouped;

/// Buckets of a chart over steps: about as many as a wide screen has room for.
const BUCKETS: usize = 1_000;

/// Intervals in which something is counted.
const INTERVALS: usize = 240;

/// The shortest of them, nanoseconds; others are twice, four times … as long.
const SHORTEST_INTERVAL_NS: i64 = 125_000_000;

fn seconds(ns: i64) -> Number {
    // To the microsecond at least, also in a run of days.
    Number((ns as f64 / 1e3).round() / 1e6)
}

fn maybe_seconds(ns: Option<i64>) -> Number {
    ns.map_or(Number(f64::NAN), seconds)
}

/// At most three digits behind the point, and none that say nothing.
fn digits(value: f64) -> String {
    format!("{value:.3}").trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A length of time in the unit that suits it.
fn length(ns: i64) -> String {
    let ns = ns as f64;
    match ns {
        short if short < 1e6 => format!("{:.0} us", short / 1e3),
        middle if middle < 1e9 => format!("{} ms", digits(middle / 1e6)),
        long => format!("{} s", digits(long / 1e9)),
    }
}

/// What a chart shows of how much there is.
fn kept(points: usize, seen: u64, width_ns: i64) -> Option<String> {
    (seen > points as u64).then(|| {
        format!(
            "Thick: means over {length}. Thin: {} of {} points, the first, the last, the least and the greatest of each {length}.",
            grouped(points as u64),
            grouped(seen),
            length = length(width_ns)
        )
    })
}

/// A chart of what was sampled; `None` without points. Series without a value are left out.
fn chart<const K: usize>(
    title: &str,
    unit: &'static str,
    style: Style,
    names: [&str; K],
    sampled: Sampled<K>,
) -> Option<Chart> {
    let seen = sampled.seen();
    let means = sampled.means();
    let (points, width_ns) = sampled.finish();
    if points.is_empty() {
        return None;
    }
    let series: Vec<usize> =
        (0..K).filter(|series| points.iter().any(|point| !point.values[*series].is_nan())).collect();
    let means = (seen > points.len() as u64).then(|| Means {
        x: means.iter().map(|point| seconds(point.at_ns)).collect(),
        y: series.iter().map(|series| means.iter().map(|point| Number(point.values[*series])).collect()).collect(),
    });
    Some(Chart {
        title: title.into(),
        means,
        note: kept(points.len(), seen, width_ns).map(Into::into),
        unit,
        style,
        names: series.iter().map(|series| names[*series].into()).collect(),
        x: points.iter().map(|point| seconds(point.at_ns)).collect(),
        y: series
            .iter()
            .map(|series| points.iter().map(|point| Number(point.values[*series])).collect())
            .collect(),
        length: None,
        most: None,
        digits: 3,
    })
}

/// A chart of what was counted in intervals; where nothing was, it is 0.
fn counted<const N: usize>(
    title: &str,
    unit: &'static str,
    names: [&str; N],
    counts: &Buckets<Counts<N>>,
) -> Option<Chart> {
    let width_ns = counts.width_ns();
    let mut rows: Vec<(i64, [u64; N])> = Vec::new();
    for (begin_ns, Counts(values)) in counts.iter() {
        // Steps need an end on either side of a gap.
        let (before_ns, after) = (begin_ns - width_ns, rows.last().map(|(last, _)| last + width_ns));
        if let Some(after_ns) = after.filter(|after_ns| *after_ns < begin_ns) {
            rows.push((after_ns, [0; N]));
            if after_ns < before_ns {
                rows.push((before_ns, [0; N]));
            }
        }
        if rows.is_empty() && before_ns >= 0 {
            rows.push((before_ns, [0; N]));
        }
        rows.push((begin_ns, *values));
    }
    if let Some((last_ns, _)) = rows.last() {
        rows.push((last_ns + width_ns, [0; N]));
    }
    let series: Vec<usize> = (0..N).filter(|series| rows.iter().any(|(_, values)| values[*series] > 0)).collect();
    (!series.is_empty()).then(|| Chart {
        title: title.into(),
        means: None,
        note: Some(format!("Counted in intervals of {}.", length(width_ns)).into()),
        unit,
        style: Style::Steps,
        names: series.iter().map(|series| names[*series].into()).collect(),
        x: rows.iter().map(|(at_ns, _)| seconds(*at_ns)).collect(),
        y: series
            .iter()
            .map(|series| rows.iter().map(|(_, values)| Number(values[*series] as f64)).collect())
            .collect(),
        length: Some(Number(width_ns as f64 / 1e9)),
        most: None,
        digits: 0,
    })
}

/// Most buckets of a histogram that are drawn.
const MOST_BARS: usize = 96;

/// A histogram of durations, `per` nanoseconds to the unit.
fn histogram(
    title: &str,
    unit: &'static str,
    per: f64,
    samples: &sampling::Histogram,
    marks: &[(&str, f64)],
) -> Option<Histogram> {
    let (mut edges, mut counts) = samples.finish();
    // One column says nothing that the percentiles do not say.
    if counts.len() < 2 {
        return None;
    }
    while counts.len() > MOST_BARS {
        let last = edges.last().copied();
        let is_odd = counts.len() % 2 == 1;
        counts = counts.chunks(2).map(|pair| pair.iter().sum()).collect();
        edges = edges.into_iter().step_by(2).collect();
        if is_odd {
            edges.extend(last);
        }
    }
    Some(Histogram {
        title: title.into(),
        unit,
        edges: edges.into_iter().map(|edge| Number(edge / per)).collect(),
        counts,
        marks: marks.iter().map(|(name, value)| ((*name).into(), Number(*value))).collect(),
    })
}

fn marks_of(of: &Distribution) -> [(&'static str, f64); 3] {
    [("p50", of.p50), ("p95", of.p95), ("p99", of.p99)]
}

fn marks_of_times(of: &Statistics) -> [(&'static str, f64); 3] {
    [("p50", of.p50_ms), ("p95", of.p95_ms), ("p99", of.p99_ms)]
}

/// Columns for [`spread`]; `unit` stands behind each name.
fn spread_columns(unit: &str, digits: u8) -> [Column; 6] {
    ["mean", "p50", "p90", "p95", "p99", "max"].map(|name| number(format!("{name} {unit}").trim_end(), digits))
}

fn spread(of: &Distribution) -> [Cell; 6] {
    [of.mean, of.p50, of.p90, of.p95, of.p99, of.max].map(Cell::from)
}

/// Columns for [`distribution`].
fn distribution_columns(of: &str, digits: u8) -> Vec<Column> {
    [text(of), number("count", 0)].into_iter().chain(spread_columns("", digits)).collect()
}

fn distribution(name: &str, of: &Distribution) -> Vec<Cell> {
    [name.into(), of.count.into()].into_iter().chain(spread(of)).collect()
}

/// Columns for [`times`].
fn times_columns(of: &str) -> Vec<Column> {
    let numbers = ["mean ms", "p50 ms", "p95 ms", "p99 ms", "min ms", "max ms", "std ms", "total ms"]
        .map(|name| number(name, 3));
    [text(of), number("count", 0)].into_iter().chain(numbers).collect()
}

fn times(name: &str, of: &Statistics) -> Vec<Cell> {
    vec![
        name.into(),
        of.count.into(),
        of.mean_ms.into(),
        of.p50_ms.into(),
        of.p95_ms.into(),
        of.p99_ms.into(),
        of.min_ms.into(),
        of.max_ms.into(),
        of.std_ms.into(),
        of.total_ms.into(),
    ]
}

fn share_of(ns: u64, whole_ns: u64) -> Option<f64> {
    (whole_ns > 0).then(|| 100.0 * ns as f64 / whole_ns as f64)
}

/// What is empty is not known.
fn named(what: &str) -> &str {
    if what.is_empty() { "unknown" } else { what }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_without_anything_are_zero_on_both_sides_of_a_gap() {
        let mut counts = Buckets::<Counts<1>>::new(SHORTEST_INTERVAL_NS, INTERVALS);
        for at_ns in [0, 1, 2_000_000_000, 2_125_000_000] {
            counts.at(at_ns).0[0] += 1;
        }
        let chart = counted("x", "", ["x"], &counts).unwrap();
        let rows: Vec<(f64, f64)> = chart.x.iter().zip(&chart.y[0]).map(|(x, y)| (x.0, y.0)).collect();
        assert_eq!(rows, [(0.0, 2.0), (0.125, 0.0), (1.875, 0.0), (2.0, 1.0), (2.125, 1.0), (2.25, 0.0)]);
        assert!(counted("x", "", ["x"], &Buckets::<Counts<1>>::new(1, 1)).is_none());
    }

    #[test]
    fn a_wide_histogram_is_drawn_with_fewer_bars_and_all_samples() {
        let mut samples = sampling::Histogram::new();
        for octave in 0..41 {
            samples.push(1 << octave);
        }
        let drawn = histogram("x", "ms", 1e6, &samples, &[]).unwrap();
        assert!(drawn.counts.len() <= MOST_BARS);
        assert_eq!(drawn.edges.len(), drawn.counts.len() + 1);
        assert_eq!(drawn.counts.iter().sum::<u64>(), 41);
    }
}
