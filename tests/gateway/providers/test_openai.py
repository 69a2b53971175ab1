from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec import structs

from gateway.core.call import (
    OPENAI_CHAT,
    AudioPart,
    Call,
    FilePart,
    ImagePart,
    Message,
    ResponseFormat,
    Sampling,
    Source,
    Target,
    TextPart,
    Tool,
    ToolCall,
    ToolChoice,
    UnknownPart,
)
from gateway.core.continuation import Continuation, Way
from gateway.core.errors import InvalidRequest, UpstreamBusy, UpstreamFailed, UpstreamRefused
from gateway.core.events import ChoiceFinished, StreamStarted, TextDelta
from gateway.dialects.openai_request import read_request
from gateway.providers.base import ProviderOptions, UpstreamRequest
from gateway.providers.openai import OPENAI_WIRE, OpenAI, Prefill, Wire, write_body

USER = Message(role="user", parts=(TextPart("Hi"),))
HELLO: dict[str, Any] = {"model": "chat", "messages": [{"role": "user", "content": "Hi"}]}


def make_provider(**options: Any) -> OpenAI:
    """Return a provider with a key."""
    return OpenAI(ProviderOptions(name="openai", **{"api_key": "secret-key", **options}))


def make_call(body: dict[str, Any], model: str = "gpt-4o", **fields: Any) -> Call:
    """Return the call that a client's body becomes, for ``model``."""
    call = Call(request_id="t", target=Target("openai", model), **fields)
    return read_request(msgspec.json.encode({**HELLO, **body}), call)


def make_typed_call(*messages: Message, model: str = "gpt-4o", **fields: Any) -> Call:
    """Return a call that came in another dialect."""
    target = Target("openai", model)
    return Call(request_id="t", model="chat", target=target, messages=messages or (USER,), **fields)


def body_of(request: UpstreamRequest) -> dict[str, Any]:
    """Return a request's body, decoded."""
    body: dict[str, Any] = msgspec.json.decode(request.body)
    return body


def write(body: dict[str, Any], model: str = "gpt-4o") -> dict[str, Any]:
    """Return what OpenAI is sent for a client's body."""
    return body_of(make_provider().request(make_call(body, model)))


def write_typed(*messages: Message, **fields: Any) -> dict[str, Any]:
    """Return what OpenAI is sent for a call that came in another dialect."""
    return body_of(make_provider().request(make_typed_call(*messages, **fields)))


# --- where it goes


def test_a_request_goes_to_openai_with_the_key() -> None:
    """And says that it is JSON, and what it wants back."""
    request = make_provider().request(make_call({}))
    assert request.url == "https://api.openai.com/v1/chat/completions"
    assert request.headers == {
        "content-type": "application/json",
        "accept": "application/json",
        "authorization": "Bearer secret-key",
    }
    assert make_provider().request(make_call({"stream": True})).headers["accept"] == "text/event-stream"


def test_a_base_url_is_taken_at_its_word() -> None:
    """With or without a slash at its end."""
    for base_url in ("http://proxy:1/v9", "http://proxy:1/v9/"):
        assert make_provider(base_url=base_url).request(make_call({})).url == "http://proxy:1/v9/chat/completions"


def test_no_key_means_no_header() -> None:
    """Local engines ask for none."""
    assert "authorization" not in make_provider(api_key=None).request(make_call({})).headers


def test_configured_headers_are_added_and_win() -> None:
    """Of the client's only the known ones are forwarded."""
    call = make_call({}, headers={"traceparent": "00-1", "openai-beta": "x", "cookie": "no"})
    headers = make_provider(headers={"x-team": "a", "openai-beta": "y"}).request(call).headers
    assert {name: headers.get(name) for name in ("traceparent", "openai-beta", "x-team", "cookie")} == {
        "traceparent": "00-1",
        "openai-beta": "y",
        "x-team": "a",
        "cookie": None,
    }


