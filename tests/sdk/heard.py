"""What OpenAI's Python client makes of an answer, however it asked."""

import json
from dataclasses import dataclass, field
from typing import Any

from openai import AsyncOpenAI
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessage

from tests.sdk.truth import PROMPT


@dataclass(slots=True)
class Heard:
    """An answer; ``chunks`` are what it came in, where they were asked for."""

    text: str = ""
    reasoning: str = ""
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    finish_reason: str | None = None
    usage: CompletionUsage | None = None
    chunks: list[ChatCompletionChunk] = field(default_factory=list, repr=False)


async def hear(client: AsyncOpenAI, way: str, prompt: str = PROMPT, **asked: Any) -> Heard:
    """Ask in one of the three ways: "create", "helper" or "whole"."""
    asked = {"model": "chat", "messages": [{"role": "user", "content": prompt}], **asked}
    if way == "whole":
        completion = await client.chat.completions.create(**asked)
        choice = completion.choices[0]
        return _heard(choice.message, choice.finish_reason, completion.usage)
    asked["stream_options"] = {"include_usage": True}
    if way == "helper":
        async with client.chat.completions.stream(**asked) as stream:
            final = await stream.get_final_completion()
        return _heard(final.choices[0].message, final.choices[0].finish_reason, final.usage)
    chunks: list[ChatCompletionChunk] = []
    await drain(client, chunks, **asked)
    return gathered(chunks)


async def drain(client: AsyncOpenAI, into: list[ChatCompletionChunk], **asked: Any) -> str:
    """Stream an answer, and keep what came of it before an error; returns the target that it began at."""
    stream = await client.chat.completions.create(**asked, stream=True)
    async for chunk in stream:
        into.append(chunk)  # noqa: PERF401, a comprehension would lose what came before the error
    target: str = stream.response.headers["x-millrace-target"]
    return target


def gathered(chunks: list[ChatCompletionChunk], index: int = 0) -> Heard:
    """Add up what came of a choice."""
    heard = Heard(usage=next((chunk.usage for chunk in chunks if chunk.usage), None), chunks=chunks)
    names: dict[int, str] = {}
    for choice in (choice for chunk in chunks for choice in chunk.choices if choice.index == index):
        delta, extra = choice.delta, choice.delta.model_extra or {}
        heard.text += delta.content or ""
        heard.reasoning += extra.get("reasoning_content") or extra.get("reasoning") or ""
        heard.finish_reason = choice.finish_reason or heard.finish_reason
        for call in delta.tool_calls or []:
            assert call.function is not None
            names[call.index] = names.get(call.index, "") + (call.function.name or "")
    told = [json.loads(one) for one in arguments_in(chunks, index)]
    heard.calls = [(names[place], one) for place, one in zip(sorted(names), told, strict=True)]
    return heard


def arguments_in(chunks: list[ChatCompletionChunk], index: int = 0) -> list[str]:
    """Return the arguments of each tool call of a choice, as far as they came."""
    pieces: dict[int, str] = {}
    for choice in (choice for chunk in chunks for choice in chunk.choices if choice.index == index):
        for call in choice.delta.tool_calls or []:
            assert call.function is not None
            pieces[call.index] = pieces.get(call.index, "") + (call.function.arguments or "")
    return [pieces[place] for place in sorted(pieces)]


def _heard(message: ChatCompletionMessage, finish_reason: str, usage: CompletionUsage | None) -> Heard:
    extra = message.model_extra or {}
    calls = [call.function for call in message.tool_calls or [] if call.type == "function"]
    return Heard(
        text=message.content or "",
        reasoning=extra.get("reasoning_content") or extra.get("reasoning") or "",
        calls=[(call.name, json.loads(call.arguments)) for call in calls],
        finish_reason=finish_reason,
        usage=usage,
    )
