//! What one more token or sequence costs: forward times fitted by least squares.
//!
//! `forward time = base + per prefill token × prefill tokens + per decode sequence × decode sequences`
//!
//! over the steps of an engine's first worker, by phase and by CUDA-graph mode. A coefficient is said only if the steps say
//! it: enough of them, a fit that explains most of the spread, and a value that stands clear of its error.

use std::collections::BTreeMap;

use profilemate_session::{Component, Event, Session};

use crate::forward::Pass;
use crate::steps::{Phase, Steps};

/// Fewest steps that a fit is made over.
pub const MIN_STEPS: usize = 50;

/// Least share of the variance that a fit explains, if it is said.
pub const MIN_R_SQUARED: f64 = 0.7;

/// How many standard errors a coefficient is away from nothing, at least, if it is said.
const CLEAR_OF_ERROR: f64 = 3.0;

/// How many standard deviations, estimated by the median, a step may be away from the fit: others are no matter of tokens (a first
/// use, a pause of the garbage collector) and are left out.
const OUTLIER: f64 = 8.0;

/// Most steps that are left out, as a share, if a fit is said.
const MOST_LEFT_OUT: f64 = 0.05;

/// A number and its standard error.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// The number.
    pub value: f64,
    /// Its standard error.
    pub error: f64,
}

/// The steps that a fit is over.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// Those of a phase.
    Phase(Phase),
    /// Those that used CUDA graphs in this mode; `NONE`: not at all.
    CudaGraphMode(String),
}

/// A fit that says something.
#[derive(Debug, Clone, PartialEq)]
pub struct Fit {
    /// The engine: `engine_core-0`, or the worker where the engine is not there.
    pub process: String,
    /// Which of its steps.
    pub group: Group,
    /// How many of them.
    pub steps: u64,
    /// Those that were left out, because something else made them slow.
    pub left_out: u64,
    /// Share of the variance that it explains, 0-1.
    pub r_squared: f64,
    /// Time of a step of no tokens, milliseconds: what a pass costs however small it is.
    pub base_ms: f64,
    /// What one more token of a prompt costs, microseconds; `None` = the steps do not say.
    pub prefill_token_us: Option<Estimate>,
    /// What one more decoding sequence costs, microseconds; `None` = the steps do not say.
    pub decode_sequence_us: Option<Estimate>,
}

/// One step.
#[derive(Debug, Clone, Copy)]
struct Point {
    prefill_tokens: u32,
    decode_sequences: u32,
    /// At most 4.29 s: what is longer is no forward pass of that many tokens.
    duration_ns: u32,
    phase: Phase,
    /// Place in the list of modes; `u8::MAX` = not known.
    mode: u8,
}

#[derive(Debug, Default)]
struct Worker {
    process: String,
    points: Vec<Point>,
    modes: Vec<String>,
    /// The step of the last point: a second pass of a step is a draft's, or of a second micro-batch.
    last_step: Option<u64>,
}

#[derive(Debug)]
pub(crate) struct Collector {
    /// By log, of those that are the first workers of their engines.
    workers: Vec<Option<Worker>>,
}

impl Collector {
    pub(crate) fn new(session: &Session, steps: &Steps) -> Self {
        // By engine: rank and log of its first worker.
        let mut first: BTreeMap<usize, (u32, usize)> = BTreeMap::new();
        for (log, of) in session.logs.iter().enumerate() {
            if let Some(role) = of.role(Component::Worker)
                && let Some(engine) = steps.engine_of(log)
            {
                let best = first.entry(engine).or_insert((role.rank, log));
                *best = (role.rank, log).min(*best);
            }
        }
        let mut workers: Vec<Option<Worker>> = session.logs.iter().map(|_| None).collect();
        for (engine, (_, log)) in first {
            let process = session.logs[engine].process(Component::EngineCore).to_owned();
            workers[log] = Some(Worker { process, ..Worker::default() });
        }
        Self { workers }
    }

    /// A forward pass, of this event.
    #[inline]
    pub(crate) fn see_pass(&mut self, steps: &Steps, pass: &Pass<'_>, event: &Event) {
        let Some(worker) = &mut self.workers[event.log] else { return };
        let (Some(scheduled), Some(phase), Some(duration_ns)) =
            (steps.scheduled(event), pass.phase, pass.duration_ns)
        else {
            return;
        };
        if pass.step == worker.last_step {
            return;
        }
        worker.last_step = pass.step;
        let mode = pass.cudagraph_mode().map_or(u8::MAX, |mode| worker.mode(mode));
        worker.points.push(Point {
            prefill_tokens: scheduled.prefill_tokens,
            decode_sequences: scheduled.num_seqs.saturating_sub(scheduled.prefill_seqs),
            duration_ns: u32::try_from(duration_ns).unwrap_or(u32::MAX),
            phase,
            mode,
        });
    }

    pub(crate) fn finish(self) -> Vec<Fit> {
        let mut fits = Vec::new();
        for worker in self.workers.into_iter().flatten() {
            for phase in Phase::ALL {
                fits.extend(worker.fit(Group::Phase(phase), |point| point.phase == phase));
            }
            for (at, mode) in worker.modes.iter().enumerate() {
                let group = Group::CudaGraphMode(mode.clone());
                fits.extend(worker.fit(group, |point| usize::from(point.mode) == at));
            }
        }
        fits
    }
}

impl Worker {
    fn mode(&mut self, mode: &str) -> u8 {
        let at = self.modes.iter().position(|known| known == mode).unwrap_or_else(|| {
            self.modes.push(mode.to_owned());
            self.modes.len() - 1
        });
        u8::try_from(at).unwrap_or(u8::MAX)
    }

