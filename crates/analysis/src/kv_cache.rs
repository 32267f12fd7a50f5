//! The KV cache: blocks in use after every call of the scheduler, evictions, and what the prefix cache found.

use std::collections::BTreeMap;

use profilemate_session::record::FLAG_SHARE;
use profilemate_session::{Component, Event, Payload, Session};

use crate::batch::percent;
use crate::statistics::{Distribution, Samples};
use crate::{Context, Row};

/// Share in use over which a pool counts as full, percent.
pub const FULL_PCT: f64 = 90.0;

/// One pool of blocks after a call of the scheduler. `None` = not known.
#[derive(Debug, Clone, Copy)]
pub struct Usage<'a> {
    /// When: nanoseconds since the session's start.
    pub at_ns: i64,
    /// Blocks that requests hold.
    pub used: u32,
    /// Blocks that there are.
    pub total: u32,
    /// Blocks that the prefix cache can find, held by requests or not; `None` = not known.
    pub cached: Option<u32>,
    /// Whether only the share is known: then blocks are thousandths of all.
    pub is_share: bool,
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
    /// Index of its log in the session.
    pub log: usize,
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
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PoolSummary {
    /// Name of the pool; empty for the only one of its engine, and for all together.
    pub pool: String,
    /// The engine; empty for all together.
    pub process: String,
    /// Blocks that there are.
    pub total_blocks: Option<u64>,
    /// Most that were held at once.
    pub peak_blocks: Option<u64>,
    /// Greatest share in use, percent, where blocks are not known.
    pub peak_share_pct: Option<f64>,
    /// Mean share in use over the rows, percent.
    pub mean_usage_pct: Option<f64>,
    /// Rows of the pool: calls of the scheduler.
    pub rows: u64,
    /// Those after which more than [`FULL_PCT`] of it was in use.
    pub full_rows: u64,
    /// Blocks that were given to requests.
    pub allocations: Option<u64>,
    /// Blocks that were given back.
    pub frees: Option<u64>,
    /// Cached blocks that were emptied for other use.
    pub evictions: Option<u64>,
    /// Lifetimes of evicted blocks that were followed, seconds.
    pub lifetime: Option<Distribution>,
    /// Idle times of the same, seconds.
    pub idle: Option<Distribution>,
    /// Of those that were followed, how many the prefix cache had found at least once.
    pub evicted_reused: u64,
    /// Tokens that the prefix cache was asked for.
    pub prefix_query_tokens: Option<u64>,
    /// Tokens that it found.
    pub prefix_hit_tokens: Option<u64>,
}

impl PoolSummary {
    /// Greatest share in use, percent.
    pub fn peak_usage_pct(&self) -> Option<f64> {
        self.peak_share_pct.or_else(|| percent(self.peak_blocks?, self.total_blocks?))
    }

    /// Share of the tokens that the prefix cache was asked for which it found, percent.
    pub fn prefix_hit_rate_pct(&self) -> Option<f64> {
        percent(self.prefix_hit_tokens?, self.prefix_query_tokens?)
    }
}

/// What is said of the KV cache.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Summary {
    /// All pools of all engines together.
    pub all: PoolSummary,
    /// Every pool of every engine, in the order of engines.
    pub pools: Vec<PoolSummary>,
    /// Tokens of a block.
    pub block_size: Option<u64>,
}

/// Sums being made for a pool, or for all.
#[derive(Debug, Clone, Default)]
struct Sums {
    shares: f64,
    rows: u64,
    full_rows: u64,
    evicted_reused: u64,
    peak: u64,
    allocations: Option<u64>,
    frees: Option<u64>,
    evictions: Option<u64>,
    prefix_query_tokens: Option<u64>,
    prefix_hit_tokens: Option<u64>,
    lifetimes: Samples,
    idle_times: Samples,
}

