"""One exchange with a provider: a request is written, the head of its answer awaited, its body handed on.

This file reaches below aiohttp's public surface, as only ``connection.py`` does beside it. What it keeps of it is its
connector (names, happy eyeballs, TLS, the pool), and its parser in C and its reader for every answer that is not plain.
What it leaves out is what serves a browser more than a gateway: a request object, a writer and a response for every
call, tracing, timers, cookies, redirects.

A plain answer is read here, see gateway/plain_answer.py: one that comes as a whole has no parser, no ``StreamReader``
and no queue, and takes 58 % of the instructions that it takes with them. What turns out not to be plain, or is not
read as it comes, is handed over to aiohttp, in the middle of a chunk if need be, and has the meaning that it gives it.

And a body is not awaited but pushed. The public way wakes a task for each read, which resumes a coroutine three awaits
deep: measured on the whole relay path that costs a quarter more CPU per token than being called. Here what arrives in
one read of the socket is passed on as one piece, in that read, however many chunks it had. Passing on at once, and not
in the loop's next turn, saves another 6 % of the CPU per token at 100 streams. Where aiohttp's parser reads, the class
of an answer's ``StreamReader`` is replaced by one that leaves the bytes with the connection, which passes them on when
the parser is through with the read.

``FAULTS`` names where this aiohttp is not as the file expects: then everything goes the public way, as it does for what
the short one does not know (a proxy, a large body, headers that are aiohttp's own business), and where the environment
has ``MILLRACE_PUBLIC_PATH``.

Back-pressure: while the client's socket is full what comes goes to an ordinary reader, which buffers up to its limit
and then stops reading from the provider.
"""

from __future__ import annotations

import asyncio
import io
import os
import re
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from functools import partial
from types import MappingProxyType, SimpleNamespace
from typing import Any, Final, Literal, TypeAlias, TypeVar, cast

import aiohttp
from aiohttp import ClientRequest, StreamReader, TCPConnector
from aiohttp.client_proto import ResponseHandler
from yarl import URL

from gateway.core.call import Flow, OpenFlow
from gateway.core.kept import Kept
from gateway.expectations import expect, failing, unlike
from gateway.plain_answer import Chunked, Sized, read_head

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

_Plain = tuple[int, Mapping[str, str], "bytes | PlainBody"]
"""The status of a plain answer, its headers, and its body, or what there is of it."""

Take = Callable[[bytes, float], bool]
"""Takes what one read brought, and when that was; returns whether it was all that is needed.

The time is on the system's monotonic clock: the loop's own, with uvloop, moves on by whole milliseconds, between turns.
"""


class Answer:
    """The head of an answer, and its body to be read. Whoever has one lets go of it: ``release`` or ``abort``.

    Headers are to be asked for by names in lower case.
    """

    __slots__ = ("content", "headers", "status")

    def __init__(self, status: int, headers: Mapping[str, str], content: Content) -> None:
        self.status = status
        self.headers = headers
        self.content = content

    async def read(self, limit_bytes: int) -> bytes:
        """Return the body, or its first ``limit_bytes``."""
        content = self.content
        if type(content) is bytes:  # short answers mostly come with their head
            return content[:limit_bytes]
        return await _collect(content, limit_bytes)

    @property
    def is_at_end(self) -> bool:
        """Whether nothing more will come, so that the connection can serve another."""
        raise NotImplementedError

    def release(self) -> None:
        """Give the connection back."""
        raise NotImplementedError

    def abort(self) -> None:
        """Cut the connection: to close it would be too polite, see ``_Abrupt``."""
        raise NotImplementedError


async def _collect(content: Content, limit_bytes: int) -> bytes:
    """Return a body, or its first ``limit_bytes``."""
    pieces: list[bytes] = []
    left = limit_bytes

    def take(data: bytes, arrived_at_s: float) -> bool:  # noqa: ARG001, for a body that is wanted whole it is nothing
        nonlocal left
        pieces.append(data)
        left -= len(data)
        return left <= 0

    await relay(content, take, _OPEN, note_pause=_ignore)
    return b"".join(pieces)[:limit_bytes]


_OPEN: Final = OpenFlow()


def _ignore() -> None:
    """Nobody waits for a flow that is never paused."""


