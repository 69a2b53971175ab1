from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.call import Call, Message, Target, TextPart
from gateway.core.errors import GatewayError, StreamInterrupted, UpstreamBusy, UpstreamError, UpstreamRefused
from gateway.core.events import (
    ChoiceFinished,
    Event,
    Frame,
    ReasoningDelta,
    StreamStarted,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
    UsageReported,
)
from gateway.core.lifecycle import Lifecycle
from gateway.core.transcript import Transcript
from gateway.providers.anthropic_stream import (
    ANTHROPIC_ANSWER,
    ANTHROPIC_EVENT,
    AnthropicDecoder,
    read_answer,
    read_error,
)
from tests.gateway.providers.short_way import check_short_way

CALL = Call(
    request_id="t",
    stream=True,
    target=Target("anthropic", "claude-opus-4-8"),
    messages=(Message(role="user", parts=(TextPart("four" * 4),)),),
)

START = {
    "type": "message_start",
    "message": {"id": "msg_1", "model": "claude", "content": [], "usage": {"input_tokens": 5, "output_tokens": 1}},
}
STOP = {"type": "message_stop"}
PING = {"type": "ping"}


def block_start(index: int, kind: str, **fields: Any) -> dict[str, Any]:
    """Return the start of a block."""
    return {"type": "content_block_start", "index": index, "content_block": {"type": kind, **fields}}


def delta(index: int, kind: str, **fields: Any) -> dict[str, Any]:
    """Return a piece of a block."""
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **fields}}


def text(piece: str) -> dict[str, Any]:
    """Return a piece of text."""
    return delta(0, "text_delta", text=piece)


def end(reason: str | None, **usage: Any) -> dict[str, Any]:
    """Return the event that says why the answer ends."""
    return {"type": "message_delta", "delta": {"stop_reason": reason}, **({"usage": usage} if usage else {})}


def failure(kind: str, message: str = "Sorry", **fields: Any) -> dict[str, Any]:
    """Return an error inside the stream."""
    return {"type": "error", "error": {"type": kind, "message": message, **fields}}


def sse(*documents: dict[str, Any]) -> bytes:
    """Return documents as Anthropic sends them: each under its own name."""
    return b"".join(b"event: %s\ndata: %s\n\n" % (str(d["type"]).encode(), msgspec.json.encode(d)) for d in documents)


def decode(*documents: dict[str, Any]) -> list[Event]:
    """Return the events of a whole stream, without their frames."""
    decoder = AnthropicDecoder(CALL)
    return bare([*decoder.feed(sse(*documents)), *decoder.finish()])


def bare(events: list[Event]) -> list[Event]:
    """Return events without their frames."""
    return [msgspec.structs.replace(event, frame=None) for event in events]


def broken(*documents: dict[str, Any]) -> tuple[list[Event], UpstreamError]:
    """Return what a stream delivers before it breaks, and the error."""
    decoder = AnthropicDecoder(CALL)
    events = decoder.feed(sse(*documents))
    with pytest.raises(UpstreamError) as raised:
        decoder.finish()
    return bare(events), raised.value


def test_an_answer_is_started_told_finished_and_counted() -> None:
    """The last usage is the whole one, cumulative totals in the place of the first ones; the finish comes behind it."""
    events = decode(
        START, block_start(0, "text", text=""), PING, text("Hel"), text("lo"), text(""),
        {"type": "content_block_stop", "index": 0}, end("end_turn", output_tokens=7), STOP,
    )  # fmt: skip
    assert events == [
        StreamStarted("msg_1", "claude", target="anthropic/claude-opus-4-8"),
        UsageReported(Usage(5, 1)),
        TextDelta("Hel"),
        TextDelta("lo"),
        UsageReported(Usage(5, 7)),
        ChoiceFinished("stop", "end_turn"),
    ]


def test_every_event_of_a_document_carries_its_json() -> None:
    """A dialect that speaks the same wire writes a document when all its events have come."""
    decoder = AnthropicDecoder(CALL)
    events = decoder.feed(sse(START, PING, text("a"), end("end_turn", output_tokens=2), STOP))
    frames = [event.frame for event in events]
    assert [frame and (msgspec.json.decode(frame.data), frame.event_count, frame.wire) for frame in frames] == [
        (START, 2, ANTHROPIC_EVENT),
        (START, 2, ANTHROPIC_EVENT),
        (text("a"), 1, ANTHROPIC_EVENT),
        (end("end_turn", output_tokens=2), 1, ANTHROPIC_EVENT),
        (STOP, 1, ANTHROPIC_EVENT),
    ]
    assert frames[0] is frames[1]


