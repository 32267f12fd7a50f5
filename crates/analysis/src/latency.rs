//! What the time of a request consists of, from its arrival to the moment that its client has all of it. The parts add up
//! to [`Lifecycle::total_time_ns`] to the nanosecond.

use crate::requests::{Kind, Lifecycle};
use crate::statistics::{Distribution, Samples};

/// A part of a request's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// From its arrival until the scheduler has it: tokenization, messages, an engine that is in the middle of a step.
    FrontEnd,
    /// In the scheduler's queue, until it is first put into a batch.
    Queue,
    /// Until the front end has its first token, without the time for which it was preempted.
    Prefill,
    /// Until the engine has its last token, without the time for which it was preempted.
    Decode,
    /// Preempted: thrown out of the batch and not yet put back.
    Preempted,
    /// From the engine's last token to the moment that the front end has it.
    Delivery,
}

impl Part {
    /// Every part, in the order of reports.
    pub const ALL: [Self; 6] =
        [Self::FrontEnd, Self::Queue, Self::Prefill, Self::Decode, Self::Preempted, Self::Delivery];

    /// Its name.
    pub fn text(self) -> &'static str {
        match self {
            Self::FrontEnd => "front_end",
            Self::Queue => "queue",
            Self::Prefill => "prefill",
            Self::Decode => "decode",
            Self::Preempted => "preempted",
            Self::Delivery => "delivery",
        }
    }
}

/// The time of one request by part, nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Latency([u64; Part::ALL.len()]);

impl Latency {
    /// Time of one part.
    pub fn of(&self, part: Part) -> u64 {
        self.0[part as usize]
    }

    /// All of it.
    pub fn total_ns(&self) -> u64 {
        self.0.iter().fold(0, |sum, ns| sum.saturating_add(*ns))
    }
}

impl Lifecycle<'_> {
    /// What its time consists of; `None` when it is not over, when its first records are gone, or when it is a streaming
    /// session, which waits for its client in between.
    pub fn latency(&self) -> Option<Latency> {
        let (arrived_ns, finished_ns) = (self.arrived_ns?, self.finished_ns?);
        let queued_ns = self.queued_ns?;
        let delay_ns = self.preemption_delay_ns?;
        if self.kind == Some(Kind::Streaming) || finished_ns < arrived_ns {
            return None;
        }
        let mut now_ns = arrived_ns;
        // What did not happen did not happen before the end; what was told late is not told twice.
        let mut until = |moment_ns: Option<i64>| {
            let from_ns = now_ns;
            now_ns = moment_ns.unwrap_or(finished_ns).clamp(now_ns, finished_ns);
            now_ns.abs_diff(from_ns)
        };
        let front_end = until(Some(queued_ns));
        let queue = until(self.started_ns);
        let to_first_token = until(self.first_token_ns.or(self.left_engine_ns));
        let to_last_token = until(self.left_engine_ns);
        let delivery = until(None);
        let before = self.delay_before_first_token_ns.unwrap_or(0).min(to_first_token);
        let after = delay_ns.saturating_sub(before).min(to_last_token);
        let mut latency = Latency::default();
        for (part, ns) in [
            (Part::FrontEnd, front_end),
            (Part::Queue, queue),
            (Part::Prefill, to_first_token - before),
            (Part::Decode, to_last_token - after),
            (Part::Preempted, before + after),
            (Part::Delivery, delivery),
        ] {
            latency.0[part as usize] = ns;
        }
        Some(latency)
    }
}

/// What is said of the time of all requests that are over and whose beginning is known.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Summary {
    /// How many.
    pub requests: u64,
    /// By part, over all of them, seconds: also those in which it took no time. In the order of [`Part::ALL`].
    pub parts: Vec<(Part, Distribution)>,
    /// Sum by part, nanoseconds, in the same order.
    pub totals_ns: [u128; Part::ALL.len()],
}

impl Summary {
    /// Sum of all parts, nanoseconds.
    pub fn total_ns(&self) -> u128 {
        self.totals_ns.iter().sum()
    }

    /// Share of a part in all of the time, 0-100; `None` when no time passed.
    pub fn share_pct(&self, part: Part) -> Option<f64> {
        let total_ns = self.total_ns();
        (total_ns > 0).then(|| 100.0 * self.totals_ns[part as usize] as f64 / total_ns as f64)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Collector {
    parts: [Samples; Part::ALL.len()],
}

impl Collector {
    pub(crate) fn see(&mut self, request: &Lifecycle<'_>) {
        let Some(latency) = request.latency() else { return };
        for (samples, ns) in self.parts.iter_mut().zip(latency.0) {
            samples.push(ns);
        }
    }

    /// What is said; `None` when there is no request to say it of.
    pub(crate) fn finish(self) -> Option<Summary> {
        let requests = self.parts[0].len() as u64;
        let totals_ns = std::array::from_fn(|part| self.parts[part].sum());
        let seconds = |ns: u64| ns as f64 / 1e9;
        let parts = Part::ALL
            .into_iter()
            .zip(self.parts)
            .filter_map(|(part, mut samples)| Some((part, samples.distribution(seconds)?)))
            .collect();
        (requests > 0).then_some(Summary { requests, parts, totals_ns })
    }
}
