"""A worker that serves nobody, for tests of who supervises: ``stub.py FD``. It does what its configuration says.

Its configuration is a line of words: ``refuse``, ``crash``, ``fall`` (crash when it is to serve), ``mute`` (say
nothing, ever), ``silent`` (say nothing once it serves), ``busy`` (finish no stream before it is told to end now),
``stuck`` (not even then). A word with a slot behind it, ``crash1``, is for that slot alone.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Sequence

from gateway.process.channel import Channel, receive, send
from gateway.process.messages import (
    Adopt,
    Beat,
    Begin,
    Commission,
    EndNow,
    GiveAway,
    Leave,
    Left,
    Order,
    Ready,
    Refused,
    Shown,
    ShowStreams,
    Streams,
)
from gateway.telemetry.meters import Meters
from gateway.telemetry.slab import Slab


class Stub:
    """The worker."""

    def __init__(self, sock: socket.socket, commission: Commission, fds: Sequence[int]) -> None:
        self.commission = commission
        self.words = commission.text.removeprefix("#").split()
        self.listening = fds[1]
        self.meters = Meters(Slab.attach(fds[0]))
        self.is_over = asyncio.Event()
        self.channel: Channel[Order] = Channel(sock, Order, on_message=self.obey, on_end=self.is_over.set)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.leave, True)  # noqa: FBT003

    def has(self, word: str) -> bool:
        """Return whether it is to do so."""
        return word in self.words or f"{word}{self.commission.slot}" in self.words

    def obey(self, order: Order, fds: Sequence[int]) -> None:
        """Do as told."""
        match order:
            case Begin() if self.has("fall"):
                os._exit(4)
            case Begin():
                self.meters.counter("millrace_requests_started_total", "chat", "chat").inc()
                if not self.has("silent"):
                    self.beat()
            case ShowStreams(number):
                if not self.has("silent"):
                    own = {"id": f"r{self.commission.slot}"}
                    shown: Shown = {"in_flight": [own], "recent": [{**own, "ended_at_s": -self.commission.slot}]}
                    self.channel.send(Streams(number, shown))
            case Adopt():
                with socket.socket(fileno=fds[0]) as connection:
                    connection.send(f"worker {self.commission.slot}".encode())
            case Leave(has_successor):
                self.leave(has_successor)
            case EndNow() if not self.has("stuck"):
                self.is_over.set()

    def beat(self) -> None:
        """Say that it is there."""
        self.channel.send(Beat())
        asyncio.get_running_loop().call_later(0.05, self.beat)

    def leave(self, has_successor: bool) -> None:  # noqa: FBT001, as it was said
        """Give away one connection, if somebody has made one, and end."""
        if has_successor:
            with socket.socket(fileno=os.dup(self.listening)) as listening:
                listening.settimeout(0)
                try:
                    connection, _ = listening.accept()
                except BlockingIOError:
                    pass
                else:
                    self.channel.send(GiveAway(), [connection.fileno()])
        self.channel.send(Left())
        if not self.has("busy"):
            self.is_over.set()

    async def run(self) -> None:
        """Be a worker until told otherwise."""
        slot = self.commission.slot
        ready = Ready(self.commission.text, "stub", is_open=True, model=f"m{slot}")
        self.channel.send(ready)
        await self.is_over.wait()
        await asyncio.sleep(0.05)


async def main(sock: socket.socket, commission: Commission, fds: Sequence[int]) -> None:
    """Run it."""
    await Stub(sock, commission, fds).run()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sock = socket.socket(fileno=int(sys.argv[1]))
    commission, fds = receive(sock, Order)
    words = commission.text.removeprefix("#").split()
    if "refuse" in words:
        send(sock, Refused([f"{commission.source}: one thing", f"{commission.source}: another"]))
        sys.exit(2)
    if "crash" in words or f"crash{commission.slot}" in words:
        sys.exit(3)
    if "mute" in words:
        signal.pause()
    asyncio.run(main(sock, commission, fds))
