//! `profilemate collect`: makes the tables of a session that was not started with `run`. The first process that
//! attaches starts it.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use profilemate_collect::{Collector, Ended, Patience};
use profilemate_settings::Settings;

use crate::say;

/// Where a collector without a terminal says what went wrong; made when there is something to say.
const LOG_FILE: &str = "collector.log";

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The session folder
    session: PathBuf,
    /// Go on in the background, out of reach of the terminal's signals
    #[arg(long)]
    detach: bool,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let session = std::fs::canonicalize(&arguments.session)
        .with_context(|| format!("cannot open the session {}", arguments.session.display()))?;
    if arguments.detach && !detach().context("cannot go on in the background")? {
        return Ok(ExitCode::SUCCESS);
    }
    let detached = arguments.detach;
    let result = follow(&session, detached);
    match result {
        Err(error) if detached => {
            note(&session, &format!("{error:#}"));
            Ok(ExitCode::FAILURE)
        }
        result => result,
    }
}

fn follow(session: &Path, detached: bool) -> anyhow::Result<ExitCode> {
    let Some(collector) = Collector::take(session)? else {
        // Every process of a launch may ask for one.
        return Ok(ExitCode::SUCCESS);
    };
    let (settings, _) = Settings::from_environment();
    let patience = Patience::new(Duration::from_secs(settings.number("refresh_seconds")));
    let told = session.to_path_buf();
    let followed = collector.follow(patience, move |error| {
        if detached {
            note(&told, &error.to_string());
        } else {
            say::problem(&error.to_string());
        }
    })?;
    if followed == Ended::AllGone {
        collector.make_tables()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A line in the session's `collector.log`.
fn note(session: &Path, text: &str) {
    if let Ok(mut file) = File::options().create(true).append(true).open(session.join(LOG_FILE)) {
        let _ = writeln!(file, "{}", profilemate_output::text::visible(text));
    }
}

/// Forks twice, so that nobody waits for us and no terminal controls us. `true` in the process that goes on.
fn detach() -> io::Result<bool> {
    if !fork()? {
        return Ok(false);
    }
    rustix::process::setsid()?;
    if !fork()? {
        return Ok(false);
    }
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    // A folder that somebody wants to unmount must not be held by us.
    std::env::set_current_dir("/")?;
    Ok(true)
}

/// Forks; `true` in the child.
fn fork() -> io::Result<bool> {
    // SAFETY: this process has one thread: the command has done nothing yet but read its arguments.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        child => Ok(child == 0),
    }
}
