"""A client's connection: aiohttp's, without what it does for every request and a gateway does not need.

This file reaches below aiohttp's public surface on the clients' side, as ``exchange.py`` and ``provider_connection.py``
do on the providers'. What it keeps of aiohttp is its parser in C, its requests and its way of ending an answer. What it
leaves out, for requests that are whole and as usual, is a task of its own for each (making it, waking it, waking who
waits for it) and a second look of the parser at what it has read already. That is a seventh of what a short answer
costs on this side. And a head that came before on the connection is not parsed again, see gateway/known_head.py. Nor is
its request made again: that takes over what aiohttp has made of the first, and so does a handler with what it has found
in the headers (``known_of``).

A task of its own gave each request its own context variables. Here requests share their connection's, as long as they
leave them as they were; where one does not, the connection goes on in a new task, with those it began with.

Whatever is not a plain request is aiohttp's: from the first one on it serves the connection in its own way. ``FAULTS``
names where this aiohttp is not as the file expects: then it does so from the beginning, and also where the environment
has ``MILLRACE_PUBLIC_PATH``.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from types import SimpleNamespace
from typing import Any, Final, cast

from aiohttp import StreamReader, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.hdrs import CONTENT_LENGTH
from multidict import CIMultiDict, CIMultiDictProxy

from gateway.core.errors import without_frames
from gateway.expectations import expect, failing, unlike
from gateway.known_head import KnownHead
from gateway.reply import Reply

_MISSING: tuple[str, ...] = ()
try:
    from aiohttp.http_parser import RawRequestMessage
    from aiohttp.http_writer import StreamWriter
    from aiohttp.streams import EMPTY_PAYLOAD
except ImportError as error:
    _MISSING = (str(error),)
    RawRequestMessage = StreamWriter = type("Missing", (), {})  # type: ignore[assignment, misc]
    EMPTY_PAYLOAD = None  # type: ignore[assignment, misc]

LESSONS: Final = 4
"""How many heads of a connection are learned in vain: a client that says another each time is not asked to repeat."""

_Received = tuple[Any, StreamReader | bytes]
"""A request's head, and its body: that is bytes where it went past the parser."""

IS_SHORT = True
"""Settled at the end of this file, behind what needs it."""


