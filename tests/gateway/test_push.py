"""Both ways of reading a response, pushed and pulled, on real connections."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress

import aiohttp
import pytest

from gateway import push
from gateway.core.call import OpenFlow
from gateway.push import CAN_PUSH, relay
from tests.eventually import TIMEOUT_S, eventually
from tests.scripted_upstream import END, STREAM, ScriptedUpstream, Step, chunk


@pytest.fixture(params=["pushed", "pulled"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The way in which the response is read."""
    monkeypatch.setattr(push, "CAN_PUSH", request.param == "pushed")
    yield request.param
    assert not push._SINKS


class Tap:
    """A flow that is closed by hand."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()

    is_committed = False

    @property
    def is_paused(self) -> bool:
        """Whether reading should pause."""
        return not self._open.is_set()

    async def wait(self) -> None:
        """Return when the tap is open."""
        await self._open.wait()

    def turn(self, *, is_open: bool) -> None:
        """Open or close."""
        if is_open:
            self._open.set()
        else:
            self._open.clear()


@asynccontextmanager
async def answered(*script: Step) -> AsyncIterator[aiohttp.ClientResponse]:
    """Yield the response to a request that a scripted upstream answers."""
    async with (
        ScriptedUpstream(script) as upstream,
        aiohttp.ClientSession(read_bufsize=4096) as session,
        session.post(upstream.url, data=b"{}") as response,
    ):
        yield response


def ignore() -> None:
    """Take note of nothing."""


def into(got: list[bytes]) -> push.Take:
    """Return a taker that keeps what it is given, and never has enough."""

    def take(data: bytes, arrived_at_s: float) -> bool:  # noqa: ARG001, the signature of a taker
        got.append(data)
        return False

    return take


def test_this_aiohttp_can_be_read_by_push() -> None:
    """If this fails aiohttp has changed its reader: the gateway still works, but look at gateway/push.py."""
    assert CAN_PUSH


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
        aiohttp.ClientSession(read_bufsize=4096) as session,
        session.post(upstream.url, data=b"{}") as response,
    ):
        reading = asyncio.ensure_future(relay(response.content, take, tap, note_pause=ignore))
        received = await upstream.request()
        await asyncio.sleep(0.5)
        assert received.bytes_sent < 4_000_000, way  # of 20 MB
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
