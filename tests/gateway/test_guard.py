import asyncio
import gc
import json
import os
import socket
from contextlib import suppress
from typing import Any

import pytest
from aiohttp import web

from gateway.core.errors import Forbidden
from gateway.guard import ConnectionGuard, OriginRule
from tests.clock import Clock
from tests.conftest import MakeGateway, Running, over
from tests.eventually import eventually
from tests.exposition import scrape
from tests.gateway.test_server import AUTH, CLIENT_KEY
from tests.raw_client import Answer, chat, connected, exchange, parse, request
from tests.scripted_upstream import ScriptedUpstream, config_over, texts_of

PATH = "/v1/chat/completions"
ORIGIN = "https://app.example.org"


def config(**server: object) -> dict[str, Any]:
    """Return a configuration over OpenAI's simulator."""
    return {**over("openai"), "server": server}


# --- deadlines


@pytest.mark.parametrize("sent", [b"", b"P", b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nx-half: "])
async def test_a_request_that_does_not_arrive_is_timed_out(sent: bytes, make_gateway: MakeGateway) -> None:
    """Silence and half a head alike: 408, and the connection is closed."""
    gateway = await make_gateway(config=config(header_timeout_s=0.2))
    async with connected(gateway.url) as client:
        await client.send(sent)
        found = parse(await client.read_all())
    assert found.status == 408
    assert found.headers["connection"] == "close"
    assert found.error["code"] == "request_timeout"


async def test_a_head_that_trickles_is_timed_out_all_the_same(make_gateway: MakeGateway) -> None:
    """The limit is on the whole head, not on the pause between its bytes."""
    gateway = await make_gateway(config=config(header_timeout_s=0.5))
    async with connected(gateway.url) as client:
        reading = asyncio.ensure_future(client.read_all())
        for byte in b"GET /v1/models HTTP/1.1\r\nx-slow: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa":
            if reading.done():
                break
            with suppress(ConnectionError):
                await client.send(bytes([byte]))
            await asyncio.sleep(0.1)
        assert parse(await reading).status == 408


async def test_a_connection_may_rest_between_requests_but_not_within_one(
    clock: Clock, make_gateway: MakeGateway
) -> None:
    """Rest is longer than the time for a head; half a second request is timed out like half a first one."""
    gateway = await make_gateway(config=config(header_timeout_s=20))
    async with connected(gateway.url) as client:
        await client.send(request("/v1/models", method="GET"))
        assert (await client.answer()).status == 200
        await clock.pass_by(25)
        await client.send(request("/v1/models", method="GET"))
        assert (await client.answer()).status == 200
        await client.send(b"GET /v1/mod")
        await clock.pass_by(0)
        await clock.pass_by(25)
        assert parse(await client.read_all()).status == 408


async def test_a_long_stream_is_not_taken_for_a_slow_request(clock: Clock, make_gateway: MakeGateway) -> None:
    """The head has come; how long the answer takes is another matter."""
    gateway = await make_gateway(config=config(header_timeout_s=20))
    async with connected(gateway.url) as client:
        await client.send(request(PATH, chat(model="openai/mill?token_count=20&interval_s=3")))
        await client.read_until(b'"content":"')
        for _ in range(30):
            await clock.pass_by(2)
        assert parse(await client.read_until(b"\r\n0\r\n\r\n")).is_whole


async def test_connections_that_are_gone_are_not_remembered(make_gateway: MakeGateway) -> None:
    """A client that opens one for every request costs nothing when it has left."""
    gateway = await make_gateway("openai")
    for _ in range(30):
        await exchange(gateway.url, request("/v1/models", method="GET"))
    async with connected(gateway.url) as client:
        await client.send(b"GET /half")
        await asyncio.sleep(0.05)
    guards = [found for found in gc.get_objects() if isinstance(found, ConnectionGuard)]
    assert guards
    await eventually(lambda: not any(guard._connections for guard in guards))


async def test_a_peer_that_died_silently_is_given_up_by_the_kernel() -> None:
    """Unacknowledged bytes are waited for half a minute and not a quarter of an hour."""
    found: list[int] = []

    async def handle(request: web.BaseRequest) -> web.Response:
        assert request.transport is not None
        sock = request.transport.get_extra_info("socket")
        found.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT))
        return web.Response()

    guard = ConnectionGuard(header_timeout_s=5)
    server = await asyncio.get_running_loop().create_server(guard.over(web.Server(handle)), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    await exchange(f"http://127.0.0.1:{port}", request("/", method="GET", connection="close"))
    server.close()
    guard.close()
    assert found == [30_000]


# --- what is not HTTP


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS hello\r\n\r\n", 400),
        (b"GARBAGE\r\n\r\n", 400),
        (b"POST / HTTP/9.9\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization Bearer sk-canary\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer sk-canary\x00\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcdef", 400),
        (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: -5\r\n\r\n", 400),
        (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\nx-long: " + b"x" * 20_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\n" + b"a: b\r\n" * 500 + b"\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-encoding: br\r\ncontent-length: 1\r\n\r\nx", 415),
    ],
    ids=["tls", "words", "version", "no colon", "nul", "two lengths", "length and chunks", "negative", "url", "header",
         "headers", "encoding"],
)  # fmt: skip
async def test_what_is_not_http_gets_an_error_body_and_leaves_no_trace_in_the_log(
    data: bytes, status: int, make_gateway: MakeGateway, caplog: pytest.LogCaptureFixture
) -> None:
    """One clear line for the caller; what it sent, which may hold its key, is neither echoed nor logged."""
    gateway = await make_gateway("openai")
    found = await exchange(gateway.url, data)
    assert found.status == status
    assert found.error["type"] == "invalid_request_error"
    assert found.headers["server"] == "millrace"
    assert found.headers["x-request-id"].startswith("req_")
    assert "canary" not in found.body.decode() + caplog.text
    assert caplog.text == ""


