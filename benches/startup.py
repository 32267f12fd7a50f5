"""What our folder on PYTHONPATH adds to the start of a Python process that does not run vLLM.

    python benches/startup.py [PYTHON] [--pairs 100]

Starts PYTHON with and without it, in turns, and prints one JSON line with medians in milliseconds.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

SITE = Path(__file__).resolve().parent.parent / "python" / "profilemate" / "sitecustomize"


def milliseconds(python: str, pythonpath: str) -> float:
    environment = {**os.environ, "PYTHONPATH": pythonpath}
    begin = time.perf_counter()
    subprocess.run([python, "-c", "pass"], check=True, env=environment)
    return (time.perf_counter() - begin) * 1e3


def main() -> None:
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    python = arguments[0] if arguments else sys.executable
    pairs = int(sys.argv[sys.argv.index("--pairs") + 1]) if "--pairs" in sys.argv else 100
    both: list[tuple[float, float]] = []
    for pair in range(pairs + 5):
        order = ("", str(SITE)) if pair % 2 else (str(SITE), "")
        took = {pythonpath: milliseconds(python, pythonpath) for pythonpath in order}
        if pair >= 5:
            both.append((took[""], took[str(SITE)]))
    added = [ours - plain for plain, ours in both]
    print(
        json.dumps(
            {
                "python": python,
                "without_ms": round(statistics.median(plain for plain, _ in both), 2),
                "with_ms": round(statistics.median(ours for _, ours in both), 2),
                "added_ms": round(statistics.median(added), 2),
                "added_ms_quartiles": [round(quartile, 2) for quartile in statistics.quantiles(added, n=4)],
            }
        )
    )


if __name__ == "__main__":
    main()
