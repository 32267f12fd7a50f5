//! Reads steps that the GPU has passed, on a thread of its own, which never takes the GIL.
//!
//! It looks when its time has come ([`Pace`]); nobody wakes it, so handing a step over costs vLLM's thread no system call.

use crate::driver::{Driver, Event, Failure};
use crate::pace::{Pace, Seen};
use crate::step::{Clock, ContextNumber, MARKS, Mark, ReadStep, Shared, Step, StepTimes};
use rtrb::{Consumer, Producer};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::Thread;
use std::time::Duration;

/// Steps that are read in one look, at most.
const STEPS_PER_LOOK: usize = 256;

/// What is known of a step before it is read.
#[derive(Debug, Clone, Copy)]
enum State {
    /// The GPU has passed it, found at these ticks.
    Passed(u64),
    /// Its event cannot be asked for.
    Failed,
    /// Its context is gone.
    Lost,
}

/// The reading side of a [`crate::Timer`].
#[derive(Debug)]
pub struct Reader {
    driver: &'static Driver,
    clock: Clock,
    steps: Consumer<Step>,
    read: Producer<ReadStep>,
    /// Last event of the newest step that was read, and its context.
    before: Option<(Event, ContextNumber)>,
    /// Scratch of a look.
    states: Vec<State>,
    pace: Pace,
    shared: Arc<Shared>,
}

impl Reader {
    pub(crate) fn new(
        driver: &'static Driver,
        clock: Clock,
        look_at: usize,
        steps: Consumer<Step>,
        read: Producer<ReadStep>,
        shared: Arc<Shared>,
    ) -> Self {
        let states = Vec::with_capacity(STEPS_PER_LOOK);
        Self { driver, clock, steps, read, before: None, states, pace: Pace::new(clock, look_at), shared }
    }

    /// Reads the steps that the GPU has passed, oldest first; asks for one more than that. Never waits.
    pub fn look(&mut self) {
        self.look_and_tell();
    }

    fn look_and_tell(&mut self) -> Seen {
        let in_flight = self.steps.slots();
        self.ask(in_flight.min(STEPS_PER_LOOK));
        let passed = self.states.len();
        for i in 0..passed {
            // `ask` has seen it there.
            let Ok(step) = self.steps.pop() else { break };
            let read = match self.states[i] {
                State::Passed(ticks) => self.read_step(&step, ticks),
                State::Failed => self.give_up(&step),
                State::Lost => self.lose(&step),
            };
            // There is room: no more steps are under way than the ring has places.
            let _ = self.read.push(read);
        }
        Seen { in_flight, passed }
    }

    /// Asks for all steps first and reads them then, so that the ticks at which they were found are not late by the time
    /// that reading takes.
    fn ask(&mut self, steps: usize) {
        self.states.clear();
        let Ok(chunk) = self.steps.read_chunk(steps) else { return };
        let (older, newer) = chunk.as_slices();
        for step in older.iter().chain(newer) {
            if self.shared.is_off() {
                return;
            }
            let Some(last) = step.last.filter(|_| step.context == self.shared.context()) else {
                self.states.push(State::Lost);
                continue;
            };
            self.states.push(match self.driver.has_passed(last) {
                // After the answer: before it, the GPU might not have passed the step yet.
                Ok(true) => State::Passed((self.clock.ticks)()),
                Ok(false) => return,
                Err(failure) => {
                    // A step whose event cannot be asked for would stop all that follow.
                    self.shared.failed(failure);
                    State::Failed
                }
            });
        }
    }

