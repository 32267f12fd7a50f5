"""What a hook is, and how it is put in place.

A probe (`profilemate.probes`) describes its hooks as data. Where vLLM moved or renamed a function between versions, a
hook names every place it has been at, and the first one that exists is taken: capabilities are probed, versions are not
asked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import FunctionType, ModuleType
from typing import Any

from profilemate import _native


@dataclass(frozen=True)
class HookSpec:
    """One function of vLLM that we stand in for."""

    #: Semantic name: what the function is to us, in every version.
    name: str
    #: Where it may be: `module:Class.method`, in the order of preference.
    places: tuple[str, ...]
    #: Profilers that need it; with all of them off it is not attached. Empty: always attached.
    profilers: tuple[str, ...] = ()
    kind: int = _native.SPAN
    lane: int = _native.FRONT_END
    #: What it marks on the GPU's clock, where there is one (`_native.MARK_*`).
    marks: int = 0
    #: Name of the span that is recorded.
    span: str = ""
    context: str = ""
    #: Functions that call one another for the same thing share a group, so that it is recorded once.
    group: str = ""
    closes_step: bool = False
    needs_step: bool = False
    #: What reads the call: of those that run in every step, native ones.
    before: Callable[..., Any] | _native.Extractor | None = None
    after: Callable[..., Any] | _native.Extractor | _native.Dispatch | None = None
    #: Name of the hook whose sum this one writes.
    accumulator: str | None = None
    #: Attach at every place that exists (an override and what it overrides), not at the first one only.
    everywhere: bool = False
    #: Attach with this setting of `timing` only.
    timing: str | None = None
    #: Not there in every version: its absence is not worth a word.
    optional: bool = False
    #: What vLLM does instead in the versions that do not have it, and what that costs the user.
    without: str = ""
    #: The hook that does its work there, if one does.
    stand_in: str = ""
    #: Put in place only where the hook of this name finds nothing.
    instead_of: str = ""

    def modules(self) -> set[str]:
        """The modules that it may be in."""
        return {place.partition(":")[0] for place in self.places}


@dataclass(frozen=True)
class Reads:
    """What a probe reads of a class of vLLM, or of the arguments of a function.

    Said for `profilemate doctor` and the table of versions (`docs/versions.md`), which check it against vLLM's sources;
    nothing that records looks at it.
    """

    #: `module:Class`, or `module:function()` for its parameters and variables, of which `name@2` is the parameter in
    #: that place: where it may be, in the order of preference.
    owners: tuple[str, ...]
    names: tuple[str, ...]
    #: Semantic names of the hooks in which it is read; one of them must be attached for it to be read at all.
    hooks: tuple[str, ...]
    #: One of the names is enough: they are what it was called in different versions.
    one_of: bool = False
    #: What it costs the user where a version does not have it. Empty: every version has it, or the hook fails.
    without: str = ""


@dataclass
class Attached:
    """What became of the hooks in this process."""

    #: Semantic name → the places where it is attached.
    places: dict[str, list[str]] = field(default_factory=dict)
    #: Semantic name → why it is not attached, for those whose module was imported.
    absent: dict[str, str] = field(default_factory=dict)
    #: The hook objects, by semantic name: the newest of each.
    objects: dict[str, Any] = field(default_factory=dict)
    _groups: dict[str, int] = field(default_factory=dict)

    def group_number(self, name: str) -> int:
        """The number of a group in this process, from 1."""
        return self._groups.setdefault(name, len(self._groups) + 1)

    def attach(self, spec: HookSpec, module: ModuleType) -> str | None:
        """Attaches a hook in a module that was just imported. Returns the places there, or `None` if there are none."""
        if spec.name in self.places and not spec.everywhere:
            return None
        attached: list[str] = []
        for place in spec.places:
            module_name, _, path = place.partition(":")
            if module_name != module.__name__:
                continue
            found = _find(module, path)
            if found is None:
                if spec.name not in self.places:
                    self.absent[spec.name] = f"{module_name} has no {path}"
                continue
            owner, attribute, function = found
            if isinstance(function, _native.Hook):
                if spec.everywhere:
                    continue
                return None
            accumulator = self.objects.get(spec.accumulator) if spec.accumulator else None
            hook = _native.Hook(
                function,
                spec.name,
                kind=spec.kind,
                span=spec.span,
                context=spec.context,
                lane=spec.lane,
                marks=spec.marks,
                group=self.group_number(spec.group or spec.name),
                closes_step=spec.closes_step,
                needs_step=spec.needs_step,
                before=spec.before,
                after=spec.after,
                accumulator=accumulator,
            )
            setattr(owner, attribute, hook)
            self.objects[spec.name] = hook
            self.places.setdefault(spec.name, []).append(place)
            self.absent.pop(spec.name, None)
            attached.append(place)
            if not spec.everywhere:
                break
        return ", ".join(attached) or None


def _find(module: ModuleType, path: str) -> tuple[Any, str, Any] | None:
    """The owner, the name and the function at a path in a module; `None` if there is no plain function there.

    A method counts only where its class defines it: an inherited one is hooked at the class it comes from.
    """
    *owners, attribute = path.split(".")
    owner: Any = module
    for name in owners:
        owner = getattr(owner, name, None)
        if owner is None:
            return None
    function = vars(owner).get(attribute)
    if isinstance(function, FunctionType | _native.Hook):
        return owner, attribute, function
    return None
