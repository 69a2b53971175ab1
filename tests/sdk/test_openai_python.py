"""OpenAI's own Python client against the gateway, over every provider's wire."""

import asyncio
import base64
import json
from typing import Any, Final

import pytest
from openai import (
    APIError,
    AsyncOpenAI,
    BadRequestError,
    InternalServerError,
    LengthFinishReasonError,
    NotFoundError,
    RateLimitError,
)
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletionChunk
from pydantic import BaseModel

from tests.conftest import KINDS, QUICK, MakeGateway
from tests.sdk.conftest import MakeClient
from tests.sdk.heard import Heard, arguments_in, drain, gathered, hear
from tests.sdk.truth import (
    FAULTS,
    HALF,
    HELD,
    NEVER_THINKS,
    ONE_CHOICE,
    PROMPT,
    RESULTS,
    SHORT,
    STOPLESS,
    THINKS_IN_SECRET,
    TOOL_PROMPT,
    TOOLS,
    WHOLE_CALLS,
    answer_after_tools,
    calls_of,
    faulty,
    is_json,
    once,
    quick,
    reasoning_of,
    scene_of,
    text_of,
)

WAYS: Final = ("create", "helper", "whole")
PIXEL: Final = base64.b64encode(b"\x89PNG\r\n\x1a\n not much of an image").decode()

every_kind: Final = pytest.mark.parametrize("kind", KINDS)
every_way: Final = pytest.mark.parametrize("way", WAYS)
every_fault: Final = pytest.mark.parametrize("fault", FAULTS)


def _counts(usage: CompletionUsage | None) -> tuple[int, int, int]:
    assert usage is not None
    return usage.prompt_tokens, usage.completion_tokens, usage.total_tokens


# --- what is said


@every_kind
@every_way
async def test_text_finish_and_usage_are_the_providers(
    make_gateway: MakeGateway, make_client: MakeClient, kind: str, way: str
) -> None:
    """Whatever the wire and the way of asking, the client has the simulator's text, its end and its account."""
    heard = await hear(make_client(await make_gateway(kind, default=SHORT)), way)
    scene = scene_of(("user", PROMPT))
    assert heard.text == text_of(scene.answers[0])
    assert heard.finish_reason == "stop"
    assert _counts(heard.usage) == (
        scene.prompt_tokens,
        scene.output_tokens,
        scene.prompt_tokens + scene.output_tokens,
    )


@every_kind
@every_way
async def test_parallel_tool_calls_parse_and_match(
    make_gateway: MakeGateway, make_client: MakeClient, kind: str, way: str
) -> None:
    """Two tools called at once arrive as two calls, each with its name and with arguments that are JSON."""
    heard = await hear(make_client(await make_gateway(kind, default=SHORT)), way, TOOL_PROMPT, tools=TOOLS)
    scene = scene_of(("user", TOOL_PROMPT), has_tools=True)
    assert heard.calls == calls_of(scene.answers[0])
    assert len(heard.calls) == 2
    assert heard.finish_reason == "tool_calls"
    assert heard.text == ""
    assert heard.usage is not None
    assert heard.usage.completion_tokens == scene.output_tokens


@every_kind
@every_way
async def test_reasoning_arrives_beside_the_text(
    make_gateway: MakeGateway, make_client: MakeClient, kind: str, way: str
) -> None:
    """Where the provider shows its reasoning the client has all of it, apart from the text, and it is counted."""
    heard = await hear(make_client(await make_gateway(kind, default=SHORT)), way, reasoning_effort="medium")
    scene = scene_of(("user", PROMPT), wants_reasoning=kind not in NEVER_THINKS)
    answer = scene.answers[0]
    assert heard.reasoning == ("" if kind in THINKS_IN_SECRET else reasoning_of(answer))
    assert heard.text == text_of(answer)
    assert heard.finish_reason == "stop"
    assert heard.usage is not None
    assert heard.usage.completion_tokens == scene.output_tokens


