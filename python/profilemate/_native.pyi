"""The recorder, in Rust (`crates/python`)."""

from collections.abc import Callable
from typing import Any

CALL: int
SPAN: int
WARM_UP: int
DUMMY: int
ACCUMULATE: int
TIMED_SPAN: int
SAMPLED_SPAN: int
MARK_STEP: int
MARK_FORWARD: int
MARK_FORWARD_BEGINS: int
MARK_FORWARD_ENDED: int
MARK_SAMPLE: int
MARK_SAMPLE_FOLLOWS: int
MARK_DRAFT: int
MARK_STEP_ENDED: int
FRONT_END: int
ENGINE: int
WORKER: int
WORKER_OUTPUT: int
EMPTY_INTERVAL: str
STAMP_ALL_REDUCE: int
STAMP_ALL_GATHER: int
STAMP_REDUCE_SCATTER: int
SECTION_ENDS: int
COLLECTIVE_PAIRS: int

class Hook:
    """Stands in for a function: calls it, times the call, records it."""

    __wrapped__: Callable[..., Any]
    failures: int
    #: Calls that went through the probe, and the ticks that the probe itself took of them.
    cost: tuple[int, int]
    def __init__(
        self,
        target: Callable[..., Any],
        name: str,
        /,
        *,
        kind: int = ...,
        span: str = ...,
        context: str = ...,
        lane: int = ...,
        marks: int = ...,
        stamp: int = ...,
        section: int = ...,
        group: int = ...,
        closes_step: bool = ...,
        needs_step: bool = ...,
        before: Callable[..., Any] | Extractor | None = ...,
        after: Callable[..., Any] | Extractor | Dispatch | None = ...,
        accumulator: Hook | None = ...,
    ) -> None: ...
    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

class PanicException(BaseException):
    """A panic in our native code, as Python sees it."""

def say(text: str) -> None: ...
def settings() -> tuple[dict[str, Any], list[str]]: ...
def command_line(words: list[str]) -> str: ...
def without_secrets(text: str) -> str: ...
def new_session_name() -> str: ...
def sessions_folder_ready(session: str) -> bool: ...
def open(
    session: str, role: str, rank: int, data_parallel_rank: int, segment_bytes: int, max_bytes: int
) -> None: ...
def is_open() -> bool: ...
def close() -> None: ...
def add_role(role: str, rank: int, data_parallel_rank: int) -> None: ...
def fact(key: str, value: str) -> None: ...
def set_debug_interval(interval: int) -> None: ...
def ticks() -> int: ...
def statistics() -> tuple[int, int, int]: ...
def limits(max_num_seqs: int, max_num_tokens: int) -> None: ...
def write_span(
    name: str, begin: int, end: int, step: int = 0, value_a: int = 0, value_b: int = 0, context: str = ""
) -> None: ...
def encoder_input(what: str, modality: str, embeddings: int, evicted: int, held: int, size: int) -> None: ...
def use_cuda(stream_function: Callable[[int], int], device: int, steps_in_flight: int) -> bool: ...
def load_device_code(stream_function: Callable[[int], int], device_number: int) -> str | None: ...
def use_step_word(on: bool = True) -> None: ...
def bind_layers(parts: list[tuple[str, str, int]], first_collective: int, every: int) -> str | None: ...
def cuda_driver_version() -> str | None: ...
def cuda_counters() -> tuple[int, int, int, int, int, int] | None: ...
def use_nvtx(push: Callable[[str], int], pop: Callable[[], int]) -> None: ...
def worker_step() -> int: ...
def watch_experts(
    layers: list[tuple[int, int, int]], coselection: bool, weights: bool, interval_seconds: int, on_gpu: bool
) -> None: ...
def launch_expert_counts(
    place: int,
    kind: str,
    data: int,
    rows: int,
    columns: int,
    first_row: int,
    first_token: int,
    may_fork: bool,
) -> bool: ...
def join_experts() -> None: ...
def experts_failed(what: str) -> None: ...
def count_experts(
    place: int,
    data: int,
    rows: int,
    columns: int,
    row_stride: int,
    column_stride: int,
    element_size: int,
    first_row: int,
    first_token: int,
) -> None: ...
def count_expert_weights(
    place: int,
    data: int,
    rows: int,
    columns: int,
    row_stride: int,
    column_stride: int,
    first_row: int,
    first_token: int,
) -> None: ...
def on_garbage_collection(phase: str, info: dict[str, int], /) -> None: ...

#: Attribute of a `SchedulerOutput` that carries its step.
STEP: str
#: Attribute of a scheduler that holds its `SchedulerBooks`.
BOOKS: str

class SchedulerBooks:
    """What is remembered of one scheduler between steps."""

    #: Requests whose prompt is not complete: id → tokens to reach.
    prefilling: dict[str, int]
    #: Requests whose prompt is complete and whose first token has not come back: id → request.
    awaiting: dict[str, Any]
    step: int
    has_requests: bool
    def __init__(
        self,
        count_each: bool = True,
        progress_every: int = 0,
        progress: Callable[[int, int, int, int, int], None] | None = None,
    ) -> None: ...
    def watch_requests(self) -> None: ...
    def watch_limits(self, scheduler: Any, running: int, tokens: int, only_blocks: bool) -> None: ...
    def watch_speculation(self) -> None: ...
    def watch_kv_cache(
        self, manager: Any, pools: list[tuple[str, Any, KvCacheCollector | None]], has_prefix_cache: bool
    ) -> None: ...
    def free_blocks(self) -> int | None: ...
    def note_preemption(self, step: int) -> None: ...

class KvCacheCollector:
    """Stands where vLLM's `KVCacheMetricsCollector` stands, and tells that one too, if there is one."""

    def __init__(self, pool: str, blocks: int, every: int, inner: Any = None) -> None: ...
    def on_block_allocated(self, block: Any) -> None: ...
    def on_block_accessed(self, block: Any) -> None: ...
    def on_block_evicted(self, block: Any) -> None: ...
    def reset(self) -> None: ...
    def drain_events(self) -> list[Any]: ...

class KvCacheCollectorBeside(KvCacheCollector):
    """The same beside a collector of vLLM's own: it has all that that one has."""

    def __init__(self, pool: str, blocks: int, every: int, inner: Any) -> None: ...
    def __getattr__(self, name: str) -> Any: ...

class Extractor:
    """Reads a call natively: `before` or `after` of a `Hook`, not to be called from Python."""

def extract(extractor: Any, /, *arguments: Any, **keywords: Any) -> Any: ...

class Dispatch:
    """Extractor after the function that dispatches a batch."""

    def __init__(self, text: Callable[[Any, Any], str], mode_attribute: str, uniform_attribute: str) -> None: ...

before_process_input_queue: Extractor
after_schedule: Extractor
before_update_from_output: Extractor
after_update_from_output: Extractor
before_execute_model: Extractor
before_grammar_bitmask: Extractor
before_sample: Extractor
before_sampler_add_request: Extractor
before_sample_v2: Extractor
before_process_outputs: Extractor
after_process_outputs: Extractor
before_processor_add_request: Extractor
before_add_request: Extractor
before_free_request: Extractor

def watch_gpu_memory(
    stats: Callable[[int], dict[str, Any]], free: Callable[[int], tuple[int, int]] | None, device: int
) -> None: ...
def gpu_memory_allocated() -> int | None: ...
def watch_sampling() -> None: ...
def hash_request_ids(key: list[int]) -> None: ...
def request_preempted(
    request: Any,
    step: int,
    reason: str,
    tokens: tuple[int, int],
    beneficiary: Any,
    blocks_freed: int | None,
) -> None: ...
