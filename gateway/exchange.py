"""One exchange with a provider: a request is written, the head of its answer awaited, its body handed on.

This file reaches below aiohttp's public surface, and is the only one that does. What it keeps of aiohttp is its
connector (names, happy eyeballs, TLS, the pool), its parser in C, and its reader for all that is awaited. What it
leaves out is what serves a browser more than a gateway: a request object, a writer and a response for every call,
tracing, timers, cookies, redirects. An exchange on a kept connection takes 40 µs of CPU, and 107 without this.

And a body is not awaited but pushed. The public way wakes a task for each read, which resumes a coroutine three awaits
deep: measured on the whole relay path that costs a quarter more CPU per token than being called. Here the class of an
answer's ``StreamReader`` is replaced by one that leaves the bytes with the connection, which passes them on when its
parser is through with the read. What arrives in one read of the socket is passed on as one piece, however many chunks
it had. Passing on at once, and not in the loop's next turn, saves another 6 % of the CPU per token at 100 streams.

``FAULTS`` names where this aiohttp is not as the file expects: then everything goes the public way, as it does for what
the short one does not know (a proxy, a large body, headers that are aiohttp's own business), and where the environment
has ``MILLRACE_PUBLIC_PATH``.

Back-pressure: while the client's socket is full the reader is an ordinary one, which buffers up to its limit and then
stops reading from the provider.
"""

from __future__ import annotations

import asyncio
import inspect
import io
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import MappingProxyType, SimpleNamespace
from typing import Any, Final, Literal, cast

import aiohttp
from aiohttp import ClientRequest, StreamReader, TCPConnector
from aiohttp.client_proto import ResponseHandler
from yarl import URL

from gateway.core.call import Flow, OpenFlow
from gateway.core.kept import Kept

_MISSING: tuple[str, ...] = ()
try:
    from aiohttp.connector import Connection
    from aiohttp.http import HttpProcessingError
except ImportError as error:
    _MISSING = (str(error),)
    Connection = HttpProcessingError = type("Missing", (Exception,), {})  # type: ignore[assignment, misc]

LARGE_BODY_BYTES: Final = 512 * 1024
"""Above this aiohttp wants a file, so that it can write in pieces instead of blocking the loop."""

MAX_KEPT_PLACES: Final = 1024
"""An address can have the model's name in it, and that is the client's word."""

MAX_KEPT_HEADS: Final = 8
"""A provider has two: for a stream, and for an answer that is wanted whole."""

Take = Callable[[bytes, float], bool]
"""Takes what one read brought, and when that was; returns whether it was all that is needed.

The time is on the system's monotonic clock: the loop's own, with uvloop, moves on by whole milliseconds, between turns.
"""


class Answer:
    """The head of an answer, and its body to be read. Whoever has one lets go of it: ``release`` or ``abort``."""

    __slots__ = ("_connection", "content", "headers", "status")

    def __init__(
        self, status: int, headers: Mapping[str, str], content: StreamReader, connection: Connection | None
    ) -> None:
        self.status = status
        self.headers = headers
        self.content = content
        self._connection = connection

    async def read(self, limit_bytes: int) -> bytes:
        """Return the body, or its first ``limit_bytes``."""
        content = self.content
        if self._connection is not None and content.is_eof() and content.exception() is None:
            return content.read_nowait(limit_bytes)  # short answers mostly come with their head
        pieces: list[bytes] = []
        size = 0
        while size < limit_bytes and (piece := await content.readany()):
            pieces.append(piece)
            size += len(piece)
        return b"".join(pieces)[:limit_bytes]

    @property
    def is_at_end(self) -> bool:
        """Whether nothing more will come, so that the connection can serve another."""
        return self.content.is_eof()

    def release(self) -> None:
        """Give the connection back."""
        connection = cast("Connection", self._connection)
        protocol = connection.protocol
        if protocol is not None and protocol.writing_paused:  # it was answered before it was read
            connection.close()
        else:
            connection.release()

    def abort(self) -> None:
        """Cut the connection: to close it would be too polite, see ``_Abrupt``."""
        cast("Connection", self._connection).close()


class _PublicAnswer(Answer):
    """An answer that aiohttp has read all by itself."""

    __slots__ = ("_response",)

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        super().__init__(response.status, response.headers, response.content, None)
        self._response = response

    @property
    def is_at_end(self) -> bool:
        return self._response.connection is None or self.content.is_eof()

    def release(self) -> None:
        if self._response.connection is not None:
            self._response.release()

    def abort(self) -> None:
        connection = self._response.connection
        if connection is not None and connection.transport is not None:
            connection.transport.abort()
        self._response.close()


