"""A connection to a provider, below aiohttp's public surface: who reads an answer, and how its body is passed on.

A plain answer is read here, see gateway/plain_answer.py: one that comes as a whole has no parser, no ``StreamReader``
and no queue, and takes 58 % of the instructions that it takes with them. What turns out not to be plain, or is not
read as it comes, is handed over to aiohttp, in the middle of a chunk if need be, and has the meaning that it gives it.

And a body is not awaited but pushed. The public way wakes a task for each read, which resumes a coroutine three awaits
deep: measured on the whole relay path that costs a quarter more CPU per token than being called. Here what arrives in
one read of the socket is passed on as one piece, in that read, however many chunks it had. Passing on at once, and not
in the loop's next turn, saves another 6 % of the CPU per token at 100 streams. Where aiohttp's parser reads, the class
of an answer's ``StreamReader`` is replaced by one that leaves the bytes with the connection, which passes them on when
the parser is through with the read.

Back-pressure: while the client's socket is full what comes goes to an ordinary reader, which buffers up to its limit
and then stops reading from the provider.

It must not know of sessions, pools, addresses or requests: ``exchange.py`` does. ``faults`` names where this aiohttp is
not as the file expects.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import Any, Final, Literal, TypeAlias, TypeVar, cast

from aiohttp import ClientPayloadError, StreamReader
from aiohttp.client_proto import ResponseHandler

from gateway.core.call import Flow, OpenFlow
from gateway.core.errors import without_frames
from gateway.expectations import expect, failing, lacking, unlike
from gateway.plain_answer import Chunked, Sized, read_head

Take = Callable[[bytes, float], bool]
"""Takes what one read brought, and when that was; returns whether it was all that is needed.