def test_only_message_stop_completes_a_stream() -> None:
    """A stop reason is not yet the end: nobody hears of a finish before it, and the cost is known all the same."""
    decoder = AnthropicDecoder(CALL)
    events = decoder.feed(sse(START, text("a"), end("end_turn", output_tokens=2)))
    assert bare(events)[2:] == [TextDelta("a"), UsageReported(Usage(5, 2))]
    assert not decoder.is_complete
    with pytest.raises(StreamInterrupted) as raised:
        decoder.finish()
    assert raised.value.code == "stream_truncated"
    assert bare(decoder.feed(sse(STOP))) == [ChoiceFinished("stop", "end_turn")]
    assert decoder.finish() == []


@pytest.mark.parametrize(
    "late",
    [
        text("b"),
        delta(0, "thinking_delta", thinking="Hm"),
        block_start(2, "text", text="b"),
        block_start(2, "tool_use", id="b", name="g", input={}),
        delta(1, "input_json_delta", partial_json='{"b":'),
        end("end_turn"),
    ],
    ids=str,
)
@pytest.mark.parametrize(("native", "reason"), [("tool_use", "tool_calls"), ("max_tokens", "length")])
def test_what_is_said_behind_the_stop_reason_is_not_heard(late: dict[str, Any], native: str, reason: str) -> None:
    """No more of the answer, no arguments for a call that was cut off, no other reason."""
    call = [block_start(1, "tool_use", id="a", name="f"), delta(1, "input_json_delta", partial_json='{"a":1}')]
    assert decode(START, text("a"), *call, end(native, output_tokens=2), late, STOP)[2:] == [
        TextDelta("a"),
        ToolCallStarted(0, "a", "f"),
        ToolCallDelta(0, '{"a":1}'),
        UsageReported(Usage(5, 2)),
        ChoiceFinished(reason, native),  # type: ignore[arg-type]  # a word out of the table above
    ]


def test_a_call_cut_off_before_its_arguments_gets_none_from_a_later_block() -> None:
    """The block would settle it, if it came before the stop reason."""
    late = block_start(2, "text", text="b")
    events = decode(START, block_start(1, "tool_use", id="a", name="f", input={}), end("max_tokens"), late, STOP)
    assert [type(event) for event in events[2:4]] == [ToolCallStarted, ChoiceFinished]


def test_message_stop_says_that_nothing_more_needs_to_be_read() -> None:
    """The connection is free again."""
    decoder = AnthropicDecoder(CALL)
    decoder.feed(sse(START, text("a"), end("end_turn", output_tokens=2), STOP))
    assert decoder.is_complete


def test_a_last_event_without_its_blank_line_counts() -> None:
    """Some hosts forget it."""
    decoder = AnthropicDecoder(CALL)
    decoder.feed(sse(START, text("a"), end("end_turn", output_tokens=2), STOP).rstrip())
    assert not decoder.is_complete
    decoder.finish()
    assert decoder.is_complete


def test_what_comes_behind_the_end_is_ignored() -> None:
    """OpenRouter adds a ``[DONE]``."""
    decoder = AnthropicDecoder(CALL)
    decoder.feed(sse(START, end("end_turn", output_tokens=2), STOP) + b"data: [DONE]\n\n")
    assert decoder.finish() == []


def test_an_end_without_a_start_is_no_answer() -> None:
    """Nothing was said."""
    events, error = broken(STOP)
    assert events == []
    assert isinstance(error, StreamInterrupted)


def test_thinking_is_reasoning_and_its_signature_nothing() -> None:
    """Redacted thinking cannot be shown."""
    events = decode(
        START, block_start(0, "thinking", thinking="", signature=""), delta(0, "thinking_delta", thinking="Hm"),
        delta(0, "signature_delta", signature="c2ln"), block_start(1, "redacted_thinking", data="x"),
        block_start(2, "text", text="", citations=[]), delta(2, "citations_delta", citation={"type": "page"}),
        delta(2, "text_delta", text="Yes"), end("end_turn", output_tokens=1), STOP,
    )  # fmt: skip
    assert events[2:4] == [ReasoningDelta("Hm"), TextDelta("Yes")]
    assert events[4:] == [UsageReported(Usage(5, 1)), ChoiceFinished("stop", "end_turn")]


