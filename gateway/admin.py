"""The admin port: whether the gateway is alive and ready, what it has counted, and what it is at.

Making the answer of ``/metrics`` takes milliseconds, in which streams would stand still: it is made in a thread, and
those who ask at once get the same one. Nothing that was said is told here, and no key.
"""

from __future__ import annotations

import asyncio
import gzip
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec
from aiohttp import web
from prometheus_client.exposition import gzip_accepted

from gateway.admin_gate import AdminGate
from gateway.live_feed import LiveFeed
from gateway.page import show_live, show_part
from gateway.process.listening import open_sockets
from gateway.schema import Secret
from gateway.telemetry.collector import SlabCollector
from gateway.telemetry.pace import Pace

GZIP_LEVEL: Final = 1
"""Of an exposition it leaves a tenth; the best level leaves a fourteenth, in six times the time."""


SWITCH_S: Final = 0.0005
"""How long the thread that renders may keep the interpreter from the loop, when that wants it: usually it is ten times
as much, and a token that comes in a scrape of 6000 series waits 5 to 8 ms instead of 1 to 3."""

_USUAL_SWITCH_S: Final = sys.getswitchinterval()


class Reloaded(Protocol):
    """What became of a reload: a configuration with faults is not in force."""

    @property
    def generation(self) -> int:
        """How often a configuration has come into force."""

    @property
    def faults(self) -> Sequence[str]:
        """What is wrong with the new one."""

    @property
    def needs_restart(self) -> Sequence[str]:
        """Which of its keys have no effect before the gateway is started again."""


class Admin:
    """Answers what operators ask. ``is_ready`` says whether the gateway takes requests now.

    ``streams`` returns what is in flight and what has ended lately; ``reload`` brings the configuration into force as
    it is now, where there is somebody who can. ``key`` is the admin key, if there is one.
    """

    def __init__(
        self,
        collector: SlabCollector,
        streams: Callable[[], Awaitable[Mapping[str, Any]]],
        *,
        is_ready: Callable[[], bool],
        reload: Callable[[], Awaitable[Reloaded]] | None = None,
        key: Secret | None = None,
    ) -> None:
        self._collector = collector
        self._show_streams = streams
        self._is_ready = is_ready
        self._reload_now = reload
        self._gate = AdminGate(key)
        self._pace = Pace()
        self._feed = LiveFeed(streams=streams, upstreams=self._show_upstreams, is_ready=is_ready)
        self._rendering: dict[tuple[str, bool], asyncio.Future[tuple[bytes, str]]] = {}
        self._runner: web.AppRunner | None = None

    async def start(self, host: str, port: int, source: str) -> int:
        """Serve, and return the port; raises ``ConfigError``, naming ``source``, for an address that cannot be had."""
        sockets = open_sockets(host, port, source)
        self._runner = web.AppRunner(self.make_app(), access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
        await self._runner.setup()
        for sock in sockets:
            await web.SockSite(self._runner, sock).start()
        return int(sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Serve no more."""
        if self._runner is not None:
            await self._runner.cleanup()

    def make_app(self) -> web.Application:
        """Return the application to be served on the admin port."""
        app = web.Application(middlewares=[self._gate.handle])
        app.on_shutdown.append(self._feed.close)
        app.router.add_get("/healthz", self._healthz, name="healthz")
        app.router.add_get("/readyz", self._readyz, name="readyz")
        app.router.add_get("/metrics", self._metrics, name="metrics")
        app.router.add_get("/", show_live, name="page")
        app.router.add_get("/page/{name}", show_part, name="page.part")
        app.router.add_get("/admin/events", self._feed.serve)
        app.router.add_get("/admin/streams", self._streams)
        app.router.add_post("/admin/reload", self._reload)
        return app

    async def _healthz(self, request: web.Request) -> web.Response:  # noqa: ARG002, the signature of a handler
        return web.Response(text="ok\n")

    async def _readyz(self, request: web.Request) -> web.Response:  # noqa: ARG002, the signature of a handler
        return web.Response(text="ready\n") if self._is_ready() else web.Response(status=503, text="not ready\n")

    async def _streams(self, request: web.Request) -> web.Response:  # noqa: ARG002, the signature of a handler
        return _json(await self._show_streams())

    async def _reload(self, request: web.Request) -> web.Response:  # noqa: ARG002, the signature of a handler
        """Reload."""
        if self._reload_now is None:
            raise web.HTTPNotFound
        done = await self._reload_now()
        if done.faults:
            message = "the new configuration is not in force, the one before it is"
            error_told = {"message": message, "code": "config_rejected", "faults": done.faults}
            return _json({"error": error_told, "generation": done.generation}, status=422)
        return _json({"generation": done.generation, "needs_restart": done.needs_restart})

    async def _show_upstreams(self) -> Sequence[Mapping[str, object]]:
        """Look at the metrics, beside the loop as well."""
        return await asyncio.to_thread(lambda: self._pace.look(self._collector.collect(), time.monotonic()))

    async def _metrics(self, request: web.Request) -> web.Response:
        """All workers together; ``?worker=0`` is what is in the slabs of that slot, as it is."""
        is_packed = gzip_accepted(request.headers.get("accept-encoding", ""))
        accept = request.headers.get("accept", "")
        if (slot := request.query.get("worker")) is None:
            body, content_type = await self._render(accept, is_packed=is_packed)
        else:
            of_slot = self._collector.of_slot(int(slot)) if slot.isdecimal() and len(slot) < 5 else None
            if of_slot is None:
                raise web.HTTPNotFound(text="no such worker\n")
            body, content_type = await asyncio.to_thread(_rendered, of_slot, accept, is_packed=is_packed)
        headers = {"content-type": content_type, "vary": "accept, accept-encoding", **_encoding(is_packed=is_packed)}
        return web.Response(body=body, headers=headers)

    async def _render(self, accept: str, *, is_packed: bool) -> tuple[bytes, str]:
        """Return the answer and its type; who leaves before it is made does not take it from the others."""
        asked = accept, is_packed
        rendering = self._rendering.get(asked)
        if rendering is None:
            work = asyncio.to_thread(_rendered, self._collector, accept, is_packed=is_packed)
            rendering = self._rendering[asked] = asyncio.ensure_future(work)
            rendering.add_done_callback(lambda _: self._rendering.pop(asked))
        return await asyncio.shield(rendering)


def _rendered(collector: SlabCollector, accept: str, *, is_packed: bool) -> tuple[bytes, str]:
    sys.setswitchinterval(min(SWITCH_S, _USUAL_SWITCH_S))
    try:
        body, content_type = collector.render(accept)
        return (gzip.compress(body, GZIP_LEVEL) if is_packed else body), content_type
    finally:
        sys.setswitchinterval(_USUAL_SWITCH_S)


def _json(document: Mapping[str, Any], *, status: int = 200) -> web.Response:
    return web.Response(
        status=status,
        body=msgspec.json.encode(document),
        content_type="application/json",
        headers={"cache-control": "no-store"},
    )


def _encoding(*, is_packed: bool) -> Mapping[str, str]:
    return {"content-encoding": "gzip"} if is_packed else {}
