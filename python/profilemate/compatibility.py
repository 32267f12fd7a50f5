"""What of our hooks fits a vLLM: where each attaches, whether its function and vLLM's objects are as the probe expects.

One set of rules for `profilemate doctor` (the installed vLLM) and for the table of versions (`docs/versions.md`).
Never loaded inside vLLM.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from profilemate.hooks import HookSpec, Reads
from profilemate.vllm_source import Function


class Vllm(Protocol):
    """One vLLM: its sources, or what was kept of them."""

    def function(self, place: str) -> Function | str:
        """The function at a place, or why no hook can be put there."""

    def names(self, owner: str) -> Container[str] | None:
        """What a class or a function has; `None` if there is no such owner."""


@dataclass
class Fit:
    """How one hook fits."""

    spec: HookSpec
    #: Where it attaches: one place, or every one that is there if it wants them all.
    places: list[str] = field(default_factory=list)
    #: Of the functions there.
    functions: list[Function] = field(default_factory=list)
    #: Why it attaches nowhere.
    reason: str | None = None
    #: Whether it would be put in place at all: one that stands in for another is not, where that one attaches.
    is_needed: bool = True
    #: What is not as its adapter needs it: it attaches, and then fails.
    problems: list[str] = field(default_factory=list)
    #: What this version does not have and the adapter does without: what is missing, and what that costs.
    lacks: list[tuple[str, str]] = field(default_factory=list)

    @property
    def attaches(self) -> bool:
        return bool(self.places)


def fit(specs: Iterable[HookSpec], reads: Iterable[Reads], vllm: Vllm) -> list[Fit]:
    """How every hook fits."""
    fits = [_fit(spec, vllm) for spec in specs]
    by_name = {one.spec.name: one for one in fits}
    for found in fits:
        instead_of = by_name.get(found.spec.instead_of)
        if instead_of is not None and instead_of.attaches:
            found.places, found.functions, found.problems = [], [], []
            found.is_needed = False
            found.reason = f"{found.spec.instead_of} attaches, which does its work"
    for one in reads:
        attached = [by_name[hook] for hook in one.hooks if hook in by_name and by_name[hook].attaches]
        if not attached:
            continue
        for missing in _missing(one, vllm):
            if one.without:
                attached[0].lacks.append((missing, one.without))
            else:
                attached[0].problems.append(missing)
    return fits


def _fit(spec: HookSpec, vllm: Vllm) -> Fit:
    found, reasons = Fit(spec), []
    for place in spec.places:
        function = vllm.function(place)
        if isinstance(function, str):
            reasons.append(function)
            continue
        found.places.append(place)
        found.functions.append(function)
        found.problems += [f"{place}: {problem}" for problem in argument_problems(spec, place, function)]
        if not spec.everywhere:
            break
    if not found.places:
        found.reason = "; ".join(dict.fromkeys(reasons))
    return found


def _missing(reads: Reads, vllm: Vllm) -> list[str]:
    for owner in reads.owners:
        there = vllm.names(owner)
        if there is not None:
            missing = [name for name in reads.names if name not in there]
            if reads.one_of:
                missing = [" or ".join(reads.names)] if len(missing) == len(reads.names) else []
            return [f"{owner} has no {name}" for name in missing]
    return [f"there is no {' or '.join(reads.owners)}"]


def argument_problems(spec: HookSpec, place: str, function: Function) -> list[str]:
    """What the adapter of a hook, which is called with the arguments of vLLM's function, does not expect.

    Its own parameters say what it expects: a name without a leading `_` is read, at this position or by this name.
    """
    if function.is_coroutine:
        return ["is a coroutine"]
    if not callable(spec.before):
        # What a native extractor takes is among the `Reads`.
        return []
    ours = list(_signature(spec.before).parameters.values())
    positional = [one for one in ours if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    takes_more = any(one.kind is one.VAR_POSITIONAL for one in ours)
    takes_keywords = any(one.kind is one.VAR_KEYWORD for one in ours)
    theirs, keywords = _split(function.parameters)
    is_method = "." in place.partition(":")[2]
    problems = []
    for position, one in enumerate(positional):
        if (position == 0 and is_method) or one.name.startswith("_"):
            continue
        there = theirs[position] if position < len(theirs) else None
        if there is None and one.default is not one.empty:
            continue
        if there != one.name and one.name not in keywords:
            problems.append(f"takes {there or 'nothing'} where {one.name} is expected")
    if not takes_more and len(theirs) > len(positional):
        problems.append(f"takes {', '.join(theirs[len(positional) :])} more than expected")
    if not takes_keywords:
        known = {one.name for one in ours}
        unknown = [name for name in keywords if name not in known]
        if unknown:
            problems.append(f"takes {', '.join(unknown)} more than expected")
    return problems


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(function)


def _split(parameters: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Names that may be given by position, and those that are given by keyword only."""
    positional: list[str] = []
    keywords: list[str] = []
    into = positional
    for parameter in parameters:
        if parameter.startswith("*"):
            into = keywords
        else:
            into.append(parameter.rstrip("="))
    return positional, keywords
