//! `profilemate compare`, as somebody types it.

#![allow(clippy::unwrap_used, reason = "a test")]

#[allow(dead_code, unreachable_pub, reason = "other tests use the rest")]
#[path = "../../session/tests/common/mod.rs"]
mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use assert_cmd::cargo::cargo_bin;
use common::Log;
use profilemate_session::record::{
    Label, Outputs, Payload, RequestAdmitted, RequestFinished, RequestQueued, Schedule,
};

/// A number that looks random and is the same in every run.
fn scatter(value: u64) -> u64 {
    let mixed = (value ^ value >> 31).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ mixed >> 29
}

/// A run of a server: each step decodes four sequences, and one in ten computes a prompt, too.
struct Server {
    seed: u64,
    steps: u64,
    /// Forward passes of steps that decode, in microseconds, without what they vary by.
    decode_us: u64,
    command: &'static str,
    max_num_seqs: u64,
    sequences: u32,
}

impl Default for Server {
    fn default() -> Self {
        let command = "vllm serve tiny --max-num-seqs 8 --api-key ***";
        Self { seed: 1, steps: 1200, decode_us: 1000, command, max_num_seqs: 8, sequences: 4 }
    }
}

impl Server {
    fn write(&self, raw: &Path) {
        let mut log = Log::new("engine_core", 0, 0, 1002, 1001);
        log.role("engine_core", 0, 0);
        log.role("worker", 0, 0);
        for profiler in ["forward_pass_timing", "cpu_timing", "batch_utilization_tracking", "preemption_tracking"]
        {
            log.fact(&format!("profiler:{profiler}"), "on");
        }
        log.fact("vllm_version", "0.33.0");
        log.fact("model", "tiny \u{1b}[2J");
        log.fact("command", self.command);
        log.limits(1_000, self.max_num_seqs, 1024);
        let stopped = log.name("FINISHED_STOPPED");
        let mut now = 10_000;
        for step in 1..=self.steps {
            let noise = scatter(self.seed << 32 | step);
            let prefill = if step % 10 == 0 { 20 + u32::try_from(noise >> 40 & 15).unwrap() } else { 0 };
            let sequences = self.sequences;
            let schedule = Schedule {
                num_seqs: sequences,
                num_tokens: sequences + prefill,
                prefill_tokens: prefill,
                prefill_seqs: u32::from(prefill > 0),
                running: Some(sequences),
                ..Schedule::default()
            };
            let forward = self.decode_us + noise % 60 + 30 * u64::from(prefill);
            let scheduling = 40 + (noise >> 16) % 20;
            if prefill > 0 {
                let number = step / 10;
                let queued = RequestQueued { number, prompt_tokens: prefill, ..RequestQueued::default() };
                log.push(now - 5, 0, Label::Work, 0, Payload::RequestQueued(queued));
                let admitted = RequestAdmitted {
                    number,
                    num_tokens: prefill,
                    scheduled_tokens: prefill,
                    ..RequestAdmitted::default()
                };
                log.push(now, step, Label::Work, 0, Payload::RequestAdmitted(admitted));
            }
            log.schedule(now, step, schedule);
            log.span(now, scheduling, step, "scheduling", (0, 0), "");
            let batch = u64::from(sequences + prefill) | u64::from(sequences) << 32;
            let began = now + scheduling;
            log.span(began + 50, forward, step, "forward", (batch, 0), "");
            log.span(began, 50 + forward, step, "model_execution", (batch, 0), "");
            let done = began + 50 + forward + 30;
            let is_last = step % 10 == 9 && step > 10;
            let outputs = Outputs {
                timestamp_bits: (5000.0 + done as f64 / 1e6).to_bits(),
                client: 0,
                num_outputs: sequences,
                new_tokens: u64::from(sequences),
                finished: u64::from(is_last),
            };
            log.outputs(done, step, outputs);
            log.span(now, done - now, step, "engine_step", (0, 0), "");
            if is_last {
                let finished = RequestFinished {
                    number: step / 10,
                    prompt_tokens: 25,
                    output_tokens: 9,
                    ..RequestFinished::default()
                };
                log.push(done, step, Label::Work, stopped, Payload::RequestFinished(finished));
            }
            now = done + 10;
        }
        log.anchors_us = vec![0, now];
        log.closed_us = Some(now);
        log.write(raw);
    }
}

