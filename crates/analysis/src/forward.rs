//! Forward passes: the model alone, step by step, and by phase.

use profilemate_session::{Component, Edge, Event, Name, Payload, Session, Span};

use crate::Context;
use crate::gpu_clock::Placed;
use crate::statistics::{Samples, Statistics};
use crate::steps::{Phase, Scheduled};

/// How a forward pass was timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timing {
    /// Wall time, on the host. Without a GPU it is that of the forward pass; in lightweight mode it goes from the moment
    /// the GPU was free for the step to the moment its tokens had reached the host, sampling included.
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
    /// What the batch was dispatched as: `FULL num_tokens=8 …`, or `NONE`.
    pub descriptor: Option<&'a str>,
    /// Tokens with padding.
    pub padded_tokens: Option<u64>,
    /// GPU time between the step before and this one in which nothing was done.
    pub gpu_idle_ns: Option<u64>,
    /// GPU time that encoders took between the step before and this one; `None` = none did, or it is not known.
    pub gpu_encoder_ns: Option<u64>,
    /// From the step before to the first call of an encoder, on the GPU.
    pub gpu_encoder_after_ns: Option<u64>,
    /// From the first kernel of the forward pass to the last of the step, on the GPU.
    pub gpu_busy_ns: Option<u64>,
    /// When the GPU began it, on the session's clock, and how far off that may be.
    pub gpu_start: Option<Placed>,
    /// How long the same process sampled in the same step, by the same clock, nanoseconds.
    pub sample_ns: Option<u64>,
    /// How it was timed.
    pub timing: Timing,
    /// Engine step; `None` = none.
    pub step: Option<u64>,
    /// The process: `worker-0`.
    pub process: &'a str,
    /// Index of its log in the session.
    pub log: usize,
    /// How long the GPU drafted, nanoseconds.
    pub draft_ns: Option<u64>,
}

impl Pass<'_> {
    /// When the GPU began with the encoders of this step, nanoseconds since the session's start; `None` = it did not, or that is
    /// not known.
    pub fn gpu_encoder_start_ns(&self) -> Option<i64> {
        let encoder_ns = self.gpu_encoder_ns?;
        let before_ns = self.gpu_idle_ns?.saturating_add(encoder_ns);
        Some(
            self.gpu_start?.start_ns.saturating_sub_unsigned(before_ns.saturating_sub(self.gpu_encoder_after_ns?)),
        )
    }

    /// CUDA graph mode, in vLLM's words.
    pub fn cudagraph_mode(&self) -> Option<&str> {
        // The first word of a descriptor is the mode.
        self.descriptor?.split(' ').next().filter(|mode| !mode.is_empty())
    }
}

/// GPU time of a worker, over all its steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuTime {
    /// The worker.
    pub process: String,
    /// Steps between which the bubble is known.
    pub steps: u64,
    /// From the first to the last kernel of those steps, and calls of encoders before them; nanoseconds.
    pub busy_ns: u64,
    /// Between them, nanoseconds.
    pub idle_ns: u64,
    /// The same of decoding that went on: of steps that, like the step before, held decodes alone. Requests ran all the
    /// while, so what the GPU waited for there was the host.
    pub decoding: Bubble,
}

/// GPU time of steps, and between them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bubble {
    /// Steps before which the bubble is known.
    pub steps: u64,
    /// From the first to the last kernel of those steps, nanoseconds.
    pub busy_ns: u64,
    /// Before them, nanoseconds.
    pub idle_ns: u64,
}

impl Bubble {
    /// Share of the time that the GPU waited, 0-100; `None` when no time passed.
    pub fn idle_pct(&self) -> Option<f64> {
        let total = self.busy_ns.saturating_add(self.idle_ns);
        (total > 0).then(|| 100.0 * self.idle_ns as f64 / total as f64)
    }

    fn add(&mut self, idle_ns: u64, busy_ns: u64) {
        self.steps += 1;
        self.idle_ns = self.idle_ns.saturating_add(idle_ns);
        self.busy_ns = self.busy_ns.saturating_add(busy_ns);
    }
}

impl GpuTime {
    /// Share of the time that the GPU waited for the host, 0-100; `None` when no time passed.
    pub fn idle_pct(&self) -> Option<f64> {
        let total = self.busy_ns.saturating_add(self.idle_ns);
        (total > 0).then(|| 100.0 * self.idle_ns as f64 / total as f64)
    }
}

