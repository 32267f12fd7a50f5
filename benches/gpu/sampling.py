"""What sampling costs on a GPU, by feature, and whether our times of it are true.

    python sampling.py MODEL --label NAME [--v1] [--batch 64] [--json FILE]

One engine samples in several ways, one after the other, each for some hundred steps; the medians of the steps of each
way are from `sampling_timing.csv`. Some ways run once more under torch.profiler: for each of these steps, the time from
the first to the last kernel that was launched inside vLLM's sampling function is held against our time of the same
step. The V2 runner's time begins where the forward pass ended, so it has the pause before the first kernel, too.
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
from pathlib import Path
from typing import Any

import common
import truth

#: Way to sample → what it asks for.
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "temperature": {"temperature": 0.8},
    "top_k_top_p": {"temperature": 0.8, "top_k": 50, "top_p": 0.9},
    "min_p": {"temperature": 0.8, "min_p": 0.05},
    "penalties": {"temperature": 0, "presence_penalty": 0.5, "repetition_penalty": 1.1},
    "logprobs": {"temperature": 0, "logprobs": 5},
}
#: Those that run under torch.profiler as well.
TRACED = ("greedy", "top_k_top_p", "penalties")


def mark_regions() -> None:
    """Puts a record_function around each call that samples, outside of our own hooks."""
    import torch
    from vllm.v1.worker import gpu_model_runner

    step = 0

    def numbered(original: Any) -> Any:
        def execute_model(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal step
            step = getattr(scheduler_output, "profilemate_step", 0)
            return original(self, scheduler_output, *args, **kwargs)

        return execute_model

    def marked(original: Any) -> Any:
        def sample(self: Any, *args: Any, **kwargs: Any) -> Any:
            with torch.profiler.record_function(f"region:{step}"):
                return original(self, *args, **kwargs)

        return sample

    runners = [(gpu_model_runner.GPUModelRunner, "_sample")]
    try:
        from vllm.v1.worker.gpu import model_runner
    except ImportError:
        pass
    else:
        runners.append((model_runner.GPUModelRunner, "sample"))
    for runner, method in runners:
        runner.execute_model = numbered(runner.execute_model)
        setattr(runner, method, marked(getattr(runner, method)))


def generate(llm: Any, way: str, batch: int, tokens: int, seed: int) -> tuple[int, int]:
    """Samples so many tokens for each sequence; the first and the last step of it."""
    from vllm import SamplingParams

    books = common.scheduler(llm)._profilemate_books
    first = books.step + 1
    parameters = SamplingParams(**WAYS[way], max_tokens=tokens, ignore_eos=True, detokenize=False)
    llm.generate(common.prompts(batch, 64, seed), parameters, use_tqdm=False)
    return first, int(books.step)


def main() -> None:
    began = time.monotonic()
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--label", required=True)
    parser.add_argument("--v1", action="store_true")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=1e9, help="begin nothing after so many seconds")
    parser.add_argument("--json")
    options = parser.parse_args()
    if options.v1:
        os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    folder = tempfile.mkdtemp(prefix="profilemate-sampling-")
    os.environ["PROFILEMATE_OUTPUT_DIR"] = folder
    common.attach()
    llm = common.engine(options.model, options.batch)
    print(f"engine ready after {time.monotonic() - began:.1f} s", flush=True)
    import torch

    ways: dict[str, tuple[int, int]] = {}
    for place, way in enumerate(WAYS):
        if time.monotonic() - began > options.seconds:
            break
        # Kernels are compiled the first time.
        generate(llm, way, options.batch, 8, 100 + place)
        ways[way] = generate(llm, way, options.batch, options.tokens, place)
    mark_regions()
    wanted: dict[str, dict[int, float]] = {}
    for place, way in enumerate(TRACED):
        if time.monotonic() - began > options.seconds:
            break
        trace = truth.Trace()
        trace.start()
        generate(llm, way, options.batch, 48, 200 + place)
        wanted[way], _ = truth.spans(trace.stop())
    from profilemate import _native

    runner = type(llm.llm_engine.model_executor.driver_worker.worker.model_runner)
    _native.close()
    (session,) = Path(folder).glob("session_*")
    program = common.SITE.parent / "_bin" / "profilemate"
    subprocess.run([str(program), "export", str(session)], check=True)
    with (session / "sampling_timing.csv").open() as file:
        rows = {int(row["step"]): row for row in csv.DictReader(file)}
    said: dict[str, Any] = {}
    for way, (first, last) in ways.items():
        of_way = [rows[step] for step in range(first, last + 1) if step in rows]
        full = [row for row in of_way if row["phase"] == "decode" and int(row["batch_size"]) == options.batch]
        gpu = [float(row["sample_time_ms"]) for row in full if row["sample_time_ms"]]
        host = [float(row["host_time_ms"]) for row in full]
        said[way] = {
            "steps": len(full),
            "gpu_ms_median": round(statistics.median(gpu), 4) if gpu else None,
            "gpu_ms_p99": round(truth.quantile(gpu, 0.99), 4) if gpu else None,
            "host_ms_median": round(statistics.median(host), 4) if host else None,
            "asked_for": {
                name: int(full[-1][name] or -1)
                for name in ("greedy", "top_k", "top_p", "min_p", "penalties", "logprobs")
            }
            if full
            else None,
        }
    compared: dict[str, Any] = {}
    for way, steps in wanted.items():
        pairs = [
            (float(rows[step]["sample_time_ms"]), milliseconds)
            for step, milliseconds in steps.items()
            if step in rows and rows[step]["sample_time_ms"] and rows[step]["phase"] == "decode"
        ]
        if not pairs:
            continue
        errors = [ours - theirs for ours, theirs in pairs]
        compared[way] = {
            "steps": len(pairs),
            "kernels_ms_median": round(statistics.median(theirs for _, theirs in pairs), 4),
            "ours_ms_median": round(statistics.median(ours for ours, _ in pairs), 4),
            "error_us_median": round(statistics.median(errors) * 1e3, 2),
            "error_us_p99": round(truth.quantile(errors, 0.99) * 1e3, 2),
        }
    summary = json.loads((session / "sampling_summary.json").read_text())
    metadata = json.loads((session / "metadata.json").read_text())
    result = {
        "label": options.label,
        "runner": f"{runner.__module__}.{runner.__qualname__}",
        "gpu": torch.cuda.get_device_name(),
        "vllm": sys.modules["vllm"].__version__,
        "batch": options.batch,
        "ways": said,
        "beside_torch_profiler": compared,
        "costs": [
            {"added": mix["cost"]["added"], "to": mix["cost"]["to"], "cost_ms": mix["cost"].get("cost_ms")}
            for mix in summary["mixes"]
            if "cost" in mix and mix["batch_size_to"] == options.batch
        ],
        "share_pct": summary.get("share_pct"),
        "metadata": {
            key: metadata.get(key) for key in ("timing_mode", "records_lost", "probe_errors", "overhead")
        },
    }
    print("RESULT " + json.dumps(result), flush=True)
    if options.json:
        with Path(options.json).open("a") as file:
            file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
