//! Whatever the answers are, the advice does not contradict itself.

use std::collections::{BTreeMap, BTreeSet};

use profilemate_analysis::Answers;
use profilemate_analysis::batch::{self, Limited, Limits, Overlap, Queue};
use profilemate_analysis::cpu;
use profilemate_analysis::cuda_graphs::{self, BatchSize, Captured, Usage};
use profilemate_analysis::encoder_decoder::{self, Component, EncoderSummary, Inputs, ModelType};
use profilemate_analysis::facts::Facts;
use profilemate_analysis::findings::{Direction, Findings, Severity, find};
use profilemate_analysis::forward::{Bubble, GpuTime};
use profilemate_analysis::garbage::Garbage;
use profilemate_analysis::kv_cache::{self, PoolSummary};
use profilemate_analysis::ranks::{Rank, Skew};
use profilemate_analysis::requests;
use profilemate_analysis::statistics::{Distribution, Statistics};
use profilemate_analysis::steps::Phase;
use profilemate_session::Name;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

/// So many times of so many milliseconds; `None` = none.
fn times(count: u64, ms: f64) -> Option<Statistics> {
    (count > 0).then_some(Statistics {
        count,
        mean_ms: ms,
        std_ms: 0.0,
        min_ms: ms,
        max_ms: ms,
        p50_ms: ms,
        p95_ms: ms,
        p99_ms: ms,
        total_ms: ms * count as f64,
    })
}

fn distribution(count: u64, value: f64) -> Distribution {
    Distribution { count, mean: value, p50: value, p90: value, p95: value, p99: value, max: value }
}

/// A share of a count.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a part of a count")]
fn part(of: u64, share: f64) -> u64 {
    (of as f64 * share) as u64
}

/// Few, about as many as rules ask for, or many.
fn amount() -> impl Strategy<Value = u64> {
    prop_oneof![0u64..60, 150u64..260, 900u64..5000]
}

fn facts() -> impl Strategy<Value = Facts> {
    let setting = |name: &'static str, values: &'static [&'static str]| {
        prop::option::of(prop::sample::select(values))
            .prop_map(move |value| Some((name.to_owned(), value?.to_owned())))
    };
    let settings = (
        setting("gpu_memory_utilization", &["0.5", "0.9", "0.95", "1.0", "nan", "lots"]),
        setting("enforce_eager", &["True", "False"]),
        setting("async_scheduling", &["True", "False"]),
        setting("cache_dtype", &["auto", "fp8"]),
        setting("tensor_parallel_size", &["1", "2", "0"]),
        setting("cudagraph_mode", &["NONE", "FULL_AND_PIECEWISE", "FULL_DECODE_ONLY"]),
        setting("num_gpu_blocks_override", &["100"]),
    );
    let command = prop::option::of(prop::sample::select(
        &["vllm serve m", "vllm serve m --cudagraph-capture-sizes 1 2", "python x.py --enforce-eager"][..],
    ));
    (settings, command, any::<bool>(), prop::option::of(0u64..9)).prop_map(|(of, command, gpu, gpu_count)| Facts {
        settings: [of.0, of.1, of.2, of.3, of.4, of.5, of.6].into_iter().flatten().collect(),
        command: command.map(str::to_owned),
        gpu_name: gpu.then(|| "GPU".to_owned()),
        gpu_count,
        ..Facts::default()
    })
}

const LIMITS: [&str; 8] = [
    "no_waiting_request",
    "max_num_seqs",
    "token_budget",
    "kv_blocks",
    "preemption",
    "structured_output",
    "other",
    "",
];

