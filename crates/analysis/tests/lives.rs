//! The rules of requests and of the KV cache, each on records made by hand.

#![allow(clippy::unwrap_used, clippy::float_cmp, reason = "a test; what is compared is exact")]

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "../../session/tests/common/mod.rs"]
mod common;

use common::Log;
use profilemate_analysis::requests::{Beneficiary, Happening, Kind};
use profilemate_analysis::{Answers, Row, analyze};
use profilemate_format::record::{
    ClientRequest, KvCache, KvEviction, Label, Outputs, Payload, RequestAdmitted, RequestFinished,
    RequestFirstToken, RequestPreempted, RequestQueued, RequestStopped, RequestText, Schedule, TEXT_BYTES,
    request_traits,
};
use profilemate_session::{Error, Session};
use xxhash_rust::xxh3::xxh3_64;

/// `CLOCK_REALTIME` at the start of every session here, seconds.
const REALTIME: f64 = 1_767_323_045.0;

/// A row of requests, times in microseconds.
#[derive(Debug, Clone, Default, PartialEq)]
struct Life {
    id: String,
    client_id: String,
    sample: Option<u32>,
    kind: Option<Kind>,
    arrived: Option<i64>,
    queued: Option<i64>,
    started: Option<i64>,
    preempted: Option<i64>,
    resumed: Option<i64>,
    first_token: Option<i64>,
    finished: Option<i64>,
    delay: Option<u64>,
    queue_time: Option<u64>,
    ttft: Option<u64>,
    total: Option<u64>,
    tpot: Option<u64>,
    prompt: Option<u32>,
    cached: Option<u32>,
    output: Option<u32>,
    preemptions: Option<u64>,
    recomputed: Option<u64>,
    reason: Option<String>,
    process: String,
}

#[derive(Debug, Default)]
struct Found {
    lives: Vec<Life>,
    /// Time in microseconds, id, what, running time in microseconds.
    events: Vec<(i64, String, &'static str, Option<u64>)>,
    /// For whom requests were preempted.
    beneficiaries: Vec<String>,
    /// Pool, used, allocated, freed.
    usage: Vec<(String, u32, Option<u64>, Option<u64>)>,
    evictions: Vec<(u64, u64, u32)>,
    limited_by: Vec<Option<String>>,
}

impl Found {
    fn life(&self, id: &str) -> &Life {
        let found: Vec<&Life> = self.lives.iter().filter(|life| life.id == id).collect();
        assert_eq!(found.len(), 1, "{id}: {:?}", self.lives);
        found[0]
    }

