"""Makes folders of large mixture-of-experts models without weights, for vLLM's --load-format dummy on a GPU host.

    python scripts/make_gpu_models.py MODELS

MODELS holds folders of models already; the tokenizer of the first is taken. Needs nothing but Python. The head sizes
are some that every attention kernel has.

qwen3-30b-a3b-48l   the shape of Qwen3-30B-A3B, all 48 layers: 61 GB of weights
glm4-moe-8l         experts as in DeepSeek-V3 (256 in 8 groups, of which 4 are looked at, top 8, sigmoid, a correction
                    bias, one shared expert), behind attention that is not DeepSeek's; one dense layer, 7 with experts
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

COMMON = {
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "bos_token_id": 0,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "rms_norm_eps": 1e-6,
    "norm_topk_prob": True,
    "hidden_size": 2048,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rope_theta": 1000000.0,
    "num_experts_per_tok": 8,
}
MODELS = {
    "qwen3-30b-a3b-48l": {
        **COMMON,
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_hidden_layers": 48,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "use_sliding_window": False,
    },
    "glm4-moe-8l": {
        **COMMON,
        "architectures": ["Glm4MoeForCausalLM"],
        "model_type": "glm4_moe",
        "intermediate_size": 6144,
        "moe_intermediate_size": 512,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "n_group": 8,
        "topk_group": 4,
        "routed_scaling_factor": 2.5,
        "num_hidden_layers": 8,
        "first_k_dense_replace": 1,
        "use_qk_norm": False,
        "partial_rotary_factor": 0.5,
    },
}


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    folder = Path(sys.argv[1])
    given = sorted(path.parent for path in folder.glob("*/tokenizer.json") if path.parent.name not in MODELS)
    if not given:
        raise SystemExit(f"there is no model with a tokenizer in {folder}")
    for name, config in MODELS.items():
        to = folder / name
        to.mkdir(exist_ok=True)
        (to / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        for file in given[0].iterdir():
            if file.name not in {"config.json", "generation_config.json"} and file.is_file():
                shutil.copyfile(file, to / file.name)
        print(to)


if __name__ == "__main__":
    main()
