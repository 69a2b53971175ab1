from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from gateway.core.call import (
    AudioPart,
    Call,
    FilePart,
    ImagePart,
    Message,
    Part,
    ResponseFormat,
    Sampling,
    Target,
    TextPart,
    Tool,
    ToolCall,
    ToolChoice,
    UnknownPart,
)
from gateway.core.continuation import Checkpoint, Continuation
from gateway.core.errors import InvalidRequest, StreamInterrupted, UpstreamBusy
from gateway.core.events import ChoiceFinished, StreamStarted, TextDelta, UsageReported
from gateway.providers.base import ProviderOptions
from gateway.providers.google import FOREIGN_SIGNATURE, Google

HELLO = Message(role="user", parts=(TextPart("Hello"),))
WEATHER = Tool(name="weather", description="Look outside", parameters={"type": "object"})


def make_google(base_url: str | None = None, **options: Any) -> Google:
    """Return a provider with a fake key."""
    return Google(ProviderOptions(name="google", base_url=base_url, api_key="fake-key", **options))


def make_call(*messages: Message, model: str = "gemini-2.5-flash", **fields: Any) -> Call:
    """Return a call of ``messages``."""
    return Call(request_id="r1", target=Target("google", model), messages=messages or (HELLO,), **fields)


def write(call: Call) -> dict[str, Any]:
    """Return the body that ``call`` becomes."""
    body = json.loads(make_google().request(call).body)
    assert isinstance(body, dict)
    return body


def config(**fields: Any) -> Any:
    """Return the ``generationConfig`` of a call with ``fields``."""
    return write(make_call(**fields)).get("generationConfig")


def parts(*given: Part) -> Any:
    """Return what a user's ``given`` parts become."""
    return write(make_call(Message(role="user", parts=given)))["contents"][0]["parts"]


def refuse(call: Call) -> str | None:
    """Return the field that the refusal of ``call`` names."""
    with pytest.raises(InvalidRequest) as caught:
        make_google().request(call)
    return caught.value.param


@pytest.mark.parametrize(
    ("base_url", "stream", "url"),
    [
        (None, True, "https://generativelanguage.googleapis.com/v1beta/models/m-1:streamGenerateContent?alt=sse"),
        (None, False, "https://generativelanguage.googleapis.com/v1beta/models/m-1:generateContent"),
        ("http://127.0.0.1:1/", False, "http://127.0.0.1:1/v1beta/models/m-1:generateContent"),
        ("http://h/v1beta", False, "http://h/v1beta/models/m-1:generateContent"),
        ("http://h/v1", False, "http://h/v1/models/m-1:generateContent"),
        ("http://h/v1beta1/", False, "http://h/v1beta1/models/m-1:generateContent"),
        (
            "https://aiplatform.googleapis.com/v1/projects/p/locations/l/publishers/google",
            False,
            "https://aiplatform.googleapis.com/v1/projects/p/locations/l/publishers/google/models/m-1:generateContent",
        ),
    ],
)
def test_request_goes_to_the_model_under_its_base_url(base_url: str | None, stream: bool, url: str) -> None:  # noqa: FBT001, a column of the table
    """A base URL with a version of its own keeps it."""
    assert make_google(base_url).request(make_call(model="m-1", stream=stream)).url == url


def test_model_name_is_quoted_and_its_prefix_tolerated() -> None:
    """No model name can leave its place in the path."""
    assert "/models/a%2F..%3Fb:generate" in make_google().request(make_call(model="models/a/..?b")).url


def test_configured_version_replaces_the_default() -> None:
    """``api_version`` says which version of the API is spoken."""
    assert "/v1alpha/models/" in make_google(api_version="v1alpha").request(make_call()).url


def test_key_goes_into_googles_own_header() -> None:
    """The Gemini API takes a key, and says what it is asked for."""
    headers = make_google().request(make_call(stream=True)).headers
    assert headers["x-goog-api-key"] == "fake-key"
    assert headers["accept"] == "text/event-stream"
    assert make_google().request(make_call()).headers["accept"] == "application/json"


def test_vertex_takes_a_bearer_token() -> None:
    """Vertex knows OAuth only."""
    headers = make_google("https://eu-aiplatform.googleapis.com/v1/publishers/google").request(make_call()).headers
    assert headers["authorization"] == "Bearer fake-key"
    assert "x-goog-api-key" not in headers


