"""Whatever clients make up is told as ``other``: a hundred thousand names, keys and paths add not one series.

A good many of them come over real sockets. The others go through what a call goes through behind the server: router,
chain and the end of the chain, which a provider answers from memory.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any, Final, cast

import aiohttp
import structlog

from gateway.app import instrument, make_providers, make_router
from gateway.core.call import Call, Message, TextPart
from gateway.core.errors import GatewayError
from gateway.core.events import Event
from gateway.ledger import LogLedger
from gateway.pipeline import compose
from gateway.simulator import Script
from gateway.telemetry.slab import Child, Slab
from gateway.upstream import Upstream
from tests.exposition import Exposition, scrape
from tests.gateway.telemetry.storm import CONFIG, KEY, MODELS, PROVIDERS
from tests.gateway.telemetry.witness import Watched, watched
from tests.raw_client import chat, request

JUNK: Final = "junk"
PATH: Final = "/v1/chat/completions"
TIMEOUT_S: Final = 240.0
PIPELINE: Final = 50
"""Requests that are sent before their answers are waited for."""

OVER_SOCKETS: Final = {"path": 6_000, "key": 4_000, "model": 3_000, "header": 1_000, "target": 300}
IN_MEMORY: Final = 86_000

Make = Callable[[int], bytes]


def _post(model: str, *, key: str = KEY, path: str = PATH, **headers: Any) -> bytes:
    body = chat("ticket-0", model=model, stream=False, max_tokens=9)
    return request(path, body, authorization=f"Bearer {key}", **headers)


def _junk_path(number: int) -> bytes:
    """Return a request for something that nobody has: a path, a model's page, a file, a method."""
    match number % 5:
        case 0:
            return request(f"/{JUNK}/{number}", method="GET")
        case 1:
            return _post("openai", path=f"{PATH}/{JUNK}{number}?{JUNK}={number}")
        case 2:
            return request(f"/v1/models/{JUNK}{number}", method="GET", authorization=f"Bearer {KEY}")
        case 3:
            return request(f"/page/{JUNK}{number}.js", method="GET")
        case _:
            return request(f"{PATH}?{JUNK}={number}", method="DELETE")


def _junk_key(number: int) -> bytes:
    key = f"{JUNK}{number}"
    return _post(JUNK, key=key) if number % 2 else request(PATH, chat(), x_api_key=key)


def _junk_model(number: int) -> bytes:
    names = (f"{JUNK}{number}", f"{JUNK}{number}/{JUNK}", f"{JUNK}/{number}/{number}", f"openai{number}/mill")
    return _post(names[number % 4])


def _junk_header(number: int) -> bytes:
    word = f"{JUNK}{number}"
    trace = f"00-{number + 1:032x}-{number + 1:016x}-01"
    named = dict.fromkeys(("x_request_id", "user_agent", "idempotency_key", "openai_beta", word), word)
    return _post(JUNK, traceparent=trace, tracestate=f"{JUNK}={number}", **named)


def _junk_target(number: int) -> bytes:
    """Return a request for a model that a configured provider may have or not: one that answers, one that refuses."""
    names = (
        f"openai/{JUNK}{number}?token_count=3",
        f"mistral/{JUNK}{number}?token_count=3",
        f"google/{JUNK}{number}?status=400",
        f"anthropic/{JUNK}{number}?status=404",
    )
    return _post(names[number % 4])


KINDS: Final[dict[str, Make]] = {
    "path": _junk_path,
    "key": _junk_key,
    "model": _junk_model,
    "header": _junk_header,
    "target": _junk_target,
}


# --- over sockets


class _Counting(asyncio.Protocol):
    """A connection that counts its answers."""

    def __init__(self) -> None:
        self._ends: list[tuple[int, asyncio.Future[None]]] = []
        self._tail = b""
        self.count = 0

    def answered(self, count: int) -> asyncio.Future[None]:
        """Return what is done when there are so many answers."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ends.append((count, done))
        return done

    def data_received(self, data: bytes) -> None:
        """Count the heads of answers in it."""
        mark = b"HTTP/1.1 "
        text = self._tail + data
        self.count += text.count(mark)
        self._tail = text[-len(mark) + 1 :]
        for count, done in self._ends:
            if self.count >= count and not done.done():
                done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        """Whoever waits for more waits in vain."""
        for _, done in self._ends:
            if not done.done():
                done.set_exception(ConnectionResetError(f"closed after {self.count} answers: {error}"))


async def _send(running: Watched, make: Make, numbers: Sequence[int]) -> None:
    """Send requests over one connection and wait for all answers."""
    loop = asyncio.get_running_loop()
    host, _, port = running.url.removeprefix("http://").partition(":")
    transport, counting = await loop.create_connection(_Counting, host, int(port))
    try:
        async with asyncio.timeout(TIMEOUT_S):
            for begin in range(0, len(numbers), PIPELINE):
                some = numbers[begin : begin + PIPELINE]
                done = counting.answered(begin + len(some))
                cast("asyncio.WriteTransport", transport).write(b"".join(map(make, some)))
                await done
    finally:
        transport.close()


# --- in memory


class _Content:
    """The body of an answer from memory."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def readany(self) -> bytes:
        """Return all of it, and then nothing."""
        body, self._body = self._body, b""
        return body


@dataclass(slots=True)
class _Response:
    """What ``Upstream`` looks at of an answer."""

    status: int
    content: _Content
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    connection: None = None


