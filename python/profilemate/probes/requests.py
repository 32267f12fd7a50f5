"""Requests: queued, admitted, preempted, finished, and what their clients call them.

(`vllm/v1/core/sched/scheduler.py`, `vllm/v1/engine/output_processor.py`)
"""

from __future__ import annotations

import os
import secrets
import sys
from types import FrameType
from typing import Any

from profilemate import _native, session
from profilemate.hooks import HookSpec, Reads
from profilemate.settings import settings

#: Key of the hash that stands for ids of requests; children inherit it, and no file has it.
_KEY_VARIABLE = "PROFILEMATE_REQUEST_ID_KEY"

_SCHEDULER = "vllm.v1.core.sched.scheduler:Scheduler"


def hash_ids() -> None:
    """Has a hash stand for each request's id, if that is wanted. Called in every process that records requests."""
    if not settings()["hash_request_ids"]:
        return
    key = os.environ.get(_KEY_VARIABLE, "")
    if len(key) != 32:
        key = os.environ[_KEY_VARIABLE] = secrets.token_hex(16)
    _native.hash_request_ids([int(key[:16], 16), int(key[16:], 16)])


def watch(books: _native.SchedulerBooks) -> None:
    """Records the lives of a scheduler's requests from here on."""
    attached = session.ATTACHED.places
    if "scheduler.preempt_request" not in attached and "scheduler.add_request" in attached:
        # vLLM 0.11 has no method for it.
        module = sys.modules.get("vllm.v1.core.kv_cache_manager")
        if module is not None:
            session.attach(FREE_IN_SCHEDULE, module)
    for hook in ("scheduler.add_request", "scheduler.free_request"):
        if hook not in attached:
            session.note_profiler_needs("preemption_tracking", hook)
            return
    if not {"scheduler.preempt_request", FREE_IN_SCHEDULE.name} & attached.keys():
        session.note_profiler_needs("preemption_tracking", "scheduler.preempt_request")
        return
    hash_ids()
    books.watch_requests()
    session.note_profiler("preemption_tracking", "on")


class _Preemption:
    """The preemption that is under way: they do not overlap."""

    request: Any = None
    scheduler: Any = None
    reason = ""
    beneficiary: Any = None
    computed_tokens = 0
    free_blocks: int | None = None


#: The engine's own cause, by the function of the scheduler that preempts.
_REASONS = {"schedule": "kv_cache_full", "reset_prefix_cache": "prefix_cache_reset"}


def _cause(frame: FrameType | None) -> tuple[str, Any]:
    """Why a request is preempted, and the request that needs its blocks: both as the calling function has them."""
    # Overrides of `_preempt_request` and wrappers of others may lie in between.
    for _ in range(4):
        if frame is None:
            break
        reason = _REASONS.get(frame.f_code.co_name)
        if reason is not None:
            # `schedule` (0.11 to 0.33) calls the request that it makes room for `request`.
            beneficiary = frame.f_locals.get("request") if reason == "kv_cache_full" else None
            return reason, beneficiary if hasattr(beneficiary, "num_computed_tokens") else None
        frame = frame.f_back
    return "", None


def _before_preempt(scheduler: Any, request: Any, *_args: Any, **_kwargs: Any) -> None:
    # The caller's frame: this function and the hook that calls it have one between them.
    _Preemption.reason, _Preemption.beneficiary = _cause(sys._getframe(1))
    _Preemption.request, _Preemption.scheduler = request, scheduler
    # `_preempt_request` sets it to 0.
    _Preemption.computed_tokens = int(request.num_computed_tokens)
    _Preemption.free_blocks = getattr(scheduler, _native.BOOKS).free_blocks()


def _after_preempt(_result: Any, _scheduler: Any) -> None:
    request, scheduler = _Preemption.request, _Preemption.scheduler
    beneficiary = _Preemption.beneficiary
    # Nothing of vLLM's is held longer than its call.
    _Preemption.request = _Preemption.scheduler = _Preemption.beneficiary = None
    if request is None:
        return
    books = getattr(scheduler, _native.BOOKS)
    free_before, free_after = _Preemption.free_blocks, books.free_blocks()
    blocks_freed = None if free_before is None or free_after is None else max(free_after - free_before, 0)
    in_schedule = _Preemption.reason == "kv_cache_full"
    step = books.step + 1 if in_schedule else 0
    if in_schedule:
        books.note_preemption(step)
    if books.has_requests:
        _native.request_preempted(
            request,
            step,
            _Preemption.reason,
            (_Preemption.computed_tokens, int(request.num_output_tokens)),
            beneficiary,
            blocks_freed,
        )


