"""NVTX ranges, seen by a tool that listens to torch's own NVTX as Nsight Systems does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

#: A worker's log is open, and functions are hooked.
PRELUDE = """
from profilemate import _native, session
def hooked(function, span, **options):
    options.setdefault("kind", _native.SPAN)
    return _native.Hook(function, "the.probe", span=span, lane=_native.WORKER, **options)
session.take_role("worker", 0, 0)
"""

#: Torch imports slowly, so one process does it all; a range of the test's own says what comes.
SCENARIOS = """
def scenario(name):
    torch._C._nvtx.rangePushA("scenario " + name)
    torch._C._nvtx.rangePop()

scenario("nested")
inner = hooked(lambda: 1, "forward")
assert hooked(lambda: inner() + 1, "model_execution")() == 2

scenario("raises")
def fails():
    raise KeyError("vLLM's own")
try:
    hooked(fails, "sampling")()
except KeyError as error:
    assert error.args == ("vLLM's own",), error
else:
    raise AssertionError

scenario("kinds")
hooked(lambda: 1, "unused", kind=_native.CALL)()
hooked(lambda: 1, "detokenization", kind=_native.ACCUMULATE)()
hooked(lambda: 1, "")()
hooked(lambda: 1, "warm_up", kind=_native.WARM_UP)()
"""


def run(folder: Path, code: str, **environment: str) -> str:
    """Runs code in a process of its own. Returns stderr."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "PROFILEMATE_SESSION": str(folder / "session"),
            "PROFILEMATE_COLLECTOR": "none",
            **environment,
        },
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[str]]]:
    """What a listening tool heard: setting of `nvtx` → scenario → lines."""
    folder = tmp_path_factory.mktemp("nvtx")
    listener = folder / "listener.so"
    source = Path(__file__).parent / "support" / "nvtx_listener.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", str(listener), str(source)], check=True)
    all_heard = {}
    for setting in ("1", "0"):
        output = folder / f"heard-{setting}"
        tool = {"NVTX_INJECTION64_PATH": str(listener), "NVTX_LISTENER_OUTPUT": str(output)}
        assert run(folder, "import torch\n" + PRELUDE + SCENARIOS, PROFILEMATE_NVTX=setting, **tool) == ""
        parts = output.read_text().split("push scenario ")[1:]
        all_heard[setting] = {lines[0]: lines[2:] for lines in (part.splitlines() for part in parts)}
    return all_heard


def test_ranges_are_named_and_nested_as_spans_are(heard: dict[str, dict[str, list[str]]]) -> None:
    assert heard["1"]["nested"] == ["push model_execution", "push forward", "pop", "pop"]


def test_a_range_ends_with_vllms_exception_which_stays(heard: dict[str, dict[str, list[str]]]) -> None:
    assert heard["1"]["raises"] == ["push sampling", "pop"]


def test_what_records_no_span_has_no_range(heard: dict[str, dict[str, list[str]]]) -> None:
    assert heard["1"]["kinds"] == ["push warm_up", "pop"]


def test_there_are_none_unless_they_are_asked_for(heard: dict[str, dict[str, list[str]]]) -> None:
    assert heard["0"] == {"nested": [], "raises": [], "kinds": []}


#: A torch with the `_C` that is given.
TORCH = """
import sys, types
sys.modules["torch"] = torch = types.ModuleType("torch")
torch._C = types.SimpleNamespace({})
"""
BROKEN = """
def broken(*_):
    raise RuntimeError("NVTX functions not installed. Are you sure you have a CUDA build?")
"""
CALLS = """
function = hooked(lambda: 5, "forward")
assert [function(), function()] == [5, 5]
"""


def test_a_torch_that_cannot_make_ranges_is_said_once(tmp_path: Path) -> None:
    torch = BROKEN + TORCH.format("_nvtx=types.SimpleNamespace(rangePushA=broken, rangePop=broken)")
    said = run(tmp_path, torch + PRELUDE + CALLS, PROFILEMATE_NVTX="1")
    assert said == "profilemate: torch cannot make NVTX ranges here; there are none from now on\n"


def test_a_torch_without_nvtx_is_said(tmp_path: Path) -> None:
    said = run(tmp_path, TORCH.format("") + PRELUDE + CALLS, PROFILEMATE_NVTX="1")
    assert said == "profilemate: nvtx is on, but this torch has no NVTX; there are no ranges\n"
