//! Counts that vLLM keeps too: the referee of a recording.

use std::collections::BTreeMap;

use profilemate_session::{Event, Payload};

use crate::{kv_cache, requests};

/// Counts over all engines of a session.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
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
    /// Those, by the reason that clients were told; nothing when the lives of requests were not recorded.
    pub finished_by_reason: BTreeMap<String, u64>,
    /// Preemptions; `None` when they were not recorded.
    pub preemptions: Option<u64>,
    /// Tokens that were looked up in the prefix cache; `None` when nobody says.
    pub prefix_query_tokens: Option<u64>,
    /// Tokens that it found; `None` when nobody says.
    pub prefix_hit_tokens: Option<u64>,
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

    /// The counts, with what the profilers of requests and of the KV cache counted, where they were on.
    pub(crate) fn finish(
        self,
        requests: Option<&requests::Summary>,
        kv_cache: Option<&kv_cache::Summary>,
    ) -> Counters {
        Counters {
            finished_by_reason: requests.map(|requests| requests.finished.clone()).unwrap_or_default(),
            preemptions: requests.map(|requests| requests.preemptions),
            prefix_query_tokens: kv_cache.and_then(|kv_cache| kv_cache.all.prefix_query_tokens),
            prefix_hit_tokens: kv_cache.and_then(|kv_cache| kv_cache.all.prefix_hit_tokens),
            ..self.0
        }
    }
}
