//! `kv_cache_usage.csv`, `kv_cache_evictions.csv`, and `kv_cache_summary` as JSON and as text.

use std::fmt::Write;

use profilemate_analysis::kv_cache::{Eviction, PoolSummary, Summary, Usage};
use serde_json::Value;

use super::number;
use crate::cells::table;
use crate::text::visible;

pub(super) const SUMMARY: &str = "kv_cache_summary.json";
pub(super) const SUMMARY_TEXT: &str = "kv_cache_summary.txt";

table! {
    /// One row for each call of the scheduler and each pool of blocks.
    KvUsage = "kv_cache_usage", of usage: Usage<'a>, with {
        let blocks = |count: u32| (!usage.is_share).then_some(u64::from(count));
    };
    timestamp_sec: timestamp(usage.at_ns),
    usage_pct: percent((u64::from(usage.used), u64::from(usage.total))),
    num_blocks: whole(blocks(usage.used)),
    total_blocks: whole(blocks(usage.total)),
    cached_blocks: whole(usage.cached.map(u64::from)),
    prefix_hit_tokens: whole(usage.prefix_hit_tokens.map(u64::from)),
    prefix_query_tokens: whole(usage.prefix_query_tokens.map(u64::from)),
    step: whole(usage.step),
    free_blocks: whole(blocks(usage.total.saturating_sub(usage.used))),
    allocated_blocks: whole(usage.allocated),
    freed_blocks: whole(usage.freed),
    evicted_blocks: whole(usage.evicted.map(u64::from)),
    pool: name(usage.pool),
    process: name(usage.process),
}

table! {
    /// One row for each cached block that was emptied for other use.
    KvEvictions = "kv_cache_evictions", of eviction: Eviction<'a>;
    timestamp_sec: timestamp(eviction.at_ns),
    lifetime_sec: seconds(eviction.lifetime_ns),
    idle_sec: seconds(eviction.idle_ns),
    accesses: whole(u64::from(eviction.accesses)),
    block_id: whole(u64::from(eviction.block)),
    stands_for: whole(u64::from(eviction.stands_for)),
    pool: name(eviction.pool),
    process: name(eviction.process),
}

fn pool(of: &PoolSummary) -> [(&'static str, Option<Value>); 18] {
    let whole = |value: Option<u64>| value.map(Value::from);
    let name = |text: &str| (!text.is_empty()).then(|| Value::from(text));
    let (lifetime, idle) = (of.lifetime.as_ref(), of.idle.as_ref());
    [
        ("pool", name(&of.pool)),
        ("process", name(&of.process)),
        ("total_blocks", whole(of.total_blocks)),
        ("allocations", whole(of.allocations)),
        ("frees", whole(of.frees)),
        ("peak_blocks", whole(of.peak_blocks)),
        ("peak_usage_pct", of.peak_usage_pct().and_then(number)),
        ("mean_usage_pct", of.mean_usage_pct.and_then(number)),
        ("evictions", whole(of.evictions)),
        ("mean_lifetime_sec", lifetime.and_then(|times| number(times.mean))),
        ("p50_lifetime_sec", lifetime.and_then(|times| number(times.p50))),
        ("p99_lifetime_sec", lifetime.and_then(|times| number(times.p99))),
        ("mean_idle_sec", idle.and_then(|times| number(times.mean))),
        ("p50_idle_sec", idle.and_then(|times| number(times.p50))),
        ("p99_idle_sec", idle.and_then(|times| number(times.p99))),
        ("prefix_query_tokens", whole(of.prefix_query_tokens)),
        ("prefix_hit_tokens", whole(of.prefix_hit_tokens)),
        ("prefix_hit_rate_pct", of.prefix_hit_rate_pct().and_then(number)),
    ]
}

fn known(entries: impl IntoIterator<Item = (&'static str, Option<Value>)>) -> Value {
    Value::Object(entries.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect())
}

pub(super) fn summary(summary: &Summary) -> Value {
    let pools = || summary.pools.iter().map(|of| known(pool(of))).collect();
    known(pool(&summary.all).into_iter().chain([
        ("block_size", summary.block_size.map(Value::from)),
        // With one pool, it is all.
        ("pools", (summary.pools.len() > 1).then(pools)),
    ]))
}

/// The same for people.
pub(super) fn summary_text(summary: &Summary) -> String {
    let mut text = String::from("KV cache\n");
    pool_text(&mut text, &summary.all);
    let block_size = summary.block_size.map(|size| size.to_string());
    put(&mut text, "tokens of a block", block_size.as_deref());
    if summary.pools.len() > 1 {
        for of in &summary.pools {
            let _ = writeln!(text, "\n{}", visible(format!("{} {}", of.process, of.pool).trim_end()));
            pool_text(&mut text, of);
        }
    }
    text
}

fn put(text: &mut String, label: &str, value: Option<&str>) {
    let _ = writeln!(text, "  {label:<31}{}", value.unwrap_or("unknown"));
}

fn pool_text(text: &mut String, of: &PoolSummary) {
    let whole = |value: Option<u64>| value.map(|value| value.to_string());
    let share = |value: Option<f64>| value.map(|value| format!("{value:.2} %"));
    let seconds = |value: Option<f64>| value.map(|value| format!("{value:.6} s"));
    for (label, value) in [
        ("total blocks", whole(of.total_blocks)),
        ("allocations", whole(of.allocations)),
        ("frees", whole(of.frees)),
        ("peak blocks", whole(of.peak_blocks)),
        ("peak usage", share(of.peak_usage_pct())),
        ("mean usage over the steps", share(of.mean_usage_pct)),
        ("evictions", whole(of.evictions)),
        ("mean lifetime of the evicted", seconds(of.lifetime.map(|times| times.mean))),
        ("median lifetime of the evicted", seconds(of.lifetime.map(|times| times.p50))),
        ("99 % lived no longer than", seconds(of.lifetime.map(|times| times.p99))),
        ("mean idle time of the same", seconds(of.idle.map(|times| times.mean))),
        ("median idle time of the same", seconds(of.idle.map(|times| times.p50))),
        ("99 % were idle no longer than", seconds(of.idle.map(|times| times.p99))),
        ("prefix cache, tokens asked", whole(of.prefix_query_tokens)),
        ("prefix cache, tokens found", whole(of.prefix_hit_tokens)),
        ("prefix cache, hit rate", share(of.prefix_hit_rate_pct())),
    ] {
        put(text, label, value.as_deref());
    }
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
