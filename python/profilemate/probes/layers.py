"""The parts of a model: attention, routers and experts, collectives, blocks of encoders, the sampler, stamped on the
GPU's clock.

What is bound here are Python functions that run eagerly or while a graph is captured, never under `torch.compile`: what
the bodies of vLLM's opaque operators call (`vllm/model_executor/layers/attention`, `layers/fused_moe`,
`vllm/distributed/parallel_state.py`). They are bound on the objects of the loaded model, before graphs are captured. So
the stamps are in the graphs, and where no graph is used they are launched as the functions run.

With `sample`, the first, the middle and the last layer of each kind are stamped, and the collectives that follow them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from profilemate import _native
from profilemate.hooks import Reads
from profilemate.probes import encoder
from profilemate.settings import settings


@dataclass
class _Place:
    """A function of an object of the model that is to be stamped."""

    component: str
    #: What tells layers of one kind from those of another.
    kind: str
    layer: int
    owner: Any
    method: str
    #: Number of attention layer in the order of the model, for those that the collectives follow on; -1 = none.
    order: int = -1


def _method(owner: Any, *names: str) -> str | None:
    """The first of these methods that there is."""
    return next((name for name in names if callable(getattr(owner, name, None))), None)


def _window(layer: Any) -> bool:
    """Whether a layer attends to a window only."""
    window = getattr(layer, "sliding_window", None)
    if window is None:
        window = getattr(getattr(layer, "impl", None), "sliding_window", None)
    if isinstance(window, tuple | list):
        return any(isinstance(side, int) and side >= 0 for side in window)
    return isinstance(window, int) and window > 0


def _layer_number(name: str) -> int:
    """The first number in a layer's name, which vLLM counts layers by; -1 = none."""
    found = re.search(r"(?:^|\.)(\d+)(?:\.|$)", name)
    return int(found[1]) if found else -1


def _attention(name: str, layer: Any) -> _Place | None:
    """An attention layer, or what stands in its place."""
    class_name, number = type(layer).__name__, _layer_number(name)
    owner, method = layer, None
    if "MLA" in class_name:
        # From 0.17 on the operator calls the layer, before that its implementation.
        method = _method(layer, "forward_impl")
        component, kind = "attention", "latent"
    elif "CrossAttention" in class_name or str(getattr(layer, "attn_type", "")) == "encoder_decoder":
        component, kind = "cross_attention", "cross"
    elif hasattr(layer, "impl"):
        component, kind = "attention", "sliding window" if _window(layer) else "full"
    else:
        # Mamba and linear attention: what their operators call.
        method = _method(layer, "_forward_core", "conv_ssm_forward", "forward_impl")
        component, kind = "linear_attention", class_name
        if method is None:
            return None
    if method is None:
        owner = getattr(layer, "impl", None)
        method = _method(owner, "forward")
    return None if owner is None or method is None else _Place(component, kind, number, owner, method)


def _experts(name: str, layer: Any) -> Iterable[_Place]:
    """A layer of experts: choosing them, and their work."""
    number, class_name = _layer_number(name), type(layer).__name__
    router = getattr(layer, "router", None)
    if router is not None and _method(router, "select_experts"):
        yield _Place("router", class_name, number, router, "select_experts")
    experts = getattr(layer, "routed_experts", None)
    quant_method = getattr(layer, "quant_method", None)
    if experts is not None and _method(experts, "forward_modular"):
        monolithic = bool(getattr(getattr(experts, "quant_method", None), "is_monolithic", False))
        method = "forward_monolithic" if monolithic else "forward_modular"
        yield _Place("experts", class_name, number, experts, method)
    elif _method(quant_method, "apply"):
        monolithic = bool(getattr(quant_method, "is_monolithic", False)) and hasattr(
            quant_method, "apply_monolithic"
        )
        # Up to vLLM 0.14 it chooses the experts as well.
        component = "experts" if router is not None else "router_and_experts"
        yield _Place(component, class_name, number, quant_method, "apply_monolithic" if monolithic else "apply")


def _is_experts(layer: Any) -> bool:
    return any("MoE" in base.__name__ for base in type(layer).__mro__)


def _places(vllm_config: Any) -> list[_Place]:
    """Every place of the model, in the order of its layers."""
    layers = vllm_config.compilation_config.static_forward_context
    found: list[_Place] = []
    order = 0
    for name, layer in layers.items():
        if _is_experts(layer):
            found.extend(_experts(name, layer))
            continue
        place = _attention(name, layer)
        if place is not None:
            if place.component != "cross_attention":
                place.order = order
                order += 1
            found.append(place)
    return found


def _is_compiled(module: Any) -> bool:
    """Whether torch.compile goes through a module, which vLLM's decorator for that then says."""
    return getattr(module, "do_not_compile", True) is False


def _encoder_blocks(worker: Any) -> list[_Place]:
    """The blocks of encoders: of each tower, the longest list of modules in it.

    They run eagerly, or in CUDA graphs of encoders, which are captured after this. What torch.compile goes through is
    left alone.
    """
    get_model = getattr(worker.model_runner, "get_model", None)
    model: Any = get_model() if callable(get_model) else getattr(worker.model_runner, "model", None)
    if not hasattr(model, "named_modules"):
        return []
    modules = dict(model.named_modules())
    found: list[_Place] = []
    for kind, names in encoder.towers(model).items():
        for name in names:
            lists = [
                (inner, module)
                for inner, module in modules.items()
                if inner.startswith(f"{name}.") and type(module).__name__ == "ModuleList"
            ]
            path, blocks = max(lists, key=lambda each: len(each[1]), default=("", ()))
            above = [module for inner, module in modules.items() if inner and f"{path}.".startswith(f"{inner}.")]
            if len(blocks) < 2 or any(_is_compiled(module) for module in (*above, *blocks)):
                continue
            found.extend(
                _Place("encoder_block", kind, number, block, "forward") for number, block in enumerate(blocks)
            )
    return found


