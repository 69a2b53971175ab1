"""Reads the HTTP answers that are plain, and nothing else: bytes in, a head and the pieces of a body out.

Plain is what providers say nearly always: a head that came in one read, in the strictest reading of RFC 9112, and a
body that has a length or comes in chunks without extensions or trailers. Whatever is not is declined, never judged:
aiohttp's parser is asked then. A framing can be left at every byte of its body, for it can say what would bring another
reader to where it stands. So there is one meaning of every answer, aiohttp's, and here a cheaper way to most of them:
a chunk takes 70 % of the instructions that it takes through parser and reader.

It must not know of connections, loops or clocks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from multidict import CIMultiDict, CIMultiDictProxy

from gateway.core.kept import Kept

MAX_HEAD_BYTES: Final = 8190
"""aiohttp's limit of a line: no line of a head that is no longer can pass it."""

MAX_HEADERS: Final = 128

MAX_KEPT: Final = 512
"""What the lines of a head say is the provider's word."""

_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([2-5][0-9][0-9]) [\x20-\x7e]*")
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_LENGTH = re.compile(r"[0-9]{1,15}")

_PLAIN_VALUES: Final = {"connection": "keep-alive", "content-encoding": "identity", "transfer-encoding": "chunked"}
_FRAMING: Final = ("content-length", *_PLAIN_VALUES)
_ODD: Final = frozenset({"proxy-connection", "sec-websocket-key1", "upgrade"})
"""Headers that aiohttp's parser acts upon, or may."""

_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})\r\n")
_BEGUN_SIZE = re.compile(rb"[0-9A-Fa-f]{1,8}\r?|0\r\n\r?")
_END: Final = b"0\r\n\r\n"

_MAX_ALONE_BYTES: Final = 4096 + 7
"""The length of a read that has one chunk and nothing else, up to the longest of three digits."""

Head = tuple[int, Mapping[str, str], int | None, int]
"""The status of a plain answer, its headers, its body's length, which is none if it comes in chunks, and its own.

Headers are to be asked for by names in lower case.
"""


def read_head(data: bytes) -> Head | None:
    """Return the head that ``data`` begins with, if it is whole and plain."""
    end = data.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES)
    if end < 0:
        return None
    first, *lines = data[:end].split(b"\r\n")
    status = _STATUSES[first]
    if status is None or len(lines) > MAX_HEADERS:
        return None
    try:
        headers: Mapping[str, str] = dict(map(_FIELDS.__getitem__, lines))
    except ValueError:
        return None
    length = headers.get("content-length")
    if ("transfer-encoding" in headers) == (length is not None):
        return None
    if len(headers) != len(lines):
        fields = [_FIELDS[line] for line in lines]
        if any([name for name, _ in fields].count(name) > 1 for name in _FRAMING):
            return None
        headers = CIMultiDictProxy(CIMultiDict(fields))  # of some the first counts, of others the last
    return status, headers, None if length is None else int(length), end + 4


def _status_of(line: bytes) -> int | None:
    """Return the status that a plain first line tells, of an answer that has a body."""
    found = _STATUS_LINE.fullmatch(line)
    return int(found[1]) if found is not None and found[1] not in {b"204", b"304"} else None


def _field_of(line: bytes) -> tuple[str, str]:
    """Return a header's name, in lower case, and its value; raises ``ValueError`` for what is not plain."""
    name, colon, value = line.decode("ascii").partition(":")
    value = value.strip(" ")
    name = _NAMES[name]
    if not colon or not name or not value.isprintable():
        raise ValueError(name)
    if name == "content-length":
        is_plain = _LENGTH.fullmatch(value) is not None
    else:
        is_plain = name not in _PLAIN_VALUES or value.lower() == _PLAIN_VALUES[name]
    if not is_plain:
        raise ValueError(name)
    return name, value


def _name_of(name: str) -> str:
    """Return a header's name in lower case; nothing of what is none, or not plain."""
    lower = name.lower()
    return lower if _NAME.fullmatch(name) is not None and lower not in _ODD else ""


_STATUSES: Final = Kept(_status_of, most=MAX_KEPT)
_NAMES: Final = Kept(_name_of, most=MAX_KEPT)
_FIELDS: Final = Kept(_field_of, most=MAX_KEPT)
"""Many lines of a head are the same in all of a provider's answers, and are found without being read."""


