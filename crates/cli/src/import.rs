//! `profilemate import`: a session from what something else recorded.

use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use clap::Subcommand;
use profilemate_import::vllm_log::{self, Imported};
use profilemate_output::tables;
use profilemate_session::Session;
use profilemate_settings::Settings;

use crate::say;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The log of a vLLM that ran with --enable-logging-iteration-details
    VllmLog(VllmLog),
}

#[derive(Debug, clap::Args)]
struct VllmLog {
    /// The log; - reads from standard input
    file: PathBuf,
    /// Folder in which the session is made [default: as for recorded sessions]
    #[arg(long, value_name = "DIR")]
    output_dir: Option<PathBuf>,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let What::VllmLog(arguments) = &arguments.what;
    let settings = Settings::from_environment().0;
    let output_dir = arguments.output_dir.as_deref().unwrap_or_else(|| Path::new(settings.text("output_dir")));
    let imported = if arguments.file.as_os_str() == "-" {
        vllm_log::import(io::stdin().lock(), "the log", seconds(SystemTime::now()), output_dir)?
    } else {
        let name = arguments.file.display().to_string();
        let file = File::open(&arguments.file).with_context(|| format!("cannot read {name}"))?;
        // A copy of a log is younger than its last line, or as old.
        let written =
            file.metadata().and_then(|metadata| metadata.modified()).unwrap_or_else(|_| SystemTime::now());
        vllm_log::import(BufReader::with_capacity(1 << 18, file), &name, seconds(written), output_dir)?
    };
    say::text(&account(&imported));
    let session = Session::open(&imported.folder)?;
    tables::write_with_report(&session, &session.folder)?;
    say::result(&format!("{}\n", imported.folder.display()))?;
    Ok(ExitCode::SUCCESS)
}

fn seconds(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

/// `1 line`, `2 lines`.
fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// What became of the log, line by line.
fn account(imported: &Imported) -> String {
    let lines = &imported.lines;
    let mut notes: Vec<String> = imported
        .engines
        .iter()
        .map(|engine| {
            let times = engine.error_ns as f64 / 1e6;
            let missing = match engine.missing {
                0 => String::new(),
                missing => format!("; {missing} more between the first and the last are not in the log"),
            };
            let iterations = counted(engine.iterations, "iteration");
            format!("engine_core-{}: {iterations}, times good to {times:.0} ms{missing}", engine.rank)
        })
        .collect();
    if lines.dummy > 0 {
        notes.push(format!("{} without requests", counted(lines.dummy, "iteration")));
    }
    if lines.repeated > 0 {
        notes.push(format!("{} left out: the same was there before", counted(lines.repeated, "iteration")));
    }
    if lines.without_time > 0 {
        notes.push(format!("{} left out: no time in front of them", counted(lines.without_time, "iteration")));
    }
    if let Some(first) = lines.first_unknown {
        let unknown = counted(lines.unknown, "line");
        notes.push(format!(
            "{unknown} left out: like an iteration, in an unknown format (the first: line {first})"
        ));
    }
    if lines.throughput > 0 {
        notes.push(format!(
            "{} not used: averages over some seconds, of no step",
            counted(lines.throughput, "line")
        ));
    }
    notes.push(format!("{} of something else", counted(lines.other, "line")));
    notes.into_iter().flat_map(|note| [note, "\n".to_owned()]).collect()
}
