//! Damage anywhere costs the records that it hits and nothing else: no panic, no record more, no record less.
//! `PROPTEST_CASES=10000` looks longer than every run of the tests does.

#![allow(clippy::unwrap_used, reason = "a test")]

#[allow(dead_code, reason = "other tests use the rest")]
mod common;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use common::{SEGMENT_SLOTS, copy};
use profilemate_session::{Edge, Error, Record, Session};
use proptest::prelude::*;

/// What a reader must find: how often each record is there.
type Records = HashMap<[u64; 7], u64>;

fn count(records: &mut Records, record: &Record) {
    *records.entry(record.to_words()).or_default() += 1;
}

/// Everything that can be read of a session, over the merged stream; checked against the counts of the survey.
fn read(folder: &Path) -> (Session, Records) {
    let session = Session::open(folder).unwrap();
    let mut records = Records::new();
    let mut events = session.events().unwrap();
    while let Some(event) = events.next_event().unwrap() {
        if event.edge == Edge::End {
            count(&mut records, &event.record);
        }
    }
    let found: u64 = session.logs.iter().map(|log| log.found).sum();
    assert_eq!(records.values().sum::<u64>(), found);
    (session, records)
}

fn segments(folder: &Path) -> Vec<PathBuf> {
    files(folder, "seg")
}

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder.join("raw"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().unwrap() == extension)
        .collect();
    files.sort();
    files
}

/// The records in the slots of a segment's bytes whose 64 bytes are the same in `damaged`.
fn untouched(whole: &[u8], damaged: &[u8]) -> Vec<Record> {
    let slot = |bytes: &[u8], at: usize| bytes.get(64 + at * 64..128 + at * 64).map(<[u8]>::to_vec);
    (0..SEGMENT_SLOTS)
        .filter_map(|at| {
            let bytes = slot(whole, at as usize)?;
            if slot(damaged, at as usize)? != bytes {
                return None;
            }
            match profilemate_format::record::read_slot(&bytes.try_into().unwrap(), at) {
                profilemate_format::record::Slot::Record(record) => Some(record),
                _ => None,
            }
        })
        .collect()
}

/// Damages one segment of a golden session and demands exactly the untouched records back.
fn damage_segment(name: &str, which: prop::sample::Index, damage: impl Fn(&mut Vec<u8>)) -> Session {
    let (_keep, folder) = copy(name);
    let paths = segments(&folder);
    let victim = &paths[which.index(paths.len())];
    let mut expected = Records::new();
    for path in &paths {
        let whole = fs::read(path).unwrap();
        let mut bytes = whole.clone();
        if path == victim {
            damage(&mut bytes);
            fs::write(path, &bytes).unwrap();
        }
        for record in untouched(&whole, &bytes) {
            count(&mut expected, &record);
        }
    }
    let (session, records) = read(&folder);
    assert!(records == expected, "{}: {:?}", victim.display(), session.damage);
    session
}