impl Sums {
    fn take(&mut self, other: &Self) {
        self.shares += other.shares;
        self.rows += other.rows;
        self.full_rows += other.full_rows;
        self.evicted_reused += other.evicted_reused;
        for (sum, value) in [
            (&mut self.allocations, other.allocations),
            (&mut self.frees, other.frees),
            (&mut self.evictions, other.evictions),
            (&mut self.prefix_query_tokens, other.prefix_query_tokens),
            (&mut self.prefix_hit_tokens, other.prefix_hit_tokens),
        ] {
            add(sum, value);
        }
        self.lifetimes.extend(&other.lifetimes);
        self.idle_times.extend(&other.idle_times);
    }

    fn summary(mut self, pool: String, process: String, total_blocks: u64, are_shares: bool) -> PoolSummary {
        let seconds = |nanoseconds: u64| nanoseconds as f64 / 1e9;
        let has_blocks = self.rows > 0 && !are_shares;
        let has_shares = self.rows > 0 && are_shares;
        PoolSummary {
            pool,
            process,
            total_blocks: has_blocks.then_some(total_blocks),
            peak_blocks: has_blocks.then_some(self.peak),
            peak_share_pct: has_shares.then(|| percent(self.peak, total_blocks)).flatten(),
            mean_usage_pct: (self.rows > 0).then(|| self.shares / self.rows as f64),
            rows: self.rows,
            full_rows: self.full_rows,
            evicted_reused: self.evicted_reused,
            allocations: self.allocations,
            frees: self.frees,
            evictions: self.evictions,
            lifetime: self.lifetimes.distribution(seconds),
            idle: self.idle_times.distribution(seconds),
            prefix_query_tokens: self.prefix_query_tokens,
            prefix_hit_tokens: self.prefix_hit_tokens,
        }
    }
}

/// A pool: one name in one log. An engine that was started again has the pools of the one before.
#[derive(Debug, Clone, Default)]
struct Pool {
    /// Blocks that were held last; `None` = no record said so yet.
    used: Option<u32>,
    total: u64,
    sums: Sums,
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
    /// Most blocks that were held at once in all pools.
    peak: u64,
    /// Blocks that are held in all pools.
    held: u64,
    /// Log and step of the last record: pools of one engine are written one after the other.
    moment: Option<(usize, u64)>,
    block_size: Option<u64>,
    /// Whether some record knew the share only.
    are_shares: bool,
}

impl Collector {
    pub(crate) fn new(session: &Session) -> Self {
        let block_size =
            session.logs.iter().find_map(|log| log.head.fact("kv_block_size")).and_then(|size| size.parse().ok());
        Self { pools: BTreeMap::new(), peak: 0, held: 0, moment: None, block_size, are_shares: false }
    }

