//! Where runs ran and how, and what is not the same about that.

use std::collections::BTreeMap;

use profilemate_session::{Component, Session};

use super::run::{Run, Workload};
use crate::Answers;
use crate::forward::Timing;

/// Words about a run by what they are about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// In the order in which differences are told; `None` = not known.
    pub facts: Vec<(String, Option<String>)>,
    /// Options of the command, such as `--max-num-seqs` and its values; what is no option is under an empty name.
    /// `None` = the command is not known.
    pub options: Option<BTreeMap<String, String>>,
}

impl Environment {
    pub(crate) fn of(session: &Session, answers: &Answers, timing: Option<Timing>) -> Self {
        let facts = &answers.facts;
        let count = |component| {
            let number = session.logs.iter().filter(|log| log.role(component).is_some()).count();
            (number > 0).then(|| number.to_string())
        };
        let limits = answers.batch.as_ref().and_then(|batch| batch.limits);
        let blocks = answers.kv_cache.as_ref().and_then(|kv_cache| kv_cache.all.total_blocks);
        let said = [
            ("vLLM", facts.vllm_version.clone()),
            ("torch", facts.torch_version.clone()),
            ("GPU", facts.gpu_name.clone()),
            ("GPU driver", facts.gpu_driver.clone()),
            ("GPUs", facts.gpu_count.map(|count| count.to_string())),
            ("model", facts.model.clone()),
            ("engines", count(Component::EngineCore)),
            ("workers", count(Component::Worker)),
            ("max_num_seqs", limits.map(|limits| limits.max_num_seqs.to_string())),
            ("max_num_batched_tokens", limits.map(|limits| limits.max_num_tokens.to_string())),
            ("KV cache blocks", blocks.map(|blocks| blocks.to_string())),
            ("timing mode", facts.timing_mode.clone()),
            ("forward passes timed by", timing.map(|timing| timing.text().to_owned())),
        ];
        let said = said.into_iter().map(|(what, value)| (what.to_owned(), value));
        let profilers =
            facts.profilers.iter().map(|(name, state)| (format!("profiler {name}"), Some(state.clone())));
        Self { facts: said.chain(profilers).collect(), options: facts.command.as_deref().map(options) }
    }

    fn fact(&self, what: &str) -> Option<&str> {
        self.facts.iter().find(|(found, _)| found == what)?.1.as_deref()
    }
}

/// Options that say where a server listens, which makes no difference to its times.
const WHERE_IT_LISTENS: [&str; 4] = ["--host", "--port", "--uds", "--api-key"];

/// The options of a command. What follows an option up to the next belongs to it, since some take several values.
fn options(command: &str) -> BTreeMap<String, String> {
    let mut options = BTreeMap::<String, String>::new();
    let mut current = String::new();
    let mut append = |name: &str, value: &str| {
        let values = options.entry(name.to_owned()).or_default();
        if !values.is_empty() && !value.is_empty() {
            values.push(' ');
        }
        values.push_str(value);
    };
    // A command that no shell would take is cut at its spaces.
    let words = shlex::split(command).unwrap_or_else(|| command.split_whitespace().map(str::to_owned).collect());
    for word in words {
        let is_option = word.starts_with('-') && word.len() > 1 && word.parse::<f64>().is_err();
        if !is_option {
            append(&current, &word);
            continue;
        }
        let (name, value) = word.split_once('=').unwrap_or((&word, ""));
        // vLLM takes both spellings.
        current = if name.starts_with("--") { name.replace('_', "-") } else { name.to_owned() };
        append(&current, value);
    }
    options
}

/// Something that is not the same for all runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// What: `vLLM`, `--max-num-seqs`.
    pub what: String,
    /// What the base's runs say of it, each word once; `None` = it is not known, or there is no such option.
    pub base: Vec<Option<String>>,
    /// What the candidate's runs say of it.
    pub candidate: Vec<Option<String>>,
}

