//! Every table of the golden sessions, kept as snapshots.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use profilemate_output::{tables, terminal};
use profilemate_session::Session;

/// A copy of a golden session; the folder goes with the first value.
fn copy(name: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let session = folder.path().join(format!("session_{name}"));
    fs::create_dir_all(session.join("raw")).unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../session/tests/golden/v1").join(name).join("raw");
    for entry in fs::read_dir(golden).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, session.join("raw").join(path.file_name().unwrap())).unwrap();
    }
    (folder, session)
}

/// The files at the top of a session folder and in that of the experts.
fn files(session: &Path) -> BTreeMap<String, String> {
    let experts = fs::read_dir(session.join("moe_expert_tracking")).into_iter().flatten();
    fs::read_dir(session)
        .unwrap()
        .chain(experts)
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read_to_string(&path).unwrap()))
        .collect()
}

/// What is left where there are no styles.
fn plain(summary: &str) -> String {
    anstream::adapter::strip_str(summary).to_string()
}

/// Whether a terminal that everybody has shows it at once.
fn assert_fits(summary: &str) {
    for line in summary.lines() {
        assert!(line.chars().count() <= 80, "wider than 80 columns: {line}");
    }
    assert!(summary.lines().count() < 40, "more than 40 rows with the prompt:\n{summary}");
}

fn every_table(name: &str) {
    tables_and_summary(name, |_| true);
}

/// Makes everything of a session, and keeps the summary and the files that are chosen by their names.
fn tables_and_summary(name: &str, is_kept: impl Fn(&str) -> bool) {
    let (_folder, folder) = copy(name);
    let folder = folder.canonicalize().unwrap();
    let session = Session::open(&folder).unwrap();
    let answers = tables::write(&session, &folder).unwrap();
    let shown = |text: &str| text.replace(&*folder.to_string_lossy(), "SESSION");
    let first = files(&folder);
    for (file, text) in first.iter().filter(|(file, _)| is_kept(file)) {
        insta::assert_snapshot!(format!("{name}__{file}"), shown(text));
    }
    let summary = plain(&terminal::summary(&session, &answers, Some(&folder)));
    assert_fits(&shown(&summary));
    insta::assert_snapshot!(format!("{name}__summary"), shown(&summary));
    // Once more, over what is there: the same bytes.
    let session = Session::open(&folder).unwrap();
    tables::write(&session, &folder).unwrap();
    assert_eq!(files(&folder), first);
}

#[test]
fn server() {
    every_table("server");
}

#[test]
fn single_process() {
    every_table("single_process");
}

#[test]
fn parallel() {
    every_table("parallel");
}

#[test]
fn gpu() {
    every_table("gpu");
}

#[test]
fn requests() {
    every_table("requests");
}

#[test]
fn layers() {
    // What is inside of forward passes, and the GPUs' memory; the other tables say nothing new.
    tables_and_summary("layers", |file| {
        ["layer", "collective", "gpu_memory", "breakdown"].iter().any(|name| file.starts_with(name))
    });
}

#[test]
fn a_session_of_which_everything_is_known_fits_on_a_terminal() {
    let (_one, folder) = copy("gpu");
    let (_two, other) = copy("requests");
    for entry in fs::read_dir(other.join("raw")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.join("raw").join(path.file_name().unwrap())).unwrap();
    }
    let session = Session::open(&folder).unwrap();
    let answers = tables::write(&session, &folder).unwrap();
    let summary = terminal::summary(&session, &answers, Some(&folder));
    assert!(summary.contains("\u{1b}["), "there are styles");
    let summary = plain(&summary).replace(&*session.folder.to_string_lossy(), "SESSION");
    assert_fits(&summary);
    insta::assert_snapshot!("everything__summary", summary);
}

#[test]
fn real_decode() {
    every_table("real_decode");
}

#[test]
fn real_prefill() {
    every_table("real_prefill");
}

#[test]
fn real_preempting() {
    every_table("real_preempting");
}

#[test]
fn real_experts() {
    every_table("real_experts");
}

#[test]
fn real_gpu() {
    // Its tables have 190 KiB.
    tables_and_summary("real_gpu", |file| {
        Path::new(file).extension() != Some("csv".as_ref())
            || file.starts_with("cuda_graph_captures")
            || file.starts_with("cuda_graph_usage")
    });
}

#[test]
fn real_sampling() {
    // Several ways to sample; the other tables say nothing new.
    tables_and_summary("real_sampling", |file| {
        file.starts_with("sampling") || ["findings.json", "metadata.json"].contains(&file)
    });
}

#[test]
fn real_vision() {
    // A model with an encoder; the other tables say nothing new.
    tables_and_summary("real_vision", |file| {
        file.starts_with("encoder_decoder") || ["breakdown.json", "findings.json", "metadata.json"].contains(&file)
    });
}

#[test]
fn segments_that_changed_places_give_the_same_tables() {
    let (_one, whole) = copy("server");
    tables::write(&Session::open(&whole).unwrap(), &whole).unwrap();
    let (_two, swapped) = copy("server");
    let raw = swapped.join("raw");
    let names = ["engine_core-0-1002.000000.seg", "engine_core-0-1002.000002.seg", "worker-0-1003.000001.seg"];
    let contents = names.map(|name| fs::read(raw.join(name)).unwrap());
    for (name, content) in names.iter().zip([&contents[1], &contents[2], &contents[0]]) {
        fs::write(raw.join(name), content).unwrap();
    }
    let session = Session::open(&swapped).unwrap();
    tables::write(&session, &swapped).unwrap();
    let (mut whole, mut swapped) = (files(&whole), files(&swapped));
    whole.remove("metadata.json");
    assert!(swapped.remove("metadata.json").unwrap().contains("its header says that it is segment"));
    assert_eq!(whole, swapped);
}

#[test]
fn a_table_that_cannot_be_written_leaves_the_one_that_was_there() {
    let (_folder, folder) = copy("server");
    let session = Session::open(&folder).unwrap();
    tables::write(&session, &folder).unwrap();
    let before = files(&folder);
    // What is in the way of the temporary file stands for whatever may go wrong.
    fs::create_dir(folder.join(".cpu_timing_summary.json.tmp")).unwrap();
    let error = tables::write(&session, &folder).unwrap_err().to_string();
    assert!(error.starts_with("cannot write ") && error.contains("cpu_timing_summary.json"), "{error}");
    assert!(error.contains("unchanged") && error.contains("profilemate export"), "{error}");
    assert_eq!(files(&folder), before);
}
