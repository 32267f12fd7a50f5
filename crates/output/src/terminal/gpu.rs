//! GPU time and CUDA graphs.

use profilemate_analysis::Answers;
use profilemate_analysis::breakdown::{GpuTime, WorkerTime};

use super::page::{line, percent, wrapped};
use crate::text::visible;

pub(super) fn section(text: &mut String, answers: &Answers) {
    let workers = answers.breakdown.iter().flat_map(|breakdown| &breakdown.workers);
    let timed: Vec<(&WorkerTime, &GpuTime)> =
        workers.filter_map(|worker| Some((worker, worker.gpu.as_ref()?))).collect();
    if timed.len() <= 2 {
        for (at, (worker, gpu)) in timed.iter().enumerate() {
            let process = visible(&worker.process);
            let bubbles = percent(gpu.bubble_pct());
            let label = if at == 0 { "gpu" } else { "" };
            line(text, label, &format!("{process}: waits for the host {bubbles} of the time with requests"));
        }
    } else {
        let mut shares: Vec<f64> = timed.iter().filter_map(|(_, gpu)| gpu.bubble_pct()).collect();
        shares.sort_by(f64::total_cmp);
        let (least, most) = (percent(shares.first().copied()), percent(shares.last().copied()));
        let count = timed.len();
        line(text, "gpu", &format!("{count} workers wait for the host {least} to {most} of the time"));
    }
    // Without a GPU there are none, and nobody misses them.
    let is_on_gpu = answers.facts.gpu_name.is_some() || !timed.is_empty();
    if let Some(graphs) = answers.cuda_graphs.as_ref().filter(|graphs| is_on_gpu && !graphs.usage.is_empty()) {
        let coverage = format!("{} of steps run in one", percent(graphs.coverage_pct()));
        wrapped(
            text,
            "cuda graphs",
            &[coverage, format!("{} of tokens are padding", percent(graphs.padding_pct()))],
        );
    }
}
