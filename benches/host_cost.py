"""Host time that the probes add to vLLM's real scheduler, everything on: no model, no GPU.

    python benches/host_cost.py MODEL_FOLDER [--steps 16] [--pairs 40] [--running 1 32 256 1000]

Two tables. *Steps*: decode steps of so many running requests through `Scheduler.schedule` and
`Scheduler.update_from_output`. *Requests*: so many requests at once from `Scheduler.add_request` to their end, with one
token each; the cost of their step is in it. Each is done with our hooks in place and with vLLM's own functions, in
turns. Given are CPU microseconds of the thread: the medians of both, the median and the quartiles of the paired
differences, and what the probes count themselves.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

SITE = Path(__file__).resolve().parent.parent / "python" / "profilemate" / "sitecustomize"
BLOCK_SIZE = 16
MAX_MODEL_LEN = 2048
#: What is hooked of the scheduler and called in every step, or for every request.
HOOKED = ("schedule", "update_from_output", "add_request", "_preempt_request", "_free_request")


def engine_config(model: str, sequences: int) -> tuple[Any, Any]:
    import torch
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec

    arguments = EngineArgs(
        model=model,
        load_format="dummy",
        enforce_eager=True,
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=sequences,
        max_num_batched_tokens=max(8192, sequences * 32),
        disable_log_stats=False,
    )
    config = arguments.create_engine_config()
    spec = FullAttentionSpec(block_size=BLOCK_SIZE, num_kv_heads=2, head_size=32, dtype=torch.float32)
    blocks = sequences * (MAX_MODEL_LEN // BLOCK_SIZE + 2) + 1
    config.cache_config.num_gpu_blocks = blocks
    kv = KVCacheConfig(num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)])
    return config, kv


class Driver:
    """A scheduler, and requests for it."""

    def __init__(self, model: str, sequences: int) -> None:
        from vllm.utils.hashing import sha256
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
        from vllm.v1.core.sched.scheduler import Scheduler
        from vllm.v1.structured_output import StructuredOutputManager

        config, kv = engine_config(model, sequences)
        self.sequences = sequences
        self.scheduler: Any = Scheduler(
            vllm_config=config,
            kv_cache_config=kv,
            structured_output_manager=StructuredOutputManager(config),
            block_size=BLOCK_SIZE,
            log_stats=True,
        )
        init_none_hash(sha256)
        self.hasher = get_request_block_hasher(BLOCK_SIZE, sha256)
        self.numbers = itertools.count()
        self.pool = self.scheduler.kv_cache_manager.block_pool
        self.collector = self.pool.metrics_collector

    def requests(self, max_tokens: int) -> list[Any]:
        """As many as run at once, none like another; their lengths differ, so that each step needs some new blocks."""
        from vllm.sampling_params import SamplingParams
        from vllm.v1.request import Request

        sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
        sampling.update_from_generation_config({}, None)
        return [
            Request(
                f"request-{number}-0123456789abcdef",
                [number, *range(2, 6 + place % BLOCK_SIZE)],
                sampling,
                None,
                arrival_time=time.time(),
                block_hasher=self.hasher,
            )
            for place, number in enumerate(itertools.islice(self.numbers, self.sequences))
        ]

    def add(self, requests: list[Any]) -> None:
        for request in requests:
            self.scheduler.add_request(request)

    def step(self) -> None:
        from vllm.v1.outputs import ModelRunnerOutput

        batch = self.scheduler.schedule()
        ids = list(batch.num_scheduled_tokens)
        output = ModelRunnerOutput(
            req_ids=ids,
            req_id_to_index={req_id: i for i, req_id in enumerate(ids)},
            sampled_token_ids=[[7] for _ in ids],
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
        )
        self.scheduler.update_from_output(batch, output)


class Switch:
    """Puts our hooks in place, or what they stand in for."""

    def __init__(self) -> None:
        from vllm.v1.core.sched.scheduler import Scheduler

        self.scheduler_class = Scheduler
        self.ours = {name: vars(Scheduler)[name] for name in HOOKED}
        self.theirs = {name: hook.__wrapped__ for name, hook in self.ours.items()}

    def set(self, driver: Driver, is_on: bool) -> None:
        for name, function in (self.ours if is_on else self.theirs).items():
            setattr(self.scheduler_class, name, function)
        # Without us vLLM tells nobody of its blocks, unless it is asked for their metrics.
        driver.pool.metrics_collector = driver.collector if is_on else None


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class Measured:
    """Microseconds with and without us, in pairs, and what the probes say."""

    def __init__(self, ticks_per_microsecond: float) -> None:
        self.ticks_per_microsecond = ticks_per_microsecond
        self.times: dict[bool, list[float]] = {True: [], False: []}
        self.reported: list[float] = []

    def add(self, is_on: bool, units: int, work: Callable[[], None]) -> None:
        from profilemate import _native

        with no_garbage_collection():
            probes = _native.statistics()[2]
            begin = time.thread_time_ns()
            work()
            self.times[is_on].append((time.thread_time_ns() - begin) / 1000 / units)
            if is_on:
                self.reported.append((_native.statistics()[2] - probes) / self.ticks_per_microsecond / units)

    def cells(self) -> list[str]:
        differences = [on - off for on, off in zip(self.times[True], self.times[False], strict=True)]
        low, middle, high = statistics.quantiles(differences, n=4)
        return [
            f"{statistics.median(self.times[False]):,.1f}",
            f"{statistics.median(self.times[True]):,.1f}",
            f"{middle:+,.1f} ({low:,.1f}, {high:,.1f})",
            f"{statistics.median(self.reported):,.2f}",
        ]


def row(cells: list[str]) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


def header(first: str, unit: str) -> None:
    columns = [first, f"without us, µs per {unit}", "with us", "difference (quartiles)", "probes' own count"]
    row(columns)
    row(["---"] + ["---:"] * (len(columns) - 1))


def steps(driver: Driver, number: int) -> None:
    for _ in range(number):
        driver.step()


def lives(driver: Driver, requests: list[Any]) -> None:
    """As many at a time as can run at once."""
    for begin in range(0, len(requests), driver.sequences):
        driver.add(requests[begin : begin + driver.sequences])
        driver.step()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--running", type=int, nargs="*", default=[1, 32, 256, 1000])
    options = parser.parse_args()

    os.environ["PROFILEMATE_OUTPUT_DIR"] = tempfile.mkdtemp(prefix="profilemate-bench-")
    os.environ["PROFILEMATE_COLLECTOR"] = "none"
    sys.path.insert(0, str(SITE))
    import sitecustomize

    sitecustomize._attach()
    import vllm.v1.core.sched.scheduler  # noqa: F401

    from profilemate import _native

    switch = Switch()
    ticks = _native.ticks()
    time.sleep(0.2)
    ticks_per_microsecond = (_native.ticks() - ticks) / 200_000

    print("Steps\n")
    header("running requests", "step")
    for running in options.running:
        driver = Driver(options.model, running)
        switch.set(driver, True)
        driver.add(driver.requests(max_tokens=MAX_MODEL_LEN))
        for _ in range(8):
            driver.step()
        measured = Measured(ticks_per_microsecond)

        for pair in range(options.pairs):
            for is_on in (bool(pair % 2), not pair % 2):
                switch.set(driver, is_on)
                # The interpreter has to get used to other functions.
                driver.step()
                measured.add(is_on, options.steps, partial(steps, driver, options.steps))
        row([f"{running:,}", *measured.cells()])

    print("\nRequests\n")
    header("at once", "request")
    for running in options.running:
        driver = Driver(options.model, running)
        measured = Measured(ticks_per_microsecond)
        rounds = max(1, 200 // running)

        for pair in range(options.pairs + 1):
            for is_on in (bool(pair % 2), not pair % 2):
                switch.set(driver, is_on)
                requests = [each for _ in range(rounds) for each in driver.requests(max_tokens=1)]
                if pair == 0:
                    lives(driver, requests)
                else:
                    measured.add(is_on, len(requests), partial(lives, driver, requests))
        row([f"{running:,}", *measured.cells()])
    # A log that is open is closed by the process that goes away.
    os._exit(0)


if __name__ == "__main__":
    main()
