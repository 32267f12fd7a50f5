//! What differs between runs, and what of that is more than chance. `docs/compare.md` says it for users.
//!
//! ```text
//! metric       the figures and their names        run          a session reduced to figures with replicates
//! bootstrap    how far a figure may be off        environment  where runs ran, and what they had to do
//! judge        which differences are detectable   condition    `decode.p99 > 5%`
//! ```

mod bootstrap;
pub mod condition;
mod environment;
mod judge;
mod metric;
mod run;

use std::collections::BTreeSet;

pub use bootstrap::{LEAST_SAMPLES, LEAST_TAIL_SAMPLES, NotJudged};
pub use environment::{Environment, LOAD_DIFFERS_PCT, LoadDifference, Mismatch};
pub use metric::{Better, Metric, Rate, Share, Statistic, Times};
pub use run::{Collector, Run, Workload};

use condition::{Condition, Outcome};
use judge::{Judged, Pair};

/// How sure intervals are, all together: 95 %.
pub const CONFIDENCE: f64 = 0.95;

/// Bounds of a difference.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// Lower bound.
    pub low: f64,
    /// Upper bound.
    pub high: f64,
}

/// A metric of both sides. Differences are percent of the base's value, or percentage points
/// ([`Metric::is_in_points`]).
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// What.
    pub metric: Metric,
    /// Of the base: over several runs their geometric mean, of shares the arithmetic one. `None` = no run has it.
    pub base: Option<f64>,
    /// Of the candidate.
    pub candidate: Option<f64>,
    /// Of each run of the base that has it.
    pub base_runs: Vec<f64>,
    /// Of each run of the candidate that has it.
    pub candidate_runs: Vec<f64>,
    /// Samples on both sides.
    pub samples: [u64; 2],
    /// From the base to the candidate; `None` where it cannot be said.
    pub change: Option<f64>,
    /// Where the change lies, all intervals of the comparison together with [`CONFIDENCE`]; or why that cannot be said.
    pub interval: Result<Interval, NotJudged>,
    /// Whether it is more than chance.
    pub is_detected: bool,
    /// Longest block that was resampled, as a share of its run.
    pub block: Option<f64>,
}

impl Difference {
    /// Whether the candidate is better, where something was detected and one way is better.
    pub fn is_better(&self) -> Option<bool> {
        let change = self.change.filter(|_| self.is_detected)?;
        match self.metric.better() {
            Better::Lower => Some(change < 0.0),
            Better::Higher => Some(change > 0.0),
            Better::Neither => None,
        }
    }
}

/// How far the times of two sides lie apart, whatever their unit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Effect {
    /// Which times.
    pub times: Times,
    /// Cliff's delta: of a time of each side, taken at random, the probability that the candidate's is longer less the
    /// probability that the base's is. Every run counts the same.
    pub delta: f64,
    /// Whether one of the metrics of these times differs detectably.
    pub is_detected: bool,
}

impl Effect {
    /// In a word, by the bounds of Romano, Kromrey, Coraggio and Skowronek, "Appropriate statistics for ordinal level data"
    /// (2006): 0.147, 0.33, 0.474.
    pub fn word(&self) -> &'static str {
        match self.delta.abs() {
            delta if delta < 0.147 => "negligible",
            delta if delta < 0.33 => "small",
            delta if delta < 0.474 => "medium",
            _ => "large",
        }
    }
}

/// What became of a condition.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// The condition.
    pub condition: Condition,
    /// Whether it holds.
    pub outcome: Outcome,
    /// From the base to the candidate; `None` where it cannot be said.
    pub change: Option<f64>,
    /// Where the change lies: the intervals of all conditions together with [`CONFIDENCE`].
    pub interval: Option<Interval>,
}

/// Everything about two sides.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// Every metric that some run has, in the order of [`Metric::all`].
    pub differences: Vec<Difference>,
    /// How far the distributions of times lie apart.
    pub effects: Vec<Effect>,
    /// What became of each condition, in the order in which they were given.
    pub verdicts: Vec<Verdict>,
    /// What is not the same about the environments.
    pub mismatches: Vec<Mismatch>,
    /// What is not the same about the loads.
    pub loads: Vec<LoadDifference>,
    /// Metrics that were judged.
    pub judged: usize,
    /// How many standard errors an interval reaches to each side, where the standard errors are exactly known.
    pub reach: f64,
    /// Whether the variation from run to run is known: some side has several runs.
    pub knows_runs: bool,
}

impl Comparison {
    /// Differences that are more than chance.
    pub fn detected(&self) -> impl Iterator<Item = &Difference> {
        self.differences.iter().filter(|difference| difference.is_detected)
    }
}

