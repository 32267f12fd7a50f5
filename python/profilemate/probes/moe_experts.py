"""The load of experts: which of them each MoE layer's router chose. (`vllm/model_executor/layers/fused_moe/`)

Routing is taken as the model does it, where vLLM itself captures it (`BaseRouter.set_capture_fn`), and never derived
again. It is bound when the layers are as they stay, and no CUDA graph was captured: when the worker begins to warm up;
on the CPU, where the model is compiled before that, as soon as it is loaded. What is counted, and when it becomes
records, is Rust (`crates/python/src/experts.rs`).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from profilemate import _native, session
from profilemate.hooks import Reads
from profilemate.settings import settings

_PROFILER = "moe_expert_tracking"

#: A function that is told what a router chose: a tensor of expert ids, by token and rank of the choice.
Told = Callable[[Any], None]


class BlindError(Exception):
    """Why the routing of a layer, or of a model, is not seen."""


@dataclass
class Layer:
    """An MoE layer and how to hear of its routing."""

    module: Any
    index: int
    experts: int
    top_k: int
    #: Why it is not counted.
    blind: str | None = None


def is_on_gpu(worker: Any) -> bool:
    """Whether the worker's model runs on a GPU."""
    return _device(worker) == "cuda"


def _device(worker: Any) -> str:
    return str(getattr(getattr(worker, "device", None), "type", "cpu"))


def watch_experts(worker: Any) -> None:
    """The layers are as they stay, and neither captured nor compiled: their experts are counted from here on."""
    if not settings()[_PROFILER]:
        return
    try:
        state = _watch(worker)
    except BlindError as reason:
        state = f"could not attach: {reason}"
    except Exception as error:
        state = f"could not attach: {type(error).__name__}: {error}"
    if state is not None:
        session.note_profiler(_PROFILER, state)


def _watch(worker: Any) -> str | None:
    """Counts from here on. Returns the profiler's state; `None`: another process counts the same."""
    layers = list(_layers(_model(worker.model_runner)))
    if not layers:
        return "could not attach: the model has no experts"
    parallel = worker.vllm_config.parallel_config
    if bool(getattr(parallel, "enable_dbo", False)) or int(getattr(parallel, "ubatch_size", 0)) > 1:
        raise BlindError("dual batch overlap runs the parts of a batch apart, and its rows are not told apart yet")
    if int(getattr(parallel, "prefill_context_parallel_size", 1)) > 1:
        raise BlindError("prefill context parallelism gathers tokens of several ranks")
    placement = _Placement(parallel)
    if not placement.counts:
        # Every rank of tensor parallelism sees the same routing.
        return None
    chosen = _chosen_layers(settings()["moe_layers"])
    for layer in layers:
        if layer.blind is None and chosen is not None and layer.index not in chosen:
            layer.blind = "not in moe_layers"
        if layer.blind is None and bool(getattr(parallel, "enable_eplb", False)):
            layer.blind = _blind_with_eplb(layer.module)
    watched = [layer for layer in layers if layer.blind is None]
    if watched:
        bind = _counter(worker, watched, placement)
        for place, layer in enumerate(watched):
            layer.blind = _bound(bind, place, layer)
    for layer in layers:
        if layer.blind is not None:
            _native.fact(f"moe_layer:{layer.index}", f"not seen: {layer.blind}")
    counted = [layer for layer in layers if layer.blind is None]
    if not counted:
        reasons = sorted({layer.blind for layer in layers if layer.blind is not None})
        raise BlindError("; ".join(reasons))
    values = settings()
    _native.fact("moe_coselection", str(int(values["moe_coselection"])))
    _native.fact("moe_weights", str(int(values["moe_weights"])))
    _native.fact("moe_layers", ",".join(str(layer.index) for layer in counted))
    return "on"


def _bound(bind: Callable[[int, Layer], None], place: int, layer: Layer) -> str | None:
    """Binds a layer. Returns why it cannot be, if so."""
    try:
        bind(place, layer)
    except BlindError as reason:
        return str(reason)
    return None


