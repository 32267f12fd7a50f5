//! From the events of a session to rows, summaries and counts. Numbers only: no text formats, no files.
//!
//! [`analyze`] goes over a session twice. The first pass ([`steps`]) keeps what a later record says about an earlier
//! one: what the scheduler decided for each step, when a worker began it, how long it sampled. The second hands every
//! row to the caller in the order in which things ended, and gathers what the summaries need (durations, not records).
//!
//! Every profiler is one file: [`forward`], [`cpu`], [`batch`], [`cuda_graphs`], [`requests`], [`kv_cache`],
//! [`moe_experts`], [`encoder_decoder`], [`sampling`], [`gpu_memory`], [`layers`]. A new one adds its
//! file, a variant of [`Row`] and a field of [`Answers`]. What is asked across profilers is one file for each question, too:
//! [`breakdown`], [`latency`], [`throughput`], [`ranks`], [`cost`].

pub mod batch;
pub mod breakdown;
pub mod compare;
pub mod cost;
pub mod counters;
pub mod cpu;
pub mod cuda_graphs;
pub mod encoder_decoder;
pub mod explain;
pub mod facts;
pub mod findings;
pub mod forward;
pub mod garbage;
pub mod gpu_clock;
pub mod gpu_memory;
mod iterations;
pub mod kv_cache;
pub mod latency;
pub mod layers;
pub mod moe_experts;
pub mod overhead;
mod overview;
pub mod processes;
pub mod ranks;
pub mod requests;
pub mod sampling;
pub mod spans;
pub mod statistics;
pub mod steps;
pub mod throughput;

use profilemate_session::{Error, Event, Session};

use facts::{Facts, Profiler};
use steps::Steps;

