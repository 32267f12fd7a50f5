//! What differs between runs, for a terminal and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write;

use anstyle::{AnsiColor, Color, Style};
use profilemate_analysis::compare::condition::Outcome;
use profilemate_analysis::compare::{
    Better, CONFIDENCE, Comparison, Difference, LEAST_SAMPLES, LEAST_TAIL_SAMPLES, LOAD_DIFFERS_PCT, Metric,
    NotJudged, Options, Run, Verdict, Workload,
};
use serde_json::{Value, json};

use crate::numbers::{duration, grouped};
use crate::tables::{number, object};
use crate::terminal::page::{WIDTH, styled};
use crate::text::visible;

/// What is to be shown.
#[derive(Debug, Clone, Copy)]
pub struct Compared<'a> {
    /// Runs of the base.
    pub base: &'a [Run],
    /// Runs of the candidate.
    pub candidate: &'a [Run],
    /// What was asked.
    pub options: &'a Options,
    /// What came out.
    pub comparison: &'a Comparison,
}

/// Shown even where nothing differs.
const USUAL: [&str; 14] = [
    "throughput.tokens_per_sec",
    "throughput.requests_per_sec",
    "prefill.p50",
    "decode.p50",
    "decode.p99",
    "mixed.p50",
    "engine_step.p50",
    "engine_step.p99",
    "ttft.p50",
    "ttft.p99",
    "tpot.p50",
    "tpot.p99",
    "e2e.p50",
    "gpu.idle_pct",
];

/// What a difference is, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Word {
    Worse,
    Better,
    Changed,
    None,
    NotJudged,
}

impl Word {
    pub(crate) fn of(difference: &Difference) -> Self {
        match (&difference.interval, difference.is_detected, difference.is_better()) {
            (Err(_), ..) => Self::NotJudged,
            (_, false, _) => Self::None,
            (_, _, Some(false)) => Self::Worse,
            (_, _, Some(true)) => Self::Better,
            (_, _, None) => Self::Changed,
        }
    }

    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Worse => "worse",
            Self::Better => "better",
            Self::Changed => "changed",
            Self::None => "no detectable difference",
            Self::NotJudged => "not judged",
        }
    }

    fn colour(self) -> Option<AnsiColor> {
        match self {
            Self::Worse => Some(AnsiColor::Red),
            Self::Better => Some(AnsiColor::Green),
            Self::Changed => Some(AnsiColor::Yellow),
            Self::None | Self::NotJudged => None,
        }
    }
}

fn why(why: NotJudged) -> String {
    match why {
        NotJudged::TooFewSamples => format!(
            "too few samples: {LEAST_SAMPLES} are needed, {LEAST_TAIL_SAMPLES} of them beyond a percentile, spread over \
             the run"
        ),
        NotJudged::Extreme => {
            "an extreme: one run does not say how far off it may be, two on each side do".to_owned()
        }
        NotJudged::Zero => "0 on a side: there is nothing to take a share of".to_owned(),
    }
}

/// A value with as many digits as it deserves.
fn value(value: f64) -> String {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "shown without its fraction")]
    match value.abs() {
        size if size >= 1e9 => format!("{value:.2e}"),
        size if size >= 999.95 => grouped(value.round() as u64),
        size if size >= 100.0 => format!("{value:.1}"),
        size if size >= 1.0 || size == 0.0 => format!("{value:.3}"),
        _ => format!("{value:.4}"),
    }
}

/// A change with its sign.
pub(crate) fn signed(value: f64) -> String {
    match value.abs() {
        size if size >= 1e6 || !size.is_finite() => format!("{value:+.0e}"),
        size if size >= 100.0 => format!("{value:+.0}"),
        size if size >= 10.0 => format!("{value:+.1}"),
        // Not "-0.00".
        size if size < 0.005 => "+0.00".to_owned(),
        _ => format!("{value:+.2}"),
    }
}

pub(crate) fn unit_of_change(metric: Metric) -> &'static str {
    if metric.is_in_points() { "pp" } else { "%" }
}

