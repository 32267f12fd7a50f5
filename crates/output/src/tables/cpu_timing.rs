//! `cpu_operations_timing.csv` and `cpu_timing_summary.json`.

use profilemate_analysis::cpu::{Operation, Remark, Summary};
use profilemate_analysis::steps::Phase;
use serde_json::{Map, Value};

use super::{number, object};
use crate::csv::Line;

pub(super) const TABLE: &str = "cpu_operations_timing.csv";
pub(super) const SUMMARY: &str = "cpu_timing_summary.json";
pub(super) const COLUMNS: &[&str] = &["timestamp_sec", "operation", "duration_ms", "context", "step", "process"];

pub(super) fn cells(operation: &Operation<'_>, line: &mut Line) {
    line.timestamp(operation.start_ns);
    line.word(operation.name.text());
    line.milliseconds(operation.duration_ns);
    match operation.remark {
        Remark::None => line.empty(),
        Remark::Phase(Phase::Prefill) => line.word("phase=prefill"),
        Remark::Phase(Phase::Decode) => line.word("phase=decode"),
        Remark::Phase(Phase::Mixed) => line.word("phase=mixed"),
        Remark::Generation(generation) => line.word(&format!("generation={generation}")),
        Remark::Text(text) => line.text(text),
    }
    line.maybe(operation.step);
    line.text(operation.process);
}

pub(super) fn summary(summary: &Summary) -> Value {
    let operations = summary.operations.iter().map(|(name, times)| {
        let value = object([
            ("count", Some(times.count.into())),
            ("mean_ms", number(times.mean_ms)),
            ("std_ms", number(times.std_ms)),
            ("min_ms", number(times.min_ms)),
            ("max_ms", number(times.max_ms)),
            ("p95_ms", number(times.p95_ms)),
            ("p50_ms", number(times.p50_ms)),
            ("p99_ms", number(times.p99_ms)),
            ("total_ms", number(times.total_ms)),
        ]);
        (name.text().to_owned(), value)
    });
    Value::Object(operations.collect::<Map<_, _>>())
}
