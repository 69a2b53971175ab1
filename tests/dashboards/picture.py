"""Makes the picture of the overview board in the README anew.

    python -m tests.dashboards.picture deploy/images/overview.png

A gateway serves a quarter of an hour of everyday traffic over the simulator while a real Prometheus looks on. Half-way
through, two providers have a bad time. One answers late, refuses every fourth call and breaks off every sixth answer,
and others step in for it; what the other one breaks nobody mends, as its model has no second target. What the board
then shows is what an operator would have seen.
"""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import aiohttp

from dashboards.boards import BOARDS
from dashboards.render import WIDTH, render, screen_of
from tests.browser import PROGRAM
from tests.dashboards.processes import free_ports, running, running_simulator, write_config
from tests.dashboards.prometheus import running_prometheus
from tests.dashboards.traffic import PATH
from tests.raw_client import chat

LASTS_S: Final = 900.0
CALLS_PER_S: Final = 7.0
BAD_TIME: Final = (0.5, 0.68)
"""From when to when, as a share of the whole."""

HEIGHT: Final = 1266
"""As far as the row about speed."""

MOST_QUEUED: Final = 20
"""Scripts are used up at once, as long as their provider is asked."""

MODELS: Final[Mapping[str, Mapping[str, Any]]] = {
    "chat": {"targets": ["openai/gpt-5-mini", "mistral/mistral-small-latest", "anthropic/claude-haiku-4-5"]},
    "code": {"targets": ["anthropic/claude-haiku-4-5", "openai/gpt-5-mini"]},
    "search": {"targets": ["google/gemini-3.5-flash", "openai/gpt-5-mini"], "hedge_after_s": 1.5},
    "house": {"targets": ["vllm/llama-4-maverick"], "on_interrupt": "error"},
}
SHARES: Final = {"chat": 50, "code": 25, "search": 15, "house": 10}
PATHS: Final = {"chat": "/openai", "code": "/anthropic", "search": "/google", "house": "/hosts/vllm"}


def config(origin: str, port: int, admin_port: int) -> dict[str, Any]:
    """Return the gateway's configuration."""
    return {
        "server": {"port": port, "admin_port": admin_port, "drain_timeout_s": 1},
        "providers": {
            "openai": {"kind": "openai", "api_key": "fake", "base_url": f"{origin}/openai/v1"},
            "anthropic": {"kind": "anthropic", "api_key": "fake", "base_url": f"{origin}/anthropic"},
            "google": {"kind": "google", "api_key": "fake", "base_url": f"{origin}/google"},
            "mistral": {"kind": "mistral", "api_key": "fake", "base_url": f"{origin}/mistral/v1"},
            "vllm": {
                "kind": "openai-compatible", "host": "vllm", "api_key": "fake", "base_url": f"{origin}/hosts/vllm/v1",
            },
        },
        "models": {name: dict(model) for name, model in MODELS.items()},
        "telemetry": {"log_level": "error"},
    }  # fmt: skip


def script(chance: random.Random, model: str, *, is_bad: bool) -> str:
    """Return how one answer goes."""
    slowness = {"chat": 0.35, "code": 0.5, "search": 0.25, "house": 0.15}[model] * (3.0 if is_bad else 1.0)
    first_token_s = min(8.0, chance.lognormvariate(0, 0.5) * slowness)
    interval_s = chance.uniform(0.008, 0.03) * (1.6 if is_bad else 1.0)
    token_count = int(min(400, chance.lognormvariate(4.2, 0.6)))
    told = f"first_token_s={first_token_s:.3f}&interval_s={interval_s:.4f}&token_count={token_count}"
    drawn = chance.random()
    if is_bad and model == "house":
        return f"{told}&cut_after_tokens={chance.randrange(1, token_count + 1)}" if drawn < 0.2 else told
    if is_bad and drawn < 0.25:
        return "status=503"
    if is_bad and drawn < 0.42:
        return f"{told}&cut_after_tokens={chance.randrange(1, token_count + 1)}&cut=rst"
    if drawn > 0.997:
        return "status=429&retry_after_s=1"
    if drawn > 0.994:
        return f"{told}&cut_after_tokens={chance.randrange(1, token_count + 1)}"
    if drawn > 0.990:
        return f"{told}&stall_after={chance.randrange(1, token_count + 1)}&stall_s=3"
    if model == "code" and drawn < 0.3:
        return f"{told}&reasoning=on"
    return told


async def call(session: aiohttp.ClientSession, urls: tuple[str, str], chance: random.Random, *, is_bad: bool) -> None:
    """Make one call, as somebody would; a few have no patience, and a few ask for what there is not."""
    url, simulator = urls
    (model,) = chance.choices(list(SHARES), list(SHARES.values()))
    how = script(chance, model, is_bad=is_bad and model in ("chat", "house"))
    body = chat(f"Question {chance.random()}", model=model, stream=chance.random() > 0.1)
    if chance.random() < 0.006:
        body["model"] = "no-such-model"
    patience_s = chance.uniform(0.3, 3.0) if chance.random() < 0.025 else 60.0
    with suppress(aiohttp.ClientError, TimeoutError):
        async with session.post(f"{simulator}/_sim/scripts", json=[{"script": how, "path": PATHS[model]}]) as response:
            has_old_ones = (await response.json())["queued"] > MOST_QUEUED
        if has_old_ones:  # of a provider that nobody asks any more
            async with session.delete(f"{simulator}/_sim/scripts"):
                pass
        async with asyncio.timeout(patience_s), session.post(url + PATH, json=body) as response:
            await response.read()


async def traffic(url: str, simulator: str, lasts_s: float) -> None:
    """Call at random times, more often as time goes on and then less again."""
    chance = random.Random(1)  # noqa: S311, a picture is no secret
    began_at_s = time.monotonic()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        calls: set[asyncio.Task[None]] = set()
        while (share := (time.monotonic() - began_at_s) / lasts_s) < 1:
            is_bad = BAD_TIME[0] < share < BAD_TIME[1]
            task = asyncio.create_task(call(session, (url, simulator), chance, is_bad=is_bad))
            calls.add(task)
            task.add_done_callback(calls.discard)
            await asyncio.sleep(chance.expovariate(CALLS_PER_S * (0.6 + 1.6 * share * (1 - share) * 2)))
        for task in calls:
            task.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


def photograph(page: Path, picture: Path) -> None:
    """Take a picture of the upper part of a page."""
    assert PROGRAM
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage")
    where = (f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={picture.resolve()}", page.as_uri())
    subprocess.run([PROGRAM, *flags, *where], check=True, timeout=60, capture_output=True)  # noqa: S603, our own


def main(picture: Path, lasts_s: float = LASTS_S) -> None:
    """Run everything, and write the picture."""
    with TemporaryDirectory() as name, running_simulator(Path(name)) as origin:
        folder = Path(name)
        port, admin_port = free_ports(2)
        file = write_config(folder, config(origin, port, admin_port))
        with (
            running(folder, "serve", "--config", file) as gateway,
            running_prometheus(folder, [f"127.0.0.1:{admin_port}"], is_patient=True) as prometheus,
        ):
            asyncio.run(traffic(gateway.told, origin, lasts_s))
            board = next(board for board in BOARDS if board.uid == "millrace-overview")
            screen = screen_of(prometheus.url, since_s=lasts_s - 40, end_s=time.time() - 2, interval="40s")
            (folder / "overview.html").write_text(render(board, screen))
        photograph(folder / "overview.html", picture)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(float, sys.argv[2:3]))
