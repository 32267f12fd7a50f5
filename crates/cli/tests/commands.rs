//! The commands, as somebody types them.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::FromRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use assert_cmd::cargo::cargo_bin;
use rustix::process::{Pid, Signal, kill_process};

/// A folder for a test: a stand-in for the Python package, room for sessions.
struct Room {
    folder: tempfile::TempDir,
}

impl Room {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("package/sitecustomize")).unwrap();
        fs::create_dir_all(folder.path().join("sessions")).unwrap();
        // `sh` plays Python in these tests.
        fs::write(folder.path().join("package/doctor.py"), "echo doctor $# $1\nexit 4\n").unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().canonicalize().unwrap().join(name)
    }

    /// The command, with nothing of our settings in its environment.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(cargo_bin!("profilemate"));
        for (name, _) in std::env::vars_os() {
            let name_text = name.to_string_lossy();
            if name_text.starts_with("PROFILEMATE_") || name_text.starts_with("VLLM_") || name_text == "PYTHONPATH"
            {
                command.env_remove(name);
            }
        }
        command
            .args(arguments)
            .env("PROFILEMATE_PACKAGE", self.path("package"))
            .env("PROFILEMATE_OUTPUT_DIR", self.path("sessions"))
            .env("GOLDEN", golden("server").join("raw"))
            .stdin(Stdio::null());
        command
    }

    fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// What a command printed and how it ended, with the folder of the test and names of sessions made the same.
    fn transcript(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        let ended = match (output.status.code(), output.status.signal()) {
            (Some(code), _) => format!("code {code}"),
            (None, signal) => format!("signal {}", signal.unwrap()),
        };
        let text = format!(
            "{ended}\n--- stdout\n{}--- stderr\n{}",
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8(output.stderr).unwrap()
        );
        text.replace(&*self.path("").to_string_lossy(), "ROOM/")
    }

    fn sessions(&self) -> Vec<PathBuf> {
        fs::read_dir(self.path("sessions")).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    /// A copy of a golden session.
    fn session(&self, name: &str) -> PathBuf {
        let session = self.path("sessions").join(format!("session_{name}"));
        fs::create_dir_all(session.join("raw")).unwrap();
        for entry in fs::read_dir(golden(name).join("raw")).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, session.join("raw").join(path.file_name().unwrap())).unwrap();
        }
        session
    }
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../session/tests/golden/v1").join(name)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Plays a vLLM that was recorded.
const PLAY: &str = "cp \"$GOLDEN\"/[aew]* \"$PROFILEMATE_SESSION/raw/\"";

#[test]
fn help() {
    let room = Room::new();
    for command in [
        "",
        "run",
        "export",
        "report",
        "timeline",
        "import",
        "import vllm-log",
        "explain",
        "compare",
        "path",
        "doctor",
        "collect",
        "completions",
    ] {
        let arguments: Vec<&str> = command.split_whitespace().chain(["--help"]).collect();
        let name = if command.is_empty() { "all" } else { command };
        insta::assert_snapshot!(format!("help_{}", name.replace(' ', "_")), text(&room.output(&arguments).stdout));
    }
}

