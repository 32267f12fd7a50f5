"""Encoders against the language model: which parts a model has, what its encoders are called for, and cross-attention.

What the parts are is asked of the model itself, by vLLM's interfaces for multimodal models
(`vllm/model_executor/models/interfaces.py`). Both model runners (V1: `GPUModelRunner._execute_mm_encoder`, V2:
`EncoderRunner.execute_mm_encoder`) call the model once for each batch of inputs of one modality, or replay an encoder
CUDA graph in its place: those two calls are timed. What the scheduler needs encoders for, and what its cache spares it,
is told by its `EncoderCacheManager` (`vllm/v1/core/encoder_cache_manager.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from profilemate import _native, session
from profilemate.hooks import HookSpec, Reads
from profilemate.session import hook_override

_PROFILERS = ("encoder_decoder_timing",)
_MANAGER = "vllm.v1.core.encoder_cache_manager"
_MANAGERS = ("EncoderCacheManager", "EncoderDecoderCacheManager")

#: Modalities that are seen.
_VISION = {"image", "video", "vision_chunk"}

#: Words in the names of modules, for versions of vLLM in which a model does not say what they are. (`models/` of 0.11)
_TOWER_WORDS = ("visual", "vision", "image_encoder", "audio_tower", "audio_encoder", "speech_encoder", "encoder")
_AUDIO_WORDS = ("audio", "speech", "whisper")
_CONNECTOR_WORDS = ("projector", "connector", "merger", "aligner", "resampler", "adapter", "mlp1")


class _Seen:
    """What was noticed in this process, for those who come later."""

    #: Modalities of the towers of the model that was loaded last, as it named them.
    modalities: set[str] = set()  # noqa: RUF012  (one per process on purpose)
    #: What the encoder is called, if the model has one; empty = it has several.
    encoder = "encoder"
    #: Of the call under way: whether the request asks for this output for the first time.
    is_new = False
    embeddings = 0
    modality = ""
    freed_before = 0
    budget = 0
    #: Outputs that were thrown out of the cache, and not told yet.
    evicted = 0


def _before_mark_tower(
    _model: Any, _config: Any = None, modalities: Any = (), *_args: Any, **_kwargs: Any
) -> None:
    _Seen.modalities |= {modalities} if isinstance(modalities, str) else set(modalities)


def before_load_model(*_args: Any, **_kwargs: Any) -> None:
    """A model is about to be loaded, and to say which towers it has."""
    _Seen.modalities = set()


# --- which parts a model has


def _encoder_name(modalities: Iterable[str]) -> str:
    """What an encoder of these modalities is called; empty if that depends on the call."""
    kinds = {
        "vision_encoder" if modality in _VISION else f"{modality}_encoder"
        for modality in modalities
        # Embeddings that come ready-made pass no encoder.
        if modality != "prompt_embeds"
    }
    if not kinds:
        return "encoder"
    return kinds.pop() if len(kinds) == 1 else ""


def _names(model: Any, attribute: str) -> list[str]:
    return [str(name) for name in getattr(model, attribute, None) or ()]


def _children(model: Any) -> list[str]:
    return [str(name) for name, _ in model.named_children()]


def _mapped(model: Any, part: str) -> list[str]:
    """What `get_mm_mapping` says of a part; models have it that take LoRA."""
    get_mapping = getattr(model, "get_mm_mapping", None)
    if get_mapping is None:
        return []
    return [str(prefix).rstrip(".") for prefix in getattr(get_mapping(), part, None) or ()]


def _language_model(model: Any) -> list[str]:
    named = _names(model, "_language_model_names") or _mapped(model, "language_model")
    if named:
        return named
    try:
        found = model.get_language_model()
    except (AttributeError, NotImplementedError):
        found = None
    names = [name for name, module in model.named_modules() if module is found]
    return [names[0] or "the model"] if names else []


def _modality_of(name: str) -> str:
    return "audio" if any(word in name.lower() for word in _AUDIO_WORDS) else "image"


def _components(model: Any, is_multimodal: bool) -> dict[str, list[str]]:
    """The parts of a model, each with the names of its modules."""
    if not is_multimodal:
        return {"language_model": ["the model"]}
    language = _language_model(model)
    connector = _mapped(model, "connector")
    children = [name for name in _children(model) if name not in language]
    # The model's own words first: a tower of several modalities is one list of names.
    towers = _names(model, "_tower_model_names") or _mapped(model, "tower_model")
    if not connector:
        connector = [name for name in children if any(word in name.lower() for word in _CONNECTOR_WORDS)]
    if not towers:
        towers = [
            name
            for name in children
            if name not in connector and any(word in name.lower() for word in _TOWER_WORDS)
        ]
    parts: dict[str, list[str]] = {}
    if _Seen.modalities and _Seen.encoder:
        parts[_Seen.encoder] = [name for name in towers if name not in connector]
    else:
        for name in towers:
            if name not in connector:
                parts.setdefault(_encoder_name([_modality_of(name)]), []).append(name)
    parts["connector"] = connector
    parts["language_model"] = language or ["the model"]
    return {part: names for part, names in parts.items() if names}


def _model_type(config: Any, components: Mapping[str, Any], attention: set[str]) -> str:
    if getattr(config, "is_encoder_decoder", False):
        return "encoder_decoder"
    if "vision_encoder" in components:
        return "vision_language"
    if "audio_encoder" in components:
        return "audio_language"
    if any(name.endswith("encoder") for name in components):
        return "vision_language" if _Seen.modalities & _VISION else "audio_language"
    return "encoder_only" if attention and attention <= {"encoder_only", "encoder"} else "decoder_only"


def _attention_layers(worker: Any) -> list[Any]:
    config = getattr(worker.vllm_config, "compilation_config", None)
    layers = getattr(config, "static_forward_context", None) or {}
    return [layer for layer in layers.values() if hasattr(layer, "impl")]


def _attention_type(layer: Any) -> str:
    kind = getattr(layer, "attn_type", "")
    return str(getattr(kind, "value", kind))


def towers(model: Any) -> dict[str, list[str]]:
    """The encoders of a model, each with the names of its modules."""
    parts = _components(model, bool(getattr(model, "supports_multimodal", False)))
    return {part or "encoder": names for part, names in parts.items() if not part or part.endswith("encoder")}


# --- calls of encoders


def _size(outputs: Any) -> tuple[int, int]:
    """Inputs and embeddings in what an encoder gave: a tensor of all inputs, or one for each."""
    if outputs is None:
        return 0, 0
    shape = getattr(outputs, "shape", None)
    if shape is not None:
        rows = 1
        for length in shape[:-1]:
            rows *= int(length)
        return (int(shape[0]) if len(shape) > 2 else 1), rows
    sizes = [_size(output)[1] for output in outputs]
    return len(sizes), sum(sizes)


def _before_encoder(_owner: Any, *args: Any, **kwargs: Any) -> tuple[None, None, None, str]:
    """Which encoder is called; a model with several is asked by the names of what it is given."""
    if _Seen.encoder:
        return None, None, None, _Seen.encoder
    given = args[0] if args and isinstance(args[0], Mapping) else kwargs
    names = " ".join(str(name) for name in given).lower()
    is_audio = any(word in names for word in (*_AUDIO_WORDS, "input_features"))
    return None, None, None, "audio_encoder" if is_audio else "vision_encoder"


def _after_encoder(outputs: Any, _owner: Any) -> tuple[None, int, int]:
    items, embeddings = _size(outputs)
    return None, items | embeddings << 32, 0


def _after_encoder_graphs(outputs: Any, manager: Any) -> tuple[None, int, int]:
    items, embeddings = _size(outputs)
    hits, misses = int(manager.graph_hits), int(manager.graph_misses)
    hits_before, misses_before = getattr(manager, "_profilemate_seen", (0, 0))
    manager._profilemate_seen = hits, misses
    return None, items | embeddings << 32, (hits - hits_before) | (misses - misses_before) << 32


_CALL = HookSpec(
    name="encoder.call",
    places=(),
    profilers=_PROFILERS,
    kind=_native.TIMED_SPAN,
    lane=_native.WORKER,
    span="encoder",
    group="encoder",
    before=_before_encoder,
    after=_after_encoder,
    optional=True,
)


def _hook_encoder(model: Any) -> bool:
    """Hooks the calls of a model's encoders; whether there is such a call."""
    for method in ("embed_multimodal", "get_multimodal_embeddings"):
        # 0.14 renamed it.
        if callable(getattr(type(model), method, None)):
            hook_override(_CALL, type(model), method)
            break
    else:
        return False
    inner = getattr(model, "model", None)
    # 0.11 calls the encoder of an encoder-decoder model inside of the forward pass. What torch.compile has taken is
    # left alone.
    if hasattr(type(inner), "get_encoder_outputs") and getattr(inner, "do_not_compile", True):
        hook_override(_CALL, type(inner), "get_encoder_outputs")
    return True