fn batches() -> impl Strategy<Value = batch::Summary> {
    // One limit as a rule has most of the steps.
    let shares = (
        prop::collection::vec(0u64..90, LIMITS.len()),
        0..LIMITS.len(),
        prop_oneof![1 => Just(0u64), 3 => 100u64..2000],
    );
    let utilization = (0.0..=100.0f64, prop_oneof![0.0..=100.0f64, 94.0..=100.0f64]);
    let queued = prop_oneof![0.0..=1.0f64, 0.9..=1.0f64];
    let limits = prop::option::weighted(0.8, (1u64..600, prop_oneof![1u64..4096, 4096u64..40000]));
    (shares, utilization, limits, queued, 0u64..9_000_000_000, any::<bool>(), 0.0..=1.0f64).prop_map(
        |((mut steps, main, more), (mean, prompts), limits, queued, longest_ns, known, ahead)| {
            steps[main] += more;
            let total: u64 = steps.iter().sum();
            let met: BTreeMap<String, Limited> = LIMITS
                .iter()
                .zip(&steps)
                .filter(|(_, steps)| known && **steps > 0)
                .map(|(name, steps)| {
                    let queued_steps = if *name == "no_waiting_request" { 0 } else { part(*steps, queued) };
                    let limited = Limited { steps: *steps, queued_steps, mean_token_utilization_pct: Some(mean) };
                    ((*name).to_owned(), limited)
                })
                .collect();
            let queued_steps =
                if known { met.values().map(|limited| limited.queued_steps).sum() } else { part(total, queued) };
            batch::Summary {
                total_samples: total,
                mean_token_utilization_pct: Some(mean),
                phases: vec![(Phase::Prefill, prompts), (Phase::Decode, mean)],
                steps_by_phase: vec![(Phase::Prefill, total / 3), (Phase::Decode, total - total / 3)],
                limits: limits.map(|(max_num_seqs, max_num_tokens)| Limits { max_num_seqs, max_num_tokens }),
                limited_by: met.iter().map(|(name, limited)| (name.clone(), limited.steps)).collect(),
                limits_met: met,
                queue: Queue {
                    known_steps: if known || ahead < 0.5 { total } else { 0 },
                    steps: queued_steps,
                    mean_waiting: Some(3.0),
                    max_waiting: 9,
                    longest_steps: queued_steps / 2,
                    longest_ns,
                },
                overlap: Overlap { steps: total, overlapped: part(total, ahead) },
                largest_tokens: u32::try_from(total % 3000).unwrap(),
                largest_seqs: 9,
                ..batch::Summary::default()
            }
        },
    )
}

fn lives() -> impl Strategy<Value = requests::Summary> {
    (amount(), 0.0..=0.4f64, 0.0..3.0f64, any::<bool>()).prop_map(|(total, preempted, delay, for_blocks)| {
        let preempted = part(total, preempted);
        let reason = if for_blocks { "kv_cache_full" } else { "prefix_cache_reset" };
        requests::Summary {
            total_requests: total,
            finished: BTreeMap::from([("stop".to_owned(), total)]),
            preempted_requests: preempted,
            preemptions: preempted,
            preemption_reasons: BTreeMap::from([(reason.to_owned(), preempted)]),
            resume_delays: (preempted > 0).then(|| distribution(preempted, delay)),
            queue_time: Some(distribution(total.max(1), delay)),
            prompt_tokens: total * 300,
            output_tokens: total * 100,
            ..requests::Summary::default()
        }
    })
}

fn blocks() -> impl Strategy<Value = kv_cache::Summary> {
    let pool =
        (amount(), 0u64..=1000, 0.0..=1.0f64, 0u64..4000, 0u64..500, 0.0..=0.3f64, 0.0..20.0f64, 0u64..50_000);
    prop::collection::vec(pool, 1..3).prop_map(|pools| {
        let pools: Vec<PoolSummary> = pools
            .into_iter()
            .map(|(rows, peak, full, evictions, followed, reused, idle, hits)| PoolSummary {
                total_blocks: Some(1000),
                peak_blocks: Some(peak),
                mean_usage_pct: Some(peak as f64 / 20.0),
                rows,
                // Rows are only full if the peak is.
                full_rows: if peak > 900 { part(rows, full) } else { 0 },
                evictions: Some(evictions),
                idle: (followed > 0).then(|| distribution(followed, idle)),
                evicted_reused: part(followed, reused),
                prefix_query_tokens: Some(50_000),
                prefix_hit_tokens: Some(hits),
                ..PoolSummary::default()
            })
            .collect();
        kv_cache::Summary { all: pools[0].clone(), pools, block_size: Some(16) }
    })
}

