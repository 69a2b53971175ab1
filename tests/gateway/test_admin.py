from __future__ import annotations

import asyncio
import gzip
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import AsyncMock

import pytest
from aiohttp import web

from gateway.admin import Admin
from gateway.telemetry.collector import SlabCollector
from gateway.telemetry.live import LiveTable
from gateway.telemetry.meters import Meters
from gateway.telemetry.slab import Slab
from tests.eventually import eventually
from tests.exposition import OPENMETRICS, Exposition
from tests.raw_client import Answer, connected, exchange, request

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"


@dataclass
class Counting:
    """A collector that says how often it was asked, by which threads, and takes its time."""

    inner: SlabCollector
    threads: list[int] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None

    def __post_init__(self) -> None:
        self.gate.set()

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return the answer."""
        self.threads.append(threading.get_ident())
        assert self.gate.wait(30)
        if self.error is not None:
            raise self.error
        return self.inner.render(accept)

    def of_slot(self, slot: int) -> SlabCollector | None:
        """Return the collector of one worker."""
        return self.inner.of_slot(slot)


@dataclass(frozen=True)
class Reloaded:
    """What became of a reload."""

    generation: int
    faults: Sequence[str] = ()
    needs_restart: Sequence[str] = ()


@dataclass
class Serving:
    """An admin port, and what it tells of."""

    meters: Meters
    collector: Counting
    live: LiveTable
    url: str = ""
    is_ready: bool = False
    reloaded: Reloaded = field(default_factory=lambda: Reloaded(2))
    reload_count: int = 0

    async def reload(self) -> Reloaded:
        """Reload nothing."""
        self.reload_count += 1
        return self.reloaded

    async def get(self, path: str, **headers: str) -> Answer:
        """Ask for something."""
        return await exchange(self.url, request(path, method="GET", **headers))


@pytest.fixture
async def serving() -> AsyncIterator[Serving]:
    """Serve an admin port."""
    slab = Slab.create()
    served = Serving(Meters(slab), Counting(SlabCollector([slab])), LiveTable())
    collector: Any = served.collector

    async def show_streams() -> Mapping[str, object]:
        return served.live.shown()

    admin = Admin(collector, show_streams, is_ready=lambda: served.is_ready, reload=served.reload)
    runner = web.AppRunner(admin.make_app(), access_log=None, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    served.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield served
    await runner.cleanup()


async def test_it_is_alive_at_once_and_ready_when_it_says_so(serving: Serving) -> None:
    """Who restarts what is dead asks for the one, who sends requests for the other."""
    assert (await serving.get("/healthz")).status == 200
    assert (await serving.get("/readyz")).status == 503
    serving.is_ready = True
    assert ((await serving.get("/readyz")).status, (await serving.get("/readyz")).body) == (200, b"ready\n")


@pytest.mark.parametrize("accept", ["", "text/plain", "*/*", "application/openmetrics-text; version=x", OPENMETRICS])
async def test_metrics_are_told_in_the_format_that_is_asked_for(accept: str, serving: Serving) -> None:
    """OpenMetrics, with its exemplars, where it is understood; else Prometheus' own text."""
    serving.meters.histogram("millrace_ttft_seconds", "chat", "openai/gpt").observe(0.3, TRACE_ID)
    found = await serving.get("/metrics", accept=accept)
    assert found.status == 200
    assert found.headers["content-type"].startswith(
        "application/openmetrics-text; version=1.0.0" if accept == OPENMETRICS else "text/plain; version=0.0.4"
    )
    assert found.headers["vary"] == "accept, accept-encoding"
    assert "content-encoding" not in found.headers
    assert (TRACE_ID.encode() in found.body) == (accept == OPENMETRICS)
    read = Exposition.read(found.body, found.headers["content-type"])
    assert read.mean("millrace_ttft_seconds", model="chat", upstream="openai/gpt") == 0.3


async def test_metrics_are_packed_for_who_can_unpack_them(serving: Serving) -> None:
    """Prometheus can, and they shrink to a tenth."""
    serving.meters.counter("millrace_requests_started_total", "chat_completions", "chat").inc()
    found = await serving.get("/metrics", accept_encoding="gzip;q=1.0, deflate")
    assert found.headers["content-encoding"] == "gzip"
    read = Exposition.read(gzip.decompress(found.body))
    assert read.total("millrace_requests_started_total") == 1


async def _turns() -> None:
    """Let what was asked be read."""
    for _ in range(100):
        await asyncio.sleep(0)


