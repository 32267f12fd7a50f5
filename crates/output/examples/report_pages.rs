//! Pages to look at, and to check in a browser (`scripts/test_browser.sh`):
//!
//! ```text
//! cargo run -p profilemate-output --example report_pages -- FOLDER
//! ```
//! Makes the page of recorded sessions, of one in which every string from outside is hostile, and of a comparison, and the timelines
//! of some.

#![expect(clippy::unwrap_used, reason = "a program for developers that may stop anywhere")]

#[allow(dead_code, reason = "tests use the rest")]
#[path = "../../session/tests/common/mod.rs"]
mod common;
#[path = "../tests/sessions/hostile.rs"]
mod hostile;

use std::fs;
use std::path::{Path, PathBuf};

use profilemate_analysis::analyze;
use profilemate_analysis::compare::{Options, Run, compare};
use profilemate_output::comparison::Compared;
use profilemate_output::html::{self, Report};
use profilemate_output::timeline::{self, Window};
use profilemate_session::{Error, Session};

/// Golden sessions whose pages differ most.
const GOLDEN: [&str; 5] = ["real_preempting", "real_gpu", "real_experts", "real_vision", "layers"];

/// Those whose timelines have every kind of track.
const TIMELINES: [&str; 2] = ["real_gpu", "layers"];

fn page(session: &Path, path: &Path) {
    let session = Session::open(session).unwrap();
    let mut report = Report::default();
    let answers = analyze::<Error>(&session, |row| {
        report.see(&row);
        Ok(())
    })
    .unwrap();
    html::write(&report.finish(&session, &answers), path).unwrap();
}

fn timeline(session: &Path, path: &Path) {
    timeline::write(&Session::open(session).unwrap(), Window::ALL, path).unwrap();
}

fn main() {
    let folder = PathBuf::from(std::env::args().nth(1).unwrap());
    fs::create_dir_all(&folder).unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../session/tests/golden/v1");
    for name in GOLDEN {
        page(&golden.join(name), &folder.join(format!("{name}.html")));
    }
    for name in TIMELINES {
        timeline(&golden.join(name), &folder.join(format!("{name}.pftrace")));
    }
    let session = folder.join("hostile");
    fs::create_dir_all(session.join("raw")).unwrap();
    hostile::write(&session.join("raw"));
    page(&session, &folder.join("hostile.html"));
    timeline(&session, &folder.join("hostile.pftrace"));
    fs::remove_dir_all(&session).unwrap();
    comparison(&golden.join("real_decode"), &golden.join("real_preempting"), &folder.join("comparison.html"));
}

fn comparison(base: &Path, candidate: &Path, path: &Path) {
    let options = Options::default();
    let read = |folder: &Path| vec![Run::read(&Session::open(folder).unwrap(), 1).unwrap()];
    let (base, candidate) = (read(base), read(candidate));
    let comparison = compare(&base, &candidate, &options);
    let compared = Compared { base: &base, candidate: &candidate, options: &options, comparison: &comparison };
    html::write(&html::comparison(&compared), path).unwrap();
}
