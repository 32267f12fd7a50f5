//! Device code on a driver that is none (`fake/fake_cuda.c`): loading, the step word, copies beside vLLM's work, stamps, clocks.

mod common;

use common::{FAKE, fake};
use profilemate_cuda::device::{
    ClockWatch, DeviceCode, DeviceError, DeviceMemory, Interval, PinnedMemory, ReadBack, Sighting, Stamps,
    StepWord,
};
use profilemate_cuda::{Clock, Driver, Failure, Stream};
use std::ffi::{CStr, c_long};

/// vLLM's stream.
const STREAM: Stream = Stream(1);

fn load(driver: &'static Driver) -> DeviceCode {
    DeviceCode::load(driver, STREAM).expect("the code loads")
}

/// What the step word says: valid tokens, row of stamps.
fn word(word: &StepWord) -> (u32, u32) {
    // SAFETY: memory of the fake is memory here; the word is two of these.
    let [valid_tokens, stamp_row] = unsafe { *(word.pointer().0 as *const [u32; 2]) };
    (valid_tokens, stamp_row)
}

#[test]
fn the_step_word_is_what_the_step_set_it_to() {
    let (_guard, fake, driver) = fake();
    let code = load(driver);
    // The driver writes it itself, or, where it cannot (CUDA_ERROR_NOT_SUPPORTED), a kernel does.
    for (error, kernels) in [(0, 1), (801, 3)] {
        fake.fail(c"write".as_ptr(), error, 0, -1);
        let before = fake.launches(c"profilemate_set_step_word".as_ptr());
        let mut step_word = StepWord::new(&code, STREAM).unwrap();
        assert_eq!(word(&step_word), (0, 0));
        assert!(!step_word.is_set());
        step_word.set(&code, STREAM, 64, 3).unwrap();
        assert_eq!(word(&step_word), (64, 3));
        assert!(step_word.is_set());
        step_word.clear(&code, STREAM).unwrap();
        assert_eq!(word(&step_word), (0, 0));
        assert!(!step_word.is_set());
        assert_eq!(fake.launches(c"profilemate_set_step_word".as_ptr()) - before, kernels);
    }
}

#[test]
fn code_is_not_loaded_while_a_graph_is_captured_or_without_a_context() {
    let (_guard, fake, driver) = fake();
    fake.capture(STREAM.0, 1);
    assert_eq!(DeviceCode::load(driver, STREAM).unwrap_err(), DeviceError::Capturing);
    assert_eq!((fake.calls(c"load".as_ptr()), fake.broken_captures()), (0, 0));
    fake.capture(STREAM.0, 0);
    fake.context(0);
    assert_eq!(DeviceCode::load(driver, STREAM).unwrap_err(), DeviceError::NoContext);
}

#[test]
fn every_error_of_every_function_is_an_error_with_words() {
    let (_guard, fake, driver) = fake();
    let everything = || -> Result<(), DeviceError> {
        let code = DeviceCode::load(driver, STREAM)?;
        StepWord::new(&code, STREAM)?;
        ReadBack::new(&code, 4096)?;
        Ok(())
    };
    let functions: [&CStr; 11] = [
        c"context",
        c"capturing",
        c"load",
        c"function",
        c"allocate",
        c"allocate_host",
        c"host_pointer",
        c"zero",
        c"kernel",
        c"stream",
        c"create",
    ];
    for function in functions {
        for after in 0..4 {
            fake.reset();
            fake.fail(function.as_ptr(), 2, after, 1);
            match everything() {
                Ok(()) => {
                    assert!(fake.calls(function.as_ptr()).cast_signed() <= after, "{function:?} {after}");
                    break;
                }
                Err(DeviceError::Driver { failure, .. }) => assert_eq!(failure, Failure(2)),
                Err(other) => panic!("{function:?} {other}"),
            }
            assert!(after < 3 || function == c"kernel" || function == c"function", "{function:?} is called often");
        }
    }
}

#[test]
fn memory_is_bounded_and_zero() {
    let (_guard, _, driver) = fake();
    let code = load(driver);
    let too_large = (16 << 20) + 1;
    assert!(matches!(DeviceMemory::zeroed(&code, too_large, STREAM), Err(DeviceError::TooLarge { .. })));
    assert!(matches!(PinnedMemory::allocate(&code, too_large), Err(DeviceError::TooLarge { .. })));
    let memory = DeviceMemory::zeroed(&code, 4096, STREAM).unwrap();
    // SAFETY: memory of the fake is memory here.
    let bytes = unsafe { std::slice::from_raw_parts(memory.pointer().0 as *const u8, memory.bytes()) };
    assert!(bytes.iter().all(|byte| *byte == 0));
    assert!(PinnedMemory::allocate(&code, 64).unwrap().words().len() == 8);
}

