"""Makes tiny model folders, a configuration and a tokenizer, that vLLM serves with `--load-format dummy`.

    python scripts/make_models.py OUT NAME...

Each model lands in OUT/NAME. Needs the `transformers` and `tokenizers` that vLLM brings; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

Maker = Callable[[Path], None]
MAKERS: dict[str, Maker] = {}

# Enough different words for byte pairs to merge; what they say does not matter.
CORPUS = """
A flight recorder keeps what happened, so that somebody can ask later why the engine slowed down. Requests wait
in a queue until the scheduler finds room for them. A long prompt is computed in pieces, between the tokens of the
requests that are already running. When the cache is full one of them is put back, and its work is done again.
def schedule(self): return [request for request in self.waiting if request.num_tokens <= self.budget]
0 1 2 3 4 5 6 7 8 9 10 16 32 64 128 256 512 1024 2048 4096
"""

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def maker(name: str) -> Callable[[Maker], Maker]:
    """Registers a function that fills a folder with the model `name`."""

    def register(make: Maker) -> Maker:
        MAKERS[name] = make
        return make

    return register


def save_tokenizer(folder: Path) -> int:
    """Trains a byte-level tokenizer, saves it, and returns the number of its tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS.splitlines(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=2048
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    return len(fast)


def save_text_model(folder: Path, architecture: str, model_type: str, **more: Any) -> None:
    """A two-layer decoder small enough that a CPU runs hundreds of its steps a second."""
    config = {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": save_tokenizer(folder),
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "dtype": "float32",
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        **more,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


@maker("tiny-llama")
def tiny_llama(folder: Path) -> None:
    save_text_model(folder, "LlamaForCausalLM", "llama")


@maker("tiny-qwen3moe")
def tiny_qwen3moe(folder: Path) -> None:
    """Two MoE layers of 8 experts, of which a token goes to 2."""
    save_text_model(
        folder,
        "Qwen3MoeForCausalLM",
        "qwen3_moe",
        moe_intermediate_size=64,
        num_experts=8,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        attention_bias=False,
        use_sliding_window=False,
    )


@maker("tiny-glm4moe")
def tiny_glm4moe(folder: Path) -> None:
    """Experts as in DeepSeek-V3, without its attention: a dense layer, then groups of experts behind sigmoids with a
    correction bias, and a shared expert that every token goes to."""
    save_text_model(
        folder,
        "Glm4MoeForCausalLM",
        "glm4_moe",
        num_hidden_layers=3,
        first_k_dense_replace=1,
        moe_intermediate_size=64,
        n_routed_experts=16,
        n_shared_experts=1,
        num_experts_per_tok=4,
        n_group=4,
        topk_group=2,
        norm_topk_prob=True,
        routed_scaling_factor=2.5,
        attention_bias=False,
        use_qk_norm=False,
        partial_rotary_factor=0.5,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Make tiny models for vLLM's --load-format dummy.")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder that the model folders are made in")
    parser.add_argument("names", nargs="+", choices=sorted(MAKERS), metavar="NAME", help=", ".join(sorted(MAKERS)))
    arguments = parser.parse_args()
    for name in arguments.names:
        folder = arguments.out / name
        # Made beside its place and moved there, so a model folder that exists is a whole one.
        partial = arguments.out / f".{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        MAKERS[name](partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        print(folder)


if __name__ == "__main__":
    main()