async def test_the_answer_is_made_beside_the_loop_and_once_for_all_who_wait(serving: Serving) -> None:
    """Streams go on meanwhile; who asks later gets a later one."""
    serving.collector.gate.clear()
    scrapes = asyncio.gather(*(serving.get("/metrics") for _ in range(5)))
    await eventually(lambda: serving.collector.threads)
    await _turns()
    assert not scrapes.done()
    serving.collector.gate.set()
    assert {found.status for found in await scrapes} == {200}
    assert len(serving.collector.threads) == 1
    assert threading.get_ident() not in serving.collector.threads
    await serving.get("/metrics")
    assert len(serving.collector.threads) == 2


async def test_who_leaves_takes_the_answer_from_nobody(serving: Serving) -> None:
    """A scraper that gave up is not the only one."""
    serving.collector.gate.clear()
    async with connected(serving.url) as client:
        await client.send(request("/metrics", method="GET"))
        await eventually(lambda: serving.collector.threads)
        other = asyncio.ensure_future(serving.get("/metrics"))
        await _turns()
        client.abort()
        await _turns()
        serving.collector.gate.set()
        assert (await other).status == 200
    assert len(serving.collector.threads) == 1


async def test_an_answer_that_could_not_be_made_is_tried_again(serving: Serving) -> None:
    """The next one who asks does not get the same error."""
    serving.collector.error = LookupError()
    assert (await serving.get("/metrics")).status == 500
    serving.collector.error = None
    assert (await serving.get("/metrics")).status == 200


class Stream:
    """A call in flight."""

    def shown(self) -> dict[str, object]:
        """Return how it goes."""
        return {"id": "r1", "tokens_per_s": None}

    def drain(self) -> None:
        """Do nothing."""


async def test_the_live_streams_are_told_as_json(serving: Serving) -> None:
    """As they are now: nobody keeps them."""
    serving.live.begin(Stream())
    found = await serving.get("/admin/streams")
    assert found.json == {"in_flight": [{"id": "r1", "tokens_per_s": None}], "recent": []}
    assert found.headers["content-type"] == "application/json"
    assert found.headers["cache-control"] == "no-store"


async def test_a_worker_can_be_looked_at_alone(serving: Serving) -> None:
    """As its slab has it; one that there is not is not found."""
    serving.meters.counter("millrace_requests_started_total", "chat_completions", "chat").inc()
    found = await serving.get("/metrics?worker=0")
    assert Exposition.read(found.body).total("millrace_requests_started_total") == 1
    for number in ("1", "x", "-1", "9" * 5000, ""):
        assert (await serving.get(f"/metrics?worker={number}")).status == 404


# --- reload


async def test_a_reload_says_which_generation_serves_and_what_needs_a_restart(serving: Serving) -> None:
    """It has taken place when that is said."""
    serving.reloaded = Reloaded(3, needs_restart=["server.port"])
    found = await exchange(serving.url, request("/admin/reload"))
    assert found.status == 200
    assert found.json == {"generation": 3, "needs_restart": ["server.port"]}
    assert serving.reload_count == 1


async def test_a_configuration_with_faults_is_told_with_all_of_them(serving: Serving) -> None:
    """By a status that says so, and that the one before it is in force."""
    serving.reloaded = Reloaded(1, faults=["my.yaml:1: server.prot: unknown key"])
    found = await exchange(serving.url, request("/admin/reload"))
    assert found.status == 422
    assert found.json["error"]["faults"] == ["my.yaml:1: server.prot: unknown key"]
    assert found.json["generation"] == 1


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://evil.example:8081", "host": "evil.example:8081"},
        {"host": "evil.example"},
    ],
)
async def test_a_web_page_cannot_have_the_gateway_reload(headers: dict[str, str], serving: Serving) -> None:
    """Of another origin, or under a name that its owner has pointed here; nor can a link, or an image."""
    assert (await exchange(serving.url, request("/admin/reload", **headers))).status == 403
    assert (await serving.get("/admin/reload")).status == 405
    assert serving.reload_count == 0


async def test_where_nobody_can_reload_it_is_not_found() -> None:
    """As in a gateway that is a part of another program."""
    slab = Slab.create()
    app = Admin(SlabCollector([slab]), AsyncMock(), is_ready=lambda: True).make_app()
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        assert (await exchange(url, request("/admin/reload"))).status == 404
    finally:
        await runner.cleanup()
