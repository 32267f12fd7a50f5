"""Builds the wheel: what maturin does not with cargo first, then everything else by maturin.

maturin builds one crate, the native module that enters vLLM. The wheel also carries the command `profilemate` and the
module that notebooks read sessions with, so these are built here and laid into the package before maturin packs it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import maturin

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "python" / "profilemate"
BINARY = PACKAGE / "_bin" / "profilemate"
NOTEBOOK_MODULE = PACKAGE / "_session.abi3.so"

get_requires_for_build_wheel = maturin.get_requires_for_build_wheel
get_requires_for_build_sdist = maturin.get_requires_for_build_sdist
get_requires_for_build_editable = maturin.get_requires_for_build_editable
prepare_metadata_for_build_wheel = maturin.prepare_metadata_for_build_wheel
prepare_metadata_for_build_editable = maturin.prepare_metadata_for_build_editable
build_sdist = maturin.build_sdist

Settings = dict[str, Any] | None


def build_wheel(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    build_with_cargo()
    name: str = maturin.build_wheel(wheel_directory, config_settings, metadata_directory)
    return name


def build_editable(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    build_with_cargo()
    name: str = maturin.build_editable(wheel_directory, config_settings, metadata_directory)
    return name


def build_with_cargo() -> None:
    """Builds the tool and the notebooks' module and puts each at its place, whole or not at all."""
    build = subprocess.run(
        [
            os.environ.get("CARGO", "cargo"),
            *(
                "build",
                "--release",
                "--locked",
                "--package",
                "profilemate-cli",
                "--package",
                "profilemate-notebook",
            ),
            *("--bin", "profilemate", "--lib", "--message-format", "json-render-diagnostics"),
        ],
        cwd=ROOT,
        # The module is for every Python from 3.10 on, so the one that builds it does not matter.
        env={**os.environ, "PYO3_PYTHON": sys.executable},
        stdout=subprocess.PIPE,
        text=True,
    )
    if build.returncode != 0:
        sys.exit(f"cargo could not build the profilemate command (exit code {build.returncode})")
    # Where cargo puts its output depends on the user's settings, so it is asked.
    artifacts = [
        message
        for message in map(json.loads, build.stdout.splitlines())
        if message.get("reason") == "compiler-artifact"
    ]
    lay(BINARY, [artifact["executable"] for artifact in artifacts if artifact.get("executable")])
    lay(
        NOTEBOOK_MODULE,
        [
            file
            for artifact in artifacts
            if artifact["target"]["name"] == "_session"
            for file in artifact["filenames"]
        ],
    )


def lay(target: Path, built: list[str]) -> None:
    """Puts what cargo built into the package."""
    if not built:
        sys.exit(f"cargo built no {target.name}")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    shutil.copy2(built[-1], partial)
    partial.replace(target)
