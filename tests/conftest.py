"""What every test has: the logs of the processes it started, shown when it fails. What some need: a model."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("support")

from support.driven import Scenarios  # noqa: E402  # its asserts are rewritten, too

ROOT = Path(__file__).parents[1]
LOG_FOLDERS = pytest.StashKey[list[Path]]()
SHOWN_LINES = 60


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LOG_FOLDERS] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "real" in item.path.relative_to(Path(__file__).parent).parts:
            item.add_marker(pytest.mark.real)


@pytest.fixture(scope="session")
def log_folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Whatever is called `*.log` in here is shown with a failure."""
    folder = tmp_path_factory.mktemp("logs")
    request.config.stash[LOG_FOLDERS].append(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    subprocess.run([sys.executable, ROOT / "scripts" / "make_models.py", folder, "tiny-llama"], check=True)
    return folder / "tiny-llama"


@pytest.fixture(scope="session")
def scenarios(tiny_llama: Path, log_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scenarios]:
    started = Scenarios(tiny_llama, tmp_path_factory.mktemp("scenarios"), log_folder / "scenarios.log")
    try:
        yield started
    finally:
        started.clean_up()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        for folder in item.config.stash[LOG_FOLDERS]:
            for log in sorted(folder.glob("*.log")):
                end = log.read_text(errors="replace").splitlines()[-SHOWN_LINES:]
                report.sections.append((f"the end of {log.name}", "\n".join(line[:400] for line in end)))
    return report
