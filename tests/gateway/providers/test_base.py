from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import pytest
from msgspec import structs

from gateway.core.call import Call, Message, Target, TextPart
from gateway.core.continuation import Continuation
from gateway.core.errors import StreamInterrupted, UpstreamBusy, UpstreamError
from gateway.core.events import (
    ChoiceFinished,
    Event,
    Frame,
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
from gateway.core.sse import ServerSentEvent
from gateway.providers.base import (
    EventDecoder,
    ProviderOptions,
    RequestHeaders,
    UpstreamRequest,
    estimate_tokens,
    framed,
    started,
    with_usage,
)
from gateway.providers.errors import ErrorBody, malformed, upstream_error

CALL = Call(request_id="r1", messages=(Message(role="user", parts=(TextPart("12345678"),)),))


class WordDecoder(EventDecoder):
    """Reads a wire of words: ``start``, ``end``, ``used``, ``call``, ``busy``, and anything else is text."""

    def _read(self, message: ServerSentEvent, events: list[Event]) -> None:
        match message.data:
            case b"start":
                events.append(StreamStarted("a", "m"))
            case b"end":
                events.append(ChoiceFinished("stop"))
                self._has_ended = True
            case b"used":
                events.append(UsageReported(Usage(1, 2)))
            case b"call":
                events.extend([ToolCallStarted(0, "c", "f"), ToolCallDelta(0, "{}{}"), ReasoningDelta("1234")])
            case b"busy":
                raise upstream_error(503, ErrorBody("busy", "c"))
            case b"odd":
                raise malformed("an odd word")
            case data:
                events.append(TextDelta(data.decode()))

    def _is_whole(self) -> bool:
        return self._lifecycle.finished_count > 0


def sse(*words: str) -> bytes:
    """Return ``words`` as server-sent events."""
    return "".join(f"data: {word}\n\n" for word in words).encode()


def fail(data: bytes) -> tuple[list[Event], UpstreamError]:
    """Return what comes before the error, and the error."""
    decoder = WordDecoder(CALL)
    events = decoder.feed(data)
    with pytest.raises(UpstreamError) as caught:
        decoder.finish()
    return events, caught.value


def test_stream_with_its_end_is_complete() -> None:
    """The end marker says that nothing more needs to be read."""
    decoder = WordDecoder(CALL)
    assert decoder.feed(sse("start", "hi", "used")) == [
        StreamStarted("a", "m"),
        TextDelta("hi"),
        UsageReported(Usage(1, 2)),
    ]
    was_complete = decoder.is_complete
    assert decoder.feed(sse("end")) == [ChoiceFinished("stop")]
    assert (was_complete, decoder.is_complete) == (False, True)
    assert decoder.finish() == []


def test_a_total_that_comes_with_each_text_is_legal_where_the_text_is() -> None:
    """Behind the end of a choice it is told without the text, and counts all the same."""
    decoder = WordDecoder(CALL)
    decoder.feed(sse("start", "hi"))
    total = UsageReported(Usage(1, 2))
    assert decoder.feed(sse("ho", "used")) == [TextDelta("ho"), total]
    assert decoder._character_count == 4
    assert decoder.usage == total.usage
    decoder = WordDecoder(CALL)
    decoder.feed(sse("start", "hi", "end"))
    assert decoder.feed(sse("ho", "used")) == [total]
    assert decoder.usage == total.usage
    assert decoder._character_count == 2


def test_last_event_without_its_blank_line_counts() -> None:
    """What the end of the bytes completes is delivered by it."""
    decoder = WordDecoder(CALL)
    decoder.feed(sse("start", "hi", "used"))
    assert decoder.feed(b"data: end") == []
    assert decoder.finish() == [ChoiceFinished("stop")]


def test_end_of_bytes_before_the_answers_end_is_an_interruption() -> None:
    """However cleanly the socket was closed."""
    events, error = fail(sse("start", "hi"))
    assert events == [StreamStarted("a", "m"), TextDelta("hi")]
    assert isinstance(error, StreamInterrupted)
    assert error.code == "stream_truncated"


def test_error_does_not_take_good_events_along() -> None:
    """What came in the same read is returned first; the error is raised at the end, which is reached at once."""
    decoder = WordDecoder(CALL)
    assert decoder.feed(sse("start", "hi", "busy", "lost")) == [StreamStarted("a", "m"), TextDelta("hi")]
    assert decoder.is_complete
    assert decoder.feed(sse("lost")) == []
    with pytest.raises(StreamInterrupted) as caught:
        decoder.finish()
    assert (caught.value.code, caught.value.upstream_status) == ("c", 503)


def test_error_before_the_start_is_what_it_says() -> None:
    """An attempt that never began may be told by a status."""
    assert isinstance(fail(sse("busy"))[1], UpstreamBusy)


@pytest.mark.parametrize("tail", [b"data: busy", b"data: busy\n"])
def test_error_without_its_blank_line_is_an_interruption_too(tail: bytes) -> None:
    """The last thing that a provider says may be half a frame, and is said after the start."""
    error = fail(sse("start", "hi") + tail)[1]
    assert isinstance(error, StreamInterrupted)
    assert error.code == "c"
    assert isinstance(fail(tail)[1], UpstreamBusy)


def test_half_an_event_counts_for_nothing() -> None:
    """Behind a whole answer it does no harm; in front of its end the stream was cut."""
    decoder = WordDecoder(CALL)
    decoder.feed(sse("start", "hi", "used", "end") + b"data: odd")
    assert decoder.finish() == []
    assert fail(sse("start", "hi") + b"data: odd")[1].code == "stream_truncated"


def test_illegal_events_are_not_passed_on() -> None:
    """Words before the start or behind the end reach nobody."""
    assert WordDecoder(CALL).feed(sse("early", "start", "hi", "end", "late", "start")) == [
        StreamStarted("a", "m"),
        TextDelta("hi"),
        ChoiceFinished("stop"),
    ]


def test_words_one_by_one_are_counted_and_checked_like_many() -> None:
    """The short way for a single piece of text passes on the same and counts the same."""
    decoder = WordDecoder(CALL)
    words = ["early", "start", "abcd", "efgh", "i", "end", "late"]
    events = [event for word in words for event in decoder.feed(sse(word))]
    assert events == WordDecoder(CALL).feed(sse(*words))
    assert decoder.finish() == [UsageReported(Usage(2, 3, is_estimated=True))]


def test_usage_is_estimated_where_the_provider_reported_none() -> None:
    """Four characters are a token, of the prompt and of all that was said; the estimate is marked as one."""
    decoder = WordDecoder(CALL)
    decoder.feed(sse("start", "abcd", "call", "end"))
    assert decoder.finish() == [UsageReported(Usage(2, 3, is_estimated=True))]


def test_usage_so_far_is_the_last_report_or_an_estimate() -> None:
    """Whoever leaves in the middle knows what it has cost; while nothing was said, nothing is known."""
    decoder = WordDecoder(CALL)
    seen = [decoder.usage]
    for word in ("start", "abcdefgh", "used", "more"):
        decoder.feed(sse(word))
        seen.append(decoder.usage)
    assert seen == [None, None, Usage(2, 2, is_estimated=True), Usage(1, 2), Usage(1, 2)]


def test_usage_of_what_goes_on_with_an_answer_counts_it_in_the_prompt() -> None:
    """The provider was shown it; what was said new is the output."""
    continuation = Continuation(way="exact", text="12345678")
    decoder = WordDecoder(structs.replace(CALL, continuation=continuation))
    decoder.feed(sse("start", "abcd"))
    assert decoder.usage == Usage(4, 1, is_estimated=True)
    decoder = WordDecoder(structs.replace(CALL, continuation=replace(continuation, way="restart")))
    decoder.feed(sse("start", "abcd"))
    assert decoder.usage == Usage(2, 1, is_estimated=True)


def test_usage_of_a_whole_answer_is_estimated_where_none_was_reported() -> None:
    """All that was said counts, as it does in a stream; the answer's own events are left alone."""
    answer: list[Event] = [
        StreamStarted("a", "m"),
        ReasoningDelta("1234"),
        TextDelta("12345"),
        RefusalDelta("123"),
        ToolCallStarted(0, "c", "f"),
        ToolCallDelta(0, "{}{}"),
        ChoiceFinished("stop"),
    ]
    given = list(answer)
    assert with_usage(CALL, given) == [*answer, UsageReported(Usage(2, 4, is_estimated=True))]
    assert given == answer


def test_usage_of_a_whole_answer_that_was_reported_is_the_providers() -> None:
    """Nothing is added to it, wherever it stands."""
    reported = UsageReported(Usage(1, 2))
    answer: list[Event] = [StreamStarted("a", "m"), reported, TextDelta("12345"), ChoiceFinished("stop")]
    assert with_usage(CALL, answer) == answer


def test_wire_must_say_how_it_is_read() -> None:
    """The base alone reads nothing."""
    decoder = EventDecoder(CALL)
    with pytest.raises(NotImplementedError):
        decoder.feed(sse("start"))
    with pytest.raises(NotImplementedError):
        EventDecoder(CALL).finish()


@pytest.mark.parametrize(("characters", "tokens"), [(0, 0), (1, 1), (4, 1), (5, 2)])
def test_estimate_rounds_up(characters: int, tokens: int) -> None:
    """What was said was at least something."""
    assert estimate_tokens(characters) == tokens


def test_events_of_a_document_share_its_frame() -> None:
    """A document that says nothing we understand is an extra, so that a client of the same wire gets it."""
    first, second = framed([StreamStarted("a", "m"), TextDelta("b")], b"{}", "w")
    assert first == StreamStarted("a", "m", frame=Frame(b"{}", "w", 2))
    assert second.frame is first.frame
    assert framed([], b"{}", "w") == [ProviderExtra(Frame(b"{}", "w", 1))]


def test_start_has_the_models_own_name_or_that_of_the_target() -> None:
    """And says which target answers."""
    call = Call(request_id="r1", model="chat", target=Target("p", "gpt"))
    assert started(call, "a", "gpt-1", 7) == StreamStarted("a", "gpt-1", 7, target="p/gpt")
    assert started(call, "a") == StreamStarted("a", "gpt", target="p/gpt")
    assert started(Call(request_id="r1", model="chat"), "a", "") == StreamStarted("a", "chat")


@pytest.mark.parametrize(("stream", "accepted"), [(True, "text/event-stream"), (False, "application/json")])
def test_request_says_what_it_is_and_what_it_wants(stream: bool, accepted: str) -> None:  # noqa: FBT001
    """JSON there, events or JSON back."""
    headers = RequestHeaders({}, {}).of(Call(request_id="r1", stream=stream))
    assert headers == {"content-type": "application/json", "accept": accepted}


def test_request_headers_are_the_configured_ones_before_the_own_before_what_is_forwarded() -> None:
    """Of a call's only those that may go on, and its trace; calls without any share theirs, and cannot change it."""
    headers = RequestHeaders({"b": "own", "c": "own"}, {"c": "configured"}, forwarded=("a", "b"))
    said = {"a": "said", "b": "said", "c": "said", "other": "said", "traceparent": "00-1"}
    content = {"content-type": "application/json", "accept": "application/json"}
    call = Call(request_id="r1")
    assert headers.of(call) is headers.of(Call(request_id="r2"))
    assert headers.of(call) == {**content, "b": "own", "c": "configured"}
    assert isinstance(headers.of(call), MappingProxyType)
    found = headers.of(Call(request_id="r1", headers=said))
    assert found == {**content, "a": "said", "traceparent": "00-1", "b": "own", "c": "configured"}


def test_configured_address_beats_the_known_one() -> None:
    """Neither has a slash at its end, for a path to be put behind it."""
    assert ProviderOptions(name="p", base_url="http://h/v1/").base_url_or("https://known") == "http://h/v1"
    assert ProviderOptions(name="p").base_url_or("https://known/") == "https://known"


def test_representation_has_no_secret_and_no_prompt() -> None:
    """Options and requests that end up in a log or a traceback give nobody away."""
    options = ProviderOptions(name="p", api_key="hush", headers={"x": "hush"})
    request = UpstreamRequest("https://h", {"authorization": "hush"}, b"hush")
    assert "hush" not in repr(options) + repr(request)
