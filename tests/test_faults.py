"""Whatever happens around it, a program that uses vLLM runs as it would without us.

docs/faults.md lists the faults and the tests that hold them, here and elsewhere. The modules of vLLM are those of
`test_attach`: a few functions under vLLM's names.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from support.disks import with_read_only, with_tmpfs
from support.processes import LIMIT_SECONDS, wait_for
from support.tables import Session, completed_session
from support.vllm import BIN, environment, profilemate
from test_attach import CONFIG, MODULES, PLUGIN, SITE, USE, metadata

#: Makes an engine, and `steps(n)` that run it and say that their results are vLLM's.
ENGINE = (
    "import os, sys, threading\nfrom pathlib import Path\n"
    "from vllm.v1.engine.core import EngineCore\n"
    + CONFIG
    + """
def steps(number):
    for _ in range(number):
        assert engine.step() == {}
def segments():
    return len(list(Path(os.environ["PROFILEMATE_SESSION"]).glob("raw/*.seg")))
def until(condition):
    while not condition():
        steps(10)
engine = EngineCore(config)
"""
)
VLLM_LOG = Path(__file__).parents[1] / "crates" / "import" / "tests" / "logs" / "real_decode.log"
SMALL: dict[str, Any] = {"PROFILEMATE_SEGMENT_BYTES": "65536"}


def write_modules(folder: Path) -> None:
    for name, text in MODULES.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


@pytest.fixture(name="vllm")
def fake_vllm(tmp_path: Path) -> Path:
    write_modules(tmp_path / "fake")
    return tmp_path / "fake"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out"


def start(
    code: str, output: Path, *pythonpath: str | Path, prefix: list[str] | None = None, **more: Any
) -> subprocess.CompletedProcess[str]:
    """Runs code with these folders on its path. `prefix` runs before Python, `options` and `arguments` are for it."""
    options: list[str] = more.pop("options", [])
    arguments: list[str] = more.pop("arguments", [])
    keywords: dict[str, Any] = more.pop("keywords", {})
    more.setdefault("PROFILEMATE_COLLECTOR", "none")
    return subprocess.run(
        [*(prefix or []), sys.executable, *options, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment(output, PYTHONPATH=os.pathsep.join(map(str, pythonpath)), **more),
        **keywords,
    )


def ran(done: subprocess.CompletedProcess[str]) -> list[str]:
    """It ended in order and said what it should; gives our lines."""
    assert (done.returncode, done.stdout) == (0, "works\n"), done
    lines = done.stderr.splitlines()
    assert all(line.startswith("profilemate: ") for line in lines), done.stderr
    return lines


# Every hook that there is, also those that somebody adds later

EVERY_HOOK = """
import os
from unittest.mock import MagicMock
from profilemate import _native as n
from profilemate.probes import HOOKS
n.sessions_folder_ready(os.environ["SESSION"])
n.open(os.environ["SESSION"], "worker", 0, 0, 65536, 1 << 30)
class Theirs(Exception): pass
def call(spec, arguments, calls=5):
    made = object()
    def target(*arguments, **keywords):
        if keywords: raise Theirs("vLLM's own")
        return made
    hook = n.Hook(target, spec.name, kind=spec.kind, span=spec.span, context=spec.context, lane=spec.lane,
                  marks=spec.marks, closes_step=spec.closes_step, needs_step=spec.needs_step,
                  before=spec.before, after=spec.after)
    failures = []
    for _ in range(calls):
        assert hook(*arguments) is made, spec.name
        failures.append(hook.failures)
        try: hook(*arguments, theirs=1)
        except Theirs as error: assert error.args == ("vLLM's own",), spec.name
        else: raise AssertionError(spec.name)
    return failures
