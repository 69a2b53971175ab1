from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.core.events import (
    ChoiceFinished,
    Event,
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
from gateway.core.transcript import Transcript


def fold(*events: Event) -> Transcript:
    """Return what ``events`` amount to."""
    transcript = Transcript()
    transcript.add(events)
    return transcript


def test_nothing_delivered_is_an_empty_transcript() -> None:
    """Before the first event there is nothing to resume and nothing to see."""
    transcript = fold()
    assert (transcript.started, transcript.usage, transcript.delta_count) == (None, None, 0)
    assert not transcript.is_visible
    assert transcript.choice(3).text == ""


def test_text_reasoning_and_refusal_are_kept_apart() -> None:
    """Each is what was delivered of it, in its order."""
    choice = fold(
        ReasoningDelta("Let "),
        TextDelta("Hel"),
        RefusalDelta("No"),
        ReasoningDelta("me."),
        TextDelta("lo"),
        RefusalDelta("!"),
    ).choice()
    assert (choice.text, choice.reasoning, choice.refusal) == ("Hello", "Let me.", "No!")


def test_tool_calls_collect_their_arguments() -> None:
    """Each call has its own, however they are interleaved."""
    calls = (
        fold(
            ToolCallStarted(0, "a", "f"),
            ToolCallStarted(1, "b", "g", "custom"),
            ToolCallDelta(0, '{"x"'),
            ToolCallDelta(1, "free"),
            ToolCallDelta(0, ":1}"),
        )
        .choice()
        .tool_calls
    )
    assert [(call.id, call.name, call.kind, call.arguments) for call in calls.values()] == [
        ("a", "f", "function", '{"x":1}'),
        ("b", "g", "custom", "free"),
    ]


def test_choices_are_kept_apart() -> None:
    """Text and finish of one are not those of the other."""
    transcript = fold(TextDelta("a"), TextDelta("b", 1), ChoiceFinished("length", "MAX", 1))
    assert transcript.choice(0).finish_reason is None
    assert (transcript.choice(1).finish_reason, transcript.choice(1).native_reason) == ("length", "MAX")
    assert (transcript.choice(0).text, transcript.choice(1).text) == ("a", "b")


def test_start_and_last_usage_are_kept() -> None:
    """A running total is replaced, not summed."""
    start = StreamStarted("a", "m")
    transcript = fold(start, UsageReported(Usage(1, 1)), UsageReported(Usage(1, 2)))
    assert transcript.started is start
    assert transcript.usage == Usage(1, 2)


def test_only_what_a_user_could_see_is_visible() -> None:
    """A start, usage, an extra or a finish is nothing to see; a tool call is."""
    assert not fold(
        StreamStarted("a", "m"), UsageReported(Usage(1, 1)), ProviderExtra(), ChoiceFinished("stop")
    ).is_visible
    assert fold(ToolCallStarted(0, "c", "f")).is_visible
    assert fold(TextDelta("a")).is_visible


def test_deltas_are_counted() -> None:
    """Each piece of text, reasoning, refusal or a call is one."""
    events: list[Event] = [
        TextDelta("a"),
        ReasoningDelta("b"),
        RefusalDelta("c"),
        ToolCallStarted(0, "i", "f"),
        ToolCallDelta(0, "d"),
    ]
    assert fold(*events, ProviderExtra()).delta_count == 5


@given(st.lists(st.text(min_size=1)), st.integers(0, 5))
def test_batches_make_no_difference(texts: list[str], cut: int) -> None:
    """What is delivered is the same in one read or in several."""
    events = [TextDelta(text) for text in texts]
    transcript = Transcript()
    transcript.add(events[:cut])
    transcript.add(events[cut:])
    assert transcript.choice().text == "".join(texts)
    assert transcript.delta_count == len(texts)
