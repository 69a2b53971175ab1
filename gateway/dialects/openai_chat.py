"""OpenAI's Chat Completions as clients speak it: ``POST /v1/chat/completions``.

Streaming: data-only events, one ``chat.completion.chunk`` each, ended by ``[DONE]``. A frame that a provider sent in
this very format is written through as it came. Everything else is rendered around fixed pieces of bytes, so that a
text delta costs one JSON string and one format.

Three things are never as the provider sent them: the usage chunk comes once, last before ``[DONE]`` and only to who
asked for it; every choice speaks its role once, however many attempts it took and whatever was held back; and an error
is followed by nothing.

A frame is written through only when all of its events come together. Whoever holds one of them back breaks it up: then
its events are rendered one by one, each as it comes. Only the start, which has no bytes of its own, does not count.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, assert_never, get_args

import msgspec

from gateway.core.call import OPENAI_CHAT, Call
from gateway.core.errors import GatewayError
from gateway.core.events import (
    OPENAI_ANSWER,
    OPENAI_CHUNK,
    TOKEN_EVENTS,
    AttemptFailed,
    CheckpointReached,
    ChoiceFinished,
    Delta,
    Event,
    Frame,
    Note,
    ProviderExtra,
    ReasoningDelta,
    RefusalDelta,
    StreamContinued,
    StreamStarted,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    UsageReported,
)
from gateway.core.sse import encode_comment, encode_data
from gateway.dialects.openai_answer import call_fields, decode_frame, reported_usage, write_answer
from gateway.dialects.openai_request import read_request

_encode = msgspec.json.encode
_DONE = b"data: [DONE]\n\n"


class OpenAIChat:
    """The dialect of OpenAI's Chat Completions."""

    content_type = "text/event-stream; charset=utf-8"

    def parse(self, body: bytes, call: Call) -> Call:
        """Fill in ``call`` from a request's body; raises ``InvalidRequest`` that names what is wrong."""
        return read_request(body, call)

    def encoder(self, call: Call) -> OpenAIChatEncoder:
        """Return an encoder for a stream."""
        return OpenAIChatEncoder(call)

    def answer(self, call: Call, events: Sequence[Event]) -> bytes:
        """Render a whole answer: as the provider sent it, if it speaks this dialect and nothing was changed."""
        frame: Frame | None = None
        said_count = 0
        for event in events:
            if type(event) in _NOTES or (type(event) is UsageReported and event.usage.is_estimated):
                continue  # the gateway itself says it, beside what the provider does
            if frame is None:
                frame = event.frame
            if frame is None or event.frame is not frame:
                break
            said_count += 1
        else:
            if frame is not None and frame.wire == OPENAI_ANSWER and said_count == frame.event_count:
                return frame.data
        return write_answer(call, events)

    def error_body(self, error: GatewayError, request_id: str) -> bytes:  # noqa: ARG002
        """Render an error that is told by an HTTP status."""
        return _encode(error_document(error))