def _chosen(places: list[_Place], everything: bool) -> list[_Place]:
    """The places that are stamped: all, or the first, the middle and the last of each kind."""
    if everything:
        return places
    kinds: dict[tuple[str, str], list[_Place]] = {}
    for place in places:
        kinds.setdefault((place.component, place.kind), []).append(place)
    chosen = {
        id(of_kind[at]) for of_kind in kinds.values() for at in (0, (len(of_kind) - 1) // 2, len(of_kind) - 1)
    }
    return [place for place in places if id(place) in chosen]


def _tensor_parallel_group() -> Any:
    """vLLM's tensor-parallel group, if it is of several ranks."""
    module = sys.modules.get("vllm.distributed.parallel_state")
    group = getattr(module, "_TP", None)
    return group if getattr(group, "world_size", 1) > 1 else None


#: `Hook.stamp` of the first place: its pair plus 1, and the first pair is the empty one.
_FIRST_STAMP = 2

#: Objects and functions that are stamped in this process.
_hooked: set[tuple[int, str]] = set()


def _hook(owner: Any, method: str, name: str, stamp: int, section: int = 0) -> None:
    if (id(owner), method) in _hooked:
        # Layers that share an object: what it does is not of one layer.
        return
    _hooked.add((id(owner), method))
    target = getattr(owner, method)
    hook = _native.Hook(target, name, kind=_native.CALL, lane=_native.WORKER, stamp=stamp, section=section)
    setattr(owner, method, hook)


#: Functions of a group of ranks that run a collective: what vLLM's opaque operators call.
_COLLECTIVES = (
    ("all_reduce", "_all_reduce_out_place", _native.STAMP_ALL_REDUCE),
    ("all_gather", "_all_gather_out_place", _native.STAMP_ALL_GATHER),
    ("reduce_scatter", "_reduce_scatter_out_place", _native.STAMP_REDUCE_SCATTER),
)


def bind(worker: Any) -> str | None:
    """Binds stamps to the model of a worker. Returns why there are none, if so; then nothing has changed."""
    _hooked.clear()
    places = _places(worker.vllm_config)
    if not places:
        return "the model has no layer that is known here"
    try:
        places += _encoder_blocks(worker)
    except Exception as error:
        # A model whose encoders are put together otherwise has its layers all the same.
        _native.fact("encoder_blocks", f"not seen: {type(error).__name__}: {error}")
    chosen = _chosen(places, settings()["layers"] == "all")
    # In front of the first place, and around nothing: what stamps take by themselves.
    parts = [(_native.EMPTY_INTERVAL, "", -1)]
    parts.extend((place.component, place.kind, place.layer) for place in chosen)
    runner = worker.model_runner
    sampler = _method(runner, "_sample", "sample")
    if sampler is not None:
        parts.append(("sampler", "", -1))
    first_collective = len(parts)
    group = _tensor_parallel_group()
    sections = [place for place in chosen if place.order >= 0] if group is not None else []
    for place in sections:
        for component, _, _ in _COLLECTIVES:
            parts.extend((component, f"call {call}", place.layer) for call in (1, 2))
    every = settings()["layers_every"]
    reason = _native.bind_layers(parts, first_collective, every)
    if reason is not None:
        return reason
    _hook_all(places, chosen, sections)
    if sampler is not None:
        _hook(runner, sampler, "layers.sampler", len(chosen) + _FIRST_STAMP)
    if group is not None:
        for component, method, stamp in _COLLECTIVES:
            if _method(group, method) is not None:
                _hook(group, method, f"layers.{component}", stamp)
    _note(places, chosen, every)
    return None


def _hook_all(places: list[_Place], chosen: list[_Place], sections: list[_Place]) -> None:
    pairs = {id(place): stamp for stamp, place in enumerate(chosen, start=_FIRST_STAMP)}
    numbers = {id(place): number for number, place in enumerate(sections, start=1)}
    for place in places:
        pair, section = pairs.get(id(place), 0), numbers.get(id(place), 0)
        if sections and place.order >= 0 and not section:
            # Collectives from here on belong to a layer that is not stamped.
            section = _native.SECTION_ENDS
        if pair or section:
            _hook(place.owner, place.method, f"layers.{place.component}", pair, section)


def _note(places: list[_Place], chosen: list[_Place], every: int) -> None:
    """Notes how many layers of each kind there are, and which of them are stamped."""
    kinds: dict[tuple[str, str], tuple[list[int], list[int]]] = {}
    stamped = {id(place) for place in chosen}
    for place in places:
        layers, sampled = kinds.setdefault((place.component, place.kind), ([], []))
        layers.append(place.layer)
        if id(place) in stamped:
            sampled.append(place.layer)
    for (component, kind), (layers, sampled) in kinds.items():
        text = ",".join(str(layer) for layer in sampled)
        _native.fact(f"layer_kind:{component}/{kind}", f"{len(layers)} {text}")
    _native.fact("layer_steps_stamped", f"1/{every}")


READS = (
    Reads(("vllm.config:CompilationConfig",), ("static_forward_context",), ("worker.compile_or_warm_up_model",)),
    Reads(
        ("vllm.distributed.parallel_state:GroupCoordinator",),
        ("world_size", "_all_reduce_out_place", "_all_gather_out_place", "_reduce_scatter_out_place"),
        ("worker.compile_or_warm_up_model",),
        without="that collective is not stamped",
    ),
)
