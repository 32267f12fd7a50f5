//! A recorder that runs for long needs no more memory than one that has just begun.

use crate::support::{Child, Session, options, part, record, segment_bytes, wait_until};
use profilemate_record::Writer;

const RECORDS: u64 = 2_000_000;
const SLOTS: u32 = 16_384;

/// Resident memory in KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn count(folder: &str) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

#[test]
fn two_million_records_leave_memory_and_descriptors_as_they_were() {
    let Some((_, folder)) = part() else {
        let session = Session::new();
        let test = "memory::two_million_records_leave_memory_and_descriptors_as_they_were";
        let output = Child::command(test, "writer", session.path()).output().unwrap();
        let printed = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && printed.contains("1 passed"), "{output:?}");
        return;
    };
    let mut options = options(&folder, SLOTS);
    options.max_bytes = 4 * segment_bytes(SLOTS);
    let mut writer = Writer::open(&options).unwrap();
    let mut begin = None;
    for number in 0..RECORDS {
        wait_until("room", || writer.push(&record(number)));
        if number == u64::from(SLOTS) * 10 {
            begin = Some((resident(), count("/proc/self/fd"), count("/proc/self/task")));
        }
    }
    let (memory, files, threads) = begin.unwrap();
    assert!(resident() < memory + (4 << 10), "{memory} KiB at first, {} KiB at last", resident());
    assert_eq!((count("/proc/self/fd"), count("/proc/self/task")), (files, threads));
    eprintln!("{memory} KiB at first, {} KiB at last", resident());
    writer.close();
}
