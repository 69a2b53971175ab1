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
from collections.abc import Mapping, Sequence
from typing import Final

from multidict import MultiDict, MultiDictProxy

from gateway.core.kept import Kept

MAX_HEAD_BYTES: Final = 8190
"""aiohttp's limit of a line: no line of a head that is no longer can pass it."""

MAX_HEADERS: Final = 128

MAX_LAYOUTS: Final = 32
"""What a head says is the provider's word. A provider has one or two, and another when it refuses."""

_STATUS = r"HTTP/1\.1 (?!204|304)[2-5][0-9][0-9] [\x20-\x7e]*+\r\n"
_STATUS_LINE = re.compile(_STATUS)
_FIELD = re.compile(r"([!#$%&'*+\-.^_`|~0-9A-Za-z]++):([\x20-\x7e]*+)")
_LENGTH = re.compile(r"[0-9]{1,15}")

_PLAIN_VALUES: Final = {"connection": "keep-alive", "content-encoding": "identity", "transfer-encoding": "chunked"}
_FRAMING: Final = frozenset({"content-length", *_PLAIN_VALUES})
_ODD: Final = frozenset({"proxy-connection", "sec-websocket-key1", "upgrade"})
"""Headers that aiohttp's parser acts upon, or may."""

_SIZE = re.compile(rb"[1-9A-Fa-f][0-9A-Fa-f]{0,7}")
_MAX_SIZE_LINE_BYTES: Final = 8 + 2
_BEGUN_SIZE = re.compile(rb"[0-9A-Fa-f]{1,8}\r?|0\r\n\r?")
_END: Final = b"0\r\n\r\n"

MAX_SIZES: Final = 4096
"""How many sizes of chunks are kept read."""

_MAX_ALONE_BYTES: Final = 4096 + 7
"""The length of a read that has one chunk and nothing else, up to the longest of three digits."""

Head = tuple[int, Mapping[str, str], int | None, int]
"""The status of a plain answer, its headers, its body's length, which is none if it comes in chunks, and its own.

Headers are to be asked for by names in lower case.
"""


def read_head(data: bytes) -> Head | None:
    """Return the head that ``data`` begins with, if it is whole and plain."""
    text = data[:MAX_HEAD_BYTES].decode("latin-1")
    for layout in _LAYOUTS:
        found = layout.match(text)
        if found is not None:
            if layout is not _LAYOUTS[0]:
                _LAYOUTS.remove(layout)
                _LAYOUTS.insert(0, layout)
            fields = zip(layout.names, found.groups())  # noqa: B905, so many groups were made of them
            headers = MultiDictProxy(MultiDict(fields)) if layout.has_twice else dict(fields)
            return int(text[9:12]), headers, int(headers["content-length"]) if layout.has_length else None, found.end()
    return _read_lines(text)


def _read_lines(text: str) -> Head | None:
    """Return a head that is like none before; if there was one with the same names, there is a layout of it now."""
    status, end = _STATUS_LINE.match(text), text.find("\r\n\r\n")
    if status is None or end < 0:
        return None
    found = [_FIELD.fullmatch(line) for line in text[status.end() : end].split("\r\n")]
    said = [(one[1], one[2].strip(" ")) for one in found if one is not None]
    fields = [(name.lower(), value) for name, value in said]
    names = [name for name, _ in fields]
    headers: MultiDict[str] = MultiDict(fields)
    is_plain = len(said) == len(found) <= MAX_HEADERS and _ODD.isdisjoint(names)
    is_plain = is_plain and all(len(headers.getall(name, ())) <= 1 for name in _FRAMING)
    is_plain = is_plain and all(headers.get(name, plain).lower() == plain for name, plain in _PLAIN_VALUES.items())
    length = headers.get("content-length")
    if not is_plain or (length is None) != ("transfer-encoding" in headers):
        return None
    if length is not None and _LENGTH.fullmatch(length) is None:
        return None
    if " \r\n" not in text[status.end() : end + 2]:  # a layout knows of no blanks behind a value
        _learn(said)
    return int(text[9:12]), MultiDictProxy(headers), None if length is None else int(length), end + 4


class _Layout:
    """The names of a plain head in their order, and what it says of the framing of its body, as one expression.

    All answers of a provider have the same names, and half of them another value each time. To see that a head has the
    names of one before takes half of what it takes to look for each of its lines among those that were known, and two
    thirds of what aiohttp's parser takes, for one of 27 lines.
    """

    __slots__ = ("has_length", "has_twice", "match", "names")

    def __init__(self, said: Sequence[tuple[str, str]]) -> None:
        self.names = [name.lower() for name, _ in said]
        self.has_length = "content-length" in self.names
        self.has_twice = len(set(self.names)) < len(self.names)
        lines = [rf"{re.escape(name)}: *+({_values_like(name.lower(), value)})\r\n" for name, value in said]
        self.match = re.compile("".join([_STATUS, *lines, r"\r\n"])).match


def _values_like(name: str, value: str) -> str:
    """Return the expression for the values of a header that are plain as well, and read in the same way."""
    if name == "content-length":
        return _LENGTH.pattern
    return re.escape(value) if name in _PLAIN_VALUES else r"[\x20-\x7e]*+(?<! )"


_LAYOUTS: Final[list[_Layout]] = []
"""Those that were found last are the first."""

_ONCE: Final[set[tuple[str, ...]]] = set()


def _learn(said: Sequence[tuple[str, str]]) -> None:
    """Have a layout of a head whose names have come before: one that will not come again is not worth it."""
    names = tuple([f"{name}: {value if name.lower() in _PLAIN_VALUES else ''}" for name, value in said])
    if names not in _ONCE:
        if len(_ONCE) >= MAX_LAYOUTS:
            _ONCE.clear()
        _ONCE.add(names)
        return
    _ONCE.discard(names)
    _LAYOUTS.insert(0, _Layout(said))
    del _LAYOUTS[MAX_LAYOUTS:]


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
        at = self._go_on(data, 0, pieces) if self._left else 0
        length = len(data)
        while not self._left and at < length:
            line_end = data.find(b"\r\n", at, at + _MAX_SIZE_LINE_BYTES)
            size = _SIZES[data[at:line_end]] if line_end > 0 else 0
            if not size:
                self._end(data[at:])
                break
            at = line_end + 2
            end = at + size
            if data[end : end + 2] == b"\r\n":
                pieces.append(data[at:end])
                at = end + 2
            else:
                self._left = end - at + 2
                at = self._go_on(data, at, pieces)
        else:
            if at < length:
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


def _size_of(line: bytes) -> int:
    """Return the size of a chunk that is one; 0 for the last chunk, which is none, and for what is no plain size."""
    return int(line, 16) if _SIZE.fullmatch(line) is not None else 0


_SIZES: Final = Kept(_size_of, most=MAX_SIZES)
