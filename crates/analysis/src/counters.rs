//! Counts that vLLM keeps too: the referee of a recording.

use profilemate_session::{Event, Payload};

/// Counts over all engines of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Scheduler calls that scheduled something.
    pub engine_steps: u64,
    /// Scheduler calls that scheduled nothing.
    pub empty_schedules: u64,
    /// Sets of outputs with at least one output: what vLLM counts as iterations.
    pub iterations: u64,
    /// Tokens of prompts that were completely computed.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub generation_tokens: u64,
    /// Requests finished.
    pub finished_requests: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Collector(Counters);

impl Collector {
    #[inline]
    pub(crate) fn see(&mut self, event: &Event) {
        let counters = &mut self.0;
        match &event.record.payload {
            Payload::Schedule(schedule) => {
                counters.engine_steps += u64::from(schedule.num_tokens > 0);
                counters.empty_schedules += u64::from(schedule.num_tokens == 0);
                counters.prompt_tokens += u64::from(schedule.completed_prompt_tokens);
            }
            Payload::Outputs(outputs) => {
                counters.iterations += u64::from(outputs.num_outputs > 0);
                counters.generation_tokens = counters.generation_tokens.saturating_add(outputs.new_tokens);
                counters.finished_requests = counters.finished_requests.saturating_add(outputs.finished);
            }
            _ => {}
        }
    }

    pub(crate) fn finish(self) -> Counters {
        self.0
    }
}
