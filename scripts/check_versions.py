"""Our hooks against the sources of every vLLM release from 0.11 to the newest, hook by hook.

    check_versions.py --write          # reads the known releases; writes what is kept of them, and docs/versions.md
    check_versions.py --write --newer  # looks for newer releases first
    check_versions.py --check          # reads a release that is newer than the known ones, and says what moved in it
    check_versions.py --diff OLD NEW   # what moved between two releases
    check_versions.py                  # no network: what is kept, the table and the probes belong together

Exit code 1: something moved, does not fit or is not explained. See docs/versions.md.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import versions_table
from profilemate import compatibility, known_versions
from profilemate.known_versions import Known, NotKeptError
from profilemate.probes import HOOKS, LATE_HOOKS, READS
from profilemate.vllm_source import Sources
from vllm_releases import Releases, default_cache

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "docs" / "versions.md"
SPECS = (*HOOKS, *LATE_HOOKS)
#: The oldest release that the hooks are written for. As of every other minor version, the last of its is read as well.
FIRST = "0.11.0"


def main() -> int:
    parser = argparse.ArgumentParser(description="Check our hooks against the sources of vLLM's releases.")
    parser.add_argument(
        "--cache", type=Path, default=default_cache(), help="folder of sources (default: %(default)s)"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--write", action="store_true", help="read the releases, and write what is kept and the table"
    )
    what.add_argument("--check", action="store_true", help="look for a newer release, and say what moved in it")
    what.add_argument("--diff", nargs=2, metavar=("OLD", "NEW"), help="say what moved between two releases")
    parser.add_argument(
        "--newer", action="store_true", help="with --write: look for releases that are not kept yet"
    )
    arguments = parser.parse_args()
    releases = Releases(arguments.cache)
    if arguments.write:
        return write(releases, arguments.newer)
    if arguments.check:
        return check(releases)
    if arguments.diff:
        old, new = arguments.diff
        return said(list(moved(old, releases.sources(old), new, releases.sources(new))))
    return said(list(inconsistencies(known_versions.load(), TABLE.read_text(encoding="utf-8"))))


def said(problems: list[str]) -> int:
    """Prints them; the exit code."""
    for problem in problems:
        print(problem)
    return 1 if problems else 0


def write(releases: Releases, newer: bool) -> int:
    """Reads every release and writes what is kept of them and the table. One that does not fit is said."""
    wheels: dict[str, str | None] = {FIRST: None}
    if newer or not known_versions.FILE.exists():
        wheels.update(releases.minors(FIRST))
    else:
        wheels.update(dict.fromkeys(known_versions.load().releases))
    sources = {version: releases.sources(version, wheel) for version, wheel in wheels.items()}
    # Most of the time goes into waiting for the index.
    with ThreadPoolExecutor(max_workers=4) as pool:
        list(pool.map(lambda one: compatibility.fit(SPECS, READS, one), sources.values()))
    known = known_versions.look_up(sources, SPECS, READS)
    known_versions.FILE.write_text(known_versions.text(known), encoding="utf-8")
    TABLE.write_text(versions_table.text(known, SPECS, READS), encoding="utf-8")
    print(f"read {len(sources)} releases, {FIRST} to {known.releases[-1]}")
    return said(list(misfits(known)))


def check(releases: Releases) -> int:
    """Compares the newest release with the newest one that is kept."""
    known = known_versions.load()
    newest = releases.newest("vllm")
    if newest is None:
        sys.exit("failed: uv finds no release of vLLM")
    version, wheel = newest
    last = known.releases[-1]
    if version == last:
        print(f"vLLM {version} is the newest release, and docs/versions.md has it")
        return 0
    problems = list(moved(last, releases.sources(last), version, releases.sources(version, wheel)))
    if not problems:
        print(f"vLLM {version} has all that we hook and read, as {last} has it; `make versions NEWER=1` adds it")
    return said(problems)


def moved(old: str, before: Sources, new: str, after: Sources) -> Iterator[str]:
    """What is not in `new` as it was in `old`: hooked functions that changed, as diffs, and what no longer fits."""
    fits = {one.spec.name: one for one in compatibility.fit(SPECS, READS, before)}
    seen = set()
    for one in compatibility.fit(SPECS, READS, after):
        name, was = one.spec.name, fits[one.spec.name]
        if one.places != was.places or one.reason != was.reason:
            yield f"{name}: {_state(was)} in {old}, {_state(one)} in {new}"
        for problem in one.problems:
            if problem not in was.problems:
                yield f"{name}: {problem} in {new}"
        for missing, cost in one.lacks:
            if (missing, cost) not in was.lacks:
                yield f"{name}: {missing} in {new}: {cost}"
        for place in one.places:
            # A function that several hooks share is shown once.
            if place in seen or place not in was.places:
                continue
            seen.add(place)
            functions = was.functions[was.places.index(place)], one.functions[one.places.index(place)]
            if functions[0].fingerprint != functions[1].fingerprint:
                yield f"{name}: {place} is another function in {new} than in {old}"
                yield from _diff(place, old, before.text(place) or "", new, after.text(place) or "")


def _state(fit: compatibility.Fit) -> str:
    return f"attaches to {', '.join(fit.places)}" if fit.attaches else f"absent ({fit.reason})"


def _diff(place: str, old: str, before: str, new: str, after: str) -> Iterator[str]:
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), f"{old} {place}", f"{new} {place}", lineterm=""
    )
    yield "\n".join(lines) + "\n"


def misfits(known: Known) -> Iterator[str]:
    """What does not fit or is not explained in a release that was read."""
    found: dict[str, list[str]] = {}
    for version in known.releases:
        for one in compatibility.fit(SPECS, READS, known.release(version)):
            name = one.spec.name
            if not one.attaches and one.is_needed and not one.spec.without:
                found.setdefault(
                    f"{name} attaches nowhere ({one.reason}), and its HookSpec does not say `without`: what vLLM does "
                    "instead, and what that costs the user",
                    [],
                ).append(version)
            for problem in one.problems:
                found.setdefault(f"{name} does not fit: {problem}", []).append(version)
    for problem, versions in found.items():
        yield f"{problem} ({', '.join(versions)})"


def inconsistencies(known: Known, table: str) -> Iterator[str]:
    """Whether what is kept and the table are of the probes as they are. Looks at no release."""
    try:
        yield from misfits(known)
        if versions_table.text(known, SPECS, READS) != table:
            yield f"{TABLE.relative_to(ROOT)} is not what the probes make of it: run `make versions`"
    except NotKeptError as error:
        yield f"{error}: run `make versions`"


if __name__ == "__main__":
    sys.exit(main())