def test_neither_key_nor_body_shows_in_a_repr() -> None:
    """What is printed by accident opens nothing."""
    provider = make_provider(headers={"x-key": "other-secret"})
    shown = repr(provider) + repr(provider.request(make_call({})))
    assert not [word for word in ("secret-key", "other-secret", "Hi") if word in shown]


# --- a call that came in this wire


def test_a_body_goes_out_as_it_came_but_for_the_model() -> None:
    """Fields that nobody here knows are kept, at every level."""
    body = {
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "S", "cache_control": {"type": "ephemeral"}}]},
            {"role": "user", "content": [{"type": "video_url", "video_url": {"url": "https://x"}}], "x_turn": 1},
            {"role": "function", "name": "f", "content": "1"},
        ],
        "temperature": 0.5,
        "top_p": 1,
        "tools": [{"type": "function", "function": {"name": "f", "x_tool": 1}, "x": 2}],
        "metadata": {"a": "b"},
        "logit_bias": {"50256": -100},
        "x_extra": {"deep": [1, None]},
        "max_tokens": 10,
        "user": None,
    }
    assert write(body) == {**body, "model": "gpt-4o"}


def test_a_stream_is_asked_for_with_its_usage() -> None:
    """The gateway counts, whether the client wants to or not; its other options stay."""
    assert write({"stream": True})["stream_options"] == {"include_usage": True}
    options = {"include_usage": False, "include_obfuscation": False}
    written = write({"stream": True, "stream_options": options})
    assert written["stream"] is True
    assert written["stream_options"] == {"include_usage": True, "include_obfuscation": False}


def test_a_whole_answer_is_asked_for_without_stream_options() -> None:
    """They are refused where there is no stream."""
    assert write({"stream": False, "stream_options": {"include_usage": True}}) == {**HELLO, "model": "gpt-4o"}


@pytest.mark.parametrize("body", [{"max_tokens": 5}, {"max_completion_tokens": 5}])
def test_a_limit_keeps_its_name_for_models_that_take_both(body: dict[str, int]) -> None:
    """Only a reasoning model refuses ``max_tokens``."""
    assert write(body) == {**HELLO, **body, "model": "gpt-4o"}


def test_a_limit_that_was_lowered_is_sent_under_the_clients_name() -> None:
    """An attempt that goes on has fewer tokens left than the client asked for."""
    call = make_call({"max_tokens": 5})
    lowered = structs.replace(call, max_output_tokens=3)
    assert write_body(lowered, OPENAI_WIRE)["max_tokens"] == 3


@pytest.mark.parametrize(
    ("body", "limits"),
    [
        ({"max_completion_tokens": 5}, {"max_tokens": 5}),
        ({"max_tokens": 5}, {"max_tokens": 5}),
        ({"max_tokens": 5, "max_completion_tokens": None}, {"max_tokens": 5}),
        ({"max_tokens": 5, "max_completion_tokens": 7}, {"max_tokens": 7}),
        ({"max_completion_tokens": None}, {}),
        ({}, {}),
    ],
)
def test_a_host_that_knows_only_max_tokens_gets_that(body: dict[str, Any], limits: dict[str, int]) -> None:
    """A limit that is null is none, and takes no other one's place."""
    written = write_body(make_call(body), Wire())
    assert {key: value for key, value in written.items() if key.startswith("max_")} == limits


@pytest.mark.parametrize("model", ["o1", "o3-mini", "o4-mini-2025-04-16", "gpt-5", "gpt-5-mini", "gpt-5.2"])
@pytest.mark.parametrize(
    ("body", "limits"),
    [
        ({"max_tokens": 5}, {"max_completion_tokens": 5}),
        ({"max_tokens": 5, "max_completion_tokens": None}, {"max_completion_tokens": 5}),
        ({"max_tokens": 5, "max_completion_tokens": 7}, {"max_completion_tokens": 7}),
        ({"max_completion_tokens": 5}, {"max_completion_tokens": 5}),
    ],
)
def test_a_reasoning_model_gets_the_limit_that_it_takes(
    model: str, body: dict[str, Any], limits: dict[str, int]
) -> None:
    """It refuses ``max_tokens``."""
    assert {key: value for key, value in write(body, model).items() if key.startswith("max_")} == limits


