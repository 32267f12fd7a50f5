"""Tiny models with encoders, offline: what was sent, what vLLM counted and what we say are the same."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from support import checks
from support.processes import LIMIT_SECONDS
from support.tables import Session, completed_session
from support.vllm import environment, profilemate

ROOT = Path(__file__).parents[2]
ENCODERS = Path(__file__).with_name("encoders.py")
KINDS = ("qwen3vl", "whisper")

Run = tuple[dict[str, Any], Session]


@pytest.fixture(scope="module")
def runs(log_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """What was sent to each model and what vLLM counted, and the session. Both at once: importing vLLM keeps a core."""
    models = tmp_path_factory.mktemp("encoder-models")
    make = [sys.executable, str(ROOT / "scripts" / "make_models.py"), str(models)]
    subprocess.run([*make, *(f"tiny-{kind}" for kind in KINDS)], check=True)

    def start(kind: str) -> Run:
        work = tmp_path_factory.mktemp(kind)
        said, log = work / "said.json", log_folder / f"{kind}.log"
        with log.open("wb") as output:
            done = subprocess.run(
                [sys.executable, str(ENCODERS), str(models / f"tiny-{kind}"), kind, str(said)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(work / "out", PYTHONPATH=profilemate("path").strip()),
                timeout=LIMIT_SECONDS,
                start_new_session=True,
            )
        assert done.returncode == 0, f"exit code {done.returncode}; see {log}"
        return json.loads(said.read_text(encoding="utf-8")), completed_session(work / "out")

    with ThreadPoolExecutor(max_workers=2) as pool:
        return dict(zip(KINDS, pool.map(start, KINDS), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_the_session_is_sound(runs: dict[str, Run], kind: str) -> None:
    said, session = runs[kind]
    checks.sound(session)
    assert session.counters["finished_requests"] == said["requests"]
    assert session.metadata["profilers"]["encoder_decoder_timing"] == "on"


@pytest.mark.parametrize("kind", KINDS)
def test_encoder_calls_are_those_that_vllm_timed(runs: dict[str, Run], kind: str) -> None:
    said, session = runs[kind]
    encoder = [row for row in session.components if row["component"] == "encoder"]
    # vLLM counts a call for each request that it serves; in none of these steps there are two requests with new inputs.
    assert len(encoder) == sum(said["vllm_encoder_calls"])
    # Its times are those of the same calls, with a synchronization (which does nothing here) on either side.
    ours = sum(float(row["duration_ms"]) for row in encoder)
    assert ours <= 1.001 * 1000 * said["vllm_encoder_seconds"]


def test_images_are_computed_once_and_found_in_the_cache_after_that(runs: dict[str, Run]) -> None:
    said, session = runs["qwen3vl"]
    encoder = [row for row in session.components if row["component"] == "encoder"]
    # Of eight images that were sent two had come before; one came twice at once.
    assert said["inputs"] == 8
    assert [(row["context"], row["num_items"], row["num_tokens"]) for row in encoder] == [
        ("vision_encoder", "1", "12"),
        ("vision_encoder", "1", "12"),
        ("vision_encoder", "1", "12"),
        ("vision_encoder", "3", "36"),
    ]
    summary = session.json("encoder_decoder_summary.json")
    assert summary["model_type"] == "vision_language"
    assert summary["components"] == {
        "vision_encoder": "visual",
        "connector": "visual.merger, visual.deepstack_merger_list",
        "language_model": "language_model",
    }
    inputs = summary["encoder_inputs"]
    assert (inputs["computed"], inputs["cached"]) == (6, 2)
    assert inputs["computed_tokens"] == 6 * 12
    assert inputs["hit_rate_pct"] == 25
    assert (inputs["waits_for_room"], inputs["waits_for_budget"], inputs["evicted"]) == (0, 0, 0)
    assert summary["cross_attention_pct"] == 0
    assert "cross_attention" not in summary


def test_whisper_has_an_encoder_a_decoder_and_what_lies_between(runs: dict[str, Run]) -> None:
    said, session = runs["whisper"]
    encoder = [row for row in session.components if row["component"] == "encoder"]
    # Sound is computed anew each time: vLLM keeps nothing of it.
    assert len(encoder) == said["inputs"] == 4
    assert {(row["context"], row["num_items"], row["num_tokens"]) for row in encoder} == {
        ("audio_encoder", "1", "1500")
    }
    summary = session.json("encoder_decoder_summary.json")
    assert summary["model_type"] == "encoder_decoder"
    assert summary["components"] == {"audio_encoder": "model.encoder", "language_model": "model.decoder"}
    inputs = summary["encoder_inputs"]
    assert (inputs["computed"], inputs["computed_tokens"], inputs["cached"]) == (4, 4 * 1500, 0)
    cross = [row for row in session.components if row["component"] == "cross_attention"]
    # One step of 16, both layers.
    steps = [int(row["step"]) for row in session.forward]
    assert [int(row["step"]) for row in cross] == steps[::16]
    assert {row["layers"] for row in cross} == {"2"}
    assert 0 < summary["cross_attention_pct"] < summary["decoder_pct"]