def test_a_block_may_begin_with_words() -> None:
    """They are not lost."""
    events = decode(
        START, block_start(0, "thinking", thinking="Hm"), block_start(1, "text", text="Yes"), end("end_turn"), STOP
    )
    assert events[2:4] == [ReasoningDelta("Hm"), TextDelta("Yes")]


def test_calls_are_counted_by_themselves_and_not_by_their_blocks() -> None:
    """The provider's own tools and their results stand between them, and are none."""
    events = decode(
        START,
        block_start(0, "text", text=""),
        block_start(1, "server_tool_use", id="srv", name="web_search", input={}),
        delta(1, "input_json_delta", partial_json='{"query": 1}'),
        block_start(2, "web_search_tool_result", tool_use_id="srv", content=[{"type": "web_search_result"}]),
        block_start(3, "tool_use", id="toolu_1", name="weather", input={}),
        delta(3, "input_json_delta", partial_json=""),
        delta(3, "input_json_delta", partial_json='{"city":'),
        delta(3, "input_json_delta", partial_json='"Oslo"}'),
        block_start(4, "mcp_tool_use", id="mcp", name="files", input={}),
        delta(4, "input_json_delta", partial_json='{"no": 1}'),
        block_start(5, "tool_use", id="toolu_2", name="time", input={}),
        delta(5, "input_json_delta", partial_json="{}"),
        end("tool_use", output_tokens=9),
        STOP,
    )
    assert events[2:] == [
        ToolCallStarted(0, "toolu_1", "weather"),
        ToolCallDelta(0, '{"city":'),
        ToolCallDelta(0, '"Oslo"}'),
        ToolCallStarted(1, "toolu_2", "time"),
        ToolCallDelta(1, "{}"),
        UsageReported(Usage(5, 9)),
        ChoiceFinished("tool_calls", "tool_use"),
    ]


@pytest.mark.parametrize(
    ("given_input", "arguments"), [({"input": {}}, "{}"), ({"input": {"a": 1}}, '{"a":1}'), ({}, "{}")]
)
@pytest.mark.parametrize("following", [block_start(2, "tool_use", id="b", name="g", input={}), end("tool_use"), STOP])
def test_a_call_without_pieces_has_the_input_of_its_start(
    given_input: dict[str, Any], arguments: str, following: dict[str, Any]
) -> None:
    """Clients parse the arguments: none at all would be an error to them."""
    events = decode(
        START, block_start(1, "tool_use", id="a", name="f", **given_input), following, end("tool_use"), STOP
    )
    assert next(event for event in events if isinstance(event, ToolCallDelta)) == ToolCallDelta(0, arguments)


def test_a_call_cut_off_before_its_arguments_has_none() -> None:
    """An empty object would look like a whole call."""
    events = decode(START, block_start(1, "tool_use", id="a", name="f", input={}), end("max_tokens"), STOP)
    assert [type(event) for event in events[2:4]] == [ToolCallStarted, ChoiceFinished]


