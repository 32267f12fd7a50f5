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
import signal, types, sys
__version__ = "9.9"
class _C:
    asked = 0
    @staticmethod
    def _cuda_getCurrentRawStream(device):
        _C.asked += 1
        return 1
    @staticmethod
    def _cuda_memoryStats(device):
        _C.memory_asked += 1
        if _C.memory_fails: raise RuntimeError("no statistics")
        if _C.memory_signals: signal.raise_signal(signal.SIGTERM)
        def all(current, peak): return {"all": {"current": current, "peak": peak}, "small_pool": {}, "large_pool": {}}
        return {
            "allocated_bytes": all(_C.allocated, 7 << 30), "reserved_bytes": all(8 << 30, 9 << 30),
            "inactive_split_bytes": all(512, 1024), "num_alloc_retries": 2, "num_ooms": 0}
    memory_asked, memory_fails, memory_signals, allocated = 0, False, False, 1 << 30
cudart = types.SimpleNamespace(cudaMemGetInfo=lambda device: (60 << 30, 80 << 30))
cuda = types.SimpleNamespace(
    cudart=lambda: cudart, is_available=lambda: True, is_initialized=lambda: True, current_device=lambda: 0,
    get_device_name=lambda device: "Fake GPU", device_count=lambda: 1)
"""
WORKER = """
class Worker:
    def __init__(self, vllm_config, local_rank=0, rank=0):
        self.vllm_config = vllm_config
    def load_model(self):
        self.model_runner = self.make_runner()
    def initialize_from_config(self, kv_cache_config):
        import torch
        torch._C.allocated += 5 << 30
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
def apply_grammar_bitmask(scheduler_output, grammar_output, input_batch, logits): launch(0.0625)
class GPUModelRunner:
    model_memory_usage = 1 << 30
    def capture_model(self):
        self._dummy_run(8, cudagraph_runtime_mode=FULL, uniform_decode=True)
        return 1 << 28
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
        if grammar_output is not None:
            apply_grammar_bitmask(None, grammar_output, self.input_batch, None)
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
    def sample(self, hidden_states, input_batch, grammar_output): launch(0.25)
    def postprocess_sampled(self): pass
    input_batch = sampler = None
    def sample_tokens(self, grammar_output):
        self.sample(None, self.input_batch, grammar_output); self.postprocess_sampled(); launch(0.125)
"""
)
V2_SAMPLER = """
class Sampler:
    def add_request(self, req_idx, sampling_params): pass
"""
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
worker.initialize_from_config(None)
worker.compile_or_warm_up_model()
for step in range(1, {steps} + 1):
    tokens = 100 if step == 1 else 6
    output = types.SimpleNamespace(
        profilemate_step=step, total_num_scheduled_tokens=tokens, num_scheduled_tokens={{"a": tokens}})
    fake.fake_advance(2_000_000)
    worker.model_runner.execute_model(output)
    worker.model_runner.sample_tokens(getattr(worker.model_runner, "grammar", None))
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
        "vllm/v1/worker/gpu/sample/sampler.py": V2_SAMPLER,
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
    # V2's sampling has no event of its own for its end: what is launched behind it to the end of the step is in it.
    sampling = 0.25 if runner == V1_RUNNER else 0.375
    assert {row["timing"] for row in found} == {"events"}
    for row in found:
        assert float(row["forward_time_ms"]) == pytest.approx(3.0, abs=1e-3)
        assert float(row["sample_time_ms"]) == pytest.approx(sampling, abs=1e-3)
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


@pytest.mark.parametrize(("runner", "marks"), [(V1_RUNNER, 6), (V2_RUNNER, 3)], ids=["v1", "v2"])
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


#: The sets and dicts of an `InputBatch`, with other counts in each.
V1_BATCH = """
def ids(count): return {str(i) for i in range(count)}
def of(**more): return types.SimpleNamespace(**more)
GPUModelRunner.num_prompt_logprobs = {}
GPUModelRunner.grammar = of(structured_output_request_ids=["0", "1"])
GPUModelRunner.input_batch = of(
    req_id_to_index=dict.fromkeys(ids(9)), greedy_reqs=ids(4), top_k_reqs=ids(3), top_p_reqs=ids(2),
    frequency_penalties_reqs={"0", "1"}, presence_penalties_reqs={"1", "2"}, repetition_penalties_reqs=set(),
    num_logprobs={"0": 5}, logprob_token_ids={}, bad_words_token_ids={}, has_allowed_token_ids=ids(1),
    generators={2: 0}, sampling_metadata=of(max_num_logprobs=5),
    logitsprocs=of(
        argmax_invariant=[of(min_p_count=6)], non_argmax_invariant=[of(biases={0: {}}), of(min_toks={})]))
