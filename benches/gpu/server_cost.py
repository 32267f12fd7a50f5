"""What everything that is on by default costs a server, and how long its probes take of each process.

    python server_cost.py MODEL --batch 64 [--pairs 12] [--seconds 240] [--label NAME] [--json FILE]

As `vllm serve` has it, the front end is one process and the engine, with its model, another. The same prompts run over
and over; before each run either our hooks or vLLM's own functions are put in place in both, and with them CUDA graphs
that were captured with our stamps in them, or without. Prints the loss of throughput with its 95 % interval, and how
long all probes of each process took of a step that only decodes, by their own count.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import common  # noqa: E402
import cost  # noqa: E402


def running_methods() -> Iterator[Any]:
    """The objects whose methods run now, in any thread."""
    for frame in sys._current_frames().values():
        at: FrameType | None = frame
        while at is not None:
            yield at.f_locals.get("self")
            at = at.f_back


class EngineSide:
    """The engine's process: its hooks, its collectors of KV cache metrics, and its graphs."""

    def __init__(self, worker: Any) -> None:
        from profilemate import _native
        from profilemate.probes import layers

        self.native = _native
        self.hooked = cost.places()
        # vLLM for the CPU has its worker in another process than its scheduler.
        core = next((caller for caller in running_methods() if hasattr(caller, "scheduler")), None)
        self.core = core
        self.pools = [
            (pool, pool.metrics_collector)
            for pool in (common.pools_of(core.scheduler) if core else [])
            if isinstance(pool.metrics_collector, _native.KvCacheCollector)
        ]
        runner = worker.model_runner
        found = [(place.owner, place.method) for place in layers._places(runner.vllm_config)]
        self.layers = [
            (owner, name, hook, hook.__wrapped__)
            for owner, name in found
            if isinstance(hook := vars(owner).get(name), _native.Hook)
        ]
        # Around the method of the class, whichever that is by then.
        self.runner = runner
        self.on_runner = {name: hook for name, hook in vars(runner).items() if isinstance(hook, _native.Hook)}
        self.manager = getattr(runner, "cudagraph_manager", None) if self.layers else None
        self.graphs: dict[bool, Any] = {}
        if self.manager is not None:
            self.graphs[True] = self.manager.graphs
            self._put(False)
            self.manager.graphs = {}
            runner.capture_model()
            assert self.manager.graphs.keys() == self.graphs[True].keys()
            self.graphs[False] = self.manager.graphs

    def _put(self, ours: bool) -> None:
        for owner, name, hook, original in (*self.hooked, *self.layers):
            setattr(owner, name, hook if ours else original)
        for name, hook in self.on_runner.items():
            if ours:
                setattr(self.runner, name, hook)
            else:
                vars(self.runner).pop(name, None)
        if self.core is not None:
            # The engine keeps its step function as a bound method.
            self.core.step_fn = getattr(self.core, self.core.step_fn.__name__)

    def use(self, ours: bool) -> None:
        """What runs from here on. vLLM's own collector is `None`: its metrics are off."""
        self._put(ours)
        for pool, collector in self.pools:
            pool.metrics_collector = collector if ours else None
        if self.manager is not None:
            self.manager.graphs = self.graphs[ours]
            self.native.use_step_word(ours)

    def state(self) -> dict[str, Any]:
        """Records written and dropped, ticks in all probes, and calls and ticks of each."""
        names = [f"{getattr(owner, '__name__', '')}.{name}" for owner, name, _, _ in self.hooked]
        costs = [hook.cost for _, _, hook, _ in self.hooked]
        for owner, name, hook, _ in self.layers:
            names.append(f"stamps of {type(owner).__name__}.{name}")
            costs.append(hook.cost)
        for name, hook in self.on_runner.items():
            names.append(f"stamps of {type(self.runner).__name__}.{name}")
            costs.append(hook.cost)
        return {
            "statistics": self.native.statistics(),
            "hooks": dict(zip(names, costs, strict=True)),
            "collectors": len(self.pools),
            "graphs": {str(ours): len(graphs) for ours, graphs in self.graphs.items()},
            "cuda_counters": self.native.cuda_counters(),
            "cuda": sys.modules["torch"].cuda.is_available(),
        }


_engine: EngineSide | None = None


def in_engine(worker: Any, what: str, *arguments: Any) -> Any:
    """Runs in the engine's process."""
    global _engine
    if _engine is None:
        _engine = EngineSide(worker)
    return getattr(_engine, what)(*arguments)


def micros_by_process(
    before: list[dict[str, Any]], after: list[dict[str, Any]], per_microsecond: float
) -> list[dict[str, float]]:
    """Microseconds in all probes, and in each hook, of the engine's process and of the front end's."""
    found = []
    for earlier, later in zip(before, after, strict=True):
        all_ticks = later["statistics"][2] - earlier["statistics"][2]
        micros = {"all": all_ticks / per_microsecond}
        for name, (_, ticks) in later["hooks"].items():
            micros[name] = (ticks - earlier["hooks"][name][1]) / per_microsecond
        found.append(micros)
    return found


