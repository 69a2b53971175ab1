from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.call import Call, Message, Target, TextPart, Tool
from gateway.core.errors import StreamInterrupted, UpstreamError
from gateway.core.events import ChoiceFinished, Event, StreamStarted, UsageReported
from gateway.core.lifecycle import Lifecycle
from gateway.core.transcript import Transcript
from gateway.dialects.openai_request import read_request
from gateway.providers import PROVIDERS
from gateway.providers.base import Provider, ProviderOptions

CALL = Call(
    request_id="t",
    stream=True,
    model="chat",
    target=Target("p", "a-model"),
    messages=(Message(role="user", parts=(TextPart("Hi"),)),),
    tools=(Tool(name="f", parameters={"type": "object"}),),
)


def sse(*documents: Any, name: bool = False, done: bool = False) -> bytes:
    """Return documents as server-sent events, under their names if they have them."""
    lines = []
    for document in documents:
        if name:
            lines.append(b"event: %b\n" % document["type"].encode())
        lines.append(b"data: %b\n\n" % msgspec.json.encode(document))
    return b"".join(lines) + (b"data: [DONE]\n\n" if done else b"")


def openai_stream(last: Any) -> bytes:
    """Return an answer in OpenAI's wire, whose last chunk is given."""
    deltas: list[Any] = [{"role": "assistant", "content": ""}, {"content": "né"}, {"content": "e"}]
    call = {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x"'}}
    deltas += [{"tool_calls": [call]}, {"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]}]
    head = {"id": "c1", "object": "chat.completion.chunk", "created": 5, "model": "m"}
    chunks = [{**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    end = {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}
    return sse(*chunks, {**end, **last}, done=True)


USED = {"usage": {"prompt_tokens": 3, "completion_tokens": 2}}
GOOGLE_CALL = {"functionCall": {"name": "f", "args": {"x": 1}}}
LLAMA_CALL = {"type": "tool_call", "id": "a", "function": {"name": "f", "arguments": '{"x":1}'}}
STREAMS: dict[str, tuple[bytes, bytes]] = {
    "openai": (openai_stream(USED), b'"finish_reason":"tool_calls"'),
    "mistral": (openai_stream(USED), b'"finish_reason":"tool_calls"'),
    "meta": (openai_stream(USED), b'"finish_reason":"tool_calls"'),
    "openai-compatible": (openai_stream({"x_groq": USED}), b'"finish_reason":"tool_calls"'),
    "anthropic": (
        sse(
            {"type": "message_start", "message": {"id": "c1", "model": "m", "usage": {"input_tokens": 3}}},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "né"}},
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "e"}},
            {"type": "content_block_stop", "index": 0},
            {"type": "content_block_start", "index": 1, "content_block": {"type": "tool_use", "id": "a", "name": "f"}},
            {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": '{"x"'}},
            {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": ":1}"}},
            {"type": "content_block_stop", "index": 1},
            {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 2}},
            {"type": "message_stop"},
            name=True,
        ),
        b"event: message_stop",
    ),
    "google": (
        sse(
            {"candidates": [{"content": {"role": "model", "parts": [{"text": "né"}]}}], "responseId": "c1"},
            {"candidates": [{"content": {"role": "model", "parts": [{"text": "e"}, GOOGLE_CALL]}}]},
            {
                "candidates": [{"content": {"role": "model", "parts": []}, "finishReason": "STOP"}],
                "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 2},
            },
        ),
        b'"finishReason":"STOP"',
    ),
    "llama": (
        sse(
            {"id": "c1", "event": {"event_type": "start", "delta": {"type": "text", "text": "né"}}},
            {"id": "c1", "event": {"event_type": "progress", "delta": {"type": "text", "text": "e"}}},
            {"id": "c1", "event": {"event_type": "progress", "delta": LLAMA_CALL}},
            {
                "id": "c1",
                "event": {
                    "event_type": "complete",
                    "delta": {"type": "text", "text": ""},
                    "stop_reason": "tool_calls",
                },
            },
            {
                "id": "c1",
                "event": {
                    "event_type": "metrics",
                    "delta": {"type": "text", "text": ""},
                    "metrics": [
                        {"metric": "num_prompt_tokens", "value": 3},
                        {"metric": "num_completion_tokens", "value": 2},
                    ],
                },
            },
        ),
        b'"stop_reason":"tool_calls"',
    ),
}
"""The same answer in every wire, and the words before which it is not whole: a new kind joins by its line."""


def make_provider(kind: str) -> Provider:
    """Return a provider of a kind, with a key."""
    host = "groq" if kind == "openai-compatible" else None
    return PROVIDERS[kind](ProviderOptions(name="p", api_key="secret-key", host=host))


@pytest.fixture(params=list(PROVIDERS))
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of the table."""
    return str(request.param)


def read(kind: str, pieces: Iterator[bytes] | list[bytes]) -> list[Event]:
    """Return the events of a stream; raises as the decoder does."""
    decoder = make_provider(kind).decoder(CALL)
    events = [event for piece in pieces for event in decoder.feed(piece)]
    return [*events, *decoder.finish()]


def said(events: list[Event]) -> Any:
    """Return what an answer comes to, without what differs from wire to wire."""
    transcript = Transcript()
    transcript.add(events)
    choice = transcript.choice()
    calls = [(call.name, msgspec.json.decode(call.arguments)) for call in choice.tool_calls.values()]
    return choice.text, calls, choice.finish_reason, transcript.usage


def split(stream: bytes, cuts: list[int]) -> list[bytes]:
    """Return a stream, cut at places."""
    places = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    return [stream[start:end] for start, end in pairwise(places)]


def test_every_kind_of_the_table_has_a_stream_here() -> None:
    """None escapes what is tested here."""
    assert set(STREAMS) == set(PROVIDERS)


def test_the_same_answer_is_the_same_events(kind: str) -> None:
    """Whatever the wire: text, a tool call, the finish, the usage."""
    events = read(kind, [STREAMS[kind][0]])
    text, calls, finish, usage = said(events)
    assert (text, calls, finish) == ("née", [("f", {"x": 1})], "tool_calls")
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens, usage.is_estimated) == (3, 2, False)
    [started] = [event for event in events if isinstance(event, StreamStarted)]
    assert started.target == "p/a-model"


def test_events_are_in_legal_order_and_carry_their_frames(kind: str) -> None:
    """No frame claims fewer events than were read from it."""
    events = read(kind, [STREAMS[kind][0]])
    assert Lifecycle().admit(events) == events
    counts: dict[int, int] = {}
    for event in events:
        if event.frame is not None:
            counts[id(event.frame)] = counts.get(id(event.frame), 0) + 1
            assert b"\n" not in event.frame.data
    frames = {id(event.frame): event.frame for event in events if event.frame is not None}
    assert frames
    assert all(counts[key] <= frame.event_count for key, frame in frames.items())


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("size", [1, 2, 5, 64, 100_000])
def test_where_a_stream_is_split_and_how_its_lines_end_does_not_matter(kind: str, size: int, line_end: bytes) -> None:
    """Inside a character, a line end or a name."""
    stream = STREAMS[kind][0].replace(b"\n", line_end)
    pieces = (stream[at : at + size] for at in range(0, len(stream), size))
    assert said(read(kind, pieces)) == said(read(kind, [STREAMS[kind][0]]))


def test_a_cut_stream_never_finishes(kind: str) -> None:
    """At whatever byte: before the end marker it is an interruption, behind it nothing of the answer is missing.

    And whoever listened until the interruption has heard of no finish.
    """
    stream, marker = STREAMS[kind]
    text, calls, finish, _ = said(read(kind, [stream]))
    for at in range(len(stream)):
        decoder = make_provider(kind).decoder(CALL)
        events = decoder.feed(stream[:at])
        try:
            events += decoder.finish()
        except StreamInterrupted as error:
            assert error.retryable  # noqa: PT017, a cut that ends well is legal behind the marker
            assert not any(isinstance(event, ChoiceFinished) for event in events)
        else:
            assert at > stream.index(marker)
            assert said(events)[:3] == (text, calls, finish)


def test_a_stream_without_a_word_is_an_interruption(kind: str) -> None:
    """Nothing, comments and blank lines are no answer."""
    for stream in (b"", b": ping\n\n", b"\n\n\n", b"data: [DONE]\n\n"):
        with pytest.raises(UpstreamError):
            read(kind, [stream])


def test_usage_is_estimated_where_none_is_reported(kind: str) -> None:
    """Every answer is counted."""
    stream = STREAMS[kind][0]
    for name in (b'"usage', b'"metrics"', b'"x_groq'):
        stream = stream.replace(name, b'"x_' + name[1:])
    with suppress(UpstreamError):  # where the metrics are the end
        events = read(kind, [stream])
        assert any(isinstance(event, UsageReported) for event in events)


@given(st.data())
def test_arbitrary_bytes_only_raise_errors_of_the_tree(data: st.DataObject) -> None:
    """Also in the middle of a good stream, and however they are split."""
    kind = data.draw(st.sampled_from(list(PROVIDERS)))
    stream = STREAMS[kind][0]
    at = data.draw(st.integers(0, len(stream)))
    noise = data.draw(st.binary(max_size=60))
    cuts = data.draw(st.lists(st.integers(0, 4000), max_size=4))
    for whole in (stream[:at] + noise + stream[at:], noise, b"data: " + noise + b"\n\n"):
        decoder = make_provider(kind).decoder(CALL)
        events: list[Event] = []
        with suppress(UpstreamError):
            for piece in split(whole, cuts):
                events += decoder.feed(piece)
            events += decoder.finish()
        assert Lifecycle().admit(events) == events


@given(st.sampled_from(list(PROVIDERS)), st.binary(max_size=80) | st.sampled_from([b"[" * 100_000, b"{}", b"[]", b"7"]))
def test_a_body_that_is_no_answer_only_raises_errors_of_the_tree(kind: str, body: bytes) -> None:
    """A proxy's page, half an answer, or another wire's."""
    with pytest.raises(UpstreamError):
        make_provider(kind).answer(CALL, body)


@given(st.sampled_from(list(PROVIDERS)), st.integers(400, 599), st.binary(max_size=80))
def test_every_http_error_is_one_of_the_provider(kind: str, status: int, body: bytes) -> None:
    """Whatever its body is: one line, without the key."""
    error = make_provider(kind).error(status, {"retry-after": "soon"}, body + b" secret-key")
    assert isinstance(error, UpstreamError)
    assert error.upstream_status == status
    assert len(error.message.splitlines()) == 1
    assert "secret-key" not in error.message


def test_a_request_is_json_to_an_address_with_the_key_in_a_header_only(kind: str) -> None:
    """Addresses and bodies end up in logs."""
    foreign = CALL
    own = read_request(b'{"model":"chat","stream":true,"messages":[{"role":"user","content":"Hi"}]}', CALL)
    for call in (foreign, own):
        request = make_provider(kind).request(call)
        assert request.url.startswith("https://")
        assert isinstance(msgspec.json.decode(request.body), dict)
        assert request.headers["content-type"] == "application/json"
        assert any("secret-key" in value for value in request.headers.values())
        assert "secret-key" not in request.url
        assert b"secret-key" not in request.body
        assert b"Hi" in request.body
        assert "a-model" in request.url + request.body.decode()