@pytest.mark.parametrize(
    ("native", "reason"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("pause_turn", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("invented_tomorrow", "stop"),
    ],
)
def test_a_stop_reason_is_told_in_both_words(native: str, reason: str) -> None:
    """One that is not known is a stop; a pause is not."""
    assert decode(START, text("a"), end(None, output_tokens=1), end(native, output_tokens=3), STOP)[3:] == [
        UsageReported(Usage(5, 1)),
        UsageReported(Usage(5, 3)),
        ChoiceFinished(reason, native),  # type: ignore[arg-type]  # a word out of the table above
    ]


@pytest.mark.parametrize(
    ("block", "reason"), [(text("a"), "stop"), (block_start(0, "tool_use", id="a", name="f"), "tool_calls")]
)
def test_an_end_without_a_reason_stands_for_one(block: dict[str, Any], reason: str) -> None:
    """The answer is whole all the same."""
    finishes = [event for event in decode(START, block, STOP) if isinstance(event, ChoiceFinished)]
    assert [(finish.reason, finish.native_reason) for finish in finishes] == [(reason, "")]


def test_usage_has_the_cache_in_its_input_and_the_thinking_in_its_output() -> None:
    """Anthropic counts the cache apart."""
    start = {**START, "message": {"id": "m", "usage": {"input_tokens": 3, "cache_read_input_tokens": 10}}}
    last = end(
        "end_turn", output_tokens=20, cache_creation_input_tokens=100, output_tokens_details={"thinking_tokens": 15}
    )
    reports = [event.usage for event in decode(start, text("a"), last, STOP) if isinstance(event, UsageReported)]
    assert reports == [
        Usage(13, 0, cached_input_tokens=10),
        Usage(113, 20, cached_input_tokens=10, cache_write_input_tokens=100, reasoning_tokens=15),
    ]


def test_usage_so_far_has_the_input_that_was_reported() -> None:
    """The output is estimated until its totals come; a stream that told nothing is estimated altogether."""
    decoder = AnthropicDecoder(CALL)
    seen = [decoder.usage]
    for document in (START, text("four" * 3), end("end_turn", output_tokens=7)):
        decoder.feed(sse(document))
        seen.append(decoder.usage)
    assert seen == [None, Usage(5, 0, is_estimated=True), Usage(5, 3, is_estimated=True), Usage(5, 7)]
    silent = AnthropicDecoder(CALL)
    silent.feed(sse({"type": "message_start", "message": {"id": "msg_1"}}, text("four")))
    assert silent.usage == Usage(4, 1, is_estimated=True)


def test_output_that_was_never_reported_is_estimated() -> None:
    """The input is kept as it was reported, and estimated too where it was not."""
    assert decode(START, text("four" * 3), end("end_turn"), STOP)[-1] == UsageReported(Usage(5, 3, is_estimated=True))
    start = {"type": "message_start", "message": {"id": "m"}}
    assert decode(start, text("four"), STOP)[-1] == UsageReported(Usage(4, 1, is_estimated=True))


def test_a_start_without_a_name_is_named_by_the_gateway() -> None:
    """Clients want an id and a model."""
    assert decode({"type": "message_start", "message": {}}, STOP)[0] == StreamStarted(
        "msg_t", "claude-opus-4-8", target="anthropic/claude-opus-4-8"
    )


@pytest.mark.parametrize(
    ("kind", "status", "retryable", "error_type"),
    [
        ("overloaded_error", 529, True, "overloaded"),
        ("rate_limit_error", 429, True, "rate_limited"),
        ("api_error", 500, True, "server_error"),
        ("timeout_error", 504, True, "server_error"),
        ("invalid_request_error", 400, False, "bad_request"),
        ("request_too_large", 413, False, "bad_request"),
        ("authentication_error", 401, False, "auth"),
        ("invented_tomorrow", 500, True, "server_error"),
    ],
)
def test_an_error_after_the_start_is_an_interruption_that_keeps_its_meaning(
    *, kind: str, status: int, retryable: bool, error_type: str
) -> None:
    """What came before it in the same read is delivered first."""
    events, error = broken(START, text("Half"), failure(kind))
    assert events[-1] == TextDelta("Half")
    assert isinstance(error, StreamInterrupted)
    assert (error.upstream_status, error.retryable, error.error_type) == (status, retryable, error_type)


def test_an_error_before_the_start_is_that_of_an_attempt_that_never_began() -> None:
    """A ping does not count as a start."""
    events, error = broken(PING, failure("overloaded_error"))
    assert events == []
    assert isinstance(error, UpstreamBusy)


def test_an_error_in_anybodys_shape_is_an_error() -> None:
    """Hosts in between send OpenAI's."""
    decoder = AnthropicDecoder(CALL)
    decoder.feed(b'data: {"error": {"message": "No", "code": 7}}\n\n')
    with pytest.raises(UpstreamError, match=r"^No$"):
        decoder.finish()


def test_an_error_inside_a_stream_has_its_machine_code() -> None:
    """A spend limit is final there too."""
    _, error = broken(failure("rate_limit_error", details={"error_code": "enforced_spend_limit_reached"}))
    assert isinstance(error, UpstreamRefused)
    assert error.code == "enforced_spend_limit_reached"


def test_an_error_shows_no_key() -> None:
    """Not even when the provider quotes it."""
    decoder = AnthropicDecoder(CALL, secret="hush")
    decoder.feed(sse(failure("api_error", "it was hush")))
    with pytest.raises(UpstreamError, match=r"^it was \[redacted\]$"):
        decoder.finish()


@pytest.mark.parametrize(
    "data",
    [
        b"not json",
        b"[]",
        b"7",
        b'{"no": "type"}',
        b'{"type": 7}',
        b'{"type": "content_block_delta", "delta": {"type": "text_delta", "text": 7}}',
        b'{"type": "content_block_delta"}',
        b'{"type": "content_block_start", "index": 0}',
        b'{"type": "content_block_start", "content_block": {"text": "no type"}}',
        b'{"type": "message_start"}',
        b'{"type": "error"}',
        b'{"type": "content_block_delta", "index": "0"}',
        b'{"type": "content_block_delta", "delta": {"type": "text_delta", "text": "\xff"}}',
        b'{"type": "content_block_start", "content_block": {"type": "tool_use", "input": "\xff"}}',
        b'{"type": "error", "error": {"message": "\xff"}}',
        b"[" * 100_000,
    ],
    ids=lambda data: str(data[:60]),
)
def test_what_is_not_the_wire_is_malformed(data: bytes) -> None:
    """The good events before it are delivered, nothing after it is."""
    decoder = AnthropicDecoder(CALL)
    events = decoder.feed(sse(START, text("a")) + b"data: " + data + b"\n\n" + sse(text("b")))
    assert bare(events)[2:] == [TextDelta("a")]
    assert decoder.feed(sse(text("c"), STOP)) == []
    with pytest.raises(StreamInterrupted) as raised:
        decoder.finish()
    assert (raised.value.code, raised.value.error_type) == ("malformed_stream", "protocol")


@pytest.mark.parametrize(
    "event",
    [{"type": "invented", "delta": 7, "index": "x"}, delta(0, "invented_delta", text="?"), block_start(9, "invented")],
    ids=str,
)
def test_what_is_not_invented_yet_is_ignored(event: dict[str, Any]) -> None:
    """Anthropic adds events, blocks and deltas, and says so."""
    assert decode(START, event, text("a"), end("end_turn", output_tokens=1), STOP)[2] == TextDelta("a")


def answer(*content: dict[str, Any], **fields: Any) -> bytes:
    """Return a whole message."""
    whole = {"id": "msg_1", "type": "message", "model": "claude", "content": content, "stop_reason": "end_turn"}
    return msgspec.json.encode({**whole, **fields})


def test_a_whole_answer_is_read_as_its_stream_would_be() -> None:
    """All its events share one frame."""
    body = answer(
        {"type": "thinking", "thinking": "Hm", "signature": "c2ln"},
        {"type": "text", "text": "I look."},
        {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"q": 1}},
        {"type": "web_search_tool_result", "tool_use_id": "s", "content": []},
        {"type": "tool_use", "id": "a", "name": "weather", "input": {"city": "Oslo"}},
        {"type": "tool_use", "id": "b", "name": "time", "input": {}},
        stop_reason="tool_use",
        usage={"input_tokens": 1, "output_tokens": 2},
        error=None,
    )
    events = read_answer(CALL, body)
    assert bare(events) == [
        StreamStarted("msg_1", "claude", target="anthropic/claude-opus-4-8"),
        ReasoningDelta("Hm"),
        TextDelta("I look."),
        ToolCallStarted(0, "a", "weather"),
        ToolCallDelta(0, '{"city":"Oslo"}'),
        ToolCallStarted(1, "b", "time"),
        ToolCallDelta(1, "{}"),
        ChoiceFinished("tool_calls", "tool_use"),
        UsageReported(Usage(1, 2)),
    ]
    assert Lifecycle().admit(events) == events
    frames = {id(event.frame): event.frame for event in events}
    assert [(frame and frame.data, frame and frame.wire) for frame in frames.values()] == [(body, ANTHROPIC_ANSWER)]


