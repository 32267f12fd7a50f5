//! GPU time of an engine step, from the GPU's own clock, and the code of ours that runs on the GPU ([`device`]).
//!
//! Events are recorded on the stream that vLLM launches on ([`Timer`]), and read by a thread of ours once the GPU has
//! passed them ([`Reader`]). Nothing here waits for the GPU, makes a context, or loads a driver: where no CUDA driver is
//! loaded into the process, there is none.

pub mod device;
mod driver;
mod pace;
mod reader;
mod step;
mod timer;

pub use driver::{Driver, Failure, Stream};
pub use reader::{Reader, ReaderThread};
pub use step::{Clock, Counters, Mark, StepInfo, StepTimes};
pub use timer::Timer;
