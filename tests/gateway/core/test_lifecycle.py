from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.events import (
    AttemptFailed,
    CheckpointReached,
    ChoiceFinished,
    Event,
    ProviderExtra,
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
from gateway.core.lifecycle import Lifecycle

START = StreamStarted("a", "m")
USAGE = UsageReported(Usage(1, 1))
END = ChoiceFinished("stop")
FAILED = AttemptFailed("a/m", 1, "reset", "stream_truncated")
SEAM = StreamContinued("b/m", "a/m", "exact", 2, 1)
INDEX = st.integers(0, 1)
EVENTS = st.lists(
    st.one_of(
        st.just(START),
        st.just(USAGE),
        st.just(ProviderExtra()),
        st.just(FAILED),
        st.just(SEAM),
        st.builds(CheckpointReached, st.just("c"), INDEX),
        st.builds(TextDelta, st.just("t"), INDEX),
        st.builds(ReasoningDelta, st.just("t"), INDEX),
        st.builds(RefusalDelta, st.just("t"), INDEX),
        st.builds(ToolCallStarted, INDEX, st.just("c"), st.just("f"), st.just("function"), INDEX),
        st.builds(ToolCallDelta, INDEX, st.just("{}"), INDEX),
        st.builds(ChoiceFinished, st.just("stop"), st.just(""), INDEX),
    ),
    max_size=12,
)


def dropped(*events: Event) -> list[Event]:
    """Return which of a stream's events are not passed on."""
    lifecycle = Lifecycle()
    admitted = lifecycle.admit(events)
    assert lifecycle.dropped_count == len(events) - len(admitted)
    return [event for event in events if not any(event is one for one in admitted)]


def test_stream_in_legal_order_passes_untouched() -> None:
    """Start, deltas of all kinds, a call with its arguments, the finish, and usage or extras at any time."""
    legal: list[Event] = [
        USAGE,
        ProviderExtra(),
        START,
        ReasoningDelta("r"),
        TextDelta("t"),
        USAGE,
        TextDelta("t"),
        RefusalDelta("no"),
        ToolCallStarted(0, "c", "f"),
        ToolCallDelta(0, "{"),
        ToolCallDelta(0, "}"),
        END,
        USAGE,
        ProviderExtra(),
    ]
    assert dropped(*legal) == []


def test_nothing_is_said_before_the_start() -> None:
    """A delta or a finish of a stream that has not begun is dropped."""
    early: list[Event] = [TextDelta("t"), ToolCallStarted(0, "c", "f"), ChoiceFinished("stop")]
    assert dropped(*early, START, TextDelta("t")) == early


def test_stream_starts_once() -> None:
    """A second start is dropped."""
    again = StreamStarted("b", "m")
    assert dropped(START, again) == [again]


def test_finished_choice_says_no_more() -> None:
    """Words, calls and a second finish behind the finish are dropped; usage is not."""
    late: list[Event] = [
        TextDelta("t"),
        ReasoningDelta("r"),
        ToolCallStarted(0, "c", "f"),
        ToolCallDelta(0, "{}"),
        ChoiceFinished("length"),
    ]
    assert dropped(START, END, *late, USAGE) == late


def test_arguments_need_their_call() -> None:
    """Arguments of a call that never began, or of another choice's, are dropped."""
    strays: list[Event] = [ToolCallDelta(1, "{}"), ToolCallDelta(0, "{}", index=1)]
    assert dropped(START, ToolCallStarted(0, "c", "f"), *strays, ToolCallDelta(0, "{}")) == strays


def test_choices_finish_one_by_one() -> None:
    """The finish of one leaves the other open, and none counts as finished while any is open."""
    lifecycle = Lifecycle()
    lifecycle.admit([START, TextDelta("a", 0), TextDelta("b", 1), ChoiceFinished("stop", index=0)])
    assert lifecycle.finished_count == 0
    assert lifecycle.admit([TextDelta("c", 1)]) == [TextDelta("c", 1)]
    lifecycle.admit([ChoiceFinished("stop", index=1)])
    assert lifecycle.finished_count == 2


def test_open_call_keeps_its_choice_open() -> None:
    """A choice of which only a call was seen has not finished."""
    lifecycle = Lifecycle()
    lifecycle.admit([START, ToolCallStarted(0, "c", "f", index=1), ChoiceFinished("stop", index=0)])
    assert lifecycle.finished_count == 0


def test_choice_is_open_from_its_first_word_to_its_finish() -> None:
    """What may be said without a further look is said of an open choice only."""
    lifecycle = Lifecycle()
    was_open = []
    for event in (START, TextDelta("a", 1), ChoiceFinished("stop", index=1)):
        lifecycle.admit([event])
        was_open.append((lifecycle.is_open(0), lifecycle.is_open(1)))
    assert was_open == [(False, False), (False, True), (False, False)]


def test_a_failed_attempt_may_be_told_at_any_time() -> None:
    """Before the stream has started, while it runs, and behind its end."""
    assert dropped(FAILED, START, FAILED, TextDelta("t"), FAILED, END, FAILED) == []


@pytest.mark.parametrize("note", [SEAM, CheckpointReached("c")])
def test_a_seam_or_a_checkpoint_may_be_told_once_the_stream_has_started(note: Event) -> None:
    """What goes on must have begun; behind the end of a choice others may still go on."""
    early = copy.copy(note)
    assert dropped(early, START, note, TextDelta("t"), note, END, note) == [early]


def test_notes_open_no_choice() -> None:
    """A choice of which only a note was seen has nothing to finish."""
    lifecycle = Lifecycle()
    lifecycle.admit([START, CheckpointReached("c", 1), SEAM, FAILED, END])
    assert not lifecycle.is_open(1)
    assert lifecycle.finished_count == 1


def test_a_seam_leaves_the_choice_as_it_was() -> None:
    """Its text goes on; a second start is dropped, and so is a call under a number that was given."""
    again, call = StreamStarted("b", "m"), ToolCallStarted(0, "d", "g")
    events: list[Event] = [START, TextDelta("t"), ToolCallStarted(0, "c", "f"), SEAM]
    assert dropped(*events, again, TextDelta("t"), call, ToolCallDelta(0, "{}"), END) == [again, call]


def test_start_is_remembered() -> None:
    """Whether an attempt has begun is asked when it fails."""
    lifecycle = Lifecycle()
    assert not lifecycle.has_started
    lifecycle.admit([START])
    assert lifecycle.has_started


@given(EVENTS)
def test_what_passes_passes_again(events: list[Event]) -> None:
    """The events that are passed on are a legal stream themselves."""
    admitted = Lifecycle().admit(events)
    again = Lifecycle()
    assert again.admit(admitted) == admitted
    assert again.dropped_count == 0


@given(EVENTS, st.integers(0, 12))
def test_batches_make_no_difference(events: list[Event], cut: int) -> None:
    """Events that came in two reads are judged like those of one."""
    halves = Lifecycle()
    assert halves.admit(events[:cut]) + halves.admit(events[cut:]) == Lifecycle().admit(events)
