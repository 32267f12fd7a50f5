//! What `profilemate explain` says: plain text of 80 columns, and JSON.

use std::fmt::Write;

use profilemate_analysis::explain::requests::{Found, RequestCause, RequestExplanation, RequestVerdict, What};
use profilemate_analysis::explain::steps::Located;
use profilemate_analysis::explain::usual::Usual;
use profilemate_analysis::explain::{Blocker, Cause, Explainer, Explanation, New, Part, Status, Verdict};
use profilemate_analysis::steps::Phase;
use serde_json::{Value, json};

use crate::numbers::grouped;
use crate::tables::{number, object};
use crate::text::visible;

/// Columns of a terminal that everybody has.
const WIDTH: usize = 80;
/// Column in which text begins that goes on from the line before.
const INDENT: usize = 4;

/// Milliseconds, to the microsecond.
fn ms(value: f64) -> String {
    format!("{value:.3} ms")
}

/// Rounded to the nanosecond: seven digits are what is known.
fn rounded(value: f64) -> Option<Value> {
    number((value * 1e6).round() / 1e6)
}

fn seconds(nanoseconds: i64) -> f64 {
    nanoseconds as f64 / 1e9
}

fn counted(count: u64, what: &str) -> String {
    let (count, plural) = (grouped(count), if count == 1 { "" } else { "s" });
    // What has two words is counted by its first.
    match what.split_once(' ') {
        Some((first, rest)) => format!("{count} {first}{plural} {rest}"),
        None => format!("{count} {what}{plural}"),
    }
}

/// Text in lines of at most [`WIDTH`] columns, those after the first indented. Words that are longer stand as they are.
fn wrapped(text: &mut String, first: &str, content: &str) {
    wrapped_at(INDENT, text, first, content);
}

fn wrapped_at(indent: usize, text: &mut String, first: &str, content: &str) {
    let mut line = first.to_owned();
    let mut empty = true;
    for word in content.split(' ') {
        if !empty && line.chars().count() + 1 + word.chars().count() > WIDTH {
            let _ = writeln!(text, "{}", line.trim_end());
            line = " ".repeat(indent);
            empty = true;
        }
        let _ = write!(line, "{}{word}", if empty { "" } else { " " });
        empty = false;
    }
    let _ = writeln!(text, "{}", line.trim_end());
}

/// A line with what it explains at its end.
fn cause_line(text: &mut String, explains_ms: f64, excess_ms: f64, why: &str) {
    let share = if excess_ms > 0.0 { 100.0 * explains_ms / excess_ms } else { 0.0 };
    let first = format!("  {explains_ms:>10.3} ms {share:>3.0} %  ");
    wrapped_at(first.len(), text, &first, why);
}

fn phase(phase: Phase) -> &'static str {
    phase.text()
}

/// A range of tokens, in words.
fn tokens(usual: &Usual) -> String {
    let (least, most) = usual.tokens;
    if least == most {
        counted(least.into(), "token")
    } else {
        format!("{} to {} tokens", grouped(least.into()), grouped(most.into()))
    }
}

/// What is usual, in words.
fn usual_steps(usual: &Usual) -> String {
    format!("{} {} steps of {}", grouped(usual.time.count as u64), phase(usual.phase), tokens(usual))
}

fn where_it_lies(located: Option<&Located>) -> String {
    located.map_or(String::new(), |located| {
        format!("; {} took {}, usually {}", part_words(located.part), ms(located.ms), ms(located.usual_ms))
    })
}

/// A part in words.
fn part_words(part: Part) -> String {
    match part {
        Part::BetweenSteps => "the time before the scheduler was called".to_owned(),
        Part::UpdateFromOutput => "taking the results".to_owned(),
        Part::GpuIdle => "waiting of the GPU".to_owned(),
        Part::OtherStep => "another step in flight".to_owned(),
        Part::Other => "what no probe sees".to_owned(),
        part => part.text().replace('_', " "),
    }
}

