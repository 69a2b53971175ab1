import asyncio
import gc
import os
import signal
import socket
import sys
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path

import pytest

from gateway.process.member import Member, Started
from gateway.process.messages import Commission, Ready, Refused
from gateway.telemetry.slab import Slab
from tests.eventually import eventually

STUB = (sys.executable, str(Path(__file__).with_name("stub.py")))
TIMEOUT_S = 30


class Watched(Member):
    """A member, and what it has told its supervisor of."""

    def __init__(self, text: str, *, slot: int = 0) -> None:
        self.left_count = 0
        self.given: list[socket.socket] = []
        self.slab_at_end: list[str] = []
        with socket.create_server(("127.0.0.1", 0)) as listening:
            self.port: int = listening.getsockname()[1]
            super().__init__(
                Commission(slot, 1, "my.yaml", text, {}),
                [listening],
                started=Started.of(STUB),
                on_end=self._see_end,
                on_left=self._see_left,
                on_give_away=lambda fd: self.given.append(socket.socket(fileno=os.dup(fd))),
            )

    def _see_end(self, member: Member) -> None:
        assert member is self
        assert Path(f"/proc/{member.pid}/stat").exists(), "it can still be looked at"
        self.slab_at_end = [child.family for child in member.slab.children()]

    def _see_left(self, member: Member) -> None:
        assert member is self
        self.left_count += 1

    async def exit_code_in_time(self) -> int:
        """Wait for its end."""
        return await asyncio.wait_for(asyncio.shield(self.ended), TIMEOUT_S)


@pytest.fixture
async def start() -> AsyncIterator[Callable[..., Watched]]:
    """Start members; none is left after the test."""
    started: list[Watched] = []

    def make(text: str = "", *, slot: int = 0) -> Watched:
        started.append(Watched(text, slot=slot))
        return started[-1]

    yield make
    for member in started:
        member.kill("the test is over")
    for member in started:
        await member.exit_code_in_time()
        for connection in member.given:
            connection.close()


async def serving(member: Watched) -> Watched:
    """Have it serve."""
    async with asyncio.timeout(TIMEOUT_S):
        assert isinstance(await member.ready, Ready)
    member.begin()
    return member


async def test_a_worker_says_that_it_is_ready_serves_and_leaves(start: Callable[..., Watched]) -> None:
    """It counts in a slab that outlives it, and its end is told while its process can be looked at."""
    member = start("calm", slot=3)
    async with asyncio.timeout(TIMEOUT_S):
        assert await member.ready == Ready("calm", "stub", is_open=True, model="m3")
    states = [member.state]
    member.begin()
    assert [*states, member.state] == ["ready", "serving"]
    member.silent_ticks = 5
    await eventually(lambda: member.silent_ticks == 0)
    member.leave(has_successor=False)
    assert await member.exit_code_in_time() == 0
    assert member.left.done()
    assert (member.left_count, member.describe_end()) == (1, "exit code 0")
    assert member.slab_at_end == ["millrace_requests_started_total"]


async def test_a_worker_that_is_refused_says_why(start: Callable[..., Watched]) -> None:
    """And has ended then."""
    member = start("refuse")
    async with asyncio.timeout(TIMEOUT_S):
        assert await member.ready == Refused(["my.yaml: one thing", "my.yaml: another"])
    assert await member.exit_code_in_time() == 2


async def test_a_worker_that_crashes_has_said_nothing(start: Callable[..., Watched]) -> None:
    """Whoever waits for it is told so."""
    member = start("crash")
    async with asyncio.timeout(TIMEOUT_S):
        assert await member.ready is None
    assert await member.exit_code_in_time() == 3


async def test_a_killed_worker_is_known_by_its_signal_even_if_it_was_stopped(start: Callable[..., Watched]) -> None:
    """Nobody waits for an answer of it any longer."""
    member = await serving(start())
    os.kill(member.pid, signal.SIGSTOP)
    asked = asyncio.ensure_future(member.streams(TIMEOUT_S))
    await asyncio.sleep(0)
    member.kill("it did not answer")
    member.kill("for another reason")
    assert await member.exit_code_in_time() == -signal.SIGKILL
    assert await asked is None
    assert (member.describe_end(), member.reason) == ("signal SIGKILL", "it did not answer")
    assert member.left.done()


