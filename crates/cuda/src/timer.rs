//! Times the steps of one worker: where on the stream each part began and ended.
//!
//! A step takes up to one event per mark from a pool. When it is complete it goes to the [`Reader`] through one ring, and
//! its times and events come back through another; vLLM's thread records events, and asks for none.

use crate::driver::{Context, Driver, Event, Failure, Stream};
use crate::reader::Reader;
use crate::step::{Clock, ContextNumber, Counters, MARKS, Mark, ReadStep, Shared, Step, StepInfo, StepTimes};
use rtrb::{Consumer, Producer, RingBuffer};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Steps whose times are taken back in one step, at most: more than come, and little enough for a step to bear.
const STEPS_PER_STEP: usize = 8;

/// Steps that may be under way at least: what a worker launches until the reader has noticed that it is in a hurry.
const LEAST_UNDER_WAY: usize = 256;

/// The recording side. One per worker; used by one thread at a time.
#[derive(Debug)]
pub struct Timer {
    driver: &'static Driver,
    context: Option<Context>,
    context_number: ContextNumber,
    free: Vec<Event>,
    /// Events of this context that exist, free or not.
    made: usize,
    most_events: usize,
    current: Option<Step>,
    /// A call inside the step that runs, which is timed by itself.
    call: Option<Step>,
    complete: Producer<Step>,
    read: Consumer<ReadStep>,
    /// Steps that were handed over and are not back.
    under_way: usize,
    most_under_way: usize,
    exhausted: u64,
    capturing: u64,
    shared: Arc<Shared>,
}

impl Timer {
    /// `steps_in_flight`: once so many steps wait for the GPU or for the reader, it looks more often; four times as many
    /// may wait at all.
    pub fn new(driver: &'static Driver, clock: Clock, steps_in_flight: usize) -> (Self, Reader) {
        let look_at = steps_in_flight.clamp(1, 4096);
        let most_under_way = (look_at * 4).max(LEAST_UNDER_WAY);
        // The step that runs, and the last event of the newest that was read.
        let most_events = (most_under_way + 2) * MARKS;
        let (complete, steps) = RingBuffer::new(most_under_way);
        let (read_steps, read) = RingBuffer::new(most_under_way);
        let shared = Arc::new(Shared::default());
        let timer = Self {
            driver,
            context: None,
            context_number: 0,
            free: Vec::with_capacity(most_events),
            made: 0,
            most_events,
            current: None,
            call: None,
            complete,
            read,
            under_way: 0,
            most_under_way,
            exhausted: 0,
            capturing: 0,
            shared: Arc::clone(&shared),
        };
        (timer, Reader::new(driver, clock, look_at, steps, read_steps, shared))
    }

    /// What did not go as wished so far.
    pub fn counters(&self) -> Counters {
        let (failures, last_failure) = self.shared.failures();
        Counters {
            failures,
            last_failure,
            exhausted: self.exhausted,
            capturing: self.capturing,
            lost_contexts: self.shared.lost_contexts.load(Ordering::Relaxed),
            reader_died: self.shared.reader_died.load(Ordering::Acquire),
        }
    }

    /// Steps that were handed over and are not back.
    pub fn under_way(&self) -> usize {
        self.under_way
    }

    /// Events that exist.
    pub fn events(&self) -> usize {
        self.made
    }

    /// Whether so much failed that nothing is timed any more.
    pub fn is_off(&self) -> bool {
        self.shared.is_off()
    }

    /// Whether a step runs that takes marks.
    #[inline]
    pub fn takes_marks(&self) -> bool {
        self.current.is_some()
    }

    /// A step begins: the one before is complete. Gives some of the times that the reader has read to `read`.
    pub fn begin_step(&mut self, info: StepInfo, mut read: impl FnMut(&StepTimes)) {
        self.take_back(STEPS_PER_STEP, &mut read);
        self.abandon_call();
        self.end_step(&mut read);
        self.current = (!self.is_off()).then(|| Step::new(info));
    }

