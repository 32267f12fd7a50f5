"""CUDA graphs: which were captured, and what each step's batch was dispatched as.

Counted once per step, at the place that decides; the call that replays is not touched, for a piecewise graph makes it
once per piece. (V1: `vllm/v1/worker/gpu_model_runner.py`; V2: `vllm/v1/worker/gpu/`)
"""

from __future__ import annotations

from typing import Any

from profilemate import _native
from profilemate.hooks import HookSpec, Reads
from profilemate.probes import gpu_memory

_V1 = "vllm.v1.worker.gpu_model_runner:GPUModelRunner"
_V2 = "vllm.v1.worker.gpu.model_runner"
_V2_GRAPHS = "vllm.v1.worker.gpu.cudagraph_utils"
_NO_V2 = "vLLM 0.11 has no V2 model runner: nothing is lost"


def _mode_name(mode: Any) -> str:
    return str(getattr(mode, "name", mode))


def descriptor_text(mode: Any, descriptor: Any) -> str:
    """A descriptor as it stands in the log. Attributes that a version does not have are left out."""
    name = _mode_name(mode)
    if name == "NONE":
        # Every size of an eager batch would be a descriptor of its own.
        return name
    uniform = getattr(descriptor, "uniform", None)
    if uniform is None:
        uniform = getattr(descriptor, "uniform_decode", None)
    if uniform is None and hasattr(descriptor, "uniform_token_count"):
        uniform = descriptor.uniform_token_count is not None
    has_lora = getattr(descriptor, "has_lora", None)
    if has_lora is None and hasattr(descriptor, "num_active_loras"):
        has_lora = descriptor.num_active_loras > 0
    fields = {
        "num_tokens": getattr(descriptor, "num_tokens", None),
        "num_reqs": getattr(descriptor, "num_reqs", None),
        "uniform": None if uniform is None else int(bool(uniform)),
        "has_lora": None if has_lora is None else int(bool(has_lora)),
    }
    return " ".join([name, *(f"{key}={value}" for key, value in fields.items() if value is not None)])


class _Captures:
    """Captures that are under way in this process. Rare: everything here runs before the first request."""

    #: Whether graphs are captured to be kept, not to estimate their memory.
    kept = False
    #: V1: descriptor and beginning of the capture under way.
    v1: tuple[str, int] | None = None
    #: V2: what is still to be captured: descriptor and how often its inputs are prepared.
    v2_plan: list[tuple[str, int]] = []  # noqa: RUF012  (one per process on purpose)
    v2_prepared = 0
    v2_begin: int | None = None


def _write(text: str, begin: int) -> None:
    _native.write_span("graph_capture", begin, _native.ticks(), context=text)


def _before_capture_model(_runner: Any, *_args: Any, **kwargs: Any) -> None:
    _Captures.kept = not kwargs.get("profile_only", False)


def _after_capture_model(taken: Any, _runner: Any) -> None:
    if _Captures.kept:
        gpu_memory.note_cuda_graphs(taken)
    _Captures.kept = False


def before_v1_dummy_run(_runner: Any, num_tokens: int, *args: Any, **kwargs: Any) -> None:
    """A dummy run that captures: V1 captures a graph by running the model once in its mode."""
    mode = kwargs.get("cudagraph_runtime_mode", args[0] if args else None)
    _Captures.v1 = None
    if not _Captures.kept or mode is None or _mode_name(mode) == "NONE":
        return
    uniform = kwargs.get("uniform_decode")
    fields = [f"num_tokens={num_tokens}", *([] if uniform is None else [f"uniform={int(uniform)}"])]
    loras = kwargs.get("num_active_loras")
    if loras is not None:
        fields.append(f"has_lora={int(loras > 0)}")
    _Captures.v1 = " ".join([_mode_name(mode), *fields]), _native.ticks()


def after_v1_dummy_run(_result: Any, _runner: Any) -> None:
    """The dummy run is over, and so is the capture."""
    if _Captures.v1 is not None:
        _write(*_Captures.v1)
        _Captures.v1 = None


def _before_v2_capture(manager: Any, *_args: Any, **_kwargs: Any) -> None:
    _Captures.v2_plan = []
    if not _Captures.kept:
        return
    breakable = bool(getattr(manager, "use_breakable_cg", False))
    # vLLM captures in this order, and prepares a graph's inputs once for its warm-up and once more for the capture,
    # except where torch.compile's own piecewise graphs capture as they run.
    modes = sorted(manager._capture_descs, key=lambda mode: _mode_name(mode) == "FULL")
    for mode in modes:
        once = _mode_name(mode) == "PIECEWISE" and not breakable
        for descriptor in manager._capture_descs[mode]:
            _Captures.v2_plan.append((descriptor_text(mode, descriptor), 1 if once else 2))
    _Captures.v2_prepared, _Captures.v2_begin = 0, None


def _end_v2_capture() -> None:
    if _Captures.v2_begin is not None:
        text, _ = _Captures.v2_plan.pop(0)
        _write(text, _Captures.v2_begin)
        _Captures.v2_prepared, _Captures.v2_begin = 0, None


def _before_v2_prepare(*_args: Any, **_kwargs: Any) -> None:
    if not _Captures.v2_plan:
        return
    _end_v2_capture()
    if _Captures.v2_plan:
        _Captures.v2_prepared += 1
        if _Captures.v2_prepared >= _Captures.v2_plan[0][1]:
            _Captures.v2_begin = _native.ticks()


