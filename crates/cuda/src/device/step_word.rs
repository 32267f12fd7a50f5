//! Tells kernels which step runs.
//!
//! A few words on the GPU, set in the order of the stream once per step, before what the step launches. Kernels that are
//! launched, or captured into graphs, find there which step they work for. While no step of real work runs (warm-up, captures,
//! dummy batches) it says so: 0 valid tokens, no row for stamps.

use super::code::{parameter, to};
use super::{DeviceCode, DeviceError, DeviceMemory, DevicePointer, Function, LaunchShape};
use crate::driver::{Failure, Stream};

/// Bytes of the word: `step: u64, valid_tokens: u32, stamp_row: u32` (`step_word.cuh`).
const BYTES: usize = 16;

/// The step word on the GPU, and what it was set to.
#[derive(Debug)]
pub struct StepWord {
    memory: DeviceMemory,
    is_set: bool,
}

impl StepWord {
    /// A word that says that no step runs.
    ///
    /// # Errors
    /// What the driver said.
    pub fn new(code: &DeviceCode, stream: Stream) -> Result<Self, DeviceError> {
        let memory = DeviceMemory::zeroed(code, BYTES, stream)?;
        let mut word = Self { memory, is_set: false };
        // The kernel is loaded by now if the driver loads code lazily.
        to("launch a kernel of ours", word.set(code, stream, 0, 0, 0))?;
        Ok(word)
    }

    /// Where it is, for kernels.
    pub fn pointer(&self) -> DevicePointer {
        self.memory.pointer()
    }

    /// A step of real work begins: what is launched on the stream from here on finds it.
    ///
    /// `valid_tokens`: tokens of the batch without padding. `stamp_row`: row of the ring for stamps, plus 1; 0 = none.
    ///
    /// # Errors
    /// What the driver said.
    pub fn set(
        &mut self,
        code: &DeviceCode,
        stream: Stream,
        mut step: u64,
        mut valid_tokens: u32,
        mut stamp_row: u32,
    ) -> Result<(), Failure> {
        let mut word = self.pointer();
        let mut parameters =
            [parameter(&mut word), parameter(&mut step), parameter(&mut valid_tokens), parameter(&mut stamp_row)];
        // SAFETY: the kernel's four parameters; the word is never freed.
        unsafe { code.launch(Function::SetStepWord, LaunchShape::ONE_THREAD, stream, &mut parameters) }?;
        self.is_set = valid_tokens != 0 || stamp_row != 0;
        Ok(())
    }

    /// Whether it says that a step of real work runs, to what is launched now.
    pub fn is_set(&self) -> bool {
        self.is_set
    }

    /// No step of real work runs from here on.
    ///
    /// # Errors
    /// What the driver said.
    pub fn clear(&mut self, code: &DeviceCode, stream: Stream) -> Result<(), Failure> {
        self.set(code, stream, 0, 0, 0)
    }
}
