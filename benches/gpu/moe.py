"""Whether experts are counted right on a GPU, inside CUDA graphs too, and what that costs.

    python moe.py exact MODEL --label NAME [--json FILE]
    python moe.py cost MODEL --label NAME [--batch 64] [--cycles 100] [--seconds 150] [--json FILE]

exact   Prefill in pieces, mixed steps and decodes in FULL graphs with padding. What the tables say of each layer and
        expert is compared with vLLM's own return of routed experts, told by the same routers in the same run.
cost    In one process, the graph of decoding is captured without counters, with them, and with pairs of experts and
        routing weights, too. Steps of one running batch take turns with each (blocks.py). Prints the loss of throughput
        with its 95 % interval, microseconds per layer, and whether all tokens were the same. The kernel that tells the
        GPU which step runs is in all of them.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import blocks
import common

ROOT = Path(__file__).resolve().parents[2]


def worker_of(llm: Any) -> Any:
    return llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker


def exact(options: argparse.Namespace, sessions: str) -> dict[str, Any]:
    import numpy as np
    from vllm import SamplingParams

    from profilemate import _native

    llm = common.engine(
        options.model, options.batch, max_num_batched_tokens=1024, enable_return_routed_experts=True
    )
    spread_tokens(llm)
    layers = {
        module.layer_id: module.router
        for module in worker_of(llm).model_runner.model.modules()
        if hasattr(getattr(module, "router", None), "set_capture_fn")
    }
    # Lengths that differ: prompts longer than a step's budget, and batches that shrink, so that graphs are padded.
    lengths = [(37 + 211 * number % 1400, 40 + 7 * number % 160) for number in range(options.batch)]
    batch = [common.prompts(1, prompt, number)[0] for number, (prompt, _) in enumerate(lengths)]
    answers = llm.generate(
        batch,
        [SamplingParams(max_tokens=out, ignore_eos=True, temperature=0, detokenize=False) for _, out in lengths],
        use_tqdm=False,
    )
    tokens = sum(prompt + out - 1 for prompt, out in lengths)
    # By layer: what vLLM returns of each token that was computed.
    wanted = {layer: np.zeros(router.global_num_experts, dtype=np.int64) for layer, router in layers.items()}
    returned = 0
    for answer in answers:
        routed = np.asarray(answer.outputs[0].routed_experts)
        returned += len(routed)
        for layer, counts in wanted.items():
            counts += np.bincount(routed[:, layer].ravel().astype(np.int64), minlength=len(counts))
    _native.close()
    (session,) = Path(sessions).glob("session_*")
    program = ROOT / "python" / "profilemate" / "_bin" / "profilemate"
    subprocess.run([str(program), "export", str(session)], check=True, stdout=subprocess.DEVNULL)
    found: dict[int, dict[int, int]] = defaultdict(dict)
    with (session / "moe_expert_tracking" / "moe_expert_activations.csv").open() as file:
        for row in csv.DictReader(file):
            found[int(row["layer_idx"])][int(row["expert_id"])] = int(row["activation_count"])
    with (session / "cuda_graph_usage.csv").open() as file:
        usage = {}
        for row in csv.DictReader(file):
            mode = usage.setdefault(row["runtime_mode"], [0, 0])
            mode[0] += int(row["replay_count"])
            mode[1] += int(row["padding_tokens"])
    metadata = json.loads((session / "metadata.json").read_text())
    off = sum(
        abs(found[layer].get(expert, 0) - int(count))
        for layer, counts in wanted.items()
        for expert, count in enumerate(counts)
    )
    top_k = next(iter(layers.values())).top_k
    totals = {sum(found[layer].values()) for layer in layers}
    return {
        "what": "exact",
        "layers": len(layers),
        "experts": len(next(iter(wanted.values()))),
        "top_k": top_k,
        "tokens": tokens,
        "tokens_returned_by_vllm": returned,
        "total_per_layer": sorted(totals),
        "is_tokens_times_top_k": totals == {tokens * top_k},
        "activations_that_differ": int(off),
        "is_exact": bool(off == 0 and returned == tokens and totals == {tokens * top_k}),
        "steps_and_padding_by_mode": usage,
        "profiler": metadata["profilers"]["moe_expert_tracking"],
        "probe_errors": metadata["probe_errors"],
        "cuda_counters": _native.cuda_counters(),
    }


def spread_tokens(llm: Any) -> None:
    """With random weights, correction biases are so much larger than what gates say that all tokens go the same way."""
    for module in worker_of(llm).model_runner.model.modules():
        bias = getattr(getattr(module, "gate", None), "e_score_correction_bias", None)
        layer = getattr(getattr(module, "experts", None), "layer_id", None)
        if bias is not None and layer is not None:
            bias.data.copy_((1e-3 * bias.data).roll(layer, 0))


class Graphs:
    """Sets of captured graphs, each with what routers tell in steps without a graph, of which one is in use."""

    def __init__(self, llm: Any) -> None:
        from vllm.compilation.cuda_graph import CUDAGraphWrapper

        self.worker = worker_of(llm)
        self.runner = self.worker.model_runner
        self.wrappers = list(CUDAGraphWrapper._all_instances)
        assert self.wrappers, "no wrapper of CUDA graphs: the model runner is another one"
        self.modules = [
            module
            for module in self.runner.model.modules()
            if hasattr(getattr(module, "router", None), "set_capture_fn")
        ]
        self.sets: dict[str, Any] = {}

    def keep(self, name: str) -> None:
        """What is captured and told now has this name."""
        self.sets[name] = (
            [dict(wrapper.concrete_cudagraph_entries) for wrapper in self.wrappers],
            [self._told(module) for module in self.modules],
        )

    @staticmethod
    def _told(module: Any) -> tuple[Any, Any, Any]:
        return (
            module.router.capture_fn,
            module.router.__dict__.get("select_experts"),
            module.__dict__.get("_apply_quant_method"),
        )

    @staticmethod
    def _tell(module: Any, told: tuple[Any, Any, Any]) -> None:
        module.router.set_capture_fn(told[0])
        for owner, name, function in (
            (module.router, "select_experts", told[1]),
            (module, "_apply_quant_method", told[2]),
        ):
            if function is not None:
                setattr(owner, name, function)
            else:
                owner.__dict__.pop(name, None)

    def capture(self, name: str, bind: Callable[[], None]) -> None:
        """Captures all graphs again, with what `bind` has told."""
        for module in self.modules:
            self._tell(module, (None, None, None))
        for wrapper in self.wrappers:
            wrapper.concrete_cudagraph_entries = {}
        bind()
        self.runner.capture_model()
        self.keep(name)

    def use(self, name: str) -> None:
        entries, told = self.sets[name]
        for wrapper, of in zip(self.wrappers, entries, strict=True):
            wrapper.concrete_cudagraph_entries = of
        for module, of in zip(self.modules, told, strict=True):
            self._tell(module, of)


def cost(options: argparse.Namespace, began: float) -> Iterator[dict[str, Any]]:
    from profilemate import _native
    from profilemate.probes import moe_experts
    from profilemate.settings import settings

    llm = common.engine(
        options.model,
        options.batch,
        gpu_memory_utilization=options.gpu_memory,
        # The only graph that is compared, captured three times.
        compilation_config={"cudagraph_mode": "FULL_DECODE_ONLY", "cudagraph_capture_sizes": [options.batch]},
    )
    print(f"engine ready after {time.monotonic() - began:.1f} s", flush=True)
    graphs = Graphs(llm)
    graphs.keep("counters")
    assert all(module.router.capture_fn is not None for module in graphs.modules), "nothing is counted"
    assert any(graphs.sets["counters"][0]), "no graph was captured"
    layers = len(graphs.modules)

    def everything() -> None:
        values = settings()
        values["moe_coselection"] = values["moe_weights"] = True
        moe_experts.watch_experts(graphs.worker)

    arms = ["without", "counters"]
    graphs.capture("without", lambda: None)
    if not options.counters_only:
        graphs.capture("everything", everything)
        arms.append("everything")
    print(f"captured after {time.monotonic() - began:.1f} s", flush=True)
    batch = common.prompts(options.batch, options.input_length, 1)
    lengths = [options.output_length] * options.batch
    tokens: dict[str, list[list[int]]] = {}
    measured: blocks.Blocks | None = None
    runs = other_tokens = 0
    with common.until_out_of_time():
        # Whole runs of one arm: Triton compiles in the first, and the others have to give the same tokens.
        for number, name in enumerate(("without", *arms)):
            graphs.use(name)
            tokens["first" if number == 0 else name] = common.generate(llm, batch, lengths)
        print(f"warm after {time.monotonic() - began:.1f} s", flush=True)
        graphs.use(arms[0])
        measured = blocks.Blocks(llm, graphs.use, arms, options.batch)
        while len(measured.cycles) < options.cycles and time.monotonic() < began + options.seconds:
            other_tokens += measured.run(batch, lengths) != tokens["without"]
            runs += 1
            print(f"run {runs}: {len(measured.cycles)} cycles, {time.monotonic() - began:.1f} s", flush=True)
    for name in arms[1:]:
        found = measured.compared(name, "without") if measured is not None else {}
        per_layer = {
            f"{clock}us_per_layer_and_step": {
                value: round(each / layers, 4) for value, each in found[f"{clock}us_per_step"].items()
            }
            for clock in ("", "gpu_")
            if f"{clock}us_per_step" in found
        }
        yield {
            "what": f"cost of {name}",
            "layers": layers,
            "batch": options.batch,
            **found,
            **per_layer,
            "greedy_tokens_compared": options.batch * options.output_length,
            "tokens_are_the_same": tokens.get(name) == tokens.get("without"),
            "runs_in_blocks": runs,
            "runs_in_blocks_with_other_tokens": other_tokens,
            "cuda_counters": _native.cuda_counters(),
            "records_dropped": _native.statistics()[1],
        }


def main() -> None:
    began = time.monotonic()
    parser = argparse.ArgumentParser(description="Experts counted on a GPU: right, and at what cost")
    parser.add_argument("what", choices=["exact", "cost"])
    parser.add_argument("model")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--input-length", type=int, default=128)
    parser.add_argument("--output-length", type=int, default=1024)
    parser.add_argument("--cycles", type=int, default=100, help="each arm has two blocks of steps in a cycle")
    parser.add_argument("--counters-only", action="store_true", help="without pairs and weights")
    parser.add_argument("--seconds", type=float, default=150, help="begin no run after so many seconds")
    parser.add_argument("--gpu-memory", type=float, default=0.85)
    parser.add_argument("--label", default="")
    parser.add_argument("--json")
    options = parser.parse_args()
    sessions = tempfile.mkdtemp(prefix="profilemate-moe-")
    os.environ["PROFILEMATE_OUTPUT_DIR"] = sessions
    if options.what == "cost":
        # Stamps around routers are bound where counting is: without the one the others would be gone, too.
        os.environ["PROFILEMATE_LAYERS"] = "off"
    common.attach()
    results = iter([exact(options, sessions)]) if options.what == "exact" else cost(options, began)
    for result in results:
        common.say(
            {"label": options.label, "gpu": common.gpu(), "model": Path(options.model).name, **result},
            options.json,
        )


if __name__ == "__main__":
    main()
