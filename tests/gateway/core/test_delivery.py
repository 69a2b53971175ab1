from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from gateway.core.delivery import (
    CHARACTERS_PER_TOKEN,
    MOST_CHARACTERS_PER_TOKEN,
    NEW_BLOCK,
    AnswerComplete,
    Attempt,
    Delivery,
    delivered_tokens,
)
from gateway.core.errors import StreamInterrupted
from gateway.core.events import (
    AttemptFailed,
    CheckpointReached,
    ChoiceFinished,
    Event,
    Frame,
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
from gateway.core.seam import AnchorTrim, SpaceTrim, StopTrim, Trim, seam_not_found
from gateway.core.transcript import ChoiceTranscript, Transcript

START = StreamStarted("c1", "m", 7, target="a/x")
AGAIN = StreamStarted("c2", "n", 8, target="b/y")
CALL = (ToolCallStarted(0, "id", "f"), ToolCallDelta(0, '{"a":'), ToolCallDelta(0, "1}"))
STOP = ChoiceFinished("stop")
FRAME = Frame(b"{}", "w", 1)


class Client:
    """Takes what is delivered. ``batches`` is each ``send``, ``events`` all of them."""

    def __init__(self, *, holds_calls: bool = True, transcript: Transcript | None = None) -> None:
        self.batches: list[Sequence[Event]] = []
        self.delivery = Delivery(self.batches.append, holds_calls=holds_calls, transcript=transcript)

    @property
    def events(self) -> list[Event]:
        """All that came, in its order."""
        return [event for batch in self.batches for event in batch]

    @property
    def usage(self) -> Usage | None:
        """The last usage that was reported."""
        return self.delivery.transcript.usage

    def hears(self, *events: Event) -> None:
        """One read of the attempt that is being made."""
        self.delivery.send(list(events))

    def begins(
        self, number: int = 2, *, target: str = "b/y", check: Callable[[str], None] | None = None, **more: object
    ) -> None:
        """Another attempt is made; exact, if nothing else is said."""
        options = {"way": "exact", **more}
        self.delivery.begin(Attempt(target=target, number=number, check=check, **options))  # type: ignore[arg-type]  # of a test


@pytest.fixture
def client() -> Client:
    """A client that was promised whole tool calls, and has not heard anything yet."""
    return Client()


@pytest.fixture
def broken() -> Client:
    """A client that has ``Hello wor`` of an answer that broke off."""
    client = Client()
    client.hears(START, TextDelta("Hello"))
    client.hears(TextDelta(" wor"))
    client.batches.clear()
    return client


# --- the first attempt


def test_what_nothing_has_to_be_done_to_passes_as_it_is(client: Client) -> None:
    """The very same batches: text, reasoning, refusals, extras, checkpoints, usage and the finish."""
    batches: list[list[Event]] = [
        [START, ReasoningDelta("hm")],
        [TextDelta("a", frame=FRAME)],
        [TextDelta("b"), TextDelta("c")],
        [TextDelta("d", 1), RefusalDelta("no", 1)],
        [],
        [ProviderExtra(), CheckpointReached("t")],
        [STOP, UsageReported(Usage(3, 5))],
        [AttemptFailed("a/x", 1, "reset", "c")],
    ]
    for batch in batches:
        client.delivery.send(batch)
    client.delivery.finish()
    assert len(client.batches) == len(batches)
    assert all(sent is batch for sent, batch in zip(client.batches, batches, strict=True))


def test_the_transcript_is_what_was_delivered(client: Client) -> None:
    """Whether it took the short way or the long one."""
    reference = Transcript()
    batches: list[list[Event]] = [[START, TextDelta("a")], [TextDelta("bc"), TextDelta("d")], [TextDelta("e", 1), STOP]]
    for batch in batches:
        client.delivery.send(batch)
        reference.add(batch)
    got = client.delivery.transcript
    assert (got.started, got.target, got.delta_count) == (START, "a/x", reference.delta_count)
    for index in (0, 1):
        one, other = got.choice(index), reference.choice(index)
        assert (one.text, one.text_delta_count) == (other.text, other.text_delta_count)
        assert (one.finish_reason, one.character_count) == (other.finish_reason, other.character_count)


@pytest.mark.parametrize(
    "batch",
    [
        (TextDelta("b"),),
        [TextDelta("b"), UsageReported(Usage(3, 2))],
        [UsageReported(Usage(3, 1)), TextDelta("b"), TextDelta("c"), UsageReported(Usage(3, 3))],
        [UsageReported(Usage(3, 1))],
        [TextDelta("b"), TextDelta("x", 1)],
        [TextDelta("b"), ReasoningDelta("hm"), UsageReported(Usage(3, 2))],
        (ReasoningDelta("hm"),),
        [ReasoningDelta("h"), UsageReported(Usage(3, 1)), ReasoningDelta("m")],
        [ReasoningDelta("x", 1)],
        [],
    ],
)
def test_a_batch_is_taken_in_alike_behind_text_and_behind_anything_else(batch: Sequence[Event]) -> None:
    """Whoever made it, of whatever kinds: it is passed on as it is, and the transcript and the usage know of it."""
    short, long = Client(), Client()
    reference = Transcript()
    for client in (short, long):
        client.hears(START, TextDelta("a"))
        client.hears(TextDelta("a"))
    long.hears(ProviderExtra())
    for client in (short, long):
        client.delivery.send(batch)
        client.delivery.send(batch)
        client.delivery.settle()
    begun: list[list[Event]] = [[START, TextDelta("a")], [TextDelta("a")]]
    for taken in (*begun, batch, batch):
        reference.add(taken)
    assert short.batches[-1] is short.batches[-2] is batch
    for client in (short, long):
        for index in (0, 1):
            thought, reasoned = client.delivery.transcript.choice(index), reference.choice(index)
            assert (thought.reasoning, thought.reasoning_delta_count) == (
                reasoned.reasoning,
                reasoned.reasoning_delta_count,
            )
    for client in (short, long):
        got = client.delivery.transcript
        assert (got.usage, got.delta_count) == (reference.usage, reference.delta_count)
        assert got.input_tokens == (reference.usage.input_tokens if reference.usage else None)
        for index in (0, 1):
            one, other = got.choice(index), reference.choice(index)
            assert (one.text, one.text_delta_count) == (other.text, other.text_delta_count)


def test_the_transcript_is_the_same_whenever_it_is_looked_at() -> None:
    """What was passed on last is in it at once, and once."""
    batches: list[list[Event]] = [
        [START, TextDelta("a")], [TextDelta("b")], [ReasoningDelta("r")], [ReasoningDelta("s"), TextDelta("c")],
        [TextDelta("d"), TextDelta("e")], [TextDelta("f")], [UsageReported(Usage(3, 5))], [STOP],
    ]  # fmt: skip
    for looked_at in range(2 ** len(batches)):
        client, reference = Client(), Transcript()
        for number, batch in enumerate(batches):
            client.delivery.send(batch)
            reference.add(batch)
            if looked_at >> number & 1:
                got = client.delivery.transcript
                assert (got.choice().text, got.delta_count) == (reference.choice().text, reference.delta_count)
        got = client.delivery.transcript
        assert (got.choice().text, got.choice().reasoning, got.delta_count) == ("abcdef", "rs", 8)
        assert (got.usage, got.choice().finish_reason) == (Usage(3, 5), "stop")


def test_a_transcript_that_has_begun_elsewhere_is_gone_on_with() -> None:
    """It is the very same object, for whoever is asked next."""
    begun = Transcript()
    begun.add([START, TextDelta("Hello")])
    client = Client(transcript=begun)
    client.begins()
    client.hears(TextDelta("!"), STOP)
    assert client.delivery.transcript is begun
    assert begun.choice().text == "Hello!"


# --- tool calls


def test_a_tool_call_is_held_until_its_choice_has_finished(client: Client) -> None:
    """Its text goes on meanwhile; then the call comes whole, in its order, before the finish."""
    client.hears(START, TextDelta("I look."))
    client.hears(*CALL[:2])
    client.hears(CALL[2], TextDelta(" Wait."))
    assert client.events == [START, TextDelta("I look."), TextDelta(" Wait.")]
    finish = ChoiceFinished("tool_calls")
    client.hears(finish)
    assert client.batches[-1] == [*CALL, finish]


def test_a_call_in_the_read_of_its_finish_passes_as_it_is(client: Client) -> None:
    """It is whole: the very same batch goes on."""
    batch: list[Event] = [START, *CALL, ChoiceFinished("tool_calls")]
    client.delivery.send(batch)
    assert client.batches[0] is batch


def test_a_call_is_not_held_where_nobody_would_make_it_again() -> None:
    """Its pieces come as the provider sends them."""
    client = Client(holds_calls=False)
    batches: list[list[Event]] = [[START, CALL[0]], [CALL[1]], [CALL[2]], [ChoiceFinished("tool_calls")]]
    for batch in batches:
        client.delivery.send(batch)
    assert all(sent is batch for sent, batch in zip(client.batches, batches, strict=True))


def test_a_start_with_nothing_but_a_call_is_held_with_it(client: Client) -> None:
    """An attempt that dies in its first call has left no trace."""
    client.hears(START, CALL[0])
    client.hears(UsageReported(Usage(3, 1)), ProviderExtra())
    assert client.batches == []
    assert not client.delivery.transcript.is_visible
    client.hears(*CALL[1:])
    client.hears(ChoiceFinished("tool_calls"))
    assert client.batches == [
        [START, UsageReported(Usage(3, 1)), ProviderExtra(), *CALL, ChoiceFinished("tool_calls")],
    ]


@pytest.mark.parametrize("first", [TextDelta("a"), TextDelta("a", 1), ReasoningDelta("a"), RefusalDelta("a")])
def test_a_start_that_was_held_comes_before_whatever_is_shown_first(client: Client, first: Event) -> None:
    """A client must hear the beginning at the beginning, also when text follows the call."""
    client.hears(START, CALL[0])
    client.hears(first)
    client.hears(TextDelta("b"))
    assert client.batches == [[START, first], [TextDelta("b")]]


def test_the_calls_of_each_choice_wait_for_its_own_finish(client: Client) -> None:
    """One that finishes first does not release those of another."""
    other = [structs.replace(event, index=1) for event in CALL]
    client.hears(START, *CALL, *other)
    client.hears(ChoiceFinished("tool_calls", index=1))
    assert client.events == [START, *other, ChoiceFinished("tool_calls", index=1)]
    client.hears(ChoiceFinished("tool_calls"))
    assert client.events[5:] == [*CALL, ChoiceFinished("tool_calls")]


def test_a_provider_that_tells_no_finish_has_its_calls_released_at_the_end(client: Client) -> None:
    """Its end marker has to do."""
    client.hears(START, *CALL)
    client.delivery.finish()
    assert client.batches == [[START, *CALL]]
    client.delivery.finish()
    assert len(client.batches) == 1


# --- another attempt, before there is anything to see


def test_what_was_held_of_an_attempt_that_failed_is_forgotten(client: Client) -> None:
    """The next one makes its own call, under its own name."""
    client.hears(START, *CALL[:2])
    client.begins(way="restart")
    again = ToolCallStarted(0, "id2", "g")
    client.hears(AGAIN, again, ChoiceFinished("tool_calls"))
    assert client.events == [AGAIN, again, ChoiceFinished("tool_calls")]


def test_an_answer_that_is_begun_again_unseen_has_no_seam(client: Client) -> None:
    """Its batches pass as they are."""
    client.hears(START, CALL[0])
    client.begins(way="restart")
    batch: list[Event] = [AGAIN, TextDelta("a")]
    client.delivery.send(batch)
    assert client.batches == [batch]
    assert client.batches[0] is batch


def test_a_start_that_the_client_knows_is_not_told_twice(client: Client) -> None:
    """It keeps the name under which the answer was begun."""
    client.hears(START)
    client.begins(way="restart")
    client.hears(AGAIN, TextDelta("a"))
    assert client.events == [START, TextDelta("a")]
    assert client.delivery.transcript.started is START


# --- another attempt, behind the seam


def test_a_seam_is_told_once_just_before_what_is_new(broken: Client) -> None:
    """Who goes on, from whom, in which way, and where; the second start is not told."""
    broken.begins(3)
    broken.hears(AGAIN, ProviderExtra(FRAME), UsageReported(Usage(9, 1)))
    assert not any(isinstance(event, StreamContinued | StreamStarted) for event in broken.events)
    broken.hears(TextDelta("ld"))
    broken.hears(TextDelta("!"), STOP)
    assert [event for event in broken.events if not isinstance(event, UsageReported)] == [
        ProviderExtra(FRAME),
        StreamContinued("b/y", "a/x", "exact", 3, 9),
        TextDelta("ld"),
        TextDelta("!"),
        STOP,
    ]
    transcript = broken.delivery.transcript
    assert (transcript.choice().text, transcript.target, transcript.started) == ("Hello world!", "b/y", START)


def test_an_attempt_that_brought_nothing_has_no_seam(broken: Client) -> None:
    """The next one goes on from the same place, from the target that spoke last."""
    broken.begins(2)
    broken.hears(AGAIN)
    broken.begins(3, target="c/z", way="anchored")
    broken.hears(TextDelta("ld"))
    assert broken.events == [StreamContinued("c/z", "a/x", "anchored", 3, 9), TextDelta("ld")]


def test_each_attempt_that_goes_on_has_its_own_seam(broken: Client) -> None:
    """However often it breaks."""
    broken.begins(2)
    broken.hears(TextDelta("l"))
    broken.begins(3, target="c/z")
    broken.hears(TextDelta("d"), STOP)
    seams = [event for event in broken.events if isinstance(event, StreamContinued)]
    assert seams == [
        StreamContinued("b/y", "a/x", "exact", 2, 9),
        StreamContinued("c/z", "b/y", "exact", 3, 10),
    ]
    assert broken.delivery.transcript.choice().text == "Hello world"


def test_text_is_cut_at_the_seam_and_only_then_loses_its_frame(broken: Client) -> None:
    """What comes again is dropped, what is half new is cut, what is new goes on as it came."""
    broken.begins(way="anchored", trims=(AnchorTrim("Hello wor", "Hello wor"),))
    new = TextDelta(" is new", frame=FRAME)
    broken.hears(TextDelta("Hello", frame=FRAME), TextDelta(" world", frame=FRAME), new)
    broken.hears(ChoiceFinished("stop", frame=FRAME))
    _, *told = broken.events
    assert told == [TextDelta("ld"), new, ChoiceFinished("stop", frame=FRAME)]
    assert broken.delivery.transcript.choice().text == "Hello world is new"


def test_an_event_behind_the_cut_is_the_very_same(broken: Client) -> None:
    """So that it can be written through."""
    broken.begins(trims=(SpaceTrim(" "),))
    cut, whole = TextDelta(" ld", frame=FRAME), TextDelta("!", frame=FRAME)
    broken.hears(cut, whole)
    assert broken.events[1] == TextDelta("ld")
    assert broken.events[2] is whole


def test_a_seam_that_is_not_found_ends_the_attempt_and_delivers_nothing(broken: Client) -> None:
    """Nor is it announced."""
    broken.begins(way="anchored", trims=(AnchorTrim("Hello wor", "Hello wor"),))
    with pytest.raises(StreamInterrupted, match="does not go on"):
        broken.hears(TextDelta("Good day to you all, whatever you are doing there."))
    assert broken.events == []


def test_an_answer_that_ends_before_its_seam_has_failed(broken: Client) -> None:
    """At its finish, or at a tool call."""
    for event in (STOP, CALL[0]):
        broken.begins(way="anchored", trims=(AnchorTrim("Hello wor", "Hello wor"),))
        with pytest.raises(StreamInterrupted):
            broken.hears(TextDelta("Hello"), event)
    assert broken.events == []


def test_good_events_before_an_error_in_the_same_read_are_delivered(broken: Client) -> None:
    """What the client could have had it gets."""

    class Bomb:
        """A trim that takes a piece and chokes on the next."""

        def take(self, text: str) -> str:
            """Return ``ld``, or raise."""
            if text == "ld":
                return text
            raise seam_not_found()

        def finish(self) -> str:
            """Nothing."""
            return ""

    broken.begins(trims=(Bomb(),))
    with pytest.raises(StreamInterrupted):
        broken.hears(TextDelta("ld"), TextDelta("x"), TextDelta("ld"))
    assert broken.events[1:] == [TextDelta("ld")]
    assert broken.delivery.transcript.choice().text == "Hello world"


@pytest.mark.parametrize("way", ["exact", "anchored"])
def test_what_is_thought_again_behind_text_is_dropped(broken: Client, way: str) -> None:
    """There is no place for it: the client has begun to read the answer."""
    broken.begins(way=way)
    broken.hears(AGAIN, ReasoningDelta("again"), TextDelta("ld"))
    assert broken.events[1:] == [TextDelta("ld")]


def test_reasoning_that_broke_off_is_followed_by_a_new_block(client: Client) -> None:
    """Two trains of thought are not run into one."""
    client.hears(START, ReasoningDelta("let me"))
    client.begins(way="restart")
    client.hears(AGAIN, ReasoningDelta("so "))
    client.hears(ReasoningDelta("then"), TextDelta("Yes."), STOP)
    assert client.delivery.transcript.choice().reasoning == f"let me{NEW_BLOCK}so then"
    assert client.batches[1] == [
        StreamContinued("b/y", "a/x", "restart", 2, 0),
        ReasoningDelta(NEW_BLOCK),
        ReasoningDelta("so "),
    ]
    assert client.delivery.transcript.choice().text == "Yes."


def test_an_answer_that_now_comes_without_thinking_needs_no_new_block(client: Client) -> None:
    """Only the seam stands between."""
    client.hears(START, ReasoningDelta("let me"))
    client.begins(way="restart")
    client.hears(AGAIN, TextDelta("Yes."), ReasoningDelta("and then"))
    assert client.events[3:] == [TextDelta("Yes."), ReasoningDelta("and then")]


def test_a_tool_call_of_a_later_attempt_is_held_too(broken: Client) -> None:
    """It comes with the finish, behind what was held back of the text."""
    broken.begins(trims=(StopTrim("Hello wor", ("rld!",)),))
    broken.hears(TextDelta("ld"), CALL[0])
    assert broken.events[1:] == [TextDelta("ld")]
    broken.hears(*CALL[1:])
    broken.hears(ChoiceFinished("tool_calls"))
    assert broken.events[2:] == [*CALL, ChoiceFinished("tool_calls")]


def test_a_later_attempt_may_stream_its_calls_where_the_route_says_so() -> None:
    """Behind reasoning that was seen, for example."""
    client = Client(holds_calls=False)
    client.hears(START, ReasoningDelta("hm"))
    client.begins(way="restart")
    client.hears(*CALL[:2])
    assert client.events[2:] == [StreamContinued("b/y", "a/x", "restart", 2, 0), *CALL[:2]]


def test_a_refusal_goes_on_behind_the_seam(broken: Client) -> None:
    """It is words that a user sees."""
    broken.begins()
    broken.hears(RefusalDelta("I cannot."))
    assert broken.events == [StreamContinued("b/y", "a/x", "exact", 2, 9), RefusalDelta("I cannot.")]


def test_an_attempt_that_only_has_to_finish_is_announced(broken: Client) -> None:
    """The finish is another target's word."""
    broken.begins()
    broken.hears(STOP)
    assert broken.events == [StreamContinued("b/y", "a/x", "exact", 2, 9), STOP]


def test_notes_and_extras_go_on_as_they_are(broken: Client) -> None:
    """They have no place in the text."""
    broken.begins()
    notes: list[Event] = [
        ProviderExtra(FRAME),
        AttemptFailed("b/y", 2, "reset", "c", has_delivered=True),
        StreamContinued("b/z", "b/y", "exact", 3, 1),
    ]
    broken.hears(*notes)
    assert broken.events == notes


def test_what_a_provider_without_a_finish_leaves_held_back_comes_at_its_end(broken: Client) -> None:
    """Text, then calls, behind the seam."""
    broken.begins(trims=(StopTrim("Hello wor", ("rld!",)),))
    broken.hears(TextDelta("l"))
    broken.hears(TextDelta("d"))
    assert broken.events == []
    broken.delivery.finish()
    assert broken.events[1:] == [TextDelta("ld")]
    broken.begins(3)
    broken.hears(*CALL)
    broken.delivery.finish()
    assert broken.events[2:] == [StreamContinued("b/y", "b/y", "exact", 3, 11), *CALL]


def test_a_provider_without_a_finish_has_failed_too_if_its_seam_never_came(broken: Client) -> None:
    """And its calls are not released."""
    broken.begins(way="anchored", trims=(AnchorTrim("Hello wor", "Hello wor"),))
    broken.hears(TextDelta("Hello"))
    with pytest.raises(StreamInterrupted):
        broken.delivery.finish()
    assert broken.events == []


def test_an_end_without_anything_new_is_no_seam(broken: Client) -> None:
    """There was nothing left to say."""
    broken.begins()
    broken.hears(AGAIN)
    broken.delivery.finish()
    assert broken.events == []


def test_the_end_behind_a_finish_releases_nothing(broken: Client) -> None:
    """All was told with it."""
    broken.begins(trims=(StopTrim("Hello wor", ("rld!",)),))
    broken.hears(TextDelta("ld"), STOP)
    count = len(broken.batches)
    broken.delivery.finish()
    assert len(broken.batches) == count


# --- checkpoints


def test_a_checkpoint_counts_where_the_client_is(broken: Client) -> None:
    """It is the target's own, and all text before it was delivered."""
    broken.begins()
    broken.hears(TextDelta("ld"), CheckpointReached("t"))
    checkpoint = broken.delivery.transcript.choice().checkpoint
    assert checkpoint is not None
    assert (checkpoint.target, checkpoint.character_count) == ("b/y", 11)


def test_a_checkpoint_behind_text_that_is_held_back_is_none(broken: Client) -> None:
    """From there the client would miss what it was not given."""
    broken.begins(trims=(StopTrim("Hello wor", ("rld!",)),))
    broken.hears(TextDelta("l"), CheckpointReached("t"))
    assert broken.delivery.transcript.choice().checkpoint is None


def test_a_checkpoint_before_anything_new_is_that_of_who_spoke_last_or_none(broken: Client) -> None:
    """Another target's token is of no use to the one that is written down with it."""
    broken.begins()
    broken.hears(CheckpointReached("t"))
    assert broken.delivery.transcript.choice().checkpoint is None
    broken.begins(3, target="a/x")
    broken.hears(CheckpointReached("u"))
    checkpoint = broken.delivery.transcript.choice().checkpoint
    assert checkpoint is not None
    assert (checkpoint.target, checkpoint.token) == ("a/x", "u")


# --- whole text, and its end


def test_the_whole_text_is_looked_at_before_its_end_is_told(broken: Client) -> None:
    """Both parts of it, also what comes in the very read of the finish; what is in it is delivered, the end is not."""
    seen: list[str] = []

    def refuse(text: str) -> None:
        seen.append(text)
        raise seam_not_found()

    broken.begins(check=refuse, trims=(StopTrim("Hello wor", ("rld!",)),))
    with pytest.raises(StreamInterrupted):
        broken.hears(TextDelta("l"), TextDelta("d"), STOP)
    assert seen == ["Hello world"]
    assert broken.events[1:] == [TextDelta("ld")]
    assert broken.delivery.transcript.choice().finish_reason is None


def test_text_that_passes_is_finished(broken: Client) -> None:
    """The check has nothing else to say."""
    seen: list[str] = []
    broken.begins(check=seen.append)
    broken.hears(TextDelta("ld"))
    broken.hears(STOP)
    assert (seen, broken.events[-1]) == (["Hello world"], STOP)


@pytest.mark.parametrize("reason", ["length", "content_filter", "tool_calls"])
def test_text_that_does_not_claim_to_be_whole_is_not_looked_at(broken: Client, reason: str) -> None:
    """It may be anything."""
    broken.begins(check=_never)
    broken.hears(TextDelta("ld"), ChoiceFinished(reason))  # type: ignore[arg-type]  # one of the closed set
    assert broken.delivery.transcript.choice().finish_reason == reason


def test_the_end_marker_alone_is_looked_at_like_a_finish(broken: Client) -> None:
    """There is nothing else to go by."""

    def refuse(text: str) -> None:
        assert text == "Hello world"
        raise seam_not_found()

    broken.begins(check=refuse)
    broken.hears(TextDelta("ld"))
    with pytest.raises(StreamInterrupted):
        broken.delivery.finish()


def _never(text: str) -> None:
    raise AssertionError(text)


# --- a stop sequence across the seam


def test_a_stop_sequence_that_ends_behind_the_seam_ends_the_answer(broken: Client) -> None:
    """Nothing of it is delivered; the finish and the usage are, and the provider need not go on."""
    broken.begins(trims=(StopTrim("Hello wor", ("world",)),))
    broken.hears(AGAIN, UsageReported(Usage(9, 1)))
    with pytest.raises(AnswerComplete):
        broken.hears(TextDelta("l"), TextDelta("d and more"), TextDelta("!"))
    finish = ChoiceFinished("stop", "stop_sequence")
    assert [event for event in broken.events if not isinstance(event, UsageReported)] == [
        StreamContinued("b/y", "a/x", "exact", 2, 9),
        finish,
    ]
    assert broken.usage == Usage(9, 2, is_estimated=True)
    assert broken.delivery.transcript.choice().text == "Hello wor"


def test_a_stop_sequence_in_what_was_held_back_before_a_call_ends_the_answer_there(client: Client) -> None:
    """The call behind it would not have been made."""
    text = "In the beginning was the wor"
    client.hears(START, TextDelta(text))
    client.begins(way="anchored", trims=(AnchorTrim(text, text), StopTrim(text, ("world",))))
    client.hears(TextDelta(text), TextDelta("ld"))
    assert client.events == [START, TextDelta(text)]
    with pytest.raises(AnswerComplete):
        client.hears(*CALL)
    assert [type(event) for event in client.events[2:]] == [StreamContinued, ChoiceFinished, UsageReported]


def test_a_stop_sequence_that_does_not_end_costs_nothing(broken: Client) -> None:
    """What was held for it is delivered."""
    broken.begins(trims=(StopTrim("Hello wor", ("world",)),))
    broken.hears(TextDelta("l"))
    broken.hears(TextDelta("ity"), STOP)
    assert broken.events[1:] == [TextDelta("lity"), STOP]


def test_an_answer_that_ended_itself_is_of_no_account_where_none_was_told(broken: Client) -> None:
    """The usage is what was counted here: one for each delta."""
    broken.begins(trims=(StopTrim("Hello wor", ("world",)),))
    with pytest.raises(AnswerComplete):
        broken.hears(TextDelta("ld"))
    assert broken.usage == Usage(1, 2, is_estimated=True)


# --- several choices


def test_a_choice_that_goes_on_alone_keeps_its_place() -> None:
    """What comes back is the only choice of another answer, and becomes the one that was asked for."""
    client = Client()
    client.hears(START, TextDelta("a"), TextDelta("b", 1))
    client.hears(STOP)
    client.begins(index=1, is_alone=True)
    client.hears(AGAIN, TextDelta("c", frame=FRAME), ProviderExtra(FRAME))
    client.hears(ChoiceFinished("length", frame=FRAME))
    assert client.events[4:] == [
        StreamContinued("b/y", "a/x", "exact", 2, 1),
        TextDelta("c", 1),
        ChoiceFinished("length", index=1),
    ]
    assert client.delivery.transcript.choice(1).text == "bc"
    assert client.delivery.open_choices(2) == []


def test_the_first_choice_alone_keeps_its_frames() -> None:
    """Nothing of them had to be altered."""
    client = Client()
    client.hears(START, TextDelta("a"), TextDelta("b", 1))
    client.begins(is_alone=True)
    new = TextDelta("c", frame=FRAME)
    client.hears(new, ProviderExtra(FRAME))
    assert client.events[4] is new
    assert client.events[5] == ProviderExtra(FRAME)


def test_a_choice_of_which_nothing_was_seen_is_begun_alone_where_another_has_finished() -> None:
    """Even if that one was empty: its end cannot be told twice."""
    client = Client()
    client.hears(START, ChoiceFinished("content_filter"))
    client.begins(way="restart", index=1, is_alone=True)
    client.hears(AGAIN, TextDelta("b"), STOP)
    assert client.events[3:] == [TextDelta("b", 1), ChoiceFinished("stop", index=1)]


def test_open_choices_are_those_that_have_not_finished() -> None:
    """Also those of which nothing has come."""
    client = Client()
    assert client.delivery.open_choices(1) == [0]
    client.hears(START, TextDelta("a"), TextDelta("b", 1), ChoiceFinished("stop", index=1))
    assert client.delivery.open_choices(4) == [0, 2, 3]


# --- usage


def test_usage_counts_the_prompt_once_and_what_was_delivered(broken: Client) -> None:
    """Where one delta is one token, exactly, though nobody told of the first attempt."""
    broken.begins(added_tokens=6)
    broken.hears(TextDelta("ld"))
    broken.hears(TextDelta("!"), STOP, UsageReported(Usage(16, 2)))
    assert broken.usage == Usage(10, 4, is_estimated=True)


def test_the_prompt_is_the_one_that_the_first_attempt_told() -> None:
    """And so is what of it came from a cache."""
    client = Client()
    client.hears(START, UsageReported(Usage(12, 1, 5)), TextDelta("Hello"))
    client.begins(added_tokens=1)
    client.hears(TextDelta("!"), STOP, UsageReported(Usage(40, 1, 30, 7)))
    assert client.usage == Usage(12, 2, 5, is_estimated=True)


def test_what_was_told_goes_along_with_the_transcript() -> None:
    """Another target goes on with it in a delivery of its own."""
    client = Client()
    client.hears(START, UsageReported(Usage(12, 1, 5)), TextDelta("Hello"), UsageReported(Usage(12, 3, 5)))
    for _ in range(2):
        client.delivery.settle()
    other = Client(transcript=client.delivery.transcript)
    other.begins(added_tokens=1)
    other.hears(TextDelta("!"), STOP, UsageReported(Usage(40, 1)))
    assert other.usage == Usage(12, 4, 5, is_estimated=True)


def test_what_a_later_attempt_says_again_is_not_counted(broken: Client) -> None:
    """Two of its four tokens were the end of what the client has."""
    broken.begins(way="anchored", trims=(AnchorTrim("Hello wor", "Hello wor"),))
    broken.hears(TextDelta("Hello"), TextDelta(" wor"), TextDelta("ld"), TextDelta("!"))
    broken.hears(STOP, UsageReported(Usage(9, 4)))
    assert broken.usage is not None
    assert broken.usage.output_tokens == 4


def test_what_a_later_attempt_thinks_again_is_not_counted(broken: Client) -> None:
    """By its deltas, if nobody says how much it was."""
    broken.begins()
    broken.hears(ReasoningDelta("so"), ReasoningDelta("so"), TextDelta("ld"), STOP, UsageReported(Usage(9, 3)))
    assert broken.usage is not None
    assert (broken.usage.output_tokens, broken.usage.reasoning_tokens) == (3, 0)


@pytest.mark.parametrize("shown", [0, 40])
def test_what_a_later_attempt_says_to_have_thought_is_not_counted(broken: Client, shown: int) -> None:
    """Whether it was shown or not."""
    broken.begins()
    broken.hears(*[ReasoningDelta("so")] * shown, TextDelta("ld"), STOP)
    broken.hears(UsageReported(Usage(9, 41, reasoning_tokens=40)))
    assert broken.usage is not None
    assert (broken.usage.output_tokens, broken.usage.reasoning_tokens) == (3, 0)


def test_usage_that_was_told_before_it_was_known_what_is_new_is_told_again(broken: Client) -> None:
    """The last report counts, and some providers tell it before the end."""
    broken.begins(way="anchored", trims=(AnchorTrim("Hello wor", "Hello wor"),))
    broken.hears(TextDelta("Hello"), UsageReported(Usage(9, 4)))
    broken.hears(TextDelta(" wor"), TextDelta("ld"), TextDelta("!"))
    broken.hears(STOP)
    assert broken.usage == Usage(9, 4, is_estimated=True)


def test_of_text_behind_reasoning_the_share_that_is_new_is_counted(broken: Client) -> None:
    """Half of its four deltas were the end of what the client has."""
    broken.begins(way="anchored", trims=(AnchorTrim("Hello wor", "Hello wor"),))
    broken.hears(*[ReasoningDelta("so")] * 10, *map(TextDelta, ("Hello", " wor", "ld", "!")), STOP)
    broken.hears(UsageReported(Usage(9, 44, reasoning_tokens=40)))
    assert broken.usage is not None
    assert broken.usage.output_tokens == 4


def test_reasoning_that_was_shown_twice_counts_twice(client: Client) -> None:
    """The client has both blocks."""
    client.hears(START, ReasoningDelta("let"), ReasoningDelta(" me"))
    client.begins(way="restart")
    client.hears(ReasoningDelta("so"), TextDelta("Yes."), STOP, UsageReported(Usage(9, 2, reasoning_tokens=1)))
    assert client.usage == Usage(9, 4, reasoning_tokens=1, is_estimated=True)


def test_a_report_of_an_attempt_that_broke_off_counts_more_than_its_deltas() -> None:
    """A running total, as some providers send it with each chunk."""
    client = Client()
    client.hears(START, TextDelta("Hello"), UsageReported(Usage(9, 7)))
    client.begins()
    client.hears(TextDelta("!"), STOP, UsageReported(Usage(11, 1)))
    assert client.usage == Usage(9, 8, is_estimated=True)


def test_a_report_that_has_a_call_in_it_which_was_not_delivered_does_not_count() -> None:
    """The call is made again, and paid for by whoever accounts for attempts."""
    client = Client()
    client.hears(START, TextDelta("Hello"), *CALL, UsageReported(Usage(9, 50)))
    client.begins()
    client.hears(TextDelta("!"), STOP, UsageReported(Usage(11, 1)))
    assert client.usage == Usage(9, 2, is_estimated=True)


def test_deltas_that_were_held_back_and_go_on_as_one_count_as_what_they_were(broken: Client) -> None:
    """Also when the attempt that brought them breaks off, too, and nobody tells what it used."""
    broken.begins(trims=(StopTrim("Hello wor", ("world",)),))
    broken.hears(TextDelta("l"))
    broken.hears(TextDelta("ity"))
    broken.begins(3)
    broken.hears(TextDelta("!"), STOP, UsageReported(Usage(9, 1)))
    assert broken.usage == Usage(9, 5, is_estimated=True)


def test_a_report_is_that_of_its_own_attempt() -> None:
    """One that broke off before it told anything is counted by its deltas."""
    client = Client()
    client.hears(START, TextDelta("Hello"), UsageReported(Usage(9, 7)))
    client.begins()
    client.hears(TextDelta(" wor"))
    client.begins(3)
    client.hears(TextDelta("ld"), STOP, UsageReported(Usage(11, 1)))
    assert client.usage == Usage(9, 9, is_estimated=True)


def test_attempts_that_brought_nothing_add_nothing(broken: Client) -> None:
    """However many there were."""
    for number in range(2, 5):
        broken.begins(number)
    broken.hears(TextDelta("!"), STOP, UsageReported(Usage(9, 1)))
    assert broken.usage == Usage(9, 3, is_estimated=True)


def test_long_deltas_are_counted_by_their_characters() -> None:
    """Some providers send a sentence at a time."""
    choice = ChoiceTranscript()
    choice.add(TextDelta("x" * MOST_CHARACTERS_PER_TOKEN))
    assert delivered_tokens(choice) == 1
    choice.add(TextDelta("x" * (MOST_CHARACTERS_PER_TOKEN + 1)))
    choice.add(ReasoningDelta("x" * 99))
    assert delivered_tokens(choice) == -(-(2 * MOST_CHARACTERS_PER_TOKEN + 1) // CHARACTERS_PER_TOKEN) + 1
    assert delivered_tokens(ChoiceTranscript()) == 0


# --- all of it


WORDS = st.text(alphabet="ab \n", min_size=1, max_size=4)


@st.composite
def answers(draw: st.DrawFn, index: int = 0) -> list[Event]:
    """Draw one choice of an answer: what is thought, said and called, and its finish."""
    events: list[Event] = [ReasoningDelta(text, index) for text in draw(st.lists(WORDS, max_size=3))]
    for number, is_call in enumerate(draw(st.lists(st.booleans(), max_size=6))):
        if is_call:
            events.append(ToolCallStarted(number, f"id{number}", "f", index=index))
            events += [ToolCallDelta(number, text, index) for text in draw(st.lists(WORDS, max_size=2))]
        else:
            events += [TextDelta(text, index) for text in draw(st.lists(WORDS, min_size=1, max_size=3))]
    return [*events, ChoiceFinished(draw(st.sampled_from(["stop", "length", "tool_calls"])), index=index)]


def batches_of(data: st.DataObject, events: Sequence[Event]) -> list[Sequence[Event]]:
    """Draw how events come in reads."""
    ends = sorted(data.draw(st.sets(st.integers(0, len(events)), max_size=4)) | {len(events)})
    return [events[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def rest_of(answer: Sequence[Event], choice: ChoiceTranscript, index: int) -> list[Event]:
    """Return what a target says that goes on ideally: what the client has not got, as a choice of its own."""
    left = choice.character_count
    rest: list[Event] = []
    for event in answer:
        if isinstance(event, TextDelta) and left:
            text, left = event.text[left:], max(0, left - len(event.text))
            if text:
                rest.append(TextDelta(text, index))
        else:
            rest.append(structs.replace(event, index=index))
    return rest


@given(data=st.data())
def test_an_answer_that_was_cut_and_continued_is_the_uncut_one(data: st.DataObject) -> None:
    """Wherever it is cut, and however often: the same text, calls and ends, in legal order, begun once."""
    count = data.draw(st.integers(1, 2))
    scripts = [data.draw(answers(index)) for index in range(count)]
    uncut = Transcript()
    uncut.add([START, *(event for script in scripts for event in script)])
    client = Client()
    turns = data.draw(st.permutations([index for index, script in enumerate(scripts) for _ in script]))
    said: list[Event] = [START, *_in_turns(scripts, turns)]
    for number in range(2, 2 + data.draw(st.integers(0, 3))):
        for batch in batches_of(data, said[: data.draw(st.integers(0, len(said)))]):
            client.delivery.send(batch)
        transcript, still_open = client.delivery.transcript, client.delivery.open_choices(count)
        if not transcript.is_visible and len(still_open) == count:
            client.begins(number, way="restart")
            said = [AGAIN, *_in_turns(scripts, turns)]
        elif still_open:
            index = still_open[0]
            choice = transcript.choice(index)
            way = "exact" if choice.character_count else "restart"
            client.begins(number, way=way, index=index, is_alone=count > 1)
            said = [AGAIN, *rest_of(scripts[index], choice, 0 if count > 1 else index)]
        else:
            said = []
    for batch in batches_of(data, said):
        client.delivery.send(batch)
    client.delivery.finish()
    for index in client.delivery.open_choices(count):
        choice = client.delivery.transcript.choice(index)
        client.begins(9, way="exact" if choice.character_count else "restart", index=index, is_alone=True)
        client.hears(AGAIN, *rest_of(scripts[index], choice, 0))
    _check_same(client, uncut, count)


def _in_turns(scripts: Sequence[Sequence[Event]], turns: Sequence[int]) -> list[Event]:
    queues = [iter(script) for script in scripts]
    return [next(queues[index]) for index in turns]


def _check_same(client: Client, uncut: Transcript, count: int) -> None:
    lifecycle = Lifecycle()
    assert lifecycle.admit(client.events) == client.events
    assert sum(isinstance(event, StreamStarted) for event in client.events) == 1
    heard = Transcript()
    heard.add(client.events)
    for index in range(count):
        one, other = heard.choice(index), uncut.choice(index)
        assert (one.text, one.finish_reason) == (other.text, other.finish_reason)
        assert [call.arguments for call in one.tool_calls.values()] == [
            call.arguments for call in other.tool_calls.values()
        ]
        kept = client.delivery.transcript.choice(index)
        assert (kept.text, kept.finish_reason) == (one.text, one.finish_reason)


@given(
    count=st.integers(2, 12),
    attempts=st.lists(st.tuples(st.integers(1, 12), st.booleans(), st.integers(0, 2)), min_size=1, max_size=4),
)
def test_usage_is_exact_where_a_delta_is_a_token(count: int, attempts: list[tuple[int, bool, int]]) -> None:
    """Whatever was cut, said again in front of the seam or thought again: what was delivered is what is counted."""
    words = [f"w{number} " for number in range(count)]
    client = Client()
    client.hears(START, TextDelta(words[0]))
    done = 1
    for number, (length, says_again, thought) in enumerate(attempts, 2):
        is_last = number == len(attempts) + 1
        end = count if is_last else min(count, done + length)
        again = int(says_again)
        trims: Sequence[Trim] = (AnchorTrim("".join(words[:done]), words[done - 1]),) if again else ()
        said: list[Event] = [*[ReasoningDelta("hm")] * thought, *map(TextDelta, words[done - again : end])]
        client.begins(number, way="anchored" if again else "exact", trims=trims, added_tokens=number)
        client.hears(*said)
        done = end
        if is_last:
            client.hears(STOP, UsageReported(Usage(20 + number, len(said))))
    assert client.usage == Usage(20, count, is_estimated=True)
    assert client.delivery.transcript.choice().text == "".join(words)
