from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    TextPart,
    Tool,
    ToolCall,
    ToolChoice,
    UnknownPart,
)
from gateway.core.errors import InvalidRequest
from gateway.dialects.openai_request import (
    MAX_CHOICES,
    MAX_DEPTH,
    MAX_MESSAGES,
    MAX_TOOLS,
    SHORT_BYTES,
    read_json,
    read_request,
)

CALL = Call(request_id="t", endpoint="chat_completions", credential="k")
HELLO: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
CANARY = "canary-7Q"
"""What a client said, and nobody may say after it."""


def read(body: dict[str, Any]) -> Call:
    """Return the call that a body becomes; it says hello if it says nothing else."""
    return read_request(msgspec.json.encode({**HELLO, **body}), CALL)


def turn(**fields: Any) -> Message:
    """Return the message that a turn becomes."""
    [message] = read({"messages": [fields]}).messages
    return message


def refusal(body: bytes | dict[str, Any]) -> InvalidRequest:
    """Return the error for a body, which is told in one short line that quotes nothing."""
    with pytest.raises(InvalidRequest) as refused:
        read_request(body if isinstance(body, bytes) else msgspec.json.encode(body), CALL)
    error = refused.value
    assert (error.status_code, error.retryable) == (400, False)
    assert len(error.message.splitlines()) == 1
    assert len(error.message) < 200
    assert CANARY not in error.message
    return error


def nested(levels: int) -> bytes:
    """Return a valid body with JSON so many levels deep."""
    inner = b"[" * (levels - 1) + b"]" * (levels - 1)
    return b'{"model": "m", "messages": [{"role": "user", "content": "Hi"}], "x": %b}' % inner


# --- what is read


def test_the_smallest_request_is_a_model_and_a_message() -> None:
    """Everything else is left open, and what the server knows of the call stays."""
    call = read({})
    assert call == Call(
        request_id="t",
        endpoint="chat_completions",
        credential="k",
        model="m",
        messages=(Message(role="user", parts=(TextPart("Hi"),), source=HELLO["messages"][0]),),
        source=Source(OPENAI_CHAT, HELLO),
        flow=CALL.flow,
    )


def test_parameters_are_read_into_the_call() -> None:
    """All that another provider's wire has to express."""
    call = read(
        {
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 1,
            "top_p": 0.5,
            "top_k": 4,
            "seed": -3,
            "frequency_penalty": -1,
            "presence_penalty": 0.25,
            "stop": ["a", "b"],
            "n": 2,
            "logprobs": True,
            "reasoning_effort": "low",
            "parallel_tool_calls": False,
            "max_tokens": 9,
        }
    )
    assert call.sampling == Sampling(
        temperature=1.0, top_p=0.5, top_k=4, seed=-3, frequency_penalty=-1.0, presence_penalty=0.25
    )
    assert (call.stream, call.include_usage, call.stop, call.choice_count) == (True, True, ("a", "b"), 2)
    assert (call.logprobs, call.reasoning_effort, call.parallel_tool_calls) == (True, "low", False)
    assert call.max_output_tokens == 9


def test_null_is_as_good_as_absent() -> None:
    """As in OpenAI's own API."""
    names = (
        "stream stream_options temperature top_p top_k seed frequency_penalty presence_penalty stop n logprobs"
        " reasoning_effort parallel_tool_calls max_tokens max_completion_tokens tools functions tool_choice"
        " response_format"
    )
    body = dict.fromkeys(names.split())
    assert read(body).source.body == {**HELLO, **body}
    assert read(body).choice_count == 1


def test_what_is_not_known_is_kept() -> None:
    """For a provider that does."""
    body = {"x_extra": {"deep": [1]}, "web_search_options": {}}
    assert read(body).source == Source(OPENAI_CHAT, {**HELLO, **body})


@pytest.mark.parametrize(
    ("body", "limit"),
    [
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 5}, 5),
        ({"max_tokens": 5, "max_completion_tokens": 7}, 7),
        ({"max_tokens": 5, "max_completion_tokens": None}, 5),
    ],
)
def test_the_newer_limit_beats_the_older(body: dict[str, Any], limit: int) -> None:
    """``max_tokens`` is deprecated."""
    assert read(body).max_output_tokens == limit


