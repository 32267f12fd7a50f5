//! What to change: for each finding its sentence and the settings; the numbers behind it are in `findings.json`.

use profilemate_analysis::Answers;
use profilemate_analysis::findings::{Change, Direction, Finding, find};

use super::page::{line, paragraph};
use crate::findings::verdict;
use crate::text::visible;

/// Settings that are shown of one finding; the others are in the file.
const MOST_CHANGES: usize = 2;

pub(super) fn section(text: &mut String, answers: &Answers) {
    let findings = find(answers);
    text.push('\n');
    line(text, "findings", &verdict(&findings));
    for finding in &findings.findings {
        paragraph(text, &format!("  {}", finding.severity.text()), &sentence(finding));
        if !finding.changes.is_empty() {
            paragraph(text, "", &changes(&finding.changes));
        }
    }
    if findings.is_anything_judged() && !findings.not_judged.is_empty() {
        let subjects: Vec<&str> = findings.not_judged.iter().map(|of| of.subject.text()).collect();
        paragraph(text, "  not judged", &format!("{}: see findings.json", subjects.join(", ")));
    }
}

fn sentence(finding: &Finding) -> String {
    let level = finding.confidence.level.text();
    format!("{}. [{}, {level} confidence]", finding.title, finding.id)
}

fn changes(changes: &[Change]) -> String {
    let mut shown = changes.iter().take(MOST_CHANGES).map(change).collect::<Vec<_>>().join(", or ");
    if changes.len() > MOST_CHANGES {
        shown.push_str(", or see findings.json");
    }
    shown
}

fn change(change: &Change) -> String {
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
