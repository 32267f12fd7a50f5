"""Whether our times of encoders and decoder are true on a GPU, and that they add no synchronization.

    python encoder.py MODEL whisper|qwen3vl --label NAME [--v1] [--encoder-graphs] [--json FILE]

MODEL is a folder of `scripts/make_models.py` (whisper-medium, qwen3vl-4b). Inputs come while other requests decode, in
CUDA graphs as vLLM captures them by itself. Each call of an encoder and each forward pass is compared with
torch.profiler (CUPTI): from the start of the first kernel that was launched inside it to the end of the last one. The
calls of CUDA that wait for the GPU are counted in the same trace, in rounds with our hooks and in rounds without.
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
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import common
import cost
import truth

#: Inputs of a round: as many as fit into one step, several times. To prepare an image takes the host a while.
INPUTS = {"whisper": 128, "qwen3vl": 96}
#: What is captured: decoding, for as many sequences. Each size more takes time when the engine starts.
SIZES = {"whisper": [8, 16, 32, 48, 64, 80, 96, 112, 128], "qwen3vl": [8, 16, 32, 48, 64, 80, 96]}
#: Tokens of a step: encoders may take as many embeddings. 16 pieces of audio of 1,500; 8 images of 1,024 and their
#: text.
BUDGET = {"whisper": 24_000, "qwen3vl": 8_448}
REGIONS = ("region:", "prefix:", "encoder:")
#: Functions of CUDA that wait for the GPU, by a part of their names.
WAITS = "Synchronize"


def asked(kind: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Prompts with an input each, all different: nothing is found in a cache."""
    import numpy as np

    chance = np.random.default_rng(seed)
    if kind == "whisper":
        prompt = "<|startoftranscript|><|en|><|transcribe|><|notimestamps|>"
        sounds = [chance.standard_normal(16_000 * 30).astype("float32") for _ in range(count)]
        return [{"prompt": prompt, "multi_modal_data": {"audio": (sound, 16_000)}} for sound in sounds]
    from PIL import Image

    images = [Image.fromarray(chance.integers(0, 255, (1024, 1024, 3), dtype="uint8")) for _ in range(count)]
    prompt = "what is this <|vision_start|><|image_pad|><|vision_end|>"
    return [{"prompt": prompt, "multi_modal_data": {"image": image}} for image in images]


def mark_encoders(model: Any) -> None:
    """Puts a record_function around each call of an encoder, outside of our own hooks."""
    import torch

    from profilemate import _native

    calls: Counter[int] = Counter()
    inside = False

    def marked(original: Any) -> Any:
        def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            if inside:
                return original(self, *args, **kwargs)
            step = _native.worker_step()
            inside = True
            try:
                with torch.profiler.record_function(f"encoder:{step}:{calls[step]}"):
                    return original(self, *args, **kwargs)
            finally:
                calls[step] += 1
                inside = False

        return wrapped

    owner = next(base for base in type(model).__mro__ if "embed_multimodal" in vars(base))
    owner.embed_multimodal = marked(vars(owner)["embed_multimodal"])
    try:
        from vllm.v1.worker.encoder_cudagraph import EncoderCudaGraphManager
    except ImportError:
        return
    EncoderCudaGraphManager.execute = marked(vars(EncoderCudaGraphManager)["execute"])


def device_times(events: list[Any]) -> dict[str, tuple[float, float]]:
    """Region → milliseconds from its first kernel's start to its last one's end, and in kernels and copies."""
    cuda = sys.modules["torch"].autograd.DeviceType.CUDA
    launches: dict[int, int] = {}
    work: list[tuple[int, int, int]] = []
    regions: dict[str, list[int]] = {}
    begins_late: dict[str, int] = {}
    for event in events:
        name, start = event.name(), event.start_ns()
        end = start + event.duration_ns()
        if event.device_type() == cuda:
            if not name.startswith(REGIONS):
                work.append((event.correlation_id(), start, end))
        elif name.startswith("prefix:"):
            begins_late[f"region:{name[7:]}"] = end
        elif name.startswith(REGIONS):
            found = regions.setdefault(name, [start, end])
            found[0], found[1] = min(found[0], start), max(found[1], end)
        elif name.startswith("cu"):
            launches[event.correlation_id()] = start
    for name, begin in begins_late.items():
        regions[name][0] = begin
    order = sorted((begin, end, name) for name, (begin, end) in regions.items())
    begins = [begin for begin, _, _ in order]
    bounds: dict[str, list[int]] = {}
    busy: Counter[str] = Counter()
    for correlation, start, end in work:
        launched = launches.get(correlation)
        at = bisect.bisect_right(begins, launched) - 1 if launched is not None else -1
        if at < 0 or launched is None or launched > order[at][1]:
            continue
        name = order[at][2]
        bound = bounds.setdefault(name, [start, end])
        bound[0], bound[1] = min(bound[0], start), max(bound[1], end)
        busy[name] += end - start
    return {name: ((end - begin) / 1e6, busy[name] / 1e6) for name, (begin, end) in bounds.items()}


