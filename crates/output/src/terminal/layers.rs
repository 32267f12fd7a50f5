//! Inside the forward pass.

use profilemate_analysis::Answers;
use profilemate_analysis::layers::Part;

use super::page::{percent, wrapped};

pub(super) fn section(text: &mut String, answers: &Answers) {
    let Some(summary) = &answers.layers else { return };
    let forward = &summary.forward;
    if forward.passes > 0 {
        let parts = Part::ALL.into_iter().zip(forward.parts_ns);
        let mut words: Vec<String> = parts
            .filter_map(|(part, ns)| Some((part.text(), ns?)))
            .chain([("rest", forward.rest_ns())])
            .map(|(name, ns)| format!("{name} {}", percent(forward.share_pct(ns))))
            .collect();
        if forward.is_estimate {
            words.push("estimated from some layers".to_owned());
        }
        wrapped(text, "in forward", &words);
    }
    // The rank that waits most has the least to do.
    let waits = summary.collectives.iter().filter_map(|of| Some((of, of.wait.as_ref()?.mean)));
    if let Some((of, wait_ms)) = waits.max_by(|a, b| a.1.total_cmp(&b.1)) {
        let words = [
            format!("{} {:.1} us", of.collective.replace('_', " "), of.times.mean_ms * 1e3),
            format!(
                "of it {:.1} us waiting for other ranks on {}",
                wait_ms * 1e3,
                crate::text::visible(&of.process)
            ),
        ];
        wrapped(text, "collectives", &words);
    }
}
