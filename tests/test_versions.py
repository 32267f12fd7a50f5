"""Table of versions, what is kept of the releases and the probes belong together; what moved in a release is said."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import re
import textwrap
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

import check_versions
import versions_table
from profilemate import compatibility, known_versions, vllm_source
from profilemate.hooks import HookSpec, Reads
from profilemate.probes import READS
from profilemate.vllm_source import Sources

ROOT = Path(__file__).parents[1]
PROBES = ROOT / "python" / "profilemate" / "probes"
EXTRACTORS = ROOT / "crates" / "python" / "src"
#: Probes that ask the modules of a model, whose classes are hundreds, for whatever they have.
ASK_MODELS = {"encoder", "layers", "moe_experts"}
#: Attributes that are not vLLM's: of an `Enum`, of Python's functions and collections, of torch and numpy, ours.
NOT_VLLMS = {
    *("_name_", "_value_", "name", "generation", "collected", "uncollectable", "graph_pool_handle"),
    *("self", "output", "result", "update", "values", "tobytes", "all", "num_alloc_retries", "num_ooms"),
    *("_cuda_memoryStats", "cudaMemGetInfo", "cudart"),
    *("__code__", "__func__", "__len__", "__mro__", "co_argcount", "co_consts", "co_names", "co_nlocals"),
}

KNOWN = known_versions.load()


def test_what_is_kept_and_the_table_are_of_the_probes_as_they_are() -> None:
    table = (ROOT / "docs" / "versions.md").read_text(encoding="utf-8")
    assert list(check_versions.inconsistencies(KNOWN, table)) == []


def test_every_hook_attaches_in_every_release_or_says_why_not() -> None:
    assert list(check_versions.misfits(KNOWN)) == []
    assert KNOWN.releases[0] == "0.11.0"
    minors = {version.rpartition(".")[0] for version in KNOWN.releases}
    assert minors == {f"0.{minor}" for minor in range(11, 11 + len(minors))}, "no minor version is left out"


@pytest.mark.parametrize("what", ["place", "attribute", "class"])
def test_a_probe_that_names_something_new_needs_the_table_made_again(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = (ROOT / "docs" / "versions.md").read_text(encoding="utf-8")
    scheduler = "vllm.v1.core.sched.scheduler:Scheduler"
    if what == "place":
        spec = HookSpec(name="scheduler.new", places=(f"{scheduler}.something_new",))
        monkeypatch.setattr(check_versions, "SPECS", (*check_versions.SPECS, spec))
    else:
        owner = scheduler if what == "attribute" else "vllm.v1.core.sched.new:Scheduler"
        new = Reads((owner,), ("something_new",), ("scheduler.schedule",))
        monkeypatch.setattr(check_versions, "READS", (*READS, new))
    (problem,) = check_versions.inconsistencies(KNOWN, table)
    assert problem.endswith("run `make versions`")


def test_an_absent_hook_that_does_not_say_why_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = [replace(spec, without="") for spec in check_versions.SPECS]
    monkeypatch.setattr(check_versions, "SPECS", silent)
    problems = list(check_versions.misfits(KNOWN))
    assert any(problem.startswith("scheduler.preempt_request attaches nowhere (") for problem in problems)
    assert "Not explained" in versions_table.text(KNOWN, silent, READS)


# --- nothing is read that is not said to be read


def _declared() -> set[str]:
    return {name.partition("@")[0] for one in READS for name in one.names}


def test_what_native_extractors_read_is_declared() -> None:
    read: dict[str, str] = {}
    for file in [*sorted((EXTRACTORS / "extract").glob("*.rs")), EXTRACTORS / "calls.rs"]:
        for name in re.findall(r'name!\([^"]*?"(\w+)"\)', file.read_text(encoding="utf-8")):
            read.setdefault(name, file.name)
    assert len(read) > 40
    undeclared = {name: file for name, file in read.items() if name not in _declared() | NOT_VLLMS}
    assert undeclared == {}, "add a Reads with the class of vLLM to the probe of that component"


def _asked_by_name(tree: ast.AST) -> set[str]:
    """Names in `getattr(x, "name")`, `hasattr(x, "name")`, `kwargs.get("name")` and in loops over such names."""
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        position = None
        if isinstance(function, ast.Name) and function.id in ("getattr", "hasattr"):
            position = 1
        elif (
            isinstance(function, ast.Attribute)
            and function.attr == "get"
            and isinstance(function.value, ast.Name)
            and function.value.id == "kwargs"
        ):
            position = 0
        if position is None or len(node.args) <= position:
            continue
        name = node.args[position]
        if isinstance(name, ast.Constant) and isinstance(name.value, str):
            found.add(name.value)
    return found


@pytest.mark.parametrize("file", sorted(PROBES.glob("*.py")), ids=lambda file: file.stem)
def test_what_probes_ask_for_by_name_is_declared(file: Path) -> None:
    if file.stem in ASK_MODELS:
        assert importlib.import_module(f"profilemate.probes.{file.stem}").READS
        return
    asked = _asked_by_name(ast.parse(file.read_text(encoding="utf-8")))
    assert asked - _declared() - NOT_VLLMS == set(), "add a Reads with the class of vLLM to READS of this file"


# --- the rules


def made_up(**modules: str) -> Sources:
    """Sources of a vLLM of a few lines: module name with `__` for dots → source."""
    texts = {f"vllm.{name.replace('__', '.')}": textwrap.dedent(source) for name, source in modules.items()}
    return Sources(lambda module: texts[module].encode() if module in texts else None)


OLD = """
    class Base:
        limit: int = 3
    class Scheduler(Base):
        def __init__(self, config):
            self.config = config
            self.queue, self.other = [], ()
        def schedule(self, batch, *, fast=False):
            '''Schedules.'''
            # A comment.
            return [batch, fast]
        @property
        def depth(self): return 1
