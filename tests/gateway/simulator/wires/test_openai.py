"""OpenAI's wire: its own SDK reads it, and each host has its accent."""

import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai.lib.streaming.chat import ContentDoneEvent

from gateway.simulator import Script, Simulator
from gateway.simulator.ask import Incoming
from gateway.simulator.performance import Performance, perform
from gateway.simulator.plan import Send
from gateway.simulator.wires.base import HttpAnswer, Reply
from gateway.simulator.wires.routes import WIRES

QUICK = Script(first_token_s=0, interval_s=0)
MESSAGES: list[Any] = [{"role": "user", "content": "What does a weir do?"}]
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}
    for name in ("first", "second")
]


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    """A simulator that takes no time."""
    async with Simulator(default=QUICK) as running:
        yield running


@pytest.fixture
async def client(simulator: Simulator) -> AsyncIterator[openai.AsyncOpenAI]:
    """OpenAI's own client."""
    url = simulator.base_url("openai")
    async with openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=0) as made:
        yield made


def chunks(name: str, script: Script = QUICK, **fields: Any) -> list[Any]:
    """Return the JSON of a stream."""
    body = {"messages": MESSAGES, "stream": True, **fields}
    played = perform(WIRES[name], Incoming("/v1", "mill", body), script, Reply("serial", 7, "mill"))
    assert isinstance(played, Performance)
    text = b"".join(step.payload for step in played.steps if isinstance(step, Send)).decode()
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


async def test_the_sdk_reads_a_stream_with_usage(client: openai.AsyncOpenAI) -> None:
    """Text, one finish, usage in a chunk of its own."""
    stream = await client.chat.completions.create(
        model="gpt-5-mini", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    seen = [chunk async for chunk in stream]
    whole = await client.chat.completions.create(model="gpt-5-mini", messages=MESSAGES)
    text = "".join(choice.delta.content or "" for chunk in seen for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    assert [choice.finish_reason for chunk in seen for choice in chunk.choices if choice.finish_reason] == ["stop"]
    assert seen[-1].choices == []
    assert seen[-1].usage == whole.usage
    assert len({chunk.id for chunk in seen}) == 1


async def test_the_sdk_accumulates_tool_calls(client: openai.AsyncOpenAI) -> None:
    """Two in parallel, with ids and whole arguments."""
    async with client.chat.completions.stream(model="gpt-5-mini", messages=MESSAGES, tools=TOOLS) as stream:
        completion = await stream.get_final_completion()
    calls = completion.choices[0].message.tool_calls or []
    assert [call.function.name for call in calls] == ["first", "second"]
    assert [json.loads(call.function.arguments) for call in calls] == [{}, {}]
    assert len({call.id for call in calls}) == 2
    assert completion.choices[0].finish_reason == "tool_calls"


async def test_the_sdk_accumulates_choices_and_logprobs(client: openai.AsyncOpenAI) -> None:
    """Each choice has its text, each token its probability."""
    async with client.chat.completions.stream(
        model="mill?token_count=9", messages=MESSAGES, n=2, logprobs=True, top_logprobs=2
    ) as stream:
        done = [event async for event in stream if isinstance(event, ContentDoneEvent)]
        completion = await stream.get_final_completion()
    assert len(done) == 2
    for choice in completion.choices:
        assert choice.logprobs is not None
        tokens = choice.logprobs.content or []
        assert "".join(token.token for token in tokens) == choice.message.content
        assert all(token.logprob < 0 and len(token.top_logprobs) == 2 for token in tokens)


async def test_the_sdk_raises_what_the_script_says(client: openai.AsyncOpenAI) -> None:
    """HTTP errors by status, an error event as an API error, a cut as a broken connection."""
    for model, expected in (
        ("no-such-model", openai.NotFoundError),
        ("mill?status=429", openai.RateLimitError),
        ("mill?status=503", openai.InternalServerError),
        ("mill?refuse=rst", openai.APIConnectionError),
        ("mill?error_after=3", openai.APIError),
        ("mill?cut_after_tokens=3", openai.APIConnectionError),
    ):
        with pytest.raises(expected):
            async for _ in await client.chat.completions.create(model=model, messages=MESSAGES, stream=True):
                pass


def test_openai_hides_its_reasoning_but_counts_it() -> None:
    """In chat completions there is only the number."""
    seen = chunks("openai", reasoning_effort="low", stream_options={"include_usage": True})
    assert not any("reasoning" in key for chunk in seen for one in chunk["choices"] for key in one["delta"])
    assert seen[-1]["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0


def test_usage_is_sent_only_where_it_is_asked_for() -> None:
    """Some hosts send it anyway: with the finish, in `x_groq`, on every chunk."""
    assert not any(chunk.get("usage") for chunk in chunks("openai"))
    assert chunks("together")[-1]["usage"]["completion_tokens"] > 0
    assert chunks("groq")[-2]["x_groq"]["usage"]["completion_tokens"] > 0
    assert all(chunk["usage"] for chunk in chunks("perplexity"))
    assert chunks("openrouter")[-1]["choices"][0]["finish_reason"] is None


def test_each_host_has_its_accent() -> None:
    """Odd first chunks, reasoning by other names, comments, finishes."""
    assert chunks("azure")[0]["choices"] == []
    assert "prompt_filter_results" in chunks("azure")[0]
    assert "obfuscation" in chunks("openai")[0]
    assert chunks("together")[-1]["choices"][0]["finish_reason"] == "eos"
    assert chunks("groq", reasoning_effort="low")[1]["choices"][0]["delta"]["reasoning"]
    thinking = chunks("deepseek", thinking={"type": "enabled"})
    assert thinking[1]["choices"][0]["delta"]["content"] is None
    assert thinking[-2]["choices"][0]["delta"]["reasoning_content"] is None
    assert [chunk["choices"][0]["delta"].get("role") for chunk in chunks("xai")[:2]] == ["assistant", None]


def test_a_mid_stream_error_is_the_hosts_own() -> None:
    """A bare frame, or OpenRouter's chunk with an error and a finish."""
    script = Script(error_after=1, error_status=429, error_code="quota")
    assert chunks("openai", script)[-1]["error"]["code"] == "quota"
    last = chunks("openrouter", script)[-1]
    assert (last["error"]["code"], last["choices"][0]["finish_reason"]) == (429, "error")


def test_a_request_without_a_model_is_invalid() -> None:
    """As is one without messages, or that contradicts itself."""
    both = {"continue_final_message": True, "messages": [*MESSAGES, {"role": "assistant", "content": "A"}]}
    for name, model, body in (("openai", "", {}), ("openai", "m", {"messages": []}), ("vllm", "m", both)):
        answer = perform(WIRES[name], Incoming("/v1", model, body), QUICK, Reply("serial", 7, model))
        assert isinstance(answer, HttpAnswer)
        assert answer.status == 400


def test_llamacpp_refuses_two_assistant_turns_at_the_end() -> None:
    """As the real one does."""
    two = [*MESSAGES, {"role": "assistant", "content": "A"}, {"role": "assistant", "content": "B"}]
    answer = perform(WIRES["llama.cpp"], Incoming("/v1", "m", {"messages": two}), QUICK, Reply("s", 7, "m"))
    assert isinstance(answer, HttpAnswer)
    assert b"2 or more assistant messages" in answer.body