@pytest.mark.parametrize(("stop", "expected"), [("a", ("a",)), (["a"], ("a",)), ([], ())])
def test_stop_is_one_or_several(stop: Any, expected: tuple[str, ...]) -> None:
    """The call has a tuple either way."""
    assert read({"stop": stop}).stop == expected


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant"])
def test_a_turn_has_its_role_its_text_and_its_source(role: str) -> None:
    """And the name that it came under."""
    message = turn(role=role, content="a", name="Ann", x_turn=1)
    assert (message.role, message.text, message.name) == (role, "a", "Ann")
    assert message.source == {"role": role, "content": "a", "name": "Ann", "x_turn": 1}


def test_parts_are_read_in_their_order() -> None:
    """Those of unknown types keep their place."""
    image = {"url": "https://x/a.png", "detail": "low"}
    parts = [
        {"type": "text", "text": "See", "cache_control": {}},
        {"type": "image_url", "image_url": image},
        {"type": "image_url", "image_url": "https://x/b.png"},
        {"type": "input_audio", "input_audio": {"data": "AA", "format": "mp3"}},
        {"type": "input_audio", "input_audio": {"data": "AA"}},
        {"type": "file", "file": {"file_data": "data:a", "filename": "a.pdf"}},
        {"type": "file", "file": {"file_id": "f1"}},
        {"type": "refusal", "refusal": "No"},
        {"type": "video_url", "video_url": {"url": "https://x"}},
    ]
    assert turn(role="user", content=parts).parts == (
        TextPart("See"),
        ImagePart("https://x/a.png", "low"),
        ImagePart("https://x/b.png"),
        AudioPart("AA", "mp3"),
        AudioPart("AA", "wav"),
        FilePart("data:a", None, "a.pdf"),
        FilePart(None, "f1"),
        TextPart("No"),
        UnknownPart("video_url"),
    )


def test_an_assistants_turn_may_have_no_content() -> None:
    """It calls, or it says nothing; its reasoning is kept."""
    calls = [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}},
        {"id": "b", "type": "custom", "custom": {"name": "sql", "input": "SELECT"}},
        {"function": {"name": "g"}},
    ]
    message = turn(role="assistant", content=None, tool_calls=calls, reasoning_content="hm")
    assert message.parts == ()
    assert message.reasoning == "hm"
    assert message.tool_calls == (
        ToolCall("a", "f", "{}"),
        ToolCall("b", "sql", "SELECT", True),  # noqa: FBT003, a field by place
        ToolCall("", "g", ""),
    )
    assert turn(role="assistant").parts == ()


def test_a_tools_result_says_which_call_it_answers() -> None:
    """By its id."""
    message = turn(role="tool", content="1", tool_call_id="a")
    assert (message.role, message.text, message.tool_call_id) == ("tool", "1", "a")


def test_a_hosts_own_tool_is_kept_for_the_host() -> None:
    """Its source goes to a provider of the same wire; for any other it is not a function."""
    tool = {"type": "browser_search", "depth": 2}
    assert read({"tools": [tool]}).tools == (Tool(name="browser_search", is_custom=True, source=tool),)


def test_a_count_of_logprobs_asks_for_them() -> None:
    """As some hosts have it."""
    assert read({"logprobs": 5}).logprobs
    assert not read({"logprobs": 0}).logprobs


def test_legacy_functions_are_tools() -> None:
    """A call is answered by its name, because it has no id."""
    asked = turn(role="assistant", content=None, function_call={"name": "f", "arguments": "{}"})
    told = turn(role="function", name="f", content="1")
    call = read({"functions": [{"name": "f", "parameters": {}}], "function_call": {"name": "f"}})
    assert asked.tool_calls == (ToolCall("f", "f", "{}"),)
    assert (told.role, told.tool_call_id, told.name) == ("tool", "f", "f")
    assert call.tools == (Tool(name="f", parameters={}),)
    assert call.tool_choice == ToolChoice("required", ("f",))


