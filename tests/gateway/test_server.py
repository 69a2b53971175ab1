import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import aiohttp
import pytest
from structlog.contextvars import get_contextvars, merge_contextvars
from structlog.testing import capture_logs

from gateway.core.call import Call
from gateway.pipeline import Next, Send
from gateway.simulator import Script
from tests.conftest import MakeGateway, Running
from tests.eventually import eventually
from tests.raw_client import RawClient, chat, connected, exchange, parse, request
from tests.scripted_upstream import (
    DONE,
    END,
    FINISH,
    PING,
    ROLE,
    STREAM,
    ScriptedUpstream,
    Step,
    answer,
    chunk,
    complete,
    config_over,
    event,
    openai_chunk,
    text,
    texts_of,
    words,
)

CLIENT_KEY = "mr_test_0123456789abcdefghijklmnop"
AUTH = [
    {"use": "middleware.observe.Observe"},
    {"use": "middleware.auth.Auth", "keys": [{"id": "web", "sha256": sha256(CLIENT_KEY.encode()).hexdigest()}]},
    {"use": "middleware.fallback.Fallback"},
]
PATH = "/v1/chat/completions"


@dataclass(frozen=True)
class Broken:
    """A middleware with a mistake in it."""

    async def __call__(self, call: Call, send: Send, call_next: Next) -> None:  # noqa: ARG002, the signature
        """Fail as no middleware should."""
        raise ZeroDivisionError("secret detail")


# --- headers of an answer


async def test_a_streamed_answer_has_the_headers_that_keep_proxies_from_buffering(make_gateway: MakeGateway) -> None:
    """Type, caching and buffering are as promised, and the target is named."""
    async with ScriptedUpstream() as upstream:
        gateway = await make_gateway(config=config_over(upstream))
        found = await exchange(gateway.url, request(PATH, chat()))
    assert found.status == 200
    assert found.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert found.headers["cache-control"] == "no-cache, no-transform"
    assert found.headers["x-accel-buffering"] == "no"
    assert found.headers["x-millrace-target"] == "up/mill"
    assert found.headers["x-request-id"].startswith("req_")
    assert found.headers["transfer-encoding"] == "chunked"
    assert "content-encoding" not in found.headers
    assert found.is_whole
    assert found.body.endswith(DONE)


async def test_the_target_named_is_the_one_that_gave_the_first_token(make_gateway: MakeGateway) -> None:
    """Not the one that was tried before."""
    async with ScriptedUpstream(["fin"]) as broken, ScriptedUpstream() as good:
        gateway = await make_gateway(config=config_over(broken, good))
        found = await exchange(gateway.url, request(PATH, chat()))
    assert found.headers["x-millrace-target"] == "up1/mill"
    assert list(texts_of(found.body)) == ["Hello"]


async def test_an_answer_wanted_whole_names_its_target_too(make_gateway: MakeGateway) -> None:
    """And is the provider's own document."""
    gateway = await make_gateway("openai")
    found = await exchange(gateway.url, request(PATH, chat(stream=False)))
    assert found.status == 200
    assert found.headers["content-type"] == "application/json"
    assert found.headers["x-millrace-target"] == "openai/gpt-5-mini"
    assert found.json["object"] == "chat.completion"
    assert found.json["choices"][0]["finish_reason"] == "stop"


async def test_a_sane_request_id_of_the_caller_is_kept(make_gateway: MakeGateway) -> None:
    """On answers and on errors."""
    gateway = await make_gateway("openai")
    for body in (chat(), b"{"):
        found = await exchange(gateway.url, request(PATH, body, x_request_id="trace-1:a.b_C"))
        assert found.headers["x-request-id"] == "trace-1:a.b_C"


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "é", "a,b", 'x"><script>'])
async def test_an_odd_request_id_of_the_caller_is_replaced(given: str, make_gateway: MakeGateway) -> None:
    """It would end up in logs and headers."""
    gateway = await make_gateway("openai")
    found = await exchange(gateway.url, request("/v1/models", method="GET", x_request_id=given))
    assert found.headers["x-request-id"].startswith("req_")


