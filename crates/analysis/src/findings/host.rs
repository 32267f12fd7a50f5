//! What the host does between steps, and whether the GPU or the clients wait for it.

use super::{
    Change, Confidence, Direction, Evidence, Finding, Found, Level, Severity, Subject, count, evidence, proof,
    settings, share,
};
use crate::Answers;
use crate::forward::Bubble;
use profilemate_session::Name;

/// Fewer steps say nothing about a load.
pub const LEAST_STEPS: u64 = 200;

/// Share of decoding in which the GPU waits for the host from which it matters, percent.
pub const IDLE_PCT: f64 = 10.0;

/// From here on it matters much.
pub const VERY_IDLE_PCT: f64 = 30.0;

/// Share of the steps that were put together ahead under which there is no asynchronous scheduling, percent.
pub const OVERLAP_PCT: f64 = 50.0;

/// Share of the time that a front end takes to handle outputs from which it is the limit, percent.
pub const FRONT_END_PCT: f64 = 70.0;

/// What a front end should be busy at most, percent: what bursts need.
const FRONT_END_GOAL_PCT: f64 = 50.0;

/// The GPU in decoding that went on, all workers together.
pub(super) fn decoding(answers: &Answers) -> Option<Bubble> {
    let mut sum = Bubble::default();
    for gpu in &answers.gpu {
        sum.steps = sum.steps.max(gpu.decoding.steps);
        sum.busy_ns = sum.busy_ns.saturating_add(gpu.decoding.busy_ns);
        sum.idle_ns = sum.idle_ns.saturating_add(gpu.decoding.idle_ns);
    }
    (sum.steps > 0).then_some(sum)
}

pub(super) fn judge(answers: &Answers, found: &mut Found) {
    if answers.facts.gpu_name.is_none() {
        return found.not_there(Subject::Host, "nothing was seen to run on a GPU");
    }
    if answers.gpu.is_empty() {
        return found.not_judged(Subject::Host, "no step was timed on a GPU, by its events");
    }
    let steps = answers.gpu.iter().map(|gpu| gpu.steps).max().unwrap_or(0);
    if steps < LEAST_STEPS {
        return found.not_judged(Subject::Host, format!("{steps} steps, {LEAST_STEPS} are needed"));
    }
    found.0.findings.extend(front_end(answers));
    // Without graphs the host is slow for that reason: that finding has the idle time of the GPU.
    if !found.has("cuda-graph-coverage-low") {
        found.0.findings.extend(cpu_bound(answers));
    }
}

/// Mean times of what the host does in a step, milliseconds; the longest first.
fn operations(answers: &Answers) -> Vec<(&'static str, f64)> {
    let Some(cpu) = &answers.cpu else { return vec![] };
    let mut found: Vec<(&'static str, f64)> = [
        (Name::Scheduling, "mean_scheduling"),
        (Name::BatchPreparation, "mean_batch_preparation"),
        (Name::Sampling, "mean_sampling"),
        (Name::Bookkeeping, "mean_bookkeeping"),
        (Name::UpdateFromOutput, "mean_update_from_output"),
    ]
    .into_iter()
    .filter_map(|(name, shown)| {
        let (_, times) = cpu.operations.iter().find(|(found, _)| *found == name)?;
        Some((shown, times.mean_ms))
    })
    .collect();
    found.sort_by(|a, b| b.1.total_cmp(&a.1));
    found
}