/// The text, 80 columns wide but for names that are longer, with styles that whoever prints it takes out where there is no
/// terminal. `all`: every metric, not only those that differ and those that everybody asks for.
pub fn terminal(compared: &Compared<'_>, all: bool) -> String {
    let mut text = String::new();
    let comparison = compared.comparison;
    sides(&mut text, compared);
    warnings(&mut text, compared);
    let mut words: BTreeMap<&'static str, Vec<&Difference>> = BTreeMap::new();
    for difference in &comparison.differences {
        words.entry(Word::of(difference).text()).or_default().push(difference);
    }
    let of = |word: Word| words.get(word.text()).map_or(&[][..], Vec::as_slice);
    text.push('\n');
    text.push_str(&headline(
        comparison.judged,
        of(Word::Worse).len(),
        of(Word::Better).len(),
        of(Word::Changed).len(),
    ));
    for word in [Word::Worse, Word::Better, Word::Changed] {
        section(&mut text, word, of(word));
    }
    let none = of(Word::None);
    let usual: Vec<&Difference> = none
        .iter()
        .filter(|difference| all || USUAL.contains(&difference.metric.name().as_str()))
        .copied()
        .collect();
    section(&mut text, Word::None, &usual);
    if none.len() > usual.len() {
        let _ = writeln!(text, "  and {} more (--all)", none.len() - usual.len());
    }
    not_judged(&mut text, of(Word::NotJudged), all);
    effects(&mut text, comparison);
    verdicts(&mut text, comparison);
    method(&mut text, compared);
    text
}

fn sides(text: &mut String, compared: &Compared<'_>) {
    for (side, runs) in [("base", compared.base), ("candidate", compared.candidate)] {
        for (at, run) in runs.iter().enumerate() {
            let label = if at == 0 { side } else { "" };
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a duration")]
            let nanoseconds = (run.workload.seconds * 1e9) as u64;
            let counts = [(run.workload.steps, "steps"), (run.workload.requests, "requests")];
            let known = counts.into_iter().filter_map(|(count, of)| Some(format!(", {} {of}", grouped(count?))));
            let counts: String = known.collect();
            let _ = writeln!(text, "{label:<13}{}: {}{counts}", visible(&run.name), duration(nanoseconds));
        }
    }
}

pub(crate) fn headline(judged: usize, worse: usize, better: usize, changed: usize) -> String {
    let found = worse + better + changed;
    if judged == 0 {
        return "No figure could be judged.\n".to_owned();
    }
    if found == 0 {
        return format!("No detectable difference in any of {judged} figures.\n");
    }
    let parts = [(worse, "worse"), (better, "better"), (changed, "changed, for better or worse")];
    let parts = parts.into_iter().filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}"));
    let verb = if found == 1 { "differs" } else { "differ" };
    format!("{found} of {judged} figures {verb} detectably: {}.\n", parts.collect::<Vec<_>>().join(", "))
}

/// A text that somebody should see first.
fn painted(text: &str, colour: Option<AnsiColor>) -> String {
    styled(Style::new().bold().fg_color(colour.map(Color::Ansi)), text)
}

fn section(text: &mut String, word: Word, differences: &[&Difference]) {
    if differences.is_empty() {
        return;
    }
    let title = format!("{:<34}", capital(word.text()));
    let _ = writeln!(
        text,
        "\n{}{:>10}{:>11}{:>9}{}",
        painted(&title, word.colour()),
        "base",
        "candidate",
        "change",
        if word == Word::NotJudged { "" } else { "        interval" }
    );
    for difference in differences {
        let shown = |side: Option<f64>| side.map_or(String::new(), value);
        let bounds = |low, high| format!("{} to {}", signed(low), signed(high));
        let interval = difference.interval.map_or(String::new(), |interval| bounds(interval.low, interval.high));
        let change = difference.change.map_or(String::new(), signed);
        let line = format!(
            "  {:<32}{:>10}{:>11}{change:>7}{:<2}{interval:>16}",
            difference.metric.name(),
            shown(difference.base),
            shown(difference.candidate),
            if change.is_empty() { "" } else { unit_of_change(difference.metric) },
        );
        let _ = writeln!(text, "{}", line.trim_end());
    }
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}

