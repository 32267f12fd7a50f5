"""Experts counted on a GPU that is none, and what the probe makes of every shape of MoE layer that vLLM has had.

The driver and torch are those of `test_gpu.py`; MoE layers are a few lines under vLLM's names. What a real GPU does is
in `benches/gpu/moe.py`, and what real vLLM does on the CPU in `tests/real/test_experts.py`.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from profilemate.probes import moe_experts
from test_gpu import V1_RUNNER, make_fake, metadata, rows, run

#: A model of two MoE layers: 5 experts, of which a token goes to 2. Ids lie in memory that the made-up GPU shares.
MODEL = """
import ctypes, types
from vllm.v1.worker.gpu_worker import Worker
from vllm.v1.worker.gpu_model_runner import GPUModelRunner, fake
EXPERTS, TOP_K = 5, 2
class Tensor:
    def __init__(self, rows, kind, dtype):
        flat = [cell for row in rows for cell in row]
        self.memory = (kind * len(flat))(*flat)
        self.shape, self.dtype = (len(rows), len(rows[0])), dtype
    def contiguous(self): return self
    def data_ptr(self): return ctypes.addressof(self.memory)
class Router:
    top_k, global_num_experts, capture_fn = TOP_K, EXPERTS, None
    def set_capture_fn(self, capture_fn): self.capture_fn = capture_fn
    def select_experts(self, rows):
        ids = Tensor(rows, ctypes.c_int32, "torch.int32")
        if self.capture_fn is not None: self.capture_fn(ids)
        return Tensor([[0.75, 0.25] for _ in rows], ctypes.c_float, "torch.float32"), ids
class MoERunner:
    def __init__(self, layer_id):
        self.layer_id, self.router, self.kept = layer_id, Router(), []
        self.routed_experts = types.SimpleNamespace(quant_method=types.SimpleNamespace(is_monolithic=False))
    def _apply_quant_method(self, rows):
        self.kept.append(self.router.select_experts(rows))
        fake.fake_launch(1, 1000)
LAYERS = [MoERunner(1), MoERunner(3)]
class Model:
    def modules(self): return [self, *LAYERS]
def route(token, layer): return [(token + layer.layer_id) % EXPERTS, (2 * token + layer.layer_id + 1) % EXPERTS]
def forward(tokens):
    for layer in LAYERS: layer._apply_quant_method([route(token, layer) for token in range(tokens)])
def capture_model(runner):
    fake.fake_capture(1, 1)
    forward(8)
    fake.fake_capture(1, 0)
    fake.fake_replay(1)
def model_forward(runner):
    if runner.tokens <= 8: fake.fake_replay(1)
    else: forward(runner.tokens)
execute = GPUModelRunner.execute_model
def execute_model(runner, scheduler_output):
    runner.tokens = scheduler_output.total_num_scheduled_tokens
    return execute(runner, scheduler_output)
