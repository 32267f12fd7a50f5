"""The scheduler: what each step's batch is made of. (`vllm/v1/core/sched/scheduler.py`)"""

from __future__ import annotations

import sys
from typing import Any

from profilemate import _native, session
from profilemate.hooks import HookSpec
from profilemate.probes.engine_core import data_parallel_rank
from profilemate.settings import settings

#: Attribute of a `SchedulerOutput` that carries its step's id. The class is a plain dataclass and goes to the workers
#: pickled, so the attribute arrives there too.
STEP = "profilemate_step"
#: Attribute of a scheduler that holds our bookkeeping.
_BOOKS = "_profilemate_books"
_FINISHED_BEFORE = "_profilemate_finished_before"


class Books:
    """What is remembered of one scheduler between steps."""

    __slots__ = ("prefilling", "progress_every", "step")

    def __init__(self) -> None:
        #: Id of the newest step, from 1.
        self.step = 0
        #: Requests whose prompt (or, after a preemption, whose computed tokens) are not complete: id → tokens to reach.
        self.prefilling: dict[str, int] = {}
        values = settings()
        self.progress_every = values["log_interval"] if values["verbose"] else 0


def _after_init(_result: None, scheduler: Any) -> None:
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


def _after_schedule(output: Any, scheduler: Any) -> int:
    books = scheduler.__dict__.get(_BOOKS)
    if books is None:
        books = Books()
        setattr(scheduler, _BOOKS, books)
    step: int = books.step + 1
    books.step = step
    setattr(output, STEP, step)

    scheduled = output.num_scheduled_tokens
    requests = scheduler.requests
    prefilling = books.prefilling
    for new in output.scheduled_new_reqs:
        # All tokens that the request has: its prompt, and, where a runner takes resumed requests as new ones, what it
        # had generated.
        prefilling[new.req_id] = requests[new.req_id].num_tokens
    for req_id in _resumed(output.scheduled_cached_reqs):
        prefilling[req_id] = requests[req_id].num_tokens
    for req_id in output.finished_req_ids:
        prefilling.pop(req_id, None)

    prefill_tokens = prefill_seqs = completed_tokens = completed = 0
    if prefilling:
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

    running, waiting = scheduler.get_request_counts()
    _native.schedule(
        step,
        len(scheduled),
        output.total_num_scheduled_tokens,
        prefill_tokens,
        prefill_seqs,
        running,
        waiting,
        completed_tokens,
        completed,
    )
    if books.progress_every and step % books.progress_every == 0:
        sys.stderr.write(
            f"profilemate: step {step}: {len(scheduled)} sequences, {output.total_num_scheduled_tokens} tokens, "
            f"{running} running, {waiting} waiting\n"
        )
    return step


def _before_update_from_output(scheduler: Any, scheduler_output: Any, *_args: Any, **_kwargs: Any) -> int | None:
    scheduler.__dict__[_FINISHED_BEFORE] = len(scheduler.finished_req_ids)
    step: int | None = getattr(scheduler_output, STEP, None)
    return step


def _after_update_from_output(result: Any, scheduler: Any) -> None:
    if isinstance(result, dict):
        # The set is emptied by `schedule` only, so in here it grows by what this step finished.
        finished = len(scheduler.finished_req_ids) - scheduler.__dict__.get(_FINISHED_BEFORE, 0)
        _native.count_outputs(result, max(finished, 0))


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
        after=_after_schedule,
    ),
    HookSpec(
        name="scheduler.update_from_output",
        places=("vllm.v1.core.sched.scheduler:Scheduler.update_from_output",),
        lane=_native.ENGINE,
        span="update_from_output",
        before=_before_update_from_output,
        after=_after_update_from_output,
    ),
)
