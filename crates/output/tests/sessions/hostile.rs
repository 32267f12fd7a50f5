//! A session in which every string that is shown anywhere is hostile.

use std::path::Path;

use profilemate_format::record::{
    ClientRequest, KvCache, KvEviction, Label, Payload, RequestAdmitted, RequestFinished, RequestPreempted,
    RequestQueued, RequestText, Schedule, TEXT_BYTES,
};
use xxhash_rust::xxh3::xxh3_64;

use crate::common::Log;

/// Text that would do something where somebody let it.
pub(crate) const HOSTILE: [&str; 8] = [
    "=cmd|' /C calc'!A0",
    "\n+1,\"\r\n\u{1b}]0;owned\u{7}\u{9b}31m",
    "@SUM(1;2);preempted_for=x",
    "-1\u{202e}txt.exe\u{2066}\u{200b}\u{feff}\u{2028}\u{85}",
    "\u{ff1d}1+1\0\u{e0041}\u{7f}",
    "\t=1+1\\",
    "</script><script>window.owned=1</script><!--<img src=x onerror=window.owned=1>",
    "\"'><a href=javascript:window.owned=1 style=position:fixed;inset:0 onmouseover=window.owned=1>&lt;x",
];

fn put(log: &mut Log, us: u64, name: &str, payload: Payload) {
    let name = log.name(name);
    log.push(us, 1, Label::Work, name, payload);
}

fn id(log: &mut Log, us: u64, number: u64, id: &str) {
    for (part, piece) in id.as_bytes().chunks(TEXT_BYTES).enumerate() {
        let mut bytes = [0; TEXT_BYTES];
        bytes[..piece.len()].copy_from_slice(piece);
        let part = u16::try_from(part).unwrap();
        log.push(us, 0, Label::Work, 0, Payload::RequestText(RequestText { number, part, bytes }));
    }
}

/// Writes it.
pub(crate) fn write(raw: &Path) {
    let mut log = Log::new("engine_core", 0, 0, 6001, 1);
    log.role("worker", 0, 0);
    for profiler in [
        "batch_utilization_tracking",
        "preemption_tracking",
        "kv_cache_tracking",
        "cpu_timing",
        "forward_pass_timing",
        "cuda_graph_tracking",
    ] {
        log.fact(&format!("profiler:{profiler}"), "on");
    }
    for (fact, text) in [
        "model",
        "command",
        "gpu_name",
        "kv_evictions",
        "hook:x",
        "profiler:moe_expert_tracking",
        "vllm_version",
        "torch_version",
    ]
    .into_iter()
    .zip(HOSTILE.into_iter().cycle())
    {
        // What could not attach is shown with its reason.
        let value =
            if fact.starts_with("profiler:") { format!("could not attach: {text}") } else { text.to_owned() };
        log.fact(fact, if fact == "kv_evictions" { "on" } else { &value });
    }
    for (number, text) in (1..).zip(HOSTILE) {
        let us = 1_000 * number;
        let id_bytes = u16::try_from(text.len()).unwrap();
        let client = ClientRequest {
            number: number + 100,
            engine_id_hash: xxh3_64(text.as_bytes()),
            id_bytes,
            ..ClientRequest::default()
        };
        log.push(us, 0, Label::Work, 0, Payload::ClientRequest(client));
        id(&mut log, us, number + 100, text);
        let queued = RequestQueued { number, id_bytes, ..RequestQueued::default() };
        log.push(us, 0, Label::Work, 0, Payload::RequestQueued(queued));
        id(&mut log, us, number, text);
        let admitted = RequestAdmitted { number, ..RequestAdmitted::default() };
        put(&mut log, us + 1, "", Payload::RequestAdmitted(admitted));
    }
    for (number, text) in (1..).zip(HOSTILE) {
        let us = 10_000 + 1_000 * number;
        let preempted = RequestPreempted { number, beneficiary: number % 8 + 1, ..RequestPreempted::default() };
        put(&mut log, us, text, Payload::RequestPreempted(preempted));
        put(&mut log, us + 1, text, Payload::Schedule(Schedule { num_tokens: 1, ..Schedule::default() }));
        put(&mut log, us + 2, text, Payload::KvCache(KvCache { used: 1, total: 2, ..KvCache::default() }));
        put(&mut log, us + 3, text, Payload::KvEviction(KvEviction::default()));
        log.span(us + 4, 10, 1, "forward", (1, 1), text);
        log.span(us + 4, 20, 1, "model_execution", (1, 1), text);
    }
    for (number, text) in (1..).zip(HOSTILE) {
        let finished = RequestFinished { number, ..RequestFinished::default() };
        put(&mut log, 20_000 + number, text, Payload::RequestFinished(finished));
    }
    log.write(raw);
}
