"""The worker: who it is, and what it does that is not work for requests. (`vllm/v1/worker/gpu_worker.py`)"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from profilemate import _native, session
from profilemate.hooks import HookSpec, Reads
from profilemate.probes import encoder, gpu_memory, layers, moe_experts
from profilemate.probes.engine_core import data_parallel_rank
from profilemate.probes.model_runner import FORWARD, TIMED
from profilemate.session import hook_override
from profilemate.settings import LAYER_TIMING, settings

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


def _hook_model(runner: Any) -> set[str]:
    """Hooks the model itself, where the runner has no method that calls it. Returns the modules that are hooked in."""
    model = type(runner.model)
    # What replays graphs, and a model that is compiled as a whole, is called; of others torch calls `forward`.
    is_called = any("__call__" in vars(base) for base in model.__mro__ if base.__module__.startswith("vllm."))
    hook_override(FORWARD, model, "__call__" if is_called else "forward")
    return {base.__module__ for base in model.__mro__}


def _after_load_model(_result: Any, worker: Any) -> None:
    runner = type(worker.model_runner)
    # Hooks on a runner of another family are never called. V2's are not all on the runner, but beside it.
    modules = {base.__module__ for base in runner.__mro__}
    if any(module.startswith("vllm.v1.worker.gpu.") for module in modules):
        modules |= {"vllm.v1.worker.gpu.kv_connector", "vllm.v1.worker.gpu.cudagraph_utils"}
    elif FORWARD.name in session.ATTACHED.absent:
        modules |= _hook_model(worker.model_runner)
    for profiler, hooks in _NEEDS.items():
        places = [
            place
            for hook, at in session.ATTACHED.places.items()
            if hook.partition(" ")[0] in hooks
            for place in at
        ]
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
    if settings()["encoder_decoder_timing"]:
        encoder.watch(worker)
    # The CPU worker compiles the model when it looks for memory.
    if not moe_experts.is_on_gpu(worker):
        moe_experts.watch_experts(worker)
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


#: What binds itself to the model before graphs are captured, with code of ours on the GPU: profiler → what to call with
#: the worker. It returns why it cannot, if so.
_BINDERS: dict[str, Callable[[Any], str | None]] = {LAYER_TIMING: layers.bind}


def _before_capture(worker: Any, *_args: Any, **_kwargs: Any) -> None:
    """The model is loaded and no graph is captured yet. Whatever fails here costs a profiler, and no capture."""
    if moe_experts.is_on_gpu(worker):
        moe_experts.watch_experts(worker)
    wanted = [profiler for profiler in _BINDERS if settings()[profiler]]
    if not wanted:
        return
    reason = session.use_device_code()
    for profiler in wanted:
        why = reason
        if why is None:
            try:
                why = _BINDERS[profiler](worker)
            except Exception as error:
                why = f"{type(error).__name__}: {error}"
        if why is None:
            _native.use_step_word()
        session.note_profiler(profiler, "on" if why is None else f"could not attach: {why}")


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
    _warm_up("load_model", before=encoder.before_load_model, after=_after_load_model),
    _warm_up("determine_available_memory"),
    _warm_up(
        "initialize_from_config",
        before=gpu_memory.before_initialize_from_config,
        after=gpu_memory.after_initialize_from_config,
    ),
    _warm_up("compile_or_warm_up_model", before=_before_capture),
    HookSpec(
        name="worker.execute_dummy_batch",
        places=(f"{_GPU}.execute_dummy_batch", f"{_CPU}.execute_dummy_batch"),
        kind=_native.DUMMY,
        lane=_native.WORKER,
        span="dummy_batch",
        everywhere=True,
    ),
)

READS = (
    Reads(("vllm.v1.worker.gpu_model_runner:GPUModelRunner",), ("model",), ("model_runner.execute_model",)),
    Reads(("vllm.v1.worker.gpu_worker:Worker.__init__()",), ("vllm_config", "rank"), ("worker.init",)),
    Reads(("vllm.config:ParallelConfig",), ("world_size",), ("worker.init",)),
    Reads(("vllm.v1.worker.gpu_worker:Worker",), ("model_runner",), ("worker.load_model",)),
    Reads(
        ("vllm.v1.worker.gpu.model_runner:GPUModelRunner",),
        ("speculator",),
        ("model_runner_v2.execute_model",),
        without="the V2 runner drafts no tokens there",
    ),
    Reads(
        (
            "vllm.v1.worker.gpu.spec_decode.speculator:BaseSpeculator",
            "vllm.v1.worker.gpu.spec_decode.eagle.speculator:EagleSpeculator",
            "vllm.v1.worker.gpu.spec_decode.eagle:EagleSpeculator",
        ),
        ("propose",),
        ("model_runner_v2.execute_model",),
    ),
)
