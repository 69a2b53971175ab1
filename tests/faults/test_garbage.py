"""No call leaves a circle behind, however it ends.

A worker keeps the garbage collector so calm that what only that can clear up stays for a long time: a call with its
tasks, its errors, their frames and all of its answer. So each of them has to go by its reference counts. Here calls end
in every way at once, the collector kept away from them, and then it is asked what it would have had to do.

The libraries do not quite keep to that: their circles do not count as long as nothing of ours hangs on to one, and two
that have a connection of ours are left out in ``garbage.py``. With uvloop there is next to nothing else: a route of
aiohttp's for each path that does not exist. The transports of asyncio's own loop are all in circles, and its TLS, which
holds on to whatever the loop had to do, is not tried.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest
import uvloop
from aiohttp import web
from aiohttp.base_protocol import BaseProtocol
from structlog.testing import capture_logs
from tenacity import wait_none

from gateway import connection, exchange
from gateway.guard import ConnectionGuard
from gateway.simulator import Script
from gateway.stream import HIGH_WATER_BYTES
from middleware import resume
from tests.conftest import MODELS
from tests.eventually import eventually
from tests.faults.garbage import uncollected
from tests.gateway.telemetry import storm
from tests.gateway.telemetry.storm import CHAT, KEY, SHORT, WHOLE, Kind, Manner, Told, ask
from tests.gateway.telemetry.witness import Watched, watched
from tests.raw_client import chat, connected, request
from tests.scripted_upstream import Certificate
from tests.sdk.truth import TOOLS

LOOPS: Final = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
AT_ONCE: Final = 32
TIMEOUT_S: Final = 30.0
OUTCOMES: Final = frozenset({
    "completed", "client_aborted", "upstream_error", "truncated", "stalled", "deadline", "gateway_error", "rejected",
})  # fmt: skip
"""All but what a drain makes of a call, which has its own test."""

WIRES: Final = {name: MODELS[name] for name in ("openai", "anthropic", "google", "mistral", "llama")} | {
    "secure": "mill"
}
"""Providers, and what they are asked for; the last is asked over TLS."""

GOOD: Final = "token_count=16"
ENDLESS: Final = "token_count=1200&interval_s=0.05"
FAULTS: Final = (
    "status=400",
    "status=429",
    "status=500",
    "status=529",
    "refuse=fin",
    "refuse=rst",
    "error_first",
    "cut_after_bytes=0",
    "cut_after_tokens=0&cut=rst",
    "cut_after_tokens=5",
    "cut_after_tokens=5&cut=rst",
    "cut_after_tokens=5&cut=clean",
    "close_delimited&cut_after_tokens=5",
    "cut_in=finish",
    "error_after=4",
    "malformed_after=0",
    "malformed_after=4",
    "no_end",
)
"""How an attempt ends that does not go well; each is met once and mended, and met again and again."""


def kinds(wires: Sequence[str]) -> list[Kind]:
    """Return the calls: those of the storm once each, and every fault on some wires."""
    found = list(storm.KINDS)
    for turn, wire in enumerate(wires):
        model = f"{wire}/{WIRES[wire]}"
        for number, fault in enumerate(FAULTS, turn):
            found.append(Kind(1, f"{model}?{fault}"))
            found.append(Kind(1, f"{model}?{fault}", more=SHORT) if number % 2 else Kind(1, f"{model}?{fault};{GOOD}"))
            if number % 6 == 0:
                found.append(Kind(1, f"{model}?{fault}", more=WHOLE))
        found.append(Kind(1, f"{model}?half_tool&tools=2", more={"tools": TOOLS}))
        found.append(Kind(1, f"{model}?tools=2;{GOOD}", more={"tools": TOOLS}))
        leaving: Sequence[tuple[str, Manner]] = (
            (ENDLESS, "leaves midway"), ("first_token_s=60", "leaves unanswered"), ("head_s=60", "leaves unanswered"),
            (f"status=503;{ENDLESS}", "leaves midway"), (f"cut_after_tokens=9;{ENDLESS}", "leaves midway"),
        )  # fmt: skip
        found += [Kind(1, f"{model}?{script}", manner=manner) for script, manner in leaving]
        found.append(Kind(1, f"{model}?first_token_s=60", manner="leaves unanswered", more=WHOLE))
    elsewhere = ["refused/mill", "nowhere/mill", "beaten", "beaten-and-failing"]
    if "secure" in wires:
        elsewhere.append("untrusted/mill")
    found += [Kind(1, model, more=more) for model in elsewhere for more in ({}, WHOLE)]
    return found


# --- what clients do to their connections


Doing = Callable[[Watched, str], Awaitable[None]]


def _head(ticket: str, **more: str) -> dict[str, str]:
    return {"authorization": f"Bearer {KEY}", "x_request_id": ticket, **more}


def _good(ticket: str, *, model: str = "openai", **more: Any) -> bytes:
    return request(CHAT, chat(f"({ticket})", model=model, **more), **_head(ticket))


async def keeps_its_connection(running: Watched, ticket: str) -> None:
    """Two streams, a whole answer, a request that is refused, and then the client says goodbye."""
    async with connected(running.url) as client:
        for _ in range(2):
            client.seen = b""
            await client.send(_good(ticket))
            await client.read_until(b"0\r\n\r\n")
        client.seen = b""
        await client.send(_good(ticket, stream=False))
        assert (await client.answer()).status == 200
        await client.send(_good(ticket, model="no-such-model", stream=False))
        assert (await client.answer()).status == 404
        client.writer.close()
        await client.writer.wait_closed()


async def asks_before_it_is_answered(running: Watched, ticket: str) -> None:
    """Three requests in one piece."""
    async with connected(running.url) as client:
        await client.send(_good(ticket, stream=False) + _good(ticket) + _good(ticket, stream=False))
        assert (await client.answer()).status == 200
        await client.read_until(b"0\r\n\r\n")
        client.seen = client.seen.partition(b"0\r\n\r\n")[2]
        assert (await client.answer()).status == 200


async def leaves_with_requests_unanswered(running: Watched, ticket: str) -> None:
    """The first of them is being answered."""
    async with connected(running.url) as client:
        await client.send(_good(ticket, model="endless") + _good(ticket))
        await client.read_until(b'"content":"')


async def says_goodbye_and_stays(running: Watched, ticket: str) -> None:
    """It sends no more, and that is how most clients leave a stream."""
    async with connected(running.url) as client:
        await client.send(_good(ticket, model="endless"))
        await client.read_until(b'"content":"')
        client.writer.write_eof()
        await client.read_all()


async def resets(running: Watched, ticket: str) -> None:
    """The connection is reset in mid-stream."""
    async with connected(running.url) as client:
        await client.send(_good(ticket, model="endless"))
        await client.read_until(b'"content":"')
        client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


async def speaks_no_http(running: Watched, ticket: str) -> None:
    """It wants TLS, and then another half of a request."""
    for data in (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", f"POST {CHAT} HTTP/1.1\r\nx: {ticket}\r\n:\r\n\r\n".encode()):
        async with connected(running.url) as client:
            await client.send(data)
            assert b" 400 " in await client.read_all()


async def begins_and_says_no_more(running: Watched, ticket: str) -> None:
    """Of the head there is a part; no time is left for the rest."""
    async with connected(running.url) as client:
        await client.send(_good(ticket)[:30])
        own = client.writer.get_extra_info("sockname")
        await eventually(lambda: any(_peer(one) == own for one in _guard(running)._connections))
        for one in _guard(running)._connections:
            if _peer(one) == own:
                one.due_at_s = 0.0
        assert b" 408 " in await client.read_all()


async def sends_half_a_body(running: Watched, ticket: str) -> None:
    """And waits."""
    async with connected(running.url) as client:
        await client.send(_good(ticket)[:-10])
        await client.read_until(b" 408 ")


def _guard(running: Watched) -> ConnectionGuard:
    guard = running.gateway._guard
    assert guard is not None
    return guard


def _peer(one: BaseProtocol) -> object:
    return None if one.transport is None else one.transport.get_extra_info("peername")


async def asks_for_all_else(running: Watched, ticket: str) -> None:
    """The models, the page, and what there is not or may not be."""
    asked = [
        request("/v1/models", method="GET", **_head(ticket)),
        request("/v1/models/none", method="GET", **_head(ticket)),
        request("/v1/models", method="GET", authorization="Bearer mr_stranger"),
        request("/", method="GET"),
        request("/nothing", method="GET"),
        request(CHAT, method="DELETE"),
        request(CHAT, chat(ticket), **_head(ticket, origin="https://elsewhere.invalid")),
        request(CHAT, chat(ticket), **_head(ticket, host="elsewhere.invalid")),
    ]
    for data in asked:
        async with connected(running.url) as client:
            await client.send(data.replace(b"\r\n", b"\r\nconnection: close\r\n", 1))
            await client.read_all()


async def waits_to_be_told_to_go_on(running: Watched, ticket: str) -> None:
    """The body is sent when it is asked for."""
    head, _, body = _good(ticket, stream=False).partition(b"\r\n\r\n")
    async with connected(running.url) as client:
        await client.send(head + b"\r\nexpect: 100-continue\r\n\r\n")
        await client.read_until(b"100 Continue\r\n\r\n")
        await client.send(body)
        await client.read_until(b"}}")


async def reads_nothing_and_leaves(running: Watched, ticket: str) -> None:
    """Its provider has been waiting for it."""
    async with _reading_nothing(running, ticket):
        server = running.gateway._server
        assert server is not None
        await eventually(lambda: server.buffered_bytes > HIGH_WATER_BYTES)


async def reads_nothing_and_stays(running: Watched, ticket: str) -> None:
    """Until it is given up."""
    async with _reading_nothing(running, ticket):
        await running.witness.asked(ticket)
        await eventually(lambda: not any(ticket in str(one) for one in running.gateway.live.shown()["in_flight"]))


@asynccontextmanager
async def _reading_nothing(running: Watched, ticket: str) -> AsyncIterator[None]:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)  # noqa: FBT003, a socket's own
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, ("127.0.0.1", running.gateway.port))
        await loop.sock_sendall(sock, _good(ticket, model="broad-and-long"))
        yield


DOINGS: Final[tuple[Doing, ...]] = (
    keeps_its_connection,
    asks_before_it_is_answered,
    leaves_with_requests_unanswered,
    says_goodbye_and_stays,
    resets,
    speaks_no_http,
    begins_and_says_no_more,
    sends_half_a_body,
    asks_for_all_else,
    waits_to_be_told_to_go_on,
    reads_nothing_and_leaves,
    reads_nothing_and_stays,
)


# --- the test


def config(secure_port: int) -> Mapping[str, Any]:
    """Return the storm's configuration, less patient with clients, and with providers that cannot be reached."""
    base: dict[str, Any] = {"kind": "openai-compatible", "api_key": "fake"}
    return {
        **storm.CONFIG,
        "server": {
            **storm.CONFIG["server"], "body_timeout_s": 1.5, "write_timeout_s": 1.5, "heartbeat_s": 0.2,
        },
        "providers": {
            **storm.PROVIDERS,
            "refused": {**base, "base_url": "http://127.0.0.1:1/v1"},
            "nowhere": {**base, "base_url": "http://nowhere.invalid/v1"},
            "untrusted": {**base, "base_url": f"https://localhost:{secure_port}/v1"},
            "secure": {**base, "base_url": f"https://127.0.0.1:{secure_port}/hosts/vllm/v1"},
        },
        "models": {
            **storm.MODELS,
            "broad-and-long": {"targets": ["openai/mill?token_count=40&long_line_after=3&interval_s=0.01"]},
            "beaten": {"targets": [f"openai/mill?head_s=0.5&{GOOD}"]},
            "beaten-and-failing": {"targets": ["openai/mill?head_s=0.5&status=500"], "on_interrupt": "error"},
        },
    }  # fmt: skip