    fn of(&self, id: &str) -> Vec<(i64, &'static str, Option<u64>)> {
        let events = self.events.iter().filter(|(_, of, ..)| of == id);
        events.map(|(at, _, what, running)| (*at, *what, *running)).collect()
    }
}

fn engine(rank: u32) -> Log {
    let mut log = Log::new("engine_core", rank, rank, 8001 + rank, 1);
    for profiler in ["batch_utilization_tracking", "preemption_tracking", "kv_cache_tracking"] {
        log.fact(&format!("profiler:{profiler}"), "on");
    }
    log
}

fn front() -> Log {
    Log::new("api_server", 0, 0, 8000, 1)
}

trait Records {
    fn put(&mut self, us: u64, step: u64, name: &str, payload: Payload);
    fn id(&mut self, us: u64, number: u64, id: &str);
    fn queue_with(&mut self, us: u64, id: &str, queued: RequestQueued);
    /// Arrived 50 us before it is queued, with a prompt of 100 tokens.
    fn queue(&mut self, us: u64, number: u64, id: &str) {
        let arrival_bits = (REALTIME + (us as f64 - 50.0) / 1e6).to_bits();
        self.queue_with(
            us,
            id,
            RequestQueued { number, arrival_bits, prompt_tokens: 100, ..RequestQueued::default() },
        );
    }
    fn admit(&mut self, us: u64, step: u64, number: u64, computed_tokens: u32) {
        let admitted = RequestAdmitted {
            number,
            computed_tokens,
            external_tokens: u32::MAX,
            num_tokens: 100,
            scheduled_tokens: 100 - computed_tokens,
        };
        self.put(us, step, "", Payload::RequestAdmitted(admitted));
    }
    fn preempt(&mut self, us: u64, step: u64, number: u64, computed_tokens: u32, beneficiary: u64) {
        let preempted = RequestPreempted {
            number,
            computed_tokens,
            beneficiary,
            blocks_freed: 3,
            ..RequestPreempted::default()
        };
        self.put(us, step, "kv_cache_full", Payload::RequestPreempted(preempted));
    }
    fn first(&mut self, us: u64, step: u64, number: u64, client: u32) {
        let first = RequestFirstToken { number, output_tokens: 1, client };
        self.put(us, step, "", Payload::RequestFirstToken(first));
    }
    fn finish(&mut self, us: u64, step: u64, number: u64, status: &str, output_tokens: u32) {
        let finished = RequestFinished {
            number,
            prompt_tokens: 100,
            output_tokens,
            preemptions: u32::MAX,
            ..RequestFinished::default()
        };
        self.put(us, step, status, Payload::RequestFinished(finished));
    }
    fn send(&mut self, us: u64, step: u64, client: u32) {
        let outputs =
            Outputs { timestamp_bits: stamp(step, client), client, num_outputs: 1, ..Outputs::default() };
        self.put(us, step, "", Payload::Outputs(outputs));
    }
    fn client(&mut self, us: u64, number: u64, engine_id: &str, id: &str, index: u32) {
        let client = ClientRequest {
            number,
            engine_id_hash: xxh3_64(engine_id.as_bytes()),
            index,
            id_bytes: u16::try_from(id.len()).unwrap(),
            traits: 0,
        };
        self.put(us, 0, "", Payload::ClientRequest(client));
        self.id(us, number, id);
    }
    fn stop(&mut self, us: u64, engine_id: &str) {
        let stopped = RequestStopped { engine_id_hash: xxh3_64(engine_id.as_bytes()) };
        self.put(us, 0, "", Payload::RequestStopped(stopped));
    }
    fn pool(&mut self, us: u64, step: u64, name: &str, used: u32, allocated: u32) {
        let cache = KvCache {
            used,
            total: 100,
            allocated,
            prefix_query_tokens: u32::MAX,
            prefix_hit_tokens: u32::MAX,
            ..KvCache::default()
        };
        self.put(us, step, name, Payload::KvCache(cache));
    }
}

impl Records for Log {
    fn put(&mut self, us: u64, step: u64, name: &str, payload: Payload) {
        let name = if name.is_empty() { 0 } else { self.name(name) };
        self.push(us, step, Label::Work, name, payload);
    }

    fn id(&mut self, us: u64, number: u64, id: &str) {
        for (part, piece) in id.as_bytes().chunks(TEXT_BYTES).enumerate() {
            let mut bytes = [0; TEXT_BYTES];
            bytes[..piece.len()].copy_from_slice(piece);
            let part = u16::try_from(part).unwrap();
            self.put(us, 0, "", Payload::RequestText(RequestText { number, part, bytes }));
        }
    }

