"""The tables of requests and of the KV cache, against the truth of the script that drove vLLM."""

from __future__ import annotations

import csv
import io
from collections import Counter, defaultdict
from typing import Any

import pytest

from support.driven import Driven
from support.tables import Row, Session

#: Times have nine places in the tables.
ROUNDING = 3e-9

Json = dict[str, Any]


def extra(row: Row) -> dict[str, str]:
    """`extra_info` of an event. A request's id stands last in it and may hold any character."""
    found = {}
    rest = row["extra_info"]
    while rest:
        key, _, rest = rest.partition("=")
        if key == "preempted_for":
            found[key] = rest
            break
        found[key], _, rest = rest.partition(";")
    return found


def events_by_request(session: Session) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = defaultdict(list)
    for row in session.rows("preemption_events.csv"):
        found[row["request_id"]].append(row)
    return found


def recomputed_tokens(events: list[Json]) -> int:
    """Computed tokens that were thrown away, less what the prefix cache had of them at the resume."""
    total = lost = 0
    for event in events:
        if event["event"] == "preempted":
            lost = event["computed_tokens"]
        elif event["event"] == "resumed":
            total += max(lost - event["cached_tokens"], 0)
            lost = 0
    return total + lost


def true_events(truth: Json) -> dict[str, list[Json]]:
    found: dict[str, list[Json]] = defaultdict(list)
    for event in truth["events"]:
        found[event["id"]].append(event)
    return found


def expected_extra(event: Json, about: Json) -> dict[str, str]:
    match event["event"]:
        case "started":
            values = {"prompt_tokens": about["queued_prompt_tokens"], "cached_tokens": event["cached_tokens"]}
        case "preempted":
            values = {key: event[key] for key in ("computed_tokens", "output_tokens", "blocks_freed")}
            if "preempted_for" in event:
                itself = event["preempted_for"] == event["id"]
                values["preempted_for"] = "itself" if itself else event["preempted_for"]
        case "resumed":
            values = {"cached_tokens": event["cached_tokens"]}
        case _:
            values = {"output_tokens": event["output_tokens"]}
    return {key: str(value) for key, value in values.items()}


def events_agree(driven: Driven) -> None:
    """Every occurrence is a row: the same ones for each request, in the same order, and nothing else."""
    truth = driven.truth
    rows = driven.session.rows("preemption_events.csv")
    times = [float(row["timestamp_sec"]) for row in rows]
    assert times == sorted(times)
    about = {request["id"]: request for request in truth["requests"]}
    theirs, ours = true_events(truth), events_by_request(driven.session)
    assert ours.keys() == theirs.keys()
    for request_id, events in theirs.items():
        found = ours[request_id]
        assert [row["event"] for row in found] == [event["event"] for event in events], request_id
        admitted = ran = preempted = 0.0
        is_running = False
        for row, event in zip(found, events, strict=True):
            at = float(row["timestamp_sec"])
            details = extra(row)
            delay = details.pop("delay_sec", None)
            assert details == expected_extra(event, about[request_id]), row
            assert row["step"] == ("" if event["step"] == 0 else str(event["step"])), row
            assert row["reason"] == event.get("reason", ""), row
            assert row["process"] == "engine_core-0"
            match event["event"]:
                case "started" | "resumed":
                    assert row["running_time_sec"] == ""
                    if event["event"] == "resumed":
                        assert delay is not None and float(delay) == pytest.approx(at - preempted, abs=ROUNDING)
                    admitted, is_running = at, True
                case "preempted":
                    assert float(row["running_time_sec"]) == pytest.approx(at - admitted, abs=ROUNDING), row
                    ran += at - admitted
                    preempted, is_running = at, False
                case _:
                    ran += at - admitted if is_running else 0
                    if "started" not in about[request_id]:
                        assert row["running_time_sec"] == ""
                    # A streaming session waits in between, which is no time of running.
                    elif about[request_id]["kind"] != "streaming":
                        assert float(row["running_time_sec"]) == pytest.approx(ran, abs=5 * ROUNDING), row


def number(text: str) -> float | None:
    return None if text == "" else float(text)


