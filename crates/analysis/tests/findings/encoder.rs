//! Encoders of images and sound.

use profilemate_analysis::findings::{Direction, Level, Severity};
use profilemate_format::record::{EncoderInput, GpuCall, Label, Payload};

use crate::server::{DECODE, Server, changes, ids, number, of, weight};

/// A server whose first steps have a call of an encoder each, of so many milliseconds on the GPU.
fn encoding(calls: u64, ms: f32, steps: u64) -> Server {
    let mut server = Server::new();
    server.worker.fact("profiler:encoder_decoder_timing", "on");
    server.worker.fact("model_type", "vision_language");
    for step in 1..=calls {
        // Two images of 100 embeddings; the host only launches.
        let us = server.us;
        server.worker.span(us, 20, step, "encoder", (2 | 200 << 32, 0), "vision_encoder");
        let call = GpuCall { ms: Some(ms), after_ms: Some(0.1), call: 0, read_after_us: 100 };
        server.worker.push(us, step, Label::Work, 0, Payload::GpuCall(call));
        server.steps(1, DECODE);
    }
    server.steps(steps - calls, DECODE);
    server
}

fn wait(server: &mut Server, what: &str, count: u64) {
    let name = server.engine.name(what);
    let input = EncoderInput { embeddings: 100, held: 950, size: 1000, ..EncoderInput::default() };
    for step in 1..=count {
        server.engine.push(20_000, step, Label::Work, name, Payload::EncoderInput(input));
    }
}

#[test]
fn encoders_that_take_half_of_the_time_are_a_finding() {
    // 20 calls of 90 ms, 200 steps of 9 ms.
    let findings = encoding(20, 90.0, 200).find();
    let finding = of(&findings, "encoder-takes-the-time");
    assert_eq!(weight(finding), (Severity::Warning, Level::Medium));
    assert_eq!(number(finding, "encoder_share_of_encoder_and_decoder"), 50.0);
    assert_eq!(number(finding, "embeddings_per_input"), 100.0);
    assert_eq!(
        changes(finding),
        [
            ("--compilation-config", Direction::Set, Some("{\"cudagraph_mm_encoder\": true}"), None),
            ("--mm-processor-kwargs", Direction::Lower, None, None),
        ]
    );
}

#[test]
fn a_third_is_good_to_know() {
    let findings = encoding(20, 45.0, 200).find();
    assert_eq!(weight(of(&findings, "encoder-takes-the-time")).0, Severity::Info);
}

#[test]
fn encoders_that_take_little_or_were_hardly_called_are_none() {
    for (what, server) in [
        ("29 %", encoding(20, 36.0, 200)),
        ("19 calls", encoding(19, 500.0, 200)),
        ("none", encoding(0, 0.0, 200)),
    ] {
        assert!(!ids(&server.find()).iter().any(|id| id.starts_with("encoder")), "{what}");
    }
}

#[test]
fn inputs_that_wait_ask_for_a_larger_budget() {
    let mut server = encoding(20, 1.0, 200);
    server.engine.fact("setting:max_num_batched_tokens", "2048");
    wait(&mut server, "no_room", 10);
    let findings = server.find();
    let finding = of(&findings, "encoder-inputs-wait");
    assert_eq!(weight(finding), (Severity::Warning, Level::High));
    assert_eq!(changes(finding), [("--max-num-batched-tokens", Direction::Raise, None, Some("2048"))]);
    assert_eq!(number(finding, "most_embeddings_that_requests_needed"), 950.0);
    assert!(finding.title.contains("room in the encoder cache: 10 times in 200 steps"), "{}", finding.title);

    let mut server = encoding(20, 1.0, 200);
    wait(&mut server, "no_budget", 10);
    let findings = server.find();
    assert!(of(&findings, "encoder-inputs-wait").title.contains("wait for the encoders"));
}

#[test]
fn inputs_that_hardly_wait_are_none() {
    let mut server = encoding(20, 1.0, 200);
    wait(&mut server, "no_room", 9);
    assert!(!ids(&server.find()).contains(&"encoder-inputs-wait"));
}
