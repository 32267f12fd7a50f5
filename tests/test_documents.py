"""The README says what the code says."""

from __future__ import annotations

import re
from pathlib import Path

from support.tables import COLUMNS, SUMMARIES

ROOT = Path(__file__).parents[1]


def settings() -> list[tuple[str, str, str, str]]:
    """Key, variable, default and help of every setting, from where they are defined."""
    source = (ROOT / "crates" / "settings" / "src" / "lib.rs").read_text(encoding="utf-8")
    table = source[source.index("pub const SETTINGS") : source.index("/// A value that could not be used.")]
    string = r'"([^"]*)"'
    whole = rf"key: {string},\s*variable: {string},.*?default: {string},\s*help: {string}"
    short = rf"switch\(\s*{string},\s*{string},\s*{string},\s*{string}"
    matches = [*re.finditer(whole, table, re.DOTALL), *re.finditer(short, table)]
    return [(match[1], match[2], match[3], match[4]) for match in sorted(matches, key=re.Match.start)]


def test_every_setting_is_in_the_readme_with_its_default_and_help() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| `(PROFILEMATE_\w+)` \| `([^`]*)` \| (.*) \|$", readme, re.MULTILINE)
    assert rows == settings()
    assert len(rows) > 15


def written() -> dict[str, list[str]]:
    """The columns of every table, from where they are written."""
    found = {}
    for file in (ROOT / "crates" / "output" / "src" / "tables").glob("*.rs"):
        source = file.read_text(encoding="utf-8")
        for table in re.findall(r"^table! \{\n(.*?)^\}", source, re.DOTALL | re.MULTILINE):
            (name,) = re.findall(r'^    \w+ = "(\w+)"(?: in "\w+")?, of ', table, re.MULTILINE)
            found[f"{name}.csv"] = re.findall(r"^    (\w+): \w+\(.*\),$", table, re.MULTILINE)
    return found


def described() -> dict[str, list[str]]:
    """The columns of every table, from where they are described."""
    text = (ROOT / "docs" / "session.md").read_text(encoding="utf-8")
    # The tables of a folder are paragraphs of its section, which begin with the table's name.
    text = re.sub(r"^`(\w+\.csv)`([:,])", r"### \1\n\2", text, flags=re.MULTILINE)
    text = re.sub(r"^`\w+\.json` has", "### ", text, flags=re.MULTILINE)
    sections = re.split(r"^### ", text, flags=re.MULTILINE)[1:]
    tables = {
        section.split("\n", 1)[0]: re.split(r"\n\n\| (?:operation|limited by) \|", section)[0]
        for section in sections
    }
    return {
        name: [
            column
            for cell in re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", section, re.MULTILINE)
            for column in re.findall(r"\w+", cell)
        ]
        for name, section in tables.items()
        if name.endswith(".csv")
    }


def test_every_column_is_described_in_its_place() -> None:
    assert described() == written()
    for table, columns in COLUMNS.items():
        assert described()[table][: len(columns)] == columns


def test_every_summary_is_described() -> None:
    text = (ROOT / "docs" / "session.md").read_text(encoding="utf-8")
    for summary in SUMMARIES:
        assert f"### {summary}" in text


def test_every_finding_is_described() -> None:
    rules = ROOT / "crates" / "analysis" / "src" / "findings"
    ids = {
        match
        for file in rules.glob("*.rs")
        for match in re.findall(
            r'^\s*(?:id: )?"([a-z]+(?:-[a-z]+)+)",$', file.read_text(encoding="utf-8"), re.MULTILINE
        )
    }
    assert len(ids) > 20
    text = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
    headings = " ".join(re.findall(r"^### (.*)$", text, re.MULTILINE))
    described = {
        *re.findall(r"[a-z]+(?:-[a-z]+)+", headings),
        *re.findall(r"^- \*\*([a-z-]+)\*\* \(", text, re.MULTILINE),
    }
    assert described == ids


def test_every_link_in_the_documents_leads_somewhere() -> None:
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target, part in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", document.read_text(encoding="utf-8")):
            if "://" not in target:
                file = document.parent / target if target else document
                assert file.exists(), f"{document.name}: {target}"
                assert not part or part in headings(file), f"{document.name}: {target}#{part}"


def headings(document: Path) -> set[str]:
    """What a document's headings are called in links to them."""
    titles = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_guide_is_in_the_index() -> None:
    folder = ROOT / "docs"
    index = (folder / "README.md").read_text(encoding="utf-8")
    for document in folder.rglob("*.md"):
        assert document.name == "README.md" or f"({document.relative_to(folder)})" in index, document


def test_every_test_and_file_that_a_guarantee_names_is_there() -> None:
    text = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
    rows = [
        line for line in text.splitlines() if line.startswith("| ") and not line.startswith(("| promise", "| ---"))
    ]
    assert len(rows) > 25
    for row in rows:
        named = [name for name in re.findall(r"`([^`]+)`", row) if "/" in name]
        assert named, f"nothing holds us to: {row}"
        for name in named:
            path, _, test = name.partition("::")
            file = ROOT / path
            assert file.exists(), name
            source = file.read_text(encoding="utf-8")
            # The tests of the corpus are made by a macro, from names.
            made = path.endswith("fuzz/tests/corpus.rs") and re.search(
                rf"^replays!\([^)]*\b{test}\b", source, re.MULTILINE
            )
            assert not test or made or re.search(rf"\b(fn|def) {test}\(", source), name