class Connector(TCPConnector):
    """Makes connections that can be read by push, and are never closed politely.

    ``headers`` go with every request. ``read_ahead_bytes`` is about how much is read of an answer that nobody takes.
    """

    def __init__(self, *, headers: Mapping[str, str], read_ahead_bytes: int, **options: Any) -> None:
        super().__init__(**options)
        make = _Connection if IS_SHORT else _Abrupt
        self._factory = partial(make, loop=self._loop)  # type: ignore[assignment]  # it is one of these
        self.read_ahead_bytes = read_ahead_bytes
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        head = lines + ("connection: close\r\n" if self.force_close else "")
        self._places = Kept(partial(_Place.of, head, self._loop), most=MAX_KEPT_PLACES)
        self._plain_names = Kept(partial(_are_plain, headers), most=MAX_KEPT_PLACES)

    def place(self, address: str) -> _Place | None:
        """Return what is the same in all requests to an address; ``None`` for one that aiohttp has to look at."""
        return self._places[address]

    def has_plain(self, headers: Mapping[str, str]) -> bool:
        """Return whether the names of headers are as all calls have them, so that they can be written as they are."""
        return self._plain_names[tuple(headers)]

    async def take(self, place: _Place, connect_timeout_s: float, note_connect: Callable[[float], None]) -> Connection:
        """Return a connection that was kept, or a new one; raises what aiohttp raises."""
        while (kept := await self._get(place.key, [])) is not None:
            if kept.protocol is not None and not kept.protocol.should_close:
                return kept
            kept.close()  # it has spoken unasked: that would be read as the answer
        began_at_s = time.monotonic()
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s)
        try:
            made = await self.connect(place.request, [], timeout)
        except TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError("the connection was not made in time") from error
        note_connect(time.monotonic() - began_at_s)
        return made


class _Place:
    """What is the same in all requests to one address.

    ``heads`` are written out for headers that no call adds to: a provider hands out the same read-only ones each time.
    """

    __slots__ = ("_head", "heads", "key", "request")

    def __init__(self, request: ClientRequest, head: str) -> None:
        self.request = request
        self.key = request.connection_key
        self._head = head
        self.heads: dict[int, tuple[Mapping[str, str], bytes]] = {}

    def head_of(self, headers: Mapping[str, str], body_bytes: int) -> bytes:
        """Return the head of a request; raises ``ValueError`` for a header that would be more than one."""
        kept = self.heads.get(id(headers))
        if kept is not None and kept[0] is headers:
            return b"%bContent-Length: %d\r\n\r\n" % (kept[1], body_bytes)
        if _CONTROL.search("".join(headers.values())) is not None:
            raise ValueError("a header of the request has a control character in it")
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        head = f"{self._head}{lines}".encode("utf-8", "ignore")
        if type(headers) is MappingProxyType:
            if len(self.heads) >= MAX_KEPT_HEADS:
                self.heads.clear()
            self.heads[id(headers)] = headers, head
        return b"%bContent-Length: %d\r\n\r\n" % (head, body_bytes)

    @classmethod
    def of(cls, common_head: str, loop: asyncio.AbstractEventLoop, address: str) -> _Place | None:
        """Prepare for an address; ``None`` for one with a name and a password in it, and for none at all."""
        try:
            url = URL(address, encoded=True)
        except ValueError:
            return None
        host, path = url.host_port_subcomponent, url.raw_path_qs
        if url.scheme not in ("http", "https") or not url.raw_host or url.raw_user or url.raw_password:
            return None
        if _CONTROL.search(f"{host}{path}") is not None or " " in path:
            return None
        request = ClientRequest("POST", url, loop=loop)
        return cls(request, f"POST {path} HTTP/1.1\r\nHost: {host}\r\n{common_head}")


_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
"""What no header may have in it."""

_PRESENT = frozenset({"accept", "content-type"})
_NOT_PLAIN = frozenset({
    "connection", "content-encoding", "content-length", "cookie", "expect", "host", "te", "trailer",
    "transfer-encoding", "upgrade",
})  # fmt: skip
"""Headers that a request must have, and those of which aiohttp makes something itself."""


def _are_plain(common: Mapping[str, str], names: tuple[str, ...]) -> bool:
    lower = {name.lower() for name in names}
    is_once = len(lower) == len(names) and lower.isdisjoint(common)
    return is_once and lower >= _PRESENT and lower.isdisjoint(_NOT_PLAIN) and _CONTROL.search("".join(names)) is None