# --- traces

CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize(
    ("body", "status"), [(chat(), 200), (chat(stream=False), 200), (chat(model="nobody/has-it"), 404), (b"{", 400)]
)
async def test_a_client_that_sends_its_trace_is_told_it_again(
    body: bytes, status: int, make_gateway: MakeGateway
) -> None:
    """Streamed or not, good or bad: the trace is the caller's, and every line of the log has it."""
    gateway = await make_gateway("openai")
    with capture_logs([merge_contextvars]) as logs:
        found = await exchange(gateway.url, request(PATH, body, traceparent=CALLER))
    assert found.status == status
    assert found.headers["traceparent"] == CALLER
    assert {line["trace_id"] for line in logs} == {CALLER.split("-")[1]}
    assert {line["request_id"] for line in logs} == {found.headers["x-request-id"]}
    assert get_contextvars() == {}


async def test_a_client_without_a_trace_is_told_of_none(make_gateway: MakeGateway) -> None:
    """Nobody could look it up; the lines of the log belong together by it all the same."""
    gateway = await make_gateway("openai")
    with capture_logs() as logs:
        found = await exchange(gateway.url, request(PATH, chat()))
    assert "traceparent" not in found.headers
    assert {len(line["trace_id"]) for line in logs if line["event"] == "stream.finished"} == {32}


@pytest.mark.parametrize("kind", ["openai", "anthropic", "google", "mistral", "meta", "llama", "openai-compatible"])
@pytest.mark.parametrize("propagates", [False, True])
async def test_a_provider_is_told_of_a_trace_where_that_is_wanted(
    kind: str, make_gateway: MakeGateway, *, propagates: bool
) -> None:
    """Most are strangers: by default not even the caller's own header reaches them."""
    refused = answer(400, {"error": {"message": "no"}})
    async with ScriptedUpstream([refused]) as upstream:
        config = config_over(upstream)
        config["providers"]["up"]["kind"] = kind
        config["telemetry"] = {"propagate_to_providers": propagates}
        gateway = await make_gateway(config=config)
        await exchange(gateway.url, request(PATH, chat(), traceparent=CALLER, tracestate="a=b"))
    [seen] = upstream.requests
    told = {name: seen.headers.get(name) for name in ("traceparent", "tracestate")}
    assert told == ({"traceparent": CALLER, "tracestate": "a=b"} if propagates else dict.fromkeys(told))


# --- the commit point


async def test_an_error_before_the_first_byte_is_an_http_error(make_gateway: MakeGateway) -> None:
    """Status, the dialect's body, for how long to wait, and that the gateway has tried what could be tried."""
    said = {"error": {"message": "Rate limit reached", "type": "requests", "code": "rate_limit_exceeded"}}
    async with ScriptedUpstream([answer(429, said, retry_after="13")]) as upstream:
        gateway = await make_gateway(config=config_over(upstream))
        found = await exchange(gateway.url, request(PATH, chat()))
    assert found.status == 429
    assert found.headers["retry-after"] == "13"
    assert found.headers["x-should-retry"] == "false"
    assert found.error["code"] == "rate_limit_exceeded"
    assert found.is_whole