    fn queue_with(&mut self, us: u64, id: &str, queued: RequestQueued) {
        let queued = RequestQueued { id_bytes: u16::try_from(id.len()).unwrap(), ..queued };
        self.put(us, 0, "", Payload::RequestQueued(queued));
        self.id(us, queued.number, id);
    }
}

fn stamp(step: u64, client: u32) -> u64 {
    (7000.0 + step as f64 / 1e3 + f64::from(client) / 1e6).to_bits()
}

/// A front end takes the outputs of a step to a client.
fn take(log: &mut Log, us: u64, step: u64, client: u32) {
    log.span(us, 10, 0, "output_processing", (stamp(step, client), 1), "");
}

fn found(logs: &[Log]) -> (Found, Answers) {
    let folder = tempfile::tempdir().unwrap();
    let raw = folder.path().join("raw");
    std::fs::create_dir(&raw).unwrap();
    for log in logs {
        log.write(&raw);
    }
    let session = Session::open(folder.path()).unwrap();
    let mut found = Found::default();
    let us = |ns: Option<i64>| ns.map(|ns| ns / 1000);
    let long = |ns: Option<u64>| ns.map(|ns| ns / 1000);
    let answers = analyze::<Error>(&session, |row| {
        match row {
            Row::Lifecycle(life) => found.lives.push(Life {
                id: life.request_id.to_owned(),
                client_id: life.client_request_id.to_owned(),
                sample: life.sample_index,
                kind: life.kind,
                // A float of seconds since 1970 is good to a quarter of a microsecond.
                arrived: life.arrived_ns.map(|ns| (ns + 500) / 1000),
                queued: us(life.queued_ns),
                started: us(life.started_ns),
                preempted: us(life.preempted_ns),
                resumed: us(life.resumed_ns),
                first_token: us(life.first_token_ns),
                finished: us(life.finished_ns),
                delay: long(life.preemption_delay_ns),
                queue_time: long(life.queue_time_ns()),
                ttft: life.ttft_ns().map(|ns| (ns + 500) / 1000),
                total: life.total_time_ns().map(|ns| (ns + 500) / 1000),
                tpot: long(life.tpot_ns()),
                prompt: life.prompt_tokens,
                cached: life.cached_tokens,
                output: life.output_tokens,
                preemptions: life.preemptions,
                recomputed: life.recomputed_tokens,
                reason: life.finish_reason.map(str::to_owned),
                process: life.process.to_owned(),
            }),
            Row::RequestEvent(event) => {
                let (what, running) = match event.what {
                    Happening::Started { .. } => ("started", None),
                    Happening::Preempted { running_ns, beneficiary, .. } => {
                        found.beneficiaries.push(match beneficiary {
                            Beneficiary::Unknown => "unknown".to_owned(),
                            Beneficiary::Itself => "itself".to_owned(),
                            Beneficiary::Other(id) => id.to_owned(),
                        });
                        ("preempted", running_ns)
                    }
                    Happening::Resumed { .. } => ("resumed", None),
                    Happening::Finished { running_ns, .. } => ("finished", running_ns),
                    Happening::Aborted { running_ns, .. } => ("aborted", running_ns),
                };
                found.events.push((event.at_ns / 1000, event.request_id.to_owned(), what, long(running)));
            }
            Row::KvUsage(usage) => {
                found.usage.push((usage.pool.to_owned(), usage.used, usage.allocated, usage.freed));
            }
            Row::KvEviction(of) => found.evictions.push((of.lifetime_ns / 1000, of.idle_ns / 1000, of.stands_for)),
            Row::Batch(batch) => found.limited_by.push(batch.limited_by.map(str::to_owned)),
            _ => {}
        }
        Ok(())
    })
    .unwrap();
    (found, answers)
}

#[test]
fn a_plain_life_is_told_by_the_front_end() {
    let (mut engine, mut front) = (engine(0), front());
    front.client(900, 1, "cmpl-1-abc", "cmpl-1", 0);
    engine.queue(1_000, 1, "cmpl-1-abc");
    engine.admit(1_200, 1, 1, 32);
    engine.first(2_000, 1, 1, 0);
    engine.send(2_001, 1, 0);
    take(&mut front, 2_300, 1, 0);
    // A second slice of the same outputs, which says nothing new.
    take(&mut front, 2_400, 1, 0);
    engine.finish(5_000, 4, 1, "FINISHED_LENGTH_CAPPED", 4);
    engine.send(5_001, 4, 0);
    take(&mut front, 5_600, 4, 0);
    let (found, answers) = found(&[front, engine]);
    let expected = Life {
        id: "cmpl-1-abc".to_owned(),
        client_id: "cmpl-1".to_owned(),
        sample: Some(0),
        kind: Some(Kind::Generate),
        arrived: Some(950),
        queued: Some(1_000),
        started: Some(1_200),
        first_token: Some(2_300),
        finished: Some(5_600),
        delay: Some(0),
        queue_time: Some(200),
        ttft: Some(1_350),
        total: Some(4_650),
        tpot: Some(1_100),
        prompt: Some(100),
        cached: Some(32),
        output: Some(4),
        preemptions: Some(0),
        recomputed: Some(0),
        reason: Some("length".to_owned()),
        process: "engine_core-0".to_owned(),
        ..Life::default()
    };
    assert_eq!(found.lives, [expected]);
    assert_eq!(found.of("cmpl-1-abc"), [(1_200, "started", None), (5_000, "finished", Some(3_800))]);
    let summary = answers.requests.unwrap();
    assert_eq!((summary.total_requests, summary.open_requests, summary.aborted_requests), (1, 0, 0));
    assert_eq!(answers.counters.finished_by_reason, summary.finished);
    assert_eq!(answers.counters.preemptions, Some(0));
    assert_eq!(summary.tpot.unwrap().p90, 1.1);
}

#[test]
fn every_preemption_counts() {
    let mut engine = engine(0);
    engine.queue(1_000, 1, "victim");
    engine.queue(1_001, 2, "winner");
    engine.admit(2_000, 1, 1, 0);
    engine.admit(2_000, 1, 2, 0);
    engine.preempt(3_000, 2, 1, 100, 2);
    engine.admit(3_500, 3, 1, 64);
    engine.preempt(4_000, 4, 1, 110, 1);
    engine.admit(6_000, 5, 1, 0);
    engine.finish(7_000, 0, 1, "FINISHED_STOPPED", 9);
    let (found, answers) = found(&[engine]);
    let life = found.life("victim");
    assert_eq!((life.preempted, life.resumed, life.delay), (Some(3_000), Some(3_500), Some(2_500)));
    assert_eq!((life.preemptions, life.recomputed), (Some(2), Some(36 + 110)));
    assert_eq!(
        found.of("victim"),
        [
            (2_000, "started", None),
            (3_000, "preempted", Some(1_000)),
            (3_500, "resumed", None),
            (4_000, "preempted", Some(500)),
            (6_000, "resumed", None),
            (7_000, "finished", Some(2_500)),
        ]
    );
    assert_eq!(found.beneficiaries, ["winner", "itself"]);
    let summary = answers.requests.unwrap();
    assert_eq!((summary.preemptions, summary.preempted_requests, summary.recomputed_tokens), (2, 1, 146));
    let delays = summary.resume_delays.unwrap();
    assert_eq!((delays.count, delays.mean, delays.max), (2, 0.001_25, 0.002));
    assert_eq!(summary.running_before_preemption.unwrap().mean, 0.000_75);
    assert_eq!(answers.counters.preemptions, Some(2));
    assert_eq!(summary.preemption_reasons["kv_cache_full"], 2);
}

#[test]
fn an_abort_ends_a_life_wherever_it_is() {
    let mut engine = engine(0);
    for (number, id) in [(1, "waiting"), (2, "running"), (3, "preempted")] {
        engine.queue(1_000 + number, number, id);
    }
    engine.admit(2_000, 1, 2, 0);
    engine.admit(2_000, 1, 3, 0);
    engine.preempt(2_500, 2, 3, 77, 0);
    for number in 1..=3 {
        engine.finish(3_000, 0, number, "FINISHED_ABORTED", 1);
    }
    let (found, answers) = found(&[engine]);
    assert!(
        found.lives.iter().all(|life| life.reason.as_deref() == Some("abort") && life.finished == Some(3_000))
    );
    assert_eq!((found.life("waiting").started, found.life("waiting").queue_time), (None, None));
    assert_eq!(found.of("waiting"), [(3_000, "aborted", None)]);
    assert_eq!(found.of("running")[1], (3_000, "aborted", Some(1_000)));
    let preempted = found.life("preempted");
    // It waited until it was over, and all of its work was for nothing.
    assert_eq!((preempted.delay, preempted.recomputed, preempted.resumed), (Some(500), Some(77), None));
    assert_eq!(found.of("preempted")[2], (3_000, "aborted", Some(500)));
    assert_eq!(found.beneficiaries, ["unknown"]);
    let summary = answers.requests.unwrap();
    assert_eq!((summary.aborted_requests, summary.resume_delays), (3, None));
}

#[test]
fn a_stop_string_is_no_abort() {
    let (mut engine, mut front) = (engine(0), front());
    engine.queue(1_000, 1, "stops");
    engine.admit(1_100, 1, 1, 0);
    front.stop(2_000, "stops");
    engine.finish(2_500, 0, 1, "FINISHED_ABORTED", 3);
    // One of the same id later is aborted by its client; a stop of one that had ended says nothing about it.
    front.stop(2_600, "stops");
    engine.queue(3_000, 2, "stops");
    engine.finish(3_500, 0, 2, "FINISHED_ABORTED", 0);
    let (found, _) = found(&[front, engine]);
    let ends: Vec<_> = found.lives.iter().map(|life| (life.finished, life.reason.as_deref())).collect();
    assert_eq!(ends, [(Some(2_000), Some("stop")), (Some(3_500), Some("abort"))]);
    let what: Vec<&str> = found.events.iter().map(|(_, _, what, _)| *what).collect();
    assert_eq!(what, ["started", "finished", "aborted"]);
}

#[test]
fn what_is_not_over_has_no_end() {
    let mut engine = engine(0);
    for (number, id) in [(1, "waiting"), (2, "running"), (3, "preempted")] {
        engine.queue(1_000 + number, number, id);
    }
    engine.admit(2_000, 1, 2, 10);
    engine.admit(2_000, 1, 3, 0);
    engine.preempt(2_500, 2, 3, 77, 2);
    let (found, answers) = found(&[engine]);
    let ids: Vec<&str> = found.lives.iter().map(|life| life.id.as_str()).collect();
    assert_eq!(ids, ["waiting", "running", "preempted"]);
    for life in &found.lives {
        assert_eq!(
            (life.finished, life.total, life.tpot, life.output, &life.reason),
            (None, None, None, None, &None)
        );
        assert_eq!(life.prompt, Some(100));
    }
    assert_eq!((found.life("running").cached, found.life("running").delay), (Some(10), Some(0)));
    assert_eq!((found.life("preempted").delay, found.life("preempted").recomputed), (None, Some(77)));
    assert_eq!(answers.requests.unwrap().open_requests, 3);
}

#[test]
fn what_is_gone_is_not_known() {
    let mut engine = engine(0);
    // Nothing before these is there: whether the admission is the first one, nobody knows.
    engine.admit(1_000, 7, 1, 5);
    engine.preempt(1_500, 8, 1, 50, 0);
    engine.admit(1_700, 9, 1, 20);
    engine.finish(2_000, 0, 1, "FINISHED_STOPPED", 4);
    // vLLM counted one preemption more than there are records; and here, just those.
    for (number, preemptions) in [(2, 2), (3, 1)] {
        engine.preempt(3_000, 0, number, 50, 0);
        engine.admit(3_200, 10, number, 0);
        let finished = RequestFinished {
            number,
            preemptions,
            prompt_tokens: 9,
            output_tokens: 1,
            ..RequestFinished::default()
        };
        engine.put(3_300, 0, "FINISHED_STOPPED", Payload::RequestFinished(finished));
    }
    let (found, answers) = found(&[engine]);
    let [one, two, three] = found.lives.as_slice() else { panic!("{:?}", found.lives) };
    let unknown = (None, None, None, None, None);
    assert_eq!((one.queued, one.arrived, one.started, one.cached, one.total), unknown);
    assert_eq!((one.preempted, one.delay, one.preemptions, one.recomputed), (None, None, None, None));
    assert_eq!((one.finished, one.output, one.prompt), (Some(2_000), Some(4), Some(100)));
    assert_eq!((one.id.as_str(), one.kind), ("", None));
    assert_eq!((two.preemptions, two.recomputed, two.preempted), (Some(2), None, None));
    assert_eq!((three.preemptions, three.recomputed, three.delay), (Some(1), Some(50), Some(200)));
    // What did happen is there all the same.
    let of: Vec<_> = found.events.iter().take(3).map(|(at, _, what, running)| (*at, *what, *running)).collect();
    assert_eq!(of, [(1_500, "preempted", Some(500)), (1_700, "resumed", None), (2_000, "finished", None)]);
    assert_eq!(answers.requests.unwrap().preemptions, 3);
}

#[test]
fn a_resume_that_is_gone_leaves_no_sum() {
    let mut engine = engine(0);
    engine.queue(1_000, 1, "gap");
    engine.admit(1_100, 1, 1, 0);
    engine.preempt(1_200, 2, 1, 50, 0);
    engine.preempt(1_400, 4, 1, 60, 0);
    engine.admit(1_500, 5, 1, 0);
    engine.finish(1_600, 0, 1, "FINISHED_STOPPED", 4);
    let (found, _) = found(&[engine]);
    let life = found.life("gap");
    assert_eq!((life.preemptions, life.delay, life.recomputed), (Some(2), None, None));
    assert_eq!(found.of("gap")[2], (1_400, "preempted", None));
    assert_eq!(found.of("gap")[4], (1_600, "finished", None));
}

#[test]
fn outputs_are_those_of_the_same_step_and_client() {
    let (mut engine, mut front) = (engine(0), front());
    engine.queue(1_000, 1, "to-0");
    engine.queue_with(1_001, "to-1", RequestQueued { number: 2, client: 1, ..RequestQueued::default() });
    for number in 1..=2 {
        engine.admit(1_100, 1, number, 0);
    }
    engine.first(2_000, 1, 1, 0);
    engine.first(2_000, 1, 2, 1);
    // Those of client 1 come behind those of client 0.
    engine.send(2_001, 1, 0);
    engine.send(2_002, 1, 1);
    take(&mut front, 2_100, 1, 0);
    take(&mut front, 2_200, 1, 1);
    // Aborted from outside, between two steps: the next outputs are not its own.
    engine.finish(2_500, 0, 1, "FINISHED_ABORTED", 2);
    engine.send(3_000, 2, 0);
    take(&mut front, 3_100, 2, 0);
    // The outputs that ended this one are not there, and later ones are not they.
    let finished = RequestFinished { number: 2, output_tokens: 3, client: 1, ..RequestFinished::default() };
    engine.put(4_000, 3, "FINISHED_STOPPED", Payload::RequestFinished(finished));
    engine.send(5_000, 4, 1);
    take(&mut front, 5_100, 4, 1);
    let (found, _) = found(&[front, engine]);
    let (zero, one) = (found.life("to-0"), found.life("to-1"));
    assert_eq!((zero.first_token, zero.finished), (Some(2_100), Some(2_500)));
    assert_eq!((one.first_token, one.finished), (Some(2_200), Some(4_000)));
    // Its arrival is not known: the time at which it was queued stands.
    assert_eq!((one.arrived, one.queued), (Some(1_001), Some(1_001)));
}

#[test]
fn a_first_token_and_the_end_may_come_with_the_same_outputs() {
    let (mut engine, mut front) = (engine(0), front());
    engine.queue(1_000, 1, "one-token");
    engine.admit(1_100, 1, 1, 0);
    engine.first(2_000, 1, 1, 0);
    engine.finish(2_000, 1, 1, "FINISHED_LENGTH_CAPPED", 1);
    engine.send(2_001, 1, 0);
    take(&mut front, 2_300, 1, 0);
    let (found, _) = found(&[front, engine]);
    let life = found.life("one-token");
    assert_eq!((life.first_token, life.finished, life.tpot), (Some(2_300), Some(2_300), None));
}

#[test]
fn the_time_of_day_counts_only_where_it_can_be_right() {
    let mut engine = engine(0);
    let arrivals = [f64::NAN, 0.0, -5.0, f64::INFINITY, REALTIME - 3600.0, REALTIME + 3600.0, REALTIME + 0.000_5];
    for (number, arrival) in (1..).zip(arrivals) {
        let arrival_bits = arrival.to_bits();
        let queued = RequestQueued { number, arrival_bits, ..RequestQueued::default() };
        engine.queue_with(1_000, &format!("{number}"), queued);
    }
    let (found, _) = found(&[engine]);
    let arrived: Vec<_> = found.lives.iter().map(|life| life.arrived.unwrap()).collect();
    assert_eq!(arrived, [1_000, 1_000, 1_000, 1_000, 1_000, 1_000, 500]);
}

#[test]
fn kinds_of_requests() {
    let mut engine = engine(0);
    for (number, id, traits) in
        [(1, "pooling", request_traits::POOLING), (2, "session", request_traits::STREAMING)]
    {
        engine.queue_with(1_000, id, RequestQueued { number, traits, ..RequestQueued::default() });
        engine.admit(1_100, 1, number, 0);
    }
    engine.finish(1_200, 0, 1, "FINISHED_STOPPED", 0);
    // The next input of the session is neither a start nor a return, and how long it had waited for it nobody says.
    engine.admit(1_500, 2, 2, 40);
    engine.preempt(1_700, 3, 2, 50, 0);
    engine.admit(1_800, 4, 2, 50);
    engine.finish(2_000, 0, 2, "FINISHED_STOPPED", 30);
    let (found, _) = found(&[engine]);
    let pooling = found.life("pooling");
    assert_eq!((pooling.kind, pooling.ttft, pooling.output), (Some(Kind::Pooling), None, Some(0)));
    let session = found.life("session");
    assert_eq!(
        (session.kind, session.started, session.resumed),
        (Some(Kind::Streaming), Some(1_100), Some(1_800))
    );
    assert_eq!((session.cached, session.delay, session.recomputed), (Some(0), Some(100), Some(0)));
    assert_eq!(
        found.of("session"),
        [
            (1_100, "started", None),
            (1_700, "preempted", Some(200)),
            (1_800, "resumed", None),
            (2_000, "finished", None)
        ]
    );
}

#[test]
fn statuses_read_as_vllm_tells_clients() {
    let mut engine = engine(0);
    let statuses = [
        ("FINISHED_STOPPED", "stop"),
        ("FINISHED_LENGTH_CAPPED", "length"),
        ("FINISHED_IGNORED", "length"),
        ("FINISHED_ABORTED", "abort"),
        ("FINISHED_ERROR", "error"),
        ("FINISHED_REPETITION", "repetition"),
        ("FINISHED_BY_A_NEWER_VERSION", "by_a_newer_version"),
    ];
    for (number, (status, _)) in (1..).zip(statuses) {
        engine.queue(1_000, number, status);
        engine.finish(2_000, 0, number, status, 1);
    }
    let (found, _) = found(&[engine]);
    for (status, reason) in statuses {
        assert_eq!(found.life(status).reason.as_deref(), Some(reason));
    }
    assert_eq!(found.events.iter().filter(|(_, _, what, _)| *what == "aborted").count(), 1);
}

#[test]
fn samples_of_one_request_share_its_name() {
    let (mut engine, mut front) = (engine(0), front());
    for index in 0..3 {
        let (number, id) = (u64::from(index) + 1, format!("{index}_parallel"));
        front.client(900, number, &id, "parallel", index);
        engine.queue(1_000, number, &id);
        engine.finish(2_000, 0, number, "FINISHED_STOPPED", 1);
    }
    engine.queue(1_000, 9, "by-itself");
    let (found, _) = found(&[front, engine]);
    for index in 0..3 {
        let life = found.life(&format!("{index}_parallel"));
        assert_eq!((life.client_id.as_str(), life.sample), ("parallel", Some(index)));
    }
    let alone = found.life("by-itself");
    assert_eq!((alone.client_id.as_str(), alone.sample), ("by-itself", None));
}

#[test]
fn engines_are_kept_apart() {
    let (mut one, mut two, mut front) = (engine(0), engine(1), front());
    // The same number and the same id in two engines.
    for (engine, us) in [(&mut one, 1_000), (&mut two, 1_500)] {
        front.client(us - 100, us, "same-x", "same", 0);
        engine.queue(us, 1, "same-x");
        engine.admit(us + 100, 1, 1, 0);
        engine.finish(us + 1_000, 0, 1, "FINISHED_STOPPED", 1);
    }
    let (found, answers) = found(&[front, one, two]);
    let of: Vec<_> = found.lives.iter().map(|life| (life.process.as_str(), life.client_id.as_str())).collect();
    assert_eq!(of, [("engine_core-0", "same"), ("engine_core-1", "same")]);
    assert_eq!(answers.requests.unwrap().finished["stop"], 2);
}

#[test]
fn an_id_is_bounded_whatever_its_record_says() {
    let mut engine = engine(0);
    let queued =
        |number, id_bytes| Payload::RequestQueued(RequestQueued { number, id_bytes, ..Default::default() });
    let text = |number, part, bytes| Payload::RequestText(RequestText { number, part, bytes });
    engine.put(1_000, 0, "", queued(1, u16::MAX));
    for part in 0..100 {
        engine.put(1_000, 0, "", text(1, part, [b'x'; TEXT_BYTES]));
    }
    // Bytes that are no text, and pieces that belong to nobody.
    engine.put(1_100, 0, "", queued(2, 4));
    engine.put(1_100, 0, "", text(2, 0, [0xff; TEXT_BYTES]));
    engine.put(1_100, 0, "", text(77, 0, [b'y'; TEXT_BYTES]));
    let (found, _) = found(&[engine]);
    let ids: Vec<&str> = found.lives.iter().map(|life| life.id.as_str()).collect();
    assert_eq!(ids, ["x".repeat(255).as_str(), "\u{fffd}\u{fffd}\u{fffd}\u{fffd}"]);
}

#[test]
fn blocks_come_back_by_the_pools_own_count() {
    let mut engine = engine(0);
    engine.fact("kv_block_size", "16");
    engine.pool(1_000, 1, "", 10, 10);
    engine.pool(2_000, 2, "", 12, 5);
    // Unknown, and a count that cannot be: fewer blocks were given out than are held more.
    engine.pool(3_000, 3, "", 11, u32::MAX);
    engine.pool(4_000, 4, "", 90, 1);
    let unknown = KvCache { evicted: u32::MAX, total: 100, ..KvCache::default() };
    let looked_up = KvCache { prefix_query_tokens: 200, prefix_hit_tokens: 50, ..unknown };
    engine.put(5_000, 5, "", Payload::KvCache(looked_up));
    for (life, idle) in [(3_000, 100), (1_000, 300)] {
        let ticks = common::TICKS_PER_US;
        let eviction = KvEviction {
            lifetime_ticks: life * ticks,
            idle_ticks: idle * ticks,
            stands_for: 4,
            ..Default::default()
        };
        engine.put(6_000, 5, "", Payload::KvEviction(eviction));
    }
    let (found, answers) = found(&[engine]);
    let freed: Vec<_> = found.usage.iter().map(|(.., freed)| *freed).collect();
    assert_eq!(freed, [Some(0), Some(3), None, None, Some(90)]);
    assert_eq!(found.evictions, [(3_000, 100, 4), (1_000, 300, 4)]);
    let summary = answers.kv_cache.unwrap();
    let all = &summary.all;
    assert_eq!((all.allocations, all.frees, all.evictions), (Some(16), Some(93), Some(0)));
    assert_eq!((all.peak_blocks, all.total_blocks, summary.block_size), (Some(90), Some(100), Some(16)));
    assert!((all.mean_usage_pct.unwrap() - 24.6).abs() < 1e-9);
    assert_eq!((all.lifetime.unwrap().mean, all.idle.unwrap().max), (0.002, 0.000_3));
    assert_eq!((all.prefix_query_tokens, all.prefix_hit_rate_pct()), (Some(200), Some(25.0)));
    assert_eq!((answers.counters.prefix_query_tokens, answers.counters.prefix_hit_tokens), (Some(200), Some(50)));
    assert_eq!(summary.pools.len(), 1);
}

#[test]
fn pools_are_told_apart_and_added_up() {
    let (mut one, mut two) = (engine(0), engine(1));
    for (step, (first, second)) in (1..).zip([(10, 80), (70, 20)]) {
        one.pool(1_000 * step, step, "pool-0", first, 0);
        one.pool(1_000 * step + 1, step, "pool-1", second, u32::MAX);
        two.pool(1_000 * step + 500, step, "", 5, 0);
    }
    let (found, answers) = found(&[one, two]);
    assert_eq!(found.usage.len(), 6);
    let summary = answers.kv_cache.unwrap();
    let pools: Vec<_> =
        summary.pools.iter().map(|of| (of.process.as_str(), of.pool.as_str(), of.peak_blocks)).collect();
    assert_eq!(
        pools,
        [
            ("engine_core-0", "pool-0", Some(70)),
            ("engine_core-0", "pool-1", Some(80)),
            ("engine_core-1", "", Some(5))
        ]
    );
    // Most at once: 70, 20 and 5, not the sum of the peaks, and nothing of the moment between two pools of one step.
    assert_eq!((summary.all.peak_blocks, summary.all.total_blocks), (Some(95), Some(300)));
    assert_eq!(summary.pools[1].allocations, None);
}

#[test]
fn an_engine_that_is_started_again_takes_the_place_of_the_one_before() {
    let mut before = engine(0);
    before.pool(1_000, 1, "", 60, 60);
    let mut after = Log::new("engine_core", 0, 0, 9001, 1);
    after.pool(5_000, 1, "", 50, 50);
    let (_, answers) = found(&[before, after]);
    let summary = answers.kv_cache.unwrap();
    assert_eq!((summary.pools.len(), summary.all.total_blocks, summary.all.peak_blocks), (1, Some(100), Some(60)));
    assert_eq!(summary.all.allocations, Some(110));
}

#[test]
fn blocks_before_the_oldest_record_that_is_left_are_not_known() {
    let mut engine = engine(0);
    for us in 0..u64::from(common::SEGMENT_SLOTS) {
        engine.pool(1_000 + us, us + 1, "", 10, 0);
    }
    engine.pool(2_000, 100, "", 20, 15);
    engine.discarded_segments = 1;
    let (found, _) = found(&[engine]);
    assert_eq!(found.usage, [(String::new(), 20, Some(15), None)]);
}

#[test]
fn what_limited_a_batch_is_its_name() {
    let mut engine = engine(0);
    for (step, (name, num_tokens)) in
        (1..).zip([("token_budget", 5), ("", 5), ("token_budget", 5), ("kv_blocks", 5), ("kv_blocks", 0)])
    {
        engine.put(1_000 * step, step, name, Payload::Schedule(Schedule { num_tokens, ..Schedule::default() }));
    }
    let (found, answers) = found(&[engine]);
    let names: Vec<_> = found.limited_by.iter().map(Option::as_deref).collect();
    assert_eq!(names, [Some("token_budget"), None, Some("token_budget"), Some("kv_blocks")]);
    let counts: Vec<_> = answers.batch.unwrap().limited_by.into_iter().collect();
    assert_eq!(counts, [(String::new(), 1), ("kv_blocks".to_owned(), 1), ("token_budget".to_owned(), 2)]);
}