/// What single runs as a whole are taken to differ by, as a share of a figure (standard deviation). On a GPU host, the
/// differences of paired runs in throughput had standard deviations of 0.2 to 0.6 % (`benches/results/2026-11-24-h200-host`), which
/// is 1.4 times as much as single runs vary by.
pub const RUN_VARIATION: f64 = 0.003;

/// What is asked of a comparison.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// What the comparison may fail on.
    pub conditions: Vec<Condition>,
    /// Standard deviation of what runs as a whole differ by, as a share of a figure. It counts where both sides have one run;
    /// where they have several, those tell.
    pub run_variation: f64,
    /// What random choices begin with.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { conditions: Vec::new(), run_variation: RUN_VARIATION, seed: 1 }
    }
}

impl Options {
    /// The seed of a run, by its place among all runs of the comparison.
    pub fn seed_of_run(&self, place: usize) -> u64 {
        // Runs keep seeds of their own, and comparisons with other seeds have none in common with this.
        self.seed.wrapping_mul(1 << 16).wrapping_add(place as u64)
    }
}

/// Compares the runs of a candidate with those of a base. Each side has at least one.
pub fn compare(base: &[Run], candidate: &[Run], options: &Options) -> Comparison {
    let conditions = &options.conditions;
    let metrics: BTreeSet<Metric> =
        base.iter().chain(candidate).flat_map(|run| run.figures.keys().copied()).collect();
    let ordered: Vec<Metric> = Metric::all().into_iter().filter(|metric| metrics.contains(metric)).collect();
    let pairs: Vec<Pair<'_>> = ordered.iter().map(|metric| Pair::new(*metric, base, candidate)).collect();
    let judged = judge::together(&pairs, options);
    let differences: Vec<Difference> =
        pairs.iter().zip(&judged.intervals).map(|(pair, interval)| difference(pair, *interval)).collect();
    let asked: Vec<Pair<'_>> =
        conditions.iter().map(|condition| Pair::new(condition.metric, base, candidate)).collect();
    let answers = judge::together(&asked, options);
    let verdicts = conditions
        .iter()
        .zip(&asked)
        .zip(&answers.intervals)
        .map(|((condition, pair), interval)| Verdict {
            condition: condition.clone(),
            outcome: condition.outcome(pair.is_everywhere(), *interval),
            change: pair.change(),
            interval: interval.ok(),
        })
        .collect();
    let effects = Times::all()
        .into_iter()
        .filter_map(|times| {
            let is_detected = differences.iter().any(|difference| {
                difference.is_detected && matches!(difference.metric, Metric::Time(of, _) if of == times)
            });
            Some(Effect { times, delta: delta(times, base, candidate)?, is_detected })
        })
        .collect();
    let Judged { count, reach, .. } = judged;
    Comparison {
        differences,
        effects,
        verdicts,
        mismatches: environment::mismatches(base, candidate),
        loads: environment::load_differences(base, candidate),
        judged: count,
        reach,
        knows_runs: base.len() + candidate.len() > 2,
    }
}

fn difference(pair: &Pair<'_>, interval: Result<Interval, NotJudged>) -> Difference {
    Difference {
        metric: pair.metric,
        base: pair.base.value(pair.metric),
        candidate: pair.candidate.value(pair.metric),
        base_runs: pair.base.values(),
        candidate_runs: pair.candidate.values(),
        samples: [pair.base.samples(), pair.candidate.samples()],
        change: pair.change(),
        interval,
        is_detected: interval.is_ok_and(|interval| interval.low > 0.0 || interval.high < 0.0),
        block: pair.block(),
    }
}

/// Cliff's delta of times; `None` where a side has none.
fn delta(times: Times, base: &[Run], candidate: &[Run]) -> Option<f64> {
    let of = |runs: &[Run]| -> Vec<Vec<u64>> {
        runs.iter().filter_map(|run| run.sketches.get(&times)).filter(|times| !times.is_empty()).cloned().collect()
    };
    let (base, candidate) = (of(base), of(candidate));
    let mut sum = 0.0;
    for lower in &base {
        for upper in &candidate {
            let mut wins = 0.0;
            for time in upper {
                let shorter = lower.partition_point(|other| other < time);
                let longer = lower.len() - lower.partition_point(|other| other <= time);
                wins += shorter as f64 - longer as f64;
            }
            sum += wins / (lower.len() * upper.len()) as f64;
        }
    }
    let pairs = base.len() * candidate.len();
    (pairs > 0).then(|| sum / pairs as f64)
}
