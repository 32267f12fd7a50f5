//! The timer on a driver that is none (`fake/fake_cuda.c`): every path of it, without a GPU.

mod common;

use common::{FAKE, Fake, fake};
use profilemate_cuda::{
    Clock, Counters, Driver, Failure, Mark, Reader, ReaderThread, StepInfo, StepTimes, Stream, Timer,
};
use std::ffi::c_long;
use std::time::{Duration, Instant};

const STREAM: Stream = Stream(1);
const MILLISECOND: u64 = 1_000_000;

/// The fake's own time, in nanoseconds.
const CLOCK: Clock = Clock { ticks: || FAKE.get().map_or(0, Fake::now), ticks_per_second: 1_000_000_000 };

fn info(step: u64) -> StepInfo {
    StepInfo { step, ..StepInfo::default() }
}

/// A worker whose reader looks when the test says so: before each step, unless told otherwise.
struct Worker {
    fake: Fake,
    timer: Timer,
    reader: Reader,
    looks: bool,
    read: Vec<StepTimes>,
}

impl Worker {
    fn new(fake: Fake, driver: &'static Driver, steps_in_flight: usize) -> Self {
        let (timer, reader) = Timer::new(driver, CLOCK, steps_in_flight);
        Self { fake, timer, reader, looks: true, read: Vec::new() }
    }

    fn begin(&mut self, step: u64) {
        if self.looks {
            self.reader.look();
        }
        self.timer.begin_step(info(step), |times| self.read.push(*times));
    }

    /// One step as a worker runs it: the host launches and runs ahead of the GPU.
    fn run(&mut self, step: u64, forward_ms: u64, sample_ms: u64) {
        self.begin(step);
        launch(&mut self.timer, &self.fake, forward_ms, sample_ms);
    }

    fn close(mut self) -> (Counters, Vec<StepTimes>) {
        self.reader.look();
        let mut read = self.read;
        let counters = self.timer.close(|| Some(self.reader), |times| read.push(*times));
        (counters, read)
    }
}

fn launch(timer: &mut Timer, fake: &Fake, forward_ms: u64, sample_ms: u64) {
    timer.mark(Mark::ForwardBegin, STREAM, fake.now());
    fake.launch(STREAM.0, forward_ms * MILLISECOND);
    timer.mark(Mark::ForwardEnd, STREAM, 0);
    timer.mark(Mark::SampleBegin, STREAM, 0);
    fake.launch(STREAM.0, sample_ms * MILLISECOND);
    timer.mark(Mark::SampleEnd, STREAM, 0);
    timer.mark(Mark::StepEnd, STREAM, 0);
}

/// A reader on a thread.
fn start(reader: Reader) -> ReaderThread {
    reader.start(|body| Ok(std::thread::spawn(body).thread().clone())).expect("a thread starts")
}

/// Waits until it is so.
fn wait_for(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_mins(1);
    while !so() {
        assert!(Instant::now() < deadline, "{what} does not come");
        std::thread::yield_now();
    }
}

const PATIENCE: Duration = Duration::from_mins(1);

fn near(value: Option<f32>, expected: f32) -> bool {
    value.is_some_and(|value| (value - expected).abs() < 1e-3)
}

fn steps_of(read: &[StepTimes]) -> Vec<u64> {
    read.iter().map(|times| times.info.step).collect()
}

#[test]
fn a_step_is_read_when_the_gpu_has_passed_it_and_not_before() {
    let (_guard, fake, driver) = fake();
    let mut worker = Worker::new(fake, driver, 100);
    fake.advance(MILLISECOND);
    worker.run(1, 9, 1);
    fake.advance(5 * MILLISECOND);
    worker.run(2, 9, 1);
    assert_eq!(worker.read, []);
    fake.advance(6 * MILLISECOND);
    worker.run(3, 9, 1);
    assert_eq!(worker.read.len(), 1);
    let first = worker.read[0];
    assert_eq!((first.info.step, first.info.ticks, first.found_ticks), (1, MILLISECOND, 12 * MILLISECOND));
    assert!(near(first.forward_ms, 9.0) && near(first.sample_ms, 1.0), "{first:?}");
    assert!(near(first.busy_ms, 10.0), "{first:?}");
    assert_eq!((first.draft_ms, first.idle_before_ms), (None, None));
}

