"""What happens to requests, scripted. Each scenario runs in a process of its own, forked from one that imported vLLM.

    python -m support.scenarios MODEL

For each line on standard input, a JSON object with `scenario`, `arguments`, `folder`, `environment` and `is_profiled`,
a child is forked that runs it and leaves `truth.json` and `output.log` in the folder; `ended EXIT_CODE` is printed when
the child is gone. ProfileMate is not imported here before the fork, so each child begins as a process of vLLM does.
"""

from __future__ import annotations

import gc
import json
import os
import random
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vllm.lora.request import LoRARequest
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.request import RequestStatus

from support.engine import STOP_TOKEN, Engine, Json

SCENARIOS: dict[str, Callable[..., Json]] = {}


def scenario(function: Callable[..., Json]) -> Callable[..., Json]:
    SCENARIOS[function.__name__] = function
    return function


@scenario
def preempted_twice(model: str) -> Json:
    """Eight blocks: "first" and "second" take the third one's, until "second" ends; then "first" takes them again.

    When it resumes at last, one block of its prompt is still in the prefix cache.
    """
    engine = Engine(model, 8)
    engine.add("first", 32, 80)
    engine.add("second", 32, 20)
    engine.add("victim", 40, 60)
    engine.run()
    return engine.truth()


@scenario
def preempts_itself(model: str) -> Json:
    """Three prompts of two full blocks each, eight blocks: the third one finds none for its first token."""
    engine = Engine(model, 8)
    for name in ("first", "second", "third"):
        engine.add(name, 32, 17)
    engine.run()
    return engine.truth()


@scenario
def aborted(model: str) -> Json:
    """In every state that a request can be in; some are left as they are when the process ends."""
    engine = Engine(model, 8, max_num_seqs=3)
    engine.add("runs", 32, 400)
    engine.add("aborted while running", 32, 400)
    engine.add("aborted while preempted", 40, 400)
    engine.add("aborted while waiting", 32, 400)
    engine.step()
    engine.step()
    engine.abort(["aborted while waiting", "aborted while preempted", "aborted while running", "nobody"])
    engine.add("aborted while its step is under way", 16, 400)
    under_way = engine.schedule()
    engine.abort("aborted while its step is under way")
    engine.update(under_way)
    engine.add("waits", 100, 400)
    engine.step()
    assert [request.request_id for request in engine.scheduler.running] == ["runs"]
    return engine.truth()


@scenario
def left_preempted(model: str) -> Json:
    """The process ends while a request waits to be resumed."""
    engine = Engine(model, 8)
    engine.add("first", 32, 80)
    engine.add("second", 32, 80)
    engine.add("victim", 40, 80)
    for _ in range(5):
        engine.step()
    return engine.truth()


@scenario
def all_aborted(model: str) -> Json:
    engine = Engine(model, 8, max_num_seqs=2)
    for number in range(4):
        engine.add(f"request {number}", 20, 400)
    engine.step()
    engine.abort(None)
    return engine.truth()


@scenario
def prefix_cache_reset(model: str) -> Json:
    """Without the running ones it does nothing as long as blocks are in use; with them it preempts all."""
    engine = Engine(model, 16)
    engine.add("first", 32, 8)
    engine.add("second", 40, 8)
    for _ in range(3):
        engine.step()
    assert not engine.reset_prefix_cache()
    assert engine.reset_prefix_cache(reset_running_requests=True)
    engine.run()
    return engine.truth()


@scenario
def priorities(model: str) -> Json:
    """The least urgent one is the victim, although it came first and is in the batch already."""
    engine = Engine(model, 8, scheduling_policy="priority")
    engine.add("not urgent", 40, 20, priority=5)
    engine.step()
    engine.add("urgent", 32, 20, priority=-3)
    engine.add("less urgent", 32, 20, priority=1)
    engine.run()
    return engine.truth()


