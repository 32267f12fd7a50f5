//! What `profilemate explain` says of a session that has every cause in it.

#![allow(clippy::unwrap_used, reason = "a test")]

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "../../session/tests/common/mod.rs"]
mod common;
#[allow(dead_code, reason = "other tests use the rest")]
#[path = "../../analysis/tests/explain/life.rs"]
mod life;
#[allow(dead_code, reason = "other tests use the rest")]
#[path = "../../analysis/tests/explain/run.rs"]
mod run;

use std::path::Path;

use life::Life;
use profilemate_analysis::explain::requests::find;
use profilemate_analysis::explain::{Explainer, Recording};
use profilemate_output::{explanation, text};
use profilemate_session::Session;
use run::{Pause, Run, Step, Where};

const HOSTILE: &str = "=cmd|' /C calc'!A0,\"<script>\n\r\u{1b}[31m\u{202e}evil\u{0}\u{2066}\u{9b}";

/// A step that is changed, and usual ones after it.
fn step(run: &mut Run, made: Step, change: impl FnOnce(&mut Step)) {
    let mut made = made;
    change(&mut made);
    run.step(made);
    run.usual(2, two);
}

/// Usual steps of two workers.
fn two(number: u64) -> Step {
    let usual = Step::usual(number);
    Step { forward: vec![usual.forward[0], usual.forward[0] + 10], ..usual }
}

fn mixed(number: u64, prompt: u32) -> Step {
    let usual = Step::mixed(number, prompt);
    Step { forward: vec![usual.forward[0], usual.forward[0] + 10], ..usual }
}

/// One of everything.
fn everything() -> Run {
    let mut run = Run::new(2);
    for number in 1..=20 {
        Life::usual(number).write(&mut run);
    }
    let hostile = Life { id: HOSTILE.to_owned(), client_id: Some(format!("{HOSTILE}~")), ..Life::usual(21) };
    Life { preempted: 80_000, queued: 42_000, output: 21, ..hostile }.write(&mut run);
    Life { ends: false, ..Life::usual(22) }.write(&mut run);
    run.step(Step { descriptor: "NONE", ..two(1) });
    run.usual(40, two);
    for _ in 0..9 {
        run.step(mixed(run.next(), 512));
        run.usual(1, two);
    }
    let next = |run: &Run| two(run.next());
    let made = next(&run);
    step(&mut run, made, |step| {
        step.scheduling += 31_000;
        let (place, generation) = (Where::Engine, Some(2));
        step.pauses = vec![Pause { place, us: 30_500, generation }];
    });
    let made = next(&run);
    step(&mut run, made, |step| {
        step.forward[0] += 200_000;
        step.pauses = vec![Pause { place: Where::Worker, us: 190_000, generation: None }];
    });
    let made = next(&run);
    step(&mut run, made, |step| {
        step.descriptor = "NONE";
        step.forward.iter_mut().for_each(|forward| *forward += 7_000);
    });
    let made = next(&run);
    step(&mut run, made, |step| {
        step.scheduling += 8_000;
        step.preempted = vec![901, 902];
    });
    let made = mixed(run.next(), 512);
    step(&mut run, made, |step| step.admitted = vec![(901, 400), (902, 50)]);
    let made = next(&run);
    step(&mut run, made, |step| {
        step.scheduling += 9_000;
        step.evicted = Some(1_300);
    });
    let made = next(&run);
    step(&mut run, made, |step| step.forward[1] += 12_000);
    let made = next(&run);
    step(&mut run, made, |step| step.between += 15_000);
    let made = next(&run);
    step(&mut run, made, |step| {
        step.descriptor = "FULL num_tokens=8 num_reqs=8 uniform=1 has_lora=1";
        step.preparation += 40_000;
    });
    let made = next(&run);
    step(&mut run, made, |step| step.bookkeeping += 6_000);
    run
}

