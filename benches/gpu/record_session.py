"""A session of a real server on a GPU: prefill, decode and mixed steps, in processes as vLLM starts them.

    python record_session.py MODEL OUT [--rounds 3]

ProfileMate comes in by PYTHONPATH alone. OUT gets the session's folder with its raw logs and its tables.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import common

SERVE = """
import sys
sys.path.insert(0, {here!r})
import common
if __name__ == "__main__":
    from vllm import LLM
    llm = LLM(model={model!r}, load_format="dummy", seed=0, max_num_seqs=48, max_model_len=2048,
              max_num_batched_tokens=2048, gpu_memory_utilization=0.85)
    for round_number in range({rounds}):
        # More than run at once, of several lengths: some wait, and prompts come in among those that decode.
        batch = [common.prompts(1, 50 + 17 * n, 100 * round_number + n)[0] for n in range(64)]
        common.generate(llm, batch, [8 + n % 48 for n in range(64)])
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="profilemate-session-"))
    script = folder / "serve.py"
    here = str(Path(__file__).parent)
    script.write_text(SERVE.format(here=here, model=options.model, rounds=options.rounds))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(common.SITE), os.environ.get("PYTHONPATH", "")]),
        "PROFILEMATE_OUTPUT_DIR": str(folder / "out"),
        "PROFILEMATE_COLLECTOR": "none",
        "PROFILEMATE_SEGMENT_BYTES": "64K",
    }
    subprocess.run([sys.executable, str(script)], check=True, env=environment)
    (session,) = (folder / "out").glob("session_*")
    subprocess.run([str(common.SITE.parent / "_bin" / "profilemate"), "export", str(session)], check=True)
    metadata = json.loads((session / "metadata.json").read_text())
    keys = (
        "processes",
        "timing_mode",
        "records_written",
        "records_lost",
        "probe_errors",
        "counters",
        "overhead",
        "gpu_time",
    )
    print("RESULT " + json.dumps({key: metadata[key] for key in keys}), flush=True)
    shutil.copytree(session, options.out / session.name)


if __name__ == "__main__":
    main()
