"""Requests, preemptions, the KV cache and what limited each batch: the tables, against vLLM's real scheduler.

No model and no server: `support.scenarios` drives the scheduler, and says what happened and what vLLM says of it.
"""

from __future__ import annotations

import csv
import json
import random
import subprocess
from collections import Counter
from datetime import datetime
from typing import Any

import pytest

from support import lives
from support.driven import Driven, Scenarios
from support.lives import events_by_request, extra
from support.tables import Row
from support.vllm import BIN

SCRIPTED = [
    "preempted_twice",
    "preempts_itself",
    "aborted",
    "left_preempted",
    "all_aborted",
    "prefix_cache_reset",
    "priorities",
    "endings",
    "limits",
    "other_limits",
    "adapters",
    "large_pool",
    "pooling",
    "streaming",
    "clients",
    "arrivals",
]


@pytest.mark.parametrize("name", SCRIPTED)
def test_the_tables_are_what_vllm_did(scenarios: Scenarios, name: str) -> None:
    lives.agrees(scenarios.run(name))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"overlapped": True},
        {"scheduling_policy": "priority"},
        {"sliding_window": 48},
        {"log_stats": False},
        {"enable_prefix_caching": False},
        {"overlapped": True, "scheduling_policy": "priority", "sliding_window": 32},
    ],
    ids=lambda options: " ".join(options) or "plain",
)
def test_the_tables_are_what_vllm_did_in_a_storm(scenarios: Scenarios, options: dict[str, Any]) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    driven = scenarios.run("storm", seed=seed, **options)
    happened = Counter(event["event"] for event in driven.truth["events"])
    assert happened["preempted"] > 10 and happened["aborted"] > 10, "it was a storm"
    lives.agrees(driven)


def test_rows_come_in_the_order_in_which_requests_ended_and_open_ones_last(scenarios: Scenarios) -> None:
    for name in ("preempted_twice", "aborted", "priorities"):
        driven = scenarios.run(name)
        ended = [event["id"] for event in driven.truth["events"] if event["event"] in ("finished", "aborted")]
        queued = [request["id"] for request in driven.truth["requests"]]
        rows = driven.session.lives
        assert len(rows) == len(queued)
        assert [row["request_id"] for row in rows if row["finished_sec"]] == ended
        assert [row["request_id"] for row in rows[len(ended) :]] == [name for name in queued if name not in ended]


def told(driven: Driven) -> list[tuple[str, str, str]]:
    """Step, event and request of every row of the events."""
    rows = driven.session.rows("preemption_events.csv")
    return [(row["step"], row["event"], row["request_id"]) for row in rows]


def life(driven: Driven, request_id: str) -> Row:
    rows = driven.session.lives
    return next(row for row in rows if row["request_id"] == request_id)


def preemptions(driven: Driven, request_id: str) -> list[dict[str, str]]:
    return [
        {"reason": row["reason"], **extra(row)}
        for row in events_by_request(driven.session)[request_id]
        if row["event"] == "preempted"
    ]


def test_preempted_twice(scenarios: Scenarios) -> None:
    driven = scenarios.run("preempted_twice")
    assert told(driven) == [
        ("1", "started", "first"),
        ("1", "started", "second"),
        ("1", "started", "victim"),
        # Of eight blocks they have 2, 2 and 3, and each of the first two needs another one for its second token.
        ("2", "preempted", "victim"),
        ("20", "finished", "second"),
        ("21", "resumed", "victim"),
        # "first" has 64 tokens, which is four blocks full, and "victim" the other four.
        ("34", "preempted", "victim"),
        ("80", "finished", "first"),
        ("81", "resumed", "victim"),
        ("126", "finished", "victim"),
    ]
    tokens = {"output_tokens": "1", "computed_tokens": "40", "blocks_freed": "3", "preempted_for": "second"}
    more = {"output_tokens": "14", "computed_tokens": "53", "blocks_freed": "4", "preempted_for": "first"}
    assert preemptions(driven, "victim") == [
        {"reason": "kv_cache_full", **tokens},
        {"reason": "kv_cache_full", **more},
    ]
    row = life(driven, "victim")
    # All 40, and 53 of which the first block was found again.
    assert (row["num_preemptions"], row["recomputed_tokens"]) == ("2", str(40 + 53 - 16))
    resumed = [row for row in events_by_request(driven.session)["victim"] if row["event"] == "resumed"]
    assert [extra(row)["cached_tokens"] for row in resumed] == ["0", "16"]
    assert (row["cached_tokens"], row["output_tokens"], row["finish_reason"]) == ("0", "60", "length")