#[test]
fn sampling_ends_with_what_is_marked_next() {
    let (_guard, fake, driver) = fake();
    let mut worker = Worker::new(fake, driver, 100);
    // To the end of the step, to the beginning of drafting, and to nothing.
    for step in 1..=3 {
        let before = fake.calls(c"record".as_ptr());
        worker.begin(step);
        worker.timer.mark(Mark::ForwardBegin, STREAM, 0);
        fake.launch(STREAM.0, 9 * MILLISECOND);
        worker.timer.mark(Mark::ForwardEnd, STREAM, 0);
        fake.launch(STREAM.0, MILLISECOND);
        worker.timer.sample_ends_next();
        if step == 2 {
            worker.timer.mark(Mark::DraftBegin, STREAM, 0);
            fake.launch(STREAM.0, 2 * MILLISECOND);
            worker.timer.mark(Mark::DraftEnd, STREAM, 0);
        }
        if step < 3 {
            worker.timer.mark(Mark::StepEnd, STREAM, 0);
        }
        // The end of drafting is the end of the step.
        let events = [3, 4, 2][usize::try_from(step).unwrap() - 1];
        assert_eq!(fake.calls(c"record".as_ptr()) - before, events);
        fake.advance(20 * MILLISECOND);
    }
    worker.begin(4);
    let (_, mut read) = worker.close();
    read.sort_by_key(|times| times.info.step);
    let expected = [(Some(1.0), None, 10.0), (Some(1.0), Some(2.0), 12.0), (None, None, 9.0)];
    let is_near = |value: Option<f32>, expected: Option<f32>| {
        expected.map_or(value.is_none(), |expected| near(value, expected))
    };
    assert_eq!(steps_of(&read), [1, 2, 3, 4]);
    for (times, (sample, draft, busy)) in read.iter().zip(expected) {
        assert!(is_near(times.sample_ms, sample) && is_near(times.draft_ms, draft), "{times:?}");
        assert!(near(times.busy_ms, busy), "{times:?}");
    }
}

#[test]
fn a_step_that_has_just_sampled_needs_no_event_for_its_end() {
    let (_guard, fake, driver) = fake();
    let mut worker = Worker::new(fake, driver, 100);
    worker.run(1, 9, 1);
    // It is with the reader all the same, and not only when the next one begins.
    assert_eq!((worker.timer.under_way(), fake.calls(c"record".as_ptr())), (1, 4));
    assert!(!worker.timer.takes_marks());
}

#[test]
fn the_bubble_is_the_time_that_the_gpu_waited_for_the_host() {
    let (_guard, fake, driver) = fake();
    let mut worker = Worker::new(fake, driver, 100);
    for step in 1..=3 {
        worker.run(step, 2, 1);
        // The host comes back four milliseconds after the GPU is done.
        fake.advance(7 * MILLISECOND);
    }
    worker.run(4, 2, 1);
    assert_eq!(steps_of(&worker.read), [1, 2, 3]);
    let read = &worker.read;
    assert!(near(read[1].idle_before_ms, 4.0) && near(read[2].idle_before_ms, 4.0), "{read:?}");
}

#[test]
fn back_to_back_steps_have_no_bubble() {
    let (_guard, fake, driver) = fake();
    let mut worker = Worker::new(fake, driver, 100);
    for step in 1..=5 {
        worker.run(step, 2, 1);
    }
    fake.advance(100 * MILLISECOND);
    worker.begin(6);
    assert_eq!(worker.read.len(), 5);
    assert!(worker.read[1..].iter().all(|times| near(times.idle_before_ms, 0.0)), "{:?}", worker.read);
}

#[test]
fn a_step_goes_to_the_reader_as_soon_as_it_is_complete() {
    let (_guard, fake, driver) = fake();
    let mut worker = Worker::new(fake, driver, 100);
    worker.run(1, 2, 1);
    assert_eq!((worker.timer.under_way(), worker.timer.takes_marks()), (1, false));
    // One without an end goes when the next one begins.
    worker.begin(2);
    worker.timer.mark(Mark::ForwardBegin, STREAM, 0);
    assert_eq!((worker.timer.under_way(), worker.timer.takes_marks()), (1, true));
    worker.begin(3);
    assert_eq!(worker.timer.under_way(), 2);
}

