//! One run, reduced to what a comparison needs: every figure with its replicates. Samples are gone when it is made, so
//! that many runs can be compared in little memory.

use std::collections::BTreeMap;

use profilemate_session::{Component, Error, Label, Payload, Session};

use super::bootstrap::{NotJudged, Resampler, SLICES, Scale, Within, exact_percentile};
use super::environment::Environment;
use super::metric::{Metric, Rate, Share, Statistic, Times};
use crate::statistics::milliseconds;
use crate::steps::Phase;
use crate::{Row, analyze, forward};

/// Values that stand for all samples of a run where distributions are compared.
const SKETCH: usize = 1024;

/// A run.
#[derive(Debug)]
pub struct Run {
    /// The id of its session.
    pub name: String,
    /// Where it ran, and how.
    pub environment: Environment,
    /// What it had to do.
    pub workload: Workload,
    /// Records that were written or should have been, and are in no file.
    pub records_lost: u64,
    /// Places in its logs that hold no sound record.
    pub records_damaged: u64,
    /// Whether some of its processes still run.
    pub is_running: bool,
    pub(crate) figures: BTreeMap<Metric, Figure>,
    /// Ascending nanoseconds.
    pub(crate) sketches: BTreeMap<Times, Vec<u64>>,
}

/// A figure of a run.
#[derive(Debug, Clone)]
pub(crate) struct Figure {
    /// In the metric's unit.
    pub(crate) value: f64,
    /// Samples that it is made of.
    pub(crate) samples: u64,
    pub(crate) within: Result<Within, NotJudged>,
}

/// What a run had to do. `None` = not known.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Workload {
    /// From its first step to its last, seconds.
    pub seconds: f64,
    /// Engine steps.
    pub steps: Option<u64>,
    /// Requests that were seen.
    pub requests: Option<u64>,
    /// Mean sequences of a step.
    pub sequences_per_step: Option<f64>,
    /// Mean tokens of a step.
    pub tokens_per_step: Option<f64>,
    /// Steps that compute no prompt, in percent of all.
    pub decode_steps_pct: Option<f64>,
    /// Mean tokens of a prompt.
    pub prompt_tokens_per_request: Option<f64>,
    /// Mean tokens that a request generated.
    pub output_tokens_per_request: Option<f64>,
}

/// Most bins of sums over time.
const BINS: usize = 1 << 14;

/// Sums by time, in bins that get twice as wide whenever they do not reach.
#[derive(Debug)]
struct Bins {
    width_ns: u64,
    sums: Vec<[f64; 2]>,
    samples: u64,
}

impl Default for Bins {
    fn default() -> Self {
        Self { width_ns: 1 << 14, sums: Vec::new(), samples: 0 }
    }
}

impl Bins {
    fn add(&mut self, at_ns: u64, above: f64, below: f64) {
        while at_ns / self.width_ns >= BINS as u64 {
            self.width_ns *= 2;
            let pairs = self
                .sums
                .chunks(2)
                .map(|pair| pair.iter().fold([0.0; 2], |sum, [above, below]| [sum[0] + above, sum[1] + below]));
            self.sums = pairs.collect();
        }
        let bin = usize::try_from(at_ns / self.width_ns).unwrap_or(0);
        if bin >= self.sums.len() {
            self.sums.resize(bin + 1, [0.0; 2]);
        }
        self.sums[bin][0] += above;
        self.sums[bin][1] += below;
    }

    fn slices(&self, span_ns: u64, slices: usize) -> Vec<[f64; 2]> {
        let mut sums = vec![[0.0; 2]; slices];
        for (bin, [above, below]) in self.sums.iter().enumerate() {
            let middle_ns = bin as u64 * self.width_ns + self.width_ns / 2;
            let sum = &mut sums[slice_of(middle_ns, span_ns, slices)];
            sum[0] += above;
            sum[1] += below;
        }
        sums
    }
}

/// The slice that a moment lies in.
fn slice_of(at_ns: u64, span_ns: u64, slices: usize) -> usize {
    let slice = u128::from(at_ns) * slices as u128 / u128::from(span_ns.max(1));
    usize::try_from(slice).unwrap_or(usize::MAX).min(slices - 1)
}

/// Nanoseconds of a unit of time in which samples are placed: slices are longer.
const PLACE_NS: u64 = 100_000;

