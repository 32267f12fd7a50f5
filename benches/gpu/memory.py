"""Whether what we say of a GPU's memory is true, and what a look at it costs.

    python memory.py MODEL --label NAME [--v1] [--json FILE]

An engine decodes for some seconds. Just behind it, torch.cuda.memory_stats, torch.cuda.mem_get_info and nvidia-smi are
asked, and held against the last row of `gpu_memory.csv`. Then each of the two calls of a look is timed, with the GPU
idle and with work queued on it.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common


def microseconds(call: Callable[[], object], times: int) -> dict[str, float]:
    """Median and greatest time of a call on the host."""
    took = []
    for _ in range(times):
        begin = time.perf_counter_ns()
        call()
        took.append((time.perf_counter_ns() - begin) / 1e3)
    return {"median_us": round(statistics.median(took), 2), "max_us": round(max(took), 2)}


def nvidia_smi() -> dict[str, int]:
    """What the system says of the GPU that torch calls the first, bytes."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    query = "--query-gpu=memory.total,memory.used,memory.free"
    command = ["nvidia-smi", "-i", visible, query, "--format=csv,noheader,nounits"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    total, used, free = (int(value) << 20 for value in said.split(","))
    return {"total": total, "used": used, "free": free}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--label", required=True)
    parser.add_argument("--v1", action="store_true")
    parser.add_argument("--json")
    options = parser.parse_args()
    if options.v1:
        os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    folder = tempfile.mkdtemp(prefix="profilemate-memory-")
    os.environ["PROFILEMATE_OUTPUT_DIR"] = folder
    common.attach()
    llm = common.engine(options.model, 64, compilation_config={"cudagraph_capture_sizes": [64]})
    import torch

    for round_number in range(4):
        common.generate(llm, common.prompts(64, 128, round_number), [256] * 64)
    # A look comes with the first step after a second.
    time.sleep(1.1)
    common.generate(llm, common.prompts(1, 16, 9), [2])
    stats = torch.cuda.memory_stats()
    free, total = torch.cuda.mem_get_info()
    smi = nvidia_smi()
    device = torch.cuda.current_device()
    calls: dict[str, Callable[[], object]] = {
        "memory_stats": lambda: torch._C._cuda_memoryStats(device),
        "mem_get_info": lambda: torch.cuda.cudart().cudaMemGetInfo(device),
    }
    cost = {f"{name}, idle": microseconds(call, 500) for name, call in calls.items()}
    matrix = torch.ones(2048, 2048, device="cuda", dtype=torch.bfloat16)
    for name, call in calls.items():
        for _ in range(2000):
            matrix @ matrix
        cost[f"{name}, busy"] = microseconds(call, 100)
        torch.cuda.synchronize()
    from profilemate import _native

    _native.close()
    (session,) = Path(folder).glob("session_*")
    program = common.SITE.parent / "_bin" / "profilemate"
    subprocess.run([str(program), "export", str(session)], check=True)
    with (session / "gpu_memory.csv").open() as file:
        rows = list(csv.DictReader(file))
    (gpu,) = json.loads((session / "gpu_memory_summary.json").read_text())["gpus"]
    metadata = json.loads((session / "metadata.json").read_text())
    theirs = {
        "allocated_bytes": stats["allocated_bytes.all.current"],
        "reserved_bytes": stats["reserved_bytes.all.current"],
        "inactive_split_bytes": stats["inactive_split_bytes.all.current"],
        "peak_allocated_bytes": stats["allocated_bytes.all.peak"],
        "peak_reserved_bytes": stats["reserved_bytes.all.peak"],
        "allocation_retries": stats["num_alloc_retries"],
        "out_of_memory": stats["num_ooms"],
        "free_bytes": free,
        "total_bytes": total,
    }
    ours = {name: int(rows[-1][name]) for name in theirs}
    result: dict[str, Any] = {
        "label": options.label,
        "gpu": common.gpu(),
        "vllm": sys.modules["vllm"].__version__,
        "rows": len(rows),
        "seconds": round(float(rows[-1]["timestamp_sec"]) - float(rows[0]["timestamp_sec"]), 1),
        "ours": ours,
        "ours_less_theirs": {name: ours[name] - value for name, value in theirs.items()},
        "nvidia_smi_used_less_ours": smi["used"] - (ours["total_bytes"] - ours["free_bytes"]),
        "summary": gpu,
        "cost_of_a_look": cost,
        "metadata": {key: metadata.get(key) for key in ("records_lost", "probe_errors", "overhead")},
    }
    common.say(result, options.json)


if __name__ == "__main__":
    main()
