//! The page of a comparison: what differs between runs, and how sure that is.

use profilemate_analysis::compare::{CONFIDENCE, Difference, Metric};

use super::model::{
    Block, Cell, Column, Figure, Interval, Intervals, Number, Page, Section, Table, Text, number, text,
};
use super::page;
use crate::comparison::{Compared, Word, headline, outcome, reason, signed, unit_of_change};
use crate::numbers::{duration, grouped};

/// The page.
pub fn comparison(compared: &Compared<'_>) -> String {
    let sections = [
        Some(runs(compared)),
        environment(compared),
        conditions(compared),
        Some(differences(compared)),
        effects(compared),
        Some(method(compared)),
    ];
    page::render(&Page {
        title: "ProfileMate comparison".into(),
        about: vec![
            format!("base: {}", names(compared.base.iter().map(|run| run.name.as_str()))).into(),
            format!("candidate: {}", names(compared.candidate.iter().map(|run| run.name.as_str()))).into(),
        ],
        warnings: warnings(compared),
        figures: figures(compared),
        range: [Number(0.0), Number(1.0)],
        sections: sections.into_iter().flatten().collect(),
    })
}

fn names<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.collect::<Vec<_>>().join(", ")
}

fn count_of(compared: &Compared<'_>, word: Word) -> usize {
    compared.comparison.differences.iter().filter(|difference| Word::of(difference) == word).count()
}

fn figures(compared: &Compared<'_>) -> Vec<Figure> {
    [
        (Word::Worse, "worse"),
        (Word::Better, "better"),
        (Word::Changed, "changed"),
        (Word::None, "no detectable difference"),
    ]
    .into_iter()
    .map(|(word, label)| Figure {
        label: format!("Figures: {label}").into(),
        value: grouped(count_of(compared, word) as u64).into(),
        note: None,
    })
    .collect()
}

fn warnings(compared: &Compared<'_>) -> Vec<Text> {
    let mut warnings = Vec::new();
    let comparison = compared.comparison;
    if !comparison.mismatches.is_empty() {
        warnings.push("Not all runs were made alike: see below.".into());
    }
    if !comparison.loads.is_empty() {
        let words = "The load differs, so times cannot be compared as they are: look at throughput, or repeat it with the same load.";
        warnings.push(words.into());
    }
    for run in compared.base.iter().chain(compared.candidate) {
        if run.is_running {
            warnings.push(format!("{} still runs: these are the figures so far.", run.name).into());
        }
        let missing = run.records_lost.saturating_add(run.records_damaged);
        if missing > 0 {
            warnings
                .push(format!("Records of {} that are lost or damaged: {}.", run.name, grouped(missing)).into());
        }
    }
    warnings
}

fn runs(compared: &Compared<'_>) -> Section {
    let mut section = Section::new("runs", "Runs");
    let columns = vec![
        text("side"),
        text("session"),
        text("duration"),
        number("steps", 0),
        number("requests", 0),
        number("sequences per step", 2),
        number("tokens per step", 2),
        number("prompt tokens per request", 1),
        number("output tokens per request", 1),
    ];
    let mut table = Table::new("What is compared", columns);
    for (side, runs) in [("base", compared.base), ("candidate", compared.candidate)] {
        for run in runs {
            let load = &run.workload;
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a duration")]
            let nanoseconds = (load.seconds * 1e9) as u64;
            table.row(vec![
                side.into(),
                run.name.as_str().into(),
                duration(nanoseconds).into(),
                load.steps.into(),
                load.requests.into(),
                load.sequences_per_step.into(),
                load.tokens_per_step.into(),
                load.prompt_tokens_per_request.into(),
                load.output_tokens_per_request.into(),
            ]);
        }
    }
    section.push(table);
    section
}

fn environment(compared: &Compared<'_>) -> Option<Section> {
    let comparison = compared.comparison;
    let mut section = Section::new("environment", "What else differs");
    let mut table = Table::new("How runs were made", vec![text("what"), text("base"), text("candidate")]);
    for mismatch in &comparison.mismatches {
        let side = |values: &[Option<String>]| {
            let known = values
                .iter()
                .map(|value| value.as_deref().map_or("–", |value| if value.is_empty() { "set" } else { value }));
            known.collect::<Vec<_>>().join(" | ")
        };
        let (base, candidate) = (side(&mismatch.base), side(&mismatch.candidate));
        table.row(vec![mismatch.what.as_str().into(), base.into(), candidate.into()]);
    }
    if !table.rows.is_empty() {
        section.push(table);
    }
    let columns = vec![text("what"), number("base", 2), number("candidate", 2)];
    let mut table = Table::new("Load", columns);
    for load in &comparison.loads {
        table.row(vec![load.what.into(), load.base.into(), load.candidate.into()]);
    }
    if !table.rows.is_empty() {
        section.push(table);
    }
    (!section.blocks.is_empty()).then_some(section)
}