@every_kind
async def test_chunks_share_one_identity_and_end_with_the_usage(
    make_gateway: MakeGateway, make_client: MakeClient, kind: str
) -> None:
    """One id, one time, one model from the first chunk to the last; one finish, one usage, and nothing behind it."""
    client = make_client(await make_gateway(kind, default=SHORT))
    stream = await client.chat.completions.create(
        model="chat",
        messages=[{"role": "user", "content": PROMPT}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    assert chunks[0].id
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].choices == []
    choices = [choice for chunk in chunks for choice in chunk.choices]
    finishes = [choice.finish_reason for choice in choices if choice.finish_reason]
    assert finishes == ["stop"]
    assert choices[0].delta.role == "assistant"
    said = [place for place, choice in enumerate(choices) if choice.delta.content]
    assert "stop" in [choice.finish_reason for choice in choices[said[-1] :]]
    assert len(said) > 20


@every_kind
async def test_the_role_is_said_once(make_gateway: MakeGateway, make_client: MakeClient, kind: str) -> None:
    """The client's own helper adds roles up, so the first chunk has it and no other."""
    client = make_client(await make_gateway(kind, default=SHORT))
    async with client.chat.completions.stream(model="chat", messages=[{"role": "user", "content": PROMPT}]) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.role == "assistant"


@every_kind
async def test_every_chunk_has_a_choice_when_usage_is_not_asked_for(
    make_gateway: MakeGateway, make_client: MakeClient, kind: str
) -> None:
    """Code that reads ``chunk.choices[0]`` without looking works, unless it has asked for the usage chunk."""
    client = make_client(await make_gateway(kind, default=SHORT))
    stream = await client.chat.completions.create(
        model="chat", messages=[{"role": "user", "content": PROMPT}], stream=True
    )
    chunks = [chunk async for chunk in stream]
    # Azure begins with what its filter thinks of the prompt, in a chunk without choices, and its clients know that
    assert all(chunk.choices for chunk in chunks[kind == "azure" :])
    assert gathered(chunks).text == text_of(scene_of(("user", PROMPT)).answers[0])


@every_kind
async def test_a_whole_answer_that_says_nothing_of_its_cost_is_counted(
    make_gateway: MakeGateway, make_client: MakeClient, kind: str
) -> None:
    """It is collected from a stream, whatever the wire, and has an estimate where its provider said nothing."""
    heard = await hear(make_client(await make_gateway(kind, default=quick("token_count=60&no_usage"))), "whole")
    assert heard.text == text_of(scene_of(("user", PROMPT)).answers[0])
    assert heard.finish_reason == "stop"
    assert heard.usage is not None
    assert heard.usage.completion_tokens == -(-len(heard.text) // 4)
    assert heard.usage.total_tokens == heard.usage.prompt_tokens + heard.usage.completion_tokens


# --- what is asked


@every_kind
async def test_tool_results_lead_to_the_answer(make_gateway: MakeGateway, make_client: MakeClient, kind: str) -> None:
    """The calls as the client received them and a result for each, sent back, give the answer that rests on them."""
    running = await make_gateway(kind)
    client = make_client(running)
    async with client.chat.completions.stream(
        model="chat",
        messages=[{"role": "user", "content": TOOL_PROMPT}],
        tools=TOOLS,  # type: ignore[arg-type]  # a dict of the right shape
    ) as stream:
        message = (await stream.get_final_completion()).choices[0].message
    calls = message.tool_calls or []
    assert len({call.id for call in calls}) == 2
    asked = [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.function.name, "arguments": call.function.arguments},
        }
        for call in calls
    ]
    results = [{"role": "tool", "tool_call_id": call.id, "content": RESULTS[call.function.name]} for call in calls]
    heard = await hear(
        client,
        "create",
        messages=[
            {"role": "user", "content": TOOL_PROMPT},
            {"role": "assistant", "content": None, "tool_calls": asked},
            *results,
        ],
        tools=TOOLS,
    )
    assert heard.text == text_of(answer_after_tools())
    assert heard.finish_reason == "stop"
    assert heard.calls == []


class Bank(BaseModel):
    """A side of a river."""

    name: str
    is_steep: bool


class River(BaseModel):
    """What is asked for as JSON."""

    name: str
    length_km: float
    banks: list[Bank]


@every_kind
@pytest.mark.parametrize("way", ["helper", "whole"])
async def test_an_answer_in_a_schema_is_parsed_by_the_client(
    make_gateway: MakeGateway, make_client: MakeClient, kind: str, way: str
) -> None:
    """A model given as the response format comes back as an instance of it."""
    completions = make_client(await make_gateway(kind)).chat.completions
    asked: dict[str, Any] = {"model": "chat", "messages": [{"role": "user", "content": PROMPT}]}
    if way == "helper":
        async with completions.stream(**asked, response_format=River) as stream:
            final = await stream.get_final_completion()
    else:
        final = await completions.parse(**asked, response_format=River)
    answer = scene_of(("user", PROMPT), script=QUICK, answer_schema=River.model_json_schema()).answers[0]
    assert final.choices[0].message.parsed == River.model_validate_json(text_of(answer))


