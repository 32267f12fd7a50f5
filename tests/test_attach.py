"""Attaching: which route, when, and what is said when it does not go as wished.

The modules here are named as vLLM's are and hold a few of its functions, since importing vLLM takes half a minute; what
real vLLM does is in `tests/real`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import profilemate
from support.vllm import environment
from support.vllm import profilemate as run_profilemate

SITE = str(Path(profilemate.__file__).parent / "sitecustomize")

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
    def __init__(self, vllm_config):
        self.vllm_config = vllm_config
    def schedule(self, throttle_prefills=False):
        return Output()
    def update_from_output(self, scheduler_output, model_runner_output):
        return {}
    def get_request_counts(self):
        return 2, 1
""",
    "vllm/v1/engine/core.py": """
from vllm.v1.core.sched.scheduler import Scheduler
class EngineCore:
    scheduler_class = Scheduler
    def __init__(self, vllm_config):
        self.scheduler = self.scheduler_class(vllm_config)
    def step(self):
        output = self.scheduler.schedule(True)
        return self.scheduler.update_from_output(output, None)
""",
}
CONFIG = """
class config:
    class parallel_config: data_parallel_rank, world_size = 0, 1
    class model_config: model = "tiny"
"""
USE = (
    "from vllm.v1.engine.core import EngineCore\n"
    + CONFIG
    + "engine = EngineCore(config)\nfor _ in range(5): engine.step()\n"
)


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    folder = tmp_path / "fake"
    for name, text in MODULES.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def python(
    code: str, output: Path, *pythonpath: str | Path, check: Any = True, **more: str
) -> subprocess.CompletedProcess[str]:
    more.setdefault("PROFILEMATE_COLLECTOR", "none")
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=check,
        env=environment(output, PYTHONPATH=os.pathsep.join(map(str, pythonpath)), **more),
    )


def metadata(output: Path) -> dict[str, Any]:
    """The metadata of the one session in the output folder."""
    (session,) = output.glob("session_*")
    run_profilemate("export", str(session))
    found: dict[str, Any] = json.loads((session / "metadata.json").read_text())
    return found


def test_by_pythonpath(tmp_path: Path, fake: Path) -> None:
    done = python(USE, tmp_path / "out", SITE, fake)
    assert (done.stdout, done.stderr) == ("", "")
    found = metadata(tmp_path / "out")
    assert found["counters"]["engine_steps"] == 5
    assert found["vllm_version"] == "9.9.9"
    assert found["model"] == "tiny"
    assert found["hooks"]["scheduler.schedule"] == "vllm.v1.core.sched.scheduler:Scheduler.schedule"
    assert found["hooks"]["engine_core.step_with_batch_queue"] == (
        "absent: vllm.v1.engine.core has no EngineCore.step_with_batch_queue"
    )
    assert found["profilers"]["batch_utilization_tracking"] == "on"
    assert [(p["role"], p["ended"] is not None) for p in found["processes"]] == [("engine_core", True)]


def test_settings_are_recorded_as_vllm_has_them(tmp_path: Path, fake: Path) -> None:
    settings = """
import enum
class Mode(enum.Enum): FULL_AND_PIECEWISE = (2, 1)
class cache_config: gpu_memory_utilization, cache_dtype, num_gpu_blocks_override, block_size = 0.85, "auto", None, 16
class compilation_config: cudagraph_mode = Mode.FULL_AND_PIECEWISE
class scheduler_config: async_scheduling, policy = True, object()
config.cache_config, config.compilation_config, config.scheduler_config = (
    cache_config, compilation_config, scheduler_config
)
"""
    python(USE.replace("engine = ", settings + "engine = "), tmp_path / "out", SITE, fake)
    # What is not set, is no plain value, or is no business of findings is not there.
    assert metadata(tmp_path / "out")["settings"] == {
        "gpu_memory_utilization": "0.85",
        "cache_dtype": "auto",
        "cudagraph_mode": "FULL_AND_PIECEWISE",
        "async_scheduling": "True",
    }


PLUGIN = "from profilemate.attach import plugin\n"


