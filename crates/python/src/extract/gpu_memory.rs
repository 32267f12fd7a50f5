//! GPU memory: what torch's allocator holds and what the driver has left, once per second, when a step begins.
//!
//! `torch._C._cuda_memoryStats` (torch/csrc/cuda/Module.cpp) reads counters that the allocator keeps on the host, and
//! `cudaMemGetInfo` asks the driver; neither waits for the GPU.

use crate::failure;
use crate::names::name;
use crate::state;
use profilemate_format::record::{GpuMemory, GpuMemoryMore, Label, Payload, Record};
use profilemate_record::clock;
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// Seconds between two samples, while there are steps.
const INTERVAL_SECONDS: u64 = 1;

/// What is asked for samples.
#[derive(Debug)]
pub(crate) struct Watch {
    /// `torch._C._cuda_memoryStats(device)`.
    stats: Py<PyAny>,
    /// `cudaMemGetInfo(device)`, as torch binds it; `None`: it does not.
    free: Option<Py<PyAny>>,
    device: Py<PyAny>,
    /// Ticks before which nothing is asked.
    next: u64,
}

/// Samples GPU memory from here on: `stats(device)` gives torch's nested dict, `free(device)` free and all bytes.
#[pyfunction]
pub(crate) fn watch_gpu_memory(py: Python<'_>, stats: Py<PyAny>, free: Option<Py<PyAny>>, device: Py<PyAny>) {
    let watch = Watch { stats, free, device, next: 0 };
    let old = state::with(py, |state| state.gpu_memory.replace(watch));
    drop(old);
}

/// Bytes that torch has handed out now; `None` where nothing is sampled.
#[pyfunction]
pub(crate) fn gpu_memory_allocated(py: Python<'_>) -> PyResult<Option<u64>> {
    let found = state::with(py, |state| {
        let watch = state.gpu_memory.as_ref()?;
        Some((watch.stats.clone_ref(py), watch.device.clone_ref(py)))
    });
    let Some((stats, device)) = found else { return Ok(None) };
    let stats = stats.bind(py).call1((device,))?.cast_into::<PyDict>()?;
    of_all(&stats, "allocated_bytes", "current")
}

/// `stats[what]["all"][which]`; `None` where it is not there.
fn of_all(stats: &Bound<'_, PyDict>, what: &str, which: &str) -> PyResult<Option<u64>> {
    let Some(pools) = stats.get_item(what)? else { return Ok(None) };
    let all = pools.get_item(name!(stats.py(), "all"))?;
    count(Some(all.get_item(which)?))
}

fn count(value: Option<Bound<'_, PyAny>>) -> PyResult<Option<u64>> {
    let value: Option<i64> = value.map(|value| value.extract()).transpose()?;
    Ok(value.and_then(|value| u64::try_from(value).ok()))
}

/// A step begins: takes a sample if it is time. What fails ends the sampling, and nothing else.
///
/// Errors: an exception that is vLLM's own, such as its handler of a signal raises.
#[inline]
pub(crate) fn step_begins(py: Python<'_>, step: u64) -> PyResult<()> {
    let is_due = state::with(py, |state| {
        let is_work = state.label == Label::Work && state.is_recording();
        let Some(watch) = state.gpu_memory.as_mut().filter(|_| is_work) else { return false };
        let now = clock::ticks();
        let is_due = now >= watch.next;
        if is_due {
            watch.next = now + clock::ticks_per_second() * INTERVAL_SECONDS;
        }
        is_due
    });
    if is_due && let Err(error) = sample(py, step) {
        if !failure::is_ours(py, &error) {
            return Err(error);
        }
        let old = state::with(py, |state| state.gpu_memory.take());
        drop(old);
        failure::report(py, "gpu_memory", &error.to_string(), true);
    }
    Ok(())
}

#[cold]
fn sample(py: Python<'_>, step: u64) -> PyResult<()> {
    let found = state::with(py, |state| {
        let watch = state.gpu_memory.as_ref()?;
        let free = watch.free.as_ref().map(|free| free.clone_ref(py));
        Some((watch.stats.clone_ref(py), free, watch.device.clone_ref(py)))
    });
    let Some((stats, free, device)) = found else { return Ok(()) };
    let device = device.bind(py);
    let stats = stats.bind(py).call1((device,))?.cast_into::<PyDict>()?;
    let (free, total): (Option<u64>, Option<u64>) = match free {
        Some(free) => free.bind(py).call1((device,))?.extract().map(|(free, total)| (Some(free), Some(total)))?,
        None => (None, None),
    };
    let memory = GpuMemory {
        allocated: of_all(&stats, "allocated_bytes", "current")?,
        reserved: of_all(&stats, "reserved_bytes", "current")?,
        free,
        total,
    };
    let short = |count: Option<u64>| count.map(|count| u32::try_from(count).unwrap_or(u32::MAX - 1));
    let more = GpuMemoryMore {
        peak_allocated: of_all(&stats, "allocated_bytes", "peak")?,
        peak_reserved: of_all(&stats, "reserved_bytes", "peak")?,
        inactive_split: of_all(&stats, "inactive_split_bytes", "current")?,
        retries: short(count(stats.get_item(name!(py, "num_alloc_retries"))?)?),
        out_of_memory: short(count(stats.get_item(name!(py, "num_ooms"))?)?),
    };
    state::with(py, |state| {
        let (label, ticks) = (state.label, clock::ticks());
        // A sample is complete with its last record.
        for payload in [Payload::GpuMemoryMore(more), Payload::GpuMemory(memory)] {
            state.write(&Record { ticks, step, label, flags: 0, name: 0, payload });
        }
    });
    Ok(())
}
