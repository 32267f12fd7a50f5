//! Forward passes: the model alone, step by step, and by phase.

use profilemate_session::{Component, Edge, Event, Name, Payload, Session, Span};

use crate::Context;
use crate::statistics::{Samples, Statistics};
use crate::steps::{Phase, Scheduled};

/// How a forward pass was timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timing {
    /// Wall time of the region, on the host.
    Wall,
    /// The GPU's own clock, by events around the region.
    Events,
}

impl Timing {
    /// Its name.
    pub fn text(self) -> &'static str {
        match self {
            Self::Wall => "wall",
            Self::Events => "events",
        }
    }
}

/// One forward pass. `None` = unknown.
#[derive(Debug, Clone, Copy)]
pub struct Pass<'a> {
    /// When it began: nanoseconds since the session's start.
    pub start_ns: i64,
    /// What kind of step it was.
    pub phase: Option<Phase>,
    /// Sequences.
    pub batch_size: Option<u32>,
    /// Tokens, without padding.
    pub num_tokens: Option<u32>,
    /// How long it took, nanoseconds.
    pub duration_ns: Option<u64>,
    /// Tokens of prompts not computed yet.
    pub prefill_tokens: Option<u32>,
    /// CUDA graph mode, in vLLM's words.
    pub cudagraph_mode: Option<&'a str>,
    /// Tokens with padding.
    pub padded_tokens: Option<u64>,
    /// GPU time between the step before and this one.
    pub gpu_idle_ns: Option<u64>,
    /// How long the same process sampled in the same step, by the same clock, nanoseconds.
    pub sample_ns: Option<u64>,
    /// How it was timed.
    pub timing: Timing,
    /// Engine step; `None` = none.
    pub step: Option<u64>,
    /// The process: `worker-0`.
    pub process: &'a str,
}

/// One phase of the summary.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PhaseSummary {
    /// Times.
    pub times: Statistics,
    /// Tokens over forward time; `None` when no time passed.
    pub tokens_per_second: Option<f64>,
}

/// The phases that were seen, in the order of [`Phase::ALL`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Summary {
    /// Phase and what is said of it.
    pub phases: Vec<(Phase, PhaseSummary)>,
}

#[derive(Debug)]
pub(crate) struct Collector {
    /// Durations and tokens, by phase.
    phases: [(Samples, u64); 3],
    /// The last step that the GPU's clock gave a row, by log.
    on_gpu: Vec<Option<u64>>,
}

impl Collector {
    pub(crate) fn new(session: &Session) -> Self {
        Self { phases: Default::default(), on_gpu: vec![None; session.logs.len()] }
    }

    #[inline]
    pub(crate) fn see<'a>(&mut self, context: &Context<'a>, event: &Event) -> Option<Pass<'a>> {
        let pass = match &event.record.payload {
            Payload::Span(span) if event.name == Name::Forward && event.edge == Edge::End => {
                if context.steps.times_on_gpu(event) {
                    self.on_gpu(context, event, Some(span))?
                } else {
                    on_host(context, event, span)
                }
            }
            // The host's span has the row, where there is one: it comes in time.
            Payload::GpuStep(_) if !context.steps.worked(event).has_forward => {
                self.on_gpu(context, event, None)?
            }
            _ => return None,
        };
        if let (Some(phase), Some(duration_ns)) = (pass.phase, pass.duration_ns) {
            let (durations, tokens) = &mut self.phases[phase as usize];
            durations.push(duration_ns);
            *tokens += u64::from(pass.num_tokens.unwrap_or(0));
        }
        Some(pass)
    }

    /// A row by the GPU's clock: one for each step, however many regions the host saw in it.
    fn on_gpu<'a>(&mut self, context: &Context<'a>, event: &Event, span: Option<&Span>) -> Option<Pass<'a>> {
        let last = &mut self.on_gpu[event.log];
        if event.record.step != 0 && *last == Some(event.record.step) {
            return None;
        }
        *last = Some(event.record.step);
        // A step that was not found done before its process ended has no GPU time; the host's is another thing.
        let step = context.steps.on_gpu(event).copied().unwrap_or_default();
        let descriptor = if step.descriptor == 0 { span.map_or(0, |span| span.context) } else { step.descriptor };
        let padded =
            if step.padded_tokens == 0 { span.map_or(0, |span| span.value_b) } else { step.padded_tokens.into() };
        Some(Pass {
            duration_ns: step.forward_ms.map(nanoseconds),
            gpu_idle_ns: step.idle_before_ms.map(nanoseconds),
            sample_ns: step.sample_ms.map(nanoseconds),
            timing: Timing::Events,
            ..pass(context, event, span, descriptor, padded)
        })
    }

    pub(crate) fn finish(self) -> Summary {
        let phases = Phase::ALL
            .into_iter()
            .zip(self.phases)
            .filter_map(|(phase, (mut durations, tokens))| {
                let times = durations.statistics()?;
                let seconds = durations.sum() as f64 / 1e9;
                let tokens_per_second = (seconds > 0.0).then(|| tokens as f64 / seconds);
                Some((phase, PhaseSummary { times, tokens_per_second }))
            })
            .collect();
        Summary { phases }
    }
}

/// A row by the host's clock.
fn on_host<'a>(context: &Context<'a>, event: &Event, span: &Span) -> Pass<'a> {
    let clock = &context.session.logs[event.log].clock;
    Pass {
        duration_ns: Some(event.duration_ns()),
        sample_ns: context.steps.worked(event).sampling_ticks.map(|ticks| clock.duration_ns(ticks)),
        ..pass(context, event, Some(span), span.context, span.value_b)
    }
}

/// What a row says whichever clock timed it. The span has the runner's own size of the batch, for when the engine's log
/// is missing.
fn pass<'a>(
    context: &Context<'a>,
    event: &Event,
    span: Option<&Span>,
    descriptor: u32,
    padded_tokens: u64,
) -> Pass<'a> {
    let log = &context.session.logs[event.log];
    let scheduled = context.steps.scheduled(event);
    let size = halves(span.map_or(0, |span| span.value_a));
    let [tokens, sequences] = size.map(|size| Some(size).filter(|size| *size > 0));
    Pass {
        start_ns: event.start_ns,
        phase: scheduled.and_then(Scheduled::phase),
        batch_size: scheduled.map(|scheduled| scheduled.num_seqs).or(sequences),
        num_tokens: scheduled.map(|scheduled| scheduled.num_tokens).or(tokens),
        duration_ns: None,
        prefill_tokens: scheduled.map(|scheduled| scheduled.prefill_tokens),
        // The first word of a descriptor is the mode.
        cudagraph_mode: log.head.string(descriptor).and_then(|text| text.split(' ').next()),
        padded_tokens: Some(padded_tokens).filter(|tokens| *tokens != 0),
        gpu_idle_ns: None,
        sample_ns: None,
        timing: Timing::Wall,
        step: Some(event.record.step).filter(|step| *step != 0),
        process: log.process(Component::Worker),
    }
}

/// Milliseconds of a GPU's clock.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "not negative; no step takes centuries"
)]
fn nanoseconds(milliseconds: f32) -> u64 {
    (f64::from(milliseconds) * 1e6).round() as u64
}

#[expect(clippy::cast_possible_truncation, reason = "the two halves are taken apart on purpose")]
fn halves(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}