The time is on the system's monotonic clock: the loop's own, with uvloop, moves on by whole milliseconds, between turns.
"""


class PlainBody:
    """The body of an answer that is plain so far. ``unseen`` is what has come of it before anybody read.

    If it turns out not to be, or is not read as it comes, it goes on in the ``reader`` that aiohttp's parser feeds.
    """

    __slots__ = ("connection", "framing", "reader", "unseen")

    def __init__(self, connection: ProviderConnection, framing: Sized | Chunked, unseen: bytes) -> None:
        self.connection = connection
        self.framing = framing
        self.unseen = unseen
        self.reader: StreamReader | None = None

    def is_eof(self) -> bool:
        """Return whether all of the body has come."""
        return self.framing.has_ended if self.reader is None else self.reader.is_eof()


Content: TypeAlias = bytes | StreamReader | PlainBody
"""A body that has come as a whole, mostly with its head, or what brings it."""

Plain: TypeAlias = tuple[int, Mapping[str, str], bytes | PlainBody]
"""The status of a plain answer, its headers, and its body, or what there is of it."""


async def push(
    connection: ProviderConnection,
    content: StreamReader | PlainBody,
    take: Take,
    flow: Flow,
    note_pause: Callable[[], None],
) -> None:
    """Pass on what a connection reads of an answer, until ``take`` has enough or the body ends.

    While ``flow`` is paused nothing is passed on; ``note_pause`` is called when it goes on.
    """
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

    def __init__(self, connection: ProviderConnection, take: Take, flow: Flow) -> None:
        self._connection = connection
        self._take = take
        self._flow = flow
        self.pieces: list[bytes] = []
        self.arrived_at_s = 0.0
        self.has_ended = False
        self.stopped: asyncio.Future[Literal["ended", "enough", "paused"]]

    def open(self, content: StreamReader | PlainBody) -> None:
        """Begin to pass on, with what has been buffered meanwhile."""
        connection, pieces = self._connection, self.pieces
        self.stopped = connection.make_future()
        self.arrived_at_s = time.monotonic()
        reader = content.reader if isinstance(content, PlainBody) else content
        if isinstance(content, PlainBody) and content.unseen:
            pieces.append(content.unseen)
            content.unseen = b""
        # Reading makes aiohttp feed what its parser had held back: behind what is buffered, so it is not passed on yet.
        while reader is not None and reader.exception() is None and (buffered := reader.read_nowait()):
            pieces.append(buffered)
        self.has_ended = content.is_eof()
        if pieces or self.has_ended:
            self.pass_on_pieces()
        if reader is not None and (error := reader.exception()) is not None:
            self.fail(error)
        elif not self.stopped.done():
            connection.sink = self

    def close(self) -> None:
        """Pass nothing on any more."""
        self._connection.sink = None
        self.pieces.clear()
        self.stopped.cancel()
        del self.stopped  # it keeps an error that was raised here, whose frames keep us

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


class AbruptConnection(ResponseHandler):
    """A connection that is never closed politely: with TLS that waits for the other side, up to half a minute.

    A call may be cancelled while aiohttp still waits for the head of its answer, and then it is aiohttp that closes.

    And what is not HTTP ends the answer in which it comes. aiohttp tells only who waits for the next head of it: who
    reads a body would wait until a limit runs out.
    """

    def close(self) -> None:
        """Close, impolitely."""
        self.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        """The connection has ended."""
        if exc is not None:
            without_frames(exc)  # the answer gets it, and is in those of asyncio's transport
        super().connection_lost(exc)

    def set_exception(self, exc: BaseException, exc_cause: BaseException | None = None) -> None:
        """Note what has gone wrong, and tell who reads a body that has not ended."""
        if exc_cause is None:
            super().set_exception(exc)
        else:
            super().set_exception(exc, exc_cause)
        body: StreamReader | None = getattr(self, "_payload", None)
        if body is not None and not body.is_eof() and body.exception() is None:
            body.set_exception(ClientPayloadError("the body of the answer is not valid HTTP"), exc)


class ProviderConnection(AbruptConnection):
    """A connection that reads answers itself while they are plain, and has aiohttp read the others.

    It passes on to its ``sink``, while it has one, what each read brought. ``body`` is that of a plain answer which has
    begun, and not ended.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, read_ahead_bytes: int = 2**16) -> None:
        super().__init__(loop)
        self._read_ahead_bytes = read_ahead_bytes
        self._asked: asyncio.Future[Plain | None] | None = None
        self.body: PlainBody | None = None
        self.sink: _Sink | None = None

    def make_future(self) -> asyncio.Future[Any]:
        """Return a future of the connection's loop."""
        return self._loop.create_future()

    @property
    def is_busy(self) -> bool:
        """Whether a request was answered before it was read, or its answer has not ended."""
        return self._paused or self.body is not None

    def ask(self) -> asyncio.Future[Plain | None]:
        """Return the future of the answer to what is written next; without a result it is to be had with ``read``."""
        asked = self._asked = self._loop.create_future()
        return asked

    def resume_reading(self, resume_parser: bool = True) -> None:  # noqa: FBT001, FBT002, as aiohttp has it
        """Read on, where reading was paused; it is asked for at the end of every body, mostly in vain."""
        if self._reading_paused or self._buffer_paused:
            super().resume_reading(resume_parser)

    def data_received(self, data: bytes) -> None:
        """Pass on what a read brought, or keep it for who will read."""
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
        """The connection has ended, and with it what was still to come of an answer."""
        if self._asked is not None:
            self._decline(self._asked, b"")
        elif self.body is not None:
            self._hand_over(self.body, b"")
        sink = self.sink
        super().connection_lost(exc)
        if sink is not None and sink.has_ended:
            sink.pass_on_pieces()

    def abort(self) -> None:
        """Cut the connection, as if the cable were."""
        self.body = None  # nobody wants to know how it ends
        super().abort()

    def _read_head(self, asked: asyncio.Future[Plain | None], data: bytes) -> None:
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

    def _decline(self, asked: asyncio.Future[Plain | None], data: bytes) -> None:
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
        body.unseen = b""
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

    _protocol: ProviderConnection

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
    "ResponseHandler.read": (ResponseHandler, "read", ["self"]),
    "ResponseHandler.abort": (ResponseHandler, "abort", ["self"]),
    "ResponseHandler.resume_reading": (ResponseHandler, "resume_reading", ["self", "resume_parser"]),
    "ResponseHandler.set_exception": (ResponseHandler, "set_exception", ["self", "exc", "exc_cause"]),
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
    "ResponseHandler._paused": (ResponseHandler, "_paused"),
    "ResponseHandler._reading_paused": (ResponseHandler, "_reading_paused"),
    "ResponseHandler._buffer_paused": (ResponseHandler, "_buffer_paused"),
    "StreamReader._protocol": (StreamReader, "_protocol"),
}


def faults() -> Iterator[str]:
    """Yield the names of what is not as this file expects it; never raises."""
    yield from unlike(_SIGNATURES)
    yield from lacking(_NAMES)
    yield from failing(_rehearse, "an answer that is fed and pushed by hand")


def _rehearse() -> None:
    """Feed an answer to a connection that has no socket, and push what it has; raises if that goes wrong."""
    loop = cast("asyncio.AbstractEventLoop", _NoLoop())
    connection = ProviderConnection(loop)
    asked = connection.ask()
    connection.data_received(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    status, body = cast("tuple[int, PlainBody]", cast("_NoFuture", asked).result[::2])
    expect(status == 200 and connection.body is body and body.reader is None, "the head")
    got: list[bytes] = []
    sink = connection.sink = _Sink(connection, lambda data, _: got.append(data) is not None, OpenFlow())  # type: ignore[func-returns-value]  # it has never enough
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
    connection = ProviderConnection(loop)
    connection.ask()
    connection.data_received(b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
    _, content = _at_once(connection.read())
    connection.data_received(b"zz\r\n")
    expect(isinstance(content.exception(), ClientPayloadError), "what is not HTTP")


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
