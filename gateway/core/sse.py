"""Server-sent events on bytes: an incremental decoder and the little there is of an encoder.

The rules are those of the WHATWG HTML standard, section 9.2: UTF-8, one leading byte order mark ignored, lines that end
in LF, CR or CRLF, a blank line dispatches, ``:`` begins a comment, one space after the colon is not part of the value,
several ``data`` lines are joined by LF, an event without data is dropped. Two deviations, both because providers need
them: a document whose blank line is missing at the end of the stream is still delivered (its JSON tells whether it is
whole), and a bare JSON document without ``data:`` is delivered too (Gemini sends its errors like that).

The decoder never copies a byte twice while it waits for the rest of an event: bytes are kept in the pieces in which
they came, so that a frame of many reads costs linear time.
"""

from __future__ import annotations

import msgspec

from gateway.core.errors import StreamInterrupted

MAX_FRAME_BYTES = 16 * 1024 * 1024
"""An image in one frame of Gemini's takes several MiB; more than this is a provider out of control."""

_BOM = b"\xef\xbb\xbf"
_NO_NAME = ""
_LF, _CR = b"\n\r"
"""Bytes, not strings of one: asked for those, ``in`` raises and catches a ``TypeError`` before it looks."""


class ServerSentEvent(msgspec.Struct, frozen=True, gc=False):
    """One dispatched event; ``name`` is empty where the provider gave none."""

    data: bytes
    name: str = _NO_NAME


class SSEDecoder:
    """Takes bytes as they come and returns the events that they complete.

    Raises ``StreamInterrupted`` when a single event grows over ``max_frame_bytes``.
    """

    __slots__ = ("_is_first", "_max_frame_bytes", "_pending", "_pending_bytes", "_skip_lf")

    def __init__(self, *, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._max_frame_bytes = max_frame_bytes
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._is_first = True
        self._skip_lf = False

    @property
    def is_between_events(self) -> bool:
        """Whether all that came so far were whole events, so that what comes next begins one."""
        return not (self._pending or self._skip_lf or self._is_first)

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        """Return the events that ``chunk`` completes, in their order."""
        if self._is_first:
            chunk = self._without_bom(chunk)
        if self._skip_lf or _CR in chunk:
            if not (self._pending or self._skip_lf) and _is_one_event_of_crlf(chunk):
                return [ServerSentEvent(chunk[6:-4])]  # and nearly all of those whose lines end so
            chunk = self._with_lf_only(chunk)
        elif not self._pending and (events := _plain_events(chunk)) is not None:
            return events
        if not chunk:
            return []
        if self._pending:
            if b"\n\n" not in chunk and not (chunk[0] == 10 and self._pending[-1][-1] == 10):
                self._keep(chunk)
                return []
            self._pending.append(chunk)
            chunk = b"".join(self._pending)
            self._pending.clear()
            self._pending_bytes = 0
        *blocks, rest = chunk.split(b"\n\n")
        if rest:
            self._keep(rest)
        return _events(blocks)

    def finish(self) -> list[ServerSentEvent]:
        """Return what the end of the bytes completes: a last event whose blank line is missing."""
        rest = b"".join(self._pending)
        self._pending.clear()
        self._pending_bytes = 0
        return _events([rest]) if rest else []

    def _keep(self, piece: bytes) -> None:
        self._pending.append(piece)
        self._pending_bytes += len(piece)
        if self._pending_bytes > self._max_frame_bytes:
            raise StreamInterrupted(
                f"the provider sent a single event of more than {self._max_frame_bytes} bytes",
                code="frame_too_large",
                error_type="protocol",
            )

    def _without_bom(self, chunk: bytes) -> bytes:
        """Strip the byte order mark, also one that came in pieces."""
        if self._pending:
            chunk = b"".join(self._pending) + chunk
            self._pending.clear()
            self._pending_bytes = 0
        if len(chunk) < len(_BOM) and _BOM.startswith(chunk):
            if chunk:
                self._keep(chunk)
            return b""
        self._is_first = False
        return chunk.removeprefix(_BOM)

    def _with_lf_only(self, chunk: bytes) -> bytes:
        """Make every line end an LF. A CR ends its line at once; an LF that follows it in the next read is dropped."""
        if self._skip_lf and chunk:
            self._skip_lf = False
            chunk = chunk.removeprefix(b"\n")
        if chunk.endswith(b"\r"):
            self._skip_lf = True
        return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _is_one_event_of_crlf(chunk: bytes) -> bool:
    end = len(chunk) - 4
    is_framed = end > 6 and chunk.startswith(b"data: ") and chunk.endswith(b"\r\n\r\n")
    return is_framed and chunk.find(b"\r") == end and chunk.find(b"\n") == end + 1


def _plain_events(chunk: bytes) -> list[ServerSentEvent] | None:
    """Return the events of a read that is whole ones of a single line of ``data`` each; ``None`` for any other.

    Nearly all reads are one such event, and the first and the last of a stream are several.
    """
    if not chunk.startswith(b"data: ") or not chunk.endswith(b"\n\n"):
        return None
    line_count = chunk.count(b"\n")
    if line_count == 2:
        return [ServerSentEvent(chunk[6:-2])] if len(chunk) > 8 else []
    documents = chunk[6:-2].split(b"\n\ndata: ")
    return [ServerSentEvent(one) for one in documents if one] if line_count == 2 * len(documents) else None


def _events(blocks: list[bytes]) -> list[ServerSentEvent]:
    """Parse whole events; the two forms that nearly all have, ``data`` alone and behind its name, by hand."""
    events = []
    for block in blocks:
        if block.startswith(b"data: ") and len(block) > 6 and _LF not in block:
            events.append(ServerSentEvent(block[6:]))
            continue
        name, found, data = block.partition(b"\ndata: ")
        if found and data and name.startswith(b"event: ") and name.isascii() and block.count(b"\n") == 1:
            events.append(ServerSentEvent(data, name[7:].decode()))
        elif block and (event := _parse_block(block)) is not None:
            events.append(event)
    return events


def _parse_block(block: bytes) -> ServerSentEvent | None:
    data: list[bytes] = []
    name = _NO_NAME
    for line in block.split(b"\n"):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value.decode("utf-8", "replace")
    if data:
        joined = b"\n".join(data)
        return ServerSentEvent(joined, name) if joined else None
    bare = block.strip()
    return ServerSentEvent(bare, name) if bare.startswith((b"{", b"[{")) else None


def encode_data(document: bytes) -> bytes:
    """Return ``document``, one line of JSON, as an event without a name."""
    return b"data: " + document + b"\n\n"


def encode_comment(text: str) -> bytes:
    """Return a comment frame; ``text`` has no line break."""
    return b": " + text.encode() + b"\n\n"
