from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.call import Call, Message, Source, TextPart
from gateway.core.errors import InvalidRequest, UnknownModel
from gateway.core.events import (
    AttemptFailed,
    CheckpointReached,
    ChoiceFinished,
    Event,
    Frame,
    ReasoningDelta,
    RefusalDelta,
    StreamContinued,
    StreamStarted,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
    UsageReported,
)
from gateway.dialects.plain_text import PlainText

CALL = Call(request_id="t", model="default")
EVENTS: list[Event] = [
    StreamStarted("a", "m"),
    ReasoningDelta("hm"),
    TextDelta("né"),
    TextDelta("other", 1),
    ToolCallStarted(0, "a", "f"),
    ToolCallDelta(0, "{}"),
    TextDelta("!", frame=Frame(b"{}", "w", 1)),
    ChoiceFinished("stop"),
    UsageReported(Usage(1, 1)),
]


def parse(body: dict[str, Any]) -> Call:
    """Return the call that a body becomes."""
    return PlainText().parse(msgspec.json.encode(body), CALL)


def test_a_message_becomes_a_call_that_streams() -> None:
    """Of the default model, and written from its fields by every provider."""
    call = parse({"message": "Hi", "x_extra": 1})
    assert call.messages == (Message(role="user", parts=(TextPart("Hi"),)),)
    assert (call.model, call.stream, call.include_usage, call.source) == ("default", True, False, Source("", {}))


@pytest.mark.parametrize(("model", "asked"), [("a/b", "a/b"), (None, "default"), ("", "default")])
def test_a_model_may_be_named(model: str | None, asked: str) -> None:
    """No name is the default."""
    assert parse({"message": "Hi", "model": model}).model == asked


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "message"),
        ({"message": None}, "message"),
        ({"message": ["Hi"]}, "message"),
        ({"message": ""}, "message"),
        ({"message": " \n"}, "message"),
        ({"message": "Hi", "model": 7}, "model"),
    ],
)
def test_a_fault_is_told_with_its_place(body: dict[str, Any], param: str) -> None:
    """The page can say what to mend."""
    with pytest.raises(InvalidRequest) as refused:
        parse(body)
    assert refused.value.param == param
    assert refused.value.message.startswith(f"{param}: expected ")


@pytest.mark.parametrize("body", [b"", b"message=Hi", b"[]", b'{"message": "\xff"}', b"[" * 100_000])
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    """Whatever its content type says."""
    with pytest.raises(InvalidRequest):
        PlainText().parse(body, CALL)


@given(st.binary(max_size=60))
def test_arbitrary_bytes_are_refused(body: bytes) -> None:
    """Nothing else is raised."""
    with pytest.raises(InvalidRequest):
        PlainText().parse(body, CALL)


def test_only_the_visible_text_of_the_first_choice_is_written() -> None:
    """No reasoning, no tool call, no other choice, and nothing around it."""
    assert PlainText().encoder(CALL).encode(EVENTS) == "né!".encode()
    assert PlainText().answer(CALL, EVENTS) == "né!".encode()


def test_what_the_gateway_notes_has_no_bytes() -> None:
    """A seam cannot be seen, and what went before the first word does not commit the response."""
    notes: list[Event] = [
        AttemptFailed("a/m", 1, "reset", "upstream_unreachable"),
        StreamContinued("b/m", "a/m", "exact", 2, 3),
        CheckpointReached("token"),
    ]
    assert PlainText().encoder(CALL).encode(notes) == b""
    assert PlainText().answer(CALL, [TextDelta("a"), *notes, TextDelta("b")]) == b"ab"


def test_a_refusal_is_visible_text() -> None:
    """It is what the model says to its reader."""
    assert PlainText().encoder(CALL).encode([RefusalDelta("No")]) == b"No"


def test_end_error_and_heartbeat_have_no_bytes() -> None:
    """Whatever is sent would be shown: the end that is missing tells an error."""
    encoder = PlainText().encoder(CALL)
    assert (encoder.finish(), encoder.error(UnknownModel("No")), encoder.heartbeat()) == (b"", b"", b"")
    assert PlainText.content_type == "text/plain; charset=utf-8"


def test_an_error_before_the_first_byte_is_json() -> None:
    """As on the other paths."""
    body = PlainText().error_body(UnknownModel("No such model", param="model"), "r1")
    assert msgspec.json.decode(body) == {
        "error": {
            "message": "No such model",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }
    }
