"""Faults are what they say on the raw socket: FIN, RST, a clean end, close-delimited, split bytes."""

import asyncio
import json

import pytest

from gateway.simulator import Record, Script, Simulator

QUICK = Script(first_token_s=0, interval_s=0)
BODY = {"model": "mill", "stream": True, "messages": [{"role": "user", "content": "What does a weir do?"}]}
LAST_CHUNK = b"0\r\n\r\n"


class Raw:
    """What came over one connection, byte for byte, and how it ended."""

    def __init__(self, data: bytes, error: Exception | None) -> None:
        self.head, _, self.rest = data.partition(b"\r\n\r\n")
        self.is_reset = isinstance(error, ConnectionResetError)

    def chunks(self) -> list[bytes]:
        """Return the chunks of a chunked body, whole ones only."""
        chunks, rest = [], self.rest
        while b"\r\n" in rest:
            size, _, rest = rest.partition(b"\r\n")
            length = int(size, 16)
            if length == 0 or len(rest) < length + 2:
                break
            chunks.append(rest[:length])
            rest = rest[length + 2 :]
        return chunks


async def converse(port: int, script: str, *, path: str = "/v1/chat/completions", stream: bool = True) -> Raw:
    """Send one request by hand and read until the connection ends or the body does."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = json.dumps({**BODY, "model": f"mill?{script}", "stream": stream}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    data, error = bytearray(), None
    try:
        async with asyncio.timeout(20):
            while received := await reader.read(65536):
                data += received
                if data.endswith(LAST_CHUNK):
                    break
    except ConnectionResetError as reset:
        error = reset
    writer.close()
    return Raw(bytes(data), error)


async def ended(simulator: Simulator) -> Record:
    """Wait until the last request has ended."""
    async with asyncio.timeout(20):
        while simulator.requests[-1].outcome == "open":  # noqa: ASYNC110 - a record has no event
            await asyncio.sleep(0.005)
    return simulator.requests[-1]


def text_of(body: bytes) -> str:
    """Return the text of all whole events."""
    lines = [line[6:] for line in body.split(b"\n\n") if line.startswith(b"data: {") and line.endswith(b"}")]
    deltas = [choice["delta"] for line in lines for choice in json.loads(line)["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas)


async def test_a_whole_answer_ends_with_the_last_chunk_and_keeps_the_connection() -> None:
    """No fault: chunked, `[DONE]`, and the zero chunk."""
    async with Simulator(default=QUICK) as simulator:
        raw = await converse(await _port(simulator), "")
        assert b"transfer-encoding: chunked" in raw.head.lower()
        assert b"connection: close" not in raw.head.lower()
        assert raw.rest.endswith(b"data: [DONE]\n\n\r\n" + LAST_CHUNK)
        assert (await ended(simulator)).outcome == "finished"


async def test_a_cut_with_fin_has_no_last_chunk() -> None:
    """The tokens arrive, then the connection is closed in mid-body."""
    async with Simulator(default=QUICK) as simulator:
        raw = await converse(await _port(simulator), "cut_after_tokens=20&cut=fin")
        whole = await converse(await _port(simulator), "")
        assert not raw.is_reset
        assert not raw.rest.endswith(LAST_CHUNK)
        text = text_of(b"".join(raw.chunks()))
        assert text
        assert text_of(b"".join(whole.chunks())).startswith(text)
        first = simulator.requests[0]
        assert (first.outcome, first.tokens_sent) == ("cut", 20)


async def test_a_cut_with_rst_resets_after_the_tokens_have_arrived() -> None:
    """The reader gets every byte that was sent, and then a reset."""
    async with Simulator(default=QUICK) as simulator:
        raw = await converse(await _port(simulator), "cut_after_tokens=20&cut=rst")
        assert raw.is_reset
        record = await ended(simulator)
        assert (record.outcome, record.tokens_sent) == ("cut", 20)
        assert len(b"".join(raw.chunks())) == record.bytes_sent


async def test_a_clean_cut_looks_like_a_proper_end() -> None:
    """The zero chunk is there, the end marker is not."""
    async with Simulator(default=QUICK) as simulator:
        raw = await converse(await _port(simulator), "cut_after_tokens=20&cut=clean")
        assert raw.rest.endswith(LAST_CHUNK)
        assert b"[DONE]" not in raw.rest
        assert (await ended(simulator)).outcome == "cut"


@pytest.mark.parametrize("count", [0, 1, 100, 777])
async def test_a_cut_after_bytes_sends_exactly_those(count: int) -> None:
    """Counted in the body, without the framing of chunks."""
    async with Simulator(default=QUICK) as simulator:
        raw = await converse(await _port(simulator), f"cut_after_bytes={count}")
        assert len(b"".join(raw.chunks())) == count
        assert (await ended(simulator)).bytes_sent == count


async def test_a_close_delimited_body_has_neither_chunks_nor_length() -> None:
    """It ends with the connection, whole or cut: nobody can tell."""
    async with Simulator(default=QUICK) as simulator:
        port = await _port(simulator)
        whole = await converse(port, "close_delimited")
        assert b"transfer-encoding" not in whole.head.lower()
        assert b"content-length" not in whole.head.lower()
        assert b"connection: close" in whole.head.lower()
        assert whole.rest.endswith(b"data: [DONE]\n\n")
        cut = await converse(port, "close_delimited&cut_after_bytes=500")
        assert len(cut.rest) == 500
        assert not cut.is_reset


async def test_split_bytes_are_chunks_of_that_size() -> None:
    """Characters and line ends are split, and together it is the same body."""
    async with Simulator(default=QUICK) as simulator:
        port = await _port(simulator)
        split, whole = await converse(port, "split_bytes=3&token_count=30"), await converse(port, "token_count=30")
        chunks = split.chunks()
        assert {len(chunk) for chunk in chunks[:-1]} == {3}
        assert text_of(b"".join(chunks)) == text_of(b"".join(whole.chunks()))


@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_a_refused_request_gets_no_answer(how: str) -> None:
    """Not one byte."""
    async with Simulator(default=QUICK) as simulator:
        raw = await converse(await _port(simulator), f"refuse={how}")
        assert raw.head == b""
        assert raw.is_reset is (how == "rst")
        assert (await ended(simulator)).outcome == "refused"


async def test_a_paced_stream_sends_one_write_per_token() -> None:
    """With an interval, each token is its own chunk."""
    async with Simulator(default=Script(first_token_s=0.01, interval_s=0.005)) as simulator:
        raw = await converse(await _port(simulator), "token_count=10")
        assert len(raw.chunks()) >= 10


async def test_the_head_is_sent_before_the_first_token() -> None:
    """A stall before the first token is one after the status line; `head_s` is one before it."""
    async with Simulator(default=QUICK) as simulator:
        port = await _port(simulator)
        for script, has_head in (("stall_after=0", True), ("head_s=3600", False)):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            body = json.dumps({**BODY, "model": f"mill?{script}"}).encode()
            writer.write(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            )
            try:
                async with asyncio.timeout(30 if has_head else 0.5):
                    received = await reader.readuntil(b"\r\n\r\n")
            except TimeoutError:
                received = b""
            assert received.startswith(b"HTTP/1.1 200") is has_head
            writer.close()


@pytest.mark.parametrize("fault", ["cut_after_bytes=100", "cut_in=text", "malformed_after=0", "split_bytes=7"])
async def test_an_answer_asked_for_whole_breaks_too(fault: str) -> None:
    """The JSON arrives in part, or in pieces."""
    async with Simulator(default=QUICK) as simulator:
        raw = await converse(await _port(simulator), fault, stream=False)
        body = b"".join(raw.chunks())
        assert body.startswith(b'{"id":')
        if fault == "split_bytes=7":
            assert json.loads(body)["choices"][0]["finish_reason"] == "stop"
        else:
            with pytest.raises(json.JSONDecodeError):
                json.loads(body)


async def _port(simulator: Simulator) -> int:
    return int(simulator.origin.rpartition(":")[2])