    /// The step that runs is complete.
    fn end_step(&mut self, read: &mut impl FnMut(&StepTimes)) {
        let Some(step) = self.current.take() else { return };
        if step.last.is_some() {
            self.hand_over(step);
        } else {
            // Nothing was marked: there is nothing to wait for.
            read(&StepTimes::unknown(step.info));
        }
    }

    fn hand_over(&mut self, step: Step) {
        // There is room: a step gets no event otherwise.
        if self.complete.push(step).is_ok() {
            self.under_way += 1;
        }
    }

    fn take_back(&mut self, most: usize, read: &mut impl FnMut(&StepTimes)) {
        for _ in 0..most {
            let Ok(step) = self.read.pop() else { return };
            self.under_way -= 1;
            if step.context == self.context_number {
                self.free.extend(step.free.iter().flatten().chain(&step.free_before));
            }
            read(&step.times);
        }
    }

    /// Adds to what comes back with the step that runs.
    pub fn describe(&mut self, descriptor: u32, padded_tokens: u32) {
        if let Some(step) = &mut self.current {
            step.info.descriptor = descriptor;
            step.info.padded_tokens = padded_tokens;
        }
    }

    /// Sampling has ended, and so little is launched between here and the next mark that its event stands for the end of
    /// sampling, too: an event costs the host some microseconds, and the GPU one or two.
    pub fn sample_ends_next(&mut self) {
        if let Some(step) = &mut self.current {
            step.sample_ends_next = true;
        }
    }

    /// Marks a place in the step that runs, on the stream that is launched on. `ticks` is the host's time.
    ///
    /// The end of the step has no event of its own where sampling or drafting has just ended with one: what comes in between
    /// waits for the GPU (V1 without asynchronous scheduling), or is a few copies.
    pub fn mark(&mut self, mark: Mark, stream: Stream, ticks: u64) {
        if mark == Mark::StepEnd
            && let Some(step) = self.current.take_if(|step| step.has_end())
        {
            return self.hand_over(step);
        }
        let Some(mut step) = self.current.take() else { return };
        match self.try_mark(&mut step, mark, stream, ticks) {
            // Nothing comes behind it, so the reader may see the GPU pass the step, and not find it long after.
            Ok(true) if mark == Mark::StepEnd => self.hand_over(step),
            Ok(_) => self.current = Some(step),
            Err(failure) => {
                self.shared.failed(failure);
                self.current = Some(step);
            }
        }
    }

    /// A call inside the step that runs begins: from here to [`Self::end_call`] it is timed by itself, with two events of its
    /// own. One at a time: a call inside a call is not timed. `call` is its number in the step.
    pub fn begin_call(&mut self, call: u32, stream: Stream, ticks: u64) {
        let Some(step) = self.current.as_ref().filter(|_| self.call.is_none()) else { return };
        let mut timed = Step::new(StepInfo { ticks, call: Some(call), ..step.info });
        // The step itself must still have room, and all events that it may need.
        match self.may_begin(&mut timed, stream, 1) {
            Ok(true) => {}
            Ok(false) => return,
            Err(failure) => return self.shared.failed(failure),
        }
        match self.record_in(&mut timed, Mark::ForwardBegin, stream) {
            Ok(()) => self.call = Some(timed),
            Err(failure) => self.shared.failed(failure),
        }
    }

    /// The call with this number ends.
    pub fn end_call(&mut self, call: u32, stream: Stream) {
        let Some(mut timed) = self.call.take_if(|timed| timed.info.call == Some(call)) else { return };
        match self.record_in(&mut timed, Mark::ForwardEnd, stream) {
            Ok(()) => self.hand_over(timed),
            Err(failure) => {
                self.shared.failed(failure);
                self.free.extend(timed.events.iter().flatten());
            }
        }
    }

    /// The call that runs, if one does, has no end.
    pub fn abandon_call(&mut self) {
        if let Some(timed) = self.call.take()
            && timed.context == self.context_number
        {
            self.free.extend(timed.events.iter().flatten());
        }
    }

