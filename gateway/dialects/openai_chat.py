"""OpenAI's Chat Completions as clients speak it: ``POST /v1/chat/completions``.

Streaming: data-only events, one ``chat.completion.chunk`` each, ended by ``[DONE]``. A frame that a provider sent in
this very format is written through as it came. Everything else is rendered around fixed pieces of bytes, so that a
text delta costs one JSON string and one format.

Two things are never as the provider sent them: the usage chunk comes once, last before ``[DONE]`` and only to who asked
for it, and an error is followed by nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import msgspec

from gateway.core.call import OPENAI_CHAT, Call
from gateway.core.errors import GatewayError
from gateway.core.events import (
    OPENAI_ANSWER,
    OPENAI_CHUNK,
    ChoiceFinished,
    Event,
    Frame,
    ProviderExtra,
    ReasoningDelta,
    RefusalDelta,
    StreamStarted,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
    UsageReported,
)
from gateway.core.sse import encode_comment, encode_data
from gateway.core.transcript import ChoiceTranscript, ToolCallTranscript, Transcript
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
        said = [event for event in events if not (type(event) is UsageReported and event.usage.is_estimated)]
        frames = {id(event.frame): event.frame for event in said}
        if len(frames) == 1:
            frame = next(iter(frames.values()))
            if frame is not None and frame.wire == OPENAI_ANSWER and frame.event_count == len(said):
                return frame.data
        return _encode(_answer(call, events))

    def error_body(self, error: GatewayError, request_id: str) -> bytes:  # noqa: ARG002
        """Render an error that is told by an HTTP status."""
        return _encode(error_document(error))


class OpenAIChatEncoder:
    """Renders one stream of chunks."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._has_role: set[int] = set()
        self._kinds: dict[tuple[int, int], str] = {}
        self._usage: bytes | None = None
        self._usage_frame: Frame | None = None
        self._keeps_usage = not call.include_usage or _wants_usage_everywhere(call)
        self._name(StreamStarted(f"chatcmpl-{call.request_id}", call.model))

    def encode(self, events: Sequence[Event]) -> bytes:
        """Render what one read from the provider brought."""
        plain = [
            b"data: %b\n\n" % event.frame.data
            for event in events
            if type(event) is TextDelta
            and event.frame is not None
            and event.frame.event_count == 1
            and event.frame.wire == OPENAI_CHUNK
        ]
        if len(plain) == len(events):  # nearly all of a stream that came in this very format
            return plain[0] if len(plain) == 1 else b"".join(plain)
        groups = [list(group) for _, group in groupby(events, key=_frame_id)]
        return b"".join([self._render(group[0].frame, group) for group in groups])

    def finish(self) -> bytes:
        """Render the usage, if asked for, and ``[DONE]``."""
        if not self._call.include_usage:
            return _DONE
        if self._usage_frame is not None:
            return encode_data(self._usage_frame.data) + _DONE
        if self._usage is not None:
            return b'%b,"choices":[],"usage":%b}\n\n%b' % (self._head[: -len(_CHOICES)], self._usage, _DONE)
        return _DONE

    def error(self, error: GatewayError) -> bytes:
        """Render the error event; the connection is to be closed behind it without an end."""
        return encode_data(_encode(error_document(error)))

    def heartbeat(self) -> bytes:
        """Render a comment, which every client of this dialect skips."""
        return encode_comment("keep-alive")

    def _render(self, frame: Frame | None, events: Sequence[Event]) -> bytes:
        """Write a frame through, or render its events one by one."""
        if frame is not None and frame.wire == OPENAI_CHUNK and frame.event_count == len(events):
            return self._write_through(frame, events)
        return b"".join([self._render_event(event) for event in events])

    def _write_through(self, frame: Frame, events: Sequence[Event]) -> bytes:
        for event in events:
            if type(event) is StreamStarted:
                self._name(event)
                self._has_role.update(range(self._call.choice_count))
            elif type(event) is ToolCallStarted:
                self._kinds[event.index, event.call_index] = event.kind
        if any(type(event) is UsageReported for event in events):
            return self._take_usage(frame, is_alone=len(events) == 1)
        return encode_data(frame.data)

    def _take_usage(self, frame: Frame, *, is_alone: bool) -> bytes:
        """Keep the provider's own usage object for the end; pass on what else the frame has."""
        document = msgspec.json.decode(frame.data)
        usage = document.get("usage") or (document.get("x_groq") or {}).get("usage")
        self._usage, self._usage_frame = _encode(usage), None
        if is_alone and not document.get("choices"):
            if document.get("usage"):
                self._usage_frame = frame
            return b""
        if self._keeps_usage:
            return encode_data(frame.data)
        document["usage"] = None
        return encode_data(_encode(document))

    def _name(self, started: StreamStarted) -> None:
        """Make the bytes with which every chunk of ours begins."""
        call = self._call
        head = {
            "id": started.id or f"chatcmpl-{call.request_id}",
            "object": "chat.completion.chunk",
            "created": started.created_unix_s or call.created_unix_s,
            "model": started.model or call.model,
        }
        self._head = b"data: " + _encode(head)[:-1] + _CHOICES
        self._text_heads: dict[int, bytes] = {}

    def _render_event(self, event: Event) -> bytes:
        match event:
            case TextDelta(text=text, index=index):
                return self._text(index, text)
            case ReasoningDelta(text=text, index=index):
                return self._delta(index, b'"reasoning_content":' + _encode(text))
            case RefusalDelta(text=text, index=index):
                return self._delta(index, b'"refusal":' + _encode(text))
            case ToolCallStarted():
                self._kinds[event.index, event.call_index] = event.kind
                return self._delta(event.index, _tool_started(event))
            case ToolCallDelta():
                return self._delta(event.index, self._tool_delta(event))
            case ChoiceFinished(reason=reason, index=index):
                return self._delta(index, b"", _encode(reason))
            case StreamStarted():
                self._name(event)
            case UsageReported(usage=usage):
                self._usage, self._usage_frame = _encode(_usage(usage)), None
            case ProviderExtra():
                pass
        return b""

    def _text(self, index: int, text: str) -> bytes:
        """Render a piece of text; from the second on only the text itself is new."""
        head = self._text_heads.get(index)
        if head is not None:
            return head + _encode(text) + _TEXT_TAIL
        if index in self._has_role:
            self._text_heads[index] = b'%b[{"index":%d,"delta":{"content":' % (self._head, index)
        return self._delta(index, b'"content":' + _encode(text))

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


