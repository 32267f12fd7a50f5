//! The rules of findings. Each has a server of which it is true, and some of which it is nearly true and must not fire.

#![allow(clippy::unwrap_used, clippy::float_cmp, clippy::panic, reason = "a test; what is compared is exact")]

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "../../../session/tests/common/mod.rs"]
mod common;

mod batches;
mod cuda_graphs;
mod encoder;
mod garbage;
mod host;
mod kv_cache;
mod moe_experts;
mod preemption;
mod queue;
mod random;
mod ranks;
mod sampling;
mod server;