def _model(runner: Any) -> Any:
    get_model = getattr(runner, "get_model", None)
    model = get_model() if callable(get_model) else getattr(runner, "model", None)
    if not hasattr(model, "modules"):
        raise BlindError(f"{type(runner).__module__}.{type(runner).__qualname__} has no model to look at")
    return model


def _chosen_layers(setting: str) -> frozenset[int] | None:
    """The layers that `moe_layers` names; `None` = all."""
    return None if setting == "all" else frozenset(int(index) for index in setting.split(","))


def _first(*values: Any) -> int | None:
    """The first of these that is a number of at least 1."""
    for value in values:
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _layer_index(module: Any) -> int | None:
    index = getattr(module, "layer_id", None)
    if isinstance(index, int):
        return index
    # As vLLM's `extract_layer_index`: the number in `model.layers.3.mlp.experts`.
    numbers = re.findall(r"(?:^|\.)(\d+)(?=\.|$)", str(getattr(module, "layer_name", "")))
    return int(numbers[0]) if numbers else None


def _layers(model: Any) -> Iterator[Layer]:
    """The MoE layers of a model, in its order. Shared experts are no part of them: every token goes there."""
    for module in model.modules():
        router = getattr(module, "router", None)
        is_runner = hasattr(router, "set_capture_fn") and (
            hasattr(module, "routed_experts") or hasattr(module, "quant_method")
        )
        # Modules with kernels of their own offer `capture_fn` (vLLM's `RoutedExpertsCaptureSource`, 0.28 and newer).
        is_source = hasattr(module, "capture_fn") and hasattr(module, "layer_id")
        # vLLM 0.11 and 0.14: the layer is its own router.
        is_old = hasattr(module, "select_experts") and hasattr(module, "quant_method")
        if not (is_runner or is_source or is_old):
            continue
        config = getattr(module, "moe_config", None)
        index = _layer_index(module)
        # With EPLB there are more physical experts; routers choose logical ones.
        experts = _first(
            getattr(config, "num_logical_experts", None),
            getattr(module, "logical_num_experts", None),
            getattr(router, "global_num_experts", None),
            getattr(module, "global_num_experts", None),
            getattr(module, "n_routed_experts", None),
            getattr(module, "num_experts", None),
        )
        top_k = _first(
            getattr(router, "top_k", None),
            getattr(config, "experts_per_token", None),
            getattr(module, "top_k", None),
        )
        if index is None:
            continue
        layer = Layer(module, index, experts or 0, top_k or 0)
        if experts is None or top_k is None or experts > 65535:
            layer.blind = f"{type(module).__qualname__} does not say how many experts it has"
        yield layer


def _blind_with_eplb(module: Any) -> str | None:
    has_logical_ids = hasattr(getattr(module, "router", None), "set_capture_fn") or hasattr(module, "capture_fn")
    return None if has_logical_ids else "with EPLB, this version of vLLM tells of physical experts only"


def _is_monolithic(module: Any) -> bool:
    method = getattr(getattr(module, "routed_experts", module), "quant_method", None)
    return bool(getattr(method, "is_monolithic", False))


def _listen(module: Any, told: Told) -> None:
    """Has `told` called with what the layer's router chooses, beside whoever is told already."""
    if hasattr(module, "capture_fn") and not hasattr(module, "router"):
        module.capture_fn = _both(module.capture_fn, told)
    elif _is_monolithic(module):
        _listen_to_kernel(module, told)
    elif hasattr(getattr(module, "router", None), "set_capture_fn"):
        router: Any = module.router
        router.set_capture_fn(_both(getattr(router, "capture_fn", None), told))
    elif hasattr(module, "_select_experts"):
        # vLLM 0.14: `select_experts` of its router calls this one.
        inner = module._select_experts

        def select_experts(*args: Any, **kwargs: Any) -> Any:
            result = inner(*args, **kwargs)
            told(result[1])
            return result

        module._select_experts = select_experts
    else:
        raise BlindError(f"{type(module).__qualname__} tells nobody which experts it chose (vLLM before 0.14)")


