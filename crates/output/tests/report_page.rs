//! The page of a session: what is on it, and that it stays small without losing what stands out.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use profilemate_analysis::batch::{Batch, Limits};
use profilemate_analysis::cpu::{Operation, Remark};
use profilemate_analysis::forward::{Pass, Timing};
use profilemate_analysis::kv_cache::Usage;
use profilemate_analysis::layers::Interval;
use profilemate_analysis::moe_experts;
use profilemate_analysis::steps::Phase;
use profilemate_analysis::{Answers, Row, analyze};
use profilemate_output::html::{self, Report};
use profilemate_session::{Error, Name, Session};
use serde_json::Value;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../session/tests/golden/v1").join(name)
}

fn page(name: &str) -> String {
    let session = Session::open(&golden(name)).unwrap();
    let mut report = Report::default();
    let answers = analyze::<Error>(&session, |row| {
        report.see(&row);
        Ok(())
    })
    .unwrap();
    report.finish(&session, &answers)
}

/// What the page shows.
fn data(page: &str) -> Value {
    let data = page.split_once("id=\"data\">").unwrap().1.split_once("</script>").unwrap().0;
    serde_json::from_str(data).unwrap()
}

fn blocks(data: &Value) -> impl Iterator<Item = &Value> {
    data["sections"].as_array().unwrap().iter().flat_map(|section| section["blocks"].as_array().unwrap())
}

fn sections(data: &Value) -> Vec<&str> {
    data["sections"].as_array().unwrap().iter().map(|section| section["id"].as_str().unwrap()).collect()
}

#[test]
fn every_section_is_there() {
    let all = [
        "findings",
        "breakdown",
        "latency",
        "throughput",
        "batches",
        "waterfall",
        "preemptions",
        "kv-cache",
        "steps",
        "profiler",
        "session",
    ];
    let real = data(&page("real_preempting"));
    assert_eq!(sections(&real), all);
    // One with a GPU has CUDA graphs, too.
    assert!(sections(&data(&page("gpu"))).contains(&"cuda-graphs"));
    let titles: BTreeSet<&str> = blocks(&real).filter_map(|block| block["title"].as_str()).collect();
    for title in [
        "Wall time of the run",
        "Engine steps",
        "What the time of requests consists of",
        "Time to first token",
        "Tokens per second",
        "Requests in the scheduler",
        "What kept batches from being larger",
        "What limited batches, over time",
        "Share of the limit in use",
        "Requests over time",
        "Preemptions over time",
        "Usage",
        "Engine step",
        "Forward pass by phase",
        "Time in the probes",
        "Facts",
        "Processes",
    ] {
        assert!(titles.contains(title), "{title} is missing: {titles:?}");
    }
    let kinds: BTreeSet<&str> = blocks(&real).map(|block| block["kind"].as_str().unwrap()).collect();
    assert!(["table", "chart", "histogram", "waterfall"].iter().all(|kind| kinds.contains(kind)), "{kinds:?}");
}

#[test]
fn numbers_are_those_of_the_answers() {
    let session = Session::open(&golden("real_preempting")).unwrap();
    let mut waits = Vec::new();
    let answers = analyze::<Error>(&session, |row| {
        if let Row::Batch(batch) = row {
            waits.push((batch.start_ns, batch.running, batch.waiting));
        }
        Ok(())
    })
    .unwrap();
    let data = data(&page("real_preempting"));
    let found = |title: &str, kind: &str| {
        blocks(&data).find(|block| block["title"] == title && block["kind"] == kind).unwrap()
    };
    // Few steps are all there, each where it was.
    let queue = found("Requests in the scheduler", "chart");
    assert!(queue.get("means").is_none());
    let number = |value: &Value| value.as_f64().unwrap();
    let shown: Vec<(f64, f64, f64)> = (0..queue["x"].as_array().unwrap().len())
        .map(|at| (number(&queue["x"][at]), number(&queue["y"][0][at]), number(&queue["y"][1][at])))
        .collect();
    waits.sort_unstable();
    assert_eq!(shown.len(), waits.len());
    for ((at, running, waiting), (at_ns, expected_running, expected_waiting)) in shown.into_iter().zip(waits) {
        assert!((at - at_ns as f64 / 1e9).abs() < 1e-4, "{at} {at_ns}");
        assert_eq!(
            (running, waiting),
            (f64::from(expected_running.unwrap()), f64::from(expected_waiting.unwrap()))
        );
    }
    let ttft = answers.requests.unwrap().ttft.unwrap();
    let row = &found("Percentiles", "table")["rows"][0];
    assert_eq!(row[0], "Time to first token, s");
    assert!((number(&row[3]) - ttft.p50).abs() < 1e-6 * ttft.p50, "{row}");
    let samples = found("Time to first token", "histogram")["counts"].as_array().unwrap();
    assert_eq!(samples.iter().map(|count| count.as_u64().unwrap()).sum::<u64>(), ttft.count);
}