"""


@pytest.mark.parametrize("fault", ["raise", "panic"])
def test_a_fault_in_any_probe_reaches_nobody(tmp_path: Path, fault: str) -> None:
    code = EVERY_HOOK + (
        "import json\n"
        "print(json.dumps({spec.name: [call(spec, [MagicMock() for _ in range(4)]), spec.after is not None]"
        " for spec in HOOKS}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=environment(tmp_path, SESSION=str(tmp_path / "session"), PROFILEMATE_FAULT=fault),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) > 25
    for name, (failures, has_after) in found.items():
        # Both of its extractors fail, and it is switched off after three times.
        assert failures[0] == 1 + has_after, name
        assert failures[-1] == 3, name
    assert len(done.stderr.splitlines()) == 1, done.stderr


WRONG = (
    "[None] * 4, [object()] * 4, [3] * 4, ['x'] * 4, [[]] * 4, [{}] * 4, [float('nan')] * 4, [MagicMock()] * 4, []"
)


def test_wrong_arguments_to_any_probe_reach_nobody(tmp_path: Path) -> None:
    code = EVERY_HOOK + f"for spec in HOOKS:\n    for wrong in ({WRONG}): call(spec, wrong, 2)\nprint('works')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=environment(tmp_path, SESSION=str(tmp_path / "session")),
    )
    assert (done.returncode, done.stdout) == (0, "works\n"), done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_a_panic_that_python_sees_as_an_exception_is_ours(tmp_path: Path) -> None:
    code = EVERY_HOOK + (
        "def panics(*_): raise n.PanicException('a panic in native code')\n"
        "f = n.Hook(lambda x: x, 'p', kind=n.SPAN, span='s', before=panics, after=panics)\n"
        "print([f(x) for x in range(4)], f.failures)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=environment(tmp_path, SESSION=str(tmp_path / "session")),
    )
    assert (done.returncode, done.stdout) == (0, "[0, 1, 2, 3] 3\n"), done.stderr


# The disk


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ("size=64k", "cannot reserve space for"),
        ("size=1200k", "cannot reserve space for"),
        ("ro", "cannot make the session folder"),
        ("nr_inodes=3", "No space left on device"),
    ],
)
def test_a_disk_without_room_at_the_start_costs_one_line(
    vllm: Path, output: Path, options: str, what: str
) -> None:
    prefix = with_tmpfs(output, options, [])
    (line,) = ran(start(ENGINE + "steps(20); print('works')", output, SITE, vllm, prefix=prefix))
    assert what in line and line.endswith("this process is not recorded, and vLLM is not affected")


#: From here on standard error is a file, and it is worked until something was said, and then until records are dropped.
UNTIL_IT_IS_SAID = """
from profilemate import _native
os.dup2(os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT), 2)
until(lambda: Path(sys.argv[1]).read_text())
dropped = _native.statistics()[1]
until(lambda: _native.statistics()[1] > dropped + 1000)
"""


def test_a_disk_that_fills_up_costs_records_and_one_line(vllm: Path, output: Path) -> None:
    told = output.with_name("told")
    code = ENGINE + UNTIL_IT_IS_SAID + "assert segments() < 12; print('works')"
    prefix = with_tmpfs(output, "size=1500k", [])
    assert ran(start(code, output, SITE, vllm, prefix=prefix, arguments=[str(told)], **SMALL)) == []
    (line,) = told.read_text().splitlines()
    assert "No space left on device" in line and "the server is not affected" in line


#: `quota_is_used_up()`: the kernel reserves no more room for files of this process, as when a user has had his share.
QUOTA = """
import ctypes, errno, platform, struct
def quota_is_used_up():
    fallocate, seccomp = {"x86_64": (285, 317), "aarch64": (47, 277)}[platform.machine()]
    # A filter of system calls (seccomp_filter(2)): load the number; this one fails; any other is made.
    lines = ((0x20, 0, 0, 0), (0x15, 0, 1, fallocate), (6, 0, 0, 0x50000 | errno.EDQUOT), (6, 0, 0, 0x7fff0000))
    class Program(ctypes.Structure): _fields_ = [("length", ctypes.c_ushort), ("lines", ctypes.c_char_p)]
    program = Program(len(lines), b"".join(struct.pack("HBBI", *line) for line in lines))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    # Of all threads.
    assert libc.syscall(seccomp, 1, 1, ctypes.byref(program)) == 0, os.strerror(ctypes.get_errno())
