"""Host time that the probes add to an engine step, on vLLM's real scheduler: no model, no GPU.

    python benches/host_cost.py MODEL_FOLDER [--steps 400] [--pairs 15]

Runs decode steps of 1, 32, 256 and 1000 sequences through `Scheduler.schedule` and `Scheduler.update_from_output`, with
the hooks in place and with vLLM's own functions, in turns, and prints one JSON line per size: microseconds per step for
both (medians over the pairs), their difference, and what the probes themselves reported.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

SITE = Path(__file__).resolve().parent.parent / "python" / "profilemate" / "sitecustomize"


def engine_config(model: str, sequences: int) -> tuple[object, object]:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec

    arguments = EngineArgs(
        model=model,
        load_format="dummy",
        enforce_eager=True,
        max_model_len=2048,
        max_num_seqs=sequences,
        max_num_batched_tokens=max(8192, sequences * 8),
        enable_prefix_caching=False,
        disable_log_stats=False,
    )
    config = arguments.create_engine_config()
    import torch

    spec = FullAttentionSpec(block_size=16, num_kv_heads=2, head_size=32, dtype=torch.float32)
    blocks = sequences * 130 + 1
    config.cache_config.num_gpu_blocks = blocks
    kv = KVCacheConfig(num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)])
    return config, kv


class Driver:
    """A scheduler in the middle of decoding `sequences` requests."""

    def __init__(self, model: str, sequences: int, steps: int) -> None:
        from vllm.sampling_params import SamplingParams
        from vllm.v1.core.sched.scheduler import Scheduler
        from vllm.v1.request import Request
        from vllm.v1.structured_output import StructuredOutputManager

        config, kv = engine_config(model, sequences)
        self.scheduler = Scheduler(
            vllm_config=config,
            kv_cache_config=kv,
            structured_output_manager=StructuredOutputManager(config),
            block_size=16,
            log_stats=True,
        )
        sampling = SamplingParams(max_tokens=steps, ignore_eos=True)
        sampling.update_from_generation_config({}, None)
        for i in range(sequences):
            self.scheduler.add_request(
                Request(f"request-{i}", [3, 4, 5, 6], sampling, None, arrival_time=time.time())
            )
        for _ in range(8):
            self.step()

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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--sequences", type=int, nargs="*", default=[1, 32, 256, 1000])
    options = parser.parse_args()

    folder = tempfile.mkdtemp(prefix="profilemate-bench-")
    os.environ["PROFILEMATE_OUTPUT_DIR"] = folder
    os.environ["PROFILEMATE_COLLECTOR"] = "none"
    sys.path.insert(0, str(SITE))
    import sitecustomize

    sitecustomize._attach()
    from vllm.v1.core.sched.scheduler import Scheduler

    from profilemate import _native

    hooked = {name: vars(Scheduler)[name] for name in ("schedule", "update_from_output")}
    plain = {name: hook.__wrapped__ for name, hook in hooked.items()}

    def use(functions: dict[str, object]) -> None:
        for name, function in functions.items():
            setattr(Scheduler, name, function)

    second = _native.ticks()
    time.sleep(0.2)
    per_microsecond = (_native.ticks() - second) / 200_000

    for sequences in options.sequences:
        use(hooked)
        driver = Driver(options.model, sequences, steps=2 * options.pairs * options.steps + 64)
        per_step: dict[str, list[float]] = {"with": [], "without": []}
        reported = 0
        for pair in range(options.pairs):
            order = ["with", "without"] if pair % 2 else ["without", "with"]
            for which in order:
                use(hooked if which == "with" else plain)
                gc.collect()
                gc.disable()
                probes = _native.statistics()[2]
                begin = time.perf_counter()
                for _ in range(options.steps):
                    driver.step()
                per_step[which].append((time.perf_counter() - begin) / options.steps * 1e6)
                gc.enable()
                reported += _native.statistics()[2] - probes
        differences = [w - wo for w, wo in zip(per_step["with"], per_step["without"], strict=True)]
        print(
            json.dumps(
                {
                    "sequences": sequences,
                    "without_us": round(statistics.median(per_step["without"]), 2),
                    "with_us": round(statistics.median(per_step["with"]), 2),
                    "added_us": round(statistics.median(differences), 2),
                    "added_us_quartiles": [round(q, 2) for q in statistics.quantiles(differences, n=4)],
                    "reported_by_probes_us": round(reported / per_microsecond / options.pairs / options.steps, 2),
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
