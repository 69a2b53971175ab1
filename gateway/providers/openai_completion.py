"""What a chunk and a whole answer of OpenAI's Chat Completions have in common: one document, and how it is read.

A document that is as OpenAI would have sent it keeps its JSON untouched. One that would break a client of OpenAI's is
mended in its frame by ``openai_mend``, and only where it must be: an ``id``, ``created`` or ``model`` that changes on
the way, a missing role, index or list of choices, reasoning under another name, Mistral's list-valued content,
arguments as an object, a foreign finish reason.

An answer that goes on with one which the client knows already keeps that one's identity, whatever the documents say.

Only what is needed is decoded, into typed structs: 0.6 µs for a chunk of 250 bytes instead of 2.1 µs into dictionaries.
Of the order of documents, and of what came before this one, nothing is known here; ``openai_stream`` and
``openai_answer`` see to that.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from gateway.core.call import Call
from gateway.core.events import (
    ChoiceFinished,
    Event,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from gateway.providers.errors import error_from_json, error_in_answer, upstream_error
from gateway.providers.openai_mend import FINISH_REASONS, CallIndex, Identity, Mender, json_text, split_content

_FAILED = {"error": 500, "insufficient_system_resource": 503}
"""Finish reasons that say that the answer failed, and the status that each amounts to."""


class _Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class _Custom(msgspec.Struct, gc=False):
    name: str | None = None
    input: str | None = None


class _Tool(msgspec.Struct, gc=False):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None
    custom: _Custom | None = None


class Delta(msgspec.Struct, gc=False):
    """What a choice says: the ``delta`` of a chunk, the ``message`` of a whole answer."""

    role: str | None = None
    content: str | list[Any] | None = None
    reasoning_content: str | None = None
    reasoning: Any = None
    refusal: str | None = None
    tool_calls: list[_Tool] | None = None
    function_call: _Function | None = None


class Choice(msgspec.Struct, gc=False):
    """One choice of a chunk, or of a whole answer."""

    index: int | None = None
    delta: Delta | None = None
    message: Delta | None = None
    finish_reason: str | None = None


class _Groq(msgspec.Struct, gc=False):
    usage: Any = None
    error: Any = None


class Chunk(msgspec.Struct, gc=False):
    """A chunk, or a whole answer: all of either that is looked at."""

    id: str | None = None
    object: str | None = None
    created: int | float | None = None
    model: str | None = None
    choices: list[Choice] | None = None
    usage: Any = None
    error: Any = None
    x_groq: _Groq | None = None


class _Details(msgspec.Struct, gc=False):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None


class ReportedUsage(msgspec.Struct, gc=False):
    """What hosts call the tokens; each leaves out some of it."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    total_tokens: int | None = None
    prompt_cache_hit_tokens: int | None = None
    reasoning_tokens: int | None = None


_NO_DETAILS = _Details()
decode_chunk = msgspec.json.Decoder(Chunk).decode


def identity_of(chunk: Chunk, call: Call) -> Identity:
    """Return what the answer calls itself, or what it shall be called where it does not."""
    created_unix_s = int(chunk.created or call.created_unix_s)
    return chunk.id or f"chatcmpl-{call.request_id}", created_unix_s, chunk.model or call.target_model


def known_identity(call: Call) -> Identity | None:
    """Return what the client knows the answer by, as the dialect has shown it to it; ``None`` before it knows any."""
    known = call.continuation.started if call.continuation is not None else None
    if known is None:
        return None
    created_unix_s = int(known.created_unix_s or call.created_unix_s)
    return known.id or f"chatcmpl-{call.request_id}", created_unix_s, known.model or call.model


def raise_error(chunk: Chunk, data: bytes, secret: str | None) -> None:
    """Raise an error inside a 200: OpenAI's own, Groq's in ``x_groq``, OpenRouter's beside choices, Mistral's flat."""
    said = chunk.error or (chunk.x_groq.error if chunk.x_groq is not None else None)
    if chunk.object == "error":
        said = said or msgspec.json.decode(data)
    if said:
        raise error_in_answer(said, secret)
    for choice in chunk.choices or []:
        if choice.finish_reason in _FAILED:
            raise upstream_error(_FAILED[choice.finish_reason], error_from_json({}))


