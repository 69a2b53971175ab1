"""A whole answer as OpenAI's Chat Completions writes it, put together from the events of a stream.

The words, the calls and the ends are the events': they are what was delivered, whoever altered it on the way. What no
event carries (log probabilities, a service tier, a signature beside a call, whatever a host adds) is gathered from the
frames, so that a client cannot tell that its answer was streamed to the gateway:

- A field of the answer or of a choice: the last that is not null counts, of an object each of its fields. A choice's
  lists and its log probabilities grow.
- A field of the message comes in pieces, as its text does: strings are joined, lists grow. Pieces of a list that have
  the same type and ``index`` are one, as in ``reasoning_details``, whose signature is good for the whole text only.
- What makes sense in a stream only, like padding, is left out.

A frame of which an event is missing or was altered no longer speaks for its message: what somebody has cut out of the
text must not come back as a log probability.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from gateway.core.call import Call
from gateway.core.events import (
    OPENAI_ANSWER,
    OPENAI_CHUNK,
    Event,
    Frame,
    StreamStarted,
    TextDelta,
    ToolCallStarted,
    Usage,
    UsageReported,
)
from gateway.core.transcript import ChoiceTranscript, ToolCallTranscript, Transcript

_encode = msgspec.json.encode
_NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_WIRES = frozenset({OPENAI_CHUNK, OPENAI_ANSWER})

_ANSWER_KEYS = frozenset({"id", "object", "created", "model", "choices", "usage"})
_CHOICE_KEYS = frozenset({"index", "delta", "message", "finish_reason", "logprobs"})
_MESSAGE_KEYS = frozenset({"role", "content", "refusal", "reasoning_content", "tool_calls", "function_call"})
_CALL_KEYS = frozenset({"index", "id", "type", "function", "custom"})
"""What the events carry."""

_PADDING = frozenset({"obfuscation", "p"})
"""OpenAI's and Mistral's random padding."""

_PADDED = re.compile(rb'"(?:obfuscation|p)":"([0-9A-Za-z]*)"')

_STREAM_KEYS = _ANSWER_KEYS | _PADDING | {"stream_options"}
_STREAM_CHOICE_KEYS = _CHOICE_KEYS | {"text"}
_STREAM_MESSAGE_KEYS = _MESSAGE_KEYS | {"index", "token_id"}
"""What the events carry, and what hosts put into chunks and not into answers: echoes, copies, one token's number."""

_LABELS = frozenset({"channel", "format", "id", "name", "object", "type"})
"""Strings that name something: said again, they are not longer."""

_PIECES = frozenset({"data", "signature", "summary", "text", "transcript"})
"""Strings inside an object that come in pieces."""


def write_answer(call: Call, events: Sequence[Event]) -> bytes:
    """Render a whole answer."""
    transcript = Transcript()
    transcript.add(events)
    rest = _gather(events)
    started = next((event for event in events if type(event) is StreamStarted), None) or StreamStarted("", "")
    answer: dict[str, Any] = {
        "id": started.id or f"chatcmpl-{call.request_id}",
        "object": "chat.completion",
        "created": started.created_unix_s or call.created_unix_s,
        "model": started.model or call.model,
        "choices": [
            _choice(index, choice, rest.choices.get(index) or _ChoiceRest())
            for index, choice in sorted(transcript.choices.items())
        ],
    }
    report = next((event for event in reversed(events) if type(event) is UsageReported), None)
    if report is not None:
        answer["usage"] = reported_usage(report)
    return _encode({**answer, **rest.fields})


def reported_usage(report: UsageReported) -> dict[str, Any]:
    """Return the usage as the provider wrote it, if it did in this wire and nobody has corrected it since."""
    document = decode_frame(report.frame) or {}
    own = document.get("usage") or (document.get("x_groq") or {}).get("usage")
    return own if isinstance(own, dict) else usage_document(report.usage)


def usage_document(usage: Usage) -> dict[str, Any]:
    """Return the usage as OpenAI writes it."""
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_input_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def call_fields(event: ToolCallStarted) -> dict[str, Any]:
    """Return what a host says of a call beside what everybody does, such as the signature that Google wants back."""
    found: dict[str, Any] = {}
    for choice, _ in _choices(decode_frame(event.frame) or {}):
        if choice.get("index", 0) == event.index:
            for call_index, call in _calls(choice):
                if call_index == event.call_index:
                    found |= {key: value for key, value in call.items() if key not in _CALL_KEYS}
    return found


