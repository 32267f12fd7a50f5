//! The KV cache.

use std::fmt::Write;

use profilemate_analysis::Answers;
use profilemate_analysis::kv_cache::PoolSummary;

use super::page::{grouped, percent, wrapped};
use crate::text::visible;

pub(super) fn section(text: &mut String, answers: &Answers) {
    let Some(summary) = answers.kv_cache.as_ref().filter(|summary| !summary.pools.is_empty()) else { return };
    text.push('\n');
    pool(text, "kv cache", &summary.all);
    if summary.pools.len() > 1 {
        // A line for each of a few pools; all of many are in the tables.
        for of in summary.pools.iter().take(8) {
            let name = format!("{} {}", of.process, of.pool);
            let _ = writeln!(text, "  {}", visible(name.trim_end()));
            pool(text, "", of);
        }
    }
}

fn pool(text: &mut String, label: &str, of: &PoolSummary) {
    let mut words = Vec::new();
    if let Some(blocks) = of.total_blocks {
        words.push(format!("peak {} of {} blocks", percent(of.peak_usage_pct()), grouped(blocks)));
        words.push(format!("mean {}", percent(of.mean_usage_pct)));
    }
    words.extend(of.evictions.map(|evictions| format!("{} evictions", grouped(evictions))));
    if let Some(queries) = of.prefix_query_tokens.filter(|queries| *queries > 0) {
        let rate = percent(of.prefix_hit_rate_pct());
        words.push(format!("prefix cache found {rate} of {} tokens", grouped(queries)));
    }
    wrapped(text, label, &words);
}
