//! Inside the forward pass: its parts, layer by layer.

use profilemate_analysis::Answers;
use profilemate_analysis::layers::{COLLECTIVES, Collective, ForwardParts, Interval, Part, Summary};
use profilemate_analysis::statistics::{Distribution, Statistics};

use crate::html::model::{Cell, Column, HeatMap, Number, Section, Table, number, share, text};

/// Most kinds of layers, and most layers, that are drawn; tables of the session have all.
const MOST_ROWS: usize = 64;
const MOST_LAYERS: usize = 1024;

/// One component and kind of layer: sums of nanoseconds and counts, by layer.
struct Row {
    component: String,
    kind: String,
    layers: Vec<(u64, u64)>,
}

/// What is gathered of layers.
#[derive(Default)]
pub(in crate::html) struct Gathered {
    rows: Vec<Row>,
}

/// Components in the order in which a layer has them.
fn rank(component: &str) -> usize {
    let order = ["attention", "linear_attention", "cross_attention", "router", "experts", "router_and_experts"];
    let collectives = || COLLECTIVES.iter().position(|name| *name == component).map(|at| order.len() + at);
    order.iter().position(|name| *name == component).or_else(collectives).unwrap_or(usize::MAX)
}

impl Gathered {
    pub(in crate::html) fn see(&mut self, interval: &Interval<'_>) {
        let Some(layer) = interval.layer.map(|layer| layer as usize).filter(|layer| *layer < MOST_LAYERS) else {
            return;
        };
        let is_it = |row: &Row| row.component == interval.component && row.kind == interval.kind;
        let row = match self.rows.iter().position(is_it) {
            Some(at) => &mut self.rows[at],
            None if self.rows.len() < MOST_ROWS => {
                let (component, kind) = (interval.component.to_owned(), interval.kind.to_owned());
                self.rows.push(Row { component, kind, layers: Vec::new() });
                let last = self.rows.len() - 1;
                &mut self.rows[last]
            }
            None => return,
        };
        if row.layers.len() <= layer {
            row.layers.resize(layer + 1, (0, 0));
        }
        let (sum_ns, count) = &mut row.layers[layer];
        *sum_ns = sum_ns.saturating_add(interval.duration_ns);
        *count += 1;
    }

    pub(in crate::html) fn see_collective(&mut self, collective: &Collective<'_>) {
        self.see(&collective.interval);
    }

    /// Means by layer; a layer that was not timed has none.
    fn map(mut self) -> Option<HeatMap> {
        self.rows.sort_by(|a, b| (rank(&a.component), &a.kind).cmp(&(rank(&b.component), &b.kind)));
        let several = |component: &str| self.rows.iter().filter(|row| row.component == component).count() > 1;
        let timed =
            |layer: &usize| self.rows.iter().any(|row| row.layers.get(*layer).is_some_and(|(_, n)| *n > 0));
        let count = self.rows.iter().map(|row| row.layers.len()).max()?;
        let layers: Vec<usize> = (0..count).filter(timed).collect();
        let mean_us = |row: &Row, layer: usize| match row.layers.get(layer) {
            Some((sum_ns, count)) if *count > 0 => Number(*sum_ns as f64 / 1e3 / *count as f64),
            _ => Number(f64::NAN),
        };
        let name = |row: &Row| {
            let component = row.component.replace('_', " ");
            if several(&row.component) { format!("{component}, {}", row.kind) } else { component }
        };
        Some(HeatMap {
            title: "Mean time by layer".into(),
            note: Some(
                "Over all steps and workers that were timed. Layers that were not timed are not there.".into(),
            ),
            unit: "us",
            across: "layer",
            down: "part",
            columns: layers.iter().map(|layer| layer.to_string().into()).collect(),
            rows: self.rows.iter().map(|row| name(row).into()).collect(),
            values: self
                .rows
                .iter()
                .map(|row| layers.iter().map(|layer| mean_us(row, *layer)).collect())
                .collect(),
            digits: 1,
        })
    }

    pub(in crate::html) fn section(self, answers: &Answers) -> Option<Section> {
        let summary = answers.layers.as_ref()?;
        if summary.components.is_empty() && summary.collectives.is_empty() {
            return None;
        }
        let mut section = Section::new("layers", "Inside the forward pass").lead(
            "Times of single layers on the GPU's own clock, in the steps that were timed inside. Each is one to two microseconds \
             longer than its kernels.",
        );
        if answers.breakdown.as_ref().is_none_or(|breakdown| breakdown.engines.is_empty()) {
            section.blocks.extend(parts(summary).map(Into::into));
        }
        section.blocks.extend(self.map().map(Into::into));
        section.push(components(summary));
        if !summary.collectives.is_empty() {
            section.push(collectives(summary));
        }
        Some(section)
    }
}

