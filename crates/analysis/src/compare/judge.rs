//! Which differences are more than chance, many metrics at once.
//!
//! A difference is one of means over runs: of logarithms, or of percentages. Its variance has two parts. Within runs it is that
//! of the bootstrap. From run to run it is what the figures of runs of one side vary by, pooled over both sides, where a side has
//! several, or what it is taken to be. The first is in that already; adding both errs towards "no difference". The degrees of freedom of the sum are
//! Satterthwaite's ("An approximate distribution of estimates of variance components", 1946).
//!
//! Whoever looks at a hundred figures finds five that differ by chance. So all intervals are made to hold together: in each
//! replicate, all metrics are looked at, in units of their standard error, and the one that is furthest off counts. Ninety-five
//! in a hundred of these maxima lie under the reach of the intervals ("max-T": Westfall and Young, "Resampling-based multiple
//! testing", 1993). Metrics that go together, as most here do, cost little that way. For a metric whose standard error is
//! known from few blocks or runs, the reach is that which is as rare under Student's distribution.

use rand::SeedableRng;
use rand_distr::{Distribution, StandardNormal};
use rand_pcg::Pcg64Mcg;
use statrs::distribution::{ContinuousCDF, Normal, StudentsT};

use super::bootstrap::{MANY, NotJudged, REPLICATES, Within};
use super::metric::Metric;
use super::run::{Figure, Run};
use super::{CONFIDENCE, Interval, Options};

/// Reach of an interval for one metric alone, where the standard error is exactly known: the 97.5th percentile of the
/// normal distribution.
const LEAST_REACH: f64 = 1.959_963_984_540_054;

/// The runs of a side that have a metric.
#[derive(Debug)]
pub(crate) struct Side<'a> {
    figures: Vec<(usize, &'a Figure)>,
    runs: usize,
}

impl<'a> Side<'a> {
    fn new(metric: Metric, runs: &'a [Run]) -> Self {
        let figures = runs.iter().enumerate().filter_map(|(at, run)| Some((at, run.figures.get(&metric)?)));
        Self { figures: figures.collect(), runs: runs.len() }
    }

    pub(crate) fn values(&self) -> Vec<f64> {
        self.figures.iter().map(|(_, figure)| figure.value).collect()
    }

    pub(crate) fn samples(&self) -> u64 {
        self.figures.iter().map(|(_, figure)| figure.samples).sum()
    }

    /// Mean over the runs, of logarithms where those are compared; `None` without runs or of the logarithm of 0.
    fn centre(&self, metric: Metric) -> Option<f64> {
        let scaled: Option<Vec<f64>> = self.figures.iter().map(|(_, figure)| scaled(metric, figure)).collect();
        let scaled = scaled.filter(|scaled| !scaled.is_empty())?;
        Some(scaled.iter().sum::<f64>() / scaled.len() as f64)
    }

    /// What is shown for it.
    pub(crate) fn value(&self, metric: Metric) -> Option<f64> {
        match self.values().as_slice() {
            [] => None,
            // As it is, to the last digit.
            [only] => Some(*only),
            values if metric.is_in_points() => Some(values.iter().sum::<f64>() / values.len() as f64),
            _ => Some(self.centre(metric).map_or(0.0, f64::exp)),
        }
    }
}

/// A figure as it is compared; `None` for the logarithm of 0.
fn scaled(metric: Metric, figure: &Figure) -> Option<f64> {
    if metric.is_in_points() {
        Some(figure.value)
    } else {
        Some(figure.value.ln()).filter(|value| value.is_finite())
    }
}

/// A difference as it is compared, in percent or percentage points.
fn shown(metric: Metric, difference: f64) -> f64 {
    if metric.is_in_points() { difference } else { 100.0 * difference.exp_m1() }
}

/// A metric of both sides.
#[derive(Debug)]
pub(crate) struct Pair<'a> {
    pub(crate) metric: Metric,
    pub(crate) base: Side<'a>,
    pub(crate) candidate: Side<'a>,
}

