//! Times the steps of one worker: where on the stream each part began and ended.
//!
//! A step takes up to [`MARKS`] events from a pool. When the next step begins, it joins a queue; when the GPU has
//! passed its last event, its times are read and the events go back. The last event of a step is kept until the step
//! after it has been read, for the time in between is the bubble.

use crate::driver::{Context, Driver, Event, Failure, Stream};
use std::collections::VecDeque;

/// A place in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Mark {
    /// Before the first kernel of the forward pass.
    ForwardBegin = 0,
    /// Behind the last kernel of the forward pass.
    ForwardEnd = 1,
    /// Before sampling.
    SampleBegin = 2,
    /// Behind sampling.
    SampleEnd = 3,
    /// Before drafting (speculative decoding).
    DraftBegin = 4,
    /// Behind drafting.
    DraftEnd = 5,
    /// Behind everything that the step launched.
    StepEnd = 6,
}

/// Number of marks.
const MARKS: usize = 7;

/// Failures of the driver after which nothing is timed any more.
const FAILURES_UNTIL_OFF: u64 = 16;

/// What the caller wants back with a step's times.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StepInfo {
    /// Step id.
    pub step: u64,
    /// Host ticks at [`Mark::ForwardBegin`]; 0 = it was not reached.
    pub ticks: u64,
    /// Tokens with padding; 0 = unknown.
    pub padded_tokens: u32,
    /// String id of the graph's descriptor; 0 = unknown.
    pub descriptor: u32,
}

/// Times of a step on the GPU, in milliseconds; `None` = not measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepTimes {
    /// What the caller gave.
    pub info: StepInfo,
    /// From the first to the last kernel of the forward pass.
    pub forward_ms: Option<f32>,
    /// Sampling.
    pub sample_ms: Option<f32>,
    /// Drafting.
    pub draft_ms: Option<f32>,
    /// From the last kernel of the step before to the first of this one's forward pass.
    pub idle_before_ms: Option<f32>,
    /// From the first kernel of the forward pass to the last of the step.
    pub busy_ms: Option<f32>,
}

impl StepTimes {
    /// Of a step that could not be timed.
    fn unknown(info: StepInfo) -> Self {
        Self { info, forward_ms: None, sample_ms: None, draft_ms: None, idle_before_ms: None, busy_ms: None }
    }
}

/// What did not go as wished.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Errors that the driver returned.
    pub failures: u64,
    /// The newest of them.
    pub last_failure: Option<Failure>,
    /// Steps that were not timed because all events were in use.
    pub exhausted: u64,
    /// Steps that were not timed because their stream was being captured.
    pub capturing: u64,
    /// Steps that were dropped because their context was gone.
    pub lost_contexts: u64,
}

#[derive(Debug, Clone, Copy)]
struct Step {
    info: StepInfo,
    events: [Option<Event>; MARKS],
    last: Option<Event>,
}

impl Step {
    fn new(info: StepInfo) -> Self {
        Self { info, events: [None; MARKS], last: None }
    }

    fn event(&self, mark: Mark) -> Option<Event> {
        self.events[mark as usize]
    }
}

/// Times steps. One per worker; used by one thread at a time.
#[derive(Debug)]
pub struct Timer {
    driver: &'static Driver,
    context: Option<Context>,
    free: Vec<Event>,
    /// Events of this context that exist, free or not.
    made: usize,
    most: usize,
    look_at: usize,
    /// Steps that are let come together before they are read, and ticks after which they are read all the same.
    together: (usize, u64),
    looked_at_ticks: u64,
    current: Option<Step>,
    in_flight: VecDeque<Step>,
    /// Last event of the newest step whose times were read.
    before: Option<Event>,
    counters: Counters,
}

impl Timer {
    /// `steps_in_flight`: so many steps may wait for the GPU before each of them is looked at; four times as many may
    /// wait at all.
    pub fn new(driver: &'static Driver, steps_in_flight: usize) -> Self {
        let look_at = steps_in_flight.clamp(1, 4096);
        let steps = look_at * 4;
        Self {
            driver,
            context: None,
            free: Vec::with_capacity((steps + 2) * MARKS),
            made: 0,
            most: (steps + 2) * MARKS,
            look_at,
            together: (1, 0),
            looked_at_ticks: 0,
            current: None,
            in_flight: VecDeque::with_capacity(steps + 1),
            before: None,
            counters: Counters::default(),
        }
    }

