"""What holds in every session, however its processes ended."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from support.tables import COLUMNS, SUMMARIES, Row, Session


def tables_are_whole(session: Session) -> None:
    for table, columns in COLUMNS.items():
        assert session.header(table)[: len(columns)] == columns
        # The csv module gives None for a missing cell and keeps surplus ones under the key None.
        for row in session.rows(table):
            assert None not in row and None not in row.values(), f"{table}: {row}"
    for summary in SUMMARIES:
        session.json(summary)


def statistics(values: Iterable[float], names: Iterable[str]) -> dict[str, float]:
    sample = np.array(list(values))
    every = {
        "count": len(sample),
        "mean_ms": sample.mean(),
        "std_ms": sample.std(),
        "min_ms": sample.min(),
        "max_ms": sample.max(),
        "p50_ms": np.percentile(sample, 50),
        "p95_ms": np.percentile(sample, 95),
        "p99_ms": np.percentile(sample, 99),
        "total_ms": sample.sum(),
    }
    return {name: float(every[name]) for name in names}


def grouped(rows: Iterable[Row], key: str, value: str) -> dict[str, list[float]]:
    groups: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        groups[row[key]].append(float(row[value]))
    return groups


def close(expected: Any) -> Any:
    """Tables show fewer digits than the summaries are computed from."""
    return pytest.approx(expected, rel=1e-3, abs=1e-3)


def forward_summary_is_that_of_the_rows(session: Session) -> None:
    summary = session.json("forward_pass_summary.json")
    times = grouped(session.forward, "phase", "forward_time_ms")
    tokens = grouped(session.forward, "phase", "num_tokens")
    assert summary.keys() == times.keys()
    names = ["count", "mean_ms", "std_ms", "min_ms", "max_ms", "p50_ms", "p95_ms", "p99_ms", "total_ms"]
    for phase, ours in summary.items():
        assert list(ours) == [*names, "tokens_per_sec"]
        expected = statistics(times[phase], names)
        expected["tokens_per_sec"] = sum(tokens[phase]) / (expected["total_ms"] / 1000)
        assert ours == close(expected), phase


def cpu_summary_is_that_of_the_rows(session: Session) -> None:
    summary = session.json("cpu_timing_summary.json")
    times = grouped(session.operations, "operation", "duration_ms")
    assert summary.keys() == times.keys()
    names = ["count", "mean_ms", "std_ms", "min_ms", "max_ms", "p95_ms", "p50_ms", "p99_ms", "total_ms"]
    for operation, ours in summary.items():
        assert list(ours) == names
        assert ours == close(statistics(times[operation], names)), operation


def batch_summary_is_that_of_the_rows(session: Session) -> None:
    rows = session.batches
    of_phase = grouped(rows, "phase", "token_utilization_pct")
    tokens = [float(row["token_utilization_pct"]) for row in rows]
    ours = session.json("batch_utilization_summary.json")
    limits = Counter(row["limited_by"] or "unknown" for row in rows)
    assert ours.pop("limited_by") == close({limit: 100 * count / len(rows) for limit, count in limits.items()})
    expected: dict[str, float] = {
        "total_samples": len(rows),
        "mean_seq_utilization_pct": float(np.mean([float(row["seq_utilization_pct"]) for row in rows])),
        "mean_token_utilization_pct": float(np.mean(tokens)),
        "underutilization_events": sum(value < 50 for value in tokens),
        "max_num_seqs": int(rows[0]["max_num_seqs"]),
        "max_tokens": int(rows[0]["max_tokens"]),
    }
    for phase in ("prefill", "decode", "mixed"):
        if of_phase[phase]:
            expected[f"{phase}_avg_utilization"] = float(np.mean(of_phase[phase]))
    assert ours == close(expected)


def rows_are_consistent(session: Session) -> None:
    """Every forward pass belongs to a scheduled step, with the same tokens; every number follows from its row."""
    batches = {row["step"]: row for row in session.batches}
    assert len(batches) == len(session.batches), "a step is scheduled once"
    assert len({(row["step"], row["process"]) for row in session.forward}) == len(session.forward)
    for row in session.forward:
        assert row["step"] in batches, f"a forward pass of a step that nobody scheduled: {row}"
        batch = batches[row["step"]]
        assert row["batch_size"] == batch["num_seqs"], f"{row} / {batch}"
        for column in ("phase", "num_tokens", "prefill_tokens", "decode_tokens"):
            assert row[column] == batch[column], f"{row} / {batch}"
        assert row["throughput_tokens_per_sec"] == "" or float(row["throughput_tokens_per_sec"]) == close(
            int(row["num_tokens"]) / (float(row["forward_time_ms"]) / 1000)
        )
        assert row["timing"] == "wall"
    for row in session.batches:
        prefill, decode = int(row["prefill_tokens"]), int(row["decode_tokens"])
        assert prefill + decode == int(row["num_tokens"])
        assert row["phase"] == ("mixed" if prefill and decode else "prefill" if prefill else "decode")
        for part, whole, percent in [
            ("num_seqs", "max_num_seqs", "seq_utilization_pct"),
            ("num_tokens", "max_tokens", "token_utilization_pct"),
        ]:
            assert 0 < int(row[part]) <= int(row[whole])
            assert float(row[percent]) == close(100 * int(row[part]) / int(row[whole]))
    for row in session.operations:
        assert float(row["duration_ms"]) >= 0
        assert float(row["timestamp_sec"]) >= 0


def nothing_was_lost(session: Session) -> None:
    assert session.metadata["records_lost"] == 0
    assert session.metadata["records_damaged"] <= len(session.metadata["processes"]), (
        "more than one torn record each"
    )
    assert session.metadata["records_written"] > 0


def sound(session: Session) -> None:
    """All of the above."""
    tables_are_whole(session)
    nothing_was_lost(session)
    rows_are_consistent(session)
    forward_summary_is_that_of_the_rows(session)
    cpu_summary_is_that_of_the_rows(session)
    batch_summary_is_that_of_the_rows(session)
