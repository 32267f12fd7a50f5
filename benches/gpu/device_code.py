#!/usr/bin/env python3
"""Device code on a real GPU, with torch and without vLLM: its cost, captures beside it, and how true stamps are.

    python benches/gpu/device_code.py --session FOLDER [--json FILE]

A made-up model (matrix products and softmax, 32 layers) is captured into CUDA graphs with and without stamps. Reported
are host and GPU time of the step word (a kernel, and the driver's stream memory operations for comparison), of stamps
in a graph, how long torch.profiler says that the kernels between two stamps took, and that graphs are captured beside
the thread that watches the clocks. FOLDER gets the raw log, with what the stamps say of the same steps.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from profilemate import _native

LAYERS, WIDTH, ROWS = 32, 4096, 64


def median_ns(call: Any, times: int = 2000) -> float:
    """Median nanoseconds of the host for a call, with other work's data in the caches between."""
    trash = bytearray(4 << 20)
    samples = []
    for i in range(times):
        if i % 16 == 0:
            trash[:] = bytes(len(trash))
        begin = time.perf_counter_ns()
        call()
        samples.append(time.perf_counter_ns() - begin)
        if i % 256 == 0:
            torch.cuda.synchronize()
    torch.cuda.synchronize()
    return statistics.median(samples)


def gpu_us(work: Any, times: int = 300) -> float:
    """Microseconds of the GPU for each of these, back to back."""
    for _ in range(20):
        work()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(times):
        work()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / times * 1e3


def stream_memory_operations() -> dict[str, float]:
    """What the driver's own way to write a word in stream order costs, for comparison."""
    driver = ctypes.PyDLL("libcuda.so.1")
    word = torch.zeros(4, dtype=torch.int64, device="cuda")
    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
    address = ctypes.c_uint64(word.data_ptr())
    value = ctypes.c_uint64(7)
    write = driver.cuStreamWriteValue64_v2
    write.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint]
    code = write(stream, address, value, 0)
    torch.cuda.synchronize()
    if code != 0 or word[0].item() != 7:
        return {"error": float(code)}
    nothing = driver.cuDriverGetVersion
    version = ctypes.c_int()
    return {
        "host_ns": median_ns(lambda: write(stream, address, value, 0)),
        "ctypes_host_ns": median_ns(lambda: nothing(ctypes.byref(version))),
        "gpu_us": gpu_us(lambda: write(stream, address, value, 0)),
    }


class Model:
    """Layers whose parts are functions that can be stamped."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        make = lambda: torch.randn(WIDTH, WIDTH, device="cuda", dtype=torch.bfloat16) * 0.01  # noqa: E731
        self.weights = [make() for _ in range(2 * LAYERS)]
        self.x = torch.randn(ROWS, WIDTH, device="cuda", dtype=torch.bfloat16)
        self.parts: list[Any] = [
            lambda x, i=i: torch.nn.functional.silu(x @ self.weights[2 * i]) for i in range(LAYERS)
        ]

    def run(self) -> torch.Tensor:
        x = self.x
        for i, part in enumerate(self.parts):
            x = part(x)
            x = x + (x @ self.weights[2 * i + 1]).float().softmax(-1).to(torch.bfloat16)
        return x


def capture(model: Model) -> torch.cuda.CUDAGraph:
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            model.run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        model.run()
    return graph


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--session", required=True)
    parser.add_argument("--label", default="device-code")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"gpu": torch.cuda.get_device_name(0), "driver": _native.cuda_driver_version()}
    result["stream_write_value"] = stream_memory_operations()
    model = Model()
    plain = capture(model)
    result["replay_plain_us"] = gpu_us(plain.replay)

    _native.sessions_folder_ready(arguments.session)
    _native.open(arguments.session, "worker", 0, 0, 4 << 20, 1 << 30)
    begin = time.perf_counter()
    why = _native.load_device_code(torch._C._cuda_getCurrentRawStream, 0)
    result["load_ms"] = (time.perf_counter() - begin) * 1e3
    assert why is None, why
    _native.use_step_word()
    step = 0

    def next_step(*_args: Any) -> tuple[int, int]:
        nonlocal step
        step += 1
        return step, ROWS

    begin_step = _native.Hook(
        lambda: None, "step", kind=_native.CALL, lane=_native.WORKER, marks=_native.MARK_STEP, before=next_step
    )
    no_step = _native.Hook(lambda: None, "no step", kind=_native.CALL, lane=_native.WORKER, before=lambda: None)
    result["step_word"] = {
        "host_ns": median_ns(begin_step) - median_ns(no_step),
        "gpu_us": gpu_us(begin_step),
    }
    why = _native.bind_layers([("attention", "full", i) for i in range(LAYERS)], LAYERS, 1)
    assert why is None, why
    hooks = [
        _native.Hook(part, "layers.attention", kind=_native.CALL, lane=_native.WORKER, stamp=i + 1)
        for i, part in enumerate(model.parts)
    ]
    plain_parts = model.parts
    warm_up = _native.Hook(capture, "warm_up", kind=_native.WARM_UP, lane=_native.WORKER, span="warm_up")
    for count, name in ((3, "sample"), (LAYERS, "all")):
        model.parts = [
            hook if count == LAYERS or i in (0, 15, 31) else part
            for i, (hook, part) in enumerate(zip(hooks, plain_parts, strict=True))
        ]
        graph = warm_up(model)
        # In turns: one process, one clock.
        rounds = [(gpu_us(plain.replay), gpu_us(graph.replay)) for _ in range(7)]
        result[f"replay_{name}_no_row_us_more"] = statistics.median(b - a for a, b in rounds)

        def work(graph: torch.cuda.CUDAGraph = graph) -> None:
            begin_step()
            graph.replay()

        rounds = [(gpu_us(plain.replay), gpu_us(work)) for _ in range(7)]
        result[f"replay_{name}_us_more"] = statistics.median(b - a for a, b in rounds)
        result[f"stamps_{name}"] = 2 * count
    first = step + 1
    for _ in range(300):
        work()
        time.sleep(0.003)
    torch.cuda.synchronize()
    result["steps_alone"] = [first, step]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        first = step + 1
        for _ in range(20):
            work()
        torch.cuda.synchronize()
    result["steps_profiled"] = [first, step]
    kernels = sorted(
        (e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA),
        key=lambda e: e.time_range.start,
    )
    inside, durations = False, []
    for event in kernels:
        if "profilemate_stamp" in event.name:
            inside = not inside
            if inside:
                durations.append([0.0, 0.0, 0.0])
            continue
        if inside:
            record = durations[-1]
            record[0] += event.time_range.elapsed_us()
            record[1] = record[1] or event.time_range.start
            record[2] = event.time_range.end
    result["profiler_kernel_us"] = statistics.median(d[0] for d in durations)
    result["profiler_span_us"] = statistics.median(d[2] - d[1] for d in durations)
    result["profiler_parts"] = len(durations)
    stamps = [e.time_range.elapsed_us() for e in kernels if "profilemate_stamp" in e.name]
    result["profiler_stamp_us"] = statistics.median(stamps)
    # Graphs are captured while the thread that watches the clocks is at work, which looks once a second.
    until = time.monotonic() + 4
    captures = 0
    while time.monotonic() < until:
        capture(model).replay()
        captures += 1
    torch.cuda.synchronize()
    result["captures_beside_the_clock"] = captures
    # Times between two calls of the hook itself; the newest rows come with the end.
    _native.close()
    result = {"label": arguments.label, **result}
    print("RESULT", json.dumps(result))
    if arguments.json:
        with Path(arguments.json).open("a") as file:
            file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