/// Few cases, so that every run of the tests can afford them.
fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(48);
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_segment_cut_anywhere_keeps_the_records_before_the_cut(which: prop::sample::Index, cut: prop::sample::Index) {
        damage_segment("server", which, |bytes| bytes.truncate(cut.index(bytes.len())));
    }

    #[test]
    fn a_flipped_bit_in_a_segment_costs_at_most_its_record(which: prop::sample::Index, bit: prop::sample::Index) {
        let session = damage_segment("server", which, |bytes| {
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
        });
        prop_assert!(session.records_damaged() <= 1);
        prop_assert_eq!(session.records_lost(), 0);
        prop_assert!(!session.damage.is_empty() || session.records_damaged() == 0);
    }

    #[test]
    fn many_flipped_bits_cost_their_records(
        which: prop::sample::Index, bits in prop::collection::vec(any::<prop::sample::Index>(), 1..40),
    ) {
        // The header stays: without it a file with no sound record left would rightly be nobody's.
        damage_segment("server", which, |bytes| {
            for bit in &bits {
                let bit = 64 * 8 + bit.index((bytes.len() - 64) * 8);
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
        });
    }

    #[test]
    fn a_block_of_zeros_or_noise_costs_what_it_covers(
        which: prop::sample::Index, from: prop::sample::Index, noise in prop::collection::vec(any::<u8>(), 1..600), zero: bool,
    ) {
        damage_segment("server", which, |bytes| {
            let from = 64 + from.index(bytes.len() - 64);
            for (at, byte) in (from..bytes.len()).zip(&noise) {
                bytes[at] = if zero { 0 } else { *byte };
            }
        });
    }

    #[test]
    fn a_byte_changed_in_a_head_costs_no_record(which: prop::sample::Index, at: prop::sample::Index, change in 1u8..) {
        let (_keep, folder) = copy("server");
        let (whole, records) = read(&folder);
        let paths = files(&folder, "head");
        let path = &paths[which.index(paths.len())];
        let mut bytes = fs::read(path).unwrap();
        // Text and its entries matter most and are the smallest part.
        let at = if change % 2 == 0 { at.index(bytes.len()) } else { at.index(1024) + if change % 4 == 1 { 0 } else { 12_288 } };
        bytes[at] ^= change;
        fs::write(path, bytes).unwrap();
        let (session, found) = read(&folder);
        prop_assert!(found == records);
        prop_assert_eq!(session.logs.len(), whole.logs.len());
        for (log, before) in session.logs.iter().zip(&whole.logs) {
            prop_assert_eq!((&log.name, log.found), (&before.name, before.found));
            prop_assert_eq!(&log.head.identity, &before.head.identity);
        }
    }

    #[test]
    fn a_head_cut_anywhere_costs_names_but_no_count(which: prop::sample::Index, cut: prop::sample::Index) {
        let (_keep, folder) = copy("server");
        let (_, records) = read(&folder);
        let paths = files(&folder, "head");
        let path = &paths[which.index(paths.len())];
        let bytes = fs::read(path).unwrap();
        let cut = cut.index(bytes.len());
        fs::write(path, &bytes[..cut]).unwrap();
        let (session, found) = read(&folder);
        let found: u64 = found.values().sum();
        prop_assert_eq!(found + session.orphan_records, records.values().sum::<u64>());
        let named = path.file_name().unwrap().to_string_lossy();
        // A head of which only unused room is missing is as good as whole.
        let used = bytes.iter().rposition(|byte| *byte != 0).unwrap();
        prop_assert!(cut > used || session.damage.iter().any(|damage| damage.file == *named), "{:?}", session.damage);
    }

    #[test]
    fn any_file_beside_a_log_changes_nothing_but_the_notes(
        name in prop_oneof![
            Just("worker-0-9.head".to_owned()), Just("worker-0-1003.000009.seg".to_owned()),
            Just("notes.txt".to_owned()), "[a-z0-9.-]{1,12}",
        ],
        content in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..300),
            prop::collection::vec(any::<u8>(), 12_288..12_400),
            Just(b"PMSEG\0\r\n".to_vec()), Just(b"PMHEAD\r\n".repeat(2000)),
        ],
    ) {
        let (_keep, folder) = copy("server");
        let (_, records) = read(&folder);
        let path = folder.join("raw").join(name);
        prop_assume!(!path.exists());
        fs::write(path, content).unwrap();
        let (session, found) = read(&folder);
        prop_assert!(found == records);
        prop_assert_eq!((session.records_lost(), session.orphan_records), (0, 0));
    }
}

#[test]
fn a_copy_of_a_log_is_not_counted_twice() {
    let (_keep, folder) = copy("server");
    let (_, records) = read(&folder);
    for path in files(&folder, "seg").into_iter().chain(files(&folder, "head")) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.starts_with("worker-0") {
            fs::copy(&path, path.with_file_name(name.replace("worker-0", "worker-7"))).unwrap();
        }
    }
    let (session, found) = read(&folder);
    assert!(found == records);
    assert_eq!(session.damage.len(), 4, "{:?}", session.damage);
}

