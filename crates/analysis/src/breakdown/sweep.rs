//! Time divided among what went on in it: each nanosecond goes to one thing, so that parts add up whatever overlaps.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// What may go on. Where several things do at one time, the time goes to the first of them in this order: what the engine
/// does itself, then what a GPU does, then what a worker's host does while the GPU does nothing, innermost first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// The engine chooses a step's tokens.
    Scheduling,
    /// The engine takes a step's tokens.
    UpdateFromOutput,
    /// An encoder (vision, audio), by the clock that times it.
    Encoder,
    /// A forward pass, by the clock that times it.
    Forward,
    /// The GPU proposes tokens.
    GpuDrafting,
    /// The GPU chooses tokens.
    GpuSampling,
    /// The GPU does something else for the step.
    GpuOther,
    /// The host is in the model's call, where the GPU's clock times the pass.
    Launch,
    /// The worker prepares a batch.
    BatchPreparation,
    /// The host proposes tokens.
    Drafting,
    /// The host chooses tokens.
    Sampling,
    /// The worker keeps its notes.
    Bookkeeping,
    /// The worker does something else for the step.
    ModelExecution,
    /// The front end, in the engine's own process, takes outputs.
    OutputProcessing,
    /// The front end, in the engine's own process, turns text into tokens.
    Tokenization,
    /// The engine has chosen a step's tokens, and does not take any yet.
    Executor,
}

/// How many kinds there are.
pub(super) const KINDS: usize = Kind::Executor as usize + 1;

/// Time by kind, and behind the kinds the time in which nothing of all that went on. Nanoseconds.
pub(super) type Divided = [u64; KINDS + 1];

/// Most marks that lie ahead. They are more than wait for any step; what is beyond belongs to an engine whose own log is gone.
const MOST_AHEAD: usize = 1 << 18;

/// A set of kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kinds(u32);

impl Kinds {
    /// All of them.
    pub(super) const ALL: Self = Self((1 << KINDS) - 1);

    /// These.
    pub(super) const fn of(kinds: &[Kind]) -> Self {
        let mut set = 0;
        let mut at = 0;
        while at < kinds.len() {
            set |= 1 << kinds[at] as u32;
            at += 1;
        }
        Self(set)
    }

    fn has(self, kind: Kind) -> bool {
        self.0 & 1 << kind as u32 != 0
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Mark {
    start_ns: i64,
    end_ns: i64,
    kind: Kind,
}

/// Marks of what went on, and a hand that moves over them.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    ahead: BinaryHeap<Reverse<Mark>>,
    /// Those that began before the place that the hand came to.
    begun: Vec<Mark>,
    /// Kept, so that no memory is asked for in every step.
    edges: Vec<(i64, Kind, bool)>,
}

impl Sweep {
    /// Something went on.
    pub(super) fn mark(&mut self, start_ns: i64, end_ns: i64, kind: Kind) {
        if end_ns > start_ns {
            if self.ahead.len() >= MOST_AHEAD {
                self.ahead.pop();
            }
            self.ahead.push(Reverse(Mark { start_ns, end_ns, kind }));
        }
    }

    /// Divides the time from `start_ns` to `end_ns` among `kinds`. Each call begins where the one before ended, or later: what
    /// lies before it is forgotten.
    pub(super) fn divide(&mut self, start_ns: i64, end_ns: i64, kinds: Kinds) -> Divided {
        let mut divided = [0; KINDS + 1];
        while let Some(Reverse(mark)) = self.ahead.peek()
            && mark.start_ns < end_ns
        {
            let mark = *mark;
            self.ahead.pop();
            self.begun.push(mark);
        }
        self.edges.clear();
        self.begun.retain(|mark| {
            if mark.end_ns > start_ns && kinds.has(mark.kind) {
                self.edges.push((mark.start_ns.max(start_ns), mark.kind, true));
                self.edges.push((mark.end_ns.min(end_ns), mark.kind, false));
            }
            mark.end_ns > end_ns
        });
        self.edges.sort_unstable();
        let mut open = [0u32; KINDS];
        let mut now_ns = start_ns;
        for (at_ns, kind, begins) in &self.edges {
            if *at_ns > now_ns {
                let first = open.iter().position(|count| *count > 0).unwrap_or(KINDS);
                divided[first] += at_ns.abs_diff(now_ns);
                now_ns = *at_ns;
            }
            let count = &mut open[*kind as usize];
            // At one moment an end may be sorted before the beginning that it belongs to, if nothing lies between them.
            *count = if *begins { count.wrapping_add(1) } else { count.wrapping_sub(1) };
        }
        if end_ns > now_ns {
            divided[KINDS] += end_ns.abs_diff(now_ns);
        }
        divided
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EVERY: [Kind; KINDS] = [
        Kind::Scheduling,
        Kind::UpdateFromOutput,
        Kind::Encoder,
        Kind::Forward,
        Kind::GpuDrafting,
        Kind::GpuSampling,
        Kind::GpuOther,
        Kind::Launch,
        Kind::BatchPreparation,
        Kind::Drafting,
        Kind::Sampling,
        Kind::Bookkeeping,
        Kind::ModelExecution,
        Kind::OutputProcessing,
        Kind::Tokenization,
        Kind::Executor,
    ];

    #[test]
    fn marks_that_nobody_asks_for_are_bounded() {
        let mut sweep = Sweep::default();
        let end_ns = i64::try_from(2 * MOST_AHEAD).unwrap();
        for at in 0..end_ns {
            sweep.mark(at, at + 1, Kind::Forward);
        }
        assert_eq!(sweep.ahead.len(), MOST_AHEAD);
        // The latest are those that may still be asked for.
        assert_eq!(sweep.divide(end_ns - 10, end_ns, Kinds::ALL)[Kind::Forward as usize], 10);
    }

    proptest! {
        /// Nanosecond by nanosecond, the long way round.
        #[test]
        fn every_nanosecond_goes_to_the_first_of_what_goes_on(
            marks in prop::collection::vec((-20i64..120, 0i64..40, 0..KINDS), 0..30),
            cuts in prop::collection::btree_set(-10i64..110, 2..8),
            allowed in any::<u32>(),
        ) {
            let kinds = Kinds(allowed & Kinds::ALL.0);
            let mut sweep = Sweep::default();
            for (start, long, kind) in &marks {
                sweep.mark(*start, start + long, EVERY[*kind]);
            }
            let cuts: Vec<i64> = cuts.into_iter().collect();
            for pair in cuts.windows(2) {
                let divided = sweep.divide(pair[0], pair[1], kinds);
                let mut expected = [0; KINDS + 1];
                for now in pair[0]..pair[1] {
                    let first = (0..KINDS).find(|kind| {
                        kinds.has(EVERY[*kind])
                            && marks.iter().any(|(start, long, of)| of == kind && (*start..start + long).contains(&now))
                    });
                    expected[first.unwrap_or(KINDS)] += 1;
                }
                prop_assert_eq!(divided, expected);
                prop_assert_eq!(divided.iter().sum::<u64>(), pair[0].abs_diff(pair[1]));
            }
        }
    }
}
