//! Throughput, queues, batches and how long steps take, over the time of the run.

use std::collections::BTreeMap;

use profilemate_analysis::Answers;
use profilemate_analysis::batch::{Batch, UNDERUTILIZED_PCT, percent};
use profilemate_analysis::cost::{Estimate, Group};
use profilemate_analysis::cpu::Operation;
use profilemate_analysis::forward::Pass;
use profilemate_analysis::steps::Phase;
use profilemate_analysis::throughput::Interval;
use profilemate_session::Name;

use super::{
    BUCKETS, INTERVALS, SHORTEST_INTERVAL_NS, chart, histogram, length, marks_of_times, named, seconds, times,
    times_columns,
};
use crate::html::model::{Block, Cell, Chart, Number, Section, Style, Table, number, share, text};
use crate::html::sampling::{Buckets, Counts, Histogram, Sampled};

/// What limits batches that is told apart over time; what comes later is one.
const LIMITS: usize = 12;

/// Title and unit of a chart, and its series by name.
type Rates = (&'static str, &'static str, Vec<(&'static str, Vec<Number>)>);

/// What is gathered of steps.
pub(in crate::html) struct Gathered {
    queue: Sampled<2>,
    utilization: Sampled<2>,
    tokens: Sampled<2>,
    limits: BTreeMap<String, usize>,
    limited: Buckets<Counts<LIMITS>>,
    durations: Sampled<1>,
    duration_times: Histogram,
    forward: Sampled<3>,
    forward_times: [Histogram; 3],
    bubbles: Sampled<1>,
    /// First and last moment of work, nanoseconds.
    range_ns: Option<(i64, i64)>,
}

impl Gathered {
    pub(in crate::html) fn new() -> Self {
        Self {
            queue: Sampled::new(BUCKETS),
            utilization: Sampled::new(BUCKETS),
            tokens: Sampled::new(BUCKETS),
            limits: BTreeMap::new(),
            limited: Buckets::new(SHORTEST_INTERVAL_NS, INTERVALS),
            durations: Sampled::new(BUCKETS),
            duration_times: Histogram::new(),
            forward: Sampled::new(BUCKETS),
            forward_times: [Histogram::new(), Histogram::new(), Histogram::new()],
            bubbles: Sampled::new(BUCKETS),
            range_ns: None,
        }
    }

    #[inline]
    fn reach(&mut self, from_ns: i64, to_ns: i64) {
        let (first, last) = self.range_ns.unwrap_or((from_ns, to_ns));
        self.range_ns = Some((first.min(from_ns), last.max(to_ns)));
    }

    /// First and last moment of work, nanoseconds.
    pub(in crate::html) fn range_ns(&self) -> Option<(i64, i64)> {
        self.range_ns
    }

    pub(in crate::html) fn see_batch(&mut self, batch: &Batch<'_>) {
        let at_ns = batch.start_ns;
        self.reach(at_ns, at_ns);
        let count = |value: Option<u32>| value.map_or(f64::NAN, f64::from);
        if batch.running.is_some() || batch.waiting.is_some() {
            self.queue.push(at_ns, [count(batch.running), count(batch.waiting)]);
        }
        if let Some(limits) = batch.limits {
            let share = |part: u32, whole| percent(u64::from(part), whole).unwrap_or(f64::NAN);
            let seqs = share(batch.num_seqs, limits.max_num_seqs);
            self.utilization.push(at_ns, [seqs, share(batch.num_tokens, limits.max_num_tokens)]);
        }
        let prefill = f64::from(batch.prefill_tokens);
        self.tokens.push(at_ns, [prefill, f64::from(batch.num_tokens.saturating_sub(batch.prefill_tokens))]);
        let limited_by = named(batch.limited_by.unwrap_or(""));
        let place = if let Some(place) = self.limits.get(limited_by) {
            *place
        } else {
            let place = self.limits.len().min(LIMITS - 1);
            let name = if place == LIMITS - 1 { "others" } else { limited_by };
            self.limits.insert(name.to_owned(), place);
            place
        };
        self.limited.at(at_ns).0[place] += 1;
    }

    pub(in crate::html) fn see_operation(&mut self, operation: &Operation<'_>) {
        if operation.name == Name::EngineStep {
            self.reach(operation.start_ns, operation.start_ns.saturating_add_unsigned(operation.duration_ns));
            self.durations.push(operation.start_ns, [operation.duration_ns as f64 / 1e6]);
            self.duration_times.push(operation.duration_ns);
        }
    }

    pub(in crate::html) fn see_pass(&mut self, pass: &Pass<'_>) {
        self.reach(pass.start_ns, pass.start_ns);
        if let (Some(duration_ns), Some(phase)) = (pass.duration_ns, pass.phase) {
            let mut values = [f64::NAN; 3];
            values[phase as usize] = duration_ns as f64 / 1e6;
            self.forward.push(pass.start_ns, values);
            self.forward_times[phase as usize].push(duration_ns);
        }
        if let Some(idle_ns) = pass.gpu_idle_ns {
            self.bubbles.push(pass.start_ns, [idle_ns as f64 / 1e6]);
        }
    }

    /// Work over time, and who waited for it.
    pub(in crate::html) fn throughput(&mut self, answers: &Answers) -> Option<Section> {
        let mut section = Section::new("throughput", "Throughput and queue");
        let throughput = &answers.throughput;
        let end_ns = |interval: &Interval| interval.start_ns + interval.length_ns;
        // A rate over next to nothing is no rate.
        let is_short = |last: &&Interval| last.length_ns < throughput.interval_ns / 10;
        let short = throughput.intervals.last().filter(is_short);
        let intervals = &throughput.intervals[..throughput.intervals.len() - usize::from(short.is_some())];
        let left_out = short.map_or(String::new(), |last| {
            format!(" The last {} are left out.", length(i64::try_from(last.length_ns).unwrap_or(i64::MAX)))
        });
        let x: Vec<Number> = intervals
            .iter()
            .map(|interval| seconds(i64::try_from(interval.start_ns).unwrap_or(i64::MAX)))
            .collect();
        let rates = |of: fn(&Interval) -> Option<u64>| -> Vec<Number> {
            let rate = |interval| of(interval).and_then(|count| interval.per_second(count));
            intervals.iter().map(|interval| Number(rate(interval).unwrap_or(f64::NAN))).collect()
        };
        let width_ns = i64::try_from(throughput.interval_ns).unwrap_or(i64::MAX);
        let charts: [Rates; 2] = [
            (
                "Tokens per second",
                "tokens/s",
                vec![
                    ("new tokens", rates(|interval| interval.generated_tokens)),
                    ("prompt tokens", rates(|interval| Some(interval.prefill_tokens))),
                ],
            ),
            (
                "Requests finished per second",
                "requests/s",
                vec![("requests", rates(|interval| interval.finished_requests))],
            ),
        ];
        for (title, unit, series) in charts {
            let series: Vec<_> =
                series.into_iter().filter(|(_, values)| values.iter().any(|value| value.0 > 0.0)).collect();
            if series.is_empty() {
                continue;
            }
            let last = intervals.last();
            let (names, y) = series.into_iter().map(|(name, values)| (name.into(), values)).unzip();
            section.push(Chart {
                title: title.into(),
                means: None,
                note: Some(format!("Means over intervals of {}.{left_out}", length(width_ns)).into()),
                unit,
                style: Style::Steps,
                names,
                x: x.clone(),
                y,
                length: last.map(|last| Number((end_ns(last) - last.start_ns) as f64 / 1e9)),
                most: None,
                digits: 1,
            });
        }
        let queue = std::mem::replace(&mut self.queue, Sampled::new(1));
        let names = ["running", "waiting"];
        if let Some(mut queue) = chart("Requests in the scheduler", "requests", Style::Line, names, queue) {
            queue.digits = 0;
            section.push(queue);
        }
        (!section.blocks.is_empty()).then_some(section)
    }

    /// How full batches are, and why not fuller.
    pub(in crate::html) fn batches(&mut self, answers: &Answers) -> Option<Section> {
        let summary = answers.batch.as_ref().filter(|summary| summary.total_samples > 0)?;
        let mut section = Section::new("batches", "Batch utilization").lead(
            "How full each step's batch was against the scheduler's limits, and what kept it from being larger.",
        );
        let mut means = Table::new("Utilization", vec![text("of"), share("mean %"), number("limit", 0)]);
        means.row(vec![
            "sequences".into(),
            summary.mean_seq_utilization_pct.into(),
            summary.limits.map(|limits| limits.max_num_seqs).into(),
        ]);
        let max_tokens = summary.limits.map(|limits| limits.max_num_tokens);
        means.row(vec!["tokens".into(), summary.mean_token_utilization_pct.into(), max_tokens.into()]);
        for (phase, mean) in &summary.phases {
            means.row(vec![
                format!("tokens, {} steps", phase.text()).into(),
                Some(*mean).into(),
                max_tokens.into(),
            ]);
        }
        if summary.mean_token_utilization_pct.is_some() {
            let under = percent(summary.underutilization_events, summary.total_samples);
            means = means.note(format!(
                "{:.1} % of the steps have less than {UNDERUTILIZED_PCT:.0} % of the tokens that they may have.",
                under.unwrap_or(0.0)
            ));
        }
        section.push(means);
        self.limited_by(answers, &mut section);
        let mut put = |title, unit, names, sampled: &mut Sampled<2>, most, digits| {
            let sampled = std::mem::replace(sampled, Sampled::new(1));
            if let Some(mut chart) = chart(title, unit, Style::Line, names, sampled) {
                chart.most = most;
                chart.digits = digits;
                section.push(chart);
            }
        };
        let names = ["sequences", "tokens"];
        put("Share of the limit in use", "%", names, &mut self.utilization, Some(Number(100.0)), 1);
        put("Tokens of each step", "tokens", ["prefill", "decode"], &mut self.tokens, None, 0);
        Some(section)
    }

    fn limited_by(&self, answers: &Answers, section: &mut Section) {
        let Some(summary) = &answers.batch else { return };
        let all: u64 = summary.limited_by.values().sum();
        if all == 0 {
            return;
        }
        let mut counts: Vec<(&String, &u64)> = summary.limited_by.iter().collect();
        counts.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let columns = vec![text("limited by"), share("of steps %"), number("steps", 0)];
        let mut table = Table::new("What kept batches from being larger", columns);
        for (what, count) in counts {
            table.row(vec![named(what).into(), percent(*count, all).into(), (*count).into()]);
        }
        section.push(table);
        if self.limits.len() < 2 {
            return;
        }
        let rows: Vec<(i64, Counts<LIMITS>)> = self.limited.iter().map(|(at, counts)| (at, *counts)).collect();
        let width_ns = self.limited.width_ns();
        let share = |counts: &Counts<LIMITS>, place: usize| {
            Number(percent(counts.0[place], counts.0.iter().sum()).unwrap_or(f64::NAN))
        };
        let mut names: Vec<(&String, usize)> = self.limits.iter().map(|(name, place)| (name, *place)).collect();
        names.sort_by_key(|(_, place)| *place);
        names.dedup_by_key(|(_, place)| *place);
        section.push(Chart {
            title: "What limited batches, over time".into(),
            means: None,
            note: Some(format!("Shares of the steps in each {}.", length(width_ns)).into()),
            unit: "% of steps",
            style: Style::Steps,
            names: names.iter().map(|(name, _)| name.into()).collect(),
            x: rows.iter().map(|(at_ns, _)| seconds(*at_ns)).collect(),
            y: names
                .iter()
                .map(|(_, place)| rows.iter().map(|(_, counts)| share(counts, *place)).collect())
                .collect(),
            length: Some(Number(width_ns as f64 / 1e9)),
            most: Some(Number(100.0)),
            digits: 1,
        });
    }

    /// How long steps and their forward passes take.
    pub(in crate::html) fn steps(&mut self, answers: &Answers) -> Option<Section> {
        let mut section = Section::new("steps", "Engine steps and forward passes");
        let engine = answers
            .cpu
            .as_ref()
            .and_then(|cpu| cpu.operations.iter().find(|(of, _)| *of == Name::EngineStep).map(|(_, times)| times));
        let phases = answers.forward.as_ref().map_or(&[][..], |forward| &forward.phases);
        let mut table = Table::new("Durations", times_columns("of"));
        if let Some(of) = engine {
            table.row(times("engine step", of));
        }
        for (phase, of) in phases {
            table.row(times(&format!("forward, {}", phase.text()), &of.times));
        }
        for (phase, of) in answers.iterations.as_ref().map_or(&[][..], |waits| &waits.phases) {
            table.row(times(&format!("wait for the model's output, {}", phase.text()), &of.times));
        }
        if table.rows.is_empty() {
            return None;
        }
        section.push(table);
        let durations = std::mem::replace(&mut self.durations, Sampled::new(1));
        section
            .blocks
            .extend(chart("Engine step", "ms", Style::Line, ["engine step"], durations).map(Block::from));
        let forward = std::mem::replace(&mut self.forward, Sampled::new(1));
        let names = Phase::ALL.map(Phase::text);
        if let Some(mut forward) = chart("Forward pass by phase", "ms", Style::Points, names, forward) {
            if answers.breakdown.as_ref().is_some_and(|breakdown| breakdown.workers.len() > 1) {
                let note = forward.note.as_ref().map_or("", |note| note.as_str());
                let note = format!("All workers together: the tables have them apart. {note}");
                forward.note = Some(note.trim_end().into());
            }
            section.push(forward);
        }
        let bubbles = std::mem::replace(&mut self.bubbles, Sampled::new(1));
        if let Some(bubbles) = chart("GPU idle before each step", "ms", Style::Line, ["idle"], bubbles) {
            section.push(bubbles);
        }
        section.blocks.extend(
            engine
                .and_then(|of| histogram("Engine step", "ms", 1e6, &self.duration_times, &marks_of_times(of)))
                .map(Block::from),
        );
        for (phase, of) in phases {
            let samples = &self.forward_times[*phase as usize];
            let title = format!("Forward pass, {}", phase.text());
            section
                .blocks
                .extend(histogram(&title, "ms", 1e6, samples, &marks_of_times(&of.times)).map(Block::from));
        }
        cost(answers, &mut section);
        ranks(answers, &mut section);
        operations(answers, &mut section);
        Some(section)
    }
}

fn operations(answers: &Answers, section: &mut Section) {
    let operations = answers.cpu.as_ref().map_or(&[][..], |cpu| &cpu.operations);
    if operations.is_empty() {
        return;
    }
    let mut table = Table::new("CPU operations", times_columns("operation")).folded();
    for (name, of) in operations {
        table.row(times(name.text(), of));
    }
    section.push(table);
}

fn cost(answers: &Answers, section: &mut Section) {
    if answers.cost.is_empty() {
        return;
    }
    let columns = vec![
        text("engine"),
        text("steps of"),
        number("steps", 0),
        number("one more prefill token us", 3),
        number("one more decoding sequence us", 3),
        number("empty step ms", 3),
        number("R2", 3),
    ];
    let mut table = Table::new("What one more token costs", columns)
        .note("A straight line through the forward passes; R2 is how much of their variation it explains.");
    for fit in &answers.cost {
        let group = match &fit.group {
            Group::Phase(phase) => phase.text().to_owned(),
            Group::CudaGraphMode(mode) => format!("CUDA graph mode {mode}"),
        };
        let value = |estimate: Option<Estimate>| -> Cell { estimate.map(|estimate| estimate.value).into() };
        table.row(vec![
            fit.process.as_str().into(),
            group.into(),
            fit.steps.into(),
            value(fit.prefill_token_us),
            value(fit.decode_sequence_us),
            fit.base_ms.into(),
            fit.r_squared.into(),
        ]);
    }
    section.push(table);
}

fn ranks(answers: &Answers, section: &mut Section) {
    for skew in &answers.ranks {
        let columns = vec![
            text("worker"),
            number("mean forward ms", 3),
            share("slowest in % of steps"),
            share("last to begin in % of steps"),
            number("begins late by ms", 3),
        ];
        let mut table = Table::new(format!("Workers of {}", skew.process), columns).note(if skew.are_stages {
            "Stages of a pipeline: their times say nothing about one another.".to_owned()
        } else {
            format!(
                "Forward passes of one step differ by {:.3} ms on average, {:.3} ms at p99.",
                skew.skew_ms.mean, skew.skew_ms.p99
            )
        });
        for rank in &skew.ranks {
            table.row(vec![
                rank.process.as_str().into(),
                rank.mean_forward_ms.into(),
                percent(rank.slowest_steps, skew.steps).into(),
                percent(rank.last_steps, skew.steps).into(),
                rank.mean_late_ms.into(),
            ]);
        }
        section.push(table);
    }
}