async def ask(
    session: aiohttp.ClientSession,
    url: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    connect_timeout_s: float,
    note_connect: Callable[[float], None],
    proxy: str | None = None,
) -> Answer:
    """Post ``body`` and return the answer when its head has come; raises what aiohttp raises.

    ``note_connect`` is told how long a new connection has taken. A line break in a header raises ``ValueError``.
    """
    if IS_SHORT and proxy is None and len(body) < LARGE_BODY_BYTES:
        connector = session.connector
        if type(connector) is Connector and connector.has_plain(headers):
            place = connector.place(url)
            if place is not None:
                request = place.head_of(headers, len(body)) + body
                connection = await connector.take(place, connect_timeout_s, note_connect)
                return await _exchange(connection, request, connector.read_ahead_bytes)
    response = await session.post(
        URL(url, encoded=True),
        data=body if len(body) < LARGE_BODY_BYTES else io.BytesIO(body),
        headers=headers,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s),
        allow_redirects=False,
        proxy=proxy,
        trace_request_ctx=note_connect,
    )
    return _PublicAnswer(response)


async def _exchange(connection: Connection, request: bytes, read_ahead_bytes: int) -> Answer:
    """Write the request and wait for the head of its answer; however that ends early, the connection is cut."""
    protocol = cast("_Connection", connection.protocol)
    try:
        protocol.set_response_params(read_until_eof=True, read_bufsize=read_ahead_bytes)
        transport = protocol.transport
        if transport is None or transport.is_closing():
            raise aiohttp.ClientConnectionResetError("the connection was closed before the request")  # noqa: TRY301
        transport.write(request)
        while True:
            message, content = await protocol.read()
            if not 100 <= message.code < 200 or message.code == 101:  # the others announce an answer
                return Answer(message.code, message.headers, content, connection)
    except HttpProcessingError as error:
        connection.close()
        raise aiohttp.ClientPayloadError("the head of the answer is not valid HTTP") from error
    except BaseException:
        connection.close()
        raise


def connection_times() -> aiohttp.TraceConfig:
    """Return what tells the function in ``trace_request_ctx`` how long a new connection has taken."""

    async def begin(_session: aiohttp.ClientSession, context: SimpleNamespace, _params: object) -> None:
        context.began_at_s = time.monotonic()

    async def end(_session: aiohttp.ClientSession, context: SimpleNamespace, _params: object) -> None:
        context.trace_request_ctx(time.monotonic() - context.began_at_s)

    times = aiohttp.TraceConfig()
    times.on_connection_create_start.append(begin)
    times.on_connection_create_end.append(end)
    return times


# --- reading by push


async def relay(content: StreamReader, take: Take, flow: Flow, *, note_pause: Callable[[], None]) -> None:
    """Pass all of ``content`` to ``take``, until it has enough or the body ends.

    While ``flow`` is paused nothing is passed on; ``note_pause`` is called when it goes on. Raises what the transport
    raises, and what ``take`` does.
    """
    connection = _pushing(content)
    if connection is None:
        await _pull(content, take, flow, note_pause)
    else:
        await _push(connection, content, take, flow, note_pause)


def _pushing(content: StreamReader) -> _Connection | None:
    """Return the connection that can push what is read; a body that is empty has none."""
    connection = content._protocol if IS_SHORT and type(content) is StreamReader else None  # noqa: SLF001, see above
    return connection if isinstance(connection, _Connection) else None


async def _pull(content: StreamReader, take: Take, flow: Flow, note_pause: Callable[[], None]) -> None:
    while data := await content.readany():
        if take(data, time.monotonic()):
            return
        if flow.is_paused:
            await flow.wait()
            note_pause()


async def _push(
    connection: _Connection, content: StreamReader, take: Take, flow: Flow, note_pause: Callable[[], None]
) -> None:
    sink = _Sink(connection, take, flow)
    content.__class__ = _PushReader
    try:
        while True:
            sink.open(content)
            if await sink.stopped != "paused":
                return
            await flow.wait()
            note_pause()
    finally:
        sink.close()
        content.__class__ = StreamReader


