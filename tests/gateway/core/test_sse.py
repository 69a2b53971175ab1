from __future__ import annotations

import time
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.errors import StreamInterrupted
from gateway.core.sse import MAX_FRAME_BYTES, ServerSentEvent, SSEDecoder, encode_comment, encode_data

BOM = b"\xef\xbb\xbf"
BYTES = st.lists(
    st.sampled_from(
        [b"data: ", b"data:", b"data", b"event: e", b":", b"id: 1", b"{", b"}", b"[{", b"\n", b"\r", b"\r\n", BOM]
    )
    | st.binary(max_size=4),
    max_size=30,
).map(b"".join)


def decode(*chunks: bytes) -> list[ServerSentEvent]:
    """Return the events of a whole stream."""
    decoder = SSEDecoder()
    return [event for chunk in chunks for event in decoder.feed(chunk)] + decoder.finish()


def data(*chunks: bytes) -> list[bytes]:
    """Return only what the events of a whole stream carry."""
    return [event.data for event in decode(*chunks)]


def reference(body: bytes) -> list[ServerSentEvent]:
    """Read the events of ``body`` as the standard says it, line by line, with the two deviations of the module."""
    body = body.removeprefix(BOM).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    events = []
    for block in body.split(b"\n\n"):
        values, name = [], ""
        for line in block.split(b"\n"):
            field, _, value = line.partition(b":")
            value = value[1:] if value[:1] == b" " else value
            values += [value] if field == b"data" else []
            name = value.decode(errors="replace") if field == b"event" else name
        if not values and block.strip().startswith((b"{", b"[{")):
            values = [block.strip()]
        if document := b"\n".join(values):
            events.append(ServerSentEvent(document, name))
    return events


@given(BYTES)
def test_short_ways_read_what_the_standard_says(body: bytes) -> None:
    """What is read by hand because nearly all events look so means the same as line by line."""
    assert decode(body) == reference(body)


@pytest.mark.parametrize(
    "before", [b"", BOM, BOM[:1], b"\r", b"data: a", b"data: a\r\n", b"data: a\r\n\r\n", b": x\r\n"]
)
@pytest.mark.parametrize(
    "read", [b"data: b\r\n\r\n", b"data: \r\n\r\n", b"data: b\r\r\n\n", b"data: b\n\r\r\n\r\n", b"\ndata: b\r\n\r\n"]
)
def test_a_read_that_is_one_event_of_crlf_means_the_same_behind_anything(before: bytes, read: bytes) -> None:
    """Gemini ends its lines so."""
    begun = before or b"data: 0\n\n"
    assert decode(begun, read) == reference(begun + read)


def test_event_is_dispatched_by_its_blank_line() -> None:
    """Nothing comes before the blank line, and everything with it."""
    decoder = SSEDecoder()
    assert decoder.feed(b"data: a\n") == []
    assert decoder.feed(b"\ndata: b\n\ndata: c") == [ServerSentEvent(b"a"), ServerSentEvent(b"b")]
    assert decoder.feed(b"\n\n") == [ServerSentEvent(b"c")]
    assert decoder.finish() == []


@given(BYTES, st.lists(st.integers(0, 120), max_size=12))
def test_any_split_of_any_bytes_gives_the_same_events(body: bytes, cuts: list[int]) -> None:
    """Where the network cuts the bytes makes no difference."""
    places = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
    assert decode(*[body[begin:end] for begin, end in pairwise(places)]) == decode(body)


@given(BYTES)
def test_byte_by_byte_gives_the_same_events(body: bytes) -> None:
    """The smallest reads there are change nothing either."""
    assert decode(*[bytes([byte]) for byte in body]) == decode(body)


@given(st.lists(st.binary(max_size=40), max_size=10), st.integers(1, 60))
def test_arbitrary_bytes_raise_nothing_but_interruptions(chunks: list[bytes], max_frame_bytes: int) -> None:
    """No bytes bring out a foreign exception."""
    decoder = SSEDecoder(max_frame_bytes=max_frame_bytes)
    with suppress(StreamInterrupted):
        for chunk in chunks:
            decoder.feed(chunk)
        decoder.finish()


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_all_three_line_ends_mean_the_same(end: bytes) -> None:
    """LF, CR and CRLF, also several blank lines of them."""
    body = b"event: e%sdata: a%sdata: b%s%s%s: c%s%sdata: d%s%s".replace(b"%s", end)
    assert decode(body) == [ServerSentEvent(b"a\nb", "e"), ServerSentEvent(b"d")]


def test_line_end_split_between_two_reads_is_one() -> None:
    """The LF of a CRLF may come late and is not a blank line of its own."""
    decoder = SSEDecoder()
    assert decoder.feed(b"data: a\r") == []
    assert decoder.feed(b"\n") == []
    assert decoder.feed(b"data: b\r\n\r") == [ServerSentEvent(b"a\nb")]
    assert decoder.feed(b"") == []
    assert decoder.feed(b"\ndata: c\n\n") == [ServerSentEvent(b"c")]


