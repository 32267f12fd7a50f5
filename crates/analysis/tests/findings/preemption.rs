//! Requests that lost their blocks.

use profilemate_analysis::findings::{Direction, Level, Severity};

use crate::server::{DECODE, Server, Step, changes, ids, number, of, weight};

/// 100 requests, of which so many are preempted and wait so long.
fn preempted(count: u64, reason: &str, delay_us: u64) -> Server {
    let mut server = Server::new();
    server.steps(100, DECODE);
    (0..count).for_each(|_| server.request(reason, delay_us));
    server.requests(100 - count);
    server.steps(100, DECODE);
    server
}

#[test]
fn many_preemptions_for_want_of_blocks() {
    let mut server = preempted(11, "kv_cache_full", 1_000);
    server.engine.limits(server.us, 256, 8192);
    server.engine.fact("setting:gpu_memory_utilization", "0.9");
    server.steps(1, Step { seqs: 96, tokens: 96, ..DECODE });
    let findings = server.find();
    let finding = of(&findings, "kv-cache-too-small");
    assert_eq!(weight(finding), (Severity::Critical, Level::High));
    assert_eq!(number(finding, "preempted_requests"), 11.0);
    assert_eq!(number(finding, "computed_tokens_lost"), 11.0 * 120.0);
    assert_eq!(
        changes(finding),
        [
            ("--gpu-memory-utilization", Direction::Raise, Some("0.95"), Some("0.9")),
            // 160 tokens are 10 blocks: 95 % of 1000 blocks hold 95 such requests.
            ("--max-num-seqs", Direction::Lower, Some("95"), Some("256")),
            ("--max-num-batched-tokens", Direction::Lower, Some("1024"), Some("8192")),
            ("--kv-cache-dtype", Direction::Set, Some("fp8"), None),
        ]
    );
    assert_eq!(findings.findings[0].id, "kv-cache-too-small", "what matters most comes first");
    // A limit that no batch reached would change nothing.
    let mut server = preempted(11, "kv_cache_full", 1_000);
    server.engine.limits(server.us, 256, 8192);
    server.steps(1, Step { seqs: 95, tokens: 95, ..DECODE });
    let findings = server.find();
    assert!(changes(of(&findings, "kv-cache-too-small")).iter().all(|change| change.0 != "--max-num-seqs"));
}

#[test]
fn advice_depends_on_what_was_set() {
    let mut server = preempted(20, "kv_cache_full", 1_000);
    for (name, value) in
        [("gpu_memory_utilization", "0.95"), ("cache_dtype", "fp8_e4m3"), ("tensor_parallel_size", "2")]
    {
        server.engine.fact(&format!("setting:{name}"), value);
    }
    server.worker.fact("gpu_count", "8");
    let findings = server.find();
    assert_eq!(
        changes(of(&findings, "kv-cache-too-small")),
        [
            ("--max-num-batched-tokens", Direction::Lower, Some("1024"), Some("2048")),
            ("--tensor-parallel-size", Direction::Raise, Some("4"), Some("2"))
        ]
    );
    server.engine.fact("setting:num_gpu_blocks_override", "1000");
    let findings = server.find();
    let first = changes(of(&findings, "kv-cache-too-small"))[0];
    assert_eq!(first, ("--num-gpu-blocks-override", Direction::Raise, None, Some("1000")));
}

#[test]
fn few_preemptions_with_long_pauses() {
    let server = preempted(10, "kv_cache_full", 1_100_000);
    let findings = server.find();
    let finding = of(&findings, "kv-cache-too-small");
    assert_eq!(finding.severity, Severity::Critical);
    assert_eq!(number(finding, "mean_resume_delay"), 1.1);
    assert!(finding.title.contains("1.10 s"), "{}", finding.title);
}

#[test]
fn some_preemptions_are_no_fault() {
    for (what, server) in [
        ("exactly 10 %, and they go on soon", preempted(10, "kv_cache_full", 900_000)),
        ("nine that wait for long have no mean", preempted(9, "kv_cache_full", 5_000_000)),
        ("somebody emptied the prefix cache", preempted(40, "prefix_cache_reset", 1_000)),
    ] {
        assert!(!ids(&server.find()).contains(&"kv-cache-too-small"), "{what}");
    }
    // All of them are preempted, but they are few.
    let mut server = Server::new();
    (0..49).for_each(|_| server.request("kv_cache_full", 2_000_000));
    server.steps(200, DECODE);
    assert!(!ids(&server.find()).contains(&"kv-cache-too-small"));
}

#[test]
fn resets_of_the_prefix_cache_have_another_cause() {
    let findings = preempted(11, "prefix_cache_reset", 1_000).find();
    let finding = of(&findings, "prefix-cache-resets");
    assert_eq!((weight(finding), finding.changes.len()), ((Severity::Warning, Level::High), 0));
    assert!(!ids(&preempted(10, "prefix_cache_reset", 1_000).find()).contains(&"prefix-cache-resets"));
    assert!(!ids(&preempted(11, "kv_cache_full", 1_000).find()).contains(&"prefix-cache-resets"));
}

#[test]
fn all_signs_of_one_cause_are_one_finding() {
    // Preempted, waiting for blocks, and full: and max_num_seqs is never raised beside it.
    let mut server = preempted(30, "kv_cache_full", 2_000_000);
    let full = Step { waiting: 9, held: 960, ..DECODE };
    server.steps(300, Step { limited_by: "kv_blocks", ..full });
    server.steps(100, Step { limited_by: "max_num_seqs", ..full });
    let findings = server.find();
    assert_eq!(ids(&findings), ["kv-cache-too-small"]);
    let finding = of(&findings, "kv-cache-too-small");
    assert_eq!(number(finding, "queued_steps_with_the_main_cause"), 75.0);
    assert_eq!(number(finding, "peak_kv_cache_usage"), 96.0);
    assert!(!finding.changes.iter().any(|of| of.flag == "--max-num-seqs" && of.direction == Direction::Raise));
}
