"""`vllm serve` with too few KV blocks: every request, against vLLM's own counters and what its clients saw."""

from __future__ import annotations

import os
import random
import re
import signal
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

import pytest

from support import checks
from support.clients import Ask, Seen, ask_all
from support.tables import Row, Session, completed_session, only_session
from support.vllm import MAX_NUM_SEQS, Server, environment, parse_metrics, profilemate

#: Of 128 tokens each. As many requests as may run at once, of 300 tokens each, need 96.
BLOCKS = 40
PROMPT_TOKENS, OUTPUT_TOKENS, REQUESTS = 100, 200, 64
#: Clients that leave, after so many pieces of the answer. A tiny model on a busy machine may be done with the rest of
#: it before the front end hears of that.
LEAVERS, LEAVES_AFTER = 3, 3
#: Clients that leave while the engine cannot take their request yet.
EARLY_LEAVERS = 2


def finished_by_reason(metrics: str) -> dict[str, int]:
    found = re.findall(r'^vllm:request_success_total\{.*finished_reason="(\w+)".*\} (\S+)$', metrics, re.MULTILINE)
    return {reason: int(float(count)) for reason, count in found if float(count)}


def lives_of(session: Session, seen: Seen) -> list[Row]:
    """The rows of a client's request: one for each of its samples."""
    return [row for row in session.lives if row["client_request_id"] == f"cmpl-{seen.request_id}-0"]


@dataclass
class Moment:
    """A moment at which the server had nothing to do: its own counters, our tables, and the clients so far."""

    metrics: dict[str, float]
    finished: dict[str, int]
    session: Session
    clients: list[Seen]


@dataclass
class Run:
    #: After a load in which every client got what it wanted.
    calm: Moment
    #: After clients that left, and a stop string.
    mixed: Moment
    #: After the engine's process was killed under load,
    killed: Session
    #: with these clients,
    cut_off: list[Seen]
    #: and these counters, told just before.
    told: dict[str, float]


