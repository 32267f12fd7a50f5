"""What holds in every session, however its processes ended."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

from support.tables import COLUMNS, SUMMARIES, Row, Session


def tables_are_whole(session: Session) -> None:
    for table, columns in COLUMNS.items():
        if table == "kv_cache_evictions.csv" and session.metadata.get("kv_evictions", "on") != "on":
            # vLLM 0.11 tells nobody of its blocks, and metadata.json says so.
            assert session.metadata["kv_evictions"].startswith("could not attach: ")
            assert not (session.folder / table).exists()
            continue
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


#: pytest's fixture: what it is given stands in the report.
Record = Callable[[str, object], None]


def same(record_property: Record, name: str, ours: float, theirs: float) -> None:
    """Our number is vLLM's; both are kept in the report of the tests, where `scripts/version_runs.sh` reads them."""
    record_property(name, f"{ours:g} = {theirs:g}")
    assert ours == theirs, name


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


def components_are_no_more_than_the_step(session: Session) -> None:
    """Encoder and decoder lie in the worker's part of the step, apart from one another; summed up in the summary."""
    worked = dict(session.durations("model_execution"))
    spent: dict[str, float] = defaultdict(float)
    decoder = [row for row in session.components if row["component"] == "decoder"]
    for row in session.components:
        if row["component"] != "cross_attention":
            spent[row["step"]] += float(row["duration_ms"])
    # A kill may come between a forward pass and the end of its step.
    assert all(ms <= worked.get(step, ms) for step, ms in spent.items())
    assert [(row["step"], row["duration_ms"]) for row in decoder] == [
        (row["step"], row["forward_time_ms"]) for row in session.forward
    ]
    of_decoder = {row["step"]: float(row["duration_ms"]) for row in decoder}
    summary = session.json("encoder_decoder_summary.json")
    times = grouped(session.components, "component", "duration_ms")
    for component, durations in times.items():
        names = ["count", "total_ms", "mean_ms", "std_ms", "min_ms", "max_ms", "p50_ms", "p99_ms"]
        assert summary[component] == close(statistics(durations, names)), component
    for row in session.components:
        if row["component"] == "cross_attention":
            assert float(row["duration_ms"]) <= of_decoder[row["step"]]
    assert summary["encoder_pct"] + summary["decoder_pct"] == pytest.approx(100)
    both = sum(times["encoder"]) + sum(times["decoder"])
    assert summary["encoder_pct"] == close(100 * sum(times["encoder"]) / both)


def add_up(whole: dict[str, Any]) -> None:
    """The parts of a division are its whole, in all that is said of them."""
    parts = whole["parts"].values()
    assert sum(part["total_ms"] for part in parts) == pytest.approx(whole["total_ms"], rel=1e-9, abs=1e-6)
    if whole["total_ms"] > 0:
        assert sum(part["share_pct"] for part in parts) == pytest.approx(100)
    if whole.get("count"):
        assert sum(part["mean_ms"] for part in parts) == pytest.approx(whole["mean_ms"], rel=1e-9)
        assert whole["mean_ms"] * whole["count"] == pytest.approx(whole["total_ms"], rel=1e-9)


def spans(rows: Iterable[Row], duration: str) -> list[tuple[float, float]]:
    """Beginning and end of each row, milliseconds, in order."""
    begun = [(1000 * float(row["timestamp_sec"]), float(row[duration])) for row in rows if row[duration]]
    return sorted((start, start + long) for start, long in begun)


def overlap(some: list[tuple[float, float]], others: list[tuple[float, float]]) -> float:
    """How long two lists of spans overlap, each of spans that do not overlap one another."""
    total, at = 0.0, 0
    for start, end in some:
        while at < len(others) and others[at][1] <= start:
            at += 1
        ahead = at
        while ahead < len(others) and others[ahead][0] < end:
            total += min(end, others[ahead][1]) - max(start, others[ahead][0])
            ahead += 1
    return total