SAMPLED = {
    "temperature": 0.2,
    "top_p": 0.9,
    "presence_penalty": 1,
    "frequency_penalty": 1,
    "logprobs": True,
    "top_logprobs": 2,
    "logit_bias": {"1": 1},
}


def test_a_reasoning_model_gets_no_sampling_parameters() -> None:
    """It refuses them while it reasons; everything else stays."""
    assert write({**SAMPLED, "seed": 3, "reasoning_effort": "low"}, "gpt-5-mini") == {
        **HELLO,
        "model": "gpt-5-mini",
        "seed": 3,
        "reasoning_effort": "low",
    }


@pytest.mark.parametrize(
    ("model", "effort"),
    [("gpt-5.2", "none"), ("gpt-4o", None), ("gpt-5-chat-latest", None), ("gpt-5.1-chat-latest", None), ("omni", None)],
)
def test_a_model_that_does_not_reason_keeps_its_sampling_parameters(model: str, effort: str | None) -> None:
    """Or one that was told not to."""
    body = {**SAMPLED, **({"reasoning_effort": effort} if effort else {})}
    assert write(body, model) == {**HELLO, **body, "model": model}


def test_the_reasoning_of_earlier_turns_is_not_sent_back() -> None:
    """OpenAI refuses the field; the rest of the turn stays."""
    turn = {"role": "assistant", "content": "a", "refusal": None, "x": 1}
    thoughts = {"reasoning_content": "hm", "reasoning": "hm", "reasoning_details": [{"type": "reasoning.text"}]}
    messages = [*HELLO["messages"], {**turn, **thoughts}, {"role": "user", "content": "b", "reasoning": "kept"}]
    assert write({"messages": messages})["messages"] == [messages[0], turn, messages[2]]


def test_a_host_that_wants_the_reasoning_back_gets_it() -> None:
    """DeepSeek refuses a tool turn without it."""
    turn = {"role": "assistant", "content": "a", "reasoning_content": "hm"}
    assert write_body(make_call({"messages": [turn]}), Wire())["messages"] == [turn]


def test_a_developer_becomes_the_system_where_only_that_is_known() -> None:
    """OpenAI itself knows both."""
    turn = {"role": "developer", "content": "S", "x": 1}
    assert write({"messages": [turn]})["messages"] == [turn]
    assert write_body(make_call({"messages": [turn]}), Wire())["messages"] == [{**turn, "role": "system"}]


def test_the_clients_own_body_is_never_changed() -> None:
    """The next attempt is written from it too."""
    messages = [{"role": "developer", "content": "S"}, {"role": "assistant", "content": "a", "reasoning_content": "hm"}]
    call = make_call({"messages": messages, "max_tokens": 3, "temperature": 1, "stream": True}, "gpt-5")
    before = msgspec.json.encode(call.source.body)
    for wire in (OPENAI_WIRE, Wire(), Wire(accepted=frozenset({"model"}), renamed={"temperature": "heat"})):
        write_body(call, wire)
    assert msgspec.json.encode(call.source.body) == before


def test_a_turn_that_the_gateway_wrote_is_added_to_the_clients() -> None:
    """A continuation changes the messages and nothing else of the body."""
    call = make_call({"x_extra": 1})
    turn = Message(role="assistant", parts=(TextPart("So far"),))
    longer = structs.replace(call, messages=(*call.messages, turn))
    assert write_body(longer, OPENAI_WIRE) == {
        "model": "gpt-4o",
        "messages": [*HELLO["messages"], {"role": "assistant", "content": "So far"}],
        "x_extra": 1,
    }


def test_a_strict_host_gets_only_what_it_knows_under_its_names() -> None:
    """First renamed, then chosen, then adapted."""
    wire = Wire(
        accepted=frozenset({"model", "random_seed", "messages"}),
        renamed={"seed": "random_seed", "stop": "until"},
        adapt=lambda body, call: body.update(adapted=call.request_id),
    )
    assert write_body(make_call({"seed": 3, "x": 1, "stream": True}), wire) == {
        "model": "gpt-4o",
        "messages": HELLO["messages"],
        "random_seed": 3,
        "adapted": "t",
    }