async def test_a_status_200_with_an_error_event_is_still_an_http_error(make_gateway: MakeGateway) -> None:
    """The provider had committed itself, the gateway had not."""
    async with ScriptedUpstream([STREAM + chunk(ROLE), chunk(event({"error": {"message": "x", "code": 503}}))]) as up:
        gateway = await make_gateway(config=config_over(up))
        found = await exchange(gateway.url, request(PATH, chat()))
    assert found.status in (502, 503)
    assert found.error["message"]
    assert found.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    "broken",
    [
        ["fin"],
        ["rst"],
        [END],
        [chunk(DONE) + END],
        [chunk(event({"error": {"message": "broke", "code": 500}}), DONE) + END],
        [chunk(b"data: {nonsense\n\n")],
        [chunk(openai_chunk({"content": "half a w"})[:50]), "fin"],
        ["stall"],
    ],
    ids=["fin", "rst", "clean end", "done only", "error event", "malformed", "half an event", "stall"],
)
async def test_an_error_after_the_first_byte_is_told_twice(broken: list[Step], make_gateway: MakeGateway) -> None:
    """First by the error event, then by the end that is missing; never by ``[DONE]``, and what came before stays."""
    go_on = asyncio.Event()
    async with ScriptedUpstream([STREAM + chunk(ROLE, text("a", "b")), go_on, *broken]) as upstream:
        config = config_over(upstream)
        config["providers"]["up"]["stall_timeout_s"] = 0.3
        gateway = await make_gateway(config=config)
        async with connected(gateway.url) as client:
            await client.send(request(PATH, chat()))
            await client.read_until(b'"b"')
            go_on.set()
            seen = await client.read_all()
    found = parse(seen)
    assert found.status == 200
    assert list(texts_of(found.body)) == ["a", "b"]
    *_, last = found.body.decode().strip().split("\n\n")
    error = json.loads(last.removeprefix("data: "))["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert not found.is_whole
    assert not seen.endswith(b"0\r\n\r\n")
    assert b"[DONE]" not in seen
    assert b'"finish_reason":"' not in found.body


async def test_an_unexpected_failure_of_a_middleware_is_told_without_details(make_gateway: MakeGateway) -> None:
    """The log has the traceback, the client an error and its request id."""
    async with ScriptedUpstream() as upstream:
        chain = [{"use": "middleware.observe.Observe"}, {"use": "tests.gateway.test_server.Broken"}]
        gateway = await make_gateway(config=config_over(upstream, middleware=chain))
        with capture_logs() as logs:
            found = await exchange(gateway.url, request(PATH, chat()))
    assert found.status == 500
    assert found.error["code"] == "internal_error"
    assert "secret detail" not in found.body.decode()
    assert [line["request_id"] for line in logs if line["event"] == "call.failed"] == [found.headers["x-request-id"]]
    assert [line["outcome"] for line in logs if line["event"] == "stream.finished"] == ["gateway_error"]


# --- fidelity


async def test_a_stream_in_the_clients_own_dialect_is_passed_on_byte_for_byte(make_gateway: MakeGateway) -> None:
    """Log probabilities, tiers, fingerprints, vendor extensions, odd spacing: nothing is encoded anew."""
    extras: dict[str, Any] = {
        "service_tier": "default",
        "system_fingerprint": "fp_1",
        "obfuscation": "aB3",
        "x_vendor": {"a": [1, 2.50, None]},
    }
    logprobs = {"content": [{"token": "a", "logprob": -0.25, "bytes": [97], "top_logprobs": []}], "refusal": None}
    said = [
        openai_chunk({"role": "assistant", "content": "", "refusal": None}, **extras),
        b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"mill","choices":'
        b'[{"index":0,"delta":{"content":"a"},"logprobs":%b,"finish_reason":null}], "x" :  1e3 }\n\n'
        % json.dumps(logprobs).encode(),
        openai_chunk({"content": "日本"}, **extras),
        openai_chunk({"annotations": [{"type": "url_citation", "url_citation": {"url": "https://x"}}]}, **extras),
        openai_chunk({"content": " b"}, prompt_filter_results=[], **extras),
        openai_chunk({}, "stop", **extras),
        DONE,
    ]
    async with ScriptedUpstream([STREAM + chunk(*said[:3]), 0.02, chunk(*said[3:]) + END]) as upstream:
        gateway = await make_gateway(config=config_over(upstream))
        body = chat(logprobs=True, service_tier="flex", x_vendor_option={"deep": [1]})
        found = await exchange(gateway.url, request(PATH, body))
        asked = upstream.requests[0].json
    assert found.body.split(b"\n\n") == b"".join(said).split(b"\n\n")
    assert asked["service_tier"] == "flex"
    assert asked["x_vendor_option"] == {"deep": [1]}


async def test_usage_comes_last_before_done_for_whoever_asked(make_gateway: MakeGateway) -> None:
    """And for nobody else, though the gateway itself always asks."""
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    last = event({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "mill", "choices": [],
                  "usage": usage})  # fmt: skip
    async with ScriptedUpstream([STREAM + chunk(ROLE, text("a"), FINISH, last, DONE) + END]) as upstream:
        gateway = await make_gateway(config=config_over(upstream))
        plain = await exchange(gateway.url, request(PATH, chat()))
        asking = await exchange(gateway.url, request(PATH, chat(stream_options={"include_usage": True})))
    *_, usage_event, done, rest = asking.body.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    assert json.loads(usage_event[6:])["usage"] == usage
    assert b"usage" not in plain.body


async def test_comments_and_event_names_of_a_provider_stay_with_it(make_gateway: MakeGateway) -> None:
    """Some SDKs crash on each of them."""
    noise = b"\xef\xbb\xbf: hi\n\nretry: 100\n\nid: 7\n\n"
    named = b"event: chunk\nid: 1\n" + text("a")
    async with ScriptedUpstream([STREAM + chunk(noise, ROLE, PING, named, FINISH, DONE) + END]) as upstream:
        gateway = await make_gateway(config=config_over(upstream))
        found = await exchange(gateway.url, request(PATH, chat()))
    lines = [line for line in found.body.split(b"\n") if line]
    assert all(line.startswith(b"data: ") for line in lines)
    assert list(texts_of(found.body)) == ["a"]


# --- /api/chat/stream


async def test_plain_text_comes_chunk_by_chunk(make_gateway: MakeGateway) -> None:
    """What a reader gets is the answer and nothing else, whatever the request's content type says."""
    go_on = asyncio.Event()
    async with ScriptedUpstream(
        [STREAM + chunk(ROLE, text("Käse")), go_on, chunk(text(" 日本"), FINISH, DONE) + END]
    ) as up:
        gateway = await make_gateway(config=config_over(up))
        body = json.dumps({"message": "Hello"}).encode()
        async with connected(gateway.url) as client:
            await client.send(request("/api/chat/stream", body, content_type="text/plain", connection="close"))
            first = await client.read_until("Käse".encode())
            assert "日本".encode() not in first
            go_on.set()
            found = parse(await client.read_all())
        assert up.requests[0].json["messages"] == [{"role": "user", "content": "Hello"}]
    assert found.headers["content-type"] == "text/plain; charset=utf-8"
    assert found.body.decode() == "Käse 日本"
    assert found.is_whole


async def test_a_cut_answer_makes_a_fetch_reader_fail(make_gateway: MakeGateway) -> None:
    """Text has no room for an error: the body is left without its end, and a reader rejects."""
    cuts = asyncio.Event(), asyncio.Event()
    scripts: list[list[Step]] = [[STREAM + chunk(ROLE, text("half an ans")), cut, "fin"] for cut in cuts]
    async with ScriptedUpstream(*scripts) as upstream:
        gateway = await make_gateway(config=config_over(upstream))
        async with connected(gateway.url) as client:
            await client.send(request("/api/chat/stream", {"message": "Hello"}))
            await client.read_until(b"half an ans")
            cuts[0].set()
            found = parse(await client.read_all())
        async with aiohttp.ClientSession() as session:
            response = await session.post(f"{gateway.url}/api/chat/stream", json={"message": "Hello"})
            cuts[1].set()
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.read()
    assert found.body == b"half an ans"
    assert not found.is_whole


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "message"),
        ({"message": 1}, "message"),
        ({"message": " "}, "message"),
        ({"message": "a", "model": 1}, "model"),
    ],
)
async def test_a_wrong_plain_text_request_is_told_what_is_wrong(
    body: object, param: str, make_gateway: MakeGateway
) -> None:
    """In JSON: the status says that it is no answer."""
    gateway = await make_gateway("openai")
    found = await exchange(gateway.url, request("/api/chat/stream", body))
    assert found.status == 400
    assert found.error["param"] == param


