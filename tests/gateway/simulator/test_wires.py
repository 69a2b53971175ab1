"""All wires side by side: the same conversation is answered alike on each, and continued to the same bytes.

The readers here are as simple as can be and share nothing with the gateway's decoders.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.simulator.ask import Incoming
from gateway.simulator.performance import Performance, perform
from gateway.simulator.plan import Send
from gateway.simulator.script import Script
from gateway.simulator.text import tokenize
from gateway.simulator.wires.base import HttpAnswer, Reply
from gateway.simulator.wires.routes import WIRES

Turns = list[tuple[str, str]]

QUESTION: Turns = [("system", "Be brief."), ("user", "What does a weir do?")]
WHOLE = Script(first_token_s=0, interval_s=0)
TOOLS = {
    "get_weather": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "get_tide": {"type": "object", "properties": {"high": {"type": "boolean"}}},
    "never": {"type": "object", "properties": {}},
}
DIALECTS = {"anthropic": "anthropic", "google": "google", "llama": "llama"}  # all others are like OpenAI
ALL = sorted(WIRES)
SHOWS_REASONING = [name for name in ALL if name not in ("openai", "azure", "llama")]


@dataclass
class Heard:
    """What a client makes of a stream."""

    text: str = ""
    reasoning: str = ""
    calls: list[list[str]] = field(default_factory=list)
    finish: str = ""
    usage: tuple[int, int] | None = None
    is_ended: bool = False


def read(name: str, body: bytes) -> Heard:
    """Read a stream of the wire."""
    readers = {"anthropic": read_anthropic, "google": read_google, "llama": read_llama}
    return readers.get(name, read_openai)(body)


def events(body: bytes) -> Iterator[Any]:
    """Yield the JSON of every data line, and None for OpenAI's end."""
    for line in body.decode().splitlines():
        if line.startswith("data: "):
            data = line.removeprefix("data: ")
            yield None if data == "[DONE]" else json.loads(data)


def read_openai(body: bytes) -> Heard:
    """Read chunks, Mistral's too."""
    heard = Heard()
    for chunk in events(body):
        if chunk is None:
            heard.is_ended = True
            continue
        usage = chunk.get("usage") or (chunk.get("x_groq") or {}).get("usage")
        if usage:
            heard.usage = (usage["prompt_tokens"], usage["completion_tokens"])
        for choice in chunk["choices"]:
            delta = choice["delta"]
            content = delta.get("content") or delta.get("refusal") or ""
            if isinstance(content, list):
                heard.reasoning += "".join(part["text"] for one in content for part in one["thinking"])
            else:
                heard.text += content
            heard.reasoning += delta.get("reasoning") or delta.get("reasoning_content") or ""
            for call in delta.get("tool_calls") or ():
                if call.get("id"):
                    heard.calls.append([call["function"]["name"], ""])
                heard.calls[call["index"]][1] += call["function"]["arguments"]
            heard.finish = choice.get("finish_reason") or heard.finish
    return heard


def read_anthropic(body: bytes) -> Heard:
    """Read named events."""
    heard = Heard()
    input_tokens = 0
    for event in events(body):
        match event["type"]:
            case "message_start":
                input_tokens = event["message"]["usage"]["input_tokens"]
            case "content_block_start" if event["content_block"]["type"] == "tool_use":
                heard.calls.append([event["content_block"]["name"], ""])
            case "content_block_delta":
                delta = event["delta"]
                heard.text += delta.get("text", "")
                heard.reasoning += delta.get("thinking", "")
                if "partial_json" in delta:
                    heard.calls[-1][1] += delta["partial_json"]
            case "message_delta":
                heard.finish = event["delta"]["stop_reason"]
                if "usage" in event:
                    heard.usage = (input_tokens, event["usage"]["output_tokens"])
            case "message_stop":
                heard.is_ended = True
    return heard