fn graphs() -> impl Strategy<Value = cuda_graphs::Summary> {
    let size = (1u32..300, 0u64..400, prop_oneof![Just(0u64), 0u64..200], 0u64..50, 0u64..50);
    let sizes = prop::collection::vec(size, 0..20);
    let captured = prop::collection::btree_set(1u64..40, 0..30);
    (sizes, captured, 0.0..2.0f64, 1u64..3).prop_map(|(sizes, captured, ms_per_token, workers)| {
        let captured: Vec<u64> = captured.into_iter().map(|size| size * 8).collect();
        let mut usage: BTreeMap<String, (u64, f64)> = BTreeMap::new();
        let mut merged: BTreeMap<u32, BatchSize> = BTreeMap::new();
        for (tokens, decode_in_graph, decode_eager, other_in_graph, other_eager) in sizes {
            let fits = captured.iter().find(|size| **size >= u64::from(tokens));
            let (in_graph, eager) = match fits {
                Some(_) => ((decode_in_graph, other_in_graph), (decode_eager, other_eager)),
                None => ((0, 0), (decode_in_graph + decode_eager, other_in_graph + other_eager)),
            };
            merged.insert(
                tokens,
                BatchSize {
                    tokens,
                    decode_in_graph: in_graph.0,
                    decode_eager: eager.0,
                    other_in_graph: in_graph.1,
                    other_eager: eager.1,
                },
            );
            if let Some(size) = fits.filter(|_| in_graph.0 + in_graph.1 > 0) {
                let name = format!("FULL num_tokens={size} num_reqs={size} uniform=1");
                let (count, ms) = usage.entry(name).or_default();
                *count += in_graph.0 + in_graph.1;
                *ms = 1.0 + ms_per_token * *size as f64 / 100.0;
            }
            usage.entry("NONE".to_owned()).or_default().0 += eager.0 + eager.1;
        }
        cuda_graphs::Summary {
            usage: usage
                .into_iter()
                .map(|(descriptor, (count, ms))| Usage {
                    descriptor,
                    count,
                    real_tokens: count,
                    padding_tokens: 0,
                    times: times(count, ms),
                })
                .collect(),
            captured: captured
                .iter()
                .map(|size| Captured {
                    descriptor: format!("FULL num_tokens={size} uniform=1"),
                    count: workers,
                    duration_ns: 2_000_000_000 * workers,
                })
                .collect(),
            sizes: merged.into_values().collect(),
            workers,
        }
    })
}

fn gpu() -> impl Strategy<Value = Vec<GpuTime>> {
    let worker =
        (amount(), 1u64..1_000_000_000, 0u64..500_000_000).prop_map(|(steps, busy_ns, idle_ns)| GpuTime {
            process: "worker-0".to_owned(),
            steps,
            busy_ns,
            idle_ns,
            decoding: Bubble { steps, busy_ns, idle_ns },
        });
    prop::collection::vec(worker, 0..3)
}

fn host() -> impl Strategy<Value = cpu::Summary> {
    (amount(), 0.0..10.0f64).prop_map(|(count, ms)| {
        let operations = [Name::OutputProcessing, Name::Scheduling];
        cpu::Summary {
            operations: operations.into_iter().filter_map(|name| Some((name, times(count, ms)?))).collect(),
        }
    })
}

fn pauses() -> impl Strategy<Value = Vec<Garbage>> {
    let of = (1u64..100, 0u64..9, 0.0..200.0f64).prop_map(|(young, oldest_count, ms)| Garbage {
        process: "worker-0".to_owned(),
        pid: 1,
        count: young + oldest_count,
        oldest_count,
        total_ms: young as f64 * ms / 20.0 + oldest_count as f64 * ms,
        oldest_total_ms: oldest_count as f64 * ms,
        max_ms: ms,
        p99_ms: ms,
        collected: 1,
    });
    prop::collection::vec(of, 0..3)
}

