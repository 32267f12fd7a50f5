"""Real vLLM servers for the tests, and what vLLM itself says about them."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import urllib.request
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from support.processes import LIMIT_SECONDS, Running

BIN = Path(sys.executable).parent
MAX_NUM_SEQS = 32
# Small, so that a long prompt is computed in several pieces, beside the single tokens of running requests.
MAX_TOKENS = 192


def environment(output_dir: Path, **more: str) -> dict[str, str]:
    """The environment of a profiled vLLM: nothing of ours but what is named here."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PROFILEMATE_", "VLLM_PROFILING_", "VLLM_ENABLE_PROFILING", "PYTHONPATH"))
    }
    return {
        **inherited,
        "PATH": f"{BIN}{os.pathsep}{inherited.get('PATH', '')}",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "PROFILEMATE_OUTPUT_DIR": str(output_dir),
        **more,
    }


def without_profiler(environment: Mapping[str, str]) -> dict[str, str]:
    """vLLM loads the plugins that it is told to, so here our code does not run at all."""
    return {**environment, "VLLM_PLUGINS": "none", "PROFILEMATE_ENABLE": "0"}


def profilemate(*arguments: str) -> str:
    """What a `profilemate` command prints."""
    done = subprocess.run([BIN / "profilemate", *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server(Running):
    """`vllm serve`, up and answering."""

    def __init__(
        self,
        model: Path,
        log: Path,
        environment: Mapping[str, str],
        *options: str,
        launcher: tuple[str, ...] = (),
        api_key: str = "none",
    ) -> None:
        self.api_key = api_key
        self.model = model
        self.port = free_port()
        command = [
            *launcher,
            *("vllm", "serve", str(model), "--host", "127.0.0.1", "--port", str(self.port)),
            *("--load-format", "dummy", "--enforce-eager", "--max-model-len", "1024"),
            *("--max-num-seqs", str(MAX_NUM_SEQS), "--max-num-batched-tokens", str(MAX_TOKENS)),
            *options,
        ]
        self.environment = environment
        super().__init__([str(BIN / command[0]), *command[1:]], log, environment)
        try:
            self.wait_for("the server to answer", self.healthy)
        except BaseException:
            self.clean_up()
            raise

    def healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=LIMIT_SECONDS):
                return True
        except OSError:
            return False

    def metrics_text(self) -> str:
        """vLLM's own counters."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=LIMIT_SECONDS) as answer:
            text: str = answer.read().decode()
            return text

    def metrics(self) -> dict[str, float]:
        """The same, each summed over its labels."""
        return parse_metrics(self.metrics_text())

    def bench(self, *options: str) -> None:
        """A load from vLLM's own client, to its end."""
        log = self.log.with_suffix(".client.log")
        command = [
            *(str(BIN / "vllm"), "bench", "serve", "--backend", "vllm"),
            *("--host", "127.0.0.1", "--port", str(self.port), "--model", str(self.model)),
            *("--dataset-name", "random", "--request-rate", "inf", "--ignore-eos", *options),
        ]
        with log.open("wb") as output:
            client = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**without_profiler(self.environment), "OPENAI_API_KEY": self.api_key},
                timeout=LIMIT_SECONDS,
            )
        assert client.returncode == 0, log.read_text(errors="replace")[-4000:]

    def complete(self, prompt_tokens: int, output_tokens: int) -> None:
        """One request of exactly this size, to its end or to that of the server."""
        self.ask([3 + (7 * place + prompt_tokens) % 251 for place in range(prompt_tokens)], output_tokens)

    def ask(self, prompt: str | list[int], output_tokens: int) -> None:
        """One request, to its end or to that of the server."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT_SECONDS)
        body = {
            "model": str(self.model),
            "prompt": prompt,
            "max_tokens": output_tokens,
            "ignore_eos": True,
            "temperature": 0,
        }
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.api_key}"}
        try:
            connection.request("POST", "/v1/completions", json.dumps(body), headers)
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionError(f"the server went away: {error}") from error
        finally:
            connection.close()
        if answer.status != http.client.OK:
            raise ConnectionError(f"the server answered {answer.status}: {content[:500]!r}")


def parse_metrics(text: str) -> dict[str, float]:
    sums: dict[str, float] = defaultdict(float)
    for line in text.splitlines():
        if match := re.fullmatch(r"(\w+(?::\w+)?)(?:\{.*\})? (\S+)", line):
            sums[match[1]] += float(match[2])
    return dict(sums)