#[test]
fn what_a_step_asks_of_the_driver() {
    let (_guard, fake, driver) = fake();
    let mut worker = Worker::new(fake, driver, 100);
    worker.looks = false;
    for step in 1..=200 {
        worker.run(step, 2, 1);
        fake.advance(5 * MILLISECOND);
        if step == 100 {
            // From here on there are free events.
            worker.reader.look();
        }
    }
    let count = |name: &std::ffi::CStr| fake.calls(name.as_ptr());
    // vLLM's thread: each mark but the last records an event, and a step begins with two questions.
    assert_eq!((count(c"context"), count(c"capturing"), count(c"record")), (200, 200, 4 * 200));
    // The reader's: once for each step, and its five times (there is no drafting, and the first follows on none).
    assert_eq!((count(c"query"), count(c"elapsed")), (100, 4 * 100 - 1));
    worker.reader.look();
    assert_eq!((count(c"query"), count(c"elapsed")), (200, 4 * 200 - 1));
}

#[test]
fn a_capturing_stream_is_left_alone() {
    let (_guard, fake, driver) = fake();
    let mut worker = Worker::new(fake, driver, 100);
    fake.capture(STREAM.0, 1);
    worker.run(1, 2, 1);
    fake.capture(STREAM.0, 0);
    worker.run(2, 2, 1);
    assert_eq!((worker.timer.counters().capturing, worker.timer.counters().failures), (1, 0));
    assert_eq!((worker.read.len(), worker.read[0].info.step, worker.read[0].forward_ms), (1, 1, None));
    assert_eq!(fake.calls(c"record".as_ptr()), 4);
}

#[test]
fn a_capture_on_another_thread_is_not_broken_by_the_readers_looks() {
    let (_guard, fake, driver) = fake();
    let mut worker = Worker::new(fake, driver, 1);
    worker.looks = false;
    worker.run(1, 2, 1);
    fake.capture(2, 1);
    let Worker { timer, reader, .. } = worker;
    let thread = start(reader);
    wait_for("a look", || fake.calls(c"query".as_ptr()) >= 3);
    fake.capture(2, 0);
    assert_eq!(fake.broken_captures(), 0);
    let counters = timer.close(|| thread.stop(PATIENCE), |_| {});
    assert_eq!(counters, Counters::default());
}

#[test]
fn a_gpu_that_hangs_takes_no_more_events_than_there_may_be() {
    let (_guard, fake, driver) = fake();
    let mut worker = Worker::new(fake, driver, 4);
    for step in 1..=1000 {
        worker.run(step, 2, 1);
    }
    let events = worker.timer.events();
    assert!(events <= (256 + 2) * 7, "{events}");
    assert_eq!((worker.timer.under_way(), worker.timer.counters().exhausted), (256, 1000 - 256));
    // Steps that could not be timed are rows without times; the others come when the GPU does.
    assert!(worker.read.iter().all(|times| times.forward_ms.is_none()));
    let without = worker.read.len();
    fake.advance(10_000 * MILLISECOND);
    worker.begin(1001);
    // They come a few at a time, oldest first.
    assert_eq!(steps_of(&worker.read[without..]), [1, 2, 3, 4, 5, 6, 7, 8, 1000]);
    while worker.timer.under_way() > 0 {
        worker.begin(1001);
    }
    assert!(worker.read[without..].iter().filter(|times| near(times.forward_ms, 2.0)).count() == 256);
    // And it goes on.
    worker.read.clear();
    for step in 1002..1010 {
        worker.run(step, 2, 1);
        fake.advance(10 * MILLISECOND);
    }
    assert!(worker.read.iter().filter(|times| near(times.forward_ms, 2.0)).count() >= 6, "{:?}", worker.read);
    assert!(worker.timer.events() <= events);
    assert_eq!(worker.timer.counters().failures, 0);
}