def test_the_victim_is_the_request_itself(scenarios: Scenarios) -> None:
    driven = scenarios.run("preempts_itself")
    assert [found["preempted_for"] for found in preemptions(driven, "third")] == ["itself"]
    assert told(driven)[3] == ("2", "preempted", "third")


def test_aborted_in_every_state(scenarios: Scenarios) -> None:
    driven = scenarios.run("aborted")
    found = {name: [row["event"] for row in rows] for name, rows in events_by_request(driven.session).items()}
    assert found == {
        "runs": ["started"],
        "aborted while running": ["started", "aborted"],
        "aborted while preempted": ["started", "preempted", "aborted"],
        "aborted while waiting": ["aborted"],
        "aborted while its step is under way": ["started", "aborted"],
    }
    rows = {row["request_id"]: row for row in driven.session.lives}
    # The process is gone, and nobody finished these: they are in the table, and have no end.
    assert [name for name, row in rows.items() if row["finished_sec"] == ""] == ["runs", "waits"]
    assert (rows["runs"]["started_sec"] != "", rows["waits"]["started_sec"]) == (True, "")
    assert rows["aborted while preempted"]["resumed_sec"] == ""
    assert rows["aborted while preempted"]["recomputed_tokens"] == "40"
    assert rows["aborted while waiting"]["queue_time_sec"] == ""
    assert rows["aborted while its step is under way"]["output_tokens"] == "0"
    summary = driven.session.json("preemption_summary.json")
    assert (summary["open_requests"], summary["finished_requests"]) == (2, {"abort": 4})


def test_all_are_aborted_at_once(scenarios: Scenarios) -> None:
    driven = scenarios.run("all_aborted")
    assert [row["finish_reason"] for row in driven.session.lives] == ["abort"] * 4


def test_a_reset_of_the_prefix_cache(scenarios: Scenarios) -> None:
    driven = scenarios.run("prefix_cache_reset")
    for name, computed, blocks in [("first", "34", "3"), ("second", "42", "3")]:
        # No step, and for nobody.
        assert preemptions(driven, name) == [
            {
                "reason": "prefix_cache_reset",
                "computed_tokens": computed,
                "output_tokens": "3",
                "blocks_freed": blocks,
            }
        ]
        assert life(driven, name)["recomputed_tokens"] == computed
    assert driven.session.json("preemption_summary.json")["preemption_reasons"] == {"prefix_cache_reset": 2}
    # Their blocks were emptied, so nothing of them is found when they resume in the next step.
    usage = {row["step"]: row for row in driven.session.rows("kv_cache_usage.csv")}
    assert usage["4"]["freed_blocks"] == "6"


def test_the_least_urgent_is_preempted(scenarios: Scenarios) -> None:
    driven = scenarios.run("priorities")
    # It came first, is in the batch already, and gives its blocks to the last in the queue.
    assert [found["preempted_for"] for found in preemptions(driven, "not urgent")] == ["less urgent"]
    assert {row["request_id"]: row["priority"] for row in driven.session.lives} == {
        "not urgent": "5",
        "urgent": "-3",
        "less urgent": "1",
    }


def test_every_way_to_end(scenarios: Scenarios) -> None:
    driven = scenarios.run("endings")
    rows = driven.session.lives
    assert {row["request_id"]: (row["finish_reason"], row["output_tokens"]) for row in rows} == {
        "stop token": ("stop", "3"),
        "length": ("length", "5"),
        "one token": ("length", "1"),
        "length of the model": ("length", "4"),
        "repetition": ("repetition", "4"),
        "error from outside": ("error", "1"),
        "ignored": ("length", "1"),
        "broken grammar": ("error", "0"),
    }
    # An error is no abort.
    assert {event for _, event, _ in told(driven)} == {"started", "finished"}


