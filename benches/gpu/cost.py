"""What ProfileMate costs on a GPU: throughput with and without it, in pairs, in one warmed-up process.

    python cost.py MODEL --batch 64 [--pairs 12] [--seconds 300] [--json FILE]

Runs the same prompts over and over; before each run either our hooks or vLLM's own functions are put in place. Beside
it, in the same harness and with our hooks out: vLLM's own metrics, and torch.profiler. Prints the loss of throughput
with its 95 % interval (t distribution over the pairs), one line for each part as soon as it is measured.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import blocks
import common
from blocks import T95


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
    if len(losses) < 2:
        return {"mean_pct": round(mean, 3)}
    freedom = max(key for key in T95 if key <= len(losses) - 1)
    half = T95[freedom] * statistics.stdev(losses) / math.sqrt(len(losses))
    return {"mean_pct": round(mean, 3), "low_pct": round(mean - half, 3), "high_pct": round(mean + half, 3)}


class Ours:
    """Puts our hooks, and our collectors of KV cache metrics, in place of what is vLLM's, and back."""

    def __init__(self, llm: Any) -> None:
        from profilemate import _native

        self.hooked = places()
        # The engine keeps its step function as a bound method, and stamps around the sampler are on the runner itself:
        # both call the hook of the class, whatever is in its place by then.
        self.core = llm.llm_engine.engine_core.engine_core
        self.runner = llm.llm_engine.model_executor.driver_worker.worker.model_runner
        self.on_runner = {name: hook for name, hook in vars(self.runner).items() if isinstance(hook, _native.Hook)}
        self.pools = [
            (pool, pool.metrics_collector)
            for pool in common.pools(llm)
            if isinstance(pool.metrics_collector, _native.KvCacheCollector)
        ]

    def use(self, ours: bool) -> None:
        """What runs from here on. vLLM's own collector is `None`: its metrics are off."""
        for owner, name, hook, original in self.hooked:
            setattr(owner, name, hook if ours else original)
        self.core.step_fn = getattr(self.core, self.core.step_fn.__name__)
        for name, hook in self.on_runner.items():
            if ours:
                setattr(self.runner, name, hook)
            else:
                vars(self.runner).pop(name, None)
        for pool, collector in self.pools:
            pool.metrics_collector = collector if ours else None

    def costs(self) -> list[tuple[int, int]]:
        """Calls and ticks of each hook so far."""
        return [hook.cost for _, _, hook, _ in self.hooked]

    def names(self) -> list[str]:
        """The hooked functions."""
        return [f"{getattr(owner, '__name__', '')}.{name}" for owner, name, _, _ in self.hooked]


class VllmMetrics:
    """vLLM's own `--cudagraph-metrics --kv-cache-metrics --enable-logging-iteration-details`, switched between runs.

    Its V2 model runner knows no cudagraph metrics. vLLM makes no logger of statistics when it starts at the level
    WARNING, so both states get one here: without, as it is at the level INFO and these options off.
    """

    def __init__(self, llm: Any) -> None:
        from vllm.v1.core.kv_cache_metrics import KVCacheMetricsCollector
        from vllm.v1.metrics.loggers import LoggingStatLogger, PerEngineStatLoggerAdapter

        logger = logging.getLogger("vllm")
        for each in (logger, *logger.handlers):
            each.setLevel(logging.INFO)
        self.core = llm.llm_engine.engine_core.engine_core
        self.scheduler, self.pools = self.core.scheduler, common.pools(llm)
        runner = self.core.model_executor.driver_worker.worker.model_runner
        configs = [
            llm.llm_engine.vllm_config,
            self.core.vllm_config,
            self.scheduler.vllm_config,
            runner.vllm_config,
        ]
        self.options = [config.observability_config for config in configs] + [self.scheduler.observability_config]
        self.loggers = llm.llm_engine.logger_manager.stat_loggers
        self.before = list(self.loggers)
        self.made: dict[bool, tuple[Any, Any]] = {}
        for on in (True, False):
            self._set_options(on)
            stat_logger = PerEngineStatLoggerAdapter(
                vllm_config=llm.llm_engine.vllm_config,
                engine_indexes=[0],
                per_engine_stat_logger_factory=LoggingStatLogger,
            )
            self.made[on] = stat_logger, KVCacheMetricsCollector() if on else None

    def _set_options(self, on: bool) -> None:
        for options in self.options:
            options.cudagraph_metrics = on
            options.enable_logging_iteration_details = on

    def use(self, on: bool) -> None:
        """What runs from here on."""
        self._set_options(on)
        stat_logger, collector = self.made[on]
        self.loggers[:] = [stat_logger, *self.before]
        self.scheduler.kv_metrics_collector = collector
        for pool in self.pools:
            pool.metrics_collector = collector

    def lines(self) -> int:
        """Lines of iteration details that were written so far."""
        return int(getattr(self.core, "_iteration_index", 0))