def _after_v2_capture(_result: Any, _manager: Any) -> None:
    if _Captures.v2_plan:
        _end_v2_capture()
    _Captures.v2_plan = []


def _capture_model(place: str) -> HookSpec:
    return HookSpec(
        name="cuda_graphs.capture_model" if place.startswith(_V1) else "cuda_graphs.capture_model_v2",
        places=(place,),
        profilers=("cuda_graph_tracking", "gpu_memory"),
        kind=_native.WARM_UP,
        lane=_native.WORKER,
        span="warm_up",
        context="capture_model",
        group="worker.capture_model",
        before=_before_capture_model,
        after=_after_capture_model,
        optional=not place.startswith(_V1),
        without="" if place.startswith(_V1) else _NO_V2,
    )


HOOKS = (
    _capture_model(f"{_V1}.capture_model"),
    HookSpec(
        name="cuda_graphs.dispatch",
        places=(f"{_V1}._determine_batch_execution_and_padding",),
        profilers=("cuda_graph_tracking", "forward_pass_timing"),
        kind=_native.CALL,
        lane=_native.WORKER,
        after=_native.Dispatch(descriptor_text, "", "uniform"),
        without="vLLM 0.11 decides on a graph in the middle of `execute_model`: the tables of CUDA graphs are missing, "
        "and cudagraph_mode and padded_tokens of forward_pass_timing.csv are empty",
    ),
    _capture_model(f"{_V2}:GPUModelRunner.capture_model"),
    HookSpec(
        name="cuda_graphs.dispatch_v2",
        places=(f"{_V2}:dispatch_cg_and_sync_dp",),
        profilers=("cuda_graph_tracking", "forward_pass_timing"),
        kind=_native.CALL,
        lane=_native.WORKER,
        after=_native.Dispatch(descriptor_text, "cg_mode", "uniform_token_count"),
        optional=True,
        without="before vLLM 0.20 the V2 model runner, which has to be asked for there, decides on a graph elsewhere: "
        "with it, the tables of CUDA graphs are missing",
    ),
    HookSpec(
        name="cuda_graphs.capture_v2",
        places=(f"{_V2_GRAPHS}:ModelCudaGraphManager.capture",),
        profilers=("cuda_graph_tracking",),
        kind=_native.CALL,
        lane=_native.WORKER,
        before=_before_v2_capture,
        after=_after_v2_capture,
        optional=True,
        without="before vLLM 0.18 the V2 model runner, which has to be asked for there, captures elsewhere: with it, "
        "cuda_graph_captures.csv has no rows",
    ),
    HookSpec(
        name="cuda_graphs.prepare_v2",
        places=(f"{_V2_GRAPHS}:prepare_inputs_to_capture",),
        profilers=("cuda_graph_tracking",),
        kind=_native.CALL,
        lane=_native.WORKER,
        before=_before_v2_prepare,
        optional=True,
        without=_NO_V2,
    ),
)

_DISPATCH = ("cuda_graphs.dispatch",)
_DISPATCH_V2 = ("cuda_graphs.dispatch_v2",)
_DESCRIPTOR = ("vllm.forward_context:BatchDescriptor",)
_DESCRIPTOR_V2 = (f"{_V2_GRAPHS}:BatchExecutionDescriptor",)
_DUMMY_RUN = (f"{_V1}._dummy_run()",)

READS = (
    Reads(_DESCRIPTOR, ("num_tokens",), _DISPATCH),
    Reads(_DESCRIPTOR, ("uniform", "uniform_decode"), _DISPATCH, one_of=True),
    Reads(_DESCRIPTOR, ("num_reqs",), _DISPATCH, without="num_reqs of descriptors is empty"),
    Reads(
        _DESCRIPTOR,
        ("has_lora", "num_active_loras"),
        _DISPATCH,
        one_of=True,
        without="has_lora of descriptors is empty",
    ),
    Reads(_DESCRIPTOR_V2, ("cg_mode", "num_tokens", "num_reqs", "uniform_token_count"), _DISPATCH_V2),
    Reads(
        _DESCRIPTOR_V2,
        ("num_active_loras",),
        _DISPATCH_V2,
        without="graphs are not captured for numbers of adapters there: has_lora of descriptors is empty",
    ),
    Reads(_DUMMY_RUN, ("cudagraph_runtime_mode", "uniform_decode"), ("model_runner.dummy_run",)),
    Reads(_DUMMY_RUN, ("num_active_loras",), ("model_runner.dummy_run",), without="has_lora of captures is empty"),
    Reads(
        (f"{_V2}:GPUModelRunner.capture_model()",),
        ("profile_only",),
        ("cuda_graphs.capture_model_v2",),
        without="every capture is kept there: nothing is lost",
    ),
    Reads((f"{_V2_GRAPHS}:ModelCudaGraphManager",), ("_capture_descs",), ("cuda_graphs.capture_v2",)),
    Reads(
        (f"{_V2_GRAPHS}:ModelCudaGraphManager",),
        ("use_breakable_cg",),
        ("cuda_graphs.capture_v2",),
        without="there are no breakable graphs there: nothing is lost",
    ),
)
