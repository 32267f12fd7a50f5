"""Stamps around the parts of a model, on a GPU that is none: the real hooks and the real device code's host side on a
made-up CUDA driver (`crates/cuda/tests/fake/fake_cuda.c`), and a model of a few lines under vLLM's names.

What a real GPU and a real vLLM do is in `benches/gpu/layers.py`.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.vllm import environment
from support.vllm import profilemate as run_profilemate
from test_gpu import SITE, make_fake

#: Attention takes 30 µs, in layer 5 twice as much; experts 50, and to choose them 5; a collective 10; all else 100.
MODEL = """
import types
from vllm.v1.worker.gpu_model_runner import fake, launch, FULL, NONE, GPUModelRunner as Plain
fake.fake_replay.argtypes = [__import__("ctypes").c_size_t]
class Impl:
    sliding_window = (-1, -1)
    def __init__(self, us): self.us = us
    def forward(self, layer): launch(self.us / 1000); return "attention"
class Attention:
    attn_type = "decoder"
    def __init__(self, us): self.impl = Impl(us)
class Router:
    def select_experts(self, hidden_states): launch(0.005); return "weights", "ids"
class Routed:
    quant_method = types.SimpleNamespace(is_monolithic=False)
    def forward_modular(self, x): launch(0.05); return x
class MoERunner:
    def __init__(self): self.router, self.routed_experts = Router(), Routed()
class Group:
    world_size = {world_size}
    def _all_reduce_out_place(self, x): launch(0.01); return x
    def _all_gather_out_place(self, x, dim): return x
LAYERS = 6
context = {{}}
for i in range(LAYERS):
    context[f"model.layers.{{i}}.self_attn.attn"] = Attention(60 if i == 5 else 30)
    if {experts}:
        context[f"model.layers.{{i}}.mlp.experts"] = MoERunner()
import vllm.distributed.parallel_state as parallel_state
parallel_state._TP = group = Group()
class GPUModelRunner(Plain):
    graph = False
    def launch_model(self):
        if self.graph:
            fake.fake_replay(1)
            return
        group._all_reduce_out_place(1)
        for name, layer in context.items():
            if "attn" in name:
                assert layer.impl.forward(layer) == "attention"
                group._all_reduce_out_place(1)
                launch(0.1)
                if not {experts}: group._all_reduce_out_place(1)
            else:
                assert layer.router.select_experts(hidden_states=1) == ("weights", "ids")
                assert layer.routed_experts.forward_modular(x=7) == 7
                group._all_reduce_out_place(1)
    def capture_model(self):
        self._dummy_run(8)
        if {graphs}:
            self._dummy_run(8, cudagraph_runtime_mode=FULL, uniform_decode=True)
            self.graph = True
"""
RUN = """
import types, torch, sys
from vllm.v1.worker.gpu_worker import Worker
{before}
import model
from model import fake
Worker.make_runner = lambda self: model.GPUModelRunner()
class config:
    class parallel_config: data_parallel_rank, world_size = 0, 1
    class model_config: model = "tiny"
    class compilation_config: static_forward_context = model.context
worker = Worker(config, 0, 0)
worker.load_model()
worker.compile_or_warm_up_model()
def one(step):
    output = types.SimpleNamespace(
        profilemate_step=step, total_num_scheduled_tokens=6, num_scheduled_tokens={{"a": 6}})
    worker.model_runner.execute_model(output)
    worker.model_runner.sample_tokens(None)
    fake.fake_advance(10_000_000)
for step in range(1, {steps} + 1): one(step)
print(fake.fake_broken_captures(), [fake.fake_calls(name) for name in (b"kernel", b"copy")])
{after}
"""


#: A tower of four blocks of 20 µs in front of the model, which is called in every other step, outside of any graph.
TOWER = """
import model
class ModuleList(list): pass
class Block:
    def forward(self, x): model.launch(0.02); return x + 1