def read_google(body: bytes) -> Heard:
    """Read response objects."""
    heard = Heard()
    for response in events(body):
        if usage := response.get("usageMetadata"):
            said = usage.get("candidatesTokenCount", 0) + usage.get("thoughtsTokenCount", 0)
            heard.usage = (usage["promptTokenCount"], said)
        if "promptFeedback" in response:
            heard.finish, heard.is_ended = response["promptFeedback"]["blockReason"], True
        for candidate in response.get("candidates", ()):
            for part in candidate["content"]["parts"]:
                if part.get("thought"):
                    heard.reasoning += part["text"]
                elif "functionCall" in part:
                    heard.calls.append([part["functionCall"]["name"], json.dumps(part["functionCall"]["args"])])
                else:
                    heard.text += part["text"]
            heard.finish = candidate.get("finishReason", "")
            heard.is_ended = bool(heard.finish)
    return heard


def read_llama(body: bytes) -> Heard:
    """Read Llama's events."""
    heard = Heard()
    for one in events(body):
        event = one["event"]
        delta = event["delta"]
        if delta["type"] == "tool_call":
            heard.calls.append([delta["function"]["name"], delta["function"]["arguments"]])
        else:
            heard.text += delta["text"]
        if event["event_type"] == "complete":
            heard.finish, heard.is_ended = event["stop_reason"], True
        if "metrics" in event:
            counts = {metric["metric"]: metric["value"] for metric in event["metrics"]}
            heard.usage = (counts["num_prompt_tokens"], counts["num_completion_tokens"])
    return heard


def make_incoming(name: str, turns: Turns, *, model: str = "mill", path: str = "/v1", **options: Any) -> Incoming:
    """Write a request in the wire's own JSON."""
    make = {"anthropic": make_anthropic, "google": make_google}.get(name, make_openai)
    headers = {"anthropic-version": "2023-06-01"} if name == "anthropic" else {}
    body = make(turns, **options)
    return Incoming(path, model, body, headers, {"alt": "sse"}, is_stream_path=True)


def make_openai(turns: Turns, *, has_tools: bool = False, thinks: bool = False, **fields: Any) -> dict[str, Any]:
    """Write chat completions."""
    body: dict[str, Any] = {
        "messages": [{"role": role, "content": text} for role, text in turns],
        "stream": True,
        "stream_options": {"include_usage": True},
        **fields,
    }
    if has_tools:
        functions = [{"name": name, "parameters": schema} for name, schema in TOOLS.items()]
        body["tools"] = [{"type": "function", "function": function} for function in functions]
    if thinks:
        body["reasoning_effort"] = "high"
    return body


def make_anthropic(turns: Turns, *, has_tools: bool = False, thinks: bool = False, **fields: Any) -> dict[str, Any]:
    """Write messages."""
    messages = [{"role": role, "content": text} for role, text in turns if role != "system"]
    system = "".join(text for role, text in turns if role == "system")
    body = {"max_tokens": 4096, "messages": messages, "system": system, "stream": True, **fields}
    if has_tools:
        body["tools"] = [{"name": name, "input_schema": schema} for name, schema in TOOLS.items()]
    if thinks:
        body["thinking"] = {"type": "adaptive"}
    return body


def make_google(turns: Turns, *, has_tools: bool = False, thinks: bool = False, **fields: Any) -> dict[str, Any]:
    """Write contents."""
    roles = {"user": "user", "assistant": "model"}
    system = "".join(text for role, text in turns if role == "system")
    config: dict[str, Any] = {}
    if "max_tokens" in fields:
        config["maxOutputTokens"] = fields.pop("max_tokens")
    if thinks:
        config["thinkingConfig"] = {"includeThoughts": True}
    body: dict[str, Any] = {
        "contents": [{"role": roles[role], "parts": [{"text": text}]} for role, text in turns if role in roles],
        "systemInstruction": {"parts": [{"text": system}]},
        "generationConfig": config,
        **fields,
    }
    if has_tools:
        declared = [{"name": name, "parameters": schema} for name, schema in TOOLS.items()]
        body["tools"] = [{"functionDeclarations": declared}]
    return body


def sent(name: str, incoming: Incoming, script: Script = WHOLE) -> bytes:
    """Return the body that the wire sends."""
    played = perform(WIRES[name], incoming, script, Reply("serial", 1_800_000_000, incoming.model))
    assert isinstance(played, Performance), played
    return b"".join(step.payload for step in played.steps if isinstance(step, Send))


def heard_from(name: str, turns: Turns, script: Script = WHOLE, **options: Any) -> Heard:
    """Ask and listen."""
    return read(name, sent(name, make_incoming(name, turns, **options), script))


