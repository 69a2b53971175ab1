"""OpenAI's own client, unmodified, while the providers behind the gateway break off one after the other.

What it hears must be one answer: the text that an unbroken stream would have had, under one identity, with one end and
one account.
"""

from dataclasses import replace
from typing import Any, Final

import pytest
from openai import APIError
from openai.types.chat import ChatCompletionChunk

from gateway.simulator.scene import Scene
from tests.conftest import QUICK, MakeGateway, model_of, over
from tests.sdk.conftest import MakeClient
from tests.sdk.heard import Heard, drain, hear
from tests.sdk.truth import FAULTS, PROMPT, TOOL_PROMPT, TOOLS, calls_of, scene_of, text_of, with_half_a_call

LONG: Final = replace(QUICK, token_count=200)
SAID: Final = (
    ("system", "You are a miller, and answer with care."),
    ("user", "Good morning."),
    ("assistant", "Good morning to you."),
    ("user", PROMPT),
)
MESSAGES: Final[Any] = [{"role": role, "content": text} for role, text in SAID]
UNCUT: Final = scene_of(*SAID, script=LONG)
TEXT: Final = text_of(UNCUT.answers[0])
A_FEW: Final = 8
"""So many tokens a prompt may seem longer or shorter, since other attempts' had more in them."""

CHAINS: Final = (
    ("openai", "anthropic", "mistral"),
    ("google", "vllm", "openai"),
    ("mistral", "llama", "google", "anthropic"),
)

every_chain: Final = pytest.mark.parametrize("chain", CHAINS, ids="-".join)
every_fault: Final = pytest.mark.parametrize("fault", FAULTS)
every_way: Final = pytest.mark.parametrize("way", ["create", "helper", "whole"])


@every_chain
@every_fault
@every_way
async def test_an_answer_that_goes_on_at_other_providers_is_one_answer(
    make_gateway: MakeGateway, make_client: MakeClient, chain: tuple[str, ...], fault: str, way: str
) -> None:
    """Each provider breaks off but the last: the client has the uncut text, and one of all that there is one of."""
    running = await make_gateway(config=_moving_on(chain), scripts=_breaking(chain, fault), default=LONG)
    heard = await hear(make_client(running), way, messages=MESSAGES)
    assert heard.text == TEXT
    assert heard.finish_reason == "stop"
    _check_account(heard, UNCUT)
    _check_one_stream(heard.chunks)
    asked = running.simulator.requests
    assert [one.model for one in asked] == [model_of(kind).partition("/")[2] for kind in chain]
    assert [one.outcome == "finished" for one in asked] == [kind == chain[-1] for kind in chain]


@every_chain
@every_fault
@every_way
async def test_an_answer_that_breaks_off_twice_is_finished_by_default(
    make_gateway: MakeGateway, make_client: MakeClient, chain: tuple[str, ...], fault: str, way: str
) -> None:
    """As the gateway comes, and whichever target it has go on, the client does not notice."""
    running = await make_gateway(*chain, scripts=[FAULTS[fault]] * 2, default=LONG)
    heard = await hear(make_client(running), way, messages=MESSAGES)
    assert heard.text == TEXT
    assert heard.finish_reason == "stop"
    _check_account(heard, UNCUT)
    _check_one_stream(heard.chunks)
    assert len(running.simulator.requests) == 3


@every_chain
async def test_the_stream_is_named_after_the_target_that_began_it(
    make_gateway: MakeGateway, make_client: MakeClient, chain: tuple[str, ...]
) -> None:
    """The header says who gave the first token, whoever gave the last."""
    client = make_client(
        await make_gateway(config=_moving_on(chain), scripts=_breaking(chain, "rst"), default=LONG),
    )
    assert await drain(client, [], model="chat", messages=MESSAGES) == model_of(chain[0])


@every_chain
@every_fault
async def test_an_answer_that_nobody_finishes_raises(
    make_gateway: MakeGateway, make_client: MakeClient, chain: tuple[str, ...], fault: str
) -> None:
    """When the last provider has broken off too there is an error behind all that was said, and no end."""
    scripts = [*_breaking(chain, fault), FAULTS[fault]]
    client = make_client(await make_gateway(config=_moving_on(chain), scripts=scripts, default=LONG))
    chunks: list[ChatCompletionChunk] = []
    with pytest.raises(APIError):
        await drain(client, chunks, model="chat", messages=MESSAGES)
    said = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert TEXT.startswith(said)
    assert len("".join(UNCUT.answers[0].text[:30])) < len(said) < len(TEXT)
    assert not any(choice.finish_reason for chunk in chunks for choice in chunk.choices)


@every_chain
@every_fault
@pytest.mark.parametrize("way", ["create", "helper"])
async def test_a_tool_call_that_broke_off_is_made_again(
    make_gateway: MakeGateway, make_client: MakeClient, chain: tuple[str, ...], fault: str, way: str
) -> None:
    """Of half a call nothing is heard: the calls are the next attempt's, whole, each once, and counted once."""
    running = await make_gateway(*chain, scripts=[with_half_a_call(fault)])
    heard = await hear(make_client(running), way, TOOL_PROMPT, tools=TOOLS)
    scene = scene_of(("user", TOOL_PROMPT), has_tools=True)
    assert heard.calls == calls_of(scene.answers[0])
    assert heard.text == ""
    assert heard.finish_reason == "tool_calls"
    _check_account(heard, scene)
    _check_one_stream(heard.chunks)
    assert len(running.simulator.requests) == 2


def _moving_on(chain: tuple[str, ...]) -> dict[str, Any]:
    """Return a configuration that asks each target once, so that an answer goes on at the next provider."""
    fallback, resume = {"use": "middleware.fallback.Fallback"}, {"use": "middleware.resume.Resume", "max_attempts": 1}
    return {**over(*chain), "middleware": [fallback, resume]}


def _breaking(chain: tuple[str, ...], fault: str) -> list[str]:
    return [FAULTS[fault]] * (len(chain) - 1)


def _check_account(heard: Heard, scene: Scene) -> None:
    assert heard.usage is not None
    assert heard.usage.completion_tokens == scene.output_tokens
    assert abs(heard.usage.prompt_tokens - scene.prompt_tokens) <= A_FEW
    assert heard.usage.total_tokens == heard.usage.prompt_tokens + heard.usage.completion_tokens


def _check_one_stream(chunks: list[ChatCompletionChunk]) -> None:
    """Check that what can come once came once; an answer that was not asked for in chunks has none."""
    if not chunks:
        return
    assert len({(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks}) == 1
    choices = [choice for chunk in chunks for choice in chunk.choices]
    assert [choice.delta.role for choice in choices if choice.delta.role] == ["assistant"]
    assert choices[0].delta.role == "assistant"
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == [choices[-1].finish_reason]
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
