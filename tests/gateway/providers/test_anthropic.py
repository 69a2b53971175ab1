from __future__ import annotations

import base64
from typing import Any

import msgspec
import pytest

from gateway.core.call import (
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
from gateway.core.continuation import Continuation
from gateway.core.errors import InvalidRequest, UpstreamBusy, UpstreamFailed, UpstreamRefused
from gateway.core.events import ChoiceFinished, TextDelta
from gateway.providers.anthropic import DEFAULT_MAX_TOKENS, Anthropic
from gateway.providers.base import ProviderOptions, UpstreamRequest

PICTURE = base64.b64encode(b"picture").decode()
PNG = f"data:image/png;base64,{PICTURE}"
SONNET = "claude-sonnet-4-5"
OPUS = "claude-opus-4-8"
USER = Message(role="user", parts=(TextPart("Hi"),))
WEATHER = Tool(name="weather", description="Say it", parameters={"type": "object", "properties": {"city": {}}})
TIME = Tool(name="time")
ASKED = Message(
    role="assistant",
    parts=(TextPart("I look."),),
    tool_calls=(ToolCall("call_1", "weather", '{"city": "Oslo"}'), ToolCall("call_2", "time", "")),
)


def make_provider(**options: Any) -> Anthropic:
    """Return a provider with a key."""
    return Anthropic(ProviderOptions(name="anthropic", **{"api_key": "secret-key", **options}))


def make_call(*messages: Message, model: str = SONNET, **fields: Any) -> Call:
    """Return a call for ``model`` that says hello if it says nothing else."""
    target = Target("anthropic", model)
    return Call(request_id="t", model="chat", target=target, messages=messages or (USER,), **fields)


def make_request(*messages: Message, **fields: Any) -> UpstreamRequest:
    """Return the request that a call becomes."""
    return make_provider().request(make_call(*messages, **fields))


def make_body(*messages: Message, **fields: Any) -> dict[str, Any]:
    """Return the body of the request that a call becomes."""
    body: dict[str, Any] = msgspec.json.decode(make_request(*messages, **fields).body)
    return body


def refused_param(*messages: Message, **fields: Any) -> str | None:
    """Return which field of a call is refused."""
    with pytest.raises(InvalidRequest) as refused:
        make_request(*messages, **fields)
    return refused.value.param


def test_a_plain_call_is_model_limit_and_messages() -> None:
    """Nothing is sent that was not asked for, but the limit that Anthropic requires."""
    assert make_body() == {
        "model": SONNET,
        "max_tokens": DEFAULT_MAX_TOKENS,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
    }


def test_a_streaming_call_asks_for_events() -> None:
    """Both the body and the headers say so."""
    request = make_request(stream=True)
    assert msgspec.json.decode(request.body)["stream"] is True
    assert request.headers["accept"] == "text/event-stream"


@pytest.mark.parametrize(
    ("base_url", "expected"),
    [
        (None, "https://api.anthropic.com/v1/messages"),
        ("http://host:1", "http://host:1/v1/messages"),
        ("http://host:1/v1/", "http://host:1/v1/messages"),
        ("http://host:1/anthropic/", "http://host:1/anthropic/v1/messages"),
    ],
)
def test_the_address_has_one_version_in_it(base_url: str | None, expected: str) -> None:
    """A base URL may be given with or without ``/v1``."""
    assert make_provider(base_url=base_url).request(make_call()).url == expected


def test_headers_carry_key_version_and_betas_and_the_configured_ones_win() -> None:
    """A client may ask for betas, the operator for anything."""
    call = make_call(headers={"anthropic-beta": "a,b", "openai-beta": "no"})
    assert make_provider(headers={"anthropic-version": "other"}).request(call).headers == {
        "content-type": "application/json",
        "accept": "application/json",
        "anthropic-version": "other",
        "x-api-key": "secret-key",
        "anthropic-beta": "a,b",
    }
    bare = make_provider(api_key=None).request(make_call()).headers
    assert bare["anthropic-version"] == "2023-06-01"
    assert "x-api-key" not in bare


def test_a_request_shows_no_key_in_its_repr() -> None:
    """Requests are logged by careless people."""
    assert "secret-key" not in repr(make_request())
    assert "secret-key" not in repr(make_provider())


def test_system_and_developer_turns_become_the_system_text_in_their_order() -> None:
    """Wherever they stand, and without tearing the conversation apart."""
    body = make_body(
        Message(role="system", parts=(TextPart("One."),)),
        USER,
        Message(role="developer", parts=(TextPart("Two."),)),
        Message(role="user", parts=(TextPart("there"),)),
    )
    assert body["system"] == "One.\n\nTwo."
    assert [turn["role"] for turn in body["messages"]] == ["user"]
    assert [block["text"] for block in body["messages"][0]["content"]] == ["Hi", "there"]


def test_a_tool_loop_becomes_tool_use_and_one_turn_of_results() -> None:
    """Results of parallel calls stand together, before what the user adds; arguments stay as they were written."""
    body = make_body(
        USER,
        ASKED,
        Message(role="user", parts=(TextPart("Quick!"),)),
        Message(role="tool", tool_call_id="call_1", parts=(TextPart("cold"),)),
        Message(role="tool", tool_call_id="call_2", parts=(TextPart("now"), ImagePart(PNG))),
    )
    assert body["messages"][1]["content"] == [
        {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Oslo"}},
        {"type": "tool_use", "id": "call_2", "name": "time", "input": {}},
    ]
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PICTURE}}
    assert body["messages"][2:] == [
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "call_1", "content": "cold"},
                {"type": "tool_result", "tool_use_id": "call_2", "content": [{"type": "text", "text": "now"}, picture]},
                {"type": "text", "text": "Quick!"},
            ],
        }
    ]
    assert b'{"city": "Oslo"}' in make_request(USER, ASKED, USER).body


