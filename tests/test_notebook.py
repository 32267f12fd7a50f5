"""Sessions in notebooks: every library that takes our tables, each alone in an environment of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import profilemate

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "crates" / "session" / "tests" / "golden" / "v1"
EXAMPLES = ROOT / "docs" / "examples"
# Made by scripts/setup_venv.sh.
LIBRARIES = Path(os.environ.get("PROFILEMATE_NOTEBOOK_LIBRARIES", Path(sys.prefix) / "notebook"))
SESSIONS = ["gpu", "requests", "single_process"]


def package() -> Path:
    spec = importlib.util.find_spec("profilemate")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with our package and nothing else, for PYTHONPATH."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "profilemate").symlink_to(package())
    return folder


def run_alone(library: str, site: Path, *arguments: str | Path) -> str:
    python = LIBRARIES / library / "bin" / "python"
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(site)}
    done = subprocess.run(
        [python, "-B", "-W", "error", *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("session", SESSIONS)
@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow", "duckdb"])
def test_a_library_alone_gets_what_csv_says(library: str, session: str, site: Path, tmp_path: Path) -> None:
    program = package() / "_bin" / "profilemate"
    subprocess.run([program, "export", GOLDEN / session, "--output", tmp_path], check=True, capture_output=True)
    said = run_alone(
        library, site, ROOT / "tests" / "notebook" / "compare.py", library, GOLDEN / session, tmp_path
    )
    assert int(said.split()[2]) > 100


@pytest.mark.parametrize("session", SESSIONS)
def test_the_examples_run_with_pandas_and_with_polars_and_say_the_same(session: str, site: Path) -> None:
    pandas = run_alone("pandas", site, EXAMPLES / "with_pandas.py", GOLDEN / session)
    polars = run_alone("polars", site, EXAMPLES / "with_polars.py", GOLDEN / session)
    assert pandas == polars
    assert f"session {session}: " in pandas
    assert ("decode: " in pandas) == (session != "requests")
    assert ("requests are over" in pandas) == (session == "requests")


def test_nothing_of_it_is_loaded_until_it_is_asked_for(site: Path) -> None:
    code = (
        "import sys, profilemate, profilemate.attach, profilemate.importhook\n"
        "assert not [name for name in sys.modules if name.endswith(('._session', '._pandas'))]\n"
        "assert 'open_session' in dir(profilemate) and not hasattr(profilemate, 'nothing')\n"
        "profilemate.open_session\n"
        "assert 'profilemate._session' in sys.modules\n"
    )
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(site)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_summaries_are_what_the_files_say(tmp_path: Path) -> None:
    session = profilemate.open_session(GOLDEN / "requests")
    program = package() / "_bin" / "profilemate"
    subprocess.run([program, "export", session.path, "--output", tmp_path], check=True, capture_output=True)
    for path in tmp_path.glob("*_summary.json"):
        wanted = json.loads(path.read_text(encoding="utf-8"))
        short = path.stem.removesuffix("_summary")
        assert session.summary(short) == session.summary(path.stem) == session.summaries[short] == wanted
    assert session.metadata == json.loads((tmp_path / "metadata.json").read_text(encoding="utf-8"))
    assert "metadata" not in session.summaries
    # What a caller does to a dict of its own is nobody else's.
    session.metadata["profilers"]["mine"] = "on"
    assert "mine" not in session.metadata["profilers"]


def test_the_newest_session_is_opened_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROFILEMATE_OUTPUT_DIR", str(tmp_path))
    with pytest.raises(profilemate.SessionError, match=r"^there is no session of yours in .*profilemate run"):
        profilemate.open_session()
    for name, golden in [
        ("session_20260102_000000_aaaaaa", "gpu"),
        ("session_20260101_000000_bbbbbb", "requests"),
    ]:
        shutil.copytree(GOLDEN / golden / "raw", tmp_path / name / "raw")
    session = profilemate.open_session()
    assert session.id == "20260102_000000_aaaaaa"
    assert session.path == tmp_path.resolve() / "session_20260102_000000_aaaaaa"
    assert "cuda_graph_usage" in session and "request_lifecycle" not in session and 3 not in session
    assert list(session) == session.tables and len(session) == len(session.tables)


def test_what_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    session = profilemate.open_session(GOLDEN / "gpu")
    with pytest.raises(
        profilemate.SessionError, match=r"has no table 'request_lifecycle': it has forward_pass_timing, "
    ):
        session["request_lifecycle"]
    with pytest.raises(profilemate.SessionError, match=r"has no summary 'metadata': it has forward_pass, "):
        session.summary("metadata")
    with pytest.raises(profilemate.SessionError, match=r"does not exist"):
        profilemate.open_session(tmp_path / "nowhere")
    with pytest.raises(profilemate.SessionError, match=r"is not a session"):
        profilemate.open_session(tmp_path)


def test_nothing_from_outside_is_markup_or_moves_the_cursor(tmp_path: Path) -> None:
    folder = tmp_path / "session_<img src=x onerror=alert(1)>\u202e"
    shutil.copytree(GOLDEN / "requests" / "raw", folder / "raw")
    session = profilemate.open_session(folder)
    assert "<img" not in session._repr_html_() and "&lt;img" in session._repr_html_()
    assert "\u202e" not in repr(session) + session._repr_html_()
    with pytest.raises(profilemate.SessionError) as failure:
        session["\x1b[31m"]
    assert "\x1b" not in str(failure.value) and "\u202e" not in str(failure.value)
    for name in session:
        assert repr(session[name]).startswith(f"<profilemate.Table {name}, ")
        page = session[name]._repr_html_()
        assert page.count("<tr>") <= 6 and len(page) < 5000
