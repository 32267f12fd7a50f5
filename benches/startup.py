"""What we add to the start of a process.

    python benches/startup.py [PYTHON] [--pairs 100]        a Python process that does not run vLLM
    python benches/startup.py --serve MODEL [--pairs 6]     `vllm serve`, until it answers
    python benches/startup.py --serve MODEL --count         what we take of it ourselves, by process

Each is started with our folder on PYTHONPATH and without, in turns. Prints one JSON line: medians of both, and of what
is added the median and its 95 % interval (that of the sign test). For vLLM it gives the CPU time of all its processes
as well, which other programs on the machine change less.

`--count` is for a machine on which neither says anything: it starts one server, and gives for each of its processes the
milliseconds that its threads spent in our code until the server answered, and how many of them they worked. In it are
our import hook, what it imports and attaches, and the opening of the log, which starts the collector; not what hooks
take that are called meanwhile (`overhead` in metadata.json has them for steps).
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

SITE = Path(__file__).resolve().parent.parent / "python" / "profilemate" / "sitecustomize"
#: Between two questions to a server whether it is up, seconds.
ASKED_EVERY = 0.01
LIMIT_SECONDS = 900

Measured = dict[str, float]

#: A `sitecustomize` that ours runs: adds up our time in each process, in a file of its own.
COUNTER = """
import os, time
from profilemate import importhook
spent = {}
def timed(function, without=lambda: (0.0, 0.0)):
    def call(*arguments, **keywords):
        begun = time.perf_counter(), time.thread_time()
        before = without()
        try:
            return function(*arguments, **keywords)
        finally:
            other = [now - then for now, then in zip(without(), before)]
            took = (time.perf_counter() - begun[0] - other[0], time.thread_time() - begun[1] - other[1])
            wall, cpu = spent.get(os.getpid(), (0.0, 0.0))
            spent[os.getpid()] = wall, cpu = wall + took[0], cpu + took[1]
            if took[0] > 1e-4:
                with open(f"{os.environ['STARTUP_COUNTS']}/{os.getpid()}", "w") as file:
                    file.write(f"{wall} {cpu}")
    return call
# What other finders take, they would take without us.
others = [0.0, 0.0]
ask = importhook.Finder._ask_the_others
def asking(*arguments):
    begun = time.perf_counter(), time.thread_time()
    try:
        return ask(*arguments)
    finally:
        others[0] += time.perf_counter() - begun[0]
        others[1] += time.thread_time() - begun[1]
importhook.Finder._ask_the_others = asking
find = timed(importhook.Finder.find_spec, lambda: tuple(others))
def finding(finder, name, *arguments):
    if not name.startswith("vllm"):
        return None
    found = find(finder, name, *arguments)
    from profilemate import session
    if session.take_role.__name__ != "call":
        session.take_role = timed(session.take_role)
    return found
importhook.Finder.find_spec = finding
made = importhook._Loader.__init__
importhook._Loader.__init__ = lambda loader, theirs, loaded: made(loader, theirs, timed(loaded))
"""


def without_vllm(python: str, pythonpath: str) -> Measured:
    environment = {**os.environ, "PYTHONPATH": pythonpath}
    begin = time.perf_counter()
    subprocess.run([python, "-c", "pass"], check=True, env=environment)
    return {"time": time.perf_counter() - begin}


def serving(model: str, output: str, pythonpath: str, at_the_end: Callable[[], None] = lambda: None) -> Measured:
    """Serves until it answers, then ends it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        # Our folder on the path is all that differs: vLLM's plugins are off in both, ours among them.
        **{name: value for name, value in os.environ.items() if not name.startswith("PROFILEMATE_")},
        "PYTHONPATH": pythonpath,
        "PROFILEMATE_OUTPUT_DIR": output,
        "VLLM_PLUGINS": "none",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    command = [
        *("vllm", "serve", model, "--host", "127.0.0.1", "--port", str(port), "--load-format", "dummy"),
        *("--enforce-eager", "--max-model-len", "1024", "--max-num-seqs", "32", "--max-num-batched-tokens", "192"),
    ]
    begin = time.perf_counter()
    server = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while not answers(port):
            if server.poll() is not None or time.perf_counter() - begin > LIMIT_SECONDS:
                sys.exit(f"failed: {' '.join(command)} did not come up")
            time.sleep(ASKED_EVERY)
        took = {"time": time.perf_counter() - begin, "cpu_time": cpu_seconds(server.pid)}
        at_the_end()
        server.send_signal(signal.SIGINT)
        server.wait(LIMIT_SECONDS)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    return took