#[test]
fn every_error_of_every_function_is_counted_and_never_stops_the_steps() {
    let (_guard, fake, driver) = fake();
    for function in [c"context", c"create", c"record", c"query", c"elapsed", c"capturing"] {
        for code in [1, 2, 100, 201, 400, 700, 709, 719, 900, 999] {
            fake.reset();
            let mut worker = Worker::new(fake, driver, 100);
            fake.fail(function.as_ptr(), code, 3, 2);
            for step in 1..=20 {
                worker.run(step, 2, 1);
                fake.advance(10 * MILLISECOND);
            }
            let (counters, read) = worker.close();
            assert!((1..=2).contains(&counters.failures), "{function:?} {code} {counters:?}");
            assert_eq!(counters.last_failure, Some(Failure(code)));
            assert_eq!(steps_of(&read), (1..=20).collect::<Vec<_>>(), "{function:?} {code}");
            assert!(read.iter().filter(|times| near(times.forward_ms, 2.0)).count() >= 16, "{function:?} {code}");
        }
    }
}

#[test]
fn a_driver_that_keeps_failing_is_left_alone() {
    for function in [c"record", c"query", c"elapsed"] {
        let (_guard, fake, driver) = fake();
        let mut worker = Worker::new(fake, driver, 100);
        fake.fail(function.as_ptr(), 719, 0, c_long::MAX);
        for step in 1..=100 {
            worker.run(step, 2, 1);
            fake.advance(10 * MILLISECOND);
        }
        assert!(worker.timer.is_off() && !worker.timer.takes_marks());
        assert_eq!(fake.calls(function.as_ptr()), 16);
    }
}

#[test]
fn a_reader_that_cannot_leave_captures_alone_asks_for_nothing() {
    let (_guard, fake, driver) = fake();
    let mut worker = Worker::new(fake, driver, 100);
    worker.looks = false;
    fake.fail(c"mode".as_ptr(), 1, 0, c_long::MAX);
    worker.run(1, 2, 1);
    let thread = start(worker.reader);
    wait_for("the end of the timer", || worker.timer.is_off());
    fake.advance(10 * MILLISECOND);
    worker.timer.begin_step(info(2), |_| {});
    assert!(!worker.timer.takes_marks());
    let counters = worker.timer.close(|| thread.stop(PATIENCE), |_| panic!("it was not read"));
    assert_eq!((counters.failures, counters.last_failure), (1, Some(Failure(1))));
    assert!(counters.reader_died);
    assert_eq!(fake.calls(c"query".as_ptr()), 0);
}

#[test]
fn a_panic_in_the_reader_ends_the_timing_and_nothing_else() {
    let (_guard, fake, driver) = fake();
    let clock = Clock { ticks: || panic!("a panic that was asked for"), ticks_per_second: 1 };
    let (mut timer, reader) = Timer::new(driver, clock, 100);
    timer.begin_step(info(1), |_| {});
    launch(&mut timer, &fake, 2, 1);
    fake.advance(10 * MILLISECOND);
    let thread = start(reader);
    wait_for("the end of the timer", || timer.is_off());
    timer.begin_step(info(2), |_| {});
    assert!(!timer.takes_marks());
    let counters = timer.close(|| thread.stop(PATIENCE), |_| {});
    assert!(counters.reader_died && counters.failures == 0);
}

#[test]
fn events_of_a_lost_context_are_not_touched() {
    let (_guard, fake, driver) = fake();
    let mut worker = Worker::new(fake, driver, 100);
    // The fake answers with an error to whoever asks for an event of another context than the current one.
    for round in 0..4_u64 {
        let first = round * 8 + 1;
        // One is read and not taken back, two are neither.
        worker.run(first, 2, 1);
        fake.advance(50 * MILLISECOND);
        worker.reader.look();
        worker.looks = false;
        worker.run(first + 1, 2, 1);
        worker.run(first + 2, 2, 1);
        // The handle of a context may come again.
        fake.context(2 - usize::try_from(round).unwrap() % 2);
        worker.run(first + 3, 2, 1);
        worker.looks = true;
        for step in first + 4..=first + 7 {
            worker.run(step, 2, 1);
            fake.advance(50 * MILLISECOND);
        }
        assert_eq!(worker.timer.counters().failures, 0);
        assert_eq!(worker.timer.counters().lost_contexts, 2 * (round + 1));
    }
    fake.advance(50 * MILLISECOND);
    let (counters, read) = worker.close();
    assert_eq!(counters.failures, 0);
    assert_eq!(steps_of(&read), (1..=32).collect::<Vec<_>>());
    for times in &read {
        let is_lost = matches!(times.info.step % 8, 2 | 3);
        assert_eq!(times.forward_ms.is_none(), is_lost, "{times:?}");
        // What follows on a lost step follows on nothing.
        assert!(times.info.step % 8 != 4 || times.idle_before_ms.is_none(), "{times:?}");
    }
}

