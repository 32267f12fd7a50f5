//! What the recording itself cost, what it lost, and what could not attach.

use profilemate_analysis::Answers;
use profilemate_session::Session;

use super::page::{grouped, line, wrapped};
use crate::text::visible;

pub(super) fn section(text: &mut String, session: &Session, answers: &Answers) {
    if !answers.overhead.is_empty() {
        text.push('\n');
        for (at, cost) in answers.overhead.iter().enumerate() {
            let share =
                cost.share_of_step_pct.map_or(String::new(), |share| format!(", {share:.3} % of its steps"));
            let label = if at == 0 { "probes cost" } else { "" };
            let microseconds = cost.mean_ns_per_step / 1000.0;
            line(text, label, &format!("{}: {microseconds:.2} us per step{share}", visible(&cost.process)));
        }
    }
    text.push('\n');
    let mut records = vec![
        format!("{} written", grouped(session.records_written())),
        format!("{} lost", grouped(session.records_lost())),
        format!("{} damaged", grouped(session.records_damaged())),
    ];
    if answers.probe_errors > 0 {
        records.push(format!("probe errors: {}", grouped(answers.probe_errors)));
    }
    wrapped(text, "records", &records);
    for damage in session.damage.iter().take(5) {
        line(text, "", &format!("{}: {}", visible(&damage.file), visible(&damage.what)));
    }
    if session.damage.len() > 5 {
        line(text, "", &format!("and {} more, see metadata.json", session.damage.len() - 5));
    }
    not_attached(text, answers);
}

/// Profilers that are missing, by reason.
fn not_attached(text: &mut String, answers: &Answers) {
    let mut reasons: Vec<(&str, Vec<String>)> = Vec::new();
    for (profiler, state) in &answers.facts.profilers {
        let Some(reason) = state.strip_prefix("could not attach: ") else { continue };
        match reasons.iter_mut().find(|(found, _)| *found == reason) {
            Some((_, profilers)) => profilers.push(visible(profiler).into_owned()),
            None => reasons.push((reason, vec![visible(profiler).into_owned()])),
        }
    }
    for (reason, profilers) in reasons {
        wrapped(text, "not attached", &profilers);
        line(text, "", &format!("({})", visible(reason)));
    }
}
