//! Steps.

use profilemate_analysis::explain::{Explanation, New, Part, Status, Verdict};
use profilemate_format::record::Schedule;
use proptest::prelude::*;

use crate::run::{FULL, Gpu, Pause, Run, Step, Where};

/// What was said of a step: whether it was slow, and each verdict with its milliseconds, to the microsecond.
#[derive(Debug, PartialEq)]
struct Said {
    status: Status,
    excess_ms: f64,
    verdicts: Vec<(&'static str, f64)>,
    causes: Vec<Verdict>,
}

fn thousandths(ms: f64) -> f64 {
    (ms * 1e3).round() / 1e3
}

fn said(explanation: &Explanation<'_>) -> Said {
    let causes = &explanation.causes;
    let explained: f64 = causes.iter().map(|cause| cause.explains_ms).sum();
    if explanation.status == Status::Slow {
        // Everything is accounted for but for what is too little to be named, and nothing twice.
        let left = explanation.excess_ms - explained;
        assert!(left > -1e-6 && left < (0.1 * explanation.excess_ms).max(0.05), "{explanation:?}");
        assert!(causes.iter().all(|cause| cause.explains_ms > 0.0), "{explanation:?}");
    } else {
        assert!(causes.is_empty());
    }
    Said {
        status: explanation.status,
        excess_ms: thousandths(explanation.excess_ms),
        verdicts: causes.iter().map(|cause| (cause.verdict.text(), thousandths(cause.explains_ms))).collect(),
        causes: causes.iter().map(|cause| cause.verdict.clone()).collect(),
    }
}

/// What is said of one step after thirty usual ones, and before ten more.
fn of(run: Run, number: u64) -> Said {
    run.ask(|_, explainer| {
        let found = explainer.step(number);
        let [explanation] = found.as_slice() else { panic!("{found:?}") };
        said(explanation)
    })
}

fn asked(workers: usize, usual: fn(u64) -> Step, change: impl FnOnce(&mut Step)) -> Said {
    let mut run = Run::new(workers);
    run.usual(30, usual);
    let number = run.next();
    let mut step = usual(number);
    change(&mut step);
    run.step(step);
    run.usual(10, usual);
    of(run, number)
}

fn verdicts(said: &Said) -> Vec<&'static str> {
    said.verdicts.iter().map(|(verdict, _)| *verdict).collect()
}

#[test]
fn a_step_like_the_others_is_as_usual() {
    let said = asked(1, Step::usual, |_| ());
    assert_eq!((said.status, said.verdicts), (Status::AsUsual, Vec::new()));
    // Less than a tenth longer is usual, too.
    let said = asked(1, Step::usual, |step| step.forward[0] += 900);
    assert_eq!(said.status, Status::AsUsual);
}

#[test]
fn without_enough_steps_nothing_is_said() {
    let mut run = Run::new(1);
    run.usual(6, Step::usual);
    let mut slow = Step::usual(7);
    slow.forward[0] = 90_000;
    run.step(slow);
    assert_eq!(of(run, 7).status, Status::TooFew);
}

#[test]
fn nothing_that_is_known_explains_it() {
    let said = asked(1, Step::usual, |step| step.forward[0] += 20_000);
    assert_eq!(said.status, Status::Slow);
    assert_eq!(verdicts(&said), ["unknown"]);
    let Verdict::Unknown(Some(located)) = &said.causes[0] else { panic!("{said:?}") };
    assert_eq!(
        (located.part, thousandths(located.ms), thousandths(located.usual_ms)),
        (Part::Forward, 28.01, 8.01)
    );
}

#[test]
fn where_an_unknown_excess_lies() {
    type Case = (fn(&mut Step), Part);
    let cases: [Case; 5] = [
        (|step| step.preparation += 5_000, Part::BatchPreparation),
        (|step| step.sampling += 5_000, Part::Sampling),
        (|step| step.bookkeeping += 5_000, Part::Bookkeeping),
        (|step| step.update += 5_000, Part::UpdateFromOutput),
        (|step| step.other += 5_000, Part::Other),
    ];
    for (change, part) in cases {
        let said = asked(1, Step::usual, change);
        assert_eq!(verdicts(&said), ["unknown"], "{part:?}");
        let Verdict::Unknown(Some(located)) = &said.causes[0] else { panic!("{said:?}") };
        assert_eq!(located.part, part);
    }
}