"""


def test_a_quota_that_is_used_up_at_the_start_costs_one_line(vllm: Path, output: Path) -> None:
    code = "import os\n" + QUOTA + "quota_is_used_up()\n" + ENGINE + "steps(20); print('works')"
    (line,) = ran(start(code, output, SITE, vllm))
    assert "Disk quota exceeded" in line
    assert line.endswith("this process is not recorded, and vLLM is not affected")


def test_a_quota_that_is_used_up_costs_records_and_one_line(vllm: Path, output: Path) -> None:
    told = output.with_name("told")
    code = ENGINE + QUOTA + "steps(50); quota_is_used_up()\n" + UNTIL_IT_IS_SAID + "print('works')"
    assert ran(start(code, output, SITE, vllm, arguments=[str(told)], **SMALL)) == []
    (line,) = told.read_text().splitlines()
    assert "Disk quota exceeded" in line and "the server is not affected" in line
    found = metadata(output)
    assert found["records_lost"] > 1000
    assert found["counters"]["engine_steps"] >= 50


@pytest.mark.parametrize("limit", [1 << 10, 256 << 10, 1100 << 10])
@pytest.mark.parametrize("route", ["pythonpath", "run"])
def test_a_limit_on_the_size_of_files_costs_one_line(vllm: Path, output: Path, limit: int, route: str) -> None:
    """RLIMIT_FSIZE, as `ulimit -f` sets it: whoever goes beyond gets SIGXFSZ, which ends a process as a rule."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    code = ENGINE + "steps(20); print('works')"
    if route == "pythonpath":
        done = start(code, output, SITE, vllm, keywords={"preexec_fn": limited})
    else:
        variables = environment(output, PYTHONPATH=str(vllm))
        command = [str(BIN / "profilemate"), "run", "--", sys.executable, "-c", code]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=variables, preexec_fn=limited
        )
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "works"), done
    assert "File too large" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("ignored", [[], ["SIGHUP"], ["SIGINT", "SIGQUIT"], ["SIGTERM", "SIGUSR1", "SIGCHLD"]])