class Connection(web.RequestHandler):
    """aiohttp's connection, which handles a usual request in its own task, and knows its head when it comes again.

    ``_owed_bytes`` is how much of a request aiohttp's parser has not had yet: 0 between two, below that where it is not
    known.
    """

    __slots__ = ("_found", "_has_paused", "_known", "_lessons", "_made", "_owed_bytes", "_writer")

    _messages: deque[_Received]  # type: ignore[assignment]  # it has both kinds

    def __init__(self, server: web.Server, **options: Any) -> None:
        super().__init__(server, **options)
        self._has_paused = False
        self._known: tuple[KnownHead, RawRequestMessage] | None = None
        self._found: dict[str, Any] = {}
        self._made: tuple[type[web.BaseRequest], dict[str, Any]] | None = None
        self._writer: StreamWriter | None = None
        self._lessons = LESSONS
        self._owed_bytes = 0

    def pause_reading(self) -> None:
        """Read nothing more for now."""
        self._has_paused = True
        super().pause_reading()

    def resume_reading(self, resume_parser: bool = True) -> None:  # noqa: FBT001, FBT002, as aiohttp has it
        """Read on. That is asked for with every body, mostly in vain, and has the parser look again at what it had."""
        if self._has_paused or self._buffer_paused or not IS_SHORT:
            super().resume_reading(resume_parser)

    def data_received(self, data: bytes) -> None:
        """Take what a read brought; a request whose head is known goes past the parser, which has to be between two."""
        head: KnownHead | None = None
        if self._owed_bytes == 0 and data and IS_SHORT:
            if self._known is not None and self._recall(*self._known, data):
                return
            head = KnownHead.of(data) if self._lessons else None
            self._owed_bytes = -1 if head is None else head.request_bytes
        if self._owed_bytes > 0:
            self._owed_bytes = max(-1, self._owed_bytes - len(data))
        super().data_received(data)
        if head is not None and self._owed_bytes == 0:
            self._learn(head)

    def _recall(self, known: KnownHead, message: RawRequestMessage, data: bytes) -> bool:
        """Take a request whose head has come before, if a request is waited for; returns whether it is one."""
        waiter = self._waiter
        if waiter is None or waiter.done() or (found := known.recall(data)) is None:
            return False
        length, body = found
        if length != known.length:
            message = _with_length(message, length)
        self._lessons = LESSONS
        self._request_count += 1
        self._messages.append((message, body))
        waiter.set_result(None)
        return True

    def _learn(self, head: KnownHead) -> None:
        """Keep what the parser has made of a head, if it was all of one plain request."""
        if len(self._messages) != 1:
            return
        message, payload = self._messages[0]
        is_whole = type(message) is RawRequestMessage and type(payload) is StreamReader and payload.is_eof()
        if is_whole and not (message.compression or message.upgrade or message.chunked):
            self._known = head, message
            self._found, self._made = {}, None
            self._lessons -= 1

    def connection_lost(self, exc: BaseException | None) -> None:
        """Cancel the request that is being handled, and forget those that wait."""
        if exc is not None:
            without_frames(exc)  # the request gets it, and is in those of asyncio's transport
        super().connection_lost(exc)
        self._writer = None  # it has the connection
        self._messages.clear()  # nobody asks for them any more, and their bodies keep the connection

    async def start(self) -> None:
        """Handle the requests of the connection, one after the other; aiohttp's own does the same with more tasks."""
        if not IS_SHORT:
            try:
                await super().start()
            except asyncio.CancelledError as error:
                without_frames(error)  # one of them has the task that has the error
                raise
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
                self._owed_bytes = -1  # from now on all is aiohttp's
                await super().start()
                return
            self._messages.popleft()
            serving = self._serve(message, payload)
            del payload  # it is long where it is bytes, and only who takes it is to hold it
            if not await serving:
                break
            if copy_context() != context:  # something was left in it, which the next request is not to find
                self._task_handler = self._loop.create_task(self.start(), context=context)
                return
        if not self._force_close:
            self._task_handler = None
            if self.transport is not None:
                self.transport.close()

    async def _serve(self, message: RawRequestMessage, payload: StreamReader | bytes) -> bool:
        """Answer a request; returns whether the connection is good for another.

        A body that went past the parser is given to its request as one that has been read.
        """
        manager, parser, factory, handler = self._manager, self._parser, self._request_factory, self._request_handler
        if manager is None or parser is None or factory is None or handler is None:
            return False  # it has just been lost
        writer, self._writer = self._writer or StreamWriter(self, self._loop), None
        if isinstance(payload, bytes):
            is_whole, content = True, EMPTY_PAYLOAD
            request = self._made_again(message, writer, factory)
            request._read_bytes = payload  # noqa: SLF001, aiohttp keeps it there for who asks again
        else:
            is_whole, content = payload.is_eof(), payload
            request = factory(message, content, self, writer, self._task_handler)  # type: ignore[arg-type]  # the same
        del payload
        if is_whole:
            parser.message_consumed()
        manager.requests_count += 1
        try:
            response, is_lost = await self._handle_request(request, None, handler)
            if is_lost:
                return False
            self._keepalive = bool(response.keep_alive)
            if not is_whole:
                await self._read_rest(content)
            elif type(response) is Reply:  # which has used nothing of it
                writer.output_size = 0
                self._writer = writer
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

    def _made_again(
        self, message: RawRequestMessage, writer: StreamWriter, factory: Callable[..., web.BaseRequest]
    ) -> web.BaseRequest:
        """Return a request for a head that came before, as aiohttp would make it: the first such one is made by it."""
        if self._made is None:
            request = factory(message, EMPTY_PAYLOAD, self, writer, self._task_handler)
            self._made = type(request), {name: value for name, value in vars(request).items() if name not in _OF_ONE}
            request._state[KNOWN] = self._found  # noqa: SLF001, the same
            return request
        kind, made = self._made
        request = object.__new__(kind)
        fields = request.__dict__
        fields.update(made)
        fields["_message"], fields["_headers"] = message, message.headers
        fields["_cache"], fields["_state"] = {}, {KNOWN: self._found}
        fields["_protocol"], fields["_payload_writer"], fields["_task"] = self, writer, self._task_handler
        return request

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


