//! Steps in flight: the engine launches a step before it takes the results of the one before.

use profilemate_analysis::explain::{Explainer, Part, Recording, Status, Verdict};
use profilemate_analysis::steps::Phase;
use profilemate_analysis::{Row, analyze};
use profilemate_format::record::{GpuStep, Label, Outputs, Payload, Schedule};
use profilemate_session::{Error, Name, Session};

use crate::common::Log;

/// One step, in microseconds.
#[derive(Debug, Clone, Copy)]
struct Step {
    /// How long the host launches it, and how long the GPU works on it.
    launch: u64,
    gpu: u64,
    update: u64,
    prompt: u32,
}

const DECODE: Step = Step { launch: 1_000, gpu: 8_000, update: 200, prompt: 0 };
const SCHEDULING: u64 = 200;

/// When a step's time began, when its results were there, and when they were taken.
#[derive(Debug, Clone, Copy)]
struct Times {
    began: u64,
    ready: u64,
    ended: u64,
}

/// An engine with two steps in flight, and its worker in the same process or in one of its own.
fn logs(steps: &[Step], in_one_process: bool) -> (Vec<Log>, Vec<Times>) {
    let mut engine = Log::new("engine_core", 0, 0, 8001, 8000);
    for profiler in ["cpu_timing", "forward_pass_timing", "batch_utilization_tracking"] {
        engine.fact(&format!("profiler:{profiler}"), "on");
    }
    let mut worker = Log::new("worker", 0, 0, 8002, 8001);
    if in_one_process {
        engine.role("worker", 0, 0);
    }
    let (mut now, mut gpu_free, mut began) = (10_000, 0, 0);
    let mut ready = vec![0; steps.len()];
    let mut times = Vec::new();
    for at in 0..=steps.len() {
        if let Some(step) = steps.get(at) {
            let number = at as u64 + 1;
            let schedule = Schedule {
                num_seqs: 8,
                num_tokens: 8 + step.prompt,
                prefill_tokens: step.prompt,
                prefill_seqs: u32::from(step.prompt > 0),
                running: Some(8),
                ..Schedule::default()
            };
            engine.schedule(now + SCHEDULING, number, schedule);
            engine.span(now, SCHEDULING, number, "scheduling", (0, 0), "");
            now += SCHEDULING;
            let of_worker = if in_one_process { &mut engine } else { &mut worker };
            let size = (u64::from(8 + step.prompt) | 8 << 32, 8);
            of_worker.span(now, step.launch, number, "forward", size, "NONE");
            of_worker.span(now, step.launch, number, "model_execution", size, "");
            let started = gpu_free.max(now);
            let idle_us = started - gpu_free;
            gpu_free = started + step.gpu;
            ready[at] = gpu_free;
            let gpu_step = GpuStep {
                forward_ms: Some(step.gpu as f32 / 1e3),
                idle_before_ms: (at > 0).then_some(idle_us as f32 / 1e3),
                busy_ms: Some(step.gpu as f32 / 1e3),
                padded_tokens: 8,
                descriptor: of_worker.name("NONE"),
                read_after_us: u32::try_from(gpu_free - now).unwrap(),
                ..GpuStep::default()
            };
            of_worker.push(now, number, Label::Work, 0, Payload::GpuStep(gpu_step));
            // A worker of its own gives the engine back at once.
            now += if in_one_process { step.launch } else { 10 };
        }
        // The results of the step before.
        let Some(before) = at.checked_sub(1) else { continue };
        now = now.max(ready[before]);
        let outputs = Outputs { num_outputs: 8, new_tokens: 8, ..Outputs::default() };
        engine.outputs(now, before as u64 + 1, outputs);
        engine.span(now, steps[before].update, before as u64 + 1, "update_from_output", (0, 0), "");
        now += steps[before].update;
        times.push(Times { began, ready: ready[before], ended: now });
        began = now;
    }
    let logs = if in_one_process { vec![engine] } else { vec![engine, worker] };
    (logs, times)
}