class OpenAIChatEncoder:
    """Renders one stream of chunks.

    ``_is_settled`` says that every choice has its role and that no other attempt goes on with the stream: from then on
    a frame of text needs no second look. ``_begun`` is the frame of a start that came without the rest of it.
    """

    def __init__(self, call: Call) -> None:
        self._call = call
        self._has_role: set[int] = set()
        self._kinds: dict[tuple[int, int], str] = {}
        self._usage: UsageReported | None = None
        self._usage_frame: Frame | None = None
        self._keeps_usage = not call.include_usage or _wants_usage_everywhere(call)
        self._begun: Frame | None = None
        self._has_written = self._has_seam = self._is_settled = False
        self._started: StreamStarted | None = None
        self._made_head = b""
        self._text_heads: dict[int, bytes] = {}
        self._reasoning_heads: dict[int, bytes] = {}

    def encode(self, events: Sequence[Event]) -> bytes:
        """Render what one read from the provider brought."""
        if self._is_settled:  # nearly all of a stream is text, and comes one piece at a time
            if len(events) == 1:
                event = events[0]
                if type(event) is TextDelta or type(event) is ReasoningDelta:
                    frame = event.frame
                    if frame is None or frame.wire != OPENAI_CHUNK:
                        heads = self._text_heads if type(event) is TextDelta else self._reasoning_heads
                        head = heads.get(event.index)
                        if head is not None:
                            return head + _encode(event.text) + _TEXT_TAIL
                    elif frame.event_count == 1:
                        return b"data: %b\n\n" % frame.data
            elif (plain := self._plain(events)) is not None:
                return plain
        elif len(events) > 1 and type(events[0]) is StreamStarted and events[1].frame is not events[0].frame:
            return self.encode(events[:1]) + self.encode(events[1:])  # behind the role it has settled
        pieces = []
        for group in _by_frame(events):
            piece = self._render(group)
            self._has_written |= bool(piece)
            pieces.append(piece)
        self._is_settled = not self._has_seam and len(self._has_role) >= self._call.choice_count
        return b"".join(pieces)

    def _plain(self, events: Sequence[Event]) -> bytes | None:
        """Render pieces of text in a stream that has settled, as ``encode`` does one, and keep what was used by then.

        Returns ``None`` if there is something among them that has to be looked at.
        """
        pieces: list[bytes] = []
        for event in events:
            frame = event.frame
            is_own = frame is not None and frame.wire == OPENAI_CHUNK
            if type(event) is TextDelta or type(event) is ReasoningDelta:
                if frame is not None and is_own:
                    if frame.event_count != 1:
                        return None
                    pieces += (b"data: ", frame.data, b"\n\n")
                    continue
                heads = self._text_heads if type(event) is TextDelta else self._reasoning_heads
                head = heads.get(event.index)
                if head is None:
                    return None
                pieces += (head, _encode(event.text), _TEXT_TAIL)
            elif type(event) is UsageReported and not is_own:
                self._keep_usage(event)
            else:
                return None
        return b"".join(pieces)

    def finish(self) -> bytes:
        """Render the usage, if asked for, and ``[DONE]``."""
        if not self._call.include_usage:
            return _DONE
        if self._usage_frame is not None:
            return encode_data(self._usage_frame.data) + _DONE
        if self._usage is not None:
            usage = _encode(reported_usage(self._usage))
            return b'%b,"choices":[],"usage":%b}\n\n%b' % (self._head[: -len(_CHOICES)], usage, _DONE)
        return _DONE

    def error(self, error: GatewayError) -> bytes:
        """Render the error event; the connection is to be closed behind it without an end.

        It has the request's id beside the error: whoever only kept the body finds the call in logs and traces by it.
        """
        return encode_data(_encode({**error_document(error), "request_id": self._call.request_id}))

    def heartbeat(self) -> bytes:
        """Render a comment, which every client of this dialect skips."""
        return encode_comment("keep-alive")

    def _render(self, events: Sequence[Event]) -> bytes:
        """Write the frame of some events through, or render them one by one."""
        frame = events[0].frame
        if frame is not None and frame.wire == OPENAI_CHUNK:
            missing = frame.event_count - len(events)
            if not missing or (missing == 1 and frame is self._begun):
                return self._write_through(frame, events)
        return self._render_each(events)

    def _render_each(self, events: Sequence[Event]) -> bytes:
        return b"".join([self._render_event(event) for event in events])

    def _write_through(self, frame: Frame, events: Sequence[Event]) -> bytes:
        """Write a frame as it came, but for its usage and for roles that are missing or spoken already."""
        has_usage = UsageReported in map(type, events)
        if not has_usage and self._is_right_in_roles(frame.data):
            self._note(events)
            return encode_data(frame.data)
        document = decode_frame(frame)
        if document is None:  # a field that nobody had to read so far cannot be read
            return self._render_each(events)
        self._note(events)
        is_changed = self._set_roles(document)
        if has_usage:
            if len(events) == 1 and not document.get("choices"):
                self._usage_frame = frame if document.get("usage") else None
                return b""
            if not self._keeps_usage:
                document["usage"] = None
                is_changed = True
        return encode_data(_encode(document) if is_changed else frame.data)

    def _note(self, events: Sequence[Event]) -> None:
        """Take from events that are written through what the rest of the stream needs."""
        for event in events:
            if type(event) is StreamStarted:
                self._name(event)
            elif type(event) is ToolCallStarted:
                self._kinds[event.index, event.call_index] = event.kind
            elif type(event) is UsageReported:
                self._keep_usage(event)

    def _is_right_in_roles(self, data: bytes) -> bool:
        """Whether a frame's bytes tell already that it speaks the roles that are missing, and no other.

        A key has its quotes nowhere else: in a text they would be escaped. One choice that begins with its role, as
        nearly all streams do, is told by that, if the braces of the document, of the choice and of its delta are all
        that there are. To decode it takes more than twice as long.
        """
        if len(self._has_role) >= self._call.choice_count:
            return b'"role"' not in data
        place = data.rfind(b"{") - _ROLE_BRACE
        if self._has_role or data[place : place + len(_ROLE)] != _ROLE or data.count(b"{") != 3:
            return False
        self._has_role.add(0)
        return True

    def _set_roles(self, document: dict[str, Any]) -> bool:
        """See to it that every choice speaks its role once; returns whether the document had to be changed."""
        is_changed = False
        for choice in document.get("choices") or ():
            index, delta = choice.get("index", 0), choice.get("delta")
            if not isinstance(delta, dict):
                continue
            if index not in self._has_role:
                self._has_role.add(index)
                if not delta.get("role"):
                    delta["role"] = "assistant"
                    is_changed = True
            elif delta.get("role"):
                del delta["role"]
                is_changed = True
        return is_changed

    def _keep_usage(self, report: UsageReported) -> None:
        """Keep the usage for the end; the last report counts."""
        self._usage, self._usage_frame = report, None

    def _name(self, started: StreamStarted) -> None:
        """Give the stream its name; it keeps the first, whoever goes on with it."""
        if self._started is None:
            self._started = started
            self._made_head = b""
            self._text_heads.clear()
            self._reasoning_heads.clear()

    @property
    def _head(self) -> bytes:
        """The bytes with which every chunk of ours begins; a stream that is written through needs none."""
        if not self._made_head:
            call, started = self._call, self._started
            head = {
                "id": (started and started.id) or f"chatcmpl-{call.request_id}",
                "object": "chat.completion.chunk",
                "created": (started and started.created_unix_s) or call.created_unix_s,
                "model": (started and started.model) or call.model,
            }
            self._made_head = b"data: " + _encode(head)[:-1] + _CHOICES
        return self._made_head

    def _render_event(self, event: Event) -> bytes:
        if isinstance(event, TOKEN_EVENTS):
            return self._render_delta(event)
        match event:
            case ChoiceFinished(reason=reason, index=index):
                return self._delta(index, b"", _encode(reason))
            case StreamStarted():
                self._begun = event.frame
                self._name(event)
            case UsageReported():
                self._keep_usage(event)
            case StreamContinued():
                return self._seam(event)
            case ProviderExtra() | CheckpointReached() | AttemptFailed():
                pass
            case _:
                assert_never(event)
        return b""

    def _render_delta(self, event: Delta) -> bytes:
        match event:
            case TextDelta(text=text, index=index):
                return self._text(index, text, b'"content":', self._text_heads)
            case ReasoningDelta(text=text, index=index):
                return self._text(index, text, b'"reasoning_content":', self._reasoning_heads)
            case RefusalDelta(text=text, index=index):
                return self._delta(index, b'"refusal":' + _encode(text))
            case ToolCallStarted():
                self._kinds[event.index, event.call_index] = event.kind
                return self._delta(event.index, _tool_started(event))
            case ToolCallDelta():
                return self._delta(event.index, self._tool_delta(event))
            case _:
                assert_never(event)

    def _seam(self, event: StreamContinued) -> bytes:
        """Tell who looks that another attempt goes on; begun again before anything was said is no seam."""
        self._has_seam = True
        return encode_comment(_seam_text(event)) if self._has_written or event.way != "restart" else b""

    def _text(self, index: int, text: str, key: bytes, heads: dict[int, bytes]) -> bytes:
        """Render a piece of text, or of reasoning; from the second on only the text itself is new."""
        head = heads.get(index)
        if head is not None:
            return head + _encode(text) + _TEXT_TAIL
        if index in self._has_role:
            heads[index] = b'%b[{"index":%d,"delta":{%b' % (self._head, index, key)
        return self._delta(index, key + _encode(text))

    def _tool_delta(self, event: ToolCallDelta) -> bytes:
        arguments = _encode(event.arguments)
        match self._kinds.get((event.index, event.call_index)):
            case "legacy":
                return b'"function_call":{"arguments":%b}' % arguments
            case "custom":
                return b'"tool_calls":[{"index":%d,"custom":{"input":%b}}]' % (event.call_index, arguments)
            case _:
                return b'"tool_calls":[{"index":%d,"function":{"arguments":%b}}]' % (event.call_index, arguments)

    def _delta(self, index: int, delta: bytes, finish_reason: bytes = b"null") -> bytes:
        if index not in self._has_role:
            self._has_role.add(index)
            delta = b'"role":"assistant",' + delta if delta else b'"role":"assistant"'
        return b'%b[{"index":%d,"delta":{%b},"logprobs":null,"finish_reason":%b}]}\n\n' % (
            self._head,
            index,
            delta,
            finish_reason,
        )