/// Longer without work is a server that nobody asked for anything, not a bubble: nanoseconds.
pub const LONGEST_BUBBLE_NS: u64 = 1_000_000_000;

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

/// Durations and tokens, by phase.
#[derive(Debug, Default)]
pub(crate) struct PhaseTimes([(Samples, u64); 3]);

impl PhaseTimes {
    #[inline]
    pub(crate) fn push(&mut self, phase: Phase, duration_ns: u64, num_tokens: u64) {
        let (durations, tokens) = &mut self.0[phase as usize];
        durations.push(duration_ns);
        *tokens += num_tokens;
    }

    pub(crate) fn summary(self) -> Summary {
        let phases = Phase::ALL
            .into_iter()
            .zip(self.0)
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

#[derive(Debug)]
pub(crate) struct Collector {
    phases: PhaseTimes,
    /// By log.
    workers: Vec<Worker>,
}

#[derive(Debug)]
struct Worker {
    /// Whether its steps were timed where vLLM waits for their tokens.
    is_lightweight: bool,
    /// The last step that the GPU's clock gave a row.
    last_on_gpu: Option<u64>,
    /// Its phase.
    last_phase: Option<Phase>,
    /// Lightweight: when the tokens of the step before had reached the host; nanoseconds since the session's start.
    free_since_ns: i64,
    gpu: GpuTime,
}

impl Collector {
    pub(crate) fn new(session: &Session) -> Self {
        let workers = session.logs.iter().map(|log| Worker {
            is_lightweight: log.head.fact("timing_mode") == Some("lightweight"),
            last_on_gpu: None,
            last_phase: None,
            free_since_ns: i64::MIN,
            gpu: GpuTime {
                process: log.process(Component::Worker).to_owned(),
                steps: 0,
                busy_ns: 0,
                idle_ns: 0,
                decoding: Bubble::default(),
            },
        });
        Self { phases: PhaseTimes::default(), workers: workers.collect() }
    }

    #[inline]
    pub(crate) fn see<'a>(&mut self, context: &Context<'a>, event: &Event) -> Option<Pass<'a>> {
        let pass = match &event.record.payload {
            Payload::Span(_) if self.workers[event.log].is_lightweight => self.at_output(context, event)?,
            Payload::Span(span) if event.name == Name::Forward && event.edge == Edge::End => {
                if context.steps.times_on_gpu(event) {
                    self.on_gpu(context, event, Some(span))?
                } else {
                    on_host(context, event, span)
                }
            }
            // The host's span has the row, where there is one: it comes in time.
            Payload::GpuStep(_) if context.steps.worked(event).forward_ticks.is_none() => {
                self.on_gpu(context, event, None)?
            }
            _ => return None,
        };
        if let (Some(phase), Some(duration_ns)) = (pass.phase, pass.duration_ns) {
            self.phases.push(phase, duration_ns, u64::from(pass.num_tokens.unwrap_or(0)));
        }
        Some(pass)
    }

