"""The command `profilemate`: hands over to the program that the wheel carries."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main() -> None:
    """Replaces this process by the command-line program, with the same arguments."""
    program = Path(__file__).parent / "_bin" / "profilemate"
    try:
        os.execv(program, [str(program), *sys.argv[1:]])
    except OSError as error:
        sys.exit(f"profilemate: cannot start {program} ({error.strerror}): install the wheel again")
