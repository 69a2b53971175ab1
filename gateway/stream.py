"""The client's side of one stream: where ``send`` ends, and where back-pressure begins.

Until there is something to write nothing is on the wire, and an error can still be an HTTP status. The first batch
goes out behind the head of the response, every later one for itself: at once, and in one write with its chunk framing
around it. So nobody has to wait beside the pipeline for it to begin: a stream is one task.

An unfinished stream is told twice, because most SDKs take a clean close for success: the dialect's error event, then
the connection closed without the final chunk.

A client that reads slowly pauses the reading from its provider, and nobody else's; one that takes nothing at all for
``write_timeout_s`` is let go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

from gateway.core.errors import ClientGone, GatewayError
from gateway.core.events import Event, StreamStarted
from gateway.dialects.base import Encoder

HIGH_WATER_BYTES = 64 * 1024
LOW_WATER_BYTES = 16 * 1024
DRAIN_LOOK_S = 0.05
"""How often a paused stream looks whether its client has read; only slow clients pay for it."""

LAST_WORDS_S = 0.05
"""How long the connection stays open behind an error event. Clients that learn of the end together with the event drop
what they have not handed on yet: Chromium's ``fetch`` lost all of the answer in 4 of 10 runs, and none with this."""

LINGER_S = 10.0
"""How long an error event may take to reach a client before its connection is aborted."""

Begin = Callable[[StreamStarted | None], tuple[asyncio.WriteTransport, bytes]]


