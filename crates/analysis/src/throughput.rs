//! Work over time, in a bounded number of equal intervals, however long the run was.

use profilemate_session::{Event, Payload, Session};

/// Most intervals that a run is meant to be cut into.
const INTERVALS: u64 = 120;

/// Most intervals that there are, if the run went on after the last that was known of it.
const MOST_INTERVALS: usize = 240;

/// Lengths that people can think in, milliseconds.
const LENGTHS_MS: [u64; 17] = [
    100, 200, 500, 1_000, 2_000, 5_000, 10_000, 15_000, 30_000, 60_000, 120_000, 300_000, 600_000, 900_000,
    1_800_000, 3_600_000, 7_200_000,
];

/// Work in one interval. What belongs to a step counts where the step was scheduled, tokens where they were made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Interval {
    /// When it began: nanoseconds since the session's start.
    pub start_ns: u64,
    /// How long it is; the last one ends with the run. Nanoseconds.
    pub length_ns: u64,
    /// Engine steps.
    pub steps: u64,
    /// Tokens of prompts that were scheduled.
    pub prefill_tokens: u64,
    /// Tokens that were generated.
    pub generated_tokens: u64,
    /// Requests that finished.
    pub finished_requests: u64,
    /// Sums over the steps: requests that ran, and that waited.
    running: u64,
    waiting: u64,
}

impl Interval {
    /// `count` per second of the interval; `None` for one without length.
    pub fn per_second(&self, count: u64) -> Option<f64> {
        (self.length_ns > 0).then(|| count as f64 / (self.length_ns as f64 / 1e9))
    }

    /// Requests that ran, on average over the steps; `None` without steps.
    pub fn mean_running(&self) -> Option<f64> {
        (self.steps > 0).then(|| self.running as f64 / self.steps as f64)
    }

    /// Requests that waited, on average over the steps; `None` without steps.
    pub fn mean_waiting(&self) -> Option<f64> {
        (self.steps > 0).then(|| self.waiting as f64 / self.steps as f64)
    }
}

/// Work over time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// How long an interval is, nanoseconds.
    pub interval_ns: u64,
    /// From the first interval with work to the last, those without work in between included.
    pub intervals: Vec<Interval>,
}

#[derive(Debug)]
pub(crate) struct Collector {
    interval_ns: u64,
    intervals: Vec<Interval>,
}

impl Collector {
    pub(crate) fn new(session: &Session) -> Self {
        let end_of = |log: &profilemate_session::Log| {
            let anchor = log.clock.last_anchor().map(|anchor| anchor.monotonic_ns);
            let closed = log.head.closed_ticks.map(|ticks| log.clock.monotonic_ns(ticks));
            anchor.max(closed)
        };
        let end_ns = session.logs.iter().filter_map(end_of).max().unwrap_or(0);
        let length_ns = end_ns.saturating_sub(session.start.monotonic_ns);
        let fits = |interval_ms: &u64| length_ns <= (interval_ms * 1_000_000).saturating_mul(INTERVALS);
        let longest_ms = LENGTHS_MS[LENGTHS_MS.len() - 1];
        let interval_ns = LENGTHS_MS.into_iter().find(fits).unwrap_or(longest_ms) * 1_000_000;
        Self { interval_ns, intervals: Vec::new() }
    }

    #[inline]
    pub(crate) fn see(&mut self, event: &Event) {
        if !matches!(event.record.payload, Payload::Schedule(_) | Payload::Outputs(_)) {
            return;
        }
        let at = u64::try_from(event.start_ns).unwrap_or(0) / self.interval_ns;
        let at = usize::try_from(at).unwrap_or(usize::MAX).min(MOST_INTERVALS - 1);
        if at >= self.intervals.len() {
            self.intervals.resize(at + 1, Interval::default());
        }
        let interval = &mut self.intervals[at];
        match &event.record.payload {
            Payload::Schedule(schedule) if schedule.num_tokens > 0 => {
                interval.steps += 1;
                interval.prefill_tokens += u64::from(schedule.prefill_tokens);
                interval.running += u64::from(schedule.running);
                interval.waiting += u64::from(schedule.waiting);
            }
            Payload::Outputs(outputs) => {
                interval.generated_tokens = interval.generated_tokens.saturating_add(outputs.new_tokens);
                interval.finished_requests = interval.finished_requests.saturating_add(outputs.finished);
            }
            _ => {}
        }
    }

    /// Work over a run that took `wall_ns`.
    pub(crate) fn finish(mut self, wall_ns: u64) -> Summary {
        let has_work = |interval: &Interval| {
            interval.steps + interval.generated_tokens.min(1) + interval.finished_requests.min(1) > 0
        };
        let mut start_ns = 0;
        for interval in &mut self.intervals {
            interval.start_ns = start_ns;
            start_ns += self.interval_ns;
            interval.length_ns = start_ns.min(wall_ns).saturating_sub(interval.start_ns);
        }
        let first = self.intervals.iter().position(has_work).unwrap_or(self.intervals.len());
        let last = self.intervals.iter().rposition(has_work).map_or(first, |last| last + 1);
        Summary { interval_ns: self.interval_ns, intervals: self.intervals[first..last].to_vec() }
    }
}
