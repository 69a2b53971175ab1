from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion

from gateway.core.call import Call
from gateway.core.events import (
    OPENAI_CHUNK,
    AttemptFailed,
    CheckpointReached,
    ChoiceFinished,
    Event,
    Frame,
    ProviderExtra,
    ReasoningDelta,
    RefusalDelta,
    StreamContinued,
    StreamStarted,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
    UsageReported,
)
from gateway.core.transcript import Transcript
from gateway.dialects import openai_answer
from gateway.dialects.openai_answer import call_fields, decode_frame, reported_usage, write_answer
from gateway.providers.openai_answer import read_answer
from gateway.providers.openai_stream import OpenAIDecoder

CALL = Call(request_id="t", model="chat", created_unix_s=7)
IDENTITY = {"id": "c1", "object": "chat.completion.chunk", "created": 5, "model": "m"}
START = StreamStarted("msg_1", "claude", 3, target="anthropic/claude")
STOP = ChoiceFinished("stop", "end_turn")
USED = UsageReported(Usage(9, 2, 4, 0, 1))
USAGE = {
    "prompt_tokens": 9,
    "completion_tokens": 2,
    "total_tokens": 11,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 1},
}


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, index: int = 0, **fields: Any) -> Any:
    """Return a chunk of one choice."""
    return {**IDENTITY, "choices": [{"index": index, "delta": delta or {}, "finish_reason": finish}], **fields}


def choice_chunk(text: str = "", **fields: Any) -> Any:
    """Return a chunk whose choice has fields beside its delta."""
    return {**IDENTITY, "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None, **fields}]}


ROLE = chunk({"role": "assistant", "content": ""})
END = chunk(finish="stop")
COUNT = {
    **IDENTITY,
    "choices": [],
    "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11, "x_cost": 0.1},
}


def stream(*documents: Any, choice_count: int = 1) -> list[Event]:
    """Return the events of chunks, each in its frame."""
    decoder = OpenAIDecoder(Call(request_id="t", choice_count=choice_count))
    data = [item if isinstance(item, bytes) else msgspec.json.encode(item) for item in documents]
    return decoder.feed(b"".join(b"data: %b\n\n" % item for item in data))


def answer(*events: Event) -> Any:
    """Return the whole answer that events are rendered as."""
    return msgspec.json.decode(write_answer(CALL, events))


def collected(*documents: Any, choice_count: int = 1) -> Any:
    """Return the whole answer that chunks between a role and an end amount to."""
    return answer(*stream(ROLE, *documents, END, choice_count=choice_count))


def choice_of(*documents: Any) -> Any:
    """Return the first choice of the answer that chunks amount to."""
    return collected(*documents)["choices"][0]


def message_of(*documents: Any) -> Any:
    """Return the message of the answer that chunks amount to, without what every message has."""
    message = choice_of(*documents)["message"]
    return {key: value for key, value in message.items() if key not in ("role", "content", "refusal")}


def said(*events: Event) -> Any:
    """Return the message that events without frames are rendered as."""
    return answer(START, *events, STOP)["choices"][0]["message"]


def touched(event: Event) -> Event:
    """Return an event as somebody leaves it who has altered it."""
    return msgspec.structs.replace(event, frame=None)


# --- what the events carry


def test_an_answer_of_another_wire_is_rendered() -> None:
    """With its usage, under its own name."""
    assert answer(START, ReasoningDelta("hm"), TextDelta("a"), TextDelta("b"), STOP, USED) == {
        "id": "msg_1",
        "object": "chat.completion",
        "created": 3,
        "model": "claude",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "ab", "refusal": None, "reasoning_content": "hm"},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": USAGE,
    }


def test_an_answer_without_a_name_or_usage_is_named_by_the_call() -> None:
    """And has no usage, rather than a made-up one."""
    rendered = answer(StreamStarted("", ""), TextDelta("a"), STOP)
    assert (rendered["id"], rendered["created"], rendered["model"]) == ("chatcmpl-t", 7, "chat")
    assert "usage" not in rendered
    assert answer()["choices"] == []


