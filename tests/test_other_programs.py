"""Programs that are not vLLM do not notice our folder on PYTHONPATH."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from support.vllm import environment, profilemate


@pytest.fixture(scope="module")
def our_folder() -> str:
    return profilemate("path").strip()


def python(code: str, output_dir: Path, pythonpath: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=environment(output_dir, PYTHONPATH=pythonpath, **more),
    )


@pytest.mark.parametrize("more", [{}, {"VLLM_ENABLE_PROFILING": "1"}, {"PROFILEMATE_MAX_BYTES": "nonsense"}])
def test_nothing_is_printed_and_nothing_is_made(tmp_path: Path, our_folder: str, more: dict[str, str]) -> None:
    output_dir = tmp_path / "sessions"
    done = python("import json, sys; print(json.dumps(sys.argv))", output_dir, our_folder, **more)
    assert done.stdout == '["-c"]\n'
    assert done.stderr == ""
    assert not output_dir.exists()


def test_another_sitecustomize_still_runs(tmp_path: Path, our_folder: str) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "sitecustomize.py").write_text("import builtins\nbuiltins.theirs_ran = True\n")
    done = python("print(theirs_ran)", tmp_path / "sessions", f"{our_folder}:{theirs}")
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_the_old_configuration_class_is_there(tmp_path: Path, our_folder: str) -> None:
    code = "from sitecustomize import ProfilingConfig as c; print(c.ENABLE_CPU_TIMING, c.CUDA_EVENT_BATCH_SIZE)"
    done = python(code, tmp_path / "sessions", our_folder, PROFILEMATE_ENABLE_CPU_TIMING="0")
    assert (done.stdout, done.stderr) == ("False 100\n", "")
    assert not (tmp_path / "sessions").exists()


def test_children_of_other_programs_do_not_notice_either(tmp_path: Path, our_folder: str) -> None:
    code = (
        "import multiprocessing as m\n"
        "if __name__ == '__main__':\n"
        "    p = m.get_context('spawn').Process(target=print, args=('child',)); p.start(); p.join()"
    )
    done = python(code, tmp_path / "sessions", our_folder)
    assert (done.stdout, done.stderr) == ("child\n", "")
    assert not (tmp_path / "sessions").exists()


def test_nothing_is_imported_but_the_finder(tmp_path: Path, our_folder: str) -> None:
    code = "import sys; print(sorted(sys.modules))"
    with_us = ast.literal_eval(python(code, tmp_path / "sessions", our_folder).stdout)
    without = ast.literal_eval(python(code, tmp_path / "sessions", "").stdout)
    assert set(with_us) - set(without) <= {
        "__future__",
        "sitecustomize",
        "profilemate",
        "profilemate.importhook",
    }