class Tower: pass
blocks, mergers = ModuleList(Block() for _ in range(4)), ModuleList(Block() for _ in range(2))
class Model:
    supports_multimodal = True
    _tower_model_names, _language_model_names = ["visual"], ["language_model"]
    def named_children(self): return [("visual", tower), ("language_model", object())]
    def named_modules(self):
        yield from [("", self), ("visual", tower), ("visual.mergers", mergers), ("visual.blocks", blocks)]
        yield from ((f"visual.blocks.{{place}}", block) for place, block in enumerate(blocks))
    def embed_multimodal(self): pass
tower, real = Tower(), 0
{compiled}
def dispatch(self, tokens):
    global real
    real += 1
    if real % 2:
        for place, block in enumerate(blocks): assert block.forward(place) == place + 1
    return super(model.GPUModelRunner, self)._determine_batch_execution_and_padding(tokens)
model.GPUModelRunner.model = Model()
model.GPUModelRunner._determine_batch_execution_and_padding = dispatch
"""


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the made-up driver, torch and vLLM."""
    folder = tmp_path_factory.mktemp("layers")
    make_fake(folder)
    group = folder / "vllm" / "distributed" / "parallel_state.py"
    group.parent.mkdir()
    (group.parent / "__init__.py").touch()
    group.touch()
    return folder


def run(
    tmp_path: Path,
    fake: Path,
    *,
    graphs: bool = True,
    experts: bool = False,
    world_size: int = 1,
    steps: int = 40,
    before: str = "",
    after: str = "",
    **more: str,
) -> tuple[str, Path]:
    """Runs a worker; what it printed, and the session."""
    (tmp_path / "model.py").write_text(MODEL.format(graphs=graphs, experts=experts, world_size=world_size))
    program = RUN.format(steps=steps, before=before, after=after)
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=environment(
            tmp_path,
            PYTHONPATH=os.pathsep.join([SITE, str(fake), str(tmp_path)]),
            LD_LIBRARY_PATH=str(fake),
            PROFILEMATE_COLLECTOR="none",
            **{"PROFILEMATE_LAYERS_EVERY": "1", **more},
        ),
    )
    assert done.stderr == ""
    (session,) = tmp_path.glob("session_*")
    run_profilemate("export", str(session))
    return done.stdout, session


def rows(session: Path, table: str) -> list[dict[str, str]]:
    with (session / table).open() as file:
        return list(csv.DictReader(file))


def profiler(session: Path) -> str:
    state: Any = json.loads((session / "metadata.json").read_text())["profilers"]
    return str(state["layer_timing"])


def of(session: Path, component: str) -> list[dict[str, str]]:
    return [row for row in rows(session, "layer_timing.csv") if row["component"] == component]


@pytest.mark.parametrize("graphs", [True, False], ids=["graph", "eager"])
def test_sampled_layers_of_each_step(tmp_path: Path, fake: Path, graphs: bool) -> None:
    printed, session = run(tmp_path, fake, graphs=graphs, experts=True)
    assert printed.startswith("0 ")
    assert profiler(session) == "on"
    attention = of(session, "attention")
    assert {(row["layer_idx"], row["duration_ms"]) for row in attention} == {
        ("0", "0.030000"),
        ("2", "0.030000"),
        ("5", "0.060000"),
    }
    # The newest step is at work until its process ends: it is read then.
    assert [row["step"] for row in attention] == [str(step) for step in range(1, 41) for _ in range(3)]
    assert {row["duration_ms"] for row in of(session, "router")} == {"0.005000"}
    assert {row["duration_ms"] for row in of(session, "experts")} == {"0.050000"}
    assert {row["duration_ms"] for row in of(session, "sampler")} == {"0.250000"}
    assert {row["layer_idx"] for row in of(session, "sampler")} == {""}
    summary = json.loads((session / "layer_summary.json").read_text())
    found = {(part["component"], part.get("kind")): part for part in summary["components"]}
    full = found["attention", "full"]
    assert (full["layers"], full["timed_layers"], full["count"]) == (6, [0, 2, 5], 120)
    assert full["share_is_estimate"] is True
    assert summary["steps_skipped"] == 0
    # 6 layers: attention 40 µs in the mean of the sampled ones, a router 5, experts 50, all else 100.
    forward = summary["forward"]
    assert forward["count"] == 40
    assert forward["mean_ms"] == pytest.approx((5 * 30 + 60 + 6 * 155 + 13 * 10) / 1000, abs=1e-4)
    assert forward["parts"]["attention"]["mean_ms"] == pytest.approx(0.24)
    assert forward["parts"]["moe"]["mean_ms"] == pytest.approx(0.33)
    assert "collectives" not in forward["parts"]
    assert sum(part["total_ms"] for part in forward["parts"].values()) == pytest.approx(forward["total_ms"])
    breakdown = json.loads((session / "breakdown.json").read_text())
    assert breakdown["forward"] == forward