fn why(verdict: &Verdict) -> String {
    match verdict {
        Verdict::PrefillMixedIn { tokens, sequences: 0 } => {
            format!("prefill mixed in: {} of prompts", counted((*tokens).into(), "token"))
        }
        Verdict::PrefillMixedIn { tokens, sequences } => format!(
            "prefill mixed in: {} of {}",
            counted((*tokens).into(), "token"),
            counted((*sequences).into(), "prompt")
        ),
        Verdict::Recompute { tokens, requests } => format!(
            "recompute after preemption: {} of {} that came back",
            counted((*tokens).into(), "token"),
            counted((*requests).into(), "request")
        ),
        Verdict::MoreWork { tokens, sequences } => format!(
            "more work than usual: {}, usually {:.0}; {}, usually {:.0}",
            counted(tokens.0.into(), "token"),
            tokens.1,
            counted(sequences.0.into(), "sequence"),
            sequences.1
        ),
        Verdict::WarmUp { what, process, ms: stopped } => {
            format!("compilation or warm-up: {} in {} for {}", visible(what), visible(process), ms(*stopped))
        }
        Verdict::GarbageCollection { count, ms: stopped, longest_ms, generation, process } => format!(
            "garbage collection: {} stopped Python for {}; the longest, of generation {generation} in {}, for {}",
            counted((*count).into(), "collection"),
            ms(*stopped),
            visible(process),
            ms(*longest_ms)
        ),
        Verdict::FirstUse { what: New::Size } => "first use: the first step of its phase and size".to_owned(),
        Verdict::FirstUse { what: New::Descriptor } => "first use: the first step of its descriptor".to_owned(),
        Verdict::GraphMiss { mode, usual_mode, usual_pct } => {
            let how = if *mode == "NONE" { "eager" } else { mode };
            format!("CUDA graph miss: run {how}, where {usual_pct:.0} % of such steps replay {usual_mode} graphs")
        }
        Verdict::Preemption { requests } => {
            format!("preemption: the scheduler preempted {}", counted((*requests).into(), "request"))
        }
        Verdict::KvEviction { blocks, usual_blocks } => format!(
            "KV eviction: the scheduler emptied {}, usually {usual_blocks:.0}",
            counted((*blocks).into(), "block with cached content")
        ),
        Verdict::SlowRank { process, gap_ms, usual_gap_ms } => format!(
            "slow rank: the forward pass of {} took {} more than the others', usually {}",
            visible(process),
            ms(*gap_ms),
            ms(*usual_gap_ms)
        ),
        Verdict::LateScheduling { ms: waited, usual_ms, longest } => {
            let host = longest.map_or(String::new(), |(part, more_ms)| {
                format!("; {} took {} more than usual", part_words(part), ms(more_ms))
            });
            format!(
                "late scheduling: the model waited {} for the host, usually {}{host}",
                ms(*waited),
                ms(*usual_ms)
            )
        }
        Verdict::OtherStep { blocker, work, ms: lay, usual_ms } => {
            other_step(blocker, work.as_ref(), *lay, *usual_ms)
        }
        Verdict::Other(located) => format!("the rest{}", where_it_lies(located.as_ref())),
        Verdict::Unknown(located) => format!("unknown{}", where_it_lies(located.as_ref())),
    }
}

/// Share of the time that results lay there in which the GPU worked on the other step, from which on it is the GPU that was waited
/// for.
const GPU_SHARE: f64 = 0.9;