def count(model: str, output: str) -> None:
    """Serves once, and prints what we took of its processes."""
    counts, site = Path(output) / "counts", Path(output) / "site"
    counts.mkdir()
    site.mkdir()
    (site / "sitecustomize.py").write_text(COUNTER, encoding="utf-8")
    os.environ["STARTUP_COUNTS"] = str(counts)
    found: dict[str, list[float]] = {}

    def look() -> None:
        for file in counts.iterdir():
            try:
                command = Path(f"/proc/{file.name}/cmdline").read_bytes().split(b"\0")
            except OSError:
                command = [b"ended"]
            words = b" ".join(command)[:60].decode(errors="replace").strip()
            found[f"{file.name} {words}"] = [rounded(float(took)) for took in file.read_text().split()]

    took = serving(model, output, f"{SITE}{os.pathsep}{site}", look)
    total = [round(sum(column), 2) for column in zip(*found.values(), strict=True)]
    print(json.dumps({"served_after_s": round(took["time"], 1), "wall_and_cpu_ms": found, "together": total}))


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=LIMIT_SECONDS):
            return True
    except OSError:
        return False


def cpu_seconds(root: int) -> float:
    """CPU time of a process and all that come from it, those that have ended too."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        pid = int(folder.name)
        parents[pid] = int(fields[1])
        ticks[pid] = sum(map(int, fields[11:15]))

    def is_of_root(pid: int) -> bool:
        while pid not in (root, 0):
            pid = parents.get(pid, 0)
        return pid == root

    return sum(ticks[pid] for pid in ticks if is_of_root(pid)) / os.sysconf("SC_CLK_TCK")


def interval(values: list[float]) -> tuple[float, float]:
    """At least 95 %, of six values or more: between those behind which the median lies too seldom."""
    values, count = sorted(values), len(values)
    left_out, outside = 0, 2 / 2**count
    while outside + 2 * math.comb(count, left_out + 1) / 2**count <= 0.05:
        left_out += 1
        outside += 2 * math.comb(count, left_out) / 2**count
    return values[left_out], values[-1 - left_out]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("python", nargs="?", default=sys.executable)
    parser.add_argument("--serve", metavar="MODEL")
    parser.add_argument("--pairs", type=int)
    parser.add_argument("--count", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as output:
        if arguments.count:
            count(arguments.serve, output)
            return
        measure: Callable[[str], Measured]
        if arguments.serve:
            pairs, warm_up = arguments.pairs or 6, 1

            def measure(pythonpath: str) -> Measured:
                return serving(arguments.serve, output, pythonpath)
        else:
            pairs, warm_up = arguments.pairs or 100, 5

            def measure(pythonpath: str) -> Measured:
                return without_vllm(arguments.python, pythonpath)

        both: list[Mapping[str, Measured]] = []
        for pair in itertools.count():
            if len(both) == pairs:
                break
            order = ("", str(SITE)) if pair % 2 else (str(SITE), "")
            took = {pythonpath: measure(pythonpath) for pythonpath in order}
            if pair >= warm_up:
                both.append(took)
                if arguments.serve:
                    print({("with" if path else "without"): took[path] for path in sorted(took)}, file=sys.stderr)
    result: dict[str, object] = {"started": arguments.serve or arguments.python, "pairs": pairs}
    for what in both[0][""]:
        added = [took[str(SITE)][what] - took[""][what] for took in both]
        result[what] = {
            "without_ms": rounded(statistics.median(took[""][what] for took in both)),
            "with_ms": rounded(statistics.median(took[str(SITE)][what] for took in both)),
            "added_ms": rounded(statistics.median(added)),
            "added_ms_interval": [rounded(end) for end in interval(added)],
        }
    print(json.dumps(result))


def rounded(seconds: float) -> float:
    return round(seconds * 1e3, 2)


if __name__ == "__main__":
    main()