def test_configured_headers_win() -> None:
    """What the configuration says of headers comes last."""
    provider = Google(ProviderOptions(name="google", headers={"accept": "x/y", "x-goog-user-project": "p"}))
    headers = provider.request(make_call()).headers
    assert headers == {"content-type": "application/json", "accept": "x/y", "x-goog-user-project": "p"}


def test_conversation_becomes_alternating_turns() -> None:
    """System turns are taken apart, turns of one side that follow each other become one."""
    body = write(
        make_call(
            Message(role="system", parts=(TextPart("Be brief."),)),
            HELLO,
            Message(role="user", parts=(TextPart("Again"),)),
            Message(role="assistant", parts=(TextPart("Hi"),)),
            Message(role="developer", parts=(TextPart("Be kind."),)),
            Message(role="assistant"),
        )
    )
    assert body["systemInstruction"] == {"parts": [{"text": "Be brief.\n\nBe kind."}]}
    assert body["contents"] == [
        {"role": "user", "parts": [{"text": "Hello"}, {"text": "Again"}]},
        {"role": "model", "parts": [{"text": "Hi"}]},
    ]


def test_instructions_that_stand_alone_are_said_by_the_user() -> None:
    """The API refuses a request without contents."""
    body = write(make_call(Message(role="system", parts=(TextPart("Sing."),))))
    assert body == {"contents": [{"role": "user", "parts": [{"text": "Sing."}]}]}


def test_turn_without_a_word_is_left_out() -> None:
    """A turn must have parts; the answer that said nothing is none."""
    contents = write(make_call(HELLO, Message(role="assistant"), HELLO))["contents"]
    assert contents == [{"role": "user", "parts": [{"text": "Hello"}, {"text": "Hello"}]}]


def tool_turns(arguments: str, result: str) -> tuple[Message, ...]:
    """Return a conversation with one call and its result."""
    return (
        HELLO,
        Message(role="assistant", tool_calls=(ToolCall("c1", "weather", arguments),)),
        Message(role="tool", parts=(TextPart(result),), tool_call_id="c1"),
    )


def test_call_and_result_are_objects_digit_for_digit() -> None:
    """The result has the name of the function that was called, and numbers are not rounded on the way."""
    big = '{"n": 12345678901234567890.10}'
    request = make_google().request(make_call(*tool_turns(big, big)))
    contents = json.loads(request.body)["contents"]
    assert [content["role"] for content in contents] == ["user", "model", "user"]
    assert contents[1]["parts"][0]["functionCall"]["id"] == "c1"
    assert contents[2]["parts"][0]["functionResponse"]["name"] == "weather"
    assert request.body.count(b"12345678901234567890.10") == 2


@pytest.mark.parametrize(("text", "value"), [("rain", "rain"), ("[1]", "[1]"), ('{"a": ', '{"a": ')])
def test_arguments_and_results_that_are_no_objects_are_put_into_one(text: str, value: str) -> None:
    """The API takes objects only."""
    contents = write(make_call(*tool_turns(text, text)))["contents"]
    assert contents[1]["parts"][0]["functionCall"]["args"] == {"arguments": value}
    assert contents[2]["parts"][0]["functionResponse"]["response"] == {"result": value}


def test_call_without_arguments_or_id_is_written_without() -> None:
    """Empty arguments are an empty object; a result may name its function itself."""
    call = Message(role="assistant", tool_calls=(ToolCall("", "ring", ""),))
    contents = write(make_call(HELLO, call, Message(role="tool", name="ring", parts=(TextPart("{}"),))))["contents"]
    assert contents[1]["parts"] == [{"functionCall": {"name": "ring", "args": {}}}]
    assert contents[2]["parts"] == [{"functionResponse": {"name": "ring", "response": {}}}]


def test_result_without_its_call_is_refused() -> None:
    """The API knows a result by its function's name, which must stand somewhere."""
    assert refuse(make_call(HELLO, Message(role="tool", tool_call_id="gone"))) == "messages[1].tool_call_id"


@pytest.mark.parametrize(
    ("model", "is_signed"),
    [("gemini-2.5-pro", False), ("gemini-3-pro-preview", True), ("gemini-flash-latest", True), ("gemma-3", False)],
)
def test_earlier_calls_are_signed_for_models_that_want_it(model: str, is_signed: bool) -> None:  # noqa: FBT001, a column of the table
    """Gemini 3 and later refuse a call of an earlier turn that has no signature."""
    part = write(make_call(*tool_turns("{}", "{}"), model=model))["contents"][1]["parts"][0]
    assert part.get("thoughtSignature") == (FOREIGN_SIGNATURE if is_signed else None)