fn other_step(blocker: &Blocker, work: Option<&(Phase, u32, u32)>, lay_ms: f64, usual_ms: f64) -> String {
    let gpu_ms = f64::from(blocker.gpu_ms);
    let work = work.map_or(String::new(), |(of, tokens, prompts)| {
        let prompts = if *of == Phase::Mixed {
            format!(", {} of prompts", grouped((*prompts).into()))
        } else {
            String::new()
        };
        format!(" ({}, {}{prompts})", phase(*of), counted((*tokens).into(), "token"))
    });
    let host = format!("{} took {}", blocker.name.text().replace('_', " "), ms(blocker.ms.into()));
    let number = blocker.number;
    let how = if blocker.starves_gpu {
        format!(
            "the engine was busy with step {number}{work}: {host}; the GPU worked on that for {}, no faster than it \
             was launched",
            ms(gpu_ms)
        )
    } else if gpu_ms >= GPU_SHARE * lay_ms {
        format!("the GPU went on with step {number}{work}, and launching that kept the engine busy: {host}")
    } else if gpu_ms > 0.0 {
        format!("the engine was busy with step {number}{work}: {host}; the GPU worked on that for {}", ms(gpu_ms))
    } else {
        format!("the engine was busy with step {number}{work}: {host}")
    };
    format!("other step: the results lay there for {}, usually {}; {how}", ms(lay_ms), ms(usual_ms))
}

fn as_usual(usual_ms: f64, up_to_ms: Option<f64>) -> String {
    let up_to = up_to_ms.map_or(String::new(), |up_to| format!(", up to {}", ms(up_to)));
    format!("as usual ({}{up_to})", ms(usual_ms))
}

fn heading(explanation: &Explanation<'_>) -> String {
    let usual = match (explanation.status, explanation.usual_ms) {
        (Status::TooFew, _) | (_, None) => "too few steps to say what is usual".to_owned(),
        (Status::AsUsual, Some(usual)) => as_usual(usual, explanation.usual_up_to_ms),
        (Status::Slow, Some(usual)) => format!("usually {}", ms(usual)),
    };
    format!(
        "step {} of {} at {:.6} s: {}, {usual}",
        explanation.step.number,
        visible(explanation.process),
        seconds(explanation.step.began_ns),
        ms(explanation.ms)
    )
}

fn work_words(explanation: &Explanation<'_>) -> String {
    let step = explanation.step;
    let mut words = vec![
        phase(explanation.phase).to_owned(),
        counted(step.num_seqs.into(), "sequence"),
        counted(step.num_tokens.into(), "token"),
    ];
    if explanation.phase == Phase::Mixed {
        words.push(format!("{} of prompts", grouped(step.prefill_tokens.into())));
    }
    if let Some(waiting) = step.waiting.filter(|waiting| *waiting > 0) {
        words.push(format!("{} waiting", counted(waiting.into(), "request")));
    }
    if let Some(descriptor) = explanation.descriptor {
        words.push(visible(descriptor).into_owned());
    }
    words.join(", ")
}

/// Why, one line for each cause.
fn causes(text: &mut String, explanation: &Explanation<'_>) {
    for cause in &explanation.causes {
        let mut words = why(&cause.verdict);
        if matches!(cause.verdict, Verdict::Unknown(_)) && explanation.expected_ms.is_none() {
            let size = counted(explanation.step.num_tokens.into(), "token");
            let _ = write!(words, "; too few steps are like it to say what its {size} take");
        }
        cause_line(text, cause.explains_ms, explanation.excess_ms, &words);
    }
}

/// One step, with all that is known of it.
fn step(text: &mut String, explanation: &Explanation<'_>) {
    wrapped(text, "", &heading(explanation));
    wrapped(text, "  ", &work_words(explanation));
    if let Some(usual) = explanation.usual {
        let similar =
            explanation.similar.filter(|similar| (similar.phase, similar.tokens) != (usual.phase, usual.tokens));
        let own = similar.map_or(String::new(), |similar| {
            format!(" and, for its size, {} ({})", usual_steps(similar), ms(similar.time.median))
        });
        wrapped(text, "  ", &format!("compared with {} ({}){own}", usual_steps(usual), ms(usual.time.median)));
    }
    if explanation.status == Status::Slow {
        let _ = writeln!(text, "\n  {} more than usual, because of", ms(explanation.excess_ms));
        causes(text, explanation);
    }
    let _ = writeln!(text, "\n  {:<24}{:>14}{:>14}", "part of the step", "this step", "usually");
    for part in Part::ALL {
        let Some(part_ms) = explanation.step.part(part) else { continue };
        let usual = explanation.usual_part(part).map_or_else(|| "-".to_owned(), ms);
        let _ = writeln!(text, "  {:<24}{:>14}{usual:>14}", part.text(), ms(part_ms));
    }
}

