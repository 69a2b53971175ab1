"""Whether what is counted is true: a gateway over the simulator, which keeps its own account of what it was asked."""

from __future__ import annotations

import asyncio
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.core.call import Call
from gateway.pipeline import Next, Send
from gateway.simulator import Script
from tests.conftest import MakeGateway, Running
from tests.dashboards.promtool import needs_promtool
from tests.eventually import eventually
from tests.exposition import OPENMETRICS, Exposition
from tests.raw_client import chat, connected, exchange, parse, request

PATH = "/v1/chat/completions"
CANARY = "canary-7f3a"
Line = Mapping[str, Any]


@dataclass(frozen=True)
class Faulty:
    """A middleware with a mistake in it, which one model brings to light."""

    async def __call__(self, call: Call, send: Send, call_next: Next) -> None:
        """Fail as no middleware should."""
        if call.route.name == "faulty":
            raise ZeroDivisionError
        await call_next(call, send)


def broken(script: str, **more: Any) -> dict[str, Any]:
    """Return a model whose one target breaks, and which nobody mends."""
    return {"targets": [f"openai/mill?{script}"], "on_interrupt": "error", **more}


MODELS: dict[str, Any] = {
    "good": {"targets": ["openai/mill?token_count=20"]},
    "thinking": {"targets": ["anthropic/claude-haiku-4-5?reasoning=on&token_count=20"]},
    "endless": broken("token_count=100000&interval_s=0.01"),
    "silent": broken("first_token_s=3600"),
    "refusing": broken("status=400"),
    "cut": broken("cut_after_tokens=5&cut=rst"),
    "stalling": {"targets": ["brief/mill?stall_after=5"], "on_interrupt": "error"},
    "late": {"targets": ["hasty/mill?token_count=100000&interval_s=0.01"], "on_interrupt": "error"},
    "saved": {"targets": ["openai/mill?status=503", "mistral/mistral-small-latest?token_count=20"]},
    "continued": {"targets": ["openai/mill?cut_after_tokens=8", "mistral/mistral-small-latest?token_count=20"]},
    "raced": {"targets": ["openai/mill?first_token_s=30", "google/gemini-3.5-flash"], "hedge_after_s": 0.05},
    "faulty": {"targets": ["openai/mill"]},
}

CONFIG: dict[str, Any] = {
    "providers": {
        "openai": {"kind": "openai"},
        "brief": {"kind": "openai", "stall_timeout_s": 0.3},
        "hasty": {"kind": "openai", "total_timeout_s": 0.4},
        "anthropic": {"kind": "anthropic"},
        "google": {"kind": "google"},
        "mistral": {"kind": "mistral"},
    },
    "models": MODELS,
    "middleware": [
        {"use": "middleware.observe.Observe"},
        {"use": "tests.gateway.telemetry.test_truth.Faulty"},
        {"use": "middleware.fallback.Fallback", "hedge_percent": 100, "breaker_failures": 1000},
        {"use": "middleware.resume.Resume", "max_attempts": 1},
    ],
    "telemetry": {"slo": {"max_gap_s": 0.2, "tpot_s": 0.1, "ttft_s": 2.0}},
}


@dataclass(frozen=True, slots=True)
class Traffic:
    """What clients asked, what was logged meanwhile, and what was counted by then."""

    gateway: Running
    logs: Sequence[Line]

    def lines(self, event: str, **wanted: object) -> list[Line]:
        """Return the lines of an event that have these fields."""
        return [line for line in self.logs if line["event"] == event and wanted.items() <= line.items()]

    def tokens_sent(self, model: str) -> int:
        """Return how many tokens the simulator has sent for the targets of a model."""
        targets = {target.partition("/")[2].partition("?")[0] for target in MODELS[model]["targets"]}
        scripts = {target.partition("?")[2] for target in MODELS[model]["targets"]}
        records = self.gateway.simulator.requests
        return sum(one.tokens_sent for one in records if one.model in targets and one.script in scripts)


async def ask(running: Running, model: str, **more: Any) -> bytes:
    """Ask for an answer and read it to its end, whatever that is."""
    found = await exchange(running.url, request(PATH, chat(f"Hello, {CANARY}", model=model, **more)))
    return found.body


async def leave(running: Running, model: str, mark: bytes) -> None:
    """Ask for an answer, and hang up when the mark has come; without one, in the prefill."""
    async with connected(running.url) as client:
        before = len(running.simulator.requests)
        await client.send(request(PATH, chat(f"Hello, {CANARY}", model=model)))
        if mark:
            await client.read_until(mark)
        while len(running.simulator.requests) == before:  # noqa: ASYNC110, a test may poll
            await asyncio.sleep(0.005)
        client.abort()
    await asyncio.sleep(0.1)


