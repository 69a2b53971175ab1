"""Gemini's wire: two framings, usage so far, and continuation by the server's own token."""

import json
from typing import Any

import pytest

from gateway.simulator.ask import Incoming
from gateway.simulator.performance import Performance, perform
from gateway.simulator.plan import Send
from gateway.simulator.script import Script
from gateway.simulator.wires.base import HttpAnswer, Reply
from gateway.simulator.wires.routes import WIRES

QUICK = Script(first_token_s=0, interval_s=0)
CONTENTS = [{"role": "user", "parts": [{"text": "What does a weir do?"}]}]
ARGON = "gemini-4-argon-preview"


def performed(
    *, model: str = "gemini-2.5-flash", script: Script = QUICK, alt: str = "sse", **fields: Any
) -> HttpAnswer | Performance:
    """Ask without a server."""
    body = {"contents": CONTENTS, **fields}
    incoming = Incoming("/v1beta", model, body, {}, {"alt": alt}, is_stream_path=alt != "whole")
    return perform(WIRES["google"], incoming, script, Reply("serial", 7, model))


def sent(**fields: Any) -> bytes:
    """Return a body."""
    played = performed(**fields)
    assert isinstance(played, Performance)
    return b"".join(step.payload for step in played.steps if isinstance(step, Send))


def responses(**fields: Any) -> list[Any]:
    """Return the response objects of a stream."""
    return [json.loads(frame.removeprefix(b"data: ")) for frame in sent(**fields).split(b"\r\n\r\n") if frame]


def texts(parts: list[Any]) -> str:
    """Return the text of response objects."""
    found = [part for one in parts for candidate in one["candidates"] for part in candidate["content"]["parts"]]
    return "".join(part.get("text", "") for part in found if not part.get("thought"))


def test_frames_end_with_crlf() -> None:
    """Every line of the stream does."""
    body = sent()
    assert body.endswith(b"\r\n\r\n")
    assert body.count(b"\n") == body.count(b"\r\n")


def test_without_alt_sse_the_stream_is_a_json_array() -> None:
    """Of the same objects."""
    assert json.loads(sent(alt="json")) == responses()
    played = performed(alt="json")
    assert isinstance(played, Performance)
    assert played.content_type == "application/json; charset=UTF-8"


def test_usage_is_a_running_total() -> None:
    """It grows by one with each token, thoughts apart."""
    seen = responses(generationConfig={"thinkingConfig": {"includeThoughts": True}})
    totals = [one["usageMetadata"]["totalTokenCount"] for one in seen]
    assert totals[:-1] == list(range(totals[0], totals[0] + len(totals) - 1))
    assert seen[-1]["usageMetadata"]["thoughtsTokenCount"] > 0
    assert "candidatesTokenCount" not in seen[0]["usageMetadata"]
    assert "thoughtSignature" in seen[-1]["candidates"][0]["content"]["parts"][0]


def test_function_calls_come_whole_and_signed() -> None:
    """Arguments are an object; a result is answered with text; modes are honoured."""
    declared = [{"name": name, "parameters": {"type": "OBJECT", "properties": {}}} for name in ("one", "two")]
    tools = [{"functionDeclarations": declared}]
    parts = [one["candidates"][0]["content"]["parts"][0] for one in responses(tools=tools)]
    assert [part["functionCall"] for part in parts[:2]] == [{"name": "one", "args": {}}, {"name": "two", "args": {}}]
    assert "thoughtSignature" in parts[0]
    call = {"role": "model", "parts": [{"functionCall": {"name": "one", "args": {}}}]}
    result = {"role": "user", "parts": [{"functionResponse": {"name": "one", "response": {"result": "seen"}}}]}
    told = texts(responses(contents=[*CONTENTS, call, result], tools=tools))
    assert told.startswith("I have the result of one (seen)")
    only = {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["two"]}}
    forced = responses(tools=tools, toolConfig=only)[0]["candidates"][0]["content"]["parts"][0]
    assert forced["functionCall"]["name"] == "two"
    none = {"functionCallingConfig": {"mode": "NONE"}}
    assert texts(responses(tools=tools, toolConfig=none))