/// What the error of a difference is made of.
struct Error<'a> {
    difference: f64,
    variance: f64,
    freedom: f64,
    base: Vec<&'a Within>,
    candidate: Vec<&'a Within>,
    /// By run, counted through both sides: how far it is from its side, so that the sum of these with random numbers of
    /// variance 1 varies as the difference does from run to run.
    between: Vec<(usize, f64)>,
}

impl<'a> Pair<'a> {
    pub(crate) fn new(metric: Metric, base: &'a [Run], candidate: &'a [Run]) -> Self {
        Self { metric, base: Side::new(metric, base), candidate: Side::new(metric, candidate) }
    }

    /// Whether some run of both sides has it.
    pub(crate) fn is_everywhere(&self) -> bool {
        !self.base.figures.is_empty() && !self.candidate.figures.is_empty()
    }

    fn difference(&self) -> Option<f64> {
        Some(self.candidate.centre(self.metric)? - self.base.centre(self.metric)?)
    }

    /// In percent or percentage points; `None` where it cannot be said.
    pub(crate) fn change(&self) -> Option<f64> {
        self.difference().map(|difference| shown(self.metric, difference))
    }

    /// The longest block that was resampled, as a share of its run.
    pub(crate) fn block(&self) -> Option<f64> {
        let all = self.base.figures.iter().chain(&self.candidate.figures);
        all.filter_map(|(_, figure)| figure.within.as_ref().ok()).map(|within| within.block).reduce(f64::max)
    }

    fn error(&self, assumed: f64) -> Result<Error<'a>, NotJudged> {
        if !self.is_everywhere() {
            return Err(NotJudged::TooFewSamples);
        }
        let difference = self.difference().ok_or(NotJudged::Zero)?;
        let within = |side: &Side<'a>| -> Result<Vec<&'a Within>, NotJudged> {
            side.figures.iter().map(|(_, figure)| figure.within.as_ref().map_err(|why| *why)).collect()
        };
        let sides = within(&self.base).and_then(|base| Ok([base, within(&self.candidate)?]));
        let several = self.base.figures.len() + self.candidate.figures.len() - 2;
        let [base, candidate] = match sides {
            Ok(sides) => sides,
            // Extremes of several runs tell by themselves how they vary.
            Err(NotJudged::Extreme) if self.base.figures.len() > 1 && self.candidate.figures.len() > 1 => {
                [Vec::new(), Vec::new()]
            }
            Err(why) => return Err(why),
        };
        let mut variance = 0.0;
        // Of the sum of variances: the sum of their squares over their degrees of freedom.
        let mut uncertainty = 0.0;
        for side in [&base, &candidate] {
            for within in side {
                let part = within.variance / (side.len() as f64).powi(2);
                variance += part;
                uncertainty += part * part / within.freedom;
            }
        }
        let mut between = Vec::new();
        if several > 0 {
            let reach = (1.0 / self.base.figures.len() as f64 + 1.0 / self.candidate.figures.len() as f64).sqrt();
            for (side, first) in [(&self.base, 0), (&self.candidate, self.base.runs)] {
                let centre = side.centre(self.metric).ok_or(NotJudged::Zero)?;
                for (at, figure) in &side.figures {
                    let deviation = scaled(self.metric, figure).ok_or(NotJudged::Zero)? - centre;
                    between.push((first + at, reach * deviation / (several as f64).sqrt()));
                }
            }
            let part: f64 = between.iter().map(|(_, deviation)| deviation * deviation).sum();
            variance += part;
            uncertainty += part * part / several as f64;
        } else {
            // Of logarithms, a share; of percentages, that share of them.
            let level = if self.metric.is_in_points() {
                0.5 * (self.base.value(self.metric).unwrap_or(0.0)
                    + self.candidate.value(self.metric).unwrap_or(0.0))
            } else {
                1.0
            };
            let runs = [self.base.figures[0].0, self.base.runs + self.candidate.figures[0].0];
            between = runs.map(|run| (run, assumed * level)).into();
            variance += 2.0 * (assumed * level).powi(2);
        }
        let freedom = if uncertainty > 0.0 { (variance * variance / uncertainty).clamp(1.0, MANY) } else { MANY };
        Ok(Error { difference, variance, freedom, base, candidate, between })
    }
}