/// Steps that were asked for by their number.
pub fn steps(explanations: &[Explanation<'_>]) -> String {
    let mut text = String::new();
    for (at, explanation) in explanations.iter().enumerate() {
        if at > 0 {
            text.push('\n');
        }
        step(&mut text, explanation);
    }
    text
}

/// The slowest steps of a session.
pub fn slowest(explainer: &Explainer<'_>, explanations: &[Explanation<'_>]) -> String {
    let mut text = String::new();
    let (count, excess_ms) = explainer.slow();
    let all = counted(explainer.recording().len() as u64, "step");
    if explanations.is_empty() {
        let _ = writeln!(text, "none of {all} took longer than usual");
        return text;
    }
    let slow = format!("{} of {all} took longer than usual, by {} together", grouped(count as u64), ms(excess_ms));
    wrapped(&mut text, "", &format!("{slow}; the slowest:"));
    for explanation in explanations {
        text.push('\n');
        wrapped(&mut text, "", &heading(explanation));
        wrapped(&mut text, "  ", &work_words(explanation));
        causes(&mut text, explanation);
    }
    text
}

fn request_why(verdict: &RequestVerdict) -> String {
    match verdict {
        RequestVerdict::SlowArrival => {
            "it took longer to get to the scheduler (tokenization, messages)".to_owned()
        }
        RequestVerdict::Queued => "it waited longer in the scheduler's queue".to_owned(),
        RequestVerdict::LongPrompt(tokens, usual) => {
            format!("long prompt: {} to compute, usually {usual:.0}", counted((*tokens).into(), "token"))
        }
        RequestVerdict::SlowPrefill => "its prefill took longer than that of such prompts".to_owned(),
        RequestVerdict::Preempted(count) => format!("it was preempted {}", counted(*count, "time")),
        RequestVerdict::LongOutput(tokens, usual) => {
            format!("long output: {}, usually {usual:.0}", counted((*tokens).into(), "token"))
        }
        RequestVerdict::SlowDecode(per_token, usual) => {
            format!("slow decoding: {} per token, usually {}", ms(*per_token), ms(*usual))
        }
        RequestVerdict::Other => "the rest".to_owned(),
        RequestVerdict::Unknown => "unknown".to_owned(),
    }
}

fn moment_words(what: &What) -> String {
    match what {
        What::Started { cached_tokens } if *cached_tokens > 0 => {
            format!("; a cache had {}", counted((*cached_tokens).into(), "token of its prompt"))
        }
        What::Preempted { reason, computed_tokens, beneficiary } => {
            let mut words = format!("; {} computed", counted((*computed_tokens).into(), "token"));
            if !reason.is_empty() {
                let _ = write!(words, "; {}", visible(reason));
            }
            if !beneficiary.is_empty() {
                let _ = write!(words, "; for {}", visible(beneficiary));
            }
            words
        }
        What::Resumed { cached_tokens, delay_ms } => {
            let mut words = delay_ms.map_or(String::new(), |delay| format!("; after {}", ms(delay)));
            if *cached_tokens > 0 {
                let _ = write!(words, "; a cache had {}", counted((*cached_tokens).into(), "token"));
            }
            words
        }
        What::Finished { reason } => format!("; {}", visible(reason)),
        What::Arrived | What::Queued | What::Started { .. } | What::FirstToken => String::new(),
    }
}

/// Moments of a request that are shown at each end of a long timeline.
const SHOWN_MOMENTS: usize = 20;

