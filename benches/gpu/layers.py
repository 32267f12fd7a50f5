"""Stamps inside of real vLLM's forward passes: how true they are, and what they cost.

    python layers.py truth MODEL --label NAME [--v1] [--json FILE]
    python layers.py cost MODEL --label NAME [--cycles 100] [--seconds 240] [--json FILE]

`truth` records some steps under torch.profiler (CUPTI): decoding at batch 8, 64 and 256, and prefill; for each interval
it compares the stamps with the kernels between them in the same step.

`cost` has one process hold the CUDA graphs of decoding three times: captured without stamps, with those of sampled
layers, and with those of all. Steps of one running batch take turns with each (blocks.py); the step word is set with
the latter two only, as often as by default. Prints the loss of throughput against the first, with its 95 % interval,
by the medians of blocks and by their means (one step in sixteen does more than the others), and whether tokens are the
same.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import blocks
import common
import stamps
from truth import Trace


def export(folder: str) -> Path:
    """Closes the log of this process; the session and its tables."""
    from profilemate import _native

    _native.close()
    (session,) = Path(folder).glob("session_*")
    subprocess.run([str(common.SITE.parent / "_bin" / "profilemate"), "export", str(session)], check=True)
    return session


def runner_of(llm: Any) -> Any:
    """The model runner of an engine in this process."""
    return llm.llm_engine.model_executor.driver_worker.worker.model_runner


def truth(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Each group of steps, with what was found of its components."""
    import torch

    folder = tempfile.mkdtemp(prefix="profilemate-layers-")
    os.environ["PROFILEMATE_OUTPUT_DIR"] = folder
    os.environ["PROFILEMATE_LAYERS_EVERY"] = "1"
    common.attach()
    from profilemate import _native

    # The batches that are compared, each in a graph of its own size.
    sizes = {"cudagraph_capture_sizes": [8, 64, 256]}
    llm = common.engine(options.model, 256, max_num_batched_tokens=8192, compilation_config=sizes)
    common.generate(llm, common.prompts(8, 128, 0), [8] * 8)
    groups: list[tuple[str, list[stamps.Between], int]] = []

    def traced(group: str, batch: int, prompt: int, length: int) -> None:
        prompts = common.prompts(batch, prompt, len(groups))
        # Once without, for whatever is compiled or tuned at its first use.
        common.generate(llm, prompts, [length] * batch)
        trace = Trace()
        trace.start()
        common.generate(llm, prompts, [length] * batch)
        events = trace.stop()
        cuda = torch.autograd.DeviceType.CUDA
        kernels = [
            stamps.Kernel(event.name(), event.start_ns() / 1e3, event.duration_ns() / 1e3)
            for event in events
            if event.device_type() == cuda and not event.name().startswith(("Memcpy", "Memset"))
        ]
        groups.append((group, stamps.traced_pairs(kernels), _native.worker_step()))
        print(f"{group}: {len(kernels)} kernels, {len(groups[-1][1])} pairs of stamps", flush=True)

    with common.until_out_of_time():
        for batch in (8, 64, 256):
            traced(f"decode {batch}", batch, 16, 40)
        traced("prefill", 64, 1500, 1)
    recorded = stamps.recorded_steps(export(folder), "worker-0")
    return [stamps.compare(pairs, last, recorded, group, group.split()[0]) for group, pairs, last in groups]


class Arms:
    """The graphs of decoding without stamps, with those of sampled layers, and of all, and what launches them."""

    def __init__(self, llm: Any) -> None:
        from profilemate import _native
        from profilemate.probes import layers

        self.runner = runner_of(llm)
        self.manager = self.runner.cudagraph_manager
        places = layers._places(self.runner.vllm_config)
        sampled = {id(place.owner) for place in layers._chosen(places, everything=False)}
        hooks = [(place.owner, place.method, vars(place.owner)[place.method]) for place in places]
        hooks.append((self.runner, "sample", vars(self.runner)["sample"]))
        sampled.add(id(self.runner))
        assert all(isinstance(hook, _native.Hook) for _, _, hook in hooks)
        self.graphs: dict[str, Any] = {"all": self.manager.graphs}
        self.functions: dict[str, list[tuple[Any, str, Any]]] = {"all": hooks}
        self.functions["sample"] = [
            (owner, name, hook if id(owner) in sampled else hook.__wrapped__) for owner, name, hook in hooks
        ]
        self.functions["off"] = [(owner, name, hook.__wrapped__) for owner, name, hook in hooks]
        for arm in ("sample", "off"):
            self.put(arm)
            self.manager.graphs = {}
            self.runner.capture_model()
            assert self.manager.graphs.keys() == self.graphs["all"].keys()
            self.graphs[arm] = self.manager.graphs

    def put(self, arm: str) -> None:
        """Puts the functions of an arm in place."""
        for owner, name, function in self.functions[arm]:
            setattr(owner, name, function)

    def use(self, arm: str) -> None:
        """What runs from here on."""
        from profilemate import _native

        self.put(arm)
        self.manager.graphs = self.graphs[arm]
        _native.use_step_word(arm != "off")


def cost(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The losses of the two against none."""
    began = time.monotonic()
    os.environ["PROFILEMATE_OUTPUT_DIR"] = tempfile.mkdtemp(prefix="profilemate-layers-")
    os.environ["PROFILEMATE_LAYERS"] = "all"
    common.attach()
    # Prompts run without graphs, so that only what is captured differs in the graphs.
    llm = common.engine(options.model, 64, compilation_config={"cudagraph_mode": "FULL_DECODE_ONLY"})
    arms = Arms(llm)
    print(f"ready after {time.monotonic() - began:.1f} s", flush=True)
    prompts, lengths = common.prompts(64, 128, 1), [options.length] * 64
    order = ["off", "sample", "all"]
    tokens: dict[str, list[list[int]]] = {}
    measured: blocks.Blocks | None = None
    runs = other_tokens = 0
    with common.until_out_of_time():
        for number, arm in enumerate(["off", *order]):
            arms.use(arm)
            # The first run of all warms up.
            tokens["first" if number == 0 else arm] = common.generate(llm, prompts, lengths)
        arms.use(order[0])
        measured = blocks.Blocks(llm, arms.use, order, 64)
        while len(measured.cycles) < options.cycles and time.monotonic() < began + options.seconds:
            other_tokens += measured.run(prompts, lengths) != tokens["off"]
            runs += 1
            print(f"run {runs}: {len(measured.cycles)} cycles, {time.monotonic() - began:.1f} s", flush=True)
    return [
        {
            "layers": arm,
            **(measured.compared(arm, "off") if measured is not None else {}),
            "tokens_are_the_same": tokens.get(arm) == tokens.get("off"),
            "runs_in_blocks": runs,
            "runs_in_blocks_with_other_tokens": other_tokens,
        }
        for arm in ("sample", "all")
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["truth", "cost"])
    parser.add_argument("model")
    parser.add_argument("--label", required=True)
    parser.add_argument("--v1", action="store_true")
    parser.add_argument(
        "--cycles", type=int, default=100, help="of cost: how often each arm has two blocks of steps"
    )
    parser.add_argument("--length", type=int, default=600, help="of cost: tokens of each request")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no run after so many seconds")
    parser.add_argument("--json")
    options = parser.parse_args()
    if options.v1:
        os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    for result in truth(options) if options.what == "truth" else cost(options):
        common.say({"label": options.label, **result}, options.json)


if __name__ == "__main__":
    main()
