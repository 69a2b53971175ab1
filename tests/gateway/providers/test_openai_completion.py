from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gateway.core.errors import UpstreamError
from gateway.core.events import (
    ChoiceFinished,
    Event,
    FinishReason,
    ReasoningDelta,
    RefusalDelta,
    StreamStarted,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
    UsageReported,
)
from gateway.dialects.openai_chat import OpenAIChatEncoder
from gateway.providers.openai_completion import (
    Choice,
    Chunk,
    decode_chunk,
    identity_of,
    known_identity,
    numbered,
    raise_error,
    read_choice,
)
from gateway.providers.openai_mend import CallIndex, Mender
from tests.gateway.providers.openai_chunks import (
    CALL,
    END,
    ESTIMATE,
    IDENTITY,
    ROLE,
    START,
    STOP,
    calls_of,
    chunk,
    decode,
    frames,
    known,
    piece,
    text,
    tools,
)
from tests.gateway.providers.openai_oddities import FAILURES

# --- words


def test_refusal_is_told_as_one() -> None:
    """The words of a refusal are not the answer."""
    assert RefusalDelta("no") in decode(ROLE, chunk({"refusal": "no"}), STOP)


def test_reasoning_is_not_part_of_the_answer() -> None:
    """A chunk with both is reasoning first."""
    events = decode(ROLE, chunk({"reasoning_content": "hm", "content": "a"}), STOP)
    assert events[1:3] == [ReasoningDelta("hm"), TextDelta("a")]


