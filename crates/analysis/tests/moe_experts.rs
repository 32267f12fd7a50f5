//! The load of experts, from records of several workers, some of which are gone.

#![allow(clippy::unwrap_used, reason = "a test")]

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "../../session/tests/common/mod.rs"]
mod common;

use common::{Log, TICKS_PER_US};
use profilemate_analysis::moe_experts::{Interval, Summary};
use profilemate_analysis::{Row, analyze};
use profilemate_format::record::{Counted, ExpertLoad, Label, Payload, Record, pack_counts};
use profilemate_session::{Error, Session};

/// What is kept of a row.
type Seen = (u16, i64, u64, u64, Option<f64>, u64, String);

fn worker(rank: u32) -> Log {
    let mut log = Log::new("worker", rank, 0, 100 + rank, 1);
    log.fact("profiler:moe_expert_tracking", "on");
    log
}

/// A reading of a layer: its activations and, if any, its pairs.
fn reading(log: &mut Log, us: u64, layer: u16, tokens: u64, counts: &[u64], pairs: &[u64]) {
    let load = ExpertLoad {
        layer,
        experts: u16::try_from(counts.len()).unwrap(),
        top_k: 2,
        counting: u16::from(!pairs.is_empty()),
        interval_ticks: 500 * TICKS_PER_US,
        tokens,
        activations: counts.iter().sum(),
    };
    log.push(us, 7, Label::Work, 0, Payload::ExpertLoad(load));
    for (counted, counts) in [(Counted::Activations, counts), (Counted::Pairs, pairs)] {
        pack_counts(layer, counted, counts, |counts| {
            log.push(us, 7, Label::Work, 0, Payload::ExpertCounts(counts));
        });
    }
}

fn analyzed(logs: &[&Log]) -> (Vec<Seen>, Summary) {
    let folder = tempfile::tempdir().unwrap();
    let raw = folder.path().join("raw");
    std::fs::create_dir(&raw).unwrap();
    for log in logs {
        log.write(&raw);
    }
    let mut rows = Vec::new();
    let see = |of: &Interval<'_>| {
        let (spread, process) = (of.spread, of.process.to_owned());
        (
            of.layer,
            of.at_ns / 1000,
            of.interval_ns / 1000,
            of.tokens,
            spread.max_mean_ratio(),
            spread.idle,
            process,
        )
    };
    let answers = analyze::<Error>(&Session::open(folder.path()).unwrap(), |row| {
        if let Row::ExpertInterval(of) = row {
            rows.push(see(&of));
        }
        Ok(())
    })
    .unwrap();
    (rows, answers.moe_experts.unwrap())
}

#[test]
fn layers_are_sums_over_workers_and_each_interval_is_a_row() {
    let (mut first, mut second) = (worker(0), worker(1));
    reading(&mut first, 1_000, 3, 6, &[4, 8, 0], &[4, 0, 0]);
    reading(&mut second, 2_000, 3, 4, &[0, 2, 6], &[0, 0, 2]);
    // Another layer, of another stage.
    reading(&mut second, 2_000, 9, 1, &[1, 1], &[]);
    let (rows, summary) = analyzed(&[&first, &second]);
    assert_eq!(
        rows,
        [
            (3, 1_000, 500, 6, Some(2.0), 1, "worker-0".to_owned()),
            (3, 2_000, 500, 4, Some(2.25), 1, "worker-1".to_owned()),
            (9, 2_000, 500, 1, Some(1.0), 0, "worker-1".to_owned()),
        ]
    );
    let [layer, other] = &summary.layers[..] else { panic!("{summary:?}") };
    assert_eq!((layer.layer, layer.tokens, layer.intervals, &layer.counts[..]), (3, 10, 2, &[4, 10, 6][..]));
    let pairs: Vec<_> = layer.chosen_pairs().collect();
    assert_eq!(pairs, [([0, 1], 4), ([1, 2], 2)]);
    assert_eq!((other.pairs.is_none(), layer.weights.is_none(), summary.incomplete), (true, true, 0));
}

