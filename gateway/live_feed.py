"""The live view's own event stream: what is in flight and how upstreams do, for whoever looks, while somebody does.

Each picture is made once, however many look, and none when nobody does. Who is slow to read gets the latest picture and
not those before it. Where there is so much to show that making it takes long, it is made less often.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from itertools import count
from typing import Any, Final

import msgspec
from aiohttp import web

PERIOD_S: Final = 0.5
UPSTREAMS_EVERY: Final = 2
BUSY_SHARE: Final = 0.02
"""How much of the time may go into making pictures."""

SHOWN_COUNT: Final = 100
"""Of the calls in flight: those that have been for longest."""

_HEADERS: Final = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-store",
    "x-accel-buffering": "no",
}

Shown = Mapping[str, Any]


def condensed(shown: Shown, *, is_ready: bool) -> dict[str, object]:
    """Return of the table of live streams what fits on a screen, and of the rest how much there is."""
    in_flight: Sequence[Mapping[str, Any]] = shown["in_flight"]
    return {
        "is_ready": is_ready,
        "total": len(in_flight),
        "phases": Counter(str(stream["phase"]) for stream in in_flight),
        "tokens_per_s": round(sum(_pace_of(stream) for stream in in_flight), 1),
        "in_flight": in_flight[:SHOWN_COUNT],
        "recent": shown["recent"],
    }


def _pace_of(stream: Mapping[str, Any]) -> float:
    """What a stream adds to the tokens per second of all: nothing while it waits."""
    is_flowing = (stream["idle_s"] or 0.0) < 2.0
    return float(stream["tokens_per_s"] or 0.0) if is_flowing else 0.0


class LiveFeed:
    """Serves the event stream.

    ``streams`` returns what the table of live streams shows, ``upstreams`` how each upstream does, ``is_ready`` whether
    the gateway takes requests.
    """

    def __init__(
        self,
        *,
        streams: Callable[[], Awaitable[Shown]],
        upstreams: Callable[[], Awaitable[Sequence[Mapping[str, object]]]],
        is_ready: Callable[[], bool],
        period_s: float = PERIOD_S,
    ) -> None:
        self._streams = streams
        self._upstreams = upstreams
        self._is_ready = is_ready
        self._period_s = period_s
        self._pictures: dict[str, tuple[int, bytes]] = {}
        self._made_count = 0
        self._viewer_count = 0
        self._news: asyncio.Future[None] | None = None
        self._making: asyncio.Task[None] | None = None
        self._is_closed = False

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """``GET /admin/events``: pictures until the viewer leaves or the gateway stops."""
        response = web.StreamResponse(headers=_HEADERS)
        await response.prepare(request)
        self._viewer_count += 1
        making = self._making = self._making or asyncio.create_task(self._make())
        try:
            with suppress(ConnectionError):
                await self._send(response, making)
        finally:
            self._viewer_count -= 1
            if not self._viewer_count:
                await self._rest()
        return response

    async def close(self, app: web.Application | None = None) -> None:  # noqa: ARG002, the signature of a signal
        """End all streams."""
        self._is_closed = True
        self._tell()

    async def _send(self, response: web.StreamResponse, making: asyncio.Task[None]) -> None:
        seen = 0
        while not self._is_closed:
            latest = self._made_count
            new = [picture for number, picture in self._pictures.values() if number > seen]
            seen = latest
            if new:
                await response.write(b"".join(new))
            elif making.done():
                making.result()  # raises why there are no more
                return
            else:
                self._news = self._news or asyncio.get_running_loop().create_future()
                await asyncio.wait([self._news, making], return_when=asyncio.FIRST_COMPLETED)

    async def _rest(self) -> None:
        """Nobody looks any more."""
        making, self._making = self._making, None
        self._pictures = {}
        if making is not None:
            making.cancel()
            await asyncio.wait([making])

    async def _make(self) -> None:
        for turn in count():
            began_at_s = time.monotonic()
            self._show("streams", condensed(await self._streams(), is_ready=self._is_ready()))
            if turn % UPSTREAMS_EVERY == 0:
                self._show("upstreams", await self._upstreams())
            self._tell()
            await asyncio.sleep(max(self._period_s, (time.monotonic() - began_at_s) / BUSY_SHARE))

    def _tell(self) -> None:
        """Wake all viewers; each looks at once for what it has not seen."""
        news, self._news = self._news, None
        if news is not None:
            news.set_result(None)

    def _show(self, name: str, told: object) -> None:
        self._made_count += 1
        picture = b"event: %b\ndata: %b\n\n" % (name.encode(), msgspec.json.encode(told))
        self._pictures[name] = (self._made_count, picture)
