"""LangChain's ``ChatOpenAI`` against the gateway, over every provider's wire.

What it does not know of OpenAI's answers it drops, so that there is no reasoning here.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack
from functools import reduce
from operator import add
from typing import Final

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_openai import ChatOpenAI
from openai import APIError, DefaultAsyncHttpxClient, DefaultHttpxClient, InternalServerError
from pydantic import SecretStr

from gateway.simulator.scene import Scene
from tests.conftest import KINDS, MakeGateway, Running
from tests.sdk.truth import (
    FAULTS,
    HALF,
    HELD,
    PROMPT,
    SHORT,
    TOOL_PROMPT,
    TOOLS,
    WHOLE_CALLS,
    calls_of,
    faulty,
    is_json,
    once,
    quick,
    scene_of,
    text_of,
)

STREAMED: Final = ("stream", "astream", "gather")
"""Piece by piece, in a thread and in the loop, and invoked so that LangChain streams and adds up."""
WAYS: Final = (*STREAMED, "invoke")

every_kind: Final = pytest.mark.parametrize("kind", KINDS)
every_way: Final = pytest.mark.parametrize("way", WAYS)
streamed_ways: Final = pytest.mark.parametrize("way", STREAMED)

MakeChat = Callable[..., ChatOpenAI]


@pytest.fixture
async def make_chat(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MakeChat]:
    """Make chat models of a gateway; their connections are closed after the test, and nobody else hears of them."""
    monkeypatch.setenv("LANGSMITH_TRACING", "false")
    async with AsyncExitStack() as opened:
        http_client = opened.enter_context(DefaultHttpxClient(verify=False))  # it would read the certificates each time
        http_async_client = await opened.enter_async_context(DefaultAsyncHttpxClient(verify=False))

        def make(running: Running, way: str, model: str = "chat") -> ChatOpenAI:
            chat = ChatOpenAI(
                model=model,
                base_url=f"{running.url}/v1",
                api_key=SecretStr("any"),
                stream_usage=True,
                http_client=http_client,
                http_async_client=http_async_client,
            )
            if way == "gather":  # once it is set to false nothing is streamed any more
                chat.streaming = True
            return chat

        yield make


async def hear(
    chat: ChatOpenAI, way: str, pieces: list[AIMessageChunk] | None = None, *, with_tools: bool = False
) -> AIMessage:
    """Ask in one of the ways; ``pieces`` has what was handed out one by one, also when an error ended it."""
    pieces = [] if pieces is None else pieces
    asked = chat.bind_tools(TOOLS) if with_tools else chat
    prompt = TOOL_PROMPT if with_tools else PROMPT
    if way == "astream":
        async for piece in asked.astream(prompt):
            _take(piece, pieces)
    elif way == "stream":
        await asyncio.to_thread(_take_all, asked.stream(prompt), pieces)
    else:
        return await asyncio.to_thread(asked.invoke, prompt)
    return reduce(add, pieces)


def _take_all(stream: Iterable[AIMessage], pieces: list[AIMessageChunk]) -> None:
    for piece in stream:
        _take(piece, pieces)


def _take(piece: AIMessage, pieces: list[AIMessageChunk]) -> None:
    assert isinstance(piece, AIMessageChunk)
    pieces.append(piece)


def _check_counts(message: AIMessage, scene: Scene) -> None:
    assert message.usage_metadata is not None
    assert message.usage_metadata["input_tokens"] == scene.prompt_tokens
    assert message.usage_metadata["output_tokens"] == scene.output_tokens
    assert message.usage_metadata["total_tokens"] == scene.prompt_tokens + scene.output_tokens


def _is_over(pieces: Iterable[AIMessageChunk]) -> bool:
    """Whether LangChain has called a piece the last, or been given a reason for the end."""
    return any(piece.chunk_position == "last" or "finish_reason" in piece.response_metadata for piece in pieces)


# --- what is said


@every_kind
@every_way
async def test_text_finish_and_usage_are_the_providers(
    make_gateway: MakeGateway, make_chat: MakeChat, kind: str, way: str
) -> None:
    """Streamed in a thread or in the loop, gathered or whole: the message is the simulator's, with end and account."""
    message = await hear(make_chat(await make_gateway(kind, default=SHORT), way), way)
    scene = scene_of(("user", PROMPT))
    assert message.text == text_of(scene.answers[0])
    assert message.response_metadata["finish_reason"] == "stop"
    _check_counts(message, scene)