@every_kind
async def test_an_image_reaches_the_provider(make_gateway: MakeGateway, make_client: MakeClient, kind: str) -> None:
    """An image in a data URL is in the request that the provider gets, and is answered."""
    running = await make_gateway(kind, default=SHORT)
    content = [
        {"type": "text", "text": PROMPT},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
    ]
    heard = await hear(make_client(running), "create", messages=[{"role": "user", "content": content}])
    assert PIXEL in json.dumps(running.simulator.requests[-1].body)
    assert heard.text == text_of(scene_of(("user", PROMPT)).answers[0])


@every_kind
async def test_system_and_developer_messages_count(
    make_gateway: MakeGateway, make_client: MakeClient, kind: str
) -> None:
    """Both kinds of instructions reach the provider as such: its answer is the one to this conversation."""
    said = [
        ("system", "You are a miller."),
        ("developer", "Answer with care."),
        ("user", "Good morning."),
        ("assistant", "Good morning to you."),
        ("user", PROMPT),
    ]
    messages = [{"role": role, "content": text} for role, text in said]
    heard = await hear(make_client(await make_gateway(kind, default=SHORT)), "create", messages=messages)
    assert heard.text == text_of(scene_of(*said).answers[0])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in STOPLESS])
@pytest.mark.parametrize("way", ["create", "whole"])
async def test_a_stop_sequence_ends_the_answer(
    make_gateway: MakeGateway, make_client: MakeClient, kind: str, way: str
) -> None:
    """The text ends before the sequence, and the finish is an ordinary one."""
    text = text_of(scene_of(("user", PROMPT)).answers[0])
    word = text.split()[20]
    heard = await hear(make_client(await make_gateway(kind, default=SHORT)), way, stop=[word])
    assert heard.text == text[: text.index(word)]
    assert heard.finish_reason == "stop"


@pytest.mark.parametrize("kind", STOPLESS)
async def test_a_stop_sequence_for_a_provider_that_takes_none_is_refused(
    make_gateway: MakeGateway, make_client: MakeClient, kind: str
) -> None:
    """Where the provider knows no stop sequences the client is told, and no answer runs past its end."""
    running = await make_gateway(kind)
    with pytest.raises(BadRequestError, match="stop sequences") as caught:
        await hear(make_client(running), "create", stop=["river"])
    assert caught.value.param == "stop"
    assert running.simulator.requests == []


@every_kind
@pytest.mark.parametrize("way", ["create", "whole"])
@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_a_limit_ends_the_answer_and_says_so(
    make_gateway: MakeGateway, make_client: MakeClient, kind: str, way: str, name: str
) -> None:
    """After so many tokens the answer ends with the finish reason "length"."""
    limit: dict[str, Any] = {name: 20}
    heard = await hear(make_client(await make_gateway(kind, default=SHORT)), way, **limit)
    scene = scene_of(("user", PROMPT), max_tokens=20)
    assert heard.text == text_of(scene.answers[0])
    assert heard.finish_reason == "length"
    assert heard.usage is not None
    assert heard.usage.completion_tokens == 20


@every_kind
async def test_a_limit_is_the_helpers_own_error(make_gateway: MakeGateway, make_client: MakeClient, kind: str) -> None:
    """The helper raises what it raises for OpenAI, with the answer as far as it came."""
    client = make_client(await make_gateway(kind, default=SHORT))
    with pytest.raises(LengthFinishReasonError) as caught:
        await hear(client, "helper", max_tokens=20)
    text = text_of(scene_of(("user", PROMPT), max_tokens=20).answers[0])
    assert caught.value.completion.choices[0].message.content == text


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ONE_CHOICE])
async def test_two_choices_are_kept_apart(make_gateway: MakeGateway, make_client: MakeClient, kind: str) -> None:
    """Asked for two choices, the client has both, each whole and each with its own end."""
    client = make_client(await make_gateway(kind, default=SHORT))
    asked: dict[str, Any] = {"model": "chat", "messages": [{"role": "user", "content": PROMPT}], "n": 2}
    chunks = [chunk async for chunk in await client.chat.completions.create(**asked, stream=True)]
    whole = await client.chat.completions.create(**asked)
    answers = scene_of(("user", PROMPT), choice_count=2).answers
    for index, answer in enumerate(answers):
        heard = gathered(chunks, index)
        assert heard.text == text_of(answer) == whole.choices[index].message.content
        assert heard.finish_reason == whole.choices[index].finish_reason == "stop"
    assert text_of(answers[0]) != text_of(answers[1])


