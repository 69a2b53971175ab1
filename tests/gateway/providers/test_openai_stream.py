from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from gateway.core.call import Call
from gateway.core.continuation import Continuation, Way
from gateway.core.errors import StreamInterrupted, UpstreamError
from gateway.core.events import (
    OPENAI_CHUNK,
    ChoiceFinished,
    Event,
    Frame,
    ProviderExtra,
    ReasoningDelta,
    StreamStarted,
    TextDelta,
    Usage,
    UsageReported,
)
from gateway.core.lifecycle import Lifecycle
from gateway.core.transcript import Transcript
from gateway.providers.openai_completion import Choice, Delta
from gateway.providers.openai_stream import OpenAIDecoder
from tests.gateway.providers.openai_chunks import (
    CALL,
    DONE,
    ESTIMATE,
    IDENTITY,
    KNOWN,
    ROLE,
    START,
    STOP,
    bare,
    chunk,
    decode,
    frames,
    known,
    piece,
    sse,
    text,
    tools,
)
from tests.gateway.providers.openai_oddities import CHUNKS, FAILURES, MISSING, ODD, TREES, changed


def broken(stream: bytes, *, call: Call = CALL) -> tuple[list[Event], UpstreamError]:
    """Return what a stream delivers before it breaks, and the error."""
    decoder = OpenAIDecoder(call, secret="topsecret")
    events = decoder.feed(stream)
    with pytest.raises(UpstreamError) as raised:
        decoder.finish()
    return bare(events), raised.value


# --- a stream as OpenAI sends it


def test_an_answer_is_started_told_finished_and_counted() -> None:
    """The role starts, deltas tell, the finish reason ends, the last chunk counts."""
    usage = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
    assert decode(ROLE, text("Hel"), text("lo"), STOP, {**IDENTITY, "choices": [], "usage": usage}) == [
        START,
        TextDelta("Hel"),
        TextDelta("lo"),
        ChoiceFinished("stop", "stop"),
        UsageReported(Usage(9, 2)),
    ]


def test_a_plain_chunk_keeps_the_very_bytes_that_came() -> None:
    """Nothing is encoded anew where nothing has to be changed: spaces, order and escapes stay."""
    raw = [
        b'{ "id":"c1","created":5,"model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}',
        b'{"choices":[{"delta":{"content":"\\u00e9"},"index":0,"logprobs":[]}],"model":"m","created":5,"id":"c1","x":9}',
        b'{"id":"c1","created":5,"model":"m","choices":[{"index":0,"delta":{},"finish_reason":"length"}],"x":1e2}',
        b'{"id":"c1","created":5,"model":"m","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2,"y":{}}}',
    ]
    assert frames(*raw) == raw


def test_every_event_of_a_chunk_shares_its_frame() -> None:
    """A dialect that speaks the same wire can tell whether all of a chunk has come."""
    events = OpenAIDecoder(CALL).feed(sse(chunk({"role": "assistant", "content": "a"}, "stop")))
    assert bare(events) == [START, TextDelta("a"), ChoiceFinished("stop", "stop")]
    frame = events[0].frame
    assert frame is not None
    assert (frame.wire, frame.event_count) == (OPENAI_CHUNK, 3)
    assert all(event.frame is frame for event in events)


def test_a_chunk_that_says_nothing_is_an_extra() -> None:
    """An empty delta is no progress, but a client of the same wire gets it."""
    events = OpenAIDecoder(CALL).feed(sse(ROLE, text("")))
    assert bare(events) == [START, ProviderExtra()]


def test_two_choices_are_told_apart() -> None:
    """With ``n`` every event says which choice it belongs to."""
    documents = [
        ROLE, chunk({"role": "assistant"}, index=1), text("a", 1), text("b"), chunk(finish="stop", index=1), STOP,
    ]  # fmt: skip
    transcript = Transcript()
    transcript.add(decode(*documents))
    assert {index: choice.text for index, choice in transcript.choices.items()} == {0: "b", 1: "a"}


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 10_000])
def test_where_the_network_splits_a_stream_does_not_matter(size: int) -> None:
    """Any split gives the same events."""
    stream = sse(ROLE, text("né"), tools(piece(0, "{}", "a", "f")), chunk(finish="tool_calls")) + DONE
    whole = OpenAIDecoder(CALL)
    decoder = OpenAIDecoder(CALL)
    events = [event for at in range(0, len(stream), size) for event in decoder.feed(stream[at : at + size])]
    assert [*events, *decoder.finish()] == [*whole.feed(stream), *whole.finish()]