class PlainBody:
    """The body of an answer that is plain so far. ``unseen`` is what has come of it before anybody read.

    If it turns out not to be, or is not read as it comes, it goes on in the ``reader`` that aiohttp's parser feeds.
    """

    __slots__ = ("connection", "framing", "reader", "unseen")

    def __init__(self, connection: _Connection, framing: Sized | Chunked, unseen: bytes) -> None:
        self.connection = connection
        self.framing = framing
        self.unseen = unseen
        self.reader: StreamReader | None = None

    def is_eof(self) -> bool:
        """Return whether all of the body has come."""
        return self.framing.has_ended if self.reader is None else self.reader.is_eof()

    def exception(self) -> BaseException | None:
        """Return what the transport has raised."""
        return None if self.reader is None else self.reader.exception()

    def read_nowait(self) -> bytes:
        """Return what has come and was not read."""
        if self.reader is not None:
            return self.reader.read_nowait()
        unseen, self.unseen = self.unseen, b""
        return unseen


Content: TypeAlias = bytes | StreamReader | PlainBody
"""A body that has come as a whole, mostly with its head, or what brings it."""


class _ShortAnswer(Answer):
    """An answer to a request that went the short way."""

    __slots__ = ("_connection", "_protocol")

    def __init__(
        self, status: int, headers: Mapping[str, str], content: Content, connection: Connection, protocol: _Connection
    ) -> None:
        self.status = status
        self.headers = headers
        self.content = content
        self._connection = connection
        self._protocol = protocol

    @property
    def is_at_end(self) -> bool:
        content = self.content
        return isinstance(content, bytes) or content.is_eof()

    def release(self) -> None:
        protocol = self._protocol
        if protocol._paused or protocol.body is not None:  # noqa: SLF001, see above
            self._connection.close()  # it was answered before it was read, or its answer has not ended
        else:
            self._connection.release()

    def abort(self) -> None:
        self._connection.close()


class _PublicAnswer(Answer):
    """An answer that aiohttp has read all by itself."""

    __slots__ = ("_body", "_response")

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        super().__init__(response.status, response.headers, response.content)
        self._body = response.content
        self._response = response

    @property
    def is_at_end(self) -> bool:
        return self._response.connection is None or self._body.is_eof()

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
        make = partial(_Connection, read_ahead_bytes=read_ahead_bytes) if IS_SHORT else _Abrupt
        self._factory = partial(make, loop=self._loop)  # type: ignore[assignment]  # it is one of these
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        head = lines + ("connection: close\r\n" if self.force_close else "")
        self._places = Kept(partial(_Place.of, head, self.has_plain, self._loop), most=MAX_KEPT_PLACES)
        self._plain_names = Kept(partial(_are_plain, headers), most=MAX_KEPT_PLACES)

    def place(self, address: str) -> _Place | None:
        """Return what is the same in all requests to an address; ``None`` for one that aiohttp has to look at."""
        return self._places[address]

    def has_plain(self, headers: Mapping[str, str]) -> bool:
        """Return whether the names of headers are as all calls have them, so that they can be written as they are."""
        return self._plain_names[tuple(headers)]

    async def exchange(
        self, place: _Place, request: bytes, connect_timeout_s: float, note_connect: Callable[[float], None]
    ) -> Answer:
        """Write the request and wait for the head of its answer; however that ends early, the connection is cut.

        On a connection that was kept, or a new one; raises what aiohttp raises.
        """
        while (connection := await self._get(place.key, [])) is not None:
            protocol: _Connection | None = connection.protocol  # type: ignore[assignment]  # it was made here
            if protocol is not None and not protocol.should_close:
                break
            connection.close()  # it has spoken unasked: that would be read as the answer
        else:
            connection = await self._connect(place, connect_timeout_s, note_connect)
            protocol = connection.protocol  # type: ignore[assignment]  # same
        assert protocol is not None  # noqa: S101, it is taken away when it is given back
        try:
            transport = protocol.transport
            if transport is None or transport.is_closing():
                raise aiohttp.ClientConnectionResetError("the connection was closed before the request")  # noqa: TRY301
            asked = protocol.ask()
            transport.write(request)
            plain = await asked
            if plain is not None:
                return _ShortAnswer(*plain, connection, protocol)
            while True:
                message, content = await protocol.read()
                if not 100 <= message.code < 200 or message.code == 101:  # the others announce an answer
                    return _ShortAnswer(message.code, message.headers, content, connection, protocol)
        except HttpProcessingError as error:
            connection.close()
            raise aiohttp.ClientPayloadError("the head of the answer is not valid HTTP") from error
        except BaseException:
            connection.close()
            raise

    async def warm(self, place: _Place, connect_timeout_s: float) -> bool:
        """Have a connection kept; returns whether one is. Never raises for a host that is not there."""
        if self.force_close:
            return False
        if not any(protocol.is_connected() for protocol, _ in self._conns.get(place.key, ())):
            try:
                made = await self._connect(place, connect_timeout_s, _no_note)
            except (aiohttp.ClientError, OSError):
                return False
            made.release()
        return True

    async def _connect(
        self, place: _Place, connect_timeout_s: float, note_connect: Callable[[float], None]
    ) -> Connection:
        began_at_s = time.monotonic()
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s)
        try:
            made = await self.connect(place.request, [], timeout)
        except TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError("the connection was not made in time") from error
        note_connect(time.monotonic() - began_at_s)
        return made


