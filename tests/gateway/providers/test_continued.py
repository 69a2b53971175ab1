from __future__ import annotations

from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.call import Call, ImagePart, Message, Target, TextPart, ToolCall
from gateway.core.continuation import Continuation, Way
from gateway.core.errors import StreamInterrupted
from gateway.core.events import (
    CheckpointReached,
    ChoiceFinished,
    Event,
    Frame,
    ReasoningDelta,
    RefusalDelta,
    StreamStarted,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
    UsageReported,
)
from gateway.core.seam import EchoTrim, SpaceTrim, seam_not_found
from gateway.providers.base import ProviderOptions
from gateway.providers.continued import (
    ContinuedDecoder,
    OpenTurn,
    Rest,
    continued,
    continued_answer,
    goes_on,
    messages_with,
    open_turn,
)

USER = Message(role="user", parts=(TextPart("Hi"),))
FRAME = Frame(b"{}", "w", 1)
STOP = ChoiceFinished("stop")
DELIVERED = "One, two, three and four and five, and then six."


def begun(text: str, **fields: Any) -> Message:
    """Return a turn that the client began for the model."""
    return Message(role="assistant", parts=(TextPart(text),), **fields)


def make_call(*messages: Message, text: str = DELIVERED, way: Way = "exact", started: str | None = "p/m") -> Call:
    """Return a call that is to go on with ``text``, the answer that ``started`` had begun."""
    known = StreamStarted("a", "m", target=started) if started is not None else None
    continuation = Continuation(way=way, started=known, text=text)
    return Call(request_id="r", target=Target("p", "m"), messages=messages or (USER,), continuation=continuation)


def texts(*pieces: str) -> list[Event]:
    """Return pieces of text, each in a frame of its own."""
    return [TextDelta(piece, frame=Frame(piece.encode(), "w", 1)) for piece in pieces]


def said(events: list[Event]) -> str:
    """Return the text of events."""
    return "".join(event.text for event in events if isinstance(event, TextDelta))


# --- who goes on


@pytest.mark.parametrize(
    ("setting", "is_known", "expected"),
    [
        ("auto", True, True),
        ("auto", False, False),
        ("exact", False, True),
        ("exact", True, True),
        ("anchored", True, False),
        ("off", True, False),
    ],
)
def test_operators_word_beats_what_is_known(
    setting: Literal["auto", "exact", "anchored", "off"],
    is_known: bool,  # noqa: FBT001, a column of the table
    expected: bool,  # noqa: FBT001, a column of the table
) -> None:
    """Who runs an engine knows what it does; without a word the table counts."""
    options = ProviderOptions(name="p", continuation=setting)
    assert goes_on(options, make_call(), is_known=is_known) is expected


def test_turn_that_is_not_all_text_is_not_gone_on_with() -> None:
    """Words cannot be put behind a picture."""
    options = ProviderOptions(name="p", continuation="exact")
    picture = Message(role="assistant", parts=(ImagePart("https://h/a.png"),))
    assert not goes_on(options, make_call(USER, picture), is_known=True)
    assert goes_on(options, make_call(USER, begun("So")), is_known=True)


# --- how it is shown


def test_partial_answer_is_a_turn_of_its_own() -> None:
    """It stands behind the client's messages, whose places stay the same."""
    call = make_call(USER)
    turn = open_turn(call)
    assert turn == OpenTurn(text=DELIVERED, echo=DELIVERED)
    assert messages_with(call, turn) == (USER, begun(DELIVERED))


@pytest.mark.parametrize("way", ["restart", "anchored"])
def test_only_an_exact_continuation_has_an_open_turn(way: Way) -> None:
    """The others are requests like any."""
    call = make_call(way=way)
    assert open_turn(call) is None
    assert messages_with(call, None) == call.messages
    assert open_turn(make_call(text="")) is None
    assert open_turn(Call(request_id="r", messages=(USER,))) is None


