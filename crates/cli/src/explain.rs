//! `profilemate explain`: why a step or a request took longer than others.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::bail;
use profilemate_analysis::explain::{Explainer, Recording, requests};
use profilemate_output::explanation;
use profilemate_output::text::{json, visible};
use profilemate_session::Session;
use profilemate_settings::Settings;

use crate::say;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The session folder [default: the newest session]
    session: Option<PathBuf>,
    /// Explain the engine step with this number, as in the tables
    #[arg(long, value_name = "N", conflicts_with_all = ["request", "slowest"])]
    step: Option<u64>,
    /// Explain the request with this id, the engine's or the client's
    #[arg(long, value_name = "ID", conflicts_with = "slowest")]
    request: Option<String>,
    /// Explain the steps that took the most longer than usual
    #[arg(long, value_name = "K", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    slowest: u32,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let folder = match &arguments.session {
        Some(folder) => folder.clone(),
        None => profilemate_session::newest(Path::new(Settings::from_environment().0.text("output_dir")))?,
    };
    let session = Session::open(&folder)?;
    let recording = Recording::read(&session)?;
    if recording.is_empty() && arguments.request.is_none() {
        bail!(
            "no step of this session can be explained: it has none with work whose results an engine is known to have \
             taken"
        );
    }
    let explainer = Explainer::new(&recording);
    let text = if let Some(number) = arguments.step {
        let found = explainer.step(number);
        if found.is_empty() {
            bail!("{}", no_step(&recording, number));
        }
        if arguments.json { json(&explanation::steps_json(&found)) } else { explanation::steps(&found) }
    } else if let Some(id) = &arguments.request {
        // Ids are shown with what would not be seen written out, and may be copied from there.
        let is_wanted = |found: &str| !found.is_empty() && (found == id || visible(found) == id.as_str());
        let found = requests::find(&session, &explainer, is_wanted)?;
        if found.requests.is_empty() {
            bail!("{}", no_request(&found, id));
        }
        if arguments.json { json(&explanation::requests_json(&found)) } else { explanation::requests(&found) }
    } else {
        let found = explainer.slowest(arguments.slowest as usize);
        if arguments.json {
            json(&explanation::slowest_json(&explainer, &found))
        } else {
            explanation::slowest(&explainer, &found)
        }
    };
    say::result(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// Why there is no such step, and which there are.
fn no_step(recording: &Recording, number: u64) -> String {
    if recording.is_unfinished(number) {
        return format!("step {number} was not over when the recording ended: nothing can be said of it");
    }
    let ranges: Vec<String> = recording
        .ranges()
        .into_iter()
        .map(|(engine, first, last, count)| {
            format!("{engine} has {count} steps with work, from {first} to {last}")
        })
        .collect();
    format!("there is no step {number} with work in this session: {}", ranges.join("; "))
}

/// Why there is no such request, and which there are.
fn no_request(found: &requests::Found<'_>, id: &str) -> String {
    if !found.is_recorded {
        return "the lives of requests were not recorded in this session (preemption_tracking was off)".to_owned();
    }
    match &found.examples {
        Some((first, last)) => format!(
            "there is no request {id:?} in this session: it has {}, the first is {first:?} and the last {last:?}; \
             request_lifecycle.csv lists them",
            found.total
        ),
        None => format!("there is no request {id:?} in this session: it has none"),
    }
}
