"""Encoders, decoder and cross-attention on a GPU that is none, with model runners in the shape of V1 and V2.

The driver and torch are those of `test_gpu.py`. What a real vLLM does is in `real/test_encoders.py`, a real GPU in
`benches/gpu/encoder.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.vllm import environment
from support.vllm import profilemate as run_profilemate
from test_gpu import MODE, SITE, V2_CONNECTOR, WORKER, make_fake, metadata, rows

INTERFACES = """
class SupportsMultiModal:
    supports_multimodal = True
    def _mark_tower_model(self, vllm_config, modalities): pass
"""
#: Models, and a layer of attention. An image takes an encoder 5 ms, a sound 8 ms, a layer's cross-attention 0.25 ms.
MODELS = (
    MODE
    + """
from vllm.model_executor.models.interfaces import SupportsMultiModal

class Tensor:
    def __init__(self, *shape): self.shape = shape

class Module:
    def __init__(self, **children):
        self.children = children
        vars(self).update(children)
    def named_children(self): return list(self.children.items())
    def named_modules(self): return [("", self), *self.children.items()]

class Vision(SupportsMultiModal, Module):
    "As vLLM 0.17 and newer have them."
    def __init__(self):
        super().__init__(visual=Module(), language_model=Module())
        self._mark_tower_model(None, {"image", "video"})
        self._tower_model_names, self._language_model_names = ["visual"], ["language_model"]
    def get_mm_mapping(self):
        parts = {"connector": ["visual.merger"], "tower_model": ["visual."]}
        return types.SimpleNamespace(language_model=["language_model"], **parts)
    def embed_multimodal(self, **given):
        launch(5 * given["pixel_values"])
        return [Tensor(12, 64)] * given["pixel_values"]

class Sound(Vision):
    def __init__(self):
        Module.__init__(self, audio_tower=Module(), projector=Module(), language_model=Module())
        self._mark_tower_model(None, "audio")
        self._tower_model_names, self._language_model_names = ["audio_tower"], ["language_model"]
    get_mm_mapping = None
    def embed_multimodal(self, **given):
        launch(8 * given["input_features"])
        return Tensor(given["input_features"], 30, 64)

class Omni(Vision):
    def __init__(self):
        Module.__init__(self, visual=Module(), audio_tower=Module(), language_model=Module())
        self._mark_tower_model(None, {"image"})
        self._mark_tower_model(None, "audio")
        self._tower_model_names, self._language_model_names = ["visual", "audio_tower"], ["language_model"]
    get_mm_mapping = None
    def embed_multimodal(self, **given):
        return Sound.embed_multimodal(self, **given) if "input_features" in given else super().embed_multimodal(**given)

class Old(Module):
    "As vLLM 0.11 has them: no word of the model's on what its parts are, and another name for the call."
    supports_multimodal = True
    def __init__(self):
        super().__init__(vision_tower=Module(), multi_modal_projector=Module(), language_model=Module())
    def get_language_model(self): return self.language_model
    def get_multimodal_embeddings(self, **given): return Vision.embed_multimodal(self, **given)

class Inner:
    def get_encoder_outputs(self, input_features):
        if input_features: launch(8 * input_features)
        return Tensor(input_features or 0, 1500, 64)

class OldWhisper(Module):
    "The encoder is called inside of the forward pass."
    supports_multimodal = True
    def __init__(self):
        super().__init__(encoder=Module(), decoder=Module())
        self.model = Inner()
    def get_language_model(self): return self.decoder
    def get_multimodal_embeddings(self, **given): return self.model.get_encoder_outputs(**given)

class Text(Module):
    def __init__(self): super().__init__(layers=Module())

class Broken(Text):
    supports_multimodal = True
    def get_language_model(self): raise NotImplementedError

class Attention:
    def __init__(self, kind):
        self.attn_type, self.impl = kind, self
    def forward(self, layer, query): launch(0.25)
