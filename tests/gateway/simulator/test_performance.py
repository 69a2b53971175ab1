"""Keys, models and early faults are treated alike on every wire."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.simulator.ask import Incoming
from gateway.simulator.performance import Performance, perform
from gateway.simulator.plan import End, Send
from gateway.simulator.script import Script
from gateway.simulator.wires.base import HttpAnswer, Reply
from gateway.simulator.wires.routes import WIRES

BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 50}
CONTENTS: dict[str, Any] = {"contents": [{"parts": [{"text": "hello"}]}]}


def performed(
    name: str = "openai", script: Script | None = None, *, model: str = "mill", **fields: Any
) -> HttpAnswer | Performance:
    """Ask a wire."""
    headers = {"anthropic-version": "2023-06-01", **fields.pop("headers", {})}
    body = CONTENTS if name == "google" else {**BODY, **fields}
    incoming = Incoming("/v1", model, body, headers, fields.get("query", {}))
    return perform(WIRES[name], incoming, script or Script(), Reply("serial", 0, model))


@pytest.mark.parametrize("name", sorted(WIRES))
@pytest.mark.parametrize("header", ["authorization", "x-api-key", "x-goog-api-key", "api-key"])
def test_the_wrong_key_is_401_and_any_other_is_right(name: str, header: str) -> None:
    """In whatever header it comes."""
    wrong = "Bearer wrong-key" if header == "authorization" else "wrong-key"
    answer = performed(name, headers={header: wrong})
    assert isinstance(answer, HttpAnswer)
    assert answer.status == 401
    assert isinstance(performed(name, headers={header: "any"}), Performance)


@pytest.mark.parametrize("name", sorted(WIRES))
def test_an_unknown_model_is_the_providers_own_refusal(name: str) -> None:
    """404 for most; Mistral, DeepSeek and OpenRouter say 400."""
    answer = performed(name, model="no-such-model-7")
    assert isinstance(answer, HttpAnswer)
    assert answer.status == (400 if name in ("mistral", "deepseek", "openrouter") else 404)


@pytest.mark.parametrize("name", sorted(WIRES))
def test_an_answer_asked_for_whole_is_one_json_document(name: str) -> None:
    """It takes as long as its tokens, and has a length."""
    played = performed(name, Script(first_token_s=1, interval_s=0.1, token_count=11))
    assert isinstance(played, Performance)
    assert not played.is_stream
    send, end = played.steps
    assert isinstance(send, Send)
    assert isinstance(end, End)
    assert send.due_s == pytest.approx(2)
    assert send.token_count == 11
    assert played.content_length == len(send.payload)
    assert json.loads(send.payload)


def test_an_error_code_goes_with_the_status() -> None:
    """As with a quota that is used up."""
    answer = performed(script=Script(status=429, error_code="insufficient_quota"))
    assert isinstance(answer, HttpAnswer)
    error = json.loads(answer.body)["error"]
    assert (error["type"], error["code"]) == ("insufficient_quota", "insufficient_quota")
    assert error["message"].startswith("You exceeded your current quota")


def test_an_error_in_an_answer_asked_for_whole() -> None:
    """At once it is an error in a 200; later it is a 500."""
    first = performed(script=Script(error_first=True))
    assert isinstance(first, Performance)
    send = next(first.steps)
    assert isinstance(send, Send)
    assert "error" in json.loads(send.payload)
    later = performed(script=Script(error_after=3))
    assert isinstance(later, HttpAnswer)
    assert later.status == 500


def test_the_body_says_whether_to_split_it_and_how_it_ends() -> None:
    """A shaped body has no length."""
    played = performed(script=Script(split_bytes=3, close_delimited=True))
    assert isinstance(played, Performance)
    assert (played.split_bytes, played.is_close_delimited, played.content_length) == (3, True, None)


ODD = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 300) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "role", "name"]), inner),
    max_leaves=6,
)
NAMES = """
messages tools tool_choice response_format max_tokens n stop stream stream_options top_logprobs logprobs thinking system
contents generationConfig continuationToken toolConfig
"""
FIELDS = st.sampled_from(NAMES.split())


@pytest.mark.parametrize("name", sorted(WIRES))
@settings(max_examples=40)
@given(fields=st.dictionaries(FIELDS, ODD, max_size=4))
def test_any_json_is_an_answer_or_the_callers_fault(name: str, fields: dict[str, Any]) -> None:
    """A field of the wrong type is a 400 and never a fault here."""
    body = {**BODY, **CONTENTS, **fields}
    incoming = Incoming("/v1", "mill", body, {"anthropic-version": "2023-06-01"})
    answer = perform(WIRES[name], incoming, Script(), Reply("serial", 0, "mill"))
    if isinstance(answer, Performance):
        assert isinstance(list(answer.steps)[-1], End)
    else:
        assert 400 <= answer.status < 500
