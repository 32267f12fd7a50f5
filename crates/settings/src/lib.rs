//! Every setting of ProfileMate.
//!
//! A value comes from its `PROFILEMATE_*` variable, else from the variable that the first generation used, else from
//! `profilemate.toml` (named by `PROFILEMATE_CONFIG`), else it is the default. A bad value never stops anything: it
//! becomes a [`Problem`] that says what is used instead.

use std::fmt;

/// Names of variables that are not settings of a user: they tie the processes of one session together.
pub mod internal {
    /// Folder of the session that this process belongs to; children inherit it.
    pub const SESSION: &str = "PROFILEMATE_SESSION";
    /// Set by `profilemate run`: the launcher makes the tables, so no process needs to start a collector.
    pub const COLLECTOR: &str = "PROFILEMATE_COLLECTOR";
    /// Set by tests: makes every probe fail, to show that vLLM does not notice (`raise` or `panic`).
    pub const FAULT: &str = "PROFILEMATE_FAULT";
}

/// Names the configuration file.
pub const CONFIG_VARIABLE: &str = "PROFILEMATE_CONFIG";

/// What kind of value a setting takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// On or off.
    Switch,
    /// The first generation's switch: `1` is on and anything else is off.
    LegacySwitch,
    /// A whole number of at least the bound.
    Number {
        /// Least value.
        min: u64,
    },
    /// A number of bytes: digits, or digits with K, M, G (powers of 1024).
    Bytes {
        /// Least value.
        min: u64,
    },
    /// A path.
    Path,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// `all`, or the numbers of layers: `0,8,16`, or `[0, 8, 16]` as a file has them.
    Layers,
}

/// One setting.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Its key in `profilemate.toml` and in the code.
    pub key: &'static str,
    /// Its environment variable.
    pub variable: &'static str,
    /// The first generation's variable and how that is read, where there was one.
    pub legacy: Option<(&'static str, Kind)>,
    /// What it takes.
    pub kind: Kind,
    /// Its default, as it would be written.
    pub default: &'static str,
    /// What it does, in one line.
    pub help: &'static str,
}

const fn switch(key: &'static str, variable: &'static str, default: &'static str, help: &'static str) -> Setting {
    Setting { key, variable, legacy: None, kind: Kind::Switch, default, help }
}