"""
)
GRAPHS = """
from models import Tensor, launch
class EncoderCudaGraphManager:
    graph_hits = graph_misses = 0
    def __init__(self, model): self.model = model
    def execute(self, mm_kwargs):
        images = mm_kwargs["pixel_values"]
        if images > 2:
            self.graph_misses += images
            # A part of this call.
            return self.model.embed_multimodal(**mm_kwargs)
        self.graph_hits += images
        launch(3 * images)
        return [Tensor(12, 64)] * images
"""
#: What both runners do alike.
COMMON = """
from models import *
NAMES = {"image": "pixel_values", "audio": "input_features"}
def encode(runner, scheduled):
    for modality, count in scheduled.scheduled_encoder_inputs:
        given = {NAMES[modality]: count}
        if runner.graphs is not None: runner.graphs.execute(given)
        else: runner.model.embed_multimodal(**given)
def forward(runner, scheduled):
    if isinstance(runner.model, OldWhisper):
        runner.model.model.get_encoder_outputs(sum(count for _, count in scheduled.scheduled_encoder_inputs))
    launch(3)
    if scheduled.descriptor == NONE:
        for layer in runner.layers: layer.impl.forward(layer, None)
class Descriptor:
    num_reqs, uniform, uniform_token_count, has_lora = 8, True, 1, False
    def __init__(self, mode, num_tokens): self.cg_mode, self.num_tokens = mode, num_tokens
"""
V1 = (
    COMMON
    + """
class GPUModelRunner:
    def get_model(self): return self.model
    def capture_model(self): self._dummy_run(8)
    def _dummy_run(self, num_tokens, cudagraph_runtime_mode=None):
        if hasattr(self.model, "embed_multimodal"): self.model.embed_multimodal(pixel_values=7, input_features=7)
    def _determine_batch_execution_and_padding(self, scheduled):
        return scheduled.descriptor, Descriptor(scheduled.descriptor, 8)
    def _model_forward(self, scheduled): forward(self, scheduled)
    def execute_model(self, scheduled, intermediate_tensors=None):
        self._determine_batch_execution_and_padding(scheduled)
        if not isinstance(self.model, OldWhisper): encode(self, scheduled)
        launch(0.5)
        self._model_forward(scheduled)
    def _sample(self): launch(0.25)
    def _bookkeeping_sync(self): pass
    def sample_tokens(self, grammar_output): self._sample(); self._bookkeeping_sync()
"""
)
V2 = (
    COMMON
    + """
from vllm.v1.worker.gpu.kv_connector import KVConnector
def dispatch_cg_and_sync_dp(scheduled): return Descriptor(scheduled.descriptor, 8), None
class GPUModelRunner:
    kv_connector = KVConnector()
    def get_model(self): return self.model
    def capture_model(self): self._dummy_run()
    def _dummy_run(self): pass
    def execute_model(self, scheduled, intermediate_tensors=None, dummy_run=False):
        dispatch_cg_and_sync_dp(scheduled)
        encode(self, scheduled)
        launch(0.5)
        self.kv_connector.pre_forward(scheduled)
        forward(self, scheduled)
    def sample(self): launch(0.25)
    def postprocess_sampled(self): pass
    def sample_tokens(self, grammar_output): self.sample(); self.postprocess_sampled()
"""
)
#: Inputs come in steps 2, 5, 10, …; from step 21 on steps are in full graphs, if there are such.
RUN = """
import sys, types, torch
import vllm.v1.worker.gpu_model_runner
from vllm.v1.worker.gpu_worker import Worker
from {module} import GPUModelRunner, fake, launch, FULL, NONE
import models
from vllm.v1.worker.encoder_cudagraph import EncoderCudaGraphManager
class config:
    class parallel_config: data_parallel_rank, world_size = 0, 1
    class model_config: model, is_encoder_decoder = "tiny", {whisper}
    class compilation_config: static_forward_context = {{}}
class Runner(GPUModelRunner): pass
def make_runner(self):
    runner = GPUModelRunner()
    runner.model = models.{model}()
    runner.graphs = EncoderCudaGraphManager(runner.model) if {graphs} else None
    runner.layers = [models.Attention("encoder_decoder") for _ in range({layers})]
    layers = [*runner.layers, models.Attention("decoder")]
    config.compilation_config.static_forward_context.update(enumerate(layers))
    return runner
