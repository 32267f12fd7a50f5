"""`profilemate doctor` in rooms that are made for it. What it prints is kept in tests/snapshots/doctor.

`UPDATE_SNAPSHOTS=1` writes it anew.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import venv
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import profilemate
from profilemate.doctor_checks import output_folder
from support.vllm import environment

PACKAGE = Path(profilemate.__file__).parent
SITE = str(PACKAGE / "sitecustomize")
SNAPSHOTS = Path(__file__).parent / "snapshots" / "doctor"


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with nothing installed."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False, symlinks=True)
    return folder / "bin" / "python"


class Room:
    """An environment to look at."""

    def __init__(self, folder: Path, python: Path) -> None:
        self.folder, self.python = folder, python
        self.output = folder / "out"
        self.path: list[str] = []
        self.variables: dict[str, str] = {}

    def add(self, name: str, files: dict[str, str]) -> str:
        """A folder on PYTHONPATH, behind those that are there."""
        folder = self.folder / name
        for file, text in files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(text)
        self.path.append(str(folder))
        return str(folder)

    def run(self, *options: str) -> subprocess.CompletedProcess[str]:
        variables = environment(self.output, PYTHONPATH=os.pathsep.join(self.path), **self.variables)
        variables.pop("VLLM_PLUGINS", None)
        return subprocess.run(
            [self.python, PACKAGE / "doctor.py", *options],
            capture_output=True,
            text=True,
            check=False,
            env=variables,
        )

    def report(self) -> dict[str, Any]:
        done = self.run("--json")
        report: dict[str, Any] = json.loads(done.stdout)
        assert report["exit_code"] == done.returncode
        return report

    def check(self, name: str, hooks: bool = False) -> None:
        """What is printed is what is kept: with what is said of the hooks, where it is about them."""
        done = self.run()
        assert done.stderr == ""
        printed = self.neutral(done.stdout)
        if not hooks:
            printed = re.sub(r"\nHooks\n.*?\n(?=\nStart of Python)", "", printed, flags=re.DOTALL)
        said = f"{printed}\nexit code {done.returncode}\n"
        kept = SNAPSHOTS / f"{name}.txt"
        if os.environ.get("UPDATE_SNAPSHOTS"):
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(said, encoding="utf-8")
        assert said == kept.read_text(encoding="utf-8")
        assert not list(self.folder.rglob(".profilemate-doctor*")), "it leaves nothing"
        assert not (self.folder / "out" / "session").exists()

    def neutral(self, text: str) -> str:
        """Without what differs from machine to machine."""
        for path, word in (
            (self.folder, "ROOM"),
            (PACKAGE, "PROFILEMATE"),
            (self.python, "PYTHON"),
            (Path(sys.prefix).resolve(), "VENV"),
            (Path(sys.prefix), "VENV"),
        ):
            text = text.replace(str(path), word)
        text = re.sub(r"^Python 3\.\S+ ", "Python 3.X ", text, flags=re.MULTILINE)
        text = re.sub(r"python3\.\d+", "python3.X", text)
        text = re.sub(r": (\w+) mounted at \S+, \S+ GiB free", ": FILE-SYSTEM mounted at PLACE, N GiB free", text)
        text = re.sub(r"\nNote: \S+ (lies|has less free space) [^\n]*", "", text)
        text = re.sub(r"(CUDA driver\n  )[^\n]*", r"\1SOME ANSWER", text)
        return text.rstrip("\n")


@pytest.fixture
def room(tmp_path: Path, bare: Path) -> Room:
    made = Room(tmp_path, bare)
    made.output.mkdir()
    return made


VLLM = {
    "vllm/__init__.py": "__version__ = '9.9.9'\n",
    "vllm/_version.py": "__version__ = version = '9.9.9'\n",
    "vllm/v1/__init__.py": "",
    "vllm/v1/engine/__init__.py": "class EngineCoreOutputs:\n    timestamp = outputs = None\n",
    "vllm/v1/engine/core.py": "class EngineCore:\n    def __init__(self, config): pass\n    def step(self): pass\n",
    "vllm/v1/core/__init__.py": "",
    "vllm/v1/core/sched/__init__.py": "",
    "vllm/v1/core/sched/scheduler.py": """
