"""Known vulnerabilities of crates, from the RustSec database, and whether a lock file has one.

    git clone https://github.com/rustsec/advisory-db FOLDER
    python scripts/advisories.py FOLDER         # writes tests/advisories.json; to be done from time to time

The tests run where there is no network, so what is known is kept: of each advisory its id and the versions that it is
not about.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "tests" / "advisories.json"

#: By crate: the id of each advisory, and the requirements of which a version that is fine meets one.
Advisories = dict[str, dict[str, list[str]]]


def number(version: str) -> tuple[tuple[int, int, int], bool, str]:
    """A version as something to be compared: one before a release is less than it; of which build it is, is nothing."""
    core, _, before = version.split("+")[0].partition("-")
    major, minor, patch = [*map(int, core.split(".")), 0, 0][:3]
    return (major, minor, patch), not before, before


def meets(version: str, requirement: str) -> bool:
    """Whether a version meets a requirement as Cargo writes them: `>= 1.2, < 2`, `^0.3.1`."""
    for part in requirement.split(","):
        found = re.fullmatch(r"\s*(\^|~|>=|<=|>|<|=|)\s*(\d+(?:\.\d+){0,2}\S*)\s*", part)
        if found is None:
            raise ValueError(f"not a requirement: {requirement}")
        sign, wanted = found.groups()
        ours, theirs = number(version), number(wanted)
        if sign in ("^", "~", ""):
            given = re.split(r"[-+]", wanted)[0].split(".")
            kept = min(len(given), 2) if sign == "~" else 1
            if sign != "~":
                while kept < len(given) and not any(map(int, given[:kept])):
                    kept += 1
            fits = ours >= theirs and ours[0][:kept] == theirs[0][:kept]
        else:
            fits = {">=": ours >= theirs, "<=": ours <= theirs, ">": ours > theirs, "<": ours < theirs}.get(
                sign, ours == theirs
            )
        if not fits:
            return False
    return True


def locked(lock: str) -> list[tuple[str, str]]:
    """Name and version of every package of a Cargo.lock."""
    return re.findall(r'^name = "([^"]+)"\nversion = "([^"]+)"', lock, re.MULTILINE)


def problems(lock: str, advisories: Advisories) -> list[str]:
    """What is known against the packages of a Cargo.lock."""
    return [
        f"{name} {version}: https://rustsec.org/advisories/{advisory}"
        for name, version in locked(lock)
        for advisory, fine in advisories.get(name, {}).items()
        if not any(meets(version, requirement) for requirement in fine)
    ]


def read(database: Path) -> Advisories:
    """The advisories of a checkout of the database that were not taken back."""
    advisories: Advisories = {}
    for path in sorted((database / "crates").glob("*/*.md")):
        told = path.read_text(encoding="utf-8").partition("```toml\n")[2].partition("\n```")[0]
        if re.search(r"^withdrawn *=", told, re.MULTILINE):
            continue
        fine = re.findall(r"^(?:patched|unaffected) *= *\[(.*?)\]", told, re.MULTILINE | re.DOTALL)
        advisories.setdefault(path.parent.name, {})[path.stem] = re.findall(r'"([^"]*)"', " ".join(fine))
    return advisories


def main() -> None:
    (database,) = map(Path, sys.argv[1:])
    commit = subprocess.run(
        ["git", "-C", str(database), "log", "-1", "--format=%H %cs"], capture_output=True, text=True, check=True
    ).stdout.split()
    lines = [f"{json.dumps(name)}: {json.dumps(known)}" for name, known in read(database).items()]
    about = f'"source": "https://github.com/rustsec/advisory-db {commit[0]}", "date": "{commit[1]}"'
    KEPT.write_text(f'{{{about}, "crates": {{\n' + ",\n".join(lines) + "\n}}\n", encoding="utf-8")
    print(f"{len(lines)} crates, {commit[1]}: {KEPT}")


if __name__ == "__main__":
    main()
