"""The V1 model runner: preparing a batch, the forward pass, sampling. (`vllm/v1/worker/gpu_model_runner.py`)"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from profilemate import _native
from profilemate.hooks import HookSpec, Reads
from profilemate.probes.cuda_graphs import after_v1_dummy_run, before_v1_dummy_run

_V1 = "vllm.v1.worker.gpu_model_runner:GPUModelRunner"
#: What takes part in a step's times on the GPU.
TIMED = ("forward_pass_timing", "encoder_decoder_timing", "sampling_timing")
_ALL = (*TIMED, "cpu_timing")
NO_V2 = "vLLM 0.11 has no V2 model runner: nothing is lost"
#: Those that must know which step a worker is at.
STEP = (*_ALL, "moe_expert_tracking", "layer_timing", "gpu_memory")


def output_hook(name: str, place: str) -> HookSpec:
    """Lightweight mode: vLLM itself waits in `get_output` until a step's tokens have reached the host."""
    return HookSpec(
        name=name,
        places=(place,),
        profilers=("forward_pass_timing", "encoder_decoder_timing"),
        lane=_native.WORKER_OUTPUT,
        span="output_ready",
        before=_before_get_output,
        timing="lightweight",
        optional=True,
        without=NO_V2,
    )


def _before_get_output(output: Any) -> int:
    return getattr(output, _native.STEP, 0)


def after_sample_tokens(output: Any, _runner: Any) -> None:
    """Lightweight mode: the output that is waited for later knows its step."""
    if output is not None:
        setattr(output, _native.STEP, _native.worker_step())


def sample_tokens_hooks(name: str, place: str) -> tuple[HookSpec, ...]:
    """The end of a step. vLLM 0.11 samples in `execute_model`."""
    hook = HookSpec(
        name=name,
        places=(place,),
        profilers=TIMED,
        kind=_native.CALL,
        lane=_native.WORKER,
        marks=_native.MARK_STEP_ENDED,
        optional=True,
        without="vLLM 0.11.0 samples in `execute_model`, where the step ends: nothing is lost"
        if place.startswith(_V1)
        else NO_V2,
    )
    # The first that is attached stays.
    lightweight = replace(
        hook, name=f"{name} (lightweight)", after=after_sample_tokens, timing="lightweight", optional=True
    )
    return lightweight, hook


#: Where it finds nothing, it is put on the model itself when that is loaded (`probes/worker.py`).
FORWARD = HookSpec(
    name="model_runner.forward",
    places=(f"{_V1}._model_forward",),
    profilers=_ALL,
    lane=_native.WORKER,
    marks=_native.MARK_FORWARD,
    span="forward",
    without="vLLM 0.11.0 calls the model in the middle of `execute_model`: the model's own method is hooked when it is "
    "loaded, and nothing is lost",
    stand_in="worker.load_model",
)

HOOKS = (
    HookSpec(
        name="model_runner.execute_model",
        places=(f"{_V1}.execute_model",),
        profilers=STEP,
        lane=_native.WORKER,
        marks=_native.MARK_STEP,
        span="model_execution",
        closes_step=True,
        before=_native.before_execute_model,
    ),
    FORWARD,
    HookSpec(
        name="model_runner.sample",
        places=(f"{_V1}._sample",),
        profilers=_ALL,
        lane=_native.WORKER,
        marks=_native.MARK_SAMPLE,
        span="sampling",
        before=_native.before_sample,
    ),
    HookSpec(
        name="model_runner.grammar_bitmask",
        # A function of the module; 0.11 has a method.
        places=(
            "vllm.v1.worker.gpu_model_runner:apply_grammar_bitmask",
            f"{_V1}.apply_grammar_bitmask",
        ),
        profilers=("sampling_timing",),
        lane=_native.WORKER,
        # Sampling begins with it, where there is one.
        marks=_native.MARK_SAMPLE,
        span="grammar_bitmask",
        before=_native.before_grammar_bitmask,
    ),
    HookSpec(
        name="model_runner.bookkeeping",
        places=(f"{_V1}._bookkeeping_sync",),
        profilers=("cpu_timing",),
        lane=_native.WORKER,
        span="bookkeeping",
    ),
    HookSpec(
        name="model_runner.propose_drafts",
        places=(f"{_V1}.propose_draft_token_ids",),
        profilers=TIMED,
        lane=_native.WORKER,
        marks=_native.MARK_DRAFT,
        span="drafting",
    ),
    *sample_tokens_hooks("model_runner.sample_tokens", f"{_V1}.sample_tokens"),
    output_hook(
        "model_runner.async_output",
        "vllm.v1.worker.gpu_model_runner:AsyncGPUModelRunnerOutput.get_output",
    ),
    HookSpec(
        name="model_runner.dummy_run",
        places=(f"{_V1}._dummy_run",),
        kind=_native.DUMMY,
        lane=_native.WORKER,
        span="dummy_run",
        before=before_v1_dummy_run,
        after=after_v1_dummy_run,
    ),
)

READS = (
    Reads((f"{_V1}",), ("input_batch",), ("model_runner.sample",)),
    Reads(
        ("vllm.v1.worker.gpu_input_batch:InputBatch",),
        (
            *("req_id_to_index", "greedy_reqs", "top_k_reqs", "top_p_reqs", "num_logprobs", "sampling_metadata"),
            *("frequency_penalties_reqs", "presence_penalties_reqs", "repetition_penalties_reqs", "generators"),
            *("bad_words_token_ids", "has_allowed_token_ids", "logitsprocs"),
        ),
        ("model_runner.sample",),
    ),
    Reads(("vllm.v1.sample.metadata:SamplingMetadata",), ("max_num_logprobs",), ("model_runner.sample",)),
    Reads(
        ("vllm.v1.sample.logits_processor.builtin:MinPLogitsProcessor",),
        ("min_p_count",),
        ("model_runner.sample",),
    ),
    Reads(
        ("vllm.v1.core.sched.output:GrammarOutput", "vllm.v1.core.sched.output:SchedulerOutput"),
        ("structured_output_request_ids",),
        ("model_runner.grammar_bitmask",),
    ),
    Reads((f"{_V1}.execute_model()",), ("scheduler_output@1",), ("model_runner.execute_model",)),
    Reads(
        ("vllm.v1.worker.gpu.model_runner:GPUModelRunner.execute_model()",),
        ("scheduler_output@1",),
        ("model_runner_v2.execute_model",),
    ),
    Reads(
        ("vllm.v1.core.sched.output:SchedulerOutput",),
        ("total_num_scheduled_tokens", "num_scheduled_tokens"),
        ("model_runner.execute_model", "model_runner_v2.execute_model"),
    ),
)
