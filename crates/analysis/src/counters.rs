//! Counts that vLLM keeps too: the referee of a recording.

use std::collections::BTreeMap;

use profilemate_session::{Event, Payload};

use crate::facts::Facts;
use crate::{kv_cache, requests};

/// Counts over all engines of a session.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counters {
    /// Scheduler calls that scheduled something.
    pub engine_steps: u64,
    /// Scheduler calls that scheduled nothing.
    pub empty_schedules: u64,
    /// Sets of outputs with at least one output: what vLLM counts as iterations; `None` when nobody says.
    pub iterations: Option<u64>,
    /// Tokens of prompts that were completely computed; `None` when nobody says.
    pub prompt_tokens: Option<u64>,
    /// Tokens generated; `None` when nobody says.
    pub generation_tokens: Option<u64>,
    /// Requests finished; `None` when nobody says.
    pub finished_requests: Option<u64>,
    /// Those, by the reason that clients were told; nothing when the lives of requests were not recorded.
    pub finished_by_reason: BTreeMap<String, u64>,
    /// Preemptions; `None` when they were not recorded.
    pub preemptions: Option<u64>,
    /// Tokens that were looked up in the prefix cache; `None` when nobody says.
    pub prefix_query_tokens: Option<u64>,
    /// Tokens that it found; `None` when nobody says.
    pub prefix_hit_tokens: Option<u64>,
}

#[derive(Debug)]
pub(crate) struct Collector(Counters);

fn add(sum: &mut Option<u64>, value: Option<u64>) {
    *sum = sum.zip(value).map(|(sum, value)| sum.saturating_add(value));
}

impl Collector {
    pub(crate) fn new(facts: &Facts) -> Self {
        // What was not recorded says nothing of outputs, which is not the same as having none.
        let none_yet = facts.source.is_none().then_some(0);
        Self(Counters {
            iterations: none_yet,
            prompt_tokens: Some(0),
            generation_tokens: none_yet,
            finished_requests: none_yet,
            ..Counters::default()
        })
    }

    #[inline]
    pub(crate) fn see(&mut self, event: &Event) {
        let counters = &mut self.0;
        match &event.record.payload {
            Payload::Schedule(schedule) => {
                counters.engine_steps += u64::from(schedule.num_tokens > 0);
                counters.empty_schedules += u64::from(schedule.num_tokens == 0);
                add(&mut counters.prompt_tokens, schedule.completed_prompt_tokens.map(u64::from));
            }
            Payload::Outputs(outputs) => {
                add(&mut counters.iterations, Some(u64::from(outputs.num_outputs > 0)));
                add(&mut counters.generation_tokens, Some(outputs.new_tokens));
                add(&mut counters.finished_requests, Some(outputs.finished));
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