class _Sink:
    """Takes the pieces of one body and passes on what one read brought."""

    __slots__ = ("_connection", "_flow", "_take", "arrived_at_s", "has_ended", "pieces", "stopped")

    def __init__(self, connection: _Connection, take: Take, flow: Flow) -> None:
        self._connection = connection
        self._take = take
        self._flow = flow
        self.pieces: list[bytes] = []
        self.arrived_at_s = 0.0
        self.has_ended = False
        self.stopped: asyncio.Future[Literal["ended", "enough", "paused"]]

    def open(self, content: StreamReader) -> None:
        """Begin to pass on, with what has been buffered meanwhile."""
        self.stopped = self._connection.make_future()
        self.arrived_at_s = time.monotonic()
        # Reading makes aiohttp feed what its parser had held back: behind what is buffered, so it is not passed on yet.
        while content.exception() is None and (buffered := content.read_nowait()):
            self.pieces.append(buffered)
        self.has_ended = content.is_eof()
        if self.pieces or self.has_ended:
            self.pass_on()
        if (error := content.exception()) is not None:
            self.fail(error)
        elif not self.stopped.done():
            self._connection.sink = self

    def close(self) -> None:
        """Pass nothing on any more."""
        self._connection.sink = None
        self.pieces.clear()
        self.stopped.cancel()

    def pass_on(self) -> None:
        """Pass on what has come, and stop if that was all, or enough, or more than the client takes."""
        if pieces := self.pieces:
            data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            pieces.clear()
            try:
                if self._take(data, self.arrived_at_s):
                    self._stop("enough")
                    return
            except BaseException as error:  # noqa: BLE001, it travels on in the future
                self.fail(error)
                return
        if self.has_ended:
            self._stop("ended")
        elif self._flow.is_paused:
            self._stop("paused")

    def fail(self, error: BaseException) -> None:
        """The transport broke, or what was passed on was not taken."""
        if self.pieces:
            self.pass_on()
        self._connection.sink = None
        if not self.stopped.done():
            self.stopped.set_exception(error)

    def _stop(self, why: Literal["ended", "enough", "paused"]) -> None:
        self._connection.sink = None
        if not self.stopped.done():
            self.stopped.set_result(why)


class _Abrupt(ResponseHandler):
    """A connection that is never closed politely: with TLS that waits for the other side, up to half a minute.

    A call may be cancelled while aiohttp still waits for the head of its answer, and then it is aiohttp that closes.
    """

    def close(self) -> None:
        self.abort()


class _Connection(_Abrupt):
    """A connection that passes on to its ``sink``, while it has one, what each read brought."""

    sink: _Sink | None = None

    def make_future(self) -> asyncio.Future[Any]:
        """Return a future of the connection's loop."""
        return self._loop.create_future()

    def resume_reading(self, resume_parser: bool = True) -> None:  # noqa: FBT001, FBT002, as aiohttp has it
        if self._reading_paused or self._buffer_paused:  # else it is asked for at the end of every body, in vain
            super().resume_reading(resume_parser)

    def data_received(self, data: bytes) -> None:
        sink = self.sink
        if sink is None:
            super().data_received(data)
            return
        sink.arrived_at_s = time.monotonic()
        ResponseHandler.data_received(self, data)
        if sink.pieces or sink.has_ended:
            sink.pass_on()

    def connection_lost(self, exc: BaseException | None) -> None:
        sink = self.sink
        super().connection_lost(exc)
        if sink is not None and sink.has_ended:
            sink.pass_on()


class _PushReader(StreamReader):
    """A reader that leaves what it is fed with its connection, while that has a sink."""

    __slots__ = ()

    _protocol: _Connection

    def feed_data(self, data: bytes, size: int = 0) -> bool:
        sink = self._protocol.sink
        if sink is None:
            return super().feed_data(data, size)
        self.total_bytes += len(data)
        sink.pieces.append(data)
        return False

    def end_http_chunk_receiving(self) -> None:
        """Chunks are not counted: nobody reads chunk by chunk."""

    def feed_eof(self) -> None:
        super().feed_eof()
        if (sink := self._protocol.sink) is not None:
            sink.has_ended = True

    def set_exception(self, exc: BaseException, exc_cause: BaseException | None = None) -> None:
        if exc_cause is None:
            super().set_exception(exc)
        else:
            super().set_exception(exc, exc_cause)
        if (sink := self._protocol.sink) is not None:
            sink.fail(exc)


# --- whether aiohttp is as it was


