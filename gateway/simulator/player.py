"""Playing a body on a socket: the clock, the writes, and the two rude ways to hang up.

A token is one write; whatever is due at the same time is written together, and times count from the beginning of
the answer, so that tokens do not drift. A connection is reset by closing it with a linger time of zero after
everything sent has left our buffer.
"""

import asyncio
import socket
import struct
import time
from typing import Final

from aiohttp import web

from gateway.simulator.account import Record
from gateway.simulator.performance import Performance
from gateway.simulator.plan import End, Send
from gateway.simulator.script import Cut
from gateway.simulator.wires.base import HttpAnswer

_FLUSH_BYTES: Final = 65_536
_DRAIN_POLL_S: Final = 0.001
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


async def play(request: web.Request, performance: Performance, record: Record) -> web.StreamResponse:
    """Send a body step by step and note how it ended."""
    record.status, record.is_stream = 200, performance.is_stream
    record.way, record.is_continuation = performance.way, bool(performance.way)
    response = _response(performance)
    await response.prepare(request)
    pen = _Pen(response, record, performance.split_bytes)
    loop = asyncio.get_running_loop()
    began_at_s = loop.time()
    for step in performance.steps:
        wait_s = began_at_s + step.due_s - loop.time()
        if wait_s > 0:
            await pen.flush()
            await asyncio.sleep(wait_s)
        if isinstance(step, End):
            await pen.flush()
            record.end(step.outcome, time.monotonic())
            if step.how != "clean":
                await hang_up(request, step.how)
            break
        await pen.write(step)
    return response


async def hang_up(request: web.Request, how: Cut) -> None:
    """Close the connection in mid-answer: with FIN, or with RST once all that was sent has left."""
    transport = request.transport
    if transport is None:
        return
    if how == "rst":
        while transport.get_write_buffer_size():  # noqa: ASYNC110 - a transport has no event for "drained"
            await asyncio.sleep(_DRAIN_POLL_S)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        transport.abort()
    else:
        transport.close()


def http_response(answer: HttpAnswer) -> web.Response:
    """Return an answer that needs no playing."""
    headers = {**answer.headers, "content-type": answer.content_type}
    return web.Response(status=answer.status, body=answer.body, headers=headers)


class _CloseDelimited(web.StreamResponse):
    """A response that is over when its connection is: neither chunked nor of a known length."""

    _length_check = False


class _Pen:
    """Writes a body: gathers what is due together, keeps count, and splits if it is told to."""

    def __init__(self, response: web.StreamResponse, record: Record, split_bytes: int) -> None:
        self._response = response
        self._record = record
        self._split_bytes = split_bytes
        self._pending = bytearray()
        self._pending_tokens = 0

    async def write(self, step: Send) -> None:
        """Take up what is due; it is written when nothing else is."""
        self._pending += step.payload
        self._pending_tokens += step.token_count
        if len(self._pending) >= _FLUSH_BYTES:
            await self.flush()
            await asyncio.sleep(0)

    async def flush(self) -> None:
        """Write what was taken up, as one chunk or as many small ones."""
        payload = bytes(self._pending)
        self._pending.clear()
        size = self._split_bytes or len(payload) or 1
        for at in range(0, len(payload), size):
            await self._response.write(payload[at : at + size])
            if self._split_bytes:
                await asyncio.sleep(0)
        self._record.bytes_sent += len(payload)
        self._record.tokens_sent += self._pending_tokens
        self._pending_tokens = 0


def _response(performance: Performance) -> web.StreamResponse:
    headers = {**performance.headers, "content-type": performance.content_type}
    if performance.is_stream:
        headers["cache-control"] = "no-cache"
    if performance.is_close_delimited:
        response: web.StreamResponse = _CloseDelimited(headers=headers)
        response.force_close()
        return response
    response = web.StreamResponse(headers=headers)
    response.content_length = performance.content_length
    return response
