//! What is made of a session, whatever its records say: tables, page, summary, explanations, timeline. Text from outside does
//! nothing in any of them.

use std::fs;
use std::path::Path;

use profilemate_analysis::explain::{Explainer, Recording, requests};
use profilemate_output::tables::{self, Formats};
use profilemate_output::text::{json, visible};
use profilemate_output::timeline::{self, Window};
use profilemate_output::{explanation, html, terminal};
use profilemate_session::Session;

/// Columns of Parquet are made once in so many inputs: that takes a hundred times longer than the rest.
const PARQUET_EVERY: u8 = 64;

/// Input: a byte that says what is made beside tables and summary, and the script of a session.
pub fn run(mut data: &[u8]) {
    let what = crate::byte(&mut data);
    let files = crate::pieces::files(data);
    crate::scratch::with_folder(|folder| {
        crate::pieces::write(&files, folder);
        let Ok(session) = Session::open(folder) else { return };
        check(&session, folder, what);
    });
}

fn check(session: &Session, folder: &Path, what: u8) {
    let formats = Formats { csv: true, parquet: what % PARQUET_EVERY == 1, html: what & 2 != 0 };
    let answers = tables::write_as(session, folder, formats).expect("the folder is ours");
    for entry in fs::read_dir(folder).expect("the folder is ours").flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(kind) = path.extension().and_then(|kind| kind.to_str()) else { continue };
        match kind {
            "csv" => table(&name, &fs::read_to_string(&path).expect("CSV is UTF-8")),
            "json" => {
                let text = fs::read_to_string(&path).expect("JSON is UTF-8");
                harmless(&name, &text);
                serde_json::from_str::<serde_json::Value>(&text).expect("JSON is JSON");
            }
            "html" => page(&fs::read_to_string(&path).expect("the page is UTF-8")),
            _ => {}
        }
    }
    harmless("documents", &json(&tables::documents(session, &answers)));
    plain("summary", &terminal::summary(session, &answers, Some(Path::new("session"))));
    if what & 4 != 0 {
        let recording = Recording::read(session).expect("its segments are there");
        let explainer = Explainer::new(&recording);
        let found = explainer.slowest(3);
        plain("slowest", &explanation::slowest(&explainer, &found));
        harmless("slowest", &json(&explanation::slowest_json(&explainer, &found)));
        let found = requests::find(session, &explainer, |id| !id.is_empty()).expect("its segments are there");
        plain("requests", &explanation::requests(&found));
        harmless("requests", &json(&explanation::requests_json(&found)));
    }
    if what & 8 != 0 {
        // There may be nothing to draw.
        let _ = timeline::write(session, Window::ALL, &folder.join("trace.pftrace"));
    }
}

/// Nothing in a text does anything but being seen.
fn harmless(name: &str, text: &str) {
    assert!(text.split('\n').all(|line| visible(line) == line), "{name}: {text:?}");
}

/// The same of a text with styles, which are ours.
fn plain(name: &str, text: &str) {
    let styles = ["\u{1b}[0m", "\u{1b}[1m", "\u{1b}[33m", "\u{1b}[2m", "\u{1b}[31m", "\u{1b}[32m"];
    harmless(name, &styles.iter().fold(text.to_owned(), |text, style| text.replace(style, "")));
}

/// Every row has the header's cells, and none begins what a spreadsheet would compute.
fn table(name: &str, text: &str) {
    harmless(name, text);
    let mut lines = text.lines().map(cells);
    let columns = lines.next().map_or(0, |header| header.len());
    for row in lines {
        assert_eq!(row.len(), columns, "{name}: {row:?}");
        for cell in row.iter().filter(|cell| cell.parse::<f64>().is_err()) {
            assert!(!cell.starts_with(['=', '+', '-', '@', '\u{ff1d}']), "{name}: {cell}");
        }
    }
}

/// The cells of a line: no text that is shown has a line end in it.
fn cells(line: &str) -> Vec<String> {
    let (mut row, mut cell, mut quoted) = (Vec::new(), String::new(), false);
    let mut letters = line.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '"' if quoted && letters.peek() == Some(&'"') => {
                letters.next();
                cell.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => row.push(std::mem::take(&mut cell)),
            letter => cell.push(letter),
        }
    }
    row.push(cell);
    row
}

fn page(page: &str) {
    assert_eq!((page.matches("<script").count(), page.matches("</script").count()), (2, 2), "{}", html::FILE);
    let data =
        page.split_once("id=\"data\">").and_then(|(_, data)| data.split_once("</script>")).expect("its data").0;
    assert!(!data.contains(['<', '>', '&']) && !data.contains(['\u{2028}', '\u{2029}']));
    let data: serde_json::Value = serde_json::from_str(data).expect("JSON is JSON");
    harmless(html::FILE, &data.to_string());
}