/// Words in lines of at most [`WIDTH`] columns, the first indented by so much and the others by so much.
fn filled(text: &mut String, words: &str, [indent, hanging]: [usize; 2]) {
    let mut line = " ".repeat(indent);
    let mut is_empty = true;
    for word in words.split_whitespace() {
        if !is_empty && line.chars().count() + 1 + word.chars().count() > WIDTH {
            let _ = writeln!(text, "{line}");
            line = " ".repeat(hanging);
            is_empty = true;
        }
        if !is_empty {
            line.push(' ');
        }
        line.push_str(word);
        is_empty = false;
    }
    let _ = writeln!(text, "{line}");
}

fn warnings(text: &mut String, compared: &Compared<'_>) {
    let comparison = compared.comparison;
    let warning = |text: &mut String, words: &str| {
        let mut lines = String::new();
        filled(&mut lines, &format!("warning: {words}"), [0, 2]);
        let rest = lines.strip_prefix("warning").unwrap_or(&lines);
        let _ = write!(text, "\n{}{rest}", painted("warning", Some(AnsiColor::Yellow)));
    };
    if !comparison.mismatches.is_empty() {
        warning(text, "not all runs were made alike:");
        for mismatch in &comparison.mismatches {
            let side = |values: &[Option<String>]| {
                let values: Vec<String> = values
                    .iter()
                    .map(|value| match value.as_deref() {
                        None if mismatch.what.starts_with('-') => "(not given)".to_owned(),
                        None => "(not known)".to_owned(),
                        Some("") => "(set)".to_owned(),
                        Some(value) => visible(value).into_owned(),
                    })
                    .collect();
                values.join(" | ")
            };
            let (what, base, candidate) =
                (visible(&mismatch.what), side(&mismatch.base), side(&mismatch.candidate));
            filled(text, &format!("{what}: {base} -> {candidate}"), [2, 4]);
        }
    }
    if !comparison.loads.is_empty() {
        let words = format!(
            "the load differs by more than {LOAD_DIFFERS_PCT} %, so times cannot be compared as they are: look at \
             throughput, or repeat it with the same load:"
        );
        warning(text, &words);
        for load in &comparison.loads {
            filled(text, &format!("{}: {} -> {}", load.what, value(load.base), value(load.candidate)), [2, 4]);
        }
    }
    for run in compared.base.iter().chain(compared.candidate) {
        let name = visible(&run.name);
        if run.is_running {
            warning(text, &format!("{name} still runs: these are the figures so far"));
        }
        let missing = run.records_lost.saturating_add(run.records_damaged);
        if missing > 0 {
            warning(text, &format!("records of {name} that are lost or damaged: {}", grouped(missing)));
        }
    }
}

/// Why a figure has no interval; `None` = it has one.
pub(crate) fn reason(difference: &Difference) -> Option<String> {
    match (difference.base, difference.candidate, difference.interval) {
        (None, ..) => Some("only the candidate has it".to_owned()),
        (_, None, _) => Some("only the base has it".to_owned()),
        (.., Err(reason)) => Some(why(reason)),
        (.., Ok(_)) => None,
    }
}

/// Figures without an interval, in a table; why there is none, if all are shown.
fn not_judged(text: &mut String, differences: &[&Difference], all: bool) {
    let shown: Vec<&Difference> = differences
        .iter()
        .filter(|difference| {
            let is_both = difference.base.is_some() && difference.candidate.is_some();
            all || is_both && USUAL.contains(&difference.metric.name().as_str())
        })
        .copied()
        .collect();
    if !all {
        section(text, Word::NotJudged, &shown);
        let more = differences.len() - shown.len();
        if more > 0 {
            let lead = if shown.is_empty() { "\n" } else { "  and " };
            let _ = writeln!(text, "{lead}{more} more that cannot be judged (--all says why)");
        }
        return;
    }
    let mut reasons: Vec<(String, Vec<&Difference>)> = Vec::new();
    for difference in shown {
        let Some(reason) = reason(difference) else { continue };
        match reasons.iter_mut().find(|(found, _)| *found == reason) {
            Some((_, found)) => found.push(difference),
            None => reasons.push((reason, vec![difference])),
        }
    }
    for (reason, differences) in reasons {
        section(text, Word::NotJudged, &differences);
        filled(text, &format!("({reason})"), [2, 3]);
    }
}

