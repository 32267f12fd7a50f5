//! The KV cache and its prefix cache.

use profilemate_analysis::findings::{Direction, Level, Severity};

use crate::server::{DECODE, Server, Step, changes, ids, number, of, weight};

/// Full, and a request waits for blocks.
const BLOCKED: Step = Step { waiting: 2, limited_by: "kv_blocks", held: 950, ..DECODE };

#[test]
fn a_queue_for_blocks_wants_more_of_them() {
    let mut server = Server::new();
    server.requests(60);
    server.steps(250, BLOCKED);
    let findings = server.find();
    assert_eq!(ids(&findings), ["kv-cache-too-small"]);
    let finding = of(&findings, "kv-cache-too-small");
    assert_eq!(weight(finding), (Severity::Warning, Level::High));
    // Nobody was preempted: fewer requests at once would help nobody.
    assert!(finding.changes.iter().all(|of| of.flag != "--max-num-seqs"));
    assert_eq!(changes(finding)[0], ("--gpu-memory-utilization", Direction::Raise, None, None));
}

#[test]
fn a_cache_that_is_full_at_times_and_makes_some_wait() {
    let mut server = Server::new();
    server.steps(20, BLOCKED);
    server.steps(180, DECODE);
    let findings = server.find();
    let finding = of(&findings, "kv-cache-too-small");
    assert_eq!(weight(finding), (Severity::Warning, Level::Medium));
    assert_eq!(number(finding, "steps_over_90_pct_usage"), 10.0);
}

#[test]
fn a_full_cache_is_well_used_as_long_as_nobody_waits_for_it() {
    let full = Step { held: 990, ..DECODE };
    for (what, parts) in [
        ("full all the time, and nobody waits", vec![(300, full)]),
        (
            "90 % is not over 90 %",
            vec![(300, Step { held: 900, waiting: 1, limited_by: "kv_blocks", ..DECODE }), (301, DECODE)],
        ),
        ("4.5 % of the steps wait for blocks", vec![(9, BLOCKED), (30, full), (161, DECODE)]),
        ("too few steps", vec![(199, BLOCKED)]),
    ] {
        let mut server = Server::new();
        server.run(&parts);
        assert!(!ids(&server.find()).contains(&"kv-cache-too-small"), "{what}");
    }
}

#[test]
fn with_adapters_and_the_like_a_full_cache_is_the_likely_cause() {
    let mut server = Server::new();
    server.steps(250, Step { limited_by: "other", ..BLOCKED });
    let findings = server.find();
    assert_eq!(ids(&findings), ["kv-cache-too-small"]);
    assert_eq!(of(&findings, "kv-cache-too-small").confidence.level, Level::Medium);
    // It is not, if it has room.
    let mut server = Server::new();
    server.steps(250, Step { limited_by: "other", held: 900, ..BLOCKED });
    assert_eq!(ids(&server.find()), ["queue-cause-unknown"]);
}

/// A busy server whose cache is hardly used.
fn roomy(held: u32, steps: u64, requests: u64) -> Server {
    let mut server = Server::new();
    server.requests(requests);
    server.steps(steps, Step { tokens: 1500, prefill: 1000, held, ..DECODE });
    server
}

#[test]
fn a_cache_that_is_never_used_could_be_smaller() {
    let findings = roomy(399, 1000, 50).find();
    let finding = of(&findings, "kv-cache-oversized");
    assert_eq!(weight(finding), (Severity::Info, Level::Low));
    assert_eq!(changes(finding), [("--gpu-memory-utilization", Direction::Lower, None, None)]);
    assert!(findings.is_all_well(), "it may change, it has not to");
    for (what, server) in [
        ("40 % were used", roomy(400, 1000, 50)),
        ("too few steps", roomy(100, 999, 50)),
        ("too few requests", roomy(100, 1000, 49)),
    ] {
        assert!(!ids(&server.find()).contains(&"kv-cache-oversized"), "{what}");
    }
    // More requests at once will use it.
    let mut server = roomy(100, 400, 50);
    server.steps(600, Step { waiting: 3, limited_by: "max_num_seqs", held: 100, ..DECODE });
    assert_eq!(ids(&server.find()), ["max-num-seqs-too-low"]);
}

/// A server whose prefix cache loses blocks.
fn evicting(evicted: u32, followed: u32, reused: u32, idle_us: u64) -> Server {
    let mut server = Server::new();
    server.requests(60);
    server.steps(300, Step { tokens: 1500, prefill: 1000, ..DECODE });
    server.prefix_cache(20_000, 1_000, evicted);
    server.evictions(followed - reused, idle_us, 0);
    server.evictions(reused, idle_us, 2);
    server
}

#[test]
fn blocks_that_are_evicted_while_they_are_in_use_want_a_larger_cache() {
    let findings = evicting(1000, 200, 20, 9_000_000).find();
    assert_eq!(ids(&findings), ["prefix-cache-thrashes"]);
    let finding = of(&findings, "prefix-cache-thrashes");
    assert_eq!(weight(finding), (Severity::Warning, Level::Medium));
    assert_eq!(number(finding, "evicted_blocks_that_had_been_reused"), 10.0);
    assert_eq!(number(finding, "evictions_for_each_block_of_the_cache"), 1.0);
    assert_eq!(number(finding, "prefix_cache_hit_rate"), 5.0);
    assert_eq!(changes(finding)[0], ("--gpu-memory-utilization", Direction::Raise, None, None));
    for (what, server) in [
        ("nobody used them again", evicting(1000, 200, 19, 9_000_000)),
        ("they had long been idle", evicting(1000, 200, 20, 10_000_000)),
        ("the cache was not filled once", evicting(999, 200, 20, 9_000_000)),
        ("too few were followed", evicting(1000, 199, 20, 9_000_000)),
    ] {
        assert!(ids(&server.find()).is_empty(), "{what}");
    }
}

#[test]
fn evictions_of_a_cache_that_is_too_small_are_part_of_that() {
    let mut server = evicting(1000, 200, 50, 1_000_000);
    (0..20).for_each(|_| server.request("kv_cache_full", 1_000));
    let findings = server.find();
    assert_eq!(ids(&findings), ["kv-cache-too-small"]);
    assert_eq!(number(of(&findings, "kv-cache-too-small"), "evicted_blocks_that_had_been_reused"), 25.0);
}

/// A server that looks up so many tokens and finds so many.
fn looking_up(queries: u32, hits: u32) -> Server {
    let mut server = Server::new();
    server.requests(60);
    server.steps(20, Step { seqs: 1, tokens: 2000, prefill: 2000, forward_us: 50_000, ..DECODE });
    server.steps(300, Step { tokens: 1500, prefill: 1000, ..DECODE });
    server.prefix_cache(queries, hits, 0);
    server
}

#[test]
fn what_the_prefix_cache_saved_is_said() {
    let findings = looking_up(80_000, 20_000).find();
    assert_eq!(ids(&findings), ["prefix-cache-effect"]);
    let finding = of(&findings, "prefix-cache-effect");
    assert_eq!((weight(finding), finding.changes.len()), ((Severity::Info, Level::High), 0));
    assert_eq!(number(finding, "prefix_cache_hit_rate"), 25.0);
    // 2000 tokens of prompts take 50 ms.
    assert_eq!(number(finding, "forward_time_saved"), 0.5);
    for (what, server) in
        [("little is found", looking_up(80_000, 7_999)), ("little is looked up", looking_up(9_999, 5_000))]
    {
        assert!(ids(&server.find()).is_empty(), "{what}");
    }
}
