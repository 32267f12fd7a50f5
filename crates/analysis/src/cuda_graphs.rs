//! CUDA graphs: what was captured, and what each step's batch was dispatched as.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use profilemate_session::{Component, Event, Name, Session};

use crate::forward::Pass;
use crate::statistics::{Samples, Statistics};
use crate::steps::Phase;

/// What a batch is dispatched as, taken apart. `None` = the version of vLLM does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor<'a> {
    /// `FULL`, `PIECEWISE` or `NONE`.
    pub mode: &'a str,
    /// Tokens, with padding.
    pub num_tokens: Option<u64>,
    /// Sequences, with padding.
    pub num_reqs: Option<u64>,
    /// Whether every sequence has the same number of tokens.
    pub uniform: Option<bool>,
    /// Whether there are adapters (`LoRA`).
    pub has_lora: Option<bool>,
}

impl<'a> Descriptor<'a> {
    /// Reads `MODE key=value …`; keys that are not known are passed over.
    pub fn parse(text: &'a str) -> Self {
        let mut words = text.split(' ');
        let mode = words.next().unwrap_or("");
        let mut descriptor = Self { mode, num_tokens: None, num_reqs: None, uniform: None, has_lora: None };
        let flag = |value: &str| match value {
            "1" => Some(true),
            "0" => Some(false),
            _ => None,
        };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            match key {
                "num_tokens" => descriptor.num_tokens = value.parse().ok(),
                "num_reqs" => descriptor.num_reqs = value.parse().ok(),
                "uniform" => descriptor.uniform = flag(value),
                "has_lora" => descriptor.has_lora = flag(value),
                _ => {}
            }
        }
        descriptor
    }

    /// Whether it runs without a graph.
    pub fn is_eager(&self) -> bool {
        self.mode == "NONE"
    }
}

/// One capture.
#[derive(Debug, Clone, Copy)]
pub struct Capture<'a> {
    /// What was captured.
    pub descriptor: Descriptor<'a>,
    /// When it began: nanoseconds since the session's start.
    pub start_ns: i64,
    /// How long it took, nanoseconds.
    pub duration_ns: u64,
    /// The process.
    pub process: &'a str,
}

/// One step, as far as its graph is concerned.
#[derive(Debug, Clone, Copy)]
pub struct Replay<'a> {
    /// When the host began it: nanoseconds since the session's start.
    pub start_ns: i64,
    /// What it was dispatched as.
    pub descriptor: &'a str,
    /// How long its forward pass took, nanoseconds.
    pub duration_ns: Option<u64>,
    /// Tokens without padding.
    pub real_tokens: Option<u32>,
    /// Tokens with padding.
    pub padded_tokens: Option<u64>,
    /// Engine step.
    pub step: Option<u64>,
    /// The process.
    pub process: &'a str,
}

impl<'a> Replay<'a> {
    /// The graph's side of a forward pass; `None` when it is not known what it was dispatched as.
    pub(crate) fn of(pass: &Pass<'a>) -> Option<Self> {
        Some(Self {
            start_ns: pass.start_ns,
            descriptor: pass.descriptor?,
            duration_ns: pass.duration_ns,
            real_tokens: pass.num_tokens,
            padded_tokens: pass.padded_tokens,
            step: pass.step,
            process: pass.process,
        })
    }
}

/// What is said of one descriptor over all steps.
#[derive(Debug, Clone, PartialEq)]
pub struct Usage {
    /// The descriptor, as it stands in the log.
    pub descriptor: String,
    /// Steps.
    pub count: u64,
    /// Tokens without padding.
    pub real_tokens: u64,
    /// Padding.
    pub padding_tokens: u64,
    /// Times of the forward pass; `None` when none was timed.
    pub times: Option<Statistics>,
}

/// Steps whose batches had the same number of tokens, without padding.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BatchSize {
    /// Tokens.
    pub tokens: u32,
    /// Steps of decodes alone that ran in a graph, whole or in pieces.
    pub decode_in_graph: u64,
    /// Steps of decodes alone that ran without.
    pub decode_eager: u64,
    /// The other steps that ran in a graph.
    pub other_in_graph: u64,
    /// The other steps that ran without.
    pub other_eager: u64,
}

/// Graphs that were captured for one descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captured {
    /// The descriptor, as it stands in the log.
    pub descriptor: String,
    /// How many, over all workers.
    pub count: u64,
    /// How long that took together, nanoseconds.
    pub duration_ns: u64,
}

/// Usage by descriptor, the most used first.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Summary {
    /// One entry per descriptor.
    pub usage: Vec<Usage>,
    /// One entry per captured descriptor, in their order as text. Empty where the records are gone.
    pub captured: Vec<Captured>,
    /// Steps by the size of their batch, ascending: of at most [`MOST_SIZES`] sizes.
    pub sizes: Vec<BatchSize>,
    /// Workers whose steps were counted: each step is counted once for each worker that ran it.
    pub workers: u64,
}

/// Most sizes of batches that are told apart. vLLM's token budget rarely allows for more.
pub const MOST_SIZES: usize = 1 << 15;

impl Summary {
    /// Share of steps that ran in a graph, whole or in pieces, 0-100; `None` without steps.
    pub fn coverage_pct(&self) -> Option<f64> {
        let (mut all, mut eager) = (0_u64, 0_u64);
        for usage in &self.usage {
            all += usage.count;
            eager += if Descriptor::parse(&usage.descriptor).is_eager() { usage.count } else { 0 };
        }
        (all > 0).then(|| 100.0 * (all - eager) as f64 / all as f64)
    }