/// Every setting, in the order of the documentation.
pub const SETTINGS: &[Setting] = &[
    Setting {
        key: "enable",
        variable: "PROFILEMATE_ENABLE",
        legacy: Some(("VLLM_ENABLE_PROFILING", Kind::LegacySwitch)),
        kind: Kind::Switch,
        default: "1",
        help: "Record at all",
    },
    Setting {
        key: "output_dir",
        variable: "PROFILEMATE_OUTPUT_DIR",
        legacy: Some(("VLLM_PROFILING_DIR", Kind::Path)),
        kind: Kind::Path,
        default: "/tmp/vllm_profiling",
        help: "Folder in which session folders are made",
    },
    Setting {
        key: "max_bytes",
        variable: "PROFILEMATE_MAX_BYTES",
        legacy: None,
        kind: Kind::Bytes { min: 1 << 20 },
        default: "2G",
        help: "Most bytes of raw log a process keeps; the oldest whole segments go first",
    },
    Setting {
        key: "segment_bytes",
        variable: "PROFILEMATE_SEGMENT_BYTES",
        legacy: None,
        kind: Kind::Bytes { min: 4096 },
        default: "4M",
        help: "Size of one raw-log file; a process has two of them mapped",
    },
    Setting {
        key: "refresh_seconds",
        variable: "PROFILEMATE_REFRESH_SECONDS",
        legacy: None,
        kind: Kind::Number { min: 1 },
        default: "10",
        help: "Seconds between two refreshes of the tables while the server runs",
    },
    Setting {
        key: "timing",
        variable: "PROFILEMATE_TIMING",
        legacy: None,
        kind: Kind::Choice(&["events", "lightweight"]),
        default: "events",
        help: "How forward passes are timed where there is a GPU",
    },
    Setting {
        key: "cuda_event_batch_size",
        variable: "PROFILEMATE_CUDA_EVENT_BATCH_SIZE",
        legacy: None,
        kind: Kind::Number { min: 1 },
        default: "100",
        help: "Steps in flight on the GPU before their events are looked at more often",
    },
    Setting {
        key: "layers",
        variable: "PROFILEMATE_LAYERS",
        legacy: None,
        kind: Kind::Choice(&["sample", "all", "off"]),
        default: "sample",
        help: "Layers whose parts are timed inside the forward pass: first, middle and last of each kind, all, or none",
    },
    Setting {
        key: "layers_every",
        variable: "PROFILEMATE_LAYERS_EVERY",
        legacy: None,
        kind: Kind::Number { min: 1 },
        default: "16",
        help: "One step in so many has the parts of its layers timed, chosen by chance",
    },
    Setting {
        key: "hash_request_ids",
        variable: "PROFILEMATE_HASH_REQUEST_IDS",
        legacy: None,
        kind: Kind::Switch,
        default: "0",
        help: "Record a hash in place of each request id",
    },
    switch("cuda_graph_tracking", "PROFILEMATE_ENABLE_CUDA_GRAPH_TRACKING", "1", "CUDA graph profiler"),
    switch("kv_cache_tracking", "PROFILEMATE_ENABLE_KV_CACHE_TRACKING", "1", "KV cache profiler"),
    switch("moe_expert_tracking", "PROFILEMATE_ENABLE_MOE_EXPERT_TRACKING", "1", "MoE expert profiler"),
    switch("forward_pass_timing", "PROFILEMATE_ENABLE_FORWARD_PASS_TIMING", "1", "Forward pass profiler"),
    switch("cpu_timing", "PROFILEMATE_ENABLE_CPU_TIMING", "1", "CPU timing profiler"),
    switch(
        "batch_utilization_tracking",
        "PROFILEMATE_ENABLE_BATCH_UTILIZATION_TRACKING",
        "1",
        "Batch utilization profiler",
    ),
    switch(
        "preemption_tracking",
        "PROFILEMATE_ENABLE_PREEMPTION_TRACKING",
        "1",
        "Preemption and lifecycle profiler",
    ),
    switch("encoder_decoder_timing", "PROFILEMATE_ENABLE_ENCODER_DECODER_TIMING", "1", "Encoder/decoder profiler"),
    switch("nvtx", "PROFILEMATE_NVTX", "0", "Make an NVTX range of each hooked function, for Nsight Systems"),
    Setting {
        key: "moe_layers",
        variable: "PROFILEMATE_MOE_LAYERS",
        legacy: None,
        kind: Kind::Layers,
        default: "all",
        help: "MoE layers whose experts are counted",
    },
    switch(
        "moe_coselection",
        "PROFILEMATE_MOE_COSELECTION",
        "0",
        "Also count pairs of experts chosen for one token",
    ),
    switch("moe_weights", "PROFILEMATE_MOE_WEIGHTS", "0", "Also count routing weights, as a histogram"),
    Setting {
        key: "moe_interval_seconds",
        variable: "PROFILEMATE_MOE_INTERVAL_SECONDS",
        legacy: None,
        kind: Kind::Number { min: 1 },
        default: "10",
        help: "Seconds between two records of the load of experts",
    },
    switch("sampling_timing", "PROFILEMATE_ENABLE_SAMPLING_TIMING", "1", "Sampling profiler"),
    switch("gpu_memory", "PROFILEMATE_ENABLE_GPU_MEMORY", "1", "GPU memory profiler"),
    Setting {
        key: "verbose",
        variable: "PROFILEMATE_VERBOSE",
        legacy: Some(("VLLM_PROFILING_VERBOSE", Kind::Switch)),
        kind: Kind::Switch,
        default: "0",
        help: "Say on stderr what is recorded and what attaches",
    },
    Setting {
        key: "log_interval",
        variable: "PROFILEMATE_LOG_INTERVAL",
        legacy: Some(("VLLM_PROFILING_LOG_INTERVAL", Kind::Number { min: 1 })),
        kind: Kind::Number { min: 1 },
        default: "100",
        help: "Engine steps between two progress lines when verbose",
    },
    Setting {
        key: "debug",
        variable: "PROFILEMATE_DEBUG",
        legacy: Some(("VLLM_PROFILING_DEBUG", Kind::Switch)),
        kind: Kind::Switch,
        default: "0",
        help: "Also print events on stderr",
    },
    Setting {
        key: "debug_interval",
        variable: "PROFILEMATE_DEBUG_INTERVAL",
        legacy: Some(("VLLM_PROFILING_DEBUG_INTERVAL", Kind::Number { min: 1 })),
        kind: Kind::Number { min: 1 },
        default: "1",
        help: "Print every N-th event when debugging",
    },
];

