import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime

import pytest
from aiohttp import web

from gateway.reply import Reply, header_lines
from tests.raw_client import connected, exchange, parse, request

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class OnePort:
    """A port that says one thing of its own, and remembers what went out of it."""

    def __init__(self, **heading: str) -> None:
        self._heading = heading
        self.counted: list[tuple[str, int]] = []

    def heading(self, request: web.BaseRequest) -> Mapping[str, str]:
        """Say where the request went."""
        return {"x-path": request.path, **self._heading}

    def lines(self, request: web.BaseRequest) -> str | None:
        """Say it as it is written, unless the connection is to be closed."""
        return None if "connection" in self._heading else header_lines(self.heading(request))

    def count(self, endpoint: str, status: int) -> None:
        """Remember it."""
        self.counted.append((endpoint, status))


@asynccontextmanager
async def serving(handle: Handler) -> AsyncIterator[str]:
    """Serve with a function, at the address that is yielded."""
    http = web.Server(handle)
    server = await asyncio.get_running_loop().create_server(http, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await http.shutdown(1)


def whole(port: OnePort, body: bytes = b"{}", **headers: str) -> Handler:
    """Return a handler that answers with a body."""

    async def handle(_: web.BaseRequest) -> web.StreamResponse:
        return Reply(port, "chat", {"content-type": "application/json", **headers}, body)

    return handle


async def test_an_answer_has_its_own_headers_and_those_of_its_port() -> None:
    """With a length and a date, under a status that is counted once."""
    port = OnePort()
    async with serving(whole(port, b'{"a": "\xc3\xa9"}', x_own="1")) as url:
        found = await exchange(url, request("/there", b"{}"))
    assert found.status == 200
    assert found.body == b'{"a": "\xc3\xa9"}'
    assert found.headers["content-type"] == "application/json"
    assert found.headers["content-length"] == "11"
    assert found.headers["x_own"] == "1"
    assert found.headers["x-path"] == "/there"
    assert parsedate_to_datetime(found.headers["date"]).year >= 2024
    assert "transfer-encoding" not in found.headers
    assert port.counted == [("chat", 200)]


class Spy:
    """A transport that notes what is written to it."""

    def __init__(self, transport: asyncio.Transport | None, written: list[bytes]) -> None:
        assert transport is not None
        self._transport = transport
        self._written = written

    def is_closing(self) -> bool:
        """Return what the transport does."""
        return self._transport.is_closing()

    def write(self, data: bytes) -> None:
        """Note, and write."""
        self._written.append(data)
        self._transport.write(data)


async def test_an_answer_is_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its head and its body come in one packet, and cost one system call."""
    written: list[bytes] = []

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        monkeypatch.setattr(type(request), "transport", Spy(request.transport, written))
        return Reply(OnePort(), "chat", {}, b"body")

    async with serving(handle) as url:
        assert (await exchange(url, request("/", b"{}"))).body == b"body"
    assert len(written) == 1


async def test_a_connection_is_good_for_more_requests() -> None:
    """Also for such as were sent before the answer to the first, whose answers come in order."""
    port = OnePort()
    async with serving(whole(port)) as url, connected(url) as client:
        for _ in range(2):
            await client.send(request("/a", b"{}"))
            assert "connection" not in (await client.answer()).headers
        await client.send(request("/b", b"{}") + request("/c", b"{}"))
        assert [(await client.answer()).headers["x-path"] for _ in range(2)] == ["/b", "/c"]
    assert len(port.counted) == 4


async def test_a_port_that_closes_says_so_and_does() -> None:
    """The answer comes whole all the same."""
    async with serving(whole(OnePort(connection="close"))) as url, connected(url) as client:
        await client.send(request("/", b"{}"))
        found = parse(await client.read_all())
    assert found.headers["connection"] == "close"
    assert found.body == b"{}"


async def test_a_client_that_wants_to_leave_is_let_go() -> None:
    """Its connection is closed behind the answer, as it was told."""
    async with serving(whole(OnePort())) as url, connected(url) as client:
        await client.send(request("/", b"{}", connection="close"))
        found = parse(await client.read_all())
    assert found.headers["connection"] == "close"


@pytest.mark.parametrize(("asked", "told"), [({}, "close"), ({"connection": "keep-alive"}, "keep-alive")])
async def test_an_old_client_is_answered_in_its_own_version(asked: Mapping[str, str], told: str) -> None:
    """HTTP/1.0 closes behind an answer, unless it was asked not to."""
    async with serving(whole(OnePort())) as url, connected(url) as client:
        await client.send(request("/", b"{}", **asked).replace(b"HTTP/1.1", b"HTTP/1.0", 1))
        seen = await client.read_until(b"{}")
    assert seen.startswith(b"HTTP/1.0 200 OK\r\n")
    assert parse(seen).headers.get("connection", "close") == told


@pytest.mark.parametrize("value", ["a\r\nset-cookie: b", "a\nb", "a\x00b", "a\x7fb"])
async def test_nobody_can_write_a_header_into_the_value_of_another(
    value: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A value that would end its line is a mistake of the gateway's, and fails as one: nothing of it is written."""
    async with serving(whole(OnePort(), evil=value)) as url, connected(url) as client:
        await client.send(request("/", b"{}"))
        assert await client.read_all() == b""
    assert "a control character is not for a header" in caplog.text


async def test_a_value_may_be_any_text() -> None:
    """Tabs too, which are no letters but allowed."""
    async with serving(whole(OnePort(), name="caf\u00e9\tau lait")) as url:
        found = await exchange(url, request("/", b"{}"))
    assert found.status == 200
    assert "lait" in found.headers["name"]


async def test_who_asks_for_the_head_writes_the_answer() -> None:
    """Chunk by chunk; then nothing is written a second time."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        reply = Reply(OnePort(), "chat", {"content-type": "text/plain"})
        was_prepared = reply.prepared
        assert request.transport is not None
        request.transport.write(reply.head(request, {"x-more": "1"}) + b"2\r\nhi\r\n0\r\n\r\n")
        assert (was_prepared, reply.prepared) == (False, True)
        return reply

    async with serving(handle) as url, connected(url) as client:
        for _ in range(2):
            await client.send(request("/", b"{}"))
            found, client.seen = parse(await client.read_until(b"\r\n0\r\n\r\n")), b""
            assert found.headers["transfer-encoding"] == "chunked"
            assert found.headers["x-more"] == "1"
            assert found.body == b"hi"


async def test_a_client_that_has_left_fails_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """The answer is not written, and no error is logged."""
    left = asyncio.Event()
    ended = asyncio.Event()

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        await left.wait()
        assert request.transport is not None
        request.transport.abort()
        ended.set()
        return Reply(OnePort(), "chat", {}, b"{}")

    async with serving(handle) as url, connected(url) as client:
        await client.send(request("/", b"{}"))
        left.set()
        async with asyncio.timeout(30):
            await ended.wait()
            assert await client.read_all() == b""
    assert caplog.records == []
