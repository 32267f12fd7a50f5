//! Records of the KV cache: kinds 15 and 16.

use super::{halves, high, low};

/// One pool of KV cache blocks after a call of the scheduler. The record's name is that of the pool; 0 = the only one.
///
/// Payload: eight `u32`, in the order of the fields; in the last five `u32::MAX` = unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KvCache {
    /// Blocks that requests hold.
    pub used: u32,
    /// Blocks that there are for requests.
    pub total: u32,
    /// Blocks that the prefix cache can find, held by requests or not.
    pub cached: u32,
    /// Blocks that were given to requests since the record before, empty.
    pub allocated: u32,
    /// Blocks that were given to requests since the record before because the prefix cache found them, and were free.
    pub reused: u32,
    /// Cached blocks that were emptied for other use since the record before.
    pub evicted: u32,
    /// Tokens that were looked up in the prefix cache since the record before.
    pub prefix_query_tokens: u32,
    /// Those that were found.
    pub prefix_hit_tokens: u32,
}

impl KvCache {
    pub(super) fn words(self) -> [u64; 4] {
        [
            halves(self.used, self.total),
            halves(self.cached, self.allocated),
            halves(self.reused, self.evicted),
            halves(self.prefix_query_tokens, self.prefix_hit_tokens),
        ]
    }

    pub(super) fn of([a, b, c, d]: [u64; 4]) -> Self {
        Self {
            used: low(a),
            total: high(a),
            cached: low(b),
            allocated: high(b),
            reused: low(c),
            evicted: high(c),
            prefix_query_tokens: low(d),
            prefix_hit_tokens: high(d),
        }
    }
}

/// A cached block was emptied for other use. The record's name is that of the pool.
///
/// Payload: word 3 `lifetime_ticks` · word 4 `idle_ticks` · word 5 `accesses`, `block` · word 6 `stands_for`, 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KvEviction {
    /// Since it was given to a request, in ticks.
    pub lifetime_ticks: u64,
    /// Since it was last given out, or found by the prefix cache, in ticks.
    pub idle_ticks: u64,
    /// How often the prefix cache found it.
    pub accesses: u32,
    /// Its number.
    pub block: u32,
    /// Only one in so many blocks is followed.
    pub stands_for: u32,
}

impl KvEviction {
    pub(super) fn words(self) -> [u64; 4] {
        [self.lifetime_ticks, self.idle_ticks, halves(self.accesses, self.block), halves(self.stands_for, 0)]
    }

    pub(super) fn of([a, b, c, d]: [u64; 4]) -> Self {
        Self { lifetime_ticks: a, idle_ticks: b, accesses: low(c), block: high(c), stands_for: low(d) }
    }
}