# --- models


async def test_the_models_are_listed_as_a_client_may_ask_for_them(make_gateway: MakeGateway) -> None:
    """Aliases first, then every target behind them."""
    gateway = await make_gateway("openai", "anthropic")
    found = await exchange(gateway.url, request("/v1/models", method="GET"))
    assert found.json["object"] == "list"
    assert [one["id"] for one in found.json["data"]] == ["chat", "openai/gpt-5-mini", "anthropic/claude-haiku-4-5"]
    assert all(one.keys() == {"id", "object", "created", "owned_by"} for one in found.json["data"])


@pytest.mark.parametrize("name", ["chat", "openai/gpt-5-mini", "openai/any-other"])
async def test_a_model_that_can_be_asked_for_can_be_looked_at(name: str, make_gateway: MakeGateway) -> None:
    """An id may have a slash."""
    gateway = await make_gateway("openai")
    found = await exchange(gateway.url, request(f"/v1/models/{name}", method="GET"))
    assert found.status == 200
    assert found.json["id"] == name


@pytest.mark.parametrize("name", ["nope", "nobody/model", "openai/"])
async def test_an_unknown_model_is_404_wherever_it_is_named(name: str, make_gateway: MakeGateway) -> None:
    """With OpenAI's own code for it."""
    gateway = await make_gateway("openai")
    looked = await exchange(gateway.url, request(f"/v1/models/{name}", method="GET"))
    asked = await exchange(gateway.url, request(PATH, chat(model=name)))
    for found in (looked, asked):
        assert found.status == 404
        assert found.error["code"] == "model_not_found"
    assert not gateway.simulator.requests


