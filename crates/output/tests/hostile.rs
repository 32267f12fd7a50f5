//! Text from outside does nothing in any output: ids that clients choose, and every other string of a log, which somebody
//! else may have made.

#![allow(clippy::unwrap_used, reason = "a test")]

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "../../session/tests/common/mod.rs"]
mod common;
#[path = "sessions/hostile.rs"]
mod session;

use std::fs;
use std::io::Read;

use arrow_array::cast::AsArray;
use flate2::read::ZlibDecoder;
use profilemate_analysis::compare::{Options, Run, compare};
use profilemate_analysis::explain::{Explainer, Recording, requests};
use profilemate_output::comparison::{self, Compared};
use profilemate_output::timeline::{self, Window};
use profilemate_output::{explanation, html, tables, terminal, text};
use profilemate_session::Session;

/// The cells of a CSV file, as RFC 4180 has them.
fn cells(text: &str) -> Vec<Vec<String>> {
    let (mut rows, mut row, mut cell, mut quoted) = (Vec::new(), Vec::new(), String::new(), false);
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '"' if quoted && letters.peek() == Some(&'"') => {
                letters.next();
                cell.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => row.push(std::mem::take(&mut cell)),
            '\n' if !quoted => {
                row.push(std::mem::take(&mut cell));
                rows.push(std::mem::take(&mut row));
            }
            letter => cell.push(letter),
        }
    }
    rows
}

fn assert_harmless(name: &str, text: &str) {
    for line in text.split('\n') {
        assert_eq!(text::visible(line), line, "{name}");
    }
}

/// The page has two elements with scripts, both its own, and its data reads back with all that clients sent as text.
fn assert_page_is_whole(page: &str) {
    assert_eq!(page.matches("<script").count(), 2);
    assert_eq!(page.matches("</script").count(), 2);
    let data = page.split_once("id=\"data\">").unwrap().1.split_once("</script>").unwrap().0;
    assert!(!data.contains(['<', '>', '&']) && !data.contains(['\u{2028}', '\u{2029}']));
    let data: serde_json::Value = serde_json::from_str(data).unwrap();
    let shown = data.to_string();
    for hostile in session::HOSTILE {
        // Of a kind for a JSON string, without its quotes.
        let text = serde_json::to_string(&text::visible(hostile)).unwrap();
        assert!(shown.contains(text.trim_matches('"')), "{text}");
    }
    assert_harmless("the page's data", &shown);
    let (head, body) = page.split_once("<body>").unwrap();
    assert!(!head.contains("http") || head.matches("http").count() == 1, "only `http-equiv`");
    assert!(!body.split_once("id=\"data\"").unwrap().0.contains("src="));
}

#[test]
fn nothing_from_outside_does_anything_in_any_output() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("raw")).unwrap();
    session::write(&folder.path().join("raw"));
    let session = Session::open(folder.path()).unwrap();
    let answers = tables::write_with_report(&session, folder.path()).unwrap();
    let mut tables_seen = 0;
    for entry in fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let Ok(text) = fs::read_to_string(&path) else { continue };
        if name == html::FILE {
            assert_page_is_whole(&text);
            continue;
        }
        assert_harmless(&name, &text);
        let kind = path.extension().map(|kind| kind.to_string_lossy().into_owned()).unwrap_or_default();
        if kind == "csv" {
            tables_seen += 1;
            let rows = cells(&text);
            for row in &rows {
                assert_eq!(row.len(), rows[0].len(), "{name}: {row:?}");
                for cell in row.iter().filter(|cell| cell.parse::<f64>().is_err()) {
                    assert!(!cell.starts_with(['=', '+', '-', '@', '\u{ff1d}']), "{name}: {cell}");
                }
            }
        } else if kind == "json" {
            serde_json::from_str::<serde_json::Value>(&text).unwrap();
        }
    }
    assert_eq!(tables_seen, 10);
    assert_harmless("documents", &text::json(&tables::documents(&session, &answers)));
    let summary = terminal::summary(&session, &answers, Some(folder.path()));
    // Styles are ours; whatever else might be one is not taken for one here.
    let plain =
        ["\u{1b}[1m", "\u{1b}[33m", "\u{1b}[0m"].iter().fold(summary, |text, style| text.replace(style, ""));
    assert_harmless("summary", &plain);
    // What the client said is there all the same, in words.
    let rows = cells(&fs::read_to_string(folder.path().join("request_lifecycle.csv")).unwrap());
    assert_eq!(rows[0][0], "request_id");
    assert!(rows.iter().any(|row| row[0] == "\\n+1,\"\\r\\n\\u{1b}]0;owned\\u{7}\\u{9b}31m"));
    assert!(rows.iter().any(|row| row[0] == "'\u{ff1d}1+1\\u{0}\\u{e0041}\\u{7f}"));
    // An id says nothing about other pairs.
    let rows = cells(&fs::read_to_string(folder.path().join("preemption_events.csv")).unwrap());
    for row in rows.iter().filter(|row| row[2] == "preempted") {
        let keys: Vec<&str> = row[5].split(';').map(|pair| pair.split('=').next().unwrap()).collect();
        assert_eq!(keys, ["computed_tokens", "output_tokens", "blocks_freed", "preempted_for"], "{}", row[5]);
    }
}