/// What forward passes are made of; `None` when nobody knows how long they took.
pub(super) fn parts(summary: &Summary) -> Option<Table> {
    let all = &summary.forward;
    if all.passes == 0 {
        return None;
    }
    let phases = &summary.by_phase;
    let shares = phases.iter().map(|(phase, _)| number(&format!("of {} %", phase.text()), 1));
    let columns = [text("part"), share("of forward %"), number("mean ms per pass", 4)].into_iter().chain(shares);
    let how = if all.is_estimate {
        "An estimate: the layers that were timed stand for all of their kind. "
    } else {
        "Every layer was timed. "
    };
    let mut table = Table::new("What forward passes consist of", columns.collect())
        .note(format!("{how}Rest: projections, MLPs, norms, embeddings, which torch.compile fuses."));
    let named = |of: &ForwardParts, at: usize| match Part::ALL.get(at) {
        Some(part) => of.parts_ns[*part as usize],
        None => Some(of.rest_ns()),
    };
    for at in 0..=Part::ALL.len() {
        let Some(ns) = named(all, at) else { continue };
        let name = Part::ALL.get(at).map_or("rest", |part| part.text());
        let mut row: Vec<Cell> =
            vec![name.into(), all.share_pct(ns).into(), (ns / 1e6 / all.passes as f64).into()];
        row.extend(phases.iter().map(|(_, of)| Cell::from(named(of, at).and_then(|ns| of.share_pct(ns)))));
        table.row(row);
    }
    Some(table)
}

/// Columns of times of one layer or call.
fn columns() -> impl Iterator<Item = Column> {
    ["mean us", "p50 us", "p95 us", "p99 us", "min us", "max us"].into_iter().map(|name| number(name, 1))
}

fn times(of: &Statistics) -> impl Iterator<Item = Cell> {
    [of.mean_ms, of.p50_ms, of.p95_ms, of.p99_ms, of.min_ms, of.max_ms].map(|ms| Cell::from(ms * 1e3)).into_iter()
}

fn estimate(pct: Option<f64>, is_estimate: bool) -> Cell {
    match pct {
        Some(_) if is_estimate => "estimate".into(),
        Some(_) => "all timed".into(),
        None => Cell::Unknown(()),
    }
}

fn components(summary: &Summary) -> Table {
    let head = [text("part"), text("kind"), number("layers", 0), text("timed"), number("count", 0)];
    let tail = [share("of forward %"), text("that is")];
    let columns = head.into_iter().chain(columns()).chain(tail).collect();
    let mut table = Table::new("Parts of the model, one layer", columns);
    for of in &summary.components {
        let timed: Vec<String> = of.timed.iter().map(ToString::to_string).collect();
        let mut row: Vec<Cell> = vec![
            of.component.replace('_', " ").into(),
            of.kind.as_str().into(),
            of.layers.into(),
            timed.join(", ").into(),
            of.times.count.into(),
        ];
        row.extend(times(&of.times));
        row.extend([of.forward_share_pct.into(), estimate(of.forward_share_pct, of.is_estimate)]);
        table.row(row);
    }
    table
}

fn collectives(summary: &Summary) -> Table {
    let head = [text("collective"), text("worker"), number("per forward", 0), number("count", 0)];
    let tail = [
        number("mean wait us", 1),
        number("p99 wait us", 1),
        number("mean transfer us", 1),
        share("of forward %"),
        text("that is"),
    ];
    let columns = head.into_iter().chain(columns()).chain(tail).collect();
    let mut table = Table::new("Collectives, one call", columns)
        .note("Wait: what a rank took longer than the rank that came last, which waited for nobody.");
    let us = |of: &Option<Distribution>, value: fn(&Distribution) -> f64| {
        Cell::from(of.as_ref().map(|of| value(of) * 1e3))
    };
    for of in &summary.collectives {
        let mut row: Vec<Cell> = vec![
            of.collective.replace('_', " ").into(),
            of.process.as_str().into(),
            of.per_forward.into(),
            of.times.count.into(),
        ];
        row.extend(times(&of.times));
        row.extend([
            us(&of.wait, |of| of.mean),
            us(&of.wait, |of| of.p99),
            us(&of.transfer, |of| of.mean),
            of.forward_share_pct.into(),
            estimate(of.forward_share_pct, of.is_estimate),
        ]);
        table.row(row);
    }
    table
}