def numbered(choices: list[Choice], mender: Mender) -> Iterator[tuple[int, Choice]]:
    """Yield each choice and its index: its place, where it does not say."""
    for place, choice in enumerate(choices):
        if choice.index is None:
            choice.index = place
            mender.needs_choices = True
        yield choice.index, choice


def read_choice(choice: Choice, delta: Delta | None, calls: CallIndex, found: list[Event], mender: Mender) -> None:
    """Append what one choice of a chunk or of a whole answer says."""
    index = choice.index or 0
    if delta is not None:
        _read_words(delta, index, found, mender)
        for number, tool in enumerate(delta.tool_calls or []):
            if delta is choice.message and tool.index is None:
                tool.index = number  # the calls of a whole answer have no index, and need none
            _read_tool(tool, (index, number), calls, found, mender)
        if delta.function_call is not None:
            _read_legacy_call(delta.function_call, index, calls, found)
    native = choice.finish_reason
    if native:
        if native not in FINISH_REASONS or FINISH_REASONS[native] != native:
            mender.needs_choices = True
        found.append(ChoiceFinished(FINISH_REASONS.get(native, "stop"), native, index))


def _read_words(delta: Delta, index: int, found: list[Event], mender: Mender) -> None:
    content, reasoning = delta.content, delta.reasoning_content
    if isinstance(content, list):
        mender.needs_choices = True
        content, thinking = split_content(content)
        reasoning = reasoning or thinking
    if not reasoning and isinstance(delta.reasoning, str) and delta.reasoning:
        mender.needs_choices = True
        reasoning = delta.reasoning
    if reasoning:
        found.append(ReasoningDelta(reasoning, index))
    if content:
        found.append(TextDelta(content, index))
    if delta.refusal:
        found.append(RefusalDelta(delta.refusal, index))


def _read_tool(tool: _Tool, place: tuple[int, int], calls: CallIndex, found: list[Event], mender: Mender) -> None:
    index = place[0]
    custom = tool.custom
    name = (custom.name if custom else tool.function.name if tool.function else None) or ""
    arguments: str | dict[str, Any] = (
        custom.input if custom else tool.function.arguments if tool.function else ""
    ) or ""
    if isinstance(arguments, dict):
        mender.needs_choices = True
        arguments = json_text(arguments)
    wire_index = tool.index if tool.index is not None else f"place {place[1]}"
    call_index, begins = calls.place(index, wire_index, tool.id, name)
    call_id = tool.id or (calls.make_id(index, call_index) if begins else "")
    if tool.index != call_index or (begins and not tool.id):
        mender.tool_ids[place] = (call_index, call_id)
    if begins:
        found.append(ToolCallStarted(call_index, call_id, name, "custom" if custom else "function", index))
    if arguments:
        found.append(ToolCallDelta(call_index, arguments, index))


def _read_legacy_call(function: _Function, index: int, calls: CallIndex, found: list[Event]) -> None:
    call_index, begins = calls.place(index, "legacy", None, function.name or "")
    if begins:
        found.append(ToolCallStarted(call_index, "", function.name or "", "legacy", index))
    if isinstance(function.arguments, str) and function.arguments:
        found.append(ToolCallDelta(call_index, function.arguments, index))


def usage_of(chunk: Chunk) -> Usage | None:
    """Return the usage that stands in a chunk or in a whole answer, if there is one that can be read."""
    reported = chunk.usage or (chunk.x_groq.usage if chunk.x_groq is not None else None)
    if not reported:
        return None
    try:
        said = msgspec.convert(reported, ReportedUsage)
    except msgspec.ValidationError:
        return None  # an odd usage object must not cost the user the answer
    return counted(said)


def counted(said: ReportedUsage) -> Usage:
    """Return a usage in the core's terms."""
    prompt = said.prompt_tokens_details or _NO_DETAILS
    completion = said.completion_tokens_details or _NO_DETAILS
    reasoning = completion.reasoning_tokens or said.reasoning_tokens or 0
    input_tokens, output_tokens = said.prompt_tokens or 0, said.completion_tokens or 0
    if reasoning and said.total_tokens == input_tokens + output_tokens + reasoning:
        output_tokens += reasoning  # xAI leaves the reasoning out of the completion
    return Usage(
        input_tokens,
        output_tokens,
        prompt.cached_tokens or said.prompt_cache_hit_tokens or 0,
        prompt.cache_write_tokens or 0,
        reasoning,
    )