def test_a_host_without_a_usage_option_is_not_sent_one() -> None:
    """It counts unasked."""
    body = {"stream": True, "stream_options": {"include_usage": True}}
    assert "stream_options" not in write_body(make_call(body), Wire(has_usage_option=False))


# --- a call that came in another dialect


def test_a_plain_call_is_model_and_messages() -> None:
    """Nothing is sent that was not asked for."""
    assert write_typed() == {"model": "gpt-4o", "messages": HELLO["messages"]}
    assert write_typed(stream=True)["stream_options"] == {"include_usage": True}


def test_a_body_in_a_foreign_wire_is_not_taken_over() -> None:
    """It is written from the call's fields."""
    assert write_typed(source=Source("anthropic.messages", {"max_tokens": 3, "x": 1})) == write_typed()


def test_parameters_are_written_under_openais_names() -> None:
    """All that OpenAI can express."""
    written = write_typed(
        sampling=Sampling(temperature=0.0, top_p=0.5, top_k=4, seed=3, frequency_penalty=0.1, presence_penalty=0.2),
        stop=("a", "b"),
        choice_count=2,
        logprobs=True,
        reasoning_effort="low",
        parallel_tool_calls=False,
        max_output_tokens=9,
    )
    assert {key: value for key, value in written.items() if key not in HELLO} == {
        "temperature": 0.0,
        "top_p": 0.5,
        "seed": 3,
        "frequency_penalty": 0.1,
        "presence_penalty": 0.2,
        "stop": ["a", "b"],
        "n": 2,
        "logprobs": True,
        "reasoning_effort": "low",
        "parallel_tool_calls": False,
        "max_completion_tokens": 9,
    }
    assert write_body(make_typed_call(max_output_tokens=9), Wire())["max_tokens"] == 9


def test_parts_are_written_in_openais_forms() -> None:
    """Text alone is a string."""
    parts = (
        TextPart("See"),
        ImagePart("https://x/a.png"),
        ImagePart("data:image/png;base64,AA", "low"),
        AudioPart("AA", "wav"),
        FilePart(url="data:application/pdf;base64,AA", name="a.pdf"),
        FilePart(file_id="file-1"),
    )
    [turn] = write_typed(Message(role="user", parts=parts, name="Ann"))["messages"]
    assert turn == {
        "role": "user",
        "name": "Ann",
        "content": [
            {"type": "text", "text": "See"},
            {"type": "image_url", "image_url": {"url": "https://x/a.png"}},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA", "detail": "low"}},
            {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
            {"type": "file", "file": {"file_data": "data:application/pdf;base64,AA", "filename": "a.pdf"}},
            {"type": "file", "file": {"file_id": "file-1"}},
        ],
    }


def test_a_part_of_an_unknown_type_is_refused() -> None:
    """Leaving it out would change the question; the message stays short."""
    with pytest.raises(InvalidRequest) as refused:
        write_typed(Message(role="user", parts=(UnknownPart("thing" * 100),)))
    assert refused.value.param == "messages"
    assert len(refused.value.message) < 200


def test_a_tool_turn_and_its_result_are_written() -> None:
    """A turn that only calls has a content of null."""
    asked = Message(role="assistant", tool_calls=(ToolCall("a", "f", "{}"), ToolCall("b", "sql", "SELECT", True)))  # noqa: FBT003, a field by place
    told = Message(role="tool", parts=(TextPart("1"), TextPart("2")), tool_call_id="a")
    thought = Message(role="assistant", parts=(TextPart("So"),), reasoning="hm")
    call = make_typed_call(USER, asked, told, thought)
    assert write_body(call, Wire())["messages"][1:] == [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                {"id": "b", "type": "custom", "custom": {"name": "sql", "input": "SELECT"}},
            ],
        },
        {"role": "tool", "content": "12", "tool_call_id": "a"},
        {"role": "assistant", "content": "So", "reasoning_content": "hm"},
    ]
    assert write_body(call, OPENAI_WIRE)["messages"][3] == {"role": "assistant", "content": "So"}


