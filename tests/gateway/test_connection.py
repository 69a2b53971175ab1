"""Both ways of serving a connection, the short one and aiohttp's own: nobody who asks can tell them apart."""

import asyncio
import gzip
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import partial

import pytest
from aiohttp import StreamReader, web
from aiohttp.http_exceptions import BadHttpMessage
from aiohttp.test_utils import make_mocked_request

from gateway import connection
from gateway.connection import Connection, known_of, whole_body
from gateway.known_head import KnownHead
from gateway.reply import Reply
from tests.eventually import eventually
from tests.gateway.test_reply import OnePort
from tests.raw_client import connected, parse, request
from tests.scripted_upstream import END, chunk

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@pytest.fixture(params=["short", "public"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The way in which a connection is served."""
    monkeypatch.setattr(connection, "IS_SHORT", request.param == "short")
    return str(request.param)


@asynccontextmanager
async def serving(handle: Handler, *, keepalive_timeout: float = 75) -> AsyncIterator[str]:
    """Serve with a function, at the address that is yielded."""
    loop = asyncio.get_running_loop()
    http = web.Server(handle, handler_cancellation=True)
    make = partial(Connection, http, loop=loop, access_log=None, keepalive_timeout=keepalive_timeout)
    server = await loop.create_server(make, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await http.shutdown(1)


def answer(body: bytes, **headers: str) -> Reply:
    """Return a good answer."""
    return Reply(OnePort(**headers), "chat", {}, body)


async def echo(request: web.BaseRequest) -> web.StreamResponse:
    """Answer with what was sent."""
    body = whole_body(request)
    return answer(await request.read() if body is None else body)


# --- requests


@pytest.mark.usefixtures("way")
async def test_requests_of_a_connection_are_answered_one_after_the_other() -> None:
    """However each was sent: whole, in two pieces, in chunks, compressed, without a body."""
    zipped = gzip.compress(b"zipped")
    async with serving(echo) as url, connected(url) as client:
        for _ in range(2):
            await client.send(request("/", b"whole"))
            assert (await client.answer()).body == b"whole"
            data = request("/", b"in two")
            await client.send(data[:-3])
            await asyncio.sleep(0.01)
            await client.send(data[-3:])
            assert (await client.answer()).body == b"in two"
            await client.send(
                request("/", content_length=None, transfer_encoding="chunked") + chunk(b"in ", b"chunks") + END
            )
            assert (await client.answer()).body == b"in chunks"
            await client.send(request("/", zipped, content_encoding="gzip"))
            assert (await client.answer()).body == b"zipped"
            await client.send(request("/", method="GET"))
            assert (await client.answer()).body == b""


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("in_pieces", [0, 40])
async def test_more_requests_than_are_held_at_once_are_answered_all(in_pieces: int) -> None:
    """Sent at once, the parser stops before the last of them; also behind many whose bodies came after their heads."""
    async with serving(echo) as url, connected(url) as client:
        for number in range(in_pieces):
            data = request("/", b"%d" % number)
            await client.send(data[:-1])
            await asyncio.sleep(0.001)
            await client.send(data[-1:])
            assert (await client.answer()).body == b"%d" % number
        for count in (3, 100):
            await client.send(b"".join(request("/", b"%d" % number) for number in range(count)))
            for number in range(count):
                assert (await client.answer()).body == b"%d" % number


@pytest.mark.usefixtures("way")
async def test_requests_behind_one_whose_body_is_awaited_are_answered_too() -> None:
    """They come together with the end of it, and there are more of them than are held at once."""
    async with serving(echo) as url, connected(url) as client:
        data = request("/", b"first")
        await client.send(data[:-1])
        await asyncio.sleep(0.01)
        await client.send(data[-1:] + b"".join(request("/", b"%d" % number) for number in range(100)))
        for body in (b"first", *(b"%d" % number for number in range(100))):
            assert (await client.answer()).body == body


@pytest.mark.usefixtures("way")
async def test_a_body_in_very_many_chunks_does_not_stop_the_next() -> None:
    """They are more than may wait to be read, by which the parser is told to pause when it has just read them all."""
    pieces = chunk(b"x") * 20_000
    async with serving(echo) as url, connected(url) as client:
        await client.send(request("/", content_length=None, transfer_encoding="chunked") + pieces + END)
        assert len((await client.answer()).body) == 20_000
        await client.send(request("/", b"next"))
        assert (await client.answer()).body == b"next"


@pytest.mark.usefixtures("way")
async def test_a_body_larger_than_what_is_read_ahead_comes_whole() -> None:
    """Reading pauses in the middle of it."""
    body = os.urandom(900_000)
    async with serving(echo) as url, connected(url) as client:
        for _ in range(2):
            await client.send(request("/", body))
            assert (await client.answer()).body == body


@pytest.mark.usefixtures("way")
async def test_what_is_no_request_is_refused_behind_one_that_was() -> None:
    """By aiohttp itself: the connection is its own from there on."""
    async with serving(echo) as url, connected(url) as client:
        await client.send(request("/", b"good"))
        assert (await client.answer()).body == b"good"
        await client.send(b"GARBAGE\r\n\r\n")
        assert parse(await client.read_all()).status == 400


@pytest.mark.usefixtures("way")
async def test_a_request_for_another_protocol_is_answered_in_this_one() -> None:
    """And so are those that follow."""
    async with serving(echo) as url, connected(url) as client:
        for headers in ({}, {"connection": "upgrade", "upgrade": "websocket"}, {}):
            await client.send(request("/", b"good", **headers))
            assert (await client.answer()).body == b"good"


@pytest.mark.usefixtures("way")
async def test_a_body_that_nobody_wanted_is_read_and_the_connection_kept() -> None:
    """The answer comes before the end of the body, and the next request behind it."""

    async def refuse(_: web.BaseRequest) -> web.StreamResponse:
        return answer(b"no")

    async with serving(refuse) as url, connected(url) as client:
        data = request("/", b"x" * 1000)
        await client.send(data[:-1])
        assert (await client.answer()).body == b"no"
        await client.send(data[-1:] + request("/", b"next"))
        assert (await client.answer()).body == b"no"


@pytest.mark.usefixtures("way")
async def test_any_answer_of_aiohttp_will_do() -> None:
    """An error, for one."""

    async def handle(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=404, body=b"none")

    async with serving(handle) as url, connected(url) as client:
        for _ in range(2):
            await client.send(request("/", b"{}"))
            found = await client.answer()
            assert (found.status, found.body) == (404, b"none")


# --- the ends of a connection


@pytest.mark.usefixtures("way")
async def test_a_connection_is_closed_behind_an_answer_that_says_so() -> None:
    """Or behind a request that does."""

    async def says_close(_: web.BaseRequest) -> web.StreamResponse:
        return answer(b"c", connection="close")

    async with serving(echo) as url, connected(url) as client:
        await client.send(request("/", b"a", connection="close"))
        assert parse(await client.read_all()).body == b"a"
    async with serving(says_close) as url, connected(url) as client:
        await client.send(request("/", b"a") + request("/", b"b"))
        assert parse(await client.read_all()).body == b"c"


@pytest.mark.usefixtures("way")
async def test_a_connection_that_rests_too_long_is_closed() -> None:
    """Not before it has rested so long, whatever it did before."""
    async with serving(echo, keepalive_timeout=0.3) as url, connected(url) as client:
        for _ in range(3):
            await client.send(request("/", b"a"))
            await client.answer()
            await asyncio.sleep(0.01)
        assert await client.read_all() == b""


@pytest.mark.usefixtures("way")
async def test_a_handler_whose_client_has_left_is_cancelled() -> None:
    """At once, as who pays for an answer nobody hears would want."""
    ends: list[BaseException] = []
    has_begun = asyncio.Event()

    async def wait(_: web.BaseRequest) -> web.StreamResponse:
        has_begun.set()
        try:
            await asyncio.Event().wait()
        except BaseException as error:
            ends.append(error)
            raise
        return answer(b"never")

    async with serving(wait) as url, connected(url) as client:
        await client.send(request("/", b"{}"))
        async with asyncio.timeout(30):
            await has_begun.wait()
        client.abort()
        await eventually(lambda: len(ends) == 1)
    assert isinstance(ends[0], asyncio.CancelledError)


@pytest.mark.usefixtures("way")
async def test_a_handler_that_fails_is_answered_for_and_the_connection_closed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By whoever handles errors; aiohttp does with a 500."""

    async def fail(_: web.BaseRequest) -> web.StreamResponse:
        raise ZeroDivisionError

    async with serving(fail) as url, connected(url) as client:
        await client.send(request("/", b"{}"))
        assert parse(await client.read_all()).status == 500
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.usefixtures("way")
async def test_a_client_that_reads_slowly_is_waited_for() -> None:
    """The next request is not handled before its answer is on its way."""
    body = b"x" * 20_000_000
    began: list[float] = []

    async def handle(_: web.BaseRequest) -> web.StreamResponse:
        began.append(asyncio.get_running_loop().time())
        return answer(body)

    async with serving(handle) as url, connected(url) as client:
        await client.send(request("/", b"{}") * 2)
        await eventually(lambda: len(began) == 1)
        await asyncio.sleep(0.05)
        assert len(began) == 1
        for _ in range(2):
            assert len((await client.answer()).body) == len(body)


# --- tasks and context variables

_LEFT: ContextVar[str] = ContextVar("_LEFT")


@pytest.mark.usefixtures("way")
async def test_a_request_finds_nothing_of_what_the_one_before_has_left() -> None:
    """A middleware that binds a variable and does not set it back speaks for its own request."""

    async def leave(request: web.BaseRequest) -> web.StreamResponse:
        found = _LEFT.get("nothing")
        if request.path == "/set":
            _LEFT.set("something")
        return answer(found.encode())

    async with serving(leave) as url, connected(url) as client:
        for path in ("/", "/set", "/", "/set", "/set"):
            await client.send(request(path, b"{}"))
            assert (await client.answer()).body == b"nothing"
        await client.send(request("/set", b"{}") + request("/", b"{}"))
        assert [(await client.answer()).body for _ in range(2)] == [b"nothing", b"nothing"]
        client.abort()


async def test_the_short_way_has_one_task_for_a_connection(way: str) -> None:
    """Which is known as the request's own either way."""
    tasks: list[tuple[object, object]] = []

    async def note(request: web.BaseRequest) -> web.StreamResponse:
        tasks.append((asyncio.current_task(), request.task))
        return answer(b"")

    async with serving(note) as url, connected(url) as client:
        for _ in range(3):
            await client.send(request("/", b"{}"))
            await client.answer()
    assert len({known for _, known in tasks}) == 1
    assert len({running for running, _ in tasks}) == (1 if way == "short" else 3)


async def test_a_body_is_taken_once_and_only_when_it_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then nothing holds it any more but who took it. On aiohttp's own way it is not taken at all."""
    monkeypatch.setattr(connection, "IS_SHORT", True)
    protocol = Connection(web.Server(echo), loop=asyncio.get_running_loop())
    content = StreamReader(protocol, 4096, loop=asyncio.get_running_loop())
    asked = make_mocked_request("POST", "/", payload=content)
    content.feed_data(b"one ")
    assert whole_body(asked) is None
    content.feed_data(b"two")
    content.feed_eof()
    monkeypatch.setattr(connection, "IS_SHORT", False)
    assert whole_body(asked) is None
    monkeypatch.setattr(connection, "IS_SHORT", True)
    assert whole_body(asked) == b"one two"
    assert whole_body(asked) == b""
    broken = StreamReader(protocol, 4096, loop=asyncio.get_running_loop())
    broken.feed_eof()
    broken.set_exception(ValueError())
    assert whole_body(make_mocked_request("POST", "/", payload=broken)) is None


# --- heads that came before


def show(heads: list[tuple[object, ...]]) -> Handler:
    """Return what answers like ``echo``, and writes down all that is known of a request."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        headers, parts = list(request.headers.items()), (request.method, request.version, request.keep_alive)
        heads.append((*parts, str(request.rel_url), headers, request.raw_headers, request.content_length))
        return await echo(request)

    return handle


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("body", [b"{}", b"[]", b"{" + b" " * 98 + b"}", b"\r\n\r\n", b" " * 40_000])
async def test_a_head_that_came_before_means_what_it_meant(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the length of the body, which is its own: nobody can see that it was not parsed again."""
    heads: list[tuple[object, ...]] = []
    parsed = []

    def parse_too(self: web.RequestHandler, data: bytes) -> None:
        parsed.append(data)
        original(self, data)

    original = web.RequestHandler.data_received
    async with serving(show(heads)) as url:
        async with connected(url) as client:
            for sent in (b"{}", body, b"{}", body):
                await client.send(request("/a%20b?c=d", sent, X_Who="me"))
                assert (await client.answer()).body == sent
            monkeypatch.setattr(web.RequestHandler, "data_received", parse_too)
            await client.send(request("/a%20b?c=d", body, X_Who="me"))
            assert (await client.answer()).body == body
        assert bool(parsed) == (not connection.IS_SHORT)
        async with connected(url) as client:
            await client.send(request("/a%20b?c=d", body, X_Who="me"))
            assert (await client.answer()).body == body
    assert heads[0] == heads[2]
    assert heads[1] == heads[3] == heads[4] == heads[5]
    assert heads[1][-1] == len(body)


_NOTE = web.RequestKey("note", int)


async def test_what_was_found_in_a_head_is_known_when_it_comes_again(way: str) -> None:
    """Whatever the length of the body is, and of no other head; all else of a request is its own."""
    seen: list[tuple[object, ...]] = []

    async def note(request: web.BaseRequest) -> web.StreamResponse:
        known = known_of(request)
        found = known.setdefault("who", request.headers["x-who"])
        seen.append((found, _NOTE in request, request.writer.output_size))
        request[_NOTE] = known["count"] = known.get("count", 0) + 1
        return answer(str(known["count"]).encode())

    counts = []
    async with serving(note) as url, connected(url) as client:
        for who, body in (("a", b"1"), ("a", b"2"), ("a", b"33"), ("a", b"4"), ("b", b"5"), ("b", b"6"), ("b", b"7")):
            await client.send(request("/", body, X_Who=who))
            counts.append(int((await client.answer()).body))
    assert seen == [(who, False, 0) for who in "aaaabbb"]
    assert counts == ([1, 1, 2, 3, 1, 1, 2] if way == "short" else [1] * 7)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    ("odd", "answers"),
    [
        (lambda data: [data[:30], data[30:]], [b"{}"]),
        (lambda data: [data[:-1], data[-1:]], [b"{}"]),
        (lambda data: [data + data], [b"{}"] * 2),
        (lambda data: [data + data[:40], data[40:]], [b"{}"] * 2),
        (lambda data: [data + data[:-1], data[-1:] + data], [b"{}"] * 3),
        (lambda data: [data.replace(b"{}", b"{ }").replace(b": 2\r", b": 3\r") + data], [b"{ }", b"{}"]),
        (lambda data: [data.replace(b": 2\r", b": 02\r")], [b"{}"]),
        (lambda data: [data.replace(b": 2\r", b": 0\r").replace(b"{}", b"")], [b""]),
        (lambda data: [data.replace(b"X-Who", b"x-who")], [b"{}"]),
        (lambda data: [data.replace(b"X-Who: me", b"X-Who: you")], [b"{}"]),
        (lambda data: [data.replace(b"X-Who", b"Connection: close\r\nX-Who")], [b"{}"]),
    ],
)  # fmt: skip
async def test_what_is_not_a_whole_request_behind_a_known_head_is_read_by_the_parser(
    odd: Callable[[bytes], list[bytes]], answers: list[bytes]
) -> None:
    """In pieces, with more behind it, with another head: and those behind that are answered too."""
    data = request("/", b"{}", X_Who="me")
    async with serving(echo) as url, connected(url) as client:
        for _ in range(3):
            for _ in range(2):
                await client.send(data)
                assert (await client.answer()).body == b"{}"
            for piece in odd(data):
                await client.send(piece)
                await asyncio.sleep(0.01)
            assert [(await client.answer()).body for _ in answers] == answers
            if b"close" in odd(data)[0]:
                break


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    "length",
    [b"+2", b"-2", b"2 ", b" 2", b"2,2", b"0x2", b"2_0", b"1234567890", b"\xc2\xb2", b"", b"2\r\nContent-Length: 2"],
)
async def test_a_length_that_is_none_is_refused_behind_a_known_head_too(length: bytes) -> None:
    """Or understood, as the parser does it on a fresh connection."""
    data = request("/", b"{}")
    odd = data.replace(b": 2\r", b": " + length + b"\r")

    async def status_of(requests: list[bytes]) -> int:
        async with serving(echo) as url, connected(url) as client:
            for sent in requests:
                await client.send(sent)
                await client.answer()
            await client.send(odd + b" " * 10)
            try:
                async with asyncio.timeout(0.5):
                    return (await client.answer()).status
            except (TimeoutError, ConnectionError, EOFError):
                return 0

    assert await status_of([data, data]) == await status_of([])