fn skews() -> impl Strategy<Value = Vec<Skew>> {
    let rank = (0.0..20.0f64, 0u64..300, 0u64..300, 0.0..4.0f64);
    let skew = (prop::collection::vec(rank, 0..4), amount(), any::<bool>(), prop::option::of(0.0..40.0f64));
    let skew = skew.prop_map(|(ranks, steps, are_stages, waiting_pct)| Skew {
        process: "engine_core-0".to_owned(),
        pid: 1,
        steps,
        are_stages,
        skew_ms: distribution(steps, 1.0),
        start_skew_ms: distribution(steps, 1.0),
        waiting_pct,
        ranks: ranks
            .into_iter()
            .zip(0..)
            .map(|((mean_forward_ms, slowest, last, mean_late_ms), rank)| Rank {
                process: format!("worker-{rank}"),
                rank,
                pid: rank,
                mean_forward_ms,
                slowest_steps: slowest.min(steps),
                last_steps: last.min(steps),
                mean_late_ms,
            })
            .collect(),
    });
    prop::collection::vec(skew, 0..3)
}

fn components() -> impl Strategy<Value = encoder_decoder::Summary> {
    let numbers = (amount(), amount(), 0.0..400.0f64, 0u64..90, 0u64..90, any::<bool>());
    numbers.prop_map(|(calls, steps, encoder_ms, no_room, no_budget, has_graphs)| encoder_decoder::Summary {
        model_type: Some(ModelType::VisionLanguage),
        components: vec![],
        times: [(Component::Encoder, times(calls, encoder_ms)), (Component::Decoder, times(steps, 10.0))]
            .into_iter()
            .filter_map(|(of, times)| Some((of, times?)))
            .collect(),
        rows: [calls, steps, 0],
        encoders: vec![EncoderSummary {
            context: "vision_encoder".to_owned(),
            calls,
            times: times(calls, encoder_ms),
            items: calls,
            tokens: 10 * calls,
        }],
        encoder_steps: calls.min(steps),
        of_encoder_steps_pct: None,
        graphs: has_graphs.then_some([calls, 0]),
        inputs: Some(Inputs { computed: calls, no_room, no_budget, ..Inputs::default() }),
        cross_attention: None,
    })
}

fn answers() -> impl Strategy<Value = Answers> {
    let profilers = (
        prop::option::weighted(0.9, batches()),
        prop::option::weighted(0.9, lives()),
        prop::option::weighted(0.9, blocks()),
        prop::option::weighted(0.9, graphs()),
        prop::option::weighted(0.9, host()),
    );
    let more = (gpu(), pauses(), skews(), prop::option::weighted(0.7, components()));
    (facts(), profilers, more).prop_map(|(facts, (batch, requests, kv_cache, cuda_graphs, cpu), more)| Answers {
        facts,
        garbage: more.1,
        ranks: more.2,
        encoder_decoder: more.3,
        batch,
        requests,
        kv_cache,
        cuda_graphs,
        cpu,
        gpu: more.0,
        ..Answers::default()
    })
}

/// Flag, direction, value and current value of all changes.
fn all(findings: &Findings) -> Vec<(&'static str, Direction, Option<f64>, Option<f64>)> {
    let number = |text: &Option<String>| text.as_ref().and_then(|text| text.parse().ok());
    let changes = findings.findings.iter().flat_map(|finding| &finding.changes);
    changes.map(|of| (of.flag, of.direction, number(&of.value), number(&of.current))).collect()
}

