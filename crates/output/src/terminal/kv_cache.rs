//! The KV cache.

use std::fmt::Write;

use profilemate_analysis::Answers;
use profilemate_analysis::kv_cache::PoolSummary;

use super::page::{percent, wrapped};
use crate::numbers::grouped;
use crate::text::visible;

/// Most pools that are named; all of many are in the tables.
const MOST_POOLS: usize = 4;

pub(super) fn section(text: &mut String, answers: &Answers) {
    let Some(summary) = answers.kv_cache.as_ref().filter(|summary| !summary.pools.is_empty()) else { return };
    pool(text, "kv cache", &summary.all);
    if summary.pools.len() > 1 {
        for of in summary.pools.iter().take(MOST_POOLS) {
            let name = format!("{} {}", of.process, of.pool);
            let _ = writeln!(text, "  {}", visible(name.trim_end()));
            pool(text, "", of);
        }
    }
}

fn pool(text: &mut String, label: &str, of: &PoolSummary) {
    let mut words = Vec::new();
    if let Some(peak) = of.peak_usage_pct() {
        let blocks = of.total_blocks.map_or(String::new(), |blocks| format!(" of {} blocks", grouped(blocks)));
        words.push(format!("peak {}", percent(Some(peak))));
        words.push(format!("mean {}{blocks}", percent(of.mean_usage_pct)));
    }
    if of.prefix_query_tokens.is_some_and(|queries| queries > 0) {
        words.push(format!("prefix hits {}", percent(of.prefix_hit_rate_pct())));
    }
    words.extend(of.evictions.map(|evictions| format!("{} evictions", grouped(evictions))));
    wrapped(text, label, &words);
}
