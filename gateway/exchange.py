"""One exchange with a provider: a request is written, the head of its answer awaited, its body handed on.

This file and ``provider_connection.py`` reach below aiohttp's public surface, as only ``connection.py`` does beside
them. What they keep of it is its connector (names, happy eyeballs, TLS, the pool), and its parser in C and its reader
for every answer that is not plain. What they leave out is what serves a browser more than a gateway: a request object,
a writer and a response for every call, tracing, timers, cookies, redirects. Here is how a request is written and where
it goes, and what its answer is to who has asked; how that is read, and its body pushed, is the connection's.

``FAULTS`` names where this aiohttp is not as the two files expect it: then everything goes the public way, as it does
for what the short one does not know (a proxy, a large body, headers that are aiohttp's own business), and where the
environment has ``MILLRACE_PUBLIC_PATH``.
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
from typing import Any, Final, cast

import aiohttp
from aiohttp import ClientRequest, StreamReader, TCPConnector
from yarl import URL

from gateway.core.call import Flow, OpenFlow
from gateway.core.kept import Kept
from gateway.expectations import lacking, unlike
from gateway.provider_connection import AbruptConnection, Content, PlainBody, ProviderConnection, Take, faults, push

_MISSING: tuple[str, ...] = ()
try:
    from aiohttp.client_reqrep import ConnectionKey
    from aiohttp.connector import Connection
    from aiohttp.http import HttpProcessingError
except ImportError as error:
    _MISSING = (str(error),)
    Connection = ConnectionKey = HttpProcessingError = type("Missing", (Exception,), {})  # type: ignore[assignment, misc]

LARGE_BODY_BYTES: Final = 512 * 1024
"""Above this aiohttp wants a file, so that it can write in pieces instead of blocking the loop."""

MAX_KEPT_PLACES: Final = 1024
"""An address can have the model's name in it, and that is the client's word."""

MAX_KEPT_HEADS: Final = 8
"""A provider has two: for a stream, and for an answer that is wanted whole."""


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
        """Cut the connection: to close it would be too polite, see ``AbruptConnection``."""
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


class _ShortAnswer(Answer):
    """An answer to a request that went the short way."""

    __slots__ = ("_connection", "_connector", "_key")

    def __init__(
        self,
        said: tuple[int, Mapping[str, str], Content],
        connection: ProviderConnection,
        connector: Connector,
        key: ConnectionKey,
    ) -> None:
        self.status, self.headers, self.content = said
        self._connection: ProviderConnection | None = connection
        self._connector = connector
        self._key = key

    @property
    def is_at_end(self) -> bool:
        content = self.content
        return isinstance(content, bytes) or content.is_eof()

    def release(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._connector.let_go(self._key, connection, should_close=connection.is_busy)

    def abort(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._connector.let_go(self._key, connection, should_close=True)


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
        make = partial(ProviderConnection, read_ahead_bytes=read_ahead_bytes) if IS_SHORT else AbruptConnection
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
        connection = self._kept(place.key)
        if connection is None:
            connection = await self._connect(place, connect_timeout_s, note_connect)
        try:
            transport = connection.transport
            if transport is None or transport.is_closing():
                raise aiohttp.ClientConnectionResetError("the connection was closed before the request")  # noqa: TRY301
            asked = connection.ask()
            transport.write(request)
            plain = await asked
            if plain is not None:
                return _ShortAnswer(plain, connection, self, place.key)
            while True:
                message, content = await connection.read()
                if not 100 <= message.code < 200 or message.code == 101:  # the others announce an answer
                    return _ShortAnswer((message.code, message.headers, content), connection, self, place.key)
        except HttpProcessingError as error:
            self.let_go(place.key, connection, should_close=True)
            raise aiohttp.ClientPayloadError("the head of the answer is not valid HTTP") from error
        except BaseException:
            self.let_go(place.key, connection, should_close=True)
            raise

    def let_go(self, key: ConnectionKey, connection: ProviderConnection, *, should_close: bool) -> None:
        """Keep a connection for another request, or close it."""
        self._release(key, connection, should_close=should_close)

    async def warm(self, place: _Place, connect_timeout_s: float) -> bool:
        """Have a connection kept; returns whether one is. Never raises for a host that is not there."""
        if self.force_close:
            return False
        if not any(protocol.is_connected() for protocol, _ in self._conns.get(place.key, ())):
            try:
                made = await self._connect(place, connect_timeout_s, _no_note)
            except (aiohttp.ClientError, OSError):
                return False
            self.let_go(place.key, made, should_close=False)
        return True

    def _kept(self, key: ConnectionKey) -> ProviderConnection | None:
        """Return a connection that was kept, if there is one that can be used.

        It is what ``_get`` does for who has no traces to wait for, without an object that counts on being closed: that
        and its coroutine were a hundredth of what a short answer costs.
        """
        while kept := self._conns.get(key):
            connection, since_s = kept.popleft()
            if not kept:
                del self._conns[key]
            limit_s = self._keepalive_timeout
            is_young = limit_s is None or time.monotonic() - since_s <= limit_s
            if is_young and connection.is_connected() and not connection.should_close:
                self._acquired.add(connection)
                return cast("ProviderConnection", connection)
            connection.close()  # it has died, or has spoken unasked: that would be read as the answer
        return None

    async def _connect(
        self, place: _Place, connect_timeout_s: float, note_connect: Callable[[float], None]
    ) -> ProviderConnection:
        began_at_s = time.monotonic()
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s)
        try:
            made = await self.connect(place.request, [], timeout)
        except TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError("the connection was not made in time") from error
        note_connect(time.monotonic() - began_at_s)
        connection, made._protocol = made._protocol, None  # noqa: SLF001, see ``_kept``
        return cast("ProviderConnection", connection)


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


def relay(content: Content, take: Take, flow: Flow, *, note_pause: Callable[[], None]) -> Coroutine[Any, Any, None]:
    """Pass all of ``content`` to ``take``, until it has enough or the body ends.

    While ``flow`` is paused nothing is passed on; ``note_pause`` is called when it goes on. Raises what the transport
    raises, and what ``take`` does.
    """
    if isinstance(content, PlainBody):
        return push(content.connection, content, take, flow, note_pause)
    if isinstance(content, bytes):
        return _give(content, take)
    connection = _pushing(content)
    if connection is not None:
        return push(connection, content, take, flow, note_pause)
    return _pull(content, take, flow, note_pause)


async def _give(content: bytes, take: Take) -> None:
    if content:
        take(content, time.monotonic())


def _pushing(content: StreamReader) -> ProviderConnection | None:
    """Return the connection that can push what is read; a body that is empty has none."""
    connection = content._protocol if IS_SHORT and type(content) is StreamReader else None  # noqa: SLF001, see above
    return connection if isinstance(connection, ProviderConnection) else None


async def _pull(content: StreamReader, take: Take, flow: Flow, note_pause: Callable[[], None]) -> None:
    while data := await content.readany():
        if take(data, time.monotonic()):
            return
        if flow.is_paused:
            await flow.wait()
            note_pause()


# --- whether aiohttp is as it was


_SIGNATURES: Final = {
    "TCPConnector.connect": (TCPConnector, "connect", ["self", "req", "traces", "timeout"]),
    "TCPConnector._release": (TCPConnector, "_release", ["self", "key", "protocol", "should_close"]),
    "Connection": (Connection, "__init__", ["self", "connector", "key", "protocol", "loop"]),
}
"""What is called or replaced here, and its parameters."""

_NAMES: Final = {
    "ClientRequest.connection_key": (ClientRequest, "connection_key"),
}


_GET: Final = frozenset({
    "_acquired", "_acquired_per_host", "_cleanup_closed_disabled", "_cleanup_closed_transports", "_conns",
    "_keepalive_timeout", "_limit_per_host", "_loop", "_release_acquired",
})  # fmt: skip
"""All that aiohttp's own way of finding a kept connection knows of. A version that knows more is not stood in for."""


def _faults() -> Iterator[str]:
    """Yield the names of what is not as the short way expects it; never raises."""
    yield from _MISSING
    yield from faults()
    yield from unlike(_SIGNATURES)
    yield from lacking(_NAMES)
    names = getattr(getattr(TCPConnector._get, "__code__", None), "co_names", ())  # noqa: SLF001, see above
    for name in sorted(_GET.symmetric_difference(name for name in names if name.startswith("_"))):
        yield f"TCPConnector._get: {name}"
    if "_factory" not in aiohttp.BaseConnector.__init__.__code__.co_names:
        yield "BaseConnector._factory"


FAULTS: Final = tuple(_faults())
IS_SHORT = not FAULTS and not os.environ.get("MILLRACE_PUBLIC_PATH")
