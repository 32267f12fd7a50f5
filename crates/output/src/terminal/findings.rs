//! What to change: for each finding its sentence and the settings; the numbers behind it are in `findings.json`.

use profilemate_analysis::Answers;
use profilemate_analysis::findings::{Change, Direction, Finding, Severity, find};

use super::page::{LABEL, WARNING, line, paragraph};
use crate::findings::verdict;
use crate::text::visible;

/// Findings that are shown: what matters most. A terminal has 40 rows, and the others are in the file.
const MOST_FINDINGS: usize = 2;

/// Settings that are shown of one finding.
const MOST_CHANGES: usize = 2;

pub(super) fn section(text: &mut String, answers: &Answers) {
    let findings = find(answers);
    line(text, "findings", &verdict(&findings));
    // What is good to know is left out beside what has to change.
    let most = match findings.to_act_on().count() {
        0 => 1,
        several => several.min(MOST_FINDINGS),
    };
    for finding in findings.findings.iter().take(most) {
        let style = if finding.severity > Severity::Info { WARNING } else { LABEL };
        paragraph(text, &format!("  {}", finding.severity.text()), style, &sentence(finding));
    }
    if findings.findings.len() > most {
        line(text, "", &format!("and {} more, see findings.json", findings.findings.len() - most));
    }
    let subjects: Vec<&str> =
        findings.not_judged.iter().filter(|of| of.is_there).map(|of| of.subject.text()).collect();
    if findings.is_anything_judged() && !subjects.is_empty() {
        paragraph(text, "  not judged", LABEL, &format!("{} (too little was recorded)", subjects.join(", ")));
    }
}

/// What was found, and what to change: `requests wait …: raise --max-num-seqs 8 -> 16 (high confidence)`.
fn sentence(finding: &Finding) -> String {
    let level = finding.confidence.level.text();
    let mut sentence = visible(&finding.title).into_owned();
    let changes: Vec<String> = finding.changes.iter().take(MOST_CHANGES).map(change).collect();
    if !changes.is_empty() {
        sentence.push_str(": ");
        sentence.push_str(&changes.join(", or "));
    }
    if finding.changes.len() > MOST_CHANGES {
        sentence.push_str(", or see findings.json");
    }
    format!("{sentence} ({level} confidence)")
}

/// A change in words: `raise --max-num-seqs 8 -> 16`.
pub(crate) fn change(change: &Change) -> String {
    let what = match (change.direction, &change.value, &change.current) {
        (Direction::Raise | Direction::Lower, Some(value), Some(current)) => {
            format!("{} {} {current} -> {value}", change.direction.text(), change.flag)
        }
        (Direction::Raise | Direction::Lower, Some(value), None) => {
            format!("{} {} to {value}", change.direction.text(), change.flag)
        }
        (Direction::Raise | Direction::Lower, None, Some(current)) => {
            format!("{} {} (now {current})", change.direction.text(), change.flag)
        }
        (Direction::Set, Some(value), _) => format!("set {} {value}", change.flag),
        _ => format!("{} {}", change.direction.text(), change.flag),
    };
    visible(&what).into_owned()
}