def lifecycles_agree(driven: Driven) -> None:
    """A row for each request, with the numbers that vLLM has of it."""
    truth = driven.truth
    rows = {row["request_id"]: row for row in driven.session.lives}
    assert rows.keys() == {request["id"] for request in truth["requests"]}
    assert len(rows) == len(driven.session.lives)
    theirs, ours = true_events(truth), events_by_request(driven.session)
    for request in truth["requests"]:
        row = rows[request["id"]]
        is_finished = "finish_reason" in request
        assert row["kind"] == request["kind"], row
        assert row["priority"] == str(request["priority"]), row
        assert row["prompt_tokens"] == str(request["prompt_tokens"]), row
        assert row["cached_tokens"] == str(request.get("cached_tokens", "")), row
        assert row["output_tokens"] == (str(request["output_tokens"]) if is_finished else ""), row
        assert row["num_preemptions"] == str(request["preemptions"]), row
        assert row["finish_reason"] == request.get("finish_reason", ""), row
        assert row["recomputed_tokens"] == str(recomputed_tokens(theirs[request["id"]])), row
        assert row["client_request_id"] == request.get("client_id", request["id"]), row
        assert row["sample_index"] == str(request.get("sample_index", "")), row
        assert row["process"] == "engine_core-0"
        times_agree(row, ours.get(row["request_id"], []), is_finished, "first_token" in request)


def times_agree(row: Row, events: list[Row], is_finished: bool, has_token: bool) -> None:
    """Times are in order, follow from one another, and are those of the events."""
    at: dict[str, list[float]] = defaultdict(list)
    for event in events:
        at[event["event"]].append(float(event["timestamp_sec"]))
    arrived, queued, started, first, finished = (
        number(row[column])
        for column in ("arrived_sec", "queued_sec", "started_sec", "first_token_sec", "finished_sec")
    )
    assert arrived is not None and queued is not None
    assert started == (at["started"][0] if at["started"] else None), row
    assert (first is None) == (not has_token), row
    ended = at["finished"] + at["aborted"]
    assert (finished is not None) == bool(ended) == is_finished, row
    if finished is not None:
        # The engine's time; with a front end, the moment at which that took what ended it.
        assert finished >= ended[0] if row["sample_index"] else finished == ended[0], row
    assert number(row["preempted_sec"]) == (at["preempted"][0] if at["preempted"] else None), row
    assert number(row["resumed_sec"]) == (at["resumed"][0] if at["resumed"] else None), row
    # Ticks of a log are placed on the session's clock with an error of less than a microsecond.
    known = [time for time in (queued, started, first, finished) if time is not None]
    assert known == sorted(known), row
    assert arrived <= queued + 1e-3, row

    def difference(column: str, end: float | None, begin: float | None) -> None:
        expected = None if end is None or begin is None else pytest.approx(end - begin, abs=ROUNDING)
        assert number(row[column]) == expected, f"{column}: {row}"

    difference("queue_time_sec", started, queued)
    difference("ttft_sec", first, arrived)
    difference("total_time_sec", finished, arrived)
    if is_finished and first is not None and finished is not None and int(row["output_tokens"]) > 1:
        tpot = (finished - first) / (int(row["output_tokens"]) - 1) * 1000
        assert number(row["tpot_ms"]) == pytest.approx(tpot, abs=1e-3), row
    else:
        assert row["tpot_ms"] == "", row
    back = [*at["resumed"], *ended]
    if len(back) >= len(at["preempted"]):
        delay = sum(end - begin for end, begin in zip(back, at["preempted"], strict=False))
        assert number(row["preemption_delay_sec"]) == pytest.approx(delay, abs=10 * ROUNDING), row
    else:
        assert row["preemption_delay_sec"] == "", row


def preemption_summary_agrees(driven: Driven) -> None:
    summary, truth = driven.session.json("preemption_summary.json"), driven.truth
    rows = driven.session.rows("preemption_events.csv")
    preempted = [event for event in truth["events"] if event["event"] == "preempted"]
    assert summary["total_requests"] == len(truth["requests"])
    assert summary["total_preemptions"] == len(preempted)
    assert summary["preemption_reasons"] == Counter(event["reason"] for event in preempted)
    assert summary["preempted_requests"] == len({event["id"] for event in preempted})
    assert summary["recomputed_tokens"] == sum(map(recomputed_tokens, true_events(truth).values()))
    finished = Counter(request["finish_reason"] for request in truth["requests"] if "finish_reason" in request)
    assert summary["finished_requests"] == finished
    assert summary["open_requests"] == len(truth["requests"]) - finished.total()
    running = [float(row["running_time_sec"]) for row in rows if row["event"] == "preempted"]
    delays = [float(extra(row)["delay_sec"]) for row in rows if row["event"] == "resumed"]
    mean = sum(running) / len(running) if running else 0.0
    assert summary["mean_running_time_before_preempt"] == pytest.approx(mean, abs=1e-6)
    assert summary["mean_resume_delay"] == pytest.approx(sum(delays) / len(delays) if delays else 0.0, abs=1e-6)
    assert summary["max_resume_delay"] == pytest.approx(max(delays, default=0.0), abs=1e-6)
    lives = driven.session.lives
    for column in ("queue_time_sec", "ttft_sec", "tpot_ms", "total_time_sec"):
        sample = [float(row[column]) for row in lives if row[column] != ""]
        assert (column in summary) == bool(sample), column
        if sample:
            assert summary[column]["count"] == len(sample)
            assert summary[column]["mean"] == pytest.approx(sum(sample) / len(sample), rel=1e-4, abs=1e-6)
            assert summary[column]["max"] == pytest.approx(max(sample), rel=1e-4, abs=1e-6)


