"""A worker: the process that serves clients, started by a supervisor and told by it what to be.

``python -m gateway.process.worker FD``, where FD is its end of the channel. It reads the configuration itself, makes
a gateway of it, and says so; or says what is wrong, and ends. While its event loop goes round it says that too.

It is told to leave over the channel. Being terminated is the same; what a terminal sends to everybody, an interrupt or
a hangup, is left to the supervisor. When that is gone, nobody will ever tell it anything: it finishes its streams, and
ends.
"""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

import structlog

from gateway.app import Gateway, config_hash
from gateway.config import Config, parse_config
from gateway.core.errors import ConfigError
from gateway.logs import clean_words, configure_logs
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
    ShowStreams,
    Streams,
)
from gateway.telemetry.slab import Slab

log = structlog.get_logger()

BEAT_S: Final = 1.0


def main() -> None:
    """Be a worker; exits with 0 when it has left, with 2 when it was refused, with 1 for whatever else."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sock = socket.socket(fileno=int(sys.argv[1]))
    try:
        commission, fds = receive(sock, Order)
    except EOFError:  # nobody waits for it any more
        sock.close()
        sys.exit(0)
    try:
        config = read_config(commission)
        configure_logs(level=config.telemetry.log_level, log_format=config.telemetry.log_format)
        gateway = Gateway(config, slab=Slab.attach(fds[0]), slot=commission.slot)
        loop_factory = loop_factory_of(config)
    except ConfigError as error:
        send(sock, Refused(error.faults))
        sock.close()
        sys.exit(2)
    except Exception as error:  # whatever a middleware of somebody else's raises is told the same way
        log.exception("worker.cannot_start", worker=commission.slot)
        send(sock, Refused([f"{commission.source}: {type(error).__name__}: {clean_words(str(error))}"]))
        sock.close()
        sys.exit(1)
    listening = [socket.socket(fileno=fd) for fd in fds[1:]]
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(Worker.serve(sock, gateway, listening))


def read_config(commission: Commission) -> Config:
    """Return the configuration that a worker is to serve; raises ``ConfigError``."""
    config = parse_config(commission.text, commission.source, os.environ)
    flags = {name: value for name, value in commission.flags.items() if value is not None}
    return config.with_overrides(**flags)  # type: ignore[arg-type]  # it checks them


def loop_factory_of(config: Config) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes the event loop; raises ``ConfigError`` for one that is not installed."""
    wanted = config.server.event_loop
    if wanted == "asyncio":
        return None
    if importlib.util.find_spec("uvloop") is None:
        if wanted == "uvloop":
            raise ConfigError([f"{config.source}: server.event_loop: uvloop is not installed here"])
        return None
    import uvloop  # noqa: PLC0415, optional

    return uvloop.new_event_loop


class Worker:
    """A gateway, and what its supervisor has it do."""

    def __init__(self, sock: socket.socket, gateway: Gateway, listening: Sequence[socket.socket]) -> None:
        self._gateway = gateway
        self._listening = listening
        self._loop = asyncio.get_running_loop()
        self._leaving: asyncio.Future[bool] = self._loop.create_future()
        self._is_hurried = asyncio.Event()
        self._channel: Channel[Order] = Channel(sock, Order, on_message=self._obey, on_end=self._note_orphaned)
        self._beat: asyncio.TimerHandle | None = None

    @classmethod
    async def serve(cls, sock: socket.socket, gateway: Gateway, listening: Sequence[socket.socket]) -> None:
        """Serve until told to leave, and finish what has begun."""
        worker = cls(sock, gateway, listening)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, partial(worker._leave, has_successor=True))
        try:
            await worker._run()
        finally:
            await gateway.close()
            worker._channel.close()

    async def _run(self) -> None:
        gateway = self._gateway
        await gateway.prepare()
        calm_collector()
        config = gateway.config
        self._channel.send(
            Ready(
                config_hash=config_hash(config),
                loop=type(self._loop).__module__.partition(".")[0],
                is_open=gateway.is_open,
                model=next(iter(gateway.models), f"{next(iter(config.providers), 'provider')}/MODEL"),
            )
        )
        self._say_alive()
        has_successor = await self._leaving
        await gateway.leave(self._give_away if has_successor else None)
        self._channel.send(Left())
        await self._unless_hurried(gateway)
        self._channel.send(Streams(0, gateway.live.shown()))
        if self._beat is not None:
            self._beat.cancel()

    async def _unless_hurried(self, gateway: Gateway) -> None:
        """Wait for the streams; told to hurry, end them."""
        draining = asyncio.ensure_future(gateway.drain())
        hurried = asyncio.ensure_future(self._is_hurried.wait())
        await asyncio.wait({draining, hurried}, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        if not draining.done():
            draining.cancel()
        with suppress(asyncio.CancelledError):
            await draining

    # --- what it is told

    def _obey(self, order: Order, fds: Sequence[int]) -> None:
        match order:
            case Begin():
                self._gateway.serve(self._listening)
                self._gateway.warm()
            case ShowStreams(number):
                self._channel.send(Streams(number, self._gateway.live.shown()))
            case Adopt():
                for fd in fds:
                    self._gateway.adopt(socket.socket(fileno=fd))
            case Leave(has_successor):
                self._leave(has_successor=has_successor)
            case EndNow():
                self._leave(has_successor=False)
                self._is_hurried.set()
            case Commission():  # it has one
                pass

    def _leave(self, *, has_successor: bool) -> None:
        if not self._leaving.done():
            self._leaving.set_result(has_successor)

    def _note_orphaned(self) -> None:
        log.error("worker.orphaned", pid=os.getpid())
        self._leave(has_successor=False)

    def _give_away(self, connection: int) -> None:
        self._channel.send(GiveAway(), [connection])

    def _say_alive(self) -> None:
        self._channel.send(Beat())
        self._beat = self._loop.call_later(BEAT_S, self._say_alive)


def calm_collector() -> None:
    """Let the garbage collector look less often, and not at what stays: it took 8 % of the relay's time.

    What a call leaves behind goes by its reference counts, however it ends: ``tests/faults/test_garbage.py`` holds us
    to that. It is a middleware of somebody else's that may make circles, and of calls that outlive the two youngest
    generations. The oldest is looked at with every 120th of the youngest, which was one in some 10 000 streams; where
    nothing but circles makes it young again, at 2.4 million objects. With fifty times fifty that were 52 million, and
    what clients that left once kept (31 kB each) could be gigabytes.

    At 1 000 live streams the oldest has 175 000 objects and takes a sixth of a second on a busy machine, the middle one
    40 ms: at 250 streams a second 1.5 % of the time together, and the youngest 2.5 %.
    """
    gc.collect()
    gc.freeze()
    gc.collect()  # of what is new a quarter must be: it is to count from now on
    gc.set_threshold(20_000, 10, 10)


if __name__ == "__main__":
    main()