def test_ids_of_other_providers_lose_the_letters_that_anthropic_refuses() -> None:
    """A call and its result still match."""
    asked = Message(role="assistant", tool_calls=(ToolCall("functions.f:0", "f", "{}"),))
    turns = make_body(USER, asked, Message(role="tool", tool_call_id="functions.f:0"))["messages"]
    assert turns[1]["content"][0]["id"] == "functions_f_0"
    assert turns[2]["content"] == [{"type": "tool_result", "tool_use_id": "functions_f_0"}]


def test_empty_text_is_left_out() -> None:
    """The API refuses blank blocks and empty turns."""
    blank = Message(role="assistant", parts=(TextPart(" \n"),))
    turns = make_body(USER, blank, Message(role="user", parts=(TextPart(""), TextPart("You?"))))["messages"]
    assert turns == [
        {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "You?"}]},
    ]


def test_an_open_assistant_turn_loses_the_white_space_at_its_end() -> None:
    """The API continues it, but not from white space."""
    begun = Message(role="assistant", parts=(TextPart("Once upon \n"),))
    assert make_body(USER, begun)["messages"][-1] == {
        "role": "assistant",
        "content": [{"type": "text", "text": "Once upon"}],
    }
    assert make_body(USER, begun, USER)["messages"][1]["content"][0]["text"] == "Once upon \n"


def test_pictures_and_documents_go_as_data_url_or_id() -> None:
    """The gateway fetches nothing."""
    parts = (
        ImagePart("https://example.org/a.png"),
        FilePart(url="data:application/pdf;name=a.pdf;base64,QQ==", name="a.pdf"),
        FilePart(url="https://example.org/a.pdf"),
        FilePart(file_id="file_1"),
    )
    assert make_body(Message(role="user", parts=parts))["messages"][0]["content"] == [
        {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}},
        {
            "type": "document",
            "source": {"type": "base64", "media_type": "application/pdf", "data": "QQ=="},
            "title": "a.pdf",
        },
        {"type": "document", "source": {"type": "url", "url": "https://example.org/a.pdf"}},
        {"type": "document", "source": {"type": "file", "file_id": "file_1"}},
    ]


@pytest.mark.parametrize(
    "part",
    [
        AudioPart("QQ==", "wav"),
        UnknownPart("video"),
        FilePart(),
        ImagePart("http://example.org/a.png"),
        ImagePart("data:image/png,plain"),
        ImagePart("data:text/plain;base64,QQ=="),
        FilePart(url="data:text/plain;base64,QQ=="),
    ],
    ids=lambda part: type(part).__name__,
)
def test_a_part_without_an_equal_is_refused_by_its_place(part: Any) -> None:
    """Leaving it out would answer another question."""
    message = Message(role="user", parts=(TextPart("See"), part))
    assert refused_param(USER, message) == "messages[1].content[1]"


