from __future__ import annotations

import json
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.errors import StreamInterrupted
from gateway.providers.json_stream import JSONStreamDecoder

TRICKY = [{"a": 'x"y\\', "b": {"c": "}{]["}}, {}, {"d": "\\\\", "e": [{"f": 1}, []]}]
JSON = (
    st.none()
    | st.integers()
    | st.text(max_size=8)
    | st.lists(st.dictionaries(st.text(max_size=4), st.text(max_size=4)))
)


def read(*chunks: bytes) -> list[bytes]:
    """Return the documents of a whole stream."""
    decoder = JSONStreamDecoder()
    events = [event for chunk in chunks for event in decoder.feed(chunk)]
    return [event.data for event in events + decoder.finish()]


def test_array_of_documents_is_read_one_by_one() -> None:
    """Each item of the array is one event, byte for byte."""
    assert read(b'[{"a": 1}\n,\r\n{"b" : [ ]}\n]\n') == [b'{"a": 1}', b'{"b" : [ ]}']


def test_bare_document_is_read() -> None:
    """A single object needs no array around it."""
    assert read(b' {"error": {}}') == [b'{"error": {}}']


def test_empty_array_has_no_documents() -> None:
    """An array without items is a whole stream of nothing."""
    assert read(b"[ ]") == []


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_cut_anywhere_gives_the_same_documents(size: int) -> None:
    """Where the network cuts the bytes makes no difference, inside strings and escapes too."""
    body = json.dumps(TRICKY).encode()
    found = read(*[body[at : at + size] for at in range(0, len(body), size)])
    assert [json.loads(document) for document in found] == TRICKY


@given(
    st.lists(st.dictionaries(st.text(max_size=4), JSON), max_size=4),
    st.lists(st.integers(0, 200), max_size=8),
    st.sampled_from([None, 2]),
)
def test_any_documents_cut_anywhere_are_found(documents: list[object], cuts: list[int], indent: int | None) -> None:
    """Whatever the documents hold, they come out as they went in."""
    body = json.dumps(documents, indent=indent, ensure_ascii=False).encode()
    places = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
    chunks = [body[begin:end] for begin, end in pairwise(places)]
    assert [json.loads(document) for document in read(*chunks)] == documents


@pytest.mark.parametrize("body", [b'[{"a": 1', b'[{"a": 1}', b'[{"a": 1},', b'{"a": "}', b"["])
def test_cut_stream_is_an_interruption(body: bytes) -> None:
    """A document or an array without its end was cut."""
    with pytest.raises(StreamInterrupted) as caught:
        read(body)
    assert caught.value.code == "stream_truncated"


def test_bytes_that_are_no_document_are_handed_on_in_their_place() -> None:
    """What cannot be a document comes behind the good ones, for the reader to refuse."""
    assert read(b'[{"a": 1}]<html>{') == [b'{"a": 1}', b"<html>{"]
    assert read(b'{"a": 1}]') == [b'{"a": 1}', b"]"]


def test_oversized_document_is_refused() -> None:
    """A document over the limit is a provider out of control."""
    decoder = JSONStreamDecoder(max_frame_bytes=10)
    decoder.feed(b'[{"a": "12"')
    with pytest.raises(StreamInterrupted) as caught:
        decoder.feed(b"3456")
    assert caught.value.code == "frame_too_large"


@given(st.lists(st.binary(max_size=20) | st.sampled_from([b"[", b"{", b'"', b"\\", b"}", b"]", b",", b"\n"])))
def test_arbitrary_bytes_raise_nothing_but_interruptions(chunks: list[bytes]) -> None:
    """No bytes bring out an error that is not of the tree."""
    with suppress(StreamInterrupted):
        read(*chunks)
