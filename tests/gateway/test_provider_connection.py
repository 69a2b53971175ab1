"""Connections that are fed by hand: what each read brings, and that what is read here is what aiohttp reads."""

import asyncio
import random
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import aiohttp
import pytest

from gateway import exchange
from gateway.core.call import OpenFlow
from gateway.exchange import relay
from gateway.provider_connection import Content, ProviderConnection, Take
from tests.eventually import TIMEOUT_S
from tests.scripted_upstream import CLOSE_DELIMITED, END, STREAM, chunk
from tests.taking import Tap, ignore, into


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the environment asks for, the short way is gone."""
    monkeypatch.setattr(exchange, "IS_SHORT", True)


# --- what one read brings, by hand


async def fed(head: bytes, take: Take) -> tuple[ProviderConnection, asyncio.Future[None]]:
    """Return a connection without a socket whose answer has begun, and the reading of its body."""
    connection = ProviderConnection(asyncio.get_running_loop())
    connection.connection_made(Wire())
    connection.set_response_params(read_until_eof=True)
    connection.data_received(head)
    _, content = await connection.read()
    reading = asyncio.ensure_future(relay(content, take, OpenFlow(), note_pause=ignore))
    await asyncio.sleep(0)
    return connection, reading


async def test_what_one_read_brought_is_passed_on_in_it_and_as_one_piece() -> None:
    """However many chunks it had, and with the end of the body in it: the loop need not turn."""
    got: list[bytes] = []
    connection, reading = await fed(STREAM, into(got))
    connection.data_received(chunk(b"one") + chunk(b"two")[:4])
    assert got == [b"onet"]
    connection.data_received(chunk(b"two")[4:] + chunk(b"three") + END)
    assert got == [b"onet", b"wothree"]
    assert connection.sink is None, "the connection may serve another before the reading has noticed"
    await asyncio.wait_for(reading, 5)


async def test_a_body_that_ends_with_its_connection_is_passed_on_whole() -> None:
    """The end comes outside of any read."""
    got: list[bytes] = []
    connection, reading = await fed(CLOSE_DELIMITED, into(got))
    connection.data_received(b"all")
    connection.connection_lost(None)
    await asyncio.wait_for(reading, 5)
    assert got == [b"all"]


async def test_what_comes_behind_an_error_of_the_taker_is_not_passed_on() -> None:
    """The read in which the taker raises ends as any, and the next is nobody's."""
    got: list[bytes] = []

    def take(data: bytes, arrived_at_s: float) -> bool:  # noqa: ARG001, the signature of a taker
        got.append(data)
        raise LookupError

    connection, reading = await fed(STREAM, take)
    connection.data_received(chunk(b"one"))
    connection.data_received(chunk(b"two"))
    with pytest.raises(LookupError):
        await reading
    assert got == [b"one"]


async def test_a_reader_that_was_pushed_can_be_read_on_in_chunks() -> None:
    """What was passed on is not counted among the chunks of who reads on, to drain the rest of an answer."""
    connection = ProviderConnection(asyncio.get_running_loop())
    connection.connection_made(Wire())
    connection.set_response_params()
    connection.data_received(STREAM)
    _, content = await connection.read()
    reading = asyncio.ensure_future(relay(content, lambda *_: True, OpenFlow(), note_pause=ignore))
    await asyncio.sleep(0)
    connection.data_received(chunk(b"enough"))
    await asyncio.wait_for(reading, 5)
    connection.data_received(chunk(b"more") + END)
    assert await content.read() == b"more"
    assert not connection.should_close


@pytest.mark.parametrize("junk", [b"zz\r\n", b"3\r\noddxx\r\n", b"\0", b"f" * 18 + b"\r\n"])
@pytest.mark.parametrize("head", [STREAM, STREAM.replace(b"HTTP/1.1", b"HTTP/1.0")], ids=["plain", "parsed"])
@pytest.mark.parametrize("is_read", [True, False])
async def test_what_is_not_http_ends_the_body_in_which_it_comes(head: bytes, junk: bytes, is_read: bool) -> None:  # noqa: FBT001, as pytest passes it
    """At once, behind what was good of it, and whether it is read by then or not."""
    got: list[bytes] = []
    connection = ProviderConnection(asyncio.get_running_loop())
    connection.connection_made(Wire())
    asked = connection.ask()
    connection.data_received(head)
    plain = await asked
    content = (await connection.read())[1] if plain is None else plain[2]
    reading = relay(content, into(got), OpenFlow(), note_pause=ignore)
    begun = asyncio.ensure_future(reading) if is_read else None
    await asyncio.sleep(0)
    connection.data_received(chunk(b"one"))
    connection.data_received(chunk(b"two") + junk)
    with pytest.raises(aiohttp.ClientPayloadError):
        await asyncio.wait_for(begun or reading, TIMEOUT_S)
    assert b"".join(got).startswith(b"onetwo" if is_read else b"")
    assert connection.should_close


