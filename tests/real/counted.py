"""Generates with the offline `LLM`, with too few KV blocks, and writes what vLLM counted to a file.

python counted.py MODEL OUT.json
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

from vllm import LLM, SamplingParams
from vllm.inputs import TokensPrompt

#: Of 128 tokens each on the CPU. The first half of the requests needs two each, of as many as may run at once.
BLOCKS, MAX_NUM_SEQS, MAX_TOKENS = 20, 16, 192
#: The second half shares the beginning of its prompts, a block. No prompt is longer than what one step computes: vLLM
#: 0.19 drops its own statistics of a step that has no output.
REQUESTS, OUTPUT_TOKENS = 32, 60
OWN_TOKENS, SHARED_TOKENS = (90, 60), (0, 128)


def prompt(number: int) -> TokensPrompt:
    half = number // (REQUESTS // 2)
    own = [3 + (11 * place + 29 * number) % 251 for place in range(OWN_TOKENS[half])]
    return TokensPrompt(prompt_token_ids=[*(3 + 7 * place % 251 for place in range(SHARED_TOKENS[half])), *own])


def main() -> None:
    model, out = sys.argv[1:]
    llm = LLM(
        model,
        dtype="float32",
        load_format="dummy",
        enforce_eager=True,
        max_model_len=1024,
        max_num_seqs=MAX_NUM_SEQS,
        max_num_batched_tokens=MAX_TOKENS,
        num_gpu_blocks_override=BLOCKS,
        enable_prefix_caching=True,
        disable_log_stats=False,
    )
    way = SamplingParams(temperature=0, max_tokens=OUTPUT_TOKENS, ignore_eos=True)
    for half in (range(REQUESTS // 2), range(REQUESTS // 2, REQUESTS)):
        llm.generate([prompt(number) for number in half], way, use_tqdm=False)
    counted: Counter[str] = Counter()
    for metric in llm.get_metrics():
        # Counters have a value, histograms a count. Each is there once for every set of labels.
        counted[metric.name] += getattr(metric, "value", None) or getattr(metric, "count", None) or 0
    Path(out).write_text(json.dumps(counted), encoding="utf-8")


if __name__ == "__main__":
    main()
