"""vLLM's objects as our extractors see them, with something wrong: an attribute is not there, or of another kind.

Every extractor is called with stand-ins for its arguments. They pass everything on and note what was asked for, so the
list of what may be broken makes itself: whatever a probe reads is one site. vLLM itself never meets a stand-in.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import random
import re
import shutil
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

from vllm.config import CUDAGraphMode
from vllm.forward_context import BatchDescriptor
from vllm.v1.request import RequestStatus

from support import engine as by_hand
from support.engine import Engine, Json

STOP = "a signal's handler ended the process"


def _raise(error: BaseException) -> Any:
    raise error


#: What may be wrong, by name: what a site gives in place of its value.
DAMAGES: dict[str, Callable[[], Any]] = {
    "missing": lambda: _raise(AttributeError("broken")),
    "raises": lambda: _raise(RuntimeError("broken")),
    "none": lambda: None,
    "object": object,
    "text": lambda: "\ud800 text",
    "negative": lambda: -1,
    "huge": lambda: 1 << 80,
    "nan": lambda: float("nan"),
    "empty": list,
    "exits": lambda: _raise(SystemExit(STOP)),
}

#: Those that every site is broken with in every run of the tests. The others take turns.
_ALWAYS = ("missing", "exits")

#: Values that are what they are.
_PLAIN = (bool, int, float, complex, str, bytes, type(None), type, set, frozenset)


class Breaker:
    """What is broken in this process."""

    def __init__(self) -> None:
        #: Every site that was met, and how often.
        self.met: dict[str, int] = {}
        self.site = ""
        self.damage = ""
        self.chance: random.Random | None = None
        self.hits = 0

    def touch(self, site: str, value: Callable[[], Any]) -> Any:
        self.met[site] = self.met.get(site, 0) + 1
        damage = ""
        if self.chance is not None:
            if self.chance.random() < 0.2:
                damage = self.chance.choice([name for name in DAMAGES if name != "exits"])
        elif site == self.site:
            damage = self.damage
        if damage:
            self.hits += 1
            return DAMAGES[damage]()
        return self.wrap(value(), site)

    def wrap(self, value: Any, site: str) -> Any:
        # Asking a stand-in for its class would be reading it.
        if type(value) is Proxy or type(value).__module__ == "profilemate._native":
            return value
        if isinstance(value, _PLAIN) and not hasattr(value, "_name_"):
            return value
        if isinstance(value, dict):
            return {key: self.wrap(each, f"{site}[]") for key, each in value.items()}
        if isinstance(value, list | tuple) and type(value) in (list, tuple):
            return type(value)(self.wrap(each, f"{site}[]") for each in value)
        if inspect.isroutine(value):
            return lambda *arguments, **keywords: self.touch(f"{site}()", lambda: value(*arguments, **keywords))
        return Proxy(value, site)

    def watched(self, name: str, extractor: Any) -> Callable[..., Any] | None:
        """The same extractor, that gets stand-ins."""
        if extractor is None:
            return None
        from profilemate import _native

        def watching(*arguments: Any, **keywords: Any) -> Any:
            self.met.setdefault(name, 0)
            return _native.extract(
                extractor,
                *(self.wrap(each, f"{name} {place}") for place, each in enumerate(arguments)),
                **{key: self.wrap(each, f"{name} {key}") for key, each in keywords.items()},
            )

        return watching


BREAKER = Breaker()


class Proxy:
    """Stands in for an object."""

    __slots__ = ("_object", "_site")

    def __init__(self, instance: Any, site: str) -> None:
        object.__setattr__(self, "_object", instance)
        object.__setattr__(self, "_site", site)

    def __getattribute__(self, name: str) -> Any:
        instance, site = object.__getattribute__(self, "_object"), object.__getattribute__(self, "_site")
        return BREAKER.touch(f"{site}.{name}", lambda: getattr(instance, name))

    def __setattr__(self, name: str, value: Any) -> None:
        instance, site = object.__getattribute__(self, "_object"), object.__getattribute__(self, "_site")
        if BREAKER.touch(f"{site}.{name}=", lambda: True) is True:
            setattr(instance, name, value)

    def __hash__(self) -> int:
        return hash(object.__getattribute__(self, "_object"))

    def __eq__(self, other: object) -> bool:
        return bool(object.__getattribute__(self, "_object") == other)


def _forward(method: str) -> Any:
    def forward(self: Proxy, *arguments: Any) -> Any:
        instance, site = object.__getattribute__(self, "_object"), object.__getattribute__(self, "_site")
        return BREAKER.touch(f"{site}.{method}", lambda: getattr(instance, method)(*arguments))

    return forward


for _method in ("__len__", "__iter__", "__contains__", "__getitem__", "__bool__", "__int__", "__index__"):
    setattr(Proxy, _method, _forward(_method))


class _Relay:
    """Tells a collector of KV cache metrics of stand-ins for blocks."""

    def __init__(self, collector: Any) -> None:
        self.collector = collector

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.collector, name)
        if not name.startswith("on_block"):
            return method
        return lambda block: method(BREAKER.wrap(block, f"kv_cache.collector {name}"))


def install() -> list[Any]:
    """Has every extractor get stand-ins; gives the hooks."""
    from profilemate import probes
    from profilemate.probes import kv_cache

    probes.HOOKS = tuple(
        replace(
            spec,
            before=BREAKER.watched(f"{spec.name}.before", spec.before),
            after=BREAKER.watched(f"{spec.name}.after", spec.after),
        )
        for spec in probes.HOOKS
    )
    make = kv_cache._collector

    def relayed(pool: Any, name: str) -> Any:
        real = object.__getattribute__(pool, "_object") if type(pool) is Proxy else pool
        if isinstance(real.metrics_collector, _Relay):
            # Each way to a pool has a stand-in of its own, so that one pool looks like several.
            return real.metrics_collector.collector
        collector = make(pool, name)
        real.metrics_collector = _Relay(collector)
        return collector

    kv_cache._collector = relayed
    return list(probes.HOOKS)


# What happens


def exercise(model: str, hooks: list[Any]) -> Json:
    """A little of everything that vLLM does. What it gives is what must be the same whatever is broken."""
    engine = Engine(model, 8, max_num_tokens=64)
    engine.add("first", 32, 24)
    engine.add("second", 32, 20)
    engine.add("victim", 40, 30)
    engine.add("aborted", 10, 30)
    for _ in range(6):
        engine.step()
    engine.abort("aborted")
    engine.reset_prefix_cache(reset_running_requests=True)
    engine.ask("one sample", [3] * 20, max_tokens=3)
    engine.ask("two samples", [4] * 20, 2, client_index=1, max_tokens=2)
    for _ in range(200):
        if not engine.scheduler.has_requests():
            break
        step, outputs = engine.step_number + 1, engine.step()
        engine.take(step, {client: each for client, each in outputs.items() if client in engine.processors})
    errors = [
        _error(lambda: engine.scheduler.add_request(None)),
        _error(lambda: engine.scheduler.update_from_output(None, None)),
        _error(lambda: engine.scheduler.finish_requests("first", RequestStatus.RUNNING)),
    ]
    return {
        "results": _without_chance(engine.results),
        "requests": [request.status.name for request in engine.requests.values()],
        "errors": errors,
        "others": _others(engine, hooks),
    }


def _without_chance(results: list[Any]) -> Any:
    """Results without the random part of the ids that vLLM makes for requests of clients."""
    return json.loads(re.sub(r"samples?-[0-9a-f]{8}", "sample", json.dumps(results)))


def _error(call: Callable[[], Any]) -> list[str]:
    """What vLLM raises, and where."""
    try:
        call()
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        return [type(error).__name__, str(error), frames[-1].name, str(frames[-1].line)]
    return []


def _calls(engine: Engine) -> dict[str, list[tuple[tuple[Any, ...], Any, dict[str, Any]]]]:
    """Hooks on what does not run here: with what they are called, and what the function gives."""
    output = SimpleNamespace(total_num_scheduled_tokens=8, num_scheduled_tokens={"a": 8}, profilemate_step=3)
    descriptor = BatchDescriptor(num_tokens=8)
    of_v2 = SimpleNamespace(num_tokens=8, num_reqs=2, uniform_token_count=1, num_active_loras=0)
    manager = SimpleNamespace(use_breakable_cg=False, _capture_descs={CUDAGraphMode.FULL: [of_v2, of_v2]})
    full = {"cudagraph_runtime_mode": CUDAGraphMode.FULL, "uniform_decode": True, "num_active_loras": 0}
    runner = SimpleNamespace()
    worker = SimpleNamespace(model_runner=SimpleNamespace(speculator=None))
    idle = SimpleNamespace(has_work=lambda: False, scheduler=engine.scheduler)
    step: list[tuple[tuple[Any, ...], Any, dict[str, Any]]] = [((runner, output), None, {})]
    return {
        "worker.init": [((None, engine.config, 0, 0), None, {})],
        "engine_core.init": [((None, engine.config), None, {})],
        "front_end.async_llm": [((None, engine.config), None, {"client_index": 0})],
        "front_end.llm_engine": [((None, engine.config), None, {})],
        "engine_core.process_input_queue": [((idle,), None, {})],
        "worker.load_model": [((worker,), None, {})],
        "model_runner.execute_model": step,
        "model_runner_v2.execute_model": step,
        "cuda_graphs.capture_model": [((runner,), 5, {})],
        "model_runner.dummy_run": [((runner, 8), None, full)],
        "cuda_graphs.capture_v2": [((manager,), None, {})],
        "cuda_graphs.dispatch": [((runner,), (CUDAGraphMode.FULL, descriptor), {})],
        "cuda_graphs.dispatch_v2": [
            ((runner,), (SimpleNamespace(cg_mode=CUDAGraphMode.FULL, **vars(of_v2)), None), {})
        ],
        "output_processor.process_outputs": [
            ((None, [], 1.5), SimpleNamespace(reqs_to_abort=["stopped"], request_outputs=[]), {})
        ],
        "model_runner.async_output": [((SimpleNamespace(profilemate_step=3),), None, {})],
        "model_runner_v2.async_output": [((SimpleNamespace(profilemate_step=3),), None, {})],
        "model_runner.sample_tokens (lightweight)": [((runner,), SimpleNamespace(), {})],
        "model_runner_v2.sample_tokens (lightweight)": [((runner,), SimpleNamespace(), {})],
    }


def _arguments(extractor: Callable[..., Any] | None) -> tuple[Any, ...]:
    """Something for each argument of an extractor that nothing is known of."""
    return tuple(MagicMock() for _ in range(4 if extractor is None else 2))


def _others(engine: Engine, hooks: list[Any]) -> list[Any]:
    """Calls every hook that did not run, by itself."""
    from profilemate import _native

    known = _calls(engine)
    given = []
    for spec in hooks:
        name = spec.name
        if any(site.startswith((f"{name}.before", f"{name}.after")) for site in BREAKER.met) and name not in known:
            continue
        for arguments, result, keywords in known.get(name, [(_arguments(spec.before), "result", {})]):
            hook = _native.Hook(
                lambda *_arguments, result=result, **_keywords: result,
                name,
                kind=spec.kind,
                span=spec.span,
                lane=spec.lane,
                marks=spec.marks,
                closes_step=spec.closes_step,
                before=spec.before,
                after=spec.after,
            )
            # Twice: what is known is read another way.
            given += [[name, hook(*arguments, **keywords) is result] for _ in range(2)]
    return given


# Where it happens


class _Case:
    """One run with one thing broken, in a process of its own."""

    def __init__(self, model: str, hooks: list[Any], folder: Path, case: list[str]) -> None:
        self.case = case
        #: The session of the one in which nothing is broken stays, where sessions are.
        self.is_kept = not any(case)
        self.session = folder / f"session_{case[1]}_{abs(hash(case[0]))}"
        self.reading, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            with contextlib.suppress(BaseException):
                os.close(self.reading)
                if not self.is_kept:
                    os.environ["PROFILEMATE_SESSION"] = str(self.session)
                told = json.dumps(self._run(model, hooks))
                with os.fdopen(writing, "w") as pipe:
                    pipe.write(told)
                code = 0
            os._exit(code)
        os.close(writing)

    def _run(self, model: str, hooks: list[Any]) -> Json:
        from profilemate import _native

        BREAKER.site, BREAKER.damage = self.case
        if BREAKER.damage == "storm":
            BREAKER.chance = random.Random(int(BREAKER.site))
        try:
            found = exercise(model, hooks)
        except SystemExit as stop:
            found = {"exit": str(stop)}
        except BaseException:
            found = {"failed": traceback.format_exc()}
        return {**found, "hits": BREAKER.hits, "met": BREAKER.met, "records": _native.statistics()[0]}

    def done(self) -> Json:
        with os.fdopen(self.reading) as pipe:
            text = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        shutil.rmtree(self.session, ignore_errors=True)
        found: Json = json.loads(text) if status == 0 and text else {"failed": f"ended with {status}"}
        return found


def cases(model: str, folder: Path, storms: list[int], everything: bool) -> Json:
    """Runs with each site broken in some ways, or in each; gives what was not as it is without."""
    configured = vars(by_hand)["EngineArgs"]
    ready: list[Any] = []

    class Once:
        """The configuration is made once, and is the same for all."""

        def __init__(self, **options: Any) -> None:
            self.options = options

        def create_engine_config(self) -> Any:
            if not ready:
                ready.append(configured(**self.options).create_engine_config())
            return ready[0]

    vars(by_hand)["EngineArgs"] = Once
    hooks = install()
    Once(
        model=model,
        load_format="dummy",
        enforce_eager=True,
        max_model_len=512,
        max_num_seqs=8,
        max_num_batched_tokens=64,
    ).create_engine_config()
    plain = _Case(model, hooks, folder, ["", ""]).done()
    sound = {key: plain.get(key) for key in ("results", "requests", "errors", "others")}
    wanted = []
    for place, site in enumerate(_sites(plain)):
        others = [damage for damage in DAMAGES if damage not in _ALWAYS]
        damages = DAMAGES if everything else [*_ALWAYS, others[place % len(others)]]
        wanted += [[site, damage] for damage in damages]
    wanted += [[str(seed), "storm"] for seed in storms]
    wrong: list[Any] = []
    hits: dict[str, int] = {}
    # Two at a time.
    under_way: list[_Case] = []
    for number in range(len(wanted) + 1):
        if number < len(wanted):
            under_way.append(_Case(model, hooks, folder, wanted[number]))
        if len(under_way) == 2 or number == len(wanted):
            oldest = under_way.pop(0)
            done, damage = oldest.done(), oldest.case[1]
            hits[damage] = hits.get(damage, 0) + done.get("hits", 0)
            problem = _problem(damage, done, sound)
            if problem:
                wrong.append([oldest.case, problem])
    return {
        "plain": plain,
        "hooks": [spec.name for spec in hooks if spec.before or spec.after],
        "cases": len(wanted),
        "hits": hits,
        "wrong": wrong[:20],
    }


def _problem(damage: str, done: Json, sound: Json) -> str:
    """What vLLM noticed of what was broken; nothing, as a rule."""
    if damage == "exits" and done.get("hits"):
        return "" if done.get("exit") == STOP else str(done.get("failed") or "the exit was swallowed")
    if "failed" in done or "exit" in done:
        return str(done.get("failed") or done.get("exit"))
    different = [key for key in sound if done.get(key) != sound[key]]
    return f"vLLM did something else: {different}" if different else ""


def _sites(plain: Json) -> Iterator[str]:
    """What is broken, once: every process that takes a role reads the same of vLLM's configuration."""
    seen = set()
    # Names of extractors stand without a place; they were called, and nothing was read.
    for site in sorted(site for site in plain.get("met", {}) if " " in site):
        what = site.partition(" ")[2]
        if "_config." not in what or what not in seen:
            seen.add(what)
            yield site