@pytest.mark.parametrize("identity", [{}, {"id": "", "created": 0, "model": ""}, {"id": None, "created": None}])
def test_text_in_a_first_chunk_without_an_identity_is_not_lost(identity: dict[str, Any]) -> None:
    """An empty identity is none, not one that is already known."""
    documents = [{**identity, "choices": item["choices"]} for item in (text("a"), text("b"), STOP)]
    assert [event.text for event in decode(*documents) if isinstance(event, TextDelta)] == ["a", "b"]


def test_data_of_several_lines_becomes_one() -> None:
    """A frame is written through as one line, or it would fall apart."""
    lines = sse(ROLE) + b'data: {"id":"c1","created":5,"model":"m",\r\ndata: "choices":[{"index":0,\n'
    lines += b'data: "delta":{"content":"a"}}]}\n\n'
    [_, event] = OpenAIDecoder(CALL).feed(lines)
    assert event.frame is not None
    assert b"\n" not in event.frame.data
    assert bare([event]) == [TextDelta("a")]


# --- a read that is one event like the last


def ready(*more: bytes) -> OpenAIDecoder:
    """Return a decoder that has read the beginning of a stream, and then what each of more is."""
    decoder = OpenAIDecoder(CALL)
    for data in (sse(ROLE, text("first")), *more):
        decoder.feed(data)
    return decoder


SECOND = sse(text("second"))


def thought(piece: str) -> Any:
    """Return a chunk with a piece of reasoning, as hosts write it beside a text that is none."""
    return chunk({"reasoning_content": piece, "content": None})


WORDS = st.lists(st.text(min_size=1), min_size=1)


@given(WORDS, WORDS)
def test_a_read_that_is_one_event_says_what_it_says_within_a_larger_one(words: list[str], thoughts: list[str]) -> None:
    """Text or reasoning, index, frame and estimate."""
    documents = [*map(text, words), *map(thought, thoughts), *map(text, words)]
    alone, together = ready(), ready()
    found = [event for document in documents for event in alone.feed(sse(document))]
    assert found == together.feed(sse(*documents))
    assert alone.usage == together.usage
    said = [(type(event), event.text) for event in found if isinstance(event, TextDelta | ReasoningDelta)]
    own = [(TextDelta, word) for word in words]
    assert said == [*own, *((ReasoningDelta, word) for word in thoughts), *own]


