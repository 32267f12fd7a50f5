//! Why steps and requests were slow: every verdict in a session where it is true, and in one where it is nearly true.

#![allow(clippy::unwrap_used, clippy::float_cmp, reason = "a test; what is compared is exact")]

#[path = "explain/in_flight.rs"]
mod in_flight;
#[path = "explain/life.rs"]
mod life;
#[path = "explain/requests.rs"]
mod requests;
#[path = "explain/run.rs"]
mod run;
#[path = "explain/steps.rs"]
mod steps;

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "../../session/tests/common/mod.rs"]
mod common;
