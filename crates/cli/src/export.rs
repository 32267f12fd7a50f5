//! `profilemate export`: the tables of a session and its page, made again from its raw logs.

use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::ValueEnum;
use profilemate_output::tables::{self, Formats};
use profilemate_session::Session;

use crate::say;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The session folder
    session: PathBuf,
    /// Folder for the tables [default: the session folder]
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Format of the tables; summaries are JSON in any case
    #[arg(long, value_enum, default_value_t = Format::Csv)]
    format: Format,
    /// Leave the page report.html out
    #[arg(long)]
    no_html: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// CSV
    Csv,
    /// Parquet, one file for each table
    Parquet,
    /// CSV and Parquet
    Both,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let formats = Formats {
        csv: matches!(arguments.format, Format::Csv | Format::Both),
        parquet: matches!(arguments.format, Format::Parquet | Format::Both),
        html: !arguments.no_html,
    };
    let session = Session::open(&arguments.session)?;
    let folder = match &arguments.output {
        Some(folder) => {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)
                .with_context(|| format!("cannot make the folder {}", folder.display()))?;
            folder
        }
        None => &session.folder,
    };
    tables::write_as(&session, folder, formats)?;
    for damage in &session.damage {
        say::problem(&format!("damaged: {}: {}", damage.file, damage.what));
    }
    if !session.damage.is_empty() {
        say::problem(&format!(
            "{} records were damaged and {} lost; everything else is in the tables",
            session.records_damaged(),
            session.records_lost()
        ));
    }
    say::result(&format!("{}\n", folder.display()))?;
    Ok(ExitCode::SUCCESS)
}