    /// Hands out what an event says of the KV cache.
    pub(crate) fn see<E>(
        &mut self,
        context: &Context<'_>,
        event: &Event,
        row: &mut impl FnMut(Row<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        if let Some(found) = self.see_usage(context, event) {
            row(Row::KvUsage(found))?;
        }
        if let Some(found) = self.see_eviction(context, event) {
            row(Row::KvEviction(found))?;
        }
        Ok(())
    }

    #[inline]
    fn see_usage<'a>(&mut self, context: &Context<'a>, event: &Event) -> Option<Usage<'a>> {
        let Payload::KvCache(record) = &event.record.payload else { return None };
        let is_share = event.record.flags & FLAG_SHARE != 0;
        self.are_shares |= is_share;
        let moment = Some((event.log, event.record.step));
        if self.moment != moment {
            self.peak = self.peak.max(self.held);
            self.moment = moment;
        }
        let is_new = self.pools.get(&(event.log, event.record.name)).is_none_or(|pool| pool.sums.rows == 0);
        if is_new {
            self.replace(context.session, event);
        }
        let pool = self.pools.entry((event.log, event.record.name)).or_default();
        let reused = known(record.reused).map(u64::from);
        let allocated = known(record.allocated).map(u64::from).zip(reused).map(|(new, reused)| new + reused);
        // Before the first record nothing was held, unless older records are gone.
        let is_whole = context.session.logs[event.log].head.discarded == 0;
        let used_before = pool.used.or((is_new && is_whole).then_some(0));
        // What went out and is not held any more came back.
        let freed = allocated
            .zip(used_before)
            .and_then(|(allocated, before)| (u64::from(before) + allocated).checked_sub(u64::from(record.used)));
        let evicted = known(record.evicted);
        let (queries, hits) = (known(record.prefix_query_tokens), known(record.prefix_hit_tokens));
        self.held = self.held - u64::from(pool.used.unwrap_or(0)) + u64::from(record.used);
        pool.used = Some(record.used);
        pool.total = u64::from(record.total);
        let sums = &mut pool.sums;
        sums.peak = sums.peak.max(u64::from(record.used));
        let share = percent(u64::from(record.used), u64::from(record.total)).unwrap_or(0.0);
        sums.shares += share;
        sums.full_rows += u64::from(share > FULL_PCT);
        sums.rows += 1;
        add(&mut sums.allocations, allocated);
        add(&mut sums.frees, freed);
        add(&mut sums.evictions, evicted.map(u64::from));
        add(&mut sums.prefix_query_tokens, queries.map(u64::from));
        add(&mut sums.prefix_hit_tokens, hits.map(u64::from));
        let log = &context.session.logs[event.log];
        Some(Usage {
            log: event.log,
            at_ns: event.start_ns,
            used: record.used,
            total: record.total,
            cached: (!is_share).then_some(record.cached),
            is_share,
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
    fn see_eviction<'a>(&mut self, context: &Context<'a>, event: &Event) -> Option<Eviction<'a>> {
        let Payload::KvEviction(record) = &event.record.payload else { return None };
        let log = &context.session.logs[event.log];
        let lifetime_ns = log.clock.duration_ns(record.lifetime_ticks);
        let idle_ns = log.clock.duration_ns(record.idle_ticks);
        let sums = &mut self.pools.entry((event.log, event.record.name)).or_default().sums;
        sums.lifetimes.push(lifetime_ns);
        sums.idle_times.push(idle_ns);
        sums.evicted_reused += u64::from(record.accesses > 0);
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

    /// The first record of a pool: an engine of the same name whose place it takes holds nothing any more.
    fn replace(&mut self, session: &Session, event: &Event) {
        let process = session.logs[event.log].process(Component::EngineCore);
        for ((log, _), pool) in &mut self.pools {
            if *log != event.log && session.logs[*log].process(Component::EngineCore) == process {
                self.held -= u64::from(std::mem::take(&mut pool.used).unwrap_or(0));
            }
        }
    }

    pub(crate) fn finish(self, session: &Session) -> Summary {
        let mut merged: Vec<(String, String, Pool)> = Vec::new();
        let are_shares = self.are_shares;
        for ((log, name), pool) in self.pools {
            let log = &session.logs[log];
            let (name, process) = (log.head.string(name).unwrap_or(""), log.process(Component::EngineCore));
            match merged.iter_mut().find(|(of, at, _)| of == name && at == process) {
                Some((.., before)) => {
                    before.total = pool.total;
                    before.sums.peak = before.sums.peak.max(pool.sums.peak);
                    before.sums.take(&pool.sums);
                }
                None => merged.push((name.to_owned(), process.to_owned(), pool)),
            }
        }
        let peak = self.peak.max(self.held);
        let total = merged.iter().filter(|(.., pool)| pool.sums.rows > 0).map(|(.., pool)| pool.total).sum();
        let pools: Vec<(PoolSummary, Sums)> = merged
            .into_iter()
            .map(|(name, process, pool)| {
                (pool.sums.clone().summary(name, process, pool.total, are_shares), pool.sums)
            })
            .collect();
        let mut sums = Sums { peak, ..Sums::default() };
        for (_, of) in &pools {
            sums.take(of);
        }
        Summary {
            all: sums.summary(String::new(), String::new(), total, are_shares),
            pools: pools.into_iter().map(|(pool, _)| pool).collect(),
            block_size: self.block_size,
        }
    }
}
