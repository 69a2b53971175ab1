"""Reads Anthropic's Messages wire: named events around content blocks, or one whole message.

``message_stop`` is the one sign of a whole answer. What has no equal in the events of the core makes none: pings,
signatures, citations, redacted thinking, and the blocks of tools that the provider runs itself, whose input would
otherwise look like the arguments of a call that the client is to answer.

- ``pause_turn`` means that a loop of the provider's own tools reached its limit: the answer is not whole, so its finish
  reason is ``length`` and not ``stop``. A reason that is not known is ``stop``; the provider's own word is kept.
- A call of which no piece came has the ``input`` of its block's start as arguments: ``{}``, as a rule. Only a call that
  ``max_tokens`` cut off before its first piece has none, since ``{}`` would look like a whole one.
- Usage comes twice, at the start and as running totals at the end; both are reported, so that an answer which is cut
  keeps the input that it cost.

The pieces of a text block are all the same event but for their text, and for spaces that Anthropic puts before the last
brace. One that begins with the bytes of a piece that was decoded in full, and ends with its braces, is read by its text
alone (as in ``openai_template``): that takes two fifths of what a read of one event costs here.
"""

from __future__ import annotations

from typing import Final

import msgspec

from gateway.core.call import Call
from gateway.core.errors import UpstreamError
from gateway.core.events import (
    ChoiceFinished,
    Event,
    FinishReason,
    Frame,
    ReasoningDelta,
    StreamStarted,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
    UsageReported,
)
from gateway.core.sse import ServerSentEvent
from gateway.providers.base import EventDecoder, framed, started
from gateway.providers.errors import NOT_JSON, ErrorBody, error_from_json, malformed, upstream_error
from gateway.providers.openai_template import MAX_TRIES, decode_text

ANTHROPIC_EVENT = "anthropic.message.event"
ANTHROPIC_ANSWER = "anthropic.message"

_STATUSES = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "conflict_error": 409,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
"""The HTTP status that an error inside a 200 would have had."""

