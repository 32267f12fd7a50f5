//! The KV cache over time.

use profilemate_analysis::Answers;
use profilemate_analysis::kv_cache::{PoolSummary, Usage};

use super::{BUCKETS, INTERVALS, SHORTEST_INTERVAL_NS, chart, counted, distribution, distribution_columns};
use crate::html::model::{Block, Number, Section, Style, Table, number, share, text};
use crate::html::sampling::{Buckets, Counts, Sampled};

/// Most pools with a chart of their own.
const MOST_POOLS: usize = 4;

struct Pool {
    name: String,
    process: String,
    shares: Sampled<2>,
}

/// What is gathered of the KV cache.
pub(in crate::html) struct Gathered {
    pools: Vec<Pool>,
    /// Blocks that were evicted; tokens that the prefix cache was asked for, and that it found.
    evicted: Buckets<Counts<1>>,
    prefix: Buckets<Counts<2>>,
    are_pools_left_out: bool,
}

impl Gathered {
    pub(in crate::html) fn new() -> Self {
        Self {
            pools: Vec::new(),
            evicted: Buckets::new(SHORTEST_INTERVAL_NS, INTERVALS),
            prefix: Buckets::new(SHORTEST_INTERVAL_NS, INTERVALS),
            are_pools_left_out: false,
        }
    }

    pub(in crate::html) fn see(&mut self, usage: &Usage<'_>) {
        if let Some(evicted) = usage.evicted.filter(|evicted| *evicted > 0) {
            self.evicted.at(usage.at_ns).0[0] += u64::from(evicted);
        }
        if let Some(asked) = usage.prefix_query_tokens.filter(|asked| *asked > 0) {
            let counts = self.prefix.at(usage.at_ns);
            counts.0[0] += u64::from(asked);
            counts.0[1] += u64::from(usage.prefix_hit_tokens.unwrap_or(0));
        }
        let is_it = |of: &Pool| of.name == usage.pool && of.process == usage.process;
        let place = match self.pools.iter().position(is_it) {
            Some(place) => place,
            None if self.pools.len() < MOST_POOLS => {
                self.pools.push(Pool {
                    name: usage.pool.to_owned(),
                    process: usage.process.to_owned(),
                    shares: Sampled::new(BUCKETS),
                });
                self.pools.len() - 1
            }
            None => {
                self.are_pools_left_out = true;
                return;
            }
        };
        if usage.total > 0 {
            let share = |blocks: u32| 100.0 * f64::from(blocks) / f64::from(usage.total);
            let cached = usage.cached.map_or(f64::NAN, share);
            self.pools[place].shares.push(usage.at_ns, [share(usage.used), cached]);
        }
    }

    pub(in crate::html) fn section(&mut self, answers: &Answers) -> Option<Section> {
        let summary = answers.kv_cache.as_ref().filter(|summary| !summary.pools.is_empty())?;
        let mut section = Section::new("kv-cache", "KV cache").lead(
            "Blocks that requests hold, and blocks that the prefix cache can find, held by requests or not.",
        );
        let columns = vec![
            text("pool"),
            share("peak %"),
            share("mean %"),
            number("blocks", 0),
            number("allocations", 0),
            number("frees", 0),
            number("evictions", 0),
            share("prefix hits %"),
        ];
        let mut table = Table::new("Pools", columns);
        let row = |name: &str, of: &PoolSummary| {
            vec![
                name.into(),
                of.peak_usage_pct().into(),
                of.mean_usage_pct.into(),
                of.total_blocks.into(),
                of.allocations.into(),
                of.frees.into(),
                of.evictions.into(),
                of.prefix_hit_rate_pct().into(),
            ]
        };
        table.row(row("all", &summary.all));
        if summary.pools.len() > 1 {
            for of in &summary.pools {
                table.row(row(format!("{} {}", of.process, of.pool).trim_end(), of));
            }
        }
        section.push(table);
        let several = self.pools.len() > 1;
        for pool in std::mem::take(&mut self.pools) {
            let title = if several {
                format!("Usage, {} {}", pool.process, pool.name).trim_end().to_owned()
            } else {
                "Usage".to_owned()
            };
            let names = ["held by requests", "in the prefix cache"];
            if let Some(mut usage) = chart(&title, "% of blocks", Style::Line, names, pool.shares) {
                usage.most = Some(Number(100.0));
                usage.digits = 1;
                section.push(usage);
            }
        }
        if self.are_pools_left_out {
            let text = format!("{MOST_POOLS} pools have a chart; kv_cache_usage.csv has all.");
            section.push(Block::Sentence { text: text.into() });
        }
        section.blocks.extend(counted("Blocks evicted", "blocks", ["evicted"], &self.evicted).map(Block::from));
        section
            .blocks
            .extend(counted("Prefix cache", "tokens", ["asked for", "found"], &self.prefix).map(Block::from));
        let evicted = [("lifetime", &summary.all.lifetime), ("idle before eviction", &summary.all.idle)];
        let mut table =
            Table::new("Evicted blocks that were followed, seconds", distribution_columns("of", 3)).folded();
        for (name, of) in evicted {
            if let Some(of) = of {
                table.row(distribution(name, of));
            }
        }
        if !table.rows.is_empty() {
            section.push(table);
        }
        Some(section)
    }
}
