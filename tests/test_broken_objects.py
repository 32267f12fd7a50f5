"""What our extractors read of vLLM may be missing, `None` or of another kind: vLLM does what it does without us.

Real vLLM objects of the release installed here, see `support.broken`. `PROFILEMATE_ALL_FAULTS=1` breaks each in every
way.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from support.driven import Driven, Scenarios


@pytest.fixture(scope="module")
def broken(scenarios: Scenarios, tmp_path_factory: pytest.TempPathFactory) -> Driven:
    return scenarios.run(
        "broken",
        variables={"PROFILEMATE_SEGMENT_BYTES": "65536"},
        folder=str(tmp_path_factory.mktemp("cases")),
        storms=list(range(6)),
        everything=os.environ.get("PROFILEMATE_ALL_FAULTS") == "1",
    )


def test_whatever_is_broken_vllm_gives_the_same(broken: Driven) -> None:
    truth: dict[str, Any] = broken.truth
    assert truth["wrong"] == []
    # They were met, and not passed by.
    print(truth["cases"], "cases", truth["hits"])
    assert truth["cases"] > 300
    assert min(truth["hits"].values()) > 20
    assert truth["plain"]["records"] > 300
    assert len(truth["plain"]["errors"]) == 3 and all(truth["plain"]["errors"])


def test_every_extractor_there_is_was_called(broken: Driven) -> None:
    met = broken.truth["plain"]["met"]
    for hook in broken.truth["hooks"]:
        assert any(site.startswith(f"{hook}.") for site in met), hook
    assert any(site.startswith("kv_cache.collector ") for site in met)
