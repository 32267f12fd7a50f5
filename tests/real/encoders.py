"""Gives a tiny model images, sounds or text, offline in one process, and writes what was sent and what vLLM counted.

    python encoders.py MODEL qwen3vl|whisper|llama OUT.json

Images come again, in the same step and in later ones, so that the encoder cache has something to spare.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

import numpy as np
from PIL import Image
from vllm import LLM, SamplingParams

OUTPUT_TOKENS = 20

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


def image(seed: int, width: int = 128, height: int = 96) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype="uint8")
    return Image.fromarray(pixels)


def sound(seed: int) -> tuple[Any, int]:
    seconds = np.arange(16000 * 2) / 16000
    return np.sin(2 * np.pi * (200 + 40 * seed) * seconds).astype("float32"), 16000


def asked_of_qwen3vl() -> list[list[dict[str, Any]]]:
    def ask(*seeds: int) -> dict[str, Any]:
        prompt = "what is this " + IMAGE * len(seeds)
        return {"prompt": prompt, "multi_modal_data": {"image": [image(seed) for seed in seeds]}}

    # Round by round: one image; two of which one is known; two requests with the same new image at once; text alone.
    return [[ask(1)], [ask(1, 2)], [ask(3), ask(3)], [{"prompt": "no image at all"}], [ask(4, 5, 6)]]


def asked_of_whisper() -> list[list[dict[str, Any]]]:
    def ask(seed: int) -> dict[str, Any]:
        prompt = "<|startoftranscript|><|en|><|transcribe|><|notimestamps|>"
        return {"prompt": prompt, "multi_modal_data": {"audio": sound(seed)}}

    return [[ask(1)], [ask(2), ask(3)], [ask(1)]]


def asked_of_llama() -> list[list[dict[str, Any]]]:
    return [[{"prompt_token_ids": list(range(3, 3 + length))} for length in (5, 40, 90)]]


ASKED = {"qwen3vl": asked_of_qwen3vl, "whisper": asked_of_whisper, "llama": asked_of_llama}


def main() -> None:
    model, kind, out = sys.argv[1:]
    options: dict[str, Any] = {"max_model_len": 448 if kind == "whisper" else 1024}
    if kind == "qwen3vl":
        options["limit_mm_per_prompt"] = {"image": 3, "video": 0}
    if kind != "llama":
        # vLLM's own count of what its encoders did.
        options["enable_mm_processor_stats"] = True
    llm = LLM(
        model,
        dtype="float32",
        load_format="dummy",
        enforce_eager=True,
        max_num_seqs=8,
        # Of Whisper an input is never computed in pieces.
        max_num_batched_tokens=2048 if kind == "whisper" else 512,
        enable_prefix_caching=False,
        seed=0,
        **options,
    )
    greedy = SamplingParams(temperature=0, max_tokens=OUTPUT_TOKENS, ignore_eos=True, detokenize=False)
    rounds = ASKED[kind]()
    for asked in rounds:
        llm.generate(asked, greedy, use_tqdm=False)
    counted: dict[str, dict[str, Any]] = {}
    if kind != "llama":
        for worker in llm.collective_rpc("get_encoder_timing_stats"):
            counted |= worker
    runner = llm.llm_engine.model_executor.driver_worker.worker.model_runner
    said = {
        "requests": sum(map(len, rounds)),
        "inputs": sum(
            len(images) if isinstance(images := data, list) else 1
            for asked in rounds
            for one in asked
            for data in one.get("multi_modal_data", {}).values()
        ),
        "vllm_encoder_calls": [stats["num_encoder_calls"] for stats in counted.values()],
        "vllm_encoder_seconds": sum(stats["encoder_forward_secs"] for stats in counted.values()),
        "runner": type(runner).__module__,
    }
    Path(out).write_text(json.dumps(said), encoding="utf-8")


if __name__ == "__main__":
    main()