/// A value that could not be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The variable, or the key and the file.
    pub source: String,
    /// What it was set to.
    pub value: String,
    /// What is wrong with it.
    pub reason: String,
    /// What is used instead.
    pub used: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values come from outside, and so do a file's keys: no control character of theirs reaches a terminal.
        let value: String = self.value.chars().take(80).flat_map(char::escape_default).collect();
        write!(f, "{}=\"{value}\" {}; using {}", seen(&self.source), seen(&self.reason), seen(&self.used))
    }
}

/// The text with control characters written out.
fn seen(text: &str) -> String {
    let letter = |letter: char| {
        if letter.is_control() { letter.escape_default().collect() } else { String::from(letter) }
    };
    text.chars().map(letter).collect()
}

/// A value of a setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Of a switch.
    Switch(bool),
    /// Of a number or a number of bytes.
    Number(u64),
    /// Of a path or a choice.
    Text(String),
}

fn parse(kind: Kind, text: &str) -> Result<Value, String> {
    let trimmed = text.trim();
    match kind {
        Kind::Switch => match trimmed.to_ascii_lowercase().as_str() {
            "1" | "true" | "yes" | "on" => Ok(Value::Switch(true)),
            "0" | "false" | "no" | "off" => Ok(Value::Switch(false)),
            _ => Err("is neither 1 nor 0".into()),
        },
        Kind::LegacySwitch => Ok(Value::Switch(trimmed == "1")),
        Kind::Number { min } => match trimmed.parse::<u64>() {
            Ok(number) if number >= min => Ok(Value::Number(number)),
            _ => Err(format!("is not a whole number of at least {min}")),
        },
        Kind::Bytes { min } => {
            let (digits, shift) = match trimmed.as_bytes().last().map(u8::to_ascii_uppercase) {
                Some(b'K') => (&trimmed[..trimmed.len() - 1], 10),
                Some(b'M') => (&trimmed[..trimmed.len() - 1], 20),
                Some(b'G') => (&trimmed[..trimmed.len() - 1], 30),
                _ => (trimmed, 0),
            };
            digits
                .parse::<u64>()
                .ok()
                .and_then(|number| number.checked_mul(1 << shift))
                .filter(|number| *number >= min)
                .map(Value::Number)
                .ok_or_else(|| format!("is not a number of bytes of at least {min} (digits, then K, M or G)"))
        }
        Kind::Path if trimmed.is_empty() => Err("is empty".into()),
        Kind::Path if text.contains('\0') => Err("is not a path".into()),
        Kind::Path => Ok(Value::Text(text.to_owned())),
        Kind::Choice(words) if words.contains(&trimmed) => Ok(Value::Text(trimmed.to_owned())),
        Kind::Choice(words) => Err(format!("is none of {}", words.join(", "))),
        Kind::Layers if trimmed == "all" => Ok(Value::Text(trimmed.to_owned())),
        Kind::Layers => {
            let inner = trimmed.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(trimmed);
            let layers: Result<Vec<u16>, _> = inner.split(',').map(|layer| layer.trim().parse()).collect();
            let text = |layers: Vec<u16>| layers.iter().map(u16::to_string).collect::<Vec<_>>().join(",");
            let reason = "is neither all nor numbers of layers with commas between them";
            layers.map(|layers| Value::Text(text(layers))).map_err(|_| reason.into())
        }
    }
}

/// All settings, resolved.
#[derive(Debug, Clone)]
pub struct Settings {
    values: Vec<(Value, bool)>,
}

impl Settings {
    /// Resolves every setting from `variable` (a look-up of environment variables) and the configuration file.
    pub fn load(variable: impl Fn(&str) -> Option<String>) -> (Self, Vec<Problem>) {
        Self::load_with(variable, |path| std::fs::read_to_string(path))
    }

