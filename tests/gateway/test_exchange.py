"""Both ways of having an exchange with a provider, the short one and aiohttp's own, on real connections."""

import asyncio
import os
import subprocess
import sys
import time
import zlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import aiohttp
import pytest
from aiohttp.client_proto import ResponseHandler

from gateway import exchange
from gateway.core.call import OpenFlow
from gateway.exchange import LARGE_BODY_BYTES, Answer, Connector, ask, relay
from tests.eventually import TIMEOUT_S, eventually
from tests.scripted_upstream import (
    CLOSE_DELIMITED,
    END,
    STREAM,
    Certificate,
    Script,
    ScriptedUpstream,
    Step,
    answer,
    chunk,
)
from tests.taking import Tap, ignore, into


@pytest.fixture(params=["short", "public"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The way in which a request is made and its answer read."""
    monkeypatch.setattr(exchange, "IS_SHORT", request.param == "short")
    return str(request.param)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the environment asks for, the short way is gone."""
    monkeypatch.setattr(exchange, "IS_SHORT", True)


def make_session(**options: Any) -> aiohttp.ClientSession:
    """Return a session that can be used in both ways."""
    headers = {"user-agent": "tester", "accept-encoding": "identity"}
    return aiohttp.ClientSession(
        connector=Connector(headers=headers, read_ahead_bytes=4096, **options), read_bufsize=4096, headers=headers
    )


HEADERS: Final = {"content-type": "application/json", "accept": "*/*"}


async def post(
    session: aiohttp.ClientSession, url: str, body: bytes = b"{}", *, headers: Mapping[str, str] | None = None
) -> Answer:
    """Return the answer of an upstream, however the request is made."""
    return await ask(session, url, headers or HEADERS, body, connect_timeout_s=5, note_connect=lambda _: None)


async def read(answer: Answer) -> bytes:
    """Return the body of an answer, and let go of it."""
    body = await answer.read(1_000_000)
    answer.release()
    return body


@asynccontextmanager
async def answered(*script: Step) -> AsyncIterator[aiohttp.ClientResponse]:
    """Yield the response to a request that a scripted upstream answers."""
    async with (
        ScriptedUpstream(script) as upstream,
        make_session() as session,
        session.post(upstream.url, data=b"{}") as response,
    ):
        yield response


def test_this_aiohttp_is_as_the_short_way_expects_it() -> None:
    """If this fails aiohttp has changed: the gateway still works, the public way, but look at what the files expect."""
    assert exchange.FAULTS == ()


async def make_exchange(*script: Step, count: int = 1) -> tuple[list[tuple[int, bytes]], list[int]]:
    """Make so many requests, one behind the other; return what was answered, and on which connections."""
    answers = []
    async with ScriptedUpstream(script) as upstream, make_session() as session:
        for _ in range(count):
            got = await post(session, upstream.url)
            answers.append((got.status, await read(got)))
        return answers, [request.connection for request in upstream.requests]


# --- what is written


async def test_a_request_is_whole_and_says_everything_once(way: str) -> None:
    """The head has what a host needs, each header once; the body is what it was."""
    body = b'{"text": "k\xc3\xa4se"}'
    headers = {**HEADERS, "authorization": "Bearer k\u00e4se", "X-Own": "a\tb"}
    async with ScriptedUpstream([answer(200, b"{}")]) as upstream, make_session() as session:
        await read(await post(session, f"{upstream.url}/chat?alt=sse&x=%2F", body, headers=headers))
        (request,) = upstream.requests
    assert request.head.startswith("POST /v1/chat?alt=sse&x=%2F HTTP/1.1\r\n"), way
    names = [line.partition(":")[0].lower() for line in request.head.split("\r\n")[1:] if line]
    assert sorted(names) == sorted(
        {"host", "user-agent", "accept-encoding", "content-length", *map(str.lower, headers)}
    )
    assert request.headers["host"] == f"127.0.0.1:{upstream.port}"
    assert request.headers["user-agent"] == "tester"
    assert request.headers["accept-encoding"] == "identity"
    assert request.headers["authorization"].encode("latin-1").decode() == "Bearer k\u00e4se"
    assert request.headers["x-own"] == "a\tb"
    assert request.body == body


@pytest.mark.parametrize("part", ["name", "value"])
@pytest.mark.parametrize("mark", ["\r", "\n", "\r\nx-evil: 1", "\0", "\x7f"])
async def test_a_header_with_a_line_break_is_never_sent(way: str, part: str, mark: str) -> None:
    """Nothing of such a request is."""
    headers = {**HEADERS, **({f"x-{mark}": "1"} if part == "name" else {"x-own": f"a{mark}b"})}
    async with ScriptedUpstream([answer(200, b"{}")]) as upstream, make_session() as session:
        with pytest.raises(ValueError, match="control character"):
            await post(session, upstream.url, headers=headers)
        await read(await post(session, upstream.url))
        assert [request.head for request in upstream.requests if "evil" in request.head] == [], way
        assert len(upstream.requests) == 1


async def test_headers_that_cannot_change_are_written_out_once_and_are_the_same_each_time(way: str) -> None:
    """But for the length of the body; other headers, and those that a call has of its own, are written each time."""
    plain = MappingProxyType({**HEADERS, "x-own": "plain"})
    said = [plain, {**HEADERS, "x-own": "a"}, plain, {**HEADERS, "x-own": "b"}, MappingProxyType({**HEADERS, "y": "c"})]
    async with ScriptedUpstream([answer(200, b"{}")]) as upstream, make_session() as session:
        for number, headers in enumerate(said):
            await read(await post(session, upstream.url, b"x" * number, headers=headers))
        for _ in range(exchange.MAX_KEPT_HEADS + 1):
            await read(await post(session, upstream.url, headers=MappingProxyType({**HEADERS, "x-own": "d"})))
        got = [(one.headers.get("x-own", one.headers.get("y")), len(one.body)) for one in upstream.requests[:5]]
        assert got == [("plain", 0), ("a", 1), ("plain", 2), ("b", 3), ("c", 4)], way
        connector = session.connector
        assert isinstance(connector, Connector)
        place = connector.place(upstream.url)
        assert place is not None
        assert len(place.heads) <= exchange.MAX_KEPT_HEADS


async def test_half_a_character_is_left_out_of_a_header(way: str) -> None:
    """It has no bytes."""
    async with ScriptedUpstream([answer(200, b"{}")]) as upstream, make_session() as session:
        await read(await post(session, upstream.url, headers={**HEADERS, "x-own": "a\ud83db"}))
        assert upstream.requests[0].headers["x-own"] == "ab", way


@pytest.mark.parametrize(
    "headers",
    [
        {**HEADERS, "User-Agent": "own"},
        {**HEADERS, "Host": "own"},
        {"accept": "*/*"},
        {"content-type": "application/json"},
        {**HEADERS, "Accept": "text/plain"},
    ],
)
async def test_headers_that_are_aiohttps_own_business_are_left_to_it(
    headers: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it makes of them is the same as ever."""
    heads = []
    for is_short in (True, False):
        monkeypatch.setattr(exchange, "IS_SHORT", is_short)
        async with ScriptedUpstream([answer(200, b"{}")]) as upstream, make_session() as session:
            await read(await post(session, upstream.url, headers=headers))
            heads.append(upstream.requests[0].head.replace(str(upstream.port), ""))
    assert heads[0] == heads[1]


async def test_a_name_and_a_password_in_an_address_are_shown_as_such(way: str) -> None:
    """The short way knows nothing of them."""
    async with ScriptedUpstream([answer(200, b"{}")]) as upstream, make_session() as session:
        await read(await post(session, upstream.url.replace("//", "//me:secret@")))
        assert upstream.requests[0].headers["authorization"] == "Basic bWU6c2VjcmV0", way


@pytest.mark.parametrize("address", ["", "/v1", "ftp://127.0.0.1/v1", "http://", "http://[::1/v1"])
async def test_an_address_that_is_none_raises_as_ever(way: str, address: str) -> None:
    """The error is aiohttp's."""
    async with make_session() as session:
        with pytest.raises((aiohttp.ClientError, ValueError)):
            await post(session, address)
    assert way


@pytest.mark.parametrize("size", [0, 200_000, LARGE_BODY_BYTES - 1, LARGE_BODY_BYTES + 1, 3_000_000])
async def test_a_body_of_any_size_arrives(way: str, size: int) -> None:
    """The largest are written in pieces."""
    body = b"x" * size
    async with ScriptedUpstream([answer(200, b"{}")]) as upstream, make_session() as session:
        await read(await post(session, upstream.url, body))
        await read(await post(session, upstream.url, b"after"))
        assert [request.body for request in upstream.requests] == [body, b"after"], way
        assert upstream.connection_count == 1


async def test_the_addresses_that_are_kept_are_not_without_number() -> None:
    """A model's name can be part of one."""
    async with ScriptedUpstream([answer(200, b"{}")]) as upstream, make_session() as session:
        connector = session.connector
        assert isinstance(connector, Connector)
        for number in range(exchange.MAX_KEPT_PLACES + 2):
            connector.place(f"{upstream.url}/{number}")
            connector.has_plain({f"x-{number}": ""})
        assert len(connector._places) == len(connector._plain_names) == 2
        await read(await post(session, upstream.url))
        assert upstream.connection_count == 1


# --- what is answered


@pytest.mark.parametrize("first", [b"100 Continue", b"102 Processing", b"103 Early Hints"])
async def test_what_only_announces_an_answer_is_passed_over(way: str, first: bytes) -> None:
    """However many there are, and in reads of their own."""
    early = b"HTTP/1.1 " + first + b"\r\nlink: <x>\r\n\r\n"
    answers, connections = await make_exchange(early, 0.02, early + answer(200, b"body"), count=2)
    assert (answers, connections) == ([(200, b"body")] * 2, [1, 1]), way


@pytest.mark.parametrize("status", [204, 304, 200])
async def test_an_answer_without_a_body_leaves_its_connection_to_the_next(way: str, status: int) -> None:
    """Nothing is waited for."""
    said = b"HTTP/1.1 %d Said\r\n%b\r\n" % (status, b"content-length: 0\r\n" if status == 200 else b"")
    answers, connections = await make_exchange(said, count=2)
    assert (answers, connections) == ([(status, b"")] * 2, [1, 1]), way


@pytest.mark.parametrize(
    ("script", "connections"),
    [
        ([answer(200, b"body", connection="close")], [1, 2]),
        ([answer(200, b"body", connection="close"), "fin"], [1, 2]),
        ([b"HTTP/1.0 200 OK\r\ncontent-length: 4\r\n\r\nbody"], [1, 2]),
        ([b"HTTP/1.0 200 OK\r\ncontent-length: 4\r\nconnection: keep-alive\r\n\r\nbody"], [1, 1]),
        ([b"HTTP/1.0 200 OK\r\n\r\nbo", 0.02, b"dy", "fin"], [1, 2]),
        ([CLOSE_DELIMITED + b"body", 0.02, "fin"], [1, 2]),
        ([STREAM + chunk(b"bo"), 0.02, chunk(b"dy"), 0.02, END], [1, 1]),
        ([answer(200, b"body")[:-2], 0.02, b"dy"], [1, 1]),
    ],
    ids=["close", "close and fin", "1.0", "1.0 kept", "1.0 until the end", "until the end", "chunked", "in pieces"],
)
async def test_a_body_ends_as_its_framing_says(way: str, script: Script, connections: list[int]) -> None:
    """And a connection that is to be closed is not used again."""
    assert await make_exchange(*script, count=2) == ([(200, b"body")] * 2, connections), way


async def test_a_connection_that_is_not_to_be_kept_says_so(way: str) -> None:
    """As the session is made."""
    async with ScriptedUpstream([answer(200, b"{}")]) as upstream, make_session(force_close=True) as session:
        for _ in range(2):
            await read(await post(session, upstream.url))
        assert [request.headers["connection"] for request in upstream.requests] == ["close"] * 2, way
        assert upstream.connection_count == 2


async def test_a_body_that_is_compressed_unasked_is_unpacked(way: str) -> None:
    """Awaited or pushed."""
    packer = zlib.compressobj(wbits=31)
    packed = packer.compress(b"body" * 1000) + packer.flush()
    script = [answer(200, packed, content_encoding="gzip")]
    assert await make_exchange(*script) == ([(200, b"body" * 1000)], [1]), way
    got: list[bytes] = []
    head = STREAM[:-2] + b"content-encoding: gzip\r\n\r\n"
    async with answered(head, 0.05, chunk(packed[:20]), 0.02, chunk(packed[20:]) + END) as response:
        await relay(response.content, into(got), OpenFlow(), note_pause=ignore)
    assert b"".join(got) == b"body" * 1000


@pytest.mark.parametrize(
    "said",
    [b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\nx: " + b"y" * 9000, b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 200],
    ids=["ssh", "a long header", "many headers"],
)
async def test_a_head_that_is_not_http_or_too_large_raises(way: str, said: bytes) -> None:
    """The connection is cut."""
    async with ScriptedUpstream([said + b"\r\n", "stall"]) as upstream, make_session() as session:
        with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ClientResponseError)):
            await asyncio.wait_for(post(session, upstream.url), 5)
        await asyncio.wait_for(upstream.requests[0].gone.wait(), 5)
    assert way


async def test_a_body_that_is_not_http_raises_and_cuts_its_connection(way: str) -> None:
    """Though its provider says nothing more, and does not close."""
    script: Script = [STREAM + chunk(b"one"), 0.02, b"zz\r\n", "stall"]
    async with ScriptedUpstream(script) as upstream, make_session() as session:
        got = await post(session, upstream.url)
        with pytest.raises(aiohttp.ClientPayloadError):
            await asyncio.wait_for(got.read(1000), TIMEOUT_S)
        got.abort()
        await asyncio.wait_for(upstream.requests[0].gone.wait(), TIMEOUT_S)
    assert way


@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_a_connection_that_dies_before_the_head_raises(way: str, how: Step) -> None:
    """Also one that was kept."""
    async with ScriptedUpstream([answer(200, b"{}")], [how]) as upstream, make_session() as session:
        await read(await post(session, upstream.url))
        with pytest.raises((aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)):
            await post(session, upstream.url)
        assert [request.connection for request in upstream.requests] == [1, 1], way


async def test_a_request_that_is_cancelled_cuts_its_connection(way: str) -> None:
    """While its answer is waited for."""
    async with ScriptedUpstream(["stall"]) as upstream, make_session() as session:
        asking = asyncio.ensure_future(post(session, upstream.url))
        received = await upstream.request()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await asyncio.wait_for(received.gone.wait(), 5)
    assert way


async def test_an_answer_that_is_aborted_cuts_its_connection(way: str) -> None:
    """Though more was to come."""
    async with ScriptedUpstream([STREAM + chunk(b"one"), "stall"]) as upstream, make_session() as session:
        (await post(session, upstream.url)).abort()
        await asyncio.wait_for(upstream.requests[0].gone.wait(), 5)
    assert way


async def test_an_answer_that_is_given_back_before_its_end_does_not_leave_its_connection_to_the_next(way: str) -> None:
    """The rest would be read as another answer."""
    async with ScriptedUpstream([STREAM + chunk(b"one"), "stall"]) as upstream, make_session() as session:
        for _ in range(2):
            (await asyncio.wait_for(post(session, upstream.url), TIMEOUT_S)).release()
        assert [request.connection for request in upstream.requests] == [1, 2], way


@pytest.mark.usefixtures("short")
async def test_a_kept_connection_that_has_spoken_unasked_is_not_used() -> None:
    """It would be taken for the answer to what is asked next."""
    script: Script = [answer(200, b"asked"), 0.02, answer(408, b"unasked")]
    async with ScriptedUpstream(script) as upstream, make_session() as session:
        assert await read(await post(session, upstream.url)) == b"asked"
        await asyncio.sleep(0.3)
        got = await post(session, upstream.url)
        assert (got.status, await read(got)) == (200, b"asked")
        assert upstream.connection_count == 2


async def test_a_new_connection_is_timed_and_a_kept_one_is_not(way: str) -> None:
    """From the search for the host's name to the end of all handshakes."""
    took_s: list[float] = []
    async with ScriptedUpstream([answer(200, b"{}")]) as upstream, make_session_with_times() as session:
        for _ in range(2):
            got = await ask(session, upstream.url, HEADERS, b"", connect_timeout_s=5, note_connect=took_s.append)
            await read(got)
    assert len(took_s) == 1, way
    assert 0 < took_s[0] < 5


def make_session_with_times() -> aiohttp.ClientSession:
    """Return a session that times its connections, both ways."""
    connector = Connector(headers={}, read_ahead_bytes=4096)
    return aiohttp.ClientSession(connector=connector, trace_configs=[exchange.connection_times()])


# --- a connection that is made beforehand


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("is_secure", [False, True])
async def test_a_connection_that_was_made_beforehand_serves_the_next_call(
    is_secure: bool,  # noqa: FBT001, as pytest passes it
    tmp_path: Path,
) -> None:
    """With its handshakes behind it, and not timed; no second one is made while it is kept."""
    certificate = Certificate.make(tmp_path) if is_secure else None
    ssl = {"ssl": certificate.client_context()} if certificate else {}
    took_s: list[float] = []
    async with ScriptedUpstream([answer(200, b"{}")], tls=certificate) as upstream, make_session(**ssl) as session:
        assert await exchange.warm(session, upstream.url, 5)
        kept = kept_in(session)
        assert await exchange.warm(session, upstream.url, 5)
        assert kept_in(session) == kept, "it rests since it was made, not since it was asked for"
        await eventually(lambda: upstream.connection_count == 1)
        assert upstream.requests == []
        got = await ask(session, upstream.url, HEADERS, b"", connect_timeout_s=5, note_connect=took_s.append)
        assert await read(got) == b"{}"
        assert await exchange.warm(session, upstream.url, 5)
        assert (upstream.connection_count, took_s) == (1, [])


@pytest.mark.usefixtures("short")
async def test_a_connection_that_has_died_is_made_anew() -> None:
    """Nobody may have asked for it in between."""
    async with ScriptedUpstream([answer(200, b"{}"), "fin"]) as upstream, make_session() as session:
        await read(await post(session, upstream.url))
        await asyncio.wait_for(upstream.requests[0].gone.wait(), 30)
        await eventually(lambda: not any(kept.is_connected() for kept, _ in kept_in(session)))
        assert await exchange.warm(session, upstream.url, 5)
        await eventually(lambda: upstream.connection_count == 2)


def kept_in(session: aiohttp.ClientSession) -> list[tuple[ResponseHandler, float]]:
    """Return the connections that a session keeps."""
    assert session.connector is not None
    return [kept for all_kept in session.connector._conns.values() for kept in all_kept]


@pytest.mark.usefixtures("short")
async def test_a_host_that_is_not_there_is_no_error_beforehand(tmp_path: Path) -> None:
    """Nor one whose certificate is not trusted, nor an address that is none; the call itself will tell."""
    async with ScriptedUpstream(tls=Certificate.make(tmp_path)) as upstream, make_session() as session:
        assert not await exchange.warm(session, upstream.url, 5)
        port = upstream.port
    async with make_session() as session:
        for url in (f"http://127.0.0.1:{port}/v1", "", "/v1", "ftp://127.0.0.1/v1", "http://[::1/v1"):
            assert not await exchange.warm(session, url, 5)


async def test_nothing_is_made_beforehand_where_it_would_not_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where connections are not kept, and on the public way."""
    async with ScriptedUpstream() as upstream:
        for is_short in (True, False):
            monkeypatch.setattr(exchange, "IS_SHORT", is_short)
            async with make_session(force_close=is_short) as session:
                assert not await exchange.warm(session, upstream.url, 5)
        assert upstream.connection_count == 0


# --- whether aiohttp is as it was


def _another(*_: object) -> None:
    """Do something else, with other parameters."""


CHANGES: Final[dict[str, tuple[type, str, object]]] = {
    "TCPConnector._get": (aiohttp.TCPConnector, "_get", _another),
    "TCPConnector._release": (aiohttp.TCPConnector, "_release", _another),
    "ResponseHandler.read": (ResponseHandler, "read", None),
    "StreamReader.feed_data": (aiohttp.StreamReader, "feed_data", _another),
    "ResponseHandler.should_close": (ResponseHandler, "should_close", ...),
    "an answer that is fed": (ResponseHandler, "set_response_params", _another),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_has_changed_in_aiohttp_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start-up does not break of it, whatever it is."""
    owner, attribute, changed = CHANGES[name]
    if changed is ...:
        monkeypatch.delattr(owner, attribute)
    else:
        monkeypatch.setattr(owner, attribute, changed)
    assert any(fault.startswith(name) for fault in exchange._faults())


def test_a_name_that_has_moved_does_not_keep_the_gateway_from_starting() -> None:
    """It is named, and the public way taken."""
    code = "import aiohttp.connector; del aiohttp.connector.Connection; from gateway import exchange\n"
    said = run_python(code + "print(exchange.IS_SHORT, *exchange.FAULTS)")
    assert said.startswith("False")
    assert "Connection" in said


def run_python(code: str, **environment: str) -> str:
    """Return what a program of its own says."""
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, check=True)  # noqa: S603
    return run.stdout.decode()


def test_the_environment_can_ask_for_the_public_way() -> None:
    """So that whatever is tested can be tested on both."""
    code = "from gateway import exchange; print(exchange.FAULTS, exchange.IS_SHORT)"
    said = {word: run_python(code, MILLRACE_PUBLIC_PATH=word) for word in ("", "1")}
    assert said == {"": "() True\n", "1": "() False\n"}


# --- how a body is passed on


async def test_a_body_that_ends_is_passed_on_whole(way: str) -> None:
    """Every byte is passed on once and in order, whatever the chunks were."""
    pieces = [b"%d;" % number for number in range(500)]
    got: list[bytes] = []
    script: list[Step] = [STREAM, *(chunk(piece) for piece in pieces[:250]), 0.05, chunk(*pieces[250:]), END]
    async with answered(*script) as response:
        await relay(response.content, into(got), OpenFlow(), note_pause=ignore)
        assert response.content.at_eof(), way
    assert b"".join(got) == b"".join(pieces)


async def test_every_piece_has_the_time_at_which_it_came(way: str) -> None:
    """On a clock that goes on within a turn of the loop; also what had come before the reading, or behind a pause."""
    tap, came = Tap(), list[tuple[bytes, float]]()
    gates = asyncio.Event(), asyncio.Event()

    def take(data: bytes, arrived_at_s: float) -> bool:
        came.append((data, arrived_at_s))
        assert arrived_at_s <= time.monotonic()
        time.sleep(0.02)
        tap.turn(is_open=data != b"two")
        return False

    script: list[Step] = [
        STREAM + chunk(b"one"), gates[0], chunk(b"two"), gates[1], chunk(b"three"), 0.01, chunk(b"four"), END,
    ]  # fmt: skip
    async with answered(*script) as response:
        content, known_at_s = response.content, list[float]()
        await eventually(lambda: content.total_bytes == len(b"one"))
        known_at_s.append(time.monotonic())
        reading = asyncio.ensure_future(relay(content, take, tap, note_pause=ignore))
        await eventually(lambda: len(came) == 1)
        known_at_s.append(time.monotonic())
        gates[0].set()
        await eventually(lambda: tap.is_paused)
        gates[1].set()
        await eventually(lambda: content.total_bytes == len(b"onetwothreefour"))
        known_at_s.append(time.monotonic())
        tap.turn(is_open=True)
        await reading
    assert b"".join(data for data, _ in came) == b"onetwothreefour", way
    assert [data for data, _ in came[:2]] == [b"one", b"two"]
    assert all(since_s <= at_s for since_s, (_, at_s) in zip([*known_at_s, *known_at_s[2:]], came, strict=False))


async def test_what_came_with_the_break_has_the_time_of_the_reading(way: str) -> None:
    """Nobody was told of it when it came."""
    came_at_s: list[float] = []

    def take(_: bytes, arrived_at_s: float) -> bool:
        came_at_s.append(arrived_at_s)
        return False

    async with answered(STREAM + chunk(b"last words"), "rst") as response:
        await asyncio.sleep(0.05)
        began_at_s = time.monotonic()
        with suppress(aiohttp.ClientError, OSError):
            await relay(response.content, take, OpenFlow(), note_pause=ignore)
    assert all(began_at_s <= at_s <= time.monotonic() for at_s in came_at_s), way


async def test_what_had_come_before_the_reading_is_passed_on(way: str) -> None:
    """A body that has arrived with its head, end and all, is not waited for."""
    got: list[bytes] = []
    async with answered(STREAM + chunk(b"all") + END) as response:
        await asyncio.sleep(0.05)
        await asyncio.wait_for(relay(response.content, into(got), OpenFlow(), note_pause=ignore), TIMEOUT_S)
    assert b"".join(got) == b"all", way


async def test_reading_stops_when_there_is_enough(way: str) -> None:
    """A taker that has enough is not given more, though the connection stays open."""
    got: list[bytes] = []
    go_on = asyncio.Event()

    def take(data: bytes, arrived_at_s: float) -> bool:  # noqa: ARG001, the signature of a taker
        got.append(data)
        return True

    async with answered(STREAM + chunk(b"first"), go_on, chunk(b"second"), "stall") as response:
        await asyncio.wait_for(relay(response.content, take, OpenFlow(), note_pause=ignore), TIMEOUT_S)
        go_on.set()
        await eventually(lambda: response.content.total_bytes == len(b"firstsecond"))
    assert got == [b"first"], way


@pytest.mark.parametrize("end", ["fin", "rst"])
async def test_a_connection_that_breaks_raises_behind_its_last_bytes(way: str, end: Step) -> None:
    """What came before the break is passed on first."""
    got: list[bytes] = []
    break_off = asyncio.Event()
    async with answered(STREAM + chunk(b"last words"), break_off, end) as response:
        reading = asyncio.ensure_future(relay(response.content, into(got), OpenFlow(), note_pause=ignore))
        await eventually(lambda: got)
        break_off.set()
        with pytest.raises((aiohttp.ClientError, OSError)):
            await reading
    assert got == [b"last words"], way


async def test_what_the_taker_raises_travels_out(way: str) -> None:
    """An error of the taker ends the reading."""

    def take(data: bytes, arrived_at_s: float) -> bool:  # noqa: ARG001, the signature of a taker
        raise LookupError(data)

    async with answered(STREAM + chunk(b"bad"), "stall") as response:
        with pytest.raises(LookupError, match="bad"):
            await asyncio.wait_for(relay(response.content, take, OpenFlow(), note_pause=ignore), TIMEOUT_S)
    assert way


async def test_a_cancelled_reading_leaves_an_ordinary_reader(way: str) -> None:
    """Afterwards the response can be read the public way."""
    got: list[bytes] = []
    go_on = asyncio.Event()
    async with answered(STREAM + chunk(b"one"), go_on, chunk(b"two") + END) as response:
        reading = asyncio.ensure_future(relay(response.content, into(got), OpenFlow(), note_pause=ignore))
        await eventually(lambda: got)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        go_on.set()
        assert type(response.content) is aiohttp.StreamReader, way
        assert await response.content.read() == b"two"


async def test_nothing_is_passed_on_while_the_flow_is_paused(way: str) -> None:
    """A closed tap holds back what comes, an opened one lets all of it through; the pause is noted."""
    tap, pauses = Tap(), list[int]()
    got: list[bytes] = []

    def take(data: bytes, arrived_at_s: float) -> bool:  # noqa: ARG001, the signature of a taker
        got.append(data)
        tap.turn(is_open=False)
        return False

    go_on = asyncio.Event()
    async with answered(STREAM + chunk(b"one"), go_on, chunk(b"two"), 0.05, chunk(b"three") + END) as response:
        reading = asyncio.ensure_future(relay(response.content, take, tap, note_pause=lambda: pauses.append(1)))
        await eventually(lambda: tap.is_paused)
        go_on.set()
        await eventually(lambda: response.content.total_bytes == len(b"onetwothree"))
        assert got == [b"one"], way
        while not reading.done():
            tap.turn(is_open=True)
            await asyncio.sleep(0.01)
        await reading
    assert b"".join(got) == b"onetwothree"
    assert pauses


async def test_a_paused_reading_takes_little_from_its_provider(way: str) -> None:
    """Behind a closed tap the reader fills up to its limit, and then the provider cannot write any more."""
    tap, got = Tap(), list[int]()

    def take(data: bytes, arrived_at_s: float) -> bool:  # noqa: ARG001, the signature of a taker
        got.append(len(data))
        tap.turn(is_open=False)
        return False

    flood = chunk(b"x" * 1000)
    async with (
        ScriptedUpstream([STREAM, *([flood] * 20000), END], has_small_buffers=True) as upstream,
        make_session() as session,
        session.post(upstream.url, data=b"{}") as response,
    ):
        reading = asyncio.ensure_future(relay(response.content, take, tap, note_pause=ignore))
        received = await upstream.request()
        await asyncio.sleep(0.5)
        assert received.bytes_sent < 4_000_000, way  # of 20 MB
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
