//! Whatever a log says of requests and of the KV cache, in whatever order: every number of it is in some row, once.

#![allow(clippy::unwrap_used, reason = "a test")]

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "../../session/tests/common/mod.rs"]
mod common;

use std::collections::BTreeSet;

use common::Log;
use profilemate_analysis::explain::{self, Explainer, Recording};
use profilemate_analysis::requests::Happening;
use profilemate_analysis::{Answers, Row, analyze};
use profilemate_format::record::{
    ClientRequest, KvCache, KvEviction, Label, Outputs, Payload, RequestAdmitted, RequestFinished,
    RequestFirstToken, RequestPreempted, RequestQueued, RequestStopped, RequestText, Schedule, TEXT_BYTES,
};
use profilemate_session::{Error, Session};
use proptest::prelude::*;

/// What was counted of the rows.
#[derive(Debug, Default, PartialEq, Eq)]
struct Rows {
    lives: u64,
    open: u64,
    preempted: u64,
    ended: u64,
    usage: u64,
    evictions: u64,
}

fn analyzed(payloads: &[(u64, Payload)]) -> (Rows, Answers) {
    let folder = tempfile::tempdir().unwrap();
    let raw = folder.path().join("raw");
    std::fs::create_dir(&raw).unwrap();
    let mut engine = Log::new("engine_core", 0, 0, 7001, 1);
    engine.role("api_server", 0, 0);
    for profiler in ["batch_utilization_tracking", "preemption_tracking", "kv_cache_tracking"] {
        engine.fact(&format!("profiler:{profiler}"), "on");
    }
    let names =
        [0, engine.name("kv_cache_full"), engine.name("FINISHED_STOPPED"), engine.name("FINISHED_ABORTED")];
    for (at, (step, payload)) in payloads.iter().enumerate() {
        let name = names[at % names.len()];
        engine.push(1_000 + at as u64 * 10, *step, Label::Work, name, *payload);
    }
    engine.write(&raw);
    let session = Session::open(folder.path()).unwrap();
    let mut rows = Rows::default();
    let answers = analyze::<Error>(&session, |row| {
        match row {
            Row::Lifecycle(life) => {
                rows.lives += 1;
                rows.open += u64::from(life.finish_reason.is_none());
                assert!(life.request_id.len() <= 3 * 255, "replaced bytes take three each at most");
                assert!(life.finish_reason.is_some() == life.finished_ns.is_some());
            }
            Row::RequestEvent(event) => match event.what {
                Happening::Preempted { .. } => rows.preempted += 1,
                Happening::Finished { .. } | Happening::Aborted { .. } => rows.ended += 1,
                Happening::Started { .. } | Happening::Resumed { .. } => {}
            },
            Row::KvUsage(_) => rows.usage += 1,
            Row::KvEviction(_) => rows.evictions += 1,
            _ => {}
        }
        Ok(())
    })
    .unwrap();
    // Neither does anything that is made of them fail.
    let recording = Recording::read(&session).unwrap();
    let explainer = Explainer::new(&recording);
    assert!(explainer.slowest(9).len() <= recording.len());
    let found = explain::requests::find(&session, &explainer, |_| true).unwrap();
    assert_eq!(found.matching, rows.lives);
    (rows, answers)
}

fn payload() -> impl Strategy<Value = Payload> {
    let number = 1u64..6;
    prop_oneof![
        (number.clone(), any::<u64>(), any::<u16>(), any::<u16>()).prop_map(
            |(number, arrival_bits, id_bytes, traits)| {
                let id_bytes = id_bytes % 300;
                Payload::RequestQueued(RequestQueued {
                    number,
                    arrival_bits,
                    id_bytes,
                    traits,
                    ..RequestQueued::default()
                })
            }
        ),
        (number.clone(), 0u16..4, any::<[u8; TEXT_BYTES]>())
            .prop_map(|(number, part, bytes)| Payload::RequestText(RequestText { number, part, bytes })),
        (number.clone(), any::<u32>(), any::<u32>()).prop_map(|(number, computed_tokens, external_tokens)| {
            Payload::RequestAdmitted(RequestAdmitted {
                number,
                computed_tokens,
                external_tokens,
                ..RequestAdmitted::default()
            })
        }),
        (number.clone(), any::<u32>(), 0u64..6, any::<u32>()).prop_map(
            |(number, computed_tokens, beneficiary, blocks_freed)| {
                Payload::RequestPreempted(RequestPreempted {
                    number,
                    computed_tokens,
                    beneficiary,
                    blocks_freed,
                    ..RequestPreempted::default()
                })
            }
        ),
        (number.clone(), 0u32..2).prop_map(|(number, client)| {
            Payload::RequestFirstToken(RequestFirstToken { number, client, output_tokens: 1 })
        }),
        (number.clone(), any::<u32>(), 0u32..2).prop_map(|(number, output_tokens, client)| {
            Payload::RequestFinished(RequestFinished {
                number,
                output_tokens,
                client,
                ..RequestFinished::default()
            })
        }),
        (number, any::<u64>(), 0u16..60).prop_map(|(number, engine_id_hash, id_bytes)| {
            Payload::ClientRequest(ClientRequest { number, engine_id_hash, id_bytes, ..ClientRequest::default() })
        }),
        any::<u64>().prop_map(|engine_id_hash| Payload::RequestStopped(RequestStopped { engine_id_hash })),
        (any::<[u32; 4]>()).prop_map(|[used, total, allocated, reused]| {
            Payload::KvCache(KvCache { used, total, allocated, reused, ..KvCache::default() })
        }),
        (any::<u64>(), any::<u64>()).prop_map(|(lifetime_ticks, idle_ticks)| {
            Payload::KvEviction(KvEviction { lifetime_ticks, idle_ticks, ..KvEviction::default() })
        }),
        (0u32..2).prop_map(|client| Payload::Outputs(Outputs { client, ..Outputs::default() })),
        Just(Payload::Schedule(Schedule { num_tokens: 1, ..Schedule::default() })),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_log_says_every_request_has_one_row(payloads in prop::collection::vec((0u64..4, payload()), 0..120)) {
        let (rows, answers) = analyzed(&payloads);
        let count = |of: fn(&Payload) -> bool| payloads.iter().filter(|(_, payload)| of(payload)).count() as u64;
        let requests = answers.requests.unwrap();
        prop_assert_eq!(rows.lives, requests.total_requests);
        prop_assert_eq!(rows.open, requests.open_requests);
        prop_assert_eq!(rows.lives - rows.open, requests.finished.values().sum::<u64>());
        prop_assert_eq!(rows.ended, count(|payload| matches!(payload, Payload::RequestFinished(_))));
        prop_assert_eq!(rows.lives - rows.open, rows.ended);
        prop_assert_eq!(rows.preempted, count(|payload| matches!(payload, Payload::RequestPreempted(_))));
        prop_assert_eq!(rows.preempted, requests.preemptions);
        prop_assert_eq!(rows.usage, count(|payload| matches!(payload, Payload::KvCache(_))));
        prop_assert_eq!(rows.evictions, count(|payload| matches!(payload, Payload::KvEviction(_))));
        let numbers: BTreeSet<u64> = payloads
            .iter()
            .filter_map(|(_, payload)| match payload {
                Payload::RequestQueued(record) => Some(record.number),
                Payload::RequestAdmitted(record) => Some(record.number),
                Payload::RequestPreempted(record) => Some(record.number),
                Payload::RequestFirstToken(record) => Some(record.number),
                Payload::RequestFinished(record) => Some(record.number),
                _ => None,
            })
            .collect();
        prop_assert!(rows.lives >= numbers.len() as u64);
    }
}
