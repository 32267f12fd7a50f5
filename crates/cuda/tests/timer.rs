//! The timer on a driver that is none (`fake/fake_cuda.c`): every path of it, without a GPU.

use profilemate_cuda::{Driver, Mark, StepInfo, StepTimes, Stream, Timer};
use std::ffi::{CString, c_char, c_int, c_long};
use std::os::unix::ffi::OsStrExt;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

const STREAM: Stream = Stream(1);
const MILLISECOND: u64 = 1_000_000;

macro_rules! fake {
    ($($name:ident($($argument:ident: $kind:ty),*) $(-> $result:ty)?;)*) => {
        #[derive(Clone, Copy)]
        struct Fake { $($name: unsafe extern "C" fn($($kind),*) $(-> $result)?),* }
        impl Fake {
            fn load() -> Self {
                let folder = tempfile::tempdir().unwrap();
                let library = folder.path().join("libcuda.so.1");
                let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fake/fake_cuda.c");
                let compiled = std::process::Command::new("cc")
                    .args(["-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o"])
                    .arg(&library)
                    .arg(source)
                    .status()
                    .unwrap();
                assert!(compiled.success());
                let path = CString::new(library.as_os_str().as_bytes()).unwrap();
                // SAFETY: a library of ours, which runs nothing when it is loaded.
                let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
                assert!(!handle.is_null());
                $(
                    // SAFETY: the library exports the function with this type.
                    let $name = unsafe {
                        let name = CString::new(concat!("fake_", stringify!($name))).unwrap();
                        let function = libc::dlsym(handle, name.as_ptr());
                        assert!(!function.is_null());
                        std::mem::transmute::<*mut libc::c_void, unsafe extern "C" fn($($kind),*) $(-> $result)?>(function)
                    };
                )*
                Self { $($name),* }
            }
            $(
                fn $name(&self $(, $argument: $kind)*) $(-> $result)? {
                    // SAFETY: the fake takes any value; strings are terminated.
                    unsafe { (self.$name)($($argument),*) }
                }
            )*
        }
    };
}

fake! {
    reset();
    advance(ns: u64);
    launch(stream: usize, ns: u64);
    capture(stream: usize, on: c_int);
    context(id: usize);
    fail(name: *const c_char, code: c_int, after: c_long, count: c_long);
    calls(name: *const c_char) -> u64;
    live_events() -> u64;
    all_events() -> u64;
}

/// The fake, to one test at a time: it is one driver for the process.
fn fake() -> (MutexGuard<'static, ()>, Fake, &'static Driver) {
    static LOCK: Mutex<()> = Mutex::new(());
    static FAKE: OnceLock<Fake> = OnceLock::new();
    let guard = LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    let fake = *FAKE.get_or_init(|| {
        assert!(Driver::loaded().is_none(), "a real driver is loaded");
        Fake::load()
    });
    fake.reset();
    (guard, fake, Driver::loaded().expect("the fake is loaded"))
}

fn info(step: u64) -> StepInfo {
    StepInfo { step, ..StepInfo::default() }
}

/// One step as a worker runs it: the host launches and runs ahead of the GPU.
fn run_step(
    timer: &mut Timer,
    fake: &Fake,
    step: u64,
    forward_ms: u64,
    sample_ms: u64,
    read: &mut Vec<StepTimes>,
) {
    timer.begin_step(info(step), |times| read.push(*times));
    timer.mark(Mark::ForwardBegin, STREAM, step * 10);
    fake.launch(STREAM.0, forward_ms * MILLISECOND);
    timer.mark(Mark::ForwardEnd, STREAM, 0);
    timer.mark(Mark::SampleBegin, STREAM, 0);
    fake.launch(STREAM.0, sample_ms * MILLISECOND);
    timer.mark(Mark::SampleEnd, STREAM, 0);
    timer.mark(Mark::StepEnd, STREAM, 0);
}

fn near(value: Option<f32>, expected: f32) -> bool {
    value.is_some_and(|value| (value - expected).abs() < 1e-3)
}

