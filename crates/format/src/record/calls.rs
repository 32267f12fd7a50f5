//! Records of calls inside a step that are timed by themselves, and of what encoders are given: kinds 22 and 23.

use super::{halves, high, low, milliseconds, milliseconds_bits};

/// GPU time of one call inside a step. The host's record of the same call is a span (`encoder`, `cross_attention`).
///
/// Payload: word 3 `ms`, `after_ms` (bits of `f32`, low half first; NaN = not measured) · word 4 `call`, 0 · word 5
/// `read_after_us`, 0 · word 6 0.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct GpuCall {
    /// From its first to its last kernel, in milliseconds.
    pub ms: Option<f32>,
    /// From the last kernel of the step before to its first, in milliseconds.
    pub after_ms: Option<f32>,
    /// Which of the step's calls, from 0: as many of the host's spans of such calls in this step come before its own.
    pub call: u32,
    /// Microseconds from the record's ticks (the host entering the call) to the moment it was found done.
    pub read_after_us: u32,
}

impl GpuCall {
    pub(super) fn words(self) -> [u64; 4] {
        [
            halves(milliseconds_bits(self.ms), milliseconds_bits(self.after_ms)),
            halves(self.call, 0),
            halves(self.read_after_us, 0),
            0,
        ]
    }

    pub(super) fn of([a, b, c, _]: [u64; 4]) -> Self {
        Self { ms: milliseconds(low(a)), after_ms: milliseconds(high(a)), call: low(b), read_after_us: low(c) }
    }
}

/// The scheduler needs the output of an encoder for one input (an image, a piece of audio) of a request. The record's name
/// says what becomes of it: `computed`, `cached`, `no_room` or `no_budget`.
///
/// Payload: word 3 `embeddings`, `evicted` · word 4 `held`, `size` · word 5 modality (string id), 0 · word 6 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EncoderInput {
    /// Embeddings that it becomes.
    pub embeddings: u32,
    /// Outputs that were thrown out of the cache since the record before.
    pub evicted: u32,
    /// Embeddings in the cache that requests need.
    pub held: u32,
    /// Embeddings that the cache has room for.
    pub size: u32,
    /// String id of its modality: `image`, `audio`, …; 0 = unknown.
    pub modality: u32,
}

impl EncoderInput {
    pub(super) fn words(self) -> [u64; 4] {
        [halves(self.embeddings, self.evicted), halves(self.held, self.size), halves(self.modality, 0), 0]
    }

    pub(super) fn of([a, b, c, _]: [u64; 4]) -> Self {
        Self { embeddings: low(a), evicted: high(a), held: low(b), size: high(b), modality: low(c) }
    }
}