def waits(events: list[Any]) -> Counter[str]:
    """Calls that wait for the GPU, by the name of the function."""
    cuda = sys.modules["torch"].autograd.DeviceType.CUDA
    names = (event.name() for event in events if event.device_type() != cuda)
    return Counter(name for name in names if name.startswith("cu") and WAITS in name)


def compared(pairs: list[tuple[float, float, float]]) -> dict[str, Any]:
    """Our milliseconds beside those of the trace: of the whole, and of each."""
    errors = sorted(100 * (ours / theirs - 1) for ours, theirs, _ in pairs)
    ours, theirs, busy = (sum(column) for column in zip(*pairs, strict=True))
    return {
        "count": len(pairs),
        "ours_ms": round(ours, 3),
        "cupti_ms": round(theirs, 3),
        "cupti_in_kernels_ms": round(busy, 3),
        "error_pct": round(100 * (ours / theirs - 1), 3),
        "error_pct_median": round(statistics.median(errors), 3),
        "error_pct_least": round(errors[0], 3),
        "error_pct_most": round(errors[-1], 3),
        "within_2pct_pct": round(100 * sum(abs(error) <= 2 for error in errors) / len(errors), 2),
    }


class Hooks:
    """Puts our hooks in place of vLLM's functions, and back; those on layers, too."""

    def __init__(self, worker: Any) -> None:
        from profilemate import _native

        self.places = cost.places()
        layers = worker.vllm_config.compilation_config.static_forward_context.values()
        self.layers = [
            (layer.impl, hook)
            for layer in layers
            if isinstance(hook := vars(getattr(layer, "impl", object)).get("forward"), _native.Hook)
        ]

    @contextmanager
    def out(self) -> Iterator[None]:
        """Without our hooks in here."""
        for owner, name, _, original in self.places:
            setattr(owner, name, original)
        for implementation, _ in self.layers:
            del implementation.forward
        try:
            yield
        finally:
            for owner, name, hook, _ in self.places:
                setattr(owner, name, hook)
            for implementation, hook in self.layers:
                implementation.forward = hook


