//! What a log keeps to, and what it refuses.

use crate::support::{Log, Session, record, segment_bytes, wait_until};
use profilemate_record::{Options, Writer};

/// Pushes records until `until` of them are in; returns how many pushes that took.
fn push(writer: &mut Writer, until: u64, mut after_each: impl FnMut()) -> u64 {
    let mut pushes = 0;
    wait_until("room for the records", || {
        let number = writer.written();
        if number == until {
            return true;
        }
        writer.push(&record(number));
        pushes += 1;
        after_each();
        false
    });
    pushes
}

fn segments(session: &Session) -> usize {
    session.with_extension("seg").len()
}

#[test]
fn a_log_keeps_to_its_bound_and_counts_what_it_gives_up() {
    for (bound, most) in [(5, 5), (0, 3)] {
        let session = Session::new();
        let mut options = session.options(64);
        options.max_bytes = bound * segment_bytes(64);
        let mut writer = Writer::open(&options).unwrap();
        let name = writer.intern("scheduling");
        writer.fact("model", "llama");
        let written = 64 * 20 + 10;
        let mut largest = 0;
        let pushes = push(&mut writer, written, || largest = largest.max(segments(&session)));
        assert_eq!(largest, most, "segments on disk at the same time");
        assert_eq!(writer.intern("scheduling"), name);
        assert_eq!(writer.intern("forward"), name + 1);
        let (path, dropped) = (writer.path().to_owned(), writer.dropped());
        writer.close();

        let log = Log::read(&path);
        let found = log.records().len() as u64;
        assert_eq!((log.head.written, log.head.dropped), (written, dropped));
        assert_eq!(found + log.head.discarded + log.head.dropped, pushes);
        assert!(log.head.discarded >= 64 * 16 && found >= 64, "{found} found");
        assert_eq!(log.steps(), (written - found..written).collect::<Vec<_>>(), "the newest are kept, in order");
        assert_eq!((log.head.string(name), log.head.fact("model")), (Some("scheduling"), Some("llama")));
    }
}

#[test]
fn a_segment_that_a_reader_has_taken_away_is_not_counted_as_discarded() {
    let session = Session::new();
    let mut options = session.options(64);
    options.max_bytes = 3 * segment_bytes(64);
    let mut writer = Writer::open(&options).unwrap();
    push(&mut writer, 65, || {});
    // The first is full, and a collector that has made tables of it may delete it.
    std::fs::remove_file(writer.path().with_extension("000000.seg")).unwrap();
    push(&mut writer, 64 * 6 + 1, || {});
    let path = writer.path().to_owned();
    writer.close();
    let log = Log::read(&path);
    assert!(log.head.discarded > 0);
    assert_eq!(log.head.written, 64 + log.head.discarded + log.records().len() as u64);
}

#[test]
fn a_closed_log_gives_back_the_space_that_it_does_not_need() {
    let session = Session::new();
    let mut writer = Writer::open(&session.options(64)).unwrap();
    push(&mut writer, 64 + 7, || {});
    wait_until("the segment that is ready", || segments(&session) == 3);
    let path = writer.path().to_owned();
    writer.close();
    let log = Log::read(&path);
    assert_eq!((&log.segments[..], log.head.segments), (&[0, 1][..], 2));
    assert_eq!(std::fs::metadata(path.with_extension("000000.seg")).unwrap().len(), segment_bytes(64));
    assert_eq!(std::fs::metadata(path.with_extension("000001.seg")).unwrap().len(), segment_bytes(7));
    assert_eq!((log.records().len(), log.slots.empty, log.slots.damaged), (71, 0, 0));
    assert!(log.head.closed_ticks.is_some());
    let [.., last] = &log.head.anchors[..] else { panic!("no anchors") };
    assert!(last.ticks >= log.head.closed_ticks.unwrap(), "the last anchor covers all records");
}

#[test]
fn a_dropped_log_is_complete_and_not_closed() {
    let session = Session::new();
    let mut writer = Writer::open(&session.options(64)).unwrap();
    push(&mut writer, 10, || {});
    drop(writer);
    let log = Log::read(&session.heads()[0]);
    assert_eq!(log.steps(), (0..10).collect::<Vec<_>>());
    assert_eq!((log.head.closed_ticks, log.slots.damaged, log.slots.empty), (None, 0, 54));
}

#[test]
fn an_empty_log_is_a_log() {
    let session = Session::new();
    Writer::open(&session.options(64)).unwrap().close();
    let log = Log::read(&session.heads()[0]);
    assert_eq!((log.records().len(), &log.segments[..]), (0, &[0][..]));
    assert!(log.head.anchors.len() >= 2);
}