/// Mixed steps among decoding ones.
fn with_prompts(prompt: u32) -> Run {
    let mut run = Run::new(1);
    for _ in 0..12 {
        run.usual(3, Step::usual);
        run.step(Step::mixed(run.next(), prompt));
    }
    run
}

#[test]
fn prefill_mixed_in() {
    let mut run = with_prompts(512);
    let number = run.next();
    run.step(Step::mixed(number, 512));
    let said = of(run, number);
    assert_eq!(said.status, Status::Slow);
    // 512 tokens of 10 us; usual decoding takes 8.01 ms of forward pass.
    assert_eq!(said.verdicts[0].0, "prefill_mixed_in");
    assert!((said.verdicts[0].1 - 5.12).abs() < 0.011, "{said:?}");
    assert_eq!(said.causes[0], Verdict::PrefillMixedIn { tokens: 512, sequences: 1 });
}

#[test]
fn a_prompt_so_short_that_nobody_notices_is_not_to_blame() {
    // 5 tokens cost 50 us; what makes the step long is something else.
    let mut run = with_prompts(5);
    let number = run.next();
    let mut step = Step::mixed(number, 5);
    step.forward[0] += 20_000;
    run.step(step);
    assert_eq!(verdicts(&of(run, number)), ["unknown"]);
}

#[test]
fn prefill_explains_no_more_than_such_prompts_cost() {
    let mut run = with_prompts(512);
    let number = run.next();
    let mut step = Step::mixed(number, 512);
    step.forward[0] += 3_000;
    run.step(step);
    let said = of(run, number);
    assert_eq!(verdicts(&said), ["prefill_mixed_in", "other"]);
    assert!((said.verdicts[1].1 - 3.0).abs() < 0.02, "{said:?}");
}

#[test]
fn a_prompt_of_a_size_of_its_own_is_judged_by_what_a_token_costs() {
    let mut run = with_prompts(512);
    let number = run.next();
    run.step(Step::mixed(number, 4_000));
    let said = of(run, number);
    assert_eq!(said.verdicts[0].0, "prefill_mixed_in");
    assert!((said.verdicts[0].1 - 40.0).abs() < 0.2, "{said:?}");
}

#[test]
fn a_longer_prompt_alone_is_more_work() {
    let mut run = Run::new(1);
    run.usual(12, |number| Step::prefill(number, 100));
    run.step(Step::prefill(13, 1_000));
    let mut slow = Step::prefill(14, 1_000);
    slow.forward[0] += 40_000;
    run.step(slow);
    let said = run.ask(|_, explainer| [13, 14].map(|number| said(&explainer.step(number)[0])));
    assert_eq!(verdicts(&said[0]), ["more_work"]);
    // What other prompts cost per token is all that is known, and that is in the order of what it took.
    assert_eq!(said[0].causes[0], Verdict::MoreWork { tokens: (1_000, 100.0), sequences: (1, 1.0) });
    assert_eq!(verdicts(&said[1]), ["more_work", "other"]);
}

#[test]
fn with_batches_in_flight_a_step_takes_the_time_between_two_results() {
    let mut run = Run::new(0);
    let mut results = 30_000;
    for number in 1..=40 {
        let took = if number == 30 { 25_000 } else { 10_000 + number % 3 * 10 };
        results += took;
        // Made fifteen milliseconds before, while the one before it is still running.
        let made = results - took - 5_000;
        run.engine(made, move |log| {
            let schedule = Schedule { num_seqs: 8, num_tokens: 8, running: Some(8), ..Schedule::default() };
            log.schedule(made, number, schedule);
        });
        run.engine(made + 1, move |log| log.span(made - 200, 201, number, "scheduling", (0, 0), ""));
        run.engine(results, move |log| log.span(results - 100, 100, number, "update_from_output", (0, 0), ""));
    }
    run.ask(|_, explainer| {
        let ms = |number| thousandths(explainer.step(number)[0].ms);
        assert_eq!((ms(7), ms(8), ms(30)), (10.01, 10.02, 25.0));
        let slow = explainer.slowest(5);
        // The first one had nothing before it: its requests waited for all of it.
        let found: Vec<_> = slow.iter().map(|found| (found.step.number, thousandths(found.ms))).collect();
        assert_eq!(found, [(30, 25.0), (1, 15.21)]);
        assert_eq!(verdicts(&said(&slow[0])), ["unknown"]);
        // The scheduler was no part of what anybody waited for.
        assert_eq!(slow[0].step.part(Part::BetweenSteps), Some(0.0));
    });
}

