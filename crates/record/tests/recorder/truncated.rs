//! Somebody cuts the files of a log short while it is written: a store to what is gone is SIGBUS, and must not end the host.

use crate::support::{Child, Session, Slots, files, options, part, record, wait_until};
use profilemate_format::head::Head;
use profilemate_format::segment::HEADER_BYTES;
use profilemate_record::Writer;
use std::fs::OpenOptions;
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Output;
use std::ptr::null_mut;

const SLOTS: u32 = 256;

/// Runs this test in a process of its own.
fn alone(name: &str, session: &Session, part: &str) -> Output {
    let mut command = Child::command(&format!("truncated::{name}"), part, session.path());
    command.stderr(std::process::Stdio::piped()).output().unwrap()
}

fn passed(output: &Output) {
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && printed.contains("1 passed"), "{output:?}");
}

fn cut(path: &Path, length: u64) {
    OpenOptions::new().write(true).open(path).unwrap().set_len(length).unwrap();
}

fn push(writer: &mut Writer, until: u64) {
    wait_until("room for the records", || {
        let number = writer.written();
        number == until || {
            writer.push(&record(number));
            false
        }
    });
}

/// Only the newest page is stored to, so that a file may be cut in its middle, too.
const CUTS: [(&str, u64); 4] = [("seg", 0), ("seg", HEADER_BYTES as u64 + 64 * 3), ("head", 0), ("head", 4096)];

#[test]
fn files_that_are_cut_short_cost_records_and_not_the_host() {
    let Some((part, folder)) = part() else {
        for (number, (extension, _)) in CUTS.into_iter().enumerate() {
            let session = Session::new();
            let output =
                alone("files_that_are_cut_short_cost_records_and_not_the_host", &session, &number.to_string());
            passed(&output);
            let said = String::from_utf8(output.stderr).unwrap();
            let [line] = said.lines().collect::<Vec<_>>()[..] else { panic!("not one line: {said:?}") };
            assert!(line.starts_with("profilemate: ") && line.contains(" was cut short"), "{line}");
            assert!(line.contains(&format!(".{extension}")), "{line}");
        }
        return;
    };
    let (extension, length) = CUTS[part.parse::<usize>().unwrap()];
    let mut options = options(&folder, SLOTS);
    // Two pages and more of text behind the banks of anchors.
    options.text_capacity = 16 << 10;
    let mut writer = Writer::open(&options).unwrap();
    push(&mut writer, 10);
    // The segment that is ready goes the same way.
    wait_until("the segment that is ready", || files(&folder).len() == 3);
    for name in files(&folder) {
        if name.ends_with(extension) {
            cut(&folder.join("raw").join(name), length);
        }
    }
    // One byte of text in a page that is gone, the counters, and many records.
    for number in 0..200 {
        writer.fact("key", &format!("a value that takes some room, number {number}"));
    }
    let written = u64::from(SLOTS) * 6;
    push(&mut writer, written);
    push(&mut writer, written + 10);
    let head = writer.path().to_owned();
    // The keeper stores to the head as well, at the latest now.
    writer.close();
    // Later segments are files again.
    let later: u64 = (2..=6)
        .map(|index| std::fs::read(head.with_extension(format!("{index:06}.seg"))).unwrap())
        .map(|bytes| Slots::read(&bytes[HEADER_BYTES..]).records.len() as u64)
        .sum();
    assert_eq!(later, u64::from(SLOTS) * 4 + 10);
    if extension == "seg" {
        let head = Head::parse(&std::fs::read(&head).unwrap()).unwrap();
        assert_eq!(head.written, written + 10);
        assert_eq!(std::fs::metadata(folder.join("raw").join(&files(&folder)[1])).unwrap().len(), length);
    }
}

/// A store that nobody but us could have made safe.
fn bus_error(folder: &Path) -> usize {
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(true).open(folder.join("theirs")).unwrap();
    file.set_len(4096).unwrap();
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
    let base = unsafe { libc::mmap(null_mut(), 4096, access, libc::MAP_SHARED, file.as_raw_fd(), 0) };
    assert_ne!(base, libc::MAP_FAILED);
    file.set_len(0).unwrap();
    base as usize
}

fn store(address: usize) {
    // SAFETY: mapped, and not to memory of Rust's; the bus error is what this is about.
    unsafe { (address as *mut u8).write_volatile(1) };
}

fn no_core() {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a plain system call with a valid pointer.
    unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) };
}

