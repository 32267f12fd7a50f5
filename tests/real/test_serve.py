"""`profilemate run -- vllm serve`: one server, one load, and what must be true of the session."""

from __future__ import annotations

import signal
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from support import checks
from support.tables import Session, only_session
from support.vllm import MAX_NUM_SEQS, MAX_TOKENS, Server, environment

# Operations in which an engine step spends its time, and what lies around them.
OPERATIONS = {
    "scheduling",
    "batch_preparation",
    "model_execution",
    "sampling",
    "bookkeeping",
    "update_from_output",
    "output_processing",
    "tokenization",
    "detokenization",
    "engine_step",
    "engine_idle",
    "garbage_collection",
}

# Made up, to be looked for afterwards.
API_KEY = "sk-3f9c1e-not-to-be-kept"
PROMPT = "the purple submarine keeps its secrets"


@dataclass
class Run:
    session: Session
    metrics: dict[str, float]
    exit_code: int
    output: str


@pytest.fixture(scope="module")
def run(tiny_llama: Path, log_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    output_dir = tmp_path_factory.mktemp("serve")
    server = Server(
        tiny_llama,
        log_folder / "serve.log",
        environment(output_dir),
        # With it some prompt tokens are not computed, and the sums below would not say anything.
        "--no-enable-prefix-caching",
        *("--api-key", API_KEY),
        api_key=API_KEY,
        launcher=("profilemate", "run", "--"),
    )
    try:
        # A long prompt alone is all prefill, then all decode; one that comes while another runs makes mixed steps.
        with ThreadPoolExecutor() as clients:
            long = clients.submit(server.complete, 700, 300)
            server.wait_for("decoding", lambda: server.metrics()["vllm:generation_tokens_total"] > 5)
            for prompt_tokens in (650, 400, 1, 191, 192, 193):
                clients.submit(server.complete, prompt_tokens, 20).result()
            server.ask(PROMPT, output_tokens=5)
            long.result()
        server.bench("--random-input-len", "100", "--random-output-len", "120", "--num-prompts", "64")
        metrics = server.metrics()
        server.signal(signal.SIGINT)
        exit_code = server.ended()
    finally:
        server.clean_up()
    # No waiting: under the launcher the tables are there when it ends.
    yield Run(only_session(output_dir), metrics, exit_code, server.output)


def test_the_exit_code_is_that_of_vllm(run: Run) -> None:
    assert run.exit_code == 0


def test_every_process_is_in_the_session(run: Run) -> None:
    roles = Counter(process["role"] for process in run.session.metadata["processes"])
    assert roles["api_server"] == roles["engine_core"] == roles["worker"] == 1
    assert all(process["ended"] is not None for process in run.session.metadata["processes"])


def test_the_counters_are_those_of_vllm(run: Run, record_property: checks.Record) -> None:
    ours, theirs = run.session.counters, run.metrics
    assert theirs["vllm:prompt_tokens_total"] > 6000, "the load was real"
    for name, counter in {
        "prompt_tokens": "vllm:prompt_tokens_total",
        "generation_tokens": "vllm:generation_tokens_total",
        "iterations": "vllm:iteration_tokens_total_count",
        "finished_requests": "vllm:request_success_total",
    }.items():
        checks.same(record_property, counter, ours[name], theirs[counter])


def test_the_session_is_sound(run: Run) -> None:
    checks.sound(run.session)
    assert run.session.metadata["records_damaged"] <= 1, "only who is killed can leave a torn record"


def test_the_metadata_says_what_ran(run: Run) -> None:
    metadata = run.session.metadata
    assert run.session.folder.name == f"session_{metadata['session_id']}"
    assert metadata["vllm_version"].startswith("0.")
    assert metadata["start_time"] < metadata["end_time"]
    for profiler in ("forward_pass_timing", "cpu_timing", "batch_utilization_tracking"):
        assert metadata["profilers"][profiler] == "on"
    assert metadata["hooks"]


def test_every_token_is_in_a_batch(run: Run) -> None:
    scheduled = sum(int(row["num_tokens"]) for row in run.session.batches)
    ours = run.session.counters
    # The last token of a request is sampled, and never put into a batch.
    assert scheduled == ours["prompt_tokens"] + ours["generation_tokens"] - ours["finished_requests"]
    prefill = sum(int(row["prefill_tokens"]) for row in run.session.batches)
    assert prefill == ours["prompt_tokens"]


def test_every_phase_occurs(run: Run) -> None:
    phases = Counter(row["phase"] for row in run.session.batches)
    assert phases.keys() == {"prefill", "decode", "mixed"}
    assert {row["max_num_seqs"] for row in run.session.batches} == {str(MAX_NUM_SEQS)}
    assert {row["max_tokens"] for row in run.session.batches} == {str(MAX_TOKENS)}
    assert max(int(row["num_seqs"]) for row in run.session.batches) == MAX_NUM_SEQS
    assert max(int(row["waiting_queue_len"]) for row in run.session.batches) > 0


def test_every_scheduled_step_has_a_forward_pass(run: Run) -> None:
    assert {row["step"] for row in run.session.forward} == {row["step"] for row in run.session.batches}
    assert {row["process"] for row in run.session.forward} == {"worker-0"}


def test_every_operation_is_seen(run: Run) -> None:
    # Before 0.17 (docs/versions.md) the API server tokenizes where no hook is.
    missing = set() if "BaseRenderer" in run.session.metadata["hooks"]["tokenizer.encode"] else {"tokenization"}
    assert {row["operation"] for row in run.session.operations} == OPERATIONS - missing


def test_operations_nest_as_documented(run: Run) -> None:
    session = run.session
    of_step: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for operation in OPERATIONS:
        for number, duration in session.durations(operation):
            of_step[number][operation] += duration
    forward = {row["step"]: float(row["forward_time_ms"]) for row in session.forward}
    rounding = 0.01
    for row in session.batches:
        step = of_step[row["step"]]
        assert step["batch_preparation"] > 0 and step["model_execution"] > 0 and step["scheduling"] > 0
        assert step["batch_preparation"] + forward[row["step"]] <= step["model_execution"] + rounding, row
        assert step["scheduling"] + step["update_from_output"] <= step["engine_step"] + rounding, row
    for row in session.operations:
        if row["operation"] == "output_processing" and "0.11" not in run.session.metadata["vllm_version"]:
            # vLLM 0.11 makes an output of a step without work, too.
            assert row["step"] in forward, row


def test_no_secret_and_no_prompt_is_kept(run: Run) -> None:
    files = [path for path in run.session.folder.rglob("*") if path.is_file()]
    assert any("raw" in path.parts for path in files)
    for path in files:
        content = path.read_bytes()
        assert API_KEY.encode() not in content, path
        assert PROMPT.encode() not in content, path


def test_only_the_user_can_enter_the_session(run: Run) -> None:
    assert run.session.folder.stat().st_mode & 0o777 == 0o700


def test_the_launcher_tells_where_the_session_is(run: Run) -> None:
    assert str(run.session.folder) in run.output