async def visit(running: Watched, calls: Sequence[Kind | Doing]) -> None:
    """Let calls happen, many at once."""
    tickets, room = count(2), asyncio.Semaphore(AT_ONCE)

    async def one(call: Kind | Doing, ticket: str) -> None:
        async with room, asyncio.timeout(2 * TIMEOUT_S):
            await (ask(running, Told(ticket, call), 3) if isinstance(call, Kind) else call(running, ticket))

    await asyncio.gather(*(one(call, f"ticket-{next(tickets)}") for call in calls))


async def rest(running: Watched) -> None:
    """Wait until nothing is left of any call, and no client is there."""
    await running.calm()
    await eventually(lambda: not _guard(running)._connections)
    for _ in range(5):
        await asyncio.sleep(0)


async def drain(running: Watched) -> None:
    """Stop the gateway while calls are under way, and wait until their clients have been told."""
    calls = [Kind(1, model, more=more) for model in ("silent", "endless") for more in ({}, WHOLE)]
    last = [Told(f"ticket-{number}", call) for number, call in enumerate(calls, 1_000_000)]
    clients = [asyncio.ensure_future(ask(running, one, 0)) for one in last]
    for one in last:
        await running.witness.asked(one.ticket)
    await running.gateway.stop()
    await asyncio.gather(*clients)
    await eventually(lambda: running.witness.is_quiet)