fn effects(text: &mut String, comparison: &Comparison) {
    let mut found = comparison.effects.iter().filter(|effect| effect.is_detected).peekable();
    if found.peek().is_some() {
        let _ = writeln!(text, "\n{:<34}{:>10}  longer of two times", "Effect on times", "delta");
    }
    for effect in found {
        let often = 50.0 * (1.0 + effect.delta);
        let _ = writeln!(
            text,
            "  {:<32}{:>10}  candidate's in {often:.0} % ({})",
            effect.times.text(),
            format!("{:+.2}", effect.delta),
            effect.word()
        );
    }
}

/// What became of a condition: a word for it, and why.
pub(crate) fn outcome(verdict: &Verdict) -> (&'static str, String) {
    let unit = unit_of_change(verdict.condition.metric);
    let change = match (verdict.change, verdict.interval) {
        (Some(change), Some(interval)) => {
            format!("{} {unit} ({} to {})", signed(change), signed(interval.low), signed(interval.high))
        }
        (Some(change), None) => format!("{} {unit}", signed(change)),
        _ => String::new(),
    };
    match verdict.outcome {
        Outcome::Holds => ("holds", change),
        Outcome::DoesNotHold => ("does not hold", change),
        Outcome::Undecided => ("undecided", format!("{change}: more or longer runs would tell")),
        Outcome::NotJudged(reason) => ("undecided", why(reason)),
        Outcome::NotThere => ("not there", "not both sides have this figure".to_owned()),
    }
}

fn verdicts(text: &mut String, comparison: &Comparison) {
    if comparison.verdicts.is_empty() {
        return;
    }
    text.push_str("\nConditions\n");
    for verdict in &comparison.verdicts {
        let (word, reason) = outcome(verdict);
        let colour = match verdict.outcome {
            Outcome::Holds | Outcome::NotThere => Some(AnsiColor::Red),
            Outcome::DoesNotHold => Some(AnsiColor::Green),
            Outcome::Undecided | Outcome::NotJudged(_) => Some(AnsiColor::Yellow),
        };
        let comma = if reason.is_empty() { "" } else { ", " };
        let mut lines = String::new();
        filled(&mut lines, &format!("{}: {word}{comma}{reason}", verdict.condition), [2, 4]);
        text.push_str(&lines.replacen(word, &painted(word, colour), 1));
    }
}

fn method(text: &mut String, compared: &Compared<'_>) {
    text.push('\n');
    let (comparison, options) = (compared.comparison, compared.options);
    let confidence = 100.0 * CONFIDENCE;
    let seed = options.seed;
    filled(
        text,
        &format!(
            "Times in ms. Intervals of the table hold all together with {confidence} %, those of --fail-on likewise \
             among themselves: block bootstrap over time, 1000 replicates, seed {seed}."
        ),
        [0, 0],
    );
    if !comparison.knows_runs {
        let variation = 100.0 * options.run_variation;
        let words = format!(
            "One run on each side does not tell how much runs vary of themselves. They are taken to vary by {variation} % \
             (standard deviation; --run-variation). Several runs on each side would tell (--base)."
        );
        filled(text, &words, [0, 0]);
    }
}

/// Everything, as one document.
pub fn document(compared: &Compared<'_>) -> Value {
    let (comparison, options) = (compared.comparison, compared.options);
    let side = |runs: &[Run]| json!({"runs": runs.iter().map(run).collect::<Vec<_>>()});
    let mismatches = comparison
        .mismatches
        .iter()
        .map(|mismatch| json!({"what": mismatch.what, "base": mismatch.base, "candidate": mismatch.candidate}));
    let loads = comparison
        .loads
        .iter()
        .map(|load| json!({"what": load.what, "base": load.base, "candidate": load.candidate}));
    let effects = comparison.effects.iter().map(|effect| {
        json!({
            "times": effect.times.text(),
            "cliffs_delta": effect.delta,
            "size": effect.word(),
            "detected": effect.is_detected,
        })
    });
    let mut document = json!({
        "base": side(compared.base),
        "candidate": side(compared.candidate),
        "method": object([
            ("confidence_pct", number(100.0 * CONFIDENCE)),
            ("replicates", Some(1000.into())),
            ("seed", Some(options.seed.into())),
            ("judged_metrics", Some(comparison.judged.into())),
            ("reach_in_standard_errors", number(comparison.reach)),
            ("run_to_run_variation_known", Some(comparison.knows_runs.into())),
            ("assumed_run_variation_pct", number(100.0 * options.run_variation).filter(|_| !comparison.knows_runs)),
        ]),
        "environment_differences": mismatches.collect::<Vec<_>>(),
        "load_differences": loads.collect::<Vec<_>>(),
        "metrics": comparison.differences.iter().map(metric).collect::<Vec<_>>(),
        "effects": effects.collect::<Vec<_>>(),
    });
    document["conditions"] = comparison.verdicts.iter().map(verdict).collect();
    document
}

