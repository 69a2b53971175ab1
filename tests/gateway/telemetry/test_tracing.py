from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased
from structlog.testing import capture_logs

from gateway import __version__
from gateway.core.call import (
    Call,
    Message,
    ResponseFormat,
    Route,
    Sampling,
    Source,
    Target,
    TextPart,
    Tool,
    ToolCall,
)
from gateway.core.events import Usage
from gateway.core.ledger import Settlement
from gateway.schema import Secret
from gateway.telemetry import conventions as names
from gateway.telemetry.tracing import (
    MAX_CHARACTERS,
    MAX_NOTES,
    Caller,
    Facts,
    Pace,
    Peer,
    RecordedTrace,
    Trace,
    Tracer,
    read_traceparent,
)

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, UNSAMPLED = f"00-{TRACE_ID}-{SPAN_ID}-01", f"00-{TRACE_ID}-{SPAN_ID}-00"

FIRST, SECOND = Target("openai", "gpt-5-mini"), Target("claude", "claude-haiku-4-5")
PEERS = {
    "openai": Peer.of(kind="openai", base_url="https://api.openai.com/v1"),
    "claude": Peer.of(kind="anthropic", base_url="http://127.0.0.1:9000"),
}
QUICK = Pace(interval_s=0.01, pause_s=0.0, breath_s=0.0, timeout_s=0.5)
PATIENT = Pace(interval_s=60.0, timeout_s=0.5)
"""Sends nothing before it is shut down."""

CANARY = "canary-7f3a"


class Collector:
    """A collector that keeps what it is sent, or behaves as badly as it is told to."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, Mapping[str, str], bytes]] = []
        self.statuses: list[int] = []
        self.headers: dict[str, str] = {}
        self.hangs = threading.Event()
        self.hangs.set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 5

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.hangs.wait(5)
                headers = {name.lower(): value for name, value in self.headers.items()}
                collector.requests.append((self.path, headers, body))
                self.send_response(collector.statuses.pop(0) if collector.statuses else 200)
                for name, value in {"content-length": "0", **collector.headers}.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002, the base class calls it so
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that leaves is no error
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        """Stop, whoever still waits."""
        self.hangs.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def batches(self) -> list[ExportTraceServiceRequest]:
        """Return what was sent, read."""
        return [ExportTraceServiceRequest.FromString(body) for _, _, body in self.requests]

    def spans(self) -> list[Span]:
        """Return all spans that were sent."""
        return [
            span
            for batch in self.batches()
            for resource in batch.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector, running."""
    running = Collector()
    yield running
    running.close()


MakeTracer = Callable[..., Tracer]


@pytest.fixture
def make_tracer(collector: Collector) -> Iterator[MakeTracer]:
    """Start tracers for the collector; after the test they are shut down."""
    made: list[Tracer] = []

    def make(endpoint: str = collector.url, *, pace: Pace = PATIENT, **options: Any) -> Tracer:
        tracer = Tracer(endpoint, pace=pace, peers=PEERS, **options)
        tracer.start()
        made.append(tracer)
        return tracer

    yield make
    for tracer in made:
        tracer.shutdown(0.0)


def call(traceparent: str | None = None, **fields: Any) -> Call:
    """Return a call for the model ``chat``, as the server makes it."""
    asked: dict[str, Any] = {
        "request_id": "r1",
        "endpoint": "chat_completions",
        "model": "chat",
        "route": Route(name="chat", targets=(FIRST, SECOND)),
        "headers": {"traceparent": traceparent} if traceparent else {},
        "received_at_s": time.monotonic(),
        "stream": True,
    }
    return Call(**{**asked, **fields})


def settlement(**fields: Any) -> Settlement:
    """Return an attempt that has brought the whole answer."""
    now_s = time.monotonic()
    settled: dict[str, Any] = {
        "request_id": "r1",
        "attempt": 1,
        "target": FIRST,
        "model": "chat",
        "result": "completed",
        "started_at_s": now_s - 2.0,
        "first_token_at_s": now_s - 1.5,
        "ended_at_s": now_s,
        "usage": Usage(10, 20),
        "is_delivered": True,
    }
    return Settlement(**{**settled, **fields})


def attributes(span: Span | Span.Event) -> dict[str, Any]:
    """Return the attributes as plain values."""
    found: dict[str, Any] = {}
    for item in span.attributes:
        kind = item.value.WhichOneof("value")
        assert kind is not None
        value = getattr(item.value, kind)
        found[item.key] = [one.string_value for one in value.values] if kind == "array_value" else value
    return found


def is_error(span: Span) -> bool:
    """Whether the span's status is an error; that it is nothing else but unset."""
    assert span.status.code in (Status.STATUS_CODE_UNSET, Status.STATUS_CODE_ERROR)
    return span.status.code == Status.STATUS_CODE_ERROR


def server_and_call(collector: Collector) -> tuple[Span, Span]:
    """Return the two spans of the one request that was traced."""
    server = [span for span in collector.spans() if span.kind == Span.SPAN_KIND_SERVER]
    logical = [span for span in collector.spans() if server and span.parent_span_id == server[0].span_id]
    assert len(server) == len(logical) == 1
    return server[0], logical[0]


