"""Sampling: what batches asked for, against what was sent, and drafts, against vLLM's own counters."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from support import checks
from support.processes import LIMIT_SECONDS
from support.tables import Row, Session, completed_session
from support.vllm import environment, profilemate

SAMPLE = Path(__file__).with_name("sample.py")

#: What a way has in the table, besides its own column.
BESIDES: dict[str, set[str]] = {
    "greedy": set(),
    "random": set(),
    "top_k": {"random"},
    "top_p": {"random"},
    "min_p": {"random"},
    "seeded": {"random"},
}
FEATURES = (
    *("greedy", "random", "top_k", "top_p", "min_p", "penalties", "logprobs", "prompt_logprobs"),
    *("structured_output", "logit_bias", "bad_words", "allowed_token_ids", "min_tokens", "seeded"),
)


class Runs:
    """Two processes, at once."""

    def __init__(self, model: Path, folder: Path, logs: Path) -> None:
        def start(name: str, *options: str) -> tuple[dict[str, Any], Session]:
            work = folder / name
            work.mkdir()
            log = logs / f"{name}.log"
            with log.open("wb") as output:
                done = subprocess.run(
                    [sys.executable, str(SAMPLE), str(model), str(work / "sent.json"), *options],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=environment(
                        work, PYTHONPATH=profilemate("path").strip(), VLLM_ENABLE_V1_MULTIPROCESSING="0"
                    ),
                    timeout=LIMIT_SECONDS,
                    start_new_session=True,
                )
            assert done.returncode == 0, f"{name}: exit code {done.returncode}; see {log}"
            return json.loads((work / "sent.json").read_text(encoding="utf-8")), completed_session(work)

        with ThreadPoolExecutor(max_workers=2) as pool:
            ways, drafts = pool.submit(start, "ways"), pool.submit(start, "drafts", "--speculate")
        self.ways, self.drafts = ways.result(), drafts.result()


@pytest.fixture(scope="module")
def runs(tiny_llama: Path, log_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tiny_llama, tmp_path_factory.mktemp("sampling"), log_folder)


def features(row: Row) -> dict[str, int]:
    """What a batch asks for, and how many of its sequences."""
    return {name: int(row[name]) for name in FEATURES if int(row[name])}


def test_each_way_to_sample_is_seen_in_as_many_sequences_as_asked_for_it(runs: Runs) -> None:
    sent, session = runs.ways
    checks.sound(session)
    by_size: dict[int, list[Row]] = defaultdict(list)
    for row in session.rows("sampling_timing.csv"):
        by_size[int(row["batch_size"])].append(row)
    for way, requests in sent.items():
        if way in ("together", "structured_output"):
            continue
        expected = dict.fromkeys({way, *BESIDES.get(way, {"greedy"})}, requests)
        seen = [features(row) for row in by_size[requests]]
        if way == "prompt_logprobs":
            # They are done with the prompt.
            assert seen[0] == expected
            del expected["prompt_logprobs"]
            seen = seen[1:]
        # Grammars are made one by one, so that batches of any size have some.
        seen = [found for found in seen if "structured_output" not in found]
        assert seen, way
        assert all(found == expected for found in seen), (way, seen)
    together = {"greedy": 5, "random": 15, "top_p": 15, "penalties": 3}
    assert all(features(row) == together for row in by_size[sent["together"]])
    grammar = [row for row in session.rows("sampling_timing.csv") if row["structured_output"] != "0"]
    assert {row["structured_output"] for row in grammar} == {row["batch_size"] for row in grammar}
    assert max(int(row["batch_size"]) for row in grammar) == sent["structured_output"]


def test_without_a_gpu_nothing_is_said_of_its_memory(runs: Runs) -> None:
    _, session = runs.ways
    assert session.metadata["profilers"]["gpu_memory"] == "could not attach: torch uses no GPU here"
    assert not (session.folder / "gpu_memory.csv").exists()


def test_times_are_those_of_the_other_tables(runs: Runs) -> None:
    _, session = runs.ways
    passes = {row["step"]: row for row in session.rows("forward_pass_timing.csv")}
    found = session.rows("sampling_timing.csv")
    assert [row["step"] for row in found] == list(passes)
    for row in found:
        assert row["timing"] == "wall"
        assert row["sample_time_ms"] == row["host_time_ms"]
        alone = float(passes[row["step"]]["sample_time_ms"])
        if row["structured_output"] == "0":
            # One is a number of ticks, the other the difference of two moments.
            assert float(row["host_time_ms"]) == pytest.approx(alone, rel=1e-6, abs=2e-6)
        else:
            # The grammar's mask is a part of it.
            assert float(row["host_time_ms"]) > alone
    summary = session.json("sampling_summary.json")
    assert summary["steps"] == len(found)
    assert sum(mix["steps"] for mix in summary["mixes"]) == len(found)
    total = sum(float(row["sample_time_ms"]) for row in found)
    assert summary["sample_time"]["total_ms"] == pytest.approx(total, abs=1e-3)


def test_drafts_are_those_that_vllm_counts_or_would_count(runs: Runs) -> None:
    sent, session = runs.drafts
    checks.sound(session)
    rows = session.rows("sampling_timing.csv")
    for name, counted in sent["counted"].items():
        assert counted > 0
        in_rows = sum(int(row[name]) for row in rows)
        assert in_rows == counted + sent["uncounted"][name], name
        assert session.json("sampling_summary.json")["speculation"][name] == in_rows
