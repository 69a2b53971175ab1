"""Listening sockets: opened once, by the process that supervises, and accepted from by all that work.

They share one socket, and with it one queue of connections that nobody has accepted yet: what a worker that hangs or is
killed has not taken, another one takes. (With a socket for each, SO_REUSEPORT, the kernel deals connections out at
once: those in the queue of a worker that is killed are reset.)

Each worker accepts one connection in a turn of its loop, so that who is busy leaves the next one to who is not; and one
more for each millisecond since it last did, so that they all are accepted where everybody is busy. One in a turn alone
had the last of 600 clients, who came within two seconds to a worker with turns of 20 ms, wait for three seconds.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import structlog

from gateway.core.errors import ConfigError

log = structlog.get_logger()

BACKLOG: Final = 4096
"""aiohttp's 128 refuses connections when a thousand clients come at once."""

PAUSE_S: Final = 1.0
"""How long no connection is accepted when there is no descriptor or memory for one."""

EACH_S: Final = 0.001
LATELY_S: Final = 0.25
"""Who comes after a rest is one of few; what is longer than this is no turn of a loop."""

_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


def open_sockets(host: str, port: int, source: str) -> list[socket.socket]:
    """Listen on all addresses of a host; raises ``ConfigError``, naming ``source``, when that cannot be.

    With port 0 all of them have the port that the first one was given.
    """
    opened: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in _addresses(host, port):
            place = (address[0], opened[0].getsockname()[1], *address[2:]) if opened else address
            opened.append(_listen(family, kind, protocol, place))
    except OSError as error:
        if not (opened and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)):  # IPv6 may be switched off
            for sock in opened:
                sock.close()
            number = error.errno or 0  # negative for a host without an address
            reason = (os.strerror(number) if number > 0 else error.strerror or str(error)).lower()
            raise ConfigError([f"{source}: cannot listen on {host}:{port}: {reason}"]) from error
    return opened


def _addresses(
    host: str, port: int
) -> list[tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[str, int] | tuple[str, int, int, int]]]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys(found))  # type: ignore[arg-type]  # an address of bytes is that of no family there is here


def _listen(family: int, kind: int, protocol: int, address: tuple[str | int, ...]) -> socket.socket:
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
        sock.settimeout(0)
    except OSError:
        sock.close()
        raise
    return sock


class Acceptor:
    """Accepts connections from ``sockets``, which are its own, and has ``make_protocol`` speak to each."""

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        make_protocol: Callable[[], asyncio.Protocol],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._sockets = sockets
        self._make_protocol = make_protocol
        self._loop = asyncio.get_running_loop()
        self._beginning: set[asyncio.Task[None]] = set()
        self._pauses: set[asyncio.TimerHandle] = set()
        self._took_at_s = -LATELY_S

    def start(self) -> None:
        """Begin."""
        for sock in self._sockets:
            self._loop.add_reader(sock.fileno(), self._take, sock)

    def adopt(self, connection: socket.socket, make_protocol: Callable[[], asyncio.Protocol] | None = None) -> None:
        """Speak to who is connected already, in another protocol if one is given."""
        connection.settimeout(0)
        beginning = self._loop.create_task(self._begin(connection, make_protocol or self._make_protocol))
        self._beginning.add(beginning)
        beginning.add_done_callback(self._beginning.discard)

    async def stop(self, *, takes_rest: bool) -> None:
        """Accept no more, and close the sockets, which other processes may still have.

        Where none has, those who wait in the queue would be reset: ``takes_rest`` is to accept them first. All that
        were accepted are spoken to when this returns.
        """
        sockets, self._sockets = self._sockets, ()
        for sock in sockets:
            for _ in range(BACKLOG if takes_rest else 0):
                if not self._accept(sock):
                    break
            self._loop.remove_reader(sock.fileno())
            sock.close()
        for pause in self._pauses:
            pause.cancel()
        if self._beginning:
            await asyncio.wait(self._beginning)

    def _take(self, sock: socket.socket) -> None:
        """Accept as many connections as are due."""
        now_s = self._clock()
        rest_s, self._took_at_s = now_s - self._took_at_s, now_s
        due_count = 1 + (int(rest_s / EACH_S) if rest_s < LATELY_S else 0)
        while due_count and self._accept(sock):
            due_count -= 1

    def _accept(self, sock: socket.socket) -> bool:
        """Accept a connection; returns whether there was one."""
        try:
            connection, _ = sock.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):  # another worker was first, or it has left
            return False
        except OSError as error:
            if error.errno not in _EXHAUSTED:
                raise
            self._pause(sock, error)
            return False
        self.adopt(connection)
        return True

    def _pause(self, sock: socket.socket, error: OSError) -> None:
        log.error("gateway.cannot_accept", reason=os.strerror(error.errno or 0).lower())
        self._loop.remove_reader(sock.fileno())
        pause = self._loop.call_later(PAUSE_S, lambda: self._loop.add_reader(sock.fileno(), self._take, sock))
        self._pauses.add(pause)

    async def _begin(self, connection: socket.socket, make_protocol: Callable[[], asyncio.Protocol]) -> None:
        with suppress(OSError):  # it has left already
            await self._loop.connect_accepted_socket(make_protocol, connection)
