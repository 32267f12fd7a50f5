"""The scheduler: what each step's batch is made of. (`vllm/v1/core/sched/scheduler.py`)"""

from __future__ import annotations

import sys
from typing import Any

from profilemate import _native, session
from profilemate.hooks import HookSpec
from profilemate.probes.engine_core import data_parallel_rank
from profilemate.settings import settings


def _new_books(vllm_config: Any) -> _native.SchedulerBooks:
    values = settings()
    return _native.SchedulerBooks(
        _count_prefill,
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


def _after_init(_result: None, scheduler: Any) -> None:
    setattr(scheduler, _native.BOOKS, _new_books(scheduler.vllm_config))
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
    _hook_overrides(type(scheduler))


def _hook_overrides(scheduler_class: type) -> None:
    """Hooks the methods of a scheduler class that is not vLLM's own. Calling `super()` counts once: same group."""
    for spec in HOOKS:
        method = spec.places[0].rpartition(".")[2]
        if method != "__init__" and spec.name in session.ATTACHED.places:
            session.hook_override(spec, scheduler_class, method)


def _resumed(cached: Any) -> Any:
    """Ids of requests that come back after a preemption."""
    resumed = getattr(cached, "resumed_req_ids", None)
    if resumed is not None:
        return resumed
    # vLLM 0.11: a list of flags beside the ids.
    flags = getattr(cached, "resumed_from_preemption", ())
    return [req_id for req_id, flag in zip(cached.req_ids, flags, strict=False) if flag]


def _count_prefill(output: Any, scheduler: Any, prefilling: dict[str, int]) -> tuple[int, int, int, int]:
    """Prefill tokens and sequences of a batch, and prompt tokens and prompts that it completes.

    Called for steps that may have any; `prefilling` remembers requests that are not through yet: id → tokens to reach.
    """
    scheduled = output.num_scheduled_tokens
    requests = scheduler.requests
    for new in output.scheduled_new_reqs:
        # All tokens that the request has: its prompt, and, where a runner takes resumed requests as new ones, what it
        # had generated.
        prefilling[new.req_id] = requests[new.req_id].num_tokens
    for req_id in _resumed(output.scheduled_cached_reqs):
        prefilling[req_id] = requests[req_id].num_tokens
    for req_id in output.finished_req_ids:
        prefilling.pop(req_id, None)
    prefill_tokens = prefill_seqs = completed_tokens = completed = 0
    for req_id, goal in list(prefilling.items()):
        tokens = scheduled.get(req_id)
        if tokens is None:
            continue
        request = requests[req_id]
        # `schedule` has added this step's tokens already.
        computed = request.num_computed_tokens - tokens
        if computed + tokens >= goal:
            del prefilling[req_id]
        if request.num_output_tokens:
            if computed >= goal - 1:
                # Only its newest token is left to compute, as in any decode.
                continue
        elif computed + tokens >= goal:
            completed += 1
            completed_tokens += request.num_prompt_tokens
        prefill_seqs += 1
        prefill_tokens += min(tokens, goal - computed)
    return prefill_tokens, prefill_seqs, completed_tokens, completed


def _progress(step: int, sequences: int, tokens: int, running: int, waiting: int) -> None:
    sys.stderr.write(
        f"profilemate: step {step}: {sequences} sequences, {tokens} tokens, {running} running, {waiting} waiting\n"
    )


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