@pytest.mark.parametrize(("say", "kind"), [(text, TextDelta), (thought, ReasoningDelta)])
@given(words=WORDS, data=st.data())
def test_several_events_are_the_same_wherever_reads_cut_them(
    say: Callable[[str], Any], kind: type[TextDelta | ReasoningDelta], words: list[str], data: st.DataObject
) -> None:
    """Within an event or between two of them: texts, frames and the estimate are those of each event alone."""
    documents = [msgspec.json.encode(say(word)) for word in words]
    whole = sse(*documents)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=4)))
    decoder = OpenAIDecoder(CALL)
    decoder.feed(sse(ROLE, say("first")))
    found = [event for begin, end in pairwise([0, *cuts, len(whole)]) for event in decoder.feed(whole[begin:end])]
    expected = [
        kind(word, 0, Frame(document, OPENAI_CHUNK, 1)) for word, document in zip(words, documents, strict=True)
    ]
    assert found == expected
    assert decoder.usage is not None
    assert decoder.usage.output_tokens == -(-len("".join(["first", *words])) // 4)


@pytest.mark.parametrize(
    "odd",
    [
        sse(text("")),
        sse({**text("x"), "id": "other"}),
        sse(text("x")).replace(b'"x"', b'"x","refusal":"no"'),
        sse(text("x"), text("y")).replace(b"\n\ndata: ", b"\n: a comment\n\ndata: "),
        sse(text("x")).replace(b"\n", b"\r\n"),
        b": a comment\n\n",
        sse(STOP),
    ],
    ids=["empty", "identity", "refusal", "comment", "return", "alone", "finish"],
)
def test_one_that_is_not_like_the_others_is_read_as_it_is(odd: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """With those before and behind it in the same read."""
    events = [sse(text("a")), sse(text("b")), odd, sse(text("c"))]
    together, apart = ready(), ready()
    monkeypatch.setattr(apart, "_make_ready", lambda: None)
    expected = [found for event in events for found in apart.feed(event)]
    assert together.feed(b"".join(events)) == expected
    assert together.usage == apart.usage


@pytest.mark.parametrize(("say", "kind"), [(text, TextDelta), (thought, ReasoningDelta)])
def test_several_are_not_decoded_in_full_either(
    say: Callable[[str], Any], kind: type[TextDelta | ReasoningDelta]
) -> None:
    """Under load they come so."""
    decoder = ready(sse(say("second")))
    assert decoder._make_ready() is not None
    del decoder._sse
    assert bare(decoder.feed(sse(say("a"), say("b")))) == [kind("a"), kind("b")]
    assert bare(decoder.feed(sse(say("c")))) == [kind("c")]


def test_such_a_read_is_not_decoded_in_full() -> None:
    """Else this part of the file is in vain."""
    decoder = ready()
    assert decoder._make_ready() is not None
    del decoder._sse
    (event,) = decoder.feed(SECOND)
    assert event == TextDelta("second", 0, Frame(SECOND[6:-2], OPENAI_CHUNK, 1))


ORDINARY: dict[str, dict[str, Any]] = {
    "start": {**chunk({"role": "assistant", "content": "", "refusal": None}), "usage": None, "error": None},
    "reasoning": {**thought("hm"), "usage": None},
    "text": {**text("a"), "service_tier": "default", "usage": None},
    "finish": {**chunk({}, finish="stop"), "usage": None},
    "usage": {**IDENTITY, "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}},
}
"""The chunks of an ordinary stream."""


class InFull(OpenAIDecoder):
    """Takes no short way."""

    def _plain(self, chunk: Any, data: bytes) -> None:
        """Know nothing that is ordinary."""


def told(decoder: OpenAIDecoder, documents: list[Any]) -> Any:
    """Return all that a stream is read as, chunk by chunk."""
    try:
        said = [decoder.feed(sse(document)) for document in documents]
        return said, decoder.finish(), decoder.usage, decoder._lifecycle.dropped_count
    except UpstreamError as error:
        return type(error), error.code, error.message, decoder.usage


@pytest.mark.parametrize(
    "call",
    [
        CALL,
        structs.replace(CALL, target=None, choice_count=2),
        structs.replace(CALL, continuation=Continuation(way="restart", started=StreamStarted("c0", "m", 4))),
    ],
    ids=["one", "two", "known"],
)
@pytest.mark.parametrize("name", ORDINARY)
def test_an_ordinary_stream_is_read_like_any_other(name: str, call: Call) -> None:
    """One that is all but ordinary is, too: whatever stands in one place of one chunk, both ways say the same."""
    document = ORDINARY[name]
    places: list[tuple[str | int, ...]] = [(key,) for key in (*document, "error", "x_groq")]
    if document["choices"]:
        places += [("choices", 0, key) for key in Choice.__struct_fields__]
        places += [("choices", 0, "delta", key) for key in Delta.__struct_fields__]
    odd = [changed(document, place, value) for place in places for value in (*ODD, MISSING)]
    early = {**IDENTITY, "id": "", "choices": [], "prompt_filter_results": []}
    for other in (document, {**document, "choices": document["choices"] * 2}, *odd):
        for now in ([other], [other, document], [early, other]):
            documents = [one for key, usual in ORDINARY.items() for one in (now if key == name else [usual])]
            assert told(OpenAIDecoder(call), documents) == told(InFull(call), documents)


def test_an_ordinary_stream_is_not_read_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the test above is in vain."""
    monkeypatch.delattr(OpenAIDecoder, "_read_chunk")
    decoder = OpenAIDecoder(CALL)
    events = bare(decoder.feed(sse(*ORDINARY.values()) + DONE))
    usage = UsageReported(Usage(3, 2))
    assert events == [START, ReasoningDelta("hm"), TextDelta("a"), ChoiceFinished("stop", "stop"), usage]
    assert decoder.finish() == []


@pytest.mark.parametrize(
    "before",
    [
        sse(STOP),
        sse(STOP) + DONE,
        sse({"error": {"message": "broke"}}),
        sse(b"{"),
        SECOND[:-1],
        SECOND[:9],
        b": a comment",
        b"\r",
        sse({**text("x"), "id": "other"}),
        sse(tools(piece(0, "{}", "t", "f"))),
        sse(text("other", index=1)),
    ],
    ids=["finish", "done", "error", "malformed", "line", "half", "comment", "return", "identity", "tool", "choice"],
)
def test_what_came_before_counts_for_such_a_read_too(before: bytes) -> None:
    """A choice that has finished says no more, and behind half an event nothing begins."""
    said = [event for event in ready(before).feed(SECOND) if type(event) is TextDelta]
    plain = OpenAIDecoder(CALL)
    expected = [event for event in plain.feed(sse(ROLE, text("first")) + before + SECOND) if type(event) is TextDelta]
    told = [event for event in ready().feed(before) if type(event) is TextDelta]
    assert [event.text for event in (*told, *said)] == [event.text for event in expected[1:]]


@pytest.mark.parametrize(
    "odd",
    [
        SECOND.replace(b'"second"', b'"second"\n'),
        SECOND.replace(b'"second"', b'\n"second"'),
        SECOND.replace(b'"second"', b'"sec\nond"'),
        SECOND.replace(b'"second"', b'"sec\rond"'),
        SECOND.replace(b'"second"', b'""'),
        SECOND.replace(b'"second"', b'"'),
        SECOND.replace(b'"second"', b'"second","refusal":"no"'),
        SECOND.replace(b'"second"', b'"\xff"'),
        SECOND + SECOND,
    ],
)
def test_a_read_that_is_like_the_last_only_at_its_ends_is_decoded_in_full(odd: bytes) -> None:
    """Line breaks are ends of lines, and no event has one in its frame."""
    events = ready().feed(odd)
    assert ready().feed(b": x\n\n" + odd) == events
    assert all(event.frame is None or b"\n" not in event.frame.data for event in events)


# --- the end


def ends(stream: bytes, *, call: Call = CALL, done_is_end: bool = False) -> bool:
    """Return whether a stream counts as whole."""
    decoder = OpenAIDecoder(call, done_is_end=done_is_end)
    decoder.feed(stream)
    try:
        decoder.finish()
    except StreamInterrupted as error:
        return error.code != "stream_truncated"
    return True


TWO = Call(request_id="t", stream=True, choice_count=2)


@pytest.mark.parametrize(
    ("stream", "call", "is_whole"),
    [
        (sse(ROLE, text("a"), STOP) + DONE, CALL, True),
        (sse(ROLE, text("a"), STOP), CALL, True),
        (sse(ROLE, text("a")) + DONE, CALL, False),
        (sse(ROLE, text("a")), CALL, False),
        (sse(ROLE) + DONE, CALL, False),
        (DONE, CALL, False),
        (b"", CALL, False),
        (b": only a comment\n\n", CALL, False),
        (sse(ROLE, STOP).removesuffix(b"\n\n"), CALL, True),
        (sse(ROLE, STOP)[:-6], CALL, False),
        (sse(ROLE, STOP), TWO, False),
        (sse(ROLE, text("a", 1), STOP) + DONE, TWO, False),
        (sse(ROLE, text("a", 1), STOP, chunk(finish="stop", index=1)), TWO, True),
        (sse(ROLE, STOP) + DONE, TWO, True),
    ],
)
def test_a_stream_is_whole_when_all_its_choices_are_finished(stream: bytes, call: Call, is_whole: bool) -> None:  # noqa: FBT001
    """``[DONE]`` alone proves nothing, and its absence neither; it only says that no further choice will come."""
    assert ends(stream, call=call) is is_whole


def test_a_host_that_sends_no_finish_reason_ends_with_done() -> None:
    """And with nothing less, nor with nothing but it."""
    assert ends(sse(ROLE, text("a")) + DONE, done_is_end=True)
    assert not ends(sse(ROLE, text("a")), done_is_end=True)
    assert not ends(DONE, done_is_end=True)


def test_nothing_more_needs_to_be_read_after_done() -> None:
    """What comes behind it in the same read is no part of the answer, not even an error."""
    decoder = OpenAIDecoder(CALL)
    stream = sse(ROLE, STOP)
    decoder.feed(stream)
    before = decoder.is_complete
    behind = sse({"error": {"message": "late"}}, text("late"), b"not JSON")
    assert decoder.feed(DONE + behind) == []
    assert bare(decoder.finish()) == [UsageReported(Usage(4, 0, is_estimated=True))]
    assert (before, decoder.is_complete) == (False, True)


def test_text_and_a_second_finish_after_the_finish_are_dropped() -> None:
    """Nothing could be done with them that a client expects."""
    events = decode(ROLE, text("a"), STOP, text("b"), chunk(finish="length"), tools(piece(0, "{}", "a", "f")))
    assert [event for event in events if not isinstance(event, ProviderExtra)] == [
        START,
        TextDelta("a"),
        ChoiceFinished("stop", "stop"),
        ESTIMATE,
    ]


# --- errors inside a 200


@pytest.mark.parametrize(("document", "kind", "code"), FAILURES)
def test_an_error_instead_of_an_answer_is_that_of_the_attempt(
    document: Any, kind: type[UpstreamError], code: str
) -> None:
    """Nothing had begun: it is what the same error would have been as an HTTP status."""
    events, error = broken(sse(document) + DONE)
    assert events == []
    assert (type(error), error.code, error.message) == (kind, code, "Busy")


@pytest.mark.parametrize(("document", "kind", "code"), FAILURES)
def test_an_error_in_an_answer_is_an_interruption(document: Any, kind: type[UpstreamError], code: str) -> None:
    """What came before it in the same read is delivered first."""
    events, error = broken(sse(ROLE, text("a"), document, text("b"), STOP) + DONE)
    assert events == [START, TextDelta("a")]
    assert (type(error), error.code, error.message) == (StreamInterrupted, code, "Busy")
    assert error.retryable is kind.retryable


@pytest.mark.parametrize(("reason", "code"), [("error", 500), ("insufficient_system_resource", 503)])
def test_a_finish_reason_that_means_failure_is_one(reason: str, code: int) -> None:
    """It is not passed on as the end of an answer."""
    events, error = broken(sse(ROLE, text("a"), chunk(finish=reason)) + DONE)
    assert events == [START, TextDelta("a")]
    assert (type(error), error.upstream_status, error.retryable) == (StreamInterrupted, code, True)


def test_an_error_shows_neither_key_nor_line_breaks() -> None:
    """A provider's words are somebody else's text."""
    _, error = broken(sse({"error": {"message": "bad key\ntopsecret"}}))
    assert error.message == "bad key [redacted]"


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b"nonsense",
        b'"text"',
        b"[1]",
        b'{"choices": 7}',
        b'{"choices": [null]}',
        b'{"choices": [{"index": "0"}]}',
        b'{"error": {"message": "\xff"}}',
        b'{"id": "c1", "x": "\xff", "choices": [{"delta": {"content": "a"}}]}',
        b'{"x": ' + b"[" * 100_000,
        b'{"usage": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_bytes_that_are_no_chunk_break_the_stream(data: bytes) -> None:
    """The error quotes nothing of them."""
    events, error = broken(sse(ROLE, text("a"), data))
    assert events == [START, TextDelta("a")]
    assert (type(error), error.code) == (StreamInterrupted, "malformed_stream")
    assert error.message == "the provider sent a chunk that is not a chat completion chunk"


# --- whatever comes


def check(decoder: OpenAIDecoder, pieces: list[bytes]) -> list[Event]:
    """Feed pieces, expect errors of the tree at most, and return the events, which are legal."""
    events: list[Event] = []
    try:
        for data in pieces:
            events += decoder.feed(data)
        events += decoder.finish()
    except UpstreamError:
        pass
    assert Lifecycle().admit(events) == events
    return events


def pieces_of(stream: bytes, cuts: list[int]) -> list[bytes]:
    """Return a stream, cut at places."""
    places = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    return [stream[start:end] for start, end in pairwise(places)]


@given(st.binary(max_size=200), st.lists(st.integers(0, 1000), max_size=5), st.booleans())
def test_arbitrary_bytes_only_raise_errors_of_the_tree(data: bytes, cuts: list[int], is_framed: bool) -> None:  # noqa: FBT001
    """However they are split, and whether or not they look like events."""
    stream = sse(ROLE, text("a")) + (b"data: %b\n\n" % data if is_framed else data)
    check(OpenAIDecoder(CALL), pieces_of(stream, cuts))
    check(OpenAIDecoder(CALL), pieces_of(data, cuts))


@given(st.lists(CHUNKS | TREES, max_size=6), st.lists(st.integers(0, 5000), max_size=5))
def test_arbitrary_chunks_give_legal_events_and_frames_of_one_identity(documents: list[Any], cuts: list[int]) -> None:
    """Whatever a host leaves out or adds, its chunks are of one answer, each with its choices."""
    events = check(OpenAIDecoder(CALL), pieces_of(sse(*documents), cuts))
    sent = [msgspec.json.decode(event.frame.data) for event in events if event.frame is not None]
    assert len({(item["id"], item["created"], item["model"]) for item in sent}) <= 1
    for document in sent:
        assert isinstance(document["choices"], list)
        assert all(isinstance(choice["index"], int) for choice in document["choices"])


# --- an answer that the client knows already


@pytest.mark.parametrize("way", ["restart", "exact", "anchored"])
def test_a_known_answer_keeps_its_name(way: Way) -> None:
    """Every chunk has it, and the start is this attempt's, with nothing behind it that would be written through."""
    decoder = OpenAIDecoder(known(KNOWN, way))
    documents = [ROLE, text("a"), text("b"), STOP, {**IDENTITY, "choices": [], "usage": {"prompt_tokens": 1}}]
    events = [*decoder.feed(sse(*documents) + DONE), *decoder.finish()]
    assert bare(events) == [
        StreamStarted("first", "model-1", 3, target="openai/gpt"),
        TextDelta("a"),
        TextDelta("b"),
        ChoiceFinished("stop", "stop"),
        UsageReported(Usage(1, 0)),
    ]
    assert events[0].frame is None
    for event in events[1:]:
        assert event.frame is not None
        assert event.frame.event_count == 1
        document = msgspec.json.decode(event.frame.data)
        assert (document["id"], document["created"], document["model"]) == ("first", 3, "model-1")


def test_what_a_first_chunk_says_is_told_without_its_role() -> None:
    """Of hosts that send text or usage with it; the client has had the role."""
    first = chunk({"role": "assistant", "content": "a"}, usage={"prompt_tokens": 1, "completion_tokens": 1})
    events = OpenAIDecoder(known(KNOWN)).feed(sse(first))
    assert [type(event) for event in events] == [StreamStarted, TextDelta, UsageReported]
    frame = events[1].frame
    assert frame is not None
    assert frame is events[2].frame
    assert frame.event_count == 2
    document = msgspec.json.decode(frame.data)
    assert document["choices"][0]["delta"] == {"content": "a"}
    assert (document["id"], document["model"]) == ("first", "model-1")


def test_a_role_is_not_said_again() -> None:
    """Not on the first chunk and on none after it; another choice's may not have been said."""
    documents = [
        ROLE,
        chunk({"role": "assistant", "content": "a"}),
        chunk({"role": "assistant", "content": "b"}, index=1),
    ]
    events = OpenAIDecoder(known(KNOWN, choice_count=2)).feed(sse(*documents))
    deltas = [msgspec.json.decode(event.frame.data)["choices"][0]["delta"] for event in events if event.frame]
    assert deltas == [{"content": "a"}, {"role": "assistant", "content": "b"}]


def test_the_word_on_a_prompt_is_not_said_again() -> None:
    """Azure sends it with every attempt."""
    early = {"choices": [], "created": 0, "id": "", "model": "", "prompt_filter_results": []}
    events = OpenAIDecoder(known(KNOWN)).feed(sse(early, ROLE, text("a")))
    assert [type(event) for event in events] == [StreamStarted, TextDelta]


def test_an_attempt_that_has_the_known_name_itself_still_starts() -> None:
    """A provider may answer the same request under the same id."""
    started = StreamStarted("c1", "m", 5)
    assert decode(text("a"), text("b"), STOP, call=known(started))[:3] == [START, TextDelta("a"), TextDelta("b")]


def test_usage_so_far_is_known_in_the_middle() -> None:
    """Estimated, until a host tells: some do on every chunk."""
    decoder = OpenAIDecoder(CALL)
    seen = [decoder.usage]
    for document in (ROLE, text("abcd"), text("efgh"), chunk({}, usage={"prompt_tokens": 3, "completion_tokens": 2})):
        decoder.feed(sse(document))
        seen.append(decoder.usage)
    estimates = [Usage(4, 1, is_estimated=True), Usage(4, 2, is_estimated=True)]
    assert seen == [None, None, *estimates, Usage(3, 2)]