#[test]
fn a_reading_of_which_records_are_gone_counts_as_none() {
    let counts: Vec<u64> = (1000..1100).collect();
    for missing in 1..=6 {
        let mut log = worker(0);
        reading(&mut log, 1_000, 0, 7, &counts, &[]);
        let is_of_kind = |record: &&Record| matches!(record.payload, Payload::ExpertCounts(_));
        assert_eq!(log.records.iter().filter(is_of_kind).count(), 6);
        log.records.remove(missing);
        reading(&mut log, 2_000, 0, 1, &[2; 100], &[]);
        let (rows, summary) = analyzed(&[&log]);
        assert_eq!((rows.len(), summary.incomplete, summary.layers[0].tokens), (1, 1, 1), "{missing}");
        assert_eq!(summary.layers[0].counts, [2; 100]);
    }
    // The process was killed while it wrote.
    let mut log = worker(0);
    reading(&mut log, 1_000, 0, 7, &counts, &[]);
    log.records.pop();
    let (rows, summary) = analyzed(&[&log]);
    assert_eq!((rows.len(), summary.layers.len(), summary.incomplete), (0, 0, 1));
}

#[test]
fn layers_that_were_not_seen_are_named_unless_another_worker_saw_them() {
    let (mut first, mut second) = (worker(0), worker(1));
    first.fact("moe_layer:2", "not seen: the kernel X routes by itself and does not tell");
    first.fact("moe_layer:3", "not seen: not in moe_layers");
    first.fact("moe_layers", "4,5");
    first.fact("moe_layer:x", "not seen: nonsense");
    reading(&mut first, 1_000, 4, 1, &[1, 1], &[]);
    reading(&mut second, 1_000, 3, 1, &[1, 1], &[]);
    let (_, summary) = analyzed(&[&first, &second]);
    let blind: Vec<(u16, &str)> = summary.blind.iter().map(|(layer, why)| (*layer, why.as_str())).collect();
    assert_eq!(
        blind,
        [
            (2, "the kernel X routes by itself and does not tell"),
            (5, "its router was not heard of while others were"),
        ]
    );
}

#[test]
fn work_of_which_nothing_was_counted_is_explained() {
    let mut log = worker(0);
    log.fact("moe_layers", "4");
    assert_eq!(analyzed(&[&log]).1.blind, [], "nobody asked for anything");
    log.span(1_000, 100, 1, "forward", (1, 0), "");
    let blind = analyzed(&[&log]).1.blind;
    assert_eq!(blind, [(4, "killed within the first interval, or its router is not asked".to_owned())]);
}

#[test]
fn hostile_records_are_counted_as_far_as_they_go() {
    let mut log = worker(0);
    // Counts without a load, a load of no expert, a load with more activations than come, counts beyond the experts.
    pack_counts(8, Counted::Activations, &[1, 2, 3], |counts| {
        log.push(10, 1, Label::Work, 0, Payload::ExpertCounts(counts));
    });
    reading(&mut log, 20, 1, 3, &[], &[]);
    let load = ExpertLoad { layer: 2, experts: 2, top_k: 1, activations: u64::MAX, ..ExpertLoad::default() };
    log.push(30, 1, Label::Work, 0, Payload::ExpertLoad(load));
    pack_counts(2, Counted::Activations, &[1, 2, u64::MAX, u64::MAX], |counts| {
        log.push(30, 1, Label::Work, 0, Payload::ExpertCounts(counts));
    });
    let huge = ExpertLoad { layer: 5, experts: u16::MAX, top_k: 1, counting: 3, ..ExpertLoad::default() };
    log.push(40, 1, Label::Work, 0, Payload::ExpertLoad(huge));
    let (_, summary) = analyzed(&[&log]);
    let layer = summary.layers.iter().find(|layer| layer.layer == 5).unwrap();
    assert_eq!((layer.counts.len(), layer.pairs.is_none(), layer.weights.is_some()), (65_535, true, true));
}
