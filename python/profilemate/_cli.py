"""The command `profilemate`: hands over to the program that the wheel carries."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path


def main() -> None:
    """Replaces this process by the command-line program, with the same arguments."""
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
        # Python ignores them in its own processes, and a program that is executed inherits that.
        signal.signal(ignored, signal.SIG_DFL)
    program = Path(__file__).parent / "_bin" / "profilemate"
    try:
        os.execv(program, [str(program), *sys.argv[1:]])
    except OSError as error:
        sys.exit(f"profilemate: cannot start {program} ({error.strerror}): install the wheel again")