def test_tools_are_read_with_their_source() -> None:
    """Functions and custom tools."""
    tools: list[dict[str, Any]] = [
        {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}, "x": 1},
        {"type": "function", "function": {"name": "g", "strict": True}},
        {"type": "custom", "custom": {"name": "sql", "description": "d", "format": {"type": "text"}}},
    ]
    assert read({"tools": tools}).tools == (
        Tool(name="f", description="d", parameters={"type": "object"}, source=tools[0]),
        Tool(name="g", strict=True, source=tools[1]),
        Tool(name="sql", description="d", is_custom=True, source=tools[2]),
    )


NAMED = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("auto", ToolChoice("auto")),
        ("none", ToolChoice("none")),
        ("required", ToolChoice("required")),
        ("any", ToolChoice("required")),
        (NAMED, ToolChoice("required", ("f",))),
        ({"type": "custom", "custom": {"name": "f"}}, ToolChoice("required", ("f",))),
        ({"type": "function", "name": "f"}, ToolChoice("required", ("f",))),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED, NAMED]}},
            ToolChoice("auto", ("f", "f")),
        ),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}},
            ToolChoice("required", ("f",)),
        ),
    ],
)
def test_a_tool_choice_is_read_in_all_its_forms(choice: Any, expected: ToolChoice) -> None:
    """OpenAI's, and those that its clients also send."""
    assert read({"tool_choice": choice}).tool_choice == expected


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"type": "text"}, ResponseFormat(kind="text")),
        ({"type": "json_object"}, ResponseFormat(kind="json_object")),
        ({"type": "json_schema", "json_schema": {}}, ResponseFormat(kind="json_schema")),
        ({"type": "regex", "pattern": "a*"}, ResponseFormat(kind="other", name="regex")),
        (
            {"type": "json_schema", "json_schema": {"name": "n", "schema": {}, "strict": True, "description": "d"}},
            ResponseFormat(kind="json_schema", name="n", schema={}, strict=True, description="d"),
        ),
    ],
)
def test_a_response_format_is_read(wanted: Any, expected: ResponseFormat) -> None:
    """With what it says of its schema."""
    assert read({"response_format": wanted}).response_format == expected


# --- bodies that are no request


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"not JSON " + CANARY.encode(),
        b'{"model": "m" "messages"}',
        b'{"model": NaN}',
        b'{"temperature": 1e999}',
        b'{"seed": 1' + b"0" * 5000 + b"}",
        b'{"model": "' + CANARY.encode() + b'\xff"}',
        b'{"model": "' + CANARY.encode() + b'\xed\xa0\x80"}',
        b'{"model": "' + CANARY.encode() + b'\\ud800"}',
        b'{"model": "\\udc00"}',
        b'{"model": "m"} trailing',
        "{}".encode("utf-16"),
    ],
)
def test_a_body_that_is_not_json_is_refused(body: bytes) -> None:
    """Truncated, not UTF-8, with half a surrogate pair, with a number that nothing holds."""
    assert refusal(body).message.startswith("the body is not valid JSON: ")


@pytest.mark.parametrize("body", [b"[]", b'"canary-7Q"', b"7", b"1.5", b"null", b"true"])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    """And told what it is."""
    assert refusal(body).message.startswith("the body must be a JSON object, not ")


@pytest.mark.parametrize("space", [b"", b" " * 2 * SHORT_BYTES])
def test_a_body_may_be_64_levels_deep_and_no_deeper(space: bytes) -> None:
    """Counted with the object that it is, in a short body and in a long one."""
    assert read_request(nested(MAX_DEPTH) + space, CALL).model == "m"
    assert "deeper than 64 levels" in refusal(nested(MAX_DEPTH + 1) + space).message


