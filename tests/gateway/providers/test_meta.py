from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gateway.core.call import Call, Target
from gateway.core.continuation import Continuation
from gateway.dialects.openai_request import read_request
from gateway.providers.base import ProviderOptions, UpstreamRequest
from gateway.providers.meta import Meta

HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}


def make_request(body: dict[str, Any]) -> UpstreamRequest:
    """Return the request that a client's body becomes."""
    call = Call(request_id="t", target=Target("meta", "muse"))
    call = read_request(msgspec.json.encode({"model": "chat", **HELLO, **body}), call)
    return Meta(ProviderOptions(name="meta", api_key="secret-key")).request(call)


def write(body: dict[str, Any]) -> dict[str, Any]:
    """Return what Meta is sent for a client's body."""
    written: dict[str, Any] = msgspec.json.decode(make_request(body).body)
    return written


def test_a_request_goes_to_metas_model_api_with_the_key() -> None:
    """In the header that OpenAI uses."""
    request = make_request({})
    assert request.url == "https://api.meta.ai/v1/chat/completions"
    assert request.headers["authorization"] == "Bearer secret-key"


def test_a_body_goes_out_as_it_came() -> None:
    """Sampling parameters and unknown fields are kept, and usage is asked for."""
    body = {**HELLO, "temperature": 0.5, "x_extra": 1, "stream": True}
    assert write(body) == {**body, "model": "muse", "stream_options": {"include_usage": True}}


@pytest.mark.parametrize(
    ("asked", "sent"), [("none", "minimal"), ("minimal", "minimal"), ("high", "high"), ("max", "max"), (None, None)]
)
def test_the_least_effort_is_minimal(asked: str | None, sent: str | None) -> None:
    """Its models always reason, and refuse ``none``."""
    assert write({"reasoning_effort": asked})["reasoning_effort"] == sent


def test_turns_and_limits_go_by_the_names_that_everybody_knows() -> None:
    """A developer is the system, reasoning is not sent back, a limit is ``max_tokens``."""
    messages = [{"role": "developer", "content": "S"}, {"role": "assistant", "content": "a", "reasoning_content": "hm"}]
    written = write({"messages": messages, "max_completion_tokens": 9})
    assert written["messages"] == [{"role": "system", "content": "S"}, {"role": "assistant", "content": "a"}]
    assert (written["max_tokens"], "max_completion_tokens" in written) == (9, False)


def test_a_partial_answer_is_not_gone_on_with() -> None:
    """Nothing says that it would be."""
    call = Call(request_id="t", target=Target("meta", "muse"), continuation=Continuation(way="exact", text="So"))
    assert not Meta(ProviderOptions(name="meta")).continues(call)
