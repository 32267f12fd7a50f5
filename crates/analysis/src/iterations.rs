//! Iterations of vLLM's own log: how long the engine waited for the model's output, by phase.

use profilemate_session::{Edge, Event, Name};

use crate::Context;
use crate::forward::{PhaseTimes, Summary};

#[derive(Debug, Default)]
pub(crate) struct Collector(PhaseTimes);

impl Collector {
    #[inline]
    pub(crate) fn see(&mut self, context: &Context<'_>, event: &Event) {
        if event.name != Name::Iteration || event.edge != Edge::End {
            return;
        }
        if let Some(scheduled) = context.steps.scheduled(event)
            && let Some(phase) = scheduled.phase()
        {
            self.0.push(phase, event.duration_ns(), u64::from(scheduled.num_tokens));
        }
    }

    /// What was seen; `None` where nobody tells of iterations.
    pub(crate) fn finish(self) -> Option<Summary> {
        Some(self.0.summary()).filter(|summary| !summary.phases.is_empty())
    }
}
