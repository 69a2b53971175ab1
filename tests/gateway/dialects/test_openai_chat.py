from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.call import OPENAI_CHAT, Call, Source
from gateway.core.errors import InternalError, InvalidRequest, StreamInterrupted, UpstreamBusy, UpstreamError
from gateway.core.events import (
    OPENAI_ANSWER,
    OPENAI_CHUNK,
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
from gateway.core.lifecycle import Lifecycle
from gateway.core.sse import SSEDecoder
from gateway.dialects.openai_chat import OpenAIChat, OpenAIChatEncoder
from gateway.providers.openai_stream import OpenAIDecoder, read_answer

CALL = Call(request_id="t", model="chat", stream=True, created_unix_s=7)
ASKED = Call(request_id="t", model="chat", stream=True, created_unix_s=7, include_usage=True)
"""A call that wants the usage, too."""

IDENTITY = {"id": "c1", "object": "chat.completion.chunk", "created": 5, "model": "m"}
DONE = b"data: [DONE]\n\n"
START = StreamStarted("msg_1", "claude", 3, target="anthropic/claude")
STOP = ChoiceFinished("stop", "end_turn")
USED = UsageReported(Usage(9, 2, 4, 0, 1))
USAGE = {
    "prompt_tokens": 9,
    "completion_tokens": 2,
    "total_tokens": 11,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 1},
}


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, index: int = 0, **fields: Any) -> Any:
    """Return a chunk as OpenAI sends it, with fields that nobody here reads."""
    choice = {"index": index, "delta": delta or {}, "logprobs": {"content": []}, "finish_reason": finish}
    return {**IDENTITY, "service_tier": "default", "choices": [choice], "obfuscation": "x9", **fields}


