//! Counting experts on a driver that is none (`fake/fake_cuda.c`): in graphs and outside, beside vLLM's work, and when the driver
//! fails.

mod common;

use common::{Fake, fake};
use profilemate_cuda::device::{
    Cells, DeviceCode, DeviceError, DevicePointer, ExpertCounters, MOST_EXPERTS, StepWord, Weight,
};
use profilemate_cuda::{Driver, Failure, Stream};
use std::ffi::CStr;

/// vLLM's stream.
const STREAM: Stream = Stream(1);

const EXPERTS: u32 = 4;
/// Tokens, activations and pairs of a layer, then bins of weights.
const WORDS: usize = 1 + 4 + 6 + 101;

const COUNT: &CStr = c"profilemate_count_experts";

/// Three tokens that go to two experts each, and a row of padding.
static CHOSEN: [i32; 8] = [0, 2, 2, 3, 2, 0, 1, 1];

struct Counting {
    code: DeviceCode,
    word: StepWord,
    counters: ExpertCounters,
}

impl Counting {
    fn new(driver: &'static Driver) -> Result<Self, DeviceError> {
        let code = DeviceCode::load(driver, STREAM)?;
        let word = StepWord::new(&code, STREAM)?;
        let counters = ExpertCounters::new(&code, &word, WORDS, STREAM)?;
        Ok(Self { code, word, counters })
    }

    fn step(&mut self, valid_tokens: u32) {
        self.word.set(&self.code, STREAM, valid_tokens, 0).expect("the word is set");
    }

    fn count(&mut self, cells: Cells, may_fork: bool) -> Result<bool, Failure> {
        self.counters.count_chosen(&self.code, &self.word, STREAM, 0, EXPERTS, &cells, 4, true, may_fork)
    }

    /// Reads all counters, as a step would that comes later.
    fn read(&mut self, fake: Fake) -> Vec<u64> {
        self.counters.begin_reading(&self.code, STREAM).expect("it begins");
        assert!(self.counters.is_being_read());
        fake.advance(1_000_000);
        assert!(self.counters.reading_is_done(&self.code).expect("it is asked"));
        (0..WORDS).map(|at| self.counters.reading().word(at)).collect()
    }
}

fn cells() -> Cells {
    let data = DevicePointer(CHOSEN.as_ptr() as u64);
    Cells { data, rows: 4, columns: 2, first_row: 0, first_token: 0 }
}

#[test]
fn tokens_of_the_step_count_and_padding_and_warm_up_do_not() {
    let (_guard, fake, driver) = fake();
    let mut counting = Counting::new(driver).unwrap();
    counting.count(cells(), false).unwrap();
    assert_eq!(counting.read(fake), vec![0; WORDS], "no step of work runs");
    counting.step(3);
    assert!(!counting.count(cells(), true).unwrap(), "outside of captures nothing forks");
    let words = counting.read(fake);
    assert_eq!(words[..5], [3, 2, 0, 3, 1]);
    // (0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3).
    assert_eq!(words[5..11], [0, 2, 0, 0, 0, 1]);
    // A rank that has its tokens in the middle of a batch, beginning with its third one.
    counting.count(Cells { first_row: 1, first_token: 2, ..cells() }, false).unwrap();
    assert_eq!(counting.read(fake)[..5], [4, 2, 0, 4, 2]);
}

#[test]
fn a_graph_counts_at_every_replay_on_a_branch_that_is_joined() {
    let (_guard, fake, driver) = fake();
    let mut counting = Counting::new(driver).unwrap();
    fake.capture(STREAM.0, 1);
    // Two layers: what each has forked off is joined behind its experts.
    for _ in 0..2 {
        assert!(counting.count(cells(), true).unwrap());
        fake.launch(STREAM.0, 5_000);
        counting.counters.join(STREAM).unwrap();
        counting.counters.join(STREAM).unwrap();
    }
    fake.capture(STREAM.0, 0);
    assert_eq!((fake.broken_captures(), fake.branch_launches()), (0, 2));
    fake.replay(STREAM.0);
    assert_eq!(counting.read(fake)[0], 0, "a replay that is no work");
    for tokens in [1, 3] {
        counting.step(tokens);
        fake.replay(STREAM.0);
    }
    assert_eq!(counting.read(fake)[..5], [8, 6, 0, 8, 2]);
    // A driver that is loaded lazily had its kernels before: a launch for nothing, and those of the replays.
    assert_eq!(fake.launches(COUNT.as_ptr()), 7);
}

