"""Generates greedily with the offline `LLM` and writes the token ids to a file.

    python generate.py MODEL OUT.json

Prompts go one by one first, which is the same work however many processes there are; then all at once where the
engine runs in this process, since only there the batches are the same in every run.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from vllm import LLM, SamplingParams
from vllm.inputs import TokensPrompt

# Some longer than the token budget of a step.
PROMPT_LENGTHS = (5, 40, 300, 17, 128, 450, 64, 9)
OUTPUT_TOKENS = 24
MAX_TOKENS = 128


def prompt(length: int) -> TokensPrompt:
    return TokensPrompt(prompt_token_ids=[3 + (11 * place + 5 * length) % 251 for place in range(length)])


def main() -> None:
    model, out = sys.argv[1:]
    llm = LLM(
        model,
        dtype="float32",
        load_format="dummy",
        enforce_eager=True,
        max_model_len=1024,
        max_num_seqs=8,
        max_num_batched_tokens=MAX_TOKENS,
        enable_prefix_caching=False,
    )
    ways = [
        SamplingParams(temperature=0, max_tokens=OUTPUT_TOKENS, ignore_eos=True),
        # Random weights soon repeat themselves; a penalty on that makes every token depend on all before it.
        SamplingParams(temperature=0, repetition_penalty=1.5, max_tokens=OUTPUT_TOKENS, ignore_eos=True),
    ]
    prompts = [prompt(length) for length in PROMPT_LENGTHS]
    rounds = [[each] for each in prompts]
    if os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") == "0":
        rounds.append(prompts)
    tokens = [
        list(answer.outputs[0].token_ids)
        for together in rounds
        for way in ways
        for answer in llm.generate(together, way, use_tqdm=False)
    ]
    Path(out).write_text(json.dumps(tokens), encoding="utf-8")
    print("generated", sum(map(len, tokens)), "tokens", flush=True)


if __name__ == "__main__":
    main()
