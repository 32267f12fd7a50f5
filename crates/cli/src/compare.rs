//! `profilemate compare`: what changed from some runs to others, and what of that is more than chance.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use profilemate_analysis::compare::condition::{Condition, ConditionError, Outcome};
use profilemate_analysis::compare::{Options, Run, compare};
use profilemate_output::comparison::{self, Compared};
use profilemate_output::html;
use profilemate_output::text::json;
use profilemate_session::Session;

use crate::say;

/// A `--fail-on` condition holds.
const CONDITION_HOLDS: u8 = 3;

#[expect(clippy::struct_excessive_bools, reason = "each is an option of its own")]
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A session of the base: what is compared with
    #[arg(value_name = "BASE", required_unless_present = "list_metrics")]
    first: Option<PathBuf>,
    /// Sessions of the candidate: one, or several runs of the same thing
    #[arg(value_name = "CANDIDATE", required_unless_present = "list_metrics")]
    candidate: Vec<PathBuf>,
    /// Another run of the base (repeatable)
    #[arg(long, value_name = "SESSION")]
    base: Vec<PathBuf>,
    /// End with code 3 if this holds beyond doubt: `decode.p99 > 5%`,
    /// `throughput.tokens_per_sec < -3%`, `gpu.idle_pct > 2pp` (repeatable)
    #[arg(long, value_name = "CONDITION", value_parser = condition, allow_hyphen_values = true)]
    fail_on: Vec<Condition>,
    /// End with code 3 also if a --fail-on condition is undecided
    #[arg(long, requires = "fail_on")]
    strict: bool,
    /// How much runs vary of themselves: the standard deviation in percent. It
    /// counts where there is one run on each side; several tell it
    #[arg(long, value_name = "PERCENT", value_parser = percent, default_value = "0.3")]
    run_variation: f64,
    /// What random choices begin with: the same seed, the same result
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,
    /// Show every figure
    #[arg(long)]
    all: bool,
    /// Print everything as one JSON document
    #[arg(long)]
    json: bool,
    /// Write a page for a browser to this file, too
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// List the metrics that --fail-on knows
    #[arg(long, exclusive = true)]
    list_metrics: bool,
}

fn condition(text: &str) -> Result<Condition, ConditionError> {
    Condition::parse(text)
}

fn percent(text: &str) -> Result<f64, String> {
    let value = text.trim_end_matches('%').trim_end().parse::<f64>().ok();
    value.filter(|value| (0.0..=100.0).contains(value)).ok_or_else(|| "expected a number from 0 to 100".to_owned())
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    if arguments.list_metrics {
        say::result(&comparison::metrics())?;
        return Ok(ExitCode::SUCCESS);
    }
    let options = Options {
        conditions: arguments.fail_on.clone(),
        run_variation: arguments.run_variation / 100.0,
        seed: arguments.seed,
    };
    let base: Vec<&Path> = arguments.first.iter().chain(&arguments.base).map(PathBuf::as_path).collect();
    let candidate: Vec<&Path> = arguments.candidate.iter().map(PathBuf::as_path).collect();
    let base = runs("base", &base, 0, &options)?;
    let candidate = runs("candidate", &candidate, base.len(), &options)?;
    let result = compare(&base, &candidate, &options);
    let compared = Compared { base: &base, candidate: &candidate, options: &options, comparison: &result };
    if let Some(path) = &arguments.html {
        html::write(&html::comparison(&compared), path)
            .with_context(|| format!("cannot write the page {}", path.display()))?;
    }
    if arguments.json {
        say::result(&json(&comparison::document(&compared)))?;
    } else {
        say::styled(&comparison::terminal(&compared, arguments.all))?;
    }
    let outcomes = || result.verdicts.iter().map(|verdict| verdict.outcome);
    let fails = |outcome: Outcome| match outcome {
        Outcome::Holds => true,
        Outcome::Undecided | Outcome::NotJudged(_) => arguments.strict,
        Outcome::DoesNotHold | Outcome::NotThere => false,
    };
    if outcomes().any(fails) {
        return Ok(ExitCode::from(CONDITION_HOLDS));
    }
    // A condition that nothing was recorded for must not pass for one that does not hold.
    if let Some(verdict) = result.verdicts.iter().find(|verdict| verdict.outcome == Outcome::NotThere) {
        bail!(
            "`{}` cannot be judged, since not both sides have {}: was its profiler on, and was there such work?",
            verdict.condition,
            verdict.condition.metric.name()
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// The runs of a side; `first` is the place of its first among all.
fn runs(side: &str, folders: &[&Path], first: usize, options: &Options) -> anyhow::Result<Vec<Run>> {
    let mut opened: Vec<PathBuf> = Vec::new();
    let mut runs = Vec::new();
    for (at, folder) in folders.iter().enumerate() {
        let session = Session::open(folder)?;
        if opened.contains(&session.folder) {
            bail!("{} is given twice for the {side}: a run counts once", folder.display());
        }
        runs.push(Run::read(&session, options.seed_of_run(first + at))?);
        opened.push(session.folder.clone());
    }
    Ok(runs)
}