# --- paths and methods


@pytest.mark.parametrize("path", ["/nope", "/v1", "/v1/chat/completions/", "//v1/models", "/v1/../etc/passwd", "/%00"])
async def test_an_unknown_path_is_404_in_json(path: str, make_gateway: MakeGateway) -> None:
    """And it has a request id like every answer."""
    gateway = await make_gateway("openai")
    found = await exchange(gateway.url, request(path, method="GET"))
    assert found.status == 404
    assert found.error["code"] == "not_found"
    assert found.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", PATH, "POST"),
        ("DELETE", "/v1/models", "GET,HEAD"),
        ("PUT", "/api/chat/stream", "POST"),
        ("OPTIONS", PATH, "POST"),
    ],
)
async def test_a_wrong_method_is_405_and_says_which_are_right(
    method: str, path: str, allowed: str, make_gateway: MakeGateway
) -> None:
    """In JSON, with ``Allow``."""
    gateway = await make_gateway("openai")
    found = await exchange(gateway.url, request(path, method=method))
    assert found.status == 405
    assert found.headers["allow"] == allowed
    assert found.error["code"] == "method_not_allowed"


# --- who may call


@pytest.mark.parametrize(
    ("host", "origin", "is_allowed"),
    [
        ("127.0.0.1:8080", None, True),
        ("localhost:8080", "http://localhost:8080", True),
        ("LOCALHOST", None, True),
        ("[::1]:8080", "http://[::1]:8080", True),
        ("localhost:8080", ORIGIN, True),
        ("evil.example.org", None, False),
        ("localhost.evil.org", None, False),
        ("127.0.0.1.evil.org:8080", None, False),
        ("localhost:8080@evil.org", None, False),
        ("", None, False),
        ("localhost:8080", "https://evil.example.org", False),
        ("localhost:8080", "http://localhost:9999", False),
        ("localhost:8080", "https://localhost:8080", False),
        ("localhost:8080", "null", False),
    ],
)
def test_without_keys_only_this_machine_and_the_named_origins_may_call(
    host: str, origin: str | None, *, is_allowed: bool
) -> None:
    """A page must neither call across origins nor have its own name resolve to this machine."""
    rule = OriginRule(is_open=True, origins=(ORIGIN,))
    if is_allowed:
        rule.check(host, origin)
    else:
        with pytest.raises(Forbidden):
            rule.check(host, origin)
    OriginRule(is_open=False).check(host, origin)