class ClientStream:
    """One stream to one client: a ``send`` for the pipeline, a ``Flow`` for the provider's reader.

    ``begin`` is called when there is something to write, an answer or a sign of life: it is told how the provider began
    and returns where to write, and the response's head. It raises ``ClientGone`` when there is nobody to write to.
    """

    __slots__ = (
        "_beat",
        "_begin",
        "_drain",
        "_encoder",
        "_heartbeat_s",
        "_loop",
        "_now",
        "_started",
        "_transport",
        "_writable",
        "_write_timeout_s",
        "_written_at_s",
        "is_paused",
    )

    def __init__(self, encoder: Encoder, begin: Begin, *, heartbeat_s: float, write_timeout_s: float) -> None:
        self._encoder = encoder
        self._begin = begin
        self._heartbeat_s = heartbeat_s
        self._write_timeout_s = write_timeout_s
        self._loop = asyncio.get_running_loop()
        self._now = self._loop.time
        self._transport: asyncio.WriteTransport | None = None
        self._drain: asyncio.TimerHandle | None = None
        self._written_at_s = self._loop.time()
        self._writable: asyncio.Future[None] | None = None
        self.is_paused = False
        """Whether reading from the provider should pause: asked behind every token, so it is no function."""
        self._beat = self._loop.call_later(heartbeat_s, self._heartbeat)
        self._started: StreamStarted | None = None

    # --- what the pipeline sees

    def send(self, events: Sequence[Event]) -> None:
        """Write ``events`` to the client; what has no bytes of its own does not begin the response."""
        data = self._encoder.encode(events)
        transport = self._transport
        if transport is None:
            if self._started is None:
                for event in events:
                    if type(event) is StreamStarted:
                        self._started = event
                        break
            if data:
                self._open(data)
            return
        if not data:
            return
        if transport.is_closing():
            raise ClientGone("the client has left")
        transport.write(b"%x\r\n%b\r\n" % (len(data), data))  # as ``_write`` does, once per token
        self._written_at_s = self._now()
        if transport.get_write_buffer_size() > HIGH_WATER_BYTES and self._writable is None:
            self._pause(transport)

    @property
    def is_committed(self) -> bool:
        """Whether the response has begun, if only with a sign of life, so that its status is fixed."""
        return self._transport is not None

    async def wait(self) -> None:
        """Return when the client's socket takes more; raises ``ClientGone`` when it never will."""
        if self._writable is not None:
            await self._writable
        if self._transport is not None and self._transport.is_closing():
            raise ClientGone("the client has left")

    # --- what the server calls

    @property
    def buffered_bytes(self) -> int:
        """How much was written that the client's socket has not taken."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def finish(self) -> None:
        """Write the dialect's own end, and that of the body; raises ``ClientGone`` when nobody hears it begin."""
        self.close()
        end = self._encoder.finish()
        last = b"%x\r\n%b\r\n0\r\n\r\n" % (len(end), end) if end else b"0\r\n\r\n"
        transport = self._transport
        if transport is None:
            self._transport, head = self._begin(self._started)
            self._transport.write(head + last)
        elif not transport.is_closing():
            transport.write(last)

    async def fail(self, error: GatewayError) -> None:
        """Tell the client that its answer is not whole: by the dialect's error event, and by an end that is missing."""
        self.close()
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if last_words := self._encoder.error(error):
            self._write(transport, last_words)
        try:
            await asyncio.sleep(LAST_WORDS_S)
        finally:
            transport.close()
            self._loop.call_later(LINGER_S, transport.abort)

    def close(self) -> None:
        """Stop the timers; nothing is written any more."""
        for handle in (self._beat, self._drain):
            if handle is not None:
                handle.cancel()
        self._resume()

    # --- inside

    def _open(self, data: bytes) -> None:
        """Begin the response, with ``data``: from now on an error can only be told in the stream."""
        transport, head = self._begin(self._started)
        self._transport = transport
        self._write(transport, data, head)

    def _write(self, transport: asyncio.WriteTransport, data: bytes, head: bytes = b"") -> None:
        """Write ``data`` as one chunk, and pause when the client's socket does not take it."""
        transport.write(b"%b%x\r\n%b\r\n" % (head, len(data), data))
        self._written_at_s = self._loop.time()
        if transport.get_write_buffer_size() > HIGH_WATER_BYTES and self._writable is None:
            self._pause(transport)

    def _heartbeat(self) -> None:
        """Beat if nothing was written for as long as a beat takes, and look again when that could be so."""
        now_s = self._loop.time()
        due_at_s = self._written_at_s + self._heartbeat_s
        if now_s >= due_at_s:
            if beat := self._encoder.heartbeat():
                self._write_beat(beat)
            due_at_s = now_s + self._heartbeat_s
        self._beat = self._loop.call_at(due_at_s, self._heartbeat)

    def _write_beat(self, beat: bytes) -> None:
        """Write a sign of life, if the client reads; with the first one the response begins."""
        transport = self._transport
        if transport is None:
            with suppress(ClientGone):
                self._open(beat)
        elif self._writable is None and not transport.is_closing():
            self._write(transport, beat)

    def _pause(self, transport: asyncio.WriteTransport) -> None:
        self._writable = self._loop.create_future()
        self.is_paused = True
        look = self._look_at_drain(transport)
        self._drain = self._loop.call_later(DRAIN_LOOK_S, look, look)

    def _look_at_drain(self, transport: asyncio.WriteTransport) -> Callable[..., None]:
        """Return a function that resumes the stream when its buffer has drained, or gives its client up."""
        least_bytes = transport.get_write_buffer_size()
        moved_at_s = self._loop.time()

        def look(again: Callable[..., None]) -> None:  # told of itself: a function that knows itself stays for good
            nonlocal least_bytes, moved_at_s
            size = transport.get_write_buffer_size()
            if size <= LOW_WATER_BYTES or transport.is_closing():
                self._resume()
                return
            if size < least_bytes:
                least_bytes, moved_at_s = size, self._loop.time()
            elif self._loop.time() - moved_at_s > self._write_timeout_s:
                transport.abort()
                self._resume()
                return
            self._drain = self._loop.call_later(DRAIN_LOOK_S, again, again)

        return look

    def _resume(self) -> None:
        writable, self._writable = self._writable, None
        self.is_paused = False
        if writable is not None and not writable.done():
            writable.set_result(None)
