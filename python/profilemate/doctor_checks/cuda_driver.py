"""Whether a CUDA driver is there and answers. In a process of its own, for a driver may hang; and without a context."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field

_LIMIT_SECONDS = 30

# cuInit makes no context, and neither does any of the others. (CUDA Driver API, "Initialization", "Device Management")
_ASK = """
import ctypes, json
def ask():
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return {"reason": f"there is no libcuda.so.1 ({error})"}
    code = driver.cuInit(0)
    if code:
        meaning = {100: ": there is no GPU", 803: ": the driver and its kernel module are of different versions"}
        return {"reason": f"cuInit answers {code}{meaning.get(code, '')}"}
    version, count = ctypes.c_int(), ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))
    driver.cuDeviceGetCount(ctypes.byref(count))
    names = []
    for number in range(count.value):
        device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
        if not driver.cuDeviceGet(ctypes.byref(device), number) and not driver.cuDeviceGetName(name, 256, device):
            names.append(name.value.decode(errors="replace"))
    return {"version": f"{version.value // 1000}.{version.value % 1000 // 10}", "gpus": names}
print(json.dumps(ask()))
"""


@dataclass
class Driver:
    """What the driver says."""

    reachable: bool
    #: The newest CUDA that it knows.
    version: str | None = None
    gpus: list[str] = field(default_factory=list)
    #: Why it cannot be reached.
    reason: str | None = None

    def line(self) -> str:
        """In one line."""
        if not self.reachable:
            return f"not reachable: {self.reason}. Forward passes are timed by the wall clock"
        gpus = f"{len(self.gpus)} GPU{'s' * (len(self.gpus) != 1)}"
        return f"CUDA {self.version}, {gpus}" + (f": {', '.join(self.gpus)}" if self.gpus else "")


def examine() -> Driver:
    """Asks the driver."""
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _ASK], capture_output=True, text=True, timeout=_LIMIT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return Driver(False, reason=f"the driver did not answer within {_LIMIT_SECONDS} s")
    if done.returncode != 0:
        return Driver(False, reason=f"the process that asked it ended with {done.returncode}")
    said = json.loads(done.stdout)
    return Driver("reason" not in said, **said)