@pytest.mark.parametrize(
    ("code", "path", "switch"),
    [
        (PLUGIN + "plugin()\n" + USE, (), "1"),
        ("import vllm.v1.engine.core\n" + PLUGIN + "plugin()\n" + USE, (), "1"),
        (PLUGIN + "plugin(); plugin()\n" + USE, (SITE,), "1"),
        ("import vllm.v1.engine.core\n" + PLUGIN + "plugin()\n" + USE, (SITE,), ""),
    ],
    ids=["plugin", "plugin, imported before", "both", "both, imported before"],
)
def test_by_any_route_each_step_is_recorded_once(
    tmp_path: Path, fake: Path, code: str, path: tuple[str, ...], switch: str
) -> None:
    python(code, tmp_path / "out", *path, fake, PROFILEMATE_ENABLE=switch)
    found = metadata(tmp_path / "out")
    assert found["counters"]["engine_steps"] == 5
    assert found["records_lost"] == 0


def test_being_installed_is_not_being_asked(tmp_path: Path, fake: Path) -> None:
    done = python(PLUGIN + "plugin()\n" + USE, tmp_path / "out", fake)
    assert (done.stdout, done.stderr) == ("", "")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "off",
    [{"PROFILEMATE_ENABLE": "0"}, {"VLLM_ENABLE_PROFILING": "0"}, {"VLLM_ENABLE_PROFILING": "true"}],
    ids=str,
)
def test_switched_off(tmp_path: Path, fake: Path, off: dict[str, str]) -> None:
    done = python(USE + "print(type(EngineCore.step).__name__)", tmp_path / "out", SITE, fake, **off)
    assert (done.stdout, done.stderr) == ("function\n", "")
    assert not (tmp_path / "out").exists()