def _before_free(_manager: Any, request: Any, *_args: Any, **_kwargs: Any) -> None:
    """vLLM 0.11: `schedule` itself frees the blocks of a request that runs, and then calls it preempted."""
    frame = sys._getframe(1)
    if request.status.name != "RUNNING" or frame.f_code.co_name != "schedule":
        return
    scheduler = frame.f_locals.get("self")
    if hasattr(scheduler, _native.BOOKS):
        _before_preempt(scheduler, request)
        _Preemption.reason, _Preemption.beneficiary = _cause(frame)


#: Methods that a scheduler of somebody else's may override.
SCHEDULER_HOOKS = (
    HookSpec(
        name="scheduler.add_request",
        places=(f"{_SCHEDULER}.add_request",),
        profilers=("preemption_tracking",),
        kind=_native.CALL,
        lane=_native.ENGINE,
        before=_native.before_add_request,
    ),
    HookSpec(
        name="scheduler.preempt_request",
        places=(f"{_SCHEDULER}._preempt_request",),
        profilers=("preemption_tracking", "batch_utilization_tracking"),
        kind=_native.CALL,
        lane=_native.ENGINE,
        before=_before_preempt,
        after=_after_preempt,
        optional=True,
        without="vLLM 0.11 preempts inside of `schedule`, where `kv_cache_manager.free` sees it: nothing is lost",
    ),
    HookSpec(
        name="scheduler.free_request",
        places=(f"{_SCHEDULER}._free_request",),
        profilers=("preemption_tracking",),
        kind=_native.CALL,
        lane=_native.ENGINE,
        before=_native.before_free_request,
    ),
)

FREE_IN_SCHEDULE = HookSpec(
    name="kv_cache_manager.free",
    places=("vllm.v1.core.kv_cache_manager:KVCacheManager.free",),
    kind=_native.CALL,
    lane=_native.ENGINE,
    before=_before_free,
    after=_after_preempt,
    instead_of="scheduler.preempt_request",
)

HOOKS = (
    *SCHEDULER_HOOKS,
    HookSpec(
        name="output_processor.add_request",
        places=("vllm.v1.engine.output_processor:OutputProcessor.add_request",),
        profilers=("preemption_tracking",),
        kind=_native.CALL,
        before=_native.before_processor_add_request,
    ),
)

_REQUEST = ("vllm.v1.request:Request",)
_LIVES = ("scheduler.add_request", "scheduler.free_request", "scheduler.schedule")

READS = (
    Reads((f"{_SCHEDULER}.add_request()",), ("request@1",), ("scheduler.add_request",)),
    Reads((f"{_SCHEDULER}._free_request()",), ("request@1",), ("scheduler.free_request",)),
    Reads(
        _REQUEST,
        (
            *("request_id", "arrival_time", "num_prompt_tokens", "priority", "client_index", "pooling_params"),
            *("num_tokens", "num_computed_tokens", "num_output_tokens", "is_finished", "status"),
        ),
        _LIVES,
    ),
    Reads(_REQUEST, ("resumable",), _LIVES, without="there are no streaming sessions there: nothing is lost"),
    Reads(
        _REQUEST,
        ("num_preemptions",),
        _LIVES,
        without="vLLM keeps no count of its own: preemptions are counted as they are recorded, and what a resumed "
        "request finds in the prefix cache is counted as a new one's",
    ),
    Reads(
        _REQUEST,
        ("prefill_stats",),
        _LIVES,
        without="prompt tokens that a KV connector fetched are counted among those of the prefix cache",
    ),
    Reads(
        ("vllm.v1.metrics.stats:PrefillStats",),
        ("num_external_cached_tokens",),
        _LIVES,
        without="prompt tokens that a KV connector fetched are counted among those of the prefix cache",
    ),
    # Read where a request is preempted: who calls, and what the caller calls the request that needs the blocks.
    Reads(
        (_SCHEDULER,), ("schedule", "reset_prefix_cache"), ("scheduler.preempt_request", "kv_cache_manager.free")
    ),
    Reads(
        (f"{_SCHEDULER}.schedule()",), ("self", "request"), ("scheduler.preempt_request", "kv_cache_manager.free")
    ),
    Reads(("vllm.v1.request:RequestStatus",), ("RUNNING",), ("kv_cache_manager.free",)),
)
