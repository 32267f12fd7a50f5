//! `profilemate timeline`: what happened when, as a trace that Perfetto shows.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::bail;
use clap::CommandFactory;
use clap::error::ErrorKind;
use profilemate_analysis::processes;
use profilemate_output::timeline::{self, Window};
use profilemate_session::Session;
use profilemate_settings::Settings;

use crate::say;

/// The file, in the session's folder.
const FILE: &str = "timeline.pftrace";

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The session folder [default: the newest session]
    session: Option<PathBuf>,
    /// File for the trace [default: timeline.pftrace in the session folder]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Only what goes on after so many seconds of the session
    #[arg(long, value_name = "SEC", value_parser = seconds)]
    from: Option<u64>,
    /// Only what goes on before so many seconds of the session
    #[arg(long, value_name = "SEC", value_parser = seconds)]
    to: Option<u64>,
    /// Only the last seconds of the session
    #[arg(long, value_name = "SEC", value_parser = seconds, conflicts_with_all = ["from", "to"])]
    last: Option<u64>,
}

/// Seconds as nanoseconds.
fn seconds(text: &str) -> Result<u64, String> {
    match text.parse::<f64>() {
        // Under 2^63 nanoseconds: about 292 years.
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "in the range that was asked for"
        )]
        Ok(seconds) if (0.0..=9e9).contains(&seconds) => Ok((seconds * 1e9).round() as u64),
        _ => Err("give seconds since the session's start, such as 12.5".to_owned()),
    }
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let asked = Window { from_ns: arguments.from.unwrap_or(0), to_ns: arguments.to.unwrap_or(u64::MAX) };
    if asked.from_ns > asked.to_ns {
        crate::Arguments::command()
            .error(ErrorKind::ValueValidation, "`--from` lies behind `--to`: nothing goes on between the two")
            .print()?;
        return Ok(ExitCode::from(2));
    }
    let folder = match &arguments.session {
        Some(folder) => folder.clone(),
        None => profilemate_session::newest(Path::new(Settings::from_environment().0.text("output_dir")))?,
    };
    let session = Session::open(&folder)?;
    let window = match arguments.last {
        Some(last_ns) => Window { from_ns: processes::end_ns(&session)?.saturating_sub(last_ns), to_ns: u64::MAX },
        None => asked,
    };
    let path = arguments.output.clone().unwrap_or_else(|| session.folder.join(FILE));
    if path.is_dir() {
        bail!("{} is a folder: name a file with `--output`", path.display());
    }
    timeline::write(&session, window, &path)?;
    say::result(&format!("{}\n", path.display()))?;
    Ok(ExitCode::SUCCESS)
}
