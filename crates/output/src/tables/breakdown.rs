//! `breakdown.json`: where the time went, as totals, means and shares that add up.

use profilemate_analysis::Answers;
use profilemate_analysis::breakdown::{Breakdown, EngineTime, GpuTime, Part, Parts, WorkerTime};
use profilemate_analysis::cost::{Estimate, Fit, Group};
use profilemate_analysis::latency;
use profilemate_analysis::ranks::{Rank, Skew};
use profilemate_analysis::statistics::Distribution;
use profilemate_analysis::throughput::{Interval, Summary as Throughput};
use serde_json::{Map, Value};

use super::{number, object};

pub(super) const FILE: &str = "breakdown.json";

fn milliseconds(ns: u64) -> Option<Value> {
    number(ns as f64 / 1e6)
}

/// A part of a whole; `steps` are what its mean is over.
fn part(ns: u64, whole_ns: u64, steps: Option<u64>) -> Value {
    let share = (whole_ns > 0).then(|| 100.0 * ns as f64 / whole_ns as f64);
    let mean = steps.filter(|steps| *steps > 0).map(|steps| ns as f64 / 1e6 / steps as f64);
    object([
        ("total_ms", milliseconds(ns)),
        ("mean_ms", mean.and_then(number)),
        ("share_pct", share.and_then(number)),
    ])
}

/// The parts that took time; what is left is called `rest`.
fn parts(parts: &Parts, steps: Option<u64>, rest: &str) -> Value {
    let whole_ns = parts.total_ns();
    let named = parts.iter().map(|(of, ns)| {
        let name = if of == Part::Other { rest } else { of.text() };
        (name.to_owned(), part(ns, whole_ns, steps))
    });
    Value::Object(named.collect::<Map<_, _>>())
}

/// A whole and its parts, which add up to it.
fn divided(of: &Parts, steps: Option<u64>, rest: &str) -> Value {
    let whole_ns = of.total_ns();
    let mean = steps.filter(|steps| *steps > 0).map(|steps| whole_ns as f64 / 1e6 / steps as f64);
    object([
        ("count", steps.map(Value::from)),
        ("total_ms", milliseconds(whole_ns)),
        ("mean_ms", mean.and_then(number)),
        ("parts", Some(parts(of, steps, rest))),
    ])
}