async def test_a_client_with_another_head_each_time_is_not_asked_to_repeat_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """To learn them costs more than it will ever save."""
    monkeypatch.setattr(connection, "IS_SHORT", True)
    learned = []
    monkeypatch.setattr(Connection, "_learn", lambda _, head: learned.append(head))
    async with serving(echo) as url, connected(url) as client:
        for number in range(4):
            await client.send(request("/", b"{}", X_Number=str(number)))
            await client.answer()
    assert len(learned) == 4
    monkeypatch.undo()
    monkeypatch.setattr(connection, "IS_SHORT", True)
    taken = []
    monkeypatch.setattr(KnownHead, "of", classmethod(lambda _, data: taken.append(data)))
    async with serving(echo) as url, connected(url) as client:
        for number in range(connection.LESSONS + 3):
            await client.send(request("/", b"{}", X_Number=str(number)))
            await client.answer()
    assert len(taken) == 1


# --- whether aiohttp is as it was


def test_this_aiohttp_is_as_the_short_way_expects_it() -> None:
    """If this fails aiohttp has changed: look at what is named before the list of it is."""
    assert connection.FAULTS == ()


@pytest.mark.parametrize(
    ("name", "replacement", "fault"),
    [
        ("start", lambda self, eager: None, "RequestHandler.start"),  # noqa: ARG005, it is only looked at
        ("start", lambda self: self._new_thing, "RequestHandler.start: _new_thing"),
        ("_handle_request", lambda self: None, "RequestHandler._handle_request"),  # noqa: ARG005, the same
        ("finish_response", None, "RequestHandler.finish_response"),
    ],
)
def test_an_aiohttp_that_has_changed_is_told_by_name(
    name: str, replacement: object, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is raised: the gateway serves with aiohttp's own way."""
    monkeypatch.setattr(web.RequestHandler, name, replacement)
    assert fault in list(connection._faults())


def test_an_aiohttp_whose_parser_has_changed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request is fed once, before any is served."""

    def fail(self: Connection, data: bytes) -> None:  # noqa: ARG001, the signature of aiohttp's
        raise BadHttpMessage("not as it was")

    monkeypatch.setattr(Connection, "data_received", fail)
    [fault] = connection._faults()
    assert fault.startswith("a request that is fed by hand: BadHttpMessage")


def test_the_environment_can_choose_the_public_way() -> None:
    """For who wants to know whether a trouble comes from the short one."""
    code = "from gateway import connection; print(connection.IS_SHORT)"
    for word, said in (("", "True"), ("1", "False")):
        environment = os.environ | {"MILLRACE_PUBLIC_PATH": word}
        ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)  # noqa: S603, our own code
        assert ran.stdout.strip() == said