"""
SAME = """
    class Base:
        limit: int = 3
    class Scheduler(Base):
        def __init__(self, config):
            self.config = config
            (self.queue, self.other) = ([], ())
        def schedule(self, batch, *, fast=False):
            return [
                batch, fast,
            ]
"""


def test_a_fingerprint_is_of_what_a_function_does() -> None:
    place = "vllm.core:Scheduler.schedule"
    old, same = made_up(core=OLD).function(place), made_up(core=SAME).function(place)
    other = made_up(core=OLD.replace("[batch, fast]", "[fast, batch]")).function(place)
    assert isinstance(old, vllm_source.Function) and isinstance(other, vllm_source.Function)
    assert old == same
    assert old.fingerprint != other.fingerprint
    assert old.parameters == ("self", "batch", "*", "fast=")


def test_what_a_class_has_is_found_wherever_it_is_assigned() -> None:
    sources = made_up(
        core=OLD,
        package="from .part import Moved\n",
        package__part="from vllm.core import Scheduler\nclass Moved(Scheduler):\n    extra = 1\n",
    )
    scheduler = {"limit", "__init__", "config", "queue", "other", "schedule", "depth"}
    assert sources.names("vllm.core:Scheduler") == frozenset(scheduler)
    moved = sources.names("vllm.package:Moved")
    assert moved is not None and {"extra", "queue", "limit"} <= moved
    assert sources.names("vllm.core:Scheduler.schedule()") == frozenset(
        {"self", "self@0", "batch", "batch@1", "fast"}
    )
    assert sources.names("vllm.core:Nobody") is None


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("vllm.gone:Scheduler.schedule", "there is no vllm.gone"),
        ("vllm.core:Planner.schedule", "vllm.core has no Planner"),
        ("vllm.core:Scheduler.plan", "vllm.core has no Scheduler.plan"),
        ("vllm.core:Scheduler.depth", "Scheduler.depth in vllm.core is no plain function"),
    ],
)
def test_why_a_hook_cannot_be_put_there_is_said(place: str, reason: str) -> None:
    assert made_up(core=OLD).function(place) == reason


@pytest.mark.parametrize(
    ("theirs", "problem"),
    [
        ("def f(self, request, index=0): pass", None),
        ("def f(self, other): pass", "takes other where request is expected"),
        ("def f(self): pass", "takes nothing where request is expected"),
        ("def f(self, request, index, extra): pass", "takes extra more than expected"),
        ("def f(self, request, index, *, extra=1): pass", "takes extra more than expected"),
        ("async def f(self, request, index): pass", "is a coroutine"),
    ],
)
def test_arguments_are_held_against_what_the_adapter_takes(theirs: str, problem: str | None) -> None:
    def before(_owner: object, request: object, index: int = 0) -> None:
        """What a probe would read."""

    spec = HookSpec(name="x", places=("vllm.core:C.f",), before=before)
    (fit,) = compatibility.fit([spec], [], made_up(core=f"class C:\n    {theirs}\n"))
    assert fit.problems == ([] if problem is None else [f"vllm.core:C.f: {problem}"])


# --- a new release


def test_what_moved_in_a_release_is_said_with_a_diff(monkeypatch: pytest.MonkeyPatch) -> None:
    place = "vllm.core:Scheduler.schedule"
    specs = [
        HookSpec(name="schedule", places=(place,)),
        HookSpec(name="init", places=("vllm.core:Scheduler.__init__",)),
    ]
    reads = [Reads(("vllm.core:Scheduler",), ("queue",), ("init",))]
    monkeypatch.setattr(check_versions, "SPECS", specs)
    monkeypatch.setattr(check_versions, "READS", reads)
    old = made_up(core=OLD)
    assert list(check_versions.moved("0.1", old, "0.2", made_up(core=SAME))) == []
    changed = OLD.replace("self.queue", "self.requests").replace(
        "def schedule(self, batch,", "def plan(self, batch,"
    )
    said = list(check_versions.moved("0.1", old, "0.2", made_up(core=changed)))
    assert said == [
        f"schedule: attaches to {place} in 0.1, absent (vllm.core has no Scheduler.schedule) in 0.2",
        "init: vllm.core:Scheduler has no queue in 0.2",
        "init: vllm.core:Scheduler.__init__ is another function in 0.2 than in 0.1",
        """\
--- 0.1 vllm.core:Scheduler.__init__
+++ 0.2 vllm.core:Scheduler.__init__
@@ -1,3 +1,3 @@
     def __init__(self, config):
         self.config = config
-        self.queue, self.other = [], ()
+        self.requests, self.other = [], ()
""",
    ]


def test_the_installed_vllm_is_the_release_that_was_read() -> None:
    found = find_spec("vllm")
    version = importlib.metadata.version("vllm").partition("+")[0]
    assert found is not None and found.origin is not None
    if version not in KNOWN.releases:
        pytest.skip(f"docs/versions.md does not have {version}")
    installed = vllm_source.installed(Path(found.origin).parent)
    ours = compatibility.fit(check_versions.SPECS, READS, installed)
    kept = compatibility.fit(check_versions.SPECS, READS, KNOWN.release(version))
    for here, there in zip(ours, kept, strict=True):
        assert (here.places, here.functions, here.problems, here.lacks) == (
            *(there.places, there.functions),
            *(there.problems, there.lacks),
        ), here.spec.name