fn request(text: &mut String, found: &RequestExplanation<'_>) {
    let id = visible(&found.request_id);
    let client = if found.client_request_id.is_empty() || found.client_request_id == found.request_id {
        String::new()
    } else {
        format!(" ({} to its client)", visible(&found.client_request_id))
    };
    let time = found.ms.map_or_else(|| "not over, or its beginning is not known".to_owned(), ms);
    let usual = match (found.status, found.usual_ms) {
        (Status::Slow, Some(usual)) => format!(", usually {}", ms(usual)),
        (Status::AsUsual, Some(usual)) => format!(", {}", as_usual(usual, found.usual_up_to_ms)),
        _ if found.ms.is_some() => ", too few requests to say what is usual".to_owned(),
        _ => String::new(),
    };
    wrapped(text, "", &format!("request {id}{client} of {}: {time}{usual}", visible(&found.process)));
    let mut words = Vec::new();
    words.extend(found.prompt_tokens.map(|tokens| counted(tokens.into(), "token of its prompt")));
    words.extend(
        found
            .cached_tokens
            .filter(|tokens| *tokens > 0)
            .map(|tokens| format!("{} of them cached", grouped(tokens.into()))),
    );
    words.extend(found.output_tokens.map(|tokens| format!("{} generated", counted(tokens.into(), "token"))));
    if found.status != Status::TooFew {
        words.push(format!("compared with {}", counted(found.compared_with as u64, "request")));
    }
    if !words.is_empty() {
        wrapped(text, "  ", &words.join(", "));
    }
    if found.status == Status::Slow {
        let _ = writeln!(text, "\n  {} more than usual, because of", ms(found.excess_ms));
        for cause in &found.causes {
            cause_line(text, cause.explains_ms, found.excess_ms, &request_why(&cause.verdict));
        }
    }
    let _ = writeln!(text, "\n  {:<24}{:>16}{:>16}", "part of its time", "this request", "usually");
    for compared in &found.parts {
        let usual = compared.usual_ms.map_or_else(|| "-".to_owned(), ms);
        let _ = writeln!(text, "  {:<24}{:>16}{usual:>16}", compared.part.text(), ms(compared.ms));
    }
    text.push('\n');
    let left_out = found.timeline.len().saturating_sub(2 * SHOWN_MOMENTS);
    for (at, moment) in found.timeline.iter().enumerate() {
        if left_out > 0 && at == SHOWN_MOMENTS {
            let _ = writeln!(text, "  … {left_out} more, see --json");
        }
        if left_out > 0 && (SHOWN_MOMENTS..SHOWN_MOMENTS + left_out).contains(&at) {
            continue;
        }
        let step = moment.step.map_or(String::new(), |step| format!(" in step {step}"));
        let first = format!("  {:>14.6} s  ", seconds(moment.at_ns));
        wrapped(
            text,
            &first,
            &format!("{}{step}{}", moment.what.text().replace('_', " "), moment_words(&moment.what)),
        );
    }
    let (steps, slow, excess_ms) = found.steps;
    if steps == 0 {
        return;
    }
    let of = counted(steps as u64, "step");
    if slow == 0 {
        let _ = writeln!(text, "\n  none of the {of} while it ran was slow");
        return;
    }
    let _ = writeln!(
        text,
        "\n  {} of the {of} while it ran took longer than usual, by {} together",
        grouped(slow as u64),
        ms(excess_ms)
    );
    for explanation in &found.slow_steps {
        let cause = explanation.causes.first().map_or(String::new(), |cause| {
            format!(": {} for {}", cause.verdict.text().replace('_', " "), ms(cause.explains_ms))
        });
        let more = ms(explanation.excess_ms);
        wrapped(text, "  ", &format!("step {}, {more} more than usual{cause}", explanation.step.number));
    }
}

