import asyncio
import gc
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

import gateway.process.member
from gateway.app import config_hash
from gateway.config import parse_config
from gateway.core.call import Call
from gateway.core.errors import ConfigError
from gateway.exchange import IS_SHORT
from gateway.pipeline import Next, Send
from gateway.process.member import WORKER, Member, Started
from gateway.process.messages import Commission, Ready, Refused
from gateway.process.worker import calm_collector, loop_factory_of, read_config
from gateway.telemetry.collector import SlabCollector
from tests.eventually import TIMEOUT_S, eventually
from tests.exposition import Exposition
from tests.raw_client import RawClient, chat, connected, exchange, parse, request
from tests.scripted_upstream import DONE, ScriptedUpstream, texts_of

ROOT = Path(__file__).parents[3]
PATH = "/v1/chat/completions"
SIMULATED: dict[str, Any] = {"providers": {"sim": {"kind": "simulator"}}, "server": {"drain_timeout_s": 20}}
SLOW = "sim/mill?first_token_s=0.01&token_count=20&interval_s=0.1"


@dataclass(frozen=True)
class Broken:
    """A middleware of somebody else's that cannot be made."""

    def __post_init__(self) -> None:
        """Fail in a way that nobody expects."""
        raise LookupError("it was here yesterday")

    def __call__(self, call: Call, send: Send, call_next: Next) -> Awaitable[None]:
        """Hand everything on."""
        return call_next(call, send)


class Fleet:
    """Workers that share a socket."""

    def __init__(self) -> None:
        self.members: list[Member] = []
        self.given: list[socket.socket] = []
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listening.getsockname()[1]}"

    def start(self, config: Mapping[str, Any] | str, **flags: str | int | None) -> Member:
        """Start a worker with this configuration, or this text of one."""
        text = config if isinstance(config, str) else yaml.safe_dump(dict(config))
        commission = Commission(len(self.members), 1, "my.yaml", text, flags)
        member = Member(
            commission,
            [self.listening],
            started=Started.of(),
            on_end=lambda _: None,
            on_left=lambda _: None,
            on_give_away=lambda fd: self.given.append(socket.socket(fileno=os.dup(fd))),
        )
        self.members.append(member)
        return member

    async def serve(self, config: Mapping[str, Any] = SIMULATED) -> Member:
        """Start a worker, and have it serve."""
        member = self.start(config)
        async with asyncio.timeout(TIMEOUT_S):
            assert isinstance(await member.ready, Ready)
        member.begin()
        return member


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no worker killed that is slow to end."""
    monkeypatch.setattr(gateway.process.member, "LOOKS", 1500)


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    """Start workers; none is left after the test."""
    started = Fleet()
    yield started
    for member in started.members:
        member.kill("the test is over")
        await exit_code(member)
    for sock in (started.listening, *started.given):
        sock.close()


async def exit_code(member: Member) -> int:
    """Wait for a worker's end."""
    return await asyncio.wait_for(asyncio.shield(member.ended), TIMEOUT_S)


# --- beginning


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_a_worker_says_what_it_is_like_and_serves_when_it_is_told_to(loop: str, fleet: Fleet) -> None:
    """On the event loop that it was told to run, with what it counts in its slab; it accepts nothing before."""
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    config = {**SIMULATED, "server": {"event_loop": loop}}
    member = fleet.start(config, port=1)
    async with asyncio.timeout(TIMEOUT_S):
        ready = await member.ready
    read = parse_config(yaml.safe_dump(config), "my.yaml", {}).with_overrides(port=1)
    assert ready == Ready(config_hash(read), loop, is_open=True, model="sim/mill")
    asking = asyncio.ensure_future(exchange(fleet.url, request(PATH, chat(model=SLOW)), timeout_s=TIMEOUT_S))
    await asyncio.sleep(0.1)
    member.begin()
    assert (await asking).body.endswith(DONE)
    shown = await member.streams(TIMEOUT_S)
    assert shown is not None
    assert [one["outcome"] for one in shown["recent"]] == ["completed"]
    collector = SlabCollector([member.slab])
    found = Exposition.read(*collector.render(""))
    assert found.total("millrace_requests_total", outcome="completed") == 1
    member.silent_ticks = 5
    await eventually(lambda: member.silent_ticks == 0)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("server: {prot: 1}", "my.yaml:1: server.prot: "),
        ("middleware:\n- use: middleware.nope.Nope", "my.yaml:2: middleware[0].use: "),
        ("server: {host: 0.0.0.0}", "my.yaml: server.host: expected a loopback address"),
        (
            "middleware:\n- use: tests.gateway.process.test_worker.Broken",
            "my.yaml: LookupError: it was here yesterday",
        ),
    ],
)
async def test_a_worker_that_cannot_begin_says_why(text: str, fault: str, fleet: Fleet) -> None:
    """By line where there is one; whatever it is, the worker has ended then."""
    member = fleet.start(text)
    async with asyncio.timeout(TIMEOUT_S):
        said = await member.ready
    assert isinstance(said, Refused)
    assert [one.startswith(fault) for one in said.faults] == [True], said.faults
    assert await exit_code(member) in (1, 2)


def test_flags_beat_the_text_and_those_not_given_do_not() -> None:
    """As on the command line."""
    text = "server: {port: 1, workers: 3}"
    config = read_config(Commission(0, 1, "my.yaml", text, {"port": 2, "host": None, "workers": None}))
    assert (config.server.port, config.server.workers, config.source) == (2, 3, "my.yaml")