@pytest.mark.parametrize(
    ("part", "written"),
    [
        (ImagePart("data:image/PNG;base64,QUJD"), {"inlineData": {"mimeType": "image/png", "data": "QUJD"}}),
        (
            ImagePart("https://h/a.webp?x=1"),
            {"fileData": {"mimeType": "image/webp", "fileUri": "https://h/a.webp?x=1"}},
        ),
        (ImagePart("gs://b/a"), {"fileData": {"mimeType": "image/jpeg", "fileUri": "gs://b/a"}}),
        (AudioPart("QUJD", "mp3"), {"inlineData": {"mimeType": "audio/mp3", "data": "QUJD"}}),
        (FilePart("data:text/plain;x=y;base64,QQ=="), {"inlineData": {"mimeType": "text/plain", "data": "QQ=="}}),
        (
            FilePart("https://h/a", name="b.PDF"),
            {"fileData": {"mimeType": "application/pdf", "fileUri": "https://h/a"}},
        ),
        (FilePart("https://h/a"), {"fileData": {"fileUri": "https://h/a"}}),
        (FilePart(file_id="https://g/v1beta/files/x"), {"fileData": {"fileUri": "https://g/v1beta/files/x"}}),
    ],
)
def test_media_go_inline_or_by_uri(part: Part, written: Mapping[str, Any]) -> None:
    """Nothing is fetched: a type that is not said is read off the name."""
    assert parts(part) == [written]


@pytest.mark.parametrize(
    "part",
    [ImagePart("http://h/a.png"), ImagePart("data:,x"), FilePart(file_id="file-1"), FilePart(), UnknownPart("refusal")],
)
def test_part_that_google_cannot_take_is_refused(part: Part) -> None:
    """The refusal names the place of the part."""
    assert refuse(make_call(Message(role="user", parts=(TextPart("a"), part)))) == "messages[0].content[1]"


def test_tools_are_declared_with_their_schema() -> None:
    """A schema is handed on as the JSON schema that it is; what is not said is left out."""
    body = write(make_call(tools=(WEATHER, Tool(name="ring"))))
    assert body["tools"] == [
        {
            "functionDeclarations": [
                {"name": "weather", "description": "Look outside", "parametersJsonSchema": {"type": "object"}},
                {"name": "ring"},
            ]
        }
    ]
    assert "toolConfig" not in body


@pytest.mark.parametrize(
    ("choice", "written"),
    [
        (ToolChoice("auto"), {"mode": "AUTO"}),
        (ToolChoice("none"), {"mode": "NONE"}),
        (ToolChoice("required"), {"mode": "ANY"}),
        (ToolChoice("required", ("weather",)), {"mode": "ANY", "allowedFunctionNames": ["weather"]}),
        (ToolChoice("auto", ("weather",)), {"mode": "VALIDATED", "allowedFunctionNames": ["weather"]}),
    ],
)
def test_tool_choice_becomes_a_mode(choice: ToolChoice, written: Mapping[str, Any]) -> None:
    """Each choice has a mode, and some of them names."""
    body = write(make_call(tools=(WEATHER,), tool_choice=choice))
    assert body["toolConfig"] == {"functionCallingConfig": written}


def test_tool_choice_without_tools_is_left_out() -> None:
    """There is nothing to choose from."""
    assert "toolConfig" not in write(make_call(tool_choice=ToolChoice("auto")))


def test_custom_tool_is_refused() -> None:
    """Gemini has no tools that take free text."""
    assert refuse(make_call(tools=(WEATHER, Tool(name="grep", is_custom=True)))) == "tools[1]"


def test_log_probabilities_are_refused() -> None:
    """They could not be told in the answer's shape."""
    assert refuse(make_call(logprobs=True)) == "logprobs"


def test_sampling_and_limits_are_written_in_googles_words() -> None:
    """Every parameter that has an equal is sent; an empty configuration is not."""
    sampling = Sampling(temperature=0.5, top_p=0.9, top_k=3, seed=7, frequency_penalty=0.1, presence_penalty=0.2)
    assert config(sampling=sampling, max_output_tokens=9, stop=("a", "b"), choice_count=2) == {
        "temperature": 0.5,
        "topP": 0.9,
        "topK": 3,
        "seed": 7,
        "frequencyPenalty": 0.1,
        "presencePenalty": 0.2,
        "maxOutputTokens": 9,
        "stopSequences": ["a", "b"],
        "candidateCount": 2,
    }
    assert config(parallel_tool_calls=False) is None


