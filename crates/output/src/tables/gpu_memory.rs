//! `gpu_memory.csv` and `gpu_memory_summary.json`.

use profilemate_analysis::gpu_memory::{Gpu, Sample};
use serde_json::Value;

use super::{number, object};
use crate::cells::table;

pub(super) const SUMMARY: &str = "gpu_memory_summary.json";

table! {
    /// One row for each look at a GPU's memory.
    GpuMemory = "gpu_memory", of sample: Sample<'a>, with {
        let memory = &sample.memory;
        let more = &sample.more;
    };
    timestamp_sec: timestamp(sample.at_ns),
    allocated_bytes: whole(memory.allocated),
    reserved_bytes: whole(memory.reserved),
    free_bytes: whole(memory.free),
    total_bytes: whole(memory.total),
    outside_bytes: whole(sample.outside()),
    unused_pct: percent(sample.unused().unwrap_or_default()),
    inactive_split_bytes: whole(more.inactive_split),
    peak_allocated_bytes: whole(more.peak_allocated),
    peak_reserved_bytes: whole(more.peak_reserved),
    allocation_retries: whole(more.retries.map(u64::from)),
    out_of_memory: whole(more.out_of_memory.map(u64::from)),
    step: whole(sample.step),
    process: name(sample.process),
}

fn gpu(of: &Gpu) -> Value {
    let bytes = |value: Option<u64>| value.map(Value::from);
    let share = |part: Option<u64>| of.share_pct(part).and_then(number);
    object([
        ("process", Some(of.process.as_str().into())),
        ("samples", Some(of.samples.into())),
        ("total_bytes", bytes(of.total)),
        ("weights_bytes", bytes(of.weights)),
        ("weights_pct", share(of.weights)),
        ("kv_cache_bytes", bytes(of.kv_cache)),
        ("kv_cache_pct", share(of.kv_cache)),
        ("cuda_graph_bytes", bytes(of.cuda_graphs)),
        ("cuda_graph_pct", share(of.cuda_graphs)),
        ("most_allocated_bytes", bytes(of.most_allocated)),
        ("most_reserved_bytes", bytes(of.most_reserved)),
        ("most_outside_bytes", bytes(of.most_outside)),
        ("least_free_bytes", bytes(of.least_free)),
        ("mean_unused_pct", of.mean_unused_pct.and_then(number)),
        ("most_inactive_split_bytes", bytes(of.most_inactive_split)),
        ("peak_allocated_bytes", bytes(of.last_more.peak_allocated)),
        ("peak_reserved_bytes", bytes(of.last_more.peak_reserved)),
        ("allocation_retries", of.last_more.retries.map(Value::from)),
        ("out_of_memory", of.last_more.out_of_memory.map(Value::from)),
    ])
}

/// What is said of all rows: one entry for each GPU.
pub(super) fn summary(gpus: &[Gpu]) -> Value {
    object([("gpus", Some(gpus.iter().map(gpu).collect()))])
}
