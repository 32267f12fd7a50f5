//! Everything that runs on the GPU, or is launched to it.
//!
//! Sources are the `*.cu` beside this file; what the driver gets is the PTX made from them (`scripts/build_device_code.py`),
//! which it compiles for the GPU at hand. Code is loaded before vLLM captures its graphs, so that what is launched into them
//! is there; memory that a graph may touch is never freed.
//!
//! - [`DeviceCode`]: the kernels, loaded.
//! - [`DeviceMemory`], [`PinnedMemory`]: bounded memory on the GPU, and memory of the host that it can write to.
//! - [`StepWord`]: tells kernels which step runs and how many of its rows are real.
//! - [`ExpertCounters`]: how often routers chose each expert.
//! - [`ReadBack`]: copies from the GPU beside vLLM's work, and says later that it is done.
//! - [`Stamps`]: the GPU's clock at places of a step, inside of graphs too.
//! - [`ClockWatch`]: ties that clock to the host's.
//!
//! Nothing here waits for the GPU.

mod calls;
mod clock;
mod code;
mod expert_counts;
mod memory;
mod read_back;
mod stamps;
mod step_word;

pub use calls::DevicePointer;
pub(crate) use calls::{DeviceCalls, LaunchShape};
pub use clock::{ClockSightings, ClockWatch, Sighting};
pub(crate) use code::Function;
pub use code::{DeviceCode, DeviceError};
pub use expert_counts::{Cells, ExpertCounters, MOST_EXPERTS, Weight};
pub use memory::{DeviceMemory, PinnedMemory};
pub use read_back::ReadBack;
pub use stamps::{Interval, Stamps};
pub use step_word::StepWord;
