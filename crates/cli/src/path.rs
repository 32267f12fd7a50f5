//! `profilemate path`: the folder to put on PYTHONPATH.

use std::process::ExitCode;

use crate::{package, say};

pub(crate) fn run() -> anyhow::Result<ExitCode> {
    say::result(&format!("{}\n", package::site_folder()?.display()))?;
    Ok(ExitCode::SUCCESS)
}
