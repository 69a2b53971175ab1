"""A worker process, as its supervisor knows it: how it is started, what it said last, and how it has ended.

It is started as a new program and not forked: whoever supervises has an event loop and threads, which a fork would
copy half of. All it inherits is its end of the channel; the slab and the listening sockets come over that. Its end is
known by the channel's: the kernel closes that with the process, whatever has ended it, and closes ours if it is the
supervisor that dies. So neither outlives the other unnoticed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Self

from gateway.process.channel import Channel
from gateway.process.messages import (
    Adopt,
    Beat,
    Begin,
    Commission,
    EndNow,
    GiveAway,
    Leave,
    Left,
    Ready,
    Refused,
    Report,
    Shown,
    ShowStreams,
    Streams,
)
from gateway.telemetry.slab import Slab

State = Literal["starting", "ready", "serving", "leaving"]

WORKER: Final = (sys.executable, "-P", *(f"-W{option}" for option in sys.warnoptions), "-m", "gateway.process.worker")
"""The program; ``-P`` keeps the folder it is started in from being searched for modules before all others."""

LOOK_S: Final = 0.02
LOOKS: Final = 100
"""How often it is looked whether a process whose channel has ended has, before it is killed."""


@dataclass(frozen=True, slots=True)
class Started:
    """A process that waits for its commission, and the channel that it will come over.

    Most of what a worker does to begin can be done before anybody knows what it is to be.
    """

    process: subprocess.Popen[bytes]
    sock: socket.socket

    @classmethod
    def of(cls, command: Sequence[str] = WORKER) -> Self:
        """Start one; raises ``OSError`` if that cannot be."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = subprocess.Popen(  # noqa: S603, the program is ours
                    [*command, str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                )
        except OSError:
            ours.close()
            raise
        return cls(process, ours)

    def dismiss(self) -> None:
        """Nobody needs it."""
        self.sock.close()
        self.process.kill()
        self.process.wait()


class Member:
    """A process in a slot. ``on_end`` is told of its end, ``on_give_away`` of connections that it leaves to others.

    ``ready`` is done when it is known what became of its start: it is ``None`` if it has ended without a word.
    ``left`` is done when it accepts nothing more, ``ended`` when there is no process any more: with its exit code,
    which is negative for a signal.
    """

    def __init__(
        self,
        commission: Commission,
        listening: Sequence[socket.socket],
        *,
        started: Started,
        on_end: Callable[[Member], None],
        on_left: Callable[[Member], None],
        on_give_away: Callable[[int], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        self.slot: Final = commission.slot
        self.generation: Final = commission.generation
        self.slab: Final = Slab.create()
        self.state: State = "starting"
        self.silent_ticks = 0
        self.began_at_s = 0.0
        self.reason = ""
        self.exit_code = 0
        self.shown: Shown = {}
        self.ready: Final[asyncio.Future[Ready | Refused | None]] = loop.create_future()
        self.left: Final[asyncio.Future[None]] = loop.create_future()
        self.ended: Final[asyncio.Future[int]] = loop.create_future()
        self._loop = loop
        self._on_end = on_end
        self._on_left = on_left
        self._on_give_away = on_give_away
        self._asked: dict[int, asyncio.Future[Shown | None]] = {}
        self._asked_count = 0
        self._process = started.process
        self._channel: Channel[Report] = Channel(started.sock, Report, on_message=self._hear, on_end=self._note_lost)
        self._channel.send(commission, [self.slab.fd, *(sock.fileno() for sock in listening)])

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    # --- what it is told

    def begin(self) -> None:
        """Accept connections."""
        self.state = "serving"
        self.began_at_s = self._loop.time()
        self._channel.send(Begin())

    def leave(self, *, has_successor: bool) -> None:
        """Accept no more connections, finish the streams, and end."""
        self.state = "leaving"
        self._channel.send(Leave(has_successor))

    def end(self) -> None:
        """Wait for the streams no longer, and end."""
        self._channel.send(EndNow())

    def adopt(self, connection: int) -> None:
        """Serve a connection that another one has given away."""
        self._channel.send(Adopt(), [connection])

    def kill(self, reason: str) -> None:
        """End it at once: it does not answer, or nobody needs it."""
        self.reason = self.reason or reason
        if not self.ended.done():
            os.kill(self.pid, signal.SIGKILL)  # the id is its own until it is waited for, which Popen.kill would do

    async def streams(self, timeout_s: float) -> Shown | None:
        """Ask for what is in flight; ``None`` if it does not say so in time, or ever."""
        self._asked_count += 1
        number = self._asked_count
        asked: asyncio.Future[Shown | None] = self._loop.create_future()
        self._asked[number] = asked
        self._channel.send(ShowStreams(number))
        try:
            async with asyncio.timeout(timeout_s):
                return await asked
        except TimeoutError:
            return None
        finally:
            del self._asked[number]

    # --- what it says

    def _hear(self, report: Report, fds: Sequence[int]) -> None:
        self.silent_ticks = 0
        match report:
            case Ready():
                self.state = "ready"
                self.ready.set_result(report)
            case Refused():
                self.ready.set_result(report)
            case Streams(number, shown):
                self.shown = shown
                if number in self._asked and not self._asked[number].done():
                    self._asked[number].set_result(shown)
            case GiveAway():
                for connection in fds:
                    self._on_give_away(connection)
                    os.close(connection)
            case Left():
                self.state = "leaving"
                if not self.left.done():
                    self.left.set_result(None)
                    self._on_left(self)
            case Beat():
                pass

    # --- how it ends

    def _note_lost(self) -> None:
        for asked in self._asked.values():
            if not asked.done():
                asked.set_result(None)
        self._look_for_end(LOOKS)

    def _look_for_end(self, looks: int) -> None:
        """Look whether the process has ended; it has closed its channel, and may be a moment behind."""
        ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            if looks == 0:
                self.kill("it does not end")
            self._loop.call_later(LOOK_S, self._look_for_end, looks - 1)
            return
        self.exit_code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        if not self.ready.done():
            self.ready.set_result(None)
        if not self.left.done():
            self.left.set_result(None)
        self._on_end(self)  # it can still be read how much it has used
        self.ended.set_result(self._process.wait())

    def describe_end(self) -> str:
        """Say how it has ended, for a person."""
        if self.exit_code >= 0:
            return f"exit code {self.exit_code}"
        return f"signal {signal.Signals(-self.exit_code).name}"
