from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.call import OPENAI_CHAT, Call, Source
from gateway.core.errors import InternalError, InvalidRequest, StreamInterrupted, UpstreamBusy, UpstreamError
from gateway.core.events import (
    OPENAI_ANSWER,
    OPENAI_CHUNK,
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
from gateway.core.sse import SSEDecoder
from gateway.core.transcript import Transcript
from gateway.dialects import openai_chat
from gateway.dialects.openai_chat import OpenAIChat, OpenAIChatEncoder
from gateway.providers.openai_answer import read_answer
from gateway.providers.openai_stream import OpenAIDecoder

CALL = Call(request_id="t", model="chat", stream=True, created_unix_s=7)
ASKED = Call(request_id="t", model="chat", stream=True, created_unix_s=7, include_usage=True)
"""A call that wants the usage, too."""

IDENTITY = {"id": "c1", "object": "chat.completion.chunk", "created": 5, "model": "m"}
DONE = b"data: [DONE]\n\n"
START = StreamStarted("msg_1", "claude", 3, target="anthropic/claude")
STOP = ChoiceFinished("stop", "end_turn")
USED = UsageReported(Usage(9, 2, 4, 0, 1))
FAILED = AttemptFailed("openai/gpt", 1, "connect", "upstream_unreachable")
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
    """Return what a client reads: one JSON document a line, maybe comments, and ``[DONE]`` at the end."""
    assert stream.endswith(DONE)
    blocks = stream.removesuffix(DONE).split(b"\n\n")
    assert blocks.pop() == b""
    assert all(block.startswith((b"data: ", b": millrace ")) and b"\n" not in block for block in blocks)
    return [msgspec.json.decode(block[6:]) for block in blocks if block.startswith(b"data: ")]


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


def test_a_batch_of_any_kinds_is_written_as_its_events_are_one_by_one() -> None:
    """Written through or rendered, foreign or changed by somebody on the way, with a running total or a finish."""
    own = from_openai(ROLE, *(chunk({"content": piece}) for piece in "abcd"), END)
    thought = from_openai(ROLE, *(chunk({"reasoning_content": piece}) for piece in "ef"))[1:]
    frame = Frame(b"{}", "a.foreign.wire", 2)
    batches: list[list[Event]] = [
        [own[1], own[2]],
        [own[1], TextDelta("x"), own[2]],
        [TextDelta("x", 0, frame), UsageReported(Usage(9, 2), frame)],
        [TextDelta("x"), UsageReported(Usage(9, 1)), TextDelta("y"), USED],
        [own[1], ReasoningDelta("hm"), own[2]],
        [thought[0]],
        [ReasoningDelta("o")],
        [ReasoningDelta("h", 0, frame), thought[1], TextDelta("z"), ReasoningDelta("m"), own[1]],
        [own[3], TextDelta("x", 1), own[4]],
        [own[3], ProviderExtra(), USED],
        [USED],
        [],
        own[3:],
    ]
    assert [type(event) for event in own] == [StreamStarted, *[TextDelta] * 4, ChoiceFinished]
    together: list[list[Event]] = [own[:2], [TextDelta("a")], [TextDelta("b")], *batches]
    apart: list[list[Event]] = [[event] for batch in together for event in batch]
    assert render(together, ASKED) == render(apart, ASKED)
    assert render(together[:-1], ASKED).endswith(b'"usage":%b}\n\n' % msgspec.json.encode(USAGE) + DONE)


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


# --- every choice speaks its role once


def roles_of(documents: list[Any]) -> list[int]:
    """Return the choices that speak their role, each time they do."""
    return [
        choice["index"]
        for document in documents
        for choice in document["choices"]
        if choice["delta"].get("role") == "assistant"
    ]


def test_a_role_that_was_not_written_is_spoken_by_the_first_frame() -> None:
    """A start may come without its frame; the rest of the first frame that is written stays as it came."""
    [start, first, second, end] = from_openai(ROLE, chunk({"content": "a"}), chunk({"content": "b"}), END)
    changed = msgspec.structs.replace(start, frame=None)
    assert documents_of(render([[changed], [first], [second], [end]])) == [
        chunk({"content": "a", "role": "assistant"}),
        chunk({"content": "b"}),
        END,
    ]


def test_a_role_that_was_not_written_is_spoken_by_whatever_comes_first() -> None:
    """A rendered delta, a usage chunk with choices, an extra."""
    [start, text, end] = from_openai(ROLE, chunk({"content": "a"}), END)
    changed = msgspec.structs.replace(start, frame=None)
    bare = msgspec.structs.replace(text, frame=None)
    assert roles_of(documents_of(render([[changed, bare], [text], [end]]))) == [0]
    whole = chunk({"content": "a"}, "stop", usage={"prompt_tokens": 1})
    [_, *rest] = from_openai(whole)
    [document] = documents_of(render([[changed], [msgspec.structs.replace(item, frame=None) for item in rest]]))[:1]
    assert document["choices"][0]["delta"] == {"role": "assistant", "content": "a"}
    extra = ProviderExtra(Frame(msgspec.json.encode(chunk({"content": ""})), OPENAI_CHUNK, 1))
    assert roles_of(documents_of(render([[changed, extra, text, end]]))) == [0]


def test_a_choice_without_a_delta_has_no_place_for_a_role() -> None:
    """Hosts send such a chunk; the next one has it."""
    start, extra, text, end = from_openai(ROLE, {**IDENTITY, "choices": [{"index": 0}]}, chunk({"content": "a"}), END)
    changed = msgspec.structs.replace(start, frame=None)
    assert render([[changed, extra]]) == sse({**IDENTITY, "choices": [{"index": 0}]}) + DONE
    *_, text_chunk, _ = documents_of(render([[changed], [text], [end]]))
    assert text_chunk["choices"][0]["delta"] == {"role": "assistant", "content": "a"}


def test_every_choice_of_many_speaks_its_role_once() -> None:
    """Whether or not the frame that spoke it is still there."""
    documents = [
        chunk({"role": "assistant", "content": ""}),
        chunk({"role": "assistant", "content": "b"}, index=1),
        chunk({"content": "a"}),
        chunk({"content": "c"}, index=1),
        END,
        chunk(finish="stop", index=1),
    ]
    call = Call(request_id="t", choice_count=2)
    events = from_openai(*documents, choice_count=2)
    assert render([[event] for event in events], call) == sse(*documents) + DONE
    events[1] = msgspec.structs.replace(events[1], frame=None)
    assert roles_of(documents_of(render([[event] for event in events], call))) == [0, 1]


def test_a_role_that_is_spoken_again_is_left_out() -> None:
    """By the first chunks of another attempt: OpenAI's own helper would make it "assistantassistant"."""
    events = from_openai(ROLE, chunk({"reasoning_content": "hm"}))
    again = chunk({"role": "assistant", "content": "a"})
    seam = StreamContinued("b/m", "a/m", "restart", 2, 0)
    frame = Frame(msgspec.json.encode(again), OPENAI_CHUNK, 1)
    *_, last = documents_of(render([events, [seam, TextDelta("a", frame=frame)]]))
    assert last == chunk({"content": "a"})
    extra = ProviderExtra(Frame(msgspec.json.encode(ROLE), OPENAI_CHUNK, 1))
    assert roles_of(documents_of(render([events, [seam], [extra], [TextDelta("a", frame=frame)]]))) == [0]


OPENED: dict[str, Any] = {
    **IDENTITY,
    "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None}],
}


@pytest.mark.parametrize(
    "document",
    [
        OPENED,
        {**OPENED, "x": {}},
        {"x": {"choices": OPENED["choices"]}, **IDENTITY, "choices": []},
        {**IDENTITY, "choices": [], "x": OPENED},
        {**IDENTITY, "choices": [{"index": 1, "delta": {"role": "assistant"}}]},
        {**IDENTITY, "choices": [{"delta": {"role": "assistant"}, "index": 0}]},
        {**IDENTITY, "choices": [{"index": 0, "delta": {"content": "", "role": "assistant"}}]},
        {**IDENTITY, "choices": [{"index": 0, "delta": {"content": '"delta":{"role":"assistant"'}}]},
        {**IDENTITY, "choices": [{"index": 0, "delta": {"role": "tool"}}]},
        {**IDENTITY, "choices": [{"index": 0, "delta": {"role": None}}]},
        {**IDENTITY, "choices": [{"index": 0, "delta": {}}]},
        {**IDENTITY, "choices": [*OPENED["choices"], {"index": 1, "delta": {}}]},
        {**IDENTITY, "choices": [{"index": 1, "delta": {}}, *OPENED["choices"]]},
        {"choices": OPENED["choices"], "model": "{"},
        {"choices": OPENED["choices"]},
    ],
)
@pytest.mark.parametrize("choice_count", [1, 2])
def test_a_role_is_the_same_to_who_looks_at_bytes_alone(
    document: Any, choice_count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frame that speaks it is mostly not decoded: what goes out, of it and behind it, is what it would be then."""
    call = Call(request_id="t", model="chat", choice_count=choice_count)
    rest: list[Event] = [TextDelta("a", 1), TextDelta("b"), TextDelta("c")]
    own = Frame(msgspec.json.encode(OPENED), OPENAI_CHUNK, 1)
    for data in (msgspec.json.encode(document), json.dumps(document).encode()):
        start = StreamStarted("c1", "m", 5, frame=Frame(data, OPENAI_CHUNK, 1))
        again: list[Event] = [ProviderExtra(own), ProviderExtra(start.frame)]
        streams: list[list[list[Event]]] = [[[start, *rest], again, rest], [[start], again, rest]]
        told = [render(batches, call) for batches in streams]
        with monkeypatch.context() as patch:
            patch.setattr(OpenAIChatEncoder, "_is_right_in_roles", lambda *_: False)
            assert [render(batches, call) for batches in streams] == told


def test_a_role_is_mostly_not_looked_for_in_a_document(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the test above is in vain."""
    monkeypatch.delattr(openai_chat, "decode_frame")
    documents = [OPENED, chunk({"content": "a"}), END]
    assert render([from_openai(*documents)]) == sse(*documents) + DONE


def test_the_stream_keeps_its_first_name() -> None:
    """A second start is that of another attempt, and the client knows the stream by the first."""
    documents = shown(START, TextDelta("a"), StreamStarted("other", "gpt", 9), TextDelta("b"))
    assert {(item["id"], item["created"], item["model"]) for item in documents} == {("msg_1", 3, "claude")}


# --- frames whose events come apart

CALL_PIECE = {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def test_the_start_alone_does_not_break_a_frame_up() -> None:
    """It has no bytes of its own: the frame goes out as it came, when the rest of it does."""
    full = chunk({"role": "assistant", "tool_calls": [CALL_PIECE]}, x_signature="s")
    [start, begin, arguments, end] = from_openai(full, chunk(finish="tool_calls"))
    encoder = OpenAIChatEncoder(CALL)
    assert encoder.encode([start]) == b""
    assert encoder.encode([begin, arguments]) == sse(full)
    assert encoder.encode([end]) == sse(chunk(finish="tool_calls"))


def test_a_frame_that_lost_its_start_does_not_speak_the_role_again() -> None:
    """What was said in between has."""
    full = chunk({"role": "assistant", "tool_calls": [CALL_PIECE]})
    [start, begin, arguments, text] = from_openai(full, chunk({"content": "a"}))
    documents = documents_of(render([[start], [text], [begin, arguments]]))
    assert documents == [chunk({"role": "assistant", "content": "a"}), chunk({"tool_calls": [CALL_PIECE]})]


def test_a_call_that_is_held_back_leaves_the_text_of_its_frame_behind() -> None:
    """Both are rendered, once, and what the host says of the call stays with it."""
    signed = {**CALL_PIECE, "extra_content": {"google": {"thought_signature": "s"}}}
    full = chunk({"content": "a", "tool_calls": [signed]}, x=1)
    [start, text, begin, arguments, end] = from_openai(ROLE, full, chunk(finish="tool_calls"))
    documents = documents_of(render([[start, text], [begin], [arguments, end]]))
    assert [item["choices"][0]["delta"] for item in documents[1:]] == [
        {"content": "a"},
        {"tool_calls": [{**signed, "function": {"name": "f", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]},
        {},
    ]


def test_a_usage_that_comes_apart_from_its_frame_is_still_the_providers_own() -> None:
    """With every field of it."""
    usage = COUNT["usage"]
    [start, text, end, used] = from_openai(ROLE, chunk({"content": "a"}, "stop", usage=usage))
    *_, last = documents_of(render([[start, text], [used], [end]], ASKED))
    assert last == {**IDENTITY, "choices": [], "usage": usage}


def test_a_frame_that_cannot_be_read_in_full_is_rendered_where_it_must_be_read() -> None:
    """A provider may send a number beyond all bounds, or bytes that are not UTF-8, in a field of its own."""
    odd = msgspec.json.encode(chunk({"content": "a"}, usage={"prompt_tokens": 1}))[:-1] + b',"x":1e999}'
    decoder = OpenAIDecoder(CALL)
    events = decoder.feed(sse(ROLE) + b"data: " + odd + b"\n\n")
    *_, text, last = documents_of(render([events], ASKED))
    assert text["choices"][0]["delta"] == {"content": "a"}
    assert last["usage"]["prompt_tokens"] == 1


# --- a seam


def seam(way: Literal["restart", "exact", "anchored"] = "exact", target: str = "b/m", source: str = "a/m") -> Event:
    """Return a seam behind five characters."""
    return StreamContinued(target, source, way, 2, 5)


def test_a_seam_is_a_comment_of_its_own() -> None:
    """A client's parser skips it; a person reading the wire does not."""
    encoder = OpenAIChatEncoder(CALL)
    encoder.encode([START, TextDelta("Hello")])
    comment = encoder.encode([seam()])
    assert comment == b": millrace continued b/m from a/m, exact, attempt 2, after 5 characters\n\n"
    assert SSEDecoder().feed(comment) == []
    assert encoder.encode([TextDelta(" you"), seam("anchored"), TextDelta("!")]).count(b"\n\n") == 3


def test_a_seam_in_written_frames_is_where_it_was() -> None:
    """Between what one attempt said and what the next did."""
    events = from_openai(ROLE, chunk({"content": "a"}), chunk({"content": "b"}), END)
    stream = render([[*events[:2], seam(), *events[2:]]])
    comment = b": millrace continued b/m from a/m, exact, attempt 2, after 5 characters\n\n"
    assert stream == sse(ROLE, chunk({"content": "a"})) + comment + sse(chunk({"content": "b"}), END) + DONE


def test_an_answer_begun_again_before_anything_was_said_has_no_seam() -> None:
    """Nothing commits the response, so that an error could still be told by a status."""
    encoder = OpenAIChatEncoder(CALL)
    assert encoder.encode([FAILED, StreamContinued("b/m", "a/m", "restart", 2, 0)]) == b""
    assert encoder.encode([START]) == b""


def test_an_answer_begun_again_behind_its_reasoning_has_a_seam() -> None:
    """No character of the text was delivered, but something was seen."""
    encoder = OpenAIChatEncoder(CALL)
    encoder.encode([START, ReasoningDelta("hm")])
    comment = encoder.encode([StreamContinued("b/m", "a/m", "restart", 2, 0)])
    assert comment == b": millrace continued b/m from a/m, restart, attempt 2, after 0 characters\n\n"


@given(st.text(), st.text())
def test_a_seam_is_one_line_of_printable_ascii(target: str, source: str) -> None:
    """Whatever a target is called, nobody breaks out of the comment."""
    comment = OpenAIChatEncoder(CALL).encode([seam(target=target, source=source)])
    line = comment.removesuffix(b"\n\n")
    assert line.startswith(b": millrace continued ")
    assert all(32 <= byte <= 126 for byte in line)


def test_notes_of_the_gateway_have_no_bytes() -> None:
    """They are for the log, and a checkpoint is the provider's own."""
    encoder = OpenAIChatEncoder(CALL)
    encoder.encode([START, TextDelta("a")])
    assert encoder.encode([FAILED, CheckpointReached("secret")]) == b""
    assert shown(FAILED, START, CheckpointReached("secret")) == []


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


@pytest.mark.parametrize(("kind", "key"), [(TextDelta, "content"), (ReasoningDelta, "reasoning_content")])
def test_every_piece_of_a_long_text_is_rendered_alike(kind: type[TextDelta | ReasoningDelta], key: str) -> None:
    """Whatever is kept from one piece to the next belongs to this choice, this kind and this name."""
    words = ["a", "b", '"c"', "d\n", "é"]
    events: list[Event] = [kind(word, index) for word in words for index in (0, 1)]
    documents = shown(START, *events)
    assert {(item["id"], item["created"], item["model"]) for item in documents} == {("msg_1", 3, "claude")}
    for index in (0, 1):
        told = [item["choices"][0]["delta"] for item in documents if item["choices"][0]["index"] == index]
        assert told == [{"role": "assistant", key: "a"}, *({key: word} for word in words[1:])]


@pytest.mark.parametrize("kind", [TextDelta, ReasoningDelta])
def test_a_name_that_comes_late_is_that_of_all_behind_it(kind: type[TextDelta | ReasoningDelta]) -> None:
    """Nothing that was kept before has another."""
    documents = shown(kind("a"), kind("b"), START, kind("c"), kind("d"))
    assert [item["id"] for item in documents] == ["chatcmpl-t", "chatcmpl-t", "msg_1", "msg_1"]


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
        b'"param":null,"code":"stream_truncated"},"request_id":"t"}\n\n'
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
BODY = (
    b'{ "id":"c1","object":"chat.completion","created":5,"model":"m","x":"default","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"a","annotations":[]},"logprobs":null,"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":1,"completion_tokens":2,"x_cost":1e-5}}\n'
)


def test_a_whole_answer_of_this_wire_goes_out_as_it_came() -> None:
    """Byte for byte."""
    assert OpenAIChat().answer(WHOLE, read_answer(WHOLE, BODY)) == BODY


def test_what_the_gateway_notes_does_not_touch_a_whole_answer() -> None:
    """Attempts that failed before it, and a usage that nobody reported."""
    events: list[Event] = [FAILED, *read_answer(WHOLE, BODY), UsageReported(Usage(1, 1, is_estimated=True))]
    assert OpenAIChat().answer(WHOLE, events) == BODY


def test_a_whole_answer_that_was_touched_is_rendered() -> None:
    """As is one of which a part is missing, and one that goes on where another broke off."""
    [start, text, end, used] = read_answer(WHOLE, BODY)
    touched = msgspec.structs.replace(text, frame=None)
    for events in ([start, touched, end, used], [start, end, used], [ReasoningDelta("hm"), start, text, end, used]):
        rendered = OpenAIChat().answer(WHOLE, events)
        assert rendered != BODY
        assert msgspec.json.decode(rendered)["object"] == "chat.completion"


def test_an_answer_collected_from_a_stream_is_one_document() -> None:
    """Nothing is left of its chunks."""
    rendered = msgspec.json.decode(OpenAIChat().answer(WHOLE, from_openai(ROLE, chunk({"content": "a"}), END, COUNT)))
    assert (rendered["object"], rendered["id"], rendered["usage"]) == ("chat.completion", "c1", COUNT["usage"])
    assert rendered["choices"][0]["message"] == {"role": "assistant", "content": "a", "refusal": None}


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
    st.builds(CheckpointReached, PIECES, INDICES),
    st.just(FAILED),
    st.builds(StreamContinued, PIECES, PIECES, st.sampled_from(["restart", "exact"]), INDICES, INDICES),
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


@st.composite
def streams(draw: st.DrawFn) -> tuple[int, list[Any]]:
    """Return how many choices there are, and chunks of them: each may say several things at once."""
    choice_count = draw(st.integers(1, 2))
    documents, spoken, call_counts = [], set[int](), [0, 0]
    told = st.tuples(st.integers(0, choice_count - 1), st.sets(st.sampled_from(["t", "r", "n", "c", "a"])), PIECES)
    for index, kinds, word in draw(st.lists(told, min_size=1, max_size=8)):
        delta: dict[str, Any] = {} if index in spoken else {"role": "assistant", "content": ""}
        delta |= {"content": word} if "t" in kinds else {}
        delta |= {"reasoning_content": word} if "r" in kinds else {}
        delta |= {"refusal": word} if "n" in kinds else {}
        calls = []
        if "c" in kinds:
            number = call_counts[index]
            call_counts[index] += 1
            calls.append({"index": number, "id": f"id{number}", "type": "function", "function": {"name": word}})
        if "a" in kinds and call_counts[index]:
            calls.append({"index": call_counts[index] - 1, "function": {"arguments": word}})
        documents.append(chunk(delta | ({"tool_calls": calls} if calls else {}), index=index))
        spoken.add(index)
    for index in range(choice_count):
        delta = {} if index in spoken else {"role": "assistant"}
        documents.append(chunk(delta, draw(st.sampled_from(["stop", "length", "tool_calls"])), index))
    return choice_count, [*documents, COUNT]


def hold_back(events: list[Event], releases: list[bool]) -> list[Event]:
    """Return events with the tool calls later than they came: when one is released, and when a choice ends."""
    sent: list[Event] = []
    held: list[Event] = []
    for event, is_released in zip(events, releases, strict=True):
        if isinstance(event, ToolCallStarted | ToolCallDelta):
            held.append(event)
        elif isinstance(event, ChoiceFinished):
            sent += [*held, event]
            held.clear()
        else:
            sent.append(event)
        if is_released:
            sent += held
            held.clear()
    return sent


def content_of(events: list[Event]) -> Any:
    """Return all that events amount to: the name, the choices, the usage."""
    transcript = Transcript()
    transcript.add(events)
    started = transcript.started
    choices = {
        index: (choice.text, choice.reasoning, choice.refusal, sorted(choice.tool_calls.items()), choice.finish_reason)
        for index, choice in transcript.choices.items()
    }
    return (started.id, started.model, started.created_unix_s) if started else None, choices, transcript.usage


@given(streams(), st.data())
def test_nothing_is_lost_or_said_twice_however_the_events_come(
    stream: tuple[int, list[Any]], data: st.DataObject
) -> None:
    """Held back, without their frames, cut into any batches: a client reads what the provider said, and roles once."""
    choice_count, documents = stream
    call = Call(request_id="t", choice_count=choice_count, include_usage=True)
    events = from_openai(*documents, choice_count=choice_count)
    expected = content_of(events)

    def flags() -> list[bool]:
        return data.draw(st.lists(st.booleans(), min_size=len(events), max_size=len(events)))

    sent = [
        msgspec.structs.replace(event, frame=None) if is_touched else event
        for event, is_touched in zip(hold_back(events, flags()), flags(), strict=True)
    ]
    batches: list[list[Event]] = [[]]
    for event, is_cut in zip(sent, flags(), strict=True):
        batches.append([event]) if is_cut else batches[-1].append(event)
    body = render(batches, call)
    decoder = OpenAIDecoder(call)
    assert content_of([*decoder.feed(body), *decoder.finish()]) == expected
    assert sorted(roles_of(documents_of(body))) == list(range(choice_count))


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