def _both(first: Told | None, second: Told) -> Told:
    if first is None:
        return second

    def both(chosen: Any) -> None:
        first(chosen)
        second(chosen)

    return both


def _listen_to_kernel(module: Any, told: Told) -> None:
    """Kernels that route by themselves: some can be asked to write down what they chose."""
    routed = getattr(module, "routed_experts", module)
    kernel = getattr(getattr(routed, "quant_method", None), "moe_kernel", None)
    experts: Any = getattr(getattr(kernel, "impl", None), "fused_experts", None)
    name = type(experts if experts is not None else getattr(routed, "quant_method", None)).__name__
    supports = getattr(experts, "supports_routing_replay_capture", None)
    if not callable(supports) or not supports():
        raise BlindError(f"the kernel {name} routes by itself and does not tell")
    if hasattr(experts, "set_capture_fn"):  # vLLM 0.28
        previous = getattr(experts, "capture_fn", None) or getattr(experts, "_capture_fn", None)
        experts.set_capture_fn(_both(previous, told))
        return
    capturer = sys.modules.get("vllm.model_executor.layers.fused_moe.routed_experts_capturer")
    make_sink = getattr(capturer, "RoutedExpertsSink", None)
    if not hasattr(routed, "routing_sink") or make_sink is None:
        raise BlindError(f"the kernel {name} routes by itself and does not tell")
    if routed.routing_sink is None:
        routed.routing_sink = make_sink(experts.moe_config, told)
    else:
        routed.routing_sink.capture_fn = _both(routed.routing_sink.capture_fn, told)


def _listen_to_weights(module: Any, told: Told) -> None:
    """Has `told` called with the routing weights of each choice."""
    router: Any = getattr(module, "router", None)
    if _is_monolithic(module) or not callable(getattr(router, "select_experts", None)):
        return
    inner = router.select_experts

    def select_experts(*args: Any, **kwargs: Any) -> Any:
        result = inner(*args, **kwargs)
        told(result[0])
        return result

    router.select_experts = select_experts


