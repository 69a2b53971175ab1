"""What a client received: read off the wire byte by byte, or with OpenAI's own client.

Whatever is wrong with a stream in itself, however it ended, is found here: an ``AssertionError`` says what. What it
should have held is for the caller to say.
"""

import json
from dataclasses import dataclass, field
from typing import Any, Final

from openai import APIConnectionError, APIError, APIStatusError, AsyncOpenAI
from openai.types.chat import ChatCompletionChunk

from tests.raw_client import Answer, exchange, request

READ_TIMEOUT_S: Final = 30.0
SEAM: Final = ": millrace continued "


@dataclass(slots=True)
class Heard:
    """What a client made of an answer; ``error`` is what an error says, by a status or in the stream."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    text: str = ""
    reasoning: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    finish_reason: str | None = None
    usages: list[tuple[int, int]] = field(default_factory=list)
    is_done: bool = False
    error: dict[str, Any] | None = None
    seams: list[str] = field(default_factory=list)

    @property
    def tools(self) -> list[tuple[str, dict[str, Any]]]:
        """The tool calls; the test fails where the arguments are not JSON."""
        return [(name, json.loads(arguments)) for name, arguments in self.calls]


async def read_wire(url: str, body: dict[str, Any]) -> Heard:
    """Ask and read the answer's bytes; checks all that every stream must be."""
    answer = await exchange(url, request("/v1/chat/completions", body), timeout_s=READ_TIMEOUT_S)
    heard = Heard(answer.status, dict(answer.headers))
    if answer.status != 200:
        heard.error = answer.error
        assert answer.is_whole
        return heard
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["transfer-encoding"] == "chunked"
    assert answer.body.endswith(b"\n\n"), f"ends inside an event: {answer.body[-80:]!r}"
    _read_blocks(answer, heard)
    assert answer.is_whole == heard.is_done, f"body whole: {answer.is_whole}, [DONE]: {heard.is_done}"
    assert heard.is_done != (heard.error is not None), f"[DONE]: {heard.is_done}, error: {heard.error}"
    return heard


def _read_blocks(answer: Answer, heard: Heard) -> None:
    """Read the events in their order; each is one line, and nothing comes behind the end."""
    identities: set[tuple[Any, ...]] = set()
    for block in answer.body.decode().removesuffix("\n\n").split("\n\n"):
        assert not heard.is_done, f"behind the end: {block!r}"
        assert heard.error is None, f"behind the error: {block!r}"
        assert "\n" not in block
        if block.startswith(":"):
            assert block.startswith(SEAM), f"a comment that says something else: {block!r}"
            heard.seams.append(block)
            continue
        assert block.startswith("data: "), f"neither data nor comment: {block!r}"
        if block == "data: [DONE]":
            heard.is_done = True
            continue
        document = json.loads(block[6:])
        if "error" in document:
            assert document["error"].keys() == {"message", "type", "param", "code"}
            heard.error = document["error"]
            continue
        identities.add((document["id"], document["created"], document["model"], document["object"]))
        assert len(identities) == 1, f"more than one identity: {identities}"
        _read_chunk(document, heard)
    assert identities or heard.error


def _read_chunk(document: dict[str, Any], heard: Heard) -> None:
    usage = document.get("usage")
    if usage is not None:
        assert document["choices"] == [], "the usage comes in a chunk of its own"
        assert heard.finish_reason is not None, "the usage comes behind the finish"
        heard.usages.append((usage["prompt_tokens"], usage["completion_tokens"]))
        return
    assert not heard.usages, "a chunk behind the usage"
    (choice,) = document["choices"]
    delta = choice["delta"]
    said = delta.get("content"), delta.get("reasoning_content") or delta.get("reasoning"), delta.get("tool_calls")
    is_first = not heard.headers.get("role")
    assert bool(delta.get("role")) == is_first, f"a role that is missing, or comes again: {choice}"
    heard.headers["role"] = "spoken"
    assert not (heard.finish_reason and (any(said) or choice["finish_reason"])), f"behind the finish: {choice}"
    _add(heard, *said)
    heard.finish_reason = choice["finish_reason"] or heard.finish_reason


def _add(heard: Heard, text: str | None, reasoning: str | None, calls: list[dict[str, Any]] | None) -> None:
    assert not (reasoning and heard.text), "reasoning behind the text"
    heard.text += text or ""
    heard.reasoning += reasoning or ""
    for call in calls or []:
        function = call["function"]
        if call["index"] == len(heard.calls):
            heard.calls.append((function["name"], ""))
        name, arguments = heard.calls[call["index"]]
        heard.calls[call["index"]] = (name, arguments + function["arguments"])


async def read_sdk(client: AsyncOpenAI, body: dict[str, Any]) -> Heard:
    """Ask as a stream with OpenAI's client, and hear what it hands on and what it raises."""
    heard = Heard()
    chunks: list[ChatCompletionChunk] = []
    try:
        async for chunk in await client.chat.completions.create(**body):
            chunks.append(chunk)  # noqa: PERF401, what came before an error counts
        heard.is_done = True
    except APIStatusError as error:
        _note_status(error, heard)
    except APIConnectionError as error:
        heard.error = {"message": str(error)}
    except APIError as error:
        heard.error = {"message": error.message, "code": error.code, "type": error.type}
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) <= 1
    for chunk in chunks:
        if chunk.usage:
            heard.usages.append((chunk.usage.prompt_tokens, chunk.usage.completion_tokens))
        for choice in chunk.choices:
            extra = choice.delta.model_extra or {}
            calls = [call.model_dump() for call in choice.delta.tool_calls or []]
            for call in calls:
                call["function"]["arguments"] = call["function"]["arguments"] or ""
            _add(heard, choice.delta.content, extra.get("reasoning_content") or extra.get("reasoning"), calls)
            heard.finish_reason = choice.finish_reason or heard.finish_reason
    return heard


async def read_whole(client: AsyncOpenAI, body: dict[str, Any]) -> Heard:
    """Ask for the answer in one piece with OpenAI's client."""
    heard = Heard()
    asked = {key: value for key, value in body.items() if key not in ("stream", "stream_options")}
    try:
        raw = await client.chat.completions.with_raw_response.create(**asked)
    except APIStatusError as error:
        _note_status(error, heard)
        return heard
    heard.headers = dict(raw.headers)
    completion = raw.parse()
    (choice,) = completion.choices
    message, extra = choice.message, choice.message.model_extra or {}
    heard.text = message.content or ""
    heard.reasoning = extra.get("reasoning_content") or extra.get("reasoning") or ""
    functions = [call.function for call in message.tool_calls or [] if call.type == "function"]
    heard.calls = [(function.name, function.arguments) for function in functions]
    heard.finish_reason = choice.finish_reason
    if completion.usage:
        heard.usages.append((completion.usage.prompt_tokens, completion.usage.completion_tokens))
    heard.is_done = True
    return heard


def _note_status(error: APIStatusError, heard: Heard) -> None:
    heard.status, heard.headers = error.status_code, dict(error.response.headers)
    heard.error = {"message": error.message, "code": error.code, "type": error.type}
