"""What the gateway adds to a token stream, beside nginx where it is installed: ``make bench``.

A paced upstream writes tokens that carry their number and the moment of their writing; a load of clients reads them
through the gateway with its default chain, checks that none is lost, doubled or out of order, and takes their times.
The processor time is that of the gateway's process alone, so that busy clients do not distort it; the ratio to nginx,
which relays the same bytes unread, holds when the machine's speed drifts. Prints a table, writes ``benchmark.json``.
"""

import argparse
import asyncio
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import cast
from urllib.request import urlopen

import uvloop

TOKEN_COUNT = 100
INTERVAL_S = 0.02
_TOKEN = re.compile(rb"(\d+)@(\d+);")
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_CHUNK = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"bench","choices":'
    b'[{"index":0,"delta":%b,"logprobs":null,"finish_reason":%b}]}\n\n'
)


# --- the upstream, a process of its own -------------------------------------------------------------------------------


class PacedUpstream(asyncio.Protocol):
    """Answers every request with a stream of ``TOKEN_COUNT`` tokens, one every ``INTERVAL_S``."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        self._received = b""

    def data_received(self, data: bytes) -> None:
        """Answer when the body is there; it ends with the object that it is."""
        self._received += data
        if self._received.endswith(b"}"):
            self._received = b""
            first = _CHUNK % (b'{"role":"assistant","content":""}', b"null")
            self._transport.write(_HEAD + _framed(first))
            self._send(0, self._loop.time() + INTERVAL_S)

    def _send(self, number: int, due_at_s: float) -> None:
        if self._transport.is_closing():
            return
        if number == TOKEN_COUNT:
            last = _CHUNK % (b"{}", b'"stop"')
            self._transport.write(_framed(last) + _framed(b"data: [DONE]\n\n") + b"0\r\n\r\n")
            return
        token = b'{"content":"%d@%d;"}' % (number, time.monotonic_ns())
        self._transport.write(_framed(_CHUNK % (token, b"null")))
        self._loop.call_at(due_at_s + INTERVAL_S, self._send, number + 1, due_at_s + INTERVAL_S)


def _framed(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def serve_upstream() -> None:
    """Serve until killed; prints the port."""
    server = await asyncio.get_running_loop().create_server(PacedUpstream, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)  # noqa: T201, the parent reads it
    await server.serve_forever()


# --- the load ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Tally:
    """What all clients have seen."""

    token_count: int = 0
    fault_count: int = 0
    ttft_s: list[float] = field(default_factory=list)
    transit_s: list[float] = field(default_factory=list)


class Client(asyncio.Protocol):
    """Asks for one stream after the other, until told to stop."""

    def __init__(self, request: bytes, tally: Tally) -> None:
        self._request = request
        self._tally = tally
        self._tail = b""
        self._next = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the first stream."""
        self.transport = cast("asyncio.Transport", transport)
        self._ask()

    def _ask(self) -> None:
        self._tail, self._next = b"", 0
        self._asked_at_ns = time.monotonic_ns()
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Check and time every token."""
        now_ns, tally = time.monotonic_ns(), self._tally
        data = self._tail + data
        end = 0
        for token in _TOKEN.finditer(data):
            end = token.end()
            if int(token[1]) != self._next:
                tally.fault_count += 1
            if self._next == 0:
                tally.ttft_s.append((now_ns - self._asked_at_ns) / 1e9)
            self._next = int(token[1]) + 1
            tally.token_count += 1
            tally.transit_s.append((now_ns - int(token[2])) / 1e9)
        self._tail = data[end:][-2048:]
        if data.endswith(b"\r\n0\r\n\r\n"):
            tally.fault_count += b"[DONE]" not in data or self._next != TOKEN_COUNT
            self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        """An end that nobody asked for is a fault."""
        self._tally.fault_count += exc is not None


async def load(port: int, stream_count: int, seconds: float, processor_s: Callable[[], float]) -> tuple[Tally, float]:
    """Run ``stream_count`` clients and return what they saw, and the processor seconds it took."""
    body = b'{"model":"bench","stream":true,"messages":[{"role":"user","content":"Tell me about the stars."}]}'
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:%d\r\ncontent-length: %d\r\n\r\n" % (port, len(body))
    tally, loop = Tally(), asyncio.get_running_loop()
    clients = []
    for _ in range(stream_count):
        make = partial(Client, head + body, tally)
        clients.append((await loop.create_connection(make, "127.0.0.1", port))[1])
        await asyncio.sleep(1.5 / stream_count)
    tally.token_count = 0
    tally.ttft_s.clear()
    tally.transit_s.clear()
    before_s = processor_s()
    await asyncio.sleep(seconds)
    spent_s = processor_s() - before_s
    for client in clients:
        client.transport.abort()
    return tally, spent_s


# --- the processes ----------------------------------------------------------------------------------------------------


def processor_s(pid: int) -> float:
    """Return the processor time of a process and its children, in seconds."""
    return sum(int(fields[11]) + int(fields[12]) for fields in _family(pid)) / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int) -> float:
    """Return the resident memory of a process and its children."""
    return sum(int(fields[21]) for fields in _family(pid)) * os.sysconf("SC_PAGESIZE") / 2**20


def _family(pid: int) -> Iterator[list[str]]:
    """Yield what the system says of a process and its children, from the state on."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(stat.parent.name) == pid or int(fields[1]) == pid:
            yield fields


