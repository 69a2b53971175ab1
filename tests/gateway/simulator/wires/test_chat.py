"""Requests like OpenAI's are read."""

from typing import Any

import pytest

from gateway.simulator.ask import Rejected, Tool, Turn
from gateway.simulator.wires.chat import read_stop, read_tool_choice, read_tools, read_turns


def test_turns_are_read_in_every_form() -> None:
    """Developer is system, parts are joined, calls are named, thinking is kept apart."""
    calls = [{"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}]
    thinking = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "so"}]
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {}}]},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "1", "content": {"type": "text", "text": "seen"}},
        {"role": "assistant", "content": thinking},
        {"role": "assistant", "content": "", "reasoning_content": "hm"},
    ]
    assert read_turns({"messages": messages}) == (
        Turn("system", "be brief"),
        Turn("user", "look"),
        Turn("assistant", "", calls=("look",)),
        Turn("tool", "seen"),
        Turn("assistant", "so", reasoning="hm"),
        Turn("assistant", "", reasoning="hm"),
    )


@pytest.mark.parametrize("messages", [None, [], "text", [{"role": "nobody"}], ["text"], [{}]])
def test_messages_that_cannot_be_read_are_rejected(messages: Any) -> None:
    """As a 400, not as a fault here."""
    with pytest.raises(Rejected):
        read_turns({"messages": messages})


def test_tools_and_choices_are_read() -> None:
    """Tools of other kinds are passed over."""
    tools = read_tools({"tools": [{"type": "function", "function": {"name": "a"}}, {"type": "custom"}, 7]})
    assert tools == (Tool("a", None),)
    assert read_tool_choice({"type": "function", "function": {"name": "a"}}, tools) == tools[0]
    assert [read_tool_choice(one, tools) for one in (None, "auto", "none", "any", "required")] == [
        "auto",
        "auto",
        "none",
        "required",
        "required",
    ]


def test_stop_is_one_or_many() -> None:
    """Empty ones do not count."""
    assert (read_stop(None), read_stop("a"), read_stop(["a", "", "b"])) == ((), ("a",), ("a", "b"))
