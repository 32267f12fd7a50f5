//! GPU time of an engine step, from the GPU's own clock.
//!
//! Events are recorded on the stream that vLLM launches on, and read in a later step, once the GPU has passed them.
//! Nothing here waits for the GPU, makes a context, or loads a driver: where no CUDA driver is loaded into the process,
//! there is none.

mod driver;
mod timer;

pub use driver::{Driver, Failure, Stream};
pub use timer::{Counters, Mark, StepInfo, StepTimes, Timer};
