"""What runs when this Python starts: whose `sitecustomize` it is, and whether ours comes to its turn.

It is tried: Python is started as it is and with our folder in front, and imports a module named as vLLM's scheduler.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parents[1] / "sitecustomize"
_LIMIT_SECONDS = 120

#: Instrumentations that begin in a `sitecustomize` of their own: name, module, distribution.
_INSTRUMENTATIONS = {
    "OpenTelemetry": ("opentelemetry.instrumentation.auto_instrumentation", "opentelemetry-instrumentation"),
    "Datadog (ddtrace)": ("ddtrace.bootstrap", "ddtrace"),
    "New Relic": ("newrelic.bootstrap", "newrelic"),
}

_TRY = """
import json, sys
sys.path.insert(0, sys.argv[1])
try:
    from vllm.v1.core.sched.scheduler import Scheduler
    attaches = type(vars(Scheduler)["schedule"]).__name__ == "Hook"
except Exception:
    attaches = False
print("\\n" + json.dumps({"attaches": attaches, "loaded": [name for name in sys.argv[2:] if name in sys.modules]}))
"""


@dataclass
class Customization:
    """A folder with a `sitecustomize`."""

    folder: str
    whose: str
    #: Its place among them: `before` ours, `ours`, or `after` it.
    place: str


@dataclass
class Startup:
    """What was found."""

    #: In the order in which Python looks for them. It runs the first one.
    customizations: list[Customization] = field(default_factory=list)
    #: Instrumentations: name → `loaded` at the start, or `installed`.
    instrumentations: dict[str, str] = field(default_factory=dict)
    #: Whether our folder is on PYTHONPATH.
    on_path: bool = False
    #: Whether a Python that starts in this environment attaches.
    attaches: bool = False
    #: Whether it does under `profilemate run`.
    attaches_under_run: bool = False
    #: Whether vLLM of this Python would load us as a plugin.
    is_plugin: bool = False
    problem: str | None = None
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For a person."""
        lines = [f"sitecustomize of {one.whose} ({one.folder}): {self._fate(one)}" for one in self.customizations]
        for name, state in self.instrumentations.items():
            lines.append(
                f"{name}: {'loaded when Python starts' if state == 'loaded' else 'installed, not loaded'}"
            )
        here = "attaches" if self.attaches else "does not attach"
        why = "" if self.on_path else " (our folder is not on PYTHONPATH)"
        lines.append(f"a vLLM that is started here {here}{why}")
        lines.append(f"`profilemate run` {'attaches' if self.attaches_under_run else 'does not attach'}")
        plugin = "installed: attaches where PROFILEMATE_ENABLE=1" if self.is_plugin else "not used"
        lines.append(f"vLLM's plugin is {plugin}")
        return lines

    def _fate(self, one: Customization) -> str:
        if one.place == "ours":
            return "runs" if self.attaches else "does not run"
        if one.place == "before":
            return "comes before ours and runs it" if self.attaches else "runs in place of ours"
        return "ours runs it" if self.on_path else "runs; under `profilemate run`, ours runs it"


def examine() -> Startup:
    """Looks at the environment and tries it."""
    found = Startup()
    entries = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    found.on_path = any(Path(entry).resolve() == HERE for entry in entries)
    found.customizations = _customizations(entries, found.on_path)
    modules = {module: name for name, (module, _) in _INSTRUMENTATIONS.items()}
    found.attaches, loaded = _try(os.environ.get("PYTHONPATH", ""), list(modules))
    found.attaches_under_run, loaded_under_run = _try(os.pathsep.join([str(HERE), *entries]), list(modules))
    for name, (module, distribution) in _INSTRUMENTATIONS.items():
        if module in loaded or module in loaded_under_run:
            found.instrumentations[name] = "loaded"
        elif _is_installed(distribution):
            found.instrumentations[name] = "installed"
    found.is_plugin = _is_plugin()
    _judge(found)
    return found


def _customizations(entries: list[str], on_path: bool) -> list[Customization]:
    """The folders that Python looks into, as it was started: this file's own is not one of them."""
    found, place = [], "before" if on_path else "after"
    # Some take their folder off the path once they have run.
    for entry in dict.fromkeys(os.path.abspath(entry) for entry in (*entries, *sys.path[1:])):
        if not (Path(entry) / "sitecustomize.py").is_file():
            continue
        if Path(entry).resolve() == HERE:
            found.append(Customization(entry, "ProfileMate", "ours"))
            place = "after"
        else:
            found.append(Customization(entry, _whose(entry), place))
    return found


def _whose(folder: str) -> str:
    for name, (module, _) in _INSTRUMENTATIONS.items():
        if Path(folder).parts[-module.count(".") - 1 :] == tuple(module.split(".")):
            return name
    return "somebody else"


def _try(python_path: str, modules: list[str]) -> tuple[bool, list[str]]:
    with tempfile.TemporaryDirectory(prefix="profilemate-doctor-") as folder:
        stub = Path(folder, "vllm", "v1", "core", "sched")
        stub.mkdir(parents=True)
        for package in (stub, *stub.parents[:3]):
            (package / "__init__.py").touch()
        (stub / "scheduler.py").write_text("class Scheduler:\n    def schedule(self):\n        pass\n")
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PROFILEMATE_")},
            "PYTHONPATH": python_path,
            # Nothing is recorded: no part of vLLM begins in it.
            "PROFILEMATE_ENABLE": "1",
            "PROFILEMATE_COLLECTOR": "none",
            "PROFILEMATE_OUTPUT_DIR": folder,
        }
        try:
            done = subprocess.run(
                [sys.executable, "-c", _TRY, folder, *modules],
                capture_output=True,
                text=True,
                env=environment,
                timeout=_LIMIT_SECONDS,
                check=False,
            )
            said = json.loads(done.stdout.strip().rpartition("\n")[2])
        except (OSError, subprocess.TimeoutExpired, ValueError):
            return False, []
    return bool(said["attaches"]), list(said["loaded"])


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _is_plugin() -> bool:
    plugins = os.environ.get("VLLM_PLUGINS")
    if plugins is not None and "profilemate" not in plugins.split(","):
        return False
    points = importlib.metadata.entry_points(group="vllm.general_plugins")
    return any(point.name == "profilemate" for point in points)


def _judge(found: Startup) -> None:
    before = [one for one in found.customizations if one.place == "before"]
    if not found.attaches_under_run:
        found.problem = (
            "Python does not run our sitecustomize even with our folder in front (PYTHONPATH is not looked at, or "
            "something else takes the import of vLLM): only the plugin attaches, with PROFILEMATE_ENABLE=1"
        )
    elif found.on_path and not found.attaches and before:
        found.problem = (
            f"{before[0].folder} is on PYTHONPATH before us and has a sitecustomize.py of its own, which runs in "
            "place of ours: put the folder that `profilemate path` prints in front of it (ours runs the other one too)"
        )
    elif found.on_path and not found.attaches:
        found.problem = "our folder is on PYTHONPATH, and Python does not run what is in it"
    plugins = os.environ.get("VLLM_PLUGINS")
    if plugins is not None and "profilemate" not in plugins.split(","):
        found.notes.append(
            "VLLM_PLUGINS is set without profilemate: vLLM will not load us as a plugin, so only PYTHONPATH or "
            "`profilemate run` attaches"
        )
