//! Recordings of every format that was ever shipped: they read as they always did.
//!
//! They were made by the recorder of their version and are never changed. When the format changes, add one.

use crate::support::{Log, options};
use profilemate_format::head::{ClockSource, Role};
use profilemate_format::record::{
    ClientRequest, FLAG_RAISED, GpuStep, KvCache, KvEviction, Label, Limits, Outputs, Payload, ProcessExit,
    Record, RequestAdmitted, RequestFinished, RequestFirstToken, RequestPreempted, RequestQueued, RequestStopped,
    RequestText, Schedule, Span, request_traits,
};
use profilemate_record::{Writer, session_folder};
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
                running: Some(5),
                waiting: Some(6),
                completed_prompt_tokens: Some(7),
                completed_prompts: Some(8),
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

/// One record of each kind from 6 on, every field another number.
fn records_from_kind_6() -> Vec<Record> {
    let payloads = [
        Payload::GpuStep(GpuStep {
            forward_ms: Some(1.5),
            sample_ms: None,
            idle_before_ms: Some(0.25),
            draft_ms: None,
            busy_ms: Some(1.75),
            padded_tokens: 8,
            descriptor: 1,
            read_after_us: 9,
        }),
        Payload::RequestQueued(RequestQueued {
            number: 1,
            arrival_bits: 1_767_323_045.25_f64.to_bits(),
            prompt_tokens: 2,
            priority: -3,
            client: 4,
            id_bytes: 26,
            traits: request_traits::STREAMING | request_traits::ID_CUT,
        }),
        Payload::RequestText(RequestText { number: 1, part: 0, bytes: *b"cmpl-0123456789abcdef012" }),
        Payload::RequestText(RequestText {
            number: (1 << 48) - 1,
            part: u16::MAX,
            bytes: *b"\xc3\xbc\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        }),
        Payload::RequestAdmitted(RequestAdmitted {
            number: 1,
            computed_tokens: 5,
            external_tokens: u32::MAX,
            num_tokens: 6,
            scheduled_tokens: 7,
        }),
        Payload::RequestPreempted(RequestPreempted {
            number: 1,
            computed_tokens: 8,
            output_tokens: 9,
            beneficiary: 10,
            blocks_freed: 11,
        }),
        Payload::RequestFirstToken(RequestFirstToken { number: 1, output_tokens: 12, client: 13 }),
        Payload::RequestFinished(RequestFinished {
            number: 1,
            prompt_tokens: 14,
            output_tokens: 15,
            preemptions: 16,
            client: 17,
            computed_tokens: 18,
        }),
        Payload::ClientRequest(ClientRequest {
            number: 2,
            engine_id_hash: u64::MAX - 19,
            index: 20,
            id_bytes: 255,
            traits: request_traits::ID_HASHED,
        }),
        Payload::RequestStopped(RequestStopped { engine_id_hash: 0x8000_0000_0000_0015 }),
        Payload::KvCache(KvCache {
            used: 22,
            total: 23,
            cached: 24,
            allocated: 25,
            reused: 26,
            evicted: 27,
            prefix_query_tokens: 28,
            prefix_hit_tokens: 29,
        }),
        Payload::KvEviction(KvEviction {
            lifetime_ticks: 1 << 40,
            idle_ticks: 31,
            accesses: 32,
            block: 33,
            stands_for: 34,
        }),
    ];
    (1..)
        .zip(payloads)
        .map(|(step, payload)| Record { ticks: 2000 + step, step, label: Label::Work, flags: 0, name: 2, payload })
        .collect()
}

/// Recorded with `PROFILEMATE_WRITE_GOLDEN=1 cargo test -p profilemate-record -- golden`, once: when it is there, it stays.
#[test]
fn a_log_of_format_1_with_requests_and_the_kv_cache() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/1-requests");
    if std::env::var_os("PROFILEMATE_WRITE_GOLDEN").is_some() && !folder.exists() {
        session_folder::ensure(&folder).unwrap();
        let mut log = Writer::open(&options(&folder, 16)).unwrap();
        log.intern("NONE");
        log.intern("kv_cache_full");
        log.fact("kv_evictions", "on");
        for record in records_from_kind_6() {
            assert!(log.push(&record));
        }
        log.close();
    }
    let heads: Vec<_> = std::fs::read_dir(folder.join("raw"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "head"))
        .collect();
    let [head] = heads.as_slice() else { panic!("{heads:?}") };
    let log = Log::read(head);
    assert_eq!(log.records(), records_from_kind_6());
    assert_eq!((log.head.written, log.head.dropped, log.slots.damaged), (12, 0, 0));
    assert_eq!(log.head.strings, [Some("NONE".to_owned()), Some("kv_cache_full".to_owned())]);
    assert_eq!(log.head.facts, [("kv_evictions".to_owned(), "on".to_owned())]);
}