/// A run as an engine sees it, or several together.
fn engine(engine: &EngineTime) -> [(&'static str, Option<Value>); 3] {
    let whole_ns = engine.wall_ns();
    let run = [
        ("before_first_step", engine.before_ns),
        ("engine_step", engine.step.total_ns()),
        ("between_steps", engine.between.total_ns()),
        ("engine_idle", engine.idle_ns),
        ("after_last_step", engine.after_ns),
    ];
    let run = run.map(|(name, ns)| (name.to_owned(), part(ns, whole_ns, None)));
    let run = object([
        ("total_ms", milliseconds(whole_ns)),
        ("parts", Some(Value::Object(run.into_iter().collect::<Map<_, _>>()))),
    ]);
    [
        ("run", Some(run)),
        ("engine_step", Some(divided(&engine.step, Some(engine.steps), "other"))),
        ("between_steps", Some(divided(&engine.between, None, "other"))),
    ]
}

fn gpu(gpu: &GpuTime) -> Value {
    let whole_ns = gpu.total_ns();
    let parts = [
        ("encoder", gpu.encoder_ns),
        ("forward", gpu.forward_ns),
        ("sampling", gpu.sampling_ns),
        ("drafting", gpu.drafting_ns),
        ("other_busy", gpu.other_ns),
        ("bubble", gpu.bubble_ns),
        ("no_work", gpu.no_work_ns),
    ];
    let parts = parts
        .into_iter()
        .filter(|(_, ns)| *ns > 0)
        .map(|(name, ns)| (name.to_owned(), part(ns, whole_ns, Some(gpu.steps))));
    object([
        ("count", Some(gpu.steps.into())),
        ("total_ms", milliseconds(whole_ns)),
        ("busy_ms", milliseconds(gpu.busy_ns())),
        ("bubble_pct", gpu.bubble_pct().and_then(number)),
        ("parts", Some(Value::Object(parts.collect::<Map<_, _>>()))),
    ])
}

fn worker(worker: &WorkerTime) -> Value {
    object([
        ("process", Some(worker.process.as_str().into())),
        ("rank", Some(worker.rank.into())),
        ("pid", Some(worker.pid.into())),
        ("host", Some(divided(&worker.host, Some(worker.steps), "waiting"))),
        ("gpu", worker.gpu.as_ref().map(gpu)),
    ])
}

/// Mean and percentiles, each under its name and the unit.
fn distribution(of: &Distribution, unit: &str) -> Value {
    let values =
        [("mean", of.mean), ("p50", of.p50), ("p90", of.p90), ("p95", of.p95), ("p99", of.p99), ("max", of.max)];
    let values = values.into_iter().filter_map(|(name, value)| Some((format!("{name}_{unit}"), number(value)?)));
    Value::Object(values.collect::<Map<_, _>>())
}

fn request_latency(summary: &latency::Summary) -> Value {
    let parts = summary.parts.iter().map(|(part, times)| {
        let mut value = distribution(times, "sec");
        if let Value::Object(entries) = &mut value {
            let total = number(summary.totals_ns[*part as usize] as f64 / 1e9);
            entries.extend(total.map(|total| ("total_sec".to_owned(), total)));
            let share = summary.share_pct(*part).and_then(number);
            entries.extend(share.map(|share| ("share_pct".to_owned(), share)));
        }
        (part.text().to_owned(), value)
    });
    object([
        ("count", Some(summary.requests.into())),
        ("total_sec", number(summary.total_ns() as f64 / 1e9)),
        ("mean_sec", number(summary.total_ns() as f64 / 1e9 / summary.requests as f64)),
        ("parts", Some(Value::Object(parts.collect::<Map<_, _>>()))),
    ])
}

fn throughput(summary: &Throughput) -> Option<Value> {
    let generated = |interval: &Interval| interval.per_second(interval.generated_tokens?);
    let interval = |interval: &Interval| {
        object([
            ("start_sec", number(interval.start_ns as f64 / 1e9)),
            ("length_sec", number(interval.length_ns as f64 / 1e9)),
            ("engine_steps", Some(interval.steps.into())),
            ("prefill_tokens", Some(interval.prefill_tokens.into())),
            ("generated_tokens", interval.generated_tokens.map(Value::from)),
            ("finished_requests", interval.finished_requests.map(Value::from)),
            ("prefill_tokens_per_sec", interval.per_second(interval.prefill_tokens).and_then(number)),
            ("generated_tokens_per_sec", generated(interval).and_then(number)),
            ("mean_running", interval.mean_running().and_then(number)),
            ("mean_waiting", interval.mean_waiting().and_then(number)),
        ])
    };
    (!summary.intervals.is_empty()).then(|| {
        object([
            ("interval_sec", number(summary.interval_ns as f64 / 1e9)),
            ("intervals", Some(summary.intervals.iter().map(interval).collect())),
        ])
    })
}

fn skew(skew: &Skew) -> Value {
    let rank = |rank: &Rank| {
        object([
            ("process", Some(rank.process.as_str().into())),
            ("rank", Some(rank.rank.into())),
            ("pid", Some(rank.pid.into())),
            ("mean_forward_ms", number(rank.mean_forward_ms)),
            ("slowest_steps", Some(rank.slowest_steps.into())),
            ("last_steps", Some(rank.last_steps.into())),
            ("mean_late_ms", number(rank.mean_late_ms)),
        ])
    };
    object([
        ("process", Some(skew.process.as_str().into())),
        ("pid", Some(skew.pid.into())),
        ("steps", Some(skew.steps.into())),
        ("are_stages", Some(skew.are_stages.into())),
        ("skew", Some(distribution(&skew.skew_ms, "ms"))),
        ("start_skew", Some(distribution(&skew.start_skew_ms, "ms"))),
        ("waiting_pct", skew.waiting_pct.and_then(number)),
        ("ranks", Some(skew.ranks.iter().map(rank).collect())),
    ])
}

fn fit(fit: &Fit) -> Value {
    let (phase, mode) = match &fit.group {
        Group::Phase(phase) => (Some(phase.text()), None),
        Group::CudaGraphMode(mode) => (None, Some(mode.as_str())),
    };
    let value = |estimate: Option<Estimate>| estimate.and_then(|estimate| number(estimate.value));
    let error = |estimate: Option<Estimate>| estimate.and_then(|estimate| number(estimate.error));
    object([
        ("process", Some(fit.process.as_str().into())),
        ("phase", phase.map(Value::from)),
        ("cudagraph_mode", mode.map(Value::from)),
        ("steps", Some(fit.steps.into())),
        ("left_out", Some(fit.left_out.into())),
        ("r_squared", number(fit.r_squared)),
        ("base_ms", number(fit.base_ms)),
        ("prefill_token_us", value(fit.prefill_token_us)),
        ("prefill_token_error_us", error(fit.prefill_token_us)),
        ("decode_sequence_us", value(fit.decode_sequence_us)),
        ("decode_sequence_error_us", error(fit.decode_sequence_us)),
    ])
}

/// What of it is known; `None` when nothing is.
pub(super) fn document(answers: &Answers) -> Option<Value> {
    let mut entries = Map::new();
    let mut put = |key: &str, value: Option<Value>| entries.extend(value.map(|value| (key.to_owned(), value)));
    if let Some(breakdown) = &answers.breakdown {
        times(breakdown, &mut put);
    }
    put("forward", answers.layers.as_ref().and_then(super::layers::forward));
    let latency = answers.requests.as_ref().and_then(|requests| requests.latency.as_ref());
    put("request_latency", latency.map(request_latency));
    put("iterations", answers.iterations.as_ref().map(super::forward_pass::summary));
    put("throughput", throughput(&answers.throughput));
    let some = |list: Vec<Value>| (!list.is_empty()).then_some(Value::Array(list));
    put("ranks", some(answers.ranks.iter().map(skew).collect()));
    put("forward_cost", some(answers.cost.iter().map(fit).collect()));
    (!entries.is_empty()).then_some(Value::Object(entries))
}

fn times(breakdown: &Breakdown, put: &mut impl FnMut(&str, Option<Value>)) {
    put("wall_ms", milliseconds(breakdown.wall_ns));
    let engines = &breakdown.engines;
    put("engines", Some(engines.len().into()));
    put("engine_steps", Some(engines.iter().map(|engine| engine.steps).sum::<u64>().into()));
    for (key, value) in engine(&EngineTime::sum(engines.iter())) {
        put(key, value);
    }
    if engines.len() > 1 {
        let one = |of: &EngineTime| {
            let [run, step, between] = engine(of);
            let process = ("process", Some(of.process.as_str().into()));
            object([process, ("pid", Some(of.pid.into())), run, step, between])
        };
        put("by_engine", Some(engines.iter().map(one).collect()));
    }
    put("workers", Some(breakdown.workers.iter().map(worker).collect()));
    let front_end = |front_end: &profilemate_analysis::breakdown::FrontEndTime| {
        object([
            ("process", Some(front_end.process.as_str().into())),
            ("pid", Some(front_end.pid.into())),
            ("output_processing_ms", milliseconds(front_end.output_processing_ns)),
            ("detokenization_ms", milliseconds(front_end.detokenization_ns)),
            ("tokenization_ms", milliseconds(front_end.tokenization_ns)),
        ])
    };
    put("front_ends", Some(breakdown.front_ends.iter().map(front_end).collect()));
}
