from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec import structs

from gateway.core.call import Call, Target
from gateway.core.continuation import Continuation
from gateway.core.errors import StreamInterrupted, UpstreamBusy
from gateway.core.events import ReasoningDelta, StreamStarted, TextDelta
from gateway.dialects.openai_request import read_request
from gateway.providers.base import ProviderOptions
from gateway.providers.mistral import Mistral

HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}
MODEL = "mistral-small-latest"


def make_provider() -> Mistral:
    """Return a provider with a key."""
    return Mistral(ProviderOptions(name="mistral", api_key="secret-key"))


def make_call(body: dict[str, Any]) -> Call:
    """Return the call that a client's body becomes."""
    call = Call(request_id="t", target=Target("mistral", MODEL))
    return read_request(msgspec.json.encode({"model": "chat", **HELLO, **body}), call)


def write(body: dict[str, Any]) -> dict[str, Any]:
    """Return what Mistral is sent for a client's body."""
    written: dict[str, Any] = msgspec.json.decode(make_provider().request(make_call(body)).body)
    return written


def test_a_request_goes_to_mistral_with_the_key() -> None:
    """In the header that OpenAI uses."""
    request = make_provider().request(make_call({}))
    assert request.url == "https://api.mistral.ai/v1/chat/completions"
    assert request.headers["authorization"] == "Bearer secret-key"


def test_what_mistral_documents_goes_out_as_it_came() -> None:
    """Its own parameters too."""
    body = {
        **HELLO,
        "temperature": 0.5,
        "top_k": 4,
        "stop": ["a"],
        "safe_prompt": True,
        "prompt_mode": "reasoning",
        "response_format": {"type": "json_object"},
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        "tool_choice": "any",
        "random_seed": 3,
    }
    assert write(body) == {**body, "model": MODEL}


@pytest.mark.parametrize(
    "body",
    [
        {"logit_bias": {"1": 1}},
        {"user": "u"},
        {"store": True},
        {"service_tier": "auto"},
        {"x_extra": 1},
        {"stream_options": {"include_usage": True}},
        {"logprobs": False},
        {"logprobs": None, "top_logprobs": 0},
    ],
)
def test_what_mistral_would_refuse_is_left_out(body: dict[str, Any]) -> None:
    """It answers an unknown field with a 422."""
    assert write(body) == {**HELLO, "model": MODEL}


def test_a_stream_is_asked_for_without_options() -> None:
    """Usage comes unasked."""
    assert write({"stream": True, "stream_options": {"include_usage": True}}) == {
        **HELLO,
        "model": MODEL,
        "stream": True,
    }


def test_seed_and_limit_go_by_mistrals_names() -> None:
    """``random_seed`` and ``max_tokens``."""
    written = write({"seed": 3, "max_completion_tokens": 9})
    assert written == {**HELLO, "model": MODEL, "random_seed": 3, "max_tokens": 9}


def test_logprobs_that_are_asked_for_stay() -> None:
    """With how many of them."""
    assert write({"logprobs": True, "top_logprobs": 2})["top_logprobs"] == 2


def test_turns_are_sent_with_what_mistral_knows_of_them() -> None:
    """Reasoning is not taken back, ``prefix`` is kept, a developer is the system."""
    messages = [
        {"role": "developer", "content": "S"},
        {"role": "user", "content": "Hi", "x_turn": 1},
        {"role": "assistant", "content": "a", "reasoning_content": "hm", "refusal": None, "audio": None},
        {"role": "tool", "content": "1", "tool_call_id": "a", "name": "f"},
        {"role": "assistant", "content": "So", "prefix": True},
    ]
    assert write({"messages": messages})["messages"] == [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "a"},
        {"role": "tool", "content": "1", "tool_call_id": "a", "name": "f"},
        {"role": "assistant", "content": "So", "prefix": True},
    ]


def test_its_thinking_becomes_reasoning() -> None:
    """It comes as a list-valued content."""
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "a"}]
    document = {"id": "a", "choices": [{"index": 0, "delta": {"role": "assistant", "content": parts}}]}
    events = make_provider().decoder(make_call({"stream": True})).feed(b"data: %b\n\n" % msgspec.json.encode(document))
    assert [type(event) for event in events] == [StreamStarted, ReasoningDelta, TextDelta]


def test_its_flat_errors_are_read() -> None:
    """They have no ``error`` around them."""
    error = make_provider().error(422, {}, b'{"object":"error","message":"Extra inputs","type":"invalid","code":3051}')
    assert (error.message, error.code, error.status_code) == ("Extra inputs", "invalid", 422)


def test_its_flat_error_inside_a_stream_is_no_chunk() -> None:
    """The good events before it are delivered, and the error says what Mistral said."""
    flat = {"object": "error", "message": "Slow down, secret-key", "type": "rate_limited", "code": 429}
    chunk = {"id": "a", "choices": [{"index": 0, "delta": {"role": "assistant", "content": "b"}}]}
    decoder = make_provider().decoder(make_call({"stream": True}))
    events = decoder.feed(b"".join(b"data: %b\n\n" % msgspec.json.encode(document) for document in (chunk, flat)))
    assert [type(event) for event in events] == [StreamStarted, TextDelta]
    with pytest.raises(StreamInterrupted) as raised:
        decoder.finish()
    error = raised.value
    assert (error.message, error.upstream_status, error.error_type) == ("Slow down, [redacted]", 429, "rate_limited")


def test_its_flat_error_in_place_of_an_answer_is_raised() -> None:
    """A 200 does not make it an answer."""
    flat = {"object": "error", "message": "Busy", "type": "unavailable", "code": 503}
    with pytest.raises(UpstreamBusy, match=r"^Busy$"):
        make_provider().answer(make_call({}), msgspec.json.encode(flat))


@pytest.mark.parametrize("own", [None, {"role": "assistant", "content": "So ", "prefix": True}])
def test_partial_answer_is_a_prefix(own: dict[str, Any] | None) -> None:
    """One turn with what the client began itself, and with nothing that Mistral does not know."""
    messages = [*HELLO["messages"], *([own] if own else [])]
    call = structs.replace(make_call({"messages": messages}), continuation=Continuation(way="exact", text="be it "))
    assert make_provider().continues(call)
    body = msgspec.json.decode(make_provider().request(call).body)
    assert body["messages"] == [
        *HELLO["messages"],
        {"role": "assistant", "content": "So be it " if own else "be it ", "prefix": True},
    ]


def test_prefix_that_it_repeats_is_not_told_again() -> None:
    """However short it is."""
    call = structs.replace(make_call({"stream": True}), continuation=Continuation(way="exact", text="So"))
    choices = [{"index": 0, "delta": {"role": "assistant", "content": words}} for words in ("So", " be it")]
    stream = b"".join(b"data: %b\n\n" % msgspec.json.encode({"id": "a", "choices": [choice]}) for choice in choices)
    events = make_provider().decoder(call).feed(stream)
    assert [event.text for event in events if isinstance(event, TextDelta)] == [" be it"]
