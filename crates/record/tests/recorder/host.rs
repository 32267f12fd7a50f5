//! What the host process must not notice.

use crate::support::{Session, wait_until};
use profilemate_record::Writer;

/// The signals that a thread has blocked, as a mask.
fn blocked(task: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{task}/status")).ok()?;
    let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

#[test]
fn the_recorders_thread_takes_no_signal_of_the_host() {
    let session = Session::new();
    let before = blocked("thread-self").unwrap();
    let writer = Writer::open(&session.options(8)).unwrap();
    assert_eq!(blocked("thread-self").unwrap(), before, "the host's own thread is as it was");
    let mut masks = Vec::new();
    wait_until("the recorder's thread", || {
        masks = std::fs::read_dir("/proc/self/task")
            .unwrap()
            .filter_map(|task| {
                let task = task.unwrap().file_name().into_string().unwrap();
                // A thread of another test may end meanwhile.
                let name = std::fs::read_to_string(format!("/proc/self/task/{task}/comm")).ok()?;
                (name.trim() == "profilemate").then_some(())?;
                blocked(&format!("self/task/{task}"))
            })
            .collect();
        !masks.is_empty()
    });
    for mask in masks {
        assert_eq!(
            mask & 1 << (libc::SIGBUS - 1),
            0,
            "a bus error in a file of ours would end the host: {mask:#x}"
        );
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGCHLD, libc::SIGUSR1, libc::SIGALRM] {
            assert_ne!(mask & 1 << (signal - 1), 0, "signal {signal} is open in {mask:#x}");
        }
    }
    drop(writer);
}
