"""Every command and snippet of README.md and docs/ is run, and prints what the document says.

How a document is read:

- A fenced block of `sh`, `bash`, or no language is run by bash; one of `python` by Python. They run in a folder of
  their own, beside copies of recorded sessions. Blocks of SHOWN languages are not run here; there are no
  others. `tests/test_timeline.py` runs those of `sql`.
- A comment on the line above the fence says what is special about the block: `<!-- not run: REASON -->` (of NOT_RUN),
  `<!-- exits with 3 -->`, `<!-- session: real_gpu -->` (one of SESSIONS, instead of the first),
  `<!-- continues -->` (it runs behind the block of its language before it), `<!-- output -->` (a block of text: what
  the block before it printed, where a line `…` stands for any lines).
- SESSION, BASE, CANDIDATE and the like are folders in that folder (LINKS). Words in capitals that stand for a number or
  an id are replaced (PLACEHOLDERS). A session in /tmp/vllm_profiling is the block's session.

`UPDATE_DOCUMENTS=1 pytest tests/test_snippets.py` writes outputs anew: look at the differences before committing them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from support.vllm import environment, profilemate

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "crates" / "session" / "tests" / "golden" / "v1"
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
LIMIT_SECONDS = 120

#: Recorded sessions of real servers that documents show; `layers` is made up, for what only a GPU has.
SESSIONS = ("real_preempting", "real_decode", "real_gpu", "real_experts", "real_vision", "real_sampling", "layers")
#: Folders in the block's folder, and the sessions they are; None: the block's own.
LINKS: dict[str, str | None] = {
    "SESSION": None,
    "BASE": "real_decode",
    "CANDIDATE": "real_preempting",
    **{f"base_{number}": "real_decode" for number in (1, 2, 3)},
    **{f"candidate_{number}": "real_preempting" for number in (1, 2, 3)},
}
#: Files in the block's folder.
FILES = {
    "server.log": ROOT / "crates" / "import" / "tests" / "logs" / "real_decode.log",
    "FILE": ROOT / "crates" / "import" / "tests" / "logs" / "real_decode.log",
}
#: Words that stand for something, in commands.
PLACEHOLDERS = {"N": "60", "K": "3", "DIR": "out", "PYTHON": sys.executable}
#: Why a block is not run. Whoever adds a reason says why no test can do it.
NOT_RUN = {
    "needs a GPU": "the tests run without one",
    "starts a server": "tests/real and scripts/demo.sh start them; each takes minutes",
    "installs software": "the environment of the tests is not theirs to change",
    "runs the tests": "they would run themselves",
}
_NAME = "session_20250101_120000_c0ffee"
_SHELL = ("sh", "bash", "")
SHOWN = ("text", "toml", "json", "csv", "sql")
_FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,})(?P<language>[^`\s]*)[^`]*$")
_COMMENT = re.compile(r"<!-- (?P<text>.*?) -->")


@dataclass
class Block:
    """One fenced block."""

    document: Path
    line: int
    language: str
    notes: list[str]
    text: str

    @property
    def place(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"

    def note(self, prefix: str) -> str | None:
        return next((note.removeprefix(prefix).strip() for note in self.notes if note.startswith(prefix)), None)

    @property
    def is_code(self) -> bool:
        return self.language in {*_SHELL, "python"} and not self.is_output

    @property
    def is_output(self) -> bool:
        return self.note("output") is not None


def blocks(document: Path) -> list[Block]:
    """The fenced blocks of a document, with what the comments above them say."""
    found: list[Block] = []
    lines = document.read_text(encoding="utf-8").splitlines()
    at = 0
    while at < len(lines):
        fence = _FENCE.match(lines[at])
        if fence is None:
            at += 1
            continue
        above, notes = at - 1, []
        while above >= 0 and (comment := _COMMENT.fullmatch(lines[above].strip())):
            notes.append(comment["text"])
            above -= 1
        closing = re.compile(rf" *`{{{len(fence['ticks'])},}} *")
        end = next((place for place in range(at + 1, len(lines)) if closing.fullmatch(lines[place])), None)
        assert end is not None, f"{document.name}:{at + 1}: the block has no end"
        text = "\n".join(line.removeprefix(fence["indent"]) for line in lines[at + 1 : end])
        found.append(Block(document, at + 1, fence["language"], notes, text))
        at = end + 1
    return found


BLOCKS = [block for document in DOCUMENTS for block in blocks(document)]
#: What each block prints, if the document says it.
OUTPUTS = {
    block.place: after
    for block, after in pairwise(BLOCKS)
    if block.is_code and after.is_output and block.document == after.document
}
RUN = [block for block in BLOCKS if block.is_code and block.note("not run:") is None]


def test_the_documents_have_snippets() -> None:
    assert len(RUN) > 30
    assert {block.language for block in RUN} >= {"sh", "python"}


def test_no_block_is_left_out_without_a_known_reason() -> None:
    for document in DOCUMENTS:
        assert "\n~~~" not in document.read_text(encoding="utf-8"), f"{document}: a fence that is not looked at"
    for block in BLOCKS:
        assert block.is_code or block.language in SHOWN, f"{block.place}: is {block.language!r} to be run?"
        for note in block.notes:
            assert re.fullmatch(r"not run: .*|exits with \d+|session: \w+|continues|output", note), (
                f"{block.place}: {note}"
            )
        if block.note("continues") is not None:
            before = [
                other for other in RUN if (other.document, other.language) == (block.document, block.language)
            ]
            assert before[0] != block, f"{block.place}: there is nothing that it continues"
        reason = block.note("not run:")
        assert reason is None or (block.is_code and reason in NOT_RUN), f"{block.place}: {reason}"
        assert block.note("session:") in {None, *SESSIONS}, block.place


def test_every_output_follows_a_block_that_is_run() -> None:
    assert {block.place for block in BLOCKS if block.is_output} == {block.place for block in OUTPUTS.values()}
    assert set(OUTPUTS) <= {block.place for block in RUN}


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies of the recorded sessions, with their tables."""
    folder = tmp_path_factory.mktemp("sessions")
    for name in SESSIONS:
        shutil.copytree(GOLDEN / name, folder / name)
        profilemate("export", str(folder / name))
    return folder


