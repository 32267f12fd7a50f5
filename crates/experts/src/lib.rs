//! The load of experts in mixture-of-experts layers, as it is counted where the model runs.
//!
//! ```text
//! counters  how the counters of all layers lie in memory, on a CPU or on a GPU
//! count     counting what a router chose, on the CPU
//! book      what came on since the counters were read, as records
//! ```
//! Counters only grow. Who reads them takes differences, so nothing is ever set back while a model runs.

mod book;
mod count;
mod counters;

pub use book::Book;
pub use count::{Element, Matrix, Tokens, count_chosen, count_weights};
pub use counters::{Counters, Layer, MOST_WORDS, TooMany};