    fn fit(&self, group: Group, belongs: impl Fn(&Point) -> bool) -> Option<Fit> {
        let points: Vec<&Point> = self.points.iter().filter(|point| belongs(point)).collect();
        let steps = points.len();
        if steps < MIN_STEPS {
            return None;
        }
        let mut kept = points;
        let mut line = Line::through(&kept)?;
        // What is left out moves the line, and a line that moved leaves out others: a few rounds settle it.
        for _ in 0..8 {
            let mut distances: Vec<f64> = kept.iter().map(|point| line.distance(point).abs()).collect();
            let middle = distances.len() / 2;
            let median = *distances.select_nth_unstable_by(middle, f64::total_cmp).1;
            // Of a normal distribution, the median of the distances is 0.6745 standard deviations.
            let limit = OUTLIER * median / 0.6745;
            let before = kept.len();
            if limit > 0.0 {
                kept.retain(|point| line.distance(point).abs() <= limit);
            }
            if kept.len() == before || kept.len() < MIN_STEPS {
                break;
            }
            line = Line::through(&kept)?;
        }
        let left_out = steps - kept.len();
        if kept.len() < MIN_STEPS || left_out as f64 > MOST_LEFT_OUT * steps as f64 {
            return None;
        }
        let said = |estimate: Option<Estimate>| {
            estimate.filter(|estimate| estimate.value > CLEAR_OF_ERROR * estimate.error)
        };
        let [prefill_token_us, decode_sequence_us] = line.slopes.map(said);
        let says_something = prefill_token_us.is_some() || decode_sequence_us.is_some();
        (says_something && line.r_squared >= MIN_R_SQUARED).then(|| Fit {
            process: self.process.clone(),
            group,
            steps: kept.len() as u64,
            left_out: left_out as u64,
            r_squared: line.r_squared,
            base_ms: line.base_us / 1e3,
            prefill_token_us,
            decode_sequence_us,
        })
    }
}

/// A least-squares fit. Times in microseconds.
#[derive(Debug, Clone, Copy)]
struct Line {
    base_us: f64,
    /// Per prefill token and per decode sequence; `None` where the steps do not tell them apart from the base or from each other.
    slopes: [Option<Estimate>; 2],
    r_squared: f64,
}

impl Point {
    fn size(&self) -> [f64; 2] {
        [f64::from(self.prefill_tokens), f64::from(self.decode_sequences)]
    }

    fn microseconds(&self) -> f64 {
        f64::from(self.duration_ns) / 1e3
    }
}

impl Line {
    /// How far a step is above the line, microseconds.
    fn distance(&self, point: &Point) -> f64 {
        let slopes = self.slopes.map(|slope| slope.map_or(0.0, |slope| slope.value));
        let [prefill, decode] = point.size();
        point.microseconds() - self.base_us - slopes[0] * prefill - slopes[1] * decode
    }

    /// The line through points; `None` when nothing in their times varies with them.
    fn through(points: &[&Point]) -> Option<Self> {
        let count = points.len() as f64;
        let mut means = [0.0; 2];
        let mut mean_us = 0.0;
        for point in points {
            let size = point.size();
            means[0] += size[0] / count;
            means[1] += size[1] / count;
            mean_us += point.microseconds() / count;
        }
        // About the means, so that large numbers do not cancel.
        let (mut xx, mut xy, mut yy) = ([[0.0; 2]; 2], [0.0; 2], 0.0);
        for point in points {
            let size = point.size();
            let x = [size[0] - means[0], size[1] - means[1]];
            let y = point.microseconds() - mean_us;
            for row in 0..2 {
                xx[row][0] += x[row] * x[0];
                xx[row][1] += x[row] * x[1];
                xy[row] += x[row] * y;
            }
            yy += y * y;
        }
        // What is the same in every step, but for rounding, tells nothing.
        let varies = |at: usize| xx[at][at] > 1e-9 * count * (1.0 + means[at] * means[at]);
        let determinant = xx[0][0] * xx[1][1] - xx[0][1] * xx[1][0];
        // Two that go up and down together cannot be told apart.
        let both = varies(0) && varies(1) && determinant > 1e-4 * xx[0][0] * xx[1][1];
        let (slopes, inverse) = if both {
            let inverse = [
                [xx[1][1] / determinant, -xx[0][1] / determinant],
                [-xx[1][0] / determinant, xx[0][0] / determinant],
            ];
            let slope = |row: usize| inverse[row][0] * xy[0] + inverse[row][1] * xy[1];
            ([Some(slope(0)), Some(slope(1))], [inverse[0][0], inverse[1][1]])
        } else if varies(0) != varies(1) {
            let one = usize::from(varies(1));
            let mut slopes = [None; 2];
            let mut inverse = [0.0; 2];
            slopes[one] = Some(xy[one] / xx[one][one]);
            inverse[one] = 1.0 / xx[one][one];
            (slopes, inverse)
        } else {
            return None;
        };
        let [prefill, decode] = slopes.map(|slope| slope.unwrap_or(0.0));
        let residual: f64 = points
            .iter()
            .map(|point| {
                let size = point.size();
                let x = [size[0] - means[0], size[1] - means[1]];
                (point.microseconds() - mean_us - prefill * x[0] - decode * x[1]).powi(2)
            })
            .sum();
        let freedom = count - 1.0 - slopes.iter().flatten().count() as f64;
        if yy <= 0.0 || freedom <= 0.0 {
            return None;
        }
        let variance = residual / freedom;
        let estimate =
            |at: usize| slopes[at].map(|value| Estimate { value, error: (variance * inverse[at]).sqrt() });
        Some(Self {
            base_us: mean_us - prefill * means[0] - decode * means[1],
            slopes: [estimate(0), estimate(1)],
            r_squared: 1.0 - residual / yy,
        })
    }
}