def main() -> None:
    began = time.monotonic()
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("kind", choices=sorted(INPUTS))
    parser.add_argument("--label", required=True)
    parser.add_argument("--v1", action="store_true", help="vLLM's V1 model runner")
    parser.add_argument("--encoder-graphs", action="store_true", help="encoders in CUDA graphs, V1")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--seconds", type=float, default=1e9, help="begin no round after so many seconds from the start"
    )
    parser.add_argument("--json")
    options = parser.parse_args()
    if options.v1 or options.encoder_graphs:
        # In vLLM 0.26 only the V1 runner has graphs of encoders.
        os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    folder = tempfile.mkdtemp(prefix="profilemate-encoder-")
    os.environ["PROFILEMATE_OUTPUT_DIR"] = folder
    common.attach()
    kind = options.kind
    more: dict[str, Any] = {"limit_mm_per_prompt": {"image": 1, "video": 0}} if kind == "qwen3vl" else {}
    more["compilation_config"] = {"cudagraph_capture_sizes": SIZES[kind]}
    if options.encoder_graphs:
        more["compilation_config"] |= {
            "cudagraph_mm_encoder": True,
            # Embeddings of 2 images and of 8.
            "encoder_cudagraph_token_budgets": [2048, 8192],
            "encoder_cudagraph_max_vision_items_per_batch": 8,
        }
    llm = common.engine(
        options.model,
        INPUTS[kind],
        max_model_len=448 if kind == "whisper" else 4096,
        max_num_batched_tokens=BUDGET[kind],
        # Inputs are prepared anew each time, as the first time.
        mm_processor_cache_gb=0,
        **more,
    )
    print(f"engine ready after {time.monotonic() - began:.1f} s", flush=True)
    worker = llm.llm_engine.model_executor.driver_worker.worker
    hooks = Hooks(worker)
    runner = worker.model_runner

    def round_of(prompts: list[dict[str, Any]]) -> None:
        common.generate(llm, prompts, [64] * len(prompts))

    trace = truth.Trace()
    from profilemate import _native

    synchronizations: dict[str, Counter[str]] = defaultdict(Counter)
    rounds: Counter[str] = Counter()
    wanted: dict[str, tuple[float, float]] = {}
    recorded_without_hooks = 0

    def traced(which: str, seed: int) -> list[Any]:
        begin = time.perf_counter()
        prompts = asked(kind, INPUTS[kind], seed)
        made = time.perf_counter()
        trace.start()
        round_of(prompts)
        events = trace.stop()
        synchronizations[which] += waits(events)
        rounds[which] += 1
        took = time.perf_counter() - made
        print(f"{which} {seed}: {len(events)} events in {took:.1f} s, inputs in {made - begin:.1f} s", flush=True)
        return events

    def is_over() -> bool:
        return time.monotonic() - began > options.seconds

    with common.until_out_of_time():
        round_of(asked(kind, INPUTS[kind], 0))
        print(f"warm after {time.monotonic() - began:.1f} s", flush=True)
        # With our hooks first: taking them out takes out what marks the regions, too.
        truth.mark_regions()
        mark_encoders(runner.get_model() if hasattr(runner, "get_model") else runner.model)
        for seed in range(1, options.rounds + 1):
            if rounds["with"] and is_over():
                break
            wanted.update(device_times(traced("with", seed)))
        # Pauses of the garbage collector and evicted blocks, which no hook tells of.
        with hooks.out():
            for seed in range(101, 101 + options.rounds):
                if rounds["without"] and is_over():
                    break
                records = _native.statistics()[0]
                traced("without", seed)
                recorded_without_hooks += _native.statistics()[0] - records
    counters = _native.cuda_counters()
    _native.close()
    (session,) = Path(folder).glob("session_*")
    subprocess.run([str(common.SITE.parent / "_bin" / "profilemate"), "export", str(session)], check=True)
    with (session / "encoder_decoder_timing.csv").open() as file:
        rows = list(csv.DictReader(file))
    with (session / "forward_pass_timing.csv").open() as file:
        passes = {int(row["step"]): row for row in csv.DictReader(file)}
    calls: Counter[int] = Counter()
    groups: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    missing = 0
    matched = set()
    for row in rows:
        step = int(row["step"])
        if row["component"] == "encoder":
            name, group = f"encoder:{step}:{calls[step]}", f"encoder {row['context']}"
            calls[step] += 1
        elif row["component"] == "decoder":
            of = passes[step]
            name, group = f"region:{step}", f"decoder {of['phase']} {of['cudagraph_mode']}"
        else:
            continue
        if name not in wanted:
            continue
        matched.add(name)
        if not row["duration_ms"]:
            missing += 1
            continue
        pair = (float(row["duration_ms"]), *wanted[name])
        groups[group].append(pair)
        groups[row["component"]].append(pair)
    per_round = {
        which: {name: round(count / rounds[which], 2) for name, count in sorted(found.items())}
        for which, found in synchronizations.items()
    }
    names = {name for found in per_round.values() for name in found}
    of_both = per_round.get("with", {}), per_round.get("without", {})
    added = sum(of_both[0].get(name, 0) - of_both[1].get(name, 0) for name in names)
    summary = json.loads((session / "encoder_decoder_summary.json").read_text())
    metadata = json.loads((session / "metadata.json").read_text())
    cross = [row for row in rows if row["component"] == "cross_attention"]
    result = {
        "label": options.label,
        "runner": f"{type(runner).__module__}.{type(runner).__qualname__}",
        "gpu": common.gpu(),
        "vllm": sys.modules["vllm"].__version__,
        "regions_in_trace": len(wanted),
        "regions_not_in_our_table": len(wanted.keys() - matched),
        "rows_without_a_time": missing,
        "groups": {group: compared(pairs) for group, pairs in sorted(groups.items())},
        "synchronizations_per_round": per_round,
        # None: a time limit came before the rounds of one of them.
        "synchronizations_added_per_round": round(added, 2) if len(rounds) == 2 else None,
        "rounds": rounds,
        "cross_attention": [
            {key: row[key] for key in ("step", "duration_ms", "layers", "timing")} for row in cross[:5]
        ],
        "summary": summary,
        "recorded_without_hooks": recorded_without_hooks,
        "cuda_counters": counters,
        "probe_errors": metadata["probe_errors"],
        "timing_mode": metadata["timing_mode"],
        "profilers": metadata["profilers"],
    }
    common.say(result, options.json)


if __name__ == "__main__":
    main()