_SIGNATURES: Final = {
    "TCPConnector._get": (TCPConnector, "_get", ["self", "key", "traces"]),
    "TCPConnector.connect": (TCPConnector, "connect", ["self", "req", "traces", "timeout"]),
    "TCPConnector._release": (TCPConnector, "_release", ["self", "key", "protocol", "should_close"]),
    "Connection.release": (Connection, "release", ["self"]),
    "Connection.close": (Connection, "close", ["self"]),
    "ResponseHandler.read": (ResponseHandler, "read", ["self"]),
    "ResponseHandler.abort": (ResponseHandler, "abort", ["self"]),
    "ResponseHandler.resume_reading": (ResponseHandler, "resume_reading", ["self", "resume_parser"]),
    "ResponseHandler.data_received": (ResponseHandler, "data_received", ["self", "data"]),
    "ResponseHandler.connection_lost": (ResponseHandler, "connection_lost", ["self", "exc"]),
    "StreamReader.feed_data": (StreamReader, "feed_data", ["self", "data", "size"]),
    "StreamReader.feed_eof": (StreamReader, "feed_eof", ["self"]),
    "StreamReader.set_exception": (StreamReader, "set_exception", ["self", "exc", "exc_cause"]),
    "StreamReader.begin_http_chunk_receiving": (StreamReader, "begin_http_chunk_receiving", ["self"]),
    "StreamReader.end_http_chunk_receiving": (StreamReader, "end_http_chunk_receiving", ["self"]),
    "StreamReader.read_nowait": (StreamReader, "read_nowait", ["self", "n"]),
}
"""What is called or replaced here, and its parameters."""

_NAMES: Final = {
    "ResponseHandler.should_close": (ResponseHandler, "should_close"),
    "ResponseHandler.writing_paused": (ResponseHandler, "writing_paused"),
    "Connection.protocol": (Connection, "protocol"),
    "ResponseHandler._reading_paused": (ResponseHandler, "_reading_paused"),
    "ResponseHandler._buffer_paused": (ResponseHandler, "_buffer_paused"),
    "StreamReader._protocol": (StreamReader, "_protocol"),
    "ClientRequest.connection_key": (ClientRequest, "connection_key"),
}


def _faults() -> Iterator[str]:
    """Yield the names of what is not as this file expects it; never raises."""
    yield from _MISSING
    for name, (owner, attribute, expected) in _SIGNATURES.items():
        try:
            found = list(inspect.signature(getattr(owner, attribute)).parameters)
        except (AttributeError, TypeError, ValueError):
            found = []
        if found != expected:
            yield name
    yield from (name for name, (owner, attribute) in _NAMES.items() if not hasattr(owner, attribute))
    if "_factory" not in aiohttp.BaseConnector.__init__.__code__.co_names:
        yield "BaseConnector._factory"
    try:
        _rehearse()
    except Exception as error:  # noqa: BLE001, whatever it is, the public way may still do
        yield f"an answer that is fed and pushed by hand: {type(error).__name__}: {error}"


def _rehearse() -> None:
    """Feed an answer to a connection that has no socket, and push what it has; raises if that goes wrong."""
    connection = _Connection(cast("asyncio.AbstractEventLoop", object()))  # a loop is for what is awaited: nothing is
    connection.set_response_params(read_until_eof=True, read_bufsize=4096)
    connection.data_received(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    reading = connection.read()
    try:
        reading.send(None)
    except StopIteration as done:
        message, content = done.value
    _expect(message.code == 200 and "chunked" in message.headers["transfer-encoding"], "the head")
    _expect(type(content) is StreamReader and content._protocol is connection, "the reader")  # noqa: SLF001
    content.__class__ = _PushReader
    got: list[bytes] = []
    sink = connection.sink = _Sink(connection, lambda data, _: got.append(data) is not None, OpenFlow())  # type: ignore[func-returns-value]  # it has never enough
    sink.stopped = cast("asyncio.Future[Any]", _Ignored())
    connection.data_received(b"3\r\none\r\n3\r\ntwo\r\n")
    _expect(got == [b"onetwo"], "the chunks of a read")
    connection.data_received(b"5\r\nthree\r\n0\r\n\r\n")
    _expect(got == [b"onetwo", b"three"] and connection.sink is None, "the end of a body")
    content.__class__ = StreamReader
    _expect(content.is_eof() and not connection.should_close, "a connection behind its answer")


def _expect(what_is: bool, what: str) -> None:  # noqa: FBT001, as in an assertion
    if not what_is:
        raise LookupError(what)


class _Ignored:
    """Stands for a future where there is no loop."""

    def done(self) -> bool:
        """Nobody waits for it."""
        return True


FAULTS: Final = tuple(_faults())
IS_SHORT = not FAULTS and not os.environ.get("MILLRACE_PUBLIC_PATH")
