//! The KV cache: too small, larger than needed, and what its prefix cache does.

use super::{
    Change, Confidence, Direction, Evidence, Finding, Found, Level, Severity, Subject, batches, count, encoder,
    evidence, maybe, preemption, proof, queue, settings, share,
};
use crate::Answers;
use crate::facts::Profiler;
use crate::kv_cache::{FULL_PCT, PoolSummary};

/// Fewer calls of the scheduler say nothing about a load.
pub const LEAST_ROWS: u64 = 200;

/// Share of the calls with a full cache from which it counts as full, percent.
pub const FULL_ROWS_PCT: f64 = 10.0;

/// Share of requests that were preempted, or of steps that blocks limited, that a full cache needs to be a fault, percent. A
/// cache that is full and keeps nobody waiting is well used.
pub const HURTS_PCT: f64 = 5.0;

/// Peak use under which a cache is larger than this load needs, percent.
pub const OVERSIZED_PCT: f64 = 40.0;

/// Fewer calls of the scheduler do not show a peak that will hold.
pub const LEAST_ROWS_FOR_PEAK: u64 = 1000;

/// Evicted blocks that must have been followed.
pub const LEAST_EVICTIONS: u64 = 200;

/// Share of evicted blocks that the prefix cache had found from which evictions hurt, percent.
pub const REUSED_PCT: f64 = 10.0;

/// Median idle time under which evicted blocks were still in use, seconds.
pub const SHORT_IDLE_SEC: f64 = 10.0;

/// Fewer tokens looked up say nothing about the prefix cache.
pub const LEAST_QUERY_TOKENS: u64 = 10_000;

/// Share of tokens found from which the prefix cache has an effect worth knowing, percent.
pub const EFFECT_PCT: f64 = 10.0;

/// Share of memory up to which vLLM may be given more. Above, allocations beside vLLM's own run out of memory.
const MOST_MEMORY: f64 = 0.95;

/// The greatest peak among the pools, percent: what one engine or one kind of layer needs.
pub(super) fn highest_peak_pct(answers: &Answers) -> Option<f64> {
    let pools = &answers.kv_cache.as_ref()?.pools;
    pools.iter().filter_map(PoolSummary::peak_usage_pct).reduce(f64::max)
}

/// That the KV cache is too small for what the server was asked, and by which signs.
#[derive(Debug, Clone, Copy)]
pub struct Pressure {
    /// Requests were preempted, and how that went.
    preemption: Option<preemption::WantOfBlocks>,
    /// Requests wait all the time for blocks; share of the steps with a queue, percent.
    queue_pct: Option<f64>,
    /// The cache was full, and that hurt; share of the calls, percent.
    full_pct: Option<f64>,
}

/// Whether the KV cache is too small for what the server was asked.
pub fn pressure(answers: &Answers) -> Option<Pressure> {
    let preemption = preemption::want_of_blocks(answers);
    let full_pct = full_rows_pct(answers).filter(|share| *share >= FULL_ROWS_PCT);
    let queue = queue::cause(answers);
    let queue_pct = match queue {
        Some((queue::Cause::KvCache, share)) => Some(share),
        // With adapters, drafts, data parallelism and the like the scheduler's reason is not known; a full cache is one.
        Some((queue::Cause::Other, share)) if full_pct.is_some_and(|full| full >= 50.0) => Some(share),
        _ => None,
    };
    let limited_pct = answers.batch.as_ref().map_or(0.0, |batch| {
        let steps = |name| batch.limits_met.get(name).map_or(0, |limited| limited.steps);
        share(steps("kv_blocks") + steps("preemption"), batch.total_samples)
    });
    let hurts = limited_pct >= HURTS_PCT || preemption.is_some_and(|of| of.preempted_pct >= HURTS_PCT);
    let found = Pressure {
        preemption: preemption.filter(|of| of.is_frequent() || of.is_slow()),
        queue_pct,
        full_pct: full_pct.filter(|_| hurts),
    };
    (found.preemption.is_some() || found.queue_pct.is_some() || found.full_pct.is_some()).then_some(found)
}