#[test]
fn bus_errors_of_the_host_end_it_as_ever() {
    let Some((part, folder)) = part() else {
        for part in ["a store", "a signal"] {
            let session = Session::new();
            let output = alone("bus_errors_of_the_host_end_it_as_ever", &session, part);
            assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{part}: {output:?}");
        }
        return;
    };
    no_core();
    // The standard library of a Rust program has a handler, which Python does not.
    handle(libc::SIG_DFL, 0);
    let mut writer = Writer::open(&options(&folder, SLOTS)).unwrap();
    push(&mut writer, 10);
    if part == "a store" {
        store(bus_error(&folder));
    } else {
        // SAFETY: a signal to this thread.
        unsafe { libc::raise(libc::SIGBUS) };
    }
    unreachable!("it lives");
}

/// Where the handler of the host saw a bus error.
static SEEN: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);

extern "C" fn host_handler(_signal: i32, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel's `info`; the page is mapped to memory, so that the store can be done again.
    unsafe {
        let address = (*info).si_addr() as usize;
        SEEN.store(address, std::sync::atomic::Ordering::Relaxed);
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        libc::mmap(address as *mut _, 4096, libc::PROT_READ | libc::PROT_WRITE, kind, -1, 0);
    }
}

fn handle(handler: usize, flags: i32) -> libc::sigaction {
    // SAFETY: all zero is a value of this plain type; valid pointers.
    unsafe {
        let (mut new, mut old): (libc::sigaction, libc::sigaction) = (std::mem::zeroed(), std::mem::zeroed());
        (new.sa_sigaction, new.sa_flags) = (handler, flags);
        assert_eq!(libc::sigaction(libc::SIGBUS, &raw const new, &raw mut old), 0);
        old
    }
}

#[test]
fn a_handler_that_was_there_before_is_called_for_what_is_not_ours() {
    let Some((_, folder)) = part() else {
        let session = Session::new();
        let name = "a_handler_that_was_there_before_is_called_for_what_is_not_ours";
        passed(&alone(name, &session, "host"));
        return;
    };
    let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = host_handler;
    handle(handler as usize, libc::SA_SIGINFO);
    let mut writer = Writer::open(&options(&folder, SLOTS)).unwrap();
    cut(&folder.join("raw").join(&files(&folder)[0]), 0);
    push(&mut writer, 10);
    assert_eq!(SEEN.load(std::sync::atomic::Ordering::Relaxed), 0, "ours");
    let theirs = bus_error(&folder);
    store(theirs);
    assert_eq!(SEEN.load(std::sync::atomic::Ordering::Relaxed), theirs);
}

/// What ours was replaced by, as the one that replaced it remembers it.
static BEFORE: std::sync::OnceLock<usize> = std::sync::OnceLock::new();

/// As `faulthandler` does it: takes itself away, and sends the signal on.
extern "C" fn faulthandler(signal: i32) {
    handle(*BEFORE.get().unwrap(), libc::SA_SIGINFO);
    // SAFETY: a signal to this thread, delivered when this handler returns.
    unsafe { libc::raise(signal) };
}

#[test]
fn a_handler_that_came_later_and_sends_signals_on_does_not_end_the_host() {
    let Some((_, folder)) = part() else {
        let session = Session::new();
        let name = "a_handler_that_came_later_and_sends_signals_on_does_not_end_the_host";
        passed(&alone(name, &session, "host"));
        return;
    };
    let mut writer = Writer::open(&options(&folder, SLOTS)).unwrap();
    let handler: extern "C" fn(i32) = faulthandler;
    let ours = handle(handler as usize, 0);
    BEFORE.set(ours.sa_sigaction).unwrap();
    for name in files(&folder) {
        cut(&folder.join("raw").join(name), 0);
    }
    push(&mut writer, u64::from(SLOTS) * 3);
}

#[test]
fn a_forked_child_that_outlives_the_cut_is_not_harmed_either() {
    let Some((_, folder)) = part() else {
        let session = Session::new();
        passed(&alone("a_forked_child_that_outlives_the_cut_is_not_harmed_either", &session, "host"));
        return;
    };
    let mut writer = Writer::open(&options(&folder, SLOTS)).unwrap();
    push(&mut writer, 10);
    // SAFETY: the child makes plain system calls, writes to a log of its own and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut own = Writer::open(&options(&folder, SLOTS)).unwrap();
            for name in files(&folder) {
                cut(&folder.join("raw").join(name), 0);
            }
            push(&mut own, u64::from(SLOTS) * 3);
        }));
        // SAFETY: ends the process at once.
        unsafe { libc::_exit(i32::from(done.is_err())) };
    }
    let mut status = -1;
    // SAFETY: the status is written through a valid pointer.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0);
    push(&mut writer, u64::from(SLOTS) * 3);
}