async def test_a_worker_can_be_killed_when_it_has_just_ended_by_itself(start: Callable[..., Watched]) -> None:
    """Whoever kills it may not know that yet; its own end is what is told."""
    member = start("crash")
    os.waitid(os.P_PID, member.pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222, so that the loop does not know it yet
    member.kill("not needed any more")
    assert await member.exit_code_in_time() == 3


async def test_a_worker_says_what_is_in_flight_and_one_that_hangs_is_not_waited_for(
    start: Callable[..., Watched],
) -> None:
    """What it said last is remembered."""
    member = await serving(start())
    shown = await member.streams(TIMEOUT_S)
    assert shown is not None
    assert shown["in_flight"] == [{"id": "r0"}]
    os.kill(member.pid, signal.SIGSTOP)
    assert await member.streams(0.05) is None
    assert member.shown == shown


async def test_connections_are_given_away_and_adopted(start: Callable[..., Watched]) -> None:
    """A client sees nothing of it."""
    old, new = await serving(start()), await serving(start("", slot=1))
    with closing(socket.create_connection(("127.0.0.1", old.port))) as client:
        old.leave(has_successor=True)
        await old.exit_code_in_time()
        (connection,) = old.given
        new.adopt(connection.fileno())
        client.settimeout(TIMEOUT_S)
        assert await asyncio.to_thread(client.recv, 100) == b"worker 1"


async def test_streams_are_waited_for_until_nobody_waits(start: Callable[..., Watched]) -> None:
    """A worker that has left is there until it is told to end."""
    member = await serving(start("busy"))
    member.leave(has_successor=False)
    async with asyncio.timeout(TIMEOUT_S):
        await member.left
    assert (member.state, member.ended.done()) == ("leaving", False)
    member.end()
    assert await member.exit_code_in_time() == 0


async def test_a_worker_that_was_told_to_leave_by_somebody_else_says_so(start: Callable[..., Watched]) -> None:
    """Who supervises can replace it at once."""
    member = await serving(start())
    os.kill(member.pid, signal.SIGTERM)
    assert await member.exit_code_in_time() == 0
    assert member.left_count == 1


async def test_a_worker_that_has_ended_leaves_nothing_behind() -> None:
    """Its slab goes with the last who knows it, and not when garbage is collected: there may be one for each reload."""
    gc.collect()
    gc.disable()
    try:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            member = Member(
                Commission(0, 1, "my.yaml", "", {}),
                [listening],
                started=Started.of(STUB),
                on_end=lambda _: None,
                on_left=lambda _: None,
                on_give_away=lambda _: None,
            )
        await asyncio.wait_for(asyncio.shield(member.ready), TIMEOUT_S)
        member.begin()
        await member.streams(TIMEOUT_S)
        slab = weakref.ref(member.slab)
        member.leave(has_successor=False)
        await asyncio.wait_for(asyncio.shield(member.ended), TIMEOUT_S)
        del member
        await asyncio.sleep(0)
        assert slab() is None
    finally:
        gc.enable()


async def test_all_that_a_worker_inherits_is_its_channel_and_all_it_gets_is_sent(start: Callable[..., Watched]) -> None:
    """No descriptor of anybody else's is left open in it: a client's connection would not end when it is closed."""
    with socket.socket() as unrelated:
        os.set_inheritable(unrelated.fileno(), True)  # noqa: FBT003
        member = await serving(start())
        mine = os.fstat(unrelated.fileno()).st_ino
        theirs = {os.stat(f"/proc/{member.pid}/fd/{fd}").st_ino for fd in os.listdir(f"/proc/{member.pid}/fd")}  # noqa: PTH116, PTH208
        assert mine not in theirs
        assert os.fstat(member.slab.fd).st_ino in theirs
        assert isinstance(member.slab, Slab)
