"""Clients of a server that note what they see and when."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from support.processes import LIMIT_SECONDS


@dataclass
class Seen:
    """What a client saw of its request. Times are of the system's clock, in seconds."""

    request_id: str
    sent: float = 0.0
    first_token: float | None = None
    last_token: float | None = None
    #: Pieces of the answer that were read; each has one token at least.
    pieces: int = 0
    #: By sample.
    texts: dict[int, str] = field(default_factory=dict)
    finish_reasons: dict[int, str] = field(default_factory=dict)
    usage: dict[str, Any] = field(default_factory=dict)
    #: What came instead of an end.
    error: str = ""


@dataclass
class Ask:
    """A request for completions."""

    request_id: str
    prompt: Sequence[int]
    max_tokens: int
    n: int = 1
    stop: str | None = None
    #: Goes away after so many pieces of the answer.
    leaves_after: int | None = None
    #: Goes away once this holds, without having read anything.
    leaves_when: Callable[[], bool] | None = None


def body(model: str, ask: Ask) -> dict[str, Any]:
    return {
        "model": model,
        "prompt": list(ask.prompt),
        "max_tokens": ask.max_tokens,
        "n": ask.n,
        "stop": ask.stop,
        "ignore_eos": True,
        # Several samples of the most likely tokens would all be the same.
        "temperature": 0 if ask.n == 1 else 1,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def follow(session: aiohttp.ClientSession, url: str, model: str, ask: Ask) -> Seen:
    """Sends a request and reads the answer piece by piece."""
    seen = Seen(ask.request_id)
    seen.sent = time.time()
    try:
        async with session.post(url, json=body(model, ask), headers={"X-Request-Id": ask.request_id}) as answer:
            if answer.status != 200:
                seen.error = f"{answer.status}: {await answer.text()}"
                return seen
            if ask.leaves_when is not None:
                deadline = time.monotonic() + LIMIT_SECONDS
                while not ask.leaves_when():
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"{ask.request_id}: its moment to leave did not come")
                    await asyncio.sleep(0.05)
                return seen
            async for line in answer.content:
                now = time.time()
                data = line.decode().removeprefix("data: ").strip()
                if not data or data == "[DONE]":
                    continue
                piece = json.loads(data)
                if "error" in piece:
                    seen.error = str(piece["error"])
                    continue
                if piece.get("usage"):
                    seen.usage = piece["usage"]
                for choice in piece["choices"]:
                    seen.first_token = seen.first_token or now
                    seen.last_token = now
                    index = choice["index"]
                    seen.texts[index] = seen.texts.get(index, "") + choice["text"]
                    if choice["finish_reason"]:
                        seen.finish_reasons[index] = choice["finish_reason"]
                seen.pieces += bool(piece["choices"])
                if seen.pieces == ask.leaves_after:
                    return seen
    except (aiohttp.ClientError, asyncio.TimeoutError) as error:
        seen.error = f"{type(error).__name__}: {error}"
    return seen


def ask_all(port: int, model: str, asks: Sequence[Ask]) -> list[Seen]:
    """All of them at once; what each saw."""

    async def all_of_them() -> list[Seen]:
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=LIMIT_SECONDS)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            url = f"http://127.0.0.1:{port}/v1/completions"
            return await asyncio.gather(*(follow(session, url, model, ask) for ask in asks))

    return asyncio.run(all_of_them())
