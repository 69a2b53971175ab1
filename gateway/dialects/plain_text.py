"""Plain UTF-8 text, chunk by chunk: ``POST /api/chat/stream``, for a page that has a reader and no parser.

In comes ``{"message": "…", "model"?: "…"}`` as JSON, whatever the content type says; out comes the visible answer. Text
has no room for an error event: the connection is closed without an end, and a browser's reader rejects. There is none
for a heartbeat or a seam either, and reasoning and tool calls are left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from gateway.core.call import Call, Message, TextPart
from gateway.core.errors import GatewayError, InvalidRequest
from gateway.core.events import Event, RefusalDelta, TextDelta
from gateway.dialects.openai_chat import error_document
from gateway.dialects.openai_request import read_json, wrong


class PlainText:
    """The dialect of a browser's own reader."""

    content_type = "text/plain; charset=utf-8"

    def parse(self, body: bytes, call: Call) -> Call:
        """Fill in ``call`` from ``{"message", "model"?}``; raises ``InvalidRequest`` that names what is wrong."""
        document = read_json(body)
        message, model = document.get("message"), document.get("model")
        if not isinstance(message, str):
            raise wrong("message", "a string", message)
        if not message.strip():
            raise InvalidRequest("message: expected some text", param="message")
        if model is not None and not isinstance(model, str):
            raise wrong("model", "a string", model)
        turn = Message(role="user", parts=(TextPart(message),))
        return replace(call, model=model or call.model, stream=True, messages=(turn,))

    def encoder(self, call: Call) -> PlainTextEncoder:  # noqa: ARG002, the text is the same for every call
        """Return an encoder for a stream."""
        return PlainTextEncoder()

    def answer(self, call: Call, events: Sequence[Event]) -> bytes:
        """Render a whole answer."""
        return self.encoder(call).encode(events)

    def error_body(self, error: GatewayError, request_id: str) -> bytes:  # noqa: ARG002
        """Render an error as the other paths do: a page reads its JSON when the status is not 200."""
        return msgspec.json.encode(error_document(error))


class PlainTextEncoder:
    """Renders the visible answer of the first choice."""

    def encode(self, events: Sequence[Event]) -> bytes:
        """Render the text of ``events``."""
        pieces = [event.text for event in events if isinstance(event, TextDelta | RefusalDelta) and event.index == 0]
        return "".join(pieces).encode()

    def finish(self) -> bytes:
        """Return nothing: the end of the body is the end."""
        return b""

    def error(self, error: GatewayError) -> bytes:  # noqa: ARG002
        """Return nothing: the end that is missing tells it."""
        return b""

    def heartbeat(self) -> bytes:
        """Return nothing: whatever is sent would be shown."""
        return b""