_FINISH_REASONS: dict[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "pause_turn": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


class _OutputDetails(msgspec.Struct, gc=False):
    thinking_tokens: int | None = None


class _Usage(msgspec.Struct, gc=False):
    """Running totals; a field that is missing has not changed."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    output_tokens_details: _OutputDetails | None = None

    def updated_by(self, later: _Usage) -> _Usage:
        """Return these totals with what ``later`` says in their place."""
        said = {key: value for key, value in msgspec.structs.asdict(later).items() if value is not None}
        return msgspec.structs.replace(self, **said)

    def total(self) -> Usage:
        """Return the usage in the core's terms: Anthropic leaves the cache out of its input."""
        read, written = self.cache_read_input_tokens or 0, self.cache_creation_input_tokens or 0
        thinking = self.output_tokens_details.thinking_tokens if self.output_tokens_details else None
        return Usage((self.input_tokens or 0) + read + written, self.output_tokens or 0, read, written, thinking or 0)


class _Block(msgspec.Struct, gc=False):
    type: str
    id: str | None = None
    name: str | None = None
    text: str | None = None
    thinking: str | None = None
    input: msgspec.Raw = msgspec.Raw()

    def arguments(self) -> str:
        """Return the input as it is written, ``{}`` where there is none."""
        raw = bytes(self.input)
        return raw.decode() if raw not in _NOTHING else "{}"


class _Message(msgspec.Struct, gc=False):
    """A whole message, or what ``message_start`` says of one."""

    id: str | None = None
    model: str | None = None
    content: list[_Block] | None = None
    stop_reason: str | None = None
    usage: _Usage | None = None
    error: msgspec.Raw = msgspec.Raw()


class _Delta(msgspec.Struct, gc=False):
    type: str | None = None
    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None
    stop_reason: str | None = None


class _StreamEvent(msgspec.Struct, gc=False):
    """All kinds of event in one: the type says which of the fields count."""

    type: str = ""
    index: int = 0
    delta: _Delta | None = None
    content_block: _Block | None = None
    message: _Message | None = None
    usage: _Usage | None = None
    error: msgspec.Raw = msgspec.Raw()


class _Kind(msgspec.Struct, gc=False):
    """What there is of an event whose type is not known, whatever its shape."""

    type: str = ""


_KNOWN = frozenset(
    ("message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta",
     "message_stop", "error")
)  # fmt: skip

_decode_event = msgspec.json.Decoder(_StreamEvent).decode
_decode_kind = msgspec.json.Decoder(_Kind).decode
_decode_message = msgspec.json.Decoder(_Message).decode
_NOTHING = (b"", b"null")
_TEXT_KEYS: Final = {TextDelta: b'"text":', ReasoningDelta: b'"thinking":'}
_BRACES: Final = b"}}"
_LF = ord("\n")


class _OpenCall(msgspec.Struct, gc=False):
    """The call whose block came last; ``unsent`` is the input of its start until a piece takes its place."""

    call_index: int
    block_index: int
    unsent: str


class AnthropicDecoder(EventDecoder):
    """Reads a stream; whole when ``message_stop`` was seen."""

    def __init__(self, call: Call, *, secret: str | None = None) -> None:
        super().__init__(call, secret=secret)
        self._usage = _Usage()
        self._has_output_usage = False
        self._finish: ChoiceFinished | None = None
        self._call_count = 0
        self._open_call: _OpenCall | None = None
        self._head = b""
        self._kind: type[TextDelta | ReasoningDelta] = TextDelta
        self._text_begin = self._document_begin = 0
        self._tries_left = MAX_TRIES
        self._ready: bytes | None = None

    def feed(self, data: bytes) -> list[Event]:
        """Return the events that ``data`` completes; nearly all reads bring pieces of a block of text or thinking.

        They are legal if the choice was open behind the last read that was decoded in full, and begin an event if that
        one did not end within one.
        """
        head = self._ready
        if head is not None and data.startswith(head) and data.endswith(b"\n\n"):
            text_end = data.rfind(b'"') + 1
            written = data[self._text_begin : text_end]
            if _LF in written:
                if told := self._pieces(data, head):
                    return told
            elif data[text_end:-2].translate(None, b" ") == _BRACES and (text := _text_of(written)):
                self._character_count += len(text)
                return [self._kind(text, 0, Frame(data[self._document_begin : -2], ANTHROPIC_EVENT, 1))]
        events = EventDecoder.feed(self, data)
        is_open = self._finish is None and not self.is_complete and self._lifecycle.is_open(0)
        self._ready = self._head if self._head and is_open and self._sse.is_between_events else None
        return events

    @property
    def usage(self) -> Usage | None:
        """What was reported, and an estimate of the output until that was."""
        return self._with_estimate() if self._lacks_output else super().usage

    def finish(self) -> list[Event]:
        """Take the end of the bytes; the output is estimated where only the input was reported."""
        events = super().finish()
        return [*events, UsageReported(self._with_estimate())] if self._lacks_output else events

    def _read(self, message: ServerSentEvent, events: list[Event]) -> None:
        if self._has_ended:
            return  # some hosts send a [DONE] behind the end
        data = message.data
        event = _event(data)
        if self._finish is not None and event.type.startswith("content_block_"):
            return  # the answer was finished already
        delta = event.delta
        if delta is not None and delta.type == "text_delta":  # nearly all of a stream
            if delta.text:
                self._read_piece(TextDelta, delta.text, message, events)
            return
        if delta is not None and delta.type == "thinking_delta" and event.type == "content_block_delta":
            if delta.thinking:
                self._read_piece(ReasoningDelta, delta.thinking, message, events)
            return
        found: list[Event] = []
        try:
            self._read_other(event, data, found)
        except NOT_JSON as error:  # in what is not decoded with the rest
            raise malformed("an event that is not JSON") from error
        if found:
            events.extend(framed(found, data, ANTHROPIC_EVENT))

    def _read_piece(
        self, kind: type[TextDelta | ReasoningDelta], text: str, message: ServerSentEvent, events: list[Event]
    ) -> None:
        events.append(kind(text, 0, Frame(message.data, ANTHROPIC_EVENT, 1)))
        if self._tries_left:
            self._learn(kind, text, message)

    def _pieces(self, data: bytes, head: bytes) -> list[Event]:
        """Return the events of a read that has pieces of one block alone; none if there is something else."""
        events: list[Event] = []
        kind, count, text_begin, document_begin = self._kind, 0, self._text_begin, self._document_begin
        for event in data[:-2].split(b"\n\n"):
            text_end = event.rfind(b'"') + 1
            if not event.startswith(head) or event[text_end:].translate(None, b" ") != _BRACES:
                return []
            text = _text_of(event[text_begin:text_end])
            if not text:
                return []
            count += len(text)
            events.append(kind(text, 0, Frame(event[document_begin:], ANTHROPIC_EVENT, 1)))
        self._character_count += count
        return events

    def _learn(self, kind: type[TextDelta | ReasoningDelta], text: str, message: ServerSentEvent) -> None:
        """Take an event that has nothing but ``text`` as the one that the next will be like."""
        key = _TEXT_KEYS[kind]
        data, written = message.data, key + msgspec.json.encode(text)
        self._tries_left -= 1
        place = data.find(written)
        if place < 0 or b"\n" in data or data[place + len(written) :].translate(None, b" ") != _BRACES:
            return  # written in another way
        name = b"event: %b\ndata: " % message.name.encode() if message.name else b"data: "
        self._kind = kind
        self._head = name + data[: place + len(key) + 1]  # with the quote, before which there may be no space
        self._text_begin, self._document_begin = len(self._head) - 1, len(name)

    def _is_whole(self) -> bool:
        return self._has_ended and self._lifecycle.has_started

    @property
    def _lacks_output(self) -> bool:
        return self._usage.input_tokens is not None and not self._has_output_usage

    def _with_estimate(self) -> Usage:
        output_tokens = self._estimate().output_tokens
        return msgspec.structs.replace(self._usage.total(), output_tokens=output_tokens, is_estimated=True)

    def _read_other(self, event: _StreamEvent, data: bytes, found: list[Event]) -> None:
        match event.type:
            case "content_block_delta" if event.delta is not None:
                self._read_delta(event.delta, event.index, found)
            case "content_block_start" if event.content_block is not None:
                self._start_block(event.content_block, event.index, found)
            case "message_start" if event.message is not None:
                found.append(_started(event.message, self._call))
                self._note_usage(event.message.usage, found)
            case "message_delta":
                self._end_message(event, found)
            case "message_stop":
                self._stop(found)
            case "error" | "" if (
                bytes(event.error) not in _NOTHING
            ):  # without a type: OpenAI's shape, from some host in between
                raise _error(data, self._secret)
            case "content_block_stop":
                pass
            case kind if kind in _KNOWN or not kind:
                raise malformed("an event that lacks what makes it one")
            case _:
                pass  # a ping, or what is not invented yet

    def _read_delta(self, delta: _Delta, block_index: int, found: list[Event]) -> None:
        if delta.type == "input_json_delta" and delta.partial_json:
            call = self._open_call
            if call is not None and call.block_index == block_index:
                call.unsent = ""
                found.append(ToolCallDelta(call.call_index, delta.partial_json))

    def _start_block(self, block: _Block, block_index: int, found: list[Event]) -> None:
        self._settle_call(found)
        if block.type == "tool_use":
            self._open_call = _OpenCall(self._call_count, block_index, block.arguments())
            self._call_count += 1
        found.extend(_block_events(block, self._call_count - 1))

    def _end_message(self, event: _StreamEvent, found: list[Event]) -> None:
        native = event.delta.stop_reason if event.delta is not None else None
        if native is not None and self._finish is None:
            reason = _FINISH_REASONS.get(native, "stop")
            if reason != "length":
                self._settle_call(found)
            self._finish = ChoiceFinished(reason, native)
        if event.usage is not None:
            self._has_output_usage = True
            self._note_usage(event.usage, found)

    def _stop(self, found: list[Event]) -> None:
        """The provider's word that the answer is whole; it stands for the reason, too, where that is missing."""
        self._has_ended = True
        if self._finish is None:
            self._settle_call(found)
        found.append(self._finish or ChoiceFinished("tool_calls" if self._call_count else "stop"))

    def _settle_call(self, found: list[Event]) -> None:
        """Append the arguments of a call of which no piece came."""
        call, self._open_call = self._open_call, None
        if call is not None and call.unsent:
            found.append(ToolCallDelta(call.call_index, call.unsent))

    def _note_usage(self, usage: _Usage | None, found: list[Event]) -> None:
        if usage is not None:
            self._usage = self._usage.updated_by(usage)
            found.append(UsageReported(self._usage.total()))


def read_answer(call: Call, body: bytes, *, secret: str | None = None) -> list[Event]:
    """Read a whole message; raises as the decoder does."""
    try:
        message = _decode_message(body)
        if bytes(message.error) not in _NOTHING:
            raise _error(body, secret)
        if message.content is None:
            raise malformed("a message without content")
        events: list[Event] = [_started(message, call)]
        call_count = 0
        for block in message.content:
            events.extend(_block_events(block, call_count))
            if block.type == "tool_use":
                events.append(ToolCallDelta(call_count, block.arguments()))
                call_count += 1
    except NOT_JSON as error:
        raise malformed("an answer that is not a message") from error
    if message.stop_reason is not None:
        events.append(ChoiceFinished(_FINISH_REASONS.get(message.stop_reason, "stop"), message.stop_reason))
    if message.usage is not None:
        events.append(UsageReported(message.usage.total()))
    return framed(events, body, ANTHROPIC_ANSWER)


def read_error(document: object, secret: str | None) -> ErrorBody:
    """Read Anthropic's error shape; its machine code, where there is one, is in ``details``."""
    said = error_from_json(document, secret)
    match document:
        case {"error": {"details": {"error_code": str(code)}}}:
            return ErrorBody(said.message, code, said.type, said.param)
        case _:
            return said


def _error(data: bytes, secret: str | None) -> UpstreamError:
    said = read_error(msgspec.json.decode(data), secret)
    return upstream_error(_STATUSES.get(said.type, 500), said)


def _event(data: bytes) -> _StreamEvent:
    """Decode one document. A type that is not known may have any shape, a known one only its own."""
    try:
        return _decode_event(data)
    except NOT_JSON as error:
        kind = _kind(data)
        if not kind or kind in _KNOWN:
            raise malformed("an event that is not its format") from error
        return _StreamEvent(kind)


def _text_of(written: bytes) -> str:
    """Return the text that is written as a JSON string; nothing if it is not one."""
    try:
        return decode_text(written)
    except NOT_JSON:
        return ""


def _kind(data: bytes) -> str:
    try:
        return _decode_kind(data).type
    except NOT_JSON:
        return ""


def _started(message: _Message, call: Call) -> StreamStarted:
    return started(call, message.id or f"msg_{call.request_id}", message.model)


def _block_events(block: _Block, call_index: int) -> list[Event]:
    """Return what the start of a block says, but for the arguments of a call."""
    match block.type:
        case "text" if block.text:
            return [TextDelta(block.text)]
        case "thinking" if block.thinking:
            return [ReasoningDelta(block.thinking)]
        case "tool_use":
            return [ToolCallStarted(call_index, block.id or "", block.name or "")]
        case _:
            return []
