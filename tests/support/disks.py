"""Folders that are full, small or read-only: a tmpfs(5) in a mount namespace of the process's own."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

import pytest

#: Mounts what is asked for at a folder, and goes on as the command.
_MOUNT = 'mount -t tmpfs -o "$1" tmpfs "$2" && shift 2 && exec "$@"'


@cache
def _unshare() -> tuple[str, ...]:
    """How to get a namespace here; empty, with the reason behind it, where that is not permitted."""
    said = ""
    for command in (("unshare", "--mount"), ("unshare", "--user", "--map-root-user", "--mount")):
        try:
            done = subprocess.run(
                [*command, "sh", "-c", "mount -t tmpfs tmpfs /mnt"], capture_output=True, text=True, check=False
            )
        except OSError as error:
            return ("", str(error))
        if done.returncode == 0:
            return command
        said = done.stderr.strip()
    return ("", said)


def with_tmpfs(folder: Path, options: str, command: list[str]) -> list[str]:
    """The command, run where a tmpfs with these options is mounted at the folder."""
    unshare = _unshare()
    if not unshare[0]:
        pytest.skip(f"this system permits nobody to mount in a namespace of his own: {unshare[1]}")
    folder.mkdir(exist_ok=True)
    return [*unshare, "sh", "-c", _MOUNT, "sh", options, str(folder), *command]


#: What is in it stays readable, for this checkout may be there; an empty one, where that may not be done.
_READ_ONLY = """{ mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" || mount -t tmpfs -o ro tmpfs "$1"; } &&
shift && exec "$@"
"""


def with_read_only(folder: Path, command: list[str]) -> list[str]:
    """The command, run where nobody can write to the folder."""
    unshare = _unshare()
    if not unshare[0]:
        pytest.skip(f"this system permits nobody to mount in a namespace of his own: {unshare[1]}")
    return [*unshare, "sh", "-c", _READ_ONLY, "sh", str(folder), *command]
