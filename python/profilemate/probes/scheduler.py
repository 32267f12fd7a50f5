"""The scheduler: what each step's batch is made of. (`vllm/v1/core/sched/scheduler.py`)"""

from __future__ import annotations

from typing import Any

from profilemate import _native, session
from profilemate.hooks import HookSpec, Reads
from profilemate.probes import kv_cache, requests
from profilemate.probes.engine_core import data_parallel_rank
from profilemate.settings import settings


def _new_books(vllm_config: Any) -> _native.SchedulerBooks:
    values = settings()
    return _native.SchedulerBooks(
        not _one_token_each(vllm_config),
        values["log_interval"] if values["verbose"] else 0,
        _progress,
    )


def _one_token_each(vllm_config: Any) -> bool:
    """Whether each output of a step has exactly one new token, so that they need not be counted one by one.

    `Scheduler.update_from_output` (0.11 to 0.33) sends an output for a request that has new tokens. Without drafts that
    is one; what sends outputs without tokens, or several, is listed here.
    """
    model_config = getattr(vllm_config, "model_config", None)
    return (
        getattr(vllm_config, "speculative_config", 0) is None
        and getattr(vllm_config, "kv_transfer_config", 0) is None
        and getattr(vllm_config, "ec_transfer_config", None) is None
        and getattr(vllm_config, "diffusion_config", None) is None
        and getattr(model_config, "runner_type", None) == "generate"
    )


def _only_blocks(scheduler: Any) -> bool:
    """Whether missing KV blocks alone stop the scheduler at a waiting request that is ready.

    What else makes `Scheduler.schedule` (0.11 to 0.33) stop or pass a request over is listed here.
    """
    vllm_config = scheduler.vllm_config
    scheduler_config = getattr(vllm_config, "scheduler_config", None)
    model_config = getattr(vllm_config, "model_config", None)
    return (
        getattr(scheduler, "connector", None) is None
        and getattr(scheduler, "ec_connector", None) is None
        and getattr(scheduler, "lora_config", None) is None
        and getattr(vllm_config, "speculative_config", None) is None
        and not getattr(scheduler, "need_mamba_block_aligned_split", False)
        and bool(
            getattr(
                scheduler_config,
                "enable_chunked_prefill",
                getattr(scheduler_config, "chunked_prefill_enabled", False),
            )
        )
        and not getattr(model_config, "is_multimodal_model", False)
        and getattr(getattr(vllm_config, "parallel_config", None), "data_parallel_size", 1) == 1
    )


def _after_init(_result: None, scheduler: Any) -> None:
    books = _new_books(scheduler.vllm_config)
    setattr(scheduler, _native.BOOKS, books)
    vllm_config = scheduler.vllm_config
    rank = data_parallel_rank(vllm_config)
    session.take_role("engine_core", rank, rank, vllm_config)
    for profiler in ("cpu_timing", "batch_utilization_tracking"):
        session.note_profiler_needs(profiler, "scheduler.schedule")
    max_num_seqs, max_num_tokens = int(scheduler.max_num_running_reqs), int(scheduler.max_num_scheduled_tokens)
    _native.limits(max_num_seqs, max_num_tokens)
    # Facts outlive the oldest records of a bounded log.
    _native.fact("max_num_seqs", str(max_num_seqs))
    _native.fact("max_num_tokens", str(max_num_tokens))
    values = settings()
    if values["batch_utilization_tracking"]:
        books.watch_limits(scheduler, max_num_seqs, max_num_tokens, _only_blocks(scheduler))
    speculates = getattr(vllm_config, "speculative_config", None) is not None and hasattr(scheduler, "log_stats")
    if values["sampling_timing"] and speculates:
        books.watch_speculation()
    _hook_overrides(type(scheduler))
    if values["preemption_tracking"]:
        requests.watch(books)
    if values["kv_cache_tracking"]:
        kv_cache.watch(scheduler, books)


def _hook_overrides(scheduler_class: type) -> None:
    """Hooks the methods of a scheduler class that is not vLLM's own. Calling `super()` counts once: same group."""
    for spec in (*HOOKS, *requests.SCHEDULER_HOOKS):
        method = spec.places[0].rpartition(".")[2]
        if method != "__init__" and spec.name in session.ATTACHED.places:
            session.hook_override(spec, scheduler_class, method)


def _progress(step: int, sequences: int, tokens: int, running: int, waiting: int) -> None:
    _native.say(f"step {step}: {sequences} sequences, {tokens} tokens, {running} running, {waiting} waiting")


HOOKS = (
    HookSpec(
        name="scheduler.init",
        places=("vllm.v1.core.sched.scheduler:Scheduler.__init__",),
        kind=_native.CALL,
        lane=_native.ENGINE,
        after=_after_init,
    ),
    HookSpec(
        name="scheduler.schedule",
        places=("vllm.v1.core.sched.scheduler:Scheduler.schedule",),
        lane=_native.ENGINE,
        span="scheduling",
        after=_native.after_schedule,
    ),
    HookSpec(
        name="scheduler.update_from_output",
        places=("vllm.v1.core.sched.scheduler:Scheduler.update_from_output",),
        lane=_native.ENGINE,
        span="update_from_output",
        before=_native.before_update_from_output,
        after=_native.after_update_from_output,
    ),
)

_SCHEDULER = ("vllm.v1.core.sched.scheduler:Scheduler",)
_SCHEDULED = ("scheduler.schedule",)

