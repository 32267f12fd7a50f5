"""What a session may not hold, and who may read and write what is in it."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import profilemate
from profilemate import _native
from support.vllm import BIN, environment
from support.vllm import profilemate as run_profilemate

SITE = str(Path(profilemate.__file__).parent / "sitecustomize")

#: A front end that holds an engine, with the names of vLLM's.
MODULES = {
    "vllm/__init__.py": "__version__ = '9.9.9'\n",
    "vllm/v1/__init__.py": "",
    "vllm/v1/engine/__init__.py": "",
    "vllm/v1/core/__init__.py": "",
    "vllm/v1/core/sched/__init__.py": "",
    "vllm/v1/core/sched/scheduler.py": """
class Output:
    scheduled_new_reqs = ()
    class scheduled_cached_reqs: resumed_req_ids = ()
    finished_req_ids = ()
    total_num_scheduled_tokens = 3
    def __init__(self): self.num_scheduled_tokens = {"a": 1, "b": 2}
class Scheduler:
    max_num_running_reqs, max_num_scheduled_tokens, requests, finished_req_ids = 8, 64, {}, ()
    def __init__(self, vllm_config): self.vllm_config = vllm_config
    def schedule(self, throttle_prefills=False): return Output()
    def update_from_output(self, scheduler_output, model_runner_output): return {}
    def get_request_counts(self): return 2, 1
""",
    "vllm/v1/engine/core.py": """
from vllm.v1.core.sched.scheduler import Scheduler
class EngineCore:
    def __init__(self, vllm_config): self.scheduler = Scheduler(vllm_config)
    def step(self):
        output = self.scheduler.schedule(True)
        return self.scheduler.update_from_output(output, None)
""",
    "vllm/v1/engine/llm_engine.py": """
from vllm.v1.engine.core import EngineCore
class LLMEngine:
    def __init__(self, vllm_config): self.core = EngineCore(vllm_config)
""",
}
SERVER = """
import os
from vllm.v1.engine.llm_engine import LLMEngine
class config:
    class parallel_config: data_parallel_rank, world_size = 0, 1
    class model_config: model = "https://user:{secret}@models.example/tiny"