#[test]
fn a_step_is_read_when_the_gpu_has_passed_it_and_not_before() {
    let (_guard, fake, driver) = fake();
    let mut timer = Timer::new(driver, 100);
    let mut read = Vec::new();
    run_step(&mut timer, &fake, 1, 9, 1, &mut read);
    fake.advance(5 * MILLISECOND);
    run_step(&mut timer, &fake, 2, 9, 1, &mut read);
    assert_eq!(read, []);
    fake.advance(5 * MILLISECOND);
    run_step(&mut timer, &fake, 3, 9, 1, &mut read);
    assert_eq!(read.len(), 1);
    let first = read[0];
    assert_eq!((first.info.step, first.info.ticks), (1, 10));
    assert!(near(first.forward_ms, 9.0) && near(first.sample_ms, 1.0), "{first:?}");
    assert!(near(first.busy_ms, 10.0), "{first:?}");
    assert_eq!((first.draft_ms, first.idle_before_ms), (None, None));
}

#[test]
fn the_bubble_is_the_time_that_the_gpu_waited_for_the_host() {
    let (_guard, fake, driver) = fake();
    let mut timer = Timer::new(driver, 100);
    let mut read = Vec::new();
    for step in 1..=3 {
        run_step(&mut timer, &fake, step, 2, 1, &mut read);
        // The host comes back four milliseconds after the GPU is done.
        fake.advance(7 * MILLISECOND);
    }
    run_step(&mut timer, &fake, 4, 2, 1, &mut read);
    assert_eq!(read.iter().map(|times| times.info.step).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(near(read[1].idle_before_ms, 4.0) && near(read[2].idle_before_ms, 4.0), "{read:?}");
}

#[test]
fn back_to_back_steps_have_no_bubble() {
    let (_guard, fake, driver) = fake();
    let mut timer = Timer::new(driver, 100);
    let mut read = Vec::new();
    for step in 1..=5 {
        run_step(&mut timer, &fake, step, 2, 1, &mut read);
    }
    fake.advance(100 * MILLISECOND);
    timer.begin_step(info(6), |times| read.push(*times));
    assert_eq!(read.len(), 5);
    assert!(read[1..].iter().all(|times| near(times.idle_before_ms, 0.0)), "{read:?}");
}

#[test]
fn a_capturing_stream_is_left_alone() {
    let (_guard, fake, driver) = fake();
    let mut timer = Timer::new(driver, 100);
    let mut read = Vec::new();
    fake.capture(STREAM.0, 1);
    run_step(&mut timer, &fake, 1, 2, 1, &mut read);
    fake.capture(STREAM.0, 0);
    run_step(&mut timer, &fake, 2, 2, 1, &mut read);
    assert_eq!((timer.counters().capturing, timer.counters().failures), (1, 0));
    assert_eq!((read.len(), read[0].info.step, read[0].forward_ms), (1, 1, None));
    assert_eq!(fake.calls(c"record".as_ptr()), 5);
}

#[test]
fn a_gpu_that_hangs_takes_no_more_events_than_there_may_be() {
    let (_guard, fake, driver) = fake();
    let mut timer = Timer::new(driver, 4);
    let mut read = Vec::new();
    for step in 1..=1000 {
        run_step(&mut timer, &fake, step, 2, 1, &mut read);
    }
    let events = timer.events();
    assert!(events <= (4 * 4 + 2) * 7, "{events}");
    assert!(timer.should_harvest() && timer.counters().exhausted > 900);
    // Steps that could not be timed are rows without times; the others come when the GPU does.
    assert!(read.iter().all(|times| times.forward_ms.is_none()));
    let without = read.len();
    fake.advance(10_000 * MILLISECOND);
    timer.begin_step(info(1001), |times| read.push(*times));
    assert_eq!(read.len(), 1000);
    // The step that ran when the GPU came back could not be timed either.
    assert_eq!(read[without].forward_ms, None);
    assert!(read[without + 1..].iter().all(|times| near(times.forward_ms, 2.0)));
    // And it goes on.
    read.clear();
    for step in 1002..1010 {
        run_step(&mut timer, &fake, step, 2, 1, &mut read);
        fake.advance(10 * MILLISECOND);
    }
    assert!(read.iter().filter(|times| near(times.forward_ms, 2.0)).count() >= 6, "{read:?}");
    assert_eq!(timer.counters().failures, 0);
}

#[test]
fn every_error_of_every_function_is_counted_and_never_stops_the_steps() {
    let (_guard, fake, driver) = fake();
    for function in [c"context", c"create", c"record", c"query", c"elapsed", c"capturing"] {
        for code in [1, 2, 100, 201, 400, 700, 709, 719, 900, 999] {
            fake.reset();
            let mut timer = Timer::new(driver, 100);
            let mut read = Vec::new();
            fake.fail(function.as_ptr(), code, 3, 2);
            for step in 1..=20 {
                run_step(&mut timer, &fake, step, 2, 1, &mut read);
                fake.advance(10 * MILLISECOND);
            }
            let counters = timer.counters();
            assert!((1..=2).contains(&counters.failures), "{function:?} {code} {counters:?}");
            assert_eq!(counters.last_failure, Some(profilemate_cuda::Failure(code)));
            assert_eq!(read.len(), 19, "{function:?} {code}");
            let steps: Vec<u64> = read.iter().map(|times| times.info.step).collect();
            assert_eq!(steps, (1..=19).collect::<Vec<_>>(), "{function:?} {code}");
            assert!(read.iter().filter(|times| near(times.forward_ms, 2.0)).count() >= 16, "{function:?} {code}");
        }
    }
}

#[test]
fn a_driver_that_keeps_failing_is_left_alone() {
    let (_guard, fake, driver) = fake();
    let mut timer = Timer::new(driver, 100);
    let mut read = Vec::new();
    fake.fail(c"record".as_ptr(), 719, 0, c_long::MAX);
    for step in 1..=100 {
        run_step(&mut timer, &fake, step, 2, 1, &mut read);
    }
    assert!(timer.is_off());
    assert_eq!(fake.calls(c"record".as_ptr()), 16);
}

#[test]
fn events_of_a_lost_context_are_not_touched() {
    let (_guard, fake, driver) = fake();
    let mut timer = Timer::new(driver, 100);
    let mut read = Vec::new();
    for step in 1..=3 {
        run_step(&mut timer, &fake, step, 2, 1, &mut read);
    }
    fake.context(2);
    for step in 4..=6 {
        run_step(&mut timer, &fake, step, 2, 1, &mut read);
        fake.advance(50 * MILLISECOND);
    }
    assert_eq!(timer.counters().failures, 0);
    assert!(timer.counters().lost_contexts >= 2);
    assert!(near(read.last().unwrap().forward_ms, 2.0));
    assert_eq!(read.last().unwrap().info.step, 5);
}

#[test]
fn two_hundred_thousand_steps_use_the_events_of_a_few() {
    let (_guard, fake, driver) = fake();
    let mut timer = Timer::new(driver, 100);
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
    }
    assert!(count >= 199_998);
    assert!(fake.all_events() < 30, "{}", fake.all_events());
    timer.close(|_| {});
    assert_eq!(fake.live_events(), 0);
}

