//! `metadata.json`: what was recorded, by whom, and how much of it can be trusted.

use profilemate_analysis::Answers;
use profilemate_analysis::forward::GpuTime;
use profilemate_analysis::overhead::Overhead;
use profilemate_analysis::processes::{Ending, Process};
use profilemate_session::Session;
use serde_json::{Map, Value, json};

use crate::date::iso8601;
use crate::tables::{named, number, object};

pub(crate) const FILE: &str = "metadata.json";

/// The document; a key without a known value is absent.
pub(crate) fn metadata(session: &Session, answers: &Answers) -> Value {
    let facts = &answers.facts;
    let text = |value: &Option<String>| value.clone().map(Value::String);
    let start_ns = session.start.realtime_ns;
    let date = |offset_ns: u64| (start_ns > 0).then(|| Value::String(iso8601(start_ns.saturating_add(offset_ns))));
    let gpu = object([
        ("name", text(&facts.gpu_name)),
        ("driver", text(&facts.gpu_driver)),
        ("count", facts.gpu_count.map(Value::from)),
    ]);
    let counters = &answers.counters;
    let mut document = object([
        ("session_id", Some(session.id().into())),
        ("start_time", date(0)),
        ("end_time", date(answers.duration_ns)),
        ("output_dir", Some(session.folder.to_string_lossy().into_owned().into())),
        ("source", text(&facts.source)),
        ("time_error_ms", facts.time_error_ms.and_then(number)),
        ("vllm_version", text(&facts.vllm_version)),
        ("torch_version", text(&facts.torch_version)),
        ("gpu", gpu.as_object().is_some_and(|gpu| !gpu.is_empty()).then_some(gpu)),
        ("model", text(&facts.model)),
        ("command", text(&facts.command)),
        ("processes", Some(answers.processes.iter().map(process).collect())),
        ("profilers", Some(strings(&facts.profilers))),
        ("hooks", Some(strings(&facts.hooks))),
        ("timing_mode", text(&facts.timing_mode)),
        ("records_written", Some(session.records_written().into())),
        ("records_lost", Some(session.records_lost().into())),
        ("overhead", Some(overhead(&answers.overhead))),
    ]);
    let mut tail = json!({
        "records_damaged": session.records_damaged(),
        "damage": session
            .damage
            .iter()
            .map(|damage| json!({"file": damage.file, "what": damage.what}))
            .collect::<Vec<_>>(),
        "counters": {
            "engine_steps": counters.engine_steps,
            "empty_schedules": counters.empty_schedules,
        },
        "probe_errors": answers.probe_errors,
        "gpu_time": gpu_time(&answers.gpu),
    });
    // What was not recorded is not counted.
    let by_reason = || counters.finished_by_reason.iter().map(|(why, count)| (named(why), Value::from(*count)));
    for (key, value) in [
        ("iterations", counters.iterations.map(Value::from)),
        ("prompt_tokens", counters.prompt_tokens.map(Value::from)),
        ("generation_tokens", counters.generation_tokens.map(Value::from)),
        ("finished_requests", counters.finished_requests.map(Value::from)),
        ("finished_by_reason", answers.requests.as_ref().map(|_| Value::Object(by_reason().collect()))),
        ("preemptions", counters.preemptions.map(Value::from)),
        ("prefix_cache_queries", counters.prefix_query_tokens.map(Value::from)),
        ("prefix_cache_hits", counters.prefix_hit_tokens.map(Value::from)),
    ] {
        if let Some(value) = value {
            tail["counters"][key] = value;
        }
    }
    if !facts.settings.is_empty() {
        tail["settings"] = strings(&facts.settings);
    }
    if let Some(state) = &facts.kv_evictions {
        tail["kv_evictions"] = state.as_str().into();
    }
    if let (Some(document), Value::Object(tail)) = (document.as_object_mut(), tail) {
        document.extend(facts.flags.iter().map(|(flag, on)| (flag.clone(), Value::Bool(*on))));
        document.extend(tail);
    }
    document
}

fn gpu_time(times: &[GpuTime]) -> Value {
    let milliseconds = |nanoseconds: u64| number(nanoseconds as f64 / 1e6);
    times
        .iter()
        .map(|gpu| {
            object([
                ("process", Some(gpu.process.clone().into())),
                ("steps", Some(gpu.steps.into())),
                ("busy_ms", milliseconds(gpu.busy_ns)),
                ("idle_between_steps_ms", milliseconds(gpu.idle_ns)),
                ("idle_pct", gpu.idle_pct().and_then(number)),
            ])
        })
        .collect()
}

fn strings(pairs: &[(String, String)]) -> Value {
    Value::Object(pairs.iter().map(|(key, value)| (key.clone(), Value::String(value.clone()))).collect())
}

fn process(process: &Process) -> Value {
    let seconds = |nanoseconds: u64| number(nanoseconds as f64 / 1e9);
    object([
        ("role", Some(process.role.clone().into())),
        ("rank", Some(process.rank.into())),
        // Nobody has the number 0: it stands for one that is not known.
        ("pid", (process.pid != 0).then(|| process.pid.into())),
        ("started", process.started_ns.and_then(seconds)),
        ("ended", process.ended_ns.and_then(seconds)),
        ("how_it_ended", (process.ending != Ending::Unknown).then(|| ending(process.ending).into())),
    ])
}

/// How a process ended, in words.
pub(crate) fn ending(ending: Ending) -> String {
    match ending {
        Ending::Running => "running".to_owned(),
        Ending::Closed => "closed".to_owned(),
        Ending::Exited(code) => format!("exited with code {code}"),
        Ending::Signal(signal) => format!("killed by {}", signal_name(signal)),
        Ending::Gone => "killed or crashed".to_owned(),
        Ending::Unknown => "end not known".to_owned(),
    }
}

/// The name of a signal; numbers are those of Linux on every processor that vLLM runs on.
fn signal_name(signal: u64) -> String {
    let name = match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        15 => "SIGTERM",
        _ => return format!("signal {signal}"),
    };
    name.to_owned()
}

fn overhead(costs: &[Overhead]) -> Value {
    let mut document = Map::new();
    for cost in costs {
        // An engine that was started again has the same name: its pid tells the two apart.
        let twice = costs.iter().filter(|other| other.process == cost.process).count() > 1;
        let name = if twice { format!("{}-{}", cost.process, cost.pid) } else { cost.process.clone() };
        document.insert(
            name,
            object([
                ("mean_ns_per_step", number(cost.mean_ns_per_step)),
                ("p99_ns_per_step", number(cost.p99_ns_per_step)),
                ("share_of_step_pct", cost.share_of_step_pct.and_then(number)),
            ]),
        );
    }
    Value::Object(document)
}