def main() -> None:
    began = time.monotonic()
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--input-length", type=int, default=128)
    parser.add_argument("--output-length", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no pair after so many seconds")
    parser.add_argument("--label", default="")
    parser.add_argument("--json")
    options = parser.parse_args()
    os.environ.update(
        PROFILEMATE_OUTPUT_DIR=tempfile.mkdtemp(prefix="profilemate-cost-"),
        VLLM_ENABLE_V1_MULTIPROCESSING="1",
        # What runs in the engine's process is sent there as a function.
        VLLM_ALLOW_INSECURE_SERIALIZATION="1",
        PYTHONPATH=os.pathsep.join([str(common.SITE), str(HERE), os.environ.get("PYTHONPATH", "")]),
    )
    common.attach()
    from vllm import LLM

    llm = LLM(
        model=options.model,
        load_format="dummy",
        seed=0,
        max_num_seqs=options.batch,
        max_model_len=2048,
        gpu_memory_utilization=0.8,
        enable_prefix_caching=False,
        # As with one GPU: the model runs in the engine's process.
        distributed_executor_backend="uni",
        disable_log_stats=False,
    )
    print(f"engine ready after {time.monotonic() - began:.1f} s", flush=True)
    # By reference: the engine's process imports this file.
    import server_cost

    from profilemate import _native

    front_end = cost.places()

    def engine(what: str, *arguments: Any) -> Any:
        (answer,) = llm.collective_rpc(server_cost.in_engine, args=(what, *arguments))
        return answer

    def use(ours: bool) -> None:
        for owner, name, hook, original in front_end:
            setattr(owner, name, hook if ours else original)
        engine("use", ours)

    def states() -> list[dict[str, Any]]:
        names = [f"{getattr(owner, '__name__', '')}.{name}" for owner, name, _, _ in front_end]
        costs = [hook.cost for _, _, hook, _ in front_end]
        return [
            engine("state"),
            {"statistics": _native.statistics(), "hooks": dict(zip(names, costs, strict=True))},
        ]

    batch = common.prompts(options.batch, options.input_length, 1)

    def run(length: int = options.output_length) -> tuple[float, list[list[int]]]:
        begin = time.perf_counter()
        tokens = common.generate(llm, batch, [length] * options.batch)
        return time.perf_counter() - begin, tokens

    def records(ours: bool) -> int:
        """Records that a run writes in the engine's process."""
        use(ours)
        before = engine("state")["statistics"][0]
        run()
        return int(engine("state")["statistics"][0] - before)

    # With and without must be what they are called, or what follows is worth nothing.
    written = [records(True), records(True), records(False), records(True)]
    first = engine("state")
    print(f"records of a run: {written}; {first['collectors']} collectors, graphs {first['graphs']}", flush=True)
    assert first["collectors"] > 0 or not first["cuda"], "our KvCacheCollector is in no pool"
    assert min(written[0], written[1], written[3]) > 5 * options.output_length, written
    assert written[2] < written[0] / 100, written
    begin = _native.ticks()
    time.sleep(0.2)
    per_microsecond = (_native.ticks() - begin) / 200_000

    before = states()
    seconds, other_tokens = cost.in_pairs("pair", use, run, options.pairs, began + options.seconds)
    after = states()
    long_runs = len(seconds[True])
    use(True)
    run(2)
    short_before = states()
    short_runs = 5
    for _ in range(short_runs):
        run(2)
    short_after = states()
    more_steps = options.output_length - 2
    decode = []
    for long, short in zip(
        micros_by_process(before, after, per_microsecond),
        micros_by_process(short_before, short_after, per_microsecond),
        strict=True,
    ):
        each = {
            name: (micros / long_runs - short[name] / short_runs) / more_steps for name, micros in long.items()
        }
        each["beside the hooks"] = each["all"] - sum(micros for name, micros in each.items() if name != "all")
        decode.append({name: round(micros, 2) for name, micros in each.items() if abs(micros) >= 0.01})
    result = {
        "label": options.label,
        "batch": options.batch,
        **cost.compared(seconds, options.batch * options.output_length),
        "ms_per_step": round(1e3 * sorted(seconds[False])[long_runs // 2] / options.output_length, 3),
        "engine_us_per_decode_step": decode[0],
        "front_end_us_per_decode_step": decode[1],
        "runs_with_other_tokens": other_tokens,
        "cuda_counters": after[0]["cuda_counters"],
        "records_dropped": after[0]["statistics"][1],
        "graphs": after[0]["graphs"],
    }
    common.say(result, options.json)


if __name__ == "__main__":
    main()