def test_a_loop_that_is_not_installed_is_a_fault_only_where_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise it is the one that Python has."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert loop_factory_of(parse_config("server: {event_loop: auto}", "my.yaml", {})) is None
    with pytest.raises(ConfigError, match=r"my.yaml: server.event_loop: uvloop is not installed here"):
        loop_factory_of(parse_config("server: {event_loop: uvloop}", "my.yaml", {}))


@pytest.mark.skipif(not IS_SHORT, reason="on the public path connections are made when they are wanted")
async def test_a_worker_that_serves_has_a_connection_to_each_provider_ready(fleet: Fleet) -> None:
    """So that the first token waits for no handshake."""
    async with ScriptedUpstream() as one, ScriptedUpstream() as other:
        providers = {
            name: {"kind": "openai-compatible", "base_url": server.url, "api_key": "none"}
            for name, server in (("one", one), ("other", other))
        }
        await fleet.serve({**SIMULATED, "providers": {**SIMULATED["providers"], **providers}})
        await eventually(lambda: one.connection_count == other.connection_count == 1)


# --- leaving


async def ask(client: RawClient, model: str = "sim/mill?token_count=2&interval_s=0") -> str:
    """Ask on a connection that is kept, and return what was said."""
    await client.send(request(PATH, chat(model=model)))
    seen = await client.read_until(b"\r\n0\r\n\r\n", timeout_s=TIMEOUT_S)
    client.seen = b""
    assert parse(seen).is_whole
    return "".join(texts_of(parse(seen).body))


async def test_connections_go_to_a_successor_when_they_rest_and_their_clients_notice_nothing(fleet: Fleet) -> None:
    """Those that rest at once, those with a stream when it has ended: no request begins in the old worker any more."""
    old = await fleet.serve()
    async with connected(fleet.url) as resting, connected(fleet.url) as busy, connected(fleet.url) as silent:
        expected = await ask(resting)
        new = await fleet.serve()
        streaming = asyncio.ensure_future(ask(busy, "sim/mill?first_token_s=0.01&token_count=20&interval_s=0.3"))
        await eventually(lambda: _in_flight(old))
        old.leave(has_successor=True)
        await asyncio.wait_for(asyncio.shield(old.left), TIMEOUT_S)
        await eventually(lambda: len(fleet.given) == 2)
        for connection in fleet.given:
            new.adopt(connection.fileno())
            connection.close()
        assert await ask(resting) == expected
        assert await ask(silent) == expected
        assert not streaming.done()
        assert len(await streaming) > len(expected)
        assert await exit_code(old) == 0
        new.adopt(fleet.given[2].fileno())
        fleet.given[2].close()
        assert await ask(busy) == expected
        shown = await new.streams(TIMEOUT_S)
        assert shown is not None
        assert len(shown["recent"]) == 3


async def _in_flight(member: Member) -> bool:
    shown = await member.streams(TIMEOUT_S)
    return bool(shown and shown["in_flight"])


async def test_without_a_successor_connections_are_closed_and_streams_finished(fleet: Fleet) -> None:
    """A new request is answered on a connection that is closed behind it."""
    member = await fleet.serve()
    async with connected(fleet.url) as resting, connected(fleet.url) as busy:
        await ask(resting)
        streaming = asyncio.ensure_future(ask(busy, SLOW))
        await eventually(lambda: _in_flight(member))
        member.leave(has_successor=False)
        assert await resting.read_all(timeout_s=TIMEOUT_S) == b""
        assert len(await streaming) > 20
        assert await busy.read_all(timeout_s=TIMEOUT_S) == b""
        assert await exit_code(member) == 0


@pytest.mark.parametrize("how", ["told to end", "orphaned", "terminated"])
async def test_a_worker_ends_when_nobody_needs_it_any_more(how: str, fleet: Fleet) -> None:
    """Told to end it does not wait for its streams, and their clients are told; else it does."""
    member = await fleet.serve()
    async with connected(fleet.url) as client:
        await client.send(request(PATH, chat(model=SLOW)))
        await client.read_until(b'"content":"', timeout_s=TIMEOUT_S)
        if how == "told to end":
            member.end()
        elif how == "orphaned":
            member._channel.close()
            member._look_for_end(10_000)
        else:
            for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
                os.kill(member.pid, number)
        found = parse(await client.read_all(timeout_s=TIMEOUT_S) if how != "terminated" else await _end(client))
        assert await exit_code(member) == 0
    assert found.is_whole == (how != "told to end")
    assert (b'"code":"gateway_stopping"' in found.body) == (how == "told to end")


async def _end(client: RawClient) -> bytes:
    return await client.read_until(b"\r\n0\r\n\r\n", timeout_s=TIMEOUT_S)


async def test_a_worker_that_nobody_commissions_ends() -> None:
    """Its supervisor was gone before it was there."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = await asyncio.create_subprocess_exec(
            *WORKER, str(theirs.fileno()), pass_fds=[theirs.fileno()], env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
    ours.close()
    assert await asyncio.wait_for(process.wait(), TIMEOUT_S) == 0


def test_the_collector_is_calm_and_still_clears_up() -> None:
    """What was there before is never looked at; the oldest of what comes is, before it is many millions of objects."""
    before = gc.get_threshold()
    try:
        calm_collector()
        youngest, middle, oldest = gc.get_threshold()
        assert youngest >= 20_000
        assert youngest * (middle + 1) * (oldest + 1) < 3_000_000
        assert gc.get_freeze_count() > 10_000
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