fn plain(text: &str) -> String {
    // Styles are ours; whatever else might be one is not taken for one here.
    ["\u{1b}[1m", "\u{1b}[2m", "\u{1b}[31m", "\u{1b}[32m", "\u{1b}[33m", "\u{1b}[0m"]
        .iter()
        .fold(text.to_owned(), |text, style| text.replace(style, ""))
}

/// What the compressed packets of a trace hold: every zlib stream in it.
fn unpacked(trace: &[u8]) -> Vec<u8> {
    let mut found = Vec::new();
    for at in trace.windows(2).enumerate().filter(|(_, pair)| pair[0] == 0x78).map(|(at, _)| at) {
        let mut packets = Vec::new();
        if ZlibDecoder::new(&trace[at..]).read_to_end(&mut packets).is_ok() {
            found.extend(packets);
        }
    }
    found
}

#[test]
fn nor_in_explanations_comparisons_traces_and_columns() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("raw")).unwrap();
    session::write(&folder.path().join("raw"));
    let session = Session::open(folder.path()).unwrap();

    let recording = Recording::read(&session).unwrap();
    let explainer = Explainer::new(&recording);
    let found = requests::find(&session, &explainer, |id| !id.is_empty()).unwrap();
    assert_eq!(found.requests.len(), session::HOSTILE.len());
    assert_harmless("explain", &plain(&explanation::requests(&found)));
    assert_harmless("explain --json", &text::json(&explanation::requests_json(&found)));
    let slowest = explainer.slowest(3);
    assert_harmless("slowest", &plain(&explanation::slowest(&explainer, &slowest)));
    assert_harmless("slowest --json", &text::json(&explanation::slowest_json(&explainer, &slowest)));

    let run = || vec![Run::read(&session, 1).unwrap()];
    let (base, candidate, options) = (run(), run(), Options::default());
    let result = compare(&base, &candidate, &options);
    let compared = Compared { base: &base, candidate: &candidate, options: &options, comparison: &result };
    assert_harmless("compare", &plain(&comparison::terminal(&compared, true)));
    assert_harmless("compare --json", &text::json(&comparison::document(&compared)));
    let page = html::comparison(&compared);
    assert_eq!((page.matches("<script").count(), page.matches("</script").count()), (2, 2));

    let trace = folder.path().join("trace.pftrace");
    timeline::write(&session, Window::ALL, &trace).unwrap();
    let trace = unpacked(&fs::read(trace).unwrap());
    let holds = |text: &str| trace.windows(text.len()).any(|part| part == text.as_bytes());
    assert!(holds("engine_core"), "texts are there as they are");
    for hostile in session::HOSTILE {
        let shown = text::visible(hostile);
        assert!(shown == hostile || !holds(hostile), "{shown}");
    }

    let names = tables::names(&session);
    let (_, columns) = tables::read(&session, &names).unwrap();
    let mut texts = 0;
    for column in columns.values().flat_map(|table| &table.batches).flat_map(arrow_array::RecordBatch::columns) {
        // A text, or one of few that is many times there.
        let values = column.as_any_dictionary_opt().map_or(column, |few| few.values());
        for text in values.as_string_opt::<i32>().into_iter().flatten().flatten() {
            assert_eq!(text::visible(text), text);
            texts += 1;
        }
    }
    assert!(texts > session::HOSTILE.len());
}
