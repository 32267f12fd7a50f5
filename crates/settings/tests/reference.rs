//! `docs/configuration.md` is made from the settings, here. `INSTA_UPDATE=always cargo test -p profilemate-settings`
//! writes it anew.

use std::fmt::Write as _;
use std::path::Path;

use profilemate_settings::{CONFIG_VARIABLE, Kind, SETTINGS, Setting, Settings};

const INTRODUCTION: &str = "\
# Configuration

<!-- Made by crates/settings/tests/reference.rs from crates/settings: change it there. -->

ProfileMate is set by environment variables, and by a TOML file that `PROFILEMATE_CONFIG` names
(`profilemate run --config FILE` names one for a launch). Everything has a default; nothing has to be set.

- **Which value counts.** The `PROFILEMATE_` variable; else the variable of the first generation; else the file; else the
  default. An empty variable is as good as none.
- **A bad value** stops nothing. It costs one line on stderr, with the variable, the value, what is wrong with it and what is used
  instead. So does a key of the file that is no setting, and a file that cannot be read.
- **Who reads them.** The processes of vLLM when they attach, so a change counts from the next launch on. `profilemate` itself reads
  `output_dir`, where it makes sessions and looks for the newest, `enable` under `run`, and `refresh_seconds`.
- **Switches** take `1`, `true`, `yes` or `on`, and `0`, `false`, `no` or `off`.
";

const BEFORE_FILE: &str = "
What a profiler records is on its page, see [the guides](README.md). What `timing` changes is in [GPU timing](gpu-timing.md).

## As a file

Every setting, with its default:

```toml
";

const BEFORE_LEGACY: &str = "```

## Variables of the first generation

They still work where the newer variable is not set. vLLM warns about variables with its prefix that it does not know, so
prefer the newer ones.

| variable | setting | takes |
| --- | --- | --- |
";

/// What a setting takes, for people.
fn takes(kind: Kind) -> String {
    match kind {
        Kind::Switch => "`1` or `0`".to_owned(),
        Kind::LegacySwitch => "`1`; anything else is off".to_owned(),
        Kind::Number { min } => format!("a whole number, at least {min}"),
        Kind::Bytes { min } => format!("bytes: digits, then `K`, `M` or `G` (of 1024); at least {min}"),
        Kind::Path => "a path".to_owned(),
        Kind::Layers => "`all`, or numbers of layers: `0,8,16`".to_owned(),
        Kind::Choice(words) => words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(" or "),
    }
}

/// A default as TOML has it.
fn toml_value(setting: &Setting) -> String {
    match setting.kind {
        Kind::Switch | Kind::LegacySwitch => (setting.default == "1").to_string(),
        Kind::Number { .. } => setting.default.to_owned(),
        Kind::Bytes { .. } | Kind::Path | Kind::Choice(_) | Kind::Layers => format!("\"{}\"", setting.default),
    }
}

/// The file with every setting at its default.
fn toml_file() -> String {
    SETTINGS.iter().fold(String::new(), |mut text, setting| {
        let _ = writeln!(text, "{} = {}", setting.key, toml_value(setting));
        text
    })
}

fn reference() -> String {
    let mut text = INTRODUCTION.to_owned();
    text.push_str("\n## Settings\n\n| key | variable | takes | default | what it does |\n");
    text.push_str("| --- | --- | --- | --- | --- |\n");
    for setting in SETTINGS {
        let Setting { key, variable, default, help, kind, .. } = setting;
        let _ = writeln!(text, "| `{key}` | `{variable}` | {} | `{default}` | {help} |", takes(*kind));
    }
    text.push_str(BEFORE_FILE);
    text.push_str(&toml_file());
    text.push_str(BEFORE_LEGACY);
    for setting in SETTINGS {
        if let Some((name, kind)) = setting.legacy {
            let _ = writeln!(text, "| `{name}` | `{}` | {} |", setting.key, takes(kind));
        }
    }
    text
}

#[test]
fn the_configuration_reference_is_made_from_the_settings() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/configuration.md");
    let wanted = reference();
    if std::env::var("INSTA_UPDATE").is_ok_and(|value| value == "always") {
        std::fs::write(&path, &wanted).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == wanted,
        "docs/configuration.md is not what the settings say: write it anew with INSTA_UPDATE=always, and look at the \
         difference"
    );
}

#[test]
fn the_file_in_the_reference_is_good_and_changes_nothing() {
    let folder = std::env::temp_dir().join(format!("profilemate-reference-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("profilemate.toml");
    std::fs::write(&path, toml_file()).unwrap();
    let (from_file, problems) =
        Settings::load(|name| (name == CONFIG_VARIABLE).then(|| path.to_str().unwrap().to_owned()));
    assert_eq!(problems, []);
    let (defaults, _) = Settings::load(|_| None);
    for ((setting, value), (_, default)) in from_file.iter().zip(defaults.iter()) {
        assert!(from_file.is_set(setting.key), "{}", setting.key);
        assert_eq!(value, default, "{}", setting.key);
    }
    std::fs::remove_dir_all(folder).unwrap();
}
