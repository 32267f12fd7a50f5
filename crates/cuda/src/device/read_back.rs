//! Copies from the GPU beside vLLM's work.
//!
//! A copy goes on our own stream, behind an event on vLLM's: it takes what the GPU has written by then, and vLLM's stream does
//! not wait for it. Whether it is done is asked in a later step, and never waited for.

use super::code::to;
use super::{DeviceCode, DeviceError, DevicePointer, PinnedMemory};
use crate::driver::{Event, Failure, Stream};

/// One copy at a time, to pinned memory of its own.
#[derive(Debug)]
pub struct ReadBack {
    pinned: PinnedMemory,
    /// On vLLM's stream: what is to be copied is there.
    written: Event,
    /// On ours: the copy is done.
    copied: Event,
    under_way: bool,
}

impl ReadBack {
    /// For copies of so many bytes at most.
    ///
    /// # Errors
    /// More than 16 MiB, or what the driver said.
    pub fn new(code: &DeviceCode, bytes: usize) -> Result<Self, DeviceError> {
        Ok(Self {
            pinned: PinnedMemory::allocate(code, bytes)?,
            written: to("make an event", code.calls.create_plain_event())?,
            copied: to("make an event", code.calls.create_plain_event())?,
            under_way: false,
        })
    }

    /// Whether a copy was begun and has not been found done.
    pub fn is_under_way(&self) -> bool {
        self.under_way
    }

    /// Begins to copy these parts, one behind the other, as they are when the GPU has done what was launched on `stream` so far.
    ///
    /// Not while a copy is under way, or the stream is being captured. On an error nothing is under way.
    ///
    /// # Errors
    /// What the driver said.
    ///
    /// # Panics
    /// The parts are longer than the copies that this was made for.
    pub fn begin(
        &mut self,
        code: &DeviceCode,
        stream: Stream,
        parts: &[(DevicePointer, usize)],
    ) -> Result<(), Failure> {
        assert!(parts.iter().map(|(_, bytes)| bytes).sum::<usize>() <= self.pinned.bytes(), "too long a copy");
        code.driver.record(self.written, stream)?;
        code.calls.order_behind(code.side, self.written)?;
        let mut at = 0;
        for (from, bytes) in parts {
            // SAFETY: within the pinned memory (checked above), which nobody reads until the copy is done.
            unsafe { code.calls.copy_to_host(self.pinned.on_host().add(at).cast(), *from, *bytes, code.side) }?;
            at += bytes;
        }
        code.driver.record(self.copied, code.side)?;
        self.under_way = true;
        Ok(())
    }

    /// The pinned memory, if the copy that was under way is done.
    ///
    /// # Errors
    /// What the driver said; the copy is given up then.
    pub fn done(&mut self, code: &DeviceCode) -> Result<Option<&PinnedMemory>, Failure> {
        if !self.under_way {
            return Ok(None);
        }
        match code.driver.has_passed(self.copied) {
            Ok(true) => {
                self.under_way = false;
                Ok(Some(&self.pinned))
            }
            Ok(false) => Ok(None),
            Err(failure) => {
                self.under_way = false;
                Err(failure)
            }
        }
    }

    /// What the copy that was found done last has brought, until the next one begins.
    pub fn memory(&self) -> &PinnedMemory {
        &self.pinned
    }
}
