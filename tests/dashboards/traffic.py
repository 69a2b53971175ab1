"""Traffic in which everything happens that a metric tells of, and the gateway for it.

Each model breaks in its own way, by a script in the names of its targets: what that means is in the simulator's
documentation. ``play`` lets all of it happen once, side by side; a rate needs two of them, with a scrape in between.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp

from tests.dashboards.faulty import MODEL as FAULTY
from tests.raw_client import chat, request

PATH: Final = "/v1/chat/completions"
SLO: Final = {"ttft_s": 2.0, "tpot_s": 0.1, "max_gap_s": 1.0}
LATE_S: Final = 2.5
STALL_S: Final = 1.5
"""A first token and a next one that miss the objectives, and no time limit."""

BREAKER_FAILURES: Final = 12
BREAKER_OPEN_S: Final = 2.0
ENDLESS: Final = "token_count=20000"
SOON: Final = "first_token_s=0.02"
QUICK: Final = f"{SOON}&interval_s=0.005"
CUT: Final = f"{QUICK}&cut_after_tokens=8"
STALLED: Final = f"{QUICK}&stall_after=5"
PAUSED: Final = f"{STALLED}&stall_s={STALL_S}"

GOOD: Final = f"mistral/mistral-small-latest?{QUICK}&token_count=40"


def _alone(target: str) -> dict[str, Any]:
    """Return a model of which nobody mends what breaks."""
    return {"targets": [target], "on_interrupt": "error"}


def _then(*targets: str, **more: Any) -> dict[str, Any]:
    """Return a model whose targets are tried one after the other."""
    return {"targets": list(targets), **more}


MODELS: Final[Mapping[str, Mapping[str, Any]]] = {
    # it goes well, more or less
    "good": _then(f"openai/mill?{QUICK}&token_count=60"),
    "chosen": _then(f"openai/mill?{QUICK}&token_count=20", f"vllm/mill?{QUICK}&token_count=20", strategy="fastest"),
    "thinking": _then(f"anthropic/claude-haiku-4-5?{QUICK}&reasoning=on&token_count=30"),
    "calling": _then(f"openai/mill?{QUICK}&tools=1"),
    "refusing": _then(f"openai/mill?{QUICK}&refusal"),
    "late": _then(f"vllm/mill?first_token_s={LATE_S}&token_count=20"),
    "slow": _then(f"vllm/mill?{SOON}&interval_s=0.3&token_count=7"),
    "silent-on-tokens": _then(f"vllm/mill?{QUICK}&no_usage&token_count=20"),
    # it ends badly
    "rejecting": _alone("openai/mill?status=400"),
    "cut": _alone(f"openai/mill?{CUT}&cut=rst"),
    "garbled": _alone(f"openai/mill?{QUICK}&malformed_after=5"),
    "stuck": _alone(f"impatient/mill?{STALLED}"),
    "deadline": _alone(f"hasty/mill?{ENDLESS}"),
    "deadline-at-once": _alone("hasty/mill?first_token_s=3600"),
    FAULTY: _then("openai/mill"),
    "endless": _alone(f"openai/mill?{QUICK}&{ENDLESS}"),
    "flood": _alone(f"vllm/mill?{SOON}&interval_s=0&token_count=60000"),
    "silent": _alone("openai/mill?first_token_s=3600"),
    "pondering": _alone(f"anthropic/claude-haiku-4-5?reasoning=on&{STALLED}"),
    "down": _alone("vllm/down?status=503"),
    "nowhere": _alone("dead/mill"),
    "recovering": _alone("together/mill"),
    # it pauses, and goes on
    "pausing": _alone(f"vllm/mill?{PAUSED}"),
    "pausing-to-think": _alone(f"anthropic/claude-haiku-4-5?reasoning=on&{PAUSED}"),
    "left-waiting": _alone(f"openai/mill?{STALLED}"),
    # it is saved, or not
    "busy": _then("openai/mill?status=429", GOOD),
    "unavailable": _then("openai/mill?status=503", GOOD),
    "locked": _then("locked/mill", GOOD),
    "unreachable": _then("dead/mill", GOOD),
    "reset": _then("vllm/mill?refuse=rst", GOOD),
    "half-called": _then(f"openai/mill?{QUICK}&tools=1&half_tool", f"mistral/mistral-small-latest?{QUICK}&tools=1"),
    "continued": _then(f"openai/mill?{CUT}", GOOD),
    "repeated": _then(f"vllm/mill?{CUT}", "openai/gpt-5-mini"),
    "unstuck": _then(f"impatient/mill?{STALLED}&token_count=30", GOOD),
    "lost": _then(f"openai/mill?{CUT}&token_count=40", f"mistral/mistral-small-latest?{CUT}&token_count=41"),
    "left-behind": _then(f"openai/mill?{CUT}", f"mistral/mistral-small-latest?{QUICK}&{ENDLESS}"),
    "race-won": _then("openai/mill?first_token_s=30", f"google/gemini-3.5-flash?{QUICK}", hedge_after_s=0.2),
    "race-lost": _then(
        "openai/mill?first_token_s=1&interval_s=0.005", "anthropic/claude-haiku-4-5?first_token_s=30",
        hedge_after_s=0.2,
    ),
}  # fmt: skip


def config(origin: str, *, port: int, admin_port: int, dead_port: int) -> dict[str, Any]:
    """Return the gateway's configuration, over a simulator at ``origin``; at ``dead_port`` nobody listens."""
    openai, compatible = {"kind": "openai", "api_key": "fake"}, {"kind": "openai-compatible", "api_key": "fake"}
    return {
        "server": {"port": port, "admin_port": admin_port, "drain_timeout_s": 60},
        "providers": {
            "openai": {**openai, "base_url": f"{origin}/openai/v1"},
            "hasty": {**openai, "base_url": f"{origin}/openai/v1", "total_timeout_s": 0.5},
            "locked": {**openai, "base_url": f"{origin}/openai/v1", "api_key": "wrong-key"},
            "anthropic": {"kind": "anthropic", "api_key": "fake", "base_url": f"{origin}/anthropic"},
            "google": {"kind": "google", "api_key": "fake", "base_url": f"{origin}/google"},
            "mistral": {"kind": "mistral", "api_key": "fake", "base_url": f"{origin}/mistral/v1"},
            "vllm": {**compatible, "base_url": f"{origin}/hosts/vllm/v1"},
            "together": {**compatible, "base_url": f"{origin}/hosts/together/v1"},
            "impatient": {**compatible, "base_url": f"{origin}/hosts/groq/v1", "stall_timeout_s": STALL_S},
            "dead": {**compatible, "base_url": f"http://127.0.0.1:{dead_port}/v1"},
        },
        "models": {name: dict(model) for name, model in MODELS.items()},
        "middleware": [
            {"use": "middleware.observe.Observe"},
            {"use": "tests.dashboards.faulty.Faulty"},
            {
                "use": "middleware.fallback.Fallback",
                "retry_percent": 100,
                "retry_floor_per_s": 100,
                "hedge_percent": 100,
                "breaker_failures": BREAKER_FAILURES,
                "breaker_open_s": BREAKER_OPEN_S,
            },
            {"use": "middleware.resume.Resume", "max_attempts": 1},
        ],
        "telemetry": {"slo": SLO, "log_level": "error", "otlp_endpoint": f"http://127.0.0.1:{dead_port}"},
    }


