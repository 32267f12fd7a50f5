//! `profilemate run`: profiles a launch. The command's exit code, signals and terminal pass through untouched.

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::time::{Duration, Instant};

use profilemate_collect::{Collector, LAUNCHER, Refresher};
use profilemate_output::{html, terminal};
use profilemate_record::{Options, Writer, clock, session_folder};
use profilemate_settings::{CONFIG_VARIABLE, Settings, internal};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::SignalsInfo;
use signal_hook::iterator::exfiltrator::WithOrigin;
use signal_hook::low_level::siginfo::{Cause, Origin};

use crate::{file_size, ignored, package, say};

/// How long the processes that the command leaves behind may take to end.
const LEFT_BEHIND: Duration = Duration::from_secs(30);

/// After this time it is said what is waited for.
const SILENT: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Configuration file (profilemate.toml)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder in which the session folder is made
    #[arg(long, value_name = "DIR")]
    output_dir: Option<PathBuf>,
    /// The command that starts vLLM
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    command: Vec<OsString>,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let config = arguments.config.as_deref().map(std::path::absolute).transpose()?;
    let (settings, problems) = Settings::load(|name| match &config {
        Some(path) if name == CONFIG_VARIABLE => Some(path.to_string_lossy().into_owned()),
        _ => std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()),
    });
    for problem in problems {
        say::problem(&problem.to_string());
    }
    if !settings.switch("enable") {
        say::problem("profiling is switched off (enable = 0): running the command without it");
        return Ok(run_unprofiled(arguments));
    }
    let output_dir = arguments.output_dir.clone().unwrap_or_else(|| settings.text("output_dir").into());
    let launch = package::site_folder()
        .map_err(|error| format!("{error:#}"))
        .and_then(|site| Ok((site, new_session(&output_dir)?)));
    match launch {
        Ok((site, session)) => Ok(run_profiled(arguments, &settings, config.as_deref(), &site, &session)),
        Err(reason) => {
            say::problem(&format!("{reason}; running the command without profiling"));
            Ok(run_unprofiled(arguments))
        }
    }
}

/// Makes a session folder and takes it over.
fn new_session(output_dir: &Path) -> Result<Collector, String> {
    let output_dir = std::path::absolute(output_dir).map_err(|error| error.to_string())?;
    let session = session_folder::create(&output_dir).map_err(|error| {
        format!(
            "cannot make a session folder in {}: {error} (choose another with --output-dir)",
            output_dir.display()
        )
    })?;
    let reason = match Collector::take(&session) {
        Ok(Some(collector)) => return Ok(collector),
        Ok(None) => format!("another collector has {}", session.display()),
        Err(error) => error.to_string(),
    };
    remove_session(&session);
    Err(reason)
}

/// Becomes the command.
fn run_unprofiled(arguments: &Arguments) -> ExitCode {
    file_size::restore_signal();
    let error = Command::new(&arguments.command[0]).args(&arguments.command[1..]).exec();
    not_started(&arguments.command[0], &error)
}

/// Says that a command cannot be started, with the exit codes of a shell.
fn not_started(program: &OsString, error: &std::io::Error) -> ExitCode {
    let program = program.to_string_lossy();
    if error.kind() == ErrorKind::NotFound {
        say::problem(&format!("cannot find the command {program}: check its spelling and PATH"));
        return ExitCode::from(127);
    }
    say::problem(&format!("cannot start {program}: {error}"));
    ExitCode::from(126)
}