def steps_agree(driven: Driven) -> None:
    """Batches and blocks after every call of the scheduler are what the scheduler and the pool said then."""
    truth = driven.truth
    batches = {row["step"]: row for row in driven.session.batches}
    scheduled = [step for step in truth["steps"] if step["num_seqs"]]
    assert list(batches) == [str(step["step"]) for step in scheduled]
    for step in scheduled:
        row = batches[str(step["step"])]
        for column, key in [
            ("num_seqs", "num_seqs"),
            ("num_tokens", "num_tokens"),
            ("running_queue_len", "running"),
            ("waiting_queue_len", "waiting"),
        ]:
            assert row[column] == str(step[key]), f"{row} / {step}"
    rows = driven.session.rows("kv_cache_usage.csv")
    assert [row["step"] for row in rows] == [str(step["step"]) for step in truth["steps"]]
    has_prefix_cache = driven.session.json("kv_cache_summary.json").get("prefix_query_tokens") is not None
    for row, step in zip(rows, truth["steps"], strict=True):
        assert float(row["usage_pct"]) == pytest.approx(100 * step["usage"], abs=1e-3), row
        expected = {
            "num_blocks": step["used"],
            "total_blocks": step["total"],
            "cached_blocks": step["cached"],
            "free_blocks": step["total"] - step["used"],
            "allocated_blocks": step["given"],
            "freed_blocks": step["freed"],
            "evicted_blocks": step["evicted"],
            "prefix_query_tokens": step["queries"] if has_prefix_cache else "",
            "prefix_hit_tokens": step["hits"] if has_prefix_cache else "",
            "pool": "",
            "process": "engine_core-0",
        }
        assert {column: row[column] for column in expected} == {
            column: str(value) for column, value in expected.items()
        }, step


def kv_summary_agrees(driven: Driven) -> None:
    summary, steps = driven.session.json("kv_cache_summary.json"), driven.truth["steps"]
    total = {key: sum(step[key] for step in steps) for key in ("given", "freed", "evicted", "queries", "hits")}
    assert summary["total_blocks"] == steps[0]["total"]
    assert summary["block_size"] == driven.truth["block_size"]
    assert summary["allocations"] == total["given"]
    assert summary["frees"] == total["freed"]
    assert summary["evictions"] == total["evicted"]
    assert summary["peak_blocks"] == max(step["used"] for step in steps)
    assert summary["peak_usage_pct"] == pytest.approx(100 * max(step["usage"] for step in steps), abs=1e-3)
    if "prefix_query_tokens" in summary:
        assert (summary["prefix_query_tokens"], summary["prefix_hit_tokens"]) == (total["queries"], total["hits"])
        if total["queries"]:
            rate = 100 * total["hits"] / total["queries"]
            assert summary["prefix_hit_rate_pct"] == pytest.approx(rate, abs=1e-3)
    evictions = driven.session.rows("kv_cache_evictions.csv")
    # Of so many blocks every one is followed; of more, as many as that.
    every = -(-(summary["total_blocks"] + 1) // 4096)
    assert {row["stands_for"] for row in evictions} <= {str(every)}
    followed = [block for block in driven.truth["evicted_blocks"] if block % every == 0]
    assert [int(row["block_id"]) for row in evictions] == followed


def agrees(driven: Driven) -> None:
    """All of the above."""
    metadata = driven.session.metadata
    assert metadata["records_lost"] == metadata["probe_errors"] == 0
    assert driven.output == ""
    for profiler in ("preemption_tracking", "kv_cache_tracking", "batch_utilization_tracking"):
        assert metadata["profilers"][profiler] == "on"
    lifecycles_agree(driven)
    events_agree(driven)
    preemption_summary_agrees(driven)
    steps_agree(driven)
    kv_summary_agrees(driven)


def parsed(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline="")))
