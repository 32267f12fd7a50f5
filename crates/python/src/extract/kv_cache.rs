//! The KV cache: how many blocks are in use, and what becomes of each. (`vllm/v1/core/block_pool.py`,
//! `vllm/v1/core/kv_cache_manager.py`)
//!
//! Nothing is iterated. Counts are vLLM's own, or come from the object that vLLM tells of each block, its collector of
//! metrics (`BlockPool.metrics_collector`, since 0.14).

use super::requests::write;
use super::{count, length};
use crate::extractor::integer;
use crate::failure::{self, FAILURES_UNTIL_OFF, Fault};
use crate::names::name;
use crate::state::{self, ENGINE};
use profilemate_format::record::{KvCache, KvEviction, Payload};
use profilemate_record::clock;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What has become of a block since it was given out.
#[derive(Debug, Clone, Copy, Default)]
struct Block {
    /// When it was given to a request, ticks; 0 = not known.
    born: u64,
    /// When it was given out or found by the prefix cache, ticks.
    accessed: u64,
    accesses: u32,
}

/// What vLLM told of the blocks of a pool since it was last asked.
#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    allocated: u32,
    reused: u32,
    evicted: u32,
}

/// Stands where vLLM's collector of KV cache metrics stands, and tells that one too, if there is one.
///
/// It is called for every block that is given out, so the type has nothing that keeps CPython from finding its methods at once:
/// what it takes to have all that vLLM's own one has is in [`KvCacheCollectorBeside`].
#[pyclass(subclass, module = "profilemate._native")]
pub(crate) struct KvCacheCollector {
    /// vLLM's own.
    inner: Option<Py<PyAny>>,
    pool: String,
    /// Only blocks whose number is a multiple of this are followed.
    every: u32,
    /// By number of the block, of those that are followed.
    blocks: Vec<Block>,
    counts: Counts,
    failures: u32,
    /// Calls, to time some of them.
    calls: u32,
}

/// One call in so many is timed.
const TIMED: u32 = 16;

impl KvCacheCollector {
    fn block(&mut self, block: &Bound<'_, PyAny>) -> PyResult<Option<(u32, &mut Block)>> {
        let number = count(&block.getattr(name!(block.py(), "block_id"))?)?;
        let followed = number.is_multiple_of(self.every);
        Ok(self.blocks.get_mut((number / self.every) as usize).filter(|_| followed).map(|block| (number, block)))
    }

    fn allocated(&mut self, block: &Bound<'_, PyAny>) -> PyResult<()> {
        self.counts.allocated = self.counts.allocated.saturating_add(1);
        if let Some((_, block)) = self.block(block)? {
            let now = clock::ticks();
            *block = Block { born: now, accessed: now, accesses: 0 };
        }
        Ok(())
    }

    fn accessed(&mut self, block: &Bound<'_, PyAny>) -> PyResult<()> {
        // `touch` has counted the new reference: the first one takes the block from those that are free.
        let references = integer(&block.getattr(name!(block.py(), "ref_cnt"))?)?;
        self.counts.reused = self.counts.reused.saturating_add(u32::from(references == 1));
        if let Some((_, block)) = self.block(block)? {
            block.accessed = clock::ticks();
            block.accesses = block.accesses.saturating_add(1);
        }
        Ok(())
    }

    fn evicted(&mut self, block: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = block.py();
        // Newer versions tell of every block that is given out again, cached or not.
        let hash = match block.getattr_opt(name!(py, "_block_hash"))? {
            Some(hash) => hash,
            None => block.getattr(name!(py, "block_hash"))?,
        };
        if hash.is_none() {
            return Ok(());
        }
        self.counts.evicted = self.counts.evicted.saturating_add(1);
        let stands_for = self.every;
        let Some((number, block)) = self.block(block)? else { return Ok(()) };
        let life = std::mem::take(block);
        if life.born == 0 {
            return Ok(());
        }
        let now = clock::ticks();
        state::with(py, |state| {
            let pool = if self.pool.is_empty() { 0 } else { state.intern(&self.pool) };
            let payload = Payload::KvEviction(KvEviction {
                lifetime_ticks: now.saturating_sub(life.born),
                idle_ticks: now.saturating_sub(life.accessed),
                accesses: life.accesses,
                block: number,
                stands_for,
            });
            let step = state.lanes[ENGINE].next_step.max(1);
            write(state, now, step, pool, payload);
        });
        Ok(())
    }

