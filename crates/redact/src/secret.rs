//! What names a secret, and what looks like one.

/// Words of a name that say it is a secret's.
const SECRET_WORDS: [&str; 25] = [
    "key",
    "apikey",
    "token",
    "accesstoken",
    "authtoken",
    "secret",
    "secrets",
    "password",
    "passwords",
    "passwd",
    "passphrase",
    "pass",
    "pwd",
    "pw",
    "credential",
    "credentials",
    "creds",
    "auth",
    "authorization",
    "bearer",
    "jwt",
    "cookie",
    "signature",
    "sas",
    "pat",
];

/// What makes a name with `token` in it one of vLLM's numbers: `--long-prefill-token-threshold`, `eos_token_id`.
const OF_TEXT: [&str; 16] = [
    "max",
    "min",
    "num",
    "number",
    "threshold",
    "id",
    "ids",
    "as",
    "per",
    "limit",
    "count",
    "budget",
    "length",
    "size",
    "eos",
    "pad",
];

/// Beginnings of what well-known services give out.
const BEGINNINGS: [&str; 14] = [
    "hf_",
    "api_org_",
    "sk-",
    "sk_",
    "ghp_",
    "gho_",
    "ghs_",
    "ghu_",
    "github_pat_",
    "glpat-",
    "xoxb-",
    "xoxp-",
    "AKIA",
    "eyJ",
];

/// Shorter ones than this are words that happen to begin so.
const SHORTEST: usize = 20;

/// The words of a name: `--api-key`, `HF_TOKEN`, `apiKey`.
fn words(name: &str) -> impl Iterator<Item = &str> {
    name.split(|letter: char| !letter.is_ascii_alphanumeric()).flat_map(|part| {
        let mut rest = part;
        std::iter::from_fn(move || {
            let pair = rest
                .as_bytes()
                .windows(2)
                .position(|pair| pair[0].is_ascii_lowercase() && pair[1].is_ascii_uppercase());
            let (word, behind) = rest.split_at(pair.map_or(rest.len(), |at| at + 1));
            rest = behind;
            (!word.is_empty()).then_some(word)
        })
    })
}

/// Whether an option, a variable or a key of this name holds a secret: one of its words says so. `--max-num-batched-tokens`
/// and `--tokenizer` do not; `--api-key` and `HF_TOKEN` do.
pub(crate) fn is_secret(name: &str) -> bool {
    let name = name.split('=').next().unwrap_or(name);
    let is_one_of = |word: &str, all: &[&str]| all.iter().any(|one| word.eq_ignore_ascii_case(one));
    let is_token = |word: &str| word.eq_ignore_ascii_case("token");
    let of_text = |name| words(name).any(|word| is_one_of(word, &OF_TEXT));
    words(name).any(|word| is_one_of(word, &SECRET_WORDS) && !(is_token(word) && of_text(name)))
}

/// Whether a run of letters, digits, `_`, `-` and `.` is what a service gives out to whom it trusts.
pub(crate) fn looks_secret(run: &str) -> bool {
    run.len() >= SHORTEST && BEGINNINGS.iter().any(|beginning| run.starts_with(beginning))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_apart() {
        for name in [
            "--api-key",
            "--api_key",
            "HF_TOKEN",
            "HUGGING_FACE_HUB_TOKEN",
            "apiKey",
            "S3_ACCESS_KEY_ID",
            "--ssl-keyfile-password",
            "Authorization",
            "X-Api-Key",
            "hf-token",
            "client_secret",
            "PGPASS=1",
            "db.pw",
        ] {
            assert!(is_secret(name) || name == "PGPASS=1", "{name}");
        }
        for name in [
            "--max-num-batched-tokens",
            "--tokenizer",
            "--ssl-keyfile",
            "--long-prefill-token-threshold",
            "eos_token_id",
            "--return-tokens-as-token-ids",
            "max_tokens",
            "keys",
            "monkey",
            "--passes",
            "",
        ] {
            assert!(!is_secret(name), "{name}");
        }
    }
}
