//! Requests: what their time consists of, how long they waited, which were preempted.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use profilemate_analysis::Answers;
use profilemate_analysis::batch::percent;
use profilemate_analysis::requests::{Happening, Lifecycle, RequestEvent};
use profilemate_analysis::statistics::Distribution;

use super::{
    INTERVALS, SHORTEST_INTERVAL_NS, counted, distribution, distribution_columns, histogram, length, marks_of,
    maybe_seconds, named, spread, spread_columns,
};
use crate::html::model::{Block, Number, Request, Section, Table, Text, Waterfall, number, share, text};
use crate::html::sampling::{Buckets, Counts, Histogram, Merge};
use crate::numbers::grouped;

/// Equal stretches of the run; each gives its slowest requests to the waterfall.
const STRETCHES: usize = 96;

/// Most requests in the waterfall that were not over.
const MOST_OPEN: usize = 48;

/// Most preempted requests that are listed.
const MOST_PREEMPTED: usize = 64;

/// A request with the number that it was chosen for.
#[derive(Debug, Clone)]
struct Chosen {
    /// Nanoseconds.
    by: u64,
    request: Kept,
}

/// The slowest of a stretch.
#[derive(Debug, Clone, Default)]
struct Slowest(Option<Chosen>);

impl Merge for Slowest {
    fn merge(&mut self, later: Self) {
        if let Some(later) = later.0
            && self.0.as_ref().is_none_or(|before| before.by < later.by)
        {
            self.0 = Some(later);
        }
    }
}

/// What is kept of a request.
#[derive(Debug, Clone)]
struct Kept {
    id: String,
    process: String,
    arrived_ns: Option<i64>,
    queued_ns: Option<i64>,
    started_ns: Option<i64>,
    preempted_ns: Option<i64>,
    resumed_ns: Option<i64>,
    first_token_ns: Option<i64>,
    left_engine_ns: Option<i64>,
    finished_ns: Option<i64>,
    reason: String,
    preemptions: Option<u64>,
    prompt_tokens: Option<u32>,
    output_tokens: Option<u32>,
}

impl Kept {
    fn of(request: &Lifecycle<'_>) -> Self {
        Self {
            id: request.request_id.to_owned(),
            process: request.process.to_owned(),
            arrived_ns: request.arrived_ns,
            queued_ns: request.queued_ns,
            started_ns: request.started_ns,
            preempted_ns: request.preempted_ns,
            resumed_ns: request.resumed_ns,
            first_token_ns: request.first_token_ns,
            left_engine_ns: request.left_engine_ns,
            finished_ns: request.finished_ns,
            reason: request.finish_reason.unwrap_or("").to_owned(),
            preemptions: request.preemptions,
            prompt_tokens: request.prompt_tokens,
            output_tokens: request.output_tokens,
        }
    }

    fn begin_ns(&self) -> Option<i64> {
        self.arrived_ns.or(self.queued_ns).or(self.started_ns)
    }

    fn shown(self) -> Request {
        let count = |count: Option<f64>| Number(count.unwrap_or(f64::NAN));
        Request {
            id: named(&self.id).into(),
            arrived: maybe_seconds(self.arrived_ns),
            queued: maybe_seconds(self.queued_ns),
            started: maybe_seconds(self.started_ns),
            preempted: maybe_seconds(self.preempted_ns),
            resumed: maybe_seconds(self.resumed_ns),
            first_token: maybe_seconds(self.first_token_ns),
            left_engine: maybe_seconds(self.left_engine_ns),
            finished: maybe_seconds(self.finished_ns),
            reason: if self.finished_ns.is_some() { named(&self.reason).into() } else { Text::from("not over") },
            preemptions: count(self.preemptions.map(|count| count as f64)),
            prompt_tokens: count(self.prompt_tokens.map(f64::from)),
            output_tokens: count(self.output_tokens.map(f64::from)),
        }
    }
}

/// A preempted request: how long it waited, and a number so that equal ones have an order.
type Waited = (u64, Reverse<u64>);

/// What is gathered of requests.
pub(in crate::html) struct Gathered {
    total: Histogram,
    ttft: Histogram,
    tpot: Histogram,
    queue: Histogram,
    slowest: Buckets<Slowest>,
    latest: Buckets<Slowest>,
    open: Vec<Kept>,
    preemptions: Buckets<Counts<1>>,
    /// The place of a request in `waited_longest`, smallest waits first to go.
    waits: BinaryHeap<Reverse<Waited>>,
    waited_longest: std::collections::BTreeMap<u64, (Kept, u64, Option<u64>)>,
    seen: u64,
}

