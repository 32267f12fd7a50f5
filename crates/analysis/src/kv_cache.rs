//! The KV cache: blocks in use after every call of the scheduler, evictions, and what the prefix cache found.

use std::collections::BTreeMap;

use profilemate_session::{Component, Event, Payload, Session};

use crate::Context;
use crate::batch::percent;
use crate::statistics::Samples;

/// One pool of blocks after a call of the scheduler. `None` = not known.
#[derive(Debug, Clone, Copy)]
pub struct Usage<'a> {
    /// When: nanoseconds since the session's start.
    pub at_ns: i64,
    /// Blocks that requests hold.
    pub used: u32,
    /// Blocks that there are.
    pub total: u32,
    /// Blocks that the prefix cache can find, held by requests or not.
    pub cached: u32,
    /// Tokens that the prefix cache found, of prompts that were admitted.
    pub prefix_hit_tokens: Option<u32>,
    /// Tokens that it was asked for.
    pub prefix_query_tokens: Option<u32>,
    /// Blocks that were given to requests since the row before.
    pub allocated: Option<u64>,
    /// Blocks that requests gave back since the row before.
    pub freed: Option<u64>,
    /// Cached blocks that were emptied for other use since the row before.
    pub evicted: Option<u32>,
    /// Engine step; `None` = none.
    pub step: Option<u64>,
    /// Name of the pool; empty for the only one.
    pub pool: &'a str,
    /// The engine: `engine_core-0`.
    pub process: &'a str,
}

/// A cached block that was emptied for other use.
#[derive(Debug, Clone, Copy)]
pub struct Eviction<'a> {
    /// When: nanoseconds since the session's start.
    pub at_ns: i64,
    /// Since it was given to a request, nanoseconds.
    pub lifetime_ns: u64,
    /// Since it was last given out or found, nanoseconds.
    pub idle_ns: u64,
    /// How often the prefix cache found it.
    pub accesses: u32,
    /// Its number.
    pub block: u32,
    /// Only one block in so many is followed.
    pub stands_for: u32,
    /// Name of the pool; empty for the only one.
    pub pool: &'a str,
    /// The engine: `engine_core-0`.
    pub process: &'a str,
}

/// What is said of one pool, or of all. `None` = not known.
#[derive(Debug, Clone, Default)]
pub struct PoolSummary {
    /// Name of the pool; empty for the only one.
    pub pool: String,
    /// The engine.
    pub process: String,
    /// Blocks that there are.
    pub total_blocks: u64,
    /// Most that were held at once.
    pub peak_blocks: u64,
    /// Mean share in use over the steps, percent.
    pub mean_usage_pct: Option<f64>,
    /// Blocks that were given to requests.
    pub allocations: Option<u64>,
    /// Blocks that were given back.
    pub frees: Option<u64>,
    /// Cached blocks that were emptied for other use.
    pub evictions: Option<u64>,
}

impl PoolSummary {
    /// Greatest share in use, percent.
    pub fn peak_usage_pct(&self) -> Option<f64> {
        percent(self.peak_blocks, self.total_blocks)
    }
}

/// What is said of the KV cache.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    /// Every pool of every engine, in the order of engines.
    pub pools: Vec<PoolSummary>,
    /// Tokens of a block.
    pub block_size: Option<u64>,
    /// Tokens that the prefix cache was asked for.
    pub prefix_query_tokens: Option<u64>,
    /// Tokens that it found.
    pub prefix_hit_tokens: Option<u64>,
    /// Lifetimes of evicted blocks that were followed.
    pub lifetimes: Samples,
    /// Idle times of the same.
    pub idle_times: Samples,
}

/// Sums being made for a pool.
#[derive(Debug, Clone, Default)]
struct Pool {
    total: u64,
    peak: u64,
    shares: f64,
    rows: u64,
    used_before: u32,
    allocations: Option<u64>,
    frees: Option<u64>,
    evictions: Option<u64>,
}

fn known(value: u32) -> Option<u32> {
    Some(value).filter(|value| *value != u32::MAX)
}

