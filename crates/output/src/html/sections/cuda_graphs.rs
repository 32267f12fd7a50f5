//! CUDA graphs: what batches ran in, with how much padding, and what was captured.

use profilemate_analysis::Answers;
use profilemate_analysis::batch::percent;
use profilemate_analysis::cuda_graphs::{Capture, Descriptor};

use crate::html::model::{Block, Cell, Section, Table, number, share, text};

/// Most graphs that are listed; a table of the session has all.
const MOST: usize = 512;

/// What is gathered of CUDA graphs.
#[derive(Default)]
pub(in crate::html) struct Gathered {
    captures: Vec<Vec<Cell>>,
    captured: u64,
}

fn graph(of: &Descriptor<'_>) -> [Cell; 3] {
    let uniform = of.uniform.map_or(Cell::Unknown(()), |uniform| if uniform { "yes" } else { "no" }.into());
    [of.mode.into(), of.num_tokens.into(), uniform]
}

impl Gathered {
    pub(in crate::html) fn see(&mut self, capture: &Capture<'_>) {
        self.captured += 1;
        if self.captures.len() < MOST {
            let mut cells = graph(&capture.descriptor).to_vec();
            cells.extend([
                Cell::from(capture.start_ns as f64 / 1e9),
                Cell::from(capture.duration_ns as f64 / 1e6),
                Cell::from(capture.process),
            ]);
            self.captures.push(cells);
        }
    }

    pub(in crate::html) fn section(self, answers: &Answers) -> Option<Section> {
        let summary = answers.cuda_graphs.as_ref().filter(|summary| !summary.usage.is_empty())?;
        // Without a GPU there are none, and nobody misses them.
        let has_graphs = self.captured > 0 || summary.coverage_pct().is_some_and(|share| share > 0.0);
        if answers.facts.gpu_name.is_none() && !has_graphs {
            return None;
        }
        let known = |share: Option<f64>| share.map_or("unknown".to_owned(), |share| format!("{share:.1} %"));
        let mut section = Section::new("cuda-graphs", "CUDA graphs").lead(format!(
            "{} of steps run in a graph, whole or in pieces; {} of the tokens computed are padding.",
            known(summary.coverage_pct()),
            known(summary.padding_pct())
        ));
        let all: u64 = summary.usage.iter().map(|usage| usage.count).sum();
        let columns = vec![
            text("mode"),
            number("graph's tokens", 0),
            text("uniform"),
            share("of steps %"),
            number("steps", 0),
            share("padding %"),
            number("padding tokens", 0),
            number("real tokens", 0),
            number("mean ms", 3),
            number("p50 ms", 3),
            number("p99 ms", 3),
        ];
        let mut table = Table::new("What steps ran in", columns).note("NONE: without a graph.");
        for usage in summary.usage.iter().take(MOST) {
            let mut cells = graph(&Descriptor::parse(&usage.descriptor)).to_vec();
            let times = usage.times.as_ref();
            cells.extend([
                Cell::from(percent(usage.count, all)),
                usage.count.into(),
                percent(usage.padding_tokens, usage.real_tokens + usage.padding_tokens).into(),
                usage.padding_tokens.into(),
                usage.real_tokens.into(),
                times.map(|times| times.mean_ms).into(),
                times.map(|times| times.p50_ms).into(),
                times.map(|times| times.p99_ms).into(),
            ]);
            table.row(cells);
        }
        section.push(table);
        if summary.usage.len() > MOST {
            let text = format!("The {MOST} most used of {}; cuda_graph_usage.csv has all.", summary.usage.len());
            section.push(Block::Sentence { text: text.into() });
        }
        if self.captured > 0 {
            let columns = vec![
                text("mode"),
                number("tokens", 0),
                text("uniform"),
                number("captured at s", 3),
                number("took ms", 3),
                text("worker"),
            ];
            let title = format!("Captures ({})", self.captured);
            let mut table = Table::new(title, columns).folded();
            if self.captured > MOST as u64 {
                table = table.note(format!("The first {MOST}; cuda_graph_captures.csv has all."));
            }
            table.rows = self.captures;
            section.push(table);
        }
        Some(section)
    }
}
