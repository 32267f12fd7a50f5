//! `profilemate`: profiles a launch of vLLM and shows what was recorded. One file per command.
//!
//! Exit codes: 0 = done, 1 = failed, 2 = wrong usage, 3 = done, and a condition of `compare --fail-on` holds; `run` and `doctor`
//! end as their child ended.

mod collect;
mod compare;
mod completions;
mod doctor;
mod explain;
mod export;
mod file_size;
mod ignored;
mod import;
mod package;
mod path;
mod report;
mod run;
mod say;
mod timeline;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Flight recorder for vLLM: where the time went, how full the batches were, what to change.
#[derive(Debug, Parser)]
#[command(name = "profilemate", version, max_term_width = 80)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a command that starts vLLM, and profile it
    Run(run::Arguments),
    /// Make the tables of a session again from its raw logs
    Export(export::Arguments),
    /// Print the summary of a session (default: the newest)
    Report(report::Arguments),
    /// Make a session from what something else recorded
    Import(import::Arguments),
    /// Say why a step or a request took longer than others
    Explain(explain::Arguments),
    /// Compare the runs of two builds or settings, and say what differs detectably
    Compare(compare::Arguments),
    /// Write the timeline of a session, for ui.perfetto.dev (default: the newest)
    Timeline(timeline::Arguments),
    /// Print the folder to put on PYTHONPATH, to profile without `run`
    Path,
    /// Show what would attach to the vLLM that is installed here, and what not
    Doctor(doctor::Arguments),
    /// Follow a running session and complete its tables when its processes are gone
    #[command(hide = true)]
    Collect(collect::Arguments),
    /// Print a completion script for a shell
    Completions(completions::Arguments),
}

fn main() -> ExitCode {
    file_size::ignore_signal();
    let result = match Arguments::parse().command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Export(arguments) => export::run(&arguments),
        Command::Report(arguments) => report::run(&arguments),
        Command::Import(arguments) => import::run(&arguments),
        Command::Explain(arguments) => explain::run(&arguments),
        Command::Compare(arguments) => compare::run(&arguments),
        Command::Timeline(arguments) => timeline::run(&arguments),
        Command::Path => path::run(),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Collect(arguments) => collect::run(&arguments),
        Command::Completions(arguments) => completions::run(&arguments),
    };
    result.unwrap_or_else(|error| {
        if say::is_broken_pipe(&error) {
            // Whoever read our output has seen enough.
            return ExitCode::SUCCESS;
        }
        say::problem(&format!("{error:#}"));
        ExitCode::FAILURE
    })
}