@pytest.mark.parametrize("kind", ONE_CHOICE)
@pytest.mark.parametrize("way", ["create", "whole"])
async def test_two_choices_of_a_provider_that_has_one_are_refused(
    make_gateway: MakeGateway, make_client: MakeClient, kind: str, way: str
) -> None:
    """Where the provider cannot give two choices, the client is told before anything is generated."""
    running = await make_gateway(kind, default=SHORT)
    with pytest.raises(BadRequestError, match="one choice") as caught:
        await hear(make_client(running), way, n=2)
    assert caught.value.param == "n"
    assert running.simulator.requests == []


# --- what goes wrong


@every_kind
@every_fault
async def test_a_broken_stream_raises_in_create(
    make_gateway: MakeGateway, make_client: MakeClient, kind: str, fault: str
) -> None:
    """However the provider breaks off, the loop over the chunks ends with an error, and what came is a true prefix."""
    client = make_client(await make_gateway(config=faulty(kind), default=SHORT))
    chunks: list[ChatCompletionChunk] = []
    with pytest.raises(APIError) as caught:
        await drain(client, chunks, model=fault, messages=[{"role": "user", "content": PROMPT}])
    assert caught.value.message
    _check_prefix(gathered(chunks))


@every_kind
@every_fault
async def test_a_broken_stream_raises_in_the_helper(
    make_gateway: MakeGateway, make_client: MakeClient, kind: str, fault: str
) -> None:
    """The helper raises as well, and its snapshot of the answer is a true prefix."""
    client = make_client(await make_gateway(config=faulty(kind), default=SHORT))
    async with client.chat.completions.stream(model=fault, messages=[{"role": "user", "content": PROMPT}]) as stream:
        with pytest.raises(APIError):
            await stream.get_final_completion()
        snapshot = stream.current_completion_snapshot.choices[0]
    _check_prefix(Heard(text=snapshot.message.content or "", finish_reason=snapshot.finish_reason))


def _check_prefix(heard: Heard) -> None:
    assert heard.finish_reason is None
    assert heard.text
    whole = text_of(scene_of(("user", PROMPT)).answers[0])
    assert whole.startswith(heard.text)
    assert heard.text != whole


@every_kind
async def test_the_providers_own_error_is_told(make_gateway: MakeGateway, make_client: MakeClient, kind: str) -> None:
    """What the provider said in the middle of its stream is the client's error, not that the stream was cut."""
    client = make_client(await make_gateway(config=faulty(kind), default=SHORT))
    chunks: list[ChatCompletionChunk] = []
    with pytest.raises(APIError) as caught:
        await drain(client, chunks, model="error", messages=[{"role": "user", "content": PROMPT}])
    assert caught.value.code != "stream_truncated"
    assert {chunk.object for chunk in chunks if chunk.choices} == {"chat.completion.chunk"}


@every_kind
async def test_a_finish_said_twice_is_heard_once(make_gateway: MakeGateway, make_client: MakeClient, kind: str) -> None:
    """A provider that repeats its finish ends the client's choice once."""
    client = make_client(await make_gateway(kind, default=quick("token_count=60&after_finish=duplicate")))
    chunks: list[ChatCompletionChunk] = []
    await drain(client, chunks, model="chat", messages=[{"role": "user", "content": PROMPT}])
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason] == ["stop"]


@every_kind
async def test_what_comes_after_the_finish_is_not_heard(
    make_gateway: MakeGateway, make_client: MakeClient, kind: str
) -> None:
    """A provider that goes on after its finish changes neither the text nor the account."""
    client = make_client(await make_gateway(kind, default=quick("token_count=60&after_finish=text")))
    heard = await hear(client, "create")
    scene = scene_of(("user", PROMPT))
    assert heard.text == text_of(scene.answers[0])
    assert heard.finish_reason == "stop"
    assert heard.usage is not None
    assert heard.usage.completion_tokens == scene.output_tokens


@every_kind
@every_fault
async def test_half_a_tool_call_is_never_a_whole_one_in_create(
    make_gateway: MakeGateway, make_client: MakeClient, kind: str, fault: str
) -> None:
    """A stream that breaks inside the arguments of a tool call raises, and nothing says that the calls are complete."""
    client = make_client(await make_gateway(config=faulty(kind)))
    chunks: list[ChatCompletionChunk] = []
    with pytest.raises(APIError):
        await drain(client, chunks, **_asked_for_tools(f"{HALF}-{fault}"))
    assert not any(choice.finish_reason for chunk in chunks for choice in chunk.choices)
    is_whole = [is_json(arguments) for arguments in arguments_in(chunks)]
    assert is_whole == ([True] * len(is_whole) if kind in WHOLE_CALLS else [True, False])