fn add(sum: &mut Option<u64>, value: Option<u64>) {
    if let Some(value) = value {
        *sum = Some(sum.unwrap_or(0).saturating_add(value));
    }
}

#[derive(Debug)]
pub(crate) struct Collector {
    /// By log and name of the pool.
    pools: BTreeMap<(usize, u32), Pool>,
    summary: Summary,
}

impl Collector {
    pub(crate) fn new(session: &Session) -> Self {
        let block_size =
            session.logs.iter().find_map(|log| log.head.fact("kv_block_size")).and_then(|size| size.parse().ok());
        Self { pools: BTreeMap::new(), summary: Summary { block_size, ..Summary::default() } }
    }

    #[inline]
    pub(crate) fn see_usage<'a>(&mut self, context: &Context<'a>, event: &Event) -> Option<Usage<'a>> {
        let Payload::KvCache(record) = &event.record.payload else { return None };
        let pool = self.pools.entry((event.log, event.record.name)).or_default();
        let reused = known(record.reused).map(u64::from);
        let allocated = known(record.allocated).map(u64::from).zip(reused).map(|(new, reused)| new + reused);
        // What went out and is not held any more came back.
        let freed = allocated
            .map(|allocated| (u64::from(pool.used_before) + allocated).saturating_sub(u64::from(record.used)));
        let evicted = known(record.evicted);
        let (queries, hits) = (known(record.prefix_query_tokens), known(record.prefix_hit_tokens));
        pool.used_before = record.used;
        pool.total = u64::from(record.total);
        pool.peak = pool.peak.max(u64::from(record.used));
        pool.shares += percent(u64::from(record.used), u64::from(record.total)).unwrap_or(0.0);
        pool.rows += 1;
        add(&mut pool.allocations, allocated);
        add(&mut pool.frees, freed);
        add(&mut pool.evictions, evicted.map(u64::from));
        add(&mut self.summary.prefix_query_tokens, queries.map(u64::from));
        add(&mut self.summary.prefix_hit_tokens, hits.map(u64::from));
        let log = &context.session.logs[event.log];
        Some(Usage {
            at_ns: event.start_ns,
            used: record.used,
            total: record.total,
            cached: record.cached,
            prefix_hit_tokens: hits,
            prefix_query_tokens: queries,
            allocated,
            freed,
            evicted,
            step: Some(event.record.step).filter(|step| *step != 0),
            pool: log.head.string(event.record.name).unwrap_or(""),
            process: log.process(Component::EngineCore),
        })
    }

    #[inline]
    pub(crate) fn see_eviction<'a>(&mut self, context: &Context<'a>, event: &Event) -> Option<Eviction<'a>> {
        let Payload::KvEviction(record) = &event.record.payload else { return None };
        let log = &context.session.logs[event.log];
        let lifetime_ns = log.clock.duration_ns(record.lifetime_ticks);
        let idle_ns = log.clock.duration_ns(record.idle_ticks);
        self.summary.lifetimes.push(lifetime_ns);
        self.summary.idle_times.push(idle_ns);
        Some(Eviction {
            at_ns: event.start_ns,
            lifetime_ns,
            idle_ns,
            accesses: record.accesses,
            block: record.block,
            stands_for: record.stands_for,
            pool: log.head.string(event.record.name).unwrap_or(""),
            process: log.process(Component::EngineCore),
        })
    }

    pub(crate) fn finish(self, session: &Session) -> Summary {
        let mut summary = self.summary;
        summary.pools = self
            .pools
            .into_iter()
            .map(|((log, name), pool)| {
                let log = &session.logs[log];
                PoolSummary {
                    pool: log.head.string(name).unwrap_or("").to_owned(),
                    process: log.process(Component::EngineCore).to_owned(),
                    total_blocks: pool.total,
                    peak_blocks: pool.peak,
                    mean_usage_pct: (pool.rows > 0).then(|| pool.shares / pool.rows as f64),
                    allocations: pool.allocations,
                    frees: pool.frees,
                    evictions: pool.evictions,
                }
            })
            .collect();
        summary
    }
}
