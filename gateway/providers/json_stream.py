"""Documents of a JSON stream: ``[{…},{…}]``, as Gemini sends it without ``alt=sse``, or one bare object.

A document ends where its braces balance outside strings; nothing of it is decoded here. The bytes may be cut anywhere,
and a document of many reads costs linear time, as in ``core/sse.py``, whose place this decoder takes.
"""

from __future__ import annotations

import re

from gateway.core.sse import MAX_FRAME_BYTES, ServerSentEvent, SSEDecoder
from gateway.providers.errors import cut_off

_OUTSIDE_STRING = re.compile(rb'["{}]')
_INSIDE_STRING = re.compile(rb'["\\]')
_QUOTE, _OPENING, _CLOSING, _BACKSLASH = b'"{}\\'
_ARRAY_BEGIN, _ARRAY_END = b"[]"
_BETWEEN = b" \t\r\n,"


class JSONStreamDecoder(SSEDecoder):
    """Takes bytes as they come and returns the documents that they complete, as events without a name.

    What stands where a document should and cannot be one is returned as it is, for the reader to refuse in its turn.
    Raises ``StreamInterrupted`` when a document grows over ``max_frame_bytes``, or when the end cuts one or the array.
    """

    __slots__ = ("_array", "_depth", "_is_in_string", "_skip")

    def __init__(self, *, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        super().__init__(max_frame_bytes=max_frame_bytes)
        self._array = "none"
        self._depth = 0
        self._is_in_string = False
        self._skip = 0

    @property
    def is_open(self) -> bool:
        """Whether the end would cut a document or the array."""
        return self._depth > 0 or self._array == "open"

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        """Return the documents that ``chunk`` completes, in their order."""
        documents: list[ServerSentEvent] = []
        position, start, size = min(self._skip, len(chunk)), 0, len(chunk)
        self._skip -= position
        while position < size:
            if not self._depth:
                start = position = self._between(chunk, position)
                if position < size and chunk[position] != _OPENING:
                    documents.append(ServerSentEvent(chunk[position:]))
                    return documents
            position = self._scan(chunk, position)
            if not self._depth and position > start:
                documents.append(ServerSentEvent(b"".join((*self._pending, chunk[start:position]))))
                self._pending.clear()
                self._pending_bytes = 0
        if self._depth:
            self._keep(chunk[start:])
        return documents

    def finish(self) -> list[ServerSentEvent]:
        """Take the end of the bytes; there is nothing that it could complete."""
        if self.is_open:
            raise cut_off()
        return []

    def _between(self, chunk: bytes, position: int) -> int:
        """Return where the next document begins, or what is none."""
        size = len(chunk)
        while position < size:
            byte = chunk[position]
            if byte == _ARRAY_BEGIN and self._array == "none":
                self._array = "open"
            elif byte == _ARRAY_END and self._array == "open":
                self._array = "closed"
            elif byte not in _BETWEEN:
                break
            position += 1
        return position

    def _scan(self, chunk: bytes, position: int) -> int:
        """Return where the document ends or, when it does not, the end of ``chunk``."""
        size = len(chunk)
        while position < size:
            pattern = _INSIDE_STRING if self._is_in_string else _OUTSIDE_STRING
            found = pattern.search(chunk, position)
            if found is None:
                return size
            position = found.end()
            byte = chunk[position - 1]
            if byte == _QUOTE:
                self._is_in_string = not self._is_in_string
            elif byte == _BACKSLASH:
                position += 1
                self._skip = max(0, position - size)
            else:
                self._depth += 1 if byte == _OPENING else -1
                if not self._depth:
                    return position
        return size
