from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gateway.core.events import (
    ChoiceFinished,
    ProviderExtra,
    ReasoningDelta,
    StreamStarted,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
    UsageReported,
)
from gateway.providers.openai_mend import CallIndex, Mender, json_text, split_content
from gateway.providers.openai_stream import OpenAIDecoder
from tests.gateway.providers.openai_chunks import (
    CALL,
    END,
    IDENTITY,
    ROLE,
    START,
    STOP,
    bare,
    calls_of,
    chunk,
    decode,
    frames,
    mended,
    piece,
    sse,
    text,
    tools,
)


def test_a_document_with_nothing_to_mend_keeps_its_bytes() -> None:
    """It is not even decoded."""
    data = b"{ not JSON"
    assert Mender(data).result() is data


def test_all_that_was_noted_is_mended_at_once() -> None:
    """What was not noted stays, and so does what no client would miss."""
    mender = Mender(b'{"x":1,"choices":[{"delta":{"tool_calls":[{"id":""}]},"finish_reason":"eos"}]}')
    mender.identity = ("c", 5, "m")
    mender.missing_roles.add(0)
    mender.tool_ids[0, 0] = (2, "a")
    assert msgspec.json.decode(mender.result()) == {
        "x": 1, "id": "c", "created": 5, "model": "m",
        "choices": [{
            "index": 0, "finish_reason": "stop",
            "delta": {"role": "assistant", "tool_calls": [{"id": "a", "index": 2, "type": "function"}]},
        }],
    }  # fmt: skip


def test_a_changing_identity_becomes_that_of_the_first_chunk() -> None:
    """Clients key on ``id``; everything else of the chunk stays."""
    odd = {**text("a"), "id": "c2", "created": 6, "model": "m-2", "x_extra": [1]}
    assert mended(ROLE, odd) == {**text("a"), "x_extra": [1]}


def test_a_missing_identity_is_made_from_the_call() -> None:
    """All chunks get the same one."""
    nameless = [{"choices": item["choices"]} for item in (ROLE, text("a"))]
    identity = {"id": "chatcmpl-t", "created": 7, "model": "gpt"}
    assert [msgspec.json.decode(frame) for frame in frames(*nameless)] == [{**item, **identity} for item in nameless]
    assert decode(*nameless, STOP)[0] == StreamStarted("chatcmpl-t", "gpt", 7, target="openai/gpt")


def test_a_creation_time_with_a_fraction_becomes_whole() -> None:
    """OpenAI's is an integer, in every chunk the same."""
    odd = [{**item, "created": 5.5} for item in (ROLE, text("a"))]
    assert [msgspec.json.decode(frame)["created"] for frame in frames(*odd)] == [5, 5]


def test_a_missing_role_is_added_to_the_first_chunk_only() -> None:
    """OpenAI's SDK for Node fails without it."""
    first, second = (msgspec.json.decode(frame) for frame in frames(text("a"), text("b")))
    assert first["choices"][0]["delta"] == {"content": "a", "role": "assistant"}
    assert second == text("b")


def test_a_missing_role_is_added_to_the_first_chunk_of_every_choice() -> None:
    """Also when another choice has had one, or no chunk before had a choice."""
    assert mended(ROLE, text("a", 1))["choices"][0]["delta"] == {"content": "a", "role": "assistant"}
    assert mended({**IDENTITY, "choices": []}, text("a"))["choices"][0]["delta"]["role"] == "assistant"


def test_a_role_that_is_said_again_is_taken_out() -> None:
    """OpenAI's own helper would make it ``assistantassistant``."""
    again = chunk({"role": "assistant", "content": "a", "x": 1})
    assert mended(ROLE, again) == chunk({"content": "a", "x": 1})
    assert mended(ROLE, chunk({"role": "assistant"}, index=1)) == chunk({"role": "assistant"}, index=1)


def test_a_finish_that_is_said_again_is_taken_out() -> None:
    """OpenRouter repeats it on the chunk with the usage, which is kept."""
    again = {**STOP, "usage": {"prompt_tokens": 3, "completion_tokens": 1}}
    assert mended(ROLE, STOP, again) == {**again, "choices": chunk()["choices"]}
    assert decode(ROLE, STOP, again) == [START, ChoiceFinished("stop", "stop"), UsageReported(Usage(3, 1))]


