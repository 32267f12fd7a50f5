"""Stamps beside the kernels of a trace: which kernels ran between two stamps, and how long, step by step."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple


class Kernel(NamedTuple):
    """A kernel of a trace: microseconds."""

    name: str
    start_us: float
    duration_us: float


class Between(NamedTuple):
    """Microseconds of the kernels between two stamps, and from the first one's start to the last one's end."""

    kernels_us: float
    span_us: float


def traced_pairs(kernels: Iterable[Kernel]) -> list[Between]:
    """The pairs of stamps, in order."""
    pairs: list[Between] = []
    inside: list[Kernel] | None = None
    for kernel in sorted(kernels, key=lambda kernel: kernel.start_us):
        if "profilemate_stamp" in kernel.name:
            if inside is None:
                inside = []
                continue
            pairs.append(Between(0.0, 0.0))
            if inside:
                first, last = inside[0], max(inside, key=lambda each: each.start_us + each.duration_us)
                span = last.start_us + last.duration_us - first.start_us
                pairs[-1] = Between(sum(each.duration_us for each in inside), span)
            inside = None
        elif inside is not None and "profilemate_" not in kernel.name:
            inside.append(kernel)
    return pairs


def recorded_steps(session: Path, process: str) -> dict[int, list[dict[str, str]]]:
    """Step → the rows of a process in both tables, in the order of the GPU."""
    steps: dict[int, list[dict[str, str]]] = {}
    for table in ("layer_timing.csv", "collective_timing.csv"):
        with (session / table).open() as file:
            for row in csv.DictReader(file):
                if row["process"] == process:
                    steps.setdefault(int(row["step"]), []).append(row)
    for rows in steps.values():
        rows.sort(key=lambda row: float(row["timestamp_sec"]))
    return steps


def compare(
    traced: list[Between],
    last_step: int,
    recorded: dict[int, list[dict[str, str]]],
    group: str,
    phase: str | None = None,
) -> dict[str, Any]:
    """How stamps and kernels compare, by component. The trace ends with the last step, and each of its steps has been
    recorded (`PROFILEMATE_LAYERS_EVERY=1`): its pairs are one around nothing, and one for each row. With a `phase`
    only steps of that phase are compared.
    """
    found: dict[str, list[tuple[float, Between]]] = {}
    matched = other_counts = 0
    end = len(traced)
    for step in range(last_step, 0, -1):
        rows = recorded.get(step, [])
        begin = end - len(rows) - 1
        if end == 0:
            break
        if not rows:
            # One without tokens, which only tells the runner what has finished.
            continue
        if begin < 0 or traced[begin] != Between(0.0, 0.0):
            # What lies before cannot be told apart.
            other_counts += 1
            break
        end, of_step = begin, traced[begin + 1 : end]
        if phase is not None and rows[0]["phase"] != phase:
            continue
        matched += 1
        for row, pair in zip(rows, of_step, strict=True):
            found.setdefault(row["component"], []).append((float(row["duration_ms"]) * 1e3, pair))
    said: dict[str, Any] = {"group": group, "steps": matched, "steps_with_other_counts": other_counts}
    for component, both in found.items():
        errors = [ours - theirs.span_us for ours, theirs in both]
        good = [abs(ours - theirs.span_us) <= max(2.0, 0.05 * theirs.span_us) for ours, theirs in both]
        said[component] = {
            "intervals": len(both),
            "stamps_us": round(statistics.median(ours for ours, _ in both), 2),
            "kernels_us": round(statistics.median(theirs.kernels_us for _, theirs in both), 2),
            "span_us": round(statistics.median(theirs.span_us for _, theirs in both), 2),
            "error_us_median": round(statistics.median(errors), 2),
            "error_us_p95": round(sorted(abs(error) for error in errors)[int(0.95 * (len(errors) - 1))], 2),
            "within_5_pct_or_2_us_pct": round(100 * sum(good) / len(good), 2),
        }
    return said