_NOTES = frozenset(get_args(Note))
_CHOICES = b',"choices":'
_UNPRINTABLE = re.compile(r"[^ -~]")
_TEXT_TAIL = b'},"logprobs":null,"finish_reason":null}]}\n\n'
_ROLE = b'"choices":[{"index":0,"delta":{"role":"assistant"'
_ROLE_BRACE = _ROLE.rindex(b"{")


def _by_frame(events: Sequence[Event]) -> Iterator[Sequence[Event]]:
    """Yield the events of each document in turn; two documents that are equal are still two."""
    start, frame = 0, None
    for place, event in enumerate(events):
        if place > start and event.frame is not frame:
            yield events[start:place]
            start = place
        frame = event.frame
    if events:
        yield events[start:]


def _seam_text(event: StreamContinued) -> str:
    """Say what happened at a seam, in one line of printable ASCII whatever a target is called."""
    text = (
        f"millrace continued {event.target} from {event.from_target}, {event.way}, "
        f"attempt {event.attempt}, after {event.character_count} characters"
    )
    return _UNPRINTABLE.sub("?", text)


def _wants_usage_everywhere(call: Call) -> bool:
    options = call.source.body.get("stream_options") if call.source.wire == OPENAI_CHAT else None
    return isinstance(options, Mapping) and bool(options.get("continuous_usage_stats"))


def _tool_started(event: ToolCallStarted) -> bytes:
    if event.kind == "legacy":
        return b'"function_call":{"name":%b,"arguments":""}' % _encode(event.name)
    call = {"index": event.call_index, "id": event.id, "type": event.kind, **call_fields(event)}
    if event.kind == "custom":
        return b'"tool_calls":' + _encode([{**call, "custom": {"name": event.name, "input": ""}}])
    return b'"tool_calls":' + _encode([{**call, "function": {"name": event.name, "arguments": ""}}])


def error_document(error: GatewayError) -> dict[str, Any]:
    """Return an error as OpenAI writes it, in a body of its own or as the last event of a stream."""
    return {
        "error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code},
    }
