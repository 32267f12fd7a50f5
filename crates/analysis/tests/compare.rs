//! Comparisons of made-up runs whose truth is known. `examples/compare_simulation.rs` does it for many more.

#![allow(clippy::unwrap_used, reason = "a test")]

mod simulated;

use profilemate_analysis::compare::condition::{Condition, Outcome};
use profilemate_analysis::compare::{
    Comparison, Difference, Interval, Metric, NotJudged, Options, Run, Statistic, Times, compare,
};
use profilemate_analysis::steps::Phase;
use simulated::{Load, Shape, run};

fn metric(name: &str) -> Metric {
    Metric::parse(name).unwrap()
}

fn of<'a>(comparison: &'a Comparison, name: &str) -> &'a Difference {
    comparison.differences.iter().find(|difference| difference.metric == metric(name)).unwrap()
}

fn runs(shape: &Shape, count: u64, first_seed: u64) -> Vec<Run> {
    (0..count).map(|at| run(shape, first_seed + at)).collect()
}

fn plain(base: &[Run], candidate: &[Run]) -> Comparison {
    compare(base, candidate, &Options::default())
}

/// Some of what the example does, by the same seeds as it.
const PAIRS: u64 = 24;

#[test]
fn equal_runs_are_seldom_told_apart_and_two_percent_always() {
    let shape = Shape::default();
    let slower = Shape { factor: 1.02, ..shape };
    let (mut fired, mut found) = (0, 0);
    for pair in 0..PAIRS {
        let base = [run(&shape, 1000 * pair)];
        let same = plain(&base, &[run(&shape, 1000 * pair + 100)]);
        assert!(same.judged > 60, "a comparison that judges nothing fires never");
        fired += u64::from(same.detected().next().is_some());
        let changed = plain(&base, &[run(&slower, 1000 * pair + 100)]);
        found += u64::from(of(&changed, "decode.p50").is_detected);
    }
    assert!(20 * fired <= PAIRS, "{fired} of {PAIRS} equal pairs differ in some figure");
    assert!(10 * found >= 9 * PAIRS, "2 % are found in {found} of {PAIRS}");
}

#[test]
fn several_runs_tell_what_runs_differ_by() {
    // Half as much again as is looked for, and every run is its own.
    let shape = Shape { steps: 1500, run_to_run: 0.03, ..Shape::default() };
    let comparison = plain(&runs(&shape, 3, 10), &runs(&shape, 3, 20));
    assert!(comparison.knows_runs);
    assert_eq!(comparison.detected().count(), 0);
    let Interval { low, high } = of(&comparison, "decode.p50").interval.unwrap();
    assert!(low < -4.0 && high > 4.0, "{low} {high}");
    let alone = plain(&runs(&shape, 1, 10), &runs(&shape, 1, 20));
    let one = of(&alone, "decode.p50").interval.unwrap();
    assert!(one.high - one.low < 0.5 * (high - low), "one run does not know it");
    // Whoever knows better may say so.
    let options = Options { run_variation: 0.03, ..Options::default() };
    let told = compare(&runs(&shape, 1, 10), &runs(&shape, 1, 20), &options);
    let told = of(&told, "decode.p50").interval.unwrap();
    assert!(told.high - told.low > 3.0 * (one.high - one.low), "{told:?} {one:?}");
    assert!(told.high > 8.0, "{told:?}");
}

#[test]
fn a_run_and_itself_do_not_differ() {
    let base = [run(&Shape { steps: 1000, ..Shape::default() }, 5)];
    let comparison = plain(&base, &base);
    assert_eq!(comparison.detected().count(), 0);
    assert!(comparison.differences.iter().all(|difference| difference.change.is_none_or(|change| change == 0.0)));
    assert!(comparison.effects.iter().all(|effect| effect.delta == 0.0), "{:?}", comparison.effects);
}

#[test]
fn what_is_found_has_its_size_and_direction() {
    let shape = Shape { steps: 2000, ..Shape::default() };
    let slower = Shape { factor: 1.2, ..shape };
    let comparison = plain(&[run(&shape, 1)], &[run(&slower, 2)]);
    let decode = of(&comparison, "decode.p50");
    let Interval { low, high } = decode.interval.unwrap();
    assert!(low < 20.0 && 20.0 < high && high - low < 4.0, "{low} {high}");
    assert_eq!(decode.is_better(), Some(false));
    assert_eq!(of(&comparison, "throughput.tokens_per_sec").is_better(), Some(false));
    assert!(of(&comparison, "throughput.tokens_per_sec").change.unwrap() < -10.0);
    assert_eq!(of(&comparison, "decode.tokens_per_sec").is_better(), Some(false));
    assert!(!of(&comparison, "scheduling.p50").is_detected);
    let effect = comparison.effects.iter().find(|effect| effect.times == Times::Forward(Phase::Decode)).unwrap();
    assert!(effect.delta > 0.9 && effect.is_detected && effect.word() == "large", "{effect:?}");
    // The other way about, it is better by as much.
    let back = plain(&[run(&slower, 2)], &[run(&shape, 1)]);
    let change = of(&back, "decode.p50").change.unwrap();
    let factor = (1.0 + decode.change.unwrap() / 100.0) * (1.0 + change / 100.0);
    assert!((factor - 1.0).abs() < 1e-9 && of(&back, "decode.p50").is_better() == Some(true));
}

