from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

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
    Target,
    TextPart,
    Tool,
    ToolCall,
    ToolChoice,
    UnknownPart,
)
from gateway.core.continuation import Continuation
from gateway.core.errors import InvalidRequest, StreamInterrupted, UpstreamBusy, UpstreamError, UpstreamRefused
from gateway.core.events import (
    ChoiceFinished,
    Event,
    ProviderExtra,
    StreamStarted,
    TextDelta,
    Usage,
    UsageReported,
)
from gateway.core.transcript import Transcript
from gateway.providers.base import ProviderOptions
from gateway.providers.llama import LLAMA_ANSWER, LLAMA_EVENT, Llama

LLAMA = Llama(ProviderOptions(name="llama", api_key="fake-key"))
HELLO = Message(role="user", parts=(TextPart("Hello"),))


def make_call(*messages: Message, **fields: Any) -> Call:
    """Return a call of ``messages``."""
    return Call(request_id="r1", target=Target("llama", "Llama-4"), messages=messages or (HELLO,), **fields)


def write(call: Call) -> dict[str, Any]:
    """Return the body that ``call`` becomes."""
    body = json.loads(LLAMA.request(call).body)
    assert isinstance(body, dict)
    return body


def said(kind: str, delta: Any = None, **fields: Any) -> dict[str, Any]:
    """Return one event of a stream."""
    return {"id": "a1", "event": {"event_type": kind, "delta": delta or {"type": "text", "text": ""}, **fields}}


def text(words: str) -> dict[str, Any]:
    """Return progress with text."""
    return said("progress", {"type": "text", "text": words})


def call_piece(arguments: str | None = None, *, name: str | None = None, call_id: str | None = None) -> dict[str, Any]:
    """Return progress with a piece of a call."""
    return said("progress", {"type": "tool_call", "id": call_id, "function": {"name": name, "arguments": arguments}})


def metrics(prompt: int, output: int) -> list[dict[str, Any]]:
    """Return the usage in the Llama API's words."""
    counts = {"num_completion_tokens": output, "num_prompt_tokens": prompt, "num_total_tokens": prompt + output}
    return [{"metric": name, "value": value, "unit": "tokens"} for name, value in counts.items()]


def sse(*documents: Any) -> bytes:
    """Return ``documents`` as server-sent events."""
    return "".join(f"data: {json.dumps(document)}\n\n" for document in documents).encode()


def feed(*data: bytes) -> list[Event]:
    """Return the events of a stream's bytes."""
    decoder = LLAMA.decoder(make_call())
    events = [event for piece in data for event in decoder.feed(piece)]
    return events + decoder.finish()


def fold(events: list[Event]) -> Transcript:
    """Return what ``events`` amount to."""
    transcript = Transcript()
    transcript.add(events)
    return transcript


COMPLETE = said("complete", stop_reason="stop")


def test_request_has_what_the_llama_api_knows() -> None:
    """The client's own body goes out without the hints that would be refused."""
    source = {
        "model": "alias",
        "max_tokens": 5,
        "seed": 1,
        "n": 1,
        "user": "u",
        "top_k": 3,
        "stream_options": {"include_usage": True},
    }
    request = LLAMA.request(make_call(stream=True, max_output_tokens=5, source=Source(OPENAI_CHAT, source)))
    assert request.url == "https://api.llama.com/v1/chat/completions"
    assert request.headers["authorization"] == "Bearer fake-key"
    assert json.loads(request.body) == {
        "model": "Llama-4",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_completion_tokens": 5,
        "user": "u",
        "top_k": 3,
        "stream": True,
    }


def test_parameters_of_another_dialect_are_written() -> None:
    """What the Llama API has an equal for is sent."""
    sampling = Sampling(temperature=0.5, top_p=0.9, top_k=3, seed=7)
    body = write(make_call(sampling=sampling, max_output_tokens=9, parallel_tool_calls=False, reasoning_effort="low"))
    del body["messages"], body["model"]
    assert body == {"temperature": 0.5, "top_p": 0.9, "top_k": 3, "max_completion_tokens": 9}


def test_turns_lose_what_is_not_known_there() -> None:
    """A name or an empty content would be refused."""
    source = {"role": "assistant", "content": None, "refusal": None, "name": "x", "tool_calls": [{"id": "c"}]}
    messages = write(make_call(HELLO, Message(role="assistant", tool_calls=(ToolCall("c", "f", ""),), source=source)))
    assert messages["messages"][1] == {"role": "assistant", "tool_calls": [{"id": "c"}]}


