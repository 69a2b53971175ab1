"""Hands what a provider's socket brought to a function, in the loop turn in which it came.

The public way to read a response is to await it: each read wakes a task, which resumes a coroutine three awaits deep.
Measured on the whole relay path this costs a quarter more CPU per token than being called. So this file reaches below
aiohttp's surface, and is the only one that does: it replaces the class of a response's ``StreamReader`` by one whose
``feed_data`` passes the bytes on. What arrives in one read of the socket is passed on as one piece, however many chunks
it had. Should aiohttp change so that this is no longer possible, ``relay`` reads the public way; ``CAN_PUSH`` says
which.

Back-pressure: while the client's socket is full the reader is an ordinary one, which buffers up to its limit and then
stops reading from the provider.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Literal

from aiohttp import StreamReader

from gateway.core.call import Flow

Take = Callable[[bytes, float], bool]
"""Takes what one read brought, and when that was; returns whether it was all that is needed.

The time is on the system's monotonic clock: the loop's own, with uvloop, moves on by whole milliseconds, between turns.
"""


async def relay(content: StreamReader, take: Take, flow: Flow, *, note_pause: Callable[[], None]) -> None:
    """Pass all of ``content`` to ``take``, until it has enough or the body ends.

    While ``flow`` is paused nothing is passed on; ``note_pause`` is called when it goes on. Raises what the transport
    raises, and what ``take`` does.
    """
    if CAN_PUSH and type(content) is StreamReader:
        await _push(content, take, flow, note_pause)
    else:
        await _pull(content, take, flow, note_pause)


async def _pull(content: StreamReader, take: Take, flow: Flow, note_pause: Callable[[], None]) -> None:
    while data := await content.readany():
        if take(data, time.monotonic()):
            return
        if flow.is_paused:
            await flow.wait()
            note_pause()


async def _push(content: StreamReader, take: Take, flow: Flow, note_pause: Callable[[], None]) -> None:
    sink = _Sink(take, flow)
    content.__class__ = _PushReader
    _SINKS[id(content)] = sink
    try:
        while True:
            sink.open(content)
            if await sink.stopped != "paused":
                return
            await flow.wait()
            note_pause()
    finally:
        del _SINKS[id(content)]
        content.__class__ = StreamReader
        sink.close()


class _Sink:
    """Collects what one turn of the loop brought and passes it on at the turn's end."""

    __slots__ = (
        "_arrived_at_s", "_flow", "_is_scheduled", "_loop", "_pieces", "_take", "has_ended", "is_open", "stopped",
    )  # fmt: skip

    def __init__(self, take: Take, flow: Flow) -> None:
        self._take = take
        self._flow = flow
        self._loop = asyncio.get_running_loop()
        self._pieces: list[bytes] = []
        self._is_scheduled = False
        self._arrived_at_s = 0.0
        self.is_open = False
        self.has_ended = False
        self.stopped: asyncio.Future[Literal["ended", "enough", "paused"]] = self._loop.create_future()

    def open(self, content: StreamReader) -> None:
        """Begin to pass on, with what has been buffered meanwhile."""
        self.stopped = self._loop.create_future()
        self._arrived_at_s = time.monotonic()
        # Reading makes aiohttp feed what its parser had held back: behind what is buffered, so it is not passed on yet.
        while content.exception() is None and (buffered := content.read_nowait()):
            self._pieces.append(buffered)
        self.is_open = True
        self.has_ended = content.is_eof()
        if (error := content.exception()) is not None:
            self.fail(error)
        elif self._pieces:
            self._schedule()
        elif self.has_ended:
            self._stop("ended")

    def close(self) -> None:
        """Pass nothing on any more."""
        self.is_open = False
        self._pieces.clear()
        self.stopped.cancel()

    def add(self, data: bytes) -> None:
        """Take a piece, to be passed on when the loop has read all there is of this turn."""
        self._pieces.append(data)
        self._schedule()

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._arrived_at_s = time.monotonic()
            self._loop.call_soon(self._pass_on)

    def end(self) -> None:
        """The body is complete."""
        self.has_ended = True
        if not self._is_scheduled:
            self._stop("ended")

    def fail(self, error: BaseException) -> None:
        """The transport broke; what came before is still passed on."""
        self._pass_on()
        self.is_open = False
        if not self.stopped.done():
            self.stopped.set_exception(error)

    def _pass_on(self) -> None:
        self._is_scheduled = False
        pieces = self._pieces
        if not pieces:
            return
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        try:
            has_enough = self._take(data, self._arrived_at_s)
        except BaseException as error:  # noqa: BLE001, it travels on in the future
            self.is_open = False
            if not self.stopped.done():
                self.stopped.set_exception(error)
            return
        if has_enough:
            self._stop("enough")
        elif self.has_ended:
            self._stop("ended")
        elif self._flow.is_paused:
            self._stop("paused")

    def _stop(self, why: Literal["ended", "enough", "paused"]) -> None:
        self.is_open = False
        if not self.stopped.done():
            self.stopped.set_result(why)


_SINKS: dict[int, _Sink] = {}
"""By the identity of the reader: its class has no room for an attribute, and one that had could not replace it."""


class _PushReader(StreamReader):
    """A reader that passes on what it is fed."""

    __slots__ = ()

    def feed_data(self, data: bytes, size: int = 0) -> bool:
        sink = _SINKS[id(self)]
        if not sink.is_open:
            return super().feed_data(data, size)
        self.total_bytes += len(data)
        sink.add(data)
        return False

    def begin_http_chunk_receiving(self) -> None:
        """Chunks are not counted: nobody reads chunk by chunk."""

    def end_http_chunk_receiving(self) -> None:
        """Chunks are not counted: nobody reads chunk by chunk."""

    def feed_eof(self) -> None:
        super().feed_eof()
        if (sink := _SINKS[id(self)]).is_open:
            sink.end()

    def set_exception(self, exc: BaseException, exc_cause: BaseException | None = None) -> None:
        if exc_cause is None:
            super().set_exception(exc)
        else:
            super().set_exception(exc, exc_cause)
        if (sink := _SINKS[id(self)]).is_open:
            sink.fail(exc)


def _can_push() -> bool:
    """Whether aiohttp's reader is still one whose class can be replaced, and which is fed as this file expects."""
    names = ("feed_data", "feed_eof", "set_exception", "begin_http_chunk_receiving", "end_http_chunk_receiving")
    if not all(callable(getattr(StreamReader, name, None)) for name in names):
        return False
    probe = StreamReader.__new__(StreamReader)
    try:
        probe.__class__ = _PushReader
    except TypeError:
        return False
    return True


CAN_PUSH = _can_push()
