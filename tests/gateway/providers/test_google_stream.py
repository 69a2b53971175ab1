from __future__ import annotations

import json
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from gateway.core.call import Call, Target
from gateway.core.continuation import ANSWER_CONTINUES, Checkpoint, Continuation, Way
from gateway.core.errors import StreamInterrupted, UpstreamBusy, UpstreamError, UpstreamFailed, UpstreamRefused
from gateway.core.events import (
    CheckpointReached,
    ChoiceFinished,
    Event,
    ProviderExtra,
    ReasoningDelta,
    StreamStarted,
    TextDelta,
    ToolCallStarted,
    Usage,
    UsageReported,
)
from gateway.core.transcript import Transcript
from gateway.providers.google_stream import (
    GENERATE_CONTENT,
    GoogleDecoder,
    checkpoint_of,
    model_name,
)
from tests.gateway.providers.short_way import check_short_way

CALL = Call(request_id="r1", target=Target("google", "gemini-2.5-flash"), stream=True)


def chunk(*parts: Any, finish: str | int | None = None, index: int | None = None, **fields: Any) -> dict[str, Any]:
    """Return a chunk with one candidate."""
    candidate: dict[str, Any] = {"content": {"parts": list(parts), "role": "model"}}
    if finish is not None:
        candidate["finishReason"] = finish
    if index is not None:
        candidate["index"] = index
    return {"candidates": [candidate], "modelVersion": "gemini-x", "responseId": "a1", **fields}


def text(words: str, **fields: Any) -> dict[str, Any]:
    """Return a chunk with one piece of text."""
    return chunk({"text": words}, **fields)


def function(**fields: Any) -> dict[str, Any]:
    """Return a part that is a function call."""
    return {"functionCall": fields}


def used(prompt: int, output: int | None = None, **fields: int) -> dict[str, Any]:
    """Return the totals of a chunk."""
    counts = {"promptTokenCount": prompt, **fields}
    return {"usageMetadata": counts if output is None else {**counts, "candidatesTokenCount": output}}


def sse(*chunks: Any, end: str = "\r\n") -> bytes:
    """Return ``chunks`` as server-sent events."""
    return "".join(f"data: {json.dumps(one)}{end}{end}" for one in chunks).encode()


def decode(*chunks: Any) -> list[Event]:
    """Return the events of a whole stream."""
    return feed(sse(*chunks))


def feed(*data: bytes) -> list[Event]:
    """Return the events of a stream's bytes."""
    decoder = GoogleDecoder(CALL)
    events = [event for piece in data for event in decoder.feed(piece)]
    return events + decoder.finish()


def fold(events: list[Event]) -> Transcript:
    """Return what ``events`` amount to."""
    transcript = Transcript()
    transcript.add(events)
    return transcript


def fail(*chunks: Any) -> UpstreamError:
    """Return the error that a stream ends with."""
    with pytest.raises(UpstreamError) as caught:
        decode(*chunks)
    return caught.value


def calls(*chunks: Any) -> list[tuple[str, str, str]]:
    """Return id, name and arguments of all calls of a whole stream."""
    transcript = fold(decode(*chunks))
    return [
        (call.id, call.name, call.arguments)
        for choice in transcript.choices.values()
        for call in choice.tool_calls.values()
    ]


def test_text_stream_is_told_in_order_with_its_usage() -> None:
    """A start, the pieces, each new total, and the finish when the bytes have ended."""
    events = decode(
        text("Hel", **used(3, 1)),
        text("lo", **used(3, 2, thoughtsTokenCount=5, cachedContentTokenCount=1, toolUsePromptTokenCount=4)),
        text(
            "", finish="STOP", **used(3, 2, thoughtsTokenCount=5, cachedContentTokenCount=1, toolUsePromptTokenCount=4)
        ),
    )
    assert [type(event) for event in events] == [
        StreamStarted,
        TextDelta,
        UsageReported,
        TextDelta,
        UsageReported,
        ChoiceFinished,
    ]
    assert isinstance(events[0], StreamStarted)
    assert (events[0].id, events[0].model, events[0].target) == ("a1", "gemini-x", "google/gemini-2.5-flash")
    transcript = fold(events)
    assert transcript.choice().text == "Hello"
    assert transcript.usage == Usage(7, 7, cached_input_tokens=1, reasoning_tokens=5)
    assert (transcript.choice().finish_reason, transcript.choice().native_reason) == ("stop", "STOP")