@pytest.mark.parametrize(
    ("message", "param"),
    [
        (Message(role="system", parts=(ImagePart(PNG),)), "messages[1].content[0]"),
        (Message(role="assistant", parts=(ImagePart(PNG),)), "messages[1].content[0]"),
        (Message(role="assistant", tool_calls=(ToolCall("a", "f", "{"),)), "messages[1].tool_calls[0]"),
        (Message(role="assistant", tool_calls=(ToolCall("a", "f", "[]"),)), "messages[1].tool_calls[0]"),
        (Message(role="assistant", tool_calls=(ToolCall("a", "f", "[" * 9999),)), "messages[1].tool_calls[0]"),
        (Message(role="assistant", tool_calls=(ToolCall("a", "f", "x", is_custom=True),)), "messages[1].tool_calls[0]"),
        (Message(role="assistant", tool_calls=(ToolCall("", "f", "{}"),)), "messages[1].tool_calls[0].id"),
        (Message(role="tool"), "messages[1].tool_call_id"),
    ],
)
def test_a_turn_that_cannot_be_said_is_refused_by_its_place(message: Message, param: str) -> None:
    """The error names what to mend."""
    assert refused_param(USER, message) == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"choice_count": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"tools": (WEATHER, Tool(name="sh", is_custom=True))}, "tools[1]"),
        ({"tool_choice": ToolChoice("required")}, "tool_choice"),
        ({"reasoning_effort": "extreme"}, "reasoning_effort"),
        ({"model": "claude-opus-5-5", "tools": (TIME,), "tool_choice": ToolChoice("required")}, "tool_choice"),
    ],
)
def test_what_anthropic_cannot_do_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    """Before a token is paid for."""
    assert refused_param(**fields) == param


def test_a_call_without_anything_to_say_is_refused() -> None:
    """A system text alone is no question."""
    assert refused_param(Message(role="system", parts=(TextPart("Be brief."),))) == "messages"


def test_tools_have_a_schema_always() -> None:
    """A tool without parameters takes an empty object; ``strict`` goes where it was set."""
    tools = (WEATHER, TIME, Tool(name="loose", parameters={"properties": {}}, strict=True))
    assert make_body(tools=tools)["tools"] == [
        {
            "name": "weather",
            "description": "Say it",
            "input_schema": {"type": "object", "properties": {"city": {}}},
        },
        {"name": "time", "input_schema": {"type": "object", "properties": {}}},
        {"name": "loose", "input_schema": {"type": "object", "properties": {}}, "strict": True},
    ]


@pytest.mark.parametrize(
    ("choice", "parallel", "expected", "offered"),
    [
        (None, None, None, ["weather", "time"]),
        (ToolChoice("auto"), None, {"type": "auto"}, ["weather", "time"]),
        (ToolChoice("none"), False, {"type": "none"}, ["weather", "time"]),
        (ToolChoice("required"), True, {"type": "any"}, ["weather", "time"]),
        (ToolChoice("required", ("time",)), None, {"type": "tool", "name": "time"}, ["weather", "time"]),
        (ToolChoice("required", ("time", "weather")), None, {"type": "any"}, ["weather", "time"]),
        (ToolChoice("auto", ("time",)), None, {"type": "auto"}, ["time"]),
        (None, False, {"type": "auto", "disable_parallel_tool_use": True}, ["weather", "time"]),
        (ToolChoice("required"), False, {"type": "any", "disable_parallel_tool_use": True}, ["weather", "time"]),
    ],
)
def test_the_choice_of_tools_is_said_in_anthropics_words(
    *,
    choice: ToolChoice | None,
    parallel: bool | None,
    expected: Any,
    offered: list[str],
) -> None:
    """Some of the tools only: the others are not offered."""
    body = make_body(tools=(WEATHER, TIME), tool_choice=choice, parallel_tool_calls=parallel)
    assert body.get("tool_choice") == expected
    assert [tool["name"] for tool in body["tools"]] == offered


