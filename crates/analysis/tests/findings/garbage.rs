//! Pauses of the garbage collector.

use profilemate_analysis::findings::{Level, Severity};

use crate::server::{DECODE, Server, ids, number, of, weight};

/// A server that works for two seconds, whose engine stops so often for so long, in collections of this generation.
fn pausing(count: u64, pause_us: u64, generation: u64) -> Server {
    let mut server = Server::new();
    server.steps(200, DECODE);
    let steps = 200;
    for step in 0..steps {
        // The engine's steps follow one another without a gap.
        server.engine.span(10_000 + step * 10_000, 10_000, step + 1, "engine_step", (0, 0), "");
    }
    for at in 0..count {
        server.engine.span(20_000 + at * 1_000, pause_us, 0, "garbage_collection", (generation, 7), "");
    }
    server
}

#[test]
fn long_collections_of_everything_stop_the_engine() {
    let findings = pausing(3, 50_000, 2).find();
    let finding = of(&findings, "garbage-collection-pauses");
    assert_eq!((weight(finding), finding.changes.len()), ((Severity::Warning, Level::High), 0));
    assert_eq!(number(finding, "longest_pause"), 50.0);
    assert_eq!(number(finding, "collections_of_the_oldest_generation"), 3.0);
    assert!(finding.title.contains("engine_core-0 in 3 pauses of 50 ms"), "{}", finding.title);
}

#[test]
fn many_short_collections_take_their_share() {
    let findings = pausing(20, 1_000, 0).find();
    let finding = of(&findings, "garbage-collection-pauses");
    assert_eq!(number(finding, "share_of_working_time"), 1.0);
}

#[test]
fn collections_that_nobody_notices_are_no_fault() {
    for (what, server) in [
        ("two long ones are chance", pausing(2, 50_000, 2)),
        ("a little shorter", pausing(3, 49_900, 2)),
        ("of a young generation, few", pausing(19, 50_000, 1)),
        ("0.99 % of the time", pausing(20, 990, 0)),
    ] {
        assert!(!ids(&server.find()).contains(&"garbage-collection-pauses"), "{what}");
    }
}

#[test]
fn loading_shutting_down_and_idling_stop_nobody() {
    // The times of three of 300 ms: the second one hits the first work, and is the only one then.
    let with = |pauses: [(u64, u64); 3]| {
        let mut server = pausing(0, 0, 2);
        server.engine.span(2_010_000, 5_000_000, 0, "engine_idle", (0, 0), "");
        server.engine.span(7_010_000, 10_000, 201, "engine_step", (0, 0), "");
        for (us, long_us) in pauses {
            server.engine.span(us, long_us, 0, "garbage_collection", (2, 7), "");
        }
        ids(&server.find()).contains(&"garbage-collection-pauses")
    };
    assert!(with([(100_000, 300_000), (500_000, 300_000), (900_000, 300_000)]));
    assert!(!with([(0, 9_000), (500_000, 300_000), (900_000, 300_000)]), "one while it loads");
    assert!(!with([(7_020_000, 600_000), (500_000, 300_000), (900_000, 300_000)]), "one behind its last work");
    assert!(!with([(3_000_000, 600_000), (500_000, 300_000), (900_000, 300_000)]), "one while it idles");
}