@pytest.mark.parametrize("kinds", ["[", "{", "[{", "{["])
@pytest.mark.parametrize("size_bytes", [0, 2 * SHORT_BYTES])
def test_depth_is_of_arrays_and_of_objects(kinds: str, size_bytes: int) -> None:
    """And of both together."""
    opening = "".join('{"a":' if kind == "{" else "[" for kind in kinds)
    closing = "".join("}" if kind == "{" else "]" for kind in reversed(kinds))

    def body(levels: int) -> bytes:
        count = levels // len(kinds)
        value = f"{opening * count}1{closing * count}"
        return f'{{"model":"m","messages":[{{"role":"user","content":"Hi"}}],"x":{value}}}'.encode().ljust(size_bytes)

    assert read_request(body(MAX_DEPTH - 2), CALL).model == "m"
    assert "deeper than 64 levels" in refusal(body(MAX_DEPTH)).message


@pytest.mark.parametrize("body", [nested(100_000), b'{"a":' * 100_000, b"[" * 100_000, b'{"a":[' * 50_000])
def test_a_body_of_a_hundred_thousand_levels_is_refused(body: bytes) -> None:
    """Whether or not it ever closes them, it is told in a line."""
    assert "deeper than 64 levels" in refusal(body).message


def test_many_brackets_side_by_side_are_not_depth() -> None:
    """Nor are those in a text."""
    wide = {**HELLO, "x": [[] for _ in range(200)], "y": "[{" * 200}
    assert read_request(msgspec.json.encode(wide), CALL).source.body == wide
    assert read_json(b'{"a": [{}, [], {"b": []}]}') == {"a": [{}, [], {"b": []}]}


# --- values of the wrong kind

KINDS: dict[str, Any] = {
    "a string": CANARY,
    "a boolean": True,
    "a number": 10**30,
    "an array": [CANARY],
    "an object": {CANARY: CANARY},
}
EXPECTED = {
    "model": "a string",
    "messages": "an array",
    "stream": "a boolean",
    "stream_options": "an object",
    "temperature": "a number",
    "top_p": "a number",
    "top_k": "a number",
    "seed": "a number",
    "frequency_penalty": "a number",
    "presence_penalty": "a number",
    "n": "a number",
    "logprobs": "a boolean",
    "reasoning_effort": "a string",
    "parallel_tool_calls": "a boolean",
    "max_tokens": "a number",
    "max_completion_tokens": "a number",
    "tools": "an array",
    "functions": "an array",
    "response_format": "an object",
}


@pytest.mark.parametrize(
    ("field", "kind"),
    [
        (field, kind)
        for field in EXPECTED
        for kind in KINDS
        if kind != EXPECTED[field] and (field, kind) != ("logprobs", "a number")
    ],
)
def test_a_field_of_the_wrong_kind_is_named(field: str, kind: str) -> None:
    """With what was expected and what came, but not its value."""
    error = refusal({**HELLO, field: KINDS[kind]})
    assert error.param == field
    assert error.message.startswith(f"{field}: expected ")
    assert error.message.endswith(f", got {kind}")


@pytest.mark.parametrize("field", ["top_k", "seed", "max_tokens", "n"])
def test_a_fraction_is_no_integer(field: str) -> None:
    """Nor is it rounded."""
    assert refusal({**HELLO, field: 1.5}).param == field


@pytest.mark.parametrize("field", ["temperature", "top_p", "frequency_penalty", "presence_penalty"])
def test_an_integer_that_no_float_holds_is_refused(field: str) -> None:
    """It would be an overflow later."""
    body = msgspec.json.encode(HELLO)[:-1] + b',"%b":1%b}' % (field.encode(), b"0" * 400)
    assert refusal(body).param == field


def with_turn(**fields: Any) -> dict[str, Any]:
    """Return a body whose second turn is this one."""
    return {**HELLO, "messages": [*HELLO["messages"], fields]}


def with_part(**fields: Any) -> dict[str, Any]:
    """Return a body whose second turn has this part."""
    return with_turn(role="user", content=[{"type": "text", "text": "a"}, fields])


def with_call(call: Any) -> dict[str, Any]:
    """Return a body whose second turn has made this call."""
    return with_turn(role="assistant", tool_calls=[call])


