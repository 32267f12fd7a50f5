//! One line of vLLM's log.
//!
//! The messages, as vLLM's sources write them (`v1/engine/core.py` up to 0.25, `v1/metrics/loggers.py` since):
//!
//! ```text
//! 0.14  Iteration(5): 1 context requests, 30 context tokens, 7 generation requests, 7 generation tokens, iteration elapsed time: 10.99 ms
//! 0.24  … and " (dummy)" behind it, for a step without requests on a data-parallel rank
//! 0.26  Engine 000: Iteration(5): … ms, GPU KV cache usage: 12.3%, encoder inputs: 4, encoder output embeddings: 3520
//! 0.30  … with CPU or another device in place of GPU
//! ```
//! What stands before a message: `(EngineCore_DP0 pid=123) INFO 11-24 20:31:05 [core.py:352] `, the first part from
//! another process or absent, in colours or without; or, since 0.32, a JSON object around it all.

use std::borrow::Cow;

use serde_json::{Map, Value};

/// Longest iteration that is believed: a day, in nanoseconds.
const LONGEST_NS: u64 = 86_400_000_000_000;

/// What vLLM says of one iteration of its engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Iteration {
    /// The engine, where the message names it.
    pub engine: Option<u32>,
    /// Which iteration of the engine, from 0.
    pub index: u64,
    /// Requests that have no output token yet.
    pub context_requests: u32,
    /// Their tokens in this batch.
    pub context_tokens: u32,
    /// The other requests.
    pub generation_requests: u32,
    /// Their tokens in this batch.
    pub generation_tokens: u32,
    /// How long the engine waited for the model's output, nanoseconds.
    pub elapsed_ns: u64,
    /// Whether it was a batch without requests.
    pub is_dummy: bool,
    /// Share of the KV cache in use after it, in thousandths.
    pub kv_usage: Option<u32>,
    /// Inputs that encoders computed in it, and the embeddings that came out.
    pub encoder: Option<[u32; 2]>,
}

/// When a line was written, as far as it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Not in vLLM's own format.
    pub year: Option<u16>,
    /// From 1.
    pub month: u8,
    /// From 1.
    pub day: u8,
    /// Second of the day.
    pub second: u32,
    /// Fraction of the second.
    pub nanosecond: u32,
    /// Length of the last digit: 1 s, or less where there is a fraction.
    pub resolution_ns: u32,
}

/// The process that wrote a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// `EngineCore_DP0`, `APIServer`, …
    pub name: String,
    /// Its id.
    pub pid: u32,
}

impl Origin {
    /// The engine that it is, by its name; `None` for other processes.
    pub fn engine(&self) -> Option<u32> {
        let rest = self.name.strip_prefix("EngineCore")?;
        let digits = rest.trim_start_matches(|letter: char| !letter.is_ascii_digit());
        if digits.is_empty() { Some(0) } else { digits.parse().ok() }
    }
}

/// What a line is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// An iteration.
    Iteration(Iteration),
    /// Begins like one, and goes on in a way that is not known here.
    UnknownIteration,
    /// Averages over some seconds, of no step.
    Throughput,
    /// Tells something of the engine.
    About(About),
    /// Anything else.
    Other,
}

/// What else lines tell.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct About {
    /// Version of vLLM.
    pub version: Option<String>,
    /// The model.
    pub model: Option<String>,
    /// `--max-num-batched-tokens`.
    pub max_num_tokens: Option<u64>,
    /// `--max-num-seqs`.
    pub max_num_seqs: Option<u64>,
}

/// A line, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// What it is.
    pub kind: Kind,
    /// When it was written.
    pub stamp: Option<Stamp>,
    /// By whom.
    pub origin: Option<Origin>,
}

impl Line {
    /// Understands a line, without its end.
    pub fn parse(text: &str) -> Self {
        let text = without_colours(text);
        let text = text.trim();
        if text.starts_with('{')
            && let Ok(Value::Object(object)) = serde_json::from_str(text)
        {
            return Self::of_json(&object);
        }
        Self::of_text(text)
    }

