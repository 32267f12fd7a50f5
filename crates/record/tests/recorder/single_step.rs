//! A kill at every single instruction: the writer is stepped through its pushes by ptrace(2), and after each
//! instruction the files are what a kill at that moment would leave.

use crate::support::{Board, Child, Log, Session, Slots, options, part, record, segment_bytes};
use profilemate_format::segment::{HEADER_BYTES, SegmentHeader};
use profilemate_record::Writer;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Words of the board.
const COMMITTED: usize = 0;
const THREAD: usize = 1;
const REFUSED: usize = 2;

const SLOTS: u32 = 3;
const RECORDS: u64 = 5;

fn write_under_ptrace(folder: &Path) -> ! {
    let board = Board::open(&folder.join("board"));
    let mut writer = Writer::open(&options(folder, SLOTS)).unwrap();
    // With the second segment ready, every push finds room.
    crate::support::wait_until("the second segment", || {
        let Some(bytes) = segment(folder, 1).and_then(|file| std::fs::read(file).ok()) else { return false };
        SegmentHeader::parse(&bytes).is_ok()
    });
    let records = std::array::from_fn::<_, 5, _>(|number| record(number as u64));
    // SAFETY: plain system calls about this thread.
    let (traced, thread) = unsafe { (libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0), libc::gettid()) };
    if traced != 0 {
        board.set(REFUSED, 1);
    }
    board.set(THREAD, u64::try_from(thread).unwrap());
    // SAFETY: as above; stops until the tracer goes on.
    unsafe { libc::raise(libc::SIGSTOP) };
    for (committed, record) in (1..).zip(&records) {
        while !writer.push(record) {}
        board.set(COMMITTED, committed);
    }
    loop {
        std::hint::spin_loop();
    }
}

fn segment(folder: &Path, index: u64) -> Option<std::path::PathBuf> {
    let name =
        crate::support::files(folder).into_iter().find(|name| name.ends_with(&format!(".{index:06}.seg")))?;
    Some(folder.join("raw").join(name))
}

#[test]
fn a_kill_at_any_instruction_loses_nothing() {
    if let Some((_, folder)) = part() {
        write_under_ptrace(&folder);
    }
    let session = Session::new();
    let board = Board::open(&session.path().join("board"));
    let mut child = Child::start("single_step::a_kill_at_any_instruction_loses_nothing", "writer", session.path());
    child.wait_until("the traced thread", || board.get(THREAD) != 0);
    if board.get(REFUSED) != 0 {
        eprintln!("SKIPPED: this system refuses ptrace(2)");
        return;
    }
    let thread = i32::try_from(board.get(THREAD)).unwrap();
    let traced = Traced { process: child.process.id(), thread };
    assert_eq!(next_stop(thread), libc::SIGSTOP);
    let files = [0, 1].map(|index| File::open(segment(session.path(), index).unwrap()).unwrap());
    let mut bytes = vec![0; usize::try_from(segment_bytes(SLOTS)).unwrap()];
    let (mut instructions, mut cut_off, mut before) = (0_u64, 0_u64, 0);
    while board.get(COMMITTED) < RECORDS {
        // SAFETY: the thread is ours, and stopped.
        assert_eq!(unsafe { libc::ptrace(libc::PTRACE_SINGLESTEP, thread, 0, 0) }, 0);
        assert_eq!(next_stop(thread), libc::SIGTRAP);
        instructions += 1;
        let told = board.get(COMMITTED);
        let (mut found, mut damaged) = (0, 0);
        for file in &files {
            file.read_exact_at(&mut bytes, 0).unwrap();
            let slots = Slots::read(&bytes[HEADER_BYTES..]);
            for read in slots.records {
                assert_eq!(read, record(found));
                found += 1;
            }
            damaged += slots.damaged;
        }
        assert!(found == told || found == told + 1, "instruction {instructions}: {found} found, {told} told");
        assert!(found >= before, "instruction {instructions}: a committed record went away");
        assert!(damaged <= 1, "instruction {instructions}: {damaged} slots are damaged");
        before = found;
        cut_off += u64::from(damaged == 1);
    }
    // The steps did go through the middle of records: all but the first and last of their eight words.
    assert!(cut_off >= RECORDS * 6, "{cut_off} of {instructions} instructions left half a record");
    eprintln!("{instructions} instructions, {cut_off} of them inside a record");
    drop(traced);
    child.process.wait().unwrap();
    assert_eq!(Log::read(&session.heads()[0]).steps(), (0..RECORDS).collect::<Vec<_>>());
}

/// A traced thread of another process, which cannot end before its tracer has heard of it.
struct Traced {
    process: u32,
    thread: i32,
}

impl Drop for Traced {
    fn drop(&mut self) {
        // SAFETY: plain system calls about a child of this process that nobody has waited for.
        unsafe {
            libc::kill(i32::try_from(self.process).unwrap(), libc::SIGKILL);
            libc::waitpid(self.thread, std::ptr::null_mut(), libc::__WALL);
        }
    }
}

/// Waits for the traced thread to stop, and returns the signal that stopped it.
fn next_stop(thread: i32) -> i32 {
    let mut status = 0;
    // SAFETY: the status is written through a valid pointer.
    let stopped = unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) };
    assert_eq!(stopped, thread, "{}", std::io::Error::last_os_error());
    assert!(libc::WIFSTOPPED(status), "the writer ended: status {status:#x}");
    libc::WSTOPSIG(status)
}
