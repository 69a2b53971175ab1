"""The admin port: whether the gateway is alive and ready, what it has counted, and what it is at.

Making the answer of ``/metrics`` takes milliseconds, in which streams would stand still: it is made in a thread, and
those who ask at once get the same one. Nothing that was said is told here, and no key.
"""

from __future__ import annotations

import asyncio
import gzip
import sys
from collections.abc import Callable, Mapping
from typing import Final

import msgspec
from aiohttp import web
from prometheus_client.exposition import gzip_accepted

from gateway.telemetry.collector import SlabCollector
from gateway.telemetry.live import LiveTable

GZIP_LEVEL: Final = 1
"""Of an exposition it leaves a tenth; the best level leaves a fourteenth, in six times the time."""


SWITCH_S: Final = 0.0005
"""How long the thread that renders may keep the interpreter from the loop, when that wants it: usually it is ten times
as much, and a token that comes in a scrape of 6000 series waits 5 to 8 ms instead of 1 to 3."""


class Admin:
    """Answers what operators ask. ``is_ready`` says whether the gateway takes requests now."""

    def __init__(self, collector: SlabCollector, live: LiveTable, *, is_ready: Callable[[], bool]) -> None:
        self._collector = collector
        self._live = live
        self._is_ready = is_ready
        self._rendering: dict[tuple[str, bool], asyncio.Future[tuple[bytes, str]]] = {}

    def make_app(self) -> web.Application:
        """Return the application to be served on the admin port."""
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/admin/streams", self._streams)
        return app

    async def _healthz(self, request: web.Request) -> web.Response:  # noqa: ARG002, the signature of a handler
        return web.Response(text="ok\n")

    async def _readyz(self, request: web.Request) -> web.Response:  # noqa: ARG002, the signature of a handler
        return web.Response(text="ready\n") if self._is_ready() else web.Response(status=503, text="not ready\n")

    async def _streams(self, request: web.Request) -> web.Response:  # noqa: ARG002, the signature of a handler
        body = msgspec.json.encode(self._live.shown())
        return web.Response(body=body, content_type="application/json", headers={"cache-control": "no-store"})

    async def _metrics(self, request: web.Request) -> web.Response:
        is_packed = gzip_accepted(request.headers.get("accept-encoding", ""))
        body, content_type = await self._render(request.headers.get("accept", ""), is_packed=is_packed)
        headers = {"content-type": content_type, "vary": "accept, accept-encoding", **_encoding(is_packed=is_packed)}
        return web.Response(body=body, headers=headers)

    async def _render(self, accept: str, *, is_packed: bool) -> tuple[bytes, str]:
        """Return the answer and its type; who leaves before it is made does not take it from the others."""
        asked = accept, is_packed
        rendering = self._rendering.get(asked)
        if rendering is None:
            work = asyncio.to_thread(self._rendered, accept, is_packed=is_packed)
            rendering = self._rendering[asked] = asyncio.ensure_future(work)
            rendering.add_done_callback(lambda _: self._rendering.pop(asked))
        return await asyncio.shield(rendering)

    def _rendered(self, accept: str, *, is_packed: bool) -> tuple[bytes, str]:
        usual_s = sys.getswitchinterval()
        sys.setswitchinterval(min(SWITCH_S, usual_s))
        try:
            body, content_type = self._collector.render(accept)
            return (gzip.compress(body, GZIP_LEVEL) if is_packed else body), content_type
        finally:
            sys.setswitchinterval(usual_s)


def _encoding(*, is_packed: bool) -> Mapping[str, str]:
    return {"content-encoding": "gzip"} if is_packed else {}