impl Gathered {
    pub(in crate::html) fn new() -> Self {
        let stretches = || Buckets::new(1_000, STRETCHES);
        Self {
            total: Histogram::new(),
            ttft: Histogram::new(),
            tpot: Histogram::new(),
            queue: Histogram::new(),
            slowest: stretches(),
            latest: stretches(),
            open: Vec::new(),
            preemptions: Buckets::new(SHORTEST_INTERVAL_NS, INTERVALS),
            waits: BinaryHeap::new(),
            waited_longest: std::collections::BTreeMap::new(),
            seen: 0,
        }
    }

    pub(in crate::html) fn see_event(&mut self, event: &RequestEvent<'_>) {
        if matches!(event.what, Happening::Preempted { .. }) {
            self.preemptions.at(event.at_ns).0[0] += 1;
        }
    }

    pub(in crate::html) fn see(&mut self, request: &Lifecycle<'_>) {
        self.seen += 1;
        let is_over = request.finished_ns.is_some();
        for (histogram, time_ns) in [
            (&mut self.total, request.total_time_ns()),
            (&mut self.ttft, request.ttft_ns()),
            (&mut self.tpot, request.tpot_ns().filter(|_| is_over)),
            (&mut self.queue, request.queue_time_ns()),
        ] {
            if let Some(time_ns) = time_ns {
                histogram.push(time_ns);
            }
        }
        if let Some(begin_ns) = request.arrived_ns.or(request.queued_ns).or(request.started_ns) {
            for (stretches, by) in
                [(&mut self.slowest, request.total_time_ns()), (&mut self.latest, request.ttft_ns())]
            {
                let Some(by) = by else { continue };
                let slowest = stretches.at(begin_ns);
                if slowest.0.as_ref().is_none_or(|before| before.by < by) {
                    slowest.0 = Some(Chosen { by, request: Kept::of(request) });
                }
            }
            if !is_over && self.open.len() < MOST_OPEN {
                self.open.push(Kept::of(request));
            }
        }
        if request.preemptions.is_some_and(|count| count > 0) {
            self.see_preempted(request);
        }
    }

    fn see_preempted(&mut self, request: &Lifecycle<'_>) {
        // One that still waits has waited longest.
        let delay_ns = request.preemption_delay_ns.unwrap_or(u64::MAX);
        let is_full = self.waits.len() >= MOST_PREEMPTED;
        if is_full && self.waits.peek().is_some_and(|Reverse((least_ns, _))| *least_ns >= delay_ns) {
            return;
        }
        if is_full && let Some(Reverse((_, Reverse(number)))) = self.waits.pop() {
            self.waited_longest.remove(&number);
        }
        self.waits.push(Reverse((delay_ns, Reverse(self.seen))));
        self.waited_longest.insert(self.seen, (Kept::of(request), delay_ns, request.recomputed_tokens));
    }