async def test_what_is_not_http_behind_an_answer_is_no_fault_of_its_body() -> None:
    """It has ended; only its connection is of no use any more."""
    got: list[bytes] = []
    connection, reading = await fed(STREAM, into(got))
    connection.data_received(chunk(b"one") + END)
    connection.data_received(b"zz\r\n")
    await asyncio.wait_for(reading, TIMEOUT_S)
    assert got == [b"one"]
    assert connection.should_close


# --- that what is read here is what aiohttp reads


class Wire(asyncio.Transport):
    """A transport without a socket, which knows whether it is still open."""

    is_open = True

    def close(self) -> None:
        """Close."""
        self.is_open = False

    def abort(self) -> None:
        """Close as well."""
        self.is_open = False

    def is_closing(self) -> bool:
        """Return whether it is closed."""
        return not self.is_open


class Outcome(NamedTuple):
    """All that an exchange shows of what came."""

    head: object
    body: bytes
    end: str
    can_be_used_again: bool


async def outcome(  # noqa: C901, a small world of its own
    reads: Sequence[bytes], end: BaseException | str | None, *, is_plain: bool, limit: int, pauses: int
) -> Outcome:
    """Return what is made of some reads, and of the end of the connection behind them, if it is to end.

    The client pauses behind each piece that it is given, for so many reads.
    """
    connection = ProviderConnection(asyncio.get_running_loop(), read_ahead_bytes=4096)
    wire = Wire()
    connection.connection_made(wire)
    asked = connection.ask()
    if not is_plain:
        connection._decline(asked, b"")
    got: list[bytes] = []
    heads: list[object] = []

    tap, paused = Tap(), [0]

    def take(data: bytes, arrived_at_s: float) -> bool:  # noqa: ARG001, the signature of a taker
        got.append(data)
        paused[0] = pauses
        tap.turn(is_open=not pauses)
        return sum(map(len, got)) >= limit

    async def make_exchange() -> bool:
        plain: tuple[int, Mapping[str, str], Content] | None = await asked
        while plain is None:
            message, content = await connection.read()
            if message.code >= 200 or message.code == 101:
                plain = message.code, message.headers, content
        heads.append((plain[0], [(name.lower(), value) for name, value in plain[1].items()]))
        heads.append(plain[1].get("x-twice"))
        body = plain[2]
        await relay(body, take, tap, note_pause=ignore)
        return isinstance(body, bytes) or body.is_eof()

    async def turn() -> None:
        for _ in range(4):
            await asyncio.sleep(0)

    making = asyncio.ensure_future(make_exchange())
    for data in reads:
        await turn()
        if wire.is_open:
            connection.data_received(data)
        paused[0] -= 1
        tap.turn(is_open=paused[0] <= 0)
    pauses = 0
    tap.turn(is_open=True)
    await turn()
    if not wire.is_open or not isinstance(end, str):
        connection.connection_lost(None if isinstance(end, str) else end)
    await turn()
    making.cancel()
    done = (await asyncio.gather(making, return_exceptions=True))[0]
    can_be_used = wire.is_open and done is True and connection.body is None and not connection.should_close
    return Outcome(heads, b"".join(got), str(done) if isinstance(done, bool) else type(done).__name__, can_be_used)


async def assert_same(
    reads: Sequence[bytes], end: BaseException | str | None = "", *, limit: int = 1_000_000, pauses: int = 0
) -> Outcome:
    """Assert that an exchange shows the same, whoever reads it; return that."""
    plain, parsed = [
        await outcome(reads, end, is_plain=is_plain, limit=limit, pauses=pauses) for is_plain in (True, False)
    ]
    assert plain == parsed, (reads, end, limit, pauses)
    return plain


SIZED: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Twice: a\r\nX-Twice: b\r\nContent-Length: 10\r\n\r\n"
)
ENDS: Final[tuple[BaseException | str | None, ...]] = ("", None, ConnectionResetError(104, "reset"))


