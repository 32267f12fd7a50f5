//! Command lines and other text without their secrets. What is recorded goes through here, from the launcher and from
//! vLLM's processes alike.
//!
//! What is a secret is told by its name (`--api-key`, `HF_TOKEN=`, `"password":`), by its place (the user's part of a URL, what
//! follows `Bearer`) or by how it begins (`hf_…`). Rather too much is hidden than too little.
//!
//! ```text
//! secret what names a secret, and what looks like one
//! text   assignments, URLs and the like, anywhere in a text
//! ```

mod secret;
mod text;

use std::borrow::Cow;

use secret::is_secret;

/// What stands where a secret stood.
pub const HIDDEN: &str = "***";

/// A text without its secrets. The options of a command in it are looked at, too.
pub fn text(text: &str) -> String {
    word(text)
}

/// The words of a command without secrets. What follows a secret option is hidden up to the next option, since some
/// take several values.
pub fn words<'a>(words: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut hiding = false;
    words
        .map(|found| {
            if found.starts_with('-') {
                hiding = is_secret(found) && !found.contains('=');
            } else if hiding {
                return HIDDEN.to_owned();
            }
            word(found)
        })
        .collect()
}

/// One word of a command, looked at until there is nothing left to hide: without what was hidden, something else may look like
/// a secret.
fn word(found: &str) -> String {
    let mut shown = looked_at_once(found);
    // Each time hides something, so it ends; if it did not, this would.
    for _ in 0..found.len() {
        let again = looked_at_once(&shown);
        if again == shown {
            break;
        }
        shown = again;
    }
    shown
}

/// A script for a shell is one word of its command, and has words itself.
fn looked_at_once(found: &str) -> String {
    let plain = text::without_secrets(found);
    if !plain.contains(char::is_whitespace) {
        return plain;
    }
    let mut shown = String::with_capacity(plain.len());
    let mut hiding = false;
    // Each part ends with the white space behind a word, which stays as it is.
    for part in plain.split_inclusive(char::is_whitespace) {
        let found = part.trim_end_matches(char::is_whitespace);
        let bare = found.trim_start_matches(['"', '\'', '\\', '(', '[']);
        if bare.starts_with('-') {
            hiding = is_secret(bare) && !bare.contains('=');
        }
        let hide = hiding && !bare.starts_with('-') && !found.is_empty();
        shown.push_str(if hide { HIDDEN } else { found });
        shown.push_str(&part[found.len()..]);
    }
    shown
}