"""
#: The same by slots, known from the second step on. Of two that want a prompt's log probabilities, one is in its
#: prompt.
V2_BATCH = """
import array
from vllm.v1.worker.gpu.sample.sampler import Sampler
GPUModelRunner.sampler = sampler = Sampler()
GPUModelRunner.grammar = types.SimpleNamespace(structured_output_request_ids=["0", "1"])
def asks(slot, **asked):
    usual = dict(
        temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, presence_penalty=0.0, frequency_penalty=0.0,
        repetition_penalty=1.0, logprobs=None, prompt_logprobs=None, logit_bias=None, bad_words=[],
        allowed_token_ids=None, min_tokens=0, seed=None)
    sampler.add_request(slot, types.SimpleNamespace(**{**usual, **asked}))
def add_requests():
    for slot in range(9):
        first = slot == 0
        asks(slot, temperature=float(slot >= 4), top_k=20 * (slot < 3), top_p=1.0 - (slot < 2) / 10,
            seed=1 if slot == 7 else None, min_p=(slot < 6) / 10, presence_penalty=(slot < 2) / 2,
            repetition_penalty=1 + (slot == 2) / 2, logprobs=5 if first else None,
            prompt_logprobs=1 if slot > 6 else None, logit_bias={1: 1} if first else None,
            allowed_token_ids=[1] if first else None)
    GPUModelRunner.input_batch = types.SimpleNamespace(
        idx_mapping_np=array.array("i", [8, 7, 6, 5, 4, 3, 2, 1, 0]), is_prefilling_np=array.array("b", [1] + 8 * [0]))
begun = GPUModelRunner.execute_model
def execute_model(self, output):
    if output.profilemate_step == 2: add_requests()
    return begun(self, output)