def test_the_choices_are_in_their_order() -> None:
    """Whatever order they came in."""
    choices = answer(START, TextDelta("b", 1), TextDelta("a"), STOP, ChoiceFinished("length", index=1))["choices"]
    assert [(item["index"], item["message"]["content"], item["finish_reason"]) for item in choices] == [
        (0, "a", "stop"),
        (1, "b", "length"),
    ]


def test_an_answer_without_a_word_has_an_empty_content() -> None:
    """A client that concatenates must not find null."""
    assert said() == {"role": "assistant", "content": "", "refusal": None}


def test_a_refusal_has_no_content() -> None:
    """As OpenAI sends it."""
    assert said(RefusalDelta("n"), RefusalDelta("o")) == {"role": "assistant", "content": None, "refusal": "no"}


def test_an_answer_that_only_calls_has_no_content() -> None:
    """Its calls are in their order, and one without arguments has an empty object, which is what a client parses."""
    calls: list[Event] = [
        ToolCallStarted(1, "b", "sql", "custom"),
        ToolCallDelta(1, "SELECT"),
        ToolCallStarted(0, "a", "f"),
        ToolCallStarted(2, "c", "g"),
        ToolCallDelta(2, '{"x":'),
        ToolCallDelta(2, "1}"),
    ]
    assert said(*calls) == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}},
            {"id": "b", "type": "custom", "custom": {"name": "sql", "input": "SELECT"}},
            {"id": "c", "type": "function", "function": {"name": "g", "arguments": '{"x":1}'}},
        ],
    }


def test_a_legacy_call_is_in_its_old_form() -> None:
    """Not in ``tool_calls``."""
    message = said(ToolCallStarted(0, "", "f", "legacy"), ToolCallDelta(0, "{}"))
    assert message["function_call"] == {"name": "f", "arguments": "{}"}
    assert "tool_calls" not in message


def test_an_answer_of_several_attempts_keeps_the_first_name() -> None:
    """And what the gateway notes is no part of it."""
    rendered = answer(
        AttemptFailed("x/y", 1, "connect", "upstream_unreachable"),
        START,
        TextDelta("a"),
        CheckpointReached("secret"),
        StreamContinued("openai/gpt", "anthropic/claude", "exact", 2, 1),
        StreamStarted("other", "gpt", 9),
        *stream(chunk({"role": "assistant", "content": "b"}, service_tier="flex"), END)[1:],
    )
    assert (rendered["id"], rendered["created"], rendered["model"]) == ("msg_1", 3, "claude")
    assert rendered["choices"][0]["message"]["content"] == "ab"
    assert rendered["service_tier"] == "flex"
    assert b"secret" not in msgspec.json.encode(rendered)


# --- what they do not carry: the answer


def test_a_collected_answer_is_what_openai_would_have_sent_whole() -> None:
    """Its types read it, and every field is there once."""
    token = {"token": "a", "logprob": -0.1, "bytes": [97], "top_logprobs": []}

    def one(delta: dict[str, Any], logprobs: Any = None, finish: str | None = None) -> Any:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return {
            **IDENTITY,
            "service_tier": "default",
            "system_fingerprint": "fp",
            "choices": [choice],
            "usage": None,
            "obfuscation": "abc",
        }

    rendered = answer(
        *stream(
            one({"role": "assistant", "content": "", "refusal": None}, {"content": [], "refusal": None}),
            one({"content": "a"}, {"content": [token], "refusal": None}),
            one({"content": "a"}, {"content": [token], "refusal": None}),
            one({}, None, "stop"),
            COUNT,
        )
    )
    assert rendered == {
        "id": "c1",
        "object": "chat.completion",
        "created": 5,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "aa", "refusal": None},
                "logprobs": {"content": [token, token], "refusal": None},
                "finish_reason": "stop",
            }
        ],
        "usage": COUNT["usage"],
        "service_tier": "default",
        "system_fingerprint": "fp",
    }
    assert ChatCompletion.model_validate(rendered).choices[0].message.content == "aa"


def test_the_last_word_on_the_answer_counts() -> None:
    """Unless it is null: a field that was said is not taken back, one that was never said stays null."""
    rendered = collected(
        chunk({"content": "a"}, service_tier="auto", system_fingerprint=None, citations=["x"], cost={"usd": 1}),
        chunk({"content": "b"}, service_tier="flex", citations=["x", "y"]),
        chunk({"content": "c"}, service_tier=None, citations=None),
    )
    assert (rendered["service_tier"], rendered["citations"], rendered["cost"]) == ("flex", ["x", "y"], {"usd": 1})
    assert rendered["system_fingerprint"] is None


