//! Records of what happens inside a forward pass, on the GPU's clock.

use super::{halves, high, known, low, or_unknown};

/// How long a part of the model took in one step. The record's name is the component, its ticks are when the host began the step.
///
/// Payload: word 3 begin · word 4 duration in nanoseconds, layer · word 5 kind (string id), pair · word 6 zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LayerTime {
    /// When it began, nanoseconds on the GPU's clock ([`GpuClock`]).
    pub begin_gpu_ns: u64,
    /// How long it took, nanoseconds.
    pub duration_ns: u32,
    /// Number of the layer; `None` = it belongs to none.
    pub layer: Option<u32>,
    /// String id of the kind of layer; 0 = none.
    pub kind: u32,
    /// Number of the place in the model: the same for every step and, in a model that is split over several GPUs, for all of them.
    pub pair: u32,
}

impl LayerTime {
    pub(super) fn words(self) -> [u64; 4] {
        [self.begin_gpu_ns, halves(self.duration_ns, or_unknown(self.layer)), halves(self.kind, self.pair), 0]
    }

    pub(super) fn of([a, b, c, _]: [u64; 4]) -> Self {
        Self { begin_gpu_ns: a, duration_ns: low(b), layer: known(high(b)), kind: low(c), pair: high(c) }
    }
}

/// The GPU's clock at the record's ticks.
///
/// Payload: word 3 the GPU's clock · word 4 how far off it may be, nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GpuClock {
    /// The GPU's clock, nanoseconds (`%globaltimer`).
    pub gpu_ns: u64,
    /// How far off it may be, nanoseconds either way.
    pub error_ns: u64,
}

impl GpuClock {
    pub(super) fn words(self) -> [u64; 4] {
        [self.gpu_ns, self.error_ns, 0, 0]
    }

    pub(super) fn of([a, b, _, _]: [u64; 4]) -> Self {
        Self { gpu_ns: a, error_ns: b }
    }
}