def test_turn_that_the_client_began_is_one_with_the_answer() -> None:
    """Two turns of the assistant's in a row are refused, or closed between them."""
    call = make_call(USER, begun("So, ", name="n", source={"role": "assistant", "content": "So, "}))
    turn = open_turn(call)
    assert turn is not None
    assert (turn.text, turn.echo) == ("So, " + DELIVERED, "So, " + DELIVERED)
    assert messages_with(call, turn) == (USER, begun("So, " + DELIVERED, name="n"))


def test_turn_that_calls_a_tool_is_not_begun_but_over() -> None:
    """The answer is a turn behind it."""
    asked = Message(role="assistant", parts=(TextPart("I look."),), tool_calls=(ToolCall("c", "f", "{}"),))
    call = make_call(USER, asked)
    assert messages_with(call, open_turn(call)) == (USER, asked, begun(DELIVERED))


@pytest.mark.parametrize(
    ("own", "delivered", "started", "shown", "echo"),
    [
        ("So", "So be it", "p/m", "So be it", "So be it"),  # it was repeated to the client, as this provider does
        ("So be it", "So", "p/other", "So be it", "So"),  # and broke off in it
        ("So", "So", "p/m", "So", "So"),
        ("So", " be it", "p/m", "So be it", "So be it"),  # it was not, this time
        ("So", "So so", "q/m", "SoSo so", "SoSo so"),  # another provider began, and may have meant it
        ("So it shall be", "So it shall be.", "q/m", "So it shall be.", "So it shall be."),  # it hardly did
        ("So", "So so", None, "SoSo so", "SoSo so"),
    ],
)
def test_own_beginning_that_was_repeated_is_shown_once(
    own: str, delivered: str, started: str | None, shown: str, echo: str
) -> None:
    """What the client has of it is what may come again."""
    turn = open_turn(make_call(USER, begun(own), text=delivered, started=started), echoes=True)
    assert turn == OpenTurn(text=shown, echo=echo, echoes=True)


def test_white_space_at_the_end_is_kept_back_where_it_is_refused() -> None:
    """It is no part of an echo either."""
    call = make_call(text="One two \n\n")
    assert open_turn(call) == OpenTurn(text="One two \n\n", echo="One two \n\n")
    turn = open_turn(call, takes_space=False)
    assert turn == OpenTurn(text="One two", echo="One two", space=" \n\n")
    assert messages_with(call, turn)[-1] == begun("One two")


def test_turn_of_white_space_is_not_shown_at_all() -> None:
    """The answer begins again, and its white space is not told twice."""
    call = make_call(text=" \n")
    turn = open_turn(call, takes_space=False)
    assert turn is not None
    assert messages_with(call, turn) == (USER,)
    assert said(turn.rest().finish(texts(" ", "\nOne"))) == "One"


def test_own_beginning_is_joined_as_the_model_was_shown_it() -> None:
    """White space that was kept back from it then is not sent now."""
    call = make_call(USER, begun("So, "), text=" be it")
    turn = open_turn(call, takes_space=False)
    assert turn is not None
    assert turn.text == "So, be it"


def test_turn_shows_no_answer_in_a_log() -> None:
    """A partial answer is somebody's."""
    assert "three" not in repr(open_turn(make_call()))


# --- what is new


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
@pytest.mark.parametrize("echo", ["", DELIVERED])
def test_echo_is_dropped_wherever_it_is_split(echo: str, size: int) -> None:
    """And what comes without one is all new."""
    stream = f"{echo} And seven."
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
    rest = OpenTurn(text=DELIVERED, echo=DELIVERED, echoes=True).rest()
    assert said(rest.finish([*texts(*pieces), STOP])) == " And seven."


def test_echo_without_its_white_space_is_dropped_too() -> None:
    """The model then says the white space itself, or does not."""
    turn = OpenTurn(text=DELIVERED, echo=DELIVERED, space="\n\n")
    for stream in (f"{DELIVERED}\n\nSeven.", f"{DELIVERED}Seven.", "\n\nSeven.", "Seven."):
        assert said(turn.rest().finish([*texts(*stream), STOP])) == "Seven."