# --- keys


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {CLIENT_KEY}"},
        {"authorization": f"bearer  {CLIENT_KEY} "},
        {"x_api_key": CLIENT_KEY},
        {"x_goog_api_key": CLIENT_KEY},
    ],
)
async def test_a_key_is_taken_in_each_of_its_forms(headers: dict[str, str], make_gateway: MakeGateway) -> None:
    """As OpenAI, Anthropic and Google have it; the provider gets the gateway's own key instead."""
    async with ScriptedUpstream() as upstream:
        gateway = await make_gateway(config=config_over(upstream, middleware=AUTH))
        found = await exchange(gateway.url, request(PATH, chat(), **headers))
        asked = upstream.requests[0]
        models = await exchange(gateway.url, request("/v1/models", method="GET", **headers))
    assert found.status == models.status == 200
    assert CLIENT_KEY not in asked.head
    assert asked.headers["authorization"] == "Bearer sk-canary-0123456789abcdef"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Basic dTpw"},
        {"x_api_key": ""},
        {"authorization": f"Bearer {sha256(CLIENT_KEY.encode()).hexdigest()}"},
    ],
    ids=["none", "wrong", "basic", "empty", "the stored hash"],
)
@pytest.mark.parametrize("path", [PATH, "/api/chat/stream", "/v1/models", "/v1/models/chat"])
async def test_a_caller_without_a_key_learns_nothing(
    path: str, headers: dict[str, str], make_gateway: MakeGateway
) -> None:
    """Neither whether its body was right nor which models there are."""
    async with ScriptedUpstream() as upstream:
        gateway = await make_gateway(config=config_over(upstream, middleware=AUTH))
        method = "GET" if "models" in path else "POST"
        found = await exchange(gateway.url, request(path, b"{not json", method=method, **headers))
        assert upstream.requests == []
    assert found.status == 401
    assert found.headers["www-authenticate"] == "Bearer"
    assert found.error["type"] == "authentication_error"


