"""What is kept of the vLLM releases that were read: `probes/known_versions.json`, by `scripts/check_versions.py`.

Never loaded inside vLLM.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from profilemate.hooks import HookSpec, Reads
from profilemate.vllm_source import Function, Sources

FILE = Path(__file__).parent / "probes" / "known_versions.json"

#: What is kept of a function or an owner, for releases that follow one another: first, last, and what they have.
Run = dict[str, Any]


class NotKeptError(Exception):
    """A probe names something that was not looked up in the releases."""


@dataclass
class Release:
    """One release, as `compatibility.fit` asks for it."""

    known: Known
    number: int

    def function(self, place: str) -> Function | str:
        run = self.known.run(self.known.functions, place, self.number)
        if "absent" in run:
            return str(run["absent"])
        return Function(run["fingerprint"], tuple(run["parameters"]), run.get("is_coroutine", False))

    def names(self, owner: str) -> Container[str] | None:
        run = self.known.run(self.known.names, owner, self.number)
        return None if "absent" in run else _Asked(owner, run["has"], run["asked"])


@dataclass
class _Asked(Container[str]):
    """Names that are there, of those that were asked for. To ask for another one is an error, not a `False`."""

    owner: str
    has: list[str]
    asked: list[str]

    def __contains__(self, name: object) -> bool:
        if name not in self.asked:
            raise NotKeptError(f"{name} of {self.owner} was not looked up in the releases of vLLM")
        return name in self.has


@dataclass
class Known:
    """The releases, oldest first, and what is kept of them."""

    releases: list[str]
    functions: dict[str, list[Run]]
    names: dict[str, list[Run]]

    def run(self, table: dict[str, list[Run]], key: str, number: int) -> Run:
        for run in table.get(key, ()):
            if self.releases.index(run["from"]) <= number <= self.releases.index(run["to"]):
                return run
        raise NotKeptError(f"{key} was not looked up in vLLM {self.releases[number]}")

    def release(self, version: str) -> Release:
        return Release(self, self.releases.index(version))

    def with_function(self, place: str, fingerprint: str) -> tuple[str, str] | None:
        """The first and the last release in which the function at a place has this fingerprint."""
        runs = [run for run in self.functions.get(place, ()) if run.get("fingerprint") == fingerprint]
        return (runs[0]["from"], runs[-1]["to"]) if runs else None


def load(file: Path = FILE) -> Known:
    """What is kept."""
    return Known(**json.loads(file.read_text(encoding="utf-8")))


def look_up(releases: dict[str, Sources], specs: Iterable[HookSpec], reads: Iterable[Reads]) -> Known:
    """Looks up in the sources of the releases everything that the probes name."""
    places = sorted({place for spec in specs for place in spec.places})
    asked: dict[str, set[str]] = {}
    for one in reads:
        for owner in one.owners:
            asked.setdefault(owner, set()).update(one.names)

    def function(sources: Sources, place: str) -> Run:
        found = sources.function(place)
        if isinstance(found, str):
            return {"absent": found}
        kept: Run = {"fingerprint": found.fingerprint, "parameters": list(found.parameters)}
        return {**kept, "is_coroutine": True} if found.is_coroutine else kept

    def names(sources: Sources, owner: str) -> Run:
        found = sources.names(owner)
        wanted = asked[owner]
        return {"absent": True} if found is None else {"has": sorted(found & wanted), "asked": sorted(wanted)}

    return Known(
        list(releases),
        {place: _runs(releases, place, function) for place in places},
        {owner: _runs(releases, owner, names) for owner in sorted(asked)},
    )


def _runs(releases: dict[str, Sources], key: str, look: Callable[[Sources, str], Run]) -> list[Run]:
    runs: list[Run] = []
    for version, sources in releases.items():
        found = look(sources, key)
        if runs and {name: value for name, value in runs[-1].items() if name not in ("from", "to")} == found:
            runs[-1]["to"] = version
        else:
            runs.append({"from": version, "to": version, **found})
    return runs


def text(known: Known) -> str:
    """The file's content: one line for each run, so that a change shows as what it is."""
    lines = [f' "releases": {json.dumps(known.releases)},']
    for title, table in (("functions", known.functions), ("names", known.names)):
        entries = [
            f"  {json.dumps(key)}: [\n" + ",\n".join(f"   {json.dumps(run)}" for run in runs) + "\n  ]"
            for key, runs in table.items()
        ]
        lines.append(f' "{title}": {{\n' + ",\n".join(entries) + "\n }" + ("," if title == "functions" else ""))
    return "{\n" + "\n".join(lines) + "\n}\n"