def test_a_json_answer_and_a_whole_one() -> None:
    """`responseMimeType` decides the one, the path the other."""
    config = {"responseMimeType": "application/json", "responseSchema": {"properties": {"depth": {"type": "INTEGER"}}}}
    assert isinstance(json.loads(texts(responses(generationConfig=config)))["depth"], int)
    whole = json.loads(sent(alt="whole", generationConfig={"candidateCount": 2}))
    assert len(whole["candidates"]) == 2
    assert texts([{"candidates": whole["candidates"][:1]}]) == texts(responses())


def test_argon_goes_on_from_its_token() -> None:
    """Cut after some tokens, the same request with the last token gives the rest from that checkpoint."""
    cut = responses(model=ARGON, script=Script(cut_after_tokens=40))
    at = max(place for place, one in enumerate(cut) if "continuationToken" in one["candidates"][0])
    token = cut[at]["candidates"][0]["continuationToken"]
    rest = responses(model=ARGON, continuationToken=token)
    assert texts(cut[: at + 1]) + texts(rest) == texts(responses())
    assert at == 31


def test_argon_ends_a_hop_and_keeps_to_one_limit_for_all() -> None:
    """CONTINUATION is no end; the tokens of all hops together are the limit."""
    config = {"maxOutputTokens": 50}
    first = responses(model=ARGON, script=Script(hop_after=30), generationConfig=config)
    last = first[-1]["candidates"][0]
    assert last["finishReason"] == "CONTINUATION"
    second = responses(model=ARGON, generationConfig=config, continuationToken=last["continuationToken"])
    assert second[-1]["candidates"][0]["finishReason"] == "MAX_TOKENS"
    assert texts(first) + texts(second) == texts(responses(generationConfig=config))


@pytest.mark.parametrize(
    ("model", "token", "message"),
    [
        (ARGON, "rubbish!", "invalid or has expired"),
        (ARGON, "eHh4LjEuMQ==", "does not belong to this request"),
        ("gemini-2.5-flash", "eHh4LjEuMQ==", "not supported"),
    ],
)
def test_a_token_that_does_not_fit_is_a_400(model: str, token: str, message: str) -> None:
    """Rubbish, another conversation's, or another model's."""
    answer = performed(model=model, continuationToken=token)
    assert isinstance(answer, HttpAnswer)
    error = json.loads(answer.body)["error"]
    assert (answer.status, error["status"]) == (400, "INVALID_ARGUMENT")
    assert message in error["message"]


def test_errors_say_when_to_come_back_in_their_details() -> None:
    """There is no `retry-after`."""
    answer = performed(script=Script(status=429, retry_after_s=34.5, error_code="RATE_LIMIT_EXCEEDED"))
    assert isinstance(answer, HttpAnswer)
    error = json.loads(answer.body)["error"]
    assert error["status"] == "RESOURCE_EXHAUSTED"
    assert error["details"][1]["retryDelay"] == "34.5s"
    assert "retry-after" not in answer.headers


@pytest.mark.parametrize("contents", [None, [], [{"role": "nobody", "parts": []}], ["text"]])
def test_contents_that_cannot_be_read_are_a_400(contents: Any) -> None:
    """As is an unknown role."""
    answer = performed(contents=contents)
    assert isinstance(answer, HttpAnswer)
    assert answer.status == 400


def test_a_blocked_prompt_has_no_candidates() -> None:
    """Streamed or whole."""
    (blocked,) = responses(script=Script(refusal=True))
    assert blocked["promptFeedback"] == {"blockReason": "PROHIBITED_CONTENT"}
    assert "candidates" not in blocked
    assert "candidates" not in json.loads(sent(alt="whole", script=Script(refusal=True)))