class Scheduler:
    def __init__(self, vllm_config): self.requests, self.finished_req_ids = {}, set()
    def schedule(self): pass
    def update_from_output(self, other): pass
    def get_request_counts(self): pass
""",
}


def test_no_vllm(room: Room) -> None:
    room.check("no_vllm")


@pytest.mark.skipif(version("vllm").partition("+")[0] != "0.32.0", reason="what is kept is of vLLM 0.32.0")
def test_vllm_0_32(room: Room) -> None:
    room.python = Path(sys.executable)
    room.check("vllm_0_32", hooks=True)


def test_a_vllm_that_is_not_as_expected(room: Room) -> None:
    room.path = [SITE]
    room.add("site", VLLM)
    room.check("made_up_vllm", hooks=True)
    report = room.report()
    hooks = {hook["name"]: hook for hook in report["hooks"]}
    assert hooks["scheduler.update_from_output"]["problems"] != []
    assert hooks["scheduler.schedule"]["known"] is None
    assert report["exit_code"] == 1


OTHERS = {
    # Each begins in a way of its own: the first two run the next one, the third does not.
    "datadog": {
        "ddtrace/__init__.py": "",
        "ddtrace/bootstrap/__init__.py": "",
        "ddtrace/bootstrap/sitecustomize.py": """
import os, sys
import ddtrace.bootstrap
here = os.path.dirname(__file__)
if here in sys.path:
    sys.path.remove(here)
    theirs = sys.modules.pop("sitecustomize", None)
    try:
        import sitecustomize
    except ImportError:
        sys.modules["sitecustomize"] = theirs
""",
    },
    "new_relic": {
        "newrelic/__init__.py": "",
        "newrelic/bootstrap/__init__.py": "",
        "newrelic/bootstrap/sitecustomize.py": """
import os, sys
from importlib.machinery import PathFinder
import newrelic.bootstrap
sys.path[:] = [entry for entry in sys.path if entry != os.path.dirname(__file__)]
spec = PathFinder.find_spec("sitecustomize", sys.path)
if spec is not None:
    spec.loader.load_module("sitecustomize")
