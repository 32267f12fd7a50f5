"""The V2 model runner: preparing a batch, the forward pass, sampling. (`vllm/v1/worker/gpu/model_runner.py`)

Its forward pass is no function of its own: it begins when the KV connector has been told of it, which is the last thing
before, and has ended when `execute_model` returns, which launches nothing behind it.
"""

from __future__ import annotations

from profilemate import _native
from profilemate.hooks import HookSpec, Reads
from profilemate.probes.model_runner import NO_V2, STEP, TIMED, output_hook, sample_tokens_hooks

_V2 = "vllm.v1.worker.gpu.model_runner:GPUModelRunner"
_CONNECTOR = "vllm.v1.worker.gpu.kv_connector"
_ALL = (*TIMED, "cpu_timing")

HOOKS = (
    output_hook("model_runner_v2.async_output", "vllm.v1.worker.gpu.async_utils:AsyncOutput.get_output"),
    HookSpec(
        name="model_runner_v2.execute_model",
        places=(f"{_V2}.execute_model",),
        profilers=STEP,
        lane=_native.WORKER,
        marks=_native.MARK_STEP | _native.MARK_FORWARD_ENDED,
        span="model_execution",
        closes_step=True,
        before=_native.before_execute_model,
        optional=True,
        without=NO_V2,
    ),
    HookSpec(
        name="model_runner_v2.forward_begins",
        places=(f"{_CONNECTOR}:KVConnector.pre_forward", f"{_CONNECTOR}:ActiveKVConnector.pre_forward"),
        profilers=TIMED,
        kind=_native.CALL,
        lane=_native.WORKER,
        marks=_native.MARK_FORWARD_BEGINS,
        everywhere=True,
        optional=True,
        without="before vLLM 0.15 the V2 model runner, which has to be asked for there, tells nobody that its forward "
        "pass begins: with it, forward_pass_timing.csv is missing",
    ),
    HookSpec(
        name="model_runner_v2.sample",
        places=(f"{_V2}.sample",),
        profilers=_ALL,
        lane=_native.WORKER,
        # It computes the logits as well, which nothing comes before.
        marks=_native.MARK_SAMPLE_FOLLOWS,
        span="sampling",
        before=_native.before_sample_v2,
        optional=True,
        without=NO_V2,
    ),
    HookSpec(
        name="model_runner_v2.sampler_add_request",
        places=("vllm.v1.worker.gpu.sample.sampler:Sampler.add_request",),
        profilers=("sampling_timing",),
        kind=_native.CALL,
        lane=_native.WORKER,
        before=_native.before_sampler_add_request,
        # Not there before 0.17.
        optional=True,
        without=NO_V2,
    ),
    HookSpec(
        name="model_runner_v2.postprocess",
        places=(f"{_V2}.postprocess_sampled", f"{_V2}.postprocess"),
        profilers=("cpu_timing",),
        lane=_native.WORKER,
        span="bookkeeping",
        optional=True,
        without=NO_V2,
    ),
    *sample_tokens_hooks("model_runner_v2.sample_tokens", f"{_V2}.sample_tokens"),
    HookSpec(
        name="model_runner_v2.dummy_run",
        places=(f"{_V2}._dummy_run",),
        kind=_native.DUMMY,
        lane=_native.WORKER,
        span="dummy_run",
        optional=True,
        without=NO_V2,
    ),
)

_SAMPLER = "vllm.v1.worker.gpu.sample.sampler:Sampler"
_NO_MIX = "what a batch asks of the sampler is not said"

READS = (
    Reads((f"{_V2}.sample()",), ("input_batch@2", "grammar_output"), ("model_runner_v2.sample",)),
    Reads((_V2,), ("sampler",), ("model_runner_v2.sample",)),
    Reads((f"{_SAMPLER}.add_request()",), ("req_idx@1",), ("model_runner_v2.sampler_add_request",)),
    Reads((f"{_SAMPLER}.add_request()",), ("sampling_params",), ("model_runner_v2.sampler_add_request",)),
    Reads((_SAMPLER,), ("sampling_states",), ("model_runner_v2.sampler_add_request",), without=_NO_MIX),
    Reads(
        ("vllm.v1.worker.gpu.sample.states:SamplingStates",),
        ("vocab_size",),
        ("model_runner_v2.sampler_add_request",),
        without="a top_k of the whole vocabulary counts as one",
    ),
    Reads(("vllm.v1.worker.gpu.input_batch:InputBatch",), ("idx_mapping_np",), ("model_runner_v2.sample",)),
    Reads(
        ("vllm.v1.worker.gpu.input_batch:InputBatch",),
        ("is_prefilling_np",),
        ("model_runner_v2.sample",),
        without="sequences whose prompt is not complete count as sampled",
    ),
)
