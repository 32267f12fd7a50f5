//! Memory on the GPU, and memory of the host that the GPU can write to.
//!
//! It is never freed: a graph that was captured may write to it as long as the process lives, and so may a copy that is
//! under way. So it is allocated once, when device code is loaded, and is bounded.

use super::code::to;
use super::{DeviceCode, DeviceError, DevicePointer};
use crate::driver::Stream;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};

/// Most bytes of one allocation.
const MOST_BYTES: usize = 16 << 20;

fn check_size(bytes: usize) -> Result<(), DeviceError> {
    if bytes > MOST_BYTES { Err(DeviceError::TooLarge { bytes, most: MOST_BYTES }) } else { Ok(()) }
}

/// Memory on the GPU, of ours for the life of the process.
#[derive(Debug, Clone, Copy)]
pub struct DeviceMemory {
    pointer: DevicePointer,
    bytes: usize,
}

impl DeviceMemory {
    /// So many bytes, zero for whatever comes behind this on the stream.
    ///
    /// # Errors
    /// More than 16 MiB, or what the driver said.
    pub fn zeroed(code: &DeviceCode, bytes: usize, stream: Stream) -> Result<Self, DeviceError> {
        check_size(bytes)?;
        let pointer = to("allocate memory on the GPU", code.calls.allocate(bytes))?;
        // SAFETY: just allocated, with so many bytes.
        to("zero memory on the GPU", unsafe { code.calls.zero(pointer, bytes, stream) })?;
        Ok(Self { pointer, bytes })
    }

    /// Where it is.
    pub fn pointer(&self) -> DevicePointer {
        self.pointer
    }

    /// How much it is.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Memory of the host that the GPU can write to, of ours for the life of the process.
#[derive(Debug)]
pub struct PinnedMemory {
    here: NonZeroUsize,
    there: DevicePointer,
    bytes: usize,
}

impl PinnedMemory {
    /// So many bytes, zero.
    ///
    /// # Errors
    /// More than 16 MiB, or what the driver said.
    pub fn allocate(code: &DeviceCode, bytes: usize) -> Result<Self, DeviceError> {
        check_size(bytes)?;
        let (here, there) = to("allocate pinned memory", code.calls.allocate_host(bytes))?;
        // SAFETY: just allocated, with so many bytes.
        unsafe { std::ptr::write_bytes(here.get() as *mut u8, 0, bytes) };
        Ok(Self { here, there, bytes })
    }

    /// Where it is to the GPU.
    pub(crate) fn on_device(&self) -> DevicePointer {
        self.there
    }

    pub(crate) fn on_host(&self) -> *mut u8 {
        self.here.get() as *mut u8
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Its 8-byte words. The GPU may be writing: each is read whole, as it is at that moment.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: allocated with so many bytes, aligned to pages by the driver, never freed; an atomic word may be read
        // whatever it holds, while the GPU writes it too.
        unsafe { std::slice::from_raw_parts(self.here.get() as *const AtomicU64, self.bytes / 8) }
    }

    /// One of its words.
    pub fn word(&self, at: usize) -> u64 {
        self.words()[at].load(Ordering::Acquire)
    }
}
