//! CPU operations.

use std::fmt::Write;

use profilemate_analysis::Answers;

use super::page::grouped;

pub(super) fn section(text: &mut String, answers: &Answers) {
    let Some(summary) = answers.cpu.as_ref().filter(|summary| !summary.operations.is_empty()) else { return };
    let _ = writeln!(
        text,
        "\n{:<20}{:>12}{:>12}{:>12}{:>14}{:>9}",
        "cpu operation", "count", "mean ms", "p99 ms", "total ms", "of run"
    );
    for (name, times) in &summary.operations {
        let share = 100.0 * times.total_ms / (answers.duration_ns as f64 / 1e6);
        let share = if share.is_finite() { format!("{share:.1} %") } else { String::new() };
        let _ = writeln!(
            text,
            "{:<20}{:>12}{:>12.3}{:>12.3}{:>14.1}{share:>9}",
            format!("  {}", name.text()),
            grouped(times.count),
            times.mean_ms,
            times.p99_ms,
            times.total_ms,
        );
    }
}