@pytest.mark.parametrize("name", ["limits", "other_limits", "adapters"])
def test_what_limited_each_step(scenarios: Scenarios, name: str) -> None:
    driven = scenarios.run(name)
    rows = driven.session.batches
    assert [row["limited_by"] for row in rows] == driven.truth["limited_by"]
    shares = driven.session.json("batch_utilization_summary.json")["limited_by"]
    expected = Counter(driven.truth["limited_by"])
    assert shares == {
        value: pytest.approx(100 * count / expected.total(), abs=1e-3) for value, count in expected.items()
    }


def test_a_prompt_that_the_token_budget_cuts_is_computed_in_pieces(scenarios: Scenarios) -> None:
    rows = scenarios.run("limits").session.batches
    assert [(row["num_tokens"], row["phase"]) for row in rows[:2]] == [("64", "prefill"), ("36", "prefill")]


def test_a_pooling_request_has_no_tokens(scenarios: Scenarios) -> None:
    driven = scenarios.run("pooling")
    for row in driven.session.lives:
        assert (row["kind"], row["finish_reason"], row["output_tokens"]) == ("pooling", "stop", "0")
        assert (row["first_token_sec"], row["ttft_sec"], row["tpot_ms"]) == ("", "", "")


def test_a_streaming_session_is_one_request(scenarios: Scenarios) -> None:
    driven = scenarios.run("streaming")
    rows = driven.session.lives
    assert {row["request_id"]: row["kind"] for row in rows} == {"pauses": "streaming", "goes on": "streaming"}
    assert len(rows) == 2
    # Started once, however often it goes on, and never preempted.
    assert [(event, name) for _, event, name in told(driven)] == [
        ("started", "pauses"),
        ("started", "goes on"),
        ("finished", "goes on"),
        ("aborted", "pauses"),
    ]


def test_what_clients_call_their_requests(scenarios: Scenarios) -> None:
    rows = scenarios.run("clients").session.lives
    assert Counter((row["client_request_id"], row["sample_index"]) for row in rows) == {
        ("one sample", "0"): 1,
        ("three samples", "0"): 1,
        ("three samples", "1"): 1,
        ("three samples", "2"): 1,
        ("the same", "0"): 2,
        ("of another front end", "0"): 1,
    }
    assert len({row["request_id"] for row in rows}) == len(rows)


def test_a_token_is_there_when_its_front_end_takes_it(scenarios: Scenarios) -> None:
    driven = scenarios.run("clients")
    rows = [row for row in driven.session.operations if row["operation"] == "output_processing"]
    assert [int(row["step"]) for row in rows] == [step for step, _ in driven.truth["taken"]]
    # The first slice of a step's outputs to a front end counts for all of them.
    taken: dict[tuple[int, int], str] = {}
    for row, (step, client) in zip(rows, driven.truth["taken"], strict=True):
        taken.setdefault((step, client), row["timestamp_sec"])
    ends = {event["id"]: event["step"] for event in driven.truth["events"]}
    lives_by_id = {row["request_id"]: row for row in driven.session.lives}
    for request in driven.truth["requests"]:
        row, client = lives_by_id[request["id"]], request["client_index"]
        assert row["first_token_sec"] == taken[request["first_token"], client], row
        assert row["finished_sec"] == taken[ends[request["id"]], client], row


def test_requests_arrive_before_they_are_queued(scenarios: Scenarios) -> None:
    driven = scenarios.run("arrivals")
    rows = {row["request_id"]: row for row in driven.session.lives}
    # A time that is none is not believed.
    assert rows["unknown"]["arrived_sec"] == rows["unknown"]["queued_sec"]
    begin, first = float(rows["long on its way"]["arrived_sec"]), rows["first"]
    assert begin <= float(first["arrived_sec"]) < float(first["finished_sec"])
    assert float(rows["long on its way"]["queued_sec"]) > float(first["finished_sec"])
    start = datetime.fromisoformat(driven.session.metadata["start_time"]).timestamp()
    for request in driven.truth["requests"][:2]:
        # The system's clock is read at some moments only, and may be set in between.
        assert start + float(rows[request["id"]]["arrived_sec"]) == pytest.approx(request["arrived"], abs=0.1)