def _no_note(connect_s: float) -> None:
    """Nobody waits for a connection that is made beforehand."""


class _Place:
    """What is the same in all requests to one address.

    ``heads`` are written out for headers that no call adds to: a provider hands out the same read-only ones each time.
    """

    __slots__ = ("_has_plain", "_head", "heads", "key", "request")

    def __init__(self, request: ClientRequest, head: str, has_plain: Callable[[Mapping[str, str]], bool]) -> None:
        self.request = request
        self._has_plain = has_plain
        self.key = request.connection_key
        self._head = head
        self.heads: dict[int, tuple[Mapping[str, str], bytes]] = {}

    def head_of(self, headers: Mapping[str, str], body_bytes: int) -> bytes | None:
        """Return the head of a request; ``None`` for headers that aiohttp has to look at.

        Raises ``ValueError`` for a header that would be more than one.
        """
        kept = self.heads.get(id(headers))
        if kept is not None and kept[0] is headers:
            return b"%bContent-Length: %d\r\n\r\n" % (kept[1], body_bytes)
        if not self._has_plain(headers):
            return None
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
    def of(
        cls,
        common_head: str,
        has_plain: Callable[[Mapping[str, str]], bool],
        loop: asyncio.AbstractEventLoop,
        address: str,
    ) -> _Place | None:
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
        return cls(request, f"POST {path} HTTP/1.1\r\nHost: {host}\r\n{common_head}", has_plain)


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


def ask(
    session: aiohttp.ClientSession,
    url: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    connect_timeout_s: float,
    note_connect: Callable[[float], None],
    proxy: str | None = None,
) -> Coroutine[Any, Any, Answer]:
    """Post ``body`` and return the answer when its head has come; raises what aiohttp raises.

    ``note_connect`` is told how long a new connection has taken. A line break in a header raises ``ValueError``.
    """
    if IS_SHORT and proxy is None and len(body) < LARGE_BODY_BYTES:
        connector = session.connector
        if type(connector) is Connector and (place := connector.place(url)) is not None:
            head = place.head_of(headers, len(body))
            if head is not None:
                return connector.exchange(place, head + body, connect_timeout_s, note_connect)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s)
    return _ask_publicly(
        session, url, body, headers=headers, timeout=timeout, proxy=proxy, trace_request_ctx=note_connect
    )


async def _ask_publicly(session: aiohttp.ClientSession, url: str, body: bytes, **options: Any) -> Answer:
    data = body if len(body) < LARGE_BODY_BYTES else io.BytesIO(body)
    response = await session.post(URL(url, encoded=True), data=data, allow_redirects=False, **options)
    return _PublicAnswer(response)


async def warm(session: aiohttp.ClientSession, url: str, connect_timeout_s: float) -> bool:
    """Have a connection to an address kept, so that a call which comes soon need not wait for it to be made.

    Returns whether one is: none for a host that is not there, nor where connections are not kept or asked for publicly.
    """
    connector = session.connector
    if not IS_SHORT or type(connector) is not Connector:
        return False
    place = connector.place(url)
    return place is not None and await connector.warm(place, connect_timeout_s)


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


