"""What ProfileMate costs on a GPU: throughput with and without it, in pairs, in one warmed-up process.

    python cost.py MODEL --batch 64 [--pairs 12] [--json FILE]

Runs the same prompts over and over; before each run either our hooks or vLLM's own functions are put in place. Beside
it: torch.profiler, in the same harness. Prints the loss of throughput with its 95 % interval (t distribution over the
pairs).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common

#: Two-sided 95 % of Student's t, by degrees of freedom.
T95 = {9: 2.262, 11: 2.201, 13: 2.160, 15: 2.131, 17: 2.110, 19: 2.093, 23: 2.069, 27: 2.052, 29: 2.045}


def places() -> list[tuple[Any, str, Any, Any]]:
    """Every hooked place: owner, name, our hook, vLLM's function."""
    from profilemate.session import ATTACHED

    found = []
    for attached in ATTACHED.places.values():
        for place in attached:
            module, _, path = place.partition(":")
            owner: Any = sys.modules[module]
            *owners, name = path.split(".")
            for part in owners:
                owner = getattr(owner, part)
            hook = vars(owner)[name]
            found.append((owner, name, hook, hook.__wrapped__))
    return found


def interval(losses: list[float]) -> dict[str, float]:
    """Mean and 95 % interval of the losses, in percent."""
    mean, half = statistics.mean(losses), 0.0
    freedom = max(key for key in T95 if key <= len(losses) - 1)
    half = T95[freedom] * statistics.stdev(losses) / math.sqrt(len(losses))
    return {"mean_pct": round(mean, 3), "low_pct": round(mean - half, 3), "high_pct": round(mean + half, 3)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--input-length", type=int, default=128)
    parser.add_argument("--output-length", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--profiler-pairs", type=int, default=0)
    parser.add_argument("--label", default="")
    parser.add_argument("--json")
    options = parser.parse_args()
    os.environ["PROFILEMATE_OUTPUT_DIR"] = tempfile.mkdtemp(prefix="profilemate-cost-")
    common.attach()
    llm = common.engine(options.model, options.batch)
    batch = common.prompts(options.batch, options.input_length, 1)
    lengths = [options.output_length] * options.batch
    from profilemate import _native

    hooked = places()

    def use(ours: bool) -> None:
        for owner, name, hook, original in hooked:
            setattr(owner, name, hook if ours else original)

    def run() -> tuple[float, list[list[int]]]:
        begin = time.perf_counter()
        tokens = common.generate(llm, batch, lengths)
        return time.perf_counter() - begin, tokens

    use(ours=True)
    for _ in range(3):
        run()
    seconds: dict[bool, list[float]] = {True: [], False: []}
    tokens: dict[bool, Any] = {}
    overhead_before = _native.statistics()[2]
    costs_before = [hook.cost for _, _, hook, _ in hooked]
    for pair in range(options.pairs):
        for ours in (True, False) if pair % 2 else (False, True):
            use(ours)
            took, tokens[ours] = run()
            seconds[ours].append(took)
    steps = options.output_length * options.pairs
    overhead_ticks = _native.statistics()[2] - overhead_before
    begin = _native.ticks()
    time.sleep(0.2)
    per_microsecond = (_native.ticks() - begin) / 200_000
    costs = {
        f"{getattr(owner, '__name__', '')}.{name}": [
            round((hook.cost[0] - before[0]) / steps, 2),
            round((hook.cost[1] - before[1]) / per_microsecond / steps, 2),
        ]
        for (owner, name, hook, _), before in zip(hooked, costs_before, strict=True)
        if hook.cost[0] > before[0]
    }
    losses = [100 * (1 - without / with_) for with_, without in zip(seconds[True], seconds[False], strict=True)]
    result: dict[str, Any] = {
        "label": options.label,
        "batch": options.batch,
        "pairs": options.pairs,
        "tokens_per_s_without": round(
            options.batch * options.output_length / statistics.median(seconds[False]), 1
        ),
        "tokens_per_s_with": round(options.batch * options.output_length / statistics.median(seconds[True]), 1),
        "throughput_loss": interval(losses),
        "losses_pct": [round(loss, 3) for loss in losses],
        "probes_us_per_step": round(overhead_ticks / per_microsecond / steps, 2),
        "calls_and_us_per_step_by_hook": costs,
        "ms_per_step": round(1e3 * statistics.median(seconds[False]) / options.output_length, 3),
        "same_tokens": tokens[True] == tokens[False],
        "cuda_counters": _native.cuda_counters(),
        "timing": os.environ.get("PROFILEMATE_TIMING", "events"),
    }
    if options.profiler_pairs:
        import torch

        use(ours=False)
        profiled = []
        for _ in range(options.profiler_pairs):
            without, _ = run()
            activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
            profiler = torch.profiler.profile(activities=activities)
            profiler.start()
            with_, _ = run()
            profiler.stop()
            profiled.append(100 * (1 - without / with_))
        result["torch_profiler_losses_pct"] = [round(loss, 2) for loss in profiled]
    print("RESULT " + json.dumps(result), flush=True)
    if options.json:
        with Path(options.json).open("a") as file:
            file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