# --- ids --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "flags"),
    [
        (SAMPLED, 1),
        (UNSAMPLED, 0),
        (f"00-{TRACE_ID}-{SPAN_ID}-03", 3),
        (f"00-{TRACE_ID}-{SPAN_ID}-ff", 3),
        (f"cc-{TRACE_ID}-{SPAN_ID}-01", 1),
        (f"cc-{TRACE_ID}-{SPAN_ID}-01-what-the-future-brings", 1),
    ],
)
def test_a_traceparent_is_read(header: str, flags: int) -> None:
    """The ids, and the flags that have a meaning; of a later version what this one knows."""
    assert read_traceparent(header) == Caller(TRACE_ID, SPAN_ID, flags)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "nonsense",
        SAMPLED.upper(),
        SAMPLED + "\n",
        SAMPLED + "-more",
        f"ff-{TRACE_ID}-{SPAN_ID}-01",
        f"cc-{TRACE_ID}-{SPAN_ID}-01.more",
        f"00-{'0' * 32}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"00-{TRACE_ID[1:]}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{SPAN_ID}",
    ],
)
def test_what_is_no_traceparent_is_ignored(header: str) -> None:
    """The call gets a trace of its own then."""
    assert read_traceparent(header) is None
    trace = Tracer().begin(call(header))
    assert re.fullmatch(r"[0-9a-f]{32}", trace.trace_id)
    assert trace.trace_id != TRACE_ID


def test_without_a_collector_a_call_has_ids_and_nothing_else() -> None:
    """They are for the log; nobody is told of a trace that nobody keeps."""
    tracer = Tracer()
    tracer.start()
    trace = tracer.begin(call())
    tracer.shutdown()
    assert tracer.dropped_count == 0
    assert re.fullmatch(r"[0-9a-f]{32}", trace.trace_id)
    assert re.fullmatch(r"[0-9a-f]{16}", trace.span_id)
    assert (trace.is_sampled, trace.traceparent, trace.tracestate) == (False, None, None)
    assert trace.trace_id != Tracer().begin(call()).trace_id


@pytest.mark.parametrize(("header", "is_sampled"), [(SAMPLED, True), (UNSAMPLED, False)])
def test_without_a_collector_the_callers_trace_passes_through(header: str, is_sampled: bool) -> None:  # noqa: FBT001, a parameter
    """Whoever is asked next belongs below the caller, as there is no span between."""
    trace = Tracer().begin(call(headers={"traceparent": header, "tracestate": "vendor=1"}))
    assert (trace.trace_id, trace.span_id, trace.is_sampled) == (TRACE_ID, SPAN_ID, is_sampled)
    assert (trace.traceparent, trace.tracestate) == (header, "vendor=1")


def test_without_a_collector_there_is_no_thread_and_no_sdk() -> None:
    """Who exports nothing pays for nothing."""
    script = """
import sys, threading
from gateway.core.call import Call
from gateway.telemetry.tracing import Tracer
tracer = Tracer()
tracer.start()
trace = tracer.begin(Call(request_id="r"))
trace.note("first_token")
trace.end("completed")
tracer.shutdown()
assert tracer.dropped_count == 0
assert threading.active_count() == 1
assert not {"opentelemetry", "requests"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True)  # noqa: S603, ours


def test_nothing_is_noted_of_a_call_that_is_not_recorded(collector: Collector, make_tracer: MakeTracer) -> None:
    """All can be said of it that can be said of another, and is forgotten."""
    tracer = make_tracer(sample_ratio=0.0)
    trace = tracer.begin(call())
    assert type(trace) is Trace
    trace.note(names.FIRST_TOKEN)
    trace.attempt(settlement())
    trace.end("completed", usage=Usage(1, 2))
    tracer.shutdown()
    assert collector.requests == []
    assert trace.traceparent == f"00-{trace.trace_id}-{trace.span_id}-00"
    assert tracer.dropped_count == 0


# --- sampling ---------------------------------------------------------------------------------------------------------


def test_the_traces_id_alone_decides_whether_it_is_sampled() -> None:
    """All who see the trace decide alike, OpenTelemetry's own sampler among them."""
    tracer, sampler = Tracer("http://127.0.0.1:9", sample_ratio=0.3), TraceIdRatioBased(0.3)
    traces = [tracer.begin(call()) for _ in range(500)]
    for trace in traces:
        decision = sampler.should_sample(None, int(trace.trace_id, 16), "").decision
        assert trace.is_sampled == (decision is Decision.RECORD_AND_SAMPLE)
        assert trace.is_sampled == isinstance(trace, RecordedTrace)
    assert 75 < sum(trace.is_sampled for trace in traces) < 225


@pytest.mark.parametrize("sample_ratio", [0.0, 1.0])
@pytest.mark.parametrize(("header", "is_sampled"), [(SAMPLED, True), (UNSAMPLED, False)])
def test_the_caller_decides_first(header: str, is_sampled: bool, sample_ratio: float) -> None:  # noqa: FBT001, a parameter
    """A trace is whole or not at all, whatever our own share is."""
    trace = Tracer("http://127.0.0.1:9", sample_ratio=sample_ratio).begin(call(header))
    assert isinstance(trace, RecordedTrace) is is_sampled
    assert trace.is_sampled is is_sampled
    assert trace.trace_id == TRACE_ID