def uncut() -> str:
    """Return the whole answer to the question."""
    return heard_from("openai", QUESTION).text


@pytest.mark.parametrize("name", ALL)
def test_every_wire_tells_the_same_text_to_the_end(name: str) -> None:
    """One conversation, one text: with its finish, its usage and its end marker."""
    heard = heard_from(name, QUESTION)
    assert heard.text == uncut()
    assert heard.is_ended
    assert heard.finish in ("stop", "end_turn", "STOP", "eos")
    assert heard.usage is not None
    assert heard.usage[1] == len(tokenize(heard.text))


@pytest.mark.parametrize("name", ALL)
def test_the_same_request_gives_the_same_bytes(name: str) -> None:
    """Nothing is left to chance."""
    incoming = make_incoming(name, QUESTION, has_tools=True, thinks=True)
    assert sent(name, incoming) == sent(name, incoming)


@pytest.mark.parametrize("name", ALL)
def test_tools_are_called_with_arguments_that_fit(name: str) -> None:
    """A user's turn with tools at hand is answered with the first two calls, alike on every wire."""
    heard = heard_from(name, QUESTION, has_tools=True)
    assert [called for called, _ in heard.calls] == ["get_weather", "get_tide"]
    city, tide = (json.loads(arguments) for _, arguments in heard.calls)
    expected = heard_from("openai", QUESTION, has_tools=True)
    assert [city, tide] == [json.loads(arguments) for _, arguments in expected.calls]
    assert isinstance(city["city"], str)
    assert isinstance(tide["high"], bool)
    assert heard.finish in ("tool_calls", "tool_use", "STOP")
    assert heard.text == ""


@pytest.mark.parametrize("name", SHOWS_REASONING)
def test_reasoning_comes_where_it_is_asked_for(name: str) -> None:
    """It is told in the wire's own form, counted, and the text after it is the same."""
    heard = heard_from(name, QUESTION, thinks=True)
    assert heard.reasoning == heard_from("generic", QUESTION, thinks=True).reasoning
    assert heard.reasoning
    assert heard.text == uncut()
    assert heard.usage is not None
    assert heard.usage[1] == len(tokenize(heard.text)) + len(tokenize(heard.reasoning))


@pytest.mark.parametrize("name", ALL)
def test_a_limit_ends_the_answer_with_the_wires_own_finish(name: str) -> None:
    """Ten tokens are ten tokens."""
    limit: dict[str, Any] = {"max_completion_tokens" if name == "llama" else "max_tokens": 10}
    heard = heard_from(name, QUESTION, **limit)
    assert heard.text == "".join(tokenize(uncut())[:10])
    assert heard.finish in ("length", "max_tokens", "MAX_TOKENS")


@pytest.mark.parametrize("name", ALL)
def test_scripts_can_leave_out_the_usage_and_the_end(name: str) -> None:
    """`no_usage` and `no_end` leave all the rest as it was."""
    heard = heard_from(name, QUESTION, Script(no_usage=True, no_end=True), model="mill")
    assert heard.text == uncut()
    assert heard.usage is None
    assert not heard.is_ended


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("status", [400, 429, 500, 503])
def test_a_status_is_the_providers_http_error(name: str, status: int) -> None:
    """It has that status and a JSON body."""
    script = Script(status=status, retry_after_s=7)
    answer = perform(WIRES[name], make_incoming(name, QUESTION), script, Reply("serial", 0, "mill"))
    assert isinstance(answer, HttpAnswer)
    assert answer.status == status
    assert isinstance(json.loads(answer.body), dict)
    assert answer.headers.get("retry-after") == "7" or b'"retryDelay": "7s"' in answer.body


@pytest.mark.parametrize("name", ALL)
def test_a_refusal_finishes(name: str) -> None:
    """The answer declines, in the wire's own way, and ends properly."""
    heard = heard_from(name, QUESTION, Script(refusal=True))
    assert heard.is_ended
    assert heard.text.startswith("I'm sorry") or heard.finish == "PROHIBITED_CONTENT"


