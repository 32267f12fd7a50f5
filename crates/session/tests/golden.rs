//! Sessions as this version writes them, kept as bytes: every later reader has to read them the same.
//!
//! They are made again with `PROFILEMATE_WRITE_GOLDEN=1 cargo test -p profilemate-session --test golden`, and those of
//! real vLLM runs with `scripts/record_golden_sessions.sh`; after a release that wrote a format version, its golden
//! files never change.

#![allow(clippy::unwrap_used, reason = "a test")]

#[allow(dead_code, reason = "other tests use the rest")]
mod common;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use common::{RECORDED, SESSIONS, golden};
use profilemate_session::{Edge, Session};

fn files(raw: &Path) -> BTreeMap<String, Vec<u8>> {
    fs::read_dir(raw)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap()))
        .collect()
}

#[test]
fn the_format_still_writes_the_golden_bytes() {
    for (name, write) in SESSIONS {
        let raw = golden().join(name).join("raw");
        if std::env::var_os("PROFILEMATE_WRITE_GOLDEN").is_some() {
            let _ = fs::remove_dir_all(&raw);
            fs::create_dir_all(&raw).unwrap();
            write(&raw);
        }
        let made = tempfile::tempdir().unwrap();
        write(made.path());
        let (made, kept) = (files(made.path()), files(&raw));
        assert_eq!(made.keys().collect::<Vec<_>>(), kept.keys().collect::<Vec<_>>(), "{name}");
        for (file, bytes) in &made {
            assert!(bytes == &kept[file], "{name}/{file} differs");
        }
    }
}

/// Every golden session.
fn names() -> impl Iterator<Item = &'static str> {
    SESSIONS.iter().map(|(name, _)| *name).chain(RECORDED)
}

/// What a session is read as, in words.
fn outline(session: &Session) -> String {
    let mut text = String::new();
    for log in &session.logs {
        let _ = writeln!(
            text,
            "{}: {} found, {} damaged, {} written, {} lost, roles {:?}",
            log.name,
            log.found,
            log.damaged,
            log.written(),
            log.lost(),
            log.head.roles.iter().map(|role| format!("{}-{}", role.name, role.rank)).collect::<Vec<_>>(),
        );
    }
    for damage in &session.damage {
        let _ = writeln!(text, "{}: {}", damage.file, damage.what);
    }
    text
}

#[test]
fn golden_sessions_are_read_whole() {
    let mut text = String::new();
    for name in names() {
        let session = Session::open(&golden().join(name)).unwrap();
        let _ = write!(text, "[{name}]\n{}", outline(&session));
    }
    insta::assert_snapshot!(text);
}

#[test]
fn events_come_in_the_order_in_which_things_ended() {
    for name in names() {
        let session = Session::open(&golden().join(name)).unwrap();
        let mut events = session.events().unwrap();
        let (mut last, mut count) = ((i64::MIN, 0), 0);
        while let Some(event) = events.next_event().unwrap() {
            let key = (if event.edge == Edge::Begin { event.start_ns } else { event.end_ns }, event.log);
            // Within one log its own order stands: a schedule is noted after the call and dated before it.
            assert!(key >= last || event.log == last.1, "{name}: {event:?}");
            last = (key.0.max(last.0), event.log);
            count += u64::from(event.edge == Edge::End);
        }
        assert_eq!(count, session.logs.iter().map(|log| log.found).sum::<u64>());
    }
}

#[test]
fn times_of_all_clocks_count_from_one_start() {
    let session = Session::open(&golden().join("server")).unwrap();
    assert_eq!(session.start.monotonic_ns, 5_000_000_000_000);
    assert_eq!(session.start.realtime_ns, 1_767_323_045_000_000_000);
    let mut events = session.events().unwrap();
    let mut checked = 0;
    while let Some(event) = events.next_event().unwrap() {
        if event.name == profilemate_session::Name::EngineStep {
            let step = i64::try_from(event.record.step).unwrap();
            assert_eq!((event.start_ns, event.duration_ns()), ((10_000 + step * 1000) * 1000, 850_000));
            checked += 1;
        }
    }
    assert_eq!(checked, 40);
}