@pytest.mark.parametrize(
    "delta",
    [
        {"reasoning": "hm", "content": "a"},
        {
            "content": [
                {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
                {"type": "text", "text": "a"},
            ]
        },
    ],
    ids=["name", "list"],
)
def test_reasoning_is_known_by_other_hosts_signs_too(delta: dict[str, Any]) -> None:
    """By its other name, and as a part of the content."""
    assert decode(ROLE, chunk(delta), STOP)[1:3] == [ReasoningDelta("hm"), TextDelta("a")]


# --- tool calls


def test_parallel_calls_are_told_apart_by_their_index() -> None:
    """Pieces of them may be mixed."""
    documents = [
        tools(piece(0, "", "a", "f")), tools(piece(0, '{"x":')), tools(piece(1, "", "b", "g")),
        tools(piece(1, "{}"), piece(0, "1}")),
    ]  # fmt: skip
    assert calls_of(ROLE, *documents, END) == [("a", "f", '{"x":1}'), ("b", "g", "{}")]
    assert frames(ROLE, *documents)[1:] == [msgspec.json.encode(item) for item in documents]


def test_an_id_and_a_name_said_again_begin_no_new_call() -> None:
    """Some hosts repeat both on every piece."""
    documents = [tools(piece(0, "{", "a", "f")), tools(piece(0, "}", "a", "f"))]
    assert calls_of(ROLE, *documents, END) == [("a", "f", "{}")]


def test_a_custom_call_is_told_as_one() -> None:
    """Its input is free text."""
    begin = {"index": 0, "id": "a", "type": "custom", "custom": {"name": "sql", "input": ""}}
    events = decode(ROLE, tools(begin), tools({"index": 0, "custom": {"input": "SELECT"}}), END)
    assert events[1:3] == [ToolCallStarted(0, "a", "sql", "custom"), ToolCallDelta(0, "SELECT")]


def test_a_legacy_function_call_is_told_as_one() -> None:
    """It has no id and no index, and its frame stays."""
    documents = [
        ROLE, chunk({"function_call": {"name": "f", "arguments": ""}}), chunk({"function_call": {"arguments": "{}"}}),
        chunk(finish="function_call"),
    ]  # fmt: skip
    assert decode(*documents)[1:4] == [
        ToolCallStarted(0, "", "f", "legacy"),
        ToolCallDelta(0, "{}"),
        ChoiceFinished("function_call", "function_call"),
    ]
    assert frames(*documents) == [msgspec.json.encode(item) for item in documents]


def test_an_odd_call_is_told_as_a_sound_one_would_be() -> None:
    """Of a chunk, where the mender is told what is odd; the calls of a whole answer need no number."""
    tool = {"id": "", "function": {"name": "f", "arguments": {"x": 1}}}
    said = {"choices": [{"delta": {"tool_calls": [tool]}, "message": {"tool_calls": [{**tool, "id": "a"}]}}]}
    [choice] = decode_chunk(msgspec.json.encode(said)).choices or []
    chunks, answers = Mender(b""), Mender(b"")
    found: list[Event] = []
    read_choice(choice, choice.delta, CallIndex("t"), found, chunks)
    made_id = CallIndex("t").make_id(0, 0)
    assert found == [ToolCallStarted(0, made_id, "f"), ToolCallDelta(0, '{"x":1}')]
    assert (chunks.needs_choices, chunks.tool_ids) == (True, {(0, 0): (0, made_id)})
    read_choice(choice, choice.message, CallIndex("t"), found, answers)
    assert found[2:] == [ToolCallStarted(0, "a", "f"), ToolCallDelta(0, '{"x":1}')]
    assert (answers.needs_choices, answers.tool_ids) == (True, {})


@pytest.mark.parametrize(
    ("native", "told", "is_odd"), [("stop", "stop", False), ("eos", "stop", True), ("odd", "stop", True)]
)
def test_a_foreign_finish_reason_is_told_in_openais_words(native: str, told: FinishReason, is_odd: bool) -> None:  # noqa: FBT001
    """The event keeps the host's own beside them."""
    mender = Mender(b"")
    found: list[Event] = []
    read_choice(Choice(index=1, finish_reason=native), None, CallIndex("t"), found, mender)
    assert found == [ChoiceFinished(told, native, 1)]
    assert mender.needs_choices is is_odd


# --- usage


@pytest.mark.parametrize(
    ("said", "usage"),
    [
        ({"prompt_tokens": 9, "completion_tokens": 2}, Usage(9, 2)),
        (
            {
                "prompt_tokens": 9,
                "completion_tokens": 8,
                "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 3},
                "completion_tokens_details": {"reasoning_tokens": 5},
            },
            Usage(9, 8, 4, 3, 5),
        ),
        ({"prompt_tokens": 9, "completion_tokens": 2, "prompt_cache_hit_tokens": 6}, Usage(9, 2, 6)),
        ({"prompt_tokens": 9, "completion_tokens": 7, "reasoning_tokens": 5}, Usage(9, 7, 0, 0, 5)),
        (
            {
                "prompt_tokens": 9,
                "completion_tokens": 2,
                "total_tokens": 16,
                "completion_tokens_details": {"reasoning_tokens": 5},
            },
            Usage(9, 7, 0, 0, 5),
        ),
        ({"prompt_tokens": None, "completion_tokens": 2, "prompt_tokens_details": None}, Usage(0, 2)),
    ],
)
def test_usage_is_read_in_the_cores_terms(said: dict[str, Any], usage: Usage) -> None:
    """Input with what came from a cache, output with the reasoning."""
    assert decode(ROLE, STOP, {**IDENTITY, "choices": [], "usage": said})[-1] == UsageReported(usage)


def test_usage_on_any_chunk_counts_and_the_last_one_is_final() -> None:
    """Some report on the chunk that finishes, some on every one."""
    used = [{"prompt_tokens": 3, "completion_tokens": count} for count in (1, 2)]
    events = decode(ROLE, {**text("a"), "usage": used[0]}, {**STOP, "usage": used[1]})
    assert events == [
        START,
        TextDelta("a"),
        UsageReported(Usage(3, 1)),
        ChoiceFinished("stop", "stop"),
        UsageReported(Usage(3, 2)),
    ]


def test_groqs_own_usage_is_read() -> None:
    """It comes unasked, beside the choices."""
    groq = {**STOP, "x_groq": {"id": "req_1", "usage": {"prompt_tokens": 3, "completion_tokens": 1}}}
    assert decode({**ROLE, "x_groq": {"id": "req_1"}}, groq)[-1] == UsageReported(Usage(3, 1))


@pytest.mark.parametrize("usage", [None, {}, False, "", 7, [], "much", {"prompt_tokens": "many"}])
def test_no_usage_or_an_odd_one_is_estimated(usage: Any) -> None:
    """It costs nobody the answer."""
    assert decode(ROLE, text("four"), {**STOP, "usage": usage})[-1] == ESTIMATE


# --- errors inside a 200


def raise_error_of(document: Any) -> None:
    """Raise the error that stands in a document, if there is one."""
    data = msgspec.json.encode(document)
    raise_error(decode_chunk(data), data, "topsecret")


@pytest.mark.parametrize(("document", "kind", "code"), FAILURES)
def test_an_error_is_found_wherever_hosts_put_it(document: Any, kind: type[UpstreamError], code: str) -> None:
    """It is what the same error would have been as an HTTP status."""
    with pytest.raises(kind) as raised:
        raise_error_of(document)
    assert (type(raised.value), raised.value.code, raised.value.message) == (kind, code, "Busy")


@pytest.mark.parametrize(("reason", "status"), [("error", 500), ("insufficient_system_resource", 503)])
def test_a_finish_reason_that_means_failure_is_an_error(reason: str, status: int) -> None:
    """Whichever choice has it."""
    finish = chunk(finish=reason)["choices"]
    with pytest.raises(UpstreamError) as raised:
        raise_error_of({**STOP, "choices": [*STOP["choices"], *finish]})
    assert raised.value.upstream_status == status


def test_an_error_shows_neither_key_nor_line_breaks() -> None:
    """A provider's words are somebody else's text."""
    with pytest.raises(UpstreamError) as raised:
        raise_error_of({"error": {"message": "bad key\ntopsecret"}})
    assert raised.value.message == "bad key [redacted]"


@pytest.mark.parametrize("nothing", [None, {}, "", False])
def test_an_empty_error_is_none(nothing: Any) -> None:
    """Some hosts send the key with every chunk."""
    assert TextDelta("a") in decode(ROLE, {**text("a"), "error": nothing}, STOP)


# --- names and numbers


def test_an_answer_is_called_what_it_calls_itself() -> None:
    """What it leaves out is made of the call, which is known by nothing yet."""
    assert identity_of(Chunk(id="x", created=9.5, model="y"), CALL) == ("x", 9, "y")
    assert identity_of(Chunk(), CALL) == ("chatcmpl-t", 7, "gpt")
    assert known_identity(CALL) is None


@pytest.mark.parametrize(("index", "is_odd"), [(1, False), (None, True)])
def test_a_choice_without_a_number_has_that_of_its_place(index: int | None, is_odd: bool) -> None:  # noqa: FBT001
    """Its document is mended then, and not otherwise."""
    mender = Mender(b"")
    assert [number for number, _ in numbered([Choice(index=0), Choice(index=index)], mender)] == [0, 1]
    assert mender.needs_choices is is_odd


@pytest.mark.parametrize(
    ("started", "expected"),
    [
        (StreamStarted("", "", 0), ("chatcmpl-t", 7, "chat")),
        (StreamStarted("x", "", 0), ("x", 7, "chat")),
        (StreamStarted("", "y", 9), ("chatcmpl-t", 9, "y")),
    ],
)
def test_a_name_that_the_dialect_made_is_made_again(started: StreamStarted, expected: tuple[str, int, str]) -> None:
    """Of a wire without ids or dates the client was told what its own dialect fills in."""
    call = known(started)
    encoded = OpenAIChatEncoder(call).encode([started, TextDelta("a")])
    assert known_identity(call) == expected
    shown = msgspec.json.decode(encoded.removeprefix(b"data: "))
    assert (shown["id"], shown["created"], shown["model"]) == expected