#[test]
fn few_prompts_are_not_enough_to_say_what_they_cost() {
    let mut run = Run::new(1);
    run.usual(30, Step::usual);
    for number in 31..=33 {
        run.step(Step::mixed(number, 512));
    }
    // It is longer than decoding, and a prompt is in it; what that costs nobody knows.
    let (verdicts_of, expected_ms) = run.ask(|_, explainer| {
        let found = explainer.step(32);
        (verdicts(&said(&found[0])), found[0].expected_ms)
    });
    assert_eq!((verdicts_of, expected_ms), (vec!["unknown"], None));
}

#[test]
fn a_prompt_that_takes_longer_than_its_tokens_cost() {
    // 2,000 tokens of 10 us each are 20 ms: 27 are not, and 21 are.
    let make = |more: u64| {
        let mut run = with_prompts(512);
        let number = run.next();
        let mut step = Step::mixed(number, 2_000);
        step.forward[0] += more;
        run.step(step);
        of(run, number)
    };
    assert_eq!(verdicts(&make(1_000)), ["prefill_mixed_in"]);
    let said = make(7_000);
    assert_eq!(verdicts(&said), ["prefill_mixed_in", "other"]);
    assert!((said.verdicts[1].1 - 7.0).abs() < 0.1, "{said:?}");
}

#[test]
fn recompute() {
    let make = |again: bool| {
        let mut run = with_prompts(512);
        let mut step = Step::usual(run.next());
        step.preempted = if again { vec![3] } else { Vec::new() };
        run.step(step);
        let number = run.next();
        let mut step = Step::mixed(number, 512);
        step.admitted = vec![(3, 400)];
        run.step(step);
        of(run, number)
    };
    let said = make(true);
    assert_eq!(verdicts(&said), ["recompute", "prefill_mixed_in"]);
    assert!((said.verdicts[0].1 - 4.0).abs() < 0.01, "{said:?}");
    assert_eq!(said.causes[0], Verdict::Recompute { tokens: 400, requests: 1 });
    assert_eq!(said.causes[1], Verdict::PrefillMixedIn { tokens: 112, sequences: 0 });
    // The same request for the first time is no recompute.
    assert_eq!(verdicts(&make(false)), ["prefill_mixed_in"]);
}

#[test]
fn more_work() {
    let large =
        |number| Step { forward: vec![16_000 + number % 3 * 10], seqs: 64, tokens: 64, ..Step::usual(number) };
    let mut run = Run::new(1);
    run.usual(30, Step::usual);
    run.usual(10, large);
    let number = run.next();
    run.step(large(number));
    let said = of(run, number);
    assert_eq!(verdicts(&said), ["more_work"]);
    assert_eq!(said.causes[0], Verdict::MoreWork { tokens: (64, 8.0), sequences: (64, 8.0) });
    // As large, but most are: nothing more than usual.
    let mut run = Run::new(1);
    run.usual(10, Step::usual);
    run.usual(30, large);
    let number = run.next();
    run.step(large(number));
    assert_eq!(of(run, number).status, Status::AsUsual);
    // A small one that takes as long as large ones does not have more work.
    let mut run = Run::new(1);
    run.usual(10, Step::usual);
    run.usual(30, large);
    let number = run.next();
    run.step(Step { forward: vec![16_000], ..Step::usual(number) });
    let said = of(run, number);
    assert_eq!((said.status, verdicts(&said)), (Status::Slow, vec!["unknown"]));
}

