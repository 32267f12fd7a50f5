"""What the hooks that mark steps on a GPU cost vLLM's thread, without a GPU: a made-up driver and a made-up V2 runner.

    python benches/mark_cost.py [steps]

The driver is the tests' own (crates/cuda/tests/fake), whose calls cost next to nothing, so this shows our part and how
often the driver and torch are called, not what a real driver takes. Between two steps 64 MiB are read, which leaves the
caches to somebody else, as vLLM does.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent

RUN = """
import sys, time, types, torch
from vllm.v1.worker.gpu_worker import Worker
{runner}
from profilemate import _native, session
Worker.make_runner = lambda self: GPUModelRunner()
class config:
    class parallel_config: data_parallel_rank, world_size = 0, 1
    class model_config: model = "tiny"
worker = Worker(config, 0, 0)
worker.load_model()
worker.compile_or_warm_up_model()
other = bytearray(64 << 20)
names = ("context", "capturing", "create", "record", "query", "elapsed")
ours = ("model_runner_v2", "cuda_graphs")
hooks = {{name: hook for name, hook in session.ATTACHED.objects.items() if name.startswith(ours)}}
def run(first, last):
    for step in range(first, last):
        other.count(1)
        output = types.SimpleNamespace(
            profilemate_step=step, total_num_scheduled_tokens=6, num_scheduled_tokens={{"a": 6}})
        fake.fake_advance(2_000_000)
        worker.model_runner.execute_model(output)
        worker.model_runner.sample_tokens(None)
        fake.fake_advance(10_000_000)
run(1, 500)
calls = [fake.fake_host_calls(name.encode()) for name in names]
cost = {{name: hook.cost for name, hook in hooks.items()}}
begun, steps = _native.ticks(), {steps}
begun_ns = time.perf_counter_ns()
run(500, 500 + steps)
per_us = (_native.ticks() - begun) / ((time.perf_counter_ns() - begun_ns) / 1000)
print("calls per step on vLLM's thread:", ", ".join(
    f"{{name}} {{(fake.fake_host_calls(name.encode()) - before) / steps:.2f}}" for name, before in zip(names, calls)))
total = 0
for name, hook in hooks.items():
    took = (hook.cost[1] - cost[name][1]) / per_us / steps
    total += took
    if took:
        print(f"{{name:40}} {{took:8.2f}} us per step")
print(f"{{'together':40}} {{total:8.2f}} us per step")
"""


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    sys.path.insert(0, str(ROOT / "tests"))
    spec = importlib.util.spec_from_file_location("test_gpu", ROOT / "tests" / "test_gpu.py")
    assert spec is not None and spec.loader is not None
    made_up = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made_up)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made_up.make_fake(folder)
        environment = dict(
            os.environ,
            PYTHONPATH=os.pathsep.join([made_up.SITE, str(folder)]),
            LD_LIBRARY_PATH=name,
            PROFILEMATE_ENABLE="1",
            PROFILEMATE_OUTPUT_DIR=name,
            PROFILEMATE_COLLECTOR="none",
        )
        code = RUN.format(runner=made_up.V2_RUNNER, steps=steps)
        subprocess.run([sys.executable, "-c", code], check=True, env=environment)


if __name__ == "__main__":
    main()