def test_a_choice_that_has_its_role_gets_none_from_its_neighbour() -> None:
    """Each choice is mended by itself."""
    both = {**IDENTITY, "choices": [{"index": index, "delta": {"content": "a"}} for index in (0, 1)]}
    assert [choice["delta"] for choice in mended(ROLE, both)["choices"]] == [
        {"content": "a"},
        {"content": "a", "role": "assistant"},
    ]


def test_missing_indices_are_the_choices_places() -> None:
    """In the frame and in the events."""
    odd = {**IDENTITY, "choices": [{"delta": {"role": "assistant", "content": word}} for word in "ab"]}
    assert [choice["index"] for choice in mended(odd)["choices"]] == [0, 1]
    assert bare(OpenAIDecoder(CALL).feed(sse(odd)))[1:] == [TextDelta("a", 0), TextDelta("b", 1)]


def test_a_document_without_choices_gets_an_empty_list() -> None:
    """Clients iterate over it."""
    assert mended(ROLE, {**IDENTITY, "x_ping": 1}) == {**IDENTITY, "x_ping": 1, "choices": []}


def test_reasoning_under_another_name_is_added_under_the_common_one() -> None:
    """The name that the host uses stays as well."""
    assert mended(ROLE, chunk({"reasoning": "hm", "x": 1})) == chunk(
        {"reasoning": "hm", "x": 1, "reasoning_content": "hm"}
    )
    assert ReasoningDelta("hm") in decode(ROLE, chunk({"reasoning": "hm"}), STOP)


def test_reasoning_under_both_names_is_told_once_and_left_alone() -> None:
    """Together and OpenRouter send both."""
    both = chunk({"reasoning": "hm", "reasoning_content": "hm"})
    assert frames(ROLE, both)[-1] == msgspec.json.encode(both)
    assert decode(ROLE, both, STOP).count(ReasoningDelta("hm")) == 1


def test_a_list_of_contents_becomes_text_and_reasoning() -> None:
    """Mistral's thinking models send one."""
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "a"}]
    assert mended(ROLE, chunk({"content": parts})) == chunk({"content": "a", "reasoning_content": "hm"})
    assert mended(ROLE, chunk({"content": parts[1:]})) == chunk({"content": "a"})
    assert decode(ROLE, chunk({"content": parts}), STOP)[1:3] == [ReasoningDelta("hm"), TextDelta("a")]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([], ("", "")),
        (["a", "b"], ("ab", "")),
        ([{"type": "thinking", "thinking": "hm"}], ("", "hm")),
        ([{"type": "thinking"}], ("", "")),
        ([{"type": "text"}, {"type": "text", "text": 1}, {"type": "reference", "reference_ids": [1]}, 7], ("", "")),
    ],
)
def test_odd_contents_are_left_out(parts: list[Any], expected: tuple[str, str]) -> None:
    """Only text and thinking are words."""
    assert split_content(parts) == expected


def test_arguments_as_an_object_become_text() -> None:
    """What a client concatenates has to be a string."""
    odd = tools(piece(0, {"a": [1, "é"]}, "x", "f"))
    assert mended(ROLE, odd) == tools(piece(0, '{"a":[1,"é"]}', "x", "f"))
    assert decode(ROLE, odd, STOP)[1:3] == [ToolCallStarted(0, "x", "f"), ToolCallDelta(0, '{"a":[1,"é"]}')]


@pytest.mark.parametrize(
    ("native", "reason"),
    [
        ("eos", "stop"),
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_length", "length"),
        ("tool_use", "tool_calls"),
        ("something_new", "stop"),
    ],
)
def test_a_foreign_finish_reason_is_translated(native: str, reason: str) -> None:
    """The event has both, the frame the one that a client of OpenAI's knows."""
    odd = {**chunk(finish=native), "usage": None, "x_extra": 1}
    assert mended(ROLE, odd) == {**chunk(finish=reason), "usage": None, "x_extra": 1}
    assert decode(ROLE, odd)[1] == ChoiceFinished(reason, native)  # type: ignore[arg-type]  # of the table above