ROLE = chunk({"role": "assistant", "content": "", "refusal": None}, usage=None)
END = chunk(finish="stop")
COUNT = {**IDENTITY, "choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2, "x_cost": 0.1}, "x": 1}


def sse(*documents: Any) -> bytes:
    """Return documents as OpenAI streams them."""
    return b"".join(b"data: %b\n\n" % msgspec.json.encode(document) for document in documents)


def from_openai(*documents: Any, choice_count: int = 1) -> list[Event]:
    """Return the events of documents, as a provider of this wire yields them in one read."""
    return OpenAIDecoder(Call(request_id="t", choice_count=choice_count)).feed(sse(*documents))


def render(batches: Iterable[list[Event]], call: Call = CALL) -> bytes:
    """Return a whole stream."""
    encoder = OpenAIChatEncoder(call)
    return b"".join([encoder.encode(batch) for batch in batches]) + encoder.finish()


def documents_of(stream: bytes) -> list[Any]:
    """Return what a client reads: one JSON document a line, and ``[DONE]`` at the end."""
    assert stream.endswith(DONE)
    blocks = stream.removesuffix(DONE).split(b"\n\n")
    assert blocks.pop() == b""
    assert all(block.startswith(b"data: ") and b"\n" not in block for block in blocks)
    return [msgspec.json.decode(block[6:]) for block in blocks]


def shown(*events: Event, call: Call = CALL) -> list[Any]:
    """Return the documents that events without frames are rendered as."""
    return documents_of(render([list(events)], call))


def deltas(*events: Event) -> list[Any]:
    """Return the deltas that events without frames are rendered as, after the start."""
    return [document["choices"][0]["delta"] for document in shown(START, *events)]


# --- what came in this wire goes out as it came


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_untouched_frames_are_written_through_byte_for_byte(size: int) -> None:
    """Log probabilities, service tier, vendor extensions, obfuscation: however the events are batched by reads."""
    documents = [ROLE, chunk({"content": "a"}), chunk({"content": "b"}), chunk({"tool_calls": []}), END]
    reads = [documents[at : at + size] for at in range(0, len(documents), size)]
    decoder = OpenAIDecoder(CALL)
    batches = [decoder.feed(sse(*read)) for read in reads]
    assert render(batches) == sse(*documents) + DONE


def test_equal_chunks_in_one_read_are_each_written_through() -> None:
    """Two documents that say the same are still two."""
    twice = [ROLE, chunk({"content": "ha"}), chunk({"content": "ha"}), END]
    assert render([from_openai(*twice)]) == sse(*twice) + DONE


def test_a_chunk_of_several_events_is_written_once() -> None:
    """Role, text, call and finish may come in one."""
    call = {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    full = chunk({"role": "assistant", "content": "a", "reasoning_content": "hm", "tool_calls": [call]}, "tool_calls")
    assert render([from_openai(full)]) == sse(full) + DONE


def test_an_event_whose_frame_was_dropped_is_rendered() -> None:
    """Under the stream's own name; its neighbours stay as they came."""
    [start, first, second, end] = from_openai(ROLE, chunk({"content": "a"}), chunk({"content": "b"}), END)
    changed = msgspec.structs.replace(first, frame=None)
    documents = documents_of(render([[start, changed, second, end]]))
    assert documents == [
        ROLE,
        {**IDENTITY, "choices": [{"index": 0, "delta": {"content": "a"}, "logprobs": None, "finish_reason": None}]},
        chunk({"content": "b"}),
        END,
    ]


def test_a_frame_whose_events_did_not_all_arrive_is_rendered_from_those_that_did() -> None:
    """The start that was held back, or the text that somebody cut out."""
    both = chunk({"role": "assistant", "content": "a"}, "length")
    [start, text, end] = from_openai(both)
    assert [
        (document["id"], document["choices"][0]["delta"], document["choices"][0]["finish_reason"])
        for document in documents_of(render([[start], [text], [end]]))
    ] == [("c1", {"role": "assistant", "content": "a"}, None), ("c1", {}, "length")]
    assert [
        (document["choices"][0]["delta"], document["choices"][0]["finish_reason"])
        for document in documents_of(render([[start, end]]))
    ] == [({"role": "assistant"}, "length")]


def test_a_frame_of_a_foreign_wire_is_not_written_through() -> None:
    """Its events are."""
    frame = Frame(b'{"type":"content_block_delta"}', "anthropic.event", 1)
    [document] = shown(START, TextDelta("a", frame=frame))
    assert document["choices"][0]["delta"]["content"] == "a"
    assert shown(START, ProviderExtra(frame)) == []


def test_the_pieces_of_a_custom_call_stay_custom_when_only_its_start_was_written_through() -> None:
    """What a call is, is known from its start."""
    begin = {"index": 0, "id": "a", "type": "custom", "custom": {"name": "sql", "input": ""}}
    events = from_openai(ROLE, chunk({"tool_calls": [begin]}))
    documents = documents_of(render([[*events, ToolCallDelta(0, "SELECT")]]))
    assert documents[-1]["choices"][0]["delta"]["tool_calls"] == [{"index": 0, "custom": {"input": "SELECT"}}]


# --- usage


def test_usage_is_not_sent_to_who_did_not_ask() -> None:
    """The gateway asks the provider for it anyway."""
    assert render([from_openai(ROLE, END, COUNT)]) == sse(ROLE, END) + DONE
    assert shown(START, USED) == []


def test_usage_of_the_provider_is_the_last_chunk_as_it_came() -> None:
    """With every field of it, wherever in the stream it stood."""
    assert render([from_openai(ROLE, END, COUNT)], ASKED) == sse(ROLE, END, COUNT) + DONE
    assert render([from_openai(ROLE, COUNT, END)], ASKED) == sse(ROLE, END, COUNT) + DONE


def test_usage_on_a_chunk_with_choices_is_moved_to_the_end() -> None:
    """Once, and nothing else of that chunk is lost."""
    usage = COUNT["usage"]
    end = chunk(finish="stop", usage=usage)
    *before, last = documents_of(render([from_openai(ROLE, end)], ASKED))
    assert before == [ROLE, {**end, "usage": None}]
    assert last == {**IDENTITY, "choices": [], "usage": usage}
    assert render([from_openai(ROLE, end)]) == sse(ROLE, end) + DONE


def test_usage_on_every_chunk_is_sent_once_at_the_end() -> None:
    """The last report counts."""
    words = [chunk({"content": "a"}, usage={"completion_tokens": count}) for count in (1, 2)]
    *before, last = documents_of(render([from_openai(ROLE, *words, END)], ASKED))
    assert [document.get("usage") for document in before] == [None] * 4
    assert last["usage"] == {"completion_tokens": 2}


def test_usage_on_every_chunk_stays_with_who_asked_for_that() -> None:
    """VLLM's ``continuous_usage_stats``; the last chunk has it too."""
    words = [chunk({"content": "a"}, usage={"completion_tokens": count}) for count in (1, 2)]
    body = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    call = Call(request_id="t", stream=True, include_usage=True, source=Source(OPENAI_CHAT, body))
    assert render([from_openai(ROLE, *words, END, COUNT)], call) == sse(ROLE, *words, END, COUNT) + DONE


def test_groqs_own_usage_is_the_last_chunk() -> None:
    """In OpenAI's place, and where it was."""
    usage = {"prompt_tokens": 9, "completion_tokens": 2, "queue_time": 0.1}
    end = chunk(finish="stop", x_groq={"id": "r", "usage": usage})
    *_, before, last = documents_of(render([from_openai(ROLE, end)], ASKED))
    assert before["x_groq"] == {"id": "r", "usage": usage}
    assert last == {**IDENTITY, "choices": [], "usage": usage}


def test_groqs_own_usage_on_a_chunk_of_its_own_is_put_where_clients_look() -> None:
    """Only a chunk that has it there goes out as it came."""
    count = {**IDENTITY, "choices": [], "x_groq": {"usage": {"completion_tokens": 2}}}
    *_, last = documents_of(render([from_openai(ROLE, END, count)], ASKED))
    assert last == {**IDENTITY, "choices": [], "usage": {"completion_tokens": 2}}


def test_usage_of_another_wire_is_the_last_chunk() -> None:
    """In OpenAI's terms, under the stream's own name."""
    *_, last = shown(START, USED, TextDelta("a"), STOP, call=ASKED)
    assert last == {
        "id": "msg_1",
        "object": "chat.completion.chunk",
        "created": 3,
        "model": "claude",
        "choices": [],
        "usage": USAGE,
    }


def test_a_later_report_takes_the_place_of_the_providers_own() -> None:
    """Over a seam the sum is what counts."""
    *_, last = documents_of(render([[*from_openai(ROLE, END, COUNT), USED]], ASKED))
    assert last["usage"] == USAGE


def test_without_a_report_there_is_no_usage() -> None:
    """Nothing is made up here."""
    assert render([[START, STOP]], ASKED).count(b"usage") == 0


# --- what came in another wire


def test_an_answer_of_another_wire_is_rendered() -> None:
    """The first chunk has all that a client asserts: id, object, created, model, index and role."""
    head = {"id": "msg_1", "object": "chat.completion.chunk", "created": 3, "model": "claude"}

    def one(delta: dict[str, Any], finish: str | None = None) -> Any:
        return {**head, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]}

    assert shown(START, TextDelta("né\n"), TextDelta('"b"'), STOP, USED) == [
        one({"role": "assistant", "content": "né\n"}),
        one({"content": '"b"'}),
        one({}, "stop"),
    ]


def test_every_piece_of_a_long_text_is_rendered_alike() -> None:
    """Whatever is kept from one piece to the next belongs to this choice and this name."""
    words = ["a", "b", '"c"', "d\n", "é"]
    events: list[Event] = [TextDelta(word, index) for word in words for index in (0, 1)]
    documents = shown(START, *events)
    assert {(item["id"], item["created"], item["model"]) for item in documents} == {("msg_1", 3, "claude")}
    for index in (0, 1):
        told = [item["choices"][0]["delta"] for item in documents if item["choices"][0]["index"] == index]
        assert told == [{"role": "assistant", "content": "a"}, *({"content": word} for word in words[1:])]


def test_what_the_provider_does_not_call_itself_is_taken_from_the_call() -> None:
    """Gemini has no time, others no id."""
    [document] = shown(StreamStarted("", ""), TextDelta("a"))
    assert (document["id"], document["created"], document["model"]) == ("chatcmpl-t", 7, "chat")


def test_every_choice_begins_with_its_role() -> None:
    """And keeps its number."""
    documents = shown(START, TextDelta("a", 1), TextDelta("b"), TextDelta("c", 1), ChoiceFinished("stop", index=2))
    assert [(choice["index"], choice["delta"]) for [choice] in (item["choices"] for item in documents)] == [
        (1, {"role": "assistant", "content": "a"}),
        (0, {"role": "assistant", "content": "b"}),
        (1, {"content": "c"}),
        (2, {"role": "assistant"}),
    ]


def test_reasoning_and_refusal_have_fields_of_their_own() -> None:
    """As OpenAI and those who copy it name them."""
    assert deltas(ReasoningDelta("hm"), RefusalDelta("no")) == [
        {"role": "assistant", "reasoning_content": "hm"},
        {"refusal": "no"},
    ]


def test_tool_calls_are_rendered_piece_by_piece() -> None:
    """Id, type and name come first, then the arguments."""
    events: list[Event] = [
        ToolCallStarted(0, "a", "f"),
        ToolCallDelta(0, '{"x":'),
        ToolCallStarted(1, "b", "sql", "custom"),
        ToolCallDelta(1, "SELECT"),
        ToolCallDelta(0, "1}"),
    ]
    assert deltas(*events) == [
        {
            "role": "assistant",
            "tool_calls": [{"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}],
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"x":'}}]},
        {"tool_calls": [{"index": 1, "id": "b", "type": "custom", "custom": {"name": "sql", "input": ""}}]},
        {"tool_calls": [{"index": 1, "custom": {"input": "SELECT"}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]},
    ]


def test_a_legacy_call_is_rendered_in_its_old_form() -> None:
    """For a client that asked with ``functions``."""
    assert deltas(ToolCallStarted(0, "", "f", "legacy"), ToolCallDelta(0, "{}")) == [
        {"role": "assistant", "function_call": {"name": "f", "arguments": ""}},
        {"function_call": {"arguments": "{}"}},
    ]


@pytest.mark.parametrize("reason", ["stop", "length", "tool_calls", "content_filter", "function_call"])
def test_the_finish_is_rendered_in_openais_terms(reason: Any) -> None:
    """Not in the provider's own."""
    [document] = shown(START, ChoiceFinished(reason, "whatever"))
    assert document["choices"][0]["finish_reason"] == reason


# --- the end that is none


def test_an_error_is_an_event_with_nothing_behind_it() -> None:
    """No ``[DONE]``, no finish, no name: that is how its clients know it."""
    encoder = OpenAIChatEncoder(CALL)
    encoder.encode([START, TextDelta("a")])
    error = StreamInterrupted("the provider's stream ended before the answer did", code="stream_truncated")
    assert encoder.error(error) == (
        b'data: {"error":{"message":"the provider\'s stream ended before the answer did","type":"upstream_error",'
        b'"param":null,"code":"stream_truncated"}}\n\n'
    )


def test_a_heartbeat_is_a_comment() -> None:
    """Every client of this dialect skips it."""
    beat = OpenAIChatEncoder(CALL).heartbeat()
    assert beat == b": keep-alive\n\n"
    assert SSEDecoder().feed(beat) == []


def test_an_error_before_the_first_byte_is_a_body() -> None:
    """With all that a program may want to know."""
    error = InvalidRequest("n: expected 1 to 128", param="n")
    assert msgspec.json.decode(OpenAIChat().error_body(error, "r1")) == {
        "error": {
            "message": "n: expected 1 to 128",
            "type": "invalid_request_error",
            "param": "n",
            "code": "invalid_request",
        }
    }
    busy = msgspec.json.decode(OpenAIChat().error_body(UpstreamBusy("Slow down", code="slow"), "r1"))
    assert (busy["error"]["type"], busy["error"]["code"]) == ("upstream_error", "slow")
    failed = msgspec.json.decode(OpenAIChat().error_body(InternalError("the gateway failed"), "r1"))
    assert failed["error"]["type"] == "server_error"


# --- whole answers

WHOLE = Call(request_id="t", model="chat", created_unix_s=7)


def answer(*events: Event) -> Any:
    """Return the whole answer that events are rendered as."""
    return msgspec.json.decode(OpenAIChat().answer(WHOLE, events))


def message_of(*events: Event) -> Any:
    """Return the message of a whole answer's first choice."""
    return answer(START, *events, STOP)["choices"][0]["message"]


def test_a_whole_answer_of_this_wire_goes_out_as_it_came() -> None:
    """Byte for byte."""
    body = (
        b'{ "id":"c1","object":"chat.completion","created":5,"model":"m","x":"default","choices":[{"index":0,'
        b'"message":{"role":"assistant","content":"a","annotations":[]},"logprobs":null,"finish_reason":"stop"}],'
        b'"usage":{"prompt_tokens":1,"completion_tokens":2,"x_cost":1e-5}}\n'
    )
    assert OpenAIChat().answer(WHOLE, read_answer(WHOLE, body)) == body


def test_a_whole_answer_that_was_touched_is_rendered() -> None:
    """As is one that is made of chunks, and one of which a part is missing."""
    body = msgspec.json.encode(
        {"choices": [{"index": 0, "message": {"content": "a", "x": 1}, "finish_reason": "stop"}]}
    )
    [start, text, end] = read_answer(WHOLE, body)
    touched = msgspec.structs.replace(text, frame=None)
    for events in ([start, touched, end], [start, end], from_openai(ROLE, chunk({"content": "a"}), END)):
        rendered = answer(*events)
        assert rendered["object"] == "chat.completion"
        assert "x" not in rendered["choices"][0]["message"]


def test_a_whole_answer_of_another_wire_is_rendered() -> None:
    """With its usage, under its own name."""
    assert answer(START, ReasoningDelta("hm"), TextDelta("a"), TextDelta("b"), STOP, USED) == {
        "id": "msg_1",
        "object": "chat.completion",
        "created": 3,
        "model": "claude",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "ab", "refusal": None, "reasoning_content": "hm"},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": USAGE,
    }


def test_a_whole_answer_without_a_name_or_usage_is_named_by_the_call() -> None:
    """And has no usage, rather than a made-up one."""
    rendered = answer(StreamStarted("", ""), TextDelta("a"), STOP)
    assert (rendered["id"], rendered["created"], rendered["model"]) == ("chatcmpl-t", 7, "chat")
    assert "usage" not in rendered
    assert answer()["choices"] == []


def test_the_choices_of_a_whole_answer_are_in_their_order() -> None:
    """Whatever order they came in."""
    choices = answer(START, TextDelta("b", 1), TextDelta("a"), STOP, ChoiceFinished("length", index=1))["choices"]
    assert [(item["index"], item["message"]["content"], item["finish_reason"]) for item in choices] == [
        (0, "a", "stop"),
        (1, "b", "length"),
    ]


def test_an_answer_without_a_word_has_an_empty_content() -> None:
    """A client that concatenates must not find null."""
    assert message_of() == {"role": "assistant", "content": "", "refusal": None}


def test_a_refusal_has_no_content() -> None:
    """As OpenAI sends it."""
    assert message_of(RefusalDelta("n"), RefusalDelta("o")) == {"role": "assistant", "content": None, "refusal": "no"}


def test_an_answer_that_only_calls_has_no_content() -> None:
    """A call without arguments has an empty object, which is what a client parses."""
    calls: list[Event] = [
        ToolCallStarted(0, "a", "f"),
        ToolCallStarted(1, "b", "sql", "custom"),
        ToolCallDelta(1, "SELECT"),
        ToolCallStarted(2, "c", "g"),
        ToolCallDelta(2, '{"x":'),
        ToolCallDelta(2, "1}"),
    ]
    assert message_of(*calls) == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}},
            {"id": "b", "type": "custom", "custom": {"name": "sql", "input": "SELECT"}},
            {"id": "c", "type": "function", "function": {"name": "g", "arguments": '{"x":1}'}},
        ],
    }


