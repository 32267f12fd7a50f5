"""The hook object: what stands in for a function must be as good as the function, whatever happens on our side."""

from __future__ import annotations

import inspect
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from profilemate import _native

#: Prepares a recording process: `hooked(function, ...)` and `written()`.
PRELUDE = """
import os, sys
from profilemate import _native as n
n.sessions_folder_ready(os.environ["SESSION"])
n.open(os.environ["SESSION"], "worker", 0, 0, 65536, 1 << 30)
def hooked(function, **options):
    options.setdefault("span", "span")
    options.setdefault("kind", n.SPAN)
    return n.Hook(function, "the.probe", **options)
def written():
    return n.statistics()[0]
"""


def record(tmp_path: Path, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a process of its own that has a log open."""
    return subprocess.run(
        [sys.executable, "-c", PRELUDE + code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "SESSION": str(tmp_path / "session"), **environment},
    )


class Owner:
    """A class with hooked methods."""

    def method(self, first: int, second: int = 2) -> tuple[int, int]:
        """The docs of the method."""
        return first, second

    def fails(self) -> None:
        raise KeyError("vLLM's own")


Owner.method = _native.Hook(Owner.method, "owner.method")  # type: ignore[method-assign]
Owner.fails = _native.Hook(Owner.fails, "owner.fails")  # type: ignore[method-assign]


def test_it_is_called_as_the_function_is() -> None:
    owner = Owner()
    assert owner.method(1) == (1, 2)
    assert owner.method(1, 3) == (1, 3)
    assert owner.method(second=4, first=1) == (1, 4)
    assert Owner.method(owner, 5) == (5, 2)
    keywords = {"second": 6}
    assert owner.method(*[1], **keywords) == (1, 6)


def test_wrong_arguments_give_the_functions_own_error() -> None:
    with pytest.raises(TypeError, match=r"Owner\.method\(\) missing 1 required positional argument: 'first'"):
        Owner().method()  # type: ignore[call-arg]


def test_it_looks_like_the_function() -> None:
    method: Any = Owner.method
    function = method.__wrapped__
    assert method.__name__ == "method"
    assert method.__qualname__ == "Owner.method"
    assert method.__module__ == __name__
    assert method.__doc__ == "The docs of the method."
    assert method.__annotations__ == function.__annotations__
    assert inspect.signature(method) == inspect.signature(function)
    assert list(inspect.signature(Owner().method).parameters) == ["first", "second"]
    assert inspect.getsource(method) == inspect.getsource(function)
    assert inspect.ismethod(Owner().method)


def test_attributes_are_set_on_the_function() -> None:
    method: Any = Owner.method
    method.mark = 3
    assert method.__wrapped__.mark == 3
    del method.mark
    assert not hasattr(method, "mark")


def test_it_is_pickled_by_reference() -> None:
    assert pickle.loads(pickle.dumps(Owner.method)) is Owner.method
    assert pickle.loads(pickle.dumps(Owner().method))(7) == (7, 2)


def test_an_exception_of_vllm_passes_untouched() -> None:
    with pytest.raises(KeyError) as caught:
        Owner().fails()
    assert caught.value.args == ("vLLM's own",)
    assert caught.traceback[-1].name == "fails"


@pytest.mark.parametrize("bad", [{}, {"group": 1000}, {"kind": "x"}, {"accumulator": 3}])
def test_a_hook_that_cannot_be_made_says_so(bad: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        _native.Hook(*([3, "name"] if not bad else [len, "name"]), **bad)  # type: ignore[arg-type]


def test_each_call_is_one_record_and_an_exception_is_one_too(tmp_path: Path) -> None:
    done = record(
        tmp_path,
        """
def f(x):
    if x < 0: raise ValueError(x)
    return x
f = hooked(f)
for x in range(5): f(x)
try: f(-1)
except ValueError as error: print(error)
print(written())
""",
    )
    assert done.stdout.split() == ["-1", "6"], done.stderr


def test_a_method_that_calls_super_is_counted_once(tmp_path: Path) -> None:
    done = record(
        tmp_path,
        """
class Base:
    def schedule(self): return 1
class Derived(Base):
    def schedule(self): return 1 + super().schedule()
Base.schedule = hooked(Base.schedule, group=1)
Derived.schedule = hooked(Derived.schedule, group=1)
print(Derived().schedule(), Base().schedule(), written())
""",
    )
    assert done.stdout.split() == ["2", "1", "2"], done.stderr


def test_two_threads_in_one_function_are_both_counted(tmp_path: Path) -> None:
    done = record(
        tmp_path,
        """
import threading
barrier = threading.Barrier(2)
f = hooked(lambda: barrier.wait(60), group=1)
threads = [threading.Thread(target=f) for _ in range(2)]
[t.start() for t in threads]; [t.join() for t in threads]
print(written())
""",
    )
    assert done.stdout.split() == ["2"], done.stderr


@pytest.mark.parametrize("where", ["before", "after"])
def test_a_probe_that_raises_is_said_once_counted_and_switched_off(tmp_path: Path, where: str) -> None:
    done = record(
        tmp_path,
        f"""
calls = []
def bad(*arguments, **keywords):
    calls.append(1)
    raise RuntimeError("broken \\x1b[2J probe")
f = hooked(lambda x: x + 1, {where}=bad)
print([f(x) for x in range(6)], len(calls), f.failures)
""",
    )
    assert done.stdout == "[1, 2, 3, 4, 5, 6] 3 3\n"
    lines = done.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("profilemate: probe the.probe failed (RuntimeError: broken \\u{1b}[2J probe); ")


@pytest.mark.parametrize("fault", ["raise", "panic"])
def test_faults_on_our_side_never_reach_the_caller(tmp_path: Path, fault: str) -> None:
    done = record(
        tmp_path,
        """
def f(x):
    if x == 2: raise KeyError("vLLM's own")
    return x
f = hooked(f)
for x in range(4):
    try: print(f(x))
    except KeyError as error: print(error)
print(f.failures)
""",
        PROFILEMATE_FAULT=fault,
    )
    assert done.returncode == 0
    assert done.stdout.splitlines() == ["0", "1", '"vLLM\'s own"', "3", "3"]
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "the.probe" in done.stderr


def test_a_signal_that_arrives_in_a_probe_belongs_to_vllm(tmp_path: Path) -> None:
    done = record(
        tmp_path,
        """
import signal
def on_signal(*_): raise SystemExit("shut down")
signal.signal(signal.SIGTERM, on_signal)
def before(*_): signal.raise_signal(signal.SIGTERM)
called = []
f = hooked(lambda: called.append(1), before=before)
try: f()
except SystemExit as error: print(error, called, f.failures)
""",
    )
    assert done.stdout == "shut down [] 0\n", done.stderr


def test_what_a_probe_tells(tmp_path: Path) -> None:
    """A step, values, and `False`: this call is not to be recorded."""
    done = record(
        tmp_path,
        """
f = hooked(lambda told: None, before=lambda told: told)
for told in (None, 3, (4, 5), (None, 1.5, 6), (0, 0)):
    f(told)
print(written())
f(False)
print(written())
f("no such thing")
print(written(), f.failures)
""",
    )
    assert done.stdout.split() == ["5", "5", "5", "1"], done.stderr


def test_a_step_that_was_neither_scheduled_nor_updated_is_not_recorded(tmp_path: Path) -> None:
    done = record(
        tmp_path,
        """
schedule = hooked(lambda: None, lane=n.ENGINE, after=lambda result, _: 7)
step = hooked(lambda busy: schedule() if busy else None, lane=n.ENGINE, closes_step=True, needs_step=True)
step(False)
print(written())
step(True)
print(written())
""",
    )
    assert done.stdout.split() == ["0", "2"], done.stderr


def test_small_calls_are_added_up_into_one_record(tmp_path: Path) -> None:
    done = record(
        tmp_path,
        """
update = hooked(lambda: None, kind=n.ACCUMULATE)
def process():
    for _ in range(100): update()
process = hooked(process, accumulator=update)
process()
print(written())
process.__wrapped__ is not None and process()
print(written())
""",
    )
    assert done.stdout.split() == ["2", "4"], done.stderr


def test_a_forked_child_does_not_write_into_its_parents_log(tmp_path: Path) -> None:
    done = record(
        tmp_path,
        """
f = hooked(lambda: 1)
f()
sys.stdout.flush()
if os.fork() == 0:
    answer = f(), n.is_open()
    n.open(os.environ["SESSION"], "engine_core", 0, 0, 65536, 1 << 30)
    f(); f()
    print("child", answer, written(), flush=True)
    os._exit(0)
os.wait()
f()
print("parent", written())
""",
    )
    assert done.stdout.splitlines() == ["child (1, False) 2", "parent 2"], done.stderr
    assert len(list((tmp_path / "session" / "raw").glob("*.head"))) == 2


def test_hooks_without_a_log_let_calls_through() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from profilemate import _native as n; print(n.Hook(len, 'x', kind=n.SPAN)([1]))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "1\n"


def test_a_hook_keeps_no_argument_and_no_result(tmp_path: Path) -> None:
    done = record(
        tmp_path,
        """
import gc, weakref
class Thing: pass
f = hooked(lambda thing: thing, before=lambda thing: None, after=lambda result, thing: None)
thing = Thing()
counts = []
for _ in range(1000):
    f(thing)
    counts.append(sys.getrefcount(thing))
print(min(counts) == max(counts))
reference = weakref.ref(thing); del thing
print(reference() is None)
""",
    )
    assert done.stdout.split() == ["True", "True"], done.stderr


def test_outputs_are_counted_as_vllm_makes_them(tmp_path: Path) -> None:
    done = record(
        tmp_path,
        """
import collections
class Output:
    def __init__(self, tokens): self.new_token_ids = tokens
class Outputs:
    def __init__(self, outputs): self.timestamp, self.outputs = 1.5, outputs
class Scheduler:
    finished_req_ids = ()
scheduler = Scheduler()
setattr(scheduler, n.BOOKS, n.SchedulerBooks())
update = hooked(lambda scheduler, outputs: outputs, kind=n.CALL, after=n.after_update_from_output)
outputs = collections.defaultdict(Outputs)
outputs[0] = Outputs([Output([1]), Output([1, 2])])
outputs[3] = Outputs([])
update(scheduler, outputs)
print(written())
update(scheduler, None)
update(scheduler, {0: Outputs([object()])})
print(update.failures)
""",
    )
    assert done.stdout.split() == ["2", "1"], done.stderr
    assert "new_token_ids" in done.stderr


def test_a_signal_that_comes_while_an_extractor_reads_is_vllms(tmp_path: Path) -> None:
    done = record(
        tmp_path,
        """
class Output:
    @property
    def external_req_id(self): raise KeyboardInterrupt
f = hooked(lambda processor, request: 1, kind=n.CALL, before=n.before_processor_add_request)
for _ in range(5):
    try: f(None, Output())
    except KeyboardInterrupt: print("interrupted")
print(f.failures)
""",
    )
    assert done.stdout.split() == 5 * ["interrupted"] + ["0"], done.stderr


def test_native_extractors_take_arguments_by_name_too(tmp_path: Path) -> None:
    done = record(
        tmp_path,
        """
f = hooked(lambda self, **named: None, before=n.before_process_outputs)
f(None, engine_core_outputs=[1, 2], engine_core_timestamp=2.5)
f(None, engine_core_outputs=[], something_new=3)
print(written(), f.failures)
f(None, something_new=3)
print(written(), f.failures)
""",
    )
    assert done.stdout.split() == ["2", "0", "2", "1"], done.stderr


def test_many_threads_hammering_one_hook_lose_no_call() -> None:
    total = 4 * 2000
    calls: list[int] = []
    hook = _native.Hook(calls.append, "hammer", kind=_native.SPAN)

    def hammer() -> None:
        for i in range(2000):
            hook(i)

    threads = [threading.Thread(target=hammer) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == total


def test_settings_come_from_rust() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import json; from profilemate import _native as n; print(json.dumps(n.settings()))",
        ],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PROFILEMATE_LOG_INTERVAL": "0", "VLLM_PROFILING_VERBOSE": "1"},
    )
    values, problems = json.loads(done.stdout)
    assert (values["log_interval"], values["verbose"]) == (100, True)
    assert problems == ['PROFILEMATE_LOG_INTERVAL="0" is not a whole number of at least 1; using 100']


def test_signals_are_not_ours() -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    code = "import signal; print([str(signal.getsignal(s)) for s in (signal.SIGTERM, signal.SIGINT)])"
    plain = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ours = subprocess.run(
        [sys.executable, "-c", "from profilemate import _native; " + code],
        capture_output=True,
        text=True,
        check=True,
    )
    assert plain.stdout.split(" at ")[0] == ours.stdout.split(" at ")[0]
    assert handlers == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
