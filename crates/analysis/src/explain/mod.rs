//! Why a step, or a request, took longer than others: numbers and verdicts.
//!
//! [`recording`] gathers what each step did, [`usual`] finds what is usual, [`steps`] says why a step took longer, and [`requests`]
//! why a request did. What the words mean to users, and every threshold, is in `docs/explain.md`.

pub mod recording;
pub mod requests;
pub mod steps;
pub mod usual;

pub use recording::{Blocker, New, Part, Recording, Step};
pub use steps::{Cause, Explainer, Explanation, Status, Verdict};

impl Recording {
    /// The text with this id.
    fn name(&self, id: u32) -> &str {
        self.names.get(id as usize).map_or("", String::as_str)
    }

    fn engine(&self, step: &Step) -> &str {
        self.engine_of_log(step.log)
    }

    /// What the process of this log is called, as an engine if it is one.
    fn engine_of_log(&self, log: u16) -> &str {
        self.engines.get(usize::from(log)).map_or("", String::as_str)
    }

    /// … as a worker, if it is one.
    fn worker(&self, log: u16) -> &str {
        self.workers.get(usize::from(log)).map_or("", String::as_str)
    }

    /// Steps that can be explained.
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// For each engine its name, its first and its last step that can be explained, and how many there are.
    pub fn ranges(&self) -> Vec<(&str, u64, u64, usize)> {
        let mut ranges: Vec<(u16, u64, u64, usize)> = Vec::new();
        for step in &self.steps {
            match ranges.iter_mut().find(|(log, ..)| *log == step.log) {
                Some((_, first, last, count)) => {
                    (*first, *last, *count) = (step.number.min(*first), step.number.max(*last), *count + 1);
                }
                None => ranges.push((step.log, step.number, step.number, 1)),
            }
        }
        ranges.sort_by_key(|(log, ..)| *log);
        ranges.into_iter().map(|(log, first, last, count)| (self.engine_of_log(log), first, last, count)).collect()
    }

    /// Whether a step with this number had begun and was not over when the recording ended.
    pub fn is_unfinished(&self, number: u64) -> bool {
        self.unfinished.iter().any(|(_, step)| *step == number)
    }
}