def test_of_an_object_each_field_counts() -> None:
    """Groq says who it is in the first chunk, and what it used in the last."""
    rendered = collected(
        chunk({"content": "a"}, x_groq={"id": "r", "seed": 1}),
        chunk({"content": "b"}, x_groq={"id": "r", "usage": {"completion_tokens": 2}}),
    )
    assert rendered["x_groq"] == {"id": "r", "seed": 1, "usage": {"completion_tokens": 2}}
    assert rendered["usage"] == {"completion_tokens": 2}


def test_an_extra_without_a_choice_is_part_of_the_answer() -> None:
    """Azure's word on the prompt."""
    early = {**IDENTITY, "id": "", "choices": [], "prompt_filter_results": [{"prompt_index": 0}]}
    assert answer(*stream(early, ROLE, END))["prompt_filter_results"] == [{"prompt_index": 0}]


@pytest.mark.parametrize("field", ["obfuscation", "p", "stream_options"])
def test_what_makes_sense_in_a_stream_only_is_left_out(field: str) -> None:
    """Padding hides the length of a chunk; an answer has none."""
    assert field not in collected({**chunk({"content": "a"}), field: "abc"})


def test_copies_of_the_text_are_left_out() -> None:
    """Together says it twice, and numbers each token."""
    choice = {"index": 0, "text": "a", "delta": {"content": "a", "token_id": 16}, "finish_reason": None, "seed": 3}
    told = choice_of({**IDENTITY, "choices": [choice]})
    assert told["seed"] == 3
    assert "text" not in told
    assert told["message"] == {"role": "assistant", "content": "a", "refusal": None}


# --- usage


def test_usage_is_the_providers_own() -> None:
    """With every field of it, wherever it stood."""
    usage = {"prompt_tokens": 9, "completion_tokens_details": {"reasoning_tokens": 1, "x": 2}, "x_cost": 0.1}
    assert answer(*stream(ROLE, chunk(finish="stop", usage=usage)))["usage"] == usage
    [*_, report] = stream(ROLE, END, COUNT)
    assert isinstance(report, UsageReported)
    assert reported_usage(report) == COUNT["usage"]


def test_the_last_report_counts() -> None:
    """Over a seam it is the sum, which no provider has written."""
    assert answer(*stream(ROLE, END, COUNT), USED)["usage"] == USAGE
    words = [chunk({"content": "a"}, usage={"completion_tokens": count}) for count in (1, 2)]
    assert collected(*words)["usage"] == {"completion_tokens": 2}


def test_an_estimate_is_better_than_no_usage() -> None:
    """Who asks for a whole answer always gets one."""
    estimate = UsageReported(Usage(3, 1, is_estimated=True))
    assert answer(*stream(ROLE, END), estimate)["usage"]["total_tokens"] == 4


# --- what they do not carry: the choice


def test_log_probabilities_are_joined() -> None:
    """Each of their lists, those of other hosts too."""
    told = choice_of(
        choice_chunk("a", logprobs={"content": [1], "refusal": None}),
        choice_chunk("b", logprobs={"content": [2], "refusal": [3]}),
        choice_chunk("c", logprobs=None),
        choice_chunk("d", logprobs={"reasoning_content": [4]}),
    )
    assert told["logprobs"] == {"content": [1, 2], "refusal": [3], "reasoning_content": [4]}


def test_log_probabilities_without_one_are_still_an_object() -> None:
    """They were asked for."""
    assert choice_of(choice_chunk("a", logprobs={"content": None}))["logprobs"] == {"content": None}


def test_what_is_said_of_a_choice_is_kept() -> None:
    """The last reason, every word of a filter, and the numbers of all tokens."""
    told = choice_of(
        choice_chunk("a", token_ids=[5], native_finish_reason=None, content_filter_results={"hate": {"x": 1}}),
        choice_chunk("a", token_ids=[5], native_finish_reason="STOP", content_filter_results={"self_harm": 2}),
        choice_chunk("a", content_filter_results={}),
    )
    assert told["token_ids"] == [5, 5]
    assert told["native_finish_reason"] == "STOP"
    assert told["content_filter_results"] == {"hate": {"x": 1}, "self_harm": 2}


