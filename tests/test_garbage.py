"""Pauses of Python's garbage collector: each is a record, and whatever happens on our side, collecting goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.tables import Session
from support.vllm import profilemate

#: Watches collections in a process with a log. Collections of its own accord are off, so that those asked for are all.
PRELUDE = """
import gc, os, sys
gc.disable()
from profilemate import _native as n
def open_log(role):
    n.sessions_folder_ready(os.environ["SESSION"])
    n.open(os.environ["SESSION"], role, 0, 0, 65536, 1 << 30)
    n.fact("profiler:cpu_timing", "on")
def written():
    return n.statistics()[0]
def collections():
    return sum(of["collections"] for of in gc.get_stats())
open_log("worker")
gc.callbacks.append(n.on_garbage_collection)
"""


def record(tmp_path: Path, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PRELUDE + code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "SESSION": str(tmp_path / "session"), **environment},
    )


def exported(tmp_path: Path) -> Session:
    profilemate("export", str(tmp_path / "session"))
    return Session(tmp_path / "session")


def test_every_collection_is_one_row_with_its_generation_and_step(tmp_path: Path) -> None:
    done = record(
        tmp_path,
        """
class Cycle:
    def __init__(self): self.itself = self
step = n.Hook(lambda: None, "p", kind=n.SPAN, span="model_execution", lane=n.WORKER, before=lambda: 7)
gc.collect(2)
n.write_span("before", n.ticks(), n.ticks())
gc.collect(2)
for _ in range(3): Cycle()
gc.collect(0)
step()
begin = n.ticks()
gc.collect(1)
n.write_span("around", begin, n.ticks())
gc.collect(1)
n.close()
gc.collect(2)
""",
    )
    assert (done.returncode, done.stderr) == (0, "")
    # The first came before any work, and the last one behind all of it.
    rows = [row for row in exported(tmp_path).operations if row["operation"] == "garbage_collection"]
    assert [(row["context"], row["step"], row["process"]) for row in rows] == [
        ("generation=2", "", "worker-0"),
        ("generation=0", "", "worker-0"),
        ("generation=1", "7", "worker-0"),
    ]
    assert all(float(row["duration_ms"]) > 0 for row in rows)


def test_as_many_as_python_counts_of_its_own_accord(tmp_path: Path) -> None:
    done = record(
        tmp_path,
        """
kept = []
before = collections(), written()
gc.enable()
for _ in range(20_000):
    kept.append([])
gc.disable()
print(collections() - before[0], written() - before[1], collections() > before[0] + 5)
""",
    )
    python, ours, enough = done.stdout.split()
    assert (python, enough) == (ours, "True"), done


def test_no_collection_no_record(tmp_path: Path) -> None:
    done = record(
        tmp_path,
        """
kept = [[] for _ in range(20_000)]
gc.freeze()
gc.unfreeze()
print(written())
""",
    )
    assert done.stdout == "0\n", done


def test_what_runs_during_a_collection_may_be_recorded_too(tmp_path: Path) -> None:
    """Finalizers may call functions that are hooked."""
    done = record(
        tmp_path,
        """
hooked = n.Hook(lambda: None, "p", kind=n.SPAN, span="span")
class Cycle:
    def __init__(self): self.itself = self
    def __del__(self): hooked()
Cycle(); Cycle()
gc.collect()
print(written())
""",
    )
    assert done.stdout == "3\n", done


def test_a_forked_child_does_not_write_into_its_parents_log(tmp_path: Path) -> None:
    done = record(
        tmp_path,
        """
sys.stdout.flush()
if os.fork() == 0:
    gc.collect()
    before = n.is_open()
    open_log("engine_core")
    gc.collect(); gc.collect()
    print("child", before, written(), flush=True)
    os._exit(0)
os.wait()
gc.collect()
print("parent", written())
""",
    )
    assert done.stdout.splitlines() == ["child False 2", "parent 1"], done


def test_a_fork_in_the_middle_of_a_collection_gives_the_child_no_half_of_it(tmp_path: Path) -> None:
    done = record(
        tmp_path,
        """
def fork(phase, info):
    global child
    if phase == "start" and child is None:
        child = os.fork()
        if child == 0:
            open_log("engine_core")
child = None
gc.callbacks.append(fork)
gc.collect()
if child == 0:
    half = written()
    gc.collect()
    print("child", half, written(), flush=True)
    os._exit(0)
os.wait()
print("parent", written())
""",
    )
    assert done.stdout.splitlines() == ["child 0 1", "parent 1"], done


@pytest.mark.parametrize("fault", ["raise", "panic"])
def test_a_fault_on_our_side_is_said_once_and_switches_it_off(tmp_path: Path, fault: str) -> None:
    done = record(
        tmp_path,
        "for _ in range(6): print(gc.collect() >= 0, written())\n",
        PROFILEMATE_FAULT=fault,
    )
    assert done.stdout == "True 0\n" * 6
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("profilemate: probe garbage_collection failed (")
    assert exported(tmp_path).metadata["probe_errors"] == 3


def test_what_no_python_says_raises_nothing(tmp_path: Path) -> None:
    done = record(
        tmp_path,
        """
watch = n.on_garbage_collection
print(watch("stop", {}), watch("start", None), watch("other", {}), watch("start", {}), watch("stop", {}), written())
print(watch("start", {}), watch("stop", {"generation": -1, "collected": 1 << 40, "uncollectable": -1}), written())
print(watch(3, {}), watch("start", {}), watch("stop", 5), watch("start", {}), watch("stop", {"generation": "x"}))
gc.collect()
print(written())
""",
    )
    assert done.stdout.splitlines() == ["None " * 5 + "1", "None None 2", "None " * 4 + "None", "2"], done
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_without_a_log_nothing_happens() -> None:
    code = "import gc; from profilemate import _native as n; gc.callbacks.append(n.on_garbage_collection); gc.collect()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


OPEN = """
import gc
from profilemate import _native, session
session.take_role("worker", 0, 0)
session.take_role("engine_core", 0, 0)
print(gc.callbacks.count(_native.on_garbage_collection), flush=True)
import os
if os.fork() == 0:
    session.take_role("worker", 1, 0)
    print(gc.callbacks.count(_native.on_garbage_collection), flush=True)
    os._exit(0)
os.wait()
"""


@pytest.mark.parametrize(("switch", "count"), [("1", "1"), ("0", "0")])
def test_it_is_watched_with_the_cpus_operations(tmp_path: Path, switch: str, count: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", OPEN],
        capture_output=True,
        text=True,
        check=True,
        env={
            **os.environ,
            "PROFILEMATE_SESSION": str(tmp_path / "session"),
            "PROFILEMATE_COLLECTOR": "none",
            "PROFILEMATE_ENABLE_CPU_TIMING": switch,
        },
    )
    assert (done.stdout.split(), done.stderr) == ([count, count], "")
