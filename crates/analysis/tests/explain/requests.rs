//! Requests.

use profilemate_analysis::explain::requests::{
    Found, RequestExplanation, RequestPart, RequestVerdict, What, find,
};
use profilemate_analysis::explain::{Status, Verdict};

use crate::life::Life;
use crate::run::{Run, Step};

/// Twenty usual requests and this one, while the engine takes steps of ten milliseconds, some of them slow.
fn asked<R>(life: Life, wanted: &str, question: impl FnOnce(&Found<'_>) -> R) -> R {
    let mut run = Run::new(1);
    for number in 1..=20 {
        Life::usual(number).write(&mut run);
    }
    life.write(&mut run);
    while run.now < 400_000 {
        let mut step = Step::usual(run.next());
        if run.next() == 12 {
            step.forward[0] += 25_000;
        }
        run.step(step);
    }
    run.ask(|session, explainer| {
        let found = find(session, explainer, |id| id == wanted).unwrap();
        question(&found)
    })
}

fn one<R>(life: Life, question: impl FnOnce(&RequestExplanation<'_>) -> R) -> R {
    let id = life.id.clone();
    asked(life, &id, |found| {
        let [explanation] = found.requests.as_slice() else { panic!("{found:?}") };
        let explained: f64 = explanation.causes.iter().map(|cause| cause.explains_ms).sum();
        assert!(explained <= explanation.excess_ms + 1e-6, "{explanation:?}");
        question(explanation)
    })
}

fn verdicts(explanation: &RequestExplanation<'_>) -> Vec<(&'static str, f64)> {
    let causes = explanation.causes.iter();
    causes.map(|cause| (cause.verdict.text(), (cause.explains_ms * 10.0).round() / 10.0)).collect()
}

#[test]
fn a_request_like_the_others_is_as_usual() {
    one(Life::usual(21), |found| {
        assert_eq!((found.status, found.causes.len()), (Status::AsUsual, 0));
        assert_eq!((found.ms, found.compared_with), (Some(123.0), 21));
        let parts: Vec<_> = found.parts.iter().map(|part| (part.part.text(), part.ms.round())).collect();
        let expected =
            [("arriving", 1.0), ("queued", 2.0), ("prefill", 20.0), ("preempted", 0.0), ("decode", 100.0)];
        assert_eq!(parts, expected);
        let moments: Vec<_> = found.timeline.iter().map(|moment| moment.what.text()).collect();
        assert_eq!(moments, ["arrived", "queued", "started", "first_token", "finished"]);
    });
}

#[test]
fn each_part_that_was_longer_is_the_reason() {
    type Case = (fn(&mut Life), &'static str, f64);
    let cases: [Case; 4] = [
        (|life| life.arriving += 50_000, "slow_arrival", 50.0),
        (|life| life.queued += 50_000, "queued", 50.0),
        (|life| life.prefill += 50_000, "slow_prefill", 50.0),
        (|life| life.per_token += 5_000, "slow_decode", 50.0),
    ];
    for (change, verdict, ms) in cases {
        let mut life = Life::usual(21);
        change(&mut life);
        one(life, |found| assert_eq!(verdicts(found), [(verdict, ms)]));
    }
    // A little longer is usual.
    one(Life { queued: 9_000, ..Life::usual(21) }, |found| assert_eq!(found.status, Status::AsUsual));
}

#[test]
fn a_preemption_is_the_reason_for_its_own_time_only() {
    let life = Life { preempted: 60_000, queued: 42_000, ..Life::usual(21) };
    one(life, |found| {
        assert_eq!(verdicts(found), [("preempted", 60.0), ("queued", 40.0)]);
        assert_eq!(found.causes[0].verdict, RequestVerdict::Preempted(1));
        let decode = found.parts.iter().find(|part| part.part == RequestPart::Decode).unwrap();
        assert_eq!(decode.ms, 100.0);
        let what: Vec<&What> = found.timeline.iter().map(|moment| &moment.what).collect();
        let preempted = What::Preempted {
            reason: "kv_cache_full".to_owned(),
            computed_tokens: 105,
            beneficiary: String::new(),
        };
        assert_eq!(what[4], &preempted);
        assert_eq!(what[5], &What::Resumed { cached_tokens: 0, delay_ms: Some(60.0) });
    });
    // Preempted, but not for long: something else is the reason.
    let life = Life { preempted: 3_000, queued: 62_000, ..Life::usual(21) };
    one(life, |found| assert_eq!(verdicts(found), [("queued", 60.0)]));
}

#[test]
fn more_to_do_is_no_slowness() {
    let life = Life { output: 31, ..Life::usual(21) };
    one(life, |found| {
        assert_eq!(verdicts(found), [("long_output", 200.0)]);
        assert_eq!(found.causes[0].verdict, RequestVerdict::LongOutput(31, 11.0));
    });
    // Long, and each token took longer, too.
    let life = Life { output: 31, per_token: 12_000, ..Life::usual(21) };
    one(life, |found| assert_eq!(verdicts(found), [("long_output", 200.0), ("slow_decode", 60.0)]));
}

#[test]
fn the_slow_steps_that_it_was_in() {
    one(Life::usual(21), |found| {
        let (steps, slow, excess_ms) = found.steps;
        assert_eq!((slow, excess_ms.round()), (1, 25.0));
        assert!(steps > 8, "{steps}");
        let [step] = found.slow_steps.as_slice() else { panic!("{:?}", found.slow_steps) };
        assert_eq!(step.step.number, 12);
        assert!(matches!(step.causes[0].verdict, Verdict::Unknown(_)));
    });
    // It came when that was over.
    let late = Life { arrived: 250_000, ..Life::usual(21) };
    one(late, |found| assert_eq!((found.steps.1, found.slow_steps.len()), (0, 0)));
    // It was preempted meanwhile.
    let life = Life { arrived: 10_000, preempted: 150_000, ..Life::usual(21) };
    one(life, |found| assert_eq!(found.steps.1, 0, "{:?}", found.timeline));
}

#[test]
fn requests_are_found_by_either_name() {
    let life = Life { client_id: Some("mine".to_owned()), ..Life::usual(21) };
    asked(life.clone(), "mine", |found| {
        assert_eq!((found.matching, found.total, found.requests.len()), (1, 21, 1));
        assert_eq!(found.requests[0].request_id, "request-21");
        assert_eq!(found.requests[0].timeline.len(), 5);
    });
    asked(life.clone(), "request-21", |found| {
        assert_eq!(found.requests[0].client_request_id, "mine");
    });
    asked(life, "nobody", |found| {
        assert_eq!((found.matching, found.requests.len(), found.is_recorded), (0, 0, true));
        assert_eq!(found.examples.clone().unwrap().0, "request-1");
    });
}

#[test]
fn a_request_that_is_not_over_has_a_timeline_and_no_verdict() {
    one(Life { ends: false, ..Life::usual(21) }, |found| {
        assert_eq!((found.ms, found.status, found.causes.len()), (None, Status::TooFew, 0));
        let moments: Vec<_> = found.timeline.iter().map(|moment| moment.what.text()).collect();
        assert_eq!(moments, ["arrived", "queued", "started", "first_token"]);
    });
}
