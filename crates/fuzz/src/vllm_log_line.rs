//! One line of vLLM's log.

use profilemate_import::vllm_log::{Iteration, Kind, Line};

/// Input: a line.
pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let line = crate::memory::within(8192 + 64 * text.len(), || Line::parse(&text));
    if let Some(stamp) = line.stamp {
        assert!((1..=12).contains(&stamp.month) && (1..=31).contains(&stamp.day));
        assert!(stamp.second < 86_400 && stamp.nanosecond < 1_000_000_000);
        assert!((1..=1_000_000_000).contains(&stamp.resolution_ns));
    }
    if let Kind::Iteration(iteration) = line.kind {
        // As vLLM would have written it.
        assert_eq!(Line::parse(&written(&iteration)).kind, Kind::Iteration(iteration));
    }
}

fn written(iteration: &Iteration) -> String {
    let engine = iteration.engine.map(|engine| format!("Engine {engine:03}: ")).unwrap_or_default();
    let hundredths = iteration.elapsed_ns / 10_000;
    let dummy = if iteration.is_dummy { " (dummy)" } else { "" };
    let usage = iteration.kv_usage.map(|share| format!(", GPU KV cache usage: {}.{}%", share / 10, share % 10));
    let encoder = iteration.encoder.map(|[inputs, embeddings]| {
        format!(", encoder inputs: {inputs}, encoder output embeddings: {embeddings}")
    });
    format!(
        "{engine}Iteration({}): {} context requests, {} context tokens, {} generation requests, {} generation tokens, \
         iteration elapsed time: {}.{:02} ms{dummy}{}{}",
        iteration.index,
        iteration.context_requests,
        iteration.context_tokens,
        iteration.generation_requests,
        iteration.generation_tokens,
        hundredths / 100,
        hundredths % 100,
        usage.unwrap_or_default(),
        encoder.unwrap_or_default(),
    )
}