    /// Records an event at a place that has none.
    fn record_in(&mut self, step: &mut Step, mark: Mark, stream: Stream) -> Result<(), Failure> {
        let event = self.take_event()?;
        if let Err(failure) = self.driver.record(event, stream) {
            self.free.push(event);
            return Err(failure);
        }
        step.events[mark as usize] = Some(event);
        step.last = Some(event);
        Ok(())
    }

    /// Whether an event was recorded.
    fn try_mark(&mut self, step: &mut Step, mark: Mark, stream: Stream, ticks: u64) -> Result<bool, Failure> {
        let marked = step.event(mark);
        if marked.is_some() && matches!(mark, Mark::ForwardBegin | Mark::SampleBegin | Mark::DraftBegin) {
            // The same place twice (a step that runs its model in parts): the first beginning and the last end count.
            return Ok(false);
        }
        if mark == Mark::ForwardBegin {
            if !self.may_begin(step, stream, 0)? {
                return Ok(false);
            }
        } else if step.last.is_none() {
            // What did not begin has no end.
            return Ok(false);
        }
        let event = match marked {
            Some(event) => event,
            None => self.take_event()?,
        };
        if let Err(failure) = self.driver.record(event, stream) {
            if marked.is_none() {
                self.free.push(event);
            }
            return Err(failure);
        }
        step.events[mark as usize] = Some(event);
        step.last = Some(event);
        if mark == Mark::ForwardBegin {
            step.info.ticks = ticks;
        }
        Ok(true)
    }

    /// Whether a step, or a call inside one, can be timed that begins here. Asked once: graphs are captured between steps, and
    /// the rest of a step runs in the context that it began in. `others` is how many that run need room, too.
    fn may_begin(&mut self, step: &mut Step, stream: Stream, others: usize) -> Result<bool, Failure> {
        let context = self.driver.current_context()?;
        if context.is_none() {
            return Ok(false);
        }
        if self.context != Some(context) {
            self.change_context(context);
        }
        if self.driver.is_capturing(stream)? {
            self.capturing += 1;
            return Ok(false);
        }
        // A step begins only if it can have all events that it may need.
        let events_left = self.free.len() + (self.most_events - self.made);
        if self.under_way + others >= self.most_under_way || events_left < MARKS * (1 + others) {
            self.exhausted += 1;
            return Ok(false);
        }
        step.context = self.context_number;
        Ok(true)
    }

    /// A free event, or a new one.
    fn take_event(&mut self) -> Result<Event, Failure> {
        if let Some(event) = self.free.pop() {
            return Ok(event);
        }
        let event = self.driver.create_event()?;
        self.made += 1;
        Ok(event)
    }

    /// The thread works in another context than before: events belong to the context that made them.
    fn change_context(&mut self, context: Context) {
        // The old context may be destroyed, its events with it: they are forgotten, not touched, here and by the reader.
        self.context_number += 1;
        self.shared.set_context(self.context_number);
        self.free.clear();
        self.made = 0;
        self.context = Some(context);
    }

    /// Takes back what was read and gives all events back; what the GPU has not passed is lost. For an orderly end.
    ///
    /// `stop` ends the reader's thread, which looks once more, and gives the reader. Without it (it hangs) events stay, for
    /// it may be using them.
    pub fn close(mut self, stop: impl FnOnce() -> Option<Reader>, mut read: impl FnMut(&StepTimes)) -> Counters {
        self.abandon_call();
        self.end_step(&mut read);
        let reader = stop();
        self.take_back(self.under_way, &mut read);
        if let Some(mut reader) = reader
            && self.driver.current_context().is_ok_and(|context| Some(context) == self.context)
        {
            for event in self.free.drain(..).chain(reader.take_before(self.context_number)) {
                let _ = self.driver.destroy_event(event);
            }
        }
        self.counters()
    }
}
