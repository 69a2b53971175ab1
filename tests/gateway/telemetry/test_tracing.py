from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping

import pytest
from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased

from gateway.core.events import Usage
from gateway.core.trace import Trace
from gateway.telemetry.spans import RecordedTrace
from gateway.telemetry.tracing import Tracer
from tests.gateway.telemetry.traced import (
    SAMPLED,
    SPAN_ID,
    TRACE_ID,
    UNSAMPLED,
    MakeTracer,
    call,
    settlement,
)
from tests.otlp import Collector


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


def test_what_is_no_traceparent_begins_a_trace_of_our_own() -> None:
    """With new ids."""
    trace = Tracer().begin(call(SAMPLED.upper()))
    assert re.fullmatch(r"[0-9a-f]{32}", trace.trace_id)
    assert trace.trace_id != TRACE_ID


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
    trace.note("first_token")
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
