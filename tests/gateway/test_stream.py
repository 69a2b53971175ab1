import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote, urlsplit

import aiohttp
import pytest
from structlog.testing import capture_logs

import gateway.stream
from gateway.core.call import Call
from gateway.core.errors import ClientGone
from gateway.core.events import ProviderExtra, StreamStarted, TextDelta
from gateway.dialects import DIALECTS
from gateway.simulator import Script
from gateway.stream import HIGH_WATER_BYTES, Begin, ClientStream
from tests.clock import Clock
from tests.conftest import MakeGateway
from tests.eventually import TIMEOUT_S, eventually
from tests.exposition import Exposition, scrape
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
    chunk,
    complete,
    config_over,
    text,
    texts_of,
    words,
)

PATH = "/v1/chat/completions"
BEAT = b": keep-alive\n\n"


# --- the stream itself


def make_stream(begin: Begin) -> ClientStream:
    """Return the stream of a call in OpenAI's words."""
    encoder = DIALECTS["openai_chat"].encoder(Call(request_id="r"))
    return ClientStream(encoder, begin, heartbeat_s=1, write_timeout_s=1)


@asynccontextmanager
async def socket_pair() -> AsyncIterator[tuple[asyncio.Transport, socket.socket]]:
    """Open a connection: a transport, and the socket of who is written to."""
    left, right = socket.socketpair()
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=left)
    try:
        yield transport, right
    finally:
        transport.abort()
        right.close()
        await asyncio.sleep(0)


async def test_the_first_bytes_begin_the_response_in_one_write_with_its_head() -> None:
    """What has none does not; who begins it is told which target has answered."""
    told: list[StreamStarted | None] = []
    async with socket_pair() as (transport, client):

        def begin(started: StreamStarted | None) -> tuple[asyncio.WriteTransport, bytes]:
            told.append(started)
            return transport, b"HEAD\r\n\r\n"

        stream = make_stream(begin)
        started = StreamStarted("c1", "mill", target="up/mill")
        stream.send([started])
        assert told == []
        was_committed = stream.is_committed
        stream.send([TextDelta("a")])
        stream.send([ProviderExtra()])
        assert (was_committed, stream.is_committed) == (False, True)
        assert told == [started]
        assert not stream.is_paused
        await stream.wait()
        stream.finish()
        client.settimeout(10)
        seen = await asyncio.to_thread(_read_until, client, b"0\r\n\r\n")
        assert seen.startswith(b"HEAD\r\n\r\n")
        assert seen.count(b"HEAD") == 1


async def test_a_stream_that_says_nothing_at_all_has_a_head_and_an_end() -> None:
    """The provider's answer was whole, and empty."""
    async with socket_pair() as (transport, client):
        stream = make_stream(lambda _: (transport, b"HEAD\r\n\r\n"))
        stream.finish()
        client.settimeout(10)
        assert await asyncio.to_thread(_read_until, client, b"0\r\n\r\n") == (
            b"HEAD\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(DONE), DONE)
        )


async def test_a_stream_whose_client_has_left_tells_its_sender() -> None:
    """``send`` and ``wait`` raise, so that whoever generates for it stops."""
    async with socket_pair() as (transport, _):
        stream = make_stream(lambda _: (transport, b""))
        stream.send([TextDelta("a")])
        transport.abort()
        with pytest.raises(ClientGone):
            stream.send([TextDelta("b")])
        with pytest.raises(ClientGone):
            await stream.wait()
        stream.finish()


async def test_a_client_that_left_before_anything_was_said_tells_the_sender_too() -> None:
    """There is nobody to begin a response for; a heartbeat that is due then is no error of anybody's."""

    def begin(_: StreamStarted | None) -> tuple[asyncio.WriteTransport, bytes]:
        raise ClientGone("the client has left")

    encoder = DIALECTS["openai_chat"].encoder(Call(request_id="r"))
    stream = ClientStream(encoder, begin, heartbeat_s=0.01, write_timeout_s=1)
    await asyncio.sleep(0.05)
    with pytest.raises(ClientGone):
        stream.send([TextDelta("a")])
    assert not stream.is_committed
    stream.close()