def test_every_choice_has_its_own() -> None:
    """By its number."""
    first, second = collected(
        chunk({"role": "assistant", "content": "a", "x": "1"}, index=1),
        chunk({"content": "b", "x": "2"}),
        chunk({"x": "3"}, "stop", 1),
        choice_count=2,
    )["choices"]
    assert (first["message"]["x"], second["message"]["x"]) == ("2", "13")


# --- what they do not carry: the message


def test_unknown_fields_of_the_message_come_in_pieces() -> None:
    """Strings are joined, lists grow; of anything else the last counts."""
    message = message_of(
        chunk({"content": "a", "reasoning_text": "x", "annotations": [{"type": "url", "n": 1}], "score": 1}),
        chunk({"content": "a", "reasoning_text": "x", "annotations": [{"type": "url", "n": 1}], "score": None}),
        chunk({"content": "a", "reasoning_text": None, "annotations": [], "score": 2}),
    )
    assert message == {"reasoning_text": "xx", "annotations": [{"type": "url", "n": 1}] * 2, "score": 2}


def test_a_label_is_said_again_and_not_longer() -> None:
    """Groq names the channel with every piece."""
    assert message_of(*[chunk({"content": "a", "channel": "final"}) for _ in range(3)]) == {"channel": "final"}


def test_reasoning_is_not_doubled() -> None:
    """Hosts send it under two names; both have all of it."""
    message = message_of(
        chunk({"reasoning": "h", "reasoning_content": "h"}), chunk({"reasoning": "m"}), chunk({"content": "a"})
    )
    assert message == {"reasoning_content": "hm", "reasoning": "hm"}
    assert message_of(chunk({"content": "a", "reasoning": None})) == {"reasoning": None}
    assert message_of(chunk({"content": "a", "reasoning": {"x": 1}})) == {"reasoning": {"x": 1}}


def test_thinking_in_a_list_valued_content_is_not_doubled() -> None:
    """Mistral's."""
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "a"}]
    told = choice_of(chunk({"content": parts}))
    assert told["message"] == {"role": "assistant", "content": "a", "refusal": None, "reasoning_content": "hm"}


def test_pieces_of_one_reasoning_block_become_one() -> None:
    """Its signature is good for the whole text only: sent back in pieces, it is refused."""
    head = {"type": "reasoning.text", "format": "anthropic-claude-v1", "index": 0}
    message = message_of(
        chunk({"reasoning": "h", "reasoning_details": [{**head, "text": "h", "signature": ""}]}),
        chunk({"reasoning": "m", "reasoning_details": [{**head, "text": "m"}, {"type": "other", "index": 0}]}),
        chunk({"content": "a", "reasoning_details": [{**head, "signature": "s"}, {**head, "index": 1, "text": "x"}]}),
    )
    assert message["reasoning_details"] == [
        {**head, "text": "hm", "signature": "s"},
        {"type": "other", "index": 0},
        {**head, "index": 1, "text": "x"},
    ]


def test_blocks_that_are_not_one_stay_apart() -> None:
    """Those with another id, and those that nobody numbered."""
    blocks = [{"type": "reasoning.encrypted", "index": 0, "id": name, "data": name} for name in ("a", "b")]
    plain = [{"type": "reasoning.text", "text": "x"}, {"type": "reasoning.text", "text": "y"}, "z"]
    message = message_of(*[chunk({"content": "a", "details": [item]}) for item in [*blocks, *plain, blocks[0]]])
    assert message["details"] == [{**blocks[0], "data": "aa"}, blocks[1], *plain]


def test_an_object_in_the_message_comes_in_pieces_too() -> None:
    """Spoken answers: the sound and its words."""
    message = message_of(
        chunk({"audio": {"id": "x", "transcript": "He"}}),
        chunk({"audio": {"data": "AAAA", "transcript": "y"}}),
        chunk({"audio": {"data": "BBBB", "expires_at": 9}}),
    )
    assert message == {"audio": {"id": "x", "transcript": "Hey", "data": "AAAABBBB", "expires_at": 9}}


