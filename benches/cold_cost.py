"""What the probes of one engine step cost when the caches belong to somebody else: all hooks of a step in one process.

    python benches/cold_cost.py MODEL_FOLDER [--running 1 64 256 1000] [--runner v2] [--steps 60]

vLLM's real scheduler and output processor, a made-up model runner in the shape of V1 or V2 on the tests' made-up CUDA
driver (crates/cuda/tests/fake), and a made-up engine around them, as in a process that holds all of an engine. Before
each hooked function is called, and before it returns, other memory is read and other code is run: as much as takes our
code and data out of the processor's own caches about as far as a real step does. With the amounts that are set, times
are near those of a GPU host, if nothing else runs. The made-up driver's calls cost next to nothing: of a real driver,
each event that is recorded takes some 4.6 µs more (benches/results/2026-11-24-h200-host).

Printed are, for each number of running requests, the microseconds per decode step that each hook counts of itself:
medians over the steps, and the sum of the medians.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import host_cost

ROOT = Path(__file__).resolve().parent.parent
LINE = 64


class Elsewhere:
    """Other memory, and other code, as large as asked for."""

    def __init__(self, data_mib: float, code_mib: float) -> None:
        self.data = bytearray(int(data_mib * (1 << 20)))
        self.run: Callable[[], None] = lambda: None
        lines = int(code_mib * (1 << 20)) // LINE
        if lines and os.uname().machine == "x86_64":
            # A jump to the next line of code in each line, and a return in the last.
            jump = b"\xe9" + (LINE - 5).to_bytes(4, "little") + bytes(LINE - 5)
            self.code = mmap.mmap(-1, lines * LINE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
            self.code.write(jump * (lines - 1) + b"\xc3")
            self.run = ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(self.code)))

    def go(self) -> None:
        """Leaves the caches to others."""
        self.data.count(1)
        self.run()


def fake_driver(folder: Path) -> Any:
    """The tests' made-up driver, loaded under the driver's name."""
    source = ROOT / "crates" / "cuda" / "tests" / "fake" / "fake_cuda.c"
    path = folder / "libcuda.so.1"
    flags = ["-O1", "-shared", "-fPIC", "-pthread", "-Wl,-soname,libcuda.so.1"]
    subprocess.run(["cc", *flags, "-o", str(path), str(source)], check=True)
    driver = ctypes.CDLL(str(path))
    driver.fake_launch.argtypes = [ctypes.c_size_t, ctypes.c_uint64]
    driver.fake_advance.argtypes = [ctypes.c_uint64]
    return driver


class Step:
    """What a step calls: real functions of vLLM where there are some without a GPU, and others under their names.

    `hidden` is called where vLLM does something else.
    """

    def __init__(self, runner: str, hidden: Callable[[], None]) -> None:
        from vllm.v1.core.sched.scheduler import Scheduler
        from vllm.v1.engine.output_processor import OutputProcessor

        from profilemate.probes import HOOKS
        from profilemate.session import ATTACHED

        self.hidden = hidden
        #: By name: the newest hook.
        self.hooks: dict[str, Any] = ATTACHED.objects
        for owner, method in (
            (Scheduler, "schedule"),
            (Scheduler, "update_from_output"),
            (OutputProcessor, "process_outputs"),
        ):
            self._surround(owner, method)
        engine = types.ModuleType("vllm.v1.engine.core")

        class EngineCore:
            def step_with_batch_queue(self, work: Callable[[], None]) -> None:
                hidden()
                work()
                hidden()

        engine.EngineCore = EngineCore  # type: ignore[attr-defined]
        modules = [engine, *(self._v1() if runner == "v1" else self._v2())]
        for module in modules:
            for spec in HOOKS:
                if module.__name__ in spec.modules() and spec.timing is None and spec.name not in ATTACHED.places:
                    ATTACHED.attach(spec, module)
        self.engine = EngineCore()

    def _surround(self, owner: type, method: str) -> None:
        """Has the function behind a hook come from elsewhere and go elsewhere."""
        from profilemate.probes import HOOKS
        from profilemate.session import ATTACHED

        hook, hidden = vars(owner)[method], self.hidden
        function = hook.__wrapped__

        def surrounded(*arguments: Any, **keywords: Any) -> Any:
            result = function(*arguments, **keywords)
            hidden()
            return result

        setattr(owner, method, surrounded)
        place = f"{owner.__module__}:{owner.__qualname__}.{method}"
        spec = next(spec for spec in HOOKS if place in spec.places)
        ATTACHED.places.pop(spec.name)
        ATTACHED.attach(spec, sys.modules[owner.__module__])

    def _v2(self) -> list[types.ModuleType]:
        hidden = self.hidden
        connector = types.ModuleType("vllm.v1.worker.gpu.kv_connector")
        runner = types.ModuleType("vllm.v1.worker.gpu.model_runner")
        full = types.SimpleNamespace(_value_=2, name="FULL")

        class KVConnector:
            def pre_forward(self, _output: Any) -> None:
                hidden()

        class Descriptor:
            def __init__(self, tokens: int) -> None:
                self.cg_mode, self.num_tokens, self.num_reqs, self.uniform_token_count = full, tokens, tokens, 1

        descriptors = {tokens: Descriptor(tokens) for tokens in range(0, 4096, 8)}

        def dispatch_cg_and_sync_dp(tokens: int) -> tuple[Any, None]:
            hidden()
            return descriptors[-(-tokens // 8) * 8], None

        class GPUModelRunner:
            kv_connector = KVConnector()

            def execute_model(self, output: Any) -> None:
                hidden()
                runner.dispatch_cg_and_sync_dp(output.total_num_scheduled_tokens)
                hidden()
                self.kv_connector.pre_forward(output)
                hidden()

            def sample(self) -> None:
                hidden()

            def postprocess_sampled(self) -> None:
                hidden()

            def sample_tokens(self, _grammar: None) -> None:
                hidden()
                self.sample()
                hidden()
                self.postprocess_sampled()
                hidden()

        connector.KVConnector = KVConnector  # type: ignore[attr-defined]
        runner.dispatch_cg_and_sync_dp = dispatch_cg_and_sync_dp  # type: ignore[attr-defined]
        runner.GPUModelRunner = GPUModelRunner  # type: ignore[attr-defined]
        self.runner: Any = GPUModelRunner()
        return [connector, runner]

    def _v1(self) -> list[types.ModuleType]:
        hidden = self.hidden
        runner = types.ModuleType("vllm.v1.worker.gpu_model_runner")
        full = types.SimpleNamespace(_value_=2, name="FULL")

        class Descriptor:
            def __init__(self, tokens: int) -> None:
                self.num_tokens, self.num_reqs, self.uniform, self.has_lora = tokens, tokens, True, False

        class GPUModelRunner:
            def _determine_batch_execution_and_padding(self, tokens: int) -> tuple[Any, Any]:
                hidden()
                return full, Descriptor(-(-tokens // 8) * 8)

            def _model_forward(self) -> None:
                hidden()

            def execute_model(self, output: Any) -> None:
                hidden()
                self._determine_batch_execution_and_padding(output.total_num_scheduled_tokens)
                hidden()
                self._model_forward()
                hidden()

            def _sample(self) -> None:
                hidden()

            def _bookkeeping_sync(self) -> None:
                hidden()

            def sample_tokens(self, _grammar: None) -> None:
                hidden()
                self._sample()
                hidden()
                self._bookkeeping_sync()
                hidden()

        runner.GPUModelRunner = GPUModelRunner  # type: ignore[attr-defined]
        self.runner = GPUModelRunner()
        return [runner]


class Driver(host_cost.Driver):
    """A scheduler, its requests, and what takes their outputs."""

    def __init__(self, model: str, sequences: int, step: Step, driver: Any) -> None:
        from vllm.v1.engine.output_processor import OutputProcessor

        super().__init__(model, sequences)
        self.made_up, self.driver = step, driver
        self.processor = OutputProcessor(None, log_stats=False)

    def step(self) -> None:
        self.made_up.engine.step_with_batch_queue(self._work)

    def _work(self) -> None:
        from vllm.v1.outputs import ModelRunnerOutput

        hidden, runner = self.made_up.hidden, self.made_up.runner
        hidden()
        batch = self.scheduler.schedule()
        self.driver.fake_advance(2_000_000)
        hidden()
        runner.execute_model(batch)
        hidden()
        runner.sample_tokens(None)
        self.driver.fake_advance(10_000_000)
        ids = list(batch.num_scheduled_tokens)
        output = ModelRunnerOutput(
            req_ids=ids,
            req_id_to_index={req_id: i for i, req_id in enumerate(ids)},
            sampled_token_ids=[[7] for _ in ids],
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
        )
        hidden()
        outputs = self.scheduler.update_from_output(batch, output)
        hidden()
        for each in outputs.values():
            self.processor.process_outputs(each.outputs, each.timestamp, None)


def measured(driver: Driver, hooks: dict[str, Any], steps: int) -> dict[str, list[int]]:
    """Ticks of each hook in each step, and of all probes."""
    from profilemate import _native

    found: dict[str, list[int]] = {name: [] for name in (*hooks, "")}
    for _ in range(steps):
        before = {name: hook.cost[1] for name, hook in hooks.items()}
        ticks = _native.statistics()[2]
        driver.step()
        found[""].append(_native.statistics()[2] - ticks)
        for name, hook in hooks.items():
            found[name].append(hook.cost[1] - before[name])
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--running", type=int, nargs="*", default=[1, 64, 256, 1000])
    parser.add_argument("--runner", choices=("v1", "v2"), default="v2")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument(
        "--data-mib", type=float, default=8, help="memory that is read in between; 0 = caches stay warm"
    )
    parser.add_argument("--code-mib", type=float, default=2, help="code that is run in between")
    options = parser.parse_args()

    folder = tempfile.mkdtemp(prefix="profilemate-bench-")
    os.environ["PROFILEMATE_OUTPUT_DIR"] = folder
    os.environ["PROFILEMATE_COLLECTOR"] = "none"
    sys.path.insert(0, str(host_cost.SITE))
    import sitecustomize

    sitecustomize._attach()

    from profilemate import _native

    elsewhere = Elsewhere(options.data_mib, options.code_mib)
    step = Step(options.runner, elsewhere.go)
    driver = fake_driver(Path(folder))
    ticks = _native.ticks()
    time.sleep(0.2)
    ticks_per_microsecond = (_native.ticks() - ticks) / 200_000

    results: dict[int, dict[str, float]] = {}
    for running in options.running:
        made = Driver(options.model, running, step, driver)
        made.add(made.requests(max_tokens=host_cost.MAX_MODEL_LEN))
        if _native.cuda_counters() is None:
            # The stream is a number; torch's own function for it is there without a GPU, too, but not of use.
            assert _native.use_cuda(abs, 1, 100)
        with host_cost.no_garbage_collection():
            measured(made, step.hooks, 24)
            found = measured(made, step.hooks, options.steps)
        medians = {name: statistics.median(each) / ticks_per_microsecond for name, each in found.items()}
        results[running] = medians

    names = [name for name in results[options.running[0]] if name and any(each[name] for each in results.values())]
    host_cost.row([f"hook ({options.runner}), µs per step at", *(f"{running:,}" for running in results)])
    host_cost.row(["---"] + ["---:"] * len(results))
    for name in names:
        host_cost.row([f"`{name}`", *(f"{each[name]:.2f}" for each in results.values())])
    host_cost.row(["hooks together", *(f"{sum(each[name] for name in names):.2f}" for each in results.values())])
    host_cost.row(["all probes", *(f"{each['']:.2f}" for each in results.values())])
    assert _native.cuda_counters()[0] == 0, "the made-up driver returned errors"
    # A log that is open is closed by the process that goes away.
    os._exit(0)


if __name__ == "__main__":
    main()
