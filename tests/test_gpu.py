"""Steps timed on a GPU that is none: the real hooks and the real extension module on a made-up CUDA driver.

The driver is `crates/cuda/tests/fake/fake_cuda.c`, whose clock the test moves; the model runners are a few lines under
vLLM's names, in the shape of V1 and V2. What a real GPU and a real vLLM do is in `benches/gpu`.
"""

from __future__ import annotations

import ast
import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import profilemate
from support.vllm import environment
from support.vllm import profilemate as run_profilemate

ROOT = Path(__file__).parent.parent
SITE = str(Path(profilemate.__file__).parent / "sitecustomize")

TORCH = """
import types, sys
__version__ = "9.9"
class _C:
    asked = 0
    @staticmethod
    def _cuda_getCurrentRawStream(device):
        _C.asked += 1
        return 1
cuda = types.SimpleNamespace(
    is_available=lambda: True, is_initialized=lambda: True, current_device=lambda: 0,
    get_device_name=lambda device: "Fake GPU", device_count=lambda: 1)
"""
WORKER = """
class Worker:
    def __init__(self, vllm_config, local_rank=0, rank=0):
        self.vllm_config = vllm_config
    def load_model(self):
        self.model_runner = self.make_runner()
    def compile_or_warm_up_model(self):
        self.model_runner.capture_model()
    def execute_dummy_batch(self):
        self.model_runner._dummy_run(8)
"""
MODE = """
import ctypes, types
fake = ctypes.CDLL("libcuda.so.1")
fake.fake_launch.argtypes = [ctypes.c_size_t, ctypes.c_uint64]
fake.fake_advance.argtypes = [ctypes.c_uint64]
fake.fake_calls.restype = fake.fake_host_calls.restype = ctypes.c_uint64
FULL = types.SimpleNamespace(_value_=2, name="FULL")
NONE = types.SimpleNamespace(_value_=0, name="NONE")
def launch(milliseconds): fake.fake_launch(1, int(milliseconds * 1e6))
"""
V1 = (
    MODE
    + """
class Descriptor:
    def __init__(self, num_tokens):
        self.num_tokens, self.num_reqs, self.uniform, self.has_lora = num_tokens, 8, True, False
class GPUModelRunner:
    def capture_model(self):
        self._dummy_run(8, cudagraph_runtime_mode=FULL, uniform_decode=True)
    def _dummy_run(self, num_tokens, cudagraph_runtime_mode=None, uniform_decode=False):
        captures = cudagraph_runtime_mode is FULL
        fake.fake_capture(1, captures)
        self._model_forward()
        if captures: fake.fake_capture(1, 0)
    def _determine_batch_execution_and_padding(self, tokens):
        return (FULL, Descriptor(8)) if tokens <= 8 else (NONE, Descriptor(tokens))
    def launch_model(self):
        launch(3)
    def _model_forward(self):
        self.launch_model()
    def execute_model(self, scheduler_output, intermediate_tensors=None):
        self._determine_batch_execution_and_padding(scheduler_output.total_num_scheduled_tokens)
        self._model_forward()
        launch(0.5)
    def _sample(self):
        launch(0.25)
    def _bookkeeping_sync(self): pass
    def propose_draft_token_ids(self): launch(0.125)
    def sample_tokens(self, grammar_output):
        self._sample(); self._bookkeeping_sync(); self.propose_draft_token_ids()
class AsyncGPUModelRunnerOutput:
    def get_output(self): pass
"""
)
V2_CONNECTOR = """
class KVConnector:
    def pre_forward(self, scheduler_output): pass
class ActiveKVConnector(KVConnector):
    def pre_forward(self, scheduler_output): pass
"""
V2 = (
    MODE
    + """
from vllm.v1.worker.gpu.kv_connector import KVConnector
class Descriptor:
    def __init__(self, mode, num_tokens):
        self.cg_mode, self.num_tokens, self.num_reqs, self.uniform_token_count = mode, num_tokens, 8, 1
def dispatch_cg_and_sync_dp(tokens):
    return (Descriptor(FULL, 8) if tokens <= 8 else Descriptor(NONE, tokens)), None
class GPUModelRunner:
    kv_connector = KVConnector()
    def capture_model(self): pass
    def _dummy_run(self): pass
    def execute_model(self, scheduler_output, intermediate_tensors=None, dummy_run=False):
        launch(0.5)
        dispatch_cg_and_sync_dp(scheduler_output.total_num_scheduled_tokens)
        self.kv_connector.pre_forward(scheduler_output)
        launch(3)
    def sample(self): launch(0.25)
    def postprocess_sampled(self): pass
    def sample_tokens(self, grammar_output):
        self.sample(); self.postprocess_sampled(); launch(0.125)
"""
)
RUN = """
import types, torch
from vllm.v1.worker.gpu_worker import Worker
{runner}
Worker.make_runner = lambda self: GPUModelRunner()
class config:
    class parallel_config: data_parallel_rank, world_size = 0, 1
    class model_config: model = "tiny"
worker = Worker(config, 0, 0)
worker.load_model()
worker.compile_or_warm_up_model()
for step in range(1, {steps} + 1):
    tokens = 100 if step == 1 else 6
    output = types.SimpleNamespace(
        profilemate_step=step, total_num_scheduled_tokens=tokens, num_scheduled_tokens={{"a": tokens}})
    fake.fake_advance(2_000_000)
    worker.model_runner.execute_model(output)
    worker.model_runner.sample_tokens(None)
    fake.fake_advance(10_000_000)
from profilemate import _native
print(_native.cuda_counters())
"""
V1_RUNNER = "from vllm.v1.worker.gpu_model_runner import GPUModelRunner, fake"
V2_RUNNER = (
    "import vllm.v1.worker.gpu_model_runner\nfrom vllm.v1.worker.gpu.model_runner import GPUModelRunner, fake"
)


