"""A small real server that plays a script of bytes: send, wait, stall, cut, refuse.

A script is a list of steps: ``bytes`` are sent, a number waits so many seconds, an ``asyncio.Event`` waits until the
test sets it, ``"stall"`` waits until the other side has left, ``"fin"`` closes and ``"rst"`` resets the connection. A
script that ends by itself leaves the connection open for the next request. What is sent is counted when the kernel has
taken it.

Where a test does something in the middle of a stream the script waits for an event: no number of seconds is enough for
a machine that stands still.
"""

import asyncio
import json
import socket
import ssl
import struct
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeAlias, cast

from tests.eventually import eventually

Step: TypeAlias = bytes | float | asyncio.Event | Literal["stall", "fin", "rst"]
Script: TypeAlias = Sequence[Step]

STREAM: Final = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
CLOSE_DELIMITED: Final = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
END: Final = b"0\r\n\r\n"
PING: Final = b": ping\n\n"
DONE: Final = b"data: [DONE]\n\n"

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
_PIECE_BYTES: Final = 16 * 1024


def chunk(*pieces: bytes) -> bytes:
    """Return the pieces as one chunk of a chunked body."""
    data = b"".join(pieces)
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(document: object) -> bytes:
    """Return a document as a server-sent event."""
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def openai_chunk(delta: dict[str, Any], finish_reason: str | None = None, **more: object) -> bytes:
    """Return one event of OpenAI's stream."""
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "mill"}
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return event({**head, "choices": [choice], **more})


ROLE: Final = openai_chunk({"role": "assistant", "content": ""})
FINISH: Final = openai_chunk({}, "stop")


def text(*words: str) -> bytes:
    """Return one event of OpenAI's stream for each word."""
    return b"".join(openai_chunk({"content": word}) for word in words)


def complete(*words: str) -> list[Step]:
    """Return the script of a stream that goes well."""
    return [STREAM + chunk(ROLE, text(*words), FINISH, DONE) + END]


def answer(status: int, body: bytes | object, **headers: str) -> bytes:
    """Return a whole HTTP answer; a body that is not bytes becomes JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {"content_type": "application/json", "content_length": str(len(data)), **headers}
    lines = [f"HTTP/1.1 {status} Said", *(f"{name.replace('_', '-')}: {value}" for name, value in named.items())]
    return "\r\n".join([*lines, "", ""]).encode() + data


@dataclass(slots=True)
class Received:
    """One request as it came, and the connection that it came on."""

    head: str
    body: bytes
    connection: int
    bytes_sent: int = 0
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    async def rest(self) -> int:
        """Return how many bytes were sent, as soon as no more are."""
        seen = [-2, -1]

        def look() -> bool:
            seen.append(self.bytes_sent)
            return seen[-1] == seen[-2] == seen[-3]

        await eventually(look, every_s=0.1)
        return self.bytes_sent

    @property
    def headers(self) -> dict[str, str]:
        """The headers, by lower-case name."""
        lines = (line.partition(":") for line in self.head.split("\r\n")[1:] if line)
        return {name.lower(): value.strip() for name, _, value in lines}

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


class ScriptedUpstream:
    """A provider whose every byte is scripted: scripts are used up one per request, and the last one stays."""

    def __init__(self, *scripts: Script, tls: "Certificate | None" = None, has_small_buffers: bool = False) -> None:
        self._scripts = list(scripts) or [complete("Hello")]
        self._tls = tls
        self._has_small_buffers = has_small_buffers
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()
        self.requests: list[Received] = []
        self.connection_count = 0
        self.port = 0

    async def __aenter__(self) -> Self:
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if self._has_small_buffers:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _PIECE_BYTES)
        listening.bind(("127.0.0.1", 0))
        context = self._tls.server_context() if self._tls else None
        self._server = await asyncio.get_running_loop().create_server(
            self._connect, sock=listening, backlog=4096, ssl=context
        )
        self.port = listening.getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        await asyncio.gather(*(connection.stop() for connection in list(self._connections)))

    @property
    def url(self) -> str:
        """The base URL for a provider that speaks OpenAI's wire."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}/v1"

    async def request(self, number: int = 0, *, timeout_s: float = 30) -> Received:
        """Return the request of this number, as soon as it has come."""
        async with asyncio.timeout(timeout_s):
            while len(self.requests) <= number:  # noqa: ASYNC110, a test may poll
                await asyncio.sleep(0.005)
        return self.requests[number]

    def _connect(self) -> "_Connection":
        self.connection_count += 1
        return _Connection(self._connections, self.connection_count, self._take)

    def _take(self, received: Received) -> Script:
        self.requests.append(received)
        return self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]