def test_events_of_a_chunk_share_its_json() -> None:
    """Each event has its document, and the document the number of its events, the late finish with it."""
    first, last = text("a", **used(1, 1)), text("b", finish="STOP")
    events = decode(first, last)
    assert [json.loads(event.frame.data) for event in events if event.frame] == [first, first, first, last, last]
    assert [event.frame.event_count for event in events if event.frame] == [3, 3, 3, 2, 2]
    assert {event.frame.wire for event in events if event.frame} == {GENERATE_CONTENT}


def test_plain_text_chunk_carries_one_or_two_events() -> None:
    """The short way for nearly all of a stream frames as the long one does."""
    events = decode(text("a"), text("b"), text("c", **used(1, 2)), text("d", finish="STOP"))
    counts = [event.frame.event_count for event in events if event.frame]
    assert counts == [2, 2, 1, 2, 2, 2, 2]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("size", [1, 3, 10_000])
def test_stream_may_be_cut_anywhere(end: str, size: int) -> None:
    """Line ends and network reads make no difference."""
    chunks = [text("Grüße "), chunk(function(name="f", args={"ä": "ö"})), text("", finish="STOP", **used(1, 1))]
    body = sse(*chunks, end=end)
    assert feed(*[body[at : at + size] for at in range(0, len(body), size)]) == decode(*chunks)


@pytest.mark.parametrize("size", [1, 2, 10_000])
@pytest.mark.parametrize("indent", [None, 2])
def test_json_array_is_read_like_server_sent_events(size: int, indent: int | None) -> None:
    """The same chunks come out of the array that is sent without ``alt=sse``."""
    chunks = [text('a"{'), text("b"), text("c", finish="STOP")]
    body = b" \n" + json.dumps(chunks, indent=indent).encode()
    events = feed(*[body[at : at + size] for at in range(0, len(body), size)])
    assert fold(events).choice().text == 'a"{bc'
    assert fold(events).choice().finish_reason == "stop"


def test_json_array_without_its_end_is_an_interruption() -> None:
    """An array that was not closed was cut, whatever its items say."""
    with pytest.raises(StreamInterrupted):
        feed(json.dumps([text("a", finish="STOP")]).encode()[:-1])


def test_thoughts_are_reasoning() -> None:
    """A part that is a thought is not part of the answer."""
    events = decode(
        chunk({"text": "Hm.", "thought": True}, {"text": "Yes."}, {"text": "", "thoughtSignature": "x"}, finish="STOP")
    )
    assert [event.text for event in events if isinstance(event, ReasoningDelta)] == ["Hm."]
    assert fold(events).choice().text == "Yes."


def test_calls_of_an_answer_are_told_whole_and_named_after_it() -> None:
    """Or after the request, as some hosts leave the answer's id out."""
    found = calls(chunk(function(name="f", args={"a": [1]}), {"text": "x"}), chunk(function(name="g"), finish="STOP"))
    assert found == [("call_a1_0", "f", '{"a":[1]}'), ("call_a1_1", "g", "{}")]
    assert calls(chunk(function(name="f"), finish="STOP", responseId=None))[0][0] == "call_r1_0"


def test_stop_behind_a_call_means_the_call() -> None:
    """Google says ``STOP`` for both; a limit stays a limit."""
    assert fold(decode(chunk(function(name="f"), finish="STOP"))).choice().finish_reason == "tool_calls"
    assert fold(decode(chunk(function(name="f"), finish="MAX_TOKENS"))).choice().finish_reason == "length"


def test_call_without_its_end_never_ends_well() -> None:
    """A stop in the middle of a call is an interruption, and nothing of the call is told."""
    opened = chunk(function(name="f", willContinue=True))
    assert fail(opened, chunk(finish="STOP")).code == "malformed_stream"
    events = decode(opened, chunk(finish="MAX_TOKENS"))
    assert not any(isinstance(event, ToolCallStarted) for event in events)
    assert fold(events).choice().finish_reason == "length"


@pytest.mark.parametrize("part", [function(args={"a": 1}), function(name="f", args="x"), {"text": 3}])
def test_part_that_is_none_is_refused(part: Any) -> None:
    """What cannot be told is not guessed at."""
    assert fail(chunk(part, finish="STOP")).code == "malformed_stream"


