from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from gateway.core.errors import StreamInterrupted
from gateway.core.events import Event, ToolCallDelta, ToolCallStarted
from gateway.providers.google_calls import CallReader, FunctionCall


def events_of(*said: dict[str, Any], reader: CallReader | None = None, index: int = 0) -> list[Event]:
    """Return the events of calls, or of pieces of them, that one candidate makes."""
    reader = reader or CallReader()
    parts = [msgspec.json.decode(json.dumps(one), type=FunctionCall) for one in said]
    return [event for part in parts for event in reader.read(part, index, "a1")]


def calls(*said: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return id, name and arguments of all calls."""
    events = events_of(*said)
    begun = [event for event in events if isinstance(event, ToolCallStarted)]
    arguments = [event.arguments for event in events if isinstance(event, ToolCallDelta)]
    return [(one.id, one.name, written) for one, written in zip(begun, arguments, strict=True)]


def piece(path: str, *, more: bool | None = None, **value: Any) -> dict[str, Any]:
    """Return one piece of arguments."""
    return {"jsonPath": path, **value} if more is None else {"jsonPath": path, **value, "willContinue": more}


def test_function_calls_get_ids_made_of_the_answers() -> None:
    """Every call is told whole, compact and with an id that is the same in every run."""
    found = calls(
        {"name": "f", "args": {"a": 1.0, "b": [2]}}, {"name": "g", "id": "own"}, {}, {"name": "h", "args": {}}
    )
    assert found == [("call_a1_0", "f", '{"a":1.0,"b":[2]}'), ("own", "g", "{}"), ("call_a1_2", "h", "{}")]


def test_calls_of_candidates_are_counted_apart_and_named_together() -> None:
    """Each candidate's begin with the first; no two of an answer have the same id."""
    reader = CallReader()
    begun = [
        event
        for index in (0, 1, 0)
        for event in events_of({"name": "f"}, reader=reader, index=index)
        if isinstance(event, ToolCallStarted)
    ]
    assert [(one.index, one.call_index, one.id) for one in begun] == [
        (0, 0, "call_a1_0"),
        (1, 0, "call_a1_1"),
        (0, 1, "call_a1_2"),
    ]


def test_arguments_in_pieces_are_put_together() -> None:
    """A call that Vertex sends in pieces is told when it is whole, and only then."""
    found = calls(
        {"name": "f", "willContinue": True},
        {"partialArgs": [piece("$.rooms[0].name", stringValue="Kit", more=True)], "willContinue": True},
        {"partialArgs": [piece("$.rooms[0].name", stringValue="chen")], "willContinue": True},
        {"willContinue": True},
        {
            "partialArgs": [piece("$.rooms[1]", numberValue=2), piece("$['a.b']", boolValue=True)],
            "willContinue": True,
        },
        {"partialArgs": [piece('$["q\\"r"]', nullValue="NULL_VALUE")], "willContinue": True},
        {},
        {"name": "g", "partialArgs": [piece("$.n", numberValue=0.5)]},
    )
    first = {"rooms": [{"name": "Kitchen"}, 2], "a.b": True, 'q"r': None}
    assert [(name, json.loads(arguments)) for _, name, arguments in found] == [("f", first), ("g", {"n": 0.5})]


def test_last_piece_may_come_with_the_end_of_the_call() -> None:
    """A piece that does not say that the call will continue ends it; one that does itself does not."""
    found = calls(
        {"name": "f", "id": "i", "partialArgs": [piece("$.a", stringValue="x", more=True)]},
        {"partialArgs": [piece("$.a", stringValue="y")]},
    )
    assert found == [("i", "f", '{"a":"xy"}')]


def test_call_that_has_not_ended_is_known_as_such_and_not_told() -> None:
    """Each candidate may be in the middle of one."""
    reader = CallReader()
    assert events_of({"name": "f", "willContinue": True}, reader=reader, index=3) == []
    assert (list(reader.open_indices()), reader.has_called(3)) == ([3], False)
    assert len(events_of({}, reader=reader, index=3)) == 2
    assert (list(reader.open_indices()), reader.has_called(3)) == ([], True)
    assert not reader.has_called(0)


@pytest.mark.parametrize(
    "said",
    [
        {"args": {"a": 1}},
        {"willContinue": True},
        {"name": "f", "args": [1]},
        {"name": "f", "args": "x"},
        {"name": "f", "partialArgs": [piece("rooms", numberValue=1)]},
        {"name": "f", "partialArgs": [piece("$", numberValue=1)]},
        {"name": "f", "partialArgs": [piece("$.a b[", numberValue=1)]},
        {"name": "f", "partialArgs": [piece("$.a[7]", numberValue=1)]},
        {"name": "f", "partialArgs": [piece("$[0]", numberValue=1)]},
        {"name": "f", "partialArgs": [piece("$.a", numberValue=1), piece("$.a.b", numberValue=1)]},
        {"name": "f", "partialArgs": [piece("$" + ".a" * 65, numberValue=1)]},
    ],
)
def test_call_that_is_none_is_refused(said: dict[str, Any]) -> None:
    """What cannot be told as a call is not guessed at."""
    with pytest.raises(StreamInterrupted) as caught:
        calls(said)
    assert caught.value.code == "malformed_stream"


def test_call_inside_another_is_refused() -> None:
    """Which of the two the next piece belongs to could not be known."""
    with pytest.raises(StreamInterrupted):
        calls({"name": "f", "willContinue": True}, {"name": "g"})


def test_arguments_that_are_not_utf8_are_refused() -> None:
    """Arguments are handed on as text, so they must be some."""
    with pytest.raises(StreamInterrupted) as caught:
        CallReader().read(FunctionCall(name="f", args=msgspec.Raw(b'{"a":"\xff"}')), 0, "a1")
    assert caught.value.code == "malformed_stream"
