"""GPU memory: what torch's allocator holds, what of it is the KV cache, and what CUDA graphs took.

Torch keeps these numbers itself and tells them without asking the GPU. The worker asks once per second, when a step
begins (`crates/python/src/extract/gpu_memory.rs`).
"""

from __future__ import annotations

import sys
from typing import Any

from profilemate import _native, session
from profilemate.hooks import Reads
from profilemate.settings import settings


def watch(runner: Any) -> None:
    """Samples the memory of this process's GPU from here on; the model of `runner` is loaded."""
    if not settings()["gpu_memory"]:
        return
    torch = sys.modules.get("torch")
    if torch is None or not (torch.cuda.is_available() and torch.cuda.is_initialized()):
        session.note_profiler("gpu_memory", "could not attach: torch uses no GPU here")
        return
    stats = getattr(torch._C, "_cuda_memoryStats", None)
    if stats is None:
        session.note_profiler("gpu_memory", "could not attach: this torch has no _cuda_memoryStats")
        return
    # The driver's own count of what is free on the device; not every build of torch has the binding.
    free = getattr(torch.cuda.cudart(), "cudaMemGetInfo", None) if hasattr(torch.cuda, "cudart") else None
    _native.watch_gpu_memory(stats, free, torch.cuda.current_device())
    session.note_profiler("gpu_memory", "on")
    # By vLLM's own measure (`GPUModelRunner.load_model`, 0.11 to 0.33).
    weights = getattr(runner, "model_memory_usage", None)
    if isinstance(weights, int | float) and weights > 0:
        _native.fact("gpu_memory_weights_bytes", str(int(weights)))


class _KvCache:
    """The KV cache that is being made."""

    allocated_before: int | None = None


def before_initialize_from_config(*_args: Any, **_kwargs: Any) -> None:
    """The KV cache is made next."""
    _KvCache.allocated_before = _native.gpu_memory_allocated()


def after_initialize_from_config(_result: Any, _worker: Any) -> None:
    """The KV cache is made: it is what was allocated meanwhile. Its configuration names buffers that may overlap."""
    before, after = _KvCache.allocated_before, _native.gpu_memory_allocated()
    if before is not None and after is not None and after > before:
        _native.fact("gpu_memory_kv_cache_bytes", str(after - before))


def note_cuda_graphs(taken: Any) -> None:
    """Graphs were captured: `capture_model` returns what that took of the device, by vLLM's own measure."""
    if isinstance(taken, int) and taken > 0 and settings()["gpu_memory"]:
        _native.fact("gpu_memory_cuda_graph_bytes", str(taken))


READS = (
    Reads(("vllm.v1.worker.gpu_model_runner:GPUModelRunner",), ("model_memory_usage",), ("worker.load_model",)),
)