# --- spans ------------------------------------------------------------------------------------------------------------


def test_a_call_is_a_tree_of_spans(collector: Collector, make_tracer: MakeTracer) -> None:
    """The request, the call below it, and below that every attempt, each where and when it was."""
    tracer = make_tracer()
    began_ns, asked = time.time_ns(), call()
    trace = tracer.begin(asked)
    trace.note("failover", {"target": "openai/gpt-5-mini", "attempt": 1, "error_type": "overloaded"})
    broken = settlement(result="failed", error_type="overloaded", http_status=503, usage=None, is_delivered=False)
    trace.attempt(broken)
    trace.note("first_token", {"target": "claude/claude-haiku-4-5"})
    good = settlement(attempt=2, target=SECOND, way="restart")
    trace.attempt(good)
    trace.end("completed", finish_reasons=["stop"], ttft_s=0.5, http_status=200)
    ended_ns = time.time_ns()
    tracer.shutdown()

    server, logical = server_and_call(collector)
    attempts = [span for span in collector.spans() if span.parent_span_id == logical.span_id]
    assert len(collector.spans()) == 4
    assert {span.trace_id.hex() for span in collector.spans()} == {trace.trace_id}
    assert len({span.span_id for span in collector.spans()}) == 4
    assert server.span_id.hex() == trace.span_id
    assert server.parent_span_id == b""
    assert trace.traceparent == f"00-{trace.trace_id}-{logical.span_id.hex()}-01"
    assert [(span.name, Span.SpanKind.Name(span.kind)) for span in (server, logical, *attempts)] == [
        ("POST /v1/chat/completions", "SPAN_KIND_SERVER"),
        ("chat chat", "SPAN_KIND_CLIENT"),
        ("chat gpt-5-mini", "SPAN_KIND_CLIENT"),
        ("chat claude-haiku-4-5", "SPAN_KIND_CLIENT"),
    ]
    assert [is_error(span) for span in (server, logical, *attempts)] == [False, False, True, False]

    assert began_ns - 2_000_000 < server.start_time_unix_nano <= ended_ns
    assert server.start_time_unix_nano == logical.start_time_unix_nano
    assert server.start_time_unix_nano <= server.end_time_unix_nano == logical.end_time_unix_nano < ended_ns + 2_000_000
    for span, settled in zip(attempts, (broken, good), strict=True):
        since_s = (span.start_time_unix_nano - server.start_time_unix_nano) / 1e9
        assert since_s == pytest.approx(settled.started_at_s - asked.received_at_s, abs=1e-5)
        assert (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9 == pytest.approx(2.0, abs=1e-5)

    assert [(event.name, attributes(event)) for event in logical.events] == [
        (
            "failover",
            {
                "millrace.target": "openai/gpt-5-mini",
                "millrace.attempt": 1,
                "millrace.error_type": "overloaded",
            },
        ),
        ("first_token", {"millrace.target": "claude/claude-haiku-4-5"}),
    ]
    times = [event.time_unix_nano for event in logical.events]
    assert logical.start_time_unix_nano <= times[0] <= times[1] <= logical.end_time_unix_nano


def test_the_attributes_are_the_conventions(collector: Collector, make_tracer: MakeTracer) -> None:
    """By name and by type, and what no convention knows is under ours."""
    tracer = make_tracer()
    trace = tracer.begin(
        call(
            choice_count=2,
            max_output_tokens=300,
            sampling=Sampling(
                temperature=0.5, top_p=0.9, top_k=40, seed=7, frequency_penalty=0.1, presence_penalty=0.2
            ),
            reasoning_effort="high",
            response_format=ResponseFormat(kind="json_schema"),
        )
    )
    usage = Usage(100, 50, 40, 25, 30, is_estimated=True)
    trace.attempt(settlement(usage=usage, code="c", way="exact", started_at_s=1.0, first_token_at_s=1.25))
    trace.end(
        "completed",
        usage=usage,
        finish_reasons=["stop", "length"],
        response_id="chatcmpl-1",
        response_model="gpt-5-mini-2026",
        ttft_s=0.25,
        http_status=200,
    )
    tracer.shutdown()
    server, logical = server_and_call(collector)
    assert attributes(server) == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "url.path": "/v1/chat/completions",
        "url.scheme": "http",
        "millrace.request_id": "r1",
        "millrace.outcome": "completed",
    }
    assert attributes(logical) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.output.type": "json",
        "gen_ai.request.model": "chat",
        "gen_ai.request.stream": True,
        "gen_ai.request.choice.count": 2,
        "gen_ai.request.max_tokens": 300,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.top_k": 40,
        "gen_ai.request.seed": 7,
        "gen_ai.request.frequency_penalty": 0.1,
        "gen_ai.request.presence_penalty": 0.2,
        "gen_ai.request.reasoning.level": "high",
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.model": "gpt-5-mini-2026",
        "gen_ai.response.finish_reasons": ["stop", "length"],
        "gen_ai.response.time_to_first_chunk": 0.25,
        "gen_ai.usage.input_tokens": 100,
        "gen_ai.usage.output_tokens": 50,
        "gen_ai.usage.cache_read.input_tokens": 40,
        "gen_ai.usage.cache_write.input_tokens": 25,
        "gen_ai.usage.reasoning.output_tokens": 30,
        "server.address": "api.openai.com",
        "server.port": 443,
        "millrace.outcome": "completed",
        "millrace.attempt_count": 1,
        "millrace.target": "openai/gpt-5-mini",
        "millrace.usage.is_estimated": True,
    }
    attempt = next(span for span in collector.spans() if span.parent_span_id == logical.span_id)
    assert attributes(attempt) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-5-mini",
        "gen_ai.request.stream": True,
        "gen_ai.response.time_to_first_chunk": 0.25,
        "server.address": "api.openai.com",
        "server.port": 443,
        "millrace.attempt": 1,
        "millrace.target": "openai/gpt-5-mini",
        "millrace.result": "completed",
        "millrace.code": "c",
        "millrace.way": "exact",
        "millrace.is_delivered": True,
        "millrace.usage.input_tokens": 100,
        "millrace.usage.output_tokens": 50,
        "millrace.usage.cache_read.input_tokens": 40,
        "millrace.usage.cache_write.input_tokens": 25,
        "millrace.usage.reasoning.output_tokens": 30,
        "millrace.usage.is_estimated": True,
    }


def test_who_exports_is_named(collector: Collector, make_tracer: MakeTracer) -> None:
    """Each process by itself, with what the environment says of it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("OTEL_RESOURCE_ATTRIBUTES", "k8s.pod.name=mill-0")
        tracer = make_tracer()
    tracer.begin(call()).end("completed")
    tracer.shutdown()
    (resource,) = collector.batches()[0].resource_spans
    found = {item.key: item.value.string_value for item in resource.resource.attributes}
    assert found["service.name"] == "millrace"
    assert found["service.version"] == __version__
    assert re.fullmatch(r"[0-9a-f-]{36}", found["service.instance.id"])
    assert found["k8s.pod.name"] == "mill-0"
    assert (resource.scope_spans[0].scope.name, resource.scope_spans[0].scope.version) == ("millrace", __version__)


def test_a_call_that_is_no_stream_says_nothing_of_chunks(collector: Collector, make_tracer: MakeTracer) -> None:
    """An attribute that is not there says what its absence means."""
    tracer = make_tracer()
    trace = tracer.begin(call(stream=False, endpoint="of-another-version"))
    trace.attempt(settlement(target=Target("elsewhere", "m")))
    trace.end("completed", ttft_s=0.25)
    tracer.shutdown()
    server, logical = server_and_call(collector)
    assert (server.name, logical.name) == ("POST", "chat chat")
    found = {name: value for span in collector.spans() for name, value in attributes(span).items()}
    left_out = ("gen_ai.request.stream", "gen_ai.response.time_to_first_chunk", "http.route", "server.address")
    assert not found.keys() & set(left_out)
    assert found["gen_ai.provider.name"] == "unknown"


def test_the_callers_trace_is_continued(collector: Collector, make_tracer: MakeTracer) -> None:
    """The request is below the caller's span, and what the caller's vendor wants to be told again is."""
    tracer = make_tracer(sample_ratio=0.0)
    trace = tracer.begin(call(headers={"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-03", "tracestate": "vendor=1"}))
    trace.end("completed", http_status=200)
    tracer.shutdown()
    server, logical = server_and_call(collector)
    assert (server.trace_id.hex(), server.parent_span_id.hex()) == (TRACE_ID, SPAN_ID)
    assert server.span_id.hex() == trace.span_id != SPAN_ID
    assert (server.trace_state, logical.trace_state) == ("vendor=1", "vendor=1")
    assert (server.flags & 0x200, logical.flags & 0x200) == (0x200, 0)
    assert trace.traceparent == f"00-{TRACE_ID}-{logical.span_id.hex()}-03"
    assert trace.tracestate == "vendor=1"


@pytest.mark.parametrize(
    ("outcome", "facts", "errors"),
    [
        ("completed", Facts(http_status=200), (None, None)),
        ("client_aborted", Facts(http_status=200), (None, None)),
        ("client_aborted", Facts(), (None, None)),
        ("upstream_error", Facts(http_status=502, error_type="server_error"), ("server_error", "server_error")),
        ("upstream_error", Facts(http_status=400, error_type="bad_request"), (None, "bad_request")),
        ("truncated", Facts(http_status=200, error_type="reset"), ("reset", "reset")),
        ("stalled", Facts(http_status=504, error_type="read_timeout"), ("read_timeout", "read_timeout")),
        ("deadline", Facts(http_status=200), ("deadline", "deadline")),
        ("gateway_error", Facts(http_status=500, error_type="_OTHER"), ("_OTHER", "_OTHER")),
        ("drained", Facts(http_status=200), ("drained", "drained")),
        ("drained", Facts(), ("drained", "drained")),
    ],
)
def test_a_span_is_an_error_when_what_it_stands_for_failed(
    collector: Collector, make_tracer: MakeTracer, outcome: str, facts: Facts, errors: tuple[str | None, str | None]
) -> None:
    """The request by its status or its broken stream, the call by its end; what its client did is no error."""
    tracer = make_tracer()
    tracer.begin(call()).end(outcome, **facts)
    tracer.shutdown()
    for span, error in zip(server_and_call(collector), errors, strict=True):
        assert is_error(span) == (error is not None)
        assert attributes(span).get("error.type") == error
        assert attributes(span)["millrace.outcome"] == outcome


def test_a_call_that_nobody_was_found_for_is_with_nobody(collector: Collector, make_tracer: MakeTracer) -> None:
    """Then the operation is all that there is to say."""
    tracer = make_tracer()
    tracer.begin(call(route=Route())).end("gateway_error", http_status=500)
    tracer.shutdown()
    _, logical = server_and_call(collector)
    assert logical.name == "chat"
    assert not {"gen_ai.provider.name", "gen_ai.request.model"} & attributes(logical).keys()


def test_a_tracestate_that_is_none_is_left_out(
    collector: Collector, make_tracer: MakeTracer, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nobody is told of it either."""
    tracer = make_tracer()
    tracer.begin(call(headers={"traceparent": SAMPLED, "tracestate": CANARY})).end("completed")
    tracer.shutdown()
    assert [span.trace_state for span in collector.spans()] == ["", ""]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("status", [401, 404])