def in_pairs(
    what: str,
    use: Callable[[bool], None],
    run: Callable[[], tuple[float, Any]],
    pairs: int,
    until: float,
) -> tuple[dict[bool, list[float]], int]:
    """Seconds of runs with and without, each after the other in turn, and how many gave other tokens than the first."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    first: Any = None
    other_tokens = 0
    with common.until_out_of_time():
        for pair in range(pairs):
            if pair and time.monotonic() > until:
                break
            took_each = {}
            for with_it in (True, False) if pair % 2 else (False, True):
                use(with_it)
                took_each[with_it], tokens = run()
                first = tokens if first is None else first
                other_tokens += tokens != first
            # Pairs are kept whole.
            for with_it, took in took_each.items():
                seconds[with_it].append(took)
            print(f"{what} {pair}: without {took_each[False]:.4f} s, with {took_each[True]:.4f} s", flush=True)
    return seconds, other_tokens


def compared(seconds: dict[bool, list[float]], tokens: int) -> dict[str, Any]:
    """The loss of throughput over pairs of runs that make so many tokens."""
    losses = [100 * (1 - without / with_) for with_, without in zip(seconds[True], seconds[False], strict=True)]
    return {
        "pairs": len(losses),
        "tokens_per_s_without": round(tokens / statistics.median(seconds[False]), 1),
        "tokens_per_s_with": round(tokens / statistics.median(seconds[True]), 1),
        "throughput_loss": interval(losses),
        "loss_median_pct": round(statistics.median(losses), 3),
        "losses_pct": [round(loss, 3) for loss in losses],
    }


def in_blocks(llm: Any, ours: Ours, options: argparse.Namespace, began: float) -> dict[str, Any]:
    """The loss between steps of one running batch that take turns with our hooks and without them.

    Only decode steps are in it, and what is in the captured graphs is in both.
    """
    from profilemate import _native

    measured = blocks.Blocks(
        llm, lambda arm: ours.use(arm == "with"), ("without", "with"), options.batch, length=24, skip=8
    )
    # With larger batches the KV cache is full sooner.
    lengths = [1024 if options.batch <= 64 else 512] * options.batch
    # Others than the runs before had: prefixes are not cached, and expert models route otherwise.
    prompts = common.prompts(options.batch, options.input_length, 2)
    first: Any = None
    other_tokens = runs = 0
    with common.until_out_of_time():
        while len(measured.cycles) < options.cycles and (not runs or time.monotonic() < began + options.seconds):
            tokens = measured.run(prompts, lengths)
            first = tokens if first is None else first
            other_tokens += tokens != first
            runs += 1
            print(f"{len(measured.cycles)} cycles after {time.monotonic() - began:.1f} s", flush=True)
    ours.use(True)
    return {
        "of": "blocks of steps",
        **measured.compared("with", "without"),
        "runs": runs,
        "runs_with_other_tokens": other_tokens,
        "cuda_counters": _native.cuda_counters(),
        "records_dropped": _native.statistics()[1],
    }


def main() -> None:
    began = time.monotonic()
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--input-length", type=int, default=128)
    parser.add_argument("--output-length", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument(
        "--seconds", type=float, default=1e9, help="begin no pair after so many seconds from the start"
    )
    parser.add_argument("--vllm-metrics-pairs", type=int, default=0)
    parser.add_argument("--profiler-pairs", type=int, default=0)
    parser.add_argument(
        "--cycles", type=int, default=0, help="no pairs of runs, but blocks of steps of a running batch"
    )
    parser.add_argument("--timing", choices=["events", "lightweight", "off"])
    parser.add_argument("--label", default="")
    parser.add_argument("--json")
    options = parser.parse_args()
    os.environ["PROFILEMATE_OUTPUT_DIR"] = tempfile.mkdtemp(prefix="profilemate-cost-")
    if options.timing:
        os.environ["PROFILEMATE_TIMING"] = options.timing
    common.attach()
    llm = common.engine(options.model, options.batch)
    print(f"engine ready after {time.monotonic() - began:.1f} s", flush=True)
    batch = common.prompts(options.batch, options.input_length, 1)
    from profilemate import _native

    ours = Ours(llm)

    def run(length: int = options.output_length) -> tuple[float, list[list[int]]]:
        begin = time.perf_counter()
        tokens = common.generate(llm, batch, [length] * options.batch)
        return time.perf_counter() - begin, tokens

    def say(result: dict[str, Any]) -> None:
        result = {"label": options.label, "batch": options.batch, **result}
        print("RESULT " + json.dumps(result), flush=True)
        if options.json:
            with Path(options.json).open("a") as file:
                file.write(json.dumps(result) + "\n")

    def records(with_it: bool) -> int:
        """Records that a run writes."""
        ours.use(with_it)
        before = _native.statistics()[0]
        run()
        return _native.statistics()[0] - before

    # With and without must be what they are called, or what follows is worth nothing.
    written = [records(True), records(True), records(False), records(True)]
    assert ours.pools, "our KvCacheCollector is in no pool"
    assert min(written[0], written[1], written[3]) > 5 * options.output_length, written
    # Stamps are in the graphs, which both share; what is left of them is all that may be recorded without hooks.
    assert written[2] < written[0] / 10, written
    print(f"records of a run with, and without hooks: {written[0]}, {written[2]}", flush=True)
    timing = os.environ.get("PROFILEMATE_TIMING", "events")
    if timing == "events" and sys.modules["torch"].cuda.is_available():
        assert _native.cuda_counters() is not None, "no step is timed by events"

    begin = _native.ticks()
    time.sleep(0.2)
    per_microsecond = (_native.ticks() - begin) / 200_000

    if options.cycles:
        say(in_blocks(llm, ours, options, began))
        return

    def probes(runs: Callable[[], int]) -> tuple[float, list[tuple[float, float]]]:
        """Microseconds in all probes, and calls and microseconds of each, for one of the runs with hooks."""
        ticks, before = _native.statistics()[2], ours.costs()
        count = runs()
        micros = (_native.statistics()[2] - ticks) / per_microsecond / count
        return micros, [
            ((after[0] - calls) / count, (after[1] - own) / per_microsecond / count)
            for after, (calls, own) in zip(ours.costs(), before, strict=True)
        ]

    timed: dict[bool, list[float]] = {}
    other_tokens = 0

    def all_pairs() -> int:
        nonlocal timed, other_tokens
        timed, other_tokens = in_pairs("pair", ours.use, run, options.pairs, began + options.seconds)
        return len(timed[True])

    def short_runs() -> int:
        ours.use(True)
        for _ in range(5):
            run(2)
        return 5

    micros, hooks = probes(all_pairs)
    short_micros, short_hooks = probes(short_runs)
    steps, more_steps = options.output_length, options.output_length - 2
    say(
        {
            **compared(timed, options.batch * options.output_length),
            "probes_us_per_step": round(micros / steps, 2),
            # Of a step that only decodes; the rest of a run, given to its requests.
            "probes_us_per_decode_step": round((micros - short_micros) / more_steps, 2),
            "probes_us_per_request": round(
                (short_micros - 2 * (micros - short_micros) / more_steps) / options.batch, 2
            ),
            "calls_and_us_per_step_by_hook": {
                name: [round(calls / steps, 2), round(own / steps, 2)]
                for name, (calls, own) in zip(ours.names(), hooks, strict=True)
                if calls
            },
            "us_per_decode_step_by_hook": {
                name: round((own - short_own) / more_steps, 2)
                for name, (calls, own), (_, short_own) in zip(ours.names(), hooks, short_hooks, strict=True)
                if calls
            },
            "ms_per_step": round(1e3 * statistics.median(timed[False]) / options.output_length, 3),
            "runs_with_other_tokens": other_tokens,
            "cuda_counters": _native.cuda_counters(),
            "records_dropped": _native.statistics()[1],
            "timing": timing,
        }
    )
    if options.vllm_metrics_pairs and not common.out_of_time:
        ours.use(False)
        metrics = VllmMetrics(llm)
        metrics.use(True)
        run()
        lines = metrics.lines()
        assert lines > 0, "vLLM wrote no iteration details"
        metrics_timed, other_tokens = in_pairs(
            "vLLM's metrics, pair", metrics.use, run, options.vllm_metrics_pairs, math.inf
        )
        metrics.use(False)
        say(
            {
                "of": "vLLM's own metrics",
                **compared(metrics_timed, options.batch * options.output_length),
                "lines_per_run": round((metrics.lines() - lines) / len(metrics_timed[True]), 1),
                "runs_with_other_tokens": other_tokens,
            }
        )
    if options.profiler_pairs and not common.out_of_time:
        import torch

        ours.use(False)
        profiled: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(options.profiler_pairs):
            profiled[False].append(run()[0])
            activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
            profiler = torch.profiler.profile(activities=activities)
            profiler.start()
            profiled[True].append(run()[0])
            profiler.stop()
        say({"of": "torch.profiler", **compared(profiled, options.batch * options.output_length)})


if __name__ == "__main__":
    main()
