from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from gateway.live_feed import SHOWN_COUNT, LiveFeed, condensed
from tests.eventually import eventually
from tests.raw_client import connected, request

ASK = request("/admin/events", method="GET")


@dataclass
class Watched:
    """A feed that is served, and how often it had to look."""

    url: str = ""
    looks: int = 0
    upstream_looks: int = 0
    error: Exception | None = None
    in_flight: list[dict[str, Any]] = field(default_factory=list)

    async def streams(self) -> Mapping[str, Any]:
        """Return what is in flight."""
        self.looks += 1
        if self.error:
            raise self.error
        return {"in_flight": self.in_flight, "recent": []}

    async def upstreams(self) -> Sequence[Mapping[str, object]]:
        """Return how often that was asked."""
        self.upstream_looks += 1
        return [{"name": "a/y", "look": self.upstream_looks}]


@pytest.fixture
async def watched() -> AsyncIterator[Watched]:
    """Serve a feed that hurries."""
    seen = Watched()
    feed = LiveFeed(streams=seen.streams, upstreams=seen.upstreams, is_ready=lambda: True, period_s=0.01)
    app = web.Application()
    app.router.add_get("/admin/events", feed.serve)
    app.on_shutdown.append(feed.close)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=30)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    seen.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield seen
    async with asyncio.timeout(20):
        await runner.cleanup()


def stream(name: str, **told: Any) -> dict[str, Any]:
    """Return a call in flight."""
    return {"id": name, "phase": "decode", "tokens_per_s": 20.0, "idle_s": 0.1, **told}


def pictures(seen: bytes) -> list[tuple[str, Any]]:
    """Return the events that came whole."""
    told = []
    for line in seen.partition(b"\r\n\r\n")[2].decode().splitlines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        if line.startswith("data: ") and line.endswith(("}", "]")):
            told.append((name, json.loads(line.removeprefix("data: "))))
    return told


def test_only_as_much_is_shown_as_fits_a_screen() -> None:
    """Of the rest it is told how much there is; who waits adds nothing to the pace of all."""
    many = [stream(str(number)) for number in range(SHOWN_COUNT + 50)]
    waiting = [stream("w", phase="prefill", tokens_per_s=None), stream("s", idle_s=9.0), stream("n", idle_s=None)]
    told = condensed({"in_flight": many + waiting, "recent": [1]}, is_ready=False)
    assert told == {
        "is_ready": False,
        "total": SHOWN_COUNT + 53,
        "phases": {"decode": SHOWN_COUNT + 52, "prefill": 1},
        "tokens_per_s": 20.0 * (SHOWN_COUNT + 51),
        "in_flight": many[:SHOWN_COUNT],
        "recent": [1],
    }


async def test_a_viewer_gets_all_at_once_and_then_what_is_new(watched: Watched) -> None:
    """As server-sent events that nobody keeps."""
    watched.in_flight = [stream("one")]
    async with connected(watched.url) as client:
        await client.send(ASK)
        seen = await client.read_until(b'"look":3')
    assert b"content-type: text/event-stream" in seen.lower()
    assert b"cache-control: no-store" in seen.lower()
    told = pictures(seen)
    assert {name for name, _ in told[:2]} == {"streams", "upstreams"}
    assert told[0][1]["in_flight"] == [stream("one")]
    assert [value[0]["look"] for name, value in told if name == "upstreams"][:2] == [1, 2]


async def test_each_picture_is_made_once_for_all_who_look(watched: Watched) -> None:
    """Ten viewers cost what one does; one who joins later gets the latest."""
    async with connected(watched.url) as first:
        await first.send(ASK)
        await first.read_until(b'"look":2')
        others = [connected(watched.url) for _ in range(9)]
        clients = [await one.__aenter__() for one in others]
        for client in clients:
            await client.send(ASK)
        for client in clients:
            found = pictures(await client.read_until(b"event: upstreams"))
            assert found
        before = watched.looks, watched.upstream_looks
        marks = {client: f'"look":{watched.upstream_looks + 2}'.encode() for client in (first, *clients)}
        for client, mark in marks.items():
            await client.read_until(mark)
        assert watched.looks - before[0] <= 2 * (watched.upstream_looks - before[1]) + 2
        for one in others:
            await one.__aexit__(None, None, None)


async def test_nothing_is_made_while_nobody_looks(watched: Watched) -> None:
    """Neither before the first viewer nor after the last; who comes then starts it again."""
    await asyncio.sleep(0.1)
    assert watched.looks == 0
    async with connected(watched.url) as client:
        await client.send(ASK)
        await client.read_until(b"event: upstreams")

    async def rests() -> bool:
        looks = watched.looks
        await asyncio.sleep(0.2)
        return watched.looks == looks

    await eventually(rests)
    async with connected(watched.url) as client:
        await client.send(ASK)
        await client.read_until(b"event: upstreams")


async def test_who_does_not_read_gets_the_latest_and_not_all(watched: Watched) -> None:
    """A viewer that sleeps costs no memory."""
    watched.in_flight = [stream("x" * 100_000)]
    async with connected(watched.url) as client:
        await client.send(ASK)
        await eventually(lambda: watched.looks > 200)
        looks = watched.looks
        seen = await client.read_until(f'"look":{watched.upstream_looks}'.encode(), timeout_s=30)
    assert 0 < sum(name == "streams" for name, _ in pictures(seen)) < looks - 50


async def test_a_picture_that_cannot_be_made_ends_the_stream(watched: Watched) -> None:
    """The viewer comes again, and gets one when it can be made."""
    watched.error = LookupError("broken")
    async with connected(watched.url) as client:
        await client.send(ASK)
        assert pictures(await client.read_all(timeout_s=30)) == []
    watched.error = None
    async with connected(watched.url) as client:
        await client.send(ASK)
        await client.read_until(b"event: upstreams")


async def test_a_gateway_that_stops_ends_the_stream(watched: Watched) -> None:
    """It waits for no viewer: the fixture would take half a minute longer."""
    async with connected(watched.url) as client:
        await client.send(ASK)
        await client.read_until(b"event: upstreams")