GPUModelRunner.capture_model, GPUModelRunner._model_forward = capture_model, model_forward
GPUModelRunner.execute_model = execute_model
GPUModelRunner.get_model = lambda self: Model()
Worker.device = types.SimpleNamespace(type="cuda")
"""

#: One long prompt without a graph, then decodes of six tokens in a graph of eight.
STEPS = 6
TOKENS = [100] + 5 * [6]


def expected(layer: int) -> tuple[Counter[int], Counter[tuple[int, int]]]:
    experts: Counter[int] = Counter()
    pairs: Counter[tuple[int, int]] = Counter()
    for tokens in TOKENS:
        for token in range(tokens):
            chosen = ((token + layer) % 5, (2 * token + layer + 1) % 5)
            experts.update(chosen)
            pairs.update(pair for pair in combinations(sorted(chosen), 2) if pair[0] != pair[1])
    return experts, pairs


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu")
    make_fake(folder)
    return folder


ON = {"PROFILEMATE_MOE_COSELECTION": "1", "PROFILEMATE_MOE_WEIGHTS": "1"}


def test_graphs_and_eager_steps_count_tokens_and_nothing_else(tmp_path: Path, fake: Path) -> None:
    after = "print(fake.fake_broken_captures(), fake.fake_branch_launches())\n"
    printed, session = run(tmp_path, fake, V1_RUNNER, steps=STEPS, before=MODEL, after=after, **ON)
    # Into the graph went a kernel for ids and one for weights of each layer, on a branch that was joined.
    assert printed.splitlines()[-1] == "0 4"
    assert metadata(session)["profilers"]["moe_expert_tracking"] == "on"
    assert metadata(session)["probe_errors"] == 0
    folder = session / "moe_expert_tracking"
    for layer in (1, 3):
        experts, pairs = expected(layer)
        activations = [row for row in rows(folder, "moe_expert_activations.csv") if row["layer_idx"] == str(layer)]
        assert [int(row["activation_count"]) for row in activations] == [experts[expert] for expert in range(5)]
        found = {
            (int(row["expert_id_1"]), int(row["expert_id_2"])): int(row["coselection_count"])
            for row in rows(folder, "moe_expert_coselection.csv")
            if row["layer_idx"] == str(layer)
        }
        assert found == dict(pairs)
        bins = {
            row["bin_min"]: int(row["count"])
            for row in rows(folder, "moe_routing_weights_hist.csv")
            if row["layer_idx"] == str(layer) and row["count"] != "0"
        }
        assert bins == {"0.25": sum(TOKENS), "0.75": sum(TOKENS)}
    summary = json.loads((folder / "moe_summary.json").read_text())
    assert {name: layer["num_tokens"] for name, layer in summary.items()} == {
        "layer_1": sum(TOKENS),
        "layer_3": sum(TOKENS),
    }


def test_nothing_is_asked_for_that_was_not_asked_for(tmp_path: Path, fake: Path) -> None:
    more = {"PROFILEMATE_MOE_LAYERS": "3"}
    _, session = run(tmp_path, fake, V1_RUNNER, steps=STEPS, before=MODEL, **more)
    folder = session / "moe_expert_tracking"
    names = {file.name for file in folder.iterdir()}
    assert names == {"moe_expert_activations.csv", "moe_load_imbalance.csv", "moe_summary.json"}
    assert {row["layer_idx"] for row in rows(folder, "moe_expert_activations.csv")} == {"3"}
    summary = json.loads((folder / "moe_summary.json").read_text())
    assert summary["layers_not_seen"] == {"layer_1": "not in moe_layers"}


def test_long_runs_are_read_beside_the_work(tmp_path: Path, fake: Path) -> None:
    # Every two milliseconds of ticks there is another reading: nobody waits for one, and none is lost.
    before = MODEL + "from profilemate import _native\nwatch = _native.watch_experts\n"
    before += "_native.watch_experts = lambda *a: watch(*a[:3], 0, a[4])\n"
    _, session = run(tmp_path, fake, V1_RUNNER, steps=40, before=before)
    intervals = [
        row for row in rows(session / "moe_expert_tracking", "moe_load_imbalance.csv") if row["layer_idx"] == "1"
    ]
    assert len(intervals) > 5
    assert sum(int(row["num_tokens"]) for row in intervals) == 100 + 39 * 6


@pytest.mark.parametrize("function", ["load", "allocate", "stream", "zero"])
def test_a_driver_that_fails_costs_the_profiler_and_nothing_else(
    tmp_path: Path, fake: Path, function: str
) -> None:
    before = MODEL + f"fake.fake_fail(b'{function}', 2, 0, 1000000)\n"
    _, session = run(tmp_path, fake, V1_RUNNER, steps=STEPS, before=before)
    state = metadata(session)["profilers"]["moe_expert_tracking"]
    assert state.startswith("could not attach: ") and "(error 2)" in state
    assert not (session / "moe_expert_tracking").exists()
    assert len(rows(session, "forward_pass_timing.csv")) == STEPS


def test_a_driver_that_fails_while_it_counts_breaks_no_capture(tmp_path: Path, fake: Path) -> None:
    before = MODEL.replace("    forward(8)\n", "    fake.fake_fail(b'kernel', 700, 1, 2)\n    forward(8)\n")
    after = "print(fake.fake_broken_captures())\n"
    printed, session = run(tmp_path, fake, V1_RUNNER, steps=STEPS, before=before, after=after)
    assert printed.splitlines()[-1] == "0"
    assert metadata(session)["probe_errors"] == 2


@pytest.mark.parametrize("fault", ["raise", "panic"])
def test_a_probe_that_fails_is_caught(tmp_path: Path, fake: Path, fault: str) -> None:
    after = "print(fake.fake_broken_captures(), len(LAYERS[0].kept))\n"
    printed, _ = run(tmp_path, fake, V1_RUNNER, steps=STEPS, before=MODEL, after=after, PROFILEMATE_FAULT=fault)
    assert "0 2" in printed.splitlines()


def test_a_model_without_experts_has_no_folder_and_metadata_says_so(tmp_path: Path, fake: Path) -> None:
    before = MODEL + "GPUModelRunner.get_model = lambda self: types.SimpleNamespace(modules=lambda: [])\n"
    _, session = run(tmp_path, fake, V1_RUNNER, steps=STEPS, before=before)
    assert not (session / "moe_expert_tracking").exists()
    state = metadata(session)["profilers"]["moe_expert_tracking"]
    assert state == "could not attach: the model has no experts"


# What layers look like in one version or another.


class Routing:
    """A router of vLLM 0.17 and newer."""

    top_k, global_num_experts = 2, 12

    def __init__(self, capture_fn: Any = None) -> None:
        self.capture_fn = capture_fn

    def set_capture_fn(self, capture_fn: Any) -> None:
        self.capture_fn = capture_fn


def model_of(*modules: Any) -> Any:
    return SimpleNamespace(modules=lambda: modules)


def method(is_monolithic: bool = False, experts: Any = None) -> Any:
    kernel = SimpleNamespace(impl=SimpleNamespace(fused_experts=experts))
    return SimpleNamespace(is_monolithic=is_monolithic, moe_kernel=kernel)


def modern(**more: Any) -> Any:
    """As vLLM 0.24 and newer have it."""
    routed = SimpleNamespace(quant_method=method(), routing_sink=None)
    return SimpleNamespace(router=Routing(), routed_experts=routed, layer_id=4, **more)


def shapes(*modules: Any) -> list[tuple[int, int, int, str | None]]:
    return [
        (layer.index, layer.experts, layer.top_k, layer.blind) for layer in moe_experts._layers(model_of(*modules))
    ]


def test_layers_of_every_version_are_found() -> None:
    eplb = modern(moe_config=SimpleNamespace(num_logical_experts=8, experts_per_token=2))
    source = SimpleNamespace(capture_fn=None, layer_id=7, n_routed_experts=64, top_k=6)
    fused = SimpleNamespace(
        layer_name="model.layers.11.mlp.experts",
        quant_method=method(),
        select_experts=None,
        global_num_experts=16,
        top_k=4,
    )
    silent = SimpleNamespace(router=Routing(), quant_method=method(), layer_id=2)
    silent.router.top_k = 0
    attention = SimpleNamespace(layer_name="model.layers.0.self_attn", router=None)
    assert shapes(modern(), eplb, source, fused, attention) == [
        (4, 12, 2, None),
        (4, 8, 2, None),
        (7, 64, 6, None),
        (11, 16, 4, None),
    ]
    assert shapes(silent) == [(2, 12, 0, "SimpleNamespace does not say how many experts it has")]


def listened(module: Any) -> list[str]:
    heard: list[str] = []
    moe_experts._listen(module, lambda ids: heard.append(f"ours {ids}"))
    return heard


def test_who_was_told_before_is_told_still() -> None:
    theirs: list[Any] = []
    layer = modern()
    layer.router.capture_fn = theirs.append
    heard = listened(layer)
    layer.router.capture_fn("ids")
    source = SimpleNamespace(capture_fn=theirs.append, layer_id=7)
    heard_of_source = listened(source)
    source.capture_fn("more")
    assert (heard, heard_of_source, theirs) == (["ours ids"], ["ours more"], ["ids", "more"])


def test_a_layer_that_is_its_own_router_is_heard() -> None:
    """vLLM 0.14."""

    class FusedMoE:
        layer_id, quant_method, global_num_experts, top_k = 0, method(), 8, 2

        def _select_experts(self, hidden: str, logits: str) -> tuple[str, str]:
            return hidden, logits

        select_experts = _select_experts

    layer = FusedMoE()
    heard = listened(layer)
    assert layer._select_experts("weights", "ids") == ("weights", "ids")
    assert heard == ["ours ids"]
    older = SimpleNamespace(select_experts=None, quant_method=method())
    with pytest.raises(moe_experts.BlindError, match=r"before 0\.14"):
        listened(older)


class TrtLlmExperts:
    moe_config = "config"

    def __init__(self, supports: bool) -> None:
        self.supports_routing_replay_capture = lambda: supports


def test_kernels_that_route_by_themselves_tell_or_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = modern()
    layer.routed_experts.quant_method = method(is_monolithic=True, experts=TrtLlmExperts(supports=False))
    with pytest.raises(moe_experts.BlindError, match="TrtLlmExperts routes by itself"):
        listened(layer)
    # vLLM 0.28: the kernel has a function of its own.
    experts: Any = TrtLlmExperts(supports=True)
    experts.capture_fn = None
    experts.set_capture_fn = lambda told: setattr(experts, "capture_fn", told)
    layer.routed_experts.quant_method = method(is_monolithic=True, experts=experts)
    heard = listened(layer)
    experts.capture_fn("ids")
    assert heard == ["ours ids"]
    # vLLM 0.33: the layer has a sink.
    capturer: Any = ModuleType("capturer")
    capturer.RoutedExpertsSink = lambda config, told: SimpleNamespace(config=config, capture_fn=told)
    monkeypatch.setitem(sys.modules, "vllm.model_executor.layers.fused_moe.routed_experts_capturer", capturer)
    layer.routed_experts.quant_method = method(is_monolithic=True, experts=TrtLlmExperts(supports=True))
    heard = listened(layer)
    heard_too = listened(layer)
    layer.routed_experts.routing_sink.capture_fn("ids")
    assert (heard, heard_too, layer.routed_experts.routing_sink.config) == (["ours ids"], ["ours ids"], "config")


def placement(monkeypatch: pytest.MonkeyPatch, tensor_rank: int = 0, **config: Any) -> moe_experts._Placement:
    state: Any = ModuleType("parallel_state")
    state.get_tensor_model_parallel_rank = lambda: tensor_rank
    monkeypatch.setitem(sys.modules, "vllm.distributed.parallel_state", state)
    return moe_experts._Placement(SimpleNamespace(**config))


def in_batch(monkeypatch: pytest.MonkeyPatch, tokens: list[int], shards: list[int] | None = None) -> None:
    """The forward context of a batch with so many tokens on each data-parallel rank."""
    context: Any = ModuleType("forward_context")
    data = SimpleNamespace(num_tokens_across_dp_cpu=tokens, local_sizes=shards)
    context.get_forward_context = lambda: SimpleNamespace(dp_metadata=data)
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    monkeypatch.setitem(sys.modules, "vllm.forward_context", context)


def test_one_rank_of_tensor_parallelism_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert placement(monkeypatch, 0, tensor_parallel_size=2).counts
    assert not placement(monkeypatch, 1, tensor_parallel_size=2).counts
    assert placement(monkeypatch, 0, tensor_parallel_size=2).of(17) == (0, 0)


def test_each_data_parallel_rank_counts_its_own_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layouts of vLLM's `RoutedExpertsCapturer`."""
    second = placement(monkeypatch, data_parallel_size=3, data_parallel_rank=1)
    in_batch(monkeypatch, [4, 6, 5])
    assert second.of(6) == (0, 0), "only its own"
    assert second.of(15) == (4, 0), "those of all ranks, one behind the other"
    with pytest.raises(moe_experts.BlindError, match="a batch of 9 rows"):
        second.of(9)


def test_sequence_parallel_ranks_count_their_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    spread = {
        "tensor_parallel_size": 2,
        "data_parallel_size": 2,
        "data_parallel_rank": 1,
        "use_sequence_parallel_moe": True,
    }
    first, second = placement(monkeypatch, 0, **spread), placement(monkeypatch, 1, **spread)
    assert first.counts and second.counts
    in_batch(monkeypatch, [4, 7], shards=[2, 2, 4, 4])
    assert (first.of(4), second.of(4)) == ((0, 0), (0, 4)), "a shard each"
    everything = 12
    assert first.of(everything) == (4, 0), "the shards of all, of which one rank counts those of its engine"
    assert second.of(everything)[1] > everything, "and the other none"
