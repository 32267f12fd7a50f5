//! `kv_cache_usage.csv`, `kv_cache_evictions.csv`, and `kv_cache_summary` as JSON and as text.

use std::fmt::Write;

use profilemate_analysis::batch::percent;
use profilemate_analysis::kv_cache::{Eviction, PoolSummary, Summary, Usage};
use serde_json::Value;

use super::number;
use crate::csv::Line;
use crate::text::visible;

pub(super) const USAGE: &str = "kv_cache_usage.csv";
pub(super) const USAGE_COLUMNS: &[&str] = &[
    "timestamp_sec",
    "usage_pct",
    "num_blocks",
    "total_blocks",
    "cached_blocks",
    "prefix_hit_tokens",
    "prefix_query_tokens",
    "step",
    "free_blocks",
    "allocated_blocks",
    "freed_blocks",
    "evicted_blocks",
    "pool",
    "process",
];
pub(super) const EVICTIONS: &str = "kv_cache_evictions.csv";
pub(super) const EVICTIONS_COLUMNS: &[&str] =
    &["timestamp_sec", "lifetime_sec", "idle_sec", "accesses", "block_id", "stands_for", "pool", "process"];
pub(super) const SUMMARY: &str = "kv_cache_summary.json";
pub(super) const SUMMARY_TEXT: &str = "kv_cache_summary.txt";

pub(super) fn usage(usage: &Usage<'_>, line: &mut Line) {
    line.timestamp(usage.at_ns);
    line.percent(u64::from(usage.used), u64::from(usage.total));
    line.number(u64::from(usage.used));
    line.number(u64::from(usage.total));
    line.number(u64::from(usage.cached));
    line.maybe(usage.prefix_hit_tokens.map(u64::from));
    line.maybe(usage.prefix_query_tokens.map(u64::from));
    line.maybe(usage.step);
    line.number(u64::from(usage.total.saturating_sub(usage.used)));
    line.maybe(usage.allocated);
    line.maybe(usage.freed);
    line.maybe(usage.evicted.map(u64::from));
    line.text(usage.pool);
    line.text(usage.process);
}

pub(super) fn eviction(eviction: &Eviction<'_>, line: &mut Line) {
    line.timestamp(eviction.at_ns);
    line.maybe_seconds(Some(eviction.lifetime_ns));
    line.maybe_seconds(Some(eviction.idle_ns));
    line.number(u64::from(eviction.accesses));
    line.number(u64::from(eviction.block));
    line.number(u64::from(eviction.stands_for));
    line.text(eviction.pool);
    line.text(eviction.process);
}

fn pool(pool: &PoolSummary, names: bool) -> Vec<(&'static str, Option<Value>)> {
    let mut entries = vec![
        ("total_blocks", Some(pool.total_blocks.into())),
        ("allocations", pool.allocations.map(Value::from)),
        ("frees", pool.frees.map(Value::from)),
        ("peak_blocks", Some(pool.peak_blocks.into())),
        ("peak_usage_pct", pool.peak_usage_pct().and_then(number)),
        ("mean_usage_pct", pool.mean_usage_pct.and_then(number)),
        ("evictions", pool.evictions.map(Value::from)),
    ];
    if names {
        entries.push(("pool", Some(pool.pool.as_str().into())));
        entries.push(("process", Some(pool.process.as_str().into())));
    }
    entries
}

fn known(entries: Vec<(&'static str, Option<Value>)>) -> Value {
    Value::Object(entries.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect())
}

pub(super) fn summary(summary: &Summary) -> Value {
    // Pools are of different sizes and kinds: with several of them, the first one's figures stand for none but itself.
    let mut entries = match summary.pools.as_slice() {
        [only] => pool(only, false),
        _ => Vec::new(),
    };
    entries.push(("block_size", summary.block_size.map(Value::from)));
    let lifetimes = summary.lifetimes.clone().statistics();
    let idle_times = summary.idle_times.clone().statistics();
    let seconds = |milliseconds: f64| number(milliseconds / 1e3);
    entries.extend([
        ("mean_lifetime_sec", lifetimes.and_then(|times| seconds(times.mean_ms))),
        ("p50_lifetime_sec", lifetimes.and_then(|times| seconds(times.p50_ms))),
        ("p99_lifetime_sec", lifetimes.and_then(|times| seconds(times.p99_ms))),
        ("mean_idle_sec", idle_times.and_then(|times| seconds(times.mean_ms))),
        ("p50_idle_sec", idle_times.and_then(|times| seconds(times.p50_ms))),
        ("p99_idle_sec", idle_times.and_then(|times| seconds(times.p99_ms))),
        ("prefix_query_tokens", summary.prefix_query_tokens.map(Value::from)),
        ("prefix_hit_tokens", summary.prefix_hit_tokens.map(Value::from)),
        ("prefix_hit_rate_pct", hit_rate(summary).and_then(number)),
    ]);
    if summary.pools.len() > 1 {
        let pools: Vec<Value> = summary.pools.iter().map(|of| known(pool(of, true))).collect();
        entries.push(("pools", Some(pools.into())));
    }
    known(entries)
}

fn hit_rate(summary: &Summary) -> Option<f64> {
    percent(summary.prefix_hit_tokens?, summary.prefix_query_tokens?)
}

/// The same for people.
pub(super) fn summary_text(summary: &Summary) -> String {
    let mut text = String::from("KV cache\n");
    let mut put = |label: &str, value: Option<String>| {
        let _ = writeln!(text, "  {label:<31}{}", value.as_deref().unwrap_or("unknown"));
    };
    let whole = |value: Option<u64>| value.map(|value| value.to_string());
    let share = |value: Option<f64>| value.map(|value| format!("{value:.2} %"));
    for of in &summary.pools {
        if summary.pools.len() > 1 {
            put("pool", Some(visible(&format!("{} of {}", of.pool, of.process)).into_owned()));
        }
        put("total blocks", whole(Some(of.total_blocks)));
        put("allocations", whole(of.allocations));
        put("frees", whole(of.frees));
        put("peak blocks", whole(Some(of.peak_blocks)));
        put("peak usage", share(of.peak_usage_pct()));
        put("mean usage over the steps", share(of.mean_usage_pct));
        put("evictions", whole(of.evictions));
    }
    let mean = |samples: &profilemate_analysis::statistics::Samples| {
        (!samples.is_empty()).then(|| format!("{:.6} s", samples.mean_ns() / 1e9))
    };
    put("tokens of a block", whole(summary.block_size));
    put("mean lifetime of the evicted", mean(&summary.lifetimes));
    put("mean idle time of the same", mean(&summary.idle_times));
    put("prefix cache, tokens asked", whole(summary.prefix_query_tokens));
    put("prefix cache, tokens found", whole(summary.prefix_hit_tokens));
    put("prefix cache, hit rate", share(hit_rate(summary)));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_absent_or_said_to_be() {
        let nothing = Summary::default();
        assert_eq!(summary(&nothing), serde_json::json!({}));
        assert!(summary_text(&nothing).contains("prefix cache, hit rate         unknown"));
    }
}