PART = "messages[1].content[1]"
TOOL_CALL = "messages[1].tool_calls[0]"
FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"messages": HELLO["messages"]}, "model"),
    ({**HELLO, "model": ""}, "model"),
    ({**HELLO, "model": None}, "model"),
    ({"model": "m"}, "messages"),
    ({**HELLO, "messages": []}, "messages"),
    ({**HELLO, "messages": HELLO["messages"] * (MAX_MESSAGES + 1)}, "messages"),
    ({**HELLO, "messages": [CANARY]}, "messages[0]"),
    ({**HELLO, "messages": [None]}, "messages[0]"),
    (with_turn(content=CANARY), "messages[1].role"),
    (with_turn(role=CANARY, content="a"), "messages[1].role"),
    (with_turn(role=7, content="a"), "messages[1].role"),
    (with_turn(role=["user"], content="a"), "messages[1].role"),
    (with_turn(role="user"), "messages[1].content"),
    (with_turn(role="tool", content=None), "messages[1].content"),
    (with_turn(role="user", content=7), "messages[1].content"),
    (with_turn(role="user", content={"text": CANARY}), "messages[1].content"),
    (with_turn(role="user", content="a", name=7), "messages[1].name"),
    (with_turn(role="tool", content="a", tool_call_id=7), "messages[1].tool_call_id"),
    (with_turn(role="assistant", content="a", reasoning_content=[CANARY]), "messages[1].reasoning_content"),
    (with_turn(role="user", content=["a", CANARY]), "messages[1].content[0]"),
    (with_part(), f"{PART}.type"),
    (with_part(type=7), f"{PART}.type"),
    (with_part(type="text"), f"{PART}.text"),
    (with_part(type="text", text=[CANARY]), f"{PART}.text"),
    (with_part(type="refusal"), f"{PART}.refusal"),
    (with_part(type="image_url"), f"{PART}.image_url.url"),
    (with_part(type="image_url", image_url=7), f"{PART}.image_url"),
    (with_part(type="image_url", image_url={"url": 7}), f"{PART}.image_url.url"),
    (with_part(type="image_url", image_url={"url": CANARY, "detail": 7}), f"{PART}.image_url.detail"),
    (with_part(type="input_audio"), f"{PART}.input_audio.data"),
    (with_part(type="input_audio", input_audio=CANARY), f"{PART}.input_audio"),
    (with_part(type="input_audio", input_audio={"data": CANARY, "format": 7}), f"{PART}.input_audio.format"),
    (with_part(type="file", file=CANARY), f"{PART}.file"),
    (with_part(type="file", file={"file_data": 7}), f"{PART}.file.file_data"),
    (with_part(type="file", file={"file_id": 7}), f"{PART}.file.file_id"),
    (with_part(type="file", file={"filename": 7}), f"{PART}.file.filename"),
    (with_turn(role="assistant", tool_calls=CANARY), "messages[1].tool_calls"),
    (with_call(CANARY), TOOL_CALL),
    (with_call({}), f"{TOOL_CALL}.function.name"),
    (with_call({"type": 7}), f"{TOOL_CALL}.type"),
    (with_call({"function": CANARY}), f"{TOOL_CALL}.function"),
    (with_call({"id": 7, "function": {"name": "f"}}), f"{TOOL_CALL}.id"),
    (with_call({"function": {"name": "f", "arguments": {}}}), f"{TOOL_CALL}.function.arguments"),
    (with_call({"type": "custom", "custom": {"name": 7}}), f"{TOOL_CALL}.custom.name"),
    (with_turn(role="assistant", function_call=CANARY), "messages[1].function_call"),
    (with_turn(role="assistant", function_call={}), "messages[1].function_call.name"),
    ({**HELLO, "tools": [CANARY]}, "tools[0]"),
    ({**HELLO, "tools": [{"type": "function"}]}, "tools[0].function"),
    ({**HELLO, "tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
    ({**HELLO, "tools": [{"function": {"name": "f", "parameters": CANARY}}]}, "tools[0].function.parameters"),
    ({**HELLO, "tools": [{"function": {"name": "f", "strict": CANARY}}]}, "tools[0].function.strict"),
    ({**HELLO, "tools": [{"function": {"name": "f", "description": 7}}]}, "tools[0].function.description"),
    ({**HELLO, "tools": [{"type": "custom"}]}, "tools[0].custom.name"),
    ({**HELLO, "functions": [CANARY]}, "functions[0]"),
    ({**HELLO, "functions": [{}]}, "functions[0].name"),
    ({**HELLO, "tools": [NAMED] * (MAX_TOOLS + 1)}, "tools"),
    ({**HELLO, "tools": [NAMED] * MAX_TOOLS, "functions": [{"name": "f"}]}, "tools"),
    ({**HELLO, "tool_choice": CANARY}, "tool_choice"),
    ({**HELLO, "tool_choice": 7}, "tool_choice"),
    ({**HELLO, "tool_choice": {"type": "function"}}, "tool_choice"),
    ({**HELLO, "tool_choice": {"type": CANARY}}, "tool_choice"),
    ({**HELLO, "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": CANARY}}}, "tool_choice"),
    (
        {**HELLO, "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [CANARY]}}},
        "tool_choice",
    ),
    ({**HELLO, "response_format": {"type": 1}}, "response_format"),
    ({**HELLO, "response_format": {"type": "json_schema"}}, "response_format"),
    (
        {**HELLO, "response_format": {"type": "json_schema", "json_schema": {"schema": CANARY}}},
        "response_format.json_schema.schema",
    ),
    ({**HELLO, "stream_options": {"include_usage": CANARY}}, "stream_options.include_usage"),
    ({**HELLO, "stop": 7}, "stop"),
    ({**HELLO, "stop": ["a", 7]}, "stop"),
    ({**HELLO, "n": 0}, "n"),
    ({**HELLO, "n": MAX_CHOICES + 1}, "n"),
    ({**HELLO, "n": -1}, "n"),
    ({**HELLO, "max_tokens": 0}, "max_tokens"),
    ({**HELLO, "max_completion_tokens": -1}, "max_completion_tokens"),
]