#[test]
fn a_copy_is_done_when_the_gpu_is_and_is_never_waited_for() {
    let (_guard, fake, driver) = fake();
    let code = load(driver);
    let memory = DeviceMemory::zeroed(&code, 32, STREAM).unwrap();
    let put = |at: usize, value: u64| {
        // SAFETY: memory of the fake is memory here, and four words long.
        unsafe { *(memory.pointer().0 as *mut u64).add(at) = value };
    };
    for at in 0..4 {
        put(at, 10 + at as u64);
    }
    let mut read_back = ReadBack::new(&code, 32).unwrap();
    fake.launch(STREAM.0, 5_000);
    let part = |from: u64, bytes| (profilemate_cuda::device::DevicePointer(memory.pointer().0 + from), bytes);
    read_back.begin(&code, STREAM, &[part(16, 16), part(0, 8)]).unwrap();
    assert!(read_back.is_under_way());
    fake.advance(4_999);
    assert!(read_back.done(&code).unwrap().is_none());
    fake.advance(1);
    assert!(read_back.done(&code).unwrap().is_some());
    let memory = read_back.memory();
    assert_eq!([memory.word(0), memory.word(1), memory.word(2)], [12, 13, 10]);
    assert!(!read_back.is_under_way());
    assert!(read_back.done(&code).unwrap().is_none());
}

#[test]
fn a_copy_that_fails_leaves_nothing_under_way() {
    let (_guard, fake, driver) = fake();
    for function in [c"record", c"wait", c"copy"] {
        fake.reset();
        let code = load(driver);
        let memory = DeviceMemory::zeroed(&code, 32, STREAM).unwrap();
        let mut read_back = ReadBack::new(&code, 32).unwrap();
        fake.fail(function.as_ptr(), 700, 0, 1);
        let part = (memory.pointer(), 32);
        assert_eq!(read_back.begin(&code, STREAM, &[part]), Err(Failure(700)), "{function:?}");
        assert!(!read_back.is_under_way());
        read_back.begin(&code, STREAM, &[part]).unwrap();
        fake.fail(c"query".as_ptr(), 700, 0, 1);
        assert_eq!(read_back.done(&code).unwrap_err(), Failure(700));
        assert!(!read_back.is_under_way());
        fake.fail(c"query".as_ptr(), 0, 0, c_long::MAX);
    }
}

/// Nanoseconds of a tick of the fake's clock.
const CLOCK: Clock = Clock { ticks: || FAKE.get().map_or(0, common::Fake::now), ticks_per_second: 1_000_000_000 };

/// A model of two parts, of 30 and of 50 µs, in a graph with stamps.
struct Model {
    code: DeviceCode,
    word: StepWord,
    stamps: Stamps,
    given: Vec<Interval>,
}

impl Model {
    fn new(driver: &'static Driver, every: u32) -> Self {
        let code = load(driver);
        let word = StepWord::new(&code, STREAM).expect("a word");
        let stamps = Stamps::new(&code, STREAM, &word, 2, every, 10_000_000).expect("a ring");
        Self { code, word, stamps, given: Vec::new() }
    }

    fn launch(&mut self, fake: &common::Fake, slots: &[u32]) {
        for slot in slots {
            self.stamps.stamp(&self.code, STREAM, &self.word, *slot).expect("a stamp");
            match slot {
                0 => fake.launch(STREAM.0, 30_000),
                2 => fake.launch(STREAM.0, 50_000),
                _ => {}
            }
        }
    }

    fn begin_step(&mut self, fake: &common::Fake, step: u64) -> u32 {
        let Self { code, word, stamps, given } = self;
        stamps.read(code, STREAM, fake.now(), |interval| given.push(*interval)).expect("a read");
        let row = if stamps.chooses_next() { stamps.begin_step(step, fake.now()) } else { 0 };
        word.set(code, STREAM, 8, row).expect("a step");
        row
    }
}

#[test]
fn stamps_in_a_graph_say_for_each_step_how_long_its_parts_took() {
    let (_guard, fake, driver) = fake();
    let mut model = Model::new(driver, 1);
    fake.gpu_clock(1_700_000_000_000_000_000, 1_000_000_000);
    fake.capture(STREAM.0, 1);
    model.launch(&fake, &[0, 1, 2, 3]);
    fake.capture(STREAM.0, 0);
    // The word says that no step runs: nothing is written.
    fake.replay(STREAM.0);
    for step in 1..=3000_u64 {
        assert_ne!(model.begin_step(&fake, step), 0);
        if step % 3 == 0 {
            // A step that runs one part only: what the row holds of the other is of a lap before.
            model.launch(&fake, &[2, 3]);
        } else {
            fake.replay(STREAM.0);
        }
        fake.advance(1_000_000);
    }
    let Model { code, stamps, given, .. } = &mut model;
    stamps.finish(code, STREAM, 10, || fake.advance(1_000_000), |interval| given.push(*interval)).unwrap();
    assert_eq!(given.len(), 2000 * 2 + 1000);
    for interval in given.iter() {
        let expected = if interval.pair == 0 { 30_000 } else { 50_000 };
        assert_eq!(interval.duration_ns, expected, "{interval:?}");
        assert!(interval.pair == 1 || interval.step % 3 != 0, "{interval:?}");
        assert!(interval.begin_ns >= 1_700_000_000_000_000_000 + interval.ticks);
    }
    let steps: Vec<u64> =
        given.iter().filter(|interval| interval.pair == 1).map(|interval| interval.step).collect();
    assert_eq!(steps, (1..=3000).collect::<Vec<_>>());
    assert_eq!((stamps.skipped(), fake.broken_captures()), (0, 0));
    // The ring, its copy, and little else.
    assert!(fake.gpu_bytes() <= (2 << 20) + 64 && fake.host_bytes() <= (2 << 20) + 64);
}

