from __future__ import annotations

import dataclasses
from typing import get_args

import msgspec
import pytest

from gateway.core.continuation import Checkpoint, Continuation, Way
from gateway.core.events import StreamContinued, StreamStarted

CHECKPOINT = Checkpoint(target="a/m", token="opaque-token", character_count=12)
CONTINUATION = Continuation(
    way="exact", started=StreamStarted("id-1", "m"), text="the answer so far", checkpoint=CHECKPOINT
)


def test_representation_has_nothing_of_the_answer() -> None:
    """A token may hold what was said, so it is not shown either; where the answer stands is."""
    shown = repr(CONTINUATION)
    assert "answer" not in shown
    assert "opaque" not in shown
    assert "way='exact'" in shown
    assert "character_count=12" in shown


def test_an_attempt_from_the_start_needs_no_more_than_its_way() -> None:
    """Nothing was delivered, and the client knows no stream yet."""
    continuation = Continuation(way="restart")
    assert (continuation.started, continuation.text, continuation.checkpoint) == (None, "", None)


def test_it_cannot_be_changed_in_place() -> None:
    """It is part of a call."""
    for kept, name in ((CONTINUATION, "text"), (CHECKPOINT, "token")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(kept, name, "other")


def test_a_seam_is_told_in_the_same_words() -> None:
    """The event that announces it has the same three ways."""
    (field,) = (field for field in msgspec.structs.fields(StreamContinued) if field.name == "way")
    assert get_args(field.type) == get_args(Way) == ("restart", "exact", "anchored")