def test_a_profiled_command_finds_signals_as_it_would_without_us(output: Path, ignored: list[str]) -> None:
    """What is ignored is inherited, as `nohup` wants it; and Python and the launcher ignore some for themselves."""

    def ignore() -> None:
        for name in ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGCHLD"):
            signal.signal(signal.Signals[name], signal.SIG_IGN if name in ignored else signal.SIG_DFL)

    def seen(*launcher: str | Path) -> str:
        done = subprocess.run(
            [*launcher, "grep", "-E", "Sig(Ign|Blk)", "/proc/self/status"],
            capture_output=True,
            text=True,
            check=False,
            env=environment(output),
            preexec_fn=ignore,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    launcher = BIN / "profilemate"
    for way in (["run", "--"], ["run", "--output-dir", "/proc/nowhere", "--"]):
        assert seen(launcher, *way) == seen(), way


def test_a_command_that_takes_an_ignored_signal_after_all_gets_it(output: Path) -> None:
    """As vLLM does with SIGINT, also where a shell had it ignored."""
    takes = (
        "import os, signal\n"
        "assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])\n"
        "os.kill(os.getppid(), signal.SIGINT)\n"
        "print('got', signal.sigwait([signal.SIGINT]).name)\n"
    )
    done = subprocess.run(
        [BIN / "profilemate", "run", "--", sys.executable, "-c", takes],
        capture_output=True,
        text=True,
        check=False,
        env=environment(output),
        timeout=LIMIT_SECONDS,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    assert (done.returncode, done.stdout) == (0, "got SIGINT\n"), done.stderr


def test_a_temporary_folder_that_cannot_be_written_costs_one_line(tmp_path: Path) -> None:
    """With no output folder named, sessions go below `/tmp`."""
    prefix = with_read_only(Path("/tmp"), [])
    variables = {name: value for name, value in environment(tmp_path).items() if name != "PROFILEMATE_OUTPUT_DIR"}
    with TemporaryDirectory(dir="/var/tmp") as folder:
        write_modules(Path(folder))
        done = subprocess.run(
            [*prefix, sys.executable, "-c", USE + "print('works')"],
            capture_output=True,
            text=True,
            check=False,
            env={**variables, "PYTHONPATH": f"{SITE}:{folder}", "PROFILEMATE_COLLECTOR": "none"},
        )
    (line,) = ran(done)
    assert "/tmp/vllm_profiling" in line


#: Makes tables on a disk that has room for the first ones, and for none or a part of the next; prints what was said.
TABLES_ON_A_FULL_DISK = """
import json, os, shutil, subprocess, sys
from pathlib import Path
profilemate, recorded, log, disk = sys.argv[1], *map(Path, sys.argv[2:])
session = disk / "session_1"
shutil.copytree(recorded / "raw", session / "raw")
def files():
    return {str(path): path.read_bytes() for path in disk.rglob("*") if path.is_file() and path.name != "filler"}
def run(*arguments):
    done = subprocess.run([profilemate, *map(str, arguments)], capture_output=True, text=True)
    return [done.returncode, done.stdout, done.stderr]
def free():
    found = os.statvfs(disk)
    return found.f_bavail * found.f_bsize
commands = [
    ["export", session], ["export", session, "--format", "both"], ["export", session, "--output", disk / "other"],
    ["report", session], ["report", session, "--html", disk / "page.html"],
    ["timeline", session], ["collect", session],
    ["import", "vllm-log", log, "--output-dir", disk],
]
assert run("collect", session)[0] == 0
whole, told = files(), []
for room in (0, 8 << 10):
    with (disk / "filler").open("wb") as filler:
        filler.write(bytes(free() - room))
    for command in commands:
        name = " ".join(part for part in command if isinstance(part, str))
        told.append([name, room, *run(*command), whole == files()])
    (disk / "filler").unlink()
assert run("export", session)[0] == 0
print(json.dumps(told))
"""


def test_tables_without_room_are_one_sentence_and_what_was_there_stays(vllm: Path, output: Path) -> None:
    assert ran(start(ENGINE + "steps(4000); print('works')", output, SITE, vllm)) == []
    (session,) = output.glob("session_*")
    disk = output.with_name("disk")
    arguments = [str(BIN / "profilemate"), str(session), str(VLLM_LOG), str(disk)]
    command = with_tmpfs(disk, "size=16m", [sys.executable, "-c", TABLES_ON_A_FULL_DISK, *arguments])
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment(output))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert len(told) == 2 * 8
    for name, room, code, stdout, stderr, is_as_before in told:
        where = (name, room, code, stdout, stderr)
        assert is_as_before, where
        # Whoever asked for no page by its name has a summary all the same.
        assert (code, stdout == "") == ((0, False) if name == "report" else (1, True)), where
        (line,) = stderr.splitlines()
        assert re.search(f"cannot write .*{disk}/.*No space left on device.*; .*[Mm]ake room", line), where


def test_a_session_folder_that_is_deleted_meanwhile_costs_one_line(vllm: Path, output: Path) -> None:
    told = output.with_name("told")
    deleted = "import shutil; steps(50); shutil.rmtree(os.environ['PROFILEMATE_SESSION'])\n"
    code = ENGINE + deleted + UNTIL_IT_IS_SAID + "print('works')"
    assert ran(start(code, output, SITE, vllm, arguments=[str(told)], **SMALL)) == []
    (line,) = told.read_text().splitlines()
    assert "No such file or directory" in line


CUT = """
def cut(pattern):
    for path in Path(os.environ["PROFILEMATE_SESSION"]).glob(pattern):
        os.truncate(path, 0)
steps(50)
cut("raw/*.{extension}")
before = segments()
until(lambda: segments() > before + 3)
print("works")
"""


@pytest.mark.parametrize("handler", ["none", "before", "after"])
def test_files_that_somebody_empties_cost_records(vllm: Path, output: Path, handler: str) -> None:
    """With Python's `faulthandler` that was there before us, and one that came later."""
    later = "import faulthandler; faulthandler.enable()\n" if handler == "after" else ""
    options = ["-X", "faulthandler"] if handler == "before" else []
    code = ENGINE + later + CUT.replace("{extension}", "seg")
    done = start(code, output, SITE, vllm, options=options, **SMALL)
    assert (done.returncode, done.stdout) == (0, "works\n"), done
    assert [line.endswith("the server is not affected") for line in done.stderr.splitlines()].count(True) == 1
    if handler != "after":
        # That one has written its report before it asked us.
        assert len(done.stderr.splitlines()) == 1
    found = metadata(output)
    assert found["records_lost"] > 100
    # Those that went to files again.
    assert found["counters"]["engine_steps"] > 100


def test_a_head_that_somebody_empties_costs_the_log(vllm: Path, output: Path) -> None:
    (line,) = ran(start(ENGINE + CUT.replace("{extension}", "head"), output, SITE, vllm, **SMALL))
    assert ".head was cut short" in line


# How processes are started


@pytest.mark.parametrize("option", ["-S", "-I", "-E"])
@pytest.mark.parametrize("is_plugin", [False, True])
def test_a_python_that_ignores_its_environment_runs(
    vllm: Path, output: Path, option: str, is_plugin: bool
) -> None:
    """Without `site`, or without PYTHONPATH, nobody loads us; vLLM's plugins still do."""
    code = f"import sys; sys.path.insert(0, {str(vllm)!r})\n"
    if is_plugin:
        code += f"sys.path.append({str(Path(SITE).parents[1])!r})\n" + PLUGIN + "plugin()\n"
    done = start(code + USE + "print('works')", output, SITE, options=[option], PROFILEMATE_ENABLE="1")
    assert ran(done) == []
    if is_plugin:
        assert metadata(output)["counters"]["engine_steps"] == 5
    else:
        assert not output.exists()


@pytest.mark.parametrize("error", ["sys.exit(3)", "raise KeyboardInterrupt", "raise ImportError('theirs')"])
def test_a_sitecustomize_of_somebody_else_fails_as_without_us(
    tmp_path: Path, vllm: Path, output: Path, error: str
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "sitecustomize.py").write_text(f"import sys\n{error}\n")
    with_us, without = (start("print('works')", output, *path) for path in ([SITE, other, vllm], [other, vllm]))
    assert (with_us.returncode, with_us.stdout) == (without.returncode, without.stdout)
    assert with_us.stderr.splitlines()[-1:] == without.stderr.splitlines()[-1:]
    assert "profilemate: " not in with_us.stderr


def test_both_routes_in_a_child_and_its_parent_record_each_step_once(vllm: Path, output: Path) -> None:
    child = PLUGIN + "plugin()\n" + USE
    code = (
        PLUGIN
        + "plugin(); plugin()\n"
        + USE
        + f"import subprocess\nsubprocess.check_call([sys.executable, '-c', {child!r}])"
    )
    done = start("import sys\n" + code + "\nprint('works')", output, SITE, vllm, PROFILEMATE_ENABLE="1")
    assert ran(done) == []
    assert metadata(output)["counters"]["engine_steps"] == 10


@pytest.mark.parametrize("dropped", ["PYTHONPATH", "everything"])
def test_a_child_whose_environment_was_dropped_runs(vllm: Path, output: Path, dropped: str) -> None:
    """As with Ray, whose workers have the environment of another process: recorded through vLLM's plugins, or not."""
    keep = "" if dropped == "everything" else "or name.startswith('PROFILEMATE_')"
    package = str(Path(SITE).parents[1])
    child = f"import sys; sys.path[:0] = [{str(vllm)!r}, {package!r}]\n" + PLUGIN + "plugin()\n" + USE
    code = USE + (
        "import os, subprocess, sys\n"
        f"kept = {{name: value for name, value in os.environ.items() if name in ('PATH', 'HOME') {keep}}}\n"
        f"subprocess.check_call([sys.executable, '-c', {child!r}], env=kept)\n"
        "print('works')"
    )
    assert ran(start(code, output, SITE, vllm)) == []
    assert metadata(output)["counters"]["engine_steps"] == (5 if dropped == "everything" else 10)


FORKS = """
import multiprocessing
stop = threading.Event()
def record():
    while not stop.is_set(): steps(1)
thread = threading.Thread(target=record)
thread.start()
for _ in range(20):
    pid = os.fork()
    if pid == 0:
        # As it was left, in the middle of whatever the other thread did.
        for _ in range(20): assert engine.step() == {}
        own = EngineCore(config)
        for _ in range(20): assert own.step() == {}
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
stop.set(); thread.join()
print("works")
"""


def test_forks_in_the_middle_of_recording_harm_neither_side(vllm: Path, output: Path) -> None:
    assert ran(start(ENGINE + FORKS, output, SITE, vllm)) == []
    found = metadata(output)
    assert len(found["processes"]) == 21
    assert (found["records_lost"], found["records_damaged"]) == (0, 0)
    # Those of the children that opened a log of their own, and those of the parent.
    assert found["counters"]["engine_steps"] >= 20 * 20


@pytest.mark.parametrize("how", ["2>&-", "2>&- 1>&- <&-", "2>/dev/full"])
def test_a_process_without_a_standard_error_is_served(vllm: Path, output: Path, how: str) -> None:
    """With much to say: verbose, a bad setting, and a head whose descriptor could be that of standard error."""
    code = ENGINE + "steps(20); Path(sys.argv[1]).write_text('works')"
    told = output.with_name("told")
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {how}', "sh", sys.executable, "-c", code, str(told)],
        check=False,
        env=environment(
            output,
            PYTHONPATH=f"{SITE}:{vllm}",
            PROFILEMATE_COLLECTOR="none",
            PROFILEMATE_VERBOSE="1",
            PROFILEMATE_DEBUG="1",
            PROFILEMATE_TIMING="guess",
        ),
    )
    assert (done.returncode, told.read_text()) == (0, "works")
    found = metadata(output)
    assert found["counters"]["engine_steps"] == 20
    assert (found["records_lost"], found["damage"]) == (0, [])


