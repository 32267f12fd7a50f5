//! Encoders: their share of the time, and inputs that wait for them.

use super::{
    Change, Confidence, Direction, Finding, Found, Level, Severity, Subject, count, evidence, kv_cache, maybe,
    proof, settings, share,
};
use crate::Answers;
use crate::encoder_decoder::{Component, ModelType, Summary};

/// Share of encoders in the time of encoders and decoder from which it is worth a word, percent.
pub const SHARE_PCT: f64 = 30.0;

/// Share from which it costs much, percent.
pub const LARGE_SHARE_PCT: f64 = 50.0;

/// Fewer calls have no share worth the name.
pub const LEAST_CALLS: u64 = 20;

/// Waits of inputs, one for each step, from which they matter, percent of the steps.
pub const WAITING_PCT: f64 = 5.0;

/// Fewer steps say nothing.
pub const LEAST_STEPS: u64 = 200;

pub(super) fn judge(answers: &Answers, found: &mut Found) {
    let Some(summary) = &answers.encoder_decoder else {
        return found.not_there(Subject::Encoder, "the profiler of encoders and decoder was not on");
    };
    if summary.encoders.is_empty() && summary.inputs.is_none() {
        return found.not_there(Subject::Encoder, "no encoder was called");
    }
    let calls: u64 = summary.encoders.iter().map(|encoder| encoder.calls).sum();
    let steps = summary.rows[Component::Decoder as usize];
    if calls < LEAST_CALLS && steps < LEAST_STEPS {
        return found.not_judged(
            Subject::Encoder,
            format!("{calls} calls of encoders in {steps} steps; {LEAST_CALLS} or {LEAST_STEPS} are needed"),
        );
    }
    if calls >= LEAST_CALLS {
        takes_time(answers, summary, calls, found);
    }
    inputs_wait(answers, summary, steps, found);
}

/// Encoders take much of the time.
fn takes_time(answers: &Answers, summary: &Summary, calls: u64, found: &mut Found) {
    let Some(share_pct) = summary.share_pct(Component::Encoder).filter(|share| *share >= SHARE_PCT) else {
        return;
    };
    let has_several = settings::number(&answers.facts, "--tensor-parallel-size").is_some_and(|size| size > 1.0);
    let sees = summary.encoders.iter().any(|encoder| encoder.context == "vision_encoder");
    let is_in_front = summary.model_type != Some(ModelType::EncoderDecoder);
    let mut changes = Vec::new();
    if has_several && is_in_front {
        changes.push(
            Change::new("--mm-encoder-tp-mode", Direction::Set).to("data").note(
                "each GPU encodes inputs of its own, with a copy of the encoder; where the model supports it",
            ),
        );
    }
    if sees && summary.graphs.is_none() && answers.facts.gpu_name.is_some() {
        changes.push(
            Change::new("--compilation-config", Direction::Set)
                .to("{\"cudagraph_mm_encoder\": true}")
                .note("encoders then run in CUDA graphs; vLLM 0.20 and newer, where the model supports it"),
        );
    }
    if sees {
        changes.push(
            Change::new("--mm-processor-kwargs", Direction::Lower).note(
                "fewer pixels for an image: fewer embeddings in encoder and decoder, and the model sees less",
            ),
        );
    }
    let items: u64 = summary.encoders.iter().map(|encoder| encoder.items).sum();
    let tokens: u64 = summary.encoders.iter().map(|encoder| encoder.tokens).sum();
    let mut numbers = vec![
        evidence("encoder_share_of_encoder_and_decoder", share_pct, "%"),
        count("calls_of_encoders", calls, "calls"),
        count("inputs", items, "inputs"),
    ];
    numbers.extend(summary.times(Component::Encoder).map(|times| evidence("mean_call", times.mean_ms, "ms")));
    numbers.extend(maybe("embeddings_per_input", Some(tokens as f64 / items as f64), "embeddings"));
    numbers.extend(maybe("share_of_steps_with_an_encoder", summary.of_encoder_steps_pct, "%"));
    let severity = if share_pct >= LARGE_SHARE_PCT { Severity::Warning } else { Severity::Info };
    let level = if answers.facts.timing_mode.as_deref() == Some("lightweight") {
        Confidence::new(Level::Low, "in lightweight mode the host's time in the call stands for the GPU's")
    } else {
        Confidence::new(Level::Medium, "the time was measured; whether a change helps depends on model and inputs")
    };
    found.push(Finding {
        id: "encoder-takes-the-time",
        subject: Subject::Encoder,
        severity,
        confidence: level,
        title: format!("Encoders take {share_pct:.1} % of the time of encoders and decoder"),
        evidence: numbers,
        changes,
        expect: "Requests that only decode wait while an encoder runs: it is a part of the step. Shorter encoders make \
                 first tokens come earlier and intervals between tokens more even."
            .to_owned(),
        proof: vec![
            proof("encoder_decoder_summary.json", "encoder_pct"),
            proof("encoder_decoder_timing.csv", "duration_ms"),
        ],
    });
}