Worker.make_runner = make_runner
worker = Worker(config, 0, 0)
worker.load_model()
worker.compile_or_warm_up_model()
for step in range(1, 41):
    inputs = {inputs} if step == 2 or step % 5 == 0 else []
    output = types.SimpleNamespace(
        profilemate_step=step, total_num_scheduled_tokens=6, num_scheduled_tokens={{"a": 6}},
        scheduled_encoder_inputs=inputs, descriptor=FULL if {full} and step > 20 else NONE)
    fake.fake_advance(2_000_000)
    worker.model_runner.execute_model(output)
    worker.model_runner.sample_tokens(None)
    fake.fake_advance(40_000_000)
{after}
from profilemate import _native
counters = _native.cuda_counters()
assert counters is None or counters[0] == 0, counters
"""
V1_MODULE, V2_MODULE = "vllm.v1.worker.gpu_model_runner", "vllm.v1.worker.gpu.model_runner"
STEPS_WITH_INPUTS = [2, *range(5, 41, 5)]


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the made-up driver, torch, vLLM and models."""
    folder = tmp_path_factory.mktemp("encoder")
    make_fake(folder)
    modules = {
        "models.py": MODELS,
        "vllm/model_executor/models/interfaces.py": INTERFACES,
        "vllm/v1/worker/gpu_worker.py": WORKER,
        "vllm/v1/worker/gpu_model_runner.py": V1,
        "vllm/v1/worker/gpu/kv_connector.py": V2_CONNECTOR,
        "vllm/v1/worker/gpu/model_runner.py": V2,
        "vllm/v1/worker/encoder_cudagraph.py": GRAPHS,
    }
    for name, text in modules.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        for parent in file.relative_to(folder).parents[:-1]:
            (folder / parent / "__init__.py").touch()
    return folder


def run(tmp_path: Path, fake: Path, module: str = V1_MODULE, **more: Any) -> Path:
    """Runs a worker; the session."""
    what: dict[str, Any] = {
        "model": "Vision",
        "inputs": [("image", 2)],
        "graphs": False,
        "layers": 0,
        "full": False,
        "whisper": False,
        "after": "",
        "variables": {},
        **more,
    }
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(module=module, **what)],
        capture_output=True,
        text=True,
        check=False,
        env=environment(
            tmp_path,
            PYTHONPATH=os.pathsep.join([SITE, str(fake)]),
            LD_LIBRARY_PATH=str(fake),
            PROFILEMATE_COLLECTOR="none",
            **what["variables"],
        ),
    )
    assert done.returncode == 0, done.stderr
    (session,) = tmp_path.glob("session_*")
    run_profilemate("export", str(session))
    return session


def table(session: Path, component: str) -> list[dict[str, str]]:
    found = rows(session, "encoder_decoder_timing.csv")
    return [row for row in found if row["component"] == component]


