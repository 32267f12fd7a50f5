"""The front end: the API server, or the script that holds an `LLM`. Turning text into tokens and tokens into text."""

from __future__ import annotations

from typing import Any

from profilemate import _native, session
from profilemate.hooks import HookSpec, Reads
from profilemate.probes import requests
from profilemate.settings import settings


def _take_role(vllm_config: Any, client_index: int) -> None:
    session.take_role("api_server", client_index, 0, vllm_config)
    session.note_command()
    if settings()["preemption_tracking"]:
        requests.hash_ids()
    session.note_profiler_needs("cpu_timing", "output_processor.process_outputs")


def _before_async_llm_init(_self: Any, vllm_config: Any, *_args: Any, **kwargs: Any) -> None:
    _take_role(vllm_config, int(kwargs.get("client_index", 0) or 0))


def _before_llm_engine_init(_self: Any, vllm_config: Any, *_args: Any, **_kwargs: Any) -> None:
    _take_role(vllm_config, 0)


HOOKS = (
    HookSpec(
        name="front_end.async_llm",
        places=("vllm.v1.engine.async_llm:AsyncLLM.__init__",),
        kind=_native.CALL,
        before=_before_async_llm_init,
    ),
    HookSpec(
        name="front_end.llm_engine",
        places=("vllm.v1.engine.llm_engine:LLMEngine.__init__",),
        kind=_native.CALL,
        before=_before_llm_engine_init,
    ),
    HookSpec(
        name="detokenizer.update",
        places=("vllm.v1.engine.detokenizer:BaseIncrementalDetokenizer.update",),
        profilers=("cpu_timing",),
        kind=_native.ACCUMULATE,
        span="detokenization",
    ),
    HookSpec(
        name="output_processor.process_outputs",
        places=("vllm.v1.engine.output_processor:OutputProcessor.process_outputs",),
        profilers=("cpu_timing", "preemption_tracking"),
        span="output_processing",
        closes_step=True,
        before=_native.before_process_outputs,
        after=_native.after_process_outputs,
        accumulator="detokenizer.update",
    ),
    HookSpec(
        name="tokenizer.encode",
        places=(
            "vllm.renderers.base:BaseRenderer._tokenize_prompt",
            "vllm.inputs.preprocess:InputPreprocessor._tokenize_prompt",
        ),
        profilers=("cpu_timing",),
        span="tokenization",
        everywhere=True,
    ),
)

READS = (
    Reads(
        ("vllm.renderers.base:BaseRenderer",),
        ("_tokenize_prompt",),
        ("tokenizer.encode",),
        without="the API server tokenizes elsewhere: only an offline `LLM` has `tokenization` in "
        "cpu_operations_timing.csv",
    ),
    Reads(
        ("vllm.v1.engine.async_llm:AsyncLLM.__init__()",),
        ("client_index",),
        ("front_end.async_llm",),
    ),
    Reads(
        ("vllm.v1.engine.output_processor:OutputProcessorOutput",),
        ("reqs_to_abort",),
        ("output_processor.process_outputs",),
    ),
    Reads(("vllm.v1.engine:EngineCoreRequest",), ("request_id",), ("output_processor.add_request",)),
    Reads(
        ("vllm.v1.engine:EngineCoreRequest",),
        ("external_req_id",),
        ("output_processor.add_request",),
        without="the id that the client gave is the engine's own there: nothing is lost",
    ),
    Reads(
        ("vllm.v1.engine.output_processor:OutputProcessor.process_outputs()",),
        ("engine_core_outputs@1", "engine_core_timestamp@2"),
        ("output_processor.process_outputs",),
    ),
    Reads(
        ("vllm.v1.engine.output_processor:OutputProcessor.add_request()",),
        ("request@1", "request_index@4"),
        ("output_processor.add_request",),
    ),
)