# Sessions and collectors


def test_two_launches_at_once_in_one_folder_are_two_sessions(vllm: Path, output: Path) -> None:
    launches = [
        subprocess.Popen(
            [sys.executable, "-c", USE],
            env=environment(output, PYTHONPATH=f"{SITE}:{vllm}", PROFILEMATE_COLLECTOR="none"),
        )
        for _ in range(4)
    ]
    assert [launch.wait(60) for launch in launches] == [0] * 4
    sessions = sorted(output.glob("session_*"))
    assert len(sessions) == 4
    for session in sessions:
        profilemate("export", str(session))
        assert Session(session).counters["engine_steps"] == 5


def test_two_launches_that_share_a_session_share_it(vllm: Path, output: Path) -> None:
    """Somebody exported the name of a session: both are in it, and neither harms the other."""
    launches = [
        subprocess.Popen(
            [sys.executable, "-c", USE],
            env=environment(
                output,
                PYTHONPATH=f"{SITE}:{vllm}",
                PROFILEMATE_COLLECTOR="none",
                PROFILEMATE_SESSION=str(output / "session_one"),
            ),
        )
        for _ in range(4)
    ]
    assert [launch.wait(60) for launch in launches] == [0] * 4
    found = metadata(output)
    assert (found["counters"]["engine_steps"], len(found["processes"])) == (20, 4)
    assert found["records_lost"] == 0