class _Memory:
    """A session whose provider knows no model but some."""

    connector: None = None

    def __init__(self) -> None:
        self._statuses = cycle((200, 403, 400))

    async def post(self, url: object, **_: object) -> _Response:
        """Answer, or refuse in one of several ways."""
        status = next(self._statuses)
        word = f"{JUNK}-{id(url)}"
        if status != 200:
            body = b'{"error":{"message":"%b","type":"%b","code":"%b"}}' % ((word.encode(),) * 3)
        else:
            body = (
                b'{"id":"%b","model":"%b","choices":[{"index":0,"message":{"role":"assistant","content":"x"},'
                b'"finish_reason":"%b"}],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}'
            ) % ((word.encode(),) * 3)
        return _Response(status, _Content(body), {"x-ratelimit-remaining-requests": word, word: word})


class _Chain:
    """What is behind the server of a running gateway: the same chain and the same meters."""

    def __init__(self, running: Watched) -> None:
        gateway = running.gateway
        session = cast("aiohttp.ClientSession", _Memory())
        upstream = Upstream(make_providers(gateway.config, simulator_url=""), session, meters=gateway._telemetry.meters)
        self._pipeline = compose(instrument(gateway.middlewares, gateway._telemetry), upstream)
        self._route = make_router(gateway.config)

    async def call(self, number: int) -> None:
        """Call for a model that nobody has configured, every other time without a key."""
        word = f"{JUNK}{number}"
        name = _NAMES[number // 2 % len(_NAMES)].replace(JUNK, word)
        call = Call(
            request_id=word,
            endpoint="chat_completions",
            model=name,
            route=self._route(name),
            credential=KEY if number % 2 else word,
            headers={"idempotency-key": word},
            received_at_s=time.monotonic(),
            messages=_MESSAGES,
            max_output_tokens=9,
            ledger=LogLedger(),
        )
        with suppress(GatewayError):
            await self._pipeline(call, _ignore)


_NAMES: Final = (*(JUNK, f"{JUNK}/{JUNK}", f"nobody/{JUNK}", f"{JUNK}-4o") * 5, f"openai/{JUNK}", f"vllm/{JUNK}")
"""Most are nobody's: those are refused at once, and cost the least."""

_MESSAGES: Final = (Message(role="user", parts=(TextPart("Hello"),)),)


def _ignore(events: Sequence[Event]) -> None:
    """Hear nothing."""


# --- what it may not leave behind


@dataclass(frozen=True, slots=True)
class Seen:
    """What there is to be seen of all that was counted, and how much memory it takes."""

    exposition: Exposition
    children: tuple[Child, ...]
    slab_blocks: int

    @classmethod
    async def of(cls, running: Watched) -> Seen:
        """Look at a gateway, from outside and from inside."""
        slab = running.slab
        children = tuple(Slab.attach(os.dup(slab.fd)).children())
        return cls(await scrape(running.admin_url), children, os.fstat(slab.fd).st_blocks)


@contextmanager
def _nothing_logged() -> Iterator[None]:
    """Drop all lines: here there are too many."""

    def drop(*_: Any) -> Any:
        raise structlog.DropEvent

    before = structlog.get_config()["processors"]
    structlog.configure(processors=[drop])
    try:
        yield
    finally:
        structlog.configure(processors=before)


async def test_a_hundred_thousand_things_that_clients_made_up_add_no_series() -> None:
    """Names of models and targets, keys, paths, methods, headers: after a few of each, everything is known as other."""
    with _nothing_logged():
        async with watched(CONFIG, Script(first_token_s=0.0, interval_s=0.0)) as running:
            chain = _Chain(running)
            await asyncio.gather(*(_send(running, make, range(40)) for make in KINDS.values()))
            for number in range(200):
                await chain.call(number)
            await asyncio.sleep(0)
            before = await Seen.of(running)

            await asyncio.gather(
                *(_send(running, KINDS[kind], range(1000, 1000 + count)) for kind, count in OVER_SOCKETS.items())
            )
            for number in range(1000, 1000 + IN_MEMORY):
                await chain.call(number)
                if number % 500 == 0:
                    await asyncio.sleep(0)
            after = await Seen.of(running)

    junk_count = sum(OVER_SOCKETS.values()) + IN_MEMORY
    assert junk_count > 100_000
    _check_counted(before.exposition, after.exposition, junk_count)
    assert after.exposition.series == before.exposition.series
    assert after.children == before.children
    assert after.slab_blocks == before.slab_blocks
    assert after.exposition.total("millrace_metric_series_overflow_total") == 0
    told = {value for sample in after.exposition.samples for value in sample.labels.values()}
    assert not [value for value in told if JUNK in value]
    targets = {target for model in MODELS.values() for target in model["targets"]}
    models, upstreams = (
        {sample.labels[label] for sample in after.exposition.samples if label in sample.labels}
        for label in ("model", "upstream")
    )
    assert models <= {"other", *MODELS}
    assert upstreams <= {"none", "other", *targets, *(f"{provider}/other" for provider in PROVIDERS)}


def _check_counted(before: Exposition, after: Exposition, junk_count: int) -> None:
    """Assert that every one of them was counted, as ``other``."""

    def grown(name: str, **labels: str) -> float:
        return after.total(name, **labels) - before.total(name, **labels)

    others = junk_count - OVER_SOCKETS["path"]
    assert grown("millrace_requests_total", model="other") == others
    assert grown("millrace_http_responses_total") == sum(OVER_SOCKETS.values())
    assert grown("millrace_http_responses_total", route="other", code="404") >= OVER_SOCKETS["path"] // 5
    reasons = after.by("reason", "millrace_rejected_total")
    assert reasons.keys() == {"unauthorized", "unknown_model"}
    assert min(reasons.values()) > 10_000
    for result in ("completed", "failed"):
        assert grown("millrace_upstream_attempts_total", upstream="openai/other", result=result) > 300
        assert grown("millrace_upstream_attempts_total", upstream="vllm/other", result=result) > 300
    assert len(after.by("error_type", "millrace_upstream_attempts_total")) >= 3
