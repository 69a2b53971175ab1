"""Breakers, budgets and hedges under load: thousands of requests, a gateway and a simulator in processes of their own.

What is counted is what was really sent: the line that the gateway's ledger writes for each attempt, and the simulator's
own account. Ratios and counts are asserted, and times only where they are seconds apart.
"""

import asyncio
import json
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest
import yaml

from tests.eventually import eventually
from tests.faults.test_workers import simulating, started

REQUESTS: Final = 5_000
AT_ONCE: Final = 50
SHORT: Final = "first_token_s=0.002&interval_s=0&token_count=3"
MESSAGES: Final = [{"role": "user", "content": "What does a weir do?"}]

HEDGED: Final = 1_500
SLOW_EVERY: Final = 71
"""One request in so many has its first token late: 1.4 %, more than the share of p99 and less than that of hedges."""
SLOW_S, HEDGE_AFTER_S = 8.0, 2.0
SLOW: Final = f"first_token_s={SLOW_S}&interval_s=0&token_count=3"


@dataclass(slots=True)
class Told:
    """What one client was told, and when the first of it came."""

    model: str
    status: int
    headers: Mapping[str, str]
    body: bytes
    ttft_s: float

    @property
    def is_complete(self) -> bool:
        """Whether the answer is whole."""
        return self.status == 200 and self.body.endswith(b"data: [DONE]\n\n")


@dataclass(slots=True)
class Fleet:
    """A running gateway, the simulator behind it, and what both have written down."""

    url: str
    simulator: str
    log: Path
    session: aiohttp.ClientSession
    _read_bytes: int = field(default=0)

    async def ask(self, model: str) -> Told:
        """Ask once, as a stream."""
        body = {"model": model, "stream": True, "messages": MESSAGES}
        began_at_s = time.monotonic()
        async with self.session.post(f"{self.url}/v1/chat/completions", json=body) as response:
            first = await response.content.readany()
            ttft_s = time.monotonic() - began_at_s
            try:
                rest = await response.read()
            except aiohttp.ClientPayloadError:
                rest = b"cut"
            return Told(model, response.status, response.headers, first + rest, ttft_s)

    async def ask_many(self, models: Sequence[str]) -> list[Told]:
        """Ask for each of the models, ``AT_ONCE`` at a time."""
        asked = iter(models)
        told: list[Told] = []

        async def ask_on() -> None:
            for model in asked:
                told.append(await self.ask(model))  # noqa: PERF401, several do so side by side

        await asyncio.gather(*(ask_on() for _ in range(AT_ONCE)))
        return told

    async def settled(self) -> list[dict[str, Any]]:
        """Return what the ledger has written since the last time: all that it did before one more, that is refused."""
        refused = (await self.ask("no-such-model")).headers["x-request-id"].encode()
        await eventually(lambda: refused in self.log.read_bytes()[self._read_bytes :], every_s=0.1)
        with self.log.open("rb") as log:
            log.seek(self._read_bytes)
            lines = log.readlines()
            self._read_bytes = log.tell()
        return [json.loads(line) for line in lines if b'"attempt.settled"' in line]

    async def script(self, *scripts: str, path: str) -> None:
        """Queue scripts for the next requests to a path of the simulator's."""
        entries = [{"script": script, "path": path} for script in scripts]
        async with self.session.post(f"{self.simulator}/_sim/scripts", json=entries) as response:
            assert response.status == 200

    async def records(self) -> list[dict[str, Any]]:
        """Return what the simulator was asked."""
        async with self.session.get(f"{self.simulator}/_sim/requests") as response:
            requests: list[dict[str, Any]] = (await response.json())["requests"]
            return requests


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    """Start both processes; two of the targets have a port at which nobody listens."""
    with closing(socket.socket()) as one, closing(socket.socket()) as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        async with simulating(tmp_path) as origin:
            (tmp_path / "fleet.yaml").write_text(yaml.safe_dump(_config(origin, one, other)))
            async with (
                started(tmp_path, "serve", "--config", "fleet.yaml") as (_, log),
                aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
            ):
                page = next(line for line in log.read_text().splitlines() if line.startswith("page:"))
                yield Fleet(page.split()[-1].rstrip("/"), origin, log, session)


