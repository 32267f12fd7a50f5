"""What we depend on: licences and sources of crates, by the list in deny.toml, and what was known against them when
that was last fetched; nothing in Python; pinned files in JS.

`cargo deny check` says the same of crates where it is installed, and knows what is known today (docs/security.md).
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from pathlib import Path

import pytest

import advisories

ROOT = Path(__file__).parents[1]
VENDORED = ROOT / "crates" / "output" / "src" / "html" / "vendor" / "uplot"


def allowed() -> set[str]:
    text = (ROOT / "deny.toml").read_text(encoding="utf-8")
    (listed,) = re.findall(r"^allow = \[(.*?)\]", text, re.MULTILINE | re.DOTALL)
    return set(re.findall(r'"([^"]+)"', listed))


def is_allowed(expression: str, licences: set[str]) -> bool:
    """Whether a licence expression of SPDX can be fulfilled with the allowed ones."""
    expression = re.sub(r"\s*/\s*", " OR ", expression)
    while inner := re.search(r"\(([^()]*)\)", expression):
        shown = "yes" if is_allowed(inner[1], licences) else "no"
        expression = expression[: inner.start()] + shown + expression[inner.end() :]
    return any(
        all(part.strip() == "yes" or part.strip() in licences for part in choice.split(" AND "))
        for choice in expression.split(" OR ")
    )


def test_every_crate_has_a_licence_and_a_source_that_are_allowed() -> None:
    found = subprocess.run(
        ["cargo", "metadata", "--format-version", "1", "--locked", "--all-features"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    packages = json.loads(found.stdout)["packages"]
    assert len(packages) > 100
    licences = allowed()
    not_allowed = [
        f"{package['name']} {package['version']}: {package['license']}"
        for package in packages
        if not is_allowed(package["license"] or "none", licences)
    ]
    assert not_allowed == []
    sources = {package["source"] for package in packages}
    assert sources == {None, "registry+https://github.com/rust-lang/crates.io-index"}


def test_no_crate_has_a_known_vulnerability() -> None:
    known = json.loads(advisories.KEPT.read_text(encoding="utf-8"))["crates"]
    assert sum(map(len, known.values())) > 1000
    for lock in (ROOT / "Cargo.lock", ROOT / "fuzz" / "Cargo.lock"):
        text = lock.read_text(encoding="utf-8")
        assert len(advisories.locked(text)) > 100
        assert any(name in known for name, _ in advisories.locked(text))
        assert advisories.problems(text, known) == []
    old = '[[package]]\nname = "time"\nversion = "0.1.43"\n'
    assert advisories.problems(old, known) == ["time 0.1.43: https://rustsec.org/advisories/RUSTSEC-2020-0071"]


@pytest.mark.parametrize(
    ("requirement", "met", "not_met"),
    [
        (">= 1.2, < 1.4.1", ["1.2.0", "1.4.0", "1.4.1-rc.1"], ["1.1.9", "1.4.1", "1.2.0-beta"]),
        ("^1.2.3", ["1.2.3", "1.9.0+build"], ["1.2.2", "2.0.0"]),
        ("^0.3.1", ["0.3.1", "0.3.9"], ["0.4.0", "0.3.0"]),
        ("^ 0.0.3", ["0.0.3"], ["0.0.4"]),
        ("~1.2", ["1.2.0", "1.2.9"], ["1.3.0"]),
        ("~1", ["1.9.0"], ["2.0.0"]),
        ("0.7", ["0.7.5"], ["0.8.0"]),
        ("= 1.0.0", ["1.0.0"], ["1.0.1"]),
        ("<=2.0.0", ["2.0.0", "0.1.0"], ["2.0.1"]),
        ("> 1.0", ["1.0.1"], ["1.0.0"]),
    ],
)
def test_requirements_are_understood(requirement: str, met: list[str], not_met: list[str]) -> None:
    assert [version for version in met if not advisories.meets(version, requirement)] == []
    assert [version for version in not_met if advisories.meets(version, requirement)] == []


def test_expressions_are_understood() -> None:
    licences = {"MIT", "Zlib"}
    for expression in ["MIT", "GPL-3.0/MIT", "(GPL-3.0 OR MIT) AND Zlib", "GPL-3.0 OR (MIT AND Zlib)"]:
        assert is_allowed(expression, licences), expression
    for expression in ["GPL-3.0", "MIT AND GPL-3.0", "(GPL-3.0 AND MIT) OR ISC", "none"]:
        assert not is_allowed(expression, licences), expression


def test_at_run_time_python_needs_nothing() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.findall(r"^dependencies = (.*)$", text, re.MULTILINE) == ["[]"]


def test_the_script_in_the_page_is_what_was_fetched() -> None:
    lines = (VENDORED / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    sums = {name: expected for expected, name in (line.split() for line in lines)}
    assert sums.keys() == {"LICENSE", "uPlot.iife.min.js", "uPlot.min.css"}
    for name, expected in sums.items():
        assert hashlib.sha256((VENDORED / name).read_bytes()).hexdigest() == expected, name


def test_what_the_browser_tests_install_is_pinned_by_hash() -> None:
    lock = json.loads((ROOT / "tests" / "browser" / "package-lock.json").read_text(encoding="utf-8"))
    for name, package in lock["packages"].items():
        assert name == "" or package["integrity"].startswith("sha512-"), name