def _read_until(sock: socket.socket, end: bytes) -> bytes:
    seen = b""
    while not seen.endswith(end):
        seen += sock.recv(65536)
    return seen


# --- heartbeats


def patient(*upstreams: ScriptedUpstream, **provider: float) -> dict[str, Any]:
    """Return a configuration that beats every twenty seconds, and waits for the first provider as it is told."""
    config = config_over(*upstreams, server={"heartbeat_s": 20})
    config["providers"]["up"] |= {"ttft_timeout_s": 900, "stall_timeout_s": 900} | provider
    return config


async def test_a_pause_is_bridged_by_comments_that_begin_only_after_it_has_lasted(
    clock: Clock, make_gateway: MakeGateway
) -> None:
    """Every ``heartbeat_s`` one, between the tokens and never inside of an event."""
    go_on = asyncio.Event()
    script: list[Step] = [STREAM + chunk(ROLE, text("a")), go_on, chunk(text("b"), FINISH, DONE) + END]
    async with ScriptedUpstream(script) as upstream:
        gateway = await make_gateway(config=patient(upstream))
        async with connected(gateway.url) as client:
            await client.send(request(PATH, chat()))
            await client.read_until(b'"a"')
            for _ in range(6):
                await clock.pass_by(11)
            go_on.set()
            found = parse(await client.read_until(b"\r\n0\r\n\r\n"))
    assert found.body.count(BEAT) == 3
    assert found.body.index(b'"a"') < found.body.index(BEAT) < found.body.index(b'"b"')
    assert found.body.endswith(DONE)
    assert list(texts_of(found.body)) == ["a", "b"]


async def test_a_lively_stream_has_no_heartbeat(clock: Clock, make_gateway: MakeGateway) -> None:
    """Its tokens are sign enough."""
    gates = [asyncio.Event() for _ in range(10)]
    steps: list[Step] = [
        step for gate, word in zip(gates, words(10), strict=True) for step in (gate, chunk(text(word)))
    ]
    async with ScriptedUpstream([STREAM + chunk(ROLE), *steps, chunk(FINISH, DONE) + END]) as upstream:
        gateway = await make_gateway(config=patient(upstream))
        async with connected(gateway.url) as client:
            await client.send(request(PATH, chat()))
            await upstream.request()
            for gate, word in zip(gates, words(10), strict=True):
                await clock.pass_by(12)
                gate.set()
                await client.read_until(b'"%b"' % word.encode())
            found = parse(await client.read_until(b"\r\n0\r\n\r\n"))
    assert BEAT not in found.body
    assert list(texts_of(found.body)) == words(10)


async def test_a_long_prefill_is_bridged_too_and_commits_the_status(clock: Clock, make_gateway: MakeGateway) -> None:
    """Before the first heartbeat is due there is not even a status line."""
    go_on = asyncio.Event()
    async with ScriptedUpstream([go_on, *complete("late")]) as upstream:
        gateway = await make_gateway(config=patient(upstream))
        async with connected(gateway.url) as client:
            await client.send(request(PATH, chat()))
            await upstream.request()
            await clock.pass_by(11)
            with pytest.raises(TimeoutError):
                await client.read_until(b"H", timeout_s=0.1)
            await clock.pass_by(11)
            await client.read_until(BEAT)
            go_on.set()
            found = parse(await client.read_until(b"\r\n0\r\n\r\n"))
    assert found.status == 200
    assert found.headers["content-type"].startswith("text/event-stream")
    assert "x-millrace-target" not in found.headers, "nobody has given a token yet"
    assert list(texts_of(found.body)) == ["late"]