@pytest.mark.parametrize("expect", [None, "100-continue"])
async def test_a_caller_without_a_key_is_refused_before_its_body_is_read(
    expect: str | None, make_gateway: MakeGateway
) -> None:
    """The answer comes while ten megabytes are still to be sent."""
    async with ScriptedUpstream() as upstream:
        gateway = await make_gateway(config=config_over(upstream, middleware=AUTH))
        async with connected(gateway.url) as client:
            await client.send(request(PATH, content_length="10000000", expect=expect) + b'{"model": "chat", ')
            seen = await client.read_until(b'"code":"missing_api_key"}}')
    assert b"401 Unauthorized" in seen


# --- bad input


@asynccontextmanager
async def good_stream(gateway: Running, tokens: list[str]) -> AsyncIterator[None]:
    """Have a stream running meanwhile, and find it complete and in order at the end."""
    async with connected(gateway.url) as neighbour:
        await neighbour.send(request(PATH, chat("A good one")))
        await neighbour.read_until(b"w0 ")
        yield
        await neighbour.read_until(b"\r\n0\r\n\r\n")
    found = parse(neighbour.seen)
    assert list(texts_of(found.body)) == tokens
    assert found.is_whole
    assert found.body.endswith(DONE)


def slow(tokens: list[str]) -> list[Step]:
    """Return the script of a stream that takes a fifth of a second."""
    return [STREAM + chunk(ROLE), *(step for word in tokens for step in (chunk(text(word)), 0.2 / len(tokens))),
            chunk(FINISH, DONE) + END]  # fmt: skip


DEEP = b'{"model": "chat", "messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
MESSAGE = {"role": "user", "content": "Hello"}


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (b"", 400, None),
        (b"{", 400, None),
        (b"null", 400, None),
        (b"[1, 2]", 400, None),
        (b'{"model": "chat", "messages": [\xff\xfe]}', 400, None),
        (b'{"model": "chat", "messages": [{"role": "user", "content": "\xed\xa0\x80"}]}', 400, None),
        (DEEP, 400, None),
        (DEEP.replace(b"[", b'{"a":').replace(b"]", b"}"), 400, None),
        ({"messages": [MESSAGE]}, 400, "model"),
        ({"model": 7, "messages": [MESSAGE]}, 400, "model"),
        ({"model": "chat"}, 400, "messages"),
        ({"model": "chat", "messages": "Hello"}, 400, "messages"),
        ({"model": "chat", "messages": []}, 400, "messages"),
        ({"model": "chat", "messages": [7]}, 400, "messages[0]"),
        ({"model": "chat", "messages": [{"role": "robot", "content": "x"}]}, 400, "messages[0].role"),
        ({"model": "chat", "messages": [MESSAGE], "stream": "yes"}, 400, "stream"),
        ({"model": "chat", "messages": [MESSAGE], "temperature": "hot"}, 400, "temperature"),
        ({"model": "chat", "messages": [MESSAGE], "max_tokens": -1}, 400, "max_tokens"),
        ({"model": "chat", "messages": [MESSAGE], "n": 10**9}, 400, "n"),
        ({"model": "chat", "messages": [MESSAGE], "tools": {}}, 400, "tools"),
        ({"model": "chat", "messages": [MESSAGE], "stop": 1}, 400, "stop"),
        ({"model": "nope", "messages": [MESSAGE]}, 404, "model"),
        (b" " * 20_000_000, 413, None),
    ],
)
async def test_a_bad_body_gets_its_status_and_one_clear_line(
    body: object, status: int, param: str | None, make_gateway: MakeGateway
) -> None:
    """The caller is told what is wrong and where; a neighbour notices nothing, the provider neither."""
    tokens = words(25)
    async with ScriptedUpstream(slow(tokens)) as upstream:
        gateway = await make_gateway(config=config_over(upstream))
        async with good_stream(gateway, tokens):
            with capture_logs() as logs:
                found = await exchange(gateway.url, request(PATH, body))
            assert found.status == status
            assert found.error["param"] == param
            assert found.error["type"] == "invalid_request_error"
            assert len(found.error["message"]) < 300
            lines = [line for line in logs if line["event"] == "stream.finished"]
            assert [(line["outcome"], line["http_status"]) for line in lines] == [("rejected", status)]
        assert len(upstream.requests) == 1


