"""The client's side of one stream: where ``send`` ends, and where back-pressure begins.

Until the first batch nothing is on the wire and an error can still be an HTTP status; aiohttp prepares a response
asynchronously, so the first batch waits for that once. Every later one goes to the transport at once, in one write
with its chunk framing around it.

An unfinished stream is told twice, because most SDKs take a clean close for success: the dialect's error event, then
the connection closed without the final chunk.

A client that reads slowly pauses the reading from its provider, and nobody else's; one that takes nothing at all for
``write_timeout_s`` is let go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

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


class ClientStream:
    """One stream to one client: a ``send`` for the pipeline, a ``Flow`` for the provider's reader.

    ``committed`` is done when there is something to write, an answer or a sign of life, or when the work has ended:
    then the server prepares the response and calls ``open``, or tells by a status why it does not.
    """

    def __init__(self, encoder: Encoder, *, heartbeat_s: float, write_timeout_s: float) -> None:
        self._encoder = encoder
        self._heartbeat_s = heartbeat_s
        self._write_timeout_s = write_timeout_s
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.WriteTransport | None = None
        self._pending: list[bytes] = []
        self._drain: asyncio.TimerHandle | None = None
        self._written_at_s = self._loop.time()
        self._writable: asyncio.Future[None] | None = None
        self._beat = self._loop.call_later(heartbeat_s, self._first_heartbeat)
        self.committed: asyncio.Future[None] = self._loop.create_future()
        self.started: StreamStarted | None = None

    # --- what the pipeline sees

    def send(self, events: Sequence[Event]) -> None:
        """Write ``events`` to the client, or keep them until the response is open."""
        data = self._encoder.encode(events)
        transport = self._transport
        if transport is None:
            self._keep(events, data)
            return
        if not data:
            return
        if transport.is_closing():
            raise ClientGone("the client has left")
        self._write(transport, data)

    @property
    def is_committed(self) -> bool:
        """Whether the answer has begun, if only with a sign of life."""
        return self._transport is not None or bool(self._pending)

    @property
    def is_paused(self) -> bool:
        """Whether reading from the provider should pause."""
        return self._writable is not None

    async def wait(self) -> None:
        """Return when the client's socket takes more; raises ``ClientGone`` when it never will."""
        if self._writable is not None:
            await self._writable
        if self._transport is not None and self._transport.is_closing():
            raise ClientGone("the client has left")

    # --- what the server calls

    @property
    def has_begun(self) -> bool:
        """Whether there is something to write, so that an error can no longer be told by a status."""
        return bool(self._pending)

    @property
    def is_open(self) -> bool:
        """Whether the response has begun, so that its status is fixed."""
        return self._transport is not None

    @property
    def buffered_bytes(self) -> int:
        """How much was written that the client's socket has not taken."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def wake(self, _: object = None) -> None:
        """The server need not wait any longer: the work has ended, or there is something to write."""
        if not self.committed.done():
            self.committed.set_result(None)

    def open(self, transport: asyncio.WriteTransport) -> None:
        """The response's headers are written: from now on, so is everything else."""
        self._beat.cancel()
        self._transport = transport
        if self._pending:
            self._write(transport, b"".join(self._pending))
            self._pending.clear()
        self._beat = self._loop.call_later(self._heartbeat_s, self._heartbeat)

    def finish(self) -> bytes:
        """Return the dialect's own end, to be written together with the end of the body."""
        self.close()
        return self._encoder.finish()

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

    def _keep(self, events: Sequence[Event], data: bytes) -> None:
        if self.started is None:
            self.started = next((event for event in events if isinstance(event, StreamStarted)), None)
        if data:
            self._pending.append(data)
            self.wake()

    def _write(self, transport: asyncio.WriteTransport, data: bytes) -> None:
        """Write ``data`` as one chunk, and pause when the client's socket does not take it."""
        transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        self._written_at_s = self._loop.time()
        if transport.get_write_buffer_size() > HIGH_WATER_BYTES and self._writable is None:
            self._pause(transport)

    def _first_heartbeat(self) -> None:
        """Begin the response with a sign of life, if the dialect has one; it commits the status."""
        if beat := self._encoder.heartbeat():
            self._pending.append(beat)
            self.wake()

    def _heartbeat(self) -> None:
        """Beat if nothing was written for as long as a beat takes, and look again when that could be so."""
        transport, now_s = self._transport, self._loop.time()
        due_at_s = self._written_at_s + self._heartbeat_s
        if now_s >= due_at_s:
            beat = self._encoder.heartbeat()
            if beat and self._writable is None and transport is not None and not transport.is_closing():
                self._write(transport, beat)
            due_at_s = now_s + self._heartbeat_s
        self._beat = self._loop.call_at(due_at_s, self._heartbeat)

    def _pause(self, transport: asyncio.WriteTransport) -> None:
        self._writable = self._loop.create_future()
        look = self._look_at_drain(transport)
        self._drain = self._loop.call_later(DRAIN_LOOK_S, look)

    def _look_at_drain(self, transport: asyncio.WriteTransport) -> Callable[[], None]:
        """Return a function that resumes the stream when its buffer has drained, or gives its client up."""
        least_bytes = transport.get_write_buffer_size()
        moved_at_s = self._loop.time()

        def look() -> None:
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
            self._drain = self._loop.call_later(DRAIN_LOOK_S, look)

        return look

    def _resume(self) -> None:
        writable, self._writable = self._writable, None
        if writable is not None and not writable.done():
            writable.set_result(None)
