"""Two GPUs, tensor parallel: both workers are recorded in one session, how far their steps lie apart, and whether the
stamps around their collectives agree with the kernels of vLLM's own torch profiler in the same steps.

    python two_gpus.py MODEL [--json FILE]

vLLM starts its processes as it likes; ProfileMate comes in by PYTHONPATH alone.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import common
import stamps

SERVE = """
import os
import sys
sys.path.insert(0, {here!r})
os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
import common
def close(worker):
    from profilemate import _native
    _native.close()
if __name__ == "__main__":
    from vllm import LLM
    llm = LLM(model={model!r}, load_format="dummy", seed=0, max_num_seqs=64, max_model_len=2048, tensor_parallel_size=2,
              gpu_memory_utilization=0.85, enable_prefix_caching=False,
              compilation_config={{"cudagraph_capture_sizes": [64]}},
              profiler_config={{"profiler": "torch", "torch_profiler_dir": {traces!r},
                               "torch_profiler_with_stack": False, "torch_profiler_dump_cuda_time_total": False}})
    for round_number in range(3):
        common.generate(llm, common.prompts(64, 128, round_number), [128] * 64)
    # The last steps of all, so that their numbers are known.
    llm.start_profile()
    common.generate(llm, common.prompts(64, 128, 9), [24] * 64)
    llm.stop_profile()
    # vLLM kills its workers, and the newest stamps are still on the GPU.
    llm.collective_rpc(close)
"""


def kernels_of(trace: Path) -> list[stamps.Kernel]:
    """The kernels of one rank's trace."""
    with gzip.open(trace, "rt") as file:
        events = json.load(file)["traceEvents"]
    return [stamps.Kernel(e["name"], e["ts"], e["dur"]) for e in events if e.get("cat") == "kernel"]


def collectives(session: Path, traces: Path, workers: list[str]) -> dict[str, Any]:
    """What the session says of collectives, and how its stamps compare with the traces."""
    said: dict[str, Any] = json.loads((session / "collective_summary.json").read_text())
    said["forward"] = json.loads((session / "layer_summary.json").read_text()).get("forward")
    # One file for each rank; its name tells which, and so do the steps: both ranks did the same ones.
    files = sorted(traces.glob("**/*.json.gz"))
    said["traces"] = [file.name for file in files]
    ranked = [
        file for rank in range(len(workers)) for file in files if f"rank{rank}" in file.name.replace("_", "")
    ]
    truth = []
    for worker, file in zip(workers, ranked or files, strict=False):
        recorded = stamps.recorded_steps(session, worker)
        traced = stamps.traced_pairs(kernels_of(file))
        truth.append(stamps.compare(traced, max(recorded), recorded, f"{worker} {file.name}"))
    said["truth"] = truth
    return said


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--label", default="two_gpus")
    parser.add_argument("--json")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="profilemate-two-"))
    script = folder / "serve.py"
    script.write_text(
        SERVE.format(here=str(Path(__file__).parent), model=options.model, traces=str(folder / "traces"))
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(common.SITE), os.environ.get("PYTHONPATH", "")]),
        "PROFILEMATE_OUTPUT_DIR": str(folder / "out"),
        "PROFILEMATE_COLLECTOR": "none",
        "PROFILEMATE_LAYERS_EVERY": "1",
    }
    subprocess.run([sys.executable, str(script)], check=True, env=environment)
    sessions = list((folder / "out").glob("session_*"))
    (session,) = sessions
    subprocess.run([str(common.SITE.parent / "_bin" / "profilemate"), "export", str(session)], check=True)
    metadata = json.loads((session / "metadata.json").read_text())
    with (session / "forward_pass_timing.csv").open() as file:
        rows = list(csv.DictReader(file))
    by_process: dict[str, dict[str, dict[str, str]]] = {}
    for row in rows:
        by_process.setdefault(row["process"], {})[row["step"]] = row
    workers = sorted(by_process)
    result: dict[str, Any] = {
        "label": options.label,
        "processes": [f"{p['role']}-{p['rank']} {p['how_it_ended']}" for p in metadata["processes"]],
        "timing_mode": metadata["timing_mode"],
        "records_lost": metadata["records_lost"],
        "probe_errors": metadata["probe_errors"],
        "counters": metadata["counters"],
        "overhead": metadata["overhead"],
        "gpu_time": metadata["gpu_time"],
        "rows": {worker: len(by_process[worker]) for worker in workers},
    }
    if len(workers) == 2:
        first, second = (by_process[worker] for worker in workers)
        both = [step for step in first if step in second and first[step]["forward_time_ms"]]
        both = [step for step in both if second[step]["forward_time_ms"]]
        launched = [float(first[s]["timestamp_sec"]) - float(second[s]["timestamp_sec"]) for s in both]
        forward = [float(first[s]["forward_time_ms"]) - float(second[s]["forward_time_ms"]) for s in both]
        result["steps_of_both"] = len(both)
        result["launched_apart_us"] = [round(q * 1e6, 1) for q in statistics.quantiles(launched, n=4)]
        result["forward_apart_us"] = [round(q * 1e3, 1) for q in statistics.quantiles(forward, n=4)]
        result["forward_ms_median"] = statistics.median(float(first[s]["forward_time_ms"]) for s in both)
    result["collectives"] = collectives(session, folder / "traces", workers)
    common.say(result, options.json)


if __name__ == "__main__":
    main()