@pytest.mark.parametrize(
    ("wanted", "schema"),
    [
        (ResponseFormat(kind="json_object"), {"type": "object"}),
        (ResponseFormat(kind="json_schema", schema={"type": "array"}, strict=True), {"type": "array"}),
    ],
)
def test_json_is_asked_for_by_schema(wanted: ResponseFormat, schema: Any) -> None:
    """There is no ``json_object``; a schema that any object fits says the same."""
    body = write(make_call(response_format=wanted))
    assert body["response_format"] == {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    assert write(make_call(response_format=ResponseFormat(kind="text")))["response_format"] == {"type": "text"}


def test_choice_among_some_tools_leaves_the_others_out() -> None:
    """There is no list of allowed tools; one that is not offered cannot be called."""
    tools = tuple(Tool(name=name) for name in "abc")
    body = write(make_call(tools=tools, tool_choice=ToolChoice("required", ("a", "c"))))
    assert [tool["function"]["name"] for tool in body["tools"]] == ["a", "c"]
    assert body["tool_choice"] == "required"


@pytest.mark.parametrize(
    ("call", "param"),
    [
        (make_call(logprobs=True), "logprobs"),
        (make_call(choice_count=2), "n"),
        (make_call(stop=("x",)), "stop"),
        (make_call(tools=(Tool(name="f", is_custom=True),)), "tools[0]"),
        (make_call(HELLO, Message(role="user", parts=(AudioPart("", "wav"),))), "messages[1].content[0]"),
        (make_call(Message(role="user", parts=(TextPart(""), FilePart("x")))), "messages[0].content[1]"),
        (make_call(Message(role="user", parts=(UnknownPart("x"),))), "messages[0].content[0]"),
    ],
)
def test_what_would_change_the_answers_shape_is_refused(call: Call, param: str) -> None:
    """The refusal names the field."""
    with pytest.raises(InvalidRequest) as caught:
        LLAMA.request(call)
    assert caught.value.param == param


def test_images_are_sent() -> None:
    """Llama 4 can see."""
    assert (
        b"https://h/a.png" in LLAMA.request(make_call(Message(role="user", parts=(ImagePart("https://h/a.png"),)))).body
    )


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_text_stream_is_told_in_order(size: int) -> None:
    """Start, pieces, finish and usage, each with its document, wherever the bytes were cut."""
    documents = [said("start"), text("Hel"), text("lo"), COMPLETE, said("metrics", metrics=metrics(3, 2))]
    body = sse(*documents)
    events = feed(*[body[at : at + size] for at in range(0, len(body), size)])
    assert [type(event) for event in events] == [StreamStarted, TextDelta, TextDelta, ChoiceFinished, UsageReported]
    assert [json.loads(event.frame.data) for event in events if event.frame] == documents
    assert {event.frame.wire for event in events if event.frame} == {LLAMA_EVENT}
    assert isinstance(events[0], StreamStarted)
    assert (events[0].id, events[0].model, events[0].target) == ("a1", "Llama-4", "llama/Llama-4")
    transcript = fold(events)
    assert (transcript.choice().text, transcript.choice().finish_reason) == ("Hello", "stop")
    assert transcript.usage == Usage(3, 2)


def test_first_event_may_bring_text() -> None:
    """A start is no less a start for what it brings along."""
    events = feed(sse(said("start", {"type": "text", "text": "a"}), text(""), COMPLETE))
    assert [type(event) for event in events[:3]] == [StreamStarted, TextDelta, ProviderExtra]
    assert events[0].frame == events[1].frame
    assert events[0].frame is not None
    assert events[0].frame.event_count == 2


def test_usage_is_estimated_where_no_metrics_come() -> None:
    """A ``complete`` is the end, with or without the metrics behind it."""
    assert fold(feed(sse(text("abcdefgh"), COMPLETE))).usage == Usage(2, 2, is_estimated=True)
    assert fold(
        feed(sse(text("abcd"), said("complete", stop_reason="length", metrics=[{"metric": "x"}])))
    ).usage == Usage(2, 1, is_estimated=True)


def test_calls_are_told_apart() -> None:
    """A new id begins a call, and so does a name without one; anything else goes on with the last."""
    events = feed(
        sse(
            call_piece('{"a":', name="f", call_id="c1"),
            call_piece("1}", call_id="c1"),
            call_piece(call_id="c1"),
            call_piece(name="g"),
            call_piece("{}"),
            said("complete", stop_reason="tool_calls"),
        )
    )
    choice = fold(events).choice()
    assert [(call.id, call.name, call.arguments) for call in choice.tool_calls.values()] == [
        ("c1", "f", '{"a":1}'),
        ("call_r1_1", "g", "{}"),
    ]
    assert choice.finish_reason == "tool_calls"


@pytest.mark.parametrize(
    ("native", "reason"), [("stop", "stop"), ("length", "length"), ("tool_calls", "tool_calls"), ("new", "stop")]
)
def test_stop_reason_is_told_in_both_terms(native: str, reason: str) -> None:
    """OpenAI's word and the Llama API's own."""
    choice = fold(feed(sse(text("a"), said("complete", stop_reason=native)))).choice()
    assert (choice.finish_reason, choice.native_reason) == (reason, native)


def test_stop_behind_a_call_means_the_call() -> None:
    """A client that waits for ``tool_calls`` gets it."""
    assert fold(feed(sse(call_piece("{}", name="f"), COMPLETE))).choice().finish_reason == "tool_calls"


@pytest.mark.parametrize(
    "documents", [[], [text("a")], [text("a"), said("complete")], [text("a"), said("progress", stop_reason="stop")]]
)
def test_end_of_bytes_without_a_complete_is_an_interruption(documents: list[Any]) -> None:
    """Only a ``complete`` with its reason says that the answer is whole."""
    with pytest.raises(StreamInterrupted) as caught:
        feed(sse(*documents))
    assert caught.value.code == "stream_truncated"


PROBLEM = {"title": "Service unavailable", "detail": "come back later", "status": 503}


def test_error_in_a_stream_is_read() -> None:
    """Before the start it is what it says, behind it an interruption; what was said before it is delivered."""
    with pytest.raises(UpstreamBusy):
        feed(sse(PROBLEM))
    decoder = LLAMA.decoder(make_call())
    assert fold(decoder.feed(sse(text("a"), PROBLEM))).choice().text == "a"
    with pytest.raises(StreamInterrupted) as caught:
        decoder.finish()
    assert (caught.value.message, caught.value.retryable) == ("come back later", True)


@pytest.mark.parametrize(
    "data", [b"data: 3\n\n", b"data: {}\n\n", b'data: {"event": 3}\n\n', b"data: [DONE]\n\n", sse(call_piece("{}"))]
)
def test_bytes_that_are_not_the_wire_are_an_interruption(data: bytes) -> None:
    """A foreign wire is told as such."""
    with pytest.raises(StreamInterrupted) as caught:
        feed(data)
    assert caught.value.code == "malformed_stream"


@pytest.mark.parametrize("content", ["Hi", {"type": "text", "text": "Hi"}, [{"text": "H"}, {"text": "i"}]])
def test_whole_answer_shares_one_frame(content: Any) -> None:
    """All events of an answer come from the one document that it is."""
    message = {"content": content, "stop_reason": "stop"}
    body = json.dumps({"id": "a1", "completion_message": message, "metrics": metrics(3, 1)}).encode()
    events = LLAMA.answer(make_call(), body)
    assert [type(event) for event in events] == [StreamStarted, TextDelta, ChoiceFinished, UsageReported]
    assert {(event.frame.data, event.frame.wire, event.frame.event_count) for event in events if event.frame} == {
        (body, LLAMA_ANSWER, 4)
    }
    assert fold(events).choice().text == "Hi"


def test_whole_answer_with_calls_has_them_all() -> None:
    """Calls of a whole answer are read like those of a stream."""
    calls = [{"id": name, "function": {"name": name, "arguments": "{}"}} for name in "fg"]
    body = json.dumps({"completion_message": {"content": None, "tool_calls": calls, "stop_reason": "tool_calls"}})
    choice = fold(LLAMA.answer(make_call(), body.encode())).choice()
    assert [call.name for call in choice.tool_calls.values()] == ["f", "g"]


@pytest.mark.parametrize("body", [b"", b"3", b"{}", b'{"detail": "\xff"}', b'{"completion_message": {"content": "a"}}'])
def test_answer_that_is_not_whole_is_an_interruption(body: bytes) -> None:
    """What does not say that it has ended has not."""
    with pytest.raises(StreamInterrupted):
        LLAMA.answer(make_call(), body)


def test_http_error_has_its_words_and_no_number_as_code() -> None:
    """``title``, ``detail`` and ``status``: the second is what helps."""
    error = LLAMA.error(400, {"retry-after": "3"}, b'{"title": "Bad request", "detail": "no fake-key", "status": 400}')
    assert isinstance(error, UpstreamRefused)
    assert (error.message, error.code, error.retry_after_s) == ("no [redacted]", "upstream_refused", 3)


@given(st.lists(st.binary(max_size=30) | st.sampled_from([sse(text("a")), sse(COMPLETE), sse(PROBLEM)]), max_size=8))
def test_arbitrary_bytes_raise_nothing_but_errors_of_the_tree(data: list[bytes]) -> None:
    """No bytes of a provider bring out a foreign exception."""
    with suppress(UpstreamError):
        feed(*data)


def test_partial_answer_is_gone_on_with_only_where_the_operator_says_so() -> None:
    """The API begins a new message behind an assistant's turn; what speaks its wire may do otherwise."""
    call = make_call(continuation=Continuation(way="exact", text="So"), stream=True)
    forced = Llama(ProviderOptions(name="llama", continuation="exact"))
    assert (LLAMA.continues(call), forced.continues(call)) == (False, True)
    body = json.loads(forced.request(call).body)
    assert body["messages"][-1] == {"role": "assistant", "content": "So"}
    assert fold(forced.decoder(call).feed(sse(text("S"), text("ome")))).choice().text == "Some"
    whole = {"id": "a", "completion_message": {"content": "So it is", "stop_reason": "stop"}}
    assert fold(forced.answer(call, json.dumps(whole).encode())).choice().text == "So it is"
