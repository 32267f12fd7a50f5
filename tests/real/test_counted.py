"""One process, one load with preemptions and shared prompts, and vLLM's own counters.

The shortest run that tells whether a release of vLLM is recorded rightly: `scripts/version_runs.sh` makes it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from support import checks
from support.processes import LIMIT_SECONDS
from support.tables import Session, completed_session
from support.vllm import environment, profilemate

COUNTED = Path(__file__).with_name("counted.py")


@dataclass
class Run:
    session: Session
    counted: dict[str, float]
    stderr: str


@pytest.fixture(scope="module")
def run(tiny_llama: Path, log_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("counted")
    variables = environment(
        folder,
        PYTHONPATH=profilemate("path").strip(),
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        # A tiny model gains nothing from threads, and on a busy machine they wait for one another.
        VLLM_CPU_OMP_THREADS_BIND="0",
    )
    out = folder / "counted.json"
    log = log_folder / "counted.log"
    with log.open("wb") as output:
        done = subprocess.run(
            [sys.executable, str(COUNTED), str(tiny_llama), str(out)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=variables,
            timeout=LIMIT_SECONDS,
            start_new_session=True,
        )
    assert done.returncode == 0
    session = completed_session(folder)
    return Run(session, json.loads(out.read_text(encoding="utf-8")), log.read_text(errors="replace"))


def test_the_counters_are_those_of_vllm(run: Run, record_property: checks.Record) -> None:
    ours = run.session.counters
    for name, counter in {
        "prompt_tokens": "vllm:prompt_tokens",
        "generation_tokens": "vllm:generation_tokens",
        "iterations": "vllm:iteration_tokens_total",
        "finished_requests": "vllm:request_success",
    }.items():
        checks.same(record_property, counter, ours[name], run.counted[counter])


def test_preemptions_are_those_of_vllm(run: Run, record_property: checks.Record) -> None:
    theirs = run.counted["vllm:num_preemptions"]
    assert theirs > 5, "it was pressure"
    summary = run.session.json("preemption_summary.json")
    checks.same(record_property, "vllm:num_preemptions", summary["total_preemptions"], theirs)
    assert summary["preemption_reasons"] == {"kv_cache_full": theirs}
    events = Counter(row["event"] for row in run.session.rows("preemption_events.csv"))
    assert events["preempted"] == events["resumed"] == theirs
    assert sum(int(row["num_preemptions"]) for row in run.session.lives) == theirs


def test_the_prefix_cache_is_that_of_vllm(run: Run, record_property: checks.Record) -> None:
    assert run.counted["vllm:prefix_cache_hits"] > 0, "there was something to find"
    rows = run.session.rows("kv_cache_usage.csv")
    for name in ("queries", "hits"):
        column = {"queries": "prefix_query_tokens", "hits": "prefix_hit_tokens"}[name]
        ours = sum(int(row[column]) for row in rows)
        checks.same(record_property, f"vllm:prefix_cache_{name}", ours, run.counted[f"vllm:prefix_cache_{name}"])


def test_every_step_is_timed(run: Run, record_property: checks.Record) -> None:
    session = run.session
    checks.same(record_property, "steps with a forward pass", len(session.forward), len(session.batches))
    checks.sound(session)
    for profiler in ("forward_pass_timing", "cpu_timing", "batch_utilization_tracking", "preemption_tracking"):
        assert session.metadata["profilers"][profiler] == "on"


def test_nothing_went_wrong(run: Run) -> None:
    assert [line for line in run.stderr.splitlines() if line.startswith("profilemate:")] == []
    assert run.session.metadata["probe_errors"] == 0