def make_fake(folder: Path) -> None:
    """Puts the made-up driver, torch and vLLM into a folder."""
    source = ROOT / "crates" / "cuda" / "tests" / "fake" / "fake_cuda.c"
    flags = ["-O1", "-shared", "-fPIC", "-pthread", "-Wl,-soname,libcuda.so.1"]
    subprocess.run(["cc", *flags, "-o", str(folder / "libcuda.so.1"), str(source)], check=True)
    modules = {
        "torch.py": TORCH,
        "vllm/v1/worker/gpu_worker.py": WORKER,
        "vllm/v1/worker/gpu_model_runner.py": V1,
        "vllm/v1/worker/gpu/kv_connector.py": V2_CONNECTOR,
        "vllm/v1/worker/gpu/model_runner.py": V2,
    }
    for name, text in modules.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        for parent in file.relative_to(folder).parents[:-1]:
            (folder / parent / "__init__.py").touch()


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the made-up driver, torch and vLLM."""
    folder = tmp_path_factory.mktemp("gpu")
    make_fake(folder)
    return folder


def run(
    tmp_path: Path, fake: Path, runner: str, steps: int = 6, before: str = "", after: str = "", **more: str
) -> tuple[str, Path]:
    """Runs a worker; what it printed, and the session."""
    done = subprocess.run(
        [sys.executable, "-c", before + RUN.format(runner=runner, steps=steps) + after],
        capture_output=True,
        text=True,
        check=True,
        env=environment(
            tmp_path,
            PYTHONPATH=os.pathsep.join([SITE, str(fake)]),
            LD_LIBRARY_PATH=str(fake),
            PROFILEMATE_COLLECTOR="none",
            **more,
        ),
    )
    (session,) = tmp_path.glob("session_*")
    run_profilemate("export", str(session))
    return done.stdout + done.stderr, session


def rows(session: Path, table: str) -> list[dict[str, str]]:
    with (session / table).open() as file:
        return list(csv.DictReader(file))


def metadata(session: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((session / "metadata.json").read_text())
    return found


@pytest.mark.parametrize("runner", [V1_RUNNER, V2_RUNNER], ids=["v1", "v2"])
def test_each_step_has_its_times_by_the_gpus_clock(tmp_path: Path, fake: Path, runner: str) -> None:
    printed, session = run(tmp_path, fake, runner)
    errors, _, exhausted, capturing, lost, events = ast.literal_eval(printed)
    assert (errors, exhausted, capturing, lost) == (0, 0, 0, 0)
    assert 5 <= events <= 60
    found = rows(session, "forward_pass_timing.csv")
    assert [row["step"] for row in found] == [str(step) for step in range(1, 7)]
    assert {row["timing"] for row in found} == {"events"}
    for row in found:
        assert float(row["forward_time_ms"]) == pytest.approx(3.0, abs=1e-3)
        assert float(row["sample_time_ms"]) == pytest.approx(0.25, abs=1e-3)
    # 12 ms pass between two steps, of which the step itself takes 3.875 before the bubble begins.
    busy, idle = (3.875, 8.125) if runner == V1_RUNNER else (3.375, 8.625)
    for row in found:
        assert float(row["gpu_busy_ms"]) == pytest.approx(busy, abs=1e-3)
    # The first step waits for what the capture left running.
    for row in found[2:]:
        assert float(row["gpu_idle_before_ms"]) == pytest.approx(idle, abs=1e-3)
    assert metadata(session)["timing_mode"] == "events"
    assert metadata(session)["gpu"] == {"name": "Fake GPU", "driver": "CUDA 13.0", "count": 1}


@pytest.mark.parametrize("runner", [V1_RUNNER, V2_RUNNER], ids=["v1", "v2"])
def test_what_each_step_was_dispatched_as(tmp_path: Path, fake: Path, runner: str) -> None:
    _, session = run(tmp_path, fake, runner)
    assert [row["cudagraph_mode"] for row in rows(session, "forward_pass_timing.csv")] == ["NONE"] + 5 * ["FULL"]
    full, none = rows(session, "cuda_graph_usage.csv")
    assert (full["runtime_mode"], full["num_tokens"], full["num_reqs"], full["uniform"]) == (
        "FULL",
        "8",
        "8",
        "True",
    )
    assert (full["replay_count"], full["real_tokens"], full["padding_tokens"]) == ("5", "30", "10")
    assert (none["runtime_mode"], none["num_tokens"], none["replay_count"]) == ("NONE", "", "1")
    assert len(rows(session, "cuda_graph_timeline.csv")) == 6


def test_captures_are_rows_and_nothing_is_recorded_on_a_capturing_stream(tmp_path: Path, fake: Path) -> None:
    # The driver answers 900 to an event on a capturing stream, which would show as an error.
    printed, session = run(tmp_path, fake, V1_RUNNER)
    assert ast.literal_eval(printed)[0] == 0
    (capture,) = rows(session, "cuda_graph_captures.csv")
    assert (capture["runtime_mode"], capture["num_tokens"], capture["uniform"]) == ("FULL", "8", "True")


def test_a_driver_that_fails_costs_times_and_no_row(tmp_path: Path, fake: Path) -> None:
    before = "import ctypes; f = ctypes.CDLL('libcuda.so.1'); f.fake_fail(b'record', 719, 5, 1000000)\n"
    printed, session = run(tmp_path, fake, V1_RUNNER, steps=40, before=before)
    assert ast.literal_eval(printed)[:2] == (16, 719)
    found = rows(session, "forward_pass_timing.csv")
    assert len(found) == 40
    assert sum(row["forward_time_ms"] != "" for row in found) <= 1
    assert metadata(session)["probe_errors"] == 16


#: What vLLM's thread may ask of the driver, and what only the reader's thread may.
CALLS = """
names = ("context", "capturing", "record", "query", "elapsed")
print([fake.fake_host_calls(name.encode()) for name in names], torch._C.asked)
"""


@pytest.mark.parametrize(("runner", "marks"), [(V1_RUNNER, 7), (V2_RUNNER, 4)], ids=["v1", "v2"])
def test_what_a_step_asks_on_vllms_thread(tmp_path: Path, fake: Path, runner: str, marks: int) -> None:
    printed, session = run(tmp_path, fake, runner, steps=30, after=CALLS)
    # Once more for what is loaded before.
    assert printed.splitlines()[-1] == f"[31, 31, {30 * marks}, 0, 0] 31"
    assert all(row["forward_time_ms"] for row in rows(session, "forward_pass_timing.csv"))


@pytest.mark.parametrize("function", ["query", "elapsed"])
def test_a_driver_that_fails_the_reader_is_a_probe_error(tmp_path: Path, fake: Path, function: str) -> None:
    before = f"import ctypes; f = ctypes.CDLL('libcuda.so.1'); f.fake_fail(b'{function}', 700, 0, 3)\n"
    _, session = run(tmp_path, fake, V1_RUNNER, steps=40, before=before)
    assert len(rows(session, "forward_pass_timing.csv")) == 40
    # Some may have been found by the last look of all.
    assert metadata(session)["probe_errors"] == 3


def test_a_forked_child_leaves_the_driver_and_the_reader_alone(tmp_path: Path, fake: Path) -> None:
    # In the middle of a step; the child runs steps as its parent did, and ends as processes do.
    after = """