@pytest.mark.parametrize("headers", [{"host": "evil.example.org"}, {"origin": "https://evil.example.org"}])
@pytest.mark.parametrize("path", [PATH, "/api/chat/stream", "/v1/models", "/", "/nope"])
async def test_a_foreign_page_is_refused_without_keys(
    path: str, headers: dict[str, str], make_gateway: MakeGateway
) -> None:
    """Everywhere, before anything else is looked at, and nothing reaches a provider."""
    gateway = await make_gateway("openai")
    method = "POST" if path in (PATH, "/api/chat/stream") else "GET"
    found = await exchange(gateway.url, request(path, {**chat(), "message": "Hello"}, method=method, **headers))
    assert found.status == 403
    assert found.error["code"] == "forbidden"
    assert "access-control-allow-origin" not in found.headers
    assert gateway.simulator.requests == []


async def test_with_keys_any_name_will_do(make_gateway: MakeGateway) -> None:
    """The key protects it; a browser still cannot read the answer."""
    async with ScriptedUpstream() as upstream:
        gateway = await make_gateway(config=config_over(upstream, middleware=AUTH))
        headers = {"host": "llm.example.org", "origin": "https://evil.example.org", "x_api_key": CLIENT_KEY}
        found = await exchange(gateway.url, request(PATH, chat(), **headers))
    assert list(texts_of(found.body)) == ["Hello"]
    assert "access-control-allow-origin" not in found.headers


async def _preflight(gateway_url: str, origin: str) -> Answer:
    asks = {"access_control_request_method": "POST", "access_control_request_headers": "content-type,x-api-key"}
    return await exchange(gateway_url, request(PATH, method="OPTIONS", origin=origin, **asks))


async def test_a_named_origin_may_call_from_a_browser(make_gateway: MakeGateway) -> None:
    """Its preflight is answered, and answers, streams and errors can be read."""
    gateway = await make_gateway(config=config(cors_origins=[ORIGIN]))
    asked = await _preflight(gateway.url, ORIGIN)
    assert asked.status == 204
    assert asked.headers["access-control-allow-origin"] == ORIGIN
    assert "POST" in asked.headers["access-control-allow-methods"]
    assert "x-api-key" in asked.headers["access-control-allow-headers"]
    for body in (chat(model="openai/mill?token_count=2"), b"{"):
        found = await exchange(gateway.url, request(PATH, body, origin=ORIGIN))
        assert found.headers["access-control-allow-origin"] == ORIGIN
        assert "x-request-id" in found.headers["access-control-expose-headers"]
        assert found.headers["vary"].lower() == "origin"


async def test_the_preflight_of_another_origin_gets_no_permission(make_gateway: MakeGateway) -> None:
    """With keys it is answered without one, and without keys refused."""
    async with ScriptedUpstream() as upstream:
        keyed = await make_gateway(config=config_over(upstream, middleware=AUTH, server={"cors_origins": [ORIGIN]}))
        found = await _preflight(keyed.url, "https://evil.example.org")
        assert found.status == 204
        assert "access-control-allow-origin" not in found.headers
    gateway = await make_gateway(config=config(cors_origins=[ORIGIN]))
    assert (await _preflight(gateway.url, "https://evil.example.org")).status == 403


# --- leaving


SHOW = request("/v1/models", method="GET")
SLOW = chat(model="openai/mill?token_count=10&interval_s=0.05")


def owner_of(answer: Answer) -> str:
    """Return which of two gateways has answered: each has a provider of its own."""
    return str(answer.json["data"][-1]["owned_by"])


class Pair:
    """A gateway over OpenAI that leaves, and one over Mistral that takes its connections over."""

    def __init__(self, old: Running, new: Running) -> None:
        self.old = old
        self.new = new
        self.given_count = 0

    async def leave(self) -> None:
        """Have the old one leave."""
        await self.old.gateway.leave(self._give_away)

    def _give_away(self, connection: int) -> None:
        self.given_count += 1
        self.new.gateway.adopt(socket.socket(fileno=os.dup(connection)))


@pytest.fixture
async def pair(make_gateway: MakeGateway) -> Pair:
    """Start both; the new one has little patience."""
    return Pair(await make_gateway("openai"), await make_gateway(config=config_of_new()))


def config_of_new() -> dict[str, Any]:
    """Return a configuration over Mistral's simulator."""
    return {**over("mistral"), "server": {"header_timeout_s": 20}}


async def test_a_connection_that_rests_is_given_away_and_its_client_notices_nothing(clock: Clock, pair: Pair) -> None:
    """Whether it has been served before or not; at its new place it may rest as long as anywhere."""
    async with connected(pair.old.url) as served, connected(pair.old.url) as silent:
        await served.send(SHOW)
        assert owner_of(await served.answer()) == "openai"
        await pair.leave()
        await eventually(lambda: pair.given_count == 2)
        await clock.pass_by(25)
        for client in (served, silent):
            await client.send(SHOW)
            assert owner_of(await client.answer()) == "mistral"


