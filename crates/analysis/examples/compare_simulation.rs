//! How often `compare` is wrong, over made-up runs whose truth is known.
//!
//! ```text
//! cargo run --release -p profilemate-analysis --example compare_simulation -- [PAIRS] [STEPS] [SHAPE]
//! ```
//! For each shape of run: how often two equal sides differ in any of all metrics, and how often two sides are told apart whose
//! forward passes differ by 2 %, in the metric `decode.p50`; the same for the condition `decode.p50 > 0%`, which is judged alone.
//! The promise: at most 5 % of 200, and at least 90 %.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a program for developers that may stop anywhere")]

#[path = "../tests/simulated/mod.rs"]
mod simulated;

use std::collections::BTreeMap;

use profilemate_analysis::compare::condition::{Condition, Outcome};
use profilemate_analysis::compare::{Comparison, Metric, Options, Run, compare};
use simulated::{Load, Shape, run};

#[derive(Default)]
struct Found {
    /// Pairs of equal sides in which anything was detected.
    fired: usize,
    /// How often each metric was.
    metrics: BTreeMap<String, usize>,
    judged: usize,
    /// Mean reach of intervals, standard errors.
    reach: f64,
    /// Mean half width of the interval of `decode.p50`, percent.
    half: f64,
    /// Pairs of unequal sides in which `decode.p50` was detected, among all metrics.
    told_apart: usize,
    /// Pairs in which `--fail-on 'decode.p50 > 0%'` holds: equal sides, and unequal ones.
    holds: [usize; 2],
}

fn pairs(shape: &Shape, runs: u64, pairs: u64) -> Found {
    let mut found = Found::default();
    let decode_p50 = Metric::parse("decode.p50").unwrap();
    let decode = |comparison: &Comparison| {
        comparison.differences.iter().find(|difference| difference.metric == decode_p50).unwrap().clone()
    };
    let condition = Condition::parse("decode.p50 > 0%").unwrap();
    let options = Options { conditions: vec![condition], ..Options::default() };
    let holds = |comparison: &Comparison| usize::from(comparison.verdicts[0].outcome == Outcome::Holds);
    let slower = Shape { factor: 1.02 * shape.factor, ..*shape };
    for pair in 0..pairs {
        let side = |shape: &Shape, side: u64| -> Vec<Run> {
            (0..runs).map(|at| run(shape, 1000 * pair + 100 * side + at)).collect()
        };
        let base = side(shape, 0);
        let same = compare(&base, &side(shape, 1), &options);
        found.fired += usize::from(same.detected().next().is_some());
        for difference in same.detected() {
            *found.metrics.entry(difference.metric.name()).or_default() += 1;
        }
        found.judged = same.judged;
        found.reach += same.reach / pairs as f64;
        let interval = decode(&same).interval.unwrap();
        found.half += (interval.high - interval.low) / 2.0 / pairs as f64;
        let changed = compare(&base, &side(&slower, 1), &options);
        found.told_apart += usize::from(decode(&changed).is_detected);
        found.holds[0] += holds(&same);
        found.holds[1] += holds(&changed);
    }
    found
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let count: u64 = arguments.next().map_or(200, |count| count.parse().unwrap());
    let steps: usize = arguments.next().map_or(4000, |steps| steps.parse().unwrap());
    let only: Option<usize> = arguments.next().map(|only| only.parse().unwrap());
    let plain = Shape { steps, ..Shape::default() };
    let slower_drift = Shape { drift: 0.006, drift_memory: 0.998, ..plain };
    let apart = Shape { run_to_run: 0.003, ..plain };
    println!("{count} pairs of sides, {steps} steps a run\n");
    println!(
        "{:>4}  {:<24}{:>10}{:>10}{:>20}{:>9}{:>7}  interval",
        "runs", "shape", "A/A fires", "2 % found", "condition: A/A, 2 %", "metrics", "reach"
    );
    let shapes = [
        (1, "full load", plain),
        (1, "full load, slower drift", slower_drift),
        (1, "replayed requests", Shape { load: Load::Replayed, ..plain }),
        (1, "random requests", Shape { load: Load::Random, ..plain }),
        (1, "runs differ by 0.3 %", apart),
        (2, "runs differ by 0.3 %", apart),
        (3, "runs differ by 0.3 %", apart),
        (5, "runs differ by 0.3 %", apart),
        (3, "runs differ by 1 %", Shape { run_to_run: 0.01, ..plain }),
    ];
    for (at, (runs, name, shape)) in shapes.into_iter().enumerate() {
        if only.is_some_and(|only| only != at) {
            continue;
        }
        let found = pairs(&shape, runs, count);
        let share = |pairs: usize| format!("{:.1} %", 100.0 * pairs as f64 / count as f64);
        println!(
            "{runs:>4}  {name:<24}{:>10}{:>10}{:>20}{:>9}{:>7.2}  ± {:.2} %",
            share(found.fired),
            share(found.told_apart),
            format!("{}, {}", share(found.holds[0]), share(found.holds[1])),
            found.judged,
            found.reach,
            found.half,
        );
        let mut fired: Vec<(&String, &usize)> = found.metrics.iter().collect();
        fired.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let fired: Vec<String> = fired.iter().take(6).map(|(metric, count)| format!("{metric} {count}")).collect();
        if !fired.is_empty() {
            println!("{:>6}fired: {}", "", fired.join(", "));
        }
    }
}
