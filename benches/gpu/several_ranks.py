"""Experts of a server of several GPUs: both ranks in one session, and every choice of a router counted once.

    python several_ranks.py MODEL --label NAME [--data-parallel 2] [--tensor-parallel 2 [--expert-parallel]]

`vllm serve` is started as users start it, and ProfileMate comes in by PYTHONPATH alone. A load is sent, then single
requests with pauses, so that counters are read once more behind the load: what is counted lies between the tokens of
the load and all tokens. Had each rank of tensor parallelism counted, it would be twice as much.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import common

#: Requests of the load, tokens of a prompt and of an answer.
REQUESTS, PROMPT, ANSWER = 128, 100, 60
#: Until the server must have come up.
START_SECONDS = 170


def complete(base: str, seed: int, prompt: int, answer: int) -> int:
    """Sends one request. Returns how many of its tokens are computed: all but the last that is sampled."""
    (tokens,) = common.prompts(1, prompt, seed)
    body = {
        "model": "m",
        "prompt": tokens["prompt_token_ids"],
        "max_tokens": answer,
        "ignore_eos": True,
        "temperature": 0,
    }
    request = urllib.request.Request(
        f"{base}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        usage = json.load(response)["usage"]
    return int(usage["prompt_tokens"]) + int(usage["completion_tokens"]) - 1


def is_up(base: str) -> bool:
    try:
        with urllib.request.urlopen(f"{base}/health", timeout=2):
            return True
    except OSError:
        return False


def wait_until_up(base: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not is_up(base):
        if server.poll() is not None or time.monotonic() > deadline:
            raise SystemExit("the server did not come up")
        time.sleep(0.3)


def rows_of(session: Path, table: str) -> list[dict[str, str]]:
    with (session / table).open() as file:
        return list(csv.DictReader(file))


def main() -> None:
    began = time.monotonic()
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--label", required=True)
    parser.add_argument("--data-parallel", type=int, default=1)
    parser.add_argument("--tensor-parallel", type=int, default=1)
    parser.add_argument("--expert-parallel", action="store_true")
    parser.add_argument("--json")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="profilemate-ranks-"))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(common.SITE), os.environ.get("PYTHONPATH", "")]),
        "PROFILEMATE_OUTPUT_DIR": str(folder),
        "PROFILEMATE_COLLECTOR": "none",
        "PROFILEMATE_MOE_INTERVAL_SECONDS": "1",
    }
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", options.model, "--load-format", "dummy"),
        *("--max-model-len", "2048", "--max-num-seqs", "64", "--served-model-name", "m", "--seed", "0"),
        *("--host", "127.0.0.1", "--port", str(port), "--gpu-memory-utilization", "0.85"),
        *("--no-enable-prefix-caching", "--compilation-config", '{"cudagraph_capture_sizes": [1, 16, 32, 64]}'),
        *("--data-parallel-size", str(options.data_parallel)),
        *("--tensor-parallel-size", str(options.tensor_parallel)),
        *(["--enable-expert-parallel"] if options.expert_parallel else []),
    ]
    base = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(command, env=environment)
    try:
        wait_until_up(base, server)
        print(f"server ready after {time.monotonic() - began:.1f} s", flush=True)
        with ThreadPoolExecutor(REQUESTS) as clients:
            load = sum(clients.map(lambda seed: complete(base, seed, PROMPT, ANSWER), range(REQUESTS)))
        behind = 0
        for number in range(3):
            # Longer than the interval; then steps in which counters are read, and what was read is written.
            time.sleep(1.2)
            with ThreadPoolExecutor(8) as clients:
                seeds = range(1000 + 8 * number, 1008 + 8 * number)
                behind += sum(clients.map(lambda seed: complete(base, seed, 8, 40), seeds))
    finally:
        server.send_signal(signal.SIGINT)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
    sessions = sorted(folder.glob("session_*"))
    session = sessions[0]
    subprocess.run([str(common.SITE.parent / "_bin" / "profilemate"), "export", str(session)], check=True)
    metadata = json.loads((session / "metadata.json").read_text())
    scheduled: Counter[str] = Counter()
    for row in rows_of(session, "batch_utilization.csv"):
        scheduled[row["process"]] += int(row["num_tokens"])
    forwards = Counter(row["process"] for row in rows_of(session, "forward_pass_timing.csv"))
    result: dict[str, Any] = {
        "label": options.label,
        "data_parallel": options.data_parallel,
        "tensor_parallel": options.tensor_parallel,
        "expert_parallel": options.expert_parallel,
        "sessions": len(sessions),
        "processes": [f"{p['role']}-{p['rank']} {p['how_it_ended']}" for p in metadata["processes"]],
        "tokens_of_load": load,
        "tokens_behind_it": behind,
        "tokens_scheduled": dict(scheduled),
        "forward_passes": dict(forwards),
        "profiler": metadata["profilers"].get("moe_expert_tracking"),
        "timing_mode": metadata["timing_mode"],
        "records_lost": metadata["records_lost"],
        "probe_errors": metadata["probe_errors"],
    }
    summary = session / "moe_expert_tracking" / "moe_summary.json"
    if summary.exists():
        found = json.loads(summary.read_text())
        layers = {name: of for name, of in found.items() if name.startswith("layer_")}
        counted = sorted({of["num_tokens"] for of in layers.values()})
        result |= {
            "layers": len(layers),
            "tokens_counted": counted,
            "every_token_has_top_k_choices": all(
                of["total_activations"] == of["num_tokens"] * of["top_k"] for of in layers.values()
            ),
            "is_counted_once": bool(counted) and load <= counted[0] and counted[-1] <= load + behind,
            "layers_not_seen": found.get("layers_not_seen"),
            "counted_by": dict(
                Counter(row["process"] for row in rows_of(summary.parent, "moe_load_imbalance.csv"))
            ),
        }
    common.say(result, options.json)


if __name__ == "__main__":
    main()
