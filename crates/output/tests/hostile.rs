//! Text from outside does nothing in any output: ids that clients choose, and every other string of a log, which somebody
//! else may have made.

#![allow(clippy::unwrap_used, reason = "a test")]

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "../../session/tests/common/mod.rs"]
mod common;

use std::fs;

use common::Log;
use profilemate_format::record::{
    ClientRequest, KvCache, KvEviction, Label, Payload, RequestAdmitted, RequestFinished, RequestPreempted,
    RequestQueued, RequestText, Schedule, TEXT_BYTES,
};
use profilemate_output::{tables, terminal, text};
use profilemate_session::Session;
use xxhash_rust::xxh3::xxh3_64;

const HOSTILE: [&str; 6] = [
    "=cmd|' /C calc'!A0",
    "\n+1,\"\r\n\u{1b}]0;owned\u{7}\u{9b}31m",
    "@SUM(1;2);preempted_for=x",
    "-1\u{202e}txt.exe\u{2066}\u{200b}\u{feff}\u{2028}\u{85}",
    "\u{ff1d}1+1\0\u{e0041}\u{7f}",
    "\t=1+1\\",
];

fn put(log: &mut Log, us: u64, name: &str, payload: Payload) {
    let name = log.name(name);
    log.push(us, 1, Label::Work, name, payload);
}

fn id(log: &mut Log, us: u64, number: u64, id: &str) {
    for (part, piece) in id.as_bytes().chunks(TEXT_BYTES).enumerate() {
        let mut bytes = [0; TEXT_BYTES];
        bytes[..piece.len()].copy_from_slice(piece);
        let part = u16::try_from(part).unwrap();
        log.push(us, 0, Label::Work, 0, Payload::RequestText(RequestText { number, part, bytes }));
    }
}

/// Every string that is shown anywhere, hostile.
fn session(raw: &std::path::Path) {
    let mut log = Log::new("engine_core", 0, 0, 6001, 1);
    log.role("worker", 0, 0);
    for profiler in [
        "batch_utilization_tracking",
        "preemption_tracking",
        "kv_cache_tracking",
        "cpu_timing",
        "forward_pass_timing",
        "cuda_graph_tracking",
    ] {
        log.fact(&format!("profiler:{profiler}"), "on");
    }
    for (fact, text) in ["model", "command", "gpu_name", "kv_evictions", "hook:x", "profiler:moe_expert_tracking"]
        .into_iter()
        .zip(HOSTILE.into_iter().cycle())
    {
        // What could not attach is shown with its reason.
        let value =
            if fact.starts_with("profiler:") { format!("could not attach: {text}") } else { text.to_owned() };
        log.fact(fact, if fact == "kv_evictions" { "on" } else { &value });
    }
    for (number, text) in (1..).zip(HOSTILE) {
        let us = 1_000 * number;
        let id_bytes = u16::try_from(text.len()).unwrap();
        let client = ClientRequest {
            number: number + 100,
            engine_id_hash: xxh3_64(text.as_bytes()),
            id_bytes,
            ..ClientRequest::default()
        };
        log.push(us, 0, Label::Work, 0, Payload::ClientRequest(client));
        id(&mut log, us, number + 100, text);
        let queued = RequestQueued { number, id_bytes, ..RequestQueued::default() };
        log.push(us, 0, Label::Work, 0, Payload::RequestQueued(queued));
        id(&mut log, us, number, text);
        let admitted = RequestAdmitted { number, ..RequestAdmitted::default() };
        put(&mut log, us + 1, "", Payload::RequestAdmitted(admitted));
    }
    for (number, text) in (1..).zip(HOSTILE) {
        let us = 10_000 + 1_000 * number;
        let preempted = RequestPreempted { number, beneficiary: number % 6 + 1, ..RequestPreempted::default() };
        put(&mut log, us, text, Payload::RequestPreempted(preempted));
        put(&mut log, us + 1, text, Payload::Schedule(Schedule { num_tokens: 1, ..Schedule::default() }));
        put(&mut log, us + 2, text, Payload::KvCache(KvCache { used: 1, total: 2, ..KvCache::default() }));
        put(&mut log, us + 3, text, Payload::KvEviction(KvEviction::default()));
        log.span(us + 4, 10, 1, "forward", (1, 1), text);
        log.span(us + 4, 20, 1, "model_execution", (1, 1), text);
    }
    for (number, text) in (1..).zip(HOSTILE) {
        let finished = RequestFinished { number, ..RequestFinished::default() };
        put(&mut log, 20_000 + number, text, Payload::RequestFinished(finished));
    }
    log.write(raw);
}