def test_a_whole_answer_without_an_end_is_not_finished() -> None:
    """Nobody invents its reason."""
    events = read_answer(CALL, answer({"type": "text", "text": "Hi"}, stop_reason=None))
    assert not [event for event in events if isinstance(event, ChoiceFinished)]


def test_an_error_in_place_of_an_answer_is_raised() -> None:
    """A 200 does not make it an answer."""
    with pytest.raises(UpstreamBusy):
        read_answer(CALL, msgspec.json.encode(failure("overloaded_error")))


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", b"{}", b'{"content": 7}', b'{"content": [{"type": "tool_use", "input": "\xff"}]}'],
)
def test_an_answer_that_is_none_is_malformed(body: bytes) -> None:
    """Whatever it is."""
    with pytest.raises(StreamInterrupted) as raised:
        read_answer(CALL, body)
    assert raised.value.code == "malformed_stream"


@pytest.mark.parametrize("document", [None, [], "x", {"error": "words"}, {"error": {"details": {"error_code": 7}}}])
def test_an_error_of_any_shape_is_read(document: object) -> None:
    """As far as it says anything."""
    assert read_error(document, None).code == ""


WHOLE = sse(
    START, block_start(0, "text", text=""), text("Hé"), block_start(1, "tool_use", id="a", name="f", input={}),
    delta(1, "input_json_delta", partial_json='{"a": "ü"}'), end("tool_use", output_tokens=4), STOP,
)  # fmt: skip


