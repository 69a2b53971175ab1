from __future__ import annotations

import gc
from typing import get_args

import msgspec
import pytest

from gateway.core.events import (
    TOKEN_EVENTS,
    AttemptFailed,
    Delta,
    Event,
    Frame,
    Note,
    ProviderExtra,
    ReasoningDelta,
    StreamStarted,
    TextDelta,
    ToolCallStarted,
    Usage,
)


@pytest.mark.parametrize("kind", get_args(Event))
def test_every_event_can_carry_its_frame_and_lose_it(kind: type[msgspec.Struct]) -> None:
    """Whoever alters an event drops the JSON that it came in with."""
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    assert fields["frame"].default is None


@pytest.mark.parametrize("kind", [*get_args(Event), Frame, Usage])
def test_events_cannot_be_changed_in_place(kind: type[msgspec.Struct]) -> None:
    """An event that several middlewares look at is the same for all of them."""
    assert kind.__struct_config__.frozen
    assert not kind.__struct_config__.gc


def test_altered_event_is_a_new_one() -> None:
    """The old one keeps its text and its frame."""
    event = TextDelta("a", frame=Frame(b"{}", "x", 1))
    altered = msgspec.structs.replace(event, text="b", frame=None)
    assert (event.text, event.frame) == ("a", Frame(b"{}", "x", 1))
    assert altered == TextDelta("b")
    with pytest.raises(AttributeError):
        event.text = "c"  # type: ignore[misc]  # that this fails is the point


def test_long_stream_gives_the_collector_nothing_to_walk() -> None:
    """Ten thousand events are not tracked."""
    events = [TextDelta("a", frame=Frame(b"{}", "x", 1)) for _ in range(10_000)]
    assert not any(gc.is_tracked(event) for event in events)


def test_progress_is_what_a_user_could_see() -> None:
    """A start or an extra is no token."""
    assert isinstance(ReasoningDelta("a"), TOKEN_EVENTS)
    assert isinstance(ToolCallStarted(0, "c", "f"), TOKEN_EVENTS)
    assert not isinstance(StreamStarted("a", "m"), TOKEN_EVENTS)
    assert not isinstance(ProviderExtra(), TOKEN_EVENTS)


def test_every_delta_is_progress_and_no_note_is() -> None:
    """The tuple that is asked at run time is the union that is checked before."""
    assert get_args(Delta) == TOKEN_EVENTS
    assert not set(get_args(Note)) & set(TOKEN_EVENTS)
    assert {*get_args(Delta), *get_args(Note)} < set(get_args(Event))


def test_a_failed_attempt_is_told_by_labels_only() -> None:
    """No message: a provider's words may hold something of the prompt."""
    names = [field.name for field in msgspec.structs.fields(AttemptFailed)]
    assert names == ["target", "attempt", "error_type", "code", "has_delivered", "frame"]
    assert not AttemptFailed("a/m", 1, "reset", "stream_truncated").has_delivered
