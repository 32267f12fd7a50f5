//! Forked children share their parent's mappings and its lock, and must leave both alone.

use crate::support::{Board, Child, Log, Session, options, part, record, wait_until};
use profilemate_format::head::{ANCHOR_BANKS, TEXT_OFFSET, counter};
use profilemate_record::{Writer, liveness};
use std::io::{Read, Write};
use std::path::Path;

/// Words of the board.
const STAGE: usize = 0;

/// Forks, runs `child` in the child and returns its exit status as waitpid(2) gives it.
fn in_fork(child: impl FnOnce()) -> i32 {
    // SAFETY: this process has no other threads than the test harness, which waits, and the recorder's; the child uses
    // neither, and ends without returning.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: a child that hangs is ended by its alarm.
        unsafe { libc::alarm(60) };
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child));
        // SAFETY: ends the process at once.
        unsafe { libc::_exit(i32::from(done.is_err())) };
    }
    assert!(pid > 0, "{}", std::io::Error::last_os_error());
    let mut status = -1;
    // SAFETY: the status is written through a valid pointer.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    status
}

/// Runs the test `name` in a process of its own and checks that it passed there.
fn alone(name: &str) -> Session {
    let session = Session::new();
    let output = Child::command(&format!("fork::{name}"), "alone", session.path()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{output:?}");
    session
}

/// Every byte of the log but the anchors, which the parent's thread writes at any time.
fn bytes(head: &Path, session: &Path) -> Vec<Vec<u8>> {
    let raw = session.join("raw");
    let mut all: Vec<Vec<u8>> =
        crate::support::files(session).iter().map(|name| std::fs::read(raw.join(name)).unwrap()).collect();
    let names = crate::support::files(session);
    let place = names.iter().position(|name| raw.join(name) == head).unwrap();
    all[place][counter::ANCHOR_BANK..counter::ANCHOR_BANK + 8].fill(0);
    all[place][ANCHOR_BANKS[0]..TEXT_OFFSET].fill(0);
    all
}

#[test]
fn a_child_changes_nothing_in_its_parents_log() {
    let Some((_, folder)) = part() else {
        alone("a_child_changes_nothing_in_its_parents_log");
        return;
    };
    let mut writer = Writer::open(&options(&folder, 8)).unwrap();
    let name = writer.intern("scheduling");
    for number in 0..5 {
        assert!(writer.push(&record(number)));
    }
    wait_until("the second segment", || Log::read(writer.path()).head.segments == 2);
    let before = bytes(writer.path(), &folder);
    let mut parents = Some(writer);
    let status = in_fork(|| {
        let mut writer = parents.take().unwrap();
        assert!(!writer.is_ours());
        // More than are left in the segment.
        for number in 0..20 {
            assert!(!writer.push(&record(number)));
        }
        assert_eq!(writer.intern("scheduling"), name);
        assert_eq!(writer.intern("new"), 0);
        writer.fact("model", "none");
        writer.role("worker", 0, 0);
        writer.add_overhead(1000);
        writer.count_probe_error();
        writer.close();
    });
    assert_eq!(status, 0);
    let mut writer = parents.unwrap();
    assert_eq!(bytes(writer.path(), &folder), before);
    assert!(writer.is_ours());
    assert_eq!(liveness::is_writer_alive(writer.path()).ok(), Some(true));
    for number in 5..16 {
        assert!(writer.push(&record(number)));
    }
    let path = writer.path().to_owned();
    writer.close();
    let log = Log::read(&path);
    assert_eq!(log.steps(), (0..16).collect::<Vec<_>>());
    assert_eq!((log.head.strings.len(), log.head.facts.len(), log.head.roles.len()), (1, 0, 1));
    assert_eq!((log.head.overhead_ticks, log.head.probe_errors, log.head.dropped), (0, 0, 0));
}

#[test]
fn a_child_opens_a_log_of_its_own() {
    let Some((_, folder)) = part() else {
        let session = alone("a_child_opens_a_log_of_its_own");
        let logs: Vec<Log> = session.heads().iter().map(|head| Log::read(head)).collect();
        let [child, parent] = [1, 0].map(|rank| logs.iter().find(|log| log.head.identity.rank == rank).unwrap());
        assert_eq!(parent.steps(), [0, 1, 2, 3]);
        assert_eq!(child.steps(), (100..150).collect::<Vec<_>>());
        assert_eq!(child.head.identity.parent_pid, parent.head.identity.pid);
        assert_ne!(child.head.identity.log_id, parent.head.identity.log_id);
        assert!(child.head.closed_ticks.is_some() && parent.head.closed_ticks.is_some());
        return;
    };
    let mut writer = Writer::open(&options(&folder, 8)).unwrap();
    assert!(writer.push(&record(0)) && writer.push(&record(1)));
    let mut parents = Some(writer);
    let status = in_fork(|| {
        // As the probes do: the old writer is dropped when the new one takes its place.
        let mut options = options(&folder, 8);
        options.rank = 1;
        drop(parents.take());
        let mut writer = Writer::open(&options).unwrap();
        assert!(writer.is_ours());
        for number in 100..150 {
            wait_until("room in the child's log", || writer.push(&record(number)));
        }
        writer.close();
    });
    assert_eq!(status, 0);
    let mut writer = parents.unwrap();
    assert!(writer.push(&record(2)) && writer.push(&record(3)));
    writer.close();
}

/// Starts a process that opens a log and then has `heir` run something that outlives it.
fn lock_ends_with_the_parent(test: &str, heir: impl FnOnce(&Path)) {
    if let Some((part, folder)) = part() {
        let board = Board::open(&folder.join("board"));
        if part == "heir" {
            outlive(&board);
        }
        let _writer = Writer::open(&options(&folder, 8)).unwrap();
        heir(&folder);
        loop {
            std::thread::park();
        }
    }
    let session = Session::new();
    let board = Board::open(&session.path().join("board"));
    let mut parent = Child::start(test, "parent", session.path());
    parent.wait_until("the heir", || board.get(STAGE) == 1);
    let head = session.heads().remove(0);
    assert!(liveness::is_writer_alive(&head).unwrap());
    let mut input = parent.process.stdin.take().unwrap();
    let mut output = parent.process.stdout.take().unwrap();
    parent.kill();
    assert!(!liveness::is_writer_alive(&head).unwrap(), "the child holds its parent's lock");
    // The heir answers, so it lived all the time; then it ends, which closes the last copy of this pipe.
    input.write_all(b"?").unwrap();
    let mut answer = Vec::new();
    output.read_to_end(&mut answer).unwrap();
    assert_eq!(answer.last(), Some(&b'!'));
}

/// Says that it is there, waits for a byte, answers it and ends.
fn outlive(board: &Board) -> ! {
    board.set(STAGE, 1);
    let mut byte = [0];
    // SAFETY: plain system calls on one valid byte; the process ends here.
    unsafe {
        libc::read(0, byte.as_mut_ptr().cast(), 1);
        libc::write(1, b"!".as_ptr().cast(), 1);
        libc::_exit(0);
    }
}

#[test]
fn the_lock_ends_with_the_parent_though_a_forked_child_lives_on() {
    lock_ends_with_the_parent("fork::the_lock_ends_with_the_parent_though_a_forked_child_lives_on", |folder| {
        let board = Board::open(&folder.join("board"));
        // SAFETY: the child makes plain system calls and ends.
        if unsafe { libc::fork() } == 0 {
            outlive(&board);
        }
    });
}

#[test]
fn the_lock_ends_with_the_parent_though_a_started_program_lives_on() {
    let test = "fork::the_lock_ends_with_the_parent_though_a_started_program_lives_on";
    lock_ends_with_the_parent(test, |folder| {
        let mut command = Child::command(test, "heir", folder);
        command.stdin(std::process::Stdio::inherit()).stdout(std::process::Stdio::inherit());
        #[expect(clippy::zombie_processes, reason = "it outlives this process, which is killed")]
        let _ = command.spawn().unwrap();
    });
}