@contextmanager
def gateway(upstream: int, folder: Path) -> Iterator[tuple[int, int]]:
    """Run the gateway over the upstream; yields its port and process id."""
    config = folder / "millrace.yaml"
    config.write_text(
        "server: {port: 0, admin_port: 0}\n"
        f'providers: {{up: {{kind: openai-compatible, base_url: "http://127.0.0.1:{upstream}/v1"}}}}\n'
        "models: {bench: {targets: [up/bench]}}\n"
        "telemetry: {log_level: warning}\n"
    )
    command = [sys.executable, "-m", "gateway", "serve", "--config", str(config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline().rstrip("/\n").rpartition(":")[2])
        try:
            yield port, process.pid
        finally:
            process.terminate()


@contextmanager
def nginx(upstream: int, folder: Path) -> Iterator[tuple[int, int]]:
    """Run nginx as an unbuffered proxy of the upstream; yields its port and process id."""
    port = 20_000 + os.getpid() % 20_000
    config = folder / "nginx.conf"
    config.write_text(
        f"worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.log;\n"
        "events { worker_connections 8192; }\n"
        f"http {{ access_log off; upstream up {{ server 127.0.0.1:{upstream}; keepalive 1024; }}\n"
        f"server {{ listen 127.0.0.1:{port} backlog=4096; keepalive_requests 1000000; location / {{\n"
        'proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; } } }\n'
    )
    with subprocess.Popen(["nginx", "-c", str(config)], stderr=subprocess.DEVNULL) as process:
        try:
            yield port, process.pid
        finally:
            process.terminate()


# --- the table --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement; times in milliseconds, processor time in microseconds."""

    side: str
    streams: int
    tokens_per_s: float
    processor_us_per_token: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    transit_p50_ms: float
    transit_p99_ms: float
    resident_mib: float
    fault_count: int


def measure(side: str, place: tuple[int, int], stream_count: int, seconds: float) -> Row:
    """Load one side and return what was seen."""
    port, pid = place
    tally, spent_s = uvloop.run(load(port, stream_count, seconds, partial(processor_s, pid)))
    return Row(
        side,
        stream_count,
        round(tally.token_count / seconds),
        round(spent_s * 1e6 / max(1, tally.token_count), 1),
        _quantile_ms(tally.ttft_s, 0.5),
        _quantile_ms(tally.ttft_s, 0.99),
        _quantile_ms(tally.transit_s, 0.5),
        _quantile_ms(tally.transit_s, 0.99),
        round(resident_mib(pid), 1),
        tally.fault_count,
    )


def _quantile_ms(values_s: list[float], share: float) -> float:
    ordered = sorted(values_s)
    return round(1000 * ordered[int(len(ordered) * share)], 2) if ordered else float("nan")


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", default="100,300", help="how many at once, several with commas")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmark.json"))
    options = parser.parse_args()
    code = "import uvloop; from tests.benchmarks.relay import serve_upstream; uvloop.run(serve_upstream())"
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as upstream,
    ):
        assert upstream.stdout is not None
        try:
            rows = run(int(upstream.stdout.readline()), Path(folder), options)
        finally:
            upstream.kill()
    options.out.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def run(upstream: int, folder: Path, options: argparse.Namespace) -> list[Row]:
    """Measure both sides in turn, and print each row as it comes."""
    rows: list[Row] = []
    with gateway(upstream, folder) as ours:
        sides = {"gateway": ours}
        with nginx(upstream, folder) if shutil.which("nginx") else _nothing() as theirs:
            if theirs is not None:
                sides["nginx"] = theirs
                _wait_for(theirs[0])
            print(" ".join(f"{name:>22}" for name in Row.__slots__))  # noqa: T201
            for stream_count in map(int, options.streams.split(",")):
                for _ in range(options.rounds):
                    for side, place in sides.items():
                        rows.append(measure(side, place, stream_count, options.seconds))
                        print(" ".join(f"{value!s:>22}" for value in asdict(rows[-1]).values()))  # noqa: T201
                if "nginx" in sides:
                    print(f"{stream_count} streams: {ratio(rows, stream_count):.2f} times nginx's processor time")  # noqa: T201
    return rows


def ratio(rows: list[Row], stream_count: int) -> float:
    """Return the gateway's processor time per token over nginx's, the median of the rounds."""
    times = {
        side: [row.processor_us_per_token for row in rows if (row.side, row.streams) == (side, stream_count)]
        for side in ("gateway", "nginx")
    }
    return statistics.median(ours / theirs for ours, theirs in zip(times["gateway"], times["nginx"], strict=True))


@contextmanager
def _nothing() -> Iterator[None]:
    yield None


def _wait_for(port: int) -> None:
    for _ in range(100):
        try:
            urlopen(f"http://127.0.0.1:{port}/", timeout=1).close()
        except OSError as error:
            if "refused" not in str(error):
                return
            time.sleep(0.05)


if __name__ == "__main__":
    main()
