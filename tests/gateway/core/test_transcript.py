from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.core.continuation import Checkpoint
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


def test_notes_are_nothing_to_see() -> None:
    """Neither a failed attempt nor a seam nor a checkpoint is a piece of the answer."""
    transcript = fold(
        AttemptFailed("a/m", 1, "reset", "stream_truncated"),
        StreamContinued("b/m", "a/m", "restart", 2, 0),
        CheckpointReached("t"),
    )
    assert (transcript.delta_count, transcript.is_visible, transcript.choice().text) == (0, False, "")


def test_the_target_is_that_of_the_attempt_which_speaks_now() -> None:
    """The start's, and behind a seam the one that goes on; a failed one has nothing more to say."""
    transcript = Transcript()
    targets = [transcript.target]
    for event in (
        StreamStarted("i", "m", target="a/m"),
        AttemptFailed("a/m", 1, "reset", "stream_truncated", has_delivered=True),
        StreamContinued("b/m", "a/m", "exact", 2, 5),
        TextDelta("x"),
    ):
        transcript.add([event])
        targets.append(transcript.target)
    assert targets == ["", "a/m", "a/m", "b/m", "b/m"]
    assert transcript.started == StreamStarted("i", "m", target="a/m")


def test_a_checkpoint_is_its_targets_and_stands_behind_the_text_so_far() -> None:
    """The last one counts; behind a seam it is no longer the first target's."""
    start, seam = StreamStarted("i", "m", target="a/m"), StreamContinued("b/m", "a/m", "exact", 2, 5)
    events: list[Event] = [start, TextDelta("Hel"), CheckpointReached("1"), TextDelta("lo"), CheckpointReached("2")]
    assert fold(*events).choice().checkpoint == Checkpoint(target="a/m", token="2", character_count=5)
    events += [seam, TextDelta("!")]
    assert fold(*events).choice().checkpoint == Checkpoint(target="a/m", token="2", character_count=5)
    events.append(CheckpointReached("3"))
    assert fold(*events).choice().checkpoint == Checkpoint(target="b/m", token="3", character_count=6)


def test_each_choice_has_its_own_checkpoint() -> None:
    """Only its own text stands before it."""
    transcript = fold(TextDelta("long text"), TextDelta("ab", 1), CheckpointReached("t", 1))
    assert transcript.choice(0).checkpoint is None
    assert transcript.choice(1).checkpoint == Checkpoint(target="", token="t", character_count=2)


def test_pieces_of_text_and_reasoning_are_counted_for_each_choice() -> None:
    """What was used is estimated from them."""
    transcript = fold(ReasoningDelta("r"), TextDelta("a"), TextDelta("b"), TextDelta("c", 1), RefusalDelta("no"))
    counts = [(choice.text_delta_count, choice.reasoning_delta_count) for choice in transcript.choices.values()]
    assert counts == [(2, 1), (1, 0)]


@given(st.lists(st.text(st.characters(codec=None), min_size=1)))
def test_text_is_kept_to_the_character(texts: list[str]) -> None:
    """Line ends are not translated, and what is outside of the first plane is one character."""
    choice = fold(*map(TextDelta, texts)).choice()
    assert choice.text == "".join(texts)
    assert choice.character_count == sum(map(len, texts))


def test_line_ends_stay_as_they_are() -> None:
    """Those of Windows are two characters."""
    choice = fold(TextDelta("a\r"), TextDelta("\nb\rc\n")).choice()
    assert (choice.text, choice.character_count) == ("a\r\nb\rc\n", 7)


def test_representation_has_nothing_of_the_answer() -> None:
    """A transcript that ends up in a traceback gives nobody away."""
    transcript = fold(
        StreamStarted("i", "m"), TextDelta("hush"), ReasoningDelta("hush"), ToolCallStarted(0, "c", "f"),
        ToolCallDelta(0, "hush"), CheckpointReached("hush"),
    )  # fmt: skip
    assert "hush" not in repr(transcript)


@given(st.lists(st.text(min_size=1)), st.integers(0, 5))
def test_batches_make_no_difference(texts: list[str], cut: int) -> None:
    """What is delivered is the same in one read or in several."""
    events = [TextDelta(text) for text in texts]
    transcript = Transcript()
    transcript.add(events[:cut])
    transcript.add(events[cut:])
    assert transcript.choice().text == "".join(texts)
    assert transcript.delta_count == len(texts)