struct Room {
    folder: tempfile::TempDir,
}

impl Room {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn golden(&self, name: &str) -> String {
        let session = self.raw(name);
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../session/tests/golden/v1").join(name);
        for entry in fs::read_dir(golden.join("raw")).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, session.join("raw").join(path.file_name().unwrap())).unwrap();
        }
        session.to_string_lossy().into_owned()
    }

    fn made(&self, name: &str, server: &Server) -> String {
        let session = self.raw(name);
        server.write(&session.join("raw"));
        session.to_string_lossy().into_owned()
    }

    fn raw(&self, name: &str) -> PathBuf {
        let session = self.folder.path().canonicalize().unwrap().join(format!("session_{name}"));
        fs::create_dir_all(session.join("raw")).unwrap();
        session
    }

    /// How a command ended and what it printed.
    fn compare(&self, arguments: &[&str]) -> (i32, String, String) {
        let output = Command::new(cargo_bin!("profilemate")).arg("compare").args(arguments).output().unwrap();
        let room = self.folder.path().canonicalize().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().replace(&*room.to_string_lossy(), "ROOM");
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    fn transcript(&self, arguments: &[&str]) -> String {
        let (code, stdout, stderr) = self.compare(arguments);
        for line in stdout.lines() {
            assert!(line.chars().count() <= 80, "wider than 80 columns: {line}");
        }
        format!("code {code}\n--- stdout\n{stdout}--- stderr\n{stderr}")
    }
}

#[test]
fn golden_sessions() {
    let room = Room::new();
    let [server, gpu, requests, parallel] =
        ["server", "gpu", "requests", "parallel"].map(|name| room.golden(name));
    insta::assert_snapshot!("golden_itself", room.transcript(&[&server, &server]));
    insta::assert_snapshot!("golden_server_gpu", room.transcript(&[&server, &gpu, "--all"]));
    insta::assert_snapshot!("golden_requests_parallel", room.transcript(&[&requests, &parallel, "--base", &gpu]));
    let (code, json, _) = room.compare(&[&server, &gpu, "--json"]);
    assert_eq!(code, 0);
    insta::assert_snapshot!("golden_json", json);
}

#[test]
fn sessions_of_real_servers() {
    let room = Room::new();
    let [decode, prefill, preempting] =
        ["real_decode", "real_prefill", "real_preempting"].map(|name| room.golden(name));
    insta::assert_snapshot!("real_decode_preempting", room.transcript(&[&decode, &preempting]));
    insta::assert_snapshot!("real_preempting_prefill", room.transcript(&[&preempting, &prefill, "--all"]));
    insta::assert_snapshot!("real_prefill_itself", room.transcript(&[&prefill, &prefill]));
}

#[test]
fn a_slower_candidate_is_found_and_fails_the_condition() {
    let room = Room::new();
    let base = room.made("base", &Server::default());
    let slower = room.made("slower", &Server { seed: 2, decode_us: 1100, ..Server::default() });
    insta::assert_snapshot!(room.transcript(&[
        &base,
        &slower,
        "--fail-on",
        "decode.p99 > 5%",
        "--fail-on",
        "throughput.tokens_per_sec < -20%",
        "--fail-on",
        "scheduling.p99 > 0%",
    ]));
    // What got better fails nothing, and says so.
    let (code, stdout, _) = room.compare(&[&slower, &base, "--fail-on", "decode.p99 > 5%", "--strict"]);
    assert_eq!(code, 0, "{stdout}");
    assert!(stdout.contains("decode.p99 > 5%: does not hold") && stdout.contains("better"), "{stdout}");
}

#[test]
fn equal_runs_are_no_difference() {
    let room = Room::new();
    let base = room.made("base", &Server::default());
    let same = room.made("same", &Server { seed: 2, ..Server::default() });
    let again = room.made("again", &Server { seed: 3, ..Server::default() });
    insta::assert_snapshot!(room.transcript(&[&base, &same, "--run-variation", "0.5%"]));
    let (code, stdout, _) = room.compare(&[&base, &same, "--base", &again, "--seed", "7"]);
    assert_eq!(code, 0);
    assert!(stdout.contains("No detectable difference in any of ") && stdout.contains("seed 7"), "{stdout}");
    assert!(!stdout.contains("One run on each side"), "{stdout}");
}

