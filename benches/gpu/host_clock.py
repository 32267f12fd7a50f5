"""What a host clock says about work on a GPU, beside CUDA events, and what each way of asking costs. Needs torch alone.

    python benches/gpu/host_clock.py [--json FILE]

The work is a chain of matrix products, launched one by one and as one CUDA graph. Each is timed in four ways: by the
host's clock around the call; by the host's clock with a synchronization after it; by two CUDA events, read when they are
done; and by the rate of many runs in a row, which needs no clock in between. Prints medians, microseconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

PRODUCTS = 64
SIZE = 2048
RUNS = 300
WARM_UP = 30


def microseconds(runs: list[float]) -> dict[str, float]:
    runs = sorted(runs)
    return {
        "p50_us": round(statistics.median(runs) * 1e6, 2),
        "p95_us": round(runs[int(len(runs) * 0.95)] * 1e6, 2),
    }


def host_clock(work: Callable[[], Any]) -> list[float]:
    """The time of the call alone, while the GPU is as busy as the host lets it be."""
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    torch.cuda.synchronize()
    return times


def host_clock_now_and_then(work: Callable[[], Any]) -> list[float]:
    """The same where the GPU is empty when the call begins."""
    times = []
    for _ in range(RUNS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    torch.cuda.synchronize()
    return times


def synchronized(work: Callable[[], Any]) -> list[float]:
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return times


def events(work: Callable[[], Any]) -> list[float]:
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(RUNS)]
    for start, end in pairs:
        start.record()
        work()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1000 for start, end in pairs]


def rate(work: Callable[[], Any], around: Callable[[Callable[[], Any]], None]) -> float:
    """Microseconds per run of many in a row."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(RUNS):
        around(work)
    torch.cuda.synchronize()
    return round((time.perf_counter() - start) / RUNS * 1e6, 2)


def with_events(work: Callable[[], Any], pair: list[Any]) -> None:
    pair[0].record()
    work()
    pair[1].record()


def with_synchronization(work: Callable[[], Any]) -> None:
    work()
    torch.cuda.synchronize()


def measure(work: Callable[[], Any]) -> dict[str, Any]:
    for _ in range(WARM_UP):
        work()
    torch.cuda.synchronize()
    pair = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    plain, paired, waiting = [], [], []
    for _ in range(9):
        # In turns, so that a change of the GPU's clock is in all three.
        plain.append(rate(work, lambda work: work()))
        paired.append(rate(work, lambda work: with_events(work, pair)))
        waiting.append(rate(work, with_synchronization))
    return {
        "rate_us": statistics.median(plain),
        "rate_with_events_us": statistics.median(paired),
        "rate_with_synchronization_us": statistics.median(waiting),
        "host_clock": microseconds(host_clock(work)),
        "host_clock_gpu_empty": microseconds(host_clock_now_and_then(work)),
        "host_clock_synchronized": microseconds(synchronized(work)),
        "events": microseconds(events(work)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Host clock, CUDA events and synchronization beside each other.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="add the result as a line")
    arguments = parser.parse_args()
    left = torch.randn(SIZE, SIZE, device="cuda", dtype=torch.bfloat16)
    small = torch.randn(64, SIZE, device="cuda", dtype=torch.bfloat16)
    results: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    for name, first in (("large", left), ("small", small)):
        out = torch.empty_like(first)

        def eager(first: torch.Tensor = first, out: torch.Tensor = out) -> None:
            for _ in range(PRODUCTS):
                torch.mm(first, left, out=out)

        results[f"{name}, launched one by one"] = measure(eager)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            eager()
        results[f"{name}, one CUDA graph"] = measure(graph.replay)
    print(json.dumps(results, indent=1))
    if arguments.json:
        with arguments.json.open("a", encoding="utf-8") as file:
            file.write(json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
