"""What the simulator says to a question, asked without any wire between: what every client must have received."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from gateway.simulator import Script
from gateway.simulator.ask import Ask, Tool, Turn
from gateway.simulator.scene import Answer, Scene, stage

PROMPT: Final = "What does a weir do, and why – in naïve words – does it matter? 🐟"
TOOL_PROMPT: Final = "What is the weather in Oslo, and what time is it there?"

WEATHER: Final[Mapping[str, Any]] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
CLOCK: Final[Mapping[str, Any]] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["utc", "local"]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}
SCHEMAS: Final = {"get_weather": WEATHER, "get_time": CLOCK}


def scene_of(
    messages: Sequence[tuple[str, str]],
    *,
    script: Script | None = None,
    has_tools: bool = False,
    **asked: Any,
) -> Scene:
    """Return all that the simulator says to a conversation of (role, text)."""
    turns = tuple(Turn("system" if role == "developer" else role, text) for role, text in messages)  # type: ignore[arg-type]  # the role is one of four
    tools = tuple(Tool(name, schema) for name, schema in SCHEMAS.items()) if has_tools else ()
    return stage(Ask(model="mill", turns=turns, tools=tools, **asked), script or Script())


def answer_to(prompt: str = PROMPT, *, script: Script | None = None, **asked: Any) -> Answer:
    """Return the first answer to one question."""
    return scene_of([("user", prompt)], script=script, **asked).answers[0]


def text_of(answer: Answer) -> str:
    """Return the answer's visible text."""
    return "".join(answer.text)
