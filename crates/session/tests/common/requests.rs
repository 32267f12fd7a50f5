//! A session of an engine under pressure: every way in which a request can go, at times that can be checked by hand.

use std::path::Path;

use profilemate_format::record::{
    ClientRequest, KvCache, KvEviction, Label, Outputs, Payload, RequestAdmitted, RequestFinished,
    RequestFirstToken, RequestPreempted, RequestQueued, RequestStopped, RequestText, Schedule, TEXT_BYTES,
    request_traits,
};
use xxhash_rust::xxh3::xxh3_64;

use super::{Log, REALTIME_NS};

impl Log {
    fn event(&mut self, us: u64, step: u64, payload: Payload) {
        self.push(us, step, Label::Work, 0, payload);
    }

    fn id(&mut self, us: u64, number: u64, id: &str) {
        for (part, piece) in id.as_bytes().chunks(TEXT_BYTES).enumerate() {
            let mut bytes = [0; TEXT_BYTES];
            bytes[..piece.len()].copy_from_slice(piece);
            let part = u16::try_from(part).unwrap();
            self.event(us, 0, Payload::RequestText(RequestText { number, part, bytes }));
        }
    }

    /// Arrived 500 us before it is queued.
    fn queued(&mut self, us: u64, number: u64, id: &str, traits: u16, client: u32) {
        let arrival = (REALTIME_NS + (us - 500) * 1000) as f64 / 1e9;
        let queued = RequestQueued {
            number,
            arrival_bits: arrival.to_bits(),
            prompt_tokens: 100,
            priority: i32::try_from(number).unwrap() - 3,
            client,
            id_bytes: u16::try_from(id.len()).unwrap(),
            traits,
        };
        self.event(us, 0, Payload::RequestQueued(queued));
        self.id(us, number, id);
    }

    fn admitted(&mut self, us: u64, step: u64, number: u64, computed_tokens: u32) {
        let admitted = RequestAdmitted {
            number,
            computed_tokens,
            external_tokens: 0,
            num_tokens: 100,
            scheduled_tokens: 100 - computed_tokens,
        };
        self.event(us, step, Payload::RequestAdmitted(admitted));
    }

    fn preempted(
        &mut self,
        us: u64,
        step: u64,
        reason: &str,
        number: u64,
        computed_tokens: u32,
        beneficiary: u64,
    ) {
        let name = if reason.is_empty() { 0 } else { self.name(reason) };
        let blocks_freed = if reason.is_empty() { u32::MAX } else { computed_tokens.div_ceil(16) };
        let preempted = RequestPreempted {
            number,
            computed_tokens,
            output_tokens: computed_tokens.saturating_sub(99),
            beneficiary,
            blocks_freed,
        };
        self.push(us, step, Label::Work, name, Payload::RequestPreempted(preempted));
    }

    fn first_token(&mut self, us: u64, step: u64, number: u64, client: u32) {
        let first = RequestFirstToken { number, output_tokens: 1, client };
        self.event(us, step, Payload::RequestFirstToken(first));
    }

    fn finished(&mut self, us: u64, step: u64, number: u64, status: &str, output_tokens: u32, client: u32) {
        let name = self.name(status);
        let finished = RequestFinished {
            number,
            prompt_tokens: 100,
            output_tokens,
            preemptions: 0,
            client,
            computed_tokens: 99 + output_tokens,
        };
        self.push(us, step, Label::Work, name, Payload::RequestFinished(finished));
    }

    fn limited(&mut self, us: u64, step: u64, limited_by: &str, num_tokens: u32) {
        let name = if limited_by.is_empty() { 0 } else { self.name(limited_by) };
        let schedule =
            Schedule { num_seqs: 1, num_tokens, running: Some(1), waiting: Some(1), ..Schedule::default() };
        self.push(us, step, Label::Work, name, Payload::Schedule(schedule));
    }

    fn sent(&mut self, us: u64, step: u64, client: u32) {
        let timestamp_bits = stamp(step, client);
        let outputs = Outputs { timestamp_bits, client, num_outputs: 1, new_tokens: 1, finished: 0 };
        self.outputs(us, step, outputs);
    }