def test_event_that_was_changed_has_no_frame_and_others_keep_theirs() -> None:
    """A frame is written through as it came: with what the client has already."""
    used = UsageReported(Usage(1, 2), FRAME)
    rest = Rest([EchoTrim("ab", expected=True)])
    events = rest.take([TextDelta("a", frame=FRAME), used, TextDelta("bc", frame=FRAME), *texts("d")])
    assert events == [used, TextDelta("c"), *texts("d")]


def test_text_of_other_choices_is_left_alone() -> None:
    """Only the first goes on."""
    rest = Rest([EchoTrim("ab", expected=True)])
    other: list[Event] = [TextDelta("ab", 1), ToolCallStarted(0, "c", "f", index=1), ChoiceFinished("stop", index=1)]
    assert rest.take([*texts("a"), *other, *texts("bc")]) == [*other, TextDelta("c")]


@pytest.mark.parametrize("event", [STOP, ToolCallStarted(0, "c", "f"), RefusalDelta("No.")])
def test_text_that_is_held_back_comes_before_what_follows_it(event: Event) -> None:
    """It was no echo, only like the beginning of one."""
    rest = Rest([EchoTrim(DELIVERED, expected=False), SpaceTrim("O")])
    assert rest.take([*texts("One", ","), ReasoningDelta("hm")]) == [ReasoningDelta("hm")]
    assert rest.take([event, *texts("x")]) == [TextDelta("ne,"), event, *texts("x")]
    assert rest.finish([]) == []


def test_text_that_is_held_back_is_not_lost_without_a_finish() -> None:
    """Some hosts tell none."""
    rest = Rest([EchoTrim(DELIVERED, expected=False)])
    assert rest.finish(texts("One", ",")) == [TextDelta("One,")]


def test_pieces_that_do_not_fit_fail_behind_those_that_do() -> None:
    """What came before in the same read is passed on, nothing is behind it."""
    rest = Rest(replayed="abc")
    used = UsageReported(Usage(1, 2))
    assert rest.take([used, *texts("a"), *texts("x"), used]) == [used]
    assert rest.take(texts("bc")) == []
    assert rest.failure is not None
    with pytest.raises(StreamInterrupted) as caught:
        rest.finish([])
    assert caught.value is rest.failure


@pytest.mark.parametrize("event", [STOP, ToolCallStarted(0, "c", "f")])
def test_replay_that_ends_too_early_is_another_answer(event: Event) -> None:
    """The client has text that this one does not."""
    with pytest.raises(StreamInterrupted):
        Rest(replayed="abc").finish([*texts("ab"), event])


def test_checkpoint_that_the_client_is_past_is_not_one_for_it() -> None:
    """It counts from where the replay is over, to the very character."""
    first, second, third = (CheckpointReached(token) for token in "123")
    other = CheckpointReached("4", 1)
    rest = Rest(replayed="abcd")
    events = rest.take([*texts("ab"), first, other, *texts("cd"), second, *texts("e"), third])
    assert events == [other, second, *texts("e"), third]


class ScriptedDecoder:
    """Returns what each read is to bring; ends with ``error``, if any."""

    is_replaying = False

    def __init__(self, *reads: list[Event], error: StreamInterrupted | None = None) -> None:
        self._reads = list(reads)
        self._error = error

    @property
    def is_complete(self) -> bool:
        """Whether all was read."""
        return not self._reads

    @property
    def usage(self) -> Usage | None:
        """The same all the time."""
        return Usage(3, 4)

    def feed(self, data: bytes) -> list[Event]:  # noqa: ARG002, the signature of a decoder
        """Return the next read."""
        return self._reads.pop(0)

    def finish(self) -> list[Event]:
        """Return the last read, or raise."""
        if self._error is not None:
            raise self._error
        return self._reads.pop(0) if self._reads else []