def decode_frame(frame: Frame | None) -> dict[str, Any] | None:
    """Return the document of a frame in this wire.

    ``None`` where it is in another, or where a field that nobody has read yet cannot be read.
    """
    if frame is None or frame.wire not in _WIRES:
        return None
    try:
        document = msgspec.json.decode(frame.data)
    except _NOT_JSON:
        return None
    return document if isinstance(document, dict) else None


def _choice(index: int, choice: ChoiceTranscript, rest: _ChoiceRest) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": choice.text or None, "refusal": choice.refusal or None}
    if not choice.text and not choice.tool_calls and not choice.refusal:
        message["content"] = ""
    if choice.reasoning:
        message["reasoning_content"] = choice.reasoning
    if rest.has_reasoning:
        message["reasoning"] = choice.reasoning or None
    calls = sorted(choice.tool_calls.items())
    if calls and calls[0][1].kind == "legacy":
        message["function_call"] = {"name": calls[0][1].name, "arguments": calls[0][1].arguments}
    elif calls:
        message["tool_calls"] = [{**_tool_call(call), **rest.calls.get(number, {})} for number, call in calls]
    return {
        "index": index,
        "message": {**message, **rest.message},
        "logprobs": rest.logprobs,
        "finish_reason": choice.finish_reason,
        **rest.fields,
    }


def _tool_call(call: ToolCallTranscript) -> dict[str, Any]:
    if call.kind == "custom":
        return {"id": call.id, "type": "custom", "custom": {"name": call.name, "input": call.arguments}}
    # a call without arguments is an empty object to every SDK that parses them
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments or "{}"}}


# --- what no event carries


@dataclass(slots=True)
class _ChoiceRest:
    """What the frames say of one choice that its events do not. ``calls`` are by their index."""

    fields: dict[str, Any] = field(default_factory=dict)
    message: dict[str, Any] = field(default_factory=dict)
    calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    logprobs: dict[str, Any] | None = None
    has_reasoning: bool = False

    def add(self, choice: dict[str, Any], message: dict[str, Any]) -> bool:
        """Take in the choice of a frame that is whole; returns whether something has grown by it."""
        has_grown = False
        logprobs = choice.get("logprobs")
        if isinstance(logprobs, dict):
            has_grown = any(logprobs.values())
            self.logprobs = self.logprobs or {}
            for key, value in logprobs.items():
                self.logprobs[key] = _longer(self.logprobs.get(key), value)
        for key, value in message.items():
            if key in _STREAM_MESSAGE_KEYS:
                continue
            if key == "reasoning" and (value is None or isinstance(value, str)):
                self.has_reasoning = True  # the same as ``reasoning_content``, under another name
            elif key in _LABELS:
                self.message[key] = _later(self.message.get(key), value)
            else:
                has_grown |= bool(value) and isinstance(value, str | list | dict)
                self.message[key] = _longer(self.message.get(key), value)
        for call_index, call in _calls(choice):
            for key in call.keys() - _CALL_KEYS:
                known = self.calls.setdefault(call_index, {})
                known[key] = _later(known.get(key), call[key])
        return has_grown

    def add_fields(self, choice: dict[str, Any]) -> bool:
        """Take in what is said of the choice and not of its words; returns whether something has grown by it."""
        has_grown = False
        for key, value in choice.items():
            if key not in _STREAM_CHOICE_KEYS:
                known = self.fields.get(key)
                is_list = isinstance(value, list)
                has_grown |= is_list and bool(value)
                self.fields[key] = _longer(known, value) if is_list else _later(known, value)
        return has_grown