#[test]
fn without_a_place_to_join_the_graph_counts_on_its_own_stream() {
    let (_guard, fake, driver) = fake();
    let mut counting = Counting::new(driver).unwrap();
    fake.capture(STREAM.0, 1);
    assert!(!counting.count(cells(), false).unwrap());
    fake.capture(STREAM.0, 0);
    assert_eq!((fake.broken_captures(), fake.branch_launches()), (0, 0));
    counting.step(2);
    fake.replay(STREAM.0);
    assert_eq!(counting.read(fake)[..5], [2, 1, 0, 2, 1]);
}

#[test]
fn a_branch_that_is_not_joined_would_break_the_capture() {
    // What the fake says of it, so that the tests above could fail.
    let (_guard, fake, driver) = fake();
    let mut counting = Counting::new(driver).unwrap();
    fake.capture(STREAM.0, 1);
    counting.count(cells(), true).unwrap();
    fake.capture(STREAM.0, 0);
    assert_eq!(fake.broken_captures(), 1);
}

#[test]
fn a_launch_that_fails_in_a_capture_leaves_a_capture_that_ends_well() {
    let (_guard, fake, driver) = fake();
    let mut counting = Counting::new(driver).unwrap();
    for function in [c"capturing", c"record", c"wait", c"kernel"] {
        for after in 0..2 {
            fake.capture(STREAM.0, 1);
            fake.fail(function.as_ptr(), 2, after, 1);
            let _ = counting.count(cells(), true);
            counting.counters.join(STREAM).unwrap();
            fake.fail(function.as_ptr(), 0, 0, 0);
            fake.capture(STREAM.0, 0);
            assert_eq!(fake.broken_captures(), 0, "{function:?} {after}");
        }
    }
}

#[test]
fn weights_are_binned_in_hundredths() {
    let (_guard, fake, driver) = fake();
    let mut counting = Counting::new(driver).unwrap();
    counting.step(2);
    let weights: [f32; 4] = [0.0, 0.255, 1.0, 7.0];
    let cells = Cells { data: DevicePointer(weights.as_ptr() as u64), rows: 2, ..cells() };
    let Counting { code, word, counters } = &mut counting;
    counters.count_weights(code, word, STREAM, 11, &cells, Weight::Float, true).unwrap();
    let bins = &counting.read(fake)[11..];
    assert_eq!((bins[0], bins[25], bins[100]), (1, 1, 2));
    assert_eq!(bins.iter().sum::<u64>(), 4);
}

#[test]
fn making_counters_fails_with_words_and_more_than_the_bound_is_refused() {
    let (_guard, fake, driver) = fake();
    for function in [c"allocate", c"allocate_host", c"zero", c"stream", c"create", c"kernel"] {
        fake.reset();
        let code = DeviceCode::load(driver, STREAM).unwrap();
        let word = StepWord::new(&code, STREAM).unwrap();
        fake.fail(function.as_ptr(), 2, 0, 1);
        let error = ExpertCounters::new(&code, &word, WORDS, STREAM).unwrap_err();
        assert!(error.to_string().contains("(error 2)"), "{function:?}: {error}");
    }
    fake.reset();
    let code = DeviceCode::load(driver, STREAM).unwrap();
    let word = StepWord::new(&code, STREAM).unwrap();
    let error = ExpertCounters::new(&code, &word, (2 << 20) + 1, STREAM).unwrap_err();
    assert!(matches!(error, DeviceError::TooLarge { .. }));
    assert!(u64::from(MOST_EXPERTS) * 4 <= 48 << 10, "shared memory that every GPU gives a block");
}
