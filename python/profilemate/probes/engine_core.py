"""The engine core: its steps, and when it has nothing to do. (`vllm/v1/engine/core.py`)"""

from __future__ import annotations

from typing import Any

from profilemate import _native, session
from profilemate.hooks import HookSpec, Reads


def data_parallel_rank(vllm_config: Any) -> int:
    """Rank of this engine among data-parallel ones.

    `data_parallel_index` keeps it where vLLM makes independent engines out of ranks and sets the rank itself to 0.
    """
    parallel_config = getattr(vllm_config, "parallel_config", None)
    for name in ("data_parallel_index", "data_parallel_rank"):
        rank = getattr(parallel_config, name, None)
        if isinstance(rank, int):
            return rank
    return 0


def _before_init(_self: Any, vllm_config: Any, *_args: Any, **_kwargs: Any) -> None:
    rank = data_parallel_rank(vllm_config)
    session.take_role("engine_core", rank, rank, vllm_config)


HOOKS = (
    HookSpec(
        name="engine_core.init",
        places=("vllm.v1.engine.core:EngineCore.__init__",),
        kind=_native.CALL,
        lane=_native.ENGINE,
        before=_before_init,
    ),
    HookSpec(
        name="engine_core.step",
        places=("vllm.v1.engine.core:EngineCore.step",),
        profilers=("cpu_timing",),
        lane=_native.ENGINE,
        span="engine_step",
        group="engine_core.step",
        closes_step=True,
        needs_step=True,
    ),
    HookSpec(
        name="engine_core.step_with_batch_queue",
        places=("vllm.v1.engine.core:EngineCore.step_with_batch_queue",),
        profilers=("cpu_timing",),
        lane=_native.ENGINE,
        span="engine_step",
        group="engine_core.step",
        closes_step=True,
        needs_step=True,
    ),
    HookSpec(
        name="engine_core.process_input_queue",
        places=("vllm.v1.engine.core:EngineCoreProc._process_input_queue",),
        profilers=("cpu_timing",),
        lane=_native.ENGINE,
        span="engine_idle",
        before=_native.before_process_input_queue,
    ),
)

READS = (
    Reads(
        ("vllm.config:ParallelConfig",),
        ("data_parallel_index", "data_parallel_rank"),
        ("engine_core.init", "scheduler.init", "worker.init"),
        one_of=True,
    ),
    Reads(
        ("vllm.config:VllmConfig",), ("parallel_config",), ("engine_core.init", "scheduler.init", "worker.init")
    ),
    Reads(
        ("vllm.v1.engine.core:EngineCoreProc",),
        ("has_work", "scheduler"),
        ("engine_core.process_input_queue",),
        one_of=True,
    ),
    Reads(("vllm.v1.core.sched.scheduler:Scheduler",), ("has_requests",), ("engine_core.process_input_queue",)),
)