    /// Lets so many steps come together before they are read, unless so many ticks have passed since the last time:
    /// reading is cheaper in bulk, because the driver's data is in the caches then.
    #[must_use]
    pub fn reading_together(mut self, steps: usize, ticks: u64) -> Self {
        self.together = (steps.clamp(1, self.look_at), ticks);
        self
    }

    /// What did not go as wished so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Steps that wait for the GPU.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Events that exist.
    pub fn events(&self) -> usize {
        self.made
    }

    /// Whether so much failed that nothing is timed any more.
    pub fn is_off(&self) -> bool {
        self.counters.failures >= FAILURES_UNTIL_OFF
    }

    /// A step begins: the one before is complete. Gives the times of steps that the GPU has finished to `read`.
    pub fn begin_step(&mut self, info: StepInfo, mut read: impl FnMut(&StepTimes)) {
        self.end_step(&mut read);
        let (steps, ticks) = self.together;
        if self.in_flight.len() >= steps || info.ticks.wrapping_sub(self.looked_at_ticks) >= ticks {
            self.looked_at_ticks = info.ticks;
            self.harvest(&mut read);
        }
        self.current = (!self.is_off()).then(|| Step::new(info));
    }

    /// The step before is complete.
    fn end_step(&mut self, read: &mut impl FnMut(&StepTimes)) {
        let Some(step) = self.current.take() else { return };
        if step.last.is_some() {
            self.in_flight.push_back(step);
        } else {
            // Nothing was marked: there is nothing to wait for.
            read(&StepTimes::unknown(step.info));
        }
    }

    /// Adds to what comes back with the step that runs.
    pub fn describe(&mut self, descriptor: u32, padded_tokens: u32) {
        if let Some(step) = &mut self.current {
            step.info.descriptor = descriptor;
            step.info.padded_tokens = padded_tokens;
        }
    }

    /// Marks a place in the step that runs, on the stream that is launched on. `ticks` is the host's time.
    pub fn mark(&mut self, mark: Mark, stream: Stream, ticks: u64) {
        if let Some(mut step) = self.current {
            match self.try_mark(&mut step, mark, stream, ticks) {
                Ok(()) => self.current = Some(step),
                Err(failure) => {
                    self.failed(failure);
                    self.current = Some(step);
                }
            }
        }
    }

    fn try_mark(&mut self, step: &mut Step, mark: Mark, stream: Stream, ticks: u64) -> Result<(), Failure> {
        if mark == Mark::ForwardBegin {
            let context = self.driver.current_context()?;
            if context.is_none() {
                return Ok(());
            }
            if self.context != Some(context) {
                self.change_context(context);
            }
            // A step that begins outside of a capture is none: graphs are captured between steps.
            if self.driver.is_capturing(stream)? {
                self.counters.capturing += 1;
                return Ok(());
            }
        } else if step.last.is_none() {
            // What did not begin has no end.
            return Ok(());
        }
        let Some(event) = self.take_event(mark == Mark::ForwardBegin)? else {
            self.counters.exhausted += u64::from(mark == Mark::ForwardBegin);
            return Ok(());
        };
        if let Err(failure) = self.driver.record(event, stream) {
            self.free.push(event);
            return Err(failure);
        }
        if let Some(old) = step.events[mark as usize].replace(event) {
            // The same place twice (a step that runs its model in parts): the first beginning and the last end count.
            let begins = matches!(mark, Mark::ForwardBegin | Mark::SampleBegin | Mark::DraftBegin);
            if begins {
                step.events[mark as usize] = Some(old);
                self.free.push(event);
                return Ok(());
            }
            self.free.push(old);
        }
        step.last = Some(event);
        if mark == Mark::ForwardBegin {
            step.info.ticks = ticks;
        }
        Ok(())
    }