def test_what_is_said_of_a_call_stays_with_it() -> None:
    """Google wants its signature back with the next turn."""
    signed = {"google": {"thought_signature": "s"}}
    begin = {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "{"}}
    other = {"index": 1, "id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}}
    rest = {"index": 0, "function": {"arguments": "}"}, "x": 1}
    message = message_of(
        chunk({"tool_calls": [{**begin, "extra_content": signed}, other]}), chunk({"tool_calls": [rest]})
    )
    assert message["tool_calls"] == [
        {
            "id": "a",
            "type": "function",
            "function": {"name": "f", "arguments": "{}"},
            "extra_content": signed,
            "x": 1,
        },
        {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]


def test_the_fields_of_a_call_can_be_had_alone() -> None:
    """For a stream in which the rest of its frame has gone out already."""
    call = {"index": 0, "id": "a", "type": "function", "function": {"name": "f"}, "x": 1}
    _, text, begin = stream(chunk({"role": "assistant", "content": "a", "tool_calls": [call]}))
    assert isinstance(text, TextDelta)
    assert isinstance(begin, ToolCallStarted)
    assert call_fields(begin) == {"x": 1}
    assert call_fields(msgspec.structs.replace(begin, index=1)) == {}
    assert call_fields(msgspec.structs.replace(begin, call_index=1)) == {}
    assert call_fields(ToolCallStarted(0, "a", "f")) == {}


# --- frames that are not there, or not whole


def test_words_that_were_altered_do_not_come_back() -> None:
    """The events are what was delivered; a frame of which one is missing does not speak for its message."""
    full = {
        **IDENTITY,
        "service_tier": "flex",
        "choices": [
            {
                "index": 0,
                "delta": {"role": "assistant", "content": "secret", "annotations": ["secret"]},
                "logprobs": {"content": ["secret"]},
                "finish_reason": "stop",
                "native_finish_reason": "STOP",
            }
        ],
    }
    start, text, end = stream(full)
    rendered = answer(start, msgspec.structs.replace(text, text="***", frame=None), end)
    assert rendered["service_tier"] == "flex"
    [told] = rendered["choices"]
    assert (told["message"]["content"], told["logprobs"], told["native_finish_reason"]) == ("***", None, "STOP")
    assert b"secret" not in msgspec.json.encode(rendered)
    assert b"secret" not in write_answer(CALL, [start, end])
    assert answer(start, text, end)["choices"][0]["message"]["annotations"] == ["secret"]


def test_a_frame_whose_events_came_apart_is_looked_at_once() -> None:
    """A call may be held back until its choice ends."""
    call = {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    start, text, begin, arguments, more, end = stream(
        ROLE, chunk({"content": "a", "x": "1", "tool_calls": [call]}), chunk({"content": "b", "x": "2"}), END
    )
    assert answer(start, text, more, begin, arguments, end)["choices"][0]["message"]["x"] == "12"


def test_a_whole_answer_that_was_touched_keeps_what_is_not_its_message() -> None:
    """As chunks do."""
    body = msgspec.json.encode(
        {
            "id": "c1",
            "x_tier": 1,
            "choices": [{"index": 0, "message": {"content": "a", "x": 1}, "y": 2, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 1, "x": 3},
        }
    )
    start, text, end, used = read_answer(CALL, body)
    rendered = answer(start, touched(text), end, used)
    assert (rendered["x_tier"], rendered["choices"][0]["y"], rendered["usage"]["x"]) == (1, 2, 3)
    assert "x" not in rendered["choices"][0]["message"]
    assert answer(touched(start), text, end, used)["choices"][0]["message"]["content"] == "a"


def test_the_calls_of_a_whole_answer_are_numbered_by_their_place() -> None:
    """They have no index of their own."""
    calls = [{"id": name, "type": "function", "function": {"name": "f", "arguments": "{}"}, "x": name} for name in "ab"]
    body = msgspec.json.encode({"choices": [{"message": {"content": None, "tool_calls": calls}}]})
    rendered = answer(*read_answer(CALL, body))
    assert rendered["choices"][0]["message"]["tool_calls"] == calls


def test_frames_of_another_wire_say_nothing() -> None:
    """Their events do."""
    frame = Frame(b'{"x":1}', "anthropic.event", 1)
    assert decode_frame(frame) is None
    assert "x" not in answer(START, TextDelta("a", frame=frame), STOP)


@pytest.mark.parametrize("data", [b'{"x":1e999}', b'{"x":"\xff"}', b"[]", b'{"x":' + b"[" * 5000, b""])
def test_a_frame_that_cannot_be_read_says_nothing(data: bytes) -> None:
    """A field that no decoder had to read may be anything."""
    frame = Frame(data, OPENAI_CHUNK, 1)
    assert decode_frame(frame) is None
    assert said(ProviderExtra(frame), TextDelta("a", frame=frame))["content"] == "a"


# --- whatever comes

WORDS = st.sampled_from(["a", "ha", '"', "é", "\n", '"content":"a"'])
VENDOR = st.fixed_dictionaries(
    {},
    optional={
        "obfuscation": st.sampled_from(["", "x9", "ab", '"']),
        "p": st.sampled_from(["", "abc"]),
        "tier": st.none() | WORDS,
        "content": WORDS,
    },
)
CHOICE: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {}, optional={"logprobs": st.sampled_from([None, {"content": []}, {"content": [1]}]), "ids": st.just([1])}
)
DELTA = st.fixed_dictionaries(
    {},
    optional={
        "reasoning": st.none() | WORDS,
        "refusal": WORDS,
        "channel": st.just("final"),
        "note": WORDS,
        "list": st.sampled_from([[], [{"type": "a", "index": 0, "text": "x"}]]),
    },
)


@st.composite
def chunks(draw: st.DrawFn) -> list[Any]:
    """Return chunks of text that are often alike, and sometimes odd."""
    documents = [ROLE]
    for _ in range(draw(st.integers(1, 4))):
        vendor, choice, delta = draw(VENDOR), draw(CHOICE), draw(DELTA)
        for word in draw(st.lists(WORDS, min_size=1, max_size=4)):
            told = {"index": 0, "delta": {**delta, "content": word}, "finish_reason": None, **choice}
            padding = draw(VENDOR) if draw(st.booleans()) else {}
            documents.append({**IDENTITY, "choices": [told], **vendor, **padding})
    return [*documents, END, COUNT]


def content_of(events: list[Event]) -> Any:
    """Return the words of events."""
    transcript = Transcript()
    transcript.add(events)
    choice = transcript.choice()
    return choice.text, choice.reasoning, choice.refusal, choice.finish_reason


@given(chunks(), st.data())
def test_a_chunk_like_the_one_before_says_nothing_new(documents: list[Any], data: st.DataObject) -> None:
    """Decoding all of them comes to the same, and to the words of the events."""
    events = [touched(event) if data.draw(st.booleans()) else event for event in stream(*documents)]
    rendered = write_answer(CALL, events)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openai_answer._Rest, "is_known", lambda *_: False)
        assert write_answer(CALL, events) == rendered
    assert content_of(read_answer(CALL, rendered)) == content_of(events)


def test_a_chunk_like_the_one_before_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where its padding differs: nearly all of a stream."""
    words = [chunk({"content": f"word {number}"}, obfuscation="x" * number) for number in range(100)]
    events = stream(ROLE, *words, END)
    decoded: list[Frame | None] = []

    def count(frame: Frame | None) -> Any:
        decoded.append(frame)
        return decode_frame(frame)

    monkeypatch.setattr(openai_answer, "decode_frame", count)
    write_answer(CALL, events)
    assert len(decoded) == 3


def test_a_chunk_like_one_further_back_has_the_last_word() -> None:
    """What was said in between is taken back."""
    rendered = collected(
        chunk({"content": "a"}, service_tier="auto"),
        chunk({"content": "a", "note": "x"}, service_tier="flex"),
        chunk({"content": "b"}, service_tier="auto"),
    )
    assert rendered["service_tier"] == "auto"


def test_a_chunk_may_be_written_in_any_way() -> None:
    """With spaces, with escapes: it takes longer, and comes to the same."""
    words = [json.dumps(chunk({"content": word, "x": word})).encode() for word in ("é", "é", "a")]
    told = choice_of(*words)["message"]
    assert (told["content"], told["x"]) == ("ééa", "ééa")
    assert choice_of(*[json.dumps(chunk({"content": "é"})).encode()] * 2)["message"]["content"] == "éé"
