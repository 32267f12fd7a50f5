//! `cpu_operations_timing.csv` and `cpu_timing_summary.json`.

use std::borrow::Cow;

use profilemate_analysis::cpu::{Operation, Remark, Summary};
use profilemate_analysis::steps::Phase;
use serde_json::{Map, Value};

use super::{number, object};
use crate::cells::table;

pub(super) const SUMMARY: &str = "cpu_timing_summary.json";

fn context<'a>(remark: &Remark<'a>) -> Cow<'a, str> {
    Cow::Borrowed(match remark {
        Remark::None => "",
        Remark::Phase(Phase::Prefill) => "phase=prefill",
        Remark::Phase(Phase::Decode) => "phase=decode",
        Remark::Phase(Phase::Mixed) => "phase=mixed",
        Remark::Generation(generation) => return Cow::Owned(format!("generation={generation}")),
        Remark::Text(text) => text,
    })
}

table! {
    /// One row for each operation.
    CpuOperations = "cpu_operations_timing", of operation: Operation<'a>;
    timestamp_sec: timestamp(operation.start_ns),
    operation: word(operation.name.text()),
    duration_ms: milliseconds(operation.duration_ns),
    context: name(&context(&operation.remark)),
    step: whole(operation.step),
    process: name(operation.process),
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