def whole(block: Block) -> str:
    """The block, behind those that it continues."""
    if block.note("continues") is None:
        return block.text
    before = [other for other in RUN if (other.document, other.language) == (block.document, block.language)]
    return f"{whole(before[before.index(block) - 1])}\n{block.text}"


def code(block: Block, output_dir: Path, request_id: str) -> str:
    """The block with its placeholders replaced."""
    text = re.sub(r"/tmp/vllm_profiling/session_\w+", str(output_dir / _NAME), whole(block))
    text = text.replace("/tmp/vllm_profiling", str(output_dir))
    if block.language in _SHELL:
        for word, value in {**PLACEHOLDERS, "ID": request_id}.items():
            text = re.sub(rf"(?<![\w$-]){word}(?!\w)", value.replace("\\", r"\\"), text)
    return text


@pytest.mark.parametrize("block", RUN, ids=lambda block: block.place)
def test_it_runs(block: Block, sessions: Path, tmp_path: Path) -> None:
    session = block.note("session:") or SESSIONS[0]
    output_dir, folder = tmp_path / "vllm_profiling", tmp_path / "here"
    output_dir.mkdir()
    folder.mkdir()
    shutil.copytree(sessions / session, output_dir / _NAME)
    for name, other in LINKS.items():
        target = output_dir / _NAME if other is None else tmp_path / "others" / name
        if other is not None:
            shutil.copytree(sessions / other, target)
        (folder / name).symlink_to(target)
    for name, file in FILES.items():
        shutil.copyfile(file, folder / name)
    lifecycle = output_dir / _NAME / "request_lifecycle.csv"
    request_id = (
        lifecycle.read_text(encoding="utf-8").splitlines()[1].split(",")[0] if lifecycle.exists() else "ID"
    )
    text = code(block, output_dir, request_id)
    command = (
        [sys.executable, "-c", text] if block.language == "python" else ["bash", "-euo", "pipefail", "-c", text]
    )
    done = subprocess.run(
        command,
        cwd=folder,
        env={**environment(output_dir), "COLUMNS": "80", "NO_COLOR": "1", "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
    )
    expected = int(block.note("exits with") or 0)
    assert done.returncode == expected, (
        f"{block.place} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    )
    shown = OUTPUTS.get(block.place)
    if shown is not None:
        printed = done.stdout + (done.stderr if expected else "")
        for path, name in [
            (str(output_dir / _NAME), "SESSION"),
            (f"{tmp_path / 'others'}/", ""),
            (f"{folder}/", ""),
            (str(output_dir), "/tmp/vllm_profiling"),
        ]:
            printed = printed.replace(path, name)
        printed = "\n".join(line.rstrip() for line in printed.strip("\n").splitlines())
        if not matches(shown.text, printed) and os.environ.get("UPDATE_DOCUMENTS"):
            rewrite(shown, printed)
        else:
            assert matches(shown.text, printed), f"{shown.place} should be:\n{printed}"


def matches(shown: str, printed: str) -> bool:
    """Whether a text is what a document shows, where a line `…` stands for any lines."""
    parts = [re.escape(part) for part in re.split(r"^…$", shown, flags=re.MULTILINE)]
    return re.fullmatch(".*".join(parts), printed, re.DOTALL) is not None


def rewrite(shown: Block, printed: str) -> None:
    """Puts what was printed into the document. Blocks before this one may have grown since the document was read."""
    number = [block for block in BLOCKS if block.document == shown.document].index(shown)
    now = blocks(shown.document)[number]
    lines = shown.document.read_text(encoding="utf-8").splitlines()
    lines[now.line : now.line + len(now.text.splitlines())] = printed.splitlines()
    shown.document.write_text("\n".join(lines) + "\n", encoding="utf-8")
