"""A session folder, read with nothing but the standard library: tests share no code with what wrote it."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from support.processes import wait_for

Row = dict[str, str]

# What tables began with when they were first published. More may stand behind, these never change.
COLUMNS = {
    "forward_pass_timing.csv": [
        "timestamp_sec",
        "phase",
        "batch_size",
        "num_tokens",
        "forward_time_ms",
        "throughput_tokens_per_sec",
        "prefill_tokens",
        "decode_tokens",
        "cudagraph_mode",
        "padded_tokens",
        "gpu_idle_before_ms",
        "sample_time_ms",
        "timing",
        "step",
        "process",
    ],
    "cpu_operations_timing.csv": ["timestamp_sec", "operation", "duration_ms", "context", "step", "process"],
    "batch_utilization.csv": [
        "timestamp_sec",
        "num_seqs",
        "max_num_seqs",
        "seq_utilization_pct",
        "num_tokens",
        "max_tokens",
        "token_utilization_pct",
        "phase",
        "running_queue_len",
        "waiting_queue_len",
        "prefill_tokens",
        "decode_tokens",
        "step",
        "process",
        "limited_by",
    ],
    "encoder_decoder_timing.csv": [
        "timestamp_sec",
        "component",
        "duration_ms",
        "context",
        "num_items",
        "num_tokens",
        "step",
        "process",
    ],
    "request_lifecycle.csv": [
        "request_id",
        "started_sec",
        "preempted_sec",
        "resumed_sec",
        "finished_sec",
        "total_time_sec",
        "preemption_delay_sec",
        "arrived_sec",
        "first_token_sec",
        "queue_time_sec",
        "ttft_sec",
        "tpot_ms",
        "prompt_tokens",
        "cached_tokens",
        "output_tokens",
        "num_preemptions",
        "recomputed_tokens",
        "finish_reason",
        "client_request_id",
        "queued_sec",
        "priority",
        "kind",
        "sample_index",
        "external_tokens",
        "process",
    ],
    "preemption_events.csv": [
        "timestamp_sec",
        "request_id",
        "event",
        "reason",
        "running_time_sec",
        "extra_info",
        "step",
        "process",
    ],
    "kv_cache_usage.csv": [
        "timestamp_sec",
        "usage_pct",
        "num_blocks",
        "total_blocks",
        "cached_blocks",
        "prefix_hit_tokens",
        "prefix_query_tokens",
        "step",
        "free_blocks",
        "allocated_blocks",
        "freed_blocks",
        "evicted_blocks",
        "pool",
        "process",
    ],
    "kv_cache_evictions.csv": [
        "timestamp_sec",
        "lifetime_sec",
        "idle_sec",
        "accesses",
        "block_id",
        "stands_for",
        "pool",
        "process",
    ],
    "sampling_timing.csv": [
        "timestamp_sec",
        "phase",
        "batch_size",
        "num_tokens",
        "sample_time_ms",
        "host_time_ms",
        "timing",
        "greedy",
        "random",
        "top_k",
        "top_p",
        "min_p",
        "penalties",
        "logprobs",
        "most_logprobs",
        "prompt_logprobs",
        "structured_output",
        "logit_bias",
        "bad_words",
        "allowed_token_ids",
        "min_tokens",
        "seeded",
        "draft_tokens",
        "accepted_tokens",
        "draft_time_ms",
        "step",
        "process",
    ],
}

SUMMARIES = [
    "forward_pass_summary.json",
    "cpu_timing_summary.json",
    "batch_utilization_summary.json",
    "preemption_summary.json",
    "kv_cache_summary.json",
    "encoder_decoder_summary.json",
    "sampling_summary.json",
    "breakdown.json",
    "findings.json",
]


class Session:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def metadata(self) -> dict[str, Any]:
        return self.json("metadata.json")

    def json(self, name: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / name).read_text(encoding="utf-8"))
        return content

    def header(self, table: str) -> list[str]:
        with (self.folder / table).open(newline="", encoding="utf-8") as file:
            return next(csv.reader(file))

    def rows(self, table: str) -> list[Row]:
        with (self.folder / table).open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    @cached_property
    def forward(self) -> list[Row]:
        return self.rows("forward_pass_timing.csv")

    @cached_property
    def operations(self) -> list[Row]:
        return self.rows("cpu_operations_timing.csv")

    @cached_property
    def components(self) -> list[Row]:
        return self.rows("encoder_decoder_timing.csv")

    @cached_property
    def batches(self) -> list[Row]:
        return self.rows("batch_utilization.csv")

    @cached_property
    def lives(self) -> list[Row]:
        return self.rows("request_lifecycle.csv")

    @property
    def counters(self) -> dict[str, int]:
        counters: dict[str, int] = self.metadata["counters"]
        return counters

    def roles(self) -> set[str]:
        return {process["role"] for process in self.metadata["processes"]}

    def durations(self, operation: str) -> Iterator[tuple[str, float]]:
        """Step and milliseconds of every row of `operation`."""
        return (
            (row["step"], float(row["duration_ms"])) for row in self.operations if row["operation"] == operation
        )


def sessions(output_dir: Path) -> list[Path]:
    return sorted(output_dir.glob("session_*"))


def only_session(output_dir: Path) -> Session:
    """The one session of a launch."""
    found = sessions(output_dir)
    assert len(found) == 1, f"one launch is one session; found {[folder.name for folder in found]}"
    return Session(found[0])


def completed_session(output_dir: Path, *pids: int) -> Session:
    """The one session, once its tables are those of ended processes, these among them.

    The collector works after they are gone, so there is something to wait for.
    """
    folder = only_session(output_dir).folder

    def complete() -> Session | None:
        session = Session(folder)
        try:
            processes = session.metadata["processes"]
        except FileNotFoundError:
            return None
        ended = {process["pid"] for process in processes if process.get("ended") is not None}
        running = {process["pid"] for process in processes} - ended
        return session if ended and not running and ended >= set(pids) else None

    return wait_for(f"the tables of {folder.name} after its processes ended", complete)
