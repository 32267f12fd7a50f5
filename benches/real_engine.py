"""Steps of 256 sequences in a real engine; what the probes cost is in the session's metadata.json, under `overhead`.

profilemate run -- python benches/real_engine.py MODEL_FOLDER
"""

from __future__ import annotations

import sys


def main() -> None:
    from vllm import LLM, SamplingParams

    llm = LLM(
        sys.argv[1],
        load_format="dummy",
        enforce_eager=True,
        max_model_len=512,
        max_num_seqs=256,
        max_num_batched_tokens=8192,
        gpu_memory_utilization=0.3,
        seed=0,
    )
    prompts = [{"prompt_token_ids": [5 + i % 7] * 16} for i in range(256)]
    for _ in range(2):
        llm.generate(prompts, SamplingParams(max_tokens=100, temperature=0, ignore_eos=True), use_tqdm=False)


if __name__ == "__main__":
    main()
