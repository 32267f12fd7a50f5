//! `findings.json`: what to change, and on what that rests.

use profilemate_analysis::Answers;
use profilemate_analysis::findings::{Change, Evidence, Finding, Findings, NotJudged, Proof, find};
use serde_json::Value;

use crate::tables::{number, object};

pub(crate) const FILE: &str = "findings.json";

/// The document.
pub(crate) fn document(answers: &Answers) -> Value {
    let findings = find(answers);
    object([
        ("verdict", Some(verdict(&findings).into())),
        ("findings", Some(findings.findings.iter().map(finding).collect())),
        ("not_judged", Some(findings.not_judged.iter().map(not_judged).collect())),
    ])
}

/// All of it in a few words.
pub(crate) fn verdict(findings: &Findings) -> String {
    let to_act_on = findings.to_act_on().count();
    match to_act_on {
        _ if !findings.is_anything_judged() => "too little was recorded to say what to change".to_owned(),
        0 => "nothing to change".to_owned(),
        1 => "1 thing to act on".to_owned(),
        several => format!("{several} things to act on"),
    }
}

fn finding(finding: &Finding) -> Value {
    object([
        ("id", Some(finding.id.into())),
        ("subject", Some(finding.subject.text().into())),
        ("severity", Some(finding.severity.text().into())),
        (
            "confidence",
            Some(object([
                ("level", Some(finding.confidence.level.text().into())),
                ("reason", Some(finding.confidence.reason.as_str().into())),
            ])),
        ),
        ("title", Some(finding.title.as_str().into())),
        ("evidence", Some(finding.evidence.iter().map(evidence).collect())),
        ("changes", Some(finding.changes.iter().map(change).collect())),
        ("expect", Some(finding.expect.as_str().into())),
        ("proof", Some(finding.proof.iter().map(proof).collect())),
    ])
}

fn evidence(evidence: &Evidence) -> Value {
    object([
        ("name", Some(evidence.name.into())),
        ("value", number(evidence.value)),
        ("unit", Some(evidence.unit.into())),
    ])
}

fn change(change: &Change) -> Value {
    let text = |value: &Option<String>| value.clone().map(Value::String);
    object([
        ("flag", Some(change.flag.into())),
        ("direction", Some(change.direction.text().into())),
        ("value", text(&change.value)),
        ("current", text(&change.current)),
        ("note", change.note.map(Value::from)),
    ])
}

fn proof(proof: &Proof) -> Value {
    object([("file", Some(proof.file.into())), ("column", Some(proof.column.into()))])
}

fn not_judged(not_judged: &NotJudged) -> Value {
    object([
        ("subject", Some(not_judged.subject.text().into())),
        ("reason", Some(not_judged.reason.as_str().into())),
    ])
}