@every_kind
@every_way
async def test_parallel_tool_calls_are_parsed(
    make_gateway: MakeGateway, make_chat: MakeChat, kind: str, way: str
) -> None:
    """Two tools called at once are two calls whose arguments LangChain could read, each with an id of its own."""
    message = await hear(make_chat(await make_gateway(kind, default=SHORT), way), way, with_tools=True)
    scene = scene_of(("user", TOOL_PROMPT), has_tools=True)
    assert [(call["name"], call["args"]) for call in message.tool_calls] == calls_of(scene.answers[0])
    assert len({call["id"] for call in message.tool_calls}) == 2
    assert message.invalid_tool_calls == []
    assert message.response_metadata["finish_reason"] == "tool_calls"
    _check_counts(message, scene)


# --- what goes wrong


@every_kind
@streamed_ways
async def test_a_broken_stream_raises(make_gateway: MakeGateway, make_chat: MakeChat, kind: str, way: str) -> None:
    """However the provider breaks off there is an error and no message; the pieces are a true prefix without an end."""
    running = await make_gateway(config=faulty(kind), default=SHORT)
    whole = text_of(scene_of(("user", PROMPT)).answers[0])
    for fault in FAULTS:
        pieces: list[AIMessageChunk] = []
        with pytest.raises(APIError):
            await hear(make_chat(running, way, fault), way, pieces)
        said = "".join(piece.text for piece in pieces)
        assert bool(said) == (way != "gather")
        assert whole.startswith(said)
        assert said != whole
        assert not _is_over(pieces)


@every_kind
@streamed_ways
async def test_half_a_tool_call_is_never_in_a_message(
    make_gateway: MakeGateway, make_chat: MakeChat, kind: str, way: str
) -> None:
    """A stream that breaks inside a tool call raises; LangChain itself would make a whole call of the half."""
    running = await make_gateway(config=faulty(kind))
    for fault in FAULTS:
        pieces: list[AIMessageChunk] = []
        with pytest.raises(APIError):
            await hear(make_chat(running, way, f"{HALF}-{fault}"), way, pieces, with_tools=True)
        assert not _is_over(pieces)
        if way == "gather" or kind in WHOLE_CALLS:
            continue
        came = reduce(add, pieces)
        assert [is_json(call["args"] or "") for call in came.tool_call_chunks] == [True, False]
        assert len(came.tool_calls) == 2


@every_kind
async def test_a_tool_call_that_is_held_is_whole_or_not_there(
    make_gateway: MakeGateway, make_chat: MakeChat, kind: str
) -> None:
    """Where another attempt may be made and all break, it raises, and there is not a piece of a call."""
    running = await make_gateway(config=faulty(kind))
    pieces: list[AIMessageChunk] = []
    asked = [(make_chat(running, way, f"{HELD}-{fault}"), way) for fault in FAULTS for way in STREAMED]
    ends = await asyncio.gather(
        *(hear(chat, way, pieces, with_tools=True) for chat, way in asked), return_exceptions=True
    )
    assert all(isinstance(end, APIError) for end in ends), ends
    assert not any(piece.tool_call_chunks for piece in pieces)
    assert not _is_over(pieces)


@every_kind
@pytest.mark.parametrize("cut", ["fin", "rst", "clean"])
@pytest.mark.parametrize("with_tools", [False, True], ids=["text", "tools"])
async def test_half_a_whole_answer_is_a_server_error(
    make_gateway: MakeGateway, make_chat: MakeChat, kind: str, cut: str, *, with_tools: bool
) -> None:
    """An answer that was not streamed and broke off in the middle is no message but an error, asked for once."""
    running = await make_gateway(config=once(kind), default=quick(f"cut_after_bytes=200&cut={cut}"))
    with pytest.raises(InternalServerError):
        await hear(make_chat(running, "invoke"), "invoke", with_tools=with_tools)
    assert len(running.simulator.requests) == 1