async def relay(content: Content, take: Take, flow: Flow, *, note_pause: Callable[[], None]) -> None:
    """Pass all of ``content`` to ``take``, until it has enough or the body ends.

    While ``flow`` is paused nothing is passed on; ``note_pause`` is called when it goes on. Raises what the transport
    raises, and what ``take`` does.
    """
    if isinstance(content, PlainBody):
        await _push(content.connection, content, take, flow, note_pause)
    elif isinstance(content, bytes):
        if content:
            take(content, time.monotonic())
    elif (connection := _pushing(content)) is not None:
        await _push(connection, content, take, flow, note_pause)
    else:
        await _pull(content, take, flow, note_pause)


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
    connection: _Connection,
    content: StreamReader | PlainBody,
    take: Take,
    flow: Flow,
    note_pause: Callable[[], None],
) -> None:
    sink = _Sink(connection, take, flow)
    if isinstance(content, StreamReader):
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
        if isinstance(content, StreamReader):
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

    def open(self, content: StreamReader | PlainBody) -> None:
        """Begin to pass on, with what has been buffered meanwhile."""
        self.stopped = self._connection.make_future()
        self.arrived_at_s = time.monotonic()
        # Reading makes aiohttp feed what its parser had held back: behind what is buffered, so it is not passed on yet.
        while content.exception() is None and (buffered := content.read_nowait()):
            self.pieces.append(buffered)
        self.has_ended = content.is_eof()
        if self.pieces or self.has_ended:
            self.pass_on_pieces()
        if (error := content.exception()) is not None:
            self.fail(error)
        elif not self.stopped.done():
            self._connection.sink = self

    def close(self) -> None:
        """Pass nothing on any more."""
        self._connection.sink = None
        self.pieces.clear()
        self.stopped.cancel()

    def pass_on_pieces(self) -> None:
        """Pass on what aiohttp's parser has made of a read."""
        pieces = self.pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self.pass_on(data)

    def pass_on(self, data: bytes) -> None:
        """Pass on what has come, and stop if that was all, or enough, or more than the client takes."""
        if data:
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
            self.pass_on_pieces()
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
    """A connection that reads answers itself while they are plain, and has aiohttp read the others.

    It passes on to its ``sink``, while it has one, what each read brought. ``body`` is that of a plain answer which has
    begun, and not ended.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, read_ahead_bytes: int = 2**16) -> None:
        super().__init__(loop)
        self._read_ahead_bytes = read_ahead_bytes
        self._asked: asyncio.Future[_Plain | None] | None = None
        self.body: PlainBody | None = None
        self.sink: _Sink | None = None

    def make_future(self) -> asyncio.Future[Any]:
        """Return a future of the connection's loop."""
        return self._loop.create_future()

    def ask(self) -> asyncio.Future[_Plain | None]:
        """Return the future of the answer to what is written next; without a result it is to be had with ``read``."""
        asked = self._asked = self._loop.create_future()
        return asked

    def resume_reading(self, resume_parser: bool = True) -> None:  # noqa: FBT001, FBT002, as aiohttp has it
        if self._reading_paused or self._buffer_paused:  # else it is asked for at the end of every body, in vain
            super().resume_reading(resume_parser)

    def data_received(self, data: bytes) -> None:
        body, sink = self.body, self.sink
        if sink is None:
            if body is not None:
                self._hand_over(body, data)
            elif self._asked is not None:
                self._read_head(self._asked, data)
            else:
                super().data_received(data)
            return
        sink.arrived_at_s = time.monotonic()
        if body is not None:
            framing = body.framing
            piece = framing.feed(data)
            if not framing.is_over:
                if piece:
                    sink.pass_on(piece)
                return
            if not framing.odd:
                self.body = None
                sink.has_ended = True
                sink.pass_on(piece)
                return
            if piece:
                sink.pieces.append(piece)
            self._hand_over(body, framing.odd)
        else:
            ResponseHandler.data_received(self, data)
        if sink.pieces or sink.has_ended:
            sink.pass_on_pieces()

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._asked is not None:
            self._decline(self._asked, b"")
        elif self.body is not None:
            self._hand_over(self.body, b"")
        sink = self.sink
        super().connection_lost(exc)
        if sink is not None and sink.has_ended:
            sink.pass_on_pieces()

    def abort(self) -> None:
        self.body = None  # nobody wants to know how it ends
        super().abort()

    def _read_head(self, asked: asyncio.Future[_Plain | None], data: bytes) -> None:
        """An answer begins, or something that aiohttp is to make sense of."""
        head = read_head(data)
        if head is None:
            self._decline(asked, data)
            return
        status, headers, size, at = head
        piece = data[at:]
        body: PlainBody | None = None
        if size != len(piece):
            framing = Chunked() if size is None else Sized(size)
            piece = framing.feed(piece)
            if framing.odd:
                self._decline(asked, data)
                return
            if not framing.is_over:
                body = self.body = PlainBody(self, framing, piece)
        self._asked = None
        if not asked.done():
            asked.set_result((status, headers, piece if body is None else body))

    def _decline(self, asked: asyncio.Future[_Plain | None], data: bytes) -> None:
        """Have aiohttp read all of an answer."""
        self._asked = None
        self._begin_parsing()
        super().data_received(data)
        if not asked.done():
            asked.set_result(None)

    def _hand_over(self, body: PlainBody, data: bytes) -> None:
        """Have aiohttp read the rest of a body, which begins with ``data``."""
        self.body = None
        stand_in, seen = body.framing.stand_in(body.unseen)
        self._begin_parsing()
        super().data_received(stand_in)
        reader = body.reader = _at_once(self.read())[1]
        if seen:
            reader.read_nowait()
        reader.__class__ = _PushReader
        if self.sink is not None:
            self.sink.has_ended = reader.is_eof()
        super().data_received(data)

    def _begin_parsing(self) -> None:
        self.set_response_params(read_until_eof=True, read_bufsize=self._read_ahead_bytes)