def test_every_cut_before_the_last_event_is_an_interruption() -> None:
    """At every byte, also inside a character."""
    needed = WHOLE.index(b'"message_stop"') + len(b'"message_stop"}')
    for length in range(len(WHOLE)):
        decoder = AnthropicDecoder(CALL)
        decoder.feed(WHOLE[:length])
        if length < needed:
            with pytest.raises(StreamInterrupted):
                decoder.finish()
        else:
            decoder.finish()


@given(st.lists(st.integers(0, len(WHOLE)), max_size=12))
def test_no_split_makes_a_difference(cuts: list[int]) -> None:
    """Bytes come as the network brings them."""
    decoder, transcript = AnthropicDecoder(CALL), Transcript()
    bounds = [0, *sorted(cuts), len(WHOLE)]
    for begin, stop in pairwise(bounds):
        transcript.add(decoder.feed(WHOLE[begin:stop]))
    transcript.add(decoder.finish())
    assert transcript.choice().text == "Hé"
    assert transcript.choice().tool_calls[0].arguments == '{"a": "ü"}'


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["type", "index", "delta", "content_block", "message", "usage", "error", "text", "input", "content", "id"]
    ), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
TYPES = st.sampled_from([
    "message_start", "content_block_start", "content_block_delta", "message_delta", "message_stop", "error", "text",
    "tool_use", "text_delta", "input_json_delta",
])  # fmt: skip
DOCUMENTS = st.dictionaries(
    st.sampled_from(["type", "index", "delta", "content_block", "message", "usage", "error"]), JSON, max_size=5
).flatmap(lambda document: TYPES.map(lambda kind: {**document, "type": kind}))


@given(st.lists(DOCUMENTS | JSON, max_size=6))
def test_nothing_but_our_own_errors_comes_out_of_any_json(documents: list[Any]) -> None:
    """And what comes out besides is legal."""
    check_robust(b"".join(b"data: %s\n\n" % msgspec.json.encode(document) for document in documents))
    for document in documents:
        check_answer(msgspec.json.encode(document))


@given(st.binary(max_size=300), st.integers(0, len(WHOLE)))
def test_nothing_but_our_own_errors_comes_out_of_any_bytes(garbage: bytes, place: int) -> None:
    """Wherever they stand in a good stream."""
    check_robust(WHOLE[:place] + garbage + WHOLE[place:])
    check_robust(b"data: " + garbage)
    check_answer(garbage)


def check_robust(data: bytes) -> None:
    """Decode ``data`` and let only the tree's errors pass."""
    decoder = AnthropicDecoder(CALL)
    events = decoder.feed(data)
    with suppress(UpstreamError):
        events += decoder.finish()
    assert Lifecycle().admit(events) == events


def check_answer(body: bytes) -> None:
    """Read ``body`` and let only the tree's errors pass."""
    with suppress(GatewayError):
        read_answer(CALL, body)


# --- pieces of one text block, read by their text alone


def ready(*before: dict[str, Any]) -> AnthropicDecoder:
    """Return a decoder that has read a piece of text, and then what came ``before``."""
    decoder = AnthropicDecoder(CALL)
    for document in (START, block_start(0, "text", text=""), text("first"), *before):
        decoder.feed(sse(document))
    return decoder


def thought(piece: str) -> dict[str, Any]:
    """Return a piece of thinking."""
    return delta(0, "thinking_delta", thinking=piece)


def padded(document: dict[str, Any], spaces: int) -> bytes:
    """Return a piece as Anthropic sends it: its length is not that of the text."""
    return sse(document).replace(b"}}\n\n", b"}" + b" " * spaces + b"}\n\n")


