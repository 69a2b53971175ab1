"""What the text chunks of one stream have in common, so that of the next one only the text is decoded.

Nearly all chunks of a stream are the same JSON but for the string behind ``"content":``, or behind
``"reasoning_content":`` while the provider shows how it reasons. One whose bytes up to that string and from its end on
are those of a chunk that was decoded in full is that chunk with another text: JSON is read
from left to right, so the same bytes before the string put a reader in the same place, and the same bytes behind it are
read the same way. Whatever stands between must decode as one JSON string; if it does not, the chunk is read in full.

0.4 µs for a chunk of 250 bytes, where decoding and looking at all of its fields takes 1.3 µs. Streams whose chunks
differ elsewhere too, as with OpenAI's random padding, learn so within ``MAX_TRIES`` and pay nothing further.

``event_head`` and ``event_tail`` are the same with the frame of a server-sent event around them: a read that is between
them one JSON string is one event with that text, for in a JSON string there is no line break. A read of several such
events is one string after the other, with ``event_between`` in between: it costs a fifth of the way through the decoder
of server-sent events for each.
"""

from __future__ import annotations

from typing import Final

import msgspec

from gateway.core.events import ReasoningDelta, TextDelta
from gateway.providers.errors import NOT_JSON

MAX_TRIES = 4

_KEYS: Final = {TextDelta: b'"content":', ReasoningDelta: b'"reasoning_content":'}
_LF = ord("\n")
decode_text = msgspec.json.Decoder(str).decode


class TextTemplate:
    """The bytes around the text of a stream's chunks, which tell a ``kind`` of event of the choice ``index``.

    ``inside`` is what lies between ``event_head`` and ``event_tail`` in an event, or in several, and ``front`` and
    ``back`` are where these stand: to cut them out and compare takes two thirds of asking with what a read begins.
    ``before`` and ``behind`` are what a chunk has around its text, as that is written.
    """

    __slots__ = (
        "_head",
        "_tail",
        "_tries_left",
        "back",
        "before",
        "behind",
        "event_between",
        "event_head",
        "event_tail",
        "front",
        "index",
        "inside",
        "kind",
    )

    def __init__(self) -> None:
        self._head = b""
        self._tail = b""
        self._tries_left = MAX_TRIES
        self.index = 0
        self.kind: type[TextDelta | ReasoningDelta] = TextDelta
        self.before = self.behind = self.event_head = self.event_tail = self.event_between = b""
        self.front = self.back = self.inside = slice(0, 0)

    def text_of(self, chunk: bytes) -> str | None:
        """Return the text of a chunk that is like the one learned; ``None`` or nothing for any other."""
        head, tail = self._head, self._tail
        if not head or not chunk.startswith(head) or not chunk.endswith(tail) or len(chunk) < len(head) + len(tail):
            return None
        try:
            return decode_text(chunk[len(head) - 1 : len(chunk) - len(tail) + 1])
        except NOT_JSON:
            return None

    def learn(self, chunk: bytes, text: str, index: int, kind: type[TextDelta | ReasoningDelta] = TextDelta) -> None:
        """Take ``chunk``, which has nothing but ``text``, as the one that the next will be like."""
        if not self._tries_left:
            return
        self._tries_left -= 1
        key = _KEYS[kind]
        said = key + msgspec.json.encode(text)
        before, found, behind = chunk.partition(said)
        if not found or said in behind:
            return  # written in another way, or more than once
        head, tail = self._head, self._tail = before + key + b'"', b'"' + behind
        self.index, self.kind = index, kind
        if _LF not in chunk:
            event_head, event_tail = self.event_head, self.event_tail = b"data: " + head, tail + b"\n\n"
            self.before, self.behind = head[:-1], tail[1:]  # the quotes belong to the texts
            self.event_between = b"%b\n\ndata: %b" % (self.behind, self.before)
            self.front, self.back = slice(len(event_head)), slice(-len(event_tail), None)
            self.inside = slice(len(event_head) - 1, 1 - len(event_tail))