/// The cells of a CSV file, as RFC 4180 has them.
fn cells(text: &str) -> Vec<Vec<String>> {
    let (mut rows, mut row, mut cell, mut quoted) = (Vec::new(), Vec::new(), String::new(), false);
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '"' if quoted && letters.peek() == Some(&'"') => {
                letters.next();
                cell.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => row.push(std::mem::take(&mut cell)),
            '\n' if !quoted => {
                row.push(std::mem::take(&mut cell));
                rows.push(std::mem::take(&mut row));
            }
            letter => cell.push(letter),
        }
    }
    rows
}

fn assert_harmless(name: &str, text: &str) {
    for line in text.split('\n') {
        assert_eq!(text::visible(line), line, "{name}");
    }
}

#[test]
fn nothing_from_outside_does_anything_in_any_output() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("raw")).unwrap();
    session(&folder.path().join("raw"));
    let session = Session::open(folder.path()).unwrap();
    let answers = tables::write(&session, folder.path()).unwrap();
    let mut tables_seen = 0;
    for entry in fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let Ok(text) = fs::read_to_string(&path) else { continue };
        assert_harmless(&name, &text);
        let kind = path.extension().map(|kind| kind.to_string_lossy().into_owned()).unwrap_or_default();
        if kind == "csv" {
            tables_seen += 1;
            let rows = cells(&text);
            for row in &rows {
                assert_eq!(row.len(), rows[0].len(), "{name}: {row:?}");
                for cell in row.iter().filter(|cell| cell.parse::<f64>().is_err()) {
                    assert!(!cell.starts_with(['=', '+', '-', '@', '\u{ff1d}']), "{name}: {cell}");
                }
            }
        } else if kind == "json" {
            serde_json::from_str::<serde_json::Value>(&text).unwrap();
        }
    }
    assert_eq!(tables_seen, 10);
    assert_harmless("documents", &text::json(&tables::documents(&session, &answers)));
    let summary = terminal::summary(&session, &answers, Some(folder.path()));
    // Styles are ours; whatever else might be one is not taken for one here.
    let plain =
        ["\u{1b}[1m", "\u{1b}[33m", "\u{1b}[0m"].iter().fold(summary, |text, style| text.replace(style, ""));
    assert_harmless("summary", &plain);
    // What the client said is there all the same, in words.
    let rows = cells(&fs::read_to_string(folder.path().join("request_lifecycle.csv")).unwrap());
    assert_eq!(rows[0][0], "request_id");
    assert!(rows.iter().any(|row| row[0] == "\\n+1,\"\\r\\n\\u{1b}]0;owned\\u{7}\\u{9b}31m"));
    assert!(rows.iter().any(|row| row[0] == "'\u{ff1d}1+1\\u{0}\\u{e0041}\\u{7f}"));
    // An id says nothing about other pairs.
    let rows = cells(&fs::read_to_string(folder.path().join("preemption_events.csv")).unwrap());
    for row in rows.iter().filter(|row| row[2] == "preempted") {
        let keys: Vec<&str> = row[5].split(';').map(|pair| pair.split('=').next().unwrap()).collect();
        assert_eq!(keys, ["computed_tokens", "output_tokens", "blocks_freed", "preempted_for"], "{}", row[5]);
    }
}