    fn of_text(text: &str) -> Self {
        let (prefix, kind) = message(text);
        Self { kind, stamp: last_stamp(prefix), origin: origin(prefix) }
    }

    /// A log in JSON: vLLM's own (`message`, `asctime`, `processName`, `process`), or a container's around lines of text.
    fn of_json(object: &Map<String, Value>) -> Self {
        let text = |key: &str| object.get(key).and_then(Value::as_str);
        if let Some(line) = text("log") {
            return Self::of_text(without_colours(line).trim());
        }
        let (_, kind) = message(text("message").unwrap_or_default().trim());
        let stamp = ["asctime", "timestamp"].into_iter().find_map(|key| last_stamp(text(key)?));
        let pid = object.get("process").and_then(Value::as_u64).and_then(|pid| u32::try_from(pid).ok());
        let origin = text("processName").zip(pid).map(|(name, pid)| Origin { name: name.to_owned(), pid });
        Self { kind, stamp, origin }
    }
}

/// Without the escape sequences that colour a terminal.
fn without_colours(text: &str) -> Cow<'_, str> {
    if !text.contains('\u{1b}') {
        return Cow::Borrowed(text);
    }
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once("\u{1b}[") {
        plain.push_str(before);
        rest = behind.trim_start_matches(|letter: char| letter.is_ascii_digit() || letter == ';');
        rest = rest.strip_prefix('m').unwrap_or(rest);
    }
    plain.push_str(rest);
    Cow::Owned(plain)
}

/// Takes a message apart from what stands before it.
fn message(text: &str) -> (&str, Kind) {
    const BEGINNING: &str = "Iteration(";
    if let Some((at, _)) = text.match_indices(BEGINNING).last()
        && looks_like_iteration(&text[at..])
    {
        let (before, engine) = engine_before(&text[..at]);
        let kind = iteration(&text[at..], engine).map_or(Kind::UnknownIteration, Kind::Iteration);
        return (before, kind);
    }
    if text.contains(": Avg prompt throughput: ") {
        return (text, Kind::Throughput);
    }
    (text, about(text).map_or(Kind::Other, Kind::About))
}

/// Whether somebody else than vLLM is not likely to have written this.
fn looks_like_iteration(text: &str) -> bool {
    let mut cursor = Cursor(text);
    cursor.word("Iteration(").is_some() && cursor.digits().is_some() && cursor.word("): ").is_some()
}

/// Cuts `Engine 000: ` off the end.
fn engine_before(before: &str) -> (&str, Option<u32>) {
    let found = before.strip_suffix(": ").and_then(|rest| {
        let (before, number) = rest.rsplit_once("Engine ")?;
        let is_number = number.len() >= 3 && number.bytes().all(|byte| byte.is_ascii_digit());
        Some((before, number.parse().ok().filter(|_| is_number)?))
    });
    found.map_or((before, None), |(before, engine)| (before, Some(engine)))
}

/// Reads a text from left to right.
struct Cursor<'a>(&'a str);

impl<'a> Cursor<'a> {
    /// Exactly this text.
    fn word(&mut self, word: &str) -> Option<()> {
        self.0 = self.0.strip_prefix(word)?;
        Some(())
    }

    fn digits(&mut self) -> Option<&'a str> {
        let end = self.0.bytes().take_while(u8::is_ascii_digit).count();
        let (digits, rest) = self.0.split_at(end);
        self.0 = rest;
        (end > 0).then_some(digits)
    }

    fn number<T: std::str::FromStr>(&mut self) -> Option<T> {
        self.digits()?.parse().ok()
    }

    /// A number with exactly `places` digits behind its point, as a count of the last one.
    fn fixed(&mut self, places: usize) -> Option<u64> {
        let whole: u64 = self.number()?;
        self.word(".")?;
        let fraction = self.digits().filter(|digits| digits.len() == places)?;
        whole.checked_mul(10u64.checked_pow(u32::try_from(places).ok()?)?)?.checked_add(fraction.parse().ok()?)
    }
}

