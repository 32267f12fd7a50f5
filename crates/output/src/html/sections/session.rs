//! What ran, what was recorded, and what the recording cost.

use profilemate_analysis::Answers;
use profilemate_session::Session;

use crate::date::iso8601;
use crate::html::model::{Block, Section, Table, number, share, text};
use crate::numbers::grouped;

/// Most damages, hooks and processes that are listed; metadata.json has all.
const MOST: usize = 200;

/// The profiler's own cost.
pub(in crate::html) fn cost(session: &Session, answers: &Answers) -> Section {
    let mut section = Section::new("profiler", "The profiler's own cost").lead(format!(
        "{} records were written, {} lost, {} damaged; probes failed {} times.",
        grouped(session.records_written()),
        grouped(session.records_lost()),
        grouped(session.records_damaged()),
        grouped(answers.probe_errors)
    ));
    let columns = vec![
        text("process"),
        text("pid"),
        number("mean us per step", 3),
        number("p99 us per step", 3),
        share("of its steps' time %"),
    ];
    let mut table =
        Table::new("Time in the probes", columns).note("Measured in the processes themselves, at every step.");
    table.columns[4].digits = 3;
    for cost in &answers.overhead {
        table.row(vec![
            cost.process.as_str().into(),
            cost.pid.to_string().into(),
            (cost.mean_ns_per_step / 1e3).into(),
            (cost.p99_ns_per_step / 1e3).into(),
            cost.share_of_step_pct.into(),
        ]);
    }
    if table.rows.is_empty() {
        section.push(Block::Sentence { text: "No step was recorded that would tell it.".into() });
    } else {
        section.push(table);
    }
    if !session.damage.is_empty() {
        let mut table = Table::new("Damage", vec![text("file"), text("what")]);
        for damage in session.damage.iter().take(MOST) {
            table.row(vec![damage.file.as_str().into(), damage.what.as_str().into()]);
        }
        section.push(table);
    }
    section
}

/// What ran.
pub(in crate::html) fn facts(session: &Session, answers: &Answers) -> Section {
    let mut section = Section::new("session", "Session");
    let facts = &answers.facts;
    let counters = &answers.counters;
    let start_ns = session.start.realtime_ns;
    let date = |offset_ns: u64| (start_ns > 0).then(|| iso8601(start_ns.saturating_add(offset_ns)));
    let count = |value: Option<u64>| value.map(grouped);
    let mut table = Table::new("Facts", vec![text("what"), text("value")]);
    for (what, value) in [
        ("session", Some(session.id())),
        ("model", facts.model.clone()),
        ("vLLM", facts.vllm_version.clone()),
        ("torch", facts.torch_version.clone()),
        ("GPU", facts.gpu_name.clone()),
        ("GPUs", facts.gpu_count.map(|count| count.to_string())),
        ("driver", facts.gpu_driver.clone()),
        ("command", facts.command.clone()),
        ("began", date(0)),
        ("ended", date(answers.duration_ns)),
        ("forward passes timed by", facts.timing_mode.clone()),
        ("evictions of KV cache blocks", facts.kv_evictions.clone()),
        ("made from", facts.source.clone()),
        ("engine steps", Some(grouped(counters.engine_steps))),
        ("empty schedules", Some(grouped(counters.empty_schedules))),
        ("iterations", count(counters.iterations)),
        ("prompt tokens", count(counters.prompt_tokens)),
        ("generated tokens", count(counters.generation_tokens)),
        ("finished requests", count(counters.finished_requests)),
        ("preemptions", count(counters.preemptions)),
    ] {
        if let Some(value) = value {
            table.row(vec![what.into(), value.into()]);
        }
    }
    for (reason, requests) in &counters.finished_by_reason {
        table.row(vec![format!("finished: {}", super::named(reason)).into(), grouped(*requests).into()]);
    }
    section.push(table);
    let columns =
        vec![text("process"), text("pid"), number("began at s", 3), number("ended at s", 3), text("how it ended")];
    let mut table = Table::new("Processes", columns);
    for process in answers.processes.iter().take(MOST) {
        let at = |ns: Option<u64>| ns.map(|ns| ns as f64 / 1e9);
        table.row(vec![
            format!("{}-{}", process.role, process.rank).into(),
            process.pid.to_string().into(),
            at(process.started_ns).into(),
            at(process.ended_ns).into(),
            crate::metadata::ending(process.ending).into(),
        ]);
    }
    section.push(table);
    let mut table = Table::new("Profilers", vec![text("profiler"), text("state")]);
    for (profiler, state) in &facts.profilers {
        table.row(vec![profiler.as_str().into(), state.as_str().into()]);
    }
    if !table.rows.is_empty() {
        section.push(table);
    }
    let mut table = Table::new("Hooks", vec![text("hook"), text("what it is in this version")]).folded();
    for (hook, what) in facts.hooks.iter().take(MOST) {
        table.row(vec![hook.as_str().into(), what.as_str().into()]);
    }
    if !table.rows.is_empty() {
        section.push(table);
    }
    section
}