_CHOICES = b',"choices":'
_TEXT_TAIL = b'},"logprobs":null,"finish_reason":null}]}\n\n'


def _frame_id(event: Event) -> int:
    """Which document an event came in; two that are equal are still two."""
    return id(event.frame)


def _wants_usage_everywhere(call: Call) -> bool:
    options = call.source.body.get("stream_options") if call.source.wire == OPENAI_CHAT else None
    return isinstance(options, Mapping) and bool(options.get("continuous_usage_stats"))


def _tool_started(event: ToolCallStarted) -> bytes:
    if event.kind == "legacy":
        return b'"function_call":{"name":%b,"arguments":""}' % _encode(event.name)
    call = {"index": event.call_index, "id": event.id, "type": event.kind}
    if event.kind == "custom":
        return b'"tool_calls":' + _encode([{**call, "custom": {"name": event.name, "input": ""}}])
    return b'"tool_calls":' + _encode([{**call, "function": {"name": event.name, "arguments": ""}}])


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_input_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def error_document(error: GatewayError) -> dict[str, Any]:
    """Return an error as OpenAI writes it, in a body of its own or as the last event of a stream."""
    return {
        "error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code},
    }


def _answer(call: Call, events: Sequence[Event]) -> dict[str, Any]:
    transcript = Transcript()
    transcript.add(events)
    started = transcript.started or StreamStarted("", "")
    answer: dict[str, Any] = {
        "id": started.id or f"chatcmpl-{call.request_id}",
        "object": "chat.completion",
        "created": started.created_unix_s or call.created_unix_s,
        "model": started.model or call.model,
        "choices": [_choice(index, choice) for index, choice in sorted(transcript.choices.items())],
    }
    if transcript.usage is not None:
        answer["usage"] = _usage(transcript.usage)
    return answer


def _choice(index: int, choice: ChoiceTranscript) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": choice.text or None, "refusal": choice.refusal or None}
    if not choice.text and not choice.tool_calls and not choice.refusal:
        message["content"] = ""
    if choice.reasoning:
        message["reasoning_content"] = choice.reasoning
    calls = list(choice.tool_calls.values())
    if calls and calls[0].kind == "legacy":
        message["function_call"] = {"name": calls[0].name, "arguments": calls[0].arguments}
    elif calls:
        message["tool_calls"] = [_tool_call(call) for call in calls]
    return {"index": index, "message": message, "logprobs": None, "finish_reason": choice.finish_reason}


def _tool_call(call: ToolCallTranscript) -> dict[str, Any]:
    if call.kind == "custom":
        return {"id": call.id, "type": "custom", "custom": {"name": call.name, "input": call.arguments}}
    # a call without arguments is an empty object to every SDK that parses them
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments or "{}"}}