@pytest.mark.parametrize("whole", [SIZED + b"0123456789", STREAM + chunk(b"one") + chunk(b"x" * 20) + END])
@pytest.mark.parametrize("behind", [b"", b"x", b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"])
async def test_an_answer_may_be_cut_at_every_byte(whole: bytes, behind: bytes) -> None:
    """In two reads, or so that the connection ends there; with something behind its end or nothing."""
    data = whole + behind
    for at in range(1, len(data) + 1):
        got = await assert_same([data[:at], data[at:]] if at < len(data) else [data])
        assert behind or (len(got.body), got.end) == (10 if whole.startswith(SIZED) else 23, "True")
        assert got.can_be_used_again is not bool(behind)
        for end in ENDS:
            await assert_same([data[:at]], end)
        await assert_same([data[:at], data[at:]], limit=5)
        for pauses in (1, 2):
            await assert_same([data[:at], data[at : at + 1], data[at + 1 : at + 2], data[at + 2 :]], pauses=pauses)
    for end in ENDS:
        await assert_same([], end)
        await assert_same([data[at : at + 1] for at in range(len(data))], end)


ODD_HEADS: Final = [
    SIZED.replace(b"10", said)
    for said in (b"", b"-1", b"+10", b"1 0", b"10, 10", b"0x0a", b"010", b"9" * 30, b"10\r\nContent-Length: 11",
                 b"10\r\nContent-Length: 10", b"10\r\nTransfer-Encoding: chunked", b"10\r\nConnection: close",
                 b"10\r\nConnection: keep-alive", b"10\r\n folded", b"10\nX: y", b"10\r\nX : y", b"10\r\n: y",
                 b"10\r\nX", b"10\r\nX:", b"10\r\nX: \x00", b"10\r\nX: \x01", b"10\r\nX: k\xc3\xa4se\xff", b"10 \t",
                 b"10\r\nProxy-Connection: close", b"10\r\nUpgrade: websocket\r\nConnection: upgrade",
                 b"10\r\nSec-WebSocket-Key1: x", b"10\r\nContent-Encoding: identity", b"10\r\nX: " + b"y" * 8189,
                 b"10\r\nContent-Encoding: gzip", b"10\r\nX: " + b"y" * 8000, b"10" + b"\r\nX: y" * 124,
                 b"10" + b"\r\nX: y" * 125, b"10" + b"\r\nX: y" * 130, b"10" + b"\r\nX-Many: and long" * 30)
] + [
    STREAM.replace(b"chunked", said)
    for said in (b"", b"Chunked", b"chunked, chunked", b"gzip, chunked", b"chunked, gzip", b"identity", b"chunked;q=1",
                 b"chunked\r\nTransfer-Encoding: chunked", b"chunked\r\nContent-Length: 5", b"\x0bchunked", b"xchunked",
                 b"chunked\r\nContent-Encoding: gzip", b"chunked\r\nTrailer: X")
] + [
    head.replace(b"HTTP/1.1 200 OK", first)
    for head in (SIZED, STREAM)
    for first in (b"HTTP/1.0 200 OK", b"HTTP/1.1 204 None", b"HTTP/1.1 304 Old", b"HTTP/1.1 101 Other", b"HTTP/1.1 200",
                  b"HTTP/1.1 200 ", b"HTTP/1.1 099 Odd", b"HTTP/1.1 600 Odd", b"HTTP/1.1 1000 Odd", b"HTTP/2 200 OK",
                  b"HTTP/1.1 100 Go on\r\n\r\nHTTP/1.1 200 OK", b"HTTP/1.1 200 k\xc3\xa4se", b"\r\nHTTP/1.1 200 OK",
                  b"HTTP/1.1 200 OK\nX: y", b"ICY 200 OK", b"HTTP/1.1 200 O\tK", b"HTTP/1.1 429 Slow down")
]  # fmt: skip


@pytest.mark.parametrize("head", ODD_HEADS)
async def test_a_head_that_is_not_plain_means_what_it_means_to_aiohttp(head: bytes) -> None:
    """With every kind of body behind it, in the same read or not."""
    for body in (
        b"",
        b"0123456789",
        b"0123456789more",
        chunk(b"one") + END,
        chunk(b"one") + END + END,
        b"5;a\r\nhello\r\n",
    ):
        for end in ENDS:
            await assert_same([head + body], end)
            await assert_same([head, body], end)
            await assert_same([head[:20], head[20:] + body], end)


ODD_CHUNKS: Final = [
    b"3;a=b\r\nodd\r\n", b"3 \r\nodd\r\n", b"03\r\nodd\r\n", b"3\nodd\n", b"3\r\noddxx", b"g\r\n", b"+3\r\nodd\r\n",
    b"0\r\nx: y\r\n\r\n", b"00\r\n\r\n", END + b"HTTP/1.1 200 OK\r\n\r\n", b"\r\n", b"3\r\nodd\n", b"3\r\nodd\r\r\n",
    b"f" * 18 + b"\r\n", b"3_0\r\nodd", b"0x3\r\nodd\r\n", b"3\r\nod",
]  # fmt: skip


@pytest.mark.parametrize("seed", range(60))
async def test_whatever_comes_is_read_as_aiohttp_reads_it(seed: int) -> None:
    """Good chunks and bad ones, cut anywhere, with one end or another."""
    rng = random.Random(seed)  # noqa: S311, no secret
    for _ in range(20):
        pieces = [chunk(rng.randbytes(rng.choice([1, 9, 16, 200, 300, 5000]))) for _ in range(rng.randrange(6))]
        if rng.random() < 0.6:
            pieces.insert(rng.randrange(len(pieces) + 1), rng.choice(ODD_CHUNKS))
        data = STREAM + b"".join(pieces) + rng.choice([END, END, b"", b"0\r\n", END + b"x"])
        reads, at = list[bytes](), 0
        while at < len(data):
            size = rng.choice([1, 2, len(STREAM), 250, 10_000]) if at else rng.choice([50, *[len(STREAM)] * 3, 400])
            reads.append(data[at : at + size])
            at += size
        limit = rng.choice([1, 5, 100, *[1_000_000] * 3])
        await assert_same(reads, rng.choice(ENDS), limit=limit, pauses=rng.choice([0, 0, 1, 2]))
