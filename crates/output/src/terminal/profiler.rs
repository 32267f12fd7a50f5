//! What the recording itself cost, what it lost, and what could not attach.

use anstyle::Style;
use profilemate_analysis::Answers;
use profilemate_session::Session;

use super::page::{WARNING, wrapped, wrapped_in};
use crate::numbers::grouped;
use crate::text::visible;

/// Most damages that are told.
const DAMAGES: usize = 3;

pub(super) fn section(text: &mut String, session: &Session, answers: &Answers) {
    let mut words = Vec::new();
    // Of equal ones the first.
    let costs = answers.overhead.iter().rev();
    if let Some(most) = costs.max_by(|a, b| a.mean_ns_per_step.total_cmp(&b.mean_ns_per_step)) {
        let share = most.share_of_step_pct.map_or(String::new(), |share| format!(" ({share:.3} %)"));
        let microseconds = most.mean_ns_per_step / 1000.0;
        words.push(format!("{} {microseconds:.2} us per step{share}", visible(&most.process)));
    }
    words.push(format!("{} records", grouped(session.records_written())));
    for (count, what) in [
        (session.records_lost(), "lost"),
        (session.records_damaged(), "damaged"),
        (answers.probe_errors, "probe errors"),
    ] {
        if count > 0 || what == "lost" {
            words.push(format!("{} {what}", grouped(count)));
        }
    }
    let is_whole = [session.records_lost(), session.records_damaged(), answers.probe_errors] == [0; 3];
    wrapped_in(text, "profiler", &words, if is_whole { Style::new() } else { WARNING });
    for damage in session.damage.iter().take(DAMAGES) {
        wrapped_in(text, "", &[format!("{}: {}", visible(&damage.file), visible(&damage.what))], WARNING);
    }
    if session.damage.len() > DAMAGES {
        wrapped(text, "", &[format!("and {} more, see metadata.json", session.damage.len() - DAMAGES)]);
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
        wrapped(text, "not attached", &[format!("{} ({})", profilers.join(", "), visible(reason))]);
    }
}
