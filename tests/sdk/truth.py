"""What the simulator says to a question, asked without any wire between: what every client must have received."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, cast

from gateway.simulator import Script, parse_script
from gateway.simulator.ask import Ask, Role, Tool, Turn
from gateway.simulator.scene import Answer, Scene, stage
from tests.conftest import QUICK, model_of, over

PROMPT: Final = "What does a weir do, and why – in naïve words – does it matter? 🐟"
TOOL_PROMPT: Final = "What is the weather in Oslo, and what time is it there?"

SCHEMAS: Final[Mapping[str, Mapping[str, Any]]] = {
    "get_weather": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city", "days"],
        "additionalProperties": False,
    },
    "get_time": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "zone": {"type": "string", "enum": ["utc", "local"]}},
        "required": ["city", "zone"],
        "additionalProperties": False,
    },
}
TOOLS: Final = [
    {"type": "function", "function": {"name": name, "parameters": schema, "strict": True}}
    for name, schema in SCHEMAS.items()
]
"""The same, as OpenAI's clients are told of them."""
RESULTS: Final = {"get_weather": '{"sky":"clear"}', "get_time": '{"hour":9}'}

SHORT: Final = replace(QUICK, token_count=60)
"""Long enough to be a stream, short enough to be asked for a thousand times."""

THINKS_IN_SECRET: Final = ("openai", "azure")
"""Their Chat Completions count reasoning and do not show it."""
NEVER_THINKS: Final = ("llama",)
ONE_CHOICE: Final = ("anthropic", "llama")
"""Their wires have no ``n``."""
STOPLESS: Final = ("llama",)
"""Their wires have no ``stop``."""
WHOLE_CALLS: Final = ("google", "mistral", "llama", "groq", "ollama")
"""Their wires send each tool call in one piece."""

FAULTS: Final[Mapping[str, str]] = {
    "fin": "cut_after_tokens=30&cut=fin",
    "rst": "cut_after_tokens=30&cut=rst",
    "clean": "cut_after_tokens=30&cut=clean",
    "error": "error_after=30",
}
"""How an answer can break after thirty tokens, by the name of the model that does it in ``faulty``."""
HALF: Final = "half"
"""Before the name of a fault: it comes inside the arguments of a tool call, which are passed on as they come."""
HELD: Final = "held"
"""The same where they are held until they are whole, since another attempt may be made. It breaks as well."""


def faulty(kind: str) -> dict[str, Any]:
    """Return a configuration with a model for each way to break; none of them can be recovered."""
    broken = {name: _ends(kind, script) for name, script in FAULTS.items()}
    calls = {name: with_half_a_call(name) for name in FAULTS}
    half = {f"{HALF}-{name}": _ends(kind, script) for name, script in calls.items()}
    held = {f"{HELD}-{name}": {"targets": [f"{model_of(kind)}?{script}"]} for name, script in calls.items()}
    configured = over(kind)
    return {**configured, "models": {**configured["models"], **broken, **half, **held}}


def once(kind: str) -> dict[str, Any]:
    """Return a configuration that asks one target once."""
    configured = over(kind)
    chat = {**configured["models"]["chat"], "on_interrupt": "error"}
    return {**configured, "models": {"chat": chat}, "middleware": [{"use": "middleware.fallback.Fallback"}]}


def _ends(kind: str, script: str) -> dict[str, Any]:
    return {"targets": [f"{model_of(kind)}?{script}"], "on_interrupt": "error"}


def with_half_a_call(fault: str) -> str:
    """Return the script for a fault inside the last tool call, which is not sent at all where calls come whole."""
    if fault != "error":
        return f"half_tool&cut={fault}"
    *before, last = scene_of(("user", TOOL_PROMPT), has_tools=True).answers[0].calls
    return f"error_after={sum(len(call.arguments) for call in before) + len(last.arguments) // 2}"


def scene_of(*messages: tuple[str, str], script: Script = SHORT, has_tools: bool = False, **asked: Any) -> Scene:
    """Return all that the simulator says to a conversation, given as roles and texts."""
    turns = [Turn(cast("Role", "system" if role == "developer" else role), text) for role, text in messages]
    return _staged(turns, script, has_tools=has_tools, **asked)


def _staged(turns: Sequence[Turn], script: Script, *, has_tools: bool, **asked: Any) -> Scene:
    tools = tuple(Tool(name, schema) for name, schema in SCHEMAS.items()) if has_tools else ()
    return stage(Ask(model="mill", turns=tuple(turns), tools=tools, **asked), script)


def answer_after_tools() -> Answer:
    """Return the answer to the question for both tools once their results have come."""
    calls = tuple(SCHEMAS)
    turns = [Turn("user", TOOL_PROMPT), Turn("assistant", "", calls=calls)]
    results = [Turn("tool", result) for result in RESULTS.values()]
    return _staged([*turns, *results], QUICK, has_tools=True).answers[0]


def text_of(answer: Answer) -> str:
    """Return the answer's visible text."""
    return "".join(answer.text)


def reasoning_of(answer: Answer) -> str:
    """Return what the answer was thought over with."""
    return "".join(answer.reasoning)


def calls_of(answer: Answer) -> list[tuple[str, dict[str, Any]]]:
    """Return the answer's tool calls, each as a name and its arguments."""
    return [(call.name, json.loads(call.json)) for call in answer.calls]


def quick(script: str) -> Script:
    """Return a script in which whatever is left open is quick."""
    return parse_script(script, QUICK)


def is_json(text: str) -> bool:
    """Return whether a text is JSON, and whole."""
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
