//! What to change, and on what that rests.

use profilemate_analysis::Answers;
use profilemate_analysis::findings::{Change, Finding, find};

use crate::findings::verdict;
use crate::html::model::{self, Block, Number, Section, Table, text};

pub(in crate::html) fn section(answers: &Answers) -> Section {
    let findings = find(answers);
    let mut verdict = verdict(&findings);
    if let Some(first) = verdict.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    let mut section = Section::new("findings", "Findings").lead(format!("{verdict}."));
    section.blocks.extend(findings.findings.iter().map(finding));
    let mut table = Table::new("Not judged", vec![text("subject"), text("why not")]).folded();
    for of in &findings.not_judged {
        table.row(vec![of.subject.text().replace('_', " ").into(), of.reason.as_str().into()]);
    }
    if !table.rows.is_empty() {
        section.push(table);
    }
    section
}

fn finding(of: &Finding) -> Block {
    Block::Finding(model::Finding {
        severity: of.severity.text(),
        title: capitalized(&of.title).into(),
        confidence: format!("{} confidence: {}.", capitalized(of.confidence.level.text()), of.confidence.reason)
            .into(),
        changes: of.changes.iter().map(|change| self::change(change).into()).collect(),
        expect: of.expect.as_str().into(),
        evidence: of
            .evidence
            .iter()
            .map(|evidence| (evidence.name.replace('_', " ").into(), Number(evidence.value), evidence.unit.into()))
            .collect(),
        proof: of.proof.iter().map(|proof| format!("{} in {}", proof.column, proof.file).into()).collect(),
    })
}

fn change(of: &Change) -> String {
    let what = capitalized(&crate::terminal::change(of));
    match of.note {
        Some(note) => format!("{what}: {note}"),
        None => what,
    }
}

/// With a capital letter: the rules write clauses. What begins with a flag or a name stays as it is.
fn capitalized(clause: &str) -> String {
    let mut letters = clause.chars();
    match letters.next() {
        Some(first) => first.to_uppercase().chain(letters).collect(),
        None => String::new(),
    }
}
