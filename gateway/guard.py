"""Stands between the sockets and the handlers: deadlines that aiohttp does not have, and who may call at all.

aiohttp waits for a request's headers without any limit (half a header was still welcome after 45 s), and it signals a
peer that has silently died after a quarter of an hour. Both are set here, for every connection. To bytes that are not
HTTP it answers in plain text that quotes them, and logs them with a traceback; here they get an error body like
everybody else, and the log holds nothing of them.

When its process leaves, connections on which nothing is being asked are given to another process, if there is one:
their clients notice nothing, and no request is answered by what was configured before. Otherwise they are closed, and
a client that was just about to ask has a moment to do so.

The gate around the handlers gives each request its id, refuses foreign origins, and turns whatever a handler raises
into OpenAI's error body: a path that does not exist too.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import structlog
from aiohttp import web
from aiohttp.http_exceptions import ContentEncodingError, LineTooLong
from multidict import istr

from gateway.connection import Connection, known_of
from gateway.core.errors import ClientError, Forbidden, GatewayError, InternalError, RequestTimeout, without_frames
from gateway.core.meters import OTHER
from gateway.dialects import DIALECTS
from gateway.reply import Reply
from gateway.server import REQUEST_ID, error_response
from gateway.telemetry.ids import new_id

log = structlog.get_logger()

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_CallTo = tuple[str, Handler, str | None]
"""The name of a call's route, what handles it, and the id that the caller has given it."""

SWEEP_S = 1.0
KEEP_ALIVE_S = 75.0
LAST_REQUEST_S = 0.2
"""How long a connection that rests is kept open when nobody takes it over: a request may be on its way."""
LOOK_S = 0.02
PEER_TIMEOUT_MS = 30_000
"""How long written bytes may stay unacknowledged before the kernel gives the peer up."""
UNSENT_BYTES = 64 * 1024
"""How much the kernel takes beyond what it can send now. Left to itself it hoards 4 MB for a client that does not read,
and then takes nothing for so long that a slow client cannot be told from one that has stopped."""

_TIMED_OUT_BODY = DIALECTS["openai_chat"].error_body(RequestTimeout("the request did not arrive in time"), "")
_TIMED_OUT = (
    b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n%b" % (len(_TIMED_OUT_BODY), _TIMED_OUT_BODY)
)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:\-]{1,128}")
_EXPECT, _X_REQUEST_ID = istr("expect"), istr("x-request-id")
"""Names of headers that are looked for in every request: like this they are compared without making them small."""