# --- cross-attention


def _hook_cross_attention(layers: list[Any]) -> str:
    """Times the cross-attention of these layers where Python runs it; what is said of that."""
    if any(getattr(layer, "use_direct_call", False) for layer in layers):
        return "could not attach: torch.compile compiles attention into the model on this platform"
    for layer in layers:
        implementation = layer.impl
        if isinstance(getattr(implementation, "forward", None), _native.Hook):
            continue
        # On the instance: other layers share the class. Inside of a compiled model attention is one opaque operation,
        # so this is never traced.
        implementation.forward = _native.Hook(
            implementation.forward,
            "encoder.cross_attention",
            kind=_native.SAMPLED_SPAN,
            span="cross_attention",
            lane=_native.WORKER,
            group=session.ATTACHED.group_number("encoder.cross_attention"),
        )
    return str(len(layers))


def watch(worker: Any) -> None:
    """Finds the parts of the model that a worker has loaded, and hooks the calls of its encoders."""
    try:
        state = _watch(worker)
    except Exception as error:
        state = f"could not attach: {type(error).__name__}: {error}"
    session.note_profiler("encoder_decoder_timing", state)


def _watch(worker: Any) -> str:
    runner = worker.model_runner
    get_model = getattr(runner, "get_model", None)
    model = get_model() if get_model is not None else runner.model
    config = worker.vllm_config.model_config
    is_multimodal = bool(getattr(model, "supports_multimodal", False))
    if _Seen.modalities:
        _Seen.encoder = _encoder_name(_Seen.modalities)
    elif is_multimodal:
        towers = _names(model, "_tower_model_names") or _mapped(model, "tower_model") or _children(model)
        words = [name for name in towers if any(word in name.lower() for word in _TOWER_WORDS)]
        hears = hasattr(getattr(config, "hf_config", None), "num_mel_bins")
        _Seen.encoder = _encoder_name(["audio"] if hears else [_modality_of(name) for name in words])
    layers = _attention_layers(worker)
    attention = {_attention_type(layer) for layer in layers}
    components = _components(model, is_multimodal)
    if getattr(config, "is_encoder_decoder", False) and not is_multimodal:
        _Seen.encoder = "text_encoder"
    _native.fact("model_type", _model_type(config, components, attention))
    for part, names in components.items():
        _native.fact(f"component:{part}", ", ".join(names))
    if is_multimodal and not _hook_encoder(model):
        return f"could not attach: {type(model).__qualname__} has no embed_multimodal"
    cross = [layer for layer in layers if _attention_type(layer) == "encoder_decoder"]
    if cross:
        _native.fact("cross_attention", _hook_cross_attention(cross))
    return "on"


