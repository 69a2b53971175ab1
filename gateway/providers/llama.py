"""The Llama API's own chat completions: OpenAI's request with fewer parameters, and stream events of its own.

A stream is ``start``, ``progress``, ``complete`` and ``metrics``. It is whole when a ``complete`` has told its
``stop_reason``; the metrics, which are the usage, come behind it or not at all.

What would change the answer's shape and does not exist there is refused: log probabilities, several choices, stop
sequences, tools that take free text, audio and files. Seeds, penalties and other hints are left out. ``json_object`` is
a JSON schema that any object fits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

from gateway.core.call import Call, ImagePart, TextPart
from gateway.core.errors import InvalidRequest, UpstreamError
from gateway.core.events import (
    ChoiceFinished,
    Event,
    FinishReason,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
    UsageReported,
)
from gateway.core.sse import ServerSentEvent
from gateway.providers.base import Decoder, EventDecoder, UpstreamRequest, framed, started, wanted_format
from gateway.providers.continued import continued, continued_answer
from gateway.providers.errors import (
    NOT_JSON,
    ErrorBody,
    cut_off,
    decode_or_none,
    error_from_json,
    malformed,
    read_error_body,
    retry_after_s,
    upstream_error,
)
from gateway.providers.openai import OpenAI, Wire

LLAMA_EVENT = "llama.chat.event"
LLAMA_ANSWER = "llama.chat"

_ACCEPTED = frozenset(
    {
        "model",
        "messages",
        "stream",
        "max_completion_tokens",
        "temperature",
        "top_p",
        "top_k",
        "repetition_penalty",
        "response_format",
        "tools",
        "tool_choice",
        "user",
    }
)
_TURN_KEYS = frozenset({"role", "content", "tool_calls", "tool_call_id", "stop_reason"})
_FINISH_REASONS: dict[str, FinishReason] = {"stop": "stop", "tool_calls": "tool_calls", "length": "length"}


def _adapt(body: dict[str, Any], call: Call) -> None:
    turns = [{key: turn[key] for key in turn if key in _TURN_KEYS} for turn in body["messages"]]
    body["messages"] = [{key: value for key, value in turn.items() if value is not None} for turn in turns]
    if call.sampling.top_k is not None:
        body["top_k"] = call.sampling.top_k
    if call.tool_choice is not None and len(call.tool_choice.names) > 1:
        body["tools"] = [tool for tool in body["tools"] if tool["function"]["name"] in call.tool_choice.names]
        body["tool_choice"] = call.tool_choice.mode
    wanted = wanted_format(call)
    if wanted is not None and wanted.kind != "text":
        schema = wanted.schema or {"type": "object"}
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": wanted.name, "schema": schema}}


_WIRE = Wire(
    max_tokens_key="max_completion_tokens",
    has_usage_option=False,
    takes_reasoning_back=False,
    accepted=_ACCEPTED,
    renamed={"max_tokens": "max_completion_tokens"},
    adapt=_adapt,
)


class Llama(OpenAI):
    """A provider that speaks the Llama API."""

    default_base_url: ClassVar[str] = "https://api.llama.com/v1"

    @property
    def wire(self) -> Wire:
        """How the request deviates from OpenAI's."""
        return _WIRE

    def request(self, call: Call) -> UpstreamRequest:
        """Write ``call`` in the Llama API's wire; raises ``InvalidRequest`` for what it cannot express."""
        _check(call)
        return super().request(call)

    def decoder(self, call: Call) -> Decoder:
        """Return a decoder for the stream that answers ``call``."""
        return continued(LlamaDecoder(call, secret=self.options.api_key), self._rest(call))

    def answer(self, call: Call, body: bytes) -> list[Event]:
        """Read a whole answer; raises as a decoder does."""
        return continued_answer(_read_answer(call, body, self.options.api_key), self._rest(call))

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        """Say what an HTTP error means: ``{"title", "detail", "status"}``."""
        said = _without_status(read_error_body(body, self.options.api_key))
        return upstream_error(status, said, wait_s=retry_after_s(headers))


def _check(call: Call) -> None:
    """Raise ``InvalidRequest`` for what would change the answer's shape and cannot be had."""
    if call.logprobs:
        raise InvalidRequest("log probabilities cannot be had from this provider", param="logprobs")
    if call.choice_count > 1:
        raise InvalidRequest("this provider gives one choice at a time", param="n")
    if call.stop:
        raise InvalidRequest("this provider takes no stop sequences", param="stop")
    for number, tool in enumerate(call.tools):
        if tool.is_custom:
            raise InvalidRequest("this provider has no tools that take free text", param=f"tools[{number}]")
    for number, message in enumerate(call.messages):
        for place, part in enumerate(message.parts):
            if not isinstance(part, TextPart | ImagePart):
                raise InvalidRequest(
                    "this provider takes text and images only", param=f"messages[{number}].content[{place}]"
                )


class _Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class _Delta(msgspec.Struct, gc=False):
    text: str | None = None
    id: str | None = None
    function: _Function | None = None


class _Metric(msgspec.Struct, gc=False):
    metric: str = ""
    value: float = 0


class _StreamEvent(msgspec.Struct, gc=False):
    event_type: str
    delta: _Delta | None = None
    stop_reason: str | None = None
    metrics: list[_Metric] | None = None