/// Requests that were asked for by their id.
pub fn requests(found: &Found<'_>) -> String {
    let mut text = String::new();
    for (at, explanation) in found.requests.iter().enumerate() {
        if at > 0 {
            text.push('\n');
        }
        request(&mut text, explanation);
    }
    let more = found.matching.saturating_sub(found.requests.len() as u64);
    if more > 0 {
        let _ = writeln!(text, "\nand {more} more of this name");
    }
    text
}

fn located_json(located: Option<&Located>) -> Value {
    located.map_or_else(
        || json!({}),
        |located| {
            object([
                ("part", Some(located.part.text().into())),
                ("ms", rounded(located.ms)),
                ("usual_ms", rounded(located.usual_ms)),
            ])
        },
    )
}

/// What a verdict knows besides what it explains.
fn details(verdict: &Verdict) -> Value {
    match verdict {
        Verdict::PrefillMixedIn { tokens, sequences } => json!({"tokens": tokens, "sequences": sequences}),
        Verdict::Recompute { tokens, requests } => json!({"tokens": tokens, "requests": requests}),
        Verdict::MoreWork { tokens, sequences } => json!({
            "tokens": tokens.0, "usual_tokens": tokens.1, "sequences": sequences.0, "usual_sequences": sequences.1,
        }),
        Verdict::WarmUp { what, process, ms } => object([
            ("what", Some(what.as_str().into())),
            ("process", Some(process.as_str().into())),
            ("ms", rounded(*ms)),
        ]),
        Verdict::GarbageCollection { count, ms, longest_ms, generation, process } => object([
            ("count", Some((*count).into())),
            ("ms", rounded(*ms)),
            ("longest_ms", rounded(*longest_ms)),
            ("generation", Some((*generation).into())),
            ("process", Some(process.as_str().into())),
        ]),
        Verdict::FirstUse { what } => {
            json!({"first_of": match what { New::Size => "size", New::Descriptor => "descriptor" }})
        }
        Verdict::GraphMiss { mode, usual_mode, usual_pct } => object([
            ("cudagraph_mode", Some((*mode).into())),
            ("usual_cudagraph_mode", Some((*usual_mode).into())),
            ("usual_pct", rounded(*usual_pct)),
        ]),
        Verdict::Preemption { requests } => json!({"requests": requests}),
        Verdict::KvEviction { blocks, usual_blocks } => json!({"blocks": blocks, "usual_blocks": usual_blocks}),
        Verdict::SlowRank { process, gap_ms, usual_gap_ms } => object([
            ("process", Some(process.as_str().into())),
            ("longer_than_others_ms", rounded(*gap_ms)),
            ("usual_ms", rounded(*usual_gap_ms)),
        ]),
        Verdict::LateScheduling { ms, usual_ms, longest } => object([
            ("waited_ms", rounded(*ms)),
            ("usual_ms", rounded(*usual_ms)),
            ("longest_part", longest.map(|(part, _)| part.text().into())),
            ("longest_part_more_ms", longest.and_then(|(_, ms)| rounded(ms))),
        ]),
        Verdict::OtherStep { blocker, work, ms, usual_ms } => object([
            ("step", Some(blocker.number.into())),
            ("phase", work.map(|(phase, ..)| phase.text().into())),
            ("num_tokens", work.map(|(_, tokens, _)| tokens.into())),
            ("prefill_tokens", work.map(|(.., tokens)| tokens.into())),
            ("operation", Some(blocker.name.text().into())),
            ("operation_ms", rounded(blocker.ms.into())),
            ("gpu_ms", rounded(blocker.gpu_ms.into())),
            ("gpu_waits_for_launches", Some(blocker.starves_gpu.into())),
            ("results_lay_ms", rounded(*ms)),
            ("usual_ms", rounded(*usual_ms)),
        ]),
        Verdict::Other(located) | Verdict::Unknown(located) => located_json(located.as_ref()),
    }
}

fn cause_json(cause: &Cause, excess_ms: f64) -> Value {
    object([
        ("verdict", Some(cause.verdict.text().into())),
        ("explains_ms", rounded(cause.explains_ms)),
        ("explains_pct", rounded(100.0 * cause.explains_ms / excess_ms)),
        ("details", Some(details(&cause.verdict))),
    ])
}