#[test]
fn two_hundred_thousand_steps_use_the_events_of_a_few() {
    let (_guard, fake, driver) = fake();
    let (mut timer, mut reader) = Timer::new(driver, CLOCK, 100);
    let mut count = 0_u64;
    for step in 1..=200_000_u64 {
        timer.begin_step(info(step), |times| {
            count += 1;
            assert!(near(times.forward_ms, 3.0) && times.info.step == count);
        });
        timer.mark(Mark::ForwardBegin, STREAM, step);
        fake.launch(STREAM.0, 3 * MILLISECOND);
        timer.mark(Mark::ForwardEnd, STREAM, step);
        timer.mark(Mark::StepEnd, STREAM, step);
        fake.advance(3 * MILLISECOND);
        if step % 16 == 0 {
            reader.look();
        }
    }
    assert!(count >= 199_900);
    // What comes between two looks, and what was read and is not back.
    assert!(fake.all_events() < 3 * 16 * 3, "{}", fake.all_events());
    timer.close(|| Some(reader), |_| {});
    assert_eq!(fake.live_events(), 0);
}

#[test]
fn a_thread_reads_and_vllms_thread_never_asks_the_driver() {
    let (_guard, fake, driver) = fake();
    let (mut timer, reader) = Timer::new(driver, CLOCK, 8);
    let thread = start(reader);
    let mut read = Vec::new();
    for step in 1..=5000 {
        timer.begin_step(info(step), |times| read.push(*times));
        launch(&mut timer, &fake, 2, 1);
        fake.advance(4 * MILLISECOND);
        // A real worker does not launch faster than this; the reader keeps up by itself.
        if timer.under_way() >= 128 {
            wait_for("a look", || {
                timer.begin_step(info(0), |times| read.push(*times));
                timer.under_way() < 128
            });
            read.retain(|times| times.info.step != 0);
        }
    }
    let counters = timer.close(|| thread.stop(PATIENCE), |times| read.push(*times));
    read.retain(|times| times.info.step != 0);
    assert_eq!(counters, Counters::default());
    assert_eq!(steps_of(&read), (1..=5000).collect::<Vec<_>>());
    for times in &read {
        assert!(near(times.forward_ms, 2.0) && near(times.busy_ms, 3.0), "{times:?}");
        assert!(times.info.step == 1 || near(times.idle_before_ms, 1.0), "{times:?}");
        assert!(times.found_ticks >= times.info.ticks + 3 * MILLISECOND);
    }
    for name in [c"query", c"elapsed"] {
        assert!(fake.calls(name.as_ptr()) >= 5000);
        assert_eq!(fake.host_calls(name.as_ptr()), 0);
    }
    for name in [c"context", c"create", c"record", c"capturing", c"destroy"] {
        assert_eq!(fake.calls(name.as_ptr()), fake.host_calls(name.as_ptr()), "{name:?}");
    }
    assert!(fake.all_events() <= 5 * 140, "{}", fake.all_events());
    assert_eq!(fake.live_events(), 0);
}

#[test]
fn the_end_takes_what_the_gpu_has_passed_and_leaves_the_rest() {
    let (_guard, fake, driver) = fake();
    let (mut timer, reader) = Timer::new(driver, CLOCK, 100);
    let thread = start(reader);
    let mut read = Vec::new();
    for step in 1..=3 {
        timer.begin_step(info(step), |times| read.push(*times));
        launch(&mut timer, &fake, 2, 1);
    }
    fake.advance(7 * MILLISECOND);
    timer.close(|| thread.stop(PATIENCE), |times| read.push(*times));
    assert_eq!(steps_of(&read), [1, 2]);
    // The events of the third: the GPU is not done with them.
    assert_eq!(fake.live_events(), 4);
}