def test_a_legacy_call_of_a_whole_answer_is_in_its_old_form() -> None:
    """Not in ``tool_calls``."""
    message = message_of(ToolCallStarted(0, "", "f", "legacy"), ToolCallDelta(0, "{}"))
    assert message["function_call"] == {"name": "f", "arguments": "{}"}
    assert "tool_calls" not in message


def test_the_dialect_parses_and_streams_in_its_own_wire() -> None:
    """As the table of dialects promises."""
    dialect = OpenAIChat()
    call = dialect.parse(b'{"model":"m","messages":[{"role":"user","content":"Hi"}]}', CALL)
    assert (call.model, call.source.wire) == ("m", OPENAI_CHAT)
    assert isinstance(dialect.encoder(call), OpenAIChatEncoder)
    assert dialect.content_type == "text/event-stream; charset=utf-8"


# --- whatever comes

INDICES = st.integers(0, 2)
PIECES = st.text(min_size=1, max_size=4)
FRAMES = st.none() | st.builds(
    lambda word, count: Frame(msgspec.json.encode({**IDENTITY, "choices": [], "x": word}), OPENAI_CHUNK, count),
    PIECES,
    st.integers(1, 2),
)
USAGE_FRAMES = st.none() | st.builds(
    lambda count: Frame(msgspec.json.encode(COUNT), OPENAI_CHUNK, count), st.integers(1, 2)
)
EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(StreamStarted, st.just("c1"), st.just("m"), st.just(5), frame=FRAMES),
    st.builds(TextDelta, PIECES, INDICES, FRAMES),
    st.builds(ReasoningDelta, PIECES, INDICES, FRAMES),
    st.builds(RefusalDelta, PIECES, INDICES, FRAMES),
    st.builds(
        ToolCallStarted, INDICES, PIECES, PIECES, st.sampled_from(["function", "custom", "legacy"]), INDICES, FRAMES
    ),
    st.builds(ToolCallDelta, INDICES, PIECES, INDICES, FRAMES),
    st.builds(UsageReported, st.builds(Usage, INDICES, INDICES), USAGE_FRAMES),
    st.builds(ChoiceFinished, st.sampled_from(["stop", "length", "tool_calls"]), PIECES, INDICES, FRAMES),
    st.builds(ProviderExtra, FRAMES),
)