KNOWN: Final = web.RequestKey("known", dict[str, Any])
"""What handlers have found out about a head that comes again, from its headers but for the length, see ``known_of``."""


def known_of(request: web.BaseRequest) -> dict[str, Any]:
    """Return what was found out about the head of a request, for whoever looks at that to keep what he finds.

    Every request whose head is the same on the same connection has the same, and no other has.
    """
    try:
        return request[KNOWN]
    except KeyError:
        return {}


_OF_ONE: Final = frozenset({
    "_cache", "_headers", "_message", "_payload_writer", "_protocol", "_read_bytes", "_state", "_task",
})  # fmt: skip
"""What one request alone has."""


def _with_length(message: RawRequestMessage, length: bytes) -> RawRequestMessage:
    """Return a message for a body of another length."""
    raw = message.raw_headers
    at = next(at for at, (name, _) in enumerate(raw) if name.lower() == b"content-length")
    name = raw[at][0]
    headers = CIMultiDict(message.headers)
    headers[CONTENT_LENGTH] = length.decode()  # the parser has its own spelling of common names
    return message._replace(headers=CIMultiDictProxy(headers), raw_headers=(*raw[:at], (name, length), *raw[at + 1 :]))


def whole_body(request: web.BaseRequest) -> bytes | None:
    """Take the body of a request where all of it has come; returns ``None`` where it has to be waited for."""
    if not IS_SHORT:
        return None
    body, request._read_bytes = request._read_bytes, None  # noqa: SLF001, see above
    if body is not None:
        return body
    content = request.content
    if type(content) is StreamReader and content._eof and content._exception is None:  # noqa: SLF001, the same
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
    if not hasattr(web.BaseRequest, "_read_bytes"):
        yield "BaseRequest._read_bytes"
    names = getattr(getattr(web.RequestHandler.start, "__code__", None), "co_names", ())
    for name in sorted(_START.symmetric_difference(name for name in names if name.startswith("_"))):
        yield f"RequestHandler.start: {name}"
    yield from failing(_rehearse, "a request that is fed by hand")


def _rehearse() -> None:
    """Feed a request to a connection that has no socket, and take its body; raises if that goes wrong."""
    loop = cast("asyncio.AbstractEventLoop", object())  # it is for what is awaited: nothing is
    server = web.Server(cast("Any", None), loop=loop)
    head = b"POST /a?b HTTP/1.1\r\nhost: c\r\ncontent-length: %d\r\nX-d: e\r\n\r\n"
    connection, other = Connection(server, loop=loop), Connection(server, loop=loop)
    connection.data_received(head % 2 + b"{}")
    [(message, payload)] = connection._messages  # noqa: SLF001, as in the class
    expect(type(message) is RawRequestMessage and message.path == "/a?b" and not message.upgrade, "the head")
    request = cast("web.BaseRequest", SimpleNamespace(_read_bytes=None, content=payload))
    is_whole = isinstance(payload, StreamReader) and payload.is_eof()
    expect(is_whole and whole_body(request) == b"{}", "the body")
    connection._messages.clear()  # noqa: SLF001, the same
    connection._waiter = cast("Any", SimpleNamespace(done=lambda: False, set_result=lambda _: None))  # noqa: SLF001
    connection.data_received(head % 3 + b"{ }")
    other.data_received(head % 3 + b"{ }")
    [(known, body)], [(parsed, _)] = cast("list[_Received]", connection._messages), other._messages  # noqa: SLF001
    expect(body == b"{ }" and repr(known) == repr(parsed), "a head that came before")
    writer = StreamWriter(connection, loop)
    factory = partial(web.BaseRequest, loop=loop)
    first, again = (connection._made_again(known, writer, factory) for _ in range(2))  # noqa: SLF001, the same
    is_same = first is not again and vars(first) == vars(again) and known_of(first) is known_of(again)
    expect(is_same, "a request that is made again")


FAULTS: Final = tuple(_faults())
IS_SHORT = not FAULTS and not os.environ.get("MILLRACE_PUBLIC_PATH")