fn run_profiled(
    arguments: &Arguments,
    settings: &Settings,
    config: Option<&Path>,
    site: &Path,
    collector: &Collector,
) -> ExitCode {
    // What whoever started us ignores the command ignores, as without us: under `nohup` it outlives its terminal. We are told
    // nevertheless: it may have its own way with a signal that is sent to us.
    let watched = [SIGINT, SIGQUIT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2, SIGCHLD];
    let ignored: Vec<i32> = watched.into_iter().filter(|signal| ignored::is_ignored(*signal)).collect();
    // Before the child is there: no signal may get lost in between.
    let signals = SignalsInfo::<WithOrigin>::new(watched);
    let mut signals = match signals {
        Ok(signals) => signals,
        Err(error) => {
            say::problem(&format!("cannot watch signals ({error}); running the command without profiling"));
            remove_session(collector.folder());
            return run_unprofiled(arguments);
        }
    };
    let mut log = open_log(collector.folder(), arguments);
    let mut command = Command::new(&arguments.command[0]);
    file_size::restore_signal_in(&mut command);
    ignored::ignore_in(&mut command, ignored.clone());
    let child = command
        .args(&arguments.command[1..])
        .env(internal::SESSION, collector.folder())
        .env(internal::COLLECTOR, LAUNCHER)
        .env("PYTHONPATH", python_path(site))
        .envs(config.map(|path| (CONFIG_VARIABLE, path)))
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => {
            if let Some(log) = log {
                log.close();
            }
            remove_session(collector.folder());
            return not_started(&arguments.command[0], &error);
        }
    };
    let interval = Duration::from_secs(settings.number("refresh_seconds"));
    let refresher =
        Refresher::start(collector.folder(), interval, |error| say::problem(&format!("tables: {error}")));
    let status = wait(&mut child, &mut signals);
    if let Some(log) = &mut log {
        push_exit(log, child.id(), status);
    }
    refresher.stop();
    wait_for_writers(collector, &mut signals, &ignored);
    if let Some(log) = log {
        log.close();
    }
    finish(collector);
    exit_as(status)
}

/// The launcher's own log. Without one, how the command ended is not in the session; nothing else is missing.
fn open_log(session: &Path, arguments: &Arguments) -> Option<Writer> {
    let options = Options {
        session_folder: session.to_path_buf(),
        role: LAUNCHER.to_owned(),
        rank: 0,
        data_parallel_rank: 0,
        // One record comes into it.
        segment_bytes: 4096,
        max_bytes: 1 << 20,
        text_capacity: 64 << 10,
    };
    match Writer::open(&options) {
        Ok(mut log) => {
            let words: Vec<_> = arguments.command.iter().map(|word| word.to_string_lossy()).collect();
            log.fact("command", &profilemate_redact::command_line(words.iter().map(AsRef::as_ref)));
            Some(log)
        }
        Err(error) => {
            say::problem(&format!("cannot write the launcher's log: {error}; going on without it"));
            None
        }
    }
}

fn push_exit(log: &mut Writer, pid: u32, status: ExitStatus) {
    use profilemate_format::record::{Label, Payload, ProcessExit, Record};
    let exit = ProcessExit {
        pid: u64::from(pid),
        code: status.code().map_or(0, i64::from),
        signal: status.signal().map_or(0, |signal| u64::from(signal.unsigned_abs())),
    };
    log.push(&Record {
        ticks: clock::ticks(),
        step: 0,
        label: Label::Work,
        flags: 0,
        name: 0,
        payload: Payload::ProcessExit(exit),
    });
}

fn python_path(site: &Path) -> OsString {
    let mut path = site.as_os_str().to_owned();
    if let Some(rest) = std::env::var_os("PYTHONPATH").filter(|rest| !rest.is_empty()) {
        path.push(":");
        path.push(rest);
    }
    path
}

/// Waits for the child and hands on to it what was sent to us.
fn wait(child: &mut Child, signals: &mut SignalsInfo<WithOrigin>) -> ExitStatus {
    loop {
        // A child that ended has told us so with a signal that may be here already.
        match child.try_wait() {
            Ok(Some(status)) => return status,
            Ok(None) => {}
            Err(error) => {
                say::problem(&format!("cannot wait for the command: {error}"));
                return ExitStatus::from_raw(0);
            }
        }
        for origin in signals.wait() {
            pass_on(child, &origin);
        }
    }
}