class ConnectionGuard:
    """Closes connections whose next request does not arrive in time: ``header_timeout_s`` after its first byte.

    A new connection has the same time to begin; one that has been served may rest for ``KEEP_ALIVE_S``. A sweep a
    second looks at those that are waited for.
    """

    def __init__(self, *, header_timeout_s: float) -> None:
        self._header_timeout_s = header_timeout_s
        self._loop = asyncio.get_running_loop()
        self._connections: set[_Connection] = set()
        self._give_away: Callable[[int], None] | None = None
        self.is_leaving = False
        """Whether no request is to begin here any more."""
        self.closes = False
        """Whether connections are closed behind their answers."""
        self._sweeping = self._loop.call_later(SWEEP_S, self._sweep)

    def over(self, server: web.Server, *, is_adopted: bool = False) -> Callable[[], web.RequestHandler]:
        """Return a factory of connections to ``server``, each with a deadline.

        One that is adopted rests: it has been served before.
        """
        return partial(_Connection, server, self, is_adopted=is_adopted)

    def begin_connection(self, connection: _Connection) -> None:
        """A connection is there; one that rests is not expected to ask yet."""
        self._connections.add(connection)
        if not connection.may_rest:
            self.expect(connection)

    def expect(self, connection: _Connection) -> None:
        """A request is to arrive now."""
        connection.may_rest = False
        connection.due_at_s = self._loop.time() + self._header_timeout_s

    def forget(self, connection: _Connection) -> None:
        """A connection is gone."""
        self._connections.discard(connection)

    def leave(self, give_away: Callable[[int], None] | None = None) -> None:
        """Let go of every connection as soon as it rests: to ``give_away``, which gets its descriptor, or for good."""
        self.is_leaving, self.closes, self._give_away = True, give_away is None, give_away
        for connection in list(self._connections):
            if give_away is None:
                self._loop.call_later(LAST_REQUEST_S, self.let_go, connection)
            else:
                self.let_go(connection)

    def let_go(self, connection: _Connection) -> None:
        """Let go of a connection if it rests; or as soon as it does, where it can be given away."""
        transport = connection.transport
        if transport is None or transport.is_closing():
            return
        if not connection.rests:
            if self._give_away is not None and connection.has_answered:
                self._loop.call_later(LOOK_S, self.let_go, connection)
            return
        sock = transport.get_extra_info("socket")
        if self._give_away is None or sock is None:
            transport.close()
        else:
            self._give_away(sock.fileno())
            transport.abort()  # closes our descriptor of it, and nothing else

    async def wait_until_empty(self, timeout_s: float) -> None:
        """Wait until all connections are gone, with all that was written to them."""
        due_at_s = self._loop.time() + timeout_s
        while self._connections and self._loop.time() < due_at_s:  # noqa: ASYNC110, it is looked at once in a lifetime
            await asyncio.sleep(LOOK_S)

    def close(self) -> None:
        """Stop sweeping."""
        self._sweeping.cancel()

    def _sweep(self) -> None:
        now_s = self._loop.time()
        for connection in list(self._connections):
            if connection.due_at_s is not None and connection.due_at_s <= now_s:
                connection.due_at_s = None
                _time_out(connection.transport)
        self._sweeping = self._loop.call_later(SWEEP_S, self._sweep)