/// Share of the calls after which a pool was full, percent; `None` = too few.
fn full_rows_pct(answers: &Answers) -> Option<f64> {
    let all = &answers.kv_cache.as_ref()?.all;
    (all.rows >= LEAST_ROWS).then(|| share(all.full_rows, all.rows))
}

pub(super) fn judge(answers: &Answers, found: &mut Found) {
    let pressure = pressure(answers);
    let thrash = thrash(answers);
    if let Some(pressure) = pressure {
        found.push(too_small(answers, pressure, thrash.as_ref()));
    } else if let Some(thrash) = &thrash {
        found.push(thrashes(answers, thrash));
    }
    let Some(kv_cache) = &answers.kv_cache else {
        return found.not_judged(Subject::KvCache, "kv_cache_tracking was not on");
    };
    if kv_cache.all.rows < LEAST_ROWS {
        let reason = format!("{} calls of the scheduler, {LEAST_ROWS} are needed", kv_cache.all.rows);
        return found.not_judged(Subject::KvCache, reason);
    }
    if pressure.is_none() && thrash.is_none() {
        found.0.findings.extend(oversized(answers, found));
    }
    found.0.findings.extend(prefix_cache(answers));
}

/// Ways to give the KV cache more room, the simplest first.
fn more_room(answers: &Answers) -> Vec<Change> {
    let facts = &answers.facts;
    let mut changes = Vec::new();
    // Who fixed the size has to change what it was fixed with.
    let fixed = ["--num-gpu-blocks-override", "--kv-cache-memory-bytes"]
        .into_iter()
        .find_map(|flag| Some((flag, settings::setting(facts, flag)?)));
    let memory = settings::number(facts, "--gpu-memory-utilization");
    if let Some((flag, current)) = fixed {
        changes.push(
            Change::new(flag, Direction::Raise)
                .from(Some(current))
                .note("or leave it out: vLLM then takes what memory there is"),
        );
    } else if memory.is_none_or(|memory| memory < MOST_MEMORY - 0.005) {
        let value = memory.map(|memory| format!("{:.2}", (memory + 0.05).min(MOST_MEMORY)));
        let change = Change::new("--gpu-memory-utilization", Direction::Raise).from(memory);
        changes.push(Change { value, ..change }.note(if facts.gpu_name.is_some() {
            "if nothing else uses the GPU's memory"
        } else {
            "a share of the host's memory where vLLM runs on the CPU; older versions have VLLM_CPU_KVCACHE_SPACE"
        }));
    }
    changes.extend(smaller_budget(answers));
    let is_auto =
        settings::setting(facts, "--kv-cache-dtype").or_else(|| settings::setting(facts, "--cache-dtype"));
    if facts.gpu_name.is_some() && is_auto.is_none_or(|dtype| !dtype.starts_with("fp8")) {
        changes.push(
            Change::new("--kv-cache-dtype", Direction::Set)
                .to("fp8")
                .from(is_auto)
                .note("half the bytes for each token; check the answers' quality"),
        );
    }
    changes.extend(more_gpus(answers));
    changes
}

/// vLLM sets memory aside for a step with the whole token budget; what no step needs is room for the cache.
fn smaller_budget(answers: &Answers) -> Option<Change> {
    let batch = batches::enough(answers)?;
    let limits = batch.limits?;
    let is_met = batch.limits_met.get("token_budget").is_some_and(|limited| limited.steps > 0);
    let largest = u64::from(batch.largest_tokens);
    if is_met || largest == 0 || largest > limits.max_num_tokens / 2 || encoder::wants_budget(answers) {
        return None;
    }
    // vLLM refuses a budget of fewer tokens than sequences.
    let value = largest.max(limits.max_num_seqs).max(1024).next_power_of_two();
    (value < limits.max_num_tokens).then(|| {
        Change::new("--max-num-batched-tokens", Direction::Lower)
            .to(value)
            .from(Some(limits.max_num_tokens))
            .note("no step had more tokens; less memory is set aside for activations")
    })
}