def test_what_only_google_knows_is_an_extra() -> None:
    """Code that Google ran and the calls of its own tools are never the client's calls."""
    events = decode(
        chunk({"executableCode": {"code": "1"}}, {"codeExecutionResult": {}}),
        chunk({"toolCall": {"toolType": "GOOGLE_SEARCH"}}, {"text": "found"}),
        chunk({"inlineData": {"mimeType": "image/png", "data": "QQ=="}}, finish="STOP"),
    )
    assert sum(isinstance(event, ProviderExtra) for event in events) == 3
    assert fold(events).choice().finish_reason == "stop"


def test_chunk_that_says_nothing_is_an_extra() -> None:
    """An empty piece of text is no progress, but it is still the provider's frame."""
    events = decode(text("a"), text(""), {}, chunk(function()), chunk(finish="STOP"))
    assert [type(event) for event in events[2:5]] == [ProviderExtra] * 3


@pytest.mark.parametrize(
    ("native", "reason"),
    [
        ("STOP", "stop"),
        ("MAX_TOKENS", "length"),
        ("SAFETY", "content_filter"),
        ("RECITATION", "content_filter"),
        ("IMAGE_SAFETY", "content_filter"),
        ("MODEL_ARMOR", "content_filter"),
        ("OTHER", "stop"),
        ("SOMETHING_NEW", "stop"),
        (1, "stop"),
        (2, "length"),
    ],
)
def test_finish_reason_is_told_in_both_terms(native: str | int, reason: str) -> None:
    """OpenAI's word and Google's own."""
    choice = fold(decode(text("a", finish=native))).choice()
    assert (choice.finish_reason, choice.native_reason) == (reason, str(native))