fn collection(place: Where, us: u64) -> Pause {
    Pause { place, us, generation: Some(2) }
}

#[test]
fn garbage_collection() {
    let said = asked(1, Step::usual, |step| {
        step.scheduling += 30_000;
        step.pauses = vec![collection(Where::Engine, 30_000)];
    });
    assert_eq!(verdicts(&said), ["garbage_collection"]);
    assert_eq!(said.verdicts[0].1, 30.0);
    let process = "engine_core-0".to_owned();
    let expected = Verdict::GarbageCollection { count: 1, ms: 30.0, longest_ms: 30.0, generation: 2, process };
    assert_eq!(said.causes[0], expected);
    // In the worker, and at the same time in the engine: the time passes once.
    let said = asked(1, Step::usual, |step| {
        step.forward[0] += 30_000;
        step.pauses = vec![collection(Where::Worker, 30_000), collection(Where::Worker, 10_000)];
    });
    let Verdict::GarbageCollection { count: 2, ms, .. } = said.causes[0] else { panic!("{said:?}") };
    assert_eq!(ms, 30.0);
}

#[test]
fn a_collection_that_is_short_or_elsewhere_is_not_to_blame() {
    let said = asked(1, Step::usual, |step| {
        step.forward[0] += 30_000;
        step.pauses = vec![collection(Where::Worker, 2_000)];
    });
    assert_eq!(verdicts(&said), ["unknown"], "2 of 30 ms");
    let said = asked(1, Step::usual, |step| {
        step.forward[0] += 30_000;
        step.pauses = vec![collection(Where::FrontEnd, 30_000)];
    });
    assert_eq!(verdicts(&said), ["unknown"], "the front end's");
    let said = asked(1, Step::usual, |step| {
        step.update += 30_000;
        step.pauses = vec![collection(Where::Worker, 30_000)];
    });
    assert_eq!(verdicts(&said), ["unknown"], "the worker's, while the engine took longer");
    let said = asked(1, Step::usual, |step| step.pauses = vec![collection(Where::Worker, 5_000)]);
    assert_eq!(said.status, Status::AsUsual, "it was no longer than others");
}

#[test]
fn collections_that_are_in_every_step_are_usual() {
    let usual = |number| {
        let usual = Step::usual(number);
        Step { forward: vec![usual.forward[0] + 4_000], pauses: vec![collection(Where::Worker, 4_000)], ..usual }
    };
    let said = asked(1, usual, |step| step.forward[0] += 20_000);
    assert_eq!(verdicts(&said), ["unknown"]);
}

#[test]
fn a_collection_does_not_make_kernels_longer() {
    let said = asked(1, Step::on_gpu, |step| {
        step.gpu = Some(Gpu { idle_us: 1_700, forward_us: 28_000 });
        step.bookkeeping += 20_000;
        step.pauses = vec![collection(Where::Engine, 20_000)];
        step.scheduling = 200;
    });
    assert_eq!(verdicts(&said), ["unknown"], "{said:?}");
    // The same while the GPU waits.
    let said = asked(1, Step::on_gpu, |step| {
        step.gpu = Some(Gpu { idle_us: 21_700, forward_us: 8_000 });
        step.scheduling += 20_000;
        step.pauses = vec![collection(Where::Engine, 20_000)];
    });
    assert_eq!(verdicts(&said), ["garbage_collection"], "{said:?}");
}

#[test]
fn warm_up() {
    let pause = |us| Pause { place: Where::Worker, us, generation: None };
    let said = asked(1, Step::usual, |step| {
        step.forward[0] += 500_000;
        step.pauses = vec![pause(499_000)];
    });
    assert_eq!(verdicts(&said), ["warm_up"]);
    let Verdict::WarmUp { what, process, .. } = &said.causes[0] else { panic!("{said:?}") };
    assert_eq!((what.as_str(), process.as_str()), ("compile_or_warm_up_model", "worker-0"));
    let said = asked(1, Step::usual, |step| {
        step.forward[0] += 500_000;
        step.pauses = vec![pause(4_000)];
    });
    assert_eq!(verdicts(&said), ["unknown"]);
}

