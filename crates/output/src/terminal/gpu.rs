//! GPU time and CUDA graphs.

use profilemate_analysis::Answers;

use super::page::{line, percent, wrapped};
use crate::text::visible;

pub(super) fn section(text: &mut String, answers: &Answers) {
    if answers.gpu.is_empty() {
        return;
    }
    text.push('\n');
    for (at, gpu) in answers.gpu.iter().enumerate() {
        let label = if at == 0 { "gpu" } else { "" };
        let process = visible(&gpu.process);
        line(text, label, &format!("{process}: waits for the host {} of the time", percent(gpu.idle_pct())));
    }
    if let Some(graphs) = answers.cuda_graphs.as_ref().filter(|graphs| !graphs.usage.is_empty()) {
        let coverage = format!("{} of steps run in one", percent(graphs.coverage_pct()));
        wrapped(
            text,
            "cuda graphs",
            &[coverage, format!("{} of tokens are padding", percent(graphs.padding_pct()))],
        );
    }
}
