"""A client's connection: aiohttp's, without what it does for every request and a gateway does not need.

This file reaches below aiohttp's public surface on the clients' side, as ``exchange.py`` does on the providers'. What
it keeps of aiohttp is its parser in C, its requests and its way of ending an answer. What it leaves out, for requests
that are whole and as usual, is a task of its own for each (making it, waking it, waking who waits for it) and a second
look of the parser at what it has read already. That is a seventh of what a short answer costs on this side.

A task of its own gave each request its own context variables. Here requests share their connection's, as long as they
leave them as they were; where one does not, the connection goes on in a new task, with those it began with.

Whatever is not a plain request is aiohttp's: from the first one on it serves the connection in its own way. ``FAULTS``
names where this aiohttp is not as the file expects: then it does so from the beginning, and also where the environment
has ``MILLRACE_PUBLIC_PATH``.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import suppress
from contextvars import copy_context
from typing import Any, Final, cast

from aiohttp import StreamReader, web
from aiohttp.base_protocol import BaseProtocol

from gateway.expectations import expect, failing, unlike
from gateway.reply import Reply

_MISSING: tuple[str, ...] = ()
try:
    from aiohttp.http_parser import RawRequestMessage
    from aiohttp.http_writer import StreamWriter
except ImportError as error:
    _MISSING = (str(error),)
    RawRequestMessage = StreamWriter = type("Missing", (), {})  # type: ignore[assignment, misc]


IS_SHORT = True
"""Settled at the end of this file, behind what needs it."""


class Connection(web.RequestHandler):
    """aiohttp's connection, which handles a usual request in its own task."""

    __slots__ = ("_has_paused",)

    def __init__(self, server: web.Server, **options: Any) -> None:
        super().__init__(server, **options)
        self._has_paused = False

    def pause_reading(self) -> None:
        """Read nothing more for now."""
        self._has_paused = True
        super().pause_reading()

    def resume_reading(self, resume_parser: bool = True) -> None:  # noqa: FBT001, FBT002, as aiohttp has it
        """Read on. That is asked for with every body, mostly in vain, and has the parser look again at what it had."""
        if self._has_paused or self._buffer_paused or not IS_SHORT:
            super().resume_reading(resume_parser)

    async def start(self) -> None:
        """Handle the requests of the connection, one after the other; aiohttp's own does the same with more tasks."""
        if not IS_SHORT:
            await super().start()
            return
        context = copy_context()
        while not self._force_close:
            if not self._messages:
                try:
                    self._waiter = self._loop.create_future()
                    await self._waiter
                finally:
                    self._waiter = None
            message, payload = self._messages[0]
            if type(message) is not RawRequestMessage or message.upgrade or self._buffer_paused:
                await super().start()
                return
            self._messages.popleft()
            if not await self._serve(message, payload):
                break
            if copy_context() != context:  # something was left in it, which the next request is not to find
                self._task_handler = self._loop.create_task(self.start(), context=context)
                return
        if not self._force_close:
            self._task_handler = None
            if self.transport is not None:
                self.transport.close()

    async def _serve(self, message: RawRequestMessage, payload: StreamReader) -> bool:
        """Answer a request; returns whether the connection is good for another."""
        manager, parser, factory, handler = self._manager, self._parser, self._request_factory, self._request_handler
        if manager is None or parser is None or factory is None or handler is None:
            return False  # it has just been lost
        is_whole = payload.is_eof()
        if is_whole:
            parser.message_consumed()
        manager.requests_count += 1
        request = factory(message, payload, self, StreamWriter(self, self._loop), self._task_handler)  # type: ignore[arg-type]  # it is there while the connection is
        try:
            response, is_lost = await self._handle_request(request, None, handler)
            if is_lost:
                return False
            self._keepalive = bool(response.keep_alive)
            if not is_whole:
                await self._read_rest(payload)
        except ConnectionError:
            return False
        except Exception as error:  # noqa: BLE001, as aiohttp has it: what the gate did not expect
            self.log_exception("Unhandled exception", exc_info=error)
            self.force_close()
        except BaseException:
            self.force_close()
            raise
        finally:
            request._task = None  # type: ignore[assignment]  # noqa: SLF001, aiohttp breaks the circle so
        return self._keeps_alive()

    def _keeps_alive(self) -> bool:
        """Return whether there may be another request, and begin to wait for it."""
        if not self._keepalive or self._close or self._force_close:
            return False
        self._next_keepalive_close_time = due_at_s = self._loop.time() + self._keepalive_timeout
        if self._keepalive_handle is None:
            self._keepalive_handle = self._loop.call_at(due_at_s, self._process_keepalive)
        return True

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Write an answer, and wait for a client that takes less than was written; returns whether it has left."""
        if type(resp) is not Reply or self._upgraded or not IS_SHORT:
            return await super().finish_response(request, resp, start_time)
        is_lost = False
        try:
            resp.write_to(self.transport, request)
            if self._paused:
                await self._drain_helper()
        except ConnectionError:
            is_lost = True
        self.log_access(request, resp, start_time)
        return resp, is_lost

    async def _read_rest(self, payload: StreamReader) -> None:
        """Read what is left of a body that was refused, so that its client reads the answer before the end."""
        if not payload.is_eof() and not self._force_close:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._lingering_time):
                    while not payload.is_eof():
                        await payload.readany()
        if not payload.is_eof():
            if not self._force_close:
                self.close()
        elif self._parser is not None:  # it has counted the request only now
            self._parser.message_consumed()
            if self._messages:
                self.data_received(b"")


def whole_body(content: StreamReader) -> bytes | None:
    """Take the body of a request where all of it has come; returns ``None`` where it has to be waited for."""
    if IS_SHORT and type(content) is StreamReader and content._eof and content._exception is None:  # noqa: SLF001, see above
        pieces = content._buffer  # noqa: SLF001, the same
        if not content._buffer_offset:  # noqa: SLF001, the same
            return pieces.popleft() if len(pieces) == 1 else b"".join([pieces.popleft() for _ in range(len(pieces))])
    return None


# --- whether aiohttp is as it was


_SIGNATURES: Final = {
    "BaseProtocol.pause_reading": (BaseProtocol, "pause_reading", ["self"]),
    "BaseProtocol.resume_reading": (BaseProtocol, "resume_reading", ["self", "resume_parser"]),
    "BaseProtocol._drain_helper": (BaseProtocol, "_drain_helper", ["self"]),
    "RequestHandler.start": (web.RequestHandler, "start", ["self"]),
    "RequestHandler._handle_request": (
        web.RequestHandler, "_handle_request", ["self", "request", "start_time", "request_handler"],
    ),
    "RequestHandler.finish_response": (
        web.RequestHandler, "finish_response", ["self", "request", "resp", "start_time"],
    ),
    "RequestHandler.log_access": (web.RequestHandler, "log_access", ["self", "request", "response", "time"]),
    "RequestHandler._process_keepalive": (web.RequestHandler, "_process_keepalive", ["self"]),
    "RequestHandler.force_close": (web.RequestHandler, "force_close", ["self"]),
    "RequestHandler.close": (web.RequestHandler, "close", ["self"]),
    "StreamWriter": (StreamWriter, "__init__", ["self", "protocol", "loop", "on_chunk_sent", "on_headers_sent"]),
}  # fmt: skip
"""What is called or replaced here, and its parameters."""

_START: Final = frozenset({
    "_ErrInfo", "_PAYLOAD_ACCESS_ERROR", "_buffer_paused", "_close", "_force_close", "_handle_request", "_keepalive",
    "_keepalive_handle", "_keepalive_timeout", "_lingering_time", "_logging_enabled", "_loop", "_make_error_handler",
    "_manager", "_messages", "_msg_queue_resume_size", "_next_keepalive_close_time", "_parser", "_process_keepalive",
    "_request_factory", "_request_handler", "_resume_reading_if_drained", "_task", "_task_handler", "_waiter",
})  # fmt: skip
"""All that aiohttp's own way of serving a connection knows of it. A version that knows more is not stood in for."""