@pytest.mark.parametrize("native", ["MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "MISSING_THOUGHT_SIGNATURE"])
def test_finish_without_an_answer_is_an_interruption(native: str) -> None:
    """What was said before it is delivered, then the reason is told as an error."""
    decoder = GoogleDecoder(CALL)
    events = decoder.feed(sse(text("Well", finish=native)))
    assert fold(events).choice().text == "Well"
    assert decoder.is_complete
    with pytest.raises(StreamInterrupted) as caught:
        decoder.finish()
    assert (caught.value.code, caught.value.retryable) == (native.lower(), True)


def test_blocked_prompt_is_filtered_content() -> None:
    """There is no candidate, and that is the whole answer."""
    events = decode({"promptFeedback": {"blockReason": "SAFETY"}})
    choice = fold(events).choice()
    assert (choice.finish_reason, choice.native_reason) == ("content_filter", "blockReason:SAFETY")


@pytest.mark.parametrize("native", ["FINISH_REASON_UNSPECIFIED", "", 0])
def test_reason_that_is_none_is_not_an_end(native: str | int) -> None:
    """The stream was cut."""
    assert fail(text("a", finish=native)).code == "stream_truncated"


def test_answer_that_continues_is_not_whole() -> None:
    """A hop that ends has an error of its own, which says that the rest can be had."""
    error = fail(text("a"), text("", finish="CONTINUATION"))
    assert isinstance(error, StreamInterrupted)
    assert (error.code, error.retryable, error.error_type) == (ANSWER_CONTINUES, True, "_OTHER")


def test_answer_whose_every_candidate_ends_is_whole_in_spite_of_a_hop() -> None:
    """The last word of a candidate counts, and that of each."""
    both = chunk({"text": "b"}, index=1, finish="STOP")
    assert fold(decode(text("a", finish="CONTINUATION"), text("b", finish="STOP"))).choice().finish_reason == "stop"
    assert fail(text("a", finish="CONTINUATION"), both).code == ANSWER_CONTINUES


def token(value: str, words: str = "a", **fields: Any) -> dict[str, Any]:
    """Return a chunk with text and a continuation token behind it."""
    given = text(words, **fields)
    given["candidates"][0]["continuationToken"] = value
    return given


def told(*chunks: Any, call: Call = CALL) -> list[tuple[str, str]]:
    """Return the tokens that a stream tells, each with the text before it."""
    decoder = GoogleDecoder(call)
    found, before = [], ""
    for event in decoder.feed(sse(*chunks)):
        before += event.text if isinstance(event, TextDelta) else ""
        if isinstance(event, CheckpointReached):
            found.append((event.token, before))
    return found


def test_token_is_a_checkpoint_behind_the_text_of_its_chunk() -> None:
    """It has no part in the chunk's frame, which a client of the same wire gets as it came."""
    events = GoogleDecoder(CALL).feed(sse(text("a"), token("t1", "b", **used(1, 1)), token("t2", "c")))
    assert [type(event) for event in events] == [
        StreamStarted,
        TextDelta,
        TextDelta,
        UsageReported,
        CheckpointReached,
        TextDelta,
        CheckpointReached,
    ]
    assert [event.frame.event_count for event in events if event.frame is not None] == [2, 2, 2, 2, 1]
    assert events[-1] == CheckpointReached("t2")


def test_token_that_comes_again_counts_where_it_came_first() -> None:
    """At the end of a hop it is said once more, and a chunk may have no text at all."""
    hop = token("t", "", finish="CONTINUATION")
    assert told(text("a"), token("t", "b"), text("c"), hop, token("u", "", index=0)) == [("t", "ab"), ("u", "abc")]
    assert told(token("", "a")) == []


def test_tokens_of_candidates_are_told_apart() -> None:
    """Each candidate has its own."""
    events = GoogleDecoder(CALL).feed(sse(token("t", "a"), token("t", "b", index=1)))
    assert [event for event in events if isinstance(event, CheckpointReached)] == [
        CheckpointReached("t"),
        CheckpointReached("t", 1),
    ]


@pytest.mark.parametrize(
    ("way", "target", "is_told"),
    [
        ("restart", None, True),
        ("anchored", None, False),
        ("exact", None, False),
        ("exact", "google/gemini-2.5-flash", True),
        ("exact", "google/another", False),
    ],
)
def test_token_for_another_request_is_not_told(way: Way, target: str | None, is_told: bool) -> None:  # noqa: FBT001, a column of the table
    """One that shows a partial answer, or asks for more in words, is not the client's own."""
    checkpoint = None if target is None else Checkpoint(target=target, token="s", character_count=0)
    continuation = Continuation(way=way, text="x", checkpoint=checkpoint)
    call = structs.replace(CALL, continuation=continuation)
    assert bool(told(token("t"), call=call)) is is_told
    assert (checkpoint_of(call) is not None) is (way == "exact" and is_told)


def test_usage_so_far_is_the_running_total() -> None:
    """A stream that tells none is estimated."""
    decoder = GoogleDecoder(CALL)
    seen = [decoder.usage]
    for stream in (sse(text("abcde")), sse(text("b", **used(3, 1)), text("c", **used(3, 2)))):
        decoder.feed(stream)
        seen.append(decoder.usage)
    assert seen == [None, Usage(0, 2, is_estimated=True), Usage(3, 2)]


def test_finish_on_every_chunk_is_final_with_the_last() -> None:
    """Older models say ``STOP`` all the time: no text is lost, and one finish is told."""
    events = decode(text("a", finish="STOP"), text("b", finish="STOP"), chunk(finish="RECITATION"))
    assert fold(events).choice().text == "ab"
    assert [event.native_reason for event in events if isinstance(event, ChoiceFinished)] == ["RECITATION"]


def test_words_behind_the_finish_are_dropped() -> None:
    """A chunk without a finish of its own cannot add to a finished answer, nor take back its end."""
    events = decode(
        text("a", finish="STOP"),
        text("b"),
        chunk(function(name="f")),
        chunk(),
        {"usageMetadata": {"promptTokenCount": 1}},
    )
    choice = fold(events).choice()
    assert (choice.text, choice.tool_calls, choice.finish_reason) == ("a", {}, "stop")


def test_usage_may_follow_the_finish() -> None:
    """A last chunk without candidates brings the total."""
    assert fold(decode(text("a", finish="STOP"), used(3, 4))).usage == Usage(3, 4)


@pytest.mark.parametrize("counts", [{"trafficType": "ON_DEMAND"}, {"promptTokenCount": 0, "candidatesTokenCount": 0}])
def test_usage_without_counts_is_estimated(counts: dict[str, Any]) -> None:
    """Vertex sends totals that count nothing before the end; if none ever does, lengths must do."""
    usage = fold(decode(text("abcdefgh", finish="STOP", usageMetadata=counts))).usage
    assert usage == Usage(0, 2, is_estimated=True)


def test_usage_of_nothing_does_not_replace_what_was_counted() -> None:
    """A chunk behind the finish may count anew, from nothing."""
    assert fold(decode(text("a", finish="STOP", **used(3, 4)), used(0, 0))).usage == Usage(3, 4)


def test_cut_stream_keeps_what_it_has_cost() -> None:
    """The total of each chunk is told with it, so that it is known when the end never comes."""
    events = GoogleDecoder(CALL).feed(sse(text("a", **used(3, 1)), text("b", **used(3, 2))))
    assert fold(events).usage == Usage(3, 2)


@pytest.mark.parametrize(
    "chunks", [[], [text("a")], [text("a", finish="STOP", index=0), text("b", index=1)], [used(1, 1)]]
)
def test_end_of_bytes_without_a_finish_is_an_interruption(chunks: list[Any]) -> None:
    """Every candidate that was seen must have ended, and there must have been one."""
    assert fail(*chunks).code == "stream_truncated"


def test_several_candidates_end_one_by_one() -> None:
    """Each has its own text and its own finish."""
    events = decode(
        text("a", index=0),
        text("b", index=1),
        text("c", index=1, finish="STOP"),
        text("d", index=0, finish="MAX_TOKENS"),
    )
    choices = fold(events).choices
    assert {index: (choice.text, choice.finish_reason) for index, choice in choices.items()} == {
        0: ("ad", "length"),
        1: ("bc", "stop"),
    }


def test_start_is_dated_where_the_wire_has_a_date() -> None:
    """Vertex says when it began; a date that is none does no harm."""
    started = decode(text("a", finish="STOP", createTime="2026-04-02T17:03:50.399550Z"))[0]
    assert isinstance(started, StreamStarted)
    assert started.created_unix_s == 1775149430
    undated = decode(text("a", finish="STOP", createTime="soon"))[0]
    assert isinstance(undated, StreamStarted)
    assert undated.created_unix_s == 0


def test_model_is_named_as_in_the_path() -> None:
    """The prefix of Google's own lists is not part of the name."""
    assert model_name(Call(request_id="r1", model="models/gemini-x")) == "gemini-x"
    assert model_name(CALL) == "gemini-2.5-flash"


def error(code: Any, status: Any = None, message: str = "no") -> dict[str, Any]:
    """Return an error document."""
    return {"error": {"code": code, "message": message, "status": status}}


def test_error_before_the_start_is_what_it_says() -> None:
    """An attempt that never began may be told by a status."""
    assert isinstance(fail(error(503, "UNAVAILABLE")), UpstreamBusy)
    assert isinstance(fail({"error": 3}), UpstreamFailed)


@pytest.mark.parametrize("tail", ["\n\n", "\n", ""])
@pytest.mark.parametrize("indent", [None, 2])
def test_bare_error_behind_good_events_is_an_interruption(tail: str, indent: int | None) -> None:
    """Google drops an error into the stream without ``data:``, on many lines, with or without a blank line behind."""
    decoder = GoogleDecoder(CALL)
    document = json.dumps(error(499, "CANCELLED"), indent=indent)
    events = decoder.feed(sse(text("a", finish="STOP")) + document.encode() + tail.encode())
    assert fold(events).choice().text == "a"
    with pytest.raises(StreamInterrupted) as caught:
        decoder.finish()
    assert (caught.value.code, caught.value.retryable, caught.value.message) == ("cancelled", True, "no")


def test_error_in_an_array_is_read() -> None:
    """The array's errors are items, also where an event holds an array."""
    chunks = [text("a"), error(503, "UNAVAILABLE")]
    for body in (
        json.dumps(chunks).encode(),
        sse(chunks),
        sse(text("a")) + json.dumps([error(503, "UNAVAILABLE")]).encode(),
    ):
        with pytest.raises(StreamInterrupted) as caught:
            feed(body)
        assert caught.value.code == "unavailable"


def test_secret_is_not_repeated() -> None:
    """A provider that quotes the key does not make us do so."""
    decoder = GoogleDecoder(CALL, secret="hush-hush")
    decoder.feed(sse(error(400, "INVALID_ARGUMENT", "bad key hush-hush")))
    with pytest.raises(UpstreamRefused) as caught:
        decoder.finish()
    assert "hush-hush" not in caught.value.message


@pytest.mark.parametrize(
    "data",
    [b"data: 3\n\n", b"data: {\n\n", b'data: {"candidates": 3}\n\n', b'data: {"a": "\xff"}\n\n', b"data: [DONE]\n\n"],
)
def test_bytes_that_are_not_the_wire_are_an_interruption(data: bytes) -> None:
    """A foreign wire is told as such and quotes nothing."""
    with pytest.raises(StreamInterrupted) as caught:
        feed(data)
    assert caught.value.code in ("malformed_stream", "stream_truncated")


def test_arguments_that_are_not_utf8_are_refused() -> None:
    """Arguments are handed on as text, so they must be some."""
    body = b'data: {"candidates":[{"content":{"parts":[{"functionCall":{"name":"f","args":{"a":"\xff"}}}]}}]}\n\n'
    with pytest.raises(StreamInterrupted) as caught:
        feed(body)
    assert caught.value.code == "malformed_stream"


def test_error_that_is_not_utf8_is_still_an_error() -> None:
    """Words that cannot be read leave the fact that there was an error."""
    with pytest.raises(UpstreamFailed):
        feed(b'data: {"error": {"message": "\xff"}}\n\n')


PIECES = st.sampled_from(
    [
        sse(text("a")),
        sse(chunk(function(name="f", willContinue=True))),
        sse(chunk(function(partialArgs=[{"jsonPath": "$.a[0]", "stringValue": "b"}]))),
        sse(chunk(finish="STOP", index=1)),
        sse(error(429)),
        b'{"candidates":[{"content":{"parts":[{"functionCall":{"name":"f","args":{"a":"\xff"}}}]}}]}',
        b"[",
        b"]",
        b",",
        b"\r\n\r\n",
        b'data: {"candidates":[{"index":-1,"finishReason":"STOP"}]}\n\n',
        b'data: {"usageMetadata":{"promptTokenCount":-1}}\n\n',
    ]
)


@given(st.lists(PIECES | st.binary(max_size=30), max_size=12))
def test_arbitrary_bytes_raise_nothing_but_errors_of_the_tree(data: list[bytes]) -> None:
    """No bytes of a provider bring out a foreign exception."""
    with suppress(UpstreamError):
        feed(*data)


# --- chunks that are like the last, read by their text and their usage alone


def ready(end: str = "\r\n") -> GoogleDecoder:
    """Return a decoder that has read two such chunks."""
    decoder = GoogleDecoder(CALL)
    for number, word in enumerate(("zero", "first")):
        decoder.feed(sse(text(word, **used(3, number)), end=end))
    return decoder


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.text(min_size=1), st.integers(0, 9)), min_size=1, max_size=8),
    st.sampled_from(["\n", "\r\n"]),
    st.data(),
)
def test_chunks_are_the_same_wherever_reads_cut_them(
    words: list[tuple[str, int]], end: str, data: st.DataObject
) -> None:
    """Texts, usages, frames and what is known of them: alone in a read, together, or in pieces."""
    events = [sse(text(word, **used(3, count)), end=end) for word, count in words]
    whole = b"".join(events)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=4)))
    plain, cut, apart = ready(end), ready(end), ready(end)
    expected: list[Event] = []
    for event in events:
        plain._ready = None
        expected += plain.feed(event)
    assert [one for begin, stop in pairwise([0, *cuts, len(whole)]) for one in cut.feed(whole[begin:stop])] == expected
    assert [one for event in events for one in apart.feed(event)] == expected
    assert [one.text for one in expected if isinstance(one, TextDelta)] == [word for word, _ in words]
    assert plain.usage == cut.usage == apart.usage
    assert plain._character_count == cut._character_count == apart._character_count


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_such_a_read_is_not_decoded_in_full(end: str) -> None:
    """Else the short way is in vain."""
    decoder = ready(end)
    del decoder._sse
    delta, reported = decoder.feed(sse(text("a", **used(3, 7)), end=end))
    assert isinstance(delta, TextDelta)
    assert isinstance(reported, UsageReported)
    assert (delta.text, reported.usage, decoder.usage) == ("a", Usage(3, 7), Usage(3, 7))
    (delta,) = decoder.feed(sse(text("b", **used(3, 7)), end=end))
    assert delta.frame is not None
    assert delta.frame.event_count == 1


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_several_are_not_decoded_in_full_either(end: str) -> None:
    """A total that has not changed is not reported again, and has no part in its chunk's frame."""
    decoder = ready(end)
    del decoder._sse
    chunks = [text("a", **used(3, 7)), text("b", **used(3, 7)), text("c", **used(3, 8))]
    events = decoder.feed(sse(*chunks, end=end))
    assert [type(event) for event in events] == [TextDelta, UsageReported, TextDelta, TextDelta, UsageReported]
    assert [event.text for event in events if isinstance(event, TextDelta)] == ["a", "b", "c"]
    assert [event.frame.event_count for event in events if event.frame] == [2, 2, 1, 2, 2]
    assert [json.loads(event.frame.data) for event in events if event.frame] == [
        chunks[place] for place in (0, 0, 1, 2, 2)
    ]
    assert decoder.usage == Usage(3, 8)


