"""The probes: one file per component of vLLM. Each lists its hooks in `HOOKS`."""

from __future__ import annotations

from profilemate.hooks import HookSpec, Reads
from profilemate.probes import (
    cuda_graphs,
    encoder,
    engine_core,
    front_end,
    gpu_memory,
    kv_cache,
    layers,
    model_runner,
    model_runner_v2,
    moe_experts,
    requests,
    scheduler,
    worker,
)

#: Every hook, in the order in which they are attached where several are in one module.
HOOKS: tuple[HookSpec, ...] = (
    *front_end.HOOKS,
    *engine_core.HOOKS,
    *scheduler.HOOKS,
    *requests.HOOKS,
    *worker.HOOKS,
    *model_runner.HOOKS,
    *model_runner_v2.HOOKS,
    *cuda_graphs.HOOKS,
    *encoder.HOOKS,
)

#: Hooks that a probe puts in place by itself, where a vLLM needs them.
LATE_HOOKS: tuple[HookSpec, ...] = (requests.FREE_IN_SCHEDULE,)

#: What the probes read of vLLM's objects.
READS: tuple[Reads, ...] = (
    *front_end.READS,
    *engine_core.READS,
    *scheduler.READS,
    *requests.READS,
    *kv_cache.READS,
    *worker.READS,
    *model_runner.READS,
    *model_runner_v2.READS,
    *gpu_memory.READS,
    *layers.READS,
    *cuda_graphs.READS,
    *encoder.READS,
    *moe_experts.READS,
)