READS = (
    Reads(
        ("vllm.v1.core.sched.scheduler:Scheduler.update_from_output()",),
        ("model_runner_output@2",),
        ("scheduler.update_from_output",),
    ),
    Reads(_SCHEDULER, ("log_stats",), ("scheduler.init",)),
    Reads(("vllm.v1.core.sched.output:SchedulerOutput",), ("scheduled_spec_decode_tokens",), _SCHEDULED),
    Reads(
        ("vllm.v1.core.sched.output:SchedulerOutput",),
        ("num_invalid_spec_tokens",),
        _SCHEDULED,
        without="drafts that a grammar does not allow are counted as drafted",
    ),
    Reads(("vllm.v1.outputs:ModelRunnerOutput",), ("sampled_token_ids",), ("scheduler.update_from_output",)),
    Reads(("vllm.v1.engine:EngineCoreOutputs",), ("scheduler_stats",), ("scheduler.update_from_output",)),
    Reads(("vllm.v1.metrics.stats:SchedulerStats",), ("spec_decoding_stats",), ("scheduler.update_from_output",)),
    Reads(
        ("vllm.v1.spec_decode.metrics:SpecDecodingStats",),
        ("num_drafts", "num_draft_tokens", "num_accepted_tokens"),
        ("scheduler.update_from_output",),
    ),
    Reads(
        ("vllm.v1.core.sched.scheduler:Scheduler.update_from_output()",),
        ("scheduler_output@1",),
        ("scheduler.update_from_output",),
    ),
    Reads(_SCHEDULER, ("vllm_config", "max_num_running_reqs", "max_num_scheduled_tokens"), ("scheduler.init",)),
    Reads(_SCHEDULER, ("requests", "running", "get_request_counts", "finished_req_ids"), _SCHEDULED),
    Reads(
        ("vllm.v1.core.sched.output:SchedulerOutput",),
        ("scheduled_new_reqs", "scheduled_cached_reqs", "num_scheduled_tokens", "total_num_scheduled_tokens"),
        _SCHEDULED,
    ),
    Reads(("vllm.v1.core.sched.output:NewRequestData",), ("req_id",), _SCHEDULED),
    Reads(("vllm.v1.core.sched.output:CachedRequestData",), ("req_ids",), _SCHEDULED),
    Reads(
        ("vllm.v1.core.sched.output:CachedRequestData",),
        ("resumed_req_ids", "resumed_from_preemption"),
        _SCHEDULED,
        one_of=True,
    ),
    Reads(("vllm.v1.engine:EngineCoreOutputs",), ("outputs", "timestamp"), ("scheduler.update_from_output",)),
    Reads(("vllm.v1.engine:EngineCoreOutput",), ("new_token_ids",), ("scheduler.update_from_output",)),
    # What keeps a batch from being larger.
    Reads(_SCHEDULER, ("waiting",), _SCHEDULED),
    Reads(_SCHEDULER, ("connector", "lora_config"), ("scheduler.init",)),
    Reads(
        _SCHEDULER,
        ("max_num_active_reqs",),
        _SCHEDULED,
        without="as many requests are active as run: nothing is lost",
    ),
    Reads(
        _SCHEDULER,
        ("deferred_waiting", "skipped_waiting"),
        _SCHEDULED,
        one_of=True,
        without="requests that are not ready go back to the front of the queue there, and are looked for in it",
    ),
    Reads(("vllm.v1.core.sched.request_queue:RequestQueue",), ("peek_request",), _SCHEDULED),
    Reads(
        _SCHEDULER,
        ("num_waiting_for_streaming_input",),
        _SCHEDULED,
        without="there are no streaming sessions there: nothing is lost",
    ),
    Reads(
        ("vllm.v1.core.sched.interface:PauseState",),
        ("UNPAUSED",),
        _SCHEDULED,
        without="a scheduler is not paused there: nothing is lost",
    ),
    Reads(_SCHEDULER, ("_pause_state",), _SCHEDULED, without="a scheduler is not paused there: nothing is lost"),
    Reads(
        _SCHEDULER,
        ("ec_connector",),
        ("scheduler.init",),
        without="there is no encoder cache connector there: nothing is lost",
    ),
    Reads(
        _SCHEDULER,
        ("need_mamba_block_aligned_split",),
        ("scheduler.init",),
        without="prompts are not split at Mamba blocks there: nothing is lost",
    ),
    Reads(
        ("vllm.config:VllmConfig",),
        ("scheduler_config", "model_config", "parallel_config", "speculative_config", "kv_transfer_config"),
        ("scheduler.init",),
    ),
    Reads(
        ("vllm.config:VllmConfig",),
        ("ec_transfer_config",),
        ("scheduler.init",),
        without="there is no encoder cache connector there: nothing is lost",
    ),
    Reads(
        ("vllm.config:VllmConfig",),
        ("diffusion_config",),
        ("scheduler.init",),
        without="there are no diffusion models there: nothing is lost",
    ),
    Reads(("vllm.config:ModelConfig",), ("runner_type", "is_multimodal_model"), ("scheduler.init",)),
    Reads(
        ("vllm.config:SchedulerConfig",),
        ("enable_chunked_prefill", "chunked_prefill_enabled"),
        ("scheduler.init",),
        one_of=True,
    ),
    Reads(("vllm.config:ParallelConfig",), ("data_parallel_size",), ("scheduler.init",)),
)