WAITS = (
    ENGINE
    + """
print("ready", flush=True)
for line in sys.stdin:
    steps(50)
    print("works", flush=True)
"""
)


@pytest.fixture
def followed(vllm: Path, output: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that works when it is told to, and its collector."""
    running = subprocess.Popen(
        [sys.executable, "-c", WAITS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(
            output, PYTHONPATH=f"{SITE}:{vllm}", PROFILEMATE_REFRESH_SECONDS="1", PROFILEMATE_DEBUG_INTERVAL="1"
        ),
    )
    assert running.stdout
    try:
        assert running.stdout.readline() == "ready\n"
        (session,) = output.glob("session_*")
        yield running, wait_for("the collector", lambda: collector_of(session))
    finally:
        running.kill()
        running.wait()
        for stream in (running.stdin, running.stdout):
            if stream is not None:
                stream.close()


def collector_of(session: Path) -> int | None:
    """The process that has the lock which makes it the session's collector."""
    lock = session / "raw" / "collector.lock"
    holders = (
        int(descriptor.parts[2]) for descriptor in Path("/proc").glob("[0-9]*/fd/*") if leads(descriptor, lock)
    )
    return next(holders, None)


def leads(descriptor: Path, to: Path) -> bool:
    try:
        return descriptor.readlink() == to
    except OSError:
        # It was closed meanwhile, or is of another user.
        return False


def work(running: subprocess.Popen[str]) -> None:
    assert running.stdin and running.stdout
    running.stdin.write("\n")
    running.stdin.flush()
    assert running.stdout.readline() == "works\n"


def test_a_collector_that_is_killed_costs_nothing_but_the_tables(
    followed: tuple[subprocess.Popen[str], int], output: Path
) -> None:
    running, collector = followed
    work(running)
    os.kill(collector, signal.SIGKILL)
    work(running)
    assert running.stdin
    running.stdin.close()
    assert running.wait(60) == 0
    found = metadata(output)
    assert (found["counters"]["engine_steps"], found["records_lost"]) == (100, 0)


def test_a_collector_that_stands_still_holds_nobody_up(
    followed: tuple[subprocess.Popen[str], int], output: Path
) -> None:
    running, collector = followed
    os.kill(collector, signal.SIGSTOP)
    try:
        for _ in range(5):
            work(running)
        assert running.stdin
        running.stdin.close()
        assert running.wait(60) == 0
    finally:
        os.kill(collector, signal.SIGCONT)
    (session,) = output.glob("session_*")
    # It goes on where it stood, and completes the tables.
    wait_for("the collector's end", lambda: collector_of(session) is None or None)
    assert Session(session).counters["engine_steps"] == 250


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Our package, but for its program: the folder that goes on PYTHONPATH."""
    ours, folder = Path(SITE).parent, tmp_path / "installed" / "profilemate"
    (folder / "_bin").mkdir(parents=True)
    for part in ours.iterdir():
        if part.name != "_bin":
            (folder / part.name).symlink_to(part)
    return folder / "sitecustomize"


#: Notes how long anybody waits for a process.
NOTES_WAITS = """
import subprocess
waits, wait = [], subprocess.Popen.wait
def noting_wait(process, timeout=None):
    waits.append(timeout)
    return wait(process, timeout)
subprocess.Popen.wait = noting_wait
"""


def test_a_collector_that_hangs_at_its_start_is_not_waited_for(vllm: Path, output: Path, package: Path) -> None:
    go_on = output.with_name("go-on")
    os.mkfifo(go_on)
    program = package.parent / "_bin" / "profilemate"
    program.write_text(f'#!/bin/sh\nread _ <{go_on}\nexec {Path(SITE).parent}/_bin/profilemate "$@"\n')
    program.chmod(0o755)
    # When the steps are done it is let go on, and would not answer if somebody had killed it.
    code = NOTES_WAITS + ENGINE + "steps(20); assert max(waits) <= 1; Path(sys.argv[1]).write_text('\\n')"
    done = subprocess.run(
        [sys.executable, "-c", code, str(go_on)],
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_SECONDS,
        env=environment(output, PYTHONPATH=f"{package}:{vllm}"),
    )
    assert done.returncode == 0, done
    (line,) = done.stderr.splitlines()
    assert "has not started after 1 s; the recording goes on" in line
    assert completed_session(output).counters["engine_steps"] == 20


@pytest.mark.parametrize("fault", ["missing", "no program", "fails"])
def test_a_collector_that_cannot_be_started_costs_one_line(
    vllm: Path, output: Path, package: Path, fault: str
) -> None:
    program = package.parent / "_bin" / "profilemate"
    if fault != "missing":
        program.write_text("#!/bin/sh\nexit 3\n" if fault == "fails" else "nothing")
        program.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", ENGINE + "steps(20); print('works')"],
        capture_output=True,
        text=True,
        check=False,
        env=environment(output, PYTHONPATH=f"{package}:{vllm}"),
    )
    (line,) = ran(done)
    assert f"cannot start {program}" in line and "the recording goes on" in line
    assert metadata(output)["counters"]["engine_steps"] == 20