#[test]
fn a_gpu_that_hangs_costs_rows_and_nothing_is_written_over() {
    let (_guard, fake, driver) = fake();
    let mut model = Model::new(driver, 1);
    fake.gpu_clock(5_000_000_000, 1_000_000_000);
    let mut stamped = 0;
    for step in 1..=5000_u64 {
        // The host runs ahead: no copy is ever done.
        stamped += u64::from(model.begin_step(&fake, step) != 0);
        model.launch(&fake, &[0, 1]);
    }
    assert_eq!((stamped, model.stamps.skipped()), (1024, 5000 - 1024));
    // The GPU comes back, and all that was stamped is given, oldest first.
    fake.advance(1_000_000_000);
    for step in 5001..=6000_u64 {
        model.begin_step(&fake, step);
        model.launch(&fake, &[0, 1]);
        fake.advance(1_000_000);
    }
    let steps: Vec<u64> = model.given.iter().map(|interval| interval.step).collect();
    assert_eq!(steps[..1024], (1..=1024).collect::<Vec<_>>());
    assert!(steps.windows(2).all(|pair| pair[0] < pair[1]), "{steps:?}");
    assert!(*steps.last().unwrap() > 5900);
}

#[test]
fn one_step_in_some_is_stamped_the_first_and_then_by_chance() {
    let (_guard, fake, driver) = fake();
    let mut model = Model::new(driver, 4);
    let mut places = [0; 4];
    for run in 0..500_u64 {
        let stamped: Vec<usize> =
            (0..4).filter(|at| model.begin_step(&fake, run * 4 + *at as u64 + 1) != 0).collect();
        assert_eq!(stamped.len(), 1, "{run}");
        assert!(run != 0 || stamped[0] == 0);
        places[stamped[0]] += 1;
        fake.advance(20_000_000);
    }
    assert!(places.iter().all(|count| *count > 80), "{places:?}");
    assert_eq!(model.stamps.skipped(), 0);
}

#[test]
fn more_places_than_the_ring_has_room_for_are_refused() {
    let (_guard, _, driver) = fake();
    let code = load(driver);
    let word = StepWord::new(&code, STREAM).unwrap();
    let refused = Stamps::new(&code, STREAM, &word, 10_000, 1, 1);
    assert!(matches!(refused, Err(DeviceError::TooLarge { .. })), "{refused:?}");
    assert!(Stamps::new(&code, STREAM, &word, 4000, 1, 1).is_ok());
}

#[test]
fn clocks_are_seen_together_by_a_thread_that_breaks_no_capture() {
    let (_guard, fake, driver) = fake();
    let code = load(driver);
    fake.gpu_clock(5_000_000_000, 1_000_100_000);
    let (watch, mut sightings) = ClockWatch::new(&code, CLOCK).unwrap();
    watch.start(&mut sightings, |body| Ok(std::thread::spawn(body).thread().clone())).unwrap();
    fake.advance(7_000_000);
    fake.capture(STREAM.0, 1);
    let before = fake.launches(c"profilemate_read_clock".as_ptr());
    assert!(sightings.take().is_none());
    sightings.activate();
    let deadline = std::time::Instant::now() + std::time::Duration::from_mins(1);
    let sighting = loop {
        if let Some(sighting) = sightings.take() {
            break sighting;
        }
        assert!(std::time::Instant::now() < deadline, "no sighting comes");
        std::thread::yield_now();
    };
    // The fake's kernels take no time, and its clock stands.
    assert_eq!(sighting, Sighting { gpu_ns: 5_000_000_000 + 7_000_700, ticks: 7_000_000, error_ticks: 0 });
    assert!(fake.launches(c"profilemate_read_clock".as_ptr()) > before);
    fake.capture(STREAM.0, 0);
    assert_eq!(fake.broken_captures(), 0);
}

#[test]
fn a_clock_that_cannot_be_read_is_given_up() {
    let (_guard, fake, driver) = fake();
    let code = load(driver);
    let (mut watch, _sightings) = ClockWatch::new(&code, CLOCK).unwrap();
    fake.gpu_clock(5_000_000_000, 1_000_000_000);
    fake.fail(c"kernel".as_ptr(), 700, 0, 1);
    assert_eq!(watch.look(), Err(Failure(700)));
    assert!(watch.look().unwrap().is_some());
}