@pytest.mark.parametrize(
    ("wanted", "written"),
    [
        (ResponseFormat(kind="text"), None),
        (ResponseFormat(kind="json_object"), {"responseMimeType": "application/json"}),
        (
            ResponseFormat(kind="json_schema", schema={"type": "array"}),
            {"responseMimeType": "application/json", "responseJsonSchema": {"type": "array"}},
        ),
    ],
)
def test_response_format_becomes_a_media_type(wanted: ResponseFormat, written: Mapping[str, Any] | None) -> None:
    """JSON is asked for by its type, a schema goes with it."""
    assert config(response_format=wanted) == written


@pytest.mark.parametrize(
    ("model", "effort", "thinking"),
    [
        ("gemini-3-flash-preview", "none", {"includeThoughts": False, "thinkingLevel": "MINIMAL"}),
        ("gemini-3-flash-preview", "medium", {"includeThoughts": True, "thinkingLevel": "MEDIUM"}),
        ("gemini-3-flash-preview", "auto", {"includeThoughts": True}),
        ("gemini-3-pro-preview", "medium", {"includeThoughts": True, "thinkingLevel": "HIGH"}),
        ("gemini-3.1-pro-preview", "medium", {"includeThoughts": True, "thinkingLevel": "MEDIUM"}),
        ("gemini-3.8-flash", "minimal", {"includeThoughts": True, "thinkingLevel": "LOW"}),
        ("gemini-4-argon", "max", {"includeThoughts": True, "thinkingLevel": "HIGH"}),
        ("gemini-flash-latest", "low", {"includeThoughts": True, "thinkingLevel": "LOW"}),
        ("gemini-2.5-flash", "none", {"includeThoughts": False, "thinkingBudget": 0}),
        ("gemini-2.5-pro", "none", {"includeThoughts": False, "thinkingBudget": 128}),
        ("gemini-2.5-pro", "auto", {"includeThoughts": True, "thinkingBudget": -1}),
        ("gemini-2.5-flash", "high", {"includeThoughts": True, "thinkingBudget": 24576}),
        ("gemini-2.0-flash", "high", None),
        ("gemma-3-27b-it", "high", None),
    ],
)
def test_effort_becomes_what_the_model_understands(model: str, effort: str, thinking: Mapping[str, Any] | None) -> None:
    """A level from Gemini 3 on, a budget for 2.5, nothing before; each model within its limits."""
    written = config(model=model, reasoning_effort=effort)
    assert (written or {}).get("thinkingConfig") == thinking


def test_unknown_effort_is_refused() -> None:
    """A typing error does not go unheard."""
    assert refuse(make_call(reasoning_effort="hihg")) == "reasoning_effort"


def test_whole_answer_shares_one_frame() -> None:
    """All events of an answer come from the one document that it is."""
    body = json.dumps(
        {
            "candidates": [{"content": {"parts": [{"text": "Hi"}], "role": "model"}, "finishReason": "STOP"}],
            "usageMetadata": {"promptTokenCount": 2, "candidatesTokenCount": 1},
            "responseId": "a1",
        },
        indent=2,
    ).encode()
    events = make_google().answer(make_call(), body)
    assert [type(event) for event in events] == [StreamStarted, TextDelta, UsageReported, ChoiceFinished]
    assert {event.frame and event.frame.data for event in events} == {body}
    assert {event.frame and event.frame.event_count for event in events} == {4}


@pytest.mark.parametrize("body", [b"", b"{", b"<html>", b'{"candidates": [{}]}', b"[]"])
def test_answer_that_is_not_whole_is_an_interruption(body: bytes) -> None:
    """What does not say that it has ended has not."""
    with pytest.raises(StreamInterrupted):
        make_google().answer(make_call(), body)


def test_error_inside_a_200_is_the_error_that_it_says() -> None:
    """Nothing had begun, so it is no interruption."""
    with pytest.raises(UpstreamBusy) as caught:
        make_google().answer(make_call(), b'{"error": {"code": 503, "message": "busy", "status": "UNAVAILABLE"}}')
    assert caught.value.code == "unavailable"


def test_http_error_is_read_with_its_headers() -> None:
    """How long to wait may stand in either; the key is kept back."""
    body = b'{"error": {"code": 503, "message": "busy, fake-key", "status": "UNAVAILABLE"}}'
    error = make_google().error(503, {"retry-after": "3"}, body)
    assert isinstance(error, UpstreamBusy)
    assert (error.message, error.code, error.retry_after_s) == ("busy, [redacted]", "unavailable", 3)


