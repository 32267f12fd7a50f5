"""SIGKILL at random instants of those who record, of their collector, and of both.

`PROFILEMATE_KILLS=1000` kills more; benches/results has such a run.
"""

from __future__ import annotations

import os
import random

from support import death


def test_what_was_committed_is_in_the_tables_whoever_dies() -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    kills = int(os.environ.get("PROFILEMATE_KILLS", "50"))
    seen = death.run(kills, seed, at_once=2)
    print(seen)
    assert seen["kills"] >= kills
    assert seen["collectors killed"] > 0
