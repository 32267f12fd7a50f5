//! Made-up runs of the shape that real ones have: a server at full load, one token per running request and step.
//!
//! Times of steps hang together (each holds on to four fifths of what was special about the one before), drift slowly, have
//! heavy tails (one in fifty is held up, by a Pareto-distributed time, and a garbage collection comes now and then), depend on what
//! is in the batch, and may differ from run to run as a whole. Requests come and go, so their times overlap and share what the
//! steps suffer.

use profilemate_analysis::Row;
use profilemate_analysis::batch::{Batch, Limits};
use profilemate_analysis::compare::{Collector, Environment, Run};
use profilemate_analysis::cpu::{Operation, Remark};
use profilemate_analysis::cuda_graphs::Replay;
use profilemate_analysis::forward::{Pass, Timing};
use profilemate_analysis::kv_cache::Usage;
use profilemate_analysis::requests::{Kind, Lifecycle};
use profilemate_analysis::steps::Phase;
use profilemate_session::Name;
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, Exp1, LogNormal, Pareto, StandardNormal};
use rand_pcg::Pcg64Mcg;

/// How requests come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Load {
    /// As many run as may: another comes whenever one ends.
    Full,
    /// At random (Poisson), the same requests at the same times in every run.
    Replayed,
    /// At random, others in every run.
    Random,
}

/// A run to be made up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// Engine steps.
    pub(crate) steps: usize,
    /// How requests come.
    pub(crate) load: Load,
    /// Factor of the time of forward passes.
    pub(crate) factor: f64,
    /// Standard deviation of what runs as a whole differ by, as a share.
    pub(crate) run_to_run: f64,
    /// Standard deviation of the slow drift, as a share.
    pub(crate) drift: f64,
    /// What of the drift is left after a step.
    pub(crate) drift_memory: f64,
}

impl Default for Shape {
    fn default() -> Self {
        Self { steps: 4000, load: Load::Full, factor: 1.0, run_to_run: 0.0, drift: 0.004, drift_memory: 0.995 }
    }
}

const MAX_SEQS: usize = 32;
const MAX_TOKENS: u64 = 2048;
const KV_BLOCKS: u32 = 4000;

/// Noise that hangs together.
struct Noise {
    value: f64,
    memory: f64,
}

impl Noise {
    fn new(memory: f64, random: &mut Pcg64Mcg) -> Self {
        Self { value: StandardNormal.sample(random), memory }
    }

    fn next(&mut self, random: &mut Pcg64Mcg) -> f64 {
        let fresh: f64 = StandardNormal.sample(random);
        self.value = self.memory * self.value + (1.0 - self.memory * self.memory).sqrt() * fresh;
        self.value
    }
}

struct Request {
    arrived_ns: i64,
    started_ns: Option<i64>,
    first_ns: Option<i64>,
    prompt: u32,
    cached: u32,
    made: u32,
    wanted: u32,
    preempted: bool,
}

#[expect(clippy::cast_possible_truncation, reason = "times of hours in nanoseconds")]
fn nanoseconds(milliseconds: f64) -> i64 {
    (milliseconds * 1e6) as i64
}

fn length(random: &mut Pcg64Mcg, mean: f64, spread: f64) -> u32 {
    let value: f64 = LogNormal::new(mean.ln(), spread).unwrap().sample(random);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a length")]
    let value = value.clamp(4.0, 4000.0) as u32;
    value
}

fn request(random: &mut Pcg64Mcg, arrived_ns: i64) -> Request {
    let prompt = length(random, 200.0, 0.7);
    let cached = if random.random_bool(0.3) { prompt / 32 * 16 } else { 0 };
    Request {
        arrived_ns,
        started_ns: None,
        first_ns: None,
        prompt,
        cached,
        made: 0,
        wanted: length(random, 120.0, 0.5),
        preempted: random.random_bool(0.03),
    }
}

