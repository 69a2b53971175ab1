"""What the simulator answers: from a request and a script to reasoning, text and tool calls, in tokens.

The answer depends on the conversation alone - who said what - and not on the wire, the model or the wording of
schemas, so that three providers with three wires tell one coherent text. Tool results count as "a result came",
since every wire wraps them differently. Knows nothing of wires.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Final, Literal

from gateway.simulator.ask import Ask, Tool, Turn
from gateway.simulator.continuation import Continuation, Way, find_continuation, obeyed
from gateway.simulator.schema import sample
from gateway.simulator.script import Script
from gateway.simulator.text import digest, piece_for, reasoning_for, text_of_length, tokenize

Ending = Literal["stop", "length", "tool_calls", "stop_sequence", "refusal"]

REFUSAL: Final = "I'm sorry, but that is not something I can help with. Is there another part of it I could take on?"
LEAD: Final = "I will look that up before I answer, so that what I say rests on more than memory."
_LONGEST_RESULT: Final = 80


@dataclass(frozen=True, slots=True)
class ToolUse:
    """One tool call; the arguments are JSON in tokens, and not whole when the limit cut them."""

    name: str
    arguments: tuple[str, ...]
    is_whole: bool = True

    @property
    def json(self) -> str:
        """The arguments as one string."""
        return "".join(self.arguments)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One choice. `echo` is the partial answer that some providers repeat before they go on."""

    text: tuple[str, ...]
    reasoning: tuple[str, ...] = ()
    calls: tuple[ToolUse, ...] = ()
    ending: Ending = "stop"
    stop_sequence: str | None = None
    echo: str = ""
    chars_before: int = 0
    tokens_before: int = 0

    @property
    def token_count(self) -> int:
        """Every token that was generated, reasoning and arguments too."""
        return len(self.reasoning) + len(self.text) + sum(len(call.arguments) for call in self.calls)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Everything that will be said to one request."""

    identity: str
    answers: tuple[Answer, ...]
    prompt_tokens: int
    way: Way = ""

    @property
    def output_tokens(self) -> int:
        """The tokens of all choices."""
        return sum(answer.token_count for answer in self.answers)

    @property
    def reasoning_tokens(self) -> int:
        """How many of the output tokens are reasoning."""
        return sum(len(answer.reasoning) for answer in self.answers)


def stage(ask: Ask, script: Script) -> Scene:
    """Decide what is answered."""

    def full_text(turns: tuple[Turn, ...]) -> str:
        return _Draft.of(ask, script, turns, choice=0, is_continued=True).text

    found = find_continuation(ask, full_text)
    answers = tuple(_answer(ask, script, found, choice) for choice in range(ask.choice_count))
    return Scene(identity=identify(found.turns), answers=answers, prompt_tokens=_prompt_tokens(ask), way=found.way)


def identify(turns: Sequence[Turn]) -> str:
    """Return the hash of who said what; white space, tool results and how turns are split do not count."""
    said = [(turn.role, "" if turn.role == "tool" else "".join(turn.text.split())) for turn in turns]
    system = "".join(text for role, text in said if role == "system")
    rest = groupby((one for one in said if one[0] != "system"), key=lambda one: one[0])
    return digest(system, *(f"{role}:{''.join(text for _, text in group)}" for role, group in rest))


@dataclass(frozen=True, slots=True)
class _Draft:
    """The whole answer to a conversation, before limits and before anything was already said."""

    reasoning: str
    text: str
    calls: tuple[ToolUse, ...] = ()
    is_refusal: bool = False

    @classmethod
    def of(cls, ask: Ask, script: Script, turns: tuple[Turn, ...], *, choice: int, is_continued: bool) -> "_Draft":
        identity = identify(turns)
        seed = f"{identity}:{choice}" if choice else identity
        thinks = script.reasoning == "on" or (script.reasoning == "auto" and ask.wants_reasoning)
        reasoning = reasoning_for(seed) if thinks else ""
        if script.refusal:
            return cls(reasoning, REFUSAL, is_refusal=True)
        tools = _tools_to_call(ask, script, turns)
        if tools and (script.lead or not is_continued):
            return cls(reasoning, LEAD if script.lead else "", tuple(_use(one, seed) for one in tools))
        return cls(reasoning, _prose(ask, script, turns, seed))


def _answer(ask: Ask, script: Script, found: Continuation, choice: int) -> Answer:
    is_continued = bool(found.way) and not (found.way == "prefill" and not found.partial)
    draft = _Draft.of(ask, script, found.turns, choice=choice, is_continued=is_continued)
    rest, reasoning = draft.text[len(found.partial) :], draft.reasoning
    if found.way == "anchored":
        if script.obey == "ignore":
            rest = piece_for(identify(ask.turns))
        rest = obeyed(found, rest, script.obey)
    elif found.way and found.partial and not ask.rethinks:
        reasoning = ""
    elif found.way:
        reasoning = reasoning[len(found.partial_reasoning) :]
    answer = Answer(
        text=tuple(tokenize(rest)),
        reasoning=tuple(tokenize(reasoning)),
        calls=draft.calls,
        ending="refusal" if draft.is_refusal else "tool_calls" if draft.calls else "stop",
        echo=found.partial if found.way == "echo" else "",
        chars_before=len(found.partial),
        tokens_before=ask.checkpoint.token_count if ask.checkpoint else 0,
    )
    return _within_limit(_until_stop(answer, ask.stop), ask.max_tokens)


def _tools_to_call(ask: Ask, script: Script, turns: tuple[Turn, ...]) -> list[Tool]:
    if isinstance(ask.tool_choice, Tool):
        return [ask.tool_choice]
    if script.tools is not None:
        offered = ask.tools or (Tool("look_up", {"properties": {"query": {"type": "string"}}}),)
        return [offered[place % len(offered)] for place in range(script.tools)]
    last = next((turn for turn in reversed(turns) if turn.role != "system"), None)
    if ask.tool_choice == "none" or not ask.tools or last is None:
        return []
    if last.role == "tool" and ask.tool_choice != "required":
        return []
    return list(ask.tools[:2] if ask.is_parallel else ask.tools[:1])


def _use(tool: Tool, seed: str) -> ToolUse:
    parameters = tool.parameters if isinstance(tool.parameters, dict) else {}
    arguments = sample({"type": "object", **parameters}, seed + tool.name)
    return ToolUse(tool.name, tuple(tokenize(_json(arguments))))


def _prose(ask: Ask, script: Script, turns: tuple[Turn, ...], seed: str) -> str:
    if script.say is not None:
        return script.say
    if script.token_count is not None:
        return text_of_length(seed, script.token_count)
    if ask.answer_schema is not None:
        return _json(sample(ask.answer_schema, seed))
    return _about_results(turns) + piece_for(seed)


def _about_results(turns: tuple[Turn, ...]) -> str:
    results: list[str] = []
    for turn in reversed(turns):
        if turn.role != "tool":
            names = ", ".join(turn.calls) or "the tool"
            break
        results.insert(0, _unwrapped(turn.text))
    else:
        return ""
    if not results:
        return ""
    told = "; ".join(result[:_LONGEST_RESULT] for result in results)
    return f"I have the result of {names} ({told}), so here is the answer.\n\n"


def _unwrapped(result: str) -> str:
    """Return a tool's result as its author wrote it, whatever object a wire has put around it."""
    try:
        value = json.loads(result)
    except ValueError:
        return " ".join(result.split())
    while isinstance(value, dict) and len(value) == 1 and next(iter(value)) in ("result", "output", "content"):
        value = next(iter(value.values()))
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return " ".join(value.split())
    return _json(value)