class _Chunk(msgspec.Struct, gc=False):
    id: str | None = None
    event: _StreamEvent | None = None


class _Content(msgspec.Struct, gc=False):
    text: str | None = None


class _Message(msgspec.Struct, gc=False):
    content: str | _Content | list[_Content] | None = None
    tool_calls: list[_Delta] | None = None
    stop_reason: str | None = None


class _Answer(msgspec.Struct, gc=False):
    id: str | None = None
    completion_message: _Message | None = None
    metrics: list[_Metric] | None = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_decode_answer = msgspec.json.Decoder(_Answer).decode


class LlamaDecoder(EventDecoder):
    """Reads a stream of the Llama API's events."""

    def __init__(self, call: Call, *, secret: str | None = None) -> None:
        super().__init__(call, secret=secret)
        self._has_begun = False
        self._calls = _Calls(call)

    def _read(self, message: ServerSentEvent, events: list[Event]) -> None:
        data = message.data
        try:
            chunk = _decode_chunk(data)
        except NOT_JSON as error:
            raise malformed("an event that is not the Llama API's") from error
        if chunk.event is None:
            raise _error_in(data, self._secret)
        found: list[Event] = []
        if not self._has_begun:
            self._has_begun = True
            found.append(started(self._call, chunk.id or ""))
        self._read_event(chunk.event, found)
        events.extend(framed(found, data, LLAMA_EVENT))

    def _is_whole(self) -> bool:
        return self._lifecycle.finished_count > 0

    def _read_event(self, said: _StreamEvent, found: list[Event]) -> None:
        if said.delta is not None:
            self._calls.read(said.delta, found)
        if said.event_type == "complete" and said.stop_reason:
            found.append(self._calls.finish(said.stop_reason))
        if (usage := _usage(said.metrics)) is not None:
            found.append(UsageReported(usage))


class _Calls:
    """Which tool call a delta belongs to: a new id, or a name where none is, begins one."""

    __slots__ = ("_count", "_id", "_request_id")

    def __init__(self, call: Call) -> None:
        self._request_id = call.request_id
        self._count = 0
        self._id: str | None = None

    def read(self, delta: _Delta, found: list[Event]) -> None:
        """Append what one delta says, be it text or a piece of a call."""
        if delta.function is not None:
            self._read_call(delta, delta.function, found)
        elif delta.text:
            found.append(TextDelta(delta.text))

    def finish(self, native: str) -> ChoiceFinished:
        """Return how the answer ends; with calls in it a ``stop`` is for them."""
        reason = _FINISH_REASONS.get(native, "stop")
        return ChoiceFinished("tool_calls" if reason == "stop" and self._count else reason, native)

    def _read_call(self, delta: _Delta, function: _Function, found: list[Event]) -> None:
        begins = delta.id != self._id if delta.id else bool(function.name) or not self._count
        if begins:
            if not function.name:
                raise malformed("a tool call without a name")
            self._id = delta.id or f"call_{self._request_id}_{self._count}"
            self._count += 1
            found.append(ToolCallStarted(self._count - 1, self._id, function.name))
        if function.arguments:
            found.append(ToolCallDelta(self._count - 1, function.arguments))


def _read_answer(call: Call, body: bytes, secret: str | None) -> list[Event]:
    try:
        answer = _decode_answer(body)
    except NOT_JSON as error:
        raise malformed("an answer that is not the Llama API's") from error
    message = answer.completion_message
    if message is None:
        raise _error_in(body, secret)
    if not message.stop_reason:
        raise cut_off()
    calls = _Calls(call)
    events: list[Event] = [started(call, answer.id or "")]
    for delta in (_Delta(_text(message.content)), *(message.tool_calls or ())):
        calls.read(delta, events)
    events.append(calls.finish(message.stop_reason))
    if (usage := _usage(answer.metrics)) is not None:
        events.append(UsageReported(usage))
    return framed(events, body, LLAMA_ANSWER)


def _text(content: str | _Content | list[_Content] | None) -> str:
    if isinstance(content, str):
        return content
    pieces = content if isinstance(content, list) else [content or _Content()]
    return "".join(piece.text or "" for piece in pieces)


def _usage(metrics: list[_Metric] | None) -> Usage | None:
    counts = {metric.metric: int(metric.value) for metric in metrics or ()}
    if "num_prompt_tokens" not in counts and "num_completion_tokens" not in counts:
        return None
    return Usage(counts.get("num_prompt_tokens", 0), counts.get("num_completion_tokens", 0))


def _error_in(document: bytes, secret: str | None) -> UpstreamError:
    """Return the error that stands where an answer should: its form in a stream is that of an HTTP error's body."""
    decoded = decode_or_none(document)
    said = _without_status(error_from_json(decoded, secret))
    if not said.message:
        return malformed("a document that is neither an answer nor an error")
    status = decoded.get("status") if isinstance(decoded, dict) else None
    return upstream_error(status if isinstance(status, int) and 400 <= status < 600 else 500, said)


def _without_status(said: ErrorBody) -> ErrorBody:
    """A number is no code that a program could know: the HTTP status stands there."""
    return ErrorBody(said.message, said.code, "" if said.type.isdigit() else said.type, said.param)