@asynccontextmanager
async def over_all(folder: Path) -> AsyncIterator[Watched]:
    """Run a gateway over providers of all kinds; it has served before."""
    tls = Certificate.make(folder)
    with pytest.MonkeyPatch.context() as patched, socket.socket() as secure:
        secure.bind(("127.0.0.1", 0))
        patched.setattr("aiohttp.connector._SSL_CONTEXT_VERIFIED", tls.client_context())
        patched.setattr(aiohttp.ThreadedResolver, "resolve", _resolve)
        patched.setattr(resume, "_backoff", wait_none())
        async with watched(config(secure.getsockname()[1]), Script(first_token_s=0.002, interval_s=0.001)) as running:
            assert running.witness._runner is not None
            await web.SockSite(running.witness._runner, secure, ssl_context=tls.server_context()).start()
            for number, model in enumerate(("openai", "secure/mill")):
                await ask(running, Told(f"ticket-{number}", Kind(1, model)), 0)
            await rest(running)
            yield running


async def _resolve(_: object, host: str, port: int = 0, family: int = 0) -> list[dict[str, object]]:  # noqa: ARG001, the signature of aiohttp's
    if host.endswith(".invalid"):
        raise OSError(None, "there is no such name")
    told = {"hostname": host, "host": "127.0.0.1", "port": port, "family": socket.AF_INET, "proto": 0, "flags": 0}
    return [told]


@pytest.mark.parametrize(
    ("loop", "way", "wires"),
    [("uvloop", "short", [*WIRES]), ("uvloop", "public", ["anthropic", "secure"]), ("asyncio", "short", ["google"])],
    ids=["usual", "public", "asyncio"],
)
def test_calls_leave_nothing_to_the_collector(
    loop: str, way: str, wires: Sequence[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whichever way they end, and a drain that ends the last of them besides."""
    monkeypatch.setattr(connection, "IS_SHORT", way == "short")
    monkeypatch.setattr(exchange, "IS_SHORT", way == "short")

    async def run() -> tuple[set[str], str, str]:
        with capture_logs() as logs:
            async with over_all(tmp_path) as running:
                with uncollected() as garbage:
                    await visit(running, [*DOINGS, *kinds(wires)])
                    await rest(running)
                    left = garbage()
                    seen = {line["outcome"] for line in logs if line["event"] == "stream.finished"}
                    await drain(running)
                    return seen, left, garbage()

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        outcomes, left, left_by_drain = runner.run(run())
    assert outcomes >= OUTCOMES, "every kind of end was met"
    assert not left, left
    assert not left_by_drain, left_by_drain
