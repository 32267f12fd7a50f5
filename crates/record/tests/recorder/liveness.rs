//! The lock that says whether a log's writer lives.

use crate::support::{Board, Child, Log, Session, options, part};
use profilemate_record::{Writer, liveness::is_writer_alive};
use std::sync::atomic::{AtomicBool, Ordering};

#[test]
fn a_writer_lives_until_it_is_killed() {
    if let Some((_, folder)) = part() {
        let _writer = Writer::open(&options(&folder, 8)).unwrap();
        Board::open(&folder.join("board")).set(0, 1);
        loop {
            std::thread::park();
        }
    }
    let session = Session::new();
    let board = Board::open(&session.path().join("board"));
    let mut child = Child::start("liveness::a_writer_lives_until_it_is_killed", "writer", session.path());
    child.wait_until("the log", || board.get(0) == 1);
    let head = session.heads().remove(0);
    assert!(is_writer_alive(&head).unwrap());
    assert!(is_writer_alive(&head).unwrap(), "looking once must not take the lock away");
    child.kill();
    assert!(!is_writer_alive(&head).unwrap());
}

#[test]
fn a_writer_that_is_closed_or_dropped_does_not_live() {
    let session = Session::new();
    for close in [true, false] {
        let writer = Writer::open(&session.options(8)).unwrap();
        let head = writer.path().to_owned();
        assert!(is_writer_alive(&head).unwrap());
        if close {
            writer.close();
        } else {
            drop(writer);
        }
        assert!(!is_writer_alive(&head).unwrap());
    }
}

#[test]
fn a_missing_log_is_an_error() {
    let session = Session::new();
    assert!(is_writer_alive(&session.path().join("raw/worker-0-1.head")).is_err());
}

/// Whoever watches the folder sees a head only when it is complete and locked, and its looking hinders no writer.
#[test]
fn a_reader_that_looks_all_the_time_disturbs_no_writer() {
    let session = Session::new();
    let done = AtomicBool::new(false);
    let (writers, looks) = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut looks = 0_u64;
            while !done.load(Ordering::Acquire) {
                for head in session.heads() {
                    assert!(is_writer_alive(&head).unwrap());
                    assert!(!Log::read(&head).head.anchors.is_empty());
                    looks += 1;
                }
            }
            looks
        });
        let writers: Vec<_> = (0..40).map(|_| Writer::open(&session.options(8))).collect();
        done.store(true, Ordering::Release);
        (writers, watcher.join().unwrap())
    });
    for writer in &writers {
        assert!(writer.is_ok(), "{writer:?}");
    }
    eprintln!("{looks} looks");
}