#[test]
fn a_thread_that_nobody_holds_ends() {
    let (_guard, _, driver) = fake();
    let (_timer, reader) = Timer::new(driver, CLOCK, 100);
    let mut handle = None;
    let thread = reader.start(|body| {
        let handle = handle.insert(std::thread::spawn(body));
        Ok(handle.thread().clone())
    });
    drop(thread);
    handle.unwrap().join().unwrap();
}

#[test]
fn drafting_is_timed_by_itself_and_parts_of_a_forward_pass_are_one() {
    let (_guard, fake, driver) = fake();
    let mut worker = Worker::new(fake, driver, 100);
    worker.begin(1);
    for _ in 0..2 {
        worker.timer.mark(Mark::ForwardBegin, STREAM, 1);
        fake.launch(STREAM.0, 2 * MILLISECOND);
        worker.timer.mark(Mark::ForwardEnd, STREAM, 1);
    }
    worker.timer.mark(Mark::DraftBegin, STREAM, 1);
    fake.launch(STREAM.0, 3 * MILLISECOND);
    worker.timer.mark(Mark::DraftEnd, STREAM, 1);
    worker.timer.describe(5, 16);
    fake.advance(50 * MILLISECOND);
    worker.begin(2);
    worker.begin(3);
    let read = &worker.read;
    assert!(near(read[0].forward_ms, 4.0) && near(read[0].draft_ms, 3.0), "{read:?}");
    assert_eq!((read[0].info.descriptor, read[0].info.padded_tokens), (5, 16));
    // The second beginning is no event, and the second end is the first one's.
    assert_eq!((fake.calls(c"create".as_ptr()), fake.calls(c"record".as_ptr())), (4, 5));
    assert_eq!(fake.calls(c"destroy".as_ptr()), 0);
}

/// The calls in what was read: step, number and milliseconds.
fn calls_of(read: &[StepTimes]) -> Vec<(u64, u32, Option<f32>)> {
    read.iter().filter_map(|times| Some((times.info.step, times.info.call?, times.forward_ms))).collect()
}

/// A step with calls of so many milliseconds before its forward pass.
fn run_with_calls(worker: &mut Worker, step: u64, calls: &[u64]) {
    worker.begin(step);
    for (number, ms) in (0..).zip(calls) {
        worker.timer.begin_call(number, STREAM, worker.fake.now());
        worker.fake.launch(STREAM.0, ms * MILLISECOND);
        worker.timer.end_call(number, STREAM);
    }
    launch(&mut worker.timer, &worker.fake, 2, 1);
}

#[test]
fn calls_inside_a_step_are_timed_by_themselves_and_leave_its_times_as_they_are() {
    let (_guard, fake, driver) = fake();
    let mut worker = Worker::new(fake, driver, 100);
    for step in 1..=4 {
        run_with_calls(&mut worker, step, &[5, 7]);
        fake.advance(20 * MILLISECOND);
    }
    let (counters, read) = worker.close();
    assert_eq!(counters.failures, 0);
    let calls = calls_of(&read);
    assert_eq!(calls.len(), 8);
    assert!(calls.iter().all(|(_, number, ms)| near(*ms, if *number == 0 { 5.0 } else { 7.0 })), "{calls:?}");
    // Each comes before its step.
    let order: Vec<(u64, bool)> = read.iter().map(|times| (times.info.step, times.info.call.is_none())).collect();
    assert_eq!(order[..6], [(1, false), (1, false), (1, true), (2, false), (2, false), (2, true)]);
    // The steps: 15 ms of work, 5 ms of nothing; from one step's end to the next one's forward pass also its calls pass.
    let steps: Vec<&StepTimes> = read.iter().filter(|times| times.info.call.is_none()).collect();
    assert!(steps.iter().all(|times| near(times.forward_ms, 2.0) && near(times.busy_ms, 3.0)), "{steps:?}");
    assert!(steps[1..].iter().all(|times| near(times.idle_before_ms, 17.0)), "{steps:?}");
    // And a call knows how long after the step before it began.
    let second: Vec<f32> = read
        .iter()
        .filter(|t| t.info.step == 2 && t.info.call.is_some())
        .filter_map(|t| t.idle_before_ms)
        .collect();
    assert!(near(Some(second[0]), 5.0) && near(Some(second[1]), 10.0), "{second:?}");
    assert_eq!(fake.live_events(), 0);
}

