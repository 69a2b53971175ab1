"""Stands between the sockets and the handlers: deadlines that aiohttp does not have, and who may call at all.

aiohttp waits for a request's headers without any limit (half a header was still welcome after 45 s), and it signals a
peer that has silently died after a quarter of an hour. Both are set here, for every connection.

The gate around the handlers gives each request its id, refuses foreign origins, and turns whatever a handler raises
into OpenAI's error body: a path that does not exist too.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from aiohttp import web

from gateway.core.errors import ClientError, Forbidden, GatewayError, UnknownModel
from gateway.server import REQUEST_ID, error_response

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

SWEEP_S = 1.0
KEEP_ALIVE_S = 75.0
PEER_TIMEOUT_MS = 30_000
"""How long written bytes may stay unacknowledged before the kernel gives the peer up."""

_TIMED_OUT = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:\-]{1,128}")


class ConnectionGuard:
    """Closes connections whose next request does not arrive in time.

    A sweep a second looks at all of them; an open connection costs one dict entry.
    """

    def __init__(self, *, header_timeout_s: float) -> None:
        self._header_timeout_s = header_timeout_s
        self._loop = asyncio.get_running_loop()
        self._due_at_s: dict[web.RequestHandler, float] = {}
        self._sweeping = self._loop.call_later(SWEEP_S, self._sweep)

    def over(self, make: Callable[[], web.RequestHandler]) -> Callable[[], web.RequestHandler]:
        """Return ``make``, aiohttp's factory of connections, with a deadline on what it makes."""

        def make_guarded() -> web.RequestHandler:
            handler = make()
            self._due_at_s[handler] = self._loop.time() + self._header_timeout_s
            return handler

        return make_guarded

    def begin(self, request: web.Request) -> None:
        """The headers of a request are complete."""
        self._due_at_s.pop(request.protocol, None)
        sock = request.transport.get_extra_info("socket") if request.transport else None
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            with suppress(OSError, AttributeError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, PEER_TIMEOUT_MS)

    def end(self, request: web.Request) -> None:
        """A request is answered; the next one may take its time to begin, but not to arrive."""
        if request.transport is not None:
            self._due_at_s[request.protocol] = self._loop.time() + KEEP_ALIVE_S + self._header_timeout_s

    def close(self) -> None:
        """Stop sweeping."""
        self._sweeping.cancel()

    def _sweep(self) -> None:
        now_s = self._loop.time()
        for protocol, due_at_s in list(self._due_at_s.items()):
            if due_at_s <= now_s:
                del self._due_at_s[protocol]
                _time_out(protocol.transport)
        self._sweeping = self._loop.call_later(SWEEP_S, self._sweep)


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
    """What every request of the public port passes, on its way in and on its way out."""

    def __init__(self, rule: OriginRule, guard: ConnectionGuard) -> None:
        self._rule = rule
        self._guard = guard

    @web.middleware
    async def handle(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let ``handler`` answer, unless the caller may not call; an error becomes an error body."""
        self._guard.begin(request)
        request[REQUEST_ID] = _request_id(request)
        try:
            self._rule.check(request.host, request.headers.get("origin"))
            return _preflight(self._rule, request) or await handler(request)
        except GatewayError as error:
            return error_response(error, request[REQUEST_ID])
        except web.HTTPException as error:
            response = error_response(_as_error(error, request), request[REQUEST_ID])
            response.headers.update({name: value for name, value in error.headers.items() if name == "Allow"})
            return response
        finally:
            self._guard.end(request)

    async def add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        """Give a response its request id, and a browser its permission, before its headers are written."""
        response.headers["server"] = "millrace"
        response.headers["x-request-id"] = request[REQUEST_ID]
        response.headers.update(self._rule.headers(request.headers.get("origin")))


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


def _as_error(error: web.HTTPException, request: web.Request) -> GatewayError:
    if error.status == 404:
        return UnknownModel("this path does not exist", code="not_found")
    if error.status == 405:
        return ClientError(f"{request.method} is not a method of this path", code="method_not_allowed", status_code=405)
    return ClientError(error.reason, status_code=error.status)


def _request_id(request: web.Request) -> str:
    """Return the caller's own request id if it is a sane one, else a new one."""
    given = request.headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