async def test_an_error_behind_a_heartbeat_is_told_in_the_stream(make_gateway: MakeGateway) -> None:
    """The status is gone: the error event and the missing end have to say it."""
    break_off = asyncio.Event()
    async with ScriptedUpstream([break_off, "fin"]) as upstream:
        gateway = await make_gateway(config=config_over(upstream, server={"heartbeat_s": 0.1}))
        async with connected(gateway.url) as client:
            await client.send(request(PATH, chat()))
            await client.read_until(BEAT)
            break_off.set()
            found = parse(await client.read_all())
    assert found.status == 200
    assert b'data: {"error":' in found.body
    assert b"[DONE]" not in found.body
    assert not found.is_whole


@pytest.mark.parametrize("has_text", [False, True], ids=["ttft", "stall"])
async def test_a_provider_that_only_pings_is_bridged_until_its_time_is_up(
    clock: Clock, make_gateway: MakeGateway, *, has_text: bool
) -> None:
    """Its pings are none of the client's: that hears the gateway's own, and then the truth."""
    pings: list[Step] = [step for _ in range(3000) for step in (chunk(PING), 0.02)]
    async with ScriptedUpstream([STREAM + chunk(ROLE, *([text("a")] if has_text else [])), *pings]) as upstream:
        gateway = await make_gateway(config=patient(upstream, ttft_timeout_s=110, stall_timeout_s=110))
        async with connected(gateway.url) as client:
            await client.send(request(PATH, chat()))
            await upstream.request()
            if has_text:
                await client.read_until(b'"a"')
            for count in range(1, 6):
                await clock.pass_by(21)
                await client.read_until(BEAT)
                await asyncio.sleep(0.03)
                assert client.seen.count(BEAT) <= count
            await clock.pass_by(21)
            found = parse(await client.read_all())
    assert 1 <= found.body.count(BEAT) <= 6
    assert list(texts_of(found.body)) == (["a"] if has_text else [])
    code = b"stall_timeout" if has_text else b"ttft_timeout"
    assert found.body.index(BEAT) < found.body.index(b'"code":"%b"' % code)
    assert b"ping" not in found.body
    assert not found.is_whole


async def test_a_seam_is_bridged_as_any_other_pause(clock: Clock, make_gateway: MakeGateway) -> None:
    """The client hears that somebody lives while another attempt is made, and while that one is silent."""
    begun, again = "It was a dark and ", "stormy night, and the rain fell in torrents"
    rest = chunk(text(again, "; except at times."), FINISH, DONE) + END
    go_on = asyncio.Event()
    async with (
        ScriptedUpstream([STREAM + chunk(ROLE, text(begun, again)), "stall"]) as stalled,
        ScriptedUpstream([STREAM + chunk(ROLE), go_on, rest]) as good,
    ):
        config = patient(stalled, good, stall_timeout_s=50)
        config["middleware"].append({"use": "middleware.resume.Resume", "max_attempts": 1})
        gateway = await make_gateway(config=config)
        async with connected(gateway.url) as client:
            await client.send(request(PATH, chat()))
            await client.read_until(again.encode())
            for _ in range(3):
                await clock.pass_by(21)
            await good.request()
            await clock.pass_by(21)
            go_on.set()
            found = parse(await client.read_until(b"\r\n0\r\n\r\n"))
    before, seam, behind = found.body.partition(b": millrace continued")
    assert seam
    assert before.count(BEAT) == 4
    assert BEAT not in behind
    assert "".join(texts_of(found.body)) == begun + again + "; except at times."
    assert found.body.endswith(DONE)
    assert found.is_whole


async def test_nothing_beats_behind_the_end(make_gateway: MakeGateway) -> None:
    """Neither after a good end, on a connection that stays open, nor after a bad one."""
    async with ScriptedUpstream(complete("a")) as upstream:
        gateway = await make_gateway(config=config_over(upstream, server={"heartbeat_s": 0.1}))
        async with connected(gateway.url) as client:
            await client.send(request(PATH, chat()))
            await client.read_until(b"\r\n0\r\n\r\n")
            with pytest.raises(TimeoutError):
                await client.read_until(b"keep-alive", timeout_s=0.4)
            assert client.seen.endswith(b"\r\n0\r\n\r\n")