#[test]
fn the_identity_says_who_wrote_the_log() {
    let session = Session::new();
    let mut options = session.options(64);
    (options.role, options.rank, options.data_parallel_rank) = ("worker".into(), 3, 2);
    let mut writer = Writer::open(&options).unwrap();
    writer.role("engine_core", 1, 2);
    let log = Log::read(writer.path());
    let identity = &log.head.identity;
    assert_eq!((&identity.role[..], identity.rank, identity.data_parallel_rank), ("worker", 3, 2));
    assert_eq!((identity.pid, identity.parent_pid), (std::process::id(), std::os::unix::process::parent_id()));
    assert!(identity.process_start > 0);
    assert_eq!(identity.segment_slots, 64);
    let roles: Vec<_> = log.head.roles.iter().map(|role| (&role.name[..], role.rank)).collect();
    assert_eq!(roles, [("worker", 3), ("engine_core", 1)]);
    assert_eq!(session.heads(), [session.path().join(format!("raw/worker-3-{}.head", std::process::id()))]);
}

#[test]
fn text_that_does_not_fit_is_counted_and_records_go_on() {
    let session = Session::new();
    let mut options = session.options(64);
    options.text_capacity = 100;
    let mut writer = Writer::open(&options).unwrap();
    let first = writer.intern("0123456789");
    let refused = "x".repeat(100);
    assert_ne!(first, 0);
    assert_eq!(writer.intern(&refused), 0);
    assert_eq!(writer.intern(&refused), 0);
    writer.fact("command", &refused);
    // What fits still goes in.
    assert_eq!(writer.intern("short"), first + 1);
    writer.add_overhead(5);
    writer.count_probe_error();
    push(&mut writer, 3, || {});
    let log = Log::read(writer.path());
    assert_eq!(log.head.text_lost, 3);
    assert_eq!((log.head.overhead_ticks, log.head.probe_errors), (5, 1));
    assert_eq!((log.head.string(first), log.head.string(first + 1)), (Some("0123456789"), Some("short")));
    assert_eq!((log.records().len(), log.head.facts.len()), (3, 0));
}

#[test]
fn a_nul_in_a_fact_does_not_end_it() {
    let session = Session::new();
    let mut writer = Writer::open(&session.options(64)).unwrap();
    writer.fact("com\0mand", "vllm\0serve");
    writer.fact("model", "one");
    writer.fact("model", "two");
    let head = Log::read(writer.path()).head;
    assert_eq!(head.fact("com?mand"), Some("vllm?serve"));
    assert_eq!(head.fact("model"), Some("two"), "the later value holds");
}

#[test]
fn a_second_log_of_the_same_process_gets_a_name_of_its_own() {
    let session = Session::new();
    for number in 1..=3 {
        let mut writer = Writer::open(&session.options(64)).unwrap();
        push(&mut writer, number, || {});
        writer.close();
    }
    let names = ["", "~2", "~3"].map(|suffix| format!("engine_core-0-{}{suffix}", std::process::id()));
    for (name, records) in names.iter().zip(1..) {
        assert_eq!(Log::read(&session.path().join(format!("raw/{name}.head"))).records().len(), records);
    }
    assert_eq!(session.heads().len(), 3);
}

#[test]
fn a_log_whose_making_was_cut_off_is_in_nobodys_way() {
    let session = Session::new();
    let name = format!("raw/engine_core-0-{}", std::process::id());
    std::fs::write(session.path().join(format!("{name}.head.new")), "").unwrap();
    let writer = Writer::open(&session.options(64)).unwrap();
    assert_eq!(writer.path(), session.path().join(format!("{name}~2.head")));
}

#[test]
fn roles_that_are_no_plain_names_are_refused() {
    let session = Session::new();
    let long = "x".repeat(33);
    for role in ["", "engine-core", "..", "a/b", "a b", "wörker", "a\0", "~2", &long] {
        let error = Writer::open(&Options::new(session.path(), role, 0)).unwrap_err();
        assert!(error.to_string().contains("a role is one to 32 letters"), "{role:?}: {error}");
    }
    assert_eq!(session.files(), [""; 0]);
    let mut options = session.options(64);
    options.role = long[..32].to_owned();
    let writer = Writer::open(&options).unwrap();
    assert_eq!(Log::read(writer.path()).head.identity.role, options.role);
}

#[test]
fn a_folder_that_is_not_there_is_named() {
    let session = Session::new();
    for folder in ["gone", "file"] {
        let mut options = session.options(64);
        options.session_folder = session.path().join(folder);
        if folder == "file" {
            std::fs::write(&options.session_folder, "").unwrap();
        }
        let error = Writer::open(&options).unwrap_err().to_string();
        assert!(error.contains(&options.session_folder.display().to_string()), "{error}");
    }
}

#[test]
fn a_log_that_cannot_be_begun_leaves_nothing_behind() {
    let session = Session::new();
    let obstacle = format!("engine_core-0-{}.000000.seg", std::process::id());
    std::fs::create_dir(session.path().join("raw").join(&obstacle)).unwrap();
    let error = Writer::open(&session.options(64)).unwrap_err().to_string();
    assert!(error.contains(&obstacle), "{error}");
    assert_eq!(session.files(), [obstacle]);
}
