//! GPU memory: over time, and how it is divided.

use profilemate_analysis::Answers;
use profilemate_analysis::gpu_memory::Sample;

use super::{BUCKETS, chart};
use crate::html::model::{Cell, Section, Style, Table, number, share, text};
use crate::html::sampling::Sampled;

/// What is gathered of GPU memory.
pub(in crate::html) struct Gathered {
    bytes: Sampled<4>,
}

fn gibibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

impl Gathered {
    pub(in crate::html) fn new() -> Self {
        Self { bytes: Sampled::new(BUCKETS) }
    }

    pub(in crate::html) fn see(&mut self, sample: &Sample<'_>) {
        let memory = &sample.memory;
        let values = [memory.allocated, memory.reserved, sample.outside(), memory.free];
        self.bytes.push(sample.at_ns, values.map(|bytes| bytes.map_or(f64::NAN, gibibytes)));
    }

    pub(in crate::html) fn section(self, answers: &Answers) -> Option<Section> {
        let gpus = answers.gpu_memory.as_ref().filter(|gpus| !gpus.is_empty())?;
        let mut section = Section::new("gpu-memory", "GPU memory").lead(
            "What torch has handed out and what it holds, what else is in use on the device, and what is free, once per second.",
        );
        let names = ["handed out by torch", "held by torch", "used by others", "free"];
        section.push(chart("Memory of the GPUs", "GiB", Style::Steps, names, self.bytes)?);
        let columns = vec![
            text("worker"),
            number("device GiB", 2),
            number("weights GiB", 2),
            share("weights %"),
            number("KV cache GiB", 2),
            share("KV cache %"),
            number("graphs GiB", 2),
            share("graphs %"),
            number("torch at most GiB", 2),
            number("others at most GiB", 2),
            number("free at least GiB", 2),
            number("held and unused %", 1),
            number("retries", 0),
        ];
        let mut table = Table::new("How it is divided", columns).note(
            "Weights and graphs by vLLM's own measure; the KV cache is what was allocated while it was made. Graphs may lie in what \
             torch holds, or beside it.",
        );
        for gpu in gpus {
            let bytes = |value: Option<u64>| Cell::from(value.map(gibibytes));
            table.row(vec![
                gpu.process.as_str().into(),
                bytes(gpu.total),
                bytes(gpu.weights),
                gpu.share_pct(gpu.weights).into(),
                bytes(gpu.kv_cache),
                gpu.share_pct(gpu.kv_cache).into(),
                bytes(gpu.cuda_graphs),
                gpu.share_pct(gpu.cuda_graphs).into(),
                bytes(gpu.most_reserved),
                bytes(gpu.most_outside),
                bytes(gpu.least_free),
                gpu.mean_unused_pct.into(),
                gpu.last_more.retries.into(),
            ]);
        }
        section.push(table);
        Some(section)
    }
}