""",
    },
    "opentelemetry": {
        "opentelemetry/instrumentation/auto_instrumentation/__init__.py": "",
        "opentelemetry/instrumentation/auto_instrumentation/sitecustomize.py": (
            "import opentelemetry.instrumentation.auto_instrumentation\n"
        ),
    },
}
STARTERS = {
    "datadog": "ddtrace/bootstrap",
    "new_relic": "newrelic/bootstrap",
    "opentelemetry": "opentelemetry/instrumentation/auto_instrumentation",
}


@pytest.mark.parametrize("order", ["before", "behind", "without"])
@pytest.mark.parametrize("whose", OTHERS)
def test_another_instrumentation(room: Room, whose: str, order: str) -> None:
    site = room.add(whose, OTHERS[whose])
    room.path = {
        "before": [f"{site}/{STARTERS[whose]}", SITE, site],
        "behind": [SITE, f"{site}/{STARTERS[whose]}", site],
        "without": [f"{site}/{STARTERS[whose]}", site],
    }[order]
    room.add("site", VLLM)
    startup = room.report()["startup"]
    chains = whose != "opentelemetry"
    assert startup["attaches"] == (order == "behind" or (order == "before" and chains))
    assert startup["attaches_under_run"]
    assert (startup["problem"] is None) == (order != "before" or chains)
    assert list(startup["instrumentations"].values()) == ["loaded"]
    room.check(f"{whose}_{order}")


def test_another_sitecustomize_in_front(room: Room) -> None:
    other = room.add("other", {"sitecustomize.py": ""})
    room.path.append(SITE)
    room.add("site", VLLM)
    room.check("another_sitecustomize")
    report = room.report()
    assert report["exit_code"] == 1
    assert any(note.startswith(other) for note in report["notes"])


def test_a_sitecustomize_that_raises_is_not_in_the_way(room: Room) -> None:
    room.path = [SITE]
    room.add("other", {"sitecustomize.py": "raise ValueError('theirs')\n"})
    assert room.report()["startup"]["attaches"]


def test_a_folder_that_nothing_can_be_made_in(room: Room) -> None:
    # Root may write wherever a file system may be written, and nobody may make anything in this one.
    room.output = Path("/proc/self/fd")
    room.add("site", VLLM)
    room.check("read_only_folder")
    report = room.report()
    assert report["output_folder"]["problem"].startswith("no folder can be made in it (")
    assert report["exit_code"] == 2


def test_an_output_folder_that_is_a_file(room: Room) -> None:
    room.output = room.folder / "file"
    room.output.write_text("")
    assert room.report()["output_folder"]["problem"] == f"{room.output} is no folder"


def test_a_folder_that_is_not_there_yet_is_not_made(room: Room) -> None:
    room.output = room.folder / "a" / "b"
    found = room.report()["output_folder"]
    assert (found["exists"], found["problem"]) == (False, None)
    assert not (room.folder / "a").exists()


@pytest.mark.skipif(
    not Path("/dev/shm").is_mount() or not os.access("/dev/shm", os.W_OK),
    reason="there is no /dev/shm to write into",
)
def test_tmpfs(room: Room) -> None:
    room.output = Path("/dev/shm") / f"profilemate-{os.getpid()}"
    room.output.mkdir()
    try:
        report = room.report()
        assert report["output_folder"]["file_system"] == "tmpfs"
        assert report["output_folder"]["problem"] is None
        assert any("lies in memory (tmpfs)" in note for note in report["notes"])
        assert list(room.output.iterdir()) == []
    finally:
        shutil.rmtree(room.output)


MOUNTS = r"""
22 1 254:1 / / rw,relatime - overlay overlay rw,lowerdir=/l
30 22 0:27 / /dev/shm rw,nosuid - tmpfs tmpfs rw
31 22 0:40 / /data rw shared:7 - ext4 /dev/sdb rw
32 31 0:41 /export /data/run\040s rw shared:8 - nfs4 server:/export rw,vers=4.2
33 31 0:42 / /data rw - fuse.sshfs server: rw
"""


@pytest.mark.parametrize(
    ("path", "mounted_at", "kind", "note"),
    [
        ("/var/x", "/", "overlay", "in the container's own layer"),
        ("/dev/shm/x", "/dev/shm", "tmpfs", "lies in memory"),
        ("/data/run s/x", "/data/run s", "nfs4", "lies on another machine"),
        ("/data/other", "/data", "fuse.sshfs", "lies on another machine"),
    ],
)
def test_the_file_system_of_a_folder(path: str, mounted_at: str, kind: str, note: str) -> None:
    assert output_folder.mount_of(Path(path), MOUNTS.strip()) == (mounted_at, kind)
    found = output_folder.OutputFolder(path, True, kind, mounted_at, 1 << 40)
    (said,) = output_folder.notes_of(found, 1 << 31)
    assert (note in said and "2.0 GiB" in said) or kind != "tmpfs"


def test_a_folder_with_less_space_than_a_log_may_take() -> None:
    found = output_folder.OutputFolder("/data", True, "ext4", "/data", 1 << 20)
    (said,) = output_folder.notes_of(found, 1 << 31)
    assert said.startswith("/data has less free space than")


DRIVER = """
#include <string.h>
int cuInit(unsigned flags) { return CODE; }
int cuDriverGetVersion(int *version) { *version = 13010; return 0; }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDeviceGet(int *device, int number) { *device = number; return 0; }
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, "Made-up GPU", length); return 0; }
"""


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (0, {"reachable": True, "version": "13.1", "gpus": ["Made-up GPU", "Made-up GPU"], "reason": None}),
        (
            100,
            {"reachable": False, "version": None, "gpus": [], "reason": "cuInit answers 100: there is no GPU"},
        ),
    ],
)
def test_the_driver_is_asked_without_a_context(room: Room, code: int, expected: dict[str, Any]) -> None:
    # A library without the calls that make contexts: whoever made one would fail.
    source = room.folder / "driver.c"
    source.write_text(DRIVER)
    command = ["cc", "-shared", "-fPIC", f"-DCODE={code}", "-o", str(room.folder / "libcuda.so.1"), str(source)]
    subprocess.run(command, check=True)
    room.variables["LD_LIBRARY_PATH"] = str(room.folder)
    assert room.report()["cuda_driver"] == expected
