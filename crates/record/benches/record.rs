//! What one record costs from Rust. `cargo bench -p profilemate-record`
//!
//! The segment is as large as the format allows, so that the figure is that of a record and not of a dropped one.

use profilemate_format::record::{Label, Payload, Record, Span};
use profilemate_record::{Options, Writer, clock};

fn main() {
    divan::main();
}

fn span(ticks: u64) -> Record {
    let span = Span { duration_ticks: 1234, value_a: ticks, ..Span::default() };
    Record { ticks, step: 7, label: Label::Work, flags: 0, name: 1, payload: Payload::Span(span) }
}

fn writer(folder: &std::path::Path) -> Writer {
    profilemate_record::session_folder::ensure(folder).expect("a temporary folder can be written");
    let sizes = Options { segment_bytes: 1 << 29, ..Options::new(folder, "bench", 0) };
    Writer::open(&sizes).expect("a log can be opened in a temporary folder")
}

#[divan::bench(sample_size = 1000, sample_count = 1000)]
fn record(bencher: divan::Bencher) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let mut writer = writer(&folder.path().join("session"));
    bencher.bench_local(|| assert!(writer.push(&divan::black_box(span(1)))));
}

#[divan::bench(sample_size = 1000, sample_count = 1000)]
fn record_with_two_clock_reads(bencher: divan::Bencher) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let mut writer = writer(&folder.path().join("session"));
    bencher.bench_local(|| {
        let begin = clock::ticks();
        let end = clock::ticks();
        assert!(writer.push(&divan::black_box(span(end - begin))));
    });
}

#[divan::bench(sample_size = 1000, sample_count = 1000)]
fn clock_read() -> u64 {
    clock::ticks()
}