#[test]
fn first_use() {
    let large = |number| Step { forward: vec![9_000], seqs: 64, tokens: 64, ..Step::usual(number) };
    let make = |slow: u64| {
        let mut run = Run::new(1);
        run.usual(30, Step::usual);
        for number in 31..=45 {
            let mut step = large(number);
            if number == slow {
                step.forward[0] += 200_000;
                step.preparation += 50_000;
            }
            run.step(step);
        }
        of(run, slow)
    };
    let said = make(31);
    assert_eq!(verdicts(&said), ["first_use"]);
    assert_eq!(said.causes[0], Verdict::FirstUse { what: New::Size });
    assert!(said.verdicts[0].1 > 249.0, "{said:?}");
    // The first, but others take as long now and then.
    let mut run = Run::new(1);
    run.usual(30, Step::usual);
    for number in 31..=45 {
        let slow = u64::from(number % 7 == 3) * 200_000;
        run.step(Step { forward: vec![9_000 + slow], ..large(number) });
    }
    assert_eq!(verdicts(&of(run, 31)), ["unknown"]);
    // The second of its size.
    assert_eq!(verdicts(&make(32)), ["unknown"]);
    // The first of a descriptor among steps of a size that is known.
    let said = asked(1, Step::usual, |step| {
        step.descriptor = "FULL num_tokens=8 num_reqs=8 uniform=1 has_lora=1";
        step.forward[0] += 200_000;
    });
    assert_eq!(said.causes[0], Verdict::FirstUse { what: New::Descriptor });
    // It is new, but that is not where it was slow.
    let said = asked(1, Step::usual, |step| {
        step.descriptor = "FULL num_tokens=8 num_reqs=8 uniform=1 has_lora=1";
        step.update += 20_000;
    });
    assert_eq!(verdicts(&said), ["unknown"]);
}

#[test]
fn cuda_graph_miss() {
    let make = |before: &'static str, usual: fn(u64) -> Step| {
        let mut run = Run::new(1);
        run.step(Step { descriptor: before, ..usual(1) });
        run.usual(30, usual);
        let number = run.next();
        let mut step = Step { descriptor: "NONE", ..usual(number) };
        step.forward[0] += 6_000;
        run.step(step);
        run.usual(5, usual);
        of(run, number)
    };
    // It was run without a graph before, so it is not its first use.
    let said = make("NONE", Step::usual);
    assert_eq!(verdicts(&said), ["cuda_graph_miss"]);
    let Verdict::GraphMiss { mode, usual_mode, usual_pct } = said.causes[0] else { panic!("{said:?}") };
    assert_eq!((mode, usual_mode), ("NONE", "FULL"));
    assert!(usual_pct > 90.0);
    // Nobody else replays graphs.
    let eager = |number| Step { descriptor: "NONE", ..Step::usual(number) };
    assert_eq!(verdicts(&make("NONE", eager)), ["unknown"]);
    // It replays one, like the others.
    let said = asked(1, Step::usual, |step| step.forward[0] += 6_000);
    assert_eq!((FULL, verdicts(&said)), (FULL, vec!["unknown"]));
    // Without a graph, but that is not where it was slow.
    let mut run = Run::new(1);
    run.step(Step { descriptor: "NONE", ..Step::usual(1) });
    run.usual(30, Step::usual);
    run.step(Step { descriptor: "NONE", sampling: 20_000, ..Step::usual(32) });
    assert_eq!(verdicts(&of(run, 32)), ["unknown"]);
}

#[test]
fn preemption() {
    let said = asked(1, Step::usual, |step| {
        step.scheduling += 8_000;
        step.preempted = vec![4, 5];
    });
    assert_eq!(verdicts(&said)[0], "preemption");
    assert_eq!(said.causes[0], Verdict::Preemption { requests: 2 });
    assert_eq!(said.verdicts[0].1, 8.0);
    // Two were preempted, but the scheduler took no longer.
    let said = asked(1, Step::usual, |step| {
        step.forward[0] += 8_000;
        step.preempted = vec![4, 5];
    });
    assert_eq!(verdicts(&said), ["unknown"]);
}

