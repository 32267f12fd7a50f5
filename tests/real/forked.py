"""Forks a process that generates with the offline `LLM` until it is killed, again for each line on standard input.

    python forked.py MODEL

vLLM is imported once, in the parent. For every line read, a child is forked; it prints `child PID`, and `tokens N`
after each round of requests, N being the number of tokens it has generated so far. The parent says `ended` when
the child is gone.
"""

from __future__ import annotations

import os
import sys

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

import vllm.v1.engine.llm_engine  # noqa: F401  (before the fork: hooks are in place when the child begins)
from vllm import LLM, SamplingParams
from vllm.inputs import TokensPrompt


def generate_for_ever(model: str) -> None:
    print("child", os.getpid(), flush=True)
    llm = LLM(
        model,
        load_format="dummy",
        enforce_eager=True,
        max_model_len=1024,
        max_num_seqs=8,
        max_num_batched_tokens=128,
    )
    greedy = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    prompts = [TokensPrompt(prompt_token_ids=list(range(3, 3 + length))) for length in (5, 40, 200)]
    generated = 0
    while True:
        answers = llm.generate(prompts, greedy, use_tqdm=False)
        generated += sum(len(answer.outputs[0].token_ids) for answer in answers)
        print("tokens", generated, flush=True)


def main() -> None:
    for _ in sys.stdin:
        pid = os.fork()
        if pid == 0:
            generate_for_ever(sys.argv[1])
        os.waitpid(pid, 0)
        print("ended", flush=True)


if __name__ == "__main__":
    main()