#[test]
fn undecided_fails_only_if_asked_to() {
    let room = Room::new();
    let base = room.made("base", &Server::default());
    let slower = room.made("slower", &Server { seed: 2, decode_us: 1100, ..Server::default() });
    // The truth lies at the threshold.
    let (_, json, _) = room.compare(&[&base, &slower, "--json"]);
    let document: serde_json::Value = serde_json::from_str(&json).unwrap();
    let metrics = document["metrics"].as_array().unwrap();
    let decode = metrics.iter().find(|metric| metric["metric"] == "decode.mean").unwrap();
    assert_eq!((&decode["verdict"], &decode["change_unit"]), (&"worse".into(), &"%".into()));
    let condition = format!("decode.mean > {}%", decode["change"]);
    let (code, stdout, _) = room.compare(&[&base, &slower, "--fail-on", &condition]);
    assert_eq!((code, stdout.contains("undecided")), (0, true), "{stdout}");
    let (code, ..) = room.compare(&[&base, &slower, "--fail-on", &condition, "--strict"]);
    assert_eq!(code, 3);
    let (code, json, _) = room.compare(&[&base, &slower, "--fail-on", "decode.mean > 5%", "--json"]);
    let document: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, &document["conditions"][0]["outcome"]), (3, &"holds".into()));
}

#[test]
fn environments_and_loads_that_differ_are_said() {
    let room = Room::new();
    let base = room.made("base", &Server { steps: 300, ..Server::default() });
    let other = Server {
        seed: 2,
        steps: 300,
        command: "vllm serve tiny --max_num_seqs=16 --enforce-eager --api-key ***",
        max_num_seqs: 16,
        sequences: 6,
        ..Server::default()
    };
    insta::assert_snapshot!(room.transcript(&[&base, &room.made("other", &other)]));
}

#[test]
fn a_condition_on_what_nobody_recorded_is_a_failure() {
    let room = Room::new();
    let server = room.golden("server");
    insta::assert_snapshot!(room.transcript(&[&server, &server, "--fail-on", "ttft.p50 > 5%"]));
}

#[test]
fn wrong_usage_is_one_sentence_and_code_2() {
    let room = Room::new();
    for (name, arguments) in [
        ("metric", &["a", "b", "--fail-on", "decode.p98 > 5%"][..]),
        ("sign", &["a", "b", "--fail-on", "decode.p99 5%"]),
        ("unit", &["a", "b", "--fail-on", "kv.usage_pct > 5%"]),
        ("variation", &["a", "b", "--run-variation", "much"]),
        ("one_side", &["a"]),
        ("nothing", &[]),
    ] {
        let transcript = room.transcript(arguments);
        assert!(transcript.starts_with("code 2\n--- stdout\n--- stderr\n"), "{transcript}");
        insta::assert_snapshot!(format!("wrong_{name}"), transcript);
    }
}

#[test]
fn a_run_counts_once() {
    let room = Room::new();
    let server = room.golden("server");
    insta::assert_snapshot!(room.transcript(&[&server, &server, &server]));
    insta::assert_snapshot!(room.transcript(&[&server, "nowhere"]));
}

#[test]
fn metrics_are_listed() {
    let room = Room::new();
    let (code, stdout, _) = room.compare(&["--list-metrics"]);
    assert_eq!(code, 0);
    insta::assert_snapshot!(stdout);
}

#[test]
fn nothing_that_a_client_or_a_user_wrote_reaches_the_terminal_as_it_is() {
    let room = Room::new();
    let base = room.made("base", &Server { steps: 300, ..Server::default() });
    let other =
        Server { seed: 2, steps: 300, decode_us: 2000, command: "vllm serve \u{1b}[2J", ..Server::default() };
    let (_, stdout, _) = room.compare(&[&base, &room.made("slower\u{1b}[31m", &other)]);
    assert!(stdout.contains("Worse") && stdout.contains("\\u{1b}[2J"), "{stdout}");
    // Colours are for terminals.
    assert!(!stdout.contains('\u{1b}'), "{stdout}");
}
