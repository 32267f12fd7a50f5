"""What sampling costs on a GPU, by feature, and whether our times of it are true.

    python sampling.py MODEL --label NAME [--v1] [--batch 64] [--json FILE]

One engine samples in several ways, one after the other, each for some hundred steps; the medians of the steps of each
way are from `sampling_timing.csv`, and what each takes more than greedy sampling is said. Some ways run once more under
torch.profiler: for each of these steps, the time from the first to the last kernel that was launched inside vLLM's
sampling function is held against our time of the same step. The V2 runner's time begins where the forward pass ended,
so it has the pause before the first kernel, too. Then our probe of sampling itself: steps of a running batch take turns
without our hook on the sampling function, with it, and with the stamps of the sampler, too (blocks.py).
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

import blocks
import common
import cost
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


def mark_regions(runner: Any, name: str) -> None:
    """Puts a record_function around each call that samples, outside of our own hook."""
    import torch

    step = 0
    execute, sample = runner.execute_model, getattr(runner, name)

    def execute_model(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal step
        step = getattr(scheduler_output, "profilemate_step", 0)
        return execute(scheduler_output, *args, **kwargs)

    def marked(*args: Any, **kwargs: Any) -> Any:
        with torch.profiler.record_function(f"region:{step}"):
            return sample(*args, **kwargs)

    runner.execute_model = execute_model
    setattr(runner, name, marked)


def generate(llm: Any, way: str, batch: int, tokens: int, seed: int) -> tuple[int, int]:
    """Samples so many tokens for each sequence; the first and the last step of it."""
    from vllm import SamplingParams

    books = common.scheduler(llm)._profilemate_books
    first = books.step + 1
    parameters = SamplingParams(**WAYS[way], max_tokens=tokens, ignore_eos=True, detokenize=False)
    llm.generate(common.prompts(batch, 64, seed), parameters, use_tqdm=False)
    return first, int(books.step)


class Probe:
    """Our hook on vLLM's sampling function, and the stamps around it: taken out and put back."""

    ARMS = ("without", "hook", "hook and stamps")

    def __init__(self, runner: Any) -> None:
        names = ("_sample", "sample")
        self.runner = runner
        self.places = [place for place in cost.places() if place[1] in names and place[0] in type(runner).__mro__]
        assert len(self.places) == 1, self.places
        self.name = self.places[0][1]
        self.stamps = vars(runner).get(self.name)
        self.counted = self.costs()

    def costs(self) -> tuple[int, int]:
        """Calls of our hook so far, and ticks of the processor in it."""
        calls, ticks = self.places[0][2].cost
        return int(calls), int(ticks)

    def since(self, per_microsecond: float) -> float | None:
        """Microseconds of a call of our hook, since this was last asked."""
        (calls, ticks), before = self.costs(), self.counted
        self.counted = calls, ticks
        return round((ticks - before[1]) / per_microsecond / (calls - before[0]), 2) if calls > before[0] else None

    def use(self, arm: str) -> None:
        """What runs from here on."""
        owner, name, hook, original = self.places[0]
        setattr(owner, name, original if arm == "without" else hook)
        if self.stamps is None:
            return
        if arm == "hook and stamps":
            setattr(self.runner, name, self.stamps)
        else:
            vars(self.runner).pop(name, None)


def ticks_per_microsecond() -> float:
    from profilemate import _native

    begin, ticks = time.perf_counter_ns(), _native.ticks()
    time.sleep(0.2)
    return float(1e3 * (_native.ticks() - ticks) / (time.perf_counter_ns() - begin))


def main() -> None:
    began = time.monotonic()
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--label", required=True)
    parser.add_argument("--v1", action="store_true")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--cycles", type=int, default=60, help="of our own probe, with and without (blocks.py)")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin nothing after so many seconds")
    parser.add_argument("--json")
    options = parser.parse_args()
    if options.v1:
        os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    folder = tempfile.mkdtemp(prefix="profilemate-sampling-")
    os.environ["PROFILEMATE_OUTPUT_DIR"] = folder
    common.attach()
    # Prompts run without a graph, and decodes of a full batch in this one.
    sizes = {"cudagraph_capture_sizes": [options.batch]}
    llm = common.engine(options.model, options.batch, compilation_config=sizes)
    print(f"engine ready after {time.monotonic() - began:.1f} s", flush=True)

    probe = Probe(llm.llm_engine.model_executor.driver_worker.worker.model_runner)
    per_microsecond = ticks_per_microsecond()
    ways: dict[str, tuple[int, int]] = {}
    hook_us: dict[str, float | None] = {}
    wanted: dict[str, dict[int, float]] = {}
    measured: blocks.Blocks | None = None

    def is_over(share: float) -> bool:
        return time.monotonic() - began > share * options.seconds

    with common.until_out_of_time():
        for place, way in enumerate(WAYS):
            if ways and is_over(1):
                break
            # Kernels are compiled the first time.
            generate(llm, way, options.batch, 8, 100 + place)
            probe.since(per_microsecond)
            ways[way] = generate(llm, way, options.batch, options.tokens, place)
            hook_us[way] = probe.since(per_microsecond)
            print(f"{way} after {time.monotonic() - began:.1f} s", flush=True)
        # In front of what stays in place for the traces.
        if not is_over(0.8):
            prompts = common.prompts(options.batch, 64, 300)
            measured = blocks.Blocks(llm, probe.use, Probe.ARMS, options.batch)
            while len(measured.cycles) < options.cycles and not is_over(0.8):
                measured.run(prompts, [1024] * options.batch)
                print(f"{len(measured.cycles)} cycles after {time.monotonic() - began:.1f} s", flush=True)
            measured.stop()
        # Kernels of stamps are none of the sampler's.
        probe.use("hook")
        mark_regions(probe.runner, probe.name)
        for place, way in enumerate(TRACED):
            if way not in ways or is_over(1):
                break
            trace = truth.Trace()
            trace.start()
            generate(llm, way, options.batch, 48, 200 + place)
            wanted[way], _ = truth.spans(trace.stop())
            print(f"traced {way} after {time.monotonic() - began:.1f} s", flush=True)
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
            "hook_us_per_step": hook_us.get(way),
            "gpu_ms_p99": round(truth.quantile(gpu, 0.99), 4) if gpu else None,
            "host_ms_median": round(statistics.median(host), 4) if host else None,
            "asked_for": {
                name: int(full[-1][name] or -1)
                for name in ("greedy", "top_k", "top_p", "min_p", "penalties", "logprobs")
            }
            if full
            else None,
        }
    greedy = said.get("greedy", {})
    for of in said.values():
        for name in ("gpu_ms_median", "host_ms_median"):
            if of[name] is not None and greedy.get(name) is not None:
                of[f"{name}_more_than_greedy"] = round(of[name] - greedy[name], 4)
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
        "gpu": common.gpu(),
        "vllm": sys.modules["vllm"].__version__,
        "batch": options.batch,
        "ways": said,
        "beside_torch_profiler": compared,
        "our_probe": [measured.compared(arm, Probe.ARMS[0]) for arm in Probe.ARMS[1:]] if measured else None,
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
    common.say(result, options.json)


if __name__ == "__main__":
    main()
