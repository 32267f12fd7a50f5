//! How sections are laid out: labels, numbers, lines of at most 80 columns.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::text::visible;

/// Columns of a terminal that everybody has.
pub(super) const WIDTH: usize = 80;

/// A whole number with its thousands apart.
pub(super) fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

pub(super) fn duration(nanoseconds: u64) -> String {
    let seconds = nanoseconds as f64 / 1e9;
    if seconds < 60.0 {
        return format!("{seconds:.1} s");
    }
    let whole = nanoseconds / 1_000_000_000;
    let (hours, minutes, seconds) = (whole / 3600, whole / 60 % 60, whole % 60);
    if hours > 0 {
        format!("{hours} h {minutes:02} min {seconds:02} s")
    } else {
        format!("{minutes} min {seconds:02} s")
    }
}

pub(super) fn line(text: &mut String, label: &str, value: &str) {
    // A path may be longer than a terminal is wide; it is not cut, so that it can be copied.
    let _ = writeln!(text, "{label:<13}{value}");
}

/// Words in lines of at most [`WIDTH`] columns, all after the first indented.
pub(super) fn wrapped(text: &mut String, label: &str, words: &[String]) {
    let mut current = format!("{label:<13}");
    let mut empty = true;
    for (at, word) in words.iter().enumerate() {
        let comma = if at + 1 < words.len() { "," } else { "" };
        if !empty && current.len() + 1 + word.len() + comma.len() > WIDTH {
            let _ = writeln!(text, "{current}");
            current = " ".repeat(13);
            empty = true;
        }
        let _ = write!(current, "{}{word}{comma}", if empty { "" } else { " " });
        empty = false;
    }
    let _ = writeln!(text, "{current}");
}

/// A share in percent, or that it is not known.
pub(super) fn percent(value: Option<f64>) -> String {
    value.map_or("unknown".to_owned(), |value| format!("{value:.1} %"))
}
/// Counts by what they are of, the most frequent first.
pub(super) fn counted(counts: &BTreeMap<String, u64>) -> Vec<String> {
    let mut counts: Vec<(&String, &u64)> = counts.iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    counts
        .into_iter()
        .map(|(what, count)| {
            format!("{} {}", grouped(*count), visible(if what.is_empty() { "unknown" } else { what }))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_durations_read_well() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(duration(1_500_000_000), "1.5 s");
        assert_eq!(duration(61_000_000_000), "1 min 01 s");
        assert_eq!(duration(3_600_000_000_000), "1 h 00 min 00 s");
    }

    #[test]
    fn nothing_from_outside_moves_the_cursor() {
        assert_eq!(visible("a\u{1b}[2Jb\r\n"), "a\\u{1b}[2Jb\\r\\n");
    }

    #[test]
    fn long_lists_wrap_at_80_columns() {
        let mut text = String::new();
        let words: Vec<String> = (0..30).map(|at| format!("worker-{at} (closed)")).collect();
        wrapped(&mut text, "processes", &words);
        assert!(text.lines().all(|line| line.len() <= WIDTH), "{text}");
        assert!(text.contains("worker-29 (closed)\n"));
    }
}
