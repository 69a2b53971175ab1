"""The Llama API's wire: start, progress, complete, metrics."""

import json
from typing import Any

from gateway.simulator.ask import Incoming
from gateway.simulator.performance import Performance, perform
from gateway.simulator.plan import Send
from gateway.simulator.script import Script
from gateway.simulator.wires.base import HttpAnswer, Reply
from gateway.simulator.wires.routes import WIRES

QUICK = Script(first_token_s=0, interval_s=0)
MESSAGES: list[Any] = [{"role": "user", "content": {"type": "text", "text": "What does a weir do?"}}]
TOOLS = [{"type": "function", "function": {"name": name, "parameters": {}}} for name in ("one", "two")]


def performed(*, script: Script = QUICK, **fields: Any) -> HttpAnswer | Performance:
    """Ask without a server."""
    body = {"messages": MESSAGES, "stream": True, **fields}
    return perform(WIRES["llama"], Incoming("/v1", "Llama-4", body), script, Reply("serial", 7, "Llama-4"))


def sent(**fields: Any) -> str:
    """Return a body."""
    played = performed(**fields)
    assert isinstance(played, Performance)
    return b"".join(step.payload for step in played.steps if isinstance(step, Send)).decode()


def events(**fields: Any) -> list[Any]:
    """Return the events of a stream."""
    return [json.loads(event.removeprefix("data: "))["event"] for event in sent(**fields).split("\n\n") if event]


def test_a_stream_starts_progresses_completes_and_counts() -> None:
    """In this order, with nothing after the metrics."""
    kinds = [event["event_type"] for event in events()]
    assert kinds == ["start", *["progress"] * (len(kinds) - 3), "complete", "metrics"]
    assert "[DONE]" not in sent()


def test_a_call_is_one_event() -> None:
    """Streamed and whole alike."""
    calls = [event["delta"] for event in events(tools=TOOLS) if event["delta"]["type"] == "tool_call"]
    assert [call["function"] for call in calls] == [{"name": name, "arguments": "{}"} for name in ("one", "two")]
    message = json.loads(sent(tools=TOOLS, stream=False))["completion_message"]
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["one", "two"]
    assert message["stop_reason"] == "tool_calls"


def test_an_error_is_a_problem_with_title_and_detail() -> None:
    """For a key, and for a request without a model."""
    answer = performed(script=Script(status=401))
    assert isinstance(answer, HttpAnswer)
    assert json.loads(answer.body) == {"title": "Unauthorized", "detail": "Invalid API key", "status": 401}
    nameless = perform(WIRES["llama"], Incoming("/v1", "", {}), QUICK, Reply("serial", 7, ""))
    assert isinstance(nameless, HttpAnswer)
    assert nameless.status == 400
