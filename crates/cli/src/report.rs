//! `profilemate report`: the summary of a session.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{anyhow, bail};
use profilemate_output::text::json;
use profilemate_output::{tables, terminal};
use profilemate_session::{Error, Session};
use profilemate_settings::Settings;

use crate::say;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The session folder [default: the newest session]
    session: Option<PathBuf>,
    /// Print everything as one JSON document
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let folder = match &arguments.session {
        Some(folder) => folder.clone(),
        None => newest(Path::new(Settings::from_environment().0.text("output_dir")))?,
    };
    let session = Session::open(&folder)?;
    let answers = profilemate_analysis::analyze::<Error>(&session, |_| Ok(()))?;
    if arguments.json {
        say::result(&json(&tables::documents(&session, &answers)))?;
    } else {
        // What `report` shows is read from the raw logs; the tables may be older or missing.
        let tables = session.folder.join("metadata.json").exists().then(|| session.folder.clone());
        say::styled(&terminal::summary(&session, &answers, tables.as_deref()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The newest session of an output folder: names of sessions begin with their time.
pub(crate) fn newest(output_dir: &Path) -> anyhow::Result<PathBuf> {
    let mut sessions: Vec<PathBuf> = std::fs::read_dir(output_dir)
        .map_err(|error| {
            anyhow!("cannot list the sessions in {} ({error}): name a session folder", output_dir.display())
        })?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("session_")))
        .collect();
    sessions.sort();
    match sessions.pop() {
        Some(session) => Ok(session),
        None => {
            bail!("there is no session in {}: run `profilemate run -- vllm serve …` first", output_dir.display())
        }
    }
}