/// A number of a cell of a table or of a map.
fn cell(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

#[test]
fn what_is_inside_of_forward_passes_is_that_of_the_rows() {
    let session = Session::open(&golden("layers")).unwrap();
    let mut sums: std::collections::BTreeMap<(String, String, u32), (u64, u64)> =
        std::collections::BTreeMap::new();
    let answers = analyze::<Error>(&session, |row| {
        let interval = match row {
            Row::Layer(interval) => interval,
            Row::Collective(collective) => collective.interval,
            _ => return Ok(()),
        };
        if let Some(layer) = interval.layer {
            let key = (interval.component.to_owned(), interval.kind.to_owned(), layer);
            let (sum, count) = sums.entry(key).or_default();
            (*sum, *count) = (*sum + interval.duration_ns, *count + 1);
        }
        Ok(())
    })
    .unwrap();
    let data = data(&page("layers"));
    let found = |title: &str| blocks(&data).find(|block| block["title"] == title).unwrap();
    let map = found("Mean time by layer");
    assert_eq!(map["kind"], "heat_map");
    let layers: Vec<u32> =
        map["columns"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().parse().unwrap()).collect();
    let mut seen = 0;
    for (row, name) in map["rows"].as_array().unwrap().iter().enumerate() {
        let name = name.as_str().unwrap();
        for (column, layer) in layers.iter().enumerate() {
            let is_it = |key: &&(String, String, u32)| {
                let component = key.0.replace('_', " ");
                key.2 == *layer && (name == component || name == format!("{component}, {}", key.1))
            };
            let value = &map["values"][row][column];
            match sums.keys().find(is_it) {
                Some(key) => {
                    let (sum, count) = sums[key];
                    let mean_us = sum as f64 / 1e3 / count as f64;
                    assert!((cell(value) - mean_us).abs() < 1e-5 * mean_us, "{key:?}: {value}");
                    seen += 1;
                }
                None => assert!(value.is_null(), "{name} of layer {layer} was not timed: {value}"),
            }
        }
    }
    assert_eq!(seen, sums.len());
    let summary = answers.layers.unwrap();
    let parts = found("What forward passes consist of");
    assert!(parts["note"].as_str().unwrap().starts_with("An estimate"));
    let rows = parts["rows"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row[0].as_str().unwrap()).collect();
    assert_eq!(names, ["attention", "moe", "collectives", "rest"]);
    assert!((rows.iter().map(|row| cell(&row[1])).sum::<f64>() - 100.0).abs() < 1e-3, "{rows:?}");
    let mean_ms = summary.forward.forward_ns / 1e6 / summary.forward.passes as f64;
    assert!((rows.iter().map(|row| cell(&row[2])).sum::<f64>() - mean_ms).abs() < 1e-5);
    assert_eq!(found("Parts of the model, one layer")["rows"].as_array().unwrap().len(), summary.components.len());
    assert_eq!(found("Collectives, one call")["rows"].as_array().unwrap().len(), summary.collectives.len());
}

#[test]
fn experts_are_drawn_by_the_mean_of_their_layer() {
    let data = data(&page("real_experts"));
    let map = blocks(&data).find(|block| block["kind"] == "heat_map").unwrap();
    assert_eq!(map["across"], "expert");
    for row in map["values"].as_array().unwrap() {
        let values: Vec<f64> = row.as_array().unwrap().iter().map(cell).collect();
        assert_eq!(values.len(), 16);
        // Each was rounded to a thousandth.
        assert!((values.iter().sum::<f64>() / 16.0 - 1.0).abs() < 5e-4, "{values:?}");
    }
}

/// Numbers that look random and are the same in every run.
fn scatter(value: u64) -> u64 {
    let mixed = (value ^ value >> 31).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ mixed >> 29
}

/// An hour of steps in which nothing is like what was before, on four pools, with one that stands out.
fn busy_hour(report: &mut Report) {
    const REASONS: [&str; 16] =
        ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "<script>"];
    let count = |random: u64, most: u64| u32::try_from(random % most).unwrap();
    for step in 0..360_000_u64 {
        let random = scatter(step);
        let start_ns = i64::try_from(step * 10_000_000 + random % 1_000_000).unwrap();
        let duration_ns = if step == 77_777 { 9_876_543_210 } else { 5_000_000 + random % 40_000_000 };
        let phase = Phase::ALL[usize::try_from(random % 3).unwrap()];
        report.see(&Row::Batch(Batch {
            start_ns,
            num_seqs: count(random >> 8, 257),
            num_tokens: count(random >> 16, 8193),
            limits: Some(Limits { max_num_seqs: 256, max_num_tokens: 8192 }),
            phase,
            running: Some(count(random >> 8, 257)),
            waiting: Some(count(random >> 24, 10_000)),
            prefill_tokens: count(random >> 32, 100),
            step: Some(step),
            process: "engine_core-0",
            log: 0,
            limited_by: Some(REASONS[usize::try_from(random % 16).unwrap()]),
        }));
        report.see(&Row::Cpu(Operation {
            start_ns,
            name: Name::EngineStep,
            duration_ns,
            remark: Remark::None,
            step: Some(step),
            process: "engine_core-0",
        }));
        report.see(&Row::Forward(Pass {
            start_ns,
            phase: Some(phase),
            batch_size: Some(1),
            num_tokens: Some(1),
            duration_ns: Some(duration_ns),
            prefill_tokens: Some(0),
            descriptor: None,
            padded_tokens: None,
            gpu_idle_ns: Some(random % 3_000_000),
            gpu_encoder_ns: None,
            gpu_encoder_after_ns: None,
            gpu_busy_ns: None,
            gpu_start: None,
            sample_ns: None,
            draft_ns: None,
            timing: Timing::Events,
            step: Some(step),
            process: "worker-0",
            log: 0,
        }));
        for pool in ["0", "1", "2", "3", "4"] {
            report.see(&Row::KvUsage(Usage {
                at_ns: start_ns,
                used: count(random >> 12, 30_001),
                total: 30_000,
                cached: Some(count(random >> 20, 30_001)),
                is_share: false,
                prefix_hit_tokens: Some(count(random >> 4, 1_000)),
                prefix_query_tokens: Some(1_000),
                allocated: None,
                freed: None,
                evicted: Some(count(random >> 6, 50)),
                step: Some(step),
                pool,
                process: "engine_core-0",
                log: 0,
            }));
        }
    }
}

