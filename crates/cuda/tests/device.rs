//! Device code on a driver that is none (`fake/fake_cuda.c`): loading, the step word, copies beside vLLM's work.

mod common;

use common::fake;
use profilemate_cuda::device::{DeviceCode, DeviceError, DeviceMemory, PinnedMemory, ReadBack, StepWord};
use profilemate_cuda::{Driver, Failure, Stream};
use std::ffi::{CStr, c_long};

/// vLLM's stream.
const STREAM: Stream = Stream(1);

fn load(driver: &'static Driver) -> DeviceCode {
    DeviceCode::load(driver, STREAM).expect("the code loads")
}

/// What the step word says: step, valid tokens, row of stamps.
fn word(word: &StepWord) -> (u64, u32, u32) {
    // SAFETY: memory of the fake is memory here; the word is two of these.
    let [step, rest] = unsafe { *(word.pointer().0 as *const [u64; 2]) };
    (step, u32::try_from(rest & 0xffff_ffff).expect("32 bits"), u32::try_from(rest >> 32).expect("32 bits"))
}

#[test]
fn the_step_word_changes_in_the_order_of_the_stream_and_in_no_graph() {
    let (_guard, fake, driver) = fake();
    let code = load(driver);
    let mut step_word = StepWord::new(&code, STREAM).unwrap();
    assert_eq!(word(&step_word), (0, 0, 0));
    assert!(!step_word.is_set());
    step_word.set(&code, STREAM, 7, 64, 3).unwrap();
    assert_eq!(word(&step_word), (7, 64, 3));
    assert!(step_word.is_set());
    step_word.clear(&code, STREAM).unwrap();
    assert_eq!(word(&step_word), (0, 0, 0));
    assert!(!step_word.is_set());
    assert_eq!(fake.launches(c"profilemate_set_step_word".as_ptr()), 3);
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