#[test]
fn calls_without_a_step_inside_another_call_or_without_an_end_are_not_timed() {
    let (_guard, fake, driver) = fake();
    let mut worker = Worker::new(fake, driver, 100);
    worker.timer.begin_call(0, STREAM, 0);
    worker.timer.end_call(0, STREAM);
    assert_eq!(fake.calls(c"record".as_ptr()), 0);
    worker.begin(1);
    worker.timer.begin_call(0, STREAM, 0);
    worker.timer.begin_call(1, STREAM, 0);
    fake.launch(STREAM.0, MILLISECOND);
    worker.timer.end_call(1, STREAM);
    worker.timer.end_call(0, STREAM);
    worker.timer.begin_call(2, STREAM, 0);
    launch(&mut worker.timer, &fake, 2, 1);
    // Its end comes when the step is over.
    worker.timer.end_call(2, STREAM);
    worker.timer.abandon_call();
    fake.advance(20 * MILLISECOND);
    let (counters, read) = worker.close();
    assert_eq!((counters.failures, counters.exhausted), (0, 0));
    assert_eq!(calls_of(&read).len(), 2);
    assert_eq!(fake.live_events(), 0);
}

#[test]
fn calls_take_no_place_that_a_step_needs() {
    let (_guard, fake, driver) = fake();
    let mut worker = Worker::new(fake, driver, 1);
    worker.looks = false;
    worker.begin(1);
    // The GPU hangs, and there are more calls than places.
    worker.timer.mark(Mark::ForwardBegin, STREAM, 0);
    for number in 0..1000 {
        worker.timer.begin_call(number, STREAM, 0);
        worker.timer.end_call(number, STREAM);
    }
    worker.timer.mark(Mark::ForwardEnd, STREAM, 0);
    worker.timer.mark(Mark::StepEnd, STREAM, 0);
    worker.looks = true;
    let (counters, read) = worker.close();
    assert_eq!(counters.failures, 0);
    assert!(counters.exhausted > 500, "{counters:?}");
    assert_eq!(read.iter().filter(|times| times.info.call.is_none() && times.forward_ms.is_some()).count(), 1);
    assert_eq!(fake.live_events(), 0);
}

#[test]
fn a_driver_that_fails_in_calls_never_stops_the_steps() {
    let (_guard, fake, driver) = fake();
    for function in [c"context", c"create", c"record", c"query", c"elapsed", c"capturing"] {
        for after in 0..8 {
            fake.reset();
            let mut worker = Worker::new(fake, driver, 100);
            fake.fail(function.as_ptr(), 719, after, 2);
            for step in 1..=20 {
                run_with_calls(&mut worker, step, &[1, 2]);
                fake.advance(10 * MILLISECOND);
            }
            let (counters, read) = worker.close();
            assert!((1..=2).contains(&counters.failures), "{function:?} {after} {counters:?}");
            let steps: Vec<u64> = read.iter().filter(|t| t.info.call.is_none()).map(|t| t.info.step).collect();
            assert_eq!(steps, (1..=20).collect::<Vec<_>>(), "{function:?} {after}");
            assert!(calls_of(&read).iter().filter(|(.., ms)| ms.is_some()).count() >= 34, "{function:?} {after}");
        }
    }
}

#[test]
fn what_a_call_asks_of_the_driver() {
    let (_guard, fake, driver) = fake();
    let mut worker = Worker::new(fake, driver, 100);
    for step in 1..=50 {
        run_with_calls(&mut worker, step, &[1]);
        fake.advance(10 * MILLISECOND);
    }
    let count = |name: &std::ffi::CStr| fake.calls(name.as_ptr());
    // Two events for a call, and the two questions with which a step begins, too.
    assert_eq!((count(c"context"), count(c"capturing"), count(c"record")), (100, 100, 6 * 50));
    assert_eq!(worker.timer.counters().failures, 0);
}