fn ask<R>(steps: &[Step], in_one_process: bool, question: impl FnOnce(&Explainer<'_>, &[Times]) -> R) -> R {
    let folder = tempfile::tempdir().unwrap();
    let raw = folder.path().join("raw");
    std::fs::create_dir(&raw).unwrap();
    let (logs, times) = logs(steps, in_one_process);
    for log in logs {
        log.write(&raw);
    }
    let session = Session::open(folder.path()).unwrap();
    let recording = Recording::read(&session).unwrap();
    question(&Explainer::new(&recording), &times)
}

/// Thirty steps of decoding, these, and ten more.
fn among_usual(steps: &[Step]) -> Vec<Step> {
    [vec![DECODE; 30], steps.to_vec(), vec![DECODE; 10]].concat()
}

fn thousandths(ms: f64) -> f64 {
    (ms * 1e3).round() / 1e3
}

/// The prompt comes after thirty steps. Its launch holds the engine for so long.
fn prompt(launch: u64) -> Step {
    Step { launch, gpu: 30_000, prompt: 1_000, ..DECODE }
}

#[test]
fn the_launch_of_the_next_step_keeps_the_engine_from_the_results() {
    ask(&among_usual(&[prompt(36_000)]), true, |explainer, times| {
        let found = explainer.step(30);
        let [explanation] = found.as_slice() else { panic!("{found:?}") };
        let own = times[29];
        assert_eq!(explanation.status, Status::Slow);
        assert_eq!(thousandths(explanation.ms), (own.ended - own.began) as f64 / 1e3);
        // It lay there until the launch was over.
        let lay_ms = (own.ended - 200 - own.ready) as f64 / 1e3;
        assert_eq!(thousandths(explanation.step.part(Part::OtherStep).unwrap()), lay_ms);
        let [cause] = explanation.causes.as_slice() else { panic!("{:?}", explanation.causes) };
        let Verdict::OtherStep { blocker, work, ms, usual_ms } = cause.verdict else { panic!("{cause:?}") };
        assert_eq!((blocker.number, blocker.name, blocker.ms), (31, Name::ModelExecution, 36.0));
        assert_eq!((work, thousandths(ms), usual_ms), (Some((Phase::Mixed, 1_008, 1_000)), lay_ms, 0.0));
        // The GPU went on with it at once.
        assert!(f64::from(blocker.gpu_ms) > 0.99 * lay_ms && !blocker.starves_gpu, "{blocker:?} of {lay_ms}");
        assert!((cause.explains_ms - lay_ms).abs() < 0.01 && cause.explains_ms <= explanation.excess_ms);
        // The prompt was computed in the time of the step before it, and makes its own no longer.
        let [after] = explainer.step(31).try_into().unwrap();
        assert_eq!((after.status, after.causes.len()), (Status::AsUsual, 0), "{after:?}");
        assert!(explainer.step(32)[0].status == Status::AsUsual);
    });
}

#[test]
fn a_gpu_that_waits_meanwhile_is_not_said_to_work() {
    // The GPU ends the prompt after a tenth of the launch.
    let slow_launch = Step { gpu: 3_000, ..prompt(36_000) };
    ask(&among_usual(&[slow_launch]), true, |explainer, _| {
        let [explanation] = explainer.step(30).try_into().unwrap();
        let Verdict::OtherStep { blocker, .. } = explanation.causes[0].verdict else { panic!("{explanation:?}") };
        // To the error with which a GPU's times are placed.
        assert!((f64::from(blocker.gpu_ms) - 3.0).abs() < 0.05 && blocker.starves_gpu, "{blocker:?}");
    });
}

#[test]
fn a_gpu_that_ends_with_the_launch_waited_for_it() {
    for (launch, gpu, starves) in [(36_000, 29_500, true), (36_000, 32_000, false)] {
        // It begins when the step before is over, 7 ms after the launch began.
        ask(&among_usual(&[Step { gpu, ..prompt(launch) }]), true, |explainer, _| {
            let [explanation] = explainer.step(30).try_into().unwrap();
            let Verdict::OtherStep { blocker, .. } = explanation.causes[0].verdict else {
                panic!("{explanation:?}")
            };
            assert_eq!(blocker.starves_gpu, starves, "{blocker:?}");
        });
    }
}

#[test]
fn a_launch_that_is_over_before_the_results_are_there_keeps_nobody() {
    // The GPU is at the step before until 7 ms after the launch began.
    ask(&among_usual(&[prompt(6_500)]), true, |explainer, _| {
        let [before] = explainer.step(30).try_into().unwrap();
        assert_eq!((before.status, before.causes.len()), (Status::AsUsual, 0), "{before:?}");
        assert_eq!(before.step.part(Part::OtherStep), Some(0.0));
        // Then the prompt takes its time in its own step.
        let [own] = explainer.step(31).try_into().unwrap();
        let verdicts: Vec<_> = own.causes.iter().map(|cause| cause.verdict.text()).collect();
        assert!(own.status == Status::Slow && !verdicts.contains(&"other_step"), "{own:?}");
    });
}

#[test]
fn a_worker_of_its_own_keeps_no_engine_from_anything() {
    ask(&among_usual(&[prompt(36_000)]), false, |explainer, _| {
        for number in 29..=33 {
            let [explanation] = explainer.step(number).try_into().unwrap();
            assert!(
                explanation.causes.iter().all(|cause| cause.verdict.text() != "other_step"),
                "{explanation:?}"
            );
        }
    });
}

#[test]
fn prompts_explain_no_more_than_passed_until_they_were_computed() {
    // Twelve prompts, one every other step: some are launched in time, so that it is known what they cost.
    let mut steps = Vec::new();
    for _ in 0..12 {
        steps.extend([prompt(1_000), DECODE, DECODE]);
    }
    let last = steps.len() as u64 + 31;
    steps.push(prompt(36_000));
    ask(&among_usual(&steps), true, |explainer, _| {
        let [usual] = explainer.step(31).try_into().unwrap();
        assert_eq!(usual.causes[0].verdict.text(), "prefill_mixed_in");
        assert!((usual.causes[0].explains_ms - usual.excess_ms).abs() < 0.1, "{usual:?}");
        let [own] = explainer.step(last).try_into().unwrap();
        assert!(own.causes.iter().all(|cause| cause.verdict.text() != "prefill_mixed_in"), "{own:?}");
        let [before] = explainer.step(last - 1).try_into().unwrap();
        assert_eq!(before.causes[0].verdict.text(), "other_step", "{before:?}");
    });
}

/// Where the GPU began the last of ten steps, and how far off that may be, nanoseconds. All but that are found done at once. Something
/// is written before it.
fn placed_after(between: impl Fn(&mut Log, u64)) -> (i64, u64) {
    let mut worker = Log::new("engine_core", 0, 0, 8001, 8000);
    worker.role("worker", 0, 0);
    worker.fact("profiler:forward_pass_timing", "on");
    for number in 1..=10_u64 {
        let launched = number * 10_000;
        if number == 10 {
            between(&mut worker, launched);
        }
        let gpu_step = GpuStep {
            forward_ms: Some(8.0),
            idle_before_ms: (number > 1).then_some(2.0),
            busy_ms: Some(8.0),
            // Launched a millisecond before the GPU is free for it.
            read_after_us: if number == 10 { 60_000 } else { 9_000 },
            ..GpuStep::default()
        };
        worker.span(launched, 500, number, "forward", (8 | 8 << 32, 8), "NONE");
        worker.push(launched, number, Label::Work, 0, Payload::GpuStep(gpu_step));
    }
    let folder = tempfile::tempdir().unwrap();
    let raw = folder.path().join("raw");
    std::fs::create_dir(&raw).unwrap();
    worker.write(&raw);
    let session = Session::open(folder.path()).unwrap();
    let mut placed = None;
    analyze::<Error>(&session, |row| {
        if let Row::Forward(pass) = row
            && pass.step == Some(10)
        {
            placed = pass.gpu_start;
        }
        Ok(())
    })
    .unwrap();
    let placed = placed.unwrap();
    (placed.start_ns, placed.error_ns)
}

#[test]
fn a_step_that_never_was_on_the_gpu_does_not_move_the_others() {
    let (start_ns, error_ns) = placed_after(|_, _| ());
    assert!(error_ns <= 1_100_000, "{error_ns}");
    // A step without tokens is written before one that is still there.
    let empty = |worker: &mut Log, us: u64| {
        worker.push(us + 5_000, 11, Label::Work, 0, Payload::GpuStep(GpuStep::default()));
    };
    assert_eq!(placed_after(empty), (start_ns, error_ns));
    // One that was there and whose length is not known: nobody knows how far the next one is from those before.
    let unmeasured = |worker: &mut Log, us: u64| {
        let step = GpuStep { idle_before_ms: Some(2.0), read_after_us: 9_000, ..GpuStep::default() };
        worker.push(us - 100, 11, Label::Work, 0, Payload::GpuStep(step));
    };
    assert!(placed_after(unmeasured).1 > 50_000_000);
}