engine = LLMEngine(config)
for _ in range(5): engine.core.step()
"""

#: Each stands somewhere else, so that a failure tells where.
SECRETS = [f"Zq{number:02}xVdJw7sEcReT" for number in range(14)]


@pytest.fixture
def server(tmp_path: Path) -> Path:
    folder = tmp_path / "server"
    for name, text in MODULES.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (folder / "server.py").write_text(SERVER.replace("{secret}", SECRETS[0]))
    return folder


def flags() -> list[str]:
    secrets = iter(SECRETS[1:])
    return [
        *("--api-key", next(secrets), next(secrets)),
        f"--api-key={next(secrets)}",
        f"HF_TOKEN={next(secrets)}",
        *("--hf-token", next(secrets)),
        f"--proxy=http://me:{next(secrets)}@proxy:1,http://me:{next(secrets)}@other:2",
        f"https://models.example/x?a=1&token={next(secrets)}",
        *(
            "--kv-transfer-config",
            json.dumps({"a": {"password": f"x{next(secrets)} y{next(secrets)}"}, "port": 5}),
        ),
        f"--kv-transfer-config.extra.api_key={next(secrets)}",
        f"hf_{next(secrets)}{'a' * 20}",
        *("--header", f"Authorization: Bearer {next(secrets)}"),
        *("--max-num-batched-tokens", "192"),
    ]


def run(server: Path, output: Path, *arguments: str, launcher: bool = True, **more: str) -> Path:
    """Runs the server, with or without the launcher; the folder of its session."""
    command = [sys.executable, str(server / "server.py"), *arguments]
    path = [str(server)] if launcher else [SITE, str(server)]
    if not launcher:
        more.setdefault("PROFILEMATE_COLLECTOR", "none")
    done = subprocess.run(
        [str(BIN / "profilemate"), "run", "--", *command] if launcher else command,
        capture_output=True,
        text=True,
        check=True,
        env=environment(output, PYTHONPATH=os.pathsep.join(path), **more),
    )
    assert not [secret for secret in SECRETS if secret in done.stdout + done.stderr]
    (session,) = output.glob("session_*")
    if not launcher:
        run_profilemate("export", str(session))
    return session


@pytest.mark.parametrize("launcher", [True, False])
def test_no_secret_is_in_any_file_of_a_session(tmp_path: Path, server: Path, launcher: bool) -> None:
    variables = {"HF_TOKEN": SECRETS[1], "VLLM_API_KEY": SECRETS[2], "AWS_SECRET_ACCESS_KEY": SECRETS[3]}
    session = run(server, tmp_path / "out", *flags(), launcher=launcher, **variables)
    run_profilemate("export", str(session), "--format", "both")
    run_profilemate("timeline", str(session), "--output", str(session / "trace.pftrace"))
    files = [file for file in session.rglob("*") if file.is_file()]
    assert {file.suffix for file in files} >= {".head", ".seg", ".csv", ".json", ".html", ".parquet", ".pftrace"}
    for file in files:
        content = file.read_bytes()
        assert not [secret for secret in SECRETS if secret.encode() in content], file
    metadata = json.loads((session / "metadata.json").read_text())
    # What is no secret is there.
    assert "--api-key *** ***" in metadata["command"]
    assert metadata["command"].endswith("--max-num-batched-tokens 192")
    assert '"port": 5' in metadata["command"]
    assert metadata["model"] == "https://***@models.example/tiny"
    assert metadata["counters"]["engine_steps"] == 5


def test_a_command_that_is_no_text_is_recorded_all_the_same(tmp_path: Path, server: Path) -> None:
    session = run(server, tmp_path / "out", os.fsdecode(b"\xff"), launcher=False)
    assert json.loads((session / "metadata.json").read_text())["command"].endswith("server.py '?'")


def test_vllm_and_the_launcher_hide_the_same() -> None:
    shown = _native.command_line(["vllm", "it's", "--api-key", "x", "--seed", "0"])
    assert shown == "vllm 'it'\\''s' --api-key *** --seed 0"
    assert _native.without_secrets("s3://key:secret@bucket/model") == "s3://***@bucket/model"


@pytest.mark.parametrize("launcher", [True, False])
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o277])
def test_only_its_user_reads_a_session_whatever_the_umask(
    tmp_path: Path, server: Path, launcher: bool, umask: int
) -> None:
    # The folder that holds sessions is the user's business.
    output = tmp_path / "out"
    output.mkdir()
    before = os.umask(umask)
    try:
        session = run(server, output, launcher=launcher)
        run_profilemate("export", str(session), "--format", "both")
        run_profilemate("export", str(session), "--output", str(tmp_path / "export"))
        run_profilemate("timeline", str(session), "--output", str(tmp_path / "export" / "trace.pftrace"))
    finally:
        os.umask(before)
    seen = 0
    for path in [session, *session.rglob("*"), *(tmp_path / "export").rglob("*")]:
        mode = stat.S_IMODE(path.lstat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), f"{path}: {mode:o}"
        seen += 1
    assert seen > 20


def entries(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("planted", ["link", "link of raw", "writable", "file"])
def test_a_session_folder_that_somebody_else_may_have_put_there_is_not_used(
    tmp_path: Path, server: Path, planted: str
) -> None:
    session = tmp_path / "out" / "session_20260101_000000_abcdef"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    session.parent.mkdir()
    if planted == "link":
        session.symlink_to(elsewhere)
    elif planted == "link of raw":
        session.mkdir(mode=0o700)
        (session / "raw").symlink_to(elsewhere)
    elif planted == "writable":
        session.mkdir()
        session.chmod(0o777)
    else:
        session.write_text("")
    done = subprocess.run(
        [sys.executable, str(server / "server.py")],
        capture_output=True,
        text=True,
        check=True,
        env=environment(
            session.parent,
            PYTHONPATH=os.pathsep.join([SITE, str(server)]),
            PROFILEMATE_SESSION=str(session),
            PROFILEMATE_COLLECTOR="none",
        ),
    )
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and "vLLM is not affected" in done.stderr, done.stderr
    assert entries(elsewhere) == []
    if planted == "writable":
        assert entries(session) == []


def test_links_in_a_session_are_neither_read_nor_written_through(tmp_path: Path, server: Path) -> None:
    session = run(server, tmp_path / "out", launcher=False)
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    for name in ["report.html", ".report.html.tmp", "metadata.json", ".metadata.json.tmp", "trace.pftrace"]:
        (session / name).unlink(missing_ok=True)
        (session / name).symlink_to(victim)
    (session / "raw" / "worker-0-1.head").symlink_to(victim)
    (session / "raw" / "worker-0-1.000000.seg").symlink_to("/dev/zero")
    os.mkfifo(session / "raw" / "worker-0-2.head")
    done = subprocess.run(
        [str(BIN / "profilemate"), "export", str(session)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr.count("not a regular file; left out") == 3
    run_profilemate("timeline", str(session), "--output", str(session / "trace.pftrace"))
    assert victim.read_text() == "untouched"
    for name in ["report.html", "metadata.json", "trace.pftrace"]:
        assert not (session / name).is_symlink()
    assert not list(session.glob(".*"))


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path, server: Path) -> None:
    session = run(server, tmp_path / "out", launcher=False)
    victim = tmp_path / "victim"
    (session / "raw" / "collector.lock").symlink_to(victim)
    done = subprocess.run([str(BIN / "profilemate"), "collect", str(session)], capture_output=True, text=True)
    assert done.returncode != 0 and "collector.lock" in done.stderr
    assert not victim.exists()


def test_a_role_with_a_path_in_it_leads_nowhere(tmp_path: Path, server: Path) -> None:
    import zlib

    session = run(server, tmp_path / "out", launcher=False)
    (head,) = (session / "raw").glob("*.head")
    content = bytearray(head.read_bytes())
    content[64:96] = b"../../../planted".ljust(32, b"\0")
    content[252:256] = zlib.crc32(content[:252]).to_bytes(4, "little")
    head.write_bytes(content)
    before = set(entries(tmp_path))
    made = tmp_path / "made"
    run_profilemate("export", str(session), "--output", str(made), "--format", "both")
    run_profilemate("timeline", str(session), "--output", str(made / "trace.pftrace"))
    assert {path for path in set(entries(tmp_path)) - before if not path.startswith("made")} == set()
    assert '"role": "../../../planted"' in (made / "metadata.json").read_text()
