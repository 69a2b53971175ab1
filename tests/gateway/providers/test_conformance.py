from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal
from unittest import mock

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from gateway.core.call import Call, Message, Target, TextPart, Tool
from gateway.core.continuation import ANSWER_CONTINUES, Checkpoint, Continuation
from gateway.core.errors import StreamInterrupted, UpstreamError
from gateway.core.events import ChoiceFinished, Event, StreamStarted, TextDelta, ToolCallStarted, UsageReported
from gateway.core.lifecycle import Lifecycle
from gateway.core.transcript import Transcript
from gateway.dialects.openai_chat import OpenAIChatEncoder
from gateway.dialects.openai_request import read_request
from gateway.providers import PROVIDERS
from gateway.providers.base import Provider, ProviderOptions
from gateway.providers.compatible import HOSTS
from gateway.simulator.script import Script
from tests.gateway.providers import simulated

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


# --- going on with a partial answer, with the simulator behind every wire

CONTINUED = {
    "anthropic": "claude-haiku-4-5",
    "google": "gemini-3.5-flash",
    "mistral": "mistral-small-latest",
    "deepseek": "mill",
    "groq": "mill",
    "llama.cpp": "mill",
    "ollama": "qwen3-coder:30b",
    "openrouter": "anthropic/claude-haiku-4.5",
    "vllm": "mill",
}
"""Who goes on with an open turn, and a model that does: a new kind or host joins by its line."""

OTHERS = {
    "openai": "gpt-4o",
    "meta": "muse-spark-1.1",
    "llama": "Llama-4",
    "openai-compatible": "mill",
    "anthropic": "claude-opus-4-6",
    "google": "gemini-3.6-flash",
    "azure": "gpt-4o",
    "fireworks": "mill",
    "ollama": "qwen3:8b",
    "openrouter": "openai/gpt-5",
    "perplexity": "sonar",
    "together": "mill",
    "xai": "grok",
}
"""Who does not, or has models that do not."""

ANSWER = (
    'One  two, né.\n\n- three 水\n  - four 👩\u200d👧 and "five"\t\n\n'
    "Six is what comes next, and seven, and then there are eight and nine.  Ten!\n"
)
"""It can be cut in white space, next to it, and inside what a reader takes for one character."""

SAID = Script(say=ANSWER)


def asked(name: str, model: str, **fields: Any) -> Call:
    """Return a call for a model of a simulated provider."""
    return structs.replace(CALL, target=Target(name, model), tools=(), max_output_tokens=5000, **fields)


def text_of(events: list[Event]) -> str:
    """Return the text of events."""
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def go_on(name: str, call: Call, text: str, script: Script = SAID, *, size: int = 100_000) -> list[Event]:
    """Return the events of the rest of an answer of which the client has ``text``."""
    provider = simulated.make_provider(name)
    started = StreamStarted("first", "known", 3, target=str(call.target))
    call = structs.replace(call, continuation=Continuation(way="exact", started=started, text=text))
    assert provider.continues(call)
    return simulated.ask(provider, call, script, serial="another", size=size)


def test_who_goes_on_is_all_here() -> None:
    """None of the kinds and hosts escapes what is tested here."""
    names = {*PROVIDERS, *HOSTS}
    found = set()
    for name in names:
        options = ProviderOptions(name=name, base_url="http://h/v1", host=name if name in HOSTS else None)
        provider = PROVIDERS[name if name in PROVIDERS else "openai-compatible"](options)
        calls = [asked(name, model, continuation=Continuation(way="exact", text="a")) for model in CONTINUED.values()]
        found |= {name for call in calls if provider.continues(call)}
    assert found == CONTINUED.keys()
    assert {name for name in names if name in simulated.NAMES} == {*CONTINUED, *OTHERS}


@pytest.mark.parametrize(("name", "model"), [*CONTINUED.items(), *OTHERS.items()])
def test_a_target_is_said_to_go_on_where_it_does(name: str, model: str) -> None:
    """Asked in its own way it goes on, or it answers anew, or it refuses."""
    call = asked(name, model, continuation=Continuation(way="exact", text=ANSWER[:50]))
    played = simulated.play(simulated.make_provider(name, continuation="exact").request(call), SAID)
    assert simulated.make_provider(name).continues(call) is (played.way in ("prefill", "echo"))


