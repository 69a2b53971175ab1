"""Reading requests that are made like OpenAI's chat completions, which Mistral's and Llama's are too."""

from collections.abc import Mapping
from typing import Any, Final, Literal

from gateway.simulator.ask import Rejected, Role, Tool, Turn, invalid
from gateway.simulator.wires.base import chosen_tool, listed, part_texts

_ROLES: Final[Mapping[str, Role]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}


def read_turns(body: Mapping[str, Any]) -> tuple[Turn, ...]:
    """Return the turns of `messages`; raises `Rejected` when there are none or one has no role."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise missing("messages")
    return tuple(_read_turn(message, place) for place, message in enumerate(messages))


def read_tools(body: Mapping[str, Any]) -> tuple[Tool, ...]:
    """Return the functions that may be called; tools of other kinds are passed over."""
    functions = [tool.get("function") for tool in listed(body.get("tools")) if isinstance(tool, dict)]
    return tuple(
        Tool(str(function.get("name")), function.get("parameters"))
        for function in functions
        if isinstance(function, dict)
    )


def read_tool_choice(choice: Any, tools: tuple[Tool, ...]) -> Literal["auto", "none", "required"] | Tool:
    """Return whether a tool must, may or must not be called, or the one that must be."""
    if isinstance(choice, dict):
        return chosen_tool(tools, (choice.get("function") or choice).get("name"))
    if choice == "none":
        return "none"
    return "required" if choice in ("required", "any") else "auto"


def read_stop(stop: Any) -> tuple[str, ...]:
    """Return the stop sequences, given as one or as a list."""
    return tuple(str(one) for one in listed(stop) if one)


def missing(param: str) -> Rejected:
    """Return the rejection of a request that lacks something."""
    return invalid(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")


def _read_turn(message: Any, place: int) -> Turn:
    role = _ROLES.get(str(message.get("role"))) if isinstance(message, dict) else None
    if role is None:
        raise invalid(f"Invalid value for 'messages[{place}].role'.", param=f"messages[{place}].role")
    calls = [call.get("function") or {} for call in listed(message.get("tool_calls"))]
    content = message.get("content")
    if isinstance(content, dict):  # the Llama API's own {"type": "text", "text": ...}
        content = [content]
    return Turn(
        role,
        part_texts(content),
        reasoning=str(message.get("reasoning_content") or message.get("reasoning") or _thinking(content)),
        calls=tuple(str(function.get("name")) for function in calls),
    )


def _thinking(content: Any) -> str:
    """Return the text of Mistral's thinking parts."""
    parts = [part for part in listed(content) if isinstance(part, dict) and part.get("type") == "thinking"]
    return "".join(part_texts(part.get("thinking")) for part in parts)
