"""A way for messages between two processes, over a pair of sockets: each is JSON with its length before it.

Open descriptors can go along. The kernel hands them over with the first byte of what they were sent with, and never
glues to it what was sent later; a frame says how many are its own.

Nobody waits: what the other side does not take is kept, in order, so that a process that hangs stalls nobody else. When
the other side is gone, for whatever reason, that is told once.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, Generic, TypeVar

import msgspec

T = TypeVar("T")

_HEAD: Final = struct.Struct(">IB")
READ_BYTES: Final = 256 * 1024
MAX_FDS: Final = 64
"""With one message; the kernel would take 253."""


class Channel(Generic[T]):
    """One end: ``on_message`` gets what comes, with its descriptors, which belong to it then; ``on_end`` the end.

    ``kinds`` is the type of what comes. Either function may close the channel.
    """

    def __init__(
        self,
        sock: socket.socket,
        kinds: Any,
        *,
        on_message: Callable[[T, Sequence[int]], None],
        on_end: Callable[[], None],
    ) -> None:
        sock.settimeout(0)
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._decoder: msgspec.json.Decoder[T] = msgspec.json.Decoder(kinds)
        self._on_message = on_message
        self._on_end = on_end
        self._read = bytearray()
        self._read_fds: deque[int] = deque()
        self._unsent: deque[tuple[bytes, list[int]]] = deque()
        self.is_closed = False
        self._loop.add_reader(sock.fileno(), self._receive)

    def send(self, message: msgspec.Struct, fds: Sequence[int] = ()) -> None:
        """Send a message, and copies of descriptors; what is sent to nobody is lost."""
        if self.is_closed:
            return
        frame, copies = _framed(message, len(fds)), [os.dup(fd) for fd in fds]
        self._unsent.append((frame, copies))
        if len(self._unsent) == 1:
            self._flush()

    def close(self) -> None:
        """Close it; ``on_end`` is not called for that."""
        if self.is_closed:
            return
        self.is_closed = True
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        for fd in (*self._read_fds, *(fd for _, fds in self._unsent for fd in fds)):
            os.close(fd)
        self._unsent.clear()
        self._read_fds.clear()
        self._on_message, self._on_end = _ignore, _ignore  # whose they are need not wait for a collector of garbage

    # --- inside

    def _flush(self) -> None:
        try:
            while self._unsent:
                data, fds = self._unsent[0]
                sent = socket.send_fds(self._sock, [data], fds) if fds else self._sock.send(data)
                for fd in fds:  # they went with the first byte
                    os.close(fd)
                if sent < len(data):
                    self._unsent[0] = data[sent:], []
                else:
                    self._unsent.popleft()
        except (BlockingIOError, InterruptedError):
            self._loop.add_writer(self._sock.fileno(), self._flush)
        except OSError:
            self._end()
        else:
            self._loop.remove_writer(self._sock.fileno())

    def _receive(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._sock, READ_BYTES, MAX_FDS)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data, fds = b"", []
        self._read_fds += fds
        self._read += data
        while not self.is_closed and (frame := self._next()):
            self._on_message(*frame)
        if not data:
            self._end()

    def _next(self) -> tuple[T, list[int]] | None:
        """Return the next message that is whole, with its descriptors."""
        if len(self._read) < _HEAD.size:
            return None
        size, fd_count = _HEAD.unpack_from(self._read)
        end = _HEAD.size + size
        if len(self._read) < end:
            return None
        message = self._decoder.decode(bytes(self._read[_HEAD.size : end]))
        del self._read[:end]
        return message, [self._read_fds.popleft() for _ in range(fd_count)]

    def _end(self) -> None:
        if not self.is_closed:
            on_end = self._on_end
            self.close()
            on_end()


def _ignore(*_: object) -> None:
    """Nobody wants to know."""


def receive(sock: socket.socket, kinds: Any) -> tuple[Any, list[int]]:
    """Wait for one message, without an event loop, and leave those behind it; ``EOFError`` if none comes any more."""
    head, fds = b"", []
    while len(head) < _HEAD.size:
        data, some, _, _ = socket.recv_fds(sock, _HEAD.size - len(head), MAX_FDS)
        fds += some
        if not data:
            raise EOFError
        head += data
    size, _ = _HEAD.unpack(head)
    body = bytearray()
    while len(body) < size:
        data = sock.recv(size - len(body))
        if not data:
            raise EOFError
        body += data
    return msgspec.json.decode(bytes(body), type=kinds), fds


def send(sock: socket.socket, message: msgspec.Struct) -> None:
    """Send one message, without an event loop; to nobody, if the other side is gone."""
    with suppress(OSError):
        sock.sendall(_framed(message, 0))


def _framed(message: msgspec.Struct, fd_count: int) -> bytes:
    data = msgspec.json.encode(message)
    return _HEAD.pack(len(data), fd_count) + data