    fn client(&mut self, us: u64, number: u64, engine_id: &str, id: &str, index: u32) {
        let client = ClientRequest {
            number,
            engine_id_hash: xxh3_64(engine_id.as_bytes()),
            index,
            id_bytes: u16::try_from(id.len()).unwrap(),
            traits: 0,
        };
        self.event(us, 0, Payload::ClientRequest(client));
        self.id(us, number, id);
    }
}

fn stamp(step: u64, client: u32) -> u64 {
    (5000.0 + step as f64 / 1e3 + f64::from(client) / 1e5).to_bits()
}

const HOSTILE: &str =
    "=cmd|' /C calc'!A0,\"<script>alert(1)</script>\n\r\u{1b}[31m\u{202e}evil\u{0}\u{2066} \u{fc}\u{1f980}";

/// An engine, two front ends.
#[expect(clippy::too_many_lines, reason = "one story from beginning to end")]
pub(super) fn requests(raw: &Path) {
    let mut front = Log::new("api_server", 0, 0, 5001, 1);
    let mut other = Log::new("api_server", 1, 0, 5002, 1);
    let mut engine = Log::new("engine_core", 0, 0, 5003, 5001);
    for profiler in ["batch_utilization_tracking", "preemption_tracking", "kv_cache_tracking"] {
        engine.fact(&format!("profiler:{profiler}"), "on");
        engine.fact(&format!("flag:{profiler}"), "1");
    }
    engine.fact("kv_block_size", "16");
    engine.limits(1_000, 8, 1024);

    // What the clients called them: a plain one, two samples of one request, one that will meet a stop string.
    front.client(9_000, 1, "cmpl-plain-0a1b2c3d", "cmpl-plain", 0);
    front.client(9_010, 2, "0_cmpl-twins", "cmpl-twins", 0);
    front.client(9_020, 3, "1_cmpl-twins", "cmpl-twins", 1);
    front.client(9_030, 4, "cmpl-stops-ffffffff", "cmpl-stops", 0);

    let requests: [(u64, &str, u16); 16] = [
        (1, "cmpl-plain-0a1b2c3d", 0),
        (2, "0_cmpl-twins", 0),
        (3, "1_cmpl-twins", 0),
        (4, "cmpl-stops-ffffffff", 0),
        (5, "preempted-twice", 0),
        (6, "victim-is-itself", 0),
        (7, "aborted-waiting", 0),
        (8, "aborted-running", 0),
        (9, "aborted-preempted", 0),
        (10, "embedding", request_traits::POOLING),
        (11, "session", request_traits::STREAMING),
        (12, HOSTILE, 0),
        (13, "open-waiting", 0),
        (14, "open-running", 0),
        (15, "open-preempted", 0),
        (16, "error", 0),
    ];
    for (number, id, traits) in requests {
        engine.queued(10_000 + number, number, id, traits, u32::from(number == 16));
    }

    // Step 1: all but two are started; the first one had 32 tokens in the cache.
    engine.admitted(11_000, 1, 1, 32);
    for number in (2..=16).filter(|number| ![7, 13].contains(number)) {
        engine.admitted(11_000 + number, 1, number, 0);
    }
    engine.limited(11_050, 1, "max_num_seqs", 1024);
    let cache = |used, allocated, reused, evicted, queries, hits| {
        Payload::KvCache(KvCache {
            used,
            total: 100,
            cached: used / 2,
            allocated,
            reused,
            evicted,
            prefix_query_tokens: queries,
            prefix_hit_tokens: hits,
        })
    };
    engine.event(11_060, 1, cache(98, 96, 2, 0, 1400, 32));
    for number in [1, 2, 3, 4, 5, 6, 8, 9, 11, 12, 14, 15] {
        engine.first_token(12_000 + number, 1, number, 0);
    }
    engine.first_token(12_016, 1, 16, 1);
    // An embedding is over with its first output, and makes no token.
    engine.finished(12_020, 1, 10, "FINISHED_STOPPED", 0, 0);
    engine.sent(12_030, 1, 0);
    engine.sent(12_031, 1, 1);
    // It is taken in two slices: the first one counts.
    front.span(12_500, 30, 0, "output_processing", (stamp(1, 0), 8), "");
    front.span(12_540, 30, 0, "output_processing", (stamp(1, 0), 5), "");
    other.span(12_700, 30, 0, "output_processing", (stamp(1, 1), 1), "");
    engine.finished(12_800, 0, 7, "FINISHED_ABORTED", 0, 0);

    // Step 2: 5 and 9 make room for 1, 6 for itself.
    engine.preempted(13_000, 2, "kv_cache_full", 5, 101, 1);
    engine.preempted(13_001, 2, "kv_cache_full", 9, 101, 1);
    engine.preempted(13_002, 2, "kv_cache_full", 6, 101, 6);
    engine.preempted(13_003, 2, "", 15, 101, 0);
    engine.limited(13_050, 2, "preemption", 9);
    engine.event(13_060, 2, cache(70, 4, 0, 3, 0, 0));
    for (block, idle) in [(7, 200), (8, 300), (9, 400)] {
        let ticks = super::TICKS_PER_US;
        let eviction = KvEviction {
            lifetime_ticks: 2_000 * ticks,
            idle_ticks: idle * ticks,
            accesses: block % 3,
            block,
            stands_for: 1,
        };
        engine.event(13_010, 2, Payload::KvEviction(eviction));
    }
    engine.finished(13_500, 2, 1, "FINISHED_STOPPED", 2, 0);
    engine.sent(13_510, 2, 0);
    front.span(14_000, 30, 0, "output_processing", (stamp(2, 0), 9), "");
    // The front end finds a stop string, and the engine learns of it later.
    let stopped = RequestStopped { engine_id_hash: xxh3_64(b"cmpl-stops-ffffffff") };
    front.event(14_010, 0, Payload::RequestStopped(stopped));
    engine.finished(14_200, 0, 4, "FINISHED_ABORTED", 3, 0);
    engine.finished(14_210, 0, 8, "FINISHED_ABORTED", 2, 0);
    engine.finished(14_220, 0, 9, "FINISHED_ABORTED", 1, 0);

    // Step 3: 5 comes back with part of its prefix, 6 with nothing; the session goes on with more input.
    engine.admitted(15_000, 3, 5, 64);
    engine.admitted(15_001, 3, 6, 0);
    engine.admitted(15_002, 3, 11, 96);
    engine.limited(15_050, 3, "kv_blocks", 200);
    engine.event(15_060, 3, cache(80, 10, 4, 1, u32::MAX, u32::MAX));
    engine.preempted(15_500, 0, "prefix_cache_reset", 5, 103, 0);

    // Step 4: and again. What it was limited by is not known.
    engine.admitted(16_000, 4, 5, 0);
    engine.limited(16_050, 4, "", 120);
    engine.event(16_060, 4, cache(60, u32::MAX, u32::MAX, u32::MAX, 0, 0));
    for (number, status, tokens) in [
        (2, "FINISHED_LENGTH_CAPPED", 4),
        (3, "FINISHED_REPETITION", 4),
        (5, "FINISHED_LENGTH_CAPPED", 5),
        (6, "FINISHED_IGNORED", 3),
        (11, "FINISHED_STOPPED", 8),
        (12, "FINISHED_STOPPED", 2),
    ] {
        engine.finished(16_500, 4, number, status, tokens, 0);
    }
    engine.finished(16_501, 4, 16, "FINISHED_ERROR", 1, 1);
    // The outputs to the second client are not there: the engine's own time stands.
    engine.sent(16_510, 4, 0);
    front.span(17_000, 30, 0, "output_processing", (stamp(4, 0), 7), "");

    // Requests whose first records are gone, and an id of which a piece is lost.
    engine.finished(18_000, 0, 99, "FINISHED_ABORTED", 7, 0);
    engine.admitted(18_010, 5, 98, 5);
    engine.limited(18_050, 5, "no_waiting_request", 1);
    let cut = RequestQueued { number: 17, id_bytes: 60, prompt_tokens: 5, ..RequestQueued::default() };
    engine.event(18_100, 0, Payload::RequestQueued(cut));
    let piece = |part, letter| Payload::RequestText(RequestText { number: 17, part, bytes: [letter; TEXT_BYTES] });
    engine.event(18_100, 0, piece(0, b'a'));
    engine.event(18_100, 0, piece(2, b'c'));
    for log in [front, other, engine] {
        log.write(raw);
    }
}
