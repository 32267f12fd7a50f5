"""Whether our GPU times are true: beside torch.profiler (CUPTI), step by step, in the same run of real vLLM.

    python truth.py MODEL --label NAME [--eager] [--v1] [--json FILE]

Runs prefill, decode and mixed steps. For each step, the kernels that were launched inside its forward pass are found by
the time of their launch calls, and the span from the first one's start to the last one's end is compared with the
forward_time_ms that ProfileMate wrote for the step. With `--v1`, what vLLM's own `--cudagraph-metrics` say of each step
is compared with our tables as well (its V2 runner has none).
"""

from __future__ import annotations

import argparse
import bisect
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import common


def mark_regions() -> None:
    """Puts a record_function around each forward pass, outside of our own hooks: the trace then knows the regions."""
    import torch
    from vllm.v1.worker import gpu_model_runner

    step = 0

    def execute_model(original: Any, v2: bool) -> Any:
        def wrapped(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal step
            step = getattr(scheduler_output, "profilemate_step", 0)
            if not v2 or kwargs.get("dummy_run"):
                return original(self, scheduler_output, *args, **kwargs)
            with torch.profiler.record_function(f"region:{step}"):
                return original(self, scheduler_output, *args, **kwargs)

        return wrapped

    runner = gpu_model_runner.GPUModelRunner
    runner.execute_model = execute_model(runner.execute_model, v2=False)
    forward = runner._model_forward

    def model_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.profiler.record_function(f"region:{step}"):
            return forward(self, *args, **kwargs)

    runner._model_forward = model_forward
    try:
        from vllm.v1.worker.gpu import kv_connector, model_runner
    except ImportError:
        return
    model_runner.GPUModelRunner.execute_model = execute_model(model_runner.GPUModelRunner.execute_model, v2=True)
    for connector in (kv_connector.KVConnector, kv_connector.ActiveKVConnector):
        before = vars(connector)["pre_forward"]

        def pre_forward(self: Any, *args: Any, _before: Any = before, **kwargs: Any) -> Any:
            with torch.profiler.record_function(f"prefix:{step}"):
                return _before(self, *args, **kwargs)

        connector.pre_forward = pre_forward


class Trace:
    """What torch.profiler records, without the hours that it takes to make Python objects of it."""

    def start(self) -> None:
        """Starts to record."""
        from torch._C._profiler import ProfilerActivity, ProfilerConfig, ProfilerState, _ExperimentalConfig

        config = ProfilerConfig(ProfilerState.KINETO, False, False, False, False, False, _ExperimentalConfig(), "")
        activities = {ProfilerActivity.CPU, ProfilerActivity.CUDA}
        torch = sys.modules["torch"]
        torch.autograd._prepare_profiler(config, activities)
        torch.autograd._enable_profiler(config, activities)

    def stop(self) -> list[Any]:
        """Everything that was recorded."""
        torch = sys.modules["torch"]
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        events: list[Any] = torch.autograd._disable_profiler().events()
        return events


def spans(events: list[Any]) -> tuple[dict[int, float], dict[int, int]]:
    """Step → milliseconds from its first kernel's start to its last one's end, and → number of kernels."""
    launches: dict[int, int] = {}
    kernels: list[tuple[int, int, int]] = []
    regions: dict[int, list[int]] = {}
    begins_late: dict[int, int] = {}
    cuda = sys.modules["torch"].autograd.DeviceType.CUDA
    for event in events:
        name = event.name()
        if event.device_type() == cuda:
            if not name.startswith(("region:", "prefix:")):
                start = event.start_ns()
                kernels.append((event.correlation_id(), start, start + event.duration_ns()))
        elif name.startswith("region:"):
            start, end = event.start_ns(), event.start_ns() + event.duration_ns()
            found = regions.setdefault(int(name[7:]), [start, end])
            found[0], found[1] = min(found[0], start), max(found[1], end)
        elif name.startswith("prefix:"):
            begins_late[int(name[7:])] = event.start_ns() + event.duration_ns()
        elif name.startswith("cu"):
            launches[event.correlation_id()] = event.start_ns()
    for step, begin in begins_late.items():
        regions[step][0] = begin
    order = sorted((begin, end, step) for step, (begin, end) in regions.items())
    begins = [begin for begin, _, _ in order]
    bounds: dict[int, list[int]] = {}
    counts: dict[int, int] = {}
    for correlation, start, end in kernels:
        launched = launches.get(correlation)
        if launched is None:
            continue
        at = bisect.bisect_right(begins, launched) - 1
        if at < 0 or launched > order[at][1]:
            continue
        step = order[at][2]
        bound = bounds.setdefault(step, [start, end])
        bound[0], bound[1] = min(bound[0], start), max(bound[1], end)
        counts[step] = counts.get(step, 0) + 1
    return {step: (end - begin) / 1e6 for step, (begin, end) in bounds.items()}, counts


#: What a step was dispatched as: mode, tokens without and with padding.
Dispatched = tuple[str, int, int]


def collect_graph_stats(llm: Any) -> dict[int, list[Dispatched]]:
    """Step → vLLM's own `CUDAGraphStat` of it, taken where the scheduler gets the output of the model runner."""
    found: dict[int, list[Dispatched]] = {}
    scheduler = common.scheduler(llm)
    update = scheduler.update_from_output

    def update_from_output(scheduler_output: Any, model_runner_output: Any, *args: Any, **kwargs: Any) -> Any:
        stat = model_runner_output.cudagraph_stats
        if stat is not None:
            # "CUDAGraphMode.FULL" or "FULL".
            mode = str(stat.runtime_mode).rpartition(".")[2]
            step = getattr(scheduler_output, "profilemate_step", 0)
            found.setdefault(step, []).append((mode, stat.num_unpadded_tokens, stat.num_padded_tokens))
        return update(scheduler_output, model_runner_output, *args, **kwargs)

    scheduler.update_from_output = update_from_output
    return found


def compare_graph_stats(theirs: dict[int, list[Dispatched]], session: Path) -> dict[str, Any]:
    """vLLM's own counts beside those of our tables, of the same steps."""
    ours: dict[int, list[Dispatched]] = {}
    with (session / "cuda_graph_timeline.csv").open() as file:
        for row in csv.DictReader(file):
            mode = row["descriptor"].partition(" ")[0]
            tokens = (int(row[column] or -1) for column in ("real_tokens", "padded_tokens"))
            ours.setdefault(int(row["step"]), []).append((mode, *tokens))
    differ = [step for step in sorted({*ours, *theirs}) if ours.get(step) != theirs.get(step)]
    counted = [Counter(one for step in side.values() for one in step) for side in (theirs, ours)]
    # Mode → steps, tokens without padding, padding: summed up from vLLM's, and as our table of usage says.
    sums: list[dict[str, list[int]]] = [{}, {}]
    for (mode, real, padded), count in counted[0].items():
        total = sums[0].setdefault(mode, [0, 0, 0])
        total[:] = [total[0] + count, total[1] + count * real, total[2] + count * (padded - real)]
    with (session / "cuda_graph_usage.csv").open() as file:
        for row in csv.DictReader(file):
            total = sums[1].setdefault(row["runtime_mode"], [0, 0, 0])
            columns = ("replay_count", "real_tokens", "padding_tokens")
            total[:] = [sofar + int(row[column]) for sofar, column in zip(total, columns, strict=True)]
    return {
        "steps_of_vllm": sum(map(len, theirs.values())),
        "steps_of_ours": sum(map(len, ours.values())),
        "kinds": len(counted[0]),
        "steps_that_differ": len(differ),
        "differ": [[step, theirs.get(step), ours.get(step)] for step in differ[:20]],
        "counts_equal": counted[0] == counted[1],
        "usage_equal": sums[0] == sums[1],
        "steps_tokens_padding_by_mode_vllm": sums[0],
        "steps_tokens_padding_by_mode_ours": sums[1],
    }


def quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def main() -> None:
    began = time.monotonic()
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--label", required=True)
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--v1", action="store_true")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument(
        "--seconds", type=float, default=1e9, help="begin no round after so many seconds from the start"
    )
    parser.add_argument("--tokens", type=int, default=2048, help="token budget of a step")
    parser.add_argument("--prompt", type=int, default=1500, help="tokens of a prompt in mixed steps")
    parser.add_argument("--json")
    options = parser.parse_args()
    if options.v1:
        os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    folder = tempfile.mkdtemp(prefix="profilemate-truth-")
    os.environ["PROFILEMATE_OUTPUT_DIR"] = folder
    common.attach()
    llm = common.engine(
        options.model,
        64,
        max_num_batched_tokens=options.tokens,
        enforce_eager=options.eager,
        cudagraph_metrics=True,
    )
    print(f"engine ready after {time.monotonic() - began:.1f} s", flush=True)
    # Before the first request: every step that was ever scheduled is in it.
    graph_stats = collect_graph_stats(llm) if options.v1 else {}
    common.generate(llm, common.prompts(8, 128, 0), [8] * 8)
    if options.v1:
        assert graph_stats, "vLLM gave no CUDAGraphStat"
        assert 0 not in graph_stats, "steps without a number"
    mark_regions()

    wanted: dict[int, float] = {}
    kernels: dict[int, int] = {}
    with common.until_out_of_time():
        for round_number in range(options.rounds):
            if wanted and time.monotonic() - began > options.seconds:
                break
            begin = time.perf_counter()
            trace = Trace()
            trace.start()
            # Only prompts: every step is prefill, and full.
            common.generate(llm, common.prompts(130, min(options.tokens, 2000), 10 + round_number), [1] * 130)
            # Prompts that come in while others decode.
            count = 150
            lengths = [16 + (i * 7) % 24 for i in range(count)]
            common.generate(llm, common.prompts(count, options.prompt, 20 + round_number), lengths)
            # Only decodes, of fewer and fewer sequences.
            lengths = [70 + i % 64 for i in range(64)]
            common.generate(llm, common.prompts(64, 16, 30 + round_number), lengths)
            events = trace.stop()
            traced = time.perf_counter()
            found, counted = spans(events)
            print(
                f"round {round_number}: {len(events)} events, {len(found)} steps, {traced - begin:.1f} s, read in "
                f"{time.perf_counter() - traced:.1f} s",
                flush=True,
            )
            wanted.update(found)
            kernels.update(counted)
    from profilemate import _native

    counters = _native.cuda_counters()
    runner = type(llm.llm_engine.model_executor.driver_worker.worker.model_runner)
    _native.close()
    (session,) = Path(folder).glob("session_*")
    program = common.SITE.parent / "_bin" / "profilemate"
    subprocess.run([str(program), "export", str(session)], check=True)
    rows = {}
    twice = 0
    with (session / "forward_pass_timing.csv").open() as file:
        for row in csv.DictReader(file):
            twice += int(row["step"]) in rows
            rows[int(row["step"])] = row
    groups: dict[str, list[tuple[float, float]]] = {}
    missing = 0
    for step, milliseconds in wanted.items():
        row = rows.get(step)
        if row is None or not row["forward_time_ms"]:
            missing += 1
            continue
        group = f"{row['phase']} {row['cudagraph_mode']}"
        groups.setdefault(group, []).append((float(row["forward_time_ms"]), milliseconds))
    said: dict[str, Any] = {}
    for group, pairs in sorted(groups.items()):
        errors = [ours - theirs for ours, theirs in pairs]
        within = sum(
            abs(error) <= max(0.01, 0.01 * theirs) for error, (_, theirs) in zip(errors, pairs, strict=True)
        )
        said[group] = {
            "steps": len(pairs),
            "cupti_median_ms": round(statistics.median(theirs for _, theirs in pairs), 4),
            "ours_median_ms": round(statistics.median(ours for ours, _ in pairs), 4),
            "error_us_median": round(statistics.median(errors) * 1e3, 2),
            "error_us_p01": round(quantile(errors, 0.01) * 1e3, 2),
            "error_us_p99": round(quantile(errors, 0.99) * 1e3, 2),
            "within_1pct_or_10us_pct": round(100 * within / len(pairs), 2),
        }
    idle = [float(row["gpu_idle_before_ms"]) for row in rows.values() if row["gpu_idle_before_ms"]]
    result = {
        "label": options.label,
        "runner": f"{runner.__module__}.{runner.__qualname__}",
        "gpu": common.gpu(),
        "vllm": sys.modules["vllm"].__version__,
        "steps_in_trace": len(wanted),
        "kernels_in_trace": sum(kernels.values()),
        "steps_missing": missing,
        "steps_twice": twice,
        "groups": said,
        "idle_before_ms_median": round(statistics.median(idle), 4) if idle else None,
        "cuda_counters": counters,
        "metadata": {
            key: json.loads((session / "metadata.json").read_text()).get(key)
            for key in ("timing_mode", "records_lost", "overhead", "probe_errors", "profilers")
        },
    }
    if options.v1:
        result["cudagraph_metrics"] = compare_graph_stats(graph_stats, session)
    for name in ("cuda_graph_usage.csv", "cuda_graph_captures.csv"):
        file_name = session / name
        if file_name.exists():
            result[name] = file_name.read_text().splitlines()[:12]
    common.say(result, options.json)


if __name__ == "__main__":
    main()