@dataclass(frozen=True, slots=True)
class Clients:
    """All the clients of a gateway at ``url`` over a simulator at ``simulator``."""

    url: str
    simulator: str
    session: aiohttp.ClientSession

    async def ask(self, model: str, **more: Any) -> bytes:
        """Ask for an answer and read it to its end, whatever that is."""
        body = chat(model=model, **more)
        with suppress(aiohttp.ClientError):
            async with self.session.post(self.url + PATH, json=body) as response:
                return await response.read()
        return b""

    async def ask_wrongly(self, body: bytes = b"{") -> None:
        """Send what is no request."""
        async with self.session.post(self.url + PATH, data=body) as response:
            await response.read()

    async def ask_plainly(self, model: str) -> None:
        """Ask for plain text."""
        async with self.session.post(f"{self.url}/api/chat/stream", json={"message": "Hello", "model": model}) as found:
            await found.read()

    @asynccontextmanager
    async def asking(self, model: str, *, buffer_bytes: int = 0) -> AsyncIterator[Reader]:
        """Ask for an answer, and hang up on it at the end of the block."""
        parts = urlsplit(self.url)
        connection = socket.socket()
        if buffer_bytes:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        connection.connect((parts.hostname, parts.port))
        reader, writer = await asyncio.open_connection(sock=connection, limit=buffer_bytes or 65536)
        try:
            writer.write(request(PATH, chat(model=model)))
            yield Reader(reader)
        finally:
            writer.transport.abort()
            await asyncio.sleep(0)

    async def script(self, path: str, *scripts: str) -> None:
        """Say how the simulator answers the next requests to one of its paths."""
        entries = [{"script": script, "path": path} for script in scripts]
        async with self.session.post(f"{self.simulator}/_sim/scripts", json=entries) as response:
            assert response.status == 200