/// The message of an iteration, from its first word to its last.
fn iteration(text: &str, engine: Option<u32>) -> Option<Iteration> {
    let mut cursor = Cursor(text);
    cursor.word("Iteration(")?;
    let index = cursor.number()?;
    cursor.word("): ")?;
    let context_requests = cursor.number()?;
    cursor.word(" context requests, ")?;
    let context_tokens = cursor.number()?;
    cursor.word(" context tokens, ")?;
    let generation_requests = cursor.number()?;
    cursor.word(" generation requests, ")?;
    let generation_tokens = cursor.number()?;
    cursor.word(" generation tokens, iteration elapsed time: ")?;
    let elapsed_ns = cursor.fixed(2)?.checked_mul(10_000).filter(|elapsed| *elapsed <= LONGEST_NS)?;
    cursor.word(" ms")?;
    let is_dummy = cursor.word(" (dummy)").is_some();
    let mut found = Iteration {
        engine,
        index,
        context_requests,
        context_tokens,
        generation_requests,
        generation_tokens,
        elapsed_ns,
        is_dummy,
        kv_usage: None,
        encoder: None,
    };
    if cursor.0.is_empty() {
        return Some(found);
    }
    cursor.word(", ")?;
    let (device, rest) = cursor.0.split_once(" KV cache usage: ")?;
    if device.is_empty() || !device.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return None;
    }
    cursor.0 = rest;
    found.kv_usage = Some(u32::try_from(cursor.fixed(1)?).ok().filter(|share| *share <= 1000)?);
    cursor.word("%")?;
    if cursor.0.is_empty() {
        return Some(found);
    }
    cursor.word(", encoder inputs: ")?;
    let inputs = cursor.number()?;
    cursor.word(", encoder output embeddings: ")?;
    found.encoder = Some([inputs, cursor.number()?]);
    cursor.0.is_empty().then_some(found)
}

/// What is between `before` and `after`, if it is short.
fn between<'a>(text: &'a str, before: &str, after: char) -> Option<&'a str> {
    let (_, rest) = text.split_once(before)?;
    let (found, _) = rest.split_once(after)?;
    (!found.is_empty() && found.len() <= 1024).then_some(found)
}

fn number_behind(text: &str, before: &str) -> Option<u64> {
    Cursor(text.split_once(before)?.1).number().filter(|number| *number > 0)
}

/// What vLLM says of itself when it starts, in the words of 0.14 to 0.33.
fn about(text: &str) -> Option<About> {
    let mut about = About::default();
    if text.contains("LLM engine (v") {
        about.version = between(text, "LLM engine (v", ')').map(str::to_owned);
        about.model = between(text, "with config: model='", '\'').map(str::to_owned);
    } else if text.contains("Chunked prefill is enabled with ") {
        about.max_num_tokens = number_behind(text, "max_num_batched_tokens=");
    } else if text.contains("non-default args: {") {
        about.max_num_seqs = number_behind(text, "'max_num_seqs': ");
        about.max_num_tokens = number_behind(text, "'max_num_batched_tokens': ");
    }
    (about != About::default()).then_some(about)
}

/// The last time stamp of a text: `11-24 20:31:05`, perhaps with a year before and a fraction behind.
fn last_stamp(text: &str) -> Option<Stamp> {
    const LENGTH: usize = "11-24 20:31:05".len();
    let bytes = text.as_bytes();
    let last = bytes.len().checked_sub(LENGTH)?;
    (0..=last).rev().find_map(|at| stamp_at(bytes, at))
}

