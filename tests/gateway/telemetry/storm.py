"""Two thousand calls of every kind at once, and what their clients, the providers and the gateway each say of them."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import count
from typing import Any, Final, Literal

from structlog.testing import capture_logs

from gateway.simulator import Record, Script
from gateway.telemetry.collector import SlabCollector
from gateway.telemetry.slab import Slab
from tests.exposition import OPENMETRICS, Exposition
from tests.gateway.telemetry.witness import Watched, watched
from tests.raw_client import RawClient, chat, connected, exchange, parse, request

Line = Mapping[str, Any]
Manner = Literal["stays", "leaves at once", "leaves unanswered", "leaves midway", "leaves in the body", "reads late"]

CHAT, TEXT = "/v1/chat/completions", "/api/chat/stream"
KEY: Final = "mr_storm"
AT_ONCE: Final = 160
SCRAPE_EVERY: Final = 600
TIMEOUT_S: Final = 60.0
DRAINED_COUNT: Final = 12

LONG = "token_count=1200&interval_s=0.05"
GOOD = "token_count=16"


@dataclass(frozen=True, slots=True)
class Kind:
    """One way of asking, and how often. ``ends`` is how such a call may end, if its client stays."""

    times: int
    model: str
    ends: str = "completed"
    manner: Manner = "stays"
    more: Mapping[str, Any] = field(default_factory=dict)
    path: str = CHAT
    body: bytes | None = None
    headers: Mapping[str, str | None] = field(default_factory=dict)
    version: str = "1.1"


def _model(*targets: str, **more: Any) -> dict[str, Any]:
    return {"targets": list(targets), **more}


def _hopeless(target: str) -> dict[str, Any]:
    """Return a model whose one target breaks, and which nobody mends."""
    return _model(target, on_interrupt="error")


MODELS: Final[Mapping[str, Any]] = {
    "openai": _model(f"openai/mill?{GOOD}"),
    "anthropic": _model(f"anthropic/claude-haiku-4-5?{GOOD}&reasoning=on"),
    "google": _model(f"google/gemini-3.5-flash?{GOOD}"),
    "mistral": _model(f"mistral/mistral-small-latest?{GOOD}"),
    "llama": _model(f"llama/Llama-4-Maverick-17B-128E-Instruct-FP8?{GOOD}"),
    "tools": _model("openai/mill?tools=1&lead=on"),
    "uncounted": _model(f"vllm/mill?{GOOD}&no_usage=on"),
    "broad": _model("openai/mill?token_count=8&long_line_after=3"),
    "endless": _hopeless(f"openai/mill?{LONG}"),
    "silent": _hopeless("openai/mill?first_token_s=3600"),
    # what another attempt mends, before the first token and behind it
    "retried": _model(f"vllm/mill?status=503;{GOOD}"),
    "waited": _model(f"openai/mill?status=429&retry_after_s=0.05;{GOOD}"),
    "reconnected": _model(f"openai/mill?refuse=rst;{GOOD}"),
    "failed-over": _model("openai/mill?status=503", f"mistral/mistral-small-latest?{GOOD}"),
    "passed-on": _model("brisk/mill?first_token_s=3600", f"google/gemini-3.5-flash?{GOOD}"),
    "exact": _model(f"vllm/mill?cut_after_tokens=9&{GOOD};{GOOD}"),
    "exact-reset": _model(f"mistral/mistral-small-latest?cut_after_tokens=9&cut=rst&{GOOD};{GOOD}"),
    "exact-elsewhere": _model("openai/mill?error_after=7", f"mistral/mistral-small-latest?{GOOD}"),
    "twice": _model(f"vllm/mill?cut_after_tokens=6&{GOOD};cut_after_tokens=5&{GOOD};{GOOD}"),
    "anchored": _model("openai/mill?cut_after_tokens=20&token_count=40;token_count=40"),
    "anchored-elsewhere": _model("google/gemini-3.5-flash?cut_after_tokens=20", "openai/mill?token_count=40"),
    "unstalled": _model("hasty/mill?stall_after=6", f"vllm/mill?{GOOD}"),
    "thinking-again": _model(f"anthropic/claude-haiku-4-5?cut_in=reasoning&reasoning=on;reasoning=on&{GOOD}"),
    "raced": _model("openai/mill?first_token_s=30", f"google/gemini-3.5-flash?{GOOD}", hedge_after_s=0.03),
    "raced-for-nothing": _model(
        f"openai/mill?first_token_s=0.6&{GOOD}", "google/gemini-3.5-flash?first_token_s=30", hedge_after_s=0.03
    ),
    # what nobody mends
    "limited": _hopeless("anthropic/claude-haiku-4-5?status=429"),
    "refusing": _hopeless("google/gemini-3.5-flash?status=400"),
    "locked": _hopeless("mistral/mistral-small-latest?status=401"),
    "down": _model("openai/mill?status=500", "llama/Llama-4-Maverick-17B-128E-Instruct-FP8?status=503"),
    "cut": _hopeless("openai/mill?cut_after_tokens=5"),
    "reset": _hopeless("anthropic/claude-haiku-4-5?cut_after_tokens=5&cut=rst"),
    "unended": _hopeless("anthropic/claude-haiku-4-5?token_count=8&no_end=on"),
    "clean-cut": _hopeless("google/gemini-3.5-flash?cut_after_tokens=5&cut=clean"),
    "failing": _hopeless("anthropic/claude-haiku-4-5?error_after=4"),
    "garbled": _hopeless("mistral/mistral-small-latest?malformed_after=4"),
    "off-key": _model("openai/mill?cut_after_tokens=20;obey=ignore"),
    "stalling": _hopeless("hasty/mill?stall_after=5"),
    "mute": _hopeless("brisk/mill?first_token_s=3600"),
    "late": _hopeless(f"late/mill?{LONG}"),
    "faulty": _model("openai/mill"),
}

_SLOW: Final = {"connect_timeout_s": 30}
"""So busy is the one loop of all sides at times."""

PROVIDERS: Final[Mapping[str, Any]] = {
    "openai": {"kind": "openai", **_SLOW},
    "anthropic": {"kind": "anthropic", **_SLOW},
    "google": {"kind": "google", **_SLOW},
    "mistral": {"kind": "mistral", **_SLOW},
    "llama": {"kind": "llama", **_SLOW},
    "vllm": {"kind": "openai-compatible", "host": "vllm", **_SLOW},
    "hasty": {"kind": "openai", "stall_timeout_s": 0.4, **_SLOW},
    "brisk": {"kind": "openai", "ttft_timeout_s": 0.4, **_SLOW},
    "late": {"kind": "openai", "total_timeout_s": 0.5, **_SLOW},
}

CONFIG: Final[Mapping[str, Any]] = {
    "server": {"max_body_bytes": 20_000},
    "providers": PROVIDERS,
    "models": MODELS,
    "middleware": [
        {"use": "middleware.observe.Observe"},
        {"use": "middleware.auth.Auth", "keys": [{"id": "storm", "sha256": sha256(KEY.encode()).hexdigest()}]},
        {"use": "tests.gateway.telemetry.test_truth.Faulty"},
        {
            "use": "middleware.fallback.Fallback",
            "hedge_percent": 100,
            "retry_percent": 100,
            "retry_floor_per_s": 1000,
            "breaker_failures": 1000,
        },
        {"use": "middleware.resume.Resume"},
    ],
    "telemetry": {"slo": {"ttft_s": 0.3, "tpot_s": 0.005, "max_gap_s": 0.2}},
}

WHOLE: Final = {"stream": False}
SHORT: Final = {"stream": False, "max_tokens": 200}
BROKEN: Final = "upstream_error truncated"

KINDS: Final = (
    *(Kind(70, model) for model in ("openai", "anthropic", "google", "mistral", "llama")),
    *(Kind(10, model, more=more) for model in ("openai", "anthropic", "mistral") for more in (WHOLE, SHORT)),
    *(Kind(12, model, path=TEXT) for model in ("openai", "anthropic", "exact", "failed-over")),
    Kind(20, "openai", more={"n": 2}),
    *(Kind(20, model) for model in ("tools", "uncounted")),
    Kind(6, "broad", manner="reads late"),
    *(Kind(40, model) for model in ("retried", "failed-over", "exact", "exact-elsewhere", "anchored")),
    *(Kind(25, model) for model in ("waited", "reconnected", "exact-reset", "twice", "anchored-elsewhere")),
    *(Kind(20, model) for model in ("passed-on", "unstalled", "thinking-again")),
    *(Kind(40, model) for model in ("raced", "raced-for-nothing")),
    *(Kind(12, model, more=WHOLE) for model in ("exact", "anchored", "failed-over", "unstalled")),
    *(Kind(25, model, "upstream_error") for model in ("limited", "refusing", "locked", "down")),
    *(Kind(25, model, BROKEN) for model in ("cut", "reset", "unended", "clean-cut", "failing", "garbled")),
    Kind(25, "off-key", f"completed {BROKEN}"),
    *(Kind(10, model, BROKEN, more=SHORT) for model in ("cut", "failing", "down")),
    *(Kind(20, model, "stalled") for model in ("stalling", "mute")),
    *(Kind(20, "late", "deadline", more=more) for more in ({}, SHORT)),
    Kind(15, "faulty", "gateway_error"),
    # clients that leave
    *(Kind(30, "silent", manner=manner) for manner in ("leaves at once", "leaves unanswered")),
    Kind(50, "endless", manner="leaves midway"),
    *(Kind(10, "endless", manner=manner, more=WHOLE) for manner in ("leaves at once", "leaves unanswered")),
    *(
        Kind(15, model, BROKEN if model == "cut" else "completed", manner=manner)
        for model in ("openai", "exact", "anchored", "raced", "failed-over", "passed-on", "cut")
        for manner in ("leaves at once", "leaves unanswered", "leaves midway")
    ),
    Kind(15, "openai", manner="leaves in the body"),
    # requests that are refused
    Kind(30, "no-such-model", "rejected"),
    Kind(10, "no-such-model", "rejected", more=WHOLE),
    Kind(15, "openai", "rejected", body=b"{"),
    Kind(15, "openai", "rejected", more={"messages": "none"}),
    Kind(15, "openai", "rejected", more={"padding": "x" * 30_000}),
    Kind(15, "openai", "rejected", headers={"authorization": "Bearer mr_stranger"}),
    Kind(10, "openai", "rejected", headers={"authorization": None}),
    Kind(10, "openai", "rejected", version="1.0"),
    # models that are in no configuration
    Kind(30, "openai/made-up?token_count=6"),
    Kind(20, "anthropic/made-up?status=429", "upstream_error"),
)


@dataclass(slots=True)
class Told:
    """What one client asked, and what it was told. ``status`` is 0 where it left before any."""

    ticket: str
    kind: Kind
    status: int = 0
    body: bytes = b""
    is_whole: bool = False
    has_left: bool = False

    @property
    def is_stream(self) -> bool:
        """Whether the answer was wanted as it comes."""
        return self.kind.path == TEXT or bool(self.kind.more.get("stream", True))

    @property
    def is_complete(self) -> bool:
        """Whether the client has all of an answer."""
        if self.kind.path == CHAT and self.is_stream:
            return self.is_whole and self.body.endswith(b"data: [DONE]\n\n")
        return self.is_whole and self.status == 200

    @property
    def chunks(self) -> Sequence[Any]:
        """The events of a stream that came whole."""
        parts = self.body.split(b"\n\n")[:-1]
        return [json.loads(part[6:]) for part in parts if part.startswith(b"data: {")]

    @property
    def delta_count(self) -> int:
        """How many pieces of an answer have come."""
        if self.status != 200 or not self.is_stream:
            return 0
        if self.kind.path == TEXT:
            return len(self.body)
        deltas = [choice["delta"] for chunk in self.chunks for choice in chunk.get("choices", ())]
        return sum(any(delta.get(name) for name in _PIECES) for delta in deltas)

    @property
    def usage(self) -> Mapping[str, int] | None:
        """What the client was told that it used."""
        if not self.is_complete or self.kind.path == TEXT:
            return None
        documents = self.chunks if self.is_stream else [json.loads(self.body)]
        found: list[Mapping[str, int]] = [one["usage"] for one in documents if one.get("usage")]
        return found[-1] if found else None


_PIECES: Final = ("content", "reasoning", "reasoning_content", "refusal", "tool_calls")


@dataclass(slots=True)
class Storm:
    """All accounts of a storm: those of the clients, of the gateway in its log and its metrics, of the providers.

    ``imbalances`` are the moments at which the calls begun were not those in flight and those ended.
    """

    told: list[Told] = field(default_factory=list)
    logs: Sequence[Line] = ()
    records: Mapping[str, Sequence[Record]] = field(default_factory=dict)
    scrapes: list[Exposition] = field(default_factory=list)
    end: Exposition = field(default_factory=lambda: Exposition(()))
    moment_count: int = 0
    imbalances: list[str] = field(default_factory=list)

    def lines(self, event: str) -> list[Line]:
        """Return the lines of an event."""
        return [line for line in self.logs if line["event"] == event]


async def storm() -> Storm:
    """Let it happen."""
    chance = random.Random(4)  # noqa: S311, a test that can be repeated
    kinds = [kind for kind in KINDS for _ in range(kind.times)]
    chance.shuffle(kinds)
    found = Storm()
    async with watched(CONFIG, Script(first_token_s=0.002, interval_s=0.002)) as running:
        slab = running.slab
        collector = SlabCollector([slab])
        bodies: list[tuple[bytes, str]] = []
        with capture_logs() as logs:
            scales = asyncio.ensure_future(_weigh(slab, found))
            clients: set[asyncio.Task[None]] = set()
            numbers = count()
            for kind in kinds:
                told = Told(f"ticket-{next(numbers)}", kind)
                found.told.append(told)
                clients.add(asyncio.ensure_future(ask(running, told, chance.randrange(1, 12))))
                if len(clients) >= AT_ONCE:
                    _, clients = await asyncio.wait(clients, return_when=asyncio.FIRST_COMPLETED)
                if len(found.told) % SCRAPE_EVERY == 0:
                    bodies.append(await _scrape(running, OPENMETRICS if len(bodies) % 2 else ""))
            await asyncio.gather(*clients)
            await running.calm()
            bodies.append(await _scrape(running, ""))
            await _drain(running, found, numbers)
            scales.cancel()
        with suppress(asyncio.CancelledError):
            await scales
        found.logs = logs
        found.records = running.witness.by_ticket()
        found.end = Exposition.read(collector.render("")[0])
    found.scrapes = [Exposition.read(*body) for body in bodies]
    return found


async def _drain(running: Watched, found: Storm, numbers: count[int]) -> None:
    """Stop the gateway, with some streams under way."""
    models = ["endless", "silent"] * (DRAINED_COUNT // 2)
    last = [Told(f"ticket-{next(numbers)}", Kind(1, model, "drained")) for model in models]
    found.told += last
    clients = [asyncio.ensure_future(ask(running, told, 0)) for told in last]
    for told in last:
        await running.witness.asked(told.ticket)
    await running.gateway.stop()
    await asyncio.gather(*clients)
    async with asyncio.timeout(TIMEOUT_S):
        while not running.witness.is_quiet:  # noqa: ASYNC110, a test may poll
            await asyncio.sleep(0.02)


async def _scrape(running: Watched, accept: str) -> tuple[bytes, str]:
    answer = await exchange(running.admin_url, request("/metrics", method="GET", accept=accept), timeout_s=TIMEOUT_S)
    assert answer.status == 200
    return answer.body, answer.headers["content-type"]


async def _weigh(slab: Slab, found: Storm) -> None:
    """Look again and again whether what was begun is what has ended and what is in flight: in any turn of the loop."""
    reader = Slab.attach(os.dup(slab.fd))
    while True:
        sums = dict.fromkeys(("requests_started_total", "requests_total", "streams_active"), 0.0)
        for child in reader.children():
            name = child.family.removeprefix("millrace_")
            if name in sums:
                sums[name] += reader.cells[child.first]
        found.moment_count += 1
        if sums["requests_started_total"] != sums["requests_total"] + sums["streams_active"]:
            found.imbalances.append(str(sums))
        await asyncio.sleep(0.005)


async def ask(running: Watched, told: Told, patience: int) -> None:
    """Ask as a call of this kind is asked, and note what comes; ``patience`` is for those that leave."""
    kind = told.kind
    async with connected(running.url) as client:
        data = _request(told)
        told.has_left = True
        if kind.manner == "leaves in the body":
            await client.send(data[: -len(data) // 3])
            await asyncio.sleep(0.01 * patience)
            return
        await client.send(data)
        if kind.manner == "leaves at once":
            await asyncio.sleep(0.001 * patience if patience > 5 else 0)
        elif kind.manner == "leaves unanswered":
            await running.witness.asked(told.ticket)
        elif kind.manner == "leaves midway":
            await _read_some(client, told, patience)
        else:
            if kind.manner == "reads late":
                await asyncio.sleep(0.3)
            await client.read_all(timeout_s=TIMEOUT_S)
            told.has_left = False
        _note(client, told)


async def _read_some(client: RawClient, told: Told, chunk_count: int) -> None:
    """Read until so many pieces of the answer have come, or its end."""
    async with asyncio.timeout(TIMEOUT_S):
        while client.seen.count(b'"content":"') < chunk_count:
            try:
                data = await client.reader.read(65536)
            except ConnectionError:
                data = b""
            if not data:
                told.has_left = False
                return
            client.seen += data


def _note(client: RawClient, told: Told) -> None:
    if b"\r\n\r\n" in client.seen:
        answer = parse(client.seen)
        told.status, told.body, told.is_whole = answer.status, answer.body, answer.is_whole


def _request(told: Told) -> bytes:
    kind = told.kind
    content = f"What does a weir do? ({told.ticket})"
    if kind.body is not None:
        body: object = kind.body
    elif kind.path == TEXT:
        body = {"model": kind.model, "message": content}
    else:
        usage = {"stream_options": {"include_usage": True}} if told.is_stream else {}
        body = {**chat(content, model=kind.model), **usage, **kind.more}
    own = {"authorization": f"Bearer {KEY}", "connection": "close", "x_request_id": told.ticket}
    headers: dict[str, Any] = {**own, **kind.headers}
    return request(kind.path, body, version=kind.version, **headers)