KINDS = pytest.mark.parametrize(("say", "kind"), [(text, TextDelta), (thought, ReasoningDelta)])


@KINDS
@given(words=st.lists(st.tuples(st.text(min_size=1), st.integers(0, 9)), min_size=1), data=st.data())
def test_pieces_of_text_are_the_same_wherever_reads_cut_them(
    say: Callable[[str], dict[str, Any]],
    kind: type[TextDelta | ReasoningDelta],
    words: list[tuple[str, int]],
    data: st.DataObject,
) -> None:
    """Texts, frames and what is estimated of them: alone in a read, together, or in halves."""
    events = [padded(say(word), spaces) for word, spaces in words]
    whole = b"".join(events)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=4)))
    decoder = ready(say("s"))
    found = [event for begin, end in pairwise([0, *cuts, len(whole)]) for event in decoder.feed(whole[begin:end])]
    name = len(b"event: content_block_delta\ndata: ")
    assert found == [
        kind(word, 0, Frame(event[name:-2], ANTHROPIC_EVENT, 1)) for (word, _), event in zip(words, events, strict=True)
    ]
    assert decoder.usage is not None
    assert decoder.usage.output_tokens == -(-len("firsts" + "".join(word for word, _ in words)) // 4)


@KINDS
def test_such_a_read_is_not_decoded_in_full(
    say: Callable[[str], dict[str, Any]], kind: type[TextDelta | ReasoningDelta]
) -> None:
    """Else the short way is in vain."""
    decoder = ready(say("second"))
    del decoder._sse
    assert bare(decoder.feed(padded(say("a"), 3) + padded(say("b"), 0))) == [kind("a"), kind("b")]
    assert bare(decoder.feed(padded(say("c"), 3))) == [kind("c")]


@pytest.mark.parametrize(
    "odd",
    [
        sse(PING),
        sse(text("")),
        sse(delta(1, "text_delta", text="other")),
        sse(delta(0, "thinking_delta", thinking="hm")),
        sse(delta(0, "text_delta", text="x", citation={})),
        sse(text("x")).replace(b'"x"', b'["x"]'),
        sse(text("x")).replace(b'"x"', b'"x'),
        sse(text("x")).replace(b'"x"', b'\r"x"'),
        sse(text("x")).replace(b'"x"', b'"x\ry"'),
        sse(text("x")).replace(b'"x"', b'"x\ny"'),
        sse(text("x")).replace(b"}}\n", b"}}\r\n"),
        sse(text("x")).replace(b"}}\n", b"}}}\n"),
        sse(text("x")).replace(b"\n\n", b"\n"),
        sse(text("x")).replace(b"\n", b"\r\n"),
        sse(block_start(1, "tool_use", id="t", name="f")),
        sse(end("end_turn", output_tokens=7)),
        sse(end("end_turn", output_tokens=7), STOP),
        sse(failure("overloaded_error")),
        b": a comment\n\n",
        b"event: content_block_delta\n",
    ],
)
def test_what_is_not_such_a_piece_is_read_as_it_is(odd: bytes) -> None:
    """With those before and behind it in the same read, and in reads of their own."""
    check_short_way(ready, [sse(text("a")), sse(text("b")), odd, sse(text("c")), sse(text("d"))])
    pieces = [sse(thought("a")), sse(thought("b")), odd, sse(thought("c")), sse(thought("d"))]
    check_short_way(lambda: ready(thought("first")), pieces)


@pytest.mark.parametrize("index", [0, 1])
def test_another_block_is_learned_in_its_turn(index: int) -> None:
    """Thinking or another text comes before it."""
    decoder = ready(block_start(index, "text", text=""))
    second = delta(index, "text_delta", text="second")
    first, other = decoder.feed(sse(second)), decoder.feed(sse(delta(index, "text_delta", text="third")))
    assert bare([*first, *other]) == [TextDelta("second"), TextDelta("third")]
    del decoder._sse
    assert bare(decoder.feed(sse(second))) == [TextDelta("second")]


def test_a_stream_that_is_written_in_another_way_is_given_up() -> None:
    """It is decoded in full, all of it."""
    decoder = AnthropicDecoder(CALL)
    decoder.feed(sse(START))
    for _ in range(9):
        found = decoder.feed(sse(text("x")).replace(b'"text":"x"', b'"text" : "x"'))
        assert bare(found) == [TextDelta("x")]
    assert decoder._ready is None
