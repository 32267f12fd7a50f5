"""docs/versions.md: which hook attaches in which release of vLLM, and what a release does not have."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from profilemate import compatibility
from profilemate.compatibility import Fit
from profilemate.hooks import HookSpec, Reads
from profilemate.known_versions import Known

ATTACHES, CHANGED, NOT_NEEDED, ABSENT = "●", "△", "○", "✕"

HEAD = f"""\
# Versions of vLLM

<!-- Made by `make versions` (scripts/check_versions.py --write); do not edit. -->

Every hook against the sources of vLLM {{first}} and of the last release of each minor version up to {{last}}:
whether its function is there and takes what our probe expects, and whether what the probe reads of vLLM's objects
is there. What attaches to the vLLM that you have is said by [`profilemate doctor`](doctor.md). Runs of some of
these releases, with tables held against vLLM's own counters, are in `benches/results/` (`scripts/version_runs.sh`).

| sign | meaning |
| --- | --- |
| {ATTACHES} | attaches; the function is that of the column before, or this is the first one |
| {CHANGED} | attaches; the function has changed since the column before |
| {NOT_NEEDED} | not needed: what it stands in for attaches |
| {ABSENT} | absent; why, and what that costs, stands below the table |

A column `.20` is the last release of 0.20. The releases: {{releases}}.

## How this is made

- `make versions` reads the releases again and writes this page, and the fingerprints of all hooked functions, to be
  kept (`python/profilemate/probes/known_versions.json`). `NEWER=1` looks for newer releases first. It fails when a
  probe does not fit a release, or a hook attaches nowhere and does not say why.
- `make check-versions` looks for a release that is newer than these, and fails with a diff of each hooked function
  that changed in it. `python scripts/check_versions.py --diff OLD NEW` does that for two releases.
- A test holds the probes, what is kept and this page together, without a network.

The sources are the Python files in the wheels of `vllm` that are published (those of its CPU builds are the same
files). `uv` says where a wheel is; of its hundreds of megabytes only the modules that a probe names are read, by
range requests, and kept in a cache. Nothing is installed or imported. A fingerprint is of what a function does:
comments, docstrings and layout do not count.
"""


def text(known: Known, specs: Sequence[HookSpec], reads: Sequence[Reads]) -> str:
    """The page."""
    fits = [compatibility.fit(specs, reads, known.release(version)) for version in known.releases]
    pages = [
        HEAD.format(first=known.releases[0], last=known.releases[-1], releases=", ".join(known.releases)),
    ]
    hooks = list(zip(*fits, strict=True))
    components: dict[str, list[tuple[Fit, ...]]] = {}
    for hook in hooks:
        components.setdefault(hook[0].spec.name.partition(".")[0], []).append(hook)
    pages += [_component(name, of_it, known) for name, of_it in components.items()]
    pages.append(_lacks(hooks, known))
    pages.append(_read(reads))
    return "\n".join(pages)


def _component(name: str, hooks: list[tuple[Fit, ...]], known: Known) -> str:
    columns = [version.split(".", 1)[1].rpartition(".")[0] for version in known.releases]
    # Two releases of one minor version are told by the whole of it.
    heads = [
        f".{column}" if columns.count(column) == 1 else "." + version.split(".", 1)[1]
        for column, version in zip(columns, known.releases, strict=True)
    ]
    lines = [f"## {name}", "", f"| hook | {' | '.join(heads)} |", f"| --- {'| :-: ' * len(heads)}|"]
    lines += [f"| `{hook[0].spec.name}` | {' | '.join(_signs(hook))} |" for hook in hooks]
    lines += ["", *_places(hooks, known), ""]
    return "\n".join(lines)


def _signs(hook: tuple[Fit, ...]) -> list[str]:
    signs: list[str] = []
    before: list[str] | None = None
    for one in hook:
        if not one.attaches:
            signs.append(ABSENT if one.is_needed else NOT_NEEDED)
            continue
        prints = [function.fingerprint for function in one.functions]
        signs.append(ATTACHES if before in (None, prints) else CHANGED)
        before = prints
    return signs


def _places(hooks: list[tuple[Fit, ...]], known: Known) -> list[str]:
    lines = []
    for hook in hooks:
        states, start = [], 0
        for (places, reason), group in groupby(hook, key=lambda one: (tuple(one.places), one.reason)):
            end = start + len(list(group))
            when = "in all" if end - start == len(hook) else _span(known.releases, start, end)
            states.append(f"{when}: {_state(hook[start], places, reason)}")
            start = end
        name = f"- `{hook[0].spec.name}`{_needed_by(hook[0].spec)}"
        lines += [f"{name}, {states[0]}"] if len(states) == 1 else [name, *(f"  - {state}" for state in states)]
    return lines


def _state(one: Fit, places: Sequence[str], reason: str | None) -> str:
    if places:
        return ", ".join(f"`{place}`" for place in places)
    if not one.is_needed:
        return f"not needed: {reason}."
    return f"absent: {reason}. {one.spec.without or 'Not explained'}."


def _needed_by(spec: HookSpec) -> str:
    return f" (for {', '.join(f'`{profiler}`' for profiler in spec.profilers)})" if spec.profilers else ""


def _span(releases: Sequence[str], start: int, end: int) -> str:
    first, last = releases[start], releases[end - 1]
    return first if first == last else f"{first} to {last}"


def _lacks(hooks: Iterable[tuple[Fit, ...]], known: Known) -> str:
    lines = [
        "## What a release does not have",
        "",
        "Attributes and parameters that a probe does without, and what that costs.",
        "",
        "| what | releases | read by | without it |",
        "| --- | --- | --- | --- |",
    ]
    for hook in hooks:
        missing: dict[tuple[str, str], list[int]] = {}
        for number, one in enumerate(hook):
            for lack in one.lacks:
                missing.setdefault(lack, []).append(number)
        for (what, cost), numbers in missing.items():
            spans = []
            for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
                run_numbers = [number for _, number in run]
                spans.append(_span(known.releases, run_numbers[0], run_numbers[-1] + 1))
            lines.append(f"| {what} | {', '.join(spans)} | `{hook[0].spec.name}` | {cost} |")
    return "\n".join([*lines, ""])


def _read(reads: Sequence[Reads]) -> str:
    lines = [
        "## What is read in every release",
        "",
        "A release without one of these does not fit. `a` or `b`: what it was called in different releases.",
        "",
        "| of | what |",
        "| --- | --- |",
    ]
    required: dict[str, list[str]] = {}
    for one in reads:
        if not one.without:
            names = [f"`{name}`" for name in one.names]
            required.setdefault(" or ".join(f"`{owner}`" for owner in one.owners), []).extend(
                [" or ".join(names)] if one.one_of else names
            )
    lines += [f"| {owner} | {', '.join(dict.fromkeys(names))} |" for owner, names in required.items()]
    return "\n".join([*lines, ""])
