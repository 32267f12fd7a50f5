//! Recordings of every format that was ever shipped: they read as they always did.
//!
//! They were made by the recorder of their version and are never changed. When the format changes, add one.

use crate::support::Log;
use profilemate_format::head::{ClockSource, Role};
use profilemate_format::record::{
    FLAG_RAISED, Label, Limits, Outputs, Payload, ProcessExit, Record, Schedule, Span,
};
use std::path::Path;

fn read(name: &str) -> Log {
    Log::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name))
}

/// One record of each kind.
fn records() -> Vec<Record> {
    let record = |step, label, payload| Record { ticks: 1000 + step, step, label, flags: 0, name: 0, payload };
    let span =
        Span { duration_ticks: 77, value_a: 5 | 2 << 32, value_b: u64::MAX, context: 2, overhead_ticks: u32::MAX };
    vec![
        record(0, Label::Work, Payload::Limits(Limits { max_num_seqs: 256, max_num_tokens: 8192 })),
        Record { flags: FLAG_RAISED, name: 1, ..record(1, Label::WarmUp, Payload::Span(span)) },
        record(
            2,
            Label::Work,
            Payload::Schedule(Schedule {
                num_seqs: 1,
                num_tokens: 2,
                prefill_tokens: 3,
                prefill_seqs: 4,
                running: 5,
                waiting: 6,
                completed_prompt_tokens: 7,
                completed_prompts: 8,
            }),
        ),
        record(
            3,
            Label::Dummy,
            Payload::Outputs(Outputs {
                timestamp_bits: 1.5_f64.to_bits(),
                client: 1,
                num_outputs: 2,
                new_tokens: 3,
                finished: 4,
            }),
        ),
        record(4, Label::Work, Payload::ProcessExit(ProcessExit { pid: 4711, code: -1, signal: 9 })),
    ]
}

#[test]
fn a_closed_log_of_format_1() {
    let log = read("1/raw/engine_core-0-14750.head");
    let identity = &log.head.identity;
    assert_eq!((log.head.version, identity.pid, identity.segment_slots), (1, 14750, 4));
    assert_eq!((identity.clock, identity.text_capacity), (ClockSource::X86Tsc, 256));
    assert_eq!(log.records(), records());
    assert_eq!((&log.segments[..], log.slots.empty, log.slots.damaged), (&[0, 1][..], 0, 0));
    assert_eq!(log.head.strings, [Some("warm_up".to_owned()), Some("load_model".to_owned())]);
    assert_eq!(log.head.facts, [("model".to_owned(), "llama".to_owned())]);
    let role = |name: &str, rank, data_parallel_rank| Role { name: name.to_owned(), rank, data_parallel_rank };
    assert_eq!(log.head.roles, [role("engine_core", 0, 3), role("worker", 6, 3)]);
    assert_eq!((log.head.written, log.head.dropped, log.head.discarded, log.head.segments), (5, 2741, 0, 2));
    assert_eq!((log.head.probe_errors, log.head.overhead_ticks, log.head.text_lost), (1, 42, 1));
    assert_eq!(log.head.anchors.len(), 2);
    assert!(log.head.closed_ticks.is_some_and(|ticks| ticks > log.head.anchors[0].ticks));
}

#[test]
fn a_log_of_format_1_whose_process_was_killed_while_it_wrote() {
    let log = read("1/raw/worker-0-14750.head");
    assert_eq!(log.records(), &records()[..2]);
    assert_eq!((&log.segments[..], log.slots.empty, log.slots.damaged), (&[0, 1][..], 5, 1));
    assert_eq!((log.head.written, log.head.closed_ticks), (2, None));
}
