"""A client that sees the bytes: what an HTTP library would hide or mend is just what some tests are about."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A response as it came. ``is_whole`` says whether its body ended as its headers promised."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    is_whole: bool

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        """What an error body says; the test fails when it is not exactly OpenAI's shape, on one line."""
        assert b"\n" not in self.body
        assert self.headers["content-type"].startswith("application/json")
        assert list(self.json) == ["error"]
        assert self.json["error"].keys() == {"message", "type", "param", "code"}
        return self.json["error"]


class RawClient:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.seen = b""

    async def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.writer.write(data)
        await self.writer.drain()

    async def read_until(self, mark: bytes, *, timeout_s: float = TIMEOUT_S) -> bytes:
        """Read on until ``mark`` has been seen; returns all that was read so far."""
        async with asyncio.timeout(timeout_s):
            while mark not in self.seen:
                data = await self.reader.read(65536)
                assert data, f"closed after {self.seen!r}"
                self.seen += data
        return self.seen

    async def read_all(self, *, timeout_s: float = TIMEOUT_S) -> bytes:
        """Read to the end of the connection; returns all that was read so far."""
        async with asyncio.timeout(timeout_s):
            try:
                while data := await self.reader.read(65536):
                    self.seen += data
            except ConnectionError:
                pass
        return self.seen

    async def answer(self, *, timeout_s: float = TIMEOUT_S) -> Answer:
        """Read one response with a body of known length; the connection may serve another."""
        head = await self.read_until(b"\r\n\r\n", timeout_s=timeout_s)
        size = int(parse(head).headers.get("content-length", "0"))
        begin = head.index(b"\r\n\r\n") + 4
        async with asyncio.timeout(timeout_s):
            while len(self.seen) < begin + size:
                data = await self.reader.read(65536)
                assert data, f"closed after {self.seen!r}"
                self.seen += data
        found = parse(self.seen[: begin + size])
        self.seen = self.seen[begin + size :]
        return found

    def abort(self) -> None:
        """Hang up at once."""
        self.writer.transport.abort()


@asynccontextmanager
async def connected(url: str, *, limit: int = 65536) -> AsyncIterator[RawClient]:
    """Connect to the host of ``url``."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=limit)
    try:
        yield RawClient(reader, writer)
    finally:
        writer.transport.abort()
        await asyncio.sleep(0)


def request(
    path: str, body: object = None, *, method: str = "POST", version: str = "1.1", **headers: str | None
) -> bytes:
    """Return a request's bytes; a header that is ``None`` is left out, a body that is not bytes becomes JSON."""
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    named: dict[str, str | None] = {"host": "127.0.0.1", "content_length": str(len(data)), **headers}
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in named.items() if value is not None]
    return "\r\n".join([f"{method} {path} HTTP/{version}", *lines, "", ""]).encode("latin-1") + data


async def exchange(url: str, data: bytes, *, timeout_s: float = TIMEOUT_S) -> Answer:
    """Send ``data`` and return the one response, read to the end of the connection or of what it promised."""
    async with connected(url) as client:
        await client.send(data)
        async with asyncio.timeout(timeout_s):
            while not (client.seen and _is_over(client.seen)):
                try:
                    more = await client.reader.read(65536)
                except ConnectionError:
                    break
                if not more:
                    break
                client.seen += more
        return parse(client.seen)


def parse(seen: bytes) -> Answer:
    """Read a response's bytes."""
    head, _, rest = seen.partition(b"\r\n\r\n")
    status_line, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    status = int(status_line.split(" ")[1])
    if headers.get("transfer-encoding") == "chunked":
        body, is_whole = dechunked(rest)
    else:
        body, is_whole = rest, len(rest) == int(headers.get("content-length", "0"))
    return Answer(status, headers, body, is_whole)


def dechunked(data: bytes) -> tuple[bytes, bool]:
    """Return a chunked body as far as it came, and whether its last chunk came too."""
    pieces: list[bytes] = []
    while b"\r\n" in data:
        line, _, data = data.partition(b"\r\n")
        size = int(line, 16)
        if size == 0:
            return b"".join(pieces), data.startswith(b"\r\n")
        pieces.append(data[:size])
        data = data[size + 2 :]
    return b"".join(pieces), False


def _is_over(seen: bytes) -> bool:
    return b"\r\n\r\n" in seen and parse(seen).is_whole


def chat(content: str = "Hello", *, model: str = "chat", stream: bool = True, **more: object) -> dict[str, object]:
    """Return the body of a call."""
    return {"model": model, "stream": stream, "messages": [{"role": "user", "content": content}], **more}
