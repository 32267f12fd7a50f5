"""The KV cache: its pools of blocks, and what becomes of each block.

(`vllm/v1/core/kv_cache_manager.py`, `vllm/v1/core/block_pool.py`)
"""

from __future__ import annotations

from typing import Any

from profilemate import _native, session
from profilemate.hooks import Reads

#: So many blocks of a pool are followed at most: of more, every second, third, … one.
_MOST_FOLLOWED = 4096


def _pools(manager: Any) -> list[Any]:
    """The pools of a manager, the one that vLLM reports first, each once."""
    coordinator = getattr(manager, "coordinator", None)
    candidates = [
        getattr(manager, "block_pool", None),
        getattr(coordinator, "block_pool", None),
        *(getattr(single, "block_pool", None) for single in getattr(coordinator, "single_type_managers", ())),
    ]
    pools: list[Any] = []
    for pool in candidates:
        if pool is not None and not any(pool is other for other in pools):
            pools.append(pool)
    return pools


def _collector(pool: Any, name: str) -> _native.KvCacheCollector | None:
    """Stands in for the collector of metrics that vLLM tells of each block; `None` where it tells nobody (0.11)."""
    if not hasattr(pool, "metrics_collector"):
        return None
    blocks = int(pool.num_gpu_blocks)
    every = -(-blocks // _MOST_FOLLOWED)
    theirs = pool.metrics_collector
    collector = (
        _native.KvCacheCollector(name, blocks, every)
        if theirs is None
        else _native.KvCacheCollectorBeside(name, blocks, every, theirs)
    )
    pool.metrics_collector = collector
    return collector


def watch(scheduler: Any, books: _native.SchedulerBooks) -> None:
    """Looks at a scheduler's KV cache after each of its calls from here on."""
    manager = getattr(scheduler, "kv_cache_manager", None)
    pools = _pools(manager)
    if not pools:
        session.note_profiler(
            "kv_cache_tracking", "could not attach: the scheduler has no pool of KV cache blocks"
        )
        return
    if not hasattr(pools[0], "free_block_queue"):
        session.note_profiler(
            "kv_cache_tracking", "could not attach: the pool of KV cache blocks has no free_block_queue"
        )
        return
    # One pool needs no name; a name tells several apart.
    names = [""] if len(pools) == 1 else [f"pool-{number}" for number in range(len(pools))]
    collectors = [_collector(pool, name) for pool, name in zip(pools, names, strict=True)]
    has_prefix_cache = bool(getattr(manager, "enable_caching", False))
    books.watch_kv_cache(manager, list(zip(names, pools, collectors, strict=True)), has_prefix_cache)
    block_size = getattr(scheduler, "block_size", None)
    if isinstance(block_size, int):
        _native.fact("kv_block_size", str(block_size))
    _native.fact("kv_num_blocks", str(int(pools[0].num_gpu_blocks) - 1))
    _native.fact("kv_prefix_caching", str(int(has_prefix_cache)))
    _native.fact(
        "kv_evictions",
        "on"
        if collectors[0] is not None
        else "could not attach: BlockPool has no metrics_collector (vLLM before 0.12)",
    )
    session.note_profiler("kv_cache_tracking", "on")


_IN = ("scheduler.init",)
_EVICTIONS = "no block is followed: kv_cache_evictions.csv is missing, and lifetimes in kv_cache_summary.json are"

READS = (
    Reads(("vllm.v1.core.sched.scheduler:Scheduler",), ("kv_cache_manager",), _IN),
    Reads(("vllm.v1.core.sched.scheduler:Scheduler",), ("block_size",), _IN, without="kv_block_size is not said"),
    Reads(
        ("vllm.v1.core.kv_cache_manager:KVCacheManager",),
        ("coordinator", "block_pool", "enable_caching", "prefix_cache_stats"),
        _IN,
    ),
    Reads(("vllm.v1.core.kv_cache_coordinator:KVCacheCoordinator",), ("block_pool", "single_type_managers"), _IN),
    Reads(("vllm.v1.core.single_type_kv_cache_manager:SingleTypeKVCacheManager",), ("block_pool",), _IN),
    Reads(
        ("vllm.v1.core.block_pool:BlockPool",),
        ("num_gpu_blocks", "free_block_queue", "cached_block_hash_to_block"),
        _IN,
    ),
    Reads(("vllm.v1.core.block_pool:BlockPool",), ("metrics_collector",), _IN, without=_EVICTIONS),
    Reads(
        ("vllm.v1.core.block_pool:BlockHashToBlockMap",),
        ("_cache",),
        _IN,
        without="the map of cached blocks is a plain dict there: nothing is lost",
    ),
    Reads(("vllm.v1.core.kv_cache_utils:FreeKVCacheBlockQueue",), ("num_free_blocks",), _IN),
    Reads(("vllm.v1.core.kv_cache_utils:KVCacheBlock",), ("block_id", "ref_cnt"), _IN),
    Reads(("vllm.v1.core.kv_cache_utils:KVCacheBlock",), ("_block_hash", "block_hash"), _IN, one_of=True),
    Reads(
        ("vllm.v1.core.kv_cache_metrics:KVCacheMetricsCollector",),
        ("on_block_allocated", "on_block_accessed", "on_block_evicted", "reset", "drain_events"),
        _IN,
        without=_EVICTIONS,
    ),
    Reads(("vllm.v1.metrics.stats:PrefixCacheStats",), ("queries", "hits"), _IN),
)