def test_a_request_that_is_refused_at_the_door_is_no_call(
    collector: Collector, make_tracer: MakeTracer, status: int
) -> None:
    """There is the request, which is no error of ours, and no call of any model."""
    tracer = make_tracer()
    trace = tracer.begin(call(route=Route(), model=CANARY))
    trace.end("rejected", http_status=status, error_type="auth")
    tracer.shutdown()
    (server,) = collector.spans()
    assert server.kind == Span.SPAN_KIND_SERVER
    assert not is_error(server)
    assert attributes(server)["http.response.status_code"] == status
    assert "error.type" not in attributes(server)


def test_an_attempt_that_was_given_up_has_not_failed(collector: Collector, make_tracer: MakeTracer) -> None:
    """It says for what reason; one that failed says how, in a word of a closed set."""
    tracer = make_tracer()
    trace = tracer.begin(call())
    trace.attempt(settlement(result="cancelled", reason="hedge_lost"))
    trace.attempt(settlement(attempt=2, result="failed", error_type="rate_limited", http_status=429))
    trace.attempt(settlement(attempt=3, result="failed"))
    tracer.shutdown()
    given_up, limited, unknown = collector.spans()
    assert not is_error(given_up)
    assert attributes(given_up).items() >= {"millrace.result": "cancelled", "millrace.reason": "hedge_lost"}.items()
    assert "error.type" not in attributes(given_up)
    assert is_error(limited)
    assert attributes(limited).items() >= {"error.type": "rate_limited", "http.response.status_code": 429}.items()
    assert attributes(unknown)["error.type"] == "_OTHER"


def test_a_choice_without_an_end_has_the_reason_error(collector: Collector, make_tracer: MakeTracer) -> None:
    """One reason for each choice, in their order."""
    tracer = make_tracer()
    tracer.begin(call(choice_count=3)).end("truncated", finish_reasons=["stop"], http_status=200)
    tracer.shutdown()
    _, logical = server_and_call(collector)
    assert attributes(logical)["gen_ai.response.finish_reasons"] == ["stop", "error", "error"]


def test_the_call_is_with_whom_its_answer_is_from(collector: Collector, make_tracer: MakeTracer) -> None:
    """The last who brought any of it; before anybody did, who was asked first."""
    tracer = make_tracer()
    trace = tracer.begin(call())
    trace.attempt(settlement(result="failed"))
    trace.attempt(settlement(attempt=2, target=SECOND))
    trace.attempt(settlement(attempt=3, result="cancelled", is_delivered=False))
    trace.end("completed")
    tracer.shutdown()
    _, logical = server_and_call(collector)
    expected = {"gen_ai.provider.name": "anthropic", "server.address": "127.0.0.1", "server.port": 9000}
    assert attributes(logical).items() >= {**expected, "millrace.attempt_count": 3}.items()


def test_a_call_ends_once_and_its_attempts_when_they_do(collector: Collector, make_tracer: MakeTracer) -> None:
    """A second end changes nothing, a late attempt is told all the same."""
    tracer = make_tracer()
    trace = tracer.begin(call())
    trace.end("completed", http_status=200)
    trace.end("gateway_error", http_status=500)
    trace.attempt(settlement())
    tracer.shutdown()
    assert len(collector.spans()) == 3
    server, logical = server_and_call(collector)
    assert attributes(server)["millrace.outcome"] == attributes(logical)["millrace.outcome"] == "completed"


def test_a_call_is_worth_only_so_many_notes(collector: Collector, make_tracer: MakeTracer) -> None:
    """A stream that stalls for ever fills no memory, and a name is as long as names are."""
    tracer = make_tracer()
    trace = tracer.begin(call(model="m" * 1000, route=Route(targets=(FIRST,))))
    for _ in range(MAX_NOTES + 10):
        trace.note("stall", {"phase": "x" * 1000})
    trace.end("completed")
    tracer.shutdown()
    _, logical = server_and_call(collector)
    assert len(logical.events) == MAX_NOTES
    assert len(attributes(logical.events[0])["millrace.phase"]) == MAX_CHARACTERS
    assert logical.name == "chat " + "m" * (MAX_CHARACTERS - 5)
    assert attributes(logical)["gen_ai.request.model"] == "m" * MAX_CHARACTERS


def test_nothing_of_what_was_said_is_exported(collector: Collector, make_tracer: MakeTracer) -> None:
    """No message, answer, tool, stop, key or header of the client's, nor a model that nobody has."""
    tracer = make_tracer()
    said: dict[str, Any] = {
        "route": Route(),
        "model": CANARY,
        "credential": CANARY,
        "client_id": CANARY,
        "headers": {"traceparent": SAMPLED, "idempotency-key": CANARY},
        "messages": (
            Message(role="user", parts=(TextPart(CANARY),), name=CANARY, source={"content": CANARY}),
            Message(role="assistant", tool_calls=(ToolCall(CANARY, CANARY, CANARY),), reasoning=CANARY),
        ),
        "tools": (Tool(name=CANARY, description=CANARY, parameters={CANARY: CANARY}),),
        "response_format": ResponseFormat(kind="json_schema", name=CANARY, schema={CANARY: CANARY}),
        "reasoning_effort": CANARY,
        "stop": (CANARY,),
        "source": Source("openai.chat", {"messages": CANARY}),
    }
    for outcome in ("completed", "rejected", "gateway_error"):
        trace = tracer.begin(call(**said))
        trace.note("first_token")
        trace.attempt(settlement(result="failed"))
        trace.end(outcome, usage=Usage(1, 2), http_status=200)
    tracer.shutdown()
    assert len(collector.spans()) == 9
    assert CANARY.encode() not in b"".join(body for _, _, body in collector.requests)


# --- what a provider is told ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{}, {"openai-beta": "x"}])
def test_headers_without_a_trace_are_left_alone(headers: Mapping[str, str]) -> None:
    """Most calls have none, and nothing is copied for them."""
    tracer = Tracer()
    assert tracer.begin(call()).headers_for(headers) is headers


def test_no_provider_is_told_of_a_trace() -> None:
    """Not of the caller's either: who belongs together is not its business."""
    tracer = Tracer("http://127.0.0.1:9")
    headers = {"traceparent": SAMPLED, "tracestate": "vendor=1", "openai-beta": "x"}
    assert tracer.begin(call(headers=headers)).headers_for(headers) == {"openai-beta": "x"}


def test_a_provider_is_told_of_the_trace_where_that_is_wanted() -> None:
    """It belongs below the call; where there is no span of ours, below the caller."""
    headers = {"traceparent": SAMPLED, "tracestate": "vendor=1", "openai-beta": "x"}
    tracer = Tracer("http://127.0.0.1:9", propagates=True)
    trace = tracer.begin(call(headers=headers))
    told = trace.headers_for(headers)
    assert told == {"openai-beta": "x", "traceparent": trace.traceparent, "tracestate": "vendor=1"}
    assert trace.traceparent != SAMPLED

    alone = tracer.begin(call())
    assert alone.headers_for({}) == {"traceparent": alone.traceparent}

    silent = Tracer(propagates=True)
    assert silent.begin(call(headers=headers)).headers_for(headers) is headers
    assert silent.begin(call()).headers_for({}) == {}


# --- export -----------------------------------------------------------------------------------------------------------


def finished(tracer: Tracer, count: int = 1, **facts: Any) -> None:
    """Have so many calls begin and end, of three spans each."""
    for _ in range(count):
        trace = tracer.begin(call())
        trace.attempt(settlement())
        trace.end("completed", **facts)


def wait_until(is_so: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Return when it is so; fails when it does not become so."""
    deadline_s = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


def closed_port() -> int:
    """Return a port at which nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])


@pytest.mark.parametrize("path", ["", "/", "/v1/traces", "/tenant-1"])
def test_spans_go_to_the_endpoint_with_its_headers(collector: Collector, make_tracer: MakeTracer, path: str) -> None:
    """The path of OTLP is added where it is missing."""
    tracer = make_tracer(collector.url + path, headers={"authorization": Secret("Bearer s3cret")}, pace=QUICK)
    finished(tracer)
    wait_until(lambda: len(collector.spans()) == 3)
    (sent_to, headers, _), *_ = collector.requests
    assert sent_to == ("/tenant-1/v1/traces" if path == "/tenant-1" else "/v1/traces")
    assert headers["authorization"] == "Bearer s3cret"
    assert headers["content-type"] == "application/x-protobuf"


def test_spans_are_sent_in_small_batches(collector: Collector, make_tracer: MakeTracer) -> None:
    """No more than 64 at once, and none is lost."""
    tracer = make_tracer()
    finished(tracer, 100)
    tracer.shutdown(5.0)
    sizes = [len(batch.resource_spans[0].scope_spans[0].spans) for batch in collector.batches()]
    assert (sum(sizes), max(sizes) <= 64, len(sizes)) == (300, True, 5)
    assert tracer.dropped_count == 0


def test_a_batch_holds_at_least_one_call(collector: Collector, make_tracer: MakeTracer) -> None:
    """However small batches are to be."""
    tracer = make_tracer(pace=Pace(interval_s=60.0, batch_size=1, spans_per_breath=1))
    finished(tracer, 2)
    tracer.shutdown()
    assert len(collector.batches()) == 4
    assert len(collector.spans()) == 6


def test_what_finds_no_room_is_dropped_and_counted(collector: Collector, make_tracer: MakeTracer) -> None:
    """The newest go, so that what is kept belongs together."""
    tracer = make_tracer(pace=Pace(interval_s=60.0, queue_size=4))
    finished(tracer, 5)
    assert tracer.dropped_count == 9
    tracer.shutdown()
    assert len(collector.spans()) == 6
    assert tracer.dropped_count == 9


def test_a_collector_that_is_down_costs_drops(make_tracer: MakeTracer, capfd: pytest.CaptureFixture[str]) -> None:
    """They are counted, and logged once in a while, in words of ours."""
    with capture_logs() as logs:
        tracer = make_tracer(f"http://127.0.0.1:{closed_port()}", pace=QUICK)
        for dropped_count in (3, 6):
            finished(tracer, response_id=CANARY)
            wait_until(lambda expected=dropped_count: tracer.dropped_count == expected)  # type: ignore[misc]
        tracer.shutdown()
    assert logs == [
        {"event": "traces.dropped", "log_level": "warning", "dropped_count": 3, "reason": "no_answer"},
    ]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("status", [400, 401, 404, 500])
def test_a_collector_that_refuses_is_not_asked_again(
    collector: Collector, make_tracer: MakeTracer, status: int
) -> None:
    """The same spans would be refused again; the reason is in the log."""
    collector.statuses = [status]
    with capture_logs() as logs:
        tracer = make_tracer(pace=QUICK)
        finished(tracer)
        wait_until(lambda: logs != [])
        finished(tracer)
        tracer.shutdown()
    assert (tracer.dropped_count, len(collector.requests)) == (3, 2)
    assert [entry["reason"] for entry in logs] == [f"http_{status}"]


def test_a_collector_that_is_busy_is_asked_again(collector: Collector, make_tracer: MakeTracer) -> None:
    """When it says, if that is soon."""
    collector.statuses, collector.headers = [503], {"retry-after": "0"}
    tracer = make_tracer(pace=QUICK)
    finished(tracer)
    wait_until(lambda: len(collector.requests) == 2)
    tracer.shutdown()
    assert tracer.dropped_count == 0
    assert collector.requests[0][2] == collector.requests[1][2]


def test_failures_come_ever_less_often(collector: Collector, make_tracer: MakeTracer) -> None:
    """A collector that is broken is left in peace; when it works again, all is as before."""
    collector.statuses = [500] * 3
    tracer = make_tracer(pace=Pace(interval_s=0.02, pause_s=0.0, timeout_s=0.5, max_wait_s=0.2))
    began_s = time.monotonic()
    while collector.statuses:
        finished(tracer)
        time.sleep(0.005)
    assert time.monotonic() - began_s > 0.02 + 0.04 + 0.08
    dropped_count = tracer.dropped_count
    finished(tracer)
    tracer.shutdown()
    assert tracer.dropped_count >= dropped_count
    assert len(collector.requests) >= 4


def test_a_collector_that_hangs_costs_drops_and_no_time(collector: Collector, make_tracer: MakeTracer) -> None:
    """Calls begin and end as ever; what no longer fits is dropped, and the end waits only so long."""
    collector.hangs.clear()
    tracer = make_tracer(pace=Pace(interval_s=0.01, queue_size=10, timeout_s=30.0))
    finished(tracer)
    wait_until(lambda: tracer._exporter is not None and tracer._exporter._sending_count == 3)
    began_s = time.monotonic()
    finished(tracer, 100)
    assert time.monotonic() - began_s < 0.5
    assert tracer.dropped_count == 300 - 15

    began_s = time.monotonic()
    tracer.shutdown(0.1)
    assert 0.1 <= time.monotonic() - began_s < 1.0
    assert tracer.dropped_count == 303
    collector.hangs.set()
    time.sleep(0.05)
    assert tracer.dropped_count == 303


def test_a_collector_that_is_slow_is_given_up(collector: Collector, make_tracer: MakeTracer) -> None:
    """After the time that a batch has, and the next may do better."""
    collector.hangs.clear()
    with capture_logs() as logs:
        tracer = make_tracer(pace=Pace(interval_s=0.01, timeout_s=0.1))
        finished(tracer)
        wait_until(lambda: logs != [])
        collector.hangs.set()
        finished(tracer)
        tracer.shutdown()
    assert [entry["reason"] for entry in logs] == ["no_answer"]
    assert tracer.dropped_count == 3


def test_the_log_tells_of_a_queue_that_was_full(collector: Collector, make_tracer: MakeTracer) -> None:
    """The collector is not to blame for that."""
    with capture_logs() as logs:
        tracer = make_tracer(pace=Pace(interval_s=0.05, queue_size=1))
        finished(tracer)
        wait_until(lambda: logs != [])
    assert logs[0]["reason"] == "queue_full"
    assert len(collector.spans()) == 1


def test_what_cannot_be_encoded_is_dropped(make_tracer: MakeTracer) -> None:
    """A time before the epoch has no place in OTLP; the thread lives on."""
    with capture_logs() as logs:
        tracer = make_tracer(pace=QUICK)
        tracer.begin(call()).attempt(settlement(started_at_s=-1e12))
        wait_until(lambda: logs != [])
    assert (logs[0]["reason"], tracer.dropped_count) == ("not_encoded", 1)


def test_a_redirect_is_not_followed(collector: Collector, make_tracer: MakeTracer) -> None:
    """Spans go where the configuration says, and nowhere else."""
    elsewhere = Collector()
    try:
        collector.statuses, collector.headers = [307], {"location": f"{elsewhere.url}/v1/traces"}
        tracer = make_tracer()
        finished(tracer)
        tracer.shutdown()
        assert (len(collector.requests), elsewhere.requests, tracer.dropped_count) == (1, [], 3)
    finally:
        elsewhere.close()


def test_proxies_and_passwords_of_the_environment_are_not_used(
    collector: Collector, make_tracer: MakeTracer, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """What the machine is set up for is not what the gateway is."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login user password s3cret\n")
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed_port()}")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(netrc))
    tracer = make_tracer()
    finished(tracer)
    tracer.shutdown()
    ((_, headers, _),) = collector.requests
    assert "authorization" not in headers
    assert len(collector.spans()) == 3


def test_what_ends_after_the_shutdown_is_dropped(collector: Collector, make_tracer: MakeTracer) -> None:
    """And counted; shutting down again does nothing."""
    tracer = make_tracer()
    tracer.shutdown()
    finished(tracer)
    tracer.shutdown()
    assert (tracer.dropped_count, collector.requests) == (3, [])


def test_a_tracer_that_never_started_drops_what_it_has() -> None:
    """Without a thread nobody sends it."""
    tracer = Tracer("http://127.0.0.1:9")
    finished(tracer)
    tracer.shutdown()
    assert tracer.dropped_count == 3


def test_a_tracer_is_started_once(collector: Collector, make_tracer: MakeTracer) -> None:
    """Starting again is no second thread."""
    tracer = make_tracer()
    before = threading.active_count()
    tracer.start()
    assert threading.active_count() == before
    finished(tracer)
    tracer.shutdown()
    assert len(collector.spans()) == 3


def test_each_process_starts_after_the_fork(collector: Collector) -> None:
    """A tracer that was made before exports from every worker, and each says who it is."""
    script = """
import os, sys
from gateway.core.call import Call
from gateway.telemetry.tracing import Tracer
tracer = Tracer(sys.argv[1])
children = []
for number in range(2):
    pid = os.fork()
    if pid == 0:
        tracer.start()
        tracer.begin(Call(request_id=f"r{number}")).end("completed")
        tracer.shutdown()
        os._exit(tracer.dropped_count)
    children.append(pid)
sys.exit(max(os.waitpid(pid, 0)[1] for pid in children))
"""
    subprocess.run([sys.executable, "-c", script, collector.url], check=True)  # noqa: S603, ours
    assert len({span.trace_id for span in collector.spans()}) == 2
    workers = set()
    for batch in collector.batches():
        for item in batch.resource_spans[0].resource.attributes:
            if item.key in ("service.instance.id", "process.pid"):
                workers.add(str(item.value))
    assert len(workers) == 4


def test_a_fact_that_is_not_known_is_left_out(collector: Collector, make_tracer: MakeTracer) -> None:
    """Whether it is not given, or given as nothing."""
    facts: Sequence[Facts] = ({}, {"usage": None, "response_id": "", "finish_reasons": (), "ttft_s": None})
    tracer = make_tracer()
    for fact in facts:
        tracer.begin(call()).end("completed", **fact)
    tracer.shutdown()
    first, second = [attributes(span) for span in collector.spans() if span.kind == Span.SPAN_KIND_CLIENT]
    assert first == second


@pytest.mark.parametrize(
    ("options", "peer"),
    [
        ({"kind": "openai", "base_url": "https://api.openai.com/v1"}, Peer("openai", "api.openai.com", 443)),
        ({"kind": "openai-compatible", "host": "vllm", "base_url": "http://[::1]:8000/v1"}, Peer("vllm", "::1", 8000)),
        ({"kind": "simulator"}, Peer("simulator", None, None)),
    ],
)
def test_a_peer_is_where_its_url_says(options: Any, peer: Peer) -> None:
    """Name, address and port; the port of the scheme where none is given."""
    assert Peer.of(**options) == peer