# --- what the scheduler needs encoders for


def _embeddings(request: Any, input_id: int) -> int:
    # Renamed in 0.14.
    count = getattr(request, "get_num_encoder_embeds", None) or request.get_num_encoder_tokens
    return int(count(input_id))


def _tell(what: str, manager: Any) -> None:
    size = int(manager.cache_size)
    # What no request needs can be thrown out at once. The manager of encoder-decoder models keeps nothing of that kind.
    free = int(getattr(manager, "num_freeable_slots", manager.num_free_slots))
    evicted, _Seen.evicted = _Seen.evicted, 0
    _native.encoder_input(what, _Seen.modality, _Seen.embeddings, evicted, max(size - free, 0), size)


def _note_input(request: Any, input_id: int) -> None:
    _Seen.embeddings = _embeddings(request, input_id)
    features = getattr(request, "mm_features", None)
    _Seen.modality = str(getattr(features[input_id], "modality", "")) if features else ""


def _before_check(manager: Any, request: Any, input_id: int, *_args: Any, **_kwargs: Any) -> None:
    # It is asked again in each step that computes a part of the same input, and when the request could not be
    # scheduled.
    of_request = getattr(manager, "request_cached_ids", None)
    if of_request is not None:
        _Seen.is_new = input_id not in of_request.get(request.request_id, ())
    else:
        identifier = request.mm_features[input_id].identifier
        _Seen.is_new = request.request_id not in getattr(manager, "cached", {}).get(identifier, ())
    if _Seen.is_new:
        _note_input(request, input_id)