fn assert_fits(text: &str) {
    for line in text.split('\n') {
        assert_eq!(text::visible(line), line);
        assert!(line.chars().count() <= 80, "wider than 80 columns: {line}");
    }
}

#[test]
fn the_slowest_steps_of_everything() {
    everything().ask(|_, explainer| {
        let found = explainer.slowest(30);
        let text = explanation::slowest(explainer, &found);
        assert_fits(&text);
        insta::assert_snapshot!("slowest", text);
        // Every cause is there.
        let json = text::json(&explanation::slowest_json(explainer, &explainer.slowest(2)));
        insta::assert_snapshot!("slowest_json", json);
    });
}

#[test]
fn one_step() {
    everything().ask(|_, explainer| {
        let mixed = explainer.slowest(30).into_iter().find(|found| found.step.resumed > 0).unwrap();
        let (number, usual) = (mixed.step.number, explainer.step(20));
        let text = explanation::steps(&explainer.step(number)) + "\n" + &explanation::steps(&usual);
        assert_fits(&text);
        insta::assert_snapshot!("step", text);
    });
}

#[test]
fn one_request_with_a_hostile_name() {
    everything().ask(|session, explainer| {
        // As it is, and as it is shown.
        let shown = text::visible(HOSTILE).into_owned();
        for wanted in [HOSTILE, shown.as_str()] {
            let found = find(session, explainer, |id| id == wanted || text::visible(id) == wanted).unwrap();
            let text = explanation::requests(&found);
            assert_fits(&text);
            insta::assert_snapshot!("request", text);
            let json = text::json(&explanation::requests_json(&found));
            for line in json.split('\n') {
                assert_eq!(text::visible(line), line);
            }
            let value: serde_json::Value = serde_json::from_str(&json).unwrap();
            assert_eq!(value["requests"][0]["request_id"], HOSTILE);
            insta::assert_snapshot!("request_json", json);
        }
        let open = find(session, explainer, |id| id == "request-22").unwrap();
        insta::assert_snapshot!("open_request", explanation::requests(&open));
    });
}

#[test]
fn a_quiet_session_says_so() {
    let mut run = Run::new(1);
    run.usual(20, Step::usual);
    run.ask(|_, explainer| {
        let text = explanation::slowest(explainer, &explainer.slowest(5));
        assert_eq!(text, "none of 20 steps took longer than usual\n");
        let json = explanation::slowest_json(explainer, &[]);
        assert_eq!(json["slow_steps"], 0);
    });
}

/// The golden sessions, those of real runs among them.
#[test]
fn golden_sessions() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../session/tests/golden/v1");
    for name in [
        "server",
        "single_process",
        "parallel",
        "gpu",
        "real_decode",
        "real_prefill",
        "real_preempting",
        "real_gpu",
    ] {
        let session = Session::open(&golden.join(name)).unwrap();
        let recording = Recording::read(&session).unwrap();
        let explainer = Explainer::new(&recording);
        let slowest = explanation::slowest(&explainer, &explainer.slowest(3));
        assert_fits(&slowest);
        let step = explanation::steps(&explainer.step(20));
        assert_fits(&step);
        insta::assert_snapshot!(format!("golden_{name}"), format!("{slowest}\n{step}"));
        if name == "real_gpu" {
            // Steps in flight: the results of 13 and 15 lay there while the next step was launched; 14 and 16 had gone before.
            let in_flight: Vec<_> = (13..=16).flat_map(|number| explainer.step(number)).collect();
            let text = explanation::steps(&in_flight);
            assert_fits(&text);
            insta::assert_snapshot!("golden_real_gpu_in_flight", text);
        }
        let requests = find(&session, &explainer, |id| id.starts_with("cmpl-pressed-5-")).unwrap();
        if name == "real_preempting" {
            let text = explanation::requests(&requests);
            assert_fits(&text);
            insta::assert_snapshot!(format!("golden_{name}_request"), text);
        }
    }
}