@scenario
def endings(model: str) -> Json:
    """Every way to end."""
    engine = Engine(model, 64, max_model_len=64)
    engine.add("stop token", 20, 40, stops=True)
    engine.tokens["stop token"][2] = STOP_TOKEN
    engine.add("length", 20, 5)
    engine.add("one token", 20, 1)
    engine.add("length of the model", 60, 40)
    engine.add("repetition", 20, 40, repetition=True)
    engine.tokens["repetition"].update(dict.fromkeys(range(1, 40), 5))
    engine.add("error from outside", 20, 40)
    engine.add("ignored", 20, 40)
    broken = engine.add("broken grammar", 20, 40, structured=True)
    engine.step()
    engine.abort("error from outside", RequestStatus.FINISHED_ERROR)
    engine.abort("ignored", RequestStatus.FINISHED_IGNORED)
    engine.grammar_is_ready(broken, ValueError("no such grammar"))
    engine.run()
    return engine.truth()


@scenario
def limits(model: str) -> Json:
    """One step for each thing that can keep a batch from being larger."""
    engine = Engine(model, 12, max_num_seqs=3, max_num_tokens=64)
    expected = []

    def step(limited_by: str) -> None:
        engine.step()
        expected.append(limited_by)

    engine.add("long", 100, 200)
    step("token_budget")
    step("no_waiting_request")
    for number in range(3):
        engine.add(f"short {number}", 10, 200)
    step("max_num_seqs")
    engine.abort([f"short {number}" for number in range(3)])
    # Five blocks are free, six are needed.
    engine.add("large", 90, 200)
    step("kv_blocks")
    engine.abort("large")
    engine.add("three blocks", 48, 200)
    engine.add("two blocks", 32, 200)
    # 1 + 48 tokens, and 15 of the 32.
    step("token_budget")
    # All twelve blocks are given, and "three blocks" needs one more.
    step("preemption")
    engine.abort("two blocks")
    engine.scheduler.set_pause_state(PauseState.PAUSED_NEW)
    engine.add("comes in a pause", 5, 200)
    step("paused")
    engine.scheduler.set_pause_state(PauseState.UNPAUSED)
    step("no_waiting_request")
    engine.abort("comes in a pause")
    structured = engine.add("structured", 5, 200, structured=True)
    step("structured_output")
    engine.grammar_is_ready(structured)
    step("no_waiting_request")
    engine.abort(["structured", "three blocks"])
    # vLLM gives it this state when its KV connector loads from elsewhere, and none is configured here.
    engine.add("remote", 5, 200, status=RequestStatus.WAITING_FOR_REMOTE_KVS)
    step("remote_kv")
    engine.add("ready", 5, 200)
    step("remote_kv")
    engine.abort(["remote", "ready"])
    step("no_waiting_request")
    return {**engine.truth(), "limited_by": expected}


@scenario
def other_limits(model: str) -> Json:
    """A prompt that does not fit into what is left of the token budget, and may not be cut."""
    engine = Engine(model, 64, max_num_tokens=64, max_model_len=64, enable_chunked_prefill=False)
    engine.add("first", 40, 3)
    engine.add("second", 40, 3)
    engine.run()
    return {
        **engine.truth(),
        "limited_by": ["other", "no_waiting_request", "no_waiting_request", "no_waiting_request"],
    }


@scenario
def adapters(model: str) -> Json:
    """One adapter at a time."""
    engine = Engine(model, 64, enable_lora=True, max_loras=1)
    for number in (1, 2):
        engine.add(f"request {number}", 20, 3, lora_request=LoRARequest(f"adapter {number}", number, "/nowhere"))
    engine.run()
    return {**engine.truth(), "limited_by": ["other"] * 3 + ["no_waiting_request"] * 3}


@scenario
def large_pool(model: str) -> Json:
    """More blocks than are followed one by one, all of them used, and used again."""
    engine = Engine(model, 9_000, max_num_seqs=64, max_num_tokens=8192)
    for number in range(500):
        engine.add(f"request-{number}", 480, 2)
    engine.run()
    return engine.truth()


