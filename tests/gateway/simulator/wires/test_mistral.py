"""Mistral's wire: content as a list, whole calls, usage with the finish, three shapes of error."""

import json
from typing import Any

import pytest

from gateway.simulator.ask import Incoming
from gateway.simulator.performance import Performance, perform
from gateway.simulator.plan import Send
from gateway.simulator.script import Script
from gateway.simulator.wires.base import HttpAnswer, Reply
from gateway.simulator.wires.routes import WIRES

QUICK = Script(first_token_s=0, interval_s=0)
MESSAGES: list[Any] = [{"role": "user", "content": "What does a weir do?"}]


def performed(*, model: str = "mistral-small", script: Script = QUICK, **fields: Any) -> HttpAnswer | Performance:
    """Ask without a server."""
    body = {"messages": MESSAGES, "stream": True, **fields}
    return perform(WIRES["mistral"], Incoming("/v1", model, body), script, Reply("serial", 7, model))


def sent(**fields: Any) -> str:
    """Return a body."""
    played = performed(**fields)
    assert isinstance(played, Performance)
    return b"".join(step.payload for step in played.steps if isinstance(step, Send)).decode()


def chunks(**fields: Any) -> list[Any]:
    """Return the chunks of a stream."""
    return [json.loads(event.removeprefix("data: ")) for event in sent(**fields).split("\n\n") if event[6:7] == "{"]


def test_the_last_chunk_has_the_finish_and_the_usage() -> None:
    """And no other has either."""
    *before, last = chunks()
    assert last["choices"][0]["finish_reason"] == "stop"
    assert last["usage"]["completion_tokens"] > 0
    assert not any("usage" in chunk or chunk["choices"][0]["finish_reason"] for chunk in before)


def test_thinking_is_a_list_and_text_a_string() -> None:
    """First the one, then the other."""
    contents = [chunk["choices"][0]["delta"]["content"] for chunk in chunks(model="magistral-medium")]
    lists = [content for content in contents if isinstance(content, list)]
    assert lists[0][0]["type"] == "thinking"
    assert all(isinstance(content, list) for content in contents[1 : len(lists) + 1])
    whole = json.loads(sent(model="magistral-medium", stream=False))
    assert whole["choices"][0]["message"]["content"][0]["closed"] is True


def test_calls_come_whole_in_one_chunk() -> None:
    """With ids of nine characters."""
    functions = [{"type": "function", "function": {"name": name, "parameters": {}}} for name in ("one", "two")]
    last = chunks(tools=functions)[-1]["choices"][0]
    assert last["finish_reason"] == "tool_calls"
    assert [call["function"]["name"] for call in last["delta"]["tool_calls"]] == ["one", "two"]
    assert {len(call["id"]) for call in last["delta"]["tool_calls"]} == {9}


def test_the_prefix_is_the_first_thing_said() -> None:
    """In one chunk of its own, streamed; at the beginning, whole."""
    messages = [*MESSAGES, {"role": "assistant", "content": "A weir", "prefix": True}]
    assert chunks(messages=messages)[1]["choices"][0]["delta"] == {"content": "A weir"}
    whole = json.loads(sent(messages=messages, stream=False))
    assert whole["choices"][0]["message"]["content"].startswith("A weir")


@pytest.mark.parametrize(
    ("fields", "status", "body"),
    [
        ({"script": Script(status=401)}, 401, {"detail": "Invalid API Key"}),
        (
            {"seed": 1},
            422,
            {"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"},
        ),
        ({"messages": []}, 422, {"type": "missing", "loc": ["body", "messages"], "msg": "Field required"}),
    ],
)
def test_errors_have_the_shape_of_their_status(fields: dict[str, Any], status: int, body: dict[str, Any]) -> None:
    """Text, a list, or an object."""
    answer = performed(**fields)
    assert isinstance(answer, HttpAnswer)
    assert answer.status == status
    assert json.loads(answer.body) in (body, {"detail": [body]})


def test_an_unknown_model_is_a_400_with_a_code() -> None:
    """As is a last turn without `prefix`."""
    answer = performed(model="no-such-model")
    assert isinstance(answer, HttpAnswer)
    error = json.loads(answer.body)
    assert (answer.status, error["object"], error["type"]) == (400, "error", "invalid_model")
    assert error["message"] == "Invalid model: no-such-model"
    answer = performed(messages=[*MESSAGES, {"role": "assistant", "content": "A"}])
    assert isinstance(answer, HttpAnswer)
    assert json.loads(answer.body)["type"] == "invalid_request_message_order"
