//! How sections are laid out: labels, numbers, lines of at most 80 columns.

use std::collections::BTreeMap;
use std::fmt::Write;

use anstyle::{AnsiColor, Color, Style};

use crate::numbers::grouped;
use crate::text::visible;

/// Columns of a terminal that everybody has.
pub(crate) const WIDTH: usize = 80;

/// Rows of a terminal that everybody has, less the one of the prompt behind the report.
const ROWS: usize = 39;

/// The text without as many of its blank lines, from the last on, as it takes to fit on a terminal.
pub(super) fn fitted(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let mut surplus = lines.len().saturating_sub(ROWS);
    let mut kept: Vec<&str> = Vec::with_capacity(lines.len());
    for line in lines.into_iter().rev() {
        if surplus > 0 && line.is_empty() {
            surplus -= 1;
        } else {
            kept.push(line);
        }
    }
    kept.into_iter().rev().flat_map(|line| [line, "\n"]).collect()
}

/// What a line is about: stands at its beginning.
pub(super) const LABEL: Style = Style::new().bold();

/// What somebody should look at.
pub(super) const WARNING: Style = Style::new().fg_color(Some(Color::Ansi(AnsiColor::Yellow)));

/// Columns of a label.
pub(super) const LABEL_WIDTH: usize = 13;

/// A text in a style. Whoever prints it takes styles out where there is no terminal for them.
pub(crate) fn styled(style: Style, text: &str) -> String {
    if text.trim_end().is_empty() { text.to_owned() } else { format!("{style}{text}{style:#}") }
}

fn label_of(label: &str) -> String {
    styled(LABEL, &format!("{label:<LABEL_WIDTH$}"))
}

/// Columns that a text takes.
pub(super) fn width(text: &str) -> usize {
    text.chars().count()
}

/// A label and what is said under it, on one line.
pub(super) fn line(text: &mut String, label: &str, value: &str) {
    // A path may be longer than a terminal is wide; it is not cut, so that it can be copied.
    let _ = writeln!(text, "{}{value}", label_of(label));
}

/// The first line of a table: what its rows are, and what its columns.
pub(super) fn heading(text: &mut String, label: &str, label_width: usize, columns: &str) {
    let _ = writeln!(text, "{}{columns}", styled(LABEL, &format!("{label:<label_width$}")));
}

/// Phrases, separated by commas, in lines of at most [`WIDTH`] columns, all after the first indented. Only a phrase that is
/// longer than a line is broken.
pub(super) fn wrapped(text: &mut String, label: &str, phrases: &[String]) {
    wrapped_in(text, label, phrases, Style::new());
}

/// As [`wrapped`], in a style.
pub(super) fn wrapped_in(text: &mut String, label: &str, phrases: &[String], style: Style) {
    let room = WIDTH - LABEL_WIDTH;
    let mut lines: Vec<String> = vec![String::new()];
    let mut put = |piece: &str| {
        let current = lines.last_mut().filter(|line| line.is_empty() || width(line) + 1 + width(piece) <= room);
        match current {
            Some(line) if line.is_empty() => line.push_str(piece),
            Some(line) => {
                line.push(' ');
                line.push_str(piece);
            }
            None => lines.push(piece.to_owned()),
        }
    };
    for (at, phrase) in phrases.iter().enumerate() {
        let comma = if at + 1 < phrases.len() { "," } else { "" };
        let phrase = format!("{phrase}{comma}");
        if width(&phrase) <= room {
            put(&phrase);
        } else {
            phrase.split(' ').for_each(|word| put(&shortened(word, room)));
        }
    }
    for (at, line) in lines.iter().enumerate() {
        let _ = writeln!(text, "{}{}", label_of(if at == 0 { label } else { "" }), styled(style, line));
    }
}

/// A text of at most `room` columns: what is longer loses its middle, where names differ least.
pub(super) fn shortened(text: &str, room: usize) -> String {
    let length = width(text);
    if length <= room {
        return text.to_owned();
    }
    let kept = room.saturating_sub(3);
    let (head, tail) = (kept - kept / 2, kept / 2);
    text.chars().take(head).chain("...".chars()).chain(text.chars().skip(length - tail)).collect()
}

/// Sentences in lines of at most [`WIDTH`] columns, behind a label in this style and indented like it.
pub(super) fn paragraph(text: &mut String, label: &str, style: Style, sentences: &str) {
    let room = WIDTH - LABEL_WIDTH;
    let mut lines: Vec<String> = vec![String::new()];
    for word in sentences.split(' ') {
        let word = shortened(word, room);
        match lines.last_mut().filter(|line| line.is_empty() || width(line) + 1 + width(&word) <= room) {
            Some(line) if line.is_empty() => *line = word,
            Some(line) => {
                line.push(' ');
                line.push_str(&word);
            }
            None => lines.push(word),
        }
    }
    for (at, line) in lines.iter().enumerate() {
        let label = format!("{:<LABEL_WIDTH$}", if at == 0 { label } else { "" });
        let _ = writeln!(text, "{}{line}", styled(style, &label));
    }
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
    fn blank_lines_are_there_as_long_as_there_is_room() {
        let long = "a\n\n".repeat(15) + &"b\n".repeat(13);
        let fitted_text = fitted(&long);
        assert_eq!(fitted_text.lines().count(), ROWS);
        assert!(fitted_text.starts_with("a\n\na\n") && fitted_text.contains("a\na\nb\n"), "{fitted_text}");
        assert_eq!(fitted("a\n\nb\n"), "a\n\nb\n");
        assert_eq!(fitted(&"a\n".repeat(50)).lines().count(), 50, "nothing that is said is dropped");
    }

    #[test]
    fn nothing_from_outside_moves_the_cursor() {
        assert_eq!(visible("a\u{1b}[2Jb\r\n"), "a\\u{1b}[2Jb\\r\\n");
    }

    #[test]
    fn sentences_wrap_at_80_columns() {
        let mut text = String::new();
        paragraph(&mut text, "label", Style::new(), &["word"; 40].join(" "));
        paragraph(&mut text, "", Style::new(), &format!("a {} b", "x".repeat(90)));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], format!("label        {}", ["word"; 13].join(" ")));
        assert!(lines[1].starts_with("             word word"));
        assert!(lines.iter().all(|line| width(line) <= WIDTH), "{lines:#?}");
        assert_eq!((lines[lines.len() - 3], lines[lines.len() - 1]), ("             a", "             b"));
    }

    #[test]
    fn long_lists_wrap_at_80_columns() {
        let mut text = String::new();
        let words: Vec<String> = (0..30).map(|at| format!("worker-{at} (closed)")).collect();
        wrapped(&mut text, "", &words);
        assert!(text.lines().all(|line| line.len() <= WIDTH), "{text}");
        assert!(text.contains("worker-29 (closed)\n"));
    }

    #[test]
    fn a_phrase_longer_than_a_line_is_broken_and_a_word_longer_than_a_line_shortened() {
        let mut text = String::new();
        wrapped(&mut text, "", &["one two ".repeat(20), "x".repeat(100)]);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert_eq!(text.matches("two").count(), 20);
        assert_eq!(shortened("abcdefghij", 10), "abcdefghij");
        assert_eq!(shortened("abcdefghijk", 8), "abc...jk");
    }

    #[test]
    fn labels_are_bold_and_nothing_else_is_marked() {
        let mut text = String::new();
        line(&mut text, "model", "tiny");
        line(&mut text, "", "more");
        assert_eq!(text, "\u{1b}[1mmodel        \u{1b}[0mtiny\n             more\n");
    }
}
