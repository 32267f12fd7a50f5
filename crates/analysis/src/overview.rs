//! What is asked of a run as a whole, across its profilers: where the time went, work over time, workers against each
//! other, what a token costs.

use profilemate_session::{Event, Session};

use crate::breakdown::Step;
use crate::cpu::Operation;
use crate::forward::Pass;
use crate::{Context, breakdown, cost, ranks, throughput};

#[derive(Debug)]
pub(crate) struct Collector {
    breakdown: Option<breakdown::Collector>,
    throughput: throughput::Collector,
    ranks: ranks::Collector,
    cost: cost::Collector,
}

/// What was found.
#[derive(Debug)]
pub(crate) struct Overview {
    pub(crate) breakdown: Option<breakdown::Breakdown>,
    pub(crate) throughput: throughput::Summary,
    pub(crate) ranks: Vec<ranks::Skew>,
    pub(crate) cost: Vec<cost::Fit>,
}

impl Collector {
    /// `has_operations`: whether the profiler of CPU operations was on.
    pub(crate) fn new(context: &Context<'_>, has_operations: bool) -> Self {
        Self {
            breakdown: has_operations.then(|| breakdown::Collector::new(context)),
            throughput: throughput::Collector::new(context.session),
            ranks: ranks::Collector::new(context.session, &context.steps),
            cost: cost::Collector::new(context.session, &context.steps),
        }
    }

    /// An event of real work, and the row of CPU operations that it made; gives an engine step that can be divided now.
    #[inline]
    pub(crate) fn see<'a>(
        &mut self,
        session: &'a Session,
        event: &Event,
        operation: Option<&Operation<'_>>,
    ) -> Option<Step<'a>> {
        self.throughput.see(event);
        self.ranks.see(event);
        let breakdown = self.breakdown.as_mut()?;
        if let Some(operation) = operation {
            breakdown.see_operation(operation, event);
        }
        breakdown.see(session, event)
    }

    /// A forward pass, of this event.
    #[inline]
    pub(crate) fn see_pass(&mut self, context: &Context<'_>, pass: &Pass<'_>, event: &Event) {
        if let Some(breakdown) = &mut self.breakdown {
            breakdown.see_pass(context, pass, event);
        }
        self.ranks.see_pass(pass, event);
        self.cost.see_pass(&context.steps, pass, event);
    }

    /// An engine step that waited for what might still come, at the end; `None` when there is none left.
    pub(crate) fn next_left<'a>(&mut self, session: &'a Session) -> Option<Step<'a>> {
        self.breakdown.as_mut()?.next_left(session)
    }

    /// All that was seen, of a run that took `wall_ns`. Nothing may be left of [`Self::next_left`].
    pub(crate) fn finish(self, session: &Session, wall_ns: u64) -> Overview {
        Overview {
            breakdown: self.breakdown.map(|breakdown| breakdown.finish(wall_ns)),
            throughput: self.throughput.finish(wall_ns),
            ranks: self.ranks.finish(session),
            cost: self.cost.finish(),
        }
    }
}
