//! What ran.

use profilemate_analysis::Answers;
use profilemate_analysis::processes::Process;
use profilemate_session::Session;

use super::page::{duration, grouped, line, wrapped};
use crate::text::visible;

/// One entry for each process, with all its roles.
fn processes(processes: &[Process]) -> Vec<String> {
    let mut pids: Vec<u32> = processes.iter().map(|process| process.pid).collect();
    pids.sort_unstable();
    pids.dedup();
    let mut entries: Vec<String> = pids
        .into_iter()
        .filter_map(|pid| {
            let of_pid: Vec<&Process> = processes.iter().filter(|process| process.pid == pid).collect();
            let first = of_pid.first().filter(|process| process.role != "launcher")?;
            let roles: Vec<String> =
                of_pid.iter().map(|process| format!("{}-{}", visible(&process.role), process.rank)).collect();
            Some(format!("{} ({})", roles.join("+"), crate::metadata::ending(first.ending)))
        })
        .collect();
    entries.sort();
    entries
}

pub(super) fn section(text: &mut String, session: &Session, answers: &Answers) {
    let counters = &answers.counters;
    line(text, "session", &visible(&session.folder.to_string_lossy()));
    if let Some(model) = &answers.facts.model {
        line(text, "model", &visible(model));
    }
    line(text, "duration", &duration(answers.duration_ns));
    wrapped(text, "processes", &processes(&answers.processes));
    wrapped(
        text,
        "work",
        &[
            format!("{} engine steps", grouped(counters.engine_steps)),
            format!("{} requests", grouped(counters.finished_requests)),
            format!(
                "{} prompt + {} new tokens",
                grouped(counters.prompt_tokens),
                grouped(counters.generation_tokens)
            ),
        ],
    );
}