fn usual_json(usual: &Usual) -> Value {
    object([
        ("phase", Some(usual.phase.text().into())),
        ("steps", Some(usual.time.count.into())),
        ("least_tokens", Some(usual.tokens.0.into())),
        ("most_tokens", Some(usual.tokens.1.into())),
        ("median_ms", rounded(usual.time.median)),
        ("mad_ms", rounded(usual.time.mad)),
    ])
}

fn step_json(explanation: &Explanation<'_>) -> Value {
    let step = explanation.step;
    let parts = Part::ALL.into_iter().filter_map(|part| {
        let value = object([
            ("ms", Some(rounded(step.part(part)?)?)),
            ("usual_ms", explanation.usual_part(part).and_then(rounded)),
        ]);
        Some((part.text().to_owned(), value))
    });
    object([
        ("step", Some(step.number.into())),
        ("process", Some(explanation.process.into())),
        ("timestamp_sec", rounded(seconds(step.began_ns))),
        ("phase", Some(explanation.phase.text().into())),
        ("num_seqs", Some(step.num_seqs.into())),
        ("num_tokens", Some(step.num_tokens.into())),
        ("prefill_tokens", Some(step.prefill_tokens.into())),
        ("waiting_queue_len", step.waiting.map(Into::into)),
        ("descriptor", explanation.descriptor.map(Into::into)),
        ("preempted_requests", Some(step.preempted.into())),
        ("resumed_requests", Some(step.resumed.into())),
        ("evicted_blocks", step.evicted_blocks().map(Into::into)),
        ("garbage_collections", Some(step.garbage.count.into())),
        ("garbage_collection_ms", rounded(step.garbage.ms.into())),
        ("slowest_rank_longer_ms", step.rank_gap().and_then(rounded)),
        ("after_idle", Some(step.after_idle.into())),
        ("ms", rounded(explanation.ms)),
        ("status", Some(explanation.status.text().into())),
        ("usual_ms", explanation.usual_ms.and_then(rounded)),
        ("usual_up_to_ms", explanation.usual_up_to_ms.and_then(rounded)),
        ("excess_ms", explanation.usual_ms.and_then(|_| rounded(explanation.excess_ms))),
        ("compared_with", explanation.usual.map(usual_json)),
        ("similar", explanation.similar.map(usual_json)),
        ("expected_ms", explanation.expected_ms.and_then(rounded)),
        (
            "causes",
            Some(explanation.causes.iter().map(|cause| cause_json(cause, explanation.excess_ms)).collect()),
        ),
        ("parts", Some(Value::Object(parts.collect()))),
    ])
}

/// The same as [`steps`], as JSON.
pub fn steps_json(explanations: &[Explanation<'_>]) -> Value {
    json!({"steps": explanations.iter().map(step_json).collect::<Vec<_>>()})
}

/// The same as [`slowest`], as JSON.
pub fn slowest_json(explainer: &Explainer<'_>, explanations: &[Explanation<'_>]) -> Value {
    let (count, excess_ms) = explainer.slow();
    object([
        ("total_steps", Some(explainer.recording().len().into())),
        ("slow_steps", Some(count.into())),
        ("slow_steps_excess_ms", rounded(excess_ms)),
        ("steps", Some(explanations.iter().map(step_json).collect())),
    ])
}

fn request_details(verdict: &RequestVerdict) -> Value {
    match verdict {
        RequestVerdict::LongPrompt(tokens, usual) | RequestVerdict::LongOutput(tokens, usual) => {
            json!({"tokens": tokens, "usual_tokens": usual})
        }
        RequestVerdict::Preempted(count) => json!({"preemptions": count}),
        RequestVerdict::SlowDecode(per_token, usual) => {
            object([("ms_per_token", rounded(*per_token)), ("usual_ms_per_token", rounded(*usual))])
        }
        RequestVerdict::SlowArrival
        | RequestVerdict::Queued
        | RequestVerdict::SlowPrefill
        | RequestVerdict::Other
        | RequestVerdict::Unknown => json!({}),
    }
}

