//! Findings as people and scripts get them.

#![allow(clippy::unwrap_used, reason = "a test")]

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "../../session/tests/common/mod.rs"]
mod common;

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "../../analysis/tests/findings/server.rs"]
mod server;

use profilemate_output::{tables, terminal};
use profilemate_session::Session;
use server::{DECODE, Server, Step};

/// `findings.json`, and the section of the summary.
fn shown(server: &Server) -> (String, String) {
    let folder = tempfile::tempdir().unwrap();
    let raw = folder.path().join("raw");
    std::fs::create_dir(&raw).unwrap();
    for log in [&server.front, &server.engine, &server.worker] {
        log.write(&raw);
    }
    let session = Session::open(folder.path()).unwrap();
    let answers = tables::write(&session, folder.path()).unwrap();
    let summary = terminal::summary(&session, &answers, None);
    // Nothing but our own styles is an escape code.
    let summary = anstream::adapter::strip_str(&summary).to_string();
    let is_first = |line: &&str| line.starts_with("findings ");
    let section = summary.lines().skip_while(|line| !is_first(line));
    let section = section.take_while(|line| is_first(line) || line.starts_with(' '));
    let section: Vec<&str> = section.collect();
    assert!(section.iter().all(|line| line.chars().count() <= 80), "{section:#?}");
    (std::fs::read_to_string(folder.path().join("findings.json")).unwrap(), section.join("\n"))
}

#[test]
fn a_server_with_too_little_kv_cache() {
    let mut server = Server::new();
    server.engine.limits(2_000, 256, 8192);
    server.engine.fact("setting:gpu_memory_utilization", "0.9");
    server.engine.fact("setting:cache_dtype", "auto");
    server.steps(250, Step { seqs: 120, tokens: 120, waiting: 9, held: 960, limited_by: "kv_blocks", ..DECODE });
    (0..15).for_each(|_| server.request("kv_cache_full", 2_000_000));
    server.requests(45);
    let (json, section) = shown(&server);
    insta::assert_snapshot!("too_little_kv_cache__findings.json", json);
    insta::assert_snapshot!("too_little_kv_cache__section", section);
}

#[test]
fn a_server_with_nothing_to_change() {
    let mut server = Server::new();
    server.requests(60);
    server.steps(250, DECODE);
    let (json, section) = shown(&server);
    insta::assert_snapshot!("nothing_to_change__findings.json", json);
    insta::assert_snapshot!("nothing_to_change__section", section);
}

#[test]
fn several_findings_the_most_important_first() {
    let mut server = Server::new();
    server.is_ahead = false;
    server.worker.fact("setting:enforce_eager", "True");
    server.requests(60);
    server.steps(
        250,
        Step { graph: "NONE", waiting: 4, limited_by: "max_num_seqs", held: 300, idle_us: 3_000, ..DECODE },
    );
    insta::assert_snapshot!("several__section", shown(&server).1);
}

#[test]
fn settings_from_outside_do_nothing_in_a_terminal() {
    let mut server = Server::new();
    server.engine.fact("setting:num_gpu_blocks_override", "\u{1b}[31m\u{202e}1\n2");
    server.requests(60);
    server.steps(250, Step { waiting: 9, held: 960, limited_by: "kv_blocks", ..DECODE });
    let (json, section) = shown(&server);
    assert!(!json.contains('\u{1b}') && !json.contains('\u{202e}'));
    assert!(section.contains("\\u{1b}[31m\\u{202e}1\\n2"), "{section}");
}
