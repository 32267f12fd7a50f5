//! CPU operations: where the host's time goes in and between steps.

use profilemate_session::{Component, Edge, Event, Name, Session};

use crate::Context;
use crate::statistics::{Samples, Statistics};
use crate::steps::{Phase, Scheduled};

/// What is said of an operation besides its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remark<'a> {
    /// Nothing.
    None,
    /// What kind of step it served.
    Phase(Phase),
    /// Which of Python's generations was collected.
    Generation(u64),
    /// What the probe wrote.
    Text(&'a str),
}

/// One operation.
#[derive(Debug, Clone, Copy)]
pub struct Operation<'a> {
    /// When it began: nanoseconds since the session's start.
    pub start_ns: i64,
    /// Which operation.
    pub name: Name,
    /// How long it took, nanoseconds.
    pub duration_ns: u64,
    /// What else is known.
    pub remark: Remark<'a>,
    /// Engine step; `None` = it belongs to none, or which one is not known.
    pub step: Option<u64>,
    /// The process.
    pub process: &'a str,
}

/// The operations that were seen, in the order of [`Name::ALL`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Summary {
    /// Operation and its times.
    pub operations: Vec<(Name, Statistics)>,
}

/// Whether spans of this name are operations; the others are told elsewhere.
pub(crate) fn is_operation(name: Name) -> bool {
    !matches!(
        name,
        Name::Other
            | Name::WarmUp
            | Name::Forward
            | Name::GrammarBitmask
            | Name::Drafting
            | Name::OutputReady
            | Name::GraphCapture
            | Name::Encoder
            | Name::CrossAttention
    )
}

#[derive(Debug)]
pub(crate) struct Collector {
    durations: Vec<Samples>,
    /// The last step whose batch preparation is known, by log.
    prepared: Vec<Option<u64>>,
}

impl Collector {
    pub(crate) fn new(session: &Session) -> Self {
        Self { durations: vec![Samples::default(); Name::ALL.len()], prepared: vec![None; session.logs.len()] }
    }

    #[inline]
    pub(crate) fn see<'a>(&mut self, context: &Context<'a>, event: &Event) -> Option<Operation<'a>> {
        let log = &context.session.logs[event.log];
        let process = |name: Name| log.process(name.component().unwrap_or(Component::EngineCore));
        let step = Some(event.record.step).filter(|step| *step != 0);
        let operation = match (event.name, event.edge) {
            (Name::Forward, Edge::Begin) => self.batch_preparation(context, event)?,
            (name, _) if !is_operation(name) => return None,
            (Name::GarbageCollection, _) if !context.steps.is_while_working(event) => return None,
            (name, _) => {
                let span = event.span()?;
                let step = match name {
                    // The front end does not know steps: the timestamp of the outputs does.
                    Name::OutputProcessing | Name::Detokenization => {
                        step.or_else(|| context.steps.step_of_outputs(span.value_a))
                    }
                    _ => step,
                };
                let text = || log.head.string(span.context).map_or(Remark::None, Remark::Text);
                let remark = match name {
                    Name::ModelExecution | Name::Iteration => {
                        let phase = context.steps.scheduled(event).and_then(Scheduled::phase);
                        phase.map_or_else(text, Remark::Phase)
                    }
                    Name::GarbageCollection => Remark::Generation(span.value_a),
                    _ => text(),
                };
                Operation {
                    start_ns: event.start_ns,
                    name,
                    duration_ns: event.duration_ns(),
                    remark,
                    step,
                    process: process(name),
                }
            }
        };
        self.durations[operation.name as usize].push(operation.duration_ns);
        Some(operation)
    }

    /// From the worker's entry into the step to the model's.
    fn batch_preparation<'a>(&mut self, context: &Context<'a>, forward: &Event) -> Option<Operation<'a>> {
        let log = &context.session.logs[forward.log];
        let began_ticks = context.steps.worked(forward).began_ticks?;
        // A second forward pass of a step (a draft model, a second micro-batch) is prepared inside of the step.
        let prepared = &mut self.prepared[forward.log];
        if forward.record.ticks < began_ticks || *prepared == Some(forward.record.step) {
            return None;
        }
        *prepared = Some(forward.record.step);
        let start_ns = context.session.nanoseconds(log, began_ticks);
        Some(Operation {
            start_ns,
            name: Name::BatchPreparation,
            duration_ns: u64::try_from(forward.start_ns.saturating_sub(start_ns)).unwrap_or(0),
            remark: Remark::None,
            step: Some(forward.record.step),
            process: log.process(Component::Worker),
        })
    }

    pub(crate) fn finish(self) -> Summary {
        let operations = Name::ALL
            .iter()
            .zip(self.durations)
            .filter_map(|(name, mut durations)| Some((*name, durations.statistics()?)))
            .collect();
        Summary { operations }
    }
}