@pytest.fixture
async def running(make_gateway: MakeGateway) -> Running:
    """Start a gateway with a model for each way in which an answer can end."""
    return await make_gateway(config=CONFIG, default=Script(first_token_s=0.002, interval_s=0.001))


async def every_outcome(running: Running) -> Traffic:
    """Let each outcome happen once or more, one after the other; the last one is that the gateway stops."""
    with capture_logs() as logs:
        for _ in range(3):
            await ask(running, "good")
        await ask(running, "good", stream=False, max_tokens=100)
        await ask(running, "thinking")
        for model in ("refusing", "cut", "stalling", "late", "saved", "continued", "raced", "faulty", "no-such-model"):
            await ask(running, model)
        await exchange(running.url, request(PATH, b"{"))
        await leave(running, "silent", b"")
        await leave(running, "endless", b'"content":"')
        async with connected(running.url) as client:
            await client.send(request(PATH, chat(model="endless")))
            await client.read_until(b'"content":"')
            await running.gateway.stop()
            assert not parse(await client.read_all()).is_whole
    return Traffic(running, logs)


def check_laws(found: Exposition, traffic: Traffic) -> None:
    """Assert what holds whatever has happened, when nothing is in flight."""
    finished, settled = traffic.lines("stream.finished"), traffic.lines("attempt.settled")
    ended = found.by("outcome", "millrace_requests_total")
    assert found.total("millrace_requests_started_total") == sum(ended.values()) == len(finished)
    assert found.by("phase", "millrace_streams_active") == {}
    assert found.by("upstream", "millrace_upstream_inflight") == {}
    assert ended == Counter(line["outcome"] for line in finished)
    assert found.total("millrace_request_duration_seconds_count") == len(finished)
    assert found.total("millrace_rejected_total") == ended.get("rejected", 0)
    assert found.total("millrace_client_aborts_total") == ended.get("client_aborted", 0)

    assert found.total("millrace_upstream_attempts_total") == len(settled)
    assert found.by("result", "millrace_upstream_attempts_total") == Counter(line["result"] for line in settled)
    for name in ("input_tokens", "output_tokens"):
        assert found.total(f"millrace_{name}_total") == sum(line.get(name, 0) for line in settled)
    wasted = found.total("millrace_tokens_wasted_total")
    assert wasted == sum(line.get("wasted_tokens", 0) for line in finished)
    assert wasted <= found.total("millrace_output_tokens_total")
    failed = found.total("millrace_upstream_attempts_total", result="failed")
    assert found.total("millrace_failovers_total") <= failed
    assert found.total("millrace_stream_resumes_total") == sum(line["resumed"] for line in finished)

    streams = [line for line in finished if line["stream"]]
    judged = [line for line in streams if line["outcome"] not in ("client_aborted", "rejected")]
    assert found.total("millrace_ttft_seconds_count") == sum(line["ttft_s"] is not None for line in streams)
    assert found.total("millrace_tpot_seconds_count") == sum(line["tpot_s"] is not None for line in streams)
    assert found.total("millrace_stalls_total") == sum(line.get("stalls", 0) for line in streams)
    met = found.by("objective", "millrace_slo_streams_total", met="true")
    for objective in ("ttft", "tpot", "smooth", "complete", "all"):
        assert found.total("millrace_slo_streams_total", objective=objective) == len(judged)
        assert met.get("all", 0) <= met.get(objective, 0)
        assert met.get(objective, 0) == sum(line["slo"][objective] for line in judged)


