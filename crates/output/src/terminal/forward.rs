//! Forward passes by phase.

use std::fmt::Write;

use profilemate_analysis::Answers;

use super::page::grouped;

pub(super) fn section(text: &mut String, answers: &Answers) {
    let Some(summary) = answers.forward.as_ref().filter(|summary| !summary.phases.is_empty()) else { return };
    let _ = writeln!(
        text,
        "\n{:<13}{:>12}{:>12}{:>12}{:>12}{:>16}",
        "forward", "count", "mean ms", "p50 ms", "p99 ms", "tokens/s"
    );
    for (phase, said) in &summary.phases {
        let times = &said.times;
        let _ = writeln!(
            text,
            "  {:<11}{:>12}{:>12.3}{:>12.3}{:>12.3}{:>16}",
            phase.text(),
            grouped(times.count),
            times.mean_ms,
            times.p50_ms,
            times.p99_ms,
            said.tokens_per_second.map_or(String::new(), |rate| format!("{rate:.0}"))
        );
    }
}
