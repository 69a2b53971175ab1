"""What a dialect is to the rest of the gateway: a client's body becomes a call, events become the client's bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from gateway.core.call import Call
from gateway.core.errors import GatewayError
from gateway.core.events import Event


class Encoder(Protocol):
    """Renders one stream for one client. Every method returns bytes of the response body, maybe none."""

    def encode(self, events: Sequence[Event]) -> bytes:
        """Render what one read from the provider brought."""

    def finish(self) -> bytes:
        """Render the dialect's own end; called once, when the stream is complete."""

    def error(self, error: GatewayError) -> bytes:
        """Render the dialect's error event; called once, instead of ``finish``."""

    def heartbeat(self) -> bytes:
        """Render a sign of life that every client of the dialect ignores."""


class Dialect(Protocol):
    """One way in which clients speak."""

    content_type: str
    """Of a streamed answer."""

    def parse(self, body: bytes, call: Call) -> Call:
        """Fill in ``call`` from a request's body; raises ``InvalidRequest`` that names what is wrong."""

    def encoder(self, call: Call) -> Encoder:
        """Return an encoder for a stream."""

    def answer(self, call: Call, events: Sequence[Event]) -> bytes:
        """Render a whole answer."""

    def error_body(self, error: GatewayError, request_id: str) -> bytes:
        """Render an error that is told by an HTTP status."""
