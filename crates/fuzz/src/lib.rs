//! What the fuzz targets do with bytes from outside: one file for each thing that is read. Each says what must hold for
//! any bytes, beyond that nothing panics, and how much memory may be used.
//!
//! `fuzz/` has the programs that libFuzzer drives (`scripts/fuzz.sh` runs them) and the corpus that they kept; a test here runs
//! every target over the corpus, so that what was found once is found by `cargo test`.
//!
//! ```text
//! head         the head of a raw log                 settings      variables and profilemate.toml
//! segment      a segment: header and slots           vllm_log      a log of vLLM's, imported
//! record       the words of a record                 vllm_log_line one line of it
//! session      a whole session folder                condition     `--fail-on`, names, descriptors
//! outputs      … and every output that is made of it command_line  secrets in command lines
//! pieces       input that is a script of a session   memory        bounds
//! ```

#![expect(clippy::missing_panics_doc, reason = "a target panics when what it checks does not hold")]

pub mod command_line;
pub mod condition;
pub mod head;
mod memory;
pub mod outputs;
pub mod pieces;
pub mod record;
mod scratch;
pub mod segment;
pub mod session;
pub mod settings;
pub mod vllm_log;
pub mod vllm_log_line;

/// A target: its name, which is that of its folder in the corpus, and what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

/// All of them, for the replay. A program of libFuzzer calls its own, so that nothing else is in it: libFuzzer looks at the
/// counters of all that is, after every input.
pub const TARGETS: [Target; 10] = [
    ("head", head::run),
    ("segment", segment::run),
    ("record", record::run),
    ("session", session::run),
    ("outputs", outputs::run),
    ("settings", settings::run),
    ("vllm_log", vllm_log::run),
    ("vllm_log_line", vllm_log_line::run),
    ("condition", condition::run),
    ("command_line", command_line::run),
];

/// Takes one byte off the front; 0 when there is none.
fn byte(data: &mut &[u8]) -> u8 {
    let Some((first, rest)) = data.split_first() else { return 0 };
    *data = rest;
    *first
}

/// Takes up to `count` bytes off the front.
fn take<'a>(data: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (taken, rest) = data.split_at(count.min(data.len()));
    *data = rest;
    taken
}

/// Takes a number of 16 bits off the front.
fn number(data: &mut &[u8]) -> usize {
    usize::from(byte(data)) | usize::from(byte(data)) << 8
}