async def test_plain_text_has_no_heartbeat(make_gateway: MakeGateway) -> None:
    """Whatever is sent would be shown."""
    async with ScriptedUpstream(
        [0.3, STREAM + chunk(ROLE, text("a")), 0.3, chunk(text("b"), FINISH, DONE) + END]
    ) as up:
        gateway = await make_gateway(config=config_over(up, server={"heartbeat_s": 0.1}))
        found = await exchange(gateway.url, request("/api/chat/stream", {"message": "Hello"}))
    assert found.body == b"ab"
    assert found.is_whole


# --- slow clients

BIG = [f"{number:06d}" + "x" * 994 for number in range(12_000)]


def big_script() -> list[Step]:
    """Return the script of a stream of about fourteen megabytes."""
    return [STREAM + chunk(ROLE), *(chunk(text(*BIG[at : at + 100])) for at in range(0, len(BIG), 100)),
            chunk(FINISH, DONE) + END]  # fmt: skip


@asynccontextmanager
async def narrow_client(url: str) -> AsyncIterator[RawClient]:
    """Connect with a small receive buffer, and read nothing that is not asked for."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    sock.setblocking(False)  # noqa: FBT003
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", urlsplit(url).port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=4096)
    try:
        yield RawClient(reader, writer)
    finally:
        writer.transport.abort()
        await asyncio.sleep(0)


async def test_a_client_that_never_reads_is_let_go_and_its_neighbour_notices_nothing(make_gateway: MakeGateway) -> None:
    """The provider is held back meanwhile, and freed when the time to write is over."""
    tokens = words(40)
    slow: list[Step] = [step for word in tokens for step in (chunk(text(word)), 0.03)]
    neighbour: list[Step] = [STREAM + chunk(ROLE), *slow, chunk(FINISH, DONE) + END]
    async with ScriptedUpstream(neighbour, big_script(), has_small_buffers=True) as upstream:
        gateway = await make_gateway(config=config_over(upstream, server={"write_timeout_s": 0.5}))
        with capture_logs() as logs:
            good = asyncio.ensure_future(exchange(gateway.url, request(PATH, chat())))
            await upstream.request(0)
            async with narrow_client(gateway.url) as client:
                await client.send(request(PATH, chat()))
                stuck = await upstream.request(1)
                await asyncio.wait_for(stuck.gone.wait(), TIMEOUT_S)
            found = await good
            await eventually(lambda: sum(line["event"] == "stream.finished" for line in logs) == 2)
    assert stuck.bytes_sent < 10_000_000, "most of it stayed with the provider"
    assert list(texts_of(found.body)) == tokens
    assert found.is_whole
    outcomes = sorted(line["outcome"] for line in logs if line["event"] == "stream.finished")
    assert outcomes == ["client_aborted", "completed"]


async def test_a_client_that_reads_slowly_gets_everything(clock: Clock, make_gateway: MakeGateway) -> None:
    """In order, each once, however often the provider had to wait; and the provider is not blamed for it."""
    async with ScriptedUpstream(big_script(), has_small_buffers=True) as upstream:
        config = config_over(upstream, server={"write_timeout_s": 50, "heartbeat_s": 20})
        config["providers"]["up"] |= {"stall_timeout_s": 30, "ttft_timeout_s": 30}
        gateway = await make_gateway(config=config)
        async with narrow_client(gateway.url) as client:
            await client.send(request(PATH, chat(), connection="close"))
            pieces: list[bytes] = []
            for round_number in range(100_000):
                if round_number < 30:
                    clock.advance(4)
                    await asyncio.sleep(0.04)
                if not (data := await asyncio.wait_for(client.reader.read(65536), TIMEOUT_S)):
                    break
                pieces.append(data)
    found = parse(b"".join(pieces))
    assert found.is_whole
    assert list(texts_of(found.body)) == BIG


async def test_what_a_slow_client_has_not_taken_is_counted_and_so_is_its_pause(make_gateway: MakeGateway) -> None:
    """Bytes that are waiting, for as long as they do; and no provider is blamed for the time."""
    async with ScriptedUpstream(big_script(), has_small_buffers=True) as upstream:
        config = config_over(upstream, telemetry={"slo": {"max_gap_s": 2.5}})
        gateway = await make_gateway(config=config)
        async with narrow_client(gateway.url) as client:
            await client.send(request(PATH, chat(), connection="close"))
            await (await upstream.request()).rest()
            waiting = await scrape(gateway.admin_url)
            await asyncio.sleep(2.6)
            while await asyncio.wait_for(client.reader.read(65536), TIMEOUT_S):
                pass

        async def look() -> Exposition | None:
            seen = await scrape(gateway.admin_url)
            is_over = seen.total("millrace_requests_total") and not seen.total("millrace_stream_buffered_bytes")
            return seen if is_over else None

        found = await eventually(look)
    assert waiting.total("millrace_stream_buffered_bytes") > HIGH_WATER_BYTES
    assert waiting.total("millrace_client_backpressure_seconds_count") == 0
    assert found.total("millrace_client_backpressure_seconds_sum") > 2.5
    assert found.by("outcome", "millrace_requests_total") == {"completed": 1}
    assert found.total("millrace_stalls_total") == 0
    assert found.total("millrace_slo_streams_total", objective="smooth", met="true") == 1


async def test_a_client_that_leaves_while_it_was_waited_for_frees_the_provider(make_gateway: MakeGateway) -> None:
    """Nobody was writing, nobody was reading."""
    async with ScriptedUpstream(big_script(), has_small_buffers=True) as upstream:
        gateway = await make_gateway(config=config_over(upstream))
        with capture_logs() as logs:
            async with narrow_client(gateway.url) as client:
                await client.send(request(PATH, chat()))
                received = await upstream.request()
                assert await received.rest() < 10_000_000, "the provider is held back"
                client.abort()
            await asyncio.wait_for(received.gone.wait(), 10)
            await eventually(lambda: any(line["event"] == "stream.finished" for line in logs))
    assert [line["outcome"] for line in logs if line["event"] == "stream.finished"] == ["client_aborted"]


@pytest.mark.parametrize(("linger_s", "is_told"), [(60.0, True), (0.1, False)])
async def test_an_error_event_waits_for_a_slow_client_but_not_for_ever(
    linger_s: float, make_gateway: MakeGateway, monkeypatch: pytest.MonkeyPatch, *, is_told: bool
) -> None:
    """What the kernel did not take is dropped when the time to linger is over."""
    monkeypatch.setattr(gateway.stream, "LINGER_S", linger_s)
    async with ScriptedUpstream([STREAM + chunk(ROLE, text(*BIG[:95])) + END]) as upstream:
        running = await make_gateway(config=config_over(upstream))
        async with narrow_client(running.url) as client:
            await client.send(request(PATH, chat()))
            await upstream.request()
            if is_told:
                await asyncio.sleep(0.5)
            else:
                guard = running.gateway._guard
                await eventually(lambda: guard is not None and not guard._connections)
            found = parse(await client.read_all())
    assert not found.is_whole
    assert list(texts_of(found.body[: found.body.rfind(b"\n\n")]))[:10] == BIG[:10]
    assert (b'data: {"error":' in found.body) is is_told


# --- many


async def _collect(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> str:
    async with session.post(url + PATH, json=body) as response:
        assert response.status == 200
        data = await response.read()
    assert data.endswith(DONE)
    return "".join(texts_of(data))


async def test_two_hundred_streams_at_once_lose_double_and_mix_up_nothing(make_gateway: MakeGateway) -> None:
    """Each gets its own fifty tokens, in order, each once."""
    running = await make_gateway("openai", default=Script(first_token_s=0.01, interval_s=0.01))
    said = {number: "".join(f"s{number}t{place} " for place in range(50)) for number in range(200)}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        bodies = (chat(model=f"openai/mill?say={quote(one)}") for one in said.values())
        found = await asyncio.gather(*(_collect(session, running.url, body) for body in bodies))
    assert found == list(said.values())
    assert len(running.simulator.requests) == 200