def breakdown_is_that_of_the_rows(session: Session) -> None:
    breakdown = session.json("breakdown.json")
    for name in ("run", "engine_step", "between_steps"):
        add_up(breakdown[name])
    for worker in breakdown["workers"]:
        add_up(worker["host"])
    engines = breakdown["engines"]
    assert breakdown["run"]["total_ms"] == pytest.approx(engines * breakdown["wall_ms"], rel=1e-9)
    by_operation = {
        operation: spans((row for row in session.operations if row["operation"] == operation), "duration_ms")
        for operation in {row["operation"] for row in session.operations}
    }

    def total(operation: str) -> float:
        return sum(end - start for start, end in by_operation.get(operation, []))

    steps = breakdown["engine_step"]
    assert steps["count"] == breakdown["engine_steps"] == len(by_operation["engine_step"])
    within_one_percent = pytest.approx(total("engine_step"), rel=0.01)
    assert steps["total_ms"] == breakdown["run"]["parts"]["engine_step"]["total_ms"] == within_one_percent
    assert breakdown["run"]["parts"]["engine_idle"]["total_ms"] == pytest.approx(total("engine_idle"), rel=0.01)
    encoders = spans((row for row in session.components if row["component"] == "encoder"), "duration_ms")
    if encoders:
        assert steps["parts"]["encoder"]["total_ms"] == pytest.approx(
            overlap(by_operation["engine_step"], encoders), rel=0.01
        )
    if engines == 1 and len(breakdown["workers"]) == 1:
        # Nothing overlaps then but the engine and its worker.
        for part, rows in [
            ("forward", spans(session.forward, "forward_time_ms")),
            *((name, by_operation[name]) for name in ("scheduling", "update_from_output", "batch_preparation")),
        ]:
            expected = overlap(by_operation["engine_step"], rows)
            if part == "batch_preparation":
                # Encoders run while the batch is prepared, and are a part of their own.
                expected -= overlap(by_operation["engine_step"], encoders)
            assert steps["parts"][part]["total_ms"] == pytest.approx(expected, rel=0.01, abs=0.1), part
    intervals = breakdown["throughput"]["intervals"]
    counted = {
        "engine_steps": "engine_steps",
        "generated_tokens": "generation_tokens",
        "finished_requests": "finished_requests",
    }
    for ours, theirs in counted.items():
        assert sum(interval[ours] for interval in intervals) == session.counters[theirs]
    assert sum(interval["prefill_tokens"] for interval in intervals) == sum(
        int(row["prefill_tokens"]) for row in session.batches
    )
    assert len(intervals) <= 240


def latency_is_that_of_the_rows(session: Session) -> None:
    latency = session.json("breakdown.json").get("request_latency")
    known = ("total_time_sec", "queued_sec", "preemption_delay_sec")
    over = [row for row in session.lives if all(row[column] for column in known) and row["kind"] != "streaming"]
    assert (latency is None) == (not over)
    if latency is None:
        return
    assert latency["count"] == len(over)
    total = sum(float(row["total_time_sec"]) for row in over)
    parts = latency["parts"]
    assert latency["total_sec"] == close(total)
    assert sum(part["total_sec"] for part in parts.values()) == pytest.approx(latency["total_sec"], rel=1e-9)
    delays = [float(row["preemption_delay_sec"]) for row in over]
    assert parts["preempted"]["total_sec"] == close(sum(delays))
    assert parts["preempted"]["p99_sec"] == close(float(np.percentile(delays, 99)))
    # A request that was never started waited until its end.
    queues = [float(row["started_sec"] or row["finished_sec"]) - float(row["queued_sec"]) for row in over]
    assert parts["queue"]["total_sec"] == close(sum(queues))
    assert parts["queue"]["p95_sec"] == close(float(np.percentile(queues, 95)))


def costs_are_those_of_the_rows(session: Session) -> None:
    """Least squares by numpy, where no step was left out."""
    for fit in session.json("breakdown.json").get("forward_cost", []):
        assert fit["steps"] >= 50 and 0.7 <= fit["r_squared"] <= 1
        if fit["left_out"] or fit.get("phase") != "decode":
            continue
        rows = [row for row in session.forward if row["phase"] == "decode"]
        sequences = np.array([float(row["batch_size"]) for row in rows])
        times = np.array([1000 * float(row["forward_time_ms"]) for row in rows])
        factors = np.column_stack([np.ones(len(rows)), sequences])
        (base, slope), *_ = np.linalg.lstsq(factors, times, rcond=None)
        assert fit["steps"] == len(rows)
        assert (1000 * fit["base_ms"], fit["decode_sequence_us"]) == close((base, slope))


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
    components_are_no_more_than_the_step(session)
    breakdown_is_that_of_the_rows(session)
    latency_is_that_of_the_rows(session)
    costs_are_those_of_the_rows(session)