/// The GPU waits for the host while it decodes.
fn cpu_bound(answers: &Answers) -> Option<Finding> {
    let bubble = decoding(answers).filter(|bubble| bubble.steps >= LEAST_STEPS)?;
    let idle_pct = bubble.idle_pct().filter(|idle| *idle >= IDLE_PCT)?;
    let workers = answers.gpu.iter().filter(|gpu| gpu.decoding.steps > 0).count().max(1) as f64;
    let of_step = |ns: u64| ns as f64 / 1e6 / workers / bubble.steps as f64;
    let mut evidence = vec![
        evidence("gpu_idle_in_decoding", idle_pct, "%"),
        evidence("mean_gpu_idle_before_a_decode_step", of_step(bubble.idle_ns), "ms"),
        evidence("mean_gpu_busy_in_a_decode_step", of_step(bubble.busy_ns), "ms"),
        count("decode_steps", bubble.steps, "steps"),
    ];
    evidence.extend(operations(answers).into_iter().map(|(name, ms)| super::evidence(name, ms, "ms")));
    let overlap = answers.batch.as_ref().map(|batch| batch.overlap).filter(|overlap| overlap.steps >= LEAST_STEPS);
    let overlapped_pct = overlap.map(|overlap| share(overlap.overlapped, overlap.steps));
    evidence.extend(overlapped_pct.map(|percent| super::evidence("steps_put_together_ahead", percent, "%")));
    let setting = settings::switch(&answers.facts, "--async-scheduling");
    // What was seen counts more than what was set.
    let is_ahead = overlapped_pct.map(|percent| percent >= OVERLAP_PCT).or(setting);
    let change = Change::new("--async-scheduling", Direction::Set)
        .from(setting.map(|on| if on { "True" } else { "False" }))
        .note("vLLM says at its start if the configuration does not allow it");
    let (why, changes, confidence, expect) = match is_ahead {
        Some(false) => (
            ": the next step is put together only when the one before is done",
            vec![change],
            if overlapped_pct.is_some() {
                Confidence::new(Level::High, "GPU times are measured, and the order of steps was seen")
            } else {
                Confidence::new(
                    Level::Medium,
                    "GPU times are measured; the order of steps is taken from the setting",
                )
            },
            "The host works while the GPU computes, so most of the idle time goes away. Time per output token falls by \
             up to that share.",
        ),
        Some(true) => (
            ", although steps are put together ahead: a step takes the host longer than the GPU",
            vec![],
            Confidence::new(
                Level::Medium,
                "GPU times are measured; what the host does meanwhile is timed in parts only",
            ),
            "Faster processor cores, or cores that nobody else uses, make steps shorter (see the host's times in the \
             evidence). Larger batches spread the same work over more requests.",
        ),
        None => (
            "",
            vec![change],
            Confidence::new(
                Level::Low,
                "GPU times are measured; whether steps are put together ahead is not known",
            ),
            "If asynchronous scheduling was off, the host works while the GPU computes, and most of the idle time goes \
             away.",
        ),
    };
    Some(Finding {
        id: "cpu-bound-decoding",
        subject: Subject::Host,
        severity: if idle_pct >= VERY_IDLE_PCT { Severity::Critical } else { Severity::Warning },
        confidence,
        title: format!("The GPU waits for the host in {idle_pct:.1} % of decoding{why}"),
        evidence,
        changes,
        expect: expect.to_owned(),
        proof: vec![
            proof("forward_pass_timing.csv", "gpu_idle_before_ms"),
            proof("cpu_operations_timing.csv", "duration_ms"),
        ],
    })
}

/// Handling outputs keeps the front end busy nearly all the time.
fn front_end(answers: &Answers) -> Option<Finding> {
    let (_, times) = answers.cpu.as_ref()?.operations.iter().find(|(name, _)| *name == Name::OutputProcessing)?;
    if times.count < LEAST_STEPS {
        return None;
    }
    let servers = answers.processes.iter().filter(|process| process.role == "api_server").count().max(1);
    // From the first step to the last but for pauses: what the GPU was busy, and between steps.
    let serving_ms = answers.gpu.iter().map(|gpu| gpu.busy_ns.saturating_add(gpu.idle_ns)).max()? as f64 / 1e6;
    let busy_pct = 100.0 * times.total_ms / servers as f64 / serving_ms;
    if !busy_pct.is_finite() || busy_pct < FRONT_END_PCT {
        return None;
    }
    let is_server = answers
        .facts
        .command
        .as_deref()
        .is_some_and(|command| command.split(' ').any(|word| word == "serve" || word.ends_with("api_server")));
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small count")]
    let wanted = (servers as f64 * (busy_pct / FRONT_END_GOAL_PCT).min(8.0)).ceil() as usize;
    let mut evidence: Vec<Evidence> = vec![
        evidence("front_end_busy_with_outputs", busy_pct, "%"),
        evidence("mean_output_processing", times.mean_ms, "ms"),
        count("api_servers", servers as u64, "processes"),
    ];
    let detokenization =
        answers.cpu.as_ref()?.operations.iter().find(|(name, _)| *name == Name::Detokenization).map(|(_, of)| of);
    evidence.extend(detokenization.map(|of| super::evidence("mean_detokenization", of.mean_ms, "ms")));
    Some(Finding {
        id: "front-end-busy",
        subject: Subject::Host,
        severity: Severity::Warning,
        confidence: Confidence::new(Level::Medium, "the time is measured; that clients wait for it is concluded"),
        title: format!("Each API server handles outputs in {busy_pct:.1} % of the time and hardly keeps up"),
        evidence,
        changes: if is_server {
            vec![
                Change::new("--api-server-count", Direction::Raise)
                    .to(wanted.max(servers + 1))
                    .from(Some(servers))
                    .note("if there are processor cores to spare"),
            ]
        } else {
            vec![]
        },
        expect: if is_server {
            "Outputs and new requests are handled in parallel, so tokens reach clients earlier."
        } else {
            "The engine and the front end of an offline run share their time: vllm serve has more front ends."
        }
        .to_owned(),
        proof: vec![
            proof("cpu_operations_timing.csv", "duration_ms"),
            proof("cpu_timing_summary.json", "output_processing"),
        ],
    })
}