async def test_every_outcome_is_counted_as_the_simulator_saw_it(running: Running) -> None:
    """Exactly: calls, attempts and tokens, failovers, stalls and waste."""
    slab = running.gateway._slab
    traffic = await every_outcome(running)
    found = Exposition.of(slab)
    check_laws(found, traffic)
    assert found.by("outcome", "millrace_requests_total") == {
        "completed": 8,
        "client_aborted": 2,
        "upstream_error": 1,
        "truncated": 1,
        "stalled": 1,
        "deadline": 1,
        "gateway_error": 1,
        "rejected": 2,
        "drained": 1,
    }
    records = running.simulator.requests
    attempts = "millrace_upstream_attempts_total"
    assert found.total(attempts) == len(records)
    assert found.by("result", attempts, model="good") == {"completed": 4}
    assert found.by("result", attempts, model="raced") == {"completed": 1, "cancelled": 1}
    for model in ("good", "thinking"):
        assert found.total("millrace_output_tokens_total", model=model) == traffic.tokens_sent(model), model
    assert found.by("source", "millrace_usage_total", upstream="openai/mill?token_count=20") == {"reported": 4}

    assert found.by("reason", "millrace_rejected_total") == {"unknown_model": 1, "invalid_request": 1}
    assert found.by("phase", "millrace_client_aborts_total") == {"prefill": 1, "decode": 1}
    assert found.by("resolution", "millrace_stalls_total", model="stalling", phase="decode") == {"gave_up": 1}
    assert 0.2 < found.total("millrace_stall_seconds_total", model="stalling") < 20
    assert found.by("phase", "millrace_failovers_total", result="completed") == {"pre_first_token": 1, "mid_stream": 1}
    assert found.total("millrace_failovers_total") == 2
    assert found.by("from_upstream", "millrace_stream_resumes_total", model="continued", result="completed") == {
        "openai/mill?cut_after_tokens=8": 1
    }
    assert found.by("phase", "millrace_failover_lost_seconds_count") == {"pre_first_token": 1, "mid_stream": 1}
    assert found.by("result", "millrace_hedges_total", model="raced") == {"won": 1}
    assert found.by("reason", "millrace_tokens_wasted_total", model="endless").keys() == {"client_abort"}
    assert found.by("finish_reason", "millrace_finish_reasons_total", model="good") == {"stop": 4}

    assert found.total("millrace_ttft_seconds_count", model="good") == 3
    assert found.total("millrace_chunk_gap_seconds_count", model="good") <= 3 * 19
    assert 0.0005 < found.mean("millrace_tpot_seconds", model="good") < 0.5
    thinking = {"model": "thinking"}
    first_s, content_s = (
        found.mean(f"millrace_{name}_seconds", **thinking) for name in ("ttft", "time_to_first_content")
    )
    assert content_s > first_s
    states = found.by("state", "millrace_upstream_state", upstream="openai/mill?token_count=20")
    assert states == {"closed": 1}
    assert 0 < found.total("millrace_upstream_ttft_ewma_seconds", upstream="openai/mill?token_count=20") < 20
    assert found.by("code", "millrace_http_responses_total", route="chat_completions")["404"] == 1


async def test_nothing_that_was_said_can_be_seen(running: Running) -> None:
    """Not in the metrics, nor in the table of live streams."""
    with capture_logs():
        for model in ("good", "cut", f"nobody/{CANARY}", CANARY):
            await ask(running, model)
        bodies = [
            (await exchange(running.admin_url, request(path, method="GET"))).body
            for path in ("/metrics", "/admin/streams")
        ]
    assert CANARY.encode() not in b"".join(bodies)
    assert b'"outcome":"truncated"' in bodies[1]


async def test_a_stream_in_flight_is_in_the_table(running: Running) -> None:
    """As it goes: the client sees the same number of tokens, a moment later."""
    async with connected(running.url) as client:
        await client.send(request(PATH, chat(model="endless"), x_request_id="mine"))
        await client.read_until(b'"content":"')

        async def look() -> Any:
            shown = (await exchange(running.admin_url, request("/admin/streams", method="GET"))).json
            (one,) = shown["in_flight"]
            return one if one["tokens"] > 5 and one["age_s"] > 0.3 else None

        one = await eventually(look)
    assert (one["id"], one["model"], one["phase"], one["outcome"]) == ("mine", "endless", "decode", None)
    assert one["target"] == "openai/mill?token_count=100000&interval_s=0.01"
    assert 5 < one["tokens"] < 1000
    assert 1 < one["tokens_per_s"] < 1000
    assert 0 <= one["idle_s"] < one["age_s"] < 30


async def test_what_every_token_brings_is_counted_while_its_stream_goes_on(running: Running) -> None:
    """Nobody has to wait for its end."""
    async with connected(running.url) as client:
        await client.send(request(PATH, chat(model="endless")))

        async def look() -> bool:
            found = await exchange(running.admin_url, request("/metrics", method="GET", accept=""))
            read = Exposition.read(found.body, found.headers["content-type"])
            assert read.total("millrace_requests_total") == 0
            gaps, transits = (read.total(f"millrace_chunk_{name}_seconds_count") for name in ("gap", "transit"))
            return 5 < gaps < transits

        assert await eventually(look)


@needs_promtool
@pytest.mark.parametrize("accept", ["", OPENMETRICS])
async def test_prometheus_own_tool_takes_what_is_told(accept: str, running: Running) -> None:
    """Names, types, help: nothing that it would complain of."""
    with capture_logs():
        for model in ("good", "cut", "saved", "continued", "no-such-model"):
            await ask(running, model)
    found = await exchange(running.admin_url, request("/metrics", method="GET", accept=accept))
    if not accept:
        ran = subprocess.run(["promtool", "check", "metrics"], input=found.body, capture_output=True, check=False)  # noqa: S607, ASYNC221
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"", b"")
    read = Exposition.read(found.body, found.headers["content-type"])
    assert read.total("millrace_requests_total") == 5
