//! Tests of the recorder from outside: what is on disk after kills, forks, full disks and long runs.
//!
//! One program with many tests. A test that needs a process of its own runs this program again for its own name alone,
//! see [`support::Child`].
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "helpers of tests stand outside of test functions")]

mod bounds;
mod disk_full;
mod fork;
mod golden;
mod host;
mod hot_path;
mod kill;
mod liveness;
mod memory;
mod single_step;
mod support;
mod truncated;