@dataclass(frozen=True)
class Exact:
    """How to ask a wire to go on from the last character."""

    name: str
    model: str = "mill"
    path: str = "/v1"
    message: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    echoes: bool = False

    def ask(self, turns: Turns, partial: str) -> Incoming:
        """Write the request."""
        asked = [*turns, ("assistant", partial)]
        incoming = make_incoming(self.name, asked, model=self.model, path=self.path, **self.options)
        if self.message:
            incoming.body["messages"][-1].update(self.message)
        return incoming


EXACT = [
    Exact("anthropic", "claude-haiku-4-5-20251001"),
    Exact("anthropic", "claude-3-5-sonnet-20240620"),
    Exact("google", "gemini-2.5-flash"),
    Exact("google", "gemini-3.5-flash"),
    Exact("mistral", "mistral-small-latest", message={"prefix": True}, echoes=True),
    Exact("groq"),
    Exact("llama.cpp"),
    Exact("llama.cpp", options={"echo": True}, echoes=True),
    Exact("ollama", "qwen3-coder:30b"),
    Exact("vllm", options={"continue_final_message": True, "add_generation_prompt": False}),
    Exact("vllm", options={"continue_final_message": True, "add_generation_prompt": False, "echo": True}, echoes=True),
    Exact("deepseek", path="/hosts/deepseek/beta/chat/completions", message={"prefix": True}),
    Exact("openrouter", "anthropic/claude-haiku-4.5"),
]


def label(exact: Exact) -> str:
    """Name a way to continue."""
    return f"{exact.name}-{exact.model}{'-echo' if exact.echoes else ''}"


@pytest.mark.parametrize("exact", EXACT, ids=label)
@pytest.mark.parametrize("token_count", [1, 20, 57, 150])
def test_an_answer_cut_and_continued_exactly_is_the_uncut_one(exact: Exact, token_count: int) -> None:
    """Cut after some tokens, asked to go on: together byte for byte the whole, echo or none."""
    cut = read(exact.name, sent(exact.name, make_incoming(exact.name, QUESTION), Script(cut_after_tokens=token_count)))
    assert not cut.is_ended
    partial = cut.text.rstrip()
    rest = read(exact.name, sent(exact.name, exact.ask(QUESTION, partial)))
    assert rest.is_ended
    if exact.echoes:
        assert rest.text == uncut()
    else:
        assert partial + rest.text == uncut()


@pytest.mark.parametrize("exact", EXACT, ids=label)
@settings(max_examples=25)
@given(cut_at=st.integers(1, 1000))
def test_a_cut_between_any_two_characters_can_be_continued(exact: Exact, cut_at: int) -> None:
    """Also inside a token, a word or a code fence."""
    partial = uncut()[:cut_at].rstrip()
    rest = read(exact.name, sent(exact.name, exact.ask(QUESTION, partial)))
    assert rest.text == uncut() if exact.echoes else partial + rest.text == uncut()


REFUSING = [
    ("anthropic", "claude-opus-4-6", b"does not support assistant message prefill"),
    ("anthropic", "claude-sonnet-5-5", b"does not support assistant message prefill"),
    ("google", "gemini-3.6-flash", b"Requests ending with a model turn are not supported"),
    ("google", "gemini-3.5-flash-lite", b"Requests ending with a model turn are not supported"),
    ("mistral", "mistral-small", b"Expected last role User or Tool (or Assistant with prefix True)"),
    ("openrouter", "anthropic/claude-sonnet-4.6", b"does not support assistant message prefill"),
]


@pytest.mark.parametrize(("name", "model", "message"), REFUSING)
def test_a_model_without_prefill_says_400(name: str, model: str, message: bytes) -> None:
    """A trailing assistant turn is an error there, unless the script accepts it."""
    incoming = make_incoming(name, [*QUESTION, ("assistant", "A weir")], model=model)
    answer = perform(WIRES[name], incoming, WHOLE, Reply("serial", 0, model))
    assert isinstance(answer, HttpAnswer)
    assert answer.status == 400
    assert message in answer.body


