//! What vLLM's settings were: as its processes found them, else as somebody typed them.

use crate::facts::Facts;

/// A setting by its flag (`--gpu-memory-utilization`); `None` = nobody said. A switch that was given has the value `True`.
pub(super) fn setting<'a>(facts: &'a Facts, flag: &str) -> Option<&'a str> {
    let name = flag.trim_start_matches('-').replace('-', "_");
    let found = facts.settings.iter().find(|(found, _)| *found == name);
    found.map(|(_, value)| value.as_str()).or_else(|| on_command_line(facts.command.as_deref()?, flag))
}

/// A setting that is a number.
pub(super) fn number(facts: &Facts, flag: &str) -> Option<f64> {
    setting(facts, flag)?.parse().ok().filter(|number: &f64| number.is_finite())
}

/// Whether a switch is on; `None` = nobody said.
pub(super) fn switch(facts: &Facts, flag: &str) -> Option<bool> {
    match setting(facts, flag) {
        Some("True" | "true") => Some(true),
        Some("False" | "false") => Some(false),
        _ => {
            let off = flag.replacen("--", "--no-", 1);
            on_command_line(facts.command.as_deref()?, &off).map(|_| false)
        }
    }
}

/// The value behind a flag, the last that is given; vLLM takes `-` and `_` in flags for the same.
fn on_command_line<'a>(command: &'a str, flag: &str) -> Option<&'a str> {
    let is_it = |word: &str| word.starts_with("--") && word.replace('_', "-") == flag;
    let words: Vec<&str> = command.split(' ').collect();
    words.iter().enumerate().rev().find_map(|(at, word)| match word.split_once('=') {
        Some((name, value)) => is_it(name).then_some(value),
        None if is_it(word) => Some(words.get(at + 1).filter(|next| !next.starts_with('-')).unwrap_or(&"True")),
        None => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_processes_found_counts_more_than_what_was_typed() {
        let facts = Facts {
            command: Some(
                "vllm serve m --max_num_seqs 8 --gpu-memory-utilization=0.5 --enforce-eager --no-async-scheduling"
                    .into(),
            ),
            settings: vec![("gpu_memory_utilization".into(), "0.9".into())],
            ..Facts::default()
        };
        assert_eq!(number(&facts, "--gpu-memory-utilization"), Some(0.9));
        assert_eq!(number(&facts, "--max-num-seqs"), Some(8.0));
        assert_eq!(switch(&facts, "--enforce-eager"), Some(true));
        assert_eq!(switch(&facts, "--async-scheduling"), Some(false));
        assert_eq!(switch(&facts, "--enable-prefix-caching"), None);
        assert_eq!(setting(&facts, "--block-size"), None);
    }
}