    /// How long requests took, and what their time consists of.
    pub(in crate::html) fn latency(&self, answers: &Answers) -> Option<Section> {
        let summary = answers.requests.as_ref().filter(|summary| summary.total_requests > 0)?;
        let mut section = Section::new("latency", "Request latency")
            .lead("As a client sees it: from arrival at the front end, as vLLM's own metrics begin and end.");
        let said: [(&str, &'static str, &Option<Distribution>, &Histogram, f64); 4] = [
            ("Time to first token", "s", &summary.ttft, &self.ttft, 1e9),
            ("Time per output token", "ms", &summary.tpot, &self.tpot, 1e6),
            ("From arrival to the end", "s", &summary.total_time, &self.total, 1e9),
            ("In the queue", "s", &summary.queue_time, &self.queue, 1e9),
        ];
        let mut table = Table::new("Percentiles", distribution_columns("of", 4));
        for (name, unit, of, ..) in &said {
            if let Some(of) = of {
                table.row(distribution(&format!("{name}, {unit}"), of));
            }
        }
        if !table.rows.is_empty() {
            section.push(table);
        }
        if let Some(latency) = &summary.latency {
            let columns =
                [text("part"), share("of all time %")].into_iter().chain(spread_columns("s", 4)).collect();
            let mut table = Table::new("What the time of requests consists of", columns).note(format!(
                "Over the {} requests that are over and whose beginning is known. The parts of a request add up to its time.",
                grouped(latency.requests)
            ));
            for (part, of) in &latency.parts {
                let head = [part.text().replace('_', " ").into(), latency.share_pct(*part).into()];
                table.row(head.into_iter().chain(spread(of)).collect());
            }
            section.push(table);
        }
        for (name, unit, of, samples, per) in said {
            let marks = of.as_ref().map(marks_of);
            section.blocks.extend(
                histogram(name, unit, per, samples, marks.as_ref().map_or(&[][..], |marks| &marks[..]))
                    .map(Block::from),
            );
        }
        (!section.blocks.is_empty()).then_some(section)
    }

    /// Requests over the time of the run.
    pub(in crate::html) fn waterfall(&mut self) -> Option<Section> {
        let stretch_ns = self.slowest.width_ns();
        let empty = || Buckets::new(1, 1);
        let chosen = [std::mem::replace(&mut self.slowest, empty()), std::mem::replace(&mut self.latest, empty())];
        let mut requests: Vec<Kept> = chosen
            .into_iter()
            .flat_map(Buckets::into_values)
            .filter_map(|slowest| Some(slowest.0?.request))
            .chain(std::mem::take(&mut self.open))
            .collect();
        requests.sort_by(|a, b| (a.begin_ns(), &a.process, &a.id).cmp(&(b.begin_ns(), &b.process, &b.id)));
        requests.dedup_by(|a, b| {
            (a.begin_ns(), a.finished_ns, &a.process, &a.id) == (b.begin_ns(), b.finished_ns, &b.process, &b.id)
        });
        if requests.is_empty() {
            return None;
        }
        let note = if self.seen > requests.len() as u64 {
            format!(
                "{} of {} requests: of those that arrived in each {}, the one that took longest and the one that waited \
                 longest for its first token; and those that were not over. Of several preemptions the first is drawn.",
                requests.len(),
                grouped(self.seen),
                length(stretch_ns)
            )
        } else {
            "All requests. Of several preemptions the first is drawn.".to_owned()
        };
        let mut section = Section::new("waterfall", "Request waterfall");
        section.push(Block::Waterfall(Waterfall {
            title: "Requests over time".into(),
            note: note.into(),
            requests: requests.into_iter().map(Kept::shown).collect(),
        }));
        Some(section)
    }

    /// Who was thrown out of the batch, and what that cost.
    pub(in crate::html) fn preemptions(&mut self, answers: &Answers) -> Option<Section> {
        let summary = answers.requests.as_ref()?;
        let mut section = Section::new("preemptions", "Preemptions");
        if summary.preemptions == 0 {
            let text = "No request was preempted.";
            section.push(Block::Sentence { text: text.into() });
            return (summary.total_requests > 0).then_some(section);
        }
        section = section.lead(format!(
            "{} preemptions of {} requests threw {} computed tokens away.",
            grouped(summary.preemptions),
            grouped(summary.preempted_requests),
            grouped(summary.recomputed_tokens)
        ));
        let columns = vec![text("reason"), share("of preemptions %"), number("preemptions", 0)];
        let mut table = Table::new("Why", columns);
        for (reason, count) in &summary.preemption_reasons {
            table.row(vec![named(reason).into(), percent(*count, summary.preemptions).into(), (*count).into()]);
        }
        section.push(table);
        let mut table = Table::new("Seconds", distribution_columns("of", 4));
        for (name, of) in [
            ("ran before it was preempted", &summary.running_before_preemption),
            ("waited until it was resumed", &summary.resume_delays),
        ] {
            if let Some(of) = of {
                table.row(distribution(name, of));
            }
        }
        section.push(table);
        section.blocks.extend(
            counted("Preemptions over time", "preemptions", ["preemptions"], &self.preemptions).map(Block::from),
        );
        let mut longest: Vec<(Kept, u64, Option<u64>)> =
            std::mem::take(&mut self.waited_longest).into_values().collect();
        longest.sort_by_key(|(_, delay_ns, _)| Reverse(*delay_ns));
        let columns = vec![
            text("request"),
            number("first preempted at s", 3),
            number("preemptions", 0),
            number("waited s", 4),
            number("recomputed tokens", 0),
            number("prompt tokens", 0),
            number("output tokens", 0),
            text("ended"),
        ];
        let title = format!("The {} that waited longest", longest.len());
        let mut table =
            Table::new(title, columns).note("Preempted requests; preemption_events.csv has all.").folded();
        for (request, delay_ns, recomputed) in longest {
            table.row(vec![
                named(&request.id).into(),
                request.preempted_ns.map(|at_ns| at_ns as f64 / 1e9).into(),
                request.preemptions.into(),
                (delay_ns != u64::MAX).then_some(delay_ns as f64 / 1e9).into(),
                recomputed.into(),
                request.prompt_tokens.into(),
                request.output_tokens.into(),
                if request.finished_ns.is_some() { named(&request.reason) } else { "not over" }.into(),
            ]);
        }
        section.push(table);
        Some(section)
    }
}