fn run(run: &Run) -> Value {
    let Workload {
        seconds,
        steps,
        requests,
        sequences_per_step,
        tokens_per_step,
        decode_steps_pct,
        prompt_tokens_per_request,
        output_tokens_per_request,
    } = run.workload;
    let maybe = |value: Option<f64>| value.and_then(number);
    object([
        ("session", Some(run.name.clone().into())),
        ("duration_sec", number(seconds)),
        ("engine_steps", steps.map(Value::from)),
        ("requests", requests.map(Value::from)),
        ("sequences_per_step", maybe(sequences_per_step)),
        ("tokens_per_step", maybe(tokens_per_step)),
        ("decode_steps_pct", maybe(decode_steps_pct)),
        ("prompt_tokens_per_request", maybe(prompt_tokens_per_request)),
        ("output_tokens_per_request", maybe(output_tokens_per_request)),
        ("records_lost", Some(run.records_lost.into())),
        ("records_damaged", Some(run.records_damaged.into())),
        ("still_running", Some(run.is_running.into())),
    ])
}

fn metric(difference: &Difference) -> Value {
    let metric = difference.metric;
    let better = match metric.better() {
        Better::Lower => Some("lower".into()),
        Better::Higher => Some("higher".into()),
        Better::Neither => None,
    };
    let interval = difference.interval.ok();
    object([
        ("metric", Some(metric.name().into())),
        ("unit", Some(metric.unit().into())),
        ("better", better),
        ("base", difference.base.and_then(number)),
        ("candidate", difference.candidate.and_then(number)),
        ("base_runs", Some(difference.base_runs.clone().into())),
        ("candidate_runs", Some(difference.candidate_runs.clone().into())),
        ("base_samples", Some(difference.samples[0].into())),
        ("candidate_samples", Some(difference.samples[1].into())),
        ("change", difference.change.and_then(number)),
        ("change_unit", Some(unit_of_change(metric).into())),
        ("low", interval.and_then(|interval| number(interval.low))),
        ("high", interval.and_then(|interval| number(interval.high))),
        ("block_pct_of_run", difference.block.and_then(|block| number(100.0 * block))),
        ("verdict", Some(Word::of(difference).text().into())),
        ("not_judged", difference.interval.err().map(|reason| why(reason).into())),
    ])
}

fn verdict(verdict: &Verdict) -> Value {
    let (word, reason) = outcome(verdict);
    let reason = matches!(verdict.outcome, Outcome::NotJudged(_) | Outcome::NotThere).then(|| reason.into());
    object([
        ("condition", Some(verdict.condition.to_string().into())),
        ("outcome", Some(word.into())),
        ("why", reason),
        ("change", verdict.change.and_then(number)),
        ("low", verdict.interval.and_then(|interval| number(interval.low))),
        ("high", verdict.interval.and_then(|interval| number(interval.high))),
    ])
}

/// Every metric with what it is.
pub fn metrics() -> String {
    let mut text = format!("{:<34}{:<6}{:<8}what it is\n", "metric", "unit", "better");
    for metric in Metric::all() {
        let better = match metric.better() {
            Better::Lower => "lower",
            Better::Higher => "higher",
            Better::Neither => "",
        };
        let _ = writeln!(text, "{:<34}{:<6}{better:<8}{}", metric.name(), metric.unit(), metric.meaning());
    }
    text
}
