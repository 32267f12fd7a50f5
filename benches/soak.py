"""A day of a server in fast forward: the real hooks on a made-up engine, with requests that come and go.

    python benches/soak.py [--steps 8640000] [--max-bytes 67108864]

8.64 million steps are 24 hours at 100 steps a second. Twenty times on the way it prints the memory that is no file's,
the bytes on disk, descriptors, threads, and what the probes take of a step; at last one line `RESULT {...}`. It ends
with 1 if

- memory grows by more than 1 MiB from the first tenth of the run to its end,
- segments take more than `--max-bytes` and one segment,
- a descriptor or a thread is left over,
- more than one record in a thousand was dropped, or any is missing that was neither dropped nor given up to keep to the
  bound,
- the last step is more than 5 ms from where the system's clock has it.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent.parent / "python" / "profilemate"

MODULES = {
    "vllm/__init__.py": "__version__ = '0.0.0'\n",
    "vllm/v1/__init__.py": "",
    "vllm/v1/core/__init__.py": "",
    "vllm/v1/core/sched/__init__.py": "",
    "vllm/v1/engine/__init__.py": "",
    "vllm/v1/worker/__init__.py": "",
    "vllm/v1/core/sched/scheduler.py": """
import enum
class Status(enum.Enum): RUNNING, FINISHED_LENGTH_CAPPED = 1, 2
class Request:
    arrival_time, priority, client_index, pooling_params, num_preemptions = 1.7e9, 0, 0, None, 0
    num_prompt_tokens, num_output_tokens, num_computed_tokens, num_tokens = 16, 0, 0, 16
    status = Status.RUNNING
    def __init__(self, request_id): self.request_id = request_id
    def is_finished(self): return self.status is not Status.RUNNING
class New:
    def __init__(self, req_id): self.req_id = req_id
class Cached: resumed_req_ids = ()
class Output: pass
class Outputs:
    timestamp = 0.0
    def __init__(self): self.outputs = []
class Scheduler:
    max_num_running_reqs, max_num_scheduled_tokens, serial = 8, 64, 0
    def __init__(self, vllm_config):
        self.vllm_config, self.requests, self.finished_req_ids, self.new = vllm_config, {}, set(), []
    def add_request(self, request):
        self.requests[request.request_id] = request
        self.new.append(request)
    def _preempt_request(self, request, timestamp): pass
    def schedule(self):
        while len(self.requests) < 8:
            self.serial += 1
            self.add_request(Request(f"request-{self.serial}"))
        output = Output()
        new, self.new = self.new, []
        output.scheduled_new_reqs = [New(request.request_id) for request in new]
        output.scheduled_cached_reqs = Cached
        output.num_scheduled_tokens = dict.fromkeys(self.requests, 1)
        output.num_scheduled_tokens.update((request.request_id, 16) for request in new)
        output.total_num_scheduled_tokens = 8 + 15 * len(new)
        for request in self.requests.values():
            request.num_computed_tokens += output.num_scheduled_tokens[request.request_id]
        self.finished_req_ids = set()
        return output
    def _free_request(self, request):
        self.finished_req_ids.add(request.request_id)
        del self.requests[request.request_id]
    def update_from_output(self, scheduler_output, model_runner_output):
        for request in list(self.requests.values()):
            request.num_output_tokens += 1
            request.num_tokens += 1
            if request.num_output_tokens == 64 + hash(request.request_id) % 64:
                request.status = Status.FINISHED_LENGTH_CAPPED
                self._free_request(request)
        return {0: Outputs()}
    def get_request_counts(self): return len(self.requests), 0
""",
    "vllm/v1/worker/gpu_model_runner.py": """
class GPUModelRunner:
    def execute_model(self, scheduler_output):
        self._model_forward()
    def _model_forward(self): pass
    def _sample(self): pass
    def _bookkeeping_sync(self): pass
    def sample_tokens(self):
        self._sample()
        self._bookkeeping_sync()
""",
    "vllm/v1/engine/core.py": """
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.worker.gpu_model_runner import GPUModelRunner
class EngineCore:
    def __init__(self, vllm_config):
        self.scheduler, self.runner = Scheduler(vllm_config), GPUModelRunner()
    def step(self):
        output = self.scheduler.schedule()
        self.runner.execute_model(output)
        self.runner.sample_tokens()
        return self.scheduler.update_from_output(output, None)
""",
}

HOST = """
import gc, json, os, sys, time
from pathlib import Path
from vllm.v1.engine.core import EngineCore
from profilemate import _native
class config:
    class parallel_config: data_parallel_rank, world_size = 0, 1
    class model_config: model = "made up"