def test_decoder_reads_only_the_rest() -> None:
    """What is held back at the end of the bytes is told with it."""
    inner = ScriptedDecoder([StreamStarted("a", "m"), *texts("a")], texts("bc"), [STOP])
    decoder = ContinuedDecoder(inner, Rest([EchoTrim("ab", expected=True)]))
    assert decoder.feed(b"") == [StreamStarted("a", "m")]
    assert decoder.feed(b"") == [TextDelta("c")]
    was_complete = decoder.is_complete
    assert decoder.finish() == [STOP]
    assert (was_complete, decoder.is_complete, decoder.usage) == (False, True, Usage(3, 4))


def test_decoder_whose_parts_do_not_fit_is_complete_and_raises() -> None:
    """Nothing more needs to be read, and whoever reads reaches the error at once."""
    inner = ScriptedDecoder([UsageReported(Usage(1, 2)), *texts("x")], texts("never"))
    decoder = ContinuedDecoder(inner, Rest(replayed="abc"))
    assert decoder.feed(b"") == [UsageReported(Usage(1, 2))]
    assert decoder.is_complete
    with pytest.raises(StreamInterrupted, match="does not go on"):
        decoder.finish()


def test_text_that_is_said_again_is_a_sign_of_life() -> None:
    """A replay may take as long as the answer did; an event of another kind, or a ping, is none."""
    used = UsageReported(Usage(1, 2))
    inner = ScriptedDecoder(texts("a"), [*texts("b"), used], [used], [], texts("cd"), texts("e"))
    decoder = ContinuedDecoder(inner, Rest(replayed="abc"))
    seen = [decoder.is_replaying]
    while not inner.is_complete:
        decoder.feed(b"")
        seen.append(decoder.is_replaying)
    assert seen == [False, True, True, False, False, False, False]


def test_decoders_own_error_is_raised() -> None:
    """Half an echo is forgotten: the client has all of it."""
    error = seam_not_found()
    decoder = ContinuedDecoder(ScriptedDecoder(texts("a"), error=error), Rest([EchoTrim("ab", expected=True)]))
    assert decoder.feed(b"") == []
    with pytest.raises(StreamInterrupted) as caught:
        decoder.finish()
    assert caught.value is error


def test_what_is_not_continued_is_not_wrapped() -> None:
    """The ordinary path has no more to do for a token than before."""
    decoder, events = ScriptedDecoder(), texts("a")
    assert continued(decoder, None) is decoder
    assert isinstance(continued(decoder, Rest()), ContinuedDecoder)
    assert continued_answer(events, None) is events


def test_whole_answer_is_cut_like_a_stream() -> None:
    """And fails like one."""
    call: list[Event] = [ToolCallStarted(0, "c", "f"), ToolCallDelta(0, "{}"), STOP]
    rest = Rest([EchoTrim("ab", expected=True)])
    assert continued_answer([StreamStarted("a", "m"), TextDelta("abc", frame=FRAME), *call], rest) == [
        StreamStarted("a", "m"),
        TextDelta("c"),
        *call,
    ]
    with pytest.raises(StreamInterrupted):
        continued_answer([TextDelta("xyz"), STOP], Rest(replayed="abc"))


@given(st.text(min_size=1, max_size=60), st.data())
def test_what_was_delivered_and_what_is_new_are_the_answer(answer: str, data: st.DataObject) -> None:
    """However it is cut, split, echoed or replayed."""
    at = data.draw(st.integers(0, len(answer)))
    delivered, new = answer[:at], answer[at:]
    checkpoint = data.draw(st.integers(0, at))
    for stream, rest in (
        (delivered + new, Rest([EchoTrim(delivered, expected=True)])),
        (answer[checkpoint:], Rest(replayed=answer[checkpoint:at])),
    ):
        size = data.draw(st.integers(1, 20))
        passed: list[Event] = []
        for place in range(0, len(stream), size):
            passed += rest.take(texts(stream[place : place + size]))
        passed += rest.finish([STOP])
        assert delivered + said(passed) == answer
        for event in passed:
            assert not isinstance(event, TextDelta) or event.frame in (None, Frame(event.text.encode(), "w", 1))