@settings(max_examples=400)
@given(
    st.sampled_from(list(CONTINUED)),
    st.integers(1, len(ANSWER)),
    st.sampled_from([1, 2, 3, 17, 100_000]),
    st.sampled_from([None, "high"]),
    st.booleans(),
)
def test_what_was_delivered_and_the_rest_are_the_uncut_answer(
    name: str,
    at: int,
    size: int,
    effort: str | None,
    stream: bool,  # noqa: FBT001, drawn by position
) -> None:
    """Cut at any character, split at any byte, streamed or whole, thinking or not."""
    call = asked(name, CONTINUED[name], reasoning_effort=effort, stream=stream)
    assert text_of(simulated.ask(simulated.make_provider(name), call, SAID, size=size)) == ANSWER
    events = go_on(name, call, ANSWER[:at], size=size)
    assert ANSWER[:at] + text_of(events) == ANSWER
    assert Lifecycle().admit(events) == events
    assert [event.reason for event in events if isinstance(event, ChoiceFinished)] == ["stop"]


@pytest.mark.parametrize("name", list(CONTINUED))
def test_a_cut_in_white_space_is_healed(name: str) -> None:
    """Also where the provider refuses to be shown it."""
    call = asked(name, CONTINUED[name])
    cuts = [at for at in range(1, len(ANSWER)) if ANSWER[at - 1].isspace() or ANSWER[at].isspace()]
    assert [ANSWER[:at] + text_of(go_on(name, call, ANSWER[:at])) for at in cuts] == [ANSWER] * len(cuts)


@given(st.integers(1, len(ANSWER)), st.sampled_from(["auto", "on", "off"]), st.integers(1, 40))
def test_mistrals_echo_is_dropped_and_not_missed(at: int, echo: Literal["auto", "on", "off"], size: int) -> None:
    """It comes as a rule, and need not."""
    call = asked("mistral", CONTINUED["mistral"])
    events = go_on("mistral", call, ANSWER[:at], replace(SAID, echo=echo), size=size)
    assert ANSWER[:at] + text_of(events) == ANSWER


@settings(max_examples=200)
@given(st.sampled_from(list(CONTINUED)), st.integers(60, len(ANSWER)), st.integers(1, 40), st.booleans())
def test_an_echo_that_nobody_expects_is_dropped_too(
    name: str,
    at: int,
    size: int,
    stream: bool,  # noqa: FBT001, drawn by position
) -> None:
    """Where it is long enough to be none by accident."""
    call = asked(name, CONTINUED[name], stream=stream)
    events = go_on(name, call, ANSWER[:at], replace(SAID, echo="on"), size=size)
    assert ANSWER[:at] + text_of(events) == ANSWER