/// Durations and when they were: eight bytes each for those under 4.29 s.
#[derive(Debug, Default)]
struct Durations {
    short: Vec<(u32, u32)>,
    long: Vec<(u32, u64)>,
}

impl Durations {
    fn push(&mut self, at_ns: u64, nanoseconds: u64) {
        let place = u32::try_from(at_ns / PLACE_NS).unwrap_or(u32::MAX);
        match u32::try_from(nanoseconds) {
            Ok(short) => self.short.push((place, short)),
            Err(_) => self.long.push((place, nanoseconds)),
        }
    }

    /// In ascending order, with the slice of each.
    fn sorted(self, span_ns: u64, slices: usize) -> Vec<(u64, u16)> {
        let slice = |place: u32| {
            let at_ns = u64::from(place) * PLACE_NS + PLACE_NS / 2;
            u16::try_from(slice_of(at_ns, span_ns, slices)).unwrap_or(u16::MAX)
        };
        let short = self.short.into_iter().map(|(place, ns)| (u64::from(ns), slice(place)));
        let mut all: Vec<(u64, u16)> = short.collect();
        all.extend(self.long.into_iter().map(|(place, ns)| (ns, slice(place))));
        all.sort_unstable();
        all
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Mean {
    sum: f64,
    count: u64,
}

impl Mean {
    fn add(&mut self, value: f64) {
        self.sum += value;
        self.count += 1;
    }

    fn value(self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }
}

/// Takes rows as [`analyze`] hands them out, and makes a [`Run`] of them.
#[derive(Debug, Default)]
pub struct Collector {
    /// When the first step began, nanoseconds since the session's start.
    origin_ns: Option<i64>,
    last_ns: i64,
    /// When a step was scheduled last, and when something left an engine last.
    scheduled_ns: Option<i64>,
    output_ns: Option<i64>,
    times: BTreeMap<Times, Durations>,
    ratios: BTreeMap<Metric, Bins>,
    steps: u64,
    requests: u64,
    sequences: Mean,
    tokens: Mean,
    decode_steps: u64,
    prompt_tokens: Mean,
    output_tokens: Mean,
    /// Greatest share of the KV cache in use, if no better one is given.
    kv_peak_pct: Option<f64>,
}

impl Collector {
    fn since_origin(&self, at_ns: i64) -> u64 {
        let since = self.origin_ns.map_or(0, |origin| at_ns.saturating_sub(origin));
        u64::try_from(since).unwrap_or(0)
    }

    fn time(&mut self, times: Times, at_ns: i64, nanoseconds: u64) {
        let at_ns = self.since_origin(at_ns);
        self.times.entry(times).or_default().push(at_ns, nanoseconds);
    }

    fn ratio(&mut self, metric: Metric, at_ns: i64, above: f64, below: f64) {
        let at_ns = self.since_origin(at_ns);
        let bins = self.ratios.entry(metric).or_default();
        bins.add(at_ns, above, below);
        bins.samples += 1;
    }

    fn share(&mut self, share: Share, at_ns: i64, part: f64, whole: f64) {
        if whole > 0.0 {
            self.ratio(Metric::Share(share), at_ns, part, whole);
        }
    }

    /// Takes a row.
    pub fn see(&mut self, row: &Row<'_>) {
        match row {
            Row::Forward(pass) => self.see_pass(pass),
            Row::Cpu(operation) => {
                self.time(Times::Cpu(operation.name), operation.start_ns, operation.duration_ns);
            }
            Row::Batch(batch) => self.see_batch(batch),
            Row::Replay(replay) => {
                let is_eager = crate::cuda_graphs::Descriptor::parse(replay.descriptor).is_eager();
                self.share(Share::GraphCoverage, replay.start_ns, f64::from(u8::from(!is_eager)), 1.0);
                if let Some(real) = replay.real_tokens.map(u64::from) {
                    let padded = replay.padded_tokens.unwrap_or(real).max(real);
                    let padding = (padded - real) as f64;
                    self.share(Share::GraphPadding, replay.start_ns, padding, padded as f64);
                }
            }
            Row::Lifecycle(request) => self.see_request(request),
            Row::KvUsage(usage) => {
                let (used, total) = (f64::from(usage.used), f64::from(usage.total));
                if total > 0.0 {
                    // Every row counts the same, as in the mean of the summary.
                    self.share(Share::KvUsage, usage.at_ns, used / total, 1.0);
                    self.kv_peak_pct = Some(self.kv_peak_pct.unwrap_or(0.0).max(100.0 * used / total));
                }
                if let (Some(hits), Some(queries)) = (usage.prefix_hit_tokens, usage.prefix_query_tokens) {
                    self.share(Share::KvHits, usage.at_ns, f64::from(hits), f64::from(queries));
                }
            }
            Row::Layer(_)
            | Row::Collective(_)
            | Row::Capture(_)
            | Row::RequestEvent(_)
            | Row::KvEviction(_)
            | Row::Sampling(_)
            | Row::GpuMemory(_)
            | Row::Step(_)
            | Row::ExpertInterval(_)
            | Row::Span(_)
            | Row::FirstToken(_)
            | Row::Component(_) => {}
        }
    }

    fn see_pass(&mut self, pass: &forward::Pass<'_>) {
        self.origin_ns.get_or_insert(pass.start_ns);
        self.last_ns = self.last_ns.max(pass.start_ns.saturating_add_unsigned(pass.duration_ns.unwrap_or(0)));
        if let (Some(phase), Some(duration_ns)) = (pass.phase, pass.duration_ns) {
            self.time(Times::Forward(phase), pass.start_ns, duration_ns);
            let tokens = f64::from(pass.num_tokens.unwrap_or(0));
            let metric = Metric::Rate(Rate::Forward(phase));
            self.ratio(metric, pass.start_ns, tokens, duration_ns as f64 / 1e9);
        }
        let bubble = pass.gpu_idle_ns.filter(|idle| *idle < forward::LONGEST_BUBBLE_NS);
        if let (Some(idle), Some(busy)) = (bubble, pass.gpu_busy_ns) {
            self.share(Share::GpuIdle, pass.start_ns, idle as f64, idle.saturating_add(busy) as f64);
        }
    }

    fn see_batch(&mut self, batch: &crate::batch::Batch<'_>) {
        self.origin_ns.get_or_insert(batch.start_ns);
        self.last_ns = self.last_ns.max(batch.start_ns);
        self.steps += 1;
        self.decode_steps += u64::from(batch.phase == Phase::Decode);
        self.sequences.add(f64::from(batch.num_seqs));
        self.tokens.add(f64::from(batch.num_tokens));
        // Work and the time since the work before go together, so that slices do not cut them apart.
        let before_ns = self.scheduled_ns.replace(batch.start_ns).unwrap_or(batch.start_ns);
        let seconds = batch.start_ns.saturating_sub(before_ns).max(0) as f64 / 1e9;
        self.ratio(Metric::Rate(Rate::Steps), batch.start_ns, 1.0, seconds);
        let prefill = f64::from(batch.prefill_tokens);
        self.ratio(Metric::Rate(Rate::PromptTokens), batch.start_ns, prefill, seconds);
        if let Some(limits) = batch.limits {
            let of = |part: u32, limit: u64| if limit > 0 { f64::from(part) / limit as f64 } else { 0.0 };
            let seqs = of(batch.num_seqs, limits.max_num_seqs);
            let tokens = of(batch.num_tokens, limits.max_num_tokens);
            self.share(Share::Sequences, batch.start_ns, seqs, f64::from(u8::from(limits.max_num_seqs > 0)));
            self.share(Share::Tokens, batch.start_ns, tokens, f64::from(u8::from(limits.max_num_tokens > 0)));
        }
    }

    fn see_request(&mut self, request: &crate::requests::Lifecycle<'_>) {
        self.requests += 1;
        let moments = [request.arrived_ns, request.queued_ns, request.started_ns, request.finished_ns];
        let Some(at_ns) = moments.into_iter().flatten().next() else { return };
        for (times, time) in [
            (Times::Queue, request.queue_time_ns()),
            (Times::FirstToken, request.ttft_ns()),
            (Times::PerOutputToken, request.tpot_ns()),
            (Times::EndToEnd, request.total_time_ns()),
        ] {
            if let Some(time) = time {
                self.time(times, at_ns, time);
            }
        }
        if let Some(preemptions) = request.preemptions {
            self.share(Share::Preempted, at_ns, f64::from(u8::from(preemptions > 0)), 1.0);
        }
        if let Some(tokens) = request.prompt_tokens {
            self.prompt_tokens.add(f64::from(tokens));
        }
        if let Some(tokens) = request.output_tokens {
            self.output_tokens.add(f64::from(tokens));
        }
    }

    /// Takes what left an engine at this moment: tokens, and requests that ended. After the rows, and in order of time.
    pub fn see_outputs(&mut self, at_ns: i64, new_tokens: u64, finished: u64) {
        self.last_ns = self.last_ns.max(at_ns);
        let before_ns = self.output_ns.replace(at_ns).or(self.origin_ns).unwrap_or(at_ns);
        let seconds = at_ns.saturating_sub(before_ns).max(0) as f64 / 1e9;
        self.ratio(Metric::Rate(Rate::GeneratedTokens), at_ns, new_tokens as f64, seconds);
        self.ratio(Metric::Rate(Rate::Requests), at_ns, finished as f64, seconds);
    }

    /// The run, as it is known from its rows. Runs of a comparison have different seeds.
    pub fn finish(mut self, name: String, environment: Environment, seed: u64) -> Run {
        let span_ns = self.since_origin(self.last_ns).max(1);
        // Time after the last step belongs to it.
        let rest_ns = self.last_ns.saturating_sub(self.scheduled_ns.unwrap_or(self.last_ns));
        for rate in [Rate::Steps, Rate::PromptTokens] {
            if let Some(bins) = self.ratios.get_mut(&Metric::Rate(rate)) {
                bins.add(span_ns, 0.0, rest_ns.max(0) as f64 / 1e9);
            }
        }
        let places = usize::try_from(span_ns / PLACE_NS).unwrap_or(usize::MAX).clamp(1, SLICES);
        // The greatest power of two that is not greater.
        let slices = 1 << places.ilog2();
        let mut resampler = Resampler::new(slices, seed);
        let mut figures = BTreeMap::new();
        let mut sketches = BTreeMap::new();
        for (times, durations) in self.times {
            let sorted = durations.sorted(span_ns, slices);
            for statistic in Statistic::ALL {
                let figure = time_figure(&mut resampler, &sorted, statistic);
                figures.insert(Metric::Time(times, statistic), figure);
            }
            sketches.insert(times, sketch(&sorted));
        }
        for (metric, bins) in self.ratios {
            let sums = bins.slices(span_ns, slices);
            figures.insert(metric, ratio_figure(&mut resampler, metric, &sums, bins.samples));
        }
        if let Some(value) = self.kv_peak_pct {
            let figure = Figure { value, samples: 1, within: Err(NotJudged::Extreme) };
            figures.insert(Metric::Share(Share::KvPeak), figure);
        }
        let workload = Workload {
            seconds: span_ns as f64 / 1e9,
            steps: Some(self.steps).filter(|steps| *steps > 0),
            requests: Some(self.requests).filter(|requests| *requests > 0),
            sequences_per_step: self.sequences.value(),
            tokens_per_step: self.tokens.value(),
            decode_steps_pct: crate::batch::percent(self.decode_steps, self.steps),
            prompt_tokens_per_request: self.prompt_tokens.value(),
            output_tokens_per_request: self.output_tokens.value(),
        };
        Run {
            name,
            environment,
            workload,
            records_lost: 0,
            records_damaged: 0,
            is_running: false,
            figures,
            sketches,
        }
    }
}

fn time_figure(resampler: &mut Resampler, sorted: &[(u64, u16)], statistic: Statistic) -> Figure {
    let samples = sorted.len() as u64;
    if let Some(fraction) = statistic.fraction() {
        let within = resampler.percentile(sorted, fraction);
        return Figure { value: exact_percentile(sorted, fraction), samples, within };
    }
    let mut sums = vec![[0.0; 2]; resampler.slices()];
    for (nanoseconds, slice) in sorted {
        sums[usize::from(*slice)][0] += *nanoseconds as f64;
        sums[usize::from(*slice)][1] += 1.0;
    }
    let sum: u128 = sorted.iter().map(|(nanoseconds, _)| u128::from(*nanoseconds)).sum();
    Figure {
        value: sum as f64 / samples as f64 / 1e6,
        samples,
        within: resampler.ratio(&sums, samples, Scale::Logarithm),
    }
}

fn ratio_figure(resampler: &mut Resampler, metric: Metric, sums: &[[f64; 2]], samples: u64) -> Figure {
    let [above, below] = sums.iter().fold([0.0; 2], |sum, slice| [sum[0] + slice[0], sum[1] + slice[1]]);
    let ratio = if below > 0.0 { above / below } else { 0.0 };
    let (value, scale) =
        if metric.is_in_points() { (100.0 * ratio, Scale::Points) } else { (ratio, Scale::Logarithm) };
    Figure { value, samples, within: resampler.ratio(sums, samples, scale) }
}

/// Values that lie as the samples do.
fn sketch(sorted: &[(u64, u16)]) -> Vec<u64> {
    let (count, last) = (sorted.len().min(SKETCH), sorted.len().saturating_sub(1));
    (0..count).map(|at| sorted[if count > 1 { at * last / (count - 1) } else { 0 }].0).collect()
}

impl Run {
    /// Reads a session. Runs of a comparison have different seeds.
    ///
    /// # Errors
    /// When a segment cannot be read.
    pub fn read(session: &Session, seed: u64) -> Result<Self, Error> {
        let mut collector = Collector::default();
        let mut timing = None;
        let answers = analyze::<Error>(session, |row| {
            if let Row::Forward(pass) = &row {
                timing.get_or_insert(pass.timing);
            }
            collector.see(&row);
            Ok(())
        })?;
        let mut left: Vec<(i64, u64, u64)> = Vec::new();
        for log in session.logs.iter().filter(|log| log.role(Component::EngineCore).is_some()) {
            let mut records = log.records();
            while let Some(record) = records.next_record()? {
                if let (Payload::Outputs(outputs), Label::Work) = (&record.payload, record.label) {
                    left.push((session.nanoseconds(log, record.ticks), outputs.new_tokens, outputs.finished));
                }
            }
        }
        left.sort_unstable();
        for (at_ns, new_tokens, finished) in left {
            collector.see_outputs(at_ns, new_tokens, finished);
        }
        if let Some(peak) = answers.kv_cache.as_ref().and_then(|kv_cache| kv_cache.all.peak_usage_pct()) {
            collector.kv_peak_pct = Some(peak);
        }
        let environment = Environment::of(session, &answers, timing);
        let mut run = collector.finish(session.id(), environment, seed);
        // None is a number where somebody would have seen some.
        run.workload.steps = run.workload.steps.or(answers.batch.as_ref().map(|_| 0));
        run.workload.requests = run.workload.requests.or(answers.requests.as_ref().map(|_| 0));
        Ok(Self {
            records_lost: session.records_lost(),
            records_damaged: session.records_damaged(),
            is_running: session.is_alive(),
            ..run
        })
    }

    /// The value of a metric, in its unit; `None` where the run has none.
    pub fn value(&self, metric: Metric) -> Option<f64> {
        self.figures.get(&metric).map(|figure| figure.value)
    }

    /// From the least to the greatest time of a kind, samples that lie as all do.
    pub fn milliseconds(&self, times: Times) -> impl Iterator<Item = f64> {
        self.sketches.get(&times).into_iter().flatten().map(|nanoseconds| milliseconds(*nanoseconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_get_wider_and_lose_nothing() {
        let mut bins = Bins::default();
        for at in 0..1000_u64 {
            bins.add(at * at * 1_000_000, 1.0, 2.0);
        }
        let sums = bins.slices(999 * 999 * 1_000_000, 512);
        let [above, below] = sums.iter().fold([0.0; 2], |sum, slice| [sum[0] + slice[0], sum[1] + slice[1]]);
        assert_eq!((above, below, bins.sums.len() <= BINS), (1000.0, 2000.0, true));
        // The k-th lies k² of the way: the first slice has those up to the root of 1/512.
        assert!((sums[0][0] - 44.0).abs() <= 2.0, "{}", sums[0][0]);
    }

    #[test]
    fn durations_keep_their_place_and_value() {
        let mut durations = Durations::default();
        durations.push(9_000_000_000, 7);
        durations.push(0, 5_000_000_000);
        durations.push(5_000_000_000, 6);
        assert_eq!(durations.sorted(9_000_000_000, 256), [(6, 142), (7, 255), (5_000_000_000, 0)]);
    }
}