#[test]
fn conditions_are_judged_among_themselves() {
    let shape = Shape { steps: 2000, ..Shape::default() };
    let slower = Shape { factor: 1.1, ..shape };
    let conditions: Vec<Condition> = [
        "decode.p50 > 5%",
        "decode.p50 > 20%",
        "decode.p50 > 10%",
        "kv.peak_pct > 1pp",
        "detokenization.p50 < -5%",
    ]
    .map(|text| Condition::parse(text).unwrap())
    .to_vec();
    let options = Options { conditions, ..Options::default() };
    let comparison = compare(&[run(&shape, 1)], &[run(&slower, 2)], &options);
    let outcomes: Vec<Outcome> = comparison.verdicts.iter().map(|verdict| verdict.outcome).collect();
    let extreme = Outcome::NotJudged(NotJudged::Extreme);
    assert_eq!(
        outcomes,
        [Outcome::Holds, Outcome::DoesNotHold, Outcome::Undecided, extreme, Outcome::DoesNotHold]
    );
    // Five conditions need less room than all metrics.
    let width = |interval: Interval| interval.high - interval.low;
    let of_table = width(of(&comparison, "decode.p50").interval.unwrap());
    assert!(width(comparison.verdicts[0].interval.unwrap()) < of_table);
    let nothing = Condition::parse("tokenization.p50 > 5%").unwrap();
    let options = Options { conditions: vec![nothing], ..Options::default() };
    let comparison = compare(&[run(&shape, 1)], &[run(&slower, 2)], &options);
    assert_eq!(comparison.verdicts[0].outcome, Outcome::NotThere);
}

#[test]
fn the_same_seed_gives_the_same_comparison() {
    let shape = Shape { steps: 1000, load: Load::Random, ..Shape::default() };
    let compare = |seed| compare(&[run(&shape, 1)], &[run(&shape, 2)], &Options { seed, ..Options::default() });
    assert_eq!(compare(3), compare(3));
    assert_ne!(compare(3).reach.to_bits(), 0);
}

#[test]
fn extremes_of_several_runs_are_judged_and_those_of_one_are_not() {
    let shape = Shape { steps: 1000, ..Shape::default() };
    let one = plain(&runs(&shape, 1, 1), &runs(&shape, 1, 11));
    assert_eq!(of(&one, "kv.peak_pct").interval, Err(NotJudged::Extreme));
    let several = plain(&runs(&shape, 3, 1), &runs(&shape, 3, 11));
    let interval = of(&several, "kv.peak_pct").interval.unwrap();
    assert!(interval.low < 0.0 && interval.high > 0.0);
}

#[test]
fn other_loads_are_noticed() {
    let shape = Shape { steps: 2000, ..Shape::default() };
    let other = Shape { load: Load::Random, ..shape };
    let comparison = plain(&[run(&shape, 1)], &[run(&other, 2)]);
    let names: Vec<&str> = comparison.loads.iter().map(|load| load.what).collect();
    assert!(names.contains(&"sequences per step"), "{names:?}");
    assert!(plain(&[run(&shape, 1)], &[run(&shape, 2)]).loads.is_empty());
}

#[test]
fn figures_are_those_that_the_samples_have() {
    let run = run(&Shape { steps: 1000, ..Shape::default() }, 9);
    let times = Times::Forward(Phase::Decode);
    let values: Vec<f64> = run.milliseconds(times).collect();
    // Fewer than a sketch has room for: these are all samples.
    assert!(values.len() < 1000);
    let middle = (values.len() - 1) as f64 / 2.0;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
    let median = f64::midpoint(values[middle.floor() as usize], values[middle.ceil() as usize]);
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let value = |statistic| run.value(Metric::Time(times, statistic)).unwrap();
    assert!((value(Statistic::P50) - median).abs() < 1e-9);
    assert!((value(Statistic::Mean) - mean).abs() < 1e-9);
}

#[test]
fn every_metric_is_described() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/compare.md")).unwrap();
    for metric in Metric::all() {
        let name = match metric {
            // Those of the CPU are described where their table is.
            Metric::Time(Times::Cpu(_), _) => continue,
            Metric::Time(times, _) => times.text().to_owned(),
            _ => metric.name(),
        };
        assert!(text.contains(&format!("`{name}`")), "{name}");
    }
}