T = TypeVar("T")


def _at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """Return what a coroutine returns that has nothing to wait for."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return cast("T", done.value)
    coroutine.close()
    raise LookupError("it waits")


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
    "Connection.protocol": (Connection, "protocol"),
    "ResponseHandler._paused": (ResponseHandler, "_paused"),
    "ResponseHandler._reading_paused": (ResponseHandler, "_reading_paused"),
    "ResponseHandler._buffer_paused": (ResponseHandler, "_buffer_paused"),
    "StreamReader._protocol": (StreamReader, "_protocol"),
    "ClientRequest.connection_key": (ClientRequest, "connection_key"),
}


def _faults() -> Iterator[str]:
    """Yield the names of what is not as this file expects it; never raises."""
    yield from _MISSING
    yield from unlike(_SIGNATURES)
    yield from (name for name, (owner, attribute) in _NAMES.items() if not hasattr(owner, attribute))
    made = aiohttp.BaseConnector.__init__.__code__.co_names
    yield from (f"BaseConnector.{name}" for name in ("_factory", "_conns") if name not in made)
    yield from failing(_rehearse, "an answer that is fed and pushed by hand")


def _rehearse() -> None:
    """Feed an answer to a connection that has no socket, and push what it has; raises if that goes wrong."""
    connection = _Connection(cast("asyncio.AbstractEventLoop", _NoLoop()))
    asked = connection.ask()
    connection.data_received(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    status, body = cast("tuple[int, PlainBody]", cast("_NoFuture", asked).result[::2])
    expect(status == 200 and connection.body is body and body.reader is None, "the head")
    got: list[bytes] = []
    sink = connection.sink = _Sink(connection, lambda data, _: got.append(data) is not None, _OPEN)  # type: ignore[func-returns-value]  # it has never enough
    sink.stopped = connection.make_future()
    connection.data_received(b"3\r\none\r\n3\r\ntwo\r\n")
    expect(got == [b"onetwo"], "the chunks of a read")
    connection.data_received(b"5\r\nthr")
    connection.data_received(b"ee\r\n4;ext=1\r\nfou")
    reader = body.reader
    expect(got == [b"onetwo", b"thr", b"eefou"] and connection.body is None, "a chunk that is not plain")
    expect(type(reader) is _PushReader and reader._protocol is connection, "the reader")  # noqa: SLF001
    connection.data_received(b"r\r\n0\r\n\r\n")
    expect(got[3:] == [b"r"] and connection.sink is None, "the end of a body")
    expect(body.is_eof() and not connection.should_close, "a connection behind its answer")
    connection.ask()
    connection.data_received(b"HTTP/1.0 200 OK\r\nContent-Length: 4\r\nConnection: keep-alive\r\n\r\nfour")
    message, content = _at_once(connection.read())
    expect(message.code == 200 and message.headers["content-length"] == "4", "a head that is not plain")
    expect(content.read_nowait() == b"four" and content.is_eof(), "a body that is not plain")
    expect(type(content) is StreamReader and not connection.should_close, "a connection behind its second answer")
    connection.data_received(b"HTTP/1.1 408 Late\r\nContent-Length: 0\r\n\r\n")
    expect(connection.should_close, "a connection that has spoken unasked")


class _NoLoop:
    """Stands for a loop where nothing is awaited, and for its futures."""

    def create_future(self) -> _NoFuture:
        """Return what is done when somebody says so."""
        return _NoFuture()


class _NoFuture:
    """Keeps what it is given."""

    result: Any = None

    def done(self) -> bool:
        """Return whether that is anything."""
        return self.result is not None

    def set_result(self, result: object) -> None:
        """Keep the result."""
        self.result = result


FAULTS: Final = tuple(_faults())
IS_SHORT = not FAULTS and not os.environ.get("MILLRACE_PUBLIC_PATH")
