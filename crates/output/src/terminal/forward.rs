//! Forward passes by phase; or, where those are not known, what vLLM's log says of iterations.

use std::fmt::Write;

use profilemate_analysis::Answers;

use super::breakdown;
use super::page::heading;
use crate::numbers::grouped;

pub(super) fn section(text: &mut String, answers: &Answers) {
    let passes = answers.forward.as_ref().filter(|summary| !summary.phases.is_empty()).map(|of| ("forward", of));
    let iterations = answers.iterations.as_ref().map(|of| ("iteration", of));
    let Some((name, summary)) = passes.or(iterations) else { return };
    text.push('\n');
    let columns = format!(
        "{:>11}{:>11}{:>11}{:>11}{:>11}{:>12}",
        "count", "mean ms", "p50 ms", "p95 ms", "p99 ms", "tokens/s"
    );
    heading(text, name, 13, &columns);
    for (phase, said) in &summary.phases {
        let times = &said.times;
        let _ = writeln!(
            text,
            "  {:<11}{:>11}{:>11.3}{:>11.3}{:>11.3}{:>11.3}{:>12}",
            phase.text(),
            grouped(times.count),
            times.mean_ms,
            times.p50_ms,
            times.p95_ms,
            times.p99_ms,
            said.tokens_per_second.map_or(String::new(), |rate| format!("{rate:.0}"))
        );
    }
    breakdown::cost(text, answers);
}
