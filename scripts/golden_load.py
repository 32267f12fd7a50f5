"""What the recorded golden sessions are sessions of; see record_golden_sessions.sh.

    python golden_load.py decode PORT MODEL          short prompts and long answers, from a server that has room
    python golden_load.py preempting PORT MODEL      more than the KV cache of the server holds
    python golden_load.py prefill MODEL              long prompts and short answers, offline, all in this process
    python golden_load.py experts MODEL              a mixture of experts, offline, all in this process
    python golden_load.py vision MODEL               images, some of them again and again, offline, all in this process
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


def spread_tokens(model: Any) -> None:
    """With random weights, correction biases are so much larger than what gates say that all tokens go the same way,
    and they are the same in every layer: they are made smaller, and turned by the layer's index."""
    for module in model.modules():
        bias = getattr(getattr(module, "gate", None), "e_score_correction_bias", None)
        layer = getattr(getattr(module, "experts", None), "layer_id", None)
        if bias is not None and layer is not None:
            bias.data.copy_((1e-3 * bias.data).roll(layer, 0))


def experts(model: str) -> None:
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
    llm.apply_model(spread_tokens)
    prompts = [TokensPrompt(prompt_token_ids=prompt(40 + 23 * n, n)) for n in range(8)]
    llm.generate(prompts, SamplingParams(temperature=0, max_tokens=48, ignore_eos=True), use_tqdm=False)


def vision(model: str) -> None:
    import numpy as np
    from PIL import Image
    from vllm import LLM, SamplingParams

    llm = LLM(
        model,
        dtype="float32",
        load_format="dummy",
        enforce_eager=True,
        max_model_len=1024,
        max_num_seqs=8,
        max_num_batched_tokens=256,
        limit_mm_per_prompt={"image": 4, "video": 0},
    )

    def image(seed: int) -> Image.Image:
        # Each other size has another number of embeddings.
        size = (96 + 32 * (seed % 5), 128, 3)
        return Image.fromarray(np.random.default_rng(seed).integers(0, 255, size, dtype="uint8"))

    def ask(*seeds: int) -> dict[str, object]:
        marks = "<|vision_start|><|image_pad|><|vision_end|>" * len(seeds)
        return {"prompt": "what is this " + marks, "multi_modal_data": {"image": [image(seed) for seed in seeds]}}

    greedy = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    # More embeddings at once than the encoder cache holds (256, the token budget), then images that it may still have.
    waves = [[ask(n, n + 1, n + 2) for n in range(0, 30, 3)], [ask(n % 4) for n in range(12)], [ask(27, 28, 29)]]
    for wave in waves:
        llm.generate(wave, greedy, use_tqdm=False)


def main() -> None:
    what, *arguments = sys.argv[1:]
    if what in {"prefill", "experts", "vision", "sampling"}:
        (model,) = arguments
        {"prefill": prefill, "experts": experts, "vision": vision, "sampling": sampling}[what](model)
        return
    port, model = arguments
    {"decode": decode, "preempting": preempting}[what](int(port), model)


if __name__ == "__main__":
    main()