@pytest.mark.parametrize(("body", "param"), FAULTS)
def test_a_fault_is_told_with_its_place(body: dict[str, Any], param: str) -> None:
    """The path is enough to find it; the value is not repeated."""
    error = refusal(body)
    assert error.param == param
    assert error.message.startswith(f"{param}: expected ")


def test_the_limits_themselves_are_allowed() -> None:
    """So many messages, tools and choices may be asked for."""
    call = read({"messages": HELLO["messages"] * MAX_MESSAGES, "tools": [NAMED] * MAX_TOOLS, "n": MAX_CHOICES})
    assert (len(call.messages), len(call.tools), call.choice_count) == (MAX_MESSAGES, MAX_TOOLS, MAX_CHOICES)


# --- whatever comes

ATOMS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=8)
)
KEYS = st.sampled_from(["role", "content", "type", "text", "name", "function", "arguments", "url", "id", "parameters"])
TREES = st.recursive(
    ATOMS | st.sampled_from(["user", "assistant", "tool", "function", "text", "image_url", "file", "auto", "custom"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=15,
)
FIELDS = sorted({*EXPECTED, "tool_choice", "stop", "function_call", "x_extra"})
TURNS = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool", "function"])},
    optional={"content": TREES, "tool_calls": st.lists(TREES, max_size=2), "function_call": TREES, "name": TREES},
)
BODIES = st.fixed_dictionaries(
    {"model": st.just("m") | TREES, "messages": st.lists(TURNS, min_size=1, max_size=3) | TREES},
    optional={field: TREES for field in FIELDS if field not in HELLO},
)


@given(st.binary(max_size=100))
def test_arbitrary_bytes_are_refused(body: bytes) -> None:
    """No hundred bytes by chance are a request."""
    with pytest.raises(InvalidRequest):
        read_request(body, CALL)


@given(BODIES | TREES)
def test_arbitrary_json_is_a_call_or_is_refused(body: Any) -> None:
    """Nothing else is raised, and a call keeps what it came from."""
    encoded = msgspec.json.encode(body)
    with suppress(InvalidRequest):
        assert read_request(encoded, CALL).source.body == msgspec.json.decode(encoded)