/// GPUs that vLLM does not use.
fn more_gpus(answers: &Answers) -> Option<Change> {
    let size = |flag| settings::number(&answers.facts, flag).filter(|size| *size >= 1.0);
    let tensor = size("--tensor-parallel-size")?;
    let used =
        tensor * size("--pipeline-parallel-size").unwrap_or(1.0) * size("--data-parallel-size").unwrap_or(1.0);
    let there_are = answers.facts.gpu_count? as f64;
    (there_are >= used * 2.0).then(|| {
        Change::new("--tensor-parallel-size", Direction::Raise)
            .to(tensor * 2.0)
            .from(Some(tensor))
            .note("there are GPUs that this server does not use")
    })
}

/// How many requests of the mean length the cache holds until they end, with a little to spare.
fn sustainable_seqs(answers: &Answers) -> Option<u64> {
    let requests = answers.requests.as_ref()?;
    let kv_cache = answers.kv_cache.as_ref()?;
    let finished: u64 = requests.finished.values().sum();
    // One pool, one engine: elsewhere a block is not so many tokens of one request.
    let [pool] = kv_cache.pools.as_slice() else { return None };
    if finished < preemption::LEAST_REQUESTS {
        return None;
    }
    let tokens = requests.prompt_tokens as f64 / requests.total_requests as f64
        + requests.output_tokens as f64 / finished as f64;
    let blocks = (tokens / kv_cache.block_size.filter(|size| *size > 0)? as f64).ceil().max(1.0);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of sequences")]
    let seqs = (0.95 * pool.total_blocks? as f64 / blocks) as u64;
    (seqs > 0).then_some(seqs)
}

/// Fewer requests at once, where those that run take blocks from each other.
fn fewer_seqs(answers: &Answers) -> Option<Change> {
    let batch = answers.batch.as_ref()?;
    let current = batch.limits?.max_num_seqs;
    let change = Change::new("--max-num-seqs", Direction::Lower).from(Some(current)).note(
        "so many requests of the mean length fit until they end; batches get smaller, which may cost throughput",
    );
    let seqs = sustainable_seqs(answers)?;
    // A limit that no batch reaches changes nothing.
    (seqs < current && seqs < u64::from(batch.largest_seqs)).then(|| change.to(seqs))
}

/// The KV cache is too small: requests wait for it, or take it from each other.
fn too_small(answers: &Answers, pressure: Pressure, thrash: Option<&Thrash>) -> Finding {
    let of_preemption = pressure.preemption;
    let title = match (of_preemption, pressure.queue_pct, pressure.full_pct) {
        (Some(of), ..) if of.is_frequent() => format!(
            "Too little KV cache: {:.1} % of the requests were preempted and computed again",
            of.preempted_pct
        ),
        (Some(of), ..) => format!(
            "Too little KV cache: preempted requests wait {:.2} s on average until they go on",
            of.resume_delay_sec.unwrap_or_default()
        ),
        (_, Some(share), _) => {
            format!(
                "Too little KV cache: requests wait, in {share:.1} % of these steps because blocks are missing"
            )
        }
        (_, _, full) => format!(
            "Too little KV cache: more than {FULL_PCT:.0} % of it is in use in {:.1} % of the steps, and requests suffer",
            full.unwrap_or_default()
        ),
    };
    let mut evidence = Vec::new();
    let mut proofs = Vec::new();
    if let Some(requests) = answers.requests.as_ref().filter(|requests| requests.preemptions > 0) {
        evidence.extend(preemption::numbers(requests));
        proofs.push(proof("preemption_summary.json", "preempted_requests"));
        proofs.push(proof("preemption_events.csv", "reason"));
    }
    evidence.extend(usage_numbers(answers));
    if answers.kv_cache.is_some() {
        proofs.push(proof("kv_cache_usage.csv", "usage_pct"));
    }
    if let (Some(batch), Some((_, share))) = (&answers.batch, queue::cause(answers)) {
        evidence.push(super::evidence("queued_steps_with_the_main_cause", share, "%"));
        evidence.extend(queue::numbers(answers, batch));
        proofs.push(proof("batch_utilization.csv", "limited_by"));
    }
    if let Some(thrash) = thrash {
        evidence.extend(thrash.numbers());
        proofs.push(proof("kv_cache_evictions.csv", "accesses"));
    }
    let mut changes = more_room(answers);
    if of_preemption.is_some() {
        // After the memory: it is given away for nothing, while fewer requests at once may cost throughput.
        let at = changes.len().min(1);
        if let Some(change) = fewer_seqs(answers) {
            changes.insert(at, change);
        }
    }
    let counted = of_preemption.is_some() || matches!(queue::cause(answers), Some((queue::Cause::KvCache, _)));
    Finding {
        id: "kv-cache-too-small",
        subject: Subject::KvCache,
        severity: if of_preemption.is_some() { Severity::Critical } else { Severity::Warning },
        confidence: if counted {
            Confidence::new(Level::High, "preemptions and missing blocks were recorded as they happened")
        } else {
            Confidence::new(Level::Medium, "concluded from a full cache; what limited the batches is not known for sure")
        },
        title,
        evidence,
        changes,
        expect: if of_preemption.is_some() {
            "Work that is thrown away and computed again goes away, and with it the pauses of the requests that lost \
             it. More room also lets more requests run at once."
        } else {
            "More requests run at once and start earlier; throughput grows with the batch."
        }
        .to_owned(),
        proof: proofs,
    }
}

