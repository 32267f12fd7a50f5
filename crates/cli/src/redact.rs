//! A command line without its secrets, for the session's metadata.

/// What stands where a secret stood.
const HIDDEN: &str = "***";

/// Whether an option or variable of this name holds a secret: one of its words says so. `--max-num-tokens` and
/// `--tokenizer` do not; `--api-key` and `HF_TOKEN` do.
fn is_secret(name: &str) -> bool {
    name.split(|letter: char| !letter.is_ascii_alphanumeric()).any(|word| {
        ["key", "apikey", "token", "secret", "password", "passwd", "credential", "credentials", "authorization"]
            .iter()
            .any(|secret| word.eq_ignore_ascii_case(secret))
    })
}

/// `scheme://user:password@host` without the password.
fn without_password(word: &str) -> String {
    let Some((scheme, rest)) = word.split_once("://") else { return word.to_owned() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    match rest[..end].rsplit_once('@') {
        Some((_, host)) => format!("{scheme}://{HIDDEN}@{host}{}", &rest[end..]),
        None => word.to_owned(),
    }
}

/// The words of a command without secrets. What follows a secret option is hidden up to the next option, since some
/// take several values.
fn redact<'a>(words: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut hiding = false;
    words
        .map(|word| {
            if !hiding && word.contains(char::is_whitespace) {
                // A script for a shell: the same holds for its words.
                return redact(word.split_whitespace()).join(" ");
            }
            if let Some((name, _)) = word.split_once('=')
                && is_secret(name)
            {
                hiding = false;
                return format!("{name}={HIDDEN}");
            }
            if word.starts_with('-') {
                hiding = is_secret(word);
                return without_password(word);
            }
            if hiding {
                return HIDDEN.to_owned();
            }
            without_password(word)
        })
        .collect()
}

/// A command as one line that a shell would read back, without secrets.
pub(crate) fn command_line<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let quoted = redact(words).into_iter().map(|word| {
        let plain = !word.is_empty()
            && word.chars().all(|letter| letter.is_ascii_alphanumeric() || "-_./:=,@%+*".contains(letter));
        if plain { word } else { format!("'{}'", word.replace('\'', "'\\''")) }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

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
            (&["vllm", "--tokenizer", "t", "--hf-token", "hf_x"], "vllm --tokenizer t --hf-token ***"),
            (&["env", "HF_TOKEN=hf_x", "vllm"], "env HF_TOKEN=*** vllm"),
            (
                &["bash", "-c", "HF_TOKEN=x vllm serve m --api-key y"],
                "bash -c 'HF_TOKEN=*** vllm serve m --api-key ***'",
            ),
            (&["vllm", "https://me:pw@host/x"], "vllm https://***@host/x"),
            (&["vllm", "it's", ""], "vllm 'it'\\''s' ''"),
        ] {
            assert_eq!(command_line(command.iter().copied()), shown);
        }
    }
}