    /// Runs what is ours: nothing that goes wrong in it reaches vLLM. An error is not ours, but of a signal's handler that ran
    /// meanwhile.
    fn guard(&mut self, py: Python<'_>, ours: impl FnOnce(&mut Self) -> PyResult<()>) -> PyResult<()> {
        if self.failures >= FAILURES_UNTIL_OFF {
            return Ok(());
        }
        // To look at the clock costs as much as the rest: one call stands for sixteen.
        self.calls = self.calls.wrapping_add(1);
        let begin = self.calls.is_multiple_of(TIMED).then(clock::ticks);
        let result = catch_unwind(AssertUnwindSafe(|| {
            match failure::requested_fault() {
                Fault::None => {}
                Fault::Raise => return Err(PyRuntimeError::new_err("a fault that was asked for")),
                Fault::Panic => panic!("a fault that was asked for"),
            }
            ours(self)
        }));
        // vLLM calls this from inside of its own functions, where no hook sees what it costs.
        if let Some(begin) = begin {
            state::with(py, |state| {
                if let Some(writer) = &mut state.writer {
                    writer.add_overhead(clock::ticks().wrapping_sub(begin).saturating_mul(TIMED.into()));
                }
            });
        }
        let what = match result {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) if failure::is_ours(py, &error) => error.to_string(),
            Ok(Err(error)) => return Err(error),
            Err(payload) => failure::panic_text(payload.as_ref()),
        };
        self.failures += 1;
        failure::report(py, "kv_cache.collector", &what, self.failures >= FAILURES_UNTIL_OFF);
        Ok(())
    }
}

#[pymethods]
impl KvCacheCollector {
    #[new]
    #[pyo3(signature = (pool, blocks, every, inner = None))]
    fn new(pool: String, blocks: usize, every: u32, inner: Option<Py<PyAny>>) -> Self {
        let every = every.max(1);
        let followed = blocks.div_ceil(every as usize);
        Self {
            inner,
            pool,
            every,
            blocks: vec![Block::default(); followed],
            counts: Counts::default(),
            failures: 0,
            calls: 0,
        }
    }

    fn on_block_allocated(&mut self, block: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = block.py();
        self.guard(py, |ours| ours.allocated(block))?;
        tell(py, self.inner.as_ref(), name!(py, "on_block_allocated"), block)
    }

    fn on_block_accessed(&mut self, block: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = block.py();
        self.guard(py, |ours| ours.accessed(block))?;
        tell(py, self.inner.as_ref(), name!(py, "on_block_accessed"), block)
    }

    fn on_block_evicted(&mut self, block: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = block.py();
        self.guard(py, |ours| ours.evicted(block))?;
        tell(py, self.inner.as_ref(), name!(py, "on_block_evicted"), block)
    }

    fn reset(&mut self, py: Python<'_>) -> PyResult<()> {
        self.blocks.fill(Block::default());
        match &self.inner {
            Some(inner) => inner.call_method0(py, name!(py, "reset")).map(drop),
            None => Ok(()),
        }
    }

    /// A scheduler that asks gets what a collector without samples would give.
    #[expect(clippy::unused_self, reason = "it is called as a method")]
    fn drain_events(&self) -> Vec<u32> {
        Vec::new()
    }
}

/// A collector where vLLM has one of its own: it has all that that one has.
#[pyclass(extends = KvCacheCollector, module = "profilemate._native")]
pub(crate) struct KvCacheCollectorBeside {
    inner: Py<PyAny>,
}

#[pymethods]
impl KvCacheCollectorBeside {
    #[new]
    #[pyo3(signature = (pool, blocks, every, inner))]
    fn new(py: Python<'_>, pool: String, blocks: usize, every: u32, inner: Py<PyAny>) -> PyClassInitializer<Self> {
        let base = KvCacheCollector::new(pool, blocks, every, Some(inner.clone_ref(py)));
        PyClassInitializer::from(base).add_subclass(Self { inner })
    }

    fn drain_events(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.inner.call_method0(py, name!(py, "drain_events"))
    }

    /// What else vLLM's collector has, it has still.
    fn __getattr__(&self, py: Python<'_>, attribute: &str) -> PyResult<Py<PyAny>> {
        self.inner.getattr(py, attribute)
    }
}

/// Passes on to vLLM's own collector. What it raises is vLLM's.
fn tell(
    py: Python<'_>,
    inner: Option<&Py<PyAny>>,
    method: &Bound<'_, pyo3::types::PyString>,
    block: &Bound<'_, PyAny>,
) -> PyResult<()> {
    match inner {
        Some(inner) => inner.bind(py).call_method1(method, (block,)).map(drop),
        None => Ok(()),
    }
}

/// A pool of blocks that is looked at after every call of the scheduler.
pub(crate) struct Pool {
    /// vLLM's `BlockPool`.
    blocks: Py<PyAny>,
    /// Its queue of free blocks.
    free: Py<PyAny>,
    /// Whether the prefix cache's map has a dict in `_cache`, whose length costs no call of Python.
    is_map_inside: bool,
    name: String,
    total: u32,
    collector: Option<Py<KvCacheCollector>>,
}