async def test_a_body_over_the_limit_without_a_length_is_refused_as_it_comes(make_gateway: MakeGateway) -> None:
    """Chunked, it says no length; unpacked, it grows: what counts is what has to be held."""
    config = {"server": {"max_body_bytes": 1000}}
    async with ScriptedUpstream() as upstream:
        gateway = await make_gateway(config=config_over(upstream, **config))
        head = request(PATH, content_length=None, transfer_encoding="chunked")
        chunked = await exchange(gateway.url, head + chunk(b" " * 5000) + END)
        packed = await exchange(gateway.url, request(PATH, gzip.compress(b" " * 100_000), content_encoding="gzip"))
        assert upstream.requests == []
    for found in (chunked, packed):
        assert found.status == 413
        assert found.error["code"] == "request_too_large"


async def test_a_chunked_or_compressed_body_is_as_good_as_any(make_gateway: MakeGateway) -> None:
    """HTTP has more than one way to send a body."""
    body = json.dumps(chat()).encode()
    async with ScriptedUpstream() as upstream:
        gateway = await make_gateway(config=config_over(upstream))
        head = request(PATH, content_length=None, transfer_encoding="chunked")
        pieces = b"".join(chunk(body[at : at + 10]) for at in range(0, len(body), 10))
        chunked = await exchange(gateway.url, head + pieces + END)
        packed = await exchange(gateway.url, request(PATH, gzip.compress(body), content_encoding="gzip"))
    for found in (chunked, packed):
        assert list(texts_of(found.body)) == ["Hello"]


@pytest.mark.parametrize(
    ("data", "statuses"),
    [
        (request(PATH, b"not gzip", content_encoding="gzip"), {400}),
        (request(PATH, b"x", content_encoding="br"), {400, 415}),
        (request(PATH, content_length=None, transfer_encoding="chunked") + b"zz\r\nbad\r\n", {400}),
    ],
    ids=["not gzip", "unknown encoding", "bad chunk"],
)
async def test_a_body_that_is_not_what_its_headers_say_is_refused(
    data: bytes, statuses: set[int], make_gateway: MakeGateway
) -> None:
    """With a status, not with silence."""
    gateway = await make_gateway("openai")
    found = await exchange(gateway.url, data)
    assert found.status in statuses
    assert found.error["message"]


async def test_half_a_body_runs_into_its_timeout(make_gateway: MakeGateway) -> None:
    """408, and the connection is closed: what comes late belongs to nothing."""
    tokens = words(25)
    async with ScriptedUpstream(slow(tokens)) as upstream:
        gateway = await make_gateway(config=config_over(upstream, server={"body_timeout_s": 0.1}))
        async with good_stream(gateway, tokens), connected(gateway.url) as client:
            await client.send(request(PATH, b'{"model": ', content_length="100"))
            found = parse(await client.read_until(b"}}"))
    assert found.status == 408
    assert found.error["code"] == "request_timeout"
    assert found.headers["connection"] == "close"


async def test_pipelined_requests_are_answered_in_their_order(make_gateway: MakeGateway) -> None:
    """Two streams and an error on one connection, sent at once."""
    async with ScriptedUpstream(complete("first"), complete("second")) as upstream:
        gateway = await make_gateway(config=config_over(upstream))
        three = [request(PATH, chat()), request(PATH, b"{"), request(PATH, chat(), connection="close")]
        async with connected(gateway.url) as client:
            await client.send(b"".join(three))
            seen = await client.read_all()
    assert seen.index(b"first") < seen.index(b"not valid JSON") < seen.index(b"second")
    assert seen.count(b"HTTP/1.1 ") == 3


async def test_a_connection_is_kept_after_a_stream_and_after_an_error(make_gateway: MakeGateway) -> None:
    """Neither costs the client a new handshake."""
    gateway = await make_gateway("openai")
    async with connected(gateway.url) as client:
        for _ in range(2):
            client.seen = b""
            await client.send(request(PATH, chat(model="openai/mill?token_count=3")))
            await client.read_until(b"\r\n0\r\n\r\n")
            client.seen = b""
            await client.send(request(PATH, b"{"))
            assert (await client.answer()).status == 400