impl Error<'_> {
    /// How far the difference is off in a replicate, by what the runs deviated in it.
    fn deviation(&self, replicate: usize, runs: &[f64]) -> f64 {
        let mean = |side: &[&Within]| {
            let sum: f64 = side.iter().map(|within| f64::from(within.deviations[replicate])).sum();
            if side.is_empty() { 0.0 } else { sum / side.len() as f64 }
        };
        let between: f64 = self.between.iter().map(|(run, deviation)| runs[*run] * deviation).sum();
        mean(&self.candidate) - mean(&self.base) + between
    }
}

/// What was judged together.
#[derive(Debug)]
pub(crate) struct Judged {
    /// In the order of the pairs.
    pub(crate) intervals: Vec<Result<Interval, NotJudged>>,
    /// How many of them are intervals.
    pub(crate) count: usize,
    /// Standard errors that an interval reaches to each side.
    pub(crate) reach: f64,
}

/// Intervals that hold together with [`CONFIDENCE`].
pub(crate) fn together(pairs: &[Pair<'_>], options: &Options) -> Judged {
    let errors: Vec<Result<Error<'_>, NotJudged>> =
        pairs.iter().map(|pair| pair.error(options.run_variation)).collect();
    let known: Vec<&Error<'_>> =
        errors.iter().filter_map(|error| error.as_ref().ok()).filter(|error| error.variance > 0.0).collect();
    let runs = pairs.first().map_or(0, |pair| pair.base.runs + pair.candidate.runs);
    let reach = reach(&known, runs, options.seed);
    // How rare it is that a standard normal number lies above it.
    let rare = Normal::standard().sf(reach);
    let intervals: Vec<Result<Interval, NotJudged>> = errors
        .iter()
        .zip(pairs)
        .map(|(error, pair)| {
            let error = error.as_ref().map_err(|why| *why)?;
            let reach = if error.freedom >= MANY {
                reach
            } else {
                StudentsT::new(0.0, 1.0, error.freedom).map_or(f64::INFINITY, |student| -student.inverse_cdf(rare))
            };
            let half = if error.variance > 0.0 { reach * error.variance.sqrt() } else { 0.0 };
            Ok(Interval {
                low: shown(pair.metric, error.difference - half),
                high: shown(pair.metric, error.difference + half),
            })
        })
        .collect();
    Judged { count: intervals.iter().filter(|interval| interval.is_ok()).count(), intervals, reach }
}

/// The standard errors within which the metric that is furthest off lies, in [`CONFIDENCE`] of the replicates.
fn reach(errors: &[&Error<'_>], runs: usize, seed: u64) -> f64 {
    // What a run is off as a whole in a replicate is the same for all metrics.
    let mut random = Pcg64Mcg::seed_from_u64(seed);
    let mut furthest: Vec<f64> = (0..REPLICATES)
        .map(|replicate| {
            let by_run: Vec<f64> = (0..runs).map(|_| StandardNormal.sample(&mut random)).collect();
            let off = |error: &&Error<'_>| error.deviation(replicate, &by_run).abs() / error.variance.sqrt();
            errors.iter().map(off).fold(0.0, f64::max)
        })
        .collect();
    furthest.sort_by(f64::total_cmp);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place among the replicates")]
    let place = (CONFIDENCE * REPLICATES as f64).ceil() as usize;
    furthest[place.min(REPLICATES - 1)].max(LEAST_REACH)
}