class _Rest:
    """What the frames of an answer say that its events do not.

    Most chunks are like the one before but for their text and their padding, and such a one says nothing new unless
    something grows by it: ``is_known`` tells without decoding it.
    """

    __slots__ = ("_end", "_head", "_is_padded", "_tail", "choices", "fields")

    def __init__(self) -> None:
        self.fields: dict[str, Any] = {}
        self.choices: dict[int, _ChoiceRest] = {}
        self._head: bytes | None = None
        self._tail = self._end = b""
        self._is_padded = False

    def is_known(self, frame: Frame, text: str) -> bool:
        """Whether a frame with nothing but ``text`` is the one taken in last, with another text."""
        if self._head is None:
            return False
        data = frame.data
        before = self._head + _encode(text) + self._tail
        padding = data[len(before) : len(data) - len(self._end)]
        if padding and not (self._is_padded and padding.isalnum()):
            return False
        return data == before + padding + self._end

    def add(self, frame: Frame, text: str | None, *, is_whole: bool) -> None:
        """Take in a frame; ``text`` is that of its only event, ``None`` where it has others."""
        self._head = None
        document = decode_frame(frame)
        if document is None:
            return
        for key, value in document.items():
            if key not in _STREAM_KEYS:
                self.fields[key] = _later(self.fields.get(key), value)
        has_grown = False
        for choice, message in _choices(document):
            rest = self.choices.setdefault(choice.get("index", 0), _ChoiceRest())
            has_grown |= rest.add_fields(choice)
            if is_whole:
                has_grown |= rest.add(choice, message)
        if text is not None and not has_grown:
            self._learn(frame.data, text)

    def _learn(self, data: bytes, text: str) -> None:
        written = _encode(text)
        before, found, after = data.partition(b'"content":' + written)
        if not found:
            return  # written in another way
        self._head, self._tail, self._end = before + b'"content":', after, b""
        padding = _PADDED.search(after)
        self._is_padded = padding is not None
        if padding is not None:
            self._tail, self._end = after[: padding.start(1)], after[padding.end(1) :]


def _gather(events: Sequence[Event]) -> _Rest:
    """Look at every frame once, in the order of their first events."""
    rest = _Rest()
    counts = Counter([id(event.frame) for event in events])
    for event in events:
        frame = event.frame
        if frame is None or frame.wire not in _WIRES or not (count := counts.pop(id(frame), 0)):
            continue
        text = event.text if type(event) is TextDelta and frame.event_count == 1 else None
        if text is None or not rest.is_known(frame, text):
            rest.add(frame, text, is_whole=count == frame.event_count)
    return rest


def _choices(document: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield each choice with what it says of its message."""
    for choice in document.get("choices") or ():
        yield choice, choice.get("delta") or choice.get("message") or {}


def _calls(choice: dict[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the calls of a choice with their index: their place, where it is not said."""
    message = choice.get("delta") or choice.get("message") or {}
    for place, call in enumerate(message.get("tool_calls") or ()):
        number = call.get("index")
        yield number if isinstance(number, int) else place, call


def _later(known: Any, value: Any) -> Any:
    """Return a field that was said before and is said again: what is not null counts."""
    if value is None:
        return known
    if isinstance(known, dict) and isinstance(value, dict):
        return {**known, **{key: _later(known.get(key), value[key]) for key in value}}
    return value


def _longer(known: Any, value: Any) -> Any:
    """Return a field that comes in pieces, with one more of them."""
    if isinstance(known, str) and isinstance(value, str):
        return known + value
    if isinstance(known, dict) and isinstance(value, dict):
        return _joined(known, value)
    if isinstance(value, list):
        items = known if isinstance(known, list) else []
        for item in value:
            _append(items, item)
        return items
    return _later(known, value)


def _append(items: list[Any], item: Any) -> None:
    """Append ``item``, or join it to the piece that it goes on with."""
    if isinstance(item, dict) and isinstance(item.get("index"), int) and "type" in item:
        for place in range(len(items) - 1, -1, -1):
            if isinstance(items[place], dict) and _is_same(items[place], item):
                items[place] = _joined(items[place], item)
                return
    items.append(item)


def _is_same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two pieces are of one thing."""
    if one.get("index") != other["index"] or one.get("type") != other["type"]:
        return False
    return not one.get("id") or not other.get("id") or one["id"] == other["id"]


def _joined(known: dict[str, Any], piece: dict[str, Any]) -> dict[str, Any]:
    """Return an object of which some fields come in pieces."""
    joined = {key: (_longer if key in _PIECES else _later)(known.get(key), piece[key]) for key in piece}
    return {**known, **joined}
