//! Text from outside, such as ids that clients choose, made safe to show anywhere.

use std::borrow::Cow;
use std::fmt::Write;

/// Whether a character would do something instead of being seen: control characters, line ends of every kind, marks that
/// turn the direction of text, and those without width.
fn is_unseen(letter: char) -> bool {
    letter.is_control()
        || matches!(
            letter,
            '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// The text with every character that would not be seen written out, as `\n` or `\u{1b}`.
pub fn visible(text: &str) -> Cow<'_, str> {
    // Nearly every text is plain, and some tables have tens of millions of them.
    if text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) || !text.chars().any(is_unseen) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for letter in text.chars() {
        if is_unseen(letter) {
            shown.extend(letter.escape_default());
        } else {
            shown.push(letter);
        }
    }
    Cow::Owned(shown)
}

/// A JSON document as text, indented, with a line end. In its strings, what would not be seen is escaped as JSON has it,
/// so that a reader gets them as they are and a terminal that shows the document comes to no harm.
pub fn json(document: &serde_json::Value) -> String {
    let text = format!("{document:#}\n");
    if text.is_ascii() && !text.contains('\u{7f}') {
        return text;
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for letter in text.chars() {
        // Between strings there is nothing of the kind but line ends.
        if letter != '\n' && is_unseen(letter) {
            for unit in letter.encode_utf16(&mut [0; 2]) {
                let _ = write!(shown, "\\u{unit:04x}");
            }
        } else {
            shown.push(letter);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_not_seen_is_written_out() {
        assert_eq!(visible("cmpl-1 ü"), "cmpl-1 ü");
        assert_eq!(visible("a\nb\u{1b}[31m\0"), "a\\nb\\u{1b}[31m\\u{0}");
        assert_eq!(visible("\u{202e}evil\u{2066}"), "\\u{202e}evil\\u{2066}");
    }

    #[test]
    fn json_is_read_as_it_was_and_shows_nothing_unseen() {
        let value = serde_json::json!({"a\u{9b}": "\u{202e}x\u{7f}\n\u{1b}\u{e0001}ü"});
        let text = json(&value);
        assert_eq!(text, "{\n  \"a\\u009b\": \"\\u202ex\\u007f\\n\\u001b\\udb40\\udc01ü\"\n}\n");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
    }

    proptest! {
        #[test]
        fn json_reads_back(key: String, text: String) {
            let value = serde_json::json!({ key: [text] });
            let shown = json(&value);
            prop_assert!(!shown.chars().any(|letter| letter != '\n' && is_unseen(letter)));
            prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
        }

        #[test]
        fn nothing_unseen_is_left(text: String) {
            prop_assert!(!visible(&text).chars().any(is_unseen));
        }
    }
}
