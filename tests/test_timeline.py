"""`profilemate timeline` in Perfetto's own trace processor: by SQL, the totals of the tables of the same session."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as descriptors

from support import perfetto, trace_processor
from support.vllm import BIN

GOLDEN = Path(__file__).parents[1] / "crates" / "session" / "tests" / "golden" / "v1"
SESSIONS = sorted(folder.name for folder in GOLDEN.iterdir())
NESTED = {
    "scheduling": "engine_step",
    "update_from_output": "engine_step",
    "batch_preparation": "model_execution",
    "detokenization": "output_processing",
    "forward": "model_execution",
}
SECONDS = 1_000_000_000
GUIDES = Path(__file__).parents[1] / "docs"
#: A slice with its process and the name of its track.
SLICES = """
    (SELECT slice.*, process_track.name AS track_name, process_track.upid
     FROM slice JOIN process_track ON slice.track_id = process_track.id)
"""
#: Values of counters, in order.
COUNTERS = """
    (SELECT counter.ts, counter.value, counter_track.name, counter_track.unit, process.name AS process_name
     FROM counter JOIN counter_track ON counter.track_id = counter_track.id
     JOIN process_counter_track ON process_counter_track.id = counter_track.id JOIN process USING (upid))
"""


def profilemate(*arguments: str | Path) -> None:
    subprocess.run([BIN / "profilemate", *arguments], check=True, capture_output=True)


def rows(folder: Path, table: str) -> list[dict[str, str]]:
    path = folder / table
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def total(table: list[dict[str, str]], column: str) -> float:
    return sum(float(row[column]) for row in table if row[column])


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[trace_processor.Processor]:
    if shutil.which("node") is None and os.environ.get("PROFILEMATE_NO_BROWSER") == "1":
        pytest.skip("PROFILEMATE_NO_BROWSER=1, and there is no Node.js for Perfetto's trace processor")
    with trace_processor.started(tmp_path_factory.mktemp("processor")) as processor:
        yield processor


@dataclass
class Drawn:
    """A session with its tables, and its trace in the trace processor."""

    folder: Path
    sql: trace_processor.Processor

    @property
    def trace(self) -> Path:
        return self.folder / "timeline.pftrace"

    def table(self, name: str) -> list[dict[str, str]]:
        return rows(self.folder, name)

    def document(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    def total_ms(self, condition: str) -> float:
        return self.sql.number(f"SELECT SUM(dur) / 1e6 FROM slice WHERE {condition}")

    def counted(self, condition: str) -> float:
        return self.sql.number(f"SELECT COUNT(*) FROM slice WHERE {condition}")

    def by(self, keys: str, source: str, condition: str) -> Counter[Any]:
        """How many there are of each."""
        found = self.sql.rows(
            f"SELECT {keys} AS key, COUNT(*) AS count FROM {source} WHERE {condition} GROUP BY key"
        )
        return Counter({row["key"]: row["count"] for row in found})


@pytest.fixture(scope="module", params=SESSIONS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sessions") / f"session_{request.param}"
    shutil.copytree(GOLDEN / request.param, folder)
    profilemate("export", "--no-html", folder)
    profilemate("timeline", folder)
    return folder


@pytest.fixture
def drawn(folder: Path, processor: trace_processor.Processor) -> Drawn:
    drawn = Drawn(folder, processor)
    processor.open(drawn.trace)
    return drawn


def argument(name: str) -> str:
    return f"EXTRACT_ARG(arg_set_id, 'debug.{name}')"


def grouped(table: list[dict[str, str]], key: Callable[[dict[str, str]], Any]) -> dict[Any, list[dict[str, str]]]:
    groups = defaultdict(list)
    for row in table:
        groups[key(row)].append(row)
    return groups


def test_operations_take_as_long_as_in_the_table(drawn: Drawn) -> None:
    table = grouped(drawn.table("cpu_operations_timing.csv"), lambda row: row["operation"])
    for operation, of_it in table.items():
        condition = f"name = '{operation}' AND category = 'work'"
        assert drawn.counted(condition) == len(of_it), operation
        assert drawn.total_ms(condition) == pytest.approx(total(of_it, "duration_ms"), abs=1e-6)
        steps = drawn.by(argument("step"), "slice", f"{condition} AND {argument('step')} IS NOT NULL")
        assert steps == Counter(int(row["step"]) for row in of_it if row["step"])
        # What several threads do at a time is on tracks with a number.
        processes: Counter[str] = Counter()
        for name, count in drawn.by("track_name", SLICES, condition).items():
            processes[name.split(" ")[0]] += count
        assert processes == Counter(row["process"] for row in of_it)


def test_steps_and_tokens_are_those_of_the_tables(drawn: Drawn) -> None:
    table = drawn.table("batch_utilization.csv")
    assert drawn.sql.number(
        f"SELECT COUNT(*) FROM {COUNTERS} WHERE name = 'tokens per step' AND value > 0"
    ) == len(table)
    for name, column in (("tokens per step", "num_tokens"), ("prefill tokens per step", "prefill_tokens")):
        assert drawn.sql.number(f"SELECT SUM(value) FROM {COUNTERS} WHERE name = '{name}'") == total(table, column)
    found = drawn.sql.rows(f"""
        SELECT track_name AS process, {argument("step")} AS step, {argument("tokens")} AS tokens,
               {argument("sequences")} AS sequences, {argument("phase")} AS phase
        FROM {SLICES} WHERE name = 'scheduling' AND category = 'work' AND tokens IS NOT NULL
    """)
    wanted = {(row["process"], int(row["step"])): row for row in table if row["step"]}
    seen = 0
    for one in found:
        row = wanted.get((one["process"], one["step"]))
        if row is not None:
            seen += 1
            assert (one["tokens"], one["sequences"]) == (int(row["num_tokens"]), int(row["num_seqs"]))
            assert one["phase"] == row["phase"]
    assert seen > 0 or not drawn.counted("name = 'scheduling' AND category = 'work'")


def test_counters_are_where_the_tables_end(drawn: Drawn) -> None:
    tables = {
        "running requests": ("batch_utilization.csv", "running_queue_len"),
        "waiting requests": ("batch_utilization.csv", "waiting_queue_len"),
        "tokens per step": ("batch_utilization.csv", "num_tokens"),
        "KV cache usage": ("kv_cache_usage.csv", "usage_pct"),
    }
    for counter, (table, column) in tables.items():
        known = [row for row in drawn.table(table) if row[column]]
        for (process, pool), of_it in grouped(known, lambda row: (row["process"], row.get("pool", ""))).items():
            last = max(of_it, key=lambda row: float(row["timestamp_sec"]))
            at_ns = round(float(last["timestamp_sec"]) * SECONDS)
            found = drawn.sql.rows(f"""
                SELECT value, ts, MAX(ts) OVER () AS newest FROM {COUNTERS}
                WHERE name = '{f"{counter} {pool}".strip()}' AND ' ' || process_name || ' ' LIKE '% {process} %'
            """)
            before = max((one for one in found if one["ts"] <= at_ns), key=lambda one: one["ts"])
            assert before["value"] == pytest.approx(float(last[column]), abs=1e-4), (counter, process, pool)
            # Behind the last step there may be that the engine has no request any more.
            assert all(one["value"] == 0 for one in found if one["ts"] > at_ns)


def test_gpus_are_busy_and_idle_as_in_the_tables(drawn: Drawn) -> None:
    table = [row for row in drawn.table("forward_pass_timing.csv") if row["timing"] == "events"]
    gpus = [worker["gpu"] for worker in drawn.document("breakdown.json").get("workers", []) if "gpu" in worker]
    assert bool(drawn.counted("name = 'gpu_step'")) == bool(gpus)
    for condition, wanted in (
        ("name = 'gpu_step'", sum(gpu["busy_ms"] for gpu in gpus)),
        ("name IN ('bubble', 'gpu_idle')", total(table, "gpu_idle_before_ms")),
        ("name = 'forward' AND category = 'gpu'", total(table, "forward_time_ms")),
        ("name = 'sampling' AND category = 'gpu'", total(table, "sample_time_ms")),
    ):
        assert drawn.total_ms(condition) == pytest.approx(wanted, abs=1e-5), condition
    placed = {(row["process"], int(row["step"])): row for row in table if row.get("gpu_start_sec")}
    found = drawn.sql.rows(f"""
        SELECT ts, track_name, {argument("step")} AS step, {argument("tokens")} AS tokens
        FROM {SLICES} WHERE name = 'gpu_step'
    """)
    for one in found:
        row = placed[(one["track_name"].removeprefix("GPU of "), one["step"])]
        assert abs(one["ts"] / 1e6 - float(row["gpu_start_sec"]) * 1e3) <= float(row["gpu_start_error_ms"]) + 1.0
        assert one["tokens"] == int(row["num_tokens"])


def test_parts_of_forward_passes_are_those_of_the_tables(drawn: Drawn) -> None:
    layers, collectives = drawn.table("layer_timing.csv"), drawn.table("collective_timing.csv")
    # Nobody knows where others lie.
    table = [row for row in layers + collectives if row["timestamp_error_ms"]]
    assert drawn.counted("category = 'layer'") == len(table)
    found = drawn.sql.rows(f"""
        SELECT name, track_name, {argument("layer")} AS layer, SUM(dur) / 1e6 AS ms, COUNT(*) AS count,
               SUM({argument("wait_ms")}) AS wait_ms
        FROM {SLICES} WHERE category = 'layer' GROUP BY name, track_name, layer
    """)
    wanted = grouped(table, lambda row: (row["component"], row["process"], row["layer_idx"]))
    assert len(found) == len(wanted)
    for one in found:
        layer = "" if one["layer"] is None else str(one["layer"])
        of_it = wanted[(one["name"], one["track_name"].removeprefix("layers of "), layer)]
        assert one["count"] == len(of_it)
        assert one["ms"] == pytest.approx(total(of_it, "duration_ms"), abs=1e-6)
        waits = [row for row in of_it if row.get("wait_ms")]
        assert (one["wait_ms"] or 0.0) == pytest.approx(total(waits, "wait_ms"), abs=1e-6)


def test_requests_are_those_of_the_table(drawn: Drawn) -> None:
    # Nobody can say where a request lies of which no moment is known.
    moments = ("arrived_sec", "started_sec", "first_token_sec", "finished_sec")
    table = [row for row in drawn.table("request_lifecycle.csv") if any(row[moment] for moment in moments)]
    whole = "category = 'request' AND parent_id IS NULL AND name != 'preemption'"
    ids = Counter(row["request_id"].removeprefix("'") or "request" for row in table)
    assert drawn.by("name", "slice", whole) == ids
    for column in ("prompt_tokens", "cached_tokens", "output_tokens"):
        assert drawn.sql.number(f"SELECT SUM({argument(column)}) FROM slice WHERE {whole}") == total(table, column)
    events = drawn.table("preemption_events.csv")
    assert drawn.counted("name = 'preemption'") == sum(row["event"] == "preempted" for row in events)
    ends = drawn.counted("category = 'request' AND name IN ('finished', 'aborted')")
    assert ends == sum(bool(row["finish_reason"]) for row in table)
    assert drawn.counted("name = 'first_token'") == sum(bool(row["first_token_sec"]) for row in table)
    if all(row["started_sec"] for row in table):
        assert drawn.total_ms("name = 'queued'") / 1e3 == pytest.approx(total(table, "queue_time_sec"), abs=1e-6)


def test_requests_are_tied_to_the_steps_that_served_them(drawn: Drawn) -> None:
    flows = drawn.sql.rows(f"""
        SELECT step.name AS step, request.category, request.ts - step.ts AS later,
               step.upid = request.upid AS is_one
        FROM flow JOIN {SLICES} AS step ON step.id = slice_out
        JOIN {SLICES} AS request ON request.id = slice_in
    """)
    for flow in flows:
        assert (flow["step"], flow["category"], flow["is_one"]) == ("engine_step", "request", 1), flow
        assert flow["later"] >= 0
    steps = drawn.sql.rows(f"SELECT ts, dur, track_name FROM {SLICES} WHERE name = 'engine_step'")
    in_steps = 0
    for row in drawn.table("preemption_events.csv"):
        at = float(row["timestamp_sec"]) * SECONDS
        in_steps += bool(row["step"]) and any(
            one["ts"] - 1 <= at <= one["ts"] + one["dur"] + 1 and one["track_name"] == row["process"]
            for one in steps
        )
    # What else there is are first tokens, which have no row.
    assert in_steps <= len(flows) <= in_steps + drawn.counted("name = 'first_token'")


def test_slices_lie_where_they_belong(drawn: Drawn) -> None:
    inner = drawn.sql.rows("""
        SELECT DISTINCT inner.name AS inner, outer.name AS outer FROM slice AS inner
        JOIN slice AS outer ON outer.id = inner.parent_id WHERE inner.category = 'work'
    """)
    assert all(NESTED.get(one["inner"], one["outer"]) == one["outer"] for one in inner), inner
    assert drawn.by("name", "slice", "category = 'gpu' AND depth = 0").keys() <= {
        "gpu_step",
        "bubble",
        "gpu_idle",
        "encoder",
    }
    assert (
        drawn.sql.rows("""
        SELECT DISTINCT outer.name FROM slice JOIN slice AS outer ON outer.id = slice.parent_id
        WHERE slice.category = 'gpu' AND outer.name != 'gpu_step'
    """)
        == []
    )
    assert drawn.sql.rows(f"SELECT name FROM {COUNTERS} WHERE unit IS NULL") == []
    assert drawn.counted("dur < 0") == 0, "every slice ends"


def test_there_is_something_to_compare(processor: trace_processor.Processor, tmp_path: Path) -> None:
    """Of each kind of total, in a session that has it."""
    for name, sources in {
        "real_gpu": ("slice WHERE name = 'gpu_step'", "slice WHERE name = 'bubble'", "flow"),
        "layers": ("slice WHERE category = 'layer'", "slice WHERE name = 'all_reduce'"),
        "real_preempting": (
            "slice WHERE name = 'preemption'",
            f"{COUNTERS} WHERE name = 'KV cache usage'",
            f"{COUNTERS} WHERE name = 'waiting requests' AND value > 0",
        ),
        "real_vision": ("slice WHERE category = 'request' AND name = 'delivery'",),
    }.items():
        trace = tmp_path / f"{name}.pftrace"
        profilemate("timeline", GOLDEN / name, "--output", trace)
        processor.open(trace)
        for source in sources:
            assert processor.number(f"SELECT COUNT(*) FROM {source}") > 0, (name, source)


def test_a_part_holds_what_goes_on_in_it(drawn: Drawn, tmp_path: Path) -> None:
    keys = "name || ' ' || ts || ' ' || dur"
    spans = "category IN ('work', 'warm_up', 'dummy')"
    begins = [row["ts"] for row in drawn.sql.rows("SELECT ts FROM slice WHERE depth = 0 ORDER BY ts")]
    first, last = begins[len(begins) * 2 // 5], begins[len(begins) * 3 // 5]
    wanted = drawn.by(keys, "slice", f"{spans} AND ts + dur >= {first} AND ts <= {last}")
    whole = drawn.by(keys, "slice", "TRUE")
    trace = tmp_path / "part.pftrace"
    part = ("--from", f"{first / SECONDS:.9f}", "--to", f"{last / SECONDS:.9f}")
    profilemate("timeline", drawn.folder, "--output", trace, *part)
    drawn.sql.open(trace)
    assert drawn.by(keys, "slice", spans) == wanted
    assert drawn.by(keys, "slice", "TRUE") <= whole
    assert drawn.sql.rows(f"SELECT ts FROM {COUNTERS} WHERE ts NOT BETWEEN {first} AND {last}") == []


def test_the_same_session_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    profilemate("timeline", folder, "--output", tmp_path / "again.pftrace")
    assert (tmp_path / "again.pftrace").read_bytes() == (folder / "timeline.pftrace").read_bytes()


def test_queries_of_the_guide_answer(processor: trace_processor.Processor, tmp_path: Path) -> None:
    trace = tmp_path / "timeline.pftrace"
    profilemate("timeline", GOLDEN / "real_gpu", "--output", trace)
    processor.open(trace)
    text = (GUIDES / "timeline.md").read_text(encoding="utf-8")
    blocks = text.split("```sql\n")[1:]
    queries = [query for block in blocks for query in block.split("```")[0].split(";") if query.strip()]
    assert len(queries) >= 4
    for query in queries:
        assert processor.rows(query), query


def test_packets_keep_to_the_format(drawn: Drawn) -> None:
    read = perfetto.read(drawn.trace)
    assert len(read.slices) == drawn.counted("TRUE")
    assert sum(map(len, read.counters.values())) == drawn.sql.number("SELECT COUNT(*) FROM counter")
    assert all(read.tracks[uuid].unit for uuid in read.counters)
    assert len(read.flows()) == drawn.sql.number("SELECT COUNT(*) FROM flow")


def test_a_packet_that_does_not_fit_is_noticed(tmp_path: Path) -> None:
    trace = tmp_path / "timeline.pftrace"
    profilemate("timeline", GOLDEN / "requests", "--output", trace)
    track = next(iter(perfetto.read(trace).tracks))
    event = descriptors.TrackEvent(type=descriptors.TrackEvent.TYPE_SLICE_END, track_uuid=track)
    packet = descriptors.TracePacket(timestamp=1 << 62, trusted_packet_sequence_id=1, track_event=event)
    with trace.open("ab") as file:
        file.write(descriptors.Trace(packet=[packet]).SerializeToString())
    with pytest.raises(AssertionError, match="an end has a beginning"):
        perfetto.read(trace)