def test_an_empty_turn_has_an_empty_text() -> None:
    """Null is only for a turn that calls."""
    assert write_typed(Message(role="assistant"))["messages"] == [{"role": "assistant", "content": ""}]


def test_tools_are_written_in_openais_forms() -> None:
    """Functions with what they have, custom tools without a schema."""
    tools = (
        Tool(name="f", description="Does", parameters={"type": "object"}, strict=False),
        Tool(name="g"),
        Tool(name="sql", description="Asks", is_custom=True),
    )
    assert write_typed(tools=tools)["tools"] == [
        {
            "type": "function",
            "function": {"name": "f", "description": "Does", "parameters": {"type": "object"}, "strict": False},
        },
        {"type": "function", "function": {"name": "g"}},
        {"type": "custom", "custom": {"name": "sql", "description": "Asks"}},
    ]


@pytest.mark.parametrize(
    ("choice", "written"),
    [
        (ToolChoice("auto"), "auto"),
        (ToolChoice("none"), "none"),
        (ToolChoice("required"), "required"),
        (ToolChoice("required", ("f",)), {"type": "function", "function": {"name": "f"}}),
        (
            ToolChoice("auto", ("f",)),
            {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "f"}}]},
            },
        ),
        (
            ToolChoice("required", ("f", "g")),
            {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "required",
                    "tools": [{"type": "function", "function": {"name": name}} for name in "fg"],
                },
            },
        ),
    ],
)
def test_a_tool_choice_is_written_in_its_form(choice: ToolChoice, written: Any) -> None:
    """One name is that function, several are the allowed ones."""
    assert write_typed(tool_choice=choice)["tool_choice"] == written


@pytest.mark.parametrize(
    ("wanted", "written"),
    [
        (ResponseFormat(kind="text"), {"type": "text"}),
        (ResponseFormat(kind="json_object"), {"type": "json_object"}),
        (
            ResponseFormat(kind="json_schema", schema={"type": "object"}),
            {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}},
        ),
        (
            ResponseFormat(kind="json_schema", name="n", schema={}, strict=True, description="d"),
            {"type": "json_schema", "json_schema": {"name": "n", "schema": {}, "strict": True, "description": "d"}},
        ),
    ],
)
def test_a_response_format_is_written_in_its_form(wanted: ResponseFormat, written: Any) -> None:
    """What was not said is left to the provider."""
    assert write_typed(response_format=wanted)["response_format"] == written


def test_a_call_without_a_target_asks_for_the_clients_model() -> None:
    """There is nothing else to ask for."""
    assert write_body(Call(request_id="t", model="gpt-4o", messages=(USER,)), OPENAI_WIRE)["model"] == "gpt-4o"


# --- what comes back


def test_a_stream_is_decoded() -> None:
    """By the decoder of this wire."""
    decoder = make_provider().decoder(make_call({"stream": True}))
    events = decoder.feed(
        b'data: {"id":"a","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"b"}}]}\n\n'
    )
    assert [type(event) for event in events] == [StreamStarted, TextDelta]


def test_a_whole_answer_is_decoded() -> None:
    """With the provider's key kept out of what an error says."""
    body = b'{"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}]}'
    assert [type(event) for event in make_provider().answer(make_call({}), body)] == [
        StreamStarted,
        TextDelta,
        ChoiceFinished,
    ]
    with pytest.raises(UpstreamFailed) as raised:
        make_provider().answer(make_call({}), b'{"error": {"message": "your secret-key"}}')
    assert raised.value.message == "your [redacted]"