class _Connection(Connection):
    """A connection under a guard.

    ``due_at_s`` is when the head of a request must be there, if one is awaited; a connection that ``may_rest`` has all
    the time to begin one.
    """

    __slots__ = ("_guard", "_has_begun_request", "due_at_s", "has_answered", "may_rest")

    def __init__(self, server: web.Server, guard: ConnectionGuard, *, is_adopted: bool) -> None:
        super().__init__(server, loop=asyncio.get_running_loop(), keepalive_timeout=KEEP_ALIVE_S, access_log=None)
        self._guard = guard
        self._has_begun_request = False
        self.due_at_s: float | None = None
        self.may_rest = is_adopted
        self.has_answered = True
        """Whether the answer to the last request is written, or there has been none."""

    @property
    def rests(self) -> bool:
        """Whether nothing has come that is not answered, and nothing is left to be written."""
        is_waiting = self._waiter is not None and not self._waiter.done()
        is_quiet = is_waiting and not self._messages and not self._has_begun_request
        return is_quiet and self.transport is not None and self.transport.get_write_buffer_size() == 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._guard.begin_connection(self)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            with suppress(OSError, AttributeError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, PEER_TIMEOUT_MS)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)

    def data_received(self, data: bytes) -> None:
        request, count = self._current_request, self._request_count
        is_between = request is None or request.content.is_eof()
        super().data_received(data)
        if self._request_count > count:
            self._has_begun_request = self.has_answered = self.may_rest = False
            self.due_at_s = None
        elif data and is_between:  # aiohttp calls it without any when it reads on
            self._has_begun_request = True
            if self.may_rest:  # behind an answered request they are the next one's first
                self._guard.expect(self)

    def log_access(
        self,
        request: web.BaseRequest,  # noqa: ARG002, the signature of aiohttp's
        response: web.StreamResponse,  # noqa: ARG002, the same
        time: float | None,  # noqa: ARG002, the same
    ) -> None:
        """Note that an answer is written; if it was the last one here, nothing more is read that might be a request."""
        self.has_answered = True
        self.may_rest = not self._messages
        if self._guard.is_leaving and not self._guard.closes:
            if self.transport is not None and not self._messages and not self._has_begun_request:
                self.transport.pause_reading()
            self._guard.let_go(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._guard.forget(self)
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002, it quotes what the client sent
    ) -> web.StreamResponse:
        """Answer what is not HTTP, and what the gate did not expect of a handler."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun, no other can be sent")
        request_id = _new_request_id()
        if status < 500:
            error: GatewayError = _not_http(exc)
        else:
            log.error("call.failed", request_id=request_id, exc_info=exc)
            error = InternalError("the gateway failed; the details are in its log under the request id")
        response = error_response(error, request_id)
        response.headers.update({"server": "millrace", "x-request-id": request_id})
        response.force_close()
        return response


def _not_http(error: BaseException | None) -> ClientError:
    if error is not None:
        without_frames(error)  # they have the message that it came with, which has it
    if isinstance(error, LineTooLong):
        return ClientError("a line of the request's head is too long", code="request_head_too_large", status_code=431)
    if isinstance(error, ContentEncodingError):
        return ClientError("the content-encoding is not one of gzip, deflate", status_code=415)
    return ClientError("this is not a valid HTTP/1.1 request", code="invalid_http")


_LOOPBACK = re.compile(r"(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d{1,5})?", re.IGNORECASE)


def _time_out(transport: asyncio.Transport | None) -> None:
    if transport is not None and not transport.is_closing():
        transport.write(_TIMED_OUT)
        transport.close()


@dataclass(frozen=True, slots=True)
class OriginRule:
    """Who may call from a browser, and under which names a gateway without keys answers.

    Without keys a web page could spend its visitor's provider keys: by calling ``localhost`` from a foreign origin, or
    by having its own name resolve to 127.0.0.1. Both show in a header that a page cannot forge.
    """

    is_open: bool
    origins: tuple[str, ...] = ()

    def check(self, host: str, origin: str | None) -> None:
        """Raise ``Forbidden`` for a foreign ``Host`` or ``Origin``, when no key protects the gateway."""
        if not self.is_open:
            return
        if not _LOOPBACK.fullmatch(host):
            raise Forbidden("without client keys this gateway answers only as localhost, 127.0.0.1 or [::1]")
        if origin is not None and origin not in self.origins and origin != f"http://{host}":
            raise Forbidden("without client keys this gateway answers no other origin; see server.cors_origins")

    def headers(self, origin: str | None) -> dict[str, str]:
        """Return the headers that let a configured origin read the answer."""
        if origin is None or origin not in self.origins:
            return {}
        return {
            "access-control-allow-origin": origin,
            "access-control-expose-headers": "x-request-id, x-millrace-target, retry-after",
            "vary": "origin",
        }


class Gate:
    """What every request of the public port passes, on its way in and on its way out.

    ``note`` is told the route and the status of every answer. A call goes straight to its handler (``before``); aiohttp
    finds its way for everything else, with a router, middlewares and signals.
    """

    def __init__(self, rule: OriginRule, guard: ConnectionGuard, note: Callable[[str, int], None]) -> None:
        self._rule = rule
        self._guard = guard
        self.count = note
        """An answer has got its status."""

    def before(self, application: Handler, calls: Mapping[str, tuple[str, Handler]]) -> Handler:
        """Return what handles all requests: ``calls``, by the paths they are posted to, and the rest ``application``.

        It gets a call too that is not the usual one: under another spelling, or that waits for a word before its body.
        """

        def handle(request: web.Request) -> Awaitable[web.StreamResponse]:
            known = known_of(request)
            call: _CallTo | None = known.get("call")
            if call is None:
                found = (calls.get(request.raw_path) or calls.get(request.path)) if request.method == "POST" else None
                if found is None or _EXPECT in request.headers:
                    return application(request)
                known["call"] = call = *found, _given_id(request)
            endpoint, handler, given_id = call
            return self._answer(request, handler, given_id or _new_request_id(), endpoint)

        return handle

    @web.middleware
    async def handle(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Have ``handler`` answer what is not a usual call."""
        return await self._answer(request, handler, _request_id(request))

    async def _answer(
        self, request: web.Request, handler: Handler, request_id: str, endpoint: str | None = None
    ) -> web.StreamResponse:
        """Let ``handler`` answer, unless the caller may not call; an error becomes an error body.

        Of a usual call, which has an ``endpoint``, this does what ``sign`` does of all others.
        """
        request[REQUEST_ID] = request_id
        try:
            if self._rule.is_open:
                self._rule.check(request.host, request.headers.get("origin"))
            response = (endpoint is None and _preflight(self._rule, request)) or await handler(request)
        except (GatewayError, web.HTTPException) as error:
            response = _told(error, request)
        if endpoint is not None and type(response) is not Reply:
            self._head(request, response)
            self.count(endpoint, response.status)
        elif self._guard.closes:
            response.force_close()
        return response

    async def sign(self, request: web.Request, response: web.StreamResponse) -> None:
        """Give a response its request id, and a browser its permission, before its headers are written; count it."""
        self._head(request, response)
        self.count((request.match_info.route.name or OTHER).partition(".")[0], response.status)

    def heading(self, request: web.BaseRequest) -> Mapping[str, str]:
        """Return the headers of every answer."""
        fields = {"server": "millrace", "x-request-id": request[REQUEST_ID]}
        if self._rule.origins:
            fields |= self._rule.headers(request.headers.get("origin"))
        if self._guard.closes:
            fields["connection"] = "close"
        return fields

    def lines(self, request: web.BaseRequest) -> str | None:
        """Return the same as they stand in a head: an id has no other characters than a header may have."""
        if self._rule.origins or self._guard.closes:
            return None
        return f"server: millrace\r\nx-request-id: {request[REQUEST_ID]}\r\n"

    def _head(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        response.headers.update(self.heading(request))
        if self._guard.closes:
            response.force_close()


def _preflight(rule: OriginRule, request: web.Request) -> web.Response | None:
    """Answer a browser that asks whether it may call."""
    if request.method != "OPTIONS" or "access-control-request-method" not in request.headers:
        return None
    allowed = rule.headers(request.headers.get("origin"))
    if allowed:
        allowed["access-control-allow-methods"] = "GET, POST"
        allowed["access-control-allow-headers"] = request.headers.get("access-control-request-headers", "")
        allowed["access-control-max-age"] = "600"
    return web.Response(status=204, headers=allowed)


def _told(error: GatewayError | web.HTTPException, request: web.Request) -> web.Response:
    """Return the answer that tells an error."""
    without_frames(error)  # the request may have it, and they have the request
    if isinstance(error, GatewayError):
        return error_response(error, request[REQUEST_ID])
    response = error_response(_as_error(error, request), request[REQUEST_ID])
    response.headers.update({name: value for name, value in error.headers.items() if name == "Allow"})
    return response


def _as_error(error: web.HTTPException, request: web.Request) -> GatewayError:
    if error.status == 404:
        return ClientError("this path does not exist", code="not_found", status_code=404)
    if error.status == 405:
        return ClientError(f"{request.method} is not a method of this path", code="method_not_allowed", status_code=405)
    return ClientError(error.reason, status_code=error.status)


def _request_id(request: web.Request) -> str:
    """Return the caller's own request id if it is a sane one, else a new one."""
    return _given_id(request) or _new_request_id()


def _given_id(request: web.Request) -> str | None:
    given = request.headers.get(_X_REQUEST_ID)
    return given if given and _REQUEST_ID.fullmatch(given) else None


def _new_request_id() -> str:
    return f"req_{new_id(12)}"
