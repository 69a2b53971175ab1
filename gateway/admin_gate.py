"""Who may see what the gateway is at: who has the admin key, or where there is none, who is on this machine.

What machines ask for - whether the gateway is alive and ready, and its metrics - is open to whoever reaches the port.
Without a key a web page in a browser on this machine must be kept out: it comes from a foreign origin, or under a name
that its owner has pointed here.
"""

from __future__ import annotations

from hashlib import sha256
from hmac import compare_digest
from ipaddress import IPv6Address, ip_address
from typing import Final

from aiohttp import web

from gateway.core.errors import ClientError, Forbidden, Unauthorized
from gateway.guard import Handler, OriginRule
from gateway.page import page_response
from gateway.schema import Secret
from gateway.server import error_response

OPEN_ROUTES: Final = frozenset({"healthz", "readyz", "metrics", "page.part"})
"""By their names, so that no other spelling of a path gets round it."""

_RULE: Final = OriginRule(is_open=True)


class AdminGate:
    """What every request of the admin port passes. ``key`` is the admin key, if there is one."""

    def __init__(self, key: Secret | None = None) -> None:
        self._digest = None if key is None else _digest(key.reveal())

    @web.middleware
    async def handle(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let ``handler`` answer who may know. A person who asks for the page gets it, to show a key there."""
        route = request.match_info.route.name
        if route not in OPEN_ROUTES:
            try:
                self._check(request)
            except ClientError as error:
                if route == "page" and isinstance(error, Unauthorized):
                    return page_response("live.html", status=error.status_code)
                return error_response(error, "")
        return await handler(request)

    def _check(self, request: web.Request) -> None:
        if self._digest is not None:
            if not compare_digest(_digest(_shown_key(request)), self._digest):
                raise Unauthorized("expected the admin key as 'Authorization: Bearer ...' or 'x-api-key: ...'")
            return
        if not _is_loopback(request.remote):
            raise Forbidden("without server.admin_key this is shown only to who asks from the gateway's own machine")
        try:
            _RULE.check(request.host, request.headers.get("origin"))
        except Forbidden as error:
            message = "without server.admin_key this is shown only as localhost, 127.0.0.1 or [::1], to no other origin"
            raise Forbidden(message) from error


def _digest(key: str) -> bytes:
    """Of keys of any length and with any characters, something to compare in constant time."""
    return sha256(key.encode("utf-8", "surrogateescape")).digest()


def _shown_key(request: web.Request) -> str:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")


def _is_loopback(peer: str | None) -> bool:
    try:
        address = ip_address((peer or "").partition("%")[0])
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback
