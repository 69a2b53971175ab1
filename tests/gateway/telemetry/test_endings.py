"""However a stream ends: it is counted once, has one line and one trace, and these three say the same of it.

The gateway has a provider that keeps its own account, and a collector that it exports its traces to.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partialmethod
from typing import Any, Final, Literal

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from gateway.simulator import Script
from gateway.telemetry.tracing import Tracer
from tests.exposition import OPENMETRICS, Exposition
from tests.gateway.telemetry import storm
from tests.gateway.telemetry.storm import CONFIG, KEY, SHORT, Line
from tests.gateway.telemetry.test_storm import upstream
from tests.gateway.telemetry.traced import attributes, is_error
from tests.gateway.telemetry.witness import Watched, watched
from tests.otlp import Collector
from tests.raw_client import chat, connected, exchange, request

PATH: Final = "/v1/chat/completions"
AT_ONCE: Final = 6
QUICK: Final = Script(first_token_s=0.002, interval_s=0.001)
TIMEOUT_S: Final = 30.0
EARLY_S: Final = 0.002
"""Times of spans come from clocks that are read one after the other."""

PROVIDERS: Final[Mapping[str, Any]] = {
    **storm.PROVIDERS,
    "hasty": {**storm.PROVIDERS["hasty"], "stall_timeout_s": 1.5},
    "late": {**storm.PROVIDERS["late"], "total_timeout_s": 3},
}
MODELS: Final[Mapping[str, Any]] = {
    **storm.MODELS,
    "raced-for-nothing": {
        "targets": ["openai/mill?first_token_s=3", "google/gemini-3.5-flash?first_token_s=60"],
        "hedge_after_s": 0.03,
    },
}
"""Those of the storm, with more time: what must happen before time ends a call does so on a busy machine, too."""

Manner = Literal["stays", "leaves unanswered", "leaves midway", "is drained unanswered", "is drained midway"]


@dataclass(frozen=True, slots=True)
class Ending:
    """One way to end, and what is to be told of it.

    ``attempts`` are their results in the order of their numbers, with the reason or the kind of error; ``events`` those
    of the call, in the order in which each happened first. Stalls are not among them: there may be one in any call that
    had to wait for its turn.
    """

    name: str
    model: str
    outcome: str
    attempts: tuple[str, ...]
    error_type: str | None = None
    http_status: int | None = 200
    manner: Manner = "stays"
    events: tuple[str, ...] = ()
    more: Mapping[str, Any] = field(default_factory=dict)
    key: str = KEY


ENDINGS: Final = (
    Ending("completed", "openai", "completed", ("completed",), events=("first_token",)),
    Ending("completed and thought", "anthropic", "completed", ("completed",), events=("first_token",)),
    Ending("completed in one piece", "openai", "completed", ("completed",), events=("first_token",), more=SHORT),
    Ending(
        "client left before the first token", "silent", "client_aborted", ("cancelled client_gone",),
        http_status=None, manner="leaves unanswered",
    ),
    Ending(
        "client left in mid-stream", "endless", "client_aborted", ("cancelled client_gone",),
        manner="leaves midway", events=("first_token",),
    ),
    Ending("deadline", "late", "deadline", ("failed read_timeout",), "read_timeout", events=("first_token",)),
    Ending("cut, and no way on", "reset", "truncated", ("failed reset",), "reset", events=("first_token",)),
    Ending(
        "a stall that was given up", "stalling", "stalled", ("failed read_timeout",), "read_timeout",
        events=("first_token",),
    ),
    Ending(
        "no token at all", "mute", "stalled", ("failed read_timeout",) * 3, "read_timeout", 504, events=("failover",),
    ),
    Ending("truncated", "clean-cut", "truncated", ("failed reset",), "reset", events=("first_token",)),
    Ending("error event", "failing", "upstream_error", ("failed overloaded",), "overloaded", events=("first_token",)),
    Ending("refused by its provider", "refusing", "upstream_error", ("failed bad_request",), "bad_request", 400),
    Ending("rejected: 401", "openai", "rejected", (), "auth", 401, key="mr_stranger"),
    Ending("rejected: 404", "no-such-model", "rejected", (), "bad_request", 404),
    Ending("rejected: 400", "openai", "rejected", (), "bad_request", 400, more={"messages": "none"}),
    Ending(
        "drained before the first token", "silent", "drained", ("cancelled drained",), "gateway_stopping", 503,
        manner="is drained unanswered",
    ),
    Ending(
        "drained in mid-stream", "endless", "drained", ("cancelled drained",), "gateway_stopping",
        manner="is drained midway", events=("first_token",),
    ),
    Ending("a mistake of ours", "faulty", "gateway_error", (), "internal_error", 500),
    Ending(
        "retried, then completed", "retried", "completed", ("failed overloaded", "completed"),
        events=("failover", "first_token"),
    ),
    Ending(
        "failed over, then completed", "failed-over", "completed", ("failed overloaded", "completed"),
        events=("failover", "first_token"),
    ),
    Ending(
        "failed over, then failed", "down", "upstream_error",
        ("failed server_error",) * 3 + ("failed overloaded",) * 3, "overloaded", 503, events=("failover",),
    ),
    Ending(
        "resumed, then completed", "exact", "completed", ("failed reset", "completed"),
        events=("first_token", "failover", "seam"),
    ),
    Ending(
        "resumed in words, then completed", "anchored", "completed", ("failed reset", "completed"),
        events=("first_token", "failover", "seam"),
    ),
    Ending("hedge won", "raced", "completed", ("cancelled hedge_lost", "completed"), events=("first_token",)),
    Ending(
        "hedge lost", "raced-for-nothing", "completed", ("completed", "cancelled hedge_lost"), events=("first_token",),
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Told:
    """What was told of one call, in each of three ways, and what its client was told."""

    ending: Ending
    ticket: str
    lines: Sequence[Line]
    spans: Sequence[Span]
    metrics: Exposition
    traceparent: str | None

    @property
    def finished(self) -> Line:
        """The line of the call."""
        (line,) = (line for line in self.lines if line["event"] == "stream.finished")
        return line

    @property
    def settled(self) -> list[Line]:
        """The lines of its attempts, by their numbers."""
        return sorted((one for one in self.lines if one["event"] == "attempt.settled"), key=lambda one: one["attempt"])

    @property
    def server(self) -> Span:
        """The span of the request."""
        (span,) = (span for span in self.spans if span.kind == Span.SPAN_KIND_SERVER)
        return span

    @property
    def calls(self) -> list[Span]:
        """The spans of the call itself: one, or none where a request was refused before."""
        return [span for span in self.spans if span.parent_span_id == self.server.span_id]

    @property
    def attempts(self) -> list[Span]:
        """The spans of the attempts, by their numbers."""
        found = [span for span in self.spans if any(span.parent_span_id == call.span_id for call in self.calls)]
        return sorted(found, key=lambda span: int(attributes(span)["millrace.attempt"]))


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be patient."""
    _be_patient(monkeypatch)


def _be_patient(patched: pytest.MonkeyPatch) -> None:
    """Let a gateway that stops wait for its last spans to be sent, however busy the machine is."""
    patched.setattr(Tracer, "shutdown", partialmethod(Tracer.shutdown, TIMEOUT_S))


def traced(collector: Collector, **telemetry: Any) -> Mapping[str, Any]:
    """Return the configuration, with traces for the collector."""
    told = {**CONFIG["telemetry"], "otlp_endpoint": collector.url, **telemetry}
    return {**CONFIG, "providers": PROVIDERS, "models": MODELS, "telemetry": told}


async def happen(ending: Ending, ticket: str, logs: Sequence[Line]) -> Told:
    """Let a call end this way, and its gateway stop; then all that will ever be told of it has been."""
    collector = Collector()
    try:
        async with watched(traced(collector), QUICK) as running:
            seen = await _ask(running, ending, ticket)
            await running.calm()
            await running.gateway.stop()
            metrics = Exposition.of(running.slab)
    finally:
        collector.close()
    head = seen.partition(b"\r\n\r\n")[0].decode()
    headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:])
    lines = [line for line in logs if line.get("request_id") == ticket]
    return Told(ending, ticket, lines, collector.spans(), metrics, headers.get("traceparent"))


async def happen_all() -> Mapping[str, Told | BaseException]:
    """Let all endings happen, a few at a time, each with a gateway, a provider and a collector of its own."""
    room = asyncio.Semaphore(AT_ONCE)

    async def one(ending: Ending, ticket: str) -> Told:
        async with room:
            return await happen(ending, ticket, logs)

    with capture_logs(processors=[merge_contextvars]) as logs:
        endings = [one(ending, f"ticket-{number}") for number, ending in enumerate(ENDINGS)]
        found = await asyncio.gather(*endings, return_exceptions=True)
    assert sum(line["event"] == "stream.finished" for line in logs) <= len(ENDINGS)
    return {ending.name: told for ending, told in zip(ENDINGS, found, strict=True)}


@pytest.fixture(scope="module")
def all_told() -> Mapping[str, Told | BaseException]:
    """What was told of each ending."""
    with pytest.MonkeyPatch.context() as patched:
        _be_patient(patched)
        return asyncio.run(happen_all())


async def _ask(running: Watched, ending: Ending, ticket: str) -> bytes:
    """Return all that the client has seen."""
    body = {**chat(f"What does a weir do? ({ticket})", model=ending.model), **ending.more}
    headers = {"authorization": f"Bearer {ending.key}", "x_request_id": ticket, "connection": "close"}
    async with connected(running.url) as client:
        await client.send(request(PATH, body, **headers))
        if ending.manner != "stays":
            await running.witness.asked(ticket)
            if ending.manner.endswith("midway"):
                await client.read_until(b'"content":"', timeout_s=TIMEOUT_S)
        if ending.manner.startswith("leaves"):
            return client.seen
        if ending.manner.startswith("is drained"):
            await running.gateway.stop()
        return await client.read_all(timeout_s=TIMEOUT_S)


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: ending.name)
def test_an_ending_is_told_once_and_in_three_ways_the_same(
    ending: Ending, all_told: Mapping[str, Told | BaseException]
) -> None:
    """One set of metrics, one line, and one trace with all of its spans, closed."""
    told = all_told[ending.name]
    if isinstance(told, BaseException):
        raise told
    check_log(told)
    check_metrics(told)
    check_shape(told)
    check_spans(told)


# --- the log is as the ending should be


def check_log(told: Told) -> None:
    """Assert that the lines tell what has happened."""
    ending, line = told.ending, told.finished
    expected = {
        "request_id": told.ticket,
        "model": "other" if ending.outcome == "rejected" and ending.http_status != 400 else line["model"],
        "outcome": ending.outcome,
        "stream": line["stream"],
        "attempts": len(ending.attempts),
        "error_type": ending.error_type,
        "http_status": ending.http_status,
    }
    assert {name: line.get(name) for name in expected} == expected
    ends = [" ".join(filter(None, (one["result"], one.get("reason"), one.get("error_type")))) for one in told.settled]
    assert tuple(ends) == ending.attempts


# --- the metrics are as the log


def check_metrics(told: Told) -> None:
    """Assert that everything was counted once, under the names that are in the lines."""
    line, found = told.finished, told.metrics
    stream = str(line["stream"]).lower()
    where = {"route": line["endpoint"], "model": line["model"]}
    assert found.total("millrace_requests_started_total") == 1
    assert found.total("millrace_requests_started_total", **where) == 1
    assert found.total("millrace_requests_total") == 1
    assert found.total("millrace_requests_total", **where, stream=stream, outcome=line["outcome"]) == 1
    assert found.total("millrace_request_duration_seconds_count") == 1
    assert found.by("phase", "millrace_streams_active") == {}
    assert found.by("upstream", "millrace_upstream_inflight") == {}
    counted: Counter[tuple[str, ...]] = Counter()
    labels = ("upstream", "model", "result", "error_type")
    for sample in found.of_name("millrace_upstream_attempts_total"):
        counted[tuple(sample.labels[label] for label in labels)] += int(sample.value)
    assert counted == Counter(
        (upstream(one, MODELS), one["model"], one["result"], one.get("error_type", "")) for one in told.settled
    )
    for name in ("input_tokens", "output_tokens"):
        assert found.total(f"millrace_{name}_total") == sum(one.get(name, 0) for one in told.settled)
    assert found.total("millrace_tokens_wasted_total") == line.get("wasted_tokens", 0)
    has_ttft = line["stream"] and line["ttft_s"] is not None
    assert found.total("millrace_ttft_seconds_count") == has_ttft
    assert found.total("millrace_stream_resumes_total") == line["resumed"]
    assert found.total("millrace_stalls_total") == line.get("stalls", 0)
    is_judged = line["stream"] and line["outcome"] not in ("client_aborted", "rejected")
    assert found.total("millrace_slo_streams_total", objective="all") == is_judged


# --- the trace is whole


def check_shape(told: Told) -> None:
    """Assert that there is one span for the request, one for the call, one for each attempt, and each in its place."""
    ending = told.ending
    assert len(told.calls) == (ending.outcome != "rejected")
    assert len(told.attempts) == len(ending.attempts)
    assert len(told.spans) == 1 + len(told.calls) + len(told.attempts)
    assert len({span.span_id for span in told.spans}) == len(told.spans)
    (trace_id,) = {span.trace_id for span in told.spans}
    assert told.server.parent_span_id == b""
    assert {span.kind for span in [*told.calls, *told.attempts]} <= {Span.SPAN_KIND_CLIENT}
    by_id = {span.span_id: span for span in told.spans}
    early_ns = int(EARLY_S * 1e9)
    for span in told.spans:
        assert 0 < span.start_time_unix_nano <= span.end_time_unix_nano
        if parent := by_id.get(span.parent_span_id):
            assert parent.start_time_unix_nano <= span.start_time_unix_nano + early_ns
            assert span.end_time_unix_nano <= parent.end_time_unix_nano + early_ns
    ids = {"trace_id": trace_id.hex(), "span_id": told.server.span_id.hex()}
    assert all(ids.items() <= line.items() for line in told.lines)
    if ending.http_status is not None:
        assert told.traceparent == f"00-{ids['trace_id']}-{ids['span_id']}-01"


# --- and says what the log says


def check_spans(told: Told) -> None:
    """Assert that spans and lines agree on everything that both tell."""
    ending, line = told.ending, told.finished
    said = attributes(told.server)
    assert said["millrace.request_id"] == told.ticket
    assert said["millrace.outcome"] == line["outcome"]
    assert said.get("http.response.status_code") == line.get("http_status")
    is_failure = ending.outcome not in ("completed", "client_aborted", "rejected")
    is_server_error = is_failure and (ending.http_status or 200) not in range(400, 500)
    assert is_error(told.server) == is_server_error
    assert said.get("error.type") == (line.get("error_type") if is_server_error else None)
    for span in told.calls:
        check_call(told, span, is_failure=is_failure)
    for span, settled in zip(told.attempts, told.settled, strict=True):
        check_attempt(span, settled)


def check_call(told: Told, span: Span, *, is_failure: bool) -> None:
    """Assert that the span of the call says what its line says."""
    line, said = told.finished, attributes(span)
    assert is_error(span) == is_failure
    assert said["millrace.outcome"] == line["outcome"]
    assert said["gen_ai.request.model"] == line["model"]
    assert said["millrace.attempt_count"] == line["attempts"]
    assert said.get("error.type") == (line.get("error_type") if is_failure else None)
    assert said.get("gen_ai.usage.input_tokens") == line["input_tokens"]
    assert said.get("gen_ai.usage.output_tokens") == line["output_tokens"]
    assert said.get("millrace.usage.is_estimated", False) == (line["usage_source"] == "estimated")
    if line["target"]:
        assert said["millrace.target"] == line.get("last_target", line["target"])
    reasons = [line["finish_reason"]] if line["finish_reason"] else [] if line["outcome"] == "completed" else ["error"]
    assert said["gen_ai.response.finish_reasons"] == reasons
    ttft_s = said.get("gen_ai.response.time_to_first_chunk")
    assert ttft_s == (pytest.approx(line["ttft_s"], abs=1e-6) if line["stream"] and line["ttft_s"] else None)
    events = [event.name for event in span.events]
    assert tuple(dict.fromkeys(name for name in events if name != "stall")) == told.ending.events
    assert events.count("seam") == line["resumed"]
    assert events.count("stall") == line.get("stalls", 0) >= (told.ending.model == "stalling")
    assert events.count("first_token") == (line["ttft_s"] is not None)
    assert events.count("failover") == told.metrics.total("millrace_failovers_total")


def check_attempt(span: Span, line: Line) -> None:
    """Assert that the span of an attempt says what its line says."""
    said = attributes(span)
    for name, field_name in (
        ("millrace.attempt", "attempt"),
        ("millrace.target", "target"),
        ("millrace.result", "result"),
        ("millrace.reason", "reason"),
        ("millrace.way", "way"),
        ("millrace.code", "code"),
        ("millrace.is_delivered", "is_delivered"),
        ("millrace.usage.input_tokens", "input_tokens"),
        ("millrace.usage.output_tokens", "output_tokens"),
        ("error.type", "error_type"),
        ("http.response.status_code", "http_status"),
    ):
        assert said.get(name) == line.get(field_name), name
    assert is_error(span) == (line["result"] == "failed")


# --- exemplars


@pytest.mark.usefixtures("patience")
async def test_an_exemplar_names_a_trace_that_the_collector_has(collector: Collector) -> None:
    """Of calls that are not sampled, by us or by their caller, none is an example."""
    body = chat("What does a weir do? (ticket-0)", model="openai")
    headers = {"authorization": f"Bearer {KEY}", "connection": "close"}
    unsampled = [f"{number:032x}" for number in range(1, 11)]
    async with watched(traced(collector, trace_sample_ratio=0.5), QUICK) as running:
        with capture_logs(processors=[merge_contextvars]) as logs:
            for _ in range(30):
                await exchange(running.url, request(PATH, body, **headers), timeout_s=TIMEOUT_S)
            for trace_id in unsampled:
                told = {**headers, "traceparent": f"00-{trace_id}-00f067aa0ba902b7-00"}
                await exchange(running.url, request(PATH, body, **told), timeout_s=TIMEOUT_S)
            await running.calm()
            answer = await exchange(running.admin_url, request("/metrics", method="GET", accept=OPENMETRICS))
            await running.gateway.stop()
    samples = Exposition.read(answer.body, answer.headers["content-type"]).samples
    exemplars = [(sample.name, sample.exemplar) for sample in samples if sample.exemplar is not None]
    named = {exemplar.labels["trace_id"] for _, exemplar in exemplars}
    collected = {span.trace_id.hex() for span in collector.spans()}
    logged = {line["trace_id"] for line in logs if line["event"] == "stream.finished"}
    assert len(logged) == 40
    assert named
    assert named <= collected < logged
    assert not collected & set(unsampled)
    assert {name for name, _ in exemplars} >= {
        "millrace_ttft_seconds_bucket",
        "millrace_request_duration_seconds_bucket",
    }
    ttfts = {line["trace_id"]: line["ttft_s"] for line in logs if line["event"] == "stream.finished"}
    for name, exemplar in exemplars:
        if name == "millrace_ttft_seconds_bucket":
            assert exemplar.value == pytest.approx(ttfts[exemplar.labels["trace_id"]], abs=1e-6)


@pytest.mark.usefixtures("patience")
async def test_calls_at_once_have_each_a_trace_of_their_own(collector: Collector) -> None:
    """Nothing of one is in that of another, whatever else goes on."""
    endings = [one for one in ENDINGS if one.manner == "stays" and one.key == KEY and "messages" not in one.more] * 2
    headers = {"authorization": f"Bearer {KEY}", "connection": "close"}

    async def ask(running: Watched, number: int, ending: Ending) -> None:
        body = {**chat(f"What does a weir do? (ticket-{number})", model=ending.model), **ending.more}
        data = request(PATH, body, x_request_id=f"ticket-{number}", **headers)
        async with connected(running.url) as client:
            await client.send(data)
            await client.read_all(timeout_s=TIMEOUT_S)

    async with watched(traced(collector), QUICK) as running:
        with capture_logs(processors=[merge_contextvars]) as logs:
            await asyncio.gather(*(ask(running, number, ending) for number, ending in enumerate(endings)))
            await running.calm()
            await running.gateway.stop()
    spans = collector.spans()
    for number, ending in enumerate(endings):
        ticket = f"ticket-{number}"
        (line,) = (one for one in logs if one["event"] == "stream.finished" and one["request_id"] == ticket)
        own = [span for span in spans if span.trace_id.hex() == line["trace_id"]]
        (server,) = (span for span in own if span.kind == Span.SPAN_KIND_SERVER)
        assert attributes(server)["millrace.request_id"] == ticket
        assert attributes(server)["millrace.outcome"] == line["outcome"] == ending.outcome
        settled = [one for one in logs if one["event"] == "attempt.settled" and one["request_id"] == ticket]
        assert len(own) == 1 + (ending.outcome != "rejected") + len(settled)
        own_lines = [one for one in logs if one.get("request_id") == ticket]
        assert {(one["trace_id"], one["span_id"]) for one in own_lines} == {(line["trace_id"], server.span_id.hex())}
    assert len({span.span_id for span in spans}) == len(spans)