def test_vllms_own_collector_sees_the_same(scenarios: Scenarios) -> None:
    """Ours stands where it stood, and tells it everything."""
    driven = scenarios.run("storm", seed=7, collects=True)
    plain = scenarios.run("storm", seed=7, collects=True, is_profiled=False)
    lives.agrees(driven)
    assert driven.truth["results"] == plain.truth["results"]
    assert [stats["evictions"] for stats in driven.truth["stats"]] == [
        stats["evictions"] for stats in plain.truth["stats"]
    ]
    theirs = driven.truth["evictions"]
    assert [(block, accesses) for block, _, _, accesses in theirs] == [
        (block, accesses) for block, _, _, accesses in plain.truth["evictions"]
    ]
    ours = driven.session.rows("kv_cache_evictions.csv")
    # It keeps the last four accesses only.
    assert [(int(row["block_id"]), min(int(row["accesses"]), 4)) for row in ours] == [
        (block, accesses) for block, _, _, accesses in theirs
    ]
    for place, column in [(1, "lifetime_sec"), (2, "idle_sec")]:
        differences = sorted(abs(float(row[column]) - each[place]) for row, each in zip(ours, theirs, strict=True))
        # Two clocks, read one after the other.
        assert differences[len(differences) // 2] < 0.001, column


def test_a_request_that_is_queued_again_after_its_end_is_another_one(scenarios: Scenarios) -> None:
    driven = scenarios.run("same_id_again")
    rows = driven.session.lives
    assert [(row["request_id"], row["output_tokens"]) for row in rows] == [("again", "3"), ("again", "5")]


# Ids are chosen by clients, and shown to people.

HOSTILE = [
    "plain",
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "=cmd|' /C calc'!A0",
    "+1+1",
    "-2+3",
    "@SUM(A1:A9)",
    "\t=1+1",
    "\r=1+1",
    'quotes "and", commas; and = signs',
    "a\nline\r\nbreak\x0b\x0c\x1c\x85\u2028\u2029end",
    "\x1b[2J\x1b]0;owned\x07\x9b31m",
    "NUL\x00byte \x7f \x08",
    "\u202etxt.exe\u2066\u200b\ufeff",
    "lone \udc80 surrogate \ud800",
    "ü" * 300,
    "x" * 10_000,
    "x" * 9_999 + "y",
    "🦙" * 64,
    "",
    "'",
    "../../etc/passwd",
    "%s%n{0}{}",
]
#: Most bytes of an id that are kept, and what a character is written out as: `\u{10ffff}`.
MOST_BYTES, MOST_SHOWN = 255, 255 * 10


def no_control_bytes(content: bytes, what: str) -> None:
    text = content.decode("utf-8")
    found = {letter for letter in text if letter != "\n" and (letter < " " or "\x7f" <= letter < "\xa0")}
    assert not found, f"{what}: {found}"
    assert not set(text) & set("\u2028\u2029\u202e\u2066\u200b\ufeff"), what


def test_hostile_ids_do_no_harm(scenarios: Scenarios) -> None:
    driven = scenarios.run("named", ids=HOSTILE)
    session, truth = driven.session, driven.truth
    no_control_bytes(driven.printed.encode(), "export")
    report = subprocess.run(
        [BIN / "profilemate", "report", str(session.folder)], capture_output=True, check=True
    ).stdout
    no_control_bytes(report, "report")
    tables = [path for path in session.folder.iterdir() if path.is_file()]
    assert len(tables) > 8
    for path in tables:
        content = path.read_bytes()
        no_control_bytes(content, path.name)
        if path.suffix == ".json":
            json.loads(content)
        if path.suffix == ".csv":
            header, *lines = csv.reader(content.decode().splitlines(keepends=True))
            # No row is torn in two by what stands in it.
            assert content.count(b"\n") == len(lines) + 1, path.name
            for line in lines:
                assert len(line) == len(header), path.name
                for cell in line:
                    assert not cell.startswith(("=", "+", "@", "\t", "\r")), cell
                    assert not cell.startswith("-") or float(cell) < 0, cell
                    assert len(cell) <= MOST_SHOWN + 200, "bounded"
    # They are all there, with all that happened to them, each under a name of its own.
    rows = session.lives
    assert len(rows) == len(truth["requests"])
    assert len({row["request_id"] for row in rows}) == len(rows)
    assert Counter(row["finish_reason"] for row in rows) == Counter(
        request["finish_reason"] for request in truth["requests"]
    )
    kept = {row["request_id"] for row in rows}
    assert {"plain", "'", "../../etc/passwd", "%s%n{0}{}", "'=cmd|' /C calc'!A0", "'+1+1", ""} <= kept
    assert "\\u{1b}[2J\\u{1b}]0;owned\\u{7}\\u{9b}31m" in kept
    of_clients = Counter(row["client_request_id"] for row in rows)
    # Ids with lone surrogates are none that a front end could send.
    assert of_clients["plain"] == of_clients["../../etc/passwd"] == 2
    assert len(events_by_request(session)) == len(rows)
    for head in (session.folder / "raw").iterdir():
        assert b"x" * (MOST_BYTES + 1) not in head.read_bytes()


def test_long_ids_are_told_apart(scenarios: Scenarios) -> None:
    driven = scenarios.run("named", ids=HOSTILE)
    rows = driven.session.lives
    cut = {column: {row[column] for row in rows if row[column].startswith("xxx")} for column in rows[0]}
    # Two ids of clients, under which they ask the engine themselves, and which a front end makes ids of its own from.
    assert len(cut["client_request_id"]) == 2 and len(cut["request_id"]) == 4
    assert cut["client_request_id"] < cut["request_id"]
    for request_id in cut["request_id"]:
        kept, separator, digest = request_id.rpartition("~")
        assert (kept, separator) == ("x" * 238, "~")
        assert len(digest) == 16 and int(digest, 16) >= 0


def test_ids_are_hashed_where_that_is_wanted(scenarios: Scenarios) -> None:
    ids = ["a secret of somebody", "another secret", "a secret of somebody else"]
    driven = scenarios.run("named", ids=ids, variables={"PROFILEMATE_HASH_REQUEST_IDS": "1"})
    rows = driven.session.lives
    assert len(rows) == 2 * len(ids)
    names = [row["request_id"] for row in rows]
    assert len(set(names)) == len(names)
    for row in rows:
        for column in ("request_id", "client_request_id"):
            assert len(row[column]) == 16 and int(row[column], 16) >= 0, row
    # The same id has the same hash: a client's request is found under that of its id.
    of_clients = Counter(row["client_request_id"] for row in rows)
    assert sorted(of_clients.values()) == [2] * len(ids)
    for path in driven.session.folder.rglob("*"):
        if path.is_file():
            assert b"secret" not in path.read_bytes(), path
    # Another run has another key: who knows an id cannot look for its hash.
    again = scenarios.run("named", ids=ids, variables={"PROFILEMATE_HASH_REQUEST_IDS": "true"})
    assert not {row["request_id"] for row in again.session.lives} & set(names)


# Nothing that goes wrong on our side reaches vLLM

PROBES = [
    "scheduler.init",
    "scheduler.schedule",
    "scheduler.update_from_output",
    "scheduler.add_request",
    "scheduler.preempt_request",
    "scheduler.free_request",
    "kv_cache.collector",
]


@pytest.mark.parametrize("fault", ["raise", "panic"])
def test_a_failing_probe_harms_nobody(scenarios: Scenarios, fault: str) -> None:
    plain = scenarios.run("storm", seed=11, is_profiled=False)
    driven = scenarios.run("storm", seed=11, variables={"PROFILEMATE_FAULT": fault})
    assert driven.truth["results"] == plain.truth["results"]
    assert driven.truth["requests"] == plain.truth["requests"]
    assert len(driven.output.splitlines()) == 1, driven.output
    head = b"".join(path.read_bytes() for path in driven.folder.glob("session_*/raw/*.head"))
    for probe in PROBES:
        assert f"probe_error:{probe}\0".encode() in head, probe
        if probe != "scheduler.init":
            assert f"probe_off:{probe}\0".encode() in head, probe


def test_vllm_does_the_same_with_us_and_without(scenarios: Scenarios) -> None:
    ways: list[dict[str, Any]] = [{}, {"overlapped": True, "scheduling_policy": "priority"}]
    for options in ways:
        plain = scenarios.run("storm", seed=13, is_profiled=False, **options)
        assert scenarios.run("storm", seed=13, **options).truth["results"] == plain.truth["results"]


@pytest.mark.parametrize(
    ("switch", "files"),
    [
        ("PREEMPTION_TRACKING", {"request_lifecycle.csv", "preemption_events.csv", "preemption_summary.json"}),
        (
            "KV_CACHE_TRACKING",
            {
                "kv_cache_usage.csv",
                "kv_cache_evictions.csv",
                "kv_cache_summary.json",
                "kv_cache_summary.txt",
            },
        ),
    ],
)
def test_a_profiler_that_is_off_has_no_tables(scenarios: Scenarios, switch: str, files: set[str]) -> None:
    driven = scenarios.run("preempted_twice", variables={f"PROFILEMATE_ENABLE_{switch}": "0"})
    there = {path.name for path in driven.session.folder.iterdir()}
    everything = {path.name for path in scenarios.run("preempted_twice").session.folder.iterdir()}
    assert there == everything - files
    assert driven.session.metadata["profilers"][switch.lower()] == "off"
    # What the others say does not depend on it.
    limits = [row["limited_by"] for row in scenarios.run("preempted_twice").session.batches]
    assert [row["limited_by"] for row in driven.session.batches] == limits


def test_limits_are_said_with_that_profiler_alone(scenarios: Scenarios) -> None:
    others = dict.fromkeys(("PROFILEMATE_ENABLE_PREEMPTION_TRACKING", "PROFILEMATE_ENABLE_KV_CACHE_TRACKING"), "0")
    driven = scenarios.run("limits", variables=others)
    assert [row["limited_by"] for row in driven.session.batches] == driven.truth["limited_by"]


# Many

COUNT, AT_ONCE = 100_000, 1_000


def test_a_hundred_thousand_requests(scenarios: Scenarios) -> None:
    driven = scenarios.run("many", count=COUNT, at_once=AT_ONCE)
    truth, session = driven.truth, driven.session
    assert (truth["finished"], truth["most_running"]) == (COUNT, AT_ONCE)
    assert session.metadata["records_lost"] == session.metadata["probe_errors"] == 0
    rows = session.lives
    assert {row["request_id"] for row in rows} == {f"request-{number}" for number in range(COUNT)}
    assert len(rows) == COUNT
    assert sum(int(row["output_tokens"]) for row in rows) == truth["tokens"]
    assert {(row["finish_reason"], row["prompt_tokens"]) for row in rows} == {("length", "3")}
    assert all(row["started_sec"] and row["first_token_sec"] and row["finished_sec"] for row in rows)
    events = Counter(row["event"] for row in session.rows("preemption_events.csv"))
    assert events == {"started": COUNT, "finished": COUNT}
    summary = session.json("preemption_summary.json")
    assert (summary["total_requests"], summary["open_requests"]) == (COUNT, 0)
    assert summary["finished_requests"] == {"length": COUNT}
    # Nothing of ours is kept of a request that is done.
    assert truth["books"] == [0, 0]
    resident = {int(percent): kib for percent, kib in truth["resident_kib"].items()}
    print("resident KiB", resident)
    for anonymous_or_all in (0, 1):
        grown = resident[100][anonymous_or_all] - resident[20][anonymous_or_all]
        # 80,000 requests: 13 bytes of each would be more.
        assert grown < 1024, f"{grown} KiB: {resident}"
