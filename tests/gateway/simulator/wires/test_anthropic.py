"""Anthropic's wire: its own SDK reads it, and what the API refuses is refused."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.simulator import Script, Simulator
from gateway.simulator.ask import Incoming
from gateway.simulator.performance import Performance, perform
from gateway.simulator.plan import Send
from gateway.simulator.wires.base import HttpAnswer, Reply
from gateway.simulator.wires.routes import WIRES

QUICK = Script(first_token_s=0, interval_s=0)
MESSAGES: list[Any] = [{"role": "user", "content": "What does a weir do?"}]
TOOLS: list[Any] = [{"name": name, "input_schema": {"type": "object", "properties": {}}} for name in ("one", "two")]
MODEL = "claude-haiku-4-5"


@pytest.fixture
def anthropic() -> Any:
    """Anthropic's SDK, where it is installed."""
    return pytest.importorskip("anthropic", reason="Anthropic's SDK is not installed")


@pytest.fixture
async def client(anthropic: Any) -> AsyncIterator[Any]:
    """Anthropic's own client, and a simulator that takes no time."""
    async with Simulator(default=QUICK) as simulator:
        url = simulator.base_url("anthropic")
        async with anthropic.AsyncAnthropic(base_url=url, api_key="any", max_retries=0) as made:
            yield made


def performed(
    *, model: str = MODEL, version: str = "2023-06-01", script: Script = QUICK, **fields: Any
) -> HttpAnswer | Performance:
    """Ask without a server."""
    body = {"max_tokens": 2000, "messages": MESSAGES, **fields}
    incoming = Incoming("/v1/messages", model, body, {"anthropic-version": version} if version else {})
    return perform(WIRES["anthropic"], incoming, script, Reply("serial", 7, model))


def body_of(played: HttpAnswer | Performance) -> Any:
    """Return an answer's JSON."""
    if isinstance(played, HttpAnswer):
        return json.loads(played.body)
    return json.loads(b"".join(step.payload for step in played.steps if isinstance(step, Send)))


async def test_the_sdk_accumulates_a_stream(client: Any) -> None:
    """The final message is the one that is not streamed."""
    async with client.messages.stream(model=MODEL, max_tokens=2000, messages=MESSAGES) as stream:
        streamed = await stream.get_final_message()
    whole = await client.messages.create(model=MODEL, max_tokens=2000, messages=MESSAGES)
    assert [block.text for block in streamed.content] == [block.text for block in whole.content]
    assert streamed.stop_reason == whole.stop_reason == "end_turn"
    assert streamed.usage.output_tokens == whole.usage.output_tokens


async def test_the_sdk_accumulates_thinking_and_tools(client: Any) -> None:
    """A signed thinking block, then two tool uses."""
    async with client.messages.stream(
        model="claude-opus-4-6", max_tokens=2000, messages=MESSAGES, tools=TOOLS, thinking={"type": "adaptive"}
    ) as stream:
        message = await stream.get_final_message()
    assert [block.type for block in message.content] == ["thinking", "tool_use", "tool_use"]
    thinking = message.content[0]
    assert thinking.type == "thinking"
    assert thinking.signature
    assert message.stop_reason == "tool_use"


async def test_the_sdk_raises_what_the_script_says(anthropic: Any, client: Any) -> None:
    """HTTP errors by status; an error event in a stream."""
    for model, expected in (
        ("no-such-model", anthropic.NotFoundError),
        ("mill?status=429", anthropic.RateLimitError),
        ("mill?status=529", anthropic.InternalServerError),
        ("mill?error_after=3", anthropic.APIStatusError),
    ):
        with pytest.raises(expected):
            async with client.messages.stream(model=model, max_tokens=2000, messages=MESSAGES) as stream:
                await stream.get_final_message()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"version": ""}, "anthropic-version: header is required"),
        ({"model": ""}, "model: Field required"),
        ({"max_tokens": None}, "max_tokens: Field required"),
        ({"messages": []}, "messages: Field required"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages.0.role: Input should be 'user' or 'assistant'"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages.0: all messages must have non-empty content"),
        ({"version": "2026-10-21", "temperature": 1}, "temperature: Extra inputs are not permitted"),
        ({"model": "claude-opus-4-7", "top_p": 1}, "`top_p` is not supported for this model."),
        ({"messages": [*MESSAGES, {"role": "assistant", "content": "A "}]}, "cannot end with trailing whitespace"),
        (
            {
                "messages": [*MESSAGES, {"role": "assistant", "content": "A"}],
                "thinking": {"type": "enabled", "budget_tokens": 1024},
            },
            "messages.1.content.0.type: Expected `thinking`",
        ),
    ],
)
def test_what_the_api_refuses_is_a_400(fields: dict[str, Any], message: str) -> None:
    """In its words."""
    answer = performed(**fields)
    assert isinstance(answer, HttpAnswer)
    assert answer.status == 400
    body = body_of(answer)
    assert body["error"]["type"] == "invalid_request_error"
    assert message in body["error"]["message"]
    assert answer.headers["x-should-retry"] == "false"
    assert body["request_id"] == answer.headers["request-id"]


def test_sampling_is_fine_where_it_is_fine() -> None:
    """Under the old version, and on models that take it."""
    assert isinstance(performed(temperature=0.5), Performance)


def test_a_spend_limit_is_no_reason_to_come_back() -> None:
    """A code says so where the status alone would not."""
    answer = performed(script=Script(status=429, error_code="enforced_spend_limit_reached", retry_after_s=9))
    assert isinstance(answer, HttpAnswer)
    assert body_of(answer)["error"]["details"] == {"error_code": "enforced_spend_limit_reached"}
    assert (answer.headers["retry-after"], answer.headers["x-should-retry"]) == ("9", "false")
    busy = performed(script=Script(status=529))
    assert isinstance(busy, HttpAnswer)
    assert (body_of(busy)["error"]["type"], busy.headers["x-should-retry"]) == ("overloaded_error", "true")


def test_tool_results_and_texts_are_told_apart() -> None:
    """A turn of results is answered with text; one forced tool is called alone."""
    use = {"type": "tool_use", "id": "1", "name": "one", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "seen"}]}
    turns = [*MESSAGES, {"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
    text = body_of(performed(messages=turns, tools=TOOLS))["content"][0]["text"]
    assert text.startswith("I have the result of one (seen)")
    forced = body_of(performed(tools=TOOLS, tool_choice={"type": "tool", "name": "two"}))
    assert [block["name"] for block in forced["content"]] == ["two"]
    alone = body_of(performed(tools=TOOLS, tool_choice={"type": "auto", "disable_parallel_tool_use": True}))
    assert len(alone["content"]) == 1
    assert body_of(performed(tools=TOOLS, tool_choice={"type": "none"}))["stop_reason"] == "end_turn"


def test_stop_sequences_schemas_and_refusals_have_their_own_ends() -> None:
    """Each with what the API says beside it."""
    text = body_of(performed())["content"][0]["text"]
    stopped = body_of(performed(stop_sequences=[text[30:40]]))
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", text[30:40])
    schema = {"type": "object", "properties": {"depth": {"type": "integer"}}}
    format_ = {"type": "json_schema", "schema": schema}
    document = body_of(performed(output_config={"format": format_}))["content"][0]["text"]
    assert isinstance(json.loads(document)["depth"], int)
    refused = body_of(performed(script=Script(refusal=True)))
    assert (refused["stop_reason"], refused["stop_details"]["type"]) == ("refusal", "refusal")