def test_event_is_not_kept_waiting_for_a_late_lf() -> None:
    """A CR ends its line at once: the LF that may follow brings nothing new."""
    assert SSEDecoder().feed(b"data: a\r\r") == [ServerSentEvent(b"a")]


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_byte_order_mark_is_ignored_once(size: int) -> None:
    """One at the very start, also in pieces; a second one is data like any other."""
    body = BOM + b"data: a\n\n" + BOM + b"data: b\n\n"
    assert data(*[body[at : at + size] for at in range(0, len(body), size)]) == [b"a"]


def test_part_of_a_byte_order_mark_is_no_event() -> None:
    """A stream that ends inside its mark, or only begins like one, is read as it is."""
    assert data(BOM[:2]) == []
    assert data(BOM[:2], b"\n\ndata: a\n\n") == [b"a"]


def test_several_data_lines_are_joined() -> None:
    """A document on many lines is one event; one space after the colon is not part of a line."""
    assert data(b"data: a\ndata:b\ndata:  c\ndata\ndata:\n\n") == [b"a\nb\n c\n\n"]


@pytest.mark.parametrize(
    "block", [b"data: ", b"data:", b"data", b": ping", b"event: x", b"id: 1", b"retry: 5", b"xdata: 1", b""]
)
def test_event_without_data_is_dropped(block: bytes) -> None:
    """A comment, a lone field, or data that is empty: nobody could read it."""
    assert data(block + b"\n\ndata: a\n\n" + block) == [b"a"]


def test_name_and_unknown_fields_are_told_apart() -> None:
    """An event has its name; fields that are not data are skipped, and a name that is not UTF-8 does no harm."""
    assert decode(b"id: 7\nevent: done\nretry: 1\ndata: x\nother\n\n") == [ServerSentEvent(b"x", "done")]
    assert decode(b"event: \xff\ndata: x\n\n") == [ServerSentEvent(b"x", "\ufffd")]


def test_read_of_exactly_one_event_is_that_event() -> None:
    """The short way for nearly all reads: whole, empty, or behind the beginning of another."""
    decoder = SSEDecoder()
    assert decoder.feed(b"data: a\n\n") == [ServerSentEvent(b"a")]
    assert decoder.feed(b"data: \n\n") == []
    assert decoder.feed(b"data: b\n") == []
    assert decoder.feed(b"data: c\n\n") == [ServerSentEvent(b"b\nc")]


def test_named_event_is_read() -> None:
    """The form that Anthropic's events have: a name, then the data."""
    assert decode(b"event: ping\ndata: {}\n\n") == [ServerSentEvent(b"{}", "ping")]
    assert decode(b"event: ping\ndata: \n\n") == []


def test_last_event_without_its_blank_line_is_delivered() -> None:
    """Some providers end so; whether the document is whole its JSON tells."""
    assert data(b"data: a\n\ndata: [DONE]") == [b"a", b"[DONE]"]
    assert data(b"data: a\n") == [b"a"]


def test_bare_json_is_delivered() -> None:
    """Gemini drops its errors into the stream without ``data:``."""
    assert data(b'data: a\n\n{\n  "error": {}\n}\n') == [b"a", b'{\n  "error": {}\n}']
    assert data(b'[{"error": {}}]\n\n') == [b'[{"error": {}}]']
    assert data(b"<html>\n\n") == []


def test_oversized_event_is_refused() -> None:
    """One byte over the limit is a provider out of control; up to it is not."""
    decoder = SSEDecoder(max_frame_bytes=10)
    assert decoder.feed(b"data: 1234") == []
    with pytest.raises(StreamInterrupted) as caught:
        decoder.feed(b"5")
    assert (caught.value.code, caught.value.error_type) == ("frame_too_large", "protocol")
    assert MAX_FRAME_BYTES == 16 * 1024 * 1024


def test_limit_is_for_one_event() -> None:
    """Many events in one read may be more."""
    decoder = SSEDecoder(max_frame_bytes=10)
    assert len(decoder.feed(b"data: 1\n\n" * 100)) == 100
    assert decoder.feed(b"data: 2\n") == []
    assert decoder.feed(b"\ndata: 3\n") == [ServerSentEvent(b"2")]


@pytest.mark.parametrize("tail", [b"\n\n", b"\r\n\r\n"])
def test_event_in_many_pieces_costs_linear_time(tail: bytes) -> None:
    """100 000 reads for one event take about ten times as long as 10 000, not a hundred times."""
    spent_s = []
    for count in (10_000, 100_000):
        chunks = [b"data: ", *[b"0123456789"] * count, tail]
        begun_at_s = time.process_time()
        assert len(decode(*chunks)[0].data) == 10 * count
        spent_s.append(time.process_time() - begun_at_s)
    assert spent_s[1] < 40 * spent_s[0]


def test_encoders_write_what_the_decoder_reads() -> None:
    """A document comes out as it went in, and a comment is none."""
    assert decode(encode_comment("keep-alive") + encode_data(b'{"a": 1}')) == [ServerSentEvent(b'{"a": 1}')]
    assert encode_comment("keep-alive") == b": keep-alive\n\n"