def _faults() -> Iterator[str]:
    """Yield the names of what is not as this file expects it; never raises."""
    yield from _MISSING
    yield from unlike(_SIGNATURES)
    names = getattr(getattr(web.RequestHandler.start, "__code__", None), "co_names", ())
    for name in sorted(_START.symmetric_difference(name for name in names if name.startswith("_"))):
        yield f"RequestHandler.start: {name}"
    yield from failing(_rehearse, "a request that is fed by hand")


def _rehearse() -> None:
    """Feed a request to a connection that has no socket, and take its body; raises if that goes wrong."""
    loop = cast("asyncio.AbstractEventLoop", object())  # it is for what is awaited: nothing is
    server = web.Server(cast("Any", None), loop=loop)
    connection = Connection(server, loop=loop)
    connection.data_received(b"POST /a?b HTTP/1.1\r\nhost: c\r\ncontent-length: 2\r\n\r\n{}")
    [(message, payload)] = connection._messages  # noqa: SLF001, as in the class
    expect(type(message) is RawRequestMessage and message.path == "/a?b" and not message.upgrade, "the head")
    expect(payload.is_eof() and whole_body(payload) == b"{}", "the body")


FAULTS: Final = tuple(_faults())
IS_SHORT = not FAULTS and not os.environ.get("MILLRACE_PUBLIC_PATH")