def test_an_http_error_says_what_it_means() -> None:
    """Status, words and headers together."""
    provider = make_provider()
    body = b'{"error": {"message": "Slow down, secret-key", "type": "requests", "code": "rate_limit_exceeded"}}'
    error = provider.error(429, {"retry-after": "3"}, body)
    assert isinstance(error, UpstreamBusy)
    assert (error.message, error.code, error.retry_after_s) == ("Slow down, [redacted]", "rate_limit_exceeded", 3)
    refused = provider.error(400, {}, b'{"error": {"message": "No", "code": "bad", "param": "tools"}}')
    assert isinstance(refused, UpstreamRefused)
    assert (refused.param, refused.retryable) == ("tools", False)


@pytest.mark.parametrize(
    ("status", "word", "retryable"),
    [(500, None, True), (500, "false", False), (500, "no", True), (400, None, False), (400, "true", True)],
)
def test_the_provider_may_say_whether_to_try_again(status: int, word: str | None, *, retryable: bool) -> None:
    """Its word beats what the status would mean."""
    headers = {"x-should-retry": word} if word else {}
    assert make_provider().error(status, headers, b"").retryable is retryable


def test_the_wire_of_a_request_is_named_by_its_dialect() -> None:
    """The dialect and the provider that may take its body over agree on the name."""
    assert make_call({}).source.wire == OPENAI_CHAT


# --- going on with an answer


def go_on(body: dict[str, Any], text: str, model: str = "gpt-4o") -> Call:
    """Return the call that a client's body becomes, to go on with ``text``."""
    return structs.replace(make_call(body, model), continuation=Continuation(way="exact", text=text))


def test_openai_goes_on_with_no_answer() -> None:
    """It would begin another behind it."""
    assert not make_provider().continues(go_on({}, "So"))
    assert make_provider(continuation="exact").continues(go_on({}, "So"))


def test_partial_answer_is_a_trailing_turn() -> None:
    """Where an operator says that it is gone on with, and of the host nothing else is known."""
    request = make_provider(continuation="exact").request(go_on({"temperature": 0.5}, "So "))
    assert body_of(request) == {
        "model": "gpt-4o",
        "messages": [*HELLO["messages"], {"role": "assistant", "content": "So "}],
        "temperature": 0.5,
    }
    assert request.url == "https://api.openai.com/v1/chat/completions"


@pytest.mark.parametrize("content", ["So ", [{"type": "text", "text": "So"}, {"type": "text", "text": " "}]])
def test_turn_that_the_client_began_goes_on_in_itself(content: Any) -> None:
    """Its places are those of the client's messages."""
    own = [*HELLO["messages"], {"role": "assistant", "content": content}]
    written = write_body(go_on({"messages": own}, "be it"), OPENAI_WIRE)
    assert written["messages"] == [*HELLO["messages"], {"role": "assistant", "content": "So be it"}]


@pytest.mark.parametrize("way", ["restart", "anchored"])
def test_other_ways_of_going_on_are_requests_like_any(way: Way) -> None:
    """Who asks in words has put them into the messages."""
    call = go_on({}, "So")
    other = structs.replace(call, continuation=Continuation(way=way, text="So"))
    assert write_body(other, OPENAI_WIRE) == write({})


def test_wire_may_ask_for_it_in_its_own_words() -> None:
    """Keys of the turn, keys of the body, another path."""
    prefill = Prefill(turn={"prefix": True}, body={"goes_on": 1}, models=lambda model: model == "gpt-4o")
    written = write_body(go_on({"goes_on": 0}, "So"), Wire(accepted=frozenset({"messages"}), prefill=prefill))
    assert written == {
        "messages": [*HELLO["messages"], {"role": "assistant", "content": "So", "prefix": True}],
        "goes_on": 1,
    }


def test_echo_of_a_turn_is_dropped_from_a_whole_answer() -> None:
    """As it is from a stream."""
    long = "So be it, said the one, and so it shall be, said the other."
    call = go_on({}, long)
    message = {"role": "assistant", "content": f"{long} And so it was."}
    answer = {"id": "a", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    events = make_provider().answer(call, msgspec.json.encode(answer))
    assert [event.text for event in events if isinstance(event, TextDelta)] == [" And so it was."]