fn agrees_with_itself(answers: &Answers) -> Result<Findings, TestCaseError> {
    let findings = find(answers);
    prop_assert_eq!(&find(answers), &findings, "the same answers give the same findings");
    let ids: Vec<&str> = findings.findings.iter().map(|finding| finding.id).collect();
    prop_assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "one finding of a kind: {:?}", ids);
    let changes = all(&findings);
    let asks = |flag, direction| changes.iter().any(|of| of.0 == flag && of.1 == direction);

    let mut ways: BTreeMap<&str, Direction> = BTreeMap::new();
    for (flag, direction, value, current) in &changes {
        let before = ways.entry(flag).or_insert(*direction);
        prop_assert_eq!(*before, *direction, "{} goes two ways: {:?}", flag, ids);
        prop_assert!(flag.starts_with("--"), "{}", flag);
        if let (Some(value), Some(current)) = (value, current) {
            match direction {
                Direction::Raise => prop_assert!(value > current, "{} {} {}", flag, current, value),
                Direction::Lower => prop_assert!(value < current, "{} {} {}", flag, current, value),
                Direction::Set | Direction::Remove => {}
            }
        }
    }
    let sizes = changes.iter().filter(|of| of.0.contains("capture-size")).count();
    prop_assert!(sizes <= 1, "sizes of graphs are set twice: {:?}", ids);

    let raises_seqs = asks("--max-num-seqs", Direction::Raise);
    let raises_tokens = asks("--max-num-batched-tokens", Direction::Raise);
    if ids.contains(&"kv-cache-too-small") {
        prop_assert!(!raises_seqs && !raises_tokens, "more work for a cache that is too small");
        prop_assert!(!ids.contains(&"kv-cache-oversized"));
    }
    if raises_seqs && let Some(kv_cache) = &answers.kv_cache {
        for pool in &kv_cache.pools {
            let of = changes.iter().find(|of| of.0 == "--max-num-seqs").unwrap();
            let (Some(value), Some(current), Some(peak)) = (of.2, of.3, pool.peak_usage_pct()) else { continue };
            prop_assert!(
                peak.max(1.0) * value / current <= 85.0 + 1e-9,
                "{} % grows to {} of {}",
                peak,
                value,
                current
            );
        }
    }
    if asks("--gpu-memory-utilization", Direction::Lower) {
        prop_assert!(!raises_seqs && !raises_tokens, "less memory for more work: {:?}", ids);
        prop_assert!(sizes == 0, "less memory for more graphs: {:?}", ids);
    }
    if ids.contains(&"load-below-capacity") {
        let full = ["token-budget-exhausted", "max-num-seqs-too-low", "queue-at-capacity"];
        prop_assert!(full.iter().all(|id| !ids.contains(id)), "full and not full: {:?}", ids);
    }
    for finding in &findings.findings {
        prop_assert!(!finding.evidence.is_empty() && !finding.proof.is_empty(), "{}", finding.id);
        prop_assert!(finding.evidence.iter().all(|evidence| evidence.value.is_finite()), "{:?}", finding);
        prop_assert!(!finding.title.contains("NaN") && !finding.title.contains("inf"), "{}", finding.title);
    }
    let weights: Vec<Severity> = findings.findings.iter().map(|finding| finding.severity).collect();
    prop_assert!(weights.is_sorted_by(|a, b| a >= b), "{:?}", weights);
    let all_well = weights.iter().all(|severity| *severity == Severity::Info);
    prop_assert_eq!(findings.is_all_well(), all_well && findings.is_anything_judged());
    Ok(findings)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn advice_never_contradicts_itself(answers in answers()) {
        agrees_with_itself(&answers)?;
    }
}

#[test]
fn random_answers_make_every_rule_fire() {
    // Else the property above would hold for want of advice.
    let mut runner = TestRunner::deterministic();
    let mut seen = BTreeSet::new();
    for _ in 0..3000 {
        let answers = answers().new_tree(&mut runner).unwrap().current();
        seen.extend(find(&answers).findings.iter().map(|finding| finding.id));
    }
    let expected = [
        "capture-sizes-do-not-fit",
        "cpu-bound-decoding",
        "cuda-graph-coverage-low",
        "cuda-graphs-unused",
        "front-end-busy",
        "garbage-collection-pauses",
        "kv-cache-oversized",
        "kv-cache-too-small",
        "load-below-capacity",
        "max-num-seqs-too-low",
        "mixed-steps-eager",
        "prefix-cache-effect",
        "prefix-cache-resets",
        "prefix-cache-thrashes",
        "queue-at-capacity",
        "queue-cause-unknown",
        "queue-mixed-causes",
        "queue-structured-output",
        "queue-token-budget",
        "rank-late",
        "rank-slow",
        "token-budget-exhausted",
    ];
    let missing: Vec<&str> = expected.into_iter().filter(|id| !seen.contains(id)).collect();
    assert!(missing.is_empty(), "never fired: {missing:?}");
}
