//! What others recorded, made into a session that every command reads.
//!
//! An importer writes raw logs and nothing else, so it knows no table and no analysis. What its source does not say stays
//! unknown: a profiler without data says `could not attach: not in the log`, and has no table.

pub mod vllm_log;
