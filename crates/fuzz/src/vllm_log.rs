//! A log of vLLM's, imported: what is made is a session that reads back as what was told.

use std::fs;

use profilemate_import::vllm_log::import;
use profilemate_session::{Payload, Session};

/// Input: four bytes that say when the log ended, in seconds since 1970, and the log.
pub fn run(mut data: &[u8]) {
    let until = i64::try_from(crate::number(&mut data) | crate::number(&mut data) << 16).unwrap_or(0);
    crate::scratch::with_folder(|folder| {
        let limit = (2 << 20) + 256 * data.len();
        let imported = match crate::memory::within(limit, || import(data, "log", until, folder)) {
            Ok(imported) => imported,
            Err(error) => {
                assert!(!error.to_string().contains(char::is_control));
                assert_eq!(fs::read_dir(folder).map_or(0, Iterator::count), 0, "nothing is left behind");
                return;
            }
        };
        let session = Session::open(&imported.folder).expect("a session");
        assert_eq!(session.damage, []);
        assert_eq!((session.records_lost(), session.records_damaged()), (0, 0));
        let mut batches = 0;
        let mut events = session.events().expect("its segments are there");
        let mut last = i64::MIN;
        while let Some(event) = events.next_event().expect("its segments are there") {
            if matches!(event.record.payload, Payload::Schedule(_)) {
                batches += 1;
            }
            assert!(session.logs.len() > 1 || event.end_ns >= last, "events of one engine are in order");
            last = event.end_ns;
        }
        assert_eq!(batches, imported.lines.iterations - imported.lines.dummy);
        assert_eq!(
            imported.engines.iter().map(|engine| engine.iterations).sum::<u64>(),
            imported.lines.iterations
        );
    });
}