def _config(origin: str, *dead: socket.socket) -> dict[str, Any]:
    ports = [one.getsockname()[1] for one in dead]
    compatible = {"kind": "openai-compatible", "api_key": "fake"}
    unheard = {
        f"dead{place}": {**compatible, "base_url": f"http://127.0.0.1:{port}/v1"} for place, port in enumerate(ports)
    }
    alive = f"alive/mill?{SHORT}"
    half_dead = ["dead0/mill", alive]
    return {
        "server": {"port": 0, "admin_port": 0, "drain_timeout_s": 0.1},
        "providers": {
            **unheard,
            "alive": {**compatible, "base_url": f"{origin}/hosts/vllm/v1"},
            "tailed": {**compatible, "base_url": f"{origin}/openai/v1"},
            "tailed_too": {**compatible, "base_url": f"{origin}/hosts/groq/v1"},
        },
        "models": {
            "in-order": {"targets": half_dead},
            "by-weight": {"targets": half_dead, "strategy": "weighted", "weights": [1, 1]},
            "by-pace": {"targets": half_dead, "strategy": "fastest"},
            "all-dead": {"targets": ["dead0/mill", "dead1/mill"]},
            "hedged": {"targets": ["tailed/mill", alive], "hedge_after_s": HEDGE_AFTER_S},
            "unhedged": {"targets": ["tailed_too/mill", alive]},
        },
    }


async def test_a_dead_target_is_left_alone_and_no_stream_is_lost(fleet: Fleet) -> None:
    """Of two targets one is dead: however targets are picked, the streams complete, and it is hardly asked any more."""
    ways = ("in-order", "by-weight", "by-pace")
    await asyncio.gather(*map(fleet.ask, ways * 5))
    at_first = await fleet.settled()
    told = await fleet.ask_many([ways[number % len(ways)] for number in range(REQUESTS)])
    assert sum(one.is_complete for one in told) >= 0.999 * REQUESTS, Counter(one.status for one in told)
    attempts = Counter(one["target"] for one in await fleet.settled())
    assert attempts["dead0/mill"] < 0.02 * attempts.total(), (attempts, len(at_first))
    assert attempts.total() < 1.02 * REQUESTS


async def test_where_all_are_dead_nobody_asks_more_than_once(fleet: Fleet) -> None:
    """Each client has an error that tells it not to ask again, and the gateway does not either."""
    told = await fleet.ask_many(["all-dead"] * REQUESTS)
    assert {one.status for one in told} == {502}
    assert {one.headers.get("x-should-retry") for one in told} == {"false"}
    assert {json.loads(one.body)["error"]["code"] for one in told} == {"upstream_unreachable"}
    assert len(await fleet.settled()) <= 1.2 * REQUESTS


async def test_a_hedge_cuts_the_tail_for_two_requests_in_a_hundred(fleet: Fleet) -> None:
    """Beside the same route without hedges: the slowest in a hundred are served in less than half the time."""
    scripts = [SLOW if number % SLOW_EVERY == SLOW_EVERY - 1 else SHORT for number in range(HEDGED)]
    await fleet.script(*scripts, path="/openai")  # each side has its own, or chance would deal them out
    await fleet.script(*scripts, path="/hosts/groq")
    told = await fleet.ask_many(["hedged", "unhedged"] * HEDGED)
    assert all(one.is_complete for one in told)
    tail_s = {model: _p99([one.ttft_s for one in told if one.model == model]) for model in ("hedged", "unhedged")}
    assert tail_s["unhedged"] > SLOW_S * 0.9
    assert tail_s["hedged"] < tail_s["unhedged"] / 2

    settled = await fleet.settled()
    lost = [one for one in settled if one.get("reason") == "hedge_lost"]
    second = [one for one in settled if one["target"].startswith("alive/")]
    assert 0.005 * HEDGED < len(second) <= 0.02 * HEDGED
    assert len(lost) == len(second)
    assert {(one["result"], one["model"]) for one in lost} == {("cancelled", "hedged")}
    assert len(settled) == 2 * HEDGED + len(second)
    beaten = [one for one in lost if one["target"].startswith("tailed/")]
    winners = Counter(one.headers["x-millrace-target"].partition("/")[0] for one in told)
    assert winners["alive"] == len(beaten)

    async def look() -> bool:
        gone = [one for one in await fleet.records() if one["outcome"] == "client_gone"]
        assert len(gone) <= len(lost)
        return len(gone) >= len(beaten)

    await eventually(look, every_s=0.2)


def _p99(times_s: Sequence[float]) -> float:
    return sorted(times_s)[int(0.99 * len(times_s))]
