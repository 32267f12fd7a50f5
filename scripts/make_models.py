"""Makes model folders, a configuration and a tokenizer, that vLLM runs with `--load-format dummy`: tiny ones, and some
of the shape of real models for GPU hosts.

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


def trained_tokenizer() -> Tokenizer:
    """A byte-level tokenizer."""
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
    return tokenizer


def vocabulary_and_merges() -> dict[str, Any]:
    """The same, for the tokenizer classes that are made from these."""
    model = json.loads(trained_tokenizer().to_str())["model"]
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in model["merges"]]
    return {"vocab": model["vocab"], "merges": merges}


def save_tokenizer(folder: Path) -> int:
    """Trains a byte-level tokenizer, saves it, and returns the number of its tokens."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=trained_tokenizer(),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=2048,
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


def save_whisper(folder: Path, layers: int, width: int, heads: int, dtype: str, vocabulary: int = 0) -> None:
    """Speech to text: an audio encoder, and a decoder that attends to it."""
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperProcessor, WhisperTokenizerFast

    tokenizer = WhisperTokenizerFast(
        **vocabulary_and_merges(), unk_token="<s>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    special = ("startoftranscript", "en", "transcribe", "translate", "notimestamps", "nospeech")
    times = (f"{place * 0.02:.2f}" for place in range(50))
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<|{name}|>" for name in (*special, *times)]})
    extractor = WhisperFeatureExtractor(feature_size=80)
    WhisperProcessor(feature_extractor=extractor, tokenizer=tokenizer).save_pretrained(folder)
    config = WhisperConfig(
        vocab_size=vocabulary or -(-len(tokenizer) // 64) * 64,
        d_model=width,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        num_mel_bins=80,
        max_source_positions=1500,
        max_target_positions=448,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        decoder_start_token_id=tokenizer.convert_tokens_to_ids("<|startoftranscript|>"),
        dtype=dtype,
    )
    config.architectures = ["WhisperForConditionalGeneration"]
    config.save_pretrained(folder)


@maker("tiny-whisper")
def tiny_whisper(folder: Path) -> None:
    save_whisper(folder, layers=2, width=64, heads=2, dtype="float32")


@maker("whisper-medium")
def whisper_medium(folder: Path) -> None:
    """The shape of Whisper medium; heads of 64."""
    save_whisper(folder, layers=24, width=1024, heads=16, dtype="bfloat16", vocabulary=51865)


def save_qwen3_vl(
    folder: Path, text: dict[str, Any], vision: dict[str, Any], most_pixels: int, dtype: str
) -> None:
    """Images and text: a vision encoder in front of a text model."""
    from transformers import Qwen2TokenizerFast, Qwen2VLImageProcessor, Qwen3VLConfig, Qwen3VLProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    tokenizer = Qwen2TokenizerFast(**vocabulary_and_merges(), eos_token="</s>", pad_token="<pad>", unk_token="<s>")
    marks = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    tokenizer.image_token, tokenizer.video_token = "<|image_pad|>", "<|video_pad|>"
    start, end, image, video = (tokenizer.convert_tokens_to_ids(mark) for mark in marks)
    patches = {"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2}
    pixels = {"shortest_edge": 56 * 56, "longest_edge": most_pixels}
    Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**patches, size=pixels),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(**patches),
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": -(-len(tokenizer) // 64) * 64,
            "max_position_embeddings": 4096,
            "rope_theta": 10000.0,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "dtype": dtype,
            **text,
        },
        vision_config={
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": text["hidden_size"],
            "dtype": dtype,
            **vision,
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
        dtype=dtype,
    )
    config.architectures = ["Qwen3VLForConditionalGeneration"]
    config.save_pretrained(folder)


@maker("tiny-qwen3vl")
def tiny_qwen3_vl(folder: Path) -> None:
    save_qwen3_vl(
        folder,
        text={
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "rope_scaling": {"rope_type": "default", "mrope_section": [4, 6, 6], "mrope_interleaved": True},
        },
        vision={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 2,
            "num_position_embeddings": 256,
            "deepstack_visual_indexes": [0],
        },
        most_pixels=224 * 224,
        dtype="float32",
    )


@maker("qwen3vl-4b")
def qwen3_vl_4b(folder: Path) -> None:
    """The shape of Qwen3-VL 4B; heads of 128 in the text model and of 64 in the vision encoder."""
    save_qwen3_vl(
        folder,
        text={
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "rope_scaling": {"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True},
        },
        vision={
            "depth": 24,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_heads": 16,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [5, 11, 17],
        },
        most_pixels=1024 * 1024,
        dtype="bfloat16",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Make models for vLLM's --load-format dummy.")
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