@scenario
def pooling(model: str) -> Json:
    engine = Engine(model, 64, runner="pooling", max_num_tokens=64, enable_chunked_prefill=True)
    engine.add("one step", 20, pooling=True)
    engine.add("two steps", 100, pooling=True)
    engine.run()
    return engine.truth()


@scenario
def streaming(model: str) -> Json:
    """Sessions that go on with more input: after a pause, without one, and to an end that vLLM calls an abort."""
    engine = Engine(model, 64, max_num_seqs=4)
    engine.add("pauses", 20, 3, resumable=True)
    engine.add("goes on", 20, 3, resumable=True)
    engine.step()
    # Comes while the turn before runs.
    engine.add("goes on", 10, 2, resumable=True)
    engine.add("goes on", 1, 1)
    for _ in range(6):
        engine.step()
    engine.add("pauses", 10, 2, resumable=True)
    for _ in range(3):
        engine.step()
    engine.add("pauses", 1, 1)
    return engine.truth()


@scenario
def clients(model: str) -> Json:
    """Ids of vLLM's own beside those that clients have, one of them for several samples, and one used twice.

    They come from two front ends, one after the other in every step.
    """
    engine = Engine(model, 64)
    engine.ask("one sample", [3] * 20, max_tokens=3)
    engine.ask("three samples", [4] * 20, 3, max_tokens=4)
    engine.ask("the same", [5] * 20, max_tokens=2)
    engine.ask("the same", [6] * 20, client_index=1, max_tokens=2)
    engine.ask("of another front end", [7] * 20, client_index=1, max_tokens=5)
    while engine.scheduler.has_requests():
        engine.take(engine.step_number + 1, engine.step())
    return engine.truth()


@scenario
def arrivals(model: str) -> Json:
    """Times of arrival that are not the time at which a request is queued."""
    engine = Engine(model, 64)
    begin = time.time()
    engine.add("first", 20, 30)
    engine.run()
    engine.add("long on its way", 20, 3, arrival_time=begin)
    engine.add("unknown", 20, 3, arrival_time=float("nan"))
    engine.run()
    return engine.truth()


@scenario
def same_id_again(model: str) -> Json:
    engine = Engine(model, 64)
    for max_tokens in (3, 5):
        engine.add("again", 20, max_tokens)
        engine.run()
    return engine.truth()


@scenario
def named(model: str, ids: list[str]) -> Json:
    """Requests with these ids of clients, and with these ids: finished, preempted and aborted."""
    engine = Engine(model, 24, max_num_seqs=4)
    for request_id in ids:
        engine.add(request_id, 32, 40)
        if not any(0xD800 <= ord(character) < 0xE000 for character in request_id):
            engine.ask(request_id, [9] * 20, max_tokens=2)
    for _ in range(3):
        engine.step()
    engine.abort(ids[0])
    engine.reset_prefix_cache(reset_running_requests=True)
    engine.run()
    return engine.truth()


@scenario
def storm(
    model: str, seed: int, count: int = 300, overlapped: bool = False, collects: bool = False, **options: Any
) -> Json:
    """Many requests at random: shared prefixes, too few blocks, aborts and resets of the cache."""
    chance = random.Random(seed)
    if collects:
        options |= {"kv_cache_metrics": True, "kv_cache_metrics_sample": 1.0}
    engine = Engine(model, 40, max_num_tokens=96, asynchronous=overlapped, **options)
    prefixes = [[token * 1_000_000 + place for place in range(64)] for token in range(1, 5)]
    under_way: Any = None
    is_priority = options.get("scheduling_policy") == "priority"
    begin = 1_700_000_000.0
    while len(engine.requests) < count or engine.scheduler.has_requests():
        for _ in range(chance.randrange(3) if len(engine.requests) < count else 0):
            number = len(engine.requests)
            own = [number * 1000 + place for place in range(chance.randrange(1, 120))]
            prefix = chance.choice(prefixes)[: chance.choice((0, 15, 16, 40, 64))]
            engine.add(
                f"request-{number}",
                prefix + own,
                chance.randrange(1, 60),
                priority=chance.randrange(-2, 3) if is_priority else 0,
                arrival_time=begin + number,
            )
        here = sorted(engine.scheduler.requests)
        if here and chance.random() < 0.05:
            engine.abort(chance.sample(here, min(2, len(here))))
        if chance.random() < 0.01:
            engine.reset_prefix_cache(reset_running_requests=True)
        output = engine.schedule()
        if overlapped:
            output, under_way = under_way, output
        if output is not None:
            engine.update(output)
    if under_way is not None:
        engine.update(under_way)
    return engine.truth()