import os, sys
def step(number):
    worker.model_runner.execute_model(types.SimpleNamespace(
        profilemate_step=number, total_num_scheduled_tokens=6, num_scheduled_tokens={"a": 6}))
    if number == 7:
        child = os.fork()
        if child == 0:
            names = ("context", "create", "record", "query", "elapsed", "capturing", "destroy")
            before = [fake.fake_calls(name.encode()) for name in names]
            worker.model_runner.sample_tokens(None)
            for more in range(8, 12): step(more)
            assert [fake.fake_calls(name.encode()) for name in names] == before
            sys.exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    worker.model_runner.sample_tokens(None)
    fake.fake_advance(10_000_000)
for number in range(7, 10): step(number)
"""
    _, session = run(tmp_path, fake, V2_RUNNER, after=after)
    found = rows(session, "forward_pass_timing.csv")
    assert [row["step"] for row in found] == [str(step) for step in range(1, 10)]
    assert all(float(row["forward_time_ms"]) == pytest.approx(3.0, abs=1e-3) for row in found)
    assert metadata(session)["probe_errors"] == 0


def test_lightweight_mode_records_no_event(tmp_path: Path, fake: Path) -> None:
    printed, session = run(tmp_path, fake, V1_RUNNER, PROFILEMATE_TIMING="lightweight")
    assert printed == "None\n"
    found = rows(session, "forward_pass_timing.csv")
    assert len(found) == 6
    assert {row["timing"] for row in found} == {"wall"}
    assert all(float(row["forward_time_ms"]) > 0 for row in found)
    assert metadata(session)["timing_mode"] == "lightweight"


def test_without_a_driver_no_step_is_lost(tmp_path: Path, fake: Path) -> None:
    """torch says that there is a GPU, but no driver library is loaded under its name: the wall clock it is."""
    before = (
        "import ctypes, os, shutil, tempfile\n"
        "path = os.path.join(tempfile.mkdtemp(), 'other.so')\n"
        "shutil.copy(os.path.join(os.environ['LD_LIBRARY_PATH'], 'libcuda.so.1'), path)\n"
        "data = open(path, 'rb').read().replace(b'libcuda.so.1', b'libnone.so.1')\n"
        "open(path, 'wb').write(data)\n"
        "real = ctypes.CDLL\n"
        "ctypes.CDLL = lambda name, *a, **k: real(path)\n"
    )
    printed, session = run(tmp_path, fake, V1_RUNNER, before=before)
    assert "no CUDA events here" in printed
    found = rows(session, "forward_pass_timing.csv")
    assert len(found) == 6
    assert {row["timing"] for row in found} == {"wall"}
    assert metadata(session)["timing_mode"] == "wall"