def test_no_tools_means_no_choice_of_tools() -> None:
    """The API refuses a choice of nothing."""
    body = make_body(tool_choice=ToolChoice("auto"), parallel_tool_calls=False)
    assert "tool_choice" not in body


def test_a_schema_is_asked_for_natively_and_an_object_in_words() -> None:
    """There is no JSON mode without a schema."""
    schema = {"type": "object", "properties": {}}
    body = make_body(response_format=ResponseFormat(kind="json_schema", schema=schema))
    assert body["output_config"] == {"format": {"type": "json_schema", "schema": schema}}
    system = Message(role="system", parts=(TextPart("Be brief."),))
    wanted = ResponseFormat(kind="json_object")
    assert make_body(system, USER, response_format=wanted)["system"].startswith(
        "Be brief.\n\nAnswer with a single JSON"
    )
    assert make_body(response_format=wanted)["system"].startswith("Answer with a single JSON")


def test_limits_stops_and_the_user_are_passed_on() -> None:
    """The user only as the client named it."""
    body = make_body(max_output_tokens=7, stop=("a", "b"), source=Source("openai.chat", {"user": "u1"}))
    assert body["max_tokens"] == 7
    assert body["stop_sequences"] == ["a", "b"]
    assert body["metadata"] == {"user_id": "u1"}
    assert make_body(model="claude-3-haiku-20240307")["max_tokens"] == 4096
    assert "metadata" not in make_body(source=Source("openai.chat", {"user": 1}))


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(temperature=0.5, top_k=3), {"temperature": 0.5, "top_k": 3}),
        (Sampling(temperature=1.7), {"temperature": 1.0}),
        (Sampling(top_p=0.5), {"top_p": 0.5}),
        (Sampling(temperature=0.2, top_p=0.5), {"temperature": 0.2}),
        (Sampling(temperature=1, top_p=0.5), {"top_p": 0.5}),
        (Sampling(seed=1, frequency_penalty=1, presence_penalty=1), {}),
    ],
)
def test_sampling_is_fitted_to_what_anthropic_takes(sampling: Sampling, expected: dict[str, float]) -> None:
    """Nothing that would be refused goes out."""
    body = make_body(sampling=sampling)
    keys = ("temperature", "top_p", "top_k", "seed", "frequency_penalty", "presence_penalty")
    assert {key: body[key] for key in keys if key in body} == expected


@pytest.mark.parametrize(
    "model",
    [OPUS, "us.anthropic.claude-opus-4-7-v1:0", "claude-sonnet-5", "claude-haiku-5.5", "claude-mythos-preview"],
)
def test_models_that_refuse_sampling_get_none(model: str) -> None:
    """Whatever their host calls them."""
    assert "temperature" not in make_body(model=model, sampling=Sampling(temperature=0.5))


@pytest.mark.parametrize("model", [SONNET, "claude-3-5-sonnet-20241022", "claude-opus-4@20250514", "glm-5.2"])
def test_models_that_take_sampling_get_it(model: str) -> None:
    """Also those that are not Anthropic's."""
    assert make_body(model=model, sampling=Sampling(temperature=0.5))["temperature"] == 0.5


def test_api_versions_without_sampling_get_none() -> None:
    """From 2026-10-21 on there are no such parameters."""
    call = make_call(sampling=Sampling(temperature=0.5, top_p=0.5, top_k=5))
    body = msgspec.json.decode(make_provider(api_version="2026-10-21").request(call).body)
    assert not {"temperature", "top_p", "top_k"} & body.keys()