#[test]
fn steps_are_read_together_or_after_a_while() {
    let (_guard, fake, driver) = fake();
    let mut timer = Timer::new(driver, 100).reading_together(8, 1000);
    let mut read = Vec::new();
    for step in 1..=9 {
        timer.begin_step(StepInfo { ticks: 5000 + step, ..info(step) }, |times| read.push(*times));
        timer.mark(Mark::ForwardBegin, STREAM, 1);
        fake.launch(STREAM.0, MILLISECOND);
        timer.mark(Mark::ForwardEnd, STREAM, 1);
        fake.advance(2 * MILLISECOND);
        // The first look is at once; after that, eight steps come together.
        assert_eq!(read.len(), if step == 9 { 8 } else { 0 }, "{step}");
    }
    timer.begin_step(StepInfo { ticks: 6010, ..info(10) }, |times| read.push(*times));
    assert_eq!(read.len(), 9);
}

#[test]
fn drafting_is_timed_by_itself_and_parts_of_a_forward_pass_are_one() {
    let (_guard, fake, driver) = fake();
    let mut timer = Timer::new(driver, 100);
    let mut read = Vec::new();
    timer.begin_step(info(1), |_| {});
    for _ in 0..2 {
        timer.mark(Mark::ForwardBegin, STREAM, 1);
        fake.launch(STREAM.0, 2 * MILLISECOND);
        timer.mark(Mark::ForwardEnd, STREAM, 1);
    }
    timer.mark(Mark::DraftBegin, STREAM, 1);
    fake.launch(STREAM.0, 3 * MILLISECOND);
    timer.mark(Mark::DraftEnd, STREAM, 1);
    timer.describe(5, 16);
    fake.advance(50 * MILLISECOND);
    timer.begin_step(info(2), |times| read.push(*times));
    assert!(near(read[0].forward_ms, 4.0) && near(read[0].draft_ms, 3.0), "{read:?}");
    assert_eq!((read[0].info.descriptor, read[0].info.padded_tokens), (5, 16));
    assert_eq!(fake.calls(c"destroy".as_ptr()), 0);
}