/// A model of 96 layers with 512 experts each, every layer of which is timed.
fn large_model(report: &mut Report) -> moe_experts::Summary {
    let layers = (0..96_u16).map(|layer| {
        for (component, kind) in [("attention", "a"), ("attention", "b"), ("router", ""), ("experts", "")] {
            let random = scatter(u64::from(layer));
            report.see(&Row::Layer(Interval {
                start_ns: 0,
                error_ns: None,
                component,
                kind,
                layer: Some(layer.into()),
                duration_ns: random % 1_000_000,
                phase: None,
                step: 1,
                process: "worker-0",
                log: 0,
            }));
        }
        let counts = (0..512).map(|expert| scatter(u64::from(layer) << 32 | expert) % 1_000_000).collect();
        moe_experts::LayerLoad { layer, top_k: 8, tokens: 1_000, counts, ..moe_experts::LayerLoad::default() }
    });
    moe_experts::Summary { layers: layers.collect(), ..moe_experts::Summary::default() }
}

#[test]
fn an_hour_of_the_wildest_steps_is_three_megabytes_at_most_and_no_extreme_is_missing() {
    let session = Session::open(&golden("layers")).unwrap();
    let mut answers: Answers = analyze::<Error>(&session, |_| Ok(())).unwrap();
    let mut report = Report::default();
    busy_hour(&mut report);
    answers.moe_experts = Some(large_model(&mut report));
    let page = report.finish(&session, &answers);
    assert!(page.len() < 3_000_000, "{} bytes", page.len());
    assert!(page.len() > 700_000, "this is no stress: {} bytes", page.len());
    let data = data(&page);
    let step = blocks(&data).find(|block| block["title"] == "Engine step" && block["kind"] == "chart").unwrap();
    let values: Vec<f64> = step["y"][0].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect();
    let at = values.iter().position(|value| (value - 9_876.543).abs() < 0.01).unwrap();
    assert!((step["x"][at].as_f64().unwrap() - 777.77).abs() < 0.01, "{}", step["x"][at]);
    let least = (0..360_000).map(|step| 5_000_000 + scatter(step) % 40_000_000).min().unwrap();
    assert!(values.iter().any(|value| (value - least as f64 / 1e6).abs() < 1e-5));
}

#[test]
fn the_page_loads_nothing_and_runs_nothing_but_its_own_script() {
    let page = page("gpu");
    let policy = page.split_once("Content-Security-Policy\" content=\"").unwrap().1.split_once('"').unwrap().0;
    assert!(policy.starts_with("default-src 'none'; script-src 'sha256-"), "{policy}");
    assert!(!policy.contains("unsafe") && !policy.contains("http") && !policy.contains('*'), "{policy}");
    let head = page.split_once("</head>").unwrap().0;
    assert!(!head.contains("<link") && !head.contains("@import") && !head.contains("url(h"));
    assert!(!page.contains(" src=") && !page.contains("fetch(") && !page.contains("XMLHttpRequest"));
}

#[test]
fn the_same_session_makes_the_same_page_and_files_appear_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.html");
    let first = page("requests");
    html::write(&first, &path).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), page("requests"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    let error = html::write("x", &folder.path().join("missing/x.html")).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
    assert!(html::write("x", folder.path().join("..").as_path()).is_err());
}
