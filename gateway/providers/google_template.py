"""What the chunks of one of Gemini's streams have in common, so that of the next one two values are decoded.

Nearly all of them are the same JSON but for the string behind ``"text":`` and the object behind ``"usageMetadata":``. A
read of one event that has the same bytes before, between and behind two such values as one that was decoded in full is
that event with another text and another usage. JSON is read from left to right, so the same bytes put a reader in the
same place; what stands in the two places must each be one whole value, or the event is read in full.

A read of several such events is one such pair after the other, with the end of one event and the beginning of the next
in between. No pair has a line break, so these are all the events that there are.

Whether the two places are those of the text and the usage is not guessed but tried, by who decodes: with other values
in them (``event_with``) a chunk must have just these.
"""

from __future__ import annotations

import msgspec

from gateway.providers.errors import NOT_JSON

_BEGIN = b"data: "
_ENDS = (b"\r\n\r\n", b"\n\n")


class _Chunk(msgspec.Struct, rename="camel", gc=False):
    usage_metadata: msgspec.Raw = msgspec.Raw()


_decode_chunk = msgspec.json.Decoder(_Chunk).decode


class ChunkTemplate(msgspec.Struct, frozen=True, gc=False):
    """The bytes of an event around its text and its usage; what is ``inside`` is these two and ``between``.

    ``document`` is where the JSON of an event is. Of several events both slices have the first to the last, with
    ``event_between`` between what is inside of two and ``document_between`` between their documents.
    """

    head: bytes
    between: bytes
    tail: bytes
    inside: slice
    document: slice
    event_between: bytes
    document_between: bytes

    def event_with(self, text: bytes, usage: bytes) -> bytes:
        """Return the event that has these two, written as JSON."""
        return b"".join((self.head, text, self.between, usage, self.tail))


def learn(event: bytes, document: bytes, text: str) -> ChunkTemplate | None:
    """Take an event with this JSON and this text as the one that the next will be like; ``None`` if it cannot be."""
    end = event[len(_BEGIN) + len(document) :]
    if end not in _ENDS or not event.startswith(_BEGIN) or event[len(_BEGIN) : -len(end)] != document:
        return None  # of several lines, or not alone in its read
    try:
        usage = bytes(_decode_chunk(document).usage_metadata)
    except NOT_JSON:
        return None
    written = msgspec.json.encode(text)
    head, found, rest = document.partition(written)
    between, has_usage, tail = rest.rpartition(usage) if usage else (b"", b"", b"")
    if not found or not has_usage or b"\n" in document or b"\r" in document:
        return None
    head, tail = _BEGIN + head, tail + end
    inside, whole = slice(len(head), -len(tail)), slice(len(_BEGIN), -len(end))
    return ChunkTemplate(head, between, tail, inside, whole, tail + head, end + _BEGIN)