def _after_check(is_cached: Any, manager: Any) -> None:
    if is_cached and _Seen.is_new:
        _tell("cached", manager)


def _before_can_allocate(
    manager: Any, request: Any, input_id: int, encoder_compute_budget: int = 0, *_args: Any, **_kwargs: Any
) -> None:
    _Seen.freed_before = len(getattr(manager, "freed", ()))
    _Seen.budget = encoder_compute_budget
    _note_input(request, input_id)


def _after_can_allocate(can: Any, manager: Any) -> None:
    _Seen.evicted += max(len(getattr(manager, "freed", ())) - _Seen.freed_before, 0)
    if not can:
        _tell("no_budget" if _Seen.embeddings > _Seen.budget else "no_room", manager)


def _before_allocate(_manager: Any, request: Any, input_id: int, *_args: Any, **_kwargs: Any) -> None:
    _note_input(request, input_id)


def _after_allocate(_result: Any, manager: Any) -> None:
    _tell("computed", manager)


def _manager_hook(method: str, before: Any, after: Any) -> HookSpec:
    return HookSpec(
        name=f"encoder_cache.{method}",
        places=tuple(f"{_MANAGER}:{manager}.{method}" for manager in _MANAGERS),
        profilers=_PROFILERS,
        kind=_native.CALL,
        lane=_native.ENGINE,
        before=before,
        after=after,
        # The manager of encoder-decoder models overrides most of the other's (0.14 and newer).
        everywhere=True,
    )


HOOKS = (
    HookSpec(
        name="encoder.mark_tower",
        places=("vllm.model_executor.models.interfaces:SupportsMultiModal._mark_tower_model",),
        profilers=_PROFILERS,
        kind=_native.CALL,
        lane=_native.WORKER,
        before=_before_mark_tower,
        optional=True,
        without="before vLLM 0.15 a model does not say which of its parts are encoders: the names of its modules tell",
    ),
    HookSpec(
        name="encoder.cuda_graphs",
        places=("vllm.v1.worker.encoder_cudagraph:EncoderCudaGraphManager.execute",),
        profilers=_PROFILERS,
        kind=_native.TIMED_SPAN,
        lane=_native.WORKER,
        span="encoder",
        group="encoder",
        before=_before_encoder,
        after=_after_encoder_graphs,
        optional=True,
        without="before vLLM 0.19 encoders run without CUDA graphs: nothing is lost",
    ),
    _manager_hook("check_and_update_cache", _before_check, _after_check),
    _manager_hook("can_allocate", _before_can_allocate, _after_can_allocate),
    _manager_hook("allocate", _before_allocate, _after_allocate),
)

_CHECKS = ("encoder_cache.check_and_update_cache", "encoder_cache.can_allocate", "encoder_cache.allocate")
_LOADS = ("worker.load_model",)
_INTERFACE = ("vllm.model_executor.models.interfaces:SupportsMultiModal",)
_GUESSED = "parts of a multimodal model are told by the names of its modules"

READS = (
    Reads((f"{_MANAGER}:EncoderCacheManager",), ("cache_size", "freed", "cached"), _CHECKS),
    Reads((f"{_MANAGER}:EncoderCacheManager",), ("num_freeable_slots", "num_free_slots"), _CHECKS, one_of=True),
    Reads(
        ("vllm.v1.request:Request",),
        ("get_num_encoder_embeds", "get_num_encoder_tokens"),
        _CHECKS,
        one_of=True,
    ),
    Reads(("vllm.v1.request:Request",), ("mm_features",), _CHECKS),
    Reads(("vllm.multimodal.inputs:MultiModalFeatureSpec",), ("identifier", "modality"), _CHECKS),
    Reads(
        ("vllm.v1.worker.encoder_cudagraph:EncoderCudaGraphManager",),
        ("graph_hits", "graph_misses"),
        ("encoder.cuda_graphs",),
    ),
    Reads(("vllm.v1.worker.gpu_model_runner:GPUModelRunner",), ("get_model",), _LOADS),
    Reads(_INTERFACE, ("embed_multimodal", "get_multimodal_embeddings"), _LOADS, one_of=True),
    Reads(_INTERFACE, ("supports_multimodal", "get_language_model"), _LOADS),
    Reads(_INTERFACE, ("_tower_model_names", "_language_model_names"), _LOADS, without=_GUESSED),
    Reads(("vllm.config:CompilationConfig",), ("static_forward_context",), _LOADS),
)