fn conditions(compared: &Compared<'_>) -> Option<Section> {
    let mut section = Section::new("conditions", "Conditions");
    let mut table = Table::new("--fail-on", vec![text("condition"), text("outcome"), text("why")]);
    for verdict in &compared.comparison.verdicts {
        let (word, why) = outcome(verdict);
        table.row(vec![verdict.condition.to_string().into(), word.into(), why.into()]);
    }
    let has_rows = !table.rows.is_empty();
    section.push(table);
    has_rows.then_some(section)
}

fn with_unit(metric: Metric) -> String {
    let unit = metric.unit();
    if unit.is_empty() { metric.name() } else { format!("{}, {unit}", metric.name()) }
}

fn differences(compared: &Compared<'_>) -> Section {
    let comparison = compared.comparison;
    let head = headline(
        comparison.judged,
        count_of(compared, Word::Worse),
        count_of(compared, Word::Better),
        count_of(compared, Word::Changed),
    );
    let mut section = Section::new("differences", "Differences").lead(head.trim_end());
    for word in [Word::Worse, Word::Better, Word::Changed, Word::None] {
        let of: Vec<&Difference> =
            comparison.differences.iter().filter(|difference| Word::of(difference) == word).collect();
        let intervals: Vec<Interval> = of.iter().filter_map(|difference| interval(difference)).collect();
        if intervals.is_empty() {
            continue;
        }
        section.push(Block::Intervals(Intervals {
            title: capital(word.text()).into(),
            note: "Change from base to candidate, with its interval: % of the base, or percentage points (pp)."
                .into(),
            word: word.text(),
            rows: intervals,
        }));
        section.push(table(&format!("{}: the numbers", capital(word.text())), &of));
    }
    let not_judged: Vec<&Difference> =
        comparison.differences.iter().filter(|difference| Word::of(difference) == Word::NotJudged).collect();
    let columns: Vec<Column> = vec![text("figure"), number("base", 4), number("candidate", 4), text("why not")];
    let mut table = Table::new("Not judged", columns).folded();
    for difference in not_judged {
        table.row(vec![
            with_unit(difference.metric).into(),
            difference.base.into(),
            difference.candidate.into(),
            reason(difference).map_or(Cell::Unknown(()), Into::into),
        ]);
    }
    if !table.rows.is_empty() {
        section.push(table);
    }
    section
}

fn capital(clause: &str) -> String {
    let mut letters = clause.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}

fn interval(difference: &Difference) -> Option<Interval> {
    let bounds = difference.interval.ok()?;
    let unit = unit_of_change(difference.metric);
    Some(Interval {
        name: difference.metric.name().into(),
        change: Number(difference.change?),
        low: Number(bounds.low),
        high: Number(bounds.high),
        shown: format!(
            "{} {unit} ({} to {})",
            signed(difference.change?),
            signed(bounds.low),
            signed(bounds.high)
        )
        .into(),
    })
}

fn table(title: &str, of: &[&Difference]) -> Table {
    let columns = vec![
        text("figure"),
        number("base", 4),
        number("candidate", 4),
        number("change", 3),
        number("from", 3),
        number("to", 3),
        text("unit of the change"),
        number("samples of base", 0),
        number("samples of candidate", 0),
    ];
    let mut table = Table::new(title, columns).folded();
    for difference in of {
        let bounds = difference.interval.ok();
        table.row(vec![
            with_unit(difference.metric).into(),
            difference.base.into(),
            difference.candidate.into(),
            difference.change.into(),
            bounds.map(|bounds| bounds.low).into(),
            bounds.map(|bounds| bounds.high).into(),
            unit_of_change(difference.metric).into(),
            difference.samples[0].into(),
            difference.samples[1].into(),
        ]);
    }
    table
}

fn effects(compared: &Compared<'_>) -> Option<Section> {
    let columns = vec![text("times"), number("delta", 3), number("candidate longer in %", 1), text("in words")];
    let mut table = Table::new("Of two times, one of each side", columns);
    for effect in compared.comparison.effects.iter().filter(|effect| effect.is_detected) {
        let often = 50.0 * (1.0 + effect.delta);
        table.row(vec![effect.times.text().into(), effect.delta.into(), often.into(), effect.word().into()]);
    }
    let mut section = Section::new("effects", "Effect on times");
    let has_rows = !table.rows.is_empty();
    section.push(table);
    has_rows.then_some(section)
}

fn method(compared: &Compared<'_>) -> Section {
    let mut section = Section::new("method", "How it was judged");
    let text = format!(
        "Times in ms. Intervals hold all together with {} %, those of --fail-on likewise among themselves: block bootstrap over \
         time, 1000 replicates, seed {}.",
        100.0 * CONFIDENCE,
        compared.options.seed
    );
    section.push(Block::Sentence { text: text.into() });
    if !compared.comparison.knows_runs {
        let text = format!(
            "One run on each side does not tell how much runs vary of themselves. They are taken to vary by {} % (standard \
             deviation; --run-variation). Several runs on each side would tell (--base).",
            100.0 * compared.options.run_variation
        );
        section.push(Block::Sentence { text: text.into() });
    }
    section
}