/// A command as one line that a shell would read back, without secrets.
pub fn command_line<'a>(command: impl Iterator<Item = &'a str>) -> String {
    words(command).iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &str) -> Cow<'_, str> {
    let is_plain = !word.is_empty()
        && word.chars().all(|letter| letter.is_ascii_alphanumeric() || "-_./:=,@%+*".contains(letter));
    if is_plain { Cow::Borrowed(word) } else { Cow::Owned(format!("'{}'", word.replace('\'', "'\\''"))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn secrets_are_hidden_and_nothing_else() {
        for (command, shown) in [
            (
                &["vllm", "serve", "m", "--api-key", "s1", "s2", "--port", "1"][..],
                "vllm serve m --api-key *** *** --port 1",
            ),
            (
                &["vllm", "--api-key=s1", "--max-num-batched-tokens", "8192"],
                "vllm --api-key=*** --max-num-batched-tokens 8192",
            ),
            (&["vllm", "--api_key", "s1", "--seed", "0"], "vllm --api_key *** --seed 0"),
            (&["vllm", "--tokenizer", "t", "--hf-token", "hf_x"], "vllm --tokenizer t --hf-token ***"),
            (&["vllm", "--long-prefill-token-threshold", "5"], "vllm --long-prefill-token-threshold 5"),
            (&["vllm", "--ssl-keyfile", "k.pem", "--ssl-keyfile-password", "s"], {
                "vllm --ssl-keyfile k.pem --ssl-keyfile-password ***"
            }),
            (&["env", "HF_TOKEN=hf_x", "vllm"], "env HF_TOKEN=*** vllm"),
            (&["env", "VLLM_API_KEY=a=b", "AWS_SECRET_ACCESS_KEY=/x+y=", "vllm"], {
                "env VLLM_API_KEY=*** AWS_SECRET_ACCESS_KEY=*** vllm"
            }),
            (
                &["bash", "-c", "HF_TOKEN=x vllm serve m --api-key y"],
                "bash -c 'HF_TOKEN=*** vllm serve m --api-key ***'",
            ),
            (&["vllm", "https://me:pw@host/x"], "vllm https://***@host/x"),
            (&["vllm", "--proxies=http://a:b@c,http://d:e@f:1/g"], {
                "vllm --proxies=http://***@c,http://***@f:1/g"
            }),
            (&["vllm", "https://host/x?a=1&token=t&b=2"], "vllm 'https://host/x?a=1&token=***&b=2'"),
            (&["vllm", "it's", ""], "vllm 'it'\\''s' ''"),
            (&["vllm", "--model", "org/key-model", "--served-model-name", "token"], {
                "vllm --model org/key-model --served-model-name token"
            }),
        ] {
            assert_eq!(command_line(command.iter().copied()), shown);
        }
    }

    #[test]
    fn secrets_inside_of_a_word_are_hidden() {
        for (word, shown) in [
            (r#"{"api_key": "s", "a": 1}"#, r#"{"api_key": ***, "a": 1}"#),
            (r#"{"a": {"password": "s\"t", "b": 2}}"#, r#"{"a": {"password": ***, "b": 2}}"#),
            (r#"{"tokens": ["x", "y"], "secret": ["s", {"t": "u"}], "c": 3}"#, {
                r#"{"tokens": ["x", "y"], "secret": ***, "c": 3}"#
            }),
            (r#"{"max_tokens": 16, "eos_token_id": 2}"#, r#"{"max_tokens": 16, "eos_token_id": 2}"#),
            (r"{'hf_token': 's t'}", r"{'hf_token': ***}"),
            (r#"{\"apiKey\":\"s\",\"b\":1}"#, r#"{\"apiKey\":***,\"b\":1}"#),
            (r#"os.environ["HF_TOKEN"] = "s t"; x()"#, r#"os.environ["HF_TOKEN"] = ***; x()"#),
            (r#"os.environ.setdefault("HF_TOKEN", "s")"#, r#"os.environ.setdefault("HF_TOKEN", ***)"#),
            ("Authorization: Bearer abc", "Authorization: *** ***"),
            ("x Bearer abc y", "x Bearer *** y"),
            ("hf_abcdefghijklmnopqrstuvwx", "***"),
            ("login(\"hf_abcdefghijklmnopqrstuvwx\")", "login(\"***\")"),
            ("sk-proj-abcdefghijklmnopqrst", "***"),
            ("api_key: s\nport: 1", "api_key: ***\nport: 1"),
            ("--kv-transfer-config.extra.api_key=s", "--kv-transfer-config.extra.api_key=***"),
            ("postgres://u:p/w@h/db", "postgres://***@h/db"),
            // With the token hidden, what stands there is a user's part.
            ("s://x_TOKEN=?y\0:z/@h", "s://***@h"),
            ("hf://org/model@main http://h:80/a@b http://t@h", "hf://org/model@main http://h:80/a@b http://***@h"),
        ] {
            assert_eq!(text(word), shown);
        }
    }

    const SECRET: &str = "Zq9xVdJw7";

    proptest! {
        /// Whatever stands before and behind, a secret that its name tells of is hidden.
        #[test]
        fn a_named_secret_is_not_in_the_line(
            before in prop::collection::vec("\\PC{0,12}", 0..4),
            after in prop::collection::vec("\\PC{0,12}", 0..4),
            form in 0usize..6,
        ) {
            let forms = [
                vec!["--api-key".to_owned(), SECRET.to_owned()],
                vec![format!("--api-key={SECRET}")],
                vec![format!("HF_TOKEN={SECRET}")],
                vec![format!("{{\"api_key\": \"{SECRET}\"}}")],
                vec![format!("https://user:{SECRET}@host")],
                vec!["--ssl-keyfile-password".to_owned(), SECRET.to_owned()],
            ];
            let command: Vec<String> = before.into_iter().chain(forms[form].clone()).chain(after).collect();
            prop_assert!(!command_line(command.iter().map(String::as_str)).contains(SECRET));
        }

        #[test]
        fn what_is_shown_has_nothing_left_to_hide(word: String) {
            let shown = text(&word);
            prop_assert_eq!(text(&shown), shown);
        }
    }
}
