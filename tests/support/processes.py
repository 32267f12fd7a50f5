"""Processes that the tests start: each in a group of its own, its output in a file, ended whatever happens."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

# Longer than anything waited for takes on a slow machine, so that only something that never comes runs into it.
LIMIT_SECONDS = 600.0


def wait_for(what: str, condition: Callable[[], T | None], limit_seconds: float = LIMIT_SECONDS) -> T:
    """Polls `condition` until it gives something true, and returns that."""
    deadline = time.monotonic() + limit_seconds
    while True:
        if found := condition():
            return found
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: did not come within {limit_seconds:.0f} s")
        time.sleep(0.05)


class Running:
    """A started command."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for(self, what: str, condition: Callable[[], T | None]) -> T:
        """As `wait_for`, and gives up when the process has ended."""

        def alive_and() -> T | None:
            found = condition()
            if not found and self.process.poll() is not None:
                raise RuntimeError(f"{what}: the process ended first, with {self.process.returncode}")
            return found

        return wait_for(what, alive_and)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill_group(self) -> None:
        """SIGKILL to every process of the group at once."""
        os.killpg(self.process.pid, signal.SIGKILL)

    def ended(self) -> int:
        """Waits for the end; gives the exit code."""
        return self.process.wait(LIMIT_SECONDS)

    def clean_up(self) -> None:
        """Leaves no process of the group behind."""
        with contextlib.suppress(ProcessLookupError):
            self.kill_group()
        self.process.wait(LIMIT_SECONDS)
