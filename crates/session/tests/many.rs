//! A session of very many processes, whose ids the system gave out again and again.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::HashMap;

use profilemate_format::head::{Anchor, ClockSource, Identity};
use profilemate_record::{Options, PastLog, Writer, session_folder};
use profilemate_session::{Edge, Label, Payload, Record, Session};

const PROCESSES: u32 = 10_000;
/// So many ids there are for them.
const IDS: u32 = 300;

fn span(ticks: u64, step: u64) -> Record {
    let span = profilemate_format::record::Span { duration_ticks: 5, ..Default::default() };
    Record { ticks, step, label: Label::Work, flags: 0, name: 1, payload: Payload::Span(span) }
}

fn identity(number: u32) -> Identity {
    Identity {
        log_id: [0; 16],
        role: "worker".into(),
        rank: 0,
        data_parallel_rank: 0,
        pid: 1000 + number % IDS,
        parent_pid: 1,
        process_start: u64::from(number),
        ticks_per_second: 1_000_000_000,
        clock: ClockSource::Monotonic,
        segment_slots: 64,
        text_capacity: 0,
    }
}

/// Most files that this process may have open.
fn open_at_most(files: u64) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(files), maximum }).unwrap();
}

#[test]
fn ten_thousand_processes_with_few_ids_are_told_apart() {
    // As most systems have it.
    open_at_most(1024);
    let output = tempfile::tempdir().unwrap();
    let folder = session_folder::create(output.path()).unwrap();
    for number in 0..PROCESSES {
        let mut log = PastLog::create(&folder, identity(number));
        assert_eq!(log.intern("scheduling"), 1);
        log.fact("number", &number.to_string());
        // All at once: record k of each comes before record k + 1 of any.
        for record in 0..3 {
            let at = 1_000 + u64::from(record * PROCESSES + number) * 10;
            log.push(&span(at, u64::from(number))).unwrap();
        }
        let anchor = |ticks| Anchor { ticks, monotonic_ns: ticks, realtime_ns: ticks + 7 };
        log.finish(&[anchor(1_000), anchor(1_000_000)]).unwrap();
    }
    let session = Session::open(&folder).unwrap();
    assert_eq!((session.logs.len(), session.damage.len()), (PROCESSES as usize, 0));
    assert_eq!((session.records_lost(), session.records_damaged()), (0, 0));
    let mut last = i64::MIN;
    let mut found: HashMap<usize, u32> = HashMap::new();
    let mut events = session.events().unwrap();
    while let Some(event) = events.next_event().unwrap() {
        if event.edge != Edge::End {
            continue;
        }
        assert!(event.end_ns >= last, "they come in order");
        last = event.end_ns;
        *found.entry(event.log).or_default() += 1;
        let log = &session.logs[event.log];
        assert_eq!(log.head.fact("number"), Some(&event.record.step.to_string()[..]), "each in its own log");
        assert_eq!(u64::from(log.head.identity.pid), 1000 + event.record.step % u64::from(IDS));
    }
    assert!(found.len() == PROCESSES as usize && found.values().all(|records| *records == 3));
}

#[test]
fn a_process_whose_id_was_used_ten_thousand_times_before_has_a_log() {
    let output = tempfile::tempdir().unwrap();
    let folder = session_folder::create(output.path()).unwrap();
    let name = format!("raw/engine_core-0-{}", std::process::id());
    for number in 1..=PROCESSES {
        let number = if number == 1 { String::new() } else { format!("~{number}") };
        std::fs::write(folder.join(format!("{name}{number}.head")), "").unwrap();
    }
    let writer = Writer::open(&Options::new(&folder, "engine_core", 0)).unwrap();
    assert_eq!(writer.path(), folder.join(format!("{name}~{}.head", PROCESSES + 1)));
}