/// The terminal sends Ctrl-C and Ctrl-\ to the child as well, which is in our group: passing those on would make two
/// of one. What somebody sent to us alone is passed on.
fn pass_on(child: &Child, origin: &Origin) {
    let from_terminal = matches!(origin.signal, SIGINT | SIGQUIT) && !matches!(origin.cause, Cause::Sent(_));
    if origin.signal == SIGCHLD || from_terminal {
        return;
    }
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let (Some(pid), Some(signal)) = (pid, Signal::from_named_raw(origin.signal)) {
        // The child was not waited for yet, so the pid is still its own, alive or not.
        let _ = kill_process(pid, signal);
    }
}

/// vLLM's engine and workers may outlive the command by a moment, or longer when they hang.
fn wait_for_writers(collector: &Collector, signals: &mut SignalsInfo<WithOrigin>, ignored: &[i32]) {
    let began = Instant::now();
    let mut told = false;
    loop {
        let left = collector.writers().unwrap_or_default();
        if left.is_empty() {
            return;
        }
        let names: Vec<&str> = left.iter().map(|log| log.name.as_str()).collect();
        let names = names.join(", ");
        let asked = signals.pending().any(|origin| {
            matches!(origin.signal, SIGINT | SIGTERM | SIGHUP | SIGQUIT) && !ignored.contains(&origin.signal)
        });
        if asked || began.elapsed() >= LEFT_BEHIND {
            say::problem(&format!(
                "still running: {names}; the tables hold what was recorded so far \
                 (`profilemate export {}` completes them)",
                collector.folder().display()
            ));
            return;
        }
        if !told && began.elapsed() >= SILENT {
            told = true;
            say::problem(&format!("the command has ended; waiting for {names} (Ctrl-C to go on)"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The last tables and the summary.
fn finish(collector: &Collector) {
    if collector.logs().is_ok_and(|logs| logs.is_empty()) {
        say::problem(
            "nothing attached: the command ran no vLLM engine with this Python package in reach. \
             `profilemate doctor --python PYTHON` shows what would attach to a Python's vLLM; \
             a command that resets PYTHONPATH or starts a container has to set it itself (`profilemate path`)",
        );
        remove_session(collector.folder());
        return;
    }
    match collector.make_tables() {
        Ok((session, answers)) => {
            say::text("\n");
            let summary = terminal::summary(&session, &answers, Some(&session.folder));
            say::text(&terminal::with_page(&summary, &session.folder.join(html::FILE)));
        }
        Err(error) => say::problem(&error.to_string()),
    }
}

/// Removes a session in which nothing was recorded: our own files, and the folders if nothing else is in them.
fn remove_session(folder: &Path) {
    let raw = folder.join(profilemate_format::RAW_FOLDER);
    for entry in fs::read_dir(&raw).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&format!("{LAUNCHER}-")) {
            let _ = fs::remove_file(entry.path());
        }
    }
    let _ = fs::remove_file(folder.join(profilemate_collect::LOCK_FILE));
    let _ = fs::remove_dir(&raw);
    let _ = fs::remove_dir(folder);
}

/// Ends as the child ended: with its code, or by its signal.
pub(crate) fn exit_as(status: ExitStatus) -> ExitCode {
    if let Some(signal) = status.signal() {
        // The child left a core file if it was to leave one; a second one of ours helps nobody.
        let none = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
        let _ = rustix::process::setrlimit(rustix::process::Resource::Core, none);
        let _ = signal_hook::low_level::emulate_default_handler(signal);
        if let Some(signal) = Signal::from_named_raw(signal) {
            let _ = kill_process(rustix::process::getpid(), signal);
        }
        // Still here: a signal that does not end a process. Shells say it like this.
        return ExitCode::from(u8::try_from(128 + signal).unwrap_or(u8::MAX));
    }
    ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}