def test_children_join_the_session_whichever_way_they_start(tmp_path: Path, fake: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, sys\n"
        "def child():\n    " + USE.replace("\n", "\n    ") + "\nif __name__ == '__main__':\n"
        "    import vllm.v1.engine.core\n"
        "    for method in ('fork', 'spawn', 'forkserver'):\n"
        "        process = multiprocessing.get_context(method).Process(target=child)\n"
        "        process.start(); process.join()\n"
        "        assert process.exitcode == 0, method\n"
    )
    python(f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')", tmp_path / "out", SITE, fake)
    found = metadata(tmp_path / "out")
    assert found["counters"]["engine_steps"] == 15
    assert len({process["pid"] for process in found["processes"]}) == 3


def test_two_launches_are_two_sessions(tmp_path: Path, fake: Path) -> None:
    for _ in range(2):
        python(USE, tmp_path / "out", SITE, fake)
    assert len(list((tmp_path / "out").glob("session_*"))) == 2


def test_a_scheduler_of_somebody_else_is_recorded_once_per_step(tmp_path: Path, fake: Path) -> None:
    code = f"""
from vllm.v1.engine.core import EngineCore
from vllm.v1.core.sched.scheduler import Scheduler
{CONFIG}
class Calls(Scheduler):
    def schedule(self, *arguments): return super().schedule(*arguments)
class Replaces(Scheduler):
    def schedule(self, *arguments): return Scheduler.schedule.__wrapped__(self, *arguments)
for kind in (Calls, Replaces):
    EngineCore.scheduler_class = kind
    engine = EngineCore(config)
    for _ in range(3): engine.step()
from profilemate import _native
print(_native.statistics()[0])
"""
    # Per step: what was scheduled, and the spans scheduling, update_from_output and engine_step; and two limits.
    assert python(code, tmp_path / "out", SITE, fake).stdout.split() == [str(6 * 4 + 2)]


def test_an_output_folder_that_cannot_be_made_costs_one_line(tmp_path: Path, fake: Path) -> None:
    (tmp_path / "out").write_text("a file")
    done = python(USE + "print('works')", tmp_path / "out", SITE, fake)
    assert done.stdout == "works\n"
    (line,) = done.stderr.splitlines()
    assert str(tmp_path / "out") in line
    assert line.startswith("profilemate: cannot make the session folder")
    assert line.endswith("vLLM is not affected")


BAD = {
    "PROFILEMATE_MAX_BYTES": "lots",
    "PROFILEMATE_SEGMENT_BYTES": "-1",
    "PROFILEMATE_VERBOSE": "loud",
    "VLLM_PROFILING_LOG_INTERVAL": "never",
    "VLLM_PROFILING_DEBUG_INTERVAL": "0",
    "PROFILEMATE_TIMING": "guess",
    "PROFILEMATE_CONFIG": "/nowhere.toml",
}


def test_every_bad_value_is_one_line_and_the_default_is_used(tmp_path: Path, fake: Path) -> None:
    done = python(USE, tmp_path / "out", SITE, fake, **BAD)
    lines = done.stderr.splitlines()
    assert len(lines) == len(BAD), done.stderr
    for name, value in BAD.items():
        (line,) = [line for line in lines if name in line]
        assert line.startswith(f'profilemate: {name}="{value}" ')
        assert "; using " in line
    assert metadata(tmp_path / "out")["counters"]["engine_steps"] == 5


def test_a_vllm_that_is_not_as_expected_still_runs(tmp_path: Path, fake: Path) -> None:
    scheduler = fake / "vllm/v1/core/sched/scheduler.py"
    scheduler.write_text(scheduler.read_text().replace("def get_request_counts", "def something_else"))
    done = python(USE + "print('works')", tmp_path / "out", SITE, fake)
    assert done.stdout == "works\n"
    (line,) = done.stderr.splitlines()
    assert line.startswith("profilemate: probe scheduler.schedule failed (AttributeError: ")
    assert metadata(tmp_path / "out")["probe_errors"] == 3


def test_an_import_error_of_vllm_is_vllms(tmp_path: Path, fake: Path) -> None:
    (fake / "vllm/v1/engine/core.py").write_text("raise RuntimeError('vLLM is broken')\n")
    done = python("import vllm.v1.engine.core", tmp_path / "out", SITE, fake, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "RuntimeError: vLLM is broken"
    assert "profilemate: " not in done.stderr


def test_modules_keep_their_loader(tmp_path: Path, fake: Path) -> None:
    code = (
        "import inspect, vllm.v1.engine.core as m\n"
        "print(type(m.__loader__).__name__, type(m.__spec__.loader).__name__, len(inspect.getsource(m)) > 0)"
    )
    done = python(code, tmp_path / "out", SITE, fake)
    assert done.stdout.split() == ["SourceFileLoader", "SourceFileLoader", "True"]


def test_verbose_says_what_attaches_and_how_far_it_is(tmp_path: Path, fake: Path) -> None:
    done = python(USE, tmp_path / "out", SITE, fake, PROFILEMATE_VERBOSE="1", PROFILEMATE_LOG_INTERVAL="2")
    assert done.stdout == ""
    assert "scheduler.schedule attached to vllm.v1.core.sched.scheduler:Scheduler.schedule" in done.stderr
    assert (
        "engine_core-0 records cuda_graph_tracking, kv_cache_tracking, moe_expert_tracking, forward_pass_timing, "
        "cpu_timing, batch_utilization_tracking, preemption_tracking, encoder_decoder_timing, sampling_timing, "
        "gpu_memory to" in done.stderr
    )
    assert [line for line in done.stderr.splitlines() if " step " in line] == [
        f"profilemate: step {step}: 2 sequences, 3 tokens, 2 running, 1 waiting" for step in (2, 4)
    ]


def test_debug_prints_every_nth_event(tmp_path: Path, fake: Path) -> None:
    done = python(USE, tmp_path / "out", SITE, fake, PROFILEMATE_DEBUG="1", PROFILEMATE_DEBUG_INTERVAL="7")
    events = [line for line in done.stderr.splitlines() if line.startswith("profilemate: event ")]
    assert len(events) == 21 // 7


def test_without_us_in_front_the_other_sitecustomize_shadows_and_doctor_says_so(
    tmp_path: Path, fake: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "sitecustomize.py").write_text("")
    done = subprocess.run(
        [sys.executable, str(Path(SITE).parent / "doctor.py"), "--json"],
        capture_output=True,
        text=True,
        check=False,
        env=environment(tmp_path / "out", PYTHONPATH=os.pathsep.join([str(fake), str(other), SITE])),
    )
    report = json.loads(done.stdout)
    assert report["vllm_folder"] == str(fake / "vllm")
    assert done.returncode == 1
    assert {hook["name"] for hook in report["hooks"] if hook["attaches"]} >= {
        "scheduler.schedule",
        "engine_core.init",
    }
    assert any(str(other) in note for note in report["notes"])
    assert "forward_pass_timing.csv" in report["missing_tables"]


def test_a_sitecustomize_that_raises_is_reported_by_python_as_ever(tmp_path: Path, fake: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "sitecustomize.py").write_text("raise ValueError('theirs')")
    done = python(USE + "print('works')", tmp_path / "out", SITE, other, fake)
    assert done.stdout == "works\n"
    assert "ValueError: theirs" in done.stderr
    assert "profilemate" not in done.stderr
    assert metadata(tmp_path / "out")["counters"]["engine_steps"] == 5