#[test]
fn segments_of_two_logs_that_changed_names_still_belong_to_their_logs() {
    let (_keep, folder) = copy("server");
    let (_, records) = read(&folder);
    let raw = folder.join("raw");
    let (one, two) = (raw.join("worker-0-1003.000001.seg"), raw.join("engine_core-0-1002.000001.seg"));
    fs::rename(&one, raw.join("x")).unwrap();
    fs::rename(&two, &one).unwrap();
    fs::rename(raw.join("x"), &two).unwrap();
    let (session, found) = read(&folder);
    assert!(found == records);
    assert_eq!(session.records_lost() + session.records_damaged(), 0);
}

#[test]
fn a_missing_segment_is_named_and_its_records_are_lost() {
    let (_keep, folder) = copy("server");
    fs::remove_file(folder.join("raw/engine_core-0-1002.000001.seg")).unwrap();
    let (session, _) = read(&folder);
    assert_eq!((session.records_lost(), session.records_damaged()), (64, 0));
    assert!(session.damage[0].what.contains("segments missing before this one: 1"), "{:?}", session.damage);
}

#[test]
fn an_empty_slot_between_records_is_damage_and_behind_them_it_is_none() {
    let (_keep, folder) = copy("server");
    let path = folder.join("raw/engine_core-0-1002.000000.seg");
    let mut bytes = fs::read(&path).unwrap();
    bytes[64 + 10 * 64..64 + 12 * 64].fill(0);
    fs::write(&path, bytes).unwrap();
    let (session, _) = read(&folder);
    assert_eq!((session.records_damaged(), session.records_lost()), (2, 0));
    // The worker was killed: the room that it had left is not damage.
    assert_eq!(session.damage.len(), 1, "{:?}", session.damage);
}

#[test]
fn a_log_of_a_newer_format_is_left_out_with_its_reason() {
    let (_keep, folder) = copy("server");
    for path in files(&folder, "seg").into_iter().chain(files(&folder, "head")) {
        if !path.to_string_lossy().contains("worker") {
            continue;
        }
        let mut bytes = fs::read(&path).unwrap();
        bytes[8] = 77;
        // Its checksum is right: it is no accident.
        let block = if path.extension().unwrap() == "head" { 256 } else { 64 };
        let crc = crc32fast::hash(&bytes[..block - 4]);
        bytes[block - 4..block].copy_from_slice(&crc.to_le_bytes());
        fs::write(&path, bytes).unwrap();
    }
    let (session, _) = read(&folder);
    assert_eq!(session.logs.len(), 3);
    assert!(session.damage.iter().all(|damage| damage.what.contains("format 77")), "{:?}", session.damage);
}

#[test]
fn folders_that_are_no_session_are_refused_in_one_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let message = |path: &Path| Session::open(path).unwrap_err().to_string();
    assert!(matches!(Session::open(&folder.path().join("nowhere")), Err(Error::Missing(_))));
    assert!(message(folder.path()).contains("is not a session"));
    // A folder that cannot be looked into, by whoever runs the tests: a link that leads to itself.
    std::os::unix::fs::symlink("raw", folder.path().join("raw")).unwrap();
    assert!(message(folder.path()).starts_with("cannot read "), "{}", message(folder.path()));
    fs::remove_file(folder.path().join("raw")).unwrap();
    fs::create_dir(folder.path().join("raw")).unwrap();
    assert!(message(folder.path()).contains("holds no raw log"));
    fs::write(folder.path().join("raw/worker-0-1.head"), "text").unwrap();
    assert!(
        message(folder.path()).contains("worker-0-1.head: not a ProfileMate head file"),
        "{}",
        message(folder.path())
    );
}

#[test]
fn pipes_and_folders_among_the_logs_do_not_block() {
    let (_keep, folder) = copy("server");
    let raw = folder.join("raw");
    fs::create_dir(raw.join("engine_core-0-5.head")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, raw.join("worker-0-5.000000.seg"), 0o600.into()).unwrap();
    let (session, _) = read(&folder);
    assert_eq!(session.damage.len(), 2);
}