@given(st.lists(EVENTS, max_size=15), st.lists(st.integers(0, 15), max_size=4), st.booleans())
def test_any_legal_sequence_of_events_is_rendered(events: list[Event], cuts: list[int], include_usage: bool) -> None:  # noqa: FBT001
    """As valid events of valid JSON under one name, with the usage once and last, if at all."""
    lifecycle = Lifecycle()
    legal = lifecycle.admit([StreamStarted("c1", "m", 5), *events])
    places = sorted({0, len(legal), *(cut % (len(legal) + 1) for cut in cuts)})
    call = ASKED if include_usage else CALL
    stream = render([legal[start:end] for start, end in pairwise(places)], call)
    documents = documents_of(stream)
    assert all((item["id"], item["created"], item["model"]) == ("c1", 5, "m") for item in documents)
    has_usage = [item.get("usage") is not None for item in documents]
    reported = any(isinstance(event, UsageReported) for event in legal)
    assert sum(has_usage[:-1]) == 0
    assert (has_usage or [False])[-1] is (include_usage and reported)
    body = msgspec.json.decode(OpenAIChat().answer(call, legal))
    assert body["object"] == "chat.completion"


@given(st.binary(max_size=80), st.integers(1, 40))
def test_whatever_a_provider_of_this_wire_sends_is_rendered(data: bytes, size: int) -> None:
    """The two ends of the gateway fit, also on a bad day."""
    stream = sse(ROLE, chunk({"content": "a"})) + b"data: " + data + b"\n\n" + sse(END, COUNT) + DONE
    decoder, encoder = OpenAIDecoder(ASKED), OpenAIChatEncoder(ASKED)
    pieces = [encoder.encode(decoder.feed(stream[at : at + size])) for at in range(0, len(stream), size)]
    try:
        pieces += [encoder.encode(decoder.finish()), encoder.finish()]
    except UpstreamError as error:
        pieces.append(encoder.error(error))
        events = SSEDecoder().feed(b"".join(pieces))
        assert "error" in msgspec.json.decode(events[-1].data)
    else:
        assert b"".join(pieces).endswith(DONE)


def test_frames_of_another_kind_of_answer_are_not_streamed() -> None:
    """A whole answer that came where a stream was asked for is rendered as one."""
    body = msgspec.json.encode({"choices": [{"index": 0, "message": {"content": "a"}, "finish_reason": "stop"}]})
    events = read_answer(CALL, body)
    assert {event.frame.wire for event in events if event.frame} == {OPENAI_ANSWER}
    assert [item["choices"][0]["delta"] for item in documents_of(render([events]))] == [
        {"role": "assistant", "content": "a"},
        {},
    ]