fn stamp_at(bytes: &[u8], at: usize) -> Option<Stamp> {
    let digit = |at: usize| bytes.get(at).filter(|byte| byte.is_ascii_digit()).map(|byte| u32::from(*byte - b'0'));
    let two = |at: usize| Some(digit(at)? * 10 + digit(at + 1)?);
    let is = |at: usize, wanted: &[u8]| bytes.get(at).is_some_and(|byte| wanted.contains(byte));
    if !(is(at + 2, b"-") && is(at + 5, b" T") && is(at + 8, b":") && is(at + 11, b":")) {
        return None;
    }
    let [month, day, hour, minute, second] = [two(at)?, two(at + 3)?, two(at + 6)?, two(at + 9)?, two(at + 12)?];
    // A leap second is the last one of its minute.
    let second = second.min(59);
    let is_plausible = (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60;
    // No digits may go on before or behind it.
    let year = (|| {
        let from = at.checked_sub(5)?;
        let year = two(from)? * 100 + two(from + 2)?;
        (is(at - 1, b"-") && from.checked_sub(1).is_none_or(|before| digit(before).is_none())).then_some(year)
    })();
    let begins = year.is_some() || at.checked_sub(1).is_none_or(|before| digit(before).is_none());
    let end = at + 14;
    if !is_plausible || !begins || digit(end).is_some() {
        return None;
    }
    let places =
        if is(end, b".,") { (end + 1..).take(9).take_while(|at| digit(*at).is_some()).count() } else { 0 };
    let mut nanosecond = 0;
    for place in 0..9 {
        nanosecond = nanosecond * 10 + if place < places { digit(end + 1 + place)? } else { 0 };
    }
    Some(Stamp {
        year: year.and_then(|year| u16::try_from(year).ok()).filter(|year| *year >= 1970),
        month: u8::try_from(month).ok()?,
        day: u8::try_from(day).ok()?,
        second: hour * 3600 + minute * 60 + second,
        nanosecond,
        resolution_ns: 10u32.pow(9 - u32::try_from(places).ok()?),
    })
}

/// The last `(NAME pid=NUMBER)` of a text.
fn origin(text: &str) -> Option<Origin> {
    let (before, behind) = text.rsplit_once(" pid=")?;
    let pid = Cursor(behind).number()?;
    let name = before.rsplit_once('(')?.1;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    (!name.is_empty() && name.len() <= 64 && name.bytes().all(is_plain))
        .then(|| Origin { name: name.to_owned(), pid })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PLAIN: Iteration = Iteration {
        engine: None,
        index: 516,
        context_requests: 1,
        context_tokens: 30,
        generation_requests: 7,
        generation_tokens: 8,
        elapsed_ns: 10_950_000,
        is_dummy: false,
        kv_usage: None,
        encoder: None,
    };
    const MESSAGE: &str = "Iteration(516): 1 context requests, 30 context tokens, 7 generation requests, \
                           8 generation tokens, iteration elapsed time: 10.95 ms";

    fn kind(text: &str) -> Kind {
        Line::parse(text).kind
    }

    fn at(month: u8, day: u8, hour: u32, minute: u32, second: u32) -> Stamp {
        let second = hour * 3600 + minute * 60 + second;
        Stamp { year: None, month, day, second, nanosecond: 0, resolution_ns: 1_000_000_000 }
    }

    fn by(name: &str, pid: u32) -> Origin {
        Origin { name: name.to_owned(), pid }
    }

    #[test]
    fn the_engine_says_it_up_to_0_25() {
        // vLLM pull request 31193, which brought it.
        let line =
            Line::parse(&format!("(EngineCore_DP0 pid=2010410) INFO 12-22 21:44:40 [core.py:349] {MESSAGE}"));
        let expected = Line {
            kind: Kind::Iteration(PLAIN),
            stamp: Some(at(12, 22, 21, 44, 40)),
            origin: Some(by("EngineCore_DP0", 2_010_410)),
        };
        assert_eq!(line, expected);
        // Offline, in one process, up to 0.31.
        let line = Line::parse(&format!("INFO 12-22 21:44:40 [core.py:349] {MESSAGE}\r\n"));
        assert_eq!(line, Line { origin: None, ..expected.clone() });
        // With VLLM_LOGGING_PREFIX, and in a terminal.
        let coloured = "\u{1b}[0;36m(EngineCore_DP0 pid=2010410)\u{1b}[0;0m node 7: \u{1b}[32mINFO\u{1b}[0m \
                        \u{1b}[90m12-22 21:44:40\u{1b}[0m \u{1b}[90m[core.py:349]\u{1b}[0m ";
        assert_eq!(Line::parse(&format!("{coloured}{MESSAGE}")), expected);
        // 0.24 and 0.25.
        let dummy = "Iteration(3): 0 context requests, 0 context tokens, 0 generation requests, 0 generation tokens, \
                     iteration elapsed time: 0.05 ms (dummy)";
        let Kind::Iteration(found) = kind(dummy) else { panic!() };
        assert!(found.is_dummy && found.elapsed_ns == 50_000);
    }

    #[test]
    fn the_front_end_says_it_since_0_26() {
        let before = "(APIServer pid=16369) INFO 11-24 20:31:05 [loggers.py:199] Engine 012: ";
        let line = Line::parse(&format!("{before}{MESSAGE}, GPU KV cache usage: 4.2%"));
        let said = Iteration { engine: Some(12), kv_usage: Some(42), ..PLAIN };
        assert_eq!(
            line,
            Line {
                kind: Kind::Iteration(said),
                stamp: Some(at(11, 24, 20, 31, 5)),
                origin: Some(by("APIServer", 16_369)),
            }
        );
        let encoder = ", encoder inputs: 4, encoder output embeddings: 3520";
        let said = Iteration { kv_usage: Some(1000), encoder: Some([4, 3520]), ..said };
        assert_eq!(
            kind(&format!("{before}{MESSAGE}, CPU KV cache usage: 100.0%{encoder}")),
            Kind::Iteration(said)
        );
        assert_eq!(
            kind(&format!("{before}{MESSAGE} (dummy), XPU KV cache usage: 0.0%")),
            Kind::Iteration(Iteration { engine: Some(12), kv_usage: Some(0), is_dummy: true, ..PLAIN })
        );
    }

    #[test]
    fn json_around_it_changes_nothing() {
        let line = Line::parse(&format!(
            r#"{{"asctime": "2026-11-24 20:31:05,123", "levelname": "INFO", "name": "vllm.v1.metrics.loggers", "processName": "APIServer", "process": 77, "message": "Engine 000: {MESSAGE}, GPU KV cache usage: 0.0%"}}"#
        ));
        assert_eq!(line.kind, Kind::Iteration(Iteration { engine: Some(0), kv_usage: Some(0), ..PLAIN }));
        let stamp =
            Stamp { year: Some(2026), nanosecond: 123_000_000, resolution_ns: 1_000_000, ..at(11, 24, 20, 31, 5) };
        assert_eq!((line.stamp, line.origin), (Some(stamp), Some(by("APIServer", 77))));
        // What Docker keeps.
        let line = Line::parse(&format!(
            r#"{{"log":"(EngineCore pid=9) INFO 11-24 20:31:05 [core.py:352] {MESSAGE}\n","stream":"stderr","time":"2026-11-24T20:31:05.2Z"}}"#
        ));
        assert_eq!((line.kind, line.stamp), (Kind::Iteration(PLAIN), Some(at(11, 24, 20, 31, 5))));
    }

    #[test]
    fn what_is_not_quite_an_iteration_is_not_guessed() {
        for text in [
            format!("{MESSAGE}, or so"),
            format!("{MESSAGE}, GPU KV cache usage: 4%"),
            format!("{MESSAGE}, GPU KV cache usage: 100.1%"),
            format!("{MESSAGE}, GPU KV cache usage: 4.2%, encoder inputs: 4"),
            MESSAGE.replace("10.95", "10.9"),
            MESSAGE.replace("10.95", "-10.95"),
            MESSAGE.replace("10.95", "nan"),
            MESSAGE.replace("30 context", "4294967296 context"),
            MESSAGE.replace("10.95", "99999999999.00"),
            MESSAGE.replace("generation requests", "decode requests"),
        ] {
            assert_eq!(kind(&text), Kind::UnknownIteration, "{text}");
        }
        for text in ["Iteration(): 1", "Iteration(5) 1 context", "iteration(5): 1 context requests", ""] {
            assert_eq!(kind(text), Kind::Other, "{text}");
        }
        // What a client wrote is quoted by vLLM, so something follows it.
        let quoted =
            format!("INFO 11-24 20:31:05 [logger.py:40] Received request: prompt: '{MESSAGE}', params: …");
        assert_eq!(kind(&quoted), Kind::UnknownIteration);
    }

    #[test]
    fn averages_and_what_vllm_says_of_itself() {
        let averages = "(APIServer pid=1) INFO 11-24 20:31:15 [loggers.py:310] Engine 000: Avg prompt throughput: 182.6 \
                        tokens/s, Avg generation throughput: 56.8 tokens/s, Running: 0 reqs, Waiting: 0 reqs, CPU KV \
                        cache usage: 0.0%, Prefix cache hit rate: 77.1%";
        assert_eq!(kind(averages), Kind::Throughput);
        let engine = "(EngineCore pid=1) INFO 11-24 20:30:41 [core.py:133] Initializing a V1 LLM engine (v0.32.0) with \
                      config: model='some/model', speculative_config=None";
        let about =
            About { version: Some("0.32.0".to_owned()), model: Some("some/model".to_owned()), ..About::default() };
        assert_eq!(kind(engine), Kind::About(about));
        let tokens = "Chunked prefill is enabled with max_num_batched_tokens=512.";
        assert_eq!(kind(tokens), Kind::About(About { max_num_tokens: Some(512), ..About::default() }));
        let arguments = "non-default args: {'model_tag': 'm', 'max_num_batched_tokens': 512, 'max_num_seqs': 32}";
        let about = About { max_num_tokens: Some(512), max_num_seqs: Some(32), ..About::default() };
        assert_eq!(kind(arguments), Kind::About(about));
        assert_eq!(kind("non-default args: {'max_num_seqs': None}"), Kind::Other);
    }

    #[test]
    fn the_engine_is_in_the_name_of_its_process() {
        for (name, engine) in [
            ("EngineCore_DP0", Some(0)),
            ("EngineCore_DP13", Some(13)),
            ("EngineCore_0", Some(0)),
            ("EngineCore", Some(0)),
            ("APIServer_1", None),
            ("Worker_TP1", None),
        ] {
            assert_eq!(by(name, 1).engine(), engine, "{name}");
        }
    }

    #[test]
    fn stamps() {
        let some = Some(at(11, 24, 20, 31, 5));
        for (text, expected) in [
            ("11-24 20:31:05", some),
            ("x 11-24 20:31:05 y", some),
            ("01-01 00:00:00 then 11-24 20:31:05 [", some),
            ("1711-24 20:31:05", None),
            ("11-24 20:31:055", None),
            ("13-24 20:31:05", None),
            ("11-24 24:31:05", None),
            ("11-24", None),
            ("", None),
        ] {
            assert_eq!(last_stamp(text), expected, "{text}");
        }
        let exact = last_stamp("[2026-11-24T20:31:05.250Z]").unwrap();
        assert_eq!((exact.year, exact.nanosecond, exact.resolution_ns), (Some(2026), 250_000_000, 1_000_000));
    }

    /// As vLLM writes it.
    fn written(said: &Iteration) -> String {
        let engine = said.engine.map_or(String::new(), |engine| format!("Engine {engine:03}: "));
        let dummy = if said.is_dummy { " (dummy)" } else { "" };
        let usage = said
            .kv_usage
            .map_or(String::new(), |share| format!(", GPU KV cache usage: {}.{}%", share / 10, share % 10));
        let encoder =
            said.encoder.filter(|_| said.kv_usage.is_some()).map_or(String::new(), |[inputs, embeddings]| {
                format!(", encoder inputs: {inputs}, encoder output embeddings: {embeddings}")
            });
        format!(
            "{engine}Iteration({}): {} context requests, {} context tokens, {} generation requests, {} generation \
             tokens, iteration elapsed time: {}.{:02} ms{dummy}{usage}{encoder}",
            said.index,
            said.context_requests,
            said.context_tokens,
            said.generation_requests,
            said.generation_tokens,
            said.elapsed_ns / 1_000_000,
            said.elapsed_ns / 10_000 % 100,
        )
    }

    /// The message from `Iteration(` on, without what changes nothing: zeros before numbers, the name of the device, and
    /// what is not seen at the end.
    fn plain(text: &str) -> String {
        let text = text.trim();
        let mut plain = String::new();
        let mut letters = text[text.find("Iteration(").unwrap()..].chars().peekable();
        while let Some(letter) = letters.next() {
            let is_in_number = plain.ends_with(|before: char| before.is_ascii_digit() || before == '.');
            if letter != '0' || is_in_number || !letters.peek().is_some_and(char::is_ascii_digit) {
                plain.push(letter);
            }
        }
        match plain.split_once(" KV cache usage") {
            Some((before, behind)) => {
                format!("{} KV cache usage{behind}", before.rsplit_once(' ').unwrap().0)
            }
            None => plain,
        }
    }

    prop_compose! {
        fn iterations()(
            engine in prop::option::of(0..2000u32),
            index: u64,
            [context_requests, context_tokens, generation_requests, generation_tokens]: [u32; 4],
            elapsed in 0..LONGEST_NS / 10_000,
            is_dummy: bool,
            kv_usage in prop::option::of(0..=1000u32),
            encoder: Option<[u32; 2]>,
        ) -> Iteration {
            Iteration {
                engine,
                index,
                context_requests,
                context_tokens,
                generation_requests,
                generation_tokens,
                elapsed_ns: elapsed * 10_000,
                is_dummy,
                kv_usage,
                encoder: encoder.filter(|_| kv_usage.is_some()),
            }
        }
    }

    proptest! {
        #[test]
        fn what_vllm_writes_is_read(said in iterations(), before in "(\\(EngineCore pid=[1-9][0-9]{0,5}\\) )?INFO 11-24 20:31:05 \\[core.py:352\\] ") {
            let line = Line::parse(&format!("{before}{}", written(&said)));
            prop_assert_eq!(line.kind, Kind::Iteration(said));
            prop_assert_eq!(line.stamp, Some(at(11, 24, 20, 31, 5)));
        }

        /// One change anywhere: it is read as what it says then, or not at all.
        #[test]
        fn what_was_changed_is_not_read_as_something_else(
            said in iterations(),
            place: prop::sample::Index,
            letter in prop_oneof![Just(None), any::<char>().prop_map(Some), "[0-9 .,:%()]".prop_map(|one| one.chars().next())],
        ) {
            let text = written(&said);
            let at = place.index(text.len());
            let changed: String = text
                .char_indices()
                .filter_map(|(index, old)| if index == at { letter } else { Some(old) })
                .collect();
            if let Kind::Iteration(read) = kind(&changed) {
                prop_assert_eq!(plain(&changed), plain(&written(&read)));
            }
        }

        #[test]
        fn nothing_makes_it_fail(text in "\\PC*", bytes: Vec<u8>) {
            Line::parse(&text);
            Line::parse(&String::from_utf8_lossy(&bytes));
            Line::parse(&format!("{{{text}"));
            Line::parse(&format!("\u{1b}[{text}"));
        }

        #[test]
        fn nothing_like_a_line_makes_it_fail(
            parts in prop::collection::vec(prop_oneof![
                Just("Iteration("), Just("): "), Just(" context requests, "), Just("Engine "), Just(": "), Just("11-24 20:31:05"),
                Just("("), Just(" pid="), Just("12"), Just("é"), Just("2026-"), Just(".5"), Just("\u{1b}["), Just("m"), Just("{\"log\":\""), Just("\"}"),
                Just("max_num_batched_tokens="), Just("LLM engine (v"),
            ], 0..12),
        ) {
            Line::parse(&parts.concat());
        }
    }
}
