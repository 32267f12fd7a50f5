//! Where the time went.

use std::cmp::Reverse;

use profilemate_analysis::Answers;
use profilemate_analysis::breakdown::{EngineTime, GpuTime, Part, Parts};

use super::share_of;
use crate::html::model::{Column, Section, Table, number, share, text};

/// A part, for people.
fn name(part: Part) -> String {
    match part {
        Part::ModelOther => "model, other".to_owned(),
        part => part.text().replace('_', " "),
    }
}

/// The columns of a table of parts.
fn columns(of: &str, each: &str) -> Vec<Column> {
    vec![text(of), share("share %"), number(each, 4), number("total s", 3)]
}

/// Parts that add up, the largest first.
fn parts(table: &mut Table, of: &Parts, count: u64) {
    let whole_ns = of.total_ns();
    let mut parts: Vec<(Part, u64)> = of.iter().collect();
    parts.sort_by_key(|(_, ns)| Reverse(*ns));
    for (part, ns) in parts {
        put(table, &name(part), ns, whole_ns, count);
    }
}

fn put(table: &mut Table, name: &str, ns: u64, whole_ns: u64, count: u64) {
    let each_ms = (count > 0).then(|| ns as f64 / 1e6 / count as f64);
    table.row(vec![name.into(), share_of(ns, whole_ns).into(), each_ms.into(), (ns as f64 / 1e9).into()]);
}

fn run(title: &str, of: &EngineTime) -> Table {
    let columns = vec![text("the run"), share("share %"), number("total s", 3)];
    let mut table = Table::new(title, columns);
    let wall_ns = of.wall_ns();
    for (name, ns) in [
        ("before the first step: loading, warm-up", of.before_ns),
        ("in engine steps", of.step.total_ns()),
        ("between steps, with requests", of.between.total_ns()),
        ("idle, without a request", of.idle_ns),
        ("after the last step", of.after_ns),
    ] {
        table.row(vec![name.into(), share_of(ns, wall_ns).into(), (ns as f64 / 1e9).into()]);
    }
    table
}

fn gpu(process: &str, of: &GpuTime) -> Table {
    let mut table = Table::new(format!("GPU of {process}"), columns("GPU time", "mean ms per step"))
        .note("By the GPU's own clock. A bubble: nothing to do between two steps, while the engine had requests.");
    let whole_ns = of.total_ns();
    for (name, ns) in [
        ("encoder", of.encoder_ns),
        ("forward", of.forward_ns),
        ("sampling", of.sampling_ns),
        ("drafting", of.drafting_ns),
        ("other work of steps", of.other_ns),
        ("bubbles", of.bubble_ns),
        ("no work", of.no_work_ns),
    ] {
        if ns > 0 {
            put(&mut table, name, ns, whole_ns, of.steps);
        }
    }
    table
}

pub(in crate::html) fn section(answers: &Answers) -> Option<Section> {
    let breakdown = answers.breakdown.as_ref().filter(|breakdown| !breakdown.engines.is_empty())?;
    let mut section = Section::new("breakdown", "Where the time went")
        .lead("Each table divides one time into parts that add up to it; a nanosecond counts once.");
    let all = EngineTime::sum(breakdown.engines.iter());
    let several = breakdown.engines.len() > 1;
    let whose = if several { "all engines, one behind the other".to_owned() } else { String::new() };
    let titled = |title: &str| if several { format!("{title}: {whose}") } else { title.to_owned() };
    section.push(run(&titled("Wall time of the run"), &all));
    if all.steps > 0 {
        let mut table = Table::new(titled("Engine steps"), columns("part of a step", "mean ms per step"));
        parts(&mut table, &all.step, all.steps);
        section.push(table);
    }
    if several {
        for engine in &breakdown.engines {
            section.push(run(&format!("Wall time of the run: {}", engine.process), engine).folded());
            let title = format!("Engine steps: {}", engine.process);
            let mut table = Table::new(title, columns("part of a step", "mean ms per step")).folded();
            parts(&mut table, &engine.step, engine.steps);
            section.push(table);
        }
    }
    for (at, worker) in breakdown.workers.iter().enumerate() {
        if let Some(times) = &worker.gpu {
            let table = gpu(&worker.process, times);
            section.push(if at == 0 { table } else { table.folded() });
        }
    }
    // The layers' own section says more; here it is one of the tables of where time went.
    section.blocks.extend(answers.layers.as_ref().and_then(super::layers::parts).map(Into::into));
    for worker in breakdown.workers.iter().filter(|worker| worker.steps > 0) {
        let title = format!("Host of {}", worker.process);
        let mut table = Table::new(title, columns("part of the host's time", "mean ms per step"))
            .note("From its first step to its last. Other: nothing of it is known; as a rule it waits for the engine.")
            .folded();
        parts(&mut table, &worker.host, worker.steps);
        section.push(table);
    }
    let columns = vec![
        text("front end"),
        number("output processing s", 3),
        number("of it detokenization s", 3),
        number("tokenization s", 3),
    ];
    let mut table = Table::new("Front ends", columns).note("Beside the engines, at the same time.").folded();
    for front_end in &breakdown.front_ends {
        let times = [front_end.output_processing_ns, front_end.detokenization_ns, front_end.tokenization_ns];
        if times.iter().any(|ns| *ns > 0) {
            let [processing, detokenization, tokenization] = times.map(|ns| (ns as f64 / 1e9).into());
            table.row(vec![front_end.process.as_str().into(), processing, detokenization, tokenization]);
        }
    }
    if !table.rows.is_empty() {
        section.push(table);
    }
    Some(section)
}
