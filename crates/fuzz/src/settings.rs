//! Settings: variables of the environment, and the configuration file.

use std::io;

use profilemate_settings::{CONFIG_VARIABLE, Kind, SETTINGS, Settings, Value};

/// Input: the configuration file; behind a NUL, lines that each begin with the number of a setting and give the value of its
/// variable (or, where it has one and the number is odd, of its older one).
pub fn run(data: &[u8]) {
    let mut parts = data.splitn(2, |byte| *byte == 0);
    let file = parts.next().unwrap_or_default();
    let variables: Vec<(&str, String)> = parts
        .next()
        .unwrap_or_default()
        .split(|byte| *byte == b'\n')
        .filter_map(|line| {
            let (number, value) = line.split_first()?;
            let setting = &SETTINGS[usize::from(*number / 2) % SETTINGS.len()];
            let older = setting.legacy.map(|(name, _)| name).filter(|_| number % 2 == 1);
            Some((older.unwrap_or(setting.variable), String::from_utf8_lossy(value).into_owned()))
        })
        .collect();
    // The parser of TOML makes a table of each dot in a key: about 1 KiB.
    let limit = (64 << 10) + 2048 * data.len();
    let (settings, problems) = crate::memory::within(limit, || {
        let variable = |name: &str| {
            if name == CONFIG_VARIABLE && !file.is_empty() {
                return Some("profilemate.toml".to_owned());
            }
            variables.iter().find(|(variable, _)| *variable == name).map(|(_, value)| value.clone())
        };
        let read = |_: &str| {
            String::from_utf8(file.to_vec()).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
        };
        Settings::load_with(variable, read)
    });
    for problem in problems {
        let said = problem.to_string();
        assert!(!said.contains(char::is_control), "one line that a terminal shows: {said:?}");
    }
    // Whatever was set, every setting has a value of its kind.
    for (setting, value) in settings.iter() {
        match (setting.kind, value) {
            (Kind::Switch | Kind::LegacySwitch, Value::Switch(_)) => {}
            (Kind::Number { min } | Kind::Bytes { min }, Value::Number(number)) => assert!(*number >= min),
            (Kind::Path, Value::Text(text)) => assert!(!text.trim().is_empty() && !text.contains('\0')),
            (Kind::Layers, Value::Text(text)) => assert!(!text.contains(char::is_control)),
            (Kind::Choice(words), Value::Text(text)) => assert!(words.contains(&text.trim())),
            (kind, value) => panic!("{} is {value:?}, which is no {kind:?}", setting.key),
        }
    }
}