@pytest.mark.parametrize("reason", ["stop", "length", "tool_calls", "content_filter", "function_call"])
def test_a_reason_of_openais_is_left_alone(reason: str) -> None:
    """Nothing is to be mended."""
    assert frames(ROLE, chunk(finish=reason))[-1] == msgspec.json.encode(chunk(finish=reason))


def test_azures_word_on_the_prompt_gets_the_identity_of_what_follows() -> None:
    """It comes first and has none of its own."""
    prompt = {"id": "", "created": 0, "model": "", "choices": [], "prompt_filter_results": [{"prompt_index": 0}]}
    events = OpenAIDecoder(CALL).feed(sse(prompt, ROLE, text("a")))
    assert bare(events) == [ProviderExtra(), START, TextDelta("a")]
    assert events[0].frame is not None
    assert msgspec.json.decode(events[0].frame.data) == {**prompt, "id": "c1", "created": 5, "model": "m"}


# --- tool calls


def test_a_call_begins_with_a_new_number_or_a_new_id() -> None:
    """Each choice counts its own; an id without a name, or a name without an id, goes on with what is there."""
    calls = CallIndex("t")
    assert calls.place(0, 0, "a", "f") == (0, True)
    assert calls.place(0, 0, None, "") == (0, False)
    assert calls.place(0, 0, "b", "") == (0, False)
    assert calls.place(0, 0, None, "g") == (0, False)
    assert calls.place(0, 0, "b", "g") == (1, True)
    assert calls.place(1, 0, "c", "f") == (0, True)
    assert calls.make_id(1, 0) == "call_t_1_0"


def test_arguments_are_text_without_spaces() -> None:
    """As OpenAI's models write them most of the time."""
    assert json_text({"a": [1, "é"]}) == '{"a":[1,"é"]}'


def test_calls_that_all_have_index_0_are_told_apart_by_their_id() -> None:
    """Google's compatible endpoint numbers them so; the frame is told the right number."""
    documents = [tools(piece(0, "{}", "a", "f")), tools(piece(0, "[", "b", "g")), tools(piece(0, "]"))]
    assert calls_of(ROLE, *documents, END) == [("a", "f", "{}"), ("b", "g", "[]")]
    assert mended(ROLE, *documents[:2]) == tools(piece(1, "[", "b", "g"))
    assert mended(ROLE, *documents) == tools(piece(1, "]"))


def test_calls_without_an_index_are_numbered() -> None:
    """Mistral has sent whole calls so, in one delta or in several."""
    together = [tools(piece(None, "{}", "a", "f"), piece(None, "[]", "b", "g"))]
    apart = [tools(piece(None, "{}", "a", "f")), tools(piece(None, "[]", "b", "g"))]
    for documents in (together, apart):
        assert calls_of(ROLE, *documents, END) == [("a", "f", "{}"), ("b", "g", "[]")]
    assert mended(ROLE, *together) == tools(piece(0, "{}", "a", "f"), piece(1, "[]", "b", "g"))


def test_calls_with_neither_index_nor_id_are_numbered_and_named() -> None:
    """The id that is made is not that of any other turn."""
    documents = [tools(piece(None, "{}", None, "f"), piece(None, "[]", None, "g"))]
    assert calls_of(ROLE, *documents, END) == [("call_t_0_0", "f", "{}"), ("call_t_0_1", "g", "[]")]
    sent = mended(ROLE, *documents)["choices"][0]["delta"]["tool_calls"]
    assert [(call["index"], call["id"], call["type"]) for call in sent] == [
        (0, "call_t_0_0", "function"),
        (1, "call_t_0_1", "function"),
    ]


def test_calls_of_a_later_choice_are_mended_too() -> None:
    """A chunk has one choice, whatever its number."""
    documents = [tools(piece(None, "{}", "a", "f"), index=1), chunk(finish="tool_calls", index=1)]
    assert calls_of(*documents, choice=1) == [("a", "f", "{}")]
    assert mended(ROLE, documents[0])["choices"][0]["delta"]["tool_calls"][0]["index"] == 0


def test_a_custom_call_without_an_id_stays_a_custom_call() -> None:
    """What is added fits what is there."""
    sent = mended(ROLE, tools({"index": 0, "custom": {"name": "sql", "input": "x"}}))
    assert sent["choices"][0]["delta"]["tool_calls"][0]["type"] == "custom"