    /// The same with `read` in place of the file system.
    pub fn load_with(
        variable: impl Fn(&str) -> Option<String>,
        read: impl Fn(&str) -> std::io::Result<String>,
    ) -> (Self, Vec<Problem>) {
        let mut problems = Vec::new();
        let file = variable(CONFIG_VARIABLE)
            .filter(|path| !path.is_empty())
            .map(|path| (parse_file(read(&path), &path, &mut problems), path));
        let values =
            SETTINGS.iter().map(|setting| resolve(setting, &variable, file.as_ref(), &mut problems)).collect();
        (Self { values }, problems)
    }

    /// Resolves every setting from the environment of this process.
    pub fn from_environment() -> (Self, Vec<Problem>) {
        Self::load(|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()))
    }

    fn get(&self, key: &str) -> Option<&(Value, bool)> {
        SETTINGS.iter().position(|setting| setting.key == key).map(|at| &self.values[at])
    }

    /// Every setting with its value.
    pub fn iter(&self) -> impl Iterator<Item = (&'static Setting, &Value)> {
        SETTINGS.iter().zip(self.values.iter().map(|(value, _)| value))
    }

    /// Whether somebody set this one.
    pub fn is_set(&self, key: &str) -> bool {
        self.get(key).is_some_and(|(_, set)| *set)
    }

    /// A switch; off for a key that is none.
    pub fn switch(&self, key: &str) -> bool {
        matches!(self.get(key), Some((Value::Switch(true), _)))
    }

    /// A number; 0 for a key that is none.
    pub fn number(&self, key: &str) -> u64 {
        match self.get(key) {
            Some((Value::Number(number), _)) => *number,
            _ => 0,
        }
    }

    /// A text; empty for a key that is none.
    pub fn text(&self, key: &str) -> &str {
        match self.get(key) {
            Some((Value::Text(text), _)) => text,
            _ => "",
        }
    }
}

