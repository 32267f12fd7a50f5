"""SIGKILL at random instants: processes that record, their collector, and both. What was committed is in the tables.

    python -m support.death KILLS [SEED]

Writers are processes that step vLLM's classes as `test_attach` has them, with the real hooks, flat out. Each says in
memory that it shares with us how many steps it has made and how many records it has committed, so that outlives it.
"""

from __future__ import annotations

import csv
import json
import mmap
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from support.processes import LIMIT_SECONDS
from support.tables import Session
from support.vllm import BIN, environment
from test_attach import CONFIG, MODULES, SITE

#: Reads `SESSION BOARD` per line, and forks a process that steps an engine until it is killed or told to end.
ZYGOTE = (
    "import gc, mmap, os, sys, time\n"
    "from vllm.v1.engine.core import EngineCore\n"
    "from profilemate import _native\n"
    + CONFIG
    + """
def work(session, board):
    os.environ["PROFILEMATE_SESSION"] = session
    with open(board, "r+b") as file:
        told = memoryview(mmap.mmap(file.fileno(), 24)).cast("Q")
    engine = EngineCore(config)
    steps = 0
    while told[2] == 0:
        engine.step()
        steps += 1
        # A word at a time: it may be killed in between.
        told[1] = _native.statistics()[0]
        told[0] = steps
        if steps % 20 == 0:
            # Faster than the recorder's thread makes segments would be records that are dropped.
            time.sleep(0.001)
    _native.close()
gc.freeze()
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work(*line.split())
            code = 0
        finally:
            os._exit(code)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
)
WRITERS = 5
KINDS = ("both", "both", "writers", "collector")


class Writer:
    """A process that records, in a session."""

    def __init__(self, variables: dict[str, str], session: Path, board: Path) -> None:
        board.write_bytes(bytes(24))
        with board.open("r+b") as file:
            self._told = mmap.mmap(file.fileno(), 24)
        self._zygote = subprocess.Popen(
            [sys.executable, "-c", ZYGOTE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=variables,
            start_new_session=True,
        )
        self._session, self._board = session, board

    def start(self) -> None:
        assert self._zygote.stdin and self._zygote.stdout
        self._zygote.stdin.write(f"{self._session} {self._board}\n")
        self._zygote.stdin.flush()
        self.pid = int(self._zygote.stdout.readline())

    @property
    def told(self) -> tuple[int, int]:
        """Steps, and records committed."""
        steps, records = struct.unpack_from("<QQ", self._told, 0)
        return steps, records

    def wait_for(self, records: int) -> None:
        deadline = time.monotonic() + LIMIT_SECONDS
        while self.told[1] < records:
            if time.monotonic() > deadline:
                raise TimeoutError("a writer does not go on")

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def end(self) -> None:
        self._told[16] = 1

    def ended(self) -> int:
        assert self._zygote.stdout and self._zygote.stdin
        code = int(self._zygote.stdout.readline())
        self._zygote.stdin.close()
        self._zygote.wait(LIMIT_SECONDS)
        self._zygote.stdout.close()
        return code

    def clean_up(self) -> None:
        if self._zygote.poll() is None:
            os.killpg(self._zygote.pid, signal.SIGKILL)
            self._zygote.wait()
        self._told.close()


def _tables_are_whole(folder: Path) -> None:
    """Each table that is there has all its rows to the end, also those that a killed collector made."""
    for path in folder.rglob("*"):
        if "raw" in path.parts or path.suffix not in (".csv", ".json"):
            continue
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            json.loads(text)
            continue
        assert text.endswith("\n"), path
        header, *rows = csv.reader(text.splitlines(), strict=True)
        assert all(len(row) == len(header) for row in rows), path


def _check(folder: Path, told: list[tuple[int, int]]) -> Counter[str]:
    _tables_are_whole(folder)
    session = Session(folder)
    metadata = session.metadata
    steps, records = (sum(each) for each in zip(*told, strict=True))
    scheduled = len(session.rows("batch_utilization.csv"))
    assert metadata["records_lost"] == 0, metadata
    assert metadata["records_damaged"] <= len(told), metadata
    # Of each writer a step may be under way, and the records of it that are told of after it.
    assert records <= metadata["records_written"] <= records + 8 * len(told), (metadata["records_written"], told)
    assert steps <= scheduled <= steps + len(told), (scheduled, told)
    assert session.counters["engine_steps"] == scheduled
    return Counter(
        records=metadata["records_written"],
        torn=metadata["records_damaged"],
        sessions=1,
    )


def one_session(folder: Path, chance: random.Random) -> Counter[str]:
    """A session whose processes are killed, in the ways that chance has; gives what was seen."""
    vllm = folder / "vllm"
    for name, text in MODULES.items():
        (vllm / name).parent.mkdir(parents=True, exist_ok=True)
        (vllm / name).write_text(text)
    session = folder / "session_of_the_dead"
    (session / "raw").mkdir(parents=True, mode=0o700)
    variables = environment(
        folder,
        PYTHONPATH=f"{SITE}:{vllm}",
        PROFILEMATE_COLLECTOR="none",
        PROFILEMATE_SEGMENT_BYTES=str(1 << 20),
        PROFILEMATE_REFRESH_SECONDS="1",
    )
    kind = chance.choice(KINDS)
    writers = [Writer(variables, session, folder / f"board-{number}") for number in range(WRITERS)]
    collector = None
    try:
        for writer in writers:
            writer.start()
        # Some die while they open their logs: then there are no records to wait for.
        targets = [0 if chance.random() < 0.1 else int(2 ** chance.uniform(0, 15)) for _ in writers]
        # One of them begins, at least: for one who never comes a collector waits long.
        targets[0] = max(targets[0], 1)
        collector = subprocess.Popen([str(BIN / "profilemate"), "collect", str(session)], env=variables)

        def strike(writer: Writer, records: int, delay: float) -> None:
            if records == 0:
                time.sleep(delay)
            else:
                writer.wait_for(records)
            writer.kill()

        threads = []
        if kind != "collector":
            threads = [
                threading.Thread(target=strike, args=(writer, records, chance.uniform(0, 0.02)))
                for writer, records in zip(writers, targets, strict=True)
            ]
            for thread in threads:
                thread.start()
        else:
            for writer, records in zip(writers, targets, strict=True):
                writer.wait_for(max(records, 1))
        seen = Counter[str]()
        if kind != "writers":
            # While it looks, refreshes, or makes the last tables.
            time.sleep(chance.uniform(0, 2.5))
            seen["collectors killed"] += collector.poll() is None
            collector.kill()
        for thread in threads:
            thread.join()
        if kind == "collector":
            for writer in writers:
                writer.end()
        codes = [writer.ended() for writer in writers]
        assert codes == [0 if kind == "collector" else -signal.SIGKILL] * WRITERS, codes
        seen["writers killed"] += 0 if kind == "collector" else WRITERS
        collector.wait(LIMIT_SECONDS)
        told = [writer.told for writer in writers]
        _tables_are_whole(session)
        if kind == "writers":
            assert collector.returncode == 0
        else:
            subprocess.run([BIN / "profilemate", "export", session], check=True, capture_output=True)
        return seen + _check(session, told)
    finally:
        for writer in writers:
            writer.clean_up()
        if collector is not None:
            collector.kill()
            collector.wait()


def run(kills: int, seed: int, at_once: int) -> dict[str, Any]:
    """Kills so many processes, or some more."""
    seen = Counter[str]()
    lock = threading.Lock()

    def more(number: int) -> None:
        chance = random.Random(f"{seed} {number}")
        while seen["writers killed"] + seen["collectors killed"] < kills:
            with tempfile.TemporaryDirectory() as folder:
                found = one_session(Path(folder), chance)
            with lock:
                seen.update(found)

    with ThreadPoolExecutor(at_once) as pool:
        for done in [pool.submit(more, number) for number in range(at_once)]:
            done.result()
    return {
        "seed": seed,
        "kills": seen["writers killed"] + seen["collectors killed"],
        **dict(sorted(seen.items())),
    }


def main() -> None:
    kills = int(sys.argv[1])
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(2**32)
    print("seed", seed, flush=True)
    print("RESULT", json.dumps(run(kills, seed, 4)), flush=True)


if __name__ == "__main__":
    main()
