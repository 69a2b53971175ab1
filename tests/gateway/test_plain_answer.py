"""The cheap reading of answers, bytes in and bytes out; that it says what aiohttp's does stands in test_exchange.py."""

import random

import pytest

from gateway import plain_answer
from gateway.plain_answer import MAX_HEAD_BYTES, MAX_HEADERS, MAX_LAYOUTS, Chunked, Sized, read_head
from tests.scripted_upstream import END, STREAM, answer, chunk

SIZED = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n"


def framing_of(data: bytes) -> Sized | Chunked:
    """Return what reads the body of a plain answer."""
    head = read_head(data)
    assert head is not None
    return Chunked() if head[2] is None else Sized(head[2])


# --- heads


def test_a_head_is_read_with_what_its_body_is_framed_by() -> None:
    """And how long it is itself."""
    data = answer(429, b"body", retry_after="7")
    assert read_head(data + b"more") == (
        429,
        {"content-type": "application/json", "content-length": "4", "retry-after": "7"},
        4,
        len(data) - 4,
    )
    assert read_head(STREAM) == (
        200,
        {"content-type": "text/event-stream", "transfer-encoding": "chunked"},
        None,
        len(STREAM),
    )


def test_names_are_in_lower_case_and_values_without_the_blanks_around_them() -> None:
    """A value may be empty, or have colons in it."""
    head = read_head(SIZED + b"X-One:a: b \r\nX-TWO:  c  d\r\nX-None:\r\nX-Blank:  \r\n\r\n")
    assert head is not None
    assert head[1] == {"content-length": "4", "x-one": "a: b", "x-two": "c  d", "x-none": "", "x-blank": ""}


def test_of_a_header_that_comes_twice_the_first_is_found_and_all_are_listed() -> None:
    """As aiohttp has it."""
    head = read_head(SIZED + b"Set-Cookie: a\r\nset-cookie: b\r\n\r\n")
    assert head is not None
    assert head[1].get("set-cookie") == "a"
    assert [(name.lower(), value) for name, value in head[1].items()][1:] == [("set-cookie", "a"), ("set-cookie", "b")]


@pytest.mark.parametrize(
    "lines",
    [
        b"HTTP/1.0 200 OK\r\ncontent-length: 4\r\n",
        b"HTTP/1.1 100 Continue\r\ncontent-length: 4\r\n",
        b"HTTP/1.1 101 Switching\r\ncontent-length: 4\r\n",
        b"HTTP/1.1 204 Said\r\ncontent-length: 4\r\n",
        b"HTTP/1.1 304 Said\r\ncontent-length: 4\r\n",
        b"HTTP/1.1 999 Said\r\ncontent-length: 4\r\n",
        b"HTTP/1.1 0200 OK\r\ncontent-length: 4\r\n",
        b"HTTP/1.1 200\r\ncontent-length: 4\r\n",
        b"HTTP/1.1  200 OK\r\ncontent-length: 4\r\n",
        b"HTTP/1.1 200 O\tK\r\ncontent-length: 4\r\n",
        b"http/1.1 200 OK\r\ncontent-length: 4\r\n",
        b"\r\nHTTP/1.1 200 OK\r\ncontent-length: 4\r\n",
        b"HTTP/1.1 200 OK\ncontent-length: 4\r\n",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n",
        SIZED + b"content-length: 4\r\n",
        SIZED + b"content-length: 5\r\n",
        SIZED + b"transfer-encoding: chunked\r\n",
        SIZED + b"transfer-encoding: identity\r\n",
        SIZED + b"connection: close\r\n",
        SIZED + b"connection: keep-alive, upgrade\r\n",
        SIZED + b"connection: keep-alive\r\nconnection: close\r\n",
        SIZED + b"proxy-connection: close\r\n",
        SIZED + b"upgrade: h2c\r\n",
        SIZED + b"content-encoding: gzip\r\n",
        SIZED + b"content-encoding: identity\r\ncontent-encoding: identity\r\n",
        SIZED + b"sec-websocket-key1: x\r\n",
        SIZED + b"x: a\r\n folded\r\n",
        SIZED + b" x: a\r\n",
        SIZED + b"x : a\r\n",
        SIZED + b"x y: a\r\n",
        SIZED + b": a\r\n",
        SIZED + b"x\r\n",
        SIZED + b"x: a\nb: c\r\n",
        SIZED + b"x: a\rb\r\n",
        SIZED + b"x: a\0b\r\n",
        SIZED + b"x: a\tb\r\n",
        SIZED + b"x: a\x7fb\r\n",
        SIZED + b"x: k\xc3\xa4se\r\n",
        SIZED + b"x: a\x85b\r\n",
        SIZED + b"x\xe4: a\r\n",
        SIZED + b"x: " + b"y" * MAX_HEAD_BYTES + b"\r\n",
        SIZED + b"x: y\r\n" * MAX_HEADERS,
        *(
            b"HTTP/1.1 200 OK\r\ncontent-length: " + length + b"\r\n"
            for length in (b"", b"-1", b"+4", b"4_0", b"0x4", b"4 4", b"4,4", b"4;", b"9" * 16, b"\xb2", b"\xd9\xa4")
        ),
        *(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: " + coding + b"\r\n"
            for coding in (b"", b"chunked, chunked", b"gzip, chunked", b"chunked;q=1", b"identity", b"x", b'"chunked"')
        ),
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding\x0b: chunked\r\n",
    ],
)
def test_a_head_that_is_not_plain_is_declined(lines: bytes) -> None:
    """It may have a meaning, but that is not for us to say."""
    for known in (SIZED, SIZED + b"x: a\r\n", SIZED + b"connection: keep-alive\r\n"):
        assert all(read_head(known + b"\r\n") is not None for _ in range(3))
    assert read_head(lines + b"\r\nbody") is None
    assert read_head(lines + b"\r\nbody") is None, "and is not taken for known the second time"