def test_all_layers_of_some_steps(tmp_path: Path, fake: Path) -> None:
    _, session = run(
        tmp_path, fake, experts=True, steps=64, PROFILEMATE_LAYERS="all", PROFILEMATE_LAYERS_EVERY="16"
    )
    attention = of(session, "attention")
    steps = sorted({int(row["step"]) for row in attention})
    # The first one, and one of each sixteen.
    assert [(step - 1) // 16 for step in steps] == [0, 1, 2, 3]
    assert steps[0] == 1
    assert {row["layer_idx"] for row in attention} == {str(layer) for layer in range(6)}
    summary = json.loads((session / "layer_summary.json").read_text())
    assert summary["steps_timed"] == "1/16"
    assert not any(part["share_is_estimate"] for part in summary["components"] if "share_is_estimate" in part)
    assert summary["forward"]["parts"]["attention"]["mean_ms"] == pytest.approx(5 * 0.03 + 0.06)


def test_off_loads_nothing(tmp_path: Path, fake: Path) -> None:
    printed, session = run(tmp_path, fake, PROFILEMATE_LAYERS="off", PROFILEMATE_ENABLE_MOE_EXPERT_TRACKING="0")
    assert printed == "0 [0, 0]\n"
    assert profiler(session) == "off"
    assert not (session / "layer_timing.csv").exists()


@pytest.mark.parametrize("graphs", [True, False], ids=["graph", "eager"])
def test_collectives_behind_sampled_layers(tmp_path: Path, fake: Path, graphs: bool) -> None:
    _, session = run(tmp_path, fake, graphs=graphs, world_size=2)
    found = rows(session, "collective_timing.csv")
    assert {(row["layer_idx"], row["call"], row["duration_ms"]) for row in found} == {
        (layer, call, "0.010000") for layer in ("0", "2", "5") for call in ("call 1", "call 2")
    }
    assert {(row["component"], row["wait_ms"], row["transfer_ms"]) for row in found} == {("all_reduce", "", "")}
    (summary,) = json.loads((session / "collective_summary.json").read_text())["collectives"]
    # One for the embedding, and two for each layer.
    assert summary["per_forward"] == 13
    forward = json.loads((session / "layer_summary.json").read_text())["forward"]
    assert forward["parts"]["collectives"]["mean_ms"] == pytest.approx(0.13)
    assert forward["parts"]["rest"]["mean_ms"] == pytest.approx(forward["mean_ms"] - 0.13 - 0.24)


#: What device code asks of the driver before a graph is captured.
LOADING = ["load", "function", "allocate", "allocate_host", "host_pointer", "zero", "kernel", "stream", "create"]


@pytest.mark.parametrize("function", LOADING)
@pytest.mark.parametrize("after", [0, 1])
def test_whatever_fails_before_the_capture_costs_the_profiler_alone(
    tmp_path: Path, fake: Path, function: str, after: int
) -> None:
    before = f"import ctypes; f = ctypes.CDLL('libcuda.so.1'); f.fake_fail(b'{function}', 2, {after}, 1)"
    printed, session = run(tmp_path, fake, before=before, steps=4)
    assert printed.startswith("0 ")
    state = profiler(session)
    if function in ("create", "kernel", "stream") and state == "on":
        # The events of steps come from the same function, and the clock's thread does without.
        return
    assert state.startswith("could not attach: the CUDA driver cannot"), state
    assert len(rows(session, "forward_pass_timing.csv")) == 4
    assert not (session / "layer_timing.csv").exists()


def test_a_driver_that_keeps_failing_is_left_alone(tmp_path: Path, fake: Path) -> None:
    after = "fake.fake_fail(b'kernel', 700, 0, 1000000)\nfor step in range(41, 81): one(step)"
    _, session = run(tmp_path, fake, after=after, graphs=False)
    assert len(rows(session, "forward_pass_timing.csv")) == 80
    metadata = json.loads((session / "metadata.json").read_text())
    assert metadata["probe_errors"] == 16


def test_a_model_without_known_layers_is_said(tmp_path: Path, fake: Path) -> None:
    before = "import model; model.context.clear()"
    _, session = run(tmp_path, fake, before=before, steps=2)
    assert profiler(session) == "could not attach: the model has no layer that is known here"


def test_dummy_batches_are_not_stamped(tmp_path: Path, fake: Path) -> None:
    after = "worker.execute_dummy_batch()\none(41)"
    _, session = run(tmp_path, fake, after=after, graphs=False)
    assert [row["step"] for row in of(session, "sampler")] == [str(step) for step in range(1, 42)]
    assert len(of(session, "attention")) == 3 * 41


@pytest.mark.parametrize("graphs", [True, False], ids=["graph", "eager"])
def test_sampled_blocks_of_encoders(tmp_path: Path, fake: Path, graphs: bool) -> None:
    _, session = run(tmp_path, fake, graphs=graphs, before=TOWER.format(compiled=""))
    blocks = of(session, "encoder_block")
    # The longest list of the tower, in the steps in which it was called.
    assert {(row["layer_idx"], row["kind"], row["duration_ms"]) for row in blocks} == {
        (layer, "vision_encoder", "0.020000") for layer in ("0", "1", "3")
    }
    assert [row["step"] for row in blocks] == [str(step) for step in range(1, 41, 2) for _ in range(3)]
    assert len(of(session, "attention")) == 3 * 40
    summary = json.loads((session / "layer_summary.json").read_text())
    (found,) = (part for part in summary["components"] if part["component"] == "encoder_block")
    assert (found["layers"], found["timed_layers"]) == (4, [0, 1, 3])
    # It is no part of the forward pass.
    assert "forward_share_pct" not in found
    assert set(summary["forward"]["parts"]) == {"attention", "rest"}


@pytest.mark.parametrize(
    "compiled",
    [
        "tower.do_not_compile = False",
        "blocks[2].do_not_compile = False",
        "del Model._tower_model_names, Model.named_children",
    ],
)
def test_encoders_that_are_compiled_or_unknown_are_left_alone(tmp_path: Path, fake: Path, compiled: str) -> None:
    _, session = run(tmp_path, fake, before=TOWER.format(compiled=compiled), steps=4)
    assert profiler(session) == "on"
    assert of(session, "encoder_block") == []
    assert len(of(session, "attention")) == 3 * 4


CROSS = """
import model
class Cross(model.Attention): attn_type = "encoder_decoder"
for i in range(5): model.context[f"model.decoder.layers.{i}.encoder_attn.attn"] = Cross(20)
model.GPUModelRunner.model = object()
"""


def test_cross_attention_in_full_graphs_is_known_by_its_stamps(tmp_path: Path, fake: Path) -> None:
    _, session = run(tmp_path, fake, before=CROSS)
    assert {row["layer_idx"] for row in of(session, "cross_attention")} == {"0", "2", "4"}
    found = json.loads((session / "encoder_decoder_summary.json").read_text())
    # Five layers of 20 µs, beside attention, what lies between 11 layers, and their collectives.
    share = 100 * 0.1 / (0.1 + 5 * 0.03 + 0.06 + 11 * 0.1 + 23 * 0.01)
    timing = found["cross_attention_timing"]
    assert timing["full_graph_steps"] == 40
    assert timing["stamped_pct"] == pytest.approx(share, abs=0.01)
    assert timing["stamped_is_estimate"] is True
    assert "reason" not in timing
    assert found["cross_attention_pct"] == pytest.approx(share, abs=0.01)