/// Waits of inputs in 100 steps, where they matter. Those of several inputs in one step are told for each.
fn waiting_pct(summary: &Summary) -> Option<f64> {
    let steps = summary.rows[Component::Decoder as usize];
    let inputs = summary.inputs.as_ref().filter(|_| steps >= LEAST_STEPS)?;
    let waiting_pct = share(inputs.no_room.saturating_add(inputs.no_budget), steps);
    Some(waiting_pct).filter(|waiting| *waiting >= WAITING_PCT)
}

/// Whether inputs wait for want of a larger token budget, by which vLLM sizes what encoders may do.
pub(super) fn wants_budget(answers: &Answers) -> bool {
    answers.encoder_decoder.as_ref().and_then(waiting_pct).is_some()
}

/// Inputs wait for room in the encoder cache, or for the encoders.
fn inputs_wait(answers: &Answers, summary: &Summary, steps: u64, found: &mut Found) {
    let (Some(inputs), Some(waiting_pct)) = (&summary.inputs, waiting_pct(summary)) else { return };
    let waits = inputs.no_room.saturating_add(inputs.no_budget);
    let for_room = inputs.no_room > inputs.no_budget;
    let what = if for_room { "room in the encoder cache" } else { "the encoders, which have enough to do" };
    let change = Change::new("--max-num-batched-tokens", Direction::Raise)
        .from(settings::setting(&answers.facts, "--max-num-batched-tokens"))
        .note("vLLM sizes the encoder cache and what encoders may compute in a step by it; both take memory");
    found.push(Finding {
        id: "encoder-inputs-wait",
        subject: Subject::Encoder,
        severity: Severity::Warning,
        confidence: Confidence::new(Level::High, "vLLM's own answers were counted"),
        title: format!("Inputs wait for {what}: {waits} times in {steps} steps"),
        evidence: vec![
            count("waits_for_room_in_the_cache", inputs.no_room, "waits"),
            count("waits_for_the_encoders", inputs.no_budget, "waits"),
            evidence("waits_per_100_steps", waiting_pct, "waits"),
            count("most_embeddings_that_requests_needed", inputs.most_held, "embeddings"),
            count("embeddings_that_the_cache_has_room_for", inputs.cache_size, "embeddings"),
            count("outputs_evicted", inputs.evicted, "outputs"),
        ],
        // A larger budget takes memory from a KV cache that has too little already.
        changes: if kv_cache::pressure(answers).is_some() { vec![] } else { vec![change] },
        expect: "A request whose image or sound waits gets no further than the text before it. With more room, more of them are \
                 computed in one step, and such steps are longer."
            .to_owned(),
        proof: vec![proof("encoder_decoder_summary.json", "encoder_inputs")],
    });
}