impl Pool {
    pub(crate) fn new(
        pool: &Bound<'_, PyAny>,
        name: String,
        collector: Option<Py<KvCacheCollector>>,
    ) -> PyResult<Self> {
        let py = pool.py();
        // One block stands for "none" and is never given out.
        let total = count(&pool.getattr(name!(py, "num_gpu_blocks"))?)?.saturating_sub(1);
        let free = pool.getattr(name!(py, "free_block_queue"))?.unbind();
        let is_map_inside = pool.getattr(name!(py, "cached_block_hash_to_block"))?.hasattr(name!(py, "_cache"))?;
        Ok(Self { blocks: pool.clone().unbind(), free, is_map_inside, name, total, collector })
    }

    pub(crate) fn free_blocks(&self, py: Python<'_>) -> PyResult<u32> {
        count(&self.free.bind(py).getattr(name!(py, "num_free_blocks"))?)
    }

    fn write(&self, py: Python<'_>, step: u64, prefix: (u32, u32)) -> PyResult<()> {
        let used = self.total.saturating_sub(self.free_blocks(py)?);
        // A new one takes its place when the prefix cache is reset.
        let found = self.blocks.bind(py).getattr(name!(py, "cached_block_hash_to_block"))?;
        let cached =
            if self.is_map_inside { length(&found.getattr(name!(py, "_cache"))?)? } else { length(&found)? };
        let counts = match &self.collector {
            Some(collector) => std::mem::take(&mut collector.bind(py).borrow_mut().counts),
            None => Counts { allocated: u32::MAX, reused: u32::MAX, evicted: u32::MAX },
        };
        state::with(py, |state| {
            let pool = if self.name.is_empty() { 0 } else { state.intern(&self.name) };
            let payload = Payload::KvCache(KvCache {
                used,
                total: self.total,
                cached,
                allocated: counts.allocated,
                reused: counts.reused,
                evicted: counts.evicted,
                prefix_query_tokens: prefix.0,
                prefix_hit_tokens: prefix.1,
            });
            write(state, clock::ticks(), step, pool, payload);
        });
        Ok(())
    }
}

/// The KV cache of one scheduler.
pub(crate) struct Watch {
    pub(crate) pools: Vec<Pool>,
    /// `KVCacheManager`.
    manager: Py<PyAny>,
    /// Whether prompts are looked up at all.
    has_prefix_cache: bool,
    /// vLLM's counts, which it takes and starts anew now and then, and how far they were read.
    stats: Option<Py<PyAny>>,
    seen: (u32, u32),
}

impl Watch {
    pub(crate) fn new(manager: Py<PyAny>, pools: Vec<Pool>, has_prefix_cache: bool) -> Self {
        Self { pools, manager, has_prefix_cache, stats: None, seen: (0, 0) }
    }

    /// Writes what the pools hold after a call of the scheduler. `admitted`: tokens looked up and found for the requests
    /// that it admitted, for vLLM keeps no count of its own when its statistics are off.
    /// Without `is_looked_up` no prompt was, so nothing is asked.
    pub(crate) fn write(
        &mut self,
        py: Python<'_>,
        step: u64,
        is_looked_up: bool,
        admitted: (u32, u32),
    ) -> PyResult<()> {
        let mut prefix = match (self.has_prefix_cache, is_looked_up) {
            (false, _) => (u32::MAX, u32::MAX),
            (true, true) => self.prefix(py)?.unwrap_or(admitted),
            (true, false) => (0, 0),
        };
        for pool in &self.pools {
            pool.write(py, step, prefix)?;
            // It is one count for all pools; the first one carries it.
            prefix = (u32::MAX, u32::MAX);
        }
        Ok(())
    }

    /// What vLLM's counts grew by; `None` when it keeps none.
    fn prefix(&mut self, py: Python<'_>) -> PyResult<Option<(u32, u32)>> {
        let stats = self.manager.bind(py).getattr(name!(py, "prefix_cache_stats"))?;
        if stats.is_none() {
            return Ok(None);
        }
        // The one that was read is kept, so that no other one can have its address.
        if !self.stats.as_ref().is_some_and(|seen| seen.is(&stats)) {
            self.seen = (0, 0);
            self.stats = Some(stats.clone().unbind());
        }
        let now = (count(&stats.getattr(name!(py, "queries"))?)?, count(&stats.getattr(name!(py, "hits"))?)?);
        let grown = (now.0.saturating_sub(self.seen.0), now.1.saturating_sub(self.seen.1));
        self.seen = now;
        Ok(Some(grown))
    }
}
