from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from gateway.core.call import Call
from gateway.core.errors import StreamInterrupted, UpstreamError, UpstreamFailed
from gateway.core.events import (
    OPENAI_ANSWER,
    ChoiceFinished,
    Event,
    Frame,
    StreamStarted,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
    UsageReported,
)
from gateway.core.lifecycle import Lifecycle
from gateway.providers import openai_answer
from gateway.providers.errors import NOT_JSON
from gateway.providers.openai_answer import read_answer
from tests.gateway.providers.openai_chunks import (
    CALL,
    IDENTITY,
    KNOWN,
    START,
    bare,
    known,
    piece,
)
from tests.gateway.providers.openai_oddities import CHUNKS, FAILURES, MISSING, ODD, TREES, changed


def answer(message: dict[str, Any], finish: str | None = "stop", **fields: Any) -> dict[str, Any]:
    """Return a whole answer."""
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    return {**IDENTITY, "object": "chat.completion", "choices": [choice], **fields}


def read(document: Any) -> list[Event]:
    """Return the events of a whole answer, without their frames."""
    return bare(read_answer(CALL, msgspec.json.encode(document)))


def test_a_whole_answer_keeps_its_bytes() -> None:
    """All its events share one frame, which is the body itself."""
    body = msgspec.json.encode(
        answer({"content": "a", "refusal": None}, usage={"prompt_tokens": 3, "completion_tokens": 1}, x_extra={})
    )
    events = read_answer(CALL, body)
    assert bare(events) == [START, TextDelta("a"), ChoiceFinished("stop", "stop"), UsageReported(Usage(3, 1))]
    frame = events[0].frame
    assert frame is not None
    assert frame.data is body
    assert (frame.wire, frame.event_count) == (OPENAI_ANSWER, 4)


def test_calls_of_a_whole_answer_are_numbered_and_left_alone() -> None:
    """They have no index, and need none."""
    custom = {"id": "b", "type": "custom", "custom": {"name": "g", "input": "x"}}
    document = answer({"content": None, "tool_calls": [piece(None, "{}", "a", "f"), custom]}, "tool_calls")
    assert read(document)[1:-1] == [
        ToolCallStarted(0, "a", "f"),
        ToolCallDelta(0, "{}"),
        ToolCallStarted(1, "b", "g", "custom"),
        ToolCallDelta(1, "x"),
    ]
    assert read_answer(CALL, body := msgspec.json.encode(document))[0].frame == Frame(body, OPENAI_ANSWER, 6)
    legacy = answer({"content": None, "function_call": {"name": "f", "arguments": "{}"}}, "function_call")
    assert read(legacy)[1:3] == [ToolCallStarted(0, "", "f", "legacy"), ToolCallDelta(0, "{}")]


def test_a_whole_answer_is_mended_where_it_must_be() -> None:
    """As a chunk is."""
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "a"}]
    odd = {"choices": [{"message": {"content": parts, "x": 1}, "finish_reason": "eos"}]}
    [event, *_] = read_answer(CALL, msgspec.json.encode(odd))
    assert event.frame is not None
    assert msgspec.json.decode(event.frame.data) == {
        "id": "chatcmpl-t",
        "created": 7,
        "model": "gpt",
        "choices": [
            {"index": 0, "message": {"content": "a", "x": 1, "reasoning_content": "hm"}, "finish_reason": "stop"}
        ],
    }


def test_choices_of_a_whole_answer_are_told_apart() -> None:
    """With or without a number."""
    document = answer({"content": "a"})
    document["choices"] = [{"message": {"content": word}, "finish_reason": "stop"} for word in "ab"]
    assert TextDelta("b", 1) in read(document)