def _until_stop(answer: Answer, stop: Sequence[str]) -> Answer:
    text = "".join(answer.text)
    found = [(text.index(one), one) for one in stop if one and one in text]
    if not found:
        return answer
    at, sequence = min(found)
    return replace(answer, text=tuple(tokenize(text[:at])), calls=(), ending="stop_sequence", stop_sequence=sequence)


def _within_limit(answer: Answer, max_tokens: int | None) -> Answer:
    if max_tokens is None or answer.tokens_before + answer.token_count <= max_tokens:
        return answer
    left = max(0, max_tokens - answer.tokens_before)
    reasoning = answer.reasoning[:left]
    left -= len(reasoning)
    text = answer.text[:left]
    left -= len(text)
    calls = []
    for call in answer.calls:
        if left > 0:
            calls.append(replace(call, arguments=call.arguments[:left], is_whole=left >= len(call.arguments)))
        left -= len(call.arguments)
    return replace(answer, reasoning=reasoning, text=text, calls=tuple(calls), ending="length")


def _prompt_tokens(ask: Ask) -> int:
    spoken = sum(len(turn.text) + len(turn.reasoning) for turn in ask.turns)
    tools = sum(len(tool.name) + len(_json(tool.parameters)) for tool in ask.tools)
    return 3 + 4 * len(ask.turns) + (spoken + tools) // 4


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
