//! Text from outside, such as ids that clients choose, made safe to show anywhere.

use std::borrow::Cow;

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

    proptest! {
        #[test]
        fn nothing_unseen_is_left(text: String) {
            prop_assert!(!visible(&text).chars().any(is_unseen));
        }
    }
}