ODD_CHUNK = sse(text("x", **used(3, 4)))


ODD = [
    sse(text("", **used(3, 4))),
    sse(text("x")),
    sse(text("x", index=1, **used(3, 4))),
    sse(text("x", finish="STOP", **used(3, 4))),
    sse(chunk({"text": "x", "thought": True}, **used(3, 4))),
    sse(chunk(function(name="f", args={}), **used(3, 4))),
    sse({"error": {"code": 503, "status": "UNAVAILABLE", "message": "busy"}}),
    ODD_CHUNK.replace(b'"x"', b'["x"]'),
    ODD_CHUNK.replace(b'"x"', b'"x'),
    ODD_CHUNK.replace(b'"x"', b'\r"x"'),
    ODD_CHUNK.replace(b'"x"', b'"x" \n'),
    ODD_CHUNK.replace(b'"x"', b'"x", "text": "y"'),
    ODD_CHUNK.replace(b": 4", b": \n4"),
    ODD_CHUNK.replace(b": 4", b": \r4"),
    ODD_CHUNK.replace(b": 4", b": 4, "),
    ODD_CHUNK.replace(b": 4", b': "4"'),
    ODD_CHUNK.replace(b": 4}", b": 4}}"),
    ODD_CHUNK.replace(b'{"promptTokenCount": 3, "candidatesTokenCount": 4}', b"null"),
    ODD_CHUNK.replace(b"\r\n\r\n", b"\r\n"),
    ODD_CHUNK.replace(b"\r\n", b"\n"),
    b": a comment\r\n\r\n",
    b"\r\n",
]
"""What is not like the last, or not one event, though it may begin and end like one."""


