//! SIGKILL at random moments: whatever was committed is found.

use crate::support::{Board, Child, Log, Random, Session, options, part, record};
use profilemate_record::Writer;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;

/// Words of the board.
const COMMITTED: usize = 0;
const SLOTS: usize = 1;

/// Writes records flat out, and tells after each that it is committed. Ends with the process.
fn write_flat_out(part: &str, folder: &Path) -> ! {
    let board = Board::open(&folder.join(part));
    let mut options = options(folder, u32::try_from(board.get(SLOTS)).unwrap());
    part.clone_into(&mut options.role);
    let mut writer = Writer::open(&options).unwrap();
    let mut committed = 0;
    loop {
        // Where there is no room for it, the same record is tried again.
        if writer.push(&record(committed)) {
            committed += 1;
            board.set(COMMITTED, committed);
        }
    }
}

#[derive(Debug, Default)]
struct Seen {
    kills: usize,
    records: u64,
    segments: usize,
    cut_off: usize,
    untold: usize,
}

impl Seen {
    /// Checks the log of a writer that was killed.
    fn check(&mut self, session: &Session, writer: &str) {
        let told = Board::open(&session.path().join(writer)).get(COMMITTED);
        let heads = session.heads();
        let is_its = |head: &&std::path::PathBuf| {
            head.file_name().unwrap().to_str().unwrap().starts_with(&format!("{writer}-0-"))
        };
        let head = heads.iter().find(is_its).unwrap();
        let log = Log::read(head);
        let found = log.records().len() as u64;
        assert!(found == told || found == told + 1, "{found} records found, and {told} were told");
        assert!(
            log.head.written == found || log.head.written + 1 == found,
            "{} counted of {found}",
            log.head.written
        );
        for (number, found) in (0..).zip(log.records()) {
            assert_eq!(*found, record(number));
        }
        assert!(log.slots.damaged <= 1, "{} damaged slots", log.slots.damaged);
        assert_eq!(log.head.closed_ticks, None);
        assert_eq!((log.head.discarded, log.head.text_lost), (0, 0));
        assert!(!log.head.anchors.is_empty());
        for pair in log.head.anchors.windows(2) {
            assert!(pair[0].ticks < pair[1].ticks && pair[0].monotonic_ns < pair[1].monotonic_ns, "{pair:?}");
        }
        self.kills += 1;
        self.records += found;
        self.segments += log.segments.len();
        self.cut_off += log.slots.damaged;
        self.untold += usize::from(found > told);
    }
}

/// Slots per segment, and the number of records after which to kill.
fn plan(random: &mut Random, round: usize) -> (u32, u64) {
    // Small segments, for kills around their changes, and large ones, for kills while records are written.
    let slots = if round.is_multiple_of(2) { random.within(64..257) } else { random.within(4_000..16_000) };
    (slots, u64::from(random.within(1..4 * slots)))
}

#[test]
fn one_process() {
    if let Some((part, folder)) = part() {
        write_flat_out(&part, &folder);
    }
    let mut random = Random::new();
    let mut seen = Seen::default();
    for round in 0..120 {
        let session = Session::new();
        let (slots, until) = plan(&mut random, round);
        let board = Board::open(&session.path().join("writer"));
        board.set(SLOTS, u64::from(slots));
        let mut child = Child::start("kill::one_process", "writer", session.path());
        child.wait_until("the records", || board.get(COMMITTED) >= until);
        child.kill();
        eprintln!("round {round}: {slots} slots, killed after {until} records");
        seen.check(&session, "writer");
    }
    eprintln!("{seen:?}");
}

const WRITERS: [&str; 3] = ["api_server", "engine_core", "worker"];

#[test]
fn a_whole_process_group() {
    if let Some((part, folder)) = part() {
        write_flat_out(&part, &folder);
    }
    let mut random = Random::new();
    let mut seen = Seen::default();
    for round in 0..12 {
        let session = Session::new();
        let plans = WRITERS.map(|_| plan(&mut random, round));
        let boards = WRITERS.map(|writer| Board::open(&session.path().join(writer)));
        let mut group = 0;
        let mut children: Vec<Child> = Vec::new();
        for ((writer, board), (slots, _)) in WRITERS.iter().zip(&boards).zip(plans) {
            board.set(SLOTS, u64::from(slots));
            let mut command = Child::command("kill::a_whole_process_group", writer, session.path());
            let process = command.process_group(group).spawn().unwrap();
            if children.is_empty() {
                group = i32::try_from(process.id()).unwrap();
            }
            children.push(Child { process });
        }
        for ((child, board), (_, until)) in children.iter_mut().zip(&boards).zip(plans) {
            child.wait_until("the records", || board.get(COMMITTED) >= until);
        }
        // SAFETY: plain system call; the group is the children's own.
        assert_eq!(unsafe { libc::killpg(group, libc::SIGKILL) }, 0);
        for (mut child, writer) in children.into_iter().zip(WRITERS) {
            assert_eq!(child.process.wait().unwrap().signal(), Some(libc::SIGKILL));
            eprintln!("round {round}: {plans:?}, {writer}");
            seen.check(&session, writer);
        }
    }
    eprintln!("{seen:?}");
}
