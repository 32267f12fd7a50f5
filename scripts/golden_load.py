"""What the recorded golden sessions are sessions of; see record_golden_sessions.sh.

    python golden_load.py decode PORT MODEL          short prompts and long answers, from a server that has room
    python golden_load.py preempting PORT MODEL      more than the KV cache of the server holds
    python golden_load.py prefill MODEL              long prompts and short answers, offline, all in this process
    python golden_load.py sampling MODEL             the same prompts, sampled in several ways, offline

Prompts are token ids counted out, so every recording is of the same work.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

LIMIT_SECONDS = 600


@dataclass
class Ask:
    """A request for a completion of exactly this length."""

    name: str
    prompt: Sequence[int]
    max_tokens: int


def prompt(length: int, seed: int) -> list[int]:
    return [3 + (7 * place + 31 * seed + place * place * (seed + 1)) % 251 for place in range(length)]


def ask(port: int, model: str, wanted: Ask) -> None:
    body = {
        "model": model,
        "prompt": list(wanted.prompt),
        "max_tokens": wanted.max_tokens,
        "ignore_eos": True,
        "temperature": 0,
    }
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json", "X-Request-Id": wanted.name},
    )
    with urllib.request.urlopen(request, timeout=LIMIT_SECONDS) as answer:
        usage = json.load(answer)["usage"]
    assert usage["completion_tokens"] == wanted.max_tokens, usage


def ask_all(port: int, model: str, asks: Sequence[Ask]) -> None:
    """All of them at once, and waits for the last."""
    with ThreadPoolExecutor(max_workers=len(asks)) as clients:
        for answered in [clients.submit(ask, port, model, each) for each in asks]:
            answered.result()


def decode(port: int, model: str) -> None:
    # Ends come one by one, so that the batch shrinks; the second wave finds its first block in the prefix cache.
    shared = prompt(128, 99)
    ask_all(port, model, [Ask(f"first-{n}", shared + prompt(12 + 5 * n, n), 30 + 6 * n) for n in range(8)])
    ask_all(port, model, [Ask(f"second-{n}", shared + prompt(9 + 3 * n, n + 8), 40) for n in range(4)])


def preempting(port: int, model: str) -> None:
    # The answers reach beyond the first block of 128 tokens and so need a second one each, which is not there.
    ask_all(port, model, [Ask(f"pressed-{n}", prompt(90 + n, n), 60) for n in range(14)])


def prefill(model: str) -> None:
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    llm = LLM(
        model,
        dtype="float32",
        load_format="dummy",
        enforce_eager=True,
        max_model_len=1024,
        max_num_seqs=8,
        max_num_batched_tokens=256,
    )
    prompts = [TokensPrompt(prompt_token_ids=prompt(500 + 37 * n % 400, n)) for n in range(16)]
    llm.generate(prompts, SamplingParams(temperature=0, max_tokens=3, ignore_eos=True), use_tqdm=False)


def sampling(model: str) -> None:
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    llm = LLM(
        model,
        dtype="float32",
        load_format="dummy",
        enforce_eager=True,
        max_model_len=1024,
        max_num_seqs=8,
    )
    prompts = [TokensPrompt(prompt_token_ids=prompt(20 + n, n)) for n in range(8)]
    ways: list[dict[str, Any]] = [
        {"temperature": 0},
        {"temperature": 1.5},
        {"temperature": 1.5, "top_k": 40, "top_p": 0.95},
        {"temperature": 0, "presence_penalty": 0.5, "repetition_penalty": 1.3},
        {"temperature": 0, "logprobs": 10},
    ]
    for way in ways:
        # The first time, kernels are compiled.
        for tokens in (2, 36):
            llm.generate(prompts, SamplingParams(**way, max_tokens=tokens, ignore_eos=True), use_tqdm=False)


def main() -> None:
    what, *arguments = sys.argv[1:]
    if what in ("prefill", "sampling"):
        (model,) = arguments
        {"prefill": prefill, "sampling": sampling}[what](model)
        return
    port, model = arguments
    {"decode": decode, "preempting": preempting}[what](int(port), model)


if __name__ == "__main__":
    main()