async def test_what_was_asked_is_answered_where_it_was_and_the_next_elsewhere(pair: Pair) -> None:
    """A stream in flight, half a head and half a body, and a second request right behind the first."""
    body = json.dumps(SLOW).encode()
    ask = request(PATH, body)
    async with (
        connected(pair.old.url) as streaming,
        connected(pair.old.url) as half_head,
        connected(pair.old.url) as half_body,
        connected(pair.old.url) as double,
    ):
        await streaming.send(ask)
        await double.send(ask + SHOW)
        await half_head.send(ask[:20])
        await half_body.send(ask[:-5])
        await streaming.read_until(b'"content":')
        await double.read_until(b'"content":')
        await pair.leave()
        await half_head.send(ask[20:])
        await half_body.send(ask[-5:])
        for client in (streaming, half_head, half_body):
            assert parse(await client.read_until(b"\r\n0\r\n\r\n")).headers["x-millrace-target"].startswith("openai/")
            client.seen = b""
        double.seen = (await double.read_until(b"\r\n0\r\n\r\n")).partition(b"\r\n0\r\n\r\n")[2]
        assert owner_of(await double.answer()) == "openai", "it was asked before"
        for client in (streaming, half_head, half_body, double):
            await client.send(SHOW)
            assert owner_of(await client.answer()) == "mistral"
    assert pair.given_count == 4


async def test_without_a_successor_who_was_about_to_ask_is_answered_and_told_not_to_ask_again(
    make_gateway: MakeGateway,
) -> None:
    """On a connection that rests there is a moment for it; then all of them are closed."""
    gateway = await make_gateway("openai")
    async with connected(gateway.url) as asking, connected(gateway.url) as resting, connected(gateway.url) as streaming:
        await streaming.send(request(PATH, SLOW))
        await streaming.read_until(b'"content":')
        leaving = asyncio.ensure_future(gateway.gateway.leave())
        await asyncio.sleep(0)
        await asking.send(SHOW)
        found = parse(await asking.read_all())
        assert (found.status, found.headers["connection"], found.is_whole) == (200, "close", True)
        assert await resting.read_all() == b""
        assert parse(await streaming.read_all()).is_whole
        await leaving


async def test_a_connection_that_nobody_takes_over_is_closed(pair: Pair) -> None:
    """As where the one that should have is about to leave itself."""
    async with connected(pair.old.url) as client:
        await client.send(SHOW)
        await client.answer()
        await pair.new.gateway.leave()
        await pair.leave()
        assert await client.read_all() == b""


# --- the straight way of a call


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/chat/completion%73"])
async def test_a_call_is_answered_alike_whichever_way_it_took(path: str, make_gateway: MakeGateway) -> None:
    """The usual one goes straight to its handler, any other spelling is found by aiohttp: nobody can tell."""
    gateway = await make_gateway(config=config(cors_origins=[ORIGIN]))
    for body, status in ((chat(stream=False), 200), (chat(), 200), (b"{", 400)):
        found = await exchange(gateway.url, request(path, body, origin=ORIGIN))
        assert found.status == status
        assert found.headers["server"] == "millrace"
        assert found.headers["x-request-id"].startswith("req_")
        assert found.headers["access-control-allow-origin"] == ORIGIN
        assert "date" in found.headers
    page = await scrape(gateway.admin_url)
    assert page.total("millrace_http_responses_total", route="chat_completions", code="200") == 2
    assert page.total("millrace_http_responses_total", route="chat_completions", code="400") == 1


async def test_a_client_that_waits_for_a_word_before_its_body_gets_it(make_gateway: MakeGateway) -> None:
    """As ``curl`` does with a long prompt."""
    gateway = await make_gateway("openai")
    body = json.dumps(chat(stream=False)).encode()
    head, _, _ = request("/v1/chat/completions", body, expect="100-continue").partition(b"\r\n\r\n")
    async with connected(gateway.url) as client:
        await client.send(head + b"\r\n\r\n")
        assert (await client.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 Continue")
        client.seen = b""
        await client.send(body)
        assert (await client.answer()).status == 200