async def test_a_stream_over_http_1_0_is_refused(make_gateway: MakeGateway) -> None:
    """Without chunks a cut could not be told from an end."""
    gateway = await make_gateway("openai")
    refused = await exchange(gateway.url, request(PATH, chat(), version="1.0"))
    assert refused.status == 505
    assert refused.error["message"]
    assert gateway.simulator.requests == []
    whole = await exchange(gateway.url, request(PATH, chat(stream=False), version="1.0"))
    assert whole.status == 200
    assert whole.json["choices"][0]["finish_reason"] == "stop"


# --- who leaves


async def _stream_until(client: RawClient, mark: bytes) -> None:
    await client.send(request(PATH, chat()))
    await client.read_until(mark)


@pytest.mark.parametrize("how", ["fin", "rst", "half-close"])
async def test_a_client_that_leaves_mid_stream_frees_the_provider_at_once(how: str, make_gateway: MakeGateway) -> None:
    """However it leaves; the log says that it was the client, and what it had got."""
    async with ScriptedUpstream([STREAM + chunk(ROLE, text("a", "b")), "stall"]) as upstream:
        gateway = await make_gateway(config=config_over(upstream))
        with capture_logs() as logs:
            async with connected(gateway.url) as client:
                await _stream_until(client, b'"b"')
                if how == "rst":
                    client.abort()
                elif how == "fin":
                    client.writer.close()
                else:
                    client.writer.write_eof()
                await asyncio.wait_for(upstream.requests[0].gone.wait(), 10)
                await eventually(lambda: any(line["event"] == "stream.finished" for line in logs))
    (line,) = [line for line in logs if line["event"] == "stream.finished"]
    assert line["outcome"] == "client_aborted"
    assert line["delta_count"] == 2
    (settled,) = [line for line in logs if line["event"] == "attempt.settled"]
    assert (settled["result"], settled["reason"]) == ("cancelled", "client_gone")
    assert (settled["request_id"], settled["usage_source"]) == (line["request_id"], "estimated")


@pytest.mark.parametrize("path", [PATH, "/api/chat/stream"])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_during_the_prefill_frees_the_provider_at_once(
    path: str, make_gateway: MakeGateway, *, stream: bool
) -> None:
    """Nothing was sent yet in either direction, and nobody would notice by writing."""
    async with ScriptedUpstream(["stall"]) as upstream:
        gateway = await make_gateway(config=config_over(upstream))
        with capture_logs() as logs:
            async with connected(gateway.url) as client:
                await client.send(request(path, {**chat(stream=stream), "message": "Hello"}))
                await upstream.request()
                client.abort()
                await asyncio.wait_for(upstream.requests[0].gone.wait(), 10)
                await eventually(lambda: any(line["event"] == "stream.finished" for line in logs))
    (line,) = [line for line in logs if line["event"] == "stream.finished"]
    assert line["outcome"] == "client_aborted"
    (settled,) = [line for line in logs if line["event"] == "attempt.settled"]
    assert (settled["result"], settled["reason"], settled["is_delivered"]) == ("cancelled", "client_gone", False)


async def test_a_client_that_leaves_is_noticed_by_the_simulator(make_gateway: MakeGateway) -> None:
    """The provider stops writing: few tokens are generated for nobody."""
    gateway = await make_gateway("openai", default=Script(first_token_s=0, interval_s=0.05, token_count=1000))
    async with connected(gateway.url) as client:
        await _stream_until(client, b'"content":"')
        await asyncio.sleep(0.1)
        client.abort()
    await eventually(lambda: gateway.simulator.requests[0].outcome != "open")
    assert gateway.simulator.requests[0].outcome == "client_gone"
    assert gateway.simulator.requests[0].tokens_sent < 300