def summary(session: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((session / "encoder_decoder_summary.json").read_text())
    return found


def near(milliseconds: float) -> Any:
    return pytest.approx(milliseconds, abs=1e-3)


@pytest.mark.parametrize("module", [V1_MODULE, V2_MODULE], ids=["v1", "v2"])
def test_encoder_and_decoder_have_their_times_by_the_gpus_clock(tmp_path: Path, fake: Path, module: str) -> None:
    session = run(tmp_path, fake, module)
    encoder, decoder = table(session, "encoder"), table(session, "decoder")
    # Not what was called before the first request.
    assert [int(row["step"]) for row in encoder] == STEPS_WITH_INPUTS
    for row in encoder:
        assert (row["context"], row["num_items"], row["num_tokens"]) == ("vision_encoder", "2", "24")
        assert (row["timing"], row["graph_hits"]) == ("events", "")
        assert float(row["duration_ms"]) == near(10)
    assert len(decoder) == 40
    for row in decoder:
        assert (row["context"], row["num_tokens"], row["timing"]) == ("language_model", "6", "events")
        assert float(row["duration_ms"]) == near(3)
    found = summary(session)
    assert found["model_type"] == "vision_language"
    assert found["components"] == {
        "vision_encoder": "visual",
        "connector": "visual.merger",
        "language_model": "language_model",
    }
    assert found["encoder"]["count"] == found["encoder_steps"] == 9
    assert found["encoder_pct"] == pytest.approx(100 * 90 / 210, abs=0.01)
    assert found["encoder_pct"] + found["decoder_pct"] == pytest.approx(100)
    assert found["cross_attention_pct"] == 0
    assert metadata(session)["profilers"]["encoder_decoder_timing"] == "on"
    # What a step is otherwise said to be does not change: the encoder is no idle time and no forward pass.
    for row in rows(session, "forward_pass_timing.csv")[2:]:
        assert float(row["forward_time_ms"]) == near(3)
        # 42 ms from step to step, of which the GPU is busy for 3.25 from the forward pass on.
        after = 10 if int(row["step"]) - 1 in STEPS_WITH_INPUTS else 0
        assert float(row["gpu_idle_before_ms"]) == near(42 - 3.25 - after)
    (gpu,) = [worker["gpu"] for worker in json.loads((session / "breakdown.json").read_text())["workers"]]
    assert gpu["parts"]["encoder"]["total_ms"] == near(90)


def test_inputs_in_encoder_graphs_and_past_them(tmp_path: Path, fake: Path) -> None:
    session = run(tmp_path, fake, graphs=True, inputs=[("image", 2), ("image", 3)])
    encoder = table(session, "encoder")
    assert [(row["num_items"], row["graph_hits"], row["graph_misses"]) for row in encoder[:4]] == 2 * [
        ("2", "2", "0"),
        ("3", "0", "3"),
    ]
    # A call inside of a call is not told again, and has no time of its own.
    assert [float(row["duration_ms"]) for row in encoder[:4]] == [near(6), near(15)] * 2
    assert summary(session)["encoder_cuda_graphs"] == {"hits": 18, "misses": 27}


def test_a_model_that_hears_and_sees_says_which_it_did(tmp_path: Path, fake: Path) -> None:
    session = run(tmp_path, fake, V2_MODULE, model="Omni", inputs=[("audio", 1), ("image", 1)])
    encoder = table(session, "encoder")
    assert [(row["context"], float(row["duration_ms"]), row["num_tokens"]) for row in encoder[:2]] == [
        ("audio_encoder", near(8), "30"),
        ("vision_encoder", near(5), "12"),
    ]
    found = summary(session)
    assert found["model_type"] == "vision_language"
    assert {name: of["num_items"] for name, of in found["encoders"].items()} == {
        "audio_encoder": 9,
        "vision_encoder": 9,
    }
    assert found["components"]["audio_encoder"] == "audio_tower"


@pytest.mark.parametrize(
    ("model", "kind", "components"),
    [
        ("Text", "decoder_only", {"language_model": "the model"}),
        (
            "Sound",
            "audio_language",
            {"audio_encoder": "audio_tower", "connector": "projector", "language_model": "language_model"},
        ),
        (
            "Old",
            "vision_language",
            {
                "vision_encoder": "vision_tower",
                "connector": "multi_modal_projector",
                "language_model": "language_model",
            },
        ),
    ],
)
def test_what_kind_of_model_it_is(
    tmp_path: Path, fake: Path, model: str, kind: str, components: dict[str, str]
) -> None:
    found = summary(run(tmp_path, fake, model=model, inputs=[]))
    assert (found["model_type"], found["components"]) == (kind, components)
    assert (found["encoder_pct"], found["decoder_pct"], found["cross_attention_pct"]) == (0, 100, 0)
    assert found["decoder"]["count"] == 40


def test_an_encoder_inside_of_the_forward_pass_is_not_the_decoder(tmp_path: Path, fake: Path) -> None:
    session = run(tmp_path, fake, model="OldWhisper", whisper=True, inputs=[("audio", 1)])
    assert {float(row["forward_time_ms"]) for row in rows(session, "forward_pass_timing.csv")} == {3, 11}
    assert [float(row["duration_ms"]) for row in table(session, "decoder")] == 40 * [near(3)]
    with_inputs = [row for row in table(session, "encoder") if int(row["num_items"])]
    assert [float(row["duration_ms"]) for row in with_inputs] == 9 * [near(8)]
    assert summary(session)["model_type"] == "encoder_decoder"


def test_cross_attention_is_timed_in_some_steps_and_all_layers(tmp_path: Path, fake: Path) -> None:
    session = run(tmp_path, fake, V2_MODULE, model="Sound", whisper=True, layers=4, inputs=[("audio", 1)])
    cross = table(session, "cross_attention")
    assert [(row["step"], row["layers"], float(row["duration_ms"])) for row in cross] == [
        ("1", "4", near(1)),
        ("17", "4", near(1)),
        ("33", "4", near(1)),
    ]
    found = summary(session)
    # A part of the decoder's 4 ms, in steps of 4 ms and 9 encoders of 8 ms.
    assert found["cross_attention_pct"] == pytest.approx(25 * found["decoder_pct"] / 100, abs=0.01)
    assert found["cross_attention_timing"] == {
        "layers": 4,
        "measured_steps": 3,
        "of_decoder_pct": pytest.approx(25, abs=0.01),
        "full_graph_steps": 0,
    }


def test_cross_attention_in_full_graphs_is_said_to_be_unknown(tmp_path: Path, fake: Path) -> None:
    session = run(tmp_path, fake, model="Sound", whisper=True, layers=4, full=True, inputs=[])
    assert [row["step"] for row in table(session, "cross_attention")] == ["1", "17"]
    found = summary(session)
    assert "cross_attention_pct" not in found
    assert found["cross_attention_timing"]["reason"] == (
        "20 of 40 steps ran in a full CUDA graph, inside which nothing can be timed from Python"
    )


#: What vLLM's thread asks of the driver.
CALLS = """
asked = [fake.fake_host_calls(name.encode()) for name in ("context", "capturing", "record", "query", "elapsed")]
# 40 steps with their 5 marks, and 9 calls of encoders with 2.
# And once what is loaded before.
assert asked == [50, 50, 40 * 5 + 9 * 2, 0, 0], asked
assert torch._C.asked == 41
"""


def test_what_a_call_of_an_encoder_asks_on_vllms_thread(tmp_path: Path, fake: Path) -> None:
    run(tmp_path, fake, after=CALLS)


def test_without_events_the_host_times_them(tmp_path: Path, fake: Path) -> None:
    session = run(tmp_path, fake, variables={"PROFILEMATE_TIMING": "lightweight"})
    assert {row["timing"] for row in table(session, "encoder")} == {"wall"}
    assert len(table(session, "encoder")) == 9


def test_alone_it_needs_no_other_profiler(tmp_path: Path, fake: Path) -> None:
    others = ("FORWARD_PASS_TIMING", "CPU_TIMING", "CUDA_GRAPH_TRACKING")
    session = run(tmp_path, fake, variables={f"PROFILEMATE_ENABLE_{name}": "0" for name in others})
    assert [float(row["duration_ms"]) for row in table(session, "encoder")] == 9 * [near(10)]
    assert [float(row["duration_ms"]) for row in table(session, "decoder")] == 40 * [near(3)]
    assert not (session / "forward_pass_timing.csv").exists()


def test_switched_off_there_is_no_table(tmp_path: Path, fake: Path) -> None:
    session = run(tmp_path, fake, variables={"PROFILEMATE_ENABLE_ENCODER_DECODER_TIMING": "0"})
    assert not list(session.glob("encoder_decoder*"))
    assert metadata(session)["profilers"]["encoder_decoder_timing"] == "off"
    assert len(rows(session, "forward_pass_timing.csv")) == 40


def test_a_model_that_cannot_be_looked_into_is_said_to_be_one(tmp_path: Path, fake: Path) -> None:
    session = run(tmp_path, fake, model="Broken", inputs=[])
    assert metadata(session)["profilers"]["encoder_decoder_timing"] == (
        "could not attach: Broken has no embed_multimodal"
    )
    assert not (session / "encoder_decoder_timing.csv").exists()