fn distinct(values: impl Iterator<Item = Option<String>>) -> Vec<Option<String>> {
    let mut found: Vec<Option<String>> = values.collect();
    found.sort();
    found.dedup();
    found
}

/// What is not the same about the environments of runs, within a side or between the two.
pub(crate) fn mismatches(base: &[Run], candidate: &[Run]) -> Vec<Mismatch> {
    let all = || base.iter().chain(candidate).map(|run| &run.environment);
    let mut found = Vec::new();
    let mut compare = |what: &str, value: &dyn Fn(&Environment) -> Option<String>| {
        let side = |runs: &[Run]| distinct(runs.iter().map(|run| value(&run.environment)));
        let (base, candidate) = (side(base), side(candidate));
        if base != candidate || base.len() > 1 {
            found.push(Mismatch { what: what.to_owned(), base, candidate });
        }
    };
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in all().flat_map(|environment| &environment.facts) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    for name in names {
        compare(name, &|environment| environment.fact(name).map(str::to_owned));
    }
    let commands: Vec<_> = all().map(|environment| environment.options.as_ref()).collect();
    if commands.iter().any(Option::is_none) {
        // One command alone cannot be compared option by option.
        let known = |environment: &Environment| environment.options.as_ref().map(|_| "known".to_owned());
        compare("command", &known);
        return found;
    }
    let mut options: Vec<&String> = commands.into_iter().flatten().flat_map(BTreeMap::keys).collect();
    options.sort();
    options.dedup();
    for option in options.into_iter().filter(|option| !WHERE_IT_LISTENS.contains(&option.as_str())) {
        let what = if option.is_empty() { "command" } else { option };
        compare(what, &|environment| environment.options.as_ref()?.get(option).cloned());
    }
    found
}

/// Something about the load that differs by more than [`LOAD_DIFFERS_PCT`].
#[derive(Debug, Clone, PartialEq)]
pub struct LoadDifference {
    /// What.
    pub what: &'static str,
    /// Mean over the base's runs.
    pub base: f64,
    /// Mean over the candidate's runs.
    pub candidate: f64,
}

/// Loads that differ by more, in percent of the base's, make times incomparable.
pub const LOAD_DIFFERS_PCT: f64 = 10.0;

/// One thing about a load, by run.
type Load = fn(&Workload) -> Option<f64>;

/// What of a load times depend on.
const LOADS: [(&str, Load); 5] = [
    ("sequences per step", |load| load.sequences_per_step),
    ("tokens per step", |load| load.tokens_per_step),
    ("decode steps in percent", |load| load.decode_steps_pct),
    ("prompt tokens per request", |load| load.prompt_tokens_per_request),
    ("output tokens per request", |load| load.output_tokens_per_request),
];

/// How the loads of two sides differ, as far as times depend on it. Shorter and longer runs are no difference.
pub(crate) fn load_differences(base: &[Run], candidate: &[Run]) -> Vec<LoadDifference> {
    let mean = |runs: &[Run], value: Load| {
        let values: Option<Vec<f64>> = runs.iter().map(|run| value(&run.workload)).collect();
        values.filter(|values| !values.is_empty()).map(|values| values.iter().sum::<f64>() / values.len() as f64)
    };
    LOADS
        .into_iter()
        .filter_map(|(what, value)| {
            let (base, candidate) = (mean(base, value)?, mean(candidate, value)?);
            let differs = (candidate - base).abs() > LOAD_DIFFERS_PCT / 100.0 * base.abs();
            differs.then_some(LoadDifference { what, base, candidate })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_as_a_shell_and_vllm_would() {
        let found =
            options("vllm serve m --max_num_seqs=4 -O3 --lora-modules a=b 'c d' --seed -1 --flag 'it'\\''s'");
        let expected = [
            ("", "vllm serve m"),
            ("--max-num-seqs", "4"),
            ("-O3", ""),
            ("--lora-modules", "a=b c d"),
            ("--seed", "-1"),
            ("--flag", "it's"),
        ];
        assert_eq!(found, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    }
}