@dataclass(slots=True)
class Reader:
    """One that reads as much as it wants to."""

    stream: asyncio.StreamReader
    _seen: bytes = b""

    async def read_text(self) -> None:
        """Read until there is some text."""
        while b'"content":"' not in self._seen.replace(b'"content":""', b""):
            self._seen += await self._read()
            assert self._seen.startswith(b"HTTP/1.1 200"[: len(self._seen)]), self._seen

    async def read_until(self, mark: bytes) -> None:
        """Read until this has come."""
        while mark not in self._seen:
            self._seen += await self._read()

    async def read_bytes(self, count: int) -> None:
        """Read so much more."""
        while count > 0:
            count -= len(await self._read())

    async def _read(self) -> bytes:
        async with asyncio.timeout(30):
            data = await self.stream.read(65536)
        assert data, f"the answer ended after {self._seen[-200:]!r}"
        return data


@asynccontextmanager
async def clients(url: str, simulator: str) -> AsyncIterator[Clients]:
    """Make the clients of a gateway."""
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        yield Clients(url, simulator, session)


TIMES: Final[Mapping[str, int]] = {
    "good": 4, "chosen": 4, "thinking": 3, "calling": 2, "refusing": 1, "late": 2, "slow": 5, "silent-on-tokens": 3,
    "rejecting": 3, "cut": 3, "garbled": 1, "stuck": 3, "deadline": 3, "deadline-at-once": 1, FAULTY: 6, "pausing": 6,
    "pausing-to-think": 2, "busy": 2, "unavailable": 2, "locked": 2, "unreachable": 2, "reset": 2, "half-called": 2,
    "continued": 3, "repeated": 3, "unstuck": 3, "lost": 6, "race-won": 2, "race-lost": 2, "down": BREAKER_FAILURES,
    "nowhere": 1, "no-such-model": 2,
}  # fmt: skip
"""How often a model is asked for in one round, by clients who wait for the end."""

APART_S: Final = 0.01
"""From one call to the next: what is measured is not how a gateway takes a hundred calls at once."""


async def play_calmly(by: Clients) -> None:
    """Let all go well for a moment."""
    for _ in range(3):
        await by.ask("good")


async def play(by: Clients) -> None:
    """Let everything happen once."""
    calls = [
        *(by.ask(model) for model, count in TIMES.items() for _ in range(count)),
        *(by.ask("good", stream=False, **more) for more in ({}, {"max_tokens": 100}, {"max_tokens": 5})),
        *(by.ask("silent-on-tokens", stream=False, max_tokens=100) for _ in range(3)),
        by.ask("good", max_tokens=5),
        by.ask("half-called", stream=False, max_tokens=100),
        by.ask_wrongly(),
        by.ask_plainly("good"),
        by.ask_plainly("no-such-model"),
        *_leaving(by),
    ]
    await asyncio.gather(
        _recover(by), _read_slowly(by), *(_after(place * APART_S, call) for place, call in enumerate(calls))
    )


@asynccontextmanager
async def in_every_phase(by: Clients) -> AsyncIterator[None]:
    """Have a call in each phase, which none of them leaves before the end of the block."""
    async with by.asking("silent"), by.asking("pondering") as thinking, by.asking("endless") as reading:
        await thinking.read_until(b'"reasoning')
        await reading.read_text()
        yield


async def _after(delay_s: float, call: Awaitable[object]) -> None:
    await asyncio.sleep(delay_s)
    await call


def _leaving(by: Clients) -> list[Awaitable[None]]:
    async def leave(model: str, *, has_text: bool = True, after_s: float = 0.0) -> None:
        async with by.asking(model) as reader:
            if has_text:
                await reader.read_text()
            await asyncio.sleep(after_s)

    async def leave_continued(model: str) -> None:
        async with by.asking(model) as reader:
            await reader.read_until(b": millrace continued")

    return [
        leave("silent", has_text=False, after_s=0.3),
        leave("endless"),
        leave("endless", after_s=0.5),
        leave_continued("left-behind"),
        *(leave("left-waiting", after_s=2 * SLO["max_gap_s"] + 0.3) for _ in range(3)),
    ]


async def _read_slowly(by: Clients) -> None:
    """Read nothing for a while of an answer that comes as fast as it can, then more of it than anybody wants."""
    async with by.asking("flood", buffer_bytes=32768) as reader:
        await reader.read_text()
        await asyncio.sleep(2.5)
        await reader.read_bytes(1_000_000)


async def _recover(by: Clients) -> None:
    """Break until the breaker opens; wait until it lets somebody through, who finds a target that is slow, but well."""
    await by.script("/hosts/together", *["status=503"] * BREAKER_FAILURES, "first_token_s=1.5&token_count=5")
    await asyncio.gather(*(by.ask("recovering") for _ in range(BREAKER_FAILURES)))
    await asyncio.sleep(BREAKER_OPEN_S + 0.1)
    await by.ask("recovering")