def resident_kib() -> list[int]:
    """Memory of this process: what is no file's, and all."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    sizes = dict(line.split()[:2] for line in status.splitlines() if line.endswith(" kB"))
    return [int(sizes["RssAnon:"]), int(sizes["VmRSS:"])]


@scenario
def many(model: str, count: int, at_once: int) -> Json:
    """So many short requests, so many of them at once; the script keeps nothing of those that are done."""
    engine = Engine(
        model,
        at_once * 2 + 8,
        max_num_seqs=at_once,
        max_num_tokens=at_once * 8,
        max_model_len=64,
        keeps_truth=False,
    )
    prompt = [3, 4, 5]
    added = finished = tokens = most_running = 0
    resident: dict[int, list[int]] = {}
    measured_at = [count * percent // 100 for percent in (20, 40, 60, 80, 100)]
    while engine.scheduler.has_requests() or finished < count:
        while added < count and len(engine.scheduler.requests) < at_once + 50:
            engine.add(f"request-{added}", prompt, 2 + added % 3)
            added += 1
        for each in engine.step().values():
            for output in each.outputs:
                tokens += len(output.new_token_ids)
                finished += output.finish_reason is not None
        most_running = max(most_running, len(engine.scheduler.running))
        while measured_at and finished >= measured_at[0]:
            gc.collect()
            resident[measured_at.pop(0) * 100 // count] = resident_kib()
    truth = {
        "finished": finished,
        "tokens": tokens,
        "most_running": most_running,
        "steps": engine.step_number,
        "resident_kib": resident,
    }
    books = getattr(engine.scheduler, "_profilemate_books", None)
    if books is not None:
        truth["books"] = [len(books.prefilling), len(books.awaiting)]
    return truth


@scenario
def broken(model: str, folder: str, storms: list[int], everything: bool = False) -> Json:
    """What our extractors read of vLLM, broken in every way, one thing at a time."""
    # Not before: it reads what hooks there are, and other scenarios begin without us.
    from support import broken

    return broken.cases(model, Path(folder), storms, everything)


# Where they run


def run(model: str, order: Json) -> None:
    os.environ.update(order["environment"])
    if order["is_profiled"]:
        # What vLLM calls in each of its processes.
        from profilemate.attach import plugin

        plugin()
    truth = SCENARIOS[order["scenario"]](model, **order["arguments"])
    (Path(order["folder"]) / "truth.json").write_text(json.dumps(truth), encoding="utf-8")


def fork(model: str, order: Json) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            log = os.open(Path(order["folder"]) / "output.log", os.O_WRONLY | os.O_CREAT, 0o600)
            os.dup2(log, 1)
            os.dup2(log, 2)
            run(model, order)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            # As a process that is killed: no log is closed.
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main() -> None:
    model = sys.argv[1]
    # What vLLM's modules are made of is looked at by no garbage collection of a child.
    gc.collect()
    gc.freeze()
    print("ready", flush=True)
    for line in sys.stdin:
        print("ended", fork(model, json.loads(line)), flush=True)


if __name__ == "__main__":
    main()