#[test]
fn wrong_usage_is_code_2() {
    let room = Room::new();
    let explain = [
        &["explain", "--step", "x"][..],
        &["explain", "--slowest", "0"],
        &["explain", "--step", "1", "--slowest", "2"],
        &["explain", "--step", "1", "--request", "x"],
    ];
    let others = [
        &["nonsense"][..],
        &["run"],
        &["export"],
        &["export", "x", "--format", "xml"],
        &["timeline", "x", "--from", "-1"],
        &["timeline", "x", "--to", "inf"],
        &["timeline", "x", "--from", "2", "--to", "1"],
        &["timeline", "x", "--last", "1", "--to", "2"],
        &["import"],
        &["import", "vllm-log"],
        &["import", "other-log", "x"],
    ];
    for arguments in others.into_iter().chain(explain) {
        assert_eq!(room.output(arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn path_prints_the_folder_for_pythonpath() {
    let room = Room::new();
    insta::assert_snapshot!(room.transcript(&["path"]));
}

#[test]
fn a_package_that_is_none_is_named() {
    let room = Room::new();
    fs::remove_dir(room.path("package/sitecustomize")).unwrap();
    insta::assert_snapshot!(room.transcript(&["path"]));
}

#[test]
fn doctor_passes_output_and_code_through() {
    let room = Room::new();
    insta::assert_snapshot!(room.transcript(&["doctor", "--python", "sh", "--json"]));
    insta::assert_snapshot!(room.transcript(&["doctor", "--python", "no-such-python"]));
}

#[test]
fn completions_know_the_commands() {
    let room = Room::new();
    for shell in ["bash", "zsh", "fish"] {
        let output = room.output(&["completions", shell]);
        assert!(output.status.success() && text(&output.stdout).contains("export"), "{shell}");
    }
}

#[test]
fn export_makes_the_tables_and_says_where() {
    let room = Room::new();
    let session = room.session("server");
    insta::assert_snapshot!(room.transcript(&["export", session.to_str().unwrap()]));
    assert!(session.join("forward_pass_timing.csv").exists());
    let elsewhere = room.path("elsewhere");
    let output = room.output(&["export", session.to_str().unwrap(), "--output", elsewhere.to_str().unwrap()]);
    assert!(output.status.success());
    for table in ["forward_pass_timing.csv", "metadata.json", "batch_utilization_summary.json"] {
        assert_eq!(fs::read(elsewhere.join(table)).unwrap(), fs::read(session.join(table)).unwrap(), "{table}");
    }
}

#[test]
fn export_writes_the_formats_that_are_asked_for() {
    let room = Room::new();
    let session = room.session("server");
    let made = |format: &str| {
        let folder = room.path(format);
        let arguments =
            ["export", session.to_str().unwrap(), "--format", format, "--output", folder.to_str().unwrap()];
        assert!(room.output(&arguments).status.success(), "{format}");
        let name = |end: &str| folder.join(format!("forward_pass_timing.{end}")).exists();
        (name("csv"), name("parquet"), folder.join("metadata.json").exists())
    };
    assert_eq!(made("csv"), (true, false, true));
    assert_eq!(made("parquet"), (false, true, true));
    assert_eq!(made("both"), (true, true, true));
}

#[test]
fn files_that_cannot_be_written_whole_are_one_sentence_and_none_is_left() {
    let room = Room::new();
    let session = room.session("real_decode");
    for (format, exported) in [("csv", "csv"), ("parquet", "parquet")] {
        let folder = room.path(exported);
        fs::create_dir(&folder).unwrap();
        let arguments =
            ["export", session.to_str().unwrap(), "--format", format, "--output", folder.to_str().unwrap()];
        let mut command = room.command(&arguments);
        let limit = Some(2048);
        // SAFETY: setrlimit is a system call, which a forked child may do.
        unsafe {
            // No file may be larger: what `ulimit -f` does, and a disk without room does alike.
            command.pre_exec(move || {
                rustix::process::setrlimit(
                    rustix::process::Resource::Fsize,
                    rustix::process::Rlimit { current: limit, maximum: limit },
                )?;
                Ok(())
            });
        }
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = text(&output.stderr);
        assert!(said.starts_with("profilemate: cannot write ") && said.contains("File too large"), "{said}");
        assert!(said.contains("nothing recorded is lost") && said.lines().count() == 1, "{said}");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0, "{said}");
    }
}

#[test]
fn export_names_damage_and_keeps_the_rest() {
    let room = Room::new();
    let session = room.session("server");
    let segment = session.join("raw/engine_core-0-1002.000001.seg");
    let bytes = fs::read(&segment).unwrap();
    fs::write(segment, &bytes[..1000]).unwrap();
    fs::write(session.join("raw/worker-0-77.head"), "no head").unwrap();
    insta::assert_snapshot!(room.transcript(&["export", session.to_str().unwrap()]));
}

#[test]
fn timeline_is_written_beside_the_tables_or_where_it_is_asked_for() {
    let room = Room::new();
    let session = room.session("gpu");
    insta::assert_snapshot!(room.transcript(&["timeline", session.to_str().unwrap()]));
    let whole = fs::read(session.join("timeline.pftrace")).unwrap();
    let elsewhere = room.path("elsewhere.pftrace");
    let to = elsewhere.to_str().unwrap();
    assert!(room.output(&["timeline", "--output", to]).status.success(), "the newest session");
    assert_eq!(fs::read(&elsewhere).unwrap(), whole, "the same bytes");
    assert!(room.output(&["timeline", "--output", to, "--last", "1000"]).status.success());
    // It has all slices, and begins where the session does.
    assert_eq!(fs::read(&elsewhere).unwrap(), whole);
    assert!(room.output(&["timeline", "--output", to, "--from", "0.013", "--to", "0.015"]).status.success());
    let part = fs::read(&elsewhere).unwrap();
    assert!(part.len() < whole.len(), "a part is smaller: {} {}", part.len(), whole.len());
    // What fails leaves what was there.
    insta::assert_snapshot!(room.transcript(&["timeline", "--output", to, "--from", "1000", "--to", "1001"]));
    assert_eq!(fs::read(&elsewhere).unwrap(), part);
    insta::assert_snapshot!(room.transcript(&["timeline", "--output", "no/such/folder/x"]));
    insta::assert_snapshot!(room.transcript(&["timeline", "--output", session.to_str().unwrap()]));
}

#[test]
fn what_is_no_session_is_one_sentence() {
    let room = Room::new();
    insta::assert_snapshot!(room.transcript(&["export", room.path("sessions").to_str().unwrap()]));
    insta::assert_snapshot!(room.transcript(&["export", room.path("nowhere").to_str().unwrap()]));
    insta::assert_snapshot!(room.transcript(&["report"]));
}

#[test]
fn report_takes_the_newest_session() {
    let room = Room::new();
    room.session("parallel");
    room.session("server");
    insta::assert_snapshot!(room.transcript(&["report"]));
    let output = room.output(&["report", "--json"]);
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["metadata"]["session_id"], "server");
    assert_eq!(document["forward_pass_summary"]["prefill"]["count"], 2);
}

#[test]
fn the_page_goes_where_it_is_told() {
    let room = Room::new();
    let session = room.session("server");
    let name = session.to_str().unwrap();
    let page = session.join("report.html");
    let other = room.folder.path().join("other.html");
    let other_name = other.to_str().unwrap();
    let is_page = |path: &Path| fs::read_to_string(path).unwrap().starts_with("<!DOCTYPE html>");
    for arguments in
        [&["report", name, "--no-html"][..], &["report", name, "--json"], &["export", name, "--no-html"]]
    {
        assert!(room.output(arguments).status.success());
        assert!(!page.exists(), "{arguments:?}");
    }
    assert!(room.output(&["report", name, "--json", "--html", other_name]).status.success());
    assert!(!page.exists() && is_page(&other));
    let first = fs::read(&other).unwrap();
    assert!(room.output(&["export", name]).status.success());
    assert_eq!(fs::read(&page).unwrap(), first, "the same page, whoever makes it");
    let output = room.output(&["report", name, "--html", "/missing/x.html"]);
    assert_eq!(output.status.code(), Some(1));
    let problem = text(&output.stderr);
    assert!(problem.contains("cannot write the page /missing/x.html"), "{problem}");
    assert_eq!(problem.lines().count(), 1, "{problem}");
    assert_eq!(room.output(&["report", "--no-html", "--html", "x.html"]).status.code(), Some(2));
    let compared = room.output(&["compare", name, name, "--html", other_name]);
    assert!(compared.status.success(), "{}", text(&compared.stderr));
    assert!(fs::read_to_string(&other).unwrap().contains("ProfileMate comparison"));
}

/// A transcript of an import, with what depends on the moment made the same.
fn import_transcript(room: &Room, arguments: &[&str]) -> String {
    let mut text = room.transcript(arguments);
    for session in room.sessions() {
        text = text.replace(session.file_name().unwrap().to_str().unwrap(), "SESSION");
    }
    text
}

#[test]
fn a_log_of_vllm_becomes_a_session() {
    let room = Room::new();
    let log = Path::new(env!("CARGO_MANIFEST_DIR")).join("../import/tests/logs/real_preempting.log");
    insta::assert_snapshot!(import_transcript(&room, &["import", "vllm-log", log.to_str().unwrap()]));
    insta::assert_snapshot!(import_transcript(&room, &["report"]));
    let [session] = &room.sessions()[..] else { panic!("not one session") };
    let made: Vec<PathBuf> = fs::read_dir(session).unwrap().map(|entry| entry.unwrap().path()).collect();
    let exported = room.path("exported");
    let arguments = ["export", session.to_str().unwrap(), "--output", exported.to_str().unwrap()];
    assert_eq!(room.output(&arguments).status.code(), Some(0));
    for file in made.iter().filter(|file| file.is_file()) {
        assert_eq!(
            fs::read(file).unwrap(),
            fs::read(exported.join(file.file_name().unwrap())).unwrap(),
            "{file:?}"
        );
    }
}

#[test]
fn a_log_is_read_from_a_pipe_and_goes_where_it_is_told() {
    let room = Room::new();
    let log =
        fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../import/tests/logs/real_decode.log")).unwrap();
    let output = room.path("elsewhere");
    let mut child = room
        .command(&["import", "vllm-log", "-", "--output-dir", output.to_str().unwrap()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&log).unwrap();
    let done = child.wait_with_output().unwrap();
    assert_eq!(done.status.code(), Some(0));
    let session = PathBuf::from(text(&done.stdout).trim_end());
    assert_eq!(session.parent(), Some(output.as_path()));
    assert!(session.join("batch_utilization.csv").exists() && !session.join("request_lifecycle.csv").exists());
    assert_eq!(fs::metadata(&session).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(room.sessions().len(), 0);
}

#[test]
fn a_log_without_iterations_is_one_sentence_and_leaves_nothing() {
    let room = Room::new();
    fs::write(room.path("plain.log"), "INFO 11-24 20:31:05 [core.py:1] hello\n").unwrap();
    fs::write(room.path("newer.log"), "INFO 11-24 20:31:05 [core.py:1] Iteration(0): 7 requests in a new way\n")
        .unwrap();
    for name in ["plain.log", "newer.log", "missing.log", "sessions"] {
        insta::assert_snapshot!(room.transcript(&["import", "vllm-log", room.path(name).to_str().unwrap()]));
        assert_eq!(room.sessions().len(), 0);
    }
}

#[test]
fn everything_that_report_says_is_in_its_json() {
    let room = Room::new();
    room.session("gpu");
    let document: serde_json::Value = serde_json::from_slice(&room.output(&["report", "--json"]).stdout).unwrap();
    for (part, keys) in [
        ("breakdown", &["wall_ms", "run", "engine_step", "between_steps", "workers", "throughput"] as &[_]),
        ("metadata", &["gpu", "processes", "counters", "overhead", "profilers", "records_lost"]),
        ("forward_pass_summary", &["prefill", "decode", "mixed"]),
        ("batch_utilization_summary", &["mean_token_utilization_pct", "limited_by", "underutilization_events"]),
        ("cuda_graph_usage", &["coverage_pct", "padding_pct", "usage"]),
        ("cpu_timing_summary", &["engine_step"]),
    ] {
        for key in keys {
            let is_absent = *key == "limited_by";
            assert_eq!(document[part].get(key).is_none(), is_absent, "{part} {key}");
        }
    }
    room.session("requests");
    let document: serde_json::Value = serde_json::from_slice(&room.output(&["report", "--json"]).stdout).unwrap();
    let requests = &document["preemption_summary"];
    for key in
        ["queue_time_sec", "ttft_sec", "tpot_ms", "total_time_sec", "finished_requests", "total_preemptions"]
    {
        assert!(requests.get(key).is_some(), "{key}");
    }
    assert!(document["breakdown"]["request_latency"]["parts"]["queue"]["share_pct"].is_number());
    assert!(document["batch_utilization_summary"]["limited_by"]["kv_blocks"].is_number());
    assert!(document["kv_cache_summary"]["peak_usage_pct"].is_number());
}

/// What a command prints on a terminal that stands for its standard output.
fn on_a_terminal(mut command: Command) -> String {
    let (mut ours, theirs) = terminal();
    let mut child = command.stdout(theirs).spawn().unwrap();
    // The command holds the terminal's other end, and lets go of it when it ends.
    drop(command);
    let mut shown = Vec::new();
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = ours.read(&mut bytes) {
        shown.extend_from_slice(&bytes[..count]);
    }
    assert!(child.wait().unwrap().success());
    text(&shown).replace("\r\n", "\n")
}

#[test]
fn there_is_colour_on_a_terminal_and_nowhere_else() {
    let room = Room::new();
    room.session("server");
    let command = |name: &str, value: &str| {
        let mut command = room.command(&["report"]);
        for variable in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "CI"] {
            command.env_remove(variable);
        }
        command.env("TERM", "xterm").env(name, value);
        command
    };
    let plain = text(&command("TERM", "xterm").output().unwrap().stdout);
    assert!(plain.starts_with("session      ") && !plain.contains('\u{1b}'), "{plain}");
    let shown = on_a_terminal(command("TERM", "xterm"));
    assert!(shown.starts_with("\u{1b}[1msession      \u{1b}[0m"), "{shown}");
    assert_eq!(on_a_terminal(command("NO_COLOR", "1")), plain);
    assert_eq!(on_a_terminal(command("TERM", "dumb")), plain);
}

#[test]
fn explain_says_why_or_what_there_is() {
    let room = Room::new();
    room.session("requests");
    room.session("server");
    insta::assert_snapshot!(room.transcript(&["explain"]));
    insta::assert_snapshot!(room.transcript(&["explain", "--step", "10"]));
    // A step without work, and one that there never was.
    insta::assert_snapshot!(room.transcript(&["explain", "--step", "9"]));
    let requests = room.path("sessions/session_requests");
    let requests = requests.to_str().unwrap();
    insta::assert_snapshot!(room.transcript(&["explain", requests, "--request", "cmpl-twins"]));
    insta::assert_snapshot!(room.transcript(&["explain", requests, "--request", "nobody\u{1b}[2J\u{202e}"]));
    insta::assert_snapshot!(room.transcript(&["explain", requests, "--request", ""]));
    insta::assert_snapshot!(room.transcript(&["explain", requests]));
    insta::assert_snapshot!(room.transcript(&["explain", "--request", "cmpl-twins"]));
    // Several engines, one of which was started again.
    let parallel = room.session("parallel");
    insta::assert_snapshot!(room.transcript(&["explain", parallel.to_str().unwrap(), "--step", "1"]));
    let explained = room.transcript(&["explain", parallel.to_str().unwrap(), "--step", "40"]);
    assert!(explained.contains("step 40 of engine_core-0 at"), "{explained}");
    for arguments in [
        &["explain", "--json"][..],
        &["explain", "--json", "--step", "10"],
        &["explain", requests, "--json", "--request", "cmpl-twins"],
    ] {
        let output = room.output(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap();
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let room = Room::new();
    let session = room.session("server");
    let mut child =
        room.command(&["report", "--json", session.to_str().unwrap()]).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn run_profiles_and_passes_the_exit_code_on() {
    let room = Room::new();
    let script = format!("{PLAY}; echo to stdout; echo to stderr >&2; exit 5");
    let output = room.output(&["run", "--", "sh", "-c", &script]);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(5), "to stdout\n".to_owned()));
    let session = &room.sessions()[0];
    let stderr = text(&output.stderr);
    assert!(
        stderr.starts_with("to stderr\n\nsession      ") && stderr.contains("4 requests, 1,100 prompt"),
        "{stderr}"
    );
    assert!(stderr.contains(&format!("session      {}\n", session.display())), "{stderr}");
    assert!(session.join("breakdown.json").exists(), "the tables are there");
    let metadata: serde_json::Value =
        serde_json::from_slice(&fs::read(session.join("metadata.json")).unwrap()).unwrap();
    assert!(metadata["command"].as_str().unwrap().starts_with("sh -c "));
    assert_eq!(fs::metadata(session).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn run_gives_the_command_the_session_and_the_package() {
    let room = Room::new();
    let script =
        "echo $PROFILEMATE_SESSION; echo $PROFILEMATE_COLLECTOR; echo $PYTHONPATH; echo $PROFILEMATE_CONFIG";
    fs::write(room.path("profilemate.toml"), "verbose = false\n").unwrap();
    let output = room
        .command(&["run", "--config", "profilemate.toml", "--output-dir", "sessions", "--", "sh", "-c", script])
        .env("PYTHONPATH", "/before")
        .current_dir(room.path(""))
        .output()
        .unwrap();
    let stdout = text(&output.stdout);
    let lines: Vec<&str> = stdout.lines().collect();
    assert!(lines[0].starts_with(&*room.path("sessions/session_").to_string_lossy()), "{stdout}");
    assert_eq!(lines[1], "launcher");
    assert_eq!(lines[2], format!("{}:/before", room.path("package/sitecustomize").display()));
    assert_eq!(lines[3], room.path("profilemate.toml").to_string_lossy());
}

#[test]
fn how_the_command_ended_is_in_the_session() {
    let room = Room::new();
    // The golden front end gets the pid of this shell, so that the launcher's word is about it.
    let script = format!("{PLAY}; kill -TERM $$");
    let output = room.output(&["run", "--", "sh", "-c", &script]);
    assert_eq!(output.status.signal(), Some(15), "ends by the signal that ended the command");
    let session = profilemate_session::Session::open(&room.sessions()[0]).unwrap();
    let log = session.logs.iter().find(|log| log.head.identity.role == "launcher").unwrap();
    let mut records = log.records();
    let record = records.next_record().unwrap().unwrap();
    let profilemate_session::Payload::ProcessExit(exit) = record.payload else { panic!("{record:?}") };
    assert_eq!((exit.code, exit.signal), (0, 15));
}

#[test]
fn a_signal_sent_to_the_launcher_reaches_the_command() {
    for signal in [Signal::TERM, Signal::HUP, Signal::USR1, Signal::USR2, Signal::INT, Signal::QUIT] {
        let room = Room::new();
        let number = signal.as_raw();
        let script = format!("trap 'kill $!; exit 9' {number}; sleep 1000 & echo ready; wait");
        let mut child = room
            .command(&["run", "--", "sh", "-c", &script])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(9), "{signal:?}");
    }
}

#[test]
fn ctrl_c_reaches_the_command_once() {
    let room = Room::new();
    let (mut ours, theirs) = terminal();
    // The terminal interrupts the launcher and the command. A USR1 that the command sends to the launcher comes back
    // after everything that the launcher did before: then the interrupts are counted.
    let script = "n=0; trap 'n=$((n+1)); kill -USR1 $PPID' INT; trap 'kill $!; exit $n' USR1; \
                  sleep 1000 & echo ready; while :; do wait; done";
    let mut command = room.command(&["run", "--", "sh", "-c", script]);
    command.stdin(theirs.try_clone().unwrap()).stdout(theirs).stderr(Stdio::null());
    // SAFETY: setsid and ioctl may be called between fork and exec.
    unsafe {
        command.pre_exec(|| {
            if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(&ours).read_line(&mut line).unwrap();
    assert_eq!(line.trim_end(), "ready");
    ours.write_all(b"\x03").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

/// A pseudo-terminal: our end and the end of a program.
fn terminal() -> (fs::File, fs::File) {
    let (mut ours, mut theirs) = (0, 0);
    let none = std::ptr::null_mut();
    // SAFETY: openpty fills two descriptors through valid pointers and accepts null for the rest.
    let result = unsafe { libc::openpty(&raw mut ours, &raw mut theirs, none, none.cast(), none.cast()) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the descriptors were made just now, and nobody else owns them.
    unsafe { (fs::File::from_raw_fd(ours), fs::File::from_raw_fd(theirs)) }
}

#[test]
fn a_command_that_cannot_be_started_is_said_as_a_shell_says_it() {
    let room = Room::new();
    insta::assert_snapshot!(room.transcript(&["run", "--", "no-such-command-anywhere"]));
    fs::write(room.path("plain"), "").unwrap();
    insta::assert_snapshot!(room.transcript(&["run", "--", room.path("plain").to_str().unwrap()]));
    assert_eq!(room.sessions(), [""; 0].map(PathBuf::from), "no empty session is left");
}

#[test]
fn nothing_attached_is_said_and_leaves_nothing() {
    let room = Room::new();
    insta::assert_snapshot!(room.transcript(&["run", "--", "sh", "-c", "exit 3"]));
    assert_eq!(room.sessions(), [""; 0].map(PathBuf::from));
}

#[test]
fn without_a_place_for_the_session_the_command_runs_unprofiled() {
    let room = Room::new();
    fs::write(room.path("file"), "").unwrap();
    let output = room.path("file");
    insta::assert_snapshot!(room.transcript(&[
        "run",
        "--output-dir",
        output.to_str().unwrap(),
        "--",
        "sh",
        "-c",
        "echo runs; echo session: $PROFILEMATE_SESSION; exit 6"
    ]));
}

#[test]
fn switched_off_means_that_the_command_just_runs() {
    let room = Room::new();
    let output = room
        .command(&["run", "--", "sh", "-c", "echo session: $PROFILEMATE_SESSION; exit 6"])
        .env("PROFILEMATE_ENABLE", "0")
        .output()
        .unwrap();
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(6), "session:\n".to_owned()));
    assert_eq!(room.sessions(), [""; 0].map(PathBuf::from));
}

#[test]
fn a_bad_setting_is_one_line_and_the_command_runs() {
    let room = Room::new();
    let output = room
        .command(&["run", "--", "sh", "-c", PLAY])
        .env("PROFILEMATE_REFRESH_SECONDS", "soon")
        .output()
        .unwrap();
    let stderr = text(&output.stderr);
    assert!(
        stderr.starts_with(
            "profilemate: PROFILEMATE_REFRESH_SECONDS=\"soon\" is not a whole number of at least 1; using 10\n"
        ),
        "{stderr}"
    );
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn the_launcher_waits_for_what_the_command_leaves_behind() {
    let room = Room::new();
    // A process that outlives the command and holds the lock of a log, as an engine does that is slow to end: it holds
    // on until somebody closes its input.
    let script = format!(
        "{PLAY}; exec 3<&0 9<\"$PROFILEMATE_SESSION/raw/engine_core-0-1002.head\"; flock -x 9; echo held; \
         cat <&3 >/dev/null & exit 0"
    );
    let mut child = room
        .command(&["run", "--", "sh", "-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "held\n");
    // It says so after a moment; only then is the lock released.
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut said = String::new();
    stderr.read_line(&mut said).unwrap();
    assert!(said.contains("waiting for engine_core-0-1002"), "{said}");
    drop(child.stdin.take());
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("engine_core-0 (closed)") || rest.contains("engine_core-0 and"), "{rest}");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn collect_completes_a_session_whose_processes_are_gone() {
    let room = Room::new();
    let session = room.session("single_process");
    let output = room.output(&["collect", session.to_str().unwrap()]);
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
    assert!(session.join("forward_pass_summary.json").exists());
}

#[test]
fn a_detached_collector_lets_go_of_everything() {
    let room = Room::new();
    let session = room.session("single_process");
    // It would keep the pipes open, and this from returning, if it held on to them.
    let output = room.output(&["collect", "--detach", session.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0));
    // The lock says that it is at work, or that it is done; the tables come last.
    let lock = session.join("raw/collector.lock");
    while !session.join("metadata.json").exists() {
        std::thread::yield_now();
    }
    assert!(lock.exists());
    assert!(!session.join("collector.log").exists(), "nothing was to be said");
}
