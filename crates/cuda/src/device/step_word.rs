//! Tells kernels which step runs.
//!
//! A word on the GPU, set in the order of the stream, before what a step launches. Kernels that are launched, or captured into
//! graphs, find there how many tokens are real and where their stamps go. While no step of real work runs (warm-up, captures,
//! dummy batches) it says so: 0 valid tokens, no row for stamps.

use super::code::{parameter, to};
use super::{DeviceCode, DeviceError, DeviceMemory, DevicePointer, Function, LaunchShape};
use crate::driver::{Failure, Stream};

/// Bytes of the word: `valid_tokens: u32, stamp_row: u32` (`step_word.cuh`).
const BYTES: usize = 8;

/// The step word on the GPU, and what it was set to.
#[derive(Debug)]
pub struct StepWord {
    memory: DeviceMemory,
    is_set: bool,
    /// The driver writes it by itself, which costs the host less than half of what a kernel does.
    is_written: bool,
}

impl StepWord {
    /// A word that says that no step runs.
    ///
    /// # Errors
    /// What the driver said.
    pub fn new(code: &DeviceCode, stream: Stream) -> Result<Self, DeviceError> {
        let memory = DeviceMemory::zeroed(code, BYTES, stream)?;
        let mut word = Self { memory, is_set: false, is_written: false };
        // The kernel is loaded by now if the driver loads code lazily.
        to("launch a kernel of ours", word.clear(code, stream))?;
        // SAFETY: the word, which is never freed. A device that cannot do this says so at once.
        word.is_written = unsafe { code.calls.write_word(word.pointer(), 0, stream) } == Some(Ok(()));
        Ok(word)
    }

    /// Where it is, for kernels.
    pub fn pointer(&self) -> DevicePointer {
        self.memory.pointer()
    }

    /// A step of real work begins: what is launched on the stream from here on finds it.
    ///
    /// `valid_tokens`: tokens of the batch without padding. `stamp_row`: row of the ring for stamps, plus 1; 0 = none.
    /// Not while the stream is being captured.
    ///
    /// # Errors
    /// What the driver said.
    pub fn set(
        &mut self,
        code: &DeviceCode,
        stream: Stream,
        mut valid_tokens: u32,
        mut stamp_row: u32,
    ) -> Result<(), Failure> {
        let mut word = self.pointer();
        let value = u64::from(valid_tokens) | u64::from(stamp_row) << 32;
        // SAFETY: the word, which is never freed.
        let written = self.is_written.then(|| unsafe { code.calls.write_word(word, value, stream) }).flatten();
        if let Some(written) = written {
            written?;
        } else {
            let mut parameters = [parameter(&mut word), parameter(&mut valid_tokens), parameter(&mut stamp_row)];
            // SAFETY: the kernel's three parameters; the word is never freed.
            unsafe { code.launch(Function::SetStepWord, LaunchShape::ONE_THREAD, stream, &mut parameters) }?;
        }
        self.is_set = value != 0;
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
        self.set(code, stream, 0, 0)
    }
}