class Sized:
    """The framing of a body whose length was said before. ``left`` is how much of it is to come."""

    __slots__ = ("has_ended", "is_over", "left", "odd")

    def __init__(self, size: int) -> None:
        self.left = size
        self.has_ended = self.is_over = not size
        self.odd = b""

    def feed(self, data: bytes) -> bytes:
        """Return what ``data`` has of the body; what is behind its end is ``odd``."""
        left = self.left = self.left - len(data)
        if left > 0:
            return data
        self.has_ended = self.is_over = True
        if left < 0:
            self.odd, self.left = data[left:], 0
            return data[:left]
        return data

    def stand_in(self, unseen: bytes) -> tuple[bytes, int]:
        """Return an answer that has no more than ``unseen`` of its body by now, and ends as this one."""
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(unseen) + self.left, unseen), 0


class Chunked:
    """The framing of a body that comes in chunks.

    ``_left`` is how much of a chunk is to come, with the line break behind it. At zero a chunk begins, with ``_begun``.
    """

    __slots__ = ("_begun", "_left", "has_ended", "is_over", "odd")

    def __init__(self) -> None:
        self._left = 0
        self._begun = b""
        self.has_ended = self.is_over = False
        self.odd = b""

    def feed(self, data: bytes) -> bytes:
        """Return what ``data`` has of the body; what is not plain, and all behind it, is ``odd``."""
        if not self._left and not self._begun:
            size = len(data)
            if size < _MAX_ALONE_BYTES and data.startswith(line := _LINES[size]) and data.endswith(b"\r\n"):
                return data[len(line) : -2]  # most reads are one whole chunk
            if data == _END:
                self.has_ended = self.is_over = True
                return b""
        return self._feed(data)

    def _feed(self, data: bytes) -> bytes:
        data, self._begun = self._begun + data, b""
        pieces: list[bytes] = []
        at = self._go_on(data, 0, pieces)
        while not self._left and at < len(data):
            line = _SIZE.match(data, at)
            if line is None or data.startswith(b"0", at):
                self._end(data[at:])
                break
            self._left = int(line[1], 16) + 2
            at = self._go_on(data, line.end(), pieces)
        else:
            if at < len(data):
                self.odd, self.is_over = data[at:], True
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _go_on(self, data: bytes, at: int, pieces: list[bytes]) -> int:
        """Take what there is of a chunk, and return where it ends; at its line break, if that is none."""
        left = self._left
        if left > 2:
            piece = data[at : at + left - 2]
            if piece:
                pieces.append(piece)
            left -= len(piece)
            at += len(piece)
        if 0 < left <= 2:
            there = data[at : at + left]
            if there == b"\r\n"[2 - left :][: len(there)]:
                left -= len(there)
                at += len(there)
        self._left = left
        return at

    def _end(self, rest: bytes) -> None:
        """Behind the last whole chunk: is that the end of the body, or the begin of another chunk, or neither."""
        if rest == _END:
            self.has_ended = self.is_over = True
        elif _BEGUN_SIZE.fullmatch(rest) is not None:
            self._begun = rest
        else:
            self.odd, self.is_over = rest, True

    def stand_in(self, unseen: bytes) -> tuple[bytes, int]:
        """Return an answer that stands where this one does, and how many bytes of its body were seen all the same."""
        left, has_return = max(0, self._left - 2), self._left == 1
        line, seen = b"", 0
        if not unseen and 0 < self._left <= 2:
            unseen, seen = b".", 1  # there is no other way to the end of a chunk
        if unseen or left:
            line = b"%x\r\n%b" % (len(unseen) + left, unseen)
        end = b"" if left else b"\r\n" if not self._left and unseen else b"\r" if has_return else b""
        return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%b%b%b" % (line, end, self._begun), seen


def _line_of(size: int) -> bytes:
    """Return the size line of a chunk that is ``size`` bytes as a whole; if there can be none, what nothing has."""
    for digits in (1, 2, 3):
        payload = size - digits - 4
        if 16 ** (digits - 1) <= payload < 16**digits:
            return b"%x\r\n" % payload
    return bytes(size + 1)


_LINES: Final = Kept(_line_of)