    fn read_step(&mut self, step: &Step, found_ticks: u64) -> ReadStep {
        let forward_begin = step.event(Mark::ForwardBegin);
        let before = self.before.filter(|(_, context)| *context == step.context).map(|(event, _)| event);
        let times = StepTimes {
            info: step.info,
            found_ticks,
            forward_ms: self.elapsed(forward_begin, step.event(Mark::ForwardEnd)),
            // Where nothing lies between the two, sampling begins when the forward pass ends.
            sample_ms: self
                .elapsed(step.event(Mark::SampleBegin).or(step.event(Mark::ForwardEnd)), step.sample_end()),
            draft_ms: self.elapsed(step.event(Mark::DraftBegin), step.event(Mark::DraftEnd)),
            idle_before_ms: self.elapsed(before, forward_begin),
            busy_ms: self.elapsed(forward_begin, step.last),
        };
        if step.info.call.is_some() {
            // What follows it in its step is measured from the step before, as it is.
            return ReadStep { times, context: step.context, free: step.events, free_before: None };
        }
        self.before = step.last.map(|last| (last, step.context));
        let free = step.events.map(|event| event.filter(|_| event != step.last));
        ReadStep { times, context: step.context, free, free_before: before }
    }

    /// A step that cannot be read is a row without times.
    fn give_up(&mut self, step: &Step) -> ReadStep {
        if step.info.call.is_some() {
            let times = StepTimes::unknown(step.info);
            return ReadStep { times, context: step.context, free: step.events, free_before: None };
        }
        // The step after this one does not follow the one before it.
        let before = self.before.take().filter(|(_, context)| *context == step.context);
        let times = StepTimes::unknown(step.info);
        ReadStep { times, context: step.context, free: step.events, free_before: before.map(|(event, _)| event) }
    }

    /// The context may be destroyed, its events with it: they are forgotten, not touched.
    fn lose(&mut self, step: &Step) -> ReadStep {
        self.shared.lost_contexts.fetch_add(1, Ordering::Relaxed);
        self.before = None;
        let times = StepTimes::unknown(step.info);
        ReadStep { times, context: step.context, free: [None; MARKS], free_before: None }
    }

    fn elapsed(&self, from: Option<Event>, to: Option<Event>) -> Option<f32> {
        let (from, to) = (from?, to?);
        if self.shared.is_off() {
            return None;
        }
        self.driver.elapsed_ms(from, to).map_err(|failure| self.shared.failed(failure)).ok()
    }

    /// The event that is kept for the step that comes next, if it is of this context.
    pub(crate) fn take_before(&mut self, context: ContextNumber) -> Option<Event> {
        self.before.take().filter(|(_, of)| *of == context).map(|(event, _)| event)
    }

    /// Reads on a thread from here on. `spawn` starts a thread that runs what it is given.
    pub fn start(
        self,
        spawn: impl FnOnce(Box<dyn FnOnce() + Send>) -> std::io::Result<Thread>,
    ) -> std::io::Result<ReaderThread> {
        let shared = Arc::clone(&self.shared);
        let (give_back, back) = sync_channel(1);
        let thread = spawn(Box::new(move || {
            let mut reader = self;
            // A panic here must end this thread alone.
            if catch_unwind(AssertUnwindSafe(|| reader.run())).is_err() {
                reader.shared.reader_died.store(true, Ordering::Release);
            }
            let _ = give_back.send(reader);
        }))?;
        Ok(ReaderThread { shared, thread, back })
    }

    fn run(&mut self) {
        if let Err(failure) = self.driver.leave_captures_alone() {
            self.cannot_begin(failure);
            return;
        }
        loop {
            let stop = self.shared.stop.load(Ordering::Acquire);
            let seen = self.look_and_tell();
            if stop || self.shared.is_off() {
                return;
            }
            std::thread::park_timeout(self.pace.pause(seen));
        }
    }

    #[cold]
    fn cannot_begin(&self, failure: Failure) {
        self.shared.failed(failure);
        self.shared.reader_died.store(true, Ordering::Release);
    }
}

/// The running thread of a [`Reader`]. Dropping it asks the thread to end.
#[derive(Debug)]
pub struct ReaderThread {
    shared: Arc<Shared>,
    thread: Thread,
    back: Receiver<Reader>,
}

impl ReaderThread {
    /// Has the thread look once more and end, and takes its reader back. `None`: it did not end in time.
    pub fn stop(self, deadline: Duration) -> Option<Reader> {
        self.ask_to_stop();
        self.back.recv_timeout(deadline).ok()
    }

    fn ask_to_stop(&self) {
        self.shared.stop.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

impl Drop for ReaderThread {
    fn drop(&mut self) {
        self.ask_to_stop();
    }
}
