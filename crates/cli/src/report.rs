//! `profilemate report`: the summary of a session, and its page.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::anyhow;
use profilemate_output::html::{self, Report};
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
    /// Write the page to this file [default: report.html in the session folder]
    #[arg(long, value_name = "FILE", conflicts_with = "no_html")]
    html: Option<PathBuf>,
    /// Write no page
    #[arg(long)]
    no_html: bool,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let folder = match &arguments.session {
        Some(folder) => folder.clone(),
        None => profilemate_session::newest(Path::new(Settings::from_environment().0.text("output_dir")))?,
    };
    let session = Session::open(&folder)?;
    // Who asks for JSON gets that alone, unless a page is asked for, too.
    let is_page_wanted = !arguments.no_html && (!arguments.json || arguments.html.is_some());
    let mut report = is_page_wanted.then(Report::default);
    let answers = profilemate_analysis::analyze::<Error>(&session, |row| {
        if let Some(report) = &mut report {
            report.see(&row);
        }
        Ok(())
    })?;
    let page =
        report.map(|report| write_page(arguments, &report.finish(&session, &answers), &session)).transpose()?;
    if arguments.json {
        say::result(&json(&tables::documents(&session, &answers)))?;
    } else {
        // What `report` shows is read from the raw logs; the tables may be older or missing.
        let tables = session.folder.join("metadata.json").exists().then(|| session.folder.clone());
        let summary = terminal::summary(&session, &answers, tables.as_deref());
        say::styled(&match page.flatten() {
            Some(page) => terminal::with_page(&summary, &page),
            None => summary,
        })?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes the page and says where it is. A session folder that cannot be written to still has a summary; a file that
/// somebody named is an error.
fn write_page(arguments: &Arguments, page: &str, session: &Session) -> anyhow::Result<Option<PathBuf>> {
    if let Some(path) = &arguments.html {
        html::write(page, path).map_err(|error| {
            let path = path.display();
            anyhow!("cannot write the page {path}: {error}; make room, or name another file with `--html`")
        })?;
        return Ok(Some(path.clone()));
    }
    let path = session.folder.join(html::FILE);
    match html::write(page, &path) {
        Ok(()) => Ok(Some(path)),
        Err(error) => {
            let path = path.display();
            say::problem(&format!(
                "cannot write the page {path}: {error}; make room, or name another file with `--html`"
            ));
            Ok(None)
        }
    }
}