def go_on(text: str, *messages: Message, token_for: str | None = None, **fields: Any) -> Call:
    """Return a call that is to go on with ``text``, perhaps from a token that a target gave in the middle of it."""
    checkpoint = None
    if token_for is not None:
        checkpoint = Checkpoint(target=token_for, token="t1", character_count=len(text) // 2)
    continuation = Continuation(way="exact", text=text, checkpoint=checkpoint, limit_tokens=fields.pop("limit", None))
    return make_call(*messages, continuation=continuation, **fields)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("gemini-2.0-flash", True),
        ("gemini-2.5-pro", True),
        ("models/gemini-2.5-flash-lite", True),
        ("gemini-3-pro-preview", True),
        ("gemini-3.1-pro", True),
        ("gemini-3.5-flash", True),
        ("gemini-pro-latest", True),
        ("gemini-3.5-flash-lite", False),
        ("gemini-3.6-flash", False),
        ("gemini-3.8-flash", False),
        ("gemini-4-argon", False),
        ("gemini-flash-latest", False),
        ("gemma-3", False),
    ],
)
def test_models_up_to_3_5_go_on_with_a_turn_of_their_own(model: str, *, expected: bool) -> None:
    """Later ones want the last turn to be the user's."""
    assert make_google().continues(go_on("So", model=model)) is expected


@pytest.mark.parametrize(
    ("continuation", "target", "expected"),
    [
        ("auto", "google/gemini-4-argon", True),
        ("exact", "google/gemini-4-argon", True),
        ("anchored", "google/gemini-4-argon", False),
        ("off", "google/gemini-4-argon", False),
        ("auto", "google/gemini-4-carbon", False),
        ("auto", "other/gemini-4-argon", False),
    ],
)
def test_model_goes_on_from_a_token_of_its_own(continuation: str, target: str, *, expected: bool) -> None:
    """Another's is no good for it."""
    call = go_on("abcd", model="gemini-4-argon", token_for=target)
    assert make_google(continuation=continuation).continues(call) is expected


def test_partial_answer_is_the_models_last_turn() -> None:
    """With the client's own beginning in it, white space at the end and all."""
    began = Message(role="assistant", parts=(TextPart("So "),))
    user = {"role": "user", "parts": [{"text": "Hello"}]}
    assert write(go_on("be it "))["contents"] == [user, {"role": "model", "parts": [{"text": "be it "}]}]
    assert write(go_on("be it ", HELLO, began))["contents"] == [
        user,
        {"role": "model", "parts": [{"text": "So be it "}]},
    ]


def test_partial_answer_to_instructions_alone_stands_behind_them() -> None:
    """A conversation begins with the user."""
    system = Message(role="system", parts=(TextPart("Speak"),))
    assert write(go_on("So", system)) == {
        "contents": [{"role": "user", "parts": [{"text": "Speak"}]}, {"role": "model", "parts": [{"text": "So"}]}]
    }


def test_from_a_token_the_very_same_request_is_sent() -> None:
    """Without the partial answer, and with the limit for all of it: that is the provider's to reduce."""
    plain: dict[str, Any] = {"model": "gemini-4-argon", "tools": (WEATHER,)}
    call = go_on("abcd", token_for="google/gemini-4-argon", max_output_tokens=3, limit=9, **plain)
    assert write(call) == {**write(make_call(max_output_tokens=9, **plain)), "continuationToken": "t1"}
    unlimited = go_on("abcd", token_for="google/gemini-4-argon", **plain)
    assert write(unlimited) == {**write(make_call(**plain)), "continuationToken": "t1"}


def test_token_of_another_target_is_not_sent() -> None:
    """The partial answer is shown instead."""
    body = write(go_on("abcd", token_for="other/gemini-2.5-flash"))
    assert "continuationToken" not in body
    assert body["contents"][-1] == {"role": "model", "parts": [{"text": "abcd"}]}


def test_answer_from_a_token_is_what_the_client_does_not_have() -> None:
    """Streamed or whole, what came behind the checkpoint is said again."""
    call = go_on("abcd", model="gemini-4-argon", token_for="google/gemini-4-argon", stream=True)
    document = {
        "candidates": [{"content": {"parts": [{"text": "cdef"}]}, "finishReason": "STOP"}],
        "responseId": "a",
        "modelVersion": "m",
    }
    events = make_google().answer(call, json.dumps(document).encode())
    assert [event.text for event in events if isinstance(event, TextDelta)] == ["ef"]
    with pytest.raises(StreamInterrupted, match="does not go on"):
        make_google().answer(call, json.dumps(document).replace("cdef", "cxef").encode())
