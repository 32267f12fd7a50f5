"""The worker: who it is, and what it does that is not work for requests. (`vllm/v1/worker/gpu_worker.py`)"""

from __future__ import annotations

from typing import Any

from profilemate import _native, session
from profilemate.hooks import HookSpec
from profilemate.probes import gpu_memory
from profilemate.probes.engine_core import data_parallel_rank
from profilemate.probes.model_runner import TIMED
from profilemate.session import hook_override
from profilemate.settings import settings

_GPU = "vllm.v1.worker.gpu_worker:Worker"
_CPU = "vllm.v1.worker.cpu_worker:CPUWorker"


def _before_init(
    _self: Any, vllm_config: Any, _local_rank: int = 0, rank: int = 0, *_args: Any, **kwargs: Any
) -> None:
    engine = data_parallel_rank(vllm_config)
    parallel_config = vllm_config.parallel_config
    # `rank` counts the workers of one engine; ours counts those of the session.
    rank = engine * int(parallel_config.world_size) + int(kwargs.get("rank", rank))
    session.take_role("worker", rank, engine, vllm_config)


#: Profiler → the hooks that it needs, of which one is enough.
_NEEDS = {
    "forward_pass_timing": ("model_runner.forward", "model_runner_v2.forward_begins"),
    "cpu_timing": ("model_runner.execute_model", "model_runner_v2.execute_model"),
    "sampling_timing": ("model_runner.sample", "model_runner_v2.sample"),
    "cuda_graph_tracking": ("cuda_graphs.dispatch", "cuda_graphs.dispatch_v2"),
}


def _after_load_model(_result: Any, worker: Any) -> None:
    runner = type(worker.model_runner)
    # Hooks on a runner of another family are never called. V2's are not all on the runner, but beside it.
    modules = {base.__module__ for base in runner.__mro__}
    if any(module.startswith("vllm.v1.worker.gpu.") for module in modules):
        modules |= {"vllm.v1.worker.gpu.kv_connector", "vllm.v1.worker.gpu.cudagraph_utils"}
    for profiler, hooks in _NEEDS.items():
        places = [place for hook in hooks for place in session.ATTACHED.places.get(hook, ())]
        if any(place.partition(":")[0] in modules for place in places):
            session.note_profiler(profiler, "on")
        else:
            session.note_profiler(
                profiler, f"could not attach: nothing to hook in {runner.__module__}.{runner.__qualname__}"
            )
    if settings()["sampling_timing"]:
        _native.watch_sampling()
    session.use_device()
    gpu_memory.watch(worker.model_runner)
    speculator = getattr(worker.model_runner, "speculator", None)
    if speculator is not None and hasattr(type(speculator), "propose"):
        hook_override(
            HookSpec(
                name="model_runner_v2.propose_drafts",
                places=(),
                profilers=TIMED,
                lane=_native.WORKER,
                marks=_native.MARK_DRAFT,
                span="drafting",
            ),
            type(speculator),
            "propose",
        )


def _warm_up(method: str, before: Any = None, after: Any = None) -> HookSpec:
    return HookSpec(
        name=f"worker.{method}",
        places=(f"{_GPU}.{method}", f"{_CPU}.{method}"),
        kind=_native.WARM_UP,
        lane=_native.WORKER,
        span="warm_up",
        context=method,
        group="worker.warm_up",
        before=before,
        after=after,
        # The CPU worker overrides some of them and inherits the others.
        everywhere=True,
    )


HOOKS = (
    HookSpec(
        name="worker.init",
        places=(f"{_GPU}.__init__",),
        kind=_native.CALL,
        lane=_native.WORKER,
        before=_before_init,
    ),
    _warm_up("load_model", after=_after_load_model),
    _warm_up("determine_available_memory"),
    _warm_up(
        "initialize_from_config",
        before=gpu_memory.before_initialize_from_config,
        after=gpu_memory.after_initialize_from_config,
    ),
    _warm_up("compile_or_warm_up_model"),
    HookSpec(
        name="worker.execute_dummy_batch",
        places=(f"{_GPU}.execute_dummy_batch", f"{_CPU}.execute_dummy_batch"),
        kind=_native.DUMMY,
        lane=_native.WORKER,
        span="dummy_batch",
        everywhere=True,
    ),
)