@pytest.mark.parametrize(
    ("model", "effort", "limit", "thinking", "native", "max_tokens"),
    [
        (SONNET, None, None, None, None, 8192),
        (SONNET, "high", None, {"type": "enabled", "budget_tokens": 16384}, None, 24576),
        (SONNET, "high", 4000, {"type": "enabled", "budget_tokens": 2000}, None, 4000),
        (SONNET, "high", 1500, {"type": "enabled", "budget_tokens": 1024}, None, 1500),
        (SONNET, "high", 1024, None, None, 1024),
        (SONNET, "none", None, {"type": "disabled"}, None, 8192),
        ("claude-3-7-sonnet-latest", "low", None, {"type": "enabled", "budget_tokens": 2048}, None, 10240),
        ("claude-3-5-haiku-latest", "high", None, None, None, 8192),
        ("glm-5.2", "high", None, None, None, 8192),
        ("claude-opus-4.6", "xhigh", None, {"type": "adaptive"}, "high", 8192),
        (OPUS, "xhigh", 100, {"type": "adaptive"}, "xhigh", 100),
        (OPUS, "minimal", None, {"type": "adaptive"}, "low", 8192),
        (OPUS, "none", None, {"type": "disabled"}, None, 8192),
        ("claude-sonnet-5-5", "none", None, {"type": "between_tools"}, None, 8192),
        ("claude-fable-5-1", "none", None, None, "low", 8192),
    ],
)
def test_effort_becomes_what_the_model_calls_it(
    *, model: str, effort: str | None, limit: int | None, thinking: Any, native: str | None, max_tokens: int
) -> None:
    """A budget is at least 1024, and under the limit."""
    body = make_body(model=model, reasoning_effort=effort, max_output_tokens=limit)
    assert body.get("thinking") == thinking
    assert body.get("output_config", {}).get("effort") == native
    assert body["max_tokens"] == max_tokens


def test_a_thinking_model_gets_no_temperature() -> None:
    """The API refuses the two together; with thinking off there is no reason to."""
    sampling = Sampling(temperature=0.3)
    assert "temperature" not in make_body(reasoning_effort="low", sampling=sampling)
    assert make_body(reasoning_effort="none", sampling=sampling)["temperature"] == 0.3


@pytest.mark.parametrize("model", [SONNET, OPUS])
@pytest.mark.parametrize(
    ("messages", "fields"),
    [
        ((USER,), {"tools": (TIME,), "tool_choice": ToolChoice("required")}),
        ((USER, Message(role="assistant", parts=(TextPart("Once"),))), {}),
    ],
)
def test_thinking_is_left_off_where_it_would_be_refused(
    model: str, messages: tuple[Message, ...], fields: dict[str, Any]
) -> None:
    """A forced tool and an open turn outweigh how long to think."""
    assert "thinking" not in make_body(*messages, model=model, reasoning_effort="high", **fields)


def test_a_budget_is_left_off_inside_a_tool_loop() -> None:
    """Its thinking blocks would have to be sent back; adaptive thinking does not need them."""
    messages = (USER, ASKED, Message(role="tool", tool_call_id="call_1"), Message(role="tool", tool_call_id="call_2"))
    assert "thinking" not in make_body(*messages, reasoning_effort="high")
    assert make_body(*messages, model=OPUS, reasoning_effort="high")["thinking"] == {"type": "adaptive"}


def error_body(kind: str, message: str, **details: Any) -> bytes:
    """Return an error as Anthropic writes it."""
    error = {"type": kind, "message": message, "details": details or None}
    return msgspec.json.encode({"type": "error", "error": error, "request_id": "req_1"})


def test_an_overload_is_busy_and_may_pass() -> None:
    """529 is Anthropic's own status."""
    error = make_provider().error(529, {"x-should-retry": "true"}, error_body("overloaded_error", "Overloaded"))
    assert isinstance(error, UpstreamBusy)
    assert (error.retryable, error.error_type, error.status_code) == (True, "overloaded", 503)


def test_a_rate_limit_says_how_long_to_wait() -> None:
    """``retry-after`` is kept."""
    error = make_provider().error(429, {"retry-after": "13"}, error_body("rate_limit_error", "Slow down"))
    assert (error.retryable, error.retry_after_s, error.error_type) == (True, 13.0, "rate_limited")


@pytest.mark.parametrize("code", ["enforced_spend_limit_reached", "contract_spend_limit_reached"])
def test_a_spend_limit_is_final(code: str) -> None:
    """Waiting does not bring money."""
    error = make_provider().error(429, {}, error_body("rate_limit_error", "No", error_code=code))
    assert isinstance(error, UpstreamRefused)
    assert (error.retryable, error.code) == (False, code)


def test_a_ramp_limit_passes() -> None:
    """Not every code is about money."""
    error = make_provider().error(429, {}, error_body("rate_limit_error", "No", error_code="ramp_limit_exceeded"))
    assert (error.retryable, error.code) == (True, "ramp_limit_exceeded")