PLAIN: dict[str, Any] = {
    "id": "c1",
    "object": "chat.completion",
    "created": 5,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "a", "refusal": None, "annotations": [], "tool_calls": []},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": {
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "total_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 1, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    },
    "x_groq": {"id": "req"},
    "service_tier": "default",
}
CHOICE, MESSAGE, USAGE = ("choices", 0), ("choices", 0, "message"), ("usage",)
PLACES: list[tuple[str | int, ...]] = [
    *[(key,) for key in (*PLAIN, "error")],
    *[(*CHOICE, key) for key in ("index", "message", "delta", "finish_reason", "logprobs")],
    *[(*MESSAGE, key) for key in ("role", "content", "refusal", "reasoning_content", "reasoning", "tool_calls")],
    (*MESSAGE, "function_call"),
    *[(*USAGE, key) for key in (*PLAIN["usage"], "reasoning_tokens", "prompt_cache_hit_tokens")],
    *[(*USAGE, "prompt_tokens_details", key) for key in ("cached_tokens", "cache_write_tokens")],
    (*USAGE, "completion_tokens_details", "reasoning_tokens"),
    *[("x_groq", key) for key in ("usage", "error")],
]


def outcome(call: Call, body: bytes) -> list[Event] | tuple[type[UpstreamError], str, str]:
    """Return the events of a whole answer, or what its error is."""
    try:
        return read_answer(call, body)
    except UpstreamError as error:
        return type(error), error.code, error.message


def is_plain(body: bytes) -> bool:
    """Whether a whole answer is read in one go."""
    try:
        openai_answer._decode_plain_answer(body)
    except NOT_JSON:
        return False
    return True


@pytest.mark.parametrize("place", PLACES)
def test_a_plain_answer_is_read_like_any_other(place: tuple[str | int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is all but plain is, too: whatever stands in one place of it, both ways say the same."""
    bodies = [msgspec.json.encode(changed(PLAIN, place, value)) for value in (*ODD, MISSING)]
    bodies += [msgspec.json.encode(PLAIN), msgspec.json.encode(PLAIN)[:-1], b'{"choices":' + b"[" * 100_000]
    calls = [CALL, structs.replace(CALL, target=None), known(KNOWN)]
    told = [outcome(call, body) for call in calls for body in bodies]
    plain_count = sum(map(is_plain, bodies))
    assert 0 < plain_count < len(bodies)
    monkeypatch.setattr(openai_answer, "_decode_plain_answer", msgspec.json.Decoder(None).decode)
    assert [outcome(call, body) for call in calls for body in bodies] == told
    assert not any(map(is_plain, bodies))


@pytest.mark.parametrize(("document", "kind", "code"), [case for case in FAILURES if "x_groq" not in case[0]])
def test_an_error_in_a_whole_answer_is_raised(document: Any, kind: type[UpstreamError], code: str) -> None:
    """A status of 200 does not make it an answer."""
    with pytest.raises(kind) as raised:
        read(document)
    assert raised.value.code == code


def test_a_whole_answer_that_failed_is_raised() -> None:
    """By its finish reason."""
    with pytest.raises(UpstreamFailed):
        read(answer({"content": "a"}, "error"))


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b"{}", b'{"choices": []}', b'{"choices": null}', b"[" * 99_999]
)
def test_a_body_that_is_no_answer_is_malformed(body: bytes) -> None:
    """Whatever it is instead."""
    with pytest.raises(StreamInterrupted) as raised:
        read_answer(CALL, body)
    assert raised.value.code == "malformed_stream"


@given(st.binary(max_size=200))
def test_arbitrary_bytes_only_raise_errors_of_the_tree(data: bytes) -> None:
    """A document is hardly ever among them."""
    with suppress(UpstreamError):
        read_answer(CALL, data)


@given(CHUNKS | TREES)
def test_arbitrary_answers_only_raise_errors_of_the_tree(document: Any) -> None:
    """Or are one, in legal order."""
    try:
        events = read_answer(CALL, msgspec.json.encode(document))
    except UpstreamError:
        return
    assert Lifecycle().admit(events) == events


def test_a_whole_answer_keeps_the_known_name_too() -> None:
    """Its start is apart from its document."""
    message = {"role": "assistant", "content": "a"}
    body = msgspec.json.encode({**IDENTITY, "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})
    start, *rest = read_answer(known(KNOWN), body)
    assert start == StreamStarted("first", "model-1", 3, target="openai/gpt")
    assert bare(rest) == [TextDelta("a"), ChoiceFinished("stop", "stop")]
    frame = rest[0].frame
    assert frame is not None
    assert frame.event_count == 2
    assert msgspec.json.decode(frame.data)["id"] == "first"