def test_a_head_that_is_not_whole_is_declined() -> None:
    """However little is missing."""
    head = SIZED + b"Connection: Keep-Alive\r\n\r\n"
    assert read_head(head) is not None
    assert [size for size in range(len(head)) if read_head(head[:size]) is not None] == []


LIKE_A_PROVIDERS = [
    (
        b"Date: Sun, 23 Nov 2025 01:11:%02d GMT\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
        b"Connection: keep-alive\r\nset-cookie: a=%02d; path=/\r\nx-request-id: %02d\r\nset-cookie: b\r\nx-none:\r\n"
    ),
    b"content-length: %d\r\ncontent-type: application/json\r\nx-ratelimit-remaining-requests:   %d\r\nx: a:%d\r\n",
]


@pytest.mark.parametrize("lines", LIKE_A_PROVIDERS)
def test_a_head_with_known_names_is_read_as_it_is_without(lines: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is another in it each time."""
    monkeypatch.setattr(plain_answer, "_LAYOUTS", [])
    for number in range(10):
        data = b"HTTP/1.1 20%d Said\r\n%b\r\nbody" % (number % 4, lines % (number, number, number))
        known, read = read_head(data), plain_answer._read_lines(data.decode())
        assert known is not None
        assert read is not None
        assert (known[0], known[2:]) == (read[0], read[2:]) == (200 + number % 4, (known[2], len(data) - 4))
        assert list(known[1].items()) == list(read[1].items())
        assert known[1].get("set-cookie") == read[1].get("set-cookie")
        assert (known[2] is None) is (b"chunked" in lines)
        assert len(plain_answer._LAYOUTS) >= (number > 0)
    plain_answer._LAYOUTS[1:] = []
    monkeypatch.setattr(plain_answer, "_read_lines", lambda _: None)
    assert read_head(data) == known
    for before, after in (
        (b"HTTP/1.1 201", b"HTTP/1.1 204"),
        (b"HTTP/1.1 201", b"HTTP/1.0 201"),
        (b"Said\r\n", b"Sa\tid\r\n"),
        (b"chunked", b"chunkedly"),
        (b"keep-alive", b"close"),
        (b"content-length: 9", b"content-length: -9"),
        (b"content-length: 9", b"content-length: " + b"9" * 16),
        (b"\nx", b"\ny"),
        (b"9\r\n", b"9 \r\n"),
        (b"9\r\n", b"9\n"),
        (b"9\r\n", b"9\r\n 9\r\n"),
        (b"9\r\n", b"9\r\nx: y\r\n"),
        (b"9\r\n", b"9\0\r\n"),
        (b"9\r\n", b"9\x85\r\n"),
        (b"\r\n\r\n", b"\r\n"),
    ):
        assert data.replace(before, after, 1) == data or read_head(data.replace(before, after, 1)) is None, after


def test_blanks_behind_a_value_are_no_part_of_it() -> None:
    """However often such a head comes."""
    for _ in range(2 * MAX_LAYOUTS):
        head = read_head(SIZED + b"x-blank: a \r\n\r\n")
        assert head is not None
        assert head[1]["x-blank"] == "a"
    assert ["content-length", "x-blank"] not in [layout.names for layout in plain_answer._LAYOUTS]


def test_what_is_known_of_heads_has_an_end() -> None:
    """A provider can say what it likes, and say it for ever; of what it says only once there is no layout."""
    for _ in range(2):
        for number in range(3 * MAX_LAYOUTS):
            assert read_head(b"HTTP/1.1 200 N\r\nContent-Length: 4\r\nX-%d: %d\r\n\r\n" % (number, number))
    assert "x-0" not in {layout.names[-1] for layout in plain_answer._LAYOUTS}
    for number in range(3 * MAX_LAYOUTS):
        for _ in range(3):
            assert read_head(b"HTTP/1.1 200 N\r\nContent-Length: 4\r\nX-%d: %d\r\n\r\n" % (number, number))
    assert plain_answer._LAYOUTS[0].names == ["content-length", f"x-{3 * MAX_LAYOUTS - 1}"]
    assert len(plain_answer._LAYOUTS) == MAX_LAYOUTS
    assert len(plain_answer._ONCE) <= MAX_LAYOUTS


def test_heads_of_several_providers_are_known_at_once() -> None:
    """The one that was read last is looked for first."""
    heads = [b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nX-Of-%d: 1\r\n\r\n" % number for number in range(5)]
    for _ in range(3):
        for number, data in enumerate(heads):
            head = read_head(data)
            assert head is not None
            assert head[1] == {"content-length": "4", f"x-of-{number}": "1"}
    assert [layout.names[-1] for layout in plain_answer._LAYOUTS[:5]] == [f"x-of-{4 - number}" for number in range(5)]


# --- bodies


def read(framing: Sized | Chunked, *reads: bytes) -> list[bytes]:
    """Return what each read has of a body, up to the first odd one."""
    got = []
    for data in reads:
        got.append(framing.feed(data))
        if framing.is_over:
            break
    return got


def test_a_body_with_a_length_ends_where_it_was_said_to() -> None:
    """What is behind it is odd."""
    framing = Sized(6)
    assert read(framing, b"one", b"two") == [b"one", b"two"]
    assert (framing.is_over, framing.has_ended, framing.odd) == (True, True, b"")
    framing = Sized(6)
    assert read(framing, b"on", b"etwothree") == [b"on", b"etwo"]
    assert (framing.is_over, framing.has_ended, framing.odd) == (True, True, b"three")
    assert Sized(0).has_ended


@pytest.mark.parametrize("size", [1, 9, 10, 15, 16, 17, 255, 256, 257, 4095, 4096, 4097, 70_000])
def test_a_read_of_one_chunk_is_what_is_in_it(size: int) -> None:
    """However long its size line is, in digits of either case."""
    for data in (chunk(b"x" * size), b"%X\r\n%b\r\n" % (size, b"x" * size)):
        framing = Chunked()
        assert read(framing, data, data, END) == [b"x" * size, b"x" * size, b""]
        assert (framing.is_over, framing.has_ended, framing.odd) == (True, True, b"")


@pytest.mark.parametrize("size", range(300))
def test_a_read_that_is_no_chunk_is_not_taken_for_one(size: int) -> None:
    """Its length alone says nothing."""
    framing = Chunked()
    assert framing.feed(b"-" * size + b"\r\n") == b""
    assert framing.odd == b"-" * size + b"\r\n"
    framing = Chunked()
    assert framing.feed(bytes(size)) == b""
    assert framing.odd == bytes(size)


def test_chunks_may_be_cut_at_every_byte() -> None:
    """And there it can be gone on by another reader, from what stands in for what was read."""
    body = chunk(b"one") + chunk(b"x" * 20) + b"0A\r\n".lstrip(b"0") + b"0123456789\r\n" + END
    whole = b"one" + b"x" * 20 + b"0123456789"
    for at in range(len(body) + 1):
        framing = Chunked()
        first = framing.feed(body[:at])
        assert whole.startswith(first)
        assert not framing.odd
        if not framing.is_over:
            for unseen in (b"", first):
                stand_in, seen = framing.stand_in(unseen)
                assert stand_in.startswith(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                other = Chunked()
                again = other.feed(stand_in.partition(b"\r\n\r\n")[2] + body[at:])
                assert (other.has_ended, other.odd) == (True, b"")
                assert again[seen:] == (unseen or b"") + whole[len(first) :]
            assert first + framing.feed(body[at:]) == whole
        assert framing.has_ended


@pytest.mark.parametrize(
    "odd",
    [
        b"3;a=b\r\nodd\r\n", b"3 \r\nodd\r\n", b" 3\r\nodd\r\n", b"+3\r\nodd\r\n", b"0x3\r\nodd\r\n", b"3_0\r\n",
        b"-1\r\n", b"03\r\nodd\r\n", b"3\nodd\n", b"\r\n3\r\nodd\r\n", b"123456789\r\n", b"g\r\n", b"0\r\nx: y\r\n\r\n",
        b"00\r\n\r\n", b"0;a\r\n\r\n", END + b"more", END + END, b"\r\n", b"0 \r\n\r\n", b"\xb2\r\n",
    ],
)  # fmt: skip
def test_what_is_not_a_plain_chunk_is_odd(odd: bytes) -> None:
    """All of it and all behind it, and nothing before it."""
    for before, after in ((b"", b""), (chunk(b"one"), b""), (chunk(b"one"), chunk(b"two") + END)):
        framing = Chunked()
        assert framing.feed(before + odd + after) == (b"one" if before else b"")
        assert (framing.is_over, framing.has_ended, framing.odd) == (True, False, odd + after)
        framing = Chunked()
        got = b"".join(read(framing, *[(before + odd + after)[at : at + 1] for at in range(len(before + odd + after))]))
        assert got == (b"one" if before else b"")
        assert framing.is_over
        assert framing.has_ended == odd.startswith(END), "what is behind the end came in a read of its own"


def test_a_size_line_is_not_read_without_its_begin() -> None:
    """What is left of it may look like a chunk."""
    framing = Chunked()
    assert read(framing, b"0", b"5\r\nhello\r\n") == [b"", b""]
    assert framing.odd == b"05\r\nhello\r\n"


@pytest.mark.parametrize("line_break", [b"\n\r", b"xx", b"\rx", b"\r\r", b"\n"])
def test_a_chunk_that_does_not_end_as_it_should_is_odd_from_there(line_break: bytes) -> None:
    """What was in it is not taken back."""
    data = b"3\r\none" + line_break
    framing = Chunked()
    assert framing.feed(data + b"3\r\ntwo\r\n") == b"one"
    assert framing.odd.endswith(b"3\r\ntwo\r\n")
    stand_in, seen = framing.stand_in(b"")
    assert (stand_in + framing.odd).endswith(b"1\r\n." + line_break + b"3\r\ntwo\r\n")
    assert seen == 1


@pytest.mark.parametrize("seed", range(20))
def test_the_reads_do_not_matter(seed: int) -> None:
    """Nor how the chunks were made."""
    rng = random.Random(seed)  # noqa: S311, no secret
    pieces = [rng.randbytes(rng.choice([1, 2, 16, 200, 5000])) for _ in range(30)]
    data = b"".join([chunk(piece) for piece in pieces]) + END
    framing, got, at = Chunked(), b"", 0
    while at < len(data):
        size = rng.choice([1, 2, 3, 20, 250, 6000])
        got += framing.feed(data[at : at + size])
        at += size
        assert framing.is_over == (at >= len(data))
    assert (got, framing.has_ended, framing.odd) == (b"".join(pieces), True, b"")


@pytest.mark.parametrize("unseen", [b"", b"one"])
def test_another_reader_can_go_on_with_a_body_that_has_a_length(unseen: bytes) -> None:
    """It is told what is left."""
    framing = framing_of(SIZED + b"\r\n")
    framing.feed(b"on")
    stand_in, seen = framing.stand_in(unseen)
    assert stand_in == b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (2 + len(unseen), unseen)
    assert seen == 0