def test_a_prompt_that_is_too_long_is_a_context_length() -> None:
    """A model with more room may take it."""
    said = error_body("invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum")
    error = make_provider().error(400, {"x-should-retry": "false"}, said)
    assert (error.error_type, error.retryable, error.status_code) == ("context_length", False, 400)
    assert error.code == "invalid_request_error"


def test_the_provider_decides_about_a_retry() -> None:
    """``x-should-retry`` beats the rule of thumb."""
    assert not make_provider().error(500, {"x-should-retry": "false"}, b"").retryable
    assert make_provider().error(500, {}, error_body("api_error", "Oops")).retryable


def test_an_error_without_a_body_still_says_its_status() -> None:
    """Proxies answer in HTML."""
    error = make_provider().error(502, {}, b"<html>")
    assert isinstance(error, UpstreamFailed)
    assert "502" in error.message


def test_an_error_shows_no_key() -> None:
    """Not even when the provider quotes it."""
    error = make_provider().error(400, {}, error_body("invalid_request_error", "bad secret-key\nhere"))
    assert error.message == "bad [redacted] here"


def test_the_provider_reads_streams_and_answers() -> None:
    """The readers themselves are tested beside their module."""
    answer = {"id": "m", "content": [{"type": "text", "text": "Hi"}], "stop_reason": "end_turn"}
    events = make_provider().answer(make_call(), msgspec.json.encode(answer))
    assert [type(event) for event in events[1:]] == [TextDelta, ChoiceFinished]
    assert not make_provider().decoder(make_call()).is_complete


# --- going on with an answer


def go_on(text: str, *messages: Message, model: str = SONNET, **fields: Any) -> Call:
    """Return a call that is to go on with ``text``."""
    return make_call(*messages, model=model, continuation=Continuation(way="exact", text=text), **fields)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("claude-opus-4-5", True),
        ("claude-sonnet-4-5-20250929", True),
        ("claude-haiku-4-5", True),
        ("claude-sonnet-4-20250514", True),
        ("claude-3-haiku-20240307", True),
        ("us.anthropic.claude-3-7-sonnet-20250219-v1:0", True),
        ("claude-opus-4-6", False),
        ("claude-sonnet-5", False),
        ("claude-haiku-5-5", False),
        ("claude-fable-5-1", False),
        ("claude-opus-latest", False),
        ("muse-spark-1.1", False),
    ],
)
def test_models_up_to_4_5_go_on_with_an_open_turn(model: str, *, expected: bool) -> None:
    """Every later one wants the last turn to be the user's; of other vendors' models nothing is known."""
    assert make_provider().continues(go_on("So", model=model)) is expected


def test_operators_word_on_continuation_beats_the_model() -> None:
    """A host may have another Claude behind the name."""
    assert make_provider(continuation="exact").continues(go_on("So", model="claude-opus-4-6"))
    assert not make_provider(continuation="off").continues(go_on("So"))


def test_partial_answer_is_an_open_turn_without_white_space_at_its_end() -> None:
    """With the client's own beginning in it, and with the limit that is left."""
    body = msgspec.json.decode(make_provider().request(go_on("be it \n", max_output_tokens=7)).body)
    assert body["messages"][-1] == {"role": "assistant", "content": [{"type": "text", "text": "be it"}]}
    assert body["max_tokens"] == 7
    began = Message(role="assistant", parts=(TextPart("So "),))
    body = msgspec.json.decode(make_provider().request(go_on(" be it", USER, began)).body)
    assert body["messages"][1:] == [{"role": "assistant", "content": [{"type": "text", "text": "So be it"}]}]


def test_partial_answer_of_white_space_is_no_turn() -> None:
    """The API refuses one that is empty; the request is the client's own."""
    assert make_provider().request(go_on("\n ")).body == make_request().body


@pytest.mark.parametrize("model", [SONNET, "claude-opus-4-6"])
def test_thinking_is_off_when_an_answer_is_gone_on_with(model: str) -> None:
    """The turn would have to begin with a thinking block, whose signature nobody has."""
    body = msgspec.json.decode(make_provider().request(go_on("So", model=model, reasoning_effort="high")).body)
    assert "thinking" not in body
    assert "thinking" in make_body(model=model, reasoning_effort="high")