steps, session = int(sys.argv[1]), Path(os.environ["PROFILEMATE_SESSION"])
def sizes():
    status = dict(line.split()[:2] for line in open("/proc/self/status") if line.endswith(" kB\\n"))
    files = sum(file.stat().st_blocks * 512 for file in session.glob("raw/*.seg"))
    return (int(status["RssAnon:"]), int(status["VmRSS:"]), files, len(os.listdir("/proc/self/fd")),
            len(os.listdir("/proc/self/task")))
before_open = time.monotonic()
engine = EngineCore(config)
opened = time.monotonic()
gc.collect(); gc.freeze()
samples, per_sample = [], steps // 20
ticks, begin = _native.statistics()[2], time.monotonic()
for done in range(1, steps + 1):
    engine.step()
    if done % 50 == 0:
        # Faster than the recorder's thread makes segments would be no server's pace.
        time.sleep(0.001)
    if done % per_sample == 0:
        gc.collect()
        now, at = _native.statistics()[2], time.monotonic()
        samples.append([done, *sizes(), (now - ticks) / per_sample, at - begin])
        print(*samples[-1], file=sys.stderr, flush=True)
        ticks, begin = now, at
last = time.monotonic()
engine.step()
print(json.dumps({"samples": samples, "written": _native.statistics()[0], "dropped": _native.statistics()[1],
                  "before_open": before_open, "opened": opened,
                  "last": last}))
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=8_640_000)
    parser.add_argument("--max-bytes", type=int, default=64 << 20)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as text:
        result = soak(Path(text), arguments.steps, arguments.max_bytes)
    print("RESULT", json.dumps(result))
    if result["problems"]:
        sys.exit(1)


def soak(folder: Path, steps: int, max_bytes: int) -> dict[str, Any]:
    for name, text in MODULES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    session = folder / "session_soak"
    variables = {
        **os.environ,
        "PYTHONPATH": f"{PACKAGE / 'sitecustomize'}{os.pathsep}{folder}",
        "PROFILEMATE_SESSION": str(session),
        "PROFILEMATE_COLLECTOR": "none",
        "PROFILEMATE_MAX_BYTES": str(max_bytes),
    }
    began = time.monotonic()
    host = [sys.executable, "-c", HOST, str(steps)]
    told = json.loads(subprocess.run(host, env=variables, stdout=subprocess.PIPE, check=True).stdout)
    seconds = time.monotonic() - began
    subprocess.run([PACKAGE / "_bin" / "profilemate", "export", session], check=True, capture_output=True)
    metadata = json.loads((session / "metadata.json").read_text(encoding="utf-8"))
    with (session / "batch_utilization.csv").open(encoding="utf-8", newline="") as table:
        *_, last_row = csv.DictReader(table)
    return judge(steps, max_bytes, told, metadata, last_row, seconds)


def judge(
    steps: int,
    max_bytes: int,
    told: dict[str, Any],
    metadata: dict[str, Any],
    last_row: dict[str, str],
    seconds: float,
) -> dict[str, Any]:
    samples = told["samples"]
    # Step, memory, resident, disk, descriptors, threads, ticks in probes per step, seconds.
    settled, end = samples[1], samples[-1]
    grown_kib = end[1] - settled[1]
    most_on_disk = max(sample[3] for sample in samples)
    # The log was opened between two looks at the clock; the session begins then.
    at = float(last_row["timestamp_sec"])
    drift_ms = 1000 * max(
        told["last"] - told["opened"] - at, at - (told["last"] - told["before_open"]) - 0.005, 0.0
    )
    discarded = metadata["records_lost"] - told["dropped"]
    problems = []
    if grown_kib > 1024:
        problems.append(f"memory grew by {grown_kib} KiB")
    if most_on_disk > max_bytes + (4 << 20):
        problems.append(f"{most_on_disk} bytes on disk")
    if end[4:6] != settled[4:6]:
        problems.append("descriptors or threads are left over")
    if int(last_row["step"]) != steps + 1:
        problems.append(f"the last step is {last_row['step']}")
    if metadata["records_written"] != told["written"] or metadata["records_damaged"]:
        problems.append("records are gone")
    if told["dropped"] * 1000 > told["written"]:
        # A few are dropped where a busy machine lets the recorder's thread wait for a second.
        problems.append(f"{told['dropped']} records were dropped")
    if drift_ms > 5:
        problems.append(f"the clock is off by {drift_ms:.1f} ms")
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "steps": steps,
        "records_written": told["written"],
        "given_up_to_keep_to_the_bound": discarded,
        "dropped": told["dropped"],
        "memory_kib": [sample[1] for sample in samples],
        "grown_kib": grown_kib,
        "most_bytes_on_disk": most_on_disk,
        "descriptors_and_threads": end[4:6],
        "probe_ticks_per_step": [round(sample[6]) for sample in samples],
        "clock_off_by_ms": round(drift_ms, 3),
        "seconds": round(seconds, 1),
        "problems": problems,
    }


if __name__ == "__main__":
    main()
