//! Secrets anywhere in a text: behind a name and `=` or `:`, as in shells, JSON, Python and YAML; in URLs; behind `Bearer`; and
//! those that tell by themselves.

use std::borrow::Cow;

use crate::HIDDEN;
use crate::secret::{is_secret, looks_secret};

/// The text with all of them hidden.
pub(crate) fn without_secrets(text: &str) -> String {
    let text = without_users(text);
    let mut shown = String::with_capacity(text.len());
    let mut rest: &str = &text;
    while !rest.is_empty() {
        let run = run(rest);
        if run.is_empty() {
            let letter = rest.chars().next().map_or(1, char::len_utf8);
            shown.push_str(&rest[..letter]);
            rest = &rest[letter..];
            continue;
        }
        let behind = &rest[run.len()..];
        if looks_secret(run) {
            shown.push_str(HIDDEN);
            rest = behind;
            continue;
        }
        shown.push_str(run);
        rest = behind;
        if ["bearer", "basic"].iter().any(|scheme| run.eq_ignore_ascii_case(scheme)) {
            let credentials = behind.trim_start_matches([' ', '\t']);
            if credentials.len() < behind.len() && !credentials.is_empty() {
                shown.push(' ');
                rest = hide(credentials, &mut shown);
            }
        } else if is_secret(run)
            && let Some(value) = value_behind(behind)
        {
            shown.push_str(&behind[..behind.len() - value.len()]);
            // `Authorization: Bearer …`
            let scheme =
                ["Bearer ", "Basic ", "bearer ", "basic "].iter().find(|scheme| value.starts_with(**scheme));
            if let Some(scheme) = scheme {
                shown.push_str(HIDDEN);
                shown.push(' ');
                rest = hide(&value[scheme.len()..], &mut shown);
            } else {
                rest = hide(value, &mut shown);
            }
        }
    }
    shown
}

/// The letters of a name, or of a secret, at the beginning.
fn run(text: &str) -> &str {
    let end = text.find(|letter: char| !(letter.is_ascii_alphanumeric() || "_-.".contains(letter)));
    &text[..end.unwrap_or(text.len())]
}

/// What is given to the name that ended where `text` begins; `None` if nothing is.
fn value_behind(text: &str) -> Option<&str> {
    let closed = text.trim_start_matches(['"', '\'', '\\', ']']);
    let is_quoted = text.starts_with(['"', '\'', '\\']);
    let at = closed.trim_start_matches([' ', '\t']);
    let value = at.strip_prefix(":=").or_else(|| at.strip_prefix("==")).or_else(|| at.strip_prefix(['=', ':']));
    let value = match value {
        Some(value) => value,
        // `setdefault("HF_TOKEN", "…")`
        None => at.strip_prefix(',').filter(|value| is_quoted && value.trim_start().starts_with(['"', '\'']))?,
    };
    let value = value.trim_start_matches([' ', '\t']);
    (!value.is_empty()).then_some(value)
}

/// Hides the value at the beginning of `text`; what comes behind it.
fn hide<'a>(text: &'a str, shown: &mut String) -> &'a str {
    let length = value_length(text);
    shown.push_str(if length == 0 { "" } else { HIDDEN });
    &text[length..]
}

/// How long the value at the beginning is: a string in quotes, a list or an object, or what goes up to the next white space or mark.
fn value_length(text: &str) -> usize {
    let opening = text.trim_start_matches('\\');
    let escapes = text.len() - opening.len();
    let mut length = match opening.chars().next() {
        Some(quote @ ('"' | '\'')) => quoted_length(text, quote, escapes),
        Some('[' | '{') => nested_length(text),
        _ => 0,
    };
    // To a shell, what follows a quote is of the same word.
    let ends = |letter: char| letter.is_whitespace() || letter.is_control() || "\"',;&}])\\".contains(letter);
    length += text[length..].find(ends).unwrap_or(text.len() - length);
    length
}

/// Up to the quote that is behind as many backslashes as the first one; all of it if there is none.
fn quoted_length(text: &str, quote: char, escapes: usize) -> usize {
    let mut backslashes = 0;
    for (at, letter) in text.char_indices().skip(escapes + 1) {
        if letter == quote && backslashes == escapes {
            return at + 1;
        }
        // Two of them are one that is meant, where the string is not inside of another.
        backslashes = match letter {
            '\\' if escapes == 0 => 1 - backslashes,
            '\\' => backslashes + 1,
            _ => 0,
        };
    }
    text.len()
}

/// Up to the bracket that closes the first one; all of it if there is none. What is in quotes does not count.
fn nested_length(text: &str) -> usize {
    let mut depth = 0usize;
    let mut quote = None;
    let mut escaped = false;
    for (at, letter) in text.char_indices() {
        match (quote, letter) {
            _ if escaped => escaped = false,
            (Some(_), '\\') => escaped = true,
            (Some(opened), closing) if opened == closing => quote = None,
            (None, '"' | '\'') => quote = Some(letter),
            (None, '[' | '{') => depth += 1,
            (None, ']' | '}') => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return at + 1;
                }
            }
            _ => {}
        }
    }
    text.len()
}

/// `scheme://user:password@host` without the user, for each URL in a text.
fn without_users(text: &str) -> Cow<'_, str> {
    const MARK: &str = "://";
    if !text.contains(MARK) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(MARK) {
        let (before, behind) = rest.split_at(at + MARK.len());
        shown.push_str(before);
        rest = behind;
        if let Some(user) = user_length(behind) {
            shown.push_str(HIDDEN);
            rest = &behind[user..];
        }
    }
    shown.push_str(rest);
    Cow::Owned(shown)
}

/// How long the user's part of a URL is, whose scheme ended where `text` begins; `None` if there is none.
fn user_length(text: &str) -> Option<usize> {
    let end =
        text.find(|letter: char| letter.is_whitespace() || "\"'<>,;|".contains(letter)).unwrap_or(text.len());
    let host_end = text[..end].find(['/', '?', '#']).unwrap_or(end);
    if let Some(at) = text[..host_end].rfind('@') {
        return Some(at);
    }
    // A password with a `/` that nobody escaped: what follows the colon is no port.
    let (_, port) = text[..host_end].split_once(':')?;
    if port.bytes().all(|byte| byte.is_ascii_digit()) { None } else { text[..end].rfind('@') }
}
