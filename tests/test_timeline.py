"""`profilemate timeline` against the tables of the same sessions: two outputs that share nothing but the rows."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from support import perfetto
from support.vllm import BIN

GOLDEN = Path(__file__).parents[1] / "crates" / "session" / "tests" / "golden" / "v1"
SESSIONS = sorted(folder.name for folder in GOLDEN.iterdir())
ALL_NESTED = {
    "scheduling": "engine_step",
    "update_from_output": "engine_step",
    "batch_preparation": "model_execution",
    "detokenization": "output_processing",
    "forward": "model_execution",
}
SECONDS = 1_000_000_000


@pytest.fixture(params=SESSIONS)
def session(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / f"session_{request.param}"
    shutil.copytree(GOLDEN / request.param, folder)
    profilemate("export", folder)
    return folder


def profilemate(*arguments: str | Path) -> None:
    subprocess.run([BIN / "profilemate", *arguments], check=True, capture_output=True)


def timeline(session: Path, *arguments: str) -> perfetto.Timeline:
    profilemate("timeline", session, *arguments)
    return perfetto.read(session / "timeline.pftrace")


def rows(session: Path, table: str) -> list[dict[str, str]]:
    path = session / table
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def document(session: Path, name: str) -> Any:
    return json.loads((session / name).read_text(encoding="utf-8"))


def total(table: list[dict[str, str]], column: str) -> float:
    return sum(float(row[column]) for row in table if row[column])


def test_operations_take_as_long_as_in_the_table(session: Path) -> None:
    drawn, table = timeline(session), rows(session, "cpu_operations_timing.csv")
    for operation in {row["operation"] for row in table}:
        of_it = [row for row in table if row["operation"] == operation]
        slices = drawn.named(operation, "work")
        assert len(slices) == len(of_it), operation
        assert drawn.total_ms(operation, "work") == pytest.approx(total(of_it, "duration_ms"), abs=1e-6)
        steps = Counter(row["step"] for row in of_it if row["step"])
        assert steps == Counter(str(one.arguments["step"]) for one in slices if "step" in one.arguments)
        processes = Counter(row["process"] for row in of_it)
        assert processes == Counter(drawn.tracks[one.track].name.split(" ")[0] for one in slices)


def test_steps_and_tokens_are_those_of_the_tables(session: Path) -> None:
    drawn, table = timeline(session), rows(session, "batch_utilization.csv")
    counted = [value for value in drawn.counter("tokens per step") if value]
    assert len(counted) == len(table)
    assert sum(counted) == total(table, "num_tokens")
    assert sum(drawn.counter("prefill tokens per step")) == total(table, "prefill_tokens")
    by_step = {(row["process"], row["step"]): row for row in table}
    seen = 0
    for one in drawn.named("scheduling", "work"):
        row = by_step.get((drawn.tracks[one.track].name, str(one.arguments.get("step"))))
        if row is not None and "tokens" in one.arguments:
            seen += 1
            assert one.number("tokens") == int(row["num_tokens"])
            assert one.number("sequences") == int(row["num_seqs"])
            assert one.arguments["phase"] == row["phase"]
    assert seen > 0 or not drawn.named("scheduling", "work")


def test_gpus_are_busy_and_idle_as_in_the_tables(session: Path) -> None:
    drawn, breakdown = timeline(session), document(session, "breakdown.json")
    table = [row for row in rows(session, "forward_pass_timing.csv") if row["timing"] == "events"]
    gpus = [worker["gpu"] for worker in breakdown.get("workers", []) if "gpu" in worker]
    assert drawn.total_ms("gpu_step") == pytest.approx(sum(gpu["busy_ms"] for gpu in gpus), abs=1e-5)
    idle = drawn.total_ms("bubble") + drawn.total_ms("gpu_idle")
    assert idle == pytest.approx(total(table, "gpu_idle_before_ms"), abs=1e-5)
    assert drawn.total_ms("forward", "gpu") == pytest.approx(total(table, "forward_time_ms"), abs=1e-5)
    assert drawn.total_ms("sampling", "gpu") == pytest.approx(total(table, "sample_time_ms"), abs=1e-5)
    assert bool(drawn.named("gpu_step")) == bool(gpus)
    placed = {(row["process"], row["step"]): row for row in table if row.get("gpu_start_sec")}
    for one in drawn.named("gpu_step"):
        row = placed[(drawn.tracks[one.track].name.removeprefix("GPU of "), str(one.arguments["step"]))]
        assert one.number("gpu_start_sec") == pytest.approx(float(row["gpu_start_sec"]), abs=1e-8)
        off_ms = abs(one.begin / 1e6 - float(row["gpu_start_sec"]) * 1e3)
        assert off_ms <= float(row["gpu_start_error_ms"]) + 1.0
        assert one.number("tokens") == int(row["num_tokens"])


def test_requests_are_those_of_the_table(session: Path) -> None:
    # Nobody can say where a request lies of which no moment is known.
    moments = ("arrived_sec", "started_sec", "first_token_sec", "finished_sec")
    drawn = timeline(session)
    table = [row for row in rows(session, "request_lifecycle.csv") if any(row[moment] for moment in moments)]
    slices = [one for one in drawn.slices if one.category == "request" and one.depth == 0 and not one.is_instant]
    assert Counter(one.name for one in slices) == Counter(
        row["request_id"].removeprefix("'") or "request" for row in table
    )
    for column in ("prompt_tokens", "cached_tokens", "output_tokens"):
        assert sum(one.number(column) for one in slices if column in one.arguments) == total(table, column)
    events = rows(session, "preemption_events.csv")
    assert len(drawn.named("preemption")) == sum(row["event"] == "preempted" for row in events)
    ends = len(drawn.named("finished")) + len(drawn.named("aborted"))
    assert ends == sum(bool(row["finish_reason"]) for row in table)
    assert len(drawn.named("first_token")) == sum(bool(row["first_token_sec"]) for row in table)
    queued = sum(one.duration for one in drawn.named("queued")) / SECONDS
    waited = [row for row in table if row["queue_time_sec"]]
    never_started = [row for row in table if not row["started_sec"]]
    if not never_started:
        assert queued == pytest.approx(total(waited, "queue_time_sec"), abs=1e-6)


def test_requests_are_tied_to_the_steps_that_served_them(session: Path) -> None:
    drawn = timeline(session)
    steps = [one for one in drawn.slices if one.name == "engine_step"]
    tied = 0
    for ends in drawn.flows().values():
        (step,) = (one for one in ends if one.name == "engine_step")
        (other,) = (one for one in ends if one.category == "request")
        assert other.begin >= step.begin
        assert drawn.tracks[other.track].pid == drawn.tracks[step.track].pid
        tied += 1
    events = rows(session, "preemption_events.csv")
    in_steps = 0
    for row in events:
        at = float(row["timestamp_sec"]) * SECONDS
        process = row["process"]
        in_steps += bool(row["step"]) and any(
            one.begin - 1 <= at <= one.end + 1 and drawn.tracks[one.track].name == process for one in steps
        )
    # What else there is are first tokens, which have no row.
    assert in_steps <= tied <= in_steps + len(drawn.named("first_token"))


def test_slices_lie_where_they_belong(session: Path) -> None:
    drawn = timeline(session)
    for inner, outer in ALL_NESTED.items():
        of_it = [one for one in drawn.named(inner, "work") if one.parent is not None]
        assert all(one.parent and one.parent.name == outer for one in of_it), inner
    begins = [one.begin for one in drawn.slices if one.category == "gpu" and one.depth == 0]
    for one in drawn.slices:
        if one.category == "gpu" and one.depth == 1:
            assert one.parent is not None and one.parent.name == "gpu_step"
    assert len(begins) == len(drawn.named("gpu_step")) + len(drawn.named("bubble")) + len(drawn.named("gpu_idle"))
    assert all(track.unit for uuid, track in drawn.tracks.items() if uuid in drawn.counters)


def test_a_part_holds_what_goes_on_in_it(session: Path) -> None:
    def key(one: perfetto.Slice) -> tuple[str, int, int]:
        return one.name, one.begin, one.end

    whole = timeline(session)
    begins = sorted(one.begin for one in whole.slices if not one.depth)
    first, last = begins[len(begins) * 2 // 5], begins[len(begins) * 3 // 5]
    part = timeline(session, "--from", f"{first / SECONDS:.9f}", "--to", f"{last / SECONDS:.9f}")
    spans = {"work", "warm_up", "dummy"}
    wanted = Counter(
        key(one) for one in whole.slices if one.category in spans and one.end >= first and one.begin <= last
    )
    assert Counter(key(one) for one in part.slices if one.category in spans) == wanted
    assert Counter(map(key, part.slices)) <= Counter(map(key, whole.slices))
    for values in part.counters.values():
        assert all(first <= at <= last for at, _ in values)


def test_the_same_session_gives_the_same_bytes(session: Path) -> None:
    profilemate("timeline", session)
    once = (session / "timeline.pftrace").read_bytes()
    profilemate("timeline", session)
    assert (session / "timeline.pftrace").read_bytes() == once
