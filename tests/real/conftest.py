"""Real vLLM runs. Each start takes a minute or so, hence few of them, shared by many tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    subprocess.run([sys.executable, ROOT / "scripts" / "make_models.py", folder, "tiny-llama"], check=True)
    return folder / "tiny-llama"
