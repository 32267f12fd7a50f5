//! `profilemate doctor`: what would attach to the vLLM that is installed here. The answer comes from Python: it is
//! Python's modules that are looked at.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::anyhow;

use crate::package;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The Python that runs vLLM
    #[arg(long, value_name = "PYTHON", default_value = "python3")]
    python: PathBuf,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let script = package::find()?.join("doctor.py");
    let status =
        Command::new(&arguments.python).arg(&script).args(arguments.json.then_some("--json")).status().map_err(
            |error| {
                let python = arguments.python.display();
                anyhow!("cannot start {python} ({error}): name the Python that runs vLLM with --python")
            },
        )?;
    Ok(crate::run::exit_as(status))
}
