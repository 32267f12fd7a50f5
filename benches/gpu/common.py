"""What the GPU checks share: an engine in this process, prompts, and our folder on the path."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SITE = Path(__file__).resolve().parents[2] / "python" / "profilemate" / "sitecustomize"


def attach() -> None:
    """Attaches as PYTHONPATH would have; the collector is not needed."""
    os.environ.setdefault("PROFILEMATE_COLLECTOR", "none")
    sys.path.insert(0, str(SITE))
    # A machine's own sitecustomize may have run already: ours is run by name.
    import importlib.util

    spec = importlib.util.spec_from_file_location("profilemate_sitecustomize", SITE / "sitecustomize.py")
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


#: Whether the check was asked to end: then nothing more is measured.
out_of_time: list[bool] = []


class OutOfTimeError(BaseException):
    """The check is asked to end. Not an `Exception`: nobody in between may take it for an error of theirs."""


@contextmanager
def until_out_of_time() -> Iterator[None]:
    """What is in here ends when the check is asked to (SIGTERM). What comes behind tells what was measured so far."""

    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise OutOfTimeError

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    except OutOfTimeError:
        out_of_time.append(True)
        print("out of time: what was measured so far follows", flush=True)
    finally:
        # What is told then, also by programs that are started for it, is not cut short.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def say(result: dict[str, Any], file: str | None) -> None:
    """One line of results, printed and put behind those of a file."""
    print("RESULT " + json.dumps(result), flush=True)
    if file:
        with Path(file).open("a") as results:
            results.write(json.dumps(result) + "\n")


def gpu() -> str:
    """Which GPU this is; on a machine without one, a check can at least be tried."""
    cuda = sys.modules["torch"].cuda
    return str(cuda.get_device_name()) if cuda.is_available() else "no GPU"


def engine(model: str, max_num_seqs: int, **more: Any) -> Any:
    """An `LLM` with random weights, all in this process."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM

    options: dict[str, Any] = {
        "max_model_len": 2048,
        "gpu_memory_utilization": 0.85,
        "enable_prefix_caching": False,
        "disable_log_stats": False,
        **more,
    }
    return LLM(model=model, load_format="dummy", seed=0, max_num_seqs=max_num_seqs, **options)


def prompts(count: int, length: int, seed: int) -> list[dict[str, list[int]]]:
    """Random prompts of one length."""
    random_ids = random.Random(seed)
    return [{"prompt_token_ids": [random_ids.randrange(3, 400) for _ in range(length)]} for _ in range(count)]


def generate(llm: Any, batch: list[dict[str, list[int]]], lengths: list[int]) -> list[list[int]]:
    """Greedy tokens, exactly so many per prompt."""
    from vllm import SamplingParams

    sampling = [
        SamplingParams(max_tokens=length, ignore_eos=True, temperature=0, detokenize=False) for length in lengths
    ]
    return [list(out.outputs[0].token_ids) for out in llm.generate(batch, sampling, use_tqdm=False)]


def scheduler(llm: Any) -> Any:
    """The scheduler of an engine in this process."""
    return llm.llm_engine.engine_core.engine_core.scheduler


def pools(llm: Any) -> list[Any]:
    """The pools of KV cache blocks of an engine in this process, each once."""
    return pools_of(scheduler(llm))


def pools_of(scheduler: Any) -> list[Any]:
    """The pools of KV cache blocks of a scheduler, each once."""
    manager = scheduler.kv_cache_manager
    singles = getattr(manager.coordinator, "single_type_managers", ())
    found = [manager.block_pool, manager.coordinator.block_pool, *(single.block_pool for single in singles)]
    return list({id(pool): pool for pool in found}.values())
