"""What a hook and a record cost when called from Python, with everything in the caches.

    python benches/hook_cost.py

Prints one JSON line: nanoseconds per call (best of several repeats, the loop taken off) for a plain method, what a hook
adds to it (with and without extractors), for one record written from Python, for one reading of the clock, and what
recording adds to a garbage collection (the two calls that CPython makes for it, and their arguments), beside what any
native function in `gc.callbacks` adds; and what a hook on sampling adds, with the mix of a batch of 256 sequences: of
the V1 runner, and of the V2 runner where all requests ask for the same and where they do not.
"""

from __future__ import annotations

import array
import gc
import json
import operator
import os
import platform
import shutil
import sys
import tempfile
import timeit
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "python"))

from profilemate import _native

CALLS = 200_000


class Plain:
    def method(self, first: int, second: int) -> int:  # noqa: ARG002  (a call has arguments)
        return first


def hooked(**options: Any) -> Any:
    class Hooked(Plain):
        method = _native.Hook(Plain.method, "bench", span="bench", **options)  # type: ignore[assignment]

    return Hooked()


def sampling_v1() -> Any:
    """A V1 runner whose batch has 256 requests of several kinds, with a hook on sampling."""
    hook = hooked(kind=_native.SPAN, before=_native.before_sample)
    ids = [f"request-{place}" for place in range(256)]
    batch = SimpleNamespace(
        req_id_to_index=dict.fromkeys(ids),
        greedy_reqs=set(ids[:128]),
        top_k_reqs=set(ids[128:]),
        top_p_reqs=set(ids[128:]),
        frequency_penalties_reqs=set(ids[:9]),
        presence_penalties_reqs=set(),
        repetition_penalties_reqs=set(),
        num_logprobs={},
        logprob_token_ids={},
        num_prompt_logprobs={},
        bad_words_token_ids={},
        has_allowed_token_ids=set(),
        generators={},
        logitsprocs=SimpleNamespace(
            argmax_invariant=[SimpleNamespace(min_p_count=0)],
            non_argmax_invariant=[SimpleNamespace(biases={}), SimpleNamespace(min_toks={})],
        ),
    )
    hook.input_batch = batch
    return hook


def sampling_v2(kinds: int) -> Any:
    """A V2 runner whose batch has 256 requests of so many kinds, with a hook on sampling."""

    class Sampler:
        def add_request(self, req_idx: int, sampling_params: Any) -> None:
            pass

    add = _native.Hook(Sampler.add_request, "bench", kind=_native.CALL, before=_native.before_sampler_add_request)
    hook, sampler = hooked(kind=_native.SPAN, before=_native.before_sample_v2), Sampler()
    for slot in range(256):
        add(sampler, slot, SimpleNamespace(temperature=1.0, top_k=slot % kinds))
    hook.sampler = sampler
    hook.batch = SimpleNamespace(idx_mapping_np=array.array("q", range(256)))
    return hook


def nanoseconds(statement: str, names: dict[str, Any]) -> float:
    empty = min(timeit.repeat("pass", number=CALLS, repeat=5))
    return (min(timeit.repeat(statement, number=CALLS, repeat=7, globals=names)) - empty) / CALLS * 1e9


def collection_nanoseconds() -> float:
    """A collection of the youngest generation with little in it."""
    return nanoseconds("f(0)", {"f": gc.collect})


def main() -> None:
    session = tempfile.mkdtemp(prefix="profilemate-bench-")
    _native.sessions_folder_ready(session)
    # One segment takes all records of the benchmark: what is measured is a record, not the making of files.
    _native.open(session, "worker", 0, 0, 1 << 30, 4 << 30)
    plain = nanoseconds("o.method(1, 2)", {"o": Plain()})
    cases = {
        "hook_span": hooked(kind=_native.SPAN),
        "hook_accumulate": hooked(kind=_native.ACCUMULATE),
        "hook_span_python_before": hooked(kind=_native.SPAN, before=lambda *_: None),
        "hook_span_python_before_and_after": hooked(
            kind=_native.SPAN, before=lambda *_: None, after=lambda *_: None
        ),
    }
    _native.watch_sampling()
    one, two = sampling_v2(1), sampling_v2(2)
    sampling = {
        "v1": nanoseconds("o.method(1, None)", {"o": sampling_v1()}),
        "v2_one_kind": nanoseconds("o.method(1, b)", {"o": one, "b": one.batch}),
        "v2_two_kinds": nanoseconds("o.method(1, b)", {"o": two, "b": two.batch}),
    }
    # `timeit` turns automatic collections off while it measures.
    plain_collection = collection_nanoseconds()
    watched = {}
    for name, callback in (("any_callback", operator.is_), ("recording", _native.on_garbage_collection)):
        gc.callbacks.append(callback)
        watched[name] = collection_nanoseconds() - plain_collection
        gc.callbacks.remove(callback)
    result: dict[str, Any] = {
        "python": platform.python_version(),
        "plain_method_ns": round(plain, 1),
        **{
            f"{name}_adds_ns": round(nanoseconds("o.method(1, 2)", {"o": owner}) - plain, 1)
            for name, owner in cases.items()
        },
        **{f"hook_sampling_{name}_adds_ns": round(took - plain, 1) for name, took in sampling.items()},
        "record_from_python_ns": round(nanoseconds("f('bench', 1, 2, 3, 4, 5)", {"f": _native.write_span}), 1),
        "garbage_collection_ns": round(plain_collection, 1),
        **{f"garbage_collection_{name}_adds_ns": round(adds, 1) for name, adds in watched.items()},
        "clock_ns": round(nanoseconds("f()", {"f": _native.ticks}), 1),
        "records_dropped": _native.statistics()[1],
        "processor": next(
            (
                line.split(":", 1)[1].strip()
                for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")
            ),
            "",
        ),
        "clocksource": Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
        .read_text()
        .strip(),
    }
    # The segments are gigabytes.
    shutil.rmtree(session)
    print(json.dumps(result), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
