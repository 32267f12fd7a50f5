//! Pushing a record makes no system call and allocates nothing.
//!
//! The thread that pushes puts itself under a seccomp(2) filter that kills the process at any system call whatever.
//! Another thread, not filtered, waits for it to finish and ends the process.

use crate::support::{Child, Session, options, part, record};
use profilemate_record::{Writer, clock};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicU64, Ordering};

/// The system's allocator, counting per thread.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// From here on, any system call of this thread ends the process with SIGSYS.
fn forbid_system_calls() {
    let mut kill = libc::sock_filter {
        code: u16::try_from(libc::BPF_RET | libc::BPF_K).unwrap(),
        jt: 0,
        jf: 0,
        k: libc::SECCOMP_RET_KILL_PROCESS,
    };
    let program = libc::sock_fprog { len: 1, filter: &raw mut kill };
    let no_core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: plain system calls with valid pointers; the kernel copies the filter.
    let done = unsafe {
        libc::setrlimit(libc::RLIMIT_CORE, &raw const no_core) == 0
            && libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0
    };
    // A message would be a system call if the filter is there, and it is not.
    assert!(done, "{}", std::io::Error::last_os_error());
}

const NOT_YET: u64 = u64::MAX;

/// Runs `work` without system calls in a thread of its own, and ends the process with 0 if it returned true and
/// allocated nothing.
fn run_without_system_calls(mut work: impl FnMut() -> bool + Send) -> ! {
    let result = AtomicU64::new(NOT_YET);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            forbid_system_calls();
            let before = ALLOCATIONS.get();
            let right = work();
            let allocations = ALLOCATIONS.get() - before;
            result.store(allocations + if right { 0 } else { 100 }, Ordering::Release);
            // Even to end a thread takes a system call.
            loop {
                std::hint::spin_loop();
            }
        });
        while result.load(Ordering::Acquire) == NOT_YET {
            std::thread::yield_now();
        }
        let code = i32::try_from(result.load(Ordering::Acquire).min(200)).unwrap();
        // SAFETY: ends the process at once.
        unsafe { libc::_exit(code) }
    })
}

/// Runs the test `name` as `part` in a process of its own.
fn child(name: &str) -> ExitStatus {
    let session = Session::new();
    Child::command(&format!("hot_path::{name}"), "child", session.path()).output().unwrap().status
}

fn push_many(folder: &Path) -> ! {
    const RECORDS: usize = 100_000;
    let mut options = options(folder, 30_000);
    // Few enough to be deleted while it goes on.
    options.max_bytes = 0;
    let mut writer = Writer::open(&options).unwrap();
    let name = writer.intern("scheduling");
    let mut records: Vec<_> = (0..RECORDS).map(|number| record(number as u64)).collect();
    for record in &mut records {
        record.name = name;
    }
    let (mut pushed, mut dropped) = (0, 0);
    run_without_system_calls(|| {
        for record in &mut records {
            record.ticks = clock::ticks();
            // A segment that is not ready yet is waited for, so that records go through several of them.
            while !writer.push(record) {
                dropped += 1;
            }
            writer.add_overhead(clock::ticks() - record.ticks);
            pushed += 1;
        }
        pushed == RECORDS && writer.written() == RECORDS as u64 && writer.dropped() == dropped
    })
}

#[test]
fn a_hundred_thousand_records_make_no_system_call_and_no_allocation() {
    if let Some((_, folder)) = part() {
        push_many(&folder);
    }
    let status = child("a_hundred_thousand_records_make_no_system_call_and_no_allocation");
    assert_eq!(status.code(), Some(0), "{status}");
}

#[test]
fn the_filter_notices_a_system_call() {
    if part().is_some() {
        // SAFETY: plain system call.
        run_without_system_calls(|| unsafe { libc::getppid() > 0 });
    }
    assert_eq!(child("the_filter_notices_a_system_call").signal(), Some(libc::SIGSYS));
}

#[test]
fn the_allocator_notices_an_allocation() {
    if part().is_some() {
        run_without_system_calls(|| *std::hint::black_box(Box::new(1)) == 1);
    }
    assert_eq!(child("the_allocator_notices_an_allocation").code(), Some(1));
}