#[test]
fn kv_eviction() {
    let said = asked(1, Step::usual, |step| {
        step.scheduling += 8_000;
        step.evicted = Some(300);
    });
    assert_eq!(said.causes[0], Verdict::KvEviction { blocks: 300, usual_blocks: 0.0 });
    assert_eq!(said.verdicts[0].1, 8.0);
    // As many as ever, or not known how many.
    let usual = |number| Step { evicted: Some(300 + u32::try_from(number % 3).unwrap()), ..Step::usual(number) };
    assert_eq!(verdicts(&asked(1, usual, |step| step.scheduling += 8_000)), ["unknown"]);
    let usual = |number| Step { evicted: None, ..Step::usual(number) };
    assert_eq!(verdicts(&asked(1, usual, |step| step.scheduling += 8_000)), ["unknown"]);
    let said = asked(1, Step::usual, |step| {
        step.forward[0] += 8_000;
        step.evicted = Some(300);
    });
    assert_eq!(verdicts(&said), ["unknown"], "the scheduler took no longer");
}

#[test]
fn a_slow_rank() {
    let four =
        |number| Step { forward: vec![8_000, 8_010, 8_020 + number % 3 * 10, 8_000], ..Step::usual(number) };
    let said = asked(4, four, |step| step.forward[2] += 12_000);
    assert_eq!(verdicts(&said)[0], "slow_rank");
    let Verdict::SlowRank { process, gap_ms, usual_gap_ms } = &said.causes[0] else { panic!("{said:?}") };
    assert_eq!(process, "worker-2");
    assert!((gap_ms - 12.017).abs() < 0.02 && *usual_gap_ms < 0.05, "{said:?}");
    assert!(said.verdicts[0].1 > 11.9);
    // All of them are slow.
    let said = asked(4, four, |step| step.forward.iter_mut().for_each(|forward| *forward += 12_000));
    assert_eq!(verdicts(&said), ["unknown"]);
    // One of them always is.
    let uneven = |number| Step { forward: vec![8_000, 12_000 + number % 3 * 10], ..Step::usual(number) };
    let said = asked(2, uneven, |step| step.update += 9_000);
    assert_eq!(verdicts(&said), ["unknown"]);
}

#[test]
fn late_scheduling() {
    let said = asked(1, Step::usual, |step| step.between += 15_000);
    assert_eq!(verdicts(&said), ["late_scheduling"]);
    let Verdict::LateScheduling { ms, longest, .. } = said.causes[0] else { panic!("{said:?}") };
    assert!((ms - 15.1).abs() < 1e-3 && longest.is_none());
    // On a GPU it is the bubble, whatever the host did.
    let said = asked(1, Step::on_gpu, |step| {
        step.preparation += 15_000;
        step.gpu = Some(Gpu { idle_us: 16_700, forward_us: 8_000 });
    });
    assert_eq!(verdicts(&said)[0], "late_scheduling");
    let Verdict::LateScheduling { longest: Some((part, ms)), .. } = said.causes[0] else { panic!("{said:?}") };
    assert_eq!((part, thousandths(ms)), (Part::BatchPreparation, 15.0));
    // The host was late, and the GPU had enough to do: the step is not longer for it.
    let said = asked(1, Step::on_gpu, |step| {
        step.preparation += 15_000;
        step.bookkeeping += 5_000;
        step.gpu = Some(Gpu { idle_us: 1_700, forward_us: 28_000 });
    });
    assert_eq!(verdicts(&said), ["unknown"], "{said:?}");
    // A request that comes after a pause waits for nothing.
    let said = asked(1, Step::usual, |step| step.idle = Some(500_000));
    assert_eq!(said.status, Status::AsUsual);
}

#[test]
fn requests_that_cannot_run_wait_for_something_else() {
    let mut run = Run::new(1);
    run.usual(30, Step::usual);
    // The scheduler is asked again and again, for 80 ms, and has nothing to run until then.
    for _ in 0..8 {
        let (now, number) = (run.now, run.next());
        run.engine(now, move |log| {
            log.schedule(now, number, Schedule { waiting: Some(3), ..Schedule::default() });
        });
        run.times.push((now, now));
        run.now += 10_000;
    }
    let number = run.next();
    let step = Step { between: 100, ..Step::usual(number) };
    run.now -= 10_000;
    run.step(step);
    assert_eq!(of(run, number).status, Status::AsUsual);
}

