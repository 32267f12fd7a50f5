"""Builds the wheel: the command line tool with cargo first, then everything else by maturin.

maturin builds one crate, the native module. The wheel also carries the command `profilemate`, which is a second
program, so it is built here and laid into the package before maturin packs it.
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
BINARY = ROOT / "python" / "profilemate" / "_bin" / "profilemate"

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
    build_command_line_tool()
    name: str = maturin.build_wheel(wheel_directory, config_settings, metadata_directory)
    return name


def build_editable(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    build_command_line_tool()
    name: str = maturin.build_editable(wheel_directory, config_settings, metadata_directory)
    return name


def build_command_line_tool() -> None:
    """Builds the tool and puts it at `BINARY`, whole or not at all."""
    build = subprocess.run(
        [
            os.environ.get("CARGO", "cargo"),
            *("build", "--release", "--locked", "--package", "profilemate-cli", "--bin", "profilemate"),
            *("--message-format", "json-render-diagnostics"),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    if build.returncode != 0:
        sys.exit(f"cargo could not build the profilemate command (exit code {build.returncode})")
    # Where cargo puts its output depends on the user's settings, so it is asked.
    built = [
        message["executable"]
        for message in map(json.loads, build.stdout.splitlines())
        if message.get("reason") == "compiler-artifact" and message.get("executable")
    ]
    if not built:
        sys.exit("cargo built no profilemate command")
    BINARY.parent.mkdir(parents=True, exist_ok=True)
    partial = BINARY.with_name("profilemate.partial")
    shutil.copy2(built[-1], partial)
    partial.replace(BINARY)
