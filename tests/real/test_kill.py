"""SIGKILL at random moments: what was recorded up to then is in the tables, and nothing else is harmed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from support import checks
from support.tables import completed_session
from support.vllm import Server, environment, profilemate

FORKS = 6


def request_until_it_is_gone(server: Server, prompt_tokens: int) -> None:
    try:
        while True:
            server.complete(prompt_tokens, 50)
    except ConnectionError:
        pass


def test_a_server_killed_under_load(tiny_llama: Path, log_folder: Path, tmp_path: Path) -> None:
    """With PYTHONPATH alone: here the collector is a process that outlives the server.

    A server of which the engine alone is killed is in `test_pressure.py`.
    """
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    # The group is where Ctrl-C and a supervisor's kill go, so the collector must not be in it.
    server = Server(
        tiny_llama,
        log_folder / "kill.log",
        environment(tmp_path, PYTHONPATH=profilemate("path").strip(), PROFILEMATE_REFRESH_SECONDS="1"),
    )
    with ThreadPoolExecutor() as clients:
        try:
            for prompt_tokens in (5, 50, 150, 600):
                clients.submit(request_until_it_is_gone, server, prompt_tokens)
            enough = chance.randrange(1000, 4000)
            server.wait_for("load", lambda: server.metrics()["vllm:generation_tokens_total"] >= enough)
            seen = server.metrics()
            server.kill_group()
            server.ended()
        finally:
            server.clean_up()
    session = completed_session(tmp_path)
    checks.sound(session)
    assert {"api_server", "engine_core", "worker"} <= session.roles()
    # What the server had told us about is at most what we recorded.
    assert session.counters["iterations"] >= seen["vllm:iteration_tokens_total_count"]
    assert session.counters["generation_tokens"] >= seen["vllm:generation_tokens_total"]
    assert session.counters["prompt_tokens"] >= seen["vllm:prompt_tokens_total"]
    assert len(session.forward) >= seen["vllm:iteration_tokens_total_count"]
    # A step that was under way has been scheduled, and maybe not more.
    assert len(session.batches) - len(session.forward) in (0, 1)


def test_forked_engines_killed_again_and_again(tiny_llama: Path, log_folder: Path, tmp_path: Path) -> None:
    """One import of vLLM, many engines: each child of a fork writes a log of its own, and is killed."""
    chance = random.Random(seed := random.randrange(2**32))
    print("seed", seed)
    child = [sys.executable, str(Path(__file__).with_name("forked.py")), str(tiny_llama)]
    generated: list[int] = []
    pids: list[int] = []
    with (log_folder / "forked.log").open("w") as errors:
        parent = subprocess.Popen(
            child,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment(tmp_path, PYTHONPATH=profilemate("path").strip()),
            start_new_session=True,
        )
        assert parent.stdin and parent.stdout
        try:
            for _ in range(FORKS):
                parent.stdin.write("\n")
                parent.stdin.flush()
                rounds = chance.randrange(1, 30)
                told = 0
                for line in parent.stdout:
                    match line.split():
                        case ["child", pid]:
                            pids.append(int(pid))
                        case ["tokens", count]:
                            told = int(count)
                            rounds -= 1
                            if rounds == 0:
                                os.kill(pids[-1], signal.SIGKILL)
                        case ["ended"]:
                            break
                generated.append(told)
            parent.stdin.close()
            assert parent.wait(60) == 0
        finally:
            if parent.poll() is None:
                os.killpg(parent.pid, signal.SIGKILL)
                parent.wait()
            parent.stdout.close()
    session = completed_session(tmp_path, *pids)
    checks.tables_are_whole(session)
    checks.nothing_was_lost(session)
    # Each engine counts its steps from 1, so a step's number occurs several times; each pass still has its own batch.
    scheduled = Counter((row["step"], row["phase"], row["num_tokens"], row["num_seqs"]) for row in session.batches)
    computed = Counter(
        (row["step"], row["phase"], row["num_tokens"], row["batch_size"]) for row in session.forward
    )
    assert computed <= scheduled
    assert (scheduled - computed).total() <= FORKS
    # Told tokens were generated; those of the round that the kill cut off may be there, too.
    assert session.counters["generation_tokens"] >= sum(generated)
