"""Runs of vLLM's scheduler by hand (`support.scenarios`), and the session that each left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from support.processes import LIMIT_SECONDS
from support.tables import Session, only_session
from support.vllm import environment, profilemate


@dataclass
class Driven:
    """One run."""

    folder: Path
    #: What it printed.
    output: str
    #: What vLLM did, from the script that drove it.
    truth: dict[str, Any]
    #: What `profilemate export` printed.
    printed: str

    @cached_property
    def session(self) -> Session:
        return only_session(self.folder)


class Scenarios:
    """The process that scenarios are forked from: it has vLLM imported."""

    def __init__(self, model: Path, folder: Path, log: Path) -> None:
        self.folder = folder
        self.done: dict[str, Driven] = {}
        variables = environment(
            folder,
            PYTHONPATH=str(Path(__file__).parents[1]),
            # Our plugin is called by the child that wants it.
            VLLM_PLUGINS="none",
            VLLM_LOGGING_LEVEL="ERROR",
        )
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "support.scenarios", str(model)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=variables,
                start_new_session=True,
            )

    def run(
        self,
        scenario: str,
        *,
        is_profiled: bool = True,
        variables: Mapping[str, str] | None = None,
        **arguments: Any,
    ) -> Driven:
        """Runs a scenario, or gives what it was when it ran before."""
        wanted = json.dumps([scenario, is_profiled, dict(variables or {}), arguments], sort_keys=True)
        if wanted not in self.done:
            self.done[wanted] = self._run(scenario, is_profiled, variables or {}, arguments)
        return self.done[wanted]

    def _run(
        self, scenario: str, is_profiled: bool, variables: Mapping[str, str], arguments: Mapping[str, Any]
    ) -> Driven:
        folder = self.folder / f"{len(self.done)}-{scenario}"
        folder.mkdir()
        order = {
            "scenario": scenario,
            "arguments": arguments,
            "folder": str(folder),
            "environment": {
                "PROFILEMATE_ENABLE": "1",
                # The tables are made below, when the process is gone.
                "PROFILEMATE_COLLECTOR": "none",
                "PROFILEMATE_OUTPUT_DIR": str(folder),
                **variables,
            },
            "is_profiled": is_profiled,
        }
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        ended = next(
            (line.split() for line in self.process.stdout if line.startswith("ended ")), ["ended", "never"]
        )
        output = (folder / "output.log").read_text(encoding="utf-8", errors="replace")
        assert ended == ["ended", "0"], f"{scenario}: {ended}\n{output}"
        truth = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
        printed = profilemate("export", str(only_session(folder).folder)) if is_profiled else ""
        return Driven(folder, output, truth, printed)

    def clean_up(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(LIMIT_SECONDS)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
