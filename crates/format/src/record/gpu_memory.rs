//! Records of GPU memory: kinds 26 and 27.

use super::{halves, high, known, low, or_unknown};

fn long(value: Option<u64>) -> u64 {
    value.unwrap_or(u64::MAX)
}

fn known_long(value: u64) -> Option<u64> {
    Some(value).filter(|value| *value != u64::MAX)
}

/// Memory of a worker's GPU, in bytes, at the beginning of a step. `None` = not known.
///
/// Payload: word 3 `allocated` · word 4 `reserved` · word 5 `free` · word 6 `total`; `u64::MAX` = unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GpuMemory {
    /// What torch's allocator has handed out.
    pub allocated: Option<u64>,
    /// What it has taken from the driver.
    pub reserved: Option<u64>,
    /// What the driver has left on the device.
    pub free: Option<u64>,
    /// What the device has.
    pub total: Option<u64>,
}

impl GpuMemory {
    pub(super) fn words(self) -> [u64; 4] {
        [long(self.allocated), long(self.reserved), long(self.free), long(self.total)]
    }

    pub(super) fn of([a, b, c, d]: [u64; 4]) -> Self {
        Self { allocated: known_long(a), reserved: known_long(b), free: known_long(c), total: known_long(d) }
    }
}

/// More of the same sample, written before it.
///
/// Payload: word 3 `peak_allocated` · word 4 `peak_reserved` · word 5 `inactive_split`; `u64::MAX` = unknown · word 6
/// `retries`, `out_of_memory`; `u32::MAX` = unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GpuMemoryMore {
    /// Most that was handed out at once, since somebody last reset it.
    pub peak_allocated: Option<u64>,
    /// Most that was taken from the driver, since then.
    pub peak_reserved: Option<u64>,
    /// Free pieces of blocks of which other pieces are in use: they cannot be given back.
    pub inactive_split: Option<u64>,
    /// How often it had to give back what it kept to serve a request, so far.
    pub retries: Option<u32>,
    /// How often it had nothing left, so far.
    pub out_of_memory: Option<u32>,
}

impl GpuMemoryMore {
    pub(super) fn words(self) -> [u64; 4] {
        [
            long(self.peak_allocated),
            long(self.peak_reserved),
            long(self.inactive_split),
            halves(or_unknown(self.retries), or_unknown(self.out_of_memory)),
        ]
    }

    pub(super) fn of([a, b, c, d]: [u64; 4]) -> Self {
        Self {
            peak_allocated: known_long(a),
            peak_reserved: known_long(b),
            inactive_split: known_long(c),
            retries: known(low(d)),
            out_of_memory: known(high(d)),
        }
    }
}