GPUModelRunner.execute_model = execute_model
"""
ASKED = {
    "greedy": "4",
    "random": "5",
    "top_k": "3",
    "top_p": "2",
    "min_p": "6",
    "penalties": "3",
    "logprobs": "1",
    "most_logprobs": "5",
    "prompt_logprobs": "0",
    "structured_output": "2",
    "logit_bias": "1",
    "bad_words": "0",
    "allowed_token_ids": "1",
    "min_tokens": "0",
    "seeded": "1",
}


@pytest.mark.parametrize(
    ("runner", "known_from", "sampling_ms", "asked"),
    [
        # A grammar's mask is a part of sampling.
        (V1_RUNNER + V1_BATCH, 1, 0.3125, ASKED),
        # Its sampling ends with the step.
        (V2_RUNNER + V2_BATCH, 2, 0.375, {**ASKED, "prompt_logprobs": "1"}),
    ],
    ids=["v1", "v2"],
)
def test_what_batches_ask_of_the_sampler(
    tmp_path: Path, fake: Path, runner: str, known_from: int, sampling_ms: float, asked: dict[str, str]
) -> None:
    _, session = run(tmp_path, fake, runner)
    found = rows(session, "sampling_timing.csv")
    assert [row["step"] for row in found] == [str(step) for step in range(1, 7)]
    assert metadata(session)["probe_errors"] == 0
    for row in found:
        assert row["timing"] == "events"
        assert float(row["sample_time_ms"]) == pytest.approx(sampling_ms, abs=1e-3)
        known = int(row["step"]) >= known_from
        assert {name: row[name] for name in asked} == (asked if known else dict.fromkeys(asked, ""))


def test_sampling_is_timed_without_the_other_profilers(tmp_path: Path, fake: Path) -> None:
    _, session = run(
        tmp_path,
        fake,
        V1_RUNNER,
        PROFILEMATE_ENABLE_FORWARD_PASS_TIMING="0",
        PROFILEMATE_ENABLE_CPU_TIMING="0",
        PROFILEMATE_ENABLE_CUDA_GRAPH_TRACKING="0",
    )
    assert not (session / "forward_pass_timing.csv").exists()
    found = rows(session, "sampling_timing.csv")
    assert len(found) == 6
    assert all(float(row["sample_time_ms"]) == pytest.approx(0.25, abs=1e-3) for row in found)


SIZES = ("allocated", "reserved", "free", "total", "outside")


def test_memory_is_looked_at_once_per_second_and_not_in_each_step(tmp_path: Path, fake: Path) -> None:
    printed, session = run(tmp_path, fake, V1_RUNNER, steps=30, after="print(torch._C.memory_asked)")
    asked = int(printed.splitlines()[-1])
    # Twice while the KV cache was made.
    assert 3 <= asked < 30
    found = rows(session, "gpu_memory.csv")
    assert len(found) == asked - 2
    first = found[0]
    assert (first["step"], first["process"]) == ("1", "worker-0")
    sizes = {name: int(first[f"{name}_bytes"]) / 2**30 for name in SIZES}
    assert sizes == {"allocated": 6, "reserved": 8, "free": 60, "total": 80, "outside": 12}
    assert (first["unused_pct"], first["inactive_split_bytes"], first["allocation_retries"]) == (
        "25.0000",
        "512",
        "2",
    )
    (gpu,) = json.loads((session / "gpu_memory_summary.json").read_text())["gpus"]
    assert (gpu["weights_bytes"], gpu["kv_cache_bytes"], gpu["cuda_graph_bytes"]) == (1 << 30, 5 << 30, 1 << 28)
    assert (gpu["kv_cache_pct"], gpu["peak_allocated_bytes"], gpu["samples"]) == (6.25, 7 << 30, len(found))
    assert metadata(session)["profilers"]["gpu_memory"] == "on"


def test_memory_that_cannot_be_told_costs_its_table_alone(tmp_path: Path, fake: Path) -> None:
    begun = "\nbegun = GPUModelRunner.execute_model\n"
    fails = "def execute_model(self, output):\n    torch._C.memory_fails = True\n    return begun(self, output)\n"
    runner = V1_RUNNER + begun + fails + "GPUModelRunner.execute_model = execute_model"
    printed, session = run(tmp_path, fake, runner, after="print(torch._C.memory_asked)")
    # Not asked again after the first step, in which it failed.
    assert "3" in printed.splitlines()
    assert "probe gpu_memory failed (RuntimeError: no statistics)" in printed
    assert rows(session, "gpu_memory.csv") == []
    assert len(rows(session, "forward_pass_timing.csv")) == 6
    assert metadata(session)["probe_errors"] == 1
    assert json.loads((session / "gpu_memory_summary.json").read_text()) == {"gpus": []}


def test_an_exit_while_memory_is_looked_at_is_vllms(tmp_path: Path, fake: Path) -> None:
    """vLLM's handler of SIGTERM raises `SystemExit` wherever Python is at that moment."""
    exits = """
import signal
def leave(*_): raise SystemExit("by vLLM")
signal.signal(signal.SIGTERM, leave)
begun = GPUModelRunner.execute_model
def execute_model(self, output):
    torch._C.memory_signals = output.profilemate_step == 1
    try: return begun(self, output)
    except SystemExit as error: print(error)
GPUModelRunner.execute_model = execute_model
"""
    printed, session = run(tmp_path, fake, f"{V1_RUNNER}\n{exits}", after="print(torch._C.memory_asked)")
    lines = printed.splitlines()
    # It was asked in the first step, which vLLM left, and nobody complained.
    assert (lines[0], lines[-1], len(lines)) == ("by vLLM", "3", 3), printed
    assert metadata(session)["probe_errors"] == 0
    assert [row["step"] for row in rows(session, "forward_pass_timing.csv")] == ["2", "3", "4", "5", "6"]


def test_lightweight_mode_records_no_event(tmp_path: Path, fake: Path) -> None:
    printed, session = run(tmp_path, fake, V1_RUNNER, PROFILEMATE_TIMING="lightweight")
    assert printed == "None\n"
    found = rows(session, "forward_pass_timing.csv")
    assert len(found) == 6
    assert {row["timing"] for row in found} == {"wall"}
    assert all(float(row["forward_time_ms"]) > 0 for row in found)
    assert metadata(session)["timing_mode"] == "lightweight"
    # The host alone knows what it launched, and not how long that took.
    sampled = rows(session, "sampling_timing.csv")
    assert len(sampled) == 6
    assert all(row["sample_time_ms"] == "" and float(row["host_time_ms"]) > 0 for row in sampled)


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