    /// A free event, or a new one. With `whole_step`, only if the step can have all it may need.
    fn take_event(&mut self, whole_step: bool) -> Result<Option<Event>, Failure> {
        let needed = if whole_step { MARKS } else { 1 };
        if self.free.len() + (self.most - self.made) < needed {
            return Ok(None);
        }
        if let Some(event) = self.free.pop() {
            return Ok(Some(event));
        }
        let event = self.driver.create_event()?;
        self.made += 1;
        Ok(Some(event))
    }

    /// The thread works in another context than before: events belong to the context that made them.
    fn change_context(&mut self, context: Context) {
        if self.context.is_some() {
            self.counters.lost_contexts += self.in_flight.len() as u64;
            // The old context may be destroyed, its events with it: they are forgotten, not touched.
            self.in_flight.clear();
            self.free.clear();
            self.before = None;
            self.made = 0;
        }
        self.context = Some(context);
    }

    /// Reads the steps that the GPU has finished, oldest first; looks at one more than that. Never waits.
    pub fn harvest(&mut self, read: &mut impl FnMut(&StepTimes)) {
        if self.is_off() {
            return;
        }
        while let Some(step) = self.in_flight.front() {
            let Some(last) = step.last else {
                self.in_flight.pop_front();
                continue;
            };
            match self.driver.has_passed(last) {
                Ok(true) => {}
                Ok(false) => return,
                Err(failure) => {
                    // A step whose event cannot be asked for would stop all that follow.
                    self.failed(failure);
                    if let Some(step) = self.in_flight.pop_front() {
                        self.give_up(&step, read);
                    }
                    continue;
                }
            }
            if let Some(step) = self.in_flight.pop_front() {
                self.read_step(&step, read);
            }
        }
    }

    /// Whether so many steps wait that the caller should harvest wherever it can.
    pub fn should_harvest(&self) -> bool {
        self.in_flight.len() >= self.look_at
    }

    fn read_step(&mut self, step: &Step, read: &mut impl FnMut(&StepTimes)) {
        let forward_begin = step.event(Mark::ForwardBegin);
        let times = StepTimes {
            info: step.info,
            forward_ms: self.elapsed(forward_begin, step.event(Mark::ForwardEnd)),
            // Where nothing lies between the two, sampling begins when the forward pass ends.
            sample_ms: self.elapsed(
                step.event(Mark::SampleBegin).or(step.event(Mark::ForwardEnd)),
                step.event(Mark::SampleEnd),
            ),
            draft_ms: self.elapsed(step.event(Mark::DraftBegin), step.event(Mark::DraftEnd)),
            idle_before_ms: self.elapsed(self.before, forward_begin),
            busy_ms: self.elapsed(forward_begin, step.last),
        };
        if let Some(before) = std::mem::replace(&mut self.before, step.last) {
            self.free.push(before);
        }
        self.free.extend(step.events.iter().flatten().filter(|event| Some(**event) != step.last));
        read(&times);
    }

    /// A step that cannot be read is a row without times.
    fn give_up(&mut self, step: &Step, read: &mut impl FnMut(&StepTimes)) {
        self.free.extend(step.events.iter().flatten());
        if let Some(before) = self.before.take() {
            // The step after this one does not follow the one before it.
            self.free.push(before);
        }
        read(&StepTimes::unknown(step.info));
    }

    fn elapsed(&mut self, from: Option<Event>, to: Option<Event>) -> Option<f32> {
        match self.driver.elapsed_ms(from?, to?) {
            Ok(milliseconds) => Some(milliseconds),
            Err(failure) => {
                self.failed(failure);
                None
            }
        }
    }

    fn failed(&mut self, failure: Failure) {
        self.counters.failures += 1;
        self.counters.last_failure = Some(failure);
    }

    /// Reads what is finished and gives all events back; what the GPU has not finished is lost. For an orderly end.
    pub fn close(mut self, mut read: impl FnMut(&StepTimes)) {
        self.end_step(&mut read);
        self.harvest(&mut read);
        if self.driver.current_context().is_ok_and(|context| Some(context) == self.context) {
            for event in self.free.drain(..).chain(self.before.take()) {
                let _ = self.driver.destroy_event(event);
            }
        }
    }
}