class Load:
    """One server and what is asked of it."""

    def __init__(self, server: Server, output_dir: Path, exports: Path) -> None:
        self.server = server
        self.output_dir = output_dir
        self.exports = exports
        self.clients: list[Seen] = []

    def ask(self, *asks: Ask) -> list[Seen]:
        seen = ask_all(self.server.port, str(self.server.model), asks)
        self.clients += seen
        return seen

    @contextmanager
    def engine_frozen(self, engine: int) -> Iterator[None]:
        os.kill(engine, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(engine, signal.SIGCONT)

    def has_logged(self, *words: str) -> bool:
        """Whether vLLM's log of requests has a line with all of these."""
        return any(all(word in line for word in words) for line in self.server.output.splitlines())

    def idle_metrics(self) -> str | None:
        text = self.server.metrics_text()
        metrics = parse_metrics(text)
        return None if metrics["vllm:num_requests_running"] + metrics["vllm:num_requests_waiting"] else text

    def moment(self, name: str) -> Moment:
        metrics = self.server.wait_for("the engine to be idle", self.idle_metrics)
        folder = self.exports / name
        profilemate("export", str(only_session(self.output_dir).folder), "--output", str(folder))
        return Moment(parse_metrics(metrics), finished_by_reason(metrics), Session(folder), list(self.clients))


def pressure(load: Load, chance: random.Random) -> None:
    """More than the cache can hold, of requests that have nothing in common; then some that share two blocks."""

    def prompt(length: int) -> list[int]:
        return [chance.randrange(3, 250) for _ in range(length)]

    load.ask(*(Ask(f"pressure-{number}", prompt(PROMPT_TOKENS), OUTPUT_TOKENS) for number in range(REQUESTS)))
    shared = prompt(256)
    for group in range(3):
        load.ask(*(Ask(f"shared-{group}-{number}", shared + prompt(20), 10) for number in range(4)))
    load.ask(Ask("samples", prompt(30), 20, n=2))


def mix(load: Load, engine: int) -> None:
    prompt = list(range(3, 33))
    (plain,) = load.ask(Ask("plain", prompt, 30))
    # Something that comes in the middle of the answer, and not before.
    text = plain.texts[0]
    stop = next(letter for place, letter in enumerate(text) if letter.isalnum() and letter not in text[:place])
    (stopped,) = load.ask(Ask("stopped", prompt, 30, stop=stop))
    assert stopped.finish_reasons == {0: "stop"}, (text, stop, stopped)
    for seen in load.ask(
        *(Ask(f"leaver-{n}", prompt * 2, 900, leaves_after=LEAVES_AFTER) for n in range(LEAVERS))
    ):
        assert seen.error == ""
    # The engine hears of these and of their end in one go.
    names = [f"early-leaver-{number}" for number in range(EARLY_LEAVERS)]
    with load.engine_frozen(engine):
        load.ask(
            *(
                Ask(name, prompt, 900, leaves_when=partial(load.has_logged, "Added request", f"cmpl-{name}-"))
                for name in names
            )
        )
        for name in names:
            load.server.wait_for("the front end to notice", partial(load.has_logged, f"cmpl-{name}-", "aborted."))


@pytest.fixture(scope="module")
def run(tiny_llama: Path, log_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    print("seed", seed := random.randrange(2**32))
    chance = random.Random(seed)
    output_dir = tmp_path_factory.mktemp("pressure")
    server = Server(
        tiny_llama,
        log_folder / "pressure.log",
        environment(output_dir, PYTHONPATH=profilemate("path").strip(), PROFILEMATE_REFRESH_SECONDS="1"),
        *("--num-gpu-blocks-override", str(BLOCKS), "--enable-log-requests"),
    )
    load = Load(server, output_dir, tmp_path_factory.mktemp("exports"))
    try:
        pressure(load, chance)
        calm = load.moment("calm")
        (engine,) = {
            process["pid"] for process in calm.session.metadata["processes"] if process["role"] == "engine_core"
        }
        mix(load, engine)
        mixed = load.moment("mixed")
        before = mixed.metrics["vllm:request_success_total"]
        asks = [
            Ask(f"cut-off-{number}", [chance.randrange(3, 250) for _ in range(PROMPT_TOKENS)], 20 + 10 * number)
            for number in range(2 * MAX_NUM_SEQS)
        ]

        def in_the_middle() -> dict[str, float] | None:
            """Some are done, many run, others wait."""
            metrics = server.metrics()
            done = metrics["vllm:request_success_total"] - before
            running, waiting = metrics["vllm:num_requests_running"], metrics["vllm:num_requests_waiting"]
            is_middle = done >= 3 and running > 3 and waiting > 3 and done + running + waiting == len(asks)
            return metrics if is_middle else None

        with ThreadPoolExecutor() as clients:
            cut_off = clients.submit(ask_all, server.port, str(server.model), asks)
            try:
                told = server.wait_for("the middle of the load", in_the_middle)
                os.kill(engine, signal.SIGKILL)
                server.ended()
            finally:
                server.clean_up()
            seen = cut_off.result()
        yield Run(calm, mixed, completed_session(output_dir), seen, told)
    finally:
        server.clean_up()


@pytest.fixture(params=["calm", "mixed"])
def moment(run: Run, request: pytest.FixtureRequest) -> Moment:
    found: Moment = getattr(run, request.param)
    return found


def test_it_was_pressure(run: Run) -> None:
    assert run.calm.metrics["vllm:num_preemptions_total"] > 10
    assert run.calm.metrics["vllm:prefix_cache_hits_total"] >= 256
    assert [seen.error for seen in run.calm.clients if seen.error] == []


def test_preemptions_are_those_of_vllm(moment: Moment, record_property: checks.Record) -> None:
    summary = moment.session.json("preemption_summary.json")
    theirs = moment.metrics["vllm:num_preemptions_total"]
    checks.same(record_property, "vllm:num_preemptions_total", summary["total_preemptions"], theirs)
    assert summary["preemption_reasons"] == {"kv_cache_full": theirs}
    events = Counter(row["event"] for row in moment.session.rows("preemption_events.csv"))
    assert events["preempted"] == events["resumed"] == theirs
    assert sum(int(row["num_preemptions"]) for row in moment.session.lives) == theirs
    delays = [row for row in moment.session.lives if float(row["preemption_delay_sec"]) > 0]
    assert summary["preempted_requests"] == len(delays)


def test_requests_end_as_vllm_counts_them(moment: Moment) -> None:
    ours = Counter(row["finish_reason"] for row in moment.session.lives)
    # Clients that leave are answered by nobody, and vLLM counts answers.
    aborted = ours.pop("abort", 0)
    assert ours == moment.finished
    gone = [seen for seen in moment.clients if not seen.finish_reasons]
    assert len(gone) == (LEAVERS + EARLY_LEAVERS if "stop" in moment.finished else 0)
    assert (EARLY_LEAVERS if gone else 0) <= aborted <= len(gone)
    summary = moment.session.json("preemption_summary.json")
    assert summary["open_requests"] == 0


def test_tokens_are_those_of_vllm(moment: Moment) -> None:
    lives, theirs = moment.session.lives, moment.metrics
    answered = [row for row in lives if row["first_token_sec"]]
    assert sum(int(row["prompt_tokens"]) for row in answered) == theirs["vllm:prompt_tokens_total"]
    ours = sum(int(row["output_tokens"]) for row in lives)
    assert ours == moment.session.counters["generation_tokens"]
    # When a client leaves, or its stop string has come, tokens that are on their way are for nobody.
    told = ours
    for row in lives:
        if row["finish_reason"] in ("abort", "stop"):
            (seen,) = [seen for seen in moment.clients if row in lives_of(moment.session, seen)]
            told += min(seen.pieces, int(row["output_tokens"])) - int(row["output_tokens"])
    assert told <= theirs["vllm:generation_tokens_total"] <= ours
    assert told == ours or "stop" in moment.finished


def test_the_prefix_cache_is_that_of_vllm(moment: Moment, record_property: checks.Record) -> None:
    rows = moment.session.rows("kv_cache_usage.csv")
    queries = sum(int(row["prefix_query_tokens"]) for row in rows)
    hits = sum(int(row["prefix_hit_tokens"]) for row in rows)
    for name, number in (("queries", queries), ("hits", hits)):
        counter = f"vllm:prefix_cache_{name}_total"
        checks.same(record_property, counter, number, moment.metrics[counter])
    summary = moment.session.json("kv_cache_summary.json")
    assert (summary["prefix_query_tokens"], summary["prefix_hit_tokens"]) == (queries, hits)
    # One block stands for none.
    assert (summary["total_blocks"], summary["peak_blocks"]) == (BLOCKS - 1, BLOCKS - 1)
    assert float(rows[-1]["usage_pct"]) == moment.metrics["vllm:kv_cache_usage_perc"] == 0
    assert summary["allocations"] == summary["frees"]


def test_blocks_and_preemptions_limited_batches(run: Run) -> None:
    limits = Counter(row["limited_by"] for row in run.calm.session.batches)
    assert limits.keys() <= {"no_waiting_request", "token_budget", "kv_blocks", "preemption", "max_num_seqs"}
    # Each step that preempts says so; one step may preempt several.
    steps = {row["step"] for row in run.calm.session.rows("preemption_events.csv") if row["event"] == "preempted"}
    assert {row["step"] for row in run.calm.session.batches if row["limited_by"] == "preemption"} == steps
    assert limits["kv_blocks"] > 0


def test_the_findings_name_the_cache_and_nothing_against_it(run: Run) -> None:
    """The numbers are computed again from the tables, and are vLLM's own."""
    session = run.calm.session
    found = session.json("findings.json")
    by_id = {finding["id"]: finding for finding in found["findings"]}
    finding = by_id["kv-cache-too-small"]
    assert finding["severity"] == "critical" and found["findings"][0] == finding
    # Blocks were fixed by hand: the flag that fixed them has to change first.
    first = finding["changes"][0]
    assert (first["flag"], first["direction"], first["current"]) == (
        "--num-gpu-blocks-override",
        "raise",
        str(BLOCKS),
    )
    evidence = {of["name"]: of["value"] for of in finding["evidence"]}
    assert evidence["preemptions"] == run.calm.metrics["vllm:num_preemptions_total"]
    preempted = [int(row["num_preemptions"]) > 0 for row in session.lives]
    assert evidence["preempted_requests"] == pytest.approx(100 * sum(preempted) / len(preempted))
    full = [float(row["usage_pct"]) > 90 for row in session.rows("kv_cache_usage.csv")]
    assert evidence["steps_over_90_pct_usage"] == pytest.approx(100 * sum(full) / len(full))
    # Nothing is advised that needs more of the cache.
    raised = {
        change["flag"]
        for finding in found["findings"]
        for change in finding["changes"]
        if change["direction"] == "raise"
    }
    assert not raised & {"--max-num-seqs", "--max-num-batched-tokens"}
    for finding in found["findings"]:
        for proof in finding["proof"]:
            file = session.folder / proof["file"]
            assert file.exists() and proof["column"] in file.read_text(encoding="utf-8"), proof


def test_latencies_are_those_of_vllm(run: Run) -> None:
    """The same definitions, taken at moments that lie a few lines of code apart."""
    theirs, lives = run.calm.metrics, run.calm.session.lives
    for column, metric in [
        ("ttft_sec", "vllm:time_to_first_token_seconds"),
        ("total_time_sec", "vllm:e2e_request_latency_seconds"),
        ("queue_time_sec", "vllm:request_queue_time_seconds"),
    ]:
        sample = [float(row[column]) for row in lives]
        assert len(sample) == theirs[f"{metric}_count"], metric
        # In the mean. A process that has to wait for a core between the two moments may wait for some milliseconds.
        difference = (sum(sample) - theirs[f"{metric}_sum"]) / len(sample)
        print(metric, "differs by", difference)
        assert abs(difference) < 0.05, metric


def test_latencies_are_what_clients_saw_less_the_network(run: Run) -> None:
    """A client begins to count before vLLM does, and its first token comes to it after vLLM made it.

    What lies between is the network, the HTTP server and the queues in front of it: milliseconds for a request that
    comes alone, and up to a second or two where many come in the same instant to a machine that has two cores.
    """
    assert len(run.calm.clients) == REQUESTS + 12 + 1
    start = datetime.fromisoformat(run.calm.session.metadata["start_time"]).timestamp()
    shares = defaultdict(list)
    for seen in run.calm.clients:
        rows = lives_of(run.calm.session, seen)
        assert len(rows) == len(seen.finish_reasons), seen
        assert seen.first_token is not None and seen.last_token is not None
        assert {row["finish_reason"] for row in rows} == set(seen.finish_reasons.values()) == {"length"}
        assert sum(int(row["output_tokens"]) for row in rows) == seen.usage["completion_tokens"]
        assert {row["prompt_tokens"] for row in rows} == {str(seen.usage["prompt_tokens"])}
        first = seen.first_token - seen.sent - min(float(row["ttft_sec"]) for row in rows)
        last = seen.last_token - seen.sent - max(float(row["total_time_sec"]) for row in rows)
        shares["first token"].append(first)
        shares["end"].append(last)
        # And each moment by itself, on the system's clock, which may be set while this runs.
        shares["arrival"].append(start + float(rows[0]["arrived_sec"]) - seen.sent)
    for what, share in shares.items():
        share.sort()
        print(what, "ms: least", share[0] * 1e3, "median", statistics.median(share) * 1e3, "most", share[-1] * 1e3)
        assert share[0] >= -0.001, what
        assert statistics.median(share) < 5 and share[-1] < 30, what


def test_samples_of_one_request_share_its_name(run: Run) -> None:
    (samples,) = [seen for seen in run.calm.clients if seen.request_id == "samples"]
    rows = lives_of(run.calm.session, samples)
    assert sorted(row["sample_index"] for row in rows) == ["0", "1"]
    assert len({row["request_id"] for row in rows}) == 2


def test_a_stop_string_is_no_abort(run: Run) -> None:
    by_name = {seen.request_id: seen for seen in run.mixed.clients}
    (stopped,) = lives_of(run.mixed.session, by_name["stopped"])
    (plain,) = lives_of(run.mixed.session, by_name["plain"])
    assert (stopped["finish_reason"], plain["finish_reason"]) == ("stop", "length")
    assert int(stopped["output_tokens"]) <= int(plain["output_tokens"])
    for number in range(LEAVERS):
        (left,) = lives_of(run.mixed.session, by_name[f"leaver-{number}"])
        assert LEAVES_AFTER <= int(left["output_tokens"]) <= 900
        assert (left["finish_reason"] == "length") == (left["output_tokens"] == "900")
    for number in range(EARLY_LEAVERS):
        (left,) = lives_of(run.mixed.session, by_name[f"early-leaver-{number}"])
        assert (left["finish_reason"], left["started_sec"], left["first_token_sec"]) == ("abort", "", "")


def test_what_is_over_stays_as_it_was(run: Run) -> None:
    after = {row["request_id"]: row for row in run.killed.lives}
    for row in run.mixed.session.lives:
        for column, value in row.items():
            found = after[row["request_id"]][column]
            if column.endswith(("_sec", "_ms")) and value:
                # The clock of a process is known the better the longer it is watched.
                assert float(found) == pytest.approx(float(value), abs=1e-5), column
            else:
                assert found == value, column


def test_a_killed_engine_leaves_every_request(run: Run) -> None:
    rows = [lives_of(run.killed, seen) for seen in run.cut_off]
    assert {len(each) for each in rows} == {1}, "each is there, and once"
    lives = [row for (row,) in rows]
    for seen, row in zip(run.cut_off, lives, strict=True):
        if seen.finish_reasons:
            # What a client got to its end is in the table to its end.
            assert row["finish_reason"] == "length"
            assert row["output_tokens"] == str(seen.usage["completion_tokens"])
        if seen.first_token is not None:
            assert row["first_token_sec"] != ""
    over = [row for row in lives if row["finished_sec"]]
    for row in over:
        assert row["total_time_sec"] and row["ttft_sec"] and row["tpot_ms"] and row["output_tokens"], row
    still_open = [row for row in lives if not row["finished_sec"]]
    for row in still_open:
        for column in ("total_time_sec", "tpot_ms", "finish_reason", "output_tokens"):
            assert row[column] == "", row
        assert row["prompt_tokens"] == str(PROMPT_TOKENS)
    running = [row for row in still_open if row["started_sec"]]
    before = run.mixed.metrics["vllm:request_success_total"]
    assert len(over) >= run.told["vllm:request_success_total"] - before
    assert len(running) > 0 and len(still_open) > len(running), "some ran, some waited"
    summary = run.killed.json("preemption_summary.json")
    assert summary["open_requests"] == len(still_open)
    assert summary["total_requests"] == len(run.killed.lives) == len(run.mixed.session.lives) + len(lives)


def test_the_session_of_a_killed_engine_is_sound(run: Run) -> None:
    session = run.killed
    checks.sound(session)
    assert {"api_server", "engine_core", "worker"} <= session.roles()
    # What the server had told us about is at most what we recorded.
    assert session.counters["iterations"] >= run.told["vllm:iteration_tokens_total_count"]
    assert session.counters["generation_tokens"] >= run.told["vllm:generation_tokens_total"]
    assert session.counters["prompt_tokens"] >= run.told["vllm:prompt_tokens_total"]
    assert len(session.forward) >= run.told["vllm:iteration_tokens_total_count"]
    # A step that was under way has been scheduled, and maybe not more.
    assert len(session.batches) - len(session.forward) in (0, 1)
