"""Generates as `generate.py` does, and does to the recording, between two calls, whatever can happen to it.

    PYTHONPATH=tests python tests/real/faults.py MODEL OUT.json

Everything in one process, in an order in which each still finds something to harm. What was done is printed.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import runpy
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vllm import LLM

from profilemate import _native
from support import broken


def session() -> Path:
    return Path(os.environ["PROFILEMATE_SESSION"])


def cut(pattern: str) -> None:
    files = list(session().glob(pattern))
    assert files, pattern
    for file in files:
        os.truncate(file, 0)


def collector_dies() -> None:
    lock = session() / "raw" / "collector.lock"
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if descriptor.readlink() == lock:
                os.kill(int(descriptor.parts[2]), signal.SIGKILL)
                return
    raise LookupError("no collector")


def objects_are_broken() -> None:
    broken.BREAKER.chance = random.Random(5)


def files_stay_small() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (16 << 10, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def files_grow_again() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.getrlimit(resource.RLIMIT_FSIZE)[1],) * 2)


FAULTS: dict[int, Callable[[], None]] = {
    3: collector_dies,
    4: lambda: cut("raw/*.seg"),
    6: lambda: cut("raw/*.head"),
    8: files_stay_small,
    11: objects_are_broken,
    14: lambda: shutil.rmtree(session()),
    # `generate` writes its tokens.
    17: files_grow_again,
}


def main() -> None:
    broken.install()
    calls = 0
    generated = LLM.generate

    def with_faults(self: LLM, *arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls in FAULTS:
            FAULTS[calls]()
            print("fault", calls, "with", _native.statistics()[0], "records", flush=True)
        return generated(self, *arguments, **keywords)

    LLM.generate = with_faults
    runpy.run_path(str(Path(__file__).with_name("generate.py")), run_name="__main__")
    print("broken", broken.BREAKER.hits, "times", flush=True)
    assert _native.is_open()


if __name__ == "__main__":
    main()