@pytest.mark.parametrize("name", sorted({*ALL} - {"openrouter"}))
def test_the_script_beats_the_models_own_mind_about_prefill(name: str) -> None:
    """`prefill=accept` continues anywhere, `prefill=reject` nowhere."""
    partial = uncut()[:100].rstrip()
    asked = [*QUESTION, ("assistant", partial)]
    rest = heard_from(name, asked, Script(prefill="accept", echo="off"))
    assert partial + rest.text == uncut()
    echoed = heard_from(name, asked, Script(prefill="accept", echo="on"))
    assert echoed.text == uncut()
    incoming = make_incoming(name, asked, model="claude-haiku-4-5")
    refused = perform(WIRES[name], incoming, Script(prefill="reject"), Reply("serial", 0, "mill"))
    assert isinstance(refused, HttpAnswer)
    assert refused.status == 400


@pytest.mark.parametrize("name", ["openai", "azure", "xai", "llama", "meta", "deepseek", "together"])
def test_where_prefill_is_unknown_a_new_message_begins(name: str) -> None:
    """The trailing turn is part of the conversation, and the answer another one."""
    answer = heard_from(name, [*QUESTION, ("assistant", uncut()[:100])])
    assert answer.is_ended
    assert not uncut().startswith(uncut()[:100] + answer.text[:20])


def anchored(turns: Turns, partial: str, request: str) -> Turns:
    """Return the conversation with a request to go on."""
    return [*turns, ("assistant", partial), ("user", request)]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("cut_at", [60, 333, 1000])
def test_an_anchored_request_is_answered_with_the_anchor_and_the_rest(name: str, cut_at: int) -> None:
    """Asked to repeat the last characters and go on, every model does, and the seam is exact."""
    partial = uncut()[:cut_at]
    asked = anchored(QUESTION, partial, f"Interrupted. Repeat its end, <<{partial[-35:]}>>, and go on.")
    heard = heard_from(name, asked)
    assert heard.text.startswith(partial[-35:])
    assert partial[:-35] + heard.text == uncut()


def test_three_wires_in_a_chain_tell_one_text() -> None:
    """Begun by OpenAI, continued by Anthropic when asked, ended by Gemini from the last character."""
    first = read("openai", sent("openai", make_incoming("openai", QUESTION), Script(cut_after_tokens=30))).text
    asked = anchored(QUESTION, first, "You were interrupted. Repeat the last 40 characters and go on.")
    second = heard_from("anthropic", asked, Script(cut_after_tokens=60), model="claude-opus-5").text
    partial = first[:-40] + second
    third = heard_from("google", [*QUESTION, ("assistant", partial)], model="gemini-2.5-pro")
    assert partial + third.text == uncut()


@pytest.mark.parametrize("name", ALL)
def test_a_call_cut_in_half_has_no_end_and_no_whole_arguments(name: str) -> None:
    """`half_tool` stops inside the last call's arguments."""
    body = sent(name, make_incoming(name, QUESTION, has_tools=True), Script(half_tool=True))
    lines = [line for line in body.decode().splitlines() if line.startswith("data: ") and line.endswith("}")]
    heard = read(name, "\n".join(lines).encode())
    assert not heard.is_ended
    assert len(heard.calls) < 2 or not heard.calls[1][1].endswith("}")


@pytest.mark.parametrize("name", ALL)
def test_an_error_in_mid_stream_is_json_and_the_last_thing_said(name: str) -> None:
    """After five tokens comes the provider's error, and no finish."""
    body = sent(name, make_incoming(name, QUESTION), Script(error_after=5))
    last = [event for event in events(body) if event is not None][-1]
    assert "error" in last or last.get("object") == "error" or last.get("status") == 503
    kept = body[: body.rindex(b"data: {")]
    heard = read(name, kept.removesuffix(b"event: error\n"))
    assert heard.text == "".join(tokenize(uncut())[:5])
    assert not heard.finish


@pytest.mark.parametrize("name", ALL)
def test_pings_and_late_texts_are_events_of_the_wire(name: str) -> None:
    """A stalled stream has pings that say nothing; text after the finish can be read."""
    pinged = heard_from(name, QUESTION, Script(stall_after=3, stall_s=1, stall_ping_s=0.25))
    assert pinged.text == uncut()
    late = heard_from(name, QUESTION, Script(after_finish="text"))
    assert late.text == uncut() + " (and one thing more)"
    assert heard_from(name, QUESTION, Script(after_finish="duplicate")).text == uncut()