/// A row of a table.
#[derive(Debug, Clone, Copy)]
pub enum Row<'a> {
    /// Of the forward-pass table.
    Forward(forward::Pass<'a>),
    /// Of the table of CPU operations.
    Cpu(cpu::Operation<'a>),
    /// Of the batch-utilization table.
    Batch(batch::Batch<'a>),
    /// Of the table of captured CUDA graphs.
    Capture(cuda_graphs::Capture<'a>),
    /// Of the timeline of CUDA graphs.
    Replay(cuda_graphs::Replay<'a>),
    /// Of the table of requests.
    Lifecycle(requests::Lifecycle<'a>),
    /// Of the table of what happened to requests.
    RequestEvent(requests::RequestEvent<'a>),
    /// Of the table of KV cache usage.
    KvUsage(kv_cache::Usage<'a>),
    /// Of the table of evicted blocks.
    KvEviction(kv_cache::Eviction<'a>),
    /// Of the table of load imbalance: a layer over an interval.
    ExpertInterval(moe_experts::Interval<'a>),
    /// Of the table of encoders and decoder.
    Component(encoder_decoder::Timed<'a>),
    /// Of the sampling table.
    Sampling(sampling::Sampled<'a>),
    /// Of the table of GPU memory.
    GpuMemory(gpu_memory::Sample<'a>),
    /// Of the table of parts of forward passes.
    Layer(layers::Interval<'a>),
    /// Of the table of collectives.
    Collective(layers::Collective<'a>),
    /// An engine step, divided into its parts. These come some time after the step's other rows, in order.
    Step(breakdown::Step<'a>),
    /// A span as it was recorded, of any label. In no table: it is for who draws.
    Span(spans::Span<'a>),
    /// The engine has the first token of a request. In no table: the request's own row says when its front end took it.
    FirstToken(requests::FirstToken<'a>),
}

/// What a session says, apart from its rows.
#[derive(Debug, Default)]
pub struct Answers {
    /// What the processes said of themselves.
    pub facts: Facts,
    /// The processes and how they ended.
    pub processes: Vec<processes::Process>,
    /// From the session's start to its last sign of life, nanoseconds.
    pub duration_ns: u64,
    /// Counts that vLLM keeps too.
    pub counters: counters::Counters,
    /// Forward passes by phase; `None` when the profiler was not on.
    pub forward: Option<forward::Summary>,
    /// How long engines waited for the model's output, by phase, in vLLM's own words; `None` when nobody says.
    pub iterations: Option<forward::Summary>,
    /// CPU operations; `None` when the profiler was not on.
    pub cpu: Option<cpu::Summary>,
    /// Batch utilization; `None` when the profiler was not on.
    pub batch: Option<batch::Summary>,
    /// CUDA graphs; `None` when the profiler was not on.
    pub cuda_graphs: Option<cuda_graphs::Summary>,
    /// Lives of requests; `None` when the profiler was not on.
    pub requests: Option<requests::Summary>,
    /// The KV cache; `None` when the profiler was not on.
    pub kv_cache: Option<kv_cache::Summary>,
    /// The load of experts; `None` when the profiler was not on.
    pub moe_experts: Option<moe_experts::Summary>,
    /// Encoders against the language model; `None` when the profiler was not on.
    pub encoder_decoder: Option<encoder_decoder::Summary>,
    /// Sampling; `None` when the profiler was not on.
    pub sampling: Option<sampling::Summary>,
    /// Memory of GPUs, by worker; `None` when the profiler was not on.
    pub gpu_memory: Option<Vec<gpu_memory::Gpu>>,
    /// The parts of forward passes; `None` when the profiler was not on.
    pub layers: Option<layers::Summary>,
    /// GPU time, by worker that was timed on its GPU.
    pub gpu: Vec<forward::GpuTime>,
    /// Where the time of the run went; `None` when the profiler of CPU operations was not on.
    pub breakdown: Option<breakdown::Breakdown>,
    /// Work over time.
    pub throughput: throughput::Summary,
    /// Workers of the same engine against each other; only engines with several.
    pub ranks: Vec<ranks::Skew>,
    /// What one more token or sequence costs, where the steps say it.
    pub cost: Vec<cost::Fit>,
    /// Pauses of Python's garbage collector while there was work, by process that had any.
    pub garbage: Vec<garbage::Garbage>,
    /// What the probes cost, by process.
    pub overhead: Vec<overhead::Overhead>,
    /// Exceptions caught in probes.
    pub probe_errors: u64,
}

/// Everything that a row may need to know besides its own record.
pub(crate) struct Context<'a> {
    pub(crate) session: &'a Session,
    pub(crate) steps: Steps,
}

/// The profilers that are on and look at each event by itself, and hand out their rows themselves.
struct Collectors {
    requests: Option<requests::Collector>,
    kv_cache: Option<kv_cache::Collector>,
    moe_experts: Option<moe_experts::Collector>,
    encoder_decoder: Option<encoder_decoder::Collector>,
    sampling: Option<sampling::Collector>,
    gpu_memory: Option<gpu_memory::Collector>,
}

impl Collectors {
    fn new(session: &Session, facts: &Facts) -> Self {
        Self {
            requests: facts.is_on(Profiler::PreemptionTracking).then(|| requests::Collector::new(session)),
            kv_cache: facts.is_on(Profiler::KvCacheTracking).then(|| kv_cache::Collector::new(session)),
            moe_experts: facts.is_on(Profiler::MoeExpertTracking).then(moe_experts::Collector::default),
            encoder_decoder: facts
                .is_on(Profiler::EncoderDecoderTiming)
                .then(|| encoder_decoder::Collector::new(session)),
            sampling: facts.is_on(Profiler::SamplingTiming).then(|| sampling::Collector::new(session)),
            gpu_memory: facts.is_on(Profiler::GpuMemory).then(|| gpu_memory::Collector::new(session)),
        }
    }

    #[inline]
    fn see<E>(
        &mut self,
        context: &Context<'_>,
        event: &Event,
        row: &mut impl FnMut(Row<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        if let Some(requests) = &mut self.requests {
            requests.see(context, event, row)?;
        }
        if let Some(kv_cache) = &mut self.kv_cache {
            kv_cache.see(context, event, row)?;
        }
        if let Some(moe_experts) = &mut self.moe_experts
            && let Some(found) = moe_experts.see(context.session, event)
        {
            row(Row::ExpertInterval(found))?;
        }
        if let Some(encoder_decoder) = &mut self.encoder_decoder
            && let Some(found) = encoder_decoder.see(context, event)
        {
            row(Row::Component(found))?;
        }
        if let Some(sampling) = &mut self.sampling {
            sampling.see(context, event, row)?;
        }
        if let Some(gpu_memory) = &mut self.gpu_memory {
            gpu_memory.see(context, event, row)?;
        }
        Ok(())
    }
}

/// Analyzes a session; `row` gets every row of every profiler that was on.
///
/// # Errors
/// When a segment cannot be read, or `row` fails: the first error ends the analysis.
#[expect(clippy::too_many_lines, reason = "one line or two for each profiler, and nothing else")]
pub fn analyze<E: From<Error>>(
    session: &Session,
    mut row: impl FnMut(Row<'_>) -> Result<(), E>,
) -> Result<Answers, E> {
    let facts = Facts::of(session);
    let context = Context { session, steps: Steps::read(session)? };
    // CUDA graphs are seen in forward passes, whether or not those have a table.
    let mut forward = forward::Collector::new(session);
    let is_forward_on = facts.is_on(Profiler::ForwardPassTiming);
    let mut cuda_graphs = facts.is_on(Profiler::CudaGraphTracking).then(cuda_graphs::Collector::default);
    let mut cpu = facts.is_on(Profiler::CpuTiming).then(|| cpu::Collector::new(session));
    // Of what was not recorded, nobody knows the parts.
    let mut overview = overview::Collector::new(&context, cpu.is_some() && facts.source.is_none());
    let mut iterations = iterations::Collector::default();
    let mut batch = facts.is_on(Profiler::BatchUtilizationTracking).then(|| batch::Collector::new(session));
    let mut collectors = Collectors::new(session, &facts);
    let mut layers = facts.is_on(Profiler::LayerTiming).then(|| layers::Collector::new(session));
    let mut counters = counters::Collector::new(&facts);
    let mut overhead = overhead::Collector::new(session);
    let mut garbage = garbage::Collector::new(session);
    let mut processes = processes::Collector::new(session);
    let mut events = session.events()?;
    while let Some(event) = events.next_event()? {
        processes.see(&event);
        spans::hand_out(spans::Span::of(&context, &event), &mut row)?;
        if !event.is_work() {
            // A scheduler's limits are written while the engine is still loading.
            if let Some(batch) = &mut batch {
                batch.see_limits(&event);
            }
            if let Some(cuda_graphs) = &mut cuda_graphs
                && let Some(found) = cuda_graphs.see_capture(session, &event)
            {
                row(Row::Capture(found))?;
            }
            continue;
        }
        if let Some(layers) = &mut layers
            && layers.see(&context, &event, &mut row)?
        {
            continue;
        }
        counters.see(&event);
        iterations.see(&context, &event);
        overhead.see(session, &event);
        garbage.see(&context, &event);
        if let Some(batch) = &mut batch
            && let Some(found) = batch.see(&context, &event)
        {
            row(Row::Batch(found))?;
        }
        collectors.see(&context, &event, &mut row)?;
        let operation = cpu.as_mut().and_then(|cpu| cpu.see(&context, &event));
        if let Some(found) = overview.see(session, &event, operation.as_ref()) {
            row(Row::Step(found))?;
        }
        if let Some(found) = operation {
            spans::hand_out(spans::Span::preparation(&context, &event, &found), &mut row)?;
            row(Row::Cpu(found))?;
        }
        if let Some(found) = forward.see(&context, &event) {
            overview.see_pass(&context, &found, &event);
            if is_forward_on {
                row(Row::Forward(found))?;
            }
            if let Some(encoder_decoder) = &mut collectors.encoder_decoder {
                let (decoder, cross_attention) = encoder_decoder.see_pass(&context, &found, &event);
                row(Row::Component(decoder))?;
                if let Some(found) = cross_attention {
                    row(Row::Component(found))?;
                }
            }
            if let Some(cuda_graphs) = &mut cuda_graphs
                && let Some(replay) = cuda_graphs::Replay::of(&found)
            {
                cuda_graphs.see(&replay, found.phase, event.log);
                row(Row::Replay(replay))?;
            }
        }
    }
    let Collectors { requests, kv_cache, moe_experts, encoder_decoder, sampling, gpu_memory } = collectors;
    let requests = requests.map(|requests| requests.finish(&context, &mut row)).transpose()?;
    let layers = layers.map(|layers| layers.finish(&context, &mut row)).transpose()?;
    let kv_cache = kv_cache.map(|kv_cache| kv_cache.finish(session));
    let (processes, duration_ns) = processes.finish(session);
    while let Some(left) = overview.next_left(session) {
        row(Row::Step(left))?;
    }
    let overview = overview.finish(session, duration_ns);
    Ok(Answers {
        facts,
        processes,
        duration_ns,
        counters: counters.finish(requests.as_ref(), kv_cache.as_ref()),
        breakdown: overview.breakdown,
        throughput: overview.throughput,
        ranks: overview.ranks,
        cost: overview.cost,
        gpu: forward.gpu_times(),
        forward: is_forward_on.then(|| forward.finish()),
        iterations: iterations.finish(),
        cuda_graphs: cuda_graphs.map(cuda_graphs::Collector::finish),
        cpu: cpu.map(cpu::Collector::finish),
        batch: batch.map(batch::Collector::finish),
        requests,
        kv_cache,
        moe_experts: moe_experts.map(|experts| experts.finish(session)),
        encoder_decoder: encoder_decoder.map(|collector| {
            let mut summary = collector.finish();
            if let Some(layers) = &layers {
                summary.take_stamps(layers);
            }
            summary
        }),
        sampling: sampling.map(sampling::Collector::finish),
        gpu_memory: gpu_memory.map(|gpu_memory| gpu_memory.finish(session)),
        layers,
        garbage: garbage.finish(session),
        overhead: overhead.finish(session),
        probe_errors: session.logs.iter().map(|log| log.head.probe_errors).fold(0, u64::saturating_add),
    })
}