class _Placement:
    """Which rows of a batch are tokens of this process, with the experts spread over several.

    The layouts are those of vLLM's `RoutedExpertsCapturer`.
    """

    def __init__(self, parallel: Any) -> None:
        distributed = sys.modules.get("vllm.distributed.parallel_state")
        tensor_rank = getattr(distributed, "get_tensor_model_parallel_rank", None)
        self.tensor_size = int(getattr(parallel, "tensor_parallel_size", 1))
        self.tensor_rank = int(tensor_rank()) if tensor_rank and self.tensor_size > 1 else 0
        self.data_rank = int(getattr(parallel, "data_parallel_rank", 0))
        self.is_sequence_parallel = bool(getattr(parallel, "use_sequence_parallel_moe", False))
        self.is_alone = int(getattr(parallel, "data_parallel_size", 1)) == 1 and not self.is_sequence_parallel
        #: With sequence parallelism each rank has tokens of its own; else all ranks have the same.
        self.counts = self.tensor_rank == 0 or self.is_sequence_parallel

    def of(self, rows: int) -> tuple[int, int]:
        """The first row of this process in a batch of so many rows, and which of its tokens that is."""
        if self.is_alone:
            return 0, 0
        from vllm.forward_context import get_forward_context

        metadata = get_forward_context().dp_metadata
        if metadata is None:
            return 0, 0
        tokens = [int(count) for count in metadata.num_tokens_across_dp_cpu]
        local, before = tokens[self.data_rank], sum(tokens[: self.data_rank])
        shards = getattr(metadata, "local_sizes", None)
        if rows == local:
            return self._once(0)
        if rows == sum(tokens):
            return self._once(before)
        if shards is not None and rows == sum(shards):
            first = self.data_rank * (len(shards) // len(tokens))
            return self._once(sum(shards[:first]))
        if rows == -(-local // self.tensor_size):
            return 0, self.tensor_rank * rows
        raise BlindError(f"a batch of {rows} rows, with {tokens} tokens over the data-parallel ranks")

    def _once(self, first_row: int) -> tuple[int, int]:
        """Whole batches are the same on all tensor-parallel ranks: one counts them."""
        return first_row, 0 if self.tensor_rank == 0 else 0xFFFF_FFFF


def _counter(worker: Any, layers: list[Layer], placement: _Placement) -> Callable[[int, Layer], None]:
    """Makes the counters. What is returned binds the layer in a place to them."""
    device = _device(worker)
    values = settings()
    coselection, weights = bool(values["moe_coselection"]), bool(values["moe_weights"])
    if device == "cuda":
        reason = session.use_device_code()
        if reason is not None:
            raise BlindError(reason)
        bind = _gpu_binder(placement, weights)
    elif device == "cpu":
        bind = _cpu_binder(placement, weights)
        _mark_compiled_code(worker.vllm_config)
    else:
        raise BlindError(f"experts are counted on CUDA and on the CPU, and this model runs on {device}")
    shapes = [(layer.index, layer.experts, layer.top_k) for layer in layers]
    interval = values["moe_interval_seconds"]
    try:
        _native.watch_experts(shapes, coselection, weights, interval, device == "cuda")
    except ValueError as error:
        raise BlindError(str(error)) from None
    return bind


def _cpu_binder(placement: _Placement, weights: bool) -> Callable[[int, Layer], None]:
    operations = _cpu_operations(placement)

    def bind(place: int, layer: Layer) -> None:
        # Overloads: of what has several, torch's graphs do not know that it changes something, and leave it out.
        count, count_weights = operations.count_experts.default, operations.count_expert_weights.default

        # Dynamo goes through these: nothing may be in them but the operation.
        def told(chosen: Any) -> None:
            count(chosen, place)

        def told_weights(weights: Any) -> None:
            count_weights(weights, place)

        _listen(layer.module, told)
        if weights:
            _listen_to_weights(layer.module, told_weights)

    return bind


#: torch's types of ids and of weights, as `_native.launch_expert_counts` knows them.
_IDS = {"torch.int16": "i2", "torch.int32": "i4", "torch.uint32": "i4", "torch.int64": "i8"}
_WEIGHTS = {"torch.float32": "f4", "torch.bfloat16": "bf2", "torch.float16": "f2"}


def _gpu_binder(placement: _Placement, weights: bool) -> Callable[[int, Layer], None]:
    """Has kernels launched where routers choose: once for a graph that is captured, and in each pass without one."""

    def teller(place: int, kinds: dict[str, str], may_fork: bool, held: list[Any]) -> Told:
        # By torch's own objects, of which a router uses one: making their names takes a microsecond.
        seen: dict[Any, str] = {}

        def told(tensor: Any) -> None:
            try:
                kind = seen.get(tensor.dtype)
                if kind is None:
                    kind = kinds.get(str(tensor.dtype))
                    if kind is None:
                        raise BlindError(f"a tensor of {tensor.dtype}")
                    seen[tensor.dtype] = kind
                rows, columns = tensor.shape
                first_row, first_token = placement.of(rows)
                tensor = tensor.contiguous()
                if _native.launch_expert_counts(
                    place, kind, tensor.data_ptr(), rows, columns, first_row, first_token, may_fork
                ):
                    # Its memory is not given to anybody else in the graph before the branch is joined.
                    held.append(tensor)
            except Exception as error:
                _native.experts_failed(f"{type(error).__name__}: {error}")

        return told

    def bind(place: int, layer: Layer) -> None:
        held: list[Any] = []
        may_fork = _join_behind_experts(layer.module, held)
        _listen(layer.module, teller(place, _IDS, may_fork, held))
        if weights:
            _listen_to_weights(layer.module, teller(place, _WEIGHTS, may_fork, held))

    return bind


def _join_behind_experts(module: Any, held: list[Any]) -> bool:
    """Joins what was forked off when the experts are done. `False`: there is no place for that, and none may fork."""
    routed = getattr(module, "routed_experts", module)
    places = (
        (module, "_apply_quant_method"),  # vLLM 0.24 and newer
        (getattr(routed, "quant_method", None), "apply"),  # vLLM 0.17 and 0.20
    )
    for owner, name in places:
        inner = getattr(owner, name, None)
        if owner is None or not callable(inner):
            continue

        def joined(*args: Any, _inner: Any = inner, **kwargs: Any) -> Any:
            try:
                return _inner(*args, **kwargs)
            finally:
                if held:
                    _native.join_experts()
                    held.clear()

        setattr(owner, name, joined)
        return True
    return False


def _mark_compiled_code(vllm_config: Any) -> None:
    """Compiled code that counts has another key in vLLM's cache than compiled code that does not.

    On the CPU, torch.compile goes through the router. Without this, vLLM would load what it compiled without us, or,
    when we are gone, code that calls an operation which is not there. `additional_config` is a part of the key in every
    version.
    """
    mode = getattr(getattr(vllm_config, "compilation_config", None), "mode", None)
    additional = getattr(vllm_config, "additional_config", None)
    if isinstance(additional, dict):
        additional["profilemate_counts_experts"] = True
    elif str(getattr(mode, "name", mode)) not in ("NONE", "None", "0"):
        raise BlindError(
            "additional_config is no dict, and compiled code that counts could be taken for vLLM's own"
        )


def _nothing(told: Any, place: int) -> None:
    """What an operation does to tensors that torch.compile only imagines."""


class _Operations:
    """The operations of this process; torch keeps them for good."""

    #: What holds them in torch's table.
    library: Any = None
    placement: _Placement


def _cpu_operations(placement: _Placement) -> Any:
    """Operations that torch.compile leaves as they are: they are said to change their tensor, so none is taken out."""
    import torch

    _Operations.placement = placement
    if _Operations.library is not None:
        return torch.ops.profilemate

    def count_experts(chosen: Any, place: int) -> None:
        try:
            rows, columns = chosen.shape
            row_stride, column_stride = chosen.stride()
            first_row, first_token = _Operations.placement.of(rows)
            _native.count_experts(
                place,
                chosen.data_ptr(),
                rows,
                columns,
                row_stride,
                column_stride,
                chosen.element_size(),
                first_row,
                first_token,
            )
        except Exception as error:
            _native.experts_failed(f"{type(error).__name__}: {error}")

    def count_expert_weights(weights: Any, place: int) -> None:
        try:
            weights = weights.float()
            rows, columns = weights.shape
            row_stride, column_stride = weights.stride()
            first_row, first_token = _Operations.placement.of(rows)
            _native.count_expert_weights(
                place, weights.data_ptr(), rows, columns, row_stride, column_stride, first_row, first_token
            )
        except Exception as error:
            _native.experts_failed(f"{type(error).__name__}: {error}")

    library = torch.library.Library("profilemate", "FRAGMENT")
    for name, function in (("count_experts", count_experts), ("count_expert_weights", count_expert_weights)):
        library.define(f"{name}(Tensor(a!) told, int place) -> ()")
        library.impl(name, function, "CPU")
        torch.library.register_fake(f"profilemate::{name}", _nothing, lib=library)
    _Operations.library = library
    return torch.ops.profilemate


_WARMS_UP = ("worker.compile_or_warm_up_model",)
_FUSED = "vllm.model_executor.layers.fused_moe"

READS = (
    Reads(
        (f"{_FUSED}.router.base_router:BaseRouter",),
        ("set_capture_fn", "capture_fn", "select_experts", "top_k", "global_num_experts"),
        _WARMS_UP,
        without="a router tells nobody what it chose: before 0.14 `moe_expert_tracking` could not attach, in 0.14 to "
        "0.16 the layer itself is asked",
    ),
    Reads(
        ("vllm.config:ParallelConfig",), ("enable_eplb", "tensor_parallel_size", "data_parallel_size"), _WARMS_UP
    ),
    Reads(("vllm.config:VllmConfig",), ("additional_config", "compilation_config"), _WARMS_UP),
)
