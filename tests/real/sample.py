"""Samples in many ways with the offline `LLM`, and writes what was asked for to a file.

    python sample.py MODEL OUT.json [--speculate]

One way after the other, each with a number of requests of its own, so that a step's batch has requests of one way
alone: whatever is counted of a batch can be told by its size. With `--speculate`, an n-gram drafter proposes tokens,
first while vLLM counts what becomes of them, then while it keeps no statistics; the file has its counters, and the
numbers that it would have counted.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams
from vllm.inputs import TokensPrompt

OUTPUT_TOKENS = 6

#: Name → what the requests ask for. What is left out asks for nothing.
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "random": {"temperature": 0.8},
    "top_k": {"top_k": 20},
    "top_p": {"top_p": 0.9},
    "min_p": {"min_p": 0.05},
    "penalties": {"temperature": 0, "presence_penalty": 0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.2},
    "logprobs": {"temperature": 0, "logprobs": 5},
    "prompt_logprobs": {"temperature": 0, "prompt_logprobs": 2},
    "logit_bias": {"temperature": 0, "logit_bias": {7: 1.5}},
    "bad_words": {"temperature": 0, "bad_words": ["a"]},
    "allowed_token_ids": {"temperature": 0, "allowed_token_ids": [3, 4, 5, 6, 7]},
    "min_tokens": {"temperature": 0, "min_tokens": OUTPUT_TOKENS},
    "seeded": {"seed": 11},
    "structured_output": {"temperature": 0},
}


def prompt(place: int) -> TokensPrompt:
    return TokensPrompt(prompt_token_ids=[3 + (11 * at + 5 * place) % 251 for at in range(20 + place)])


def parameters(way: str) -> SamplingParams:
    asked = dict(WAYS[way])
    if way == "structured_output":
        from vllm.sampling_params import StructuredOutputsParams

        asked["structured_outputs"] = StructuredOutputsParams(regex="[ab]{40}")
    return SamplingParams(**{"max_tokens": OUTPUT_TOKENS, "ignore_eos": True, **asked})


def speculate(llm: LLM) -> dict[str, Any]:
    # Random weights soon repeat themselves, which is what an n-gram drafter waits for.
    way = SamplingParams(temperature=0, max_tokens=80, ignore_eos=True)
    prompts = [prompt(place) for place in range(5)]
    llm.generate(prompts, way, use_tqdm=False)
    found = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}
    engine: Any = llm.llm_engine.engine_core
    scheduler = engine.engine_core.scheduler
    scheduler.log_stats = False
    uncounted = {"draft_tokens": 0, "accepted_tokens": 0}
    make = scheduler.make_spec_decoding_stats

    def counting(*args: Any, **kwargs: Any) -> Any:
        for name, count in uncounted.items():
            uncounted[name] = count + kwargs[f"num_{name}"]
        return make(*args, **kwargs)

    scheduler.make_spec_decoding_stats = counting
    llm.generate(prompts[:3], way, use_tqdm=False)
    counted = {name: found[f"vllm:spec_decode_num_{name}"] for name in uncounted}
    return {"counted": counted, "uncounted": uncounted}


def main() -> None:
    model, out = sys.argv[1:3]
    speculates = "--speculate" in sys.argv
    more: dict[str, Any] = {}
    if speculates:
        more["speculative_config"] = {
            "method": "ngram",
            "num_speculative_tokens": 3,
            "prompt_lookup_max": 3,
            "prompt_lookup_min": 1,
        }
    llm = LLM(
        model,
        dtype="float32",
        load_format="dummy",
        enforce_eager=True,
        max_model_len=1024,
        max_num_seqs=24,
        enable_prefix_caching=False,
        disable_log_stats=not speculates,
        **more,
    )
    sent: dict[str, Any] = {}
    if speculates:
        sent = speculate(llm)
    else:
        for requests, way in enumerate(WAYS, 2):
            llm.generate([prompt(place) for place in range(requests)], parameters(way), use_tqdm=False)
            sent[way] = requests
        # Two ways in one batch.
        ways = [parameters("greedy")] * 2 + [parameters("penalties")] * 3 + [parameters("top_p")] * 15
        llm.generate([prompt(place) for place in range(len(ways))], ways, use_tqdm=False)
        sent["together"] = len(ways)
    Path(out).write_text(json.dumps(sent), encoding="utf-8")


if __name__ == "__main__":
    main()
