"""Calls to be traced, and the spans of them that a collector was sent."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from gateway.core.call import (
    Call,
    Route,
    Target,
)
from gateway.core.events import Usage
from gateway.core.ledger import Settlement
from gateway.telemetry.export import Pace
from gateway.telemetry.spans import Peer
from gateway.telemetry.tracing import Tracer
from tests.otlp import Collector

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, UNSAMPLED = f"00-{TRACE_ID}-{SPAN_ID}-01", f"00-{TRACE_ID}-{SPAN_ID}-00"

FIRST, SECOND = Target("openai", "gpt-5-mini"), Target("claude", "claude-haiku-4-5")
PEERS = {
    "openai": Peer.of(kind="openai", base_url="https://api.openai.com/v1"),
    "claude": Peer.of(kind="anthropic", base_url="http://127.0.0.1:9000"),
}
QUICK = Pace(interval_s=0.01, pause_s=0.0, breath_s=0.0, timeout_s=30)
PATIENT = Pace(interval_s=60.0, timeout_s=30)
"""Sends nothing before it is shut down."""


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


MakeTracer = Callable[..., Tracer]
"""Starts a tracer; takes what ``Tracer`` does, with the collector for its endpoint and a pace that sends at the end."""