fn usage_numbers(answers: &Answers) -> Vec<Evidence> {
    let Some(kv_cache) = &answers.kv_cache else { return vec![] };
    [
        maybe("peak_kv_cache_usage", highest_peak_pct(answers), "%"),
        maybe("mean_kv_cache_usage", kv_cache.all.mean_usage_pct, "%"),
        maybe("steps_over_90_pct_usage", full_rows_pct(answers), "%"),
        kv_cache.all.total_blocks.map(|blocks| count("blocks", blocks, "blocks")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Blocks that the prefix cache finds are evicted while they are still being found.
#[derive(Debug, Clone, Copy)]
struct Thrash {
    reused_pct: f64,
    idle_p50_sec: f64,
    evictions: u64,
    times_over: f64,
    followed: u64,
}

impl Thrash {
    fn numbers(&self) -> [Evidence; 4] {
        [
            evidence("evicted_blocks_that_had_been_reused", self.reused_pct, "%"),
            evidence("median_idle_time_of_evicted_blocks", self.idle_p50_sec, "s"),
            count("evicted_blocks", self.evictions, "blocks"),
            evidence("evictions_for_each_block_of_the_cache", self.times_over, "times"),
        ]
    }
}

fn thrash(answers: &Answers) -> Option<Thrash> {
    let all = &answers.kv_cache.as_ref()?.all;
    let idle = all.idle?;
    let found = Thrash {
        reused_pct: share(all.evicted_reused, idle.count),
        idle_p50_sec: idle.p50,
        evictions: all.evictions?,
        times_over: all.evictions? as f64 / all.total_blocks.filter(|blocks| *blocks > 0)? as f64,
        followed: idle.count,
    };
    (found.followed >= LEAST_EVICTIONS
        && found.times_over >= 1.0
        && found.reused_pct >= REUSED_PCT
        && found.idle_p50_sec < SHORT_IDLE_SEC)
        .then_some(found)
}

fn thrashes(answers: &Answers, thrash: &Thrash) -> Finding {
    let mut evidence = thrash.numbers().to_vec();
    evidence.extend(usage_numbers(answers));
    evidence.extend(hit_rate(answers).map(|rate| super::evidence("prefix_cache_hit_rate", rate, "%")));
    let mut changes = more_room(answers);
    if answers.facts.gpu_name.is_some() && settings::setting(&answers.facts, "--kv-offloading-size").is_none() {
        changes.push(
            Change::new("--kv-offloading-size", Direction::Set)
                .note("GiB of the host's memory for evicted blocks, where this version of vLLM has it"),
        );
    }
    Finding {
        id: "prefix-cache-thrashes",
        subject: Subject::KvCache,
        severity: Severity::Warning,
        confidence: Confidence::new(
            Level::Medium,
            format!(
                "{} evicted blocks were followed; whether they would be found again is concluded",
                thrash.followed
            ),
        ),
        title: format!(
            "The prefix cache is too small: {:.1} % of the evicted blocks had been reused, half of all within {:.1} s",
            thrash.reused_pct, thrash.idle_p50_sec
        ),
        evidence,
        changes,
        expect:
            "Blocks stay until they are found again, so fewer prompt tokens are computed and first tokens come \
                 earlier."
                .to_owned(),
        proof: vec![
            proof("kv_cache_evictions.csv", "accesses"),
            proof("kv_cache_evictions.csv", "idle_sec"),
            proof("kv_cache_summary.json", "evictions"),
        ],
    }
}

/// The cache is larger than this load needs.
fn oversized(answers: &Answers, found: &Found) -> Option<Finding> {
    let kv_cache = answers.kv_cache.as_ref()?;
    let peak_pct = highest_peak_pct(answers).filter(|peak| *peak < OVERSIZED_PCT)?;
    if kv_cache.all.rows < LEAST_ROWS_FOR_PEAK || preemption::enough(answers).is_none() {
        return None;
    }
    // Larger batches and graphs need memory; then none is to spare.
    let is_needed = queue::cause(answers).is_some()
        || found.asks("--max-num-seqs", Direction::Raise)
        || found.asks("--max-num-batched-tokens", Direction::Raise)
        || found
            .0
            .findings
            .iter()
            .any(|finding| finding.subject == Subject::CudaGraphs && !finding.changes.is_empty());
    if is_needed {
        return None;
    }
    let memory = settings::number(&answers.facts, "--gpu-memory-utilization");
    Some(Finding {
        id: "kv-cache-oversized",
        subject: Subject::KvCache,
        severity: Severity::Info,
        confidence: Confidence::new(Level::Low, "another load may need what this one did not"),
        title: format!("The KV cache is larger than this load needs: at most {peak_pct:.1} % of it was in use"),
        evidence: usage_numbers(answers),
        changes: vec![
            Change::new("--gpu-memory-utilization", Direction::Lower)
                .from(memory)
                .note("only if something else can use the memory; the prefix cache keeps fewer blocks then"),
        ],
        expect:
            "Nothing gets faster. Memory is free for another model, a longer --max-model-len or more requests at \
                 once, should they come."
                .to_owned(),
        proof: vec![proof("kv_cache_summary.json", "peak_usage_pct"), proof("kv_cache_usage.csv", "usage_pct")],
    })
}

/// Share of looked-up tokens that the prefix cache found, percent; `None` = too few.
fn hit_rate(answers: &Answers) -> Option<f64> {
    let all = &answers.kv_cache.as_ref()?.all;
    all.prefix_query_tokens.filter(|tokens| *tokens >= LEAST_QUERY_TOKENS)?;
    all.prefix_hit_rate_pct()
}

/// What the prefix cache saved.
fn prefix_cache(answers: &Answers) -> Option<Finding> {
    preemption::enough(answers)?;
    let rate = hit_rate(answers).filter(|rate| *rate >= EFFECT_PCT)?;
    let all = &answers.kv_cache.as_ref()?.all;
    let hits = all.prefix_hit_tokens?;
    // Steps that hold prompts alone say what a prompt's token costs.
    let speed = answers
        .forward
        .as_ref()
        .filter(|_| answers.facts.is_on(Profiler::ForwardPassTiming))
        .and_then(|forward| forward.phases.iter().find(|(phase, _)| *phase == crate::steps::Phase::Prefill))
        .filter(|(_, prefill)| prefill.times.count >= 20)
        .and_then(|(_, prefill)| prefill.tokens_per_second)
        .filter(|speed| *speed > 0.0);
    let saved = speed.map(|speed| hits as f64 / speed);
    Some(Finding {
        id: "prefix-cache-effect",
        subject: Subject::KvCache,
        severity: Severity::Info,
        confidence: Confidence::new(Level::High, "tokens were counted as vLLM counts them"),
        title: match saved {
            Some(saved) => format!(
                "The prefix cache found {rate:.1} % of the prompts' tokens: about {saved:.1} s of forward passes saved"
            ),
            None => format!("The prefix cache found {rate:.1} % of the prompts' tokens"),
        },
        evidence: [
            Some(evidence("prefix_cache_hit_rate", rate, "%")),
            Some(count("prefix_hit_tokens", hits, "tokens")),
            maybe("forward_time_saved", saved, "s"),
        ]
        .into_iter()
        .flatten()
        .collect(),
        changes: vec![],
        expect: "Leave it on.".to_owned(),
        proof: vec![proof("kv_cache_summary.json", "prefix_hit_rate_pct")],
    })
}
