//! Spans as they were recorded, for who draws them: those of warm-up and dummy steps too, whatever profiler asked for them.

use profilemate_session::{Component, Edge, Event, Label, Name, Payload};

use crate::cpu::Operation;
use crate::steps::Scheduled;
use crate::{Context, Row};

/// A region of time on a host.
#[derive(Debug, Clone, Copy)]
pub struct Span<'a> {
    /// Index of its log in the session.
    pub log: usize,
    /// When it began: nanoseconds since the session's start.
    pub start_ns: i64,
    /// When it ended.
    pub end_ns: i64,
    /// What went on.
    pub name: Name,
    /// The part of vLLM that it was in.
    pub component: Component,
    /// Whether it served requests.
    pub label: Label,
    /// Engine step; `None` = it belongs to none, or which one is not known.
    pub step: Option<u64>,
    /// What the scheduler decided for that step.
    pub scheduled: Option<Scheduled>,
    /// What the probe wrote, such as what a batch was dispatched as; `None` = nothing.
    pub context: Option<&'a str>,
}

/// Hands out a span, if there is one.
#[inline]
pub(crate) fn hand_out<E>(
    span: Option<Span<'_>>,
    row: &mut impl FnMut(Row<'_>) -> Result<(), E>,
) -> Result<(), E> {
    span.map_or(Ok(()), |span| row(Row::Span(span)))
}

impl<'a> Span<'a> {
    /// The span of this event; `None` when it is none, or its name is not known.
    #[inline]
    pub(crate) fn of(context: &Context<'a>, event: &Event) -> Option<Self> {
        let span = event.span().filter(|_| event.edge == Edge::End)?;
        let log = &context.session.logs[event.log];
        let component = event.name.component()?;
        // Every process collects garbage.
        let own = || Component::ALL.into_iter().find(|part| log.role(*part).is_some());
        let component = if event.name == Name::GarbageCollection { own().unwrap_or(component) } else { component };
        // Garbage that is collected while nobody works is in no table either.
        let label = match event.name {
            Name::GarbageCollection if event.is_work() && !context.steps.is_while_working(event) => Label::WarmUp,
            _ => event.record.label,
        };
        let step = Some(event.record.step).filter(|step| *step != 0);
        let step = match event.name {
            // The front end does not know steps: the timestamp of the outputs does.
            Name::OutputProcessing | Name::Detokenization => {
                step.or_else(|| context.steps.step_of_outputs(span.value_a))
            }
            _ => step,
        };
        Some(Self {
            log: event.log,
            start_ns: event.start_ns,
            end_ns: event.end_ns.max(event.start_ns),
            name: event.name,
            component,
            label,
            step,
            scheduled: context.steps.scheduled(event).filter(|_| event.is_work()),
            context: log.head.string(span.context).filter(|text| !text.is_empty()),
        })
    }

    /// The preparation of a batch, which no process records: it ends where the forward pass of this event begins.
    #[inline]
    pub(crate) fn preparation(context: &Context<'a>, event: &Event, operation: &Operation<'_>) -> Option<Self> {
        (operation.name == Name::BatchPreparation && matches!(event.record.payload, Payload::Span(_))).then(|| {
            Self {
                log: event.log,
                start_ns: operation.start_ns,
                end_ns: operation.start_ns.saturating_add_unsigned(operation.duration_ns),
                name: Name::BatchPreparation,
                component: Component::Worker,
                label: event.record.label,
                step: operation.step,
                scheduled: context.steps.scheduled(event),
                context: None,
            }
        })
    }
}
