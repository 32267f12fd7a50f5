"""The V1 model runner: preparing a batch, the forward pass, sampling. (`vllm/v1/worker/gpu_model_runner.py`)"""

from __future__ import annotations

from typing import Any

from profilemate import _native
from profilemate.hooks import HookSpec
from profilemate.probes.cuda_graphs import after_v1_dummy_run, before_v1_dummy_run
from profilemate.probes.scheduler import STEP
from profilemate.settings import settings

_V1 = "vllm.v1.worker.gpu_model_runner:GPUModelRunner"
_BOTH = ("forward_pass_timing", "cpu_timing")


def before_execute_model(_self: Any, scheduler_output: Any, *_args: Any, **_kwargs: Any) -> tuple[int, int]:
    """The step, and its size: tokens in the low half, sequences in the high half."""
    size = scheduler_output.total_num_scheduled_tokens | len(scheduler_output.num_scheduled_tokens) << 32
    return getattr(scheduler_output, STEP, 0), size


def output_hook(name: str, place: str) -> HookSpec:
    """Lightweight mode: vLLM itself waits in `get_output` until a step's tokens have reached the host."""
    return HookSpec(
        name=name,
        places=(place,),
        profilers=("forward_pass_timing",),
        lane=_native.WORKER_OUTPUT,
        span="output_ready",
        before=_before_get_output,
        timing="lightweight",
        optional=True,
    )


def _before_get_output(output: Any) -> int:
    return getattr(output, STEP, 0)


def after_sample_tokens(output: Any, _runner: Any) -> None:
    """The output that is waited for later knows its step."""
    if output is not None and settings()["timing"] == "lightweight":
        setattr(output, STEP, _native.worker_step())


HOOKS = (
    HookSpec(
        name="model_runner.execute_model",
        places=(f"{_V1}.execute_model",),
        profilers=_BOTH,
        lane=_native.WORKER,
        marks=_native.MARK_STEP,
        span="model_execution",
        closes_step=True,
        before=before_execute_model,
    ),
    HookSpec(
        name="model_runner.forward",
        places=(f"{_V1}._model_forward",),
        profilers=_BOTH,
        lane=_native.WORKER,
        marks=_native.MARK_FORWARD,
        span="forward",
    ),
    HookSpec(
        name="model_runner.sample",
        places=(f"{_V1}._sample",),
        profilers=_BOTH,
        lane=_native.WORKER,
        marks=_native.MARK_SAMPLE,
        span="sampling",
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
        profilers=("forward_pass_timing",),
        lane=_native.WORKER,
        marks=_native.MARK_DRAFT,
        span="drafting",
    ),
    HookSpec(
        name="model_runner.sample_tokens",
        # vLLM 0.11 samples in execute_model.
        places=(f"{_V1}.sample_tokens",),
        profilers=("forward_pass_timing",),
        kind=_native.CALL,
        lane=_native.WORKER,
        marks=_native.MARK_STEP_ENDED,
        after=after_sample_tokens,
        optional=True,
    ),
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
