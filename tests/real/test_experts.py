"""Experts of real vLLM on the CPU, counted and compared with what its routers computed in the same run."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support.processes import LIMIT_SECONDS
from support.tables import Session, completed_session
from support.vllm import environment, without_profiler

ROOT = Path(__file__).parents[2]
ROUTE = Path(__file__).with_name("route.py")
EVERYTHING = {"PROFILEMATE_ENABLE": "1", "PROFILEMATE_MOE_COSELECTION": "1", "PROFILEMATE_MOE_WEIGHTS": "1"}


@dataclass
class Run:
    tokens: list[list[int]]
    #: By layer: what the routers computed.
    layers: dict[str, Any]
    output_dir: Path
    stderr: str

    def session(self) -> Session:
        return completed_session(self.output_dir)


class Runs:
    """Every way to run, each once and when it is asked for: a start of vLLM takes a minute."""

    def __init__(self, models: Path, folder: Path, logs: Path) -> None:
        self.models, self.folder, self.logs = models, folder, logs
        self.done: dict[str, Run] = {}

    def __call__(self, name: str, model: str, *options: str, **more: str) -> Run:
        if name not in self.done:
            self.done[name] = self._run(name, model, options, more)
        return self.done[name]

    def _run(self, name: str, model: str, options: tuple[str, ...], more: Mapping[str, str]) -> Run:
        work = self.folder / name
        work.mkdir()
        variables = environment(
            work,
            VLLM_ENABLE_V1_MULTIPROCESSING="0",
            # `apply_model` is given a function.
            VLLM_ALLOW_INSECURE_SERIALIZATION="1",
            VLLM_CACHE_ROOT=str(self.folder / "cache"),
            **more,
        )
        if not more:
            variables = without_profiler(variables)
        log = self.logs / f"{name}.log"
        with log.open("wb") as output:
            done = subprocess.run(
                [sys.executable, str(ROUTE), str(self.models / model), str(work / "out.json"), *options],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=variables,
                timeout=LIMIT_SECONDS,
                start_new_session=True,
            )
        assert done.returncode == 0, f"{name}: exit code {done.returncode}; see {log}"
        out = json.loads((work / "out.json").read_text(encoding="utf-8"))
        return Run(out["tokens"], out["layers"], work, log.read_text(errors="replace"))


@pytest.fixture(scope="module")
def runs(log_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    models = tmp_path_factory.mktemp("models")
    names = ["tiny-qwen3moe", "tiny-glm4moe"]
    subprocess.run([sys.executable, ROOT / "scripts" / "make_models.py", models, *names], check=True)
    return Runs(models, tmp_path_factory.mktemp("experts"), log_folder)


def rows(session: Session, table: str, layer: str) -> list[dict[str, str]]:
    with (session.folder / "moe_expert_tracking" / table).open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["layer_idx"] == layer]


def summary(session: Session) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        (session.folder / "moe_expert_tracking" / "moe_summary.json").read_text(encoding="utf-8")
    )
    return found


@pytest.mark.parametrize(
    ("model", "layers"), [("tiny-qwen3moe", ["0", "1"]), ("tiny-glm4moe", ["1", "2"])], ids=["softmax", "grouped"]
)
def test_every_choice_of_every_router_is_counted_once(runs: Runs, model: str, layers: list[str]) -> None:
    run = runs(model, model, **EVERYTHING)
    session = run.session()
    scheduled = sum(int(row["num_tokens"]) for row in session.batches)
    assert sorted(run.layers) == layers
    assert "profilemate:" not in run.stderr
    for layer, reference in run.layers.items():
        counts = [int(row["activation_count"]) for row in rows(session, "moe_expert_activations.csv", layer)]
        assert counts == reference["counts"]
        # Neither padding nor warm-up, and nothing twice.
        assert reference["tokens"] == scheduled == summary(session)[f"layer_{layer}"]["num_tokens"]
        assert sum(counts) == scheduled * reference["top_k"]
        pairs = rows(session, "moe_expert_coselection.csv", layer)
        found = {f"{row['expert_id_1']} {row['expert_id_2']}": int(row["coselection_count"]) for row in pairs}
        assert found == reference["pairs"]
        weights = [int(row["count"]) for row in rows(session, "moe_routing_weights_hist.csv", layer)]
        assert weights == reference["weights"]
        intervals = rows(session, "moe_load_imbalance.csv", layer)
        assert sum(int(row["num_tokens"]) for row in intervals) == scheduled
    # Tokens go different ways; and where layers have different biases, experts of one are not those of another.
    first, second = (run.layers[layer]["counts"] for layer in layers)
    assert sum(count > 0 for count in first) > reference["top_k"]
    assert model == "tiny-qwen3moe" or first != second


def test_tokens_are_the_same_without_the_counters(runs: Runs) -> None:
    counted, plain = runs("tiny-qwen3moe", "tiny-qwen3moe", **EVERYTHING), runs("plain", "tiny-qwen3moe")
    assert counted.tokens == plain.tokens
    assert counted.layers == plain.layers
    assert not list(plain.output_dir.glob("session_*"))


def test_compiled_routers_are_counted_and_vllms_own_code_stays_vllms(runs: Runs) -> None:
    """torch.compile goes through the routers; vLLM keeps what it compiled for the next start."""
    run = runs("compiled", "tiny-qwen3moe", "--compiled", PROFILEMATE_ENABLE="1", PROFILEMATE_MOE_LAYERS="1")
    session = run.session()
    scheduled = sum(int(row["num_tokens"]) for row in session.batches)
    counts = [int(row["activation_count"]) for row in rows(session, "moe_expert_activations.csv", "1")]
    assert sum(counts) == 2 * scheduled
    assert summary(session)["layers_not_seen"] == {"layer_0": "not in moe_layers"}
    # What was compiled with counters is not taken for vLLM's own, which would call what is not there.
    plain = runs("compiled, no profiler", "tiny-qwen3moe", "--compiled")
    assert plain.tokens == run.tokens


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="vLLM wants a processor for each rank")
def test_ranks_that_route_the_same_tokens_count_them_once(runs: Runs) -> None:
    """With expert parallelism too it would be so, but vLLM's kernel for the CPU crashes with it (0.32)."""
    processors = "|".join(str(each) for each in sorted(os.sched_getaffinity(0))[:2])
    bound = {"VLLM_CPU_OMP_THREADS_BIND": processors}
    run = runs("two ranks", "tiny-qwen3moe", "--tensor-parallel", **EVERYTHING, **bound)
    session = run.session()
    workers = {process["rank"] for process in session.metadata["processes"] if process["role"] == "worker"}
    assert workers == {0, 1}
    scheduled = sum(int(row["num_tokens"]) for row in session.batches)
    assert sorted(run.layers) == ["0", "1"]
    for layer, reference in run.layers.items():
        counts = [int(row["activation_count"]) for row in rows(session, "moe_expert_activations.csv", layer)]
        assert counts == reference["counts"]
        assert reference["tokens"] == scheduled == summary(session)[f"layer_{layer}"]["num_tokens"]
        intervals = rows(session, "moe_load_imbalance.csv", layer)
        assert {row["process"] for row in intervals} == {"worker-0"}
