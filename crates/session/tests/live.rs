//! Reading a log while the recorder writes it.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::sync::atomic::{AtomicBool, Ordering};

use profilemate_record::{Options, Writer, clock, session_folder};
use profilemate_session::glance::glance;
use profilemate_session::{Edge, Label, Name, Payload, Record, Session};

fn span(name: u32, step: u64) -> Record {
    let span = profilemate_format::record::Span { duration_ticks: 5, ..Default::default() };
    Record { ticks: clock::ticks(), step, label: Label::Work, flags: 0, name, payload: Payload::Span(span) }
}

#[test]
fn a_log_that_grows_is_never_damaged_and_every_name_is_known() {
    let output = tempfile::tempdir().unwrap();
    let folder = session_folder::create(output.path()).unwrap();
    let options = Options { segment_bytes: 64 << 10, ..Options::new(&folder, "engine_core", 0) };
    let mut writer = Writer::open(&options).unwrap();
    let done = AtomicBool::new(false);
    let written = std::thread::scope(|scope| {
        let recorder = scope.spawn(|| {
            let mut step = 0;
            while step < 20_000 {
                // Ever new names: a reader must know each that it meets.
                let name = if step % 50 == 0 {
                    writer.intern(&format!("name {step}"))
                } else {
                    writer.intern("scheduling")
                };
                // Where the disk is slower than this loop, records are counted and left out; then it waits.
                if writer.push(&span(name, step)) {
                    step += 1;
                } else {
                    std::thread::yield_now();
                }
            }
            done.store(true, Ordering::Release);
            step
        });
        let mut found = 0;
        while !done.load(Ordering::Acquire) {
            let session = Session::open(&folder).unwrap();
            let log = &session.logs[0];
            assert!(log.alive && log.found >= found, "{} after {found}", log.found);
            assert_eq!((log.damaged, session.damage.as_slice()), (0, &[][..]));
            found = log.found;
            let mut events = session.events().unwrap();
            let mut next = 0;
            while let Some(event) = events.next_event().unwrap() {
                assert_eq!((event.record.step, event.edge), (next, Edge::End));
                assert!(log.head.string(event.record.name).is_some(), "record {next} has no name");
                next += 1;
            }
            assert_eq!(next, found, "the survey and the events see the same records");
        }
        recorder.join().unwrap()
    });
    assert!(glance(&folder).unwrap()[0].alive);
    writer.close();
    let session = Session::open(&folder).unwrap();
    let log = &session.logs[0];
    assert!(!log.alive && log.head.closed_ticks.is_some());
    assert_eq!((log.found, log.damaged, log.written(), session.damage.len()), (written, 0, written, 0));
    assert_eq!(log.lost(), log.head.dropped);
    assert_eq!(log.span_name(1), Name::Other);
}

#[test]
fn the_oldest_segments_may_go_while_they_are_read() {
    let output = tempfile::tempdir().unwrap();
    let folder = session_folder::create(output.path()).unwrap();
    let options = Options { segment_bytes: 4096, max_bytes: 16 << 10, ..Options::new(&folder, "worker", 0) };
    let mut writer = Writer::open(&options).unwrap();
    let name = writer.intern("forward");
    let mut step = 0;
    while step < 1000 {
        if writer.push(&span(name, step)) {
            step += 1;
        } else {
            // What is read while segments go is a part without a gap at its end.
            let session = Session::open(&folder).unwrap();
            let mut records = session.logs[0].records();
            let mut last = None;
            while let Some(record) = records.next_record().unwrap() {
                assert!(last.is_none_or(|last| record.step > last));
                last = Some(record.step);
            }
            assert_eq!(session.records_damaged(), 0);
        }
    }
    writer.close();
    let session = Session::open(&folder).unwrap();
    let log = &session.logs[0];
    assert_eq!(log.written(), 1000);
    assert_eq!(log.found + log.head.discarded, 1000);
    assert_eq!(session.damage, []);
}
