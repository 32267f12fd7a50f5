"""The offline `LLM`: the same tokens whatever the profiler does, in one process and in three."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from support import checks
from support.processes import LIMIT_SECONDS
from support.tables import completed_session, sessions
from support.vllm import environment, profilemate, without_profiler

GENERATE = Path(__file__).with_name("generate.py")
FAULTS = Path(__file__).with_name("faults.py")

# A bad value in every kind of setting there is.
BAD_SETTINGS = {
    "PROFILEMATE_MAX_BYTES": "plenty",
    "PROFILEMATE_SEGMENT_BYTES": "-1",
    "PROFILEMATE_REFRESH_SECONDS": "0",
    "PROFILEMATE_TIMING": "sundial",
    "PROFILEMATE_HASH_REQUEST_IDS": "maybe",
    "PROFILEMATE_CONFIG": "/nonexistent/profilemate.toml",
}


@dataclass
class Run:
    tokens: list[list[int]]
    stdout: str
    stderr: str
    output_dir: Path

    def said(self) -> list[str]:
        """Our own lines on stderr."""
        return [line for line in self.stderr.splitlines() if line.startswith("profilemate:")]


class Runs:
    """Every way to run, each once, two at a time: importing vLLM keeps one core busy."""

    def __init__(self, model: Path, folder: Path, logs: Path) -> None:
        hooked = {"PYTHONPATH": profilemate("path").strip()}
        one_process = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        ways: dict[str, Mapping[str, str]] = {
            "three processes": hooked,
            "three processes, no profiler": {},
            "one process": hooked | one_process,
            "one process, no profiler": one_process,
            "one process, as a plugin": one_process | {"PROFILEMATE_ENABLE": "1"},
            "probes raise": hooked | one_process | {"PROFILEMATE_FAULT": "raise"},
            "probes panic": hooked | one_process | {"PROFILEMATE_FAULT": "panic"},
            "bad settings": hooked | one_process | BAD_SETTINGS,
            # Hooks are attached when vLLM loads its plugins, so that objects can be broken before.
            "faults on the way": one_process
            | {
                "PROFILEMATE_ENABLE": "1",
                "PROFILEMATE_SEGMENT_BYTES": "65536",
                "PYTHONPATH": str(Path(__file__).parents[1]),
            },
            "unwritable folder": hooked | one_process | {"PROFILEMATE_OUTPUT_DIR": "/proc/nowhere"},
        }

        def start(name: str) -> Run:
            slug = name.replace(" ", "-").replace(",", "")
            work = folder / slug
            work.mkdir()
            variables = environment(work, **ways[name])
            if name.endswith("no profiler"):
                variables = without_profiler(variables)
            script = FAULTS if name == "faults on the way" else GENERATE
            stdout, stderr = logs / f"{slug}.out.log", logs / f"{slug}.err.log"
            with stdout.open("wb") as out, stderr.open("wb") as err:
                done = subprocess.run(
                    [sys.executable, str(script), str(model), str(work / "tokens.json")],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    env=variables,
                    timeout=LIMIT_SECONDS,
                    start_new_session=True,
                )
            assert done.returncode == 0, f"{name}: exit code {done.returncode}; see {stderr.name}"
            tokens = json.loads((work / "tokens.json").read_text(encoding="utf-8"))
            return Run(tokens, stdout.read_text(errors="replace"), stderr.read_text(errors="replace"), work)

        with ThreadPoolExecutor(max_workers=2) as pool:
            self.started = {name: pool.submit(start, name) for name in ways}

    def __getitem__(self, name: str) -> Run:
        return self.started[name].result()


@pytest.fixture(scope="module")
def runs(tiny_llama: Path, log_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tiny_llama, tmp_path_factory.mktemp("offline"), log_folder)


@pytest.mark.parametrize("way", ["one process", "three processes"])
def test_the_tokens_are_those_without_the_profiler(runs: Runs, way: str) -> None:
    assert runs[way].tokens == runs[f"{way}, no profiler"].tokens


@pytest.mark.parametrize("way", ["one process", "one process, as a plugin", "three processes"])
def test_the_session_is_sound(runs: Runs, way: str) -> None:
    run = runs[way]
    session = completed_session(run.output_dir)
    checks.sound(session)
    counters = session.counters
    assert counters["generation_tokens"] == sum(map(len, run.tokens))
    assert counters["finished_requests"] == len(run.tokens)
    scheduled = sum(int(row["num_tokens"]) for row in session.batches)
    assert scheduled == counters["prompt_tokens"] + counters["generation_tokens"] - counters["finished_requests"]
    assert run.said() == []


def test_every_process_is_in_the_session(runs: Runs) -> None:
    for way, processes in [("one process", 1), ("one process, as a plugin", 1), ("three processes", 3)]:
        session = completed_session(runs[way].output_dir)
        assert session.roles() == {"api_server", "engine_core", "worker"}, way
        assert len({process["pid"] for process in session.metadata["processes"]}) == processes, way


#: Probes that are called in every step, or for every request.
FAILING = [
    "engine_core.step",
    "scheduler.schedule",
    "scheduler.update_from_output",
    "model_runner.execute_model",
    "model_runner.forward",
    "model_runner.sample",
    "model_runner.bookkeeping",
    "cuda_graphs.dispatch",
    "output_processor.process_outputs",
    "detokenizer.update",
    "scheduler.add_request",
    "scheduler.free_request",
    "kv_cache.collector",
    "output_processor.add_request",
]


@pytest.mark.parametrize("fault", ["raise", "panic"])
def test_a_failing_probe_harms_nobody(runs: Runs, fault: str) -> None:
    run, plain = runs[f"probes {fault}"], runs["one process, no profiler"]
    assert run.tokens == plain.tokens
    assert len(run.said()) == 1, run.said()
    assert "profilemate:" not in run.stdout
    # Those that run again and again have failed too, and not only those at the start.
    heads = b"".join(head.read_bytes() for head in run.output_dir.glob("session_*/raw/*.head"))
    for probe in FAILING:
        assert f"probe_error:{probe}\0".encode() in heads, probe
        assert f"probe_off:{probe}\0".encode() in heads, probe
    assert completed_session(run.output_dir).metadata["probe_errors"] >= 3 * len(FAILING)


def test_faults_on_the_way_change_no_token(runs: Runs) -> None:
    """The collector dies, files are emptied and may not grow, the session is deleted, vLLM's objects are broken."""
    run = runs["faults on the way"]
    assert run.tokens == runs["one process, no profiler"].tokens
    faults = [line for line in run.stdout.splitlines() if line.startswith("fault ")]
    assert len(faults) == 7
    broken = next(line for line in run.stdout.splitlines() if line.startswith("broken "))
    assert int(broken.split()[1]) > 10
    # One line for the first file that was cut short, one for the first that could not be made, one for the first probe.
    assert 2 <= len(run.said()) <= 4, run.said()
    assert sum("was cut short" in line for line in run.said()) == 1
    assert sum("cannot" in line for line in run.said()) >= 1


def test_a_bad_setting_is_one_line_and_the_default(runs: Runs) -> None:
    run = runs["bad settings"]
    assert run.tokens == runs["one process, no profiler"].tokens
    assert len(run.said()) == len(BAD_SETTINGS), run.said()
    for variable in BAD_SETTINGS:
        assert sum(variable in line for line in run.said()) == 1, variable
    checks.sound(completed_session(run.output_dir))


def test_an_unwritable_folder_is_one_line(runs: Runs) -> None:
    run = runs["unwritable folder"]
    assert run.tokens == runs["one process, no profiler"].tokens
    assert len(run.said()) == 1, run.said()
    assert "/proc/nowhere" in run.said()[0]
    assert sessions(run.output_dir) == []
