"""The settings of this process. What they are and what is a bad value is decided in Rust (`crates/settings`)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from profilemate import _native

#: Names in the first generation's `ProfilingConfig`, and our settings.
LEGACY_NAMES: dict[str, str] = {
    "ENABLE_CUDA_GRAPH_TRACKING": "cuda_graph_tracking",
    "ENABLE_KV_CACHE_TRACKING": "kv_cache_tracking",
    "ENABLE_MOE_EXPERT_TRACKING": "moe_expert_tracking",
    "ENABLE_FORWARD_PASS_TIMING": "forward_pass_timing",
    "ENABLE_CPU_TIMING": "cpu_timing",
    "ENABLE_BATCH_UTILIZATION_TRACKING": "batch_utilization_tracking",
    "ENABLE_PREEMPTION_TRACKING": "preemption_tracking",
    "ENABLE_ENCODER_DECODER_TIMING": "encoder_decoder_timing",
    "CUDA_EVENT_BATCH_SIZE": "cuda_event_batch_size",
    "OUTPUT_DIR": "output_dir",
    "LOG_INTERVAL": "log_interval",
    "VERBOSE": "verbose",
    "DEBUG": "debug",
    "DEBUG_INTERVAL": "debug_interval",
}

#: The profilers, by the names of their switches: those of the first generation, and those since.
PROFILERS = (
    *(key for name, key in LEGACY_NAMES.items() if name.startswith("ENABLE_")),
    "sampling_timing",
    "gpu_memory",
)

#: The profiler of what happens inside of forward passes: on unless `layers` is "off".
LAYER_TIMING = "layer_timing"


@lru_cache(maxsize=1)
def settings() -> dict[str, Any]:
    """All settings by key. Bad values are said on stderr, one line each, the first time."""
    values, problems = _native.settings()
    for problem in problems:
        _native.say(problem)
    values[LAYER_TIMING] = values["layers"] != "off"
    return values


def legacy_value(name: str) -> Any:
    """The value of a setting under the first generation's name."""
    if name == "USE_CUDA_EVENTS":
        return settings()["timing"] == "events"
    try:
        return settings()[LEGACY_NAMES[name]]
    except KeyError:
        raise AttributeError(f"ProfilingConfig has no setting {name!r}") from None