@pytest.mark.parametrize(("name", "model"), [*CONTINUED.items(), ("openai-compatible", "mill")])
@pytest.mark.parametrize("at", [1, 30, len(ANSWER)])
def test_a_client_sees_one_answer(name: str, model: str, at: int) -> None:
    """With one name and one role, and with nothing between its parts."""
    call = asked(name, model)
    provider = simulated.make_provider(name, continuation="exact")
    encoder = OpenAIChatEncoder(call)
    started = StreamStarted("first", "known", 3, target="other/model")
    continuation = Continuation(way="exact", started=started, text=ANSWER[:at])
    script = replace(SAID, prefill="accept")
    events = simulated.ask(provider, structs.replace(call, continuation=continuation), script, serial="another")
    rest: list[Event] = [event for event in events if not isinstance(event, StreamStarted)]
    shown = encoder.encode([started, TextDelta(ANSWER[:at])]) + encoder.encode(rest)
    chunks = [msgspec.json.decode(line[6:]) for line in shown.split(b"\n\n") if line]
    assert {(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks} == {("first", 3, "known")}
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == ANSWER
    assert [delta["role"] for delta in deltas if "role" in delta] == ["assistant"]
    for event in rest:
        assert event.frame is None or sum(other.frame is event.frame for other in rest) <= event.frame.event_count


@pytest.mark.parametrize(("name", "model"), CONTINUED.items())
def test_a_tool_call_behind_the_rest_is_told(name: str, model: str) -> None:
    """Behind its last word."""
    script = Script(lead=True, tools=1)
    call = structs.replace(asked(name, model), tools=CALL.tools)
    whole = simulated.ask(simulated.make_provider(name), call, script)
    lead = text_of(whole)
    events = go_on(name, call, lead[:20], script)
    assert lead[:20] + text_of(events) == lead
    kinds = [type(event) for event in events]
    assert kinds.index(ToolCallStarted) > max(at for at, kind in enumerate(kinds) if kind is TextDelta)
    assert said(events)[1:3] == said(whole)[1:3]


OWN = "One  two, né."


@pytest.mark.parametrize("name", sorted(CONTINUED.keys() - {"deepseek", "vllm"}))
@pytest.mark.parametrize("own", [OWN, "One"])
@pytest.mark.parametrize("at", [5, 20, 60])
def test_an_answer_that_the_client_began_itself_goes_on_too(name: str, own: str, at: int) -> None:
    """Whether its own words were repeated to it or not: one turn is shown, and no word of it twice."""
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": own}]
    if name == "mistral":
        messages[1]["prefix"] = True  # type: ignore[assignment]  # JSON
    body = msgspec.json.encode({"model": "chat", "stream": True, "messages": messages})
    call = read_request(body, asked(name, CONTINUED[name]))
    whole = text_of(simulated.ask(simulated.make_provider(name), call, SAID))
    assert whole == (ANSWER if name == "mistral" else ANSWER[len(own) :])
    assert whole[:at] + text_of(go_on(name, call, whole[:at])) == whole


@pytest.mark.parametrize("name", sorted({*CONTINUED, *OTHERS}))
def test_a_refusal_to_go_on_is_known_in_every_wire(name: str) -> None:
    """In the words of each: the rest may still be had in another way."""
    call = asked(name, (CONTINUED | OTHERS)[name], continuation=Continuation(way="exact", text=ANSWER[:50]))
    error = simulated.refusal(simulated.make_provider(name), call, replace(SAID, prefill="reject"))
    assert (error.refused, error.retryable) == ("continuation", False)


def test_a_token_that_is_no_good_is_a_refusal_to_go_on() -> None:
    """It was another's, or is too old."""
    checkpoint = Checkpoint(target="google/gemini-4-argon", token="stale", character_count=3)
    continuation = Continuation(way="exact", text=ANSWER[:50], checkpoint=checkpoint)
    call = asked("google", "gemini-4-argon", continuation=continuation)
    assert simulated.refusal(simulated.make_provider("google"), call, SAID).refused == "continuation"


@settings(max_examples=150)
@given(
    checkpoint_every=st.integers(1, 20),
    hop_after=st.none() | st.integers(1, 40),
    cuts=st.lists(st.floats(0.1, 1), max_size=6),
    size=st.sampled_from([1, 7, 100_000]),
    effort=st.sampled_from([None, "high"]),
)
def test_an_answer_goes_on_from_token_to_token(
    checkpoint_every: int, hop_after: int | None, cuts: list[float], size: int, effort: str | None
) -> None:
    """However often it is cut or ends a hop: no word is said twice or lost, and the request stays the client's own."""
    script = replace(SAID, checkpoint_every=checkpoint_every, hop_after=hop_after)
    provider = simulated.make_provider("google")
    first = asked("google", "gemini-4-argon", reasoning_effort=effort)
    transcript, call, is_whole = Transcript(), first, False
    own = msgspec.json.decode(provider.request(first).body)
    while not is_whole:
        request = provider.request(call)
        assert msgspec.json.decode(request.body) in (own, {**own, "continuationToken": mock.ANY})
        stream = simulated.play(request, script, str(len(cuts))).body
        if cuts:
            stream = stream[: int(len(stream) * cuts.pop())]
        decoder = provider.decoder(call)
        try:
            for at in range(0, len(stream), size):
                transcript.add(decoder.feed(stream[at : at + size]))
            transcript.add(decoder.finish())
            is_whole = True
        except StreamInterrupted as error:
            assert error.code in (ANSWER_CONTINUES, "stream_truncated")  # noqa: PT017, most examples have one
        assert ANSWER.startswith(transcript.choice().text)
        checkpoint, text = transcript.choice().checkpoint, transcript.choice().text
        if checkpoint is None:  # it broke off before the first token: another attempt from the start
            transcript = transcript if is_whole else Transcript()
            continue
        continuation = Continuation(way="exact", text=text, checkpoint=checkpoint, limit_tokens=first.max_output_tokens)
        call = structs.replace(first, continuation=continuation, max_output_tokens=7)
        assert is_whole or provider.continues(call)
    assert transcript.choice().text == ANSWER