    /// Share of computed tokens that were padding, 0-100; `None` without tokens.
    pub fn padding_pct(&self) -> Option<f64> {
        let real: u64 = self.usage.iter().map(|usage| usage.real_tokens).sum();
        let padding: u64 = self.usage.iter().map(|usage| usage.padding_tokens).sum();
        (real + padding > 0).then(|| 100.0 * padding as f64 / (real + padding) as f64)
    }
}

#[derive(Debug, Default)]
struct Counted {
    count: u64,
    real_tokens: u64,
    padding_tokens: u64,
    durations: Samples,
}

#[derive(Debug, Default)]
pub(crate) struct Collector {
    /// By descriptor: as many as there are graphs.
    counted: BTreeMap<String, Counted>,
    captured: BTreeMap<String, (u64, u64)>,
    sizes: BTreeMap<u32, BatchSize>,
    /// Logs of the workers whose steps were counted.
    workers: BTreeSet<usize>,
}

impl Collector {
    /// A capture, which is no work for requests.
    pub(crate) fn see_capture<'a>(&mut self, session: &'a Session, event: &Event) -> Option<Capture<'a>> {
        if event.name != Name::GraphCapture {
            return None;
        }
        let log = &session.logs[event.log];
        let descriptor = log.head.string(event.span()?.context)?;
        let (count, duration_ns) = self.captured.entry(descriptor.to_owned()).or_default();
        *count += 1;
        *duration_ns = duration_ns.saturating_add(event.duration_ns());
        Some(Capture {
            descriptor: Descriptor::parse(descriptor),
            start_ns: event.start_ns,
            duration_ns: event.duration_ns(),
            process: log.process(Component::Worker),
        })
    }

    /// A step of the worker with this log.
    pub(crate) fn see(&mut self, replay: &Replay<'_>, phase: Option<Phase>, log: usize) {
        self.workers.insert(log);
        if let Some(tokens) = replay.real_tokens
            && (self.sizes.len() < MOST_SIZES || self.sizes.contains_key(&tokens))
        {
            let size = self.sizes.entry(tokens).or_insert(BatchSize { tokens, ..BatchSize::default() });
            // As `Descriptor::is_eager`, without taking it apart in every step.
            let is_eager = replay.descriptor.split(' ').next() == Some("NONE");
            *match (phase == Some(Phase::Decode), is_eager) {
                (true, false) => &mut size.decode_in_graph,
                (true, true) => &mut size.decode_eager,
                (false, false) => &mut size.other_in_graph,
                (false, true) => &mut size.other_eager,
            } += 1;
        }
        if !self.counted.contains_key(replay.descriptor) {
            self.counted.insert(replay.descriptor.to_owned(), Counted::default());
        }
        let Some(counted) = self.counted.get_mut(replay.descriptor) else { return };
        let real = u64::from(replay.real_tokens.unwrap_or(0));
        counted.count += 1;
        counted.real_tokens += real;
        counted.padding_tokens += replay.padded_tokens.unwrap_or(real).saturating_sub(real);
        if let Some(duration_ns) = replay.duration_ns {
            counted.durations.push(duration_ns);
        }
    }

    pub(crate) fn finish(self) -> Summary {
        let mut usage: Vec<Usage> = self
            .counted
            .into_iter()
            .map(|(descriptor, mut counted)| Usage {
                descriptor,
                count: counted.count,
                real_tokens: counted.real_tokens,
                padding_tokens: counted.padding_tokens,
                times: counted.durations.statistics(),
            })
            .collect();
        // Stable: descriptors that were used as often stay in the order of their names.
        usage.sort_by_key(|usage| Reverse(usage.count));
        Summary {
            usage,
            captured: self
                .captured
                .into_iter()
                .map(|(descriptor, (count, duration_ns))| Captured { descriptor, count, duration_ns })
                .collect(),
            sizes: self.sizes.into_values().collect(),
            workers: self.workers.len() as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_read_as_far_as_they_go() {
        let full = Descriptor::parse("FULL num_tokens=8 num_reqs=4 uniform=1 has_lora=0 later=x");
        assert_eq!((full.mode, full.num_tokens, full.num_reqs), ("FULL", Some(8), Some(4)));
        assert_eq!((full.uniform, full.has_lora), (Some(true), Some(false)));
        let none = Descriptor::parse("NONE");
        assert_eq!((none.mode, none.num_tokens, none.uniform), ("NONE", None, None));
        assert!(none.is_eager() && !full.is_eager());
    }

    #[test]
    fn coverage_is_over_steps_and_padding_over_tokens() {
        let mut collector = Collector::default();
        let replay = |descriptor, real, padded| Replay {
            start_ns: 0,
            descriptor,
            duration_ns: Some(1_000_000),
            real_tokens: Some(real),
            padded_tokens: Some(padded),
            step: Some(1),
            process: "worker-0",
        };
        for _ in 0..3 {
            collector.see(&replay("FULL num_tokens=8", 6, 8), Some(Phase::Decode), 0);
        }
        collector.see(&replay("NONE", 100, 100), None, 1);
        let summary = collector.finish();
        assert_eq!(summary.coverage_pct(), Some(75.0));
        assert_eq!(summary.usage[0].padding_tokens, 6);
        let sizes = [
            BatchSize { tokens: 6, decode_in_graph: 3, ..BatchSize::default() },
            BatchSize { tokens: 100, other_eager: 1, ..BatchSize::default() },
        ];
        assert_eq!((summary.sizes.as_slice(), summary.workers), (sizes.as_slice(), 2));
        assert!((summary.padding_pct().unwrap() - 100.0 * 6.0 / 124.0).abs() < 1e-12);
    }
}