@pytest.mark.parametrize("odd", ODD)
def test_what_is_not_like_the_last_is_read_as_it_is(odd: bytes) -> None:
    """With those before and behind it in the same read, and in reads of their own."""
    a, b, c, d = (sse(text(word, **used(3, number + 5))) for number, word in enumerate("abcd"))
    check_short_way(ready, [a, b, odd, c, d])


WORDS = st.builds(lambda word, count: sse(text(word, **used(3, count))), st.text(min_size=1), st.integers(0, 9))


@settings(max_examples=200)
@given(st.lists(WORDS | st.sampled_from(ODD), min_size=1, max_size=6))
def test_any_of_these_in_one_read_are_what_they_are_in_reads_of_their_own(pieces: list[bytes]) -> None:
    """However many are like the last, and wherever one is not."""
    check_short_way(ready, pieces)


@pytest.mark.parametrize(
    "written",
    [
        b'{"x": {"text": "a"},"candidates":[{"content": {"parts": [{"text": "\\u0061"}]}}], "usageMetadata": {"n": 1}}',
        b'{"candidates": [{"content": {"parts": [{"text": "a", "text": "\\u0061"}]}}], "usageMetadata": {"n": 1}}',
        b'{"candidates": [{"content": {"parts": [{"text": "a"}]}}], "usageMetadata": {}, "x": {}}',
    ],
)
def test_a_place_where_text_and_usage_are_not_read_is_not_learned(written: bytes) -> None:
    """What is written like them stands before the real ones, or behind them."""
    decoder = GoogleDecoder(CALL)
    for _ in range(9):
        decoder.feed(b"data: " + written + b"\r\n\r\n")
        assert decoder._ready is None
    assert not decoder._tries_left