fn resolve(
    setting: &Setting,
    variable: impl Fn(&str) -> Option<String>,
    file: Option<&(toml::Table, String)>,
    problems: &mut Vec<Problem>,
) -> (Value, bool) {
    let legacy = setting.legacy.map(|(name, kind)| (name.to_owned(), kind, variable(name)));
    let own = (setting.variable.to_owned(), setting.kind, variable(setting.variable));
    let in_file = file.and_then(|(table, path)| {
        let value = match table.get(setting.key)? {
            toml::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        Some((format!("{} in {path}", setting.key), setting.kind, Some(value)))
    });
    let mut rejected = Vec::new();
    let mut found = None;
    for (source, kind, value) in [Some(own), legacy, in_file].into_iter().flatten() {
        // An empty variable is as good as none: that is how shells unset one in passing.
        let Some(value) = value.filter(|value| !value.is_empty()) else { continue };
        match parse(kind, &value) {
            Ok(parsed) => {
                found = Some((parsed, value));
                break;
            }
            Err(reason) => rejected.push((source, value, reason)),
        }
    }
    let used = found.as_ref().map_or(setting.default, |(_, text)| text).to_owned();
    problems.extend(rejected.into_iter().map(|(source, value, reason)| Problem {
        source,
        value,
        reason,
        used: used.clone(),
    }));
    let set = found.is_some();
    let value = found.map_or_else(
        || parse(setting.kind, setting.default).unwrap_or_else(|_| Value::Text(setting.default.to_owned())),
        |(value, _)| value,
    );
    (value, set)
}

fn parse_file(text: std::io::Result<String>, path: &str, problems: &mut Vec<Problem>) -> toml::Table {
    let problem = |reason: String| Problem {
        source: CONFIG_VARIABLE.to_owned(),
        value: path.to_owned(),
        reason,
        used: "the environment and the defaults".to_owned(),
    };
    let text = match text {
        Ok(text) => text,
        Err(error) => {
            problems.push(problem(format!("cannot be read ({error})")));
            return toml::Table::new();
        }
    };
    match text.parse::<toml::Table>() {
        Ok(table) => {
            for key in table.keys().filter(|key| SETTINGS.iter().all(|setting| setting.key != key.as_str())) {
                problems.push(Problem {
                    source: format!("{key} in {path}"),
                    value: table.get(key).map(ToString::to_string).unwrap_or_default(),
                    reason: "is no setting".to_owned(),
                    used: "nothing of it".to_owned(),
                });
            }
            table
        }
        Err(error) => {
            let first_line = error.message().lines().next().unwrap_or("no TOML").to_owned();
            problems.push(problem(format!("is not valid TOML ({first_line})")));
            toml::Table::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(pairs: &[(&str, &str)]) -> (Settings, Vec<String>) {
        let (settings, problems) = Settings::load(|name| {
            pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        });
        (settings, problems.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn every_default_is_a_good_value() {
        for setting in SETTINGS {
            assert!(parse(setting.kind, setting.default).is_ok(), "{}", setting.key);
            assert!(setting.variable.starts_with("PROFILEMATE_"), "{}", setting.key);
        }
        let (settings, problems) = load(&[]);
        assert_eq!(problems, [""; 0]);
        assert_eq!(settings.number("max_bytes"), 2 << 30);
        assert_eq!(settings.number("log_interval"), 100);
        assert_eq!(settings.text("output_dir"), "/tmp/vllm_profiling");
        assert!(settings.switch("enable") && !settings.is_set("enable"));
    }

    #[test]
    fn a_bad_value_of_every_setting_is_one_sentence_with_variable_value_and_default() {
        for setting in SETTINGS.iter().filter(|setting| setting.kind != Kind::Path) {
            let (_, problems) = load(&[(setting.variable, "banana\u{1b}[2J")]);
            assert_eq!(problems.len(), 1, "{}", setting.key);
            assert!(problems[0].starts_with(&format!("{}=\"banana", setting.variable)), "{}", problems[0]);
            assert!(problems[0].ends_with(&format!("using {}", setting.default)), "{}", problems[0]);
            assert!(!problems[0].contains('\u{1b}'));
        }
    }

    #[test]
    fn the_first_generations_switch_is_on_only_for_1() {
        for (value, on) in [("1", true), ("true", false), ("0", false), ("yes", false)] {
            assert_eq!(load(&[("VLLM_ENABLE_PROFILING", value)]).0.switch("enable"), on);
        }
    }

    #[test]
    fn our_variable_wins_over_the_legacy_one_and_the_file_is_last() {
        let folder = std::env::temp_dir().join(format!("profilemate-settings-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("profilemate.toml");
        std::fs::write(&path, "log_interval = 7\nmax_bytes = \"3M\"\nverbose = true\nnonsense = 1\n").unwrap();
        let path = path.to_str().unwrap();
        let (settings, problems) = load(&[(CONFIG_VARIABLE, path)]);
        assert_eq!((settings.number("log_interval"), settings.number("max_bytes")), (7, 3 << 20));
        assert!(settings.switch("verbose"));
        assert_eq!(problems.len(), 1);
        assert!(problems[0].contains("nonsense"));
        let legacy = ("VLLM_PROFILING_LOG_INTERVAL", "8");
        assert_eq!(load(&[(CONFIG_VARIABLE, path), legacy]).0.number("log_interval"), 8);
        let own = ("PROFILEMATE_LOG_INTERVAL", "9");
        assert_eq!(load(&[(CONFIG_VARIABLE, path), legacy, own]).0.number("log_interval"), 9);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn layers_are_all_or_numbers() {
        for (value, layers) in [("all", "all"), ("0,8, 16", "0,8,16"), ("[1, 2]", "1,2"), ("7", "7")] {
            assert_eq!(load(&[("PROFILEMATE_MOE_LAYERS", value)]).0.text("moe_layers"), layers);
        }
        for value in ["none", "1,,2", "-1", "[]", "1-3"] {
            let (settings, problems) = load(&[("PROFILEMATE_MOE_LAYERS", value)]);
            assert_eq!((settings.text("moe_layers"), problems.len()), ("all", 1), "{value}");
        }
    }

    #[test]
    fn a_missing_or_broken_file_is_a_problem_and_not_an_error() {
        let (settings, problems) = load(&[(CONFIG_VARIABLE, "/nowhere/profilemate.toml")]);
        assert_eq!(settings.number("log_interval"), 100);
        assert!(problems[0].contains("cannot be read"), "{problems:?}");
    }
}