#[test]
fn the_slowest_come_first_and_bad_ones_do_not_come() {
    let mut run = Run::new(1);
    run.usual(30, Step::usual);
    for more in [5_000, 20_000, 10_000] {
        let mut step = Step::usual(run.next());
        step.forward[0] += more;
        run.step(step);
        run.usual(2, Step::usual);
    }
    run.step(Step { ends: false, ..Step::usual(run.next()) });
    run.ask(|_, explainer| {
        let numbers = |count| explainer.slowest(count).iter().map(|found| found.step.number).collect::<Vec<_>>();
        assert_eq!(numbers(5), [34, 37, 31]);
        assert_eq!(numbers(1), [34]);
        let (count, excess_ms) = explainer.slow();
        assert_eq!((count, excess_ms.round()), (3, 35.0));
        assert_eq!(explainer.recording().ranges(), [("engine_core-0", 1, 39, 39)]);
        assert!(explainer.step(40).is_empty() && explainer.recording().is_unfinished(40));
        assert!(explainer.step(77).is_empty() && !explainer.recording().is_unfinished(77));
    });
}

fn any_step() -> impl Strategy<Value = Step> {
    let times = (0u64..40_000, 0u64..5_000, 0u64..5_000, prop::collection::vec(0u64..60_000, 2), 0u64..9_000);
    let rest = (0u64..3_000, 0u64..9_000, 0u64..4_000, 1u32..40, 0u32..3_000);
    let happenings = (0u32..400, 0u64..3, any::<bool>(), prop::option::of(0u64..50_000), 0u64..40_000);
    (times, rest, happenings).prop_map(|(times, rest, (evicted, preempted, is_full, idle, pause))| {
        let (between, scheduling, preparation, forward, sampling) = times;
        let (bookkeeping, other, update, seqs, prefill) = rest;
        let prefill = prefill.saturating_sub(2_000);
        let place = if is_full { Where::Engine } else { Where::Worker };
        Step {
            idle: idle.filter(|idle| idle % 5 == 0),
            between,
            scheduling,
            preparation,
            forward,
            sampling,
            bookkeeping,
            other,
            update,
            seqs,
            tokens: seqs + prefill,
            prefill,
            prefill_seqs: u32::from(prefill > 0),
            descriptor: if is_full { FULL } else { "NONE" },
            pauses: vec![Pause { place, us: pause, generation: Some(pause % 3).filter(|_| pause % 7 > 0) }],
            evicted: Some(evicted),
            preempted: (0..preempted).collect(),
            admitted: vec![(preempted, prefill)],
            gpu: (seqs % 2 == 0).then_some(Gpu { idle_us: between + scheduling, forward_us: pause }),
            ends: evicted != 0,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn verdicts_never_explain_more_than_the_excess(steps in prop::collection::vec(any_step(), 1..80)) {
        let mut run = Run::new(2);
        for step in steps {
            run.step(step);
        }
        run.ask(|_, explainer| {
            let mut slow = 0;
            for number in 1..=explainer.recording().len() as u64 {
                for explanation in explainer.step(number) {
                    let found = said(&explanation);
                    slow += usize::from(found.status == Status::Slow);
                    let rest = explanation.causes.iter().find(|cause| matches!(cause.verdict, Verdict::Unknown(_)));
                    if let Some(rest) = rest {
                        prop_assert!(rest.explains_ms > 0.5 * explanation.excess_ms);
                    }
                    let parts: f64 = Part::ALL.iter().filter_map(|part| explanation.step.part(*part)).sum();
                    prop_assert!(parts + 1e-3 >= explanation.ms || explanation.step.is_on_gpu, "{:?}", explanation);
                }
            }
            prop_assert!(slow <= explainer.slow().0);
            Ok(())
        })?;
    }
}