    /// A row by the GPU's clock: one for each step, however many regions the host saw in it.
    fn on_gpu<'a>(&mut self, context: &Context<'a>, event: &Event, span: Option<&Span>) -> Option<Pass<'a>> {
        let worker = &mut self.workers[event.log];
        if event.record.step != 0 && worker.last_on_gpu == Some(event.record.step) {
            return None;
        }
        worker.last_on_gpu = Some(event.record.step);
        let phase = context.steps.scheduled(event).and_then(Scheduled::phase);
        let phase_before = std::mem::replace(&mut worker.last_phase, phase);
        // A step that was not found done before its process ended has no GPU time; the host's is another thing.
        let step = context.steps.on_gpu(event).copied().unwrap_or_default();
        if let (Some(idle), Some(busy)) =
            (step.idle_before_ns.filter(|idle| *idle < LONGEST_BUBBLE_NS), step.busy_ns)
        {
            worker.gpu.steps += 1;
            worker.gpu.idle_ns = worker.gpu.idle_ns.saturating_add(idle);
            let encoder_ns = step.encoder_ns.unwrap_or(0);
            worker.gpu.busy_ns = worker.gpu.busy_ns.saturating_add(busy).saturating_add(encoder_ns);
            if (phase_before, phase) == (Some(Phase::Decode), Some(Phase::Decode)) {
                worker.gpu.decoding.add(idle, busy);
            }
        }
        let descriptor = if step.descriptor == 0 { span.map_or(0, |span| span.context) } else { step.descriptor };
        let padded =
            if step.padded_tokens == 0 { span.map_or(0, |span| span.value_b) } else { step.padded_tokens.into() };
        Some(Pass {
            duration_ns: step.forward_ns,
            gpu_idle_ns: step.idle_before_ns,
            gpu_encoder_ns: step.encoder_ns,
            gpu_encoder_after_ns: step.encoder_after_ns,
            gpu_busy_ns: step.busy_ns,
            gpu_start: step.placed,
            sample_ns: step.sample_ns,
            draft_ns: step.draft_ns,
            timing: Timing::Events,
            ..pass(context, event, descriptor, padded)
        })
    }

    /// Lightweight: the tokens of a step have reached the host.
    fn at_output<'a>(&mut self, context: &Context<'a>, event: &Event) -> Option<Pass<'a>> {
        let step = context.steps.worked(event);
        // A step whose output is waited for later has its tokens then; without that, bookkeeping waits for them.
        let is_here = match event.name {
            Name::OutputReady => step.is_awaited,
            Name::Bookkeeping => !step.is_awaited,
            _ => false,
        };
        if !is_here || event.edge != Edge::End {
            return None;
        }
        let log = &context.session.logs[event.log];
        let began_ns = context.session.nanoseconds(log, step.forward_ticks?);
        let worker = &mut self.workers[event.log];
        let from_ns = began_ns.max(worker.free_since_ns);
        worker.free_since_ns = event.end_ns;
        Some(Pass {
            start_ns: began_ns,
            duration_ns: Some(u64::try_from(event.end_ns.saturating_sub(from_ns)).unwrap_or(0)),
            ..pass(context, event, step.descriptor, step.padded_tokens)
        })
    }

    /// GPU time of each worker that was timed on its GPU.
    pub(crate) fn gpu_times(&self) -> Vec<GpuTime> {
        self.workers.iter().map(|worker| worker.gpu.clone()).filter(|gpu| gpu.steps > 0).collect()
    }

    pub(crate) fn finish(self) -> Summary {
        self.phases.summary()
    }
}

/// A row by the host's clock.
fn on_host<'a>(context: &Context<'a>, event: &Event, span: &Span) -> Pass<'a> {
    let clock = &context.session.logs[event.log].clock;
    Pass {
        duration_ns: Some(event.duration_ns()),
        sample_ns: context.steps.worked(event).sampling_ticks.map(|ticks| clock.duration_ns(ticks)),
        ..pass(context, event, span.context, span.value_b)
    }
}

/// What a row says whichever clock timed it.
fn pass<'a>(context: &Context<'a>, event: &Event, descriptor: u32, padded_tokens: u64) -> Pass<'a> {
    let log = &context.session.logs[event.log];
    let scheduled = context.steps.scheduled(event);
    // Without the engine's log the runner's own numbers are left.
    let own = event.span().filter(|_| event.name == Name::Forward).map(|span| span.value_a);
    let [tokens, sequences] = halves(own.unwrap_or(context.steps.worked(event).size));
    let known = |number: u32| Some(number).filter(|number| *number != 0);
    Pass {
        start_ns: event.start_ns,
        phase: scheduled.and_then(Scheduled::phase),
        batch_size: scheduled.map_or(known(sequences), |scheduled| Some(scheduled.num_seqs)),
        num_tokens: scheduled.map_or(known(tokens), |scheduled| Some(scheduled.num_tokens)),
        duration_ns: None,
        prefill_tokens: scheduled.map(|scheduled| scheduled.prefill_tokens),
        descriptor: log.head.string(descriptor),
        padded_tokens: Some(padded_tokens).filter(|tokens| *tokens != 0),
        gpu_idle_ns: None,
        gpu_encoder_ns: None,
        gpu_encoder_after_ns: None,
        gpu_busy_ns: None,
        gpu_start: None,
        sample_ns: None,
        timing: Timing::Wall,
        step: Some(event.record.step).filter(|step| *step != 0),
        process: log.process(Component::Worker),
        log: event.log,
        draft_ns: None,
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the two halves are taken apart on purpose")]
fn halves(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}
