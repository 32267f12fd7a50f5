//! GPU memory: how it is divided.

use profilemate_analysis::Answers;
use profilemate_analysis::gpu_memory::Gpu;

use super::page::wrapped;
use crate::numbers::grouped;

/// Most GPUs that are named; all of many are in the tables.
const MOST: usize = 2;

fn gibibytes(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

fn gpu(text: &mut String, label: &str, of: &Gpu) {
    let mut words = Vec::new();
    for (name, bytes) in [
        ("weights", of.weights),
        ("kv cache", of.kv_cache),
        ("graphs", of.cuda_graphs),
        ("torch at most", of.most_reserved),
        ("others", of.most_outside),
        ("free at least", of.least_free),
    ] {
        words.extend(bytes.map(|bytes| format!("{name} {}", gibibytes(bytes))));
    }
    words.extend(of.total.map(|total| format!("of {}", gibibytes(total))));
    if let Some(retries) = of.last_more.retries.filter(|retries| *retries > 0) {
        words.push(format!("{} allocations only after a clean-up", grouped(retries.into())));
    }
    wrapped(text, label, &words);
}

pub(super) fn section(text: &mut String, answers: &Answers) {
    let gpus = answers.gpu_memory.as_deref().unwrap_or_default();
    for (at, of) in gpus.iter().take(MOST).enumerate() {
        gpu(text, if at == 0 { "gpu memory" } else { "" }, of);
    }
}