/// Makes up a run. Runs of other seeds are other runs.
#[expect(clippy::too_many_lines, reason = "one step after the other, as they happen")]
pub(crate) fn run(shape: &Shape, seed: u64) -> Run {
    let mut random = Pcg64Mcg::seed_from_u64(seed);
    let mut arrivals =
        Pcg64Mcg::seed_from_u64(if shape.load == Load::Replayed { 4711 } else { seed ^ 0x5eed_0000_0000 });
    let mut collector = Collector::default();
    let whole: f64 = StandardNormal.sample(&mut random);
    let whole = (whole * shape.run_to_run).exp();
    let mut quick = Noise::new(0.8, &mut random);
    let mut slow = Noise::new(shape.drift_memory, &mut random);
    let mut host = Noise::new(0.6, &mut random);
    let hold_up = Pareto::new(0.3, 2.2).unwrap();
    let (mut running, mut waiting): (Vec<Request>, Vec<Request>) = (Vec::new(), Vec::new());
    let mut outputs = Vec::new();
    let mut now_ms = 0.0;
    let mut next_arrival_ms = 0.0;
    let cpu = |name, start_ms: f64, duration_ms: f64, process| {
        Row::Cpu(Operation {
            start_ns: nanoseconds(start_ms),
            name,
            duration_ns: nanoseconds(duration_ms).unsigned_abs(),
            remark: Remark::None,
            step: None,
            process,
        })
    };
    for step in 1..=shape.steps {
        match shape.load {
            Load::Full => {
                while running.len() + waiting.len() < MAX_SEQS + 2 {
                    waiting.push(request(&mut arrivals, nanoseconds(now_ms)));
                }
            }
            Load::Replayed | Load::Random => {
                while next_arrival_ms <= now_ms {
                    waiting.push(request(&mut arrivals, nanoseconds(next_arrival_ms)));
                    let gap: f64 = Exp1.sample(&mut arrivals);
                    next_arrival_ms += gap * 60.0;
                }
            }
        }
        // Scheduling.
        let mut prefill = 0_u64;
        let mut queries = [0_u32; 2];
        while running.len() < MAX_SEQS && prefill < 1024 && !waiting.is_empty() {
            let mut next = waiting.remove(0);
            next.started_ns = Some(nanoseconds(now_ms));
            prefill += u64::from(next.prompt - next.cached);
            queries = [queries[0] + next.cached, queries[1] + next.prompt];
            running.push(next);
        }
        if running.is_empty() {
            now_ms = next_arrival_ms.max(now_ms);
            continue;
        }
        let sequences = running.len();
        let decoding = running.iter().filter(|request| request.made > 0).count() as u64;
        let tokens = prefill + decoding;
        let phase = match (prefill, decoding) {
            (0, _) => Phase::Decode,
            (_, 0) => Phase::Prefill,
            _ => Phase::Mixed,
        };
        let held: u32 = running.iter().map(|request| (request.prompt + request.made) / 16 + 1).sum();
        // Times.
        let host_noise = (0.08 * host.next(&mut random)).exp();
        let noise = (0.015 * quick.next(&mut random) + shape.drift * slow.next(&mut random)).exp() * whole;
        let late = if random.random_bool(0.02) { hold_up.sample(&mut random) } else { 0.0 };
        let garbage = if random.random_bool(1.0 / 700.0) { 4.0 } else { 0.0 };
        let forward = shape.factor
            * noise
            * (6.0 + 0.02 * sequences as f64 + 0.0004 * f64::from(held) + 0.008 * prefill as f64)
            + late;
        let scheduling = 0.12 * host_noise * whole + garbage;
        let preparation = 0.25 * host_noise * whole;
        let sampling = 0.4 * noise;
        let bookkeeping = 0.08 * host_noise;
        let update = 0.10 * host_noise;
        let forward_at = now_ms + scheduling + preparation;
        let done = forward_at + forward + sampling + bookkeeping + update;
        let count = |value: u64| u32::try_from(value).unwrap();
        collector.see(&Row::Batch(Batch {
            log: 0,
            start_ns: nanoseconds(now_ms),
            num_seqs: count(sequences as u64),
            num_tokens: count(tokens),
            limits: Some(Limits { max_num_seqs: MAX_SEQS as u64, max_num_tokens: MAX_TOKENS }),
            phase,
            running: Some(count(sequences as u64)),
            waiting: Some(count(waiting.len() as u64)),
            prefill_tokens: count(prefill),
            step: Some(step as u64),
            process: "engine_core-0",
            limited_by: None,
        }));
        collector.see(&Row::KvUsage(Usage {
            log: 0,
            at_ns: nanoseconds(now_ms),
            used: held.min(KV_BLOCKS),
            total: KV_BLOCKS,
            cached: None,
            is_share: false,
            prefix_hit_tokens: Some(queries[0]),
            prefix_query_tokens: Some(queries[1]),
            allocated: None,
            freed: None,
            evicted: None,
            step: Some(step as u64),
            pool: "",
            process: "engine_core-0",
        }));
        let padded = if prefill == 0 { sequences.next_multiple_of(8) as u64 } else { tokens };
        let duration_ns = Some(nanoseconds(forward).unsigned_abs());
        let pass = Pass {
            log: 0,
            draft_ns: None,
            start_ns: nanoseconds(forward_at),
            phase: Some(phase),
            batch_size: Some(count(sequences as u64)),
            num_tokens: Some(count(tokens)),
            duration_ns,
            prefill_tokens: Some(count(prefill)),
            descriptor: None,
            padded_tokens: Some(padded),
            gpu_encoder_ns: None,
            gpu_encoder_after_ns: None,
            gpu_idle_ns: Some(nanoseconds(scheduling + preparation + bookkeeping + update).unsigned_abs()),
            gpu_busy_ns: Some(nanoseconds(forward + sampling).unsigned_abs()),
            gpu_start: None,
            sample_ns: None,
            timing: Timing::Events,
            step: Some(step as u64),
            process: "worker-0",
        };
        collector.see(&Row::Forward(pass));
        collector.see(&Row::Replay(Replay {
            start_ns: pass.start_ns,
            descriptor: if prefill == 0 { "FULL num_tokens=32" } else { "NONE" },
            duration_ns,
            real_tokens: Some(count(tokens)),
            padded_tokens: Some(padded),
            step: Some(step as u64),
            process: "worker-0",
        }));
        for (name, start, duration, process) in [
            (Name::Scheduling, now_ms, scheduling, "engine_core-0"),
            (Name::BatchPreparation, now_ms + scheduling, preparation, "worker-0"),
            (Name::ModelExecution, now_ms + scheduling, preparation + forward, "worker-0"),
            (Name::Sampling, forward_at + forward, sampling, "worker-0"),
            (Name::Bookkeeping, forward_at + forward + sampling, bookkeeping, "worker-0"),
            (Name::UpdateFromOutput, done - update, update, "engine_core-0"),
            (Name::EngineStep, now_ms, done - now_ms, "engine_core-0"),
            (Name::OutputProcessing, done, 0.3 * host_noise, "api_server-0"),
            (Name::Detokenization, done, 0.1 * host_noise, "api_server-0"),
        ] {
            collector.see(&cpu(name, start, duration, process));
        }
        now_ms = done;
        // What came of it.
        let mut finished = 0;
        for request in &mut running {
            request.made += 1;
            request.first_ns.get_or_insert(nanoseconds(now_ms));
        }
        running.retain(|request| {
            if request.made < request.wanted {
                return true;
            }
            finished += 1;
            collector.see(&Row::Lifecycle(lifecycle(request, nanoseconds(now_ms))));
            false
        });
        outputs.push((nanoseconds(now_ms), sequences as u64, finished));
    }
    for (at_ns, new_tokens, finished) in outputs {
        collector.see_outputs(at_ns, new_tokens, finished);
    }
    collector.finish(format!("simulated_{seed}"), Environment::default(), seed)
}

fn lifecycle(request: &Request, finished_ns: i64) -> Lifecycle<'static> {
    Lifecycle {
        log: 0,
        request_id: "",
        client_request_id: "",
        sample_index: None,
        kind: Some(Kind::Generate),
        priority: None,
        arrived_ns: Some(request.arrived_ns),
        queued_ns: Some(request.arrived_ns),
        started_ns: request.started_ns,
        preempted_ns: None,
        resumed_ns: None,
        first_token_ns: request.first_ns,
        finished_ns: Some(finished_ns),
        left_engine_ns: None,
        delay_before_first_token_ns: Some(0),
        preemption_delay_ns: Some(0),
        prompt_tokens: Some(request.prompt),
        cached_tokens: Some(request.cached),
        external_tokens: None,
        output_tokens: Some(request.wanted),
        preemptions: Some(u64::from(request.preempted)),
        recomputed_tokens: Some(0),
        finish_reason: Some("stop"),
        process: "engine_core-0",
    }
}