fn request_cause_json(cause: &RequestCause, excess_ms: f64) -> Value {
    object([
        ("verdict", Some(cause.verdict.text().into())),
        ("explains_ms", rounded(cause.explains_ms)),
        ("explains_pct", rounded(100.0 * cause.explains_ms / excess_ms)),
        ("details", Some(request_details(&cause.verdict))),
    ])
}

fn request_json(found: &RequestExplanation<'_>) -> Value {
    let known = |text: &str| Some(text).filter(|text| !text.is_empty()).map(Into::into);
    let timeline = found.timeline.iter().map(|moment| {
        let (mut reason, mut tokens, mut cached, mut delay, mut whom) = (None, None, None, None, None);
        match &moment.what {
            What::Started { cached_tokens } => cached = Some((*cached_tokens).into()),
            What::Preempted { reason: why, computed_tokens, beneficiary } => {
                (reason, tokens, whom) = (known(why), Some((*computed_tokens).into()), known(beneficiary));
            }
            What::Resumed { cached_tokens, delay_ms } => {
                (cached, delay) = (Some((*cached_tokens).into()), delay_ms.and_then(rounded));
            }
            What::Finished { reason: why } => reason = known(why),
            What::Arrived | What::Queued | What::FirstToken => {}
        }
        object([
            ("timestamp_sec", rounded(seconds(moment.at_ns))),
            ("event", Some(moment.what.text().into())),
            ("step", moment.step.map(Into::into)),
            ("reason", reason),
            ("computed_tokens", tokens),
            ("cached_tokens", cached),
            ("delay_ms", delay),
            ("preempted_for", whom),
        ])
    });
    let parts = found.parts.iter().map(|compared| {
        let value = object([
            ("ms", rounded(compared.ms)),
            ("usual_ms", compared.usual_ms.and_then(rounded)),
            ("expected_ms", compared.expected_ms.and_then(rounded)),
        ]);
        (compared.part.text().to_owned(), value)
    });
    let (steps, slow, excess_ms) = found.steps;
    object([
        ("request_id", known(&found.request_id)),
        ("client_request_id", known(&found.client_request_id)),
        ("process", known(&found.process)),
        ("prompt_tokens", found.prompt_tokens.map(Into::into)),
        ("cached_tokens", found.cached_tokens.map(Into::into)),
        ("output_tokens", found.output_tokens.map(Into::into)),
        ("ms", found.ms.and_then(rounded)),
        ("status", Some(if found.ms.is_none() { "not_over" } else { request_status(found.status) }.into())),
        ("usual_ms", found.usual_ms.and_then(rounded)),
        ("usual_up_to_ms", found.usual_up_to_ms.and_then(rounded)),
        ("excess_ms", (found.status != Status::TooFew).then(|| rounded(found.excess_ms)).flatten()),
        ("compared_with_requests", Some(found.compared_with.into())),
        ("causes", Some(found.causes.iter().map(|cause| request_cause_json(cause, found.excess_ms)).collect())),
        ("parts", Some(Value::Object(parts.collect()))),
        ("timeline", Some(timeline.collect())),
        ("steps", Some(steps.into())),
        ("slow_steps_count", Some(slow.into())),
        ("slow_steps_excess_ms", rounded(excess_ms)),
        ("slow_steps", Some(found.slow_steps.iter().map(step_json).collect())),
    ])
}

fn request_status(status: Status) -> &'static str {
    match status {
        Status::TooFew => "too_few_requests",
        status => status.text(),
    }
}

/// The same as [`requests`], as JSON.
pub fn requests_json(found: &Found<'_>) -> Value {
    json!({"matching": found.matching, "requests": found.requests.iter().map(request_json).collect::<Vec<_>>()})
}
