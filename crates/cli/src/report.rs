//! `profilemate report`: the summary of a session.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

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
        None => profilemate_session::newest(Path::new(Settings::from_environment().0.text("output_dir")))?,
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