@every_kind
@every_fault
async def test_half_a_tool_call_is_never_a_whole_one_in_the_helper(
    make_gateway: MakeGateway, make_client: MakeClient, kind: str, fault: str
) -> None:
    """The helper raises as well; a call that it says is done came whole, and the broken one is not among them."""
    client = make_client(await make_gateway(config=faulty(kind)))
    done: list[tuple[str, dict[str, Any]]] = []
    with pytest.raises(APIError):
        await _help(client, done, **_asked_for_tools(f"{HALF}-{fault}"))
    calls = calls_of(scene_of(("user", TOOL_PROMPT), has_tools=True).answers[0])
    assert done == calls[: len(done)]
    assert len(done) < len(calls)


@every_kind
async def test_a_tool_call_that_is_held_is_whole_or_not_there(
    make_gateway: MakeGateway, make_client: MakeClient, kind: str
) -> None:
    """Where another attempt may be made and all break, the client is told, and has seen nothing of a call."""
    client = make_client(await make_gateway(config=faulty(kind)))
    chunks: list[ChatCompletionChunk] = []
    done: list[tuple[str, dict[str, Any]]] = []
    asked = [_asked_for_tools(f"{HELD}-{fault}") for fault in FAULTS]
    ends = await asyncio.gather(
        *(drain(client, chunks, **one) for one in asked),
        *(_help(client, done, **one) for one in asked),
        return_exceptions=True,
    )
    assert len(ends) == 2 * len(FAULTS)
    assert all(isinstance(end, APIError) for end in ends), ends
    assert not any(choice.finish_reason or choice.delta.tool_calls for chunk in chunks for choice in chunk.choices)
    assert done == []


def _asked_for_tools(model: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": TOOL_PROMPT}], "tools": TOOLS}


async def _help(client: AsyncOpenAI, done: list[tuple[str, dict[str, Any]]], **asked: Any) -> None:
    async with client.chat.completions.stream(**asked) as stream:
        async for event in stream:
            if event.type == "tool_calls.function.arguments.done":
                done.append((event.name, json.loads(event.arguments)))  # noqa: PERF401, as in ``drain``


@every_kind
@pytest.mark.parametrize("cut", ["fin", "rst", "clean"])
async def test_half_a_whole_answer_is_a_server_error(
    make_gateway: MakeGateway, make_client: MakeClient, kind: str, cut: str
) -> None:
    """An answer that was not streamed and broke off in the middle is an HTTP error, asked for once."""
    running = await make_gateway(config=once(kind), default=quick(f"cut_after_bytes=100&cut={cut}"))
    with pytest.raises(InternalServerError):
        await hear(make_client(running), "whole")
    assert len(running.simulator.requests) == 1


@every_kind
async def test_a_busy_provider_is_a_rate_limit_error_asked_once(
    make_gateway: MakeGateway, make_client: MakeClient, kind: str
) -> None:
    """The provider's 429 arrives as the client's own class, with the time to wait, and is not tried again."""
    running = await make_gateway(config=once(kind), default=quick("status=429&retry_after_s=13"))
    with pytest.raises(RateLimitError) as caught:
        await hear(make_client(running), "create")
    assert caught.value.response.headers["retry-after"] == "13"
    assert len(running.simulator.requests) == 1


async def test_an_unknown_model_is_a_not_found_error(make_gateway: MakeGateway, make_client: MakeClient) -> None:
    """A model that nobody has is the client's ``NotFoundError`` with OpenAI's code."""
    with pytest.raises(NotFoundError) as caught:
        await hear(make_client(await make_gateway("openai")), "create", model="nobody-has-it")
    assert caught.value.code == "model_not_found"


async def test_models_are_listed_and_found(make_gateway: MakeGateway, make_client: MakeClient) -> None:
    """The client's list has the names that may be asked for, and each of them can be looked up."""
    client = make_client(await make_gateway("openai", "google"))
    names = [model.id async for model in client.models.list()]
    assert names == ["chat", "openai/gpt-5-mini", "google/gemini-3.5-flash"]
    assert [(await client.models.retrieve(name)).id for name in names] == names