class _Connection(asyncio.Protocol):
    """One connection: collects what comes, and plays the script of each request."""

    def __init__(self, open_ones: set["_Connection"], number: int, take: Callable[[Received], Script]) -> None:
        self._open_ones = open_ones
        self._number = number
        self._take = take
        self._buffer = bytearray()
        self._has_come = asyncio.Event()
        self._can_write = asyncio.Event()
        self._can_write.set()
        self._received: Received | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one without being an instance
        self._transport.set_write_buffer_limits(0)
        self._open_ones.add(self)
        self._playing = asyncio.ensure_future(self._converse())

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._has_come.set()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002, the signature of a protocol
        self._open_ones.discard(self)
        self._playing.cancel()
        if self._received is not None:
            self._received.gone.set()

    def pause_writing(self) -> None:
        self._can_write.clear()

    def resume_writing(self) -> None:
        self._can_write.set()

    async def stop(self) -> None:
        """Break the connection off."""
        self._transport.abort()
        self._playing.cancel()
        await asyncio.gather(self._playing, return_exceptions=True)

    async def _converse(self) -> None:
        while not self._transport.is_closing():
            head = (await self._read_until(b"\r\n\r\n")).decode("latin-1")
            received = self._received = Received(head, b"", self._number)
            received.body = await self._read(int(received.headers.get("content-length", "0")))
            for step in self._take(received):
                await self._play(step, received)

    async def _play(self, step: Step, received: Received) -> None:
        match step:
            case bytes():
                for start in range(0, len(step), _PIECE_BYTES):
                    piece = step[start : start + _PIECE_BYTES]
                    self._transport.write(piece)
                    await self._can_write.wait()
                    received.bytes_sent += len(piece)
            case asyncio.Event():
                await step.wait()
            case "stall":
                await asyncio.get_running_loop().create_future()
            case "fin":
                self._transport.close()
            case "rst":
                sock = self._transport.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                self._transport.abort()
            case _:
                await asyncio.sleep(step)

    async def _read_until(self, mark: bytes) -> bytes:
        while mark not in self._buffer:
            await self._more()
        return await self._read(self._buffer.index(mark) + len(mark))

    async def _read(self, size: int) -> bytes:
        while len(self._buffer) < size:
            await self._more()
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    async def _more(self) -> None:
        self._has_come.clear()
        await self._has_come.wait()


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate for 127.0.0.1 that signs itself, and so is its own authority."""

    certificate: Path
    key: Path

    @classmethod
    def make(cls, folder: Path) -> Self:
        """Make one with the command ``openssl``; raises ``FileNotFoundError`` where there is none."""
        made = cls(folder / "certificate.pem", folder / "key.pem")
        subject = ["-subj", "/CN=scripted upstream", "-addext", "subjectAltName=IP:127.0.0.1"]
        files = ["-keyout", str(made.key), "-out", str(made.certificate)]
        options = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
        subprocess.run(["openssl", "req", *options, *subject, *files], check=True, capture_output=True)  # noqa: S603, S607
        return made

    def server_context(self) -> ssl.SSLContext:
        """Return what a server needs."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context

    def client_context(self) -> ssl.SSLContext:
        """Return what a client needs that trusts this certificate."""
        return ssl.create_default_context(cafile=str(self.certificate))


def config_over(
    *upstreams: ScriptedUpstream, server: Mapping[str, Any] | None = None, **more: object
) -> dict[str, Any]:
    """Return a gateway's configuration over these providers, in which every attempt is made once."""
    names = [f"up{number or ''}" for number in range(len(upstreams))]
    return {
        "server": dict(server or {}),
        "providers": {
            name: {"kind": "openai-compatible", "base_url": upstream.url, "api_key": "sk-canary-0123456789abcdef"}
            for name, upstream in zip(names, upstreams, strict=True)
        },
        "models": {"chat": {"targets": [f"{name}/mill" for name in names]}},
        "middleware": [
            {"use": "middleware.observe.Observe"},
            {"use": "middleware.auth.Auth"},
            {"use": "middleware.fallback.Fallback"},
        ],
        **more,
    }


def words(count: int) -> list[str]:
    """Return so many different words."""
    return [f"w{number} " for number in range(count)]


def texts_of(body: bytes) -> Iterator[str]:
    """Yield the text of each content delta in the body of OpenAI's stream."""
    for line in body.split(b"\n"):
        if line.startswith(b"data: {"):
            for choice in json.loads(line[6:]).get("choices", ()):
                if content := choice["delta"].get("content"):
                    yield content


async def pace(token_count: int, interval_s: float) -> None:
    """Serve a stream of words, one every ``interval_s``, and print the port: an upstream in a process of its own."""
    steps: list[Step] = [step for word in words(token_count) for step in (interval_s, chunk(text(word)))]
    async with ScriptedUpstream([STREAM + chunk(ROLE), *steps, chunk(FINISH, DONE) + END]) as upstream:
        print(upstream.port, flush=True)  # noqa: T201, it is what the parent waits for
        await asyncio.get_running_loop().create_future()
