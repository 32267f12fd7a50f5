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
    /// Tokens that were generated; `None` when nobody says.
    pub generated_tokens: Option<u64>,
    /// Requests that finished; `None` when nobody says.
    pub finished_requests: Option<u64>,
    /// Sums over the steps: requests that ran, and that waited; `None` when a step does not say.
    running: Option<u64>,
    waiting: Option<u64>,
}

/// Adds to a sum that is known as long as everything in it is.
fn add(sum: &mut Option<u64>, value: Option<u64>) {
    *sum = sum.zip(value).map(|(sum, value)| sum.saturating_add(value));
}

impl Interval {
    /// `count` per second of the interval; `None` for one without length.
    pub fn per_second(&self, count: u64) -> Option<f64> {
        (self.length_ns > 0).then(|| count as f64 / (self.length_ns as f64 / 1e9))
    }

    /// Requests that ran, on average over the steps; `None` without steps, or when they do not say.
    pub fn mean_running(&self) -> Option<f64> {
        self.running.filter(|_| self.steps > 0).map(|running| running as f64 / self.steps as f64)
    }

    /// Requests that waited, on average over the steps; `None` without steps, or when they do not say.
    pub fn mean_waiting(&self) -> Option<f64> {
        self.waiting.filter(|_| self.steps > 0).map(|waiting| waiting as f64 / self.steps as f64)
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
    /// One in which nothing happened.
    empty: Interval,
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
        // What was not recorded says nothing of outputs, which is not the same as having none.
        let none_yet = session.logs.iter().all(|log| log.head.fact("source").is_none()).then_some(0);
        let empty = Interval {
            generated_tokens: none_yet,
            finished_requests: none_yet,
            running: Some(0),
            waiting: Some(0),
            ..Interval::default()
        };
        Self { interval_ns, empty, intervals: Vec::new() }
    }

    #[inline]
    pub(crate) fn see(&mut self, event: &Event) {
        if !matches!(event.record.payload, Payload::Schedule(_) | Payload::Outputs(_)) {
            return;
        }
        let at = u64::try_from(event.start_ns).unwrap_or(0) / self.interval_ns;
        let at = usize::try_from(at).unwrap_or(usize::MAX).min(MOST_INTERVALS - 1);
        if at >= self.intervals.len() {
            self.intervals.resize(at + 1, self.empty);
        }
        let interval = &mut self.intervals[at];
        match &event.record.payload {
            Payload::Schedule(schedule) if schedule.num_tokens > 0 => {
                interval.steps += 1;
                interval.prefill_tokens += u64::from(schedule.prefill_tokens);
                add(&mut interval.running, schedule.running.map(u64::from));
                add(&mut interval.waiting, schedule.waiting.map(u64::from));
            }
            Payload::Outputs(outputs) => {
                add(&mut interval.generated_tokens, Some(outputs.new_tokens));
                add(&mut interval.finished_requests, Some(outputs.finished));
            }
            _ => {}
        }
    }

    /// Work over a run that took `wall_ns`.
    pub(crate) fn finish(mut self, wall_ns: u64) -> Summary {
        let has_work = |interval: &Interval| {
            let is_some = |count: Option<u64>| count.is_some_and(|count| count > 0);
            interval.steps > 0 || is_some(interval.generated_tokens) || is_some(interval.finished_requests)
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
