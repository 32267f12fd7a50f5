"""Generates with a mixture-of-experts model and writes down, apart from ProfileMate, which experts its routers chose.

    python route.py MODEL OUT.json [--compiled] [--tensor-parallel]

The reference is taken from what the routers compute, in every call of the model runner and for as many rows as the
scheduler put into the batch. With --compiled torch.compile goes through the routers, where nobody else can look: then
there is no reference, and the numbers of tokens have to do. With --tensor-parallel there are two workers, in processes
of their own, and the reference is that of the first.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from vllm import LLM, SamplingParams
from vllm.inputs import TokensPrompt

# Some longer than the token budget of a step.
PROMPT_LENGTHS = (5, 40, 300, 17, 128, 450, 64, 9)
OUTPUT_TOKENS = 24
MAX_TOKENS = 128
BINS = 101


class Reference:
    """What routers chose. It is kept by the routers themselves: this object may be another in a worker's process."""

    def __init__(self) -> None:
        self.rows = 0

    def install(self) -> None:
        from vllm.model_executor.layers.fused_moe.router.cpu_router import CPURouter
        from vllm.v1.worker.gpu_model_runner import GPUModelRunner

        compute, execute = CPURouter._compute_routing, GPUModelRunner.execute_model

        def compute_routing(router: Any, *args: Any, **kwargs: Any) -> Any:
            weights, ids = compute(router, *args, **kwargs)
            if self.rows:
                kept = vars(router).setdefault("chosen_by_reference", ([], []))
                kept[0].append(ids[: self.rows].numpy().copy())
                kept[1].append(weights[: self.rows].float().numpy().copy())
            return weights, ids

        def execute_model(runner: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
            self.rows = scheduler_output.total_num_scheduled_tokens
            try:
                return execute(runner, scheduler_output, *args, **kwargs)
            finally:
                self.rows = 0

        CPURouter._compute_routing = compute_routing
        GPUModelRunner.execute_model = execute_model

    def layers(self, model: Any) -> dict[int, dict[str, Any]]:
        """By layer: tokens, how often each expert and each pair was chosen, and how often which weight."""
        found = {}
        for module in model.modules():
            router: Any = getattr(module, "router", None)
            kept = getattr(router, "chosen_by_reference", None)
            if kept is None:
                continue
            ids = np.concatenate(kept[0])
            experts = router.global_num_experts
            pairs: dict[str, int] = defaultdict(int)
            for row in ids.tolist():
                ordered = sorted(row)
                for place, low in enumerate(ordered):
                    for high in ordered[place + 1 :]:
                        pairs[f"{low} {high}"] += 1
            weights = np.concatenate(kept[1])
            bins = np.minimum((weights * np.float32(BINS - 1)).astype(int), BINS - 1)
            found[module.layer_id] = {
                "tokens": len(ids),
                "top_k": ids.shape[1],
                "counts": np.bincount(ids.ravel(), minlength=experts).tolist(),
                "pairs": pairs,
                "weights": np.bincount(bins.ravel(), minlength=BINS).tolist(),
            }
        return found


def spread_tokens(model: Any) -> None:
    """With random weights, correction biases are so much larger than what gates say that all tokens go the same way,
    and they are the same in every layer: they are made smaller, and turned by the layer's index."""
    for module in model.modules():
        bias = getattr(getattr(module, "gate", None), "e_score_correction_bias", None)
        layer = getattr(getattr(module, "experts", None), "layer_id", None)
        if bias is not None and layer is not None:
            bias.data.copy_((1e-3 * bias.data).roll(layer, 0))


def prompt(length: int) -> TokensPrompt:
    return TokensPrompt(prompt_token_ids=[3 + (11 * place + 5 * length) % 251 for place in range(length)])


def close_log(_model: Any) -> None:
    """Ends the log of a worker, which vLLM may kill before it does so itself."""
    from profilemate import _native

    _native.close()


def main() -> None:
    model, out, *options = sys.argv[1:]
    is_compiled = "--compiled" in options
    reference = Reference()
    if not is_compiled:
        reference.install()
    llm = LLM(
        model,
        dtype="float32",
        load_format="dummy",
        enforce_eager=not is_compiled,
        max_model_len=1024,
        max_num_seqs=8,
        max_num_batched_tokens=MAX_TOKENS,
        enable_prefix_caching=False,
        tensor_parallel_size=2 if "--tensor-parallel" in options else 1,
    )
    llm.apply_model(spread_tokens)
    greedy = SamplingParams(temperature=0, max_tokens=OUTPUT_TOKENS, ignore_eos=True)
    prompts = [prompt(length) for length in PROMPT_LENGTHS]
    rounds = [[each] for each in prompts] + [prompts]
    tokens = [
        list(answer.outputs[0].token_ids)
        for together in rounds
        for answer in llm.generate(together, greedy, use_tqdm=False)
    ]
    layers = {} if is_compiled else llm.apply_model(reference.layers)[0]
    Path(out).write_text(json.dumps({"tokens": tokens, "layers": layers}), encoding="utf-8")
    if "--tensor-parallel" in options:
        llm.apply_model(close_log)


if __name__ == "__main__":
    main()
elif __name__ == "__mp_main__":
    # A worker, which begins with what this file does.
    Reference().install()
